"""What all tests share: where the golden arrays are, and which skips may occur."""

import os
import re
import signal
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("raidlib", deadline=None, print_blob=True)
hypothesis.settings.load_profile("raidlib")

# A shell that runs this in the background has it, and all that it starts, ignore Ctrl-C, which is what some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A skip for any other reason fails the run where CI is set: a test that silently stops running is worse than one that fails.
SKIPS_THAT_MAY_OCCUR = re.compile(
    r"no golden arrays|no file of 4 TiB|the kernel's side refuses|"
    r"no direct I/O|/dev/fuse|no loop device|needs root|this CPU lacks|fusermount3 refuses an ordinary user|no chromium to look at"
)


def pytest_ignore_collect(collection_path, config):
    """What needs QEMU is run by its name only: `make test-kernel`."""
    kernel = ROOT / "tests" / "kernel"
    named = any(Path(name.split("::")[0]).resolve().is_relative_to(kernel) for name in config.args)
    return True if collection_path == kernel and not named else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not SKIPS_THAT_MAY_OCCUR.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: this skip is not one of SKIPS_THAT_MAY_OCCUR (tests/conftest.py): {reason}"
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Arrays that the kernel made, with an index.json: $RAIDLIB_GOLDEN, tests/golden or ../shared/golden."""
    for place in (os.environ.get("RAIDLIB_GOLDEN"), ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"):
        if place and (Path(place) / "index.json").is_file():
            return Path(place)
    pytest.skip("no golden arrays: set RAIDLIB_GOLDEN to a folder of them")
