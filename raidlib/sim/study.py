"""One question of durability, and its answer: a `Study` is frozen, both the exact and the Monte Carlo model are made from it.

    raid6 = Shape(level=Level.RAID6, members=10)
    study = Study(shape=raid6, lifetime=Law.from_afr(0.02), repair=Repair(duration=Law.exponential(24)), years=5)
    result = simulate(study)
    result.p_loss, result.nines, result.words

Where the model is a Markov chain (`Study.not_markov` is None) the answer is exact (chains.py); else missions are drawn at random
(montecarlo.py). Which losses an array bears is asked of the engine (verdicts.py). Times are hours, but where a name says years (8760 h).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import math
import platform
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from functools import cached_property
from typing import Any, Literal

import msgspec

from ..errors import UsageError
from ..model import Level, Struct, format_size, layout_name, layout_number
from . import montecarlo
from .chains import Chain, Group, TooLargeError, of_many, sensitivities
from .chains import Shock as GroupShock
from .model import (
    HOURS_PER_YEAR,
    Batches,
    LatentErrors,
    Law,
    LawKind,
    Pool,
    Repair,
    Shelves,
    Shock,
    Spares,
    System,
    check_count,
    check_number,
)
from .montecarlo import BINS, Estimate
from .verdicts import Shape, data_disks, is_lost, verdict

Method = Literal["auto", "exact", "mc"]
Progress = Callable[[int, int], object]
_ROUGH = 0.05  # relative standard error of what only tells a factor
_ROUGH_STEPS = 1 << 25
_COMPARED = 0.02  # of the Monte Carlo side that is shown beside an exact answer
_LOG_MEAN_MAX = 700.0  # of a mean in hours, whose inverse is a rate
_SEEN = 1.05  # a factor that is more than noise
_MATTERS = 1.1  # a factor below it is no improvement worth a sentence


class Study(Struct, frozen=True, kw_only=True, dict=True):
    """`groups` independent arrays of one shape (or one declustered pool of `pool_disks` disks, whose groups have that shape) over `years`.

    spares: None: a replacement is always at hand. counting: the mission goes on after a loss, and all losses count. disk_bytes: of one
    disk, None: losses are not told in bytes. notes: where the numbers come from, in words, for the assumptions. relative_error: the
    standard error that is asked of Monte Carlo; missions: instead, how many. seed: of the random streams.
    """

    shape: Shape
    lifetime: Law
    repair: Repair
    years: float = 5.0
    groups: int = 1
    pool: Pool | None = None
    pool_disks: int = 0
    spares: Spares | None = None
    latent: LatentErrors | None = None
    shocks: tuple[Shock, ...] = ()
    shelves: Shelves | None = None
    batches: Batches | None = None
    counting: bool = False
    disk_bytes: float | None = None
    method: Method = "auto"
    relative_error: float = 0.01
    missions: int | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("years", self.years, above=0, most=1e8)
        check_count("groups", self.groups, 1, 1 << 40)
        check_count("seed", self.seed, 0, (1 << 64) - 1)
        check_number("the relative error", self.relative_error, above=0, most=1)
        if self.missions is not None:
            check_count("missions", self.missions, 1, 1 << 62)
        for _what, law in self._laws():
            mean_hours(law)  # it refuses a law without a mean
        if self.method not in ("auto", "exact", "mc"):
            raise UsageError(f"method {self.method!r}: auto, exact or mc")
        if self.pool is not None and self.groups > 1:
            raise UsageError(f"{self.groups} groups and a pool: the groups of a pool are its own (pool groups)")
        if self.method == "exact" and (reason := self.not_markov) is not None:
            raise UsageError(f"method exact: {reason}, and no Markov chain can tell of that; take method mc, or auto")
        if self.disk_bytes is not None:
            check_number("bytes of a disk", self.disk_bytes, above=0)
        _ = self.system  # it refuses what does not fit together
        if self.latent is not None and self._bears_nothing and not self.is_exact:
            why = self.not_markov or "method mc"
            raise UsageError(f"latent errors on disks that nothing can mend: each is a loss, which only the exact method counts ({why})")

    # --- What is simulated ------------------------------------------------------------------------------------------------------------

    @property
    def hours(self) -> float:
        """The mission."""
        return self.years * HOURS_PER_YEAR

    @property
    def is_exact(self) -> bool:
        """Whether the answer comes from a Markov chain."""
        nearly = self.latent is not None and not self._bears_nothing  # with nothing to be mended by, each latent error is a loss
        return self.method != "mc" and self.not_markov is None and (self.method == "exact" or not nearly)

    @property
    def _bears_nothing(self) -> bool:
        """Whether there is a disk without which data are lost."""
        says = self._parts[0]
        return says["tolerance"] == 0 if "tolerance" in says else any(is_lost(says["lost_sets"], 1 << k) for k in range(says["disks"]))

    @property
    def not_markov(self) -> str | None:
        """Why no Markov chain of chains.py is the model, in words; None: one is (with latent errors: nearly, see `Group`)."""
        for what, law in self._laws():
            if not law.is_exponential:
                return f"{what} is {law.kind}, not exponential"
        reasons: list[tuple[bool, str]] = [
            (self.pool is not None, "a pool is declustered"),
            (self.shelves is not None and self.shelves.boost_factor > 1, "failures in a shelf come together"),
            (any(shock.scope == "shelf" for shock in self.shocks), "shocks strike shelves"),
            (self.batches is not None, "batches are good or bad"),
            (self.counting, "losses are counted one after the other"),
            ("lost_sets" in self._parts[0], "it depends on which disks are lost whether data are"),
        ]
        words = next((words for holds, words in reasons if holds), None)
        return words if words is not None or self.chain is not None else "its Markov chain has too many states"

    def _laws(self) -> Iterator[tuple[str, Law]]:
        yield "the life of a disk", self.lifetime
        yield "the time of a repair", self.repair.duration
        if self.spares is not None:
            yield "the time until a disk is brought", self.spares.replacement
        if self.latent is not None and self.latent.scrub is not None:
            yield "the time until a scrub", self.latent.scrub

    @property
    def independent(self) -> tuple[Shape, int]:
        """Arrays, and how many, none of which knows of the others and all of which are needed: the mirrors of a RAID 10, the arrays of a
        RAID 60, times `groups`. Only if nothing is shared: repair crews, spares, shocks, shelves, batches.
        """
        shape, count = self.shape, self.groups
        shared = self.repair.crews is not None or self.spares is not None or self.shocks or self.shelves or self.batches or self.counting
        while not shared and self.pool is None and (parts := _mirrors(shape) or _striped(shape)) is not None:
            shape, count = parts[0], count * parts[1]
        return shape, count

    @cached_property
    def _parts(self) -> tuple[dict[str, Any], int]:
        """What verdicts say of one independent array, and how many there are."""
        shape, count = self.independent
        return verdict(shape), count

    @cached_property
    def system(self) -> System:
        """The Monte Carlo model of one independent array, or of the pool."""
        says = self._parts[0]
        if self.pool is not None:
            if "lost_sets" in says:
                raise UsageError(f"a pool of {self.shape.level}: it depends on which disks of a group are lost; give another level")
            says = {"disks": self.pool_disks, "tolerance": says["tolerance"]}
        return System(
            **says,
            lifetime=self.lifetime,
            repair=self.repair,
            mission_hours=self.hours,
            spares=self.spares,
            latent=self.latent,
            shocks=self.shocks,
            shelves=self.shelves,
            batches=self.batches,
            pool=self.pool,
            counting=self.counting,
            usable_bytes=self._usable_bytes(),
        )

    def _usable_bytes(self) -> float | None:
        """Of one independent array, or of the pool."""
        if self.disk_bytes is None:
            return None
        shape = self.independent[0]
        share = data_disks(shape)
        return self.disk_bytes * (share if self.pool is None else self.pool_disks * share / shape.disks)

    @property
    def count(self) -> int:
        """How many independent arrays."""
        return self._parts[1]

    def group(self) -> Group:
        """The Markov chain of one independent array: the model itself where `not_markov` is None, else one of the same mean times, without
        what no chain has (shelves, batches).
        """
        says = self._parts[0]
        disks = says["disks"]
        return Group(
            disks=disks,
            tolerance=says.get("tolerance", disks - 1),
            failure_per_hour=1 / mean_hours(self.lifetime),
            repair_per_hour=1 / mean_hours(self.repair.duration),
            crews=self.repair.crews,
            spares=None if self.spares is None else self.spares.count,
            replacement_per_hour=0.0 if self.spares is None else 1 / mean_hours(self.spares.replacement),
            latent_per_hour=0.0 if self.latent is None else 1 / self.latent.mean_hours,
            scrub_per_hour=0.0 if self.latent is None or self.latent.scrub is None else 1 / mean_hours(self.latent.scrub),
            shocks=tuple(part for shock in self.shocks if shock.scope == "system" for part in _group_shocks(shock, disks)),
        )

    @cached_property
    def chain(self) -> Chain | None:
        """The chain of `group`; None where it is too large to be solved in seconds."""
        try:
            return self.group().chain()
        except TooLargeError:
            return None

    @property
    def repair_words(self) -> str:
        """The repair discipline by name."""
        return {None: "parallel", 1: "serial"}.get(self.repair.crews, f"{self.repair.crews} crews")

    def availability(self) -> float | None:
        """The long-run share of time in which at least one of the arrays is without its data (unavailability), arrays that lost data being
        repaired like others; None for a pool, where the chain is too large (many disks with spares), and below 1e-308.

        From mean times: exact for exponential times, and for any where all repairs run in parallel and nothing else is shared (the
        long-run state of a disk depends on its mean times only); else the Markov chain of the same means.
        """
        return self._down_and_degraded[0]

    def degraded(self) -> float | None:
        """The long-run share of time with a disk down in any of the arrays, outages included; None where `availability` is."""
        return self._down_and_degraded[1]

    @cached_property
    def _down_and_degraded(self) -> tuple[float | None, float | None]:
        """Both from one chain."""
        says = self._parts[0]
        if self.pool is not None:
            return None, None
        without_data = (
            _lost_shares(says["lost_sets"], says["disks"])
            if "lost_sets" in says
            else [float(k > says["tolerance"]) for k in range(says["disks"] + 1)]
        )
        try:
            shares = self.group().long_run(without_data, [0.0] + [1.0] * says["disks"])
        except TooLargeError:
            return None, None
        down, degraded = (of_many(share, 1 - share, self.count) or None for share in shares)  # 0: it is below what a number can say
        return down, degraded


def mean_hours(law: Law) -> float:
    """The mean of a law; UsageError if it has none, or one beyond all numbers."""
    if law.kind is LawKind.WEIBULL:
        log_mean = math.log(law.scale_hours) + math.lgamma(1 + 1 / law.shape)
        check_number(f"ln of the mean, hours, of a Weibull law of shape {law.shape:g}", log_mean, most=_LOG_MEAN_MAX)
        return law.location_hours + law.scale_hours * math.gamma(1 + 1 / law.shape)
    if law.kind is not LawKind.PIECEWISE:
        return law.scale_hours
    total, knots = 0.0, list(zip(law.at_hours, law.cumulative, strict=True))
    for (start, before), (end, after) in itertools.pairwise(knots):
        rise = after - before
        total += math.exp(-before) * (end - start) * (-math.expm1(-rise) / rise if rise else 1.0)
    if not law.tail_per_hour:
        raise UsageError(f"a piecewise law whose hazard is 0 after {law.at_hours[-1]:g} hours has no mean; give it a hazard there")
    mean = total + math.exp(-law.cumulative[-1]) / law.tail_per_hour
    check_number("the mean of a piecewise law, hours,", mean, most=math.exp(_LOG_MEAN_MAX))
    return mean


def scaled(law: Law, factor: float) -> Law:
    """The law of times that are so many times as long."""
    return msgspec.structs.replace(
        law,
        scale_hours=law.scale_hours * factor,
        location_hours=law.location_hours * factor,
        at_hours=tuple(hours * factor for hours in law.at_hours),
        tail_per_hour=law.tail_per_hour / factor,
    )


def _mirrors(shape: Shape) -> tuple[Shape, int] | None:
    """A RAID 10 of near copies whose disks are cut into mirrors."""
    if shape.level is not Level.RAID10 or not isinstance(shape.members, int):
        return None
    number = layout_number(shape.level, shape.layout)
    near, far = number & 0xFF, number >> 8 & 0xFF
    if far != 1 or near < 2 or shape.members % near or shape.members == near:
        return None
    return Shape(level=Level.RAID1, members=near), shape.members // near


def _striped(shape: Shape) -> tuple[Shape, int] | None:
    """Arrays of one shape behind each other, or striped over."""
    members = shape.members
    if isinstance(members, int) or shape.level not in (Level.LINEAR, Level.RAID0) or any(member != members[0] for member in members):
        return None
    return members[0], len(members)


def _group_shocks(shock: Shock, disks: int) -> Iterator[GroupShock]:
    """A shock that kills each disk with a probability is one for each number of disks: which ones is even in both."""
    per_hour = shock.per_year / HOURS_PER_YEAR
    if shock.kills:
        yield GroupShock(per_hour, shock.kills)
        return
    for hits in range(1, disks + 1):
        share = math.comb(disks, hits) * shock.probability**hits * (1 - shock.probability) ** (disks - hits)
        if share:
            yield GroupShock(per_hour * share, hits)


def _lost_shares(table: bytes, disks: int) -> list[float]:
    """Of the sets of k lost disks the share that loses data, k = 0 .. disks."""
    import numpy as np

    lost = np.flatnonzero(np.unpackbits(np.frombuffer(table, np.uint8), bitorder="little")[: 1 << disks]).astype(np.uint32)
    sizes = np.zeros(len(lost), dtype=np.int64)
    for disk in range(disks):
        sizes += lost >> np.uint32(disk) & 1
    return [float(count) / math.comb(disks, k) for k, count in enumerate(np.bincount(sizes, minlength=disks + 1))]


# --- The answer -----------------------------------------------------------------------------------------------------------------------


class Improvement(Struct, frozen=True, kw_only=True):
    """What is gained where one input is twice as good: half the rate of what harms, half the time of what mends, one spare more.

    factor: how many times P(loss) becomes smaller, or the expected number of losses where they are counted (None: so small that none was
    seen). elasticity: per cent of P for one per cent of the rate (exact answers only). operable: whoever runs the array can do it, without
    other disks.
    """

    input: str
    words: str
    factor: float | None
    elasticity: float | None
    operable: bool

    @property
    def factor_words(self) -> str:
        """8 times fewer; answers to Monte Carlo's 5 % have no more digits."""
        if self.factor is None:
            return "no loss seen any more"
        return f"{self.factor:.2g} times fewer" if self.factor >= _SEEN else "no effect that shows"


class Curve(Struct, frozen=True, kw_only=True):
    """P(loss) by each of `years`. exact: of the Markov chain, None where there is none; `exact_is_model`: whether it is the model itself,
    or one of the same mean times. mc: of the missions drawn (where losses are counted: their expected number). beside: what Monte Carlo
    says of one array where the answer is exact.
    """

    years: tuple[float, ...]
    exact: tuple[float, ...] | None
    exact_is_model: bool
    mc: tuple[float, ...] | None
    beside: Estimate | None


class Result(Struct, frozen=True, kw_only=True):
    """What a study comes to, of all its arrays together. `words` says it in one sentence.

    p_loss: probability that data are lost within the mission; where no loss was seen (`none_seen`) the upper end of its 95 % interval,
    never 0. nines: -log10(p_loss), ± nines_error (half of the interval; 0 for an exact answer). losses: expected number, where they are
    counted. availability: long-run share of time with all data at hand, of which unavailability is the rest, in nines and minutes a year
    (None: not told, for a pool). causes: shares of the losses: at a whole disk, at a latent error, by a shock. degraded_hours_per_year:
    long-run hours with a disk down in any of the arrays, outages included (of a pool: in the missions, up to a loss). eafdl: expected
    share of the data lost in a year; lost_bytes: expected, in the mission (None for both: not told, the assumptions say why).
    """

    p_loss: float
    p_loss_ci95: tuple[float, float]
    none_seen: bool
    nines: float
    nines_error: float
    mttdl_years: float
    availability: float | None
    unavailability: float | None
    availability_nines: float | None
    downtime_minutes_per_year: float | None
    method: Literal["exact", "mc"]
    estimator: Literal["chain", "crude", "rare"]
    repair: str
    seed: int
    words: str
    losses: float | None
    causes: dict[str, float] | None
    degraded_hours_per_year: float | None
    eafdl: float | None
    lost_bytes: float | None
    missions: int | None
    effective_missions: float | None
    largest_share: float | None
    improvements: tuple[Improvement, ...]
    curve: Curve | None
    assumptions: tuple[str, ...]
    study: Study
    versions: dict[str, str]


