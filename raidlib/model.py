"""The frozen structs and enums that the control plane speaks in. Plain data: nothing here does I/O or decides anything.

Sizes are bytes unless a name says `_sectors` (512 bytes); times are seconds since the epoch, or ISO 8601 where they are text.
"""

from __future__ import annotations

import enum
import re
from typing import Any

import msgspec

from .errors import UsageError

SCHEMA = 1  # of every --json document and of the control socket; raised when a field changes its meaning or goes
SECTOR = 512
MAX_SECTOR = 2**64 - 1


class Level(enum.IntEnum):
    """md's level numbers; `rs` is raidlib's own (k + m Reed-Solomon)."""

    LINEAR = -1
    RAID0 = 0
    RAID1 = 1
    RAID4 = 4
    RAID5 = 5
    RAID6 = 6
    RAID10 = 10
    RS = 1919

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, value: Level | int | str) -> Level:
        """Accepts 6, "6", "raid6", "linear", "stripe", "mirror", "rs"."""
        text = str(int(value)) if isinstance(value, int) else value.strip().lower()
        alias = {"stripe": "0", "mirror": "1", "linear": "-1", "rs": "1919"}
        text = alias.get(text, text.removeprefix("raid"))
        try:
            return cls(int(text))
        except ValueError:
            known = "linear, 0, 1, 4, 5, 6, 10, rs"
            raise UsageError(f"level {value!r} is not known; the levels are {known}") from None


_PARITY5 = {"left-asymmetric": 0, "right-asymmetric": 1, "left-symmetric": 2, "right-symmetric": 3, "parity-first": 4, "parity-last": 5}
_PARITY6 = {
    **_PARITY5,
    "ddf-zero-restart": 8,
    "ddf-n-restart": 9,
    "ddf-n-continue": 10,
    "left-asymmetric-6": 16,
    "right-asymmetric-6": 17,
    "left-symmetric-6": 18,
    "right-symmetric-6": 19,
    "parity-first-6": 20,
}
_SHORT = {"la": "left-asymmetric", "ra": "right-asymmetric", "ls": "left-symmetric", "rs": "right-symmetric"}
_DDF5 = {"ddf-zero-restart": 1, "ddf-n-restart": 0, "ddf-n-continue": 2}
_RAID0 = {"original": 1, "alternate": 2, "dangerous": 0}


def layout_number(level: Level, layout: str | int | None) -> int:
    """md's layout number for a name ("left-symmetric", "ls", "n2", "original") or number; None: mdadm's default."""
    if isinstance(layout, int):
        return layout
    name = "" if layout is None else layout.lower()
    if level is Level.RAID10:
        match = re.fullmatch(r"([nfo])([1-9][0-9]?)", name or "n2")
        if match:
            copies = int(match[2])
            return {"n": 0x100 | copies, "f": copies << 8 | 1, "o": 0x10000 | copies << 8 | 1}[match[1]]
    elif level in (Level.RAID5, Level.RAID6):
        name = _SHORT.get(name, name) or "left-symmetric"
        table = {**_PARITY5, **_DDF5} if level is Level.RAID5 else _PARITY6
        if name in table:
            return table[name]
    elif level is Level.RAID0:
        if (name or "original") in _RAID0:
            return _RAID0[name or "original"]
    elif not name:
        return 0
    raise UsageError(f"layout {layout!r} is not one of {level}: {', '.join(layout_names(level)) or 'it has none'}")


def layout_names(level: Level) -> list[str]:
    """The names a level's layouts go by."""
    if level is Level.RAID10:
        return ["n2", "n3", "f2", "f3", "o2", "o3"]
    table = {Level.RAID5: _PARITY5, Level.RAID6: _PARITY6, Level.RAID0: _RAID0}.get(level, {})
    return list(table)


