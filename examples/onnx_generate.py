"""Text to sound by ONNX graphs, without torch and without audiogen.

    python -m audiogen.convert lm_tiny --to onnx -o onnx_model
    python examples/onnx_generate.py onnx_model "a dog barks" dog.wav

Needs numpy, onnxruntime, sentencepiece and soundfile.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import sentencepiece
import soundfile

folder, text, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
about = json.loads((folder / "onnx.json").read_text())
graphs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("text", "step", "decoder")}
words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "vocabulary.model"))
random, books, special = np.random.default_rng(0), about["lm_codebooks"], about["special"]
delays, frames = about["delays"], about["max_frames"]

ids = np.array([[*(i for i in words.encode(text) if i != words.unk_id()), words.eos_id()]])  # [1, L]
mask = np.ones((2, ids.shape[1]), bool)  # row 0 has the text, row 1 none, for guidance
found = graphs["text"].run(None, {"ids": ids, "mask": mask[:1]})
text_keys, text_values = (np.concatenate([each, 0 * each], 1) for each in found)  # no text: zeros
keys = values = np.zeros((about["layers"], 2, about["heads"], 0, about["head_dim"]), np.float32)
steps = np.full((books, frames + max(delays) + 1), special)  # [K, S]: codebook k comes delays[k] steps late
for s in range(steps.shape[1] - 1):
    feeds = {"steps": np.stack([steps[:, s : s + 1]] * 2), "position": np.array([s]), "mask": mask}
    feeds |= {"keys": keys, "values": values, "text_keys": text_keys, "text_values": text_values}
    (given, none), keys, values = graphs["step"].run(None, feeds)
    logits = none + about["guidance"] * (given - none)  # [K, V]
    for k in range(books):
        if 0 <= s - delays[k] < frames:
            likely = np.argsort(logits[k])[-250:]
            chances = np.exp(logits[k, likely] - logits[k, likely].max())
            steps[k, s + 1] = random.choice(likely, p=chances / chances.sum())
codes = np.stack([steps[k, delays[k] + 1 :][:frames] for k in range(books)])[None]  # [1, K, T]
audio = graphs["decoder"].run(None, {"codes": codes})[0]  # [1, C, N]
soundfile.write(out, audio[0].T / max(1.0, abs(audio).max()), about["sample_rate"])
