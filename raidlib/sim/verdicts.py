"""Which sets of lost disks lose data: the engine's own answer (rl_geometry_enough), for every level and layout and for arrays of arrays.

A set is a number: bit i stands for disk i, disks of nested arrays counted through from the first member's first. A table of verdicts has
bit s & 7 of byte s >> 3 set where the set s loses data.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from ..assembly import make_geometry
from ..engine import check, ffi, lib
from ..errors import UsageError
from ..model import Level, Struct, layout_number
from .model import TABLE_DISKS_MAX

_CHUNK_SECTORS = 8
_DEV_SECTORS = 64 * _CHUNK_SECTORS  # of each member; the verdict does not depend on it


class Shape(Struct, frozen=True, kw_only=True):
    """An array: its level, and how many disks it has, or the arrays that are its members. parity: of level rs."""

    level: Level
    members: int | tuple[Shape, ...]
    layout: str | None = None
    parity: int | None = None

    @property
    def disks(self) -> int:
        """In all."""
        return self.members if isinstance(self.members, int) else sum(member.disks for member in self.members)


def _geometry(shape: Shape) -> Any:
    slots = shape.members if isinstance(shape.members, int) else len(shape.members)
    if not 1 <= slots <= lib.RL_SLOTS_MAX:
        raise UsageError(f"an array of {slots} members: 1 to {lib.RL_SLOTS_MAX} are possible")
    if shape.level is Level.RS:
        layout = 2 if shape.parity is None else shape.parity
        if not 1 <= layout <= lib.RL_PARITY_MAX:
            raise UsageError(f"level rs with {layout} parity disks: 1 to {lib.RL_PARITY_MAX} are possible")
    else:
        layout = layout_number(shape.level, shape.layout)
    chunk = 0 if shape.level is Level.RAID1 else _CHUNK_SECTORS
    return make_geometry(shape.level, layout, chunk, slots, _DEV_SECTORS, [_DEV_SECTORS] * slots)


def data_disks(shape: Shape) -> float:
    """How many disks' worth of data it holds."""
    geometry = _geometry(shape)
    share = float(geometry.array_sectors) / _DEV_SECTORS
    if isinstance(shape.members, int):
        return share
    parts = [data_disks(member) for member in shape.members]
    return sum(parts) if shape.level in (Level.LINEAR, Level.RAID0) else share * min(parts)


@functools.lru_cache(maxsize=16)  # asked for by `tolerance` and by `verdict`, and for each of the equal members of a nested array
def lost_sets(shape: Shape) -> bytes:
    """The verdict on each of the 2^n sets of lost disks, n <= 24: 2^n bits, at least one byte."""
    if shape.disks > TABLE_DISKS_MAX:
        raise UsageError(f"a table of {shape.disks} disks would have 2^{shape.disks} verdicts; {TABLE_DISKS_MAX} disks are the limit")
    geometry = _geometry(shape)
    table = bytearray(max(1, (1 << geometry.slots) // 8))
    check(lib.rl_sim_lost_sets(geometry, ffi.from_buffer("uint8_t[]", table, require_writable=True)))
    return bytes(table) if isinstance(shape.members, int) else _composed(shape.members, bytes(table))


def _composed(members: tuple[Shape, ...], outer: bytes) -> bytes:
    """A member array that lost data is a lost member."""
    import numpy as np

    disks = sum(member.disks for member in members)
    sets = np.arange(1 << disks, dtype=np.uint32)
    lost, first = np.zeros_like(sets), 0
    for slot, member in enumerate(members):
        inner = np.unpackbits(np.frombuffer(lost_sets(member), np.uint8), bitorder="little")
        lost |= inner[sets >> first & (1 << member.disks) - 1].astype(np.uint32) << slot
        first += member.disks
    verdicts = np.unpackbits(np.frombuffer(outer, np.uint8), bitorder="little")[lost]
    return np.packbits(verdicts, bitorder="little").tobytes()


def tolerance(shape: Shape) -> int | None:
    """How many disks may be lost, whichever they are, where the verdict depends on nothing but their number; else None."""
    if isinstance(shape.members, int) and shape.level is not Level.RAID10:
        geometry = _geometry(shape)
        enough = [bool(lib.rl_geometry_enough(geometry, bytes(k) + b"\1" * (shape.members - k))) for k in range(shape.members + 1)]
        return enough.index(False) - 1
    if shape.disks > TABLE_DISKS_MAX:
        return None
    table = lost_sets(shape)
    for bears in range(shape.disks):
        some = itertools.combinations(range(shape.disks), bears + 1)
        verdicts = {is_lost(table, sum(1 << disk for disk in lost)) for lost in some}
        if verdicts != {False}:
            return bears if verdicts == {True} else None
    return None


def is_lost(table: bytes, lost: int) -> bool:
    """What a table says of a set."""
    return bool(table[lost >> 3] >> (lost & 7) & 1)


def verdict(shape: Shape) -> dict[str, Any]:
    """disks, and tolerance or lost_sets, as System takes them. UsageError for a shape that neither can tell of."""
    number = tolerance(shape)
    if number is not None:
        return {"disks": shape.disks, "tolerance": number}
    return {"disks": shape.disks, "lost_sets": lost_sets(shape)}
