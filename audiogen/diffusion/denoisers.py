"""Denoisers: diffusers' networks behind one call, `denoise(x_t, t [B], routes) -> prediction`, shaped as x_t.

Each adapter is the only place that knows its network's argument names. `t` is the network's own time: 0 to 999 for the
UNets, 0 to 1 for the two transformers. What a network predicts (noise, velocity, flow) is for the process to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel
from torch import Tensor, nn

from audiogen.diffusion.routes import Routes
from audiogen.errors import InputError


class Denoiser(Protocol):
    """What a process trains and a sampler calls."""

    def __call__(self, x_t: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """x_t [B, D, T] or [B, D, T, M], t [B] -> prediction, shaped as x_t."""
        ...


@dataclass(frozen=True)
class AudioUNetConfig:
    """The UNet of AudioLDM, AudioLDM 2 and LAFMA; the defaults are AudioLDM-S.

    channels, heads: of each level; heads is the number of attention heads, and of the middle the last. attention: which
    levels attend; the middle always does. layers: what each attention place holds in its order, null for a layer of
    self-attention (two) and a width for one with cross-attention to tokens that wide: the first two look at the first
    stream, the others at the second, if there is one. depth: transformer blocks of each layer. vector_dim: E of the
    vector joined to the time embedding, null for none. extra_channels: D' of what is joined to the latents.
    norm_groups: of channels, each normalised by itself; a group of one loses what time and vector add to it.
    """

    latent_dim: int = 8
    channels: tuple[int, ...] = (128, 256, 384, 640)
    heads: tuple[int, ...] = (4, 8, 12, 20)
    attention: tuple[bool, ...] = (False, True, True, True)
    layers: tuple[int | None, ...] = (None,)
    depth: int = 1
    num_res_blocks: int = 2
    vector_dim: int | None = 512
    extra_channels: int = 0
    norm_groups: int = 32

    def __post_init__(self) -> None:
        _check_levels(self.channels, self.heads, self.attention, self.norm_groups)
        if not 1 <= len(self.layers) <= 4:
            raise InputError(
                f"layers is {self.layers}; one to four entries are allowed, null for self-attention"
            )
        _ = self.cross_dims  # which refuses widths that do not go together

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """Width of each stream of tokens that the network attends to."""
        streams = ({width for width in half if width} for half in (self.layers[:2], self.layers[2:]))
        found = [widths for widths in streams if widths]
        if any(len(widths) > 1 for widths in found):
            raise InputError(
                f"layers is {self.layers}; the first two look at one stream, the others at another"
            )
        return tuple(widths.pop() for widths in found)


@dataclass(frozen=True)
class TextUNetConfig:
    """The UNet of Stable Diffusion 2.1, which Tango trains on sound: the defaults. heads: for each level."""

    latent_dim: int = 8
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    attention: tuple[bool, ...] = (True, True, True, False)
    cross_dim: int = 1024
    num_res_blocks: int = 2
    extra_channels: int = 0
    norm_groups: int = 32

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """Width of its one stream of tokens."""
        return (self.cross_dim,)

    @property
    def vector_dim(self) -> int | None:
        """It has no vector."""
        return None

    def __post_init__(self) -> None:
        _check_levels(self.channels, self.heads, self.attention, self.norm_groups)


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer of Stable Audio Open: the defaults. kv_heads: of cross-attention.

    cross_dim: of the tokens. cross_width: what they are projected to; kv_heads times head_dim. vector_dim: E of the
    vector that becomes one token before the latents.
    """

    latent_dim: int = 64
    num_layers: int = 24
    num_heads: int = 24
    head_dim: int = 64
    kv_heads: int = 12
    cross_dim: int = 768
    cross_width: int = 768
    vector_dim: int = 1536
    extra_channels: int = 0

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """Width of its one stream of tokens."""
        return (self.cross_dim,)

    def __post_init__(self) -> None:
        if self.cross_width != self.kv_heads * self.head_dim or self.num_heads % self.kv_heads:
            raise InputError(
                f"cross_width is {self.cross_width}; it must be kv_heads ({self.kv_heads}) times head_dim "
                f"({self.head_dim}), and num_heads ({self.num_heads}) a multiple of kv_heads"
            )
        if self.head_dim % 2 or self.head_dim < 32:
            raise InputError(
                f"head_dim is {self.head_dim}; it must be even and at least 32, the rotated part"
            )


