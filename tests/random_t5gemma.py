"""A T5Gemma encoder with random weights and its tokenizer, in a directory as the hub serves it."""

from pathlib import Path

import torch
from transformers import GemmaTokenizer, T5GemmaConfig, T5GemmaEncoderModel
from transformers.models.t5gemma import T5GemmaModuleConfig


def components(width: int) -> tuple[T5GemmaEncoderModel, GemmaTokenizer]:
    """Its output is `width` wide, its vocabulary is the letters, the comma, the space and "dog"."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz,", "do", "dog"]
    tokenizer = GemmaTokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)},
        merges=[("d", "o"), ("do", "g")],
        add_bos_token=True,
    )
    module = T5GemmaModuleConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        query_pre_attn_scalar=5,
        attn_logit_softcapping=1.5,  # low enough to be felt
        sliding_window=600,
    )
    config = T5GemmaConfig(encoder=module, decoder=module, vocab_size=40, is_encoder_decoder=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = T5GemmaEncoderModel(config).eval()
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.2)
    return model, tokenizer


def write(folder: Path, width: int) -> Path:
    """Write both to one folder."""
    model, tokenizer = components(width)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
