"""What is shown of each shape of array: made, broken and mended on one side, judged on the other."""

import dataclasses
import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
from shuttle import SEED_BYTES, Impossible, Seen, Step, Steps, There, seed_bytes

import raidlib
from raidlib import MemberState

MIB = 1 << 20
SEED = seed_bytes()


@dataclasses.dataclass(frozen=True)
class Shape:
    """A level, its layout, and its members' sizes in MiB."""

    level: str
    layout: str | None
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        sizes = "" if len(set(self.sizes)) == 1 else f" of {'+'.join(map(str, self.sizes))} MiB"
        return f"{self.level} {self.layout or '-'} x{len(self.sizes)}{sizes}"

    @property
    def bears(self) -> int:
        """How many members may be lost, whichever they are."""
        if self.level == "10":
            return int(str(self.layout)[1]) - 1
        return {"1": len(self.sizes) - 1, "4": 1, "5": 1, "6": 2}.get(self.level, 0)


PARITY5 = ("left-asymmetric", "right-asymmetric", "left-symmetric", "right-symmetric", "parity-first", "parity-last")
PARITY6 = (*PARITY5, "ddf-zero-restart", "ddf-n-restart", "ddf-n-continue", *(f"{name}-6" for name in PARITY5[:5]))
SHAPES = [
    Shape("linear", None, (4, 5, 4)),
    Shape("0", "original", (4, 4, 4)),
    Shape("0", "original", (4, 5, 7)),
    Shape("0", "alternate", (4, 5, 7)),
    *(Shape("1", None, (4,) * n) for n in (2, 3)),
    Shape("4", None, (4,) * 4),
    *(Shape("5", layout, (4,) * 4) for layout in PARITY5),
    *(Shape("6", layout, (4,) * 5) for layout in PARITY6),
    *(Shape("10", layout, (4,) * n) for layout in ("n2", "f2", "o2") for n in (3, 4)),
    *(Shape("10", layout, (4,) * 5) for layout in ("n3", "f3", "o3")),
]
METADATA = ("0.90", "1.0", "1.1", "1.2")


class Gate:
    """A member that lets a job come as far as `limit` of the data and holds it there until it is opened."""

    block_size = 512

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self._fd).st_size
        self._from, self._to = 0, 0  # the range whose requests wait
        self._reached, self._opened = threading.Event(), threading.Event()

    def hold(self, start: int, end: int) -> None:
        self._from, self._to = start, end

    def _wait(self, length: int, offset: int) -> None:
        if offset < self._to and offset + length > self._from:
            self._reached.set()
            assert self._opened.wait(120), "nobody opened the gate"

    def preadinto(self, buffer: memoryview, offset: int, /) -> None:
        self._wait(len(buffer), offset)
        assert os.preadv(self._fd, [buffer], offset) == len(buffer)

    def pwrite(self, data: memoryview, offset: int, /) -> None:
        self._wait(len(data), offset)
        assert os.pwrite(self._fd, data, offset) == len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)

    def cut(self, job: raidlib.Job) -> None:
        """Cancels the job where it is held."""
        assert self._reached.wait(60), f"the {job.kind} never came to the gate: {job.status()}"
        job.cancel()
        self._opened.set()
        job.join()
        assert job.status().state == "cancelled"


