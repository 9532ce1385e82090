# make               this list
# make check         lint, types, and the tests that need no server: about a minute
# make demo          train, save and resume, end to end, on a real object store that runs here
# make test          lint, types, and every test but the long sweeps
# make test-all      lint, types, and every test
# make test-frameworks    TorchTitan, Lightning, Accelerate and others; installs them, 700 MB, beside .venv
# make test-next     what could tell releases of PyTorch apart, on a newer one
# make test-matrix   the same on every release of PyTorch and Python in tests/matrix
# make reliability   every fault at every request, on each cloud; writes docs/reliability.md
# make soak          saves, loads and kills, over and over; SOAK="..." hands it options
# make bench         CPU, time, memory and bytes beside other systems; writes docs/benchmarks.md
# make docs          the site, in site/
# make lint          ruff, mypy and the import contracts
# Each needs nothing but Python 3.10 or later, and installs what it needs into .venv and .servers.

# the development pin of torch has a CPU build for 3.11
PYTHON ?= $(shell command -v python3.11 || command -v python3)
NEXT ?= 2.14.1
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help check demo test test-all test-frameworks test-next test-matrix reliability soak bench docs lint clean

# processes that run tests, each with servers of its own, 3 GB or so; JOBS=4 where there is room
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

check: lint
	$(PYTEST) -m "not slow" tests/unit tests/property tests/contract -k "not seaweedfs and not localstack and not gcs and not azure"

demo: $(READY)
	$(BIN)/python docs/demo/run.py

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

# an environment of its own: they need older releases of what others need
FRAMEWORKS := .venv-frameworks
test-frameworks: $(FRAMEWORKS)/.ready
	$(FRAMEWORKS)/bin/python -m pytest -n $(JOBS) --dist loadfile tests/frameworks

$(FRAMEWORKS)/.ready: pyproject.toml constraints.txt requirements-dev.txt requirements-frameworks.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt -e '.[all]'
	$(FRAMEWORKS)/bin/python -m pip install --quiet -r requirements-frameworks.txt
	touch $@

# keeps its environment, so that the next run takes minutes less
test-next:
	$(PYTHON) tests/matrix/run.py --keep $(NEXT)

test-matrix:
	$(PYTHON) tests/matrix/run.py

reliability: $(READY)
	DCP_CLOUD_RELIABILITY=docs/reliability.json $(BIN)/python -m pytest tests/faults/test_sweep.py
	PYTHONPATH=tests:localstack $(BIN)/python -m sweep.tally docs/reliability.json docs/reliability.md

soak: $(READY)
	PYTHONPATH=tests:localstack $(BIN)/python -m soak --summary docs/reliability-soak.json $(SOAK)

# beside its peers, about 25 minutes; nothing else should run meanwhile. SCENARIOS="plain tls" runs some
bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py $(SCENARIOS)

# mkdocs-material warns of a release of MkDocs that does not concern it
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt -e '.[all]'
	touch $(READY)

clean:
	rm -rf .venv $(FRAMEWORKS) .servers build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
