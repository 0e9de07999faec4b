# `make help` lists the targets. Needs Python 3.10 or newer and a C++17 compiler; everything else
# goes into .venv. Stamp files there keep a second run quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock
BUILD := setuptools wheel pybind11
SAMPLE := engine/samples/austen.flac
TEXT ?= Hello there. Three seconds of a voice are enough to speak any text in it.
NATIVE := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h csrc/cuda/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PEOPLE ?= people
.PHONY: help demo quality samples test lint types wheel bench gpu offline accuracy sanitize load soak cluster fuzz clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

# Its own step: the pinned build tools, so that the next ones build without isolation.
$(VENV)/.tools: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; run: make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(BUILD)
	@touch $@

$(VENV)/.core: $(VENV)/.tools pyproject.toml $(NATIVE)  # without CUDA kernels: for a CPU
	CLONEWAVE_CUDA=0 $(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.tools pyproject.toml $(NATIVE)
	$(PIP) --no-build-isolation -e '.[dev,train,eval,serve]'
	$(PIP) --no-deps Resemblyzer  # its webrtcvad is replaced by webrtcvad-wheels
	@touch $(VENV)/.core $@

demo: $(VENV)/.core  ## clone the bundled sample, speak, write demo/hello.wav, print how fast
	@mkdir -p demo
	$(BIN)/clonewave clone $(SAMPLE) -o demo/voice.safetensors --consent "public-domain recording"
	$(BIN)/clonewave say "$(TEXT)" -v demo/voice.safetensors -o demo/hello.wav

test: lint types  ## lint, type checks and the whole test suite
	$(BIN)/pytest -q

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## mypy, over the tree laid out as it is installed
	@rm -rf build/types && mkdir -p build/types/engine
	@ln -s $(CURDIR)/engine/* $(CURDIR)/kernels build/types/engine/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

wheel: $(VENV)/.tools  ## dist/clonewave-*.whl
	rm -rf build/lib build/bdist.* build/lib.*
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

bench: $(VENV)/.dev  ## every benchmark; each kernel is checked before it is timed
	$(BIN)/pytest -q bench

gpu: $(VENV)/.dev  ## all that a GPU has to show: tests, sanitizer, benchmarks, in under 10 minutes
	$(BIN)/python bench/gpu.py

# For a GPU machine that has torch, triton, numpy and pytest but reaches no index (docs/gpu.md).
OFFLINE_PYTHON ?= 3.12
OFFLINE = soundfile cffi pycparser soxr babel dateparser pytz tzlocal jsonlines num2words python-crfsuite
SDISTS = gruut gruut-ipa gruut_lang_en docopt
offline: $(VENV)/.tools  ## .whl/: what such a machine lacks, 30 MB, for `bench/gpu.py --wheels .whl`
	$(BIN)/python -m pip wheel -q -c requirements.lock --no-deps -w .whl $(SDISTS)
	$(BIN)/python -m pip download -q -c requirements.lock --no-deps --only-binary=:all: -d .whl \
		--python-version $(OFFLINE_PYTHON) --implementation cp --platform any \
		$(foreach tag,2_28 2_17,--platform manylinux_$(tag)_x86_64) \
		--platform manylinux2014_x86_64 $(OFFLINE)

# Triton's interpreter takes ten minutes for each precision; the emulation a minute for all.
accuracy: $(VENV)/.dev  ## accuracy of the GPU kernels over 4,096 steps on this CPU, for an hour
	$(BIN)/pytest -q --accuracy-steps 4096 tests/test_cuda_emulation.py -k accurate
	TRITON_INTERPRET=1 $(BIN)/pytest -q --accuracy-steps 4096 tests/gpu_triton -k "accurate and bands3"

# In a copy laid out as it is installed; Python itself is not built with the sanitizers, so they
# are loaded before it.
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))
sanitize: $(VENV)/.dev  ## kernel tests under AddressSanitizer and UBSan; builds for minutes
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r engine kernels csrc tests setup.py pyproject.toml README.md build/sanitize
	rm -f build/sanitize/kernels/*.so && ln -s ../kernels build/sanitize/engine/kernels
	cd build/sanitize && CLONEWAVE_SANITIZE=1 ../../$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(SANITIZERS)" \
		../../$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_kernels.py tests/test_decoder_kernel.py

THREE := --samples 3 --seconds 30
METHODS := docs/results/methods
# Two hours of one core. PEOPLE holds a folder of recordings for each person (docs/quality.md).
quality: $(VENV)/.dev  ## measure the shipped weights on PEOPLE=folder, write docs/results and card
	$(BIN)/clonewave evaluate $(PEOPLE) --reference --out docs/results
	$(BIN)/clonewave evaluate $(PEOPLE) --sweep --out docs/results
	$(BIN)/clonewave evaluate --robustness --out docs/results
	$(BIN)/clonewave evaluate $(PEOPLE) --paper --budget 20 --out docs/results/paper
	$(BIN)/clonewave evaluate $(PEOPLE) $(THREE) --method encode,adapt-model --out $(METHODS)
	$(BIN)/clonewave evaluate $(PEOPLE) $(THREE) --method encode,adapt-embedding --out $(METHODS)-embedding
	$(BIN)/clonewave evaluate $(PEOPLE) --method encode,adapt-model --out $(METHODS)-3s
	$(BIN)/clonewave info --card docs/results

samples: $(VENV)/.dev  ## docs/samples/index.html: originals and clones to hear
	$(BIN)/clonewave samples docs/samples/people -o docs/samples

SERVER_URL := http://127.0.0.1:8199
WITH_SERVER = @$(BIN)/clonewave serve --port 8199 --rate-limit 0 --voices build/voices & pid=$$!; \
	trap 'kill $$pid' EXIT; \
	until $(BIN)/python -c 'from urllib.request import urlopen; urlopen("$(SERVER_URL)/readyz")' \
	  2>/dev/null; do kill -0 $$pid || exit 1; sleep 1; done;
LOAD = OMP_NUM_THREADS=1 $(BIN)/python bench/load.py --url $(SERVER_URL)

load: $(VENV)/.dev  ## a server alone and at 1 to 10 times its capacity; kept in bench/results
	$(WITH_SERVER) $(LOAD) --alone --record first_audio && \
	$(LOAD) --multiples 1,2,4,10 --record overload

# 10,000 lines and 50 kills, then half an hour of mixed load: memory must not grow by 100 MB.
SOAK_S ?= 1800
soak: $(VENV)/.dev  ## bulk runs killed 50 times, then 30 minutes of a loaded server; kept in bench/results
	PYTHONPATH=. $(BIN)/python bench/fuzz.py bulk
	$(WITH_SERVER) $(LOAD) --soak $$pid --seconds $(SOAK_S) --deadline 110 --record soak

# Not part of `make test`: Ray is 200 MB, and its processes take a minute to start on two cores.
cluster: $(VENV)/.dev  ## tests of serving and bulk runs on more than one process; installs Ray
	$(PIP) --no-build-isolation -e '.[cluster]'
	$(BIN)/pytest -q tests/test_cluster.py

fuzz: $(VENV)/.dev  ## damaged voice files, audio and texts, hostile requests; counts go to bench/results
	$(BIN)/pytest -q tests/test_voice.py -k damage --damaged-files 30000
	PYTHONPATH=. $(BIN)/python bench/fuzz.py all

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f kernels/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
