"""Denoisers: diffusers' networks behind one call, `denoise(x_t, t [B], conditioning) -> prediction`, shaped as x_t.

Each adapter is the only code that uses its network's argument names. `t` is the network's own time: 0 to 999 for the
UNets, 0 to 1 for the transformers. The process defines what is predicted: noise, velocity or flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel
from torch import Tensor, nn

from audiogen.config import NotNegative, Positive, check_ranges
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.dit3 import AudioDiT3, DiT3Config
from audiogen.diffusion.network import Denoiser, OneStream
from audiogen.errors import InputError

MOST_LAYERS = 16  # attention layers at one place


@dataclass(frozen=True)
class AudioUNetConfig:
    """The UNet of AudioLDM, AudioLDM 2 and LAFMA; the defaults are AudioLDM-S.

    channels, heads: of each level; heads is the number of attention heads, and of the middle the last. attention: which
    levels attend; the middle always does. layers: the attention layers after each residual block, in order, null for
    one of self-attention alone and a width for one with cross-attention to tokens that wide; see `streams`. depth:
    transformer blocks of each layer. vector_dim: E of the vector joined to the time embedding, null for none.
    norm_groups: of channels, each normalised by itself; a group of one loses what time and vector add to it.
    """

    latent_dim: Positive = 8
    channels: tuple[Positive, ...] = (128, 256, 384, 640)
    heads: tuple[Positive, ...] = (4, 8, 12, 20)
    attention: tuple[bool, ...] = (False, True, True, True)
    layers: tuple[Positive | None, ...] = (None,)
    depth: Positive = 1
    num_res_blocks: Positive = 2
    vector_dim: Positive | None = 512
    extra_channels: Literal[0] = 0  # of former recipes and models: nothing joins the latents
    norm_groups: Positive = 32

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_levels(self)
        if not 1 <= len(self.layers) <= MOST_LAYERS or len(self.cross_dims) > 2:
            raise InputError(f"layers {self.layers}: 1 to {MOST_LAYERS} are needed, null or one of 2 widths")

    @property
    def streams(self) -> dict[int, int]:
        """Layer -> the stream of tokens that it attends to, for the layers with cross-attention.

        The first two layers attend to the first stream and the others to the second, as in diffusers; where the widths
        do not fit that, each width is a stream, in order.
        """
        widths = {layer: width for layer, width in enumerate(self.layers) if width is not None}
        first = {width for layer, width in widths.items() if layer < 2}
        later = {width for layer, width in widths.items() if layer >= 2}
        if len(first) > 1 or len(later) > 1:
            ordered = list(dict.fromkeys(widths.values()))
            return {layer: ordered.index(width) for layer, width in widths.items()}
        second = 1 if first else 0  # the only stream may be that of the later layers
        return {layer: second if layer > 1 else 0 for layer in widths}

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """Width of each stream of tokens that the network attends to."""
        streams = self.streams
        widths = {streams[layer]: width for layer, width in enumerate(self.layers) if width is not None}
        return tuple(widths[stream] for stream in sorted(widths))

    @property
    def beyond_diffusers(self) -> bool:
        """Whether diffusers' blocks cannot run these layers: more than four, or streams that it would swap."""
        mixed = any(stream != int(layer > 1) for layer, stream in self.streams.items())
        return len(self.layers) > 4 or (mixed and len(self.cross_dims) > 1)


@dataclass(frozen=True)
class TextUNetConfig(OneStream):
    """The UNet of Stable Diffusion 2.1, which Tango trains on sound: the defaults. heads: for each level."""

    latent_dim: Positive = 8
    channels: tuple[Positive, ...] = (320, 640, 1280, 1280)
    heads: tuple[Positive, ...] = (5, 10, 20, 20)
    attention: tuple[bool, ...] = (True, True, True, False)
    cross_dim: Positive = 1024
    num_res_blocks: Positive = 2
    extra_channels: Literal[0] = 0  # of former recipes and models: nothing joins the latents
    norm_groups: Positive = 32
    vector_dim: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_levels(self)


@dataclass(frozen=True)
class DiTConfig(OneStream):
    """The diffusion transformer of Stable Audio Open: the defaults. kv_heads: of cross-attention.

    cross_dim: of the tokens. cross_width: what they are projected to; kv_heads times head_dim. vector_dim: E of the
    vector that becomes one token before the latents.
    """

    latent_dim: Positive = 64
    num_layers: Positive = 24
    num_heads: Positive = 24
    head_dim: Positive = 64
    kv_heads: Positive = 12
    cross_dim: Positive = 768
    cross_width: Positive = 768
    vector_dim: Positive = 1536
    extra_channels: Literal[0] = 0  # of former recipes and models: nothing joins the latents

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.cross_width != self.kv_heads * self.head_dim or self.num_heads % self.kv_heads:
            raise InputError(
                f"cross_width is {self.cross_width}; it must be kv_heads ({self.kv_heads}) times head_dim "
                f"({self.head_dim}), and num_heads ({self.num_heads}) a multiple of kv_heads"
            )
        if self.head_dim % 2 or self.head_dim < 32:
            raise InputError(f"head_dim {self.head_dim} must be even and at least 32, the rotated part")


