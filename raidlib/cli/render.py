"""Structs as tables for people, as mdadm's MD_* keys, and progress as bars or lines."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from ..advice import marked_words
from ..errors import CancelledError, RaidError
from ..model import Bitmap, BitmapHead, JobStatus, MemberState, MemberStatus, Mismatch, Status, Superblock, format_size
from .base import for_people

LINE_SECONDS = 5.0  # between progress lines where there is no terminal
POLL_SECONDS = 0.1
_WIDE = 10_000  # columns where nobody looks: nothing is wrapped or cut

_MEMBER_WORDS = {
    MemberState.IN_SYNC: ("in sync", "green"),
    MemberState.REBUILDING: ("rebuilding", "yellow"),
    MemberState.REPLACEMENT: ("replacement", "yellow"),
    MemberState.SPARE: ("spare", "cyan"),
    MemberState.FAULTY: ("FAULTY", "bold red"),
    MemberState.REMOVED: ("MISSING", "bold red"),
    MemberState.STALE: ("left out", "red"),
    MemberState.JOURNAL: ("journal", "cyan"),
}
_STATE_STYLE = {"clean": "green", "active": "green", "read_only": "cyan", "degraded": "bold yellow", "failed": "bold red"}


def console(*, stderr: bool = False) -> Console:
    """For a terminal, as wide as it is; elsewhere without colour and without wrapping (COLUMNS wraps)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def show(*parts: Any) -> None:
    """Prints on standard output; elsewhere than on a terminal without the blanks that fill up a table's last column."""
    out = console()
    if out.is_terminal:
        out.print(*parts, sep="\n")
        return
    with out.capture() as captured:
        out.print(*parts, sep="\n")
    click.echo("".join(line.rstrip() + "\n" for line in captured.get().splitlines()), nl=False)


def exact_size(count: int) -> str:
    """1.0 GiB (1073741824 bytes)."""
    return f"{format_size(count)} ({count} bytes)" if count >= 1024 else f"{count} bytes"


def when(seconds: float) -> str:
    """A moment, in local time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z") if seconds else "never"


def duration(seconds: float | None) -> str:
    """0:12, 3:04, 1:02:03."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def count_of(number: int, noun: str, plural: str = "") -> str:
    """1 member, 2 members."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


# --- Tables -----------------------------------------------------------------------------------------------------------


def facts(rows: Iterable[tuple[str, str | Text | None]]) -> Table:
    """Names and values; what is None or empty is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, value)
    return table


