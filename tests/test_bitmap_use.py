"""Arrays with a write-intent bitmap: made, opened, grown one, their members taken back by it, and what is said of it.

What the engine does with the bits is in test_bitmap.py, how they lie on a member in test_bitmap_format.py.
"""

import json
import random
import shutil
import struct
import subprocess

import oracle
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_array import Disk
from test_bitmap_format import MDADM, bits_and_dirty, fields_of, mdadm_says
from test_golden import digest, entries, unpack

import raidlib
from raidlib import creation, errors
from raidlib.cli import program
from raidlib.control import Owner, connect
from raidlib.member import Member, read_superblock, write_superblock

LEVELS = [(1, 3), (4, 4), (5, 4), (6, 5), (10, 4), ("rs", 5)]
REGION = 64 << 10
SIZE = 9 << 20


def run(*words, code=0):
    answer = CliRunner().invoke(program, [str(word) for word in words])
    assert answer.exit_code == code, f"raidlib {' '.join(map(str, words))} ended with {answer.exit_code}:\n{answer.output}"
    return answer


def make(folder, level=5, n=3, **options):
    """Member files with random content on the array; (paths, content)."""
    options = {"size": SIZE, "bitmap": "internal", "bitmap_chunk": REGION, **options}
    with raidlib.create(folder, level=level, raid_devices=n, chunk=None if level == 1 else "16K", **options) as array:
        content = bytearray(random.Random(n).randbytes(array.size))
        array.pwrite(content, 0)
    return sorted(folder.glob("member-*.img")), content


def areas(path):
    """(superblock, where the bitmap's area begins): bytes of the member."""
    with Member.open(path, read_only=True, lock=False) as member:
        sb = read_superblock(member)
    return sb, (sb.super_offset + sb.bitmap_offset) * 512


def poke(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def marked(path):
    head = raidlib.examine(path).bitmap
    return head.bits, head.dirty


def whole(paths, content):
    """Every member agrees, by the oracle, and holds the content."""
    reader = oracle.ArrayReader(paths)
    return reader.check() == [] and reader.read(0, reader.size) == bytes(content)


# --- Birth -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bitmap": "none", "consistency_policy": "bitmap"}, "contradict"),
        ({"bitmap": "internal", "consistency_policy": "resync"}, "contradict"),
        ({"bitmap": "none", "bitmap_chunk": "64K"}, "goes with"),
        ({"consistency_policy": "resync", "bitmap_chunk": "64K"}, "goes with"),
        ({"bitmap_chunk": "64K"}, "goes with"),
        ({"bitmap": "external"}, "neither internal nor none"),
        ({"bitmap": "internal", "bitmap_chunk": "5K"}, "power of two"),
        ({"bitmap": "internal", "bitmap_chunk": "2K"}, "power of two"),
        ({"bitmap": "internal", "bitmap_chunk": "4G"}, "power of two"),
        ({"bitmap": "internal", "level": 0}, "raid0 has no redundancy"),
        ({"consistency_policy": "bitmap", "level": "linear"}, "linear has no redundancy"),
        ({"bitmap": "internal", "size": "1056K", "chunk": "4K"}, "no room"),
        ({"bitmap": "internal", "bitmap_chunk": "4K", "size": "1G"}, "64 KiB or more"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, words):
    with pytest.raises(errors.UsageError, match=words) as caught:
        raidlib.create(tmp_path / "a", **{"level": 5, "raid_devices": 3, "size": SIZE, "chunk": "16K", **options})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "a").glob("*")), "no files were left"


@pytest.mark.parametrize(("level", "n"), LEVELS)
@pytest.mark.parametrize("option", [{"bitmap": "internal"}, {"consistency_policy": "bitmap"}])
def test_born_clean_nothing_is_marked(tmp_path, level, n, option):
    with raidlib.create(tmp_path / "a", level=level, raid_devices=n, spare_devices=1, size=SIZE, **option) as array:
        assert (array.status().consistency_policy, array.status().bitmap.dirty) == ("bitmap", 0)
    for path in (tmp_path / "a").iterdir():
        assert marked(path)[1] == 0, "a spare has one as well"


