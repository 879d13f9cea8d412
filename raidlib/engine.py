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

__all__ = ["BlockDevice", "MemberHandle", "buffer_of", "check", "ffi", "last_error", "lib"]


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


class MemberHandle:
    """An open rl_member and what must live as long as it does."""

    def __init__(self, pointer: Any, name: str, keep: tuple[Any, ...] = ()) -> None:
        self.pointer = pointer
        self.name = name
        self.size = int(lib.rl_member_size(pointer))  # bytes
        self._keep = keep
        self._lock = threading.Lock()

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

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from byte `offset`."""
        data = bytearray(length)
        check(lib.rl_member_pread(self.pointer, buffer_of(data, writable=True), length, offset, 0))
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Writes whole blocks."""
        check(lib.rl_member_pwrite(self.pointer, buffer_of(data), len(data), offset))

    def flush(self) -> None:
        """Makes what was written durable."""
        check(lib.rl_member_flush(self.pointer))

    def close(self) -> None:
        """Lets the member go; again is harmless."""
        with self._lock:
            if self.pointer is not None:
                check(lib.rl_member_close(self.pointer))
                self.pointer = None
