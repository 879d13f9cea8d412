"""What an open array says of itself: the engine's numbers as the structs of `status()`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import bitmap
from .assembly import DEVICE_STATES, Candidate
from .engine import ffi, lib
from .errors import RaidError, UsageError
from .member import Member
from .model import MAX_SECTOR, SECTOR, Bitmap, MemberState, MemberStatus, State, Status, TakenBack


def state_of(raw: Any) -> State:
    """The worst that holds, of a `struct rl_array_status`."""
    if raw.state & lib.RL_STATE_FAILED:
        return State.FAILED
    if raw.slots_missing:
        return State.DEGRADED
    if raw.state & (lib.RL_STATE_READ_ONLY | lib.RL_STATE_NO_SPACE):
        return State.READ_ONLY
    return State.ACTIVE if raw.state & lib.RL_STATE_ACTIVE else State.CLEAN


def space_words(raw: Any, members: Sequence[MemberStatus]) -> str:
    """Whose file system is full, if one is."""
    if not raw.state & lib.RL_STATE_NO_SPACE:
        return ""
    where = next((f" under {m.path}" for m in members if m.device is not None and m.device == raw.full_device), "")
    return f"Nothing is written: no space is left{where}. Make some there, and it goes on by itself. "


def member_status(index: int, raw: Any, opened: Member, back: TakenBack | None) -> MemberStatus:
    """Of a device of the engine's; raw: a `struct rl_device_status`."""
    rebuilding = raw.state in (lib.RL_DEVICE_REBUILDING, lib.RL_DEVICE_REPLACEMENT)
    return MemberStatus(
        slot=raw.slot if raw.slot >= 0 else None,
        path=opened.path,
        state=DEVICE_STATES[raw.state],
        device=index,
        size=opened.size,
        recovered=raw.recovered_sectors * SECTOR if rebuilding else None,
        read_errors=raw.read_errors,
        corrected_reads=raw.corrected_reads,
        write_errors=raw.write_errors,
        bad_blocks=raw.bad_block_count,
        array=_status_of(opened.array),
        by_bitmap=bool(raw.by_bitmap),
        taken_back=back,
        reason=ffi.string(raw.reason).decode(errors="replace").removeprefix(f"{os.path.abspath(opened.path)} "),
    )


def _status_of(inner: Any) -> Status | None:
    try:
        status: Status | None = None if inner is None else inner.status()
        return status
    except UsageError:  # let go of meanwhile, and closed
        return None


def all_slots(found: list[MemberStatus], slots: int) -> list[MemberStatus]:
    """By slot, with those that are empty, then what has none."""
    full = {m.slot for m in found if m.state is not MemberState.REPLACEMENT}
    empty = [MemberStatus(slot=s, path="missing", state=MemberState.REMOVED, reason="no member") for s in range(slots) if s not in full]
    return sorted(found + empty, key=lambda m: (m.slot is None, m.slot or 0))


def bitmap_of(handle: Any) -> Bitmap | None:
    """The write-intent bitmap of an array that is open for writing."""
    raw = ffi.new("struct rl_bitmap_status *")
    lib.rl_array_bitmap(handle, raw)
    if raw.chunk_bytes == 0:
        return None
    return Bitmap(
        chunk_size=raw.chunk_bytes,
        bits=raw.bits,
        dirty=raw.set,
        needed=raw.needed,
        events_cleared=raw.events_cleared,
        daemon_sleep=raw.daemon_sleep_s,
    )


def bitmap_at_rest(used: Sequence[Candidate]) -> Bitmap | None:
    """The bitmap as it is on the members of an array that is open read-only, by the newest that can be used; a resync is yet to come."""
    heads = []
    for candidate in used:
        if candidate.state is MemberState.IN_SYNC and candidate.sb.feature_map & lib.RL_FEATURE_BITMAP:
            try:
                heads.append((bitmap.describe(candidate.member.handle, candidate.sb), candidate.sb))
            except RaidError:  # that is no use; the plan has said why, if none is
                continue
    if not heads:
        return None
    head, sb = max(heads, key=lambda pair: pair[0].events)
    dirty = head.bits if head.out_of_date else head.dirty
    return Bitmap(
        chunk_size=head.chunk_size,
        bits=head.bits,
        dirty=dirty,
        needed=0 if sb.resync_offset == MAX_SECTOR else dirty,
        events_cleared=head.events_cleared,
        daemon_sleep=head.daemon_sleep,
    )


def policy_of(level: int, found: Bitmap | None) -> str:
    """Mdadm's word for what makes redundancy agree after a crash."""
    return "none" if level <= 0 else "resync" if found is None else "bitmap"


def taken_back(total: int, found: Bitmap | None, reason: str) -> TakenBack:
    """How a former member has come back; found: the bitmap that it came back by. total: bytes that the array uses of it."""
    to_copy = total if found is None else min(total, -(-total * found.dirty // found.bits))
    return TakenBack(by_bitmap=found is not None, to_copy=to_copy, total=total, reason=reason)
