"""The verbs about a live array: mount, umount, stop; and the demonstration."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from .. import control, demo, mount
from ..errors import UsageError
from ..model import format_size, parse_size
from . import base, render
from .base import IO, OK, json_option, source_argument


@click.command("mount", short_help="Mount an array.")
@source_argument
@click.argument("directory", metavar="DIR")
@click.option("--fs", default="auto", show_default=True, type=click.Choice(["auto", "ext4", "none"]), help="none: only the file `volume`.")
@click.option("--driver", default="auto", show_default=True, type=click.Choice(mount.DRIVERS), help="Who runs the file system.")
@click.option("--read-only", "-r", is_flag=True, help="Write nothing to any member.")
@click.option("--allow-other", is_flag=True, help="Let other users in.")
@click.option("--deadline", type=click.FloatRange(min=0.001), metavar="SECONDS", help="A member that is silent for so long is out.")
@click.option("--foreground", is_flag=True, help="Stay; end with Ctrl-C.")
@base.start_options
@json_option
def mount_verb(array: tuple[str, ...], directory: str, as_json: bool, **options: Any) -> int:
    r"""Mount an array: DIR shows its files, and goes on doing so while members fail.

    \b
      raidlib mount tank /mnt/tank
      raidlib mount tank /mnt/tank --fs none     # the array as one file, /mnt/tank/volume
    """
    source = base.source_of(array)

    def announce(info: mount.MountInfo) -> None:
        if as_json:
            base.document("mount", mount=info)
        else:
            for note in info.notes:
                base.say(f"note: {note}")
            what = "its volume" if info.fs == "none" else f"{info.fs} by {'the kernel' if info.driver == 'kernel' else info.driver}"
            click.echo(f"{base.name_of(source)} is mounted on {info.mountpoint}: {what}, process {info.pid}")
        sys.stdout.flush()

    mount.mount(source, directory, on_ready=announce, **options)
    return OK


@click.command("umount", short_help="Unmount it.")
@click.argument("target", metavar="DIR|ARRAY")
@json_option
def umount_verb(target: str, as_json: bool) -> int:
    r"""Unmount an array and stop it cleanly.

    \b
      raidlib umount /mnt/tank
    """
    mount.umount(target)
    if as_json:
        base.document("umount", target=target)
    else:
        click.echo(f"{target}: unmounted")
    return OK


@click.command(short_help="Stop a live array.")
@source_argument
@json_option
def stop(array: tuple[str, ...], as_json: bool) -> int:
    r"""Stop a live array: unmount it, mark it clean, end the process that owns it.

    \b
      raidlib stop tank
    """
    source = base.source_of(array)
    client = control.connect(source)
    if client is None:
        base.must_exist(source)
    else:
        client.stop()
    if as_json:
        base.document("stop", stopped=client is not None)
    else:
        click.echo(f"{base.name_of(source)}: {'stopped' if client else 'is at rest, nothing to stop'}")
    return OK


@click.command("job", short_help="Look at a live array's job, hold it, limit it.")
@source_argument
@click.option("--pause", "action", flag_value="pause", help="Hold it.")
@click.option("--resume", "action", flag_value="resume", help="Let it go on.")
@click.option("--cancel", "action", flag_value="cancel", help="End it; a rebuild or resync goes on there when the array is next opened.")
@click.option("--speed-min", metavar="SIZE", help="While users work, not slower than this a second (default 1M), if it can.")
@click.option("--speed-max", metavar="SIZE", help="Never faster than this a second of each member; 0: no limit.")
@json_option
def job_verb(array: tuple[str, ...], action: str | None, speed_min: str | None, speed_max: str | None, as_json: bool) -> int:
    r"""Look at the rebuild, resync or check of a live array; hold it, end it, or limit its speed.

    The limits hold for this array's later jobs, too, until it is stopped.

    \b
      raidlib job /mnt/tank
      raidlib job /mnt/tank --speed-max 50M
    """
    source = base.source_of(array)
    client = control.connect(source)
    if client is None:
        base.must_exist(source)
        raise UsageError(f"{base.name_of(source)} is at rest: no job runs on it; `raidlib wait` opens it and sees its rebuild through")
    if speed_min is not None or speed_max is not None:
        minimum, maximum = (None if text is None else parse_size(text) for text in (speed_min, speed_max))
        client.set_speed(minimum=minimum, maximum=maximum)
    job = client.job
    if action is not None and (job is None or job.done):
        raise UsageError(f"no job runs on {base.name_of(source)}")
    if action is not None and job is not None:
        getattr(job, action)()
    status = job.status() if job is not None else None
    if as_json:
        base.document("job", job=status)
    else:
        click.echo(f"{base.name_of(source)}: {render.job_words(status) if status else 'no job has run'}")
    return OK


class Screen:
    """Shows a demonstration on the terminal; what `demo.run` wants of a reporter."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        """Something that was done or found out."""
        if not self.quiet:
            click.echo(text)

    def meter(self) -> render.Meter:
        """A progress bar."""
        return render.Meter(self.quiet)


@contextlib.contextmanager
def ends_as_interruptions() -> Iterator[None]:
    """An end by SIGTERM or SIGHUP cleans up as Ctrl-C does."""
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("demo", short_help="Show the main job on real files.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where to work; needs 1.5 GiB, all removed at the end.",
)
@click.option("--keep", is_flag=True, help="Leave the array's directory.")
@json_option
def demo_verb(directory: str | None, keep: bool, as_json: bool) -> int:
    r"""Show the main job on real files: an array loses two members while it is written, twice, and no file differs.

    \b
      raidlib demo
    """
    with ends_as_interruptions():
        report = demo.run(directory, keep=keep, screen=Screen(as_json))
    wrong = report.files_differing or report.mismatch_count or report.file_system_errors
    if as_json:
        base.document("demo", report=report)
        return IO if wrong else OK
    rows = [
        (s.name, render.duration(s.seconds), f"{format_size(s.bytes / s.seconds)}/s" if s.bytes and s.seconds else "", s.result)
        for s in report.steps
    ]
    render.show("", render.grid(("Step", "Time", "Rate", "Result"), rows, right=(1, 2)), "")
    click.echo(f"{report.files_compared} files compared, {report.files_differing} files differ")
    return IO if wrong else OK


COMMANDS = (mount_verb, umount_verb, job_verb, stop, demo_verb)
