"""What all verbs share: exit codes, error lines, questions, options, and how an ARRAY is reached."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import control
from .. import opening as arrays
from ..errors import AccessError, NotEnoughMembersError, RaidError, RefusedError, UsageError, from_errno
from ..model import SCHEMA, Status, parse_size

OK, NOT_WHOLE, FAILED, REFUSED, CANNOT_TELL = 0, 1, 2, 3, 4
USAGE, BUG, IO, INTERRUPTED = 64, 70, 74, 130

Source = str | list[str]


class _ReaderGoneError(Exception):
    """Nobody reads our standard output any more."""


class Program(click.Group):
    """The group of all verbs; turns every exception into one line and the exit code that DESIGN.md section 5 gives it."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs and exits; never returns. Click's own 2 for wrong usage would read as "failed", so it becomes 64."""
        try:
            code = super().main(args, prog_name or "raidlib", **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except (_ReaderGoneError, BrokenPipeError):  # `| head`; python would complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = IO
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            code = USAGE
        except click.ClickException as error:
            hint = f"\nraidlib: see `{error.ctx.command_path} --help`" if isinstance(error, click.UsageError) and error.ctx else ""
            say(error.format_message().rstrip(".") + hint)
            code = USAGE
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            code = INTERRUPTED
        except RaidError as error:
            say(str(error))
            code = error.exit_code
        except OSError as error:
            code = from_errno(error.errno or 0, "").exit_code
            say(f"{error.filename + ': ' if isinstance(error.filename, str) else ''}{error.strerror or error}")
        except Exception as error:
            code = BUG
            what = f"{type(error).__name__}: {error}"
            say(f"this is a bug of raidlib: {what}. Please report it, with the output of RAIDLIB_DEBUG=1 {command_line()}")
            if os.environ.get("RAIDLIB_DEBUG", "") not in ("", "0"):
                traceback.print_exc()
        sys.exit(code if isinstance(code, int) else OK)

    def invoke(self, ctx: click.Context) -> Any:
        """Click would end a broken pipe with 1, which means "degraded"."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """An unknown verb is answered with the verbs there are."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            close = [name for name in self.list_commands(ctx) if name.startswith(args[0][:3])]
            hint = f"did you mean {' or '.join(close)}?" if close else f"the verbs are {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no verb {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one meets them, not by the alphabet."""
        return list(self.commands)


def command_line() -> str:
    """What was called, for a bug report."""
    return " ".join(["raidlib", *sys.argv[1:]])


def say(text: str) -> None:
    """A line for a person, on stderr."""
    for line in for_people(text).splitlines():
        click.echo(line if line.startswith("raidlib: ") else f"raidlib: {line}", err=True)


def for_people(text: str) -> str:
    """A message of the library without the words for programmers beside the option: "--run (run=True)"."""
    return re.sub(r" \((?:run|force)=True\)|, mode='r'(?=\))", "", text)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout, with its schema."""
    click.echo(json.dumps({"schema": SCHEMA, **document}, indent=2))


def document(verb: str, **parts: Any) -> None:
    """What a verb did, as JSON: `verb` and its parts; structs turn into objects."""
    print_json({"schema": SCHEMA, "verb": verb, **{name: plain(value) for name, value in parts.items()}})


def plain(value: Any) -> Any:
    """Structs, alone or in lists, as plain values."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


# --- Options ----------------------------------------------------------------------------------------------------------


class Size(click.ParamType[int]):
    """Bytes, with K, M, G or T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """4096, 512K, 1.5G."""
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output; bytes and seconds.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask before something is destroyed.")
wait_option = click.option("--wait/--no-wait", default=True, help="Stay until the rebuild is done (the default).")
source_argument = click.argument("array", nargs=-1, required=True, metavar="ARRAY|MEMBER...")
array_argument = click.argument("array", metavar="ARRAY")


def start_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--run and --force, for verbs that may have to start an array."""
    function = click.option("--force", is_flag=True, help="Start it though it is dirty and degraded: some data may be wrong.")(function)
    return click.option("--run", is_flag=True, help="Start it though it lacks members that it last had.")(function)


def confirm(question: str, yes: bool) -> None:
    """Asks on a terminal; elsewhere --yes is needed. A no, and no answer, is a refusal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{question} Nothing was changed: there is no terminal to ask on, so say --yes")
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("declined; nothing was changed")


# --- Arrays -----------------------------------------------------------------------------------------------------------


def check_can_write(path: str | None) -> None:
    """An OSError now if a file could not be written later, when its content has been computed for hours. It stays as it is: not cut off
    where there is one, none where there is none. Pipes and devices are not opened: someone would see it.
    """
    if path is None:
        return
    target = Path(path).resolve()
    was_there = target.exists()
    if was_there and not target.is_file():
        return
    target.open("ab").close()
    if not was_there:
        target.unlink()


def source_of(words: Sequence[str] | str) -> Source:
    """One directory, mount point or member; or a list of members, as words or with commas between them."""
    words = [words] if isinstance(words, str) else list(words)
    if len(words) == 1 and "," in words[0] and not os.path.exists(words[0]):
        words = [word for word in words[0].split(",") if word]
    return words[0] if len(words) == 1 else words


def name_of(source: Source) -> str:
    """How a message calls it."""
    return source if isinstance(source, str) else ", ".join(source[:3]) + (", …" if len(source) > 3 else "")


def member_of(source: Source, word: str) -> int | str:
    """A slot number or a path; a bare name is looked for in the array's directory, too."""
    if word.isdecimal() and not os.path.exists(word):
        return int(word)
    inside = os.path.join(source, word) if isinstance(source, str) and os.path.isdir(source) else word
    return inside if not os.path.exists(word) and os.path.exists(inside) else word


def must_exist(source: Source) -> None:
    """A word that is neither a path nor a running array."""
    if isinstance(source, str) and not os.path.exists(source):
        raise UsageError(
            f"{source} does not exist, and no running array has this name; an array is a directory of members, a mount point or a member"
        )


@contextlib.contextmanager
def reach(source: Source, *, mode: str = "rw", run: bool = False, force: bool = False) -> Iterator[tuple[Any, bool]]:
    """(the array, whether it is live): a client of the process that owns it, or the members, opened here for as long as the verb takes."""
    client = control.connect(source)
    if client is not None:
        with contextlib.closing(client):
            yield client, True
        return
    must_exist(source)
    with arrays.open(source, mode=mode, run=run, force=force) as array:
        yield array, False


def every_level(handle: Any, live: bool, name: str) -> Iterator[tuple[str, Any]]:
    """The arrays that are members of an array, the innermost first, then itself: with their names."""
    if not live:
        for path, inner in handle.arrays:
            yield from every_level(inner, live, path)
    else:
        for member in handle.status().members:
            client = control.connect(member.array.uuid) if member.array is not None else None
            if client is not None:
                with contextlib.closing(client):
                    yield from every_level(client, live, member.path)
    yield name, handle


@contextlib.contextmanager
def verdict_codes() -> Iterator[None]:
    """For the verbs that report on an array by exit code: too many members lost is 2, all else that hides the answer is 4."""
    try:
        yield
    except (UsageError, RefusedError, AccessError):
        raise
    except NotEnoughMembersError as error:
        error.exit_code = FAILED
        raise
    except RaidError as error:
        error.exit_code = CANNOT_TELL if error.exit_code == IO else error.exit_code
        raise


def verdict(status: Status, mismatches: int = 0) -> int:
    """0 whole, 1 degraded or with mismatches, at any level, 2 failed."""
    if status.state == "failed":
        return FAILED
    return NOT_WHOLE if status.worst().degraded or mismatches else OK
