"""One class for the jobs that go over a whole array: recovery, resync, check, repair."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .engine import check, ffi, lib
from .errors import RaidError
from .holders import OwnLock
from .model import JobStatus, Mismatch

_KINDS = {lib.RL_SYNC_RECOVER: "recovery", lib.RL_SYNC_RESYNC: "resync", lib.RL_SYNC_CHECK: "check", lib.RL_SYNC_REPAIR: "repair"}
_STATES = {
    lib.RL_SYNC_IDLE: "running",
    lib.RL_SYNC_RUNNING: "running",
    lib.RL_SYNC_PAUSED: "paused",
    lib.RL_SYNC_DONE: "done",
    lib.RL_SYNC_CANCELLED: "cancelled",
    lib.RL_SYNC_FAILED: "failed",
}


class Job:
    """A job on its own thread, once started. The array makes and starts it; `wait()` for it, or look at `status()`."""

    def __init__(self, array: Any, kind: int, on_end: Callable[[Job], None]) -> None:
        out = ffi.new("rl_sync **")
        check(lib.rl_sync_new(array, kind, out))
        self.kind = _KINDS[kind]
        self.error: RaidError | None = None
        self._sync, self._on_end = out[0], on_end
        self._lock = OwnLock("the array")
        self._ended = threading.Event()
        self._last: tuple[JobStatus, list[Mismatch]] | None = None
        self._thread = threading.Thread(target=self._run, name=f"raidlib {self.kind}", daemon=True)

    def start(self) -> None:
        """Begins; once. Where that does not come about (no thread, Ctrl-C) the job has ended without having begun."""
        try:
            self._thread.start()
        except BaseException:
            if self._thread.ident is None:
                self._free()
                self._ended.set()
            raise

    def _run(self) -> None:
        try:
            check(lib.rl_sync_run(self._sync), lambda text: f"{self.kind}: {text}")
        except RaidError as error:
            self.error = error
        self._free()
        try:
            self._on_end(self)
        finally:
            self._ended.set()

    def _free(self) -> None:
        with self._lock:
            self._last = (self._look(), self._read_mismatches())
            lib.rl_sync_free(self._sync)
            self._sync = None

    def _look(self) -> JobStatus:
        p = ffi.new("struct rl_sync_progress *")
        lib.rl_sync_progress(self._sync, p)
        elapsed = p.elapsed_ns / 1e9
        rate = max(0, p.done_bytes - p.start_bytes) / elapsed if elapsed > 0 else 0.0
        left = (p.total_bytes - p.done_bytes) / rate if rate > 0 else None
        state = _STATES[p.state]
        return JobStatus(
            kind=self.kind,
            state=state,
            done=p.done_bytes,
            total=p.total_bytes,
            mismatch_count=p.mismatch_count,
            elapsed=elapsed,
            rate=rate,
            eta=left if state in ("running", "paused") else None,
            error=str(self.error) if self.error else "",
        )

    def _read_mismatches(self) -> list[Mismatch]:
        found = ffi.new("struct rl_mismatch[]", lib.RL_MISMATCHES_MAX)
        count = lib.rl_sync_mismatches(self._sync, found, 0, lib.RL_MISMATCHES_MAX)
        return [
            Mismatch(sector=m.sector, sectors=m.sectors, slot=m.slot if m.slot >= 0 else None, repaired=bool(m.repaired))
            for m in (found[i] for i in range(count))
        ]

    def status(self) -> JobStatus:
        """Progress, rate and time left."""
        with self._lock:
            return self._look() if self._last is None else self._last[0]

    def mismatches(self) -> list[Mismatch]:
        """Where parity or copies did not agree (the first 4096 places)."""
        with self._lock:
            return self._read_mismatches() if self._last is None else self._last[1]

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

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
        self._control(lambda sync: lib.rl_sync_pause(sync, 1))

    def resume(self) -> None:
        """Lets it go on."""
        self._control(lambda sync: lib.rl_sync_pause(sync, 0))

    def cancel(self) -> None:
        """Ends it; what it did is checkpointed, and a later job goes on there."""
        self._control(lib.rl_sync_cancel)

    def set_speed(self, *, minimum: int = 1 << 20, maximum: int = 0) -> None:
        """Bytes a second of each member: at least `minimum` while users work, at most `maximum` (0: no limit)."""
        self._control(lambda sync: lib.rl_sync_speed(sync, minimum, maximum))

    def _control(self, call: Callable[[Any], object]) -> None:
        with self._lock:
            if self._sync is not None:
                call(self._sync)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended; raises what it failed with (CancelledError if it was cancelled). False: not yet, after `timeout` seconds."""
        self._lock.check()
        if not self._ended.wait(timeout):
            return False
        if self.error is not None:
            raise self.error
        return True

    def join(self) -> None:
        """Until it has ended, in whatever way."""
        self._lock.check()
        self._ended.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join()
