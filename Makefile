# Every target sets itself up: a .venv of its own with CPU or GPU torch, whatever pip finds.
# PYTHON=python3.12 takes another interpreter, in an environment named after it: .venv-3.12.
PYTHON ?= python3
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(PYTHON_VERSION),)
$(error $(PYTHON) does not run; name another Python: make PYTHON=...)
endif
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(PYTHON_VERSION))
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
STAMP := $(VENV)/.installed-$(PYTHON_VERSION)

# Tests start many interpreters, each of which would compile every module anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all test-comfyui goldens lint clean

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m framepack_core.cli demo --out demo

# ComfyUI is fetched where there is none; what is said where it cannot be is in pytest's summary.
PYTEST = COMFYUI_MISSING="$$($(BIN)/python tests/comfyui/fetch.py)" $(BIN)/python -m pytest

SPREAD = -n logical --maxprocesses 6 --dist loadfile --max-worker-restart 0

test: $(STAMP)
	$(PYTEST) $(SPREAD)

test-all: $(STAMP)
	$(PYTEST) $(SPREAD) -m "slow or not slow"

test-comfyui: $(STAMP)
	$(PYTEST) -m comfy tests/comfyui

GOLDENS ?= tests/goldens
goldens: $(STAMP)
	$(BIN)/python tests/goldens.py $(GOLDENS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

$(STAMP): pyproject.toml .ci/setup_venv.py
	$(PYTHON) .ci/setup_venv.py $(VENV) $@

clean:
	rm -rf .venv .venv-* .comfyui build dist *.egg-info
