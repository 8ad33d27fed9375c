# Two commands for newcomers: `make up` (serve the demo) and `make test`. The rest is for those who work on it.
# The first interpreter from 3.11 to 3.13 (the engine's wheels end there); the gateway alone also runs on newer ones.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done; echo python3)
RUN    := .venv/bin/python
PIN    := $(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes
SPREAD := $(RUN) -m pytest -n auto --dist loadgroup
# Images set it for their size: then every process compiles all that it imports, 4 s of each test process.
unexport PYTHONDONTWRITEBYTECODE
# What runs through the compiled files with every kind of body, stream, limit and fault; the rest says nothing about them.
HOT     := $(addprefix tests/gateway/,v1 $(patsubst %,test_%.py,protocol streamed_bodies tokens metrics inference bodies_e2e \
	limits_e2e access_e2e callers canary_e2e slots_e2e what_streams_keep upstream_faults_e2e no_free_rides no_leaks overload))
SOURCES := $(shell find adapters configs gateway training -type f -not -name '*.pyc')

.PHONY: up test test-compiled test-fast check format bench pins demo clean help

up: .venv/ready          ## serve the demo (or your model: make up ARGS="--model PATH") on this machine
	@.venv/bin/loragate up $(ARGS)

test: .venv/dev          ## every test, real vLLM and real LLaMA-Factory included (first run: about 10 minutes more)
	@echo "1 of 2: what needs neither vLLM nor LLaMA-Factory, in several processes"; \
	$(SPREAD) -m "not engine and not trainer" $(ARGS); fast=$$?; \
	echo "2 of 2: real vLLM and real LLaMA-Factory, in one process that starts the engine once"; \
	$(RUN) -m pytest -m "engine or trainer" $(ARGS); real=$$?; \
	if [ $$real = 5 ]; then real=0; elif [ $$fast = 5 ]; then fast=0; fi; \
	[ $$fast != 0 ] || exit $$real; exit $$fast  # 5: nothing collected, fine for one of the two (ARGS may name files)

test-compiled: .venv/ready .venv/dev ## the hot path's tests against what is compiled of it, in a copy of the tree
	@rm -rf build/compiled && cp -R build/loragate build/compiled && cp -R bench deploy docs tests Makefile *.md build/compiled/
	@if ls build/compiled/gateway/v1/proxy.*.so >/dev/null 2>&1; then \
	cd build/compiled && ../../$(SPREAD) -m "not engine and not trainer" -p no:cacheprovider $(HOT) $(ARGS); \
	else echo "Nothing is compiled here (no C compiler): the tests above are all there is."; fi

test-fast: .venv/dev     ## the tests that need neither and take no seconds each: two minutes on two cores
	@$(SPREAD) -m "not engine and not trainer and not slow" $(ARGS)

check: .venv/dev         ## lint, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

format: .venv/dev        ## put the source in order
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: .venv/ready .venv/dev         ## side by side with nginx, vllm-router and LiteLLM; writes bench/RESULTS.md (about 15 minutes)
	@$(RUN) -m bench $(ARGS)

pins: .venv/dev          ## resolve the pins of configs/environments anew
	@$(RUN) -m pip install --quiet --disable-pip-version-check uv
	@.ci/pins

demo: .venv/dev          ## build the shipped demo anew: make demo TRAINING_PYTHON=/path/to/python/with/llamafactory
	@test -n "$(TRAINING_PYTHON)" || { echo "Name an interpreter that has llamafactory: make demo TRAINING_PYTHON=/path/to/python" >&2; exit 2; }
	@$(RUN) -m training.demo --training-python $(TRAINING_PYTHON) --out configs/demo $(ARGS)

clean:                   ## remove the environment in this folder (the data directory stays)
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis

help:                    ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.venv/pins: configs/environments/gateway.txt configs/environments/train.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "loragate needs Python 3.11 or newer. Install one, then say: make up PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) …"
	@$(PYTHON) -c 'import runpy, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); sys.argv[1:] = [".venv"]; \
	runpy.run_module("venv", run_name="__main__")'  # Ctrl-C shows no traceback
	@echo "Installing what the gateway and the data tools need …"
	@$(PIN) -r configs/environments/gateway.txt && $(PIN) -r configs/environments/train.txt || \
	{ echo "pip could not install it, for the reason above. Check the network, the proxy and pip's index, then start again." >&2; exit 1; }
	@touch $@

# Installed, not linked to the source: `make up` and `make bench` run what users run. Tests run the source itself.
.venv/ready: .venv/pins deploy/install.sh pyproject.toml $(SOURCES)
	@deploy/install.sh $(RUN)
	@touch $@

.venv/dev: .venv/pins configs/environments/dev.txt
	@echo "Adding the test tools …"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r configs/environments/dev.txt
	@touch $@
