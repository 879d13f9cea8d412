"""raidlib: redundant disk arrays in user space, in the Linux md on-disk format."""

from . import codec, errors, lab
from .array import Array
from .assembly import Assembly
from .engine import BlockDevice
from .errors import RaidError
from .jobs import Job
from .member import MemoryDevice, examine, resolve, zero_superblock
from .model import Event, JobStatus, Level, MemberState, MemberStatus, Mismatch, State, Status, Superblock
from .opening import create, open, plan

__all__ = [
    "Array",
    "Assembly",
    "BlockDevice",
    "Event",
    "Job",
    "JobStatus",
    "Level",
    "MemberState",
    "MemberStatus",
    "MemoryDevice",
    "Mismatch",
    "RaidError",
    "State",
    "Status",
    "Superblock",
    "codec",
    "create",
    "errors",
    "examine",
    "lab",
    "open",
    "plan",
    "resolve",
    "zero_superblock",
]
__version__ = "0.1.0"
