"""The owner of a mount is killed at random moments under a load that syncs: RAIDLIB_KILLS=200, or `make kill`.

Judges: SQLite and fio, which know what they were told is durable; e2fsck; and a check of the array. Of a mount by the kernel's ext4 all is
asked; of fuse2fs, which writes no journal, that the volume is right and can be mended, and what the files lost is counted.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from test_mount import MIB, each_driver, fsck, make, missing, place, run_folder, wait_for  # noqa: F401  (fixtures)

import raidlib
from raidlib import errors, mount, runtime, system

if missing():
    pytest.skip(missing(), allow_module_level=True)

KILLS = int(os.environ.get("RAIDLIB_KILLS", "5"))
SHAPES = [(1, 2), (4, 3), (5, 4), (6, 5), (10, 4)]
BACK_S = 5.0  # until it is mounted again

# Inserts rows, each a transaction, and prints a number once it is committed.
SQLITE = """
import random, sqlite3, sys
file, journal, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
base = sqlite3.connect(file, isolation_level=None)
base.execute(f"pragma journal_mode={journal}")
base.execute("pragma synchronous=extra")  # full leaves the journal's unlinking to chance: it may come back, and undo the last commit
base.execute("create table if not exists t(n integer primary key, size integer, data blob)")
dice = random.Random(seed)
for n in range(1, 1 << 30):
    data = dice.randbytes(dice.choice([10, 500, 5000, 50000]))
    base.execute("begin")
    base.execute("insert into t values(?, ?, ?)", (n, len(data), data))
    if n % 7 == 0:
        base.execute("delete from t where n = ?", (n - 3,))
    base.execute("commit")
    print(n, flush=True)