class _Answer(Struct, frozen=True, kw_only=True):
    """P(loss) of all arrays of a study, by whichever method; `losses` is what improvements are measured by."""

    p_loss: float
    interval: tuple[float, float]
    losses: float
    none_seen: bool
    mttdl_years: float
    estimate: Estimate | None


def simulate(
    study: Study, *, workers: int = 1, improvements: bool = True, compare: bool = False, progress: Progress | None = None
) -> Result:
    """The answer to a study: the same to the bit for any number of `workers` (threads).

    improvements: also asks what the next thing to improve is, by answers to 5 % to changed studies. compare: also the curve of P(loss) over
    time, from both sides where both can be had. progress(done, all) counts blocks of the main answer.
    """
    answer = _answer(study, workers, progress)
    return finish(
        study, answer, _improvements(study, answer, workers) if improvements else (), _curve(study, answer, workers) if compare else None
    )


def _answer(study: Study, workers: int, progress: Progress | None = None, **less: Any) -> _Answer:
    if study.is_exact:
        return exact_answer(study)
    settings = {"missions": study.missions, "relative_error": study.relative_error, **less}
    return of_estimate(study, montecarlo.simulate(study.system, seed=study.seed, workers=workers, progress=progress, **settings))


def _chain(study: Study) -> Chain:
    """Of a study that is_exact."""
    if study.chain is None:
        raise UsageError(f"method exact: {study.not_markov}")
    return study.chain


