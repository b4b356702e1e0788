# make setup     packages, a Python environment in .venv, the C side; only what is missing
# make demo      moves a real server between two network namespaces while a client talks to it
# make demo-ssh  moves a process by lm-migrate to a host of its own, where nothing is installed, and back
# make check     ruff, mypy --strict, clang-format; make format puts right what can be put right
# make test      style, types, unit tests, one program per kernel feature: ten minutes at most on two cores
# make test-real  redis, node, Python, SQLite and a shell, moved by every strategy
# make test-experiments  the benchmarks as programs, and all their figures
# make test-dist  a wheel, installed into an empty environment
# make bundle    all of it in one file that runs on a host where nothing is installed (dist/live-migration-*.tar.gz)
# make deb       a package of Debian 12 with all of it in dist/, of the bundle
# make manual    manual pages and completion for bash, made from the parsers, in dist/share; the bundle has them too
# make test-ssh  lm-migrate, to a host of its own with a real sshd; four minutes, and one for its root the first time
# make test-kernels  moves between two guests with other kernels, under qemu; ten minutes (docs/kernels.md)
# make observe SEEDS=1000  random processes that look at themselves, moved: what is not as it was; two seconds a seed
# make bench     downtime, fault latency and bulk rate, each beside a bare C floor
# make experiments  the standard set of strategies, links and workloads, drawn into docs/results (ten minutes)
# make dist      a wheel in dist/ that installs without a compiler (README.md, Install)
# make sanitize  the unit tests of what has C, over C built with ASan and UBSan
# make fuzz      the parsers of what a peer sends, under atheris and libFuzzer; FUZZ_SECONDS each (tests/fuzz)
# make clean     removes everything that was built, .venv too

# A venv keeps the interpreter that it was made with; PYTHON chooses another one.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := gcc libc6-dev make libzstd-dev libssl-dev openssl pkg-config python3-venv python3-dev iproute2 \
            redis-server nodejs sqlite3 spin systemd
