"""The simulator's verdict and the engine's are one: a set of lost disks loses data where a real array cannot be opened and read without
them.

All 2^n sets of every level and layout for n up to RAIDLIB_SIM_DISKS (7; 12 takes minutes), and of the main layouts for n = 12.
"""

import os
import random

import pytest

import raidlib
from raidlib.errors import RaidError, UsageError
from raidlib.model import Level, layout_names
from raidlib.sim import verdicts
from raidlib.sim.model import Law, Pool, Repair, System
from raidlib.sim.montecarlo import Kernel
from raidlib.sim.verdicts import Shape

DISKS = int(os.environ.get("RAIDLIB_SIM_DISKS", "7"))
LEAST = {Level.RAID1: 2, Level.RAID6: 4, Level.RAID10: 2, Level.RS: 4}
LEVELS = [level for level in Level if level is not Level.RS]
SHAPES = [(level, layout, None) for level in LEVELS for layout in layout_names(level) or [None]]
SHAPES = [(level, layout, None) for level, layout, _ in SHAPES if layout != "dangerous"]  # raid0 whose layout is not known is not made
SHAPES += [(Level.RS, None, parity) for parity in range(1, 7)]


class Made:
    """A real array of a shape, full of random bytes, closed. Its inner arrays are Mades of their own."""

    def __init__(self, shape: Shape) -> None:
        opened: list[raidlib.Array] = []
        self._build(shape, opened, "192K" if isinstance(shape.members, int) else "512K")
        self.content = random.Random(1).randbytes(opened[-1].size)
        opened[-1].pwrite(self.content, 0)
        for array in reversed(opened):
            array.close()

    def _build(self, shape: Shape, opened: list[raidlib.Array], size: str) -> raidlib.Array:
        self.shape, self.inner, self.content = shape, [], None
        self.devices: list[raidlib.MemoryDevice] = []
        members: list = []
        if isinstance(shape.members, int):
            members = self.devices = [raidlib.MemoryDevice(size) for _ in range(shape.members)]
        else:
            for part in shape.members:
                self.inner.append(Made.__new__(Made))
                members.append(self.inner[-1]._build(part, opened, size))
        chunk = None if shape.level is Level.RAID1 else "4K"
        options = {
            "level": shape.level,
            "layout": shape.layout,
            "parity": shape.parity,
            "chunk": chunk,
            "data_offset": "64K",
            "bitmap": "none",
        }
        opened.append(raidlib.create(members, assume_clean=True, **options))
        self.uuid = opened[-1].uuid
        return opened[-1]

    def survives(self, lost: int) -> bool:
        """Opened without the lost disks, though others count on them, and read through."""
        return self._left(lost) is not None

    def _left(self, lost: int) -> list[raidlib.MemoryDevice] | None:
        """The disks with which it can be opened; None: it cannot. What is left of dead inner arrays is left out: `open` refuses to start
        beside it.
        """
        left = [device for disk, device in enumerate(self.devices) if not lost >> disk & 1]
        for inner in self.inner:
            left += inner._left(lost) or []
            lost >>= inner.shape.disks
        try:
            return left if self._reads(left) else None
        except RaidError:
            return None

    def _reads(self, source: list) -> bool:
        with raidlib.open(source, mode="r", run=True) as array:
            if array.uuid in {inner.uuid for inner in self.inner}:  # where one alone is left, that is what `open` gives
                return self._reads([array])
            if array.uuid != self.uuid:
                return self.content is None  # an array that it is a member of
            if self.content is not None:
                assert array.pread(array.size, 0) == self.content  # what it gives is never wrong
            return True


def compare(shape: Shape, sets) -> int:
    """How many of the sets lose data."""
    table, losses = verdicts.lost_sets(shape), 0
    array = Made(shape)
    for lost in sets:
        says = verdicts.is_lost(table, lost)
        assert says != array.survives(lost), f"{shape}: without {lost:0{shape.disks}b}"
        losses += says
    return losses


def shape_of(level, disks, layout, parity) -> Shape | None:
    if disks < LEAST.get(level, 1) or (parity and disks < parity + 2):
        return None
    shape = Shape(level=level, members=disks, layout=layout, parity=parity)
    try:
        verdicts.lost_sets(shape)
    except RaidError:
        return None  # more copies than disks
    return shape


@pytest.mark.parametrize(("level", "layout", "parity"), SHAPES, ids=str)
def test_every_set_of_every_layout(level, layout, parity):
    shapes = [shape for disks in range(1, DISKS + 1) if (shape := shape_of(level, disks, layout, parity))]
    if parity and parity + 2 > DISKS:
        shapes = [shape_of(level, parity + 2, layout, parity)]
    assert shapes
    for shape in shapes:
        assert compare(shape, range(1 << shape.disks)) > 0


@pytest.mark.parametrize(("level", "layout", "parity"), [(Level.RAID6, None, None), (Level.RAID10, "n2", None), (Level.RS, None, 4)])
def test_every_set_of_twelve(level, layout, parity):
    compare(Shape(level=level, members=12, layout=layout, parity=parity), range(1 << 12))


def of(level, *members, **options) -> Shape:
    return Shape(level=level, members=members, **options)


PAIR = Shape(level=Level.RAID1, members=2)
NESTED = {
    "60": of(Level.RAID0, Shape(level=Level.RAID6, members=4), Shape(level=Level.RAID6, members=5)),
    "50": of(Level.RAID0, *[Shape(level=Level.RAID5, members=3)] * 3),
    "1 of 5": of(Level.RAID1, Shape(level=Level.RAID5, members=4), Shape(level=Level.RAID5, members=3)),
    "5 of 1": of(Level.RAID5, PAIR, PAIR, PAIR),
    "6 of 10": of(Level.RAID6, PAIR, PAIR, Shape(level=Level.RAID10, members=3), PAIR),
    "1 of 0 of 1": of(Level.RAID1, of(Level.RAID0, PAIR, PAIR), of(Level.RAID0, PAIR, PAIR)),
}


@pytest.mark.parametrize("name", NESTED)
def test_every_set_of_arrays_of_arrays(name):
    assert compare(NESTED[name], range(1 << NESTED[name].disks)) > 0


def test_verdict_is_a_number_where_a_number_says_it():
    for level, layout, parity in SHAPES:
        for disks in range(2, 9):
            shape = shape_of(level, disks, layout, parity)
            if shape is None:
                continue
            table, number = verdicts.lost_sets(shape), verdicts.tolerance(shape)
            counted = {(lost.bit_count(), verdicts.is_lost(table, lost)) for lost in range(1 << disks)}
            if number is None:
                assert len(counted) > disks + 1
                assert verdicts.verdict(shape) == {"disks": disks, "lost_sets": table}
            else:
                assert counted == {(lost, lost > number) for lost in range(disks + 1)}
                assert verdicts.verdict(shape) == {"disks": disks, "tolerance": number}
    assert verdicts.tolerance(Shape(level=Level.RAID6, members=200)) == 2
    assert verdicts.tolerance(NESTED["1 of 0 of 1"]) is None


def test_system_takes_what_the_verdict_says():
    """The same array as a number and as a table: the same model."""
    rest = {"lifetime": Law.exponential(9000), "repair": Repair(duration=Law.exponential(500)), "mission_hours": 8760.0}
    shape = Shape(level=Level.RAID6, members=6)
    number, table = System(**verdicts.verdict(shape), **rest), System(disks=6, lost_sets=verdicts.lost_sets(shape), **rest)
    for lost in range(64):
        down = [disk for disk in range(6) if lost >> disk & 1]
        assert Kernel(number).loses(down) == Kernel(table).loses(down) == (len(down) > 2)


def test_too_many_disks_for_a_table():
    with pytest.raises(UsageError, match="24"):
        verdicts.lost_sets(Shape(level=Level.RAID10, members=26))
    with pytest.raises(UsageError, match="24"):
        verdicts.verdict(of(Level.RAID0, *[Shape(level=Level.RAID6, members=9)] * 3))


@pytest.mark.parametrize(("disks", "groups", "level", "width", "parity"), [(20, 40, Level.RAID6, 5, 2), (30, 60, Level.RAID5, 4, 1)])
def test_a_pool_loses_what_one_of_its_arrays_loses(disks, groups, level, width, parity):
    """100,000 random sets. Each group is a real array on disks of its own; which of them a set takes from it, the placement says."""
    pool = Pool(groups=groups, width=width, seed=5)
    system = System(
        disks=disks,
        tolerance=parity,
        lifetime=Law.exponential(1e5),
        repair=Repair(duration=Law.exponential(10)),
        mission_hours=1e4,
        pool=pool,
    )
    placement, kernel, rng = pool.placement(disks), Kernel(system), random.Random(2)
    arrays = [Made(Shape(level=level, members=width)) for _ in placement]
    of_group = [sum(1 << disk for disk in members) for members in placement]
    known: dict[tuple[int, int], bool] = {}
    losses = 0
    for _ in range(50_000):
        down = rng.sample(range(disks), rng.randint(1, 9))
        gone, lost = sum(1 << disk for disk in down), False
        for group, members in enumerate(placement):
            key = (group, gone & of_group[group])
            if key not in known:
                known[key] = arrays[group].survives(sum(1 << piece for piece, disk in enumerate(members) if gone >> disk & 1))
            lost = lost or not known[key]
        assert kernel.loses(down) == lost, down
        losses += lost
    assert 5_000 < losses < 45_000
