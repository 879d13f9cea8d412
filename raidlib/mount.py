"""A mounted array: a process of its own (the owner) that holds the array, shows it as `volume` through FUSE, and a file system on top.

    members ── array ── FUSE: <run-time folder>/fuse/volume ── loop device ── the kernel's ext4, xfs …   at the mount point
                                                            └─ fuse2fs                                    without root or loop devices
               with fs="none" the mount point itself shows `volume`

The owner's main thread waits for signals, for requests of the control socket and for changes of the mount table, and is the only one
that takes anything down: file system, loop device, FUSE, array, in this order; each step is done once, so that what was busy can be tried
again.
What a killed owner leaves behind is found by the array's UUID (the source of the FUSE mount) and by the name of its volume.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from . import control, nesting, protocol, runtime, system
from . import opening as _opening
from .errors import AccessError, ArrayIOError, BusyError, MissingFacilityError, RaidError, RefusedError, UsageError, from_errno
from .model import SCHEMA, Struct

EXT = ("ext2", "ext3", "ext4")
DRIVERS = ("auto", "kernel", "fuse2fs")
FUSE_TYPE = "fuse.raidlib"
READ_ONLY, ALLOW_OTHER = 1, 2  # RL_FUSE_*
RETRY_S = 2
SIGNAL_S = 5.0  # how long files may stay open after SIGTERM before the mount is kept
FUSE2FS_S = 120.0  # to read or write its bitmaps
NO_FUSE = "this raidlib was built without libfuse3, so it cannot mount: apt-get install libfuse3-dev fuse3, and reinstall it"
NO_JOURNAL = "fuse2fs writes no journal: after an unclean stop the next mount runs `e2fsck -p`, and what was not synced may be lost"


class MountInfo(Struct, frozen=True, kw_only=True):
    """A mount that stands."""

    schema: int = SCHEMA
    pid: int
    mountpoint: str
    volume: str
    fs: str
    driver: str  # "kernel", "fuse2fs", "none"
    notes: list[str] = []


class _Options(Struct, frozen=True, kw_only=True):
    """What mount() was asked for, on its way to the owner."""

    members: list[Any]
    mountpoint: str
    fs: str
    driver: str
    read_only: bool
    run: bool
    force: bool
    allow_other: bool
    deadline: float | None


class _Ready(Struct, frozen=True, kw_only=True):
    """What the owner tells who started it."""

    info: MountInfo | None = None
    error: protocol.Failure | None = None


# --- What a dead owner has left -------------------------------------------------------------------------------------


def _source(uuid: str) -> str:
    """What the mount table shows as the source of an array's FUSE mount."""
    return f"raidlib:{uuid}"


def _clean(uuid: str, folder: Path, previous: runtime.Info | None) -> list[str]:
    """Takes down what a dead owner has left: file system, loop device, FUSE. In words what it did. All is dead: nothing can be lost."""
    volumes = {str(folder / "fuse" / "volume"), *([previous.volume] if previous is not None and previous.volume else [])}
    loops = {device: path for volume in volumes for device, path in system.loops(volume).items()}
    notes = []
    for mount in reversed(system.mounts()):
        ours = mount.kind == FUSE_TYPE and mount.source == _source(uuid)
        if not ours and (mount.device in loops or mount.source in volumes):
            system.take_down(mount.place)
            notes.append(f"the {mount.kind} that a dead owner had left mounted at {mount.place} was unmounted")
    for path in loops.values():
        for volume in volumes:
            system.detach(path, volume)
    for mount in reversed(system.mounts()):
        if mount.kind == FUSE_TYPE and mount.source == _source(uuid):
            system.take_down(mount.place)
            notes.append(f"the dead FUSE mount at {mount.place} was unmounted")
    return notes


# --- What is refused --------------------------------------------------------------------------------------------------


