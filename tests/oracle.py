"""The oracle: Linux md in plain Python, slow and obvious, written only from the format reference.

It shares no code with raidlib. Tests compare what the engine reads and writes with what this file says. Section
numbers are those of the format reference, md-format.md. A sector is 512 bytes; positions are sectors.

    ArrayReader(members).read(offset, length)       what the array holds, whatever is missing
    ArrayReader(members).check()                    rows whose parity or copies disagree
    locate(geometry, sector)                        where a sector of the array lies
    write_reference(geometry, content)              what each member's data area must hold
"""

from __future__ import annotations

import lzma
import os
import struct
from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SECTOR = 512
PAGE_SECTORS = 8
MAGIC = 0xA92B4EFC
JOURNAL_MAGIC = 0x6433C509
MAX_SECTOR = 2**64 - 1
SPARE, FAULTY, JOURNAL, MAX_ROLE = 0xFFFF, 0xFFFE, 0xFFFD, 0xFF00
LINEAR = -1
RS = "rs"
RS_PARITY_MAX, RS_DATA_MAX = 6, 251
PARITY_LEVELS = (4, 5, 6, RS)
MIRROR_UNIT = 128  # what check() compares at once where there is no chunk (level 1)

# 1.3: feature bits
BITMAP, RECOVERING, RESHAPING, BAD_BLOCKS, REPLACEMENT, BACKWARDS = 1, 2, 4, 8, 16, 32
NEW_OFFSET, CLUSTERED, HAS_JOURNAL, PPL, PPLS, RAID0_LAYOUT = 64, 256, 512, 1024, 2048, 4096
KNOWN_FEATURES = 0x1FFF
SHAPE = ("level", "layout", "chunk", "size", "raid_disks", "ctime")  # 6.2, 10.1: what members must agree in


class OracleError(Exception):
    """The array, or this part of it, cannot be read; the text says why."""


# --- 2.5: the field GF(2^8), polynomial 0x11d, generator 2 ------------------------------------------------------------


