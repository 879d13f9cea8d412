"""Arrays of arrays: created, found, failed and rebuilt through both levels, against a byte array and read by the oracle."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import oracle
import pytest
from test_array import Disk

import raidlib
from raidlib import errors, runtime
from raidlib.engine import lib

LEAF = 3 << 20
CHUNK = 16 << 10


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """A folder for running arrays that no other test has."""
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def make_inner(folder, level, count):
    options = {"parity": 2} if level == "rs" else {}
    chunk = None if level == 1 else CHUNK
    raidlib.create(folder, level=level, raid_devices=count, size=LEAF, chunk=chunk, **options).close()
    return folder


def make(tank, inner, outer):
    """tank/a, tank/b …, and the array of them, open."""
    folders = [make_inner(tank / "abcdefgh"[i], *inner) for i in range(outer[1])]
    options = {"parity": 2} if outer[0] == "rs" else {}
    if outer[0] != 1:
        options["chunk"] = CHUNK
    return raidlib.create(folders, level=outer[0], assume_clean=True, **options)


def settle(array):
    """Until no job runs or is due, at any level."""
    for _ in range(2000):
        status = array.status()
        busy = array.job is not None and not array.job.done
        # a member that has just failed may have a spare that steps in
        if not busy and not any(m.state in ("rebuilding", "replacement", "spare") and status.degraded for m in status.members):
            break
        time.sleep(0.005)
    for _path, inner in array.arrays:
        settle(inner)


def states(array):
    return {m.slot: str(m.state) for m in array.status().members if m.slot is not None}


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def fill(array, seed=1):
    content = random.Random(seed).randbytes(array.size)
    array.pwrite(content, 0)
    return content


def blank(path, size=LEAF):
    Path(path).touch()
    os.truncate(path, size)
    return path


def through_both_levels(tank):
    """What the oracle reads: the outer array on what the inner ones hold."""
    contents = []
    for folder in sorted(path for path in tank.iterdir() if path.is_dir()):
        reader = oracle.ArrayReader(sorted(folder.glob("*.img")))
        contents.append(reader.read(0, reader.size))
    outer = oracle.ArrayReader(contents)
    return outer.read(0, outer.size), outer


# --- Shapes -----------------------------------------------------------------------------------------------------------

SHAPES = {
    "RAID 50": ((5, 3), (0, 2)),
    "RAID 60": ((6, 4), (0, 2)),
    "RAID 10 of 5": ((5, 3), (10, 4)),
    "RAID 5 of 1": ((1, 2), (5, 3)),
    "RAID 1 of 0": ((0, 2), (1, 2)),
    "RAID 6 of linear": (("linear", 2), (6, 4)),
    "RAID 0 of rs": (("rs", 5), (0, 2)),
    "rs of RAID 1": ((1, 2), ("rs", 4)),
    "linear of RAID 10": ((10, 3), ("linear", 2)),
    "RAID 5 of 5": ((5, 3), (5, 3)),
}
BEARS = {"linear": 0, 0: 0, 1: 1, 5: 1, 6: 2, 10: 1, "rs": 2}
by_shape = pytest.mark.parametrize(("inner", "outer"), SHAPES.values(), ids=SHAPES)


@by_shape
def test_what_was_written_is_there_by_every_name(inner, outer, tmp_path):
    tank = tmp_path / "tank"
    with make(tank, inner, outer) as array:
        content = fill(array)
        assert [name for name, _inner in array.arrays] == [str(tank / "abcdefgh"[i]) for i in range(outer[1])]
    leaves = sorted(str(path) for path in tank.glob("*/*.img"))
    folders = sorted(str(path) for path in tank.iterdir())
    shuffled = random.Random(2).sample(leaves, len(leaves))
    for source in (tank, str(tank), leaves, shuffled, folders, [[folder] for folder in folders], [tank]):
        for mode in ("r", "rw"):
            with raidlib.open(source, mode=mode) as array:
                assert (array.level, len(array.arrays)) == (raidlib.Level.parse(outer[0]), outer[1])
                assert array.pread(array.size, 0) == content
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, leaf in enumerate(leaves):
        os.link(leaf, flat / f"{number}.img")
    with raidlib.open(flat) as array:
        assert array.pread(array.size, 0) == content
    if "rs" not in (inner[0], outer[0]):
        read, reader = through_both_levels(tank)
        assert read == content
        assert reader.check() == []


class History:
    """One nested array and its model; what is drawn is within what it bears."""

    def __init__(self, tank, inner, outer, seed):
        self.tank, self.random = tank, random.Random(seed)
        self.bears_inner, self.bears_outer = BEARS[inner[0]], BEARS[outer[0]]
        if inner == (1, 3):
            self.bears_inner = 2
        self.array = make(tank, inner, outer)
        self.model = bytearray(self.array.size)
        self.gone_leaves = {name: 0 for name, _array in self.array.arrays}
        self.gone_inner = []
        self.spares = 0
        self.taken = []

    def inner(self):
        return {name: array for name, array in self.array.arrays if name not in self.gone_inner}

    def write(self):
        offset = self.random.randrange(len(self.model))
        data = self.random.randbytes(min(self.random.choice([1, 512, 5000, 65536, 300000]), len(self.model) - offset))
        self.array.pwrite(data if self.random.random() < 0.5 else bytearray(data), offset)
        self.model[offset : offset + len(data)] = data

    def zero(self):
        offset = self.random.randrange(len(self.model))
        length = min(self.random.choice([1, 4096, 200000]), len(self.model) - offset)
        (self.array.zero if self.random.random() < 0.5 else self.array.discard)(offset, length)
        self.model[offset : offset + length] = bytes(length)

    def flush(self):
        self.array.flush()

    def leaf(self):
        """A leaf that may go, and the array that it is in."""
        settle(self.array)
        names = [name for name in self.inner() if self.gone_leaves[name] < self.bears_inner]
        if not names:
            return None, None
        name = self.random.choice(names)
        return name, self.random.choice([m.path for m in self.inner()[name].status().members if m.state == "in_sync"])

    def fail_leaf(self):
        name, path = self.leaf()
        if name:
            self.array.fail(path)  # of the outer array: the path decides
            self.gone_leaves[name] += 1

    def destroy_leaf(self):
        name, path = self.leaf()
        if name:
            os.unlink(path)
            self.gone_leaves[name] += 1
            self.array.pwrite(bytes(self.model), 0)
            wait_for(lambda: path not in {m.path for m in self.inner()[name].status().members if m.state == "in_sync"})

    def add_leaf(self):
        names = [name for name in self.inner() if self.gone_leaves[name]]
        if names:
            name = self.random.choice(names)
            self.spares += 1
            self.inner()[name].remove("faulty")
            job = self.inner()[name].add(blank(f"{name}/new-{self.spares}.img"))
            self.gone_leaves[name] -= 1
            if self.random.random() < 0.5:
                job.wait()

    def fail_inner(self):
        settle(self.array)
        if len(self.gone_inner) < self.bears_outer:
            name = self.random.choice(sorted(self.inner()))
            self.array.fail(name)
            self.gone_inner.append(name)

    def add_inner(self):
        if self.gone_inner:
            name = self.gone_inner.pop()
            job = self.array.add(name)
            if self.random.random() < 0.5:
                job.wait()

    def reopen(self):
        self.array.close()
        self.array = raidlib.open(self.tank if self.random.random() < 0.7 else sorted(self.tank.glob("*/*.img")))

    def check(self):
        settle(self.array)
        for array in [self.array, *self.inner().values()]:
            if array.level > 0:
                job = self.random.choice([array.check, array.repair])()
                job.wait()
                assert job.status().mismatch_count == 0

    def run(self, steps):
        kinds = [self.write] * 6 + [self.zero, self.flush, self.fail_leaf, self.destroy_leaf, self.add_leaf, self.fail_inner]
        kinds += [self.add_inner, self.reopen, self.check, self.fail_leaf, self.add_leaf]
        for _ in range(steps):
            step = self.random.choice(kinds)
            self.taken.append(step.__name__)
            step()
            assert self.array.pread(len(self.model), 0) == self.model, self.taken
        settle(self.array)
        self.array.close()


@by_shape
@pytest.mark.parametrize("seed", [1, 2])
def test_random_histories(inner, outer, seed, tmp_path):
    history = History(tmp_path / "tank", inner, outer, seed)
    try:
        history.run(40)
    except BaseException as error:
        error.add_note(f"after {history.taken}")
        raise
    finally:
        history.array.close()
    if "rs" not in (inner[0], outer[0]):
        assert through_both_levels(tmp_path / "tank")[0] == history.model


def test_three_levels(tmp_path):
    """A mirror of stripes of mirrors."""
    tank = tmp_path / "tank"
    for half in "ab":
        make(tank / half, (1, 2), (0, 2)).close()
    with raidlib.create([tank / "a", tank / "b"], level=1, assume_clean=True) as array:
        content = fill(array)
    with raidlib.open(tank) as array:
        array.fail(tank / "a" / "b" / "member-1.img")
        assert states(array) == {0: "in_sync", 1: "in_sync"}
        status = array.status()
        assert status.members[0].array.members[1].array.degraded == 1
        assert status.files_may_lose == 2  # the mirror's half that is whole has two mirrors of two; the other falls with one file
        assert f"In {tank}/a: " in status.advice
        array.fail(tank / "a")
        assert array.pread(array.size, 0) == content
    with raidlib.open(tank) as array:
        assert states(array) == {0: "removed", 1: "in_sync"}
        assert array.pread(array.size, 0) == content


# --- Which arrays, and which not --------------------------------------------------------------------------------------


def test_two_arrays_that_are_not_one(tmp_path):
    for name in "ab":
        make_inner(tmp_path / name, 5, 3)
    leaves = sorted(tmp_path.glob("*/*.img"))
    with pytest.raises(errors.MixedArraysError, match="members of 2 arrays were given as one"):
        raidlib.open(leaves)
    with pytest.raises(errors.MixedArraysError, match="members of 2 arrays were given as one"):
        raidlib.open([leaves[0], leaves[3]])  # of each too few to look into
    with pytest.raises(errors.MixedArraysError, match=f"make several arrays .*{tmp_path}/a.*{tmp_path}/b.*; name one of them"):
        raidlib.open(tmp_path)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(errors.NoSuperblockError, match=f"holds no member of an array; name the directory that does: {tmp_path}/a"):
        raidlib.open(tmp_path)
    for leaf in leaves[:2]:
        leaf.unlink()
    with pytest.raises(errors.NotEnoughMembersError, match=f"none of the arrays in .* can be started .{tmp_path}/a: more members are lost"):
        raidlib.open(tmp_path)


def test_an_array_beside_it_is_left_alone(tmp_path):
    """It may be there to be added."""
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (1, 2)) as array:
        content = fill(array)
    make_inner(tank / "c", 5, 3)
    with raidlib.open(tank) as array:
        assert array.pread(len(content), 0) == content
        (other,) = [m for m in array.status().members if m.slot is None]
        assert (other.path, str(other.state)) == (str(tank / "c"), "stale")
        assert "an array by itself" in other.reason
        array.fail(tank / "a")
        assert array.remove(tank / "a") == [str(tank / "a")]
        array.add(tank / "c").wait()
        assert states(array) == {0: "in_sync", 1: "in_sync"}
        assert [name for name, _array in array.arrays] == [str(tank / "b"), str(tank / "c")]
        with raidlib.open(tank / "a") as former:  # let go of
            assert former.state == "clean"
    with raidlib.open(tank) as array:
        assert array.pread(len(content), 0) == content
        assert [(m.path, m.reason[:5]) for m in array.status().members if m.slot is None or m.state == "stale"] == [(f"{tank}/a", "stale")]


def make_member_of(folder, uuid):
    """What an array holds becomes the first part of an array of that UUID."""
    with raidlib.open(folder) as array:
        size = array.size
    memory = raidlib.MemoryDevice(size)
    raidlib.create([memory], level="linear", uuid=uuid).close()
    with raidlib.open(folder) as array:
        array.pwrite(memory.handle.pread(size, 0), 0)


UUIDS = ["aaaaaaaa:00000000:00000000:00000001", "bbbbbbbb:00000000:00000000:00000002"]


def test_an_array_that_contains_itself(tmp_path):
    """Its content says that it is a member of it."""
    raidlib.create(tmp_path / "a", level=1, raid_devices=2, size="8M", uuid=UUIDS[0]).close()
    make_member_of(tmp_path / "a", UUIDS[0])
    with raidlib.open(tmp_path / "a") as array:
        assert array.state == "clean"
    with pytest.raises(errors.UsageError, match=f"members of each other: {UUIDS[0]}"):
        raidlib.open(tmp_path)


def test_arrays_that_are_members_of_each_other(tmp_path):
    """Each one's content says that it is a member of the other."""
    for name, own, other in zip("ab", UUIDS, reversed(UUIDS), strict=True):
        raidlib.create(tmp_path / name, level=0, raid_devices=2, size=LEAF, chunk=CHUNK, uuid=own).close()
        make_member_of(tmp_path / name, other)
    for source in (sorted(tmp_path.glob("[ab]/*.img")), tmp_path):
        with pytest.raises(errors.UsageError, match=f"members of each other: {', '.join(UUIDS)}"):
            raidlib.open(source)


