# Both commands do all their own set-up in .venv: they need only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python

.PHONY: demo test test-oldest lint benchmarks clean

demo: $(VENV)/.demo          ## train wide networks and predict them from their kernel: figures and numbers in out/
	$(RUN) -m ntk_jax demo

test: $(VENV)/.test          ## the whole test suite, on the newest JAX that the package index has
	$(RUN) -m pytest -n 2 --dist worksteal

test-oldest: $(OLDEST)/.test ## all but the slow tests on the oldest supported versions: the lower bounds of pyproject.toml
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.dev           ## formatting, style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

benchmarks: $(VENV)/.demo    ## lists the benchmarks; run one with .venv/bin/python -m benchmarks NAME
	$(RUN) -m benchmarks

clean:
	rm -rf $(VENV) $(OLDEST) out

$(VENV)/bin/uv $(OLDEST)/bin/uv: %/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python >= 3.11 is needed, this is {sys.version}")'
	$(PYTHON) -m venv $* || (echo "The venv module is missing: install python3-venv, or set PYTHON=..."; exit 1)
	$*/bin/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(VENV)/bin/uv pyproject.toml
	$< pip install --quiet --python $(RUN) -e '.[plots,sklearn,progress]'
	touch $@

$(VENV)/.test: $(VENV)/bin/uv pyproject.toml
	$< pip install --quiet --python $(RUN) -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/uv pyproject.toml
	$< pip install --quiet --python $(RUN) -e '.[dev]'
	touch $@

$(OLDEST)/.test: $(OLDEST)/bin/uv pyproject.toml
	$< pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[test]'
	touch $@
