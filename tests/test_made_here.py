"""Arrays of every level, layout and metadata version made here.

Mdadm reads their superblocks, and an oracle that shares no code with the engine reads their bytes.
"""

import itertools
import random
import shutil
import subprocess

import oracle
import pytest

import raidlib

SHAPES = [
    *[(level, None, n) for level, n in (("linear", 3), (0, 3), (1, 2), (1, 4), (4, 4), (10, 4))],
    *[(5, layout, 4) for layout in raidlib.model.layout_names(raidlib.Level.RAID5) if not layout.startswith("ddf")],
    *[(6, layout, 5) for layout in raidlib.model.layout_names(raidlib.Level.RAID6)],
    *[(10, layout, n) for layout in ("n2", "n3", "f2", "f3", "o2", "o3") for n in (3, 4, 5)],
]
MDADM = shutil.which("mdadm") or "/sbin/mdadm"


def fill(array: raidlib.Array, seed: int) -> bytes:
    """Random content by writes of many shapes, over one another."""
    rng = random.Random(seed)
    content = bytearray(array.size)
    array.pwrite(bytes(content), 0)
    for _ in range(24):
        offset = rng.randrange(array.size)
        data = rng.randbytes(min(array.size - offset, rng.choice([1, 700, 4096, 70000, 600000])))
        array.pwrite(data, offset)
        content[offset : offset + len(data)] = data
    return bytes(content)


def mdadm_fields(path) -> dict[str, str]:
    ran = subprocess.run([MDADM, "--examine", str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict((part.strip() for part in line.split(" : ", 1)) for line in ran.stdout.splitlines() if " : " in line)


@pytest.mark.parametrize("metadata", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize(("level", "layout", "n"), SHAPES, ids=str)
def test_made_here(tmp_path, level, layout, n, metadata):
    with raidlib.create(
        tmp_path / "a", level=level, raid_devices=n, size="4M", chunk=None if level == 1 else "16K", layout=layout, metadata=metadata
    ) as array:
        content = fill(array, n)
        kind = array.level
    paths = sorted((tmp_path / "a").iterdir())
    for slot, path in enumerate(paths):
        fields = mdadm_fields(path)
        assert fields["Checksum"].endswith("correct")
        assert fields["Version"] == metadata
        assert fields["State"] == "clean"
        assert fields["Device Role"] == f"Active device {slot}"
        assert fields["Array State"].startswith("A" * n)
        assert fields["Raid Level"] == str(kind)
    reader = oracle.ArrayReader(paths)
    assert reader.read(0, reader.size) == content
    assert reader.check() == []
    bears = {-1: 0, 0: 0, 1: n - 1, 10: 1, 6: 2}.get(int(kind), 1)
    for gone in itertools.islice((g for k in range(bears, 0, -1) for g in itertools.combinations(range(n), k)), 12):
        left = [None if slot in gone else path for slot, path in enumerate(paths)]
        assert oracle.ArrayReader(left).read(0, reader.size) == content, f"the oracle, without {gone}"
        with raidlib.open(left, mode="r", run=True) as array:
            assert array.pread(array.size, 0) == content, f"without {gone}"


@pytest.mark.parametrize("layout", ["n2", "n3", "f2", "f3", "o2", "o3"])
def test_raid10_says_the_size_that_the_kernel_would(layout):
    """Else a member that misses the kernel's first update keeps mdadm from assembling the rest: "doesn't match others"."""
    near, far = (int(layout[1]), 1) if layout[0] == "n" else (1, int(layout[1]))
    for n, chunks in itertools.product((3, 4, 5, 7), (30, 31, 32, 33, 34, 35)):
        members = [raidlib.MemoryDevice((chunks * 16 + 1024) << 10) for _ in range(n)]
        raidlib.create(members, level=10, layout=layout, chunk="16K", size=f"{chunks * 16}K", data_offset="1M", assume_clean=True).close()
        total = chunks // far * n // near  # chunks of data: md's calc_sectors
        used = -(-total * near * far // n)
        assert {raidlib.examine(member).dev_size for member in members} == {used * 16384}, (n, chunks)


@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2), (4, 3), (10, 4), (5, 6)])
def test_rs_array_against_the_oracle(tmp_path, k, m):
    """rs has a superblock of its own magic, which mdadm does not take: the oracle reads it by geometry."""
    n = k + m
    with raidlib.create(tmp_path / "a", level="rs", raid_devices=n, parity=m, size="3M", chunk="8K") as array:
        content = fill(array, k)
        size = array.size
    paths = sorted((tmp_path / "a").iterdir(), key=lambda path: int(path.stem.split("-")[1]))
    block = raidlib.examine(paths[0])
    g = oracle.Geometry("rs", n, 16, 0, block.dev_size // 512, parity=m)
    images = [path.read_bytes() for path in paths]
    reader = oracle.ArrayReader.from_geometry(g, images, block.data_offset // 512)
    assert reader.read(0, size) == content
    assert reader.check() == []
    assert subprocess.run([MDADM, "--examine", str(paths[0])], capture_output=True, check=False).returncode != 0, "no kernel may take it"
    rng = random.Random(n)
    for _ in range(10):
        gone = rng.sample(range(n), m)
        left = [None if slot in gone else path for slot, path in enumerate(paths)]
        with raidlib.open(left, mode="r", run=True) as array:
            assert array.pread(size, 0) == content, f"without {gone}"
