"""A member is replaced ahead of its failure: it stays in service until the new one has all that it has."""

import errno
import random
import time

import oracle
import pytest
from power import Rig
from test_array import SIZE, Disk, data_offset, states
from test_partial_failures import Hooked, fail_with

import raidlib
from raidlib import errors

LEVELS = [(1, 2), (1, 3), (4, 4), (5, 4), (6, 5), (10, 4), ("rs", 6)]


def make(n, level, size=SIZE, kind=Hooked):
    disks = [kind(size) for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True, parity=3 if level == "rs" else None)
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    array.flush()
    return array, disks, bytearray(content)


def begin(array, member, new, until):
    """Starts a replacement, and holds it once `until` bytes are done."""
    new.hook = lambda _data, _offset: time.sleep(0.003)
    job = array.replace(member, new)
    while job.status().done < until:
        time.sleep(0.001)
    job.pause()
    while job.status().state != "paused":
        assert not job.done, job.error
        time.sleep(0.001)
    new.hook = None
    return job


def go_on(job):
    job.resume()
    job.wait()


def of(array, disk):
    """The status of a member that is a Python object."""
    index = next(i for i, m in enumerate(array._members) if m is not None and m._device is disk)
    return next(m for m in array.status().members if m.device == index)


def judge(disks, content, level):
    if level != "rs":
        reader = oracle.ArrayReader([bytes(disk.data) for disk in disks])
        assert reader.read(0, reader.size) == content
        assert reader.check() == []


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_member_is_replaced_while_it_serves(level, n):
    array, disks, content = make(n, level)
    new = Hooked()
    job = begin(array, 1, new, 1 << 20)
    assert (of(array, new).state, of(array, new).slot) == ("replacement", 1)
    assert states(array)[0] == "in_sync" and of(array, disks[1]).state == "in_sync"
    assert array.status().degraded == 0
    for at in range(0, array.size - 20000, 300_000):  # below the point, above it, across it
        content[at : at + 20000] = random.Random(at).randbytes(20000)
        array.pwrite(bytes(content[at : at + 20000]), at)
    assert array.pread(array.size, 0) == content
    go_on(job)
    assert (of(array, new).state, of(array, new).slot) == ("in_sync", 1)
    old = of(array, disks[1])
    assert (old.state, old.slot, old.reason) == ("faulty", None, "replaced")
    assert set(states(array).values()) == {"in_sync"}
    kinds = []
    while (event := array.next_event()) is not None:
        kinds.append((event.kind, event.slot))
    assert ("replaced", 1) in kinds and ("spare_active", 1) in kinds and ("fail", 1) not in kinds
    array.pwrite(b"later", 77)
    content[77:82] = b"later"
    array.check().wait()
    assert array.status().mismatch_count == 0
    array.remove(disks[1])
    array.close()
    judge([disks[0], new, *disks[2:]], content, level)
    with raidlib.open([*disks, new]) as array:  # the old one again among them: it is out
        assert set(states(array).values()) == {"in_sync"}
        assert array.pread(array.size, 0) == content
        assert len([m for m in array.status().members if m.state in ("faulty", "stale") and m.reason]) == 1


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_what_the_old_one_cannot_read_comes_from_the_redundancy(level, n):
    array, disks, content = make(n, level)
    start = 2048 if level == "rs" else data_offset(disks[1]) // 512
    disks[1].bad_reads = {start + 3, *range(start + 1000, start + 1400)}
    new = Disk()
    array.replace(1, new).wait()
    assert of(array, new).state == "in_sync"
    assert not disks[1].bad_reads or level in (1, 10), "met, and mended"  # of copies the other was asked first
    assert array.pread(array.size, 0) == content
    array.close()
    judge([disks[0], new, *disks[2:]], content, level)


@pytest.mark.parametrize(("level", "n", "lost"), [(1, 2, 1), (5, 3, 1), (6, 4, 2), (10, 4, 1)])
def test_in_an_array_without_redundancy_the_old_one_is_copied(level, n, lost):
    """Where slots are empty, the new member must not step into one of them."""
    array, disks, content = make(n, level)
    for slot in range(lost):
        array.fail(slot)
    new = Disk()
    array.replace(lost, new).wait()
    assert (of(array, new).state, of(array, new).slot) == ("in_sync", lost)
    assert array.status().degraded == lost
    assert array.pread(array.size, 0) == content
    array.close()
    with raidlib.open([new, *disks[lost + 1 :]], run=True) as array:
        assert array.pread(array.size, 0) == content


