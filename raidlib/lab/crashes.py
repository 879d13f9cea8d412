"""Workloads on arrays whose power is cut at every moment, each legal state judged; and one such state again, by its name.

    tally = lab.campaign("5", "resync", states=20_000)
    print(tally.violations)                        # [Violation(name="5:resync:0:sl:31:4096:5", problem="…")]
    for line in lab.replay("5:resync:0:sl:31:4096:5").story:
        print(line)

THE NAME OF A STATE: level, policy, seed, workload (`-`: nothing was done), then moment, unit and choice of the cut; after a second cut,
inside the recovery, those three of it as well. Of a state that is judged by its name everything is judged: each slot is left out in turn.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Iterator

from ..engine import Clock
from ..errors import RefusedError, UsageError
from ..member import EngineDevice, MemoryDevice
from . import session
from .devices import FaultyDevice, Recorder
from .power import History, State, key_of, power_cuts, state_at
from .session import Session
from .verdicts import Outcome, broken, restart, write_hole
from .workloads import OPERATIONS, POLICIES, SHAPES, Promise, Run, exhaustive, sampled

UNITS = (4096, 512)
TORN_MOST = 16  # states of each moment with writes torn at 512 bytes
NESTED_OF = 16  # one state in so many has the power cut again in its recovery
NESTED_MOST = 12  # states judged of each such recovery
VIOLATIONS_MAX = 20  # a campaign ends with so many


@dataclasses.dataclass(frozen=True)
class Violation:
    """A state, by its name, that breaks what was promised."""

    name: str
    problem: str

    @property
    def command(self) -> str:
        """What replays it."""
        return f"raidlib drill --replay power:{self.name}"


@dataclasses.dataclass
class Tally:
    """What a campaign has seen of a level and policy. States: distinct ones, by what their members hold."""

    level: str
    policy: str
    words: int = 0
    moments: int = 0  # at which the power was cut
    generated: int = 0  # states, those that were come by twice included
    distinct: int = 0
    nested: int = 0  # of these, after a second cut inside the recovery
    refused: int = 0  # of the distinct, as they should be: dirty and degraded
    refused_without: int = 0  # of the rest, once a member was lost as well
    write_holes: int = 0  # of both, where --force would have lost what was flushed
    violations: list[Violation] = dataclasses.field(default_factory=list)
    seconds: float = 0.0  # of processor time
    digest: str = ""  # of all states, in the order in which they were judged

    @property
    def rate(self) -> float:
        """States judged in a second of one core."""
        return self.distinct / self.seconds if self.seconds else 0.0


class _Judge:
    """Judges each state once under each promise; what a restart makes of it is asked of the engine once."""

    def __init__(self, tally: Tally, thorough: bool) -> None:
        self.tally, self.thorough = tally, thorough
        self._outcomes: dict[int, Outcome] = {}
        self._promises: dict[Promise, int] = {}
        self._judged: set[tuple[int, int]] = set()
        self._holes: set[int] = set()
        self._digest = hashlib.blake2b(digest_size=16)

    def knows(self, key: int) -> bool:
        """Whether that state was seen."""
        return key in self._outcomes

    def look(self, run: Run, key: int, make: Callable[[], list[MemoryDevice]], promise: Promise, name: str, nested: bool) -> None:
        """One state, new or not."""
        judged = (key, self._promises.setdefault(promise, len(self._promises)))
        if judged in self._judged:
            return
        self._judged.add(judged)
        tally, outcome = self.tally, self._outcomes.get(key)
        if outcome is None:
            outcome = self._outcomes[key] = restart(run.level, run.contents, make, key, thorough=self.thorough)
            self._digest.update(key.to_bytes(16, "little"))
            tally.distinct += 1
            tally.nested += nested
            tally.refused += outcome.refused
            tally.refused_without += outcome.refused_without
        if key not in self._holes and write_hole(outcome, promise):
            self._holes.add(key)
            tally.write_holes += 1
        if problem := broken(outcome, promise):
            tally.violations.append(Violation(name, problem))

    def digest(self) -> str:
        """Of all states so far."""
        return self._digest.hexdigest()


def _name(run: Run, *cuts: State) -> str:
    numbers = [f"{state.moment}:{state.unit}:{state.choice:x}" for state in cuts]
    return ":".join([run.level, run.policy, str(run.seed), run.word or "-", *numbers])


def _cuts(run: Run) -> Iterator[State]:
    for unit in UNITS:
        moments = {operation.ended for operation in run.operations} if unit == UNITS[0] else set()
        yield from power_cuts(run.history, unit, most=None if unit == UNITS[0] else TORN_MOST, seed=run.seed, also=moments)


def recovery_of(devices: list[MemoryDevice], key: int) -> History | None:
    """What a restart and its recovery write to members, from the opening to the end of the close; None: it is refused."""
    recorder, forks = Recorder("64M"), [device.fork() for device in devices]
    recorded = [FaultyDevice(fork, recorder=recorder) for fork in forks]
    try:
        with Session.start(recorded, Clock(session.WALL_S + 500), run=True) as array:
            array.recover()
        return History(devices, recorder, key)
    except RefusedError:
        return None
    finally:
        _close((*recorded, *forks))
        recorder.close()


def _spread(judge: _Judge, states: Iterable[State], most: int, seed: str) -> set[int]:
    """Keys of at most so many states that are new, from as many moments as there are: a second of one only after the first of each.

    The first of a moment is the one in which least has arrived: what came last stands there before what came earlier.
    """
    moments: dict[int, dict[int, int]] = {}
    seen: set[int] = set()
    for state in states:
        if state.key not in seen and not judge.knows(state.key):
            seen.add(state.key)
            moments.setdefault(state.moment, {})[state.key] = state.arrived
    draw, ranked = random.Random(seed), []
    for arrived in moments.values():
        keys = draw.sample(list(arrived), len(arrived))
        first = min(keys, key=arrived.__getitem__)
        keys.remove(first)
        keys.insert(0, first)
        ranked += [(rank, draw.random(), key) for rank, key in enumerate(keys)]
    return {key for _rank, _lot, key in sorted(ranked)[:most]}


def _look_inside(judge: _Judge, run: Run, state: State, promise: Promise) -> None:
    """The power is cut again in the recovery of a state."""
    devices = state.devices()
    try:
        history = recovery_of(devices, state.key)
        if history is None:
            return
        for unit in UNITS:
            chosen = _spread(judge, power_cuts(history, unit, most=TORN_MOST), NESTED_MOST // len(UNITS), f"{state.key}/{unit}")
            for inner in power_cuts(history, unit, most=TORN_MOST):
                judge.tally.generated += 1
                if inner.key in chosen:
                    judge.look(run, inner.key, inner.devices, promise, _name(run, state, inner), nested=True)
    finally:
        _close(devices)


def _look_at(judge: _Judge, run: Run, most: int | None) -> None:
    """The states of one workload; of the new ones `most`."""
    tally, promises = judge.tally, dict[int, Promise]()
    chosen = None if most is None else _spread(judge, _cuts(run), most, f"{run.seed}/{run.word}")
    for state in _cuts(run):
        tally.generated += 1
        if state.moment not in promises:
            promises[state.moment] = run.promise(state.moment)
        first = not judge.knows(state.key)
        if first and chosen is not None and state.key not in chosen:
            continue
        judge.look(run, state.key, state.devices, promises[state.moment], _name(run, state), nested=False)
        if first and state.key % NESTED_OF == 0:
            _look_inside(judge, run, state, promises[state.moment])
        if len(tally.violations) >= VIOLATIONS_MAX:
            break
    tally.words += 1
    tally.moments += len(promises)


def campaign(
    level: str,
    policy: str = "resync",
    *,
    states: int = 20_000,
    seed: int = 0,
    longest: int = 2,
    most: int | None = None,
    progress: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Judges all states of all workloads of up to `longest` operations, then those of longer ones until there are so many distinct states.

    most: of each workload judge only so many states that are new, by the seed: a campaign that is short, and yet of all workloads.
    """
    if level not in SHAPES or policy not in POLICIES:
        raise UsageError(f"level {level!r} with policy {policy!r} is not known; levels {', '.join(SHAPES)}, policies {', '.join(POLICIES)}")
    tally, began = Tally(level, policy), time.process_time()
    judge = _Judge(tally, thorough=most is None)
    words = exhaustive(longest)
    for place, word in enumerate(itertools.chain(words, sampled(seed, longest + 1))):
        if (place >= len(words) and tally.distinct >= states) or len(tally.violations) >= VIOLATIONS_MAX:
            break
        _look_at(judge, Run(level, policy, seed, word), most)
        tally.seconds, tally.digest = time.process_time() - began, judge.digest()
        progress(tally)
    return tally


