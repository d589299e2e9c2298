# `make train` and `make test` do everything on a machine with Python 3.10 to 3.14, pip and make.
# PYTHON=python3.13 asks for that Python, where python3 is another.
BIN := .venv/bin

.PHONY: train test lint bench results venv venv-dev

train: venv  ## ARGS="optimizer.lr=1e-2" sets anything
	$(BIN)/python train.py $(ARGS)

test: venv-dev
	$(BIN)/python -m pytest

lint: venv-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: venv-dev  ## ARGS="--only answers" measures a part
	$(BIN)/python benchmarks/bench.py $(ARGS)

results: venv-dev  ## ARGS="--only accurate --seeds 3" measures a part
	$(BIN)/python benchmarks/results.py $(ARGS)

venv:  # what training needs
	@sh scripts/venv.sh

venv-dev:  # the rest too
	@sh scripts/venv.sh dev