def grid(headers: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[int] = ()) -> Table:
    """A table without lines, two columns in."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(headers):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def place_of(members: Sequence[MemberStatus]) -> str:
    """The one folder that all members lie in, or nothing."""
    folders = {os.path.dirname(m.path) for m in members if m.path not in ("", "missing") and not m.path.startswith("<")}
    return folders.pop() if len(folders) == 1 else ""


def member_rows(members: Sequence[MemberStatus], folder: str, depth: int = 0) -> Iterator[list[str | Text]]:
    """The lines of the table of members; below a member that is an array those of its own, further in."""
    for member in members:
        slot, *rest = member_row(member, folder)
        yield ["  " * depth + str(slot), *rest]
        if member.array is not None:
            yield from member_rows(member.array.members, folder, depth + 1)


def array_words(status: Status) -> str:
    """An array that is a member, in short."""
    state = "FAILED" if status.state == "failed" else "whole"
    if status.degraded and status.state != "failed":
        state = f"degraded, {count_of(status.degraded, 'slot')} not in sync"
    job = [job_words(status.job)] if status.job is not None and status.job.state in ("running", "paused") else []
    return "; ".join([f"{status.level} of {status.raid_devices}, {state}", *job])


def member_row(member: MemberStatus, folder: str) -> list[str | Text]:
    """One line of the table of members."""
    words, style = _MEMBER_WORDS[member.state]
    if member.state in (MemberState.REBUILDING, MemberState.REPLACEMENT) and member.recovered and member.size:
        words += f" ({format_size(member.recovered)} done)"
    if member.by_bitmap:
        words += " by the bitmap"
    path = (
        ""
        if member.path == "missing"
        else os.path.relpath(member.path, folder)
        if folder and member.path.startswith(folder)
        else member.path
    )
    reason = member.reason.replace(f"{folder}/", "") if folder else member.reason
    notes = [reason] if reason and not (member.state is MemberState.REMOVED and member.reason == "no member") else []
    notes += [array_words(member.array)] if member.array is not None else []
    for number, what in ((member.corrected_reads, "read error was mended"), (member.read_errors - member.corrected_reads, "read error")):
        if number > 0:
            notes.append(f"{number} {what.replace('error', 'errors').replace('was', 'were') if number > 1 else what}")
    if member.bad_blocks:
        notes.append(count_of(member.bad_blocks, "bad block range"))
    return ["-" if member.slot is None else str(member.slot), Text(words, style=style), path, "; ".join(notes)]


def members_table(members: Sequence[MemberStatus]) -> list[Any]:
    """The table of members, under its title."""
    folder, nested = place_of(members), any(m.array is not None for m in members)
    title = Text(f"Members{f' in {folder}' if folder else ''}", style="bold")
    table = grid(("Slot", "State", "Member", "Note"), member_rows(members, folder), right=() if nested else (0,))
    return [title, Padding(table, (0, 0, 0, 2))]


def headline(name: str, of: Any) -> Text:
    """What it is, in one line; `of` is a Status or an Assembly."""
    return Text.assemble((name, "bold"), f": {of.level}{f', {of.layout}' if of.layout else ''}, {format_size(of.size)}")


def state_words(status: Status, live: bool) -> Text:
    """The state in one line."""
    state = str(status.state)
    words = {"read_only": "whole, read-only", "active": "whole, being written", "clean": "whole, clean"}.get(state, state.upper())
    if not live and state in ("read_only", "active", "clean"):
        words = "whole" if status.resync_offset is None else "whole, but was not stopped cleanly"
    if status.degraded and state != "failed":
        words += f": {count_of(status.degraded, 'slot')} of {status.raid_devices} without a member that is in sync"
    return Text(words, style=_STATE_STYLE.get(state, ""))


def job_words(job: JobStatus) -> str:
    """A job in one line."""
    if job.state in ("running", "paused"):
        done = f"{100 * job.done / job.total:.1f} %" if job.total else "0 %"
        return f"{job.kind} {job.state}: {done}, {format_size(job.rate)}/s, {duration(job.eta)} left"
    return f"{job.kind} {job.state}{f': {job.error}' if job.error else ''}"


def may_lose_words(status: Status) -> str:
    """Of its members; and of arrays of arrays, of what lies below all of them."""
    own = count_of(status.may_lose, "member")
    return own if status.files_may_lose is None else f"{own}; of the files and devices below {status.files_may_lose}, whichever"


def bitmap_words(bitmap: Bitmap) -> str:
    """What is marked, and what of that is to be resynced."""
    needed = f", {count_of(bitmap.needed, 'region')} to be resynced" if bitmap.needed else ""
    return f"{marked_words(bitmap)}, {format_size(bitmap.chunk_size)} each{needed}"


def print_status(status: Status, name: str, live: bool) -> None:
    """`raidlib detail`: what a frightened user needs to see first comes first, what to do comes last."""
    running = f"running, process {status.owner_pid}" if live else "at rest: no process has it open"
    chunk = f", chunk {format_size(status.chunk_size)}" if status.chunk_size else ""
    resync = (
        ""
        if status.resync_offset is None
        else f"{format_size(status.resync_offset)} of redundancy verified since the last crash or creation"
    )
    rows: list[tuple[str, str | Text | None]] = [
        ("State", state_words(status, live)),
        ("Open", running),
        ("May still lose", may_lose_words(status) if status.state != "failed" else None),
        ("Job", job_words(status.job) if status.job else None),
        ("Resync", resync),
        ("Mounted on", status.mountpoint),
        ("Volume", status.volume),
        ("Size", exact_size(status.size)),
        ("Used per member", exact_size(status.dev_size) if status.dev_size else None),
        ("Shape", f"{status.level}, {count_of(status.raid_devices, 'member')}{chunk}"),
        ("Mismatches", f"{status.mismatch_count} sectors at the last check" if status.mismatch_count else None),
        ("Reads mended", str(status.corrected_reads) if status.corrected_reads else None),
        ("Name", status.name),
        ("UUID", status.uuid),
        ("Metadata", f"{status.metadata}, {count_of(status.events, 'event')}"),
        ("Intent Bitmap", f"Internal: {bitmap_words(status.bitmap)}" if status.bitmap is not None else None),
        ("Consistency Policy", status.consistency_policy),
        ("Created", when(status.created)),
        ("Updated", when(status.updated)),
    ]
    words = [part for text in (*(f"Note: {note}" for note in status.notes), status.advice) if text for part in ("", Text(text))]
    show(headline(name, status), "", Padding(facts(rows), (0, 0, 0, 2)), "", *members_table(status.members), *words)


def print_plan(plan: Any, name: str, *, with_problem: bool = False) -> None:
    """`raidlib assemble`: what would be opened, and why."""
    if plan.startable:
        verdict = (
            Text("starts", style="green")
            if not plan.read_only_only
            else Text(f"starts read-only: it has {', '.join(plan.read_only_only)}", style="yellow")
        )
    elif plan.needs_run or plan.needs_force:
        options = " ".join(o for o, needed in (("--run", plan.needs_run), ("--force", plan.needs_force)) if needed)
        verdict = Text(f"does not start without {options}", style="bold yellow")
    else:
        verdict = Text("cannot be started", style="bold red")
    rows: list[tuple[str, str | Text | None]] = [
        ("Verdict", verdict),
        (
            "Shape",
            f"{plan.level}, {count_of(plan.raid_devices, 'member')}{f', chunk {format_size(plan.chunk_size)}' if plan.chunk_size else ''}",
        ),
        ("Stopped cleanly", "yes" if plan.clean else "no: a resync follows the start"),
        ("Name", plan.name),
        ("UUID", plan.uuid),
        ("Metadata", f"{plan.metadata}, {count_of(plan.events, 'event')}"),
    ]
    words = ["", Text(for_people(plan.problem[:1].upper() + plan.problem[1:] + "."))] if plan.problem and with_problem else []
    show(headline(name, plan), "", Padding(facts(rows), (0, 0, 0, 2)), "", *members_table(plan.members), *words)


def bitmap_head_words(head: BitmapHead) -> str:
    """A member's write-intent bitmap in one line."""
    state = "out of date: all count as marked; " if head.out_of_date else ""
    share = f"{100 * head.dirty / head.bits:.1f} %" if head.bits else "none"
    return (
        f"{state}{head.dirty} of {count_of(head.bits, 'region')} marked ({share}), {format_size(head.chunk_size)} each, of "
        f"{exact_size(head.sync_size)}; version {head.version}, cleared every {head.daemon_sleep} s, at byte {head.offset}"
    )


