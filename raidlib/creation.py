"""Making an array: sizes and offsets as mdadm chooses them (md-format.md 1.5), the first superblocks, the member files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
import uuid as uuid_module
from collections.abc import Sequence
from typing import Any

from . import bitmap
from .assembly import PARITY_LEVELS, make_geometry
from .engine import ffi, lib
from .errors import NoSpaceError, RefusedError, UnsupportedError, UsageError
from .member import VERSION_NUMBERS, Member, read_superblock, uuid_text, write_superblock
from .model import MAX_SECTOR, SECTOR, Level, format_size, layout_number, parse_size

DEFAULT_CHUNK = 512 << 10
_LEAST = {Level.LINEAR: 1, Level.RAID0: 1, Level.RAID1: 1, Level.RAID4: 2, Level.RAID5: 2, Level.RAID6: 4, Level.RAID10: 2, Level.RS: 3}
_SIGNATURES = [
    (1080, b"\x53\xef", "an ext file system"),
    (0, b"XFSB", "an XFS file system"),
    (512, b"EFI PART", "a partition table"),
    (65600, b"_BHRfS_M", "btrfs"),
]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is to be made, checked. Units: sectors, but where a name says bytes."""

    level: Level
    raid_devices: int
    layout: int
    chunk_sectors: int
    version: int
    name: str
    uuid: bytes
    data_offset_sectors: int | None
    assume_clean: bool
    bitmap: bool | None  # None: as large members have it
    bitmap_chunk_bytes: int | None


def make_spec(
    *,
    level: Level | int | str,
    raid_devices: int,
    chunk: str | int | None,
    layout: str | int | None,
    metadata: str,
    name: str,
    uuid: str | None,
    data_offset: str | int | None,
    parity: int | None,
    assume_clean: bool,
    bitmap: str | None,
    bitmap_chunk: str | int | None,
    consistency_policy: str | None,
) -> Spec:
    """Checks the options of `create` that concern the shape."""
    kind = Level.parse(level)
    if raid_devices < _LEAST[kind]:
        raise UsageError(f"{kind} needs at least {_LEAST[kind]} members, not {raid_devices}")
    if metadata == "0.90":
        raise UsageError("metadata 0.90 is read and kept up to date, but not made any more; take 1.0, 1.1 or 1.2")
    if metadata not in VERSION_NUMBERS:
        raise UsageError(f"metadata {metadata!r} is not one of 1.0, 1.1, 1.2")
    if parity is not None and kind is not Level.RS:
        raise UsageError(f"--parity goes with level rs; {kind} has its own number of parities")
    number = (2 if parity is None else parity) if kind is Level.RS else layout_number(kind, layout)
    chunk_bytes = 0 if kind is Level.RAID1 else DEFAULT_CHUNK if chunk is None else parse_size(chunk)
    if kind is not Level.RAID1 and (chunk_bytes < 4096 or chunk_bytes & (chunk_bytes - 1)):
        raise UsageError(f"chunk {chunk!r} is not a power of two of at least 4K")
    return Spec(
        level=kind,
        raid_devices=raid_devices,
        layout=number,
        chunk_sectors=0 if kind is Level.LINEAR and chunk is None else chunk_bytes // SECTOR,
        version=VERSION_NUMBERS[metadata],
        name=full_name(name),
        uuid=parse_uuid(uuid) if uuid else uuid_module.uuid4().bytes,
        data_offset_sectors=None if data_offset is None else parse_size(data_offset) // SECTOR,
        assume_clean=assume_clean,
        bitmap=_wants_bitmap(kind, bitmap, bitmap_chunk, consistency_policy),
        bitmap_chunk_bytes=None if bitmap_chunk is None else parse_size(bitmap_chunk),
    )


def _wants_bitmap(level: Level, kind: str | None, chunk: str | int | None, policy: str | None) -> bool | None:
    """What the three options say about a bitmap; None: nothing."""
    if kind not in (None, "internal", "none"):
        raise UsageError(f"bitmap {kind!r} is neither internal nor none")
    if policy not in (None, "resync", "bitmap"):
        raise UnsupportedError(f"the consistency policy {policy}: not built yet; there are resync and bitmap")
    by_kind = None if kind is None else kind == "internal"
    by_policy = None if policy is None else policy == "bitmap"
    if None not in (by_kind, by_policy) and by_kind != by_policy:
        raise UsageError(f"--bitmap {kind} and --consistency-policy {policy} contradict each other: give one of them")
    wanted = by_policy if by_kind is None else by_kind
    if chunk is not None and not wanted:
        raise UsageError("--bitmap-chunk goes with --bitmap internal")
    if wanted:
        bitmap.refuse_level(level)
    return wanted