def exact_answer(study: Study) -> _Answer:
    """By the Markov chain."""
    chain = _chain(study)
    p = chain.loss_probability(study.hours, study.count)
    mttdl_years = chain.mttdl_hours(study.count) / HOURS_PER_YEAR
    return _Answer(p_loss=p, interval=(p, p), losses=p, none_seen=False, mttdl_years=mttdl_years, estimate=None)


def of_estimate(study: Study, estimate: Estimate) -> _Answer:
    """One array's estimate, for all of them."""
    low, p, high = (of_many(p, 1 - p, study.count) for p in (estimate.p_loss_ci95[0], estimate.p_loss, estimate.p_loss_ci95[1]))
    losses = estimate.losses * study.count if study.counting else p
    mttdl_years = estimate.mttdl_years / study.count
    return _Answer(p_loss=p, interval=(low, high), losses=losses, none_seen=estimate.none_seen, mttdl_years=mttdl_years, estimate=estimate)


def finish(study: Study, answer: _Answer, improvements: tuple[Improvement, ...], curve: Curve | None) -> Result:
    """The whole result, from what was computed."""
    estimate, down = answer.estimate, study.availability()
    low, high = answer.interval
    error = (math.log10(high) - math.log10(low)) / 2 if low > 0 else 0.0
    degraded = _degraded(study, estimate)
    sized = None if estimate is None or "lost_sets" in study._parts[0] else estimate  # a table says whether data are lost, not how many
    return Result(
        p_loss=answer.p_loss,
        p_loss_ci95=answer.interval,
        none_seen=answer.none_seen,
        nines=-math.log10(answer.p_loss) + 0.0,
        nines_error=error,
        mttdl_years=answer.mttdl_years,
        availability=None if down is None else 1 - down,
        unavailability=down,
        availability_nines=None if down is None else -math.log10(down) + 0.0,
        downtime_minutes_per_year=None if down is None else down * HOURS_PER_YEAR * 60,
        method="exact" if estimate is None else "mc",
        estimator="chain" if estimate is None else estimate.method,
        repair=study.repair_words,
        seed=study.seed,
        words=_words(study, answer, error, improvements),
        losses=answer.losses if study.counting else None,
        causes=None if answer.none_seen else _causes(study, estimate),
        degraded_hours_per_year=None if degraded is None else degraded * HOURS_PER_YEAR,
        eafdl=None if sized is None else sized.eafdl,
        lost_bytes=None if sized is None or sized.lost_bytes is None else sized.lost_bytes * study.count,
        missions=None if estimate is None else estimate.missions,
        effective_missions=None if estimate is None else estimate.effective_missions,
        largest_share=None if estimate is None else estimate.largest_share,
        improvements=improvements,
        curve=curve,
        assumptions=tuple(assumptions(study, None if estimate is None else estimate.method)),
        study=study,
        versions=versions(),
    )


