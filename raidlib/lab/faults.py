"""The fault matrix: every kind of fault on every member of an array, and what the array makes of it, judged.

A case is one array in memory (rig.py), one kind of fault on one member, and a workload, all of it by one seed and named by one string: the
string replays it. What was promised is judged by the content (truth.py), byte for byte:

  loud faults, within the redundancy: no error to the caller, no wrong byte; a member that hangs is out in time, one whose flush failed is
    out before the flush counts; in the end, after repair and re-add, every byte of every member is what it must be, and the array can do
    without any others that its level bears the loss of.
  loud faults, beyond it (on the fewest members that the level does not bear to lose): errors, and what is read without one is right.
  silent faults: what PROMISES says, and no more; within the redundancy only.
"""

from __future__ import annotations

import dataclasses
import errno
import random
from collections.abc import Callable
from typing import ClassVar, Literal

import msgspec

from ..errors import UsageError
from ..model import Level
from .devices import Request, Rule
from .rig import Shape
from .truth import PAGE

DEADLINE_S = 0.25  # of members in cases with silence
SLACK_S = 1.0  # a call may take so much longer
SPACE_S = 10.0  # an array that found no space goes on by itself so soon after there is some (it looks once a second)
MEDIUM_ERRORS = (errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Reach = Literal["within", "beyond"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a plan may put its faults: sectors of the member that hold data of the array. full: nothing is to be spared."""

    first: int
    sectors: int
    full: bool

    def span(self, rng: random.Random, most: int | None = None) -> tuple[int, int]:
        """A part of it: first sector, sectors. At most so many, or from a quarter on."""
        if self.full:
            return self.first, self.sectors
        length = rng.randint(1, most) if most else rng.randint(self.sectors // 4, self.sectors)
        return self.first + rng.randrange(self.sectors - length + 1), length


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault. rules: the plan for one member. on: the requests that it strikes. member: what may become of the member."""

    what: str
    on: Request
    rules: Callable[[random.Random, Place], list[Rule]]
    member: Literal["stays", "leaves", "stays or leaves"] = "stays or leaves"
    silent: bool = False
    hangs: bool = False  # it is opened with a deadline
    waits: bool = False  # a case is mostly waiting


def _often(rng: random.Random, place: Place) -> dict[str, float | int]:
    """How often it strikes; with `full` always."""
    if place.full:
        return {}
    return {"probability": rng.choice([1.0, 0.5, 0.2]), "after": rng.randrange(4), "times": rng.choice([0, 1, 3])}


def _failing(fault: str, on: Request, errors: tuple[int, ...] = MEDIUM_ERRORS) -> Callable[[random.Random, Place], list[Rule]]:
    def rules(rng: random.Random, place: Place) -> list[Rule]:
        first, sectors = place.span(rng)
        tear = rng.choice([None, PAGE]) if fault == "torn" else None
        return [
            Rule(fault, on, first, sectors, errno=rng.choice(errors), bytes=tear, **_often(rng, place))  # type: ignore[arg-type]
        ]

    return rules


def _until_written(fault: str) -> Callable[[random.Random, Place], list[Rule]]:
    def rules(rng: random.Random, place: Place) -> list[Rule]:
        first, sectors = place.span(rng, 64)
        return [Rule(fault, "read", first, sectors, until_written=True)]

    return rules


def _few(fault: str, on: Request) -> Callable[[random.Random, Place], list[Rule]]:
    """Silent ones, a few times, inside the data."""

    def rules(rng: random.Random, place: Place) -> list[Rule]:
        shift = rng.choice([8, 32, 128, 9]) if fault == "misdirected" else 0
        tear = rng.choice([None, PAGE]) if fault == "torn" else None
        # a misdirected request ends inside the data too: how long it is at most, nobody knows here
        room = place.sectors - (place.sectors // 2 if shift else 0)
        first, sectors = Place(place.first, room, False).span(rng)
        times, after = rng.randint(1, 4), rng.randrange(4)
        return [Rule(fault, on, first, sectors, after=after, times=times, bytes=tear, shift_sectors=shift)]

    return rules


def _on(fault: str, on: Request | tuple[Request, ...], **more: int) -> Callable[[random.Random, Place], list[Rule]]:
    def rules(rng: random.Random, place: Place) -> list[Rule]:
        return [Rule(fault, on, after=0 if place.full else rng.randrange(3), **more)]  # type: ignore[arg-type]

    return rules


def _flushes(rng: random.Random, place: Place) -> list[Rule]:
    """One fails, so that it is seen whether the array takes note of that one; or all."""
    return [Rule("error", "flush", after=0 if place.full else rng.randrange(3), times=0 if place.full else rng.randrange(2))]


def _slow(rng: random.Random, _place: Place) -> list[Rule]:
    return [Rule("delay", ("read", "write", "flush"), probability=0.3, delay_ms=rng.randint(1, 3))]


_late = _on("delay", ("read", "write"), delay_ms=round(DEADLINE_S * 2500), times=1)

KINDS: dict[str, Kind] = {
    "read-error": Kind("reads fail, now and then or always", "read", _failing("error", "read")),
    "latent": Kind("sectors cannot be read until they are written", "read", _until_written("error"), "stays"),
    "short-read": Kind("reads end early, with an error", "read", _failing("short", "read")),
    "write-error": Kind("writes fail, now and then or always", "write", _failing("error", "write", (*MEDIUM_ERRORS, errno.ETIMEDOUT))),
    "short-write": Kind("writes end early, with an error", "write", _failing("short", "write")),
    "torn-write": Kind("of a write some sectors or blocks arrive, with an error", "write", _failing("torn", "write")),
    "flush-error": Kind("a flush fails", "flush", _flushes, "leaves"),
    "no-space": Kind("the file system below is full", "write", _failing("error", "write", NO_SPACE), "stays", waits=True),
    "delay": Kind("it is slow", "read", _slow, "stays"),
    "late": Kind("it answers after its deadline", "write", _late, "leaves", hangs=True),
    "hang-read": Kind("a read is never answered", "read", _on("hang", "read"), "leaves", hangs=True),
    "hang-write": Kind("a write is never answered", "write", _on("hang", "write"), "leaves", hangs=True),
    "hang-flush": Kind("a flush is never answered", "flush", _on("hang", "flush"), "leaves", hangs=True),
    "gone": Kind("it disappears, and returns later", "write", _on("gone", ("read", "write", "flush")), "leaves"),
    "flip-read": Kind("a read gives wrong bytes", "read", _few("flip", "read"), silent=True),
    "misdirected-read": Kind("a read gives another place's bytes", "read", _few("misdirected", "read"), silent=True),
    "rot": Kind("sectors rot: they read wrong until they are written", "read", _until_written("flip"), silent=True),
    "flip-write": Kind("a write leaves wrong bytes", "write", _few("flip", "write"), silent=True),
    "lost-write": Kind("a write is acknowledged and lost", "write", _few("lost", "write"), silent=True),
    "misdirected-write": Kind("a write goes to another place", "write", _few("misdirected", "write"), silent=True),
    "torn-silent": Kind("of a write some sectors or blocks arrive, without an error", "write", _few("torn", "write"), silent=True),
    "lying-flush": Kind("a flush is acknowledged and not done", "flush", _on("lost", "flush"), silent=True),
}


@dataclasses.dataclass(frozen=True)
class Promise:
    """What holds of a silent fault, for as long as there are no checksums.

    reads: whether what the faulty member holds can be read wrong (never anything else). located: a check names the member. mended: a repair
    gives back what the member alone had wrong; else redundancy and data agree after it, and what was wrong on the member may stay wrong. A
    check finds every page that does not agree, always.
    """

    reads: Literal["right", "may be wrong"]
    located: bool
    mended: bool
    why: str


_ONE_PARITY = "one parity says that something is wrong, not where: a repair goes by the data"
_TWO_COPIES = "of two copies none is known to be the right one: a repair goes by the first"
_SYNDROMES = "two and more parities name the block that lies, and give it back"
_MAJORITY = "the copies that agree outvote the one that does not"
_MISREAD = "what was computed from a wrong read is written: parity, or the edges of a block; nobody can tell later that the read was wrong"
_POWER = "nothing is lost while there is power; what a power cut takes is not seen here"
REDUNDANCY = {"two copies": _TWO_COPIES, "three copies": _MAJORITY, "one parity": _ONE_PARITY, "two parities": _SYNDROMES}


def _at_rest(redundancy: str) -> Promise:
    tells = redundancy in ("three copies", "two parities")
    return Promise("may be wrong", located=tells, mended=tells, why=REDUNDANCY[redundancy])


# kind -> redundancy (redundancy_of) -> what is promised
PROMISES: dict[str, dict[str, Promise]] = {
    **{
        kind: {redundancy: _at_rest(redundancy) for redundancy in REDUNDANCY}
        for kind in ("rot", "flip-write", "lost-write", "misdirected-write", "torn-silent")
    },
    **{
        kind: {r: Promise("may be wrong", located=r in ("three copies", "two parities"), mended=False, why=_MISREAD) for r in REDUNDANCY}
        for kind in ("flip-read", "misdirected-read")
    },
    "lying-flush": {redundancy: Promise("right", located=False, mended=True, why=_POWER) for redundancy in REDUNDANCY},
}


def redundancy_of(shape: Shape) -> str:
    """The column of PROMISES."""
    if shape.level in (Level.RAID1, Level.RAID10):
        return "two copies" if shape.tolerance == 1 else "three copies"
    return "one parity" if shape.tolerance == 1 else "two parities"


# --- Cases ------------------------------------------------------------------------------------------------------------


class Case(msgspec.Struct, frozen=True):
    """One case; str() is what replays it."""

    shape: Shape
    kind: str
    member: int
    seed: int
    reach: Reach = "within"

    PREFIX: ClassVar[str] = "fault"

    def __str__(self) -> str:
        return f"{self.PREFIX}:{self.shape}:{self.kind}:{self.reach}:{self.member}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """What str() gave."""
        parts = text.split(":")
        if len(parts) != 6 or parts[0] != cls.PREFIX or not (parts[4].isdecimal() and parts[5].isdecimal()):
            raise UsageError(f"{text!r} is no fault case; it looks like fault:SHAPE:KIND:within|beyond:MEMBER:SEED")
        shape, kind, reach = Shape.parse(parts[1]), parts[2], parts[3]
        if kind not in KINDS or reach not in ("within", "beyond"):
            raise UsageError(f"{text!r} is no fault case: {kind} {reach} is not known")
        if int(parts[4]) >= shape.devices:
            raise UsageError(f"{text!r}: there is no member {parts[4]}")
        return cls(shape, kind, int(parts[4]), int(parts[5]), reach)  # type: ignore[arg-type]


def kinds_of(words: str) -> list[str]:
    """The kinds that "all", or names with commas between them, mean."""
    names = list(KINDS) if words == "all" else [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in KINDS:
            raise UsageError(f"fault {name!r} is not known; the faults are {', '.join(KINDS)}, or all")
    if not names:
        raise UsageError(f"no fault is named; the faults are {', '.join(KINDS)}, or all")
    return names


def reaches_of(kind: str) -> tuple[Reach, ...]:
    """Beyond the redundancy nothing is promised of silent faults, and nothing is asked of slow members."""
    return ("within",) if KINDS[kind].silent or kind == "delay" else ("within", "beyond")


def cases(shape: Shape, kinds: list[str], first_seed: int, seeds: int) -> list[Case]:
    """The matrix: every kind on every member, so many seeds, within and beyond the redundancy."""
    return [
        Case(shape, kind, member, seed, reach)
        for kind in kinds
        for reach in reaches_of(kind)
        for member in range(shape.devices)
        for seed in range(first_seed, first_seed + seeds)
    ]


def waits(case: Case) -> bool:
    """Whether it is mostly waiting, so that others should run beside it."""
    return KINDS[case.kind].hangs or KINDS[case.kind].waits
