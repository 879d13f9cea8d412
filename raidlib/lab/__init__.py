"""The laboratory: the production engine under faults that are planned, recorded and replayed.

devices: devices that fail by a plan, and a record of all that was written.
"""

from .devices import Counts, Entry, Fault, FaultyDevice, Recorder, Rule

__all__ = ["Counts", "Entry", "Fault", "FaultyDevice", "Recorder", "Rule"]
