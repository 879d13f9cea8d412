"""The codes (csrc/parity.c, parity_x86.c, raidlib/codec.py): every kernel against the portable one, all of them against galois.

The oracle is galois' field GF(2^8, 0x11d): its matrix products and determinants. The matrix of `rs` is made here anew from the formula,
with galois' division. Exhaustive: all products, k = 2..32 with every pair of losses (P+Q), every loss of up to m blocks of small stripes.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import galois
import numpy as np
import numpy.typing as npt
import pytest
import reedsolo

from raidlib import codec
from raidlib.engine import ffi, lib

Bytes = npt.NDArray[np.uint8]

FIELD = galois.GF(2**8, irreducible_poly=0x11D, primitive_element=2)
KERNELS = codec.kernels()
LENGTHS = (0, 1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 511, 513, 1000)
# Every width of step of every kernel, then a tail.
LENGTH = 4 * 64 + 2 * 64 + 64 + 32 + 16 + 8 + 3


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def noise(count: int, length: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, length), dtype=np.uint8)


def matrix(m: int, k: int) -> Bytes:
    """The coefficients by their formula, in galois' arithmetic."""
    two = FIELD(2)
    rows = [FIELD.Ones(k), two ** np.arange(k)]
    for r in range(2, m):
        rows.append((FIELD(1) + two ** (r - 1)) / (two ** -np.arange(k) + two ** (r - 1)))
    return np.array(rows[:m], dtype=np.uint8)


def product(coefficients: Bytes, data: Bytes) -> Bytes:
    return np.asarray(FIELD(coefficients) @ FIELD(data)).astype(np.uint8)


def encoded(k: int, m: int, data: Bytes, kernel: str = "portable") -> Bytes:
    out = np.full((m, data.shape[1]), 0xA5, np.uint8)
    codec.RS(k, m, kernel=kernel).encode(data, out)
    return out


# ---- The field and the matrix


def test_field_is_that_of_galois_and_reedsolo() -> None:
    everything = np.arange(256, dtype=np.uint8)
    a, b = np.meshgrid(everything, everything, indexing="ij")
    ours = np.array([[lib.rl_gf_mul(x, y) for y in range(256)] for x in range(256)], dtype=np.uint8)
    assert np.array_equal(ours, np.asarray(FIELD(a) * FIELD(b)))
    reedsolo.init_tables(0x11D)
    rng = random.Random(1)
    pairs = [(rng.randrange(256), rng.randrange(256)) for _ in range(2000)]
    assert [int(ours[p]) for p in pairs] == [reedsolo.gf_mul(*p) for p in pairs]
    for x in range(1, 256):
        assert lib.rl_gf_mul(x, lib.rl_gf_inv(x)) == 1
        assert lib.rl_gf_exp(lib.rl_gf_log(x)) == x
        assert lib.rl_gf_log(x) < 255
    assert [lib.rl_gf_exp(e) for e in (0, 1, 8, 254, 255, 256, 510)] == [1, 2, 0x1D, 0x8E, 1, 2, 1]


def test_matrix_is_the_formula() -> None:
    ours = np.array([[codec.coefficient(r, i) for i in range(251)] for r in range(6)], dtype=np.uint8)
    assert np.array_equal(ours, matrix(6, 251))
    assert bytes(ours[2][:10]).hex(" ") == "01 f5 d2 c4 9a 71 f1 7f fc 87"
    assert [codec.coefficient(1, i) for i in range(251, 255)] == [lib.rl_gf_exp(i) for i in range(251, 255)]


def test_every_square_submatrix_is_regular() -> None:
    """All of 6 rows by 9 columns, and every 2 x 2 of all 251 columns (by the ratios of two rows: they must differ)."""
    whole = FIELD(matrix(6, 251))
    for size in range(1, 7):
        for rows in itertools.combinations(range(6), size):
            for columns in itertools.combinations(range(9), size):
                assert np.linalg.det(whole[np.ix_(rows, columns)]) != 0, (rows, columns)
    assert np.all(whole != 0)
    for a, b in itertools.combinations(range(6), 2):
        assert len(np.unique(whole[a] / whole[b])) == 251, (a, b)


def test_vector_of_the_design(kernel: str) -> None:
    data = np.frombuffer(bytes.fromhex("01 08 0f 16 1d 24 2b 32 39 40"), np.uint8).reshape(10, 1)
    for length in (1, 64, 200):
        parity = encoded(10, 6, np.repeat(data, length, axis=1), kernel)
        for column in parity.T:
            assert bytes(column).hex(" ") == "49 17 38 84 d7 31"


# ---- Encode


def test_every_coefficient_of_every_kernel(kernel: str) -> None:
    """Each kernel's tables: all 256 x 256 products, by way of an update of one column after the other."""
    data = np.arange(256, dtype=np.uint8)
    for r, i in [(1, i) for i in range(255)] + [(r, i) for r in range(2, 6) for i in range(251)]:
        parity = np.zeros((6 if r > 1 else 2, 256), np.uint8)
        rs = codec.RS(i + 1, len(parity), kernel=kernel)
        rs.update(i, None, data, [row if n == r else None for n, row in enumerate(parity)])
        assert np.array_equal(parity[r], np.asarray(FIELD(codec.coefficient(r, i)) * FIELD(data))), (r, i)


@pytest.mark.parametrize("m", range(1, 7))
def test_encode_is_the_product(kernel: str, m: int) -> None:
    for k in (*range(1, 18), 32, 64, 251, *((255,) if m <= 2 else ())):
        data = noise(k, LENGTH, k)
        coefficients = matrix(m, k) if m > 2 else matrix(2, k)[:m]
        assert np.array_equal(encoded(k, m, data, kernel), product(coefficients, data)), k


def test_small_m_are_prefixes_and_xor_and_pq(kernel: str) -> None:
    data = noise(9, LENGTH)
    six = encoded(9, 6, data, kernel)
    for m in range(1, 6):
        assert np.array_equal(encoded(9, m, data, kernel), six[:m])
    p, pq = np.empty((1, LENGTH), np.uint8), np.empty((2, LENGTH), np.uint8)
    codec.XOR(9, kernel=kernel).encode(data, p)
    codec.PQ(9, kernel=kernel).encode(data, pq)
    assert np.array_equal(p[0], np.bitwise_xor.reduce(data)) and np.array_equal(pq, six[:2])


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_any_length_at_any_alignment_and_nothing_beside_it(kernel: str, m: int) -> None:
    """Blocks at odd addresses of one memory, with guards between them that must not change."""
    rng = random.Random(m)
    for length in LENGTHS:
        for k in (1, 2, 3, 6):
            memory = noise(1, (k + m) * (length + 80), length)[0]
            starts = [i * (length + 80) + rng.randrange(1, 80) for i in range(k + m)]
            blocks = [memory[s : s + length] for s in starts]
            outside = np.ones(len(memory), bool)
            for s in starts[k:]:
                outside[s : s + length] = False
            before = memory.copy()
            codec.RS(k, m, kernel=kernel).encode(blocks[:k], blocks[k:])
            assert np.array_equal(memory[outside], before[outside])
            expected = product(matrix(max(m, 2), k)[:m], np.array(blocks[:k]).reshape(k, length)) if length else np.empty((m, 0))
            assert np.array_equal(np.array(blocks[k:]).reshape(m, length), expected), (length, k)


def test_null_data_is_zeros_and_null_parity_is_not_wanted(kernel: str) -> None:
    data = noise(5, LENGTH)
    for zeros in itertools.product((False, True), repeat=5):
        sparse = [None if z else row for z, row in zip(zeros, data, strict=True)]
        full = np.array([np.zeros(LENGTH, np.uint8) if row is None else row for row in sparse])
        for m, wanted in [(1, 1), (2, 1), (2, 2), (2, 3), (4, 3), (4, 0), (4, 0b1010), (6, 0b111111), (6, 0b100011)]:
            out = np.full((m, LENGTH), 0xEE, np.uint8)
            codec.RS(5, m, kernel=kernel).encode(sparse, [row if wanted >> r & 1 else None for r, row in enumerate(out)])
            expected = product(matrix(max(m, 2), 5)[:m], full)
            for r in range(m):
                assert np.array_equal(out[r], expected[r] if wanted >> r & 1 else np.full(LENGTH, 0xEE)), (zeros, m, wanted, r)


