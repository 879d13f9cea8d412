"""Members that hang: the array answers within the deadline, what answers late changes nothing (csrc/deadline.c, D1 to D4)."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import raidlib
from raidlib import lab

DEADLINE = 0.5 if "ASAN_OPTIONS" in os.environ else 0.25  # seconds; a member in Python must make it while it is well, under sanitizers too
SLACK = 1.0
SIZE = 8 << 20

SHAPES = {
    "raid1": {"level": 1, "raid_devices": 2},
    "raid4": {"level": 4, "raid_devices": 4, "chunk": "16K"},
    "raid5": {"level": 5, "raid_devices": 4, "chunk": "16K"},
    "raid6": {"level": 6, "raid_devices": 5, "chunk": "16K"},
    "raid10": {"level": 10, "raid_devices": 4, "chunk": "16K"},
    "raid10-f2": {"level": 10, "raid_devices": 3, "chunk": "16K", "layout": "f2"},
    "rs": {"level": "rs", "raid_devices": 6, "parity": 3, "chunk": "16K"},
}


class Silent:
    """A device in memory that answers until `hush()`; then its calls (those of `kinds`) block until `speak()`."""

    block_size = 512

    def __init__(self, size=SIZE):
        self.size, self.data = size, bytearray(size)
        self.kinds = frozenset()
        self.answering = threading.Event()
        self.answering.set()
        self.held = 0  # calls that hang, or have hung

    def hush(self, *kinds):
        self.kinds = frozenset(kinds or ("read", "write", "flush"))
        self.answering.clear()

    def speak(self):
        self.answering.set()

    def _answer(self, kind):
        if kind in self.kinds and not self.answering.is_set():
            self.held += 1
            self.answering.wait()

    def preadinto(self, buffer, offset):
        self._answer("read")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def pwrite(self, data, offset):
        self._answer("write")
        self.data[offset : offset + len(data)] = data

    def flush(self):
        self._answer("flush")

    def close(self):
        pass


@pytest.fixture
def silent():
    """Makes devices, and lets all of them speak at the end: their threads would stay."""
    made = []

    def make(count, **options):
        made.extend(Silent(**options) for _ in range(count))
        return made[-count:]

    yield make
    for device in made:
        device.speak()


def timed(call, *args):
    start = time.monotonic()
    result = call(*args)
    return result, time.monotonic() - start


def states(array):
    return [str(member.state) for member in array.status().members if member.slot is not None]


@pytest.mark.parametrize("operation", ["read", "write", "partial write", "flush", "zero", "close"])
@pytest.mark.parametrize("name", SHAPES)
def test_answers_within_the_deadline(silent, name, operation):
    """D1, D2: one call to an array with a member that hangs, of every kind and level."""
    devices = silent(SHAPES[name]["raid_devices"])
    with raidlib.create(devices, assume_clean=True, deadline=DEADLINE, **SHAPES[name]) as array:
        rng = random.Random(name)
        content = bytearray(rng.randbytes(1 << 20))
        array.pwrite(bytes(content), 0)
        array.flush()
        fresh = rng.randbytes(100_000)
        calls = {
            "read": lambda: array.pread(1 << 20, 0),
            "write": lambda: array.pwrite(fresh, 65536),
            "partial write": lambda: array.pwrite(fresh[:1000], 65536 + 100),
            "flush": array.flush,
            "zero": lambda: array.zero(0, 1 << 20),
            "close": array.close,
        }
        devices[1].hush()
        result, seconds = timed(calls[operation])
        assert seconds < DEADLINE + SLACK
        if operation == "read":
            assert result == content
        elif operation == "write":
            content[65536 : 65536 + len(fresh)] = fresh
        elif operation == "partial write":
            content[65636:66636] = fresh[:1000]
        elif operation == "zero":
            content[:] = bytes(1 << 20)
        if operation == "close":
            return
        got, seconds = timed(array.pread, 1 << 20, 0)
        assert got == content and seconds < SLACK  # at once: the member is out
        assert timed(array.flush)[1] < SLACK
    with raidlib.open([d for d in devices if d is not devices[1]], run=True) as array:
        assert array.pread(1 << 20, 0) == content


@pytest.mark.parametrize("level", ["linear", 0])
def test_without_redundancy_it_is_an_error(silent, level):
    devices = silent(3)
    with raidlib.create(devices, level=level, raid_devices=3, assume_clean=True, deadline=DEADLINE) as array:
        array.pwrite(b"\x55" * 300_000, 0)
        for device in devices[1:]:
            device.hush()
        start = time.monotonic()
        with pytest.raises(raidlib.RaidError) as caught:
            array.pread(array.size, 0)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - start < DEADLINE + SLACK
        assert array.state == "failed"
        with pytest.raises(raidlib.RaidError):
            array.close()


def test_the_member_is_named_with_the_reason(silent):
    devices = silent(3)
    with raidlib.create(devices, level=5, raid_devices=3, chunk="16K", assume_clean=True, deadline=DEADLINE) as array:
        devices[0].hush("write")
        array.pwrite(bytes(range(256)) * 1000, 0)
        gone = next(member for member in array.status().members if member.state == "faulty")
        assert f"has not answered for {DEADLINE:.1f} seconds" in gone.reason
        assert states(array).count("in_sync") == 2


def test_a_late_answer_changes_nothing(silent):
    """D3, and rule 8: not before its last request has ended is it taken back."""
    devices = silent(4)
    with raidlib.create(devices, level=5, raid_devices=4, chunk="16K", assume_clean=True, deadline=DEADLINE) as array:
        old = random.Random(1).randbytes(600_000)
        array.pwrite(old, 0)
        devices[2].hush()
        new = random.Random(2).randbytes(600_000)
        array.pwrite(new, 0)
        assert devices[2].held >= 1
        newer = random.Random(3).randbytes(600_000)
        array.pwrite(newer, 0)
        with pytest.raises(raidlib.errors.BusyError, match="has not ended"):
            array.add(devices[2])
        devices[2].speak()
        until = time.monotonic() + 10
        while True:
            try:
                array.add(devices[2]).wait()
                break
            except raidlib.errors.BusyError:
                assert time.monotonic() < until
                time.sleep(0.01)
        assert states(array) == ["in_sync"] * 4
        assert array.pread(600_000, 0) == newer
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0


def test_the_heartbeat_finds_it(silent):
    """Nobody uses the array: within a second and the deadline the member is out all the same."""
    devices = silent(3)
    with raidlib.create(devices, level=1, raid_devices=3, assume_clean=True, deadline=DEADLINE) as array:
        array.flush()
        devices[1].hush()
        until = time.monotonic() + 10 + DEADLINE + 2 * SLACK  # the look at the superblock is every ten seconds
        while "faulty" not in [m.state for m in array.status().members] and time.monotonic() < until:
            time.sleep(0.05)
        assert "faulty" in [m.state for m in array.status().members]


def test_two_at_once(silent):
    """Both are found in one deadline, not one after the other: one that is longer than what it may take besides."""
    devices, deadline = silent(6), 2 * SLACK
    with raidlib.create(devices, level=6, raid_devices=6, chunk="16K", assume_clean=True, deadline=deadline) as array:
        data = random.Random(4).randbytes(1 << 20)
        array.pwrite(data, 0)
        devices[1].hush()
        devices[4].hush()
        got, seconds = timed(array.pread, 1 << 20, 0)
        assert got == data and seconds < deadline + SLACK
        assert timed(array.pwrite, data, 4096)[1] < SLACK


def test_many_threads_meet_it(silent):
    devices = silent(5)
    with raidlib.create(devices, level=6, raid_devices=5, chunk="16K", assume_clean=True, deadline=DEADLINE) as array:
        slowest, wrong = [], []

        def work(number):
            rng = random.Random(number)
            base = number << 19
            for round_ in range(30):
                data = rng.randbytes(5000)
                start = time.monotonic()
                array.pwrite(data, base + round_ * 700)
                if array.pread(5000, base + round_ * 700) != data:
                    wrong.append(number)
                slowest.append(time.monotonic() - start)
                if number == 0 and round_ == 10:
                    devices[3].hush()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert max(slowest) < DEADLINE + SLACK


def test_a_rebuild_onto_a_member_that_hangs(silent):
    devices = silent(4)
    new = silent(1)[0]
    with raidlib.create(devices, level=5, raid_devices=4, chunk="16K", assume_clean=True, deadline=DEADLINE) as array:
        data = random.Random(5).randbytes(1 << 20)
        array.pwrite(data, 0)
        array.fail(1)
        new.hush("flush")
        with pytest.raises(raidlib.RaidError):
            job = array.add(new)
            assert job is not None
            job.wait(timeout=DEADLINE + 2 * SLACK)
        assert array.pread(1 << 20, 0) == data


def test_slow_is_not_dead(silent):
    """Many requests wait for a member that answers, each in less than the deadline: all of them are served."""
    device = silent(2)
    original = Silent.preadinto

    class Slow(Silent):
        def preadinto(self, buffer, offset):
            time.sleep(0.05)
            original(self, buffer, offset)

    devices = [Slow(), device[0]]
    with raidlib.create(devices, level=1, raid_devices=2, assume_clean=True, deadline=DEADLINE) as array:
        threads = [threading.Thread(target=lambda: [array.pread(4096, (n % 8) << 20) for n in range(4)]) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert states(array) == ["in_sync", "in_sync"]


# ---- a file system whose server was stopped ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A file `volume` that another process serves by FUSE, and that process."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    folder = tmp_path_factory.mktemp("served")
    mountpoint = folder / "mnt"
    mountpoint.mkdir()
    raidlib.create(folder / "inner", level=0, raid_devices=1, size=SIZE + (4 << 20)).close()
    command = [sys.executable, "-m", "raidlib", "mount", str(folder / "inner"), str(mountpoint), "--fs", "none", "--foreground"]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        owner.stdout.readline()
        yield mountpoint / "volume", owner
    finally:
        owner.send_signal(signal.SIGCONT)
        owner.send_signal(signal.SIGINT)
        owner.communicate(timeout=30)
        subprocess.run(["fusermount3", "-uz", mountpoint], capture_output=True, check=False)


def free_again(volume):
    """The last request to it has ended, and it is nobody's member."""
    until = time.monotonic() + 20
    while True:
        try:
            raidlib.zero_superblock(volume)
        except raidlib.errors.NoSuperblockError:
            return
        except raidlib.errors.BusyError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_stopped_fuse_server(served, silent):
    """A file on it is a member; the server stops; the array goes on, closes, and lets the file go once the server goes on."""
    volume, owner = served
    devices = [*silent(2), str(volume)]
    with raidlib.create(devices, level=5, raid_devices=3, chunk="64K", assume_clean=True, deadline=DEADLINE) as array:
        data = random.Random(6).randbytes(1 << 20)
        array.pwrite(data, 0)
        array.flush()
        owner.send_signal(signal.SIGSTOP)
        got, seconds = timed(array.pread, 1 << 20, 0)
        assert got == data and seconds < DEADLINE + SLACK
        assert timed(array.pwrite, data[::-1], 0)[1] < DEADLINE + SLACK
        assert states(array).count("in_sync") == 2
        assert timed(array.status)[1] < SLACK
        assert timed(array.remove, "faulty")[1] < SLACK
        assert timed(array.close)[1] < SLACK + DEADLINE
    owner.send_signal(signal.SIGCONT)
    with raidlib.open(devices[:2], run=True) as array:
        assert array.pread(1 << 20, 0) == data[::-1]
    free_again(volume)


# ---- many runs, each other than the last: RAIDLIB_HANG_RUNS=1000, or `make hang` ------------------------------------------

RUNS = int(os.environ.get("RAIDLIB_HANG_RUNS", "24"))


def hang_object(rng, silent, _served, count):
    """Python objects; from now on one of them blocks, in some of its calls."""
    devices, gone = silent(count, size=2 << 20), rng.randrange(count)
    kinds = rng.choice([("read",), ("write",), ("flush",), ("read", "write"), ("read", "write", "flush")])
    return devices, gone, lambda: devices[gone].hush(*kinds), devices[gone].speak


def hang_fault(rng, _silent, _served, count):
    """Fault members over memory."""
    devices, gone = [lab.FaultyDevice(raidlib.MemoryDevice("2M"), seed=rng.getrandbits(32)) for _ in range(count)], rng.randrange(count)
    kinds = rng.choice([("read",), ("write",), ("flush",), ("read", "write"), ("read", "write", "flush", "probe")])
    return devices, gone, lambda: devices[gone].add(lab.Rule("hang", on=kinds, after=rng.randrange(4))), devices[gone].clear


def hang_fuse(rng, silent, served, count):
    """A file on a FUSE file system, whose server is stopped."""
    volume, owner = served()
    with open(volume, "r+b") as file:
        file.write(bytes(volume.stat().st_size))
    devices, gone = silent(count, size=2 << 20), rng.randrange(count)
    devices[gone] = str(volume)
    return devices, gone, lambda: owner.send_signal(signal.SIGSTOP), lambda: owner.send_signal(signal.SIGCONT)


def one_history(array, rng, threads, model_lock, models, slowest):
    """Threads write and read, each in a part of its own; what was acknowledged is in `models`."""

    def work(number):
        mine = random.Random(rng.getrandbits(32))
        for _ in range(mine.randrange(4, 12)):
            model, part = models[number], array.size // threads
            length = min(mine.choice([512, 1000, 4096, 40_000]), part)
            at = mine.randrange(part - length + 1)
            begun, what = time.monotonic(), mine.random()
            if what < 0.6:
                data = mine.randbytes(length)
                array.pwrite(data, number * part + at)
                model[at : at + length] = data
            elif what < 0.9:
                assert array.pread(length, number * part + at) == model[at : at + length]
            else:
                array.flush()
            with model_lock:
                slowest.append(time.monotonic() - begun)

    problems = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            problems.append(error)

    running = [threading.Thread(target=guarded, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    return running, problems


@pytest.mark.parametrize("hang", [hang_object, hang_fault, hang_fuse])
@pytest.mark.parametrize("share", range(-(-RUNS // 3)))
def test_runs(silent, request, hang, share):
    """Any level, any moment, any call: in time, and what answers late changes nothing."""
    rng = random.Random(f"{hang.__name__} {share}")
    name, threads = rng.choice(sorted(SHAPES)), rng.choice([1, 2, 4])
    devices, gone, start, end = hang(rng, silent, lambda: request.getfixturevalue("served"), SHAPES[name]["raid_devices"])
    with raidlib.create(devices, assume_clean=True, deadline=DEADLINE, **SHAPES[name]) as array:
        slowest, models = [], [bytearray(array.pread(array.size // threads, n * (array.size // threads))) for n in range(threads)]
        if rng.random() < 0.5:
            start()
            running, problems = one_history(array, rng, threads, threading.Lock(), models, slowest)
        else:
            running, problems = one_history(array, rng, threads, threading.Lock(), models, slowest)
            time.sleep(rng.random() * 0.02)
            start()
        for thread in running:
            thread.join()
        try:
            assert problems == [] and max(slowest) < DEADLINE + SLACK
            part = array.size // threads
            assert [array.pread(part, n * part) for n in range(threads)] == models
            out = array.status().members[gone].state != "in_sync"
        finally:
            end()  # late answers
        time.sleep(0.01)
        assert [array.pread(part, n * part) for n in range(threads)] == models
    if out:
        survivors = [device for index, device in enumerate(devices) if index != gone]
        with raidlib.open(survivors, "r", run=True) as array:
            assert [array.pread(part, n * part) for n in range(threads)] == models
    for device in devices:
        if isinstance(device, lab.FaultyDevice):
            device.close()
        elif isinstance(device, str):
            free_again(device)
