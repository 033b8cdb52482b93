# Each target is a whole job; none needs anything done by hand before it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ONCE ?=
PYTEST ?=
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(VENV)/.demo ## Show the proxy at work with real TLS backends (ONCE=1: leave after the table)
	$(BIN)/python demo/demonstration.py $(if $(ONCE),--once)

test: $(VENV)/.test ## Run all tests from source (PYTEST="-k name" for some)
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.lint ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.demo ## Compare with nginx, HAProxy and others (BENCH=--quick: in 1.5 minutes)
	$(BIN)/python -m bench.compare $(BENCH)

clean: ## Remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11: install one, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) can't make virtual environments: install python3-venv (Debian)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp an extra of pyproject.toml, so that `make run` waits for nothing that it does not use.
$(VENV)/.%: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
