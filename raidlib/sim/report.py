"""An answer as one HTML file that needs no network: inputs, assumptions, results, plots, and how far the estimator is to be trusted.

    write_report(simulate(study, compare=True), "report.html")

The page is report.html beside this file; the plots are SVG in it, with the reader's own fonts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..model import format_size
from .chains import of_many
from .model import HOURS_PER_YEAR
from .montecarlo import is_weak
from .study import Result, law_words, next_step, shape_words, survival_words, time_words

_WIDE, _HIGH = 5.2, 3.3  # inches: where a page is narrow the words in a plot stay as large as those beside it
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#8a8f98"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raidlib",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
}
_CAUSES = {"disk": "one disk too many", "latent": "a latent error", "shock": "a shock"}
_ESTIMATORS = {
    "chain": "a Markov chain, exact",
    "crude": "Monte Carlo: missions as they happen, losses counted",
    "rare": "Monte Carlo: importance sampling, unbiased",
}


def write_report(result: Result, path: str | Path) -> None:
    """The page, written to a file. `result` has a curve if it was made with compare=True; without one that plot is left out."""
    Path(path).write_text(report_html(result), encoding="utf-8")


def report_html(result: Result) -> str:
    """The page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    plots = [
        plot for plot in (_curve_plot(result), _improvements_plot(result), _causes_plot(result), _time_plot(result)) if plot is not None
    ]
    return environment.get_template("report.html").render(
        result=result,
        plots=plots,
        title=shape_words(result.study.shape),
        answer=_answer_rows(result),
        availability=_availability_rows(result),
        inputs=_input_rows(result),
        health=_health_rows(result),
        step=next_step(result.improvements),
    )


# --- Tables ---------------------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:.4g}"


def _bytes(count: float) -> str:
    return format_size(count) if count >= 1 else f"{_number(count)} bytes"


def _answer_rows(result: Result) -> list[tuple[str, str]]:
    low, high = result.p_loss_ci95
    sure = "exact" if result.method == "exact" else f"95 %: {_number(low)} to {_number(high)}"
    p = f"below {_number(high)} (95 %); no loss was seen" if result.none_seen else f"{_number(result.p_loss)} ({sure})"
    nines = f"{result.nines:.2f}" + (" or more" if result.none_seen else "" if result.method == "exact" else f" ± {result.nines_error:.2g}")
    rows = [
        (f"Probability of keeping all data for {time_words(result.study.years)}", survival_words(result.p_loss, low)),
        ("Probability of loss", p),
        ("Nines", nines),
        ("Mean time to data loss", f"{'more than ' if result.none_seen else ''}{_number(result.mttdl_years)} years"),
    ]
    optional = [
        ("Losses expected", result.losses, _number),
        ("Share of the data expected lost in a year (EAFDL)", result.eafdl, _number),
        ("Bytes expected lost", result.lost_bytes, _bytes),
    ]
    return rows + [(name, show(value)) for name, value, show in optional if value is not None]


def _availability_rows(result: Result) -> list[tuple[str, str]]:
    rows = []
    if result.degraded_hours_per_year is not None:
        what = (
            "the pool"
            if result.study.pool is not None
            else f"any of {result.study.groups} arrays"
            if result.study.groups > 1
            else "the array"
        )
        rows.append((f"With a disk down in {what}", f"{_number(result.degraded_hours_per_year)} hours a year"))
    if result.unavailability is None or result.availability_nines is None or result.downtime_minutes_per_year is None:
        return [*rows, ("Availability", "not told")]
    return [
        *rows,
        ("Availability, long run", survival_words(result.unavailability)),
        ("In nines", f"{result.availability_nines:.2f}"),
        ("Without the data", f"{_number(result.downtime_minutes_per_year)} minutes a year"),
    ]


def _input_rows(result: Result) -> list[tuple[str, str]]:
    study = result.study
    latent = study.latent
    optional = [
        ("Independent arrays", str(study.groups) if study.groups > 1 else ""),
        ("Pool", "" if study.pool is None else f"{study.pool_disks} disks, {study.pool.groups} groups"),
        ("Size of a disk", "" if study.disk_bytes is None else format_size(study.disk_bytes)),
        ("Hot spares", "" if study.spares is None else f"{study.spares.count}; a human comes after: {law_words(study.spares.replacement)}"),
        ("Latent errors", "" if latent is None else f"one in {latent.mean_hours:g} h on each disk"),
        ("Scrub", "" if latent is None else "never" if latent.scrub is None else law_words(latent.scrub)),
        ("Shocks", ", ".join(f"{shock.per_year:g} a year" for shock in study.shocks)),
        ("Shelves", "" if study.shelves is None else f"of {study.shelves.disks} disks"),
        ("Batches", "" if study.batches is None else f"of {study.batches.disks} disks"),
    ]
    rows = [
        ("Shape", shape_words(study.shape)),
        ("Life of a disk", law_words(study.lifetime)),
        ("Time of a repair", law_words(study.repair.duration)),
        ("Repair discipline", study.repair_words),
        ("Mission", time_words(study.years)),
        ("Method asked for", study.method),
        ("Seed", str(study.seed)),
    ]
    return rows + [(name, value) for name, value in optional if value]


