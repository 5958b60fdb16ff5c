# `make demo` and `make test` need only Python >= 3.10, pip and make: they set up $(VENV) first, once.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?= --out demo_results

BIN := $(abspath $(VENV))/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check
RUN := PATH="$(BIN):$$PATH"
# Notebooks run side by side: one thread each, or they slow each other down.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Without its compiled files, `import fastai.vision.all` takes almost three times as long, in every process.
unexport PYTHONDONTWRITEBYTECODE

VENV_DONE := $(VENV)/.done-venv
DEMO_DONE := $(VENV)/.done-demo
DEV_DONE  := $(VENV)/.done-dev
NEWEST := $(abspath $(VENV))/newest
NEWEST_DONE := $(VENV)/newest/.done

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check notebooks links pytest docs prepare export readme dev clean

help:  ## list these targets
	@echo 'usage: make TARGET [VENV=.venv] [PYTHON=python3] [JOBS=2]'
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  \1 \2/p' Makefile | awk '{n=$$1; $$1=""; printf "  %-10s%s\n", n, $$0}'

## Environment

# --no-compile: Python compiles the few files that are imported, when they are; all 18 000 take over a minute.
$(VENV_DONE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python >= 3.10 is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "== creating $(VENV)"; $(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv -q $(VENV); } || { \
	  echo "error: '$(PYTHON) -m venv $(VENV)' failed, and so did virtualenv." >&2; \
	  echo "On Debian or Ubuntu: apt install python3-venv. Without root: $(PYTHON) -m pip install --user virtualenv" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(VENV) holds a Python older than 3.10; remove it, or name another with VENV=" >&2; exit 1; }
	@$(PIP) install -q --upgrade pip
	@touch $@

$(DEMO_DONE): settings.ini setup.py | $(VENV_DONE)
	@echo "== installing simclrv2_nb in $(VENV); PyTorch is large, so this takes some minutes, once"
	@rm -f $@
	@$(PIP) install -q --no-compile -e .
	@touch $@

# The dev set satisfies the demo too, so that stamp moves with it.
$(DEV_DONE): settings.ini setup.py | $(VENV_DONE)
	@echo "== installing simclrv2_nb[dev] in $(VENV); PyTorch is large, so this takes some minutes, once"
	@rm -f $(DEMO_DONE) $@
	@$(PIP) install -q --no-compile -e '.[dev]'
	@touch $(DEMO_DONE) $@

# nbdev needs an older fastai than users get: notebooks run on that one, tests/ on the newest, which is laid over it.
$(NEWEST_DONE): tests/newest.txt | $(DEV_DONE)
	@rm -rf $(VENV)/newest
	@$(PIP) install -q --no-compile --no-deps --target $(VENV)/newest -r $< || { \
	  echo "error: pip could not fetch the newest fastai ($<); \`pytest tests\` in $(VENV) runs on the older one" >&2; exit 1; }
	@touch $@

dev: $(DEV_DONE)  ## install the development set and nbdev's git hooks
	@if [ -d .git ]; then $(RUN) nbdev_install_hooks; else echo 'no .git folder here: git hooks not installed'; fi
	@echo 'Ready. Activate it with: . $(VENV)/bin/activate'

## Run

demo: $(DEMO_DONE)  ## run the whole flow at laptop scale (ARGS="...")
	@$(RUN) simclrv2 demo $(ARGS)

## Check

# Every stage runs, whatever the others said; pytest comes last, so that its summary ends the output.
test: $(DEV_DONE)  ## run every check, as CI does
	@$(MAKE) -k --no-print-directory check notebooks links pytest

check: $(DEV_DONE)  ## library, README and docs settings agree with the notebooks; notebooks are clean
	@echo '== check: the library and the README are what the notebooks make'
	@$(RUN) python tools/check_export.py; a=$$?; $(RUN) python tools/readme.py --check; b=$$?; exit $$((a | b))

notebooks: $(DEV_DONE)  ## run every notebook
	@echo '== notebooks: nbdev_test, $(JOBS) at a time'
	@$(RUN) $(ONE_THREAD) nbdev_test --n_workers $(JOBS) --timing --do_print

links: $(DEV_DONE)  ## process the docs without Quarto and check every internal link
	@echo '== links: the docs pages and their links'
	@$(RUN) $(ONE_THREAD) python tools/check_docs.py --n_workers $(JOBS)

pytest: $(NEWEST_DONE)  ## run tests/, on the newest fastai
	@echo '== pytest: tests/'
	@$(RUN) $(ONE_THREAD) PYTHONPATH="$(NEWEST)" python -m pytest tests -q -n $(JOBS) --dist loadfile --durations 15

## Build

export: $(DEV_DONE)  ## write simclrv2_nb/ and the docs settings from the notebooks
	@$(RUN) nbdev_export
	@$(RUN) python -c 'from nbdev.quarto import refresh_quarto_yml as f; f()'

readme: $(DEV_DONE)  ## write README.md from nbs/index.ipynb
	@$(RUN) python tools/readme.py

prepare: export notebooks  ## export, test, clean, README: before every commit
	@$(RUN) nbdev_clean
	@$(RUN) python tools/readme.py

# README.md is written first, so nbdev finds it up to date and leaves it alone.
docs: readme  ## build the site in _docs (with Quarto), or check its pages (without)
	@if command -v quarto >/dev/null 2>&1; then $(RUN) nbdev_docs; \
	else echo 'Quarto was not found, so the HTML site is not built (https://quarto.org/docs/get-started).'; \
	  echo 'Its pages are processed and their links checked instead.'; \
	  $(RUN) $(ONE_THREAD) python tools/check_docs.py --n_workers $(JOBS); fi

clean:  ## remove what was built; keep the environment and the results
	@rm -rf build dist *.egg-info _proc _docs _site .pytest_cache index_files
	@find simclrv2_nb tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
