"""Breaks the engine on purpose, one place at a time, and looks whether the short campaign notices.

    scripts/mutants.py [--list] [--jobs 2] [--only PATTERN] [-- COMMAND…]

A mutant is the engine with one deletion (a flush, a wait, a barrier, an update of a superblock, a log or a bitmap) or with two neighbouring
statements swapped of which one is such; and those of NAMED, each with the words of what is wrong with it. Each is built in a copy of the
tree, on which COMMAND runs (default: the short campaign). A mutant that the command does not notice survives: it is either the same
program, and then docs/mutants.md says why, or there is a hole in the campaign. Exit code 1: a survivor that is not in docs/mutants.md.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tree_sitter
import tree_sitter_c

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("setup.py", "pyproject.toml", "README.md", "csrc", "fuse_mount", "raidlib", "tests", "scripts", "docs")
BUILD = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
# The tests whose matter is what is durable when; those of the file that is broken go first (the start of its name).
TESTS = ("bitmap", "bitmap_trust", "partial_failures", "array", "bad_blocks", "jobs", "replace", "space")
NEAREST = {
    "bad": "bad_blocks",
    "recover": "replace",
    "sync": "jobs",
    "mirror": "partial_failures",
    "devices": "partial_failures",
}
SLOW = "power_cuts or scratched"  # a minute for what the others notice in seconds, if it can be noticed by them
KILLERS = 12  # tests that have noticed most mutants so far, which each next one meets before the rest
TIME_LIMIT_S = 1200  # of each part, for the engine as it is
SLOWER, BUSY_S = 4, 60  # a mutant whose part takes so many times longer, and so many seconds more, hangs

# What has to die: (what is wrong, (file, text, instead)…).
NAMED: list[tuple[Any, ...]] = [
    (
        "a failure is recorded after the acknowledgement",
        (
            "csrc/devices.c",
            "    if (changed || (atomic_load(&a->commit_due) && !atomic_load(&a->broken))) { /* S1, I12 */\n"
            "        int committed = rl_metadata_commit(a);\n        rc = rc ? rc : committed;\n    }\n"
            "    if (rc == 0 && atomic_load(&a->commit_due))\n",
            "    if (rc == 0 && atomic_load(&a->commit_due) && 0)\n",
        ),
    ),
    (
        "one member is not flushed",
        (
            "csrc/metadata.c",
            "        if (takes_superblock(a->devices[i]))\n            io[count++]",
            "        if (takes_superblock(a->devices[i]) && i != 1)\n            io[count++]",
        ),
    ),
    (
        "a stale member is taken back",
        ("raidlib/assembly.py", "elif sb.events + 1 < best.events:", "elif False:"),
        ("raidlib/assembly.py", "elif c is not freshest and best.dev_roles[sb.dev_number] >= lib.RL_ROLE_MAX:", "elif False:"),
        (
            "raidlib/assembly.py",
            "c.slot = best.dev_roles[sb.dev_number] if sb.events < best.events else slot",
            "c.slot = slot",
        ),
    ),
    ("a recovery goes on past its checkpoint", ("csrc/metadata.c", "= d->durable;", "= atomic_load(&d->recovered);")),
    (
        "a resync goes on past its checkpoint",
        ("csrc/metadata.c", "rl_min(atomic_load(&a->resync), a->resync_durable)", "atomic_load(&a->resync)"),
    ),
    (
        "the bit after the data",
        (
            "csrc/io.c",
            "            step = rl_bitmap_begin(&rq, length - done, offset + done, &hold); /* B1 */\n            if (step == 0)\n"
            "                step = change_piece(&rq, w, c, done, length - done, offset + done);\n",
            "            step = change_piece(&rq, w, c, done, length - done, offset + done);\n"
            "            if (rl_bitmap_begin(&rq, length - done, offset + done, &hold))\n                step = -EIO;\n",
        ),
    ),
    (
        "parity from a read that failed",
        (
            "csrc/stripe.c",
            "        f->have[io->tag] = io->result == 0;\n        if (io->result == 0)\n            continue;\n",
            "        f->have[io->tag] = 1;\n        continue;\n",
        ),
    ),
    (
        "the clean mark before the flush",
        (
            "csrc/metadata.c",
            "uint64_t failures = rl_flush_devices(a, rq);\n    pthread_rwlock_unlock",
            "uint64_t failures = 0;\n    pthread_rwlock_unlock",
        ),
        ("csrc/metadata.c", "failures = failures ? failures : rl_flush_devices(a, rq);", "failures = 0;"),
        ("csrc/metadata.c", "uint64_t failures = rl_flush_devices(a, &rq);", "uint64_t failures = 0;"),
    ),
]
# Files of what is written when; the rest (parity kernels, geometry, members, faults) has oracles of its own.
FILES = (
    "engine.c", "devices.c", "io.c", "stripe.c", "mirror.c", "metadata.c", "recover.c", "sync.c", "badblocks.c", "service.c", "bitmap.c",
    "bitmap_admin.c",
)  # fmt: skip
# Calls that make something durable, wait for it, or say it.
WATCHED = re.compile(
    r"^(rl_(flush|lock_flushed|metadata|request_settle|request_doubted|request_failed|note_durable|note_full|bad_write|bad_note|bitmap_(?!bits|bytes|offset|is_on|uuid|decode|run|check_room)|device_out|device_take_over|"
    r"set_resync_back|heal)\w*|\w*(write_superblock|update_device|update_bitmaps|write_dirty|write_run|put_head|set_slowly|set_bits|image_put|advance_cleared|catch_up|raise_events|checkpoint|flush|commit|settle)\w*|pthread_cond_\w*wait)$"
)
STATE = re.compile(r"atomic_store\(&\w+->(active|commit_due|bitmap_due|doubted|broken|full|resync|recovered)\b")
FLUSH_IO = b"RL_OP_FLUSH"  # in a function with it, requests that are run are watched too


@dataclasses.dataclass(frozen=True)
class Mutant:
    """What is wrong with it, and the edits that make it: in `file` the bytes [start, end) become `text`."""

    place: str  # file and function
    line: int
    what: str
    edits: tuple[tuple[str, int, int, str], ...]

    @property
    def name(self) -> str:
        """Stays what it is while other places change."""
        return f"{self.place}: {self.what}"


def functions(source: bytes) -> Iterator[tuple[str, tree_sitter.Node]]:
    """Name and body."""
    tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language())).parse(source)
    for node in tree.root_node.children:
        if node.type == "function_definition":
            declarator = node.child_by_field_name("declarator")
            while declarator.type != "identifier":
                declarator = declarator.child_by_field_name("declarator")
            yield declarator.text.decode(), node.child_by_field_name("body")


def walk(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """The node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def called(node: tree_sitter.Node) -> str:
    """The name of the function that is called; empty: it is no call."""
    return node.child_by_field_name("function").text.decode() if node.type == "call_expression" else ""


