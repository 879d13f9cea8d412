"""What `detail` says to someone who is afraid: what can still be lost, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from .model import Level, MemberState, MemberStatus, State


def advise(level: Level, state: State, missing: int, may_lose: int, resyncing: bool, members: Sequence[MemberStatus]) -> str:
    """One or two sentences. missing: slots without a member that is in sync; may_lose: how many more may go, whichever they are."""
    out = [m for m in members if m.state in (MemberState.FAULTY, MemberState.STALE)]
    gone = f" Out of it: {', '.join(f'{m.path} ({m.reason})' for m in out)}." if out else ""
    if state is State.FAILED:
        way = "Do not create or zero anything: bring back a lost member, and try `raidlib assemble` for what is possible."
        return f"More members are lost than {level} bears. {way}{gone}"
    marked = [m for m in members if m.bad_blocks and m.slot is not None]
    if marked:
        names = ", ".join(m.path for m in marked)
        gone += (
            f" Blocks of {names} are marked as bad: they are read from the others, where those have them, and are good again once they are "
            "written; `raidlib repair` writes them anew where their content is known."
        )
        if any(m.write_errors for m in marked):
            gone += " A member that cannot be written in places should be replaced (`raidlib replace`)."
    if level <= 0:
        return f"All data are there. {level} has no redundancy: the loss of any member loses the array."
    more = f"{may_lose or 'No'} more member{'s' if may_lose > 1 else ''} may be lost"
    hole = ""
    if level in (Level.RAID4, Level.RAID5, Level.RAID6, Level.RS):
        crash = "A crash while writing leaves parity to be resynced"
        hole = f" {crash}, and a member lost before that is done can cost stripes that were being written."
    there = "All other data are there" if marked else "All data are there"
    if missing:
        words = f"{missing} member{'s' if missing > 1 else ''} missing"
        return f"{there}, with {words}. {more}: add a new member soon.{gone}{hole}"
    if resyncing:
        return f"{there}. Redundancy is being made anew (resync); until it is done, a lost member can cost data.{gone}"
    spare = f"{may_lose} member{'s' if may_lose > 1 else ''} may be lost without losing data"
    return f"{there}. {spare}.{gone}{hole}"
