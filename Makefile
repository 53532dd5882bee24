# Everything a developer runs. PYTHON chooses the interpreter that makes .venv.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE := # compiled tests are kept: half of what collecting them takes

.PHONY: help setup demo test test-all test-fast test-lowest attack lint docs bench zoos tables reference-index

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: .venv/ready ## .venv with the package and what developers need

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("weightsearch needs Python 3.11 or newer; set PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv || (echo "no venv: on Debian, apt install python3-venv" >&2; exit 1)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,formats]'
	touch $@

demo: .venv/ready ## The whole path on scikit-learn's digits: build-zoo, train, query, viz
	$(BIN)/weightsearch demo

test: .venv/ready ## The whole test suite, with a tenth of the kills and damages
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/integrations-ready ## The whole test suite with all kills, damages, mutations and random programs, not a tenth
	WEIGHTSEARCH_TEST_ALL=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.venv/integrations-ready: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[integrations]'
	touch $@

test-fast: .venv/ready ## The tests that take no time
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-lowest: ## The fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[dev,formats]'
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m 'not slow'

MINUTES ?= 10
SEED ?= 0
attack: .venv/ready ## Hostile files, kills, damages for MINUTES from SEED; figures and minimal inputs in runs/attack
	$(BIN)/python -m tests.attack --minutes $(MINUTES) --seed $(SEED)

lint: .venv/ready ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs-ready ## The documentation into site/, strictly and without network; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.venv/docs-ready: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

bench: .venv/ready ## Measure anew what the documentation says of speed (USPS files in WEIGHTSEARCH_DATA)
	$(BIN)/python benchmarks/zoo_throughput.py
	$(BIN)/python benchmarks/zoo_accuracy.py
	$(BIN)/python benchmarks/documentation.py

zoos: .venv/ready ## Build the benchmarks' zoos into runs/zoos, or go on with them
	$(BIN)/python benchmarks/zoos.py

tables: .venv/ready ## The paper's tables of each zoo in runs/zoos into benchmarks/results/tables-NAME, or go on with them
	for zoo in runs/zoos/*; do $(BIN)/weightsearch tables $$zoo --out benchmarks/results/tables-$${zoo##*/} || exit 1; done

reference-index: .venv/ready ## Make index/ anew from the USPS files in WEIGHTSEARCH_DATA
	$(BIN)/python benchmarks/reference_index.py build
