# Two commands matter: `make demo` and `make test`. Both run `make setup` first, which needs python3 and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# No test and no gate opens a connection to a model hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# $(call step,NAME,COMMAND): say what runs and how long it took.
define step
@echo "== $(1)"; start=$$SECONDS; status=0; $(2) || status=$$?; echo "   $(1): $$((SECONDS - start)) s, exit code $$status"; exit $$status
endef

.PHONY: help setup demo test check unit e2e lint format types boundaries light dependencies import-time alone docs clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## install everything from the lock into .venv (gets uv when it is absent)
	$(call step,setup,python3 tools/install.py)

demo: setup  ## fine-tune a real 135M model on this machine and see what changed
	@$(BIN)/python tools/demo.py

test: setup check  ## everything that CI runs: gates, then all tests
	$(call step,tests,$(BIN)/pytest packages tests)

check: lint types boundaries light dependencies import-time alone  ## the gates, without the tests

unit: setup  ## fast tests of every package
	@$(BIN)/pytest packages -m "not e2e"

e2e: setup  ## tests across packages, with the real model
	@$(BIN)/pytest tests

lint: setup  ## ruff: rules and format
	$(call step,lint,$(BIN)/ruff check --quiet .)
	$(call step,format,$(BIN)/ruff format --check .)

format: setup  ## let ruff mend what it can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

types: setup  ## pyright, strict in the light zone
	$(call step,types,$(BIN)/pyright)

boundaries: setup  ## import-linter: who may import whom
	$(call step,boundaries,$(BIN)/lint-imports --no-logo --no-cache)

light: setup  ## the light zone loads no heavy library
	$(call step,light,$(BIN)/python tools/check_light.py)

dependencies: setup  ## deptry: each package declares what it imports
	$(call step,dependencies,$(BIN)/python tools/check_dependencies.py)

import-time: setup  ## swift --help stays quick
	$(call step,import-time,$(BIN)/python tools/check_import_time.py)

alone: setup  ## each wheel in an environment of its own, outside this folder
	$(call step,alone,$(BIN)/python tools/check_alone.py)

docs: setup  ## both languages of the documentation, to build/docs/html
	$(call step,docs,$(BIN)/python tools/docs.py build)

clean:  ## remove what builds and tests leave behind (not .venv)
	rm -rf build dist demo_output .pytest_cache .ruff_cache .import_linter_cache .hypothesis packages/*/dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
