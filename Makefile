# Works from a fresh clone with Python 3.11 and pip. `make` alone says what there is to do.

SHELL := /bin/sh
STAMP := .venv/.complete
BIN := .venv/bin/python

# The first of these that runs; `make PYTHON=/path/to/python3.11 ...` names another one.
PYTHON ?= $(shell for python in python3.11 python3; do \
	if $$python -c '' 2>/dev/null; then echo $$python; break; fi; done)

.DELETE_ON_ERROR:
.PHONY: help demo test venv lint types scripts container-test clean

help: ## say what there is to do (this text)
	@echo 'LFP-ViT: from a table of LFP traces to an honestly evaluated transformer.'
	@echo
	@echo 'New here? `make demo` goes the whole way with generated recordings.'
	@echo 'Changed something? `make test` checks it.'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile \
		| awk -F '|' '{ printf "%-21s %s\n", $$1, $$2 }'
	@echo
	@echo 'Your own table: ./run_dataflow.sh --help, then ./run_training.sh --help'

# Small enough for two cores: 64 tokens a sequence, where the lab's has 1,953.
DEMO_MODEL := --model.embed_dim 64 --model.depth 2 --model.num_heads 2 \
	--model.patch_freq 16 --model.patch_time 61

demo: $(STAMP) ## generate recordings, preprocess, train, evaluate and report
	$(BIN) -m beam_pipeline sample --output out/sample
	$(BIN) -m beam_pipeline audit --input out/sample --output out/audit
	./run_dataflow.sh
	$(BIN) -m beam_pipeline verify out/dataset
	./run_training.sh --data out/dataset --output out/run --experiment e2 $(DEMO_MODEL) \
		--train.epochs 8
	$(BIN) -m trainer baselines out/dataset --output out/run --sequence.n_trials 4
	$(BIN) -m trainer attention out/run
	$(BIN) -m trainer report out/run
	@echo
	@echo 'Done. What was made, in the order of the work:'
	@echo '  out/sample       generated recordings; out/audit/index.html looks at them'
	@echo '  out/dataset      verified shards of spectrograms; README.md is their card'
	@echo '  out/run          the trained model, its metrics and predictions; open report.html'
	@echo 'Twenty-eight small sessions and eight epochs show the way, not what a model can do.'
	@echo 'For a table of your own:'
	@echo '  ./run_dataflow.sh --input table.parquet --output my_dataset'
	@echo '  ./run_training.sh --data my_dataset --output my_run --experiment e3'

test: lint types scripts ## check style, types and behaviour
	$(BIN) -m pytest -n 2

lint: $(STAMP) ## check style and format with ruff
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

types: $(STAMP) ## check types with mypy
	$(BIN) -m mypy

scripts: $(STAMP) ## check the shell scripts and the Dockerfile: shellcheck, hadolint, bats
	.venv/bin/shellcheck -x .ci/run run_*.sh cloud/*.sh tests/scripts/project.bash \
		$(addprefix tests/scripts/bin/,gcloud docker sleep) tests/scripts/*.bats
	.venv/bin/hadolint Dockerfile.trainer
	@if command -v bats >/dev/null; then bats tests/scripts; else \
		echo 'make: the tests of the shell scripts are left out, for there is no bats' \
			'(Debian: apt-get install bats; macOS: brew install bats-core)' >&2; fi

container-test: $(STAMP) ## build the container and train in it (not part of test)
	cloud/container_test.sh

venv: $(STAMP) ## set up .venv, anew whenever setup.py or constraints.txt changed

# The stamp comes last: a set-up that was cut off starts again.
# Debian packs ensurepip separately; without it pip comes from the outer Python.
$(STAMP): setup.py constraints.txt
	@test -n '$(PYTHON)' || { echo 'make: no python3 found. Install Python 3.11, or name one:' \
		'make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"make: Python 3.11 or newer is needed, but $(PYTHON) is %d.%d. Install it, or name one:" \
		" make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo 'Setting up .venv (a minute or two) ...'
	@rm -rf .venv
	@'$(PYTHON)' -m venv .venv >/dev/null 2>&1 || { \
		'$(PYTHON)' -m venv --clear --without-pip .venv && \
		'$(PYTHON)' -m pip --python $(BIN) install --quiet pip; }
	@$(BIN) -m pip install --quiet -c constraints.txt -e '.[pipeline,trainer,dev]'
	@touch $@

clean: ## remove .venv and every cache (out/ stays: your datasets may be there)
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
