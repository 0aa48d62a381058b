# make demo        the main job on this machine: `make demo INPUT=video.mp4`, a picture, a folder or /dev/video0
# make test        linters and tests (minutes); `make test PYTEST_ARGS="-k flow"` for a part
# make test-all    the slow tests too: builds the package with pip and colcon in fresh environments
# make lint        ruff, mypy, import-linter
# make bench       latency, stage by stage; after `make setup-test` also against other ways (benchmarks/README.md)
# make setup       only install what the demo needs;  make setup-test: what the tests need
# make clean       remove what was built; `make distclean` removes the environment too
#
# Variables: PYTHON (3.10 to 3.12), VENV, INPUT, OUT, ARGS (more options of `hmr-prob demo` or `bench`),
# LATENCY_ARGS (more options of benchmarks/latency/run.py),
# TORCH_INDEX_URL (package index to take torch from, for example one with CPU builds).

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
INPUT ?=
ARGS ?=
LATENCY_ARGS ?=
PYTEST_ARGS ?=
TORCH_INDEX_URL ?=

BIN := $(VENV)/bin
# First on PATH, so that scripts which start with `env python3` get this environment.
export PATH := $(abspath $(BIN)):$(PATH)
# Set by the ROS wheels in a python that make may have been started from; here it would keep this environment from being found.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
BUILD_FILES := setup.py CMakeLists.txt package.xml $(wildcard msg/*.msg cmake/* nodes/* config/* launch/* rviz/*)

.PHONY: help demo test test-all lint bench setup setup-test clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.package
	@$(BIN)/hmr-prob demo $(if $(INPUT),"$(INPUT)") --out "$(OUT)" $(ARGS)

bench: $(VENV)/.package
	@mkdir -p "$(OUT)"
	@$(BIN)/hmr-prob bench --json "$(OUT)/bench.json" $(ARGS)
	@if $(BIN)/python -c 'import matplotlib, nflows, onnx, scipy, sklearn, torch' 2>/dev/null; then \
	  $(BIN)/python benchmarks/latency/run.py --quick --out "$(OUT)/latency" $(LATENCY_ARGS); \
	else \
	  echo "the comparisons of benchmarks/latency need more: make setup-test, then make bench"; \
	fi

test: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.package

setup-test: $(VENV)/.test

# The files below $(VENV) remember what was installed; each is made anew when what it was made from changes.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is not Python 3.10, 3.11 or 3.12: name one, for example \`make $(MAKECMDGOALS) PYTHON=python3.12\`"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: sudo apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "the ROS messages are compiled against Python.h, which is missing: sudo apt install python3-dev"; exit 1; }
	@command -v c++ >/dev/null || { echo "the ROS messages need a C++ compiler: sudo apt install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml tools/install.py
	@$(BIN)/python tools/install.py build base blazepose demo
	@touch $@

$(VENV)/.package: $(VENV)/.runtime $(BUILD_FILES)
	@echo "building the ROS messages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package pyproject.toml tools/install.py
	@$(BIN)/python tools/install.py $(if $(TORCH_INDEX_URL),--torch-index "$(TORCH_INDEX_URL)") build base mediapipe blazepose demo view rtmlib train images vitpose bench smplx dev
	@touch $@

clean:
	rm -rf build dist install log "$(OUT)" *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
	rm -rf hmr_prob_ros/msg hmr_prob_ros/*.so $(VENV)/.package

distclean: clean
	rm -rf $(VENV)
