"""Devices that fail by a plan, and a record of all that was written.

    device = lab.FaultyDevice(raidlib.MemoryDevice("64M"), seed=7, rules=[lab.Rule("error", on="write", after=100, times=1)])
    with raidlib.create([device, *others], level=5) as array:
        ...
    print(device.counts())                      # [Counts(reached=431, hit=1, active=True)]

A faulty device is a member like any other, in C: what it does to a request costs no Python. One seed and one sequence of requests give
one outcome.
"""

from __future__ import annotations

import enum
import errno as _errno
import os
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from ..engine import BlockDevice, MemberHandle, check, ffi, lib
from ..errors import UsageError
from ..member import EngineDevice, Member
from ..model import parse_size

__all__ = ["Counts", "Entry", "Fault", "FaultyDevice", "Recorder", "Rule"]

Request = Literal["read", "write", "flush", "probe"]
_REQUESTS: dict[Request, int] = {
    "read": lib.RL_FAULT_ON_READ,
    "write": lib.RL_FAULT_ON_WRITE,
    "flush": lib.RL_FAULT_ON_FLUSH,
    "probe": lib.RL_FAULT_ON_PROBE,
}


class Fault(enum.StrEnum):
    """What can be done to a request."""

    ERROR = "error"  # nothing is done, the caller is told `errno`
    SHORT = "short"  # a part of a read or write is done, then `errno`
    DELAY = "delay"  # it is done `delay_ms` later
    HANG = "hang"  # it is done once the device is released; for the array not to wait for ever, open it with `deadline=`
    FLIP = "flip"  # a read gives, or a write leaves, one wrong bit in each sector of the range, the same one each time
    LOST = "lost"  # a write or flush is not done
    MISDIRECTED = "misdirected"  # a read or write goes `shift_sectors` further
    TORN = "torn"  # of a write some sectors (or pieces of `bytes`) arrive
    GONE = "gone"  # the device is away from then on, until the rule is removed


# The engine's number of a fault, and the requests that it can be done to.
_FAULTS: dict[Fault, tuple[int, tuple[Request, ...]]] = {
    Fault.ERROR: (lib.RL_FAULT_ERROR, ("read", "write", "flush", "probe")),
    Fault.SHORT: (lib.RL_FAULT_SHORT, ("read", "write")),
    Fault.DELAY: (lib.RL_FAULT_DELAY, ("read", "write", "flush", "probe")),
    Fault.HANG: (lib.RL_FAULT_HANG, ("read", "write", "flush", "probe")),
    Fault.FLIP: (lib.RL_FAULT_FLIP, ("read", "write")),
    Fault.LOST: (lib.RL_FAULT_LOST, ("write", "flush")),
    Fault.MISDIRECTED: (lib.RL_FAULT_MISDIRECTED, ("read", "write")),
    Fault.TORN: (lib.RL_FAULT_TORN, ("write",)),
    Fault.GONE: (lib.RL_FAULT_GONE, ("read", "write", "flush", "probe")),
}


class Rule(msgspec.Struct, frozen=True):
    """One line of a plan. `Rule("torn", first_sector=2048, sectors=8, probability=0.5)`, `Rule("error", on="flush", times=1)`.

    on: the requests it is for; None: all that the fault can be done to, for `flip` and with until_written reads alone. first_sector,
    sectors: only reads and writes that touch this range of the device (sectors 0: all). after: so many of those pass first. times: it is
    done so often at most (0: no limit). errno: what the caller is told; None: EIO for `error` and `short`, success for `lost`, `torn` and
    `misdirected`. bytes: how much of a short request is done (None: some sectors, by the seed); into pieces of how much a write is torn
    (None: sectors). until_written: a sector of the range that was written whole since is good again: with it an `error` on reads is a
    latent one, and a `flip` is rot.
    """

    fault: Fault | str
    on: Request | tuple[Request, ...] | None = None
    first_sector: int = 0
    sectors: int = 0
    after: int = 0
    times: int = 0
    probability: float = 1.0
    errno: int | None = None
    delay_ms: int = 0
    bytes: int | None = None
    shift_sectors: int = 0
    until_written: bool = False


class Counts(msgspec.Struct, frozen=True):
    """How often a rule was reached by a request of its kind and range, and how often it did something to one."""

    reached: int
    hit: int
    active: bool


class Entry(msgspec.Struct, frozen=True):
    """One write or flush as it reached a device.

    `begun` and `ended` (None: still under way) are of one sequence for all devices of the recorder: a request that began after another
    had ended is ordered by it; of requests that overlap, a crash may leave any part.
    """

    index: int
    device: int  # in the order in which the devices were given the recorder
    op: Literal["write", "flush"]
    offset: int
    length: int
    begun: int
    ended: int | None
    errno: int  # the device's answer; 0: done


