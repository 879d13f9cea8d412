"""What came of the cases of a drill, one by one and as a table. Every campaign speaks in these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..model import Struct

BROKEN = "promise broken"


class Outcome(Struct, frozen=True):
    """What came of a case. violations: the promises that were broken, in words; none: all were kept."""

    case: str  # what replays it
    fault: str
    reach: str  # within the redundancy, or beyond
    injected: int  # faults that were planned
    hit: int  # requests that they struck
    outcome: str
    violations: list[str] = []
    wrong_sectors: int = 0  # that were read wrong, where that was not excluded
    story: list[str] = []  # what happened, for people
    slow: bool = False  # what was broken hangs on time: a machine under load can do that too
    seconds: float = 0.0


class Row(Struct, frozen=True):
    """All cases with one kind of fault."""

    fault: str
    reach: str
    cases: int
    injected: int
    hit: int
    outcomes: dict[str, int]  # how many cases ended in which way


class Report(Struct, frozen=True):
    """A drill: its table, and the cases that somebody has to look at."""

    shape: str
    cases: int
    injected: int
    hit: int
    rows: list[Row]
    broken: list[Outcome]
    unhit: list[Outcome]  # cases that say nothing: their fault struck nothing
    repeated: list[Outcome]  # cases that were slow beside others, and were run again alone: what came of them then is in the table
    wrong_cases: int  # in which wrong bytes were read that no level notices without checksums
    seconds: float

    @property
    def held(self) -> bool:
        """Whether every promise was kept in every case, and every case says something."""
        return not self.broken and not self.unhit


def report(shape: str, outcomes: Iterable[Outcome], seconds: float, repeated: Iterable[Outcome] = ()) -> Report:
    """The table of outcomes, in the order in which their kinds come."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    every = list(outcomes)
    for outcome in every:
        row = rows.setdefault((outcome.fault, outcome.reach), {"cases": 0, "injected": 0, "hit": 0, "outcomes": {}})
        row["cases"] += 1
        row["injected"] += outcome.injected
        row["hit"] += outcome.hit
        row["outcomes"][outcome.outcome] = row["outcomes"].get(outcome.outcome, 0) + 1
    return Report(
        shape=shape,
        cases=len(every),
        injected=sum(o.injected for o in every),
        hit=sum(o.hit for o in every),
        rows=[Row(fault=fault, reach=reach, **row) for (fault, reach), row in rows.items()],
        broken=[o for o in every if o.violations],
        unhit=[o for o in every if not o.violations and not o.hit],
        repeated=list(repeated),
        wrong_cases=sum(bool(o.wrong_sectors) and not o.violations for o in every),
        seconds=seconds,
    )


class Task(msgspec.Struct, frozen=True):
    """A case that is to be run. waits: it is mostly waiting, and others should run beside it."""

    case: str
    waits: bool = False
