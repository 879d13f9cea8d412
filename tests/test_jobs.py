"""Jobs beside users: they give way, keep their limits, are held and ended, and go on after a crash."""

import random
import threading
import time

import oracle
import pytest

import raidlib
from raidlib import control, lab
from raidlib.cli import program

SIZE = 24 << 20
SHAPES = {
    "raid1": {"level": 1, "raid_devices": 3},
    "raid5": {"level": 5, "raid_devices": 4, "chunk": "64K"},
    "raid6": {"level": 6, "raid_devices": 5, "chunk": "64K"},
    "raid10": {"level": 10, "raid_devices": 4, "chunk": "64K"},
    "rs": {"level": "rs", "raid_devices": 6, "parity": 3, "chunk": "64K"},
}


def slow(count, delay_ms=10):
    """Members that take their time, as disks do: what a job gets then depends on its pace and not on this machine."""
    return [lab.FaultyDevice(raidlib.MemoryDevice(SIZE), rules=[lab.Rule("delay", delay_ms=delay_ms)]) for _ in range(count)]


def rate_with(array, users, *, minimum, seconds=1.2):
    """Bytes a second that a check makes while `users` threads read without a pause."""
    array.set_speed(minimum=minimum)
    stop = threading.Event()

    def use(number):
        rng = random.Random(number)
        while not stop.is_set():
            array.pread(4096, rng.randrange(array.size // 4096) * 4096)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(users)]
    for thread in threads:
        thread.start()
    job = array.check()
    time.sleep(0.3)  # until the first users were seen
    before = job.status()
    time.sleep(seconds)
    after = job.status()
    job.cancel()
    job.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert after.state == "running", "it was done too early to say"
    return (after.done - before.done) / (after.elapsed - before.elapsed)


def test_a_job_gives_way_to_users():
    with raidlib.create(slow(2), level=1, raid_devices=2, assume_clean=True) as array:
        alone = rate_with(array, 0, minimum=0)
        beside = rate_with(array, 1, minimum=0)
        insisting = rate_with(array, 1, minimum=1 << 40)
    assert beside < 0.75 * alone, (alone, beside, insisting)
    assert insisting > 1.2 * beside, (alone, beside, insisting)


def test_limits_while_it_runs():
    """A maximum holds from when it is set; also for the jobs that come after."""
    with raidlib.create([raidlib.MemoryDevice(SIZE) for _ in range(3)], level=5, raid_devices=3, chunk="64K", assume_clean=True) as array:
        array.set_speed(maximum=4 << 20)
        for kind in ("check", "repair"):
            job = getattr(array, kind)()
            time.sleep(0.5)
            done = job.status().done
            assert 0 < done < 4 << 20, kind
            job.cancel()
            job.join()
        array.set_speed(maximum=0)
        array.check().wait(timeout=20)
        for wrong in (-1, 2**63):
            with pytest.raises(raidlib.errors.UsageError):
                array.set_speed(minimum=wrong)


@pytest.mark.parametrize("name", SHAPES)
def test_everything_at_once(name):
    """Eight threads of users; a member fails, its rebuild is paused, resumed, cancelled; checks between; never a wrong byte."""
    rng = random.Random(name)
    devices = [raidlib.MemoryDevice(SIZE) for _ in range(SHAPES[name]["raid_devices"])]
    with raidlib.create(devices, assume_clean=True, **SHAPES[name]) as array:
        part = array.size // 8
        models, wrong, stop = [bytearray(part) for _ in range(8)], [], threading.Event()

        def use(number):
            mine, model = random.Random(f"{name} {number}"), models[number]
            while not stop.is_set():
                length = mine.choice([512, 700, 4096, 65536, 300_000])
                at = mine.randrange(part - length)
                if mine.random() < 0.5:
                    model[at : at + length] = data = mine.randbytes(length)
                    array.pwrite(data, number * part + at)
                elif array.pread(length, number * part + at) != model[at : at + length]:
                    wrong.append((number, at, length))

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for round_ in range(4):
            slot = rng.randrange(len(devices))
            array.fail(slot)
            array.remove("faulty")
            job = array.add(raidlib.MemoryDevice(SIZE))
            job.set_speed(maximum=60 << 20)
            time.sleep(rng.random() * 0.1)
            job.pause()
            time.sleep(0.05)
            job.resume()
            if round_ % 2:
                job.cancel()
                job.join()
                array.fail(slot)
                array.remove("faulty")
                array.add(raidlib.MemoryDevice(SIZE)).wait(timeout=60)
            else:
                job.set_speed(maximum=0)
                job.wait(timeout=60)
            check = array.check()
            check.wait(timeout=60)
            assert check.status().mismatch_count == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert [array.pread(part, n * part) for n in range(8)] == models
        assert all(member.state == "in_sync" for member in array.status().members)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "rs"])
def test_after_a_crash_a_rebuild_goes_on(tmp_path, name):
    """The members as they were at some moment of the rebuild, with nobody to mark them clean: not from the start, and right."""
    count = SHAPES[name]["raid_devices"]
    devices = [raidlib.MemoryDevice(SIZE) for _ in range(count)]
    content = random.Random(name).randbytes(6 << 20)
    with raidlib.create(devices, assume_clean=True, **SHAPES[name]) as array:
        array.pwrite(content, 0)
        array.flush()
        array.fail(1)
        new = raidlib.MemoryDevice(SIZE)
        array.set_speed(maximum=16 << 20)
        job = array.add(new)
        while job.status().done < 8 << 20:
            time.sleep(0.005)
        time.sleep(0.3)  # idle: the array is marked clean
        crashed = [device.fork() for index, device in enumerate(devices) if index != 1] + [new.fork()]
        array.set_speed(maximum=0)
    assert raidlib.examine(crashed[-1]).recovery_offset >= 4 << 20
    with raidlib.open(crashed) as array:
        assert array.job is not None and array.job.kind == "recovery"
        array.job.wait(timeout=60)
        assert array.pread(len(content), 0) == content
    paths = []
    for index, device in enumerate(crashed):
        paths.append(tmp_path / f"{index}.img")
        paths[-1].write_bytes(device.handle.pread(SIZE, 0))
    reader = oracle.ArrayReader(paths)
    assert reader.check() == [] and reader.read(0, len(content)) == content


def test_the_verb_job(tmp_path, monkeypatch, capsys):
    """raidlib job: looks, holds, limits, ends."""
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "run"))
    tank = str(tmp_path / "tank")

    def run(*words):
        with pytest.raises(SystemExit) as end:
            program.main(args=["job", tank, *words])
        return end.value.code or 0, "".join(capsys.readouterr())

    with raidlib.create(tank, level=5, raid_devices=3, size="24M", chunk="64K") as array, control.Owner(array):
        assert run()[0] == 0
        assert run("--pause")[0] == 64
        assert run("--speed-max", "1M") == (0, f"{tank}: no job has run\n")
        job = array.check()
        assert "check running" in run()[1]
        assert run("--pause")[0] == 0
        until = time.monotonic() + 10
        while job.status().state != "paused" and time.monotonic() < until:
            time.sleep(0.01)
        assert "check paused" in run()[1]
        assert run("--resume", "--speed-max", "0")[0] == 0
        job.wait(timeout=20)
        array.set_speed(maximum=1 << 20)
        job = array.repair()
        assert run("--cancel")[0] == 0
        job.join()
        assert "repair cancelled" in run()[1]
    code, words = run()
    assert code == 64 and "at rest" in words
