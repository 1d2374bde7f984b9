"""Encoders with random weights, as the hub serves them: a CLAP with tokenizer and feature extractor, an AudioMAE."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast


def write_clap(folder: Path, width: int) -> Path:
    """Embeddings are `width` wide; its words are the letters, its sounds have 8 kHz and windows of a second."""
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


def write_audiomae(folder: Path, width: int, num_blocks: int, num_patches: int) -> Path:
    """An AudioMAE encoder with random weights, as timm names them; heads have 64 numbers."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + num_patches, width),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(num_blocks):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 2 * width, width),
            ("mlp.fc2", width, 2 * width),
        ):
            shapes |= {
                f"blocks.{block}.{name}.weight": (outputs, inputs),
                f"blocks.{block}.{name}.bias": (outputs,),
            }
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.{part}": (width,) for part in ("weight", "bias")}
    tensors = {name: 0.2 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