"""


class Sqlite:
    """Commits until its disk is gone."""

    def __init__(self, folder, scratch, dice):
        self.file, self.told = folder / "data.sqlite", scratch / "committed"
        command = [sys.executable, "-c", SQLITE, self.file, dice.choice(["delete", "truncate", "wal"]), str(dice.randrange(1 << 30))]
        with open(self.told, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)

    def ready(self):
        return self.told.stat().st_size > 0

    def end(self):
        self.process.kill()
        self.process.wait()

    def lost(self):
        """How many of the rows that were committed are not there, or "damaged"."""
        committed = [int(line) for line in self.told.read_text().split("\n")[:-1]]
        try:
            with contextlib.closing(sqlite3.connect(self.file)) as base:
                if base.execute("pragma integrity_check").fetchall() != [("ok",)]:
                    return "damaged"
                rows = dict(base.execute("select n, size from t where length(data) = size"))
        except sqlite3.Error:
            return "damaged"
        last = committed[-1]
        there = max(rows, default=0)
        deleted = {n - 3 for n in range(7, there + 1, 7)}
        return sum(n not in rows and n not in deleted for n in range(1, last + 1))


class Fio:
    """Writes each block of a file once, durably, in a random order that it can repeat."""

    SIZE = 48 * MIB

    def __init__(self, file, scratch, dice):
        self.file, self.seed, self.told = file, dice.randrange(1 << 30), scratch / "fio.json"
        with open(file, "ab") as whole:  # of a shorter one fio reads nothing back
            if whole.tell() < self.SIZE:
                whole.truncate(self.SIZE)
                os.fsync(whole.fileno())
        self.process = subprocess.Popen([*self.command(), "--do_verify=0", f"--output={self.told}"], cwd=scratch, stderr=subprocess.DEVNULL)

    def command(self):
        how = "--name=job --rw=randwrite --bs=4k --ioengine=psync --direct=1 --sync=dsync --verify=crc32c --verify_fatal=1"
        more = "--verify_state_save=0 --fallocate=none --output-format=json"
        return ["fio", *how.split(), *more.split(), f"--filename={self.file}", f"--size={self.SIZE}", f"--randseed={self.seed}"]

    def ready(self):
        pid, written = self.process.pid, 0
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():  # its job
            with contextlib.suppress(FileNotFoundError):
                written += int(Path(f"/proc/{child}/io").read_text().split("wchar: ")[1].split()[0])
        return written > 50 * 4096

    def end(self):
        """The dead mount makes it stop."""
        self.process.wait(30)

    def lost(self):
        """0, or what fio says of the first block that is wrong."""
        wrote = report(self.told.read_text())
        done = wrote["write"]["total_ios"] - (wrote["error"] != 0)  # without the one that failed
        assert done > 0
        again = subprocess.run([*self.command(), "--verify_only=1", f"--number_ios={done}"], capture_output=True, text=True, check=False)
        read = report(again.stdout)["read"]["total_ios"]
        return 0 if again.returncode == 0 and read == done else f"{again.returncode}, {read} of {done} blocks read: {again.stderr[-300:]}"


def report(text):
    return json.loads(text[text.index("{\n") :])["jobs"][0]


LOST = Counter()  # by fuse2fs, in all runs of this process


def loaded(loads, dice):
    """All of them at work for a random while, and more after the first commit."""
    wait_for(lambda: all(load.ready() for load in loads))
    time.sleep(dice.uniform(0, 1.5))


def kill(info):
    """The owner dies in the middle of it."""
    os.kill(info.pid, signal.SIGKILL)
    wait_for(lambda: not runtime.found(alive=True))


def parity_agrees(tank):
    with raidlib.open(tank) as array:
        wait_for(lambda: array.job is None or array.job.status().state != "running", 60)
        job = array.check()
        job.wait()
        assert array.status().mismatch_count == 0 and array.status().degraded == 0


@each_driver
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_under_load(tmp_path, place, run_folder, driver, number, record_property):  # noqa: F811
    """It is mounted again within seconds, and what was committed is there."""
    dice = random.Random(f"{driver} {number}")
    level, devices = SHAPES[number % len(SHAPES)]
    tank = make(tmp_path / "tank", level=level, devices=devices, size="96M")
    info = mount.mount(tank, place, driver=driver)
    loads = [Sqlite(place, tmp_path, dice), Fio(place / "fio", tmp_path, dice)]
    loaded(loads, dice)
    kill(info)
    for load in loads:
        load.end()
    start = time.monotonic()
    try:
        mount.mount(tank, place, driver=driver)
    except errors.RaidError as error:  # where e2fsck -p is not enough, it is refused, and the message has the way out
        assert driver == "fuse2fs" and "e2fsck" in str(error), error
        info = mount.mount(tank, place, fs="none")
        done = subprocess.run([system.tool("e2fsck", ""), "-f", "-y", info.volume], check=False, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout
        LOST["mended by hand"] += 1
        mount.umount(place)
        start = time.monotonic()
        mount.mount(tank, place, driver=driver)
    assert time.monotonic() - start < BACK_S
    lost = {type(load).__name__: load.lost() if load.file.exists() else "gone" for load in loads}
    record_property("lost", str(lost))
    if driver == "kernel":
        assert lost == {"Sqlite": 0, "Fio": 0}
    else:
        LOST.update(
            f"{name}: {'nothing' if what == 0 else 'rows' if isinstance(what, int) else 'damaged' if what != 'gone' else what}"
            for name, what in lost.items()
        )
        print(f"fuse2fs, {number}: {lost}; in all {dict(LOST)}")
    mount.umount(place)
    fsck(tank, place)
    parity_agrees(tank)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_volume_under_load(tmp_path, place, run_folder, number):  # noqa: F811
    """Without a file system between: each block that was written with dsync is there, at every level."""
    dice = random.Random(f"volume {number}")
    level, devices = SHAPES[number % len(SHAPES)]
    tank = make(tmp_path / "tank", level=level, devices=devices, size="96M", mkfs=False)
    info = mount.mount(tank, place, fs="none")
    load = Fio(place / "volume", tmp_path, dice)
    loaded([load], dice)
    kill(info)
    load.end()
    start = time.monotonic()
    mount.mount(tank, place, fs="none")
    assert time.monotonic() - start < BACK_S
    assert load.lost() == 0
    mount.umount(place)
    parity_agrees(tank)
