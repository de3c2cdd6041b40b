# A fresh machine with Python 3.11 or newer needs only this: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What CI and make install; pyproject.toml keeps the ranges that lvlm works with.
CONSTRAINTS := .ci/constraints.txt
PIP_ARGS ?=

.PHONY: setup demo test format lint types tests docs bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lvlm needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) --editable '.[dev]'
	@touch $@

demo: setup  ## train the zoo, compare, write runs/demo/report.html
	$(BIN)/lvlm study demo --out runs/demo

test: format lint types tests  ## everything that CI checks

format: setup
	$(BIN)/ruff format --check .

lint: setup  ## style, and which wing may import which
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: setup
	$(BIN)/mypy

tests: setup  ## a test uses one core, so two at a time
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: setup  ## the documentation site, site/index.html; a broken link or reference fails
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --quiet

bench: setup  ## the benchmarks, with the peers' packages
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis
