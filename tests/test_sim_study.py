"""A study and its answer: the exact and the Monte Carlo side agree with each other and with what is known; words mean what they say; one
clear error for each wrong input; the verb `simulate`.
"""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import raidlib
from raidlib import sim
from raidlib.cli import program
from raidlib.errors import UsageError
from raidlib.model import Level
from raidlib.sim import fits
from raidlib.sim.inputs import inputs_of, parse_hours, parse_law
from raidlib.sim.study import mean_hours, scaled, survival_words

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = {"level": 6, "raid_devices": 10, "afr": "2%", "mttr": "24h", "years": 1}


def study(**changed):
    return sim.Inputs(**{**EXAMPLE, **changed}).study()


def answer(**changed):
    return sim.simulate(study(**changed), improvements=False)


def run(*words, code=0):
    result = CliRunner().invoke(program, [str(word) for word in words])
    assert result.exit_code == code, f"raidlib {' '.join(map(str, words))} ended with {result.exit_code}:\n{result.output}"
    return result


def one_line(result):
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("raidlib: "), result.stderr
    return lines[0]


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "p_loss"),
    [  # sim_cases.csv: D11, D13, D21, as far as P(loss) goes
        ({"repair": "serial"}, 4.295588269e-8),
        ({}, 2.151223873e-8),
        ({"mttf": "438000h", "afr": None}, 2.151223873e-8),
        ({"level": "rs", "raid_devices": None, "data": 10, "parity": 4, "afr": "1%", "repair": "serial"}, 1.337833889e-15),
        ({"level": "rs", "raid_devices": None, "data": 10, "parity": 4, "afr": 0.01}, 5.60506321e-17),
        ({"shock": "0.001:2"}, 6.809156687e-7),
    ],
)
def test_published_cases(changed, p_loss):
    result = answer(**changed)
    assert (result.method, result.estimator, result.none_seen) == ("exact", "chain", False)
    assert result.p_loss == pytest.approx(p_loss, rel=1e-9)
    assert result.p_loss_ci95 == (result.p_loss, result.p_loss)
    assert result.nines == pytest.approx(-math.log10(p_loss))


def test_availability_of_the_published_case():  # D19
    assert answer().unavailability == pytest.approx(1.97331456778e-11, rel=1e-9)
    assert answer(repair=1).unavailability == pytest.approx(1.18432928933e-10, rel=1e-9)
    assert answer().availability_nines == pytest.approx(10.7048, abs=1e-4)


def test_mttdl_of_the_published_case():  # D12, D20
    assert answer().mttdl_years * 8760 == pytest.approx(405537047217, rel=1e-9)
    spared = answer(afr=None, mttf="438000h", spares=1, human="72h", shock=())
    assert spared.mttdl_years == pytest.approx(31757112.91, rel=1e-9)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"repair": "serial"},
        {"repair": 2, "groups": 7},
        {"spares": 1, "human": "72h", "shock": ("0.001:2", "0.001:20%")},
        {"level": 10, "layout": "n2", "raid_devices": 8},
        {"level": 0, "raid_devices": 2, "afr": "30%"},
    ],
)
def test_both_sides_agree(changed):
    exact, mc = answer(**changed), answer(**changed, method="mc", relative_error="2%", seed=5)
    assert (exact.method, mc.method) == ("exact", "mc")
    error = (math.log(mc.p_loss_ci95[1]) - math.log(mc.p_loss_ci95[0])) / 3.92
    assert abs(math.log(mc.p_loss / exact.p_loss)) < 4 * error < 0.2
    assert mc.mttdl_years == pytest.approx(exact.mttdl_years, rel=0.15)
    assert mc.nines_error == pytest.approx(1.96 * error / math.log(10))
    assert mc.availability == exact.availability


def test_mirrors_of_a_raid10_are_independent_and_the_table_says_the_same():
    """Five mirrors by themselves, and the ten disks with the engine's verdict on each of the 2^10 sets."""
    parts = study(level=10, layout="n2")
    assert parts.independent == (sim.Shape(level=Level.RAID1, members=2), 5)
    assert parts.is_exact
    table = study(level=10, layout="n2", repair=10, method="mc", relative_error="2%")  # ten crews are as good as one for each disk
    assert table.system.lost_sets is not None
    whole = sim.simulate(table, improvements=False)
    assert whole.p_loss == pytest.approx(sim.simulate(parts, improvements=False).p_loss, rel=0.1)
    assert whole.availability == pytest.approx(sim.simulate(parts, improvements=False).availability, rel=1e-12)
    assert whole.unavailability == pytest.approx(sim.simulate(parts, improvements=False).unavailability, rel=1e-9)


