# Everything here sets itself up: a virtual environment, the package in it, then the work.
#   make demo PYTHON=python3.12 VENV=/somewhere/else    both can be chosen

VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2
BENCH ?= upscale

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# one torch thread for each test process: JOBS processes then take JOBS cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## install, then enlarge the bundled photograph and say what it cost
	@$(BIN)/saccade demo

test: $(READY_DEV) ## install with the development tools, then run the tests
	$(PYTEST)

test-slow: $(READY_DEV) ## run the tests that take longer than about 20 seconds
	$(PYTEST) -m 'slow and not timing'
	$(BIN)/python -m pytest -m timing

lint: $(READY_DEV) ## style, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY_DEV) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY_DEV) ## measure speed beside the alternatives (BENCH=upscale)
	$(BIN)/saccade bench $(BENCH)

clean: ## remove what was made here: the environment, caches, results
	rm -rf $(VENV) site build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "saccade needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# the stamps are older than what they depend on when the requirements change; then pip runs again
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[onnx,video]'
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev,docs]'
	@touch $@
