"""What becomes of members after a power cut, and whether that is what was promised.

The production assembly and engine say the first. The second is judged here, without asking them: what was written is known by its content;
parity and copies are computed anew, from the members' bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

from ..assembly import Plan
from ..engine import Clock, lib
from ..errors import NotEnoughMembersError, RefusedError
from ..member import EngineDevice, MemoryDevice
from ..model import MemberState
from . import session
from .session import Session
from .workloads import CHUNK, DATA_OFFSET, PARITY_LEVELS, SHAPES, UNKNOWN, Contents, Promise

Devices = Sequence[EngineDevice | None]


@dataclasses.dataclass
class Outcome:
    """What a restart made of a state. The `writes` say for each sector of which write it is; empty: nothing was read.

    `problem` is what is wrong whatever was promised.
    """

    writes: bytes = b""
    good: frozenset[int] = frozenset()  # members that counted as good at the restart
    beside: frozenset[int] = frozenset()  # members that did not, but do where only one of the good ones is there with them
    refused: bool = False  # dirty and degraded, on a level with parity
    without: int | None = None  # the member, a good one, that was left out in a second restart
    refused_without: bool = False  # that one
    writes_without: bytes = b""
    good_without: frozenset[int] = frozenset()
    forced: bytes = b""  # what --force gave where one of the two was refused
    problem: str = ""


# -- parity and copies, by themselves


def _tables() -> list[bytes]:
    """GF(2^8), polynomial 0x11d: tables[a][b] = a * b."""
    times_power = [bytes(range(256))]  # of 2
    for _ in range(7):
        times_power.append(bytes((x << 1 ^ (0x11D if x & 0x80 else 0)) & 0xFF for x in times_power[-1]))
    bits = [[table for bit, table in enumerate(times_power) if a >> bit & 1] for a in range(256)]
    return [bytes(functools.reduce(operator.xor, (table[b] for table in tables), 0) for b in range(256)) for tables in bits]


_TIMES = _tables()


def _inverse(a: int) -> int:
    return _TIMES[a].index(1)


def _power(exponent: int) -> int:
    value = 1
    for _ in range(exponent % 255):
        value = _TIMES[2][value]
    return value


def _coefficient(row: int, column: int) -> int:
    """DESIGN.md section 3: of a data column in a parity."""
    if row < 2:
        return _power(column) if row else 1
    shift = _power(row - 1)
    return _TIMES[1 ^ shift][_inverse(_power(-column) ^ shift)]


_COEFFICIENTS = [[_coefficient(row, column) for column in range(8)] for row in range(3)]


def disagreement(level: str, areas: Sequence[bytes | None]) -> str:
    """Where the data areas of the slots (None: not in sync) contradict each other; empty: nowhere. Levels 5, 6 and rs: left-symmetric."""
    shape = SHAPES[level]
    if level in ("1", "10"):
        groups = [range(shape.members)] if level == "1" else [range(slot, slot + 2) for slot in range(0, shape.members, 2)]
        for group in groups:
            held = {areas[slot] for slot in group if areas[slot] is not None}
            if len(held) > 1:
                return f"the copies in slots {', '.join(map(str, group))} differ"
        return ""
    if any(area is None for area in areas):
        return ""  # nothing is left over to compare with: the engine's own check has looked at what is
    for at in range(0, len(areas[0] or b""), CHUNK):
        chunks = [(area or b"")[at : at + CHUNK] for area in areas]
        n, parities = shape.members, shape.bears
        p = n - 1 if level == "4" else n - 1 - at // CHUNK % n
        data = [chunks[(p + parities + k) % n] for k in range(n - parities)]
        for row in range(parities):
            total = int.from_bytes(chunks[(p + row) % n], "little")
            for column, chunk in enumerate(data):
                total ^= int.from_bytes(chunk.translate(_TIMES[_COEFFICIENTS[row][column]]), "little")
            if total:
                return f"parity {row} of the row at byte {at} does not fit"
    return ""


# -- restarts


def _read_twice(array: Session) -> bytes:
    first = array.read()
    array.recover()
    if array.read() != first:
        raise Contradiction("what was read changed without a write: before and after the recovery")
    return first


class Contradiction(Exception):
    """Something that no power cut excuses."""


def _refused(level: str, plan: Plan) -> bool:
    return level in PARITY_LEVELS and plan.needs_force and isinstance(plan.error, RefusedError)


def _areas(devices: Devices, holders: dict[int, int], slots: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    for slot in range(slots):
        device = devices[holders[slot]] if slot in holders else None
        found.append(None if device is None else device.handle.pread(device.size - DATA_OFFSET, DATA_OFFSET))
    return found


def _after(
    level: str, devices: Devices, content: bytes, clock: Clock, pick: Callable[[list[int]], list[int]], *, run: bool = False
) -> None:
    """The array was closed after its recovery: it starts, agrees, is clean, and gives the same degraded."""
    plan, numbers = session.judge_devices(devices)
    holders = session.in_sync(plan, numbers)
    if plan.error is not None and not (plan.needs_run and run):
        raise Contradiction(f"after its recovery the array is refused: {plan.error}")
    if not plan.clean:
        raise Contradiction("after its recovery the array is not clean")
    if wrong := disagreement(level, _areas(devices, holders, SHAPES[level].members)):
        raise Contradiction(f"after the recovery {wrong}")
    for slot in pick(sorted(holders)):
        left = [c for c in plan.candidates if c.slot != slot or c.state is not MemberState.IN_SYNC]
        if not _enough(level, set(holders) - {slot}):
            continue
        fewer = dataclasses.replace(plan, candidates=left)
        by_member = [number for c, number in zip(plan.candidates, numbers, strict=True) if c in left]
        with Session(fewer, by_member, clock, read_only=True) as array:
            if array.read() != content:
                raise Contradiction(f"without slot {slot} other content is read")


def _enough(level: str, slots: set[int]) -> bool:
    if level == "1":
        return bool(slots)
    if level == "10":
        return all(slots & {slot, slot + 1} for slot in range(0, SHAPES[level].members, 2))
    return len(slots) >= SHAPES[level].members - SHAPES[level].bears


def restart(level: str, contents: Contents, make: Callable[[], list[MemoryDevice]], key: int, *, thorough: bool = False) -> Outcome:
    """Starts a state, lets it recover, looks at all of it; then once more with one of its good members lost as well.

    Which slots are left out is by its key; thorough: each one, when the degraded content is read.
    """
    outcome, clock = Outcome(), Clock(session.WALL_S + 1000)
    problem = _trouble(make(), lambda devices: _restart_whole(level, contents, devices, key, thorough, outcome, clock))
    if not problem and outcome.without is not None:
        problem = _trouble(make(), lambda devices: _restart_without(level, contents, devices, outcome, clock))
        problem = problem and f"without member {outcome.without}: {problem}"
    outcome.problem = problem
    return outcome


def _trouble(devices: list[MemoryDevice], look: Callable[[list[MemoryDevice]], None]) -> str:
    """What is raised, in words: something that no power cut excuses, be it an error of the world's or of our own."""
    try:
        look(devices)
    except Contradiction as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for device in devices:
            device.close()
    return ""


