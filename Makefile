# make demo      compress a digits network, trained on the spot, and say where the report lies
# make install   only what all of these need, into .venv/
# make test      all tests; those of an optional package skip where it is not installed
# make test-all  all tests with every optional package that goes together (1.1 GB more); those of the pages also want Chromium
# make check     lint, types, layers
# make clean     remove everything that the above made, but for .venv
#
# Each needs only Python 3.11 to 3.13 and make; the rest goes into .venv/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ALL := $(VENV)/.installed-all
DEMO := build/demo

.PHONY: demo install test test-all check clean

demo: $(STAMP)
	$(BIN)/slimline compress examples/digits/task.py --max-drop 2% --minimize size --time 150s --out $(DEMO) --force
	@echo
	@echo "The report: $(CURDIR)/$(DEMO)/report.html"

install: $(STAMP)

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(ALL)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# torch goes first, pinned and alone: a resolver that meets it as somebody's loose requirement takes the
# newest build, which can be one with gigabytes of CUDA libraries.
# On Linux the plain index serves that build too; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids it.
$(STAMP): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Slimline needs Python 3.11 to 3.13; this is %d.%d. Give another one: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile $$(grep '^torch==' requirements/constraints.txt)
	$(BIN)/python -m pip install --quiet --no-compile -c requirements/constraints.txt -e '.[dev,evolve]'
	@touch $@

# axe-core lies in a package that otherwise asks for a browser of its own.
$(ALL): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile -c requirements/constraints.txt -e '.[dev-all]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -c requirements/constraints.txt axe-playwright-python
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
