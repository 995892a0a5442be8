# `make demo` and `make test` set up everything they need on first use: Python 3.11 or newer, make and a C compiler do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One job per core: two jobs of two threads each on two cores slow each other tenfold.
SINGLE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
JOBS ?= 2

.PHONY: demo test test-slow lint coverage datasets clean

demo: $(VENV)/.demo
	$(BIN)/grr-coca demo

test: $(VENV)/.dev lint
	$(SINGLE) $(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-slow: $(VENV)/.dev
	$(SINGLE) $(BIN)/python -m pytest -m slow --timeout 3600

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(VENV)/.dev
	$(SINGLE) $(BIN)/python -m pytest -n $(JOBS) -m "not slow" --cov --cov-report term-missing

datasets: $(VENV)/.dev
	$(BIN)/pip install --quiet -r scripts/build_datasets/requirements.txt
	$(BIN)/python scripts/build_datasets --out datasets

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.demo
