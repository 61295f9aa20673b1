# Two commands: `make demo` and `make test`. Both set up .venv by themselves; see `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime and onnxruntime-gpu clash: one of them, by what the machine has.
RUNTIME := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: help demo test slow reliability test-training check format bench constraints clean

help:
	@echo "make demo    server, simulated headset and bridge on real samples (DEMO='--speed 8 --keep')"
	@echo "make test    the tests                     make slow   the long ones"
	@echo "make reliability   puts faults into the running chain, writes docs/reliability.md's table"
	@echo "make test-training   installs torch and tests what needs it"
	@echo "make check   format, lint, types, imports  make bench  benchmarks, JSON in bench-results/"

$(VENV)/bin/python:
	@echo "Setting up: a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Keystep needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run-$(RUNTIME): $(VENV)/bin/python $(INPUTS)
	@echo "Setting up: Keystep with onnxruntime ($(RUNTIME)), about a minute the first time"
	@$(PIP) --editable '.[$(RUNTIME)]'
	@touch $@

$(VENV)/.dev-$(RUNTIME): $(VENV)/.run-$(RUNTIME)
	@echo "Setting up: test tools"
	@$(PIP) --editable '.[$(RUNTIME),dev]'
	@touch $@

$(VENV)/.train: $(VENV)/.dev-$(RUNTIME)
	@echo "Setting up: torch, for training"
	@$(PIP) --editable '.[$(RUNTIME),dev,train]'
	@touch $@

demo: $(VENV)/.run-$(RUNTIME)
	@$(BIN)/keystep demo $(DEMO)

test: $(VENV)/.dev-$(RUNTIME)
	@echo "Running the tests in two processes (about ten minutes on two cores)"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(TESTS)

slow: $(VENV)/.dev-$(RUNTIME)
	@$(BIN)/python -m pytest -q -m slow $(TESTS)

reliability: $(VENV)/.dev-$(RUNTIME)
	@$(BIN)/python -m pytest -q tests/reliability --write-table

test-training: $(VENV)/.train
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" \
		tests/training tests/server/test_extraction_jobs.py $(TESTS)

check: $(VENV)/.dev-$(RUNTIME)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev-$(RUNTIME)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev-$(RUNTIME)
	@mkdir -p bench-results
	@for script in tests/bench/bench_*.py; do \
		name=$$(basename $$script .py); echo "$$name:"; \
		$(BIN)/python $$script | tee bench-results/$$name.json || exit 1; \
	done

constraints: $(VENV)/.dev-cpu
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; grep '^hatchling' constraints.txt; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results keystep-demo
