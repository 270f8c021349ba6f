# Each target sets up .venv first, unless it is complete.
# make demo: generate data, train a small detector, evaluate it and draw its predictions.
# make test: run the tests, in two processes. make test-configs: train every config for a step.
# make lint: run the linter and the type checker.
# make docs: build the documentation site into docs/_build/html.
# make probes: train all context probes, for hours. make probes-short: a part of them.
# With STACK=onedl, a target runs on the maintained forks, in .venv-onedl.
PYTHON ?= python3.11
STACK ?= openmmlab
SUFFIX := $(if $(filter-out openmmlab,$(STACK)),-$(STACK))
VENV := .venv$(SUFFIX)
VENV_PYTHON := $(VENV)/bin/python -W ignore
TEST_WORKERS ?= 2
DEMO := mask-rcnn_r50-sac_fpn_demo
DEMO_DIR := work_dirs/$(DEMO)$(SUFFIX)

.PHONY: demo test test-configs probes probes-short lint docs env

env:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); \
	install Python 3.11, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) tools/setup_env.py $(STACK) $(VENV)

demo: env
	$(VENV_PYTHON) tools/make_demo_data.py --out data/demo
	$(VENV_PYTHON) tools/train.py configs/demo/$(DEMO).py --work-dir $(DEMO_DIR) --resume
	$(VENV_PYTHON) tools/test.py configs/demo/$(DEMO).py $(DEMO_DIR)/epoch_12.pth --work-dir $(DEMO_DIR) --out $(DEMO_DIR)/predictions.pkl
	$(VENV_PYTHON) tools/show_predictions.py configs/demo/$(DEMO).py $(DEMO_DIR)/predictions.pkl --out $(DEMO_DIR)/predictions.png

test: env
	$(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist worksteal

test-configs: env
	$(VENV_PYTHON) -m pytest tests/test_every_config.py -m configs

# Two runs of one thread each run at a time.
probes: env
	$(VENV_PYTHON) projects/context_probes/run.py --jobs 2

probes-short: env
	$(VENV_PYTHON) projects/context_probes/run.py --short --jobs 2

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: env
	$(VENV)/bin/pip install --quiet --requirement docs/requirements.txt
	$(VENV)/bin/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"
