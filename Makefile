# `make train` and `make test` do everything on a machine with Python, pip and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint bench results

train: .venv/installed  ## ARGS="optimizer.lr=1e-2" sets anything
	$(BIN)/python train.py $(ARGS)

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed  ## ARGS="--only answers" measures a part
	$(BIN)/python benchmarks/bench.py $(ARGS)

results: .venv/installed  ## ARGS="--only accurate --set data.root=FOLDER" measures a part anew
	$(BIN)/python benchmarks/results.py $(ARGS)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e ".[dev]"
	touch $@
