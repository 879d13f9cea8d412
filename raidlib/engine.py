"""The door to the C engine: handles, buffers and structs in, exceptions out. The only module that imports `_engine`.

`ffi` and `lib` are cffi's; every call into `lib` releases the GIL. What a function of csrc/raidlib.h promises is written there.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ._engine import ffi, lib
from .errors import RaidError, UsageError, from_errno
from .model import Event

__all__ = ["BlockDevice", "Clock", "MemberHandle", "buffer_of", "check", "event_of", "ffi", "last_error", "lib"]


@runtime_checkable
class BlockDevice(Protocol):
    """What a Python object must offer to be a member: six methods, called from any thread, each whole or an OSError.

    `block_size` is the unit of its requests in bytes: a power of two, at most 4096.
    """

    @property
    def size(self) -> int: ...  # noqa: D102 (the class says it)

    @property
    def block_size(self) -> int: ...  # noqa: D102

    def preadinto(self, buffer: memoryview, offset: int, /) -> None: ...  # noqa: D102

    def pwrite(self, data: memoryview, offset: int, /) -> None: ...  # noqa: D102

    def flush(self) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def last_error() -> tuple[int, int, str]:
    """(errno, slot, text) of the calling thread's last failed engine call."""
    error = ffi.new("struct rl_error *")
    lib.rl_last_error(error)
    return -error.code, error.slot, ffi.string(error.text).decode(errors="replace")


def check(result: int, describe: Callable[[str], str] | None = None) -> int:
    """Passes a count on; turns -errno into the exception that stands for it, with the engine's words (through `describe`)."""
    if result >= 0:
        return result
    code, _slot, text = last_error()
    if code != -result:  # a call that does not explain itself
        text = os.strerror(-result)
    raise from_errno(-result, describe(text) if describe else text)


def buffer_of(data: Any, *, writable: bool = False) -> Any:
    """A cffi view of a bytes-like object's memory, without a copy. It keeps the object alive."""
    try:
        return ffi.from_buffer("unsigned char[]", data, require_writable=writable)
    except (TypeError, BufferError, ValueError) as error:
        raise UsageError(
            f"a contiguous {'writable ' if writable else ''}bytes-like object is needed, not {type(data).__name__}: {error}"
        ) from None


@ffi.def_extern(error=-errno.EIO)  # type: ignore[untyped-decorator]
def rl_py_pread(context: Any, buffer: Any, length: int, offset: int) -> int:
    """Reads from a Python object."""
    return _answer(lambda device: device.preadinto(memoryview(ffi.buffer(buffer, length)), offset), context)


@ffi.def_extern(error=-errno.EIO)  # type: ignore[untyped-decorator]
def rl_py_pwrite(context: Any, buffer: Any, length: int, offset: int) -> int:
    """Writes to a Python object."""
    return _answer(lambda device: device.pwrite(memoryview(ffi.buffer(buffer, length)).toreadonly(), offset), context)


@ffi.def_extern(error=-errno.EIO)  # type: ignore[untyped-decorator]
def rl_py_flush(context: Any) -> int:
    """Flushes a Python object."""
    return _answer(lambda device: device.flush(), context)


def _answer(call: Callable[[BlockDevice], object], context: Any) -> int:
    """The world's errors become -errno; whatever else an object raises is an I/O error of that member, never ours."""
    try:
        call(ffi.from_handle(context))
    except OSError as error:
        return -(error.errno or errno.EIO)
    except RaidError as error:
        return -(error.errno or errno.EIO)
    except Exception:
        return -errno.EIO
    return 0


class Clock:
    """A time that its owner gives, for arrays that are opened with it: it stands still until `advance`. It must outlive them.

    on_read is called whenever an array asks for the time, from inside the engine: once or more in every slice of a job. It must not raise.
    """

    def __init__(self, wall_s: int) -> None:
        self.now_ns = 0
        self.on_read: Callable[[], object] = lambda: None
        self._wall_ns = wall_s * 10**9
        self.clock_ns = ffi.callback("uint64_t(void *)", self._clock)
        self.wall_ns = ffi.callback("uint64_t(void *)", self._wall)

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now_ns += round(seconds * 1e9)

    def _clock(self, _context: Any) -> int:
        self.on_read()
        return self.now_ns

    def _wall(self, _context: Any) -> int:
        return self._wall_ns + self.now_ns


