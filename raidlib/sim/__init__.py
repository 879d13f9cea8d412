"""How many nines: durability and availability of redundant arrays.

    study = sim.Inputs(level=6, raid_devices=10, afr="2%", mttr="24h", years=5).study()    # or Study(...), in numbers
    sim.simulate(study).words                                                              # 0.99999989 of keeping all data for 5 years …

`study` puts a question to `chains` (exact, for exponential times) or to `montecarlo` (missions drawn at random, in C), `sweep` to many
studies at once, `report` makes a page of an answer. `formulas` has the closed formulas of the literature; `fits` gets rates and lifetimes
from data. Times in hours, rates per hour, but where a name says otherwise; a year has 8760 hours.

All names here are loaded when they are used. They need the extra `raidlib[sim]`, a sweep on several workers `raidlib[dask]` as well.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import MissingFacilityError

if TYPE_CHECKING:
    from . import chains, fits, formulas, inputs, model, montecarlo, report, study, sweep, verdicts
    from .chains import HOURS_PER_YEAR, Chain, Group, Sensitivity, of_many, sensitivities
    from .formulas import nines
    from .inputs import Inputs
    from .model import Batches, LatentErrors, Law, Pool, Repair, Shelves, Shock, Spares, System
    from .montecarlo import Estimate
    from .report import write_report
    from .study import Curve, Improvement, Result, Study, simulate
    from .sweep import Sweep, run_sweep
    from .verdicts import Shape

_HOMES = {
    "chains": ("HOURS_PER_YEAR", "Chain", "Group", "Sensitivity", "of_many", "sensitivities"),
    "fits": (),
    "formulas": ("nines",),
    "inputs": ("Inputs",),
    "model": ("Batches", "LatentErrors", "Law", "Pool", "Repair", "Shelves", "Shock", "Spares", "System"),
    "montecarlo": ("Estimate",),
    "report": ("write_report",),
    "study": ("Curve", "Improvement", "Result", "Study", "simulate"),
    "sweep": ("Sweep", "run_sweep"),
    "verdicts": ("Shape",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "HOURS_PER_YEAR",
    "Batches",
    "Chain",
    "Curve",
    "Estimate",
    "Group",
    "Improvement",
    "Inputs",
    "LatentErrors",
    "Law",
    "Pool",
    "Repair",
    "Result",
    "Sensitivity",
    "Shape",
    "Shelves",
    "Shock",
    "Spares",
    "Study",
    "Sweep",
    "System",
    "chains",
    "fits",
    "formulas",
    "inputs",
    "model",
    "montecarlo",
    "nines",
    "of_many",
    "report",
    "run_sweep",
    "sensitivities",
    "simulate",
    "study",
    "sweep",
    "verdicts",
    "write_report",
]


@contextlib.contextmanager
def needs(extra: str = "sim") -> Iterator[None]:
    """What runs inside may find that a library of an extra is not installed: one clear error then."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("", "raidlib"):
            raise
        raise MissingFacilityError(f"the library {name} is not installed; the simulator needs it: pip install raidlib[{extra}]") from error


def __getattr__(name: str) -> Any:
    with needs():
        if name in _HOME_OF:
            return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
        if name in _HOMES:
            return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
