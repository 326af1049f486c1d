# What one does with this project. `make help` lists it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MINUTES ?= 5
INSTALLED := .venv/.installed

.PHONY: help install up demo load test chaos check fmt clean

help:  ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## Make .venv with every dependency, pinned by hash.

# Only a change of what is to be installed repeats it.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: install  ## Run a ledger here; Ctrl-C stops it, the data stays in .miliano.
	$(BIN)/miliano up

demo: install  ## Pay 10,000 salaries, crash half-way, prove the books.
	$(BIN)/python examples/demo.py

load: install  ## Measure single transfers for ten seconds.
	$(BIN)/python -m loadtests single --seconds 10

test: install  ## Run every test.
	$(BIN)/python -m pytest

chaos: install  ## Kill and split shards under load for MINUTES, and prove every promise.
	$(BIN)/python -m tests.chaos --minutes $(MINUTES)

check: install  ## Lint, formatting, types, and the rules of the tree.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

fmt: install  ## Format the source and mend what the linter can.
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:  ## Remove caches and the demo's data; .venv and .miliano stay.
	rm -rf .miliano-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
