"""Failures at the wrong moment: before a settlement, in a degraded stripe, in the middle of a flush. Each was a bug once."""

import errno
import os
import random
import threading
import time

import oracle
import pytest
from test_array import Disk, data_offset, edit, states

import raidlib
from raidlib import errors, lab


class Hooked(Disk):
    """A Disk that asks a hook before each write."""

    hook = None

    def pwrite(self, data, offset):
        if self.hook:
            self.hook(data, offset)
        super().pwrite(data, offset)


def fail_with(error, *, above=0, after_s=0.0):
    def hook(_data, offset):
        if offset >= above:
            time.sleep(after_s)
            raise OSError(error, os.strerror(error))

    return hook


def make(level, n, chunk="16K", size=4 << 20):
    disks = [Hooked(size) for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else chunk, assume_clean=True)
    content = random.Random(level).randbytes(array.size)
    array.pwrite(content, 0)
    array.flush()
    return array, disks, bytearray(content)


@pytest.mark.parametrize(("level", "n", "other"), [(5, 3, 16384), (1, 2, 200), (10, 4, 200)])
@pytest.mark.parametrize(("error", "state"), [(errno.ETIMEDOUT, "removed"), (errno.EIO, "in_sync")])
def test_a_write_whose_failure_is_not_settled_yet_is_not_overwritten(level, n, other, error, state):
    """I1, I11: a second write, which waits for the same region, reads the member (or the block) that failed under the first."""
    array, disks, _content = make(level, n)
    disks[0].hook = fail_with(error, above=data_offset(disks[0]), after_s=0.3)
    first = threading.Thread(target=array.pwrite, args=(b"1" * 100, 0))
    first.start()
    time.sleep(0.1)
    array.pwrite(b"2" * 100, other)
    first.join()
    assert array.pread(100, 0) == b"1" * 100
    assert array.pread(100, other) == b"2" * 100
    assert states(array)[0] == state
    array.close()


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_write_that_does_without_a_failed_member_waits_for_the_record_too():
    """I1, I11: one write finds a member failed, and another, under way beside it, does without it: neither is acknowledged before."""
    memory = [raidlib.MemoryDevice("4M") for _ in range(3)]
    devices = [lab.FaultyDevice(device) for device in memory]
    array = raidlib.create(devices, level=5, chunk="16K", assume_clean=True)
    array.pwrite(b"0" * 131072, 0)
    start = raidlib.examine(memory[0]).data_offset // 512
    # stripes 0 and 3: data on members 0 and 1, parity on 2
    devices[1].add(lab.Rule("hang", on="read", first_sector=start, sectors=32, times=1))
    other = threading.Thread(target=array.pwrite, args=(b"2" * 4096, 0))  # reads member 1 for the parity
    other.start()
    wait_until(lambda: devices[1].counts()[0].hit)
    devices[0].add(lab.Rule("error", on="write", first_sector=start + 96, sectors=32, errno=errno.ETIMEDOUT))  # no single block
    first = threading.Thread(target=array.pwrite, args=(b"1" * 4096, 3 * 32768))
    first.start()
    wait_until(lambda: devices[0].counts()[0].hit)
    for device in devices[1:]:
        device.add(lab.Rule("hang", on="write", first_sector=8, sectors=8))  # superblocks
    devices[1].remove(0)
    wait_until(lambda: devices[1].counts()[1].hit)
    other.join(0.2)
    still_there = [first.is_alive(), other.is_alive()]
    for device in devices:
        device.clear()
    first.join()
    other.join()
    assert still_there == [True, True]
    assert memory[0].handle.pread(4096, start * 512) == b"0" * 4096  # the second write did without member 0
    assert states(array)[0] == "removed"
    assert array.pread(4096, 0) == b"2" * 4096
    assert array.pread(4096, 3 * 32768) == b"1" * 4096
    array.close()
    for device in [*devices, *memory]:
        device.close()


def test_clean_is_not_recorded_while_a_failed_write_is_open():
    """I3, with a failure that takes longer than the idle time."""
    array, disks, _content = make(1, 2)
    array.pwrite(b"x", 0)
    seen = []

    def watch(data, offset):
        if offset == 4096:
            block = oracle.parse_superblock(bytes(4096) + bytes(data) + bytes(4 << 20))
            seen.append((block.clean, block.roles[1]))

    disks[0].hook = watch
    disks[1].hook = fail_with(errno.EIO, above=4097, after_s=0.5)
    array.pwrite(b"N" * 4096, 0)
    array.close()
    assert seen and (True, 1) not in seen


