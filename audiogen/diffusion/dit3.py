"""The diffusion transformer of Stable Audio 3 (arXiv:2605.17991): the weights of diffusers' StableAudio3DiTModel.

Its forward pass is our own for one reason: diffusers pads each text to 256 tokens with one learned vector, and attends
to all of them in every layer. Here the learned vector is one token, whose score has log n added for its n copies, which
is the same softmax: exp(s + log n) = n exp(s). Tests compare it with diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiogen.config import Positive, PositiveFloat, check_ranges
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.network import Denoiser, OneStream
from audiogen.errors import InputError
from audiogen.interfaces import Condition


@dataclass(frozen=True)
class DiT3Config(OneStream):
    """The transformer of Stable Audio 3; the defaults are the small release's.

    cross_dim: of the tokens. vector_dim: E of the vector that is joined to the time. memory_tokens: learned, before the
    latents. time_dim: of the time's Fourier features. differential: attention is the difference of two, as in the
    medium release. inpaints: the branch for inpainting is there and gets zeros, as by the authors where nothing is
    inpainted; diffusers leaves it out.
    """

    latent_dim: Positive = 256
    num_layers: Positive = 20
    num_heads: Positive = 16
    head_dim: Positive = 64
    ff_mult: PositiveFloat = 4.0
    cross_dim: Positive = 768
    vector_dim: Positive = 768
    memory_tokens: Positive = 64
    time_dim: Positive = 256
    differential: bool = False
    inpaints: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.head_dim % 4 or self.time_dim % 2:  # half of a head is rotated, in pairs
            raise InputError(
                f"head_dim is {self.head_dim} and time_dim {self.time_dim}; they must be multiples of 4 and of 2"
            )


class AudioDiT3(Denoiser):
    """StableAudio3DiTModel: x_t [B, D, T], t [B] in 0 to 1.

    Tokens whose mask is False count as the learned padding. The weights of `to_local_embed`, 26 M of the small
    release's, are for inpainting as the authors train it: of a mask and the kept latents they get zeros, or are not
    used (`DiT3Config.inpaints`).
    """

    in_frames = True

    def __init__(self, config: DiT3Config):
        network = StableAudio3DiTModel(
            io_channels=config.latent_dim,
            embed_dim=config.num_heads * config.head_dim,
            depth=config.num_layers,
            num_heads=config.num_heads,
            cond_token_dim=config.cross_dim,
            global_cond_dim=config.vector_dim,
            local_add_cond_dim=config.latent_dim + 1,
            timestep_features_dim=config.time_dim,
            ff_mult=config.ff_mult,
            num_memory_tokens=config.memory_tokens,
            use_differential_attention=config.differential,
        )
        super().__init__(config, network)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:  # as in `forward`
        network, vector = self.network, conditioning.vector
        assert vector is not None
        tokens, weights = gather_padding(conditioning.streams[0], network.prompt_padding_embedding)
        context = network.to_cond_embed(tokens)  # [B, L, D]
        features = network.timestep_features(t.float()[:, None])  # [B, time_dim]
        position = network.to_global_embed(vector) + network.to_timestep_embed(features)
        modulation = network.global_cond_embedder(position)  # [B, 6 D]
        x = (network.preprocess_conv(x_t) + x_t).transpose(1, 2)
        memory = network.memory_tokens.expand(len(x_t), -1, -1)
        # in float32 also under autocast: layers are added to it
        x = torch.cat([memory, network.proj_in(x).to(memory.dtype)], dim=1)  # [B, memory_tokens + T, D]
        waves = rotary(x.shape[1], network.rotary_pos_emb.inv_freq)
        nothing = x_t.new_zeros(1, self.config.latent_dim + 1) if self.config.inpaints else None
        for block in network.transformer_blocks:
            local = None
            if nothing is not None:  # none for the learned tokens before the latents
                local = F.pad(
                    block.to_local_embed(nothing).expand(x_t.shape[2], -1), (0, 0, memory.shape[1], 0)
                )
            x = run_block(block, x, context, weights, modulation, waves, local)
        x = network.proj_out(x[:, memory.shape[1] :]).transpose(1, 2)
        return network.postprocess_conv(x) + x


def run_block(
    block: Any,
    x: Tensor,
    context: Tensor,
    weights: Tensor,
    modulation: Tensor,
    waves: tuple[Tensor, Tensor],
    local: Tensor | None = None,
) -> Tensor:
    """One layer: x [B, S, D], context [B, L, D] with added scores [B, L], modulation [B, 6 D] -> [B, S, D].

    local: added to x after the attention to the context, [S, D].
    """
    scale, shift, gate, scale_ff, shift_ff, gate_ff = (
        (block.to_scale_shift_gate + modulation)[:, None].to(x.dtype).chunk(6, dim=-1)
    )
    attention, normed = block.self_attn, norm(x, block.pre_norm) * (1 + scale) + shift
    *pairs, values = _heads(attention.to_qkv(normed), attention)  # [B, heads, S, D / heads] each
    queries, keys = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    queries = [rotate(norm(q, attention.q_norm), waves) for q in queries]
    keys = [rotate(norm(k, attention.k_norm), waves) for k in keys]
    x = x + attention.to_out(attend(queries, keys, values)) * torch.sigmoid(1 - gate)

    attention, normed = block.cross_attn, norm(x, block.cross_attend_norm)
    queries = [norm(q, attention.q_norm) for q in _heads(attention.to_q(normed), attention)]
    *keys, values = _heads(attention.to_kv(context), attention)
    keys = [norm(k, attention.k_norm) for k in keys]
    x = x + attention.to_out(attend(queries, keys, values, weights[:, None, None]))
    if local is not None:
        x = x + local

    normed = norm(x, block.ff_norm) * (1 + scale_ff) + shift_ff
    value, opened = block.ff.proj_in(normed).chunk(2, dim=-1)
    return x + block.ff.proj_out(value * F.silu(opened)) * torch.sigmoid(1 - gate_ff)


def gather_padding(stream: Condition, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, D] and their mask, padding [D] -> tokens [B, K + 1, D] and what to add to their scores [B, K + 1].

    K is the most valid tokens of a row. The last token is the padding; its score counts for all invalid tokens of its
    row, and for none where there are none.
    """
    most = int(stream.mask.sum(dim=1).max())
    # stable: the valid tokens first, in their order
    order = stream.mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # [B, K]
    tokens = stream.tokens.gather(1, order[..., None].expand(-1, -1, stream.tokens.shape[-1]))
    is_valid = stream.mask.gather(1, order)
    num_padding = (~stream.mask).sum(dim=1, keepdim=True)  # [B, 1]
    added = torch.cat([is_valid, num_padding], dim=1).float().log()  # log 0 is -inf: no share
    tokens = torch.where(is_valid[..., None], tokens, 0.0)
    last = padding.to(tokens.dtype).expand(len(tokens), 1, -1)
    return torch.cat([tokens, last], dim=1), added


