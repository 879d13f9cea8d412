"""Builds the two extension modules; everything that is not code is in pyproject.toml."""

import subprocess
import sys

from setuptools import setup


def has_fuse3() -> bool:
    """Whether libfuse3's headers are here; without them raidlib is built without the mount."""
    try:
        return subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode == 0
    except OSError:
        return False


modules = ["csrc/ffi_build.py:ffibuilder"]
if has_fuse3():
    modules.append("fuse_mount/ffi_build.py:ffibuilder")
else:
    print("raidlib: libfuse3's headers or pkg-config are missing: built without the mount (raidlib._fuse)", file=sys.stderr)

setup(cffi_modules=modules, options={"bdist_wheel": {"py_limited_api": "cp311"}})
