# Everything runs from .venv, which `make install` makes from the hashed lock.
# Needs python3.11 with venv, make and git.

PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check fmt up clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED) ## make .venv, pinned and hashed

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed: install python3.11 and python3.11-venv"; exit 1; }
	$(PYTHON) -m venv .venv \
		|| { echo "venv is needed: install python3.11-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## pay 10,000 rows, kill the shard half-way, verify the books
	$(BIN)/python -m examples.demo

test: install ## all tests
	$(BIN)/python -m pytest

check: install ## lint, format, types, and the rules of the tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

fmt: install ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: install ## run a ledger here until Ctrl-C
	$(BIN)/miliano up

clean: ## remove .venv, caches and the demo's data; a ledger's data stays
	rm -rf .venv .miliano-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
