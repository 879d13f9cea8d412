"""The drill: campaigns of cases on the production engine, run beside each other on all processors.

A case is a string (`fault:…`, `power:…`), which says all that it depends on: what runs it here runs it in another process, and replays it
tomorrow. A further campaign has a prefix of its own in CAMPAIGNS, and hands its cases to `collect`.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from ..errors import UsageError
from . import crashes, faults, trial
from .outcome import Outcome, Report, Task, report
from .rig import Shape


def _power(text: str) -> Outcome:
    """One state after a power cut; `make crash` finds those that are broken."""
    again = crashes.replay(text.partition(":")[2])
    broken = [again.problem] if again.problem else []
    said = "a promise is broken" if broken else "as promised"
    return Outcome(case=text, fault="power cut", reach="within", injected=1, hit=1, outcome=said, violations=broken, story=again.story)


# The first word of a case -> what runs it.
CAMPAIGNS: dict[str, Callable[[str], Outcome]] = {
    faults.Case.PREFIX: lambda text: trial.run(faults.Case.parse(text)),
    "power": _power,
}

CRASHED = "CRASHED"
TOGETHER = 16  # cases of one process that wait at the same time
BATCH = 25  # cases that a process is given at once

Progress = Callable[[int, int], object]  # cases done, cases in all


def collect(shape: Shape, *, kinds: Sequence[str], seed: int, seeds: int) -> list[Task]:
    """The cases of all campaigns for an array of that shape."""
    return [Task(str(case), faults.waits(case)) for case in faults.cases(shape, list(kinds), seed, seeds)]


def replay(case: str) -> Outcome:
    """Runs one case."""
    prefix = case.partition(":")[0]
    if prefix not in CAMPAIGNS:
        raise UsageError(f"{case!r} is no case of a drill; it begins with {' or '.join(f'{name}:' for name in CAMPAIGNS)}")
    return CAMPAIGNS[prefix](case)


def run(shape: Shape, tasks: Sequence[Task], *, jobs: int | None = None, progress: Progress = lambda _done, _total: None) -> Report:
    """Runs cases and sums them up. Those that missed a time, but held no wrong byte, are run once more alone.

    jobs: processes; None: one for each processor. With 1 they are run in this one; with more the caller's main module must be one that
    can be imported (multiprocessing's way "spawn").
    """
    began = time.monotonic()
    place = {task.case: number for number, task in enumerate(tasks)}
    outcomes: list[Outcome] = []
    for done in _outcomes(_batches(tasks), jobs or os.cpu_count() or 1):
        outcomes += done
        progress(len(outcomes), len(tasks))
    slow = [outcome for outcome in outcomes if outcome.slow]  # none beside them now
    outcomes = [replay(outcome.case) if outcome.slow else outcome for outcome in outcomes]
    outcomes.sort(key=lambda outcome: place[outcome.case])
    return report(str(shape), outcomes, time.monotonic() - began, slow)


def _batches(tasks: Sequence[Task]) -> list[list[Task]]:
    """Those that wait first: at the end of a drill nobody should have to wait for them alone."""
    found = []
    for waiting, size in ((True, TOGETHER), (False, BATCH)):
        these = [task for task in tasks if task.waits is waiting]
        found += [these[at : at + size] for at in range(0, len(these), size)]
    return found


def _outcomes(batches: list[list[Task]], jobs: int) -> Iterator[list[Outcome]]:
    if jobs == 1:
        yield from map(_run_batch, batches)
        return
    with tempfile.TemporaryDirectory(prefix="raidlib-drill-") as folder:  # the arrays of a drill are nobody else's
        left = list(batches)
        while left:
            pool = _pool(jobs, folder)
            try:
                under_way = {pool.submit(_run_batch, batch): batch for batch in left}
                for done in concurrent.futures.as_completed(under_way):
                    result = done.result()
                    left.remove(under_way[done])
                    yield result
            except BrokenProcessPool:
                suspects = _take_notes(folder)
                yield _run_suspects(suspects, folder)
                left = [rest for batch in left if (rest := [task for task in batch if task.case not in suspects])]
            finally:
                pool.shutdown(cancel_futures=True)


def _pool(jobs: int, folder: str) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(folder,))


def _run_suspects(suspects: list[str], folder: str) -> list[Outcome]:
    """The cases that were under way when a process died, each in a process of its own. A crash is the worst of all outcomes."""
    found = []
    for case in suspects:
        pool = _pool(1, folder)
        try:
            found.append(pool.submit(replay, case).result())
        except BrokenProcessPool:
            found.append(_crashed(case, "the process that ran it crashed"))
        finally:
            pool.shutdown()
    if not any(outcome.outcome == CRASHED for outcome in found):
        others = f"this one or one of {len(suspects)} others" if len(suspects) > 1 else "this one"
        found[0] = _crashed(suspects[0], f"a process crashed while {others} ran; alone none of them crashed again")
    return found


def _crashed(case: str, words: str) -> Outcome:
    parts = case.split(":")
    fault, reach = (parts[2], parts[3]) if len(parts) > 3 else (parts[0], "")
    return Outcome(case=case, fault=fault, reach=reach, injected=0, hit=0, outcome=CRASHED, violations=[words])


_notes = ""  # in a process of the drill: the folder where it says which cases are under way


def _take_notes(folder: str) -> list[str]:
    """Which cases were under way in processes that died; their notes go."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith("case-"):
            with open(path) as file:
                found.append(file.read())
            os.unlink(path)
    if not found:
        raise UsageError("processes of the drill end before they run anything: does the main module start one when it is imported?")
    return found


def _begin(folder: str) -> None:
    """A process of the drill: interrupted by its parent alone, ends with it, and has a run-time folder of its own."""
    global _notes
    _notes = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAIDLIB_RUNTIME_DIR"] = folder


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_noted(task: Task) -> Outcome:
    if not _notes:
        return replay(task.case)
    path = os.path.join(_notes, f"case-{os.getpid()}-{threading.get_ident()}")
    with open(path, "w") as file:
        file.write(task.case)
    outcome = replay(task.case)
    os.unlink(path)
    return outcome


def _run_batch(batch: list[Task]) -> list[Outcome]:
    if not batch[0].waits:
        return list(map(_run_noted, batch))
    with concurrent.futures.ThreadPoolExecutor(len(batch)) as threads:
        return list(threads.map(_run_noted, batch))
