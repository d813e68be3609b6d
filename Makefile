# Everything runs in a virtual environment of its own, made on first use. Needs Python 3.11 or newer, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob

.PHONY: demo test azurite lint bench clean

demo: $(READY)
	$(BIN)/python -m examples.demo

test: azurite
	$(BIN)/python -m pytest

# A storage server for the tests, from Node's package manager. The tests run without it too, and say so.
azurite: $(READY)
	@test -e $(AZURITE) \
	|| $(BIN)/npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0 \
	|| echo "Azurite could not be installed: nothing will be tested against it"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.kv
	$(BIN)/python -m benchmarks.pytrees

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group test --group lint
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