def test_not_more_levels_than_can_be_overseen(tmp_path):
    with contextlib.ExitStack() as held:
        halves = [held.enter_context(raidlib.create(tmp_path / name, level=1, raid_devices=2, size="16M")) for name in "ab"]
        array = held.enter_context(raidlib.create(halves, level="linear"))
        for _ in range(2):
            array = held.enter_context(raidlib.create([array], level="linear"))
        fill(array)
    leaves = sorted(tmp_path.glob("[ab]/*.img"))
    with raidlib.open(leaves) as array:  # four
        content = array.pread(array.size, 0)
        raidlib.create([array], level="linear", force=True).close()
    with pytest.raises(errors.UsageError, match="more than 4 levels"):
        raidlib.open(leaves)
    assert content


# --- What is missing, and what starts ---------------------------------------------------------------------------------


def test_an_inner_array_that_cannot_be_started_is_a_missing_member(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (5, 3)) as array:
        content = fill(array)
    for slot in (0, 2):
        (tank / "b" / f"member-{slot}.img").unlink()
    with pytest.raises(errors.RefusedError, match=f"slot 1 of 3 has no usable member.*--run.*; {tank}/b: more members are lost than raid5"):
        raidlib.open(tank)
    plan = raidlib.plan(tank)
    assert (plan.startable, plan.needs_run) == (False, True)
    (aside,) = [m for m in plan.members if m.path == str(tank / "b")]
    assert "more members are lost than raid5 bears" in aside.reason
    with raidlib.open(tank, run=True) as array:
        assert states(array) == {0: "in_sync", 1: "removed", 2: "in_sync"}
        assert array.pread(array.size, 0) == content
        assert "more members are lost" in array.status().advice
        shutil.rmtree(tank / "b")
        make_inner(tank / "b", 5, 3)
        array.add(tank / "b").wait()
        assert states(array) == {0: "in_sync", 1: "in_sync", 2: "in_sync"}
    with raidlib.open(tank) as array:
        assert array.pread(array.size, 0) == content