def test_born_unclean_everything_is_marked(tmp_path):
    """As it is before the array is opened for the first time, on each member."""
    devices = [raidlib.MemoryDevice(SIZE) for _ in range(3)]
    members = [Member.open(device) for device in devices]
    options = {"chunk": "64K", "layout": None, "metadata": "1.2", "name": "x", "uuid": None, "data_offset": None, "parity": None}
    spec = creation.make_spec(
        level=5, raid_devices=3, assume_clean=False, bitmap="internal", bitmap_chunk="64K", consistency_policy=None, **options
    )
    creation.write_superblocks(spec, members, None)
    for device in devices:
        sb = raidlib.examine(device)
        assert (sb.state, sb.bitmap.bits, sb.bitmap.dirty) == ("active", 128, 128)
        assert (sb.bitmap.events, sb.bitmap.events_cleared, sb.events) == (1, 1, 1)
        assert bits_and_dirty(mdadm_says(device.handle.pread(4096, sb.bitmap.offset), tmp_path)) == (128, 128)
    for member in members:
        member.close()
    with raidlib.open(devices) as array:
        array.job.wait()
    assert {raidlib.examine(device).bitmap.dirty for device in devices} == {0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"bitmap": "none"}, False),
        ({"consistency_policy": "resync"}, False),
        ({"size": "99G"}, False),
        ({"level": 0}, False),
    ],
)
def test_large_members_have_one_unasked(tmp_path, options, expected):
    with raidlib.create(tmp_path / "a", **{"level": 1, "raid_devices": 2, "size": "101G", **options}) as array:
        status = array.status()
    assert (status.bitmap is not None) == expected
    assert any("--bitmap none" in note for note in status.notes) == expected
    if expected:
        assert status.bitmap.chunk_size == 64 << 20


# --- What a kernel made ------------------------------------------------------------------------------------------------------------------


def with_bitmap():
    return [name for name in entries() if "bitmap" in name or name in ("r1-miss0", "r1-writemostly", "r6-12-ls-512k-4d")]


@pytest.mark.parametrize("name", with_bitmap())
def test_a_kernels_array_is_written_and_ends_clean(golden_dir, tmp_path, name):
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == name)
    paths = list(unpack(golden_dir, entry, tmp_path).values())
    with raidlib.open(paths, run=True) as array:
        assert digest(array) == entry["sha256"]
        assert array.status().consistency_policy == "bitmap"
        content = bytearray(array.pread(array.size, 0))
        if array.job is not None:
            array.job.wait()
        degraded = array.status().degraded > 0
        content[300_000:400_000] = data = random.Random(name).randbytes(100_000)
        array.pwrite(data, 300_000)
    reader = oracle.ArrayReader(paths)
    assert reader.check() == []
    assert reader.read(0, reader.size) == bytes(content)
    for path in paths:
        sb = raidlib.examine(path)
        assert (sb.state, sb.bitmap.events) == ("clean", sb.events)
        assert (sb.bitmap.dirty > 0) == degraded, "while a member is missing, what is written stays marked"
        told = fields_of(subprocess.run([MDADM, "--examine", path], capture_output=True, text=True, check=True).stdout)
        assert "correct" in told["Checksum"]
        area = path.read_bytes()[sb.bitmap.offset :][:8192]
        assert bits_and_dirty(mdadm_says(area, tmp_path)) == (sb.bitmap.bits, sb.bitmap.dirty)


