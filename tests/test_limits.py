"""What a live array costs, and who may look at it: memory, the time to open, other users."""

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import raidlib
from raidlib import mount, runtime

NOBODY = 65534
MIB = 1 << 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse")


@pytest.fixture
def world(monkeypatch):
    """A folder that everybody can enter, with a run-time folder of its own; live arrays in it are stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="raidlib-test-"))
    folder.chmod(0o755)
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(folder / "run"))
    try:
        yield folder
    finally:
        for path, info in runtime.found(alive=True):
            with contextlib.suppress(raidlib.RaidError):
                mount.umount(info.uuid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
            mount._clean(info.uuid, path, info)
        shutil.rmtree(folder, ignore_errors=True)


def test_sixteen_tebibytes_open_in_a_second(tmp_path):
    """Nothing is in proportion to the size: neither the time nor the memory."""
    folder = tmp_path / "tank"
    try:
        raidlib.create(folder, level=6, raid_devices=6, size="4T").close()
    except raidlib.RaidError as error:
        if "File too large" not in str(error):
            raise
        pytest.skip(f"no file of 4 TiB in the temporary folder's file system: {error}")
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raidlib.open(folder) as array:
        assert time.monotonic() - start < 1.0
        assert array.size > 15.99 * 2**40
        array.pwrite(b"the end", array.size - 7)
        assert array.pread(7, array.size - 7) == b"the end"
    assert time.monotonic() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 16 << 10  # KiB


def high_water(pid):
    """Peak RSS of a process in bytes."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


@needs_fuse
@pytest.mark.parametrize("degraded", [False, True], ids=["whole", "degraded"])
def test_memory_of_a_mount_under_load(world, degraded):
    """Peak RSS of the owner: below 64 MiB, with 32 threads of large and small requests, a failure, a rebuild and a check."""
    place, tank = world / "mnt", world / "tank"
    place.mkdir()
    raidlib.create(tank, level=6, raid_devices=6, size="48M").close()
    info = mount.mount(tank, place, fs="none")
    stop, problems = time.monotonic() + 6, []

    def work(number):
        rng, fd = random.Random(number), os.open(place / "volume", os.O_RDWR)
        try:
            while time.monotonic() < stop:
                length = rng.choice([512, 4096, 65536, MIB, 8 * MIB])
                at = rng.randrange((128 * MIB - length) // 512) * 512
                if rng.random() < 0.5:
                    os.pwrite(fd, rng.randbytes(length), at)
                else:
                    os.pread(fd, length, at)
        except OSError as error:
            problems.append(error)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    with raidlib.control.connect(str(place)) as client:
        if degraded:
            client.fail(1)
            client.fail(4)
            spare = tank / "spare.img"
            with open(spare, "wb") as file:
                file.truncate(48 * MIB)
            client.add(spare)
        time.sleep(2)
        client.wait()
        client.check().wait()
    for thread in threads:
        thread.join()
    peak = high_water(info.pid)
    mount.umount(place)
    assert problems == []
    assert peak < 64 * MIB, f"{peak / MIB:.1f} MiB"


# ---- other users ---------------------------------------------------------------------------------------------------------


def as_nobody(*paths):
    """What another user gets for each: "in", or the errno's name. A fork, for the interpreter itself may lie where others cannot go."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for path in paths:
            try:
                if str(path).endswith(".sock"):
                    socket.socket(socket.AF_UNIX).connect(str(path))
                elif os.path.isdir(path):
                    os.listdir(path)
                else:
                    os.close(os.open(path, os.O_RDONLY))
                os.write(there, b"in ")
            except OSError as error:
                os.write(there, errno.errorcode[error.errno or 0].encode() + b" ")
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as answers:
        words = answers.read().split()
    assert os.waitpid(child, 0)[1] == 0
    return words


@needs_root
@needs_fuse
@pytest.mark.parametrize("allow_other", [False, True])
@pytest.mark.parametrize("fs", ["none", "kernel", "fuse2fs"])
def test_another_user_is_refused(world, fs, allow_other):
    """`volume`, the run-time folder and the socket: always. The directory: always with `volume`, with fuse2fs unless --allow-other."""
    place, tank = world / "mnt", world / "tank"
    place.mkdir()
    if fs == "kernel" and not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices")
    subprocess.run(
        [sys.executable, "-m", "raidlib", "create", str(tank), "--level", "5", "--raid-devices", "3", "--size", "16M", "--mkfs", "ext4"],
        check=True,
        capture_output=True,
    )
    options = {"fs": "none"} if fs == "none" else {"driver": fs}
    info = mount.mount(tank, place, allow_other=allow_other, **options)
    folder = next(path for path, other in runtime.found(alive=True) if other.pid == info.pid)
    assert info.volume is not None
    volume, run_folder, sock, *rest = as_nobody(info.volume, folder, folder / "control.sock", place)
    assert (volume, run_folder, sock) == ("EACCES", "EACCES", "EACCES")
    if fs == "none":
        assert rest == (["in"] if allow_other else ["EACCES"])  # the name alone; its content is refused above
    elif fs == "fuse2fs":
        assert rest == (["in"] if allow_other else ["EACCES"])
    else:
        assert rest == ["in"]  # the file system's own permissions decide
    mount.umount(place)
