# `make run` and `make test` are all the set-up there is: each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-all lint docs bench mutants clean

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

test-all: .venv/installed
	$(BIN)/python -m pytest -n auto -m ""

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/installed
	$(BIN)/ptmrun bench

mutants: .venv/installed
	$(BIN)/python tests/mutants.py

clean:
	rm -rf .venv dist site docs/reference .mypy_cache .pytest_cache .ruff_cache
