"""The FUSE door by itself, on a store in memory: what is seen, what reaches the store, and how a mount ends."""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
SIZE = 8 * MIB
NOBODY = 65534
END_S = 1.0  # a stop takes no longer
WATCHDOG_S = 60.0  # after that a mount that hangs is cut off, so that the test fails instead


def missing() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if shutil.which("fusermount3") is None:
        return "fuse3 is not installed: no fusermount3"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return ""


MISSING = missing()
if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from raidlib import _fuse  # noqa: E402  (with libfuse3 here, a module that is missing is a failure)

ffi, lib = _fuse.ffi, _fuse.lib

# --- The store --------------------------------------------------------------------------------------------------------

STORE_CDEF = """
struct store {
    uint64_t size;
    unsigned char *data;
    int32_t read_error, write_error, flush_error, zero_error; /* what the operation returns instead of working */
    uint32_t delay_us, block_bytes;
    uint64_t reads, writes, flushes, zeros, discards;
    uint64_t busy, busy_max;      /* operations under way: now, at most */
    uint64_t unaligned, unstable; /* writes whose memory was not on a page, or not given as stable */
};
struct store *store_new(uint64_t size);
void store_free(struct store *store);
const void *store_ops(void);
"""

STORE_C = (
    """
#define _GNU_SOURCE
#include "raidlib.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
"""
    + STORE_CDEF
    + """
#define COUNT(field) __atomic_add_fetch(&s->field, 1, __ATOMIC_SEQ_CST)
static void enter(struct store *s)
{
    uint64_t busy = COUNT(busy), most = s->busy_max;
    while (busy > most && !__atomic_compare_exchange_n(&s->busy_max, &most, busy, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    if (s->delay_us)
        usleep(s->delay_us);
}
static int leave(struct store *s, int rc)
{
    __atomic_sub_fetch(&s->busy, 1, __ATOMIC_SEQ_CST);
    return rc;
}
static int inside(const struct store *s, uint64_t length, uint64_t offset) { return offset <= s->size && length <= s->size - offset; }
static int store_pread(void *handle, void *buffer, uint64_t length, uint64_t offset)
{
    struct store *s = handle;
    COUNT(reads);
    enter(s);
    if (s->read_error || !inside(s, length, offset))
        return leave(s, s->read_error ? s->read_error : -22);
    memcpy(buffer, s->data + offset, length);
    return leave(s, 0);
}
static int store_pwrite(void *handle, const void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct store *s = handle;
    COUNT(writes);
    enter(s);
    if ((uintptr_t)buffer % 4096)
        COUNT(unaligned);
    if (flags != RL_BUFFER_STABLE)
        COUNT(unstable);
    if (s->write_error || !inside(s, length, offset))
        return leave(s, s->write_error ? s->write_error : -22);
    memcpy(s->data + offset, buffer, length);
    return leave(s, 0);
}
static int store_flush(void *handle)
{
    struct store *s = handle;
    COUNT(flushes);
    return s->flush_error;
}
static int store_zero(void *handle, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct store *s = handle;
    COUNT(zeros);
    if (flags & RL_ZERO_DISCARD)
        COUNT(discards);
    if (s->zero_error || !inside(s, length, offset))
        return s->zero_error ? s->zero_error : -22;
    memset(s->data + offset, 0, length);
    return 0;
}
static uint64_t store_size(void *handle) { return ((struct store *)handle)->size; }
static uint32_t store_block_bytes(void *handle) { return ((struct store *)handle)->block_bytes; }
static const struct rl_block_ops ops = {
    sizeof ops, 2, store_pread, store_pwrite, store_flush, store_zero, store_size, store_block_bytes,
};
const void *store_ops(void) { return &ops; }
struct store *store_new(uint64_t size)
{
    struct store *s = calloc(1, sizeof *s);
    s->size = size;
    s->data = calloc(1, size);
    s->block_bytes = 4096;
    return s;
}
void store_free(struct store *s)
{
    free(s->data);
    free(s);
}
"""
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The store as a shared library, and its cffi object."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "store.c").write_text(STORE_C)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", f"-I{ROOT / 'csrc'}", "-o", folder / "store.so", folder / "store.c"],
        check=True,
    )
    store_ffi = FFI()
    store_ffi.cdef(STORE_CDEF)
    store_ffi.path = folder / "store.so"
    store_ffi.library = store_ffi.dlopen(str(store_ffi.path))
    return store_ffi


def pointer(store_ffi, value):
    """A pointer of the store's cffi object as one of _fuse's."""
    return ffi.cast("void *", int(store_ffi.cast("uintptr_t", value)))


def error_text() -> str:
    return ffi.string(lib.rl_fuse_error()).decode()


def is_mounted(path) -> bool:
    return any(line.split()[1] == str(path) for line in Path("/proc/self/mounts").read_text().splitlines())


def cut_off(path) -> None:
    """Ends a mount whatever state it is in."""
    if is_mounted(path):
        subprocess.run(["umount", "-f", "-l", path], check=False, capture_output=True)
    if is_mounted(path):
        subprocess.run(["fusermount3", "-u", "-z", path], check=False, capture_output=True)


class Mount:
    """A store, mounted and served by a thread."""

    def __init__(self, store_ffi, directory, size=SIZE, flags=0, serve=True):
        self.directory = directory
        self.volume = directory / "volume"
        self.store_ffi = store_ffi
        self.store = store_ffi.library.store_new(size)
        out = ffi.new("rl_fuse **")
        rc = lib.rl_fuse_new(
            pointer(store_ffi, self.store),
            pointer(store_ffi, store_ffi.library.store_ops()),
            os.fsencode(directory),
            b"store, with \\ and comma",
            flags,
            out,
        )
        assert rc == 0, (rc, error_text())
        self.fuse = out[0]
        self.result = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.watchdog = threading.Timer(WATCHDOG_S, cut_off, [directory])
        self.watchdog.daemon = True
        self.watchdog.start()
        if serve:
            self.thread.start()

    def run(self):
        self.result = lib.rl_fuse_run(self.fuse)

    def data(self):
        return self.store_ffi.buffer(self.store.data, self.store.size)

    def ended(self, seconds=END_S) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def close(self):
        if self.fuse is None:
            return
        lib.rl_fuse_stop(self.fuse)
        if self.thread.ident is not None and not self.ended(5):
            cut_off(self.directory)
            assert self.ended(5), "rl_fuse_run() does not end"
        assert lib.rl_fuse_free(self.fuse) == 0, error_text()
        self.fuse = None
        self.store_ffi.library.store_free(self.store)
        self.watchdog.cancel()
        assert not is_mounted(self.directory)


@pytest.fixture
def new_mount(library, tmp_path):
    """Makes mounts, and ends them all afterwards."""
    made = []

    def make(name="mnt", directory=None, **options):
        directory = directory or tmp_path / name
        directory.mkdir(exist_ok=True)
        made.append(Mount(library, directory, **options))
        return made[-1]

    yield make
    try:
        for mount in reversed(made):
            mount.close()
    finally:
        for mount in made:
            cut_off(mount.directory)


@pytest.fixture
def mount(new_mount):
    return new_mount()


@pytest.fixture
def opened():
    """os.open() whose descriptors are closed afterwards, before the mount goes."""
    descriptors = []

    def make(path, flags=os.O_RDWR):
        descriptors.append(os.open(path, flags))
        return descriptors[-1]

    yield make
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            pass


@contextlib.contextmanager
def raises(number):
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value


# --- What is seen -----------------------------------------------------------------------------------------------------


