# make demo    a first look: a server, a bucket, a mount, real files, and the proof that they arrived
# make test    all tests, on real mounts and real S3 servers
# make test-long  the same with every server for every test, the large folders, more random programs
# make test-fast  units, the contract on the store in memory, 20 seeds of the simulation: a first answer in minutes
# make test-crash  300 kills on real mounts, 20,000 seeds of the simulation: an hour or two
# make test-snapshots  10,000 keys of 5 versions, at 20 times through the mount: a quarter of an hour
# make soak    an hour of everything at once on one mount, disks full and connections cut: MINUTES=5, SEED=1, ARGS="--server localstack"
# make check   format, lint, types, import contract, and tests with the lowest versions that are allowed
# make bench   side by side with other tools
# make man     man pages of all commands, in build/man
# make setup   what the above need: Debian packages (with root or sudo), .venv, .venv-demo
# make clean   remove what make made here
# Whatever is missing gets installed on the first run; later runs find it done.

PYTHON ?= python3
MINUTES ?= 60
SETUP := contrib/setup
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check
EMBEDDED := --server localstack --runs 1 --size-mib 256 --scale 0.1 --step-timeout 60 --results build/bench/embedded \
    --only read,read-4,random-read,small-read,find,ls,find-wide,ls-flat,first-byte

# Twice as many as cores: a test of a mount waits as often as it computes.
WORKERS := -n $(shell n=$$(nproc); echo $$((n > 8 ? 16 : 2 * n))) --dist worksteal

OVER_TLS := write,read,small-write,small-read,first-byte

.PHONY: demo test test-fast test-long test-crash soak test-snapshots check check-format check-lint check-types check-imports check-lowest bench man setup clean format lock \
    system-run system-test system-bench
.DELETE_ON_ERROR:

demo: .venv/.run .venv-demo/.done
	@$(BIN)/python -m s3mount demo

test: .venv/.dev .venv-demo/.done | system-test
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-long: .venv/.dev .venv-demo/.done | system-test
	S3MOUNT_TEST_LONG=1 S3MOUNT_SIM_SEEDS=200 $(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: .venv/.dev | system-run
	S3MOUNT_SIM_SEEDS=20 $(BIN)/python -m pytest $(WORKERS) -q \
	    -k "not localstack and not ceph and not given" tests/unit tests/property tests/contract tests/sim/test_simulation.py $(ARGS)

test-crash: .venv/.dev .venv-demo/.done | system-test
	S3MOUNT_TEST_LONG=1 S3MOUNT_CRASH_KILLS=300 S3MOUNT_SIM_SEEDS=20000 $(BIN)/python -m pytest -rA tests/crash tests/sim $(ARGS)

test-snapshots: .venv/.dev .venv-demo/.done | system-test
	S3MOUNT_TEST_ORACLE_KEYS=10000 S3MOUNT_TEST_ORACLE_TIMES=20 $(BIN)/python -m pytest -rA tests/fuse/test_oracle.py $(ARGS)

soak: .venv/.dev .venv-demo/.done | system-test
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: check-format check-lint check-types check-imports check-lowest

check-format: .venv/.dev
	$(BIN)/ruff format --check .

check-lint: .venv/.dev
	$(BIN)/ruff check .

check-types: .venv/.dev
	$(BIN)/mypy

check-imports: .venv/.dev
	$(BIN)/lint-imports --no-logo

# What talks to the dependencies, and a mount of its own: a bound in pyproject.toml that is too low fails here.
LOWEST_TESTS := $(addprefix tests/unit/,api bulk cli daemon engine flow fuse s3 transfer) \
    --deselect tests/unit/engine/test_chaos.py \
    tests/fuse/test_command_line.py::test_mount_use_wait_unmount

check-lowest: .venv-lowest/.done .venv-demo/.done
	S3MOUNT_TEST_SERVERS=localstack .venv-lowest/bin/python -m pytest -q $(WORKERS) $(LOWEST_TESTS)

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench .venv-demo/.done | system-bench
	$(BIN)/python -m bench $(ARGS)
	$(if $(ARGS),,cp build/bench/results.md docs/BENCHMARKS.md)
	$(if $(ARGS),,$(BIN)/python -m bench $(EMBEDDED))
	$(if $(ARGS),,cp build/bench/embedded/results.md docs/BENCHMARKS-EMBEDDED.md)
	$(if $(ARGS),,$(BIN)/python -m bench --tls --only $(OVER_TLS) --results build/bench/tls)
	$(if $(ARGS),,cp build/bench/tls/results.md docs/BENCHMARKS-TLS.md)
	$(if $(ARGS),,$(BIN)/python -m bench snapshots)
	$(if $(ARGS),,$(BIN)/python -m bench transfers)
	$(if $(ARGS),,cp build/bench-transfers/results.md docs/BENCHMARKS-TRANSFERS.md)

man: .venv/.run
	$(BIN)/python contrib/man build/man

setup: .venv/.dev .venv-demo/.done | system-test

lock:
	$(SETUP)/lock

clean:
	rm -rf .venv .venv-demo .venv-lowest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system-run system-test system-bench: system-%:
	@$(SETUP)/system-packages $*

# A virtual environment of its own, always: Debian's Python refuses pip outside of one (PEP 668).
.venv/.made: | system-run
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "s3mount setup: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.run: .venv/.made constraints.txt pyproject.toml | system-run
	$(BIN)/python $(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/.made constraints.txt pyproject.toml | system-run
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/.run

.venv/.bench: .venv/.made constraints.txt pyproject.toml | system-run
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[bench]'
	@touch $@ .venv/.run

# The embedded S3 server pins other versions of boto3 than s3mount wants.
.venv-demo/.done: constraints-demo.txt | system-run
	$(PYTHON) -m venv --clear .venv-demo
	.venv-demo/bin/python $(PIP) --use-pep517 --requirement constraints-demo.txt
	@touch $@

# The lowest versions of what s3mount needs; pyarrow, which is an extra, is left out.
.venv-lowest/.done: constraints.txt pyproject.toml contrib/setup/lowest | system-run
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) contrib/setup/lowest >.venv-lowest/constraints.txt
	.venv-lowest/bin/python $(PIP) --constraint .venv-lowest/constraints.txt --editable . \
	    $(shell $(PYTHON) contrib/setup/lowest --tools)
	@touch $@