# ---- Recover


def lose(blocks: Bytes, lost: tuple[int, ...], k: int, m: int, kernel: str) -> Bytes:
    damaged = blocks.copy()
    damaged[list(lost)] = 0x5A
    codec.RS(k, m, kernel=kernel).recover(damaged, lost)
    return damaged


def stripe(k: int, m: int, length: int) -> Bytes:
    """Data of noise with the oracle's parity."""
    data = noise(k, length, k * 7 + m)
    return np.concatenate([data, product(matrix(max(m, 2), k)[:m], data)])


@pytest.mark.parametrize("k", range(2, 33))
def test_pq_bears_every_loss_of_two(kernel: str, k: int) -> None:
    blocks = stripe(k, 2, 150)
    for count in (1, 2):
        for lost in itertools.combinations(range(k + 2), count):
            assert np.array_equal(lose(blocks, lost, k, 2, kernel), blocks), lost


@pytest.mark.parametrize(("k", "m"), [(5, 1), (1, 2), (4, 3), (7, 3), (6, 4), (10, 4), (5, 5), (1, 6), (5, 6), (8, 6)])
def test_rs_bears_every_loss_of_m(kernel: str, k: int, m: int) -> None:
    blocks = stripe(k, m, 200)
    for count in range(m + 1):
        for lost in itertools.combinations(range(k + m), count):
            assert np.array_equal(lose(blocks, lost, k, m, kernel), blocks), lost


def test_wide_stripes_bear_random_losses(kernel: str) -> None:
    rng = random.Random(3)
    for k, m in ((251, 6), (100, 5), (255, 2), (255, 1)):
        blocks = stripe(k, m, LENGTH)
        for _ in range(10):
            lost = tuple(sorted(rng.sample(range(k + m), m)))
            assert np.array_equal(lose(blocks, lost, k, m, kernel), blocks), (k, m, lost)


def test_recover_with_zeros_and_unknown_and_unwanted_blocks(kernel: str) -> None:
    """k = 4, m = 3: each data block known, zeros or lost; each parity known, lost or unknown; lost blocks wanted or not: all of them."""
    k, m, length = 4, 3, 140
    rs = codec.RS(k, m, kernel=kernel)
    data = noise(k, length)
    for states in itertools.product("kzl", "kzl", "kzlw", "kl", "klu", "klu", "kluw"):
        values = data.copy()
        for i in range(k):
            if states[i] == "z":
                values[i] = 0
        whole = np.concatenate([values, product(matrix(m, k), values)])
        given: list[Bytes | None] = [None if state in "zuw" else row.copy() for state, row in zip(states, whole, strict=True)]
        lost = [i for i, state in enumerate(states) if state in "lw"]
        for i in lost:
            if (block := given[i]) is not None:
                block[:] = 0x77
        if sum(i < k for i in lost) > states[k:].count("k"):
            with pytest.raises(ValueError, match="cannot be had"):
                rs.recover(given, lost)
            continue
        rs.recover(given, lost)
        for i, block in enumerate(given):
            assert block is None or np.array_equal(block, whole[i]), (states, i)


@pytest.mark.parametrize("length", LENGTHS)
def test_recover_at_any_length(kernel: str, length: int) -> None:
    for m in (1, 2, 4, 6):
        memory = np.zeros((8 + m) * (length + 1) + 1, np.uint8)  # rows one byte apart: each at another alignment
        blocks = [memory[1 + i * (length + 1) :][:length] for i in range(8 + m)]
        for i, row in enumerate(stripe(8, m, length)) if length else ():
            blocks[i][:] = row
        before = memory.copy()
        lost = [1, 3, 4, 6, 8, 9][:m]
        for i in lost:
            blocks[i][:] = 0
        codec.RS(8, m, kernel=kernel).recover(blocks, lost)
        assert np.array_equal(memory, before)


