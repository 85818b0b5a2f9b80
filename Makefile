# make demo, make test: each makes its own environment on the first call and reuses it afterwards.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-oldest lint clean
.DEFAULT_GOAL := test

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/tract demo

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# The same tests on the oldest versions that setup.cfg allows.
test-oldest: .venv-oldest/installed
	HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest -m "not slow and not gpu"

.venv-oldest/installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-oldest
