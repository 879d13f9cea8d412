"""Mounts: a directory of files that survives the loss of members, and of its owner."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

import raidlib
from raidlib import control, errors, mount, runtime, system

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
NOBODY = 65534


def missing() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse: FUSE is not in this kernel or container"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no /dev/fuse that can be opened: {error.strerror}"
    return ""


if missing():
    pytest.skip(missing(), allow_module_level=True)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_loop = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="no loop devices (or not root)")
each_driver = pytest.mark.parametrize("driver", [pytest.param("kernel", marks=needs_loop), "fuse2fs"])


@pytest.fixture(autouse=True)
def run_folder(monkeypatch):
    """Run-time folders of this test only; afterwards whatever a failure has left is taken down."""
    with tempfile.TemporaryDirectory(prefix="raidlib-test-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "run"
        monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(folder))
        try:
            yield folder
        finally:
            for _, info in runtime.found(alive=True):
                if info.pid != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(info.pid, signal.SIGKILL)
                    wait_for(lambda uuid=info.uuid: all(other.uuid != uuid for _, other in runtime.found(alive=True)))
            for path, info in runtime.found(alive=False):
                mount._clean(info.uuid, path, info)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "mnt"
    folder.mkdir()
    yield folder
    while any(entry.place == str(folder) for entry in system.mounts()):
        system.take_down(str(folder))


@pytest.fixture
def tank(tmp_path):
    """A level 6 array of files with an ext4 on it."""
    return make(tmp_path / "tank")


def make(folder: Path, *, mkfs: bool = True, level: int = 6, devices: int = 6, size: str = "16M") -> Path:
    chunk = None if level == 1 else "64K"
    with raidlib.create(folder, level=level, raid_devices=devices, size=size, chunk=chunk) as array, tempfile.TemporaryFile() as image:
        if mkfs:
            image.truncate(array.size)
            command = [
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                f"root_owner={os.geteuid()}:{os.getegid()}",
                f"/proc/self/fd/{image.fileno()}",
            ]
            environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
            subprocess.run(command, check=True, pass_fds=[image.fileno()], env=environment)
            for offset in range(0, array.size, MIB):
                data = os.pread(image.fileno(), min(MIB, array.size - offset), offset)
                if any(data):
                    array.pwrite(data, offset)
            array.flush()
    return folder


def wait_for(done, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def sync_file(path: Path, data: bytes) -> str:
    """Writes and syncs a file; its digest."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # fuse2fs knows no fsync of directories
    finally:
        os.close(folder)
    return hashlib.sha256(data).hexdigest()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def nothing_left(place: Path, run_folder: Path) -> None:
    """No mount, no loop device, no process, no folder."""
    assert [entry for entry in system.mounts() if str(place) in entry.place or str(run_folder) in entry.place] == []
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert [text for text in backing if str(run_folder) in text] == []
    wait_for(lambda: not run_folder.exists() or os.listdir(run_folder) == [])


def fsck(tank: Path, place: Path) -> None:
    """The file system is whole."""
    info = mount.mount(tank, place, fs="none")
    done = subprocess.run([system.tool("e2fsck", ""), "-f", "-n", info.volume], check=False, capture_output=True, text=True)
    mount.umount(place)
    assert done.returncode == 0, done.stdout


def kill_owner(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runtime.found(alive=True))


# --- The way it is meant ----------------------------------------------------------------------------------------------