def campaigns(
    pairs: Iterable[tuple[str, str]], states: int, processes: int = 1, *, seed: int = 0, most: int | None = None
) -> Iterator[Tally]:
    """One campaign for each (level, policy), `states` in all, in processes of their own; in the order of the pairs."""
    listed = list(pairs)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        each = -(-states // len(listed))
        tasks = [pool.submit(campaign, level, policy, states=each, seed=seed, most=most) for level, policy in listed]
        for task in tasks:
            yield task.result()


# -- one state again


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What was found again. `problem`: what is broken; empty: nothing. `story`: line by line, for people."""

    name: str
    problem: str
    outcome: Outcome
    promise: Promise
    story: list[str]


def replay(name: str) -> Replayed:
    """Judges the one state of that name again, all of it."""
    parts = name.split(":")
    try:
        level, policy, seed, word = parts[0], parts[1], int(parts[2]), parts[3].replace("-", "")
        numbers = [(int(m), int(u), int(c, 16)) for m, u, c in zip(parts[4::3], parts[5::3], parts[6::3], strict=True)]
    except (ValueError, IndexError):
        level, policy, word, seed, numbers = "", "", "", 0, []
    if level not in SHAPES or policy not in POLICIES or set(word) - set(OPERATIONS) or not 1 <= len(numbers) <= 2:
        raise UsageError(f"{name!r} is not the name of a state, as in 5:resync:0:sl:31:4096:5")
    run = Run(level, policy, seed, word)
    promise, devices = run.promise(numbers[0][0]), _members_at(run, numbers, name)
    try:
        outcome = restart(level, run.contents, lambda: [device.fork() for device in devices], key_of(devices), thorough=True)
    finally:
        _close(devices)
    problem = broken(outcome, promise)
    return Replayed(name, problem, outcome, promise, _story(run, numbers, outcome, problem))


def _members_at(run: Run, numbers: list[tuple[int, int, int]], name: str) -> list[MemoryDevice]:
    devices = state_at(run.history, *numbers[0])
    if len(numbers) == 1:
        return devices
    try:
        history = recovery_of(devices, key_of(devices))
        if history is None:
            raise UsageError(f"{name!r}: after the first cut the array is refused; there is no recovery to be cut")
        return state_at(history, *numbers[1])
    finally:
        _close(devices)


def _close(devices: Iterable[EngineDevice]) -> None:
    for device in devices:
        device.close()


def _story(run: Run, numbers: list[tuple[int, int, int]], outcome: Outcome, problem: str) -> list[str]:
    lines = [f"level {run.level} of {SHAPES[run.level].members} members, policy {run.policy}, seed {run.seed}"]
    for done in run.operations:
        what = OPERATIONS.get(done.letter, "the array is closed")
        where = f", write {done.write}: {done.sectors} sectors from {done.first} on" if done.write else ""
        who = f", member {done.out if done.out is not None else done.back}" if done.out is not None or done.back is not None else ""
        lines.append(f"{done.begun:5} to {done.ended:5}  {what}{where}{who}")
    lines.append(f"cut at {numbers[0][0]}" + (f", and at {numbers[1][0]} of the recovery" if len(numbers) > 1 else ""))
    lines.append("refused: dirty and degraded" if outcome.refused else f"started with members {sorted(outcome.good)} as good")
    lines.append(f"BROKEN: {problem}" if problem else "as promised")
    return lines
