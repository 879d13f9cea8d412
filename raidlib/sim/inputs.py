"""What people write of a study, as options or in a file, and what it means: "2%", "24h", "weibull:1.12:461386h".

    Inputs(level="6", raid_devices=10, afr="2%", mttr="24h").study()

Every time has its unit: s, min, h, d or y (of 8760 hours).
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from ..errors import UsageError
from ..model import Level, Status, Struct, parse_size
from .model import HOURS_PER_YEAR, Batches, LatentErrors, Law, Pool, Repair, Shelves, Shock, Spares
from .study import Method, Study
from .verdicts import Shape

_HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0, "y": HOURS_PER_YEAR}
_LAWS = (
    "24h (exponential, the mean), constant:24h, exponential:24h, weibull:1.12:461386h[:LOCATION], "
    "piecewise:0h=2%,1y=1%, empirical:1y=2%,5y=9%"
)
_AFR = "1.36%"  # of all drives in Backblaze's report for 2025


class Inputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The inputs by the names of `raidlib simulate`'s options, in which they are described; None: not given."""

    level: str | int | None = None
    raid_devices: int | None = None
    layout: str | None = None
    data: int | None = None
    parity: int | None = None
    groups: int | None = None
    pool_disks: int | None = None
    pool_groups: int | None = None
    afr: str | float | None = None
    mttf: str | None = None
    lifetime: str | None = None
    drive_stats: str | None = None
    drive_model: str | None = None
    mttr: str | None = None
    rebuild_rate: str | int | None = None
    size: str | int | None = None
    repair: str | int | None = None
    spares: int | None = None
    human: str | None = None
    lse: str | None = None
    scrub: str | None = None
    shock: str | tuple[str, ...] = ()
    shelf: str | None = None
    batch: str | None = None
    years: float | None = None
    count_losses: bool = False
    method: Method = "auto"
    relative_error: str | float = 0.01
    missions: int | None = None
    seed: int = 0

    def study(self, array: Status | None = None) -> Study:
        """The study; array: the status of a real one, whose shape and size of members it takes. UsageError names what does not fit."""
        notes: list[str] = []
        shape, size = self._shape_and_size(array, notes)
        return Study(
            shape=shape,
            lifetime=self._lifetime(notes),
            repair=self._repair(size, notes),
            years=5.0 if self.years is None else self.years,
            groups=1 if self.groups is None else self.groups,
            pool=self._pool(shape),
            pool_disks=self.pool_disks or 0,
            spares=self._spares(),
            latent=self._latent(),
            shocks=tuple(parse_shock(text) for text in ((self.shock,) if isinstance(self.shock, str) else self.shock)),
            shelves=None if self.shelf is None else parse_shelf(self.shelf),
            batches=None if self.batch is None else parse_batch(self.batch),
            counting=self.count_losses,
            disk_bytes=size,
            method=self.method,
            relative_error=parse_share("relative error", self.relative_error),
            missions=self.missions,
            seed=self.seed,
            notes=tuple(notes),
        )

    def _shape_and_size(self, array: Status | None, notes: list[str]) -> tuple[Shape, float | None]:
        size = None if self.size is None else float(parse_size(self.size))
        if array is None:
            return self._shape(), size
        for name in ("level", "raid_devices", "layout", "data", "parity", "size"):
            if getattr(self, name) is not None:
                raise UsageError(f"the shape is ARRAY's: --{name.replace('_', '-')} goes with --level, without ARRAY")
        shape, size = shape_of(array)
        notes.append(f"Shape and size of the members as their superblocks say ({array.name or array.uuid}).")
        if array.worst().degraded:
            notes.append("The array is degraded now; the mission begins with a whole one.")
        return shape, size

    def _shape(self) -> Shape:
        if self.level is None:
            raise UsageError("no array is named and no level is given; say ARRAY, or --level 6 --raid-devices 10")
        level = Level.parse(self.level)
        disks, parity = self.raid_devices, self.parity
        if level is Level.RS:
            if self.data is not None:
                parity = (None if disks is None else disks - self.data) if parity is None else parity
                disks = self.data + (parity or 0) if disks is None else disks
            if disks is None or parity is None:
                raise UsageError("level rs needs two of --data, --parity and --raid-devices, as in --data 10 --parity 4")
            if not 1 <= parity < disks or (self.data is not None and self.data + parity != disks):
                data = disks - parity if self.data is None else self.data
                raise UsageError(f"level rs: {data} data and {parity} parity are no {disks} disks; at least one of each is needed")
        elif self.data is not None or parity is not None:
            raise UsageError(f"--data and --parity are of level rs; level {level} has --raid-devices")
        if disks is None:
            raise UsageError(f"how many disks does the {level} have? --raid-devices 10")
        return Shape(level=level, members=disks, layout=self.layout, parity=parity)

    def _pool(self, shape: Shape) -> Pool | None:
        if self.pool_disks is None:
            if self.pool_groups is not None:
                raise UsageError("pool groups without pool disks: --pool-disks says how many disks the groups are spread over")
            return None
        groups = self.pool_disks if self.pool_groups is None else self.pool_groups
        return Pool(groups=groups, width=shape.disks, seed=self.seed)

    def _lifetime(self, notes: list[str]) -> Law:
        given = [name for name in ("afr", "mttf", "lifetime", "drive_stats") if getattr(self, name) is not None]
        if given == ["lifetime", "drive_stats"] and self.lifetime == "weibull":
            given = ["drive_stats"]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1].replace('_', '-')} both say how long disks live; give one of them")
        if self.drive_stats is not None:
            stamp = max((path.stat().st_mtime for path in Path(self.drive_stats).rglob("*.csv")), default=0.0)
            law, note = _of_drive_stats(self.drive_stats, self.drive_model, self.lifetime is not None, stamp)
            notes.append(note)
            return law
        if self.drive_model is not None:
            raise UsageError(f"--drive-model {self.drive_model} is of --drive-stats DIR, which is not given")
        if self.afr is not None:
            return Law.from_afr(parse_share("annualised failure rate", self.afr, most=HOURS_PER_YEAR))
        if self.mttf is not None:
            return Law.exponential(parse_hours("mean time to failure", self.mttf))
        if self.lifetime == "weibull":
            raise UsageError("lifetime 'weibull' alone is fitted to --drive-stats DIR; else give it its numbers, weibull:1.12:461386h")
        if self.lifetime is not None:
            return parse_law("lifetime", self.lifetime)
        notes.append(f"No failure rate was given: {_AFR} a year, which is that of Backblaze's drives in 2025.")
        return Law.from_afr(parse_share("annualised failure rate", _AFR))

    def _repair(self, size: float | None, notes: list[str]) -> Repair:
        crews = parse_repair("parallel" if self.repair is None else self.repair)
        if self.rebuild_rate is None:
            if self.mttr is None:
                notes.append("No time of a repair was given: 24 hours.")
            return Repair(duration=parse_law("time of a repair", "24h" if self.mttr is None else self.mttr), crews=crews)
        if self.mttr is not None:
            raise UsageError("--mttr and --rebuild-rate both say how long a repair takes; give one of them")
        if size is None:
            raise UsageError("--rebuild-rate needs the size of a disk: --size 8T")
        return Repair.from_bandwidth(size, parse_size(self.rebuild_rate), crews)

    def _spares(self) -> Spares | None:
        if self.human is None:
            if self.spares is not None:
                raise UsageError(f"--spares {self.spares} needs the time until a human brings the next disk: --human 72h")
            return None
        return Spares(count=self.spares or 0, replacement=parse_law("time until a disk is brought", self.human))

    def _latent(self) -> LatentErrors | None:
        if self.lse is None:
            if self.scrub is not None:
                raise UsageError(f"--scrub {self.scrub} without latent errors: --lse 9259h says how often a disk has one")
            return None
        scrub = None if self.scrub is None else parse_law("time until a scrub", self.scrub)
        return LatentErrors(mean_hours=parse_hours("mean time to a latent error", self.lse), scrub=scrub)


