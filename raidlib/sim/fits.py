"""What data say of disks: annualised failure rates with exact intervals, Kaplan-Meier curves, Weibull fits; from Backblaze's drive-stats or
any lives.

    stats = read_drive_stats("drive-stats/")            # a polars LazyFrame: years of daily files need little memory
    for rate in failure_rates(stats): ...               # by model, most failures first
    fit_weibull(lifetimes(stats, model="ST12000NM0008"))

Ages and times in hours; a year of a failure rate has 365 days, as Backblaze counts. Whatever does not fit is a UsageError that names the
file and the line, or the row and the value.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import gammainccinv, gammaincinv, ndtri

from raidlib.errors import UsageError

__all__ = [
    "FailureRate",
    "Lifetimes",
    "SurvivalCurve",
    "WeibullFit",
    "annualised",
    "failure_rates",
    "fit_weibull",
    "kaplan_meier",
    "lifetimes",
    "poisson_interval",
    "read_drive_stats",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Slope: TypeAlias = Callable[[float], tuple[float, float]]

REQUIRED = ("date", "serial_number", "model", "failure")
POWER_ON = "smart_9_raw"  # hours; a quarter's files need not have it
SHAPE_MIN, SHAPE_MAX = 0.02, 100.0


# --- drive-stats ----------------------------------------------------------------------------------------------------------------


def read_drive_stats(folder: str | Path) -> pl.LazyFrame:
    """All daily files under `folder`, as date, serial_number, model, failure (0 or 1) and power_on_hours (null where a drive does not say).

    Columns are found by name, since the schema changes from quarter to quarter, and only these five are read. Every row is looked at now,
    so that one that was cut off or holds nonsense is named (file and line) and not lost in a sum; the answers are computed when they are
    asked for.
    """
    found = sorted(
        path for path in Path(folder).rglob("*.csv") if not path.name.startswith(".")
    )  # "._x.csv": macOS, in Backblaze's archives
    if not found:
        raise UsageError(f"{folder}: no CSV file is in it or below it; drive-stats are a folder of daily files (2024-01-01.csv)")
    frames = [_read_day(path) for path in found]
    _check_days(dict(zip(found, frames, strict=True)))
    return pl.concat(frames)


def _check_days(frames: dict[Path, pl.LazyFrame]) -> None:
    """Refuse a day of a drive that two files tell of, as where one was copied or unpacked twice: it would count twice."""
    drive_day = ["date", "serial_number", "model"]
    of_day: dict[datetime.date, list[Path]] = {}
    for path, frame in frames.items():
        for day in frame.select(pl.col("date").unique()).collect()["date"]:
            rows = frame.filter(pl.col("date") == day)
            for other in of_day.setdefault(day, []):
                twice = rows.join(frames[other], on=drive_day, how="semi").select(drive_day).head(1).collect()
                for _, serial, model in twice.iter_rows():
                    raise UsageError(f"{path}: {model} {serial} on {day} is in {other} too, and would count twice; keep one of the files")
            of_day[day].append(path)


_MEANT = {
    "date": "a day is meant, as 2024-01-31",
    "serial_number": "each row is of one drive",
    "model": "each drive has a model",
    "failure": "0 is meant, or 1 on a drive's last day",
    POWER_ON: "hours are meant, or nothing",
}


def _read_day(path: Path) -> pl.LazyFrame:
    """One file's rows, as typed columns; all of them have been looked at."""
    told = _checked_header(path)
    hours = pl.col(POWER_ON) if POWER_ON in told else pl.lit(None, dtype=pl.String).alias(POWER_ON)
    text = pl.scan_csv(path, infer_schema=False, row_index_name="line", row_index_offset=2).select("line", *REQUIRED, hours)
    typed = {
        "date": pl.col("date").str.to_date("%Y-%m-%d", strict=False),
        "serial_number": pl.when(pl.col("serial_number").str.strip_chars() != "").then("serial_number"),
        "model": pl.when(pl.col("model").str.strip_chars() != "").then("model"),
        "failure": pl.col("failure").replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.Int64),
        POWER_ON: pl.col(POWER_ON).cast(pl.Float64, strict=False),
    }
    wrong = {name: value.is_null() for name, value in typed.items()}
    wrong[POWER_ON] = pl.col(POWER_ON).is_not_null() & ~typed[POWER_ON].is_between(0, 1e300).fill_null(False)
    bad = text.filter(pl.any_horizontal(*wrong.values())).head(1)
    flags = bad.with_columns(**{f"{name} is wrong": test for name, test in wrong.items()})
    for row in flags.collect().iter_rows(named=True):
        name = next(name for name in wrong if row[f"{name} is wrong"])
        raise UsageError(f"{path}: line {row['line']}: {name} is {row[name] or ''!r}; {_MEANT[name]}")
    return text.select(**typed).rename({POWER_ON: "power_on_hours"})


