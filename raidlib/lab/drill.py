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


def _outcomes(batches: Sequence[list[Task]], jobs: int) -> Iterator[list[Outcome]]:
    if jobs == 1:
        yield from map(_run_batch, batches)
        return
    with tempfile.TemporaryDirectory(prefix="raidlib-drill-") as folder:  # the arrays of a drill are nobody else's
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(folder,))
        try:
            for done in concurrent.futures.as_completed([pool.submit(_run_batch, batch) for batch in batches]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(folder: str) -> None:
    """A process of the drill: interrupted by its parent alone, ends with it, and has a run-time folder of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAIDLIB_RUNTIME_DIR"] = folder


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_batch(batch: list[Task]) -> list[Outcome]:
    if not batch[0].waits:
        return [replay(task.case) for task in batch]
    with concurrent.futures.ThreadPoolExecutor(len(batch)) as threads:
        return list(threads.map(lambda task: replay(task.case), batch))
