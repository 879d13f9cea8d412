"""What a write-intent bitmap costs, and what it saves: against the same array without one, interleaved in one run.

    .venv/bin/python bench/bitmap.py [--rounds 11] [--mib 256] [--folder /dev/shm] [--levels 1,5,6,10]

Rates: sequential writes (1 MiB, a flush at the end) and random ones (4 KiB, a flush at the end), each as a ratio to policy resync; targets
0.95 and 0.8. With a bitmap every write is in a region that was clean when the round began: what is measured has the marks in it.

Plain: the very requests that reached the members, once more, as pwrite and fdatasync on plain files in the same order; how much of its
time the array spends on them. On a disk that is what the bitmap's own flushes cost.

Counts: writes and flushes of one 4 KiB write into a clean region, into a marked one, and of the marks of becoming active and clean, per
member; docs/format.md says what the least is.

Re-add: of an array of 1 GiB, of which 1 % changed while a member was away, the bytes that are written to that member; target 3 %.
"""

import argparse
import os
import random
import statistics
import tempfile
import time

import raidlib
from raidlib import lab

REQUEST = 1 << 20
MEMBERS = {"1": 2, "5": 4, "6": 5, "10": 4}
KINDS = ("resync", "bitmap")


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def writes(total, scattered):
    """(data, offset) of each: sequential ones of 1 MiB, or random ones of 4 KiB."""
    data = os.urandom(REQUEST)
    if not scattered:
        return [(data, offset) for offset in range(0, total, REQUEST)]
    draw = random.Random(7)
    return [(data[:4096], draw.randrange(total // 4096) * 4096) for _ in range(4000)]


def write(array, requests):
    for data, offset in requests:
        array.pwrite(data, offset)
    array.flush()


class Rates:
    """Two arrays of one shape that differ in the policy."""

    def __init__(self, level, total, folder):
        n, data = MEMBERS[level], MEMBERS[level] - {"1": 1, "5": 1, "6": 2, "10": 2}[level]
        self.arrays = {
            kind: raidlib.create(
                f"{folder}/{level}-{kind}", level=level, raid_devices=n, chunk=None if level == "1" else "64K",
                size=total // data + (8 << 20), consistency_policy=kind, bitmap_chunk="4M" if kind == "bitmap" else None,
            )
            for kind in KINDS
        }  # fmt: skip
        for array in self.arrays.values():
            write(array, writes(total, scattered=False))

    def clear(self):
        """Waits until no region is marked."""
        while self.arrays["bitmap"].status().bitmap.dirty:
            time.sleep(0.2)

    def ratio(self, requests, rounds):
        ratios = []
        for number in range(rounds):
            self.clear()
            spent = {kind: timed(lambda kind=kind: write(self.arrays[kind], requests)) for kind in KINDS[:: 1 if number % 2 else -1]}
            ratios.append(spent["resync"] / spent["bitmap"])
        return statistics.median(ratios)

    def close(self):
        for array in self.arrays.values():
            array.close()


def replayed(level, total, folder, rounds, scattered):
    """The array's time against that of its own requests on plain files: sequential or random writes, a flush at the end."""
    n, requests, ratios = MEMBERS[level], writes(total, scattered), []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            recorder, paths = lab.Recorder(4 * total + (64 << 20)), [f"{place}/member-{number}" for number in range(n)]
            for path in paths:
                with open(path, "wb") as file:
                    file.truncate(total + (16 << 20))
            devices = [lab.FaultyDevice(path, recorder=recorder) for path in paths]
            chunk = None if level == "1" else "64K"
            array = raidlib.create(devices, level=level, chunk=chunk, assume_clean=True, bitmap="internal", bitmap_chunk="4M")
            write(array, requests)
            while array.status().bitmap.dirty:
                time.sleep(0.2)
            recorder.clear()
            spent = timed(lambda array=array: write(array, requests))
            entries = [(e, recorder.data(e.index) if e.op == "write" else b"") for e in recorder.entries()]
            plain = [os.open(path + ".plain", os.O_RDWR | os.O_CREAT) for path in paths]
            for file, path in zip(plain, paths, strict=True):
                os.truncate(file, os.path.getsize(path))
            for again in range(2):  # the first gives the files their blocks
                took = time.perf_counter()
                for entry, piece in entries:
                    if entry.op == "write":
                        os.pwrite(plain[entry.device], piece, entry.offset)
                    else:
                        os.fdatasync(plain[entry.device])
                ratios += [(time.perf_counter() - took) / spent] * again
            for file in plain:
                os.close(file)
            array.close()
            for device in devices:
                device.close()
            recorder.close()
    return statistics.median(ratios)


def counts(level):
    """Of each member (writes, flushes, bytes): going active, a write into a clean region, one into a marked region, going clean."""
    recorder = lab.Recorder("64M")
    devices = [lab.FaultyDevice(raidlib.MemoryDevice("64M"), recorder=recorder) for _ in range(MEMBERS[level])]
    found = []

    def note():
        entries = [e for e in recorder.entries() if e.device == 0]
        writes = [e for e in entries if e.op == "write"]
        found.append((len(writes), len(entries) - len(writes), sum(e.length for e in writes)))
        recorder.clear()

    chunk = None if level == "1" else "64K"
    with raidlib.create(devices, level=level, chunk=chunk, bitmap="internal", bitmap_chunk="1M", assume_clean=True) as array:
        recorder.clear()
        for offset in (0, 24 << 20, (24 << 20) + 4096):
            array.pwrite(os.urandom(4096), offset)
            note()
        while array.status().state != "clean":
            time.sleep(0.05)
        note()
    return found


def readded(level):
    """The share of the array that is written to a member that comes back after 1 % has changed, in one place and scattered."""
    shares = []
    for pieces in (1, 16):
        n = MEMBERS[level]
        data = n - {"1": 1, "5": 1, "6": 2, "10": 2}[level]
        devices = [lab.FaultyDevice(raidlib.MemoryDevice((1 << 30) // data + (64 << 20))) for _ in range(n)]
        chunk = None if level == "1" else "64K"
        options = {"bitmap": "internal", "bitmap_chunk": "64K", "size": (1 << 30) // data}
        with raidlib.create(devices, level=level, chunk=chunk, assume_clean=True, **options) as array:
            draw, changed = random.Random(pieces), array.size // 100 // pieces
            array.fail(1)
            for _ in range(pieces):
                array.pwrite(os.urandom(changed), draw.randrange(array.size - changed))
            array.remove(devices[1])
            recorder = lab.Recorder("256M")
            back = lab.FaultyDevice(devices[1], recorder=recorder)
            array.re_add(back).wait()
            written = sum(e.length for e in recorder.entries() if e.op == "write")
            shares.append(written / array.size)
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--levels", default="1,5,6,10")
    options = parser.parse_args()
    for level in options.levels.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rates = Rates(level, options.mib << 20, folder)
            sequential, scattered = (rates.ratio(writes(options.mib << 20, kind), options.rounds) for kind in (False, True))
            rates.close()
            plain = [replayed(level, options.mib << 20, folder, max(1, options.rounds // 3), kind) for kind in (False, True)]
        print(f"level {level}: sequential {sequential:.2f}, 4K random {scattered:.2f} of policy resync; ", end="")
        print("the same requests on plain files take {:.2f} and {:.2f} of its time".format(*plain))
        told = ("active and clean region", "clean region", "marked region", "clean mark")
        print("  of member 0, (writes, flushes, bytes): " + ", ".join(f"{what} {c}" for what, c in zip(told, counts(level), strict=True)))
        print("  re-add after 1 %: " + ", ".join(f"{share:.2%}" for share in readded(level)) + " (in one place, in 16)", flush=True)


if __name__ == "__main__":
    main()
