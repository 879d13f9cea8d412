"""Write-intent bitmaps as bytes.

Heads and bits against `mdadm --examine-bitmap` and what a kernel wrote; sizes and places against md-format.md 1.5 and 3.3, worked out here
once more; hostile heads.
"""

import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_golden import entries, unpack

import raidlib
from raidlib import bitmap
from raidlib.engine import check, ffi, lib
from raidlib.member import Member, read_superblock

MDADM = shutil.which("mdadm") or "/sbin/mdadm"
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
HEAD = struct.Struct("<II16sQQQIIIIII")
FIELDS = ("magic", "version", "uuid", "events", "cleared", "sync", "state", "chunk", "sleep", "behind", "reserved", "nodes")
GOOD = {
    "magic": 0x6D746962,
    "version": 4,
    "uuid": bytes(range(16)),
    "events": 42,
    "cleared": 41,
    "sync": 129024,
    "state": 0,
    "chunk": 65536,
    "sleep": 5,
    "behind": 0,
    "reserved": 8,
    "nodes": 0,
}


def head_bytes(**changes) -> bytes:
    return HEAD.pack(*({**GOOD, **changes}[name] for name in FIELDS)).ljust(256, b"\0")


def decode(block: bytes):
    out = ffi.new("struct rl_bitmap_superblock *")
    check(lib.rl_bitmap_decode(block, out))
    return out


def mdadm_says(area: bytes, folder: Path) -> dict[str, str]:
    """The fields of `mdadm --examine-bitmap`, which takes a file for a bitmap by itself."""
    (folder / "bitmap").write_bytes(area)
    ran = subprocess.run([MDADM, "--examine-bitmap", folder / "bitmap"], capture_output=True, text=True, check=True)
    return fields_of(ran.stdout)


def fields_of(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, value in (line.split(" : ", 1) for line in text.splitlines() if " : " in line)}


def bits_and_dirty(told: dict[str, str]) -> tuple[int, int]:
    found = re.match(r"(\d+) bits \(chunks\), (\d+) dirty", told["Bitmap"])
    return int(found[1]), int(found[2])


# --- The head ----------------------------------------------------------------------------------------------------------------------------


def test_every_field_is_where_the_format_says():
    block = head_bytes(events=2**40 + 3, cleared=2**39 + 5, sync=2**36, state=6, chunk=1 << 20, sleep=7, behind=9, reserved=11, version=3)
    head = decode(block)
    assert (head.version, bytes(head.set_uuid)) == (3, GOOD["uuid"])
    assert (head.events, head.events_cleared, head.sync_sectors) == (2**40 + 3, 2**39 + 5, 2**36)
    assert (head.state, head.chunk_bytes, head.daemon_sleep_s, head.write_behind, head.sectors_reserved) == (6, 1 << 20, 7, 9, 11)
    out = ffi.new("unsigned char[]", b"\xaa" * 256)
    lib.rl_bitmap_encode(head, out)
    assert bytes(ffi.buffer(out))[:256] == block


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"magic": 0}, raidlib.errors.NoSuperblockError, "no write-intent bitmap"),
        ({"version": 2}, raidlib.errors.UnsupportedError, "version 2"),
        ({"version": 5}, raidlib.errors.UnsupportedError, "clustered"),
        ({"version": 6}, raidlib.errors.UnsupportedError, "lockless"),
        ({"chunk": 0}, raidlib.errors.UsageError, "chunk of 0"),
        ({"chunk": 256}, raidlib.errors.UsageError, "chunk of 256"),
        ({"chunk": 65537}, raidlib.errors.UsageError, "chunk of 65537"),
        ({"sleep": 0}, raidlib.errors.UsageError, "daemon_sleep is 0"),
        ({"sleep": 2**31}, raidlib.errors.UsageError, "daemon_sleep"),
        ({"behind": 16384}, raidlib.errors.UsageError, "write_behind"),
        ({"sync": 2**64 - 1}, raidlib.errors.UsageError, "covers"),
        ({"sync": 2**50, "chunk": 512}, raidlib.errors.UsageError, "covers"),
    ],
)
def test_a_head_that_md_would_not_take(changes, error, words):
    with pytest.raises(error, match=words):
        decode(head_bytes(**changes))


