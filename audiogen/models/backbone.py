"""A pretrained Qwen3 as transformers writes it: sizes, weights and tokenizer for a language model to begin with.

config.json         model_type qwen3
model.safetensors   or an index of several: model.layers.*, model.norm.*, model.embed_tokens.*; without "model." that of
                    Qwen3Model alone. Its head for text, lm_head, is not read.
tokenizer.json      with its settings
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from audiogen.errors import opening
from audiogen.files.checkpoint import read_weights, weights_file
from audiogen.files.tensors import match, under
from audiogen.lm.backbone import BackboneConfig
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.settings import read_settings, table
from audiogen.text import encoder
from audiogen.text.encoder import PretrainedTokenizer
from audiogen.text.t5 import TextConfig, local_or_hub
from audiogen.text.tokens import TokenConditioner

ADVICE = "give a directory with a Qwen3 and its tokenizer, or its hub id while the hub can be reached"
# Ours -> theirs, which are joined.
NAMES = {
    "self_attention.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.query_norm": ("self_attn.q_norm",),
    "self_attention.key_norm": ("self_attn.k_norm",),
    "self_attention.out_proj": ("self_attn.o_proj",),
    "norm_self": ("input_layernorm",),
    "norm_ff": ("post_attention_layernorm",),
    "ff_in": ("mlp.gate_proj", "mlp.up_proj"),
    "ff_out": ("mlp.down_proj",),
}


def read_sizes(name: str) -> dict[str, dict[str, Any]]:
    """A directory or hub id -> what it decides of a recipe's `model` and `text`; InputError for what is no Qwen3."""
    with opening(f"backbone {name!r}", ADVICE):
        directory = encoder.here(name, encoder.LAYOUTS[:2])
    settings = read_settings(directory / "config.json")
    settings.choice("model_type", ("qwen3",))
    settings.expect(**table("qwen3.expected"))
    rope = settings.section("rope_parameters", {})
    rope.choice("rope_type", ("default",), "default")
    theta = rope.number("rope_theta", None) or settings.number("rope_theta", 10_000.0)
    sizes = settings.values(LMConfig, table("qwen3.lm"))
    backbone = settings.values(BackboneConfig, table("qwen3.backbone"))
    vocabulary = settings.whole("vocab_size")
    settings.done(table("qwen3.harmless"))
    backbone |= {"rope_theta": theta, "pretrained": local_or_hub(name)}
    return {
        "model": {**sizes, "backbone": backbone},
        "text": {"encoder": "tokens", "width": sizes["dim"], "vocab_size": vocabulary},
    }


@torch.no_grad()
def load_backbone(lm: TokenLM, text: TextConfig, name: str) -> TokenConditioner:
    """Copy a Qwen3's weights into the layers and the last norm of a model of its sizes -> its tokens, with theirs.

    name: directory or hub id. What it does not have, the embeddings and heads of codes, stays. InputError where files
    are missing, or do not fit.
    """
    with opening(f"backbone {name!r}", ADVICE):
        directory = encoder.here(name, encoder.LAYOUTS[:2])
        tokenizer = PretrainedTokenizer(directory)
    conditioner = TokenConditioner(text, tokenizer)
    file = weights_file(directory, "model.safetensors", "model.safetensors.index.json")
    tensors = read_weights(file)
    tensors = under(tensors, "model.") or tensors
    own = _views(lm, conditioner.embed_tokens)
    for name, found in match(own, tensors, str, file, ["lm_head.weight"]).items():
        own[name].copy_(found.value())
        found.release()
    return conditioner


def _views(lm: TokenLM, words: nn.Embedding) -> dict[str, Tensor]:
    """Views of our weights under the names of Qwen3Model, joined matrices in their parts."""
    assert lm.config.backbone is not None
    kv_heads = lm.config.backbone.num_kv_heads
    heads = torch.tensor([lm.config.num_heads, kv_heads, kv_heads]) * lm.config.backbone.head_dim
    views = {"embed_tokens.weight": words.weight, "norm.weight": lm.get_parameter("out_norm.weight")}
    for number, layer in enumerate(lm.layers):
        for ours, theirs in NAMES.items():
            weight = layer.get_parameter(f"{ours}.weight")
            rows = heads.tolist() if len(theirs) == 3 else [len(weight) // len(theirs)] * len(theirs)
            for part, view in zip(theirs, weight.split(rows), strict=True):
                views[f"layers.{number}.{part}.weight"] = view
    return views
