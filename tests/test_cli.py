"""The command line: every verb on real arrays, its exit codes, its JSON, and what it says to bad input."""

import contextlib
import hashlib
import json
import lzma
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import raidlib
from raidlib import demo
from raidlib.cli import program

ROOT = Path(__file__).resolve().parent.parent
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
MDADM = shutil.which("mdadm", path=PATH)
ALL_VERBS = [
    *("create", "examine", "detail", "assemble", "export", "zero-superblock"),
    *("fail", "remove", "add", "re-add", "replace", "grow", "check", "repair", "wait"),
    *("mount", "umount", "job", "stop", "demo", "drill", "simulate", "sweep"),
]


def run(*words, code=0, stdin=None):
    """A verb in this process; its result, after a look at its exit code."""
    answer = CliRunner().invoke(program, [str(word) for word in words], input=stdin)
    assert answer.exit_code == code, f"raidlib {' '.join(map(str, words))} ended with {answer.exit_code}:\n{answer.output}"
    return answer


def run_json(*words, code=0):
    document = json.loads(run(*words, "--json", code=code).stdout)
    assert document["schema"] == 1
    return document


def one_line(answer):
    """What was said on stderr, which is one line that begins with the program's name, without notes."""
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("raidlib: note: ")]
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("raidlib: ")
    return lines[0]


def process(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "raidlib", *map(str, words)], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120, **options
    )


def hashes(*paths):
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


@contextlib.contextmanager
def unchanged(*paths):
    before = hashes(*paths)
    yield
    assert hashes(*paths) == before, "a member was changed"


def make(folder, level=6, count=6, size="8M", *more):
    run("create", folder, "--level", level, "--raid-devices", count, "--size", size, *more)
    return sorted(Path(folder).glob("member-*.img"))


def fill(folder, seed=1):
    """Random content; what it is."""
    with raidlib.open(str(folder)) as array:
        data = random.Random(seed).randbytes(array.size)
        array.pwrite(data, 0)
        array.flush()
    return data


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def blank(path, like):
    path.touch()
    os.truncate(path, os.path.getsize(like))
    return path


@pytest.fixture
def tank(tmp_path):
    folder = tmp_path / "tank"
    make(folder, 6, 6, "8M", "--chunk", "64K")
    return folder


# --- The program ------------------------------------------------------------------------------------------------------


def test_verbs_are_those_that_work():
    assert list(program.commands) == ALL_VERBS


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_help_has_an_example(verb):
    text = run(verb, "--help").stdout
    assert re.search(rf"^ +raidlib {verb} ?", text, re.MULTILINE)
    assert "--json" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["monitor", "serve", "discover", "explain", "diff", "tank"])
def test_unknown_verb(verb):
    assert f"there is no verb '{verb}'" in run(verb, code=64).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("create",),
        ("create", "x"),
        ("create", "x", "--level", "6", "--size", "12Q"),
        ("detail", "--no-such-option", "x"),
        ("mount", "x", "y", "--fs", "ntfs"),
        ("examine",),
    ],
)
def test_wrong_usage_is_64(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*words, code=64)
    assert list(tmp_path.iterdir()) == []


def test_as_a_process(tank):
    answer = process("detail", tank)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "\x1b" not in answer.stdout
    assert [line for line in answer.stdout.splitlines() if line != line.rstrip()] == []
    assert process("nonsense").returncode == 64
    assert process("--help").returncode == 0
    assert re.fullmatch(r"raidlib [0-9][0-9.]*\n", process("--version").stdout)