def test_all_of_one_inner_array_is_gone(tmp_path):
    """The one that is left does not pass for the whole."""
    tank = tmp_path / "tank"
    with make(tank, (1, 2), (1, 2)) as array:
        content = fill(array)
    shutil.rmtree(tank / "a")
    with pytest.raises(errors.RefusedError, match=r"slot 0 of 2 has no usable member.*--run"):
        raidlib.open(tank)
    with raidlib.open(tank, run=True) as array:
        assert (array.level, states(array)) == (1, {0: "removed", 1: "in_sync"})
        assert array.pread(array.size, 0) == content
    shutil.rmtree(tank / "b")
    with pytest.raises(errors.NoSuperblockError):
        raidlib.open(tank)


def test_run_holds_for_every_level_and_nothing_starts_without_it(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (1, 2)) as array:
        content = fill(array)
    (tank / "a" / "member-1.img").rename(tmp_path / "away.img")
    with pytest.raises(errors.RefusedError, match=f"^{tank}/a: slot 1 of 3 has no usable member.*--run"):
        raidlib.open(tank)
    plan = raidlib.plan(tank)
    assert (plan.startable, plan.needs_run, plan.problem[: len(str(tank)) + 2]) == (False, True, f"{tank}/a")
    assert plan.members[0].array is None or plan.members[0].array.degraded == 1
    assert "remembers 3" in (plan.problem)
    for leaf in tank.glob("*/*.img"):
        assert raidlib.examine(leaf).device_roles == "AAA"  # nothing was written
    with raidlib.open(tank, run=True) as array:
        assert [inner.status().degraded for _name, inner in array.arrays] == [1, 0]
        assert array.pread(array.size, 0) == content
        array.pwrite(content, 0)
    with raidlib.open(tank) as array:  # it is recorded now
        assert array.arrays[0][1].state == "degraded"


