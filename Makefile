# Every target sets itself up: a .venv of its own with CPU or GPU torch, whatever pip finds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
STAMP := $(VENV)/.installed

.PHONY: demo test goldens lint clean

demo: $(STAMP)
	$(BIN)/python -m framepack_core.cli demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 6 --dist loadfile

GOLDENS ?= tests/goldens
goldens: $(STAMP)
	$(BIN)/python tests/goldens.py $(GOLDENS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(STAMP): pyproject.toml .ci/setup_venv.py
	$(PYTHON) .ci/setup_venv.py $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
