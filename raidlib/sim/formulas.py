"""The closed formulas of the literature for the durability of redundant storage, each with its source and what it leaves out.

They are for comparison: with papers, with other tools, and with `raidlib.sim.chains`, which needs none of their approximations. Times in
hours unless a name says otherwise, rates per hour; a year has 8760 hours but where a source says otherwise. The MTTDL formulas take floats,
or fractions, and then answer exactly. Small probabilities are summed from positive terms, so that they keep their digits.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeVar

import msgspec

from raidlib.errors import UsageError
from raidlib.sim.chains import HOURS_PER_YEAR, check_group, check_rate

__all__ = [
    "DataLoss",
    "WindowLoss",
    "ceph_rados_loss",
    "ceph_raid_loss",
    "clustered_data_loss",
    "copyset_loss",
    "declustered_data_loss",
    "k_of_n_loss",
    "mttdl_ford",
    "mttdl_leading",
    "mttdl_patterson",
    "mttdl_single_parity",
    "nines",
    "window_loss",
]

Real = TypeVar("Real", float, Fraction)


def _positive(**values: float | Fraction) -> None:
    for name, value in values.items():
        check_rate(name, float(value))
        if not value:
            raise UsageError(f"{name} 0: the formula divides by it")


def nines(loss: float) -> float:
    """How many nines a probability of loss leaves, -log10(loss): 6.8 for 1.5e-7, inf for 0."""
    if not 0 <= loss <= 1:
        raise UsageError(f"loss {loss}: a probability is 0 to 1")
    return -math.log10(loss) if loss else math.inf


# --- mean time to data loss -----------------------------------------------------------------------------------------------------


def mttdl_patterson(data_disks: int, group_data: int, group_check: int, mttf_hours: Real, mttr_hours: Real) -> Real:
    """MTTF^2 / (N * (G + C - 1) * MTTR): N disks in all, in groups of G data and C check disks, one failure each (Patterson, Gibson &
    Katz, SIGMOD 1988, section 7). Leaves out that a second failure shortens the time to the third: right for MTTR much smaller than MTTF.
    """
    _positive(mttf_hours=mttf_hours, mttr_hours=mttr_hours)
    if data_disks < 1 or group_data < 1 or group_check < 1 or data_disks % group_data:
        raise UsageError(f"{data_disks} data disks in groups of {group_data} data and {group_check} check disks: whole groups are needed")
    disks = data_disks // group_data * (group_data + group_check)
    return mttf_hours * mttf_hours / (disks * (group_data + group_check - 1) * mttr_hours)


def mttdl_leading(disks: int, tolerance: int, mttf_hours: Real, mttr_hours: Real, crews: int | None = 1) -> Real:
    """MTTF^(m+1) / (n (n-1) ... (n-m) MTTR^m), the term of highest order of the chain of n disks that survives m failures (Chen et al., ACM
    Computing Surveys 26, 1994). With more crews than one (None: a crew for each disk) it is larger, by 2 * 3 * ... up to the crews.
    """
    check_group(disks, tolerance)
    _positive(mttf_hours=mttf_hours, mttr_hours=mttr_hours)
    if crews is not None and crews < 1:
        raise UsageError(f"crews {crews}: at least one repairs, or None for one for each disk")
    repairs = math.prod(min(failed, crews or failed) for failed in range(1, tolerance + 1))
    return mttf_hours ** (tolerance + 1) * repairs / (math.perm(disks, tolerance + 1) * mttr_hours**tolerance)


def mttdl_single_parity(disks: int, failure_per_hour: Real, repair_per_hour: Real) -> Real:
    """(mu + (2n - 1) lambda) / (n (n - 1) lambda^2): exact for the chain of n disks that survives one failure (Greenan, Plank & Wylie,
    "Mean time to meaningless", HotStorage 2010, section 2).
    """
    check_group(disks, 1)
    _positive(failure_per_hour=failure_per_hour)
    check_rate("repair_per_hour", float(repair_per_hour))
    return (repair_per_hour + (2 * disks - 1) * failure_per_hour) / (disks * (disks - 1) * failure_per_hour * failure_per_hour)


def mttdl_ford(chunks: int, minimum: int, failure_rate: Real, recovery_rate: Real) -> Real:
    """Mean time until fewer than `minimum` of `chunks` are left: 1/lambda * sum over k = 0..s-r, i = 0..k of (rho/lambda)^i /
    ((s-k+i) (s-k+i-1) ... (s-k)) (Ford et al., "Availability in globally distributed storage systems", OSDI 2010, section 8).

    Exact for one recovery at a time. The mean is in the unit of the rates: per day gives days.
    """
    if not 1 <= minimum <= chunks:
        raise UsageError(f"minimum {minimum}: 1 to {chunks} of {chunks} chunks are needed")
    _positive(failure_rate=failure_rate)
    check_rate("recovery_rate", float(recovery_rate))
    ratio = recovery_rate / failure_rate
    total = sum(
        (ratio**i / math.perm(chunks - k + i, i + 1) for k in range(chunks - minimum + 1) for i in range(k + 1)),
        start=failure_rate - failure_rate,
    )
    return total / failure_rate


# --- probabilities of loss ------------------------------------------------------------------------------------------------------


def k_of_n_loss(disks: int, tolerance: int, disk_loss: float, groups: int = 1) -> float:
    """Probability that one of `groups` groups loses more than `tolerance` of its disks, if each is lost with `disk_loss` by itself: 1 -
    (1 - binomial tail)^groups. Without repair and time: the formula of the R2-C2 calculator of pools of RAID-Z groups (jro.io).
    """
    if not 0 <= disk_loss <= 1:
        raise UsageError(f"disk_loss {disk_loss}: a probability is 0 to 1")
    return _any_of(groups, _tail(disks, tolerance, disk_loss, 1 - disk_loss))


def _tail(disks: int, tolerance: int, lost: float, kept: float) -> float:
    """P(more than `tolerance` of `disks` are lost)."""
    check_group(disks, tolerance)
    return math.fsum(math.comb(disks, j) * lost**j * kept ** (disks - j) for j in range(tolerance + 1, disks + 1))


def _any_of(times: float, loss: float) -> float:
    """P(at least once in `times` independent trials)."""
    if times <= 0:
        raise UsageError(f"groups {times}: there is at least one")
    return -math.expm1(times * math.log1p(-loss)) if loss < 1 else 1.0


class WindowLoss(msgspec.Struct, frozen=True):
    """Probability of loss in one repair window, and in the windows of one year."""

    window: float
    annual: float


def window_loss(disks: int, tolerance: int, failures_per_year: float, window_days: float) -> WindowLoss:
    """A year is cut into windows as long as a repair; data are lost where more than `tolerance` of the disks fail in one of them
    (Backblaze, "Cloud storage durability", 2018, and its program erasure-coding-durability). A year has 365 days, and a fraction of a
    window counts as such.

    Leaves out failures that fall into two windows and still overlap, so it is too small by about the factor tolerance + 1.
    """
    check_rate("failures_per_year", failures_per_year)
    _positive(window_days=window_days)
    expected = failures_per_year * window_days / 365
    window = _tail(disks, tolerance, -math.expm1(-expected), math.exp(-expected))
    return WindowLoss(window, _any_of(365 / window_days, window))


def copyset_loss(nodes: int, failed: int, replicas: int, copysets: int) -> float:
    """Probability that `failed` of `nodes` nodes, lost at once, hold all replicas of something, with `copysets` random sets of `replicas`
    nodes in use: 1 - (1 - C(F,R)/C(N,R))^copysets (Cidon et al., "Copysets", ATC 2013). The sets are taken as independent.
    """
    check_rate("copysets", copysets)
    if not 1 <= replicas <= nodes or not 0 <= failed <= nodes:
        raise UsageError(f"{failed} failed nodes and {replicas} replicas: of {nodes} nodes")
    hit = math.comb(failed, replicas) / math.comb(nodes, replicas)
    return _any_of(copysets, hit) if copysets else 0.0


CEPH_HOURS_PER_YEAR = 8766.0  # ceph-tools counts 365.25 days


def _within(expected: float) -> float:
    return -math.expm1(-expected)


def ceph_raid_loss(
    disks: int,
    parity: int,
    failures_per_1e9_hours: float = 826.0,
    disk_bytes: float = 2e12,
    recovery_bytes_per_second: float = 20e6,
    replacement_hours: float = 6.0,
) -> float:
    """P(loss of a RAID set by whole disks in a year of 8766 h) as ceph-tools (models/reliability, RaidRely) has it: any of n disks fails in
    the year, then any of the n - 1 others within the replacement and the rebuild of the first, and so on, each with the whole time anew.

    The defaults are the tool's: an "enterprise" disk (826 FIT) of 2 TB (its "2 TiB" is decimal), 20 MB/s, 6 h. Unreadable sectors are
    reckoned apart there.
    """
    check_group(disks, parity)
    _positive(recovery_bytes_per_second=recovery_bytes_per_second)
    failure_per_hour = failures_per_1e9_hours * 1e-9
    hours = replacement_hours + disk_bytes / recovery_bytes_per_second / 3600
    check_rate("failures_per_1e9_hours", failures_per_1e9_hours)
    check_rate("hours of recovery", hours)
    first = _within(disks * failure_per_hour * CEPH_HOURS_PER_YEAR)
    return first * math.prod(_within((disks - lost) * failure_per_hour * hours) for lost in range(1, parity + 1))


def ceph_rados_loss(
    copies: int,
    failures_per_1e9_hours: float = 826.0,
    disk_bytes: float = 2e12,
    recovery_bytes_per_second: float = 50e6,
    markout_hours: float = 1 / 6,
    placement_groups: int = 200,
    fullness: float = 0.75,
) -> float:
    """P(a placement group loses all its copies by whole disks in a year of 8766 h) as ceph-tools (models/reliability, RadosRely) has it:
    any of the copies' disks fails in the year, and in the time until it is marked out and recovered (declustered over `placement_groups`
    partners) a partner of each further copy.

    The defaults are the tool's: an "enterprise" disk (826 FIT) of 2 TB (its "2 TiB" is decimal), three quarters full, 50 MB/s for each
    partner, 10 minutes.
    """
    if copies < 1:
        raise UsageError(f"copies {copies}: there is at least one")
    _positive(recovery_bytes_per_second=recovery_bytes_per_second, placement_groups=placement_groups)
    failure_per_hour = failures_per_1e9_hours * 1e-9
    hours = markout_hours + disk_bytes * fullness / (recovery_bytes_per_second * placement_groups) / 3600
    check_rate("failures_per_1e9_hours", failures_per_1e9_hours)
    check_rate("hours of recovery", hours)
    first = _within(copies * failure_per_hour * CEPH_HOURS_PER_YEAR)
    return first * math.prod(_within(left * placement_groups * failure_per_hour * hours) for left in range(1, copies))


# --- amounts of data ------------------------------------------------------------------------------------------------------------------


class DataLoss(msgspec.Struct, frozen=True):
    """Mean time to data loss of a whole system; the fraction of its user data that is expected to be lost in a year (EAFDL); and the user
    data that one loss costs, E(H), as a multiple of the data on one device.
    """

    mttdl_years: float
    annual_fraction: float
    lost_per_device: float


def clustered_data_loss(devices: int, codeword: int, data: int, mttf_hours: float, rebuild_hours: float, moment: float = 1.0) -> DataLoss:
    """Devices in groups of `codeword` (m), of which any `data` (l) suffice; a rebuild takes `rebuild_hours` (c/b) and runs most exposed
    data first (Iliadis & Venkatesan, "Reliability evaluation of erasure coded systems", Int. J. Advances in Telecommunications 10, 2017,
    eq. 68-70).

    `moment` is E(X^(m-l)) / E(X)^(m-l) of the rebuild time: 1 if it is constant, (m-l)! if it is exponential. Right for rebuilds much
    shorter than lifetimes, whatever the lifetimes' distribution.
    """
    if devices % max(codeword, 1):
        raise UsageError(f"devices {devices}: whole groups of {codeword} are needed")
    rebuilds = [rebuild_hours] * (codeword - data)
    return _data_loss(devices, codeword, data, codeword, mttf_hours, rebuilds, moment)


def declustered_data_loss(devices: int, codeword: int, data: int, mttf_hours: float, copy_hours: float, moment: float = 1.0) -> DataLoss:
    """As `clustered_data_loss`, with codewords over all sets of devices. `copy_hours` is the data of one device over the bandwidth that
    each device gives to rebuilds, c/b; n - u survivors rebuild together, and each block costs `data` reads and a write (no limit by the
    network).
    """
    rebuilds = [copy_hours * (data + 1) / (devices - lost) for lost in range(1, codeword - data + 1)]
    return _data_loss(devices, codeword, data, devices, mttf_hours, rebuilds, moment)


def _data_loss(devices: int, codeword: int, data: int, spread: int, mttf_hours: float, rebuilds: list[float], moment: float) -> DataLoss:
    """`rebuilds[u-1]`: hours to rebuild one whole device with u lost; `spread`: how many devices share codewords with one.

    When the u-th device of the codewords at stake is lost, (spread - u) others can be the next, a fraction (m - u)/(spread - u) of the data
    at stake is on each of them, and of what is being rebuilt a uniform fraction is left: hence 1/(m-l)!, and 1/(m-l+1) in E(H).
    """
    tolerance = codeword - data
    check_group(codeword, tolerance)
    _positive(mttf_hours=mttf_hours, moment=moment)
    if devices < codeword:
        raise UsageError(f"devices {devices}: a codeword of {codeword} needs as many")
    share = [(codeword - lost) / (spread - lost) for lost in range(1, tolerance + 1)]
    loss_after_failure = moment / math.factorial(tolerance)
    for lost in range(1, tolerance + 1):
        check_rate("hours of rebuild", rebuilds[lost - 1])
        loss_after_failure *= (spread - lost) * rebuilds[lost - 1] / mttf_hours * share[lost - 1] ** (tolerance - lost)
    losses_per_hour = devices / mttf_hours * loss_after_failure
    lost_per_device = data / (tolerance + 1) * math.prod(share)
    if not losses_per_hour:
        return DataLoss(math.inf, 0.0, lost_per_device)
    fraction = lost_per_device * codeword / (devices * data) * losses_per_hour * HOURS_PER_YEAR
    return DataLoss(1 / losses_per_hour / HOURS_PER_YEAR, fraction, lost_per_device)