def make_dirty(tank, name):
    """As after a power cut while it was written to."""
    with raidlib.open(tank) as array:
        array.pwrite(array.pread(array.size, 0), 0)
        time.sleep(0.01)
        images = {path: path.read_bytes() for path in (tank / name).glob("*.img")}
    for path, image in images.items():
        path.write_bytes(image)


def test_force_is_for_the_outermost_array_alone(tmp_path):
    """An inner array that is dirty and degraded may hold something wrong: whoever wants it all the same says so to that array."""
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (0, 2)) as array:
        content = fill(array)
    make_dirty(tank, "a")
    (tank / "a" / "member-1.img").unlink()
    with pytest.raises(errors.NotEnoughMembersError, match=f"raid0 bears no loss; {tank}/a: the array was not stopped cleanly"):
        raidlib.open(tank, run=True, force=True)
    raidlib.open(tank / "a", force=True, run=True).close()
    with raidlib.open(tank) as array:
        assert array.pread(array.size, 0) == content


def test_a_damaged_leaf_is_shown_where_it_lies(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (0, 2)) as array:
        content = fill(array)
        array.fail(tank / "b" / "member-0.img")
    with open(tank / "b" / "member-0.img", "r+b") as file:
        file.seek(4096 + 20)
        file.write(b"damage")
    with raidlib.open(tank, mode="r") as array:
        assert array.pread(array.size, 0) == content
        (damaged,) = [m for m in array.status().members[1].array.members if m.slot is None]
        assert damaged.path == f"{tank}/b/member-0.img"
        assert "superblock" in damaged.reason


