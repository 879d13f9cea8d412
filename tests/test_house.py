"""The rules of the house that no other tool checks (CONTRIBUTING.md lists them)."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 800
TEST_LINES_MAX = 1000  # a suite of one subject stays together
PURE = ("geometry.c", "format.c", "bitmap_format.c", "parity*.c", "sim*.c")
# What a pure file may not call: memory, locks and threads, I/O, time.
IMPURE = re.compile(
    r"\b(?:malloc|calloc|realloc|free|aligned_alloc|posix_memalign|memalign|alloca|strdup|strndup|asprintf|mmap|munmap"
    r"|pthread_\w+|mtx_\w+|cnd_\w+|thrd_\w+|call_once|sem_\w+|futex|syscall"
    r"|p?readv?2?|p?writev?2?|open|openat|creat|close|lseek|ioctl|fcntl|f(?:data)?sync|ftruncate|fallocate|f?stat|socket|send|recv"
    r"|f?printf|puts|fputs|fopen|fread|fwrite|getenv|time|clock_gettime|gettimeofday|n?sleep|usleep|nanosleep|abort|exit"
    r"|rl_member_\w+|rl_array_\w+|rl_sync_\w+)\s*\("
)


@cache
def project_files() -> tuple[Path, ...]:
    """The files that are in the repository, or would be after `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return tuple(sorted(ROOT / name for name in set(names) if name and (ROOT / name).is_file()))


@cache
def texts() -> dict[str, str]:
    """Every text file of the project by its name."""
    result = {}
    for path in project_files():
        try:
            result[path.relative_to(ROOT).as_posix()] = path.read_text()
        except UnicodeDecodeError:
            continue
    return result


def c_files(folder: str = "csrc", suffix: str = ".c") -> list[Path]:
    return sorted((ROOT / folder).glob(f"*{suffix}"))


def blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n") or " "


@cache
def bare(path: Path) -> str:
    """C without comments, literals, attributes and preprocessor lines; the line numbers stay."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, path.read_text(), flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)
    return re.sub(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)", blank, text)


DEFINITION = re.compile(r"^(?P<head>[A-Za-z_][\w \t*]*?)\b(?P<name>\w+)\([^;{}]*\)\s*(?=\{)", re.MULTILINE)
VARIABLE = re.compile(r"^(?P<head>[A-Za-z_][\w \t*]*?)\b(?P<name>\w+)(?:\[[^\]\n]*\])*\s*(?:=[^=]|;)", re.MULTILINE)


@cache
def static_words(folder: Path) -> set[str]:
    """`static`, and the macros that stand for it (RL_ALWAYS_INLINE)."""
    text = "".join(path.read_text() for path in folder.glob("*.[ch]"))
    return {"static", *re.findall(r"^#[ \t]*define (\w+) (?:\w+ )*?static\b", text, re.MULTILINE)}


def functions(path: Path) -> list[tuple[str, bool, int]]:
    """Name, whether static, and number of lines of every function that a C file defines."""
    text, statics, result = bare(path), static_words(path.parent), []
    for match in DEFINITION.finditer(text):
        depth, end = 0, match.end()
        while True:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if not depth:
                break
        result.append((match["name"], bool(statics & set(match["head"].split())), text.count("\n", match.start(), end) + 1))
    return result


def declared(header: Path) -> set[str]:
    """The functions that a header declares."""
    return set(re.findall(r"^[A-Za-z_][\w \t*]*?\b(\w+)\([^;{}]*\)\s*;", bare(header), re.MULTILINE))


def imported(path: Path) -> set[str]:
    """The modules that a Python file imports anywhere; those of the package by their last name (`_engine`)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("raidlib.").split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").removeprefix("raidlib").strip(".")
            names |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
    return names


def rooms() -> list[str]:
    """The modules of the package; a folder counts as one."""
    names = {path.relative_to(ROOT / "raidlib").parts[0].removesuffix(".py") for path in (ROOT / "raidlib").rglob("*.py")}
    return sorted(names - {"__init__"})


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("_engine", r"engine\.py"),
        ("_fuse", r"mount\.py"),
        ("click", r"cli(_\w+)?\.py|cli/.*|demo\.py"),
        ("rich", r"cli(_\w+)?\.py|cli/.*|demo\.py"),
    ],
)
def test_imported_in_one_place(module, where):
    package = ROOT / "raidlib"
    importers = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if module in imported(path)]
    assert [name for name in importers if not re.fullmatch(where, name)] == []


def test_import_loads_little():
    """`import raidlib` brings neither the command line nor the mount, and starts nothing."""
    program = "import sys, threading, raidlib; print(*{'click', 'rich', 'raidlib._fuse'} & {*sys.modules}, threading.active_count())"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert answer.stdout.split() == ["1"]


def test_every_module_may_be_the_first_that_is_imported():
    for room in rooms():
        subprocess.run([sys.executable, "-c", f"import raidlib.{room}"], cwd=ROOT, check=True)


# --- C ----------------------------------------------------------------------------------------------------------------


def test_pure_files_are_pure():
    found = []
    for path in (path for pattern in PURE for path in (ROOT / "csrc").glob(pattern)):
        for number, line in enumerate(bare(path).splitlines(), 1):
            found += [f"{path.name}:{number}: {match[0]}" for match in IMPURE.finditer(line)]
    assert found == []


@pytest.mark.parametrize(("prefix", "pattern"), [("io_uring_", r"ring\.c"), ("nbd_", r"member(_\w+)?\.c"), ("fuse_", r"(?!)")])
def test_library_called_in_one_place(prefix, pattern):
    users = [path.name for path in c_files() if re.search(rf"\b{prefix}\w+\s*\(", bare(path))]
    assert [name for name in users if not re.fullmatch(pattern, name)] == []


def test_functions_are_short():
    long = [
        f"{path.name}: {name} has {lines} lines"
        for folder in ("csrc", "fuse_mount")
        for path in (*c_files(folder), *c_files(folder, ".h"))
        for name, _, lines in functions(path)
        if lines > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_header_is_implemented():
    """Every function of raidlib.h is defined, once, and is not static."""
    defined = [name for path in c_files() for name, static, _ in functions(path) if not static]
    header = declared(ROOT / "csrc" / "raidlib.h")
    assert len(header) > 50
    assert sorted(header - set(defined)) == []
    assert sorted({name for name in defined if defined.count(name) > 1}) == []


@pytest.mark.parametrize(("folder", "prefix"), [("csrc", "rl_"), ("fuse_mount", "rl_")])
def test_symbols_have_the_prefix(folder, prefix):
    """What is not static begins with the prefix, functions and variables alike."""
    loose = []
    for path in c_files(folder):
        loose += [f"{path.name}: {name}" for name, static, _ in functions(path) if not static and not name.startswith(prefix)]
        for match in VARIABLE.finditer(bare(path)):
            words = {*match["head"].split()}
            local = bool(words & {*static_words(path.parent), "extern", "typedef"})
            forward = match["head"].split()[-1:] in (["struct"], ["enum"], ["union"])  # `struct x;`
            if not local and not forward and not match["name"].startswith(prefix):
                loose.append(f"{path.name}: {match['name']}")
    assert loose == []


# --- Files ------------------------------------------------------------------------------------------------------------


def test_files_are_short():
    long = {name: text.count("\n") for name, text in texts().items() if Path(name).suffix in (".c", ".h", ".py")}
    assert {name: lines for name, lines in long.items() if lines > (TEST_LINES_MAX if name.startswith("tests/") else FILE_LINES_MAX)} == {}


# What only one machine has: absolute paths, package registries, addresses. Documentation's own (example.com, 192.0.2.0/24) may stand.
MACHINE = re.compile(
    r"(?<![\w.])/(?:work|root|home|opt|Users)/\w"
    r"|\b(?:pypi|pythonhosted|debian|ubuntu|npmjs|jfrog|nexus)\.(?:org|net|com|io)\b"
    r"|https?://(?!(?:\w+\.)*example\.(?:com|org)\b|localhost\b|127\.0\.0\.1\b)"
    r"|\b(?!127\.0\.0\.|0\.0\.0\.0|192\.0\.2\.|255\.255\.)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b"
)
LEFT_OVER = re.compile(r"\b(?:TO[D]O|FIX[M]E)\b")


@pytest.mark.parametrize("pattern", [MACHINE, LEFT_OVER], ids=["machine", "left over"])
def test_nothing_that_does_not_belong(pattern):
    found = []
    for name, text in texts().items():
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{name}:{number}: {match[0]}" for match in pattern.finditer(line)]
    assert found == []


def test_every_c_file_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = {path.name for folder in ("csrc", "fuse_mount") for path in (ROOT / folder).iterdir() if path.suffix in (".c", ".h", ".py")}
    assert sorted(name for name in names if name not in text) == []


def test_every_module_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in rooms() if f"`{name}`" not in text] == []