@pytest.mark.parametrize(("level", "n", "lost"), [(5, 3, 1), (4, 4, 1), (6, 4, 2)])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_in_a_degraded_stripe_changes_nothing_else(level, n, lost, error):
    """I10: what can only be computed still computes to what was acknowledged."""
    array, disks, content = make(level, n)
    for slot in range(lost):
        array.fail(slot)
    for chunk in range(8):
        disks[lost].write_error = error
        at = chunk * 16384
        try:
            array.pwrite(b"N" * 4096, at)
            content[at : at + 4096] = b"N" * 4096
        except errors.ArrayIOError:
            pass
        disks[lost].write_error = 0
        got = array.pread(array.size, 0)
        assert got[:at] == content[:at] and got[at + 4096 :] == content[at + 4096 :]
        content[at : at + 4096] = got[at : at + 4096]
    array.close()


def test_no_space_in_a_whole_array_leaves_parity_that_fits_or_a_resync():
    array, disks, content = make(5, 3)
    disks[1].write_error = errno.ENOSPC
    refused = []
    for chunk in range(6):
        try:
            array.pwrite(b"N" * 4096, chunk * 16384)
            content[chunk * 16384 : chunk * 16384 + 4096] = b"N" * 4096
        except errors.NoSpaceError:
            refused.append(chunk * 16384)
    disks[1].write_error = 0
    assert refused
    if array.job is not None:
        array.job.join()  # the resync that the service began may have met the full file system too
    array.fail(0)
    got = array.pread(array.size, 0)
    assert [at for at in range(0, array.size, 4096) if got[at : at + 4096] != content[at : at + 4096] and at not in refused] == []
    array.close()


def test_halves_with_equal_counts_are_not_mixed(tmp_path):
    raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="8M").close()
    paths = sorted((tmp_path / "a").iterdir())
    for number, path in enumerate(paths):
        with raidlib.open([path], run=True) as array:
            array.pwrite(bytes([65 + number]) * 8192, 0)
    assert raidlib.examine(paths[0]).events == raidlib.examine(paths[1]).events
    with raidlib.open(paths, run=True) as array:
        assert sorted(states(array).values()) == ["in_sync", "removed"]


class Volatile(Hooked):
    """A Disk with a cache: `stable` is what a power cut leaves of it. `cut` is called in the middle of each flush."""

    def __init__(self, size):
        super().__init__(size)
        self.stable, self.cut = bytes(size), None

    def flush(self):
        if self.cut is not None:
            self.cut()
        self.stable = bytes(self.data)

    def with_superblock(self):
        """What a power cut leaves where the superblock that was written last has arrived, and nothing else."""
        return self.stable[:4096] + bytes(self.data[4096:8192]) + self.stable[8192:]


def test_a_checkpoint_is_never_ahead_of_a_flush():
    """I5: the power goes in the middle of the flush of a superblock that a user's write caused during a rebuild; that one block arrived."""
    disks = [Volatile(32 << 20) for _ in range(2)]  # mirrors: after a cut, a rebuild that only parity can do begins anew
    array = raidlib.create(disks, level=1, assume_clean=True)
    content = random.Random(3).randbytes(array.size)
    array.pwrite(content, 0)
    array.flush()
    array.fail(0)  # the one that is read first
    new, crashed = Volatile(32 << 20), []
    job = array.add(new)
    job.set_speed(maximum=1 << 20)  # some MiB are rebuilt, and not flushed, when the write comes; no pause, which would flush them
    time.sleep(1.5)  # and the array is idle by then, so that the write has it marked active

    def cut():
        if not crashed:
            crashed.extend([bytes(disks[1].stable), new.with_superblock()])

    new.cut = cut
    array.pwrite(content[:4096], 0)
    new.cut = None
    with raidlib.open([Disk(32 << 20, content=image) for image in crashed], mode="r", run=True) as after:
        assert sorted(states(after).values()) == ["in_sync", "rebuilding"]
        assert after.pread(after.size, 0) == content
    array.close()


