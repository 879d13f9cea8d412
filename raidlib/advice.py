"""What `detail` says to someone who is afraid: what can still be lost, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from .model import Bitmap, Level, MemberState, MemberStatus, State, Status, format_size

_THERE = (MemberState.IN_SYNC, MemberState.REBUILDING, MemberState.REPLACEMENT)


def marked_words(bitmap: Bitmap) -> str:
    """3 of 512 regions (192 MiB) are marked."""
    size = f" ({format_size(bitmap.dirty * bitmap.chunk_size)})" if bitmap.dirty else ""
    of = f"{bitmap.dirty or 'none'} of {bitmap.bits} region{'s' if bitmap.bits != 1 else ''}"
    return f"{of}{size} {'is' if bitmap.dirty < 2 else 'are'} marked"


def _crash_words(level: Level, bitmap: Bitmap | None) -> str:
    """What a crash means for this array."""
    has_parity = level in (Level.RAID4, Level.RAID5, Level.RAID6, Level.RS)
    if bitmap is None:
        crash = "A crash while writing leaves parity to be resynced"
        return f" {crash}, and a member lost before that is done can cost stripes that were being written." if has_parity else ""
    crash = f"After a crash while writing, only the regions that its bitmap marks are resynced ({marked_words(bitmap)} now)"
    return f" {crash}" + ("; a member lost before that is done can cost old data there." if has_parity else ".")


def advise(
    level: Level,
    state: State,
    missing: int,
    may_lose: int,
    resyncing: bool,
    members: Sequence[MemberStatus],
    bitmap: Bitmap | None = None,
) -> str:
    """A few sentences. missing: slots without a member that is in sync; may_lose: how many more may go, whichever they are."""
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
    hole = _crash_words(level, bitmap)
    there = "All other data are there" if marked else "All data are there"
    if missing:
        words = f"{missing} member{'s' if missing > 1 else ''} missing"
        back = (
            "" if bitmap is None else " A member that was only away comes back by `raidlib re-add`, in the time of what was written since."
        )
        return f"{there}, with {words}. {more}: add a new member soon.{back}{gone}{hole}"
    if resyncing:
        what = "made anew (resync); until it is done, a lost member can cost data"
        what += "" if bitmap is None else ", but only where its bitmap says that it may not agree"
        return f"{there}. Redundancy is being {what}.{gone}"
    spare = f"{may_lose} member{'s' if may_lose > 1 else ''} may be lost without losing data"
    return f"{there}. {spare}.{gone}{hole}"


def files_may_lose(state: State, may_lose: int, members: Sequence[MemberStatus]) -> int | None:
    """Of an array with arrays as members: how many files and devices may be lost, whichever they are. None without such members."""
    if all(m.array is None for m in members):
        return None
    return 0 if state is State.FAILED else _enough_to_fail(may_lose, members) - 1


def _enough_to_fail(may_lose: int, members: Sequence[MemberStatus]) -> int:
    """The fewest files and devices whose loss can fail an array: as many members as it does not bear, and those that fall first."""
    costs = [1 if m.array is None else _cost(m.array) for m in members if m.state is MemberState.IN_SYNC]
    return sum(sorted(costs)[: may_lose + 1])


def _cost(inner: Status) -> int:
    return 0 if inner.state is State.FAILED else _enough_to_fail(inner.may_lose, inner.members)


def advise_tree(own: str, files: int | None, members: Sequence[MemberStatus]) -> str:
    """The words for an array, and with arrays as members those for the whole: what the levels below bear, and which are not whole."""
    if files is None:
        return own
    bears = f"Of the files and devices below, any {files} may be lost" if files else "The loss of one file or device may be too much"
    words = [own, f"{bears}."]
    words += [f"In {m.path}: {m.array.advice}" for m in members if m.array is not None and m.state in _THERE and _is_hurt(m.array)]
    return " ".join(words)


def _is_hurt(status: Status) -> bool:
    """Whether it, or an array in it, is not whole."""
    hurt = bool(status.degraded) or status.state is State.FAILED or status.resync_offset is not None
    return hurt or any(m.array is not None and _is_hurt(m.array) for m in status.members)
