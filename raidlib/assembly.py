"""Which members belong to an array, which is freshest, what is refused and why: md's rules (md-format.md 6.1 to 6.3, 10.1).

Writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from . import bitmap
from .engine import Clock, check, ffi, lib
from .errors import MixedArraysError, NotEnoughMembersError, RaidError, RefusedError, UnsupportedError, UsageError
from .member import VERSIONS, Member, device_roles, read_bad_blocks, read_superblock, role_of, uuid_text
from .model import MAX_SECTOR, SCHEMA, SECTOR, Level, MemberState, MemberStatus, Struct, layout_name

PARITY_LEVELS = (Level.RAID4, Level.RAID5, Level.RAID6, Level.RS)
# What can be read right without being handled; the array opens read-only.
_READ_ONLY_FEATURES = {
    lib.RL_FEATURE_PPL: "a partial parity log (PPL)",
    lib.RL_FEATURE_MULTIPLE_PPL: "a partial parity log (PPL)",
    lib.RL_FEATURE_CLUSTERED: "a clustered bitmap",
}
_REFUSED_FEATURES = {
    lib.RL_FEATURE_RESHAPE: "a reshape under way",
    lib.RL_FEATURE_JOURNAL: "a write journal",
}
_USE_MD = "use the kernel's md"
_DROP_BY_MD = "have the kernel's md take the bitmap away (mdadm --assemble --update=no-bitmap)"
_DROP_BY_FORCE = "give the bitmap up by --force (force=True): after an unclean stop all is resynced then"

DEVICE_STATES = {
    lib.RL_DEVICE_IN_SYNC: MemberState.IN_SYNC,
    lib.RL_DEVICE_REBUILDING: MemberState.REBUILDING,
    lib.RL_DEVICE_REPLACEMENT: MemberState.REPLACEMENT,
    lib.RL_DEVICE_SPARE: MemberState.SPARE,
    lib.RL_DEVICE_FAULTY: MemberState.FAULTY,
    lib.RL_DEVICE_REMOVED: MemberState.REMOVED,
}
_TO_ENGINE = {state: number for number, state in DEVICE_STATES.items()}


@dataclasses.dataclass
class Candidate:
    """A member that was given, its superblock, and what was made of it."""

    member: Member
    sb: Any
    state: MemberState = MemberState.STALE
    slot: int | None = None
    recovered: int = MAX_SECTOR  # sectors
    reason: str = ""
    bad_blocks: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    fit: bool = True  # large enough
    by_bitmap: bool = False  # above `recovered` only what the bitmap marks is out of date

    @property
    def used(self) -> bool:
        """Whether it takes part in the array (a spare does)."""
        return self.state in (MemberState.IN_SYNC, MemberState.REBUILDING, MemberState.REPLACEMENT, MemberState.SPARE)


class Assembly(Struct, frozen=True, kw_only=True):
    """What would be opened out of the members given, and why."""

    schema: int = SCHEMA
    uuid: str
    name: str
    metadata: str
    level: str
    layout: str | None
    chunk_size: int
    raid_devices: int
    size: int
    events: int
    clean: bool
    members: list[MemberStatus]
    startable: bool  # without any option
    needs_run: bool
    needs_force: bool
    read_only_only: list[str]  # what keeps it from being written
    problem: str  # why it cannot be started at all, or not without an option; empty: it can


@dataclasses.dataclass
class Plan:
    """An assembly with the open members behind it. The caller closes them (`close`), or takes over those that are used."""

    candidates: list[Candidate]
    freshest: Candidate
    geometry: Any = None
    error: RaidError | None = None
    needs_run: bool = False
    needs_force: bool = False
    read_only_only: dict[str, str] = dataclasses.field(default_factory=dict)  # what keeps it from being written, and the way out
    notes: list[str] = dataclasses.field(default_factory=list)
    clean: bool = True
    set_aside: list[MemberStatus] = dataclasses.field(default_factory=list)  # files that are members no more

    def close(self) -> None:
        """Lets all members go."""
        for candidate in self.candidates:
            candidate.member.close()

    def used(self) -> list[Candidate]:
        """Those that take part, by slot, spares last: the engine's devices."""
        return sorted((c for c in self.candidates if c.used), key=lambda c: (c.state is MemberState.SPARE, c.slot or 0))

    def open(self, read_only: bool, clock: Clock | None = None) -> Any:
        """The engine's handle of the array, on the members that take part. clock: the time that it goes by; None: the system's."""
        config, out = ffi.new("struct rl_array_config *"), ffi.new("rl_array **")
        used = self.used()
        devices = ffi.new("struct rl_device_config[]", len(used))
        config.size_of = ffi.sizeof("struct rl_array_config")
        config.flags = lib.RL_ARRAY_READ_ONLY if read_only else 0
        config.geometry, config.superblock = self.geometry[0], self.freshest.sb[0]
        if self.needs_force:
            config.flags |= lib.RL_ARRAY_FORCED
        config.device_count, config.devices = len(used), devices
        if clock is not None:
            config.clock_ns, config.wall_ns = clock.clock_ns, clock.wall_ns
        keep = [_fill(device, candidate) for device, candidate in zip(devices, used, strict=True)]
        check(lib.rl_array_open(config, out))
        del keep
        return out[0]

    def summary(self) -> Assembly:
        """As a frozen struct."""
        sb = self.freshest.sb
        level = Level(sb.level) if sb.level in Level.__members__.values() else None
        return Assembly(
            uuid=uuid_text(bytes(ffi.buffer(sb.set_uuid))),
            name=ffi.string(sb.set_name).decode(errors="replace"),
            metadata=VERSIONS[sb.version],
            level=str(level) if level is not None else f"level {sb.level}",
            layout=layout_name(level, sb.layout) if level is not None else None,
            chunk_size=sb.chunk_sectors * SECTOR,
            raid_devices=sb.raid_disks,
            size=self.geometry.array_sectors * SECTOR if self.geometry else 0,
            events=sb.events,
            clean=self.clean,
            members=member_statuses(self.candidates, sb.raid_disks) + self.set_aside,
            startable=self.error is None,
            needs_run=self.needs_run,
            needs_force=self.needs_force,
            read_only_only=list(self.read_only_only),
            problem=str(self.error) if self.error else "",
        )