DEADLINE_S = 60.0  # for a request to a member that can hang, where nothing else was said
SERVING_THREADS = 4  # lent to such a member: how many of its requests are done at once


class MemberHandle:
    """An open rl_member and what must live as long as it does.

    One that can be silent for ever has a deadline; so has any other that was given one (`set_deadline`). Its requests are then done by
    threads of ours, so that only those hang with it.
    """

    def __init__(self, pointer: Any, name: str, keep: tuple[Any, ...] = ()) -> None:
        self.pointer = pointer
        self.name = name
        self.size = int(lib.rl_member_size(pointer))  # bytes
        self.can_hang = bool(lib.rl_member_can_hang(pointer))
        self._keep = keep
        self._lock = threading.Lock()
        self._serving, self._deadline_s = 0, 0.0
        self._identity: tuple[Any, ...] = ()
        self._ended = threading.Event()
        self._at_end: list[Callable[[], object]] = []  # _lock

    @classmethod
    def from_fd(cls, fd: int, name: str, *, read_only: bool, direct: bool) -> MemberHandle:
        """A member on a file or block device; the engine dups `fd`."""
        flags = (lib.RL_MEMBER_READ_ONLY if read_only else 0) | (lib.RL_MEMBER_DIRECT if direct else 0)
        out = ffi.new("rl_member **")
        check(lib.rl_member_open_fd(fd, os.fsencode(name), flags, out))
        return cls(out[0], name)

    @classmethod
    def from_memory(cls, size: int) -> MemberHandle:
        """A member in memory."""
        out = ffi.new("rl_member **")
        check(lib.rl_member_open_memory(size, out))
        return cls(out[0], "memory")

    @classmethod
    def from_fault(cls, inner: MemberHandle, seed: int, recorder: Any, number: int) -> MemberHandle:
        """A member that does to the requests for `inner` what its rules say; recorder: an rl_recorder or NULL."""
        out = ffi.new("rl_member **")
        check(lib.rl_member_open_fault(inner.pointer, seed, recorder, number, out))
        return cls(out[0], f"faulty {inner.name}", (inner,))

    def fork(self) -> MemberHandle:
        """A second member in memory with the content of this one."""
        out = ffi.new("rl_member **")
        check(lib.rl_member_fork(self.pointer, out))
        return MemberHandle(out[0], self.name)

    @classmethod
    def from_object(cls, device: BlockDevice, name: str) -> MemberHandle:
        """A member that a Python object implements."""
        callbacks = ffi.new("struct rl_member_callbacks *")
        callbacks.size_of = ffi.sizeof("struct rl_member_callbacks")
        callbacks.pread, callbacks.pwrite, callbacks.flush = lib.rl_py_pread, lib.rl_py_pwrite, lib.rl_py_flush
        handle, out = ffi.new_handle(device), ffi.new("rl_member **")
        check(lib.rl_member_open_callbacks(callbacks, handle, device.size, device.block_size, name.encode(), out))
        return cls(out[0], name, (handle, device))

    @classmethod
    def from_array(cls, array: Any, name: str) -> MemberHandle:
        """A member that is an open array (an `rl_array *`), which must not be closed before it."""
        out = ffi.new("rl_member **")
        check(lib.rl_member_open_array(array, os.fsencode(name), out))
        return cls(out[0], name)

    def pread(self, length: int, offset: int, flags: int = 0) -> bytes:
        """`length` bytes from byte `offset`; with RL_IO_DEVICE what the device holds, not the page cache."""
        data = bytearray(length)
        check(lib.rl_member_pread(self.pointer, buffer_of(data, writable=True), length, offset, flags))
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Writes whole blocks."""
        check(lib.rl_member_pwrite(self.pointer, buffer_of(data), len(data), offset))

    def flush(self) -> None:
        """Makes what was written durable."""
        check(lib.rl_member_flush(self.pointer))

    @property
    def has_deadline(self) -> bool:
        """Whether threads of ours do its requests."""
        return self._deadline_s > 0

    def set_deadline(self, seconds: float, identity: tuple[Any, ...], at_end: Callable[[], object] = lambda: None) -> None:
        """From now on no request is waited for longer than that. First before any request; again, it changes the time alone.

        `at_end` lets go of what belongs to the member, when its last request has ended; until then `identity` is `in_limbo`.
        """
        check(lib.rl_member_set_deadline(self.pointer, max(1, round(seconds * 1000)), SERVING_THREADS))
        again, self._deadline_s = self.has_deadline, seconds
        if again:
            return
        self._serving, self._at_end, self._identity = SERVING_THREADS, [at_end], identity
        started = 0
        try:
            while started < SERVING_THREADS:
                threading.Thread(target=self._serve, args=(self.pointer,), name=f"raidlib serves {self.name}", daemon=True).start()
                started += 1
        except BaseException:  # no thread to be had: this one comes back at once for each that is wanting
            pointer, self.pointer, self._at_end = self.pointer, None, []
            lib.rl_member_close(pointer)
            for _ in range(started, SERVING_THREADS):
                self._serve(pointer)
            raise

    def when_ended(self, call: Callable[[], object]) -> None:
        """After close(): does something when the last request has ended, which is now for all but members that hang."""
        with self._lock:
            later = self._serving > 0
            if later:
                self._at_end.append(call)
        if not later:
            call()

    def _serve(self, pointer: Any) -> None:
        lib.rl_member_serve(pointer)
        with self._lock:
            self._serving -= 1
            last = self._serving == 0
        if last:
            for call in self._at_end:
                call()
            with _limbo_lock:
                _limbo[:] = [other for other in _limbo if other is not self]
            self._ended.set()

    def close(self) -> None:
        """Lets the member go; again is harmless. One that hangs is let go of when its last request has ended."""
        with self._lock:
            if self.pointer is None:
                return
            pointer, hangs = self.pointer, lib.rl_member_parked(self.pointer) > 0
            served = self._serving > 0
            if served:
                with _limbo_lock:
                    _limbo.append(self)
            result = lib.rl_member_close(pointer)
            if result == 0:
                self.pointer = None
        if result < 0 and served:
            with _limbo_lock:
                _limbo.remove(self)
        check(result)
        if served and not hangs:
            self._ended.wait(self._deadline_s)

    def let_go_in_child(self) -> None:
        """In a forked child: the descriptor goes, and whatever is asked of the member from then on has no pointer to go to."""
        global _limbo_lock
        pointer, self.pointer = self.pointer, None
        self._lock = _limbo_lock = threading.Lock()  # who has the old ones may not exist here
        if pointer is not None:
            lib.rl_member_forked(pointer)


_limbo_lock = threading.Lock()
_limbo: list[MemberHandle] = []  # closed, and not yet ended


def in_limbo(identity: tuple[Any, ...]) -> bool:
    """Whether a former member's last request has not ended: what lies behind it must not be used yet, it could still be written to."""
    with _limbo_lock:
        return any(handle._identity == identity for handle in _limbo)


_EVENTS = {
    lib.RL_EVENT_FAIL: "fail",
    lib.RL_EVENT_SPARE_ACTIVE: "spare_active",
    lib.RL_EVENT_SYNC_STARTED: "sync_started",
    lib.RL_EVENT_SYNC_FINISHED: "sync_finished",
    lib.RL_EVENT_READ_CORRECTED: "read_corrected",
    lib.RL_EVENT_NO_SPACE: "no_space",
    lib.RL_EVENT_ADDED: "added",
    lib.RL_EVENT_REMOVED: "removed",
    lib.RL_EVENT_REPLACED: "replaced",
    lib.RL_EVENT_SPACE: "space",
    lib.RL_EVENT_BAD_BLOCK: "bad_block",
}


def event_of(raw: Any) -> Event:
    """A cffi `struct rl_event *` as a frozen struct."""
    return Event(
        kind=_EVENTS.get(raw.kind, "unknown"),
        device=raw.device,
        slot=raw.slot if raw.slot >= 0 else None,
        offset=raw.offset,
        time=raw.time_ns / 1e9,
        text=ffi.string(raw.text).decode(errors="replace"),
    )