def test_attributes(mount):
    mount.store.block_bytes = 65536
    status = os.stat(mount.volume)
    assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_size, status.st_blocks, status.st_blksize) == (SIZE, SIZE // 512, 65536)
    assert (status.st_uid, status.st_gid, status.st_nlink, status.st_ino) == (os.getuid(), os.getgid(), 1, 2)
    assert stat.S_ISDIR(os.stat(mount.directory).st_mode)


@pytest.mark.parametrize(("block_bytes", "blksize"), [(512, 4096), (4096, 4096), (196608, 131072)])
def test_preferred_block_is_a_power_of_two_and_a_page_at_least(mount, block_bytes, blksize):
    mount.store.block_bytes = block_bytes
    assert os.stat(mount.volume).st_blksize == blksize


def test_directory(mount):
    assert os.listdir(mount.directory) == ["volume"]
    assert not (mount.directory / "other").exists()
    room = os.statvfs(mount.directory)
    assert (room.f_blocks * room.f_frsize, room.f_bavail) == (SIZE, 0)
    with pytest.raises(OSError):
        (mount.directory / "other").write_bytes(b"")
    with pytest.raises(OSError):
        os.unlink(mount.volume)


def test_mount_table(mount):
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == str(mount.directory))
    assert "- fuse.raidlib store,\\040with\\040\\134\\040and\\040comma " in line
    for option in ("nosuid", "nodev", "noexec", "default_permissions", "max_read=1048576"):
        assert option in line
    assert "allow_other" not in line


def test_a_grown_store_is_seen_within_seconds(mount, library):
    bigger = library.library.store_new(2 * SIZE)
    mount.store.data, bigger.data = bigger.data, mount.store.data
    mount.store.size = 2 * SIZE
    library.library.store_free(bigger)
    deadline = time.monotonic() + 5
    while os.stat(mount.volume).st_size != 2 * SIZE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_random_reads_and_writes(mount, opened, flags):
    descriptor = opened(mount.volume, os.O_RDWR | flags)
    model = bytearray(SIZE)
    rng = random.Random(1)
    unit = 512 if flags else 1
    memory = mmap.mmap(-1, 3 * MIB)  # page-aligned, as O_DIRECT wants it
    for _ in range(400):
        length = min(rng.choice([1, 8, 200, 4000]) * unit * rng.randint(1, 8), len(memory))
        offset = rng.randrange((SIZE - length) // unit) * unit
        view = memoryview(memory)[:length]
        if rng.random() < 0.5:
            view[:] = rng.randbytes(length)
            assert os.pwritev(descriptor, [view], offset) == length
            model[offset : offset + length] = view
        else:
            assert os.preadv(descriptor, [view], offset) == length
            assert view == model[offset : offset + length]
        view.release()
    memory.close()
    assert mount.data()[:] == model
    assert mount.store.unaligned == 0 and mount.store.unstable == 0


def test_a_transfer_larger_than_a_request(mount, opened):
    descriptor = opened(mount.volume)
    content = random.Random(2).randbytes(5 * MIB + 1234)
    assert os.pwrite(descriptor, content, 777) == len(content)
    assert os.pread(descriptor, len(content), 777) == content
    assert mount.store.writes <= 8 and mount.store.reads <= 8  # of 1 MiB each


def test_the_end_is_a_block_device_s(mount, opened):
    descriptor = opened(mount.volume)
    assert os.pread(descriptor, 100, SIZE - 40) == bytes(40)
    assert os.pread(descriptor, 100, SIZE) == b""
    assert os.pread(descriptor, 100, 1 << 40) == b""
    assert os.pwrite(descriptor, b"x" * 100, SIZE - 40) == 40
    for offset in (SIZE, 1 << 40):
        with raises(errno.ENOSPC):
            os.pwrite(descriptor, b"x", offset)
    assert os.stat(mount.volume).st_size == SIZE
    assert os.lseek(descriptor, 0, os.SEEK_END) == SIZE


def test_neither_size_nor_mode_nor_owner_can_be_changed(mount, opened):
    os.pwrite(opened(mount.volume), b"kept", 0)
    os.truncate(mount.volume, SIZE)
    os.utime(mount.volume)
    for change in (
        lambda: os.truncate(mount.volume, 0),
        lambda: os.truncate(mount.volume, SIZE + 1),
        lambda: opened(mount.volume, os.O_RDWR | os.O_TRUNC),
        lambda: os.chmod(mount.volume, 0o644),
        lambda: os.chown(mount.volume, 1, 1),
    ):
        with raises(errno.EPERM):
            change()
    assert os.stat(mount.volume).st_size == SIZE
    assert os.pread(opened(mount.volume), 4, 0) == b"kept"


def test_nothing_is_cached(mount, opened):
    descriptor = opened(mount.volume)
    assert os.pread(descriptor, 4, 4096) == bytes(4)
    mount.data()[4096:4100] = b"else"  # as by another door
    assert os.pread(descriptor, 4, 4096) == b"else"


def test_mmap(mount, opened):
    descriptor = opened(mount.volume)
    os.pwrite(descriptor, b"mapped", 8192)
    with mmap.mmap(descriptor, SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as private:
        assert private[8192:8198] == b"mapped"
    with raises(errno.ENODEV):
        mmap.mmap(descriptor, SIZE, flags=mmap.MAP_SHARED).close()


def test_what_flushes(mount, opened):
    store, descriptor = mount.store, opened(mount.volume)
    os.pwrite(descriptor, b"x", 0)
    assert store.flushes == 0
    os.fsync(descriptor)
    assert store.flushes == 1
    os.fdatasync(descriptor)
    assert store.flushes == 2
    os.pwritev(descriptor, [b"x"], 0, os.RWF_DSYNC)
    assert store.flushes == 3
    os.close(descriptor)
    assert store.flushes == 3
    for flag in (os.O_DSYNC, os.O_SYNC):
        before = store.flushes
        os.pwrite(opened(mount.volume, os.O_RDWR | flag), b"x", 0)
        assert store.flushes > before
    before = store.flushes
    directory = opened(mount.directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    assert store.flushes == before + 1


KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16


def fallocate(descriptor, mode, offset, length):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(descriptor, mode, offset, length):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE])
def test_fallocate_zeroes(mount, opened, mode):
    descriptor = opened(mount.volume)
    mount.data()[:] = b"\xff" * SIZE
    fallocate(descriptor, mode, 1000, 5000)
    fallocate(descriptor, mode, SIZE - 100, 4096)  # what lies past the end is not there
    fallocate(descriptor, mode, SIZE + 4096, 4096)
    expected = bytearray(b"\xff" * SIZE)
    expected[1000:6000] = bytes(5000)
    expected[-100:] = bytes(100)
    assert os.pread(descriptor, SIZE, 0) == expected
    assert mount.store.zeros == 2
    assert mount.store.discards == (2 if mode & PUNCH_HOLE else 0)


def test_fallocate_of_other_modes(mount, opened):
    descriptor = opened(mount.volume)
    for mode in (0, KEEP_SIZE, ZERO_RANGE, COLLAPSE_RANGE):
        with raises(errno.EOPNOTSUPP):
            fallocate(descriptor, mode, 0, 4096)
    fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 0, 4096)  # and the kernel still asks
    assert mount.store.zeros == 1


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (-errno.EIO, errno.EIO),
        (-errno.ENOSPC, errno.ENOSPC),
        (-errno.EROFS, errno.EROFS),
        (-errno.ENOSYS, errno.EIO),  # the kernel would never ask again, and call every later fsync a success
        (-5000, errno.EIO),  # the kernel would refuse the reply, and the caller wait for ever
    ],
)
def test_errors_reach_the_caller(mount, opened, given, seen):
    store, descriptor = mount.store, opened(mount.volume)
    store.read_error = store.write_error = store.flush_error = store.zero_error = given
    for _ in range(2):
        for call in (
            lambda: os.pread(descriptor, 10, 0),
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.fsync(descriptor),
            lambda: fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
        ):
            with raises(seen):
                call()
    store.read_error = store.write_error = store.flush_error = store.zero_error = 0
    assert os.pwrite(descriptor, b"x", 0) == 1
    os.fsync(descriptor)


def test_read_only(new_mount, opened):
    mount = new_mount(flags=lib.RL_FUSE_READ_ONLY)
    assert stat.S_IMODE(os.stat(mount.volume).st_mode) == 0o400
    for flags in (os.O_RDWR, os.O_WRONLY):
        with raises(errno.EROFS):
            opened(mount.volume, flags)
    descriptor = opened(mount.volume, os.O_RDONLY)
    assert os.pread(descriptor, 4, 0) == bytes(4)
    os.fsync(descriptor)
    if os.geteuid() == 0:  # who can remount still cannot write
        subprocess.run(["mount", "-i", "-o", "remount,rw", mount.directory], check=True)
        with raises(errno.EROFS):
            opened(mount.volume, os.O_RDWR)
    assert (mount.store.writes, mount.store.flushes, mount.store.zeros) == (0, 0, 0)


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_concurrent_readers_and_writers(mount):
    share, failures = SIZE // 8, []

    def work(index):
        rng = random.Random(index)
        descriptor = os.open(mount.volume, os.O_RDWR)
        try:
            model = bytearray(share)
            for _ in range(300):
                length = rng.randint(1, 20000)
                offset = rng.randrange(share - length)
                if rng.random() < 0.5:
                    content = rng.randbytes(length)
                    os.pwrite(descriptor, content, index * share + offset)
                    model[offset : offset + length] = content
                elif os.pread(descriptor, length, index * share + offset) != model[offset : offset + length]:
                    failures.append(f"thread {index} read something else at {offset}")
            if mount.data()[index * share : (index + 1) * share] != model:
                failures.append(f"thread {index} has written something else")
        except OSError as error:
            failures.append(repr(error))
        finally:
            os.close(descriptor)

    threads = [threading.Thread(target=work, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("write", [False, True], ids=["reads", "writes"])
def test_slow_requests_are_served_in_parallel(mount, opened, write):
    descriptor = opened(mount.volume)
    mount.store.delay_us = 200_000

    def work(offset):
        if write:
            os.pwrite(descriptor, b"x", offset)
        else:
            os.pread(descriptor, 1, offset)

    threads = [threading.Thread(target=work, args=[4096 * index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert mount.store.busy_max == 8 or (write and release < (6, 2))  # FOPEN_PARALLEL_DIRECT_WRITES


# --- How it ends ------------------------------------------------------------------------------------------------------


def test_stop_while_idle(mount):
    assert os.stat(mount.volume)
    lib.rl_fuse_stop(mount.fuse)
    assert mount.ended() and mount.result == 0
    assert not is_mounted(mount.directory)
    lib.rl_fuse_stop(mount.fuse)  # nothing
    assert lib.rl_fuse_run(mount.fuse) == -errno.ESHUTDOWN


def test_stop_while_a_file_is_open(mount, opened):
    descriptor = opened(mount.volume)
    lib.rl_fuse_stop(mount.fuse)
    assert mount.ended() and mount.result == 0
    with raises(errno.ENOTCONN):
        os.pread(descriptor, 1, 0)


def test_stop_after_many_threads_were_needed(mount, opened):
    """Each of them waits for a request; all have to hear of it though the open file keeps the connection alive."""
    descriptor = opened(mount.volume)
    mount.store.delay_us = 50_000
    threads = [threading.Thread(target=os.pread, args=[descriptor, 1, index]) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lib.rl_fuse_stop(mount.fuse)
    assert mount.ended() and mount.result == 0


def test_stop_finishes_what_was_begun(mount, opened):
    descriptor = opened(mount.volume)
    mount.store.delay_us = 300_000
    written = []
    thread = threading.Thread(target=lambda: written.append(os.pwrite(descriptor, b"begun", 0)))
    thread.start()
    while mount.store.busy == 0:
        time.sleep(0.01)
    lib.rl_fuse_stop(mount.fuse)
    thread.join()
    assert written == [5] and mount.data()[:5] == b"begun"
    assert mount.ended() and mount.result == 0


def test_stop_before_run(new_mount):
    mount = new_mount(serve=False)
    assert lib.rl_fuse_protection(mount.fuse) == -errno.EAGAIN
    lib.rl_fuse_stop(mount.fuse)
    mount.thread.start()
    assert mount.ended() and mount.result == 0


def test_free_without_run(new_mount):
    mount = new_mount(serve=False)
    assert is_mounted(mount.directory)
    mount.close()


@pytest.mark.parametrize("options", [["-u"], ["-u", "-z"]], ids=["plain", "lazy"])
def test_unmounted_by_someone_else(mount, options):
    os.stat(mount.volume)
    subprocess.run(["fusermount3", *options, mount.directory], check=True)
    assert mount.ended() and mount.result == 0


def test_a_lazy_unmount_serves_until_the_last_close(mount, opened):
    descriptor = opened(mount.volume)
    subprocess.run(["fusermount3", "-u", "-z", mount.directory], check=True)
    assert os.pwrite(descriptor, b"still", 0) == 5
    assert not mount.ended(0.2)
    os.close(descriptor)
    assert mount.ended() and mount.result == 0


def test_a_stop_leaves_another_mount_at_the_same_place_alone(new_mount, opened):
    first = new_mount()
    opened(first.volume)
    subprocess.run(["fusermount3", "-u", "-z", first.directory], check=True)
    second = new_mount()
    lib.rl_fuse_stop(first.fuse)
    assert first.ended() and first.result == 0
    assert is_mounted(second.directory) and os.stat(second.volume)


def test_remount(new_mount):
    for number in range(20):
        mount = new_mount(size=MIB)
        mount.volume.open("r+b", buffering=0).close()
        assert mount.volume.stat().st_size == MIB, number
        mount.close()


def test_states(mount):
    os.stat(mount.volume)
    assert lib.rl_fuse_run(mount.fuse) == -errno.EBUSY and "served already" in error_text()
    assert lib.rl_fuse_free(mount.fuse) == -errno.EBUSY and "still being served" in error_text()
    bits = lib.rl_fuse_protection(mount.fuse)
    assert 0 <= bits <= (lib.RL_FUSE_IO_FLUSHER | lib.RL_FUSE_MEMORY_LOCKED)
    assert lib.rl_fuse_free(ffi.NULL) == 0


def test_refusals(library, tmp_path, capfd):
    ops = pointer(library, library.library.store_ops())
    (tmp_path / "file").write_bytes(b"")
    out = ffi.new("rl_fuse **")
    for directory, flags, code, word in (
        (tmp_path / "none", 0, errno.ENOENT, "none"),
        (tmp_path / "file", 0, errno.ENOTDIR, "not a directory"),
        (tmp_path, 64, errno.EINVAL, "0x40"),
    ):
        assert lib.rl_fuse_new(ffi.NULL, ops, os.fsencode(directory), b"x", flags, out) == -code
        assert word in error_text() and out[0] == ffi.NULL
    wrong = bytearray(ffi.buffer(ops, 56))
    wrong[4] = 1
    assert lib.rl_fuse_new(ffi.NULL, ffi.from_buffer(wrong), os.fsencode(tmp_path), b"x", 0, out) == -errno.EINVAL
    assert "version 1" in error_text()
    assert capfd.readouterr() == ("", "")


# --- A good guest in its process --------------------------------------------------------------------------------------


def test_descriptors_are_close_on_exec(mount):
    os.stat(mount.volume)
    found = [int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
    ours = [fd for fd in found if os.path.realpath(f"/proc/self/fd/{fd}") == "/dev/fuse"]
    assert ours and not any(os.get_inheritable(fd) for fd in ours)


def test_serving_threads_block_signals(new_mount, opened):
    def tasks():
        return set(os.listdir("/proc/self/task"))

    before = tasks()
    mount = new_mount()
    descriptor = opened(mount.volume)
    mount.store.delay_us = 50_000
    threads = [threading.Thread(target=os.pread, args=[descriptor, 1, index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    others = {str(thread.native_id) for thread in [mount.watchdog, *threads]}
    serving = tasks() - before - others
    assert len(serving) >= 4
    for task in serving:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/self/task/{task}/status").read_text().splitlines() if ":\t" in line)
        blocked = int(status["SigBlk"], 16)
        assert all(blocked >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM))


def test_the_calling_thread_gets_its_signals_back(new_mount):
    mount, masks = new_mount(serve=False), []

    def run():
        mount.run()
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    mount.thread = threading.Thread(target=run)
    mount.thread.start()
    os.stat(mount.volume)
    lib.rl_fuse_stop(mount.fuse)
    assert mount.ended()
    assert masks == [set()]


# --- Other processes, other users -------------------------------------------------------------------------------------

SERVER = """
import os, signal, sys, threading
from cffi import FFI
from raidlib import _fuse
from test_fuse_mount import STORE_CDEF

library, directory, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
ffi, lib = _fuse.ffi, _fuse.lib
store_ffi = FFI()
store_ffi.cdef(STORE_CDEF)
store = store_ffi.dlopen(library)
handle = store.store_new(1 << 20)
def cast(value):
    return ffi.cast("void *", int(store_ffi.cast("uintptr_t", value)))
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.chdir("/")
out = ffi.new("rl_fuse **")
rc = lib.rl_fuse_new(cast(handle), cast(store.store_ops()), os.fsencode(directory), b"store", 0, out)
if rc < 0:
    print("refused", rc, ffi.string(lib.rl_fuse_error()).decode(), flush=True)
    sys.exit(3)
def run():
    print("result", lib.rl_fuse_run(out[0]), flush=True)
thread = threading.Thread(target=run)
thread.start()
print("mounted", flush=True)
command = sys.stdin.readline().strip()
if command == "stat":
    print("stat", os.stat(directory + "/volume").st_uid, lib.rl_fuse_protection(out[0]), flush=True)
if command == "fork":
    pid = os.fork()
    if pid == 0:
        codes = [lib.rl_fuse_run(out[0]), lib.rl_fuse_protection(out[0])]
        lib.rl_fuse_stop(out[0])
        codes.append(lib.rl_fuse_free(out[0]))
        os.write(1, f"child {codes}\\n".encode())
        sys.stdin.readline()
        os._exit(0)
    os.write(1, b"parent\\n")
    sys.stdin.readline()
lib.rl_fuse_stop(out[0])
thread.join()
print("freed", lib.rl_fuse_free(out[0]), flush=True)
"""


@pytest.fixture
def new_server(library):
    """A process of its own that mounts; everything it leaves is cleared."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    directory = folder / "mnt"
    directory.mkdir()
    processes = []

    def start(uid=None):
        uid = os.getuid() if uid is None else uid
        if uid != os.getuid():
            os.chown(directory, uid, uid)
        path = os.pathsep.join([str(Path(_fuse.__file__).parent.parent), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), library.path, directory, str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        processes.append(process)
        return process, directory

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    cut_off(directory)
    shutil.rmtree(folder)


def test_a_killed_server_leaves_what_fusermount_clears(new_server):
    process, directory = new_server()
    assert process.stdout.readline() == "mounted\n"
    descriptor = os.open(directory / "volume", os.O_RDWR)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with raises(errno.ENOTCONN):
        os.pread(descriptor, 1, 0)
    with raises(errno.ENOTCONN):
        os.stat(directory / "volume")
    os.close(descriptor)
    subprocess.run(["fusermount3", "-u", "-z", directory], check=True)
    assert not is_mounted(directory) and os.listdir(directory) == []
    again, _ = new_server()
    assert again.stdout.readline() == "mounted\n" and os.stat(directory / "volume")


def test_a_forked_child_is_answered_echild(new_server):
    process, directory = new_server()
    assert process.stdout.readline() == "mounted\n"
    print("fork", file=process.stdin, flush=True)
    lines = {process.stdout.readline(), process.stdout.readline()}
    assert lines == {"parent\n", f"child {[-errno.ECHILD] * 3}\n"}
    assert os.stat(directory / "volume").st_size == MIB  # the child has stopped nothing


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@needs_root
def test_an_ordinary_user_mounts_through_fusermount3(new_server):
    process, directory = new_server(NOBODY)
    line = process.stdout.readline()
    if line.startswith("refused"):
        pytest.skip(f"fusermount3 refuses an ordinary user: {line.strip()}")
    assert line == "mounted\n"
    print("stat", file=process.stdin, flush=True)
    assert process.stdout.readline() == f"stat {NOBODY} 0\n"  # owner; neither protection without privileges
    assert process.stdout.readline() == "result 0\n"
    assert process.stdout.readline() == "freed 0\n"
    assert not is_mounted(directory)


@needs_root
@pytest.mark.parametrize("allow_other", [False, True])
def test_another_user_cannot_open(new_mount, allow_other):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        mount = new_mount(directory=folder / "mnt", flags=lib.RL_FUSE_ALLOW_OTHER if allow_other else 0)
        command = ["/bin/sh", "-c", f"ls {mount.directory}; cat {mount.volume}"]
        answer = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False, capture_output=True, text=True)
        assert answer.returncode != 0 and "Permission denied" in answer.stderr
        assert answer.stdout == ("volume\n" if allow_other else "")
        assert mount.store.reads == 0
        mount.close()
    finally:
        cut_off(folder / "mnt")
        shutil.rmtree(folder)


# --- ext4 through a loop device ---------------------------------------------------------------------------------------


def loop_device(volume):
    """A loop device with direct I/O on volume, or the reason why there is none."""
    command = ["losetup", "--find", "--show", "--direct-io=on", volume]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stdout.strip(), "") if answer.returncode == 0 else ("", answer.stderr.strip())


@needs_root
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="e2fsprogs is not installed")
def test_ext4_on_a_loop_device(new_mount, tmp_path):
    mount = new_mount(size=64 * MIB)
    device, reason = loop_device(mount.volume)
    if not device:
        pytest.skip(f"no loop device: {reason}")
    files = tmp_path / "files"
    files.mkdir()
    try:
        dio = Path(f"/sys/block/{Path(device).name}/loop/dio").read_text().strip()
        assert dio == "1", "the loop device does not use direct I/O"
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, files], check=True)
        content = random.Random(3).randbytes(10 * MIB)
        (files / "kept").write_bytes(content)
        (files / "dropped").write_bytes(content)
        flushes = mount.store.flushes
        with (files / "kept").open("r+b") as file:
            os.fsync(file.fileno())
        assert mount.store.flushes > flushes
        zeros = mount.store.zeros
        (files / "dropped").unlink()
        subprocess.run(["fstrim", files], check=True)
        assert mount.store.zeros > zeros  # discard
        subprocess.run(["umount", files], check=True)
        subprocess.run(["fsck.ext4", "-fn", device], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "ro", device, files], check=True)
        assert (files / "kept").read_bytes() == content
    finally:
        subprocess.run(["umount", "-l", files], check=False, capture_output=True)
        subprocess.run(["losetup", "-d", device], check=True)
    assert mount.store.unaligned == 0