class Recorder:
    """What reaches the devices that it is given to, in one order: every write with its bytes, and every flush.

    It keeps about `limit` bytes; what no longer fits makes entries() fail, for the record is not whole then.

        recorder = lab.Recorder()
        devices = [lab.FaultyDevice(raidlib.MemoryDevice("8M"), recorder=recorder) for _ in range(3)]
    """

    def __init__(self, limit: str | int = "256M") -> None:
        out = ffi.new("rl_recorder **")
        check(lib.rl_recorder_new(parse_size(limit), out))
        self._recorder = out[0]
        self._devices = 0

    def entries(self, start: int = 0) -> list[Entry]:
        """The entries from number `start` on, in the order in which they began."""
        record, result = ffi.new("struct rl_record *"), []
        for index in range(start, len(self)):
            check(lib.rl_recorder_get(self._open, index, record))
            op: Literal["write", "flush"] = "write" if record.op == lib.RL_RECORD_WRITE else "flush"
            ended = record.ended or None
            result.append(Entry(index, record.member, op, record.offset, record.length, record.begun, ended, -record.result))
        return result

    def data(self, index: int) -> bytes:
        """The bytes of a write."""
        record = ffi.new("struct rl_record *")
        check(lib.rl_recorder_get(self._open, index, record))
        data = bytearray(record.length)
        check(lib.rl_recorder_data(self._open, index, ffi.from_buffer(data), len(data), 0))
        return bytes(data)

    def apply(self, index: int, device: EngineDevice, first: int = 0, length: int | None = None) -> None:
        """Does a write once more, onto the same place of another device: all of it, or `length` bytes from its byte `first` on."""
        if length is None:
            record = ffi.new("struct rl_record *")
            check(lib.rl_recorder_get(self._open, index, record))
            length = record.length - first
        check(lib.rl_recorder_apply(self._open, index, device.handle.pointer, length, first))

    def clear(self) -> None:
        """Forgets what was recorded; BusyError while a request is under way."""
        check(lib.rl_recorder_clear(self._open))

    def close(self) -> None:
        """Lets the record go; BusyError while a device has it. Again is harmless."""
        if self._recorder is not None:
            check(lib.rl_recorder_free(self._recorder))
            self._recorder = None

    def __len__(self) -> int:
        return check(lib.rl_recorder_count(self._open))

    @property
    def _open(self) -> Any:
        if self._recorder is None:
            raise UsageError("the recorder is closed")
        return self._recorder

    def _attach(self) -> tuple[Any, int]:
        self._devices += 1
        return self._open, self._devices - 1


class FaultyDevice(EngineDevice):
    """A device that does to the requests for another one what its rules say.

    device: a MemoryDevice (or another device of this kind), which stays its owner's; a path, which is locked; or a BlockDevice. Rules can
    be added and removed at any time; they are asked in their order: delays and hangs add up, of the other faults the first that applies
    is done. What each has done, counts() says.

        device = lab.FaultyDevice("disk.img", seed=7, rules=[lab.Rule("flip", first_sector=4096, sectors=1)])
        number = device.add(lab.Rule("gone", after=10))
        device.remove(number)                   # and it is back
    """

    def __init__(
        self,
        device: EngineDevice | BlockDevice | str | os.PathLike[str],
        seed: int = 0,
        rules: Iterable[Rule] = (),
        *,
        recorder: Recorder | None = None,
        direct: bool = False,
    ) -> None:
        self._inner = Member.open(device, direct=direct)
        try:
            pointer, number = recorder._attach() if recorder is not None else (ffi.NULL, 0)
            super().__init__(MemberHandle.from_fault(self._inner.handle, seed % 2**64, pointer, number))
        except BaseException:
            self._inner.close()
            raise
        self._recorder = recorder  # lives as long as this
        try:
            for rule in rules:
                self.add(rule)
        except BaseException:
            self.close()
            raise

    def add(self, rule: Rule) -> int:
        """Puts a rule at the end of the plan; its number."""
        try:
            kind, possible = _FAULTS[Fault(rule.fault)]
        except ValueError:
            raise UsageError(f"fault {rule.fault!r} is not known; the faults are {', '.join(Fault)}") from None
        default: tuple[Request, ...] = ("read",) if rule.until_written or rule.fault == Fault.FLIP else possible
        requests = default if rule.on is None else (rule.on,) if isinstance(rule.on, str) else rule.on
        if not requests or set(requests) - set(possible):
            raise UsageError(f"fault {str(rule.fault)!r} can be done to {', '.join(possible)}, not to {rule.on!r}")
        fails = rule.fault in (Fault.ERROR, Fault.SHORT)
        c = ffi.new("struct rl_fault_rule *")
        try:
            c.size_of, c.kind, c.ops = ffi.sizeof("struct rl_fault_rule"), kind, sum(_REQUESTS[request] for request in set(requests))
            c.error = rule.errno if rule.errno is not None else _errno.EIO if fails else 0
            c.first_sector, c.sectors, c.after, c.times = rule.first_sector, rule.sectors, rule.after, rule.times
            c.probability, c.delay_ms, c.shift_sectors = rule.probability, rule.delay_ms, rule.shift_sectors
            c.until_written = rule.until_written
            c.bytes = lib.RL_FAULT_SEEDED if rule.bytes is None else rule.bytes
        except OverflowError as error:
            raise UsageError(f"{rule}: {error}") from None
        return check(lib.rl_fault_add(self._open, c))

    def remove(self, number: int) -> None:
        """Takes a rule out of the plan: what hangs by it goes on, what was gone by it is back. Its counts stay."""
        check(lib.rl_fault_remove(self._open, number))

    def clear(self) -> None:
        """Takes all rules out, and their counts; what hangs goes on."""
        check(lib.rl_fault_clear(self._open))

    def release(self) -> None:
        """Lets what hangs now go on; what comes later hangs again."""
        check(lib.rl_fault_release(self._open))

    def counts(self) -> list[Counts]:
        """What each rule has done, by number."""
        c, result = ffi.new("struct rl_fault_counts *"), list[Counts]()
        while lib.rl_fault_count(self._open, len(result), c) == 0:
            result.append(Counts(c.reached, c.hit, bool(c.active)))
        return result

    def close(self) -> None:
        """Lets go of what hangs, with an error, and of the device below. BusyError while an array uses it. Again is harmless."""
        super().close()
        self.handle.when_ended(self._inner.close)

    @property
    def _open(self) -> Any:
        if self.handle.pointer is None:
            raise UsageError("the device is closed")
        return self.handle.pointer
