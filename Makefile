# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types pytest format sim proofs bench-quick vectors clean

demo: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.demo tests/data/apache_access.log

test: lint types pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/basedpyright

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -q

# 300 seeds of the deterministic simulation, and the planted bugs (a few minutes).
SEEDS ?= 0-299
sim: $(VENV)/.dev
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS)
	@for bug in no-fsync no-sequence-check cut-at-first-bad-checksum; do \
	  echo "planted: $$bug (every failed seed caught it)"; \
	  $(BIN)/python -m tests.simulation.sweep --seeds 0-49 --planted $$bug | grep ' seeds, '; \
	done

# Real processes: kill -9 under load 20 times, 5 power cuts (root: mounts an ext4 loop file).
proofs: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.kill --kills 20
	$(BIN)/python -m tests.proofs.kill --power-cuts 5
	$(BIN)/python -m tests.proofs.full --seconds 60
	$(BIN)/python -m tests.proofs.erase --kills 5
	$(BIN)/python -m tests.proofs.erase --loop --power-cuts 3

# One minute of speed figures beside the limits of this machine.
bench-quick: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.quick

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.server

clean:
	rm -rf $(VENV) build dist *.egg-info .tailrace .mypy_cache .ruff_cache .pytest_cache .hypothesis