def watched(node: tree_sitter.Node) -> bool:
    """Whether there is something in it that makes durable, waits, or says so."""
    return bool(STATE.search(node.text.decode())) or FLUSH_IO in node.text or any(WATCHED.match(called(part)) for part in walk(node))


def words(node: tree_sitter.Node) -> str:
    """Its text on one line."""
    return re.sub(r"\s+", " ", node.text.decode())[:90]


def deletions(body: tree_sitter.Node) -> Iterator[tuple[str, int, int, str]]:
    """Each watched call that is a statement goes; one whose result is used succeeds without having been made."""
    flushes = FLUSH_IO in body.text
    for node in walk(body):
        name = called(node)
        store = name == "atomic_store" and STATE.search(node.text.decode())
        if not WATCHED.match(name) and not store and not (flushes and name == "rl_io_run"):
            continue
        yield f"without {words(node)}", node.start_byte, node.end_byte, "(void)0" if node.parent.type == "expression_statement" else "0"


def swaps(body: tree_sitter.Node) -> Iterator[tuple[str, int, int, str]]:
    """Neighbours of which one is watched change places."""
    simple = ("expression_statement", "if_statement", "for_statement", "declaration")
    for block in walk(body):
        if block.type != "compound_statement":
            continue
        statements = [child for child in block.children if child.is_named and child.type != "comment"]
        for first, second in itertools.pairwise(statements):
            if first.type in simple and second.type in simple and (watched(first) or watched(second)) and first.type != "declaration":
                text = second.text.decode() + "\n" + first.text.decode()
                yield f"{words(second)} BEFORE {words(first)}", first.start_byte, second.end_byte, text


