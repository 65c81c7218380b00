# Everything here works on a machine that has only Python 3.11+, make and a package index.

PYTHON ?= python3
UV := .uv/bin/uv
RUN := .venv/bin

.PHONY: setup demo test test-all lint docs bench clean

setup: .venv/.ready                      ## make the environment in .venv (does nothing when it is up to date)

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet 'uv>=0.7'

# uv never downloads an interpreter here: the machine's own Python is used, or its absence is said at once.
.venv/.ready: pyproject.toml uv.lock | $(UV)
	UV_PYTHON_DOWNLOADS=never $(UV) sync --locked --python $(PYTHON)
	@touch $@

demo: setup                              ## lay a backdoor and find it, on embedded data, ending in a report
	$(RUN)/sapper demo $(if $(OUT),--out $(OUT))

test: setup                              ## the tests
	$(RUN)/python -m pytest -n auto --dist loadfile

test-all: setup                          ## the longer tests, too
	$(RUN)/python -m pytest -m 'slow or not slow'

lint: setup                              ## style, types, import rules, and figures in the pages
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python -m docs --check

docs: setup                              ## write the figures of committed JSON into the pages
	$(RUN)/python -m docs
	$(RUN)/python -m tests.layouts

bench: setup                             ## our speed against textbook forms, as ratios in one run
	$(RUN)/python -m benchmarks

clean:                                   ## remove the environment and caches; runs/ stays
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis
