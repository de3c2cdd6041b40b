# A fresh machine with Python 3.11 or newer needs only this: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What CI and make install; pyproject.toml keeps the ranges that lvlm works with.
CONSTRAINTS := .ci/constraints.txt
PIP_ARGS ?=

.PHONY: setup demo test format lint types tests test-extras extras wheel docs bench clean

setup: $(VENV)/.ready

# Made again when what is to be installed changes.
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

# CI sets COVERAGE=1: lines and branches that tests reach, of both runs of pytest together. No threshold.
COVERAGE ?=
COV := $(if $(COVERAGE),--cov lvlm --cov plugins --cov-report=)

tests: setup  ## a test uses one core, so two at a time
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(COV)

test-extras: extras  ## what skips without an extra, the docs, the wheel in an environment of its own
	LVLM_NO_SKIPS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(if $(COVERAGE),$(COV) --cov-append) \
	    tests/test_export.py tests/test_harness.py tests/test_harness_options.py tests/test_harness_tokens.py \
	    tests/test_play.py tests/test_precision.py \
	    'tests/test_docs.py::test_what_is_documented_works[docs/export.md]'
	$(MAKE) docs
	$(MAKE) wheel

# Every extra that a test or the docs need; the constraints keep torch and all else where `make setup` put them. The page's
# tests drive Debian's Chromium: no browser is downloaded, since Playwright's own would come from another server.
extras: setup
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) \
	    --editable '.[dev,browser,lm-eval,onnx,int8,docs]'
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install --yes -qq --no-install-recommends chromium >/dev/null; } || \
	    { echo "no Chromium, and no root to install Debian's: put one on the PATH"; exit 2; }

wheel: setup  ## build the wheel, install it into an environment of its own, use it there
	bash .ci/wheel "$(BIN)/python" "$(CONSTRAINTS)" $(PIP_ARGS)

docs: setup  ## the documentation site, site/index.html; a broken link or reference fails
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --quiet

bench: setup  ## the benchmarks, with the peers' packages
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(PIP_ARGS) --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis
