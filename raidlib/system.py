"""What the machine has mounted, its loop devices, its programs: asked, and taken down."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BusyError, MissingFacilityError, from_errno

MNT_DETACH, UMOUNT_NOFOLLOW, LOOP_CLR_FD = 2, 8, 0x4C01
SETTLE_S = 10.0  # what the kernel lets go of a little later: loop devices, descriptors of a prober


class Mount(NamedTuple):
    """A line of the mount table."""

    place: str
    device: str  # major:minor
    kind: str
    source: str


def mounts() -> list[Mount]:
    """The mount table, the latest last."""
    result = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source) = left.split(" "), right.split(" ")[:2]
        result.append(Mount(_plain(fields[4]), fields[2], kind, _plain(source)))
    return result


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def tool(name: str, package: str) -> str:
    """The path of a program; also those that only root usually looks for."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")))
    if path is None:
        raise MissingFacilityError(f"{name} is not installed; as root: apt-get install {package}")
    return path


def run(*command: str) -> tuple[int, str]:
    """Exit code, and everything that was said, on one line."""
    environment = {**os.environ, "LC_ALL": "C"}
    out: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, check=False, text=True, errors="replace", env=environment, **out)
    return done.returncode, "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def unmount(place: str, *, lazy: bool = False) -> None:
    """Unmounts one file system. BusyError while files are open on it, unless `lazy`; nothing if it is not mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(place), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        result, text = run(tool("fusermount3", "fuse3"), "-u", *(["-z"] if lazy else []), place)
        if result == 0:
            return
        code = errno.EBUSY if "busy" in text.lower() else errno.EPERM
    if code == errno.EBUSY:
        raise BusyError(f"{place} is busy: files are open on it, or it is some process's working directory (fuser -vm {place} names it)")
    if code != errno.EINVAL:
        raise from_errno(code, f"cannot unmount {place}: {os.strerror(code)}")


def eventually(done: Callable[[], bool], seconds: float = SETTLE_S) -> bool:
    """Waits for what comes by itself."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def loops(volume: str) -> dict[str, str]:
    """The loop devices on a volume: major:minor -> path."""
    result = {}
    for folder in Path("/sys/block").glob("loop*"):
        try:
            if (folder / "loop" / "backing_file").read_text().rstrip("\n").removesuffix(" (deleted)") == volume:
                result[(folder / "dev").read_text().strip()] = f"/dev/{folder.name}"
        except OSError:
            continue
    return result


def detach(device: str, volume: str) -> None:
    """Takes a loop device off a volume, but not off another one that it is on by now: while it is open here it does not change hands."""
    with contextlib.suppress(OSError):  # gone, or free already
        with open(device, "rb", buffering=0) as opened:
            if device in loops(volume).values():
                fcntl.ioctl(opened, LOOP_CLR_FD)


def take_down(place: str) -> None:
    """Unmounts it, busy or not."""
    try:
        unmount(place)
    except BusyError:
        unmount(place, lazy=True)
