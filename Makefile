PYTHON ?= python3
PROCESSES ?= 2  # that run the fast tests; 0: this one, for a debugger
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow bench check lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## install, then train the whole sentiment chain on built-in toy reviews
	$(BIN)/python -m pipelines sentiment --config pipelines/configs/quickstart.yaml $(ARGS)

test: $(INSTALLED)  ## install, then run the fast tests (ARGS="-k attention" selects some)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(ARGS)

slow: $(INSTALLED)  ## run the slow tests; PERCEIVER_TEST_DATA names a folder with imdb/ and mnist/
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS) || [ $$? -eq 5 ]  # 5: there are none

bench: $(PEERS)  ## time us against other implementations, write docs/benchmarks.md (ARGS="mlm --rounds 3")
	$(BIN)/python -m tests.benchmarks $(ARGS)

check: $(INSTALLED)  ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(INSTALLED)  ## renew requirements.lock after a change to pyproject.toml (ARGS=--upgrade: newest versions)
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet $(ARGS) pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet $(ARGS) --no-config --generate-hashes --strip-extras \
		--no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host cluster/requirements.in

clean:  ## remove the environment and everything that is built or cached
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find perceiver pipelines tune tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/python -m pip install --no-build-isolation -e '.[bench]'
	@touch $@
