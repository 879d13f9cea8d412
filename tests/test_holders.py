"""Who may open an array, who is named when it is refused, and what a forked child can do to its parent's."""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import raidlib
from raidlib import control, errors, holders, runtime
from raidlib.engine import lib

ROOT = Path(__file__).resolve().parent.parent
TRIES = 25  # of each of the four ways: a hundred in all

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_loop = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and has no loop device")

# Opens what it is told to and keeps it. "fork": by Python; "fork in C": without Python's knowing, from a thread that keeps the GIL.
FIRST = """
import ctypes, json, os, signal, sys, raidlib
array = raidlib.open(json.loads(sys.argv[1]), run=True)
print(os.getpid(), flush=True)
for line in sys.stdin:
    child = os.fork() if line == "fork\\n" else ctypes.PyDLL(None).fork()
    if child == 0:
        while True:
            signal.pause()
    print(child, flush=True)
"""
# For each line a process of its own that opens the members of the line, says how that went, and ends.
SECOND = """
import json, os, sys, raidlib
for line in sys.stdin:
    if os.fork() == 0:
        try:
            raidlib.open(json.loads(line), run=True).close()
            answer = ["opened", ""]
        except raidlib.RaidError as error:
            answer = [type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.wait()
"""


class Talk:
    """A process that answers each line with a line; killed at the end, with the children that it names."""

    def __init__(self, program, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, **pipes)
        self.children = []

    def hear(self):
        assert select.select([self.process.stdout], [], [], 30)[0], "no answer in 30 seconds"
        return self.process.stdout.readline()

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        return self.hear()

    def fork(self, how):
        self.children.append(int(self.ask(how)))
        return self.children[-1]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """A folder for running arrays that no other test has."""
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def halves(tmp_path):
    """The two members of a mirror."""
    folder = tmp_path / "tank"
    raidlib.create(folder, level=1, raid_devices=2, size="4M").close()
    return [str(folder / f"member-{slot}.img") for slot in range(2)]


@contextlib.contextmanager
def first(members):
    with Talk(FIRST, json.dumps(members)) as talk:
        assert int(talk.hear()) == talk.process.pid
        yield talk


@contextlib.contextmanager
def second():
    with Talk(SECOND) as talk:
        yield lambda members: json.loads(talk.ask(json.dumps(members)))


def end(pid):
    """Kills a process that is not our child, and waits until it has gone."""
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watched], [], [], 10)[0]
    os.close(watched)


# --- The second opener ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hard_link(path, place):
    os.link(path, place / "other.img")
    yield place / "other.img"


@contextlib.contextmanager
def symbolic_link(path, place):
    (place / "other.img").symlink_to(path)
    yield place / "other.img"


@contextlib.contextmanager
def bind_mount(path, place):
    subprocess.run(["mount", "--bind", os.path.dirname(path), place], check=True)
    try:
        yield place / os.path.basename(path)
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def other_half(path, _place):
    yield path.replace("member-0", "member-1")


