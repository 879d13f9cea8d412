"""An array of a given shape on members in memory, each of which fails on demand."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import opening
from ..array import Array
from ..assembly import make_geometry
from ..engine import ffi, lib
from ..errors import BusyError, RaidError, UsageError
from ..jobs import Job
from ..member import EngineDevice, MemoryDevice
from ..model import SECTOR, Level, MemberState, State, layout_name, layout_number, parse_size
from .devices import FaultyDevice, Rule

ENDS_S = 10  # within which what hung has ended, once it is let go
METADATA_BYTES = 16 << 20  # of a member beside its data, at least; it costs no memory, which is sparse


class Shape(msgspec.Struct, frozen=True):
    """What an array is like, without its size: enough to make another one like it. layout: md's number; of rs the parities."""

    level: Level
    devices: int
    layout: int = 0
    chunk: int = 16 << 10  # bytes
    metadata: str = "1.2"

    @classmethod
    def of(
        cls,
        level: Level | int | str,
        devices: int | None = None,
        *,
        parity: int | None = None,
        layout: str | int | None = None,
        chunk: str | int = "16K",
        metadata: str = "1.2",
    ) -> Shape:
        """With the words of `create`; devices None: the fewest with which the level is itself, and one more."""
        kind = Level.parse(level)
        if kind <= 0:
            raise UsageError(f"{kind} has no redundancy: the first fault on a member is the caller's; take 1, 4, 5, 6, 10 or rs")
        if kind is Level.RS:
            number = 3 if parity is None else parity
        elif parity is not None:
            raise UsageError(f"--parity goes with level rs; {kind} has its own number of parities")
        else:
            number = layout_number(kind, layout)
        count = {Level.RAID1: 2, Level.RAID6: 5, Level.RS: number + 3}.get(kind, 4) if devices is None else devices
        shape = cls(kind, count, number, 0 if kind is Level.RAID1 else parse_size(chunk), metadata)
        if shape.tolerance == 0:
            raise UsageError(f"{kind} of {count} with this layout bears the loss of no member: there is nothing to drill")
        return shape

    @classmethod
    def parse(cls, text: str) -> Shape:
        """What str() gave."""
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        try:
            level = Level.parse(fields.pop("level"))
            devices, chunk, layout = int(fields.pop("devices")), fields.pop("chunk", "0"), fields.pop("layout", "0")
            metadata = fields.pop("metadata")
        except (KeyError, ValueError) as error:
            raise UsageError(f"{text!r} is no shape of an array ({error})") from None
        if fields:
            raise UsageError(f"{text!r} is no shape of an array: {', '.join(fields)} is not known")
        number = int(layout, 0) if layout[:1].isdecimal() else layout_number(level, layout)
        return cls(level, devices, number, parse_size(chunk), metadata)

    def __str__(self) -> str:
        parts = [f"level={str(self.level).removeprefix('raid')}", f"devices={self.devices}"]
        if self.level is not Level.RAID1:
            parts += [f"layout={layout_name(self.level, self.layout) or self.layout}", f"chunk={self.chunk}"]
        return ",".join([*parts, f"metadata={self.metadata}"])

    def geometry(self, dev_bytes: int | None = None) -> Any:
        """The engine's, for members of so many bytes of data."""
        size = (dev_bytes or self.member_bytes) // SECTOR
        return make_geometry(self.level, self.layout, self.chunk // SECTOR, self.devices, size)

    @property
    def member_bytes(self) -> int:
        """Data of each member in a drill: small, but every member has data and parity, and is read from."""
        if self.level is Level.RAID1:  # copies take turns every MiB
            return min(self.devices, 4) << 20
        rows = max(8, self.devices)
        if self.level is Level.RAID10:
            copies = (self.layout & 0xFF) * (self.layout >> 8 & 0xFF)
            rows = max(rows, (copies * copies << 20) // (self.devices * self.chunk))
        return rows * self.chunk

    @property
    def tolerance(self) -> int:
        """How many members may be lost, whichever they are."""
        g = self.geometry()
        return int(g.parity or g.copies - 1)

    def bears(self, lost: Sequence[int]) -> bool:
        """Whether all content is there without these members."""
        present = ffi.new("uint8_t[]", [slot not in lost for slot in range(lib.RL_SLOTS_MAX)])
        return bool(lib.rl_geometry_enough(self.geometry(), present))

    def too_many(self, member: int) -> list[int]:
        """The member, and the fewest others with which the level does not bear the loss."""
        others = [(member + step) % self.devices for step in range(1, self.devices)]
        for count in range(self.tolerance, self.devices):
            for more in itertools.combinations(others, count):
                if not self.bears([member, *more]):
                    return [member, *more]
        raise UsageError(f"{self} bears the loss of all members")


class Lab:
    """An array on faulty devices over members in memory. Close it, or leave the `with` block.

        with Lab(level=5, raid_devices=4, size="1M", seed=7) as lab:
            lab.devices[2].add(Rule("error", on="read", probability=0.1))
            lab.kill(1)
            ...
            lab.bring_back(1)

    size: bytes of data of each member. What else `create` takes may be given too. `devices` are the members by slot, spares after them;
    `memory` is what lies below each.
    """

    def __init__(
        self,
        *,
        level: Level | int | str,
        raid_devices: int,
        size: str | int = "1M",
        chunk: str | int | None = "16K",
        spare_devices: int = 0,
        seed: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> None:
        self.seed, self.deadline = seed, deadline
        used, chunk_bytes = parse_size(size), 0 if chunk is None else parse_size(chunk)
        if Level.parse(level) is Level.RAID1:
            chunk = None
        whole, count = used + max(METADATA_BYTES, 16 * chunk_bytes), raid_devices + spare_devices
        self._killed: dict[int, int] = {}  # the rule, by slot
        self.memory = [MemoryDevice(whole) for _ in range(count)]
        self.devices = [FaultyDevice(device, seed=seed + slot) for slot, device in enumerate(self.memory)]
        try:
            self.array: Array = opening.create(
                self.devices, level=level, size=used, chunk=chunk, raid_devices=raid_devices, spare_devices=spare_devices,
                deadline=deadline, assume_clean=True, **options,
            )  # fmt: skip
        except BaseException:
            self._close_devices()
            raise

    @classmethod
    def of(cls, shape: Shape, *, seed: int = 0, deadline: float | None = None) -> Lab:
        """One of that shape, as large as a drill wants it."""
        more: dict[str, Any] = {}
        if shape.level is Level.RS:
            more["parity"] = shape.layout
        elif shape.level in (Level.RAID5, Level.RAID6, Level.RAID10):
            more["layout"] = shape.layout
        return cls(
            level=shape.level, raid_devices=shape.devices, size=shape.member_bytes, chunk=shape.chunk or None,
            metadata=shape.metadata, seed=seed, deadline=deadline, **more,
        )  # fmt: skip

    @property
    def data_offset(self) -> int:
        """Byte of each device at which the array's data begin."""
        return opening.examine(self.memory[0]).data_offset

    def kill(self, slot: int) -> None:
        """The device is away from now on: the array finds out with the next request to it, or its heartbeat."""
        if slot not in self._killed:
            self._killed[slot] = self.devices[slot].add(Rule("gone"))

    def bring_back(self, slot: int, *, wait: bool = True) -> Job | None:
        """The device is there again, and no fault is in it. Where it was out it is re-added: the Job; None if it was not missed."""
        self.heal(slot)
        self.settle()
        state = self.state(slot)
        if state is MemberState.IN_SYNC:
            return None
        if state is MemberState.REBUILDING:  # and its job has ended: by a fault that is no more
            self.array.fail(self.devices[slot])
        job = self.array.re_add(self.devices[slot])
        if wait and job is not None:
            job.wait()
        return job

    def settle(self) -> None:
        """Waits for the job that the array has begun by itself."""
        if self.array.job is not None:
            self.array.job.join()

    def heal(self, slot: int) -> None:
        """Takes all faults out of a device. One that missed its deadline is dead to the engine: another one comes in its place."""
        self.devices[slot].clear()
        self._killed.pop(slot, None)
        if self.deadline is None:
            return
        if not self.array.closed:
            if self.state(slot) is MemberState.IN_SYNC:
                return
            with contextlib.suppress(UsageError):  # it was removed before
                self.array.remove(self.devices[slot])
        _close(self.devices[slot])
        self.devices[slot] = FaultyDevice(self.memory[slot], seed=self.seed + slot)

    def state(self, slot: int) -> MemberState:
        """What the member in a slot is to the array: REMOVED where there is none."""
        return next(m.state for m in self.array.status().members if m.slot == slot and m.state is not MemberState.REPLACEMENT)

    def reopen(self, **options: Any) -> Array:
        """Closes the array and opens it anew, of all its devices."""
        self.array.close()
        self.array = opening.open(self.devices, deadline=self.deadline, **options)
        return self.array

    def close(self) -> None:
        """Lets everything go, also what hangs. That an array which has failed cannot record its end is not told. Again is harmless."""
        for device in self.devices:
            if device.handle.pointer is not None:
                device.clear()
        failed = not self.array.closed and self.array.state is State.FAILED
        try:
            self.array.close()
        except RaidError:
            if not failed:
                raise
        finally:
            self._close_devices()

    def _close_devices(self) -> None:
        for device in [*self.devices, *self.memory]:
            _close(device)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(device: EngineDevice) -> None:
    """Closes a device from which all faults are taken, and waits until its last request has ended: nothing late reaches what lies below."""
    ended = threading.Event()
    device.close()
    device.handle.when_ended(ended.set)
    if not ended.wait(ENDS_S):
        raise BusyError(f"{device.handle.name} was let go of, and has requests that have not ended after {ENDS_S} s")
