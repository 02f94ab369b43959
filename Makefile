# make demo    raw data to segmentations on a small made-up CT data set (a few minutes, no GPU, no network)
# make test    style, types and tests
# make lint    style and types only
# make bench   the measurements of documentation/benchmarks.md that need no GPU
# make nnunet-env   nnU-Net in an environment of its own, .nnunet_env, for masam_compare
#
# The first call creates .venv and installs the tested set; later calls start at once.

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.masam_installed
# Two makes started side by side install one after the other, where the system has flock.
LOCK := $(if $(shell command -v flock),flock Makefile)

# Tests run in processes side by side; each computes on one thread.
JOBS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint bench install nnunet-env

demo: install
	$(BIN)/masam_demo $(ARGS)

test: install lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)

# torch comes from where pip is told to look: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for a machine without a GPU
nnunet-env:
	@echo "installing nnU-Net into .nnunet_env: once, several minutes"
	$(PYTHON) -m venv .nnunet_env
	.nnunet_env/bin/python -m pip install -qq --disable-pip-version-check -c constraints-nnunet.txt nnunetv2
	@.nnunet_env/bin/python -c 'import nnunetv2.training.nnUNetTrainer.nnUNetTrainer' && echo "nnU-Net is ready: masam_compare finds it"

install:
	@$(LOCK) $(MAKE) --no-print-directory $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py
	@echo "installing the tested set of packages into $(VENV): once, a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)
