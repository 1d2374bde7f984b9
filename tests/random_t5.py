"""A T5 encoder with random weights and its tokenizer, in a directory as the hub serves it."""

from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer


def write(folder: Path, width: int) -> Path:
    """Write it; its output is `width` wide, its vocabulary is the letters, the comma and "dog"."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁dog", -4.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz,"]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(vocab_size=40, d_model=width, d_kv=4, d_ff=24, num_layers=2, num_heads=3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        T5EncoderModel(config).save_pretrained(folder)
    return folder
