"""The write-intent bitmap in the engine: the invariants at the head of csrc/bitmap.c, judged from what reaches the members.

What opens, makes and shows bitmaps is in test_bitmap_use.py; what a power cut may leave, in test_power_cuts.py; threads: tests/c/stress.c.
"""

import concurrent.futures
import contextlib
import errno
import os
import random
import struct
import time

import oracle
import pytest

import raidlib
from raidlib import MemoryDevice, creation, errors, lab
from raidlib.engine import Clock, check, ffi, lib
from raidlib.lab import session
from raidlib.lab.session import Session
from raidlib.member import Member, read_superblock

CHUNK, REGION, DATA, SUPER, AREA = 4096, 4096, 65536, 4096, 4096 + 24 * 512
ROWS = 16
SLOTS = {"1": 3, "4": 4, "5": 4, "6": 5, "10": 4, "rs": 6}
LEVELS = list(SLOTS)


def head(page):
    """(events, events_cleared, state, chunk) of a bitmap's superblock."""
    magic, _version, _uuid, events, cleared, _size, state, chunk, _sleep = struct.unpack_from("<II16sQQQIII", page)
    assert magic == 0x6D746962
    return events, cleared, state, chunk


def bits(page):
    """The regions whose bit is set, of those that this test's arrays have."""
    return {n for n in range(64) if page[256 + n // 8] >> n % 8 & 1}


class Bench:
    """An array with a bitmap of regions of one chunk, on devices of which everything is recorded."""

    def __init__(self, level, spares=1, seed=0):
        self.level, self.draw, self.clock = level, random.Random(seed), Clock(session.WALL_S)
        self.clock.advance(100)
        spec = creation.make_spec(
            level=level, raid_devices=SLOTS[level], chunk=CHUNK, layout=None, metadata="1.2", name="lab:bitmap",
            uuid=f"{os.getpid():032x}",  # two runs at once are not to be one array, which is opened once
            data_offset=DATA, parity=3 if level == "rs" else None, assume_clean=True,
            bitmap="none", bitmap_chunk=None, consistency_policy=None,
        )  # fmt: skip
        self.memory = [MemoryDevice(DATA + ROWS * CHUNK) for _ in range(SLOTS[level] + spares)]
        session.make(self.memory[: SLOTS[level]], spec, ROWS * CHUNK)
        with Session.start(self.memory, self.clock) as array:
            check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
            self.content = bytearray(self.draw.randbytes(array.size))
            array.write(bytes(self.content), 0)
        self.attach()

    def attach(self):
        """New recording devices over the memory as it is now."""
        self.recorder = lab.Recorder("64M")
        self.before = [device.fork() for device in self.memory]
        self.devices = [lab.FaultyDevice(device, recorder=self.recorder) for device in self.memory]

    def open(self, only=None, **options):
        devices = [d if only is None or n in only else None for n, d in enumerate(self.devices)]
        return Session.start(devices, self.clock, **options)

    def write(self, array, first, count=1, data=None):
        """Chunks `first` and following."""
        data = self.draw.randbytes(count * CHUNK) if data is None else data
        array.write(data, first * CHUNK)
        self.content[first * CHUNK :][: len(data)] = data
        self.content = bytearray(self.content[: array.size])
        self.content[first * CHUNK : first * CHUNK + len(data)] = data

    def idle(self, array, sweeps=1):
        for _ in range(sweeps):
            self.clock.advance(6)
            check(lib.rl_array_service(array.handle))

    def page(self, number):
        return self.memory[number].handle.pread(4096, AREA)

    def region(self, number, offset):
        """Of a byte of a device."""
        row = (offset - DATA) // CHUNK
        return row * 2 + number // 2 if self.level == "10" else row

    def written(self, *numbers):
        """The regions of which data was written to these devices."""
        found = set()
        for e, _ in self.entries():
            if e.op == "write" and e.offset >= DATA and (not numbers or e.device in numbers):
                found |= {self.region(e.device, at) for at in range(e.offset, e.offset + e.length, CHUNK)}
        return found

    def status(self, array):
        out = ffi.new("struct rl_bitmap_status *")
        lib.rl_array_bitmap(array.handle, out)
        return out

    def entries(self):
        return [(e, self.recorder.data(e.index) if e.op == "write" else b"") for e in self.recorder.entries()]


class Judge:
    """Goes over a record and says what breaks B1 to B5: every device's cache and medium are followed, byte for byte."""

    def __init__(self, bench, used):
        self.bench, self.used = bench, set(used)
        self.cache = {n: bytearray(d.handle.pread(d.size, 0)) for n, d in enumerate(bench.before)}
        self.durable = {n: bytes(image) for n, image in self.cache.items()}
        self.set_now = self.cleared_now = 0
        for entry, data in bench.entries():
            if entry.errno:
                continue
            if entry.op == "flush":
                self.durable[entry.device] = bytes(self.cache[entry.device])
            else:
                self.write(entry.device, entry.offset, data)

    def page(self, images, number):
        return images[number][AREA : AREA + 4096]

    def write(self, number, offset, data):
        if offset >= DATA and number in self.used:
            for at in range(offset, offset + len(data), CHUNK):
                region = self.bench.region(number, at)
                for other in self.used:
                    assert region in bits(self.page(self.durable, other)), f"B1: data of region {region} before its bit on member {other}"
        if offset == SUPER:
            events = struct.unpack_from("<Q", data, 200)[0]
            for other in self.used:
                assert head(self.page(self.durable, other))[0] >= events, f"B4: superblock {events} before the head of member {other}"
        if offset == AREA and number in self.used:
            self.bits(number, data)
        self.cache[number][offset : offset + len(data)] = data

    def bits(self, number, data):
        events, cleared, _state, _chunk = head(data)
        before, after = bits(self.page(self.cache, number)), bits(data)
        self.set_now += len(after - before)
        self.cleared_now += len(before - after)
        if not events:  # a head that says nothing: the member is being given all of it
            return
        for region in before - after:
            for other in self.used:
                assert head(self.page(self.durable, other))[1] == cleared == events, f"B3: a bit is cleared before member {other} says when"
                for at in range(DATA, len(self.cache[other]), CHUNK):
                    if self.bench.region(other, at) == region:
                        same = self.cache[other][at : at + CHUNK] == self.durable[other][at : at + CHUNK]
                        assert same, f"B2: the bit of region {region} is cleared, and member {other} was not flushed"


def until_hit(device, rule):
    """A hang tells nobody that it has begun: its count is looked at."""
    while not device.counts()[rule].hit:
        time.sleep(0.01)


def slots(level):
    return range(SLOTS[level])


@pytest.mark.parametrize("level", LEVELS)
def test_bits_go_before_data_and_are_cleared_after_a_flush(level):
    """B1, B2, B3, B4, over everything that is written, in 150 steps."""
    bench = Bench(level, seed=3)
    with bench.open() as array:
        chunks = array.size // CHUNK
        for _ in range(150):
            act = bench.draw.randrange(8)
            if act < 5:
                count = bench.draw.choice([1, 1, 2, 5])
                bench.write(array, bench.draw.randrange(chunks - count + 1), count)
            elif act == 5:
                array.flush()
            elif act == 6:  # a period passes, and the array is busy all the time
                bench.clock.advance(6)
                bench.write(array, 0)
                check(lib.rl_array_service(array.handle))
            else:
                bench.idle(array, bench.draw.randint(1, 3))
        assert array.read() == bytes(bench.content)
        bench.idle(array, 3)
        assert all(not bits(bench.page(n)) for n in slots(level)), "idle for three periods, nothing is marked"
        bench.write(array, 0)
        assert all(len(bits(bench.page(n))) == 1 for n in slots(level))
    assert all(not bits(bench.page(n)) for n in slots(level)), "nor after a clean end"
    judge = Judge(bench, slots(level))
    assert judge.set_now > 40 * SLOTS[level] and judge.cleared_now > 40 * SLOTS[level]


def test_a_bit_stays_for_a_period_after_the_last_write():
    """Cleared lazily: a region that is written again and again has its bit written once."""
    bench = Bench("5")
    with bench.open() as array:
        bench.write(array, 0)
        bench.recorder.clear()
        for _ in range(20):
            bench.write(array, 0)
            bench.clock.advance(4)
            check(lib.rl_array_service(array.handle))
        heads = [e for e, _ in bench.entries() if e.op == "write" and e.offset == AREA]
        commits = [e for e, _ in bench.entries() if e.op == "write" and e.offset == SUPER]
        assert len(heads) == len(commits), "only with the superblocks, when the array goes clean and active again"
        assert bits(bench.page(0)) == {0}


@pytest.mark.parametrize("level", LEVELS)
def test_a_bit_stays_while_a_write_is_under_way(level):
    """However long a member takes: one of the others has the data already."""
    bench = Bench(level)
    with bench.open() as array:
        bench.write(array, 0)
        bench.idle(array, 4)
        assert not bits(bench.page(0))
        slow = bench.devices[1 if level in ("1", "10") else SLOTS[level] - 1]  # the second copy, or a parity
        rule = slow.add(lab.Rule("hang", on="write", first_sector=DATA // 512, sectors=8))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            writing = pool.submit(bench.write, array, 0)
            until_hit(slow, rule)
            bench.idle(array, 4)
            marked = bits(bench.page(0))
            slow.remove(rule)
            writing.result()
        assert marked == {0}
        bench.idle(array)
        assert bits(bench.page(0)) == {0}, "what has just been written has not been flushed"
        bench.idle(array, 3)
        assert not bits(bench.page(0))
        assert array.read() == bytes(bench.content)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_cleared_while_a_member_is_missing(level):
    bench = Bench(level)
    with bench.open() as array:
        bench.write(array, 0)
        assert array.fail(1) == 1
        for chunk in range(4):
            bench.write(array, chunk)
        marked = bits(bench.page(0))
        bench.idle(array, 5)
        assert marked and bits(bench.page(0)) == marked == bits(bench.page(2))
        cleared = head(bench.page(0))[1]
        assert cleared <= struct.unpack("<Q", bench.memory[1].handle.pread(8, SUPER + 200))[0], "it can come back by it"
    assert bits(bench.page(0)) == marked, "nor at the end"


def crash(bench, change):
    """The members as after a crash with all of it written, once `change` has been done to an active array."""
    array = bench.open()
    bench.write(array, 5)
    bench.write(array, 9)
    forks = [device.fork() for device in bench.memory]
    array.close()
    for device in bench.devices:
        device.close()
    bench.memory = forks
    change(forks)
    bench.attach()


def spoil(device, row, offset=0):
    """Makes what a device has in a row differ from what the others say."""
    at = DATA + row * CHUNK + offset
    device.handle.pwrite(bytes(byte ^ 0x5A for byte in device.handle.pread(512, at)), at)


def redundancy(level, row):
    """A slot that holds what a resync computes from the others in that row: parity, or the second copy."""
    n = SLOTS[level]
    return {"1": 1, "10": 3, "4": n - 1}.get(level, n - 1 - row % n)


@pytest.mark.parametrize("level", LEVELS)
def test_after_a_crash_marked_regions_are_resynced_and_no_others(level):
    """What differs in a marked region is mended; what differs elsewhere (no crash does that) is left alone, which shows where it went."""
    bench, wrong = Bench(level), []
    rows = {"1": (5, 9), "10": (2, 4)}.get(level) or tuple(c // (SLOTS[level] - {"6": 2, "rs": 3}.get(level, 1)) for c in (5, 9))

    def change(forks):
        for row in (*rows, 12):
            spoil(forks[redundancy(level, row)], row)
            wrong.append((redundancy(level, row), row))

    crash(bench, change)
    with bench.open() as array:
        status = bench.status(array)
        assert status.needed == status.set == 2
        bench.recorder.clear()
        array.recover()
        assert bench.written() == {bench.region(slot, DATA + row * CHUNK) for slot, row in wrong[:-1]}
        assert array.run(lib.RL_SYNC_CHECK) == 8, "the one that nothing had marked is still there"
        assert array.read() == bytes(bench.content)
        assert bench.status(array).needed == 0
        bench.idle(array, 3)
        assert bench.status(array).set == 0
    Judge(bench, slots(level))


def rehead(device, **fields):
    sb = ffi.new("struct rl_bitmap_superblock *")
    page = bytearray(device.handle.pread(4096, AREA))
    check(lib.rl_bitmap_decode(ffi.from_buffer(page), sb))
    for name, value in fields.items():
        setattr(sb, name, value)
    out = ffi.new("uint8_t[256]")
    lib.rl_bitmap_encode(sb, out)
    device.handle.pwrite(bytes(ffi.buffer(out)), AREA)


@pytest.mark.parametrize("why", ["events", "state", "sync_sectors"])
@pytest.mark.parametrize("level", ["1", "5", "10"])
def test_a_bitmap_that_is_out_of_date_says_nothing(level, why):
    """md-format.md 3.5: all of it is resynced, and it is right again before anything is written."""

    def change(forks):
        for device in forks[: SLOTS[level]]:
            rehead(device, **{why: {"events": 1, "state": lib.RL_BITMAP_STALE, "sync_sectors": 8}[why]})
        spoil(forks[redundancy(level, 12)], 12)

    bench = Bench(level)
    crash(bench, change)
    with bench.open() as array:
        status = bench.status(array)
        assert status.needed == status.set == status.bits
        bench.write(array, 1)
        assert len(bits(bench.page(0)) & set(range(status.bits))) == status.bits
        array.recover()
        assert array.run(lib.RL_SYNC_CHECK) == 0
        assert array.read() == bytes(bench.content)
        bench.idle(array, 3)
        assert not bits(bench.page(1)) & set(range(status.bits)) and head(bench.page(1))[2] == 0
    Judge(bench, slots(level))


def test_what_one_has_marked_counts_and_the_others_are_given_it():
    """B5: a member may have been cut off before its bit was there."""

    def change(forks):
        forks[0].handle.pwrite(bytes(16), AREA + 256)
        forks[2].handle.pwrite(bytes(16), AREA + 256)
        spoil(forks[redundancy("5", 3)], 3)

    bench = Bench("5")
    crash(bench, change)
    with bench.open() as array:
        assert bench.status(array).needed == 2, "chunks 5 and 9 are in rows 1 and 3"
        bench.write(array, 40)
        assert bits(bench.page(0)) == bits(bench.page(1)) == bits(bench.page(2)) == {1, 3, 13}
        array.recover()
        assert array.run(lib.RL_SYNC_CHECK) == 0
    Judge(bench, slots("5"))


@pytest.mark.parametrize("what", ["magic", "events", "state", "sync_sectors"])
def test_where_one_of_the_heads_says_nothing_all_counts_as_set(what):
    """It may be that of the one that had marks which the others lack."""

    def change(forks):
        if what == "magic":
            forks[0].handle.pwrite(bytes(4), AREA)
        else:
            rehead(forks[0], **{what: {"events": 3, "state": lib.RL_BITMAP_STALE, "sync_sectors": 8}[what]})
        spoil(forks[redundancy("5", 7)], 7)

    bench = Bench("5")
    crash(bench, change)
    with bench.open() as array:
        status = bench.status(array)
        assert status.needed == status.set == status.bits
        array.recover()
        assert array.run(lib.RL_SYNC_CHECK) == 0
    with bench.open() as array:
        assert bench.status(array).set == 0 and array.read() == bytes(bench.content)
    Judge(bench, slots("5"))


@pytest.mark.parametrize(("what", "words"), [("magic", "no write-intent bitmap"), ("uuid", "another array"), ("chunk", "of 77 bytes")])
def test_without_a_bitmap_that_can_be_used_the_array_is_not_written(what, words):
    bench = Bench("5")
    for device in bench.memory[:4]:
        if what == "magic":
            device.handle.pwrite(bytes(4), AREA)
        elif what == "uuid":
            device.handle.pwrite(bytes(16), AREA + 8)
        else:
            device.handle.pwrite(struct.pack("<I", 77), AREA + 52)
    plan, numbers = session.judge_devices(bench.devices)
    if plan.read_only_only:
        with Session(plan, numbers, bench.clock, read_only=True) as array:
            assert array.read() == bytes(bench.content)
    with pytest.raises(errors.RaidError, match=words):
        Session(plan, numbers, bench.clock)
    assert not bench.entries()


@pytest.mark.parametrize("level", LEVELS)
def test_a_member_that_was_away_gets_what_changed(level):
    """By the record: of its data only the marked regions are written; and it holds what the others say."""
    bench = Bench(level)
    with bench.open() as array:
        bench.idle(array, 3)
        assert array.fail(1) == 1
        for chunk in (0, 1, 2, 3, 13):
            bench.write(array, chunk)
        changed = bits(bench.page(0))
        array.remove(1)
        bench.recorder.clear()
        readd(array, bench, 1)
        assert array.statuses()[array.numbers.index(1)].by_bitmap
        array.run(lib.RL_SYNC_RECOVER)
        assert array.statuses()[array.numbers.index(1)].state == lib.RL_DEVICE_IN_SYNC
        mine = {region for region in changed if level != "10" or region % 2 == 0}  # of which member 1 has a copy
        assert bench.written(1) == mine
        assert array.run(lib.RL_SYNC_CHECK) == 0
        bench.idle(array, 3)
        assert not bits(bench.page(1))
    for left in slots(level):
        with bench.open(only=set(slots(level)) - {left}, run=True) as array:
            assert array.read() == bytes(bench.content)
            array.fail(left)


def readd(array, bench, number):
    """By the bitmap, or an error that says why not."""
    sb, index = read_superblock(Member.open(bench.devices[number])), ffi.new("uint32_t *")
    check(lib.rl_array_readd(array.handle, bench.devices[number].handle.pointer, sb, ffi.NULL, 0, index))
    array._number(index[0], number)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_written_while_a_member_comes_back_is_on_it(level):
    """Before the point that the recovery has reached, and behind it, in regions that were marked and in others."""
    for seed in range(12):
        bench = Bench(level, seed=seed)
        with bench.open() as array:
            chunks = array.size // CHUNK
            bench.idle(array, 3)
            array.fail(1)
            for _ in range(4):
                bench.write(array, bench.draw.randrange(chunks))
            array.remove(1)
            readd(array, bench, 1)
            array.run(lib.RL_SYNC_RECOVER, stop_after=bench.draw.randint(1, 9))
            for _ in range(6):
                bench.write(array, bench.draw.randrange(chunks))

            def write(bench=bench, array=array, chunks=chunks):
                for _ in range(4):
                    bench.write(array, bench.draw.randrange(chunks))

            array.run(lib.RL_SYNC_RECOVER, meanwhile=write)
            assert array.run(lib.RL_SYNC_CHECK) == 0
            assert array.read() == bytes(bench.content)
        with bench.open(only=set(slots(level)) - {2}, run=True) as array:
            assert array.read() == bytes(bench.content)


def test_an_interrupted_return_goes_on_by_the_bitmap():
    """The superblock says 2 + 128 and how far it came."""
    bench = Bench("1")
    with bench.open() as array:
        bench.idle(array, 3)
        array.fail(1)
        for chunk in (1, 7, 13):
            bench.write(array, chunk)
        array.remove(1)
        readd(array, bench, 1)
        bench.write(array, 3)
    sb = oracle.parse_superblock(bench.memory[1].handle.pread(bench.memory[1].size, 0))
    assert sb.feature_map & (2 | 128) == 2 | 128
    bench.recorder.clear()
    with bench.open() as array:
        assert array.statuses()[array.numbers.index(1)].by_bitmap
        array.recover()
        assert bench.written(1) == {1, 3, 7, 13}
    with bench.open(only={1}, run=True) as array:
        assert array.read() == bytes(bench.content)


def test_who_lacks_more_than_is_marked_comes_back_as_a_spare_only():
    """Another one has filled the slot since, and bits were cleared; or nobody has kept any."""
    bench = Bench("1", spares=1)
    with bench.open() as array:
        array.fail(1)
        array.remove(1)
        index = array.add(bench.devices[3], 3, 1)
        assert array.activate(index, 1)
        array.run(lib.RL_SYNC_RECOVER)
        bench.write(array, 2)
        bench.idle(array, 3)
        with pytest.raises(errors.RaidError, match="away for longer"):
            readd(array, bench, 1)
        array.fail(2)
        array.remove(2)
        check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        with pytest.raises(errors.RaidError, match="no write-intent bitmap"):
            readd(array, bench, 2)


def test_a_slot_and_a_number_that_are_taken():
    bench = Bench("1", spares=1)
    with bench.open() as array:
        array.fail(1)
        with pytest.raises(errors.BusyError, match="removed first"):
            readd(array, bench, 1)
        array.remove(1)
        assert array.activate(array.add(bench.devices[3], 3, 1), 1)
        with pytest.raises(errors.BusyError, match="taken"):
            readd(array, bench, 1)


def test_a_member_that_was_used_apart_is_not_taken_for_one_that_was_away():
    """Its own superblock says that the others are gone; by the event counts alone it would do."""
    bench = Bench("1")
    apart = [device.fork() for device in bench.memory]
    with Session.start([None, apart[1], None], bench.clock, run=True) as array:
        array.write(b"other" * 100, 3 * CHUNK)
    with bench.open(only={0, 2}, run=True) as array:
        for _ in range(4):
            bench.write(array, 1)
            bench.idle(array)
        bench.devices[1].handle.pwrite(apart[1].handle.pread(apart[1].size, 0), 0)
        with pytest.raises(errors.RaidError, match="used apart"):
            readd(array, bench, 1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_bit_that_cannot_be_written(error):
    """No space: the write is refused, nothing of it reaches a member, nobody is failed. An error: the member is out, the write is done."""
    bench = Bench("5")
    with bench.open() as array:
        bench.write(array, 0)
        rule = bench.devices[1].add(lab.Rule("error", on="write", first_sector=AREA // 512, sectors=8, errno=error, times=1))
        bench.recorder.clear()
        if error == errno.ENOSPC:
            with pytest.raises(errors.NoSpaceError, match="bitmap"):
                array.write(bytes(CHUNK), 30 * CHUNK)
            assert not bench.written()
            assert all(s.state == lib.RL_DEVICE_IN_SYNC for s in array.statuses())
            bench.devices[1].remove(rule)
            bench.idle(array, 4)
            assert not bits(bench.page(0)), "nor does a mark stay for what was not written"
        bench.write(array, 30)
        assert array.read() == bytes(bench.content)
        if error == errno.EIO:
            assert array.statuses()[1].state == lib.RL_DEVICE_FAULTY
        assert 10 in bits(bench.page(0))


def test_a_new_member_has_the_bitmap_before_it_has_data():
    bench = Bench("5", spares=1)
    with bench.open() as array:
        bench.write(array, 3)
        array.fail(1)
        bench.write(array, 33)
        index = array.add(bench.devices[4], 4, 1)
        assert not any(bench.page(4)), "a spare has none"
        bench.recorder.clear()
        assert array.activate(index, 1)
        assert bits(bench.page(4)) == bits(bench.page(0)) == {1, 11} and head(bench.page(4)) == head(bench.page(0))
        first = [e.offset for e, _ in bench.entries() if e.device == 4 and e.op == "write"]
        assert first[0] == AREA, "before the superblock that gives it the slot"
        array.run(lib.RL_SYNC_RECOVER)
        bench.idle(array, 3)
        assert not bits(bench.page(4)) and array.run(lib.RL_SYNC_CHECK) == 0


def test_no_space_for_the_bitmap_of_a_new_member():
    """It has the slot, and nothing is written to the array before it has the bitmap."""
    bench = Bench("5", spares=1)
    with bench.open() as array:
        bench.write(array, 3)
        array.fail(1)
        index = array.add(bench.devices[4], 4, 1)
        rule = bench.devices[4].add(lab.Rule("error", on="write", first_sector=AREA // 512, sectors=8, errno=errno.ENOSPC))
        with pytest.raises(errors.NoSpaceError):
            array.activate(index, 1)
        bench.idle(array, 2)
        bench.recorder.clear()
        with pytest.raises(errors.NoSpaceError):
            array.write(bytes(CHUNK), 0)
        assert not bench.written()
        bench.devices[4].remove(rule)
        bench.idle(array, 2)
        bench.write(array, 9)
        assert bits(bench.page(4)) == bits(bench.page(0)) == {1, 3}
        array.run(lib.RL_SYNC_RECOVER)
        assert array.read() == bytes(bench.content) and array.run(lib.RL_SYNC_CHECK) == 0


def test_a_bitmap_of_several_pages_is_whole_before_its_head_says_so():
    """B5: a cut while a member is given it must not leave a head that counts over bits that are not there."""
    clock, recorder, rows = Clock(session.WALL_S), lab.Recorder("64M"), 40000
    spec = creation.make_spec(
        level=1, raid_devices=2, chunk=None, layout=None, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}", data_offset=DATA,
        parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None,
    )  # fmt: skip
    memory = [MemoryDevice(DATA + rows * REGION) for _ in range(3)]
    session.make(memory[:2], spec, rows * REGION)
    devices = [lab.FaultyDevice(device, recorder=recorder) for device in memory]
    with Session.start(devices, clock) as array:
        check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 16))
        array.write(b"far" * 100, 35000 * REGION)
        array.fail(1)
        recorder.clear()
        assert array.activate(array.add(devices[2], 2, 1), 1)
        told, flushed = [], True
        for entry in recorder.entries():
            if entry.device == 2 and entry.op == "flush":
                flushed = True
            elif entry.device == 2 and entry.offset == AREA:
                told.append((head(recorder.data(entry.index))[0], entry.length, flushed))
                flushed = False
        assert [(events > 0, length) for events, length, _flushed in told] == [(False, 8192), (True, 4096), (True, 4096)]
        assert told[1][2], "the bits were flushed first"
        at = 256 + 35000 // 8
        assert memory[2].handle.pread(1, AREA + at) == memory[0].handle.pread(1, AREA + at) == bytes([1 << 35000 % 8])


def test_it_is_made_and_taken_away():
    bench = Bench("6")
    with bench.open() as array:
        set_bitmap = lambda *what: check(lib.rl_array_set_bitmap(array.handle, *what))  # noqa: E731
        bench.write(array, 0)
        with pytest.raises(errors.RaidError, match="has a write-intent bitmap"):
            set_bitmap(REGION, 24, 8)
        set_bitmap(0, 0, 0)
        assert bench.status(array).chunk_bytes == 0
        assert not oracle.parse_superblock(bench.memory[0].handle.pread(bench.memory[0].size, 0)).feature_map & 1
        set_bitmap(0, 0, 0)
        for chunk, offset, words in [
            (1024, 24, "power of two"),
            (12288, 24, "power of two"),
            (REGION, 4, "no room"),
            (REGION, 120, "no room"),
        ]:
            with pytest.raises(errors.UsageError, match=words):
                set_bitmap(chunk, offset, 8)
        set_bitmap(2 * REGION, 32, 8)
        status = bench.status(array)
        assert (status.chunk_bytes, status.bits, status.set) == (2 * REGION, ROWS // 2, 0)
        bench.write(array, 0)
        assert bench.status(array).set == 1
        page = bench.memory[0].handle.pread(4096, SUPER + 32 * 512)
        assert bits(page) == {0} and head(page)[3] == 2 * REGION


def test_it_is_not_made_while_a_resync_is_due_nor_taken_away_from_under_a_member():
    bench = Bench("1")
    with bench.open() as array:
        array.fail(1)
        array.remove(1)
        readd(array, bench, 1)
        with pytest.raises(errors.BusyError, match="recovered by the bitmap"):
            check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        array.run(lib.RL_SYNC_RECOVER)
        check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        bench.write(array, 0)
        forks = [device.fork() for device in bench.memory]
    with contextlib.closing(Session.start(forks, bench.clock)) as array, pytest.raises(errors.BusyError, match="resync is due"):
        check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))


@pytest.mark.parametrize("level", LEVELS)
def test_power_cuts_under_many_writers(level):
    """Six threads, marks that are set for several of them at once, sweeps every second: whatever a cut leaves, marked regions suffice."""
    bench = Bench(level)
    for device in bench.memory[: SLOTS[level]]:
        rehead(device, daemon_sleep_s=1)
    bench.attach()
    for device in bench.devices:  # who comes while a mark is on its way has to wait for it
        device.add(lab.Rule("delay", on="write", first_sector=AREA // 512, sectors=8, delay_ms=3))
    stop = time.monotonic() + 2.6
    with raidlib.open(bench.devices[: SLOTS[level]]) as array:
        chunks = array.size // CHUNK

        def work(number):
            draw = random.Random(number)
            while time.monotonic() < stop:
                for _ in range(draw.randrange(6)):
                    array.pwrite(draw.randbytes(draw.choice([512, CHUNK, 3 * CHUNK])), draw.randrange((chunks - 3) * 8) * 512)
                if draw.randrange(4) == 0:
                    array.flush()
                time.sleep(draw.random() * 0.3)

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    history = lab.History(bench.before, bench.recorder)
    events, judged, resynced = len(history.events()), 0, 0
    for number, state in enumerate(lab.power_cuts(history, cap=0, samples=1, most=1)):
        if number % max(1, events // 60):
            continue
        with contextlib.ExitStack() as stack:
            devices = state.devices()
            for device in devices:
                stack.callback(device.close)
            with Session.start(devices[: SLOTS[level]], Clock(session.WALL_S + 1000)) as again:
                marks = ffi.new("struct rl_bitmap_status *")
                lib.rl_array_bitmap(again.handle, marks)
                resynced += 0 < marks.needed < marks.bits
                again.recover()
                assert again.run(lib.RL_SYNC_CHECK) == 0, f"moment {state.moment}"
                judged += 1
    assert judged > 40 and resynced > 5
