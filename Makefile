# `make run` starts a broker, `make test` proves it; both install what they need first.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
FAST_TESTS := $(wildcard tests/unit tests/property tests/node)
# Options for `rookery serve`, for example: make run ARGS="--listen tcp://127.0.0.1:1884 --log-level debug"
ARGS ?=
# Without bytecode every start of a node compiles the broker again: half a second, some hundred times in the tests.
unexport PYTHONDONTWRITEBYTECODE
# For `make fuzz` and `make fault`.
SECONDS_ = $(or $(SECONDS),300)
SEED ?= 1

.PHONY: help install run test check lint fmt fuzz fuzz-core fuzz-api fault generate docs packages bench bench-record bench-growth bench-memory bench-operators screenshots image-test clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-15s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv and install the broker, the embedded store and the development tools.

# Only pyproject.toml decides what is installed: the install is editable, so code changes need none.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python3-venv is needed" >&2; exit 1; }
	ROOKERY_COMPILE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $@

run: install ## Start one node with the embedded store.
	@exec $(BIN)/rookery serve $(ARGS)

packages: install ## Install what the tests need from outside of Python.
	@.ci/packages

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

check: lint ## Format, lint, types, imports, generated files and the fast tests.
	$(BIN)/python -m pytest -q $(FAST_TESTS)

# Three processes share the tests, file by file, as much of the time is waiting for leases, restarts and faults. Folders
# with long files come first, those with many short ones last: all end at about the same time.
FIRST_TESTS := $(wildcard $(addprefix tests/,deploy packaging fault upgrade multinode docs chart browser fuzz abuse \
  integration contract))
OTHER_TESTS := $(filter-out $(FIRST_TESTS) $(FAST_TESTS) tests/kit,$(patsubst %/,%,$(filter-out %__pycache__/,$(wildcard tests/*/))))
AT_ONCE := 3

# The linters run meanwhile, and what they say follows: one run tells all that is wrong.
test: packages ## Everything that `check` does and all other tests.
	@status=0; log=$$(mktemp); \
	$(MAKE) --no-print-directory lint >$$log 2>&1 & linters=$$!; \
	$(BIN)/python -m pytest -q --numprocesses $(AT_ONCE) --dist loadfile --no-loadscope-reorder \
	  $(FIRST_TESTS) $(OTHER_TESTS) $(FAST_TESTS) || status=1; \
	wait $$linters || { status=1; echo "make lint failed:"; }; cat $$log; rm -f $$log; exit $$status

fuzz: install ## A long campaign of seeded nonsense against a node: make fuzz SECONDS=600 SEED=1
	$(BIN)/python -m tests.abuse.fuzz --seconds $(SECONDS_) --seed $(SEED)

fuzz-core: install ## Coverage-guided fuzzing of codec, topics, connection machine and session: make fuzz-core INPUTS=10000000
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --inputs $(or $(INPUTS),10000000) --seed $(SEED)

fuzz-api: install ## A long run of schemathesis against the API of a node: make fuzz-api SECONDS=600 SEED=1
	$(BIN)/python -m tests.fuzz.api --seconds $(SECONDS_) --seed $(SEED)

fault: install ## A long campaign of faults under load, checked by recorded histories: make fault SECONDS=600 SEED=1
	$(BIN)/python -m tests.fault.campaign --seconds $(SECONDS_) --seed $(SEED)

fmt: install ## Format the code and sort the imports.
	$(BIN)/ruff check --select I --fix --quiet .
	$(BIN)/ruff format .

docs: install ## Build the site of the docs into site/.
	$(BIN)/mkdocs build --strict

generate: install ## Write the generated pages anew.
	$(BIN)/python docs/generate.py

dist: install ## Build the source package, the pure wheel and, where that is possible, the compiled one, into dist.
	rm -rf dist
	ROOKERY_COMPILE=0 $(BIN)/python -m build --quiet
	$(BIN)/python -m build --quiet --wheel
	$(BIN)/python -m twine check --strict dist/*

test-compiled: packages ## All tests of the core, nodes and conformance against a wheel with a compiled core.
	$(BIN)/python -m tests.packaging.compiled

# Medians of short runs; for figures to rely on: python -m loadtest compare, on a machine that does nothing else.
bench: install ## Measure the broker beside mosquitto, against the recorded figures (4 minutes): make bench ARGS="p2p1 --strict"
	@$(BIN)/python -m loadtest bench $(ARGS)

bench-record: install ## Measure, and write the record that `make bench` compares with: loadtest/figures.json (4 minutes).
	@$(BIN)/python -m loadtest bench --record $(ARGS)

bench-growth: install ## Measure how cost grows with connections, receivers, payloads, filters and nodes (10 minutes).
	@$(BIN)/python -m loadtest growth $(ARGS)

bench-memory: install ## Measure what connections, subscriptions, routes and messages take in memory (2 minutes).
	@$(BIN)/python -m loadtest memory $(ARGS)

bench-operators: install ## Measure what load and operators (scrapes, dashboard, API) cost each other (1 minute).
	@$(BIN)/python -m loadtest.operators $(ARGS)

screenshots: packages ## Make the pictures of the dashboard in docs/images anew.
	$(BIN)/python -m tests.browser.screenshots

image-test: packages ## Build the container image as it is shipped, compiled, and try it (the tests build it interpreted).
	IMAGE_COMPILED=1 $(BIN)/python -m pytest -q --timeout 1800 tests/deploy/test_image.py

clean: ## Remove what was built (not the broker's data).
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