def test_own_bug_is_70(tank, monkeypatch):
    monkeypatch.setattr("raidlib.opening.examine", lambda _: 1 // 0)
    member = tank / "member-0.img"
    assert "bug of raidlib" in one_line(run("examine", member, code=70))
    monkeypatch.setenv("RAIDLIB_DEBUG", "1")
    assert "Traceback" in run("examine", member, code=70).stderr


def test_reader_that_goes_away(tank):
    command = f"{sys.executable} -m raidlib export {tank} - | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stderr) == (74, "")


def test_permission_is_77(tank):
    if os.geteuid() != 0:
        (tank / "member-0.img").chmod(0)
        assert "member-0.img" in one_line(run("examine", tank / "member-0.img", code=77))
        return
    child = os.fork()
    if child == 0:  # root may read everything: become somebody else, for this one call
        code = 1
        try:
            os.chmod(tank / "member-0.img", 0o600)
            for folder in (tank, *tank.parents[:3]):
                os.chmod(folder, 0o755)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = CliRunner().invoke(program, ["examine", str(tank / "member-0.img")]).exit_code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77


# --- Arrays -----------------------------------------------------------------------------------------------------------


def test_create_says_what_it_made(tmp_path):
    answer = run("create", tmp_path / "a", "--level", "5", "--raid-devices", "3", "--size", "4M", "--name", "home", "--chunk", "64K")
    assert "raid5 of 3 members, 6 MiB" in answer.stdout
    assert "lie on one device" in answer.stderr
    superblock = raidlib.examine(str(tmp_path / "a" / "member-1.img"))
    assert (superblock.level, superblock.name.rpartition(":")[2], superblock.chunk_size, superblock.slot) == ("raid5", "home", 65536, 1)


def test_create_of_members(tmp_path):
    members = [tmp_path / name for name in ("a", "b")]
    for path in members:
        with open(path, "wb") as file:
            file.truncate(4 << 20)
    document = run_json("create", *members, "missing", "--level", 5, "--raid-devices", 3)
    assert document["verb"] == "create"
    assert document["status"]["state"] == "degraded"
    assert run_json("detail", *members, "missing", "--test", code=1)["degraded"] == 1


def test_create_asks_before_it_overwrites(tank):
    members = sorted(tank.iterdir())
    with unchanged(*members):
        assert "--yes" in one_line(run("create", tank, "--level", 1, "--raid-devices", 2, "--size", "4M", code=3))
        text = one_line(run("create", *members[:2], "--level", 1, "--raid-devices", 2, code=3))
        assert "member-0.img" in text and "--yes" in text
    run("create", *members[:2], "--level", 1, "--raid-devices", 2, "--yes")
    assert raidlib.examine(str(members[0])).level == "raid1"


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        (("--consistency-policy", "ppl"), "ppl"),
        (("--consistency-policy", "journal"), "journal"),
        (("--write-journal", "fast.img"), "journal"),
        (("--integrity", "crc32c"), "checksums"),
    ],
)
def test_create_with_what_is_not_built_yet(tmp_path, options, feature):
    text = one_line(run("create", tmp_path / "a", "--level", 5, "--raid-devices", 3, "--size", "8M", *options, code=69))
    assert feature in text
    assert not (tmp_path / "a").exists()


def test_create_from_dir_and_export(tmp_path):
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(random.Random(5).randbytes(100_000))
    run("create", tmp_path / "a", "--level", 5, "--raid-devices", 3, "--size", "8M", "--chunk", "64K", "--from-dir", tree)
    image = tmp_path / "image"
    document = run_json("export", tmp_path / "a", image)
    assert document["bytes"] == image.stat().st_size > document["bytes_written"] > 100_000
    assert image.stat().st_blocks * 512 < image.stat().st_size
    tool = shutil.which("debugfs", path=PATH)
    if tool:
        subprocess.run([tool, "-R", f"dump /folder/file {tmp_path}/out", image], check=True, capture_output=True)
        assert (tmp_path / "out").read_bytes() == (tree / "folder" / "file").read_bytes()
    assert subprocess.run([shutil.which("fsck.ext4", path=PATH), "-fn", image], capture_output=True, check=False).returncode == 0


