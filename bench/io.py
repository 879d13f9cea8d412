"""Array I/O against plain pread/pwrite of the same number of bytes, interleaved in one run.

Level 5 of 4+1, chunk 64K, members in tmpfs, requests of 1 MiB, one thread.

    .venv/bin/python bench/io.py [--rounds 31] [--mib 256]

Prints the median ratios: reads (target 0.7 or more) and aligned full-stripe writes (target 0.5 or more; parity is counted: the reference
writes 5/4 of the bytes).
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import raidlib

REQUEST = 1 << 20


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--mib", type=int, default=128)
    options = parser.parse_args()
    total = options.mib << 20
    data = os.urandom(REQUEST)
    buffer = bytearray(REQUEST)
    ratios = {"read": [], "write": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        plain = os.open(f"{folder}/plain", os.O_RDWR | os.O_CREAT)
        with raidlib.create(f"{folder}/array", level=5, raid_devices=5, chunk="64K", size=total // 4 + (8 << 20)) as array:

            def array_write():
                for offset in range(0, total, REQUEST):
                    array.pwrite(data, offset)

            def plain_write():
                for offset in range(0, total * 5 // 4, REQUEST):
                    os.pwrite(plain, data, offset)

            def array_read():
                for offset in range(0, total, REQUEST):
                    array.preadinto(buffer, offset)

            def plain_read():
                for offset in range(0, total, REQUEST):
                    os.preadv(plain, [buffer], offset)

            array_write()
            plain_write()
            for _ in range(options.rounds):
                ratios["write"].append(timed(plain_write) / timed(array_write))
                ratios["read"].append(timed(plain_read) / timed(array_read))
        os.close(plain)
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in ratios.items()}))


if __name__ == "__main__":
    main()