def named() -> list[Mutant]:
    """Those of NAMED. A text that is not there once is an error of this script."""
    found = []
    for what, *changes in NAMED:
        edits = []
        for file, text, instead in changes:
            source = (ROOT / file).read_text()
            if source.count(text) != 1:
                raise SystemExit(f"mutants: {what}: {file} has its text {source.count(text)} times: {text!r}")
            start = len(source[: source.index(text)].encode())
            edits.append((file, start, start + len(text.encode()), instead))
        found.append(Mutant("named", 0, what, tuple(edits)))
    return found


def mutants() -> list[Mutant]:
    """All, in the order of the files."""
    found = named()
    for path in sorted((ROOT / "csrc").glob("*.c")):
        source = path.read_bytes()
        for function, body in functions(source) if path.name in FILES else ():
            for make in (deletions, swaps):
                for what, start, end, text in make(body):
                    line, edit = source[:start].count(b"\n") + 1, (f"csrc/{path.name}", start, end, text)
                    found.append(Mutant(f"{path.name}:{function}", line, what, (edit,)))
    counts: dict[str, int] = {}
    for index, mutant in enumerate(found):  # the second of one name says so
        counts[mutant.name] = counts.get(mutant.name, 0) + 1
        if counts[mutant.name] > 1:
            found[index] = dataclasses.replace(mutant, what=f"{mutant.what} #{counts[mutant.name]}")
    return found


def run(command: list[str], folder: Path, limit_s: float) -> tuple[int, str]:
    """Its end and the last it said; a program that hangs counts as noticed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "RAIDLIB_RUNTIME_DIR": str(folder / "run"), "CFLAGS": "-O1"}
    if shutil.which("ccache"):  # all but the one file that a mutant changes
        environment |= {"CC": "ccache cc", "CCACHE_DIR": str(folder.parent / "ccache")}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -1, "it hangs"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what it has left
        except ProcessLookupError:
            pass
    return process.returncode, output


def why(output: str) -> str:
    """The line that says what was noticed."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  ", "raidlib: assertion"))]
    return (lines[-1] if lines else output.strip().splitlines()[-1] if output.strip() else "")[:200]


def short_campaign(place: str, killers: Sequence[str] = ()) -> list[list[str]]:
    """The commands that are to notice a mutant of that place: what notices most in least time first. killers: tests that are
    known to notice much, which become a command of their own, the second.
    """
    first = [test for start, test in NEAREST.items() if place.startswith(start)]
    files = [f"tests/test_{name}.py" for name in dict.fromkeys((*first, *TESTS))]
    crash = ["scripts/crash.py", "--first", "--most", "12", "--states"]
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-xq", "--timeout=120"]
    parts = [[*crash, "2400"], [*pytest, "-k", f"not ({SLOW})", *files], [*crash, "12000", "--seed", "1"], [*pytest, "-k", SLOW, *files]]
    if killers:
        parts.insert(1, [*pytest, *killers])
    return [[sys.executable, *part] for part in parts]


