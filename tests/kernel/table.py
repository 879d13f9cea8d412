"""The table: every shape of array, metadata version and direction that go together, and the sample of it."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import bitmaps
import cases
from cases import METADATA, SHAPES, Case, Shape
from shuttle import Steps


@dataclasses.dataclass(frozen=True)
class Direction:
    """A column of the table."""

    name: str
    run: Callable[[Case], Steps]
    applies: Callable[[Shape, str], bool]
    extra_members: int = 0
    bitmap: bool = False  # whether the array is born with one


MARKED_SHAPES = ("1 - x2", "5 left-symmetric x4", "6 left-symmetric x5", "10 n2 x4", "10 f2 x3", "10 o2 x4")


def always(_shape: Shape, _metadata: str) -> bool:
    return True


def creatable(_shape: Shape, metadata: str) -> bool:
    return metadata != "0.90"


def redundant(shape: Shape, _metadata: str) -> bool:
    return shape.bears > 0


def sharing(shape: Shape, _metadata: str) -> bool:
    """Of level 1, one member is always enough."""
    return shape.level != "1"


def redundant_1x(shape: Shape, metadata: str) -> bool:
    """0.90 is not made here, and has no place for a replacement or a list of bad blocks."""
    return redundant(shape, metadata) and metadata != "0.90"


def markable(shape: Shape, _metadata: str) -> bool:
    """One shape of each kind: a bitmap knows nothing of layouts but where they put a sector."""
    return str(shape) in MARKED_SHAPES


def markable_1x(shape: Shape, metadata: str) -> bool:
    return markable(shape, metadata) and metadata != "0.90"


def in_halves(shape: Shape, _metadata: str) -> bool:
    return len(shape.sizes) % 2 == 0 and (shape.level == "1" or shape.layout == "n2")


DIRECTIONS = [
    Direction("made here", cases.made_here, creatable),
    Direction("made there", cases.made_there, always),
    Direction("mended here", cases.mended_here, redundant),
    Direction("mended there", cases.mended_there, redundant),
    Direction("rebuild cut here", cases.rebuild_cut_here, redundant),
    Direction("rebuild cut there", cases.rebuild_cut_there, redundant),
    Direction("resync cut here", cases.resync_cut_here, redundant),
    Direction("resync cut there", cases.resync_cut_there, redundant),
    Direction("stale here", cases.stale_here, redundant),
    Direction("stale there", cases.stale_there, redundant),
    Direction("too few", cases.too_few, sharing),
    Direction("crash here", cases.crash_here, redundant),
    Direction("crash there", cases.crash_there, redundant, extra_members=5),
    Direction("split here", cases.split_here, in_halves),
    Direction("split there", cases.split_there, in_halves),
    Direction("spare here", cases.spare_here, redundant_1x, extra_members=1),
    Direction("spare there", cases.spare_there, redundant, extra_members=1),
    Direction("replace cut here", cases.replace_cut_here, redundant_1x, extra_members=1),
    Direction("replace cut there", cases.replace_cut_there, redundant_1x, extra_members=1),
    Direction("bad blocks here", cases.bad_blocks_here, redundant_1x),
    Direction("bad blocks there", cases.bad_blocks_there, redundant_1x),
    Direction("bitmap made here", cases.made_here, markable_1x, bitmap=True),
    Direction("bitmap made there", cases.made_there, markable, bitmap=True),
    Direction("bitmap mended here", cases.mended_here, markable, bitmap=True),
    Direction("bitmap mended there", cases.mended_there, markable, bitmap=True),
    Direction("bitmap spare here", cases.spare_here, markable_1x, extra_members=1, bitmap=True),
    Direction("bitmap spare there", cases.spare_there, markable, extra_members=1, bitmap=True),
    Direction("bitmap crash here", bitmaps.crash_here, markable, bitmap=True),
    Direction("bitmap crash there", bitmaps.crash_there, markable, bitmap=True),
    Direction("bitmap back here", bitmaps.back_here, markable, bitmap=True),
    Direction("bitmap back there", bitmaps.back_there, markable, bitmap=True),
    Direction("bitmap too old here", bitmaps.too_old_here, markable, extra_members=1, bitmap=True),
    Direction("bitmap too old there", bitmaps.too_old_there, markable, extra_members=1, bitmap=True),
    Direction("bitmap grown here", bitmaps.grown_here, markable),
    Direction("bitmap grown there", bitmaps.grown_there, markable),
]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    shape: Shape
    metadata: str
    direction: Direction

    @property
    def row(self) -> str:
        return f"{self.shape} {self.metadata}"

    def __str__(self) -> str:
        return f"{self.row}, {self.direction.name}".replace(" - ", " ")

    def entry(self, scratch: Path) -> tuple[str, int, Callable[[], Steps]]:
        """What the shuttle wants: a name, how many members there are, what begins it."""
        name = str(self)
        folder = scratch / "".join(c if c.isalnum() else "-" for c in name)
        return name, len(self.shape.sizes) + self.direction.extra_members, lambda: self._run(folder)

    def _run(self, folder: Path) -> Steps:
        shutil.rmtree(folder, ignore_errors=True)  # what a first try has left
        yield from self.direction.run(Case(self.shape, self.metadata, folder, str(self), bitmap=self.direction.bitmap))
        shutil.rmtree(folder)  # what went wrong stays


def everything() -> list[Cell]:
    """All of the table, row by row."""
    cells = [Cell(shape, metadata, direction) for shape in SHAPES for metadata in METADATA for direction in DIRECTIONS]
    return [cell for cell in cells if cell.direction.applies(cell.shape, cell.metadata)]


def sample() -> list[Cell]:
    """Some of it; metadata versions, layouts and levels take turns.

    Every shape made on both sides, every other direction on every level; of those with a bitmap each on a mirror and with parity.
    """
    groups: dict[tuple, list[Cell]] = {}
    for cell in everything():
        made = cell.direction.run in (cases.made_here, cases.made_there)
        kind = cell.shape.level in ("1", "10") if "bitmap" in cell.direction.name else cell.shape if made else cell.shape.level
        groups.setdefault((cell.direction.name, kind), []).append(cell)
    return [cells[turn * 7 % len(cells)] for turn, cells in enumerate(groups.values())]