def full_name(name: str) -> str:
    """`homehost:name` as mdadm makes it (md-format.md 1.8)."""
    host = socket.gethostname().split(".")[0]
    whole = name if ":" in name else f"{host}:{name}"
    return whole if len(whole.encode()) < 32 else name.encode()[:31].decode(errors="ignore")


def parse_uuid(text: str) -> bytes:
    """16 bytes from mdadm's or the usual way of writing a UUID."""
    digits = text.replace(":", "").replace("-", "")
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise UsageError(f"uuid {text!r} is not 32 hexadecimal digits")
    return raw


def _default_data_offset(sectors: int, chunk_sectors: int) -> int:
    chunk_kib, headroom = chunk_sectors // 2, 262144
    while headroom * 1024 > sectors and (chunk_kib == 0 or headroom // 2 >= chunk_kib * 4):
        headroom //= 2
    return -(-(24 + bitmap.space(sectors) + headroom) // 2048) * 2048


def _room(spec: Spec, member: Member, data_offset: int) -> tuple[int, int]:
    """(super_offset, sectors that the data of this member may have)."""
    sectors = member.size // SECTOR
    at = lib.rl_superblock_sector(spec.version, sectors)
    if at == MAX_SECTOR:
        raise UsageError(f"{member.path} is too small for a member: {member.size} bytes", members=[member.path])
    if spec.version == 100:
        reserve = 8 + (bitmap.space(sectors) if spec.level > 0 else 0)
        return at, max(0, at - reserve - data_offset)
    return at, max(0, sectors - data_offset)


def _component_size(spec: Spec, members: Sequence[Member], room: Sequence[int], size: int | None) -> int:
    """Sectors that the array uses of each member; 0 for linear and raid0, which use what there is."""
    if spec.level <= 0:
        return 0
    unit = spec.chunk_sectors or 128
    least = min(range(len(room)), key=lambda i: room[i])
    available = room[least] // 2 * 2
    wanted = available if size is None else size // SECTOR
    if wanted > available:
        path = members[least].path
        raise UsageError(
            f"size {format_size(wanted * SECTOR)} does not fit on {path}, which has room for {format_size(available * SECTOR)}",
            members=[path],
        )
    usable = wanted // unit * unit
    if usable == 0:
        path, chunk = members[least].path, format_size(unit * SECTOR)
        raise UsageError(
            f"{path} is too small: not one chunk of {chunk} fits beside the metadata; make it larger or --chunk smaller", members=[path]
        )
    return usable


def refuse_content(member: Member, force: bool) -> None:
    """Refuses a member that holds something, unless forced."""
    if force or member.is_blank():
        return
    try:
        sb = read_superblock(member)
        uuid = uuid_text(bytes(ffi.buffer(sb.set_uuid)))
    except UsageError:
        uuid = ""
    found = f"a superblock of array {uuid}" if uuid else ""
    for at, magic, what in _SIGNATURES:
        if not found and member.size >= at + 4096 and member.handle.pread(len(magic), at) == magic:
            found = what
    if found:
        raise RefusedError(f"{member.path} holds {found}, which would be lost; --yes (force=True) overwrites it", members=[member.path])


NEW = ".new"  # what member files are called until they are whole


def make_files(folder: str, count: int, size: int, preallocate: bool, force: bool) -> tuple[list[str], list[str]]:
    """Makes the member files of an array directory, each named path + NEW until `put_in_place`. Returns the paths, and notes for the user.

    Files that are there already (force) stay as they are until then; one that is in use is refused.
    """
    if size <= 0:
        raise UsageError("--size (the size of each member file) is needed to make the members of an array directory")
    paths = [os.path.join(folder, f"member-{number}.img") for number in range(count)]
    there = [path for path in paths if os.path.lexists(path)]
    if there and not force:
        raise RefusedError(f"{there[0]} exists already; --yes (force=True) overwrites it, or take another directory", members=there)
    for path in there:
        Member.open(path).close()  # BusyError if someone has it
    os.makedirs(folder, exist_ok=True)
    space = os.statvfs(folder)
    free, notes = space.f_bavail * space.f_frsize, []
    if size * count > free:
        words = f"the members may grow to {format_size(size * count)} in all, and {folder} has {format_size(free)} free"
        if preallocate:
            raise NoSpaceError(words)
        notes.append(words + ": writes will fail once it is full")
    try:
        for path in paths:
            with open(path + NEW, "wb") as file:
                file.truncate(size)
                if preallocate:
                    os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        drop_files(paths)
        raise NoSpaceError(f"{folder}: {error.strerror}", errno=error.errno) from None
    return paths, notes


def drop_files(paths: Sequence[str]) -> None:
    """Takes new member files away that have not got their names."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + NEW)


def put_in_place(paths: Sequence[str]) -> None:
    """The new member files take their names."""
    for path in paths:
        os.rename(path + NEW, path)


def _template(spec: Spec, dev_sectors: int, count: int, clean: bool) -> Any:
    now = time.time_ns()
    sb = ffi.new("struct rl_superblock *")
    sb.version, sb.level, sb.layout = spec.version, spec.level, spec.layout
    sb.magic = lib.RL_RS_MAGIC if spec.level is Level.RS else lib.RL_MD_MAGIC
    sb.feature_map = lib.RL_FEATURE_RAID0_LAYOUT if spec.level is Level.RAID0 else 0
    ffi.memmove(sb.set_uuid, spec.uuid, 16)
    ffi.memmove(sb.set_name, spec.name.encode(), len(spec.name.encode()))
    sb.ctime_s = sb.utime_s = now // 10**9
    sb.utime_us = max(1, now // 1000 % 10**6)
    sb.size_sectors, sb.chunk_sectors, sb.raid_disks = dev_sectors, spec.chunk_sectors, spec.raid_devices
    sb.recovery_offset = MAX_SECTOR
    sb.resync_offset = MAX_SECTOR if clean else 0
    sb.events = 1
    sb.max_dev = (-(-(256 + 2 * count) // 512) * 512 - 256) // 2
    for number in range(lib.RL_SB_DEVS_MAX):
        sb.dev_roles[number] = lib.RL_ROLE_SPARE
    return sb


def _place_badblock_log(sb: Any, bitmap_sectors: int) -> None:
    """Eight sectors where mdadm puts them: behind the bitmap, or where one could be."""
    offset = -8 if sb.version == 100 else 8 + bitmap_sectors
    if sb.version != 100 and sb.super_offset + offset + 8 > sb.data_offset:
        return
    sb.bblog_offset, sb.bblog_sectors = offset, 8


def clear_badblock_log(sb: Any, member: Member) -> None:
    """Fills the log as mdadm does: no entry."""
    if sb.bblog_offset:
        member.handle.pwrite(b"\xff" * 4096, (sb.super_offset + sb.bblog_offset) * SECTOR)


def prepare_device(sb: Any, super_offset: int, room: int) -> None:
    """Fills in what is a member's own in its superblock. Bitmap, bad-block log and data lie as on the other members."""
    sb.super_offset, sb.data_size = super_offset, room
    ffi.memmove(sb.device_uuid, uuid_module.uuid4().bytes, 16)


def _check_clean(spec: Spec, members: Sequence[Member | None], blank: bool) -> bool:
    """Whether parity and copies agree from birth.

    Blank members do (all codes of zeros are zeros), and where too little is there to disagree.
    """
    missing = sum(member is None for member in members[: spec.raid_devices])
    if spec.assume_clean or blank or spec.level <= 0:
        return True
    borne = {Level.RAID4: 1, Level.RAID5: 1, Level.RAID6: 2, Level.RS: spec.layout}.get(spec.level, 0)
    if missing and missing < borne and spec.level in PARITY_LEVELS:
        raise UsageError(
            f"{spec.level} with {missing} missing member and others that are not blank would be dirty and degraded; "
            f"give blank members, all of them, or --assume-clean"
        )
    return bool(missing) and missing == borne


def _place_bitmap(spec: Spec, geometry: Any, data_offset: int, rooms: Sequence[tuple[int, int]]) -> bitmap.Place | None:
    """Where the members have their bitmap, if they are to have one."""
    automatic = spec.bitmap is None and spec.level > 0 and geometry.dev_sectors * SECTOR > bitmap.AUTOMATIC_BYTES
    if not (spec.bitmap or automatic):
        return None
    room = bitmap.space(geometry.dev_sectors)
    for at, length in rooms:
        start, end = (data_offset + length, at) if spec.version == 100 else (at, data_offset)
        room = min(room, end - start - 8)  # beside the bad-block log, or the superblock
    try:
        return bitmap.choose(spec.version, bitmap.sync_sectors(geometry), room, spec.bitmap_chunk_bytes)
    except UsageError:
        if automatic:
            return None
        raise


def write_superblocks(spec: Spec, members: Sequence[Member | None], size: int | None) -> list[str]:
    """Writes the first superblock of every member (None: missing; those past raid_devices are spares). `size`: bytes used of each.

    None: all. Returns notes for the user.
    """
    present = [member for member in members if member is not None]
    if not present:
        raise UsageError("all members are missing: give at least as many as the level needs")
    blank = all(member.is_blank() for member in present)
    first = present[0].size // SECTOR
    data_offset = 0 if spec.version == 100 else _default_data_offset(first, spec.chunk_sectors)
    if spec.data_offset_sectors is not None:
        data_offset = spec.data_offset_sectors
        if spec.version != 100 and (data_offset < 24 or data_offset % 8):
            raise UsageError(f"data offset {format_size(data_offset * SECTOR)} leaves no room for the superblock, or is no multiple of 4K")
    rooms = [_room(spec, member, data_offset) for member in present]
    dev_sectors = _component_size(spec, present, [room for _at, room in rooms], size)
    lengths = iter(room for _at, room in rooms)
    slot_lengths = [next(lengths) if member is not None else 0 for member in members][: spec.raid_devices]
    geometry = make_geometry(spec.level, spec.layout, spec.chunk_sectors, spec.raid_devices, dev_sectors, slot_lengths)
    if spec.level is Level.RAID10:
        # the kernel says so with its first update; beside a member that has missed that, and says something else, mdadm assembles nothing
        dev_sectors = geometry.used_sectors
    _refuse_too_many_missing(spec, geometry, members)
    where = _place_bitmap(spec, geometry, data_offset, rooms)
    sb = _template(spec, dev_sectors, len(members), _check_clean(spec, members, blank))
    sb.data_offset = data_offset
    if where is not None:
        sb.feature_map |= lib.RL_FEATURE_BITMAP
        sb.bitmap_offset = where.offset
    for number, member in enumerate(members[: spec.raid_devices]):
        sb.dev_roles[number] = number if member is not None else lib.RL_ROLE_SPARE
    places = iter(rooms)
    for number, member in enumerate(members):
        if member is not None:
            at, room = next(places)
            sb.dev_number = number
            sb.super_offset = at
            _place_badblock_log(sb, bitmap.space(dev_sectors) if where is None else where.sectors)
            prepare_device(sb, at, room)
            clear_badblock_log(sb, member)
            if where is not None:
                bitmap.write(member.handle, sb, where, bitmap.sync_sectors(geometry), dirty=sb.resync_offset != MAX_SECTOR)
            write_superblock(member, sb)
    if where is None or spec.bitmap:
        return []
    return [
        f"the members are larger than {format_size(bitmap.AUTOMATIC_BYTES)}: the array has a write-intent bitmap (regions of "
        f"{format_size(where.chunk)}), so that a crash costs no resync of everything; --bitmap none makes it without"
    ]


def _refuse_too_many_missing(spec: Spec, geometry: Any, members: Sequence[Member | None]) -> None:
    present = ffi.new("uint8_t[]", lib.RL_SLOTS_MAX)
    for slot, member in enumerate(members[: spec.raid_devices]):
        present[slot] = member is not None
    if not lib.rl_geometry_enough(geometry, present):
        missing = sum(member is None for member in members[: spec.raid_devices])
        raise UnsupportedError(f"{spec.level} cannot be made with {missing} of {spec.raid_devices} members missing: it could hold no data")
