"""From a path or an object to an open, locked member, and the superblock on it."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from . import bitmap
from .engine import DEADLINE_S, BlockDevice, MemberHandle, check, ffi, in_limbo, last_error, lib
from .errors import (
    AccessError,
    ArrayIOError,
    BusyError,
    DamagedMemberError,
    MemberError,
    NoSuperblockError,
    RaidError,
    UnsupportedError,
    UsageError,
)
from .holders import in_words, kernel_uses, let_go_in_children, lock_holders
from .model import MAX_SECTOR, SECTOR, BitmapHead, Level, MemberState, MemberStatus, State, Superblock, layout_name, parse_size

NESTING_MAX = 4  # levels of arrays of arrays; folders of folders
SEARCHED_MAX = 5000  # files in subdirectories


class EngineDevice:
    """A member of the engine's own, which a Python object holds: no Python runs between the array and it.

    It keeps its content from one opening of an array to the next, until close().
    """

    def __init__(self, handle: MemberHandle) -> None:
        self.handle = handle

    @property
    def size(self) -> int:
        """Bytes."""
        return self.handle.size

    def close(self) -> None:
        """Lets it go; BusyError while an array uses it. Again is harmless."""
        self.handle.close()


class MemoryDevice(EngineDevice):
    """A member in memory, sparse and zero-filled, for tests and for speed."""

    def __init__(self, size: str | int) -> None:
        super().__init__(MemberHandle.from_memory(parse_size(size)))

    def fork(self) -> MemoryDevice:
        """A second device with the content of this moment. They share memory until one of them writes; either may be closed first.

        It costs microseconds, also beside I/O: `trial = [device.fork() for device in devices]` is a state to try something on.
        """
        copy = MemoryDevice.__new__(MemoryDevice)
        EngineDevice.__init__(copy, self.handle.fork())
        return copy


@runtime_checkable
class OpenArray(Protocol):
    """An `Array`, as far as it can be a member of another one."""

    def as_member(self, *, read_only: bool, exclusive: bool) -> Member: ...  # noqa: D102 (Array says it)


MemberSource = str | os.PathLike[str] | BlockDevice | EngineDevice | OpenArray
Source = MemberSource | Sequence["Source | None"]
VERSIONS = {100: "1.0", 101: "1.1", 102: "1.2", 90: "0.90"}
VERSION_NUMBERS = {name: number for number, name in VERSIONS.items()}
_ROLES = {lib.RL_ROLE_SPARE: "spare", lib.RL_ROLE_FAULTY: "faulty", lib.RL_ROLE_JOURNAL: "journal"}
_FEATURES = {
    lib.RL_FEATURE_BITMAP: "write-intent bitmap",
    lib.RL_FEATURE_RECOVERY: "recovery under way",
    lib.RL_FEATURE_RESHAPE: "reshape under way",
    lib.RL_FEATURE_BAD_BLOCKS: "bad blocks",
    lib.RL_FEATURE_REPLACEMENT: "replacement",
    lib.RL_FEATURE_BACKWARDS: "backwards reshape",
    lib.RL_FEATURE_NEW_OFFSET: "new data offset",
    lib.RL_FEATURE_RECOVERY_BITMAP: "bitmap-guided recovery",
    lib.RL_FEATURE_CLUSTERED: "clustered bitmap",
    lib.RL_FEATURE_JOURNAL: "journal",
    lib.RL_FEATURE_PPL: "partial parity log",
    lib.RL_FEATURE_MULTIPLE_PPL: "partial parity log (several)",
    lib.RL_FEATURE_RAID0_LAYOUT: "raid0 layout",
}


class Member:
    """An open member: its handle, its name, its lock. Close it, or leave the `with` block."""

    def __init__(
        self,
        handle: MemberHandle,
        path: str,
        *,
        read_only: bool,
        deadline: float | None = None,
        fd: int | None = None,
        device: BlockDevice | EngineDevice | None = None,
        array: Any = None,
        owned: bool = False,
        exclusive: bool = False,
    ) -> None:
        self.handle, self.path, self.read_only, self.direct = handle, path, read_only, False
        self.real_path = path if fd is None else os.path.realpath(path)  # asked for now: later the file system may not answer
        self._fd, self._device = fd, device
        self.array, self.owned, self._exclusive = array, owned, exclusive  # an `Array`; ours to close; the other openers are kept out by us
        if array is not None and os.path.isdir(path):
            self.real_path = os.path.realpath(path)
        self.is_file = False  # regular
        identity: tuple[Any, ...] = ("object", id(device))
        if fd is not None:
            status = os.fstat(fd)
            self.is_file = stat.S_ISREG(status.st_mode)
            identity = ("file", status.st_dev, status.st_ino)
        if deadline is not None or handle.can_hang:
            handle.set_deadline(DEADLINE_S if deadline is None else deadline, identity, self._let_go)
        if not isinstance(device, MemoryDevice):
            let_go_in_children(self)

    @classmethod
    def open(
        cls, source: MemberSource, *, read_only: bool = False, direct: bool = False, lock: bool = True, deadline: float | None = None
    ) -> Member:
        """Opens a path or a BlockDevice. A path is locked against other openers (writers alone, readers together) by an OFD lock,
        a block device that is to be written by O_EXCL, which mounts and md of the kernel respect.

        deadline: seconds that a request to it may take, before it counts as dead; None: DEADLINE_S for what can be silent for ever.
        """
        if isinstance(source, (str, os.PathLike)):
            return cls._open_path(os.fspath(source), read_only, direct, lock, deadline)
        if isinstance(source, EngineDevice):
            return cls(source.handle, f"<{source.handle.name}>", read_only=read_only, deadline=deadline, device=source)
        if isinstance(source, OpenArray):
            return source.as_member(read_only=read_only, exclusive=lock)
        if not isinstance(source, BlockDevice):
            raise UsageError(f"a member is a path or an object with the methods of BlockDevice, not {type(source).__name__}")
        name = f"<{type(source).__name__}>"
        if in_limbo(("object", id(source))):
            raise BusyError(f"{name} missed its deadline, and its last request has not ended: it cannot be taken back yet", members=[name])
        return cls(MemberHandle.from_object(source, name), name, read_only=read_only, deadline=deadline, device=source)

    @classmethod
    def _open_path(cls, path: str, read_only: bool, direct: bool, lock: bool, deadline: float | None) -> Member:
        flags = os.O_RDONLY if read_only else os.O_RDWR
        fd = -1
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                raise UsageError(f"{path} is a directory, not a member", members=[path])
            if in_limbo(("file", found.st_dev, found.st_ino)):
                text = f"{path} missed its deadline, and its last request has not ended: it cannot be taken back yet"
                raise BusyError(text, members=[path])
            if stat.S_ISBLK(found.st_mode) and not read_only:
                flags |= os.O_EXCL
            fd = os.open(path, flags | os.O_CLOEXEC)
            if lock:
                _lock(fd, path, read_only)
            if direct:
                direct = _set_direct(fd)
            # the engine looks again at the path each second, wherever the process is by then
            handle = MemberHandle.from_fd(fd, os.path.abspath(path), read_only=read_only, direct=direct)
            member = cls(handle, path, fd=fd, read_only=read_only, deadline=deadline)
            member.direct = direct
            return member
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise _os_error(error, path) from None
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise

    @classmethod
    def adopt(cls, fd: int, path: str, *, direct: bool = False, deadline: float | None = None) -> Member:
        """A member on a descriptor that another process opened for writing and sent, with the name that it has there.

        The descriptor is the member's from now on.
        """
        try:
            _lock(fd, path, read_only=False)
            handle = MemberHandle.from_fd(fd, path, read_only=False, direct=direct and _set_direct(fd))
            member = cls(handle, path, fd=fd, read_only=False, deadline=deadline)
        except OSError as error:
            os.close(fd)
            raise _os_error(error, path) from None
        except BaseException:
            os.close(fd)
            raise
        member.direct = direct
        return member

    @property
    def size(self) -> int:
        """Bytes."""
        return self.handle.size

    def is_blank(self) -> bool:
        """True only if all of it is known to read as zeros without reading it: a file without data."""
        if not self.is_file or self._fd is None:
            return False
        try:
            return os.lseek(self._fd, 0, os.SEEK_DATA) < 0
        except OSError as error:
            return error.errno == errno.ENXIO

    def close(self) -> None:
        """Lets it go, and its lock; what hangs, once its last request has ended. An object is the caller's and stays open."""
        if not isinstance(self._device, EngineDevice):
            self.handle.close()
        if not self.handle.has_deadline:
            self._let_go()
        if self._exclusive:
            self.array.let_go()
            self._exclusive = False
        if self.owned and not self.array.closed:
            self._close_array()

    def _close_array(self) -> None:
        """An inner array. That it has failed was told as its failure as a member; it need not close well."""
        has_failed = self.array.state is State.FAILED
        try:
            self.array.close()
        except ArrayIOError:
            if not has_failed:
                raise

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def let_go_in_child(self) -> None:
        """In a forked child: what would keep the lock there when the parent has ended."""
        self.handle.let_go_in_child()
        self._let_go()

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _os_error(error: OSError, path: str) -> RaidError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessError(f"{path}: permission denied; become its owner, or use sudo", members=[path])
    if error.errno == errno.EBUSY:
        return _in_use(path, os.stat(path))
    if error.errno == errno.ENOENT:
        return UsageError(f"{path} does not exist", members=[path])
    if error.errno == errno.EROFS:
        return AccessError(f"{path} lies on a read-only file system; open the array read-only", members=[path])
    return MemberError(f"{path}: {error.strerror}", members=[path], errno=error.errno)


