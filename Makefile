# Every target makes the environment it needs: PYTHON to choose the interpreter, TORCH to choose the torch release.
PYTHON ?= python3
TORCH ?= torch==2.13.0
NEWEST := .venv
OLDEST := .venv-oldest
# Benchmarks: DATA is a folder of local texts (layout: benchmarks/tasks/texts.py), without it the Hugging Face hub's are taken.
DATA ?=
BENCH_OUT ?= runs/benchmarks
BENCH_FLAGS = --out $(BENCH_OUT) $(if $(DATA),--data-dir $(DATA))
BENCHMARKS = OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m benchmarks

.PHONY: demo test test-oldest bench-quick bench lint format wheel clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(NEWEST)/ready ## fine-tune the embedded model with LoRA and SCAO, offline, in about a minute
	$(NEWEST)/bin/scao-finetune demo

test: $(NEWEST)/ready ## all tests
	$(NEWEST)/bin/python -m pytest -n 2

test-oldest: $(OLDEST)/ready ## the integration tests on the oldest supported transformers
	$(OLDEST)/bin/python -m pytest -n 2 tests/optim tests/hf tests/finetune

bench-quick: $(NEWEST)/ready ## AdamW, SCAO, Muon and SOAP on a 1M-parameter GPT, one seed, untuned: three minutes on two cores
	$(BENCHMARKS) study quick $(BENCH_FLAGS)
	$(BENCHMARKS) timing quick $(BENCH_FLAGS)
	$(BENCHMARKS) report quick --out $(BENCH_OUT)

bench: $(NEWEST)/ready ## the same and two more, tuned, on five seeds, with tables and figures: hours
	$(BENCHMARKS) study lm-1m $(BENCH_FLAGS)
	$(BENCHMARKS) timing lm-1m $(BENCH_FLAGS)
	$(BENCHMARKS) report lm-1m --out $(BENCH_OUT)

lint: $(NEWEST)/ready ## formatting, lints and types
	$(NEWEST)/bin/ruff format --check .
	$(NEWEST)/bin/ruff check .
	$(NEWEST)/bin/mypy

format: $(NEWEST)/ready ## format and fix what can be fixed
	$(NEWEST)/bin/ruff format .
	$(NEWEST)/bin/ruff check --fix .

wheel: $(NEWEST)/ready ## build the distributions into dist/
	$(NEWEST)/bin/python -m build

# torch first and alone: a CPU build that is at hand stays, whatever the other packages would choose.
$(NEWEST)/ready: pyproject.toml .ci/newest.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade pip
	$(NEWEST)/bin/pip install --quiet "$(TORCH)"
	$(NEWEST)/bin/pip install --quiet --constraint .ci/newest.txt --editable ".[dev]"
	touch $@

$(OLDEST)/ready: pyproject.toml .ci/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --upgrade pip
	$(OLDEST)/bin/pip install --quiet "$(TORCH)"
	$(OLDEST)/bin/pip install --quiet --constraint .ci/oldest.txt --editable ".[dev]"
	touch $@

clean: ## remove environments and build products
	rm -rf $(NEWEST) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