def member_statuses(candidates: Iterable[Candidate], raid_disks: int) -> list[MemberStatus]:
    """Those in slots by slot, missing slots in their places, then the rest."""
    known = [
        MemberStatus(
            slot=c.slot,
            path=c.member.path,
            state=c.state,
            size=c.member.size,
            recovered=c.recovered * SECTOR if c.state in (MemberState.REBUILDING, MemberState.REPLACEMENT) else None,
            bad_blocks=len(c.bad_blocks),
            reason=c.reason,
            by_bitmap=c.by_bitmap,
            array=c.member.array.status() if c.member.array is not None else None,
        )
        for c in candidates
    ]
    slots = {m.slot for m in known if m.state in (MemberState.IN_SYNC, MemberState.REBUILDING)}
    known += [
        MemberStatus(slot=slot, path="missing", state=MemberState.REMOVED, reason="no member")
        for slot in range(raid_disks)
        if slot not in slots
    ]
    return sorted(known, key=lambda m: (m.slot is None, m.slot if m.slot is not None else 0, m.state is MemberState.REPLACEMENT))


def _fill(device: Any, candidate: Candidate) -> Any:
    """What the engine is to know of a device; returns memory that must live until it has read it."""
    device.member = candidate.member.handle.pointer
    device.state = _TO_ENGINE[candidate.state]
    device.slot = -1 if candidate.slot is None or candidate.state is MemberState.SPARE else candidate.slot
    device.superblock, device.by_bitmap = candidate.sb, candidate.by_bitmap
    if candidate.state in (MemberState.REBUILDING, MemberState.REPLACEMENT):
        # the engine rebuilds whole chunks: what is good of the last one is done once more
        device.recovered_sectors = candidate.recovered // max(candidate.sb.chunk_sectors, 8) * max(candidate.sb.chunk_sectors, 8)
    if not candidate.bad_blocks:
        return None
    pairs = ffi.new("uint64_t[]", [number for pair in candidate.bad_blocks for number in pair])
    device.bad_blocks, device.bad_block_count = pairs, len(candidate.bad_blocks)
    return pairs