def test_from_dir_that_does_not_fit(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(random.Random(5).randbytes(12 << 20))
    text = one_line(
        run("create", tmp_path / "a", "--level", 5, "--raid-devices", 3, "--size", "6M", "--chunk", "64K", "--from-dir", tree, code=74)
    )
    assert "does not fit" in text and "--size" in text


def test_export_is_the_content(tank, tmp_path):
    data = fill(tank)
    run("export", tank, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == data
    assert process_bytes("export", tank, "-") == data
    assert "exists" in one_line(run("export", tank, tmp_path / "image", code=3))
    run("export", tank, tmp_path / "image", "--yes")
    run("fail", tank, 0, 1)
    run("export", tank, tmp_path / "image", "--yes")
    assert (tmp_path / "image").read_bytes() == data


def test_export_over_a_member(tank):
    with unchanged(*tank.iterdir()):
        assert "member-0.img is a member" in one_line(run("export", tank, tank / "member-0.img", "--yes", code=64))


def process_bytes(*words):
    return subprocess.run(
        [sys.executable, "-m", "raidlib", *map(str, words)], cwd=ROOT, capture_output=True, check=True, timeout=120
    ).stdout


def test_detail(tank):
    with unchanged(*tank.iterdir()):
        status = run_json("detail", tank)
        assert (status["level"], status["degraded"], status["may_lose"], len(status["members"])) == ("raid6", 0, 2, 6)
        text = run("detail", tank).stdout
    assert status["advice"] in text
    assert text.count("in sync") == 6
    assert f"UUID  {status['uuid']}" in text
    run("detail", tank, "--test")


def test_detail_test_codes(tank):
    run("fail", tank, 1)
    run("detail", tank)
    assert "DEGRADED" in run("detail", tank, "--test", code=1).stdout
    (tank / "member-2.img").unlink()
    assert "MISSING" in run("detail", tank, "--test", code=1).stdout
    (tank / "member-3.img").unlink()
    text = run("detail", tank, "--test", code=2).stdout
    assert "cannot be started" in text and "more members are lost than raid6 bears" in text.lower()
    assert run_json("detail", tank)["state"] == "failed"
    run("detail", tank / "nothing", "--test", code=4)


def test_detail_export(tank):
    keys = dict(line.split("=", 1) for line in run("detail", tank, "--export").stdout.splitlines())
    assert (keys["MD_LEVEL"], keys["MD_DEVICES"], keys["MD_METADATA"]) == ("raid6", "6", "1.2")
    assert [value for key, value in keys.items() if key.endswith("_ROLE")] == list("012345")
    assert str(tank / "member-5.img") in keys.values()


def test_examine(tank):
    found = run_json("examine", tank)["superblocks"]
    assert [superblock["slot"] for superblock in found] == [0, 1, 2, 3, 4, 5]
    assert "active, slot 3" in run("examine", tank / "member-3.img").stdout
    text = run("examine", tank / "member-3.img", ROOT / "LICENSE", code=64)
    assert "slot 3" in text.stdout and "LICENSE" in one_line(text)


def test_assemble(tank):
    members = sorted(tank.iterdir())
    with unchanged(*members):
        assert "starts" in run("assemble", tank).stdout
        answer = run("assemble", *members[:5], code=3)
        assert "does not start without --run" in answer.stdout and "--run" in one_line(answer) and "run=True" not in answer.output
        run("assemble", *members[:5], "--run")
        answer = run("assemble", *members[:3], code=74)
        assert "cannot be started" in answer.stdout
        assert run_json("assemble", tank)["startable"] is True


def test_zero_superblock(tank):
    member = tank / "member-0.img"
    with unchanged(member):
        assert "--yes" in one_line(run("zero-superblock", member, code=3))
    assert run_json("zero-superblock", member, "--yes")["members"] == [str(member)]
    one_line(run("examine", member, code=64))
    one_line(run("zero-superblock", member, "--yes", code=64))


def answer_on_a_terminal(answer, *words):
    """Runs a verb on a terminal of its own and answers its question."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "raidlib", *map(str, words)])
    seen, asked = b"", False
    with contextlib.suppress(OSError):  # the terminal ends with the process
        while True:
            if select.select([terminal], [], [], 2)[0]:
                seen += os.read(terminal, 4096)
                if asked or b"[y/N]" not in seen:
                    continue
                asked = True
            elif not asked or answer != b"\x03":
                continue  # only Ctrl-C is said again: Python does not see one that comes just before it begins to read
            os.write(terminal, answer)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@pytest.mark.parametrize("said", [b"n\n", b"\n", b"\x04"])
def test_declined_is_3(tank, said):
    member = tank / "member-0.img"
    with unchanged(member):
        code, text = answer_on_a_terminal(said, "zero-superblock", member)
    assert code == 3 and "declined; nothing was changed" in text


def test_agreed(tank):
    code, text = answer_on_a_terminal(b"y\n", "zero-superblock", tank / "member-0.img")
    assert code == 0 and "superblock erased" in text
    assert answer_on_a_terminal(b"\x03", "zero-superblock", tank / "member-1.img")[0] == 130


# --- Members ----------------------------------------------------------------------------------------------------------


def test_life_of_a_member(tank, tmp_path):
    data = fill(tank)
    answer = run("fail", tank, "2", "member-4.img")
    assert "degraded, 2 slots of 6 not in sync; no further member may be lost" in answer.stdout
    text = one_line(run("fail", tank, 0, code=75))
    assert "member-0.img" in text and "lose data" in text
    new = [blank(tank / f"new-{number}.img", tank / "member-0.img") for number in range(3)]
    answer = run("add", tank, new[0], new[1].name)
    assert "rebuilt" in answer.stdout and "2 more members may be lost" in answer.stdout
    assert "as a spare" in run("add", tank, new[2]).stdout
    assert [m["state"] for m in run_json("detail", tank)["members"] if m["path"] == str(new[2])] == ["spare"]
    assert "removed" in run("remove", tank, new[2]).stdout
    run("export", tank, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == data


def test_spare_steps_in(tmp_path):
    folder = tmp_path / "a"
    make(folder, 5, 4, "24M", "--chunk", "64K", "--spare-devices", 1)
    fill(folder)
    assert "degraded" in run("fail", folder, 1).stdout
    run("wait", folder)
    run("check", folder)


def test_add_without_waiting(tank):
    run("fail", tank, 1)
    answer = run("add", tank, blank(tank / "new.img", tank / "member-0.img"), "--no-wait")
    assert "rebuilt" not in answer.stdout
    run("wait", tank)
    run("detail", tank, "--test")


def test_add_outside_of_the_directory(tank, tmp_path):
    run("fail", tank, 1)
    assert "lies outside of" in run("add", tank, blank(tmp_path / "new.img", tank / "member-0.img")).stderr


def test_add_of_another_array_asks(tank, tmp_path):
    other = make(tmp_path / "other", 1, 2, "8M")
    run("fail", tank, 1)
    with unchanged(*other):
        assert "--yes" in one_line(run("add", tank, other[0], code=3))
    run("add", tank, other[0], "--yes")
    assert raidlib.examine(str(other[0])).level == "raid6"


def test_add_what_does_not_fit(tank, tmp_path):
    run("fail", tank, 1)
    small = tmp_path / "small.img"
    small.write_bytes(bytes(1 << 20))
    with unchanged(small):
        text = one_line(run("add", tank, small, code=64))
    assert "small.img" in text and "too small" in text
    assert "truncate -s" in one_line(run("add", tank, tmp_path / "nothing.img", code=64))


def test_re_add_json(tank):
    run("fail", tank, 1)
    document = run_json("re-add", tank, tank / "member-1.img")
    assert document["verb"] == "re-add" and document["status"]["degraded"] == 0
    assert [job["kind"] for job in document["jobs"]] == ["recovery"]
    assert {m["path"]: m["slot"] for m in document["status"]["members"]}[str(tank / "member-1.img")] == 1
    run("fail", tank, 2)
    assert "`add`" in one_line(run("re-add", tank, blank(tank / "new.img", tank / "member-0.img"), code=64))


def test_replace(tank):
    new = blank(tank / "new.img", tank / "member-0.img")
    data = fill(tank)
    assert "replaced by" in run("replace", tank, 1, new).stdout
    run("detail", tank, "--test")
    (tank / "member-1.img").unlink()
    with raidlib.open(str(tank), mode="r") as array:
        assert {m.path: m.slot for m in array.status().members}[str(new)] == 1
        assert array.pread(len(data), 0) == data
    assert "no redundancy" not in one_line(run("replace", tank, 1, tank / "nothing.img", code=64))


def test_check_and_repair(tank):
    data = fill(tank)
    document = run_json("check", tank)
    assert (document["job"]["kind"], document["job"]["mismatch_count"], document["mismatches"]) == ("check", 0, [])
    with open(tank / "member-2.img", "r+b") as file:
        file.seek(3 << 20)
        file.write(random.Random(2).randbytes(8192))
    answer = run("check", tank, code=1)
    assert "slot 2" in answer.stdout and "raidlib repair" in answer.stdout
    assert "mended" in run("repair", tank, code=1).stdout
    assert "no mismatches" in run("check", tank).stdout
    with raidlib.open(str(tank), mode="r") as array:
        assert array.pread(array.size, 0) == data


def test_check_of_a_degraded_array_is_1(tank):
    run("fail", tank, 1)
    assert "add a member" in run("check", tank, code=1).stdout
    run("wait", tank, code=1)
    run_json("wait", tank, code=1)


def test_wait_and_stop_at_rest(tank):
    assert "nothing was under way" in run("wait", tank).stdout
    assert "at rest" in run("stop", tank).stdout
    assert run_json("stop", tank)["stopped"] is False
    run("stop", tank / "nothing", code=64)
    run("umount", tank, code=64)


def test_busy_is_75(tank):
    with raidlib.open(str(tank)):
        assert "in use" in one_line(run("check", tank, code=75))
        run("wait", tank, code=75)


def test_interrupted_rebuild_goes_on(tmp_path):
    members = make(tmp_path / "a", 5, 3, "256M", "--chunk", "64K")
    with raidlib.open(str(tmp_path / "a")) as array:
        for offset in range(0, array.size, 64 << 20):
            array.pwrite(random.Random(offset).randbytes(min(64 << 20, array.size - offset)), offset)
    run("fail", tmp_path / "a", 1)
    blank(tmp_path / "a" / "new.img", members[0])
    command = [sys.executable, "-m", "raidlib", "add", str(tmp_path / "a"), str(tmp_path / "a" / "new.img")]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:  # it has written its superblock: the rebuild runs
        with contextlib.suppress(raidlib.RaidError):
            if raidlib.examine(str(tmp_path / "a" / "new.img")).role == "rebuilding":
                break
        time.sleep(0.005)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode in (0, 130), err
    if child.returncode == 130:  # else it was done before
        assert "raidlib wait" in err
        run("wait", tmp_path / "a")
    run("detail", tmp_path / "a", "--test")
    run("check", tmp_path / "a")


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path):
    """An array of 4 at level 5, whose `words` the cases make worse: (words for the verbs, members to watch)."""
    members = make(tmp_path / "a", 5, 4, "8M", "--chunk", "64K")
    fill(tmp_path / "a")
    return tmp_path, members


def random_file(path, size=8 << 20):
    path.write_bytes(random.Random(9).randbytes(size))
    return path


def case_random(folder, members):
    return [*members[:3], random_file(folder / "noise.img")], 64, "noise.img", "no md superblock"


def case_foreign(folder, members):
    foreign = make(folder / "foreign", 1, 2, "8M")
    return [*members[:3], foreign[0]], 64, "foreign/member-0.img", "give those of one array only"


def case_mixed(folder, members):
    other = make(folder / "other", 5, 4, "8M")
    return [*members[:2], *other[2:]], 64, "other/member-3.img", "members of 2 arrays"


def case_copy(folder, members):
    shutil.copy(members[0], folder / "copy.img")
    return [*members, folder / "copy.img"], 64, "copy.img", "give only one of them"


def case_twice(folder, members):
    return [*members, members[0]], 64, "member-0.img", "only once"


def case_empty(folder, members):
    (folder / "empty.img").touch()
    return [*members[:3], folder / "empty.img"], 64, "empty.img", "no md superblock"


def case_truncated(folder, members):
    for path in members[:2]:
        os.truncate(path, 3 << 20)
    return members, 64, "member-0.img", "sectors follow"


def case_damaged(folder, members):
    with open(members[0], "r+b") as file:
        file.seek(4096 + 100)
        file.write(b"\xff\xff\xff")
    return members, 64, "member-0.img", "damaged"


def case_lost(folder, members):
    return members[:2], 74, "slots 2, 3", "more members are lost than raid5 bears"


def case_missing_file(folder, members):
    return [*members[:3], folder / "nothing.img"], 64, "nothing.img", "does not exist"


def case_directory(folder, members):
    (folder / "folder").mkdir()
    return [*members[:3], folder / "folder"], 64, "folder", "directory"


def case_without_run(folder, members):
    return members[:3], 3, "slot 3", "--run"


CASES = [value for name, value in list(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("verb", ["check", "assemble", "export", "wait"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("case_"))
def test_bad_members(bad, case, verb):
    words, code, member, hint = case(*bad)
    more = [bad[0] / "image"] if verb == "export" else []
    if verb in ("check", "wait") and code == 74:
        code = 2
    watched = {path for path in (*words, *bad[1]) if Path(path).is_file()}
    with unchanged(*watched):
        text = one_line(run(verb, *words, *more, code=code))
    assert member in text and hint in text


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--level", 5, "--raid-devices", 3), "--size"),
        (("--level", 5, "--raid-devices", 3, "--size", "64K"), "small"),
        (("--level", 5, "--raid-devices", 1, "--size", "8M"), "members"),
        (("--level", 6, "--raid-devices", 2, "--size", "8M"), "members"),
        (("--level", 7, "--raid-devices", 3, "--size", "8M"), "level"),
        (("--level", 5, "--raid-devices", 3, "--size", "8M", "--chunk", "3K"), "chunk"),
        (("--level", 5, "--raid-devices", 3, "--size", "8M", "--layout", "sideways"), "left-symmetric"),
        (("--level", 5, "--raid-devices", 3, "--size", "8M", "--metadata", "1.7"), "1.2"),
        (("--level", 5, "--raid-devices", 3, "--size", "8M", "--uuid", "hello"), "hello"),
        (("--level", 5, "--raid-devices", 3, "--size", "8M", "--data-offset", "16M"), "member"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, options, hint):
    text = one_line(run("create", tmp_path / "a", *options, code=64))
    assert hint in text
    assert not list(tmp_path.glob("a/*"))


# --- mdadm ------------------------------------------------------------------------------------------------------------


def exported(text):
    return dict(line.split("=", 1) for line in text.splitlines() if line.startswith("MD_"))


def test_examine_export_is_mdadms(golden_dir, tmp_path):
    """On every golden member: as mdadm 4.2 printed it when they were made."""
    different = []
    for packed in sorted(golden_dir.glob("*/m*.img.xz")):
        image = tmp_path / "image"
        image.write_bytes(lzma.decompress(packed.read_bytes()))
        theirs = exported(packed.with_name(packed.name.replace(".img.xz", ".export.txt")).read_text())
        ours = exported(run("examine", "--export", image).stdout)
        if ours != theirs or list(ours) != list(theirs):
            different.append(f"{packed.parent.name}/{packed.name}: {ours.items() ^ theirs.items()}")
    assert different == []


@pytest.mark.skipif(MDADM is None, reason="no mdadm")
@pytest.mark.parametrize("size", [3500 << 10, 3524 << 10, 4 << 20, 5 << 20, 1 << 30, 3 << 30, 3 << 40])
def test_examine_export_of_all_sizes(tmp_path, size):
    make(tmp_path / "a", 5, 3, str(size))
    member = tmp_path / "a" / "member-1.img"
    theirs = subprocess.run([MDADM, "--examine", "--export", member], capture_output=True, text=True, check=True).stdout
    assert run("examine", "--export", member).stdout == theirs


# --- Live -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """An array with ext4, mounted: (its folder, the mount point)."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse")
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "run"))
    folder, point = tmp_path / "tank", tmp_path / "mnt"
    make(folder, 6, 6, "24M", "--chunk", "64K", "--mkfs", "ext4")
    point.mkdir()
    answer = process("mount", folder, point)
    assert answer.returncode == 0, answer.stderr
    yield folder, point
    process("stop", folder)