@pytest.mark.parametrize(
    "shared",
    [{"repair": 3}, {"human": "72h"}, {"shock": "0.01:2"}, {"shelf": "5"}, {"batch": "5:10%:3"}, {"count_losses": True}],
    ids=lambda shared: next(iter(shared)),
)
def test_mirrors_that_share_something_are_not_taken_apart(shared):
    for shape in ({"level": 10, "layout": "n2"}, {"level": 10, "layout": "n2", "groups": 3}):
        of_all = study(**shape, **shared)
        assert of_all.independent == (sim.Shape(level=Level.RAID10, members=10, layout="n2"), shape.get("groups", 1))
        assert of_all.system.disks == 10 and of_all.system.lost_sets is not None


def test_availability_by_the_table_is_the_sum_over_all_sets():
    of_table = study(level=10, layout="f2", raid_devices=5)
    table, down = of_table.system.lost_sets, (24 / (24 + 438000))
    expected = sum(
        down ** bin(lost).count("1") * (1 - down) ** (5 - bin(lost).count("1")) for lost in range(32) if table[lost >> 3] >> (lost & 7) & 1
    )
    assert of_table.availability() == pytest.approx(expected, rel=1e-9)


def test_nested_arrays():
    inner = sim.Shape(level=Level.RAID6, members=4)
    nested = sim.Study(
        shape=sim.Shape(level=Level.RAID0, members=(inner, inner)),
        lifetime=sim.Law.from_afr(0.02),
        repair=sim.Repair(duration=sim.Law.exponential(24)),
    )
    assert nested.independent == (inner, 2)
    two = study(raid_devices=4, groups=2, years=5)
    assert sim.simulate(nested, improvements=False).p_loss == sim.simulate(two, improvements=False).p_loss
    mirrored = raidlib.sim.Study(
        shape=sim.Shape(level=Level.RAID1, members=(sim.Shape(level=Level.RAID0, members=2),) * 2),
        lifetime=nested.lifetime,
        repair=nested.repair,
    )
    assert mirrored.system.lost_sets is not None and not mirrored.is_exact


def test_improvements_and_the_next_step():
    result = sim.simulate(study())
    by_name = {one.input: one for one in result.improvements}
    assert by_name["lifetime"].factor == pytest.approx(8, rel=0.01) and by_name["lifetime"].elasticity == pytest.approx(3, rel=0.01)
    assert by_name["repair"].factor == pytest.approx(4, rel=0.01) and by_name["repair"].elasticity == pytest.approx(-2, rel=0.01)
    assert result.words.endswith("the next thing to improve is the rebuild time")
    assert sim.simulate(study(level=0, raid_devices=4)).words.endswith("the next thing to improve is the disks' failure rate")
    assert sim.simulate(study(shock="0.01:3")).words.endswith("what kills several disks at once")
    waiting = sim.simulate(study(spares=0, human="30d"))
    assert waiting.words.endswith("the time until a new disk is brought") or waiting.words.endswith("the number of spares")
    drawn = sim.simulate(study(mttr="constant:24h"))
    assert {one.input: round(one.factor) for one in drawn.improvements} == {"lifetime": 8, "repair": 4}


def test_twice_as_good_is_twice_as_many_crews():
    crews = {"afr": "100%", "mttr": "72h", "level": "rs", "raid_devices": 16, "parity": 6}
    one = next(one for one in sim.simulate(study(**crews, repair="serial")).improvements if one.input == "crews")
    assert one.factor == pytest.approx(answer(**crews, repair=1).p_loss / answer(**crews, repair=2).p_loss, rel=1e-12)
    assert one.factor < 0.5 * answer(**crews, repair=1).p_loss / answer(**crews).p_loss


