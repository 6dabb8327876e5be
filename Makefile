# `make help` lists what can be done. Everything works from any directory with `make -C <this folder>`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
export TOTO_HOME ?= $(CURDIR)/.toto
BIN := .venv/bin
HOST ?= 127.0.0.1
PORT ?= 3000

.PHONY: help setup retrain dev test test-slow test-all bench check format screenshots lock clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.complete ## Make the virtual environment in .venv

.venv/.complete: requirements.lock pyproject.toml scripts/setup
	@PYTHON='$(PYTHON)' scripts/setup

retrain: setup ## Run the whole pipeline on the bundled sample (ARGS="--preset toto2-4m --data FOLDER ...")
	@$(BIN)/toto-pipeline retrain $(ARGS) || { code=$$?; [ $$code -eq 10 ] && echo "The new model was refused; the champion stays." || exit $$code; }

dev: setup ## Open the Dagster UI on http://127.0.0.1:3000 (PORT=..., HOST=...)
	@exec $(BIN)/toto-pipeline dev --host $(HOST) --port $(PORT)

test: setup ## Run the tests
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: setup ## Run only the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-all: test test-slow ## Run every test

bench: setup ## Measure what is promised (ARGS="--json", ARGS="--quick")
	@$(BIN)/python -m benchmarks $(ARGS)

check: setup ## Lint, formatting and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

screenshots: setup ## Take the pictures of the README from the real UI (needs chromium)
	@$(BIN)/python scripts/screenshots.py

lock: setup ## Resolve requirements.lock anew from pyproject.toml
	@$(BIN)/python -m uv pip compile --quiet --upgrade --universal --python-version 3.12 --extra dev --no-annotate --no-header --output-file requirements.lock pyproject.toml

clean: ## Remove .venv and what tools left behind; runs in .toto stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
