# `make demo`, `make test` and `make quality` set up what they need in .venv, from the package index alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest versions supported, for `make test-oldest`. datasets is named because 4.57's hub limit
# lets the resolver fall back to releases that no longer import.
OLDEST := "torch==2.8.*" "transformers==4.57.*" "datasets>=4.0"
# What a machine with a card has, for `make test-card-versions`: neither datasets nor evaluate is there.
CARD := "torch==2.11.*" "torchvision==0.26.*" "transformers==5.17.*" accelerate peft timm torchmetrics \
	expecttest hypothesis matplotlib mpmath pytest pytest-timeout pytest-xdist pyyaml rich scikit-learn scipy \
	tqdm wrapt
CARD_PYTHON ?= $(PYTHON)
# One more than CI has cores, since a test that waits for its processes leaves one free.
TEST_WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-oldest test-card-versions quality format dist architecture bench gpu gpu-rehearse docs docs-serve figures clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "adamnx-hf needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (once; torch is a large download) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX=$(PIP_INDEX_URL)) VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e ".[dev]" $(EXTRA)
	@touch $@

setup: $(VENV)/.ready  ## Install the project and its tools into .venv.

demo: setup  ## Train a small vision transformer with AdamNX and with AdamW, and draw the curves (3 minutes).
	$(BIN)/adamnx-hf demo

test: setup  ## Run the tests.
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

test-slow: setup  ## Run the tests that take minutes, such as networks that learn a few images by heart.
	$(BIN)/python -m pytest -m slow

test-oldest: ## Run the tests on the oldest torch and Transformers supported, in .venv-oldest.
	$(MAKE) test VENV=.venv-oldest EXTRA='$(OLDEST)'

test-card-versions: setup  ## Run the optimizer's tests on the versions of a machine with a card, in .venv-card.
	$(BIN)/uv venv --quiet --allow-existing --python $(CARD_PYTHON) .venv-card
	$(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX=$(PIP_INDEX_URL)) VIRTUAL_ENV=.venv-card $(BIN)/uv pip install --quiet --compile-bytecode --python .venv-card/bin/python $(CARD)
	PYTHONPATH=$(CURDIR) .venv-card/bin/python -m pytest tests/optim tests/bench -n $(TEST_WORKERS)

architecture: setup  ## Print how large the code is, and what its walls hold.
	$(BIN)/python tests/test_architecture.py

quality: setup  ## Lint, check the format and the types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## Put the code into its format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: setup  ## Build wheel and sdist into dist/, and try each in an empty environment.
	VENV=$(VENV) bash .ci/dist

bench: setup  ## Time AdamNX's step beside other optimizers' on this machine.
	$(BIN)/adamnx-hf bench

gpu: setup  ## On a machine with a CUDA card: checks, benchmarks, the kernel's tuning, tests (11 minutes).
	PYTHON=$(BIN)/python bash .ci/gpu

gpu-rehearse: setup  ## The same at toy size on a CPU (2 minutes).
	PYTHON=$(BIN)/python bash .ci/gpu --rehearse

docs: setup  ## Build the documentation as a site in site/; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: setup  ## Show the documentation at http://127.0.0.1:8000, built anew as files change.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

figures: setup  ## Draw the documentation's figures again.
	$(BIN)/python -m adamnx_hf.figures docs/images

clean:  ## Remove what the other targets made.
	rm -rf .venv .venv-oldest .venv-card build dist demo-output site .mypy_cache .ruff_cache .pytest_cache