def test_chains_are_as_large_as_seconds_allow():
    """More spares: Monte Carlo answers, what needs the chain is not told, and method exact says why not."""
    some, many = study(human="72h", spares=40), study(human="72h", spares=100, missions=3000)
    assert some.is_exact and some.availability() > 0 and len(some.chain.states) == 126
    assert many.chain is None and not many.is_exact and many.availability() is None
    result = sim.simulate(many, compare=True)
    assert (result.method, result.availability, result.curve.exact) == ("mc", None, None) and result.p_loss > 0
    assert any("Availability is not told" in line for line in result.assumptions)
    assert "spares" in {one.input for one in result.improvements}
    with pytest.raises(UsageError, match="method exact: its Markov chain has too many states"):
        study(human="72h", spares=100, method="exact")
    shaken = study(raid_devices=250, shock="0.01:50%", missions=1000)  # 31375 ways for each state of the chain
    assert not shaken.is_exact and shaken.availability() is None
    most = sim.simulate(study(human="72h", spares=4096, missions=1000))
    assert {one.input for one in most.improvements} == {"repair", "replacement", "lifetime"}


def test_what_cannot_be_twice_as_good_is_left_out():
    """At the ends: as many states as are solved, with one spare more Monte Carlo; or not at all, if no chance is asked for."""
    auto, exact = (sim.simulate(study(human="72h", spares=64, method=method), improvements=True) for method in ("auto", "exact"))
    assert auto.method == "exact" and auto.p_loss == exact.p_loss
    assert {one.input for one in auto.improvements} - {one.input for one in exact.improvements} == {"spares"}


def test_causes():
    """Of a chain with shocks the share is what the shocks add; Monte Carlo finds the same."""
    with_shocks, mc = answer(shock="0.001:2"), answer(shock="0.001:2", method="mc")
    without = answer()
    assert sum(with_shocks.causes.values()) == pytest.approx(1, rel=1e-12)
    assert with_shocks.causes["latent"] == 0 and without.causes == {"disk": 1.0, "latent": 0.0, "shock": 0.0}
    assert with_shocks.causes["shock"] == pytest.approx(mc.causes["shock"], abs=0.03)
    latent, chain = answer(lse="9259h", scrub="168h"), answer(lse="9259h", scrub="168h", method="exact")
    assert latent.method == "mc" and chain.method == "exact"
    assert latent.causes["latent"] == pytest.approx(chain.causes["latent"], abs=0.01) and chain.causes["latent"] > 0.99
    no_redundancy = answer(level=0, lse="100000h", method="exact")
    assert no_redundancy.causes["latent"] == pytest.approx((1 / 100000) / (1 / 100000 + 1 / 438000), rel=1e-9)


def test_degraded_time():
    """A disk is down 24 hours after each of ten times 0.02 failures a year; two at once are rare."""
    assert answer().degraded_hours_per_year == pytest.approx(4.8, rel=0.005)
    frail = {"afr": "100%", "mttr": "constant:24h", "level": 5}
    assert answer(**frail).degraded_hours_per_year == pytest.approx(
        answer(**frail, method="mc", missions=100).degraded_hours_per_year, rel=0.3
    )


def test_degraded_time_is_of_the_whole_array():
    """As mirrors by themselves and as one table; of all groups; and of the time that is lived, where nearly every mission is cut off."""
    one_mirror = 1 - (438000 / 438024) ** 2
    mirrors = {"level": 10, "layout": "n2", "raid_devices": 8}
    for same in ({}, {"repair": 8}, {"method": "mc", "missions": 100}):
        assert answer(**mirrors, **same).degraded_hours_per_year == pytest.approx(8760 * (1 - (1 - one_mirror) ** 4), rel=1e-9)
    groups = answer(groups=7).degraded_hours_per_year
    assert groups == pytest.approx(8760 * (1 - (438000 / 438024) ** 70), rel=1e-9)
    frail = {"level": 5, "raid_devices": 3, "afr": "2000%", "mttr": "720h", "years": 5}
    up = 438 / (438 + 720)
    for method in ("exact", "mc"):
        assert answer(**frail, method=method).degraded_hours_per_year == pytest.approx(8760 * (1 - up**3), rel=1e-9)


@pytest.mark.parametrize("counting", [False, True])
def test_degraded_time_of_a_pool_is_of_the_time_it_lived(counting):
    """One group on its own disks: it is lost long before the mission's end, and degraded as its chain is until then."""
    changed = {"level": 5, "raid_devices": 4, "afr": "200%", "mttr": "72h", "years": 5, "missions": 20000}
    pool = answer(**changed, pool_disks=4, pool_groups=1, count_losses=counting)
    group = study(**changed).group()
    chain = group.chain()
    degraded, lived = chain.by(5 * 8760, chain.reward(lambda state: float(group.failed(state) > 0)), chain.reward(lambda state: 1.0))
    assert pool.p_loss > 0.5
    share = group.unavailability([0, 1, 1, 1, 1]) if counting else degraded / lived
    assert pool.degraded_hours_per_year == pytest.approx(8760 * share, rel=0.02)


