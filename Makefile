# Two commands for newcomers: `make up` (serve the demo) and `make test`. The rest is for those who work on it.
# The first interpreter from 3.11 to 3.13 (the engine's wheels end there); the gateway alone also runs on newer ones.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done; echo python3)
RUN    := .venv/bin/python
SOURCES := $(shell find adapters configs gateway training -type f -not -name '*.pyc')

.PHONY: up test test-fast check format bench pins demo clean help

up: .venv/ready          ## serve the demo (or your model: make up ARGS="--model PATH") on this machine
	@.venv/bin/loragate up $(ARGS)

test: .venv/dev          ## every test, real vLLM and real LLaMA-Factory included (first run: about 10 minutes more)
	@$(RUN) -m pytest $(ARGS)

test-fast: .venv/dev     ## the tests that need neither: under a minute
	@$(RUN) -m pytest -m "not engine and not trainer" $(ARGS)

check: .venv/dev         ## lint, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

format: .venv/dev        ## put the source in order
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: .venv/ready .venv/dev         ## side by side with nginx, vllm-router and LiteLLM; writes bench/RESULTS.md (about 40 minutes)
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

.venv/pins: configs/environments/gateway.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "loragate needs Python 3.11 or newer. Install one, then say: make up PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) and compiling the hot path (one to two minutes, the first time) …"
	@$(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r configs/environments/gateway.txt
	@touch $@

# Installed, not linked to the source: `make up` and `make bench` run what users run. Tests run the source itself.
.venv/ready: .venv/pins deploy/install.sh pyproject.toml $(SOURCES)
	@deploy/install.sh $(RUN)
	@touch $@

.venv/dev: .venv/pins configs/environments/dev.txt
	@echo "Adding the test tools …"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r configs/environments/dev.txt
	@touch $@
