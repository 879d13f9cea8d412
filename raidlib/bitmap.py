"""Write-intent bitmaps: how large they are and where they lie, as mdadm chooses (md-format.md 1.5, 3), and what a member's own says.

The bits of an open array are the engine's; here they are made at birth, and read to be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .engine import MemberHandle, check, ffi, lib
from .errors import UsageError
from .model import SECTOR, BitmapHead, Level, format_size

AUTOMATIC_BYTES = 100 << 30  # members that are larger get one unasked, as from mdadm
CHUNK_DEFAULT = 64 << 20
_CHUNK_MAX = 1 << 31
_DAEMON_SLEEP_S = 5
_PAGE_SECTORS = lib.RL_SB_BYTES // SECTOR  # what a superblock takes up, and the unit of a bitmap's area
_BBLOG_SECTORS = 8
_OFFSET = 8  # from a superblock 1.1, 1.2 or 0.90
_ROOM_UNASKED = 256  # the most that is used where nobody asked for a chunk
_ROOM_090 = 120
_COUNTED_AT_ONCE = 1 << 20


class Place(NamedTuple):
    """Where a bitmap lies and what it is like."""

    offset: int  # sectors from the superblock
    sectors: int  # of its area
    chunk: int  # bytes


def space(sectors: int) -> int:
    """Sectors that mdadm reserves for a bitmap on a member of that size."""
    if sectors < 128:
        return 0
    if sectors - 128 >= 200 << 21:
        return 256
    return 128 if sectors - 8 > 8 << 21 else 8


def sync_sectors(geometry: Any) -> int:
    """What a bitmap covers: of each member; with raid10 of the array."""
    return int(geometry.array_sectors if geometry.level == Level.RAID10 else geometry.dev_sectors)


def sectors_of(covered: int, chunk: int) -> int:
    """Of the area of a bitmap that covers so many sectors."""
    return int(lib.rl_bitmap_bytes(covered, chunk)) // SECTOR


def check_chunk(chunk: int) -> None:
    """Whatever the room: a power of two."""
    if not lib.RL_BITMAP_CHUNK_MIN <= chunk <= _CHUNK_MAX or chunk & (chunk - 1):
        raise UsageError(f"bitmap chunk {format_size(chunk)} is not a power of two from 4K to 2G")


def refuse_level(level: Level) -> None:
    """Where nothing could be resynced, there is nothing to mark."""
    if level <= 0:
        raise UsageError(f"{level} has no redundancy to be resynced: a write-intent bitmap would be of no use; leave it out")


def choose(version: int, covered: int, room: int, chunk: int | None) -> Place:
    """A bitmap in `room` sectors: beside the superblock, in 1.0 before it and the bad-block log. chunk: bytes; None: as mdadm chooses."""
    room = room // _PAGE_SECTORS * _PAGE_SECTORS
    if chunk is None:
        room = min(room, _ROOM_UNASKED)
    if room <= 0:
        raise UsageError(
            "the members have no room for a write-intent bitmap between superblock and data; leave it out, or make the array with larger "
            "members or a larger --data-offset"
        )
    least = int(lib.rl_bitmap_chunk_min(covered, room))
    if chunk is not None:
        check_chunk(chunk)
        if chunk < least:
            raise UsageError(
                f"bitmap chunk {format_size(chunk)} is too small: the {room * SECTOR} bytes that the members have for the bitmap "
                f"take one of {format_size(least)} or more"
            )
    chunk = max(least, CHUNK_DEFAULT) if chunk is None else chunk
    # 1.0: mdadm reckons with one bit more where the last one is whole
    offset = -sectors_of(covered + 1, chunk) - _BBLOG_SECTORS if version == 100 else _OFFSET
    return Place(offset, sectors_of(covered, chunk), chunk)


def room_on(sb: Any) -> int:
    """Sectors that a bitmap could have on a member of an array that has none."""
    log = sb.bblog_offset
    if sb.version == 90:
        return _ROOM_090
    if sb.version == 100:
        return int(sb.super_offset - sb.data_offset - sb.data_size - _BBLOG_SECTORS)
    end = log if log > 0 else sb.data_offset - sb.super_offset
    return int(end) - _OFFSET


def place(superblocks: Sequence[Any], geometry: Any, chunk: int | None) -> Place:
    """Where a bitmap may come on all members of an array that has none."""
    return choose(superblocks[0].version, sync_sectors(geometry), min(map(room_on, superblocks)), chunk)


def write(handle: MemberHandle, sb: Any, where: Place, covered: int, *, dirty: bool) -> None:
    """The bitmap of a new array onto a member with that superblock, before the superblock itself."""
    head, block = ffi.new("struct rl_bitmap_superblock *"), ffi.new("unsigned char[]", lib.RL_BITMAP_HEAD_BYTES)
    head.version, head.chunk_bytes, head.daemon_sleep_s = 4, where.chunk, _DAEMON_SLEEP_S
    head.events = head.events_cleared = sb.events
    head.sync_sectors = covered
    lib.rl_bitmap_uuid(sb, head.set_uuid)
    lib.rl_bitmap_encode(head, block)
    bits = (b"\xff" if dirty else b"\0") * (where.sectors * SECTOR - len(block))
    handle.pwrite(bytes(ffi.buffer(block)) + bits, (sb.super_offset + where.offset) * SECTOR)


def read_head(handle: MemberHandle, sb: Any, covered: int | None = None) -> Any:
    """The head of the bitmap on a member with that superblock, as a cffi struct. Raises RaidError with the reason why it cannot be used.

    covered: the sectors that it has to cover; None: those that it says.
    """
    at = sb.super_offset + sb.bitmap_offset
    if not 0 <= at <= handle.size // SECTOR - _PAGE_SECTORS:
        raise UsageError(f"there is no room for one at {sb.bitmap_offset} sectors from the superblock")
    head = ffi.new("struct rl_bitmap_superblock *")
    check(lib.rl_bitmap_decode(ffi.from_buffer(handle.pread(lib.RL_SB_BYTES, at * SECTOR)), head))
    uuid = ffi.new("uint8_t[16]")
    lib.rl_bitmap_uuid(sb, uuid)
    if bytes(uuid) != bytes(head.set_uuid):
        raise UsageError("it is that of another array")
    length = sectors_of(head.sync_sectors if covered is None else covered, head.chunk_bytes)
    if not fits(handle, sb, sb.bitmap_offset, length):
        raise UsageError(f"it has {length} sectors, and there is less room")
    return head


def fits(handle: MemberHandle, sb: Any, offset: int, length: int) -> bool:
    """Whether a member with that superblock has nothing else in so many sectors, from `offset` sectors after the superblock on."""
    at, log = sb.super_offset + offset, sb.super_offset + sb.bblog_offset
    others = [(sb.super_offset, _PAGE_SECTORS), (sb.data_offset, sb.size_sectors), (log, sb.bblog_sectors if sb.bblog_offset else 0)]
    inside = at >= 0 and at + length <= handle.size // SECTOR
    return inside and not any(at < start + sectors and start < at + length for start, sectors in others)


def says_nothing(head: Any, sb: Any) -> bool:
    """Whether all bits count as set: written when the array was not what it is now, or marked so (md-format.md 3.5)."""
    return bool(head.events < sb.events or head.state & lib.RL_BITMAP_STALE)


def _count(handle: MemberHandle, start: int, bits: int) -> int:
    """How many of the first `bits` after byte `start` are set."""
    found, at, end = 0, start // lib.RL_SB_BYTES * lib.RL_SB_BYTES, start + -(-bits // 8)
    while at < end:
        length = min(_COUNTED_AT_ONCE, -(-(end - at) // lib.RL_SB_BYTES) * lib.RL_SB_BYTES)
        piece = handle.pread(length, at)[max(start - at, 0) : end - at]
        last = bits % 8 if at + length >= end else 0
        found += int.from_bytes(piece).bit_count() - ((piece[-1] >> last).bit_count() if last else 0)
        at += length
    return found


def describe(handle: MemberHandle, sb: Any) -> BitmapHead:
    """Head and number of bits of the bitmap on a member, as a frozen struct. Raises RaidError with the reason why it cannot be used."""
    head = read_head(handle, sb)
    at = (sb.super_offset + sb.bitmap_offset) * SECTOR
    bits = int(lib.rl_bitmap_bits(head.sync_sectors, head.chunk_bytes))
    return BitmapHead(
        offset=at,
        version=head.version,
        events=head.events,
        events_cleared=head.events_cleared,
        out_of_date=says_nothing(head, sb),
        chunk_size=head.chunk_bytes,
        daemon_sleep=head.daemon_sleep_s,
        write_behind=head.write_behind,
        sync_size=head.sync_sectors * SECTOR,
        bits=bits,
        dirty=_count(handle, at + lib.RL_BITMAP_HEAD_BYTES, bits),
    )
