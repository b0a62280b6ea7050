# The one entrance: people, hooks and CI call the same targets. Each installs what it needs, once.
#   make demo          export, verify, calibrate, predict and bench the shipped checkpoint on real images
#   make test          the test suite
#   make test-gpu      what needs a GPU; with BUNDLE=c10.bundle without torch, in the machine's own Python
#   make PYTHON=python3.12 test    with another interpreter (remove .venv first)

PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
ROBOT := .venv-runtime
# One line a package: an install of several minutes shows that it is alive, and errors (stderr) stay whole.
PROGRESS := awk '/^(Collecting|Building|Installing)/ { line = substr($$0, 1, 100); print "  " line; fflush() }'

# TensorRT-RTX builds engines without a GPU, so that CI can; its wheels are for these machines only.
ENGINES := cpu,openvino
ifeq ($(shell uname -sm),Linux x86_64)
ENGINES := $(ENGINES),tensorrt-rtx
endif

.PHONY: help demo test tensorrt-bindings peers test-slow test-gpu test-runtime check format bench clean

help:
	@sed -n '2,5p' Makefile | cut -c3-; echo "  make peers | test-slow | test-runtime | check | format | bench | clean"

$(VENV)/installed: pyproject.toml
	@echo "creating $(VENV) with torch, onnx, the engines ($(ENGINES)) and the test tools (several minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[train,$(ENGINES),plot,dev]" | $(PROGRESS)
	@touch $@

$(ROBOT)/installed: pyproject.toml
	@echo "creating $(ROBOT): the robot's environment, without torch"
	@$(PYTHON) -m venv $(ROBOT)
	@$(ROBOT)/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[cpu,openvino,test]" | $(PROGRESS)
	@touch $@

demo: $(VENV)/installed
	@$(VENV)/bin/flss-edge demo

# Names of TensorRT's interface are checked against the oldest and the newest versions, which do not import without a
# GPU: their bindings (1 MB each) are fetched and read, not installed.
BINDINGS := build/tensorrt-bindings
$(BINDINGS)/fetched: | $(VENV)/installed
	@mkdir -p $(BINDINGS)
	@for wheel in tensorrt-cu12-bindings==10.3.0 "tensorrt-cu12-bindings==10.16.*" "tensorrt-cu13-bindings==11.*"; do \
	  $(VENV)/bin/python -m pip download --disable-pip-version-check -q --no-deps --only-binary=:all: -d $(BINDINGS) \
	    --python-version 3.11 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 "$$wheel"; done
	@touch $@

tensorrt-bindings: $(BINDINGS)/fetched

test: $(VENV)/installed $(BINDINGS)/fetched
	@$(VENV)/bin/python -m pytest -m "not slow and not gpu" $(ARGS)

# Independent implementations of the attacks, for tests and benchmarks/attacks.py only. adv-lib needs visdom, whose
# source package builds with older setuptools alone; torchattacks pins an old requests that nothing here needs.
$(VENV)/peers: $(VENV)/installed
	@$(VENV)/bin/python -m pip install --disable-pip-version-check -q "setuptools<81" wheel packaging
	@$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-build-isolation visdom tqdm requests
	@$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps "adv-lib>=0.2.8" "torchattacks>=3.5.1"
	@touch $@

peers: $(VENV)/peers

test-slow: $(VENV)/peers
	@$(VENV)/bin/python -m pytest -m "slow and not gpu" $(ARGS)

# With a bundle: in this machine's own Python, which needs NumPy and an engine's wheels only (a Jetson, a GPU server).
ifdef BUNDLE
test-gpu:
	@PYTHONPATH=runtime $(PYTHON) tests/gpu/gpu_checks.py "$(BUNDLE)" $(ARGS)
else
test-gpu: $(VENV)/installed
	@$(VENV)/bin/python -m pytest -m gpu $(ARGS)
endif

test-runtime: $(ROBOT)/installed
	@$(ROBOT)/bin/python -c "import importlib.util as u, sys; sys.exit('torch is installed here' if u.find_spec('torch') else 0)"
	@$(ROBOT)/bin/python -m pytest tests/runtime -m "not slow and not gpu" $(ARGS)

check: $(VENV)/installed
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: $(VENV)/installed
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

# Some four minutes on a quiet machine; exit 5 means that it was not quiet enough for the figures to be quoted.
bench: $(VENV)/installed
	@mkdir -p build/bench
	@$(VENV)/bin/flss-edge export models/cifar10-w8.pt -o build/bench/cifar10.bundle --data examples/cifar10/test --overwrite
	@$(VENV)/bin/flss-edge bench build/bench/cifar10.bundle --profile standard -o build/bench/result.json --overwrite $(ARGS)

clean:
	rm -rf $(VENV) $(ROBOT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
