# Two commands for a fresh clone: `make reproduce-meit` and `make test`. Both build .venv on first use.
SHELL := /bin/bash
PY := .venv/bin/python
TIER ?= laptop
DATA_ROOT ?= data/official
export DATA_ROOT
PAPERS := meit kmerl supreme synth_medvlp argus
DATASETS := ptb-xl mimic-iv-ecg cpsc2018 chapman-shaoxing-ningbo merl-splits \
	mimic-cxr-jpg chexpert padchest nih-cxr rsna-pneumonia siim-acr covidx-cxr2 covid-rural hannover-cxr \
	ct-rate bimcv-r inspect

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow lint bench report audit reproduce

help:  ## list the targets
	@grep -hE '^[a-z$$].*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^\$$.*## ([^:]+): /\1\t/; s/^([a-z-]+):.*## /\1\t/' | expand -t 28
	@echo "papers: $(PAPERS)    data sets: $(DATASETS)"

# .venv/.ready is younger than pyproject.toml exactly when the environment matches its pins.
setup: .venv/.ready  ## build .venv with the pinned versions
.venv/.ready: pyproject.toml
	@echo "building .venv (a few minutes, once)"
	@test -x $(PY) || python3 -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Two workers with a thread each: more threads only wait for each other on models this small.
test: .venv/.ready  ## all tests but the slow ones, by two workers
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: .venv/.ready  ## the slow tests
	$(PY) -m pytest -m slow

lint: .venv/.ready  ## ruff and the import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

bench: .venv/.ready  ## every speed claim as a ratio against a named reference; ARGS=--write keeps it
	$(PY) -m tests.benchmarks $(ARGS)

report: .venv/.ready  ## docs/site: all results as pages, from what is committed
	$(PY) -m docs.build

audit: .venv/.ready  ## what public code and splits do to published numbers; tables of AUDIT.md: ARGS=--write
	$(PY) -m docs.audit $(ARGS)

reproduce: $(PAPERS:%=reproduce-%)  ## all papers, one after the other, and a table over them
	$(PY) -m docs.summary --tier $(TIER)

$(PAPERS:%=reproduce-%): reproduce-%: .venv/.ready  ## reproduce-<paper>: TIER=smoke|laptop|gpu|paper  ALL=1  CLAIM=<id>
	$(PY) -m $*.reproduce --config $*/configs/$(TIER).yaml $(if $(ALL),--all) $(if $(CLAIM),--claim $(CLAIM))

$(PAPERS:%=rescore-%): rescore-%: .venv/.ready  ## rescore-<paper>: every number again from the committed predictions
	$(PY) -m $*.reproduce --config $*/configs/$(TIER).yaml --rescore

$(PAPERS:%=plan-%): plan-%: .venv/.ready  ## plan-<paper>: parameters, memory, tokens, steps at paper scale, without a GPU
	$(PY) -m $*.plan --config $*/configs/paper.yaml

DATA_meit := mimic-iv-ecg ptb-xl
DATA_kmerl := mimic-iv-ecg ptb-xl cpsc2018 chapman-shaoxing-ningbo merl-splits
DATA_supreme := mimic-iv-ecg ptb-xl cpsc2018 chapman-shaoxing-ningbo merl-splits
DATA_synth_medvlp := mimic-cxr-jpg chexpert padchest nih-cxr rsna-pneumonia siim-acr covidx-cxr2 covid-rural \
	hannover-cxr
DATA_argus := ct-rate bimcv-r inspect
$(PAPERS:%=check-data-%): check-data-%: .venv/.ready  ## check-data-<paper>: expected and found files, checksums, what is missing
	$(PY) -m shared.download --check $(DATA_$*)

$(DATASETS:%=data-%): data-%: .venv/.ready  ## data-<dataset>: verified, resumable download into DATA_ROOT; SPLIT=valid
	$(PY) -m shared.download $* $(if $(SPLIT),--split $(SPLIT))
