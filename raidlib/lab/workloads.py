"""What is done to arrays before their power is cut, and what of it was promised by when.

A workload is a word of the letters in OPERATIONS. Where it writes, which member fails and where a rebuild stops is by the seed and the
place in the word: words that begin alike do the same so far.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .. import creation
from ..engine import Clock, lib
from ..member import MemoryDevice
from ..model import SECTOR
from . import session
from .devices import FaultyDevice, Recorder, Rule
from .power import History, key_of
from .session import Session

CHUNK = 4096
DATA_OFFSET = 65536
BITMAP_OFFSET = 24  # sectors from the superblock: behind the bad-block log
SPARES = 2
UNKNOWN = 255  # no write has this number


class Shape(NamedTuple):
    """A level and how large it is here."""

    members: int
    bears: int  # how many members may be lost, whichever they are
    rows: int  # chunks on each member
    parity: int | None = None  # level rs


# That of level 4 is so tall that a job does not record its progress after every slice, nor after the last.
SHAPES = {
    "1": Shape(3, 2, 16),
    "4": Shape(4, 1, 19),
    "5": Shape(4, 1, 3),
    "6": Shape(5, 2, 3),
    "10": Shape(4, 1, 3),
    "rs": Shape(5, 3, 3, parity=3),
}
PARITY_LEVELS = ("4", "5", "6", "rs")
POLICIES = ("resync", "bitmap")

OPERATIONS = {
    "s": "small write: one block",
    "l": "large write: a whole stripe and one block more",
    "o": "overlapping write: half of the block that was written last, and half of the next",
    "f": "flush",
    "x": "a member fails",
    "i": "idle: the array is marked clean",
    "r": "rebuild step: a spare comes in, into an empty slot or as a replacement, and is filled in part",
    "w": "a small write while a spare is filled, in an empty slot or in that of a member that fails now, all of it",
    "a": "re-add: the member that failed last (or one that fails now) is taken back and rebuilt, by the bitmap if there is one",
}


def exhaustive(most: int = 2) -> list[str]:
    """All words of up to so many letters."""
    return ["".join(word) for length in range(most + 1) for word in itertools.product(OPERATIONS, repeat=length)]


def sampled(seed: int, shortest: int = 3, longest: int = 8) -> Iterator[str]:
    """Longer words, without end; writes are twice as likely as the rest."""
    draw, letters = random.Random(f"{seed}/words"), "slo" + "".join(OPERATIONS)
    while True:
        yield "".join(draw.choices(letters, k=draw.randint(shortest, longest)))


class Contents:
    """What the sectors of an array are given: different for each write and sector, so that a sector says which write it is of."""

    def __init__(self, seed: int, sectors: int) -> None:
        self.seed, self.sectors = seed, sectors
        self._known: dict[bytes, tuple[int, int]] = {}

    def of(self, write: int, first: int, count: int) -> bytes:
        """The bytes that a write (0: what was there before all) gives to `count` sectors."""
        parts = []
        for sector in range(first, first + count):
            data = random.Random(f"{self.seed}/{write}/{sector}").randbytes(SECTOR)
            self._known[data] = (write, sector)
            parts.append(data)
        return b"".join(parts)

    def writes_in(self, content: bytes) -> bytes:
        """For each sector the write that it is of; UNKNOWN: it holds what was never written there."""
        found = bytearray()
        for sector in range(self.sectors):
            write, place = self._known.get(content[sector * SECTOR : (sector + 1) * SECTOR], (UNKNOWN, sector))
            found.append(write if place == sector else UNKNOWN)
        return bytes(found)


class Operation(NamedTuple):
    """One letter of a word as it was done; moments are numbers of the recorder's sequence."""

    letter: str
    begun: int
    ended: int
    write: int = 0  # the number of its write
    first: int = 0  # sector
    sectors: int = 0
    out: int | None = None  # the member that failed in it
    back: int | None = None  # the member that was taken back in it


@dataclasses.dataclass(frozen=True)
class Promise:
    """What must hold after a cut at a moment. Of each sector: the write `base[sector]`, or a later one than `flushed` up to `issued`."""

    base: bytes
    flushed: int
    issued: int
    out: frozenset[int]  # members whose failure was acknowledged
    disturbed: bool  # a member had failed or was being filled: the array may be degraded
    in_doubt: tuple[bool, ...]  # sectors in whose rows something was written and not flushed: where the write hole is

    def broken(self, writes: bytes) -> list[int]:
        """The sectors that hold what they must not."""
        if writes == self.base:
            return []
        return [s for s, w in enumerate(writes) if w != self.base[s] and not self.flushed < w <= self.issued]


