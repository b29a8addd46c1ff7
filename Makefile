# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000

# sam2, which the host pulls in, is built from source in an environment of its own; without this bound, pip would
# fetch the newest torch for that build alone. The bound itself stands in pyproject.toml. Of 23,000 modules most are
# never imported; those that are get compiled then, which saves a minute and a half here.
CONSTRAINTS := $(VENV)/build-constraints.txt
PIP = SAM2_BUILD_CUDA=0 PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install --no-compile --disable-pip-version-check

# Nothing is compiled at the installation; where this forbids to keep what is compiled later, as in many a container,
# every process would do it anew, which is most of the time of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve test test-long bench pictures lint format clean

demo: $(VENV)/installed
	$(BIN)/labelrounds demo --port $(PORT)

serve: $(VENV)/installed
	$(BIN)/labelrounds start --port $(PORT)

# Two files of tests at a time, each with a thread of its own, that neither takes the other's core; in the order of their
# names, which begins with the long ones.
test: $(VENV)/installed-test lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/installed-test
	$(BIN)/pytest -m slow

# make bench BENCH=nnunet ARGS="--minutes 20"; each says with ARGS=--help what it measures, and how long it takes.
BENCH ?= hippocampus
ARGS ?=
bench: $(VENV)/installed-test
	@echo "Benchmarks: BENCH=hippocampus (half an hour), load (2 minutes), active_learning (ARGS=\"--tier A\"), fleet, training_speed, nnunet (ARGS=\"--minutes N\"), membrane, inference, runtimes, classification, quick_classifiers (4 minutes a draw)"
	$(BIN)/python -m tests.benchmarks.$(BENCH) $(ARGS)

pictures: $(VENV)/installed-test
	$(BIN)/python tests/e2e/pictures.py

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

$(VENV)/installed-test: $(CONSTRAINTS) $(VENV)/libraries
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/installed

# What a real Slicer core and Qt load, for the end-to-end tests: without any one of them their import fails. And the
# PACS and the browser of the tests of DICOMweb; Debian would start the PACS as a service, open to the network.
LIBRARIES := libGL.so.1 libEGL.so.1 libxkbcommon.so.0 libfontconfig.so.1 libdbus-1.so.3 libglib-2.0.so.0
PROGRAMS := /usr/bin/chromium /usr/sbin/Orthanc /usr/share/orthanc/plugins/libOrthancDicomWeb.so
DEBIAN := libgl1 libegl1 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0 chromium orthanc orthanc-dicomweb
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

$(VENV)/libraries: $(CONSTRAINTS)
	@missing=; for library in $(LIBRARIES); do PATH="$$PATH:/sbin" ldconfig -p | grep -q "$$library " || missing="$$missing $$library"; done; \
	for program in $(PROGRAMS); do test -e "$$program" || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then \
		echo "Missing for the end-to-end tests:$$missing"; \
		command -v apt-get > /dev/null || { echo "install them with your package manager"; exit 1; }; \
		case "$$missing" in *Orthanc*) $(ROOT) systemctl mask orthanc 2> /dev/null || true;; esac; \
		$(ROOT) apt-get update -q && $(ROOT) apt-get install -qy --no-install-recommends $(DEBIAN); \
	fi
	touch $@
