# Thin: every command here is one that can be typed.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A stack has many processes, and each would compile the same modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check fix openapi bench clean

run: $(INSTALLED)  ## Install what is needed and start the whole service in the foreground.
	@$(BIN)/dreamforge up

test: $(INSTALLED)  ## Run every test, on ports and folders of their own.
	@$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(INSTALLED)  ## Style, format, types, import contracts.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/basedpyright

fix: $(INSTALLED)  ## Mend what can be mended.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

openapi: $(INSTALLED)  ## Write tests/openapi.json anew, once the API is meant to be different.
	@$(BIN)/python -m tests.openapi_document

bench: $(INSTALLED)  ## Measure, print tables, and write them to build/ as JSON.
	@failed=; for what in start requests streams pages losses downloads; do \
		$(BIN)/python -m tests.benchmarks.$$what || failed+=" $$what"; \
	done; \
	[[ -z $$failed ]] || { echo "Failed:$$failed" >&2; exit 1; }

clean:  ## Remove the virtual environment. Data stay in .dreamforge.
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v == (3, 11) else "Dream Forge needs Python 3.11; %s is %d.%d. Try: make $(MAKECMDGOALS) PYTHON=python3.11" % (sys.executable, *v))'
	@echo "Installing into $(VENV) (2.2 GB; a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt \
		-e '.[gpu-node,embedded,dev]' | sed -un 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing.*/Unpacking/p'
	@touch $@