@each_driver
def test_files_survive_the_loss_of_members(tank, place, driver, run_folder, tmp_path):
    info = mount.mount(tank, place, driver=driver)
    assert (info.driver, info.fs, info.mountpoint) == (driver, "ext4", str(place))
    assert any("journal" in note for note in info.notes) == (driver == "fuse2fs")
    rng = random.Random(3)
    files, stop, problems = {}, threading.Event(), []

    def write():
        try:
            for number in range(24):
                files[place / f"file-{number}"] = sync_file(place / f"file-{number}", rng.randbytes(rng.randrange(1, 2 * MIB)))
        except OSError as error:
            problems.append(error)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: len(files) >= 6 or problems)
    os.truncate(tank / "member-1.img", 4 * MIB)
    wait_for(lambda: len(files) >= 12 or problems)
    (tank / "member-4.img").unlink()
    writer.join()
    assert problems == []
    client = control.connect(place)
    wait_for(lambda: client.status().degraded == 2)
    status = client.status()
    assert (status.state, status.owner_pid, status.mountpoint, status.volume) == ("degraded", info.pid, str(place), info.volume)
    assert {path: digest(path) for path in files} == files
    client.remove("faulty")
    for number in range(2):
        new = tmp_path / f"new-{number}.img"
        with open(new, "wb") as file:
            file.truncate(16 * MIB)
        client.add(new)
    assert client.wait(60)
    assert client.status().degraded == 0
    assert {path: digest(path) for path in files} == files
    mount.umount(place)
    nothing_left(place, run_folder)
    members = [path for path in [*tank.iterdir(), *tmp_path.glob("new-*.img")] if path.name != "member-1.img"]
    fsck(members, place)
    with raidlib.open(members) as array:
        assert array.status().degraded == 0
        job = array.check()
        job.wait()
        assert job.mismatches() == []
    mount.mount(members, place, driver=driver)
    assert {path: digest(path) for path in files} == files
    mount.umount(place)


def test_only_the_volume(tmp_path, place, run_folder):
    tank = make(tmp_path / "tank", mkfs=False)
    info = mount.mount(tank, place, fs="none")
    assert (info.driver, info.fs, info.volume) == ("none", "none", str(place / "volume"))
    assert os.listdir(place) == ["volume"]
    content = random.Random(5).randbytes(MIB)
    fd = os.open(place / "volume", os.O_RDWR)
    os.pwrite(fd, content, 12345)
    os.fsync(fd)
    with pytest.raises(errors.BusyError, match="files are open"):
        mount.umount(place)
    os.close(fd)
    mount.umount(tank)
    nothing_left(place, run_folder)
    with raidlib.open(tank, "r") as array:
        assert array.pread(MIB, 12345) == content
        assert array.status().resync_offset is None


@each_driver
def test_read_only(tank, place, driver):
    before = {path: digest(path) for path in tank.iterdir()}
    info = mount.mount(tank, place, driver=driver, read_only=True)
    assert os.listdir(place) == ["lost+found"]
    with pytest.raises(OSError, match="Read-only"):
        (place / "x").write_text("x")
    assert control.connect(place).status().read_only
    assert info.driver == driver
    mount.umount(place)
    assert {path: digest(path) for path in tank.iterdir()} == before


@needs_loop
def test_a_journal_that_cannot_be_replayed(tank, place):
    """Read-only after a crash: the kernel's ext4 would write."""
    info = mount.mount(tank, place, driver="kernel")
    sync_file(place / "x", b"content")
    kill_owner(info.pid)
    info = mount.mount(tank, place, driver="kernel", read_only=True)
    assert any("journal" in note for note in info.notes)
    mount.umount(place)


@each_driver
def test_files_open_keep_the_mount(tank, place, driver, run_folder):
    mount.mount(tank, place, driver=driver)
    with open(place / "x", "w") as file:
        file.write("hello")
        with pytest.raises(errors.BusyError, match="files are open") as caught:
            mount.umount(place)
        assert caught.value.exit_code == 75
        assert control.connect(place) is not None
        file.write(" again")
    assert (place / "x").read_text() == "hello again"
    mount.umount(place)
    nothing_left(place, run_folder)


@each_driver
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(tank, place, driver, number, run_folder):
    info = mount.mount(tank, place, driver=driver)
    (place / "x").write_text("hello")
    os.kill(info.pid, number)
    wait_for(lambda: not runtime.found(alive=True))
    nothing_left(place, run_folder)
    mount.mount(tank, place, driver=driver)
    assert (place / "x").read_text() == "hello"
    mount.umount(place)


def test_a_signal_while_files_are_open(tank, place, run_folder):
    """The mount stays, with everything in it, and can be ended later."""
    info = mount.mount(tank, place, driver="fuse2fs")
    with open(place / "x", "w") as file:
        os.kill(info.pid, signal.SIGTERM)
        time.sleep(mount.SIGNAL_S + 1)
        assert control.connect(place).ping() == info.pid
        file.write("still here")
    assert (place / "x").read_text() == "still here"
    mount.umount(place)
    nothing_left(place, run_folder)


