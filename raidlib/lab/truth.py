"""What must be there: the content of an array after what was written and refused, and with it every byte of every member.

The codes and the map of the engine (pure functions, tested against an oracle of their own) say where bytes lie; none of the machinery that
reads and writes arrays is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..codec import RS
from ..engine import ffi, lib
from ..model import SECTOR

PAGE = 4096  # in which a check compares


class Content:
    """The bytes of an array as its user must find them.

    Of a write that was refused each sector may be the old or the new one; where reads are `stable`, until one has shown which.
    """

    def __init__(self, data: bytes, *, stable: bool = True) -> None:
        self.data, self.stable = bytearray(data), stable
        self._either: dict[int, list[bytes]] = {}  # sector -> what it may be, besides what `data` says

    def write(self, data: bytes, offset: int) -> None:
        """It was acknowledged."""
        self._merge(data, offset, acknowledged=True)
        self.data[offset : offset + len(data)] = data

    def refuse(self, data: bytes, offset: int) -> None:
        """It ended with an error."""
        self._merge(data, offset, acknowledged=False)

    def _merge(self, data: bytes, offset: int, *, acknowledged: bool) -> None:
        if acknowledged and not self._either:
            return
        for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            start = sector * SECTOR
            low, high = max(offset, start), min(offset + len(data), start + SECTOR)
            before = self._may_be(sector)
            after = [old[: low - start] + data[low - offset : high - offset] + old[high - start :] for old in before]
            if not acknowledged:
                self._either[sector] = list(dict.fromkeys(before[1:] + after))
            elif sector in self._either:  # what was not overwritten is as unknown as it was
                self._either[sector] = list(dict.fromkeys(after[1:]))
                if high - low == SECTOR:
                    del self._either[sector]

    def _may_be(self, sector: int) -> list[bytes]:
        return [bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR]), *self._either.get(sector, ())]

    def wrong(self, got: bytes, offset: int, *, elsewhere: bool = False) -> list[int]:
        """The sectors of what was read that cannot be right. elsewhere: in a copy of the array, of which the array itself knows nothing."""
        first, last = offset // SECTOR, -(-(offset + len(got)) // SECTOR)
        suspects = {sector for sector in self._either if first <= sector < last}
        for at in differing(got, self.data[offset : offset + len(got)], PAGE):
            end = min(offset + at + PAGE, offset + len(got))
            suspects |= set(range((offset + at) // SECTOR, -(-end // SECTOR)))
        found = []
        for sector in sorted(suspects):
            start = sector * SECTOR
            low, high = max(offset, start), min(offset + len(got), start + SECTOR)
            piece = got[low - offset : high - offset]
            fitting = [value for value in self._may_be(sector) if value[low - start : high - start] == piece]
            if not fitting:
                found.append(sector)
            elif sector in self._either and self.stable and not elsewhere:
                self.data[start : start + SECTOR] = fitting[0]
                self._either[sector] = fitting[1:]
                if not fitting[1:]:
                    del self._either[sector]
        return found

    def is_open(self, sector: int) -> bool:
        """Whether a sector may be one thing or the other."""
        return sector in self._either


@dataclasses.dataclass(frozen=True)
class Piece:
    """Array bytes that lie in one run: on one member, or on each of its copies."""

    offset: int
    length: int
    places: tuple[tuple[int, int], ...]  # slot, byte of the member's data


class Layout:
    """Where everything lies, by a geometry of the engine's."""

    def __init__(self, geometry: Any) -> None:
        self.geometry = geometry
        self.size = int(geometry.array_sectors) * SECTOR
        self.used = int(geometry.used_sectors) * SECTOR
        self.slots, self.chunk = int(geometry.slots), int(geometry.chunk_sectors) * SECTOR
        self.pieces = self._pieces()
        self.stripes = [self._stripe(number) for number in range(self.used // self.chunk)] if geometry.parity else []

    def _pieces(self) -> list[Piece]:
        places, run, found, sector = ffi.new("struct rl_place[]", lib.RL_SLOTS_MAX), ffi.new("uint64_t *"), [], 0
        while sector < self.geometry.array_sectors:
            count = lib.rl_geometry_locate(self.geometry, sector, places, run)
            length = min(run[0], self.geometry.array_sectors - sector)
            where = tuple((int(places[i].slot), int(places[i].sector) * SECTOR) for i in range(count))
            found.append(Piece(sector * SECTOR, length * SECTOR, where))
            sector += length
        return found

    def _stripe(self, number: int) -> tuple[list[int], int]:
        """The slots of the vector (-1: a place that is zeros), and how many of them hold data."""
        slots, position = ffi.new("int16_t[]", lib.RL_VECTOR_MAX), ffi.new("uint16_t[]", lib.RL_SLOTS_MAX)
        nd = lib.rl_geometry_stripe(self.geometry, number, slots, position)
        return [int(slots[i]) for i in range(nd + self.geometry.parity)], nd

    def owners(self, sector: int) -> list[int]:
        """The slots on which an array sector lies."""
        at = sector * SECTOR
        return next([slot for slot, _at in piece.places] for piece in self.pieces if piece.offset <= at < piece.offset + piece.length)

    def sectors_on(self, slot: int) -> set[int]:
        """The array sectors of which this member has a copy."""
        runs = [(p.offset // SECTOR, p.length // SECTOR) for p in self.pieces if slot in (s for s, _at in p.places)]
        return {first + i for first, count in runs for i in range(count)}

    def members(self, content: bytes | bytearray) -> list[bytearray]:
        """The data of every member, with that content."""
        images = [bytearray(self.used) for _ in range(self.slots)]
        for piece in self.pieces:
            for slot, at in piece.places:
                images[slot][at : at + piece.length] = content[piece.offset : piece.offset + piece.length]
        for number in range(len(self.stripes)):
            slots, nd = self.stripes[number]
            for slot, parity in zip(slots[nd:], self._parity(number, images), strict=True):
                images[slot][number * self.chunk : (number + 1) * self.chunk] = parity
        return images

    def _parity(self, number: int, images: Sequence[bytes | bytearray]) -> list[bytearray]:
        slots, nd = self.stripes[number]
        start, end = number * self.chunk, (number + 1) * self.chunk
        data = [bytes(self.chunk) if slot < 0 else bytes(images[slot][start:end]) for slot in slots[:nd]]
        parity = [bytearray(self.chunk) for _ in slots[nd:]]
        RS(nd, len(parity)).encode(data, parity)
        return parity

    def disagreeing(self, images: Sequence[bytes | bytearray]) -> set[int]:
        """The pages in which parity or copies do not agree, by their first sector, counted as a check does."""
        found = set()
        for number, (slots, nd) in enumerate(self.stripes):
            start = number * self.chunk
            for slot, parity in zip(slots[nd:], self._parity(number, images), strict=True):
                found |= {(start + at) // SECTOR for at in differing(images[slot][start : start + self.chunk], parity, PAGE)}
        for piece in self.pieces if not self.stripes else ():
            (first, at), *others = piece.places
            one = images[first][at : at + piece.length]
            for slot, other_at in others:
                found |= {(piece.offset + at) // SECTOR for at in differing(one, images[slot][other_at : other_at + piece.length], PAGE)}
        return found

    def page_of(self, slot: int, at: int) -> int:
        """The page, as `disagreeing` names it, that a byte of a member's data is compared in."""
        if self.stripes:
            return at // PAGE * PAGE // SECTOR
        for piece in self.pieces:
            for other, start in piece.places:
                if other == slot and start <= at < start + piece.length:
                    return (piece.offset + (at - start) // PAGE * PAGE) // SECTOR
        return -1  # an unused tail

    def is_data(self, slot: int, at: int) -> bool:
        """Whether a byte of a member's data is content, and not parity."""
        if not self.stripes:
            return True
        slots, nd = self.stripes[at // self.chunk]
        return slot in slots[:nd]


def differing(one: bytes | bytearray, other: bytes | bytearray, unit: int) -> list[int]:
    """The offsets of the units in which two equally long buffers differ."""
    if one == other:
        return []
    return [at for at in range(0, len(one), unit) if one[at : at + unit] != other[at : at + unit]]
