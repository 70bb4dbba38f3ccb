# make demo      sets everything up and runs the main job
# make test      sets everything up and runs the tests
# make test LANE=current    the same with TensorFlow 2.21, tf_keras and Python 3.12, in .venv-current
# make bench     sets everything up, times the ops, recurrent layers and range sync; rows and plots go to out/
# make slurm-test    sets everything up and runs a job on a real Slurm of one node (Debian's slurm-wlm, as root)
# make elastic-test  sets everything up and kills ten workers of an elastic job
# make sanitize   runs the core's C++ tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
#
# Set-up makes .venv, installs what pyproject.toml names, builds Horovod against the installed TensorFlow,
# builds dqat, and fetches the data. Each step leaves a stamp: what is there already is not done again.

# Home is the version that Horovod and tensorflow-addons are made for. Current has neither, and runs a part of the tests.
LANE ?= home
ifeq ($(LANE),home)
VENV := .venv
VERSION := 3.11
TENSORFLOW := 'tensorflow==2.15.1' 'numpy<2'
EXTRAS := horovod,test
BUILD :=
TESTS :=
else ifeq ($(LANE),current)
VENV := .venv-current
VERSION := 3.12
TENSORFLOW := 'tensorflow==2.21.*' 'tf_keras==2.21.*'
EXTRAS := test
BUILD := -C cmake.define.DQAT_CUDA=OFF
TESTS := $(addprefix tests/test_,$(addsuffix .py,algorithms annotate export model native \
  observers quantize saving subclassed targets tfmot_examples))
else
$(error LANE must be home or current, got $(LANE))
endif
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python$(VERSION) || command -v python3)
DATA := data/JapaneseVowels/JapaneseVowels_TEST.ts
SOURCES := $(shell find cc -type f) CMakeLists.txt pyproject.toml
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

HOROVOD := HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
  HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO CMAKE_POLICY_VERSION_MINIMUM=3.5

.PHONY: setup demo test bench slurm-test elastic-test sanitize lint format clean
.DELETE_ON_ERROR:

setup: $(VENV)/dqat.stamp $(DATA)

demo: setup
	horovodrun -np 2 --disable-cache python launch/train_sequence.py

test: setup lint
	python -m pytest -n 2 --dist loadfile $(TESTS)

bench: $(VENV)/bench.stamp
	python -m benchmarks.ops --json out/ops.json --plot out/ops.png
	python -m benchmarks.distribution --json out/distribution.json --plot out/distribution.png
	python -m benchmarks.recurrent --json out/recurrent.json
	python -m benchmarks.recurrent_products --json out/products.json

slurm-test: setup
	python -m pytest tests/distributed/test_slurm.py

elastic-test: setup
	ELASTIC_KILLS=10 python -m pytest tests/distributed/test_elastic.py

# Needs cmake, g++ and GoogleTest, but neither Python nor TensorFlow. Only SpreadTest starts threads.
sanitize:
	@mkdir -p build
	@for sanitizer in address undefined thread; do \
	  echo "== $$sanitizer" && \
	  cmake -S tests/cc -B build/cc-$$sanitizer -DDQAT_SANITIZE=$$sanitizer -Wno-dev > build/cc-$$sanitizer.log 2>&1 \
	    || { grep -m1 GoogleTest build/cc-$$sanitizer.log || cat build/cc-$$sanitizer.log; exit 1; }; \
	  cmake --build build/cc-$$sanitizer --parallel 2 > build/cc-$$sanitizer.log 2>&1 \
	    || { cat build/cc-$$sanitizer.log; exit 1; }; \
	  filter='*'; if [ $$sanitizer = thread ]; then filter='SpreadTest.*'; fi; \
	  build/cc-$$sanitizer/core_tests --gtest_brief=1 --gtest_filter="$$filter" || exit 1; \
	done

lint: $(VENV)/dqat.stamp
	ruff check .
	ruff format --check .
	clang-format --dry-run --Werror $$(find cc tests/cc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/dqat.stamp
	ruff check --fix .
	ruff format .
	clang-format -i $$(find cc tests/cc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

clean:
	rm -rf .venv .venv-current build data out

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' || \
	  { echo "dqat's set-up, lane $(LANE), needs Python $(VERSION); $(PYTHON) is $$($(PYTHON) -V). Try make PYTHON=/path/to/python$(VERSION)"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s, sys; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	  { echo "The headers of $(PYTHON) are missing (Debian: apt-get install python3-dev)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install -q 'pip<26' 'setuptools<81' wheel
	touch $@

# Build tools come from PyPI too, so that the machine needs only python3, g++ and make.
$(VENV)/tensorflow.stamp: $(VENV)/venv.stamp
	python -m pip install -q $(TENSORFLOW) 'cmake>=3.26' ninja 'scikit-build-core>=0.11' 'pybind11>=2.13'
	touch $@

$(VENV)/horovod.stamp: $(VENV)/tensorflow.stamp
	@echo "Building Horovod 0.28.1 against TensorFlow 2.15.1: about 3 minutes"
	$(HOROVOD) python -m pip install -q --no-build-isolation 'horovod==0.28.1'
	touch $@

$(VENV)/dqat.stamp: $(if $(findstring horovod,$(EXTRAS)),$(VENV)/horovod.stamp,$(VENV)/tensorflow.stamp) $(SOURCES)
	python -m pip install -q --no-build-isolation $(BUILD) -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/dqat.stamp
	python -m pip install -q --no-build-isolation -e '.[horovod,test,bench]'
	touch $@

$(DATA): launch/fetch_data.py $(VENV)/venv.stamp
	python launch/fetch_data.py data
