"""Exact durability and availability of groups of disks: continuous-time Markov chains without a single subtraction that cancels.

    group = Group(disks=10, tolerance=2, failure_per_hour=0.02 / HOURS_PER_YEAR, repair_per_hour=1 / 24)
    group.chain().loss_probability(5 * HOURS_PER_YEAR)      # 1.0792e-07

Units: times in hours, rates per hour; a year has 8760 hours. An annualised failure rate (AFR) is a rate, failures per disk and year, so
`failure_per_hour` is AFR / 8760 and the mean time to failure 8760 / AFR hours.

`Chain` is the core: states that still have all data, positive rates between them, and a rate of loss from each. Every number is a sum of
products of positive numbers, so its relative error is a few roundings however small it is (1e-12 is promised, down to 1e-280):

- Mean times and time averages by the elimination of Grassmann, Taksar & Heyman ("Regenerative analysis and steady state distributions
  for Markov chains", Operations Research 33, 1985; error bound of O'Cinneide, Numerische Mathematik 65, 1993): the diagonal of the
  generator is never stored, the outflow of a state is summed anew from the rates that are left.
- Probabilities at a time by uniformisation (Jensen 1953) of a step so short that a state keeps half of its mass, and squaring. What was
  lost is a column of its own that is only ever added to, never 1 minus the rest. After each squaring the rows are scaled to sum 1:
  otherwise the rounding of the mass would double with every squaring (1e-10 after a million mean repair times).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from raidlib.errors import UsageError
from raidlib.sim.model import HOURS_PER_YEAR

__all__ = ["HOURS_PER_YEAR", "Chain", "Group", "Sensitivity", "Shock", "of_many", "sensitivities"]

STATES_MAX = 200  # of a chain that is squared again and again, some dozen times for an answer with its sensitivities
LONG_RUN_STATES_MAX = 700  # of one that is eliminated once
MOVES_MAX = 5_000  # between them: a shock that kills each disk with a probability has many
LONG_RUN_MOVES_MAX = 50_000
TERMS = 20
SQUARINGS_MIN = 10
LOSS_MIN = 1e-280  # below it intermediate results may have lost digits to gradual underflow

Array: TypeAlias = npt.NDArray[np.float64]
State: TypeAlias = tuple[int, ...]
Moves: TypeAlias = Callable[[State], Iterable[tuple[float, State | None]]]


class TooLargeError(UsageError):
    """A chain of so many states that it would take minutes."""


def check_rate(name: str, value: float) -> None:
    """Refuse a rate, a time or an amount that is negative, infinite or no number."""
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name} {value}: a finite number that is not negative is needed")


def check_group(disks: int, tolerance: int) -> None:
    """Refuse a group without disks, and a tolerance that leaves none."""
    if disks < 1:
        raise UsageError(f"disks {disks}: a group has at least one")
    if not 0 <= tolerance < disks:
        raise UsageError(f"tolerance {tolerance}: of {disks} disks 0 to {disks - 1} may be lost")


def of_many(loss: float, survival: float, groups: int) -> float:
    """Probability that at least one of `groups` independent groups loses data, where one does with `loss` = 1 - `survival`. Both are
    given, because the small one of them does not follow from the other without a loss of digits.
    """
    if groups < 1:
        raise UsageError(f"groups {groups}: there is at least one")
    return -math.expm1(groups * _log_survival(loss, survival))


def _log_survival(loss: float, survival: float) -> float:
    if loss < 0.5:
        return math.log1p(-loss)
    return math.log(survival) if survival else -math.inf


class Chain:
    """States without loss, state 0 the first; `rates[i, j]` per hour from i to j (the diagonal is ignored), `loss[i]` from i to loss.

    `states` names them, one tuple each, for rewards that are functions of the state. Not to be changed once it is made.
    """

    def __init__(self, states: Sequence[State], rates: Array, loss: Array) -> None:
        count = len(states)
        if rates.shape != (count, count) or loss.shape != (count,):
            raise UsageError(f"rates {rates.shape} and loss {loss.shape} do not fit {count} states")
        values = np.append(rates, loss)
        for value in values[~(values >= 0) | np.isinf(values)][:1]:
            check_rate("rate", float(value))
        self.states = tuple(states)
        self.rates = rates * ~np.eye(count, dtype=bool)
        self.loss = loss

    @classmethod
    def explore(cls, start: State, moves: Moves, states_max: int = STATES_MAX, moves_max: int = MOVES_MAX) -> Chain:
        """The chain of all states that are reached from `start`. `moves(state)` gives (rate per hour, next state or None for loss);
        rates to the same state add up, rates of zero lead nowhere. TooLargeError as soon as there are more than `states_max` states, or
        `moves_max` moves.
        """
        seen = itertools.count(1)
        index = {start: 0}
        found: list[tuple[int, int, float]] = []
        queue = [start]
        for state in queue:
            for rate, target in moves(state):
                if len(queue) > states_max or next(seen) > moves_max:
                    raise TooLargeError(f"a Markov chain of more than {states_max} states, or {moves_max} moves, would take minutes")
                if rate == 0:
                    continue
                if target is not None and target not in index:
                    index[target] = len(queue)
                    queue.append(target)
                found.append((index[state], -1 if target is None else index[target], rate))
        rates = np.zeros((len(queue), len(queue) + 1))
        for source, to, rate in found:
            rates[source, to] += rate
        return cls(queue, rates[:, :-1], rates[:, -1])

    def reward(self, worth: Callable[[State], float]) -> Array:
        """The reward per hour of each state, `worth(state)`."""
        return np.array([worth(state) for state in self.states], dtype=np.float64)

    # --- until loss, and for ever ---------------------------------------------------------------------------------------------------

    def _regeneration(self, rewards: Sequence[Array]) -> tuple[float, Array]:
        """State 0 with all others eliminated: its rate of loss, and what each reward brings per hour in state 0, excursions included."""
        count = len(self.states)
        table = np.column_stack([self.rates, self.loss, *rewards])
        for last in range(count - 1, 0, -1):
            row = table[last]
            outflow = row[:last].sum() + row[count]
            if outflow == 0:
                if table[:last, last].any():
                    raise UsageError(
                        f"state {self.states[last]} is reached and never left: without a repair and without a failure there is no mean"
                    )
                continue
            share = table[:last, last] / outflow
            table[:last, :last] += np.outer(share, row[:last])  # the diagonal too: what comes back to a state, which nobody asks for
            table[:last, count:] += np.outer(share, row[count:])
        return float(table[0, count]), table[0, count + 1 :]

    def until_loss(self, *rewards: Array) -> list[float]:
        """The expected integral over time, from state 0 until loss, of each reward (inf where loss is never reached)."""
        loss, worth = self._regeneration(rewards)
        return [float(value / loss) if loss else (math.inf if value else 0.0) for value in worth]

    def long_run(self, *rewards: Array) -> list[float]:
        """The average of each reward over infinite time, in a chain without loss that comes back to state 0."""
        if self.loss.any():
            raise UsageError("a chain with loss has no long run: it is lost")
        _, worth = self._regeneration([*rewards, np.ones(len(self.states))])
        return [float(value / worth[-1]) for value in worth[:-1]]

    def mttdl_hours(self, groups: int = 1) -> float:
        """Mean time to the first loss of data in `groups` independent chains like this one, all of them in state 0 at the start.

        For more than one that is the integral of survival^groups, by Gauss-Legendre quadrature over intervals that double (a doubling is
        one squaring for all nodes at once). It is larger than MTTDL / groups where losses come nearly as early as repairs.
        """
        if groups < 1:
            raise UsageError(f"groups {groups}: there is at least one")
        single = self.until_loss(np.ones(len(self.states)))[0]
        if groups == 1 or math.isinf(single):
            return single
        nodes, weights = np.polynomial.legendre.leggauss(24)
        nodes, weights = (nodes + 1) / 2, weights / 2

        def mean_survival(matrices: Array) -> float:
            logs = [_log_survival(loss, survival) for survival, loss in map(self._survival_and_loss, matrices)]
            return float(weights @ np.exp(groups * np.array(logs)))

        span_hours = 1 / self._jumps_per_hour()
        total = span_hours * mean_survival(self._over(nodes * span_hours, ()))
        matrices = self._over((1 + nodes) * span_hours, ())
        while (piece := span_hours * mean_survival(matrices)) > 1e-17 * total / groups:
            total += piece
            span_hours *= 2
            matrices = self._normalised(matrices @ matrices)
        return total

    # --- by a time --------------------------------------------------------------------------------------------------------------------

    def loss_probability(self, hours: float, groups: int = 1) -> float:
        """P(loss by `hours`) of at least one of `groups` independent chains like this one, from state 0. Relative error 1e-12 down to
        1e-280; what is smaller, and not zero, is refused.
        """
        return self.loss_curve([hours], groups)[0]

    def loss_curve(self, hours: Sequence[float], groups: int = 1) -> list[float]:
        """`loss_probability` at each of many times, in any order, all at once."""
        pairs = [self._survival_and_loss(matrix) for matrix in self._over(np.array(hours, dtype=np.float64), ())]
        for time, (_, loss) in zip(hours, pairs, strict=True):
            if loss < LOSS_MIN and time > 0 and self._is_lossy():
                raise UsageError(
                    f"the probability of loss by {time} hours is below {LOSS_MIN}, where double precision ends: ask for a longer time"
                )
        return [of_many(loss, survival, groups) for survival, loss in pairs]

    def by(self, hours: float, *rewards: Array) -> list[float]:
        """The expected integral over time, from state 0 until `hours` or loss, of each reward."""
        return [float(value) for value in self._over(np.array([hours]), rewards)[0, 0, len(self.states) + 1 :]]

    def _is_lossy(self) -> bool:
        """Whether a loss is reached from state 0."""
        seen = np.zeros(len(self.states), dtype=bool)
        front = np.arange(len(self.states)) == 0
        while front.any():
            seen |= front
            front = (self.rates[front] > 0).any(axis=0) & ~seen
        return bool(self.loss[seen].any())

    def _survival_and_loss(self, matrix: Array) -> tuple[float, float]:
        count = len(self.states)
        return float(matrix[0, :count].sum()), float(matrix[0, count])

    def _jumps_per_hour(self) -> float:
        """The rate of the uniformised chain: twice the fastest outflow, so that 1 - outflow / rate is at least 1/2 and cancels nothing."""
        return 2 * float((self.rates.sum(axis=1) + self.loss).max()) or 1.0

    def _over(self, hours: Array, rewards: Sequence[Array]) -> Array:
        """The transition matrix over each of `hours`, (times, size, size): states, then loss, then rewards. Its first rows are the states';
        they hold probabilities of states and of loss, then expected integrals of the rewards.

        2^s steps of at most 1/4 expected jump, each by the first TERMS terms of the series: what is left out are histories with more jumps
        than that in one step, less than 2^s * (1/4)^21 / 21! of all. Of the histories that matter for a rare loss, which have L jumps
        somewhere in the whole time, C(L, 21) * 2^(-20 s) are left out: nothing, with s >= 10.
        """
        for time in hours:
            check_rate("hours", float(time))
        count, rate = len(self.states), self._jumps_per_hour()
        longest = rate * float(hours.max(initial=0.0))
        if math.isinf(longest):
            raise UsageError(f"hours {hours.max()}: too long for rates of {rate / 2} per hour")
        squarings = max(SQUARINGS_MIN, math.frexp(longest)[1] + 2)
        columns = np.column_stack([self.loss, *rewards])
        size = count + columns.shape[1]
        jump = np.eye(size)
        jump[:count, :count] = self.rates / rate
        np.fill_diagonal(jump[:count, :count], 1 - (self.rates.sum(axis=1) + self.loss) / rate)
        jump[:count, count:] = columns / rate
        steps = np.ldexp(rate * hours, -squarings)[:, np.newaxis, np.newaxis]
        power, factor = np.eye(size), np.ones_like(steps)
        matrices: Array = np.repeat(power[np.newaxis], len(hours), axis=0)
        for term in range(1, TERMS + 1):
            power = power @ jump
            factor = factor * steps / term
            matrices += factor * power
        matrices *= np.exp(-steps)
        matrices[:, count:] = np.eye(size)[count:]
        matrices = self._normalised(matrices)
        for _ in range(squarings):
            matrices = self._normalised(matrices @ matrices)
        return matrices

    def _normalised(self, matrices: Array) -> Array:
        """The matrices with the rows of the states scaled, in place, so that states and loss add up to 1."""
        count = len(self.states)
        matrices[:, :count] /= matrices[:, :count, : count + 1].sum(axis=-1, keepdims=True)
        return matrices


class Shock(msgspec.Struct, frozen=True):
    """Something that comes `per_hour` (Poisson) and kills `disks` of the group's places, chosen at random; a place that has no working
    disk loses nothing by it.
    """

    per_hour: float
    disks: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One group of `disks` that keeps its data while at most `tolerance` of them are lost. All times are exponential.

    Failures: each working disk fails with `failure_per_hour`; `shocks` kill several at once.

    Repair: each disk under repair comes back with `repair_per_hour`; at most `crews` are repaired at a time (None: all of them, "parallel";
    1: "serial").

    Spares: with `spares` = None a replacement is always at hand. With a number, a failed disk takes a spare, if one is left, and its
    rebuild starts; and a new disk is ordered at once, which a human brings with `replacement_per_hour` (each order by itself), for a disk
    that waits, or else as a spare. `spares` = 0 is the array without a hot spare, whose rebuild waits for a human. Spares do not fail.

    Latent errors: each working disk gets an unreadable spot with `latent_per_hour`; a scrub finds and mends it with `scrub_per_hour`, so
    1 / scrub_per_hour is the mean time that it lasts. Data are lost where the last redundancy fails while a survivor has such a spot; one
    that comes later, during the rebuild, is no loss (both as in Elerath & Pecht, DSN 2007). Spots of two disks never meet in one stripe.
    A Markov approximation: a disk has one spot or none, however many came. With tolerance 0 each spot is a loss.
    """

    disks: int
    tolerance: int
    failure_per_hour: float
    repair_per_hour: float
    crews: int | None = None
    spares: int | None = None
    replacement_per_hour: float = 0.0
    latent_per_hour: float = 0.0
    scrub_per_hour: float = 0.0
    shocks: tuple[Shock, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no group."""
        check_group(self.disks, self.tolerance)
        for name in RATES:
            check_rate(name, getattr(self, name))
        if self.crews is not None and self.crews < 1:
            raise UsageError(f"crews {self.crews}: at least one repairs, or None for one for each disk")
        if self.spares is not None and self.spares < 0:
            raise UsageError(f"spares {self.spares}: a number that is not negative, or None where a replacement is always at hand")
        for shock in self.shocks:
            check_rate("shock per_hour", shock.per_hour)
            if not 1 <= shock.disks <= self.disks:
                raise UsageError(f"shock disks {shock.disks}: a shock kills 1 to {self.disks} disks of this group")

    def chain(self) -> Chain:
        """The chain until the first loss. A state is (disks in rebuild, orders on the way, disks with a latent error)."""
        return Chain.explore((0, 0, 0), lambda state: self._moves(state, self.tolerance))

    def failed(self, state: State) -> int:
        """How many disks are lost in a state of the chain: in rebuild, or waiting for a replacement."""
        return state[0] + self._waiting(state[1])

    def losses_by_cause(self, chain: Chain) -> tuple[Array, Array, Array]:
        """Rewards for `chain.by`: losses per hour in each state at a failure of one disk too many, at a latent error, and by a shock."""

        def lost(**without: object) -> Array:
            only = msgspec.structs.replace(self, **without)
            return chain.reward(lambda state: sum(rate for rate, target in only._moves(state, self.tolerance) if target is None))

        failures, shocks = lost(shocks=(), latent_per_hour=0.0), lost(failure_per_hour=0.0, latent_per_hour=0.0)
        early = chain.reward(lambda state: float(self.failed(state) < self.tolerance))  # lost though redundancy was left
        return failures * (1 - early), failures * early + lost(shocks=(), failure_per_hour=0.0), shocks

    def unavailability(self, lost_shares: Sequence[float] | None = None) -> float:
        """The long-run share of time in which more than `tolerance` disks are down at once, if such a group is repaired like any other.

        lost_shares: instead, for 0 to `disks` lost disks, which share of their sets is without its data: by symmetry each set of k disks
        is as likely as any other.
        """
        shares = [float(k > self.tolerance) for k in range(self.disks + 1)] if lost_shares is None else lost_shares
        return self.long_run(shares)[0]

    def long_run(self, *worths: Sequence[float]) -> list[float]:
        """The long-run average of each worth, which worth[k] is with k of `disks` disks down, if a group that lost data is repaired like
        any other. The birth-death chain of the disks; latent errors take no disk and are left out.
        """
        whole = msgspec.structs.replace(self, latent_per_hour=0.0)
        chain = Chain.explore(
            (0, 0, 0), lambda state: whole._moves(state, self.disks), states_max=LONG_RUN_STATES_MAX, moves_max=LONG_RUN_MOVES_MAX
        )
        down = [self.failed(state) for state in chain.states]
        return chain.long_run(*(np.array([worth[k] for k in down]) for worth in worths))

    def _waiting(self, orders: int) -> int:
        return 0 if self.spares is None else max(orders - self.spares, 0)

    def _moves(self, state: State, tolerance: int) -> Iterator[tuple[float, State | None]]:
        rebuilding, orders, latent = state
        clean = self.disks - self.failed(state) - latent
        yield clean * self.failure_per_hour, self._struck(state, 1, 0, tolerance)
        yield latent * self.failure_per_hour, self._struck(state, 0, 1, tolerance)
        for shock in self.shocks:
            for hits in range(1, min(shock.disks, clean + latent) + 1):
                for dirty in range(max(0, hits - clean), min(hits, latent) + 1):
                    ways = math.comb(clean, hits - dirty) * math.comb(latent, dirty) * math.comb(self.failed(state), shock.disks - hits)
                    yield shock.per_hour * (ways / math.comb(self.disks, shock.disks)), self._struck(state, hits - dirty, dirty, tolerance)
        under_repair = rebuilding if self.crews is None else min(rebuilding, self.crews)
        yield under_repair * self.repair_per_hour, (rebuilding - 1, orders, latent)
        yield orders * self.replacement_per_hour, (rebuilding + (self._waiting(orders) > 0), orders - 1, latent)
        yield clean * self.latent_per_hour, (rebuilding, orders, latent + 1) if tolerance else None
        yield latent * self.scrub_per_hour, (rebuilding, orders, latent - 1)

    def _struck(self, state: State, clean: int, dirty: int, tolerance: int) -> State | None:
        """The state after `clean` disks and `dirty` ones (that have a latent error) have failed together; None where data are lost."""
        rebuilding, orders, latent = state
        failed = self.failed(state) + clean + dirty
        latent -= dirty
        if failed > tolerance or (failed == tolerance and latent):
            return None
        if self.spares is None:
            return rebuilding + clean + dirty, 0, latent
        started = min(clean + dirty, max(self.spares - orders, 0))
        return rebuilding + started, orders + clean + dirty, latent


class Sensitivity(msgspec.Struct, frozen=True):
    """What one input does to the probability of loss: `elasticity` = d ln P / d ln input (per cent of P for one per cent of the input),
    and P when the input is twice as good (half the rate of what harms, twice the rate of what mends).
    """

    name: str
    elasticity: float
    improved: float


RATES = {"failure_per_hour": 0.5, "repair_per_hour": 2.0, "replacement_per_hour": 2.0, "latent_per_hour": 0.5, "scrub_per_hour": 2.0}
"""Each rate of a group, and by what factor it is twice as good."""


def sensitivities(group: Group, hours: float, groups: int = 1) -> list[Sensitivity]:
    """How P(loss by `hours`) of `groups` groups answers to each rate that is not zero and to the number of disks (tolerance as it is;
    "improved" is one disk fewer), most effective improvement first.

    The model is evaluated anew each time. Elasticities to rates are central differences of ln P over a factor of e^0.001 each way, good
    to about 1e-6; the one to a mean time (MTTR) is minus that to its rate. The one to the number of disks is the difference between one
    more and one fewer.
    """

    def loss(**changes: float) -> float:
        return msgspec.structs.replace(group, **changes).chain().loss_probability(hours, groups)

    found = []
    factor = math.exp(1e-3)
    for name, better in RATES.items():
        if rate := getattr(group, name):
            slope = math.log(loss(**{name: rate * factor}) / loss(**{name: rate / factor})) / (2 * math.log(factor))
            found.append(Sensitivity(name, slope, loss(**{name: rate * better})))
    fewer = max(group.disks - 1, group.tolerance + 1, *(shock.disks for shock in group.shocks))
    improved = loss(disks=fewer)
    slope = math.log(loss(disks=group.disks + 1) / improved) / math.log((group.disks + 1) / fewer)
    found.append(Sensitivity("disks", slope, improved))
    return sorted(found, key=lambda one: one.improved)
