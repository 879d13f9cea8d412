"""Fits: data with known parameters are found again; scipy and plain Python agree; what is wrong in a file is named."""

import csv
import datetime
import math
import os
import time

import numpy as np
import polars as pl
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raidlib.errors import UsageError
from raidlib.sim import fits

# --- rates ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "expected"), [("per_year", 0.01362611), ("low", 0.013223), ("high", 0.014039)])
def test_d25_backblaze_2025(field, expected):
    """D25 of sim_cases.csv, within 1e-4 of a per cent."""
    assert 100 * getattr(fits.annualised(4317, 115638676), field) == pytest.approx(100 * expected, abs=1e-4)


@given(st.integers(0, 10**5), st.floats(0.5, 0.999))
def test_poisson_interval_is_what_it_says(events, confidence):
    """At either end, what was seen (or further off) has the probability that is left."""
    low, high = fits.poisson_interval(events, confidence)
    tail = (1 - confidence) / 2
    assert low <= events <= high
    assert scipy.stats.poisson.cdf(events, high) == pytest.approx(tail, rel=1e-6)
    if events:
        assert scipy.stats.poisson.sf(events - 1, low) == pytest.approx(tail, rel=1e-6)
    else:
        assert low == 0


# --- drive-stats ------------------------------------------------------------------------------------------------------------------

OLD = ["date", "serial_number", "model", "capacity_bytes", "failure", "smart_1_raw", "smart_9_raw"]
NEW = ["date", "datacenter", "serial_number", "failure", "model", "is_legacy_format", "smart_9_normalized", "smart_9_raw", "smart_240_raw"]
BARE = ["model", "failure", "date", "serial_number"]


def write_day(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Forty days of three quarters' schemas: 60 drives of three models, some installed late, some failing, one that comes back after
    that, one with three readings of nonsense.
    """
    rng = np.random.default_rng(5)
    start = datetime.date(2023, 12, 1)
    models = ["ST4000DM000", "HGST HMS5C4040ALE640", "WDC, Red"]
    drives = []
    for number in range(60):
        born, dies = int(rng.integers(-900, 25)), int(rng.integers(-5, 90))
        born, dies = {1: (-300, 99), 7: (-50, 10)}.get(number, (born, dies))
        drives.append({"serial_number": f"Z{number:03}", "model": models[number % 3], "born": born, "dies": dies})
    truth = {}
    for day in range(40):
        date = start + datetime.timedelta(days=day)
        rows = []
        for drive in drives:
            back = drive["serial_number"] == "Z007" and day > drive["dies"] + 2
            if day < max(drive["born"], 0) or (day > drive["dies"] and not back):
                continue
            failure = int(day == drive["dies"])
            hours = 24 * (day - drive["born"]) + int(rng.integers(0, 24))
            if drive["serial_number"] == "Z001" and day in (5, 21, 30):
                hours *= day / 10  # nonsense, low and high
            silent = failure or rng.random() < 0.1
            rows.append({**drive, "date": date, "failure": failure, "smart_9_raw": "" if silent else hours, "capacity_bytes": 4e12})
            life = truth.setdefault(drive["serial_number"], {**drive, "first": day, "last": day, "failed": 0, "days": 0})
            life["days"] += 1
            if not life["failed"]:
                life["last"], life["failed"] = day, failure
        columns = BARE if day in (13, 14) else OLD if day < 31 else NEW
        write_day(tmp_path / ("data_Q4_2023" if day < 31 else "data_Q1_2024") / f"{date}.csv", columns, rows)
    (tmp_path / "data_Q1_2024" / "._2024-01-01.csv").write_bytes(b"\0\5\26\7")
    return tmp_path, truth


def test_rates_by_model(folder):
    path, truth = folder
    rates = fits.failure_rates(fits.read_drive_stats(path))
    assert [rate.drive_days for rate in rates] == sorted((rate.drive_days for rate in rates), reverse=True)
    assert {rate.model for rate in rates} == {life["model"] for life in truth.values()}
    for rate in rates:
        lives = [life for life in truth.values() if life["model"] == rate.model]
        days, failures = sum(life["days"] for life in lives), sum(life["failed"] for life in lives)
        assert (rate.drives, rate.drive_days, rate.failures) == (len(lives), days, failures)
        assert rate.per_year == pytest.approx(failures / days * 365) and failures > 0
        assert rate.low < rate.per_year < rate.high


def test_lives(folder):
    """Each life to within a day, though power-on hours lack on one day of ten, on the day of failure, and in two files."""
    path, truth = folder
    stats = fits.read_drive_stats(path)
    assert isinstance(stats, pl.LazyFrame)
    assert stats.collect_schema().names() == ["date", "serial_number", "model", "failure", "power_on_hours"]
    lives = fits.lifetimes(stats)
    silent = [life for life in truth.values() if life["failed"] and life["first"] == life["last"]]
    assert (len(lives) + lives.left_out, lives.left_out) == (len(truth), len(silent))
    known = [life for life in truth.values() if life not in silent]
    assert sorted(lives.exit_hours) == pytest.approx(sorted(24 * (life["last"] + 1 - life["born"]) for life in known), abs=24)
    assert sorted(lives.entry_hours) == pytest.approx(sorted(24 * (life["first"] - life["born"]) for life in known), abs=24)
    assert int(lives.failed.sum()) == sum(life["failed"] for life in known) > 10
    one = fits.lifetimes(stats, "ST4000DM000")
    assert len(one) + one.left_out == sum(life["model"] == "ST4000DM000" for life in truth.values())
    with pytest.raises(UsageError, match="model ST1: no such drive"):
        fits.lifetimes(stats, "ST1")


def test_quotes_and_marks(tmp_path):
    """A model with a comma is quoted; a file may begin with a byte order mark and end without a newline."""
    text = '\ufeffdate,serial_number,model,failure,smart_9_raw\r\n2024-01-01,A,"X, Y",0,5.0\r\n2024-01-01,B,"X, Y",1,'
    (tmp_path / "day.csv").write_text(text, newline="")
    (rate,) = fits.failure_rates(fits.read_drive_stats(tmp_path))
    assert (rate.model, rate.drives, rate.failures) == ("X, Y", 2, 1)
    lives = fits.lifetimes(fits.read_drive_stats(tmp_path))
    assert (len(lives), lives.left_out) == (1, 1)


GOOD = ["date,serial_number,model,failure,smart_9_raw,smart_10_raw", "2024-01-01,A,M,0,100,0", "2024-01-01,B,M,1,200,0"]


@pytest.mark.parametrize(("line", "text", "message"), [
    (0, "date,serial,model,failure,smart_9_raw,smart_10_raw", "line 1: column 'serial_number' is missing"),
    (0, "date,serial_number,model,failure,smart_9_raw,failure", "line 1: column 'failure' is there 2 times"),
    (0, "", "line 1: column 'date' is missing"),
    (2, "2024-01-01,B,M,1,20", "line 3: 5 fields, 6 in the header"),
    (2, "2024-01-01,B", "line 3: 2 fields, 6 in the header"),
    (1, "2024-01-01,A,M,0,100,0,7", "line 2: 7 fields, 6 in the header"),
    (1, "2024-01-01,A,M,0,nan,0", "line 2: smart_9_raw is 'nan'"),
    (1, "2024-01-01,A,M,0,-5,0", "line 2: smart_9_raw is '-5'"),
    (1, "2024-01-01,A,M,0,many,0", "line 2: smart_9_raw is 'many'"),
    (2, "2024-01-01,B,M,2,200,0", "line 3: failure is '2'"),
    (2, "2024-01-01,B,M,,200,0", "line 3: failure is ''"),
    (2, "2024-01-01,,M,1,200,0", "line 3: serial_number is ''"),
    (2, "2024-01-01,B, ,1,200,0", "line 3: model is ' '"),
    (2, "2024-01-01,B,M\xff,1,200,0", "line 3: no text in UTF-8"),
    (1, "01/01/2024,A,M,0,100,0", "line 2: date is '01/01/2024'"),
    (1, "2024-13-01,A,M,0,100,0", "line 2: date is '2024-13-01'"),
])  # fmt: skip
def test_damaged_files(tmp_path, line, text, message):
    (tmp_path / "good.csv").write_text("\n".join(GOOD) + "\n")
    lines = [*GOOD[:line], text, *GOOD[line + 1 :]]
    (tmp_path / "later.csv").write_text("\n".join(lines) + "\n", encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        fits.read_drive_stats(tmp_path)
    assert f"later.csv: {message}" in str(caught.value)


def test_a_day_that_two_files_tell_of(tmp_path):
    """Refused, both named; two files of one day with other drives, and a drive's other days, are what they seem."""
    (tmp_path / "old").mkdir()
    (tmp_path / "a.csv").write_text("\n".join(GOOD))
    (tmp_path / "b.csv").write_text("\n".join(GOOD).replace(",A,", ",C,").replace(",B,", ",D,"))
    (tmp_path / "c.csv").write_text("\n".join(GOOD).replace("2024-01-01", "2024-01-02"))
    (rate,) = fits.failure_rates(fits.read_drive_stats(tmp_path))
    assert (rate.drives, rate.drive_days) == (4, 6)
    (tmp_path / "old" / "copy.csv").write_text("\n".join([GOOD[0], GOOD[2]]).replace("2024-01-01", "2024-01-02"))
    with pytest.raises(UsageError) as caught:
        fits.read_drive_stats(tmp_path)
    assert f"{tmp_path}/old/copy.csv: M B on 2024-01-02 is in {tmp_path}/c.csv too" in str(caught.value)


def test_no_files(tmp_path):
    with pytest.raises(UsageError, match="no CSV file"):
        fits.read_drive_stats(tmp_path / "nothing")
    (tmp_path / "a.csv").write_bytes(b"date,\xff\n")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        fits.read_drive_stats(tmp_path)
    (tmp_path / "a.csv").write_text("\n".join(row.rsplit(",", 2)[0] for row in GOOD))
    with pytest.raises(UsageError, match="smart_9_raw is missing"):
        fits.lifetimes(fits.read_drive_stats(tmp_path))


# --- Kaplan-Meier -----------------------------------------------------------------------------------------------------------------


@st.composite
def lives(draw):
    rows = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.booleans()), min_size=1, max_size=30))
    return fits.Lifetimes([entry + seen for entry, seen, _ in rows], [failed for *_, failed in rows], [entry for entry, *_ in rows])


