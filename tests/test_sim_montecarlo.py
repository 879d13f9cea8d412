"""The simulator by chance: against exact values, against a simulation that shares nothing with it, and what it says of its own error."""

import math
import random
import signal
import statistics
import time

import pytest
from naive_simulation import Naive, estimate

from raidlib import sim
from raidlib.engine import ffi, lib
from raidlib.errors import UsageError
from raidlib.model import Level
from raidlib.sim import montecarlo, verdicts
from raidlib.sim.inputs import Inputs
from raidlib.sim.model import HOURS_PER_YEAR, Batches, LatentErrors, Law, Pool, Repair, Shelves, Shock, Spares, System
from raidlib.sim.montecarlo import Block, Kernel, Sums, simulate

DAY = Law.exponential(24)
EIGHT_PLUS_TWO = {
    "disks": 10,
    "tolerance": 2,
    "lifetime": Law.from_afr(0.02),
    "repair": Repair(duration=DAY),
    "mission_hours": HOURS_PER_YEAR,
}
TEN_PLUS_FOUR = dict(EIGHT_PLUS_TWO, disks=14, tolerance=4, lifetime=Law.from_afr(0.01))
SERIAL = Repair(duration=DAY, crews=1)


def rare(missions, seed=1, **system):
    return simulate(System(**system), method="rare", missions=missions, seed=seed)


def z_of(estimate, exact):
    return (estimate.p_loss - exact) / estimate.p_loss_se


# --- Exact values (sim_cases.csv) -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "exact", "error_most"),
    [
        (EIGHT_PLUS_TWO | {"repair": SERIAL}, 4.295588269e-8, 0.01),  # D11
        (EIGHT_PLUS_TWO, 2.151223873e-8, 0.01),
        (TEN_PLUS_FOUR | {"repair": SERIAL}, 1.337833889e-15, 0.025),  # D13
        (TEN_PLUS_FOUR, 5.60506321e-17, 0.02),
        (EIGHT_PLUS_TWO | {"disks": 2, "tolerance": 1, "lifetime": Law.from_afr(0.05)}, 1.365541048398e-5, 0.01),  # D09
        (
            EIGHT_PLUS_TWO | {"disks": 20, "tolerance": 3, "lifetime": Law.from_afr(0.05), "repair": Repair(duration=Law.exponential(168))},
            8.0442168e-7,  # D10
            0.01,
        ),
        (EIGHT_PLUS_TWO | {"shocks": (Shock(per_year=0.001, kills=2),)}, 6.809156687e-7, 0.01),  # D21
        # D20, by its mean time to data loss: one year of so many
        (EIGHT_PLUS_TWO | {"spares": Spares(count=0, replacement=Law.exponential(72))}, 1 / 2899667.65, 0.01),
        (EIGHT_PLUS_TWO | {"spares": Spares(count=1, replacement=Law.exponential(72))}, 1 / 31757112.91, 0.01),
    ],
    ids=["D11 serial", "D11 parallel", "D13 serial", "D13 parallel", "D09", "D10", "D21", "D20 no spare", "D20 one spare"],
)
def test_rare_losses_have_their_exact_probability(system, exact, error_most):
    """D14: |z| < 4 and a small standard error. A year starts with all disks up, which makes it 0.3 % better than one of many (D20)."""
    answer = rare(400_000 if exact > 1e-12 else 1_000_000, **system)
    assert answer.p_loss_se / answer.p_loss <= error_most
    slack = 0.005 * exact if "spares" in system else 0.0
    slack *= 3 if "spares" in system and system["spares"].count == 0 else 1  # 96 hours down, and not 24
    assert abs(answer.p_loss - exact) < 4 * answer.p_loss_se + slack


@pytest.mark.parametrize(
    ("lifetime", "hazard"),
    [(Law.exponential(1e5), 4 * 8760 / 1e5), (Law.weibull(1.6, 1e5, 2000), 4 * ((8760 - 2000) / 1e5) ** 1.6)],
)
def test_without_redundancy_there_is_nothing_to_draw(lifetime, hazard):
    """The first failure of four disks is the loss; a shock comes first in some missions."""
    system = {"disks": 4, "tolerance": 0, "lifetime": lifetime, "repair": Repair(duration=DAY), "mission_hours": HOURS_PER_YEAR}
    assert rare(10, **system).p_loss == pytest.approx(-math.expm1(-hazard), rel=1e-12)
    struck = rare(20_000, **system, shocks=(Shock(per_year=0.1, kills=1),))
    assert abs(struck.p_loss + math.expm1(-hazard - 0.1)) < 4 * struck.p_loss_se < 0.02 * struck.p_loss


def test_constant_repair():
    """D15: the error here is a tenth of a percent."""
    answer = rare(1_000_000, **EIGHT_PLUS_TWO | {"repair": Repair(duration=Law.constant(24))})
    assert abs(answer.p_loss / 2.1565e-8 - 1) < 0.003
    assert answer.p_loss_se / answer.p_loss < 0.001


