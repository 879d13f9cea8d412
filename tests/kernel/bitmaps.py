"""What is shown of arrays with a write-intent bitmap: only what is marked is resynced, and copied to a member that comes back.

The evidence is on the members: redundancy is spoilt beforehand in all regions; those that are marked are mended, the others left as they
were.
"""

import dataclasses
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oracle
from cases import REGION, VERIFY, Case, Disk
from shuttle import Steps

import raidlib
from raidlib import lab

SPOT = 4096
WRITERS = 4  # at once, when the power is cut
PIECE = 40 << 10  # the most that each writes
METADATA_BYTES = 256 << 10  # the most that superblocks and bitmaps take, beside the data that is moved


def marks(path: Path) -> set[int]:
    """The regions that are marked on a member, from its bytes (md-format.md 3.2)."""
    head = raidlib.examine(path).bitmap
    assert head.chunk_size == REGION
    bits = path.read_bytes()[head.offset + 256 :][: -(-head.bits // 8)]
    return {bit for bit in range(head.bits) if bits[bit // 8] >> bit % 8 & 1}


@dataclasses.dataclass
class Spot:
    """A few bytes of a member that do not fit the others'."""

    path: Path
    at: int
    right: bytes
    wrong: bytes

    def poke(self, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.at)
            file.write(data)

    def now(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.at)
            return file.read(SPOT)


def spoil(c: Case, members: list[Path], regions: Collection[int], slot: int | None) -> list[Spot]:
    """Spoils the beginning of each region, on the member in that slot (where it has one), or (None) where it is a parity or a copy."""
    geometry = oracle.ArrayReader([path for number, path in enumerate(members) if number != slot]).regions[0].geometry
    starts = [raidlib.examine(path).data_offset for path in members]
    spots = []
    for region in sorted(regions):
        sector = region * REGION // 512
        if geometry.level in (1, 10):
            places = oracle.locate(geometry, sector)
        else:
            row = oracle.row(geometry, sector // geometry.chunk)
            places = [(number, sector) for number in (*row.data, *row.parity)]
        for where, at in places[-1:] if slot is None else [place for place in places if place[0] == slot]:
            spot = Spot(members[where], starts[where] + at * 512, b"", c.random.randbytes(SPOT))
            spot.right = spot.now()
            spot.poke(spot.wrong)
            spots.append(spot)
    assert spots
    return spots


@dataclasses.dataclass
class Evidence:
    """What was spoilt, and how much was marked."""

    marked: list[Spot]
    unmarked: list[Spot]
    most: int  # bytes that may be moved of a member

    def judge(self, moved: int) -> None:
        """After the resync or the recovery: all that was marked was done, and nothing else. Then all is to be whole again."""
        assert not [spot for spot in self.marked if spot.now() == spot.wrong], "a marked region was not mended"
        assert not [spot for spot in self.unmarked if spot.now() != spot.wrong], "an unmarked region was written"
        assert 0 < moved <= self.most + METADATA_BYTES, f"{moved} bytes were moved, {self.most} are marked"
        for spot in self.unmarked:
            spot.poke(spot.right)


def plant(c: Case, members: list[Path], slot: int | None = None) -> Evidence:
    """Spoils what is marked on all members (of those that are not away: slot) and what is marked on none."""
    each = [marks(path) for number, path in enumerate(members) if number != slot]
    some, every = set.union(*each), set.intersection(*each)
    rest = set(range(raidlib.examine(members[slot == 0]).bitmap.bits)) - some
    assert every and len(rest) > len(some), f"{len(some)} are marked, {len(every)} of them on all, {len(rest)} are not"
    return Evidence(spoil(c, members, every, slot), spoil(c, members, rest, slot), len(some) * REGION)


def nibbles(c: Case) -> list[tuple[int, int]]:
    """Where a little is written, and how much, in KiB: three small pieces, and one that every member has a part of."""
    counts = [*(c.random.randrange(1, 30) for _ in range(3)), 64 * len(c.paths)]
    return [(c.random.randrange((len(c.content) >> 10) - count), count) for count in counts]


def nibble(c: Case, array: raidlib.Array) -> None:
    for offset, count in nibbles(c):
        c.write(array, offset << 10, count << 10)


def dictated(c: Case) -> str:
    return "\n".join(c.put(*piece) for piece in nibbles(c))


def apart(c: Case) -> list[tuple[int, int]]:
    """Where each of several writers writes, and how much, in bytes: from a whole KiB on, and none where another one does."""
    share = len(c.content) // WRITERS >> 10 << 10
    return [(number * share + (c.random.randrange(share - PIECE) >> 10 << 10), c.random.randrange(1, PIECE)) for number in range(WRITERS)]


def but(c: Case, slot: int) -> tuple[list[Path], str]:
    """The members without one, here and there."""
    return [path for number, path in enumerate(c.paths) if number != slot], " ".join(f"${n + 1}" for n in range(len(c.paths)) if n != slot)


def taken_back(array: raidlib.Array, member: Disk) -> raidlib.TakenBack:
    """How it came back, once it has."""
    array.re_add(member).wait()
    return next(m.taken_back for m in array.status().members if m.taken_back)


def images_of(state: lab.State) -> list[bytes]:
    devices = state.devices()
    images = [device.handle.pread(device.size, 0) for device in devices]
    for device in devices:
        device.close()
    return images


def cut_power_here(c: Case) -> list[bytes]:
    """Writes, flushes, writes more at several places at once, and leaves the members as a power cut during that may have.

    Parity or copies differ there. The array's content before the latter writes, and after them: of each block one or the other is there.
    """
    before = [raidlib.MemoryDevice(path.stat().st_size) for path in c.paths]
    for device, path in zip(before, c.paths, strict=True):
        device.handle.pwrite(path.read_bytes(), 0)
    disks, recorder = [device.fork() for device in before], lab.Recorder()
    recorded = [lab.FaultyDevice(disk, recorder=recorder) for disk in disks]
    with raidlib.open(recorded) as array:
        nibble(c, array)
        array.flush()
        contents, since = [bytes(c.content)], len(recorder)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda piece: c.write(array, *piece), apart(c)))
        contents.append(bytes(c.content))
        until = len(recorder)
    during = range(recorder.entries()[since].begun, recorder.entries()[until - 1].begun)
    history = lab.History(before, recorder)

    states = (state for state in lab.power_cuts(history, most=8) if state.moment in during and state.arrived and c.random.random() < 0.1)
    torn = next(images for images in map(images_of, states) if oracle.ArrayReader(images).check())
    for path, image in zip(c.paths, torn, strict=True):
        path.write_bytes(image)
    for device in (*recorded, *disks, *before):
        device.close()
    recorder.close()
    return contents


def settle(c: Case, contents: list[bytes]) -> None:
    """After the resync, what came through is the content: of each block, one that it has had."""
    reader = oracle.ArrayReader(c.paths)
    c.content = bytearray(reader.read(0, reader.size))
    for at in range(0, len(c.content), 512):
        assert c.content[at : at + 512] in [content[at : at + 512] for content in contents], f"at byte {at} is what nobody wrote"


def crash_here(c: Case) -> Steps:
    """The power was cut here with several writes under way: there only what is marked is resynced."""
    yield from c.born()
    contents = cut_power_here(c)
    evidence = plant(c, c.paths)
    seen = yield from c.there('assemble "$@"; go; whole; moved; stop')
    assert seen["resync_start"] == "0"
    evidence.judge(int(seen["read.0"]) * 512)
    settle(c, contents)
    c.whole_there((yield from c.there(VERIFY)))
    c.right_here()


def crash_there(c: Case) -> Steps:
    """The power was cut there with several writes under way: here only what is marked is resynced."""
    yield from c.born()
    lines, contents, loops = dictated(c), [bytes(c.content)], [""] * WRITERS
    for _ in range(2):
        for number, (offset, length) in enumerate(apart(c)):
            loops[number] += f"{c.put(offset >> 10, -(-length >> 10))}; "
        contents.append(bytes(c.content))
    writers = "\n".join(f"while :; do {loop} done &" for loop in loops)
    yield from c.there(f'assemble "$@"; go; {lines}\n{writers}\nusleep 300000; cut_power', cuts=True)
    evidence = plant(c, c.paths)
    disks = [Disk(path) for path in c.paths]
    with raidlib.open(disks) as array:
        assert array.job.kind == "resync"
        array.job.wait()
    evidence.judge(disks[0].read)
    settle(c, contents)
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def back_here(c: Case) -> Steps:
    """A member that failed there comes back here: what was written meanwhile is copied to it, and no more."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    yield from c.there(f'assemble "$@"; {dictated(c)}\nmust mdadm /dev/md0 --fail ${slot + 1}; {dictated(c)}\nstop')
    evidence = plant(c, c.paths, slot)
    returning = Disk(c.paths[slot])
    with raidlib.open(but(c, slot)[0]) as array:
        assert taken_back(array, returning).by_bitmap
    evidence.judge(returning.written)
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def back_there(c: Case) -> Steps:
    """A member that failed here comes back there: what was written meanwhile is copied to it, and no more."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    with raidlib.open(c.paths) as array:
        nibble(c, array)
        array.fail(slot)
        nibble(c, array)
    evidence = plant(c, c.paths, slot)
    seen = yield from c.there(f"assemble {but(c, slot)[1]}; go; must mdadm /dev/md0 --re-add ${slot + 1}; whole; moved; stop")
    evidence.judge(int(seen[f"written.{slot}"]) * 512)
    c.right_here()  # first: level 10 leaves marks there, of what has no copy on the member that came back
    c.whole_there((yield from c.there(VERIFY)))


def too_old(c: Case, slot: int) -> Steps:
    """Neither side takes the member back by the bitmap; here it is rebuilt."""
    others, theirs = but(c, slot)
    seen = yield from c.there(f"assemble {theirs}; go; not_re_added ${slot + 1}; content; stop")
    c.same(seen)
    returning = Disk(c.paths[slot])
    with raidlib.open(others) as array:
        back = taken_back(array, returning)
        assert not back.by_bitmap and "longer than the bitmap reaches back" in back.reason
    assert returning.written >= back.total
    c.right_here()
    c.whole_there((yield from c.there(VERIFY)))


def too_old_here(c: Case) -> Steps:
    """A member that was away while its slot was filled, and cleared of marks, here: neither side takes it back by the bitmap."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    new = c.new_member(c.folder / "new", max(c.shape.sizes))
    with raidlib.open(c.paths) as array:
        array.fail(slot)
        nibble(c, array)
        array.remove(slot)
        array.add(new).wait()
    with raidlib.open([*but(c, slot)[0], new]) as array:
        array.fail(slot)
        nibble(c, array)
    yield from too_old(c, slot)


def too_old_there(c: Case) -> Steps:
    """A member that was away while its slot was filled, and cleared of marks, there: neither side takes it back by the bitmap."""
    yield from c.born()
    (slot,) = c.some_slots(1)
    new, number = c.new_member(c.folder / "new", max(c.shape.sizes)), len(c.paths) + 1
    lines = f"""assemble {" ".join(f"${n}" for n in range(1, number))}
        go
        must mdadm /dev/md0 --fail ${slot + 1}
        {dictated(c)}
        must mdadm /dev/md0 --remove ${slot + 1}
        must mdadm /dev/md0 --add ${number}
        whole
        {dictated(c)}
        stop
        assemble {but(c, slot)[1]} ${number}
        {dictated(c)}
        must mdadm /dev/md0 --fail ${number}
        {dictated(c)}
        stop"""
    yield from c.there(lines, [*c.paths, new])
    yield from too_old(c, slot)


def grown_here(c: Case) -> Steps:
    """One that was added here is used there, and taken away there."""
    yield from c.born()
    with raidlib.open(c.paths) as array:
        array.set_bitmap("internal", chunk=REGION)
        c.scribble(array)
    c.bitmap = True
    c.whole_there((yield from c.there(VERIFY)))
    yield from c.there(f'assemble "$@"; {c.dictate()}\nmust mdadm --grow --bitmap=none /dev/md0; {c.dictate()}\nstop')
    c.bitmap = False
    c.right_here()


def grown_there(c: Case) -> Steps:
    """One that was added there is used here, and taken away here."""
    yield from c.born()
    grow = f"must mdadm --grow --bitmap=internal --bitmap-chunk={REGION >> 10} /dev/md0"
    yield from c.there(f'assemble "$@"; go; {grow}; {c.dictate()}\nstop')
    c.bitmap = True
    c.right_here()
    with raidlib.open(c.paths) as array:
        c.scribble(array)
        array.set_bitmap("none")
        c.scribble(array)
    c.bitmap = False
    c.whole_there((yield from c.there(VERIFY)))