def _check_members(members: Sequence[Any], mountpoint: str) -> None:
    for member in members:
        if isinstance(member, str) and os.path.realpath(member).startswith(mountpoint.rstrip("/") + "/"):
            text = f"{member} lies below the mount point {mountpoint}, which would hide it; use another mount point"
            raise RefusedError(text, members=[member])


def _check_mountpoint(place: str) -> None:
    """An empty directory that nothing is mounted on."""
    if any(mount.place == place for mount in system.mounts()):
        raise BusyError(f"{place} is a mount point already; unmount what is there first, or use another directory")
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        raise UsageError(f"the mount point {place} does not exist: mkdir {place}", errno=errno.ENOENT) from None
    except NotADirectoryError:
        raise UsageError(f"the mount point {place} is not a directory", errno=errno.ENOTDIR) from None
    except PermissionError:
        raise AccessError(f"the mount point {place} is not yours to look into") from None
    if names:
        raise UsageError(f"the mount point {place} is not empty ({names[0]} …): its content would be hidden", errno=errno.ENOTEMPTY)


def _detect(array: Any) -> str:
    """The type of the file system on an array, by its magic."""
    if outer := nesting.content_uuid(array):
        text = f"array {array.name or array.uuid} is a member of another one ({outer}): mount that, by the folder that all lie in"
        raise RefusedError(f"{text}; --fs none shows the content of this one all the same")
    if array.size >= 4096 and array.pread(2, 1080) == b"\x53\xef":
        return "ext4"
    if array.pread(4, 0) == b"XFSB":
        return "xfs"
    if array.size >= 66000 and array.pread(8, 65600) == b"_BHRfS_M":
        return "btrfs"
    text = (
        "the array holds no file system that is known here: make one (`raidlib create … --mkfs ext4`, or `--fs none` and mkfs on `volume`)"
    )
    raise UsageError(text + ", or give its type with --fs")


def _ext_state(array: Any) -> int:
    """s_state of an ext file system: 1 unmounted cleanly, 2 has errors."""
    return int.from_bytes(array.pread(2, 1024 + 58), "little")


# --- The owner --------------------------------------------------------------------------------------------------------


