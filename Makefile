# One environment in .venv; everything a target needs is installed on its first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Where an index offers CPU builds of torch under this exact version, no CUDA packages are pulled.
TORCH ?= torch==2.13.0

# Test processes side by side, each with one thread.
JOBS ?= auto

.PHONY: quickstart test lint soak clean

quickstart: $(VENV)/.run
	$(BIN)/lightning-serl fit -c preset:quickstart

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lightning_serl

# What takes longer than CI may: the quickstart over seeds beside true labels and random rewards.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/quickstart.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: left to itself, the resolver takes the newest build with several GB of CUDA packages
$(VENV)/.torch: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,qlora]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
