"""The oracle against the numbers of the format reference (md-format.md) and against arrays made by the kernel's md."""

import functools
import hashlib
import io
import itertools
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import oracle
import pytest
from oracle import MAX_SECTOR, RS, ArrayReader, Geometry, OracleError

# --- 2.5 and level rs: the codes --------------------------------------------------------------------------------------

RS_DATA = [0x01, 0x08, 0x0F, 0x16, 0x1D, 0x24, 0x2B, 0x32, 0x39, 0x40]
LAYOUTS_6 = [0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20]


def as_blocks(values):
    return [np.array([value], np.uint8) for value in values]


def test_field():
    assert [oracle.gf_power(e) for e in range(12)] == list(bytes.fromhex("010204081020 40801d3a74e8"))
    assert oracle.gf_power(255) == 1
    assert all(oracle.gf_mul(a, oracle.gf_inverse(a)) == 1 for a in range(1, 256))
    whole = np.arange(256, dtype=np.uint8)
    for factor in range(256):
        product = [0] * 256
        for bit in range(8):  # by shift and add, without the tables
            if factor >> bit & 1:
                for value in range(256):
                    shifted = value << bit
                    for high in range(14, 7, -1):
                        shifted ^= 0x11D << high - 8 if shifted >> high & 1 else 0
                    product[value] ^= shifted
        assert oracle.gf_scale(factor, whole).tolist() == product


def test_p_and_q_check_bytes():
    lines = [[oracle.rs_coefficient(parity, e) for e in range(4)] for parity in range(2)]
    assert [int(p[0]) for p in oracle.encode(lines, as_blocks([0x01, 0x10, 0x80, 0xFF]))] == [0x6E, 0xB0]


def test_rs_vector():
    lines = [[oracle.rs_coefficient(parity, column) for column in range(10)] for parity in range(6)]
    assert bytes(lines[2]).hex() == "01f5d2c49a71f17ffc87"
    parity = oracle.encode(lines, as_blocks(RS_DATA))
    assert bytes(int(p[0]) for p in parity).hex() == "49173884d731"
    for lost in itertools.combinations(range(16), 6):
        data = [None if i in lost else block for i, block in enumerate(as_blocks(RS_DATA))]
        left = [None if 10 + r in lost else block for r, block in enumerate(parity)]
        assert [int(block[0]) for block in oracle.solve(lines, data, left)] == RS_DATA


def test_too_many_lost_is_an_error():
    lines = [[oracle.rs_coefficient(parity, column) for column in range(3)] for parity in range(2)]
    with pytest.raises(OracleError, match="3 data blocks"):
        oracle.solve(lines, [None] * 3, as_blocks([1, 2]))


# --- 2.2, 2.5, 2.6, 8.1, 8.2: the tables of the geometry --------------------------------------------------------------


def row_table(g, stripes, exponents=False):
    """Rows as the reference prints them: the array chunk (^ its exponent), P or Q of each slot."""
    lines = []
    for s in range(stripes):
        r, line = oracle.row(g, s), [""] * g.slots
        for name, slot in zip("PQ", r.parity, strict=False):
            line[slot] = name
        for k, (slot, e) in enumerate(zip(r.data, r.exponents, strict=True)):
            line[slot] = f"{s * len(r.data) + k}^{e}" if exponents else str(s * len(r.data) + k)
        lines.append(" ".join(line))
    return lines


