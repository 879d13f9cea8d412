"""The pytest plugin: the fixture `raid_lab`, with which a test has arrays on members in memory that fail on demand.

pytest finds it by itself where raidlib is installed. It loads nothing of raidlib before a test asks for the fixture.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .rig import Lab

_seed_key = pytest.StashKey[int]()


class RaidLab:
    """Makes a test's arrays: `lab = raid_lab(level=5, raid_devices=4, size="1M")`, a raidlib.lab.Lab, closed at the test's end.

    `seed` is the test's own, from its name or --raid-lab-seed: the devices' decisions depend on it, and yours may.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._labs: list[Lab] = []

    def __call__(self, *, level: int | str, raid_devices: int, size: str | int = "1M", **options: Any) -> Lab:
        """An array; what `raidlib.create` takes may be given too."""
        from .rig import Lab

        seed = options.pop("seed", self.seed + (len(self._labs) << 16))
        self._labs.append(Lab(level=level, raid_devices=raid_devices, size=size, seed=seed, **options))
        return self._labs[-1]

    def close(self) -> None:
        """All of them, also when one does not close; then its error."""
        problems = []
        while self._labs:
            try:
                self._labs.pop().close()
            except Exception as error:
                problems.append(error)
        if problems:
            raise problems[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The seed, by hand."""
    words = "the seed of the fixture raid_lab, instead of one from the name of each test"
    parser.getgroup("raidlib").addoption("--raid-lab-seed", type=int, metavar="SEED", help=words)


@pytest.fixture
def raid_lab(request: pytest.FixtureRequest) -> Iterator[RaidLab]:
    """Arrays on members in memory that fail on demand: `raid_lab(level=5, raid_devices=4, size="1M")` makes one."""
    given = request.config.getoption("--raid-lab-seed")
    seed = zlib.crc32(request.node.nodeid.encode()) if given is None else given
    request.node.stash[_seed_key] = seed
    made = RaidLab(seed)
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails says its seed."""
    report = yield
    seed = item.stash.get(_seed_key, None)
    if seed is not None and report.failed:
        report.sections.append(("raid_lab", f"seed {seed}: the same again with --raid-lab-seed={seed}"))
    return report