@pytest.mark.parametrize(("level", "n"), LEVELS)
@pytest.mark.parametrize("how", ["write", "fail"])
def test_the_old_one_fails_in_the_middle(level, n, how):
    """Its replacement goes on as a member that is rebuilt, from where it is."""
    array, disks, content = make(n, level)
    new = Hooked()
    job = begin(array, 1, new, 2 << 20)
    if how == "write":
        disks[1].write_error = errno.EIO
        content[:] = random.Random(7).randbytes(array.size)
        array.pwrite(bytes(content), 0)
    else:
        array.fail(1)
    found = of(array, new)
    assert (found.state, found.slot) == ("rebuilding", 1)
    assert found.recovered >= 2 << 20
    assert array.status().degraded == 1
    assert array.pread(array.size, 0) == content
    written = sum(length for _offset, length in new.writes)
    go_on(job)
    assert set(states(array).values()) == {"in_sync"}
    assert how == "write" or sum(length for _offset, length in new.writes) - written < SIZE - (2 << 20) + 100_000
    assert array.pread(array.size, 0) == content
    array.close()
    judge([disks[0], new, *disks[2:]], content, level)


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_the_new_one_fails_in_the_middle(level, n):
    array, disks, content = make(n, level)
    new = Hooked()
    job = begin(array, 1, new, 2 << 20)
    new.write_error = errno.EIO
    job.resume()
    with pytest.raises(errors.RaidError, match="gone"):
        job.wait()
    assert of(array, new).state == "faulty"
    assert of(array, disks[1]).state == "in_sync" and array.status().degraded == 0
    assert array.pread(array.size, 0) == content
    better = Hooked()
    array.replace(1, better).wait()
    assert of(array, better).state == "in_sync"
    array.close()
    judge([disks[0], better, *disks[2:]], content, level)


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_closed_in_the_middle_it_goes_on_by_itself(level, n):
    array, disks, content = make(n, level, 24 << 20)
    new = Disk(24 << 20)
    job = array.replace(1, new)
    job.set_speed(maximum=40 << 20)
    while job.status().done < 6 << 20:
        time.sleep(0.01)
    array.close()
    assert level == "rs" or oracle.parse_superblock(bytes(new.data)).has(oracle.REPLACEMENT)
    with raidlib.open([*disks, new], mode="r") as array:
        assert array.pread(array.size, 0) == content
        assert of(array, new).state == "replacement"
    with raidlib.open(
        [*disks[:1], *disks[2:], new], mode="r", run=True
    ) as array:  # without the old one: what it has, and the rest computed
        assert of(array, new).state == "rebuilding"
        assert array.pread(array.size, 0) == content
    with raidlib.open([*disks, new]) as array:
        assert array.job is not None and array.job.kind == "recovery"
        array.job.wait()
        assert sum(length for _offset, length in new.writes) < 30 << 20
        assert of(array, new).state == "in_sync" and of(array, disks[1]).reason == "replaced"
        assert array.pread(array.size, 0) == content
    judge([disks[0], new, *disks[2:]], content, level)


def test_two_at_once():
    array, disks, content = make(6, 6)
    new = [Disk(), Disk(), Disk()]
    jobs = [array.replace(slot, new[slot]) for slot in range(3)]
    for job in jobs:
        job.join()
    while array.job is not None and not array.job.done:
        array.job.wait()
    for slot in range(3):
        assert (of(array, new[slot]).state, of(array, new[slot]).slot) == ("in_sync", slot)
    assert array.pread(array.size, 0) == content
    array.close()
    judge([*new, *disks[3:]], content, 6)


def test_a_spare_of_the_array_is_used():
    disks = [Disk() for _ in range(5)]
    array = raidlib.create(disks, level=5, spare_devices=1, chunk="16K", assume_clean=True)
    array.pwrite(b"x" * array.size, 0)
    array.replace(2, disks[4]).wait()
    assert (of(array, disks[4]).state, of(array, disks[4]).slot) == ("in_sync", 2)
    assert len([m for m in array._members if m is not None]) == 5
    array.close()
    with raidlib.open(disks) as array:
        assert array.pread(array.size, 0) == b"x" * array.size


def test_what_cannot_be_replaced_is_refused_in_words():
    for level in ("linear", 0):
        array = raidlib.create([Disk(), Disk()], level=level)
        untouched = Disk()
        with pytest.raises(errors.UsageError, match="no redundancy"):
            array.replace(0, untouched)
        assert not untouched.writes
        array.close()
    array, disks, _content = make(4, 5)
    new = Hooked()
    with pytest.raises(errors.UsageError, match="slot 9 has no member"):
        array.replace(9, new)
    with pytest.raises(errors.UsageError, match="too small"):
        array.replace(0, Disk(1 << 20))
    with pytest.raises(errors.BusyError, match="in the array already"):
        array.replace(0, disks[1])
    stranger = [Disk(), Disk()]
    raidlib.create(stranger, level=1).close()
    with pytest.raises(errors.RefusedError, match="another array"):
        array.replace(0, stranger[0])
    assert not new.writes
    job = begin(array, 0, new, 1 << 20)
    with pytest.raises(errors.BusyError, match="being replaced already"):
        array.replace(0, Disk())
    with pytest.raises(errors.UsageError, match="only a member that is in sync"):
        array.replace(new, Disk())
    go_on(job)
    array.fail(3)
    with pytest.raises(errors.UsageError, match="is faulty: only"):
        array.replace(disks[3], Disk())
    array.close()
    with raidlib.open([new, *disks[1:3]], mode="r") as array, pytest.raises(errors.ReadOnlyError):
        array.replace(0, Disk())