def test_c_refuses_what_cannot_be_recovered() -> None:
    memory = noise(6, 16)
    vector = ffi.new("void *[]", [ffi.cast("void *", row.ctypes.data) for row in memory])
    before = memory.copy()

    def recover(*lost: int) -> int:
        indices = ffi.new("uint16_t[]", list(lost))
        return int(lib.rl_code_recover(lib.rl_kernel_find(ffi.NULL), 4, 2, 16, vector, len(lost), indices))

    for lost in ((0, 1, 2), (0, 1, 4), (1, 0), (1, 1), (6,), (0, 65535), (0, 1, 2, 3, 4, 5)):
        assert recover(*lost) == -22, lost
    vector[4] = ffi.NULL
    assert recover(0, 1) == -22
    assert np.array_equal(memory, before)


# ---- Update, locate


@pytest.mark.parametrize("m", range(1, 7))
def test_update_is_regenerate(kernel: str, m: int) -> None:
    for k in (1, 3, 12):
        data, new = noise(k, LENGTH), noise(k, LENGTH, 2)
        rs = codec.RS(k, m, kernel=kernel)
        parity = encoded(k, m, data)
        for i in range(k):
            rs.update(i, data[i], new[i], parity)
            data[i] = new[i]
            assert np.array_equal(parity, encoded(k, m, data)), i
        rs.update(0, data[0], None, parity)
        data[0] = 0
        assert np.array_equal(parity, encoded(k, m, data))
        rs.update(0, None, new[0], [row if r % 2 else None for r, row in enumerate(parity)])
        rs.update(0, None, None, parity)
        expected = encoded(k, m, data)
        data[0] = new[0]
        expected[1::2] = encoded(k, m, data)[1::2]
        assert np.array_equal(parity, expected)


def test_update_at_any_length(kernel: str) -> None:
    for length in LENGTHS:
        for m in range(1, 7):
            old, new = noise(2, length + 3)
            parity = noise(m, length + 5, m)
            before = parity.copy()
            codec.RS(9, m, kernel=kernel).update(5, old[3:], new[1:][:length], [row[2 : 2 + length] for row in parity])
            delta = (old[3:] ^ new[1:][:length]).reshape(1, length)
            if length:
                before[:, 2 : 2 + length] ^= product(matrix(max(m, 2), 9)[:m, 5:6], delta)
            assert np.array_equal(parity, before), (length, m)


@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 2), (8, 2), (255, 2), (8, 3), (251, 3), (6, 6), (251, 6)])
def test_locate_finds_each_single_liar(k: int, m: int) -> None:
    rng = random.Random(k)
    rs = codec.RS(k, m)
    for liar in range(k + m):
        blocks = stripe_cached(k, m)
        length = blocks.shape[1]
        for at in {0, length - 1}, set(rng.sample(range(length), 9)), set(range(length)):
            wrong = blocks.copy()
            for i in at:
                wrong[liar][i] ^= rng.randrange(1, 256)
            assert rs.locate(wrong[k:], encoded(k, m, wrong[:k])) == liar
    assert rs.locate(blocks[k:], encoded(k, m, blocks[:k])) == codec.AGREE


CACHE: dict[tuple[int, int], Bytes] = {}


def stripe_cached(k: int, m: int) -> Bytes:
    return CACHE.setdefault((k, m), stripe(k, m, 150))


