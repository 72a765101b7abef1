# What a person types. The work itself is in scripts/ and in the tools' own configuration (pyproject.toml).
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench soak lock clean
ARGS ?=
# Processes of pytest side by side: tests wait more than they compute. 0 runs them in one, as a debugger wants it.
JOBS ?= 3
BIN := .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## system packages, .venv, pinned and hash-checked requirements; at once when nothing changed
	@scripts/setup

demo: setup ## the whole loop on this machine; ARGS="--devices 5 --keep --json"
	@$(BIN)/mooring demo $(ARGS)

test: setup lint ## lint, then every test but the soak; ARGS="tests/agent -k words", JOBS=0
	@$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: setup ## ruff (rules and format) and mypy strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## put the code in form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## every benchmark; the result lines are collected in bench-results/
	@scripts/bench $(ARGS)

soak: setup ## the long tests
	@$(BIN)/pytest -m soak $(ARGS)

lock: setup ## rewrite the lock files from pyproject.toml; ARGS=--upgrade moves versions
	@scripts/lock $(ARGS)

clean: ## remove what the tools left, keep .venv
	@rm -rf build dist bench-results *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
