# make test   tests: ruff, notebooks clean and in sync, nbdev_test, pytest      make study  the quick study, with a report
# make docs   the documentation, in _docs/: by Quarto where it is on the PATH, by pandoc from pip otherwise; read it from _docs/index.html
# make slow   what `make test` leaves out for its time: studies in cells and tests that are marked slow
# make fuzz   10⁵ damaged and hostile files for all readers, half an hour; not part of `make test`. Interrupt it at will: run again,
#             it goes on after the readers whose reports are in fuzz.txt
# Everything runs in .venv, which is made here with the exact versions of constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STUDY  ?= study
export OMP_WAIT_POLICY = PASSIVE
# The tests start many processes. Where this is set, each of them would compile all modules of torch anew, in 3 s.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup test lint sync nbtest pytest slow fuzz study docs readme clean

# Without --no-compile, all modules of all packages would be compiled, which takes as long as installing them.
setup: $(VENV)/.done
$(VENV)/.done: constraints.txt settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 5) else "Python 3.11.5 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

test: setup
	$(MAKE) --no-print-directory lint sync nbtest pytest

LINTED = nbs tests tools benchmarks
lint: setup
	ruff check $(LINTED)

sync: setup
	$(BIN)/python tools/check_sync.py

nbtest: setup
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2

pytest: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests

slow: setup
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --flags slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow tests

fuzz: setup
	OMP_NUM_THREADS=1 nice $(BIN)/python tools/fuzz.py --cases 100000 --report fuzz.txt

study: setup
	gslrm_mouse study --out $(STUDY)

docs: setup
	if command -v quarto >/dev/null; then $(BIN)/python tools/docs/build.py --quarto _nbs && nbdev_docs --path _nbs; \
	else $(BIN)/python tools/docs/build.py && $(BIN)/python tools/docs/check.py; fi

readme: setup
	$(BIN)/python tools/readme.py

clean:
	rm -rf $(VENV) _docs _nbs _proc build dist *.egg-info