def _field_tables() -> tuple[list[int], list[int]]:
    exp, log, value = [], [0] * 256, 1
    for power in range(255):
        exp.append(value)
        log[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return exp, log


EXP, LOG = _field_tables()


def gf_power(exponent: int) -> int:
    """2^exponent; the exponent may be negative."""
    return EXP[exponent % 255]


def gf_mul(a: int, b: int) -> int:
    return EXP[(LOG[a] + LOG[b]) % 255] if a and b else 0


def gf_inverse(a: int) -> int:
    assert a, "0 has no inverse"
    return EXP[-LOG[a] % 255]


_PRODUCTS = np.array([[gf_mul(a, b) for b in range(256)] for a in range(256)], np.uint8)


def gf_scale(factor: int, block: np.ndarray) -> np.ndarray:
    """Each byte of the block times the factor. May return the block itself, so do not write into the result."""
    return block if factor == 1 else _PRODUCTS[factor].take(block)


def rs_coefficient(parity: int, column: int) -> int:
    """Level rs: the factor of a data column in a parity. The first two parities are those of level 6."""
    if parity == 0:
        return 1
    if parity == 1:
        return gf_power(column)
    shift = gf_power(parity - 1)
    return gf_mul(1 ^ shift, gf_inverse(gf_power(-column) ^ shift))


def encode(coefficients, data) -> list[np.ndarray]:
    """The parities of a row of data blocks: one for each line of coefficients."""
    return [np.bitwise_xor.reduce([gf_scale(factor, block) for factor, block in zip(line, data, strict=True)]) for line in coefficients]


def solve(coefficients, data, parity) -> list[np.ndarray]:
    """All data blocks of a row (None: lost): Gauss-Jordan elimination with as many parities as blocks are lost."""
    lost = [i for i, block in enumerate(data) if block is None]
    equations = []
    for line, block in zip(coefficients, parity, strict=True):
        if block is None or len(equations) == len(lost):
            continue
        right = block.copy()
        for factor, known in zip(line, data, strict=True):
            if known is not None:
                right ^= gf_scale(factor, known)
        equations.append(([line[i] for i in lost], right))
    if len(equations) < len(lost):
        raise OracleError(f"{len(lost)} data blocks of a row are lost and {len(equations)} parities left")
    for column in range(len(lost)):
        pivot = next(i for i in range(column, len(lost)) if equations[i][0][column])
        equations[column], equations[pivot] = equations[pivot], equations[column]
        left, right = equations[column]
        inverse = gf_inverse(left[column])
        left, right = [gf_mul(inverse, x) for x in left], gf_scale(inverse, right)
        equations[column] = left, right
        for i, (other, value) in enumerate(equations):
            if i != column and (factor := other[column]):
                other = [x ^ gf_mul(factor, y) for x, y in zip(other, left, strict=True)]
                equations[i] = other, value ^ gf_scale(factor, right)
    whole = list(data)
    for i, (_, block) in zip(lost, equations, strict=True):
        whole[i] = block
    return whole


# --- 2: geometry ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """How an array lies on its members. `sectors` is dev_sectors (1.2); linear and raid0 have `lengths` (1.7)."""

    level: int | str
    slots: int
    chunk: int = 0
    layout: int = 0
    sectors: int = 0
    lengths: tuple[int, ...] = ()
    parity: int = 0  # level rs only


class Row(NamedTuple):
    """A row of chunks, at the same place on all members: slots of the data in order, slots of the parities, and the
    power of 2 that each data chunk has in Q."""

    data: tuple[int, ...]
    parity: tuple[int, ...]
    exponents: tuple[int, ...]


def parity_count(g: Geometry) -> int:
    return {4: 1, 5: 1, 6: 2, RS: g.parity}.get(g.level, 0)


def _row5(layout: int, n: int, s: int) -> tuple[int, list[int]]:
    """2.4, level 5: slot of P and slots of the data."""
    if not 0 <= layout <= 5:
        raise OracleError(f"raid5 has no layout {layout}")
    p = (n - 1 - s % n, s % n, n - 1 - s % n, s % n, 0, n - 1)[layout]
    symmetric = layout in (2, 3)
    return p, [(p + 1 + k) % n for k in range(n - 1)] if symmetric else [d for d in range(n) if d != p]


def _row6(layout: int, n: int, s: int) -> tuple[int, int, list[int]]:
    """2.4, level 6: slots of P, Q and the data."""
    if 16 <= layout <= 20:  # a level 5 layout on all but the last slot, which holds Q
        p, data = _row5(layout - 16, n - 1, s)
        return p, n - 1, data
    left, right = n - 1 - s % n, s % n
    starts = {0: left, 1: right, 2: left, 3: right, 4: 0, 5: n - 2, 8: right, 9: n - 1 - (s + 1) % n, 10: left}
    if layout not in starts:
        raise OracleError(f"raid6 has no layout {layout}")
    p = starts[layout]
    q = (p - 1) % n if layout == 10 else (p + 1) % n
    if layout in (2, 3, 10):
        first = p + 1 if layout == 10 else p + 2
        return p, q, [(first + k) % n for k in range(n - 2)]
    return p, q, [d for d in range(n) if d not in (p, q)]


def row(g: Geometry, s: int) -> Row:
    """2.4, 2.5: who holds what in row s of levels 4, 5, 6 and rs."""
    n = g.slots
    if g.level == 4:
        return Row(tuple(range(n - 1)), (n - 1,), tuple(range(n - 1)))
    if g.level == 5:
        p, data = _row5(g.layout, n, s)
        return Row(tuple(data), (p,), tuple(range(n - 1)))
    if g.level == 6:
        p, q, data = _row6(g.layout, n, s)
        if g.layout in (8, 9, 10):  # DDF: the exponent is the slot
            return Row(tuple(data), (p, q), tuple(data))
        after_q = [d for d in ((q + 1 + i) % n for i in range(n)) if d not in (p, q)]
        return Row(tuple(data), (p, q), tuple(after_q.index(d) for d in data))
    if g.level == RS:
        m, p = g.parity, n - 1 - s % n
        if not 1 <= m <= RS_PARITY_MAX or not 1 <= n - m <= RS_DATA_MAX:
            raise OracleError(f"level rs with {n - m} + {m} members")
        return Row(tuple((p + m + k) % n for k in range(n - m)), tuple((p + r) % n for r in range(m)), tuple(range(n - m)))
    raise OracleError(f"level {g.level} has no rows")


def coefficients(g: Geometry, r: Row) -> list[list[int]]:
    """2.5: the factor of each data chunk in each parity of the row. Level 6 is rs with exponents of its own order."""
    return [[rs_coefficient(parity, e) for e in r.exponents] for parity in range(len(r.parity))]


class Zone(NamedTuple):
    """2.2: a part of a raid0 that is striped over the same members; `base` is where it starts on each of them."""

    start: int
    end: int
    base: int
    members: tuple[int, ...]


def zones(g: Geometry) -> list[Zone]:
    """2.1, 2.2: linear is one zone a member, raid0 one for each distinct length."""
    lengths = [length // g.chunk * g.chunk if g.chunk else length for length in g.lengths]
    result, start, base = [], 0, 0
    if g.level == LINEAR:
        for slot, length in enumerate(lengths):
            result.append(Zone(start, start + length, 0, (slot,)))
            start += length
        return result
    for length in sorted(set(lengths)):
        members = tuple(slot for slot, own in enumerate(lengths) if own >= length)
        result.append(Zone(start, start + (length - base) * len(members), base, members))
        start, base = result[-1].end, length
    if g.layout not in (1, 2) and any(len(zone.members) > 1 for zone in result[1:]):
        raise OracleError("raid0 of unequal members with an unknown layout")
    return result


class Raid10(NamedTuple):
    """2.6: the layout word taken apart, and the sizes that follow."""

    near: int
    far: int
    offset: bool
    set_size: int
    stride: int
    member_sectors: int
    array_sectors: int


def raid10(g: Geometry) -> Raid10:
    near, far, offset = g.layout & 255, g.layout >> 8 & 255, bool(g.layout >> 16 & 1)
    kind, n = g.layout >> 17 & 3, g.slots
    if g.layout >> 19 or not near or not far or near * far > n or kind == 3:
        raise OracleError(f"raid10 has no layout {g.layout:#x} with {n} members")
    if offset and near >= 2 and n % near:
        raise OracleError(f"raid10 layout {g.layout:#x} with {n} members puts two chunks in one place")
    array_chunks = g.sectors // g.chunk // far * n // near
    used_chunks = -(-array_chunks * near * far // n)
    stride = g.chunk if offset else used_chunks // far * g.chunk
    set_size = (n, n // far, near * far)[kind]
    return Raid10(near, far, offset, set_size, stride, used_chunks * g.chunk, array_chunks * g.chunk)


def _locate10(g: Geometry, sector: int) -> list[tuple[int, int]]:
    """2.6: all copies of a sector."""
    t, n = raid10(g), g.slots
    stripe, slot = divmod(sector // g.chunk * t.near, n)
    y = stripe * (t.far if t.offset else 1) * g.chunk + sector % g.chunk
    last = (n // t.set_size - 1) * t.set_size  # where the last, larger set starts if the sets are uneven
    places = []
    for _ in range(t.near):
        d, far_y = slot, y
        places.append((d, far_y))
        for _ in range(t.far - 1):
            this_set = d // t.set_size
            d += t.near
            if n % t.set_size and d > last:
                d = last + (d - last) % (t.set_size + n % t.set_size)
            else:
                d = d % t.set_size + t.set_size * this_set
            far_y += t.stride
            places.append((d, far_y))
        slot += 1
        if slot == n:
            slot, y = 0, y + g.chunk
    return places


def array_sectors(g: Geometry) -> int:
    """The size of the array."""
    if g.level in (LINEAR, 0):
        return zones(g)[-1].end
    if g.level == 1:
        return g.sectors
    if g.level == 10:
        return raid10(g).array_sectors
    return g.sectors // g.chunk * g.chunk * (g.slots - parity_count(g))


def member_sectors(g: Geometry) -> list[int]:
    """How much of each member the array uses."""
    if g.level in (LINEAR, 0):
        return [length // g.chunk * g.chunk if g.chunk else length for length in g.lengths]
    if g.level == 10:
        return [raid10(g).member_sectors] * g.slots
    return [g.sectors // g.chunk * g.chunk if g.chunk else g.sectors] * g.slots


def locate(g: Geometry, sector: int) -> list[tuple[int, int]]:
    """The (slot, member sector) of an array sector: one, or all copies on levels 1 and 10."""
    if not 0 <= sector < array_sectors(g):
        raise OracleError(f"sector {sector} is outside the array")
    if g.level == 1:
        return [(slot, sector) for slot in range(g.slots)]
    if g.level == 10:
        return _locate10(g, sector)
    if g.level in (LINEAR, 0):
        zone = next(zone for zone in zones(g) if sector < zone.end)
        inside, width = sector - zone.start, len(zone.members)
        if g.level == LINEAR or width == 1:
            return [(zone.members[0], zone.base + inside)]
        slot = zone.members[(sector if g.layout == 1 else inside) // g.chunk % width]
        return [(slot, zone.base + inside // (g.chunk * width) * g.chunk + sector % g.chunk)]
    s, k = divmod(sector // g.chunk, g.slots - parity_count(g))
    return [(row(g, s).data[k], s * g.chunk + sector % g.chunk)]


def run_sectors(g: Geometry, sector: int) -> int:
    """How many sectors from this one on lie side by side on the members."""
    if g.level == 1:
        return g.sectors - sector
    if g.level == LINEAR:
        return next(zone for zone in zones(g) if sector < zone.end).end - sector
    return g.chunk - sector % g.chunk


def write_reference(g: Geometry, content: bytes) -> list[bytes]:
    """What the data area of each member must hold so that the array holds the content. Unused places are zero."""
    total = array_sectors(g)
    if len(content) != total * SECTOR:
        raise OracleError(f"content of {len(content)} bytes for an array of {total * SECTOR}")
    source = np.frombuffer(content, np.uint8)
    members = [np.zeros(sectors * SECTOR, np.uint8) for sectors in member_sectors(g)]
    sector = 0
    while sector < total:
        count = run_sectors(g, sector)
        for slot, y in locate(g, sector):
            members[slot][y * SECTOR : (y + count) * SECTOR] = source[sector * SECTOR : (sector + count) * SECTOR]
        sector += count
    if g.level in PARITY_LEVELS:
        for s in range(g.sectors // g.chunk):
            r, part = row(g, s), slice(s * g.chunk * SECTOR, (s + 1) * g.chunk * SECTOR)
            parities = encode(coefficients(g, r), [members[slot][part] for slot in r.data])
            for slot, block in zip(r.parity, parities, strict=True):
                members[slot][part] = block
    return [member.tobytes() for member in members]


# --- 1: superblocks ---------------------------------------------------------------------------------------------------

_LAYOUT_1 = """
    magic:I major:I feature_map:I pad0:I set_uuid:16s name:32s ctime:Q level:i layout:I size:Q chunk:I raid_disks:I
    bitmap_offset:i new_level:i reshape_position:Q delta_disks:i new_layout:I new_chunk:I new_offset:i data_offset:Q
    data_size:Q super_offset:Q recovery_offset:Q dev_number:I cnt_corrected_read:I device_uuid:16s devflags:B
    bblog_shift:B bblog_size:H bblog_offset:i utime:Q events:Q resync_offset:Q checksum:I max_dev:I
    logical_block_size:I"""  # 1.2, bytes 0..227
_FIELDS_1 = [part.split(":") for part in _LAYOUT_1.split()]
_NAMES_1, _STRUCT_1 = [name for name, _ in _FIELDS_1], struct.Struct("<" + "".join(code for _, code in _FIELDS_1))


class _SuperblockMethods:
    @property
    def role(self) -> int:
        """What the block says of its own member."""
        return self.roles[self.dev_number] if self.dev_number < len(self.roles) else SPARE

    @property
    def clean(self) -> bool:
        return self.resync_offset == MAX_SECTOR

    def has(self, features: int) -> bool:
        return bool(self.feature_map & features)


# A superblock of any version, with the names and units of 1.x: 0.90 is translated (KiB and bytes become sectors), and
# what it lacks is 0. `version` is "1.0", "1.1", "1.2" or "0.90"; `roles` is dev_roles; `recovery_offset` of a journal
# is its tail.
Superblock = make_dataclass(
    "Superblock",
    [("version", str), ("roles", tuple), *((name, object, 0) for name in _NAMES_1), ("ppl_offset", int, 0), ("ppl_size", int, 0)],
    bases=(_SuperblockMethods,),
    frozen=True,
)


def checksum_1(block: bytes) -> int:
    """1.4: the checksum of a 1.x superblock, whatever its checksum field holds."""
    used = 256 + 2 * struct.unpack_from("<I", block, 220)[0]
    data = block[:216] + bytes(4) + block[220:used]
    total = sum(struct.unpack_from(f"<{used // 4}I", data))
    if used % 4:
        total += struct.unpack_from("<H", data, used // 4 * 4)[0]
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def checksum_090(block: bytes) -> int:
    """1.11: the same for 0.90."""
    words = struct.unpack("<1024I", block[:4096])
    total = sum(words) - words[38]
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def _folded(value: int) -> int:
    value = (value & 0xFFFF) + (value >> 16)
    return (value & 0xFFFF) + (value >> 16)


def _image_bytes(image) -> int:
    return image.seek(0, os.SEEK_END) if hasattr(image, "seek") else len(image)


def _bytes_at(image, sector: int, length: int) -> bytes:
    if hasattr(image, "seek"):
        image.seek(sector * SECTOR)
        return image.read(length)
    return bytes(image[sector * SECTOR : sector * SECTOR + length])


def _parse_1(block: bytes, sector: int, version: str) -> Superblock | None:
    """1.2: the 1.x superblock read from this sector, if it is a valid one that belongs there."""
    if len(block) < 4096:
        return None
    fields = dict(zip(_NAMES_1, _STRUCT_1.unpack_from(block), strict=True))
    if (fields["magic"], fields["major"], fields["super_offset"], fields["pad0"]) != (MAGIC, 1, sector, 0):
        return None
    if fields["max_dev"] > 1920 or any(block[228:256]) or fields["checksum"] != checksum_1(block):
        return None
    fields["name"] = fields["name"].rstrip(b"\0").decode("utf-8", "replace")
    if fields["feature_map"] & (PPL | PPLS):  # the bytes of bitmap_offset
        fields["ppl_offset"], fields["ppl_size"] = struct.unpack_from("<hH", block, 96)
    for name, feature in (("bitmap_offset", BITMAP), ("new_offset", NEW_OFFSET)):
        if not fields["feature_map"] & feature:
            fields[name] = 0
    return Superblock(version, struct.unpack_from(f"<{fields['max_dev']}H", block, 256), **fields)


def _parse_090(block: bytes, sector: int) -> Superblock | None:
    """1.11: the 0.90 superblock of a little-endian host."""
    if len(block) < 4096:
        return None
    w, signed = struct.unpack("<1024I", block), struct.unpack("<1024i", block)
    if w[0] != MAGIC or w[1] != 0 or w[2] not in (90, 91) or _folded(w[38]) != _folded(checksum_090(block)):
        return None
    roles = []
    for disk in range(27):
        slot, state = w[131 + 32 * disk : 133 + 32 * disk]
        roles.append(FAULTY if state & 1 else slot if state & 6 == 6 else SPARE)
    clean, bitmap, events, cp_events = w[33] & 1, w[33] >> 8 & 1, w[39] | w[40] << 32, w[41] | w[42] << 32
    fields = {"resync_offset": MAX_SECTOR if clean else w[43] if cp_events == events else 0}
    if w[2] == 91:
        fields |= {
            "reshape_position": w[44] | w[45] << 32,
            "new_level": signed[46],
            "delta_disks": signed[47],
            "new_layout": w[48],
            "new_chunk": w[49] // SECTOR,
        }
    return Superblock(
        "0.90",
        tuple(roles),
        magic=w[0],
        feature_map=BITMAP * bitmap | RESHAPING * (w[2] == 91),
        name="",
        set_uuid=struct.pack("<4I", w[5], *w[13:16]),
        ctime=w[6],
        level=signed[7],
        size=w[8] * 2,
        raid_disks=w[10],
        utime=w[32],
        checksum=w[38],
        events=events,
        layout=w[64],
        chunk=w[65] // SECTOR,
        bitmap_offset=8 * bitmap,
        data_size=sector,
        super_offset=sector,
        dev_number=w[992],
        device_uuid=b"",
        devflags=w[996] >> 9 & 3,
        max_dev=27,
        **fields,
    )


def parse_superblock(image) -> Superblock | None:
    """1.1, 1.11: the superblock of a member (bytes or a file), or None. Of several valid ones the latest ctime wins."""
    size = _image_bytes(image) // SECTOR
    if size < 24:
        return None
    places = [("1.0", (size - 16) & ~7), ("1.1", 0), ("1.2", 8)]
    found = [_parse_1(_bytes_at(image, sector, 4096), sector, version) for version, sector in places]
    if (sector := (size & ~127) - 128) >= 0:
        found.append(_parse_090(_bytes_at(image, sector, 4096), sector))
    return max((block for block in found if block), key=lambda block: block.ctime & 2**40 - 1, default=None)


def bad_blocks(image, block: Superblock) -> list[tuple[int, int]]:
    """1.9: the (first sector, end) of what the member lost, in sectors of the member."""
    if not block.has(BAD_BLOCKS) or not block.bblog_offset:
        return []
    raw = _bytes_at(image, block.super_offset + block.bblog_offset, min(block.bblog_size, 8) * SECTOR)
    result = []
    for entry in struct.unpack(f"<{len(raw) // 8}Q", raw):
        if entry == MAX_SECTOR:
            break
        first, count = entry >> 10 << block.bblog_shift, (entry & 1023) << block.bblog_shift
        result.append((first, first + count))
    return result


# --- 6, 10.1: which members count -------------------------------------------------------------------------------------


def select(blocks: list[Superblock | None], sizes: list[int]) -> tuple[Superblock, dict[int, int], dict[int, str]]:
    """The freshest superblock, the role of each member that counts, and why the others do not (by their index)."""
    left_out = {i: "no superblock" for i, block in enumerate(blocks) if block is None}
    present = {i: block for i, block in enumerate(blocks) if block}
    if len({block.set_uuid for block in present.values()}) > 1:
        raise OracleError("members of several arrays")
    for i, block in list(present.items()):
        if sizes[i] < block.data_offset + max(block.data_size, block.size if block.level > 0 else 0):
            left_out[i] = "smaller than its superblock says"
            del present[i]
    own = [block for block in present.values() if block.role < MAX_ROLE or block.role == JOURNAL]
    if not own:
        raise OracleError("no member that belongs to a slot")
    freshest = max(own, key=lambda block: block.events)
    active = [block for block in own if block.role < MAX_ROLE and not block.has(REPLACEMENT)]
    recent = max(active, key=lambda block: block.events, default=freshest)
    roles = {}
    for i, block in present.items():
        role = block.role
        if block.events == freshest.events - 1 and role != SPARE:  # the last update may have been about it
            role = freshest.roles[block.dev_number] if block.dev_number < len(freshest.roles) else SPARE
        if role == SPARE:
            roles[i] = SPARE
        elif any(getattr(block, name) != getattr(freshest, name) for name in SHAPE):
            left_out[i] = "of another shape than the freshest"
        elif not freshest.events - 1 <= block.events <= freshest.events:
            left_out[i] = f"stale: events {block.events}, the freshest has {freshest.events}"
        elif recent.role < MAX_ROLE and recent.role not in block.roles:
            left_out[i] = "split brain: it takes the freshest for gone"
        elif role == FAULTY:
            left_out[i] = "faulty"
        elif role != JOURNAL and role >= freshest.raid_disks - min(0, freshest.delta_disks):
            roles[i] = SPARE
        else:
            roles[i] = role
    return freshest, roles, left_out


@dataclass
class Member:
    """An image in a slot, and how far it can be trusted."""

    image: np.ndarray
    data_offset: int = 0
    new_offset: int = 0
    good_until: int = MAX_SECTOR  # 1.6: recovery_offset, from data_offset
    bad: list[tuple[int, int]] = field(default_factory=list)  # 1.9: sectors of the member
    block: Superblock | None = None
    private: bool = False

    def start(self, moved: bool) -> int:
        """Where the data starts in the old or the new geometry of a reshape (7.1)."""
        return self.data_offset + (self.new_offset if moved else 0)

    def edges(self, moved: bool) -> list[int]:
        """Where, from the start of the data, readable turns into unreadable or back."""
        return [self.good_until] + [edge - self.start(moved) for part in self.bad for edge in part]

    def read(self, y: int, count: int, moved: bool) -> np.ndarray | None:
        """The sectors, or None. All of them must be alike: readable or not."""
        first = self.start(moved) + y
        if y >= self.good_until or any(begin < first + count and first < end for begin, end in self.bad):
            return None
        part = self.image[first * SECTOR : (first + count) * SECTOR]
        return part if len(part) == count * SECTOR else None

    def write(self, y: int, data: np.ndarray) -> None:
        """Into a copy in memory: what a log would put there. The image itself is never written."""
        if not self.private:
            self.image, self.private = np.array(self.image), True
        first = (self.data_offset + y) * SECTOR
        self.image[first : first + len(data)] = data


class Region(NamedTuple):
    """A part of the array that lies in one geometry; moved: in the new one of a reshape."""

    start: int
    end: int
    geometry: Geometry
    moved: bool


class Mismatch(NamedTuple):
    """A row (level 1 and 10: chunk) whose parities or copies in these slots disagree with the data (the first copy)."""

    row: int
    slots: tuple[int, ...]
    sector: int  # first of the array in it


def _geometry_regions(block: Superblock, lengths: tuple[int, ...], raid0_layout: int | None) -> list[Region]:
    """2, 7.1: the geometry of the array, or the two of one in mid-reshape."""
    layout = block.layout
    if block.level == 0:
        layout = block.layout if block.has(RAID0_LAYOUT) else raid0_layout or 0
    if block.level not in (LINEAR, 0, 1, 4, 5, 6, 10):
        raise OracleError(f"level {block.level}")
    if not block.has(RESHAPING):
        g = Geometry(block.level, block.raid_disks, block.chunk, layout, block.size, lengths)
        return [Region(0, array_sectors(g), g, False)]
    old = Geometry(block.level, block.raid_disks - block.delta_disks, block.chunk, block.layout, block.size)
    new = Geometry(block.new_level, block.raid_disks, block.new_chunk, block.new_layout, block.size)
    size = min(array_sectors(old), array_sectors(new))
    position = min(block.reshape_position, size)
    if block.delta_disks < 0 or (block.delta_disks == 0 and block.has(BACKWARDS)):
        return [Region(0, position, old, False), Region(position, size, new, True)]
    return [Region(0, position, new, True), Region(position, size, old, False)]


def load_image(image) -> np.ndarray:
    """A member as an array of bytes: from bytes, a file's path (mapped), or the path of an .xz file."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, (str, os.PathLike)):
        if os.fspath(image).endswith(".xz"):
            with lzma.open(image) as file:
                return np.frombuffer(file.read(), np.uint8)
        return np.memmap(image, np.uint8, "r")
    return np.frombuffer(image, np.uint8)


class ArrayReader:
    """An array read from its members' images, which are never written; logs are replayed in memory.

    Members come in any order; None is a missing one. What was not used is in `left_out` (index -> reason), spares in
    `spares`, the slots without a member in `missing`. A dirty and degraded array is read as after `--force`."""

    def __init__(self, members, *, raid0_layout: int | None = None, without_journal: bool = False):
        images = [None if member is None else load_image(member) for member in members]
        given = [i for i, image in enumerate(images) if image is not None]
        blocks = [parse_superblock(images[i]) for i in given]
        self.block, roles, left_out = select(blocks, [len(images[i]) // SECTOR for i in given])
        self.left_out = {given[i]: reason for i, reason in left_out.items()}
        self.spares = [given[i] for i, role in roles.items() if role == SPARE]
        if self.block.feature_map & ~KNOWN_FEATURES or self.block.has(CLUSTERED):
            raise OracleError(f"feature bits {self.block.feature_map:#x}")
        slots: list[list[Member]] = [[] for _ in range(self.block.raid_disks - min(0, self.block.delta_disks))]
        journal = None
        for i, role in sorted(roles.items(), key=lambda item: -blocks[item[0]].events):
            block = blocks[i]
            member = Member(images[given[i]], block.data_offset, block.new_offset, block=block)
            if role == JOURNAL:
                journal = member
            elif role != SPARE:
                member.good_until = block.recovery_offset if block.has(RECOVERING) else MAX_SECTOR
                member.bad = bad_blocks(member.image, block)
                slots[role].append(member)
        for candidates in slots:  # 10.1.6: the member itself first (the freshest of several), then its replacement
            originals = [member for member in candidates if not member.block.has(REPLACEMENT)][:1]
            candidates[:] = originals + [member for member in candidates if member.block.has(REPLACEMENT)][:1]
        lengths = ()
        if self.block.level in (LINEAR, 0):
            if not all(slots):
                raise OracleError("a linear or raid0 needs all its members")
            lengths = tuple(candidates[0].block.data_size for candidates in slots)
        self._setup(slots, _geometry_regions(self.block, lengths, raid0_layout))
        if self.block.has(HAS_JOURNAL) and not without_journal:
            if journal is None:
                raise OracleError("the journal is missing")
            replay_journal(self, journal)
        if self.block.has(PPL | PPLS) and not self.block.clean:
            replay_ppl(self)

    @classmethod
    def from_geometry(cls, geometry: Geometry, members, data_offsets=0) -> ArrayReader:
        """Members by slot, without superblocks: images or None, and where the data starts on each (or on all)."""
        reader = cls.__new__(cls)
        if isinstance(data_offsets, int):
            data_offsets = [data_offsets] * len(members)
        slots = [
            [] if member is None else [Member(load_image(member), offset)] for member, offset in zip(members, data_offsets, strict=True)
        ]
        reader.block, reader.left_out, reader.spares = None, {}, []
        reader._setup(slots, [Region(0, array_sectors(geometry), geometry, False)])
        return reader

    def _setup(self, slots: list[list[Member]], regions: list[Region]) -> None:
        self.slots, self.regions = slots, regions
        self.missing = [slot for slot, candidates in enumerate(slots) if not candidates]
        self.size = regions[-1].end * SECTOR
        self._even = all(m.good_until == MAX_SECTOR and not m.bad for candidates in slots for m in candidates)

    @property
    def clean(self) -> bool:
        return self.block is None or self.block.clean

    def fetch(self, slot: int, y: int, count: int, moved: bool) -> np.ndarray | None:
        """Sectors of a slot from whichever member has them, or None."""
        for member in self.slots[slot]:
            if (data := member.read(y, count, moved)) is not None:
                return data
        return None

    def even_parts(self, places, count: int, moved: bool) -> list[tuple[int, int]]:
        """Cuts a run of sectors, which starts at each of the places, where a member becomes readable or unreadable."""
        edges = {0, count}
        if not self._even:
            for slot, y in places:
                for member in self.slots[slot]:
                    edges.update(edge - y for edge in member.edges(moved) if 0 < edge - y < count)
        cuts = sorted(edges)
        return list(pairwise(cuts))

    def row_blocks(self, region: Region, s: int, y: int, count: int):
        """The row s of the region, its data and its parity from member sector y on; None where unreadable."""
        r = row(region.geometry, s)
        return (
            r,
            [self.fetch(slot, y, count, region.moved) for slot in r.data],
            [self.fetch(slot, y, count, region.moved) for slot in r.parity],
        )

    def _read_run(self, region: Region, sector: int, count: int):
        """Blocks of a run of sectors that lie side by side on the members."""
        g, places = region.geometry, locate(region.geometry, sector)
        affected = [(slot, places[0][1]) for slot in range(g.slots)] if g.level in PARITY_LEVELS else places
        for begin, end in self.even_parts(affected, count, region.moved):
            copies = (self.fetch(slot, y + begin, end - begin, region.moved) for slot, y in places)
            data = next((copy for copy in copies if copy is not None), None)
            if data is None and g.level in PARITY_LEVELS:
                s, k = divmod(sector // g.chunk, g.slots - parity_count(g))
                r, blocks, parity = self.row_blocks(region, s, places[0][1] + begin, end - begin)
                data = solve(coefficients(g, r), blocks, parity)[k]
            if data is None:
                raise OracleError(f"array sectors {sector + begin}..{sector + end - 1} are lost: slots {places}")
            yield data

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the array."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OracleError(f"{length} bytes at {offset} of an array of {self.size}")
        sector, end, blocks = offset // SECTOR, -(-(offset + length) // SECTOR), []
        for region in self.regions:
            while sector < min(end, region.end):
                count = min(run_sectors(region.geometry, sector), min(end, region.end) - sector)
                blocks.extend(self._read_run(region, sector, count))
                sector += count
        data = np.concatenate(blocks) if blocks else np.empty(0, np.uint8)
        return data[offset % SECTOR : offset % SECTOR + length].tobytes()

    def check(self) -> list[Mismatch]:
        """All rows and chunks that contradict themselves. In a reshape: the rows wholly on one side of its position."""
        found = []
        for region in self.regions:
            level = region.geometry.level
            found += self._check_rows(region) if level in PARITY_LEVELS else self._check_copies(region)
        return found

    def _check_rows(self, region: Region) -> list[Mismatch]:
        g, found = region.geometry, []
        width = g.chunk * (g.slots - parity_count(g))
        for s in range(-(-region.start // width), region.end // width):
            wrong, y = set(), s * g.chunk
            for begin, end in self.even_parts([(slot, y) for slot in range(g.slots)], g.chunk, region.moved):
                r, data, parity = self.row_blocks(region, s, y + begin, end - begin)
                if sum(block is not None for block in data + parity) <= len(data):
                    continue  # nothing to compare with
                lines = coefficients(g, r)
                right = encode(lines, solve(lines, data, parity))
                wrong.update(
                    slot
                    for slot, is_now, should_be in zip(r.parity, parity, right, strict=True)
                    if is_now is not None and not np.array_equal(is_now, should_be)
                )
            if wrong:
                found.append(Mismatch(s, tuple(sorted(wrong)), s * width))
        return found

    def _check_copies(self, region: Region) -> list[Mismatch]:
        g, found = region.geometry, []
        unit = g.chunk or MIRROR_UNIT
        for sector in range(region.start, region.end, unit):
            wrong, places, count = set(), locate(g, sector), min(unit, region.end - sector)
            if len(places) < 2:
                break  # linear and raid0 have no second copy
            for begin, end in self.even_parts(places, count, region.moved):
                copies = [(slot, self.fetch(slot, y + begin, end - begin, region.moved)) for slot, y in places]
                first, *others = [(slot, copy) for slot, copy in copies if copy is not None] or [(None, None)]
                wrong.update(slot for slot, copy in others if not np.array_equal(copy, first[1]))
            if wrong:
                found.append(Mismatch(sector // unit, tuple(sorted(wrong)), sector))
        return found

    def store(self, slot: int, y: int, data: np.ndarray) -> None:
        """Writes into the copies in memory of whoever is in the slot: what replaying a log does."""
        for member in self.slots[slot]:
            member.write(y, data)


# --- 4, 5: the logs ---------------------------------------------------------------------------------------------------


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc_table()


def crc32c_raw(seed: int, data: bytes) -> int:
    """0: the register of CRC-32C after these bytes, without the final inversion."""
    for byte in data:
        seed = seed >> 8 ^ _CRC32C[(seed ^ byte) & 255]
    return seed


def crc32c(data: bytes) -> int:
    return crc32c_raw(0xFFFFFFFF, data) ^ 0xFFFFFFFF


def _meta_payloads(page: bytes, seq: int | None, position: int, seed: int):
    """5.1: (seq, payloads) of a meta block, or None if it is not the one expected here. A payload is (type, locations
    or stripes, page checksums)."""
    magic, checksum, version, _, _, used, own_seq, own_position = struct.unpack_from("<IIBBHIQQ", page)
    if magic != JOURNAL_MAGIC or version != 1 or own_position != position or not 32 <= used <= 4096:
        return None
    if crc32c_raw(seed, page[:4] + bytes(4) + page[8:]) != checksum or seq not in (None, own_seq):
        return None
    at, payloads = 32, []
    while at < used:
        kind, _, size = struct.unpack_from("<HHI", page, at)
        if kind not in (0, 1, 2):
            return None
        if kind == 2:
            payloads.append((kind, struct.unpack_from(f"<{size // 8}Q", page, at + 8), ()))
            at += 8 + size
        else:
            (location,) = struct.unpack_from("<Q", page, at + 8)
            sums = struct.unpack_from(f"<{size // PAGE_SECTORS}I", page, at + 16)
            payloads.append((kind, (location,), sums))
            at += 16 + 4 * len(sums)
    return own_seq, payloads


def journal_log(journal: Member):
    """5.4: the valid payloads of the log from its tail on: (type, locations, pages), oldest first."""
    block = journal.block
    length = block.data_size // PAGE_SECTORS * PAGE_SECTORS
    tail = block.recovery_offset
    position = 0 if tail % PAGE_SECTORS or tail >= block.data_size else tail
    seed, seq = crc32c_raw(0xFFFFFFFF, block.set_uuid), None

    def page_at(at: int) -> bytes:
        return _bytes_at(journal.image, block.data_offset + at % length, 4096)

    while meta := _meta_payloads(page_at(position), seq, position, seed):
        seq, payloads = meta
        at, batch = position + PAGE_SECTORS, []
        for kind, locations, sums in payloads:
            pages = [page_at(at + i * PAGE_SECTORS) for i in range(len(sums))]
            if any(crc32c_raw(seed, page) != wanted for page, wanted in zip(pages, sums, strict=True)):
                return
            batch.append((kind, locations, [np.frombuffer(page, np.uint8) for page in pages]))
            at += len(sums) * PAGE_SECTORS
        yield from batch
        position, seq = at % length, seq + 1


def replay_journal(reader: ArrayReader, journal: Member) -> None:
    """5.4: complete stripes go to the members as they are; stripes of data only get new parity."""
    region = reader.regions[0]
    g, table = region.geometry, {}  # member sector of a stripe -> ({slot: page}, {parity slot: page})

    def put(y: int) -> None:
        data, parity = table.pop(y)
        if data and parity:
            for slot, page in (data | parity).items():
                reader.store(slot, y, page)
        elif data:
            r, old, stored = reader.row_blocks(region, y // g.chunk, y, PAGE_SECTORS)
            lost = [k for k, slot in enumerate(r.data) if old[k] is None and slot not in data]
            if lost:
                old = solve(coefficients(g, r), old, stored)
            whole = [data.get(slot, old[k]) for k, slot in enumerate(r.data)]
            for slot, page in zip(r.data + r.parity, whole + encode(coefficients(g, r), whole), strict=True):
                reader.store(slot, y, page)

    for kind, locations, pages in journal_log(journal):
        if kind == 2:
            for y in locations:
                table.pop(y, None)
        elif kind == 0:
            ((slot, y),) = locate(g, locations[0])
            if y in table and table[y][1]:
                put(y)
            table.setdefault(y, ({}, {}))[0][slot] = pages[0]
        else:
            y = locations[0]
            table.setdefault(y, ({}, {}))[1].update(zip(row(g, y // g.chunk).parity, pages, strict=False))
    for y in sorted(table, key=lambda y: not table[y][1]):  # the complete ones first
        put(y)


def _newest_ppl(member: Member):
    """4.2, 4.5: the entries of the newest header on the member, and where its partial parity starts."""
    block, best = member.block, None
    start, signature, at = block.super_offset + block.ppl_offset, crc32c(block.set_uuid), 0
    while at < block.ppl_size - PAGE_SECTORS:
        header = _bytes_at(member.image, start + at, 4096)
        own, _, generation, count, checksum = struct.unpack_from("<IIQII", header, 512)
        if own != signature or crc32c(header[:532] + bytes(4) + header[536:]) != checksum or count > 148:
            break
        if best and best[0] > generation:
            break
        entries = [struct.unpack_from("<QIIII", header, 536 + 24 * i) for i in range(count)]
        best = generation, entries, start + at + PAGE_SECTORS
        at += PAGE_SECTORS + sum(entry[1] for entry in entries) // SECTOR
    return best[1:] if best else ([], 0)


def replay_ppl(reader: ArrayReader) -> None:
    """4.6: makes the parity of the stripes in the log agree with the data that are on the members."""
    for candidates in reader.slots:
        for member in candidates[:1]:
            entries, at = _newest_ppl(member)
            for first, pp_size, data_size, _, checksum in entries:
                partial = _bytes_at(member.image, at, pp_size)
                at += pp_size // SECTOR
                if crc32c(partial) == checksum:
                    _replay_ppl_entry(reader, first, data_size // SECTOR, partial)


def _replay_ppl_entry(reader: ArrayReader, first: int, data_sectors: int, partial: bytes) -> None:
    """4.6: one entry; block by block, parity becomes the partial parity plus the modified data found on the members."""
    region = reader.regions[0]
    g, pp_sectors = region.geometry, len(partial) // SECTOR
    width = g.slots - 1
    if pp_sectors >= g.chunk:
        strip, last = g.chunk, first + data_sectors
    else:
        if pp_sectors:
            width, strip = data_sectors // pp_sectors, pp_sectors
        else:
            strip = data_sectors // width
        last = first + (width - 1) * g.chunk + strip
    step = 8 if first % 8 == 0 and last % 8 == 0 else 1
    for i in range(0, strip, step):
        places = [locate(g, r)[0] for j in range(width) if (r := first + i + j * g.chunk) < last]
        blocks = [reader.fetch(slot, y, step, False) for slot, y in places]
        if not blocks or any(block is None for block in blocks):
            continue
        parity = np.bitwise_xor.reduce(blocks)
        if pp_sectors:
            parity = parity ^ np.frombuffer(partial, np.uint8)[i * SECTOR : (i + step) * SECTOR]
        y = places[0][1]
        reader.store(row(g, y // g.chunk).parity[0], y, parity)
