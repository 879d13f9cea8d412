"""No space under sparse members: nobody is failed for it, nothing that was acknowledged is lost, and it goes on once there is space.

What is promised of a write that is refused with ENOSPC: each of its blocks holds the old or the new bytes, and parity fits them.
"""

import contextlib
import errno
import os
import random
import subprocess
import threading
import time

import pytest

import raidlib
from raidlib import lab

RUNS = int(os.environ.get("RAIDLIB_SPACE_RUNS", "14"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
BLOCK = 512

SHAPES = {
    "raid0": {"level": 0, "raid_devices": 3, "chunk": "16K"},
    "raid1": {"level": 1, "raid_devices": 3},
    "raid4": {"level": 4, "raid_devices": 4, "chunk": "16K"},
    "raid5": {"level": 5, "raid_devices": 4, "chunk": "64K"},
    "raid6": {"level": 6, "raid_devices": 5, "chunk": "64K"},
    "raid10": {"level": 10, "raid_devices": 4, "chunk": "64K"},
    "rs": {"level": "rs", "raid_devices": 6, "parity": 3, "chunk": "64K"},
}


def wait_for(done, seconds=15):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def small(tmp_path):
    """A file system of its own for the members, with a size that can be changed."""
    place = tmp_path / "small"
    place.mkdir()

    class Small:
        path = place

        @staticmethod
        def resize(mib):
            subprocess.run(["mount", "-o", f"remount,size={mib}m", place], check=True)

        @classmethod
        def shrink(cls):
            """To what is used, and up to a MiB. Meanwhile a resync may need more."""
            for more in range(1, 9):
                used = os.statvfs(place)
                with contextlib.suppress(subprocess.CalledProcessError):
                    return cls.resize((used.f_blocks - used.f_bfree) * used.f_frsize // (1 << 20) + more)
            raise AssertionError("it grows all the time")

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "raidlib-test", place], check=True)
    try:
        yield Small
    finally:
        subprocess.run(["umount", "-l", place], check=True)


class Model:
    """What every block may hold: one content, or after a refused write two or more."""

    def __init__(self, size):
        self.may = [{bytes(BLOCK)} for _ in range(size // BLOCK)]

    def write(self, data, offset, done):
        first, last = offset // BLOCK, (offset + len(data) - 1) // BLOCK
        for block in range(first, last + 1):
            low, high = max(offset, block * BLOCK), min(offset + len(data), (block + 1) * BLOCK)
            new = {old[: low - block * BLOCK] + data[low - offset : high - offset] + old[high - block * BLOCK :] for old in self.may[block]}
            self.may[block] = new if done else self.may[block] | new

    def check(self, content):
        wrong = [n for n, may in enumerate(self.may) if content[n * BLOCK : (n + 1) * BLOCK] not in may]
        assert wrong == [], f"{len(wrong)} blocks are neither old nor new, the first at {wrong[0] * BLOCK}"

    def settle(self, content):
        self.may = [{content[n * BLOCK : (n + 1) * BLOCK]} for n in range(len(self.may))]


def states(array):
    return [str(member.state) for member in array.status().members]


def write_until_full(array, model, rng, stop_after):
    """Writes here and there until one is refused; True if one was."""
    for _ in range(stop_after):
        length = rng.choice([512, 3000, 4096, 65536, 65536, 200_000])
        offset = rng.randrange(array.size - length)
        data = rng.randbytes(length)
        try:
            array.pwrite(data, offset)
            model.write(data, offset, done=True)
        except raidlib.RaidError as error:
            assert error.errno == errno.ENOSPC, error
            model.write(data, offset, done=False)
            return True
    return False


@needs_root
@pytest.mark.parametrize("run", range(RUNS))
def test_full_at_a_random_moment(small, run):
    """Any level, whole or degraded, any moment; twice; then parity and copies are compared, and what the members hold is read again."""
    rng = random.Random(run)
    name = sorted(SHAPES)[run % len(SHAPES)]
    folder = small.path / "tank"
    with raidlib.create(folder, size="4M", **SHAPES[name]) as array:
        model = Model(array.size)
        if name != "raid0" and rng.random() < 0.4:
            array.fail(1)
        before = states(array)
        write_until_full(array, model, rng, rng.randrange(30))
        for _ in range(2):
            small.shrink()
            refused = write_until_full(array, model, rng, 400)
            assert states(array) == before, "a member was failed for want of space"
            if refused:
                assert array.state in ("read_only", "degraded")
                assert "no space is left under" in array.status().advice
                with pytest.raises(raidlib.errors.NoSpaceError):
                    array.pwrite(b"x", 0)
                content = array.pread(array.size, 0)
                model.check(content)
                model.settle(content)
            small.resize(64)
            wait_for(lambda: "no space" not in array.status().advice)
            write_until_full(array, model, rng, 3)
            assert "no space" not in array.status().advice
        wait_for(lambda: array.status().resync_offset is None)  # a resync that is due starts by itself
        content = array.pread(array.size, 0)
        model.check(content)
        if name != "raid0":
            job = array.check()
            job.wait()
            assert job.status().mismatch_count == 0
    with raidlib.open(folder, "r", run=True) as array:
        assert array.pread(array.size, 0) == content


def full(member, on=("write",)):
    return member.add(lab.Rule("error", on=on, errno=errno.ENOSPC))


def test_what_it_says_and_when_it_goes_on():
    """One event when it turns read-only, one when it goes on, and the resync that is due starts then and not before."""
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    devices = [lab.FaultyDevice(device) for device in memory]
    with raidlib.create(devices, level=5, chunk="16K", assume_clean=True) as array:
        array.pwrite(b"before" * 1000, 0)
        while array.next_event():
            pass
        rule = full(devices[2])
        for _ in range(20):
            with contextlib.suppress(raidlib.errors.NoSpaceError):
                array.pwrite(os.urandom(100_000), 50_000)
        status = array.status()
        assert status.state == "read_only" and status.job is None
        assert array.pread(6000, 0) == b"before" * 1000
        kinds = []
        while event := array.next_event():
            kinds.append(event.kind)
        assert kinds.count("no_space") == 1 and "fail" not in kinds and "sync_started" not in kinds
        devices[2].remove(rule)
        wait_for(lambda: array.state in ("clean", "active") and array.status().resync_offset is None)
        array.pwrite(b"after", 0)
        kinds = []
        while event := array.next_event(0.1):
            kinds.append(event.kind)
        assert "space" in kinds
        array.check().wait()
        assert array.status().mismatch_count == 0
        assert [m.state for m in array.status().members] == ["in_sync"] * 3


def test_a_rebuild_that_finds_no_space_goes_on():
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    new = lab.FaultyDevice(raidlib.MemoryDevice("4M"))
    with raidlib.create(memory, level=5, chunk="16K", assume_clean=True) as array:
        data = random.Random(1).randbytes(3 << 20)
        array.pwrite(data, 0)
        array.fail(0)
        rule = new.add(lab.Rule("error", on="write", errno=errno.ENOSPC, first_sector=4096, sectors=1000))
        job = array.add(new)
        with pytest.raises(raidlib.errors.NoSpaceError):
            job.wait()
        (rebuilt,) = [m for m in array.status().members if m.state == "rebuilding"]
        assert told_full(array) == [rebuilt.device]
        assert "rebuilding" in [m.state for m in array.status().members]
        new.remove(rule)
        wait_for(lambda: [m.state for m in array.status().members if m.slot is not None] == ["in_sync"] * 3)
        assert array.pread(len(data), 0) == data


@pytest.mark.parametrize("level", [1, 5])
def test_a_resync_that_finds_no_space_says_where(level):
    """And goes on by itself."""
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    with raidlib.create(memory, level=level, assume_clean=True):
        pass
    memory[2].handle.pwrite(b"\1" * 65536, 3 << 20)  # a copy, or parity of some stripe, that does not agree
    devices = [lab.FaultyDevice(device) for device in memory]
    with raidlib.open(devices) as array:
        rules = [device.add(lab.Rule("error", on="write", errno=errno.ENOSPC, first_sector=2048, sectors=6144)) for device in devices]
        with pytest.raises(raidlib.errors.NoSpaceError):
            array.repair().wait()
        (index,) = told_full(array)
        member = next(m for m in array.status().members if m.device == index)
        assert f"no space is left under {member.path}" in array.status().advice
        for device, rule in zip(devices, rules, strict=True):
            device.remove(rule)
        wait_for(lambda: "no space" not in array.status().advice)


def told_full(array):
    """The devices of the events that say so."""
    found = []
    while event := array.next_event():
        found += [event.device] if event.kind == "no_space" else []
    return found


def test_many_threads_are_refused_at_once():
    """Nobody hangs, and nobody is told a lie."""
    devices = [lab.FaultyDevice(raidlib.MemoryDevice("8M")) for _ in range(4)]
    with raidlib.create(devices, level=6, chunk="16K", assume_clean=True) as array:
        part, wrong = array.size // 8 // BLOCK * BLOCK, []
        models = [Model(part) for _ in range(8)]

        def use(number):
            rng = random.Random(number)
            for _ in range(60):
                length = rng.choice([512, 5000, 40_000])
                offset, data = rng.randrange(part - length), rng.randbytes(length)
                try:
                    array.pwrite(data, number * part + offset)
                    models[number].write(data, offset, done=True)
                except raidlib.errors.NoSpaceError:
                    models[number].write(data, offset, done=False)
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        rules = [full(device) for device in devices[1:3]]
        for thread in threads:
            thread.join()
        assert wrong == []
        for device, rule in zip(devices[1:3], rules, strict=True):
            device.remove(rule)
        wait_for(lambda: array.state in ("clean", "active") and array.status().resync_offset is None)
        for number, model in enumerate(models):
            model.check(array.pread(part, number * part))
        array.check().wait()
        assert array.status().mismatch_count == 0
        assert [m.state for m in array.status().members] == ["in_sync"] * 4


def superblock_events(device):
    return raidlib.examine(device).events


def test_superblocks_without_space_strand_nobody():
    """S2: a member that is full for many commits is never more than one event behind, and in when the array is opened again."""
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    devices = [lab.FaultyDevice(device) for device in memory]
    array = raidlib.create(devices, level=5, chunk="16K", assume_clean=True)
    array.pwrite(b"before" * 1000, 0)
    wait_for(lambda: array.state == "clean")
    devices[1].add(lab.Rule("error", on="write", first_sector=8, sectors=8, errno=errno.ENOSPC))
    for _ in range(4):
        with pytest.raises(raidlib.errors.NoSpaceError):
            array.pwrite(b"refused", 0)
        wait_for(lambda: "no space" not in array.status().advice)  # it tries again
    with pytest.raises(raidlib.errors.NoSpaceError):
        array.pwrite(b"refused", 0)
    counts = [superblock_events(device) for device in memory]
    assert max(counts) - min(counts) <= 1
    with contextlib.suppress(raidlib.errors.NoSpaceError):
        array.close()
    with raidlib.open(memory) as array:
        assert states(array) == ["in_sync"] * 3
        assert array.pread(6000, 0) in (b"before" * 1000, b"refused" + (b"before" * 1000)[7:])


def test_a_failure_that_finds_no_space_on_a_superblock_stops_all_writes():
    """S1, I1: the commit that should record it fails; what comes later is not acknowledged before one has succeeded."""
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    devices = [lab.FaultyDevice(device) for device in memory]
    array = raidlib.create(devices, level=1, assume_clean=True)
    array.pwrite(b"0" * 4096, 0)
    array.flush()
    devices[1].add(lab.Rule("error", on="write", first_sector=100, sectors=8000, errno=errno.ETIMEDOUT))
    rule = devices[2].add(lab.Rule("error", on="write", first_sector=8, sectors=8, errno=errno.ENOSPC))
    for number in range(35):  # for some seconds, in which it tries again
        with pytest.raises(raidlib.errors.NoSpaceError):
            array.pwrite(b"%d" % (number % 10) * 4096, 0)
        time.sleep(0.1)
    kinds = []
    while event := array.next_event():
        kinds.append(event.kind)
    assert (kinds.count("no_space"), kinds.count("space")) == (1, 0)
    counts = [superblock_events(memory[0]), superblock_events(memory[2])]
    assert max(counts) - min(counts) <= 1
    devices[2].remove(rule)
    wait_for(lambda: "no space" not in array.status().advice)
    array.pwrite(b"9" * 4096, 0)
    # whoever is left: the member that failed is not taken for good
    with raidlib.open([m.fork() for m in memory[1:]], mode="r", run=True) as again:
        assert again.pread(4096, 0) == b"9" * 4096
    array.close()


def test_a_full_array_takes_discards():
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    devices = [lab.FaultyDevice(device) for device in memory]
    with raidlib.create(devices, level=5, chunk="16K", assume_clean=True) as array:
        array.pwrite(b"x" * 100_000, 0)
        devices[2].add(lab.Rule("error", on="write", first_sector=4096, sectors=2000, errno=errno.ENOSPC))
        with pytest.raises(raidlib.errors.NoSpaceError):
            array.pwrite(b"y" * 200_000, 2 << 20)
        with pytest.raises(raidlib.errors.NoSpaceError):
            array.zero(0, 65536)
        array.discard(0, 65536)
        assert array.pread(65536, 0) == bytes(65536)
        devices[2].clear()
