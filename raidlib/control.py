"""A live array has one owner, a process; everyone else reaches it by its control socket.

What goes through it is protocol.py's. The socket lies in the run-time folder of the array (runtime.py).
"""

from __future__ import annotations

import errno
import inspect
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from . import errors
from . import opening as _opening
from .errors import AccessError, BusyError, RaidError, UsageError
from .holders import let_go_in_children
from .member import Member, sort_out
from .model import SCHEMA, Event, JobStatus, Mismatch, Status
from .protocol import LINE_BYTES_MAX, REPLY_BYTES_MAX, Failure, Lines, Reply, Request, peer, socket_path
from .runtime import SOCKET, UUID, Claim, Info, claim, found, is_locked, matches, meant, open_folder, remove_entry, together

MEMBER_WORDS = ("faulty", "failed", "detached", "missing")  # what mdadm takes in the place of a member's name
ANSWER_S = 120.0  # an owner that needs longer for anything but a wait is taken for stuck
STOP_S = 60.0
PROGRESS_S = 0.5  # between the progress lines of a wait
IDLE_S = 30.0  # a client that sends nothing, or takes nothing, for so long is dropped
QUIESCE_S = 5.0
CONNECTIONS_MAX = 64
EVENTS_MAX = 256
JOBS_MAX = 16  # ended ones that can still be asked about
MAYBE_JOB: Any = tuple[int, str] | None  # what verbs that may start a job answer: its number and kind
T = TypeVar("T")


# --- The owner --------------------------------------------------------------------------------------------------------


