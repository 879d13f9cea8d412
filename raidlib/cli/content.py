"""What goes into an array and comes out of it as a whole: a new file system, and a sparse copy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from .. import system
from ..errors import MissingFacilityError, NoSpaceError, UsageError
from ..model import Status

PIECE_BYTES = 4 << 20
HOLE_BYTES = 64 << 10  # a run of zeros this long becomes a hole
_ZEROS = bytes(PIECE_BYTES)
Report = Callable[[int, int, float, float | None], None]  # done, total, rate, seconds left


def ticker(report: Report | None, total: int) -> Callable[[int], None]:
    """Turns "so many bytes done" into rate and time left."""
    start = time.monotonic()

    def tick(done: int) -> None:
        if report is not None:
            rate = done / max(time.monotonic() - start, 1e-6)
            report(done, total, rate, (total - done) / rate if rate else None)

    return tick


def make_file_system(
    array: Any, status: Status, *, kind: str, tree: str | None, work_dir: str, blank: bool, report: Report | None = None
) -> None:
    """mke2fs into a sparse image in `work_dir`, with the files of `tree`; its data then goes into the array. No mount, no root."""
    command = [system.tool("mke2fs", "e2fsprogs"), "-q", "-F", "-t", kind, *(["-L", status.name[:16]] if status.name.isascii() else [])]
    if status.chunk_size >= 4096 and status.dev_size:
        stride = status.chunk_size // 4096
        command += ["-b", "4096", "-E", f"stride={stride},stripe_width={stride * max(1, round(status.size / status.dev_size))}"]
    command += ["-d", tree] if tree else []
    with tempfile.NamedTemporaryFile(prefix=".raidlib-", suffix=".ext4", dir=work_dir) as image:
        image.truncate(array.size)
        done = subprocess.run([*command, image.name], capture_output=True, text=True, check=False)
        if done.returncode:
            complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            if "allocate block" in complaint or "No space left" in complaint:
                raise NoSpaceError(
                    f"{tree} does not fit into the array of {array.size} bytes; make it larger by --size (mke2fs: {complaint})"
                )
            raise UsageError(f"mke2fs could not make the file system: {complaint}")
        copy_in(image.fileno(), array, blank=blank, report=report)


def copy_in(fd: int, array: Any, *, blank: bool, report: Report | None = None) -> None:
    """The data of a sparse file into the array; the holes too, unless the array is known to be `blank`."""
    tick, offset = ticker(report, array.size), 0
    while offset < array.size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            start = array.size
        if start > offset and not blank:
            array.zero(offset, start - offset)
        offset, end = start, os.lseek(fd, start, os.SEEK_HOLE) if start < array.size else array.size
        while offset < end:
            data = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
            array.pwrite(data, offset)
            offset += len(data)
            tick(offset)
    array.flush()


def copy_out(read: Callable[[int, int], bytes], size: int, out: BinaryIO, *, sparse: bool, report: Report | None = None) -> int:
    """`size` bytes by `read(length, offset)` into a file, zeros as holes where it is `sparse`; how many bytes were not zeros."""
    tick, offset, written = ticker(report, size), 0, 0
    while offset < size:
        data = read(min(PIECE_BYTES, size - offset), offset)
        if not sparse:
            out.write(data)
            written += len(data)
        elif data != _ZEROS[: len(data)]:
            for start in range(0, len(data), HOLE_BYTES):
                piece = data[start : start + HOLE_BYTES]
                if piece != _ZEROS[: len(piece)]:
                    out.seek(offset + start)
                    out.write(piece)
                    written += len(piece)
        offset += len(data)
        tick(offset)
    if sparse:
        out.truncate(size)
    out.flush()
    return written


@contextlib.contextmanager
def reader(handle: Any, status: Status, live: bool) -> Iterator[Callable[[int, int], bytes]]:
    """`read(length, offset)` of an array's content: by the array itself, or by the volume that a live one shows."""
    if not live:
        yield handle.pread
        return
    if not status.volume:
        raise MissingFacilityError("the array is in use and shows no volume to read from; stop it first (`raidlib stop`)")
    with open(status.volume, "rb", buffering=0) as volume:
        fd = volume.fileno()
        yield lambda length, offset: os.pread(fd, length, offset)