def _in_use(path: str, file: os.stat_result) -> BusyError:
    """Says who has it, as far as the kernel tells (not of other users' processes), and the way out."""
    uses, holders = kernel_uses(file), lock_holders(file)
    ways = "; to read what it holds, open the array read-only"
    if uses:
        who, ways = ": ".join(("the kernel", "; ".join(use.what for use in uses))), f": {', '.join(use.end for use in uses)}{ways}"
    elif holders:
        who, ways = in_words(holders), "; end that first, or use the array through it (its mount point)"
    elif stat.S_ISBLK(file.st_mode):
        who, ways = "a mount, an array of the kernel or another program", "; unmount it, or stop that array (mdadm --stop)"
    else:
        who, ways = "another opener of the array", ", which this user may not look at; stop it, or use its mount point"
    return BusyError(f"{path} is in use by {who}{ways}", members=[path])


def _lock(fd: int, path: str, read_only: bool) -> None:
    """An open-file-description lock on the whole file: it goes with the descriptor, also when the process is killed.

    The kernel heeds none: a file that it uses is refused for writing.
    """
    kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise _in_use(path, os.fstat(fd)) from None
    if not read_only and kernel_uses(os.fstat(fd)):
        raise _in_use(path, os.fstat(fd))


def _set_direct(fd: int) -> bool:
    """O_DIRECT where the file system takes it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def read_superblock(member: Member) -> Any:
    """The member's superblock as a cffi `struct rl_superblock *`.

    Tries 1.0, 1.1, 1.2 in this order and takes the latest ctime, then 0.90 (md-format.md 1.1); raises NoSuperblockError with the reason.
    """
    best, complaint, sectors = None, "", member.size // SECTOR
    block, sb = ffi.new("unsigned char[]", lib.RL_SB_BYTES), None
    for version in VERSIONS:
        at = lib.rl_superblock_sector(version, sectors)
        if at == MAX_SECTOR or at * SECTOR + lib.RL_SB_BYTES > member.size:
            continue
        check(lib.rl_member_pread(member.handle.pointer, block, lib.RL_SB_BYTES, at * SECTOR, 0))
        sb = ffi.new("struct rl_superblock *") if sb is None else sb
        result = lib.rl_superblock_decode(block, version, at, sectors, sb)
        if result == 0:
            if best is None or (sb.ctime_s, sb.ctime_us) > (best.ctime_s, best.ctime_us):
                best, sb = sb, None
        elif result != -errno.ENOENT:
            code, text = -result, last_error()[2]
            if code == errno.EPROTONOSUPPORT:
                raise UnsupportedError(f"{member.path}: {text}", members=[member.path])
            complaint = f"the superblock at sector {at} cannot be used: {text}"
    if best is None and complaint:
        raise DamagedMemberError(
            f"{member.path}: {complaint}; leave it out, and the others may do without it (--run)", members=[member.path]
        )
    if best is None:
        raise NoSuperblockError(f"{member.path} holds no md superblock; it is no member of an array", members=[member.path])
    return best


def write_superblock(member: Member, sb: Any) -> None:
    """Writes a cffi superblock to where it belongs and makes it durable."""
    block = ffi.new("unsigned char[]", lib.RL_SB_BYTES)
    lib.rl_superblock_encode(sb, block)
    member.handle.pwrite(bytes(ffi.buffer(block)), sb.super_offset * SECTOR)
    member.handle.flush()


def zero_superblocks(member: Member) -> int:
    """Overwrites every md superblock on the member with zeros; how many there were."""
    count, sectors = 0, member.size // SECTOR
    for version in VERSIONS:
        at = lib.rl_superblock_sector(version, sectors)
        if at == MAX_SECTOR or at * SECTOR + lib.RL_SB_BYTES > member.size:
            continue
        block = member.handle.pread(lib.RL_SB_BYTES, at * SECTOR)
        if lib.rl_superblock_decode(ffi.from_buffer(block), version, at, sectors, ffi.new("struct rl_superblock *")) in (
            0,
            -errno.EBADMSG,
            -errno.EINVAL,
        ):
            member.handle.pwrite(bytes(lib.RL_SB_BYTES), at * SECTOR)
            count += 1
    member.handle.flush()
    return count


def uuid_text(raw: bytes) -> str:
    """16 bytes as mdadm prints a UUID."""
    digits = bytes(raw).hex()
    return ":".join(digits[i : i + 8] for i in range(0, 32, 8))


def features(sb: Any) -> list[str]:
    """Names of the feature bits."""
    return [name for bit, name in _FEATURES.items() if sb.feature_map & bit]


def role_of(sb: Any) -> tuple[str, int | None]:
    """("active", 3), ("rebuilding", 1), ("spare", None), … by the member's own superblock."""
    role = lib.rl_superblock_role(sb)
    if role >= lib.RL_ROLE_MAX:
        return _ROLES.get(role, "spare"), None
    if sb.feature_map & lib.RL_FEATURE_REPLACEMENT:
        return "replacement", role
    return ("rebuilding" if sb.feature_map & lib.RL_FEATURE_RECOVERY else "active"), role