@pytest.mark.parametrize("way", [hard_link, symbolic_link, pytest.param(bind_mount, marks=needs_root), other_half])
def test_a_second_opener_is_refused_until_the_first_is_killed(way, halves, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    with way(halves[0], place) as other, first(halves[:1]) as opener, second() as attempt:
        for _ in range(TRIES):
            kind, text = attempt([str(other)])
            assert kind == "BusyError"
            assert f"process {opener.process.pid} (python" in text
        opener.kill()
        assert attempt([str(other)]) == ["opened", ""]


def test_one_process_names_itself(halves):
    with raidlib.open(halves), pytest.raises(errors.BusyError, match=rf"this process, process {os.getpid()} \("):
        raidlib.open(halves)
    with raidlib.open(halves, mode="r"), raidlib.open(halves, mode="r"):  # readers together
        with pytest.raises(errors.BusyError, match=f"member-0.img is in use by this process, process {os.getpid()}"):
            raidlib.open(halves)


def test_another_users_process_is_not_named(halves, monkeypatch):
    """What the kernel does not let us look into."""
    with first(halves[:1]), monkeypatch.context() as patched:
        patched.setattr(holders, "_locks", lambda pid, file: False)
        patched.setattr(runtime, "found", lambda alive: [])
        with pytest.raises(errors.BusyError, match="another opener of the array, which this user may not look at"):
            raidlib.open(halves[:1], run=True)


# --- Forked children --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0, 1], ids=["the same member", "the other half"])
def test_a_child_forked_in_c_is_named_after_its_parents_death(half, halves):
    with first(halves[:1]) as opener, second() as attempt:
        child = opener.fork("fork in C")
        opener.kill()
        kind, text = attempt(halves[half : half + 1])
        assert kind == "BusyError"
        assert f"process {child} (python" in text
        end(child)
        assert attempt(halves[half : half + 1]) == ["opened", ""]


def test_a_child_forked_by_python_holds_nothing(halves):
    with first(halves) as opener, second() as attempt:
        child = opener.fork("fork")
        assert attempt(halves)[0] == "BusyError"
        opener.kill()
        assert attempt(halves) == ["opened", ""]
        end(child)


def in_child(work, fork=os.fork):
    """Runs `work` in a forked child; fails with what it raised, and if it does not end.

    Whether Python itself runs on in a child of a fork that it does not know of is luck: one in which it never does is tried again.
    """
    for _ in range(5):
        if begun_in_child(work, fork):
            return
    pytest.fail("Python did not run in any child")


def begun_in_child(work, fork):
    read, write = os.pipe()
    interval = sys.getswitchinterval()
    # threads that wait for the interpreter's lock look every interval whether they may have it: a fork that Python does not know of,
    # just then, would give the child a lock that nobody opens
    sys.setswitchinterval(60)
    pid = fork()
    sys.setswitchinterval(interval)
    if pid == 0:
        text = "nothing came back"
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # else it is pytest-timeout's, which C code would not let run
            signal.alarm(20)
            os.write(write, b"begun")
            work()
            text = ""
        except BaseException as error:
            text = repr(error)
        finally:
            os.write(write, text.encode())
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        begun = bool(select.select([answer], [], [], 15)[0])
        if not begun:
            os.kill(pid, signal.SIGKILL)
        told = answer.read()
    ended = os.waitpid(pid, 0)[1]
    assert not begun or ended == 0, "the child hung"
    assert told == ("begun" if begun else "")
    return begun


CALLS = {
    "pread": lambda a: a.pread(512, 0),
    "preadinto": lambda a: a.preadinto(bytearray(512), 0),
    "pwrite": lambda a: a.pwrite(bytes(512), 0),
    "flush": lambda a: a.flush(),
    "zero": lambda a: a.zero(0, 512),
    "discard": lambda a: a.discard(0, 512),
    "raw": lambda a: a.raw().read(512),
    "block_ops": lambda a: a.block_ops(),
    "fail": lambda a: a.fail(0),
    "remove": lambda a: a.remove("faulty"),
    "add": lambda a: a.add("new.img"),
    "check": lambda a: a.check(),
    "repair": lambda a: a.repair(),
    "status": lambda a: a.status(),
    "state": lambda a: a.state,
    "next_event": lambda a: a.next_event(0.1),
    "wait": lambda a: a.job.wait(),
    "pause": lambda a: a.job.pause(),
    "job status": lambda a: a.job.status(),
}


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["python", "C"])
def test_in_a_forked_child_every_call_says_whose_the_array_is(fork, halves):
    """While threads of the parent hold the array's locks."""
    parent = os.getpid()
    with raidlib.open(halves) as array, control.Owner(array) as owner:
        array.check().wait()
        held, go = threading.Barrier(2), threading.Event()

        def hold():
            with array._admin, array._gate, array.job._lock:
                held.wait()
                go.wait()

        def work():
            for name, call in CALLS.items():
                with pytest.raises(errors.ForkedError, match=f"by process {parent}, of which this one is a fork"):
                    call(array)
                    pytest.fail(name)
            assert array.closed
            array.raw().close()
            array.close()
            owner.stop()
            with array, array.claim:
                pass

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            in_child(work, fork)
        finally:
            go.set()
            thread.join()
        assert control.connect(halves[0]).status().state == "clean"  # folder, lock, socket: all still there
        array.pwrite(b"here", 0)
        assert array.pread(4, 0) == b"here"


def test_the_engine_takes_no_lock_in_a_forked_child(tmp_path):
    """A thread of the parent is inside a change and holds every lock of it."""
    inside, go = threading.Event(), threading.Event()

    class Slow:
        size, block_size, slow = 4 << 20, 512, False

        def __init__(self):
            self.data = bytearray(self.size)

        def preadinto(self, buffer, offset):
            buffer[:] = self.data[offset : offset + len(buffer)]

        def pwrite(self, data, offset):
            if self.slow:
                inside.set()
                go.wait()
            self.data[offset : offset + len(data)] = data

        def flush(self):
            pass

        def close(self):
            pass

    disks = [Slow() for _ in range(3)]
    with raidlib.create(disks, level=1, assume_clean=True) as array:
        disks[1].slow = True
        thread = threading.Thread(target=array.fail, args=(0,))
        thread.start()
        inside.wait()
        handle, ffi = array._handle, raidlib.engine.ffi
        calls = {
            "fail": lambda: lib.rl_array_fail(handle, 1),
            "remove": lambda: lib.rl_array_remove(handle, 1),
            "add": lambda: lib.rl_array_add(handle, ffi.NULL, ffi.NULL, ffi.NULL),
            "activate": lambda: lib.rl_array_activate_spare(handle, 1, -1),
            "device": lambda: lib.rl_array_device(handle, 1, ffi.new("struct rl_device_status *")),
            "superblock": lambda: lib.rl_array_superblock(handle, 1, ffi.new("struct rl_superblock *")),
            "read": lambda: lib.rl_array_pread(handle, ffi.NULL, 1, 0),
            "job": lambda: lib.rl_sync_new(handle, lib.RL_SYNC_CHECK, ffi.new("rl_sync **")),
            "close": lambda: lib.rl_array_close(handle),
        }

        def work():
            for name, call in calls.items():
                assert (name, call()) == (name, -10)  # ECHILD
            lib.rl_array_status(handle, ffi.new("struct rl_array_status *"))

        try:
            in_child(work)
        finally:
            go.set()
            thread.join()


