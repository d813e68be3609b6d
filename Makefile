# Everything runs in a virtual environment of its own, made on first use. Needs Python 3.11 or newer, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
WORKFLOWS := .venv-workflows
WORKFLOWS_READY := $(WORKFLOWS)/ready
AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob

.PHONY: demo test test-workflows azurite lint bench bench-quick clean

demo: $(READY)
	$(BIN)/python -m examples.demo

test: azurite
	$(BIN)/python -m pytest

# Published training programs, in an environment of their own: torch alone is larger than everything else together.
test-workflows: $(WORKFLOWS_READY)
	$(WORKFLOWS)/bin/python -m pytest -p workflows.skips workflows tests/array/test_interchange.py

# A storage server for the tests, from Node's package manager. The tests run without it too, and say so.
azurite: $(READY)
	@test -e $(AZURITE) \
	|| $(BIN)/npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0 \
	|| echo "Azurite could not be installed: nothing will be tested against it"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All benchmarks; the results are in build/benchmarks. It takes about an hour, 16 GiB of memory and 30 GB of disk.
bench: $(WORKFLOWS_READY)
	$(WORKFLOWS)/bin/python -m benchmarks

# One round of a selection, in under five minutes; without torch, where its environment has not been made.
bench-quick: $(READY)
	$(if $(wildcard $(WORKFLOWS_READY)),$(WORKFLOWS),$(VENV))/bin/python -m benchmarks --quick

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group test --group lint
	touch $(READY)

$(WORKFLOWS_READY): pyproject.toml
	$(PYTHON) -m venv $(WORKFLOWS)
	$(WORKFLOWS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(WORKFLOWS)/bin/python -m pip install --quiet --editable . --group workflows
	touch $(WORKFLOWS_READY)

clean:
	rm -rf $(VENV) $(WORKFLOWS) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