def make_geometry(level: int, layout: int, chunk_sectors: int, slots: int, dev_sectors: int, lengths: Sequence[int] = ()) -> Any:
    """An initialised cffi `struct rl_geometry *`; UsageError or UnsupportedError where the numbers do not fit."""
    g = ffi.new("struct rl_geometry *")
    g.level, g.layout, g.chunk_sectors, g.slots, g.dev_sectors = level, layout, chunk_sectors, slots, dev_sectors
    for slot, length in enumerate(lengths[: lib.RL_SLOTS_MAX]):
        g.length_sectors[slot] = length
    check(lib.rl_geometry_init(g))
    return g


def judge(members: Sequence[Member], *, force: bool = False) -> Plan:
    """Reads the superblocks of open members and decides. Raises what is wrong with what was given.

    What keeps the array from starting is in `Plan.error`.
    """
    candidates = [Candidate(member, read_superblock(member)) for member in members]
    if not candidates:
        raise NotEnoughMembersError("no members were given")
    _refuse_mixtures(candidates)
    _refuse_duplicates(candidates)
    plan = Plan(candidates, _freshest(candidates))
    plan.clean = plan.freshest.sb.resync_offset == MAX_SECTOR
    for candidate in candidates:
        _place(candidate, plan.freshest, force)
    _resolve_conflicts(plan)
    try:
        _refuse_features(plan)
        _make_geometry(plan, force)
        _decide_start(plan, force)
        _read_bitmap(plan, force)
    except RaidError as error:
        plan.error = error
    return plan


def _uuid(candidate: Candidate) -> str:
    return uuid_text(bytes(ffi.buffer(candidate.sb.set_uuid)))


def _refuse_mixtures(candidates: list[Candidate]) -> None:
    arrays: dict[str, list[str]] = {}
    for candidate in candidates:
        arrays.setdefault(_uuid(candidate), []).append(candidate.member.path)
    if len(arrays) > 1:
        listing = "; ".join(f"array {uuid}: {', '.join(paths)}" for uuid, paths in arrays.items())
        smallest = min(arrays.values(), key=len)
        raise MixedArraysError(
            f"members of {len(arrays)} arrays were given as one ({listing}); give those of one array only", members=smallest
        )


def _refuse_duplicates(candidates: list[Candidate]) -> None:
    seen: dict[tuple[Any, ...], Candidate] = {}
    for c in candidates:
        unique = bytes(ffi.buffer(c.sb.device_uuid))
        key = (unique,) if any(unique) else (c.sb.dev_number, c.sb.events, c.sb.this_disk.major, c.sb.this_disk.minor)
        other = seen.setdefault(key, c)
        if other is not c:
            paths = [other.member.path, c.member.path]
            raise UsageError(f"{paths[1]} is a copy of {paths[0]} (the same member of the array); give only one of them", members=paths)


def _freshest(candidates: list[Candidate]) -> Candidate:
    """Most events among those with a place in the array: spares never define it."""
    placed = [c for c in candidates if role_of(c.sb)[1] is not None or role_of(c.sb)[0] == "journal"]
    if not placed:
        paths = [c.member.path for c in candidates]
        raise NotEnoughMembersError(f"only spares were given ({', '.join(paths)}); they hold no data", members=paths)
    return max(placed, key=lambda c: (c.sb.events, role_of(c.sb)[0] == "active"))


def _place(c: Candidate, freshest: Candidate, force: bool) -> None:
    """Slot and state of one candidate by its own superblock and the freshest (md-format.md 6.1, 6.2)."""
    sb, best = c.sb, freshest.sb
    kind, slot = role_of(sb)
    shrinking = best.feature_map & lib.RL_FEATURE_RESHAPE
    top = min(best.raid_disks - (min(0, best.delta_disks) if shrinking else 0), lib.RL_SLOTS_MAX)
    differs = [name for name in ("level", "layout", "chunk_sectors", "ctime_s", "version") if getattr(sb, name) != getattr(best, name)]
    if sb.raid_disks != best.raid_disks and not (sb.feature_map | best.feature_map) & lib.RL_FEATURE_RESHAPE:
        differs.append("raid_disks")
    if differs:
        c.reason = f"its superblock describes another shape of the array ({', '.join(differs)} differ from {freshest.member.path})"
    elif sb.dev_number >= lib.RL_SB_DEVS_MAX:
        c.reason = f"its device number {sb.dev_number} is out of range"
    elif kind == "journal":
        c.state = MemberState.JOURNAL
    elif kind == "faulty":
        c.state, c.reason = MemberState.FAULTY, "its own superblock says that it has failed"
    elif slot is None or slot >= top:
        c.state = MemberState.SPARE
    elif sb.events + 1 < best.events:
        c.slot, c.reason = slot, f"stale: event count {sb.events}, the freshest has {best.events}"
    elif c is not freshest and best.dev_roles[sb.dev_number] >= lib.RL_ROLE_MAX:
        c.state, c.slot, c.reason = MemberState.FAULTY, slot, "the others say that it has failed"
    elif not force and c is not freshest and not _knows(sb, freshest):
        c.slot, c.reason = slot, f"it says that {freshest.member.path} has failed: the two were used apart (split brain)"
    else:
        c.slot = best.dev_roles[sb.dev_number] if sb.events < best.events else slot
        c.state = {"active": MemberState.IN_SYNC, "rebuilding": MemberState.REBUILDING, "replacement": MemberState.REPLACEMENT}[kind]
        if kind != "active":
            # guided by a bitmap, the offset says nothing about a member that is to be filled whole (_read_bitmap: if it is)
            recovering = sb.feature_map & lib.RL_FEATURE_RECOVERY and not sb.feature_map & lib.RL_FEATURE_RECOVERY_BITMAP
            c.recovered = sb.recovery_offset if recovering else 0
        c.bad_blocks = read_bad_blocks(c.member, sb)


def _knows(sb: Any, freshest: Candidate) -> bool:
    kind, slot = role_of(freshest.sb)
    if kind != "active":  # it has come in just now, and the others have not heard of it yet: what it lacks it is to get from them
        return True
    return any(sb.dev_roles[number] == slot for number in range(min(sb.max_dev, lib.RL_SB_DEVS_MAX)))


def _resolve_conflicts(plan: Plan) -> None:
    for state in (MemberState.IN_SYNC, MemberState.REPLACEMENT):
        group = (MemberState.IN_SYNC, MemberState.REBUILDING) if state is MemberState.IN_SYNC else (state,)
        by_slot: dict[int, Candidate] = {}
        for c in sorted(plan.candidates, key=lambda c: (-c.sb.events, c.state is not MemberState.IN_SYNC)):
            if c.state not in group or c.slot is None:
                continue
            winner = by_slot.setdefault(c.slot, c)
            if winner is not c:
                c.state, c.reason = MemberState.STALE, f"slot {c.slot} is held by {winner.member.path}, which is as fresh or fresher"
    numbers: dict[int, Candidate] = {}
    for c in sorted(plan.candidates, key=lambda c: c.state is MemberState.SPARE):
        if c.used and numbers.setdefault(c.sb.dev_number, c) is not c:
            c.state, c.reason = MemberState.STALE, f"its device number is that of {numbers[c.sb.dev_number].member.path} now"
    mains = {c.slot for c in plan.candidates if c.state in (MemberState.IN_SYNC, MemberState.REBUILDING)}
    for c in plan.candidates:
        if c.state is MemberState.REPLACEMENT and c.slot not in mains:
            c.state = MemberState.REBUILDING  # with the original away it is all that the slot has
        elif c.state is MemberState.REPLACEMENT and not plan.clean:
            c.recovered = 0  # of a write that was open it may hold what the original does not, and a resync compares it with nobody


