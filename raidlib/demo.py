"""The main job from nothing to done, on real files: `raidlib demo`.

An array loses two members while a tree of files is copied into it, is rebuilt, loses two others, and at the end every file is compared
with its SHA-256 sum taken at the source. With FUSE the files live on a mount; without it the same array is used through `Array` and the
tools of e2fsprogs. All that is made lies in one folder, which goes at the end, whatever the end is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from . import control, mount
from . import opening as arrays
from .errors import ArrayIOError, MissingFacilityError, NoSpaceError, RaidError, UsageError
from .model import SCHEMA, MemberState, Status, Struct, format_size

MEMBERS = 6
RANDOM_BYTES = 208 << 20
RANDOM_NAME = "random.bin"
NEEDED_BYTES = 3 << 29
PIECE_BYTES = 1 << 20
SYNC_BYTES = 16 << 20  # of the copy between two fsyncs: so that it is the array that is written, not memory
NOTICE_SECONDS = 30.0
POLL_SECONDS = 0.1
LOSSES_AT = (0.3, 0.5)  # of the copy
_SKIPPED = {"__pycache__", "site-packages", "dist-packages"}


class Step(Struct, frozen=True, kw_only=True):
    """One line of the table at the end."""

    name: str
    seconds: float
    bytes: int = 0
    result: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """What was done, and what came out."""

    schema: int = SCHEMA
    directory: str
    kept: bool
    uuid: str
    driver: str
    files: int
    bytes: int
    files_compared: int
    files_differing: int
    mismatch_count: int
    file_system_errors: int
    steps: list[Step]
    notes: list[str]


class Meter(Protocol):
    """A progress bar."""

    def show(self, label: str, done: int, total: int, rate: float, eta: float | None) -> None:
        """The state of the work now."""


class Screen(Protocol):
    """Who shows the demonstration."""

    def line(self, text: str) -> None:
        """Something that was done or found out."""

    def meter(self) -> contextlib.AbstractContextManager[Meter]:
        """A progress bar for the work in its `with` block."""


# --- The files --------------------------------------------------------------------------------------------------------


class Source:
    """What is copied: this machine's Python library, and a large file of pseudo-random data that exists nowhere else."""

    def __init__(self) -> None:
        root = Path(sysconfig.get_path("stdlib"))
        self.files: dict[str, Path | None] = {}
        sizes: dict[str, int] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED)
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    key = str(Path("python", path.relative_to(root)))
                    self.files[key], sizes[key] = path, path.stat().st_size
        half = len(self.files) // 2  # the large one comes in the middle: the losses fall into it
        names_in_order = [*list(self.files)[:half], RANDOM_NAME, *list(self.files)[half:]]
        self.files = {name: self.files.get(name) for name in names_in_order}
        self.bytes = sum(sizes.values()) + RANDOM_BYTES
        self.sums: dict[str, str] = {}

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file."""
        path = self.files[name]
        if path is None:
            generator = random.Random(20240229)
            for _ in range(RANDOM_BYTES // PIECE_BYTES):
                yield generator.randbytes(PIECE_BYTES)
            return
        with open(path, "rb") as file:
            while data := file.read(PIECE_BYTES):
                yield data

    def copy_to(self, target: Path, on_bytes: Callable[[int], None]) -> None:
        """Copies all, and keeps the sums of what was read."""
        unsynced = 0
        for name in self.files:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with open(path, "wb") as out:
                for data in self.pieces(name):
                    digest.update(data)
                    out.write(data)
                    unsynced += len(data)
                    on_bytes(len(data))
                    if unsynced >= SYNC_BYTES:
                        out.flush()
                        os.fsync(out.fileno())
                        unsynced = 0
            self.sums[name] = digest.hexdigest()

    def compare(self, target: Path, on_bytes: Callable[[int], None]) -> list[str]:
        """The files that differ from what was read at the source."""
        wrong = []
        for name, expected in self.sums.items():
            digest = hashlib.sha256()
            try:
                with open(target / name, "rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # it's the array that is asked, not the page cache
                    while data := file.read(PIECE_BYTES):
                        digest.update(data)
                        on_bytes(len(data))
            except OSError as error:
                wrong.append(f"{name}: {error.strerror}")
                continue
            if digest.hexdigest() != expected:
                wrong.append(f"{name}: its content differs")
        return wrong


# --- Two ways to the array --------------------------------------------------------------------------------------------


class Mounted:
    """The files live on a mount; the array on the other side of its control socket."""

    again = "unmounted and mounted again"

    def __init__(self, tank: Path, work: Path) -> None:
        self.tank, self.point, self.driver = tank, work / "files", ""
        self.notes: list[str] = []
        self._volume: str | None = None
        self._live = False

    def begin(self) -> None:
        """Mounts it."""
        self.point.mkdir(exist_ok=True)
        self._live = True  # first: an interruption may come when it stands already
        info = mount.mount(str(self.tank), str(self.point))
        self.driver, self._volume = f"{info.fs} by {info.driver}", info.volume
        self.notes += [note for note in info.notes if note not in self.notes]

    def admin(self) -> Any:
        """The array, for its status and its members."""
        client = control.connect(str(self.tank))
        if client is None:
            raise ArrayIOError("the array is not running any more")
        return client

    def copy(self, source: Source, on_bytes: Callable[[int], None]) -> None:
        """Copies the files in."""
        source.copy_to(self.point, on_bytes)
        os.sync()

    def forget(self) -> None:
        """Lets the system forget what it has cached of the volume."""
        os.sync()
        if self._volume and os.path.exists(self._volume):
            with open(self._volume, "rb") as volume:
                os.posix_fadvise(volume.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def compare(self, source: Source, on_bytes: Callable[[int], None]) -> list[str]:
        """Reads all files."""
        self.forget()
        return source.compare(self.point, on_bytes)

    def end(self) -> None:
        """Unmounts; the array is at rest then."""
        if self._live:
            mount.umount(str(self.point))
            self._live = False


class Direct:
    """Without a mount: the array is open in this process, and e2fsprogs put files into its file system and take them out."""

    again = "closed and opened again"
    driver = "no mount: the Python file interface and e2fsprogs"

    def __init__(self, tank: Path, work: Path) -> None:
        self.tank, self.work = tank, work
        self.notes: list[str] = []
        self._array: arrays.Array | None = None

    def begin(self) -> None:
        """Opens it."""
        self._array = arrays.open(str(self.tank))

    def admin(self) -> arrays.Array:
        """The array itself."""
        if self._array is None:
            raise ArrayIOError("the array is closed")
        return self._array

    def copy(self, source: Source, on_bytes: Callable[[int], None]) -> None:
        """A file system with all files is made beside the array, and written into it."""
        tree, image = self.work / "tree", self.work / "tree.img"
        source.copy_to(tree, lambda _: None)
        with open(image, "wb") as file:
            file.truncate(self.admin().size)
        _tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(tree), str(image))
        shutil.rmtree(tree)
        done, total = 0, self.admin().size
        with open(image, "rb") as file, self.admin().raw() as out:
            while data := file.read(PIECE_BYTES):
                out.write(data)
                done += len(data)
                on_bytes(source.bytes * done // total - source.bytes * (done - len(data)) // total)
            self.admin().flush()
        image.unlink()

    def compare(self, source: Source, on_bytes: Callable[[int], None]) -> list[str]:
        """The array's content is read, and the files are taken out of it."""
        image, tree = self.work / "copy.img", self.work / "tree"
        with self.admin().raw() as file, open(image, "wb") as out:
            shutil.copyfileobj(file, out, PIECE_BYTES)
        tree.mkdir()
        _tool("debugfs", "-R", f'rdump "/" "{tree}"', str(image))
        try:
            return source.compare(tree, on_bytes)
        finally:
            shutil.rmtree(tree)
            image.unlink()

    def end(self) -> None:
        """Closes it."""
        if self._array is not None:
            self._array.close()
            self._array = None


