"""Missions drawn at random: plans blocks, lets C play them (csrc/sim_crude.c, csrc/sim_rare.c), reduces, and says how sure the answer is.

    estimate = simulate(system, relative_error=0.01, seed=7)
    estimate.p_loss, estimate.p_loss_ci95

A plan is a list of blocks, each with a random stream of its own, made from (seed, number); their sums are added in that order. So an answer
is the same to the bit for any number of workers, threads here or machines elsewhere: `plan`, `Kernel.play` for each block, `reduce`.

Two estimators. crude: what happens, counted. rare: importance sampling (csrc/sim_rare.c says how), for losses that nobody could wait for.
"auto" plays a pilot of both, with streams that are not used again, and takes the one that needs fewer steps for the same variance: on frail
systems, and where the weights of the other are carried by few missions, that is crude.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec

from ..engine import check, ffi, lib
from ..errors import UsageError
from ..model import Struct
from .model import HOURS_PER_YEAR, Law, LawKind, System, check_count, check_number

Method = Literal["crude", "rare"]
BINS = int(lib.RL_SIM_BINS)
STEPS_MAX = 500_000_000  # of a plan without `missions`: some seconds to a minute of one core
_PILOT = {"crude": 1 << 16, "rare": 1 << 13}  # missions
_PILOT_STEPS_MAX = 1 << 22
_PILOT_BLOCK = 1 << 62  # numbers of blocks from here on are pilots'
_BLOCK_STEPS = 1 << 18  # about 10 ms of a core
_BLOCK_MISSIONS_MAX = 1 << 22
_BLOCKS_MAX = 1 << 18  # a plan is a list: more missions than that come in larger blocks
_SHARE_MAX = 0.1  # of the sum, by one mission: above it the weights are not to be trusted
_EFFECTIVE_MIN = 100.0  # missions that count, below which they are not either
_EFFECTIVE_WANTED = 1000.0  # with which its variance is known to some per cent
_HITS_MIN = 10  # losses that crude sampling must have seen to be the way out of that
_MARGIN = 1.3  # of missions: a pilot sees too little of weights that are skewed
_EXPOSURE_POINTS = 4096
_LAWS = {
    LawKind.CONSTANT: lib.RL_SIM_CONSTANT,
    LawKind.EXPONENTIAL: lib.RL_SIM_EXPONENTIAL,
    LawKind.WEIBULL: lib.RL_SIM_WEIBULL,
    LawKind.PIECEWISE: lib.RL_SIM_PIECEWISE,
}
_Z95 = 1.959963984540054


class Sums(Struct, frozen=True, kw_only=True):
    """What a block comes to, as in `struct rl_sim_sums` of csrc/raidlib.h; sums of them likewise."""

    missions: int = 0
    hits: int = 0
    failures: int = 0
    steps: int = 0
    score: float = 0.0
    score_squares: float = 0.0
    score_max: float = 0.0
    score_hours: float = 0.0
    fraction: float = 0.0
    fraction_squares: float = 0.0
    latent: float = 0.0
    shock: float = 0.0
    degraded_hours: float = 0.0
    by_time: tuple[float, ...] = (0.0,) * BINS

    @property
    def mean(self) -> float:
        """Losses a mission."""
        return self.score / self.missions

    @property
    def variance(self) -> float:
        """Of one mission's score."""
        return max(0.0, self.score_squares / self.missions - self.mean**2)

    @property
    def effective(self) -> float:
        """How many missions of equal weight would say as much (Kong 1992)."""
        return self.score**2 / self.score_squares if self.score_squares else 0.0

    @property
    def largest_share(self) -> float:
        """What the heaviest mission has of the score."""
        return self.score_max / self.score if self.score else 0.0


class Block(Struct, frozen=True, kw_only=True):
    """A part of a plan, played by one worker."""

    method: Method
    seed: int
    number: int
    missions: int


