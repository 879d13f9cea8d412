"""Who holds what: whose lock is on a file, what of the kernel's lies on it, and what a forked child lets go of."""

from __future__ import annotations

import os
import re
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from .errors import ForkedError

# A line of /proc/PID/fdinfo/FD. The kernel shows a lock there only where the descriptor is the one that has it.
_LOCK = re.compile(r"^lock:\s+\d+: (?:OFDLCK|POSIX) .* [0-9a-f]+:[0-9a-f]+:(\d+) ", re.MULTILINE)


# --- Processes --------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process, as messages call it."""

    pid: int
    command: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """With its name, if it is there."""
        try:
            return cls(pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
        except OSError:
            return cls(pid, "")

    def __str__(self) -> str:
        own = "this process, " if self.pid == os.getpid() else ""
        return f"{own}process {self.pid}{f' ({self.command})' if self.command else ''}"


def _same(a: os.stat_result, b: os.stat_result) -> bool:
    """Two names, or two nodes, of one file or block device."""
    if stat.S_ISBLK(a.st_mode) and stat.S_ISBLK(b.st_mode):
        return a.st_rdev == b.st_rdev
    return os.path.samestat(a, b)


def _locks(pid: str, file: os.stat_result) -> bool:
    """Whether a process has a descriptor through which the file is locked."""
    try:
        names = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return False  # it has ended, or is another user's
    for name in names:
        try:
            inodes = _LOCK.findall(Path(f"/proc/{pid}/fdinfo/{name}").read_text())
            # looked at only where the number fits: a file on a server that is silent would not answer
            if str(file.st_ino) in inodes and _same(file, os.stat(f"/proc/{pid}/fd/{name}")):
                return True
        except OSError:
            continue
    return False


def lock_holders(file: os.stat_result, likely: int | None = None) -> list[Process]:
    """The processes that have a lock on a file: `likely` alone if it has one, else all that this user may look into.

    An open-file-description lock belongs to no process, but to a descriptor: that of a forked child holds it, too, and after its parent.
    """
    if likely is not None and _locks(str(likely), file):
        return [Process.of(likely)]
    return [Process.of(int(pid)) for pid in os.listdir("/proc") if pid.isdigit() and _locks(pid, file)]


def in_words(processes: list[Process], most: int = 3) -> str:
    """Process 12 (python3) and process 13 (python3)."""
    names = [str(process) for process in processes[:most]] + (["others"] if len(processes) > most else [])
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


# --- The kernel -------------------------------------------------------------------------------------------------------


class Use(NamedTuple):
    """What the kernel does with a file or block device, and how that is ended."""

    what: str
    end: str


def _plain(text: str) -> str:
    """A path of /proc without the escapes of blanks."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is(path: str, file: os.stat_result) -> bool:
    try:
        return _same(file, os.stat(path))
    except OSError:
        return False


def _swap(file: os.stat_result) -> Iterator[Use]:
    for line in _lines("/proc/swaps")[1:]:
        path = _plain(line.split()[0])
        if _is(path, file):
            yield Use("it is swap space", f"swapoff {path}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _loops(file: os.stat_result) -> Iterator[Use]:
    """Loop devices on the file, and what lies on them."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        device = backing.parent.parent
        if any(_is(path, file) for path in _lines(str(backing))):
            above = list(_above(device))
            what = f"it is behind the loop device /dev/{device.name}" + "".join(f", {use.what}" for use in above)
            yield Use(what, ", ".join([*(use.end for use in above), f"losetup -d /dev/{device.name}"]))


def _above(device: Path) -> Iterator[Use]:
    """What lies on a block device, a folder of /sys: arrays, mounts, swap; on its partitions, too."""
    for holder in sorted(device.glob("holders/*")):
        md = holder.name.startswith("md")
        end = f"mdadm --stop /dev/{holder.name}" if md else f"take /dev/{holder.name} down"
        yield Use(f"part of {'the array ' if md else ''}/dev/{holder.name}", end)
    number = "".join(_lines(str(device / "dev")))
    for line in _lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if fields[2] == number or right.split(" ")[1] == f"/dev/{device.name}":
            yield Use(f"mounted at {_plain(fields[4])}", f"umount {_plain(fields[4])}")
    for line in _lines("/proc/swaps")[1:]:
        if _plain(line.split()[0]) == f"/dev/{device.name}":
            yield Use("swap space", f"swapoff /dev/{device.name}")
    for partition in sorted(device.glob("*/partition")):
        for use in _above(partition.parent):
            yield Use(f"with its partition /dev/{partition.parent.name} {use.what}", use.end)


def kernel_uses(file: os.stat_result) -> list[Use]:
    """What the kernel does with a file or block device, as far as it tells: loop devices, arrays, mounts, swap."""
    if not stat.S_ISBLK(file.st_mode):
        return [*_loops(file), *_swap(file)]
    device = Path(f"/sys/dev/block/{os.major(file.st_rdev)}:{os.minor(file.st_rdev)}")
    device = device.resolve()
    return [*(Use(f"it is {use.what}", use.end) for use in _above(device)), *_loops(file)]


# --- Forked children --------------------------------------------------------------------------------------------------


class _Held(Protocol):
    def let_go_in_child(self) -> None: ...


_held: weakref.WeakSet[_Held] | None = None


def let_go_in_children(held: _Held) -> None:
    """From now on a child that Python forks lets go of it, by `held.let_go_in_child()`: else its copy of a lock would outlive its parent.

    Registered at the first call: nothing is done at import. A child that C code forks is not told; its locks are found by its pid.
    """
    global _held
    if _held is None:
        _held = weakref.WeakSet()
        os.register_at_fork(after_in_child=_let_go)
    _held.add(held)


def _let_go() -> None:
    for held in list(_held or ()):
        held.let_go_in_child()


class OwnLock:
    """A re-entrant lock of the process that made it.

    In a forked child the thread that has it may not exist: there it is not taken, but answers with ForkedError (ECHILD).
    """

    def __init__(self, what: str) -> None:
        self._what, self._pid, self._lock = what, os.getpid(), threading.RLock()

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """ForkedError in a forked child."""
        if self.forked:
            raise ForkedError(f"{self._what} was opened by process {self._pid}, of which this one is a fork: use it there, or open it anew")

    def __enter__(self) -> OwnLock:
        self.check()
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
