"""The codes by themselves, on any buffers, numpy included.

    RS(k=10, m=4).encode(data, out)

One code with three names: RS(k, m) with m = 1..6 parity blocks; XOR(k) is RS(k, 1), the parity of RAID 4 and 5; PQ(k) is
RS(k, 2), that of RAID 6. All work in GF(2^8), polynomial 0x11d, generator 2; parity `r` of data block `i` has the coefficient
`coefficient(r, i)`: row 0 is 1, row 1 is 2^i (H. P. Anvin, "The mathematics of RAID-6"), rows 2.. an extended Cauchy matrix, scaled
so that its first column is 1 (see csrc/parity.c for why any m blocks may be lost).

Blocks. A *vector* is a sequence of blocks, or one C-contiguous 2-D buffer with a block in each row. A block is any C-contiguous
buffer: bytes, bytearray, memoryview, mmap, a numpy array of any type (its bytes count). All blocks of one call are equally long, any
length, any alignment; multiples of 64 bytes are fastest. The order is always data 0..k-1, then parity k..k+m-1. What is written must
be writable and overlap nothing else of the call. Nothing is copied, nothing is kept, and the GIL is released while the engine works.

Whatever does not fit is a UsageError (a ValueError) that names the value; then nothing was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from raidlib.engine import ffi, lib
from raidlib.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Vector = Sequence[Buffer | None] | Buffer

__all__ = ["AGREE", "PQ", "RS", "UNEXPLAINED", "XOR", "coefficient", "crc32c", "kernels"]

AGREE = -1
"""locate(): stored and computed parity are the same."""
UNEXPLAINED = -2
"""locate(): no single block explains the difference."""

DATA_MAX = 255
DATA_MAX_RS = 251  # from three parities on


def kernels() -> tuple[str, ...]:
    """Names of the kernels that this CPU runs, slowest first ("portable" is always there). Each is a valid `kernel=`."""
    names: list[str] = []
    while lib.rl_kernel_name(len(names)) != ffi.NULL:
        names.append(ffi.string(lib.rl_kernel_name(len(names))).decode())
    return tuple(name for name in names if lib.rl_kernel_find(name.encode()) != ffi.NULL)


def coefficient(row: int, index: int) -> int:
    """Coefficient of data block `index` in parity `row`: 0..255."""
    limit = DATA_MAX if row < 2 else DATA_MAX_RS
    if not 0 <= row < lib.RL_PARITY_MAX:
        raise UsageError(f"row {row}: there are parities 0..{lib.RL_PARITY_MAX - 1}")
    if not 0 <= index < limit:
        raise UsageError(f"index {index}: parity {row} takes data blocks 0..{limit - 1}")
    return int(lib.rl_code_coefficient(row, index))


def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC-32C of `data` (RFC 3720); `value` is that of what came before it, 0 at the start. As zlib.crc32, but Castagnoli's polynomial."""
    if not 0 <= value < 1 << 32:
        raise UsageError(f"value {value}: a CRC-32C is 0..2^32-1")
    block = _from_buffer(data, "data", writable=False)
    return int(lib.rl_crc32c(value ^ 0xFFFFFFFF, block, len(block))) ^ 0xFFFFFFFF


def _from_buffer(block: Any, name: str, *, writable: bool) -> Any:
    """A cffi view of the block's bytes, which keeps it alive and unmoved."""
    try:
        return ffi.from_buffer("uint8_t[]", block, require_writable=writable)
    except (TypeError, ValueError, BufferError) as error:
        need = "writable, C-contiguous" if writable else "C-contiguous"
        raise UsageError(f"{name}: a {type(block).__name__} is no {need} buffer ({error})") from None