def judge(
    mutant: Mutant | None, command: list[str], limits_s: list[float], parent: Path, killers: collections.Counter[str]
) -> tuple[str, str, list[float]]:
    """(killed | survived | does not build, the words, the seconds that each part of the campaign took). command: in place of that."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-", dir=parent))
    try:
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)
        if mutant is not None:
            for file, start, end, text in reversed(mutant.edits):
                source = (folder / file).read_bytes()
                (folder / file).write_bytes(source[:start] + text.encode() + source[end:])
        code, output = run(BUILD, folder, 300)
        if code:
            return "does not build", why(output), []
        where = run([sys.executable, "-c", "import raidlib; print(raidlib.__file__)"], folder, 60)[1]
        if not where.startswith(str(folder)):
            raise SystemExit(f"mutants: the tests would look at {where.strip()}")
        took_s = []
        first = [test for test, _count in killers.copy().most_common(KILLERS)]  # other threads add to it
        campaign = [command] if command else short_campaign(mutant.place if mutant else "", first)
        if len(campaign) > len(limits_s):  # the killers are some of the tests that follow them
            limits_s = [*limits_s[:2], *limits_s[1:]]
        for part, limit_s in zip(campaign, limits_s, strict=True):
            began = time.monotonic()
            code, output = run(part, folder, limit_s)
            took_s.append(time.monotonic() - began)
            if code:
                if part is not campaign[-1] and (test := re.search(r"^FAILED (.+?)(?: - |$)", output, re.MULTILINE)):
                    killers[test[1]] += 1
                return "killed", why(output), took_s
        return "survived", "", took_s
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Exit code 1: there is a survivor that has no reason."""
    parser = argparse.ArgumentParser(description="breaks the engine, one place at a time, and looks whether the tests notice")
    parser.add_argument("--list", action="store_true", help="the mutants, without running them")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    parser.add_argument("--only", default="", help="a regular expression: those whose name it is found in")
    parser.add_argument("command", nargs="*", help="what has to notice, in a copy of the tree (default: the short campaign)")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if re.search(options.only, mutant.name)]
    if options.list:
        print(*(f"{mutant.name} (line {mutant.line})" for mutant in chosen), sep="\n")
        print(f"{len(chosen)} mutants")
        return 0
    known = (ROOT / "docs" / "mutants.md").read_text() if (ROOT / "docs" / "mutants.md").exists() else ""
    counts = {"killed": 0, "survived": 0, "does not build": 0}
    unexplained = []
    with tempfile.TemporaryDirectory(prefix="raidlib-mutants-") as parent:
        parts = 1 if options.command else len(short_campaign(""))
        killers: collections.Counter[str] = collections.Counter()
        said, text, took_s = judge(None, options.command, [TIME_LIMIT_S] * parts, Path(parent), killers)
        if said != "survived":
            raise SystemExit(f"mutants: the engine as it is does not pass: {said}: {text}")
        print(f"the engine as it is passes, in {' + '.join(f'{one:.0f}' for one in took_s)} s; {len(chosen)} mutants", flush=True)
        limits_s = [SLOWER * one + BUSY_S for one in took_s]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            judged = {pool.submit(judge, mutant, options.command, limits_s, Path(parent), killers): mutant for mutant in chosen}
            for done in concurrent.futures.as_completed(judged):
                mutant, (said, text, took_s) = judged[done], done.result()
                counts[said] += 1
                print(f"{said:14} {mutant.name} (line {mutant.line}; {sum(took_s):.0f} s, part {len(took_s)})   {text}", flush=True)
                if said == "survived" and f"`{mutant.name}`" not in known:
                    unexplained.append(mutant)
    built = counts["killed"] + counts["survived"]
    print(f"{built} mutants: {counts['killed']} noticed ({counts['killed'] / max(built, 1):.1%}), {counts['survived']} survived; ", end="")
    print(f"{counts['does not build']} more did not build")
    for mutant in unexplained:
        print(f"survived, and docs/mutants.md does not say why: {mutant.name}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
