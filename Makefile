# `make demo` and `make test` each do all the set-up they need. Needs git, make and Python 3.11 or later.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= demo_run
REFERENCE ?= ../shared/reference/drprobe

.PHONY: help venv demo test test-faults lint docs bench-input bench-forward bench-optimiser \
  bench-optimiser-full clean

help:
	@echo "make demo   fit the bundled image and score the result (about 15 minutes the first time)"
	@echo "make test   run all tests"
	@echo "make test-faults   stop a run in every way there is and let it go on (ten minutes), benchmarks/faults.md"
	@echo "make lint   ruff, mypy and the import layers"
	@echo "make docs   the documentation site in build/site, strictly"
	@echo "make bench-input     calibration on altered phantoms, files of other people, damaged files"
	@echo "make bench-forward   cost and agreement of the simulator, written to benchmarks/*.md"
	@echo "make venv   only the virtual environment in $(VENV)"
	@echo "make bench-optimiser       compare the main optimisers on small budgets (a few minutes)"
	@echo "make bench-optimiser-full  all optimisers in a race (an hour of one core); goes on where it was interrupted"

venv: $(STAMP)

# torch comes first and alone, by exact version: left to the resolver it may pull gigabytes of device libraries.
# The stamp is written last, so that an interrupted installation is taken up again and a finished one never repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qhrtem needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "the venv module of Python is missing: on Debian or Ubuntu install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[test,docs]'
	@touch $@

demo: $(STAMP)
	$(BIN)/qhrtem demo --out $(RUN) --force
	$(BIN)/python benchmarks/score.py $(RUN)/columns.csv examples/truth/bto_edge_small.npz

# Tests share the cores between processes, so each process keeps to one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(PYTEST_ARGS)

# All of the fault suite; `make test` runs a part of it.
test-faults: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults --write benchmarks/faults.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Tables that need more than the repository (reference data, abTEM) say so where it is missing.
# These need the shared data; DATA says where it is.
DATA ?= ../shared/data
bench-input: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/calibration.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real_files.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzzing.py --data $(DATA)

bench-forward: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/forward.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/thermal.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/thermal_moves.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampling.py
	test ! -d $(REFERENCE) || OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drprobe_agreement.py --folder $(REFERENCE)

# One thread a run, JOBS runs at a time; the quick table goes to build/, the full one to benchmarks/optimiser/results.md.
JOBS ?= 1
BENCH := OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m optimiser --jobs $(JOBS)

bench-optimiser: $(STAMP)
	$(BENCH) --quick $(BENCH_ARGS)

bench-optimiser-full: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/surrogate_fit.py --write benchmarks/optimiser/surrogate_fit.txt
	$(BENCH) $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache demo_run
