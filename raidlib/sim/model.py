"""What is simulated: frozen structs, each of which refuses what cannot be, by one UsageError that shows the value.

    rebuild = Repair(duration=Law.exponential(24))
    System(disks=10, tolerance=2, lifetime=Law.from_afr(0.02), repair=rebuild, mission_hours=5 * HOURS_PER_YEAR)

Times are hours, of which a year has 8760; rates are per hour or per year as their names say. The semantics of each part are those of
`struct rl_sim_model` in csrc/raidlib.h.
"""

from __future__ import annotations

import enum
import itertools
import math
import random
from collections.abc import Sequence
from typing import Literal

from ..errors import UsageError
from ..model import Struct, format_size

HOURS_PER_YEAR = 8760.0
DISKS_MAX = 1 << 20  # RL_SIM_DISKS_MAX
TABLE_DISKS_MAX = 24  # RL_SIM_TABLE_DISKS_MAX
SPARES_MAX = 4096  # RL_SIM_SPARES_MAX
_BATH = 1e12  # factors on a hazard are between its inverse and this


def check_number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> None:
    """A finite number within its bounds, or a UsageError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and above < value and least <= value <= most:
        return
    wants = [f"{word} {bound:g}" for word, bound in (("above", above), ("at least", least), ("at most", most)) if math.isfinite(bound)]
    raise UsageError(f"{name} {value!r}: a number {' and '.join(wants)} is needed")


def check_count(name: str, value: object, least: int, most: int) -> None:
    """A whole number within its bounds, or a UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} {value!r}: a whole number from {least} to {most} is needed")


