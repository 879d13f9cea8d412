"""The closed formulas: against the figures that their sources print, and against the exact chains where they should agree."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidlib.errors import UsageError
from raidlib.sim import formulas
from raidlib.sim.chains import Group

COPYSETS = {"nodes": 5000, "failed": 50, "replicas": 3}
PATTERSON = {"data_disks": 100, "group_data": 10, "group_check": 1, "mttf_hours": 30000.0, "mttr_hours": 1.0}
FORD = {"failure_rate": 8.1345e-3, "recovery_rate": 66.013}
ILIADIS = {"devices": 50, "codeword": 10, "data": 8, "mttf_hours": 438000.0, "rebuild_hours": 24.0}
CASES = [  # id of sim_cases.csv, what, computed, expected, relative tolerance
    ("D01", "RAID 5", lambda: formulas.mttdl_patterson(**PATTERSON), 900000000 / 1100, 1e-9),
    ("D03", "m=1", lambda: formulas.mttdl_leading(6, 1, 750000.0, 24.0), 7.81e8, 1e-3),
    ("D03", "m=2", lambda: formulas.mttdl_leading(6, 2, 750000.0, 24.0), 6.1e12, 1e-2),
    ("D03", "m=3", lambda: formulas.mttdl_leading(6, 3, 750000.0, 24.0), 6.36e16, 1e-3),
    ("D03", "m=1 years", lambda: formulas.mttdl_leading(6, 1, 750000.0, 24.0) / 8760, 8.92e4, 1e-3),
    ("D03", "m=2 years", lambda: formulas.mttdl_leading(6, 2, 750000.0, 24.0) / 8760, 6.97e8, 1e-3),
    ("D03", "m=3 years", lambda: formulas.mttdl_leading(6, 3, 750000.0, 24.0) / 8760, 7.26e12, 1e-3),
    ("D04", "RAID 5 7+1", lambda: formulas.mttdl_leading(8, 1, 461386.0, 12.0) / 8760, 36162.25, 1e-6),
    ("D06", "2,1", lambda: formulas.mttdl_ford(2, 1, **FORD), 498997.38122, 1e-11),
    ("D06", "3,1", lambda: formulas.mttdl_ford(3, 1, **FORD), 1349985748.7996, 1e-12),
    ("D06", "6,4", lambda: formulas.mttdl_ford(6, 4, **FORD), 67549233.27805, 1e-12),
    ("D06", "9,6", lambda: formulas.mttdl_ford(9, 6, **FORD), 21766383621.836, 1e-12),
    ("D07", "window", lambda: formulas.window_loss(20, 3, 0.00405, 6.5).window, 1.310e-13, 5e-4),
    ("D07", "year", lambda: formulas.window_loss(20, 3, 0.00405, 6.5).annual, 7.3537995e-12, 1e-6),
    ("D07", "durability", lambda: 1 - formulas.window_loss(20, 3, 0.00405, 6.5).annual, 0.999999999992646, 1e-15),
    ("D07", "nines", lambda: math.floor(formulas.nines(formulas.window_loss(20, 3, 0.00405, 6.5).annual)), 11, 0),
    ("D08", "year", lambda: formulas.window_loss(6, 2, 0.10, 1.0).annual, 1.500e-7, 5e-4),
    ("D08", "durability", lambda: 1 - formulas.window_loss(6, 2, 0.10, 1.0).annual, 0.999999850032187, 1e-15),
    ("D08", "nines", lambda: math.floor(formulas.nines(formulas.window_loss(6, 2, 0.10, 1.0).annual)), 6, 0),
    ("D17", "275000", lambda: formulas.copyset_loss(**COPYSETS, copysets=275000), 0.22808, 1e-3),
    ("D18", "1e7", lambda: formulas.copyset_loss(**COPYSETS, copysets=10**7), 0.999918, 1e-3),
    ("D18", "1666", lambda: formulas.copyset_loss(**COPYSETS, copysets=1666), 0.0015671, 1e-3),
    ("D22", "0.01", lambda: formulas.k_of_n_loss(8, 2, 0.01, groups=3), 1.617912373e-4, 1e-9),
    ("D22", "0.05", lambda: formulas.k_of_n_loss(8, 2, 0.05, groups=3), 0.01726433731, 1e-9),
    ("D22", "0.1", lambda: formulas.k_of_n_loss(8, 2, 0.1, groups=3), 0.1099776872, 1e-9),
    ("D23", "RAID 6", lambda: formulas.ceph_raid_loss(8, 2), 1.8396981801e-09, 1e-9),
    ("D23", "RADOS", lambda: formulas.ceph_rados_loss(3), 5.0902555816e-11, 1e-9),
    ("D24", "MTTDL", lambda: formulas.clustered_data_loss(**ILIADIS).mttdl_years, 9251736.111, 1e-9),
    ("D24", "EAFDL", lambda: formulas.clustered_data_loss(**ILIADIS).annual_fraction, 7.205854757e-9, 1e-9),
    ("D24", "E(H)", lambda: formulas.clustered_data_loss(**ILIADIS).lost_per_device, 8 / 3, 1e-9),
]


@pytest.mark.parametrize(("case", "what", "computed", "expected", "tolerance"), CASES, ids=[f"{row[0]} {row[1]}" for row in CASES])
def test_published(case, what, computed, expected, tolerance):
    assert computed() == pytest.approx(expected, rel=tolerance, abs=0)


# --- exact --------------------------------------------------------------------------------------------------------------------------


def serial_chain(disks, tolerance, failure, repair):
    """Mean time to loss of the birth-death chain with one crew, in fractions: the sum of the mean times from i failed to i + 1."""
    step, total = Fraction(0), Fraction(0)
    for failed in range(tolerance + 1):
        step = (1 + (repair * step if failed else 0)) / ((disks - failed) * failure)
        total += step
    return total


RATIONAL = st.fractions(Fraction(1, 10**6), 100, max_denominator=10**6)


@given(disks=st.integers(2, 40), failure=RATIONAL, repair=RATIONAL)
def test_d05_single_parity_is_the_chain(disks, failure, repair):
    assert formulas.mttdl_single_parity(disks, failure, repair) == serial_chain(disks, 1, failure, repair)


@given(minimum=st.integers(1, 20), more=st.integers(0, 6), failure=RATIONAL, repair=RATIONAL)
def test_d06_ford_is_the_serial_chain(minimum, more, failure, repair):
    assert formulas.mttdl_ford(minimum + more, minimum, failure, repair) == serial_chain(minimum + more, more, failure, repair)


@pytest.mark.parametrize("crews", [1, 2, None])
def test_leading_term_is_the_limit_of_the_chain(crews):
    one = Group(disks=10, tolerance=3, failure_per_hour=1e-9, repair_per_hour=0.1, crews=crews)
    assert formulas.mttdl_leading(10, 3, 1e9, 10.0, crews) == pytest.approx(one.chain().mttdl_hours(), rel=1e-6)


@given(disks=st.integers(1, 30), loss=st.fractions(0, 1, max_denominator=10**9), data=st.data(), groups=st.integers(1, 5))
def test_k_of_n_in_fractions(disks, loss, data, groups):
    tolerance = data.draw(st.integers(0, disks - 1))
    tail = sum(math.comb(disks, j) * loss**j * (1 - loss) ** (disks - j) for j in range(tolerance + 1, disks + 1))
    exact = 1 - (1 - tail) ** groups
    assert formulas.k_of_n_loss(disks, tolerance, float(loss), groups) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


# --- amounts of data ------------------------------------------------------------------------------------------------------------


def test_clustered_and_the_chain():
    """The chain forgets how far a rebuild is, and ends the second one at twice the rate: to first order that is a constant rebuild that
    has half of its data to do at the second failure. Rebuilds that are exponential but do not forget are hit twice when they are long.
    """
    one = Group(disks=10, tolerance=2, failure_per_hour=1e-9, repair_per_hour=1 / 24)
    for moment in (1.0, 2.0):
        found = formulas.clustered_data_loss(10, 10, 8, 1e9, 24.0, moment)
        assert found.mttdl_years * 8760 == pytest.approx(one.chain().mttdl_hours() / moment, rel=1e-5)


def test_declustered_copies():
    """Two and three copies declustered, in the closed form of Venkatesan et al. (MASCOTS 2010): b / (2 n lambda^2 c), (n-1) b^2 / (4 n
    lambda^3 c^2).
    """
    for devices in (3, 20, 500):
        two = formulas.declustered_data_loss(devices, 2, 1, 5e5, 10.0).mttdl_years * 8760
        assert two == pytest.approx(5e5**2 / (2 * devices * 10), rel=1e-12)
        three = formulas.declustered_data_loss(devices, 3, 1, 5e5, 10.0).mttdl_years * 8760
        assert three == pytest.approx((devices - 1) * 5e5**3 / (4 * devices * 100), rel=1e-12)
    assert formulas.declustered_data_loss(10, 10, 8, 5e5, 10.0).lost_per_device == pytest.approx(8 / 3)


def test_clustered_against_a_naive_simulation():
    """Group of 4 that survives 2, constant rebuild that does the most exposed data first, by hand: the data of a device as the interval
    0..1, of which [0, x) is back. Frequent failures of the first device are forced; what follows is drawn.
    """
    rng = random.Random(20)
    runs, hits, lost = 400_000, 0.0, 0.0
    mttf, rebuild = 1000.0, 24.0
    for _ in range(runs):
        first = rng.uniform(0, rebuild)  # one of 3 others fails at a uniform time, with probability 3 * rebuild / mttf
        left = 1 - first / rebuild  # the doubly exposed data, rebuilt in left * rebuild hours
        second = rng.uniform(0, left * rebuild)
        weight = (3 * rebuild / mttf) * (2 * left * rebuild / mttf)
        hits += weight
        lost += weight * (left - second / rebuild) * 2  # 2 data blocks per codeword
    found = formulas.clustered_data_loss(4, 4, 2, mttf, rebuild)
    assert 1 / (found.mttdl_years * 8760) == pytest.approx(4 / mttf * hits / runs, rel=5e-3)
    assert found.lost_per_device == pytest.approx(lost / hits, rel=5e-3)


# --- edges and wrong input ----------------------------------------------------------------------------------------------------------


def test_edges():
    assert formulas.nines(0.0) == math.inf and formulas.nines(1.0) == 0.0
    assert formulas.k_of_n_loss(3, 1, 1.0) == 1.0 and formulas.k_of_n_loss(3, 1, 0.0) == 0.0
    assert formulas.window_loss(3, 1, 0.0, 1.0) == formulas.WindowLoss(0.0, 0.0)
    assert (
        formulas.copyset_loss(10, 2, 3, 100) == 0.0
        and formulas.copyset_loss(10, 10, 3, 1) == 1.0
        and formulas.copyset_loss(10, 5, 3, 0) == 0.0
    )
    assert formulas.clustered_data_loss(4, 4, 2, 1e5, 0.0).mttdl_years == math.inf
    assert formulas.ceph_rados_loss(1) == pytest.approx(-math.expm1(-826e-9 * 8766), rel=1e-15)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: formulas.nines(1.5), "loss 1.5"),
    (lambda: formulas.nines(math.nan), "loss nan"),
    (lambda: formulas.mttdl_patterson(**{**PATTERSON, "mttr_hours": -1.0}), "mttr_hours -1.0"),
    (lambda: formulas.mttdl_patterson(**{**PATTERSON, "group_data": 7}), "100 data disks in groups of 7"),
    (lambda: formulas.mttdl_leading(6, 6, 1e6, 24.0), "tolerance 6: of 6 disks"),
    (lambda: formulas.mttdl_leading(6, 2, math.nan, 24.0), "mttf_hours nan"),
    (lambda: formulas.mttdl_leading(6, 2, 1e6, 24.0, crews=0), "crews 0"),
    (lambda: formulas.mttdl_single_parity(1, 1e-6, 0.1), "tolerance 1: of 1 disks"),
    (lambda: formulas.mttdl_single_parity(4, 0.0, 0.1), "failure_per_hour 0"),
    (lambda: formulas.mttdl_ford(4, 5, 1e-6, 0.1), "minimum 5"),
    (lambda: formulas.k_of_n_loss(8, 2, 1.01), "disk_loss 1.01"),
    (lambda: formulas.k_of_n_loss(8, 2, 0.01, groups=0), "groups 0"),
    (lambda: formulas.window_loss(8, 2, -0.01, 1.0), "failures_per_year -0.01"),
    (lambda: formulas.window_loss(8, 2, 0.01, 0.0), "window_days 0"),
    (lambda: formulas.copyset_loss(10, 11, 3, 5), "11 failed nodes"),
    (lambda: formulas.ceph_raid_loss(2, 2), "tolerance 2: of 2 disks"),
    (lambda: formulas.ceph_raid_loss(8, 2, -1.0), "failures_per_1e9_hours -1.0"),
    (lambda: formulas.ceph_rados_loss(0), "copies 0"),
    (lambda: formulas.ceph_rados_loss(3, fullness=-9.0), "hours of recovery"),
    (lambda: formulas.clustered_data_loss(**{**ILIADIS, "devices": 55}), "devices 55"),
    (lambda: formulas.clustered_data_loss(**{**ILIADIS, "data": 11}), "tolerance -1"),
    (lambda: formulas.clustered_data_loss(**{**ILIADIS, "rebuild_hours": math.nan}), "hours of rebuild nan"),
    (lambda: formulas.declustered_data_loss(5, 10, 8, 1e5, 24.0), "devices 5"),
])  # fmt: skip
def test_wrong_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
