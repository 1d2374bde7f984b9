# make weights ESC10=folder: the bundled models from nothing. Part of ../Makefile, in whose folder it runs.
#
# Each stage leaves a file in runs/stages, so that the same command goes on where one before was stopped, in the middle
# of a training as well. make --jobs 2 trains two models at once; OMP_NUM_THREADS=1 then gives each a core. Stop it by
# Ctrl-C or by SIGTERM to make: a training that alone is asked to stop saves its step and ends well, and its stage counts
# as complete. To begin again: rm -rf runs.

# Folds 1-3 of ESC-10 with the built-in corpus; fold 4 validates. The two clips under Sampling+ are left out.
CLIPS = source: $(ESC10)/manifest.jsonl, where: {license: [CC0, CC-BY], fold:
sounds = 'data.train=[{repeat: $(1), $(CLIPS) [1, 2, 3]}}, synth:$(2)]' 'data.valid=[{$(CLIPS) [4]}}$(3)]'
TRAIN = $(BIN)/python -m audiogen.train
BUNDLE = $(BIN)/python tools/bundle.py
SOUNDS_OF = $(BIN)/python tools/which_sounds.py kinds
COMMA := ,
PAIRS = {repeat: 2$(COMMA) source: runs/pairs/manifest.jsonl}
PARTS = source: runs/parts/manifest.jsonl
SHORT = source: synth:7000@30000$(COMMA) duration_s: 2.5$(COMMA) where: {form: [one$(COMMA) emphasis]}
AS_IT_IS = data.speed=[0.9,1] data.gain_db=[-4,3]
LAFMA_ON = autoencoder=null fit.ema_decay=0.998 fit.valid_every=500 optim.lr=4e-4 optim.warmup_steps=50 $(AS_IT_IS)
S := runs/stages
DONE = @mkdir -p $(S) && touch $@

.PHONY: weights esc10
weights: $(S)/sounds
	$(BIN)/python tools/attribution.py $(ESC10)/manifest.jsonl > audiogen/weights/ATTRIBUTION.md

esc10:
	@test -f "$(ESC10)/manifest.jsonl" || { echo 'error: make weights ESC10=folder, the folder of manifest.jsonl' >&2; exit 2; }

# ---- What listens.

$(S)/tagger_tiny: | venv esc10
	$(TRAIN) recipe=tagger_tiny $(call sounds,80,40000,$(COMMA) synth:200@500000)
	$(BUNDLE) runs/tagger_tiny/best tagger_tiny
	$(DONE)

$(S)/sounds: $(S)/tagger_tiny $(S)/codec_tiny_last $(S)/lafma_tiny_student
	$(SOUNDS_OF) lm_tiny --out audiogen/weights/lm_tiny/sounds.json
	$(SOUNDS_OF) lafma_tiny --out audiogen/weights/lafma_tiny/sounds.json
	$(DONE)

# ---- Recordings one after another, and short parts of them.

$(S)/pairs: | venv esc10
	$(BIN)/python tools/pairs.py $(ESC10)/manifest.jsonl runs/pairs 3000
	$(BIN)/python tools/pairs.py $(ESC10)/manifest.jsonl runs/parts 952 --single
	$(DONE)

# ---- codec_tiny and lm_tiny. The decoder and more codebooks come last: the first eight codes of a frame stay, so the
# language model needs no others.

$(S)/codec_tiny: | venv esc10
	$(TRAIN) recipe=codec_tiny $(call sounds,20,4000)
	$(BUNDLE) runs/codec_tiny/best codec_tiny
	$(DONE)

$(S)/lm_tiny: $(S)/codec_tiny $(S)/pairs
	$(TRAIN) recipe=lm_tiny fit.steps=3200 fit.batch_size=64 fit.ema_decay=0.998 fit.valid_every=250 optim.warmup_steps=200 \
	  $(call sounds,40,8000$(COMMA) $(PAIRS))
	$(BUNDLE) runs/lm_tiny/best lm_tiny
	$(DONE)

$(S)/codec_tiny_decoder: $(S)/lm_tiny
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny $(call sounds,20,1500)
	$(BUNDLE) runs/codec_tiny_decoder codec_tiny
	$(DONE)

$(S)/codec_tiny_more: $(S)/codec_tiny_decoder
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny out=runs/codec_tiny_more more_codebooks=8 codebook_dropout=0.8 \
	  fit.steps=4000 $(call sounds,20,1500)
	$(BUNDLE) runs/codec_tiny_more codec_tiny
	$(DONE)

$(S)/codec_tiny_last: $(S)/codec_tiny_more
	$(TRAIN) recipe=codec_tiny_decoder init_from=codec_tiny out=runs/codec_tiny_last fit.steps=3000 $(call sounds,20,1500@2000)
	$(BUNDLE) runs/codec_tiny_more codec_tiny --towards runs/codec_tiny_last/best 0.15
	$(DONE)

# ---- lafma_tiny: its autoencoder, teachers, and students of 4 steps.

$(S)/mel_autoencoder_tiny: | venv esc10
	$(TRAIN) recipe=mel_autoencoder_tiny fit.steps=5000 fit.batch_size=32 $(call sounds,20,3000)
	$(DONE)

$(S)/lafma_tiny: $(S)/mel_autoencoder_tiny $(S)/pairs
	$(TRAIN) recipe=lafma_tiny fit.steps=3800 fit.batch_size=128 fit.ema_decay=0.999 fit.valid_every=400 fit.valid_batches=1 \
	  data.segment_s=5.12 data.speed=[0.85,1.15] $(call sounds,70,16000$(COMMA) $(PAIRS))
	$(DONE)

$(S)/lafma_tiny_on: $(S)/lafma_tiny
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny autoencoder=null out=runs/lafma_tiny_on fit.steps=600 fit.ema_decay=0.99 \
	  fit.valid_every=200 optim.lr=3e-4 optim.warmup_steps=30 data.speed=[1,1] data.gain_db=[-3,3] $(call sounds,3,900$(COMMA) $(PAIRS))
	$(DONE)

$(S)/lafma_tiny_first: $(S)/lafma_tiny_on
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_on fit.steps=700 fit.batch_size=16 $(call sounds,1,160)
	rm -rf runs/lafma_tiny_fast/latents
	$(DONE)

$(S)/lafma_tiny_fast: $(S)/lafma_tiny_first
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_on fit.steps=1100 fit.batch_size=16 $(call sounds,1,1200)
	$(DONE)

$(S)/lafma_tiny_more: $(S)/lafma_tiny_on
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny_on out=runs/lafma_tiny_more fit.steps=1750 fit.batch_size=16 $(LAFMA_ON) \
	  $(call sounds,4,8000)
	$(DONE)

$(S)/lafma_tiny_short: $(S)/lafma_tiny_more
	$(TRAIN) recipe=lafma_tiny init_from=runs/lafma_tiny_more out=runs/lafma_tiny_short fit.steps=3000 fit.batch_size=32 $(LAFMA_ON) \
	  group_by_length=true $(call sounds,4,5000$(COMMA) {$(PARTS)}$(COMMA) {$(SHORT)})
	$(DONE)

$(S)/lafma_tiny_last: $(S)/lafma_tiny_short $(S)/lafma_tiny_fast
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_short student_from=runs/lafma_tiny_fast out=runs/lafma_tiny_last \
	  group_by_length=true teacher.guidance=3 fit.steps=900 fit.batch_size=32 optim.warmup_steps=20 $(AS_IT_IS) \
	  $(call sounds,8,5000$(COMMA) {repeat: 2$(COMMA) $(PARTS)}$(COMMA) {$(SHORT)})
	$(DONE)

# From here on the teacher and the student are moved some of the way between two trainings' weights.
$(S)/lafma_tiny_taught: $(S)/lafma_tiny_last
	$(BUNDLE) runs/lafma_tiny_fast student --towards runs/lafma_tiny_last 0.75 --into runs/between
	$(BUNDLE) runs/lafma_tiny_on teacher --towards runs/between/student 0.6 --into runs/between
	$(TRAIN) recipe=lafma_tiny init_from=runs/between/teacher out=runs/lafma_tiny_taught fit.steps=1800 fit.batch_size=32 $(LAFMA_ON) \
	  group_by_length=true $(call sounds,4,5000$(COMMA) {$(PARTS)}$(COMMA) {$(SHORT)})
	$(DONE)

$(S)/lafma_tiny_student: $(S)/lafma_tiny_taught
	$(TRAIN) recipe=lafma_tiny_fast init_from=runs/lafma_tiny_taught student_from=runs/between/student out=runs/lafma_tiny_student \
	  group_by_length=true fit.steps=400 fit.batch_size=32 optim.warmup_steps=20 $(AS_IT_IS) \
	  $(call sounds,20,5000$(COMMA) {repeat: 2$(COMMA) $(PARTS)}$(COMMA) {$(SHORT)})
	$(BUNDLE) runs/lafma_tiny_fast lafma_tiny --towards runs/lafma_tiny_student 0.5
	$(DONE)