def test_bytes_of_a_loss_are_told_where_they_are_known():
    """A lost mirror is not all data: where a table of sets judges, no bytes are told. By mirrors they are, and all arrays count."""
    frail = {"afr": "100%", "mttr": "7d", "size": "8T", "missions": 20000}
    mirrors = {"level": 10, "layout": "n2", "raid_devices": 10, **frail}
    table, parts, chain = answer(**mirrors, repair=10), answer(**mirrors, method="mc"), answer(**mirrors)
    assert (table.eafdl, table.lost_bytes, chain.eafdl, chain.lost_bytes) == (None, None, None, None)
    assert any("is not told (bytes, EAFDL)" in line for line in table.assumptions)
    assert any("The bytes lost are not told: a Markov chain" in line for line in chain.assumptions)
    assert not any("not told" in line for line in parts.assumptions)
    mirror = answer(level=1, raid_devices=2, method="mc", **frail)
    assert parts.lost_bytes == pytest.approx(5 * mirror.lost_bytes, rel=1e-9) and parts.eafdl == mirror.eafdl
    assert mirror.lost_bytes == pytest.approx(mirror.eafdl * (8 << 40), rel=1e-3)  # of one year, and one disk's size
    groups = answer(level=5, raid_devices=3, groups=7, method="mc", **frail)
    one = answer(level=5, raid_devices=3, method="mc", **frail)
    assert groups.lost_bytes == pytest.approx(7 * one.lost_bytes, rel=1e-9) and groups.eafdl == one.eafdl


def test_curve():
    exact = sim.simulate(study(), compare=True, improvements=False).curve
    assert len(exact.years) == 64 and exact.years[-1] == 1
    assert exact.exact[-1] == pytest.approx(2.151223873e-8, rel=1e-9) and exact.exact_is_model
    assert exact.mc[-1] == pytest.approx(exact.exact[-1], rel=0.1) and exact.beside.method == "rare"
    assert list(exact.mc) == sorted(exact.mc)
    other = sim.simulate(study(mttr="constant:24h"), compare=True, improvements=False).curve
    assert not other.exact_is_model and other.beside is None and other.exact[-1] == pytest.approx(other.mc[-1], rel=0.1)
    counted = sim.simulate(study(count_losses=True, afr="50%", mttr="7d"), compare=True, improvements=False)
    assert counted.curve.exact is None and counted.curve.mc[-1] == pytest.approx(counted.losses, rel=1e-9)
    assert counted.losses > counted.p_loss and "losses expected" in counted.words


def test_no_loss_seen_is_a_bound_and_never_zero():
    result = sim.simulate(study(lifetime="weibull:3:1e9h:9000h", afr=None, method="mc", missions=1000))
    assert result.none_seen and result.p_loss == result.p_loss_ci95[1] > 0 and result.p_loss_ci95[0] == 0
    assert result.words.startswith("no loss seen in 1000 missions of 1 year: at least 0.99") and "nines or more" in result.words
    assert result.improvements == () and result.causes is None


def test_workers_do_not_matter():
    one, two = (sim.simulate(study(mttr="constant:24h", relative_error="0.5%"), workers=n, improvements=False) for n in (1, 2))
    assert one == two


def test_pool():
    pool = study(pool_disks=30, pool_groups=60, afr="50%", mttr="7d", raid_devices=6, relative_error="5%", size="1T")
    assert pool.system.pool.groups == 60 and pool.system.disks == 30
    assert pool.system.usable_bytes == pytest.approx(30 * 4 / 6 * (1 << 40), rel=0.01)
    result = sim.simulate(pool, improvements=False)
    assert result.availability is None and 0 < result.p_loss < 1 and result.lost_bytes > 0
    assert any("declustered pool of 30 disks with 60 groups" in line for line in result.assumptions)


