"""The command line: the verbs of mdadm on arrays that a user owns. Options, tables, JSON and exit codes; no logic.

`base` has what all verbs share (exit codes, questions, how an ARRAY is reached), `render` the tables and progress bars, `content` what
goes in and out of an array as a whole; the verbs are in `arrays` (create, examine …), `members` (fail, add, check …), `mounts`, `drill` and
`durability` (simulate, sweep).
"""

from __future__ import annotations

import sys

import click

from . import arrays, drill, durability, members, mounts
from .base import Program

__all__ = ["main", "program"]

program = Program(
    "raidlib",
    help="""RAID in user space: redundant arrays on files and disks, in Linux md's own format, without root and without a kernel driver.

    An ARRAY is a directory that holds the members, a mount point, or a list of members (with commas between
    them where a verb takes other words too). All verbs
    work alike on a mounted array and on one that is at rest.

    \b
      raidlib create tank --level 6 --raid-devices 6 --size 1G --mkfs ext4
      raidlib mount tank /mnt/tank
      raidlib detail tank
    """,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
    Exit codes: 0 done; 3 refused for safety; 64 usage; 69 a facility is missing; 70 a bug of raidlib;
    74 input/output; 75 busy; 77 permission; 130 interrupted. Of `detail --test`, `check`, `repair`
    and `wait` also: 1 degraded or mismatches found, 2 failed, 4 cannot tell; of `drill` also 2 and 4.
    """,
)
program = click.version_option(package_name="raidlib", message="%(prog)s %(version)s")(program)
for command in (*arrays.COMMANDS, *members.COMMANDS, *mounts.COMMANDS, *drill.COMMANDS, *durability.COMMANDS):
    command.help = (command.help or "").replace("\\b", "\b")  # click's mark of a paragraph that is not to be filled
    program.add_command(command)


def main() -> None:
    """The entry point: runs a verb and exits with its code."""
    program.main(args=sys.argv[1:])
