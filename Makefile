# The two commands of the README are `make demo` and `make test`; everything else serves them.
# Only python3 (3.11 or newer) and make are needed: uv is installed into .venv and installs the locked versions there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
INSTALLED := $(VENV)/.installed
# Compiled modules are kept, whatever the environment says (containers often say no): the tests start some hundred
# processes, and each would compile torch and what it imports anew, which is more than half of its start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-browser gpu bench torture check lint types format lock clean

demo: $(INSTALLED)
	$(BIN)/dlth demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal tests
	$(BIN)/python -m pytest tests/gpu --device cpu

# Shows that all of it is right on a GPU: docs/gpu.md. Where there is none it fails; `make gpu DEVICE=cpu` runs what a CPU can, small.
# Then how fast it is, also where a test failed: WRITE=1 puts both tables into docs/benchmarks.md, AUTHORS=FOLDER runs a
# copy of the authors' code beside. Nothing more is measured MINUTES after the start of the tests: nine, so that all is done in ten.
DEVICE ?= cuda
MINUTES ?= 9
MEASURE = $(BIN)/python benchmarks/bench_device.py --device $(DEVICE) --minutes $(MINUTES) \
  $(if $(filter-out 0 no,$(WRITE)),--write) $(if $(AUTHORS),--authors "$(AUTHORS)")
gpu: $(INSTALLED)
	@start=$$(date +%s); $(MEASURE) --check || exit $$?; \
	$(BIN)/python -m pytest tests/gpu --device $(DEVICE) --gpu-table build/gpu.json; right=$$?; \
	test $$right -le 1 || exit $$right; \
	$(MEASURE) --since $$start --tests build/gpu.json --json build/device.json && exit $$right

# Needs a Chromium besides (Debian: apt-get install chromium); `make test` does without.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest tests/browser

# Ratios with their spread, against named rivals in the same run; a quarter of an hour. docs/benchmarks.md holds the tables.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench_selector.py --batch-size 8 --rounds 5
	$(BIN)/python benchmarks/bench_step.py --batch-size 4 --rounds 5
	$(BIN)/python benchmarks/bench_pruning.py
	$(BIN)/python benchmarks/bench_loader.py
	$(BIN)/python benchmarks/bench_store.py

# The long forms of the reliability tests; writes the counts into docs/reliability.md. A part: make torture ARGS="--only bits"
torture: $(INSTALLED)
	$(BIN)/python tests/torture.py --write $(ARGS)

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The four folders are installed as dlth.*: a folder of links gives mypy the same names.
types: $(INSTALLED)
	mkdir -p $(VENV)/types/dlth
	for part in tickets data training pipeline; do ln -sfn $(CURDIR)/$$part $(VENV)/types/dlth/$$part; done
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p dlth

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dlth needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another with: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

# Versions with hashes for every platform, without the address of any index.
lock: $(INSTALLED)
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --quiet pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build demo *.egg-info