def layout_name(level: Level | int, number: int) -> str | None:
    """The name of a layout number, as mdadm says it; `0x…` for one without a name; None where the level has no layouts."""
    if level == Level.RAID10:
        near, far = number & 0xFF, number >> 8 & 0xFF
        parts = [f"n{near}"] if near > 1 or far == 1 else []
        parts += [f"{'o' if number & 0x10000 else 'f'}{far}"] if far > 1 else []
        return ",".join(parts) if number < 0x20000 else f"{number:#x}"
    table = {Level.RAID5: _PARITY5, Level.RAID6: _PARITY6, Level.RAID0: _RAID0}.get(Level(level), {})
    names = {value: name.replace("ddf-n-", "ddf-N-") for name, value in table.items()}
    return names.get(number, f"{number:#x}") if table else None


_UNITS = {"": 1, "b": 1, "s": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_size(value: str | int) -> int:
    """Bytes from 4096, "512K", "1.5G", "64KiB"; the units are powers of 1024."""
    if isinstance(value, int):
        if value < 0:
            raise UsageError(f"size {value} is negative")
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([bskmgtp]?)(?:i?b)?\s*", value.lower())
    if not match:
        raise UsageError(f"size {value!r} is not a number with a unit K, M, G or T")
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


def format_size(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or count == int(count) else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


class State(enum.StrEnum):
    """Of an array, the worst that holds."""

    CLEAN = "clean"
    ACTIVE = "active"
    READ_ONLY = "read_only"
    DEGRADED = "degraded"
    FAILED = "failed"


class MemberState(enum.StrEnum):
    """Of a member in its array."""

    IN_SYNC = "in_sync"
    REBUILDING = "rebuilding"
    REPLACEMENT = "replacement"
    SPARE = "spare"
    FAULTY = "faulty"
    REMOVED = "removed"
    STALE = "stale"
    JOURNAL = "journal"


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """A record that turns into JSON as it stands."""

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result

    def to_json(self, indent: int = 2) -> str:
        """A JSON document."""
        return msgspec.json.format(msgspec.json.encode(self), indent=indent).decode()


class BitmapHead(Struct, frozen=True, kw_only=True):
    """What a member's write-intent bitmap says (md-format.md 3.1)."""

    offset: int  # bytes of the member
    version: int
    events: int
    events_cleared: int  # a member that was away since is brought up to date by the marked regions
    out_of_date: bool  # the bits say nothing: all count as set
    chunk_size: int  # bytes of a region
    daemon_sleep: int  # seconds between the rounds that clear marks
    write_behind: int
    sync_size: int  # bytes that it covers: of the member; of the array for raid10
    bits: int
    dirty: int  # regions that are marked


class Bitmap(Struct, frozen=True, kw_only=True):
    """An array's write-intent bitmap."""

    chunk_size: int  # bytes of a region
    bits: int  # regions
    dirty: int  # that are marked
    needed: int  # of those, what a resync has to go over
    events_cleared: int
    daemon_sleep: int  # seconds


class Superblock(Struct, frozen=True, kw_only=True):
    """What a member's superblock says (md-format.md 1.2 and 1.11)."""

    schema: int = SCHEMA
    path: str
    metadata: str  # "0.90", "1.0", "1.1", "1.2"
    uuid: str  # as mdadm prints it: four groups of eight hex digits
    name: str
    level: str
    layout: str | None
    chunk_size: int
    raid_devices: int
    dev_size: int  # bytes of each member that the array uses (0 for linear and raid0)
    data_offset: int  # bytes
    data_size: int  # bytes
    super_offset: int  # bytes
    device_uuid: str
    dev_number: int
    slot: int | None
    role: str  # "active", "rebuilding", "replacement", "spare", "faulty", "journal"
    recovery_offset: int | None  # bytes from data_offset that are rebuilt; None: not rebuilding
    resync_offset: int | None  # bytes (of the member; of the array for raid10) that are in sync; None: all
    state: str  # "clean" or "active"
    events: int
    created: float
    updated: float
    features: list[str]
    bad_block_log: bool
    device_roles: str  # mdadm's "AAA." string
    reshape_position: int | None = None  # bytes of the array
    logical_block_size: int = 0
    member_size: int = 0  # bytes of the member itself
    bitmap: BitmapHead | None = None
    bitmap_problem: str = ""  # why the bitmap that it should have cannot be used


class TakenBack(Struct, frozen=True, kw_only=True):
    """How a former member came back."""

    by_bitmap: bool  # only what was written meanwhile has to be copied
    to_copy: int  # bytes, as of then
    total: int  # that the array uses of a member
    reason: str = ""  # why all of it has to be copied


class MemberStatus(Struct, frozen=True, kw_only=True):
    """One member of an array."""

    slot: int | None
    path: str
    state: MemberState
    device: int | None = None  # the engine's index; None for a member that is not part of the running array
    size: int = 0
    recovered: int | None = None  # bytes rebuilt so far, while rebuilding
    read_errors: int = 0
    corrected_reads: int = 0
    write_errors: int = 0  # blocks that could not be written since the array was opened
    bad_blocks: int = 0  # ranges that are marked as bad
    reason: str = ""  # why it is faulty, stale or left out
    array: Status | None = None  # a member that is an array itself
    by_bitmap: bool = False  # while rebuilding: it was away, and only what changed meanwhile is copied
    taken_back: TakenBack | None = None  # since the array was opened


class JobStatus(Struct, frozen=True, kw_only=True):
    """A running or ended job."""

    kind: str  # "recovery", "resync", "check", "repair"
    state: str  # "running", "paused", "done", "cancelled", "failed"
    done: int  # bytes of each member
    total: int
    mismatch_count: int  # 512-byte sectors, as md counts
    elapsed: float
    rate: float  # bytes a second of each member
    eta: float | None
    error: str = ""


class Mismatch(Struct, frozen=True, kw_only=True):
    """A place where parity or copies did not agree."""

    sector: int  # parity levels: member sector (from data_offset); mirrors: array sector
    sectors: int
    slot: int | None  # the member that lies, where the code can tell
    repaired: bool


class Status(Struct, frozen=True, kw_only=True):
    """The state of an array: what `detail` prints and `Array.status()` returns."""

    schema: int = SCHEMA
    uuid: str
    name: str
    metadata: str
    level: str
    layout: str | None
    chunk_size: int
    size: int
    dev_size: int
    raid_devices: int
    state: State
    read_only: bool
    degraded: int  # slots that are empty or not yet rebuilt
    may_lose: int  # how many more members may be lost, whichever they are
    consistency_policy: str
    events: int
    created: float
    updated: float
    resync_offset: int | None  # bytes in sync; None: all
    mismatch_count: int
    corrected_reads: int
    members: list[MemberStatus]
    job: JobStatus | None
    advice: str  # in words: what can still be lost, and what to do
    owner_pid: int | None = None
    mountpoint: str | None = None
    volume: str | None = None
    notes: list[str] = []
    bitmap: Bitmap | None = None
    files_may_lose: int | None = None  # with arrays as members: how many files and devices below all levels may be lost, whichever

    def files(self) -> list[str]:
        """The members' paths, at every level."""
        return [path for m in self.members for path in (m.path, *(m.array.files() if m.array is not None else ()))]

    def worst(self) -> Status:
        """The array of the tree that is worst off: itself, if it is not whole, else an inner one that is not."""
        inner = [m.array.worst() for m in self.members if m.array is not None]
        return next((s for s in (self, *inner) if s.degraded or s.state is State.FAILED), self)


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a running array."""

    # "fail", "spare_active", "sync_started", "sync_finished", "read_corrected", "no_space", "space", "added", "removed", "replaced",
    # "bad_block"
    kind: str
    device: int
    slot: int | None
    offset: int
    time: float
    text: str
