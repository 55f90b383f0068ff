# Everything happens in .venv, which each target makes when it is not there.
#   make setup | demo | test | test-all | test-classic | test-faults | bench | docs | browser | lint | clean
# PYTHON=python3.12 chooses another interpreter, TORCH_INDEX= another source of torch.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := setup
.PHONY: setup demo test test-all test-classic test-faults bench docs browser lint clean

# 3.11 is the tested one; then whatever fits.
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.10; do \
	$$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
CLASSIC := .venv-classic
STAMP := $(VENV)/.installed
CLASSIC_STAMP := $(CLASSIC)/.installed

# Wheels only, so that no compiler is needed. These two have no wheels; their sources are pure
# Python when torch is absent from the build environment, as it is in pip's own.
SOURCES := onedl-mmcv,onedl-mmdetection
PIP := -m pip --disable-pip-version-check --no-input
INSTALL := install --progress-bar off --only-binary :all: --no-binary $(SOURCES) -c constraints.txt

# Without a GPU the CPU build of torch is enough, and a tenth of the size: set this to the address of
# the CPU wheels that PyTorch's installation page gives.
TORCH_INDEX ?=
MARKS ?= not slow and not gpu
# test processes side by side
JOBS ?= 2
# arguments of hgd-det demo, as DEMO='--seed 1 --work-dir work_dirs/demo1'
DEMO ?=
# arguments of tools/benchmark.py, as BENCH='step memory --csv results/benchmark_cpu.csv'
BENCH ?=

setup: $(STAMP)

# $(1): the environment's folder
define environment
	@test -n "$(PYTHON)" || { echo 'no Python 3.10 to 3.12 found; give one: make PYTHON=...' >&2; \
		exit 2; }
	@$(PYTHON) -c '$(FITS)' || { echo '$(PYTHON) is not Python 3.10 to 3.12' >&2; exit 2; }
	@# Debian keeps ensurepip, and with it `venv`, in a package of its own; its pip can do it too.
	$(PYTHON) -m venv $(1) || { $(PYTHON) -m venv --clear --without-pip $(1) && \
		$(PYTHON) -m pip --python $(1)/bin/python install pip; }
	@# An index that does not answer is no reason to fail: the default one has torch as well. What
	@# torch depends on comes from there in any case.
	$(if $(TORCH_INDEX),$(1)/bin/python $(PIP) --retries 1 --timeout 15 $(INSTALL) --no-deps \
		--index-url $(TORCH_INDEX) torch || echo 'taking torch from the default index')
	$(1)/bin/python $(PIP) $(INSTALL) torch
endef

# opencv-python and its headless twin both come in and share one folder. The headless one must be
# the last: it needs no libGL.
define headless
	$(1)/bin/python $(PIP) $(INSTALL) --force-reinstall --no-deps opencv-python-headless
	$(1)/bin/python -c 'import hgd_det; hgd_det.compat.check(); print(hgd_det.compat.versions())'
	touch $@
endef

$(STAMP): setup.py constraints.txt Makefile
	$(call environment,$(VENV))
	$(VENV)/bin/python $(PIP) $(INSTALL) -e '.[dev]'
	@# Tests compare with its losses. Those need torch alone; what else it depends on stays out.
	$(VENV)/bin/python $(PIP) $(INSTALL) --no-deps torchdistill
	$(call headless,$(VENV))

# The packages most users still have. mmcv-lite is mmcv without compiled operators, which is what
# can be had as a wheel; setuptools below 81, as mmengine 0.10.7 imports pkg_resources.
$(CLASSIC_STAMP): setup.py constraints.txt Makefile
	$(call environment,$(CLASSIC))
	$(CLASSIC)/bin/python $(PIP) $(INSTALL) mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 \
		'setuptools<81' faster-coco-eval onnx onnxruntime onnxscript safetensors pytest pytest-xdist hypothesis tensorboard
	$(CLASSIC)/bin/python $(PIP) install --no-deps --no-build-isolation -e .
	$(call headless,$(CLASSIC))

demo: $(STAMP)
	$(VENV)/bin/hgd-det demo $(DEMO)

# What a change is tried with; a file's tests stay in one process.
test: $(STAMP)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -m '$(MARKS) and not classic'

# The rest: every combination, whole runs, other detectors, attacks, several processes.
test-all: $(STAMP) test
	$(MAKE) test MARKS='slow and not gpu'

test-classic: $(CLASSIC_STAMP)
	$(CLASSIC)/bin/python -m pytest -n $(JOBS) --dist loadfile -m '$(MARKS)'

lint: $(STAMP)
	$(VENV)/bin/ruff check .

test-faults: $(STAMP)
	HGD_DET_FAULTS=50 $(VENV)/bin/python -m pytest tests/faults

bench: $(STAMP)
	$(VENV)/bin/python tools/benchmark.py $(BENCH)

# The documentation's tables of methods and options, out of the code, the configs and results/.
docs: $(STAMP)
	$(VENV)/bin/hgd-det methods --write docs/methods.md docs/methods/*.md

# What tests/report/test_browser.py opens the report in: Debian's Chromium, which needs root, and
# playwright-core, which brings no browser of its own.
browser:
	@command -v node >/dev/null || { echo 'node is missing: apt-get install nodejs npm' >&2; exit 2; }
	@command -v chromium chromium-browser google-chrome >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	npm install --no-audit --no-fund --prefix .browser playwright-core@1

clean:
	rm -rf $(VENV) $(CLASSIC) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