@dataclass(frozen=True)
class FluxConfig:
    """The transformer of TangoFlux: the defaults.

    Text and latents are joined in `num_layers` blocks, then mixed in `num_single_layers`. cross_dim: of the tokens.
    vector_dim: E of the pooled vector. rotary: of each head's width, for the three position axes, which are all time
    here; their sum is head_dim.
    """

    latent_dim: int = 64
    num_layers: int = 6
    num_single_layers: int = 18
    num_heads: int = 8
    head_dim: int = 128
    cross_dim: int = 1024
    vector_dim: int = 1024
    rotary: tuple[int, int, int] = (16, 56, 56)

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """Width of its one stream of tokens."""
        return (self.cross_dim,)

    def __post_init__(self) -> None:
        if sum(self.rotary) != self.head_dim or any(part % 2 for part in self.rotary):
            raise InputError(
                f"rotary is {self.rotary}; even numbers that make head_dim ({self.head_dim}) are needed"
            )


class AudioUNet(nn.Module):
    """AudioLDM2UNet2DConditionModel: x_t [B, D, T, M]."""

    def __init__(self, config: AudioUNetConfig):
        super().__init__()
        self.config = config
        vector = config.vector_dim is not None
        self.network: Any = AudioLDM2UNet2DConditionModel(
            in_channels=config.latent_dim + config.extra_channels,
            out_channels=config.latent_dim,
            down_block_types=_down(config.attention),
            up_block_types=_up(config.attention),
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            cross_attention_dim=[list(config.layers)] * len(config.channels),
            transformer_layers_per_block=config.depth,
            attention_head_dim=config.heads,  # diffusers' name for the number of heads
            norm_num_groups=config.norm_groups,
            class_embed_type="simple_projection" if vector else None,
            projection_class_embeddings_input_dim=config.vector_dim,
            class_embeddings_concat=vector,
        )

    def forward(self, x_t: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """x_t [B, D, T, M], t [B] -> prediction [B, D, T, M]."""
        _check(len(self.config.cross_dims), self.config.vector_dim, self.config.extra_channels, routes)
        first = routes.cross[0] if routes.cross else None
        second = routes.cross[1] if len(routes.cross) > 1 else None
        return self.network(
            _with_channels(x_t, routes),
            t,
            encoder_hidden_states=None if first is None else first.tokens,
            encoder_attention_mask=None if first is None else first.mask,
            encoder_hidden_states_1=None if second is None else second.tokens,
            encoder_attention_mask_1=None if second is None else second.mask,
            class_labels=routes.vector,
        ).sample


class TextUNet(nn.Module):
    """UNet2DConditionModel: x_t [B, D, T, M]."""

    def __init__(self, config: TextUNetConfig):
        super().__init__()
        self.config = config
        self.network: Any = UNet2DConditionModel(
            in_channels=config.latent_dim + config.extra_channels,
            out_channels=config.latent_dim,
            down_block_types=_down(config.attention),
            up_block_types=_up(config.attention),
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            cross_attention_dim=config.cross_dim,
            attention_head_dim=config.heads,  # diffusers' name for the number of heads
            norm_num_groups=config.norm_groups,
            use_linear_projection=True,
            upcast_attention=True,
        )

    def forward(self, x_t: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """x_t [B, D, T, M], t [B] -> prediction [B, D, T, M]."""
        _check(1, None, self.config.extra_channels, routes)
        (stream,) = routes.cross
        return self.network(
            _with_channels(x_t, routes),
            t,
            encoder_hidden_states=stream.tokens,
            encoder_attention_mask=stream.mask,
        ).sample


class AudioDiT(nn.Module):
    """StableAudioDiTModel: x_t [B, D, T]. No mask is applied: what does not count is zeros, which take their share."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.network: Any = StableAudioDiTModel(
            in_channels=config.latent_dim + config.extra_channels,
            num_layers=config.num_layers,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            num_key_value_attention_heads=config.kv_heads,
            out_channels=config.latent_dim,
            cross_attention_dim=config.cross_width,
            global_states_input_dim=config.vector_dim,
            cross_attention_input_dim=config.cross_dim,
        )

    def forward(self, x_t: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """x_t [B, D, T], t [B] in 0 to 1 -> prediction [B, D, T]."""
        _check(1, self.config.vector_dim, self.config.extra_channels, routes)
        assert routes.vector is not None
        rotated = max(self.config.head_dim // 2, 32)
        cos, sin = get_1d_rotary_pos_embed(  # one position more: that of the global token, which comes first
            rotated, x_t.shape[-1] + 1, use_real=True, repeat_interleave_real=False
        )
        return self.network(
            _with_channels(x_t, routes),
            t,
            encoder_hidden_states=routes.cross[0].tokens,
            global_hidden_states=routes.vector[:, None],
            rotary_embedding=(cos.to(x_t.device), sin.to(x_t.device)),
        ).sample


class AudioFlux(nn.Module):
    """FluxTransformer2DModel: x_t [B, D, T].

    It knows no mask. Rows with the same number of tokens that count go through together, without the others, so that a
    row does not depend on the texts beside it.
    """

    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config = config
        self.network: Any = FluxTransformer2DModel(
            in_channels=config.latent_dim,
            num_layers=config.num_layers,
            num_single_layers=config.num_single_layers,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.cross_dim,
            pooled_projection_dim=config.vector_dim,
            axes_dims_rope=config.rotary,
        )

    def forward(self, x_t: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """x_t [B, D, T], t [B] in 0 to 1 -> prediction [B, D, T]."""
        _check(1, self.config.vector_dim, 0, routes)
        (stream,), vector = routes.cross, routes.vector
        assert vector is not None
        lengths = stream.mask.sum(dim=1)
        prediction = torch.empty_like(x_t)
        for length in lengths.unique().tolist():
            rows = lengths == length
            tokens = stream.tokens[rows][stream.mask[rows]].reshape(-1, length, stream.tokens.shape[-1])
            found = self._run(x_t[rows], t[rows], tokens, vector[rows])
            prediction[rows] = found.to(x_t.dtype)  # under autocast it is of another
        return prediction

    def _run(self, x_t: Tensor, t: Tensor, tokens: Tensor, vector: Tensor) -> Tensor:
        """tokens [B, L, D], which all count."""
        positions = torch.arange(x_t.shape[-1], device=x_t.device)[:, None].expand(-1, 3)  # [T, 3]
        return self.network(
            x_t.transpose(1, 2),  # [B, T, D]
            encoder_hidden_states=tokens,
            pooled_projections=vector,
            timestep=t,
            img_ids=positions,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=x_t.device),
        ).sample.transpose(1, 2)


DenoiserConfig = AudioUNetConfig | TextUNetConfig | DiTConfig | FluxConfig


def denoiser(config: DenoiserConfig) -> AudioUNet | TextUNet | AudioDiT | AudioFlux:
    """A new network of this config."""
    match config:
        case AudioUNetConfig():
            return AudioUNet(config)
        case TextUNetConfig():
            return TextUNet(config)
        case DiTConfig():
            return AudioDiT(config)
        case FluxConfig():
            return AudioFlux(config)


def _check_levels(
    channels: tuple[int, ...], heads: tuple[int, ...], attention: tuple[bool, ...], groups: int
) -> None:
    if not (len(channels) == len(heads) == len(attention) > 0):
        raise InputError(
            f"channels {channels}, heads {heads} and attention {attention} must have one entry a level"
        )
    for width, number in zip(channels, heads, strict=True):
        if groups < 1 or width < groups or width % groups or number < 1 or width % number:
            raise InputError(
                f"a level of {width} channels with {number} heads; channels must be a multiple of norm_groups "
                f"({groups}) and of its heads"
            )


def _down(attention: tuple[bool, ...]) -> tuple[str, ...]:
    return tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention)


def _up(attention: tuple[bool, ...]) -> tuple[str, ...]:
    return tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention))


def _check(num_streams: int, vector_dim: int | None, extra_channels: int, routes: Routes) -> None:
    """Refuse routes that the network does not have: diffusers would ignore some of them without a word."""
    vector = None if routes.vector is None else routes.vector.shape[-1]
    extra = 0 if routes.channels is None else routes.channels.shape[1]
    got = (len(routes.cross), vector, extra)
    if got != (num_streams, vector_dim, extra_channels):
        raise ValueError(
            f"routes have {got[0]} streams, a vector of {got[1]} and {got[2]} channels; the denoiser has "
            f"{num_streams}, {vector_dim} and {extra_channels}"
        )


def _with_channels(x_t: Tensor, routes: Routes) -> Tensor:
    return x_t if routes.channels is None else torch.cat([x_t, routes.channels], dim=1)
