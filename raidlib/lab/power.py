"""Every state in which a power cut can leave members, from the record of what was written to them.

    before = [device.fork() for device in devices]          # when the recorder was given to the members above them, or cleared
    ...                                                     # writes, flushes
    for state in lab.power_cuts(lab.History(before, recorder)):
        members = state.devices()                           # in memory: forks of one another

WHAT IS LEGAL. A device keeps what was written before a flush that it has answered with success. Of what came later any part may be there:
each piece of the medium holds its durable content or that of any one write since, whatever the other pieces hold. A write that began
after another one of the same piece had ended stands over it in the device's cache, but each of the two, or none, may have reached the
medium; those that overlap in time may have come in either order, also where a flush has made one of them durable. A piece is `unit` bytes
long (4096; 512 where writes can be torn inside that), or shorter where writes begin and end inside. A request that failed, or has not
ended, was not flushed.

WHICH ARE GIVEN. For each moment at which something changes: all combinations while at most `cap` pieces are open; else none, all, each
single one, all but one, and `samples` more, by the seed; of these `most`, if they are too many. States of equal content have equal keys,
on whatever way they were come by.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..member import MemoryDevice
from ..model import SECTOR
from .devices import Entry, Recorder

_ZEROS = bytes(SECTOR)
NEVER = 1 << 63  # when a request ends that failed, or that has not ended


class Piece(NamedTuple):
    """A part of a member that is there as a whole or not at all. Bytes."""

    member: int
    offset: int
    length: int


class Version(NamedTuple):
    """What a piece may hold: the content that a write gave it, or (begun 0) the one that it had."""

    begun: int
    ended: int
    data: bytes
    mark: int  # of the data, in their place


def mark_of(member: int, offset: int, data: bytes) -> int:
    """128 bits that stand for the content of a place: the marks of several places are XORed. Zeros have none."""
    mark = 0
    for at in range(0, len(data), SECTOR):
        sector = data[at : at + SECTOR]
        if sector != _ZEROS:
            place = (member << 64 | (offset + at)).to_bytes(16, "little")
            mark ^= int.from_bytes(hashlib.blake2b(sector, digest_size=16, salt=place).digest(), "little")
    return mark


def key_of(devices: Sequence[MemoryDevice]) -> int:
    """The key of members as they are, which are read whole for it."""
    return _xor(mark_of(number, 0, device.handle.pread(device.size, 0)) for number, device in enumerate(devices))


def _xor(marks: Iterable[int]) -> int:
    result = 0
    for mark in marks:
        result ^= mark
    return result


class History:
    """What was written to members since a moment, and what they held at it. `key`: of what they held, if it is known."""

    def __init__(self, before: Sequence[MemoryDevice], record: Recorder | Iterable[tuple[Entry, bytes]], key: int | None = None) -> None:
        if isinstance(record, Recorder):
            record = [(entry, record.data(entry.index) if entry.op == "write" else b"") for entry in record.entries()]
        self.before = list(before)
        self.record = list(record)
        self.key = key_of(before) if key is None else key
        self._bounds: list[set[int]] = [set() for _ in before]  # where writes begin and end
        for entry, _data in self.record:
            if entry.op == "write":
                if entry.offset % SECTOR or entry.length % SECTOR:
                    raise UsageError(f"a write of {entry.length} bytes at byte {entry.offset} is not one of whole sectors")
                self._bounds[entry.device] |= {entry.offset, entry.offset + entry.length}

    def events(self) -> dict[int, int]:
        """Moment -> number of the entry, in order, of what changes something: a write that begins, a flush that has succeeded."""
        moments = {entry.begun if entry.op == "write" else _end(entry): n for n, (entry, _data) in enumerate(self.record)}
        return {moment: moments[moment] for moment in sorted(moments) if moment < NEVER}

    def pieces(self, entry: Entry, unit: int) -> Iterator[Piece]:
        """The pieces that a write consists of."""
        end = entry.offset + entry.length
        cuts = {at for at in self._bounds[entry.device] if entry.offset <= at <= end}
        cuts |= set(range(-(-entry.offset // unit) * unit, end, unit))
        for first, last in itertools.pairwise(sorted(cuts)):
            yield Piece(entry.device, first, last - first)


def _end(entry: Entry) -> int:
    return NEVER if entry.ended is None or entry.errno else entry.ended


class Medium:
    """The members on their way through a history: what is durable, and what may be there besides."""

    def __init__(self, history: History, unit: int) -> None:
        if unit < SECTOR or unit % SECTOR:
            raise UsageError(f"a unit of {unit} bytes is not one of whole sectors")
        self.history, self.unit = history, unit
        self.images = [device.fork() for device in history.before]  # what is durable
        self.key = history.key  # of the images
        self.steps = 0  # so many; -1: closed
        self._there: dict[Piece, Version] = {}  # what the images hold of the open pieces
        self._may: dict[Piece, list[Version]] = {}

    def close(self) -> None:
        """Lets the images go."""
        self.steps = -1
        for image in self.images:
            image.close()

    def step(self, number: int) -> None:
        """The next event: a write begins, or a flush has succeeded."""
        entry, data = self.history.record[number]
        self.steps += 1
        if entry.op == "write":
            for piece in self.history.pieces(entry, self.unit):
                part = data[piece.offset - entry.offset :][: piece.length]
                if piece not in self._may:
                    held = self.images[piece.member].handle.pread(piece.length, piece.offset)
                    self._there[piece] = Version(0, 0, held, mark_of(piece.member, piece.offset, held))
                    self._may[piece] = [self._there[piece]]
                self._may[piece].append(Version(entry.begun, _end(entry), part, mark_of(piece.member, piece.offset, part)))
            return
        for piece in [piece for piece in self._may if piece.member == entry.device]:
            self._settle(piece, entry.begun)

    def _settle(self, piece: Piece, flushed: int) -> None:
        """What ended before the flush began and was not superseded is durable; where several are, one of them."""
        settled = [version for version in self._may[piece] if version.ended < flushed]
        last_begun = max((version.begun for version in settled), default=0)
        kept = [version for version in settled if version.ended >= last_begun]
        self._may[piece] = kept + [version for version in self._may[piece] if version.ended >= flushed]
        if len(self._may[piece]) == 1:
            there, now = self._there.pop(piece), self._may.pop(piece)[0]
            if now.mark != there.mark:
                self.images[piece.member].handle.pwrite(now.data, piece.offset)
                self.key ^= there.mark ^ now.mark

    def open_pieces(self) -> list[tuple[Piece, Version, list[Version]]]:
        """The pieces that may hold several things, in order: what the image holds, and what they may hold, each content once."""
        found = []
        for piece in sorted(self._may):
            contents = {version.mark: version for version in reversed(self._may[piece])}  # the earliest of each
            there = self._there[piece]
            if len(contents) > 1 or there.mark not in contents:
                found.append((piece, there, list(reversed(contents.values()))))
        return found


class State:
    """Members as a power cut may have left them. `devices()` before the next state is asked for.

    arrived: how many pieces hold something else than what is durable.
    """

    def __init__(self, medium: Medium, moment: int, choice: int, key: int, changes: list[tuple[Piece, bytes]]) -> None:
        self.moment, self.unit, self.choice, self.key = moment, medium.unit, choice, key
        self.arrived = len(changes)
        self._medium, self._steps, self._changes = medium, medium.steps, changes

    def devices(self) -> list[MemoryDevice]:
        """The members, the caller's to close."""
        if self._steps != self._medium.steps:
            raise UsageError("the power cuts have gone on to a later moment: a state's devices are to be asked for before the next state")
        devices = [image.fork() for image in self._medium.images]
        for piece, data in self._changes:
            devices[piece.member].handle.pwrite(data, piece.offset)
        return devices


def _choices(radices: Sequence[int], cap: int, samples: int, most: int | None, seed: str) -> Iterable[tuple[int, ...]]:
    """For each piece the number of what it holds."""
    if len(radices) <= cap or math.prod(radices) <= 2**cap:
        return itertools.product(*map(range, radices))
    draw, none, last = random.Random(seed), (0,) * len(radices), tuple(radix - 1 for radix in radices)
    chosen = [none, last]
    for number in range(len(radices)):
        chosen.append((*none[:number], last[number], *none[number + 1 :]))
        chosen.append((*last[:number], 0, *last[number + 1 :]))
    chosen += [tuple(draw.randrange(radix) for radix in radices) for _ in range(samples)]
    return chosen if most is None or most >= len(chosen) else draw.sample(chosen, most)


def _state(medium: Medium, moment: int, pieces: list[tuple[Piece, Version, list[Version]]], digits: Sequence[int]) -> State:
    choice, weight, key, changes = 0, 1, medium.key, []
    for (piece, there, versions), digit in zip(pieces, digits, strict=True):
        choice, weight = choice + digit * weight, weight * len(versions)
        if versions[digit].mark != there.mark:
            key ^= there.mark ^ versions[digit].mark
            changes.append((piece, versions[digit].data))
    return State(medium, moment, choice, key, changes)


def power_cuts(
    history: History,
    unit: int = 4096,
    *,
    cap: int = 6,
    samples: int = 16,
    most: int | None = None,
    seed: int = 0,
    also: Iterable[int] = (),
) -> Iterator[State]:
    """The states after a cut at each moment (a number of the recorder's sequence, 0: before all), in order; some may be given twice.

    also: further moments, at which nothing changes but, to the caller, what must hold.
    """
    medium = Medium(history, unit)
    events = history.events()
    try:
        for moment in sorted({0, *also, *events}):
            if moment in events:
                medium.step(events[moment])
            pieces = medium.open_pieces()
            radices = [len(versions) for _piece, _there, versions in pieces]
            for digits in _choices(radices, cap, samples, most, f"{seed}/{unit}/{moment}"):
                yield _state(medium, moment, pieces, digits)
    finally:
        medium.close()


def state_at(history: History, moment: int, unit: int, choice: int) -> list[MemoryDevice]:
    """The members of one state, by its numbers."""
    medium = Medium(history, unit)
    try:
        for at, number in history.events().items():
            if at <= moment:
                medium.step(number)
        pieces, digits = medium.open_pieces(), []
        for _piece, _there, versions in pieces:
            choice, digit = divmod(choice, len(versions))
            digits.append(digit)
        if choice:
            raise UsageError(f"there is no such choice at moment {moment}")
        return _state(medium, moment, pieces, digits).devices()
    finally:
        medium.close()