def test_a_checkpoint_of_a_resync_is_never_ahead_of_a_flush():
    """I5: the same, where a member that fails causes the superblock during a resync."""
    disks = [Volatile(32 << 20) for _ in range(3)]
    array = raidlib.create(disks, level=1, assume_clean=True)
    array.pwrite(random.Random(3).randbytes(array.size), 0)
    array.close()
    start = data_offset(disks[0])
    disks[1].data[start:] = bytes(len(disks[1].data) - start)
    for disk in disks:
        edit(disk, resync_offset=0)
        disk.flush()
    array = raidlib.open(disks)
    array.job.set_speed(maximum=1 << 20)
    until = time.monotonic() + 30
    while array.job.status().done < 1 << 20:  # copied, and not flushed: a checkpoint comes with each sixteenth
        assert time.monotonic() < until
        time.sleep(0.02)
    crashed = []

    def cut():
        crashed[:] = [disks[0].with_superblock(), disks[1].with_superblock()]

    disks[1].cut = cut
    array.fail(2)
    disks[1].cut = None
    array.close()
    assert crashed
    with raidlib.open([Disk(32 << 20, content=image) for image in crashed], run=True) as after:
        after.job.wait()
        after.check().wait()
        assert after.status().mismatch_count == 0


def test_a_member_lost_during_a_resync_does_not_hide_a_stale_q():
    disks = [Hooked(8 << 20) for _ in range(5)]
    array = raidlib.create(disks, level=6, chunk="16K", assume_clean=True)
    content = random.Random(3).randbytes(array.size)
    array.pwrite(content, 0)
    array.close()
    start = data_offset(disks[0])
    for stripe in range(100, 350):  # a crash: all but Q had arrived
        at = start + stripe * 16384
        disks[(5 - stripe % 5) % 5].data[at : at + 4096] = bytes(4096)
    for disk in disks:
        edit(disk, resync_offset=0)
    array = raidlib.open(disks)
    array.job.set_speed(maximum=1 << 20)
    array.job.pause()
    array.fail(0)
    array.job.set_speed()
    array.job.resume()
    array.job.wait()
    array.add(Hooked(8 << 20)).wait()
    array.check().wait()
    assert array.status().mismatch_count == 0
    array.fail(1)
    array.fail(2)
    assert array.pread(array.size, 0) == content
    array.close()


def test_copies_that_may_differ_are_read_as_the_resync_will_leave_them(tmp_path):
    array = raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="64M")
    array.pwrite(b"A" * array.size, 0)
    array.close()
    paths = sorted((tmp_path / "a").iterdir())
    at = 33 << 20
    for path in paths:
        edit(path, resync_offset=0)
    with paths[1].open("r+b") as file:
        file.seek(raidlib.examine(paths[1]).data_offset + at)
        file.write(b"B" * 65536)
    with raidlib.open(paths) as array:
        array.job.set_speed(maximum=2 << 20)
        before = array.pread(65536, at)
        array.job.set_speed()
        array.job.wait()
        assert array.pread(65536, at) == before


def test_no_space_for_a_rebuild_ends_it():
    for level, n in ((1, 2), (5, 3)):
        array, _disks, _content = make(level, n)
        array.fail(1)
        new = Hooked()
        new.hook = fail_with(errno.ENOSPC, above=2 << 20)
        with pytest.raises(errors.NoSpaceError):
            array.add(new).wait(20)
        assert states(array)[1] == "rebuilding"
        array.close()


def test_a_member_that_cannot_take_its_superblock_was_never_in():
    array, _disks, content = make(5, 3)
    array.fail(1)
    bad = Hooked()
    bad.flush_error = errno.EIO
    with pytest.raises(errors.ArrayIOError):
        array.add(bad)
    array.add(Hooked()).wait()
    assert set(states(array).values()) == {"in_sync"}
    array.fail(2)
    assert array.pread(array.size, 0) == content
    array.close()


def test_a_spare_steps_in_for_a_member_that_dies_by_itself():
    disks = [Hooked() for _ in range(4)]
    array = raidlib.create(disks, level=5, spare_devices=1, chunk="16K", assume_clean=True)
    array.pwrite(b"x" * array.size, 0)
    disks[1].write_error = errno.EIO
    array.pwrite(b"y" * 100000, 0)
    for _ in range(100):
        if set(states(array).values()) == {"in_sync"}:
            break
        time.sleep(0.05)
    assert set(states(array).values()) == {"in_sync"}
    array.close()


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raidlib.create("a", level=1, raid_devices=2, size="8M") as array:
        monkeypatch.chdir("/")
        time.sleep(1.5)  # a heartbeat
        assert set(states(array).values()) == {"in_sync"}


