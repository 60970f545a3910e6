# make demo      the whole way on synthetic data: radiographs, shards, pre-training, a reconstructed picture, an encoder
# make test      the tests, some minutes
# make campaign  the same promises over many more cases;  make torture-pack  those of packing alone
# make lint      ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test campaign torture-pack lint install clean

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/demo.sh demo

test: install
	$(BIN)/pytest -n auto --dist worksteal -m 'not campaign and not alone'
	$(BIN)/pytest -m 'alone and not campaign'

campaign: install
	$(BIN)/pytest -m campaign

torture-pack: install
	$(BIN)/pytest -m campaign tests/packing -s

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# What is installed changes with these two files only; the stamp spares the second `make` half a minute.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mrm_stream needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing (PyTorch with CUDA: several GB, some minutes)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
