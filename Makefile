# The two commands that matter:
#   make serve   set everything up and serve the demo model (ARGS="..." are vllm serve's)
#   make test    set everything up and run the tests
#
# Another PyTorch build:  make serve TORCH="torch==2.11.0" TORCH_INDEX=https://download.pytorch.org/whl/cu128

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml

.PHONY: serve test check format bench gpu-test docs setup clean

serve: setup
	$(BIN)/vllm serve $(ARGS)

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

setup: $(VENV)/.installed

# torch first and by itself: as a mere dependency it would bring gigabytes of CUDA to a CPU machine.
$(VENV)/.torch: requirements.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and the pinned dependencies into $(VENV) (once, a minute or two) ..."
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	@echo "Building the CPU kernels ..."
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py tests/test_public_names.py tests/test_docs.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.engine --json results/engine.json

gpu-test: setup
	$(BIN)/python -m pytest tests/kernels

docs: setup
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) build dist *.egg-info vllm/*.so
