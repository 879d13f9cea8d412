"""raidlib: redundant disk arrays in user space, in the Linux md on-disk format."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import codec, errors, lab
    from .array import Array
    from .assembly import Assembly
    from .engine import BlockDevice
    from .errors import RaidError
    from .jobs import Job
    from .member import MemoryDevice, examine, resolve, zero_superblock
    from .model import (
        Bitmap,
        BitmapHead,
        Event,
        JobStatus,
        Level,
        MemberState,
        MemberStatus,
        Mismatch,
        State,
        Status,
        Superblock,
        TakenBack,
    )
    from .opening import create, open, plan
else:

    def __getattr__(name):
        """Everything public comes with the first of it that is asked for: so pytest knows the laboratory's plugin at no cost."""
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for module in ("opening", "array", "assembly", "engine", "errors", "jobs", "member", "model") if name in __all__ else ():
            found = import_module(f".{module}", __name__)
            if hasattr(found, name):
                globals()[name] = getattr(found, name)
                return globals()[name]
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Array",
    "Assembly",
    "Bitmap",
    "BitmapHead",
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
    "TakenBack",
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
