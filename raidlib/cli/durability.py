"""The verbs that say how sure it is that an array keeps its data: simulate, sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
from rich.padding import Padding
from rich.text import Text

from ..errors import UsageError
from ..model import format_size
from ..sim import needs
from . import arrays, base, render
from .base import OK, json_option

_SHAPE = (
    ("--level", "-l", {"metavar": "L", "help": "Of an array that is not there: 0, 1, 4, 5, 6, 10, rs."}),
    ("--raid-devices", "-n", {"type": int, "metavar": "N", "help": "Its number of disks."}),
    ("--data", {"type": int, "metavar": "K", "help": "Data disks, for level rs."}),
    ("--parity", {"type": int, "metavar": "M", "help": "Parity disks, for level rs."}),
    ("--layout", {"metavar": "NAME", "help": "n2, f2, o2 … of level 10."}),
    (
        "--groups",
        {"type": int, "metavar": "COUNT", "help": "So many such arrays, all of which are needed (RAID 60: --level 6 --groups 2)."},
    ),
    ("--pool-disks", {"type": int, "metavar": "N", "help": "A declustered pool: arrays of this shape at random over N disks."}),
    ("--pool-groups", {"type": int, "metavar": "COUNT", "help": "How many of them (N)."}),
    ("--size", {"metavar": "SIZE", "help": "Of a disk: losses in bytes, and --rebuild-rate."}),
)
_DISKS = (
    ("--afr", {"metavar": "RATE", "help": "Annualised failure rate, a rate per disk-year: 2% or 0.02 (1.36%)."}),
    ("--mttf", {"metavar": "TIME", "help": "Instead, the mean time to failure: 438000h."}),
    ("--lifetime", {"metavar": "LAW", "help": "Instead, the law of a life: weibull:1.12:461386h; see below."}),
    ("--drive-stats", {"metavar": "DIR", "help": "Instead, from Backblaze's daily CSV files; with `--lifetime weibull` a fit to them."}),
    ("--drive-model", {"metavar": "MODEL", "help": "The drives of --drive-stats that count (all of them)."}),
)
_MENDING = (
    ("--mttr", {"metavar": "LAW", "help": "Time of a repair: its mean, or a law (24h)."}),
    ("--rebuild-rate", {"metavar": "SIZE", "help": "Instead, the bytes of a disk that are rebuilt in a second: 100M."}),
    (
        "--repair",
        {"metavar": "HOW", "help": "parallel (all lost disks at once), serial (one at a time), or how many at a time (parallel)."},
    ),
    (
        "--human",
        {"metavar": "LAW", "help": "A failed disk is replaced by a human, after this time: 72h. Without it one is always at hand."},
    ),
    ("--spares", {"type": int, "metavar": "COUNT", "help": "Hot spares, until the human comes (0)."}),
)
_TROUBLES = (
    ("--lse", {"metavar": "TIME", "help": "Mean time to a latent sector error on a disk: 9259h."}),
    ("--scrub", {"metavar": "LAW", "help": "How long such an error lasts, until a scrub has mended it: 168h, the mean (for ever)."}),
    (
        "--shock",
        {
            "multiple": True,
            "metavar": "RATE:DISKS",
            "help": "RATE times a year DISKS disks fail at once, or each with a probability: 0.001:2, 0.01:50%, 0.01:100%:shelf.",
        },
    ),
    ("--shelf", {"metavar": "DISKS[:X:TIME]", "help": "Shelves of DISKS disks; after a failure X times the hazard for a time: 12:5:24h."}),
    ("--batch", {"metavar": "DISKS:P:X", "help": "Batches of DISKS disks, bad with probability P, with X times the hazard: 12:10%:3."}),
)
_ANSWER = (
    ("--years", {"type": float, "metavar": "YEARS", "help": "How long the data are to be kept (5)."}),
    ("--count-losses", {"is_flag": True, "help": "Go on after a loss, and count them all."}),
    (
        "--method",
        {
            "type": click.Choice(["exact", "mc", "auto"]),
            "default": "auto",
            "show_default": True,
            "help": "A Markov chain, Monte Carlo, or the first where it is possible.",
        },
    ),
    (
        "--relative-error",
        {"metavar": "SHARE", "default": "1%", "show_default": True, "help": "Monte Carlo: the standard error that is enough."},
    ),
    ("--missions", {"type": int, "metavar": "COUNT", "help": "Monte Carlo: instead, how many missions."}),
    ("--seed", {"type": int, "default": 0, "show_default": True, "metavar": "S", "help": "Monte Carlo: of the random numbers."}),
)


def input_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a study is given; their names are those of sim.Inputs and of a study file."""
    for *names, settings in reversed((*_SHAPE, *_DISKS, *_MENDING, *_TROUBLES, *_ANSWER)):
        function = click.option(*names, **settings)(function)
    return function


