"""Throughput of the codes, every kernel this CPU runs, against ISA-L (Debian: libisal2).

    python bench/parity.py [--data 8] [--seconds 0.5] [--json FILE] [--only pq]

Figures are GB/s (10^9) of *data* read: k blocks an operation, parity not counted. Rivals of one line are run in turn, round by
round, so that a noisy machine hits them alike; the figure is the median of the rounds, and the ratio is the median of the rounds'
ratios to ISA-L at the same instruction set (portable and avx512gfni: to what ISA-L itself chooses, which is AVX-512 here). Both
sides are called through the same libffi path (function pointers), so the call's cost (about 0.5 us) is alike. Blocks are 64-byte
aligned, as ISA-L demands. It stores past the cache (xor and pq), raidlib does not: the parity is written out next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cffi
import numpy as np

from raidlib import codec
from raidlib.engine import ffi, lib

ISAL = """
int xor_gen(int, int, void **); int xor_gen_sse(int, int, void **); int xor_gen_avx(int, int, void **);
int xor_gen_avx512(int, int, void **);
int pq_gen(int, int, void **); int pq_gen_sse(int, int, void **); int pq_gen_avx2(int, int, void **);
int pq_gen_avx512(int, int, void **);
void ec_init_tables(int, int, unsigned char *, unsigned char *);
void ec_encode_data(int, int, int, unsigned char *, unsigned char **, unsigned char **);
void ec_encode_data_sse(int, int, int, unsigned char *, unsigned char **, unsigned char **);
void ec_encode_data_avx2(int, int, int, unsigned char *, unsigned char **, unsigned char **);
void ec_encode_data_update(int, int, int, int, unsigned char *, unsigned char *, unsigned char **);
void ec_encode_data_update_sse(int, int, int, int, unsigned char *, unsigned char *, unsigned char **);
void ec_encode_data_update_avx2(int, int, int, int, unsigned char *, unsigned char *, unsigned char **);
unsigned int crc32_iscsi(unsigned char *, int, unsigned int);
"""
# Our kernel -> ISA-L's suffix of the same instruction set; none: what ISA-L itself chooses. (Its xor for AVX2 is named _avx.)
SUFFIX = {"portable": "", "ssse3": "_sse", "avx2": "_avx2", "avx512gfni": ""}

Run = Callable[[], object]


def blocks(count: int, length: int) -> tuple[Any, list[int]]:
    """`count` blocks of `length` bytes of noise, 64-byte aligned, as one array (to keep alive) and their addresses."""
    memory = np.random.default_rng(1).integers(0, 256, count * length + 64, dtype=np.uint8)
    base = -(-memory.ctypes.data // 64) * 64
    return memory, [base + i * length for i in range(count)]


def pointers(foreign: Any, kind: str, addresses: list[int]) -> Any:
    """A C vector of pointers, made by the FFI of the library that it is for."""
    return foreign.new(f"{kind}[]", [foreign.cast(kind, address) for address in addresses])


class Lines:
    """The rivals of each line of the table: (line, block length, data bytes an operation, {rival: function})."""

    def __init__(self, data: int) -> None:
        self.data = data
        self.abi = cffi.FFI()
        self.abi.cdef(ISAL)
        try:
            self.isal = self.abi.dlopen("libisal.so.2")
        except OSError:
            print("libisal.so.2 is missing (Debian: libisal2): no ratios", file=sys.stderr)
            self.isal = None
        self.kernels = {name: lib.rl_kernel_find(name.encode()) for name in codec.kernels()}
        self.keep: list[Any] = []

    def ours(self, name: str) -> Any:
        """Our function as a plain pointer: the same way of calling as ISA-L's."""
        return ffi.addressof(lib, name)

    def theirs(self, name: str, kernel: str) -> Any:
        suffix = SUFFIX[kernel]
        if name == "xor_gen" and suffix == "_avx2":
            suffix = "_avx"
        return getattr(self.isal, name + suffix)

    def each(self, only: str, length: int) -> Iterator[tuple[str, int, dict[str, Run]]]:
        for what in ("xor", "pq", "rs4", "rs6", "recover2", "update2", "crc32c"):
            if only and only != what:
                continue
            for kernel in self.kernels if what != "crc32c" else ["best"]:
                runs, size = getattr(self, what[:-1] if what[-1].isdigit() else what)(what, kernel, length)
                yield f"{what:9}{kernel:11}", size, runs

    def generate(self, parities: int, kernel: str, length: int) -> tuple[Run, list[int]]:
        memory, at = blocks(self.data + parities, length)
        vector = pointers(ffi, "void *", at)
        self.keep += [memory, vector]
        function, handle, k = self.ours("rl_code_generate"), self.kernels[kernel], self.data
        return lambda: function(handle, k, parities, length, vector), at

    def xor(self, what: str, kernel: str, length: int) -> tuple[dict[str, Run], int]:
        run, at = self.generate(1 if what == "xor" else 2, kernel, length)
        runs = {"raidlib": run}
        if self.isal:
            vector, theirs = pointers(self.abi, "void *", at), self.theirs("xor_gen" if what == "xor" else "pq_gen", kernel)
            runs["isa-l"] = lambda: theirs(len(at), length, vector)
        return runs, self.data * length

    pq = xor

    def tables(self, rows: int) -> Any:
        matrix = bytes(lib.rl_code_coefficient(r, i) for r in range(rows) for i in range(self.data))
        tables = self.abi.new("unsigned char[]", 32 * rows * self.data)
        self.isal.ec_init_tables(self.data, rows, self.abi.new("unsigned char[]", matrix), tables)
        return tables

    def rs(self, what: str, kernel: str, length: int) -> tuple[dict[str, Run], int]:
        m, k = int(what[-1]), self.data
        run, at = self.generate(m, kernel, length)
        runs = {"raidlib": run}
        if self.isal:
            tables, theirs = self.tables(m), self.theirs("ec_encode_data", kernel)
            data, parity = (pointers(self.abi, "unsigned char *", part) for part in (at[:k], at[k:]))
            runs["isa-l"] = lambda: theirs(length, k, m, tables, data, parity)
        return runs, k * length

    def recover(self, what: str, kernel: str, length: int) -> tuple[dict[str, Run], int]:
        """Two lost data blocks in P+Q. ISA-L: the same product (its tables made beforehand)."""
        k = self.data
        memory, at = blocks(k + 2, length)
        vector, lost = pointers(ffi, "void *", at), ffi.new("uint16_t[]", [1, k - 2])
        self.keep += [memory, vector, lost]
        function, handle = self.ours("rl_code_recover"), self.kernels[kernel]
        runs: dict[str, Run] = {"raidlib": lambda: function(handle, k, 2, length, vector, 2, lost)}
        if self.isal:
            known = [a for i, a in enumerate(at) if i not in (1, k - 2)]
            tables, theirs = self.tables(2), self.theirs("ec_encode_data", kernel)
            data, out = (pointers(self.abi, "unsigned char *", part) for part in (known, [at[1], at[k - 2]]))
            runs["isa-l"] = lambda: theirs(length, k, 2, tables, data, out)
        return runs, k * length

    def update(self, what: str, kernel: str, length: int) -> tuple[dict[str, Run], int]:
        """P and Q of one changed block. ISA-L has no (old ^ new), it adds a difference: one stream fewer to read."""
        memory, at = blocks(4, length)
        vector = pointers(ffi, "void *", at[2:])
        old, new = ffi.cast("void *", at[0]), ffi.cast("void *", at[1])
        self.keep += [memory, vector]
        function, handle = self.ours("rl_code_update"), self.kernels[kernel]
        runs: dict[str, Run] = {"raidlib": lambda: function(handle, 3, 2, length, old, new, vector)}
        if self.isal:
            tables, theirs, k = self.tables(2), self.theirs("ec_encode_data_update", kernel), self.data
            delta, out = self.abi.cast("unsigned char *", at[0]), pointers(self.abi, "unsigned char *", at[2:])
            runs["isa-l"] = lambda: theirs(length, k, 2, 3, tables, delta, out)
        return runs, length

    def crc32c(self, what: str, kernel: str, length: int) -> tuple[dict[str, Run], int]:
        memory, at = blocks(1, length)
        self.keep.append(memory)
        ours, ours_at = self.ours("rl_crc32c"), ffi.cast("void *", at[0])
        runs: dict[str, Run] = {"raidlib": lambda: ours(0, ours_at, length)}
        if self.isal:
            theirs_at, theirs = self.abi.cast("unsigned char *", at[0]), self.isal.crc32_iscsi
            runs["isa-l"] = lambda: theirs(theirs_at, length, 0)
        return runs, length


