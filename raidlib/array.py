"""An open array: used, mended, watched. The engine moves the bytes; here is decided."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import bitmap, creation, incoming, report, runtime
from .advice import advise, advise_tree, files_may_lose
from .assembly import DEVICE_STATES, Plan
from .engine import MemberHandle, buffer_of, check, event_of, ffi, last_error, lib
from .errors import BusyError, RaidError, ReadOnlyError, UnsupportedError, UsageError, from_errno
from .holders import OwnLock
from .jobs import Job
from .member import (
    VERSIONS,
    Member,
    MemberSource,
    close_all,
    uuid_text,
)
from .model import (
    MAX_SECTOR,
    SECTOR,
    Event,
    Level,
    MemberStatus,
    State,
    Status,
    TakenBack,
    format_size,
    layout_name,
    parse_size,
)
from .rawfile import RawArray

NOT_YET = "not known yet"


class Array:
    """An open array. Safe to use from many threads; close it, or leave the `with` block. Offsets and lengths are bytes."""

    def __init__(self, judged: Plan, read_only: bool, held: runtime.Claim | None = None, deadline: float | None = None) -> None:
        sb = judged.freshest.sb
        self.read_only, self.deadline = read_only, deadline
        self.notes: list[str] = list(judged.notes)
        self._sb, self._geometry = sb, judged.geometry
        self._used = judged.used()
        self._left_out = [c for c in judged.candidates if not c.used]
        self._left_out_places = [(c.member.path, c.member.real_path) for c in self._left_out]
        self._set_aside = judged.set_aside
        self._members: list[Member | None] = [c.member for c in self._used]
        self._taken_back: dict[int, TakenBack] = {}
        self._bitmap_at_rest = report.bitmap_at_rest(self._used) if read_only else None
        self._gate = threading.Condition()
        self._calls, self._closed, self._started = 0, False, time.time()
        self._admin = OwnLock("the array")
        self._job: Job | None = None
        self._speed = (1 << 20, 0)
        self._service: threading.Thread | None = None
        self._open_member: Callable[..., Member] = Member.open  # add(): a member by its name
        self._outer = ""  # the array that this one is a member of: its UUID, or NOT_YET
        self.claim = held
        self._own_claim = None if read_only or held else runtime.claim(self.uuid)
        try:
            self._handle = judged.open(read_only)
        except BaseException:
            if self._own_claim is not None:
                self._own_claim.release()
            raise
        if self._own_claim is not None:
            self.claim = self._own_claim
            self._publish()
        for _path, array in self.arrays:
            array._join(self.uuid)
        for candidate in self._left_out:
            candidate.member.close()

    def _start(self) -> None:  # the service thread, and the job that the array was left with
        if self.read_only:
            return
        self._service = threading.Thread(target=self._serve, name="raidlib service", daemon=True)
        self._service.start()
        with self._admin:
            self._use_spare()

    def _serve(self) -> None:
        """The service thread: in the engine, but when a member failed and a spare is there, or a resync became due."""
        while lib.rl_array_run(self._handle) == 1:  # not from this thread, for which close() waits
            threading.Thread(target=self._fill_slots, name="raidlib act", daemon=True).start()

    def _fill_slots(self) -> None:
        with contextlib.suppress(RaidError), self._admin:  # closed meanwhile; or the next failure, or the status, will tell
            self._use_spare()

    # -- what it is

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return int(self._geometry.array_sectors) * SECTOR

    @property
    def block_size(self) -> int:
        """Requests that are multiples of it need no read of their edges."""
        with self._use() as handle:
            return int(lib.rl_array_block_bytes(handle))

    @property
    def level(self) -> Level:
        """An IntEnum: equal to md's number."""
        return Level(self._sb.level)

    @property
    def layout(self) -> str | None:
        """The layout's name, None where the level has none."""
        return layout_name(self._sb.level, self._sb.layout)

    @property
    def chunk_size(self) -> int:
        """Bytes; 0 for raid1."""
        return int(self._sb.chunk_sectors) * SECTOR

    @property
    def raid_devices(self) -> int:
        """Number of slots."""
        return int(self._sb.raid_disks)

    @property
    def uuid(self) -> str:
        """As mdadm prints it."""
        return uuid_text(bytes(ffi.buffer(self._sb.set_uuid)))

    @property
    def name(self) -> str:
        """`homehost:name`."""
        return bytes(ffi.string(self._sb.set_name)).decode(errors="replace")

    @property
    def state(self) -> State:
        """As in `status()`."""
        return self.status().state

    @property
    def closed(self) -> bool:
        """Whether close() was called; and in a forked child, where the array is not open."""
        return self._closed or self._admin.forked

    @property
    def job(self) -> Job | None:
        """The job that runs, or the last one that ran."""
        return self._job

    # -- I/O

    @contextlib.contextmanager
    def _use(self) -> Iterator[Any]:
        """The engine's handle, which close() does not take away meanwhile."""
        self._admin.check()
        with self._gate:
            if self._closed:
                raise UsageError("the array is closed", errno=errno.EBADF)
            self._calls += 1
        try:
            yield self._handle
        finally:
            with self._gate:
                self._calls -= 1
                self._gate.notify_all()

    def pread(self, length: int, offset: int) -> bytes:
        """Exactly `length` bytes from `offset` on, whatever members are lost, as long as the level bears it."""
        if length < 0 or offset < 0 or offset + length > self.size:
            raise UsageError(f"{length} bytes at {offset} are not inside the array, which has {self.size}")
        # a bytes object that nobody else has yet may be filled in place, which saves a copy; the short ones are shared by the interpreter
        data: Any = bytes(length) if length > 1 else bytearray(length)
        with self._use() as handle:
            check(lib.rl_array_pread(handle, ffi.from_buffer("char[]", data), length, offset))
        return data if length > 1 else bytes(data)

    def preadinto(self, buffer: Any, offset: int) -> int:
        """Fills a writable buffer from `offset` on; its length in bytes."""
        view = buffer_of(buffer, writable=True)
        if offset < 0:
            raise UsageError(f"offset {offset} is negative")
        with self._use() as handle:
            check(lib.rl_array_pread(handle, view, len(view), offset))
        return len(view)

    def pwrite(self, buffer: Any, offset: int) -> int:
        """Writes a bytes-like object at `offset`; its length. Returns when all members in use have it (flush makes it durable)."""
        view = buffer_of(buffer)
        self._refuse_if_member()
        if offset < 0:
            raise UsageError(f"offset {offset} is negative")
        with self._use() as handle:
            check(lib.rl_array_pwrite(handle, view, len(view), offset, lib.RL_BUFFER_STABLE if isinstance(buffer, bytes) else 0))
        return len(view)

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""
        with self._use() as handle:
            check(lib.rl_array_flush(handle))

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; the members keep its space."""
        self._zero(offset, length, 0)

    def discard(self, offset: int, length: int) -> None:
        """The content of the range is not needed any more: it reads as zeros, and whole stripes give their space back where members can."""
        self._zero(offset, length, lib.RL_ZERO_DISCARD)

    def _zero(self, offset: int, length: int, flags: int) -> None:
        if offset < 0 or length < 0:
            raise UsageError(f"{length} bytes at {offset} are no range")
        self._refuse_if_member()
        with self._use() as handle:
            check(lib.rl_array_zero(handle, length, offset, flags))

    def raw(self) -> RawArray:
        """The array as a seekable binary file, unbuffered; wrap it in io.BufferedRandom at will. Closing it does not close the array."""
        return RawArray(self)

    def block_ops(self) -> tuple[int, int]:
        """Addresses of the engine's handle and of its table of block operations, for a door in C; good until close()."""
        self._refuse_if_member()
        with self._use() as handle:
            return int(ffi.cast("uintptr_t", handle)), int(ffi.cast("uintptr_t", lib.rl_array_block_ops()))

    # -- as a member of another array (nesting.py)

    def as_member(self, *, read_only: bool = False, path: str = "", owned: bool = False, exclusive: bool = True) -> Member:
        """Its content as a member of another array, which has it to itself, as long as that is open. owned: which closes it, too.

        path: what the member is called; else the folder of this array's members, or its UUID.
        """
        if self.read_only and not read_only:
            raise ReadOnlyError(f"array {self.name or self.uuid} is open read-only; it can be a member of a read-only array only")
        with self._admin, self._use() as handle:
            if exclusive:
                self._refuse_if_member()
            name = path or self.folder or self.uuid
            member = Member(MemberHandle.from_array(handle, name), name, read_only=read_only, array=self, owned=owned, exclusive=exclusive)
            member.direct = any(m.direct for m in self._members if m is not None)
            if exclusive:
                self._outer = NOT_YET
            return member

    def own(self, inner: list[Array]) -> None:
        """Those of its members that are these arrays are closed with it."""
        for opened in self._members:
            if opened is not None and opened.array in inner:
                opened.owned = True

    def let_go(self) -> None:
        """What had it as a member has it no more."""
        self._join("")

    def _join(self, outer: str) -> None:
        self._outer = outer
        if self._own_claim is not None and not self._closed:
            self._publish()

    def _publish(self) -> None:
        if self._own_claim is not None:
            info = {"uuid": self.uuid, "name": self.name, "outer": self._outer, **self.places()}
            self._own_claim.publish(runtime.Info(pid=os.getpid(), started=self._started, **info))

    def _refuse_if_member(self) -> None:
        if self._outer:
            raise BusyError(f"array {self.name or self.uuid} is a member of another array ({self._outer}): use that one, or close it first")

    @property
    def folder(self) -> str:
        """The one folder that all members lie in, as they were named; else empty."""
        folders = {os.path.dirname(m.path) or "." for m in self._members if m is not None}
        real = all(m is None or os.path.exists(m.path) for m in self._members)
        return folders.pop() if real and len(folders) == 1 else ""

    @property
    def outer(self) -> str:
        """The UUID of the array that this one is a member of, while that is open here; else empty."""
        return self._outer

    @property
    def arrays(self) -> list[tuple[str, Array]]:
        """The members that are arrays themselves, by their names."""
        return [(m.path, m.array) for m in self._members if m is not None and m.array is not None]

    def _inner_with(self, member: int | MemberSource) -> Array | None:
        """The inner array, at whatever depth, that has this member. A slot, and a member of its own, mean this array."""
        if isinstance(member, int) or member == "faulty" or any(m is not None and self._is(m, member) for m in self._members):
            return None
        for _path, array in self.arrays:
            if any(m is not None and array._is(m, member) for m in array._members) or array._inner_with(member) is not None:
                return array
        return None

    # -- members

    def places(self) -> dict[str, Any]:
        """Where the array lies, for its record in the run-time folder: its members' names, set aside or not, and what these stand for."""
        opened = [(c.path, c.real_path) for c in self._members if c is not None]
        others = [(m.path, os.path.abspath(m.path)) for m in self._set_aside] + self._left_out_places
        return {"members": [path for path, _real in opened + others], "real_members": [real for _path, real in opened + others]}

    def _devices(self) -> list[tuple[int, Any]]:
        found = []
        with self._use() as handle:
            for index in range(len(self._members)):
                status = ffi.new("struct rl_device_status *")
                check(lib.rl_array_device(handle, index, status))
                found.append((index, status))
        return found

    def _find(self, member: int | MemberSource) -> int:
        """The engine's index of a path's device, or of a slot's: the one in it, or else the last that failed in it."""
        there = [(index, status, opened) for index, status in self._devices() if (opened := self._members[index]) is not None]
        if not isinstance(member, int):
            hits = [index for index, _status, opened in there if self._is(opened, member)]
            if not hits:
                names = ", ".join(opened.path for _index, _status, opened in there)
                raise UsageError(f"{member} is not a member of the array; its members are {names}", members=[str(member)])
            return hits[-1]
        hits = [index for index, status, _opened in there if status.last_slot == member]
        hits += [index for index, status, _opened in there if status.slot == member and status.state != lib.RL_DEVICE_REPLACEMENT]
        if not hits:
            raise UsageError(f"slot {member} has no member (slots go from 0 to {self.raid_devices - 1})")
        return hits[-1]

    @staticmethod
    def _is(opened: Member, source: MemberSource) -> bool:
        if not isinstance(source, (str, os.PathLike)):
            return opened._device is source or opened.array is source
        return os.path.abspath(opened.path) == os.path.abspath(source) or opened.real_path == os.path.realpath(source)

    def fail(self, member: int | MemberSource) -> None:
        """Marks a member (by slot or by path) as faulty: it is out, and the others' superblocks say so.

        Refused where content would be lost. The path of a member of an inner array is failed there; so it is for remove and replace.
        """
        if (inner := self._inner_with(member)) is not None:
            inner.fail(member)
            return
        with self._admin:
            index = self._find(member)
            with self._use() as handle:
                check(lib.rl_array_fail(handle, index))
            if self._job is not None and not self._job.done and self._job.kind == "recovery" and not self._rebuilding():
                self._job.resume()
                self._job.join()  # it ends at its next slice: what it was for is gone
            self._use_spare()

    def remove(self, member: int | MemberSource) -> list[str]:
        """Lets go of a faulty member or a spare, or of all that are "faulty"; their paths."""
        if (inner := self._inner_with(member)) is not None:
            return inner.remove(member)
        with self._admin:
            faulty = [index for index, status in self._devices() if status.state == lib.RL_DEVICE_FAULTY]
            wanted = faulty if member == "faulty" else [self._find(member)]
            paths = []
            for index in wanted:
                with self._use() as handle:
                    check(lib.rl_array_remove(handle, index))
                opened, self._members[index] = self._members[index], None
                if opened is not None:
                    paths.append(opened.path)
                    opened.close()
            return paths

    def add(self, member: MemberSource | Member, *, force: bool = False) -> Job | None:
        """Takes a new member in. Where a slot is empty, its rebuild starts: the Job; else it is a spare: None.

        What it holds is overwritten; a member of another array only with force. One that has failed in an inner array goes back there. A
        former member of this array comes back as by re_add(), as with mdadm.
        """
        if not isinstance(member, Member) and (inner := self._inner_with(member)) is not None:
            return inner.add(member, force=force)
        with self._admin:
            self._take_in(self._open_new(member), force)
            return self._use_spare()

    def re_add(self, member: MemberSource | Member) -> Job | None:
        """Takes a former member of this array back, into its old slot where that is empty.

        With a write-intent bitmap that reaches back so far only what was written meanwhile is copied; else all of it is rebuilt. Which it
        was, and how much, is in the member's status (`taken_back`).
        """
        if not isinstance(member, Member) and (inner := self._inner_with(member)) is not None:
            return inner.re_add(member)
        with self._admin:
            opened = self._open_new(member)
            try:
                slot = incoming.slot_of(incoming.former(opened, self.uuid))
            except BaseException:
                opened.close()
                raise
            index = self._take_in(opened, force=False)
            if slot is not None and not self._taken_back[index].by_bitmap:
                with self._use() as handle:
                    result = lib.rl_array_activate_spare(handle, index, slot)
                if result != -errno.ENOENT:  # it is taken: then any other
                    check(result)
            return self._use_spare()

    def _take_in(self, opened: Member, force: bool) -> int:
        """Takes a former member back by the bitmap, or makes a new one a spare; or closes it. Its index."""
        back = None
        try:
            own = incoming.refuse_foreign(opened, self.uuid, force)
            with self._use() as handle:
                index = None
                if incoming.slot_of(own) is not None:
                    index, back = self._back_by_bitmap(handle, opened, own)
                if index is None:
                    index = self._as_spare(handle, opened)
        except BaseException:
            opened.close()
            raise
        self._members[index] = opened
        if back is not None:
            self._taken_back[index] = back
        source = opened.path if opened._device is None else opened._device
        self._left_out = [c for c in self._left_out if not self._is(c.member, source)]
        return index

    def _back_by_bitmap(self, handle: Any, opened: Member, own: Any) -> tuple[int | None, TakenBack]:
        """Its index, None where it can be a spare only."""
        result, index = incoming.back_by_bitmap(handle, opened, own)
        total = int(self._geometry.dev_sectors) * SECTOR
        if result in (-errno.ENOENT, -errno.EBUSY, -errno.EINVAL):
            return None, report.taken_back(total, None, last_error()[2])
        problem = None if result == 0 else from_errno(-result, last_error()[2])
        self._count_devices(handle)
        if problem is not None:
            raise problem
        return index, report.taken_back(total, report.bitmap_of(handle), "")

    def _as_spare(self, handle: Any, opened: Member) -> int:
        like, index = ffi.new("struct rl_superblock *"), ffi.new("uint32_t *")
        template = next(i for i, s in self._devices() if s.state == lib.RL_DEVICE_IN_SYNC)
        check(lib.rl_array_superblock(handle, template, like))
        sb = incoming.new_superblock(opened, like, self._geometry.dev_sectors)
        result = lib.rl_array_add(handle, opened.handle.pointer, sb, index)
        problem = None if result == 0 else from_errno(-result, last_error()[2])
        self._count_devices(handle)
        if problem is not None:
            raise problem
        creation.clear_badblock_log(sb, opened)
        return int(index[0])

    def _count_devices(self, handle: Any) -> None:
        """The number of one that could not be written is used up, too."""
        status = ffi.new("struct rl_array_status *")
        lib.rl_array_status(handle, status)
        self._members += [None] * (status.device_count - len(self._members))

    def _open_new(self, member: MemberSource | Member) -> Member:
        if self.read_only:
            if isinstance(member, Member):
                member.close()
            raise ReadOnlyError("the array is open read-only")
        if isinstance(member, Member):
            return member
        for opened in self._members:
            if opened is not None and self._is(opened, member):
                state = next(s.state for i, s in self._devices() if self._members[i] is opened)
                if state != lib.RL_DEVICE_FAULTY:
                    raise BusyError(f"{opened.path} is in the array already", members=[opened.path])
                self.remove(member)  # the same place again: what lies there now is a new member
        if isinstance(member, (str, os.PathLike)) and not os.path.exists(member):
            size = max(m.size for m in self._members if m is not None)
            raise UsageError(
                f"{member} does not exist; `truncate -s {size} {member}` makes a file of the others' size", members=[str(member)]
            )
        return self._open_member(member, direct=any(m.direct for m in self._members if m is not None), deadline=self.deadline)

    def replace(self, member: int | MemberSource, new: MemberSource | Member, *, force: bool = False) -> Job | None:
        """Fills `new` (a new member, or a spare of the array) from `member`, which stays in service meanwhile.

        At the end that is faulty ("replaced"). Returns the job that does it, or the one that runs before it.
        """
        if (inner := self._inner_with(member)) is not None:
            return inner.replace(member, new, force=force)
        with self._admin:
            try:
                slot = self._replaceable(member)
            except BaseException:
                if isinstance(new, Member):
                    new.close()
                raise
            spare = self._spare_of(new)
            index = self._take_in(self._open_new(new), force) if spare is None else spare
            with self._use() as handle:
                check(lib.rl_array_replace(handle, index, slot))
            return self._next_job()

    def _replaceable(self, member: int | MemberSource) -> int:
        """The slot of a member that may be replaced now."""
        if self.read_only:
            raise ReadOnlyError("the array is open read-only")
        if self.level <= 0:
            raise UsageError(f"{self.level} has no redundancy: no member of it can be replaced while it is in use")
        if self._sb.version == 90:
            raise UnsupportedError("a superblock of version 0.90 cannot record a replacement: `fail` the member and `add` the new one")
        index = self._find(member)
        status, opened = dict(self._devices())[index], self._members[index]
        path = opened.path if opened is not None else str(member)
        if status.state != lib.RL_DEVICE_IN_SYNC:
            words = str(DEVICE_STATES[status.state]).replace("_", " ")
            raise UsageError(
                f"{path} is {words}: only a member that is in sync can be replaced; `add` a new one where a slot is empty", members=[path]
            )
        for other, second in self._devices():
            if second.slot == status.slot and second.state == lib.RL_DEVICE_REPLACEMENT:
                by = self._members[other]
                raise BusyError(f"{path} is being replaced already, by {by.path if by is not None else 'another'}", members=[path])
        return int(status.slot)

    def _spare_of(self, new: MemberSource | Member) -> int | None:
        """The index of a spare that is in the array already."""
        for index, status in self._devices():
            opened = self._members[index]
            if status.state == lib.RL_DEVICE_SPARE and opened is not None and not isinstance(new, Member) and self._is(opened, new):
                return index
        return None

    # -- the write-intent bitmap

    def set_bitmap(self, kind: str, *, chunk: str | int | None = None) -> None:
        """Gives the array a write-intent bitmap ("internal"), or takes it away ("none"), while it is in use. chunk: bytes of a region."""
        if kind not in ("internal", "none"):
            raise UsageError(f"bitmap {kind!r} is neither internal nor none")
        if kind == "none" and chunk is not None:
            raise UsageError("--bitmap-chunk goes with --bitmap internal")
        if self.read_only:
            raise ReadOnlyError("the array is open read-only")
        bitmap.refuse_level(self.level)
        with self._admin, self._use() as handle:
            there = report.bitmap_of(handle)
            if kind == "none":
                if there is None:
                    raise UsageError("the array has no write-intent bitmap")
                check(lib.rl_array_set_bitmap(handle, 0, 0, 0))
                return
            if there is not None:
                words = f"the array has a write-intent bitmap, of regions of {format_size(there.chunk_size)}"
                raise UsageError(f"{words}; for another one take it away first (--bitmap none)")
            superblocks = []
            for index, status in self._devices():
                if status.state not in (lib.RL_DEVICE_FAULTY, lib.RL_DEVICE_REMOVED):
                    superblocks.append(ffi.new("struct rl_superblock *"))
                    check(lib.rl_array_superblock(handle, index, superblocks[-1]))
            where = bitmap.place(superblocks, self._geometry, None if chunk is None else parse_size(chunk))
            check(lib.rl_array_set_bitmap(handle, where.chunk, where.offset, where.sectors))

    # -- jobs

    def _use_spare(self) -> Job | None:
        """Spares step into empty slots, then beside members that could not write a block. The recovery that runs, or None."""
        devices = self._devices()
        spares = [index for index, status in devices if status.state == lib.RL_DEVICE_SPARE]
        failing = [status.slot for _index, status in devices if status.state == lib.RL_DEVICE_IN_SYNC and status.write_errors]
        while spares:
            with self._use() as handle:
                result = lib.rl_array_activate_spare(handle, spares[0], -1)
                if result == -errno.ENOENT and not failing:
                    break
                if result == -errno.ENOENT:
                    result = lib.rl_array_replace(handle, spares[0], failing.pop(0))
                    if result in (-errno.EBUSY, -errno.EOPNOTSUPP):  # it has a replacement already; or a superblock that cannot say so
                        continue
            check(result)
            del spares[0]
        return self._next_job()

    def set_speed(self, *, minimum: int | None = None, maximum: int | None = None) -> None:
        """Limits of this array's jobs, of the one that runs and those to come: bytes a second of each member. None: as it is.

        While users work, a job leaves them half of the time, but not when it is slower than `minimum` (at first 1 MiB); `maximum` 0: no
        limit.
        """
        for speed in (minimum, maximum):
            if speed is not None and not 0 <= speed < 2**63:
                raise UsageError(f"{speed} is no speed in bytes a second")
        with self._admin:
            low, high = self._speed
            self._speed = (low if minimum is None else minimum, high if maximum is None else maximum)
            if self._job is not None:
                self._job.set_speed(minimum=self._speed[0], maximum=self._speed[1])

    def _rebuilding(self) -> bool:
        return any(s.state in (lib.RL_DEVICE_REBUILDING, lib.RL_DEVICE_REPLACEMENT) for _i, s in self._devices())

    def _next_job(self) -> Job | None:
        """Starts what the array needs: recovery first, then resync. A check or repair that runs gives way."""
        recover = self._rebuilding()
        running = self._job if self._job is not None and not self._job.done else None
        if running is not None and recover and running.kind in ("check", "repair"):
            running.cancel()
            return running  # its end starts the recovery
        if running is not None:
            return running
        with self._use() as handle:
            status = ffi.new("struct rl_array_status *")
            lib.rl_array_status(handle, status)
        if recover:
            return self._start_job(lib.RL_SYNC_RECOVER)
        return self._start_job(lib.RL_SYNC_RESYNC) if status.resync_sectors != MAX_SECTOR else None

    def _start_job(self, kind: int) -> Job:
        with self._use() as handle:
            job = self._job = Job(handle, kind, self._job_ended)
            job.set_speed(minimum=self._speed[0], maximum=self._speed[1])
            job.start()
        return job

    def _job_ended(self, job: Job) -> None:
        with self._gate:
            if self._closed:
                return
        # after a failure only where the next attempt is about something else: the rebuilding member is gone, another may be there
        if job.error is None or job.error.errno == errno.ENODEV or job.kind in ("check", "repair"):
            threading.Thread(target=self._after_job, args=(job,), name="raidlib next job", daemon=True).start()

    def _after_job(self, job: Job) -> None:
        job.join()
        with contextlib.suppress(UsageError), self._admin:  # closed meanwhile
            if self._job is job:
                self._next_job()

    def check(self) -> Job:
        """Compares parity and copies everywhere and counts what does not agree; writes nothing but blocks that cannot be read."""
        return self._user_job(lib.RL_SYNC_CHECK)

    def repair(self) -> Job:
        """Like check(), and mends: where the code names the member that lies, that one.

        Else parity from the data, copies from the majority or the first.
        """
        return self._user_job(lib.RL_SYNC_REPAIR)

    def _user_job(self, kind: int) -> Job:
        with self._admin:
            if self._job is not None and self._job.status().state in ("running", "paused"):
                raise BusyError(f"a {self._job.kind} runs; wait for it, or cancel it")
            if self._job is not None:
                self._job.join()  # it has ended, and its thread is about to
            return self._start_job(kind)

    def next_event(self, timeout: float = 0.0) -> Event | None:
        """The next thing that happened to the array, or None after `timeout` seconds."""
        event = ffi.new("struct rl_event *")
        with self._use() as handle:
            result = lib.rl_event_wait(handle, event, int(timeout * 1000))
        if result == -errno.ESHUTDOWN or check(result) == 0:
            return None
        return event_of(event)

    # -- status

    def status(self) -> Status:
        """State, members, job, and in words what can still be lost."""
        raw = ffi.new("struct rl_array_status *")
        with self._use() as handle:
            lib.rl_array_status(handle, raw)
            marks = self._bitmap_at_rest if self.read_only else report.bitmap_of(handle)
        members = self._member_statuses()
        state, lost_more, unsynced = report.state_of(raw), raw.lost_more, raw.resync_sectors != MAX_SECTOR
        files = files_may_lose(state, lost_more, members)
        words = report.space_words(raw, members) + advise(self.level, state, raw.slots_missing, lost_more, unsynced, members, marks)
        sb = self._sb
        return Status(
            uuid=self.uuid,
            name=self.name,
            metadata=VERSIONS[sb.version],
            level=str(self.level),
            layout=self.layout,
            chunk_size=self.chunk_size,
            size=self.size,
            dev_size=sb.size_sectors * SECTOR,
            raid_devices=self.raid_devices,
            state=state,
            read_only=self.read_only,
            degraded=raw.slots_missing,
            may_lose=raw.lost_more,
            consistency_policy=report.policy_of(self.level, marks),
            events=raw.events,
            created=sb.ctime_s + sb.ctime_us / 1e6,
            updated=sb.utime_s + sb.utime_us / 1e6,
            resync_offset=None if raw.resync_sectors == MAX_SECTOR else raw.resync_sectors * SECTOR,
            mismatch_count=raw.mismatch_count,
            corrected_reads=raw.corrected_reads,
            members=members,
            job=self._job.status() if self._job else None,
            advice=advise_tree(words, files, members),
            files_may_lose=files,
            notes=list(self.notes),
            bitmap=marks,
        )

    def _member_statuses(self) -> list[MemberStatus]:
        found = []
        for index, status in self._devices():
            opened = self._members[index]
            if opened is not None:
                found.append(report.member_status(index, status, opened, self._taken_back.get(index)))
        out = [MemberStatus(slot=None, path=c.member.path, state=c.state, reason=c.reason) for c in self._left_out]
        return report.all_slots(found, self.raid_devices) + out + self._set_aside

    # -- the end

    def close(self) -> None:
        """Stops the job (it goes on at the next opening), marks the array clean, lets the members go. Again is harmless.

        In a forked child it does nothing: the array is its parent's.
        """
        if self._admin.forked:
            return
        with self._admin:
            self._refuse_if_member()
            with self._gate:
                if self._closed:
                    return
                self._closed = True
            if self._job is not None:
                self._job.cancel()
                self._job.join()
            lib.rl_array_stop(self._handle)
            with self._gate:
                while self._calls:
                    self._gate.wait()
            if self._service is not None:
                self._service.join()
            result = lib.rl_array_close(self._handle)
            try:
                check(result, lambda text: f"closing the array: {text}")
            finally:
                close_all(self._members)
                if self._own_claim is not None:
                    self._own_claim.release()

    def __enter__(self) -> Array:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<raidlib.Array {self.name} {self.level} of {self.raid_devices}, {format_size(self.size)}>"
