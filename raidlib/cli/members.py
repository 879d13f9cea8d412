"""The verbs about members and redundancy: fail, remove, add, re-add, replace, grow, check, repair, wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from .. import opening as arrays
from ..errors import CancelledError, RaidError, RefusedError
from ..model import JobStatus, Mismatch, Status, TakenBack, format_size
from . import base, render
from .base import OK, array_argument, json_option, source_argument, wait_option, yes_option

members_argument = click.argument("members", nargs=-1, required=True, metavar="MEMBER...")


def report(verb: str, source: base.Source, done: list[str], status: Status, as_json: bool, **parts: Any) -> int:
    """What was done, and how the array is now."""
    if as_json:
        base.document(verb, status=status, **parts)
        return OK
    for line in done:
        click.echo(line)
    for name, state in hurt(status, base.name_of(source)):
        click.echo(f"{name}: {state}")
    if status.job is not None and status.job.state in ("running", "paused"):
        what = "rebuild" if status.job.kind == "recovery" else status.job.kind
        goes_on = "runs" if status.owner_pid else "goes on when the array is next opened"
        click.echo(f"its {what} {goes_on}; `raidlib wait {base.name_of(source)}` sees it through")
    return OK


def hurt(status: Status, name: str) -> list[tuple[str, str]]:
    """The state of an array, and of those in it that are not whole."""
    inner = [line for m in status.members if m.array is not None for line in hurt(m.array, m.path) if m.array.worst().degraded]
    return [*inner, (name, short_state(status))]


def short_state(status: Status) -> str:
    """degraded, 1 slot without …; 1 more member may be lost."""
    words = str(status.state).replace("_", "-")
    if status.state == "failed":
        return "FAILED: more members are lost than its level bears"
    if status.degraded:
        words = f"degraded, {render.count_of(status.degraded, 'slot')} of {status.raid_devices} not in sync"
    more = "no further member may be lost" if status.may_lose == 0 else f"{render.count_of(status.may_lose, 'more member')} may be lost"
    return f"{words}; {more}"


def watch(handle: Any, first: Any, live: bool, quiet: bool) -> list[JobStatus]:
    """Follows a job, and those that the array starts after it, to the end."""
    ended: list[JobStatus] = []
    job = first
    while job is not None:
        ended.append(render.finish(job, LABELS.get(job.kind, job.kind), live, quiet=quiet))
        following = handle.job if handle.status().job and handle.status().job.state in ("running", "paused") else None
        job = following
    return ended


LABELS = {"recovery": "rebuilding", "resync": "resyncing", "check": "checking", "repair": "repairing"}


def job_line(job: JobStatus) -> str:
    """Rebuilt 1.0 GiB of each member in 0:12, 85.0 MiB/s."""
    word = {"recovery": "rebuilt", "resync": "resynced", "check": "checked", "repair": "checked and repaired"}[job.kind]
    return f"{word} {format_size(job.total)} of each member in {render.duration(job.elapsed)}, {format_size(job.rate)}/s"


@click.command(short_help="Take members out of service.")
@array_argument
@members_argument
@base.start_options
@json_option
def fail(array: str, members: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Take members out of service, as if they had failed. MEMBER is a path or a slot number.

    Refused where content would be lost.

    \b
      raidlib fail tank 2
      raidlib fail tank tank/member-2.img
    """
    source = base.source_of(array)
    with base.reach(source, run=run, force=force) as (handle, _):
        for word in members:
            handle.fail(base.member_of(source, word))
        return report("fail", source, [f"{word}: failed" for word in members], handle.status(), as_json)


