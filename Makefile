# `make demo` and `make test` each build .venv from nothing (once), then do their job.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest

.PHONY: demo test test-oldest lint types check map clean

demo: $(STAMP)
	$(BIN)/visgraft demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

# the model and the data with the oldest releases that pyproject.toml allows, in an environment of their own
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q tests/model tests/data

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# write the file map of docs/architecture.md again, from the first lines of the files
map: $(STAMP)
	$(BIN)/python tests/test_house.py --fix

# install(environment, constraints, what)
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "visgraft needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..." >&2; exit 2; }
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(3)
@touch $(1)/.installed
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,-e '.[dev]')

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call install,$(OLDEST),constraints-oldest.txt,-e '.[video]' pytest)

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
