"""The verbs on arrays of arrays: at rest, by the control sockets of a live one, and on a mount."""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import threading
from pathlib import Path

import pytest
from test_cli import one_line, run, run_json

import raidlib
from raidlib import control, errors, mount, runtime

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing")
SIZE = 4 << 20


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """A folder for running arrays that no other test has."""
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def tank(tmp_path):
    """A mirror of two raid5s, by the command line."""
    for name in "ab":
        run("create", tmp_path / "tank" / name, "--level", 5, "-n", 3, "--size", SIZE, "--chunk", "16K")
    run("create", tmp_path / "tank" / "a", tmp_path / "tank" / "b", "--level", 1, "-n", 2, "--assume-clean")
    return tmp_path / "tank"


def fill(source, seed=1):
    with raidlib.open(source) as array:
        content = random.Random(seed).randbytes(array.size)
        array.pwrite(content, 0)
    return content


def content_of(source):
    with raidlib.open(source, mode="r") as array:
        return array.pread(array.size, 0)


def blank(path, size=SIZE):
    Path(path).touch()
    os.truncate(path, size)
    return path


# --- At rest ----------------------------------------------------------------------------------------------------------


def test_detail_is_one_tree(tank):
    lines = run("detail", tank).stdout.splitlines()
    rows = [line.split()[3] for line in lines if " in sync " in line]
    assert rows == [f"{name}{leaf}" for name in "ab" for leaf in ("", "/member-0.img", "/member-1.img", "/member-2.img")]
    assert "  0     in sync  a               raid5 of 3, whole" in lines
    assert any(line.startswith("    2   in sync  b/member-2.img") for line in lines)
    assert "Of the files and devices below, any 3 may be lost." in " ".join(lines)
    document = run_json("detail", tank)
    assert [m["array"]["level"] for m in document["members"]] == ["raid5", "raid5"]
    assert [m["path"] for m in document["members"][1]["array"]["members"]] == [f"{tank}/b/member-{slot}.img" for slot in range(3)]


def test_the_path_decides_and_test_sees_every_level(tank):
    run("detail", tank, "--test")
    answer = run("fail", tank, tank / "a" / "member-1.img")
    assert f"{tank}/a: degraded, 1 slot of 3 not in sync; no further member may be lost" in answer.stdout
    assert f"{tank}: clean; 1 more member may be lost" in answer.stdout
    run("detail", tank, "--test", code=1)
    run("remove", tank / "a", "faulty", code=0)
    run("add", tank / "a", blank(tank / "a" / "new.img"))
    run("detail", tank, "--test")
    run("fail", tank, "a")  # the whole of it; a bare name is looked for in the directory
    assert run_json("detail", tank)["degraded"] == 1
    run("detail", tank, "--test", code=1)
    run("add", tank, tank / "a")
    run("detail", tank, "--test")


def test_a_leaf_is_replaced_through_the_outer_array(tank):
    content = fill(tank)
    run("replace", tank, tank / "b" / "member-0.img", blank(tank / "b" / "new.img"))
    states = {m["path"]: m["state"] for m in run_json("detail", tank)["members"][1]["array"]["members"]}
    assert states[f"{tank}/b/new.img"] == "in_sync"
    assert content_of(tank) == content


def test_check_goes_over_every_level(tank):
    """What differs in an inner array's parity the outer array never reads."""
    content = fill(tank)
    leaf = tank / "a" / "member-2.img"
    start = raidlib.examine(leaf).data_offset + 63 * 16384
    with open(leaf, "r+b") as file:  # left-symmetric: of three members the last has the parity of each third stripe
        file.seek(start)
        file.write(bytes(4096))
    with raidlib.open(tank) as array:
        array.check().wait()
        assert array.status().mismatch_count == 0  # of the library each array's own
    document = run_json("check", tank, code=1)
    assert document["job"]["mismatch_count"] == 0
    assert [(part["array"], part["job"]["mismatch_count"]) for part in document["inner"]] == [(f"{tank}/a", 8), (f"{tank}/b", 0)]
    assert f"{tank}/a: 8 sectors do not agree" in run("check", tank, code=1).stdout
    assert f"{tank}/b: no mismatches" in run("repair", tank, code=1).stdout
    run("check", tank)
    assert content_of(tank) == content