@click.command(short_help="Let go of faulty members or spares.")
@array_argument
@members_argument
@base.start_options
@json_option
def remove(array: str, members: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Let go of faulty members or spares. The word `faulty` means all that have failed.

    \b
      raidlib remove tank faulty
    """
    source = base.source_of(array)
    with base.reach(source, run=run, force=force) as (handle, _):
        for word in members:
            handle.remove(base.member_of(source, word))
        return report("remove", source, [f"{word}: removed" for word in members], handle.status(), as_json)


@click.command(short_help="Take in new members, and rebuild.")
@array_argument
@members_argument
@base.start_options
@wait_option
@yes_option
@json_option
def add(array: str, members: tuple[str, ...], run: bool, force: bool, wait: bool, yes: bool, as_json: bool) -> int:
    r"""Take new members in: where a slot is empty it is rebuilt at once, else they wait as spares.

    A new member must exist and be as large as the others; what it holds is overwritten. A former member comes back as by `re-add`.

    \b
      truncate -s 1G tank/new.img
      raidlib add tank tank/new.img
    """
    return bring_in("add", array, members, run, force, wait, yes, as_json)


@click.command("re-add", short_help="Take back former members.")
@array_argument
@members_argument
@base.start_options
@wait_option
@yes_option
@json_option
def re_add(array: str, members: tuple[str, ...], run: bool, force: bool, wait: bool, yes: bool, as_json: bool) -> int:
    r"""Take back members that were in the array before, into their old slots where these are empty.

    With a write-intent bitmap only what was written while they were away is copied; without one, or where it does not reach back so far,
    they are rebuilt as a whole. The answer says which it was.

    \b
      raidlib re-add tank tank/member-2.img
    """
    return bring_in("re_add", array, members, run, force, wait, yes, as_json)


def bring_in(verb: str, array: str, members: tuple[str, ...], run: bool, force: bool, wait: bool, yes: bool, as_json: bool) -> int:
    """add and re-add."""
    source = base.source_of(array)
    with base.reach(source, run=run, force=force) as (handle, live):
        job: Any = None
        for word in members:
            path = str(base.member_of(source, word))
            job = take(getattr(handle, verb), path, yes) or job
            warn_if_outside(source, path)
        ended = watch(handle, job, live, as_json) if wait else []
        status: Status = handle.status()
        backs = {m.path: m.taken_back for m in status.members}
        lines = [came_in(word, verb, job is not None, back_of(backs, base.member_of(source, word))) for word in members]
        return report(verb.replace("_", "-"), source, lines + [job_line(j) for j in ended], status, as_json, jobs=ended)


def back_of(backs: dict[str, TakenBack | None], path: int | str) -> TakenBack | None:
    """How a member came back, by any of its names."""
    return next((back for known, back in backs.items() if os.path.realpath(known) == os.path.realpath(str(path))), None)


def came_in(word: str, verb: str, rebuilds: bool, back: TakenBack | None) -> str:
    """tank/b.img: taken back by the bitmap, 12 MiB of 1 GiB to copy."""
    if back is not None and back.by_bitmap:
        return f"{word}: taken back by the bitmap, {format_size(back.to_copy)} of {format_size(back.total)} to copy"
    line = f"{word}: {'added' if verb == 'add' else 'taken back'}{'' if rebuilds else ' as a spare'}"
    return line if back is None else f"{line}, {format_size(back.to_copy)} to copy, which is all of it: {back.reason}"


def warn_if_outside(source: base.Source, path: str) -> None:
    """A directory stands for the members in it: one that lies elsewhere is missed at the next start."""
    if not isinstance(source, str) or not os.path.isdir(source) or os.path.ismount(source):
        return
    if os.path.realpath(source) != os.path.realpath(os.path.dirname(path)):
        base.say(
            f"note: {path} lies outside of {source}; move it there once the array is at rest, or give all members as a list from now on"
        )


def take(call: Callable[[str], Any], path: str, yes: bool) -> Any:
    """Adds a member; one of another array after a yes, which costs it its superblock."""
    try:
        return call(path)
    except RefusedError as error:
        if not is_member(path):
            raise
        text = str(error).partition("; --yes")[0]
        base.confirm(f"{text}. Overwrite it?", yes)
        arrays.zero_superblock(path)
        return call(path)


def is_member(path: str) -> bool:
    """Whether it has a superblock that can be erased."""
    try:
        return bool(arrays.examine(path))
    except (RaidError, OSError):
        return False


@click.command(short_help="Copy a member onto a new one.")
@array_argument
@click.argument("old", metavar="MEMBER")
@click.argument("new", metavar="NEW")
@base.start_options
@wait_option
@yes_option
@json_option
def replace(array: str, old: str, new: str, run: bool, force: bool, wait: bool, yes: bool, as_json: bool) -> int:
    r"""Copy a member onto a new one (or a spare) while the old one stays in service; then the old one is out.

    \b
      raidlib replace tank 2 tank/new.img
    """
    source = base.source_of(array)
    with base.reach(source, run=run, force=force) as (handle, live):
        path = str(base.member_of(source, new))
        job = take(lambda path: handle.replace(base.member_of(source, old), path), path, yes)
        warn_if_outside(source, path)
        ended = watch(handle, job, live, as_json) if wait else []
        return report("replace", source, [f"{old}: replaced by {new}", *map(job_line, ended)], handle.status(), as_json, jobs=ended)


@click.command(short_help="Give it a write-intent bitmap, or take it away.")
@array_argument
@click.option("--bitmap", type=click.Choice(["internal", "none"]), required=True, help="With a bitmap, or without.")
@click.option("--bitmap-chunk", type=base.SIZE, help="How large a region is that it marks (64M).")
@base.start_options
@json_option
def grow(array: str, bitmap: str, bitmap_chunk: int | None, run: bool, force: bool, as_json: bool) -> int:
    r"""Give an array a write-intent bitmap, or take it away, while it is in use.

    Every write is marked in it first, so that after a crash only the marked regions are resynced, and a member that was away gets only
    what was written meanwhile.

    \b
      raidlib grow tank --bitmap internal
      raidlib grow tank --bitmap none
    """
    source = base.source_of(array)
    with base.reach(source, run=run, force=force) as (handle, _):
        handle.set_bitmap(bitmap, chunk=bitmap_chunk)
        status: Status = handle.status()
    marks = status.bitmap
    what = "no write-intent bitmap any more" if marks is None else f"a write-intent bitmap, regions of {format_size(marks.chunk_size)}"
    return report("grow", source, [f"{base.name_of(source)}: {what}"], status, as_json)


@click.command(short_help="Compare the redundancy with the data.")
@source_argument
@base.start_options
@json_option
def check(array: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Read everything and compare the redundancy with the data. Changes no data. Arrays that are members are checked first.

    Exits with 0 all agrees, 1 degraded or mismatches found, 2 failed, 4 cannot tell.

    \b
      raidlib check tank
    """
    return scrub("check", array, run, force, as_json)


@click.command(short_help="Check, and mend what does not agree.")
@source_argument
@base.start_options
@json_option
def repair(array: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Like check, and mend what does not agree: the member that lies, where the code can tell it.

    Exits with 0 all agreed, 1 degraded or mismatches found (and mended), 2 failed, 4 cannot tell.

    \b
      raidlib repair tank
    """
    return scrub("repair", array, run, force, as_json)


def scrub(verb: str, words: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    """check and repair: of arrays that are members first, then of the array that they make, if that has any redundancy."""
    source = base.source_of(words)
    done: list[dict[str, Any]] = []
    with base.verdict_codes(), base.reach(source, run=run, force=force) as (handle, live):
        for name, each in base.every_level(handle, live, base.name_of(source)):
            if each is handle and done and handle.status().level in ("raid0", "linear"):
                continue
            if not live and each.job is not None and not each.job.done:
                watch(each, each.job, live, as_json)  # what the array was left with comes first
            job = getattr(each, verb)()
            ended = render.finish(job, LABELS[verb], live, quiet=as_json)
            done.append({"array": name, "job": ended, "mismatches": job.mismatches(), "status": each.status()})
        status: Status = handle.status()
    count = sum(part["job"].mismatch_count for part in done)
    if as_json:
        whole = done[-1] if done[-1]["status"].uuid == status.uuid else {"job": None, "mismatches": []}
        inner = [{key: base.plain(part[key]) for key in ("array", "job", "mismatches")} for part in done if part is not whole]
        base.document(verb, job=whole["job"], mismatches=whole["mismatches"], status=status, inner=inner)
        return base.verdict(status, count)
    for part in done:
        print_scrub(verb, part["array"], part["job"], part["mismatches"], part["status"])
    return base.verdict(status, count)


def print_scrub(verb: str, name: str, ended: JobStatus, found: list[Mismatch], status: Status) -> None:
    """What a check of one array has found."""
    if ended.mismatch_count:
        more = " (the first of them are listed)" if sum(m.sectors for m in found) < ended.mismatch_count else ""
        mended = sum(m.repaired for m in found)
        places = render.count_of(len(found), "place") + more
        click.echo(f"{name}: {ended.mismatch_count} sectors do not agree, in {places}{f'; {mended} mended' if mended else ''}")
        render.print_mismatches(found)
        if verb == "check":
            click.echo("`raidlib repair` mends them.")
    else:
        click.echo(f"{name}: no mismatches")
    click.echo(job_line(ended))
    if status.degraded:
        click.echo(f"{name}: {short_state(status)}. What is missing could not be compared: add a member, and check again.")


@click.command(short_help="Wait until a rebuild, resync or check is done.")
@source_argument
@base.start_options
@json_option
def wait(array: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Wait until the rebuild, resync or check is done. An array at rest is opened, and goes on where it was.

    Exits with 0 whole, 1 degraded, 2 failed, 4 cannot tell.

    \b
      raidlib wait tank && echo "tank is whole"
    """
    source = base.source_of(array)
    with base.verdict_codes(), base.reach(source, run=run, force=force) as (handle, live):
        ended: list[JobStatus] = []
        for _name, each in base.every_level(handle, live, ""):
            job = each.job
            if job is None or job.done:
                continue
            try:
                ended += watch(each, job, live, as_json)
            except CancelledError:
                if not job.done:
                    raise  # we were interrupted; else somebody cancelled the job, and there is nothing to wait for
        status: Status = handle.status()
    report("wait", source, [job_line(j) for j in ended] or ["nothing was under way"], status, as_json, jobs=ended)
    return base.verdict(status)


COMMANDS = (fail, remove, add, re_add, replace, grow, check, repair, wait)
