"""The laboratory: the production engine under faults that are planned, recorded and replayed.

devices: devices that fail by a plan, and a record of all that was written.
power: every state that a power cut can leave, from that record. workloads: what is done before; verdicts: what was promised of it;
campaign: many of them, and one again by its name. session: an array on the calling thread alone.
"""

from .campaign import Replayed, Tally, Violation, campaign, campaigns, replay
from .devices import Counts, Entry, Fault, FaultyDevice, Recorder, Rule
from .power import History, State, power_cuts
from .workloads import POLICIES, SHAPES

__all__ = [
    "POLICIES",
    "SHAPES",
    "Counts",
    "Entry",
    "Fault",
    "FaultyDevice",
    "History",
    "Recorder",
    "Replayed",
    "Rule",
    "State",
    "Tally",
    "Violation",
    "campaign",
    "campaigns",
    "power_cuts",
    "replay",
]