def test_verbs_on_a_live_array(mounted, tmp_path):
    folder, point = mounted
    with open(point / "file", "wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    status = run_json("detail", point)
    assert status["mountpoint"] == str(point) and status["owner_pid"]
    assert "running, process" in run("detail", folder).stdout
    run("fail", point, 0)
    run("detail", folder, "--test", code=1)
    run("remove", point, "faulty")
    new = blank(folder / "new.img", folder / "member-1.img")
    assert "rebuilt" in run("add", point, new).stdout
    assert "no mismatches" in run("check", folder).stdout
    run("wait", point)
    run("export", folder, tmp_path / "image")
    assert b"content" in (tmp_path / "image").read_bytes()
    one_line(run("mount", folder, tmp_path / "mnt2", code=75))
    assert "unmounted" in run("umount", point).stdout
    assert list(point.iterdir()) == []
    run("detail", folder, "--test")


def test_stop_of_a_live_array(mounted):
    folder, point = mounted
    with open(point / "file", "wb") as file:
        file.write(b"1")
        run("stop", folder, code=75)
    assert "stopped" in run("stop", folder).stdout
    assert not os.path.ismount(point)


# --- The demonstration ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_demo(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "raidlib", "demo", "--dir", tmp_path], cwd=ROOT, check=False, capture_output=True, text=True, timeout=590
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"^\d+ files compared, 0 files differ$", answer.stdout.splitlines()[-1])
    assert answer.stdout.count("the array has noticed") == 4
    assert "parity check" in answer.stdout and "0 mismatches" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_demo(monkeypatch):
    """Few files: what the machinery does is seen on them, too."""
    monkeypatch.setattr(demo, "RANDOM_BYTES", 24 << 20)
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda _: str(Path(json.__file__).parent))


