# Two commands do everything on a machine with git, make and Python >= 3.11:
#   make demo    the main job, with live progress
#   make test    the tests
# `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Every process of the tests and the demo would compile the packages again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo demo-no-api fusion-demo up down debian-packages browser topology check test test-long explore chaos chaos-seed outage prefect-outage lint types contracts format bench bench-alerts bench-build bench-cost bench-ingest bench-prefect bench-correlation bench-screening bench-event-time bench-sight bench-faults isolation screenshot screenshot-page storm lock schemas clean

VENV := .venv
BIN := $(VENV)/bin
# The newest Python that is new enough; `make PYTHON=… demo` chooses another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "make: no Python >= 3.11 with venv found; make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.run-ready: requirements.txt | $(VENV)/bin/python
	@echo "installing what runs (a minute or two, once) …"
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev-ready: requirements-dev.txt $(VENV)/.run-ready
	@echo "installing what tests (a minute, once) …"
	$(PIP) -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.run-ready  ## Prefect server, simulated sensors and sda-ingest for 30 s
	$(BIN)/python -m flows demo $(ARGS)

demo-no-api: $(VENV)/.run-ready  ## the same without a Prefect server
	$(BIN)/python -m flows demo --no-api $(ARGS)

fusion-demo: $(VENV)/.run-ready  ## Prefect server, simulated sensors, sda-fusion and a subscriber for 30 s: a staged conjunction becomes an alert
	$(BIN)/python -m flows demo --pipeline sda-fusion $(ARGS)

up: $(VENV)/.run-ready  ## a Prefect server and a worker that keep running, with every pipeline deployed; prints the URLs
	$(BIN)/python -m flows up $(ARGS)

down: $(VENV)/.run-ready  ## stop what `make up` started; flow runs drain first
	$(BIN)/python -m flows down $(ARGS)

debian-packages:  ## install Chromium and Prometheus (Debian and derivatives), for the tests of the pages and the alert rules
	scripts/debian-packages.sh

browser: debian-packages  # the earlier name

topology: $(VENV)/.run-ready  ## validate the settings and the topology, print the graph
	$(BIN)/python -m flows check $(ARGS)

check: lint types contracts test  ## what every change must pass

# Many tests wait for processes and sockets: two test processes a core keep every core busy.
PYTEST = $(BIN)/python -m pytest -n $(or $(WORKERS),$(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN)))))

test: $(VENV)/.dev-ready  ## the tests that every change must pass (eight minutes on two cores)
	$(PYTEST) $(ARGS)

test-long: $(VENV)/.dev-ready  ## the same properties with more seeds, schedules and examples (minutes)
	TESTS_LONG=1 $(PYTEST) -m "long or hypothesis" $(ARGS)

explore: $(VENV)/.dev-ready  ## the property tests with new examples: `make test` tries the same ones each time
	TESTS_LONG=1 NEW_EXAMPLES=1 $(PYTEST) -m hypothesis $(ARGS)

chaos: $(VENV)/.dev-ready  ## many more random schedules than the tests run: SEEDS=100000, from SEED=0
	$(BIN)/python -m tests.chaos.schedule $(or $(SEED),0) --count $(or $(SEEDS),100000)

chaos-seed: $(VENV)/.dev-ready  ## one random schedule, with its graph, faults and decisions: SEED=…
	$(BIN)/python -m tests.chaos.schedule $(SEED)

lint: $(VENV)/.dev-ready  ## ruff, and the words of the glossary
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	[ ! -f scripts/check_language.py ] || $(BIN)/python scripts/check_language.py

types: $(VENV)/.dev-ready  ## mypy, strict
	$(BIN)/python -m mypy

contracts: $(VENV)/.dev-ready  ## import-linter: which module may import which
	$(BIN)/lint-imports

format: $(VENV)/.dev-ready  ## ruff, rewriting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

outage: $(VENV)/.run-ready  ## 30 s without the optical archive, in four ways (four minutes)
	$(BIN)/python -m bench.outage $(ARGS)

prefect-outage: $(VENV)/.run-ready  ## kill -9 of the Prefect server, for a minute, and of the stream's process (six minutes)
	$(BIN)/python -m bench.prefect_outage $(ARGS)