class Estimate(Struct, frozen=True, kw_only=True):
    """What missions drawn at random say of a system.

    p_loss: probability of a loss within the mission; where none was seen, the upper end of its interval (`none_seen`). p_loss_ci95:
    crude: Jeffreys' interval, and where none was seen 0 and the exact one-sided bound of Clopper & Pearson, 1 - 0.05^(1/n), about 3/n;
    rare: of the mean, on the scale of its logarithm. losses: expected number of losses in a mission, with the standard error (not
    counting: p_loss's). mttdl_years: the time without a loss, of all missions together, over the losses: the mean time to one where they
    come at one rate; where none was seen, its lower bound. eafdl: expected share of the data that is lost in a year (Iliadis &
    Venkatesan 2014); lost_bytes: expected bytes lost in a mission, and nomdl_bytes_per_tb: per 10^12 usable bytes (Greenan, Plank &
    Wylie, HotStorage 2010); None where System.usable_bytes is not known and matters. by_latent, by_shock: shares of the losses, at a
    latent error and by a shock.
    degraded_hours: of a mission, with a disk down (crude only, else None). p_by_time: losses a mission up to the k-th of 64 equal parts
    of it.
    """

    method: Method
    seed: int
    missions: int
    blocks: int
    p_loss: float
    p_loss_ci95: tuple[float, float]
    p_loss_se: float
    none_seen: bool
    nines: float  # -log10(p_loss)
    losses: float
    losses_se: float
    mttdl_years: float
    effective_missions: float
    largest_share: float
    eafdl: float | None
    lost_bytes: float | None
    nomdl_bytes_per_tb: float | None
    by_latent: float
    by_shock: float
    failures: float  # of disks, a mission (rare: of the paths played)
    degraded_hours: float | None
    p_by_time: tuple[float, ...]
    steps: int

    @property
    def is_weak(self) -> bool:
        """Whether so few missions carry it that its interval is not to be trusted, but for the order of magnitude."""
        return self.method == "rare" and not self.none_seen and is_weak(self.effective_missions, self.largest_share)


def is_weak(effective_missions: float, largest_share: float) -> bool:
    """Whether weights are not to be trusted."""
    return effective_missions < _EFFECTIVE_MIN or largest_share > _SHARE_MAX


# --- The kernel -------------------------------------------------------------------------------------------------------


