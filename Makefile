# make demo    raw data to segmentations on a small made-up CT data set (a few minutes, no GPU, no network)
# make test    style, types and tests
# make quick   the same without the tests that are marked slow
# make lint    style and types only
# make docs    the reference pages, from the parsers and the plan's fields
# make bench   the measurements of documentation/benchmarks.md that need no GPU
# make faults  every command killed, ended and refused at every change of a file, and run again (hours; ARGS="--sample 20")
# make fuzz    damaged and hostile files for every reader (ten minutes; ARGS="--minutes 60 --seed 7")
# make lock    constraints-hashes.txt anew, after constraints.txt changed
# make audit   known vulnerabilities of the tested set (needs pypi.org's own answers, not a mirror)
# make nnunet-env   nnU-Net in an environment of its own, .nnunet_env, for masam_compare
#
# The first call creates .venv and installs the tested set; later calls start at once.

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.masam_installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Two makes started side by side install one after the other, where the system has flock.
LOCK := $(if $(shell command -v flock),flock Makefile)

# Tests run in processes side by side; each computes on one thread.
JOBS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test quick lint docs bench faults fuzz lock audit install nnunet-env

demo: install
	$(BIN)/masam_demo $(ARGS)

test: install lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

quick: install lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: install
	$(BIN)/python -m tests.reference_pages

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)

faults: install
	$(ONE_THREAD) $(BIN)/python -m tests.faults $(ARGS)

fuzz: install
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz $(ARGS)

# The files of each version by their SHA-256. torch is left out: its builds for CPUs and GPUs are different files of one version.
lock:
	$(PYTHON) -m venv .lock_env && .lock_env/bin/python -m pip install -qq uv
	(echo "# make lock wrote this, from constraints.txt"; grep -v '^torch==' constraints.txt | .lock_env/bin/uv pip compile -q - \
	  --generate-hashes --no-deps --universal --python-version 3.11 --no-header --no-annotate) > constraints-hashes.txt.new
	mv constraints-hashes.txt.new constraints-hashes.txt && rm -r .lock_env

audit:
	$(PYTHON) -m venv .audit_env && .audit_env/bin/python -m pip install -qq pip-audit
	.audit_env/bin/pip-audit --no-deps --disable-pip -r constraints-hashes.txt; status=$$?; rm -r .audit_env; exit $$status

# torch comes from where pip is told to look: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for a machine without a GPU
nnunet-env:
	@echo "installing nnU-Net into .nnunet_env: once, several minutes"
	$(PYTHON) -m venv .nnunet_env
	.nnunet_env/bin/python -m pip install -qq --disable-pip-version-check -c constraints-nnunet.txt nnunetv2
	@.nnunet_env/bin/python -c 'import nnunetv2.training.nnUNetTrainer.nnUNetTrainer' && echo "nnU-Net is ready: masam_compare finds it"

install:
	@$(LOCK) $(MAKE) --no-print-directory $(STAMP)

$(STAMP): pyproject.toml constraints.txt constraints-hashes.txt setup.py
	@echo "installing the tested set of packages into $(VENV): once, a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --require-hashes -r constraints-hashes.txt
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $(STAMP)
