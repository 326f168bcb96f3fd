# Every target makes the environment first: Python 3.11+, pip and make are all it needs.
#
#   make PYTHON=python3.12 test    another interpreter
#   make WORKERS=1 test            one test process (the default is two)
#   make VENV=/path/to/env test    another place for the environment

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO_OUT ?= demo
PYTEST_ARGS ?=
BENCH_ARGS ?=

# More threads than cores slow small networks down several times over.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# There while an install runs: left behind, it says that the install was cut short.
BUSY := $(VENV)/.installing

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test lint format docs bench lock clean

help: ## Show this list
	@echo "unperturb: make TARGET, with one of"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

env: $(STAMP) ## Make the environment and nothing else

$(STAMP): pyproject.toml requirements.lock
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no '$(PYTHON)'. Expected: Python 3.11 or newer." \
	       "Fix: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Expected: Python 3.11 or newer." \
	       "Fix: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@if [ -e "$(BUSY)" ] || ! "$(PY)" -m pip --version >/dev/null 2>&1; then \
	  echo "making the environment in $(VENV)"; \
	  "$(PYTHON)" -m venv --clear "$(VENV)"; \
	fi
	@touch "$(BUSY)"
	"$(PY)" -m pip install --quiet -r requirements.lock
	"$(PY)" -m pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f "$(BUSY)"
	@touch "$(STAMP)"

demo: $(STAMP) ## Train, defend and audit a small classifier; writes demo/report.html
	"$(VENV)/bin/unperturb" demo --out "$(DEMO_OUT)"

test: $(STAMP) ## Run the tests and the doctests
	"$(PY)" -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, format and types
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

format: $(STAMP) ## Format the code and fix what ruff can fix
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

docs: $(STAMP) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 "$(PY)" -m mkdocs build --strict
	@echo "open site/index.html"

bench: $(STAMP) ## Measure speed, as ratios within one run
	"$(PY)" -m benchmarks $(BENCH_ARGS)

lock: $(STAMP) ## Resolve pyproject.toml afresh and rewrite requirements.lock
	"$(PY)" tools/lock.py requirements.lock

clean: ## Remove the environment and all that was built
	rm -rf "$(VENV)" site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
