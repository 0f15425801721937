# Needs Python >= 3.11 and make; everything else is set up in .venv.
#   make quickstart   draw a dataset, train on it, evaluate: about 5 minutes on 2 CPU cores
#   make test         the whole test suite
#   make lint         ruff and pyright

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATASET := datasets/quickstart
RUN := runs/quickstart

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m data_pipelines.synthetic --out=$(DATASET) --size=8000
	$(BIN)/python -m jaxclip.train --config=configs/synthetic_tiny.py \
	  --config.data.path=$(DATASET) --workdir=$(RUN)
	$(BIN)/python -m jaxclip.evaluate --workdir=$(RUN) --split=test

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(f"jaxclip needs Python >= 3.11, not {sys.version.split()[0]}. \
	Name another one: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipelines]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipelines,dev]'
	touch $@

clean:
	rm -rf $(VENV) datasets/quickstart runs/quickstart