def _refuse_features(plan: Plan) -> None:
    sb = plan.freshest.sb
    features = sb.feature_map
    for c in plan.candidates:
        features |= c.sb.feature_map if c.used else 0
    if sb.level not in Level.__members__.values():
        names = {-4: "multipath", -5: "faulty", -100: "container"}
        raise UnsupportedError(f"the array is of level {names.get(sb.level, sb.level)}, which is not handled")
    for bit, name in _REFUSED_FEATURES.items():
        if features & bit:
            raise UnsupportedError(f"the array has {name}, which is not handled yet; let the kernel finish it, or use the kernel's md")
    plan.read_only_only = {name: _USE_MD for bit, name in _READ_ONLY_FEATURES.items() if features & bit}
    if features & lib.RL_FEATURE_BAD_BLOCKS and sb.level <= 0:
        plan.read_only_only["a bad-block list with entries, and no redundancy"] = _USE_MD
    if features & (lib.RL_FEATURE_PPL | lib.RL_FEATURE_MULTIPLE_PPL) and not plan.clean and len(_in_sync(plan)) < sb.raid_disks:
        raise UnsupportedError(
            "the array was not stopped cleanly and a member is missing: its partial parity log (PPL) would have to be "
            "replayed, which is not handled yet"
        )


def _read_bitmap(plan: Plan, force: bool) -> None:
    """Whether the array's write-intent bitmap can be used, and who is being recovered by it (md-format.md 3.5, 3.7)."""
    sb = plan.freshest.sb
    if not sb.feature_map & lib.RL_FEATURE_BITMAP or sb.feature_map & lib.RL_FEATURE_CLUSTERED:
        return
    heads, problems, foreign = [], [], False
    for c in _in_sync(plan):
        try:
            heads.append(bitmap.read_head(c.member.handle, c.sb, bitmap.sync_sectors(plan.geometry)))
        except RaidError as error:
            problems.append(f"{c.member.path}: {error}")
            foreign |= isinstance(error, UnsupportedError)
    for c in plan.candidates:
        if c.state is MemberState.REBUILDING and c.sb.feature_map & lib.RL_FEATURE_RECOVERY_BITMAP:
            c.by_bitmap = any(not bitmap.says_nothing(head, sb) and head.events_cleared <= c.sb.events for head in heads)
            c.recovered = c.sb.recovery_offset if c.by_bitmap and not plan.needs_force else 0
    if heads:
        length = bitmap.sectors_of(bitmap.sync_sectors(plan.geometry), heads[0].chunk_bytes)
        for c in plan.candidates:
            if c.state is MemberState.SPARE and not bitmap.fits(c.member.handle, c.sb, sb.bitmap_offset, length):
                c.state, c.reason = MemberState.FAULTY, "it has no room for the array's write-intent bitmap"
        return
    words = f"a write-intent bitmap that cannot be used ({'; '.join(problems)})"
    if force and not foreign:
        sb.feature_map &= ~lib.RL_FEATURE_BITMAP
        plan.notes.append(f"the array had {words}: it has none any more")
    else:
        plan.read_only_only[words] = _DROP_BY_MD if foreign else _DROP_BY_FORCE


def _in_sync(plan: Plan) -> list[Candidate]:
    return [c for c in plan.candidates if c.state is MemberState.IN_SYNC]


def _make_geometry(plan: Plan, force: bool) -> None:
    sb = plan.freshest.sb
    lengths = [0] * sb.raid_disks
    for c in plan.candidates:
        if c.state is MemberState.IN_SYNC and c.slot is not None and c.slot < len(lengths):
            lengths[c.slot] = c.sb.data_size
    if sb.level <= 0 and not all(lengths):
        missing = [slot for slot, length in enumerate(lengths) if not length]
        raise NotEnoughMembersError(_missing_words(plan, missing) + f"; {Level(sb.level)} bears no loss")
    layout = sb.layout
    if sb.level == Level.RAID0 and not sb.feature_map & lib.RL_FEATURE_RAID0_LAYOUT:
        layout = 0
    plan.geometry = make_geometry(sb.level, layout, sb.chunk_sectors, sb.raid_disks, sb.size_sectors, lengths)
    _check_sizes(plan)


