"""Requests a second of `volume`: the C server (raidlib._fuse) against a Python one (mfusepy), both on memory.

    python bench/mount.py [--rounds 9] [--seconds 2] [--json FILE]

4 KiB random reads, 4 jobs with 16 requests in flight each, direct (libaio: FUSE passes asynchronous direct I/O on). The load is fio's,
because a generator in Python would be slower than the server; without fio, a C program with 4 x 16 threads, each in pread(), does the
same by other means. The Python server is a file system of one file in a bytearray, run with threads (mfusepy's default) and with
`nothreads`, which spares it the fight for the GIL; the ratio is against the fastest of them. Each server is a process of its own. The
rounds go through all of them in turn, because machines drift; what counts is the median. Needs /dev/fuse, fusermount3, gcc and mfusepy
(extra `test`).
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = 256 << 20
BLOCK, JOBS, DEPTH = 4096, 4, 16
TARGET = 3.0
# mfusepy takes libfuse 2 where it finds one; which is quicker is not for us to choose, so it runs with both.
LIBRARIES = {"2": "libfuse.so.2", "3": "libfuse3.so.3"}
PYTHON_SERVERS = tuple(f"mfusepy-{mode}-libfuse{version}" for version in LIBRARIES for mode in ("threads", "nothreads"))

STORE_C = """
#include "raidlib.h"
#include <string.h>
#include <stdlib.h>
static char *data;
static int read_(void *h, void *b, uint64_t n, uint64_t at) { (void)h; memcpy(b, data + at, n); return 0; }
static int write_(void *h, const void *b, uint64_t n, uint64_t at, uint32_t f) { (void)h; (void)f; memcpy(data + at, b, n); return 0; }
static int flush_(void *h) { (void)h; return 0; }
static int zero_(void *h, uint64_t n, uint64_t at) { (void)h; memset(data + at, 0, n); return 0; }
static uint64_t size_(void *h) { (void)h; return SIZE; }
static uint32_t block_bytes_(void *h) { (void)h; return 4096; }
static const struct rl_block_ops ops = {sizeof ops, 1, read_, write_, flush_, zero_, size_, block_bytes_};
const void *store_ops(void) { data = malloc(SIZE); memset(data, 85, SIZE); return &ops; }
"""

LOAD_C = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static const char *path;
static volatile int over;
static void *work(void *argument)
{
    uint64_t state = (uintptr_t)argument * 0x9E3779B97F4A7C15u + 1, done = 0;
    int fd = open(path, O_RDONLY | O_DIRECT);
    void *block = aligned_alloc(4096, BLOCK);
    while (!over) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (pread(fd, block, BLOCK, (off_t)((state >> 33) % (SIZE / BLOCK)) * BLOCK) != BLOCK)
            abort();
        done++;
    }
    return (void *)(uintptr_t)done;
}
int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    uint64_t total = 0;
    (void)count;
    path = arguments[1];
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    usleep((unsigned)(atof(arguments[2]) * 1e6));
    over = 1;
    for (int i = 0; i < THREADS; i++) {
        void *done;
        pthread_join(threads[i], &done);
        total += (uintptr_t)done;
    }
    printf("%f\\n", (double)total / atof(arguments[2]));
    return 0;
}
"""


def compile_c(folder: Path, name: str, source: str, *options: str) -> Path:
    (folder / f"{name}.c").write_text(source)
    macros = [f"-DSIZE={SIZE}ull", f"-DBLOCK={BLOCK}", f"-DTHREADS={JOBS * DEPTH}"]
    command = ["gcc", "-O2", "-pthread", f"-I{ROOT / 'csrc'}", *macros, *options, "-o", folder / name, folder / f"{name}.c"]
    subprocess.run(command, check=True)
    return folder / name


# --- The servers, each run as `mount.py --serve NAME DIRECTORY STORE` ---------------------------------------------------


def serve_raidlib(directory: str, store: str) -> None:
    from raidlib import _fuse

    ffi, lib = _fuse.ffi, _fuse.lib
    library = ctypes.CDLL(store)
    library.store_ops.restype = ctypes.c_void_p
    out = ffi.new("rl_fuse **")
    rc = lib.rl_fuse_new(ffi.NULL, ffi.cast("void *", library.store_ops()), os.fsencode(directory), b"bench", 0, out)
    if rc < 0:
        sys.exit(ffi.string(lib.rl_fuse_error()).decode())
    thread = threading.Thread(target=lib.rl_fuse_run, args=[out[0]])
    thread.start()
    thread.join()


def serve_mfusepy(directory: str, threads: bool) -> None:
    import mfusepy

    class Memory(mfusepy.Operations):
        def __init__(self):
            self.data = bytearray(b"U" * SIZE)

        def getattr(self, path, fh=None):
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == "/volume":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": SIZE}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path, fh):
            return [".", "..", "volume"]

        def open(self, path, flags):
            return 0

        def read(self, path, size, offset, fh):
            return bytes(self.data[offset : offset + size])

        def write(self, path, data, offset, fh):
            self.data[offset : offset + len(data)] = data
            return len(data)

    Memory.use_ns = True
    mfusepy.FUSE(Memory(), directory, foreground=True, nothreads=not threads, direct_io=True)


class Server:
    """A server's process, and its mount."""

    def __init__(self, name: str, folder: Path, store: Path):
        self.directory = folder / name
        self.directory.mkdir()
        environment = dict(os.environ)
        if name != "raidlib":
            environment["FUSE_LIBRARY_PATH"] = LIBRARIES[name[-1]]
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", name, self.directory, store], env=environment)
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.directory):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} does not mount")
            time.sleep(0.05)
        if (self.directory / "volume").stat().st_size != SIZE:
            sys.exit(f"{name} shows another size")

    def cpu_s(self) -> float:
        """Processor time that the server has used: unlike the rate, it says nothing about who else uses the machine."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        subprocess.run(["fusermount3", "-u", "-z", self.directory], check=False)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# --- The load ---------------------------------------------------------------------------------------------------------


def load(volume: Path, seconds: int, program: Path | None) -> tuple[float, float]:
    """Reads a second, and how many there were. Whole seconds: fio cuts the rest off without a word."""
    if program is not None:
        rate = float(subprocess.run([program, volume, str(seconds)], check=True, capture_output=True, text=True).stdout)
        return rate, rate * seconds
    command = ["fio", "--name=mount", f"--filename={volume}", f"--size={SIZE}", "--rw=randread", f"--bs={BLOCK}", "--direct=1"]
    command += ["--ioengine=libaio", f"--iodepth={DEPTH}", f"--numjobs={JOBS}", f"--runtime={seconds}", "--time_based", "--group_reporting"]
    answer = subprocess.run([*command, "--output-format=json"], check=True, capture_output=True, text=True)
    read = json.loads(answer.stdout)["jobs"][0]["read"]
    return float(read["iops"]), float(read["total_ios"])


def loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def measure(rounds: int, seconds: int) -> dict:
    folder = Path(tempfile.mkdtemp())
    servers = []
    names = ["raidlib", *(name for name in PYTHON_SERVERS if loadable(LIBRARIES[name[-1]]))]
    figures = {name: [] for name in names}
    cpu_us = {name: [] for name in names}  # of the server, for a read
    try:
        program = None if shutil.which("fio") else compile_c(folder, "load", LOAD_C)
        store = compile_c(folder, "store.so", STORE_C, "-shared", "-fPIC")
        for name in names:
            servers.append(Server(name, folder, store))
            load(servers[-1].directory / "volume", 1, program)  # threads started, memory touched
        for number in range(rounds):
            for name, server in zip(names, servers, strict=True):
                before = server.cpu_s()
                rate, reads = load(server.directory / "volume", seconds, program)
                figures[name].append(rate)
                cpu_us[name].append((server.cpu_s() - before) / reads * 1e6)
            print(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in figures.items()), flush=True)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratio = medians["raidlib"] / max(median for name, median in medians.items() if name != "raidlib")
    return {
        "load": "fio" if program is None else "threads",
        "reads_per_s": figures,
        "medians": medians,
        "server_cpu_us": {name: statistics.median(values) for name, values in cpu_us.items()},
        "ratio": ratio,
        "target": TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, directory, store = options.serve
        if name == "raidlib":
            serve_raidlib(directory, store)
        else:
            serve_mfusepy(directory, threads="-nothreads-" not in name)
        return
    result = measure(options.rounds, options.seconds)
    for name, median in result["medians"].items():
        print(f"{name}: {median:,.0f} reads/s (median of {options.rounds}), {result['server_cpu_us'][name]:.1f} us of processor time each")
    print(f"ratio {result['ratio']:.2f}, target {TARGET:g}: {'met' if result['ratio'] >= TARGET else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
