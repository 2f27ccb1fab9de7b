# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
# Without bytecode every Ray process compiles torch again (65 instead of 21 CPU seconds a fit).
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.PHONY: help setup demo check docs unit test test-fast cluster-test lint types contracts chaos format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $(STAMP)

setup: $(STAMP) ## build .venv from requirements.lock (idempotent, no root)

demo: $(STAMP) ## generated data, sweep, MLflow, promoted model, masks: the main job in one command
	$(BIN)/encsearch demo

lint: $(STAMP) ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy encsearch

contracts: $(STAMP) ## import-linter: imports only go down the layers
	$(BIN)/lint-imports

unit: $(STAMP) ## unit tests: no ray, no mlflow, seconds
	$(BIN)/pytest -q tests/unit

# Laid out as in the repository: the links between them hold there and on the site.
PAGES := README.md CONTRIBUTING.md CHANGELOG.md docs cluster/README.md examples benchmarks/results \
	encsearch/data/importers/labels
docs: $(STAMP) ## the pages and the Python API as a site in build/site; a link that leads nowhere is an error
	rm -rf build/pages build/site
	mkdir -p build/pages
	cp -r --parents $(PAGES) build/pages
	$(BIN)/zensical build --strict --clean

check: lint types contracts docs unit ## lint, types, import contracts, pages, unit tests

# One pytest for each argument, side by side: tests with Ray mostly wait. The first one is watched; what the others
# print comes when all have ended.
RUN := $(BIN)/pytest -q --durations=15 -m
define run_tests
	@logs=$$(mktemp -d); pids=; for tests in $(2); do \
		$(RUN) "$$tests" > "$$logs/$$tests" 2>&1 & pids="$$pids $$!"; done; \
	$(RUN) "$(1)"; failed=$$?; for pid in $$pids; do wait $$pid || failed=1; done; \
	cat $$logs/*; rm -r $$logs; exit $$failed
endef

test: $(STAMP) ## all tests, the ones with real Ray and MLflow included
	$(call run_tests,ray and not own_ray,own_ray "not ray and not own_ray and not hosts")

test-fast: $(STAMP) ## unit tests, a Ray training, a sweep, a promotion
	$(call run_tests,ray and fast,"not ray and fast")

cluster-test: $(STAMP) ## several hosts and a Slurm, by namespaces of this machine (as root)
	$(BIN)/pytest -q -rs --durations=15 -m hosts

chaos: $(STAMP) ## faults at random moments in real trainings (as root, an hour)
	$(BIN)/python -m benchmarks.chaos

format: $(STAMP) ## let ruff rewrite the formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## resolve requirements.lock anew
	$(BIN)/uv pip compile --quiet --extra dev --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml

clean: ## remove the virtual environment and what the demo made
	rm -rf $(VENV) demo-out build *.egg-info