def test_locate_does_not_accuse_where_two_lie() -> None:
    """Two liars at different bytes are never taken for one; at the same byte neither, from three parities on. With two parities, P and Q
    both off look like a data block's lie; where there is no such block it must say so."""
    for k, m in ((8, 2), (8, 3), (5, 6)):
        blocks = stripe_cached(k, m)
        for a, b in itertools.combinations(range(k + m), 2):
            wrong = blocks.copy()
            wrong[a][3] ^= 0x11
            wrong[b][90] ^= 0x3C
            assert codec.RS(k, m).locate(wrong[k:], encoded(k, m, wrong[:k])) == codec.UNEXPLAINED, (a, b)
            if m >= 3:
                wrong[b] = blocks[b]
                for error in range(1, 256):
                    wrong[b][3] = blocks[b][3] ^ error
                    assert codec.RS(k, m).locate(wrong[k:], encoded(k, m, wrong[:k])) == codec.UNEXPLAINED, (a, b, error)
    computed = np.zeros((2, 8), np.uint8)
    stored = computed.copy()
    stored[0][5] = 1
    stored[1][5] = lib.rl_gf_exp(8)
    assert codec.RS(9, 2).locate(stored, computed) == 8
    assert codec.RS(8, 2).locate(stored, computed) == codec.UNEXPLAINED


# ---- CRC-32C, the registry, the Python face