def test_fuse2fs_dies(tank, place, run_folder):
    mount.mount(tank, place, driver="fuse2fs")
    kept = sync_file(place / "x", b"content")
    volume = control.connect(place).info.volume
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(shutil.which("fuse2fs").encode() + b"\0") and volume.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    wait_for(lambda: any("fuse2fs has died" in note for note in control.connect(place).status().notes))
    with pytest.raises(OSError):
        os.listdir(place)
    mount.umount(place)
    nothing_left(place, run_folder)
    info = mount.mount(tank, place, driver="fuse2fs")
    assert any("mended" in note for note in info.notes)
    assert digest(place / "x") == kept
    mount.umount(place)


@each_driver
def test_killed_while_it_writes(tank, place, driver, run_folder):
    """What was synced before is there, nothing hangs, and the file system is whole again by its journal; or, without one, by e2fsck:
    where -p is not enough for that, the mount is refused, and the way out that the message names works.
    """
    info = mount.mount(tank, place, driver=driver)
    kept = sync_file(place / "kept", random.Random(1).randbytes(MIB))
    stop = threading.Event()

    def write(number):
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sync_file(place / f"file-{number}", random.Random(number).randbytes(MIB // 2))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    kill_owner(info.pid)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    try:
        mount.mount(tank, place, driver=driver)
    except errors.RefusedError as error:
        assert driver == "fuse2fs"
        assert "--fs none" in str(error)
        info = mount.mount(tank, place, fs="none")
        assert subprocess.run([system.tool("e2fsck", ""), "-f", "-y", info.volume], check=False, capture_output=True).returncode == 1
        mount.umount(place)
        mount.mount(tank, place, driver=driver)
    assert digest(place / "kept") == kept
    assert control.connect(place).wait(60)  # the resync
    mount.umount(place)
    nothing_left(place, run_folder)
    fsck(tank, place)


@needs_root
@each_driver
def test_a_plain_umount_ends_the_owner(tank, place, driver, run_folder):
    mount.mount(tank, place, driver=driver)
    (place / "x").write_text("hello")
    subprocess.run(["umount", place], check=True)
    wait_for(lambda: not runtime.found(alive=True))
    nothing_left(place, run_folder)
    with raidlib.open(tank, "r") as array:
        assert array.status().resync_offset is None


def test_in_the_foreground(tank, place, run_folder):
    seen = []

    def ready(info):
        seen.append((info, (place / "lost+found").is_dir()))
        threading.Thread(target=mount.umount, args=(place,)).start()

    info = mount.mount(tank, place, driver="fuse2fs", foreground=True, on_ready=ready)
    assert seen == [(info, True)]
    assert info.pid == os.getpid()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    nothing_left(place, run_folder)


# --- A dead owner -----------------------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_owner_loses_nothing_that_was_flushed(tank, place, driver, busy, run_folder):
    info = mount.mount(tank, place, driver=driver)
    files = {place / f"file-{number}": sync_file(place / f"file-{number}", random.Random(number).randbytes(MIB)) for number in range(5)}
    held = os.open(place / "open", os.O_WRONLY | os.O_CREAT) if busy else -1
    kill_owner(info.pid)
    assert control.connect(place) is None
    again = mount.mount(tank, place, driver=driver)
    assert again.pid != info.pid
    assert any("dead" in note for note in again.notes)
    assert {path: digest(path) for path in files} == files
    if busy:
        with contextlib.suppress(OSError):
            os.close(held)
    assert [entry.place for entry in system.mounts()].count(str(place)) == 1
    mount.umount(place)
    wait_for(lambda: not busy or not system.loops(info.volume))
    nothing_left(place, run_folder)
    fsck(tank, place)


@each_driver
def test_umount_cleans_up_after_a_dead_owner(tank, place, driver, run_folder):
    info = mount.mount(tank, place, driver=driver)
    kept = sync_file(place / "x", b"content")
    kill_owner(info.pid)
    mount.umount(place)
    nothing_left(place, run_folder)
    mount.mount(tank, place, driver=driver)
    assert digest(place / "x") == kept
    mount.umount(place)


def test_a_killed_volume(tmp_path, place, run_folder):
    tank = make(tmp_path / "tank", mkfs=False)
    info = mount.mount(tank, place, fs="none")
    with open(info.volume, "r+b", buffering=0) as file:
        file.write(b"flushed" * 1000)
        os.fsync(file.fileno())
        kill_owner(info.pid)
        with pytest.raises(OSError):
            os.listdir(place)
        info = mount.mount(tank, place, fs="none")
        with open(info.volume, "rb") as again:
            assert again.read(7000) == b"flushed" * 1000
    mount.umount(place)
    nothing_left(place, run_folder)


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_second_owner(tank, place, tmp_path):
    info = mount.mount(tank, place, driver="fuse2fs")
    other = tmp_path / "other"
    other.mkdir()
    for target in (tank, [tank / f"member-{number}.img" for number in range(6)]):
        with pytest.raises(errors.BusyError) as caught:
            mount.mount(target, other)
        assert str(info.pid) in str(caught.value)
        assert str(place) in str(caught.value)
    with pytest.raises(errors.BusyError):
        raidlib.open(tank)
    mount.umount(place)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda place: place.rmdir(), errors.UsageError, "does not exist"),
        (lambda place: place.rmdir() or place.write_text(""), errors.UsageError, "not a directory"),
        (lambda place: (place / "x").touch(), errors.UsageError, "not empty"),
        pytest.param(
            lambda place: subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True),
            errors.BusyError,
            "mount point already",
            marks=needs_root,
        ),
    ],
)
def test_bad_mount_points(tank, place, run_folder, spoil, kind, words):
    spoil(place)
    with pytest.raises(kind, match=words) as caught:
        mount.mount(tank, place)
    assert type(caught.value) is kind
    assert str(place) in str(caught.value)
    assert os.listdir(run_folder) == []