def _degraded(study: Study, estimate: Estimate | None) -> float | None:
    """The share of time with a disk down in any of the arrays: in the long run, or else of the time that missions lived."""
    share = study.degraded()
    if share is not None or estimate is None or estimate.degraded_hours is None:
        return share
    lost = 0.0  # the mean over a mission of P(loss by then): a mission that ends with its loss is over for that share of its time
    if not study.counting:
        lost = sum(before + after for before, after in itertools.pairwise((0.0, *estimate.p_by_time))) / (2 * BINS)
    of_one = min(1.0, estimate.degraded_hours / (study.hours * (1 - lost)))
    return of_many(of_one, 1 - of_one, study.count)


def _causes(study: Study, estimate: Estimate | None) -> dict[str, float]:
    """Shares of what the losses came by."""
    if estimate is not None:
        return {"disk": max(0.0, 1 - estimate.by_latent - estimate.by_shock), "latent": estimate.by_latent, "shock": estimate.by_shock}
    group, chain = study.group(), _chain(study)
    by = dict(zip(("disk", "latent", "shock"), chain.by(study.hours, *group.losses_by_cause(chain)), strict=True))
    return {cause: losses / sum(by.values()) for cause, losses in by.items()}


def _curve(study: Study, answer: _Answer, workers: int) -> Curve:
    """P(loss) over the mission, from both sides."""
    times = [study.hours * (k + 1) / BINS for k in range(BINS)]
    exact = None
    if study.pool is None and not study.counting and "lost_sets" not in study._parts[0] and study.chain is not None:
        exact = tuple(study.chain.loss_curve(times, study.count))
    estimate = answer.estimate
    if estimate is None:
        estimate = montecarlo.simulate(study.system, seed=study.seed, workers=workers, relative_error=_COMPARED, steps_max=_ROUGH_STEPS)
    mc = None
    if not estimate.none_seen:
        of_one = (min(p, 1.0) for p in estimate.p_by_time)
        mc = (
            tuple(value * study.count for value in estimate.p_by_time)
            if study.counting
            else tuple(of_many(p, 1 - p, study.count) for p in of_one)
        )
    return Curve(
        years=tuple(hours / HOURS_PER_YEAR for hours in times),
        exact=exact,
        exact_is_model=study.not_markov is None and study.latent is None,
        mc=mc,
        beside=estimate if answer.estimate is None else None,
    )


