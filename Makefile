# Every target works from a fresh clone: it makes its own environment first.
PYTHON ?= python3
VENV := .venv
VENV_COLAB := .venv-colab
# The Python of `make test-newest`.
NEWEST_PYTHON ?= python3.13
VENV_NEWEST := .venv-newest
RUN := $(VENV)/bin/python -m

# Tests run side by side, one thread each: on two cores that beats one process with two threads.
WORKERS ?= 2
SOLVED = tests/notebooks/test_solved.py
BROWSER = tests/browser
TRL_TRAINERS = tests/bridge/test_trainers.py
RERUNS = tests/course/studies/test_reruns.py
CLASS = tests/course/submissions/test_class_of_80.py
SLOW = $(SOLVED) $(BROWSER) $(TRL_TRAINERS) $(RERUNS) $(CLASS)
UNIT_TESTS = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) -q $(addprefix --ignore=,$(SLOW))
# Each notebook twice: as it is, against its saved outputs, and with all exercises solved.
# A notebook's cells need one kernel, hence `loadfile`; a dead kernel is only noticed by the time-out.
NOTEBOOK_TESTS = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) -q --dist loadfile \
	--nbval --nbval-current-env --nbval-cell-timeout 300 notebooks $(SOLVED)

# JupyterLab in a real browser; where there is no Chromium the tests say so and are skipped.
BROWSER_TESTS = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -rs --no-header $(BROWSER)

.PHONY: help course test lab notebooks figures lint clean
.PHONY: test-colab test-browser test-bridge test-class test-studies test-newest bench mutants

help:
	@echo "make course      run all notebooks into a browsable HTML folder"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make test        unit tests, the notebooks against their saved outputs, and test-browser"
	@echo "make test-browser  the notebooks in JupyterLab, used through Chromium (if it is there)"
	@echo "make test-colab  unit tests and notebooks with the versions that Google Colab ships"
	@echo "make test-bridge  TRL's trainers against the exact optimum, and several processes"
	@echo "make bench       our speed beside that of TRL, transformers and choix"
	@echo "make test-studies  one run of each study again, against its data file"
	@echo "make test-newest  unit tests and notebooks with the newest versions and Python 3.13"
	@echo "make test-class  grade a made-up class of eighty, every verdict as expected"
	@echo "make mutants     make small faults in the core and count those that no test notices"
	@echo "make notebooks   run all notebooks and save their outputs in them"
	@echo "make figures     draw the figures again"
	@echo "make lint        check style and format"
	@echo "make clean       remove the environments and everything that was built"

course: $(VENV)/stamp
	$(RUN) rlhf_toy course

test: $(VENV)/stamp
	$(call UNIT_TESTS,$(VENV))
	$(call NOTEBOOK_TESTS,$(VENV))
	$(call BROWSER_TESTS,$(VENV))

test-browser: $(VENV)/stamp
	$(call BROWSER_TESTS,$(VENV))

lab: $(VENV)/stamp
	$(RUN) jupyter lab notebooks

notebooks: $(VENV)/stamp
	$(RUN) rlhf_toy course --in-place

figures: $(VENV)/stamp
	mkdir -p figures
	$(RUN) rlhf_toy tour --figure figures/frontier.png

lint: $(VENV)/stamp
	$(RUN) ruff check .
	$(RUN) ruff format --check .

# Mutation testing: up to an hour on two cores. tests/mutants/run.py says how, and why neither mutmut
# nor cosmic-ray does it. ARGS="--survivors" runs only those again that survived last time.
mutants: $(VENV)/stamp
	$(VENV)/bin/python tests/mutants/run.py --workers $(WORKERS) $(ARGS)

test-colab: $(VENV_COLAB)/stamp
	$(call UNIT_TESTS,$(VENV_COLAB))
	$(call NOTEBOOK_TESTS,$(VENV_COLAB))

# The tests that train with TRL take minutes; the quick ones of tests/bridge are unit tests.
test-bridge: $(VENV)/stamp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q tests/test_bridge.py tests/bridge

# Speeds of this machine, side by side: ten minutes in which nothing else should run.
bench: $(VENV)/stamp
	$(VENV)/bin/python tests/benchmarks/bench.py

# A fingerprint does not cover the trainers' code; a rerun notices when that changes a result.
test-studies: $(VENV)/stamp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) -q $(RERUNS)

# Without constraints. `make clean` first: an environment that is there is not renewed.
test-newest: $(VENV_NEWEST)/stamp
	$(call UNIT_TESTS,$(VENV_NEWEST))
	$(call NOTEBOOK_TESTS,$(VENV_NEWEST))

# Ten minutes on two free cores; the unit tests grade a class of twelve.
test-class: $(VENV)/stamp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -s $(CLASS)

clean:
	rm -rf $(VENV) $(VENV_COLAB) $(VENV_NEWEST) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find rlhf_toy tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Colab has neither TRL nor Dask: its lane shows that the course runs without these extras.
EXTRAS := dev,pool
$(VENV)/stamp $(VENV_NEWEST)/stamp: EXTRAS := dev,pool,bridge,cluster
$(VENV_NEWEST)/stamp: PYTHON := $(NEWEST_PYTHON)
$(VENV)/stamp: constraints.txt
$(VENV_COLAB)/stamp: constraints-colab.txt
$(VENV)/stamp $(VENV_COLAB)/stamp $(VENV_NEWEST)/stamp: requirements.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -e .[$(EXTRAS)] $(addprefix -c ,$(filter constraints%,$^))
	touch $@
