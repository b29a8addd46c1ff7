# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000

# sam2, which the host pulls in, is built from source in an environment of its own; without this bound, pip would
# fetch the newest torch for that build alone. The bound itself stands in pyproject.toml.
CONSTRAINTS := $(VENV)/build-constraints.txt
PIP = SAM2_BUILD_CUDA=0 PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install --disable-pip-version-check

.PHONY: demo serve test test-long bench lint format clean

demo: $(VENV)/installed
	$(BIN)/labelrounds demo --port $(PORT)

serve: $(VENV)/installed
	$(BIN)/labelrounds start --port $(PORT)

test: $(VENV)/installed-test lint
	$(BIN)/pytest -m "not slow"

test-long: $(VENV)/installed-test
	$(BIN)/pytest -m slow

bench: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks.hippocampus

lint: $(VENV)/installed-test
	$(BIN)/ruff check lib apps tests
	$(BIN)/ruff format --check lib apps tests
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix lib apps tests
	$(BIN)/ruff format lib apps tests

clean:
	rm -rf $(VENV) build demo

$(CONSTRAINTS): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(f"Python {sys.version.split()[0]} is not supported: 3.10, 3.11 or 3.12, as in make PYTHON=python3.11") if not (3, 10) <= sys.version_info < (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^ *"\(torch[<>=][^"]*\)",$$/\1/p' pyproject.toml > $@

$(VENV)/installed: $(CONSTRAINTS)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: $(CONSTRAINTS)
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/installed