# --- What would help ------------------------------------------------------------------------------------------------------------------

_NAMES = {  # of chains.Sensitivity
    "lifetime": "failure_per_hour",
    "repair": "repair_per_hour",
    "replacement": "replacement_per_hour",
    "latent": "latent_per_hour",
    "scrub": "scrub_per_hour",
}


def _changes(study: Study) -> Iterator[tuple[str, str, bool, Callable[[], Study]]]:
    """Inputs that can be twice as good: name, words, whether by operation, and what makes the study with it."""
    replace = msgspec.structs.replace
    repair, spares, latent, shelves, batches = study.repair, study.spares, study.latent, study.shelves, study.batches
    yield "repair", "the rebuild time", True, lambda: replace(study, repair=replace(repair, duration=scaled(repair.duration, 0.5)))
    if (crews := repair.crews) is not None:
        more = 2 * crews
        yield "crews", "the number of rebuilds that run at a time", True, lambda: replace(study, repair=replace(repair, crews=more))
    if spares is not None:
        sooner = scaled(spares.replacement, 0.5)
        words = "the time until a new disk is brought"
        yield "replacement", words, True, lambda: replace(study, spares=replace(spares, replacement=sooner))
        yield "spares", "the number of spares", True, lambda: replace(study, spares=replace(spares, count=spares.count + 1))
    if latent is not None:
        if (scrub := latent.scrub) is not None:
            yield "scrub", "the time between scrubs", True, lambda: replace(study, latent=replace(latent, scrub=scaled(scrub, 0.5)))
        rarer = 2 * latent.mean_hours
        yield "latent", "the rate of latent errors", False, lambda: replace(study, latent=replace(latent, mean_hours=rarer))
    if study.shocks:
        fewer = tuple(replace(shock, per_year=shock.per_year / 2) for shock in study.shocks)
        yield "shocks", "what kills several disks at once", True, lambda: replace(study, shocks=fewer)
    if shelves is not None and shelves.boost_factor > 1:
        calm = replace(shelves, boost_factor=max(1.0, shelves.boost_factor / 2))
        yield "shelves", "what disks of one shelf do to each other", True, lambda: replace(study, shelves=calm)
    if batches is not None and batches.probability > 0:
        better = replace(batches, probability=batches.probability / 2)
        yield "batches", "the mixture of batches", True, lambda: replace(study, batches=better)
    yield "lifetime", "the disks' failure rate", False, lambda: replace(study, lifetime=scaled(study.lifetime, 2.0))


