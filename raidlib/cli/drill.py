"""The verb that breaks things on purpose: drill."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import click
from rich.padding import Padding
from rich.text import Text

from ..errors import UsageError
from ..model import Level
from . import arrays, base, render
from .base import CANNOT_TELL, FAILED, OK, json_option

SHOWN = 10  # cases that are listed one by one
ALL_STATES = 20_000  # with so many power cuts or more, every state of every short history is judged
SHORT_WORDS = 42  # else of each history one state in so many of those asked for


@click.command(short_help="Break an array like this one in memory, in every way, and judge what it makes of it.")
@click.argument("array", nargs=-1, metavar="[ARRAY]")
@click.option("--level", "-l", metavar="L", help="Of an array that is not there: 1, 4, 5, 6, 10, rs.")
@click.option("--raid-devices", "-n", type=click.IntRange(2), metavar="N", help="Its number of members.")
@click.option("--parity", type=click.IntRange(1), metavar="M", help="Parity members, for level rs.")
@click.option("--layout", metavar="NAME", help="left-symmetric …, n2, f2, o2 …")
@click.option("--chunk", "-c", type=base.SIZE, help="What one member holds before the next one's turn (16K).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="S", help="The first seed.")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, metavar="COUNT", help="Trials of each on every member.")
@click.option("--faults", default="all", show_default=True, metavar="KIND,...", help="Which; `--faults list` names them.")
@click.option(
    "--power-cuts", type=click.IntRange(1), metavar="STATES", help="Cut the power instead: so many states that it leaves, each policy."
)
@click.option("--jobs", "-j", type=click.IntRange(1), metavar="N", help="Processes; else one for each processor.")
@click.option("--replay", metavar="STRING", help="One trial, as a drill before has named it.")
@json_option
def drill(array: tuple[str, ...], replay: str | None, faults: str, power_cuts: int | None, as_json: bool, **options: Any) -> int:
    r"""Drill an array: dead, slow, full, lying and rotting disks, and the real code on them.

    Arrays of the same shape are made in memory, one for each trial, and read, written, checked and rebuilt while a fault is on one
    member, or on more of them than the level bears. What was promised is judged byte by byte. The members of ARRAY are read for its
    shape (level, layout, chunk, metadata, number of members) and never written to.

    With --power-cuts the power is cut at every moment of hundreds of short histories (writes, flushes, failures, rebuilds, returns), with
    a write-intent bitmap and without; each state in which that may leave the members is started, recovered and judged.

    Exits with 0 all promises were kept, 2 one was broken, 4 cannot tell: a fault struck nothing. A broken one comes with the command
    that replays it.

    \b
      raidlib drill tank
      raidlib drill --level 6 --raid-devices 6 --faults gone,latent
      raidlib drill --level 6 --power-cuts 20000
      raidlib drill --replay fault:level=5,devices=4,…:latent:within:2:7
    """
    from ..lab import drill as lab  # the laboratory is loaded for those who drill
    from ..lab import faults as kinds

    if faults == "list":
        return list_faults(kinds.KINDS, as_json)
    if sum([bool(array), options["level"] is not None, replay is not None]) != 1:
        raise UsageError("one of ARRAY, --level and --replay says what is drilled")
    if replay is not None:
        return replay_one(lab.replay(replay), as_json)
    shape, name = shape_of(array, options)
    if power_cuts is not None:
        return cut_power(str(shape.level).removeprefix("raid"), power_cuts, options["seed"], options["jobs"], as_json)
    tasks = lab.collect(shape, kinds=kinds.kinds_of(faults), seed=options["seed"], seeds=options["seeds"])
    if array and not as_json:
        base.say(f"note: {name} is drilled in memory: arrays of its shape are broken there, its own members are not written to")
    with render.Meter(as_json, lambda rate: f"{rate:.0f} trials") as meter:
        began = time.monotonic()

        def progress(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            meter.show("drilling", done, total, rate, (total - done) / rate)

        meter.show("drilling", 0, len(tasks), 0, None)
        report = lab.run(shape, tasks, jobs=options["jobs"], progress=progress)
    if as_json:
        base.document("drill", shape=str(shape), seed=options["seed"], seeds=options["seeds"], held=report.held, report=report)
    else:
        print_report(report, name)
    return verdict(bool(report.broken), bool(report.unhit))


def shape_of(array: tuple[str, ...], options: dict[str, Any]) -> tuple[Any, str]:
    """What is drilled, and how it is called."""
    from ..lab.rig import Shape

    if not array:
        given = {key: options[key] for key in ("parity", "layout", "chunk") if options[key] is not None}
        shape = Shape.of(options["level"], options["raid_devices"], **given)
        return shape, f"{shape.level} of {shape.devices}"
    if unused := [key for key in ("raid_devices", "parity", "layout", "chunk") if options[key] is not None]:
        raise UsageError(f"the shape is ARRAY's: --{unused[0].replace('_', '-')} goes with --level")
    source = base.source_of(array)
    status, plan, _live = arrays.look(source)
    if status is None:
        raise UsageError(f"{base.name_of(source)} cannot be started ({plan.problem}); say what is drilled: --level {plan.level}")
    inner = [m.path for m in status.members if m.array is not None]
    level = Level.parse(status.level)
    if level <= 0 and inner:
        raise UsageError(
            f"{base.name_of(source)} is {level} over arrays, which has no redundancy of its own: drill one of those, {inner[0]}"
        )
    parity = status.raid_devices - status.size // status.dev_size if level is Level.RS else None
    metadata = "1.2" if status.metadata == "0.90" else status.metadata  # which is not made any more
    number = int(status.layout, 16) if status.layout and status.layout.startswith("0x") else status.layout
    shape = Shape.of(level, status.raid_devices, parity=parity, layout=number, chunk=status.chunk_size, metadata=metadata)
    return shape, base.name_of(source)


def cut_power(level: str, states: int, seed: int, jobs: int | None, as_json: bool) -> int:
    """Power cuts of small arrays of a level, with each policy."""
    from .. import lab

    pairs = [(level, policy) for policy in lab.POLICIES]
    with render.Meter(as_json, lambda rate: f"{rate:.0f} states") as meter:
        meter.show("cutting the power", 0, len(pairs), 0, None)
        most = max(1, states // SHORT_WORDS) if states < ALL_STATES else None
        processes = jobs or min(len(pairs), os.cpu_count() or 1)
        tallies = list(lab.campaigns(pairs, states * len(pairs), processes, seed=seed, most=most))
    violations = [violation for tally in tallies for violation in tally.violations]
    if as_json:
        base.document("drill", power_cuts=[dataclasses.asdict(tally) for tally in tallies], seed=seed, held=not violations)
        return verdict(bool(violations), False)
    head = ("Policy", "Histories", "Moments", "States", "After a second cut", "Refused", "Write holes", "Broken")
    rows = [
        (t.policy, *map(str, (t.words, t.moments, t.distinct, t.nested, t.refused + t.refused_without, t.write_holes, len(t.violations))))
        for t in tallies
    ]
    render.show(Text(f"level {level}: power cuts", style="bold"), Padding(render.grid(head, rows, right=tuple(range(1, 8))), (0, 0, 0, 2)))
    for violation in violations[:SHOWN]:
        click.echo(f"\n{violation.problem}\n  {violation.command}")
    total = sum(t.distinct for t in tallies)
    click.echo("")
    if violations:
        click.echo(f"A PROMISE WAS BROKEN in {len(violations)} of {total} states: a bug of raidlib; please report it with its replay.")
    else:
        holes = sum(t.write_holes for t in tallies)
        words = f"All promises were kept in {total} states that a power cut can leave."
        click.echo(
            words + (f" In {holes} of them --force, which raidlib asks for, would have lost old data: the write hole." if holes else "")
        )
    return verdict(bool(violations), False)


def verdict(broken: bool, unhit: bool) -> int:
    """The exit code."""
    return FAILED if broken else CANNOT_TELL if unhit else OK


def list_faults(kinds: dict[str, Any], as_json: bool) -> int:
    """Every kind of fault in a line."""
    if as_json:
        base.document("drill", faults={name: {"what": kind.what, "silent": kind.silent} for name, kind in kinds.items()})
        return OK
    rows = [(name, kind.what, "nobody is told" if kind.silent else "") for name, kind in kinds.items()]
    render.show(Padding(render.grid(("Fault", "What the member does", ""), rows), (0, 0, 0, 2)))
    return OK


def replay_one(outcome: Any, as_json: bool) -> int:
    """One trial."""
    if as_json:
        base.document("drill", held=not outcome.violations and outcome.hit > 0, outcome=outcome)
    else:
        planned, struck = render.count_of(outcome.injected, "fault"), render.count_of(outcome.hit, "request")
        click.echo(f"{outcome.case}: {planned} planned, {struck} struck: {outcome.outcome}")
        for line in [*outcome.story, *outcome.violations]:
            click.echo(f"  {line}")
    return verdict(bool(outcome.violations), outcome.hit == 0)


def print_report(report: Any, name: str) -> None:
    """The table, the cases to look at, and what it means."""
    rows = []
    for row in report.rows:
        words = "; ".join(f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items(), key=lambda item: -item[1]))
        broken = any(o.fault == row.fault and o.reach == row.reach for o in report.broken)
        rows.append((row.fault, row.reach, str(row.injected), str(row.hit), Text(words, style="bold red" if broken else "")))
    title = Text(f"{name}: {report.cases} trials", style="bold")
    render.show(title, Padding(render.grid(("Fault", "Redundancy", "Injected", "Hit", "Outcome"), rows, right=(2, 3)), (0, 0, 0, 2)))
    for outcome in [*report.broken, *report.unhit][:SHOWN]:
        click.echo(f"\n{outcome.fault}, {outcome.reach} the redundancy: {'; '.join(outcome.violations) or 'it struck nothing'}")
        click.echo(f"  raidlib drill --replay '{outcome.case}'")
    if report.repeated:
        again = render.count_of(len(report.repeated), "trial")
        click.echo(
            f"\n{again} missed a time beside others, as on a machine under load, and counts as it ended when it was run again alone."
        )
    click.echo("")
    click.echo(closing_words(report, name))


def closing_words(report: Any, name: str) -> str:
    """One sentence for whoever only reads the last line."""
    trials = render.count_of(report.cases, "trial")
    if report.broken:
        return f"A PROMISE WAS BROKEN in {len(report.broken)} of {trials}: a bug of raidlib; please report it with its replay."
    if report.unhit:
        return f"No promise was broken, but {len(report.unhit)} of {trials} say nothing, because their fault struck nothing."
    seen = f"All promises were kept in {trials}: nothing that {name} must hold was lost or wrong without an error"
    if report.wrong_cases:
        return f"{seen}, but for {report.wrong_cases} trials in which a disk that lies was believed, as it is without checksums."
    return f"{seen}."


COMMANDS = (drill,)