def _health_rows(result: Result) -> list[tuple[str, str]]:
    rows = [("Estimator", _ESTIMATORS[result.estimator])]
    beside = result.curve.beside if result.curve is not None else None
    missions, effective, share = result.missions, result.effective_missions, result.largest_share
    if result.method == "exact":
        rows.append(("Error", "below 1e-12 of the value: no subtraction cancels"))
        if beside is not None:
            missions, effective, share = beside.missions, beside.effective_missions, beside.largest_share
            low, high = (_number(of_many(p, 1 - p, result.study.count)) for p in beside.p_loss_ci95)
            rows.append(("Monte Carlo beside it", f"{_ESTIMATORS[beside.method]}; 95 %: {low} to {high}"))
    if missions is None or effective is None or share is None:
        return rows
    weak = is_weak(effective, share)
    return [
        *rows,
        ("Missions", str(missions)),
        ("Effective sample size", f"{effective:.0f} missions of equal weight would say as much"),
        ("Largest share of one mission", f"{100 * share:.3g} %"),
        ("Verdict", "few missions carry it: ask for more, or trust its order of magnitude only" if weak else "sound"),
    ]


# --- Plots ----------------------------------------------------------------------------------------------------------------------------


def _svg(name: str, caption: str, draw: Callable[[Axes], object]) -> dict[str, str]:
    """A plot as an <svg> of any width. Its ids begin with its name: those of several plots in one page would be taken for each other."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, _HIGH), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", svg)
    return {"name": name, "caption": caption, "svg": svg}


def _curve_plot(result: Result) -> dict[str, str] | None:
    curve = result.curve
    if curve is None or (curve.exact is None and curve.mc is None):
        return None

    def draw(axes: Axes) -> None:
        if curve.exact is not None:
            label = "exact" if curve.exact_is_model else "Markov chain of the same mean times"
            axes.plot((0.0, *curve.years), (0.0, *curve.exact), color=_ORANGE, linewidth=2, label=label)
        if curve.mc is not None:
            points = slice(3, None, 4)
            axes.plot(curve.years[points], curve.mc[points], "o", color=_BLUE, markersize=4.5, label="Monte Carlo", zorder=3)
        if result.method == "mc" and not result.none_seen:
            low, high = result.p_loss_ci95
            if not result.study.counting:
                error = [[max(0.0, result.p_loss - low)], [max(0.0, high - result.p_loss)]]
                axes.errorbar([result.study.years], [result.p_loss], error, color=_BLUE, capsize=4, linewidth=1.4, label="95 % at the end")
        axes.set_xlabel("years")
        axes.set_ylabel("losses expected" if result.study.counting else "P(loss by then)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        axes.legend(frameon=False, loc="best")  # of a frail array the curve is in the upper left

    model = "exact curve beside Monte Carlo" if curve.exact_is_model else "Monte Carlo beside a Markov chain of the same mean times"
    return _svg("curve", f"Loss over time: {model}.", draw)


def _improvements_plot(result: Result) -> dict[str, str] | None:
    known = [(one.words, one.factor) for one in reversed(result.improvements) if one.factor is not None]
    if not known:
        return None
    step = next_step(result.improvements)

    def draw(axes: Axes) -> None:
        colours = [_BLUE if step is not None and words == step.words else _GREY for words, _ in known]
        bars = axes.barh([_broken(words) for words, _ in known], [factor for _, factor in known], color=colours, height=0.55)
        axes.bar_label(bars, [f"{factor:.2g} ×" for _, factor in known], padding=4)
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set_xlim(0, 1.2 * max(factor for _, factor in known))
        axes.set_xlabel("times fewer losses, if twice as good")
        axes.grid(axis="y", visible=False)

    return _svg(
        "improvements",
        "Sensitivity: what is gained if one input is twice as good. Blue: the next to improve, of what needs no other disks.",
        draw,
    )


def _broken(words: str) -> str:
    """On two lines where it is long."""
    if len(words) < 20:
        return words
    middle = min((at for at, letter in enumerate(words) if letter == " "), key=lambda at: abs(at - len(words) // 2))
    return f"{words[:middle]}\n{words[middle + 1 :]}"


def _causes_plot(result: Result) -> dict[str, str] | None:
    if result.causes is None:
        return None
    shares = {_CAUSES[cause]: 100 * share for cause, share in reversed(result.causes.items())}

    def draw(axes: Axes) -> None:
        bars = axes.barh(list(shares), list(shares.values()), color=_BLUE, height=0.5)
        axes.bar_label(bars, [f"{share:.3g} %" for share in shares.values()], padding=4)
        axes.set_xlim(0, 118)
        axes.set_xlabel("% of the losses")
        axes.grid(axis="y", visible=False)

    return _svg("causes", "Causes of loss: what took the last redundancy.", draw)


def year_hours(result: Result) -> dict[str, float]:
    """Where a year goes: what is left of it without a lost disk, with lost disks and all data, without the data."""
    lost_disk, down = result.degraded_hours_per_year or 0.0, (result.unavailability or 0.0) * HOURS_PER_YEAR
    return {"whole": HOURS_PER_YEAR - lost_disk, "degraded": max(0.0, lost_disk - down), "without\nthe data": down}


def _time_plot(result: Result) -> dict[str, str] | None:
    """Hours a year, on a logarithmic scale: whole, degraded but with the data, without the data. They add up to a year."""
    if result.degraded_hours_per_year is None:
        return None
    hours = {name: value for name, value in reversed(year_hours(result).items()) if value > 0}

    def draw(axes: Axes) -> None:
        colours = {"whole": _GREY, "degraded": _ORANGE}
        bars = axes.barh(list(hours), list(hours.values()), color=[colours.get(name, "#b3261e") for name in hours], height=0.5, log=True)
        axes.bar_label(bars, [f"{_number(value)} h" for value in hours.values()], padding=4)
        least = min(hours.values())
        axes.set_xlim(least / 10, HOURS_PER_YEAR * (HOURS_PER_YEAR / least) ** 0.35)
        axes.set_xlabel("hours a year (logarithmic)")
        axes.grid(axis="y", visible=False)

    return _svg("time", "Where a year goes: degraded time and outage.", draw)