@dataclass(frozen=True)
class FluxConfig(OneStream):
    """The transformer of TangoFlux: the defaults.

    Text and latents are joined in `num_layers` blocks, then mixed in `num_single_layers`. cross_dim: of the tokens.
    vector_dim: E of the pooled vector. rotary: of each head's width, for the three position axes, which are all time
    here; their sum is head_dim.
    """

    latent_dim: Positive = 64
    num_layers: Positive = 6
    num_single_layers: NotNegative = 18
    num_heads: Positive = 8
    head_dim: Positive = 128
    cross_dim: Positive = 1024
    vector_dim: Positive = 1024
    rotary: tuple[Positive, Positive, Positive] = (16, 56, 56)

    def __post_init__(self) -> None:
        check_ranges(self)
        if sum(self.rotary) != self.head_dim or any(part % 2 for part in self.rotary):
            raise InputError(f"rotary {self.rotary} must be even and add up to head_dim, {self.head_dim}")


DenoiserConfig = AudioUNetConfig | TextUNetConfig | DiTConfig | FluxConfig | DiT3Config


class _UNet(Denoiser):
    """What attends is a picture, halved on both sides from level to level."""

    def num_positions(self, x_t: Tensor) -> int:  # x_t [B, D, T, M]
        levels = [*self.config.attention[:-1], True].index(
            True
        )  # the middle, of the last level's size, always does
        return x_t.shape[2] * x_t.shape[3] >> 2 * levels


class AudioUNet(_UNet):
    """AudioLDM2UNet2DConditionModel: x_t [B, D, T, M], t [B] in 0 to 999."""

    def __init__(self, config: AudioUNetConfig):
        has_vector, layers = config.vector_dim is not None, list(config.layers)
        network = AudioLDM2UNet2DConditionModel(
            **_unet_sizes(config),
            cross_attention_dim=[layers[:1] if config.beyond_diffusers else layers] * len(config.channels),
            transformer_layers_per_block=config.depth,
            class_embed_type="simple_projection" if has_vector else None,
            projection_class_embeddings_input_dim=config.vector_dim,
            class_embeddings_concat=has_vector,
        )
        if config.beyond_diffusers:
            for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
                if hasattr(block, "attentions"):
                    _replace_attention(block, config)
            network.register_to_config(cross_attention_dim=[layers] * len(config.channels))
        super().__init__(config, network)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:  # as in `forward`
        given: dict[str, Any] = {"encoder_hidden_states": None}
        if self.config.beyond_diffusers:  # each layer takes its stream out of the tuple
            given["encoder_hidden_states"] = conditioning.streams
        else:
            for suffix, stream in zip(("", "_1"), conditioning.streams, strict=False):
                given[f"encoder_hidden_states{suffix}"] = stream.tokens
                given[f"encoder_attention_mask{suffix}"] = stream.mask
        return self.network(x_t, t, class_labels=conditioning.vector, **given).sample


def _replace_attention(block: Any, config: AudioUNetConfig) -> None:
    """Give a block of one attention layer a place those of `config.layers`, each with its own stream."""
    layers = []
    for usual in block.attentions:
        for index, width in enumerate(config.layers):
            layer = Transformer2DModel(
                usual.config.num_attention_heads,
                usual.config.attention_head_dim,
                in_channels=usual.config.in_channels,
                num_layers=config.depth,
                cross_attention_dim=width,
                norm_num_groups=config.norm_groups,
                double_self_attention=width is None,
            )
            if width is not None:
                take = partial(_take_stream, config.streams[index])
                layer.register_forward_pre_hook(take, with_kwargs=True)
            layers.append(layer)
    block.attentions = nn.ModuleList(layers)
    block.cross_attention_dim = config.layers


