"""A CLAP model with random weights, its tokenizer and feature extractor, in one directory as the hub serves it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast


def write_clap(folder: Path, width: int) -> Path:
    """Embeddings are `width` wide; it knows the letters, and hears 8 kHz, a second at a time."""
    vocabulary = {
        token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 90,
        "projection_dim": width,
    }
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 2,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "enable_fusion": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=width)).save_pretrained(
            folder
        )
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=40,
        max_length_s=1,
        fft_window_size=128,
        frequency_min=50,
        frequency_max=4000,
        truncation="rand_trunc",
    ).save_pretrained(folder)
    return folder
