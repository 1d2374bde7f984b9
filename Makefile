# make demo   two prompts to sound, with the bundled weights
# make serve  the bundled models behind a page and an API, at http://127.0.0.1:8000
# make test   the whole suite
# make check  lint, format, types, docstrings, then the suite
# make docs   the documentation as a site in build/site, strictly
# make audit  vulnerabilities on record, and licences, of the dependencies; needs the network
# make sanitize   the C++ kernels under the address, undefined-behaviour and thread sanitizers (minutes)
# make weights ESC10=folder   train the bundled models again (hours) and put them into the package
# make faults every command on a file system that fails at each of its calls, and killed at random moments (hours)
# make endurance  two hours of --stream, 10,000 sounds, 100,000 encoded clips: do memory and open files stay flat (hours)
# make venv   only the environment (.venv); PYTHON=/path/to/python3 chooses the interpreter

.PHONY: audit demo docs serve test check endurance faults sanitize weights venv clean
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

# Folds 1-3 of ESC-10 with the built-in corpus; fold 4 validates. The two clips under Sampling+ are left out.
CLIPS = source: $(ESC10)/manifest.jsonl, where: {license: [CC0, CC-BY], fold:
sounds = 'data.train=[{repeat: $(1), $(CLIPS) [1, 2, 3]}}, synth:$(2)]' 'data.valid=[{$(CLIPS) [4]}}$(3)]'
TRAIN = $(BIN)/python -m audiogen.train
COMMA := ,
PAIRS = {repeat: 2$(COMMA) source: runs/pairs/manifest.jsonl}
PARTS = source: runs/parts/manifest.jsonl
SHORT = source: synth:7000@30000$(COMMA) duration_s: 2.5$(COMMA) where: {form: [one$(COMMA) emphasis]}
LAFMA_ON = autoencoder=null fit.ema_decay=0.998 fit.valid_every=500 optim.lr=4e-4 optim.warmup_steps=50 data.speed=[0.9,1] data.gain_db=[-4,3]

# The decoder and more codebooks come last: the first eight codes of a frame stay, so the language model needs no others.
weights: venv
	@test -f "$(ESC10)/manifest.jsonl" || { echo 'error: make weights ESC10=folder, the folder of manifest.jsonl' >&2; exit 2; }
	$(TRAIN) recipe=tagger_tiny $(call sounds,80,40000,$(COMMA) synth:200@500000)
	$(BIN)/python tools/bundle.py runs/tagger_tiny/best tagger_tiny
	$(TRAIN) recipe=codec_tiny $(call sounds,20,4000)
	$(BIN)/python tools/bundle.py runs/codec_tiny/best codec_tiny
	$(BIN)/python tools/pairs.py $(ESC10)/manifest.jsonl runs/pairs 3000
	$(TRAIN) recipe=lm_tiny fit.steps=3200 fit.batch_size=64 fit.ema_decay=0.998 fit.valid_every=250 optim.warmup_steps=200 \
	  $(call sounds,40,8000$(COMMA) $(PAIRS))
	$(BIN)/python tools/bundle.py runs/lm_tiny/best lm_tiny
	$(BIN)/python tools/which_sounds.py kinds lm_tiny --out audiogen/weights/lm_tiny/sounds.json
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny $(call sounds,20,1500)
	$(BIN)/python tools/bundle.py runs/codec_tiny_decoder codec_tiny
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny out=runs/codec_tiny_more more_codebooks=8 codebook_dropout=0.8 \
	  fit.steps=4000 $(call sounds,20,1500)
	$(BIN)/python tools/bundle.py runs/codec_tiny_more codec_tiny
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny out=runs/codec_tiny_last fit.steps=3000 $(call sounds,20,1500@2000)
	$(BIN)/python tools/bundle.py runs/codec_tiny_more codec_tiny --towards runs/codec_tiny_last/best 0.15
	$(TRAIN) recipe=mel_autoencoder_tiny fit.steps=5000 fit.batch_size=32 $(call sounds,20,3000)
	$(TRAIN) recipe=lafma_tiny fit.steps=3800 fit.batch_size=128 fit.ema_decay=0.999 fit.valid_every=400 fit.valid_batches=1 \
	  data.segment_s=5.12 data.speed=[0.85,1.15] $(call sounds,70,16000$(COMMA) $(PAIRS))
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny autoencoder=null out=runs/lafma_tiny_on fit.steps=600 fit.ema_decay=0.99 \
	  fit.valid_every=200 optim.lr=3e-4 optim.warmup_steps=30 data.speed=[1,1] data.gain_db=[-3,3] $(call sounds,3,900$(COMMA) $(PAIRS))
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_on fit.steps=700 fit.batch_size=16 $(call sounds,1,160)
	rm -rf runs/lafma_tiny_fast/latents
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_on fit.steps=1100 fit.batch_size=16 $(call sounds,1,1200)
	$(BIN)/python tools/pairs.py $(ESC10)/manifest.jsonl runs/parts 952 --single
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny_on out=runs/lafma_tiny_more fit.steps=1750 fit.batch_size=16 $(LAFMA_ON) \
	  $(call sounds,4,8000)
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny_more out=runs/lafma_tiny_short fit.steps=3000 fit.batch_size=32 $(LAFMA_ON) \
	  group_by_length=true $(call sounds,4,5000$(COMMA) {$(PARTS)}$(COMMA) {$(SHORT)})
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_short student_from=runs/lafma_tiny_fast out=runs/lafma_tiny_last \
	  group_by_length=true teacher.guidance=3 fit.steps=900 fit.batch_size=32 optim.warmup_steps=20 data.speed=[0.9,1] data.gain_db=[-4,3] \
	  $(call sounds,8,5000$(COMMA) {repeat: 2$(COMMA) $(PARTS)}$(COMMA) {$(SHORT)})
	$(BIN)/python tools/bundle.py runs/lafma_tiny_fast student --towards runs/lafma_tiny_last 0.75 --into runs/between
	$(BIN)/python tools/bundle.py runs/lafma_tiny_on teacher --towards runs/between/student 0.6 --into runs/between
	$(TRAIN) recipe=lafma_tiny init_from=runs/between/teacher out=runs/lafma_tiny_taught fit.steps=1800 fit.batch_size=32 $(LAFMA_ON) \
	  group_by_length=true $(call sounds,4,5000$(COMMA) {$(PARTS)}$(COMMA) {$(SHORT)})
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_taught student_from=runs/between/student out=runs/lafma_tiny_student \
	  group_by_length=true fit.steps=400 fit.batch_size=32 optim.warmup_steps=20 data.speed=[0.9,1] data.gain_db=[-4,3] \
	  $(call sounds,20,5000$(COMMA) {repeat: 2$(COMMA) $(PARTS)}$(COMMA) {$(SHORT)})
	$(BIN)/python tools/bundle.py runs/lafma_tiny_fast lafma_tiny --towards runs/lafma_tiny_student 0.5
	$(BIN)/python tools/which_sounds.py kinds lafma_tiny --out audiogen/weights/lafma_tiny/sounds.json
	$(BIN)/python tools/attribution.py $(ESC10)/manifest.jsonl > audiogen/weights/ATTRIBUTION.md

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