def _take_stream(stream: int, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Before a layer runs: the tokens [B, L, D] and mask [B, L] of its stream, out of all that the block was given."""
    found = named["encoder_hidden_states"][stream]
    return inputs, named | {"encoder_hidden_states": found.tokens, "encoder_attention_mask": found.mask}


class TextUNet(_UNet):
    """UNet2DConditionModel: x_t [B, D, T, M], t [B] in 0 to 999."""

    def __init__(self, config: TextUNetConfig):
        network = UNet2DConditionModel(
            **_unet_sizes(config),
            cross_attention_dim=config.cross_dim,
            use_linear_projection=True,  # this and the next as in Stable Diffusion 2.1
            upcast_attention=True,
        )
        super().__init__(config, network)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:  # as in `forward`
        (stream,) = conditioning.streams
        return self.network(x_t, t, stream.tokens, encoder_attention_mask=stream.mask).sample


class AudioDiT(Denoiser):
    """StableAudioDiTModel: x_t [B, D, T], t [B] in 0 to 1.

    It has no mask: padding is zeros, which take their share of attention.
    """

    in_frames = True

    def __init__(self, config: DiTConfig):
        network = StableAudioDiTModel(
            in_channels=config.latent_dim,
            num_layers=config.num_layers,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            num_key_value_attention_heads=config.kv_heads,
            out_channels=config.latent_dim,
            cross_attention_dim=config.cross_width,
            global_states_input_dim=config.vector_dim,
            cross_attention_input_dim=config.cross_dim,
        )
        super().__init__(config, network)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.vector is not None
        # Half of each head is rotated, at least 32 numbers, as in the release. One position more than frames: that of
        # the global token, which comes first.
        rotated = max(self.config.head_dim // 2, 32)
        times = torch.arange(x_t.shape[-1] + 1, device=x_t.device)
        waves = get_1d_rotary_pos_embed(rotated, times, use_real=True, repeat_interleave_real=False)
        return self.network(
            x_t,
            t,
            encoder_hidden_states=conditioning.streams[0].tokens,
            global_hidden_states=conditioning.vector[:, None],  # [B, 1, E]
            rotary_embedding=waves,  # cosines and sines [T + 1, rotated]
        ).sample


class AudioFlux(Denoiser):
    """FluxTransformer2DModel: x_t [B, D, T], t [B] in 0 to 1.

    The network takes no mask. Rows with the same number of valid tokens go through together, without the others, so
    that a row does not depend on the texts beside it.
    """

    in_frames = True

    def __init__(self, config: FluxConfig):
        network = FluxTransformer2DModel(
            in_channels=config.latent_dim,
            num_layers=config.num_layers,
            num_single_layers=config.num_single_layers,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.cross_dim,
            pooled_projection_dim=config.vector_dim,
            axes_dims_rope=config.rotary,
        )
        super().__init__(config, network)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:  # as in `forward`
        (stream,), vector = conditioning.streams, conditioning.vector
        assert vector is not None
        lengths = stream.mask.sum(dim=1)  # [B]
        prediction, times = torch.empty_like(x_t), torch.arange(x_t.shape[-1], device=x_t.device)
        for length in lengths.unique().tolist():
            rows = lengths == length  # b of them
            tokens = stream.tokens[rows][stream.mask[rows]].reshape(-1, length, stream.tokens.shape[-1])
            found = self.network(
                x_t[rows].transpose(1, 2),  # [b, T, D]
                encoder_hidden_states=tokens,  # [b, L, D]
                pooled_projections=vector[rows],
                timestep=t[rows],
                img_ids=times[:, None].expand(-1, 3),  # [T, 3]: time on each axis
                txt_ids=torch.zeros(length, 3, device=x_t.device),  # text has no position
            ).sample.transpose(1, 2)
            prediction[rows] = found.to(x_t.dtype)  # under autocast it is of another
        return prediction


def denoiser(config: DenoiserConfig) -> Denoiser:
    """A new network of this config."""
    networks: dict[type, Any] = {AudioUNetConfig: AudioUNet, TextUNetConfig: TextUNet}
    networks |= {DiTConfig: AudioDiT, FluxConfig: AudioFlux, DiT3Config: AudioDiT3}
    return networks[type(config)](config)


def _check_levels(config: AudioUNetConfig | TextUNetConfig) -> None:
    channels, heads, attention, groups = config.channels, config.heads, config.attention, config.norm_groups
    if not (len(channels) == len(heads) == len(attention) > 0):
        raise InputError(f"channels {channels}, heads {heads}, attention {attention} need one entry a level")
    for width, number in zip(channels, heads, strict=True):
        if width % groups or width % number:
            raise InputError(
                f"a level of {width} channels with {number} heads; channels must be a multiple of norm_groups "
                f"({groups}) and of its heads"
            )


def _unet_sizes(config: AudioUNetConfig | TextUNetConfig) -> dict[str, Any]:
    """The sizes of a UNet under diffusers' names."""
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)]
    return {
        "in_channels": config.latent_dim,
        "out_channels": config.latent_dim,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": config.channels,
        "layers_per_block": config.num_res_blocks,
        "attention_head_dim": config.heads,  # diffusers' name for the number of heads
        "norm_num_groups": config.norm_groups,
    }