def _improvements(study: Study, answer: _Answer, workers: int) -> tuple[Improvement, ...]:
    """Each change's gain, largest first. None where few missions carry the answer; what few would carry, and what is beyond a limit if it
    is twice as good (spares, states, digits), is left out.
    """
    if answer.none_seen or (answer.estimate is not None and answer.estimate.is_weak):
        return ()
    slopes: dict[str, float] = {}
    if study.is_exact:
        with contextlib.suppress(UsageError):
            slopes = {one.name: one.elasticity for one in sensitivities(study.group(), study.hours, study.count)}
    found = []
    for name, words, operable, change in _changes(study):
        with contextlib.suppress(UsageError):
            better = _answer(change(), workers, missions=None, relative_error=_ROUGH, steps_max=_ROUGH_STEPS)
            if better.estimate is not None and better.estimate.is_weak:
                continue
            factor = None if better.none_seen else answer.losses / better.losses
            found.append(
                Improvement(input=name, words=words, factor=factor, elasticity=slopes.get(_NAMES.get(name, "")), operable=operable)
            )
    return tuple(sorted(found, key=lambda one: -(one.factor or math.inf)))


# --- Words ----------------------------------------------------------------------------------------------------------------------------


def survival_words(loss: float, loss_low: float = 1.0) -> str:
    """1 - loss with two digits of what is missing: 0.99999989; or of what is left, where that is little: 0.0076. `loss_low`, the low end of
    its interval, says how little is left where a loss is certain to all digits.
    """
    if loss >= 1:
        return f"below {max(1 - loss_low, 1e-16):.2g}"
    if loss > 0.9:
        return f"{1 - loss:.2g}"
    digits = max(2, math.ceil(-math.log10(loss)) + 1)
    with localcontext() as context:
        context.prec = digits + 10
        text = f"{Decimal(1) - Decimal(loss):.{digits}f}"
    return text if not text.startswith("1.") else "0." + "9" * digits


def time_words(years: float) -> str:
    """5 years, 1 year, 720 hours."""
    if years < 1 and years * HOURS_PER_YEAR < 1000:
        return f"{years * HOURS_PER_YEAR:g} hours"
    return "1 year" if years == 1 else f"{years:g} years"


def next_step(improvements: tuple[Improvement, ...]) -> Improvement | None:
    """What to improve next: what whoever runs the array can change and helps most; if none of that helps, whatever does."""
    helps = [one for one in improvements if one.factor is None or one.factor >= _MATTERS]
    return next((one for one in helps if one.operable), helps[0] if helps else None)


def _words(study: Study, answer: _Answer, error: float, improvements: tuple[Improvement, ...]) -> str:
    time, nines = time_words(study.years), -math.log10(answer.p_loss) + 0.0
    if answer.none_seen and answer.estimate is not None:
        seen = f"no loss seen in {answer.estimate.missions} missions of {time}"
        return f"{seen}: at least {survival_words(answer.p_loss)} of keeping all data, {nines:.1f} nines or more (95 % sure)"
    how_sure = " (exact)" if answer.estimate is None else f" ± {error:.2g}"
    text = f"{survival_words(answer.p_loss, answer.interval[0])} of keeping all data for {time}, {nines:.2f} nines{how_sure}"
    if study.counting:
        text += f"; {answer.losses:.4g} losses expected"
    if answer.estimate is not None and answer.estimate.is_weak:
        text += "; but few missions carry this: trust its order of magnitude only, and ask for more (missions, relative error)"
    step = next_step(improvements)
    return text + (f"; the next thing to improve is {step.words}" if step is not None else "")


def law_words(law: Law) -> str:
    """A law in words."""
    if law.kind is LawKind.CONSTANT:
        return f"always {law.scale_hours:g} h"
    if law.kind is LawKind.EXPONENTIAL:
        return f"exponential, mean {law.scale_hours:g} h"
    if law.kind is LawKind.WEIBULL:
        after = f", not before {law.location_hours:g} h" if law.location_hours else ""
        return f"Weibull, shape {law.shape:g}, scale {law.scale_hours:g} h{after}"
    knots = zip(law.at_hours, law.cumulative, strict=True)
    return f"hazard in pieces (hours: expected failures by then) {', '.join(f'{at:g}: {sum_:.4g}' for at, sum_ in knots)}"


def shape_words(shape: Shape) -> str:
    """raid6 of 10 disks; raid0 of 2 × (raid6 of 4 disks)."""
    layout = f", layout {layout_name(shape.level, layout_number(shape.level, shape.layout))}" if shape.level is Level.RAID10 else ""
    if isinstance(shape.members, int):
        code = f"{shape.members - shape.parity} + {shape.parity} (rs)" if shape.level is Level.RS and shape.parity else f"{shape.level}"
        return f"{code} of {shape.members} disks{layout}"
    if all(member == shape.members[0] for member in shape.members):
        return f"{shape.level} of {len(shape.members)} × ({shape_words(shape.members[0])}){layout}"
    return f"{shape.level} of ({'; '.join(shape_words(member) for member in shape.members)}){layout}"