KERNEL_PACKAGES := qemu-system-x86
SSH_PACKAGES := openssh-client openssh-server debootstrap
BUNDLE := dist/live-migration-$(shell uname -m).tar.gz
# Debian 12's; libFuzzer comes with it.
FUZZ_PACKAGES := clang-14 libclang-rt-14-dev
FUZZ_SECONDS ?= 60
# How many inputs at most; -1: as many as there is time for.
FUZZ_RUNS ?= -1
FUZZ_C := frames requests discards values maps
FUZZ_PYTHON := ticket opening control payloads description
FUZZED := $(addprefix tests/fuzz/c/,parsers.c discards.c) wire/page_stream.c wire/values.c kernel/memory/maps.c pager/discard_list.c
LAYERS := kernel wire process pager source_server restorer
NATIVE := build_native.py $(shell find $(LAYERS) experiments -name '*.[chS]')
# Every C file and header of the repository, wherever it stands.
C_FILES = $(shell find . \( -path ./.venv -o -path ./build \) -prune -o -name '*.[ch]' -print)
PROGRAMS := $(patsubst tests/programs/%.c,tests/programs/bin/%,$(wildcard tests/programs/*.c))
PROGRAM_FLAGS := -std=gnu11 -O1 -g -Wall -Wextra -Werror -pthread
# Left out, each start of a command would compile all of its modules anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest
# Test runs beside each other. Tests that measure times (marker `alone`) come after the others, one by one.
WORKERS ?= 2
BESIDE := -n $(WORKERS) --dist worksteal
SHORT := not real and not experiment and not dist and not ssh
# Tests of the folders that have C, but for those that start commands of their own: with a preloaded sanitizer each start takes
# seconds. And but for one that reads ten thousand mappings three hundred times.
SANITIZED := tests/wire tests/kernel tests/process tests/pager tests/source_server tests/restorer \
             --deselect tests/kernel/test_memory.py::test_mappings_that_change_while_they_are_read_do_not_overlap

.PHONY: setup demo fuzz test test-real test-experiments test-dist test-kernels check chaos model bench experiments dist sanitize clean packages programs format

setup: packages .venv/installed live_migration/_lm.abi3.so programs
	@echo "setup: ready"

packages:
	@tests/install_packages.sh $(PACKAGES)

.venv/installed: pyproject.toml setup.py | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "setup: $(PYTHON) is older than Python 3.11; give a newer one: make PYTHON=python3.11 setup" >&2; exit 1; }
	@echo "setup: Python environment in .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,experiments]'
	@touch $@

live_migration/_lm.abi3.so: $(NATIVE) | .venv/installed
	@echo "setup: the C side (live_migration/_lm.abi3.so, restorer/bin, source_server/bin, experiments/bin)"
	@$(BIN)/python build_native.py
	@touch $@

programs: $(PROGRAMS)

# From which seed on, and how many.
FIRST ?= 0
SEEDS ?= 1000
.PHONY: observer observe
observer: tests/observe/bin/observer

tests/observe/bin/observer: $(wildcard tests/observe/*.[ch]) | packages
	@mkdir -p $(@D)
	@gcc $(PROGRAM_FLAGS) $(filter %.c,$^) -o $@ -lm

observe: setup observer
	$(BIN)/python -m tests.observe.main $(SEEDS) $(FIRST)

tests/programs/bin/%: tests/programs/%.c $(wildcard tests/programs/*.h) | packages
	@mkdir -p $(@D)
	@gcc $(PROGRAM_FLAGS) $< -o $@ -lm

demo: setup
	@$(BIN)/python -m demo.demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	@echo "$(BIN)/clang-format --dry-run --Werror"; $(BIN)/clang-format --dry-run --Werror $(C_FILES)

test: check
	$(PYTEST) tests $(BESIDE) -m "not alone and $(SHORT)"
	$(PYTEST) tests -m "alone and $(SHORT)"

test-real: setup
	$(PYTEST) tests/real $(BESIDE)

test-ssh: setup bundle deb far-root
	$(PYTEST) tests/remote

test-dist: setup
	$(PYTEST) tests/dist

test-experiments: setup
	$(PYTEST) tests/experiments $(BESIDE) -m "not alone"
	$(PYTEST) tests/experiments -m "alone"

# Not part of `make test`, which pyproject.toml keeps from looking there.
test-kernels: setup
	@tests/install_packages.sh $(KERNEL_PACKAGES)
	$(PYTEST) tests/kernels/test_kernels.py

chaos: setup
	@$(BIN)/python -m tests.chaos.trial --trials $(or $(TRIALS),1000) --seed $(or $(SEED),1) $(PAIRS:%=--pairs)

model: setup
	LM_BREAKS=2 $(PYTEST) tests/model

bench: setup
	@$(BIN)/python -m live_migration.experiments.bench

experiments: setup
	@$(BIN)/python -m live_migration.experiments.standard

# By way of an sdist, so that nothing but what is in the tree comes in. Shared libraries go into the wheel.
dist: setup
	@rm -rf build/dist dist/*.whl && mkdir -p build/dist
	@$(BIN)/python -W ignore setup.py -q sdist --dist-dir build/dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist build/dist/*.tar.gz
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/dist/*.whl 2>build/dist/log || \
	    { cat build/dist/log >&2; exit 1; }
	@ls -l dist/*.whl

.PHONY: manual
manual: setup
	@$(BIN)/python -m live_migration.cli.manual dist/share && ls dist/share/man/man1/*.1 dist/share/bash-completion/*

.PHONY: bundle deb far-root demo-ssh test-ssh
demo-ssh: setup bundle far-root
	@$(BIN)/python -m demo.ssh

bundle: setup $(BUNDLE)

$(BUNDLE): build_bundle.py build_sbom.py pyproject.toml live_migration/_lm.abi3.so $(shell find cli remote $(LAYERS) -name '*.py') | .venv/installed
	@$(BIN)/python build_bundle.py

deb: bundle
	@$(BIN)/python build_deb.py $(BUNDLE)

far-root:
	@tests/install_packages.sh $(SSH_PACKAGES)
	@demo/make_root.sh build/far-root

# In a copy, so that the ordinary build stays: the extension is preloaded with the sanitizer's runtime.
sanitize: setup
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@git ls-files --cached --others --exclude-standard | tar -cf - -T - | tar -xf - -C build/sanitize
	@cd build/sanitize && LM_SANITIZE=address,undefined ../../$(BIN)/python build_native.py
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. PYTHONMALLOC=malloc \
	    ../../$(PYTEST) $(SANITIZED) -m "not program and not real" -p no:cacheprovider

# Whatever is found is in build/fuzz.
fuzz: setup
	@tests/install_packages.sh $(FUZZ_PACKAGES)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=2.3,<4'
	@mkdir -p build/fuzz
	@set -e; for target in $(FUZZ_C); do echo "fuzz: $$target"; mkdir -p build/fuzz/corpus-$$target; \
	    clang-14 -std=gnu11 -O1 -g -iquote . -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	        -DTARGET=fuzz_$$target tests/fuzz/c/libfuzzer.c $(FUZZED) -lzstd -o build/fuzz/$$target; \
	    ASAN_OPTIONS=quarantine_size_mb=4 build/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -runs=$(FUZZ_RUNS) -timeout=10 \
	        -print_final_stats=1 -verbosity=0 \
	        -artifact_prefix=build/fuzz/$$target- build/fuzz/corpus-$$target tests/fuzz/corpus/$$target; done
	@set -e; for target in $(FUZZ_PYTHON); do echo "fuzz: $$target"; mkdir -p build/fuzz/corpus-$$target; \
	    $(BIN)/python -m tests.fuzz.run $$target -max_total_time=$(FUZZ_SECONDS) -runs=$(FUZZ_RUNS) -timeout=10 \
	        -print_final_stats=1 -verbosity=0 -artifact_prefix=build/fuzz/$$target- build/fuzz/corpus-$$target; done

format: .venv/installed
	$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build live_migration/_lm.* *.egg-info restorer/bin source_server/bin experiments/bin dist tests/programs/bin tests/observe/bin .mypy_cache .ruff_cache .pytest_cache
	rm -rf $(foreach layer,cli remote $(LAYERS) tests demo experiments .,$(layer)/__pycache__) $(foreach layer,$(LAYERS),$(layer)/*.o)