class Owner:
    """Serves an array's control socket, on threads of its own: one that accepts, one a connection, one that collects events.

    `info` says what others should know (made from the array if None), `notes` are added to the status. `on_stop` is what "stop" does before
    it is answered, and raises where that is not possible now; without it the array is closed. After it, `ended` is set.
    """

    def __init__(
        self,
        array: Any,
        held: Claim | None = None,
        *,
        info: Info | None = None,
        notes: Sequence[str] = (),
        on_stop: Callable[[], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.array, self.notes = array, list(notes)
        held = held or array.claim
        self._claim, self._owns_claim = held or claim(array.uuid), held is None
        self.info = info or Info(pid=os.getpid(), uuid=array.uuid, name=array.name, started=time.time(), **array.places())
        self.ended = threading.Event()
        self._on_stop, self._on_event = on_stop, on_event
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._active = self._stops = 0  # requests under way; those of them that stop the array
        self._connections: set[Lines] = set()
        self._events: deque[tuple[int, Event]] = deque(maxlen=EVENTS_MAX)
        self._jobs: dict[int, Any] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._inner: list[Owner] = []  # _inner_lock: of the arrays that are members
        self._inner_lock = threading.Lock()

    def members(self) -> list[str]:
        """The paths that an array lies on, those that are set aside included."""
        return [member.path for member in self.array.status().members if member.path and member.path != "missing"]

    def start(self) -> None:
        """Opens the socket, and publishes info.json."""
        remove_entry(SOCKET, self._claim.folder)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(socket_path(self._claim.folder))
            os.chmod(socket_path(self._claim.folder), 0o600)
            listener.listen(CONNECTIONS_MAX)
            self._claim.publish(self.info)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        let_go_in_children(self)
        for work in (self._accept, self._collect):
            thread = threading.Thread(target=work, name=f"raidlib control {work.__name__.strip('_')}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._serve_inner()

    def _members_changed(self) -> None:
        self.publish(**self.array.places())
        self._serve_inner()

    def _serve_inner(self) -> None:
        """Each array that is a member has a socket in a run-time folder of its own, as long as it is open; it is stopped with this one."""

        def refuse() -> None:
            name = self.info.name or self.info.uuid
            raise BusyError(f"it is a member of array {name}, which is in use: stop that, or `fail` and `remove` it there")

        with self._inner_lock:
            for owner in [owner for owner in self._inner if owner.array.closed]:
                self._inner.remove(owner)
                owner.stop()
            for _name, array in self.array.arrays:
                if array not in [owner.array for owner in self._inner]:
                    known = {"uuid": array.uuid, "name": array.name, "outer": self.info.uuid, "started": time.time(), **array.places()}
                    owner = Owner(array, info=Info(pid=os.getpid(), **known), on_stop=refuse, on_event=self._on_event)
                    owner.start()
                    self._inner.append(owner)
            for owner in self._inner:
                owner.publish(**owner.array.places())

    def quiesce(self) -> None:
        """Takes no more requests, and waits until no other one uses the array: it may be closed then."""
        for owner in self._inner:
            owner.quiesce()
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._active <= self._stops, QUIESCE_S)
        self._threads[1].join(QUIESCE_S)

    def stop(self) -> None:
        """Ends the server: what is being answered is answered, then all connections are closed. The array stays as it is."""
        if self._listener is None or self.info.pid != os.getpid():  # of a fork, the parent's
            return
        self.quiesce()
        for owner in self._inner:
            owner.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._active, QUIESCE_S)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        with self._changed:
            for lines in self._connections:
                _shut(lines.connection)
        self._threads[0].join(QUIESCE_S)
        remove_entry(SOCKET, self._claim.folder)
        if self._owns_claim:
            self._claim.release()

    def let_go_in_child(self) -> None:
        """In a forked child nobody serves: its copies of the sockets would keep clients waiting."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for lines in self._connections:
            lines.connection.close()

    def __enter__(self) -> Owner:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def publish(self, **changes: Any) -> None:
        """Changes what info.json says."""
        self.info = msgspec.structs.replace(self.info, **changes)
        self._claim.publish(self.info)

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                    self._closing.wait(0.1)
                    continue
                return
            connection.settimeout(IDLE_S)
            lines = Lines(connection, LINE_BYTES_MAX)
            with self._changed:
                full = len(self._connections) >= CONNECTIONS_MAX
                if not full:
                    self._connections.add(lines)
            if full or peer(connection)[1] not in (os.geteuid(), 0):
                self._drop(lines)
                continue
            threading.Thread(target=self._serve, args=(lines,), name="raidlib control client", daemon=True).start()

    def _drop(self, lines: Lines) -> None:
        with self._changed:
            self._connections.discard(lines)
        lines.close()

    def _serve(self, lines: Lines) -> None:
        """One client, until it goes or sends what is no request. Whatever it does, only its own connection suffers."""
        try:
            while (line := lines.read()) is not None:
                with self._changed:
                    self._active += 1
                try:
                    lines.write(self._answer(line, lines))
                finally:
                    with self._changed:
                        self._active -= 1
                        self._changed.notify_all()
                    lines.close_descriptors()
        except UsageError as error:
            try:
                lines.write(Reply(kind="error", error=Failure.of(error)))
            except OSError:
                pass
        except OSError:
            pass
        finally:
            self._drop(lines)

    def _answer(self, line: bytes, lines: Lines) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
            if request.schema != SCHEMA:
                raise errors.UnsupportedError(f"the owner (process {os.getpid()}) speaks schema {SCHEMA}, not {request.schema}")
            verb = getattr(self, "_verb_" + request.verb, None)
            if verb is None:
                raise errors.UnsupportedError(f"the owner (process {os.getpid()}) knows no verb {request.verb!r}")
            if len(lines.descriptors) != request.descriptors:
                raise UsageError(f"{request.descriptors} descriptors were announced, {len(lines.descriptors)} came")
            if self._closing.is_set():
                raise BusyError(f"array {self.info.name or self.info.uuid} is being stopped")
            try:
                arguments = inspect.signature(verb).bind(lines, **request.args)
            except TypeError as error:
                raise UsageError(f"{request.verb}: {error}") from None
            return Reply(kind="result", value=verb(*arguments.args, **arguments.kwargs))
        except msgspec.MsgspecError as error:
            return Reply(kind="error", error=Failure.of(UsageError(f"this is no request: {error}")))
        except Exception as error:
            return Reply(kind="error", error=Failure.of(error))

    def _collect(self) -> None:
        """Takes the array's events, for all clients."""
        number = 0
        while not self._closing.is_set():
            try:
                event = self.array.next_event(0.2)
            except RaidError:
                return
            if event is None:
                continue
            number += 1
            with self._changed:
                self._events.append((number, event))
                self._changed.notify_all()
            if self._on_event is not None:
                self._on_event(event)

    def status(self) -> Status:
        """The array's status, and who owns it and where it is mounted."""
        status = self.array.status()
        own = {"owner_pid": self.info.pid, "mountpoint": self.info.mountpoint, "volume": self.info.volume}
        enriched: Status = msgspec.structs.replace(status, **own, notes=[*status.notes, *self.notes])
        return enriched

    def _known(self, member: int | str) -> int | str:
        """A member as the array knows it: two names of one file are the same member."""
        if isinstance(member, int) or member in MEMBER_WORDS:
            return member
        return member if member in self.members() else os.path.realpath(member)

    def _number(self, job: Any) -> tuple[int, str]:
        """The number under which a job is known to clients."""
        with self._changed:
            for number, known in self._jobs.items():
                if known is job:
                    return number, job.kind
            number = max(self._jobs, default=0) + 1
            self._jobs[number] = job
            for old in [known for known, held in self._jobs.items() if held.done and known <= number - JOBS_MAX]:
                del self._jobs[old]
        return number, job.kind

    def _find_job(self, number: int) -> Any:
        with self._changed:
            job = self._jobs.get(number)
        if job is None:
            raise UsageError(f"there is no job {number} (any more)")
        return job

    # The verbs. Each gets the connection and the request's arguments.

    def _verb_ping(self, _lines: Lines) -> int:
        return os.getpid()

    def _verb_status(self, _lines: Lines) -> Status:
        return self.status()

    def _verb_current_job(self, _lines: Lines) -> tuple[int, str] | None:
        job = self.array.job
        return None if job is None else self._number(job)

    def _verb_fail(self, _lines: Lines, member: int | str) -> None:
        self.array.fail(self._known(member))

    def _verb_remove(self, _lines: Lines, member: int | str) -> list[str]:
        removed: list[str] = self.array.remove(self._known(member))
        self._members_changed()
        return removed

    def _with_member(self, call: Callable[[Any], Any], lines: Lines, path: str) -> tuple[int, str] | None:
        """Takes in the file that the client opened: by its name if that means the same here, else by the descriptor.

        What comes without one is a directory, that of an array.
        """
        if len(lines.descriptors) != (0 if os.path.isdir(path) else 1):
            raise UsageError("one descriptor, the new member's, must come with this request; but none for a directory")
        try:
            same = not lines.descriptors or os.path.samestat(os.fstat(lines.descriptors[0]), os.stat(path))
        except OSError:
            same = False
        job = call(path if same else Member.adopt(lines.descriptors.pop(), path, deadline=self.array.deadline))
        self._members_changed()
        return None if job is None else self._number(job)

    def _verb_add(self, lines: Lines, path: str, force: bool = False) -> tuple[int, str] | None:
        return self._with_member(lambda new: self.array.add(new, force=force), lines, path)

    def _verb_re_add(self, lines: Lines, path: str) -> tuple[int, str] | None:
        return self._with_member(self.array.re_add, lines, path)

    def _verb_replace(self, lines: Lines, member: int | str, path: str) -> tuple[int, str] | None:
        return self._with_member(lambda new: self.array.replace(self._known(member), new), lines, path)

    def _verb_set_bitmap(self, _lines: Lines, bitmap: str, chunk: int | None = None) -> None:
        self.array.set_bitmap(bitmap, chunk=chunk)

    def _verb_check(self, _lines: Lines) -> tuple[int, str]:
        return self._number(self.array.check())

    def _verb_repair(self, _lines: Lines) -> tuple[int, str]:
        return self._number(self.array.repair())

    def _verb_job(self, _lines: Lines, job: int) -> JobStatus:
        status: JobStatus = self._find_job(job).status()
        return status

    def _verb_mismatches(self, _lines: Lines, job: int) -> list[Mismatch]:
        found: list[Mismatch] = self._find_job(job).mismatches()
        return found

    def _verb_pause(self, _lines: Lines, job: int) -> None:
        self._find_job(job).pause()

    def _verb_resume(self, _lines: Lines, job: int) -> None:
        self._find_job(job).resume()

    def _verb_cancel(self, _lines: Lines, job: int) -> None:
        self._find_job(job).cancel()

    def _verb_speed(self, _lines: Lines, minimum: int | None = None, maximum: int | None = None) -> None:
        self.array.set_speed(minimum=minimum, maximum=maximum)

    def _verb_wait(self, lines: Lines, job: int | None = None, timeout: float | None = None) -> bool:
        """Until the job (the array's, if none is named) has ended, with its progress every half a second."""
        target = self.array.job if job is None else self._find_job(job)
        until = None if timeout is None else time.monotonic() + timeout
        while target is not None:
            left = PROGRESS_S if until is None else min(PROGRESS_S, max(0.0, until - time.monotonic()))
            if target.wait(left):
                return True
            if until is not None and time.monotonic() >= until:
                return False
            if self._closing.is_set():
                raise BusyError(f"array {self.info.name or self.info.uuid} is being stopped")
            lines.write(Reply(kind="progress", value=target.status()))
        return True

    def _verb_events(self, _lines: Lines, after: int = 0, limit: int = 256, timeout: float | None = None) -> list[tuple[int, Event]]:
        """The events with a number above `after`; waits for one if there is none."""

        def news() -> list[tuple[int, Event]]:
            return [item for item in self._events if item[0] > after][:limit]

        with self._changed:
            self._changed.wait_for(lambda: bool(news()) or self._closing.is_set(), timeout)
            return news()

    def _verb_stop(self, _lines: Lines) -> None:
        """Stops the array; the answer comes when it is closed (or cannot be)."""
        with self._changed:
            self._stops += 1
        try:
            if self._on_stop is not None:
                self._on_stop()
            else:
                self.quiesce()
                self.array.close()
        finally:
            with self._changed:
                self._stops -= 1
        self.ended.set()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


# --- The client -------------------------------------------------------------------------------------------------------


def _name(member: int | str | os.PathLike[str]) -> int | str:
    """A slot, a word of mdadm's, or a path that does not depend on the working directory."""
    if isinstance(member, int) or member in MEMBER_WORDS:
        return member
    text = os.fspath(member)
    return text if "://" in text else os.path.abspath(text)


class RemoteJob:
    """A job of a live array, with the methods of jobs.Job."""

    def __init__(self, client: Client, number: int, kind: str) -> None:
        self._client, self.number, self.kind = client, number, kind

    def status(self) -> JobStatus:
        """Progress, rate and time left."""
        return self._client._call("job", JobStatus, job=self.number)

    def mismatches(self) -> list[Mismatch]:
        """Where parity or copies did not agree."""
        return self._client._call("mismatches", list[Mismatch], job=self.number)

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status().state not in ("running", "paused")

    @property
    def progress(self) -> float:
        """From 0.0 to 1.0."""
        status = self.status()
        return status.done / status.total if status.total else 1.0

    @property
    def rate(self) -> float:
        """Bytes a second of each member."""
        return self.status().rate

    @property
    def eta(self) -> float | None:
        """Seconds left."""
        return self.status().eta

    def pause(self) -> None:
        """Holds it until resume()."""
        self._client._call("pause", None, job=self.number)

    def resume(self) -> None:
        """Lets it go on."""
        self._client._call("resume", None, job=self.number)

    def cancel(self) -> None:
        """Ends it; a later job goes on at its checkpoint."""
        self._client._call("cancel", None, job=self.number)

    def wait(self, timeout: float | None = None, on_progress: Callable[[JobStatus], None] | None = None) -> bool:
        """Until it has ended; raises what it failed with. False: not yet, after `timeout` seconds."""
        return self._client._wait(self.number, timeout, on_progress)


class Client:
    """The administration of a live array through its owner's socket: Array's methods, the same structs, the same exceptions.

    Each call has a connection of its own, so a client may be used from many threads and holds nothing open.
    """

    def __init__(self, folder: Path, info: Info) -> None:
        self.folder, self.info = folder, info
        self._seen = 0

    @property
    def uuid(self) -> str:
        """The array's UUID."""
        return self.info.uuid

    @property
    def name(self) -> str:
        """The array's name."""
        return self.info.name

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to let go of: the array goes on."""

    def _gone(self) -> RaidError:
        text = f"the owner of array {self.name or self.uuid} (process {self.info.pid}) has gone"
        return errors.ArrayIOError(f"{text}; mount or open the array again, nothing flushed is lost", errno=errno.ENOTCONN)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            folder = open_folder(self.folder)
            try:
                # without settimeout(), which would make a full queue an error instead of a wait
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(ANSWER_S), 0))
                connection.connect(socket_path(folder))
            finally:
                os.close(folder)
            if peer(connection)[1] not in (os.geteuid(), 0):
                raise AccessError(f"{self.folder / SOCKET} is served by another user")
        except OSError as error:
            connection.close()
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                raise self._gone() from None
            raise errors.from_errno(error.errno or errno.EIO, f"{self.folder / SOCKET}: {error}") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _call(
        self,
        verb: str,
        kind: type[T] | None,
        *,
        descriptors: Sequence[int] = (),
        answer_s: float | None = ANSWER_S,
        on_progress: Callable[[JobStatus], None] | None = None,
        **args: Any,
    ) -> T:
        lines = Lines(self._connect(), REPLY_BYTES_MAX)
        try:
            lines.connection.settimeout(answer_s)
            lines.write(Request(verb=verb, args=args, descriptors=len(descriptors)), descriptors)
            while (line := lines.read()) is not None:
                reply = msgspec.json.decode(line, type=Reply)
                if reply.kind == "error" and reply.error is not None:
                    raise reply.error.exception()
                if reply.kind == "result":
                    return msgspec.convert(reply.value, kind)
                if on_progress is not None:
                    on_progress(msgspec.convert(reply.value, JobStatus))
        except TimeoutError:
            raise BusyError(f"process {self.info.pid}, the owner of array {self.name or self.uuid}, does not answer") from None
        except msgspec.MsgspecError as error:
            raise RaidError(f"process {self.info.pid} speaks another version of the control protocol: {error}") from None
        except OSError:
            raise self._gone() from None
        finally:
            lines.close()
        raise self._gone()

    def _wait(self, job: int | None, timeout: float | None, on_progress: Callable[[JobStatus], None] | None) -> bool:
        return self._call("wait", bool, answer_s=None, on_progress=on_progress, job=job, timeout=timeout)

    def _job(self, verb: str, **args: Any) -> RemoteJob:
        number, kind = self._call(verb, tuple[int, str], **args)
        return RemoteJob(self, number, kind)

    def _with_member(self, verb: str, path: str | os.PathLike[str], **args: Any) -> RemoteJob | None:
        """A verb that hands over a new member, opened with the rights of the caller; but for an array, which the owner opens."""
        name = os.path.abspath(path)
        if os.path.isdir(name):
            job: tuple[int, str] | None = self._call(verb, MAYBE_JOB, path=name, **args)
            return None if job is None else RemoteJob(self, *job)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            kind = UsageError if error.errno in (errno.ENOENT, errno.EISDIR) else None
            text = f"{name}: {error.strerror}"
            raise (kind(text, members=[name]) if kind else errors.from_errno(error.errno or errno.EIO, text, members=[name])) from None
        try:
            answer: tuple[int, str] | None = self._call(verb, MAYBE_JOB, descriptors=[fd], path=name, **args)
        finally:
            os.close(fd)
        return None if answer is None else RemoteJob(self, *answer)

    def ping(self) -> int:
        """The owner's pid, by itself."""
        return self._call("ping", int)

    def status(self) -> Status:
        """The state of the array."""
        return self._call("status", Status)

    @property
    def job(self) -> RemoteJob | None:
        """The job that runs, or the last one."""
        answer: tuple[int, str] | None = self._call("current_job", MAYBE_JOB)
        return None if answer is None else RemoteJob(self, *answer)

    def fail(self, member: int | str) -> None:
        """Marks a member faulty."""
        self._call("fail", None, member=_name(member))

    def remove(self, member: int | str) -> list[str]:
        """Lets go of a faulty member or a spare, or of all that are "faulty"; their paths."""
        return self._call("remove", list[str], member=_name(member))

    def add(self, path: str | os.PathLike[str], *, force: bool = False) -> RemoteJob | None:
        """Takes a new member in; the job that rebuilds onto it, or None for a spare."""
        return self._with_member("add", path, force=force)

    def re_add(self, path: str | os.PathLike[str]) -> RemoteJob | None:
        """Takes a former member back."""
        return self._with_member("re_add", path)

    def replace(self, member: int | str, path: str | os.PathLike[str]) -> RemoteJob | None:
        """Rebuilds onto a new member while the old one stays in use."""
        return self._with_member("replace", path, member=_name(member))

    def set_bitmap(self, kind: str, *, chunk: int | None = None) -> None:
        """Gives the array a write-intent bitmap ("internal"), or takes it away ("none"). chunk: bytes of a region."""
        self._call("set_bitmap", None, bitmap=kind, chunk=chunk)

    def check(self) -> RemoteJob:
        """Counts what does not agree."""
        return self._job("check")

    def repair(self) -> RemoteJob:
        """Mends it."""
        return self._job("repair")

    def set_speed(self, *, minimum: int | None = None, maximum: int | None = None) -> None:
        """Limits of the array's jobs in bytes a second of each member; None: as it is."""
        self._call("speed", None, minimum=minimum, maximum=maximum)

    def wait(self, timeout: float | None = None, on_progress: Callable[[JobStatus], None] | None = None) -> bool:
        """Until no job runs; raises what the job failed with. False: not yet, after `timeout` seconds."""
        return self._wait(None, timeout, on_progress)

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The oldest event that this client has not seen; None after `timeout` seconds."""
        news = self._call("events", list[tuple[int, Event]], answer_s=None, after=self._seen, limit=1, timeout=timeout)
        if not news:
            return None
        self._seen = news[0][0]
        return news[0][1]

    def stop(self) -> None:
        """Unmounts, marks the array clean, ends its owner; returns when that has gone. BusyError if files are open."""
        self._call("stop", None, answer_s=None)
        until = time.monotonic() + STOP_S
        while self.is_alive():
            if time.monotonic() > until:
                raise BusyError(f"process {self.info.pid} has stopped array {self.name or self.uuid}, but does not end")
            time.sleep(0.02)

    def is_alive(self) -> bool:
        """Whether the array has an owner (still)."""
        try:
            folder = open_folder(self.folder)
        except (OSError, AccessError):
            return False
        try:
            return is_locked(folder)
        finally:
            os.close(folder)


def _uuid_of(target: Any) -> str | None:
    """The UUID by the superblock of the first member that has one."""
    try:
        members = sort_out(target)
        return None if members.below else next(iter(_opening.examine(path).uuid for path in members.sources), None)
    except (RaidError, OSError):
        return None


def search(target: Any, *, alive: bool = True) -> tuple[Path, Info] | None:
    """The run-time folder of the array that `target` means: a mount point, a folder of members, members, a UUID or a name."""
    known = found(alive=alive)
    if not known:
        return None
    if isinstance(target, (str, os.PathLike)):
        text = os.fspath(target)
        if UUID.fullmatch(text):
            return next((item for item in known if item[1].uuid == text.replace("-", ":")), None)
        hits = meant(text, known)
        if not hits and os.sep not in text:
            hits = [item for item in known if text in (item[1].name, item[1].name.partition(":")[2])]
    else:
        paths = [os.fspath(path) for path in target if isinstance(path, (str, os.PathLike)) and path != "missing"]
        hits = together([item for item in known if any(matches(item[1], path) for path in paths)], known)
    if len(hits) > 1:
        raise UsageError(f"{target} may mean {' or '.join(item[1].uuid for item in hits)}; give the mount point or the UUID")
    if not hits:
        uuid = _uuid_of(target)
        hits = [item for item in known if item[1].uuid == uuid]
    return hits[0] if hits else None


def connect(target: Any) -> Client | None:
    """The client of the live array that `target` means (see `search`).

    None if it has no owner, or one that serves nobody (a program that uses the library).
    """
    hit = search(target)
    return Client(*hit) if hit is not None and (hit[0] / SOCKET).exists() else None