class Case:
    """One array on its way between the two sides: its members, and what it must hold."""

    def __init__(self, shape: Shape, metadata: str, folder: Path, name: str) -> None:
        self.shape, self.metadata, self.folder = shape, metadata, folder
        self.random = random.Random(name)
        self.name = f"k{self.random.randrange(10**9)}"
        self.paths = [folder / f"m{slot}" for slot in range(len(shape.sizes))]
        self.content = bytearray()
        self.chunk = None if shape.level == "1" else 64 << 10

    def prepare(self, blank: bool = True) -> list[Path]:
        """The members' files: of holes, or of bytes that fit nothing."""
        self.folder.mkdir(parents=True)
        for path, size in zip(self.paths, self.shape.sizes, strict=True):
            self.new_member(path, size, blank)
        return self.paths

    def new_member(self, path: Path, size: int, blank: bool = True) -> Path:
        with path.open("wb") as file:
            file.truncate(size * MIB)
            if not blank:
                file.write(self.random.randbytes(size * MIB))
        return path

    # -- here

    def create(self, members: list, **options) -> raidlib.Array:
        layout, chunk = self.shape.layout, self.chunk
        n = len(self.shape.sizes)
        return raidlib.create(
            members,
            level=self.shape.level,
            raid_devices=n,
            layout=layout,
            chunk=chunk,
            metadata=self.metadata,
            name=self.name,
            **options,
        )

    def fill(self, array: raidlib.Array) -> None:
        self.content = bytearray(self.random.randbytes(array.size))
        array.pwrite(bytes(self.content), 0)

    def scribble(self, array: raidlib.Array) -> None:
        """Writes of many sizes, here."""
        for _ in range(12):
            offset = self.random.randrange(array.size)
            data = self.random.randbytes(min(array.size - offset, self.random.choice([1, 700, 4096, 70_000, 300_000])))
            array.pwrite(data, offset)
            self.content[offset : offset + len(data)] = data

    def right_here(self, members: list | None = None) -> None:
        """Opened here it is whole, holds what it must, and parity and copies agree; the oracle says so too."""
        members = members or self.paths
        with raidlib.open(members) as array:
            status = array.status()
            assert [m.state for m in status.members if m.slot is not None] == [MemberState.IN_SYNC] * len(self.shape.sizes), status
            assert status.resync_offset is None and status.job is None
            assert array.pread(array.size, 0) == self.content, "read here"
            if self.shape.bears:
                job = array.check()
                job.wait()
                assert job.status().mismatch_count == 0
        reader = oracle.ArrayReader(members)
        assert reader.read(0, reader.size) == self.content, "read by the oracle"
        assert reader.check() == []

    # -- there

    def there(self, lines: str, members: list[Path] | None = None) -> Iterator[Step]:
        seen: Seen = yield Step(lines, tuple(members or self.paths))
        return seen

    def dictate(self, writes: int = 6) -> str:
        """Lines that write there, from the seed; the content follows."""
        lines, kib = [], len(self.content) >> 10
        for _ in range(writes):
            count = self.random.choice([1, 3, 4, 60, 64, 200])
            seek = self.random.randrange(kib - count)
            skip = self.random.randrange((SEED_BYTES >> 10) - count)
            self.content[seek << 10 : seek + count << 10] = SEED[skip << 10 : skip + count << 10]
            lines.append(f"put {skip} {seek} {count}")
        return "\n".join(lines)

    def create_line(self, members: str = '"$@"', options: str = "") -> str:
        words = [f"--level={self.shape.level}", f"--raid-devices={len(self.shape.sizes)}", f"--metadata={self.metadata}"]
        words += [f"--name={self.name}"] if self.metadata != "0.90" else []
        words += [f"--layout={self.shape.layout.replace('-n-', '-N-')}"] if self.shape.layout else []
        words += [f"--chunk={self.chunk >> 10}"] if self.chunk else []
        return f"create {' '.join(words)} {options} {members}"

    def same(self, seen: Seen) -> None:
        assert seen["sha256"] == hashlib.sha256(self.content).hexdigest(), "read there"

    def whole_there(self, seen: Seen) -> None:
        """Assembled with every member in its slot, clean, with the right content, no mismatch."""
        assert seen["array_state"] == "read-auto"
        assert seen["degraded"] in ("0", "none") and seen["resync_start"] == "none"
        for slot in range(len(self.shape.sizes)):
            assert seen[f"member.{slot}"].split()[:2] == [str(slot), "in_sync"], f"member {slot}: {seen[f'member.{slot}']}"
        self.same(seen)
        assert seen["mismatch_cnt"] == "0" if self.shape.bears else "mismatch_cnt" not in seen

    # -- both

    def born(self) -> Steps:
        """A whole array with content: made here, or there where here it is not made (0.90)."""
        if self.metadata == "0.90":
            yield from self.born_there()
            return
        with self.create(list(self.prepare())) as array:
            self.fill(array)
            self.scribble(array)

    def born_there(self, options: str = "") -> Steps:
        """Made there out of disks full of other things, so that parity and copies are what the kernel made."""
        self.prepare(blank=False)
        wait = "whole" if self.shape.bears else ":"
        lines = (self.create_line(options=options), wait, "fill", "say size $(blockdev --getsize64 /dev/md0)", "stop")
        try:
            seen = yield from self.there("\n".join(lines))
        except There as error:
            if "mdadm --create" in str(error):
                raise Impossible(str(error).split("--run ")[-1]) from error
            raise
        self.content = bytearray(SEED[: int(seen["size"])])


VERIFY = 'assemble "$@"\ncontent\ncheck\nstop'


def made_here(c: Case) -> Steps:
    """Made and written here: whole there. Then written there: right here."""
    with c.create(list(c.prepare())) as array:
        c.fill(array)
        c.scribble(array)
    c.whole_there((yield from c.there(VERIFY)))
    yield from c.there(f'assemble "$@"\n{c.dictate()}\nstop')
    c.right_here()


def made_there(c: Case) -> Steps:
    """Made and written there: right here. Then written here: whole there."""
    yield from c.born_there()
    c.right_here()
    with raidlib.open(c.paths) as array:
        c.scribble(array)
    c.whole_there((yield from c.there(VERIFY)))


@dataclasses.dataclass(frozen=True)
class Direction:
    """A column of the table."""

    name: str
    run: Callable[[Case], Steps]
    applies: Callable[[Shape, str], bool]
    extra_members: int = 0


DIRECTIONS = [
    Direction("made here", made_here, lambda _shape, metadata: metadata != "0.90"),
    Direction("made there", made_there, lambda _shape, _metadata: True),
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
        yield from self.direction.run(Case(self.shape, self.metadata, folder, str(self)))
        shutil.rmtree(folder)  # what went wrong stays


def everything() -> list[Cell]:
    """All of the table, row by row."""
    cells = [Cell(shape, metadata, direction) for shape in SHAPES for metadata in METADATA for direction in DIRECTIONS]
    return [cell for cell in cells if cell.direction.applies(cell.shape, cell.metadata)]


def sample() -> list[Cell]:
    return [cell for cell in everything() if cell.shape.level == "5" and cell.shape.layout == "left-symmetric" and cell.metadata == "1.2"]