def test_check_of_stripes_of_arrays(tmp_path):
    """The outer array has nothing to compare."""
    tank = tmp_path / "tank"
    for name in "ab":
        run("create", tank / name, "--level", 1, "-n", 2, "--size", SIZE)
    run("create", tank / "a", tank / "b", "--level", 0, "-n", 2)
    document = run_json("check", tank)
    assert (document["job"], [part["array"] for part in document["inner"]]) == (None, [f"{tank}/a", f"{tank}/b"])
    with pytest.raises(errors.UsageError, match="no redundancy"), raidlib.open(tank) as array:
        array.check()


def test_examine_shows_what_an_array_is_a_member_of(tank):
    found = run_json("examine", tank / "a")["superblocks"]
    assert [(sb["path"], sb["level"]) for sb in found] == [
        *[(f"{tank}/a/member-{slot}.img", "raid5") for slot in range(3)],
        (f"{tank}/a", "raid1"),
    ]
    assert found[3]["slot"] == 0
    assert len(run_json("examine", tank)["superblocks"]) == 6


def test_export_onto_a_leaf_is_refused(tank, tmp_path):
    content = fill(tank)
    leaf = tank / "a" / "member-0.img"
    before = leaf.read_bytes()
    assert "is a member of the array" in one_line(run("export", tank, leaf, "--yes", code=64))
    assert leaf.read_bytes() == before
    run("export", tank, tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == content


def test_assemble_says_which_array_cannot_be_started(tank):
    for slot in range(2):
        (tank / "b" / f"member-{slot}.img").unlink()
    answer = run("assemble", tank, code=3)
    assert f"{tank}/b: more members are lost than raid5 bears" in one_line(answer)
    run("assemble", tank, "--run")
    run("detail", tank, "--test", code=1)


def test_create_of_arrays_that_are_no_arrays(tank, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no member" in one_line(run("create", tmp_path / "empty", tank / "a", "--level", 1, "-n", 2, code=64))
    text = one_line(run("create", tank / "a", tank / "b", "--level", 0, "-n", 2, code=3))
    assert "holds a superblock of array" in text
    run("create", tank / "a", tank / "b", "--level", 0, "-n", 2, "--yes")
    assert run_json("detail", tank)["level"] == "raid0"


# --- Live -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def live(source):
    with raidlib.open(source) as array, control.Owner(array) as owner:
        yield array, owner


def test_who_is_meant(tank):
    """By whatever name, the array that it stands for: the whole, or one in it."""
    with live(tank) as (array, _owner):
        inner = {name: each.uuid for name, each in array.arrays}
        leaves = sorted(tank.glob("*/*.img"))
        for target in (tank, str(tank), leaves, array.uuid, [tank / "a", tank / "b"]):
            assert control.connect(target).uuid == array.uuid, target
        for name, uuid in inner.items():
            for target in (name, f"{name}/member-0.img", sorted(Path(name).glob("*.img")), uuid):
                assert control.connect(target).uuid == uuid, target
        assert control.connect(tank.parent) is None
    assert control.connect(tank) is None
    flat = tank.parent / "flat"
    flat.mkdir()
    for number, leaf in enumerate(leaves):
        leaf.rename(flat / f"{number}.img")
    with live(flat) as (array, _owner):
        assert control.connect(flat).uuid == array.uuid
        assert [name for name, _each in array.arrays] == [each.uuid for _name, each in array.arrays]


def test_verbs_reach_the_array_that_is_meant(tank, run_folder):
    content = fill(tank)
    with live(tank) as (array, owner):
        assert run_json("detail", tank)["owner_pid"] == os.getpid()
        run("fail", tank, tank / "a" / "member-1.img")
        assert run_json("detail", tank / "a")["degraded"] == 1
        run("remove", tank, tank / "a" / "member-1.img")
        run("add", tank / "a", blank(tank / "a" / "new.img"))
        assert control.connect(tank / "a" / "new.img").uuid == array.arrays[0][1].uuid  # its record is up to date
        run("wait", tank)
        document = run_json("check", tank)
        assert [part["job"]["mismatch_count"] for part in document["inner"]] == [0, 0]

        uuid = array.arrays[1][1].uuid
        text = one_line(run("stop", tank / "b", code=75))
        assert f"it is a member of array {array.name}, which is in use: stop that" in text
        assert run_json("detail", tank / "b")["state"] == "clean"  # and goes on
        run("fail", tank, tank / "b")
        assert run_json("detail", tank, code=0)["degraded"] == 1
        run("remove", tank, tank / "b")
        assert not (run_folder / runtime.folder_name(uuid)).exists()  # let go of
        assert run_json("detail", tank / "b")["owner_pid"] is None
        run("add", tank, tank / "b")
        assert control.connect(tank / "b").uuid == uuid
        assert run_json("detail", tank)["degraded"] == 0
        with pytest.raises(errors.UsageError, match="one descriptor"):
            control.connect(tank)._call("add", control.MAYBE_JOB, path=str(tank / "a" / "new.img"))
        assert array.pread(len(content), 0) == content
        owner.stop()
    assert list(run_folder.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("raidlib control")]
    assert content_of(tank) == content


def test_events_of_every_level_reach_the_owner(tank):
    seen = []
    with raidlib.open(tank) as array, control.Owner(array, on_event=seen.append):
        array.fail(tank / "a" / "member-0.img")
        array.fail(tank / "b")
        for _ in range(200):
            if len([event for event in seen if event.kind == "fail"]) == 2:
                break
            threading.Event().wait(0.02)
    assert sorted(event.text for event in seen if event.kind == "fail") == ["failed by the administrator"] * 2


# --- Mounted ----------------------------------------------------------------------------------------------------------


@needs_fuse
def test_a_mount_lives_through_losses_at_both_levels(tmp_path):
    tank, place = tmp_path / "tank", tmp_path / "mnt"
    place.mkdir()
    for name in "abc":
        run("create", tank / name, "--level", 5, "-n", 3, "--size", "8M", "--chunk", "16K")
    run("create", *(tank / name for name in "abc"), "--level", 5, "-n", 3, "--chunk", "16K", "--assume-clean")
    content = fill(tank)[: 1 << 20]
    mount.mount(tank, place, fs="none")
    try:
        volume = place / "volume"
        run("fail", tank, tank / "a" / "member-0.img")
        shutil.rmtree(tank / "b")  # all of an array
        with open(volume, "r+b", buffering=0) as file:
            assert file.read(len(content)) == content
            file.seek(1 << 20)
            file.write(content)
            os.fsync(file.fileno())
        run("create", tank / "d", "--level", 5, "-n", 3, "--size", "8M", "--chunk", "16K")
        run("remove", tank, "faulty")
        run("add", tank, tank / "d")
        run("remove", tank / "a", "faulty")
        run("add", tank / "a", blank(tank / "a" / "new.img", 8 << 20))
        run("wait", tank)
        run("detail", place, "--test")
        with pytest.raises(errors.BusyError, match=f"is in use by process .*, mounted at {place}"):
            raidlib.open(tank / "c")
        assert "is a member of array" in one_line(run("stop", tank / "c", code=75))
    finally:
        mount.umount(place)
    assert content_of(tank)[: 2 << 20] == content * 2
    assert runtime.found(alive=True) == []


@needs_fuse
def test_what_a_killed_owner_leaves_is_cleaned(tank, tmp_path, run_folder):
    content = fill(tank)
    place = tmp_path / "mnt"
    place.mkdir()
    pid = mount.mount(tank, place, fs="none").pid
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watched], [], [], 10)[0]
    os.close(watched)
    assert len(runtime.found(alive=False)) == 3
    mount.umount(tank)
    assert list(run_folder.iterdir()) == []
    assert content_of(tank) == content


@needs_fuse
def test_an_inner_array_is_not_mounted_by_itself(tank, tmp_path):
    """Whoever writes to it makes it differ from what the outer array counts on."""
    place = tmp_path / "mnt"
    place.mkdir()
    assert "is a member of another one" in one_line(run("mount", tank / "a", place, code=3))
    run("mount", tank / "a", place, "--fs", "none", "--read-only")
    assert json.loads(run("detail", place, "--json").stdout)["level"] == "raid5"
    run("umount", place)