workers_option = click.option(
    "--workers",
    "-j",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Works on so many cores; the answer is the same.",
)


@click.command(short_help="How sure it is that an array keeps its data for years: nines, exact or by Monte Carlo.")
@click.argument("array", nargs=-1, metavar="[ARRAY]")
@input_options
@workers_option
@click.option("--report", type=click.Path(dir_okay=False), metavar="FILE", help="Also one HTML file with plots, which needs no network.")
@json_option
def simulate(array: tuple[str, ...], workers: int, report: str | None, as_json: bool, **options: Any) -> int:
    r"""Simulate years of an array's life: how many nines, how long it is available, and what to improve next.

    The array is ARRAY, whose superblocks are read for its shape (level, layout, number and size of members; it is not written to), or
    one that is not there. Which losses it bears is the engine's own verdict. Where all times are exponential, the answer is exact;
    else missions are drawn at random, however rare a loss is, and the interval says how sure the answer is.

    A LAW of a time is its mean (24h: exponential), constant:24h, weibull:SHAPE:SCALE[:LOCATION], piecewise:0h=2%,1y=1% (failures a year
    from an age on) or empirical:1y=2%,5y=9% (shares that have ended by an age). Times have units: s, min, h, d, y.

    \b
      raidlib simulate --level 6 --raid-devices 10 --afr 2% --mttr 24h --repair parallel --years 5
      raidlib simulate -l rs --data 10 --parity 4 --lifetime weibull:1.12:50y --lse 9259h --scrub 168h
      raidlib simulate tank --drive-stats drive-stats/ --report report.html
    """
    with needs():
        from .. import sim

        source = base.source_of(array) if array else None
        study = sim.inputs.inputs_of(options).study(None if source is None else status_of(source))
        base.check_can_write(report)
        with Meter(as_json) as show:
            result = sim.simulate(study, workers=workers, compare=report is not None, progress=show)
        if report is not None:
            sim.write_report(result, report)
    if as_json:
        base.document("simulate", **result.to_dict(), report=report)
        return OK
    print_result(result, "" if source is None else base.name_of(source))
    if report is not None:
        click.echo(f"\nReport: {report}")
    return OK


class Meter(render.Meter):
    """A meter of blocks of missions."""

    def __init__(self, quiet: bool, label: str = "simulating", noun: str = "blocks") -> None:
        super().__init__(quiet, lambda rate: f"{rate:.1f} {noun}")
        self._label, self._began = label, time.monotonic()

    def __enter__(self) -> Any:
        super().__enter__()
        return self.tick

    def tick(self, done: int, total: int) -> None:
        """So many of so many are done."""
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self.show(self._label, done, total, rate, (total - done) / rate if rate else None)


def status_of(source: base.Source) -> Any:
    """The state of a real array, from its owner or from its members, which are opened read-only."""
    status, plan, _live = arrays.look(source)
    if status is None:
        raise UsageError(f"{base.name_of(source)} cannot be started ({plan.problem}); say what is simulated: --level {plan.level}")
    return status


def number_words(value: float) -> str:
    """1.079e-07, 46300000."""
    return f"{value:.4g}"


def bytes_words(count: float) -> str:
    """An expected number of bytes, which may be far below one."""
    return format_size(count) if count >= 1 else f"{number_words(count)} bytes"