def print_superblock(sb: Superblock) -> None:
    """`raidlib examine`."""
    role = {
        "active": f"active, slot {sb.slot}",
        "rebuilding": f"being rebuilt, slot {sb.slot}",
        "replacement": f"replacement for slot {sb.slot}",
    }.get(sb.role, sb.role)
    rebuilt = f"{exact_size(sb.recovery_offset)} rebuilt" if sb.recovery_offset is not None else None
    chunk = f", chunk {format_size(sb.chunk_size)}" if sb.chunk_size else ""
    rows: list[tuple[str, str | Text | None]] = [
        ("Role", role),
        ("Recovery", rebuilt),
        ("Array", f"{sb.level}{f', {sb.layout}' if sb.layout else ''}, {count_of(sb.raid_devices, 'member')}{chunk}"),
        ("Array state", f"{sb.device_roles} (A: there, .: missing, R: being replaced)"),
        ("State", "clean" if sb.state == "clean" else "active: not stopped cleanly, or a resync was not finished"),
        ("Resync", f"{exact_size(sb.resync_offset)} done" if sb.resync_offset is not None else None),
        ("Reshape", f"at {exact_size(sb.reshape_position)} of the array" if sb.reshape_position is not None else None),
        ("Events", str(sb.events)),
        ("Updated", when(sb.updated)),
        ("Created", when(sb.created)),
        ("Name", sb.name),
        ("Array UUID", sb.uuid),
        ("Member UUID", sb.device_uuid),
        ("Metadata", sb.metadata),
        ("Features", ", ".join(sb.features)),
        ("Bad-block log", "yes" if sb.bad_block_log else None),
        ("Superblock at", f"byte {sb.super_offset}"),
        ("Bitmap", bitmap_head_words(sb.bitmap) if sb.bitmap is not None else sb.bitmap_problem and f"cannot be used: {sb.bitmap_problem}"),
        ("Bitmap's events", f"{sb.bitmap.events}, cleared as of {sb.bitmap.events_cleared}" if sb.bitmap is not None else None),
        ("Data at", f"byte {sb.data_offset}, {exact_size(sb.data_size)}"),
        ("Used", exact_size(sb.dev_size) if sb.dev_size else None),
        ("Member size", exact_size(sb.member_size) if sb.member_size else None),
    ]
    show(Text(sb.path, style="bold"), Padding(facts(rows), (0, 0, 0, 2)))


