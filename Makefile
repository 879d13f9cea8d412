# Every target does its own set-up: the Debian packages (installed by root, else named: scripts/setup-packages), the virtual environment
# .venv, the compiled modules in raidlib/. Nothing is done twice that nothing has changed for.
#
#   make build    .venv/bin/raidlib works, on this source tree (an editable install)
#   make test     lint, then all tests
#   make test-kernel    what raidlib makes, Debian's kernel finds right, and the other way round, in QEMU: a sample (test-kernel-full: all)
#   make demo     the main job from nothing to done, on real files
#   make lint     all checks that run no test          make format   what of them can be mended by itself
#   make hang     a thousand runs with a member that hangs
#   make stress   all at once on arrays of every level, under ThreadSanitizer, 10 minutes (STRESS_SECONDS=, SANITIZE=address,undefined, STRESS_ARGS="7 raid5-ls": seed, shape)
#   make histories  10,000 histories of concurrent requests, judged (HISTORIES=, SANITIZE=, HISTORY_ARGS=)
#   make crash    power cuts at every moment of thousands of workloads, each legal state judged: 500,000 of them (STATES=, PROCESSES=, SEED=)
#   make sanitize the tests of the engine under AddressSanitizer and UndefinedBehaviorSanitizer
#   make kill     two hundred times each, the owner of a mount is killed under load (RUNS=)
#   make full     two hundred runs on a full file system (as root)
#   make drill    every fault on every member, all levels, 20 seeds, judged: minutes (SEEDS=, DRILL_ARGS="--faults gone,latent")
#   make mutants  the engine broken on purpose, one place at a time: do the tests notice? Hours (MUTANTS="--only named")
#   make wheel    a wheel for every Python from 3.11 on, in dist/
#   make bench    the benchmarks                       make clean    away with all that was made
#
# Another interpreter: make PYTHON=python3.12. Flags: make CFLAGS="-g -fsanitize=undefined". Tests: make test PYTEST_ARGS="-n0 -k geometry".

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
PYTEST_ARGS ?= -n2
C_FILES := $(wildcard csrc/*.[ch] fuse_mount/*.[ch] tests/c/*.[ch])
PY_FILES := setup.py csrc fuse_mount raidlib tests $(wildcard bench scripts/*.py)
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.[ch] csrc/*.py fuse_mount/*.[ch] fuse_mount/*.py)

.PHONY: build test test-kernel test-kernel-full hang kill full crash drill mutants stress histories sanitize demo lint format wheel bench clean packages-% made built tools
build: packages-build
	@$(MAKE) built

# Warnings are errors where it is tested (and in .ci/run).
test: export CFLAGS := $(CFLAGS) -Werror
test: packages-test
	@$(MAKE) built
	@$(MAKE) lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

full: packages-test
	@$(MAKE) built tools
	@RAIDLIB_SPACE_RUNS=$(or $(RUNS),200) $(BIN)/python -m pytest $(PYTEST_ARGS) tests/test_space.py -k random_moment

# One table for each shape; the worst exit code of them.
SHAPES ?= 1 "1 -n 3" 4 5 6 10 rs
drill: packages-build
	@$(MAKE) built
	@worst=0; for shape in $(SHAPES); do $(BIN)/raidlib drill --level $$shape --seeds $(or $(SEEDS),20) $(DRILL_ARGS) || worst=$$?; echo; done; exit $$worst

hang: packages-test
	@$(MAKE) built tools
	@RAIDLIB_HANG_RUNS=$(or $(RUNS),1000) $(BIN)/python -m pytest $(PYTEST_ARGS) tests/test_deadline.py -k test_runs

kill: packages-test
	@$(MAKE) built tools
	@RAIDLIB_KILLS=$(or $(RUNS),200) $(BIN)/python -m pytest $(PYTEST_ARGS) -rP tests/test_killed.py

crash: packages-build
	@$(MAKE) built
	@$(BIN)/python scripts/crash.py --states $(or $(STATES),500000) --processes $(or $(PROCESSES),$(shell nproc)) --seed $(or $(SEED),0)

mutants: packages-mutants
	@$(MAKE) built tools
	@$(BIN)/python scripts/mutants.py $(MUTANTS)

test-kernel test-kernel-full: packages-kernel
	@$(MAKE) built tools
	@$(BIN)/python -m pytest -q tests/kernel $(if $(filter %-full,$@),--full)

# The C programs of tests/c, with the engine in them. A report ends them.
STRESS_SECONDS ?= 600
HISTORIES ?= 10000
stress: export TSAN_OPTIONS := halt_on_error=1 second_deadlock_stack=1
stress: export UBSAN_OPTIONS := halt_on_error=1 print_stacktrace=1
stress: SANITIZE ?= thread
stress: packages-build
	@$(MAKE) build/c/stress-$(subst $(comma),-,$(SANITIZE)) SANITIZE=$(SANITIZE)
	@build/c/stress-$(subst $(comma),-,$(SANITIZE)) $(STRESS_SECONDS) $(STRESS_ARGS)

histories: packages-build
	@$(MAKE) build/c/history-$(subst $(comma),-,$(or $(SANITIZE),none))
	@build/c/history-$(subst $(comma),-,$(or $(SANITIZE),none)) $(HISTORIES) $(HISTORY_ARGS)

comma := ,
C_TEST_SOURCES := $(wildcard csrc/*.[ch] tests/c/*.[ch])
build/c/%: $(C_TEST_SOURCES)
	@mkdir -p build/c
	$(CC) -std=gnu11 -O1 -g -Wall -Wextra -Wshadow -Werror -D_GNU_SOURCE -pthread $(SANITIZE:%=-fsanitize=%) -Icsrc -Itests/c \
	    tests/c/$(firstword $(subst -, ,$*)).c tests/c/rig.c $(wildcard csrc/*.c) -o $@

# The suite with sanitizers in the engine, which is built anew with them in a copy of the tree; their libraries are loaded before Python (which leaks by design). Left out:
# test_house looks at the tree, test_wheel builds a wheel, test_stress has sanitizers of its own, and test_limits measures memory, of which the sanitizers take their own.
SANITIZED ?= $(filter-out $(patsubst %,tests/test_%.py,house wheel stress limits),$(wildcard tests/test_*.py))
sanitize: packages-test
	@$(MAKE) built tools
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@[ ! -e ../shared ] || ln -sfn ../../shared build/shared # golden arrays lie beside the tree
	@cp -r setup.py pyproject.toml README.md csrc fuse_mount raidlib tests scripts docs build/sanitize/ && rm -f build/sanitize/raidlib/*.so
	cd build/sanitize && CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" ../../$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 RAIDLIB_GOLDEN=$(or $(RAIDLIB_GOLDEN),$(wildcard $(CURDIR)/tests/golden $(CURDIR)/../shared/golden)) \
	    PYTHONPATH=. ../../$(BIN)/python -m pytest -p no:cacheprovider -n1 -q $(SANITIZED)

demo: packages-demo
	@$(MAKE) built
	@$(BIN)/raidlib demo

bench: packages-bench
	@$(MAKE) built tools
	@$(BIN)/python $(or $(wildcard bench/run.py),bench/parity.py)

wheel: packages-build
	@$(MAKE) made
	@rm -rf build/wheel && mkdir -p build/wheel
	@cp -r setup.py pyproject.toml README.md LICENSE csrc fuse_mount raidlib build/wheel/ && rm -f build/wheel/raidlib/*.so
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir dist build/wheel
	@rm -rf build/wheel && ls dist/*.whl

lint: tools
	@$(BIN)/ruff check -q $(PY_FILES)
	@$(BIN)/ruff format -q --check $(PY_FILES)
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@$(BIN)/lint-imports --no-logo

format: tools
	@$(BIN)/ruff check -q --fix-only $(PY_FILES)
	@$(BIN)/ruff format -q $(PY_FILES)
	@$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf .venv build dist *.egg-info raidlib/*.so .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find csrc fuse_mount raidlib tests -name __pycache__ -prune -exec rm -rf {} +

packages-%:
	@scripts/setup-packages $*

# The steps, each with its stamp. A second make runs them, which sees what packages-% has just installed.
made: .venv/.made
	@:
built: .venv/.built
	@:
tools: .venv/.tools
	@:

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
.venv/.made:
	$$(scripts/setup-packages python) -m venv .venv
	@$(PIP) install "setuptools>=77" "cffi>=1.17"
	@touch $@

# Once libfuse3's headers come (or go), it is built anew.
FUSE := .venv/.fuse-$(shell pkg-config --exists fuse3 2>/dev/null && echo yes || echo no)
$(FUSE): .venv/.made
	@rm -f .venv/.fuse-* && touch $@

# pip compiles everything anew, and is silent but for errors.
.venv/.built: $(SOURCES) $(FUSE)
	$(PIP) install --no-build-isolation --editable .
	@touch $@

# What `raidlib[test,dev]` names, without building raidlib: lint works on a tree that does not compile.
NAMED := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*p["dependencies"], *(line for extra in ("test", "dev") for line in p["optional-dependencies"][extra]))
.venv/.tools: pyproject.toml | .venv/.made
	$(PIP) install $$($(BIN)/python -c '$(NAMED)')
	@touch $@
