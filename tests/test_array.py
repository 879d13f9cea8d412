"""What an array does when members fail, in each way they can.

The promises of DESIGN.md section 4 and the invariants at the head of csrc/engine.c and csrc/stripe.c.
"""

import errno
import io
import os
import random
import time
from pathlib import Path

import oracle
import pytest

import raidlib
from raidlib import errors

SIZE = 4 << 20


class Disk:
    """A BlockDevice in memory that fails where it is told to, and remembers what was asked of it."""

    def __init__(self, size=SIZE, block_size=512, content=None):
        self.size, self.block_size = size, block_size
        self.data = bytearray(content or bytes(size))
        self.bad_reads: set[int] = set()  # sectors that cannot be read until they are written
        self.write_error = self.flush_error = 0
        self.writes: list[tuple[int, int]] = []

    def preadinto(self, buffer, offset):
        assert offset % self.block_size == 0 and len(buffer) % self.block_size == 0
        if self.bad_reads & set(range(offset // 512, (offset + len(buffer)) // 512)):
            raise OSError(errno.EIO, "bad sector")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def pwrite(self, data, offset):
        assert offset % self.block_size == 0 and len(data) % self.block_size == 0
        if self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        self.bad_reads -= set(range(offset // 512, (offset + len(data)) // 512))
        self.writes.append((offset, len(data)))
        self.data[offset : offset + len(data)] = data

    def flush(self):
        if self.flush_error:
            raise OSError(self.flush_error, os.strerror(self.flush_error))

    def close(self):
        pass


def make(n=4, level=5, **options):
    disks = [Disk() for _ in range(n)]
    array = raidlib.create(disks, level=level, chunk=None if level == 1 else "16K", assume_clean=True, **options)
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    return array, disks, content


def data_offset(disk):
    return oracle.parse_superblock(bytes(disk.data)).data_offset * 512


def states(array):
    return {m.slot: m.state for m in array.status().members if m.slot is not None}


LEVELS = [(1, 3), (4, 4), (5, 4), (6, 5), (10, 4)]


@pytest.mark.parametrize(("level", "n"), LEVELS)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_read_error_is_mended(level, n, block_size):
    array, disks, content = make(n, level)
    array.close()
    disks = [Disk(block_size=block_size, content=disk.data) for disk in disks]
    with raidlib.open(disks) as array:
        start = data_offset(disks[1]) // 512
        disks[1].bad_reads = {start, start + 9, start + 40}
        for _ in range(2 * n):  # whichever copy is asked
            assert array.pread(array.size, 0) == content
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0
        assert not disks[1].bad_reads, "rewritten"
        assert array.status().corrected_reads >= 3
        assert set(states(array).values()) == {"in_sync"}


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_read_errors_of_a_read_only_array_write_nothing(level, n):
    """Different sectors of two members of one stripe: each is reconstructed from what the others have there."""
    array, disks, content = make(n, level)
    array.close()
    before = [bytes(disk.data) for disk in disks]
    start = data_offset(disks[0]) // 512
    disks[0].bad_reads, disks[1].bad_reads = {start + 1}, {start + 2, start + 3}
    with raidlib.open(disks, mode="r") as array:
        assert array.pread(array.size, 0) == content
        assert set(states(array).values()) == {"in_sync"}
        with pytest.raises(errors.ReadOnlyError):
            array.pwrite(b"x", 0)
        with pytest.raises(errors.ReadOnlyError):
            array.add(Disk())
    assert [bytes(disk.data) for disk in disks] == before


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_failed_write_is_recorded_before_it_is_acknowledged(level, n):
    """I1: when pwrite returns, the survivors' superblocks name the failed member; later openings leave it out."""
    array, disks, content = make(n, level)
    content = bytearray(content)
    events = oracle.parse_superblock(bytes(disks[0].data)).events
    disks[1].write_error = errno.EIO
    content[: 1 << 17] = bytes(1 << 17)
    array.pwrite(bytes(content[: 1 << 17]), 0)
    for slot in (0, 2):
        block = oracle.parse_superblock(bytes(disks[slot].data))
        assert block.events > events
        assert block.roles[1] == 0xFFFE
    assert states(array)[1] == "removed"
    assert array.pread(array.size, 0) == content
    disks[1].write_error = 0
    array.close()
    with raidlib.open(disks) as array:
        assert states(array)[1] == "removed"
        assert array.pread(array.size, 0) == content
        stale = [m for m in array.status().members if m.state in ("stale", "faulty")]
        assert len(stale) == 1 and stale[0].reason


@pytest.mark.parametrize("error", [errno.EIO, errno.ENODEV, errno.ETIMEDOUT])
def test_a_failed_flush_fails_the_member_not_the_promise(error):
    array, disks, content = make()
    disks[2].flush_error = error
    array.flush()
    assert states(array)[2] == "removed"
    assert array.pread(array.size, 0) == content
    array.close()


def test_the_last_that_the_content_needs_is_never_failed():
    for level, n in LEVELS:
        array, disks, content = make(n, level)
        for slot in range({1: n - 1, 6: 2}.get(level, 1)):
            array.fail(slot)
        with pytest.raises(errors.BusyError, match="would lose data"):
            array.fail(n - 1 if level != 10 else 1)
        assert array.pread(array.size, 0) == content
        array.close()
        del disks


def test_beyond_the_tolerance_the_superblocks_stay_as_they_are():
    """I2: a cable pulled from two members of a RAID 5: no write is acknowledged, and after it is back the array opens as it was."""
    array, disks, content = make()
    array.fail(3)
    disks[0].write_error = errno.ENODEV
    with pytest.raises(errors.ArrayIOError):
        array.pwrite(b"x" * 200000, 0)
    assert array.status().state == "failed"
    with pytest.raises(errors.ArrayIOError):
        array.pwrite(b"y", 0)
    disks[0].write_error = 0
    with pytest.raises(errors.ArrayIOError):
        array.close()
    with pytest.raises(errors.RefusedError, match="--force"):
        raidlib.open(disks)
    with raidlib.open(disks, force=True) as array:
        assert array.pread(array.size - 300000, 300000) == content[300000:]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_full_file_system_is_not_the_members_fault(level, n, error):
    array, disks, _content = make(n, level)
    disks[1].write_error = error
    with pytest.raises(errors.NoSpaceError):
        array.pwrite(b"x" * 400000, 0)
    assert set(states(array).values()) == {"in_sync"}
    disks[1].write_error = 0
    content = b"y" * array.size
    for _ in range(100):
        if array.state != "read_only":
            break
        time.sleep(0.1)  # it tries again once a second
    array.pwrite(content, 0)
    array.close()
    with raidlib.open(disks) as array:  # what was half written is resynced
        if array.job:
            array.job.wait()
        job = array.check()
        job.wait()
        assert job.status().mismatch_count == 0
        assert array.pread(array.size, 0) == content


def files(tmp_path, level=6, n=6):
    array = raidlib.create(tmp_path / "a", level=level, raid_devices=n, size="4M", chunk="16K")
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    return array, sorted((tmp_path / "a").iterdir()), content


@pytest.mark.parametrize("how", ["truncate", "delete", "replace"])
def test_a_lost_file_is_noticed_without_any_request(tmp_path, how):
    """The heartbeat: path, inode and size of each member, each second."""
    array, paths, content = files(tmp_path)
    if how == "truncate":
        os.truncate(paths[2], 0)
    else:
        paths[2].rename(tmp_path / "elsewhere") if how == "replace" else paths[2].unlink()
    if how == "replace":
        paths[2].write_bytes(bytes(SIZE))
    for _ in range(50):
        if states(array)[2] != "in_sync":
            break
        time.sleep(0.1)
    assert states(array)[2] == "removed"
    faulty = next(m for m in array.status().members if m.state == "faulty")
    assert {"truncate": "truncated", "delete": "deleted", "replace": "replaced"}[how] in faulty.reason
    assert array.pread(array.size, 0) == content
    array.close()


def test_a_truncated_file_is_not_extended_by_a_write(tmp_path):
    """M2"""
    array, paths, content = files(tmp_path)
    os.truncate(paths[1], 0)
    array.pwrite(content, 0)
    assert paths[1].stat().st_size == 0
    assert states(array)[1] == "removed"
    assert array.pread(array.size, 0) == content
    array.close()


def test_clean_and_active(tmp_path):
    """I3: active before the first write, clean 200 ms after the last, clean after close."""
    array = raidlib.create(tmp_path / "a", level=5, raid_devices=3, size="4M", chunk="16K")
    path = tmp_path / "a" / "member-0.img"
    assert raidlib.examine(path).state == "clean"
    array.pwrite(b"x", 0)
    assert raidlib.examine(path).state == "active"
    for _ in range(50):
        if raidlib.examine(path).state == "clean":
            break
        time.sleep(0.1)
    assert raidlib.examine(path).state == "clean"
    array.pwrite(b"y", 0)
    array.close()
    assert raidlib.examine(path).state == "clean"


def test_a_crash_leaves_a_resync_behind(tmp_path):
    array, paths, content = files(tmp_path, 5, 4)
    crashed = [path.read_bytes() for path in paths]  # as a power cut would leave them
    array.close()
    start = oracle.parse_superblock(crashed[0]).data_offset * 512
    crashed[3] = crashed[3][:start] + bytes(16384) + crashed[3][start + 16384 :]  # parity of stripe 0 did not make it
    for path, image in zip(paths, crashed, strict=True):
        path.write_bytes(image)
    with pytest.raises(errors.RefusedError, match="--force"):
        raidlib.open(paths[:3], run=True)
    with raidlib.open(paths) as array:
        assert array.job is not None and array.job.kind == "resync"
        array.job.wait()
        assert array.job.status().mismatch_count == 8 * 4
        assert array.pread(array.size, 0) == content
    assert oracle.ArrayReader(paths).check() == []


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_a_rebuild_goes_on_where_it_stopped(tmp_path, level, n):
    """I5: what is below the checkpoint in the superblock is on the member."""
    array = raidlib.create(tmp_path / "a", level=level, raid_devices=n, size="24M", chunk=None if level == 1 else "64K")
    content = random.Random(n).randbytes(array.size)
    array.pwrite(content, 0)
    array.fail(0)
    new = tmp_path / "new.img"
    with new.open("wb") as file:
        file.truncate(24 << 20)
    job = array.add(new)
    job.set_speed(maximum=20 << 20)
    while job.status().done < 6 << 20:
        time.sleep(0.01)
    job.pause()
    array.pwrite(b"during the rebuild" * 1000, 12345)
    content = content[:12345] + b"during the rebuild" * 1000 + content[12345 + 18000 :]
    assert array.pread(array.size, 0) == content
    array.close()
    block = raidlib.examine(new)
    assert block.role == "rebuilding" and 6 << 20 <= block.recovery_offset < 24 << 20
    members = [*sorted((tmp_path / "a").iterdir())[1:], new]
    with raidlib.open(members) as array:
        assert array.job.status().done >= block.recovery_offset
        array.job.wait()
        assert states(array)[0] == "in_sync"
        assert array.pread(array.size, 0) == content
    assert oracle.ArrayReader(members).check() == []
    with raidlib.open([*members[1:]], run=True) as array:
        assert array.pread(array.size, 0) == content


def test_a_new_member_after_one_that_failed_in_its_rebuild(tmp_path):
    array, _paths, content = files(tmp_path, 5, 4)
    array.fail(0)
    for number in range(6):
        new = tmp_path / f"new-{number}.img"
        with new.open("wb") as file:
            file.truncate(SIZE)
        job = array.add(new)
        job.set_speed(maximum=1 << 20)
        if number < 5:
            array.fail(new)
            assert job.done
    job.set_speed()
    job.wait()
    assert set(states(array).values()) == {"in_sync"}
    assert array.pread(array.size, 0) == content
    array.close()


@pytest.mark.parametrize(("level", "n"), LEVELS)
def test_re_add_is_for_former_members(level, n):
    array, disks, content = make(n, level)
    array.fail(0)
    if level == 6:
        array.fail(2)
    content = content[:5000] + b"while it was away" + content[5017:]
    array.pwrite(b"while it was away", 5000)
    blank, stranger = Disk(), [Disk(), Disk()]
    raidlib.create(stranger, level=1).close()
    for wrong in (blank, stranger[0]):
        before = bytes(wrong.data)
        with pytest.raises(errors.UsageError, match="`add` takes it"):
            array.re_add(wrong)
        assert bytes(wrong.data) == before
    away = 2 if level == 6 else 0
    array.re_add(disks[away]).wait()  # not the first empty slot: its own
    assert states(array)[away] == "in_sync" and array.status().degraded == (level == 6)
    if level == 6:
        assert states(array)[0] == "removed"
        array.add(blank).wait()
        assert array.re_add(disks[0]) is None, "its slot is taken: a spare"
    assert array.pread(array.size, 0) == content
    array.close()
    with raidlib.open([*disks, *([blank] if level == 6 else [])]) as array:
        assert array.pread(array.size, 0) == content
        assert set(states(array).values()) == {"in_sync"}


def test_a_failed_member_goes_by_its_slot_and_directories_go_in_lists(tmp_path):
    array, paths, content = files(tmp_path, 5, 4)
    array.fail(1)
    assert array.remove(1) == [str(paths[1])]
    (tmp_path / "b").mkdir()
    with (tmp_path / "b" / "new.img").open("wb") as file:
        file.truncate(SIZE)
    array.add(tmp_path / "b" / "new.img").wait()
    array.close()
    with raidlib.open([tmp_path / "a", tmp_path / "b"]) as array:
        assert set(states(array).values()) == {"in_sync"}
        assert array.pread(array.size, 0) == content


@pytest.mark.parametrize(("level", "n"), [("linear", 2), (0, 2), *LEVELS, ("rs", 5)])
def test_members_in_memory(level, n):
    members = [raidlib.MemoryDevice("8M") for _ in range(n)]
    with raidlib.create(members, level=level, chunk=None if level == 1 else "16K") as array:
        content = random.Random(n).randbytes(array.size)
        array.pwrite(content, 0)
        with pytest.raises(errors.BusyError):
            members[0].close()
    lost = None if level in ("linear", 0) else 0
    with raidlib.open([m for i, m in enumerate(members) if i != lost], run=True) as array:
        assert array.pread(array.size, 0) == content
        if lost is not None:
            array.add(raidlib.MemoryDevice("8M")).wait()
            assert set(states(array).values()) == {"in_sync"}
    for member in members:
        member.close()


def test_a_spare_steps_in(tmp_path):
    with raidlib.create(tmp_path / "a", level=5, raid_devices=3, spare_devices=1, size="4M", chunk="16K") as array:
        array.pwrite(b"x" * array.size, 0)
        assert [m.state for m in array.status().members if m.slot is None] == ["spare"]
        array.fail(1)
        array.job.wait()
        assert set(states(array).values()) == {"in_sync"}
        assert array.remove("faulty") == [str(tmp_path / "a" / "member-1.img")]


def test_check_names_the_member_that_lies_and_repair_mends_it(tmp_path):
    array, paths, content = files(tmp_path)
    array.close()
    image = bytearray(paths[2].read_bytes())
    start = oracle.parse_superblock(bytes(image)).data_offset * 512
    image[start + 5000] ^= 0xFF
    image[start + 100000] ^= 0x01
    paths[2].write_bytes(image)
    with raidlib.open(paths) as array:
        job = array.check()
        job.wait()
        assert array.status().mismatch_count == 16
        assert [(m.sector, m.sectors, m.slot, m.repaired) for m in job.mismatches()] == [(8, 8, 2, False), (192, 8, 2, False)]
        job = array.repair()
        job.wait()
        assert all(m.repaired and m.slot == 2 for m in job.mismatches())
        assert array.pread(array.size, 0) == content
        array.check().wait()
        assert array.status().mismatch_count == 0


def test_repair_of_three_copies_goes_by_the_majority(tmp_path):
    array = raidlib.create(tmp_path / "a", level=1, raid_devices=3, size="4M")
    array.pwrite(b"x" * array.size, 0)
    array.close()
    paths = sorted((tmp_path / "a").iterdir())
    start = oracle.parse_superblock(paths[0].read_bytes()).data_offset * 512
    image = bytearray(paths[0].read_bytes())
    image[start + 5000] = 0
    paths[0].write_bytes(image)
    with raidlib.open(paths) as array:
        job = array.repair()
        job.wait()
        assert [(m.sector, m.slot) for m in job.mismatches()] == [(8, 0)]
        assert array.pread(array.size, 0) == b"x" * array.size


def test_a_forked_child_is_refused(tmp_path):
    array, _paths, content = files(tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            array.pwrite(b"child", 0)
        except errors.ForkedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert array.pread(array.size, 0) == content
    array.close()


def test_second_openers(tmp_path):
    array, paths, _content = files(tmp_path)
    (tmp_path / "link").symlink_to(paths[0])
    os.link(paths[1], tmp_path / "hard")
    for source in (paths, tmp_path / "a", [tmp_path / "link", *paths[1:]], [paths[0], tmp_path / "hard", *paths[2:]]):
        with pytest.raises(errors.BusyError, match="in use"):
            raidlib.open(source)
    array.close()
    with raidlib.open(paths, mode="r"), raidlib.open(paths, mode="r"), pytest.raises(errors.BusyError):
        raidlib.open(paths)


def test_bounds_and_buffers(tmp_path):
    array, _paths, content = files(tmp_path)
    for call in (
        lambda: array.pread(1, array.size),
        lambda: array.pread(-1, 0),
        lambda: array.pwrite(b"xx", array.size - 1),
        lambda: array.pread(1, -1),
    ):
        with pytest.raises(errors.UsageError):
            call()
    with pytest.raises(errors.UsageError, match="writable"):
        array.preadinto(b"bytes", 0)
    assert array.pread(0, array.size) == b""
    assert array.pread(1, 7) == content[7:8]
    with io.BufferedRandom(array.raw()) as file:
        file.seek(100)
        assert file.read(50) == content[100:150]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
        file.seek(0)
        file.write(memoryview(b"abcdef")[::1])
    assert array.pread(6, 0) == b"abcdef"
    array.close()
    with pytest.raises(errors.UsageError, match="closed"):
        array.pread(1, 0)


# ---- assembly (md-format.md 6.1 to 6.3, 8.6) ------------------------------------------------------------------------------


def edit(path, **fields):
    """Changes fields of a member's superblock, with a right checksum."""
    from raidlib.member import Member, read_superblock, write_superblock

    with Member.open(path) as member:
        sb = read_superblock(member)
        for name, value in fields.items():
            if name.startswith("role"):
                sb.dev_roles[int(name[4:])] = value
            else:
                setattr(sb, name, value)
        write_superblock(member, sb)


@pytest.fixture
def stopped(tmp_path):
    array, paths, content = files(tmp_path, 5, 4)
    array.close()
    for path in paths:
        edit(path, events=50)
    return paths, content


def test_one_event_behind_is_in(stopped):
    paths, content = stopped
    edit(paths[1], events=49)
    with raidlib.open(paths, mode="r") as array:
        assert states(array)[1] == "in_sync"
        assert array.pread(array.size, 0) == content


def test_one_event_behind_and_called_faulty_is_out(stopped):
    paths, _content = stopped
    edit(paths[1], events=49)
    for path in (paths[0], paths[2], paths[3]):
        edit(path, role1=0xFFFE)
    with raidlib.open(paths, mode="r") as array:
        assert states(array)[1] == "removed"


def test_two_events_behind_is_stale(stopped):
    paths, _content = stopped
    edit(paths[1], events=48)
    plan = raidlib.plan(paths)
    assert plan.needs_run
    with pytest.raises(errors.RefusedError, match="stale: event count 48, the freshest has 50"):
        raidlib.open(paths, mode="r")
    with raidlib.open(paths, mode="r", run=True) as array:
        assert states(array)[1] == "removed"


def test_more_stale_than_it_bears(stopped):
    paths, content = stopped
    edit(paths[1], events=40)
    edit(paths[2], events=30)
    with pytest.raises(errors.NotEnoughMembersError, match="--force"):
        raidlib.open(paths, run=True)
    with raidlib.open(paths, mode="r", force=True) as array:
        assert states(array) == {0: "in_sync", 1: "in_sync", 2: "removed", 3: "in_sync"}
        assert array.pread(array.size, 0) == content


def test_a_spare_never_defines_the_array(stopped, tmp_path):
    paths, content = stopped
    spare = tmp_path / "spare.img"
    spare.write_bytes(paths[0].read_bytes())
    edit(spare, events=99, dev_number=7, raid_disks=4, device_uuid=bytes(range(16)))
    with raidlib.open([*paths, spare], mode="r") as array:
        assert array.pread(array.size, 0) == content
        assert [m.path for m in array.status().members if m.state == "spare"] == [str(spare)]


def test_split_brain_goes_by_the_higher_count(stopped):
    paths, _content = stopped
    edit(paths[0], events=50, role1=0xFFFE)
    edit(paths[1], events=49, role0=0xFFFE)
    members = {m.path: m for m in raidlib.plan(paths).members}
    assert members[str(paths[1])].state == "faulty"
    assert members[str(paths[0])].state == "in_sync"


def test_halves_that_were_used_apart_are_not_mixed(tmp_path):
    """Each half of a mirror says that the other is gone; the fresher is taken, and the reason says what happened."""
    array, paths, _content = files(tmp_path, 1, 2)
    array.close()
    edit(paths[0], events=50, role1=0xFFFF)
    edit(paths[1], events=49, role0=0xFFFF)
    with raidlib.open(paths, mode="r", run=True) as array:
        assert states(array) == {0: "in_sync", 1: "removed"}


def test_dirty_and_degraded_needs_force(stopped):
    paths, content = stopped
    for path in paths[:3]:
        edit(path, resync_offset=0)
    with pytest.raises(errors.RefusedError, match="not stopped cleanly"):
        raidlib.open(paths[:3], mode="r", run=True)
    with raidlib.open(paths[:3], force=True) as array:
        assert array.pread(array.size, 0) == content


def test_dirty_and_degraded_mirrors_start(tmp_path):
    array, paths, content = files(tmp_path, 10, 4)
    array.close()
    for path in paths:
        edit(path, resync_offset=0)
    with raidlib.open(paths[1:], run=True) as array:
        assert array.pread(array.size, 0) == content


def test_mixtures_copies_and_strangers(stopped, tmp_path):
    paths, _content = stopped
    before = [path.read_bytes() for path in paths]
    raidlib.create(tmp_path / "b", level=5, raid_devices=3, size="4M", chunk="16K").close()
    with pytest.raises(errors.MixedArraysError, match="2 arrays"):
        raidlib.open([*paths, tmp_path / "b" / "member-0.img"])
    copy = tmp_path / "copy.img"
    copy.write_bytes(before[0])
    with pytest.raises(errors.UsageError, match="copy of"):
        raidlib.open([*paths, copy])
    with pytest.raises(errors.UsageError, match="same file"):
        raidlib.open([*paths, paths[0]])
    for stranger in (random.Random(1).randbytes(1 << 20), b"", b"short"):
        copy.write_bytes(stranger)
        with pytest.raises(errors.NoSuperblockError, match=r"copy\.img"):
            raidlib.open([*paths[1:], copy])
    with pytest.raises(errors.UsageError, match="does not exist"):
        raidlib.open([*paths, tmp_path / "nothing"])
    copy.write_bytes(before[0][: len(before[0]) // 2])
    with pytest.raises(errors.UsageError, match=r"copy\.img.*(truncated|damaged)|truncated"):
        raidlib.open([copy, *paths[1:]])
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(("feature", "name"), [(1, "bitmap"), (1024, "PPL"), (512, "journal"), (4, "reshape"), (256, "clustered")])
def test_what_is_not_handled_is_refused_by_name(stopped, feature, name):
    paths, content = stopped
    for path in paths:
        edit(
            path,
            feature_map=feature,
            **({"bitmap_offset": 8} if feature == 1 else {"ppl_offset": 8, "ppl_sectors": 1024} if feature == 1024 else {}),
        )
    before = [path.read_bytes() for path in paths]
    with pytest.raises(errors.UnsupportedError, match=name):
        raidlib.open(paths)
    if feature in (1, 256, 1024):
        with raidlib.open(paths, mode="r") as array:
            assert array.pread(array.size, 0) == content
    assert [path.read_bytes() for path in paths] == before


def test_create_refuses_what_would_be_lost(tmp_path):
    array, paths, content = files(tmp_path)
    array.close()
    with pytest.raises(errors.RefusedError, match=r"member-0\.img"):
        raidlib.create(tmp_path / "a", level=5, raid_devices=3, size="4M")
    with pytest.raises(errors.RefusedError, match="superblock of array"):
        raidlib.create(paths, level=5)
    with raidlib.open(paths) as array:
        assert array.pread(array.size, 0) == content
    for wrong in (
        {"level": 7},
        {"level": 6, "raid_devices": 3},
        {"level": 5, "raid_devices": 3, "chunk": "5K"},
        {"level": 5, "raid_devices": 3, "layout": "n2"},
    ):
        with pytest.raises(errors.UsageError):
            raidlib.create(tmp_path / "c", size="4M", **wrong)
    with pytest.raises(errors.UsageError, match="too small"):
        raidlib.create(tmp_path / "c", level=5, raid_devices=3, size="1M")
    assert not list(Path(tmp_path / "c").iterdir()) if (tmp_path / "c").exists() else True


def test_members_that_are_not_blank_are_resynced(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"disk{number}")
        paths[-1].write_bytes(random.Random(number).randbytes(4 << 20))
    with raidlib.create(paths, level=6, chunk="16K") as array:
        assert array.job is not None and array.job.kind == "resync"
        array.job.wait()
    assert oracle.ArrayReader(paths).check() == []
