"""The control socket: one owner, many clients, and nothing that a client does hurts the owner."""

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import raidlib
from raidlib import control, errors, runtime

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """Run-time folders of this test only."""
    folder = tmp_path / "run"
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def array(tmp_path):
    with raidlib.create(tmp_path / "tank", level=6, raid_devices=5, size="8M", chunk="64K", name="tank") as opened:
        if opened.job is not None:
            opened.job.wait()
        yield opened


@pytest.fixture
def owner(array):
    with control.Owner(array, notes=["a note"]) as serving:
        yield serving


@pytest.fixture
def client(owner):
    connected = control.connect(owner.array.uuid)
    assert connected is not None
    return connected


def python(program: str, *arguments: str) -> subprocess.Popen:
    """Another process with this raidlib."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def sparse(path: Path, size: int = 8 * MIB) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def slow_check(array):
    """A job that stays for a while: paused before it was done, which may need more than one try."""
    for _ in range(50):
        job = array.check()
        job.pause()
        job.set_speed(maximum=1)
        while job.status().state == "running" and not job.done:
            time.sleep(0.01)
        if job.status().state == "paused":
            return job
        job.join()
    raise AssertionError("no job could be paused in time")


# --- The run-time folder ----------------------------------------------------------------------------------------------

UUID = "01234567:89abcdef:01234567:89abcdef"


def test_one_owner_on_a_host(run_folder):
    with runtime.claim(UUID) as held:
        held.publish(runtime.Info(pid=os.getpid(), uuid=UUID, name="tank", mountpoint="/somewhere"))
        with pytest.raises(errors.BusyError, match=rf"tank.*process {os.getpid()}.*mounted at /somewhere.*raidlib umount") as caught:
            runtime.claim(UUID)
        assert caught.value.exit_code == 75
        assert [info.name for _, info in runtime.found(alive=True)] == ["tank"]
    assert os.listdir(run_folder) == []
    runtime.claim(UUID).release()


def test_the_claim_of_a_dead_process_is_free_and_known():
    program = """
        import os, sys
        from raidlib import runtime
        held = runtime.claim(sys.argv[1])
        held.publish(runtime.Info(pid=os.getpid(), uuid=sys.argv[1], name="tank", mountpoint="/somewhere"))
        print("held", flush=True)
        sys.stdin.read()
    """
    with python(program, UUID) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(errors.BusyError, match=f"process {process.pid}"):
                runtime.claim(UUID)
        finally:
            process.send_signal(signal.SIGKILL)
    assert runtime.found(alive=True) == []
    assert [info.pid for _, info in runtime.found(alive=False)] == [process.pid]
    with runtime.claim(UUID) as held:
        assert held.previous.mountpoint == "/somewhere"
    assert runtime.found(alive=False) == []


def test_claims_race(run_folder):
    """Of many that claim and release at once, one has it at any time, and nobody sees anything but BusyError."""
    holders, problems = [], []

    def work():
        for _ in range(50):
            try:
                with runtime.claim(UUID):
                    holders.append(1)
                    if len(holders) != 1:
                        problems.append("two owners")
                    holders.pop()
            except errors.BusyError:
                pass
            except Exception as error:
                problems.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.parametrize("trick", ["link", "file", "mode"])
def test_a_folder_that_is_not_ours_alone_is_refused(run_folder, tmp_path, trick):
    run_folder.mkdir(mode=0o700)
    place = run_folder / runtime.folder_name(UUID)
    if trick == "link":
        place.symlink_to(tmp_path)
    elif trick == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(errors.AccessError) as caught:
        runtime.claim(UUID)
    assert str(place) in str(caught.value)
    assert caught.value.exit_code == 77


def test_no_place_for_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(errors.AccessError, match="RAIDLIB_RUNTIME_DIR"):
        runtime.claim(UUID)


def test_a_long_path_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setenv("RAIDLIB_RUNTIME_DIR", str(tmp_path / ("x" * 200)))
    with raidlib.create(tmp_path / "tank", level=1, raid_devices=2, size="8M") as array, control.Owner(array):
        assert control.connect(array.uuid).ping() == os.getpid()


# --- Finding it -------------------------------------------------------------------------------------------------------


def test_found_by_whatever_names_it(owner, array, tmp_path, monkeypatch):
    owner.publish(mountpoint="/mnt/somewhere", volume="/mnt/somewhere/volume")
    folder = tmp_path / "tank"
    link = tmp_path / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = [
        "/mnt/somewhere",
        folder,
        str(folder),
        "tank",
        link,
        folder / "member-2.img",
        array.uuid,
        array.uuid.replace(":", "-"),
        array.name,
    ]
    for target in [*names, [folder / "member-0.img", "missing", None, folder / "member-3.img"]]:
        found = control.connect(target)
        assert found is not None, target
        assert found.uuid == array.uuid
    for target in ["/mnt/elsewhere", "/mnt/somewhere/below", "other", tmp_path, "ffffffff:ffffffff:ffffffff:ffffffff", []]:
        assert control.connect(target) is None, target


def test_nobody_there(array, tmp_path):
    assert control.connect(array.uuid) is None
    assert control.connect(tmp_path / "tank") is None
    assert control.connect("tank") is None


# --- The verbs --------------------------------------------------------------------------------------------------------


def test_status_says_who_and_where(owner, client, array):
    owner.publish(mountpoint="/mnt/somewhere", volume="/mnt/somewhere/volume")
    status = client.status()
    assert type(status) is raidlib.Status
    assert (status.owner_pid, status.mountpoint, status.volume) == (os.getpid(), "/mnt/somewhere", "/mnt/somewhere/volume")
    assert "a note" in status.notes
    assert status.members == array.status().members


def test_fail_remove_add_wait(client, array, tmp_path, monkeypatch):
    content = random.Random(1).randbytes(3 * MIB)
    array.pwrite(content, 0)
    first = array.status().members[1].path
    client.fail(1)
    client.fail(str(tmp_path / "tank" / ".." / "tank" / "member-4.img"))
    assert client.status().degraded == 2
    assert client.remove(first) == [first]
    assert client.remove("faulty") == [str(tmp_path / "tank" / "member-4.img")]
    monkeypatch.chdir(tmp_path)
    sparse(tmp_path / "new-1.img")
    sparse(tmp_path / "new-2.img")
    job = client.add("new-1.img")
    assert job.kind == "recovery"
    seen = []
    assert job.wait(on_progress=seen.append)
    assert job.done
    assert job.status().state == "done"
    assert client.add("new-2.img").wait(30)
    assert client.wait(30)
    status = client.status()
    assert status.degraded == 0
    assert {str(tmp_path / "new-1.img"), str(tmp_path / "new-2.img")} <= {member.path for member in status.members}
    assert array.pread(len(content), 0) == content
    assert control.connect(tmp_path / "new-1.img") is not None  # info.json knows it, too


def test_replace(client, array, tmp_path):
    content = os.urandom(1 << 20)
    array.pwrite(content, 0)
    first, new = str(tmp_path / "tank" / "member-0.img"), sparse(tmp_path / "new.img")
    job = client.replace(first, new)
    assert job.wait(30)
    found = {member.path: member for member in client.status().members}
    assert (found[str(new)].slot, found[str(new)].state, found[first].reason) == (0, "in_sync", "replaced")
    assert client.remove(first) == [first]
    assert array.pread(len(content), 0) == content


def test_a_member_that_the_owner_cannot_name_comes_as_a_descriptor(client, tmp_path):
    client.fail(0)
    client.remove("faulty")
    new = sparse(tmp_path / "new.img")
    with open(new, "r+b") as file:
        answer = client._call("add", control.MAYBE_JOB, descriptors=[file.fileno()], path="/nowhere/new.img")
    assert client.wait(30)
    assert answer[1] == "recovery"
    assert client.status().degraded == 0
    assert raidlib.examine(new).uuid == client.uuid


def test_check_and_repair(client, array, tmp_path):
    with open(tmp_path / "tank" / "member-1.img", "r+b") as file:
        file.seek(raidlib.examine(file.name).data_offset + 128 * 1024)
        file.write(b"\xff" * 4096)
    check = client.check()
    assert check.wait(30)
    assert check.status().mismatch_count > 0
    assert check.mismatches() == array.job.mismatches() != []
    assert client.repair().wait(30)
    again = client.check()
    assert again.wait(30)
    assert again.mismatches() == []
    assert client.job.number == again.number


def test_jobs_can_be_held_and_cancelled(client, array):
    slow_check(array)
    job = client.job
    assert job.status().state == "paused"
    assert not job.done
    began = time.monotonic()
    assert not job.wait(0.2)
    assert not client.wait(0.1)
    assert time.monotonic() - began < 5
    with pytest.raises(errors.BusyError):
        client.check()
    job.resume()
    job.pause()
    job.cancel()
    with pytest.raises(errors.CancelledError):
        job.wait(30)
    assert job.status().state == "cancelled"


def test_progress_is_streamed(client, array):
    slow_check(array)
    seen = []
    assert not client.wait(1.3, on_progress=seen.append)
    assert len(seen) >= 2
    assert all(type(status) is raidlib.JobStatus for status in seen)
    client.job.cancel()


def test_every_client_sees_every_event(client, array):
    other = control.connect(array.uuid)
    client.fail(2)
    for who in (client, other):
        kinds = []
        while (event := who.next_event(1)) is not None:
            assert type(event) is raidlib.Event
            kinds.append((event.kind, event.slot))
            if kinds[-1][0] == "fail":
                break
        assert ("fail", 2) in kinds
    assert client.next_event(0.1) is None


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.fail("/no/such/member"), errors.UsageError),
        (lambda client: client.fail(17), errors.UsageError),
        (lambda client: client.remove(0), errors.BusyError),
        (lambda client: client.add("/no/such/file"), errors.UsageError),
        (lambda client: client.add("/"), errors.UsageError),
        (lambda client: client.replace(9, os.devnull), errors.UsageError),
        (lambda client: client._call("job", None, job=99), errors.UsageError),
        (lambda client: client._call("explode", None), errors.UnsupportedError),
        (lambda client: client._call("fail", None), errors.UsageError),
        (lambda client: client._call("fail", None, member=0, colour="red"), errors.UsageError),
        (lambda client: client._call("add", None, path="/x"), errors.UsageError),
    ],
)
def test_errors_are_the_same_on_both_sides(client, call, kind):
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind
    assert client.status().degraded == 0


def test_members_and_errno_travel():
    for error in [
        errors.RefusedError("no", members=["a", "b"]),
        errors.NoSpaceError("full", errno=errno.EDQUOT),
        errors.MemberError("gone", members=["slot 1"]),
        FileNotFoundError(errno.ENOENT, "x"),
        ZeroDivisionError("a fault of ours"),
    ]:
        back = control.Failure.of(error).exception()
        assert isinstance(back, raidlib.RaidError)
        assert str(error) in str(back)
        if isinstance(error, raidlib.RaidError):
            assert (type(back), back.members, back.errno, back.exit_code) == (type(error), error.members, error.errno, error.exit_code)


def test_too_many_failures_are_refused(client):
    client.fail(0)
    client.fail(1)
    with pytest.raises(errors.BusyError):
        client.fail(2)
    assert client.status().degraded == 2


# --- Many, and bad ones -----------------------------------------------------------------------------------------------


def test_clients_at_once(client, array, tmp_path):
    problems = []
    stop = threading.Event()

    def look():
        other = control.connect(array.uuid)
        while not stop.is_set():
            try:
                assert other.status().uuid == array.uuid
                other.job  # noqa: B018  (it is a request)
            except Exception as error:
                problems.append(repr(error))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for slot in range(4):
        client.fail(slot)
        client.remove("faulty")
        client.add(sparse(tmp_path / f"new-{slot}.img")).wait(60)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert client.status().degraded == 0


def raw(client) -> socket.socket:
    return client._connect()


def answer_to(client, data: bytes) -> dict:
    with raw(client) as connection:
        connection.settimeout(10)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            return json.loads(file.readline())


@pytest.mark.parametrize(
    "line",
    [
        *[b"\n", b"\0\xff\xfe\n", b"[]\n", b'"x"\n', b"{}\n", b"[" * 100000 + b"\n", b'{"verb": 1}\n', b'{"verb": "__class__"}\n'],
        *[b'{"verb": "status", "args": []}\n', b'{"verb": "status", "schema": 99}\n', b'{"verb": "fail", "args": {"member": [1]}}\n'],
        b'{"verb": "wait", "args": {"timeout": "x"}}\n',
    ],
)
def test_a_line_that_is_no_request_is_an_error(client, line):
    reply = answer_to(client, line)
    if reply["kind"] != "result":  # a wait for no job asks for no time
        assert reply["kind"] == "error"
        assert reply["error"]["class"] in {kind.__name__ for kind in (raidlib.RaidError, errors.UsageError, errors.UnsupportedError)}
    assert client.ping() == os.getpid()


def test_garbage_hurts_nobody(client, array):
    rng = random.Random(7)
    client.ping()
    before = descriptors()
    for _ in range(40):
        with contextlib.suppress(OSError), raw(client) as connection:
            connection.sendall(rng.randbytes(rng.randrange(1, 200000)), socket.MSG_NOSIGNAL)
    with contextlib.suppress(OSError), raw(client) as connection:  # a line without an end
        for _ in range(80):
            connection.sendall(b"x" * 65536, socket.MSG_NOSIGNAL)
    with contextlib.suppress(OSError), raw(client) as connection:  # descriptors that nobody asked for
        for _ in range(5):
            socket.send_fds(connection, [b"x"], [connection.fileno()] * 10)
    for _ in range(10):  # who does not take the answer
        with raw(client) as connection:
            connection.sendall(b'{"verb": "status"}\n' * 200)
    assert client.status().uuid == array.uuid
    until = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert descriptors() <= before


def test_too_many_connections_are_dropped_and_room_comes_back(client):
    crowd = [raw(client) for _ in range(control.CONNECTIONS_MAX + 10)]
    for connection in crowd:
        connection.close()
    until = time.monotonic() + 10
    while True:
        try:
            assert client.ping() == os.getpid()
            return
        except errors.ArrayIOError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_client_that_leaves_while_it_waits(client, owner, array):
    slow_check(array)
    with raw(client) as connection:
        connection.sendall(b'{"verb": "wait"}\n')
        assert connection.recv(10)
    client.job.cancel()
    until = time.monotonic() + 10
    while owner._active and time.monotonic() < until:
        time.sleep(0.05)
    assert owner._active == 0
    assert client.ping() == os.getpid()


# --- The end ----------------------------------------------------------------------------------------------------------


def test_stop_closes_the_array(tmp_path):
    array = raidlib.create(tmp_path / "other", level=1, raid_devices=2, size="8M")
    owner = control.Owner(array)
    owner.start()
    client = control.connect(tmp_path / "other")
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(owner.ended.wait(30)) or owner.stop())
    waiter.start()
    client.stop()
    waiter.join()
    assert ended == [True]
    assert not client.is_alive()
    with pytest.raises(errors.ArrayIOError) as caught:
        client.status()
    assert caught.value.errno == errno.ENOTCONN
    with raidlib.open(tmp_path / "other", "r") as again:
        assert again.status().resync_offset is None


def test_what_cannot_stop_says_why_and_goes_on(array):
    def refuse():
        raise errors.BusyError("files are open")

    with control.Owner(array, on_stop=refuse):
        client = control.connect(array.uuid)
        with pytest.raises(errors.BusyError, match="files are open"):
            client.stop()
        assert client.status().uuid == array.uuid


def test_an_owner_that_is_killed(tmp_path):
    raidlib.create(tmp_path / "other", level=1, raid_devices=2, size="8M").close()
    program = """
        import sys, raidlib
        from raidlib import control
        array = raidlib.open(sys.argv[1])
        with control.Owner(array) as owner:
            print("ready", flush=True)
            owner.ended.wait()
    """
    with python(program, str(tmp_path / "other")) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            client = control.connect(tmp_path / "other")
            assert client.ping() == client.status().owner_pid == process.pid
            with pytest.raises(errors.BusyError):
                raidlib.open(tmp_path / "other")
        finally:
            process.kill()
    with pytest.raises(errors.ArrayIOError, match="has gone"):
        client.status()
    assert control.connect(tmp_path / "other") is None
    with raidlib.open(tmp_path / "other") as array, control.Owner(array):
        assert control.connect(tmp_path / "other").ping() == os.getpid()
