"""A member that is to come into an array: whether it was in it before, what it may overwrite, its first superblock there."""

from __future__ import annotations

from typing import Any

from . import creation
from .engine import ffi, lib
from .errors import NoSuperblockError, RefusedError, UsageError
from .member import Member, read_bad_blocks, read_superblock, role_of, uuid_text
from .model import MAX_SECTOR, SECTOR, format_size


def refuse_foreign(opened: Member, uuid: str, force: bool) -> Any:
    """The superblock that a new member has in array `uuid` already; None: it has none. One of another array is refused, unless forced."""
    try:
        sb = read_superblock(opened)
    except NoSuperblockError:
        return None
    own = uuid_text(bytes(ffi.buffer(sb.set_uuid)))
    if own == uuid:
        return sb
    if not force:
        raise RefusedError(
            f"{opened.path} is a member of another array ({own}); --yes (force=True) overwrites it, or zero its superblock",
            members=[opened.path],
        )
    return None


def former(opened: Member, uuid: str) -> Any:
    """The superblock of a former member of array `uuid`."""
    try:
        sb = read_superblock(opened)
    except UsageError as error:
        raise UsageError(f"{error}; `add` takes it as a new member", members=[opened.path]) from None
    own = uuid_text(bytes(ffi.buffer(sb.set_uuid)))
    if own != uuid:
        raise UsageError(
            f"{opened.path} was never in this array, it is a member of {own}; `add` takes it as a new member", members=[opened.path]
        )
    return sb


def slot_of(sb: Any) -> int | None:
    """The slot that a former member had by its superblock, None for a spare."""
    return None if sb is None else role_of(sb)[1]


def back_by_bitmap(handle: Any, opened: Member, sb: Any) -> tuple[int, int]:
    """Takes a former member back into its slot: the engine's result, and its index. A result of -ENOENT or -EBUSY: as a spare only."""
    bad, index = read_bad_blocks(opened, sb), ffi.new("uint32_t *")
    pairs = ffi.new("uint64_t[]", [number for pair in bad for number in pair])
    return int(lib.rl_array_readd(handle, opened.handle.pointer, sb, pairs, len(bad), index)), int(index[0])


def new_superblock(opened: Member, like: Any, dev_sectors: int) -> Any:
    """The first superblock of a new member, made of that of one in sync."""
    sectors = opened.size // SECTOR
    at = lib.rl_superblock_sector(like.version, sectors)
    needed = (like.data_offset + dev_sectors) * SECTOR
    if at == MAX_SECTOR or opened.size < needed:
        raise UsageError(
            f"{opened.path} is too small: {format_size(opened.size)}, and the array needs {format_size(needed)} "
            f"and its metadata on each member",
            members=[opened.path],
        )
    reserved = like.super_offset - like.data_offset - like.data_size  # 1.0: what lies between the data and the superblock
    room = sectors - like.data_offset if like.version in (101, 102) else at - like.data_offset - max(reserved, 0)
    like.devflags = like.corrected_reads = 0
    creation.prepare_device(like, at, max(room, 0))
    return like
