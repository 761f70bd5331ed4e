# `make demo` runs the main job, `make demo-bags` that of bags, `make test` the tests; all make their own environment
# first. `make release` builds the package and tries it in fresh environments, some 20 minutes.

PYTHON ?= python3
VENV ?= .venv
RELEASE_VENV ?= .venv-release
DATA ?= data
WORKDIR ?= runs/digit_scenes
TESTS ?=
RUN = $(VENV)/bin/python

.PHONY: demo demo-bags test slow lint release clean

demo: $(VENV)/demo.installed
	$(RUN) -m lossattn_jax.data.prepare --dataset=digit_scenes --data_dir=$(DATA)
	$(RUN) train.py --config=configs/digit_scenes.py --config.data.dir=$(DATA) --workdir=$(WORKDIR)
	$(RUN) -m lossattn_jax.evaluate --workdir=$(WORKDIR)
	$(RUN) -m lossattn_jax.explain --workdir=$(WORKDIR)
	@echo "The report is $(WORKDIR)/report/index.html"

# What is cross-validated and what stays is trained alike; the model is tested on writers that it has not seen.
BAGS = $(DATA)/digit_slides
BAGS_WORKDIR ?= runs/digit_slides
BAGS_CONFIG = --config.train.epochs=40 --config.optimizer.learning_rate=5e-4

demo-bags: $(VENV)/demo.installed
	$(RUN) -m lossattn_jax.data.prepare --dataset=digit_slides --data_dir=$(DATA)
	$(RUN) -m lossattn_jax.mil --dataset=digit_slides --data_dir=$(DATA) --method=loss_attention,attention \
		--folds=2 --repeats=1 $(BAGS_CONFIG) --workdir=$(BAGS_WORKDIR)/cv
	$(RUN) -m lossattn_jax.mil.train --bags=$(BAGS)/slides --labels=$(BAGS)/labels.csv $(BAGS_CONFIG) \
		--workdir=$(BAGS_WORKDIR)/model
	$(RUN) -m lossattn_jax.mil.predict --model=$(BAGS_WORKDIR)/model --bags=$(BAGS)/slides \
		--out=$(BAGS_WORKDIR)/predictions
	$(RUN) -m lossattn_jax.mil.explain --model=$(BAGS_WORKDIR)/model --bags=$(BAGS)/slides \
		--labels=$(BAGS)/labels.csv --split=test --tiles=$(BAGS)/tiles --thumbnails=$(BAGS)/thumbnails \
		--out=$(BAGS_WORKDIR)/report
	@echo "The report is $(BAGS_WORKDIR)/report/index.html"

# Two processes, since much of the time is commands that start; a file's tests share what they train.
test: $(VENV)/test.installed
	$(RUN) -m pytest -n 2 --dist loadfile $(TESTS)

slow: $(VENV)/test.installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/test.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

release: $(VENV)/test.installed $(RELEASE_VENV)/release.installed
	RELEASE_PYTHON=$(RELEASE_VENV)/bin/python $(RUN) -m pytest -m slow --durations=0 tests/test_release.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make a virtual environment; install its venv package"; exit 2; }

$(VENV)/demo.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/test.installed: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(RELEASE_VENV)/release.installed: | $(VENV)/bin/python
	$(RUN) -m venv $(RELEASE_VENV)
	$(RELEASE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check build twine
	@touch $@

clean:
	rm -rf $(VENV) $(RELEASE_VENV) .pytest_cache .mypy_cache .ruff_cache
