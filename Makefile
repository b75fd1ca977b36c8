# Works from a clean clone with nothing but make and Python >= 3.10: everything is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# Pinned, so that no other build of PyTorch is pulled in with the package. It may hold arguments of pip too
TORCH ?= torch==2.13.0
# Further arguments, e.g. PYTEST_ARGS="tests/package/test_package.py -v" or DEMO_ARGS="--seed 1"
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCHMARK_ARGS ?=
# Of test-matrix: the interpreters, and which versions of what the package needs
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
VERSIONS ?= newest oldest

BIN := $(VENV)/bin
# A worker that has done its share takes tests from the other: the long ones are not spread evenly
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help demo test test-slow test-matrix benchmark docs notebooks lint type format clean
# Two pips at a time in one environment would get in each other's way
.NOTPARALLEL:

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /: /'

demo: $(VENV)/.demo ## Train on CartPole-v1, evaluate, save, load and plot
	$(BIN)/python examples/cartpole.py $(DEMO_ARGS)

test: $(VENV)/.test ## Run the tests (without the slow ones)
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.test ## Run the slow tests: training runs that take minutes
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-matrix: ## Run the tests on each of PYTHONS, with the newest and the oldest versions
	PYTHONS="$(PYTHONS)" VERSIONS="$(VERSIONS)" TORCH="$(TORCH)" $(PYTHON) .ci/matrix.py $(PYTEST_ARGS)

benchmark: $(VENV)/.test ## Measure the training speed beside A2C and PPO
	$(BIN)/python -m benchmarks.throughput $(BENCHMARK_ARGS)

docs: $(VENV)/.docs ## Build the site into docs/_build/html, without a network
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

notebooks: $(VENV)/.docs ## Write and run the notebooks of docs/notebooks
	$(BIN)/python docs/notebooks/make.py

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/black --check .

type: $(VENV)/.dev ## Check types
	$(BIN)/mypy sb3_reinforce

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/black .

clean: ## Remove the virtual environment, build products and caches
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis MUJOCO_LOG.TXT
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras. Each set holds the smaller ones, so installing it renews their stamps too.
$(VENV)/.demo: EXTRAS := plot,progress
$(VENV)/.docs: EXTRAS := docs
$(VENV)/.test: EXTRAS := test
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.demo: STAMPS := .demo
$(VENV)/.docs: STAMPS := .demo .docs
$(VENV)/.test: STAMPS := .demo .docs .test
$(VENV)/.dev: STAMPS := .demo .docs .test .dev

$(VENV)/.demo $(VENV)/.docs $(VENV)/.test $(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@cd $(VENV) && touch $(STAMPS)

$(VENV)/.torch:
	@$(PYTHON) -c "" 2>/dev/null || { echo "No Python was found as '$(PYTHON)': name one with 'make PYTHON=...'."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "Python 3.10 or later is needed, '$(PYTHON)' is older: name another with 'make PYTHON=...'."; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian: apt install python3-venv)."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH:%='%')
	@touch $@