def test_table_8_1():
    g = Geometry(5, 4, 128, 2, 128 * 1000)
    table = {
        0: (0, 0, 3),
        127: (0, 127, 3),
        128: (1, 0, 3),
        300: (2, 44, 3),
        384: (3, 128, 2),
        512: (0, 128, 2),
        768: (2, 256, 1),
        1000: (3, 360, 1),
        1152: (1, 384, 0),
        1536: (0, 512, 3),
        100000: (1, 33312, 3),
    }
    for sector, (slot, y, p) in table.items():
        assert oracle.locate(g, sector) == [(slot, y)]
        assert oracle.row(g, y // 128).parity == (p,)


TABLE_8_2 = """0 1 2 P | 3 4 P 5 | 6 P 7 8 | P 9 10 11 | 12 13 14 P
P 0 1 2 | 3 P 4 5 | 6 7 P 8 | 9 10 11 P | P 12 13 14
0 1 2 P | 4 5 P 3 | 8 P 6 7 | P 9 10 11 | 12 13 14 P
P 0 1 2 | 5 P 3 4 | 7 8 P 6 | 9 10 11 P | P 12 13 14
P 0 1 2 | P 3 4 5 | P 6 7 8 | P 9 10 11 | P 12 13 14
0 1 2 P | 3 4 5 P | 6 7 8 P | 9 10 11 P | 12 13 14 P"""


@pytest.mark.parametrize("layout", range(6))
def test_table_8_2(layout):
    wanted = TABLE_8_2.splitlines()[layout].split(" | ")
    assert row_table(Geometry(5, 4, 8, layout, 800), 5) == wanted
    if layout == 5:
        assert row_table(Geometry(4, 4, 8, 0, 800), 5) == wanted


TABLE_2_5 = {
    0: "Q 0^0 1^1 2^2 P | 3^0 4^1 5^2 P Q | 6^1 7^2 P Q 8^0 | 9^2 P Q 10^0 11^1 | P Q 12^0 13^1 14^2",
    1: "P Q 0^0 1^1 2^2 | 3^2 P Q 4^0 5^1 | 6^1 7^2 P Q 8^0 | 9^0 10^1 11^2 P Q | Q 12^0 13^1 14^2 P",
    2: "Q 0^0 1^1 2^2 P | 3^0 4^1 5^2 P Q | 7^1 8^2 P Q 6^0 | 11^2 P Q 9^0 10^1 | P Q 12^0 13^1 14^2",
    3: "P Q 0^0 1^1 2^2 | 5^2 P Q 3^0 4^1 | 7^1 8^2 P Q 6^0 | 9^0 10^1 11^2 P Q | Q 12^0 13^1 14^2 P",
    8: "P Q 0^2 1^3 2^4 | 3^0 P Q 4^3 5^4 | 6^0 7^1 P Q 8^4 | 9^0 10^1 11^2 P Q | Q 12^1 13^2 14^3 P",
    9: "0^0 1^1 2^2 P Q | 3^0 4^1 P Q 5^4 | 6^0 P Q 7^3 8^4 | P Q 9^2 10^3 11^4 | Q 12^1 13^2 14^3 P",
    10: "0^0 1^1 2^2 Q P | 4^0 5^1 Q P 3^4 | 8^0 Q P 6^3 7^4 | Q P 9^2 10^3 11^4 | P 12^1 13^2 14^3 Q",
    16: "0^0 1^1 2^2 P Q | 3^0 4^1 P 5^2 Q | 6^0 P 7^1 8^2 Q | P 9^0 10^1 11^2 Q",
    17: "P 0^0 1^1 2^2 Q | 3^0 P 4^1 5^2 Q | 6^0 7^1 P 8^2 Q | 9^0 10^1 11^2 P Q",
    18: "0^0 1^1 2^2 P Q | 4^0 5^1 P 3^2 Q | 8^0 P 6^1 7^2 Q | P 9^0 10^1 11^2 Q | 12^0 13^1 14^2 P Q",
    19: "P 0^0 1^1 2^2 Q | 5^0 P 3^1 4^2 Q | 7^0 8^1 P 6^2 Q | 9^0 10^1 11^2 P Q",
    20: "P 0^0 1^1 2^2 Q | P 3^0 4^1 5^2 Q | P 6^0 7^1 8^2 Q | P 9^0 10^1 11^2 Q",
    4: "P Q 0^0 1^1 2^2 | P Q 3^0 4^1 5^2",
    5: "0^0 1^1 2^2 P Q | 3^0 4^1 5^2 P Q",
}


@pytest.mark.parametrize("layout", TABLE_2_5)
def test_table_2_5(layout):
    wanted = TABLE_2_5[layout].split(" | ")
    assert row_table(Geometry(6, 5, 8, layout, 800), len(wanted), exponents=True) == wanted


@pytest.mark.parametrize(
    "lengths, sector, original, alternate",
    [
        ((640, 1280, 1280), 128, (1, 0), (1, 0)),
        ((640, 1280, 1280), 1919, (2, 639), (2, 639)),
        ((640, 1280, 1280), 1920, (2, 640), (1, 640)),
        ((640, 1280, 1280), 2048, (1, 640), (2, 640)),
        ((640, 1280, 1280), 2176, (2, 768), (1, 768)),
        ((640, 1280, 1280), 3199, (1, 1279), (2, 1279)),
        ((1024, 2048, 2048), 3072, (1, 1024), (1, 1024)),
        ((1024, 2048, 2048), 3200, (2, 1024), (2, 1024)),
    ],
)
def test_table_2_2(lengths, sector, original, alternate):
    for layout, wanted in ((1, original), (2, alternate)):
        assert oracle.locate(Geometry(0, 3, 128, layout, lengths=lengths), sector) == [wanted]


def test_raid0_of_unknown_layout_is_refused():
    with pytest.raises(OracleError, match="unknown layout"):
        oracle.locate(Geometry(0, 3, 128, lengths=(640, 1280, 1280)), 0)
    assert oracle.locate(Geometry(0, 2, 128, lengths=(640, 1280)), 1300) == [(1, 660)]  # one member in the second zone


TABLE_2_6 = {  # (layout, members): the places (member, chunk) of array chunks 0, 1, 2 ... on members of 8 chunks
    (0x102, 4): "0,0 1,0 | 2,0 3,0 | 0,1 1,1 | 2,1 3,1 | 0,2 1,2 | 2,2 3,2",
    (0x102, 3): "0,0 1,0 | 2,0 0,1 | 1,1 2,1 | 0,2 1,2 | 2,2 0,3 | 1,3 2,3",
    (0x201, 4): "0,0 1,4 | 1,0 2,4 | 2,0 3,4 | 3,0 0,4 | 0,1 1,5 | 1,1 2,5",
    (0x201, 3): "0,0 1,4 | 1,0 2,4 | 2,0 0,4 | 0,1 1,5 | 1,1 2,5 | 2,1 0,5",
    (0x10201, 4): "0,0 1,1 | 1,0 2,1 | 2,0 3,1 | 3,0 0,1 | 0,2 1,3 | 1,2 2,3",
    (0x10201, 3): "0,0 1,1 | 1,0 2,1 | 2,0 0,1 | 0,2 1,3 | 1,2 2,3 | 2,2 0,3",
    (0x103, 5): "0,0 1,0 2,0 | 3,0 4,0 0,1 | 1,1 2,1 3,1 | 4,1 0,2 1,2 | 2,2 3,2 4,2 | 0,3 1,3 2,3",
    (0x40201, 4): "0,0 1,4 | 1,0 0,4 | 2,0 3,4 | 3,0 2,4 | 0,1 1,5 | 1,1 0,5",
    (0x202, 4): "0,0 2,4 1,0 3,4 | 2,0 0,4 3,0 1,4",
}


@pytest.mark.parametrize("layout, members", TABLE_2_6)
def test_table_2_6(layout, members):
    g = Geometry(10, members, 8, layout, 64)
    for chunk, line in enumerate(TABLE_2_6[layout, members].split(" | ")):
        places = [(slot, y // 8) for slot, y in oracle.locate(g, chunk * 8)]
        assert " ".join(f"{slot},{y}" for slot, y in places) == line


@pytest.mark.parametrize(
    "layout, members",
    [
        (layout, members)
        for layout in (0x102, 0x103, 0x201, 0x301, 0x10201, 0x10301, 0x202, 0x40201, 0x40202, 0x40301, 0x50201)
        for members in range((layout & 255) * (layout >> 8 & 255), 9)
    ],
)
def test_raid10_places_do_not_collide(layout, members):
    g = Geometry(10, members, 8, layout, 8 * 13)
    places = [place for sector in range(0, oracle.array_sectors(g), 8) for place in oracle.locate(g, sector)]
    assert len(set(places)) == len(places)
    assert max(y for _, y in places) < oracle.member_sectors(g)[0]


def test_raid10_layout_that_collides_is_refused():
    with pytest.raises(OracleError, match="two chunks in one place"):
        oracle.array_sectors(Geometry(10, 5, 8, 0x10202, 800))


# --- 1.4, 1.11, 8.4, 8.5: superblocks and checksums -------------------------------------------------------------------


def example_superblock(minor):
    """8.5: the block of the worked example, without its checksum, built byte by byte."""
    block = bytearray(4096)
    last = minor == 0
    struct.pack_into("<III", block, 0, 0xA92B4EFC, 1, 1)
    block[16:40] = bytes(range(16)) + b"host:arr"
    struct.pack_into("<QiIQII", block, 64, 1700000000, 5, 2, 129024, 128, 4)
    struct.pack_into("<i", block, 96, -16 if last else 8)
    struct.pack_into("<QQQ", block, 128, 0 if last else 2048, 131040 if last else 129024, (131056, 0, 8)[minor])
    block[168:184] = bytes(range(100, 116))
    struct.pack_into("<HiQQQ", block, 186, 8, -8 if last else 16, 1700000001, 42, MAX_SECTOR)
    struct.pack_into("<I", block, 220, 128)
    struct.pack_into("<128H", block, 256, 0, 1, 2, 0xFFFF, 3, *[0xFFFF] * 123)
    return block


@pytest.mark.parametrize("minor, sector, checksum", [(0, 131056, 0x3497C45B), (1, 0, 0x3495C4B9), (2, 8, 0x3495C4C1)])
def test_superblock_example(minor, sector, checksum):
    block = example_superblock(minor)
    assert oracle.checksum_1(block) == checksum
    image = bytearray(131072 * 512)
    image[sector * 512 : sector * 512 + 4096] = block
    assert oracle.parse_superblock(image) is None  # no checksum yet
    struct.pack_into("<I", image, sector * 512 + 216, checksum)
    found = oracle.parse_superblock(image)
    assert found == oracle.parse_superblock(io.BytesIO(image))
    assert (found.version, found.name, found.events, found.role, found.clean) == (f"1.{minor}", "host:arr", 42, 0, True)
    assert (found.set_uuid, found.device_uuid) == (bytes(range(16)), bytes(range(100, 116)))
    assert (found.bitmap_offset, found.bblog_offset) == ((-16, -8) if minor == 0 else (8, 16))
    assert oracle.parse_superblock(bytes(image) + bytes(8192)) == (None if minor == 0 else found)  # 8.6.1


def test_superblock_with_odd_max_dev():
    block = example_superblock(2)
    struct.pack_into("<I", block, 220, 127)
    # One 0xffff less, in the upper half of a word, and 1 less in max_dev; the checksum counts modulo 2^32 - 1.
    assert oracle.checksum_1(block) == (0x3495C4C1 - 0xFFFF0000 - 1) % 0xFFFFFFFF


def test_latest_ctime_wins():
    image = bytearray(131072 * 512)
    for minor, sector, ctime in ((0, 131056, 1), (2, 8, 2)):
        block = example_superblock(minor)
        struct.pack_into("<Q", block, 64, ctime)
        struct.pack_into("<I", block, 216, oracle.checksum_1(block))
        image[sector * 512 : sector * 512 + 4096] = block
    assert oracle.parse_superblock(image).version == "1.2"


def test_superblock_090_example():
    words = [0] * 1024
    words[0:18] = [0xA92B4EFC, 0, 90, 0, 0, 0x03020100, 1700000000, 1, 65408, 2, 2, 0, 0, 0x07060504, 0x0B0A0908, 0x0F0E0D0C, 0, 0]
    words[32:36] = [1700000001, 1, 2, 2]
    words[39] = words[41] = 42
    words[65] = 65536
    for i in range(2):
        words[128 + 32 * i : 133 + 32 * i] = [i, 8, 1 + 16 * i, i, 6]
    words[992:997] = words[128:133]
    assert oracle.checksum_090(struct.pack("<1024I", *words)) == 0x97F54D8D
    words[38] = 0x97F54D8D
    image = bytearray(131072 * 512)
    image[130944 * 512 : 130944 * 512 + 4096] = struct.pack("<1024I", *words)
    found = oracle.parse_superblock(image)
    assert (found.version, found.level, found.size, found.chunk, found.events) == ("0.90", 1, 130816, 128, 42)
    assert (found.roles[:3], found.role, found.clean, found.set_uuid) == ((0, 1, 0xFFFF), 0, True, bytes(range(16)))


def test_crc_constants():
    assert oracle.crc32c_raw(0xFFFFFFFF, b"123456789") == 0x1CF96D7C
    assert oracle.crc32c(b"123456789") == 0xE3069283
    uuid = bytes(range(16))
    seed = oracle.crc32c_raw(0xFFFFFFFF, uuid)
    assert (seed, oracle.crc32c(uuid)) == (0x2636F714, 0xD9C908EB)
    header = bytes([255] * 512) + struct.pack("<I", 0xD9C908EB) + bytes(3580)
    assert oracle.crc32c(header) == 0xA68B68C7
    meta = struct.pack("<IIBBHIQQ", 0x6433C509, 0, 1, 0, 0, 32, 0x12345678, 0) + bytes(4064)
    assert oracle.crc32c_raw(seed, meta) == 0x3A25CA64


# --- write_reference and from_geometry: there and back at every level -------------------------------------------------

SHAPES = [
    *[(Geometry(-1, 2, 0, lengths=(30, 41)), 0), (Geometry(-1, 3, 8, lengths=(30, 41, 8)), 0)],
    *[(Geometry(0, 3, 8, layout, lengths=(40, 80, 120)), 0) for layout in (1, 2)],
    (Geometry(0, 4, 8, 2, lengths=(41, 47, 83, 83)), 0),
    (Geometry(1, 3, sectors=75), 2),
    (Geometry(4, 4, 8, 0, 80), 1),
    *[(Geometry(5, n, 8, layout, 83), 1) for layout in range(6) for n in (3, 4)],
    *[(Geometry(6, n, 8, layout, 80), 2) for layout in LAYOUTS_6 for n in (4, 5, 7)],
    *[(Geometry(10, 4, 8, layout, 77), 1) for layout in (0x102, 0x201, 0x10201, 0x40201)],
    *[(Geometry(10, 5, 8, layout, 77), 2) for layout in (0x103, 0x301, 0x10301)],
    (Geometry(10, 5, 8, 0x202, 77), 3),
    (Geometry(10, 3, 8, 0x102, 77), 1),
    (Geometry(10, 6, 8, 0x50201, 77), 1),
    *[(Geometry(RS, k + m, 8, 0, 80, parity=m), m) for k, m in ((2, 1), (3, 2), (4, 3), (2, 4), (3, 6))],
]


@pytest.mark.parametrize("g, tolerance", SHAPES, ids=lambda x: f"{x.level}-{x.slots}-{x.layout:#x}" if isinstance(x, Geometry) else str(x))
def test_there_and_back(g, tolerance):
    content = random.Random(repr(g)).randbytes(oracle.array_sectors(g) * 512)
    payloads = oracle.write_reference(g, content)
    assert [len(payload) for payload in payloads] == [sectors * 512 for sectors in oracle.member_sectors(g)]
    offsets = [8 * slot for slot in range(g.slots)]
    members = [bytes(512 * offset) + payload for offset, payload in zip(offsets, payloads, strict=True)]
    for count in range(tolerance + 1):
        for lost in itertools.combinations(range(g.slots), count):
            left = [None if slot in lost else member for slot, member in enumerate(members)]
            reader = ArrayReader.from_geometry(g, left, offsets)
            assert reader.read(0, reader.size) == content
            assert reader.read(700, 9000) == content[700:9700]
            assert reader.check() == []
    with pytest.raises(OracleError):
        reader = ArrayReader.from_geometry(g, [None] * (tolerance + 1) + members[tolerance + 1 :], offsets)
        reader.read(0, reader.size)


@pytest.mark.parametrize("g, tolerance", [shape for shape in SHAPES if shape[1]], ids=str)
def test_check_finds_a_changed_byte(g, tolerance):
    content = random.Random(1).randbytes(oracle.array_sectors(g) * 512)
    members = [bytearray(payload) for payload in oracle.write_reference(g, content)]
    sector = 8 * 7 + 3
    places = oracle.locate(g, sector)
    members[places[-1][0]][places[-1][1] * 512 + 5] ^= 1
    (bad,) = ArrayReader.from_geometry(g, [bytes(member) for member in members]).check()
    if g.level in oracle.PARITY_LEVELS:
        assert bad.row == places[0][1] // g.chunk
        assert bad.slots == tuple(sorted(oracle.row(g, bad.row).parity))
    else:
        assert (bad.row, bad.slots) == (sector // (g.chunk or oracle.MIRROR_UNIT), (places[-1][0],))


# --- golden arrays ----------------------------------------------------------------------------------------------------


def golden_dir():
    """Where the golden arrays are, or None: RAIDLIB_GOLDEN, beside the repository in shared/golden, or in the tests."""
    tests = Path(__file__).resolve().parent
    places = [tests.parent.parent / "shared" / "golden", tests / "golden"]
    if os.environ.get("RAIDLIB_GOLDEN"):
        places.insert(0, Path(os.environ["RAIDLIB_GOLDEN"]))
    return next((place for place in places if (place / "index.json").is_file()), None)


GOLDEN = golden_dir()
INDEX = {a["name"]: a for a in json.loads((GOLDEN / "index.json").read_text())} if GOLDEN else {}
golden = pytest.mark.skipif(not GOLDEN, reason="no golden arrays: no index.json in RAIDLIB_GOLDEN, ../shared/golden, tests/golden")
COMBINATIONS_MAX = 15  # sets of lost members tried per array, the largest sets first

# Families in which a slot is missing, stale, partial or bad already: losing more is tested by name below.
NOT_WHOLE = {"missing", "stale", "recovering", "replacement", "badblocks", "raid6-2missing"}


@functools.lru_cache(maxsize=1)
def images(name):
    return [oracle.load_image(GOLDEN / member["file"]) for member in INDEX[name]["members"]]


@functools.lru_cache(maxsize=1)
def content(name):
    reader = ArrayReader(images(name))
    return reader.read(0, reader.size)


def losses(array):
    """All sets of slots that may be lost, as lists of indices of members."""
    slots = {member["slot"]: i for i, member in enumerate(array["members"]) if member["slot"] is not None}
    n, level, groups = array["raid_devices"], array["level"], []
    if level == "raid10":  # 2.6: slots that hold all copies of something, near, far or offset
        kind, copies = array["layout"].split("=")
        first, step = 0, int(copies) if kind == "near" else 1
        while not groups or first:
            groups.append({(first + i) % n for i in range(int(copies))})
            first = (first + step) % n
    most = {"raid1": n - 1, "raid4": 1, "raid5": 1, "raid6": 2, "raid10": n}.get(level, 0)
    found = [
        lost
        for count in range(most, 0, -1)
        for lost in itertools.combinations(range(n), count)
        if not any(group <= set(lost) for group in groups)
    ]
    return [[slots[slot] for slot in lost] for lost in found[:COMBINATIONS_MAX]]


WHOLE = [name for name, array in INDEX.items() if array["kind"] not in NOT_WHOLE]


@golden
@pytest.mark.parametrize("name", INDEX or ["none"], scope="module")
class TestGolden:
    def test_content(self, name):
        """Journals and partial parity logs are replayed, so there are no exceptions."""
        assert ArrayReader(images(name)).size == INDEX[name]["array_size"]
        assert hashlib.sha256(content(name)).hexdigest() == INDEX[name]["sha256"]

    def test_superblocks(self, name):
        for image, member in zip(images(name), INDEX[name]["members"], strict=True):
            block = oracle.parse_superblock(image)
            assert block.version == INDEX[name]["metadata"].removesuffix(".00")
            assert block.events == member["events"]
            assert block.role == (
                member["slot"] if member["slot"] is not None else {"spare": oracle.SPARE, "journal": oracle.JOURNAL}[member["role"]]
            )
            assert (block.recovery_offset if block.has(oracle.RECOVERING) else None) == member["recovery_offset"]

    def test_selection(self, name):
        reader, members = ArrayReader(images(name)), INDEX[name]["members"]
        assert sorted(reader.left_out) == [i for i, m in enumerate(members) if m["kernel_state"] == "out"]
        assert reader.spares == [i for i, m in enumerate(members) if m["role"] == "spare"]
        assert ArrayReader(images(name)[::-1]).read(0, 1 << 16) == content(name)[: 1 << 16]

    def test_rows_agree(self, name):
        assert ArrayReader(images(name)).check() == []

    def test_any_range(self, name):
        chance, whole, reader = random.Random(name), content(name), ArrayReader(images(name))
        for _ in range(20):
            offset = chance.randrange(len(whole))
            length = chance.randrange(min(300000, len(whole) - offset) + 1)
            assert reader.read(offset, length) == whole[offset : offset + length]


@golden
@pytest.mark.parametrize("name", [name for name in WHOLE if losses(INDEX[name])] or ["none"])
def test_members_left_out(name):
    right = content(name)
    for lost in losses(INDEX[name]):
        reader = without(name, *lost)
        assert reader.read(0, reader.size) == right, f"without members {lost}"


@golden
@pytest.mark.parametrize("name", [name for name in WHOLE if INDEX[name]["reshape_position"] is None] or ["none"])
def test_payloads(name):
    """What write_reference makes is what the kernel wrote."""
    reader = ArrayReader(images(name))
    for slot, payload in enumerate(oracle.write_reference(reader.regions[0].geometry, content(name))):
        member = reader.slots[slot][0]
        start = member.data_offset * 512
        assert member.image[start : start + len(payload)].tobytes() == payload


def without(name, *lost):
    return ArrayReader([None if i in lost else image for i, image in enumerate(images(name))])


@golden
@pytest.mark.parametrize("name, partial", [("r5-recovering", 2), ("r5-recovering-ra", 0)])
def test_a_half_rebuilt_member_serves_what_it_has(name, partial):
    reader = without(name, partial + 1)
    g, limit = reader.regions[0].geometry, INDEX[name]["members"][partial]["recovery_offset"]
    good = limit // g.chunk * g.chunk * (g.slots - 1) * 512
    assert reader.read(0, good) == content(name)[:good]
    with pytest.raises(OracleError):
        reader.read(good, reader.size - good)
    assert without(name, partial).read(0, reader.size) == content(name)


@golden
def test_a_replacement_serves_for_its_original():
    for lost in range(4):
        reader = without("r5-replacing", lost)
        assert reader.read(0, reader.size) == content("r5-replacing")
    reader = without("r5-replacing", 0, 1)  # the original and another member
    assert reader.read(0, 8192 * 2 * 512) == content("r5-replacing")[: 8192 * 2 * 512]
    with pytest.raises(OracleError):
        reader.read(8192 * 2 * 512, 1 << 20)


@golden
def test_bad_blocks_take_a_second_loss():
    bad = [oracle.bad_blocks(image, oracle.parse_superblock(image)) for image in images("r5-badblocks")]
    assert bad == [[], [(4096, 4112), (6144, 6152)], []]  # sectors of the member: its data start at 2048
    reader = without("r5-badblocks", 0)
    lost, right = [], content("r5-badblocks")
    for sector in range(0, reader.size // 512, 8):
        try:
            assert reader.read(sector * 512, 4096) == right[sector * 512 : sector * 512 + 4096]
        except OracleError:
            lost.append(sector)
    g = reader.regions[0].geometry
    rows = {oracle.locate(g, sector)[0][1] for sector in lost}
    assert rows <= {2048, 2056, 4096}
    assert {oracle.locate(g, sector)[0][0] for sector in lost} <= {0, 1}
    assert len(lost) == sum(1 for y in rows for slot in oracle.row(g, y // g.chunk).data if slot in (0, 1))


@golden
def test_a_degraded_array_that_loses_too_much_is_an_error():
    for name, lost in (("r5-stale", 0), ("r6-miss2-ls", 1), ("r6-stale2", 1), ("r10-stale", 1), ("r1-miss0", 0)):
        with pytest.raises(OracleError):
            without(name, lost).read(0, INDEX[name]["array_size"])
    reader = without("r6-miss1", 1)
    assert reader.read(0, reader.size) == content("r6-miss1")


@golden
def test_a_journal_left_out_is_named():
    with pytest.raises(OracleError, match="journal"):
        without("r6-journal", 4)
    alone = [
        image for image, m in zip(images("r5-journal-dirty"), INDEX["r5-journal-dirty"]["members"], strict=True) if m["role"] != "journal"
    ]
    members_only = ArrayReader(alone, without_journal=True)
    assert members_only.read(0, members_only.size) != content("r5-journal-dirty")


@golden
def test_partial_parity_mends_spoiled_parity():
    """4.6: whatever the parity of the logged blocks is, replay makes it right. 8.8: so does the kernel."""
    name = "r5-ppl-dirty"
    spoiled = [np.array(image) for image in images(name)]
    reader, blocks = ArrayReader(images(name)), 0
    g = reader.regions[0].geometry
    for candidates in reader.slots:
        for sector, pp_bytes, _, parity_slot, _ in oracle._newest_ppl(candidates[0])[0]:
            y = oracle.locate(g, sector)[0][1]
            holder = reader.slots[parity_slot][0]
            image = next(new for new, old in zip(spoiled, images(name), strict=True) if oracle.parse_superblock(old) == holder.block)
            start = (holder.data_offset + y) * 512
            image[start : start + (pp_bytes or 4096)] ^= 0x55
            blocks += 1
    assert blocks
    assert ArrayReader(spoiled).check() == []
    for image in spoiled:  # 1.6: the same in an array that says it is clean, where nothing is replayed
        block = bytearray(image[4096:8192])
        struct.pack_into("<Q", block, 208, MAX_SECTOR)
        struct.pack_into("<I", block, 216, oracle.checksum_1(block))
        image[4096:8192] = np.frombuffer(block, np.uint8)
    assert ArrayReader(spoiled).check() != []


# --- 6, 10.1: selection, on edited copies -----------------------------------------------------------------------------


def edited(name, i, events=0, roles=()):
    """Member i with another event count (relative) and other dev_roles {number: role}."""
    image = np.array(images(name)[i])
    block = bytearray(image[4096:8192])
    struct.pack_into("<Q", block, 200, struct.unpack_from("<Q", block, 200)[0] + events)
    for number, role in dict(roles).items():
        struct.pack_into("<H", block, 256 + 2 * number, role)
    struct.pack_into("<I", block, 216, oracle.checksum_1(block))
    image[4096:8192] = np.frombuffer(block, np.uint8)
    return image


NAME = "r5-12-left-asymmetric-64k"


def read_edited(edits):
    """The array with some members edited: {index: arguments of edited()}. (reader, whether its content is right)."""
    members = [edited(NAME, i, **edits[i]) if i in edits else image for i, image in enumerate(images(NAME))]
    reader = ArrayReader(members)
    return reader, reader.read(0, reader.size) == content(NAME)


@golden
def test_one_event_behind_is_in_unless_the_freshest_says_faulty():
    number = oracle.parse_superblock(images(NAME)[1]).dev_number
    assert read_edited({1: {"events": -1}})[0].missing == []
    assert read_edited({i: {"events": -1} for i in (0, 1, 2)})[0].missing == []
    gone = {i: {"roles": {number: role}} for i in (0, 2, 3) for role in (oracle.FAULTY,)}
    reader, right = read_edited({**gone, 1: {"events": -1}})
    assert (reader.left_out, reader.missing, right) == ({1: "faulty"}, [1], True)
    reader, right = read_edited({1: {"events": -2}})
    assert (list(reader.left_out), reader.missing, right) == ([1], [1], True)


@golden
def test_split_brain_and_a_spare_with_more_events():
    number = oracle.parse_superblock(images(NAME)[0]).dev_number
    reader, right = read_edited({1: {"roles": {number: oracle.FAULTY}}})  # it takes slot 0, the freshest, for gone
    assert ("split brain" in reader.left_out[1], right) == (True, True)
    own = oracle.parse_superblock(images(NAME)[2]).dev_number
    reader, right = read_edited({2: {"events": 5, "roles": {own: oracle.SPARE}}})
    assert (reader.spares, reader.missing, right) == ([2], [2], True)