def test_an_array_in_use_is_not_created_over(tmp_path):
    with raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="8M") as array:
        array.pwrite(b"precious", 0)
        with pytest.raises(errors.BusyError):
            raidlib.create(tmp_path / "a", level=5, raid_devices=3, size="8M", force=True)
        assert array.pread(8, 0) == b"precious"
    with pytest.raises(errors.UsageError):
        raidlib.create(tmp_path / "a", level=5, raid_devices=3, size="1M", force=True)
    with raidlib.open(tmp_path / "a") as array:
        assert array.pread(8, 0) == b"precious"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["member-0.img", "member-1.img"]


@pytest.mark.parametrize("number", [0, 2, 1921, 0xFFFFFFFF])
def test_a_spare_with_a_bad_number_is_left_out(tmp_path, number):
    raidlib.create(tmp_path / "a", level=5, raid_devices=3, spare_devices=1, size="8M", chunk="16K").close()
    edit(tmp_path / "a" / "member-3.img", dev_number=number, role0=0xFFFF, role2=0xFFFF)
    with raidlib.open(tmp_path / "a") as array:
        array.pwrite(b"y" * 4096, 0)
        assert array.pread(4096, 0) == b"y" * 4096
        assert set(states(array).values()) == {"in_sync"}
        assert [m.state for m in array.status().members if m.slot is None] == ["stale"]


def test_data_inside_the_superblock_are_read_only(tmp_path):
    array = raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="8M")
    array.close()
    paths = sorted((tmp_path / "a").iterdir())
    for path in paths:
        edit(path, data_offset=9, bblog_offset=0, bblog_sectors=0)
    with pytest.raises(errors.UsageError, match="inside the superblock"):
        raidlib.open(paths)
    with raidlib.open(paths, mode="r") as array:
        array.pread(4096, 0)


def test_a_refused_add_writes_nothing(tmp_path):
    raidlib.create(tmp_path / "a", level=0, raid_devices=2, size="8M").close()
    new = tmp_path / "new.img"
    new.write_bytes(b"z" * (8 << 20))
    with raidlib.open(tmp_path / "a") as array, pytest.raises(errors.UsageError, match="no redundancy"):
        array.add(new)
    assert new.read_bytes() == b"z" * (8 << 20)


@pytest.mark.parametrize("level", [1, 10])
def test_write_mostly_members_are_read_last_for_edges_too(level):
    class Counting(Disk):
        reads = 0

        def preadinto(self, buffer, offset):
            self.reads += offset >= 1 << 20
            super().preadinto(buffer, offset)

    disks = [Counting(4 << 20, block_size=4096) for _ in range(2)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True)
    content = bytearray(random.Random(1).randbytes(array.size))
    array.pwrite(bytes(content), 0)
    array.close()
    edit(disks[0], devflags=1)
    with raidlib.open(disks) as array:
        before = disks[0].reads
        for at in range(100, 2 << 20, 131_000):
            array.pwrite(b"edge", at)
            content[at : at + 4] = b"edge"
        assert array.pread(array.size, 0) == content
        assert disks[0].reads == before and disks[1].reads
        start = data_offset(disks[0]) // 512
        disks[1].bad_reads = set(range(start + 80, start + 88))  # then from there
        assert array.pread(array.size, 0) == content
        assert disks[0].reads > before


@pytest.mark.parametrize(("level", "n"), [(1, 2), (5, 3), (6, 4), (10, 4)])
def test_a_check_beside_a_write_that_is_not_settled_counts_nothing(level, n):
    """I11: the check waits for the stripe, with which the write has not reached the member that failed."""
    array, disks, _content = make(level, n)
    disks[0].hook = fail_with(errno.ETIMEDOUT, above=data_offset(disks[0]), after_s=0.4)
    write = threading.Thread(target=array.pwrite, args=(b"1" * 4096, 0))
    write.start()
    time.sleep(0.1)
    job = array.check()
    write.join()
    job.wait()
    assert job.status().mismatch_count == 0
    assert states(array)[0] == "removed"
    array.close()


