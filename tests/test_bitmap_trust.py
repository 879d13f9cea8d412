"""The write-intent bitmap against two reviews that were out to lose data by it: whose marks count, who comes back, what is not marked.

Each test began as a script that showed the loss. The rest of the engine's part: test_bitmap.py.
"""

import concurrent.futures
import contextlib
import errno
import random

import pytest
from test_bitmap import (
    AREA,
    CHUNK,
    DATA,
    LEVELS,
    REGION,
    SLOTS,
    SUPER,
    Bench,
    bits,
    crash,
    head,
    readd,
    redundancy,
    rehead,
    spoil,
    until_hit,
)

from raidlib import MemoryDevice, creation, errors, lab
from raidlib.engine import Clock, check, ffi, lib
from raidlib.lab import session
from raidlib.lab.session import Session
from raidlib.member import Member, read_superblock, write_superblock
from raidlib.model import MemberState


def replay(entries, devices):
    """Does to the devices what of a record was done."""
    for e, data in entries:
        if e.op == "write" and not e.errno:
            devices[e.device].handle.pwrite(data, e.offset)


def failed_unrecorded(level, bad, chunk):
    """A bench, and its devices as a power cut left them when a member had failed at a mark: right after the last data reached one."""
    bench = Bench(level)
    with bench.open() as array:
        bench.write(array, 0)
        before = [device.fork() for device in bench.memory]
        bench.recorder.clear()
        bench.devices[bad].add(lab.Rule("error", on="write", first_sector=AREA // 512, sectors=8, errno=errno.EIO, times=1))
        bench.write(array, chunk)
    entries = bench.entries()
    last = max(k for k, (e, _) in enumerate(entries) if e.op == "write" and e.offset >= DATA)
    replay(entries[: last + 1], before)
    return bench, before


@pytest.mark.parametrize(("level", "members"), [("1", 2), ("5", 4), ("10", 4)])
def test_a_cut_while_the_others_are_given_what_one_has_marked(level, members, monkeypatch):
    """B5: at every moment of the first commit of a session somebody has the mark, under a head that counts, or all counts as set."""
    monkeypatch.setitem(SLOTS, level, members)
    for bad in range(members):
        bench, before = failed_unrecorded(level, bad, 5)
        page = bytearray(before[bad].handle.pread(4096, AREA))
        page[256 + 1] |= 0x80  # its own mark, of which the others have got the clearing already
        before[bad].handle.pwrite(bytes(page), AREA)
        recorder, kept = lab.Recorder("64M"), [device.fork() for device in before]
        with Session.start([lab.FaultyDevice(device, recorder=recorder) for device in before], bench.clock) as array:
            array.write(bytes(CHUNK), 0)
        entries = [(e, recorder.data(e.index) if e.op == "write" else b"") for e in recorder.entries()]
        first = next(k for k, (e, _) in enumerate(entries) if e.op == "write" and e.offset >= DATA)
        assert first > 3 * members
        for cut in range(first):
            state = [device.fork() for device in kept]
            replay(entries[:cut], state)
            with Session.start(state, bench.clock) as array:
                array.recover()
                assert array.run(lib.RL_SYNC_CHECK) == 0, f"member {bad}, after {cut} requests"


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_marks_that_a_member_lacks_which_failed_unrecorded(level, bad):
    """B1 holds for the others, and the power goes before they say that it is out: the first one asked is not the one to believe."""
    for chunk in range(3, 12):
        bench, before = failed_unrecorded(level, bad, chunk)
        with Session.start(before, bench.clock) as array:
            array.recover()
            assert array.run(lib.RL_SYNC_CHECK) == 0, f"chunk {chunk}"


@pytest.mark.parametrize("level", ["1", "5", "10"])
def test_where_the_marks_of_one_cannot_be_read_all_count_as_set(level):
    bench = Bench(level)
    crash(bench, lambda _forks: None)
    plan, numbers = session.judge_devices(bench.devices)
    bench.devices[1].add(lab.Rule("error", on="read", first_sector=AREA // 512, sectors=8, errno=errno.EIO))
    with Session(plan, numbers, bench.clock) as array:
        status = bench.status(array)
        assert status.needed == status.set == status.bits
        array.recover()
        assert array.run(lib.RL_SYNC_CHECK) == 0 and array.read() == bytes(bench.content)


@pytest.mark.parametrize(("numbers", "swept"), [("new", False), ("new", True), ("as ours", True), ("as ours, cleared before", True)])
def test_a_member_with_which_others_were_put_into_our_slots_is_not_taken_back(numbers, swept):
    """They are whole without us: its superblock says of nobody that he is gone. With our numbers only its bitmap tells."""
    bench = Bench("1", spares=1)
    with bench.open() as array:
        bench.idle(array, 3)
    apart = [device.fork() for device in bench.memory]
    with Session.start([None, None, lab.FaultyDevice(apart[2]), None], bench.clock, run=True) as array:
        array.write(b"other" * 100, 3 * CHUNK)
    with Session.start([None, None, lab.FaultyDevice(apart[2]), None], bench.clock) as array:  # which knows of no others any more
        for number in (10, 11):
            index = array.add(lab.FaultyDevice(MemoryDevice(apart[0].size)), number, 1)
            assert array.activate(index, -1)
        array.run(lib.RL_SYNC_RECOVER)
        for _ in range(3 * swept):
            bench.clock.advance(6)
            check(lib.rl_array_service(array.handle))
        sb = ffi.new("struct rl_superblock *")
        check(lib.rl_array_superblock(array.handle, 0, sb))
        assert list(sb.dev_roles[0:6]) == [0xFFFF, 0xFFFF, 2, 0, 1, 0xFFFF], "no number that one of ours had"
    with bench.open(only={0, 1}, run=True) as array:
        for _ in range(8):
            bench.write(array, 1)
            bench.idle(array)
        bench.devices[2].handle.pwrite(apart[2].handle.pread(apart[2].size, 0), 0)
        if numbers == "as ours, cleared before":
            rehead(bench.devices[2], events_cleared=bench.status(array).events_cleared - 1)
        if numbers != "new":
            own = read_superblock(Member.open(bench.devices[2]))
            own.dev_roles[0], own.dev_roles[1] = 0, 1
            write_superblock(Member.open(bench.devices[2]), own)
        with pytest.raises(errors.RaidError, match="used apart"):
            readd(array, bench, 2)


@pytest.mark.parametrize("bitmap", [False, True])
def test_a_forced_start_records_who_is_not_there_before_it_acknowledges(bitmap):
    """An unclean array without one of its members: what is acknowledged then is not undone by that member's return after a power cut."""
    bench = Bench("5")
    if not bitmap:
        with bench.open() as array:
            check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        bench.attach()
    crash(bench, lambda _forks: None)
    with contextlib.closing(Session.start([*bench.devices[:3], None, None], bench.clock, force=True)) as array:
        bench.write(array, 16)
        forks = [device.fork() for device in bench.memory]  # the power goes
    with pytest.raises(errors.RefusedError, match="the others say that it has failed"):
        Session.start([device.fork() for device in forks], bench.clock)
    with Session.start(forks, bench.clock, force=True) as array:
        assert array.read() == bytes(bench.content)


@pytest.mark.parametrize("changed", [{"ctime_s": 1}, {"layout": 0}, {"size_sectors": 8}])
def test_a_member_of_an_earlier_array_with_the_same_uuid_is_not_taken_back(changed):
    bench = Bench("5")
    with bench.open() as array:
        array.fail(2)
        array.remove(2)
        own = read_superblock(Member.open(bench.devices[2]))
        for name, value in changed.items():
            setattr(own, name, value)
        write_superblock(Member.open(bench.devices[2]), own)
        with pytest.raises(errors.RaidError, match="another array with the same UUID"):
            readd(array, bench, 2)


def test_a_bitmap_that_is_made_does_not_reach_back():
    """Who was away when it was made lacks what nothing has marked, even with the last event count before."""
    bench = Bench("5")
    with bench.open() as array:
        check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
    bench.attach()
    crash(bench, lambda forks: spoil(forks[redundancy("5", 2)], 2))
    away = next(n for n in range(4) if n != redundancy("5", 2))
    devices = [device if n != away else None for n, device in enumerate(bench.devices[:4])]
    with contextlib.closing(Session.start(devices, bench.clock, force=True)) as array:
        check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
        with pytest.raises(errors.RaidError, match=r"away for longer|used apart"):
            readd(array, bench, away)


def test_a_spare_without_room_for_the_bitmap():
    """It holds something else there: it is left out, with the reason; and the engine gives it no slot."""
    bench = Bench("1")
    with bench.open() as array:
        array.add(bench.devices[3], 3, 1)
    spare = Member.open(bench.memory[3])
    sb = read_superblock(spare)
    sb.data_offset, sb.bblog_offset, sb.bblog_sectors = 16, 0, 0
    write_superblock(spare, sb)
    plan, numbers = session.judge_devices(bench.devices)
    candidate = next(c for c in plan.candidates if c.sb.data_offset == 16)
    assert (candidate.state, candidate.reason) == (MemberState.FAULTY, "it has no room for the array's write-intent bitmap")
    candidate.state = MemberState.SPARE
    with Session(plan, numbers, bench.clock) as array:
        array.fail(1)
        with pytest.raises(errors.UsageError, match="no room"):
            array.activate(3, 1)
        array.remove(1)
        assert array.run(lib.RL_SYNC_CHECK) == 0


def test_what_a_repair_mends_is_lacked_by_who_is_away():
    """It is marked, as what is written is: two copies of three are made to agree, and the third has to follow."""
    bench = Bench("1")
    with bench.open() as array:
        bench.idle(array, 3)
    spoil(bench.memory[0], 6)
    with bench.open() as array:
        array.fail(2)
        array.remove(2)
        assert array.run(lib.RL_SYNC_REPAIR) == 8 and array.run(lib.RL_SYNC_CHECK) == 0
        readd(array, bench, 2)
        array.run(lib.RL_SYNC_RECOVER)
        assert array.run(lib.RL_SYNC_CHECK) == 0


def test_a_repair_marks_nothing_before_all_have_the_bitmap():
    """B5: a page with a head that counts must not come over others that lack marks."""
    clock, rows = Clock(session.WALL_S), 40000
    spec = creation.make_spec(
        level=1, raid_devices=2, chunk=None, layout=None, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}", data_offset=DATA,
        parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None,
    )  # fmt: skip
    memory = [MemoryDevice(DATA + rows * REGION) for _ in range(2)]
    session.make(memory, spec, rows * REGION)
    with Session.start(memory, clock) as array:
        check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 16))
        array.write(b"far" * 100, 35000 * REGION)
        forks = [device.fork() for device in memory]
    rehead(forks[1], events=0)
    forks[1].handle.pwrite(bytes(4096), AREA + 4096)
    with Session.start(forks, clock) as array:
        array.run(lib.RL_SYNC_REPAIR, stop_after=8)
        left = forks[1].fork()
    at = AREA + 256 + 35000 // 8
    assert head(left.handle.pread(4096, AREA))[0] == 0 or left.handle.pread(1, at)[0] >> 35000 % 8 & 1


def test_what_a_member_had_got_of_its_recovery_is_made_anew_after_a_forced_start():
    """A write of which it lacks its part: nothing is resynced then, so what it has below its checkpoint cannot be believed."""
    bench = Bench("5")
    array = bench.open()
    bench.idle(array, 3)
    array.fail(1)
    for chunk in range(0, 48, 3):
        bench.write(array, chunk)
    array.remove(1)
    readd(array, bench, 1)
    array.run(lib.RL_SYNC_RECOVER, stop_after=40)
    assert array.statuses()[array.numbers.index(1)].recovered_sectors > 8
    before = bench.memory[1].fork()
    bench.write(array, 1)
    forks = [before if n == 1 else device.fork() for n, device in enumerate(bench.memory)]
    array.close()
    with Session.start(forks, bench.clock, force=True) as array:
        array.recover()
        assert array.run(lib.RL_SYNC_CHECK) == 0
        array.fail(2)
        got = array.read()
    assert all(got[c * CHUNK : (c + 1) * CHUNK] == bench.content[c * CHUNK : (c + 1) * CHUNK] for c in range(48) if c != 1)


def test_the_status_does_not_wait_for_a_member_that_hangs_in_its_bitmap():
    bench = Bench("5")
    with bench.open() as array:
        bench.write(array, 0)
        rule = bench.devices[1].add(lab.Rule("hang", on="write", first_sector=AREA // 512, sectors=8))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            writing = pool.submit(bench.write, array, 30)
            until_hit(bench.devices[1], rule)
            try:
                assert pool.submit(bench.status, array).result(timeout=5).chunk_bytes == REGION
            finally:
                bench.devices[1].remove(rule)
            writing.result()


def told(devices):
    """Those whose superblock says that there is a bitmap."""
    return [n for n, device in enumerate(devices) if read_superblock(Member.open(device)).feature_map & lib.RL_FEATURE_BITMAP]


def test_who_was_told_of_a_bitmap_that_was_not_made_is_told_at_the_end():
    bench = Bench("5")
    with bench.open() as array:
        check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        bench.idle(array)
        rule = bench.devices[2].add(lab.Rule("error", on="write", first_sector=SUPER // 512, sectors=8, errno=errno.ENOSPC))
        with pytest.raises(errors.NoSpaceError):
            check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
        assert told(bench.memory[:4]) == [0, 1, 3]
        bench.devices[2].remove(rule)
    assert not told(bench.memory[:4])


@pytest.mark.parametrize("what", ["bitmap", "superblock"])
def test_no_space_for_a_bitmap_that_is_made(what):
    """There is none then; whoever has already been told that there is one is told before anything is written; and the next try makes it."""
    bench = Bench("5")
    where = AREA if what == "bitmap" else SUPER
    with bench.open() as array:
        check(lib.rl_array_set_bitmap(array.handle, 0, 0, 0))
        bench.write(array, 5)
        rule = bench.devices[2].add(lab.Rule("error", on="write", first_sector=where // 512, sectors=8, errno=errno.ENOSPC))
        with pytest.raises(errors.NoSpaceError):
            check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
        assert bench.status(array).chunk_bytes == 0
        forks = [device.fork() for device in bench.memory]
        with Session.start(forks, bench.clock) as left:  # the power goes then
            left.recover()
            assert left.run(lib.RL_SYNC_CHECK) == 0 and left.read() == bytes(bench.content)
        bench.devices[2].remove(rule)
        check(lib.rl_array_zero(array.handle, CHUNK, 7 * CHUNK, lib.RL_ZERO_DISCARD))  # the one change that may be tried without space
        bench.content[7 * CHUNK : 8 * CHUNK] = bytes(CHUNK)
        assert not told(bench.memory[:4])
        bench.idle(array, 2)
        bench.write(array, 20)
        forks = [device.fork() for device in bench.memory]
        assert not told(forks[:4])
        spoil(forks[redundancy("5", 12)], 12)
        with Session.start(forks, bench.clock) as left:
            left.recover()
            assert left.run(lib.RL_SYNC_CHECK) == 0, "without a bitmap all of it is resynced"
        check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
        bench.write(array, 30)
        assert bits(bench.page(0)) == bits(bench.page(2)) == {10}


@pytest.mark.parametrize(("layout", "n", "rows"), [(0x202, 5, 7), (0x203, 7, 8), (0x302, 7, 9)])
def test_raid10_members_with_a_place_in_the_middle_where_nothing_lies(layout, n, rows):
    """Near and far copies together: what comes behind it is recovered."""
    clock = Clock(session.WALL_S)
    clock.advance(100)
    spec = creation.make_spec(
        level="10", raid_devices=n, chunk=CHUNK, layout=layout, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}", data_offset=DATA,
        parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None,
    )  # fmt: skip
    holes = 0
    for slot in range(n):
        memory = [MemoryDevice(DATA + rows * CHUNK) for _ in range(n)]
        session.make(memory, spec, rows * CHUNK)
        recorder = lab.Recorder("64M")
        devices = [lab.FaultyDevice(device, recorder=recorder) for device in memory]
        with Session.start(devices, clock) as array:
            check(lib.rl_array_set_bitmap(array.handle, REGION, 24, 8))
            array.write(random.Random(1).randbytes(array.size), 0)
            for _ in range(3):
                clock.advance(6)
                check(lib.rl_array_service(array.handle))
            array.fail(slot)
            array.write(random.Random(2).randbytes(array.size), 0)
            array.remove(slot)
            assert array.re_add(devices[slot], slot)
            recorder.clear()
            array.run(lib.RL_SYNC_RECOVER)
            wrote = {(e.offset - DATA) // CHUNK for e in recorder.entries() if e.op == "write" and e.device == slot and e.offset >= DATA}
            out, run = ffi.new("uint64_t *"), ffi.new("uint64_t *")
            kept = {row for row in range(rows) if lib.rl_geometry_inverse(array.plan.geometry, slot, row * 8, out, run) == 0}
            holes += kept != set(range(len(kept)))
            assert wrote == kept
            assert array.run(lib.RL_SYNC_CHECK) == 0
    assert holes, "else this shows nothing"
