"""The C programs of tests/c, for a short while: `make stress` and `make histories` run them for long."""

import os
import re
import subprocess

import pytest

pytestmark = pytest.mark.timeout(600)  # they are compiled first, and wait much where others use the machine


@pytest.fixture(scope="module")
def program(root):
    """Builds one of them with a sanitizer, or "none"; it runs with further arguments."""

    def run(name, sanitizer, *arguments):
        target = f"build/c/{name}-{sanitizer}"
        flags = [] if sanitizer == "none" else [f"SANITIZE={sanitizer}"]
        subprocess.run(["make", "--no-print-directory", target, *flags], cwd=root, check=True)
        options = {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run(
            [root / target, *arguments], env={**os.environ, **options}, capture_output=True, text=True, check=False, timeout=500
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        assert "Sanitizer" not in done.stderr
        return done.stdout

    return run


def test_everything_at_once_under_thread_sanitizer(program):
    """25 shapes for about a second each; make stress runs ten minutes."""
    text = program("stress", "thread", "28")
    requests = [int(number) for number in re.findall(r"(\d+) requests", text)]
    assert len(requests) == 25
    assert min(requests) > 100


def test_histories_are_linearizable(program):
    """make histories judges 10,000."""
    text = program("history", "none", "360")
    patterns = (r"(\d+) histories", r"in (\d+) a member failed", r"in (\d+) one had bad blocks")
    histories, failed, marked = (int(re.search(pattern, text)[1]) for pattern in patterns)
    assert histories == 360
    assert failed > 30 and marked > 10
