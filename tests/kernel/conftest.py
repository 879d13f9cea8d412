"""The kernel as judge: which cases are asked for, the shuttle that runs them, and the table at the end."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import shuttle
import table

CHOSEN = pytest.StashKey[list[table.Cell]]()
SHUTTLE = pytest.StashKey[shuttle.Shuttle]()
SAID: dict[table.Cell, shuttle.Outcome] = {}
MARKS = {"right": "ok", "n/a": "n/a", "wrong": "WRONG"}


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every shape, metadata version and direction, not a sample of them")


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", table.everything() if metafunc.config.getoption("--full") else table.sample(), ids=str)


def pytest_collection_finish(session):
    """The shuttle runs the cases in batches, so it has to know beforehand which are wanted (-k, --lf)."""
    session.config.stash[CHOSEN] = [item.callspec.params["cell"] for item in session.items if hasattr(item, "callspec")]


@pytest.fixture(scope="session")
def judge(pytestconfig, tmp_path_factory):
    """What became of a cell."""
    scratch = tmp_path_factory.mktemp("kernel")
    pytestconfig.stash[SHUTTLE] = machines = shuttle.Shuttle([cell.entry(scratch) for cell in pytestconfig.stash[CHOSEN]], scratch)

    def outcome(cell: table.Cell) -> shuttle.Outcome:
        SAID[cell] = machines.outcome(str(cell))
        return SAID[cell]

    return outcome


def pytest_terminal_summary(terminalreporter, config):
    """The table: a row for each shape and metadata version, a numbered column for each direction, of those that were run."""
    if SHUTTLE not in config.stash:
        return
    write = terminalreporter.write_line
    rows = sorted({cell.row for cell in SAID}, key=[cell.row for cell in table.everything()].index)
    marks = {(cell.row, cell.direction.name): MARKS[outcome.word] for cell, outcome in SAID.items()}
    wide = max(len(row) for row in rows)
    names = {cell.direction.name for cell in SAID}
    columns = {number: direction for number, direction in enumerate(table.DIRECTIONS, 1) if direction.name in names}
    write("")
    for number, direction in columns.items():
        write(f"{number:2} {direction.name}: {direction.run.__doc__.splitlines()[0]}")
    write("")
    write(" " * wide + "".join(f"{number:6}" for number in columns))
    for row in rows:
        write(row.ljust(wide) + "".join(marks.get((row, direction.name), ".").rjust(6) for direction in columns.values()))
    for reason in sorted({f"n/a: {cell}: {outcome.text}" for cell, outcome in SAID.items() if outcome.word == "n/a"}):
        write(reason)
    count = Counter(outcome.word for outcome in SAID.values())
    machines = config.stash[SHUTTLE]
    for name in machines.again:
        write(f"run again, for the guest hung in it: {name}")
    write(f"{count['right']} right, {count['n/a']} n/a, {count['wrong']} wrong, in {machines.boots} boots of {machines.versions}")
