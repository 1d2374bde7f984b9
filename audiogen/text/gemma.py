"""T5Gemma's encoder (arXiv:2504.06225), which reads the texts of Stable Audio 3: layers of transformers, run by us.

Names of weights and keys of config.json are those of transformers' T5GemmaEncoderModel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from audiogen.config import Positive, PositiveFloat, Range, build, check_ranges
from audiogen.errors import InputError
from audiogen.packed import Linear


@dataclass(frozen=True)
class GemmaShape:
    """Keys and values of the part "encoder" of a T5Gemma's config.json; the defaults are google/t5gemma-b-b-ul2's.

    sliding_window: of half of the layers; texts are shorter, so that it has no effect.
    """

    vocab_size: Positive = 256000
    hidden_size: Positive = 768
    intermediate_size: Positive = 2048
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    num_key_value_heads: Positive = 12
    head_dim: Positive = 64
    query_pre_attn_scalar: Positive = 64
    attn_logit_softcapping: PositiveFloat | None = 50.0
    rms_norm_eps: float = 1e-6
    rope_theta: PositiveFloat = 10000.0
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    attention_bias: bool = False
    sliding_window: Annotated[int, Range(512)] | None = 4096

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} and head_dim {self.head_dim} must be multiples of "
                f"num_key_value_heads, {self.num_key_value_heads}, and of 2"
            )

    architecture: ClassVar[str] = "T5GemmaEncoderModel"

    @property
    def d_model(self) -> int:
        """The width of the states."""
        return self.hidden_size

    def sizes(self) -> dict[str, Any]:
        """Arguments of transformers' T5GemmaModuleConfig."""
        found = dataclasses.asdict(self)
        rope = {"rope_type": "default", "rope_theta": found.pop("rope_theta")}
        return {**found, "rope_parameters": rope, "dropout_rate": 0.0}

    def to_dict(self) -> dict[str, Any]:
        """What config.json of a T5GemmaEncoderModel holds."""
        module = {**self.sizes(), "model_type": "t5_gemma_module"}
        return {
            "model_type": "t5gemma",
            "is_encoder_decoder": False,
            "encoder": module,
            "decoder": module,  # there is none, but the class reads special tokens from it
            "vocab_size": self.vocab_size,
        }


def read_gemma(found: Mapping[str, Any]) -> GemmaShape:
    """From what a config.json holds; InputError for what does not fit."""
    encoder = found.get("encoder")
    if not isinstance(encoder, Mapping):
        raise InputError("it lacks `encoder`, a mapping with its sizes")
    names = {field.name for field in dataclasses.fields(GemmaShape)}
    values = {name: value for name, value in encoder.items() if name in names}
    rope = encoder.get("rope_parameters")
    if isinstance(rope, Mapping):  # as transformers 5 writes it; before, rope_theta stood alone
        if rope.get("rope_type", "default") != "default":
            raise InputError(f"rope_type is {rope['rope_type']!r}; only 'default' is read")
        values["rope_theta"] = rope.get("rope_theta", 10000.0)
    return build(GemmaShape, values)


class GemmaStack(nn.Module):
    """Token ids [B, L] -> states [B, L, D]; all tokens see each other."""

    def __init__(self, shape: GemmaShape):
        super().__init__()
        # late: transformers' models take seconds to import
        from transformers.models.t5gemma import modeling_t5gemma as theirs
        from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

        self.config = shape
        # "eager" is transformers' only attention with Gemma's limit on scores
        config = T5GemmaModuleConfig(**shape.sizes(), attn_implementation="eager")
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        made = [theirs.T5GemmaEncoderLayer(config, index) for index in range(shape.num_hidden_layers)]
        self.layers: Any = nn.ModuleList(made)
        self.norm = theirs.T5GemmaRMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        for layer in self.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = Linear

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool [B, L], False for padding."""
        x = self.embed_tokens(ids) * math.sqrt(self.config.hidden_size)
        added = None  # to scores, [B, 1, 1, L]
        if mask is not None:
            added = torch.zeros(mask.shape).to(x).masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None]
        steps = torch.arange(0, self.config.head_dim, 2, device=x.device) / self.config.head_dim
        angles = torch.outer(torch.arange(ids.shape[1], device=x.device), self.config.rope_theta**-steps)
        angles = torch.cat([angles, angles], dim=-1)[None]  # [1, L, head_dim]
        for layer in self.layers:
            x = layer(x, position_embeddings=(angles.cos(), angles.sin()), attention_mask=added)
        return self.norm(x)