@given(st.binary(min_size=256, max_size=256), st.sampled_from([0, 4, 8]), st.dictionaries(st.integers(8, 72), st.integers(0, 255)))
def test_any_bytes_are_decoded_within_bounds_or_refused(noise, keep, changed):
    """What passes may be multiplied and divided by: chunk, number of bits, size of the area."""
    block = bytearray(head_bytes()[:keep] + noise[keep:] if keep else head_bytes())
    for at, value in changed.items():
        block[at] = value
    try:
        head = decode(bytes(block))
    except raidlib.RaidError:
        return
    assert head.version in (3, 4)
    assert head.chunk_bytes >= 512
    assert head.chunk_bytes & (head.chunk_bytes - 1) == 0
    assert head.daemon_sleep_s >= 1
    bits = lib.rl_bitmap_bits(head.sync_sectors, head.chunk_bytes)
    assert bits == -(-head.sync_sectors * 512 // head.chunk_bytes) <= 2**32
    assert lib.rl_bitmap_bytes(head.sync_sectors, head.chunk_bytes) == -(-(256 + -(-bits // 8)) // 4096) * 4096


# --- Bits ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 143, 144, 2000, 30719, 30720, 30721, 9_000_000])
def test_dirty_bits_are_counted_as_mdadm_counts_them(tmp_path, bits):
    """Also where the last byte is used in part, and the rest of the area is filled with ones; over the ends of what is read at once."""
    rng = random.Random(bits)
    chosen = {rng.randrange(bits) for _ in range(50)} | {bits - 1}
    area = bytearray(head_bytes(sync=bits * 8, chunk=4096) + b"\0" * (-(-(256 + -(-bits // 8)) // 4096) * 4096 - 256))
    for bit in range(bits, (len(area) - 256) * 8 if bits < 100_000 else bits + 7):
        area[256 + bit // 8] |= 1 << bit % 8
    for bit in chosen:
        area[256 + bit // 8] |= 1 << bit % 8
    assert bits_and_dirty(mdadm_says(bytes(area), tmp_path)) == (bits, len(chosen))
    device = raidlib.MemoryDevice(len(area) + 65536)
    device.handle.pwrite(bytes(area), 8192)
    assert bitmap._count(device.handle, 8192 + 256, bits) == len(chosen)


def with_bitmap():
    return [name for name in entries() if "bitmap" in name or name in ("r1-miss0", "r1-writemostly", "r6-12-ls-512k-4d")]


@pytest.mark.parametrize("name", with_bitmap())
def test_what_the_kernel_wrote_is_read_as_mdadm_reads_it(golden_dir, tmp_path, name):
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == name)
    for file, path in unpack(golden_dir, entry, tmp_path).items():
        told = fields_of((golden_dir / name / file.replace(".img", ".bitmap.txt")).read_text())
        head = raidlib.examine(path).bitmap
        assert (head.version, head.events, head.events_cleared) == (int(told["Version"]), int(told["Events"]), int(told["Events Cleared"]))
        number, unit = told["Chunksize"].split()
        assert head.chunk_size == int(number) * {"KB": KIB, "MB": MIB, "GB": GIB}[unit]
        assert f"{head.daemon_sleep}s" == told["Daemon"].split()[0]
        assert head.sync_size == int(told["Sync Size"].split()[0]) * 1024
        assert (head.bits, head.dirty) == bits_and_dirty(told)


# --- Sizes and places ----------------------------------------------------------------------------------------------------------------


def reserved(sectors: int) -> int:
    """md-format.md 1.5."""
    if sectors < 128:
        return 0
    return 256 if sectors - 128 >= 200 * 2**21 else 128 if sectors - 8 > 8 * 2**21 else 8


def least_chunk(size: int, room: int) -> int:
    """md-format.md 3.3."""
    chunk, bits, most = 4096, size * 512 // 4096 + 1, (room * 512 - 256) * 8
    while bits > most:
        chunk, bits = chunk * 2, (bits + 1) // 2
    return chunk


SIZES = [
    s
    for base in (64 * KIB, MIB, 120 * MIB, 8 * GIB, 15 * GIB, 100 * GIB, 200 * GIB, TIB, 20 * TIB)
    for s in (base - 4096, base, base + 4096)
]


@pytest.mark.parametrize("size", [*SIZES, 3 * GIB, 64 * TIB])
@pytest.mark.parametrize("version", [100, 102])
def test_place_and_chunk_are_mdadms(size, version):
    sectors = size // 512
    room = reserved(sectors)
    assert bitmap.space(sectors) == room
    if room == 0:
        with pytest.raises(raidlib.errors.UsageError, match="no room"):
            bitmap.choose(version, sectors, room, None)
        return
    least = least_chunk(sectors, room)
    place = bitmap.choose(version, sectors, room, None)
    assert place.chunk == max(least, 64 * MIB)
    for chunk in (least << doubled for doubled in range(12) if least << doubled <= 2 * GIB):
        bits = sectors * 512 // chunk + 1
        area = -(-(-(-bits // 8) + 256) // 4096) * 8
        asked = bitmap.choose(version, sectors, room, chunk)
        assert asked.offset == (8 if version == 102 else -area - 8)
        assert asked.sectors <= area <= room, "it fits into what is reserved"
    if least > 4096:
        with pytest.raises(raidlib.errors.UsageError, match=f"{raidlib.model.format_size(least)} or more"):
            bitmap.choose(version, sectors, room, least // 2)


@pytest.mark.parametrize("metadata", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize(("size", "chunk"), [("8M", "4K"), ("200M", None), ("200M", "8K"), ("9G", None), ("9G", "32K"), ("9G", "128K")])
def test_nothing_overlaps_on_a_member(tmp_path, metadata, size, chunk):
    """Superblock, bitmap, bad-block log, data and the end of the member, in the order of the version; and mdadm agrees about each."""
    with raidlib.create(tmp_path / "a", level=1, raid_devices=2, size=size, metadata=metadata, bitmap="internal", bitmap_chunk=chunk):
        pass
    path = tmp_path / "a" / "member-0.img"
    with Member.open(path, read_only=True) as member:
        sb = read_superblock(member)
    head = raidlib.examine(path).bitmap
    area = -(-(256 + -(-head.bits // 8)) // 4096) * 8
    areas = [
        (sb.super_offset, 8),
        (sb.super_offset + sb.bitmap_offset, area),
        (sb.super_offset + sb.bblog_offset, 8),
        (sb.data_offset, sb.data_size),
    ]
    names = ["superblock", "bitmap", "log", "data"]
    order = [name for _area, name in sorted(zip(areas, names, strict=True))]
    assert order == (["data", "bitmap", "log", "superblock"] if metadata == "1.0" else ["superblock", "bitmap", "log", "data"])
    placed = sorted(areas)
    assert all(at + sectors <= following for (at, sectors), (following, _more) in itertools.pairwise(placed))
    assert placed[-1][0] + placed[-1][1] <= os.path.getsize(path) // 512
    assert placed[1][0] + placed[1][1] == placed[2][0], "the log, right behind the bitmap"
    told = fields_of(subprocess.run([MDADM, "--examine", path], capture_output=True, text=True, check=True).stdout)
    assert told["Internal Bitmap"] == f"{sb.bitmap_offset} sectors from superblock"
    assert told["Bad Block Log"] == f"512 entries available at offset {sb.bblog_offset} sectors"
    assert told["Checksum"].endswith("correct")


@pytest.mark.parametrize("name", ["r5-12-ls-512k-bitmap", "r1-dirty-bitmap", "r6-dirty-bitmap"])
def test_the_same_place_as_mdadm_gave_it(golden_dir, tmp_path, name):
    """An array like one that mdadm made has its areas where that has them."""
    entry = next(e for e in json.loads((golden_dir / "index.json").read_text()) if e["name"] == name)
    theirs = next(iter(unpack(golden_dir, entry, tmp_path).values()))
    words = entry["create"].split()
    chunk = next((word.split("=")[1] for word in words if word.startswith("--bitmap-chunk=")), None)
    stripe = None if entry["chunk"] is None else entry["chunk"]
    raidlib.create(
        tmp_path / "a",
        level=entry["level"],
        raid_devices=entry["raid_devices"],
        size=theirs.stat().st_size,
        chunk=stripe,
        bitmap="internal",
        bitmap_chunk=chunk,
    ).close()
    blocks = []
    for path in (theirs, tmp_path / "a" / "member-0.img"):
        with Member.open(path, read_only=True) as member:
            sb = read_superblock(member)
            head = bitmap.read_head(member.handle, sb)
        blocks.append((sb.feature_map, sb.bitmap_offset, sb.bblog_offset, sb.data_offset, sb.data_size, sb.size_sectors))
        blocks[-1] += (head.version, head.chunk_bytes, head.sync_sectors, head.daemon_sleep_s, head.sectors_reserved, head.nodes)
    assert blocks[0] == blocks[1]
