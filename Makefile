# Every target sets up what it needs by itself: python3 >= 3.11, pip, a C compiler and make are enough.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=

BIN := .venv/bin
CYTHON := $(wildcard lbcore/*.pyx lbcore/*.pxd lbcore/*/*.pyx lbcore/*/*.pxd)
# A .py with a .pxd beside it is compiled, too.
CORE := $(CYTHON) $(wildcard lbcore/*.h $(patsubst %.pxd,%.py,$(CYTHON)))
STUBBED := $(subst /,.,$(basename $(wildcard lbcore/_*.pyi lbcore/*/_*.pyi)))
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check bench dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/core ## create .venv with lbcore (editable, all extras) and the development tools

demo: install ## run a whole service on loopback (DEMO_ARGS=--once ends by itself)
	$(BIN)/lbcore demo $(DEMO_ARGS)

test: install ## run the test suite (PYTEST_ARGS="-k name -x")
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: install ## run every test: heavy and sanitizer ones as well, under the heavy profile
	LBCORE_PROFILE=heavy $(BIN)/python -m pytest -m "" --timeout 7200 $(PYTEST_ARGS)

check: install ## lint (ruff, cython-lint), types (mypy --strict), stubs against the compiled modules (stubtest)
	$(BIN)/ruff check .
	PATH=$(BIN):$$PATH cython-lint $(filter %.pyx %.pxd,$(CORE))
	$(BIN)/mypy --strict
	$(BIN)/stubtest $(STUBBED)

bench: install ## print every in-process row, what was asked and measured, and growth tables (BENCH_ARGS="--quick -k pick")
	$(BIN)/python benchmarks/report.py $(BENCH_ARGS)

dist: install ## build sdist and wheel, look inside both, build the sdist again in an empty environment
	rm -rf dist
	$(BIN)/python -m build
	LBCORE_DIST=dist $(BIN)/python -m pytest -m heavy --timeout 1200 tests/test_packaging.py

clean: ## remove what the targets above created
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find lbcore -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 has no ensurepip without python3-venv: there, virtualenv makes the environment.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lbcore needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv || { rm -rf .venv \
	    && $(PYTHON) -m pip install --disable-pip-version-check --quiet --target build/virtualenv virtualenv \
	    && PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet .venv; }

# Built without isolation: setuptools and Cython are in the `dev` group, and later rebuilds need no network.
.venv/installed: pyproject.toml setup.py | .venv/bin/python
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --quiet --group dev
	PYTHONWARNINGS=ignore $(PIP) install --quiet --no-build-isolation --editable ".[all]"
	touch $@

.venv/core: .venv/installed $(CORE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@
