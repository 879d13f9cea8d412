"""What is shown of each shape of array: made, broken and mended on one side, judged on the other."""

import dataclasses
import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from shuttle import SEED_BYTES, Impossible, Seen, Step, Steps, There, seed_bytes

import raidlib
from raidlib import MemberState

MIB = 1 << 20
REGION = 16 << 10  # of the bitmaps: there are some 200 of them
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
# What mdadm does not make, in its words (what it says more, another release may say otherwise).
REFUSED = {("0", "0.90"): "0.90 metadata does not support layouts for RAID0"}
METADATA = ("0.90", "1.0", "1.1", "1.2")


class Disk:
    """A member that counts what is read and written, in bytes."""

    block_size = 512

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self._fd).st_size
        self.read = self.written = 0

    def preadinto(self, buffer: memoryview, offset: int, /) -> None:
        assert os.preadv(self._fd, [buffer], offset) == len(buffer)
        self.read += len(buffer)

    def pwrite(self, data: memoryview, offset: int, /) -> None:
        assert os.pwrite(self._fd, data, offset) == len(data)
        self.written += len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)


class Gate(Disk):
    """A member that lets a job come about half-way, and holds it there until it is cancelled."""

    HELD = range(5 * MIB // 2, 15 * MIB // 4)  # of a member of 4 MiB: within the data, whatever the metadata

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._reached, self._opened = threading.Event(), threading.Event()

    def _wait(self, length: int, offset: int) -> None:
        if offset < self.HELD.stop and offset + length > self.HELD.start:
            self._reached.set()
            assert self._opened.wait(120), "nobody opened the gate"

    def preadinto(self, buffer: memoryview, offset: int, /) -> None:
        self._wait(len(buffer), offset)
        super().preadinto(buffer, offset)

    def pwrite(self, data: memoryview, offset: int, /) -> None:
        self._wait(len(data), offset)
        super().pwrite(data, offset)

    def cut(self, job: raidlib.Job) -> None:
        """Cancels the job where it is held."""
        assert self._reached.wait(60), f"the {job.kind} never came to the gate: {job.status()}"
        job.cancel()
        self._opened.set()
        job.join()
        assert job.status().state == "cancelled"


class Scarred(Disk):
    """A member that cannot be written in one place."""

    SCAR = range(3 * MIB, 3 * MIB + 8192)

    def pwrite(self, data: memoryview, offset: int, /) -> None:
        if offset < self.SCAR.stop and offset + len(data) > self.SCAR.start:
            raise OSError(errno.EIO, "a scar")
        super().pwrite(data, offset)


class Case:
    """One array on its way between the two sides: its members, and what it must hold."""

    def __init__(self, shape: Shape, metadata: str, folder: Path, name: str, *, bitmap: bool) -> None:
        self.shape, self.metadata, self.folder = shape, metadata, folder
        self.bitmap = bitmap  # whether it has a write-intent bitmap
        self.random = random.Random(name)
        self.name = f"k{self.random.randrange(10**9)}"
        self.paths = [folder / f"m{slot}" for slot in range(len(shape.sizes))]
        self.content = bytearray()
        self.starts_over = metadata == "0.90"  # which has no place for the checkpoint of a rebuild
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

    def some_slots(self, count: int) -> list[int]:
        return sorted(self.random.sample(range(len(self.paths)), count))

    # -- here

    def create(self, members: list, **options) -> raidlib.Array:
        shape = {"level": self.shape.level, "layout": self.shape.layout, "raid_devices": len(self.shape.sizes), "chunk": self.chunk}
        if self.bitmap:
            options |= {"bitmap": "internal", "bitmap_chunk": REGION}
        return raidlib.create(members, metadata=self.metadata, name=self.name, **shape, **options)

    def fill(self, array: raidlib.Array) -> None:
        self.content = bytearray(self.random.randbytes(array.size))
        array.pwrite(bytes(self.content), 0)

    def scribble(self, array: raidlib.Array) -> None:
        """Writes of many sizes, here."""
        for _ in range(12):
            offset = self.random.randrange(array.size)
            self.write(array, offset, min(array.size - offset, self.random.choice([1, 700, 4096, 70_000, 300_000])))

    def write(self, array: raidlib.Array, offset: int, length: int) -> None:
        data = self.random.randbytes(length)
        array.pwrite(data, offset)
        self.content[offset : offset + length] = data

    def rebuilt(self, array: raidlib.Array) -> None:
        """Waits until every slot has its member; one that comes late to a rebuild may have one of its own."""
        until = time.monotonic() + 120
        while array.status().degraded:
            assert time.monotonic() < until, array.status()
            array.job.wait(1)
            time.sleep(0.01)

    def right_here(self, members: list | None = None) -> None:
        """Opened here it is whole, holds what it must, and parity and copies agree; the oracle says so too."""
        members = members or self.paths
        with raidlib.open(members) as array:
            status = array.status()
            assert [m.state for m in status.members if m.slot is not None] == [MemberState.IN_SYNC] * len(self.shape.sizes), status
            assert status.resync_offset is None and status.job is None
            assert (status.bitmap is not None) == self.bitmap
            assert array.pread(array.size, 0) == self.content, "read here"
            if self.shape.bears:
                job = array.check()
                job.wait()
                assert job.status().mismatch_count == 0
        reader = oracle.ArrayReader(members)
        assert reader.read(0, reader.size) == self.content, "read by the oracle"
        assert reader.check() == []
        for block in map(raidlib.examine, members):
            assert not self.bitmap or (block.bitmap.events, block.bitmap.dirty) == (block.events, 0), f"after a clean end: {block.bitmap}"

    def left_to_resync(self, block: raidlib.Superblock) -> float:
        """Bytes of each member; level 10 counts its checkpoint in bytes of the array."""
        return block.dev_size * (1 - block.resync_offset / (len(self.content) if self.shape.level == "10" else block.dev_size))

    # -- there

    def there(self, lines: str, members: list[Path] | None = None, *, cuts: bool = False) -> Iterator[Step]:
        seen: Seen = yield Step(lines, tuple(members or self.paths), cuts)
        return seen

    def dictate(self, writes: int = 6) -> str:
        """Lines that write there, from the seed; the content follows."""
        lines, kib = [], len(self.content) >> 10
        for _ in range(writes):
            count = self.random.choice([1, 3, 4, 60, 64, 200])
            lines.append(self.put(self.random.randrange(kib - count), count))
        return "\n".join(lines)

    def put(self, seek: int, count: int) -> str:
        """A line that writes so many KiB there, from the seed; the content follows."""
        skip = self.random.randrange((SEED_BYTES >> 10) - count)
        self.content[seek << 10 : seek + count << 10] = SEED[skip << 10 : skip + count << 10]
        return f"put {skip} {seek} {count}"

    def create_line(self, options: str = "") -> str:
        words = [f"--level={self.shape.level}", f"--raid-devices={len(self.shape.sizes)}", f"--metadata={self.metadata}"]
        words += [f"--name={self.name}"] if self.metadata != "0.90" else []
        words += [f"--layout={self.shape.layout.replace('-n-', '-N-')}"] if self.shape.layout else []
        words += [f"--chunk={self.chunk >> 10}"] if self.chunk else []
        words += ["--bitmap=internal", f"--bitmap-chunk={REGION >> 10}"] if self.bitmap else []
        return f"create {' '.join(words)} {options}"

    def same(self, seen: Seen) -> None:
        assert seen["sha256"] == hashlib.sha256(self.content).hexdigest(), "read there"

    def whole_there(self, seen: Seen) -> None:
        """Assembled with every member in its slot, clean, with the right content, no mismatch."""
        assert seen["array_state"] == ("read-auto" if self.shape.level not in ("linear", "0") else "clean")
        assert seen["degraded"] in ("0", "none") and seen["resync_start"] == "none"
        for slot in range(len(self.shape.sizes)):
            assert seen[f"member.{slot}"].split()[:2] == [str(slot), "in_sync"], f"member {slot}: {seen[f'member.{slot}']}"
        assert bool(seen["bitmap"]) == self.bitmap
        for slot in range(len(self.shape.sizes) if self.bitmap else 0):
            assert seen["bitmap"].endswith(f" {REGION >> 10}KB chunk")
            assert seen[f"marks.{slot}"].split()[1:] == ["0"], "marked after a clean end"
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

    def born_there(self, spare: bool = False) -> Steps:
        """Made there out of disks full of other things, so that parity and copies are what the kernel made."""
        members = self.prepare(blank=False)
        if spare:
            members = [*members, self.new_member(self.folder / "spare", max(self.shape.sizes))]
        create = self.create_line(f"--spare-devices={len(members) - len(self.paths)}" if spare else "")
        wait = "whole" if self.shape.bears else ":"
        seen = yield from self.created(f'{create} "$@"; {wait}; fill; say size $(blockdev --getsize64 /dev/md0); stop', members)
        self.content = bytearray(SEED[: int(seen["size"])])

    def created(self, lines: str, members: list[Path]) -> Iterator[Step]:
        """A step that begins with mdadm's --create, which may refuse the shape."""
        try:
            seen: Seen = yield Step(lines, tuple(members))
        except There as error:
            words = REFUSED.get((self.shape.level, self.metadata))
            if words and str(error).startswith("mdadm --create") and words in str(error):
                raise Impossible(words) from error
            raise
        return seen


def assert_the_rest(moved: int, left: float) -> None:
    """So many bytes were left to do, and they were done, and not much more; metadata, and rounding, take some."""
    assert left - 128 * 1024 <= moved <= left + 512 * 1024, f"{moved} bytes were moved, {left} were left"


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


def mended_here(c: Case) -> Steps:
    """Written, failed, written degraded, rebuilt and written again here: whole there."""
    yield from c.born()
    with raidlib.open(c.paths) as array:
        c.scribble(array)
        lost = c.some_slots(c.shape.bears)
        for slot in lost:
            array.fail(slot)
        c.scribble(array)
        for slot in lost:
            array.re_add(c.paths[slot])
        c.rebuilt(array)
        c.scribble(array)
    c.whole_there((yield from c.there(VERIFY)))


def mended_there(c: Case) -> Steps:
    """Written, failed, written degraded, rebuilt and written again there: right here."""
    yield from c.born()
    lost = " ".join(f"${slot + 1}" for slot in c.some_slots(c.shape.bears))
    lines = f"""assemble "$@"
        {c.dictate()}
        must mdadm /dev/md0 --fail {lost}
        {c.dictate()}
        must mdadm /dev/md0 --remove {lost}
        {c.dictate()}
        must mdadm /dev/md0 --add {lost}
        {c.dictate()}
        whole
        {c.dictate()}
        stop"""
    yield from c.there(lines)
    c.right_here()


def rebuild_cut_here(c: Case) -> Steps:
    """A rebuild that was interrupted here goes on there from where it was."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    gate = Gate(c.paths[slot])
    with raidlib.open(c.paths) as array:
        array.fail(slot)
        c.scribble(array)
        array.remove(slot)
        job = array.add(gate)
        gate.cut(job)
        c.scribble(array)
    block = raidlib.examine(c.paths[slot])
    done = block.recovery_offset or 0
    assert 0 < done < block.dev_size or (c.starts_over and not done)
    seen = yield from c.there('assemble "$@"; go; whole; moved; content; check; stop')
    assert seen["degraded"] == "1"
    assert seen[f"member.{slot}"] == ("none spare 0" if c.starts_over else f"{slot} spare {done // 512}")
    assert_the_rest(int(seen[f"written.{slot}"]) * 512, block.dev_size - done)
    c.same(seen)
    assert seen["mismatch_cnt"] == "0"
    c.right_here()


def rebuild_cut_there(c: Case) -> Steps:
    """A rebuild that was interrupted there goes on here from where it was."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    lines = f"""assemble "$@"
        go
        must mdadm /dev/md0 --fail ${slot + 1}
        must mdadm /dev/md0 --remove ${slot + 1}
        {c.dictate()}
        hold recovery
        must mdadm /dev/md0 --add ${slot + 1}
        held
        {c.dictate()}
        stop"""
    seen = yield from c.there(lines)
    done, size = 0, raidlib.examine(c.paths[slot]).dev_size
    if not c.starts_over:
        done = next(m.recovered for m in raidlib.plan(c.paths).members if m.slot == slot)
        assert int(seen["hold"]) * 512 <= done < size
    disks = [Disk(path) for path in c.paths]
    with raidlib.open(disks) as array:
        assert array.job.kind == "recovery"
        array.job.wait()
        assert_the_rest(disks[slot].written, size - done)
        c.scribble(array)
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def resync_cut_here(c: Case) -> Steps:
    """A resync that was interrupted here goes on there from where it was."""
    c.prepare(blank=False)
    if c.metadata == "0.90":
        yield from c.created(f'{c.create_line("--force --readonly")} "$@"; stop', c.paths)
    gate = Gate(c.paths[-1])
    members = [*c.paths[:-1], gate]
    with raidlib.open(members) if c.metadata == "0.90" else c.create(members, force=True) as array:
        assert array.job.kind == "resync"
        gate.cut(array.job)
        c.content = bytearray(array.pread(array.size, 0))
        c.scribble(array)
    block = raidlib.examine(c.paths[0])
    assert 0 < block.resync_offset < array.size
    seen = yield from c.there('assemble "$@"; go; whole; moved; content; check; stop')
    assert int(seen["resync_start"]) == block.resync_offset // 512
    assert_the_rest(int(seen["read.0"]) * 512, c.left_to_resync(block))
    c.same(seen)
    assert seen["mismatch_cnt"] == "0"
    c.right_here()


def resync_cut_there(c: Case) -> Steps:
    """A resync that was interrupted there goes on here from where it was."""
    create = c.create_line("--force --readonly")
    seen = yield from c.created(f'{create} "$@"; hold resync; go; held; content; stop', c.prepare(blank=False))
    with raidlib.open(c.paths, mode="r") as array:
        c.content = bytearray(array.pread(array.size, 0))
    c.same(seen)
    block = raidlib.examine(c.paths[0])
    assert block.resync_offset == int(seen["hold"]) * 512
    disks = [Disk(path) for path in c.paths]
    with raidlib.open(disks) as array:
        assert array.job.kind == "resync"
        array.job.wait()
        assert_the_rest(disks[0].read, c.left_to_resync(block))
        c.scribble(array)
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def judged_alike(c: Case, out: set[int]) -> Steps:
    """Neither side takes these members, both take all others."""
    members = raidlib.plan(c.paths).members
    taken = {m.path for m in members if m.state is MemberState.IN_SYNC}
    assert {slot for slot, path in enumerate(c.paths) if str(path) not in taken} == out, members
    with raidlib.open(c.paths, mode="r") as array:
        assert array.pread(array.size, 0) == c.content
    seen = yield from c.there('assemble "$@"; content; stop')
    assert {slot for slot in range(len(c.paths)) if seen[f"member.{slot}"].split()[1:2] != ["in_sync"]} == out
    assert seen["degraded"] == str(len(out))
    c.same(seen)


def stale_here(c: Case) -> Steps:
    """A member that failed here, and has not been written since, is not taken on either side."""
    yield from c.born()
    out = c.some_slots(c.shape.bears)
    with raidlib.open(c.paths) as array:
        for slot in out:
            array.fail(slot)
        c.scribble(array)
    yield from judged_alike(c, set(out))


def stale_there(c: Case) -> Steps:
    """A member that failed there, and has not been written since, is not taken on either side."""
    yield from c.born()
    out = c.some_slots(c.shape.bears)
    yield from c.there(f'assemble "$@"; must mdadm /dev/md0 --fail {" ".join(f"${slot + 1}" for slot in out)}\n{c.dictate()}\nstop')
    yield from judged_alike(c, set(out))


def too_few(c: Case) -> Steps:
    """With one member less than the level needs, neither side starts the array."""
    yield from c.born()
    left = c.paths[c.shape.bears + 1 :]  # of level 10: all copies of the first chunk are gone
    with pytest.raises(raidlib.errors.NotEnoughMembersError):
        raidlib.open(left, run=True)
    yield from c.there('refused "$@"', left)
    c.right_here()


CRASH = """
import os, sys, raidlib
array = raidlib.open(sys.argv[2:])
data = open(sys.argv[1], "rb").read()
array.pwrite(data, 0)
array.flush()
array.pwrite(data[:512], 0)  # on a slow machine it has gone clean meanwhile
os._exit(0)
"""


def crash_here(c: Case) -> Steps:
    """Killed while the array was active here: degraded, neither side starts it (parity may be wrong); whole, it is resynced there."""
    yield from c.born()
    data = c.random.randbytes(300_000)
    c.content[: len(data)] = data
    (c.folder / "data").write_bytes(data)
    subprocess.run([sys.executable, "-c", CRASH, c.folder / "data", *c.paths], check=True)
    assert raidlib.examine(c.paths[0]).resync_offset == 0
    left = c.paths[1:]  # the first holds data in every layout but those with the parity there
    if c.shape.level in ("4", "5", "6") and not (c.shape.layout or "").startswith("parity-first"):
        with pytest.raises(raidlib.errors.RefusedError, match="force"):
            raidlib.open(left, run=True)
        yield from c.there('refused "$@"', left)
    seen = yield from c.there('assemble "$@"; go; whole; content; check; stop')
    assert seen["resync_start"] == "0"
    c.same(seen)
    assert seen["mismatch_cnt"] == "0"
    c.right_here()


def crash_there(c: Case) -> Steps:
    """The disks as they were while the array was active there: resynced here."""
    yield from c.born()
    copies = [c.new_member(path.with_suffix(".copy"), size) for path, size in zip(c.paths, c.shape.sizes, strict=True)]
    n = len(copies)
    copy = "\n".join(f"must dd if=${{{slot + 1}}} of=${{{slot + 1 + n}}} bs=64k iflag=direct conv=fsync" for slot in range(n))
    assemble = f"assemble {' '.join(f'${slot + 1}' for slot in range(n))}"
    yield from c.there(f"{assemble}\necho 0 >$MD/safe_mode_delay\n{c.dictate()}\n{copy}\nstop", [*c.paths, *copies])
    with raidlib.open(copies) as array:
        assert array.job.kind == "resync"
        c.scribble(array)
        array.job.wait()
    c.right_here(copies)
    c.whole_there((yield from c.there(VERIFY, copies)))


def used_apart(c: Case, use: Callable[[list[Path]], Steps]) -> Steps:
    """Halves that were used apart, each by itself: both sides take the fresher one (the first, where none is), and not the other."""
    before, contents = bytes(c.content), []
    for half in (0, 1):
        c.content = bytearray(before)
        for _ in range(c.random.choice((1, 1, 2))):
            yield from use(c.paths[half::2])
        contents.append(c.content)
    events = [raidlib.examine(path).events for path in c.paths[:2]]
    taken = int(events[1] > events[0])
    c.content = contents[taken]
    yield from judged_alike(c, set(range(1 - taken, len(c.paths), 2)))


def split_here(c: Case) -> Steps:
    """Halves that were used apart here: both sides take the same one, and not the other."""

    def use(half: list[Path]) -> Steps:
        with raidlib.open(half, run=True) as array:
            c.scribble(array)
        yield from ()

    yield from c.born()
    yield from used_apart(c, use)


def split_there(c: Case) -> Steps:
    """Halves that were used apart there: both sides take the same one, and not the other."""

    def use(half: list[Path]) -> Steps:
        yield from c.there(f'assemble "$@"\n{c.dictate()}\nstop', half)

    yield from c.born()
    yield from used_apart(c, use)


def spare_here(c: Case) -> Steps:
    """A spare of an array made here steps in there."""
    paths = c.prepare()
    spare = c.new_member(c.folder / "spare", max(c.shape.sizes))
    with c.create([*paths, spare], spare_devices=1) as array:
        c.fill(array)
    (slot,) = c.some_slots(1)
    lines = f'assemble "$@"; go; must mdadm /dev/md0 --fail ${slot + 1}; {c.dictate()}\nwhole; {c.dictate()}\nstop'
    seen = yield from c.there(lines, [*paths, spare])
    assert seen[f"member.{len(paths)}"].split()[:2] == ["none", "spare"]
    c.paths[slot] = spare
    c.right_here()


def spare_there(c: Case) -> Steps:
    """A spare of an array made there steps in here."""
    yield from c.born_there(spare=True)
    (slot,) = c.some_slots(1)
    spare = c.folder / "spare"
    with raidlib.open([*c.paths, spare]) as array:
        assert [m.path for m in array.status().members if m.state is MemberState.SPARE] == [str(spare)]
        array.fail(slot)
        c.scribble(array)
        c.rebuilt(array)
        c.scribble(array)
    c.paths[slot] = spare
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def replace_cut_there(c: Case) -> Steps:
    """A replacement that was interrupted there goes on here from where it was."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    new, number = c.new_member(c.folder / "new", max(c.shape.sizes)), len(c.paths) + 1
    lines = f"""assemble {" ".join(f"${n}" for n in range(1, number))}
        go
        hold recovery
        must mdadm /dev/md0 --add-spare ${number}
        must mdadm /dev/md0 --replace ${slot + 1} --with ${number}
        held
        {c.dictate()}
        stop"""
    seen = yield from c.there(lines, [*c.paths, new])
    size = raidlib.examine(new).dev_size
    done = next(m.recovered for m in raidlib.plan([*c.paths, new]).members if m.state is MemberState.REPLACEMENT)
    assert int(seen["hold"]) * 512 <= done < size
    disks = [Disk(path) for path in (*c.paths, new)]
    with raidlib.open(disks) as array:
        assert array.job.kind == "recovery"
        array.job.wait()
        assert_the_rest(disks[-1].written, size - done)
        c.scribble(array)
    c.paths[slot] = new
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def replace_cut_here(c: Case) -> Steps:
    """A replacement that was interrupted here goes on there from where it was."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    gate = Gate(c.new_member(c.folder / "new", max(c.shape.sizes)))
    new, number = c.folder / "new", len(c.paths) + 1
    with raidlib.open(c.paths) as array:
        gate.cut(array.replace(slot, gate))
        c.scribble(array)
    block = raidlib.examine(new)
    assert block.role == "replacement" and 0 < block.recovery_offset < block.dev_size
    lines = f"""assemble "$@"
        go
        await "is dev-${{{number}#/dev/}}/state in_sync"
        whole
        moved
        content
        check
        stop"""
    seen = yield from c.there(lines, [*c.paths, new])
    assert seen["degraded"] == "0"
    assert seen[f"member.{number - 1}"] == f"{slot} spare,replacement {block.recovery_offset // 512}"
    assert_the_rest(int(seen[f"written.{number - 1}"]) * 512, block.dev_size - block.recovery_offset)
    c.same(seen)
    assert seen["mismatch_cnt"] == "0"
    c.paths[slot] = new
    c.right_here()


def bad_blocks_here(c: Case) -> Steps:
    """Blocks that could not be written here are in the list: not read there, and good again once they are written.

    The kernel may leave some in the list that it has written (stripes that it handles in a batch); it reads them from the others.
    """
    yield from c.born()
    (slot,) = c.some_slots(1)
    members = [Scarred(path) if number == slot else path for number, path in enumerate(c.paths)]
    with raidlib.open(members) as array:
        c.fill(array)
        member = next(m for m in array.status().members if m.slot == slot)
        assert member.state is MemberState.IN_SYNC and member.bad_blocks, member
    seen = yield from c.there(f'assemble "$@"; say bad $(cat $MD/dev-${{{slot + 1}#/dev/}}/bad_blocks); content; go; fill; content; stop')
    first, count = map(int, seen["bad"].split()[:2])
    assert first * 512 <= Scarred.SCAR.start and (first + count) * 512 >= Scarred.SCAR.stop, seen["bad"]
    assert seen["degraded"] == "0"
    assert seen.text.count(f"= sha256 {hashlib.sha256(c.content).hexdigest()}") == 1
    c.content[:] = SEED[: len(c.content)]
    c.same(seen)
    with raidlib.open(c.paths) as array:
        assert array.pread(array.size, 0) == c.content
        c.fill(array)
        assert not any(m.bad_blocks for m in array.status().members)
    c.right_here()


def bad_blocks_there(c: Case) -> Steps:
    """Blocks in the list that the kernel wrote are not read here, and good again once they are written here."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    scar = Scarred.SCAR
    add = f"echo {scar.start // 512} {len(scar) // 512} >$MD/dev-${{{slot + 1}#/dev/}}/bad_blocks"
    c.content[:4096] = SEED[:4096]
    yield from c.there(f'assemble "$@"; go; {add} || die "no bad block"; put 0 0 4; stop')
    with c.paths[slot].open("r+b") as file:
        file.seek(scar.start)
        file.write(c.random.randbytes(len(scar)))
    with raidlib.open(c.paths) as array:
        assert next(m for m in array.status().members if m.slot == slot).bad_blocks
        assert array.pread(array.size, 0) == c.content
        c.fill(array)
        assert not any(m.bad_blocks for m in array.status().members)
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))