def test_a_replacement_that_cannot_take_its_last_superblock_is_out_and_the_old_one_stays():
    """The superblock of the new one decides; where it cannot be written, all is as before."""
    for error, state in ((errno.EIO, "faulty"), (errno.ENOSPC, "replacement")):
        array, disks, content = make(3, 5)
        new = Hooked()
        job = begin(array, 1, new, 1 << 20)

        def hook(data, offset, new=new, error=error):
            if offset == 4096 and not oracle.parse_superblock(bytes(4096) + bytes(data) + bytes(new.data[8192:])).has(oracle.REPLACEMENT):
                raise OSError(error, "the last superblock")

        new.hook = hook
        job.resume()
        job.join()
        assert of(array, new).state == state
        assert of(array, disks[1]).state == "in_sync" and array.status().degraded == 0
        assert array.pread(array.size, 0) == content
        new.hook = None
        array.close()
        with raidlib.open([*disks, new]) as array:
            assert of(array, disks[1]).state == "in_sync" or state == "replacement"
            if array.job is not None:
                array.job.wait()
            assert set(states(array).values()) == {"in_sync"}
            assert array.pread(array.size, 0) == content


@pytest.mark.parametrize(("level", "n"), [(1, 3), (5, 3), (6, 5), (10, 4)])
def test_a_repair_beside_a_half_made_replacement_mends_both(level, n):
    """The recovery ended early (its file system is full), and a repair rewrites what lies below its point."""
    array, disks, content = make(n, level)
    new = Hooked()
    new.hook = fail_with(errno.ENOSPC, above=data_offset(disks[1]) + (2 << 20))
    with pytest.raises(errors.NoSpaceError):
        array.replace(n - 1, new).wait()
    assert of(array, new).state == "replacement"
    new.hook = None
    at = data_offset(disks[n - 1]) + 4096
    for disk in (disks[n - 1], new):
        disk.data[at : at + 4096] = b"!" * 4096
    job = array.repair()
    job.wait()
    assert job.status().mismatch_count
    assert bytes(disks[n - 1].data[at : at + 4096]) == bytes(new.data[at : at + 4096])
    if level in (1, 6):  # repair knows who lies
        assert array.pread(array.size, 0) == content
    array.close()


def test_a_half_made_replacement_helps_to_read():
    """A RAID 5 that lacks one: what the old member cannot read any more is on the new one already."""
    array, disks, content = make(3, 5)
    array.fail(2)
    new = Hooked()
    job = begin(array, 0, new, 2 << 20)
    start = data_offset(disks[0]) // 512
    disks[0].bad_reads = set(range(start + 64, start + 72))
    assert array.pread(array.size, 0) == content
    assert not disks[0].bad_reads, "and it is mended"
    go_on(job)
    assert array.pread(array.size, 0) == content
    array.close()


@pytest.mark.parametrize(("level", "n", "lost"), [(1, 2, 0), (1, 2, 1), (5, 3, 0), (5, 3, 1), (6, 4, 2), (10, 4, 1)])
def test_power_cuts(level, n, lost):
    """At any moment of a replacement, of a member that the content needs too, the array starts as it is, and all is there.

    This is why the superblock of the new one comes first at the end.
    """
    rig = Rig()
    disks = [rig.disk(3 << 20) for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True)
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    for slot in range(lost):
        array.fail(slot)
    array.close()
    array = raidlib.open(disks[lost:], run=True)  # clean
    for disk in rig.disks:
        disk.settle()
    rig.log.clear()
    new = rig.disk(3 << 20)
    array.replace(lost, new).wait()
    array.close()
    there = [*disks[lost:], new]
    moments = sorted({*range(12), *range(len(rig.log) - 30, len(rig.log) + 1), *range(12, len(rig.log), len(rig.log) // 10)})
    for moment in moments:
        for seed in range(3):
            images = rig.cut(moment, seed, there)
            again = [Disk(content=image, size=3 << 20) for image in images]
            if oracle.parse_superblock(images[-1]) is None:
                again.pop()
            with raidlib.open(again) as array:
                assert array.pread(array.size, 0) == content, (moment, seed)
                if array.job is not None:
                    array.job.wait()
                    assert array.pread(array.size, 0) == content, (moment, seed)
                assert array.status().degraded <= lost  # a spare still at that moment steps into the empty slot