def test_elerath_pecht():
    """D16: a failure while a latent error is on another disk; not again until all disks are up; then no latent error is left."""
    system = {
        "disks": 8,
        "tolerance": 1,
        "lifetime": Law.weibull(1.12, 461386),
        "repair": Repair(duration=Law.weibull(2, 12, 6)),
        "latent": LatentErrors(mean_hours=9259),
        "counting": True,
    }
    ten_years = simulate(System(mission_hours=10 * HOURS_PER_YEAR, **system), missions=2_000_000, seed=3)
    first_year = simulate(System(mission_hours=HOURS_PER_YEAR, **system), missions=2_000_000, seed=3)
    assert abs(1000 * ten_years.losses - 1200.07) < 4 * math.hypot(1000 * ten_years.losses_se, 0.74)
    assert abs(1000 * ten_years.losses / 1200.07 - 1) < 0.01
    assert abs(1000 * first_year.losses / 81.40 - 1) < 0.01
    assert ten_years.by_latent > 0.99


def test_magnitude_of_a_loss():
    """D24: clustered 8+2, deterministic rebuild: E(H)/c = 8/3, a third of the group's data; MTTDL of five groups, by the leading term."""
    answer = rare(400_000, **EIGHT_PLUS_TWO | {"repair": Repair(duration=Law.constant(24)), "usable_bytes": 8e12})
    assert answer.eafdl / answer.p_loss == pytest.approx(1 / 3, rel=0.01)
    assert answer.lost_bytes == pytest.approx(answer.p_loss * 8e12 / 3, rel=0.01)
    assert answer.nomdl_bytes_per_tb == pytest.approx(answer.lost_bytes / 8, rel=1e-9)
    assert answer.mttdl_years / 5 == pytest.approx(9251736.111, rel=0.01)


def test_variance_is_a_millionth_of_crude_samplings():
    answer = rare(100_000, **EIGHT_PLUS_TWO)
    assert answer.p_loss * (1 - answer.p_loss) / (answer.p_loss_se**2 * answer.missions) > 1e6


# --- The naive simulation ---------------------------------------------------------------------------------------------

MONTH = 730.0


def weibull_hazard(shape, scale, location=0.0):
    return lambda age: shape / scale * ((age - location) / scale) ** (shape - 1) if age > location else 0.0