def test_members_below_the_mount_point(tank, run_folder):
    for place in (tank, tank.parent):
        with pytest.raises(errors.RefusedError, match="below the mount point") as caught:
            mount.mount(tank, place)
        assert caught.value.members
    assert os.listdir(run_folder) == []


def test_nothing_to_mount(tmp_path, place, run_folder):
    tank = make(tmp_path / "tank", mkfs=False)
    with pytest.raises(errors.UsageError, match="no file system"):
        mount.mount(tank, place)
    with pytest.raises(errors.RaidError):
        mount.mount(tank, place, fs="ext4")
    with pytest.raises(errors.UsageError, match="driver"):
        mount.mount(tank, place, driver="warp")
    with pytest.raises(errors.RaidError):
        mount.mount(place, place)
    with pytest.raises(errors.UsageError, match="no mount of raidlib"):
        mount.umount(place)
    nothing_left(place, run_folder)


def test_too_many_members_lost(tank, place, run_folder):
    for number in range(3):
        (tank / f"member-{number}.img").unlink()
    with pytest.raises(errors.NotEnoughMembersError):
        mount.mount(tank, place)
    nothing_left(place, run_folder)


def test_a_file_system_that_e2fsck_cannot_mend(tank, place, run_folder):
    with raidlib.open(tank) as array:
        state = array.pread(1024, 1024)
        array.pwrite(state[:58] + b"\x02\x00" + state[60:], 1024)  # has errors
        for block in range(1, 40):
            array.pwrite(random.Random(block).randbytes(1024), block * 1024 + 1024)
        array.pwrite(state[:58] + b"\x02\x00" + state[60:], 1024)
    with pytest.raises(errors.RefusedError, match="e2fsck -p") as caught:
        mount.mount(tank, place, fs="ext4")
    assert caught.value.exit_code == 3
    nothing_left(place, run_folder)


def test_fuse2fs_stands_in_for_the_kernel(tank, place, monkeypatch):
    def no_loop(_session):
        raise errors.MissingFacilityError("no loop device can be had")

    seen = []
    monkeypatch.setattr(mount._Session, "_mount_by_kernel", no_loop)

    def ready(info):
        seen.append(info)
        threading.Thread(target=mount.umount, args=(place,)).start()

    info = mount.mount(tank, place, foreground=True, on_ready=ready)
    assert info.driver == "fuse2fs"
    assert os.geteuid() != 0 or any("stands in" in note and "no loop device" in note for note in info.notes)