# --- Members that come back --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["re_add", "add"])
@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_member_that_was_away_gets_what_was_written(level, n, verb):
    """Not much more is written to it than what it is said to lack (mirrors are copied in pieces that are larger than a region here)."""
    disks = [Disk(SIZE) for _ in range(n)]
    options = {"chunk": None if level == 1 else "16K", "bitmap": "internal", "bitmap_chunk": REGION, "assume_clean": True}
    with raidlib.create(disks, level=level, **options) as array:
        content = bytearray(random.Random(n).randbytes(array.size))
        array.pwrite(content, 0)
    with raidlib.open(disks) as array:
        array.fail(1)
        for at in (0, 1_000_000, 2_500_000):
            content[at : at + 5000] = data = random.Random(at).randbytes(5000)
            array.pwrite(data, at)
        disks[1].writes.clear()
        getattr(array, verb)(disks[1]).wait()
        back = array.status().members[1].taken_back
        start = raidlib.examine(disks[0]).data_offset
        copied = sum(length for at, length in disks[1].writes if at >= start)
        assert back.by_bitmap
        assert 0 < back.to_copy <= 8 * REGION < back.total
        assert 0 < copied <= back.to_copy * (2 if level == 1 else 1)
        assert array.status().degraded == 0
        assert array.pread(array.size, 0) == content
        array.check().wait()
        assert array.status().mismatch_count == 0
    with raidlib.open([disk if at != 0 else None for at, disk in enumerate(disks)], mode="r", run=True) as array:
        assert array.pread(array.size, 0) == content, "read from the one that came back"


def returned(array, member, verb="re_add"):
    """How a member comes back, and what is said of it once it is there."""
    getattr(array, verb)(member).wait()
    assert array.status().degraded == 0
    return next(m.taken_back for m in array.status().members if m.taken_back is not None)


@pytest.mark.parametrize("verb", ["re_add", "add"])
def test_without_a_bitmap_all_of_it_is_copied(tmp_path, verb):
    paths, content = make(tmp_path / "a", bitmap="none", bitmap_chunk=None)
    with raidlib.open(paths) as array:
        array.fail(1)
        array.pwrite(b"new", 0)
        content[:3] = b"new"
        back = returned(array, str(paths[1]), verb)
        assert (back.by_bitmap, back.to_copy) == (False, back.total)
        assert "no write-intent bitmap" in back.reason
    assert whole(paths, content)


def test_away_for_longer_than_the_bitmap_reaches_back(tmp_path):
    paths, content = make(tmp_path / "a")
    shutil.copy(paths[1], tmp_path / "old")
    with raidlib.open(paths) as array:
        array.fail(1)
        array.remove(1)
        array.pwrite(b"1" * 9999, 12345)
        content[12345 : 12345 + 9999] = b"1" * 9999
        paths[1].write_bytes(bytes(SIZE))
        array.add(paths[1]).wait()
    with raidlib.open(paths) as array:
        array.fail(1)
        back = returned(array, tmp_path / "old")
        assert not back.by_bitmap
        assert "longer than the bitmap reaches back" in back.reason
    assert whole([paths[0], tmp_path / "old", paths[2]], content)


def test_another_device_of_its_number_is_in_the_way():
    """The same disk by another name, while the array still has the one that failed: a new member, as its number is taken."""
    disks = [Disk(SIZE) for _ in range(3)]
    with raidlib.create(disks, level=5, chunk="16K", bitmap="internal", bitmap_chunk=REGION, assume_clean=True) as array:
        array.fail(1)
        back = returned(array, Disk(content=disks[1].data, size=SIZE))
        assert not back.by_bitmap
        assert "removed first" in back.reason


