# Everything a newcomer needs: `make demo` and `make test`. Both set the machine up first.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST ?= $(BIN)/python -m pytest
NATIVE := $(wildcard native/*.c native/*.h) native/build_native.py

.PHONY: help demo test lint types native-check unit integration bench setup clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Debian packages, virtual environment, the C module

$(READY): pyproject.toml constraints.txt setup.py scripts/debian-packages $(NATIVE)
	scripts/debian-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install -q -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	touch $@

demo: $(READY) ## Build an image from a folder, mount it, read from it, say what was fetched
	$(BIN)/python -m nydusd.cli.demo

test: lint types native-check unit integration ## Everything that CI checks

lint: $(READY) ## ruff, check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## strict type check
	$(BIN)/mypy

native-check: $(READY) ## the C code: warnings are errors, unit tests plain and under ASan and UBSan
	$(MAKE) -s -C native check

unit: $(READY) ## tests without mounts and servers
	$(PYTEST) -q -n 2 tests/unit tests/property

integration: $(READY) ## tests with real mounts, a real registry, real faults
	$(PYTEST) -q tests/integration tests/faults

bench: $(READY) ## the benchmark table of README.md, measured here
	$(BIN)/python -m benchmarks

clean: ## Remove what setup and tests made
	rm -rf $(VENV) build *.egg-info nydusd/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