@functools.lru_cache(maxsize=64)
def _of_drive_stats(folder: str, model: str | None, weibull: bool, stamp: float) -> tuple[Law, str]:
    """The law of the drives in a folder of daily files, and where it is from. Read once, until a file changes (`stamp`)."""
    from . import fits

    stats = fits.read_drive_stats(folder)
    if weibull:
        fit = fits.fit_weibull(fits.lifetimes(stats, model))
        interval = f"shape {fit.shape:.3g} [{fit.shape_low:.3g}, {fit.shape_high:.3g}]"
        note = f"Lives of {model or 'all drives'} in {folder}: Weibull fit to {fit.failures} failures, {interval}."
        return Law.weibull(fit.shape, fit.scale_hours), note
    all_rates = fits.failure_rates(stats)
    rates = [rate for rate in all_rates if model in (None, rate.model)]
    if not rates:
        if not all_rates:
            raise UsageError(f"{folder}: its files have no row of a drive, only headers")
        known = ", ".join(rate.model for rate in all_rates[:5])
        raise UsageError(f"model {model}: no such drive is in {folder}; there are {known}")
    total = fits.annualised(sum(rate.failures for rate in rates), sum(rate.drive_days for rate in rates))
    what = f"{model or 'All drives'} in {folder}: {total.failures} failures in {total.drive_days} drive-days"
    if not total.failures:
        note = f"{what}; the upper bound of the rate is used, {100 * total.high:.3g} % a year (95 %, exact)."
        return Law.from_afr(total.high), note
    note = f"{what}, {100 * total.per_year:.3g} % a year [{100 * total.low:.3g}, {100 * total.high:.3g}] (95 %, exact)."
    return Law.from_afr(total.per_year), note