class _Blocks:
    """The blocks of one call: collects their addresses, and checks that all have one length and that no output overlaps anything."""

    def __init__(self) -> None:
        self.length: int | None = None
        self._spans: list[tuple[int, bool, str]] = []  # address, is written, name
        self._keep: list[Any] = []  # the views: they hold the buffers

    def take(self, block: Any, name: str, *, writable: bool) -> Any:
        """One block; None stays NULL."""
        if block is None:
            return ffi.NULL
        view = _from_buffer(block, name, writable=writable)
        self._keep.append(view)
        return self._note(ffi.cast("uint8_t *", view), len(view), name, writable)

    def vector(self, blocks: Any, count: int, name: str, writable: Sequence[bool]) -> list[Any]:
        """`count` blocks: a sequence, or the rows of one 2-D buffer (all written if one is)."""
        if isinstance(blocks, list | tuple):
            if len(blocks) != count:
                raise UsageError(f"{name}: {len(blocks)} blocks, {count} are needed")
            return [self.take(block, f"{name}[{i}]", writable=writable[i]) for i, block in enumerate(blocks)]
        try:
            shape = memoryview(blocks).shape or ()
        except TypeError:
            return self.vector(_as_list(blocks, name), count, name, writable)
        if len(shape) != 2 or shape[0] != count:
            raise UsageError(f"{name}: a buffer of shape {shape}, ({count}, length) is needed")
        view = _from_buffer(blocks, name, writable=any(writable))
        self._keep.append(view)
        length, base = len(view) // count, ffi.cast("uint8_t *", view)
        return [self._note(base + i * length, length, f"{name}[{i}]", writable[i]) for i in range(count)]

    def _note(self, address: Any, length: int, name: str, writable: bool) -> Any:
        if self.length is None:
            self.length = length
        elif self.length != length:
            raise UsageError(f"{name}: {length} bytes, the blocks before it have {self.length}")
        self._spans.append((int(ffi.cast("uintptr_t", address)), writable, name))
        return address

    def check(self) -> int:
        """No written block overlaps another; then the length of the blocks, 0 where all are None."""
        length = self.length or 0
        end, last = 0, ""  # of what lies lowest so far
        written_end, written = 0, ""
        for address, writable, name in sorted(self._spans):
            clash = last if writable and address < end else written if address < written_end else ""
            if clash and length:
                raise UsageError(f"{name}: overlaps {clash}")
            end, last = address + length, name
            if writable:
                written_end, written = end, name
        return length


def _as_list(blocks: Any, name: str) -> list[Any]:
    try:
        return list(blocks)
    except TypeError:
        raise UsageError(f"{name}: a {type(blocks).__name__} is neither a sequence of buffers nor a 2-D buffer") from None


