# make demo   train and evaluate an aligned model on the toy corpus (about four minutes on two CPU cores)
# make test   everything a change must pass;  make quick  the core of it;  make test-long  all there is
# Each target makes .venv with the pinned versions first. The README has the plain commands behind every target.
PYTHON ?= python3
PY = .venv/bin/python
# the pins are for Python 3.11; a newer Python takes the lower bounds of requirements.txt
PINS = $$($(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')

# two test files at a time, each file in one process
BOTH = -n 2 --dist loadfile

.PHONY: demo test test-long quick clean

demo: .venv/ready
	$(PY) train_dpo.py toy
	$(PY) -m eval.run toy

test: .venv/ready
	$(PY) -m pytest -q tests $(BOTH)

test-long: .venv/ready
	$(PY) -m pytest -q tests $(BOTH) -m "slow or not slow"

quick: .venv/ready
	$(PY) -m pytest -q tests $(BOTH) -m "not slow"

.venv/ready: requirements.txt requirements-extra.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanopref needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q $(PINS) -r requirements.txt -r requirements-extra.txt
	@touch $@

clean:
	rm -rf .venv out