def _restart_whole(
    level: str, contents: Contents, devices: list[MemoryDevice], key: int, thorough: bool, outcome: Outcome, clock: Clock
) -> None:
    plan, numbers = session.judge_devices(devices)
    holders = session.in_sync(plan, numbers)
    outcome.good = frozenset(holders.values())
    outcome.beside = _good_beside(devices, sorted(outcome.good)[key // 65536 % len(holders)], set(numbers) - outcome.good)
    if _refused(level, plan):
        outcome.refused, outcome.forced = True, _by_force(contents, devices, clock)
        return
    if plan.error is not None:
        raise plan.error
    outcome.without = sorted(outcome.good)[key % len(holders)]
    with Session(plan, numbers, clock) as array:
        content = _read_twice(array)
        if array.run(lib.RL_SYNC_CHECK):
            raise Contradiction("after the recovery the engine's own check finds mismatches")
    outcome.writes = contents.writes_in(content)
    _after(level, devices, content, clock, lambda slots: slots if thorough else [slots[key // 256 % len(slots)]])


def _good_beside(devices: Devices, survivor: int, others: set[int]) -> frozenset[int]:
    found = set()
    for other in others:
        two = [device if number in (survivor, other) else None for number, device in enumerate(devices)]
        if other in session.in_sync(*session.judge_devices(two)).values():
            found.add(other)
    return frozenset(found)


def _by_force(contents: Contents, devices: Devices, clock: Clock) -> bytes:
    plan, numbers = session.judge_devices(devices, force=True)
    with Session(plan, numbers, clock, read_only=True) as array:
        return contents.writes_in(array.read())


def _restart_without(level: str, contents: Contents, devices: list[MemoryDevice], outcome: Outcome, clock: Clock) -> None:
    """The same members with one of those that are good lost as well."""
    left: list[MemoryDevice | None] = [None if number == outcome.without else device for number, device in enumerate(devices)]
    try:
        plan, numbers = session.judge_devices(left)
    except NotEnoughMembersError:
        outcome.without = None  # the last one with a place in the array
        return
    if isinstance(plan.error, NotEnoughMembersError):
        outcome.without = None
        return
    if _refused(level, plan):
        outcome.refused_without, outcome.forced = True, _by_force(contents, left, clock)
        return
    outcome.good_without = frozenset(session.in_sync(plan, numbers).values())
    if plan.error is not None and not plan.needs_run:
        raise plan.error
    with Session(plan, numbers, clock) as array:
        content = _read_twice(array)
    outcome.writes_without = contents.writes_in(content)
    _after(level, left, content, clock, lambda slots: [], run=True)


def broken(outcome: Outcome, promise: Promise) -> str:
    """What an outcome breaks of a promise; empty: nothing."""
    if outcome.problem:
        return outcome.problem
    back = promise.out & (outcome.good | outcome.beside)
    left = outcome.good - promise.out - {outcome.without}
    if left:  # with no survivor there, nobody knows better than those that had failed
        back |= promise.out & outcome.good_without
    if back:
        return f"member {min(back)} had failed before the cut, and came back as good"
    if outcome.refused and not promise.disturbed:
        return "refused as degraded, and no member had failed"
    without = b"" if promise.out & outcome.good_without else outcome.writes_without
    for how, writes in (("", outcome.writes), (f"without member {outcome.without} ", without)):
        if writes and (wrong := promise.broken(writes)):
            return how + _words(wrong, writes)
    wrong = [sector for sector in promise.broken(outcome.forced) if not promise.in_doubt[sector]] if outcome.forced else []
    return f"by force {_words(wrong, outcome.forced)}, and nothing was being written beside them" if wrong else ""


def write_hole(outcome: Outcome, promise: Promise) -> bool:
    """Whether --force, where it was needed, would have lost what was flushed: what a crash and a lost member do to levels with parity."""
    return bool(outcome.forced) and bool(promise.broken(outcome.forced))


def _words(sectors: list[int], writes: bytes) -> str:
    held = sorted({writes[sector] for sector in sectors})
    of = ", ".join("none" if write == UNKNOWN else str(write) for write in held)
    return f"{len(sectors)} sectors from {sectors[0]} on hold what is neither flushed nor later (of write {of})"