@given(lives())
def test_kaplan_meier_by_its_definition(seen):
    curve = fits.kaplan_meier(seen)
    rows = list(zip(seen.entry_hours, seen.exit_hours, seen.failed, strict=True))
    survival, variance = 1.0, 0.0
    for at, age in enumerate(sorted({out for _, out, failed in rows if failed})):
        at_risk = sum(entry < age <= out for entry, out, _ in rows)
        failures = sum(out == age and bool(failed) for _, out, failed in rows)
        survival *= 1 - failures / at_risk
        assert (curve.age_hours[at], curve.at_risk[at], curve.failures[at]) == (age, at_risk, failures)
        assert curve.survival[at] == pytest.approx(survival, abs=1e-12)
        if survival > 1e-9:
            variance += failures / at_risk / (at_risk - failures)
            middle, width = math.log(-math.log(survival)), 1.959963984540054 * math.sqrt(variance) / -math.log(survival)
            assert curve.low[at] == pytest.approx(math.exp(-math.exp(middle + width)), abs=1e-12)
            assert curve.high[at] == pytest.approx(math.exp(-math.exp(middle - width)), abs=1e-12)
    assert len(curve.age_hours) == len({out for _, out, failed in rows if failed})


def test_kaplan_meier_as_scipy():
    rng = np.random.default_rng(3)
    ages, limits = rng.weibull(1.5, 500) * 1000, rng.uniform(200, 2000, 500)
    failed, seen = ages <= limits, np.minimum(ages, limits)
    curve = fits.kaplan_meier(fits.Lifetimes(seen, failed))
    reference = scipy.stats.ecdf(scipy.stats.CensoredData(uncensored=seen[failed], right=seen[~failed])).sf
    assert curve.survival == pytest.approx(reference.evaluate(curve.age_hours), abs=1e-12)
    interval = reference.confidence_interval(method="log-log")
    assert curve.low[:-1] == pytest.approx(interval.low.evaluate(curve.age_hours)[:-1], abs=1e-12)
    assert curve.high[:-1] == pytest.approx(interval.high.evaluate(curve.age_hours)[:-1], abs=1e-12)