def print_result(result: Any, name: str) -> None:
    """The sentence, the table, what would help, and what it rests on."""
    low, high = result.p_loss_ci95
    how = {
        "chain": "exact: a Markov chain",
        "crude": f"Monte Carlo: {result.missions} missions, losses counted",
        "rare": f"Monte Carlo: {result.missions} missions, importance sampling",
    }[result.estimator]
    if result.missions is not None:
        how += f"; effective {result.effective_missions:.0f}, the heaviest has {100 * result.largest_share:.2g} %; seed {result.seed}"
    causes = result.causes or {}
    words = {"disk": "a disk too many", "latent": "a latent error", "shock": "a shock"}
    interval = f"below {number_words(high)} (95 %)" if result.none_seen else f"{number_words(result.p_loss)}"
    if result.missions is not None and not result.none_seen:
        interval += f", 95 %: {number_words(low)} to {number_words(high)}"
    rows: list[tuple[str, str | Text | None]] = [
        ("P(loss)", interval),
        ("Nines", f"{result.nines:.2f}" + (" or more" if result.none_seen else f" ± {result.nines_error:.2g}" if result.missions else "")),
        ("MTTDL", f"{'more than ' if result.none_seen else ''}{number_words(result.mttdl_years)} years"),
        ("Losses expected", None if result.losses is None else number_words(result.losses)),
        ("Bytes expected lost", None if result.lost_bytes is None else bytes_words(result.lost_bytes)),
        ("Losses come by", ", ".join(f"{words[cause]} {100 * share:.3g} %" for cause, share in causes.items() if share)),
        ("Availability", None if result.availability is None else availability_words(result)),
        ("Degraded", None if result.degraded_hours_per_year is None else degraded_words(result)),
        ("Repair", result.repair),
        ("Method", how),
    ]
    helps = [
        (
            one.words,
            one.factor_words,
            "" if one.elasticity is None else f"{one.elasticity:+.3f}",
        )
        for one in result.improvements
    ]
    parts: list[Any] = [Text(f"{name + ': ' if name else ''}{result.words}", style="bold"), "", Padding(render.facts(rows), (0, 0, 0, 2))]
    if helps:
        table = render.grid(("If this were twice as good", "Losses", "Elasticity to its rate"), helps, right=(2,))
        parts += ["", Padding(table, (0, 0, 0, 2))]
    parts += ["", Text("Assumed:", style="bold"), *(Text(f"  - {line}") for line in result.assumptions)]
    render.show(*parts)


def availability_words(result: Any) -> str:
    """0.999999 …, in nines and minutes."""
    from ..sim.study import survival_words

    share, minutes = survival_words(result.unavailability), number_words(result.downtime_minutes_per_year)
    return f"{share}: {result.availability_nines:.2f} nines, {minutes} minutes a year without the data"


def degraded_words(result: Any) -> str:
    """Hours with a disk down, of all that is simulated."""
    of = f" in any of {result.study.groups} arrays" if result.study.groups > 1 else ""
    return f"{number_words(result.degraded_hours_per_year)} hours a year with a disk down{of}"


@click.command(short_help="Simulate every combination of the inputs of a study file.")
@click.argument("study", type=click.Path(dir_okay=False), metavar="STUDY.toml")
@workers_option
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster that works instead of processes here: tcp://192.0.2.1:8786.")
@click.option("--results", type=click.Path(dir_okay=False), metavar="FILE", help="What is done so far, a line each (STUDY.results.jsonl).")
@click.option("--restart", is_flag=True, help="Begin anew: what is done so far is thrown away.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), metavar="FILE", help="All answers as a table for other programs.")
@json_option
def sweep(study: str, workers: int, scheduler: str | None, results: str | None, restart: bool, csv_path: str | None, as_json: bool) -> int:
    r"""Simulate every combination of a study file's values; a sweep that was interrupted goes on.

    The file has the options of `raidlib simulate` by their names, each with a value or a list of values. Each answer is the one that
    `raidlib simulate` gives, to the bit, with any number of workers, here or on any Dask cluster.

    \b
      level = 6
      raid_devices = [8, 10, 12]
      afr = ["1%", "2%"]
      mttr = ["12h", "24h"]

    \b
      raidlib sweep study.toml --workers 4 --csv study.csv
    """
    with needs():
        from .. import sim

        plan = sim.Sweep.read(study)
        path = results or str(plan.default_results)
        base.check_can_write(csv_path)
        with Meter(as_json, "sweeping", "studies") as show:
            points = sim.run_sweep(plan, path, workers=workers, scheduler=scheduler, restart=restart, progress=show)
        if csv_path is not None:
            sim.sweep.write_csv(points, csv_path)
    if as_json:
        base.document("sweep", study=study, hash=plan.hash, results=path, points=points)
        return OK
    print_points(plan, points)
    click.echo(f"\n{render.count_of(len(points), 'study', 'studies')}; all of it: {path}")
    return OK


def print_points(plan: Any, points: Any) -> None:
    """A line for each combination: the inputs that vary, and the answer."""
    names = list(plan.varied)
    rows = []
    for point in points:
        result = point.result
        sure = "or more" if result["none_seen"] else "exact" if result["method"] == "exact" else f"± {result['nines_error']:.2g}"
        rows.append(
            (
                *(str(point.inputs[name]) for name in names),
                f"{result['nines']:.2f}",
                sure,
                number_words(result["p_loss"]),
                number_words(result["mttdl_years"]),
            )
        )
    head = (*(name.replace("_", " ") for name in names), "Nines", "", "P(loss)", "MTTDL, years")
    render.show(Padding(render.grid(head, rows, right=(len(names), len(names) + 2, len(names) + 3)), (0, 0, 0, 2)))


COMMANDS = (simulate, sweep)