class Run:
    """A workload that was run: the history of the members, and what was promised. rules: faults of members, by number."""

    def __init__(self, level: str, policy: str, seed: int, word: str, rules: Mapping[int, Iterable[Rule]] = MappingProxyType({})) -> None:
        self.level, self.policy, self.seed, self.word = level, policy, seed, word
        self.contents, before, key = prepared(level, policy, seed)
        self.operations: list[Operation] = []
        self._recorder, self._turn, self._last, self._fresh = Recorder("64M"), 0, 1, SHAPES[level].members
        self._failed: list[int] = []
        devices = [device.fork() for device in before]
        self._devices = [FaultyDevice(d, seed, rules.get(n, ()), recorder=self._recorder) for n, d in enumerate(devices)]
        self.clock = Clock(session.WALL_S)
        self.clock.advance(100)
        try:
            with Session.start(self._devices, self.clock) as array:
                for place, letter in enumerate(word):
                    self._do(array, letter, random.Random(f"{seed}/{place}/{letter}"))
                begun = self._now()
            self.operations.append(Operation("close", begun, self._now()))
            self.history = History(before, self._recorder, key)
        finally:
            for device in (*self._devices, *devices):
                device.close()
            self._recorder.close()

    def _now(self) -> int:
        count = len(self._recorder)
        return 0 if count == 0 else max(entry.ended or entry.begun for entry in self._recorder.entries(count - 1))

    def _do(self, array: Session, letter: str, draw: random.Random) -> None:
        done = Operation(letter, self._now(), 0)
        if letter in "slo":
            done = self._write(array, letter, draw, done)
        elif letter == "f":
            array.flush()
        elif letter == "i":
            array.idle()
        elif letter == "x":
            done = self._fail(array, draw, done)
        elif letter == "r":
            self._rebuild_step(array, draw)
        elif letter == "w":
            done = self._rebuild_and_write(array, draw, done)
        else:
            done = self._re_add(array, draw, done)
        self.operations.append(done._replace(ended=self._now()))

    def _write(self, array: Session, letter: str, draw: random.Random, done: Operation) -> Operation:
        block, blocks = CHUNK // SECTOR, array.size // CHUNK
        row = blocks // SHAPES[self.level].rows if self.level != "1" else 4
        if letter == "s":
            first, count = draw.randrange(blocks) * block, block
            self._last = first // block
        elif letter == "l":
            first, count = draw.randrange(blocks - row) * block, (row + 1) * block
        else:
            first, count = min(self._last * block + block // 2, (blocks - 1) * block), block
        number = 1 + sum(1 for operation in self.operations if operation.write)
        array.write(self.contents.of(number, first, count), first * SECTOR)
        return done._replace(write=number, first=first, sectors=count)

    def _fail(self, array: Session, draw: random.Random, done: Operation) -> Operation:
        failed = array.fail(draw.randrange(SHAPES[self.level].members))
        if failed is None:
            return done
        self._failed.append(failed)
        return done._replace(out=failed)

    def _rebuild_step(self, array: Session, draw: random.Random) -> None:
        if self._fresh == len(self._devices):
            return  # all spares are in
        number, self._fresh = self._fresh, self._fresh + 1
        index = array.add(self._devices[number], number, 1)
        if array.activate(index, -1) or array.replace(index, draw.randrange(SHAPES[self.level].members)):
            array.run(lib.RL_SYNC_RECOVER, stop_after=draw.randint(1, 14))

    def _rebuild_and_write(self, array: Session, draw: random.Random, done: Operation) -> Operation:
        if self._fresh == len(self._devices):
            return done
        if not self._failed:
            done = self._fail(array, draw, done)
        number, self._fresh = self._fresh, self._fresh + 1
        if array.activate(array.add(self._devices[number], number, 1), -1):
            array.run(lib.RL_SYNC_RECOVER, meanwhile=lambda: self._do(array, "s", draw))
        return done

    def _re_add(self, array: Session, draw: random.Random, done: Operation) -> Operation:
        if not self._failed:
            done = self._fail(array, draw, done)
        if not self._failed:
            return done
        number, self._turn = self._failed.pop(), self._turn + 1
        slot = array.statuses()[array.numbers.index(number)].last_slot
        array.remove(number)
        if array.re_add(self._devices[number], number) or array.activate(array.add(self._devices[number], number, self._turn), slot):
            array.run(lib.RL_SYNC_RECOVER)
        return done._replace(back=number)

    def promise(self, moment: int) -> Promise:
        """What held at a moment: what had been acknowledged by then, and what had been begun."""
        sectors = self.contents.sectors
        base, flushed, issued, row = bytearray(sectors), 0, 0, sectors // SHAPES[self.level].rows
        out, disturbed = set[int](), False
        begun = [operation for operation in self.operations if operation.begun < moment]
        for operation in begun:
            issued = max(issued, operation.write)
            disturbed |= operation.letter in "xrwa"
            if operation.back is None and operation.out is not None and operation.ended <= moment:
                out.add(operation.out)
            if operation.back is not None:
                out.discard(operation.back)
            if operation.letter in ("f", "close") and operation.ended <= moment:
                for earlier in begun[: begun.index(operation)]:
                    base[earlier.first : earlier.first + earlier.sectors] = bytes([earlier.write]) * earlier.sectors
                    flushed = max(flushed, earlier.write)
        open_writes = [operation for operation in begun if operation.write > flushed]
        rows = {sector // row for write in open_writes for sector in range(write.first, write.first + write.sectors)}
        return Promise(bytes(base), flushed, issued, frozenset(out), disturbed, tuple(sector // row in rows for sector in range(sectors)))


@functools.lru_cache(maxsize=64)
def prepared(level: str, policy: str, seed: int) -> tuple[Contents, tuple[MemoryDevice, ...], int]:
    """A clean array of the shape, full of old content, its spares beside it, and the key of all that."""
    shape = SHAPES[level]
    spec = creation.make_spec(
        level=level,
        raid_devices=shape.members,
        chunk=CHUNK,
        layout=None,
        metadata="1.2",
        name="lab:power",
        uuid=f"{seed % 2**64:032x}",
        data_offset=DATA_OFFSET,
        parity=shape.parity,
        assume_clean=True,
        bitmap="none",
        bitmap_chunk=None,
        consistency_policy=None,
    )
    size = shape.rows * CHUNK
    devices = [MemoryDevice(DATA_OFFSET + size) for _ in range(shape.members + SPARES)]
    session.make(devices[: shape.members], spec, size)
    with Session.start(devices, Clock(session.WALL_S)) as array:
        if policy == "bitmap":
            array.set_bitmap(CHUNK, BITMAP_OFFSET)
        contents = Contents(seed, array.size // SECTOR)
        array.write(contents.of(0, 0, contents.sectors), 0)
        array.flush()
        array.idle()
    return contents, tuple(devices), key_of(devices)