bench: bench-build bench-cost bench-ingest  ## every benchmark; they print figures and assert nothing

bench-build: $(VENV)/.run-ready  ## build() of a 10-operator graph, cold and warm; a 1,000-operator chain
	$(BIN)/python -m bench.build

bench-cost: $(VENV)/.run-ready  ## orchestrated against a plain loop; instruments; long chains; memory (four minutes)
	$(BIN)/python -m bench.cost $(ARGS)

bench-sight: $(VENV)/.run-ready  ## what the figures of the data plane and a watched control plane cost, against the same without them (fifteen minutes)
	$(BIN)/python -m bench.sight_cost $(ARGS)

bench-ingest: $(VENV)/.run-ready  ## 10,000 obs/s from sockets to the fsynced log for 60 s, then SIGTERM under load
	$(BIN)/python -m bench.ingest $(ARGS)

screenshot: $(VENV)/.dev-ready debian-packages  ## screenshots of the Prefect UI: docs/flow-run*.png (a minute)
	$(BIN)/python -m bench.flow_run_page $(ARGS)

screenshot-page: $(VENV)/.dev-ready debian-packages  ## screenshots of the live page of a run with a slow operator: docs/live-page*.png (a minute); ARGS=--cost measures its scripts
	$(BIN)/python -m bench.live_page $(ARGS)

bench-prefect: $(VENV)/.run-ready  ## what reporting to a Prefect server costs: start, restarts, throughput, hooks, a killed server (ten minutes)
	$(BIN)/python -m bench.prefect_cost $(ARGS)

bench-correlation: $(VENV)/.run-ready  ## share of right associations by sensor and orbit, for simulated truth and the full catalogue; observations/s; the pool's overhead (minutes)
	$(BIN)/python -m bench.correlation $(ARGS)

bench-screening: $(VENV)/.dev-ready  ## brute force on 15 random subsets; cost, growth, profile, break-even and peers on whole catalogues (half an hour)
	$(BIN)/python -m bench.screening all --subsets 15 $(ARGS)

bench-event-time: $(VENV)/.run-ready  ## 50,000 obs/s through marks and windows in memory: emission after the mark, cost of marks, profile (three minutes)
	$(BIN)/python -m bench.event_time $(ARGS)

bench-faults: $(VENV)/.dev-ready debian-packages  ## twelve faults in real pipelines: when page, metrics, alerts and log show each one (eight minutes)
	$(BIN)/python -m bench.faults $(ARGS)

bench-bottleneck: $(VENV)/.dev-ready  ## the share of random graphs in which the right bottleneck is marked, in virtual time; then on a real clock (ten minutes)
	$(BIN)/python -m bench.bottleneck $(ARGS)
	$(BIN)/python -m bench.bottleneck_real_time

bench-alerts: $(VENV)/.dev-ready  ## the real catalogue with staged conjunctions: from the observation to the acknowledged alert (minutes)
	$(BIN)/python -m bench.alerts latency $(ARGS)

isolation: $(VENV)/.run-ready  ## p99 of the audit with the propagator at 100x its load, in the pool and inline (three minutes)
	$(BIN)/python -m bench.isolation $(ARGS)

storm: $(VENV)/.dev-ready  ## an outage, 100 pollers and six ways to retry, in virtual time: table and docs/storm.svg (minutes)
	$(BIN)/python -m bench.storm --picture docs/storm.svg $(ARGS)

lock: | $(VENV)/bin/python  ## pin the requirements again, with hashes and without the registry's name
	$(BIN)/python -m pip --disable-pip-version-check install --quiet uv
	for extra in "" "--extra dev -c requirements.txt"; do \
		out=requirements$${extra:+-dev}.txt; \
		$(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
			--universal --python-version 3.11 $$extra pyproject.toml -o $$out; \
	done

schemas: $(VENV)/.run-ready  ## write docs/schemas/graph-1.json again: the JSON Schema of /graph
	$(BIN)/python -c 'import sys; from orchestrator_adapter.control_plane.document import schema; sys.stdout.buffer.write(schema())' > docs/schemas/graph-1.json

clean:  ## remove everything that these targets created, the environment included
	rm -rf $(VENV) run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