# --- Weibull ----------------------------------------------------------------------------------------------------------------------


def drawn(rng, count, shape, scale, entries=0.0, window=math.inf):
    """`count` lives that reach their entry, drawn from what is left of the distribution there, and are seen for `window`."""
    entry = np.broadcast_to(np.asarray(entries, dtype=float), (count,))
    ages = scale * ((entry / scale) ** shape + rng.exponential(size=count)) ** (1 / shape)
    limits = entry + window
    return fits.Lifetimes(np.minimum(ages, limits), ages <= limits, entry)


def likelihood(seen, shape, scale):
    """By the definition: densities of what failed, survival of what did not, over survival to the entry."""
    density = scipy.stats.weibull_min.logpdf(seen.exit_hours[seen.failed], shape, scale=scale).sum()
    alive = scipy.stats.weibull_min.logsf(seen.exit_hours[~seen.failed], shape, scale=scale).sum()
    return density + alive - scipy.stats.weibull_min.logsf(seen.entry_hours, shape, scale=scale).sum()


def kinds(rng):
    yield "complete", drawn(rng, 300, 1.8, 5000.0)
    yield "censored", drawn(rng, 2000, 0.8, 5000.0, window=1500.0)
    yield "truncated", drawn(rng, 3000, 1.4, 60000.0, rng.uniform(0, 40000, 3000), window=rng.uniform(100, 20000, 3000))
    yield "half truncated", drawn(rng, 3000, 2.5, 30000.0, np.where(rng.random(3000) < 0.5, 0, rng.uniform(0, 20000, 3000)), window=9000.0)


@pytest.mark.parametrize("at", range(4), ids=["complete", "censored", "truncated", "half truncated"])
def test_weibull_is_the_maximum(at):
    """Against a general optimiser on the likelihood as it is defined, curvature included."""
    _, seen = list(kinds(np.random.default_rng(11)))[at]
    fit = fits.fit_weibull(seen)
    assert fit.log_likelihood == pytest.approx(likelihood(seen, fit.shape, fit.scale_hours), rel=1e-9)

    def negative(logs):
        return -likelihood(seen, *np.exp(logs))

    start = np.log([fit.shape * 1.3, fit.scale_hours * 0.8])
    best = scipy.optimize.minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10, "maxiter": 2000})
    assert np.exp(best.x) == pytest.approx([fit.shape, fit.scale_hours], rel=1e-5)
    assert -best.fun <= fit.log_likelihood + 1e-7
    middle, step = np.log([fit.shape, fit.scale_hours]), 1e-3
    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            a, b = step * np.eye(2)[i], step * np.eye(2)[j]
            corners = negative(middle + a + b) - negative(middle + a - b) - negative(middle - a + b) + negative(middle - a - b)
            hessian[i, j] = corners / (4 * step * step)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert math.log(fit.shape_high / fit.shape) == pytest.approx(1.959964 * errors[0], rel=1e-3)
    assert math.log(fit.scale_hours / fit.scale_low_hours) == pytest.approx(1.959964 * errors[1], rel=1e-3)


@pytest.mark.parametrize("window", [math.inf, 2500.0])
def test_weibull_as_scipy(window):
    seen = drawn(np.random.default_rng(2), 1000, 1.3, 4000.0, window=window)
    data = scipy.stats.CensoredData(uncensored=seen.exit_hours[seen.failed], right=seen.exit_hours[~seen.failed])
    shape, _, scale = scipy.stats.weibull_min.fit(data, floc=0)
    fit = fits.fit_weibull(seen)
    assert (fit.shape, fit.scale_hours) == pytest.approx((shape, scale), rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 5), st.floats(1, 1e7), st.floats(0, 1.5), st.floats(0.2, 3), st.integers(0, 2**32 - 1))
