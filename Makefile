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
ROS2 := .venv-ros2
# One line a package: an install of several minutes shows that it is alive, and errors (stderr) stay whole.
PROGRESS := awk '/^(Collecting|Building|Installing)/ { line = substr($$0, 1, 100); print "  " line; fflush() }'

# TensorRT-RTX builds engines without a GPU, so that CI can; its wheels are for these machines only.
ENGINES := cpu,openvino
ifeq ($(shell uname -sm),Linux x86_64)
ENGINES := $(ENGINES),tensorrt-rtx
endif

.PHONY: help demo test tensorrt-bindings peers test-slow test-gpu test-runtime test-ros2 check format bench clean

help:
	@sed -n '2,5p' Makefile | cut -c3-; echo "  make peers | test-slow | test-runtime | test-ros2 | check | format | bench | clean"

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

# ROS 2 Jazzy from the Python package index, whose wheels are for one Python and one platform, and colcon.
# ARGS="-m slow" shows the node 3,000 images.
ROS2_PYTHON ?= python3.11
ROS2_WHEELS := rclpy rmw-fastrtps-cpp sensor-msgs diagnostic-msgs lifecycle-msgs rosidl-default-generators rosidl-core-generators \
  python-cmake-module ament-package ament-cmake ament-cmake-ros ament-cmake-gmock ament-cmake-gtest ament-cmake-pytest \
  ament-cmake-include-directories
ROS2_BUILD := build/ros2
ROS2_SOURCES := $(shell find runtime/ros2 tests/ros2/vision_msgs -type f -not -name '*.pyc')
ROS2_ENVIRONMENT = export LD_LIBRARY_PATH=$(abspath $(ROS2))/lib AMENT_PREFIX_PATH=$(abspath $(ROS2)) \
  CMAKE_PREFIX_PATH=$(abspath $(ROS2)) PATH=$(abspath $(ROS2))/bin:$$PATH ROS_HOME=$(abspath $(ROS2_BUILD))/home \
  RMW_IMPLEMENTATION=rmw_fastrtps_cpp ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST

$(ROS2)/installed: pyproject.toml
	@echo "creating $(ROS2): ROS 2 Jazzy, without torch"
	@$(ROS2_PYTHON) -m venv $(ROS2)
	@$(ROS2)/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[cpu]" pytest pytest-timeout onnx \
	  catkin_pkg colcon-core colcon-ros $(addprefix ros-jazzy-,$(ROS2_WHEELS)) | $(PROGRESS)
	@# The wheels' CMake files name folders of the machine that built them, and CMake refuses folders that are not there.
	@include=$$($(ROS2)/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	  packages=$$($(ROS2)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  find $(ROS2)/share -name '*.cmake' -exec sed -i "s#/opt/python/cp311-cp311/include/python3.11#$$include#g; \
	    s#/opt/python/cp311-cp311/lib/python3.11/site-packages#$$packages#g" {} +
	@touch $@

$(ROS2_BUILD)/built: $(ROS2)/installed $(ROS2_SOURCES)
	@echo "building the ROS 2 packages in $(ROS2_BUILD)"
	@mkdir -p $(ROS2_BUILD)
	@$(ROS2_ENVIRONMENT); colcon --log-base $(ROS2_BUILD)/log build --base-paths runtime/ros2 tests/ros2/vision_msgs \
	  --build-base $(ROS2_BUILD)/build --install-base $(ROS2_BUILD)/install >$(ROS2_BUILD)/build.log 2>&1 \
	  || { cat $(ROS2_BUILD)/build.log; exit 1; }
	@touch $@

$(ROS2_BUILD)/calibrated: models/cifar10-w8.pt | $(VENV)/installed
	@mkdir -p $(ROS2_BUILD)
	@$(VENV)/bin/flss-edge export models/cifar10-w8.pt -o $(ROS2_BUILD)/c10.bundle --data examples/cifar10/test --overwrite
	@$(VENV)/bin/flss-edge calibrate $(ROS2_BUILD)/c10.bundle --data examples/cifar10/calibration --split test --budget 0.10
	@touch $@

ifeq ($(shell uname -sm):$(shell $(ROS2_PYTHON) -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>&1),Linux x86_64:3.11)
test-ros2: $(ROS2_BUILD)/built $(ROS2_BUILD)/calibrated
	@$(ROS2_ENVIRONMENT) FLSS_ROS2_BUNDLE=$(abspath $(ROS2_BUILD))/c10.bundle; \
	  set +u; . $(ROS2_BUILD)/install/local_setup.sh; set -u; \
	  python -m pytest tests/ros2 -m "not slow" $(ARGS)
else
test-ros2:
	@echo "SKIPPED test-ros2: ROS 2 is on the Python package index for CPython 3.11 on Linux x86-64, and $(ROS2_PYTHON) here is none"
endif

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
	rm -rf $(VENV) $(ROBOT) $(ROS2) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