FRAIL = {
    "disks": 6,
    "tolerance": 1,
    "lifetime": Law.exponential(2 * HOURS_PER_YEAR),
    "repair": Repair(duration=Law.exponential(150)),
    "mission_hours": 2 * HOURS_PER_YEAR,
}
NAIVE = {
    "disks": 6,
    "hazard": lambda age: 1 / (2 * HOURS_PER_YEAR),
    "hazard_max": 1 / (2 * HOURS_PER_YEAR),
    "repair": lambda rng: rng.expovariate(1 / 150),
    "hours": 2 * HOURS_PER_YEAR,
    "loses": lambda down: len(down) > 1,
}
MIRRORS = [{0, 1}, {2, 3}, {4, 5}]
WEIBULL = weibull_hazard(1.6, 1.5 * HOURS_PER_YEAR, 3 * MONTH)
INFANT = [0.0, 2 * MONTH, 12 * MONTH], [1e-4, 2e-5, 6e-5]
SCRUBBED = LatentErrors(mean_hours=2000, scrub=Law.weibull(3, 300, 6))
FEATURES = {
    "plain": ({}, {}),
    "tolerance 2": (
        {"tolerance": 2, "repair": Repair(duration=Law.constant(700))},
        {"loses": lambda down: len(down) > 2, "repair": lambda rng: 700},
    ),
    "crews": (
        {"tolerance": 2, "repair": Repair(duration=Law.exponential(700), crews=1)},
        {"loses": lambda down: len(down) > 2, "repair": lambda rng: rng.expovariate(1 / 700), "crews": 1},
    ),
    "spares": (
        {"tolerance": 2, "spares": Spares(count=1, replacement=Law.weibull(2, 4000, 200))},
        {"loses": lambda down: len(down) > 2, "spares": 1, "replacement": lambda rng: 200 + rng.weibullvariate(4000, 2)},
    ),
    "no spare, one crew": (
        {
            "tolerance": 2,
            "repair": Repair(duration=Law.exponential(400), crews=1),
            "spares": Spares(count=0, replacement=Law.constant(500)),
        },
        {
            "loses": lambda down: len(down) > 2,
            "repair": lambda rng: rng.expovariate(1 / 400),
            "crews": 1,
            "spares": 0,
            "replacement": lambda rng: 500,
        },
    ),
    "Weibull with location": (
        {"lifetime": Law.weibull(1.6, 1.5 * HOURS_PER_YEAR, 3 * MONTH), "repair": Repair(duration=Law.weibull(2, 200, 20))},
        {"hazard": WEIBULL, "hazard_max": WEIBULL(2 * HOURS_PER_YEAR), "repair": lambda rng: 20 + rng.weibullvariate(200, 2)},
    ),
    "piecewise": (
        {"lifetime": Law.piecewise(*INFANT)},
        {"hazard": lambda age: INFANT[1][sum(age >= at for at in INFANT[0]) - 1], "hazard_max": max(INFANT[1])},
    ),
    "shock to the system": (
        {"tolerance": 2, "shocks": (Shock(per_year=1.5, kills=2),)},
        {"loses": lambda down: len(down) > 2, "shock_per_hour": 1.5 / HOURS_PER_YEAR, "shock_kills": 2},
    ),
    "shock to a shelf, Weibull": (
        {
            "tolerance": 2,
            "lifetime": Law.weibull(1.6, 1.5 * HOURS_PER_YEAR, 3 * MONTH),
            "shelves": Shelves(disks=4),
            "shocks": (Shock(per_year=0.2, probability=0.5, scope="shelf"),),
        },
        {
            "loses": lambda down: len(down) > 2,
            "hazard": WEIBULL,
            "hazard_max": WEIBULL(2 * HOURS_PER_YEAR),
            "shelf": 4,
            "shock_by_shelf": True,
            "shock_per_hour": 0.2 / HOURS_PER_YEAR,
            "shock_probability": 0.5,
        },
    ),
    "shelves": (
        {"shelves": Shelves(disks=3, boost_factor=8, boost_hours=400)},
        {"shelf": 3, "boost": 8.0, "boost_hours": 400},
    ),
    "shelves, Weibull": (
        {"shelves": Shelves(disks=3, boost_factor=8, boost_hours=400), "lifetime": Law.weibull(1.6, 1.5 * HOURS_PER_YEAR, 3 * MONTH)},
        {"shelf": 3, "boost": 8.0, "boost_hours": 400, "hazard": WEIBULL, "hazard_max": WEIBULL(2 * HOURS_PER_YEAR)},
    ),
    "batches": (
        {"batches": Batches(disks=2, probability=0.3, factor=6), "lifetime": Law.weibull(1.6, 2 * HOURS_PER_YEAR)},
        {
            "batch": 2,
            "batch_probability": 0.3,
            "batch_factor": 6.0,
            "hazard": weibull_hazard(1.6, 2 * HOURS_PER_YEAR),
            "hazard_max": weibull_hazard(1.6, 2 * HOURS_PER_YEAR)(2 * HOURS_PER_YEAR),
        },
    ),
    "latent errors": (
        {"latent": LatentErrors(mean_hours=40000), "usable_bytes": 1e12},
        {"latent_per_hour": 1 / 40000},
    ),
    "latent errors and scrub": (
        {"latent": SCRUBBED, "tolerance": 2},
        {
            "latent_per_hour": 1 / 2000,
            "scrub": lambda rng: 6 + rng.weibullvariate(300, 3),
            "loses": lambda down: len(down) > 2,
        },
    ),
    "mirrors": (
        {
            "lost_sets": verdicts.lost_sets(verdicts.Shape(level=Level.RAID10, members=6, layout="n2")),
            "repair": Repair(duration=Law.constant(700)),
        },
        {"loses": lambda down: any(pair <= down for pair in MIRRORS), "repair": lambda rng: 700},
    ),
    "mirrors, latent errors, Weibull": (
        {
            "lost_sets": verdicts.lost_sets(verdicts.Shape(level=Level.RAID10, members=6, layout="n2")),
            "latent": LatentErrors(mean_hours=8000, scrub=Law.weibull(3, 300, 6)),
            "lifetime": Law.weibull(1.6, 1.5 * HOURS_PER_YEAR, 3 * MONTH),
            "repair": Repair(duration=Law.constant(1000)),
        },
        {
            "loses": lambda down: any(pair <= down for pair in MIRRORS),
            "repair": lambda rng: 1000,
            "latent_per_hour": 1 / 8000,
            "scrub": lambda rng: 6 + rng.weibullvariate(300, 3),
            "hazard": WEIBULL,
            "hazard_max": WEIBULL(2 * HOURS_PER_YEAR),
        },
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_agrees_with_the_naive_simulation(feature):
    ours, theirs = FEATURES[feature]
    naive, naive_se = estimate(Naive(**NAIVE | theirs), 6000, seed=11)
    system = System(**FRAIL | ours)
    crude = simulate(system, method="crude", missions=400_000, seed=5)
    forced = simulate(system, method="rare", missions=100_000, seed=6)
    assert naive > 20 * naive_se  # or it would say little
    assert abs(crude.p_loss - naive) < 4 * math.hypot(crude.p_loss_se, naive_se)
    assert abs(crude.p_loss - forced.p_loss) < 4 * math.hypot(crude.p_loss_se, forced.p_loss_se)
    assert crude.by_latent == pytest.approx(forced.by_latent, abs=0.02)
    assert crude.by_shock == pytest.approx(forced.by_shock, abs=0.02)
    for ours_at, forced_at in zip(crude.p_by_time, forced.p_by_time, strict=True):
        assert abs(ours_at - forced_at) < 5 * math.hypot(crude.p_loss_se, forced.p_loss_se)


@pytest.mark.parametrize("feature", ["plain", "latent errors", "latent errors and scrub", "crews", "mirrors"])
def test_counted_losses_agree_with_the_naive_simulation(feature):
    ours, theirs = FEATURES[feature]
    naive, naive_se = estimate(Naive(**NAIVE | theirs, counting=True), 6000, seed=12)
    answer = simulate(System(**FRAIL | ours, counting=True), missions=400_000, seed=5)
    assert abs(answer.losses - naive) < 4 * math.hypot(answer.losses_se, naive_se)


def test_scrub_after_a_constant_time():
    """A mirror whose repairs take no time is as new after each failure that costs nothing: a renewal equation, by the trapezoidal rule.

    A failure after the gap g finds the other disk without an error with probability exp(-min(g, scrub) / mean).
    """
    fails, mean, scrub, hours, step = 1e-4, 500.0, 300.0, 5000.0, 2.5
    times = [step * k for k in range(round(hours / step) + 1)]
    harmless = [2 * fails * math.exp(-2 * fails * gap - min(gap, scrub) / mean) for gap in times]
    kept: list[float] = [1.0]
    for k in range(1, len(times)):
        before = harmless[k] / 2 + sum(harmless[gap] * kept[k - gap] for gap in range(1, k))
        kept.append((math.exp(-2 * fails * times[k]) + step * before) / (1 - step * harmless[0] / 2))
    system = System(
        disks=2,
        tolerance=1,
        lifetime=Law.exponential(1 / fails),
        repair=Repair(duration=Law.constant(1e-6)),
        mission_hours=hours,
        latent=LatentErrors(mean_hours=mean, scrub=Law.constant(scrub)),
    )
    for method in ("crude", "rare"):
        answer = simulate(system, method=method, missions=300_000, seed=3)
        assert answer.p_loss_se < 0.003 and abs(z_of(answer, 1 - kept[-1])) < 4
        assert answer.by_latent == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("method", ["crude", "rare"])
@pytest.mark.parametrize(("usable_bytes", "lost_bytes"), [(1e8, 4096), (1000.0, 1000)])
def test_a_latent_error_costs_its_bytes(method, usable_bytes, lost_bytes):
    """Repairs take no time, so nothing else is lost; and never more than there is."""
    instant = FRAIL | {"repair": Repair(duration=Law.constant(1e-6)), "latent": LatentErrors(mean_hours=40000)}
    answer = simulate(System(**instant, usable_bytes=usable_bytes), method=method, missions=20_000)
    assert answer.lost_bytes == pytest.approx(answer.p_loss * lost_bytes, rel=1e-3)
    assert answer.eafdl == pytest.approx(answer.lost_bytes / usable_bytes / 2, rel=1e-9)
    assert simulate(System(**instant), method=method, missions=100).eafdl is None


@pytest.mark.parametrize("method", ["crude", "rare"])
def test_the_last_shelf_gets_shocks_too(method):
    """Three disks in shelves of two: two shelves, of which the second has one disk, and its own stream of shocks."""
    shocks = (Shock(per_year=0.1, probability=1.0, scope="shelf"),)
    system = System(**FRAIL | {"disks": 3, "tolerance": 0, "lifetime": Law.exponential(1e20)}, shelves=Shelves(disks=2), shocks=shocks)
    answer = simulate(system, method=method, missions=200_000)
    assert abs(answer.p_loss - (1 - math.exp(-2 * 0.1 * 2))) < 4 * answer.p_loss_se + 1e-9
    both = simulate(
        System(**FRAIL | {"disks": 3, "tolerance": 1, "lifetime": Law.exponential(1e20)}, shelves=Shelves(disks=2), shocks=shocks)
    )
    assert abs(both.p_loss - (1 - math.exp(-0.1 * 2))) < 4 * both.p_loss_se + 1e-3  # the full shelf's alone, but for two at one time


def test_fraction_of_a_loss_is_the_same_for_both_estimators():
    system = System(**FRAIL | {"tolerance": 2, "repair": Repair(duration=Law.weibull(2, 700, 100), crews=2)})
    crude, forced = (simulate(system, method=method, missions=300_000, seed=4) for method in ("crude", "rare"))
    assert crude.eafdl == pytest.approx(forced.eafdl, rel=0.05)


# --- Pools ------------------------------------------------------------------------------------------------------------


def test_pool_of_one_group_is_that_group():
    """Its pieces are one a disk, safe when the rebuild is over."""
    group = simulate(System(**FRAIL), missions=400_000, seed=1)
    pool = simulate(System(**FRAIL | {"pool": Pool(groups=1, width=6)}), missions=400_000, seed=2)
    assert abs(group.p_loss - pool.p_loss) < 4 * math.hypot(group.p_loss_se, pool.p_loss_se)
    assert pool.eafdl == pytest.approx(pool.p_loss / 2)  # all of it is lost, in two years


@pytest.mark.parametrize(("counting", "mean", "hours"), [(False, 3 * HOURS_PER_YEAR, 2 * HOURS_PER_YEAR), (True, 800.0, 2000.0)])
def test_pool_agrees_with_a_naive_one(counting, mean, hours):
    """40 groups of 3 on 12 disks: rebuilt piece by piece, so a group of two lost disks may be safe. What is lost is not lost once more."""
    pool, repair = Pool(groups=40, width=3, seed=4), 400.0
    groups = pool.placement(12)
    on_disk = [[g for g, group in enumerate(groups) if disk in group] for disk in range(12)]
    rng, missions, scores, share = random.Random(3), 5000, [], 0.0
    for _ in range(missions):
        fails = [rng.expovariate(1 / mean) for _ in range(12)]
        begun: dict[int, float] = {}
        losses = 0
        while counting or not losses:
            disk = min(range(12), key=fails.__getitem__)
            t = fails[disk]
            if t > hours:
                break
            begun = {other: start for other, start in begun.items() if start + repair > t}
            gone = 0
            for group in on_disk[disk]:
                others = [other for other in groups[group] if other in begun]
                missing = [on_disk[other].index(group) + 1 > (t - begun[other]) / repair * len(on_disk[other]) for other in others]
                gone += sum(missing) == 1
            losses += gone > 0
            share += gone / 40
            begun[disk] = t
            fails[disk] = t + repair + rng.expovariate(1 / mean)
        scores.append(losses)
    system = System(
        disks=12,
        tolerance=1,
        lifetime=Law.exponential(mean),
        repair=Repair(duration=Law.constant(repair)),
        mission_hours=hours,
        pool=pool,
        counting=counting,
    )
    answer = simulate(system, missions=200_000, seed=1)
    assert abs(answer.losses - statistics.fmean(scores)) < 4 * math.hypot(answer.losses_se, statistics.stdev(scores) / missions**0.5)
    assert answer.eafdl * hours / HOURS_PER_YEAR == pytest.approx(share / missions, rel=0.02 if counting else 0.1)


def test_pool_placement_is_even():
    groups = Pool(groups=101, width=7, seed=1).placement(23)
    pieces = [sum(disk in group for group in groups) for disk in range(23)]
    assert all(len(set(group)) == 7 for group in groups)
    assert max(pieces) - min(pieces) <= 1


# --- Intervals --------------------------------------------------------------------------------------------------------


def covered(system, exact, missions, method, seeds=2000):
    """Share of the seeds whose interval holds the exact value."""
    kernel, inside = Kernel(system), 0
    for seed in range(seeds):
        block = Block(method=method, seed=seed, number=0, missions=missions)
        low, high = montecarlo.reduce(system, [block], [kernel.play(block)]).p_loss_ci95
        inside += low <= exact <= high
    return inside / seeds


def test_intervals_cover_a_frail_case():
    """RAID 5 of two disks with repairs at rate 1 and failures at rate 0.1 a hour, for 10 hours: 1 minus the sum of two exponentials."""
    fails, repair, hours = 0.1, 1.0, 10.0
    middle, half = (3 * fails + repair) / 2, math.sqrt((3 * fails + repair) ** 2 / 4 - 2 * fails**2)
    slow, fast = -middle + half, -middle - half
    exact = 1 - (slow * math.exp(fast * hours) - fast * math.exp(slow * hours)) / (slow - fast)
    system = System(
        disks=2, tolerance=1, lifetime=Law.exponential(1 / fails), repair=Repair(duration=Law.exponential(1 / repair)), mission_hours=hours
    )
    for method, missions in (("crude", 3000), ("rare", 1000)):
        assert 0.93 <= covered(system, exact, missions, method) <= 0.97


def test_intervals_cover_a_rare_case():
    assert 0.93 <= covered(System(**EIGHT_PLUS_TWO), 2.151223873e-8, 4000, "rare") <= 0.97


RATHER_FRAIL = {"level": "6", "raid_devices": 10, "afr": "20%", "mttr": "72h"}
RARE_AND_LONG = {  # (missions, inputs): what second failures that are mended, or what one shock may do, could be left out of
    "second failures, mended, in every fourth mission": (2000, {"level": "6", "raid_devices": 24, "afr": "5%", "mttr": "7d", "years": 10}),
    "and in each": (200, {"level": "6", "raid_devices": 10, "afr": "2%", "mttr": "24h", "years": 1000}),
    "slow repair": (2000, {"level": "rs", "data": 20, "parity": 4, "afr": "5%", "mttr": "168h", "years": 10}),
    "a shock may kill any number": (2000, {"level": "rs", "data": 10, "parity": 4, "afr": "2%", "shock": ["0.01:1%"]}),
    "shocks of a frail array": (2000, RATHER_FRAIL | {"shock": ["0.1:2"]}),
    "many shocks of one disk": (2000, RATHER_FRAIL | {"shock": ["1:1"]}),
    "shocks of which most kill none": (400, RATHER_FRAIL | {"shock": ["20:0.5%"]}),
    "a human, shocks of two kinds": (4000, RATHER_FRAIL | {"afr": "2%", "human": "72h", "shock": ["0.01:2", "0.1:1"]}),
}


@pytest.mark.parametrize("case", RARE_AND_LONG)
def test_intervals_cover_what_a_chain_says(case):
    missions, inputs = RARE_AND_LONG[case]
    study = Inputs(**inputs).study()
    kernel, exact, answers = Kernel(study.system), study.group().chain().loss_probability(study.hours), []
    for seed in range(400):
        block = Block(method="rare", seed=seed, number=0, missions=missions)
        answers.append(montecarlo.reduce(study.system, [block], [kernel.play(block)]))
    error = statistics.stdev(one.p_loss for one in answers) / math.sqrt(len(answers))
    assert abs(statistics.mean(one.p_loss for one in answers) - exact) < 4 * error < 0.05 * exact
    assert sum(one.p_loss_ci95[0] <= exact <= one.p_loss_ci95[1] for one in answers) >= 0.91 * len(answers)


def test_intervals_cover_weibull():
    """The exact value is that of a long crude run, whose own error is a tenth of the intervals'."""
    frail, better = (System(**FRAIL | {"lifetime": Law.weibull(1.6, years * HOURS_PER_YEAR, 3 * MONTH)}) for years in (1.5, 8))
    exact = simulate(frail, method="crude", missions=4_000_000, seed=99).p_loss
    assert 0.93 <= covered(frail, exact, 1000, "crude") <= 0.97
    exact = simulate(better, method="crude", missions=20_000_000, seed=98).p_loss
    assert 0.93 <= covered(better, exact, 400, "rare") <= 0.97


def test_few_missions_that_carry_the_answer_are_no_answer():
    inputs = {"level": "rs", "data": 10, "afr": "10%", "mttr": "30d", "years": 10, "method": "mc", "missions": 5000}
    few, many = (sim.simulate(Inputs(**inputs, parity=parity).study()) for parity in (6, 2))
    assert "few missions carry this" in few.words and few.improvements == ()
    assert "few missions" not in many.words and many.improvements


def test_mean_time_to_a_loss():
    """Also where nearly every mission ends in one."""
    for afr, missions in (("2000%", 20_000), ("200%", 100_000)):
        inputs = {"level": "5", "raid_devices": 3, "afr": afr, "mttr": "720h"}
        exact, drawn = (sim.simulate(Inputs(**inputs, **more).study()) for more in ({}, {"method": "mc", "missions": missions}))
        assert drawn.mttdl_years == pytest.approx(exact.mttdl_years, rel=0.05)


def test_latent_errors_of_mirrors_judged_one_by_one_or_by_a_table():
    """Eight crews are as many as eight disks can need."""
    inputs = {"level": "10", "raid_devices": 8, "afr": "300%", "mttr": "constant:200h", "lse": "3000h", "scrub": "1000h", "years": 0.2}
    apart, together = (Inputs(**inputs, repair=repair, method="mc", missions=300_000).study() for repair in ("parallel", "8"))
    assert (apart.count, together.count) == (4, 1)
    one, other = sim.simulate(apart, improvements=False), sim.simulate(together, improvements=False)
    assert one.p_loss == pytest.approx(other.p_loss, rel=0.006)


def test_without_redundancy_each_latent_error_is_a_loss():
    """Poisson streams of failures and of errors, of all disks: exact; what cannot be exact is refused."""
    inputs = {"level": "0", "raid_devices": 4, "afr": "2%", "lse": "200000h"}
    hours = 4 * 5 * HOURS_PER_YEAR
    exact = 1 - math.exp(-hours * (0.02 / HOURS_PER_YEAR + 1 / 200_000))
    assert sim.simulate(Inputs(**inputs).study()).p_loss == pytest.approx(exact, rel=1e-9)
    for more in ({"method": "mc"}, {"mttr": "constant:24h"}):
        with pytest.raises(UsageError, match="latent errors on disks that nothing can mend"):
            Inputs(**inputs | more).study()


def test_intervals_have_the_width_of_95_percent():
    """To more digits than a count of covered values can see."""
    answer = rare(20_000, **EIGHT_PLUS_TWO)
    wide = math.exp(statistics.NormalDist().inv_cdf(0.975) * answer.p_loss_se / answer.p_loss)
    assert answer.p_loss_ci95 == pytest.approx((answer.p_loss / wide, answer.p_loss * wide), rel=1e-9)


def test_no_loss_seen_is_an_upper_bound():
    answer = simulate(System(**EIGHT_PLUS_TWO), method="crude", missions=10_000)
    assert answer.none_seen
    assert answer.p_loss == answer.p_loss_ci95[1] == pytest.approx(1 - 0.05 ** (1 / 10_000), rel=1e-9)
    assert answer.p_loss == pytest.approx(3 / 10_000, rel=0.01)
    assert answer.p_loss_ci95[0] == 0
    never = System(**EIGHT_PLUS_TWO | {"lifetime": Law.weibull(2, 1e5, 1e5)})  # nothing fails within the mission
    for method in ("crude", "rare"):
        assert simulate(never, method=method, missions=1000).p_loss > 0


# --- Streams and plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["crude", "rare"])
def test_answer_does_not_depend_on_workers(method):
    system = System(**FRAIL)
    one, three = (simulate(system, method=method, missions=3_000_000 if method == "crude" else 300_000, workers=n) for n in (1, 3))
    assert one == three
    assert one.blocks > 10


def test_blocks_have_streams_of_their_own():
    kernel = Kernel(System(**FRAIL))
    scores = {kernel.play(Block(method="crude", seed=s, number=n, missions=5000)).score_squares for s in range(10) for n in range(10)}
    assert len(scores) > 50
    first = kernel.play(Block(method="crude", seed=2**64 - 1, number=2**62, missions=1000))
    assert first == kernel.play(Block(method="crude", seed=2**64 - 1, number=2**62, missions=1000))


def test_numbers_are_the_same_on_every_machine():
    """Bit for bit, whatever libm and CPU there are."""
    kernel = Kernel(
        System(**EIGHT_PLUS_TWO | {"lifetime": Law.weibull(1.12, 461386, 100.0), "repair": Repair(duration=Law.weibull(2, 12, 6))})
    )
    played = kernel.play(Block(method="rare", seed=7, number=3, missions=1000))
    assert (played.score.hex(), played.score_squares.hex()) == ("0x1.23b932a194553p-19", "0x1.2ba2eb6bca5c3p-47")
    crude = Kernel(System(**FRAIL)).play(Block(method="crude", seed=7, number=3, missions=1000))
    assert (crude.hits, crude.failures, crude.degraded_hours.hex()) == (207, 5260, "0x1.65371f4a10082p+19")


def test_auto_takes_what_is_better():
    assert simulate(System(**EIGHT_PLUS_TWO)).method == "rare"
    assert simulate(System(**TEN_PLUS_FOUR | {"repair": SERIAL}), relative_error=0.02).p_loss_se < 0.03 * 1.34e-15
    fragile = System(**EIGHT_PLUS_TWO | {"lifetime": Law.exponential(3000), "repair": Repair(duration=Law.exponential(240))})
    assert simulate(fragile).method == "crude"
    assert simulate(System(**FRAIL | {"counting": True})).method == "crude"


def test_planned_error_is_kept():
    for system in (System(**EIGHT_PLUS_TWO), System(**FRAIL)):
        answer = simulate(system, relative_error=0.01, seed=3)
        assert answer.p_loss_se / answer.p_loss == pytest.approx(0.01, rel=0.35)


def test_a_signal_ends_it_at_once():
    """Also in the pilot, and in one mission that takes for ever; and the system can be simulated again."""
    endless = EIGHT_PLUS_TWO | {"lifetime": Law.exponential(1.0), "tolerance": 9, "mission_hours": 1e12}
    cases = [
        ({"method": "crude", "missions": 1 << 50}, EIGHT_PLUS_TWO),
        ({"method": "rare", "missions": 1 << 50}, EIGHT_PLUS_TWO),
        ({"method": "auto"}, endless | {"repair": Repair(duration=Law.exponential(1e-9))}),
    ]

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for settings, system in cases:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                simulate(System(**system), **settings)
            assert time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert simulate(System(**EIGHT_PLUS_TWO), missions=1000).missions == 1000


def test_sum_of_blocks():
    parts = [Sums(missions=2, score=1.0, score_max=1.0), Sums(missions=3, score=0.25, score_max=0.25, failures=4)]
    total = montecarlo.add(parts)
    assert (total.missions, total.score, total.score_max, total.failures) == (5, 1.25, 1.0, 4)


# --- Arithmetic and laws ----------------------------------------------------------------------------------------------


def law_pointer(law):
    kernel = Kernel(System(**FRAIL | {"lifetime": law}))
    return kernel, ffi.addressof(kernel._model, "lifetime")


@pytest.mark.parametrize("shape", [0.31, 1.0000001, 1.12, 3.7])
def test_weibull_to_the_last_bits(shape):
    """The kernel's own log and exp: against libm's, and 60-digit arithmetic where that is asked much of."""
    mpmath = pytest.importorskip("mpmath")
    kernel, law = law_pointer(Law.weibull(shape, 461386.0, 100.0))
    rng = random.Random(1)
    with mpmath.workdps(60):
        for _ in range(2000):
            cumulative = math.exp(rng.uniform(-60, 5))
            exact = 100 + 461386 * mpmath.mpf(cumulative) ** (1 / mpmath.mpf(shape))
            assert abs(lib.rl_sim_law_time(law, cumulative) / exact - 1) < 1e-14 * max(1, abs(math.log(cumulative)) / shape)
            hours = 100 + math.exp(rng.uniform(-5, 16))
            exact = ((mpmath.mpf(hours) - 100) / 461386) ** mpmath.mpf(shape)
            assert abs(lib.rl_sim_law_hazard(law, hours) / exact - 1) < 1e-14 * max(1, abs(math.log(exact)))
    assert lib.rl_sim_law_hazard(law, 99.0) == 0
    del kernel


def test_piecewise_and_empirical_laws():
    kernel, law = law_pointer(Law.piecewise([0, 100, 1000], [1e-3, 0.0, 2e-4]))
    assert lib.rl_sim_law_hazard(law, 50) == pytest.approx(0.05)
    assert lib.rl_sim_law_hazard(law, 500) == pytest.approx(0.1)
    assert lib.rl_sim_law_hazard(law, 2000) == pytest.approx(0.3)
    assert lib.rl_sim_law_time(law, 0.3) == pytest.approx(2000)
    kernel, law = law_pointer(Law.empirical([0.1, 0.5, 0.9], [200, 1000, 4000]))
    for share, hours in ((0.1, 200), (0.5, 1000), (0.9, 4000)):
        assert 1 - math.exp(-lib.rl_sim_law_hazard(law, hours)) == pytest.approx(share)
        assert lib.rl_sim_law_time(law, -math.log1p(-share)) == pytest.approx(hours)
    del kernel


def test_times_are_drawn_from_their_laws():
    """One disk that is never repaired: the share that fails by each part of the mission, Kolmogorov's distance."""
    for law in (Law.exponential(1000), Law.weibull(0.6, 800, 50), Law.weibull(3, 900), Law.piecewise([0, 300, 600], [1e-3, 1e-5, 3e-3])):
        system = System(disks=1, lifetime=law, repair=Repair(duration=Law.constant(1)), mission_hours=2000)
        kernel, pointer = law_pointer(law)
        by_time = simulate(system, method="crude", missions=400_000, seed=8).p_by_time
        exact = [-math.expm1(-lib.rl_sim_law_hazard(pointer, 2000 * (k + 1) / 64)) for k in range(64)]
        assert max(abs(a - b) for a, b in zip(by_time, exact, strict=True)) < 2.2 / math.sqrt(400_000)
        del kernel


def test_degraded_time():
    """Two disks, repairs at rate 1/100: the share of time with one down is 1 - availability, from the start on."""
    system = System(
        disks=2, tolerance=1, lifetime=Law.exponential(5000), repair=Repair(duration=Law.exponential(100)), mission_hours=1e4, counting=True
    )
    rates = statistics.fmean(simulate(system, missions=200_000, seed=s).degraded_hours for s in range(2)) / 1e4
    down = 100 / 5100
    transient = (1 - math.exp(-1e4 * (1 / 100 + 1 / 5000))) / (1e4 * (1 / 100 + 1 / 5000))
    assert rates == pytest.approx(1 - (1 - down) ** 2 - 2 * down * transient, rel=0.01)


# --- Wrong input ------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Law.from_afr(-0.02), "-0.02"),
        (lambda: Law.from_afr(NAN), "nan"),
        (lambda: Law.exponential(INF), "inf"),
        (lambda: Law.exponential(0), "0"),
        (lambda: Law.exponential("24"), "'24'"),
        (lambda: Law.weibull(-1, 100), "-1"),
        (lambda: Law.weibull(1, 100, -5), "-5"),
        (lambda: Law.weibull(NAN, 100), "nan"),
        (lambda: Law.piecewise([0, 10, 10], [1, 1, 1]), "10"),
        (lambda: Law.piecewise([5], [1]), "begins at 0"),
        (lambda: Law.piecewise([0, 10], [1, -1]), "-1"),
        (lambda: Law.piecewise([0], [1, 2]), "2 and 1"),
        (lambda: Law.empirical([0.5, 0.4], [1, 2]), "0.4"),
        (lambda: Law.empirical([0.5, 1.0], [1, 2]), "1.0"),
        (lambda: Law.empirical([0.5], [-1]), "-1"),
        (lambda: Repair(duration=DAY, crews=0), "crews 0"),
        (lambda: Repair.from_bandwidth(1e12, 0), "0"),
        (lambda: Spares(count=-1, replacement=DAY), "-1"),
        (lambda: LatentErrors(mean_hours=-9259), "-9259"),
        (lambda: Shock(per_year=1), "one of the two"),
        (lambda: Shock(per_year=1, kills=1, probability=0.5), "one of the two"),
        (lambda: Shock(per_year=1, probability=1.5), "1.5"),
        (lambda: Shelves(disks=3, boost_factor=0.5), "0.5"),
        (lambda: Batches(disks=3, probability=2, factor=1), "2"),
        (lambda: Pool(groups=0, width=3), "0"),
        (lambda: System(**FRAIL | {"disks": 0}), "disks 0"),
        (lambda: System(**FRAIL | {"tolerance": 6}), "disks, 6"),
        (lambda: System(**FRAIL | {"tolerance": -1}), "disks, -1"),
        (lambda: System(**FRAIL | {"mission_hours": NAN}), "nan"),
        (lambda: System(**FRAIL | {"lifetime": Law.constant(5)}), "not constant"),
        (lambda: System(**FRAIL | {"lost_sets": b"\0"}), "8 bytes, not 1"),
        (lambda: System(**FRAIL | {"lost_sets": b"\1" * 8}), "where no disk is"),
        (lambda: System(**FRAIL | {"pool": Pool(groups=3, width=7)}), "7 pieces do not fit on 6"),
        (lambda: System(**FRAIL | {"pool": Pool(groups=3, width=3), "latent": SCRUBBED}), "pool"),
        (lambda: System(**FRAIL | {"shocks": (Shock(per_year=1, kills=7),)}), "7 of 6"),
        (lambda: System(**FRAIL | {"shocks": (Shock(per_year=1, kills=1, scope="shelf"),)}), "shelves"),
        (lambda: simulate(System(**FRAIL), missions=0), "missions 0"),
        (lambda: simulate(System(**FRAIL), workers=0), "workers 0"),
        (lambda: simulate(System(**FRAIL), seed=-1), "seed -1"),
        (lambda: simulate(System(**FRAIL), relative_error=NAN), "nan"),
        (lambda: simulate(System(**FRAIL), method="magic"), "magic"),
        (lambda: simulate(System(**FRAIL | {"counting": True}), method="rare"), "counting"),
    ],
)
def test_wrong_input_is_one_clear_error(make, says):
    with pytest.raises(UsageError) as caught:
        make()
    assert says in str(caught.value)


def test_kernel_refuses_what_the_structs_would():
    """The C side trusts nobody: a model that was changed behind the structs' back."""
    kernel = Kernel(System(**FRAIL))
    for field, value in (("tolerance", 6), ("mission_hours", NAN), ("crews", 0), ("size_of", 3), ("disks", 0)):
        kept = getattr(kernel._model, field)
        setattr(kernel._model, field, value)
        with pytest.raises(UsageError):
            kernel.play(Block(method="crude", seed=0, number=0, missions=1))
        setattr(kernel._model, field, kept)
    assert lib.rl_sim_scratch_bytes(kernel._model) > 0
