"""How many nines: durability and availability of redundant arrays.

    group = sim.Group(disks=10, tolerance=2, failure_per_hour=0.02 / sim.HOURS_PER_YEAR, repair_per_hour=1 / 24)
    group.chain().loss_probability(5 * sim.HOURS_PER_YEAR)     # 1.0792e-07

`chains` is exact, for exponential times; `formulas` has the closed formulas of the literature; `fits` gets rates and lifetimes from data.
Times in hours, rates per hour, a year of 8760 hours. `raidlib.sim` needs the extra `raidlib[sim]`; `fits`, which loads polars and scipy, is
imported by who uses it.
"""

from raidlib.sim import chains, formulas
from raidlib.sim.chains import HOURS_PER_YEAR, Chain, Group, Sensitivity, Shock, of_many, sensitivities
from raidlib.sim.formulas import nines

__all__ = ["HOURS_PER_YEAR", "Chain", "Group", "Sensitivity", "Shock", "chains", "formulas", "nines", "of_many", "sensitivities"]