class LawKind(enum.StrEnum):
    """The families of laws of a time."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    WEIBULL = "weibull"
    PIECEWISE = "piecewise"


class Law(Struct, frozen=True, kw_only=True):
    """The law of a time in hours: of a disk's life, a repair, a delivery, a scrub. Made by the class methods.

    weibull: P(longer than t) = exp(-((t - location) / scale)^shape), and 1 before the location, which is a shift.
    piecewise: the cumulative hazard is cumulative[k] at at_hours[k], straight in between, tail_per_hour after the last.
    """

    kind: LawKind
    scale_hours: float = 0.0  # constant, exponential: the mean
    shape: float = 1.0
    location_hours: float = 0.0
    at_hours: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()
    tail_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if self.kind is not LawKind.PIECEWISE:
            check_number(f"the scale of a {self.kind} law, hours,", self.scale_hours, above=0, most=1e30)
        if self.kind is LawKind.WEIBULL:
            check_number("the shape of a Weibull law", self.shape, above=0, most=1e3)
            check_number("the location of a Weibull law, hours,", self.location_hours, least=0, most=1e30)
        if self.kind is LawKind.PIECEWISE:
            self._check_knots()

    def _check_knots(self) -> None:
        if not self.at_hours or len(self.at_hours) != len(self.cumulative) or self.at_hours[0] != 0 or self.cumulative[0] != 0:
            raise UsageError(f"a piecewise law begins at 0 hours with 0, not with {self.at_hours[:1]} and {self.cumulative[:1]}")
        check_number("the hazard at a piecewise law's end, per hour,", self.tail_per_hour, least=0, most=1e30)
        for before, hours in itertools.pairwise(self.at_hours):
            check_number(f"the age after {before!r} of a piecewise law, hours,", hours, above=before)
        for before, hazard in itertools.pairwise(self.cumulative):
            check_number(f"the cumulative hazard after {before!r} of a piecewise law", hazard, least=before)

    @property
    def is_exponential(self) -> bool:
        """Whether it is without memory, whatever it is called."""
        weibull = self.kind is LawKind.WEIBULL and self.shape == 1 and self.location_hours == 0
        return weibull or self.kind is LawKind.EXPONENTIAL

    @classmethod
    def constant(cls, hours: float) -> Law:
        """Always so long."""
        return cls(kind=LawKind.CONSTANT, scale_hours=hours)

    @classmethod
    def exponential(cls, mean_hours: float) -> Law:
        """Without memory."""
        return cls(kind=LawKind.EXPONENTIAL, scale_hours=mean_hours)

    @classmethod
    def from_afr(cls, afr: float) -> Law:
        """Exponential, with `afr` failures a disk-year (0.02 for 2 %); 1 - exp(-afr) is the share that fails in a year."""
        check_number("the annualised failure rate", afr, above=0, most=8760)
        return cls.exponential(HOURS_PER_YEAR / afr)

    @classmethod
    def weibull(cls, shape: float, scale_hours: float, location_hours: float = 0.0) -> Law:
        """Weibull with three parameters. Shape above 1: wear-out; below: infant mortality."""
        return cls(kind=LawKind.WEIBULL, shape=shape, scale_hours=scale_hours, location_hours=location_hours)

    @classmethod
    def piecewise(cls, from_hours: Sequence[float], per_hour: Sequence[float]) -> Law:
        """Hazard per_hour[k] from age from_hours[k] on, which begins with 0 and ascends."""
        if not from_hours or len(from_hours) != len(per_hour):
            raise UsageError(f"a piecewise law has as many hazards as ages, not {len(per_hour)} and {len(from_hours)}")
        for rate in per_hour:
            check_number("a hazard per hour", rate, least=0)
        cumulative = [0.0]
        for k in range(1, len(from_hours)):
            cumulative.append(cumulative[-1] + per_hour[k - 1] * (from_hours[k] - from_hours[k - 1]))
        return cls(kind=LawKind.PIECEWISE, at_hours=tuple(from_hours), cumulative=tuple(cumulative), tail_per_hour=per_hour[-1])

    @classmethod
    def empirical(cls, shares: Sequence[float], hours: Sequence[float]) -> Law:
        """From quantiles: a share shares[k] (above 0, ascending, below 1) has ended by hours[k]. The hazard is constant between two of them
        and goes on after the last as before it: the logarithm of a survival curve, drawn straight from point to point.
        """
        if not shares or len(shares) != len(hours):
            raise UsageError(f"an empirical law has as many shares as hours, not {len(shares)} and {len(hours)}")
        before, knots = 0.0, [0.0, *hours]
        for share in shares:
            check_number(f"a share of an empirical law, after {before:g},", share, above=before)
            if share >= 1:
                raise UsageError(
                    f"share {share!r} of an empirical law: below 1 is needed, for nothing is known of what comes after all have ended"
                )
            before = share
        cumulative = [0.0, *(-math.log1p(-share) for share in shares)]
        span = knots[-1] - knots[-2]
        tail = (cumulative[-1] - cumulative[-2]) / span if span > 0 else 0.0  # __post_init__ refuses the span
        return cls(kind=LawKind.PIECEWISE, at_hours=tuple(knots), cumulative=tuple(cumulative), tail_per_hour=tail)


class Repair(Struct, frozen=True, kw_only=True):
    """A rebuild, from the moment at which a disk and a crew are there. crews: how many run at a time, None: all in parallel."""

    duration: Law
    crews: int | None = None

    def __post_init__(self) -> None:
        if self.crews is not None:
            check_count("crews", self.crews, 1, 1 << 31)

    @classmethod
    def from_bandwidth(cls, disk_bytes: float, bytes_per_s: float, crews: int | None = None) -> Repair:
        """Constant: the bytes of a disk at so many a second, as `raidlib drill` measures them."""
        check_number("the bytes of a disk", disk_bytes, above=0)
        check_number(f"the bandwidth of a rebuild of {format_size(disk_bytes)}, bytes a second,", bytes_per_s, above=0)
        return cls(duration=Law.constant(disk_bytes / bytes_per_s / 3600), crews=crews)


class Spares(Struct, frozen=True, kw_only=True):
    """`count` hot spares at the start. For every failure a disk is ordered, which a human brings after `replacement`, however many others
    are on their way; it goes to the failure that has waited for longest, else it is a spare. 0: every failure waits for its own.
    """

    count: int
    replacement: Law

    def __post_init__(self) -> None:
        check_count("spares", self.count, 0, SPARES_MAX)


class LatentErrors(Struct, frozen=True, kw_only=True):
    """Sectors that cannot be read, and nobody knows: on each disk one in `mean_hours`, each found by its own scrub after `scrub` (None:
    never).

    Per defect, as in Elerath & Pecht, "Enhanced reliability modeling of RAID storage systems" (DSN 2007): a failure that takes the last
    redundancy costs data if a disk that is now needed has an error at that moment; one that comes during the rebuild is not counted.
    Where losses are counted one after the other, none is while a disk is down after one, and the restore that ends it leaves no latent
    error.
    """

    mean_hours: float
    scrub: Law | None = None
    lost_bytes: float = 4096.0  # with one

    def __post_init__(self) -> None:
        check_number("the mean time to a latent error, hours,", self.mean_hours, above=0)
        check_number("the bytes that a latent error costs", self.lost_bytes, least=0)


class Shock(Struct, frozen=True, kw_only=True):
    """Something that strikes many disks at once (power, vibration, fire, firmware), `per_year` times a year: `kills` places of its scope,
    chosen evenly, or each of them with `probability`; the working disks in them fail. scope "shelf": each shelf has a stream of its own,
    so Shock(per_year=r, probability=1, scope="shelf") is the loss of whole enclosures.
    """

    per_year: float
    kills: int = 0
    probability: float = 0.0
    scope: Literal["system", "shelf"] = "system"

    def __post_init__(self) -> None:
        check_number("shocks a year", self.per_year, above=0)
        check_count("kills of a shock", self.kills, 0, DISKS_MAX)
        check_number("the probability that a shock kills a disk", self.probability, least=0, most=1)
        if (self.kills > 0) == (self.probability > 0):
            raise UsageError(f"a shock has kills {self.kills} and probability {self.probability:g}; give one of the two, above 0")


class Shelves(Struct, frozen=True, kw_only=True):
    """Enclosures of `disks` disks, in order. After a failure in one its disks have boost_factor times their hazard for boost_hours; two
    failures do not make it more, but longer.
    """

    disks: int
    boost_factor: float = 1.0
    boost_hours: float = 0.0

    def __post_init__(self) -> None:
        check_count("disks of a shelf", self.disks, 1, DISKS_MAX)
        check_number("the boost of a shelf", self.boost_factor, least=1, most=_BATH)
        check_number("the hours of a shelf's boost", self.boost_hours, least=0)


class Batches(Struct, frozen=True, kw_only=True):
    """Disks were bought in batches of `disks`, in order, each of which is bad with `probability`: `factor` times the hazard. Replacements
    are not of it.
    """

    disks: int
    probability: float
    factor: float

    def __post_init__(self) -> None:
        check_count("disks of a batch", self.disks, 1, DISKS_MAX)
        check_number("the probability of a bad batch", self.probability, least=0, most=1)
        check_number("the factor of a bad batch", self.factor, least=1 / _BATH, most=_BATH)


class Pool(Struct, frozen=True, kw_only=True):
    """Declustered placement: `groups` groups of `width` pieces each on other disks, of which `System.tolerance` may be lost.

    The disks are shuffled, by `seed`, again and again, and cut into groups: so each disk has the same number of pieces, to within one. A
    disk's pieces are rebuilt in the order of its groups, and are safe one by one.
    """

    groups: int
    width: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("groups of a pool", self.groups, 1, 1 << 26)
        check_count("the width of a pool's groups", self.width, 1, DISKS_MAX)

    def placement(self, disks: int) -> list[list[int]]:
        """The disks of each group."""
        shuffler = random.Random(self.seed)
        deck: list[int] = []
        groups: list[list[int]] = []
        while len(groups) < self.groups:
            group, deck = deck[: self.width], deck[self.width :]
            if len(group) < self.width:  # a new deck completes it, with disks that are not in it
                deck = list(range(disks))
                shuffler.shuffle(deck)
                chosen = [disk for disk in deck if disk not in group][: self.width - len(group)]
                deck = [disk for disk in deck if disk not in chosen]
                group += chosen
            groups.append(group)
        return groups


class System(Struct, frozen=True, kw_only=True):
    """A group of disks, or a pool of them, and its mission.

    tolerance: how many may be down at once, of the group, or of each group of the pool. lost_sets: instead, the verdict on every set, as
    `verdicts.lost_sets` makes it. spares: None: always one there. counting: False: a mission ends with its first loss, and P(loss) is
    asked; True: it goes on and all losses count (DDFs). usable_bytes: of all; None: bytes are not told.
    """

    disks: int
    lifetime: Law
    repair: Repair
    mission_hours: float
    tolerance: int = 0
    lost_sets: bytes | None = None
    spares: Spares | None = None
    latent: LatentErrors | None = None
    shocks: tuple[Shock, ...] = ()
    shelves: Shelves | None = None
    batches: Batches | None = None
    pool: Pool | None = None
    counting: bool = False
    usable_bytes: float | None = None

    def __post_init__(self) -> None:
        check_count("disks", self.disks, 1, DISKS_MAX)
        check_number("the mission, hours,", self.mission_hours, above=0, most=1e12)
        if self.lifetime.kind is LawKind.CONSTANT:
            raise UsageError("a lifetime is not constant; give it a law: exponential, weibull, piecewise or empirical")
        if self.usable_bytes is not None:
            check_number("usable bytes", self.usable_bytes, above=0)
        self._check_verdict()
        for shock in self.shocks:
            if shock.scope == "shelf" and self.shelves is None:
                raise UsageError("a shock has the scope 'shelf', and the system has no shelves; give `shelves`")
            scope = self.shelves.disks if shock.scope == "shelf" and self.shelves else self.disks
            if shock.kills > scope:
                raise UsageError(f"a shock kills {shock.kills} of {scope} disks; give at most {scope}")

    def _check_verdict(self) -> None:
        wide = self.pool.width if self.pool else self.disks
        if wide > self.disks:
            raise UsageError(f"groups of {wide} pieces do not fit on {self.disks} disks")
        check_count(f"the tolerance of {wide} disks,", self.tolerance, 0, wide - 1)
        if self.pool and (self.lost_sets is not None or self.latent is not None):
            raise UsageError("a pool takes neither lost_sets nor latent errors; give it a tolerance alone")
        if self.lost_sets is None:
            return
        if self.disks > TABLE_DISKS_MAX:
            raise UsageError(f"lost_sets of {self.disks} disks: at most {TABLE_DISKS_MAX} have a table; give a tolerance, or fewer disks")
        if len(self.lost_sets) != max(1, (1 << self.disks) // 8):
            raise UsageError(f"lost_sets of {self.disks} disks has {max(1, (1 << self.disks) // 8)} bytes, not {len(self.lost_sets)}")
        if self.lost_sets[0] & 1:
            raise UsageError("lost_sets says that data are lost where no disk is; make it by verdicts.lost_sets")
