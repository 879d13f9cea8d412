"""Superblocks and bad-block logs (format.c) against md-format.md, the kernel's own blocks, mdadm, and hostile input.

What the encoder writes is read here by lists of places of our own (SB1_PLACES, words()): encoder and decoder share one table, so that
what one writes and the other reads proves nothing about where it lies.
"""

import errno
import functools
import json
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidlib.engine import ffi, lib

MAX = lib.RL_MAX_SECTOR
MAGIC = lib.RL_MD_MAGIC
SPARE, FAULTY, JOURNAL = lib.RL_ROLE_SPARE, lib.RL_ROLE_FAULTY, lib.RL_ROLE_JOURNAL
VERSIONS_1 = (100, 101, 102)
VERSIONS = (90, *VERSIONS_1)
MEMBER = 131072  # sectors: 64 MiB

# (offset, struct code, field): md-format.md 1.2. Times, name, bitmap/PPL and recovery_offset are looked at by hand.
SB1_PLACES = [
    (0, "I", "magic"), (8, "I", "feature_map"), (72, "i", "level"), (76, "I", "layout"), (80, "Q", "size_sectors"),
    (88, "I", "chunk_sectors"), (92, "I", "raid_disks"), (100, "i", "new_level"), (104, "Q", "reshape_position"),
    (112, "i", "delta_disks"), (116, "I", "new_layout"), (120, "I", "new_chunk_sectors"), (124, "i", "new_offset"),
    (128, "Q", "data_offset"), (136, "Q", "data_size"), (144, "Q", "super_offset"), (160, "I", "dev_number"),
    (164, "I", "corrected_reads"), (184, "B", "devflags"), (185, "B", "bblog_shift"), (186, "H", "bblog_sectors"),
    (188, "i", "bblog_offset"), (200, "Q", "events"), (208, "Q", "resync_offset"), (216, "I", "checksum"), (220, "I", "max_dev"),
    (224, "I", "logical_block_bytes"),
]  # fmt: skip


# --- helpers ----------------------------------------------------------------------------------------------------------


def find_place(name, beside):
    places = [Path(os.environ[name])] if os.environ.get(name) else []
    return next((place for place in [*places, beside] if (place / "index.json").is_file()), None)


