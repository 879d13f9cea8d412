"""Many studies at once: every combination of the values in a study file, on any number of workers, with the same answers to the bit.

    sweep = Sweep.read("study.toml")
    points = run_sweep(sweep, "study.results.jsonl", workers=4)

A study's missions are blocks with random streams of their own (montecarlo.py). Workers, processes here or a Dask cluster anywhere, play
runs of blocks; their sums are added here in the order of the blocks, whoever played them. What is done is appended to a file of JSON lines
that begins with the sweep's hash: a sweep that ended early goes on behind its last whole line.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import importlib
import itertools
import json
import logging
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from ..errors import ArrayIOError, BusyError, UsageError
from ..model import Struct
from . import montecarlo, needs
from .inputs import inputs_of
from .model import System
from .montecarlo import Block, Sums
from .study import Progress, Result, Study, finish, of_estimate, simulate

FORMAT = 1  # of the file of results
POINTS_MAX = 1_000_000
_RUN_BLOCKS = 32  # that a worker plays for one request: about 0.3 s
_AHEAD = 4  # studies a worker may be ahead of what is written
_LEFT_OUT = ("study", "assumptions", "curve", "improvements", "versions")  # of a result: what the inputs say, or a sweep does not ask


class Point(Struct, frozen=True, kw_only=True):
    """One combination: its number, its inputs, and its result as `Result.to_dict` has it, without what a sweep does not ask for."""

    point: int
    inputs: dict[str, Any]
    result: dict[str, Any]


class Sweep(Struct, frozen=True, kw_only=True):
    """A study file: each input with all its values, in the file's order. The combinations are counted like digits, the last input first."""

    path: str
    values: dict[str, tuple[Any, ...]]

    @classmethod
    def read(cls, path: str | Path) -> Sweep:
        """From a TOML file. Everything in it is looked at now: a UsageError names the file, and the input or the combination."""
        try:
            table = tomllib.loads(Path(path).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no TOML file: {error}") from None
        values = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in table.items()}
        for name, some in values.items():
            for value in some:
                inputs_of({name: value}, f"{path}: ")
            if not some:
                raise UsageError(f"{path}: {name} has no values")
        sweep = cls(path=str(path), values=values)
        if not table or len(sweep) > POINTS_MAX:
            raise UsageError(f"{path}: {len(sweep) if table else 0} combinations; 1 to {POINTS_MAX} are possible")
        for number, inputs in enumerate(sweep.combinations()):
            try:
                _ = sweep.study(inputs)
            except UsageError as error:
                shown = ", ".join(f"{name} = {inputs[name]}" for name in sweep.varied)
                raise UsageError(f"{path}: combination {number}{f' ({shown})' if shown else ''}: {error}") from None
        return sweep

    def __len__(self) -> int:
        count = 1
        for some in self.values.values():
            count *= len(some)
        return count

    @property
    def varied(self) -> tuple[str, ...]:
        """The inputs with more than one value."""
        return tuple(name for name, some in self.values.items() if len(some) > 1)

    @property
    def hash(self) -> str:
        """Of the inputs and all their values."""
        text = json.dumps([FORMAT, list(self.values.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def default_results(self) -> Path:
        """study.results.jsonl beside study.toml."""
        return Path(self.path).with_suffix(".results.jsonl")

    def combinations(self) -> Iterator[dict[str, Any]]:
        """The inputs of each point."""
        for chosen in itertools.product(*self.values.values()):
            yield dict(zip(self.values, chosen, strict=True))

    def study(self, inputs: dict[str, Any]) -> Study:
        """Of one combination."""
        return inputs_of(inputs).study()


# --- Running --------------------------------------------------------------------------------------------------------------------------


def run_sweep(
    sweep: Sweep,
    results: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> list[Point]:
    """All points, in order. `results` is the file of what is done; what it has is not done again, unless `restart`.

    workers: processes of this machine (1: none, all is done here); scheduler: instead, the address of a Dask cluster whose workers have
    raidlib. progress(done, all) counts points. MissingFacilityError: Dask is needed, and is not installed.
    """
    with _opened(Path(results), sweep, restart) as (file, done):
        left = [(number, inputs) for number, inputs in enumerate(sweep.combinations()) if number not in done]
        studies = ((number, inputs, sweep.study(inputs)) for number, inputs in left)
        if progress is not None:
            progress(len(done), len(sweep))
        for point in _computed(studies, workers, scheduler) if left else ():
            file.write(msgspec.json.encode(point).decode() + "\n")
            file.flush()
            done[point.point] = point
            if progress is not None:
                progress(len(done), len(sweep))
    return [done[number] for number in range(len(sweep))]


def _computed(studies: Iterator[tuple[int, dict[str, Any], Study]], workers: int, scheduler: str | None) -> Iterator[Point]:
    if workers < 1:
        raise UsageError(f"workers {workers}: at least one works")
    if workers == 1 and scheduler is None:
        for number, inputs, study in studies:
            yield _point(number, inputs, simulate(study, improvements=False))
        return
    with needs("dask"):
        yield from _on_dask(studies, workers, scheduler)


def _point(number: int, inputs: dict[str, Any], result: Result) -> Point:
    """As it comes back from the file of results: a sweep that went on gives what one without a break gives."""
    point = Point(point=number, inputs=inputs, result={key: value for key, value in result.to_dict().items() if key not in _LEFT_OUT})
    return msgspec.json.decode(msgspec.json.encode(point), type=Point)


def play_run(system: System, blocks: Sequence[Block]) -> list[Sums]:
    """The sums of some blocks, on a worker."""
    return [montecarlo.play(system, block) for block in blocks]


def _on_dask(studies: Iterator[tuple[int, dict[str, Any], Study]], workers: int, scheduler: str | None) -> Iterator[Point]:
    """A study's runs of blocks go to whoever is free; a few studies are under way at a time."""
    distributed: Any = importlib.import_module("distributed")
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR)
            scheduler = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(distributed.Client(scheduler, timeout="30s"))
        except (OSError, ValueError) as error:
            raise ArrayIOError(f"scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
        width = _AHEAD * max(workers, len(client.scheduler_info()["workers"]))
        waiting: dict[str, tuple[_Task, int]] = {}  # by a future's key: the study, and which of its runs (-1: the plan)
        events = distributed.as_completed()

        def follow(task: _Task, run: int, future: Any) -> None:
            waiting[future.key] = (task, run)
            events.add(future)

        def begin(count: int) -> Iterator[Point]:
            for number, inputs, study in studies:
                if study.is_exact:  # a chain is soon solved, and its last digit may depend on a machine's linear algebra
                    yield _point(number, inputs, simulate(study, improvements=False))
                    continue
                task = _Task(number, inputs, study)
                follow(task, -1, task.plan(client))
                count -= 1
                if not count:
                    return

        yield from begin(width)
        for future in events:
            task, run = waiting.pop(future.key)
            for index, follower in enumerate(task.take(client, run, future.result())):
                follow(task, index, follower)
            if task.is_done:
                yield _point(task.number, task.inputs, task.result())
                yield from begin(1)


class _Task:
    """A study under way on a cluster: its plan, then its runs of blocks, of which the sums are kept in the plan's order."""

    def __init__(self, number: int, inputs: dict[str, Any], study: Study) -> None:
        self.number, self.inputs, self.study = number, inputs, study
        self.blocks: list[Block] = []
        self.sums: list[list[Sums] | None] = []

    def plan(self, client: Any) -> Any:
        """The future of the blocks; a worker makes them, because of the pilot."""
        settings = {"missions": self.study.missions, "relative_error": self.study.relative_error, "seed": self.study.seed}
        return client.submit(montecarlo.plan, self.study.system, **settings, pure=False)

    def take(self, client: Any, run: int, brought: Any) -> list[Any]:
        """What a future brought; the futures that follow from it."""
        if run >= 0:
            self.sums[run] = brought
            return []
        self.blocks = brought
        runs = [brought[start : start + _RUN_BLOCKS] for start in range(0, len(brought), _RUN_BLOCKS)]
        self.sums = [None] * len(runs)
        return [client.submit(play_run, self.study.system, blocks, pure=False) for blocks in runs]

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.blocks) and None not in self.sums

    def result(self) -> Result:
        """The study's answer, as `simulate` gives it."""
        sums = itertools.chain.from_iterable(run for run in self.sums if run is not None)
        return finish(self.study, of_estimate(self.study, montecarlo.reduce(self.study.system, self.blocks, sums)), (), None)


# --- What is done ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path, sweep: Sweep, restart: bool) -> Iterator[tuple[IO[str], dict[int, Point]]]:
    """The file of results, locked, at its end; and the points that it has. A last line that was cut off is cut away."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with open(fd, "r+", encoding="utf-8", newline="\n") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path}: another sweep writes to it; wait for it, or take another --results") from None
        done = _read(path, sweep, restart)
        if not done:
            file.truncate(0)
            file.write(_head(sweep))
            file.flush()
        file.seek(0, os.SEEK_END)
        yield file, done


def _head(sweep: Sweep) -> str:
    return json.dumps({"raidlib_sweep": FORMAT, "hash": sweep.hash, "points": len(sweep)}) + "\n"


def _read(path: Path, sweep: Sweep, restart: bool) -> dict[int, Point]:
    """The points in a file of this sweep, which is cut behind its last whole line."""
    content = path.read_bytes()
    head, _, rest = content.partition(b"\n")
    if not _head(sweep)[:18].encode().startswith(content[:18]):
        raise UsageError(f"{path} is no file of a sweep's results; take another --results")
    if restart or (not rest and b"\n" not in content):
        return {}
    if head.decode(errors="replace") + "\n" != _head(sweep):
        raise UsageError(f"{path} has results of another study than {sweep.path} (hash {sweep.hash}); take another --results, or --restart")
    done, end = {}, len(head) + 1
    lines = rest.splitlines(keepends=True)
    for number, line in enumerate(lines, 2):
        try:
            point = msgspec.json.decode(line, type=Point)
        except msgspec.MsgspecError as error:
            if number == len(lines) + 1:
                break  # cut off: it is done again
            raise UsageError(f"{path}: line {number} is damaged ({error}); take another --results, or --restart") from None
        if not line.endswith(b"\n"):
            break
        done[point.point] = point
        end += len(line)
    os.truncate(path, end)
    return done


def write_csv(points: Sequence[Point], path: str | Path) -> None:
    """A row for each point: its inputs, then the numbers of its result."""
    rows = []
    for point in points:
        low, high = point.result["p_loss_ci95"]
        flat = {key: value for key, value in point.result.items() if not isinstance(value, (dict, list, tuple))}
        rows.append({"point": point.point, **point.inputs, **flat, "p_loss_low95": low, "p_loss_high95": high})
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
