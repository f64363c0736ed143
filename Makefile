# Everything from a fresh clone: each target makes .venv and installs what it needs first.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8731
TORCH ?= 2.13.0
BIN := $(VENV)/bin

.PHONY: search test check bench lock clean

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "PAD-NAS needs Python 3.11 to 3.13; use make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

# A small real search: operators measured on this machine, a supernet trained on handwritten digits. It goes on where
# an earlier one was stopped; remove runs/demo to start over.
search: $(VENV)/installed
	@mkdir -p runs && : >runs/demo.log
	@trap 'exit 130' INT TERM; trap 'kill $$service 2>/dev/null; wait $$service' EXIT; \
	$(BIN)/padnas-service serve --with-local-agent --port $(PORT) --database-url sqlite:///runs/demo.db \
		>runs/demo.log 2>&1 & service=$$!; \
	until grep -q 'latency service on' runs/demo.log; do \
		kill -0 $$service 2>/dev/null || { cat runs/demo.log >&2; echo 'Choose another port: make search PORT=8732' >&2; exit 1; }; \
		sleep 0.2; \
	done; \
	$(BIN)/padnas-client search --service http://127.0.0.1:$(PORT) --space demo --data digits --out runs/demo \
		|| { echo "The log of service and agent is in runs/demo.log." >&2; exit 1; }

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks all

# Pins everything that a fresh installation of the newest versions brings. PyTorch is held at a version whose CPU
# build needs no CUDA libraries; pip finds the build that fits the machine.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' torch==$(TORCH)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >requirements.lock
	touch $(VENV)/installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
