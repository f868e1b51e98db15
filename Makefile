# Every chore of the project by one name. `make serve` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SERVE_FLAGS ?= --demo

.DEFAULT_GOAL := help
.PHONY: help install serve assets wheel test lint format map openapi train-builtin bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tiergate needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# One pip call each: torch must be resolved together with everything else (see constraints.txt).
$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Tiergate and its engine into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[engine]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Tiergate with its test tools into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[engine,test,lint,judges]'
	@touch $@ $(VENV)/.serve

install: $(VENV)/.serve  ## make .venv with the `tiergate` command in it

# The scripts of others that the admin pages load: npm brings them, hashes are checked, none is committed.
PAGES := dashboards/admin
assets:  ## bring the admin pages' scripts (needs npm; without them the pages still work)
	@if ! command -v npm >/dev/null; then \
	  echo "npm is not installed: the admin pages will have no live numbers and no charts"; \
	elif [ ! -e $(PAGES)/static/vendor/.done ] || [ $(PAGES)/package-lock.json -nt $(PAGES)/static/vendor/.done ] || [ $(PAGES)/vendor.json -nt $(PAGES)/static/vendor/.done ]; then \
	  (cd $(PAGES) && npm ci --silent --no-audit --no-fund && npm run --silent build) && touch $(PAGES)/static/vendor/.done \
	    || echo "the admin pages' scripts could not be brought: they will have no live numbers and no charts"; \
	fi

wheel: assets $(BIN)/python  ## build dist/*.whl with the admin pages in it
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

serve: $(VENV)/.serve assets  ## run the gateway with the built-in model and two demo keys
	$(BIN)/tiergate serve $(SERVE_FLAGS)

test: $(VENV)/.test  ## install what the tests need, lint, and run everything
	tests/install-services
	$(MAKE) --no-print-directory assets
	$(BIN)/python tests/judges/fetch_sdk_tests.py
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test  ## rewrite the code in the house's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

map: $(VENV)/.test  ## draw the README's map of the house again
	$(BIN)/python tests/readme_map.py

openapi: $(VENV)/.test  ## write docs/openapi.json again
	$(BIN)/python tests/openapi_file.py

train-builtin: $(VENV)/.serve  ## train the built-in model again from its seed (about an hour on two cores)
	$(BIN)/python -m engine.model.builtin.train

bench: $(VENV)/.test  ## list the benchmarks and how to run them
	@sed -n '1,200p' benchmarks/README.md

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build *.egg-info