def print_mismatches(found: Sequence[Mismatch], limit: int = 20) -> None:
    """Where parity or copies did not agree."""
    rows = [
        (str(m.sector), str(m.sectors), "not known" if m.slot is None else f"slot {m.slot}", "repaired" if m.repaired else "as it was")
        for m in found[:limit]
    ]
    more = [f"  … and {len(found) - limit} more places (all of them by --json)"] if len(found) > limit else []
    show(Padding(grid(("Sector", "Sectors", "Member that differs", ""), rows, right=(0, 1)), (0, 0, 0, 2)), *more)


# --- mdadm's --export -------------------------------------------------------------------------------------------------


def brief_size(count: int) -> str:
    """A size as mdadm's --export writes it: decimal units, two digits, nothing for what is small."""
    if count < 5000 * 1024:
        return ""
    for unit, name, limit in ((10**6, "MB", 2 << 30), (10**9, "GB", 2 << 40), (10**12, "TB", 0)):
        if count < limit or not limit:
            hundredths = (count // (unit // 200) + 1) // 2
            return f"{hundredths // 100}.{hundredths % 100:02}{name}"
    raise AssertionError("unreachable")


def data_share(sb: Superblock) -> int:
    """Bytes that the array holds by mdadm's reckoning; 0 where it does not say."""
    n = sb.raid_devices
    if sb.level == "raid10":
        numbers = re.findall(r"[nfo]([0-9]+)", sb.layout or "")
        copies = 1
        for number in numbers:
            copies *= int(number)
        return sb.dev_size * n // max(copies, 1)
    share = {"raid1": 1, "raid4": n - 1, "raid5": n - 1, "raid6": n - 2}.get(sb.level, 0)
    return sb.dev_size * share


def export_examine(sb: Superblock) -> list[str]:
    """The lines of `mdadm --examine --export`."""
    old = sb.metadata == "0.90"
    size = 0 if old else data_share(sb)
    lines = [f"MD_LEVEL={sb.level}", f"MD_DEVICES={sb.raid_devices}"]
    lines += [f"MD_NAME={sb.name}"] if sb.name and not old else []
    lines += [f"MD_ARRAY_SIZE={brief_size(size)}"] if size else []
    lines += [f"MD_UUID={sb.uuid}", f"MD_UPDATE_TIME={int(sb.created if old else sb.updated)}"]  # mdadm 4.2 says the former for 0.90
    lines += [] if old else [f"MD_DEV_UUID={sb.device_uuid}"]
    return [*lines, f"MD_EVENTS={sb.events}"]


def export_detail(status: Any) -> list[str]:
    """The lines of `mdadm --detail --export`, of a Status or an Assembly."""
    lines = [f"MD_LEVEL={status.level}", f"MD_DEVICES={status.raid_devices}", f"MD_METADATA={status.metadata}", f"MD_UUID={status.uuid}"]
    lines += [f"MD_NAME={status.name}"] if status.name else []
    for member in status.members:
        if member.path != "missing" and member.state not in (MemberState.REMOVED, MemberState.STALE):
            key = re.sub(r"[^A-Za-z0-9]", "_", os.path.abspath(member.path).lstrip("/"))
            role = str(member.slot) if member.slot is not None and member.state is not MemberState.FAULTY else "spare"
            lines += [f"MD_DEVICE_{key}_ROLE={role}", f"MD_DEVICE_{key}_DEV={os.path.abspath(member.path)}"]
    return lines


# --- Progress ---------------------------------------------------------------------------------------------------------


class _Left(ProgressColumn):
    def __init__(self, amount: Callable[[float], str]) -> None:
        super().__init__()
        self._amount = amount

    def render(self, task: Task) -> Text:
        return Text(f"{self._amount(task.fields.get('rate', 0))}/s, {duration(task.fields.get('eta'))} left")


class Meter:
    """A progress bar on a terminal's stderr; elsewhere a line now and then. A context manager. amount: of the rate, in words."""

    def __init__(self, quiet: bool = False, amount: Callable[[float], str] = lambda count: format_size(int(count))) -> None:
        self._console, self._amount = console(stderr=True), amount
        self._tty, self._quiet = sys.stderr.isatty(), quiet
        self._progress: Progress | None = None
        self._task: Any = None
        self._last = (0.0, "")

    def __enter__(self) -> Meter:
        if self._tty:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>5.1f} %"),
                _Left(self._amount),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, label: str, done: int, total: int, rate: float, eta: float | None) -> None:
        """The state of the work now."""
        if self._progress is not None:
            if self._task is None:
                self._task = self._progress.add_task(label, total=None)
            self._progress.update(self._task, description=label, completed=done, total=total or 1, rate=rate, eta=eta)
            return
        now = time.monotonic()
        if self._last[1] != label:
            self._last = (now, label)  # the first line comes after a while: short work stays silent
        elif not self._quiet and now - self._last[0] >= LINE_SECONDS:
            self._last = (now, label)
            share = 100 * done / total if total else 0
            click.echo(f"{label}: {share:.1f} %, {self._amount(rate)}/s, {duration(eta)} left", err=True)

    def note(self, text: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)


def follow(job: Any, label: str, *, quiet: bool = False, poll: Callable[[], None] | None = None) -> JobStatus:
    """Shows a job until it ends; raises what it failed with. Interrupting leaves the job to its owner."""
    with Meter(quiet) as meter:
        while not job.done:
            s = job.status()
            meter.show(f"{label} (paused)" if s.state == "paused" else label, s.done, s.total, s.rate, s.eta)
            if poll:
                poll()
            try:
                job.wait(POLL_SECONDS)
            except RaidError:
                break
    job.wait()
    status: JobStatus = job.status()
    return status


def finish(job: Any, label: str, live: bool, *, quiet: bool = False) -> JobStatus:
    """`follow`, for a verb: an interruption ends the job here, where this process is its owner, and says how it goes on."""
    try:
        return follow(job, label, quiet=quiet)
    except KeyboardInterrupt:
        if live:
            raise CancelledError(f"no longer watching; the {job.kind} goes on in the process that owns the array") from None
        job.cancel()
        again = (
            "it goes on from its checkpoint with `raidlib wait`"
            if job.kind in ("recovery", "resync")
            else "nothing is lost; start it again when you like"
        )
        raise CancelledError(f"the {job.kind} was interrupted; {again}") from None