def shape_of(status: Status) -> tuple[Shape, float]:
    """The shape of a real array, of arrays too, and the bytes that it uses of its smallest disk."""
    level = Level.parse(status.level)
    inner = [shape_of(member.array) for member in status.members if member.slot is not None and member.array is not None]
    members: int | tuple[Shape, ...] = status.raid_devices
    size = float(status.dev_size) or float(min((m.size for m in status.members if m.size), default=0))
    if inner:
        if len(inner) < status.raid_devices:
            raise UsageError(
                f"{len(inner)} of the {status.raid_devices} arrays that are its members are here; the shape of the others is not known"
            )
        members, size = tuple(shape for shape, _ in inner), min(bytes_ for _, bytes_ in inner)
    parity = status.raid_devices - status.size // status.dev_size if level is Level.RS else None
    return Shape(level=level, members=members, layout=status.layout, parity=parity), size


# --- Words ----------------------------------------------------------------------------------------------------------------------------


def parse_hours(name: str, text: Any) -> float:
    """Hours from "24h", "30min", "5y": a positive time with its unit."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(s|min|h|d|y)\s*", text.lower()) if isinstance(text, str) else None
    try:
        hours = float(match[1]) * _HOURS[match[2]] if match else math.nan
    except ValueError:
        hours = math.nan
    if not (math.isfinite(hours) and hours > 0):
        raise UsageError(f"{name} {text!r}: a time above 0 with its unit is needed, as 24h, 30min, 7d, 5y")
    return hours


def parse_share(name: str, text: Any, *, most: float = 1.0, zero: bool = False) -> float:
    """0.02 from "2%" or 0.02; above 0 (or 0, where `zero` may be), at most `most`."""
    try:
        value = float(text[:-1]) / 100 if isinstance(text, str) and text.strip().endswith("%") else float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 or (zero and value == 0)) or value > most:
        raise UsageError(f"{name} {text!r}: a number {'of at least' if zero else 'above'} 0 and at most {most:g} is needed, as 2% or 0.02")
    return value


def parse_repair(text: str | int) -> int | None:
    """How many repairs run at a time: "parallel" (None), "serial" (1), or a number."""
    word = str(text).strip().lower()
    if word in ("parallel", "serial"):
        return None if word == "parallel" else 1
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"repair {text!r}: parallel, serial, or how many disks are rebuilt at a time")
    return int(word)


def parse_law(name: str, text: str) -> Law:
    """The law of a time."""
    kind, _, rest = str(text).strip().lower().partition(":")
    parts = rest.split(":")
    try:
        match kind:
            case "constant" if len(parts) == 1:
                return Law.constant(parse_hours(name, rest))
            case "exponential" if len(parts) == 1:
                return Law.exponential(parse_hours(name, rest))
            case "weibull" if len(parts) in (2, 3):
                location = parse_hours(name, parts[2]) if len(parts) == 3 else 0.0
                return Law.weibull(float(parts[0]), parse_hours(name, parts[1]), location)
            case "piecewise" | "empirical":
                pairs = [piece.split("=") for piece in rest.split(",")]
                zero = kind == "piecewise"
                shares = [parse_share(name, share, most=HOURS_PER_YEAR if zero else 1.0, zero=zero) for _, share in pairs]
                if kind == "empirical":
                    return Law.empirical(shares, [parse_hours(name, at) for at, _ in pairs])
                first = [0.0 if float(re.sub("[a-z]", "", at) or "nan") == 0 else parse_hours(name, at) for at, _ in pairs]
                return Law.piecewise(first, [share / HOURS_PER_YEAR for share in shares])
            case _ if not rest:
                return Law.exponential(parse_hours(name, text))
    except UsageError:
        raise
    except ValueError:
        pass
    raise UsageError(f"{name} {text!r} is no law of a time; there are {_LAWS}")


def parse_shock(text: str) -> Shock:
    """0.001:2 is 0.001 times a year two disks; 0.01:50%:shelf each disk of a shelf with probability 0.5."""
    parts = str(text).split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("system", "shelf")):
        raise UsageError(f"shock {text!r}: PER_YEAR:DISKS or PER_YEAR:PROBABILITY%, as 0.001:2 or 0.01:50%:shelf")
    rate = parse_share("shocks a year", parts[0], most=HOURS_PER_YEAR)
    scope: Any = parts[2] if len(parts) == 3 else "system"
    if parts[1].isdecimal():
        return Shock(per_year=rate, kills=int(parts[1]), scope=scope)
    return Shock(per_year=rate, probability=parse_share("probability that a shock kills a disk", parts[1]), scope=scope)


def _count(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"{name} {text!r}: a whole number is needed")
    return int(text)


def parse_shelf(text: str) -> Shelves:
    """12 is 12 disks; 12:5:24h: after a failure 5 times the hazard for 24 hours."""
    parts = str(text).split(":")
    if len(parts) not in (1, 3):
        raise UsageError(f"shelf {text!r}: DISKS, or DISKS:FACTOR:TIME, as 12:5:24h")
    disks = _count("disks of a shelf", parts[0])
    if len(parts) == 1:
        return Shelves(disks=disks)
    factor = parse_share("factor of a shelf", parts[1], most=1e12)
    return Shelves(disks=disks, boost_factor=factor, boost_hours=parse_hours("time of a shelf's boost", parts[2]))


def parse_batch(text: str) -> Batches:
    """12:10%:3 is batches of 12 disks, a tenth of them bad, with 3 times the hazard."""
    parts = str(text).split(":")
    if len(parts) != 3:
        raise UsageError(f"batch {text!r}: DISKS:PROBABILITY:FACTOR, as 12:10%:3")
    disks, factor = _count("disks of a batch", parts[0]), parse_share("factor of a bad batch", parts[2], most=1e12)
    return Batches(disks=disks, probability=parse_share("probability of a bad batch", parts[1], zero=True), factor=factor)


def inputs_of(words: dict[str, Any], where: str = "") -> Inputs:
    """Inputs from names and values; a name that is not known, or a value of another kind, is one UsageError."""
    try:
        return msgspec.convert(words, Inputs)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}{error}".replace("Object contains unknown field", "there is no input")) from None