def test_laws_scale_and_have_means():
    laws = [
        sim.Law.constant(5),
        sim.Law.exponential(5),
        sim.Law.weibull(1.5, 100, 7),
        sim.Law.piecewise([0, 10, 30], [0.1, 0.0, 0.3]),
        sim.Law.empirical([0.2, 0.7], [10, 20]),
    ]
    for law in laws:
        assert mean_hours(scaled(law, 3)) == pytest.approx(3 * mean_hours(law), rel=1e-12)
    step = 0.001  # the integral of the survival function, by the middles of small steps
    hazard = itertools.accumulate(step * (0.1 if at < 10 else 0.0 if at < 30 else 0.3) for at in (step * k for k in range(200_000)))
    assert mean_hours(laws[3]) == pytest.approx(sum(step * math.exp(-total) for total in hazard), rel=1e-3)


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (1.08e-7, "0.99999989"),
        (0.33, "0.67"),
        (0.5, "0.50"),
        (0.9924, "0.0076"),
        (1.0, "below 1e-16"),
        (1e-20, "0.999999999999999999990"),
        (5e-324, "0." + "9" * 324),
    ],
)
def test_survival_words(loss, words):
    assert survival_words(loss).startswith(words[:20]) and len(survival_words(loss)) - len(words) in (-1, 0, 1)
    assert survival_words(loss) not in ("0", "1", "0.00")


def test_times_and_laws():
    assert [parse_hours("t", text) for text in ("24h", "30min", "7d", "1y", "90s", "1.5e3h")] == [24, 0.5, 168, 8760, 0.025, 1500]
    assert parse_law("t", "24h") == parse_law("t", "exponential:24h") == sim.Law.exponential(24)
    assert parse_law("t", "weibull:1.12:461386h:6h") == sim.Law.weibull(1.12, 461386, 6)
    assert parse_law("t", "piecewise:0h=8.76%,1y=0.876").cumulative == pytest.approx((0, 0.0876))
    assert (
        parse_law("t", "Empirical:1y=2%,5Y=9%")
        == parse_law("t", "empirical:1y=2%,5y=9%")
        == sim.Law.empirical([0.02, 0.09], [8760, 5 * 8760])
    )


