"""The cffi builder of raidlib._fuse. Its cdef is cut out of fuse_mount.h: the header is the only contract."""

import subprocess
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def cut(header: Path) -> str:
    """The text between the CDEF markers of a header."""
    text = header.read_text()
    return text.split("/* CDEF-BEGIN */")[1].split("/* CDEF-END */")[0]


def pkg_config(option: str) -> list[str]:
    """What pkg-config says about libfuse3; empty without it, so that the compiler's own error names the header that is missing."""
    try:
        answer = subprocess.run(["pkg-config", option, "fuse3"], check=False, capture_output=True, text=True)
    except OSError:
        return []
    return answer.stdout.split()


ffibuilder = FFI()
ffibuilder.cdef(cut(HERE / "fuse_mount.h"))
ffibuilder.set_source(
    "raidlib._fuse",
    '#include "fuse_mount.h"',
    sources=["fuse_mount/fuse_mount.c"],
    depends=["fuse_mount/fuse_mount.h", "csrc/raidlib.h"],
    include_dirs=["fuse_mount"],
    define_macros=[("Py_LIMITED_API", "0x030b0000"), ("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-pthread", *pkg_config("--cflags")],
    extra_link_args=["-pthread", *(pkg_config("--libs") or ["-lfuse3"])],
)