def assumptions(study: Study, estimator: str | None) -> Iterator[str]:
    """All that the answer rests on, a sentence each."""
    many = f"{study.groups} independent arrays, all of which are needed: each " if study.groups > 1 else ""
    if study.pool is not None:
        many = f"A declustered pool of {study.pool_disks} disks with {study.pool.groups} groups, placed at random; each group "
    yield f"{many}{shape_words(study.shape)}."
    says = study._parts[0]
    if "lost_sets" in says:
        yield f"Which of the 2^{says['disks']} sets of lost disks lose data is the engine's verdict, set by set."
        yield "How many data a loss costs is not told (bytes, EAFDL): often a part, one mirror of many; the verdict says only whether any."
    else:
        shape, count = study.independent
        if shape != study.shape:
            yield f"That is {count} parts that know nothing of each other, each {shape_words(shape)}."
        bears = {0: "No lost disk is borne", 1: "Any lost disk is borne, a second one is not"}
        more = f"Any {says['tolerance']} lost disks are borne, one more is not"
        yield f"{bears.get(says['tolerance'], more)}: the engine's verdict."
    yield f"Life of a disk: {law_words(study.lifetime)}. All are new and whole at the start, replacements are new, lives are independent."
    discipline = {
        "parallel": "parallel: every lost disk is rebuilt at once, each by itself",
        "serial": "serial: one disk is rebuilt at a time",
    }.get(study.repair_words, f"{study.repair.crews} crews: at most {study.repair.crews} disks are rebuilt at a time")
    yield f"Repair discipline {discipline}."
    yield f"Time of a repair: {law_words(study.repair.duration)}."
    if study.spares is None:
        yield "A replacement is always at hand: a rebuild begins with the failure."
    else:
        delay = law_words(study.spares.replacement)
        yield f"Hot spares: {study.spares.count}. Each failure orders a disk; a human brings it after ({delay})."
    if study.latent is None:
        yield "No latent sector errors."
    else:
        scrub = "never" if study.latent.scrub is None else f"after ({law_words(study.latent.scrub)}), each defect by its own scrub"
        chain = "" if estimator else " Markov approximation: a disk has one latent error or none."
        yield (
            f"Latent errors: one on each disk in {study.latent.mean_hours:g} h on average, found {scrub}; data are lost where the last "
            f"redundancy fails while a disk that is then needed has one.{chain}"
        )
    for shock in study.shocks:
        what = f"{shock.kills} disks" if shock.kills else f"each disk with probability {shock.probability:g}"
        yield f"A shock in each {shock.scope} {shock.per_year:g} times a year kills {what}."
    if study.shelves is not None:
        boost = f": after a failure its disks have {study.shelves.boost_factor:g} times the hazard for {study.shelves.boost_hours:g} h"
        yield f"Shelves of {study.shelves.disks} disks{boost if study.shelves.boost_factor > 1 else ''}."
    if study.batches is not None:
        bad = f"each bad with probability {study.batches.probability:g}: {study.batches.factor:g} times the hazard"
        yield f"Batches of {study.batches.disks} disks, {bad}."
    if study.disk_bytes is not None:
        untold = (
            "" if estimator else " The bytes lost are not told: a Markov chain says whether data are lost, not how many; method mc does."
        )
        yield f"A disk holds {format_size(study.disk_bytes)}.{untold}"
    yield from study.notes
    yield {
        None: "Answered by a Markov chain in subtraction-free arithmetic: exact to 12 digits.",
        "crude": "Answered by missions drawn at random, and losses counted.",
        "rare": "Answered by importance sampling of missions drawn at random (a biased branch for each time with disks down), unbiased.",
    }[estimator]
    if study.pool is None and study.degraded() is None:
        yield "Availability is not told: its Markov chain has too many states (disks with spares, shocks)."
    elif study.pool is None and (study.not_markov is not None or study.latent is not None):
        yield (
            "Availability and degraded time from mean times, without latent errors, shelves and shocks to them, batches; "
            "exact if repairs are parallel and nothing is shared."
        )
    yield "Left out: what is not named here (mistakes of people, firmware, fire, theft) and whatever a backup brings back."


def versions() -> dict[str, str]:
    """What computed it."""
    import numpy as np

    return {"raidlib": importlib.metadata.version("raidlib"), "python": platform.python_version(), "numpy": np.__version__}