def device_roles(sb: Any) -> str:
    """mdadm's "Array State": A active, R replacement beside it, . missing."""
    disks = sb.raid_disks - min(0, sb.delta_disks if sb.feature_map & lib.RL_FEATURE_RESHAPE else 0)
    seen = [0] * disks
    for number in range(min(sb.max_dev, lib.RL_SB_DEVS_MAX)):
        if sb.dev_roles[number] < disks:
            seen[sb.dev_roles[number]] += 1
    return "".join(".AR"[min(count, 2)] for count in seen)


def describe(member: Member, sb: Any) -> Superblock:
    """The superblock as a frozen struct."""
    level = Level(sb.level) if sb.level in Level.__members__.values() else None
    role, slot = role_of(sb)
    reshape = sb.feature_map & lib.RL_FEATURE_RESHAPE
    bitmap_head, bitmap_problem = _read_bitmap(member, sb)
    return Superblock(
        path=member.path,
        metadata=VERSIONS[sb.version],
        uuid=uuid_text(bytes(ffi.buffer(sb.set_uuid))),
        name=ffi.string(sb.set_name).decode(errors="replace"),
        level=str(level) if level is not None else f"level {sb.level}",
        layout=layout_name(level, sb.layout) if level is not None else None,
        chunk_size=sb.chunk_sectors * SECTOR,
        raid_devices=sb.raid_disks,
        dev_size=sb.size_sectors * SECTOR,
        data_offset=sb.data_offset * SECTOR,
        data_size=sb.data_size * SECTOR,
        super_offset=sb.super_offset * SECTOR,
        device_uuid=uuid_text(bytes(ffi.buffer(sb.device_uuid))),
        dev_number=sb.dev_number,
        slot=slot,
        role=role,
        recovery_offset=sb.recovery_offset * SECTOR if sb.feature_map & lib.RL_FEATURE_RECOVERY else None,
        resync_offset=None if sb.resync_offset == MAX_SECTOR else sb.resync_offset * SECTOR,
        state="clean" if sb.resync_offset == MAX_SECTOR else "active",
        events=sb.events,
        created=sb.ctime_s + sb.ctime_us / 1e6,
        updated=sb.utime_s + sb.utime_us / 1e6,
        features=features(sb),
        bad_block_log=sb.bblog_offset != 0,
        device_roles=device_roles(sb),
        reshape_position=sb.reshape_position * SECTOR if reshape else None,
        logical_block_size=sb.logical_block_bytes,
        member_size=member.size,
        bitmap=bitmap_head,
        bitmap_problem=bitmap_problem,
    )