def crc_by_bits(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c() -> None:
    assert codec.crc32c(b"123456789") == 0xE3069283
    assert codec.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert codec.crc32c(b"\xff" * 32) == 0x62A8AB43
    data = noise(1, 700)[0].tobytes()
    for length in (*range(40), 255, 256, 257, 699):
        for start in (0, 1, 5):
            assert codec.crc32c(data[start : start + length]) == crc_by_bits(data[start : start + length]), (start, length)
    assert codec.crc32c(data[300:], codec.crc32c(data[:300])) == crc_by_bits(data)
    assert lib.rl_crc32c(0, b"", 0) == 0 and lib.rl_crc32c(7, ffi.NULL, 0) == 7


def test_other_machines_get_the_portable_code(tmp_path: Path) -> None:
    """Built as for a machine that is no x86: only the portable kernel is there, and CRC-32C goes by its tables."""
    sources = [str(Path(__file__).resolve().parent.parent / "csrc" / name) for name in ("parity.c", "parity_x86.c")]
    library = tmp_path / "portable.so"
    subprocess.run(["cc", "-std=gnu11", "-O1", "-DRL_PORTABLE", "-shared", "-fPIC", "-o", library, *sources], check=True)
    portable = ctypes.CDLL(str(library))
    portable.rl_kernel_name.restype = ctypes.c_char_p
    assert [portable.rl_kernel_name(i) for i in range(2)] == [b"portable", None]
    portable.rl_crc32c.restype = ctypes.c_uint32
    portable.rl_crc32c.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    data = noise(1, 700)[0].tobytes()
    for length in (*range(40), 255, 256, 699, 700):
        assert portable.rl_crc32c(0xFFFFFFFF, data, length) ^ 0xFFFFFFFF == crc_by_bits(data[:length]), length


def names() -> Iterator[str]:
    for i in itertools.count():
        name = lib.rl_kernel_name(i)
        if name == ffi.NULL:
            return
        yield ffi.string(name).decode()


def test_registry() -> None:
    everything = list(names())
    assert everything[0] == KERNELS[0] == "portable" and len(set(everything)) == len(everything)
    assert set(KERNELS) <= set(everything)
    for name in everything:
        found = lib.rl_kernel_find(name.encode())
        assert (found != ffi.NULL) == (name in KERNELS)
        assert found == ffi.NULL or ffi.string(lib.rl_kernel_name_of(found)).decode() == name
    assert lib.rl_kernel_find(b"abacus") == ffi.NULL
    assert codec.RS(2, 1).kernel == KERNELS[-1]
    assert repr(codec.PQ(8, kernel="portable")) == "PQ(k=8, m=2, kernel='portable')"


def test_kinds_of_buffers() -> None:
    """bytes, bytearray, memoryview, numpy of any type, mixed; a 2-D array; a generator of blocks."""
    words = np.arange(64, dtype="<u4").reshape(4, 16)
    expected = encoded(4, 2, words.view(np.uint8))
    mixed = [words[0].tobytes(), bytearray(words[1]), memoryview(words[2]), words[3]]
    p, q = bytearray(64), np.zeros(8, np.float64)
    codec.PQ(4).encode(mixed, [p, q])
    assert [bytes(p), q.tobytes()] == [row.tobytes() for row in expected]
    out = np.zeros((2, 16), dtype="<u4")
    codec.PQ(4).encode(words, out)
    assert out.tobytes() == expected.tobytes()
    out[:] = 0
    codec.PQ(4).encode((block for block in mixed), out)
    assert out.tobytes() == expected.tobytes()
    same = words[0]
    codec.PQ(2).encode([same, same], out)  # columns that are only read may be one and the same
    assert not out[0].any()


def test_bad_input_names_the_value() -> None:
    block, out = bytes(8), bytearray(8)
    memory = bytearray(32)
    view = memoryview(memory)
    cases = [
        (lambda: codec.RS(0, 2), "k 0"),
        (lambda: codec.RS(252, 3), "k 252"),
        (lambda: codec.RS(256, 2), "k 256"),
        (lambda: codec.RS(4, 7), "m 7"),
        (lambda: codec.RS(4, 0), "m 0"),
        (lambda: codec.RS(4, 2, kernel="abacus"), "abacus.*portable"),
        (lambda: codec.coefficient(6, 0), "row 6"),
        (lambda: codec.coefficient(2, 251), "index 251"),
        (lambda: codec.crc32c(b"", -1), "value -1"),
        (lambda: codec.XOR(3).encode([block] * 2, [out]), "data: 2 blocks, 3"),
        (lambda: codec.XOR(2).encode([block, bytes(9)], [out]), r"data\[1\]: 9 bytes.*8"),
        (lambda: codec.XOR(2).encode([block, block], [bytearray(7)]), r"out\[0\]: 7 bytes"),
        (lambda: codec.XOR(2).encode([block, block], [block]), r"out\[0\]: a bytes is no writable"),
        (lambda: codec.XOR(2).encode([block, 3], [out]), r"data\[1\]: a int"),
        (lambda: codec.XOR(2).encode(3, [out]), "data: a int"),
        (lambda: codec.XOR(2).encode(block, [out]), r"data: a buffer of shape \(8,\), \(2, length\)"),
        (lambda: codec.XOR(2).encode([block, np.zeros(16, np.uint8)[::2]], [out]), r"data\[1\]: a ndarray is no C-contiguous"),
        (lambda: codec.XOR(2).encode(np.zeros((2, 8), np.uint8).T, [out]), "shape"),
        (lambda: codec.XOR(2).encode([view[:8], view[8:16]], [view[12:20]]), r"overlaps data\[1\]|overlaps out\[0\]"),
        (lambda: codec.XOR(2).encode([view[:8], view[8:16]], [view[:8]]), r"overlaps"),
        (lambda: codec.PQ(1).encode([view[:8]], [view[8:16], view[15:23]]), r"out\[1\]: overlaps out\[0\]"),
        (lambda: codec.PQ(2).recover([block, block, block, block], [1]), r"blocks\[1\]: a bytes is no writable"),
        (lambda: codec.PQ(2).recover([block, out, block, block], [4]), "lost 4"),
        (lambda: codec.PQ(2).recover([block, out, block, block], [-1]), "lost -1"),
        (lambda: codec.PQ(3).recover([bytearray(8) for _ in range(5)], [0, 1, 2]), r"lost \[0, 1, 2\]: 3 data blocks.* 2 known"),
        (lambda: codec.XOR(2).update(2, block, block, [out]), "index 2"),
        (lambda: codec.XOR(2).update(0, block, bytes(3), [out]), "new: 3 bytes"),
        (lambda: codec.XOR(2).locate([block], [block]), "m 1"),
        (lambda: codec.PQ(2).locate([block, None], [block, block]), r"stored\[1\]"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not any(out) and not any(memory)