def test_the_event_count_does_not_wrap(tmp_path):
    raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="8M").close()
    paths = sorted((tmp_path / "a").iterdir())
    for path in paths:
        edit(path, events=2**64 - 2)
    with raidlib.open(paths) as array:
        array.pwrite(b"the last", 0)
        with pytest.raises(errors.ArrayIOError, match="event count"):
            array.fail(0)
        assert array.pread(8, 0) == b"the last"
        with pytest.raises(errors.ArrayIOError, match="event count"):
            array.close()
    assert [raidlib.examine(path).events for path in paths] == [2**64 - 1] * 2
    with raidlib.open(paths, mode="r") as array:
        assert array.pread(8, 0) == b"the last"
    with raidlib.open(paths) as array, pytest.raises(errors.ArrayIOError, match="event count"):
        if array.job is not None:
            array.job.join()
        array.pwrite(b"one more", 0)
    assert [raidlib.examine(path).events for path in paths] == [2**64 - 1] * 2


def old_array(raid_disks, spares=0):
    """A mirror with superblocks of version 0.90, which nobody makes any more."""
    from raidlib.engine import ffi, lib
    from raidlib.member import Member, write_superblock

    disks = [Hooked(1 << 20) for _ in range(raid_disks + spares)]
    at = lib.rl_superblock_sector(90, 2048)
    for number, disk in enumerate(disks):
        sb = ffi.new("struct rl_superblock *")
        sb.version, sb.magic, sb.level, sb.raid_disks, sb.size_sectors = 90, lib.RL_MD_MAGIC, 1, raid_disks, 1024
        sb.patch_version, sb.ctime_s, sb.utime_s, sb.events = 0, 1_700_000_000, 1_700_000_000, 7
        sb.resync_offset = sb.recovery_offset = lib.RL_MAX_SECTOR
        sb.super_offset, sb.state = at, 1
        sb.set_uuid[0] = 9
        for other in range(raid_disks + spares):
            sb.disks[other].number = sb.disks[other].minor = sb.disks[other].raid_disk = other
            sb.disks[other].state = 6 if other < raid_disks else 0
        sb.this_disk = sb.disks[number]
        with Member.open(disk) as member:
            write_superblock(member, sb)
    return disks


def test_a_090_array_has_room_for_27_devices():
    """D5: each device needs an entry, those in slots that of their slot; without one it would be written another's."""
    disks = old_array(26)
    with raidlib.open(disks) as array:
        content = os.urandom(4096)
        array.pwrite(content, 0)
        array.fail(3)
        array.add(Hooked(1 << 20)).wait()  # entry 26
        array.fail(4)
        array.add(Hooked(1 << 20)).wait()
        assert set(states(array).values()) == {"in_sync"}
        array.add(spare := Hooked(1 << 20))
        with pytest.raises(errors.BusyError, match=r"0\.90"):
            array.add(Hooked(1 << 20))
        assert array.pread(4096, 0) == content
    assert oracle.parse_superblock(bytes(spare.data)).dev_number == 26
    full = old_array(27)
    with raidlib.open(full) as array:
        array.fail(5)
        new = Hooked(1 << 20)
        with pytest.raises(errors.BusyError, match=r"0\.90"):
            array.add(new)
        assert not new.writes
        array.pwrite(content, 0)
        assert array.pread(4096, 0) == content
    assert [oracle.parse_superblock(bytes(d.data)).dev_number for i, d in enumerate(full) if i != 5] == [i for i in range(27) if i != 5]


def test_a_failure_that_could_not_be_recorded_stops_all_writes():
    """S1, I1: the only survivor cannot take its superblock.

    Were later writes acknowledged, the next start would take both members, of which one is stale.
    """
    memory = [raidlib.MemoryDevice("4M") for _ in range(2)]
    devices = [lab.FaultyDevice(device) for device in memory]
    array = raidlib.create(devices, level=1, assume_clean=True)
    array.pwrite(b"0" * 4096, 0)
    array.flush()
    devices[1].add(lab.Rule("error", on="write", first_sector=100, sectors=8000, errno=errno.ETIMEDOUT))
    rule = devices[0].add(lab.Rule("error", on="write", first_sector=8, sectors=8))
    for number in range(3):
        with pytest.raises(errors.ArrayIOError):
            array.pwrite(b"%d" % number * 4096, 0)
    devices[0].remove(rule)
    array.pwrite(b"9" * 4096, 0)
    with raidlib.open([m.fork() for m in memory], mode="r", run=True) as again:
        assert states(again) == {0: "in_sync", 1: "removed"}
        assert again.pread(4096, 0) == b"9" * 4096
    array.close()