# --- While it runs ----------------------------------------------------------------------------------------------------


def test_a_failed_leaf_goes_back_where_it_was(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (1, 2)) as array:
        content = fill(array)
        for back in (array.add, array.re_add):
            array.fail(tank / "b" / "member-1.img")
            back(tank / "b" / "member-1.img").wait()
            assert states(array.arrays[1][1]) == {0: "in_sync", 1: "in_sync", 2: "in_sync"}
        array.fail(tank / "b" / "member-1.img")
        array.remove(tank / "b" / "member-1.img")
        with pytest.raises(errors.RefusedError, match="is a member of another array"):  # not said to which: not guessed
            array.add(tank / "b" / "member-1.img")
        array.arrays[1][1].re_add(tank / "b" / "member-1.img").wait()
        assert array.pread(array.size, 0) == content


def test_an_inner_array_fails_while_the_outer_goes_on(tmp_path):
    """Its files are deleted: the heartbeat finds that, the inner array fails, the outer one takes it out and goes on."""
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (5, 3)) as array:
        content = fill(array)
        for slot in range(2):
            (tank / "b" / f"member-{slot}.img").unlink()
        wait_for(lambda: states(array)[1] == "removed")
        status = array.status()
        (failed,) = [m for m in status.members if m.path == f"{tank}/b"]
        assert (str(failed.state), str(failed.array.state)) == ("faulty", "failed")
        assert failed.reason.endswith("has failed: more members are gone than it bears")
        assert array.pread(array.size, 0) == content
        array.pwrite(content, 0)
        array.flush()
        assert array.remove("faulty") == [f"{tank}/b"]
        shutil.rmtree(tank / "b")
        make_inner(tank / "b", 5, 3)
        array.add(tank / "b").wait()
        assert array.pread(array.size, 0) == content
        assert array.check().wait()
        assert array.status().mismatch_count == 0
    with raidlib.open(tank) as array:
        assert states(array) == {0: "in_sync", 1: "in_sync", 2: "in_sync"}
        assert array.pread(array.size, 0) == content