class Kernel:
    """A system as the C kernel takes it. Any number of threads may play blocks of it at once."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._keep: list[Any] = []  # what the struct points into
        model = self._model = ffi.new("struct rl_sim_model *")
        model.size_of = ffi.sizeof("struct rl_sim_model")
        model.disks, model.tolerance, model.counting = system.disks, system.tolerance, system.counting
        model.mission_hours = system.mission_hours
        self._put_law(model.lifetime, system.lifetime)
        self._put_law(model.repair, system.repair.duration)
        model.crews = lib.RL_SIM_UNLIMITED if system.repair.crews is None else system.repair.crews
        model.spares = lib.RL_SIM_UNLIMITED if system.spares is None else system.spares.count
        if system.spares is not None:
            self._put_law(model.replacement, system.spares.replacement)
        if system.lost_sets is not None:
            model.lost_sets = self._kept(ffi.from_buffer("uint8_t[]", system.lost_sets))
        self._put_extras(model)
        if system.pool is not None:
            self._put_placement(model, system.pool.placement(system.disks), system.pool.width)
        self._scratch_bytes = int(lib.rl_sim_scratch_bytes(model))
        if not self._scratch_bytes:
            check(-22)

    def _kept(self, pointer: Any) -> Any:
        self._keep.append(pointer)
        return pointer

    def _put_law(self, to: Any, law: Law) -> None:
        to.kind = lib.RL_SIM_EXPONENTIAL if law.is_exponential else _LAWS[law.kind]  # faster, without memory
        to.scale_hours, to.shape, to.location_hours, to.tail_per_hour = law.scale_hours, law.shape, law.location_hours, law.tail_per_hour
        to.knots = len(law.at_hours)
        to.at_hours = self._kept(ffi.new("double[]", law.at_hours))
        to.cumulative = self._kept(ffi.new("double[]", law.cumulative))

    def _put_extras(self, model: Any) -> None:
        system = self.system
        if system.latent is not None:
            model.latent_per_hour = 1 / system.latent.mean_hours
            model.latent_fraction = min(1.0, system.latent.lost_bytes / system.usable_bytes) if system.usable_bytes else 0.0
            if system.latent.scrub is not None:
                points, model.exposure_step_hours = self._exposure(system.latent.scrub)
                model.exposure, model.exposure_count = self._kept(ffi.new("double[]", points)), len(points)
        if system.shelves is not None:
            model.shelf_disks = system.shelves.disks
            model.boost_factor, model.boost_hours = system.shelves.boost_factor, system.shelves.boost_hours
        if system.batches is not None:
            model.batch_disks = system.batches.disks
            model.batch_probability, model.batch_factor = system.batches.probability, system.batches.factor
        shocks = self._kept(ffi.new("struct rl_sim_shock[]", len(system.shocks)))
        for raw, shock in zip(shocks, system.shocks, strict=True):
            raw.per_hour, raw.kills, raw.probability = shock.per_year / HOURS_PER_YEAR, shock.kills, shock.probability
            raw.per_shelf = shock.scope == "shelf"
        model.shocks, model.shock_count = shocks, len(system.shocks)

    def _exposure(self, scrub: Law) -> tuple[list[float], float]:
        """The integral of P(the scrub takes longer than u) over u from 0 on, at equal steps, by Simpson's rule."""
        if scrub.kind is LawKind.CONSTANT:
            return [0.0, scrub.scale_hours], scrub.scale_hours
        law = ffi.new("struct rl_sim_law *")
        self._put_law(law, scrub)
        step = min(lib.rl_sim_law_time(law, 36.0), self.system.mission_hours) / _EXPOSURE_POINTS  # exp(-36): 2e-16
        left = [math.exp(-lib.rl_sim_law_hazard(law, k * step / 2)) for k in range(2 * _EXPOSURE_POINTS + 1)]
        parts = ((left[k] + 4 * left[k + 1] + left[k + 2]) * step / 6 for k in range(0, 2 * _EXPOSURE_POINTS, 2))
        return list(itertools.accumulate(parts, initial=0.0)), step

    def _put_placement(self, model: Any, placement: list[list[int]], width: int) -> None:
        on_disk: list[list[int]] = [[] for _ in range(self.system.disks)]
        ranks: list[int] = []
        for number, group in enumerate(placement):
            for disk in group:
                ranks.append(len(on_disk[disk]))
                on_disk[disk].append(number)
        model.groups, model.width = len(placement), width
        model.placement = self._kept(ffi.new("uint32_t[]", [disk for group in placement for disk in group]))
        model.rank = self._kept(ffi.new("uint32_t[]", ranks))
        model.pieces = self._kept(ffi.new("uint32_t[]", [number for pieces in on_disk for number in pieces]))
        model.piece_first = self._kept(ffi.new("uint32_t[]", list(itertools.accumulate(map(len, on_disk), initial=0))))

    def _scratch(self) -> Any:
        return ffi.new("uint64_t[]", self._scratch_bytes // 8 + 1)

    def play(self, block: Block, stop: Any = ffi.NULL) -> Sums:
        """The sums of one block. The GIL is released meanwhile. stop: a `uint32_t *`; 1 there ends it soon, with CancelledError."""
        raw = ffi.new("struct rl_sim_sums *")
        run = lib.rl_sim_rare if block.method == "rare" else lib.rl_sim_crude
        check(run(self._model, block.seed & (1 << 64) - 1, block.number, block.missions, self._scratch(), stop, raw))
        values = {name: getattr(raw, name) for name in Sums.__struct_fields__ if name != "by_time"}
        return Sums(**values, by_time=tuple(raw.by_time))

    def loses(self, down: Sequence[int]) -> bool:
        """Whether data are lost with these disks down and nothing of them rebuilt: the simulation's own test."""
        disks = ffi.new("uint32_t[]", list(down))
        return bool(check(lib.rl_sim_lost(self._model, disks, len(down), self._scratch())))


@functools.lru_cache(maxsize=16)
def kernel_of(system: System) -> Kernel:
    """The kernel of a system; made once, however many blocks of it a worker plays."""
    return Kernel(system)


def play(system: System, block: Block) -> Sums:
    """One block, wherever it is played."""
    return kernel_of(system).play(block)


# --- Plans ------------------------------------------------------------------------------------------------------------


def add(blocks: Iterable[Sums]) -> Sums:
    """The sum of blocks, in the order given."""
    total: dict[str, Any] = msgspec.structs.asdict(Sums())
    for block in blocks:
        for name in total:
            value = getattr(block, name)
            if name == "by_time":
                total[name] = tuple(map(float.__add__, total[name], value))
            else:
                total[name] = max(total[name], value) if name == "score_max" else total[name] + value
    return Sums(**total)


def can_be_rare(system: System) -> bool:
    """Whether the estimator of rare losses takes this system: one group, up to its first loss."""
    return not system.counting and system.pool is None and system.disks <= lib.RL_SIM_RARE_DISKS_MAX


def _pilot(system: System, method: Method, seed: int) -> Sums:
    """A first look, on streams of its own: longer where few missions count, shorter where missions are long."""
    done = Sums()
    missions, number = 64, _PILOT_BLOCK
    while done.steps < _PILOT_STEPS_MAX and (done.missions < _PILOT[method] or (method == "rare" and done.effective < _EFFECTIVE_WANTED)):
        done = add([done, *_played(system, [Block(method=method, seed=seed, number=number, missions=missions)])])
        missions, number = done.missions, number + 1
    return done


def _glance(system: System, method: Method, seed: int) -> Sums:
    """What a mission costs, and no more."""
    [sums] = _played(system, [Block(method=method, seed=seed, number=_PILOT_BLOCK, missions=64)])
    return sums


def _work(system: System, method: Method, sums: Sums) -> float:
    """What a mission costs, in crude steps of 30 ns. Those that are passed over cost nothing; a tenth, to be finite.

    A rare step without memory is as two of them; with ages it takes a logarithm and an exponential for each disk.
    """
    step = 1.0 if method == "crude" else 2.0 if system.lifetime.kind is LawKind.EXPONENTIAL else 2.0 + system.disks
    return step * max(0.1, sums.steps / sums.missions)


def choose(system: System, seed: int) -> tuple[Method, dict[Method, Sums]]:
    """The estimator that needs fewer steps for a variance, and the pilots that say so."""
    pilots: dict[Method, Sums] = {"crude": _pilot(system, "crude", seed)}
    if not can_be_rare(system):
        return "crude", pilots
    rare = pilots["rare"] = _pilot(system, "rare", seed)
    if is_weak(rare.effective, rare.largest_share) and pilots["crude"].hits >= _HITS_MIN:
        return "crude", pilots
    p = min(1.0, rare.mean)
    work: dict[Method, float] = {
        "crude": p * (1 - p) * _work(system, "crude", pilots["crude"]),
        "rare": rare.variance * _work(system, "rare", rare),
    }
    return ("rare" if work["rare"] < work["crude"] else "crude"), pilots


def plan(
    system: System,
    *,
    method: Method | Literal["auto"] = "auto",
    missions: int | None = None,
    relative_error: float = 0.01,
    seed: int = 0,
    steps_max: int = STEPS_MAX,
) -> list[Block]:
    """The blocks of a study: the same for the same arguments, whoever plays them.

    missions: how many; None: as many as a standard error of relative_error times the answer takes by the pilot, but no more than some
    steps_max steps. The pilot's missions are not part of the answer, which so has no bias by the stopping.
    """
    if method not in ("auto", "crude", "rare"):
        raise UsageError(f"method {method!r}: auto, crude or rare")
    check_count("seed", seed, 0, (1 << 64) - 1)
    check_number("the relative error", relative_error, above=0, most=1)
    check_count("steps_max", steps_max, 1, 1 << 62)
    if missions is not None:
        check_count("missions", missions, 1, 1 << 62)
    if method == "rare" and not can_be_rare(system):
        raise UsageError(
            f"rare losses are estimated for one group of at most {lib.RL_SIM_RARE_DISKS_MAX} disks up to its first loss; "
            f"this is {'a pool' if system.pool else 'counting' if system.counting else f'{system.disks} disks'}: take method 'crude'"
        )
    chosen: Method
    if method == "auto":
        chosen, pilots = choose(system, seed)
    else:
        chosen = method
        pilots = {method: _pilot(system, method, seed) if missions is None else _glance(system, method, seed)}
    pilot = pilots[chosen]
    cost = max(0.1, pilot.steps / pilot.missions)
    if missions is None:
        known = pilots["rare"] if chosen == "crude" and pilot.hits < _EFFECTIVE_MIN and "rare" in pilots else pilot
        wanted = known.variance if known is pilot else known.mean
        needed = _MARGIN * (wanted / known.mean / known.mean) / relative_error**2 if known.mean > 0 else math.inf
        missions = int(min(max(needed, 4096.0), max(1.0, steps_max / cost)))
    size = max(int(min(max(1.0, _BLOCK_STEPS / cost), _BLOCK_MISSIONS_MAX)), -(-missions // _BLOCKS_MAX))
    return [
        Block(method=chosen, seed=seed, number=number, missions=min(size, missions - number * size))
        for number in range(-(-missions // size))
    ]


def reduce(system: System, blocks: Sequence[Block], sums: Iterable[Sums]) -> Estimate:
    """The answer, from the sums of a plan's blocks, in its order."""
    total, block = add(sums), blocks[0]
    crude = block.method == "crude"
    n, losses_se = total.missions, math.sqrt(total.variance / total.missions)
    none_seen = total.hits == 0
    if crude:
        interval = _of_count(total.hits, n)
        p = total.hits / n
        p_se = math.sqrt(p * (1 - p) / n)
    else:
        p, p_se = total.mean, losses_se
        interval = _of_mean(p, p_se) if not none_seen else _of_count(0, n)
    p = interval[1] if none_seen else min(p, 1.0)
    years = system.mission_hours / HOURS_PER_YEAR
    fraction: float | None = total.fraction / n
    if system.latent is not None and system.usable_bytes is None:
        fraction = None  # a latent error costs bytes, of which the share is not known
    lived = 1.0 if system.counting else max(0.0, 1 - total.mean) + total.score_hours / n / system.mission_hours  # missions
    return Estimate(
        method=block.method,
        seed=block.seed,
        missions=n,
        blocks=len(blocks),
        p_loss=p,
        p_loss_ci95=interval,
        p_loss_se=p_se,
        none_seen=none_seen,
        nines=-math.log10(p) + 0.0,
        losses=total.mean,
        losses_se=losses_se,
        mttdl_years=years * (-1 / math.log1p(-p) if none_seen else lived / total.mean),
        effective_missions=total.effective,
        largest_share=total.largest_share,
        eafdl=None if fraction is None else fraction / years,
        lost_bytes=None if fraction is None or system.usable_bytes is None else fraction * system.usable_bytes,
        nomdl_bytes_per_tb=None if fraction is None else fraction * 1e12,
        by_latent=total.latent / total.score if total.score else 0.0,
        by_shock=total.shock / total.score if total.score else 0.0,
        failures=total.failures / n,
        degraded_hours=total.degraded_hours / n if crude else None,
        p_by_time=tuple(value / n for value in itertools.accumulate(total.by_time)),
        steps=total.steps,
    )


def _of_count(hits: int, missions: int) -> tuple[float, float]:
    """95 % for a probability, of so many hits. Jeffreys' interval covers 95 % on average over p (Brown, Cai & DasGupta, Stat. Sci. 16
    (2001), 2.4), which Clopper and Pearson's, made never to cover less, does not; at none and at all the one-sided exact bound.
    """
    from scipy.special import betaincinv

    if hits == 0:
        return 0.0, -math.expm1(math.log(0.05) / missions)
    if hits == missions:
        return 0.05 ** (1 / missions), 1.0
    low, high = (float(betaincinv(hits + 0.5, missions - hits + 0.5, tail)) for tail in (0.025, 0.975))
    return low, high


def _of_mean(mean: float, error: float) -> tuple[float, float]:
    """95 % for the mean of weights, which are skewed to the right: even around its logarithm."""
    wide = math.exp(_Z95 * error / mean)
    return mean / wide, min(1.0, mean * wide)


def _played(
    system: System, blocks: Sequence[Block], workers: int = 1, progress: Callable[[int, int], object] | None = None
) -> Iterator[Sums]:
    """The blocks' sums in order; a few blocks for each worker are under way at a time. What is raised meanwhile (Ctrl-C) ends them at once:
    none is played by this thread, in which C would keep Python from seeing a signal.
    """
    kernel, stop = kernel_of(system), ffi.new("uint32_t *")
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(kernel.play, block, stop) for block in blocks[: 4 * workers]]
        try:
            for done in range(len(blocks)):
                yield waiting.pop(0).result()
                if done + 4 * workers < len(blocks):
                    waiting.append(pool.submit(kernel.play, blocks[done + 4 * workers], stop))
                if progress is not None:
                    progress(done + 1, len(blocks))
        finally:
            stop[0] = 1
            for future in waiting:
                future.cancel()


def simulate(
    system: System,
    *,
    method: Method | Literal["auto"] = "auto",
    missions: int | None = None,
    relative_error: float = 0.01,
    seed: int = 0,
    workers: int = 1,
    steps_max: int = STEPS_MAX,
    progress: Callable[[int, int], object] | None = None,
) -> Estimate:
    """Plans, plays on `workers` threads, and reduces. The answer does not depend on `workers`. progress(done, all) counts blocks."""
    check_count("workers", workers, 1, 4096)
    blocks = plan(system, method=method, missions=missions, relative_error=relative_error, seed=seed, steps_max=steps_max)
    return reduce(system, blocks, _played(system, blocks, workers, progress))