def measure(runs: dict[str, Run], size: int, seconds: float) -> tuple[dict[str, float], float | None]:
    """Median GB/s of each rival, and the median ratio of the first to the second."""
    repeat = max(1, int(2e7 / size))  # about 1 ms a turn
    names = list(runs)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    deadline = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < deadline or turn < 9:
        for name in names if turn % 2 else reversed(names):
            run = runs[name]
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            rates[name].append(repeat * size / (time.perf_counter() - start) / 1e9)
        turn += 1
    ratio = None
    if len(names) == 2:
        ratio = statistics.median(a / b for a, b in zip(rates[names[0]], rates[names[1]], strict=True))
    return {name: statistics.median(values) for name, values in rates.items()}, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=8, help="data blocks of a stripe")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    parser.add_argument("--only", default="", help="xor, pq, rs4, rs6, recover2, update2 or crc32c")
    parser.add_argument("--json", help="write the figures there")
    args = parser.parse_args()
    results = []
    print(f"{'code':9}{'kernel':11}{'block':>9}{'raidlib':>10}{'isa-l':>10}   ratio   (GB/s of data, k = {args.data})")
    for length in (4096, 65536, 1 << 20):
        lines = Lines(args.data)
        for line, size, runs in lines.each(args.only, length):
            rates, ratio = measure(runs, size, args.seconds)
            shown = "".join(f"{rates.get(name, float('nan')):10.1f}" for name in ("raidlib", "isa-l"))
            print(f"{line}{length:>9}{shown}   {'' if ratio is None else f'{ratio:5.2f}'}", flush=True)
            code, kernel = line.split()
            results.append({"code": code, "kernel": kernel, "block_bytes": length, "data": args.data, "gb_per_s": rates, "ratio": ratio})
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"schema": "raidlib.bench.parity/1", "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
