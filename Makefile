# Both commands do all their own set-up in .venv: they need only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python

.PHONY: demo test test-all test-slow test-oldest lint docs release colab benchmarks aot gpu clean

# Where Python is told to keep no bytecode, every process compiles the sources of JAX anew: four seconds each.
unexport PYTHONDONTWRITEBYTECODE

# What was compiled once is read by the next run, and by the other worker. Not for the oldest versions: programs that JAX 0.6
# loads on a CPU compute otherwise (docs/reliability.md).
demo test test-slow docs benchmarks: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(VENV)/jax_cache
demo test test-slow docs benchmarks: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0

demo: $(VENV)/.demo          ## train wide networks and predict them from their kernel: figures and numbers in out/
	$(RUN) -m ntk_jax demo

# Both workers use a core each. Threads of OpenBLAS (NumPy's, SciPy's and jaxlib's LAPACK) that find none wait by spinning.
test test-slow test-oldest: export OPENBLAS_NUM_THREADS = 1
# Nobody reads which line of Python an operation of a compiled program stands for.
test test-slow test-oldest: export JAX_TRACEBACK_IN_LOCATIONS_LIMIT = 0

# Small problems take longer to compile than to compute: XLA optimizes little but in the files of tests/repeats.py that compute,
# and as for large arrays with OPTIMIZED=1. A flag that a version of XLA does not know would end every process.
ifndef OPTIMIZED
test test-slow test-oldest: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
LITTLE := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
endif
PYTEST := if [ -n "$(LITTLE)" ] && XLA_FLAGS="$(LITTLE)" $(RUN) -c "import jax; jax.numpy.zeros(1)" 2> /dev/null; then \
	export XLA_FLAGS="$(LITTLE) $$XLA_FLAGS"; fi; \
	$(RUN) -m pytest -n 2 --dist worksteal

test: $(VENV)/.test          ## every public function against its truth, on the newest JAX that the package index has
	$(PYTEST) -m "not slow"

test-all: lint aot test test-slow test-oldest ## everything: what `make test` leaves out, and the oldest versions

test-slow: $(VENV)/.test     ## what repeats or samples: further cases, statistics, notebooks, README, pictures
	$(PYTEST) -m slow

test-oldest: $(OLDEST)/.test ## as `make test`, on the oldest supported versions: the lower bounds of pyproject.toml
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.dev           ## formatting, style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(VENV)/.docs          ## the documentation with executed notebooks, into out/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 NTK_DOCS_EXECUTE=$${NTK_DOCS_EXECUTE-true} $(RUN) -m mkdocs build --quiet

release: $(VENV)/bin/uv      ## wheel and sdist into dist/, checked, installed in a clean environment, the demo run there
	rm -rf dist out/release
	$< build --quiet .
	$(PYTHON) .ci/check_release.py dist $<
	$(PYTHON) -m venv out/release
	$< pip install --quiet --python out/release/bin/python "$$(ls dist/*.whl)[plots,sklearn]"
	cd out/release && bin/ntk-jax demo --width 256 --out demo

colab: $(VENV)/bin/uv        ## the notebooks with the versions that Colab has; PYTHON=... for its Python
	$(PYTHON) -m venv out/colab
	$< pip install --quiet --python out/colab/bin/python -r notebooks/colab-constraints.txt
	PATH=$(CURDIR)/out/colab/bin:$$PATH python .ci/check_colab.py notebooks/*.ipynb

benchmarks: $(VENV)/.demo    ## lists the benchmarks; run one with .venv/bin/python -m benchmarks NAME
	$(RUN) -m benchmarks

aot: $(VENV)/.demo           ## what compiles for GPU and TPU without one (.aot, 1.9 GB); without it test-slow skips those
	$(RUN) -m benchmarks.ahead.devices || echo "The wheels of .aot could not be had: tests of compiled programs are skipped."

gpu:                         ## parity and speed on this machine's accelerator, with the Python that has JAX for it: PYTHON=...
	$(PYTHON) -m benchmarks gpu

clean:
	rm -rf $(VENV) $(OLDEST) .aot out

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

$(VENV)/.docs: $(VENV)/bin/uv pyproject.toml
	$< pip install --quiet --python $(RUN) -e '.[docs]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/uv pyproject.toml
	$< pip install --quiet --python $(RUN) -e '.[dev]'
	touch $@

$(OLDEST)/.test: $(OLDEST)/bin/uv pyproject.toml
	$< pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[test]'
	touch $@
