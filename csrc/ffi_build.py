"""The cffi builder of raidlib._engine. Its cdef is cut out of raidlib.h: the header is the only contract."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def cut(header: Path) -> str:
    """The text between the CDEF markers of a header."""
    text = header.read_text()
    return text.split("/* CDEF-BEGIN */")[1].split("/* CDEF-END */")[0]


CALLBACKS = """
extern "Python" int rl_py_pread(void *context, void *buffer, uint64_t length, uint64_t offset);
extern "Python" int rl_py_pwrite(void *context, const void *buffer, uint64_t length, uint64_t offset);
extern "Python" int rl_py_flush(void *context);
"""

ffibuilder = FFI()
ffibuilder.cdef(cut(HERE / "raidlib.h") + CALLBACKS)
ffibuilder.set_source(
    "raidlib._engine",
    '#include "raidlib.h"',
    sources=[f"csrc/{path.name}" for path in sorted(HERE.glob("*.c"))],
    depends=[f"csrc/{path.name}" for path in sorted(HERE.glob("*.h"))],
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030b0000"), ("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-pthread"],
    extra_link_args=["-pthread"],
)