class _Door:
    """The C FUSE server on an array, in a thread of its own."""

    def __init__(self, array: Any, place: str, source: str, flags: int, on_end: Callable[[], None]) -> None:
        try:
            from ._fuse import ffi, lib
        except ImportError:
            raise MissingFacilityError(NO_FUSE) from None
        if not os.path.exists("/dev/fuse"):
            raise MissingFacilityError("/dev/fuse is missing: modprobe fuse (a container needs --device /dev/fuse)")
        self._lib, self.place, self._on_end = lib, place, on_end
        handle, ops = array.block_ops()
        out = ffi.new("rl_fuse **")
        code = lib.rl_fuse_new(
            ffi.cast("void *", handle), ffi.cast("void *", ops), os.fsencode(place), source.encode(), flags, out
        )  # fmt: skip
        if code < 0:
            text = ffi.string(lib.rl_fuse_error()).decode(errors="replace") or os.strerror(-code)
            kind = MissingFacilityError if -code in (errno.ENOENT, errno.ENODEV, errno.ENOSYS) else None
            message = f"cannot mount on {place}: {text}"
            raise kind(message) if kind is not None else from_errno(-code, message)
        self._fuse, self.result = out[0], 0
        self._thread = threading.Thread(target=self._serve, name="raidlib fuse", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self.result = self._lib.rl_fuse_run(self._fuse)
        self._on_end()

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def notes(self) -> list[str]:
        """What the server could not protect itself from."""
        system.eventually(lambda: self._lib.rl_fuse_protection(self._fuse) != -errno.EAGAIN, 2.0)
        have = max(0, self._lib.rl_fuse_protection(self._fuse))
        notes = []
        if not have & self._lib.RL_FUSE_IO_FLUSHER:
            notes.append("the server could not mark itself as an I/O flusher (CAP_SYS_RESOURCE): under memory pressure the mount may stall")
        if not have & self._lib.RL_FUSE_MEMORY_LOCKED:
            notes.append("the server could not lock its memory (CAP_IPC_LOCK or ulimit -l unlimited): swapping may slow the mount down")
        return notes

    def close(self, *, patience_s: float = 0.0, force: bool = False) -> None:
        """Unmounts; BusyError while `volume` is open, unless forced. When it returns, no request uses the array any more."""
        if self.running and not force:
            until = time.monotonic() + patience_s
            while True:
                try:
                    system.unmount(self.place)
                    break
                except BusyError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
        elif self.running:
            self._lib.rl_fuse_stop(self._fuse)
        self._thread.join()
        self._lib.rl_fuse_free(self._fuse)


class _Session:
    """An array, mounted: brought up by start(), taken down by stop()."""

    def __init__(self, options: _Options, held: runtime.Claim, log: logging.Logger) -> None:
        self.options, self.held, self.log = options, held, log
        self.mountpoint = options.mountpoint
        self.fs, self.driver = options.fs, "none"
        self.notes: list[str] = []
        self.array: Any = None
        self.over = False  # the array is closed
        self._door: _Door | None = None
        self._owner: control.Owner | None = None
        self._mounted = False  # the file system
        self._loop: str | None = None
        self._fuse2fs: subprocess.Popen[bytes] | None = None
        self._requests: queue.SimpleQueue[concurrent.futures.Future[None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signalled = False
        self._halfway = False  # the file system is gone, but something below it is still in use

    @property
    def volume(self) -> str:
        """The array as a file."""
        return os.path.join(self.mountpoint if self.options.fs == "none" else str(self.held.path / "fuse"), "volume")

    # -- up

    def start(self) -> MountInfo:
        """Brings it up, or nothing."""
        options = self.options
        self.notes += _clean(self.held.uuid, self.held.path, self.held.previous)
        _check_members(_opening.resolve(options.members), self.mountpoint)
        _check_mountpoint(self.mountpoint)
        # from here on, whoever comes after this process, should it die, knows what to look for
        info = runtime.Info(pid=os.getpid(), uuid=self.held.uuid, mountpoint=self.mountpoint, volume=self.volume, started=time.time())
        self.held.publish(info)
        mode = "r" if options.read_only else "rw"
        self.array = _opening.open(
            options.members, mode, run=options.run, force=options.force, direct=True, deadline=options.deadline, held=self.held
        )
        try:
            self._open_door()
            if options.fs != "none":
                self._mount_file_system()
            info = msgspec.structs.replace(info, name=self.array.name, fs=self.fs, driver=self.driver)
            self._owner = control.Owner(
                self.array, self.held, info=info, notes=self.notes, on_stop=self._ask_to_stop, on_event=self._note_event
            )
            self._owner.info = msgspec.structs.replace(info, **self.array.places())
            self._owner.start()
        except BaseException:
            self.abandon()
            raise
        for note in self.notes:
            self.log.info("%s", note)
        self.log.info("mounted at %s: %s by %s, volume %s", self.mountpoint, self.fs, self.driver, self.volume)
        notes = self._owner.status().notes
        return MountInfo(pid=os.getpid(), mountpoint=self.mountpoint, volume=self.volume, fs=self.fs, driver=self.driver, notes=notes)

    def _note_event(self, event: Any) -> None:
        self.log.warning("%s slot %s device %s: %s", event.kind, event.slot, event.device, event.text)

    def _open_door(self) -> None:
        place = os.path.dirname(self.volume)
        flags = (READ_ONLY if self.array.read_only else 0) | (ALLOW_OTHER if self.options.allow_other and self.options.fs == "none" else 0)
        if self.options.fs != "none":
            os.makedirs(place, mode=0o700, exist_ok=True)
        self._door = _Door(self.array, place, _source(self.held.uuid), flags, self._wake)
        self.notes += self._door.notes()

    def _mount_file_system(self) -> None:
        """By the kernel, or by fuse2fs where that is asked for or where the kernel cannot."""
        found = _detect(self.array) if self.options.fs in ("auto", *EXT) else self.options.fs
        self.fs = found if self.options.fs == "auto" else self.options.fs
        wanted = self.options.driver
        if wanted == "auto" and os.geteuid() != 0:
            wanted = "fuse2fs"
        if wanted == "fuse2fs" and found not in EXT:
            raise MissingFacilityError(
                f"{self.fs} without root or loop devices: only ext2, ext3 and ext4 can be mounted so; become root, or use --fs none"
            )
        if found in EXT and not self.array.read_only and (wanted == "fuse2fs" or _ext_state(self.array) != 1):
            self._check_file_system()
        if wanted != "fuse2fs":
            try:
                self._mount_by_kernel()
                return
            except MissingFacilityError as error:
                if wanted == "kernel" or found not in EXT:
                    raise
                self.notes.append(f"fuse2fs stands in for the kernel: {error}")
            if not self.array.read_only:
                self._check_file_system()
        self._mount_by_fuse2fs()

    def _check_file_system(self) -> None:
        code, text = system.run(system.tool("e2fsck", "e2fsprogs"), "-p", self.volume)
        self.log.info("e2fsck -p: %s (%d)", text, code)
        if code & ~3:
            way = "mount it with --fs none and run e2fsck on `volume` by hand, or with --read-only to save what is there"
            raise RefusedError(f"e2fsck -p cannot mend the file system by itself; {way}. It said: {text}")
        if code:
            self.notes.append(f"e2fsck -p has mended the file system: {text}")

    def _mount_by_kernel(self) -> None:
        losetup, mount = system.tool("losetup", "mount"), system.tool("mount", "mount")
        if not os.path.exists("/dev/loop-control"):
            raise MissingFacilityError("there are no loop devices (/dev/loop-control): modprobe loop (a container needs --privileged)")
        read_only = self.array.read_only
        arguments = ["--find", "--show", "--direct-io=on", *(["--read-only"] if read_only else []), self.volume]
        code, text = system.run(losetup, *arguments)
        device = text.rpartition("; ")[2]
        if code or not device.startswith("/dev/"):
            raise MissingFacilityError(f"no loop device can be had: {text}")
        self._loop = device
        if Path(f"/sys/block/{os.path.basename(device)}/loop/dio").read_text().strip() != "1":
            self.notes.append("the loop device does no direct I/O: what is written is cached twice")
        modes = ["ro", "ro,norecovery" if self.fs == "xfs" else "ro,noload"] if read_only else ["rw"]
        for mode in modes:
            code, text = system.run(mount, "-t", self.fs, "-o", mode, device, self.mountpoint)
            if code == 0:
                break
        if code:
            self._detach_loop()
            if re.search(r"unknown filesystem type|permission denied|must be superuser", text, re.IGNORECASE):
                raise MissingFacilityError(f"this kernel cannot mount {self.fs}: {text}")
            raise ArrayIOError(f"the {self.fs} on the array cannot be mounted: {text}")
        self._mounted, self.driver = True, "kernel"
        if mode not in ("ro", "rw"):
            self.notes.append(f"the journal of the {self.fs} was not replayed (read-only): the latest changes may be missing")
        system.run(losetup, "-d", device)  # in use: it goes when the file system is unmounted, by whomever

    def _mount_by_fuse2fs(self) -> None:
        options = ["ro" if self.array.read_only else "rw"]
        if self.options.allow_other:
            options.append("allow_other")
        elif os.geteuid() != 0:
            options.append("fakeroot")  # the mount is this user's alone, who may read and write `volume` anyway
        command = [system.tool("fuse2fs", "fuse2fs"), "-f", "-o", ",".join(options), self.volume, self.mountpoint]
        with open(self.held.path / "owner.log", "ab") as log:
            begin = log.tell()
            self._fuse2fs = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        process = self._fuse2fs
        system.eventually(lambda: process.poll() is not None or self._is_mounted(), FUSE2FS_S)
        if not self._is_mounted():
            process.kill()
            process.wait()
            with open(self.held.path / "owner.log", "rb") as log:
                log.seek(begin)
                text = "; ".join(log.read().decode(errors="replace").split("\n")).strip("; ")
            raise ArrayIOError(f"fuse2fs cannot mount the {self.fs} on the array: {text or 'it said nothing'}")
        self._mounted, self.driver = True, "fuse2fs"
        if not self.array.read_only:
            self.notes.append(NO_JOURNAL)

    def _is_mounted(self) -> bool:
        """Whether what belongs at the mount point is there."""
        devices = {self.volume, self._loop, _source(self.held.uuid)}
        return any(mount.place == self.mountpoint and mount.source in devices for mount in system.mounts())

    # -- until

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _ask_to_stop(self) -> None:
        """From a thread of the control socket: the main thread does it, and its failure is raised here."""
        request: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._requests.put(request)
        self._wake()
        request.result()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a clean end. Only the main thread may have signals: elsewhere nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(_number: int, _frame: object) -> None:
            self._signalled = True

        old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        wake = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wake)
            for number, handler in old.items():
                signal.signal(number, handler)

    def run(self, ready: Callable[[], None]) -> None:
        """Waits until it is to end, and ends it."""
        fuse2fs = -1
        try:
            with contextlib.ExitStack() as opened, self._signals():
                table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, table)
                ready()
                poll = select.poll()
                poll.register(self._wake_read, select.POLLIN)
                poll.register(table, select.POLLPRI)
                if self._fuse2fs is not None:
                    fuse2fs = os.pidfd_open(self._fuse2fs.pid)
                    opened.callback(os.close, fuse2fs)
                    poll.register(fuse2fs, select.POLLIN)
                while not self.over:
                    ready_now = poll.poll(RETRY_S * 1000 if self._halfway else None)
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    if fuse2fs in (fd for fd, _ in ready_now):
                        poll.unregister(fuse2fs)
                        self._note_death()
                    self._look_around()
        finally:
            self._finish()

    def _note_death(self) -> None:
        """Of fuse2fs. If that was not an unmount, what is mounted stays, dead, so that nobody writes to the directory below by mistake."""
        if self._is_mounted() and self._owner is not None:
            note = (
                f"fuse2fs has died: the files at {self.mountpoint} cannot be reached; raidlib umount {self.mountpoint}, and mount it again"
            )
            self.log.error("%s", note)
            self._owner.notes.append(note)

    def _look_around(self) -> None:
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                break
            self.log.info("asked to stop")
            try:
                self.stop()
                request.set_result(None)
            except RaidError as error:
                self.log.warning("stop: %s", error)
                request.set_exception(error)
            except BaseException as error:
                request.set_exception(error)
                raise
            if self.over:
                return
        if self._signalled or not self._is_mounted():
            self.log.info("%s: stopping", "a signal came" if self._signalled else f"{self.mountpoint} was unmounted")
            self._stop_in_time()

    def _stop_in_time(self) -> None:
        """For who cannot be told that it is busy: tries for a while, then the mount stays."""
        until = time.monotonic() + SIGNAL_S
        while not self.over:
            try:
                self.stop()
            except BusyError as error:
                if time.monotonic() > until:
                    self.log.warning("the mount stays: %s", error)
                    break
                time.sleep(0.2)
            except RaidError as error:
                self.log.error("stop: %s", error)
                break
        self._signalled = False
        self._halfway = not self.over and not self._is_mounted()

    # -- down

    def stop(self) -> None:
        """Takes it down cleanly. BusyError: something is in use, and what is still there stays; can be tried again."""
        if self._mounted:
            if self._is_mounted():
                system.unmount(self.mountpoint)
            self._mounted = False
        if self._fuse2fs is not None:
            try:
                code = self._fuse2fs.wait(FUSE2FS_S)
            except subprocess.TimeoutExpired:
                raise BusyError(f"fuse2fs (process {self._fuse2fs.pid}) still writes; try again") from None
            self._fuse2fs = None
            if code:
                self.log.error("fuse2fs ended with %d", code)
        self._detach_loop()
        if self._door is not None:
            self._door.close(patience_s=0.0 if self.options.fs == "none" else system.SETTLE_S)
            self._door = None
        self._close_array()

    def _detach_loop(self) -> None:
        if self._loop is None:
            return
        system.detach(self._loop, self.volume)
        if not system.eventually(lambda: not system.loops(self.volume)):
            raise BusyError(
                f"{self._loop} is still in use: the file system is mounted elsewhere too (another mount namespace, a container)"
            )
        self._loop = None

    def _close_array(self) -> None:
        if self._owner is not None:
            self._owner.quiesce()
        self.over = True
        try:
            if self.array is not None:
                self.array.close()
                self.log.info("the array is closed")
        finally:
            self.array = None

    def abandon(self) -> None:
        """Takes down whatever is there, whatever is in use."""
        with contextlib.suppress(RaidError):
            if self._mounted or self._is_mounted():
                system.take_down(self.mountpoint)
        if self._fuse2fs is not None:
            try:
                self._fuse2fs.wait(system.SETTLE_S)
            except subprocess.TimeoutExpired:
                self._fuse2fs.kill()
                self._fuse2fs.wait()
        with contextlib.suppress(RaidError):
            self._detach_loop()
        if self._door is not None:
            self._door.close(force=True)
            self._door = None
        try:
            self._close_array()
        except RaidError as error:
            self.log.error("%s", error)

    def _finish(self) -> None:
        if not self.over:
            self.abandon()
        if self._owner is not None:
            self._owner.stop()
        os.close(self._wake_read)
        os.close(self._wake_write)


@contextlib.contextmanager
def _logger(folder: Path) -> Iterator[logging.Logger]:
    """Writes owner.log in the run-time folder."""
    os.close(os.open(folder / "owner.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    handler = logging.FileHandler(folder / "owner.log")
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(levelname)s %(message)s"))
    log = logging.Logger("raidlib.owner", logging.INFO)
    log.addHandler(handler)
    try:
        yield log
    finally:
        handler.close()


def _own(options: _Options, ready: Callable[[MountInfo], None]) -> MountInfo:
    """The owner's life: from the claim to its release."""
    with runtime.claim(_opening.plan(options.members).uuid) as held, _logger(held.path) as log:
        session = _Session(options, held, log)
        info = session.start()
        try:
            session.run(lambda: ready(info))
        except BaseException:
            log.exception("the owner ends")
            raise
    return info


def _child_main() -> None:
    """The owner process: detached, without a terminal, its answer on the descriptor that it was started with."""
    answer = os.fdopen(int(sys.argv[1]), "wb")
    os.set_inheritable(answer.fileno(), False)
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=_Options)
    if os.fork():
        os._exit(0)  # the caller has no child to wait for: init has
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)

    def tell(ready: _Ready) -> None:
        os.dup2(null, 2)
        answer.write(msgspec.json.encode(ready))
        answer.close()

    try:
        _own(options, lambda info: tell(_Ready(info=info)))
    except BaseException as error:
        if answer.closed:
            raise
        tell(_Ready(error=protocol.Failure.of(error)))
        sys.exit(1)


_CHILD = "import sys; sys.path.insert(0, sys.argv.pop(1)); from raidlib.mount import _child_main; del sys.path[0]; _child_main()"


def _spawn(options: _Options) -> MountInfo:
    """Starts the owner and waits until it is ready, or says why it is not."""
    read, write = os.pipe2(os.O_CLOEXEC)
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ)
    if environment.get("RAIDLIB_RUNTIME_DIR"):
        environment["RAIDLIB_RUNTIME_DIR"] = os.path.abspath(environment["RAIDLIB_RUNTIME_DIR"])  # the owner works in /
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True, "env": environment}
    command = [sys.executable, "-P", "-c", _CHILD, root, str(write), f"raidlib: mount of {options.mountpoint}"]
    with os.fdopen(read, "rb") as answer, tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(command, stderr=complaints, pass_fds=[write], **how)
        finally:
            os.close(write)
        process.communicate(msgspec.json.encode(options))
        text = answer.read()
        if not text:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RaidError(f"the owner process of the mount died: {last or 'it said nothing'}")
    ready = msgspec.json.decode(text, type=_Ready)
    if ready.info is None:
        assert ready.error is not None
        raise ready.error.exception()
    return ready.info


def _absolute(source: Any) -> Any:
    """The words for an array, as they are understood in any folder."""
    if isinstance(source, (str, os.PathLike)) and source != "missing":
        return os.path.abspath(source)
    return [_absolute(member) for member in source] if isinstance(source, (list, tuple)) else source


# --- What others use --------------------------------------------------------------------------------------------------


def mount(
    source: Any,
    mountpoint: str | os.PathLike[str],
    *,
    fs: str = "auto",
    driver: str = "auto",
    read_only: bool = False,
    run: bool = False,
    force: bool = False,
    allow_other: bool = False,
    deadline: float | None = None,
    foreground: bool = False,
    on_ready: Callable[[MountInfo], None] | None = None,
) -> MountInfo:
    """Mounts an array on an empty directory and returns when its files are there; a process of its own serves it from then on.

    fs: "auto" finds out, "none" shows only `volume`, else the type. driver: "kernel" or "fuse2fs" to insist on one. allow_other: other
    users may look, too. foreground: this process serves it, and the call returns when it is unmounted; `on_ready` is called when it stands.
    deadline: as in open().
    What cannot be mounted is an error here: of the mount point, the members, the owner that has the array, what the machine lacks.
    """
    if driver not in DRIVERS:
        raise UsageError(f"driver {driver!r} is not one of {', '.join(DRIVERS)}")
    live = control.search(source)
    if live is not None:
        raise runtime.busy_error(live[1].uuid, live[1])
    members = _absolute([source] if isinstance(source, (str, os.PathLike)) else source)
    if not foreground and not all(isinstance(member, (str, os.PathLike)) for member in _opening.resolve(members)):
        raise UsageError("members that are Python objects live in this process: mount them with foreground=True")
    place, asked = runtime.real_path(mountpoint), {"read_only": read_only, "run": run, "force": force, "allow_other": allow_other}
    options = _Options(members=members, mountpoint=place, fs=fs, driver=driver, deadline=deadline, **asked)
    if foreground:
        return _own(options, on_ready or (lambda _info: None))
    info = _spawn(options)
    if on_ready is not None:
        on_ready(info)
    return info


def umount(target: Any) -> None:
    """Unmounts an array, named by its mount point, its members or its name, and returns when it is closed and marked clean.

    BusyError while files are open. What a dead owner has left is cleaned up: the array is as after a power cut, with nothing flushed lost.
    """
    client = control.connect(target)
    if client is not None:
        client.stop()
        return
    left = control.search(target, alive=False)
    if left is None:
        raise UsageError(f"{target} is no mount of raidlib, nor an array that is in use")
    dead = runtime.found(alive=False)
    for item in dead:
        if runtime.outermost(item, dead)[1].uuid == left[1].uuid:  # itself, and the arrays that were its members
            with runtime.claim(item[1].uuid) as held:
                _clean(held.uuid, held.path, held.previous)
