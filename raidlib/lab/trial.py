"""One case of the fault matrix (faults.py), run and judged."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from typing import Any

from .. import opening
from ..errors import BusyError, NoSpaceError, RaidError
from ..jobs import Job
from ..model import SECTOR, MemberState
from .faults import DEADLINE_S, KINDS, PROMISES, SLACK_S, SPACE_S, Case, Place, redundancy_of
from .outcome import BROKEN, Outcome
from .rig import Lab
from .truth import PAGE, Content, Layout, differing

OPERATIONS = 20  # of a workload, before it is seen to that the fault strikes
SWEEPS_MAX = 4
PIECE = 64 << 10


def run(case: Case) -> Outcome:
    """Runs a case; whatever happens in it is in the outcome."""
    began = time.monotonic()
    try:
        trial = Trial(case)
    except RaidError as error:
        words = f"the array cannot be made: {error}"
        slow = KINDS[case.kind].hangs
        return Outcome(case=str(case), fault=case.kind, reach=case.reach, injected=0, hit=0, outcome=BROKEN, violations=[words], slow=slow)
    try:
        trial.run()
    except RaidError as error:
        trial.broken(f"an error where none may be: {type(error).__name__}: {error}")
    except Exception:
        trial.broken("a bug: " + traceback.format_exc().strip().replace("\n", " | "), content=True)
    finally:
        trial.end()
    return Outcome(
        case=str(case),
        fault=case.kind,
        reach=case.reach,
        injected=trial.injected,
        hit=trial.hit,
        outcome=BROKEN if trial.violations else trial.outcome,
        violations=trial.violations,
        wrong_sectors=len(trial.wrong),
        slow=trial.kind.hangs and bool(trial.violations) and not trial.content_is_wrong,
        seconds=time.monotonic() - began,
    )


class Trial:
    """An array, the faulty members, what is known of the content, and what went wrong."""

    def __init__(self, case: Case) -> None:
        self.case, self.kind = case, KINDS[case.kind]
        self.beyond = case.reach == "beyond"
        self.rng = random.Random(str(case))
        self.layout = Layout(case.shape.geometry())
        self.lab = Lab.of(case.shape, seed=self.rng.getrandbits(32), deadline=DEADLINE_S if self.kind.hangs else None)
        self.victims = case.shape.too_many(case.member) if self.beyond else [case.member]
        self.start = self.lab.data_offset
        # copies that a refused write has left different are read as one or the other, once the member that is asked first has failed too
        self.content = Content(self.rng.randbytes(self.layout.size), stable=not self.beyond)
        self.injected, self._hit_before = 0, 0
        self._counted: int | None = None  # hits, once no more are counted
        self.violations: list[str] = []
        self.content_is_wrong = False
        self.errors = 0  # that the caller was told, where it may be told some
        self.wrong: set[int] = set()
        self.outcome = "nothing was run"

    @property
    def array(self) -> Any:
        """The one that is open now."""
        return self.lab.array

    @property
    def member(self) -> int:
        """The slot that the case is about."""
        return self.case.member

    def broken(self, what: str, *, content: bool = False) -> None:
        """A promise was not kept. content: bytes are wrong, which no slowness of the machine excuses."""
        self.content_is_wrong |= content
        if what not in self.violations:
            self.violations.append(what)

    def run(self) -> None:
        """All of it."""
        self.array.pwrite(bytes(self.content.data), 0)
        self.array.flush()
        self.inject()
        for _ in range(6 if self.kind.silent else OPERATIONS):
            self.any_operation()
        self.make_it_strike()
        if self.beyond:
            self.judge_beyond()
        elif self.kind.silent:
            self.judge_silent()
        else:
            self.judge_loud()

    def end(self) -> None:
        """Lets everything go."""
        try:
            self.lab.close()
        except RaidError as error:
            self.broken(f"the array does not close: {error}")

    # -- faults

    def inject(self) -> None:
        """Gives the plan of the case to its members."""
        place = Place(self.start // SECTOR, self.layout.used // SECTOR, full=self.beyond)
        for slot in self.victims:
            for rule in self.kind.rules(self.rng, place):
                self.lab.devices[slot].add(rule)
                self.injected += 1

    def withdraw(self) -> None:
        """Takes all faults out, and keeps count of what they did."""
        self._hit_before = self.hit
        for slot in self.victims:
            self.lab.devices[slot].clear()

    @property
    def hit(self) -> int:
        """Requests that were struck."""
        if self._counted is not None:
            return self._counted
        devices = [self.lab.devices[slot] for slot in self.victims]
        return self._hit_before + sum(c.hit for d in devices if d.handle.pointer is not None for c in d.counts())

    def make_it_strike(self) -> None:
        """A case in which nothing was hit says nothing: requests of the kind to all places, and if that is not enough, once more."""
        for attempt in range(SWEEPS_MAX):
            if self.errors if self.beyond else self.hit:
                break
            if attempt:
                self.withdraw()
                self.inject()
            {"read": self.sweep_reads, "write": self.sweep_writes, "flush": self.sweep_flushes}[self.kind.on]()

    def sweep_reads(self) -> None:
        """What users read, and what only a check does: parity, second copies."""
        self.read_all()
        self.check()

    def sweep_writes(self) -> None:
        """Everything anew."""
        at = 0
        while at < self.layout.size:
            length = min(self.rng.choice([PAGE, 5000, PIECE]), self.layout.size - at)
            self.write(self.rng.randbytes(length), at)
            at += length
        self.flush()

    def sweep_flushes(self) -> None:
        """One after a write each."""
        for _ in range(4):
            self.write(self.rng.randbytes(SECTOR), 0)
            self.flush()

    # -- the workload

    def any_operation(self) -> None:
        """One step, as the seed wants it."""
        size, choice = self.layout.size, self.rng.random()
        longest = self.rng.choice([1, 100, SECTOR, 1000, PAGE, 5000, 16384, 40_000, size // 4])
        length = self.rng.randint(1, longest) if longest > PAGE else longest
        offset = self.rng.randrange(size - length + 1)
        if choice < 0.4:
            self.read(length, offset)
        elif choice < 0.8 or (self.kind.silent and choice > 0.9):
            self.write(self.rng.randbytes(length), offset)
        elif choice < 0.9:
            self.flush()
        elif choice < 0.93:
            self.zero(length, offset)
        elif choice < 0.96:
            self.check()
        elif not self.beyond and not self.kind.hangs:
            self.rebuild()

    def call(self, what: str, function: Callable[[], Any]) -> tuple[bool, Any]:
        """One call of a user: (whether it ended without an error, its answer); in time, where a member may be silent."""
        began, done, answer = time.monotonic(), False, None
        try:
            answer, done = function(), True
        except RaidError as error:
            self.told(what, error)
        took, most = time.monotonic() - began, DEADLINE_S * len(self.victims) + SLACK_S
        if self.kind.hangs and took > most:
            self.broken(f"{what} took {took:.2f} s, with a deadline of {DEADLINE_S} s")
        return done, answer

    def told(self, what: str, error: RaidError) -> None:
        """The caller was told an error."""
        if self.beyond and error.errno is None:
            self.broken(f"{what} ended with an error without an errno: {error}")
        may_be_full = self.case.kind == "no-space" and what != "read" and isinstance(error, NoSpaceError)
        if self.beyond or may_be_full:
            self.errors += 1
        else:
            self.broken(f"{what} ended with an error, and the level bears the fault: {error}")

    def read(self, length: int, offset: int) -> None:
        """Reads and compares. A sector that could not be read was written anew meanwhile: the same read does not meet it again."""
        before = self.hit
        done, got = self.call("read", lambda: self.array.pread(length, offset))
        if done:
            self.found_wrong(self.content.wrong(got, offset))
        if done and self.case.kind == "latent" and not self.beyond and (struck := self.hit) > before:
            self.call("read", lambda: self.array.pread(length, offset))
            if self.hit > struck:
                self.broken("sectors that could not be read were not mended by the read that met them")

    def found_wrong(self, sectors: list[int]) -> None:
        """Sectors were read that cannot be right."""
        if not sectors:
            return
        self.wrong |= set(sectors)
        if not self.kind.silent or PROMISES[self.case.kind][redundancy_of(self.case.shape)].reads == "right":
            refused = all(self.content.is_open(sector) for sector in sectors)
            where = ", neither the old nor the new ones of a write that was refused" if refused else ""
            self.broken(f"wrong bytes were read, without an error: {len(sectors)} sectors from {sectors[0]} on{where}", content=True)
        elif others := [sector for sector in sectors if self.member not in self.layout.owners(sector)]:
            self.broken(f"wrong bytes were read that other members hold: {len(others)} sectors from {others[0]} on", content=True)

    def read_all(self) -> None:
        """Piece by piece: an error costs no more than its piece."""
        for at in range(0, self.layout.size, PIECE):
            self.read(min(PIECE, self.layout.size - at), at)

    def write(self, data: bytes, offset: int) -> None:
        """Writes, and notes what must be there then."""
        self.changed("write", data, offset, lambda: self.array.pwrite(data, offset))

    def zero(self, length: int, offset: int) -> None:
        """Zeros a range, in one of the two ways."""
        way = self.array.zero if self.rng.random() < 0.5 else self.array.discard
        self.changed("zero", bytes(length), offset, lambda: way(offset, length))

    def changed(self, what: str, data: bytes, offset: int, function: Callable[[], Any]) -> None:
        """A call that is to leave `data` there."""
        done, _answer = self.call(what, function)
        if done:
            self.content.write(data, offset)
        else:
            self.content.refuse(data, offset)

    def flush(self) -> None:
        """A flush that failed on a member never counts as done: the member is out, or the caller was told."""
        done, _answer = self.call("flush", self.array.flush)
        if done and self.case.kind == "flush-error":
            self.must_be_out("a flush failed on it, and array's flush counts as done")

    def must_be_out(self, why: str) -> None:
        """Members that were struck are in use no more (within a moment, where the array's own thread met the fault)."""
        until = time.monotonic() + SLACK_S + (DEADLINE_S if self.kind.hangs else 0)
        for slot in self.victims:
            while any(c.hit for c in self.lab.devices[slot].counts()) and self.lab.state(slot) is MemberState.IN_SYNC:
                if time.monotonic() > until:
                    self.broken(f"member {slot} is still in use: {why}")
                    return
                time.sleep(0.01)

    def job(self, what: str, start: Callable[[], Job | None]) -> Job | None:
        """Runs a job to its end, after those that the array had begun by itself. None: it ended with an error."""
        until = time.monotonic() + SPACE_S
        while True:
            self.lab.settle()
            try:
                job = start()
                if job is not None:
                    job.wait()
                return job
            except BusyError as error:
                if time.monotonic() > until:
                    self.told(what, error)
                    return None
                time.sleep(0.01)
            except RaidError as error:
                self.told(what, error)
                return None

    def check(self) -> Job | None:
        """A scrub; parity and copies agree whatever loud faults there were, but where writes were refused."""
        job = self.job("check", self.array.check)
        found = job.status().mismatch_count if job is not None else 0
        if found and not self.kind.silent and not self.errors:
            self.broken(f"a check counts {found} sectors that do not agree", content=True)
        return job

    def rebuild(self) -> None:
        """Of another member while this one is faulty, where the level bears it; else of this one, faults and all, which may fail."""
        other = self.rng.randrange(self.case.shape.devices)
        slot = other if self.case.shape.tolerance > 1 and not self.kind.silent else self.member
        # a refused write leaves stripes that do not agree until there is space: up to then no level bears the loss of a member in them
        if self.kind.silent or self.case.kind == "no-space" or self.lab.state(slot) is not MemberState.IN_SYNC:
            return
        try:
            self.array.fail(slot)
            job = self.array.re_add(self.lab.devices[slot])
            if job is not None:
                job.wait()
        except RaidError as error:
            if slot != self.member:
                self.told(f"the rebuild of member {slot}", error)
        if slot != self.member and not self.errors and self.lab.state(slot) is not MemberState.IN_SYNC:
            self.broken(f"member {slot} was rebuilt, and is not in sync")

    # -- judgement: loud faults within the redundancy

    def judge_loud(self) -> None:
        """Nobody noticed, the member is where it belongs; all is as it must be, and the level bears what it bears."""
        if self.kind.member == "leaves":
            self.must_be_out("it was struck by a fault that no member survives")
        if self.case.kind == "latent":
            self.inject()  # more of them: users' reads come before the check that mends the rest
            self.read_all()
            self.check()
            self.lab.devices[self.member].handle.pread(self.layout.used, self.start)  # raises where a sector is still bad
        self.judge_stop()
        was = self.lab.state(self.member)
        was_out = was is not MemberState.IN_SYNC
        if self.kind.member == "stays" and was_out:
            self.broken("the member is out, and the fault is one that it survives")
        self.withdraw()
        self.outcome = "served, the member taken back" if was_out else "served, the member stayed"
        if self.case.kind == "no-space":
            self.outcome = "refused for want of space, then went on" if self.errors else self.outcome
            self.await_space()
        if self.rng.random() < 0.5:
            self.restart(was)
        self.lab.bring_back(self.member)
        self.judge_everything()
        others = [slot for slot in range(self.case.shape.devices) if slot != self.member]
        for slot in self.rng.sample(others, self.case.shape.tolerance):
            self.array.fail(slot)
        self.read_all()

    def judge_stop(self) -> None:
        """Were the process killed now, all that was acknowledged would be there, and no member that is out would be taken for good."""
        copies = [device.fork() for device in self.lab.memory]
        out = any(self.lab.state(slot) is not MemberState.IN_SYNC for slot in range(self.case.shape.devices))
        try:
            with opening.open(copies, "r", run=True, force=out) as after:  # force: degraded, and not marked clean
                for at in range(0, self.layout.size, PIECE):
                    got = after.pread(min(PIECE, self.layout.size - at), at)
                    if wrong := self.content.wrong(got, at, elsewhere=True):
                        what = f"{len(wrong)} sectors from {wrong[0]} on"
                        self.broken(f"killed now, the array would be read wrong: {what}", content=True)
        finally:
            for copy in copies:
                copy.close()

    def await_space(self) -> None:
        """The array goes on by itself once there is space."""
        until = time.monotonic() + SPACE_S
        data = self.rng.randbytes(SECTOR)
        while True:
            try:
                self.array.pwrite(data, 0)
                break
            except NoSpaceError:
                if time.monotonic() > until:
                    self.broken("there is space again, and the array does not go on")
                    return
                time.sleep(0.05)
        self.content.write(data, 0)
        while self.array.status().resync_offset is not None and time.monotonic() < until:
            time.sleep(0.02)

    def restart(self, was: MemberState) -> None:
        """Closes it and opens it with all members; the one that was out must not come back without a rebuild."""
        if was is not MemberState.IN_SYNC:
            self.lab.heal(self.member)
        self.lab.reopen()
        if was is MemberState.REMOVED and self.lab.state(self.member) is not was and self.array.job is None:
            self.broken("the member that was out is in use after a restart, without a rebuild")
        self.read_all()

    def judge_everything(self) -> None:
        """Every byte: what is read, every copy and every parity; no block is marked as bad after a repair."""
        if any(m.bad_blocks for m in self.array.status().members):
            self.job("repair", self.array.repair)
            self.call("flush", self.array.flush)
            if left := [m.slot for m in self.array.status().members if m.bad_blocks]:
                self.broken(f"blocks of member {left[0]} are marked as bad after a repair")
        self.read_all()
        self.errors = 0
        self.check()
        for slot, (got, right) in enumerate(zip(self.images(), self.layout.members(self.content.data), strict=True)):
            if places := differing(got, right, SECTOR):
                kind = "data" if self.layout.is_data(slot, places[0]) else "parity"
                self.broken(
                    f"member {slot} is not what it must be: {len(places)} sectors from byte {places[0]} of its data on ({kind})",
                    content=True,
                )

    def images(self) -> list[bytes]:
        """The data of every member, as its device gives them."""
        return [device.handle.pread(self.layout.used, self.start) for device in self.lab.devices]

    # -- judgement: beyond the redundancy

    def judge_beyond(self) -> None:
        """Errors were told, and nothing else was wrong; the next start finds what is left, or refuses."""
        if not self.errors:
            self.broken("no error was told, and more members fail than the level bears")
        self.read_all()
        self.withdraw()
        self.outcome = "explicit errors"
        try:
            self.array.close()
        except RaidError:
            self.errors += 1  # a failed array says so once more
        for slot in self.victims:
            self.lab.heal(slot)
        try:
            self.lab.reopen()
        except RaidError as error:
            if error.errno is None:
                self.broken(f"the next start is refused without an errno: {error}")
            self.outcome += ", and the next start refuses"
            return
        self.read_all()
        self.lab.settle()
        self.read_all()
        if self.array.status().resync_offset is None:
            job = self.job("check", self.array.check)
            if job is not None and (found := job.status().mismatch_count):
                self.broken(f"after the resync of the next start {found} sectors do not agree", content=True)

    # -- judgement: silent faults

    def judge_silent(self) -> None:
        """What PROMISES says, page by page."""
        promise = PROMISES[self.case.kind][redundancy_of(self.case.shape)]
        if self.case.kind == "rot":
            self._counted = self.hit  # our own looks at the members do not count
        else:
            self.withdraw()
        self.flush()
        right, before = self.layout.members(self.content.data), self.images()
        damaged = [set(differing(got, wanted, SECTOR)) for got, wanted in zip(before, right, strict=True)]
        self._judge_innocents(damaged)
        self.wrong = set()
        self.read_all()  # now as the members are
        disagreeing = self.layout.disagreeing(before)
        self._judge_check(disagreeing, promise.located)
        only_it = self._pages(damaged, self.member) - {p for s in range(len(damaged)) if s != self.member for p in self._pages(damaged, s)}
        self.job("repair", self.array.repair)
        self._judge_repaired(right, only_it if promise.mended else set())
        words = [f"{'found' if disagreeing else 'nothing for a check to find'}"]
        if disagreeing and promise.located:
            words.append("located")
        if disagreeing and promise.mended:
            words.append("mended")
        self.outcome = ", ".join(["read wrong" if self.wrong else "read right", *words])

    def _pages(self, damaged: list[set[int]], slot: int) -> set[int]:
        return {self.layout.page_of(slot, at) for at in damaged[slot]} - {-1}

    def _judge_innocents(self, damaged: list[set[int]]) -> None:
        """What other members hold of the content is right; parity may be computed from what was misread, copies from it too."""
        for slot, places in enumerate(damaged):
            if slot == self.member or not self.layout.stripes:
                continue
            if data := [at for at in places if self.layout.is_data(slot, at)]:
                self.broken(f"data of member {slot}, which had no fault, are wrong: {len(data)} sectors from byte {min(data)} on")

    def _judge_check(self, disagreeing: set[int], located: bool) -> None:
        """It counts the pages that do not agree, all of them and no others; where the code can tell, it names the member."""
        job = self.job("check", self.array.check)
        if job is None:
            return
        found = {m.sector + at: m.slot for m in job.mismatches() for at in range(0, m.sectors, PAGE // SECTOR)}
        if job.status().mismatch_count != len(disagreeing) * (PAGE // SECTOR) or set(found) != disagreeing:
            missed, extra = sorted(disagreeing - set(found)), sorted(set(found) - disagreeing)
            self.broken(f"a check of {len(disagreeing)} pages that do not agree finds {len(found)}: not {missed[:3]}, but {extra[:3]}")
        if located and (others := {slot for slot in found.values() if slot != self.member}):
            self.broken(f"a check says that member {others.pop()} lies; it is member {self.member}")

    def _judge_repaired(self, right: list[bytearray], mended: set[int]) -> None:
        job = self.job("check", self.array.check)
        if job is not None and job.status().mismatch_count:
            self.broken(f"{job.status().mismatch_count} sectors do not agree after a repair")
        damaged = [set(differing(got, wanted, SECTOR)) for got, wanted in zip(self.images(), right, strict=True)]
        self._judge_innocents(damaged)
        if left := self._pages(damaged, self.member) & mended:
            self.broken(f"{len(left)} pages that member {self.member} alone had wrong are not right after a repair")
        self.read_all()
