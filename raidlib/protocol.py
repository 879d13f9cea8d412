"""What goes through the control socket: JSON documents, one a line, and the descriptors of new members along with a request's bytes.

A member is so opened with the rights and in the working directory of who asks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from . import errors
from .errors import RaidError, UsageError
from .model import SCHEMA, Struct
from .runtime import SOCKET

LINE_BYTES_MAX = 1 << 20  # of a request
REPLY_BYTES_MAX = 64 << 20
DESCRIPTORS_MAX = 16


class Failure(Struct, frozen=True, kw_only=True):
    """A RaidError on its way through the socket."""

    kind: str = msgspec.field(name="class")
    message: str
    errno: int | None = None
    members: list[str] = []

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that stands for any exception."""
        if isinstance(error, OSError) and not isinstance(error, RaidError):
            error = errors.from_errno(error.errno or errno.EIO, str(error))
        if isinstance(error, RaidError):
            return cls(kind=type(error).__name__, message=str(error), errno=error.errno, members=list(error.members))
        return cls(kind="RaidError", message=f"a fault of raidlib itself in the owner: {type(error).__name__}: {error}")

    def exception(self) -> RaidError:
        """The same exception, of the same class."""
        classes: dict[str, type[RaidError]] = {}
        todo: list[type[RaidError]] = [RaidError]
        while todo:
            found = todo.pop()
            classes[found.__name__] = found
            todo += found.__subclasses__()
        return classes.get(self.kind, RaidError)(self.message, members=self.members, errno=self.errno)


class Request(Struct, frozen=True, kw_only=True):
    """One line from a client."""

    schema: int = SCHEMA
    verb: str
    args: dict[str, Any] = {}
    descriptors: int = 0


class Reply(Struct, frozen=True, kw_only=True):
    """One line to a client: any number of "progress", then "result" or "error"."""

    schema: int = SCHEMA
    kind: str
    value: Any = None
    error: Failure | None = None


# --- Lines and descriptors --------------------------------------------------------------------------------------------


class Lines:
    """Lines in, documents out, on a connected socket."""

    def __init__(self, connection: socket.socket, bytes_max: int) -> None:
        self.connection, self._bytes_max = connection, bytes_max
        self._pending = bytearray()
        self.descriptors: list[int] = []

    def read(self) -> bytes | None:
        """The next line; None at the end. UsageError for one that is too long. Descriptors that came along are in `descriptors`."""
        while (end := self._pending.find(b"\n")) < 0:
            if len(self._pending) > self._bytes_max:
                raise UsageError(f"a line of the control socket has at most {self._bytes_max} bytes")
            data, descriptors, flags, _ = socket.recv_fds(self.connection, 1 << 16, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
            self.descriptors += descriptors
            if len(self.descriptors) > DESCRIPTORS_MAX or flags & socket.MSG_CTRUNC:
                raise UsageError(f"at most {DESCRIPTORS_MAX} descriptors come with a request")
            if not data:
                return None
            self._pending += data
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def write(self, document: Struct, descriptors: Sequence[int] = ()) -> None:
        """Sends one line; the descriptors go with its first byte. A peer that has gone is an OSError, never a signal."""
        data = msgspec.json.encode(document) + b"\n"
        if descriptors:
            sent = socket.send_fds(self.connection, [data[:1]], list(descriptors), socket.MSG_NOSIGNAL)
            data = data[sent:]
        self.connection.sendall(data, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Closes the socket, and the descriptors that nobody took."""
        self.close_descriptors()
        self.connection.close()

    def close_descriptors(self) -> None:
        """Closes the descriptors that came and were not taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end when it connected or listened."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def socket_path(folder: int) -> str:
    """The control socket's name, short and through the folder's descriptor."""
    return f"/proc/self/fd/{folder}/{SOCKET}"
