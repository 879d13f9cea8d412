"""The run-time folder of a live array, named after its UUID: who owns it, and how the owner is found.

  lock          an open-file-description lock: who has it is the owner, and it goes with the process, however that ends
  info.json     `Info`: to find the owner by mount point, member, folder of members or name
  control.sock  control.py's
The folder is 0700 and the user's own, else it is refused. It is opened once, and everything in it is reached through that descriptor,
so that neither a long path (a socket's name has 107 bytes) nor a folder that is swapped meanwhile matters. The next owner cleans up
after a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from .errors import AccessError, BusyError, UsageError
from .holders import Process, let_go_in_children, lock_holders
from .model import SCHEMA, Struct

LOCK, INFO, SOCKET = "lock", "info.json", "control.sock"
INFO_BYTES_MAX = 1 << 20
UUID = re.compile(r"[0-9a-f]{8}(?:[:-][0-9a-f]{8}){3}")


class Info(Struct, frozen=True, kw_only=True):
    """What the owner of a live array says about itself."""

    schema: int = SCHEMA
    pid: int
    uuid: str
    outer: str = ""  # the UUID of the array that this one is a member of, in the same process
    name: str = ""
    members: list[str] = []
    real_members: list[str] = []  # the same, resolved when they were opened: later their file system may not answer
    mountpoint: str | None = None
    volume: str | None = None
    fs: str = "none"
    driver: str = "none"
    started: float = 0.0


def runtime_roots() -> list[Path]:
    """Where run-time folders may lie; a new one goes to the first that can be made. $RAIDLIB_RUNTIME_DIR stands for all of them.

    A session and a cron job of one user see different variables, so all of the places are searched.
    """
    forced = os.environ.get("RAIDLIB_RUNTIME_DIR")
    if forced:
        return [Path(forced).absolute()]
    uid = os.geteuid()
    if uid == 0:
        return [Path("/run/raidlib"), Path("/tmp/raidlib-0")]
    roots = []
    for base in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"):
        path = Path(base) / "raidlib" if base else None
        if path is not None and path not in roots and path.parent.is_dir() and path.parent.stat().st_uid == uid:
            roots.append(path)
    return [*roots, Path(f"/tmp/raidlib-{uid}")]


def open_folder(path: Path) -> int:
    """A descriptor of a folder that is the user's own and nobody else's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise AccessError(f"{path} is a symbolic link or a file, not a folder: someone may be playing tricks; remove it") from None
        raise
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        raise AccessError(
            f"{path} belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}; it must be yours alone (0700)"
        )
    return fd


