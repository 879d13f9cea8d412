"""zero and discard: what they cover reads as zeros, parity and copies stay true, whole stripes give their space back."""

import os
import random

import oracle
import pytest

import raidlib

SHAPES = {
    "linear": {"level": "linear", "raid_devices": 2},
    "raid0": {"level": 0, "raid_devices": 3, "chunk": "64K"},
    "raid1": {"level": 1, "raid_devices": 3},
    "raid4": {"level": 4, "raid_devices": 3, "chunk": "16K"},
    "raid5": {"level": 5, "raid_devices": 4, "chunk": "64K"},
    "raid6": {"level": 6, "raid_devices": 5, "chunk": "64K"},
    "raid6-ddf": {"level": 6, "raid_devices": 5, "chunk": "64K", "layout": "ddf-N-continue"},
    "raid10": {"level": 10, "raid_devices": 4, "chunk": "64K"},
    "raid10-o2": {"level": 10, "raid_devices": 3, "chunk": "64K", "layout": "o2"},
    "rs": {"level": "rs", "raid_devices": 6, "parity": 3, "chunk": "64K"},
}


def blocks(folder):
    return sum(path.stat().st_blocks for path in folder.glob("*.img"))


@pytest.mark.parametrize("verb", ["zero", "discard"])
@pytest.mark.parametrize("lost", [False, True], ids=["whole", "degraded"])
@pytest.mark.parametrize("name", SHAPES)
def test_any_range(tmp_path, name, lost, verb):
    """Against a bytearray; then what lies on the members, read by the oracle."""
    if lost and SHAPES[name]["level"] in ("linear", 0):
        return  # bears no loss
    rng = random.Random(name + verb)
    with raidlib.create(tmp_path / "tank", size="6M", **SHAPES[name]) as array:
        model = bytearray(rng.randbytes(array.size))
        array.pwrite(bytes(model), 0)
        if lost:
            array.fail(1)
        unit = array.chunk_size or 4096
        for _ in range(40):
            offset, length = rng.randrange(array.size), rng.choice([1, 511, 5000, unit, 5 * unit, 2 << 20])
            if rng.random() < 0.5:
                offset, length = offset // unit * unit, length // unit * unit
            length = min(length, array.size - offset)
            getattr(array, verb)(offset, length)
            model[offset : offset + length] = bytes(length)
            if rng.random() < 0.3:
                offset = rng.randrange(array.size - 70000)
                model[offset : offset + 70000] = fresh = rng.randbytes(70000)
                array.pwrite(fresh, offset)
        assert array.pread(array.size, 0) == model
        if SHAPES[name]["level"] not in ("linear", 0):
            job = array.check()
            job.wait()
            assert job.status().mismatch_count == 0
        members = [member.path for member in array.status().members if member.state == "in_sync"]
    if name == "rs":  # not md's: the oracle does not know it; its parities must give the same
        with raidlib.open(members[2:], "r", run=True) as array:
            assert array.pread(array.size, 0) == model
    else:
        reader = oracle.ArrayReader(members)
        assert reader.read(0, reader.size) == model


@pytest.mark.parametrize("name", SHAPES)
def test_discard_gives_space_back(tmp_path, name):
    folder = tmp_path / "tank"
    with raidlib.create(folder, size="6M", **SHAPES[name]) as array:
        array.flush()
        before = blocks(folder)
        array.pwrite(random.Random(name).randbytes(array.size), 0)
        array.flush()
        full = blocks(folder)
        assert full >= before + array.size // 512
        array.discard(0, array.size)
        array.flush()
        os.sync()
        assert blocks(folder) - before < (full - before) // 50  # raid1's last blocks are no whole region
        assert array.pread(array.size, 0) == bytes(array.size)


def test_where_members_cannot_it_is_written(tmp_path):
    """A Python object has no such call: zeros are written, under the same lock."""

    class Plain:
        block_size = 512

        def __init__(self):
            self.size, self.data, self.written = 6 << 20, bytearray(6 << 20), 0

        def preadinto(self, buffer, offset):
            buffer[:] = self.data[offset : offset + len(buffer)]

        def pwrite(self, data, offset):
            self.written += len(data)
            self.data[offset : offset + len(data)] = data

        def flush(self):
            pass

        def close(self):
            pass

    mixed = [Plain(), raidlib.MemoryDevice("6M"), tmp_path / "file.img", Plain()]
    (tmp_path / "file.img").write_bytes(bytes(6 << 20))
    with raidlib.create(mixed, level=6, raid_devices=4, chunk="64K", assume_clean=True) as array:
        array.pwrite(b"\xa5" * array.size, 0)
        written = mixed[0].written
        array.discard(0, array.size)
        assert mixed[0].written > written
        assert array.pread(array.size, 0) == bytes(array.size)
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0


def test_out_of_range(tmp_path):
    with raidlib.create(tmp_path / "tank", level=1, raid_devices=2, size="6M") as array:
        for offset, length in ((-1, 10), (0, -1), (array.size - 10, 11), (array.size + 1, 0)):
            with pytest.raises(raidlib.errors.UsageError):
                array.zero(offset, length)
        array.zero(array.size, 0)