def test_a_failed_inner_array_does_not_keep_the_outer_from_closing(tmp_path):
    tank = tmp_path / "tank"
    array = make(tank, (5, 3), (1, 2))
    content = fill(array)
    for slot in range(2):
        (tank / "b" / f"member-{slot}.img").unlink()
    wait_for(lambda: states(array)[1] == "removed")
    array.close()
    with raidlib.open(tank) as array:
        assert states(array) == {0: "in_sync", 1: "removed"}
        assert array.pread(array.size, 0) == content


def test_without_redundancy_above_a_failed_inner_array_fails_the_whole(tmp_path):
    with make(tmp_path / "tank", (5, 3), (0, 2)) as array:
        fill(array)
        for slot in range(2):
            (tmp_path / "tank" / "b" / f"member-{slot}.img").unlink()
        wait_for(lambda: array.state == "failed")
        with pytest.raises(errors.RaidError):
            array.pwrite(bytes(array.size), 0)
        assert array.status().files_may_lose == 0
        with pytest.raises(errors.ArrayIOError):
            array.close()


@pytest.fixture
def striped_mirror():
    """A mirror of two stripes of two disks each: (array, disks, content)."""
    disks = [Disk(8 << 20) for _ in range(4)]
    with contextlib.ExitStack() as held:
        halves = [held.enter_context(raidlib.create(disks[i : i + 2], level=0, chunk=CHUNK)) for i in (0, 2)]
        array = held.enter_context(raidlib.create(halves, level=1, assume_clean=True))
        content = fill(array)
        yield array, disks, content


def bad_sector(array, disk):
    """The sector of the first disk that holds the array's byte CHUNK (the first disk's, if the outer data begin at an even chunk)."""
    outer, inner = raidlib.examine(array.arrays[0][1]).data_offset, oracle.parse_superblock(bytes(disk.data)).data_offset
    assert outer % (2 * CHUNK) == 0
    return inner + outer // 2 // 512


def test_an_unreadable_block_of_an_inner_array_is_mended_by_the_outer(striped_mirror):
    """It stays a block: the inner array is not taken out for it."""
    array, disks, content = striped_mirror
    disks[0].bad_reads = {bad_sector(array, disks[0])}
    assert array.pread(4096, 0) == content[:4096]
    assert disks[0].bad_reads == set()  # rewritten, through both levels
    assert states(array) == {0: "in_sync", 1: "in_sync"}
    assert array.status().corrected_reads == 1


