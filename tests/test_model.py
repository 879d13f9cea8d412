"""Random histories of random arrays against a plain byte array; at the end the members themselves are judged.

By the oracle, and by galois's own arithmetic.

Hypothesis prints what reproduces a failure. The number of steps is printed at the end (`-s`), and must be 10,000 or more with the default
settings.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import galois
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import raidlib

FIELD = galois.GF(2**8, irreducible_poly=0x11D, primitive_element=2)
MOST = 6  # members
STEPS = {"taken": 0}
SHAPES = [
    ("linear", 2, None),
    (0, 3, None),
    (1, 2, None),
    (1, 3, None),
    (4, 4, None),
    *[
        (5, n, layout)
        for n in (3, 5)
        for layout in ("left-asymmetric", "right-asymmetric", "left-symmetric", "right-symmetric", "parity-first", "parity-last")
    ],
    *[
        (6, n, layout)
        for n in (4, 6)
        for layout in ("left-symmetric", "right-asymmetric", "ddf-zero-restart", "ddf-n-continue", "left-symmetric-6", "parity-first")
    ],
    *[(10, n, layout) for n in (3, 4) for layout in ("n2", "f2", "o2")],
    ("rs", 6, None),
]


class ArrayHistory(RuleBasedStateMachine):
    """One array and its model."""

    @initialize(shape=st.sampled_from(SHAPES), chunk=st.sampled_from([4, 16, 64]), metadata=st.sampled_from(["1.0", "1.1", "1.2"]))
    def make(self, shape, chunk, metadata):
        level, count, layout = shape
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.chunk = chunk << 10
        options = {"parity": 3} if level == "rs" else {}
        self.array = raidlib.create(
            self.folder,
            level=level,
            raid_devices=count,
            size="3M",
            layout=layout,
            metadata=metadata,
            chunk=None if level == 1 else self.chunk,
            **options,
        )
        self.level = self.array.level
        self.bears = {1: count - 1, 4: 1, 5: 1, 6: 2, 10: 1, 1919: 3}.get(int(self.level), 0)
        self.members = sorted(self.folder.iterdir())
        self.model = bytearray(self.array.size)
        self.spares = self.gone = 0
        self.rebuilding = False
        event(f"level {self.level}")

    def settle(self) -> list[int]:
        """Waits for the rebuilds (what is drawn must not hang on their speed); the slots in sync."""
        for _ in range(100):
            if self.array.job is not None:
                self.array.job.join()
            status = self.array.status()
            filling = any(m.state == "replacement" for m in status.members)
            if not filling and (status.job is None or status.job.state not in ("running", "paused")):
                present = [m.slot for m in status.members if m.state == "in_sync"]
                if len(present) == self.array.raid_devices - self.gone:
                    return present
            time.sleep(0.01)
        raise AssertionError(f"{self.gone} members are gone, and: {status}")

    @rule(
        where=st.floats(0, 1),
        length=st.sampled_from([1, 511, 512, 4096, 5000, 65536, 200000]),
        seed=st.integers(0, 2**32 - 1),
        kind=st.sampled_from([bytes, bytearray]),
    )
    def write(self, where, length, seed, kind):
        offset = int(where * (len(self.model) - 1))
        length = min(length, len(self.model) - offset)
        data = np.random.default_rng(seed).bytes(length)
        assert self.array.pwrite(kind(data), offset) == length
        self.model[offset : offset + length] = data

    @rule(where=st.floats(0, 1), chunks=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
    def write_chunks(self, where, chunks, seed):
        offset = int(where * (len(self.model) - 1)) // self.chunk * self.chunk
        length = min(chunks * self.chunk, len(self.model) - offset)
        data = np.random.default_rng(seed).bytes(length)
        self.array.pwrite(data, offset)
        self.model[offset : offset + length] = data

    @rule(where=st.floats(0, 1), length=st.sampled_from([1, 512, 4097, 70000]))
    def zero(self, where, length):
        offset = int(where * (len(self.model) - 1))
        length = min(length, len(self.model) - offset)
        self.array.zero(offset, length)
        self.model[offset : offset + length] = bytes(length)

    @rule()
    def flush(self):
        self.array.flush()

    @precondition(lambda self: self.gone < self.bears)
    @rule(pick=st.integers(0, MOST))
    def fail(self, pick):
        present = self.settle()
        self.array.fail(present[pick % len(present)])
        self.gone += 1
        self.rebuilding = False

    @precondition(lambda self: self.rebuilding)
    @rule()
    def fail_the_new_member(self):
        """In the middle of its rebuild, as a rule; or just after."""
        self.array.fail(self.members[-1])
        self.gone += 1
        self.rebuilding = False

    @precondition(lambda self: self.gone < self.bears)
    @rule(pick=st.integers(0, MOST), truncate=st.booleans())
    def destroy(self, pick, truncate):
        """A file goes away under the array, which must find out by itself."""
        present = self.settle()
        path = Path(next(m.path for m in self.array.status().members if m.slot == present[pick % len(present)]))
        if truncate:
            os.truncate(path, 0)
        path.unlink()
        self.members.remove(path)
        self.gone += 1
        self.rebuilding = False
        self.array.pwrite(bytes(self.model), 0)  # touches every member
        assert str(path) not in {m.path for m in self.array.status().members if m.state == "in_sync"}

    @precondition(lambda self: self.gone and self.spares < 8)
    @rule(wait=st.booleans())
    def add(self, wait):
        path = self.folder / f"spare-{self.spares}.img"
        self.spares += 1
        with path.open("wb") as file:
            file.truncate(3 << 20)
        self.members.append(path)
        job = self.array.add(path)
        self.gone -= 1
        self.rebuilding = True
        if job is not None and wait:
            job.wait()

    @precondition(lambda self: self.bears and self.spares < 8)
    @rule(pick=st.integers(0, MOST), wait=st.booleans())
    def replace(self, pick, wait):
        """Ahead of a failure; what is drawn next may meet it in the middle."""
        present = self.settle()
        path = self.folder / f"spare-{self.spares}.img"
        self.spares += 1
        with path.open("wb") as file:
            file.truncate(3 << 20)
        self.members.append(path)
        self.rebuilding = False
        job = self.array.replace(present[pick % len(present)], path)
        event("replaced")
        if wait:
            job.wait()

    @rule()
    def reopen(self):
        self.array.close()
        self.array = raidlib.open(self.members, run=True)

    @rule()
    def power_cut(self):
        """Between two requests: the members as they are now, without a close.

        What was acknowledged is there, and who was failed stays out.
        """
        self.settle()
        self.rebuilding = False
        images = {path: path.read_bytes() for path in self.members}
        self.array.close()
        for path, image in images.items():
            path.write_bytes(image)
        self.array = raidlib.open(self.members, run=True, force=bool(self.gone))

    @precondition(lambda self: self.bears)
    @rule(repair=st.booleans())
    def check(self, repair):
        self.settle()
        self.rebuilding = False
        job = self.array.repair() if repair else self.array.check()
        job.wait()
        assert job.status().mismatch_count == 0

    @invariant()
    def reads_equal_the_model(self):
        STEPS["taken"] += 1
        if hasattr(self, "array"):
            assert self.array.pread(len(self.model), 0) == self.model

    def teardown(self):
        if not hasattr(self, "array"):
            return
        try:
            self.settle()
            self.array.close()
            self.judge_members()
        finally:
            self.array.close()
            shutil.rmtree(self.folder)

    def judge_members(self):
        """What lies on the members, without the engine."""
        if self.level == raidlib.Level.RS:
            return  # its superblock is our own: tests/test_made_here.py judges it by geometry
        reader = oracle.ArrayReader([str(p) for p in self.members])
        assert reader.read(0, reader.size) == self.model
        assert reader.check() == []
        if self.level in (4, 5, 6):
            judge_parity(self.members)


def judge_parity(members) -> None:
    """P and Q of every stripe of the whole members, by galois."""
    blocks = [oracle.parse_superblock(Path(p).read_bytes()) for p in members]
    best = max((b for b in blocks if b.role < 0xFF00), key=lambda b: b.events)
    present = {
        b.role: Path(p).read_bytes()[b.data_offset * 512 :]
        for b, p in zip(blocks, members, strict=True)
        if b.role < 0xFF00 and b.events == best.events
    }
    if len(present) < best.raid_disks:
        return
    g = oracle.Geometry(best.level, best.raid_disks, best.chunk, best.layout, best.size)
    size = best.chunk * 512
    for s in range(best.size // best.chunk):
        r = oracle.row(g, s)
        column = {slot: FIELD(np.frombuffer(present[slot][s * size : (s + 1) * size], np.uint8)) for slot in present}
        total = [FIELD.Zeros(size) for _ in r.parity]
        for slot, exponent in zip(r.data, r.exponents, strict=True):
            total[0] += column[slot]
            if len(total) > 1:
                total[1] += column[slot] * FIELD(2) ** exponent
        for slot, computed in zip(r.parity, total, strict=True):
            assert np.array_equal(column[slot], computed), f"stripe {s}: parity in slot {slot}"


@pytest.mark.timeout(900)
def test_histories():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        ArrayHistory,
        settings=settings(
            max_examples=330,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=[Phase.generate],
        ),
    )
    print(f"{STEPS['taken']} steps")
    assert STEPS["taken"] >= 10_000
