# Every target works from a fresh clone: it makes the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
PEER := .venv-peer
BIN := $(VENV)/bin
DEMO := demo-data

.PHONY: demo install browser test lint unit peer faults endurance parity bench clean help

help:
	@echo "make demo    simulate 12 mice, add a real one, compute and show their status (again: refresh)"
	@echo "make test    lint, types and all tests, under pandas 3 and, beside ibllib, under pandas 2"
	@echo "make lint    ruff and mypy;    make unit    the quick tests;    make faults    all that can be killed or fail"
	@echo "make parity  a large comparison with ibllib;    make endurance    600 mice x 100 days, disturbed from beginning to end"
	@echo "make bench   the speed of fit, recompute, refresh, growth, start and scaling, beside ibllib, into bench/results (takes long)"

# ---- environments

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# ibllib holds pandas below 3, so this is also where the tests run under pandas 2.
$(PEER)/.dev: pyproject.toml constraints-peer.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -c constraints-peer.txt -e '.[dev,ibl]'
	@touch $@

install: $(VENV)/.dev

# Flower's pages are tested in a real Chromium, no Python package; without it those tests are skipped, or in CI fail.
browser:
	@if command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; then :; \
	else echo "no Chromium: for the tests in a browser, as root: apt-get install chromium chromium-driver"; fi

# ---- the main job, on simulated mice and a real one

# The wheel is only a parcel here: the real mouse lies among its test data, so its dependencies are not wanted.
$(DEMO)/ibllib: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@.part ibllib
	@mv $@.part $@

$(DEMO)/mice: | $(VENV)/.installed $(DEMO)/ibllib
	@rm -rf $@.part
	PYTHONPATH=$(DEMO)/ibllib $(BIN)/training-status simulate $@.part --labs 3 --subjects 4 --days 60 --real-mouse
	@mv $@.part $@

demo: $(VENV)/.installed | $(DEMO)/mice
	$(BIN)/training-status $$(test -e $(DEMO)/tables && echo refresh || echo recompute) \
		--root $(DEMO)/mice --store $(DEMO)/tables --embedded --workers 2
	$(BIN)/training-status status --store $(DEMO)/tables
	@echo "The tables lie in $(DEMO)/tables: one folder a lab and subject, and resources/training/cohort.pqt."
	@echo "SWC_054 is a real mouse of the International Brain Laboratory (CC BY 4.0); the others are simulated."

# ---- checks

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest -n 2 tests/unit tests/property

peer: $(PEER)/.dev
	$(PEER)/bin/pytest -n 2 tests/unit tests/property tests/golden

test: lint browser $(PEER)/.dev
	$(PEER)/bin/pytest -n 2 --dist loadfile tests/unit tests/property tests/golden
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" tests

faults: $(VENV)/.dev
	$(BIN)/pytest -n 2 tests/faults
	$(BIN)/pytest -n 2 --dist loadfile -m slow tests/deploy tests/integration

endurance: $(VENV)/.dev
	$(BIN)/python -m bench.endurance --subjects 600 --days 100

parity: $(PEER)/.dev
	$(PEER)/bin/python -m bench.parity --mice 100 --days 14 --seeds 3 --processes 2

# All run to the end, and then the target fails if a bar is not met: make bench BENCH_FIT='--problems 500 --repeats 1'
bench: $(VENV)/.dev $(PEER)/.dev
	@code=0; \
	$(BIN)/python -m bench.fit --peer-python $(PEER)/bin/python $(BENCH_FIT) || code=1; \
	$(BIN)/python -m bench.recompute --peer-python $(PEER)/bin/python $(BENCH_RECOMPUTE) || code=1; \
	$(BIN)/python -m bench.refresh $(BENCH_REFRESH) || code=1; \
	$(BIN)/python -m bench.growth $(BENCH_GROWTH) || code=1; \
	$(BIN)/python -m bench.start $(BENCH_START) || code=1; \
	$(BIN)/python -m bench.scaling $(BENCH_SCALING) || code=1; \
	exit $$code

clean:
	rm -rf $(VENV) $(PEER) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