# --- The kernel and other programs ------------------------------------------------------------------------------------


@contextlib.contextmanager
def loop_device(path):
    done = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@contextlib.contextmanager
def mounted(device, place):
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def make_ext4(path):
    path.touch()
    os.truncate(path, 8 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", path], check=True, capture_output=True)


@needs_loop
def test_a_file_behind_a_loop_device_is_read_only(halves, tmp_path):
    os.link(halves[0], tmp_path / "other.img")
    with loop_device(halves[0]) as device:
        for name in (halves[0], tmp_path / "other.img"):
            with pytest.raises(errors.BusyError, match=rf"it is behind the loop device {device}: losetup -d {device}; to read"):
                raidlib.open([name, halves[1]])
        with raidlib.open(halves, mode="r") as array:
            assert array.state == "read_only"
        with raidlib.open([device, halves[1]]) as array:  # through the loop device it may be written
            assert array.state == "clean"
    raidlib.open(halves).close()


@needs_loop
def test_what_is_mounted_is_named(tmp_path):
    image, place = tmp_path / "fs.img", tmp_path / "my files"
    make_ext4(image)
    with loop_device(image) as device:
        with mounted(device, place):
            mount_words = rf"mounted at {place}: umount {place}"
            with pytest.raises(errors.BusyError, match=rf"behind the loop device {device}, {mount_words}, losetup -d {device}"):
                raidlib.create([image, None], level=1, force=True)
            with pytest.raises(errors.BusyError, match=f"{device} is in use by the kernel: it is {mount_words}"):
                raidlib.create([device, None], level=1, force=True)
        raidlib.create([device, None], level=1, force=True).close()


@needs_loop
def test_who_has_a_block_device_is_named(halves):
    with loop_device(halves[0]) as device, first([device]) as opener, second() as attempt:
        kind, text = attempt([device])
        assert kind == "BusyError"
        assert f"process {opener.process.pid} (python" in text


def test_another_program_that_locks_is_named(halves):
    lock = "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    with Talk(lock, halves[0]) as other:
        other.hear()
        with pytest.raises(errors.BusyError, match=f"process {other.process.pid} "):
            raidlib.open(halves)
    raidlib.open(halves).close()


def test_swap_is_named(halves, monkeypatch):
    name = halves[0].replace("tank", "my tank")
    os.rename(os.path.dirname(halves[0]), os.path.dirname(name))
    swaps = ["Filename\tType\tSize\tUsed\tPriority", f"{name.replace(' ', chr(92) + '040')} file 4092 0 -2"]
    lines = holders._lines
    monkeypatch.setattr(holders, "_lines", lambda path: swaps if path == "/proc/swaps" else lines(path))
    with pytest.raises(errors.BusyError, match=f"in use by the kernel: it is swap space: swapoff {name}; to read"):
        raidlib.open(os.path.dirname(name))
    raidlib.open(os.path.dirname(name), mode="r").close()


def test_the_kernels_own_array_is_named(tmp_path):
    """This is how /sys shows an array that the kernel has assembled of a disk, and of a partition of it."""
    for folder in ("sda/holders/md127", "sda/sda1/holders/dm-3"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sda/dev").write_text("999:0\n")
    (tmp_path / "sda/sda1/partition").write_text("1\n")
    assert list(holders._above(tmp_path / "sda")) == [
        ("part of the array /dev/md127", "mdadm --stop /dev/md127"),
        ("with its partition /dev/sda1 part of /dev/dm-3", "take /dev/dm-3 down"),
    ]


def test_processes_in_words():
    few = [holders.Process(number, "cat") for number in range(2, 7)]
    assert holders.in_words(few[:1]) == "process 2 (cat)"
    assert holders.in_words(few[:2]) == "process 2 (cat) and process 3 (cat)"
    assert holders.in_words(few) == "process 2 (cat), process 3 (cat), process 4 (cat) and others"