class RS:
    """`k` data blocks and `m` parity blocks, any m of which may be lost. Immutable, safe to use from many threads.

    k: 1..255 for m = 1, 2; 1..251 for m = 3..6. kernel: one of kernels(); None: the fastest.
    """

    __slots__ = ("_kernel", "k", "m")

    def __init__(self, k: int, m: int, *, kernel: str | None = None) -> None:
        if not 1 <= m <= lib.RL_PARITY_MAX:
            raise UsageError(f"m {m}: 1..{lib.RL_PARITY_MAX} parity blocks are possible")
        limit = DATA_MAX if m <= 2 else DATA_MAX_RS
        if not 1 <= k <= limit:
            raise UsageError(f"k {k}: 1..{limit} data blocks are possible with {m} parity blocks")
        self.k = k
        self.m = m
        self._kernel = lib.rl_kernel_find(ffi.NULL if kernel is None else kernel.encode())
        if self._kernel == ffi.NULL:
            raise UsageError(f"kernel {kernel!r}: this CPU runs {', '.join(kernels())}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k}, m={self.m}, kernel={self.kernel!r})"

    @property
    def kernel(self) -> str:
        """Name of the kernel in use."""
        return str(ffi.string(lib.rl_kernel_name_of(self._kernel)).decode())

    def encode(self, data: Vector, out: Vector) -> None:
        """Computes parity from data.

        data: k blocks; None is a block of zeros. out: m blocks, written; None is a parity that is not wanted.
        """
        blocks = _Blocks()
        vector = blocks.vector(data, self.k, "data", [False] * self.k) + blocks.vector(out, self.m, "out", [True] * self.m)
        lib.rl_code_generate(self._kernel, self.k, self.m, blocks.check(), ffi.new("void *[]", vector))

    def recover(self, blocks: Vector, lost: Iterable[int]) -> None:
        """Computes the lost blocks from the others, in place.

        blocks: k data blocks, then m parity blocks. lost: indices 0..k+m-1 of the blocks that are written; whatever they hold is not
        read, and where one is None it is lost but not wanted. Among the others a data block None is zeros, a parity block None is not
        known and not used. UsageError if more data blocks are lost than parity blocks are known.
        """
        indices = sorted(set(lost))
        for index in indices:
            if not 0 <= index < self.k + self.m:
                raise UsageError(f"lost {index}: the blocks are 0..{self.k + self.m - 1}")
        taken = _Blocks()
        vector = taken.vector(blocks, self.k + self.m, "blocks", [i in indices for i in range(self.k + self.m)])
        length = taken.check()
        status = lib.rl_code_recover(
            self._kernel, self.k, self.m, length, ffi.new("void *[]", vector), len(indices), ffi.new("uint16_t[]", indices)
        )
        if status < 0:
            known = sum(block != ffi.NULL and i not in indices for i, block in enumerate(vector[self.k :], self.k))
            data = sum(i < self.k for i in indices)
            raise UsageError(f"lost {indices}: {data} data blocks cannot be had from {known} known parity blocks")

    def update(self, index: int, old: Buffer | None, new: Buffer | None, parity: Vector) -> None:
        """Brings parity up to date, in place, after data block `index` (0..k-1) changed from `old` to `new`.

        old, new: one block each; None is zeros. parity: m blocks; None is one that is not wanted.
        """
        if not 0 <= index < self.k:
            raise UsageError(f"index {index}: the data blocks are 0..{self.k - 1}")
        blocks = _Blocks()
        old_block = blocks.take(old, "old", writable=False)
        new_block = blocks.take(new, "new", writable=False)
        vector = blocks.vector(parity, self.m, "parity", [True] * self.m)
        lib.rl_code_update(self._kernel, index, self.m, blocks.check(), old_block, new_block, ffi.new("void *[]", vector))

    def locate(self, stored: Vector, computed: Vector) -> int:
        """Which single block explains that stored parity differs from parity computed anew from the stored data? Needs m >= 2.

        stored, computed: m blocks each, none None. Returns the block's index, 0..k+m-1, if one and the same explains every byte that
        differs; AGREE if none differs; UNEXPLAINED otherwise. Evidence, not proof: with m = 2 some errors in two blocks look like one
        in a third.
        """
        if self.m < 2:
            raise UsageError(f"m {self.m}: one parity tells that a block is wrong, not which")
        blocks = _Blocks()
        vectors = [blocks.vector(v, self.m, name, [False] * self.m) for v, name in ((stored, "stored"), (computed, "computed"))]
        for vector, name in zip(vectors, ("stored", "computed"), strict=True):
            if ffi.NULL in vector:
                raise UsageError(f"{name}[{vector.index(ffi.NULL)}]: None, but all parities are needed")
        pointers = [ffi.new("void *[]", vector) for vector in vectors]
        return int(lib.rl_code_locate(self.k, self.m, blocks.check(), pointers[0], pointers[1]))


class XOR(RS):
    """One parity, P: RAID 4 and 5. RS(k, 1)."""

    __slots__ = ()

    def __init__(self, k: int, *, kernel: str | None = None) -> None:
        super().__init__(k, 1, kernel=kernel)


class PQ(RS):
    """Two parities, P and Q: RAID 6. RS(k, 2)."""

    __slots__ = ()

    def __init__(self, k: int, *, kernel: str | None = None) -> None:
        super().__init__(k, 2, kernel=kernel)
