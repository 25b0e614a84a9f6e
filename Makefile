# The commands of the project. They need Python 3.11, 3.12 or 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
ZERO := $(addprefix tests/,tabs/test_api.py sweep/test_endpoints.py transfer/test_endpoints.py train/test_endpoints.py \
	trust/test_cancel.py trust/test_visitors.py browser/test_generate.py browser/test_sweep.py \
	browser/test_train.py::test_stop_resume_and_a_fork)
# A Python that will not do is refused before anything is installed.
INSTALL = @test -x $(PY) || { $(PYTHON) -m core.system.requirements_check && $(PYTHON) -m venv $(VENV); } && \
	$(PY) -m core.system.requirements_check && $(PY) -m pip install --quiet --disable-pip-version-check -r

.PHONY: run test test-zero soak lint types nano bench space update clean

run: $(VENV)/.run
	$(PY) app.py

# Two workers of one thread each: teams of threads that share the cores wait for each other.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m soak

# What makes pictures or trains, through a scheduler that lends its GPU as ZeroGPU does; `make test-zero ZERO=tests` runs the whole suite so.
test-zero: $(VENV)/.dev
	SWEETSPOT_ZERO=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ZERO)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=. $(VENV)/bin/lint-imports

types: $(VENV)/.dev
	$(VENV)/bin/pyright

nano: $(VENV)/.dev
	$(PY) -m core.nano

bench: $(VENV)/.dev
	$(PY) tests/bench/nano.py
	$(PY) tests/bench/generate.py
	$(PY) tests/bench/sweep.py
	$(PY) tests/bench/train.py
	$(PY) tests/bench/lessons.py
	$(PY) tests/bench/transfer.py
	$(PY) tests/bench/across.py
	$(PY) tests/bench/tour.py
	$(PY) tests/bench/load.py

# Moves every package to the newest version that pyproject.toml allows, says which moved, and tries them.
update: $(VENV)/.dev
	$(PY) -m tests.lock
	$(MAKE) test

# Holds the checkout against the rules of a Space, and prints the command that uploads it.
space: $(VENV)/.dev
	$(PY) -m tests.space

clean:
	rm -rf $(VENV) build

$(VENV)/.run: requirements.txt
	$(INSTALL) requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt
	$(INSTALL) requirements-dev.txt
	touch $@ $(VENV)/.run
