# `make run` and `make test` are all the set-up there is: each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench mutants clean

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

run: .venv/installed
	$(BIN)/ptmrun model=vit task=mim

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python tests/bench.py

mutants: .venv/installed
	$(BIN)/python tests/mutants.py

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache
