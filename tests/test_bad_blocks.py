"""Blocks that are marked as bad on a member: who may read them, when they are good again, and what the log on the member says."""

import errno
import json
import os
import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power import Rig
from test_array import Disk, data_offset, edit, states
from test_format import bad_blocks, error_text, ffi, lib, u
from test_golden import unpack
from test_partial_failures import Hooked

import raidlib
from raidlib import errors

SIZE = 4 << 20
LEVELS = [(1, 2), (1, 3), (4, 4), (5, 3), (5, 4), (6, 5), (10, 4)]


class Scratched(Hooked):
    """A disk of which some sectors can be neither read nor written any more."""

    def __init__(self, size=SIZE, content=None):
        super().__init__(size)
        if content:
            self.data = bytearray(content)
        self.scratched: set[int] = set()

    def preadinto(self, buffer, offset):
        if self.scratched and self.scratched & set(range(offset // 512, (offset + len(buffer)) // 512)):
            raise OSError(errno.EIO, "scratched")
        super().preadinto(buffer, offset)

    def pwrite(self, data, offset):
        if self.scratched and self.scratched & set(range(offset // 512, (offset + len(data)) // 512)):
            raise OSError(errno.EIO, "scratched")
        super().pwrite(data, offset)


def make(level, n, size=SIZE, **options):
    if level == "rs":
        options["parity"] = 3
    disks = [Scratched(size) for _ in range(n + options.get("spare_devices", 0))]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True, **options)
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    array.flush()
    return array, disks, bytearray(content)


def log_of(disk):
    """The log as its bytes say, without any code of the engine: (first sector from the data on, sectors)."""
    block = oracle.parse_superblock(bytes(disk.data))
    if not block.has(oracle.BAD_BLOCKS):
        return []
    at = (block.super_offset + block.bblog_offset) * 512
    found = []
    for (entry,) in struct.iter_unpack("<Q", disk.data[at : at + 4096]):
        if entry == 2**64 - 1:
            break
        found.append(((entry >> 10) - block.data_offset, entry & 1023))
    return found


def unreadable(array, step=512):
    """The sectors of the array that cannot be read."""
    found = []
    for at in range(0, array.size, 65536):
        try:
            array.pread(min(65536, array.size - at), at)
        except errors.ArrayIOError:
            for small in range(at, min(at + 65536, array.size), step):
                try:
                    array.pread(step, small)
                except errors.ArrayIOError as error:
                    assert error.errno == errno.EIO
                    found.append(small // step)
    return found


def count(array, slot):
    return next(m.bad_blocks for m in array.status().members if m.slot == slot)


# --- a rebuild that meets blocks which nobody knows any more ----------------------------------------------------------


def rebuilt_over_scratches(level, n):
    """An array that lost member 0, was rebuilt onto a new one, and could not read three places of the others meanwhile."""
    array, disks, content = make(level, n)
    start = data_offset(disks[0]) // 512
    lost = {1: n - 1, 6: 2}.get(level, 1)
    for slot in range(lost):
        array.fail(slot)
    disks[lost].bad_reads = {start + 8, start + 200, start + 201, start + 1030}
    new = [Scratched() for _ in range(lost)]
    for disk in new:
        array.add(disk)
    while array.job is not None and not array.job.done:
        array.job.wait()
    return array, [*new, *disks[lost:]], content


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_rebuild_goes_on_and_marks_them(level, n):
    array, disks, content = rebuilt_over_scratches(level, n)
    lost = {1: n - 1, 6: 2}.get(level, 1)
    assert set(states(array).values()) == {"in_sync"}
    assert count(array, 0) >= 1, array.status().members
    kinds = set()
    while (event := array.next_event()) is not None:
        kinds.add(event.kind)
    assert "bad_block" in kinds
    gone = unreadable(array)
    assert 1 <= len(gone) <= 4 * (lost + 1)
    for sector in range(0, array.size // 512, 1):
        if sector not in gone and sector % 7 == 0:
            assert array.pread(512, sector * 512) == content[sector * 512 : sector * 512 + 512]
    assert "marked as bad" in array.status().advice
    array.close()
    reader = oracle.ArrayReader(
        [bytes(disk.data) for disk in disks]
    )  # who reads the logs, and the sectors that "cannot be read" of the old ones
    for sector in range(0, reader.size // 512, 5):
        if sector not in gone:
            assert reader.read(sector * 512, 512) == content[sector * 512 : sector * 512 + 512]
    with raidlib.open(disks) as array:  # kept across open, which is read-write
        assert unreadable(array) == gone
        for sector in gone:
            array.pwrite(content[sector * 512 : sector * 512 + 512], sector * 512)
        assert unreadable(array) == []
        assert array.pread(array.size, 0) == content
    for disk in disks:
        assert log_of(disk) == [] or level != 1
    with raidlib.open(disks) as array:
        assert array.pread(array.size, 0) == content
        array.repair().wait()
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0
        assert array.pread(array.size, 0) == content
    for disk in disks:
        assert log_of(disk) == [] and not oracle.parse_superblock(bytes(disk.data)).has(oracle.BAD_BLOCKS)


@pytest.mark.parametrize("written", ["bad", "other", "both"])
def test_two_bad_blocks_of_a_stripe_can_each_be_written(written):
    """I14: T of the rebuilt member is unknown, for U could not be read.

    Whichever is written first, no parity is left that would compute the other one wrong.
    """
    array, disks, content = rebuilt_over_scratches(5, 3)
    gone = unreadable(array)
    assert len(gone) >= 2
    new = os.urandom(512)
    pairs = [gone[0]] if written == "bad" else [gone[-1]] if written == "other" else gone
    for sector in pairs:
        array.pwrite(new, sector * 512)
        content[sector * 512 : sector * 512 + 512] = new
    left = unreadable(array)
    assert not set(left) & set(pairs)
    assert set(left) == set(gone) - set(pairs), "nothing else changed, and nothing is made up"
    for member in range(3):  # and with any member away the same, or an error: never wrong bytes
        array.close()
        array = raidlib.open([disk for i, disk in enumerate(disks) if i != member], run=True, mode="r")
        for sector in {*gone, *(s + d for s in gone for d in (-33, -1, 1, 32, 33) if s + d >= 0)}:
            try:
                assert array.pread(512, sector * 512) == content[sector * 512 : sector * 512 + 512], (member, sector)
            except errors.ArrayIOError:
                pass
    array.close()


def test_a_part_of_a_bad_block_does_not_make_it_good():
    array, disks, content = make(1, 2)
    array.close()
    start = data_offset(disks[0]) // 512
    for disk in disks:
        mark(disk, [(start + 16, 8)])
    big = [Scratched(content=disk.data) for disk in disks]
    for disk in big:
        disk.block_size = 4096
    with raidlib.open(big) as array:
        assert unreadable(array, 4096) == [2]
        with pytest.raises(errors.ArrayIOError):
            array.pwrite(b"x" * 100, 8192)
        assert unreadable(array, 4096) == [2]
        array.pwrite(b"y" * 4096, 8192)
        content[8192 : 8192 + 4096] = b"y" * 4096
        assert array.pread(array.size, 0) == content
    assert [log_of(disk) for disk in big] == [[], []]


def mark(disk, pairs):
    """Writes a log and its feature bit onto a disk, as another implementation would."""
    block = oracle.parse_superblock(bytes(disk.data))
    at = (block.super_offset + block.bblog_offset) * 512
    log = b"".join(struct.pack("<Q", first << 10 | sectors) for first, sectors in pairs)
    disk.data[at : at + 4096] = log.ljust(4096, b"\xff")
    edit(disk, feature_map=block.feature_map | oracle.BAD_BLOCKS)


# --- writes that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_block_that_cannot_be_written_is_marked_before_the_write_is_acknowledged(level, n):
    """I12: the member stays, its log names exactly the blocks, and they are read from the others."""
    array, disks, content = make(level, n)
    start = data_offset(disks[1]) // 512
    disks[1].scratched = set(range(start + 64, start + 72)) | {start + 2000}
    content[:] = random.Random(5).randbytes(array.size)
    array.pwrite(bytes(content), 0)
    assert log_of(disks[1]) == [(64, 8), (2000, 8)]
    assert states(array)[1] == "in_sync" and count(array, 1) == 2
    assert array.pread(array.size, 0) == content
    for at in range(0, array.size - 3000, 77777):
        content[at : at + 3000] = random.Random(at).randbytes(3000)
        array.pwrite(bytes(content[at : at + 3000]), at)
    assert array.pread(array.size, 0) == content
    array.close()
    with raidlib.open(disks) as array:
        assert array.pread(array.size, 0) == content
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0
        disks[1].scratched = set()
        content[:] = random.Random(6).randbytes(array.size)
        array.pwrite(bytes(content), 0)  # the disk has mended itself: good again
        assert count(array, 1) == 0
        assert array.pread(array.size, 0) == content
    assert log_of(disks[1]) == []
    reader = oracle.ArrayReader([bytes(disk.data) for disk in disks])
    assert reader.read(0, reader.size) == content and reader.check() == []


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_bad_block_is_lost_with_one_member_more_and_nothing_else(level, n):
    array, disks, content = make(level, n)
    start = data_offset(disks[1]) // 512
    disks[1].scratched = set(range(start + 64, start + 72))
    content[:] = random.Random(5).randbytes(array.size)
    array.pwrite(bytes(content), 0)
    for slot in {1: [0, 2], 6: [0, 2]}.get(level, [0]):
        if slot < n:
            array.fail(slot)
    gone = unreadable(array)
    assert len(gone) <= 16
    for sector in range(0, array.size // 512, 3):
        if sector not in gone:
            assert array.pread(512, sector * 512) == content[sector * 512 : sector * 512 + 512]
    array.close()


@pytest.mark.parametrize(("level", "n"), [(1, 2), (5, 3), (6, 4), (10, 4)])
def test_in_a_degraded_array_what_is_needed_is_not_marked(level, n):
    """I10: the write is refused, and what was there is there; no member is out."""
    array, disks, content = make(level, n)
    lost = 2 if level == 6 else 1
    for slot in range(lost):
        array.fail(slot)
    start = data_offset(disks[lost]) // 512
    disks[lost].hook = lambda _data, offset: (_ for _ in ()).throw(OSError(errno.EIO, "no")) if offset >= start * 512 else None
    refused = 0
    for at in range(0, 16 * 16384, 4096):
        try:
            array.pwrite(b"N" * 4096, at)
            content[at : at + 4096] = b"N" * 4096
        except errors.ArrayIOError as error:
            assert error.errno == errno.EIO
            refused += 1
    disks[lost].hook = None
    assert refused
    assert array.status().state == "degraded"
    assert array.pread(array.size, 0) == content
    array.close()


def test_a_member_that_fails_all_over_is_out():
    for level, n in ((1, 2), (5, 4)):
        array, disks, content = make(level, n, 16 << 20)
        start = data_offset(disks[1]) // 512
        disks[1].scratched = set(range(start + 1000, start + 1000 + 8 * 65))
        content[:] = random.Random(8).randbytes(array.size)
        array.pwrite(bytes(content), 0)
        assert states(array)[1] == "removed"
        assert array.pread(array.size, 0) == content
        array.close()


def test_a_full_log_is_the_end_of_the_member():
    array, disks, content = make(5, 3, 16 << 20)
    array.close()
    start = data_offset(disks[1]) // 512
    mark(disks[1], [(start + 16 * i, 8) for i in range(512)])
    array = raidlib.open(disks)
    assert count(array, 1) == 512
    disks[1].scratched = set(range(start + 16 * 600, start + 16 * 600 + 8))
    content[:] = random.Random(9).randbytes(array.size)
    array.pwrite(bytes(content), 0)
    assert states(array)[1] == "removed"
    assert array.pread(array.size, 0) == content
    array.close()


@pytest.mark.parametrize("place", [(0, 0), (4096, 8), (4, 8), (-4, 8), (SIZE, 8), (20, 0)])
def test_a_member_without_a_log_is_out(place):
    """It has none, or one whose place by the superblock is the data's, the superblock's, or nowhere."""
    array, disks, content = make(5, 3)
    array.close()
    edit(disks[1], bblog_offset=place[0], bblog_sectors=place[1])
    array = raidlib.open(disks)
    start = data_offset(disks[1]) // 512
    disks[1].scratched = set(range(start + 64, start + 72))
    content[:] = random.Random(5).randbytes(array.size)
    array.pwrite(bytes(content), 0)
    assert states(array)[1] == "removed"
    assert array.pread(array.size, 0) == content
    at = (8 + place[0]) * 512
    assert bytes(disks[1].data[at : at + 4096]) != b"\xff" * 4096
    array.close()


def test_a_log_in_a_place_of_something_else_is_read_only():
    array, disks, content = make(5, 3)
    array.close()
    start = data_offset(disks[1]) // 512
    mark(disks[1], [(start + 64, 8)])
    block = oracle.parse_superblock(bytes(disks[1].data))
    log = disks[1].data[(8 + block.bblog_offset) * 512 :][:4096]
    disks[1].data[(8 + 4096) * 512 : (8 + 4096) * 512 + 4096] = log
    edit(disks[1], bblog_offset=4096)
    with pytest.raises(errors.UsageError, match="read only"):
        raidlib.open(disks)
    with raidlib.open(disks, mode="r") as array:
        assert array.pread(1 << 20, 0) == content[: 1 << 20]


def test_superblocks_090_have_no_log(golden_dir, tmp_path):
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == "r5-090-ls-64k")
    paths = list(unpack(golden_dir, entry, tmp_path).values())
    disks = [Scratched(path.stat().st_size, path.read_bytes()) for path in paths]
    with raidlib.open(disks) as array:
        disks[1].scratched = {40}
        content = os.urandom(1 << 20)
        array.pwrite(content, 0)
        assert states(array)[1] == "removed"
        assert array.pread(1 << 20, 0) == content


def test_a_mending_write_that_fails_marks_the_block():
    for level, n in LEVELS:
        array, disks, content = make(level, n)
        start = data_offset(disks[1]) // 512
        disks[1].scratched = {start + 5, start + 900}
        array.check().wait()
        assert array.pread(array.size, 0) == content
        assert states(array)[1] == "in_sync" and count(array, 1) == 2
        array.close()
        assert log_of(disks[1]) == [(5, 1), (900, 1)]
        disks[1].scratched = set()
        with raidlib.open(disks) as array:
            array.repair().wait()
            assert count(array, 1) == 0
            assert array.pread(array.size, 0) == content
        assert log_of(disks[1]) == []


@pytest.mark.parametrize(("level", "n"), [(1, 3), (6, 5), (10, 4)])
def test_a_check_compares_what_lies_beside_a_bad_block(level, n):
    disks = [Scratched() for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "64K", assume_clean=True)
    array.pwrite(random.Random(1).randbytes(array.size), 0)
    array.close()
    start = data_offset(disks[0]) // 512
    mark(disks[0], [(start + 16, 8)])
    disks[0].data[(start + 64) * 512] ^= 1
    with raidlib.open(disks) as array:
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 8


def test_a_spare_replaces_a_member_that_cannot_write_a_block():
    array, disks, content = make(5, 3, spare_devices=1)
    start = data_offset(disks[1]) // 512
    disks[1].scratched = {start + 40}
    content[:] = random.Random(2).randbytes(array.size)
    array.pwrite(bytes(content), 0)
    for _ in range(200):
        if any(m.reason == "replaced" for m in array.status().members):
            break
        time.sleep(0.02)
    assert next(m for m in array.status().members if m.device == 1).reason == "replaced"
    assert next(m for m in array.status().members if m.device == 3).slot == 1
    assert array.pread(array.size, 0) == content
    assert array.status().degraded == 0
    array.close()
    assert log_of(disks[3]) == []


@pytest.mark.parametrize(("level", "n"), [(1, 2), (5, 3), (6, 4)])
def test_power_cuts_around_marks_and_clears(level, n):
    """What was acknowledged and flushed is there after a power cut at any moment: in the log first, out of it last."""
    rig = Rig()
    disks = [rig.disk(3 << 20) for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True)
    base = random.Random(n).randbytes(array.size)
    array.pwrite(base, 0)
    array.close()
    array = raidlib.open(disks)
    start = data_offset(disks[0])
    for disk in rig.disks:
        disk.settle()
    rig.log.clear()
    versions = {block: [(0, base[block * 4096 : block * 4096 + 4096])] for block in range(64)}  # (acknowledged and flushed at, bytes)
    failing = disks[1]
    plain = failing.pwrite

    refused = set()

    def refuse(data, offset):
        if any(offset < start + row * 4096 + 4096 and start + row * 4096 < offset + len(data) for row in refused):
            raise OSError(errno.EIO, "no")
        plain(data, offset)

    failing.pwrite = refuse

    # of each parity, one block is written: with two, a bad block can be lost to the write hole, as on a degraded array
    blocks = {1: range(24), 5: range(4, 12), 6: [*range(4), *range(8, 12)]}[level]
    draw, marks = random.Random(1), 0
    for step in range(90):
        refused.clear()
        refused.update(draw.sample(range(8), 4))
        block, data = draw.choice(blocks), draw.randbytes(4096)
        array.pwrite(data, block * 4096)
        if step % 5 == 0:
            array.flush()
            acknowledged = rig.mark()
        else:
            acknowledged = None
        versions[block].append((acknowledged, data))
        if acknowledged is not None:
            for history in versions.values():
                history[:] = [(acknowledged if at is None else at, old) for at, old in history]
        if step == 30:
            time.sleep(0.3)  # clean meanwhile: the log shrinks
        marks = max(marks, count(array, 1))
    assert marks
    array.close()
    failing.pwrite = plain
    log_at = (8 + oracle.parse_superblock(bytes(disks[1].data)).bblog_offset) * 512
    after_logs = [i + 1 for i, (what, who, at, _data) in enumerate(rig.log) if (what, who, at) == ("write", disks[1], log_at)]
    assert after_logs
    moments = [*range(0, len(rig.log), max(1, len(rig.log) // 60)), *after_logs * 5]
    for seed, moment in enumerate(moments):
        images = rig.cut(moment, seed, disks)
        with raidlib.open([Disk(3 << 20, content=image) for image in images]) as after:
            if after.job is not None:
                after.job.wait()
            for block, history in versions.items():
                known = [i for i, (at, _old) in enumerate(history) if at is not None and at <= moment]
                allowed = [old for _at, old in history[known[-1] :]]
                assert after.pread(4096, block * 4096) in allowed, (moment, seed, block)


# --- other implementations --------------------------------------------------------------------------------------------


def test_the_kernels_array_with_bad_blocks_is_written(golden_dir, tmp_path):
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == "r5-badblocks")
    paths = list(unpack(golden_dir, entry, tmp_path).values())
    with raidlib.open(paths) as array:
        assert [count(array, slot) for slot in range(3)] == [0, 2, 0]
        content = bytearray(array.pread(array.size, 0))
        array.pwrite(b"w" * 3000, 1_000_000)
        content[1_000_000:1_003_000] = b"w" * 3000
        assert array.pread(array.size, 0) == content
    assert len(oracle.bad_blocks(paths[1].read_bytes(), oracle.parse_superblock(paths[1].read_bytes()))) == 2
    with raidlib.open(paths) as array:
        array.repair().wait()
        assert [count(array, slot) for slot in range(3)] == [0, 0, 0]
        assert array.pread(array.size, 0) == content
    assert oracle.bad_blocks(paths[1].read_bytes(), oracle.parse_superblock(paths[1].read_bytes())) == []
    reader = oracle.ArrayReader(paths)
    assert reader.read(0, reader.size) == content and reader.check() == []


@pytest.mark.parametrize("metadata", ["1.0", "1.1", "1.2"])
def test_mdadm_reads_the_log(tmp_path, metadata):
    disks = [Scratched(16 << 20) for _ in range(3)]
    array = raidlib.create(disks, level=5, chunk="64K", assume_clean=True, metadata=metadata)
    start = data_offset(disks[2]) // 512
    disks[2].scratched = {*range(start + 80, start + 96), start + 5000}
    array.pwrite(os.urandom(array.size), 0)
    array.close()
    path = Path(tmp_path / "member")
    path.write_bytes(bytes(disks[2].data))
    mdadm = shutil.which("mdadm", path="/sbin:/usr/sbin:/bin:/usr/bin")
    said = subprocess.run([mdadm, "--examine-badblocks", path], check=True, capture_output=True, text=True).stdout
    assert f"{start + 80} for 16 sectors" in said and f"{start + 5000} for 8 sectors" in said, said
    assert "bad blocks present" in subprocess.run([mdadm, "--examine", path], check=True, capture_output=True, text=True).stdout


# --- the log, byte by byte --------------------------------------------------------------------------------------------


def encoded(pairs, shift=0, length=4096):
    numbers, log = ffi.new("uint64_t[]", [number for pair in pairs for number in pair] or [0]), ffi.new("uint8_t[]", length)
    return lib.rl_badblocks_encode(numbers, len(pairs), shift, log, length), bytes(ffi.buffer(log))


def test_bad_blocks_are_written_as_they_are_read():
    assert encoded([]) == (0, b"\xff" * 4096)
    for pairs, shift in (
        ([(4096, 16), (6144, 8)], 0),
        ([(40, 8), (56, 24)], 3),
        ([(2**54 - 2, 1)], 0),
        ([(10 * i, 9) for i in range(512)], 0),
    ):
        count, log = encoded(pairs, shift)
        assert count == len(pairs) and bad_blocks(log, shift) == pairs
    assert encoded([(100, 1300)])[0] == 3 and bad_blocks(encoded([(100, 1300)])[1]) == [(100, 512), (612, 512), (1124, 276)]
    assert lib.rl_badblocks_encode(ffi.new("uint64_t[]", [100, 1300]), 1, 0, ffi.NULL, 0) == 3
    for pairs, shift, error in (
        ([(10 * i, 9) for i in range(513)], 0, errno.ENOSPC), ([(0, 512 * 513)], 0, errno.ENOSPC), ([(4, 8)], 3, errno.EINVAL),
        ([(8, 4)], 3, errno.EINVAL), ([(8, 0)], 0, errno.EINVAL), ([(2**54, 1)], 0, errno.EINVAL), ([(0, 8)], 64, errno.EINVAL),
    ):  # fmt: skip
        assert encoded(pairs, shift)[0] == -error
        assert error_text()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(u(20), st.integers(1, 3000)), max_size=60), st.integers(0, 4))
def test_any_bad_blocks_are_written_as_they_are_read(drawn, shift):
    pairs, free = [], 0
    for gap, sectors in drawn:
        pairs.append(((free + gap) << shift, sectors << shift))
        free += gap + sectors + 1
    count, log = encoded(pairs, shift)
    assert count == sum(-(-sectors // (512 << shift)) for _first, sectors in pairs)
    joined = []
    for first, sectors in bad_blocks(log, shift):
        if joined and joined[-1][0] + joined[-1][1] == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + sectors)
        else:
            joined.append((first, sectors))
    assert joined == pairs


# --- random histories -------------------------------------------------------------------------------------------------


class History:
    """Random scratches, writes, reads, repairs and openings; what is read is what was written, or an error."""

    def __init__(self, level, n, seed, scratched):
        self.draw = random.Random(seed)
        self.array, self.disks, content = make(level, n, 3 << 20)
        self.bytes = array_sectors(content)  # of each sector, what it may be
        self.rows = (2048, 400)  # where the data begin
        self.scratched = scratched  # the members that may be scratched

    def scratch(self):
        disk, first = self.disks[self.draw.choice(self.scratched)], self.rows[0] + self.draw.randrange(self.rows[1])
        disk.scratched |= set(range(first, first + self.draw.choice([1, 2, 8, 30])))

    def mend(self):
        self.disks[self.draw.choice(self.scratched)].scratched = set()

    def write(self):
        first, count = self.draw.randrange(800), self.draw.choice([1, 1, 3, 8, 40, 200])
        data = self.draw.randbytes(count * 512)
        try:
            self.array.pwrite(data, first * 512)
            for i in range(count):
                self.bytes[first + i] = {data[i * 512 : i * 512 + 512]}
            return 0
        except errors.ArrayIOError:
            for i in range(count):
                self.bytes[first + i].add(data[i * 512 : i * 512 + 512])
            return 1

    def read(self, strict):
        for first in range(0, 1000, 50):
            try:
                got = self.array.pread(50 * 512, first * 512)
            except errors.ArrayIOError:
                assert not strict
                for sector in range(first, first + 50):
                    try:
                        assert self.array.pread(512, sector * 512) in self.bytes[sector], sector
                    except errors.ArrayIOError:
                        pass
                continue
            for i in range(50):
                assert got[i * 512 : i * 512 + 512] in self.bytes[first + i], first + i

    def reopen(self):
        self.array.close()
        self.array = raidlib.open(self.disks, run=True)

    def repair(self):
        try:
            self.array.repair().wait()
        except errors.ArrayIOError as error:
            assert "neither read nor computed" in str(error)
        if self.array.job is not None:
            self.array.job.join()


def array_sectors(content):
    return [{bytes(content[i : i + 512])} for i in range(0, len(content), 512)]


@pytest.mark.parametrize(("level", "n", "scratched"), [
    (1, 2, [0]), (1, 3, [0, 2]), (5, 3, [1]), (5, 4, [2]), (6, 4, [0, 3]), (6, 5, [1, 2]), (10, 4, [0]), ("rs", 6, [0, 2, 5]),
    (1, 2, [0, 1]), (5, 3, [0, 1]), (5, 4, [0, 1, 2, 3]), (6, 5, [0, 1, 2, 3]), (10, 4, [0, 1, 2, 3]), ("rs", 6, [0, 1, 2, 3, 4, 5]),
])  # fmt: skip
def test_histories_of_scratched_members(level, n, scratched):
    """Never a wrong byte; and no error and no member out where the level bears that all that is scratched is lost."""
    bears = {1: n - 1, 5: 1, 6: 2, 10: 1, "rs": 3}[level]
    strict = len(scratched) <= bears
    for seed in range(6):
        history = History(level, n, seed, scratched)
        for _ in range(40):
            step = history.draw.choice(["scratch", "write", "write", "write", "write", "mend", "reopen", "repair"])
            failed = getattr(history, step)()
            assert not (strict and failed), (seed, step)
            history.read(strict)
        out = [m for m in history.array.status().members if m.state == "faulty"]
        assert not strict or all(m.write_errors > 64 for m in out), out
        history.array.close()