WRONG = [
    ({"afr": "-2%"}, "annualised failure rate '-2%'"),
    ({"afr": "nan"}, "annualised failure rate 'nan'"),
    ({"afr": float("nan")}, "annualised failure rate nan"),
    ({"afr": 0}, "annualised failure rate 0"),
    ({"afr": None, "mttf": "438000"}, "'438000': a time above 0 with its unit"),
    ({"mttr": "-24h"}, "'-24h'"),
    ({"years": math.nan}, "years nan"),
    ({"years": -1}, "years -1"),
    ({"level": "rs", "raid_devices": 4, "parity": 5}, "-1 data and 5 parity are no 4 disks"),
    ({"level": "rs", "raid_devices": 10, "data": 14}, "14 data and -4 parity are no 10 disks"),
    ({"level": "rs", "raid_devices": None, "data": 14}, "--parity"),
    ({"level": 7}, "level 7"),
    ({"level": None}, "no level"),
    ({"raid_devices": None}, "how many disks"),
    ({"raid_devices": 2}, "at least 3 members"),
    ({"raid_devices": 1000}, "1000 members"),
    ({"level": 10, "raid_devices": 30, "layout": "f2"}, "24 disks are the limit"),
    ({"data": 8}, "--data and --parity are of level rs"),
    ({"mttf": "5y"}, "both say how long disks live"),
    ({"rebuild_rate": "100M"}, "--mttr and --rebuild-rate"),
    ({"mttr": None, "rebuild_rate": "100M"}, "--size"),
    ({"afr": None, "lifetime": "weibull"}, "--drive-stats"),
    ({"afr": None, "lifetime": "weibull:-1:5h"}, "shape of a Weibull law -1"),
    ({"afr": None, "lifetime": "weibull:0.005:1000h"}, "of a Weibull law of shape 0.005"),
    ({"afr": None, "lifetime": "weibull:0.0059:1000000y"}, "of a Weibull law of shape 0.0059"),
    ({"afr": None, "lifetime": "piecewise:0h=1e-310"}, "the mean of a piecewise law, hours, inf"),
    ({"mttr": "weibull:0.001:1h"}, "of a Weibull law of shape 0.001"),
    ({"level": "rs", "raid_devices": None, "data": 10, "parity": 7}, "level rs with 7 parity disks: 1 to 6 are possible"),
    ({"afr": None, "lifetime": "gamma:1:5h"}, "'gamma:1:5h' is no law"),
    ({"afr": None, "lifetime": "piecewise:0h=2%,1y=0"}, "has no mean"),
    ({"afr": None, "lifetime": "Empirical:0h=2%,1y=5%"}, "'0h': a time above 0"),
    ({"afr": None, "lifetime": "constant:5y"}, "not constant"),
    ({"repair": "many"}, "repair 'many'"),
    ({"scrub": "168h"}, "without latent errors"),
    ({"spares": 1}, "--human"),
    ({"shock": "0.001"}, "shock '0.001'"),
    ({"shock": "0.1:20"}, "kills 20 of 10"),
    ({"shelf": "5:4"}, "shelf '5:4'"),
    ({"batch": "5:200%:3"}, "'200%'"),
    ({"batch": "x:20%:3"}, "disks of a batch 'x'"),
    ({"method": "exact", "mttr": "constant:24h"}, "method exact: the time of a repair is constant"),
    ({"method": "exact", "pool_disks": 20}, "method exact: a pool"),
    ({"pool_disks": 5}, "10 pieces do not fit on 5 disks"),
    ({"pool_groups": 5}, "pool disks"),
    ({"pool_disks": 20, "groups": 2}, "2 groups and a pool"),
    ({"pool_disks": 20, "level": 10, "layout": "f2", "raid_devices": 5}, "pool of raid10"),
    ({"seed": -1}, "seed -1"),
    ({"missions": 0}, "missions 0"),
    ({"relative_error": 0}, "relative error 0"),
    ({"drive_model": "X"}, "--drive-stats"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG, ids=[str(changed) for changed, _ in WRONG])
def test_wrong_inputs(changed, words):
    with pytest.raises(UsageError) as caught:
        study(**changed)
    assert words in str(caught.value)


def test_verb_and_study_file_refuse_a_mean_beyond_numbers(tmp_path):
    said = one_line(run("simulate", "-l", 6, "-n", 10, "--lifetime", "weibull:0.005:1000h", code=64))
    assert "of a Weibull law of shape 0.005" in said
    (tmp_path / "s.toml").write_text('level = 6\nraid_devices = 10\nlifetime = "weibull:0.005:1000h"\n')
    said = one_line(run("sweep", tmp_path / "s.toml", code=64))
    assert "s.toml: combination 0" in said and "of a Weibull law of shape 0.005" in said


def test_chances_below_the_root_of_all_numbers():
    """1e-150 squared is nothing; the plan divides by it."""
    tiny = study(level="rs", raid_devices=None, data=10, parity=6, afr=1e-20, mttr="constant:1s", missions=None, relative_error="10%")
    assert 0 < sim.simulate(tiny, improvements=False).p_loss < 1e-150


def test_unknown_inputs_are_named():
    with pytest.raises(UsageError, match="afrr"):
        inputs_of({"level": 6, "afrr": "2%"})
    with pytest.raises(UsageError, match=r"raid_devices"):
        inputs_of({"level": 6, "raid_devices": "ten"})


# --- Drive-stats ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drive_stats(tmp_path):
    """Two models over 40 days: 30 drives of A, of which 3 fail; 10 of B, of which none does."""
    folder = tmp_path / "stats"
    folder.mkdir()
    for day in range(40):
        rows = [f"2024-{1 + day // 31:02}-{1 + day % 31:02},{{}}" for _ in range(1)]
        date = rows[0].split(",")[0]
        lines = ["date,serial_number,model,failure,smart_9_raw"]
        for drive in range(30):
            end = 10 * (drive + 1) if drive < 3 else 99
            if day <= end:
                lines.append(f"{date},A{drive},MODEL-A,{int(day == end)},{24 * (day + 100 * drive)}")
        lines += [f"{date},B{drive},MODEL-B,0,{24 * (day + 5)}" for drive in range(10)]
        (folder / f"{date}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_drive_stats(drive_stats):
    rate = {r.model: r for r in fits.failure_rates(fits.read_drive_stats(drive_stats))}
    of_a = study(afr=None, drive_stats=str(drive_stats), drive_model="MODEL-A")
    assert of_a.lifetime.scale_hours == pytest.approx(8760 / rate["MODEL-A"].per_year, rel=1e-12)
    assert "3 failures" in of_a.notes[0] and "MODEL-A" in of_a.notes[0]
    of_b = study(afr=None, drive_stats=str(drive_stats), drive_model="MODEL-B")
    assert of_b.lifetime.scale_hours == pytest.approx(8760 / rate["MODEL-B"].high, rel=1e-12) and "upper bound" in of_b.notes[0]
    days = sum(r.drive_days for r in rate.values())
    assert study(afr=None, drive_stats=str(drive_stats)).lifetime.scale_hours == pytest.approx(24 * days / 3, rel=1e-12)
    fitted = study(afr=None, lifetime="weibull", drive_stats=str(drive_stats), drive_model="MODEL-A")
    fit = fits.fit_weibull(fits.lifetimes(fits.read_drive_stats(drive_stats), "MODEL-A"))
    assert fitted.lifetime == sim.Law.weibull(fit.shape, fit.scale_hours)
    with pytest.raises(UsageError, match="MODEL-C"):
        study(afr=None, drive_stats=str(drive_stats), drive_model="MODEL-C")


@pytest.mark.parametrize("words", [[], ["--lifetime", "weibull"], ["--drive-model", "X"]])
def test_drive_stats_without_a_drive(tmp_path, words):
    (tmp_path / "a.csv").write_text("date,serial_number,model,failure,smart_9_raw\n")
    line = one_line(run("simulate", "-l", 6, "-n", 10, "--drive-stats", tmp_path, *words, code=64))
    assert "no row of a drive" in line


def test_availability_names_what_it_leaves_out():
    line = next(line for line in answer(shelf="5", shock="0.01:100%:shelf", missions=1000).assumptions if line.startswith("Availability"))
    assert "shelves and shocks to them" in line


@pytest.mark.parametrize("damage", ["missing column", "truncated row"])
def test_damaged_drive_stats(drive_stats, damage):
    path = drive_stats / "2024-01-05.csv"
    text = path.read_text()
    path.write_text(text.replace(",failure", ",fault") if damage == "missing column" else text[:-8])
    line = one_line(run("simulate", "--level", 6, "-n", 10, "--drive-stats", drive_stats, code=64))
    assert "2024-01-05.csv" in line and ("'failure' is missing" in line if damage == "missing column" else "fields" in line)


# --- The verb ---------------------------------------------------------------------------------------------------------

VERB = ("simulate", "--level", "6", "--raid-devices", "10", "--afr", "2%", "--mttr", "24h", "--repair", "parallel", "--years", "5")


def test_verb_in_words():
    text = run(*VERB).stdout
    sentence = "0.99999989 of keeping all data for 5 years, 6.97 nines (exact); the next thing to improve is the rebuild time P(loss)"
    assert " ".join(text.split()).startswith(sentence)  # whatever the width of the terminal
    for words in ("P(loss)  1.079e-07", "MTTDL  4.629e+07 years", "10.70 nines", "Repair discipline parallel", "the disks' failure rate"):
        assert words in text


def test_verb_as_json():
    document = json.loads(run(*VERB, "--json").stdout)
    keys = {"schema", "verb", "p_loss", "p_loss_ci95", "mttdl_years", "nines", "availability", "method", "repair", "seed", "words"}
    assert keys <= set(document) and (document["schema"], document["verb"]) == (1, "simulate")
    assert document["p_loss"] == pytest.approx(1.079161763674e-07, rel=1e-9)
    assert (document["method"], document["repair"], document["seed"]) == ("exact", "parallel", 0)
    drawn = json.loads(run(*VERB, "--json", "--method", "mc", "--seed", 3, "--workers", 2).stdout)
    assert (drawn["method"], drawn["seed"]) == ("mc", 3)
    low, high = drawn["p_loss_ci95"]
    assert low < document["p_loss"] * 1.02 and high > document["p_loss"] * 0.98


def test_verb_and_library_say_the_same():
    document = json.loads(run("simulate", "-l", "5", "-n", "4", "--mttr", "constant:24h", "--afr", "5%", "--json").stdout)
    result = sim.simulate(sim.Inputs(level="5", raid_devices=4, mttr="constant:24h", afr="5%").study())
    assert {key: document[key] for key in result.to_dict()} == json.loads(json.dumps(result.to_dict()))


def test_verb_on_real_arrays_reads_only(tmp_path):
    raidlib.create(str(tmp_path / "tank"), level=5, raid_devices=4, size="8M").close()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "tank").iterdir()}
    document = json.loads(run("simulate", tmp_path / "tank", "--afr", "2%", "--rebuild-rate", "1M", "--json").stdout)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "tank").iterdir()} == before
    shape = document["study"]["shape"]
    assert (shape["level"], shape["members"]) == (5, 4)
    size = document["study"]["disk_bytes"]
    assert 4 << 20 < size <= 8 << 20 and document["study"]["repair"]["duration"]["scale_hours"] == size / (1 << 20) / 3600
    line = one_line(run("simulate", tmp_path / "tank", "--level", 6, code=64))
    assert "the shape is ARRAY's: --level" in line
    one_line(run("simulate", tmp_path / "nothing", code=64))


