"""The laboratory: the production engine under faults that are planned, recorded and replayed.

devices: devices that fail by a plan, and a record of all that was written. rig: an array on such devices. truth: what must be there.
faults, trial: every kind of fault on every member, and the judgement. drill, outcome: campaigns, run beside each other, and their table.
plugin: the fixture for pytest.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .devices import Counts, Entry, Fault, FaultyDevice, Recorder, Rule
    from .rig import Lab, Shape
else:

    def __getattr__(name):
        """What is public, when it is asked for: that pytest knows the plugin costs nothing."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import devices, rig

        return getattr(rig if name in ("Lab", "Shape") else devices, name)


__all__ = ["Counts", "Entry", "Fault", "FaultyDevice", "Lab", "Recorder", "Rule", "Shape"]