def _tool(name: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """Runs a program of the system."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise MissingFacilityError(f"{name} is not installed; as root: apt-get install {'mdadm' if name == 'mdadm' else 'e2fsprogs'}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if codes and done.returncode not in codes:
        raise ArrayIOError(f"{name} ended with {done.returncode}: {' '.join((done.stderr or done.stdout).split())}")
    return done


def _raidlib(*arguments: str) -> str:
    """Runs a verb of the command line, as a user would."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")))),
    }
    done = subprocess.run([sys.executable, "-m", "raidlib", *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        error = RaidError(done.stderr.strip().removeprefix("raidlib: ") or f"raidlib {arguments[0]} ended with {done.returncode}")
        error.exit_code = done.returncode
        raise error
    return done.stdout


# --- The play ---------------------------------------------------------------------------------------------------------


class _Scene:
    """What a step fills in while it runs."""

    bytes = 0
    result = ""


class Demo:
    """The acts in their order, and the state they share."""

    def __init__(self, work: Path, screen: Screen) -> None:
        self.work, self.screen, self.tank = work, screen, work / "tank"
        self.source = Source()
        self.place: Mounted | Direct = Mounted(self.tank, work)
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.compared = self.mismatches = self.file_system_errors = 0
        self.differing: set[str] = set()
        self.uuid, self.next_member = "", MEMBERS
        share = (self.source.bytes * 5 // 4 + (64 << 20)) // (MEMBERS - 2)
        self.member_bytes = (share >> 20) + 2 << 20

    @contextlib.contextmanager
    def step(self, name: str, done: str = "") -> Iterator[_Scene]:
        """Times a step, and tells its result."""
        scene, start = _Scene(), time.monotonic()
        yield scene
        seconds = time.monotonic() - start
        self.steps.append(Step(name=name, seconds=seconds, bytes=scene.bytes, result=scene.result))
        rate = f", {format_size(scene.bytes / seconds)}/s" if scene.bytes else ""
        self.screen.line(f"{done or name}: {scene.result} ({seconds:.1f} s{rate})")

    @contextlib.contextmanager
    def counter(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar that counts bytes."""
        start, done = time.monotonic(), 0
        with self.screen.meter() as meter:

            def count(more: int) -> None:
                nonlocal done
                done += more
                rate = done / max(time.monotonic() - start, 1e-6)
                meter.show(label, done, total, rate, (total - done) / rate if rate else None)

            yield count

    def note(self, text: str) -> None:
        """Something that is not as it would be elsewhere."""
        if text not in self.notes:
            self.notes.append(text)
            self.screen.line(f"note: {text}")

    def play(self) -> None:
        """All acts."""
        self.create()
        self.copy_while_members_die()
        self.verify("verify, two members lost")
        self.rebuild("rebuild")
        self.lose_two_others()
        self.verify("verify, two others lost")
        self.rebuild("rebuild again")
        with self.step("stop") as scene:
            self.place.end()
            scene.result = "the array is at rest"
        self.check_file_system()
        self.check_parity()
        self.ask_mdadm()

    def create(self) -> None:
        """An array of files with ext4 on it, mounted."""
        size = f"{self.member_bytes >> 20}M"
        self.screen.line(f"the array: {self.tank}")
        with self.step("create") as scene:
            _raidlib(
                "create", str(self.tank), "--level", "6", "--raid-devices", str(MEMBERS), "--size", size, "--chunk", "64K", "--mkfs", "ext4"
            )
            scene.result = f"level 6, {MEMBERS} members of {size}, ext4 on it"
        with self.step("open") as scene:
            try:
                self.place.begin()
            except MissingFacilityError as error:
                self.note(f"no mount here ({error}): the next best way is taken, {Direct.driver}")
                self.place = Direct(self.tank, self.work)
                self.place.begin()
            scene.result = self.place.driver
        for text in self.place.notes:
            self.note(text)
        self.uuid = self.place.admin().status().uuid

    def copy_while_members_die(self) -> None:
        """Copies all; on the way one member's file is emptied and another's is unlinked."""
        victims = [self.tank / "member-1.img", self.tank / "member-4.img"]
        acts: list[tuple[float, Path, str, Callable[[], object]]] = [
            (LOSSES_AT[0], victims[0], "truncated to nothing", lambda: os.truncate(victims[0], 0)),
            (LOSSES_AT[1], victims[1], "unlinked", victims[1].unlink),
        ]
        copied, failure, stop = 0, [], threading.Event()

        def on_bytes(more: int) -> None:
            nonlocal copied
            copied += more
            if stop.is_set():
                raise InterruptedError
            if acts and copied >= acts[0][0] * self.source.bytes:
                share, path, word, destroy = acts.pop(0)
                destroy()
                self.screen.line(f"  at {share:.0%} of the copy: {path.name} is {word}; the copy goes on")

        def work() -> None:
            try:
                self.place.copy(self.source, on_bytes)
            except BaseException as error:
                failure.append(error)

        with self.step("copy, losing two members", "copy") as scene:
            thread = threading.Thread(target=work, name="raidlib demo copy")
            thread.start()
            try:
                with self.counter("copying", self.source.bytes) as count:
                    shown, waiting = 0, {str(path) for path in victims}
                    while thread.is_alive():
                        thread.join(POLL_SECONDS)
                        now = copied
                        count(now - shown)
                        shown = now
                        self.look_for_losses(waiting, f", {min(1, now / self.source.bytes):.0%} of the files copied")
            finally:
                stop.set()
                thread.join()
            if failure:
                raise ArrayIOError(f"the copy failed: {failure[0]}") from failure[0]
            self.await_losses(waiting)
            scene.bytes, scene.result = (
                self.source.bytes,
                f"{len(self.source.files)} files, {format_size(self.source.bytes)}, without an error",
            )

    def look_for_losses(self, waiting: set[str], when: str = "") -> None:
        """Says which of the destroyed members the array has noticed by itself."""
        if not waiting:
            return
        for member in self.place.admin().status().members:
            path = os.path.abspath(member.path)
            if path in waiting and member.state is MemberState.FAULTY:
                waiting.discard(path)
                self.screen.line(
                    f"  the array has noticed: {os.path.basename(path)} is faulty ({member.reason.replace(f'{self.tank}/', '')}){when}"
                )

    def await_losses(self, waiting: set[str]) -> None:
        """Until the array has noticed them all."""
        until = time.monotonic() + NOTICE_SECONDS
        while waiting and time.monotonic() < until:
            self.look_for_losses(waiting)
            time.sleep(POLL_SECONDS)
        if waiting:
            raise ArrayIOError(f"the array did not notice within {NOTICE_SECONDS:.0f} s that {', '.join(sorted(waiting))} is destroyed")

    def verify(self, name: str) -> None:
        """Compares every file with its sum; the bytes come from the array."""
        with self.step(name) as scene, self.counter("comparing", self.source.bytes) as count:
            wrong = self.place.compare(self.source, count)
            self.compared = len(self.source.sums)
            self.differing |= {line.partition(": ")[0] for line in wrong}
            for line in wrong[:10]:
                self.screen.line(f"  {line}")
            scene.bytes, scene.result = self.source.bytes, f"{len(self.source.sums)} files compared, {len(wrong)} differ"

    def rebuild(self, name: str) -> None:
        """Two new members, and the rebuild to its end."""
        admin = self.place.admin()
        with self.step(name) as scene:
            admin.remove("faulty")
            for _ in range(2):
                path = self.tank / f"member-{self.next_member}.img"
                self.next_member += 1
                with open(path, "wb") as file:
                    file.truncate(self.member_bytes)
                admin.add(str(path))
            status = self.follow(admin, lambda status: status.degraded > 0, "rebuilding")
            scene.bytes, scene.result = 2 * status.dev_size, f"two new members; {status.may_lose} more may be lost again"

    def follow(self, admin: Any, unfinished: Callable[[Status], bool], label: str) -> Status:
        """Shows the array's jobs until it has what it needs."""
        idle_since: float | None = None
        with self.screen.meter() as meter:
            while True:
                status: Status = admin.status()
                running = status.job is not None and status.job.state in ("running", "paused")
                if not running and not unfinished(status):
                    return status
                if running and status.job is not None:
                    idle_since = None
                    meter.show(label, status.job.done, status.job.total, status.job.rate, status.job.eta)
                else:
                    idle_since = idle_since or time.monotonic()
                    if time.monotonic() - idle_since > NOTICE_SECONDS:
                        raise ArrayIOError(
                            f"{label} does not go on: {status.job.error if status.job and status.job.error else status.advice}"
                        )
                time.sleep(POLL_SECONDS)

    def lose_two_others(self) -> None:
        """Two members that were never lost before; then the array is taken down and up again."""
        victims = [self.tank / "member-0.img", self.tank / "member-3.img"]
        with self.step("lose two others") as scene:
            os.truncate(victims[0], 0)
            victims[1].unlink()
            self.screen.line(f"  {victims[0].name} is truncated to nothing, {victims[1].name} is unlinked")
            self.await_losses({str(path) for path in victims})
            self.place.end()
            self.place.begin()
            scene.result = f"noticed; {self.place.again}"

    def check_file_system(self) -> None:
        """fsck on a copy of the array's content."""
        image = self.work / "content.img"
        with self.step("fsck.ext4 -fn") as scene:
            _raidlib("export", str(self.tank), str(image))
            done = _tool("fsck.ext4", "-fn", str(image), codes=())
            self.file_system_errors = int(done.returncode != 0)
            lines = (done.stdout + done.stderr).strip().splitlines()
            scene.result = "no errors" if done.returncode == 0 else f"exit code {done.returncode}: {lines[-1] if lines else ''}"
            image.unlink()

    def check_parity(self) -> None:
        """Reads every member and compares P and Q with the data."""
        with arrays.open(str(self.tank)) as array, self.step("parity check") as scene:
            self.follow(array, lambda status: False, "resyncing")
            job = array.check()
            self.follow(array, lambda status: False, "checking")
            job.wait()
            self.mismatches = job.status().mismatch_count
            scene.bytes, scene.result = MEMBERS * job.status().total, f"{self.mismatches} mismatches"

    def ask_mdadm(self) -> None:
        """mdadm reads the superblocks, without a kernel driver."""
        members = sorted(path for path in self.tank.iterdir() if path.stat().st_size)
        with self.step("mdadm --examine") as scene:
            try:
                answers = [_tool("mdadm", "--examine", str(path), codes=()).stdout for path in members]
            except MissingFacilityError:
                scene.result = "not installed, skipped"
                return
            known = sum(self.uuid in answer for answer in answers)
            states = {
                line.partition(": ")[2].split(" ")[0] for answer in answers for line in answer.splitlines() if "Array State :" in line
            }
            scene.result = f"reads {known} of {len(members)} superblocks, array state {' / '.join(sorted(states))}"
            if known != MEMBERS:
                raise ArrayIOError(f"mdadm --examine reads {known} of {MEMBERS} superblocks of the array")

    def report(self, kept: bool) -> Report:
        """The result."""
        return Report(
            directory=str(self.work),
            kept=kept,
            uuid=self.uuid,
            driver=self.place.driver,
            files=len(self.source.files),
            bytes=self.source.bytes,
            files_compared=self.compared,
            files_differing=len(self.differing),
            mismatch_count=self.mismatches,
            file_system_errors=self.file_system_errors,
            steps=self.steps,
            notes=self.notes,
        )


def run(directory: str | None, *, keep: bool, screen: Screen) -> Report:
    """The whole demonstration, in a folder of its own in `directory`, which is removed unless `keep`; an interruption cleans up, too."""
    base = directory or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())
    free = shutil.disk_usage(base).free
    if free < NEEDED_BYTES:
        raise NoSpaceError(
            f"{base} has {format_size(free)} free, the demonstration needs {format_size(NEEDED_BYTES)}; give another place by --dir"
        )
    work = Path(tempfile.mkdtemp(prefix="raidlib-demo-", dir=os.path.abspath(base)))
    demo: Demo | None = None
    try:
        demo = Demo(work, screen)
        demo.play()
        return demo.report(keep)
    finally:
        with _undisturbed():
            _clean_up(demo, work, keep, screen)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not end the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _clean_up(demo: Demo | None, work: Path, keep: bool, screen: Screen) -> None:
    until = time.monotonic() + NOTICE_SECONDS
    while demo is not None:
        try:
            demo.place.end()
            break
        except UsageError:  # it was never mounted
            break
        except (RaidError, OSError) as error:
            if time.monotonic() > until:
                screen.line(f"the mount could not be ended: {error}; {work} stays, `raidlib umount {work / 'files'}` tries again")
                return
        time.sleep(POLL_SECONDS)  # an interrupted unmount is still at work
    if keep:
        screen.line(f"kept: {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