def test_verb_on_arrays_of_arrays_and_rs(tmp_path):
    for name in "ab":
        raidlib.create(str(tmp_path / name), level=6, raid_devices=4, size="8M").close()
    raidlib.create([str(tmp_path / name) for name in "ab"], level=0).close()
    document = json.loads(run("simulate", tmp_path, "--afr", "2%", "--json").stdout)
    assert document["method"] == "exact" and [m["level"] for m in document["study"]["shape"]["members"]] == [6, 6]
    raidlib.create(str(tmp_path / "rs"), level="rs", raid_devices=7, parity=3, size="8M").close()
    document = json.loads(run("simulate", tmp_path / "rs", "--afr", "2%", "--json").stdout)
    assert document["study"]["shape"] == {"level": 1919, "members": 7, "layout": document["study"]["shape"]["layout"], "parity": 3}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--afr", "-2%"], "'-2%'"),
        (["--afr", "nan"], "'nan'"),
        (["--level", "rs", "--data", "12"], "12 data and -2 parity are no 10 disks"),
        (["--method", "magic"], "magic"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_verb_refuses(words, said):
    result = run("simulate", "--level", "6", "-n", "10", *words, code=64)
    assert said in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("verb", ["simulate", "sweep"])
def test_files_that_cannot_be_written_are_refused_before_it_is_computed(tmp_path, monkeypatch, verb):
    """And nothing is left behind, nor cut off, by what fails later."""

    def computed(*_, **__):
        raise UsageError("it was computed")

    monkeypatch.setattr(sim, "simulate" if verb == "simulate" else "run_sweep", computed)
    (tmp_path / "s.toml").write_text("level = 6\nraid_devices = 6\n")
    words = ["simulate", "-l", 6, "-n", 6, "--report"] if verb == "simulate" else ["sweep", tmp_path / "s.toml", "--csv"]
    said = one_line(run(*words, tmp_path / "no" / "x", code=64))
    assert f"{tmp_path / 'no' / 'x'}: No such file or directory" in said
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")
    for path in (old, new):
        assert "it was computed" in one_line(run(*words, path, code=64))
    assert old.read_text() == "kept" and not new.exists()


@pytest.mark.parametrize("library", ["numpy", "scipy", "polars", "matplotlib", "jinja2", "distributed"])
def test_missing_library_is_one_clear_error(tmp_path, library):
    """As where the extra is not installed: the import fails."""
    words = ["simulate", "--level", "6", "-n", "6", "--method", "mc", "--missions", "10", "--lifetime", "weibull:1:5y"]
    if library == "scipy":  # for the interval of a count
        words = ["simulate", "--level", "0", "-n", "2", "--count-losses", "--missions", "100", "--afr", "10%"]
    if library == "polars":
        words = ["simulate", "--level", "6", "-n", "6", "--drive-stats", str(tmp_path)]
    if library in ("matplotlib", "jinja2"):
        words += ["--report", str(tmp_path / "r.html")]
    if library == "distributed":
        (tmp_path / "s.toml").write_text('level = 6\nraid_devices = 6\nmttr = "constant:1h"\n')
        words = ["sweep", str(tmp_path / "s.toml"), "--workers", "2"]
    program_text = f"import sys; sys.modules[{library!r}] = None; sys.argv[1:] = {words!r}; from raidlib.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program_text], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 69, done.stderr
    extra = "dask" if library == "distributed" else "sim"
    assert done.stderr.strip().splitlines()[-1].startswith(f"raidlib: the library {library} is not installed")
    assert f"pip install raidlib[{extra}]" in done.stderr


def test_import_loads_no_library():
    heavy = ("numpy", "scipy", "polars", "matplotlib", "jinja2", "dask", "distributed")
    text = f"import sys, raidlib.sim, raidlib.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in sim.__all__:
        assert getattr(sim, name) is not None
    with pytest.raises(AttributeError):
        _ = sim.nothing