def attend(queries: list[Tensor], keys: list[Tensor], values: Tensor, added: Tensor | None = None) -> Tensor:
    """Attention of the first pair, less that of the second where there is one: -> [B, S, heads * D].

    queries [B, heads, S, D], keys and values [B, heads, L, D]. added: to the scores, broadcast to [B, heads, S, L].
    """
    added = None if added is None else added.to(values.dtype)
    found = [
        F.scaled_dot_product_attention(q.to(values.dtype), k.to(values.dtype), values, attn_mask=added)
        for q, k in zip(queries, keys, strict=True)
    ]
    return rearrange(found[0] if len(found) == 1 else found[0] - found[1], "b h s d -> b s (h d)")


def norm(x: Tensor, layer: Any) -> Tensor:
    """x [..., D] over its root mean square, in float32, times the layer's gains [D]; in x's number type."""
    # in three passes over x, where F.rms_norm takes seven on a CPU
    power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    return (x * torch.rsqrt(power + layer.eps) * layer.gamma).to(x.dtype)


def rotary(length: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, 2 F] of positions 0 to S - 1 at F frequencies, float32."""
    angles = torch.outer(torch.arange(length, device=frequencies.device), frequencies.float())
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, waves: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions for the first 2 F numbers of heads [..., S, D], in float32; the others stay (2104.09864)."""
    cosines, sines = waves
    first, rest = x[..., : cosines.shape[-1]].float(), x[..., cosines.shape[-1] :]
    low, high = first.chunk(2, dim=-1)
    turned = first * cosines + torch.cat([-high, low], dim=-1) * sines
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def _heads(x: Tensor, attention: Any) -> list[Tensor]:
    """[B, S, n * heads * D] -> n tensors [B, heads, S, D]."""
    split = rearrange(x, "b s (n h d) -> n b h s d", h=attention.heads, d=attention.dim_heads)
    return list(split.unbind(0))
