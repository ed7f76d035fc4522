# `make demo` and `make test` set up everything they need in .venv; only python3 (3.10 or newer, with venv) is expected.
# On Linux a plain `pip install torch` brings CUDA along. The CPU build is smaller:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Small matrices: one thread for each test worker is faster than two that wait for each other.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types tests sanitize clean

help:
	@echo "make demo      train, prune, save, load and measure a small network (under a minute)"
	@echo "make test      everything that must be green: ruff, mypy --strict, pytest, docs, examples"
	@echo "make sanitize  the engine's tests under AddressSanitizer, UBSan and ThreadSanitizer (needs GCC or Clang; a few minutes)"
	@echo "make clean     remove what the others made"

demo: $(VENV)/.ready
	@$(BIN)/secateur demo

test: lint types tests

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

tests: $(VENV)/.ready
	$(THREADS) $(BIN)/pytest -n $(WORKERS) --dist worksteal --durations=10

# The compiled engine once more, instrumented, beside the installed one; Python itself is not, so its runtime is preloaded.
sanitize: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet scikit-build-core nanobind cmake ninja
	$(BIN)/python tests/e2e/sanitize.py address,undefined
	$(BIN)/python tests/e2e/sanitize.py thread

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output

$(VENV)/.ready: pyproject.toml Makefile CMakeLists.txt $(wildcard csrc/*)
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' was not found: install Python 3.10 or newer, or name it with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Secateur needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment: install venv (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "setting up $(VENV) (a few minutes at first; nothing outside this folder is touched)"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