def _make_folder(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open_folder(path)
    except FileExistsError:
        return open_folder(path)  # says what is wrong with it


def _lock_request(kind: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def lock_file(fd: int) -> bool:
    """Takes the open-file-description lock on a whole file; False if someone else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock_request(fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(folder: int) -> bool:
    """Whether somebody holds the lock in a folder. Asks without taking it, so that nobody's attempt is disturbed."""
    try:
        fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock_request(fcntl.F_WRLCK))
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _read(folder: int, name: str) -> bytes:
    """A small file of a folder; empty if it is not there."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read(INFO_BYTES_MAX)


def _read_info(folder: int) -> Info | None:
    try:
        return msgspec.json.decode(_read(folder, INFO), type=Info)
    except msgspec.MsgspecError:
        return None


def _owner(folder: int, uuid: str) -> Info | None:
    """What the owner of a folder has said about itself, with the pid of who holds the lock: that may be a forked child of a dead one."""
    info, text = _read_info(folder), _read(folder, LOCK)
    if info is None and text.isdigit():
        info = Info(pid=int(text), uuid=uuid)  # it is still opening the array
    if info is None:
        return None
    try:
        file = os.stat(LOCK, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return info
    holders = lock_holders(file, likely=info.pid)
    return msgspec.structs.replace(info, pid=holders[0].pid) if holders else info


def folder_name(uuid: str) -> str:
    """The name of an array's run-time folder."""
    if not UUID.fullmatch(uuid):
        raise UsageError(f"{uuid!r} is not the UUID of an array; it has four groups of eight hex digits")
    return uuid.replace(":", "-")


def _folders() -> Iterator[tuple[Path, int]]:
    """Every run-time folder of this user, with a descriptor for the time of the step."""
    for root in runtime_roots():
        try:
            names = sorted(name for name in os.listdir(root) if UUID.fullmatch(name))
        except OSError:
            continue
        for name in names:
            try:
                fd = open_folder(root / name)
            except (OSError, AccessError):
                continue
            try:
                yield root / name, fd
            finally:
                os.close(fd)


def found(*, alive: bool) -> list[tuple[Path, Info]]:
    """The arrays that have an owner; or those that a dead owner has left behind. By the order of their start."""
    result = []
    for path, fd in _folders():
        info = _read_info(fd)
        if info is not None and is_locked(fd) == alive:
            result.append((path, (_owner(fd, info.uuid) or info) if alive else info))
    return sorted(result, key=lambda item: item[1].started)


def busy_error(uuid: str, info: Info | None) -> BusyError:
    """Says who has the array, and the way out."""
    text = f"array {(info.name if info else '') or uuid} is in use by {Process.of(info.pid) if info else 'an unknown process'}"
    if info is not None and info.mountpoint:
        text += f", mounted at {info.mountpoint}; use it there, or unmount it first: raidlib umount {info.mountpoint}"
    else:
        text += "; wait for it, or stop it"
    return BusyError(text, members=info.members if info else ())


class Claim:
    """The right to be an array's owner on this host, and its run-time folder. Made by `claim()`."""

    def __init__(self, uuid: str, path: Path, folder: int, lock: int) -> None:
        self.uuid, self.path, self.folder, self._lock, self._pid = uuid, path, folder, lock, os.getpid()
        self.previous = _read_info(folder)  # of an owner that died, or None
        let_go_in_children(self)

    def publish(self, info: Info) -> None:
        """Makes the owner known, or its news."""
        fd = os.open(INFO + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.folder)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(info))
        os.rename(INFO + ".new", INFO, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def release(self) -> None:
        """Gives the right back, and removes the folder; but not while something that is to be cleaned is mounted below."""
        if self._pid != os.getpid():
            self.let_go_in_child()
        if self._lock < 0:
            return
        names = sorted(set(os.listdir(self.folder)) - {LOCK}, key=lambda name: not (self.path / name).is_dir())
        for name in names:
            remove_entry(name, self.folder)
            if (self.path / name).is_dir():
                break
        try:
            if os.listdir(self.folder) == [LOCK]:
                os.unlink(LOCK, dir_fd=self.folder)
                os.rmdir(self.path)
        except OSError:
            pass  # someone came in between: it is theirs now
        self.let_go_in_child()

    def let_go_in_child(self) -> None:
        """In a forked child the right stays its parent's: nothing is removed, only its descriptors go."""
        if self._lock >= 0:
            os.close(self._lock)
            os.close(self.folder)
            self._lock = self.folder = -1

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def remove_entry(name: str, folder: int) -> None:
    """Removes a file or an empty directory of a folder; what does not go stays."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError:
            pass
    except OSError:
        pass


def _try_claim(uuid: str, path: Path) -> Claim | None:
    """None: the folder went away in between."""
    try:
        folder = _make_folder(path)
    except FileNotFoundError:
        return None
    lock = -1
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        if not lock_file(lock):
            raise busy_error(uuid, _owner(folder, uuid))
        if os.path.samestat(os.fstat(lock), os.stat(path / LOCK, follow_symlinks=False)):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            return Claim(uuid, path, folder, lock)
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(folder)
        if lock >= 0:
            os.close(lock)
        raise
    os.close(folder)
    if lock >= 0:
        os.close(lock)
    return None


def _usable(roots: list[Path]) -> Path:
    for root in roots:
        try:
            os.close(_make_folder(root))
            return root
        except OSError as error:
            problem = f"{root}: {error.strerror}"
    raise AccessError(f"no folder for what belongs to running arrays can be made ({problem}): set RAIDLIB_RUNTIME_DIR to one of your own")


def claim(uuid: str) -> Claim:
    """Makes this process the array's owner. BusyError with the owner's pid and mount point if there is one."""
    name = folder_name(uuid)
    roots = runtime_roots()
    for path, fd in _folders():
        if path.name == name and is_locked(fd):
            raise busy_error(uuid, _owner(fd, uuid))
    root = _usable(roots)
    for _ in range(100):
        result = _try_claim(uuid, root / name)
        if result is not None:
            return result
    raise BusyError(f"{root / name} comes and goes: array {uuid} is being stopped; try again")


def outermost(item: tuple[Path, Info], known: Sequence[tuple[Path, Info]]) -> tuple[Path, Info]:
    """The array, of those that are known, that has this one as a member, or as a member of a member; else itself."""
    for _ in known:
        item = next((other for other in known if other[1].uuid == item[1].outer), item)
    return item


def meant(target: str, known: Sequence[tuple[Path, Info]]) -> list[tuple[Path, Info]]:
    """The arrays that a mount point, a folder of members, a volume or a member may mean; rather those of which it is all than those of
    which it is a member; and one array of arrays rather than these.
    """
    hits = [item for item in known if _is_all_of(item[1], target)] or [item for item in known if matches(item[1], target)]
    return together(hits, known)


def together(hits: Sequence[tuple[Path, Info]], known: Sequence[tuple[Path, Info]]) -> list[tuple[Path, Info]]:
    """One array of arrays rather than the several that are its members."""
    if len(hits) < 2:
        return list(hits)
    return list({whole[1].uuid: whole for whole in (outermost(item, known) for item in hits)}.values())


def _is_all_of(info: Info, target: str) -> bool:
    places = {os.path.abspath(target), real_path(target)}
    if info.mountpoint in places or info.volume in places:
        return True
    members = list(zip(info.members, info.real_members, strict=False))
    return bool(members) and all(places & {os.path.dirname(name) for name in names} for names in members)


def matches(info: Info, target: str) -> bool:
    """Whether a mount point, a member, a folder of members or a volume is meant; nothing is looked up on the mount itself."""
    places = {os.path.abspath(target), real_path(target)}
    return _is_all_of(info, target) or bool(places & {*info.members, *info.real_members})


def real_path(path: str | os.PathLike[str]) -> str:
    """realpath(), but the last part is not followed where it cannot be looked at (a mount whose server is dead)."""
    head, tail = os.path.split(os.path.abspath(path))
    try:
        return os.path.realpath(path, strict=True)
    except OSError:
        return os.path.join(os.path.realpath(head), tail)
