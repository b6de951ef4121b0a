# make demo     installs into .venv and compares two guides on the digits
# make test     the tests, in eleven minutes on two cores; make test-all adds the long studies and the other ArviZ generation
# make peers    NumPyro and pythae in an environment of their own, for python -m benchmarks.step
# make lint types format build clean
#
# Another interpreter, in an environment of its own:  make test PYTHON=python3.12

ifeq ($(origin PYTHON), undefined)
    PYTHONS := python3.11 python3 python3.12 python3.13
    VENV := .venv
else
    PYTHONS := $(PYTHON)
    VENV := .venv-$(notdir $(PYTHON))
endif

# Options for the program or for pytest:  make demo ARGS="--seed 1",  make test ARGS="-k kl -x"
ARGS ?=
# Test processes; conftest.py gives each one thread, for small tensors gain nothing from more
JOBS ?= 2

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
pytest := $(python) -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo install test test-all test-all-here lint types format build peers clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(python) -m ppl_vae compare --overwrite $(ARGS)

install: $(VENV)/.installed-test $(VENV)/.installed-dev

test: $(VENV)/.installed-test
	$(pytest) $(ARGS)

# Python 3.11 has ArviZ 0.23 and later ones have ArviZ 1.x, so that two interpreters see both.
test-all: test-all-here
ifeq ($(origin PYTHON), undefined)
	@if $(python) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' \
	    && other=$$(.ci/find-python python3.12 python3.13 2>/dev/null); then \
	    $(MAKE) test-all-here PYTHON="$$other"; \
	else \
	    echo "Only one ArviZ generation was tested: it takes Python 3.11 and a later one, and one of them was not found."; \
	fi
else
	@echo "Only the ArviZ generation of PYTHON=$(PYTHON) was tested: make test-all without PYTHON looks for both."
endif

test-all-here: $(VENV)/.installed-test
	$(pytest) -m "" $(ARGS)

lint: $(VENV)/.installed-dev
	$(python) -m ruff check
	$(python) -m ruff format --check

types: $(VENV)/.installed-dev
	$(python) -m mypy

format: $(VENV)/.installed-dev
	$(python) -m ruff check --fix
	$(python) -m ruff format

build: $(VENV)/.installed-dev
	$(python) -m build

# Never requirements of the package: beside $(VENV), and on the same Python and torch, so that the libraries are compared.
peers: $(VENV)-peers/.installed

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find ppl_vae tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Each stamp is made once, and again where pyproject.toml has changed since.
$(VENV)/.created:
	@.ci/find-python $(python) >/dev/null 2>&1 || { \
	    interpreter=$$(.ci/find-python $(PYTHONS)) || { echo "Name one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	    echo "Making $(VENV) with $$interpreter"; \
	    "$$interpreter" -m venv $(VENV); \
	}
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(pip) install --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml
	$(pip) install --editable ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml
	$(pip) install --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)-peers/.installed: $(VENV)/.installed benchmarks/peers/requirements.txt
	$(python) -m venv $(VENV)-peers
	$(python) -c 'from importlib.metadata import version; print("torch==" + version("torch").partition("+")[0])' >$(VENV)-peers/constraints.txt
	$(VENV)-peers/bin/python -m pip --disable-pip-version-check install \
	    --requirement benchmarks/peers/requirements.txt --constraint $(VENV)-peers/constraints.txt
	@touch $@
