# make demo   two prompts to sound, with the bundled weights
# make serve  the bundled models behind a page and an API, at http://127.0.0.1:8000
# make test   the whole suite
# make check  lint, format, types, docstrings, then the suite
# make docs   the documentation as a site in build/site, strictly
# make audit  vulnerabilities on record, and licences, of the dependencies; needs the network
# make sanitize   the C++ kernels under the address, undefined-behaviour and thread sanitizers (minutes)
# make weights ESC10=folder   train the bundled models again (hours, in stages) and put them into the package
# make faults every command on a file system that fails at each of its calls, and killed at random moments (hours)
# make endurance  two hours of --stream, 10,000 sounds, 100,000 encoded clips: do memory and open files stay flat (hours)
# make venv   only the environment (.venv); PYTHON=/path/to/python3 chooses the interpreter

.PHONY: audit demo docs serve test check endurance faults sanitize venv clean
.DEFAULT_GOAL := demo

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One torch thread per test worker: two under contention are slower, not faster.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

demo: venv
	$(BIN)/python -m audiogen.generate --text "a dog barks" --text "rain falls" --overwrite
	@echo 'For the commands of README.md: . $(BIN)/activate'

serve: venv
	$(BIN)/python -m audiogen.serve

test: venv
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

docs: venv
	$(BIN)/python tools/pages.py --check
	$(BIN)/python -m mkdocs build --strict --quiet

faults: venv
	rm -rf build/faults && mkdir -p build/faults
	$(CC) -shared -fPIC -o build/faults/shim.so tests/faults/shim.c -ldl
	LD_PRELOAD=$(CURDIR)/build/faults/shim.so $(TEST_ENV) $(BIN)/python tests/faults/driver.py build/faults/work
	LD_PRELOAD=$(CURDIR)/build/faults/shim.so $(TEST_ENV) $(BIN)/python tests/faults/driver.py build/faults/work --signals 40

endurance: venv
	$(BIN)/python tools/endurance.py stream 7200
	$(BIN)/python tools/endurance.py generate 10000
	$(BIN)/python tools/endurance.py encode 100000

# pip-audit has an environment of its own, so that what it needs is not among what is audited. --strict: a package that
# could not be looked up is a failure as well.
audit: venv
	$(BIN)/python tools/licenses.py
	@test -x $(VENV)-audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet pip-audit; }
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --progress-spinner off --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

sanitize: venv
	$(BIN)/python tools/sanitize.py

include tools/weights.mk

venv: $(STAMP)

# A python3.x on the PATH may be a shim that only prints an error, or lack venv: each is tried by running it.
$(STAMP): pyproject.toml constraints-cpu.txt Makefile
	@set -e; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	  for python in $(PYTHON) python3 python3.12 python3.11 python3.13 python3.10 python3.14 python; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.10 or newer with venv on the PATH; install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	    exit 2; \
	  fi; \
	  echo "$$found -m venv $(VENV)"; \
	  $$found -m venv --clear $(VENV); \
	fi; \
	if nvidia-smi -L 2>/dev/null | grep -q GPU; then constraint=; else constraint="--constraint constraints-cpu.txt"; fi; \
	echo "pip install $$constraint --editable .[dev]   (minutes, the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$constraint --editable '.[dev]'
	@# Without what it depends on, torchaudio above all: an oracle for the parity tests, which skip where it is absent.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps encodec==0.1.1 \
	  || echo 'encodec 0.1.1 could not be installed: the tests that compare with it will be skipped'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit dist build .pytest_cache .ruff_cache .mypy_cache