def test_known_parameters_are_found(shape, scale, late, window, seed):
    rng = np.random.default_rng(seed)
    seen = drawn(rng, 4000, shape, scale, rng.uniform(0, late * scale, 4000), window * scale)
    assume(seen.failed.sum() >= 100)  # with fewer, Wald's interval is no longer that exact
    fit = fits.fit_weibull(seen, confidence=0.999999)
    assert fit.shape_low < shape < fit.shape_high and fit.scale_low_hours < scale < fit.scale_high_hours


def test_the_interval_covers():
    """Over 400 fits, about 95 % of the intervals hold the truth (89 to 99: five standard deviations each way are 5.4)."""
    rng = np.random.default_rng(8)
    hits = np.zeros(2)
    for _ in range(400):
        fit = fits.fit_weibull(drawn(rng, 400, 1.2, 400000.0, rng.uniform(0, 30000, 400), 90000.0))
        hits += (fit.shape_low < 1.2 < fit.shape_high, fit.scale_low_hours < 400000 < fit.scale_high_hours)
    assert all(hits / 400 > 0.896) and all(hits / 400 < 0.999)


def test_truncation_matters():
    """Drives whose early life nobody saw, taken as if they had been seen from new: the wear is overstated."""
    rng = np.random.default_rng(4)
    seen = drawn(rng, 20000, 1.0, 100000.0, rng.uniform(10000, 40000, 20000), 20000.0)
    fit = fits.fit_weibull(seen, confidence=0.999)
    assert fit.shape_low < 1.0 < fit.shape_high < 1.4
    assert fits.fit_weibull(fits.Lifetimes(seen.exit_hours, seen.failed)).shape > 1.5


def test_a_large_fit_is_fast():
    """100,000 rows in 50 ms, measured 25; here twice that, of processor time, on whatever machine this is; more under sanitizers."""
    rng = np.random.default_rng(1)
    seen = drawn(rng, 100_000, 1.12, 461386.0, rng.uniform(0, 40000, 100_000), rng.uniform(1000, 40000, 100_000))
    spent = []
    for _ in range(5):
        start = time.process_time()
        fits.fit_weibull(seen)
        spent.append(time.process_time() - start)
    assert sorted(spent)[2] < (1.0 if "ASAN_OPTIONS" in os.environ else 0.1)


@pytest.mark.parametrize(("arguments", "message"), [
    (([5.0, math.nan], [1, 0]), "row 1: from 0.0 to nan"),
    (([5.0, 6.0], [1, 0], [0.0, 6.0]), "row 1: from 6.0 to 6.0"),
    (([5.0, 6.0], [1, 0], [-1.0, 0.0]), "row 0: from -1.0 to 5.0"),
    (([math.inf], [0]), "row 0: from 0.0 to inf"),
    (([5.0, 6.0], [1, 2]), "row 1: failed is 2"),
    (([5.0], [math.nan]), "row 0: failed is nan"),
    (([5.0, 6.0], [1]), r"exit_hours \(2,\), failed \(1,\)"),
    (([5.0, 6.0], [1, 0], [0.0, 0.0, 0.0]), r"entry_hours \(3,\)"),
])  # fmt: skip
def test_wrong_lives(arguments, message):
    with pytest.raises(UsageError, match=message):
        fits.Lifetimes(*arguments)


def test_lives_that_cannot_be_fitted():
    with pytest.raises(UsageError, match="no failure in 2 lives"):
        fits.fit_weibull(fits.Lifetimes([5.0, 6.0], [0, 0]))
    with pytest.raises(UsageError, match="no Weibull distribution"):
        fits.fit_weibull(fits.Lifetimes([5.0, 5.0, 4.0], [1, 1, 0]))
    with pytest.raises(UsageError, match="no Weibull distribution"):  # the hazard falls faster than 1 / age
        fits.fit_weibull(fits.Lifetimes([1.01, 1.02, 1.03, 1e6], [1, 1, 1, 0], [1.0, 1.0, 1.0, 1.5]))
    assert len(fits.kaplan_meier(fits.Lifetimes([5.0, 6.0], [0, 0])).age_hours) == 0
    for call in (lambda: fits.poisson_interval(-1), lambda: fits.poisson_interval(3, 1.0), lambda: fits.annualised(3, 0)):
        with pytest.raises(UsageError):
            call()