def test_demo_without_a_mount(tmp_path, small_demo, monkeypatch):
    def no_mount(*_, **__):
        raise raidlib.errors.MissingFacilityError("/dev/fuse is missing")

    monkeypatch.setattr(demo.mount, "mount", no_mount)
    report = run_json("demo", "--dir", tmp_path)["report"]
    assert report["notes"][0].startswith("no mount here (/dev/fuse is missing)")
    assert report["files_compared"] == report["files"] > 3
    assert (report["files_differing"], report["mismatch_count"], report["file_system_errors"]) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_demo_that_finds_a_difference(tmp_path, small_demo, monkeypatch):
    monkeypatch.setattr(demo.Source, "compare", lambda *_: ["python/decoder.py: its content differs"])
    assert run("demo", "--dir", tmp_path, code=74).stdout.endswith(" files compared, 1 files differ\n")
    assert list(tmp_path.iterdir()) == []


def test_demo_that_is_kept(tmp_path, small_demo):
    report = run_json("demo", "--dir", tmp_path, "--keep")["report"]
    assert report["kept"] is True
    run("detail", Path(report["directory"]) / "tank", "--test")


def test_interrupted_demo_cleans_up(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "raidlib", "demo", "--dir", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:
        if "the copy goes on" in line:
            break
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=120)
    assert child.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