def _checked_header(path: Path) -> list[str]:
    """The names of the columns of a file whose rows are all as long as its header. polars fills up a row that was cut off."""
    number = 1
    with path.open("rb") as file:
        try:
            names = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
            missing = [name for name in REQUIRED if name not in names]
            if missing:
                raise UsageError(f"{path}: line 1: column {missing[0]!r} is missing; drive-stats have {', '.join(REQUIRED)}")
            for name in (*REQUIRED, POWER_ON):
                if names.count(name) > 1:
                    raise UsageError(f"{path}: line 1: column {name!r} is there {names.count(name)} times; which one is meant?")
            for number, line in enumerate(file, 2):
                text = line.decode()  # polars would fail at bytes that are none, and not say where
                fields = len(next(csv.reader([text]))) if '"' in text else text.count(",") + 1
                if fields != len(names):
                    raise UsageError(f"{path}: line {number}: {fields} fields, {len(names)} in the header; the file is damaged or cut off")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: line {number}: no text in UTF-8 ({error.reason}); drive-stats are CSV files") from error
    return names


# --- failure rates --------------------------------------------------------------------------------------------------------------


def poisson_interval(events: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Garwood 1936) interval for the mean of a Poisson variable that came out as `events`; (0, 3.69) for none at 95 %."""
    if events < 0:
        raise UsageError(f"events {events}: a count is not negative")
    tail = (1 - _probability(confidence)) / 2
    return float(gammaincinv(events, tail)) if events else 0.0, float(gammainccinv(events + 1, tail))


def _probability(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence}: between 0 and 1, as 0.95")
    return confidence


class FailureRate(msgspec.Struct, frozen=True):
    """Failures per drive and year (0.0136 is 1.36 %), with its exact interval."""

    model: str
    drives: int
    drive_days: int
    failures: int
    per_year: float
    low: float
    high: float


def annualised(failures: int, drive_days: int, confidence: float = 0.95, *, model: str = "", drives: int = 0) -> FailureRate:
    """The annualised failure rate, failures / (drive_days / 365), and the Poisson interval of it."""
    if drive_days < 1:
        raise UsageError(f"drive_days {drive_days}: a rate needs at least one drive-day")
    low, high = poisson_interval(failures, confidence)
    years = drive_days / 365
    return FailureRate(model, drives, drive_days, failures, failures / years, low / years, high / years)


def failure_rates(stats: pl.LazyFrame, confidence: float = 0.95) -> list[FailureRate]:
    """The annualised failure rate of each model, the one with most drive-days first."""
    table = stats.group_by("model").agg(drives=pl.col("serial_number").n_unique(), drive_days=pl.len(), failures=pl.col("failure").sum())
    rows = table.sort(["drive_days", "model"], descending=[True, False]).collect(engine="streaming").iter_rows(named=True)
    return [annualised(row["failures"], row["drive_days"], confidence, model=row["model"], drives=row["drives"]) for row in rows]


# --- lives ----------------------------------------------------------------------------------------------------------------------


class Lifetimes:
    """Drives under observation: each from the age `entry_hours` (0: since it was new; else left-truncated: had it failed before, nobody
    would have seen it) to `exit_hours`, where it `failed` or was last seen (right-censored). Arrays of equal length; `left_out`: drives of
    unknown age.
    """

    def __init__(self, exit_hours: npt.ArrayLike, failed: npt.ArrayLike, entry_hours: npt.ArrayLike = 0.0, *, left_out: int = 0) -> None:
        self.exit_hours: Floats = np.atleast_1d(np.asarray(exit_hours, dtype=np.float64))
        flags = np.atleast_1d(np.asarray(failed))
        for row in np.flatnonzero((flags != 0) & (flags != 1))[:1]:
            raise UsageError(f"row {row}: failed is {flags[row]}; 1 (failed) or 0 (last seen alive) is meant")
        self.failed: Flags = flags.astype(np.bool_)
        entry = np.asarray(entry_hours, dtype=np.float64)
        self.left_out = left_out
        if self.exit_hours.ndim != 1 or self.failed.shape != self.exit_hours.shape or entry.shape not in ((), self.exit_hours.shape):
            lengths = f"exit_hours {self.exit_hours.shape}, failed {self.failed.shape}, entry_hours {entry.shape}"
            raise UsageError(f"{lengths}: one length is needed")
        self.entry_hours: Floats = np.broadcast_to(entry, self.exit_hours.shape)
        good = (self.entry_hours >= 0) & (self.exit_hours > self.entry_hours) & np.isfinite(self.exit_hours)
        for row in np.flatnonzero(~good)[:1]:
            seen = f"from {self.entry_hours[row]} to {self.exit_hours[row]} hours of age"
            raise UsageError(f"row {row}: {seen}; a life is seen from an age of 0 or more to a later one")

    def __len__(self) -> int:
        return len(self.exit_hours)


def lifetimes(stats: pl.LazyFrame, model: str | None = None) -> Lifetimes:
    """The lives of the drives of one model, or of all. A drive is seen from its first day to its first failure or its last day, both whole.

    Its age is what its power-on hours say, by the median over its days (they are off by less than a day then, whatever single readings
    are). A drive that never says is left out.
    """
    if model is not None:
        stats = stats.filter(pl.col("model") == model)
    day = pl.col("date").to_physical()
    table = (
        stats.group_by("serial_number", "model")
        .agg(
            first=day.min(),
            last=day.max(),
            failure=day.filter(pl.col("failure") == 1).min(),
            birth=(24 * day.cast(pl.Float64) - pl.col("power_on_hours")).median(),
        )
        .sort("serial_number", "model")  # sums over the lives then have the same last bit each time
        .collect(engine="streaming")
    )
    if table.is_empty() and model is None:
        raise UsageError("the data have no row of a drive, only headers")
    if table.is_empty():
        raise UsageError(f"model {model}: no such drive is in the data; failure_rates lists the models")
    known = table.drop_nulls("birth")
    if known.is_empty():
        raise UsageError(f"no drive says how old it is: {POWER_ON} is missing or empty in all rows")
    first, birth = known["first"].to_numpy(), known["birth"].to_numpy()
    last = known.select(pl.coalesce("failure", "last")).to_series().to_numpy()
    entry = np.maximum(24.0 * first - birth, 0.0)
    return Lifetimes(entry + 24.0 * (last - first + 1), known["failure"].is_not_null().to_numpy(), entry, left_out=len(table) - len(known))


class SurvivalCurve(msgspec.Struct, frozen=True):
    """The Kaplan-Meier curve: from each of `age_hours` on (ages of failure, ascending) `survival` of the drives are alive, between `low`
    and `high` by Greenwood's variance of ln(-ln S), point by point. `at_risk`: drives under observation just before, `failures`: how many
    failed then.
    """

    age_hours: Floats
    at_risk: npt.NDArray[np.int64]
    failures: npt.NDArray[np.int64]
    survival: Floats
    low: Floats
    high: Floats


def kaplan_meier(lives: Lifetimes, confidence: float = 0.95) -> SurvivalCurve:
    """Product-limit estimate (Kaplan & Meier 1958), with late entry: a drive counts as at risk at ages after its entry, up to and with its
    exit.

    With late entry the curve is that of drives that reached the lowest age at which any is seen; where few are at risk early, it may fall
    to 0 there.
    """
    width = float(ndtri((1 + _probability(confidence)) / 2))
    ages, failures = np.unique(lives.exit_hours[lives.failed], return_counts=True)
    entered = np.searchsorted(np.sort(lives.entry_hours), ages, side="left")
    left = np.searchsorted(np.sort(lives.exit_hours), ages, side="left")
    at_risk = (entered - left).astype(np.int64)
    survival = np.cumprod((at_risk - failures) / at_risk).astype(np.float64)
    low, high = np.zeros_like(survival), np.zeros_like(survival)
    some = survival > 0
    variance = np.cumsum(failures[some] / (at_risk[some] * (at_risk[some] - failures[some])))
    spread = np.exp(width * np.sqrt(variance) / -np.log(survival[some]))
    low[some], high[some] = survival[some] ** spread, survival[some] ** (1 / spread)
    return SurvivalCurve(ages, at_risk, failures.astype(np.int64), survival, low, high)


class WeibullFit(msgspec.Struct, frozen=True):
    """S(t) = exp(-(t / scale_hours)^shape), with Wald intervals of the logarithms; shape below 1: infant mortality, above 1: wear."""

    shape: float
    shape_low: float
    shape_high: float
    scale_hours: float
    scale_low_hours: float
    scale_high_hours: float
    log_likelihood: float
    failures: int


def fit_weibull(lives: Lifetimes, confidence: float = 0.95) -> WeibullFit:
    """The Weibull distribution of greatest likelihood for censored, left-truncated lives.

    For a given shape k the best scale is known: scale^k = sum(exit^k - entry^k) / failures. What is left is the root of the derivative of
    the profile likelihood, 1/k + mean(ln x, failures) = S1/S0 with S_j = sum(exit^k ln^j exit - entry^k ln^j entry), found by Newton's
    method in ln k, kept inside a bracket by bisection (Lawless, Statistical Models and Methods for Lifetime Data, 2nd ed., sections 5.2 and
    2.4.3). Without truncation there is one root.
    """
    failures = int(lives.failed.sum())
    if not failures:
        raise UsageError(
            f"no failure in {len(lives)} lives: nothing says how they are distributed; use the upper bound of the failure rate"
        )
    width = float(ndtri((1 + _probability(confidence)) / 2))
    unit = float(lives.exit_hours.max())  # all logarithms are at most 0: no power overflows
    exits = np.log(lives.exit_hours) - math.log(unit)
    entries = np.log(lives.entry_hours[lives.entry_hours > 0]) - math.log(unit)
    mean_log = float(exits[lives.failed].mean())

    def sums(shape: float) -> tuple[float, float, float]:
        total = [0.0, 0.0, 0.0]
        for sign, logs in ((1, exits), (-1, entries)):  # no products of BLAS: it wakes all cores for a millisecond of work
            powers = np.exp(shape * logs)
            weighted = powers * logs
            for order, value in enumerate((powers.sum(), weighted.sum(), (weighted * logs).sum())):
                total[order] += sign * float(value)
        return total[0], total[1], total[2]

    def slope(shape: float) -> tuple[float, float]:
        """k times the derivative of the profile likelihood per failure, and its derivative by ln k."""
        s0, s1, s2 = sums(shape)
        mean = s1 / s0
        return 1 + shape * (mean_log - mean), shape * (mean_log - mean) - shape**2 * (s2 / s0 - mean**2)

    shape = _root(slope)
    s0, s1, s2 = sums(shape)
    log_scale = math.log(s0 / failures) / shape
    t1 = failures / s0 * (s1 - log_scale * s0)
    t2 = failures / s0 * (s2 - 2 * log_scale * s1 + log_scale**2 * s0)
    # Observed information of (ln shape, ln scale).
    of_shape, of_both, of_scale = failures + shape**2 * t2, -(shape**2) * t1, shape**2 * failures
    determinant = of_shape * of_scale - of_both**2
    shape_factor = math.exp(width * math.sqrt(of_scale / determinant))
    scale_factor = math.exp(width * math.sqrt(of_shape / determinant))
    scale = unit * math.exp(log_scale)
    likelihood = failures * (math.log(shape / unit) - shape * log_scale + (shape - 1) * mean_log - 1)
    return WeibullFit(
        shape, shape / shape_factor, shape * shape_factor, scale, scale / scale_factor, scale * scale_factor, likelihood, failures
    )


def _root(slope: Slope) -> float:
    """Where `slope` falls through 0, for SHAPE_MIN <= shape <= SHAPE_MAX."""
    low, high = math.log(SHAPE_MIN), math.log(SHAPE_MAX)
    if slope(SHAPE_MIN)[0] <= 0 or slope(SHAPE_MAX)[0] >= 0:
        reason = "the failures are too few, all at one age, or all at the ends of what was seen"
        raise UsageError(f"no Weibull distribution with a shape of {SHAPE_MIN} to {SHAPE_MAX} is the most likely one: {reason}")
    at = 0.0
    for _ in range(100):
        value, derivative = slope(math.exp(at))
        low, high = (at, high) if value > 0 else (low, at)
        step = -value / derivative if derivative < 0 else math.inf
        new = at + step if low < at + step < high else (low + high) / 2
        if abs(new - at) < 1e-8:  # its square, and less, is left
            return math.exp(new)
        at = new
    return math.exp(at)