def test_a_rebuild_by_the_bitmap_goes_on_after_a_stop(tmp_path):
    paths, content = make(tmp_path / "a")
    with raidlib.open(paths) as array:
        array.fail(1)
        array.pwrite(bytes(array.size // 2), 0)
        content[: len(content) // 2] = bytes(len(content) // 2)
        array.set_speed(minimum=1, maximum=1)
        job = array.re_add(paths[1])
        assert array.status().members[1].by_bitmap
        job.cancel()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert "bitmap-guided recovery" in raidlib.examine(paths[1]).features
    assert raidlib.plan(paths, force=True).members[1].by_bitmap
    with raidlib.open(paths) as array:
        assert array.status().members[1].by_bitmap
        array.job.wait()
    assert whole(paths, content)
    # where the marks say nothing any more, all of it is copied
    paths = sorted((tmp_path / "copy").iterdir())
    for path in (paths[0], paths[2]):
        poke(path, areas(path)[1] + 24, struct.pack("<Q", 1))
    assert not raidlib.plan(paths).members[1].by_bitmap
    with raidlib.open(paths) as array:
        array.job.wait()
    assert whole(paths, content)


@pytest.mark.parametrize(("events", "state", "cleared"), [(-1, 0, 0), (0, 2, 0), (0, 0, 1)])
def test_marks_that_cannot_be_trusted_guide_no_rebuild(tmp_path, events, state, cleared):
    """Out of date, marked as stale, or cleared since the member was last there (md-format.md 3.5, 3.7)."""
    paths, _content = make(tmp_path / "a")
    with raidlib.open(paths) as array:
        array.fail(1)
        array.pwrite(bytes(array.size // 2), 0)
        array.set_speed(minimum=1, maximum=1)
        array.re_add(paths[1]).cancel()
    now = raidlib.examine(paths[0]).events
    sb, _at = areas(paths[1])
    sb.recovery_offset = 1024
    with Member.open(paths[1]) as member:
        write_superblock(member, sb)
    member = raidlib.plan(paths).members[1]
    assert (member.state, member.by_bitmap, member.recovered) == ("rebuilding", True, 1024 * 512), "as it was left"
    for path in (paths[0], paths[2]):
        at = areas(path)[1]
        poke(path, at + 24, struct.pack("<Q", now + events))
        poke(path, at + 48, struct.pack("<I", state))
        if cleared:
            poke(path, at + 32, struct.pack("<Q", now + cleared))
    member = raidlib.plan(paths).members[1]
    assert (member.state, member.by_bitmap, member.recovered) == ("rebuilding", False, 0)


# --- Bitmaps that cannot be used ---------------------------------------------------------------------------------------------------------


def test_one_good_head_is_enough(tmp_path):
    paths, content = make(tmp_path / "a")
    for path in paths[:2]:
        poke(path, areas(path)[1], bytes(4096))
        assert "no write-intent bitmap" in raidlib.examine(path).bitmap_problem
    with raidlib.open(paths) as array:
        array.pwrite(b"x", 5)
        content[5:6] = b"x"
    assert {raidlib.examine(path).bitmap.events for path in paths} == {raidlib.examine(paths[0]).events}
    assert whole(paths, content)


def test_none_is_usable_and_force_gives_it_up(tmp_path):
    paths, content = make(tmp_path / "a")
    for path in paths:
        poke(path, areas(path)[1], bytes(4096))
    before = [path.read_bytes() for path in paths]
    with pytest.raises(errors.UnsupportedError, match=r"member-2.*--force") as caught:
        raidlib.open(paths)
    assert "no write-intent bitmap is where the superblock says" in str(caught.value)
    with raidlib.open(paths, mode="r") as array:
        assert array.pread(array.size, 0) == content
        assert (array.status().bitmap, array.status().consistency_policy) == (None, "resync")
    assert [path.read_bytes() for path in paths] == before
    with raidlib.open(paths, force=True) as array:
        assert any("has none any more" in note for note in array.status().notes)
        assert array.job is None, "it was stopped cleanly"
        array.pwrite(b"x", 5)
        content[5:6] = b"x"
    assert [raidlib.examine(path).features for path in paths] == [[], [], []]
    with raidlib.open(paths) as array:
        assert array.status().bitmap is None
    assert whole(paths, content)


def test_after_an_unclean_stop_giving_it_up_costs_a_resync(tmp_path):
    paths, content = make(tmp_path / "a")
    for path in paths:
        sb, at = areas(path)
        sb.resync_offset = 0
        with Member.open(path) as member:
            write_superblock(member, sb)
        poke(path, at, bytes(4096))
    poke(paths[0], sb.data_offset * 512, b"torn")
    with raidlib.open(paths, force=True) as array:
        array.job.wait()
        content[:4] = b"torn"
    assert whole(paths, content)


@pytest.mark.parametrize(("version", "word"), [(5, "clustered"), (6, "lockless")])
def test_a_bitmap_of_another_kind_is_left_alone(tmp_path, version, word):
    """Not given up by force: what it says is not known to be in the superblock."""
    paths, content = make(tmp_path / "a")
    for path in paths:
        poke(path, areas(path)[1] + 4, struct.pack("<I", version))
    for force in (False, True):
        with pytest.raises(errors.UnsupportedError, match=rf"{word}.*--update=no-bitmap"):
            raidlib.open(paths, force=force)
    with raidlib.open(paths, mode="r") as array:
        assert array.pread(array.size, 0) == content
    assert "read-only" in run("assemble", tmp_path / "a").stdout


@pytest.mark.parametrize("offset", [4, 16, 2040])
def test_a_bitmap_where_there_is_something_else_is_not_used(tmp_path, offset):
    """In the superblock's 4096 bytes (as from the hot-add of old), on the bad-block log, in the data."""
    paths, content = make(tmp_path / "a")
    for path in paths:
        sb, at = areas(path)
        head = path.read_bytes()[at : at + 256]
        sb.bitmap_offset = offset
        with Member.open(path) as member:
            write_superblock(member, sb)
        poke(path, (sb.super_offset + offset) * 512, head)
        assert "less room" in raidlib.examine(path).bitmap_problem
    with pytest.raises(errors.UnsupportedError, match="less room"):
        raidlib.open(paths)
    with raidlib.open(paths, mode="r") as array:
        assert array.pread(array.size - 32768, 32768) == content[32768:], "all but the stripe that the heads were laid over"


def test_a_bitmap_of_another_array_is_not_used(tmp_path):
    paths, _content = make(tmp_path / "a")
    for path in paths:
        poke(path, areas(path)[1] + 8, bytes(16))
    with pytest.raises(errors.UnsupportedError, match=r"member-1.*another array"):
        raidlib.open(paths)


@settings(max_examples=60)
@given(st.dictionaries(st.integers(0, 71), st.integers(0, 255), min_size=1, max_size=6), st.integers(1, 40) | st.none())
def test_a_hostile_head_is_used_or_refused(changed, offset):
    """Whatever it says: the array opens for writing, or is refused with a reason and can be read; its content is untouched."""
    devices = [raidlib.MemoryDevice(SIZE) for _ in range(2)]
    with raidlib.create(devices, level=1, bitmap="internal", bitmap_chunk=REGION, assume_clean=True) as array:
        array.pwrite(b"content" * 1000, 4096)
    for device in devices:
        at = raidlib.examine(device).bitmap.offset
        block = bytearray(device.handle.pread(4096, at))
        for place, value in changed.items():
            block[place] = value
        device.handle.pwrite(bytes(block), at)
        if offset:
            with Member.open(device) as member:
                sb = read_superblock(member)
                sb.bitmap_offset = offset
                write_superblock(member, sb)
    for mode in ("r", "rw"):
        try:
            with raidlib.open(devices, mode=mode) as array:
                assert array.pread(7000, 4096) == b"content" * 1000
        except errors.UnsupportedError as error:
            assert mode == "rw" and "bitmap" in str(error)
    with raidlib.open(devices, mode="r") as array:
        assert array.pread(7000, 4096) == b"content" * 1000


# --- grow --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_an_array_is_given_one_and_it_is_taken_away(tmp_path, level, n, metadata):
    """In the place where it would have been from birth, spares included; and it works."""
    options = {"bitmap": "none", "bitmap_chunk": None, "metadata": metadata, "spare_devices": 1}
    paths, content = make(tmp_path / "a", level, n, **options)
    make(tmp_path / "b", level, n, metadata=metadata, spare_devices=1)
    with raidlib.open(paths) as array:
        array.set_bitmap("internal", chunk="64K")
        assert array.status().consistency_policy == "bitmap"
        array.pwrite(b"x" * 70000, 1_000_000)
        content[1_000_000:1_070_000] = b"x" * 70000
        assert array.status().bitmap.dirty > 0
    for path in paths:
        ours, born = (raidlib.examine(place) for place in (path, tmp_path / "b" / path.name))
        assert "write-intent bitmap" in ours.features
        assert areas(path)[1] == areas(tmp_path / "b" / path.name)[1]
        if ours.slot is not None:
            assert (ours.bitmap.chunk_size, ours.bitmap.bits, ours.bitmap.dirty) == (REGION, born.bitmap.bits, 0)
    with raidlib.open(paths) as array:
        array.fail(0)
        array.job.wait()
        assert array.status().degraded == 0, "the spare has it as well"
        array.remove("faulty")
        array.set_bitmap("none")
        assert array.status().bitmap is None
        assert array.status().consistency_policy == "resync"
    left = [path for path in paths if path != paths[0]]
    assert not any("bitmap" in word for path in left for word in raidlib.examine(path).features)
    with raidlib.open(left) as array:
        assert array.pread(array.size, 0) == content


@pytest.mark.parametrize("metadata", ["1.0", "1.1", "1.2"])
def test_grow_has_the_room_that_birth_has(tmp_path, metadata):
    """And so the same least chunk: 8 sectors, of which 4 KiB regions of 200 MiB would need more."""
    with raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="200M", metadata=metadata) as array:
        with pytest.raises(errors.UsageError, match=r"4096 bytes .*take one of 8 KiB or more"):
            array.set_bitmap("internal", chunk="4K")
        array.set_bitmap("internal", chunk="8K")
    with pytest.raises(errors.UsageError, match=r"4096 bytes .*take one of 8 KiB or more"):
        raidlib.create(tmp_path / "b", level=1, raid_devices=2, size="200M", metadata=metadata, bitmap="internal", bitmap_chunk="4K")


def test_an_old_superblock_is_given_one(golden_dir, tmp_path):
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == "r1-090")
    paths = list(unpack(golden_dir, entry, tmp_path).values())
    with raidlib.open(paths) as array:
        array.set_bitmap("internal")
        assert array.status().bitmap.chunk_size == 64 << 20
    for path in paths:
        area = path.read_bytes()[areas(path)[1] :][:4096]
        told = mdadm_says(area, tmp_path)
        assert [bytes.fromhex(word)[::-1].hex() for word in told["UUID"].split(":")] == raidlib.examine(path).uuid.split(":")
        assert bits_and_dirty(told) == (1, 0)
    with raidlib.open(paths) as array:
        assert digest(array) == entry["sha256"]
        array.set_bitmap("none")


def test_what_grow_refuses(tmp_path):
    plain = {"bitmap": "none", "bitmap_chunk": None}
    paths, _content = make(tmp_path / "a", **plain)
    with raidlib.open(paths) as array:
        for wrong, words in (
            (("none",), "has no write-intent bitmap"),
            (("external",), "neither internal nor none"),
            (("internal", "6K"), "power of two"),
        ):
            with pytest.raises(errors.UsageError, match=words):
                array.set_bitmap(wrong[0], chunk=wrong[1] if len(wrong) > 1 else None)
        array.set_bitmap("internal", chunk="64K")
        with pytest.raises(errors.UsageError, match=r"regions of 64 KiB.*--bitmap none"):
            array.set_bitmap("internal", chunk="128K")
        with pytest.raises(errors.UsageError, match="goes with"):
            array.set_bitmap("none", chunk="64K")
    with raidlib.open(paths, mode="r") as array, pytest.raises(errors.ReadOnlyError):
        array.set_bitmap("none")
    with raidlib.create(tmp_path / "tight", level=5, raid_devices=3, size="1056K", chunk="4K"):
        pass  # md reserves nothing on members so small: the bad-block log is right behind the superblock
    paths = sorted((tmp_path / "tight").iterdir())
    before = [raidlib.examine(path).features for path in paths]
    with raidlib.open(paths) as array, pytest.raises(errors.UsageError, match="no room"):
        array.set_bitmap("internal")
    assert [raidlib.examine(path).features for path in paths] == before
    with raidlib.create(tmp_path / "c", level=0, raid_devices=2, size=SIZE) as array, pytest.raises(errors.UsageError, match="redundancy"):
        array.set_bitmap("internal")


# --- Words -------------------------------------------------------------------------------------------------------------------------------


def test_a_stopped_array_tells_what_is_marked(tmp_path):
    """Read-only, from the members; the same as the running one said, and needed only after an unclean stop."""
    paths, _content = make(tmp_path / "a")
    with raidlib.open(paths) as array:
        array.fail(1)
        array.pwrite(bytes(100_000), 0)
        running = array.status().bitmap
    with raidlib.open(paths, mode="r", run=True) as array:
        assert array.status().bitmap == running
        assert running.dirty == 1 and running.needed == 0
        advice = array.status().advice
    assert "`raidlib re-add`" in advice
    assert "1 of 128 regions (64 KiB) is marked now" in advice
    for path in (paths[0], paths[2]):
        sb, _at = areas(path)
        sb.resync_offset = 0
        with Member.open(path) as member:
            write_superblock(member, sb)
    with raidlib.open(paths, mode="r", run=True, force=True) as array:
        assert array.status().bitmap.needed == 1
    for path in (paths[0], paths[2]):
        poke(path, areas(path)[1] + 24, struct.pack("<Q", 1))
    with raidlib.open(paths, mode="r", run=True, force=True) as array:
        assert array.status().bitmap.dirty == 128, "out of date: all count as set"


def test_the_verbs(tmp_path):
    tank = tmp_path / "tank"
    run("create", tank, "--level", 5, "-n", 3, "--size", "9M", "--chunk", "16K", "--bitmap", "internal", "--bitmap-chunk", "64K")
    text = run("detail", tank).stdout
    assert "Consistency Policy  bitmap" in text
    assert "Intent Bitmap  Internal: none of 128 regions is marked, 64 KiB each" in text
    assert "only the regions that its bitmap marks" in " ".join(text.split())
    status = json.loads(run("detail", tank, "--json").stdout)
    assert status["bitmap"]["chunk_size"] == REGION
    assert "0 of 128 regions marked (0.0 %)" in run("examine", tank / "member-0.img").stdout
    head = json.loads(run("examine", tank / "member-0.img", "--json").stdout)["superblocks"][0]["bitmap"]
    assert (head["bits"], head["dirty"], head["version"], head["daemon_sleep"]) == (128, 0, 4, 5)
    run("fail", tank, 1)
    with raidlib.open(tank, run=True) as array:
        array.pwrite(bytes(100_000), 0)
    assert "taken back by the bitmap, 64 KiB of 8 MiB to copy" in run("re-add", tank, "member-1.img").stdout
    assert "no write-intent bitmap any more" in run("grow", tank, "--bitmap", "none").stdout
    run("fail", tank, 1)
    text = run("re-add", tank, tank / "member-1.img").stdout
    assert "taken back, 8 MiB to copy, which is all of it: the array has no write-intent bitmap" in text
    answer = json.loads(run("grow", tank, "--bitmap", "internal", "--json").stdout)
    assert answer["status"]["bitmap"]["chunk_size"] == 64 << 20
    assert "already" not in run("grow", tank, "--bitmap", "internal", code=64).output
    assert run("check", tank).exit_code == 0


def test_a_running_array_by_its_socket(tmp_path):
    paths, content = make(tmp_path / "a", bitmap="none", bitmap_chunk=None)
    with raidlib.open(paths) as array, Owner(array):
        with connect(tmp_path / "a") as client:
            client.set_bitmap("internal", chunk=REGION)
            assert client.status().bitmap.chunk_size == REGION
            client.fail(1)
            array.pwrite(bytes(5000), 0)
            content[:5000] = bytes(5000)
            client.re_add(paths[1]).wait()
            assert client.status().members[1].taken_back.by_bitmap
            with pytest.raises(errors.UsageError, match="for another one"):
                client.set_bitmap("internal")
        assert "no write-intent bitmap any more" in run("grow", tmp_path / "a", "--bitmap", "none").stdout
        assert array.status().bitmap is None
    assert whole(paths, content)