def _read_bitmap(member: Member, sb: Any) -> tuple[BitmapHead | None, str]:
    """What its bitmap says, or why that cannot be used."""
    if not sb.feature_map & lib.RL_FEATURE_BITMAP:
        return None, ""
    try:
        return bitmap.describe(member.handle, sb), ""
    except RaidError as error:
        return None, str(error)


def read_bad_blocks(member: Member, sb: Any) -> list[tuple[int, int]]:
    """(first sector, sectors), absolute on the member. Empty without the feature bit (md-format.md 1.9)."""
    if not sb.feature_map & lib.RL_FEATURE_BAD_BLOCKS or not sb.bblog_sectors:
        return []
    at, length, most = (sb.super_offset + sb.bblog_offset) * SECTOR, sb.bblog_sectors * SECTOR, sb.bblog_sectors * SECTOR // 8
    if at < 0 or at + length > member.size:
        raise MemberError(f"{member.path}: its bad-block log lies outside of it", members=[member.path])
    log, pairs = member.handle.pread(length, at), ffi.new("uint64_t[]", 2 * most)
    count = check(
        lib.rl_badblocks_decode(ffi.from_buffer(log), length, sb.bblog_shift, pairs, most),
        lambda text: f"{member.path}: bad-block log: {text}",
    )
    return sorted((pairs[2 * i], pairs[2 * i + 1]) for i in range(count))


