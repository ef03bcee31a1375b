# Every target that a person calls carries a "## explanation", which `make help` prints.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install check test test-fast demo reproduce tensorboard docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv and install the package with its test and development tools

# Done once, and again when pyproject.toml changes. The last line finds a CPU-only torch beside a default torchvision.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[test,dev]"
	@$(BIN)/python -c "import torchvision.ops" || { echo "error: torch and torchvision are builds that do not fit \
	together: install both from one index, both default or both CPU" >&2; exit 1; }
	@touch $@

check: $(STAMP) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(STAMP) ## the tests, on three processes, which wait now and then; a file's tests stay together
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP) ## those that train nothing and start nothing, for the edit loop
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

demo: $(STAMP) ## all stages on synthetic faces, and the audit with its report (minutes)
	$(BIN)/python scripts/demo.py

reproduce: $(STAMP) ## all synthetic stages, crafted at four values of beta, audited together
	PATH="$(abspath $(BIN)):$$PATH" bash scripts/reproduce.sh

tensorboard: $(STAMP) ## show all runs in TensorBoard
	$(BIN)/tensorboard --logdir runs

docs: $(STAMP) ## the documentation, into site/index.html; a dead link is an error
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "documentation: site/index.html"

clean: ## remove .venv and caches, but no runs
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
