"""What every kind of member keeps to, one row each; then what is special of forks, faulty devices and recorders."""

import errno
import itertools
import os
import random
import subprocess
import threading
import time

import pytest

import raidlib
from raidlib import errors, lab
from raidlib.member import Member

SIZE = 3 * 262144 + 8192  # three chunks of a memory member, and a bit


class PlainObject:
    """The smallest BlockDevice there is."""

    size, block_size = SIZE, 512

    def __init__(self):
        self.content = bytearray(SIZE)

    def preadinto(self, buffer, offset):
        buffer[:] = self.content[offset : offset + len(buffer)]

    def pwrite(self, data, offset):
        self.content[offset : offset + len(data)] = data

    def flush(self):
        pass

    def close(self):
        pass


def file(tmp_path):
    path = tmp_path / f"member-{len(list(tmp_path.iterdir()))}"
    with open(path, "wb") as new:
        new.truncate(SIZE)
    return path


def fork_of_a_member_that_is_written_on(tmp_path):
    origin = raidlib.MemoryDevice(SIZE)
    fork = origin.fork()
    origin.handle.pwrite(b"\xff" * SIZE, 0)
    origin.close()
    return fork


# A kind: what makes one, all zeros, of SIZE bytes; and the options with which it is opened.
KINDS = {
    "file": (file, {}),
    "file, direct": (file, {"direct": True}),
    "file, with a deadline": (file, {"deadline": 30}),
    "file, direct, with a deadline": (file, {"direct": True, "deadline": 30}),
    "memory": (lambda _: raidlib.MemoryDevice(SIZE), {}),
    "fork": (fork_of_a_member_that_is_written_on, {}),
    "fault over memory": (lambda _: lab.FaultyDevice(raidlib.MemoryDevice(SIZE)), {}),
    "fault, with a deadline": (lambda _: lab.FaultyDevice(raidlib.MemoryDevice(SIZE)), {"deadline": 30}),
    "fault over a file": (lambda tmp_path: lab.FaultyDevice(file(tmp_path)), {}),
    "fault over a file, direct": (lambda tmp_path: lab.FaultyDevice(file(tmp_path), direct=True), {}),
    "recorded": (lambda _: lab.FaultyDevice(raidlib.MemoryDevice(SIZE), recorder=lab.Recorder("64M")), {}),
    "object": (lambda _: PlainObject(), {}),  # always with a deadline
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def handle(kind, tmp_path):
    make, options = kind
    source = make(tmp_path)
    with Member.open(source, **options) as member:
        if options.get("direct") and not member.direct:
            pytest.skip("no direct I/O in the temporary folder's file system")
        yield member.handle
    if isinstance(source, raidlib.member.EngineDevice):
        source.close()


def block_bytes(handle):
    return raidlib.engine.lib.rl_member_block_bytes(handle.pointer)


def test_new_is_zeros(handle):
    assert handle.size == SIZE
    assert handle.pread(SIZE, 0) == bytes(SIZE)


def test_what_is_written_is_read(handle):
    dice, model, block = random.Random(5), bytearray(SIZE), max(512, block_bytes(handle))
    for _ in range(300):
        low = dice.randrange(SIZE // block) * block
        data = dice.randbytes(min(SIZE - low, dice.choice([1, 2, 8, 70, 600]) * block))
        handle.pwrite(data, low)
        model[low : low + len(data)] = data
        low = dice.randrange(SIZE // block) * block
        length = min(SIZE - low, dice.choice([1, 9, 700]) * block)
        result = raidlib.engine.lib.rl_member_zero(handle.pointer, length, low, dice.choice([0, raidlib.engine.lib.RL_ZERO_DISCARD]))
        assert result in (0, -errno.EOPNOTSUPP)  # then it is not done
        if result == 0 and dice.random() < 0.3:
            model[low : low + length] = bytes(length)
        elif result == 0:
            handle.pwrite(model[low : low + length], low)
        start = dice.randrange(SIZE)
        length = dice.randrange(min(SIZE - start, 300000) + 1)
        assert handle.pread(length, start) == model[start : start + length]
        if dice.random() < 0.1:
            handle.flush()
    assert handle.pread(SIZE, 0) == model


def test_what_is_not_inside_is_refused_and_changes_nothing(handle):
    block = max(512, block_bytes(handle))
    for length, offset in [
        (block, SIZE),
        (2 * block, SIZE - block),
        (block, 2**63),
        (SIZE + block, 0),
        (2**63, block),
        (block, 2**64 - block),
    ]:
        with pytest.raises(errors.UsageError, match="not inside"):
            raidlib.engine.check(raidlib.engine.lib.rl_member_pread(handle.pointer, raidlib.engine.ffi.NULL, length, offset, 0))
        with pytest.raises(errors.UsageError, match="not inside"):
            raidlib.engine.check(raidlib.engine.lib.rl_member_pwrite(handle.pointer, raidlib.engine.ffi.NULL, length, offset))
    assert handle.pread(0, SIZE) == b""
    assert handle.pread(SIZE, 0) == bytes(SIZE)


def test_writes_are_whole_blocks_and_reads_any_bytes(handle):
    block = block_bytes(handle)
    handle.pwrite(bytes(range(256)) * (8192 // 256), 4096)
    assert handle.pread(3, 4096 + 254) == b"\xfe\xff\x00"
    for length, offset in [(block - 1, 0), (block, 1), (block + 1, 0)]:
        if block > 1:
            with pytest.raises(errors.UsageError, match="not whole blocks"):
                handle.pwrite(b"x" * length, offset)
        else:
            handle.pwrite(b"x" * length, offset)
            assert handle.pread(length, offset) == b"x" * length
    view = memoryview(bytearray(8192 + 1))[1:]  # a buffer at an odd address
    handle.pwrite(view, 0)
    assert handle.pread(4096, 0) == bytes(4096)


def test_many_threads(handle):
    """Each thread its own blocks, side by side in every page and chunk."""
    block, threads, problems = max(512, block_bytes(handle)), 4, []

    def work(mine):
        dice = random.Random(mine)
        model = {}
        try:
            for _ in range(150):
                number = dice.randrange(SIZE // block // threads) * threads + mine
                model[number] = dice.randbytes(block)
                handle.pwrite(model[number], number * block)
                number = dice.choice(list(model))
                assert handle.pread(block, number * block) == model[number]
                handle.pread(SIZE, 0)
            for number, data in model.items():
                assert handle.pread(block, number * block) == data
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []


def test_as_a_member_of_an_array(kind, tmp_path):
    make, options = kind
    sources = [make(tmp_path) for _ in range(3)]
    with raidlib.create(sources, level=5, chunk="16K", data_offset="128K") as array:
        content = random.Random(1).randbytes(array.size)
        array.pwrite(content, 0)
        array.flush()
        for member in array._members:
            with pytest.raises(errors.BusyError):
                member.handle.close()
    with raidlib.open(sources, **options) as array:
        array.fail(1)
        assert array.pread(array.size, 0) == content
    for source in sources:
        if isinstance(source, raidlib.member.EngineDevice):
            source.close()


# ---- forks ---------------------------------------------------------------------------------------------------------------


def test_forks_go_their_own_ways():
    """A family of forks, written and closed in any order, each compared with its own model."""
    dice = random.Random(11)
    family = [(raidlib.MemoryDevice(SIZE), bytearray(SIZE))]
    for _ in range(1500):
        device, model = dice.choice(family)
        act = dice.random()
        if act < 0.2:
            low = dice.randrange(SIZE)
            length = min(SIZE - low, dice.choice([1, 5000, 300000]))
            raidlib.engine.check(raidlib.engine.lib.rl_member_zero(device.handle.pointer, length, low, 0))
            model[low : low + length] = bytes(length)
        elif act < 0.75:
            low = dice.randrange(SIZE)
            data = dice.randbytes(dice.choice([1, 100, 4096, 9000, 270000]))[: SIZE - low]
            device.handle.pwrite(data, low)
            model[low : low + len(data)] = data
        elif act < 0.85 and len(family) < 12:
            family.append((device.fork(), bytearray(model)))
        elif act < 0.92 and len(family) > 1:
            family.remove((device, model))
            assert device.handle.pread(SIZE, 0) == model
            device.close()
        else:
            assert device.handle.pread(SIZE, 0) == model
    for device, model in family:
        assert device.handle.pread(SIZE, 0) == model
        device.close()


def test_a_fork_is_of_one_moment():
    """A writer counts at the beginning, then at the end, then in the middle: no fork holds a later count without the earlier ones."""
    size = 16 << 30  # sparse: its table is long, so that a fork takes a while
    device, places, stop = raidlib.MemoryDevice(size), [0, size - 512, size // 2], threading.Event()

    def count():
        for number in itertools.count(1):
            for place in places:
                device.handle.pwrite(number.to_bytes(8, "little") * 64, place)
            if stop.is_set():
                return

    writer = threading.Thread(target=count)
    writer.start()
    try:
        seen, deadline = set(), time.monotonic() + 60
        for number in itertools.count():
            fork = device.fork()
            first, last, middle = (int.from_bytes(fork.handle.pread(8, place), "little") for place in places)
            assert first - 1 <= middle <= last <= first
            seen.add((first - last, first - middle))
            fork.close()
            if number > 500 and len(seen) == 3:  # also taken in the midst of a count
                break
            assert time.monotonic() < deadline
    finally:
        stop.set()
        writer.join()
    device.close()


def test_a_fork_costs_little():
    device = raidlib.MemoryDevice("64M")
    device.handle.pwrite(b"x" * (1 << 20), 0)
    began = time.perf_counter()
    for _ in range(500):
        fork = device.fork()
        fork.handle.pwrite(b"y" * 512, 4096)
        fork.close()
    assert (time.perf_counter() - began) / 500 < 0.001  # measured: 0.00001
    device.close()


def test_only_memory_forks(tmp_path):
    with Member.open(file(tmp_path)) as member, pytest.raises(errors.UsageError, match="not a member in memory"):
        member.handle.fork()


# ---- faults --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    device = raidlib.MemoryDevice(SIZE)
    device.handle.pwrite(b"\x11" * SIZE, 0)
    yield device
    device.close()


@pytest.fixture
def faulty(memory):
    device = lab.FaultyDevice(memory, seed=7)
    yield device
    device.close()


NEW = b"\x22" * 8192


def failing(call, code=errno.EIO):
    with pytest.raises(errors.RaidError) as caught:
        call()
    assert caught.value.errno == code
    return str(caught.value)


def test_errors_in_a_range_after_some_and_so_many_times(faulty, memory):
    number = faulty.add(lab.Rule("error", on="write", first_sector=8, sectors=2, after=1, times=2, errno=errno.EREMOTEIO))
    faulty.handle.pwrite(b"a" * 512, 7 * 512)  # beside the range
    faulty.handle.pwrite(b"b" * 512, 10 * 512)
    faulty.handle.pwrite(b"c" * 512, 9 * 512)  # the first in it
    for offset, length in [(8 * 512, 512), (0, 8 * 512 + 1)]:
        text = failing(lambda o=offset, n=length: faulty.handle.pwrite(b"d" * n, o), errno.EREMOTEIO)
        assert f"injected by rule {number}" in text
    assert faulty.handle.pread(512, 8 * 512) == b"\x11" * 512
    faulty.handle.pwrite(b"e" * 512, 8 * 512)
    assert faulty.counts() == [lab.Counts(reached=4, hit=2, active=True)]
    assert memory.handle.pread(4 * 512, 7 * 512) == b"a" * 512 + b"e" * 512 + b"c" * 512 + b"b" * 512


@pytest.mark.parametrize("bytes_", [0, 512, 4096, 100000, None])
def test_short_requests(faulty, memory, bytes_):
    faulty.add(lab.Rule("short", bytes=bytes_))
    failing(lambda: faulty.handle.pwrite(NEW, 0))
    now = memory.handle.pread(SIZE, 0)
    done = now.count(b"\x22")
    assert now == b"\x22" * done + b"\x11" * (SIZE - done)
    if bytes_ is None:
        assert done in range(0, 8192, 512)
    else:
        assert done == min(bytes_, 8192)


def test_wrong_bytes_are_always_the_same_ones(faulty, memory):
    faulty.add(lab.Rule("flip", first_sector=2, sectors=2))
    whole = faulty.handle.pread(8192, 0)
    wrong = [i for i in range(8192) if whole[i] != 0x11]
    assert [i // 512 for i in wrong] == [2, 3]
    assert all((whole[i] ^ 0x11).bit_count() == 1 for i in wrong)
    assert b"".join(faulty.handle.pread(100, i * 100) for i in range(81)) == whole[:8100]
    assert memory.handle.pread(8192, 0) == b"\x11" * 8192
    other = lab.FaultyDevice(memory, seed=8, rules=[lab.Rule("flip", first_sector=2, sectors=2)])
    assert other.handle.pread(8192, 0) != whole
    other.close()


def test_sectors_that_are_bad_until_they_are_written(faulty, memory):
    latent = faulty.add(lab.Rule("error", on="read", first_sector=2, sectors=4, until_written=True))
    rot = faulty.add(lab.Rule("flip", on="read", first_sector=10, sectors=2, until_written=True))
    failing(lambda: faulty.handle.pread(1024, 1024))
    faulty.handle.pwrite(b"\x22" * 1300, 1024)  # two sectors, and a part of one
    assert faulty.handle.pread(1024, 1024) == b"\x22" * 1024
    failing(lambda: faulty.handle.pread(512, 4 * 512))
    failing(lambda: faulty.handle.pread(8192, 0))
    faulty.handle.pwrite(b"\x22" * 1024, 2048)
    whole = faulty.handle.pread(8192, 0)
    wrong = [i for i in range(8192) if whole[i] not in (0x11, 0x22)]
    assert [i // 512 for i in wrong] == [10, 11]
    torn = faulty.add(lab.Rule("lost", on="write"))
    faulty.handle.pwrite(b"\x33" * 512, 10 * 512)  # reaches nothing
    faulty.remove(torn)
    faulty.handle.pwrite(b"\x33" * 512, 11 * 512)
    whole = faulty.handle.pread(8192, 0)
    assert [i // 512 for i in range(8192) if whole[i] not in (0x11, 0x22, 0x33)] == [10]
    assert [faulty.counts()[number].hit for number in (latent, rot)] == [3, 2]


def test_wrong_bytes_that_a_write_leaves(faulty, memory):
    number = faulty.add(lab.Rule("flip", on="write", first_sector=2, sectors=2))
    faulty.handle.pwrite(NEW, 0)
    for reader in (faulty, memory):
        whole = reader.handle.pread(8192, 0)
        wrong = [i for i in range(8192) if whole[i] != 0x22]
        assert [i // 512 for i in wrong] == [2, 3]
    faulty.remove(number)
    faulty.handle.pwrite(NEW, 0)
    assert memory.handle.pread(8192, 0) == NEW


def test_writes_torn_in_pieces_of_4096_bytes(faulty, memory):
    faulty.add(lab.Rule("torn", bytes=4096))
    shapes = set()
    for _ in range(12):
        memory.handle.pwrite(b"\x11" * SIZE, 0)
        faulty.handle.pwrite(b"\x22" * 16384, 2048)
        now = memory.handle.pread(SIZE, 0)
        pieces = [now[max(at, 2048) : min(at + 4096, 18432)] for at in range(0, 20480, 4096)]
        assert all(piece in (b"\x11" * len(piece), b"\x22" * len(piece)) for piece in pieces)
        shapes.add(tuple(piece[0] for piece in pieces))
    assert len(shapes) >= 6 and not {(0x11,) * 5, (0x22,) * 5} & shapes


def test_lost_writes_and_flushes_that_lie(memory):
    recorder = lab.Recorder()
    faulty = lab.FaultyDevice(memory, rules=[lab.Rule("lost", on=("write", "flush"), times=2)], recorder=recorder)
    faulty.handle.pwrite(NEW, 0)
    faulty.handle.flush()
    assert faulty.handle.pread(8192, 0) == b"\x11" * 8192
    assert recorder.entries() == []
    faulty.handle.pwrite(NEW, 0)
    faulty.handle.flush()
    assert [entry.op for entry in recorder.entries()] == ["write", "flush"]
    assert faulty.handle.pread(8192, 0) == NEW
    faulty.close()
    recorder.close()


def test_misdirected_writes_and_reads(faulty, memory):
    there = faulty.add(lab.Rule("misdirected", shift_sectors=16))
    faulty.handle.pwrite(NEW, 0)
    assert memory.handle.pread(16384, 0) == b"\x11" * 8192 + NEW
    assert faulty.handle.pread(8192, 0) == NEW
    faulty.handle.pwrite(NEW, SIZE - 8192)  # beyond the end: nowhere
    faulty.remove(there)
    faulty.add(lab.Rule("misdirected", shift_sectors=-1))
    faulty.handle.pwrite(NEW, 0)  # before the beginning
    faulty.handle.pwrite(b"x" * 512, 512)
    assert memory.handle.pread(1024, 0) == b"x" * 512 + b"\x11" * 512
    assert memory.handle.pread(8192, SIZE - 8192) == b"\x11" * 8192


@pytest.mark.parametrize("code", [None, errno.EIO])
def test_torn_writes(faulty, memory, code):
    faulty.add(lab.Rule("torn", errno=code))
    shapes = set()
    for sectors in (1, 2, 2, 2, 3, 16, 16, 16, 16):
        memory.handle.pwrite(b"\x11" * 8192, 0)
        write = lambda n=sectors: faulty.handle.pwrite(b"\x22" * (512 * n), 0)  # noqa: E731
        failing(write) if code else write()
        now = memory.handle.pread(512 * sectors, 0)
        got = [now[i * 512 : (i + 1) * 512] for i in range(sectors)]
        arrived = tuple(piece == b"\x22" * 512 for piece in got)
        assert all(piece in (b"\x22" * 512, b"\x11" * 512) for piece in got)
        assert not all(arrived)
        assert any(arrived) == (sectors > 1)
        shapes.add(arrived)
    assert len(shapes) >= 7


def test_gone_until_it_is_made_to_return(faulty, memory):
    faulty.add(lab.Rule("lost", on="flush"))
    number = faulty.add(lab.Rule("gone", on="read", after=1))
    faulty.handle.pread(512, 0)
    for call in (
        lambda: faulty.handle.pread(512, 0),
        lambda: faulty.handle.pwrite(NEW, 0),
        faulty.handle.flush,
        lambda: faulty.handle.pread(512, 0),
    ):
        failing(call, errno.ENODEV)
    assert raidlib.engine.lib.rl_member_probe(faulty.handle.pointer) == -errno.ENODEV
    faulty.remove(number)
    assert faulty.handle.pread(512, 0) == b"\x11" * 512
    assert raidlib.engine.lib.rl_member_probe(faulty.handle.pointer) == 0
    assert faulty.counts()[number] == lab.Counts(reached=6, hit=5, active=False)


def test_delays_add_up(faulty):
    faulty.add(lab.Rule("delay", on="flush", delay_ms=30))
    faulty.add(lab.Rule("delay", on="flush", delay_ms=40))
    began = time.monotonic()
    faulty.handle.flush()
    assert time.monotonic() - began >= 0.07
    faulty.handle.pread(512, 0)
    assert [count.hit for count in faulty.counts()] == [1, 1]


def hanging(faulty, call):
    """A thread that hangs in `call`, and a list to which the outcome will be appended."""
    outcome = []

    def work():
        try:
            outcome.append(call())
        except errors.RaidError as error:
            outcome.append(error)

    before = sum(count.hit for count in faulty.counts())
    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 30
    while sum(count.hit for count in faulty.counts()) == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread, outcome


def test_what_hangs_goes_on_when_it_is_released(faulty, memory):
    for let_go in (faulty.release, lambda: faulty.remove(0), faulty.clear):
        memory.handle.pwrite(b"\x11" * 8192, 0)
        assert faulty.add(lab.Rule("hang", on="write")) == 0
        thread, outcome = hanging(faulty, lambda: faulty.handle.pwrite(NEW, 0))
        assert faulty.handle.pread(8192, 0) == b"\x11" * 8192  # reads do not hang, and it is not done yet
        assert outcome == []
        let_go()
        thread.join(30)
        assert outcome == [None]
        assert memory.handle.pread(8192, 0) == NEW
        faulty.clear()


@pytest.mark.parametrize("rule", [lab.Rule("hang", on="write"), lab.Rule("delay", on="write", delay_ms=10**7)], ids=["hang", "delay"])
def test_what_hangs_ends_when_the_device_is_closed(memory, rule):
    faulty = lab.FaultyDevice(memory, rules=[rule])
    thread, outcome = hanging(faulty, lambda: faulty.handle.pwrite(NEW, 0))
    faulty.close()
    thread.join(30)
    assert len(outcome) == 1
    assert outcome[0].errno == errno.EIO
    assert memory.handle.pread(8192, 0) == b"\x11" * 8192


def test_one_seed_one_outcome(memory):
    """By the seed, a rule's number and how often it was reached; other rules change nothing."""

    def outcome(seed, *more):
        faulty = lab.FaultyDevice(memory, seed=seed, rules=[lab.Rule("error", on="read", probability=0.3), *more])
        result = []
        for _ in range(200):
            try:
                faulty.handle.pread(512, 0)
                result.append(0)
            except errors.RaidError:
                result.append(1)
        hits = faulty.counts()[0]
        faulty.close()
        assert hits == lab.Counts(reached=200, hit=sum(result), active=True)
        return result

    assert outcome(1) == outcome(1) == outcome(1, lab.Rule("flip", probability=0.5), lab.Rule("error", on="flush"))
    assert outcome(1) != outcome(2)
    assert 30 < sum(outcome(1)) < 90
    for probability, hits in [(0.0, 0), (1.0, 200)]:
        faulty = lab.FaultyDevice(memory, rules=[lab.Rule("flip", probability=probability)])
        for _ in range(200):
            faulty.handle.pread(512, 0)
        assert faulty.counts()[0].hit == hits
        faulty.close()


def test_rules_that_make_no_sense_are_refused(faulty):
    for rule, words in [
        (lab.Rule("error", errno=0), "not an errno"),
        (lab.Rule("error", probability=1.5), "between 0 and 1"),
        (lab.Rule("error", probability=float("nan")), "between 0 and 1"),
        (lab.Rule("flip", on="flush"), "can be done to read, write, not to 'flush'"),
        (lab.Rule("torn", bytes=1000), "whole blocks of 512 bytes, not of 1000"),
        (lab.Rule("error", on=()), "can be done to"),
        (lab.Rule("melted"), "the faults are error, short"),
        (lab.Rule("error", first_sector=2**63, sectors=2**63), "beyond any member"),
        (lab.Rule("error", after=-1), "after=-1"),
        (lab.Rule("error", on="write", sectors=8, until_written=True), "for reads"),
        (lab.Rule("error", on="read", until_written=True), "a range of at most"),
    ]:
        with pytest.raises(errors.UsageError, match=words):
            faulty.add(rule)
    assert faulty.counts() == []
    with pytest.raises(errors.UsageError, match="has no rule 3"):
        faulty.remove(3)


def test_a_device_below_is_not_closed_under_it(memory, tmp_path):
    faulty = lab.FaultyDevice(memory)
    with pytest.raises(errors.BusyError):
        memory.close()
    outer = lab.FaultyDevice(faulty, rules=[lab.Rule("flip")])
    with pytest.raises(errors.BusyError):
        faulty.close()
    assert outer.handle.pread(512, 0) != faulty.handle.pread(512, 0)
    outer.close()
    faulty.close()
    path = file(tmp_path)
    held = lab.FaultyDevice(path)
    with pytest.raises(errors.BusyError):
        lab.FaultyDevice(path)
    held.close()
    with pytest.raises(errors.UsageError, match="closed"):
        held.counts()
    lab.FaultyDevice(path).close()


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        (lab.Rule("error", on="write", after=3), "faulty"),
        (lab.Rule("short", on="write", after=3), "faulty"),
        (lab.Rule("error", on="flush"), "faulty"),
        (lab.Rule("gone", on="write", after=3), "faulty"),
        (lab.Rule("error", on="read", times=2), "in_sync"),  # healed
        (lab.Rule("delay", delay_ms=1, probability=0.1), "in_sync"),
    ],
)
def test_an_array_lives_with_it(rule, state):
    memory = [raidlib.MemoryDevice("4M") for _ in range(4)]
    bad = lab.FaultyDevice(memory[1], seed=3)
    with raidlib.create([memory[0], bad, *memory[2:]], level=5, chunk="16K") as array:
        bad.add(rule)
        content = random.Random(2).randbytes(array.size)
        for low in range(0, array.size, 100000):
            array.pwrite(content[low : low + 100000], low)
        array.flush()
        assert array.pread(array.size, 0) == content
        assert next(m.state for m in array.status().members if m.path == "<faulty memory>") == state
        assert bad.counts()[0].hit > 0
    bad.close()
    for device in memory:
        device.close()


# ---- recorders -----------------------------------------------------------------------------------------------------------


def test_the_record_is_what_reached_the_devices():
    """Done once more in order, it gives the same content, whatever faults there were."""
    recorder, dice = lab.Recorder(), random.Random(4)
    rules = [
        lab.Rule(fault, probability=0.1, shift_sectors=24, **more)
        for fault, more in [("torn", {}), ("lost", {}), ("misdirected", {}), ("short", {}), ("error", {"on": ("write", "flush")})]
    ]
    below = [raidlib.MemoryDevice(SIZE) for _ in range(2)]
    before = [device.fork() for device in below]
    devices = [lab.FaultyDevice(device, seed=i, rules=rules, recorder=recorder) for i, device in enumerate(below)]
    for _ in range(400):
        device = dice.choice(devices)
        data = dice.randbytes(512 * dice.choice([1, 2, 9, 40]))
        try:
            device.handle.pwrite(data, dice.randrange(SIZE - len(data)))
            device.handle.flush()
        except errors.RaidError:
            pass
    assert all(count.hit > 0 for device in devices for count in device.counts())
    entries = recorder.entries()
    numbers = [number for entry in entries for number in (entry.begun, entry.ended)]
    assert numbers == sorted(set(numbers))  # one thread: nothing overlaps
    assert {entry.device for entry in entries} == {0, 1}
    for entry in entries:
        if entry.op == "write":
            assert len(recorder.data(entry.index)) == entry.length
            recorder.apply(entry.index, before[entry.device])
    for device, replayed in zip(below, before, strict=True):
        assert device.handle.pread(SIZE, 0) == replayed.handle.pread(SIZE, 0)
    with pytest.raises(errors.BusyError):
        recorder.close()
    for device in [*devices, *below, *before]:
        device.close()
    recorder.close()
    with pytest.raises(errors.UsageError, match="closed"):
        recorder.entries()


def test_parts_of_a_recorded_write(memory):
    recorder = lab.Recorder()
    faulty = lab.FaultyDevice(memory, recorder=recorder)
    data = random.Random(1).randbytes(2048)
    faulty.handle.pwrite(data, 1024)
    assert recorder.data(0) == data
    target = raidlib.MemoryDevice(SIZE)
    recorder.apply(0, target, 512, 1024)
    assert target.handle.pread(4096, 0) == bytes(1536) + data[512:1536] + bytes(1536)
    for first, length in [(2048, 1), (0, 2049), (2**63, 2**63)]:
        with pytest.raises(errors.UsageError, match="not inside"):
            recorder.apply(0, target, first, length)
    with pytest.raises(errors.UsageError, match="no entry 1"):
        recorder.data(1)
    faulty.handle.flush()
    with pytest.raises(errors.UsageError, match="not inside"):
        recorder.apply(1, target)
    faulty.close()
    recorder.clear()
    assert recorder.entries() == []
    recorder.close()
    target.close()


def test_what_overlaps_is_recorded_as_overlapping(memory):
    """A write that is under way while another device's write and flush come and go."""
    recorder = lab.Recorder()
    slow = lab.FaultyDevice(lab.FaultyDevice(memory, rules=[lab.Rule("hang", on="write")]), recorder=recorder)
    quick = lab.FaultyDevice(raidlib.MemoryDevice(SIZE), recorder=recorder)
    thread, outcome = hanging(slow._inner._device, lambda: slow.handle.pwrite(NEW, 0))
    quick.handle.pwrite(NEW, 512)
    quick.handle.flush()
    assert [(e.device, e.op, e.begun, e.ended) for e in recorder.entries()] == [
        (0, "write", 1, None),
        (1, "write", 2, 3),
        (1, "flush", 4, 5),
    ]
    with pytest.raises(errors.BusyError):
        recorder.clear()
    slow._inner._device.clear()
    thread.join(30)
    assert outcome == [None]
    assert recorder.entries()[0].ended == 6
    for device in (slow, slow._inner._device, quick):
        device.close()
    recorder.close()


def test_the_inner_devices_answer_is_recorded(memory):
    recorder = lab.Recorder()
    inner = lab.FaultyDevice(memory, rules=[lab.Rule("error", on="write"), lab.Rule("error", on="flush", errno=errno.ENOSPC)])
    outer = lab.FaultyDevice(inner, recorder=recorder)
    failing(lambda: outer.handle.pwrite(NEW, 0))
    failing(outer.handle.flush, errno.ENOSPC)
    assert [(entry.op, entry.errno) for entry in recorder.entries()] == [("write", errno.EIO), ("flush", errno.ENOSPC)]
    outer.close()
    inner.close()
    recorder.close()


def test_a_full_recorder_says_so(memory):
    recorder = lab.Recorder("64K")
    faulty = lab.FaultyDevice(memory, recorder=recorder)
    for number in range(10):
        faulty.handle.pwrite(bytes([number]) * 8192, number * 8192)
    assert memory.handle.pread(10 * 8192, 0) == b"".join(bytes([number]) * 8192 for number in range(10))  # requests go on
    with pytest.raises(errors.RaidError, match="not whole: its 65536 bytes were full after 7 requests") as caught:
        recorder.entries()
    assert caught.value.errno == errno.ENOBUFS
    faulty.handle.pwrite(b"x" * 512, 0)  # would fit, but what comes after a gap is no record
    with pytest.raises(errors.RaidError, match="after 7 requests"):
        len(recorder)
    recorder.clear()
    faulty.handle.pwrite(b"x" * 512, 0)
    assert len(recorder) == 1
    faulty.close()
    recorder.close()


def test_a_record_under_threads(memory):
    """Each thread's requests stand in the record in its order, none overlapping another of the same thread, and none is missing."""
    recorder = lab.Recorder()
    faulty = lab.FaultyDevice(memory, recorder=recorder)

    def work(mine):
        for number in range(200):
            faulty.handle.pwrite(bytes([mine, number]) * 256, mine * 512)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = recorder.entries()
    assert sorted(number for e in entries for number in (e.begun, e.ended)) == list(range(1, 1601))
    for mine in range(4):
        own = [e for e in entries if e.offset == mine * 512]
        assert [recorder.data(e.index)[:2] for e in own] == [bytes([mine, number]) for number in range(200)]
        assert all(before.ended < after.begun for before, after in itertools.pairwise(own))
    faulty.close()
    recorder.close()


# --- Past the page cache ----------------------------------------------------------------------------------------------


def test_device_reads_of_a_file_of_any_size_at_any_offset(tmp_path):
    """A file's end need not lie where direct I/O could read to."""
    path, content = tmp_path / "odd", random.Random(9).randbytes(300 * 1024 + 512)
    path.write_bytes(content)
    dice = random.Random(4)
    with Member.open(path) as member:
        for _ in range(300):
            start = dice.choice([dice.randrange(len(content)), dice.randrange(70) * 4096])
            length = dice.choice([1, 512, 4096, 65536, 65537, len(content) - start])
            length = min(length, len(content) - start)
            assert member.handle.pread(length, start, raidlib.engine.lib.RL_IO_DEVICE) == content[start : start + length]


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and has no loop device")
@pytest.mark.parametrize(("length", "start"), [(4096, 1 << 20), (512, (1 << 20) + 512), (1 << 20, 1 << 20)])
def test_device_reads_see_what_changed_below_the_page_cache(tmp_path, length, start):
    """Also where the cache holds it in a large folio, of which a part is asked for: dropping a range leaves that."""
    image, before, after = tmp_path / "below", b"\x11" * (8 << 20), b"\x22" * (8 << 20)
    image.write_bytes(before)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["blockdev", "--setra", "8192", device], check=True)
        with Member.open(device) as member:
            assert member.handle.pread(len(before), 0) == before
            image.write_bytes(after)
            assert member.handle.pread(length, start) == before[:length]  # the cache
            assert member.handle.pread(length, start, raidlib.engine.lib.RL_IO_DEVICE) == after[:length]
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
