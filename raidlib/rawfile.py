"""An array as a seekable binary file, for all that reads and writes files."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

from .errors import UsageError


class RawArray(io.RawIOBase):
    """The array as a file of fixed size."""

    def __init__(self, array: Any) -> None:
        self._array, self._position = array, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Unless the array is open read-only."""
        return not self._array.read_only

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Any position from 0 on; past the end nothing is read and nothing can be written."""
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: int(self._array.size)}[whence] + offset
        if position < 0:
            raise UsageError(f"position {position} is negative")
        self._position = position
        return position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fills what there is up to the end of the array."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), int(self._array.size) - self._position))
        if count:
            self._array.preadinto(view[:count], self._position)
            self._position += count
        return count

    def write(self, data: Any, /) -> int:
        """Writes what fits before the end of the array; ENOSPC where nothing does."""
        view = memoryview(data).cast("B")
        count = max(0, min(len(view), int(self._array.size) - self._position))
        if count == 0 and len(view):
            raise OSError(errno.ENOSPC, "end of the array")
        self._array.pwrite(view[:count], self._position)
        self._position += count
        return count

    def flush(self) -> None:
        """Makes it durable."""
        if not self.closed and not self._array.read_only and not self._array.closed:
            self._array.flush()