def close_all(members: Sequence[Member | None]) -> None:
    """Closes every member that is there; raises the first problem, once it has tried them all."""
    problems = []
    for member in members:
        try:
            if member is not None:
                member.close()
        except RaidError as error:
            problems.append(error)
    if problems:
        raise problems[0]


# ---- finding members ----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a source stands for."""

    sources: list[MemberSource]
    damaged: list[MemberStatus]  # files of a directory that were members once; set aside, with the reason
    below: str  # the directory that has its members in subdirectories only: they make arrays that make one array. Else empty


def resolve(source: Source) -> list[MemberSource]:
    """The members that a source stands for.

    A directory's files with a superblock, or where it has none those of its subdirectories; a list as it is without its missing ones, one
    member itself.
    """
    return sort_out(source).sources


def sort_out(source: Source) -> Found:
    """Like resolve(), with what was set aside, and how it was found."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not os.path.isdir(path):
            return Found([path], [], "")
        found, damaged, below = _inside(path, _Search())
        if not found:
            raise NoSuperblockError(f"{path} holds no member of an array", members=[path])
        return Found(found, damaged, path if below else "")
    if isinstance(source, Sequence):
        all_found = Found([], [], "")
        for member in source:
            if member is None or member == "missing":
                continue
            is_folder = isinstance(member, (str, os.PathLike)) and os.path.isdir(member)
            is_list = isinstance(member, Sequence) and not isinstance(member, str)
            inside = sort_out(member) if is_folder or is_list else Found([cast(MemberSource, member)], [], "")
            all_found = Found(all_found.sources + inside.sources, all_found.damaged + inside.damaged, all_found.below or inside.below)
        return all_found
    return Found([source], [], "")


@dataclasses.dataclass
class _Search:
    files: int = 0
    folders: set[tuple[int, int]] = dataclasses.field(default_factory=set)  # a symbolic link may lead back


def _inside(folder: str, search: _Search, depth: int = 0) -> tuple[list[MemberSource], list[MemberStatus], bool]:
    """The members in a directory, or in its subdirectories (True); what is mounted there, by us or by others, is not looked into."""
    found: list[MemberSource] = []
    damaged = []
    for file in sorted(_entries(folder, lambda entry: entry.is_file())):
        search.files += 1
        if depth and search.files > SEARCHED_MAX:
            raise UsageError(f"{SEARCHED_MAX} files were searched for members of an array, up to those in {folder}; name the members")
        try:
            if _has_superblock(file):
                found.append(file)
        except DamagedMemberError as error:
            damaged.append(MemberStatus(slot=None, path=file, state=MemberState.FAULTY, reason=str(error).removeprefix(f"{file}: ")))
    if found or damaged or depth == NESTING_MAX:
        return found, damaged, False
    for inner in sorted(_entries(folder, lambda entry: entry.is_dir() and not os.path.ismount(entry.path))):
        status = os.stat(inner)
        if (status.st_dev, status.st_ino) not in search.folders and os.access(inner, os.R_OK | os.X_OK):
            search.folders.add((status.st_dev, status.st_ino))
            more, broken, _below = _inside(inner, search, depth + 1)
            found, damaged = found + more, damaged + broken
    return found, damaged, True


def _entries(folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.path for entry in entries if wanted(entry))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", errno=error.errno) from None


def _has_superblock(path: str) -> bool:
    try:
        with Member.open(path, read_only=True, lock=False) as member:
            read_superblock(member)
    except DamagedMemberError:
        raise
    except (NoSuperblockError, UnsupportedError):
        return False
    return True


def _refuse_twice(sources: Sequence[MemberSource]) -> None:
    seen: dict[object, tuple[int, str]] = {}
    for index, source in enumerate(sources):
        if not isinstance(source, (str, os.PathLike)):
            continue
        path = os.fspath(source)
        try:
            now = os.stat(path)
        except OSError:
            continue  # said better when it is opened
        first, other = seen.setdefault((now.st_dev, now.st_ino), (index, path))
        if first != index:
            raise UsageError(f"{path} and {other} are the same file; give it only once", members=[other, path])


def open_members(sources: Sequence[MemberSource], **options: Any) -> list[Member]:
    """Opens them all or none, with the options of `Member.open`; the same file given twice is refused."""
    _refuse_twice(sources)
    members: list[Member] = []
    try:
        for source in sources:
            members.append(Member.open(source, **options))
            if members[-1].array is not None and members[-1].path in [member.path for member in members[:-1]]:
                members[-1].path = members[-1].real_path = members[-1].array.uuid  # two arrays in one folder
    except BaseException:
        close_all(members)
        raise
    return members


def examine(member: MemberSource) -> Superblock:
    """What the superblock of one member says. Writes nothing."""
    with Member.open(member, read_only=True, lock=False) as opened:
        return describe(opened, read_superblock(opened))


def zero_superblock(member: MemberSource) -> int:
    """Overwrites the md superblocks of one member with zeros, so that it is no member any more; how many there were."""
    with Member.open(member) as opened:
        count = zero_superblocks(opened)
        if count == 0:
            raise NoSuperblockError(f"{opened.path} holds no md superblock", members=[opened.path])
        return count