def _check_sizes(plan: Plan) -> None:
    for c in plan.candidates:
        used = plan.geometry.used_sectors if c.sb.level > 0 else c.sb.data_size
        needed = c.sb.data_offset + used
        if c.used and (c.member.size < needed * SECTOR or c.sb.data_size < used):
            room = min(c.member.size, (c.sb.data_offset + c.sb.data_size) * SECTOR)
            c.state, c.reason = MemberState.FAULTY, f"too small: room for data up to byte {room}, the array needs {needed * SECTOR}"
            c.fit = False


def _missing_words(plan: Plan, slots: list[int]) -> str:
    left_out = [f"{c.member.path} was left out: {c.reason}" for c in plan.candidates if not c.used and c.reason]
    many = len(slots) > 1
    which = f"slot{'s' if many else ''} {', '.join(map(str, slots))} of {plan.freshest.sb.raid_disks}"
    words = f"{which} {'have' if many else 'has'} no usable member"
    return words + (f" ({'; '.join(left_out)})" if left_out else "")


def _enough(plan: Plan, candidates: Iterable[Candidate]) -> bool:
    present = ffi.new("uint8_t[]", lib.RL_SLOTS_MAX)
    for c in candidates:
        if c.slot is not None:
            present[c.slot] = 1
    return bool(lib.rl_geometry_enough(plan.geometry, present))


def _promote(plan: Plan) -> None:
    """--force: the least stale members are taken as they are until there are enough (md-format.md 6.3 a)."""
    stale = sorted(
        (c for c in plan.candidates if not c.used and c.fit and c.slot is not None and role_of(c.sb)[0] == "active"),
        key=lambda c: -c.sb.events,
    )
    while stale and not _enough(plan, _in_sync(plan)):
        events = stale[0].sb.events
        while stale and stale[0].sb.events == events:
            c = stale.pop(0)
            if c.slot not in {other.slot for other in _in_sync(plan)}:
                c.state, c.reason = MemberState.IN_SYNC, f"taken by force: {c.reason}"
                c.bad_blocks = read_bad_blocks(c.member, c.sb)
    _refuse_features(plan)


def _coming_in(c: Candidate, best: Any) -> bool:
    """A spare that the last superblocks written give a slot, and that did not get its own of these: it is not a member that is missing."""
    return c.state is MemberState.SPARE and c.sb.events + 1 >= best.events and best.dev_roles[c.sb.dev_number] < lib.RL_ROLE_MAX


def _decide_start(plan: Plan, force: bool) -> None:
    sb, level = plan.freshest.sb, Level(plan.freshest.sb.level)
    if not _enough(plan, _in_sync(plan)) and force:
        _promote(plan)
    present = {c.slot for c in _in_sync(plan)}
    missing = [slot for slot in range(sb.raid_disks) if slot not in present]
    if not _enough(plan, _in_sync(plan)):
        stale = any(not c.used and c.slot is not None for c in plan.candidates)
        hint = "; --force (force=True) takes the least stale members as they are, at the risk of mixed-up data" if stale else ""
        raise NotEnoughMembersError(f"more members are lost than {level} bears: {_missing_words(plan, missing)}{hint}")
    parity_only = all(lib.rl_geometry_parity_only(plan.geometry, slot) for slot in missing)
    if level in PARITY_LEVELS and not plan.clean and missing and not parity_only:
        plan.needs_force = True
        if not force:
            raise RefusedError(
                f"the array was not stopped cleanly and {_missing_words(plan, missing)}: the parity of stripes that "
                f"were being written may not fit, so what is "
                "reconstructed from it may be wrong; --force (force=True) opens it all the same"
            )
        plan.clean = True  # md's "force clean": there is nothing to resync from
        for c in plan.candidates:
            # what it has got already may lack the last writes, as may that of the others: made anew from those
            if c.state is MemberState.REBUILDING:
                c.recovered = 0
    rebuilding = sum(c.state is MemberState.REBUILDING or _coming_in(c, sb) for c in plan.candidates)
    working = sum(role != "." for role in device_roles(sb))
    if len(present) + rebuilding < working and not force:
        plan.needs_run = True
        plan.error = RefusedError(
            f"{_missing_words(plan, missing)}, but {plan.freshest.member.path} remembers {working} working members: "
            f"look for the others first, or start "
            "with what is there by --run (run=True)"
        )
