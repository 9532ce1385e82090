# make demo   the main job, end to end, on a real object store that runs here
# make test   lint, types, and every test but the long sweeps
# make bench  CPU, time, memory and bytes beside other systems; writes docs/benchmarks.md
# Each needs nothing but Python 3.10 or later, and installs what it needs into .venv and .servers.

# the development pin of torch has a CPU build for 3.11
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint bench clean

demo: $(READY)
	$(BIN)/python docs/demo/run.py

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

# beside its peers, about 25 minutes; nothing else should run meanwhile. SCENARIOS="plain tls" runs some
bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py $(SCENARIOS)

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
	rm -rf .venv .servers build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