def test_a_lack_of_space_passes_both_levels(striped_mirror):
    array, disks, content = striped_mirror
    disks[2].write_error = errno.ENOSPC
    with pytest.raises(errors.NoSpaceError):
        array.pwrite(bytes(4 * CHUNK), 0)
    assert states(array) == {0: "in_sync", 1: "in_sync"}
    assert [inner.state for _name, inner in array.arrays] == ["clean", "read_only"] and array.state == "read_only"
    disks[2].write_error = 0
    until = time.monotonic() + 15
    while array.state == "read_only" and time.monotonic() < until:  # the inner one finds that there is space, then the outer one
        time.sleep(0.05)
    assert [inner.state for _name, inner in array.arrays] == ["clean", "clean"]
    array.pwrite(content, 0)
    assert array.pread(len(content), 0) == content


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and has no loop device")
@pytest.mark.parametrize("level", ["linear", 5])
def test_a_check_sees_what_the_disks_hold_and_not_the_page_cache(level, tmp_path):
    """A leaf of the inner array changes below the page cache."""
    count = 3 if level == 5 else 1
    files = [blank(tmp_path / f"{number}.img", 16 << 20) for number in range(count + 1)]
    done = subprocess.run(["losetup", "--find", "--show", files[0]], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        subprocess.run(["blockdev", "--setra", "0", device], check=True)
        with contextlib.ExitStack() as held:
            inner = held.enter_context(raidlib.create([device, *files[1:count]], level=level, assume_clean=True))
            other = held.enter_context(raidlib.create([files[count]], level="linear"))
            array = held.enter_context(raidlib.create([inner, other], level=1, assume_clean=True))
            content = fill(array)
            array.flush()
            held_by_disk = files[0].read_bytes()
            start = next(at for at in map(held_by_disk.find, (content[i : i + 4096] for i in range(0, 1 << 20, 4096))) if at >= 0)
            with open(device, "rb", buffering=0) as whole:
                os.posix_fadvise(whole.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(whole.fileno(), 4096, start) in content  # from now on the page cache has it
                with open(files[0], "r+b") as file:
                    file.seek(start)
                    file.write(bytes(4096))
                assert os.pread(whole.fileno(), 4096, start) in content
            array.check().wait()  # of the outer array
            assert array.status().mismatch_count == 8
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_reads_and_writes_beside_failures_at_both_levels(tmp_path):
    """Nobody waits for ever (lock order), and nothing is lost."""
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (1, 2)) as array:
        content = fill(array)
        stop, problems = threading.Event(), []
        part = array.size // 4 // 4096 * 4096

        def work(number):
            try:
                while not stop.is_set():
                    array.pwrite(content[number * part : (number + 1) * part], number * part)
                    assert array.pread(part, number * part) == content[number * part : (number + 1) * part]
                    array.flush()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for round_ in range(4):
            name = str(tank / "ab"[round_ % 2])
            array.fail(f"{name}/member-{round_ % 3}.img")
            array.remove(f"{name}/member-{round_ % 3}.img")
            dict(array.arrays)[name].add(f"{name}/member-{round_ % 3}.img").wait()
            array.fail(name)
            array.add(name).wait()
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert problems == []
        settle(array)
        assert array.pread(array.size, 0) == content
        for each in (array, *(inner for _name, inner in array.arrays)):
            assert each.check().wait()
            assert each.status().mismatch_count == 0


# --- Status -----------------------------------------------------------------------------------------------------------


def test_one_status_tree(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (6, 4), (0, 2)) as array:
        status = array.status()
        assert status.files_may_lose == 2  # as many as each raid6
        assert status.may_lose == 0  # of its own members
        assert "Of the files and devices below, any 2 may be lost." in status.advice
        assert [m.array.level for m in status.members] == ["raid6", "raid6"]
        assert msgspec.json.decode(status.to_json().encode(), type=raidlib.Status) == status
        array.fail(tank / "b" / "member-3.img")
        status = array.status()
        assert (status.state, status.worst().name) == ("clean", array.arrays[1][1].name)  # its own state stays its own
        assert status.files_may_lose == 1
        assert f"In {tank}/b: All data are there, with 1 member missing." in status.advice
        assert f"In {tank}/a" not in status.advice
    with raidlib.open(tank, mode="r") as array:
        assert array.status().members[1].array.degraded == 1
    assert raidlib.plan(tank).members[1].array is None or raidlib.plan(tank).members[1].array.degraded == 1


@pytest.mark.parametrize(
    ("inner", "outer", "files"),
    [((5, 3), (5, 3), 3), ((1, 2), (5, 3), 3), ((1, 3), (1, 2), 5), ((6, 4), (6, 4), 8), ((0, 2), (1, 2), 1), ((5, 3), (10, 4), 3)],
)
def test_how_many_files_may_be_lost(inner, outer, files, tmp_path):
    """The cheapest way to lose everything, less one."""
    with make(tmp_path / "tank", inner, outer) as array:
        assert array.status().files_may_lose == files


# --- Objects, and the end ---------------------------------------------------------------------------------------------


def test_open_arrays_as_members_stay_the_callers(tmp_path):
    halves = [raidlib.create([raidlib.MemoryDevice("8M") for _ in range(3)], level=5, assume_clean=True) for _ in range(2)]
    with raidlib.create(halves, level=1, assume_clean=True) as array:
        content = fill(array)
        for use in (halves[0].close, lambda: halves[0].pwrite(b"x", 0), lambda: halves[0].zero(0, 512), halves[0].block_ops):
            with pytest.raises(errors.BusyError, match=f"is a member of another array .{array.uuid}.: use that one, or close it first"):
                use()
        with pytest.raises(errors.BusyError, match="is a member of another array"):
            raidlib.create(halves, level=0)
        assert halves[0].pread(512, 0)  # to look at it is allowed
        assert lib.rl_array_close(halves[0]._handle) == -errno.EBUSY
        assert [name for name, _array in array.arrays] == [half.uuid for half in halves]
        array.fail(halves[1].uuid)
        array.remove(halves[1])
        halves[1].pwrite(bytes(4096), 0)
        array.add(halves[1], force=True).wait()
        assert array.pread(array.size, 0) == content
    assert not halves[0].closed
    with raidlib.open(halves, mode="r") as array:
        assert array.pread(array.size, 0) == content
    with raidlib.open(halves) as array:
        assert array.pread(array.size, 0) == content
    for half in halves:
        half.close()


def test_a_read_only_array_is_no_member_to_write_to(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (1, 2), (1, 2)) as array:
        content = fill(array)
    with raidlib.open(tank / "a", mode="r") as a, raidlib.open(tank / "b", mode="r") as b:
        with pytest.raises(errors.ReadOnlyError):
            raidlib.open([a, b])
        with raidlib.open([a, b], mode="r") as array:
            assert array.pread(array.size, 0) == content


def test_read_only_changes_no_byte(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (5, 3), (5, 3)) as array:
        content = fill(array)
    (tank / "c" / "member-0.img").unlink()
    before = {path: path.read_bytes() for path in tank.glob("*/*.img")}
    with raidlib.open(tank, mode="r", run=True) as array:
        assert array.pread(array.size, 0) == content
        array.check().wait()
    raidlib.plan(tank)
    assert {path: path.read_bytes() for path in tank.glob("*/*.img")} == before


def test_what_could_not_be_opened_is_let_go(tmp_path):
    """No lock, no claim and no thread stays behind."""
    tank, before = tmp_path / "tank", set(threading.enumerate())
    make(tank, (5, 3), (0, 2)).close()
    (tank / "b" / "member-1.img").unlink()
    (tank / "b" / "member-2.img").unlink()
    with pytest.raises(errors.NotEnoughMembersError):
        raidlib.open(tank)
    assert runtime.found(alive=True) == []
    with pytest.raises(errors.RaidError):
        raidlib.create([tank / "a", tank / "b"], level=0)
    raidlib.open(tank / "a").close()
    wait_for(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("raidlib")])


def test_the_whole_is_locked(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (1, 2), (1, 2)) as array:
        assert {info.uuid: info.outer for _path, info in runtime.found(alive=True)} == {
            array.uuid: "",
            **{inner.uuid: array.uuid for _name, inner in array.arrays},
        }
        for source in (tank, tank / "a", sorted(tank.glob("*/*.img"))):
            with pytest.raises(errors.BusyError, match=f"array {array.name} is in use by this process, process {os.getpid()}"):
                raidlib.open(source)
    assert runtime.found(alive=True) == []


def test_content_that_is_a_member_is_known(tmp_path):
    tank = tmp_path / "tank"
    with make(tank, (1, 2), (1, 2)) as array:
        uuid = array.uuid
    with raidlib.open(tank / "a", mode="r") as inner:
        assert raidlib.nesting.content_uuid(inner) == uuid
    with raidlib.open(tank) as array:
        assert raidlib.nesting.content_uuid(array) == ""
