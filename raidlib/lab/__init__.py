"""The laboratory: the production engine under faults that are planned, recorded and replayed.

devices: devices that fail by a plan, and a record of all that was written.
rig: an array on such devices. truth: what must be there. faults, trial: every kind of fault on every member, and the judgement.
power: every state that a power cut can leave, from the record. workloads: what is done before; verdicts: what was promised of it; session:
an array on the calling thread alone; crashes: many of them, and one again by its name.
drill, outcome: all of it, run beside each other, and the table. plugin: the fixture for pytest.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .crashes import Replayed, Tally, Violation, campaign, campaigns, replay
    from .devices import Counts, Entry, Fault, FaultyDevice, Recorder, Rule
    from .power import History, State, power_cuts
    from .rig import Lab, Shape
    from .workloads import POLICIES, SHAPES
else:
    _HOMES = {
        "crashes": ("Replayed", "Tally", "Violation", "campaign", "campaigns", "replay"),
        "devices": ("Counts", "Entry", "Fault", "FaultyDevice", "Recorder", "Rule"),
        "power": ("History", "State", "power_cuts"),
        "rig": ("Lab", "Shape"),
        "workloads": ("POLICIES", "SHAPES"),
    }

    def __getattr__(name):
        """What is public, when it is asked for: that pytest knows the plugin costs nothing."""
        import importlib

        for home, names in _HOMES.items():
            if name in names:
                found = getattr(importlib.import_module(f".{home}", __name__), name)
                globals()[name] = found  # also where a module has the name of what is in it
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "POLICIES",
    "SHAPES",
    "Counts",
    "Entry",
    "Fault",
    "FaultyDevice",
    "History",
    "Lab",
    "Recorder",
    "Replayed",
    "Rule",
    "Shape",
    "State",
    "Tally",
    "Violation",
    "campaign",
    "campaigns",
    "power_cuts",
    "replay",
]