GOLDEN = find_place("RAIDLIB_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")
NAMES = [array["name"] for array in json.loads((GOLDEN / "index.json").read_text())] if GOLDEN else []
golden = pytest.mark.skipif(not GOLDEN, reason="no golden arrays: no index.json in RAIDLIB_GOLDEN or ../shared/golden")
every_array = pytest.mark.parametrize("name", NAMES or ["none"])
MDADM = shutil.which("mdadm", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
needs_mdadm = pytest.mark.skipif(not MDADM, reason="mdadm is not installed")


def value_of(data):
    """A plain Python value of a cffi struct, array or number."""
    if not isinstance(data, ffi.CData):
        return data
    kind = ffi.typeof(data).kind
    if kind == "struct":
        return {name: value_of(getattr(data, name)) for name, _ in ffi.typeof(data).fields}
    item = ffi.typeof(data).item
    if item.kind == "primitive" and item.cname in ("char", "uint8_t", "unsigned char"):
        return bytes(ffi.buffer(data))
    return [value_of(element) for element in data]


def superblock(**fields):
    sb = ffi.new("struct rl_superblock *")
    for name, value in fields.items():
        target = getattr(sb, name)
        if isinstance(value, bytes):
            ffi.memmove(target, value, len(value))
        elif isinstance(value, list):
            for index, element in enumerate(value):
                target[index] = element
        else:
            setattr(sb, name, value)
    return sb


def encode(sb):
    block = ffi.new("uint8_t[]", b"\xa5" * lib.RL_SB_BYTES)
    lib.rl_superblock_encode(sb, block)
    return bytes(ffi.buffer(block, lib.RL_SB_BYTES))


def decode(block, version, at=None, member=MEMBER):
    """(0 or -errno, struct)."""
    assert len(block) == lib.RL_SB_BYTES
    sb = ffi.new("struct rl_superblock *")
    at = lib.rl_superblock_sector(version, member) if at is None else at
    return lib.rl_superblock_decode(ffi.from_buffer(block), version, at, member, sb), sb


def decoded(block, version, at=None, member=MEMBER):
    rc, sb = decode(block, version, at, member)
    assert rc == 0, error_text()
    return sb


def error_text():
    error = ffi.new("struct rl_error *")
    lib.rl_last_error(error)
    return ffi.string(error.text).decode()


def refused(block, version, code, word, at=None, member=MEMBER):
    rc, _ = decode(block, version, at, member)
    assert rc == -code, f"{rc} {error_text()}"
    assert word in error_text()
    error = ffi.new("struct rl_error *")
    lib.rl_last_error(error)
    assert (error.code, error.slot, ffi.string(error.call)) == (-code, -1, b"rl_superblock_decode")
    return True


def checksum(block, version):
    """md-format.md 1.4 and 1.11, written down once more."""
    if version == 90:
        length, at = lib.RL_SB_BYTES, 152
    else:
        length, at = 256 + 2 * struct.unpack_from("<I", block, 220)[0], 216
    data = block[:at] + bytes(4) + block[at + 4 : length]
    total = sum(int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def sealed(block, version):
    """The block with its checksum made right."""
    at = 152 if version == 90 else 216
    return bytes(block[:at]) + struct.pack("<I", checksum(block, version)) + bytes(block[at + 4 :])


def patched(block, version, at, code, value):
    changed = bytearray(block)
    struct.pack_into("<" + code, changed, at, value)
    return sealed(changed, version)


def words(block):
    return struct.unpack("<1024I", block)


def equal(one, other):
    left, right = value_of(one[0]), value_of(other[0])
    assert {k: v for k, v in left.items() if v != right[k]} == {k: right[k] for k, v in left.items() if v != right[k]}
    return True


# --- the worked examples of md-format.md 8.5 --------------------------------------------------------------------------


def example_1(version=102, **changes):
    at = lib.rl_superblock_sector(version, MEMBER)
    places = {"bitmap_offset": 8, "bblog_offset": 16, "data_offset": 2048, "data_size": 129024}
    if version == 100:
        places = {"bitmap_offset": -16, "bblog_offset": -8, "data_offset": 0, "data_size": 131040}
    roles = [0, 1, 2, SPARE, 3] + [SPARE] * (lib.RL_SB_DEVS_MAX - 5)
    fields = {
        "version": version, "magic": MAGIC, "feature_map": lib.RL_FEATURE_BITMAP, "set_uuid": bytes(range(16)), "set_name": b"host:arr",
        "ctime_s": 1700000000, "utime_s": 1700000001, "level": 5, "layout": 2, "size_sectors": 129024, "chunk_sectors": 128,
        "raid_disks": 4, "super_offset": at, "recovery_offset": MAX, "device_uuid": bytes(range(100, 116)), "bblog_sectors": 8,
        "events": 42, "resync_offset": MAX, "max_dev": 128, "dev_roles": roles,
    }  # fmt: skip
    return superblock(**{**fields, **places, **changes})


def example_90(**changes):
    disks = [{"number": i, "major": 8, "minor": 1 + 16 * i, "raid_disk": i, "state": 6} for i in range(2)]
    fields = {
        "version": 90, "magic": MAGIC, "set_uuid": bytes.fromhex("03020100 07060504 0b0a0908 0f0e0d0c"), "ctime_s": 1700000000,
        "utime_s": 1700000001, "level": 1, "size_sectors": 2 * 65408, "chunk_sectors": 128, "raid_disks": 2, "super_offset": 130944,
        "data_size": 130944, "recovery_offset": MAX, "events": 42, "resync_offset": MAX, "state": 1, "max_dev": 27, "disks": disks,
        "this_disk": disks[0], "dev_roles": [0, 1] + [SPARE] * (lib.RL_SB_DEVS_MAX - 2),
    }  # fmt: skip
    return superblock(**{**fields, **changes})


@pytest.mark.parametrize("version, at, sum_", [(102, 8, 0x3495C4C1), (101, 0, 0x3495C4B9), (100, 131056, 0x3497C45B)])
def test_example_1(version, at, sum_):
    block = encode(example_1(version))
    assert struct.unpack_from("<I", block, 216) == (sum_,)
    sb = decoded(block, version)
    assert (sb.super_offset, sb.checksum) == (at, sum_)
    sb.checksum = 0
    assert equal(sb, example_1(version))


def example_90_words():
    """The words of the example as md-format.md states them, and no others."""
    given_words = {0: MAGIC, 2: 90, 5: 0x03020100, 6: 1700000000, 7: 1, 8: 65408, 9: 2, 10: 2, 13: 0x07060504, 14: 0x0B0A0908,
                   15: 0x0F0E0D0C, 32: 1700000001, 33: 1, 34: 2, 35: 2, 38: 0x97F54D8D, 39: 42, 41: 42, 65: 65536}  # fmt: skip
    for index in range(2):
        given_words |= dict(enumerate((index, 8, 1 + 16 * index, index, 6), 128 + 32 * index))
    given_words |= dict(enumerate((0, 8, 1, 0, 6), 992))
    return struct.pack("<1024I", *(given_words.get(i, 0) for i in range(1024)))


def test_example_90():
    sb = decoded(example_90_words(), 90)
    assert sb.checksum == 0x97F54D8D
    sb.checksum = 0
    assert equal(sb, example_90())
    # The kernel stores MaxSector's low word with a clean state, which the sum does not see: it is 0 modulo 2^32 - 1.
    ours, theirs = words(encode(sb)), words(example_90_words())
    assert [(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b] == [(43, 0xFFFFFFFF, 0)]
    assert ours[38] == 0x97F54D8D


@pytest.mark.parametrize("version, member, at", [
    (90, 131072, 130944), (90, 131199, 130944), (90, 131200, 131072), (90, 256, 128), (90, 255, MAX),
    (100, 131072, 131056), (100, 131079, 131056), (100, 131080, 131064), (100, 24, 8), (100, 23, MAX),
    (101, 24, 0), (101, 23, MAX), (102, 24, 8), (102, 23, MAX), (102, 0, MAX),
    (0, 131072, MAX), (103, 131072, MAX), (91, 131072, MAX),
])  # fmt: skip
def test_sector(version, member, at):
    assert lib.rl_superblock_sector(version, member) == at


# --- where things lie, by lists of this file's own --------------------------------------------------------------------


def u(bits):
    return st.integers(0, 2**bits - 1)


def i32():
    return st.integers(-(2**31), 2**31 - 1)


@st.composite
def random_1(draw, member=MEMBER):
    """A 1.x superblock with every field at random, as far as a decoder may accept it."""
    version = draw(st.sampled_from(VERSIONS_1))
    at = lib.rl_superblock_sector(version, member)
    max_dev = draw(st.integers(0, 1920) | st.sampled_from([0, 1, 127, 128, 1919, 1920]))
    first = 0 if version == 100 else at + (256 + 2 * max_dev + 511) // 512
    end = at if version == 100 else member
    data_offset = draw(st.integers(first, end - 10))
    features = draw(u(13)) & ~draw(st.sampled_from([1 | 512 | 1024, 1 | 512 | 2048, 1024 | 2048]))
    rs = draw(st.booleans())
    level = lib.RL_LEVEL_RS if rs else draw(st.sampled_from([-1, 0, 1, 4, 5, 6, 10]))
    features &= 8191 if level == 0 else ~lib.RL_FEATURE_RAID0_LAYOUT
    ppl = features & (1024 | 2048)
    raid_disks = draw(st.integers(1, 1920))
    move = st.integers(first - data_offset, end - data_offset)
    beside = st.integers(-at, member - at - 8).filter(bool)
    roles = draw(
        st.lists(st.sampled_from([0, 1, 2, 7, SPARE, FAULTY, JOURNAL]) | u(16), min_size=max_dev, max_size=max_dev)
        if max_dev < 64
        else st.randoms(use_true_random=False).map(lambda r: [r.randrange(65536) for _ in range(max_dev)])
    )
    dev_number = draw(st.integers(0, max(max_dev, 1)) | u(32))
    has_recovery = features & lib.RL_FEATURE_RECOVERY or (dev_number < max_dev and roles[dev_number] == JOURNAL)
    name = draw(st.binary(max_size=32)).split(b"\0")[0]
    return superblock(
        version=version, magic=lib.RL_RS_MAGIC if rs else MAGIC, feature_map=features, set_uuid=draw(st.binary(min_size=16, max_size=16)),
        set_name=name, ctime_s=draw(u(40)), ctime_us=draw(u(24)), utime_s=draw(u(40)), utime_us=draw(u(24)), level=level,
        layout=draw(u(32)), size_sectors=draw(st.integers(0, at - data_offset) if version == 100 else u(64)), chunk_sectors=draw(u(32)),
        raid_disks=raid_disks, bitmap_offset=0 if ppl else draw(beside if features & 1 else i32()),
        ppl_offset=draw(st.integers(max(-at, -32768), min(member - at - 64, 32767)).filter(bool)) if ppl else 0,
        ppl_sectors=draw(st.integers(0, 64)) if ppl else 0, new_level=draw(i32()),
        delta_disks=draw(st.integers(raid_disks - 1920, raid_disks - 1) if features & 4 else i32()), new_layout=draw(u(32)),
        new_chunk_sectors=draw(u(32)), new_offset=draw(move if features & 4 and features & 64 else i32()), reshape_position=draw(u(64)),
        data_offset=data_offset, data_size=draw(st.integers(10, end - data_offset)), super_offset=at,
        recovery_offset=draw(u(64)) if has_recovery else MAX, dev_number=dev_number, corrected_reads=draw(u(32)),
        device_uuid=draw(st.binary(min_size=16, max_size=16)), devflags=draw(u(8)), bblog_shift=draw(u(8)),
        bblog_sectors=draw(st.integers(0, 8)), bblog_offset=draw(beside if features & 8 else i32()), events=draw(u(64)),
        resync_offset=draw(st.sampled_from([0, MAX]) | u(64)), logical_block_bytes=draw(st.integers(0, 4096)),
        max_dev=max_dev, dev_roles=roles + [SPARE] * (lib.RL_SB_DEVS_MAX - max_dev),
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(random_1())
def test_round_trip_1(sb):
    block = encode(sb)
    again = decoded(block, sb.version)
    sb.checksum = checksum(block, sb.version)
    assert equal(again, sb)
    assert encode(again) == block
    assert not any(block[256 + 2 * sb.max_dev :])

    for at, code, name in SB1_PLACES:
        assert struct.unpack_from("<" + code, block, at)[0] == getattr(sb, name), name
    assert struct.unpack_from("<II", block, 4) == (1, sb.feature_map) and block[12:16] == bytes(4) == block[228:232]
    assert block[16:32] == bytes(sb.set_uuid) and block[168:184] == bytes(sb.device_uuid)
    assert block[32:64] == ffi.string(sb.set_name).ljust(32, b"\0")
    assert struct.unpack_from("<Q", block, 64)[0] == sb.ctime_us << 40 | sb.ctime_s
    assert struct.unpack_from("<Q", block, 192)[0] == sb.utime_us << 40 | sb.utime_s
    if sb.feature_map & (lib.RL_FEATURE_PPL | lib.RL_FEATURE_MULTIPLE_PPL):
        assert struct.unpack_from("<hH", block, 96) == (sb.ppl_offset, sb.ppl_sectors)
    else:
        assert struct.unpack_from("<i", block, 96)[0] == sb.bitmap_offset
    meant = sb.feature_map & lib.RL_FEATURE_RECOVERY or lib.rl_superblock_role(sb) == JOURNAL
    assert struct.unpack_from("<Q", block, 152)[0] == (sb.recovery_offset if meant else 0)
    assert list(struct.unpack_from(f"<{sb.max_dev}H", block, 256)) == list(sb.dev_roles)[: sb.max_dev]


@st.composite
def random_disk(draw, index):
    """None: unused. Else a disk of the kinds that the kernel writes."""
    kind = draw(st.sampled_from(["unused", "active", "spare", "faulty", "empty", "joining"]))
    if kind == "unused":
        return {"number": 0, "major": 0, "minor": 0, "raid_disk": 0, "state": 0}
    state = {"active": 6, "spare": 0, "faulty": 1, "empty": 9, "joining": 2}[kind] | draw(st.sampled_from([0, 512, 1024]))
    raid_disk = draw(st.integers(0, 26)) if kind == "active" else draw(u(32))
    return {"number": index, "major": draw(u(32)), "minor": draw(u(32)), "raid_disk": raid_disk, "state": state}


@st.composite
def random_90(draw, member=MEMBER):
    at = lib.rl_superblock_sector(90, member)
    disks = [draw(random_disk(i)) for i in range(27)]
    this = disks[draw(st.integers(0, 26))]
    level = draw(st.sampled_from([-1, 0, 1, 4, 5, 6, 10]))
    resync = draw(st.sampled_from([0, MAX]) | u(32))
    reshape, bitmap = draw(st.booleans()), draw(st.booleans())
    raid_disks = draw(st.integers(1, 27))
    fields = {
        "new_level": draw(i32()), "delta_disks": draw(st.integers(raid_disks - 27, raid_disks - 1)), "new_layout": draw(u(32)),
        "new_chunk_sectors": draw(u(23)), "reshape_position": draw(u(64)),
    } if reshape else {}  # fmt: skip
    roles = [FAULTY if d["state"] & 1 else d["raid_disk"] if d["state"] & 6 == 6 else SPARE for d in disks]
    return superblock(
        version=90, magic=MAGIC, feature_map=bitmap + 4 * reshape, set_uuid=draw(st.binary(min_size=16, max_size=16)),
        ctime_s=draw(u(32)), utime_s=draw(u(32)), level=level, layout=draw(u(32)),
        size_sectors=2 * draw(st.integers(0, at // 2) if level > 0 else u(32)), chunk_sectors=draw(u(23)), raid_disks=raid_disks,
        bitmap_offset=8 * bitmap, data_size=at, super_offset=at, recovery_offset=MAX, dev_number=this["number"],
        devflags=this["state"] >> 9 & 3, events=draw(u(64)), resync_offset=resync, max_dev=27,
        dev_roles=roles + [SPARE] * (lib.RL_SB_DEVS_MAX - 27), patch_version=draw(u(32)), md_minor=draw(u(32)),
        gvalid_words=draw(u(32)), state=draw(u(32)) & ~0x101 | (resync == MAX) | bitmap << 8, disks=disks, this_disk=this, **fields,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(random_90())
def test_round_trip_90(sb):
    block = encode(sb)
    again = decoded(block, 90)
    sb.checksum = checksum(block, 90)
    assert equal(again, sb)
    assert encode(again) == block

    w = words(block)
    assert w[:5] == (MAGIC, 0, 91 if sb.feature_map & 4 else 90, sb.patch_version, sb.gvalid_words)
    assert [w[5], *w[13:16]] == list(struct.unpack(">4I", bytes(sb.set_uuid)))
    assert w[6:9] == (sb.ctime_s, sb.level & 0xFFFFFFFF, sb.size_sectors // 2)
    assert (*w[10:12], *w[32:34]) == (sb.raid_disks, sb.md_minor, sb.utime_s, sb.state)
    assert w[38] == sb.checksum and w[39] | w[40] << 32 == sb.events
    assert w[44] | w[45] << 32 == sb.reshape_position
    assert w[46:50] == (sb.new_level & 0xFFFFFFFF, sb.delta_disks & 0xFFFFFFFF, sb.new_layout, sb.new_chunk_sectors * 512)
    assert w[64:66] == (sb.layout, sb.chunk_sectors * 512)
    for index, disk in enumerate([*sb.disks, sb.this_disk]):
        assert list(w[128 + 32 * index : 133 + 32 * index]) == list(value_of(disk).values())
        assert not any(w[133 + 32 * index : 160 + 32 * index])
    assert not any((w[12], *w[16:32], *w[50:64], *w[66:128]))
    states = [(disk.number, disk.state & 15) for disk in sb.disks]
    active, spare = sum(s in (2, 6) for _, s in states), sum(s == 0 and n != 0 for n, s in states)
    empty, faulty = sum(s == 9 for _, s in states), sum(s == 1 for _, s in states)
    flagged_first = any(d.number == 0 and d.state in (512, 1024) for d in sb.disks)  # a spare numbered 0, which md never makes
    assert flagged_first or (w[9], *w[34:38]) == (active + spare + faulty, active, active + spare, empty, spare)


@pytest.mark.parametrize("role", [0, SPARE, FAULTY, JOURNAL])
def test_recovery_offset_means_something_only_with_its_bit_or_for_a_journal(role):
    sb = example_1(dev_number=3, recovery_offset=5000)
    sb.dev_roles[3] = role
    assert lib.rl_superblock_role(sb) == role
    assert decoded(encode(sb), 102).recovery_offset == (5000 if role == JOURNAL else MAX)
    sb.feature_map |= lib.RL_FEATURE_RECOVERY
    assert decoded(encode(sb), 102).recovery_offset == 5000


@pytest.mark.parametrize("number", [128, 1920, 2**32 - 1])
def test_a_number_without_a_role_is_a_spare(number):
    sb = example_1(dev_number=number)
    assert lib.rl_superblock_role(sb) == SPARE == lib.rl_superblock_role(decoded(encode(sb), 102))


@pytest.mark.parametrize("max_dev", [5, 127, 129, 1919, 1920])
def test_max_dev_and_the_last_half_word(max_dev):
    sb = example_1(max_dev=max_dev, data_offset=2048)
    sb.dev_roles[max_dev - 1] = 0x1234
    block = encode(sb)
    assert decoded(block, 102).dev_roles[max_dev - 1] == 0x1234
    last = 256 + 2 * max_dev - 1
    assert block[last - 1 : last + 1] == b"\x34\x12" and not any(block[last + 1 :])
    assert refused(block[:last] + b"\x13" + block[last + 1 :], 102, errno.EBADMSG, "checksum")
    if max_dev < 1920:
        beyond = decoded(block[: last + 1] + b"\x07\x00" + block[last + 3 :], 102)  # outside the sum: nobody's
        assert beyond.dev_roles[max_dev] == SPARE


@pytest.mark.parametrize("name", [b"", b"x", b"host:" + b"n" * 27])
def test_renaming_leaves_nothing_of_the_old_name(name):
    sb = example_1(set_name=b"host:quite a long name of before")
    ffi.memmove(sb.set_name, name + b"\0", len(name) + 1)
    assert encode(sb)[32:64] == name.ljust(32, b"\0")
    assert bytes(ffi.buffer(decoded(encode(sb), 102).set_name)) == name.ljust(36, b"\0")


@pytest.mark.parametrize("state, cp_events, cp, resync", [
    (1, 42, 7, MAX), (1, 0, 0, MAX), (0, 42, 7, 7), (0, 41, 7, 0), (0, 42 + 2**32, 7, 0), (0, 0, 7, 0), (2, 42, 0xFFFFFFFF, 0xFFFFFFFF),
    (0x100, 42, 0, 0),
])  # fmt: skip
def test_90_checkpoint(state, cp_events, cp, resync):
    block = patched(encode(example_90()), 90, 132, "I", state)
    block = patched(patched(block, 90, 164, "Q", cp_events), 90, 172, "I", cp)
    sb = decoded(block, 90)
    assert (sb.resync_offset, sb.state, sb.feature_map, sb.bitmap_offset) == (resync, state, state >> 8, 8 * (state >> 8))
    assert decoded(encode(sb), 90).resync_offset == resync


def test_90_checkpoint_too_large_for_its_word():
    assert decoded(encode(example_90(resync_offset=2**33)), 90).resync_offset == 0xFFFFFFFF


# --- refusals ---------------------------------------------------------------------------------------------------------

# What is wrong: version, offset, code, value -> errno, the word that the text names.
WRONG = [
    (102, 0, "I", 0, errno.ENOENT, "magic"),
    (102, 0, "I", 0xFC4E2BA9, errno.ENOENT, "magic"),
    (102, 4, "I", 0, errno.ENOENT, "major_version"),
    (102, 4, "I", 2, errno.EPROTONOSUPPORT, "major_version"),
    (102, 8, "I", 0x2001, errno.EPROTONOSUPPORT, "0x2000"),
    (102, 8, "I", 0x80000000, errno.EPROTONOSUPPORT, "0x80000000"),
    (102, 12, "I", 1, errno.EPROTONOSUPPORT, "pad0"),
    (102, 228, "B", 1, errno.EPROTONOSUPPORT, "228"),
    (102, 255, "B", 128, errno.EPROTONOSUPPORT, "255"),
    (102, 224, "I", 4097, errno.EINVAL, "logical_block_bytes"),
    (102, 72, "i", lib.RL_LEVEL_RS, errno.EINVAL, "level"),
    (102, 0, "I", lib.RL_RS_MAGIC, errno.EINVAL, "level"),
    (102, 8, "I", 1 | 1024, errno.EINVAL, "feature_map"),
    (102, 8, "I", 512 | 2048, errno.EINVAL, "feature_map"),
    (102, 8, "I", 1024 | 2048, errno.EINVAL, "feature_map"),
    (102, 8, "I", 4096, errno.EINVAL, "feature_map"),
    (102, 92, "I", 0, errno.EINVAL, "raid_disks"),
    (102, 92, "I", 1921, errno.EINVAL, "raid_disks"),
    (102, 96, "i", 0, errno.EINVAL, "bitmap_offset"),
    (102, 96, "i", -9, errno.EINVAL, "bitmap_offset"),
    (102, 96, "i", MEMBER - 8, errno.EINVAL, "bitmap_offset"),
    (102, 96, "i", MEMBER, errno.EINVAL, "bitmap_offset"),
    (102, 128, "Q", 8, errno.EINVAL, "data_offset"),
    (102, 128, "Q", 0, errno.EINVAL, "data_offset"),
    (102, 128, "Q", MEMBER + 1, errno.EINVAL, "data_offset"),
    (102, 128, "Q", 2**64 - 8, errno.EINVAL, "data_offset"),
    (101, 128, "Q", 0, errno.EINVAL, "data_offset"),
    (102, 136, "Q", 9, errno.EINVAL, "data_size"),
    (102, 136, "Q", MEMBER - 2047, errno.EINVAL, "data_size"),
    (102, 136, "Q", 2**64 - 2048, errno.EINVAL, "data_size"),
    (100, 136, "Q", MEMBER - 15, errno.EINVAL, "data_size"),
    (100, 128, "Q", MEMBER - 15, errno.EINVAL, "data_offset"),
    (100, 80, "Q", MEMBER - 15, errno.EINVAL, "size_sectors"),
    (102, 144, "Q", 0, errno.ENOENT, "super_offset"),
    (102, 186, "H", 9, errno.EINVAL, "bblog_sectors"),
    (102, 220, "I", 1921, errno.EINVAL, "max_dev"),
    (102, 220, "I", 2**32 - 1, errno.EINVAL, "max_dev"),
    (90, 0, "I", 0, errno.ENOENT, "magic"),
    (90, 0, "I", 0xFC4E2BA9, errno.EPROTONOSUPPORT, "byte order"),
    (90, 0, "I", lib.RL_RS_MAGIC, errno.ENOENT, "magic"),
    (90, 4, "I", 1, errno.ENOENT, "major_version"),
    (90, 4, "I", 2, errno.EPROTONOSUPPORT, "2.90"),
    (90, 8, "I", 89, errno.EPROTONOSUPPORT, "0.89"),
    (90, 8, "I", 92, errno.EPROTONOSUPPORT, "0.92"),
    (90, 28, "i", lib.RL_LEVEL_RS, errno.EINVAL, "level"),
    (90, 32, "I", 65473, errno.EINVAL, "size_sectors"),
    (90, 40, "I", 0, errno.EINVAL, "raid_disks"),
    (90, 40, "I", 28, errno.EINVAL, "raid_disks"),
    (90, 260, "I", 65537, errno.EINVAL, "chunk_size"),
    (90, 512 + 128 + 12, "I", 27, errno.EINVAL, "disks[1].raid_disk"),
]


def sealed_if_possible(block, version):
    too_many = version != 90 and struct.unpack_from("<I", block, 220)[0] > lib.RL_SB_DEVS_MAX
    return bytes(block) if too_many else sealed(block, version)


@pytest.mark.parametrize("version, at, code, value, error, word", WRONG)
def test_wrong_field(version, at, code, value, error, word):
    block = bytearray(encode(example_90() if version == 90 else example_1(version)))
    struct.pack_into("<" + code, block, at, value)
    assert refused(sealed_if_possible(block, version), version, error, word)


RESHAPE = lib.RL_FEATURE_RESHAPE | lib.RL_FEATURE_NEW_OFFSET


@pytest.mark.parametrize("changes, word", [
    ({"feature_map": lib.RL_FEATURE_RESHAPE, "delta_disks": 4}, "delta_disks"),
    ({"feature_map": lib.RL_FEATURE_RESHAPE, "delta_disks": -1917}, "delta_disks"),
    ({"feature_map": lib.RL_FEATURE_RESHAPE, "delta_disks": -(2**31)}, "delta_disks"),
    ({"feature_map": RESHAPE, "new_offset": -2040}, "new_offset"),
    ({"feature_map": RESHAPE, "new_offset": -(2**31)}, "new_offset"),
    ({"feature_map": RESHAPE, "new_offset": 129025}, "new_offset"),
    ({"feature_map": lib.RL_FEATURE_BAD_BLOCKS, "bblog_offset": 0}, "bblog_offset"),
    ({"feature_map": lib.RL_FEATURE_BAD_BLOCKS, "bblog_offset": MEMBER - 15}, "bblog_offset"),
    ({"feature_map": lib.RL_FEATURE_PPL, "ppl_offset": -9, "ppl_sectors": 2048}, "ppl_offset"),
    ({"feature_map": lib.RL_FEATURE_PPL, "ppl_offset": 0, "ppl_sectors": 2048}, "ppl_offset"),
])  # fmt: skip
def test_wrong_combination(changes, word):
    assert refused(encode(example_1(**changes)), 102, errno.EINVAL, word)


def test_what_only_looks_wrong():
    for version in VERSIONS_1:
        assert decoded(encode(example_1(version, logical_block_bytes=4096)), version).logical_block_bytes == 4096
        assert decoded(encode(example_1(version, logical_block_bytes=1)), version).logical_block_bytes == 1
        assert decoded(encode(example_1(version, feature_map=lib.RL_FEATURE_RESHAPE, delta_disks=3)), version).delta_disks == 3
        assert decoded(encode(example_1(version, level=0, feature_map=4096)), version).feature_map == 4096
        rs = decoded(encode(example_1(version, magic=lib.RL_RS_MAGIC, level=lib.RL_LEVEL_RS)), version)
        assert (rs.magic, rs.level) == (lib.RL_RS_MAGIC, lib.RL_LEVEL_RS)
    assert decoded(encode(example_1(data_offset=9)), 102).data_offset == 9  # the first sector behind 512 bytes of superblock
    assert decoded(encode(example_1(feature_map=RESHAPE, new_offset=-2039)), 102).new_offset == -2039
    assert decoded(encode(example_90(feature_map=4, delta_disks=1, new_chunk_sectors=64)), 90).new_chunk_sectors == 64
    assert decoded(encode(example_90(size_sectors=130944)), 90).size_sectors == 130944
    assert decoded(patched(encode(example_90(level=0)), 90, 32, "I", 2**32 - 1), 90).size_sectors == 2**33 - 2


def test_90_new_chunk_counts_only_in_a_reshape():
    block = patched(encode(example_90()), 90, 196, "I", 1000)
    assert decoded(block, 90).new_chunk_sectors == 0
    assert refused(patched(block, 90, 8, "I", 91), 90, errno.EINVAL, "new_chunk")


@pytest.mark.parametrize("version", [0, 1, 89, 91, 99, 103, 2**32 - 1])
def test_unknown_version(version):
    assert refused(encode(example_1()), version, errno.EPROTONOSUPPORT, "version", at=8)


@pytest.mark.parametrize("stored, accepted", [(0x97F54D8D, True), (0xE582, True), (0xE583, False), (0x97F54D8C, False), (0, False)])
def test_90_checksum_is_compared_folded(stored, accepted):
    block = encode(example_90())
    assert 0x97F5 + 0x4D8D == 0xE582
    block = block[:152] + struct.pack("<I", stored) + block[156:]
    rc, sb = decode(block, 90)
    assert (rc, sb.checksum) == (0, stored) if accepted else refused(block, 90, errno.EBADMSG, "checksum")


@pytest.mark.parametrize("grown", [8, 16, 24, 4096])
def test_a_member_of_1_0_that_grew(grown):
    """Where the superblock belongs now, there is none; and the old block there would be one of another place."""
    old = lib.rl_superblock_sector(100, MEMBER)
    block = encode(example_1(100))
    image = bytes(4096) * 4 + block + bytes(4096 + 512 * grown)  # the last sectors of the grown member
    start = old - 32
    now = lib.rl_superblock_sector(100, MEMBER + grown)
    assert now == old + grown
    found = image[512 * (now - start) : 512 * (now - start) + 4096]
    assert refused(found, 100, errno.ENOENT, "magic", member=MEMBER + grown)
    assert refused(block, 100, errno.ENOENT, "super_offset", member=MEMBER + grown)
    assert lib.rl_superblock_sector(100, MEMBER + 7) == old and decoded(block, 100, member=MEMBER + 7)


@pytest.mark.parametrize("version", VERSIONS_1)
def test_a_member_that_shrank(version):
    at = lib.rl_superblock_sector(version, MEMBER)
    word = "super_offset" if version == 100 else "data_size"
    assert refused(encode(example_1(version)), version, errno.EINVAL, word, at=at, member=MEMBER - 24)
    if version == 100:
        assert refused(encode(example_1(100)), 100, errno.EINVAL, "super_offset", at=at, member=at + 7)
        assert decoded(encode(example_1(100)), 100, at=at, member=at + 8)
    for sectors in (130944, 130951):
        assert refused(encode(example_90()), 90, errno.EINVAL, "superblock", at=130944, member=sectors)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("other", VERSIONS)
def test_a_block_is_of_one_version_only(version, other):
    block = encode(example_90() if version == 90 else example_1(version))
    rc, _ = decode(block, other)
    assert rc == (0 if version == other else -errno.ENOENT)


# --- hostile input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_flipped_bit_is_noticed(version):
    block = encode(example_90() if version == 90 else example_1(version))
    covered = 4096 if version == 90 else 256 + 2 * 128
    buffer = bytearray(block)
    for bit in range(8 * 4096):
        buffer[bit // 8] ^= 1 << bit % 8
        rc, _ = decode(buffer, version)
        assert (rc < 0) == (bit // 8 < covered), bit
        buffer[bit // 8] ^= 1 << bit % 8


# Fields on which sums, bounds and branches depend, so that mutation often hits them.
TENDER = [4, 8, 12, 28, 32, 36, 40, 72, 80, 88, 92, 96, 98, 112, 124, 128, 132, 136, 144, 152, 160, 164, 172, 176, 184, 188, 196, 208,
          220, 224, 256, 258, 260, 512, 528, 640, 652, 656, 3968, 3984]  # fmt: skip
EDGES = [0, 1, 7, 8, 9, 27, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 8, 2**64 - 1, MEMBER,
         MEMBER - 8, 1920, 1921]  # fmt: skip


def mutated(rng, block, version):
    """Changed in some places, and then given its right checksum, so that what lies behind it is reached."""
    block = bytearray(block)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice(TENDER) if rng.random() < 0.8 else rng.randrange(4088)
        width = rng.choice([1, 2, 4, 8])
        value = rng.choice(EDGES) if rng.random() < 0.6 else rng.getrandbits(64)
        block[at : at + width] = value.to_bytes(8, "little")[:width]
    return sealed_if_possible(block, version)


def check_accepted(block, sb, member):
    """What the callers of a decoder may rely on."""
    version, at = sb.version, sb.super_offset
    assert checksum(block, version) == sb.checksum or version == 90
    assert at + 8 <= member and sb.max_dev <= 1920 and 1 <= sb.raid_disks <= 1920
    assert sb.data_offset + sb.data_size <= (at if version in (90, 100) else member)
    assert not sb.feature_map & ~lib.RL_FEATURES_KNOWN
    if sb.feature_map & lib.RL_FEATURE_RESHAPE:
        assert 1 <= sb.raid_disks - sb.delta_disks <= 1920
        assert not sb.feature_map & lib.RL_FEATURE_NEW_OFFSET or 0 <= sb.data_offset + sb.new_offset <= member
    again = decoded(encode(sb), version, at, member)
    again.checksum, sb.checksum = 0, 0
    if version == 90:  # bits that are derived
        again.state, sb.state = 0, 0
    assert equal(again, sb)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(4))
def test_mutations_with_a_right_checksum(version, seed):
    rng = random.Random(f"{version} {seed}")
    base = encode(example_90(feature_map=4, delta_disks=1) if version == 90 else example_1(version))
    outcomes = set()
    for _ in range(1500):
        block = mutated(rng, base, version)
        member = MEMBER if rng.random() < 0.9 else rng.choice([0, 8, 15, 24, 2**55, 2**64 - 1])
        rc, sb = decode(block, version, lib.rl_superblock_sector(version, MEMBER), member)
        outcomes.add(rc)
        assert rc in (0, -errno.ENOENT, -errno.EBADMSG, -errno.EPROTONOSUPPORT, -errno.EINVAL)
        if rc == 0:
            check_accepted(block, sb, member)
    assert {0, -errno.EPROTONOSUPPORT, -errno.EINVAL} <= outcomes


@settings(max_examples=400, deadline=None)
@given(u(64), st.sampled_from([*VERSIONS, 7]), u(64), u(64), st.booleans())
def test_noise_is_never_a_superblock(seed, version, at, member, with_magic):
    block = random.Random(seed).randbytes(4096)
    if with_magic:
        block = bytearray(block)
        struct.pack_into("<3I", block, 0, MAGIC, version != 90, 90)
        struct.pack_into("<Q", block, 144, at)
        struct.pack_into("<I", block, 220, seed % 1921)
    rc, _ = decode(block, version, at, member)
    assert rc < 0
    assert 0 < len(error_text()) < 216


# --- bad-block logs ---------------------------------------------------------------------------------------------------


def bad_blocks(entries, shift=0, room=512, length=4096):
    log = entries if isinstance(entries, bytes) else b"".join(struct.pack("<Q", first << 10 | n) for first, n in entries)
    pairs = ffi.new("uint64_t[]", 2 * room)
    count = lib.rl_badblocks_decode(ffi.from_buffer(log.ljust(length, b"\xff")), length, shift, pairs, room)
    return count if count < 0 else [(pairs[2 * i], pairs[2 * i + 1]) for i in range(count)]


def test_bad_blocks():
    assert bad_blocks([]) == []
    assert bad_blocks([], length=0) == []
    assert bad_blocks([(4096, 16), (6144, 8), (6152, 512)]) == [(4096, 16), (6144, 8), (6152, 512)]
    assert bad_blocks([(5, 1), (7, 3)], shift=3) == [(40, 8), (56, 24)]
    assert bad_blocks([(0, 1), (2**54 - 2, 1)]) == [(0, 1), (2**54 - 2, 1)]
    full = [(10 * i, 9) for i in range(512)]
    assert bad_blocks(full) == full


@pytest.mark.parametrize("entries, options", [
    ([(7, 0)], {}), ([(7, 513)], {}), ([(7, 1023)], {}), ([(7, 2), (8, 2)], {}), ([(7, 2), (3, 1)], {}), ([(7, 2), (7, 2)], {}),
    ([(2**54 - 2, 1)], {"shift": 11}), ([(7, 1)], {"shift": 64}), ([(7, 1)], {"shift": 255}), ([(0, 1), (2, 1)], {"room": 1}),
    ([(0, 1)], {"length": 4095}), (bytes(8), {}),
])  # fmt: skip
def test_malformed_bad_blocks(entries, options):
    assert bad_blocks(entries, **options) == -errno.EINVAL
    assert "bad-block" in error_text()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4096), u(8))
def test_noise_as_bad_blocks(log, shift):
    found = bad_blocks(log[: len(log) // 8 * 8], shift, length=len(log) // 8 * 8)
    assert found == -errno.EINVAL or all(n > 0 and first + n < 2**64 for first, n in found)


# --- mdadm's opinion of what we write ---------------------------------------------------------------------------------


def examined(tmp_path, block, version, member=MEMBER):
    sb = decoded(block, version, member=member)
    image = tmp_path / "member"
    with image.open("wb") as file:
        file.truncate(member * 512)
        file.seek(512 * sb.super_offset)
        file.write(block)
        if sb.feature_map & lib.RL_FEATURE_BITMAP:  # mdadm clears the bit in memory, and then finds the sum wrong, where no bitmap is
            file.seek(512 * (sb.super_offset + sb.bitmap_offset))
            uuid = struct.pack("<4I", *struct.unpack(">4I" if version == 90 else "<4I", bytes(sb.set_uuid)))
            file.write(struct.pack("<4sI16s3Q4I", b"bitm", 4, uuid, sb.events, sb.events, sb.size_sectors, 0, 65536, 5, 0))
    done = subprocess.run([MDADM, "--examine", str(image)], capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"})
    return done.stdout


@needs_mdadm
@pytest.mark.parametrize("changes", [
    {}, {"resync_offset": 0}, {"resync_offset": 8192}, {"feature_map": lib.RL_FEATURE_RECOVERY, "recovery_offset": 4096},
    {"devflags": 1}, {"logical_block_bytes": 0, "max_dev": 127}, {"max_dev": 1920}, {"dev_number": 7, "events": 2**40},
    {"feature_map": lib.RL_FEATURE_RESHAPE, "delta_disks": 1, "reshape_position": 6528, "new_level": 5, "new_layout": 3,
     "new_chunk_sectors": 64},
    {"feature_map": lib.RL_FEATURE_PPL, "bitmap_offset": 0, "ppl_sectors": 8, "ppl_offset": 8},
    {"ctime_us": 123456, "utime_us": 654321},
])  # fmt: skip
@pytest.mark.parametrize("version", VERSIONS_1)
def test_mdadm_reads_what_we_write(tmp_path, version, changes):
    if version == 100 and "ppl_offset" in changes:
        changes = {**changes, "ppl_offset": -16}
    if version == 100 and changes.get("logical_block_bytes") == 0:
        changes = {**changes, "max_dev": 129}
    block = encode(example_1(version, **changes))
    text = examined(tmp_path, block, version)
    compare_examine_1(text, decoded(block, version), MEMBER)


@needs_mdadm
def test_mdadm_reads_the_example_as_md_format_says(tmp_path):
    text = examined(tmp_path, encode(example_1()), 102)
    for line in (
        "Avail Dev Size : 129024 sectors",
        "Array Size : 193536 KiB",
        "Unused Space : before=1968 sectors, after=0 sectors",
        "State : clean",
        "Device Role : Active device 0",
        "Array State : AAAA",
        "3495c4c1 - correct",
    ):
        assert line in text


@needs_mdadm
@pytest.mark.parametrize("changes", [
    {}, {"resync_offset": 0}, {"resync_offset": 64}, {"feature_map": lib.RL_FEATURE_BITMAP}, {"level": -1, "size_sectors": 0},
    {"level": 5, "layout": 2, "feature_map": lib.RL_FEATURE_RESHAPE, "delta_disks": 1, "reshape_position": 6528, "new_level": 5,
     "new_layout": 2, "new_chunk_sectors": 128},
])  # fmt: skip
def test_mdadm_reads_what_we_write_90(tmp_path, changes):
    sb = example_90(**changes)
    sb.disks[1] = {"number": 1, "raid_disk": 1, "state": 9}
    sb.disks[2] = {"number": 2, "major": 8, "minor": 33, "raid_disk": 2, "state": 0}
    block = encode(sb)
    text = examined(tmp_path, block, 90)
    compare_examine_90(text, decoded(block, 90))


# --- the kernel's own blocks ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def members(name):
    """Of each member: name, sectors, version, the block, and the first 8 sectors at its bad-block log."""
    found = []
    for path in sorted((GOLDEN / name).glob("m*.img.xz")):
        image = lzma.decompress(path.read_bytes())
        sectors = len(image) // 512
        at = {version: lib.rl_superblock_sector(version, sectors) for version in VERSIONS}
        blocks = {version: image[512 * place : 512 * place + 4096] for version, place in at.items()}
        outcome = {version: decode(block, version, member=sectors)[0] for version, block in blocks.items()}
        assert sorted(outcome.values()) == [-errno.ENOENT] * 3 + [0], (path.name, outcome, error_text())
        (version,) = (v for v, rc in outcome.items() if rc == 0)
        log = 512 * (at[version] + decoded(blocks[version], version, member=sectors).bblog_offset)
        found.append((path.name.split(".")[0], sectors, version, blocks[version], image[log : log + 4096]))
    return found


@golden
@every_array
def test_golden_round_trip(name):
    for _, sectors, version, block, _ in members(name):
        sb = decoded(block, version, member=sectors)
        length = 4096 if version == 90 else 256 + 2 * sb.max_dev
        assert encode(sb)[:length] == block[:length]


LEVELS = {-1: "linear", 0: "raid0", 1: "raid1", 4: "raid4", 5: "raid5", 6: "raid6", 10: "raid10"}
LAYOUTS = {
    0: {1: "original", 2: "alternate"},
    5: dict(enumerate(["left-asymmetric", "right-asymmetric", "left-symmetric", "right-symmetric", "parity-first", "parity-last"])),
    10: {0x102: "near=2", 0x103: "near=3", 0x201: "far=2", 0x301: "far=3"},
}
LAYOUTS[6] = LAYOUTS[5] | {8: "ddf-zero-restart", 9: "ddf-N-restart", 10: "ddf-N-continue"}
LAYOUTS[6] |= {16 + k: LAYOUTS[5][k] + "-6" for k in range(4)} | {20: "parity-first-6"}


def uuid_of(raw):
    return ":".join(bytes(raw)[i : i + 4].hex() for i in range(0, 16, 4))


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%a %b %e %H:%M:%S %Y")


def lines_of(text):
    return dict(re.findall(r"^ *([A-Z][A-Za-z' ]+?) : (.*)$", text, re.MULTILINE))


def number(text):
    return int(text.split()[0])


def unused_space(sb, sectors):
    """As mdadm reckons it: up to the nearest thing on either side of the data."""
    at = sb.super_offset
    things = [(at + sb.bblog_offset, sb.bblog_sectors)] if sb.bblog_sectors and sb.bblog_offset else []
    if sb.feature_map & (lib.RL_FEATURE_PPL | lib.RL_FEATURE_MULTIPLE_PPL):
        things.append((at + sb.ppl_offset, sb.ppl_sectors))
    elif sb.feature_map & lib.RL_FEATURE_BITMAP:
        things.append((at + sb.bitmap_offset, 8))
    if sb.version == 100:
        return sb.data_offset, min([at, *(place for place, _ in things)]) - sb.size_sectors - sb.data_offset
    return (sb.data_offset - max([at + 72, *(place + length for place, length in things)]), sectors - sb.size_sectors - sb.data_offset)


def state_of_slots(sb):
    holders = [list(sb.dev_roles)[: sb.max_dev].count(slot) for slot in range(sb.raid_disks)]
    return "".join(".AR"[min(count, 2)] for count in holders)


def role_of(sb):
    role = lib.rl_superblock_role(sb)
    if role in (SPARE, FAULTY, JOURNAL):
        return {SPARE: "spare", FAULTY: "spare", JOURNAL: "Journal"}[role]
    return f"{'Replacement' if sb.feature_map & lib.RL_FEATURE_REPLACEMENT else 'Active'} device {role}"


def compare_common(seen, sb):
    assert int(seen["Magic"], 16) == sb.magic
    assert seen["Raid Level"] == LEVELS[sb.level]
    assert int(seen["Raid Devices"]) == sb.raid_disks
    assert " ".join(seen["Creation Time"].split()) == " ".join(moment(sb.ctime_s).split())
    assert " ".join(seen["Update Time"].split()) == " ".join(moment(sb.utime_s).split())
    assert seen["State"] == ("clean" if sb.resync_offset == MAX else "active")
    assert seen["Checksum"] == f"{sb.checksum:x} - correct"
    assert int(seen["Events"]) == sb.events
    if "Layout" in seen:
        assert seen["Layout"] == LAYOUTS[sb.level][sb.layout]
    if "Chunk Size" in seen:
        assert seen["Chunk Size"] == f"{sb.chunk_sectors // 2}K"
    reshaping = sb.feature_map & lib.RL_FEATURE_RESHAPE
    assert bool(reshaping) == ("Reshape pos'n" in seen)
    if reshaping:
        assert number(seen["Reshape pos'n"]) == sb.reshape_position // 2
        assert seen["Delta Devices"] == f"{sb.delta_disks} ({sb.raid_disks - sb.delta_disks}->{sb.raid_disks})"


def compare_examine_1(text, sb, sectors):
    seen = lines_of(text)
    compare_common(seen, sb)
    assert seen["Version"] == f"1.{sb.version - 100}"
    assert int(seen["Feature Map"], 16) == sb.feature_map
    assert seen["Array UUID"] == uuid_of(sb.set_uuid) and seen["Device UUID"] == uuid_of(sb.device_uuid)
    assert seen["Name"].split("  (local")[0] == ffi.string(sb.set_name).decode()
    assert number(seen["Avail Dev Size"]) == sb.data_size
    assert number(seen.get("Data Offset", "0")) == sb.data_offset
    assert number(seen["Super Offset"]) == sb.super_offset
    if "Used Dev Size" in seen:
        assert number(seen["Used Dev Size"]) == sb.size_sectors
    if "New Offset" in seen:
        assert number(seen["New Offset"]) == sb.data_offset + sb.new_offset
    partial = sb.feature_map & lib.RL_FEATURE_RECOVERY
    assert bool(partial) == ("Recovery Offset" in seen)
    if partial:
        assert number(seen["Recovery Offset"]) == sb.recovery_offset
    elif role_of(sb) != "Journal":
        assert sb.recovery_offset == MAX
    if "Unused Space" in seen and sb.level > 0 and role_of(sb) != "Journal":
        assert tuple(map(int, re.findall(r"=(-?\d+) sectors", seen["Unused Space"]))) == unused_space(sb, sectors)
    assert ("Internal Bitmap" in seen) == bool(sb.feature_map & lib.RL_FEATURE_BITMAP)
    if "Internal Bitmap" in seen:
        assert number(seen["Internal Bitmap"]) == sb.bitmap_offset
    if "PPL" in seen:
        assert seen["PPL"] == f"{sb.ppl_sectors} sectors at offset {sb.ppl_offset} sectors from superblock"
    present = " - bad blocks present." if sb.feature_map & lib.RL_FEATURE_BAD_BLOCKS else ""
    assert seen["Bad Block Log"] == f"{64 * sb.bblog_sectors} entries available at offset {sb.bblog_offset} sectors{present}"
    assert seen.get("Flags", "") == ("write-mostly" if sb.devflags & 1 else "")
    assert seen["Device Role"] == role_of(sb)
    assert seen["Array State"].split(" (")[0] == state_of_slots(sb)


def compare_examine_90(text, sb):
    seen = lines_of(text)
    compare_common(seen, sb)
    minor = 91 if sb.feature_map & lib.RL_FEATURE_RESHAPE else 90
    assert seen["Version"] == f"0.{minor}.{sb.patch_version:02d}"
    assert seen["UUID"].split(" (local")[0] == uuid_of(sb.set_uuid)
    assert int(seen["Preferred Minor"]) == sb.md_minor
    if "Used Dev Size" in seen:
        assert number(seen["Used Dev Size"]) * 2 == sb.size_sectors
    assert ("Internal Bitmap" in seen) == bool(sb.feature_map & lib.RL_FEATURE_BITMAP)
    counts = words(encode(sb))
    for index, label in (
        (9, "Total Devices"),
        (34, "Active Devices"),
        (35, "Working Devices"),
        (36, "Failed Devices"),
        (37, "Spare Devices"),
    ):
        assert int(seen[label]) == counts[index], label
    rows = re.findall(r"^(this| *\d+) +(\d+) +(\d+) +(\d+) +(-?\d+) +(.*?)(?:   /dev.*)?$", text, re.MULTILINE)
    for label, *numbers, state in rows:
        disk = sb.this_disk if label == "this" else sb.disks[int(label)]
        assert [int(n) for n in numbers] == [disk.number, disk.major, disk.minor, disk.raid_disk]
        bits = {0: "spare", 1: "faulty", 2: "active", 6: "active sync", 9: "faulty removed"}[disk.state & 15]
        assert " ".join(state.split()) == bits
    assert sum(label == "this" for label, *_ in rows) == 1 and len(rows) == 1 + counts[9] + counts[36]
    assert sb.dev_number == sb.this_disk.number


@golden
@every_array
def test_golden_examine(name):
    for file, sectors, version, block, _ in members(name):
        text = (GOLDEN / name / f"{file}.examine.txt").read_text()
        sb = decoded(block, version, member=sectors)
        if version == 90:
            compare_examine_90(text, sb)
        else:
            compare_examine_1(text, sb, sectors)


@golden
@every_array
def test_golden_export(name):
    for file, sectors, version, block, _ in members(name):
        exported = dict(line.split("=", 1) for line in (GOLDEN / name / f"{file}.export.txt").read_text().splitlines())
        sb = decoded(block, version, member=sectors)
        # Of 0.90, mdadm 4.2 exports the creation time as MD_UPDATE_TIME.
        ours = {"MD_LEVEL": LEVELS[sb.level], "MD_DEVICES": str(sb.raid_disks), "MD_UUID": uuid_of(sb.set_uuid),
                "MD_UPDATE_TIME": str(sb.ctime_s if version == 90 else sb.utime_s), "MD_EVENTS": str(sb.events)}  # fmt: skip
        if version != 90:
            ours |= {"MD_NAME": ffi.string(sb.set_name).decode(), "MD_DEV_UUID": uuid_of(sb.device_uuid)}
        exported.pop("MD_ARRAY_SIZE", None)  # the geometry's, not the superblock's
        assert exported == ours


@golden
def test_golden_index():
    """What the index says of each member: slot, role, events, how far it is rebuilt."""
    arrays = json.loads((GOLDEN / "index.json").read_text())
    for array in arrays:
        by_file = {f"{array['name']}/{file}.img.xz": found for file, *found in members(array["name"])}
        for entry in array["members"]:
            sectors, version, block, _ = by_file[entry["file"]]
            sb = decoded(block, version, member=sectors)
            role = lib.rl_superblock_role(sb)
            assert (sb.events, sectors * 512) == (entry["events"], entry["size"])
            assert entry["slot"] == (role if role < lib.RL_ROLE_MAX else None), entry
            if entry["recovery_offset"] is not None and role != JOURNAL:
                assert sb.recovery_offset == entry["recovery_offset"]
        assert array["reshape_position"] == (sb.reshape_position if sb.feature_map & lib.RL_FEATURE_RESHAPE else None)


@golden
def test_golden_bad_blocks():
    """Sectors 2048..2063 and 4096..4103 of m1's data; the log counts from the member's start."""
    logs = {}
    for file, sectors, version, block, log in members("r5-badblocks"):
        sb = decoded(block, version, member=sectors)
        assert (sb.data_offset, sb.bblog_shift) == (2048, 0)
        logs[file] = bad_blocks(log, sb.bblog_shift) if sb.feature_map & lib.RL_FEATURE_BAD_BLOCKS else None
    assert logs == {"m0": None, "m1": [(4096, 16), (6144, 8)], "m2": None}
