# Needs Python 3.11+ and make, nothing else: Node for the front end comes as a wheel of the build.
# Everything lives in one environment, .venv, that grows: base < dev < system. The stamps
# say how far it is, so that a second run does not install again.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
PORT   ?= 8080
SECONDS ?= 3600
# What an installation is made of, apart from src/ (which is installed in place).
INPUTS := pyproject.toml $(wildcard hatch_build.py) \
          $(shell find frontend -name node_modules -prune -o -type f -print 2>/dev/null)
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-system faults fuzz check bench loop docs clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/.base  ## a synthetic department in your browser, with the shipped models
	$(BIN)/wetread demo --port $(PORT)

test: $(VENV)/.dev  ## the quick tests: no torch, no browser, minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m "not system and not train"

test-system: $(VENV)/.system  ## the rest: training, servers, browser (Debian: chromium, postgresql, prometheus)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "system or train" --durations=15

faults: $(VENV)/.system  ## kill the service fifty times under load; print what was lost (nothing)
	$(BIN)/python tests/faults.py --kills 50

fuzz: $(VENV)/.system  ## damage files for an hour (SECONDS=3600), and report what the reader made of them
	$(BIN)/python fuzz/seeds.py build/fuzz/corpus
	$(BIN)/python fuzz/read.py build/fuzz/corpus -max_total_time=$(SECONDS) -max_len=6000 -timeout=20 \
	    -rss_limit_mb=3000 -print_final_stats=1 -artifact_prefix=build/fuzz/

check: $(VENV)/.system  ## lint, format, types, and the order of the stages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.system  ## list the benchmarks; `make bench NAME=packing` runs one
	$(BIN)/python -m benchmarks $(NAME)

loop: $(VENV)/.system  ## the closed loop from phantoms, into build/loop: about an hour (LOOP_SIZE=small: minutes)
	WETREAD=$(abspath $(BIN))/wetread PYTHON=$(abspath $(BIN))/python runs/loop.sh build/loop

docs: $(VENV)/.docs  ## build the documentation site into site/
	$(BIN)/typer wetread.cli utils docs --name wetread --title "Command line" --output docs/cli.md >/dev/null
	$(BIN)/python -m wetread.web.conformance docs/conformance.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove what was built, the environment included
	rm -rf $(VENV) site dist build src/wetread/web/static/dist frontend/node_modules
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wetread needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(INPUTS) | $(BIN)/python
	@echo "Installing Wetread into $(VENV) (about a minute)"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/python
	@echo "Installing Wetread and its test tools into $(VENV) (about a minute)"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.base

$(VENV)/.system: $(INPUTS) | $(BIN)/python
	@echo "Installing Wetread with PyTorch into $(VENV) (minutes, about 6 GB)"
	$(PIP) -e '.[dev,train,txrv,cluster,postgres,s3,otel]' 'torchmetrics>=1.4'
	@touch $@ $(VENV)/.dev $(VENV)/.base

$(VENV)/.docs: $(INPUTS) | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.base
