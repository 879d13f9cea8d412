"""An array on devices of the laboratory: the production assembly and engine, on the calling thread alone, by a clock that is given.

What `Array` does besides (a service thread, jobs on threads of their own, the claim of the UUID) is left out, so that one sequence of calls
gives one sequence of requests to the members, to the bit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, cast

from .. import creation
from ..assembly import Plan, judge
from ..engine import Clock, check, ffi, lib
from ..errors import RaidError
from ..member import EngineDevice, Member, MemoryDevice, read_superblock, write_superblock
from ..model import MAX_SECTOR, SECTOR, MemberState

SUPERBLOCK = 4096  # where it lies in version 1.2. Bytes
WALL_S = 1_700_000_000  # when all that the laboratory makes was made


def judge_devices(devices: Sequence[EngineDevice | None], *, force: bool = False) -> tuple[Plan, list[int]]:
    """What the production assembly makes of the devices, and the number of each candidate's device.

    As in a folder of members, what holds no superblock yet is none.
    """
    numbers = [number for number, device in enumerate(devices) if device is not None and any(device.handle.pread(4, SUPERBLOCK))]
    members = []
    for number in numbers:
        members.append(Member.open(cast(EngineDevice, devices[number])))
        members[-1].path = f"<member {number}>"
    return judge(members, force=force), numbers


def in_sync(plan: Plan, numbers: Sequence[int]) -> dict[int, int]:
    """Slot -> number of the device in it that counts as good."""
    states = zip(plan.candidates, numbers, strict=True)
    return {c.slot: number for c, number in states if c.state is MemberState.IN_SYNC and c.slot is not None}


def device_uuid(number: int, turn: int) -> bytes:
    """A UUID for a member; turn: how often it was taken in."""
    return bytes([0xDE, 0x1C, turn, number]) * 4


def make(devices: Sequence[MemoryDevice], spec: creation.Spec, size: int) -> None:
    """The first superblocks, as production writes them; what is by chance or by the clock in them is given."""
    members = [Member.open(device) for device in devices]
    creation.write_superblocks(spec, members, size)
    for number, member in enumerate(members):
        sb = read_superblock(member)
        sb.ctime_s = sb.utime_s = WALL_S
        sb.ctime_us, sb.utime_us = 0, 1
        ffi.memmove(sb.device_uuid, device_uuid(number, 0), 16)
        write_superblock(member, sb)


class Session:
    """An open array. Devices have the numbers of their places in the list; `numbers` says which one an index of the engine is."""

    def __init__(self, plan: Plan, numbers: Sequence[int], clock: Clock, *, read_only: bool = False) -> None:
        by_member = {id(c.member): number for c, number in zip(plan.candidates, numbers, strict=True)}
        self.plan, self.clock = plan, clock
        self.numbers: list[int | None] = [by_member[id(c.member)] for c in plan.used()]
        self.handle = plan.open(read_only, clock)
        self.size = int(plan.geometry.array_sectors) * SECTOR
        self.closed = False

    @classmethod
    def start(cls, devices: Sequence[EngineDevice | None], clock: Clock, *, run: bool = False, force: bool = False) -> Session:
        """Assembles the devices; raises what the assembly refuses. run: as --run."""
        plan, numbers = judge_devices(devices, force=force)
        if plan.error is not None and not (plan.needs_run and (run or force)):
            raise plan.error
        return cls(plan, numbers, clock)

    # -- content

    def read(self) -> bytes:
        """All of it."""
        data = bytearray(self.size)
        check(lib.rl_array_pread(self.handle, ffi.from_buffer(data), self.size, 0))
        return bytes(data)

    def write(self, data: bytes, offset: int) -> None:
        """Bytes at an offset."""
        check(lib.rl_array_pwrite(self.handle, ffi.from_buffer(data), len(data), offset, lib.RL_BUFFER_STABLE))

    def flush(self) -> None:
        """What was acknowledged is durable when it returns."""
        check(lib.rl_array_flush(self.handle))

    def idle(self) -> None:
        """Nothing happens for a second: the service marks the array clean."""
        self.clock.advance(1)
        check(lib.rl_array_service(self.handle))

    # -- members

    def statuses(self) -> list[Any]:
        """Of the engine's devices, by index."""
        found = []
        for index in range(len(self.numbers)):
            status = ffi.new("struct rl_device_status *")
            check(lib.rl_array_device(self.handle, index, status))
            found.append(status)
        return found

    def in_slot(self, slot: int) -> int | None:
        """The index of the device that a slot has, a replacement not counted."""
        for index, status in enumerate(self.statuses()):
            if status.slot == slot and status.state != lib.RL_DEVICE_REPLACEMENT:
                return index
        return None

    def fail(self, slot: int) -> int | None:
        """Fails the member in a slot; its number. None: nothing is there, or the content needs it."""
        index = self.in_slot(slot)
        result = -errno.EBUSY if index is None else lib.rl_array_fail(self.handle, index)
        if result == -errno.EBUSY or index is None:
            return None
        check(result)
        return self.numbers[index]

    def add(self, device: EngineDevice, number: int, turn: int) -> int:
        """Takes a device in as a spare, as `Array.add` does; its index."""
        sb, member = ffi.new("struct rl_superblock *"), Member.open(device)
        template = next(index for index, status in enumerate(self.statuses()) if status.state == lib.RL_DEVICE_IN_SYNC)
        check(lib.rl_array_superblock(self.handle, template, sb))
        sectors = device.size // SECTOR
        at = lib.rl_superblock_sector(sb.version, sectors)
        sb.devflags = sb.corrected_reads = 0
        creation.prepare_device(sb, at, sectors - sb.data_offset)
        ffi.memmove(sb.device_uuid, device_uuid(number, turn), 16)
        index = ffi.new("uint32_t *")
        check(lib.rl_array_add(self.handle, device.handle.pointer, sb, index))
        self._number(index[0], number)
        creation.clear_badblock_log(sb, member)
        return int(index[0])

    def re_add(self, device: EngineDevice, number: int) -> bool:
        """Takes a former member back by the bitmap; False where it can come in as a spare only."""
        index = ffi.new("uint32_t *")
        sb = read_superblock(Member.open(device))
        result = lib.rl_array_readd(self.handle, device.handle.pointer, sb, ffi.NULL, 0, index)
        if result in (-errno.ENOENT, -errno.EBUSY):
            return False
        check(result)
        self._number(index[0], number)
        return True

    def set_bitmap(self, chunk: int, offset: int) -> None:
        """Gives the array a write-intent bitmap. chunk: bytes; offset: sectors from each superblock."""
        check(lib.rl_array_set_bitmap(self.handle, chunk, offset, 8))

    def _number(self, index: int, number: int) -> None:
        self.numbers += [None] * (index + 1 - len(self.numbers))
        self.numbers[index] = number

    def remove(self, number: int) -> None:
        """Lets go of a device that is out."""
        index = self.numbers.index(number)
        check(lib.rl_array_remove(self.handle, index))
        self.numbers[index] = None

    def activate(self, index: int, slot: int) -> bool:
        """Gives a spare a slot (-1: any); whether it was empty."""
        result = lib.rl_array_activate_spare(self.handle, index, slot)
        return result != -errno.ENOENT and check(result) == 0

    def replace(self, index: int, slot: int) -> bool:
        """Makes a spare the replacement of the member in a slot; False where that cannot be replaced now."""
        result = lib.rl_array_replace(self.handle, index, slot)
        return result not in (-errno.EINVAL, -errno.EBUSY) and check(result) == 0

    # -- jobs

    def run(self, kind: int, stop_after: int = 0, meanwhile: Callable[[], object] | None = None) -> int:
        """A job from its beginning to its end, or until it has asked `stop_after` times for the time; the mismatches found.

        meanwhile: what a user does at once when a recovery has filled its first slice, which is not recorded yet.
        """
        out, progress = ffi.new("rl_sync **"), ffi.new("struct rl_sync_progress *")
        check(lib.rl_sync_new(self.handle, kind, out))
        reads, todo, trouble = 0, meanwhile, list[Exception]()

        def look() -> None:  # from inside the engine, on this thread, which has no lock there
            nonlocal reads, todo
            reads += 1
            if reads == stop_after:
                lib.rl_sync_cancel(out[0])
            if todo is not None and any(s.state == lib.RL_DEVICE_REBUILDING and s.recovered_sectors for s in self.statuses()):
                do, todo = todo, None
                try:
                    do()
                except Exception as error:  # raised when the engine has come back
                    trouble.append(error)

        self.clock.on_read = look
        try:
            result = lib.rl_sync_run(out[0])
            if trouble:
                raise trouble[0]
            if result != -errno.ECANCELED or not stop_after:
                check(result)
        finally:
            self.clock.on_read = _nothing
            lib.rl_sync_progress(out[0], progress)
            lib.rl_sync_free(out[0])
        return int(progress.mismatch_count)

    def recover(self) -> None:
        """What `Array` does once it is open: spares step in, members are rebuilt, what may not agree is resynced."""
        states = [status.state for status in self.statuses()]
        for index, state in enumerate(states):
            if state == lib.RL_DEVICE_SPARE:
                self.activate(index, -1)
        if any(status.state in (lib.RL_DEVICE_REBUILDING, lib.RL_DEVICE_REPLACEMENT) for status in self.statuses()):
            self.run(lib.RL_SYNC_RECOVER)
        status = ffi.new("struct rl_array_status *")
        lib.rl_array_status(self.handle, status)
        if status.resync_sectors != MAX_SECTOR:
            self.run(lib.RL_SYNC_RESYNC)

    # -- the end

    def close(self) -> None:
        """Marks the array clean and lets the devices go; again is harmless."""
        if not self.closed:
            self.closed = True
            check(lib.rl_array_close(self.handle))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except RaidError:
            if kind is None:  # else the first trouble is the one to tell
                raise


def _nothing() -> None:
    """What is done when the time is asked for and nobody waits for that."""
