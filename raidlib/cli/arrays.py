"""The verbs about an array as a whole: create, examine, detail, assemble, export, zero-superblock."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from .. import control, nesting
from .. import opening as arrays
from ..errors import NotEnoughMembersError, RaidError, RefusedError, UsageError
from ..model import Status, format_size
from . import base, content, render
from .base import OK, json_option, source_argument, yes_option


@click.command(short_help="Make an array.")
@click.argument("target", nargs=-1, required=True, metavar="DIR|MEMBER...")
@click.option("--level", "-l", required=True, metavar="L", help="linear, 0, 1, 4, 5, 6, 10.")
@click.option("--raid-devices", "-n", type=click.IntRange(1), metavar="N", help="Number of members that hold data and redundancy.")
@click.option("--parity", type=click.IntRange(1), metavar="M", help="Parity members, for level rs.")
@click.option("--spare-devices", "-x", type=click.IntRange(0), default=0, metavar="S", help="Further members that wait for a failure.")
@click.option("--size", "-z", type=base.SIZE, help="Of each file in DIR; with MEMBERs, how much of each is used.")
@click.option("--chunk", "-c", type=base.SIZE, help="What one member holds before the next one's turn (512K).")
@click.option("--layout", metavar="NAME", help="left-symmetric …, n2, f2, o2 …")
@click.option("--metadata", "-e", default="1.2", show_default=True, help="Superblock: 1.0 (at the end), 1.1, 1.2.")
@click.option(
    "--bitmap",
    type=click.Choice(["internal", "none"]),
    help="Mark regions before they are written: a crash, or a member's return, costs only these. Unsaid: with members of over 100G.",
)
@click.option("--bitmap-chunk", type=base.SIZE, help="How large such a region is (64M).")
@click.option("--consistency-policy", type=click.Choice(["resync", "bitmap", "ppl", "journal"]), help="What closes the write hole.")
@click.option("--write-journal", metavar="MEMBER", help="A fast device that takes writes first.")
@click.option("--integrity", type=click.Choice(["crc32c", "none"]), help="Checksums of every 4 KiB.")
@click.option("--name", metavar="NAME", help="The array's name.")
@click.option("--uuid", metavar="UUID", help="The array's UUID; else a random one.")
@click.option("--data-offset", type=base.SIZE, help="Where data begin on each member.")
@click.option("--assume-clean", is_flag=True, help="Do not bring the redundancy into step first: it is known to fit.")
@click.option("--preallocate", is_flag=True, help="Reserve the space of the files now.")
@click.option("--mkfs", type=click.Choice(["ext4", "ext3", "ext2"]), help="Put a file system on it.")
@click.option(
    "--from-dir",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Fill it with this tree of files (implies --mkfs ext4).",
)
@base.wait_option
@yes_option
@json_option
def create(target: tuple[str, ...], mkfs: str | None, from_dir: str | None, wait: bool, yes: bool, as_json: bool, **options: Any) -> int:
    r"""Make an array: files in a directory, or of members that exist.

    Where a slot has no member yet, say the word `missing`. A directory among several members stands for the array in it. Asks before
    it overwrites anything.

    \b
      raidlib create tank --level 6 --raid-devices 6 --size 1G --mkfs ext4
      raidlib create a.img b.img missing --level 5 --raid-devices 3
      raidlib create tank/a tank/b --level 0 --raid-devices 2      # of two arrays
    """
    place: Any = target[0] if len(target) == 1 and not os.path.isfile(target[0]) and not is_device(target[0]) else list(target)
    options = {name: value for name, value in options.items() if value is not None}
    with open_new(place, options, yes) as array:
        for note in array.notes:
            base.say(f"note: {note}")
        if mkfs or from_dir:
            work_dir = place if isinstance(place, str) else tempfile.gettempdir()
            with render.Meter(as_json) as meter:
                content.make_file_system(
                    array,
                    array.status(),
                    kind=mkfs or "ext4",
                    tree=from_dir,
                    work_dir=work_dir,
                    blank=isinstance(place, str),
                    report=lambda *now: meter.show("filling", *now),
                )
        if array.job is not None and wait:
            render.finish(array.job, "first resync", False, quiet=as_json)
        status = array.status()
    if as_json:
        base.document("create", status=status)
    else:
        members = render.count_of(status.raid_devices, "member")
        click.echo(f"{base.name_of(place)}: {status.level} of {members}, {format_size(status.size)}, UUID {status.uuid}")
    return OK


def is_device(path: str) -> bool:
    """Whether a path is a block device."""
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def open_new(place: Any, options: dict[str, Any], yes: bool) -> Any:
    """create(), and once more by force after a yes to what the library refuses."""
    try:
        return arrays.create(place, force=yes, **options)
    except RefusedError as error:
        if yes:
            raise
        base.confirm(f"{error}. Overwrite it?", yes)
        return arrays.create(place, force=True, **options)


@click.command(short_help="Show a member's superblock.")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.option("--export", "as_export", is_flag=True, help="mdadm's MD_* keys.")
@json_option
def examine(members: tuple[str, ...], as_export: bool, as_json: bool) -> int:
    r"""Show what a member's superblock says.

    Reads only. A directory stands for all members in it, and for the array that they make, where that is a member itself.

    \b
      raidlib examine tank/member-0.img
      raidlib examine --export /dev/sdb1
    """
    code, found = OK, []
    paths = [path for word in members for path in (arrays.resolve(word) if os.path.isdir(word) else [word])]
    for path in paths:
        try:
            found.append(arrays.examine(path))
        except RaidError as error:
            base.say(str(error))
            code = code or error.exit_code
    found += [content for word in members if os.path.isdir(word) and (content := nesting.examine_content(word)) is not None]
    if as_json:
        base.document("examine", superblocks=found)
    for index, superblock in enumerate(() if as_json else found):
        if index:
            click.echo()
        if as_export:
            click.echo("\n".join(render.export_examine(superblock)))
        else:
            render.print_superblock(superblock)
    return code


@click.command(short_help="Show the state of an array, running or not.")
@source_argument
@click.option("--test", "-t", is_flag=True, help="Exit with 0 whole, 1 degraded, 2 failed, 4 cannot tell.")
@click.option("--export", "as_export", is_flag=True, help="mdadm's MD_* keys.")
@json_option
def detail(array: tuple[str, ...], test: bool, as_export: bool, as_json: bool) -> int:
    r"""Show the state of an array, running or not: its members, what it can still lose, what to do.

    Changes nothing.

    \b
      raidlib detail tank
      raidlib detail --test /mnt/tank || echo "tank needs care"
    """
    source = base.source_of(array)
    try:
        status, plan, live = look(source)
    except RaidError as error:
        if test:
            error.exit_code = base.FAILED if isinstance(error, NotEnoughMembersError) else base.CANNOT_TELL
        raise
    seen: Any = status or plan
    if as_export:
        click.echo("\n".join(render.export_detail(seen)))
    elif as_json:
        base.print_json(status.to_dict() if status else {**plan.to_dict(), "state": "failed"})
    elif status:
        render.print_status(status, base.name_of(source), live)
    else:
        render.print_plan(plan, base.name_of(source), with_problem=True)
    return 0 if not test else base.verdict(status) if status else base.FAILED


def look(source: base.Source) -> tuple[Status | None, Any, bool]:
    """(status, plan, live): of a live array from its owner; at rest by opening it read-only; only the plan where it does not open."""
    client = control.connect(source)
    if client is not None:
        with contextlib.closing(client):
            return client.status(), None, True
    base.must_exist(source)
    plan = arrays.plan(source)
    if plan.problem and not (plan.needs_run or plan.needs_force):
        return None, plan, False
    with arrays.open(source, mode="r", run=plan.needs_run, force=plan.needs_force) as array:
        return array.status(), plan, False


@click.command(short_help="Check whether members make an array, and why not.")
@source_argument
@base.start_options
@json_option
def assemble(array: tuple[str, ...], run: bool, force: bool, as_json: bool) -> int:
    r"""Check whether members make an array, and say which would be used, which not, and why.

    Changes nothing and leaves nothing running: `mount` and all other verbs assemble by themselves.

    \b
      raidlib assemble a.img b.img c.img
    """
    source = base.source_of(array)
    base.must_exist(source)
    plan = arrays.plan(source)
    if as_json:
        base.print_json(plan.to_dict())
    else:
        render.print_plan(plan, base.name_of(source))
        sys.stdout.flush()
    if not plan.startable:  # says why, by its own exit code
        arrays.open(source, mode="r", run=run, force=force).close()
    return OK


@click.command(short_help="Copy an array's content into a file.")
@source_argument
@click.argument("file", metavar="FILE")
@base.start_options
@yes_option
@json_option
def export(array: tuple[str, ...], file: str, run: bool, force: bool, yes: bool, as_json: bool) -> int:
    r"""Copy the content of an array into a sparse file, or to standard output (`-`).

    Reads only: a degraded array is reconstructed on the way.

    \b
      raidlib export tank tank.img
      raidlib export tank - | zstd > tank.img.zst
    """
    source = base.source_of(array)
    to_stdout = file == "-"
    if to_stdout and (as_json or sys.stdout.isatty()):
        raise UsageError("standard output takes either the content or --json, and no terminal; give a FILE")
    if not to_stdout and os.path.exists(file) and not os.path.samefile(file, os.devnull):
        base.confirm(f"{file} exists. Overwrite it?", yes)
    with base.reach(source, mode="r", run=run, force=force) as (handle, live), render.Meter(as_json) as meter:
        status: Status = handle.status()
        if live:
            base.say("note: the array is in use; what is being written now may be in the copy by halves, as after a power cut")
        with (
            contextlib.nullcontext(sys.stdout.buffer) if to_stdout else fresh_file(file, status) as out,
            content.reader(handle, status, live) as read,
        ):
            sparse = not to_stdout and stat.S_ISREG(os.fstat(out.fileno()).st_mode)
            written = content.copy_out(read, status.size, out, sparse=sparse, report=lambda *now: meter.show("exporting", *now))
    if as_json:
        base.document("export", file=file, bytes=status.size, bytes_written=written)
    elif not to_stdout:
        click.echo(f"{file}: {format_size(status.size)}, {format_size(written)} of them not zeros")
    return OK


@contextlib.contextmanager
def fresh_file(path: str, status: Status) -> Iterator[BinaryIO]:
    """A file to write to, which is no member of the array, and does not stay if the writing fails."""
    for member in status.files():
        if os.path.exists(path) and os.path.exists(member) and os.path.samefile(path, member):
            raise UsageError(f"{path} is a member of the array; export to another file", members=[path])
    is_new = not os.path.exists(path)
    with open(path, "wb") as out:
        try:
            yield out
        except BaseException:
            if is_new:
                os.unlink(path)
            raise


@click.command("zero-superblock", short_help="Erase a member's superblock.")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@yes_option
@json_option
def zero_superblock(members: tuple[str, ...], yes: bool, as_json: bool) -> int:
    r"""Erase the superblock of a member, so that it belongs to no array any more. Asks first.

    \b
      raidlib zero-superblock old.img
    """
    for path in members:
        superblock = arrays.examine(path)
        of = f"{superblock.role} member of {superblock.level} array {superblock.name or superblock.uuid}"
        base.confirm(f"{path} is a {of}. Erase its superblock? What it holds is lost to that array.", yes)
        arrays.zero_superblock(path)
        if not as_json:
            click.echo(f"{path}: superblock erased")
    if as_json:
        base.document("zero-superblock", members=list(members))
    return OK


COMMANDS = (create, examine, detail, assemble, export, zero_superblock)