def test_a_relative_run_time_folder(tank, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", "here")
    mount.mount("tank", "mnt", driver="fuse2fs")
    assert control.connect("mnt").status().mountpoint == str(place)
    assert len(os.listdir(tmp_path / "here")) == 1
    mount.umount("mnt")


def test_built_without_fuse(tank, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "raidlib._fuse", None)
    with pytest.raises(errors.MissingFacilityError, match="libfuse3") as caught:
        mount.mount(tank, place, foreground=True)
    assert caught.value.exit_code == 69


@needs_root
def test_a_missing_program_is_named(tank, place, tmp_path, monkeypatch):
    monkeypatch.setattr(system.shutil, "which", lambda name, path=None: None)
    with pytest.raises(errors.MissingFacilityError, match=r"fuse2fs|e2fsprogs|losetup"):
        mount.mount(tank, place, foreground=True)


# --- An ordinary user -------------------------------------------------------------------------------------------------

AS_USER = """
    import os, signal, sys, time
    from pathlib import Path
    import raidlib
    from raidlib import control, mount, runtime
    tank, place = sys.argv[1:]
    info = mount.mount(tank, place)
    assert (info.driver, info.fs) == ("fuse2fs", "ext4"), info
    Path(place, "x").write_text("hello")
    assert control.connect(place).status().owner_pid == info.pid
    mount.umount(place)
    info = mount.mount(tank, place)
    assert Path(place, "x").read_text() == "hello"
    with open(Path(place, "y"), "w") as file:
        file.write("flushed")
        file.flush()
        os.fsync(file.fileno())
    os.kill(info.pid, signal.SIGKILL)
    while runtime.found(alive=True):
        time.sleep(0.05)
    info = mount.mount(tank, place)
    assert Path(place, "x").read_text() == "hello"
    assert Path(place, "y").read_text() == "flushed"
    try:
        with open(Path(place, "x")):
            mount.umount(place)
        raise SystemExit("unmounted under an open file")
    except raidlib.errors.BusyError:
        pass
    mount.umount(place)
    assert not os.path.ismount(place)
    print("done", runtime.runtime_roots()[0])
"""


def as_nobody(environment: dict) -> list[str]:
    """The beginning of a command that runs Python with this raidlib as an ordinary user."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    for interpreter in (sys.executable, "/usr/bin/python3"):
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", interpreter, "-c"]
        program = "import subprocess, sys, raidlib; subprocess.run([sys.executable, '-c', 'import raidlib'], check=True)"
        if subprocess.run([*command, program], cwd=ROOT, env=environment, check=False, capture_output=True).returncode == 0:
            return command
    pytest.skip("needs root, and an interpreter and a source tree that others may read")


@needs_root
def test_an_ordinary_user():
    """No root, no loop device: fuse2fs, with the run-time folder in the user's own."""
    with tempfile.TemporaryDirectory(prefix="raidlib-user-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = {key: text for key, text in os.environ.items() if key not in ("RAIDLIB_RUNTIME_DIR", "HOME")}
        environment |= {"XDG_RUNTIME_DIR": str(folder / "run"), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = as_nobody(environment)
        make(folder / "tank")
        (folder / "mnt").mkdir()
        (folder / "run").mkdir()
        for path in [*folder.rglob("*"), folder]:
            os.chown(path, NOBODY, NOBODY)
        command += [textwrap.dedent(AS_USER), str(folder / "tank"), str(folder / "mnt")]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
        while any(entry.place == str(folder / "mnt") for entry in system.mounts()):
            system.take_down(str(folder / "mnt"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["done", str(folder / "run" / "raidlib")]


def test_the_owner_is_alone(tank, place):
    """Nothing of its parent is held: no descriptor, no terminal, no directory."""
    info = mount.mount(tank, place, fs="none")
    folder = Path(f"/proc/{info.pid}")
    assert os.readlink(folder / "cwd") == "/"
    assert {os.readlink(folder / "fd" / str(fd)) for fd in range(3)} == {os.devnull}
    kinds = [os.readlink(path) for path in (folder / "fd").iterdir()]
    assert not any(str(ROOT) in name for name in kinds)
    assert os.getsid(info.pid) != os.getsid(0)
    folder, owner = runtime.found(alive=True)[0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "control.sock").stat().st_mode) == 0o600
    assert "mounted at" in (folder / "owner.log").read_text()
    assert owner.mountpoint == str(place)
    mount.umount(place)
