"""The wheel installs and works in a fresh environment that has no compiler."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import raidlib
with raidlib.create("tank", level=5, raid_devices=3, size="8M", chunk="64K") as array:
    array.pwrite(b"hello", 70000)
    array.flush()
    array.fail(1)
    assert array.pread(5, 70000) == b"hello"
print("works")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree, so that nothing compiled before gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "fuse_mount", "raidlib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder]
    subprocess.run(command, check=True)
    (wheel,) = (folder / "dist").iterdir()
    return wheel


def other_pythons() -> list[str]:
    """This interpreter, and any later one that is at hand: the wheel is for all of them."""
    found = [sys.executable]
    for minor in range(sys.version_info.minor + 1, sys.version_info.minor + 5):
        path = shutil.which(f"python3.{minor}")
        if path and subprocess.run([path, "-c", "import ensurepip, venv"], check=False, capture_output=True).returncode == 0:
            found.append(path)
    return found


def test_wheel_is_for_every_python(wheel):
    assert re.fullmatch(r"raidlib-[\d.]+-cp311-abi3-\w+\.whl", wheel.name)


def test_wheel_has_what_is_not_python(wheel):
    assert {"raidlib/py.typed", "raidlib/sim/report.html"} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("python", other_pythons())
def test_wheel_works_without_a_compiler(wheel, tmp_path, python):
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    environment = {key: value for key, value in os.environ.items() if key not in ("CFLAGS", "PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": str(programs), "CC": "/nowhere/cc"}
    install = [programs / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--only-binary", ":all:", wheel]
    subprocess.run(install, check=True, env=environment)

    def run(program, *arguments):
        command = [programs / program, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout

    assert run("python", "-c", PROGRAM) == "works\n"
    assert "create" in run("raidlib", "--help")
    assert '"raid5"' in run("raidlib", "examine", "--json", "tank/member-0.img")
