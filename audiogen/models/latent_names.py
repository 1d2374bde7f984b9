"""Names of tensors: ours, which are those of diffusers and transformers, to those of the authors' files.

Each function takes one of our names. Where the public file holds several of our tensors in one, joined along dim 0, it
gives the public name, which of them is meant, and how many there are.
"""

from __future__ import annotations

import re

Source = str | tuple[str, int, int]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "film_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_DIT = {
    "time_proj": "timestep_features",
    "timestep_proj": "to_timestep_embed",
    "global_proj": "to_global_embed",
    "cross_attention_proj": "to_cond_embed",
    "preprocess_conv": "preprocess_conv",
    "postprocess_conv": "postprocess_conv",
    "proj_in": "transformer.project_in",
    "proj_out": "transformer.project_out",
}
_DIT_BLOCK = {
    "norm1": "pre_norm",
    "norm2": "cross_attend_norm",
    "norm3": "ff_norm",
    "attn1.to_out.0": "self_attn.to_out",
    "attn2.to_q": "cross_attn.to_q",
    "attn2.to_out.0": "cross_attn.to_out",
    "ff.net.0.proj": "ff.ff.0.proj",
    "ff.net.2": "ff.ff.2",
}
_JOINED = {
    "attn1.to_q": ("self_attn.to_qkv", 0, 3),
    "attn1.to_k": ("self_attn.to_qkv", 1, 3),
    "attn1.to_v": ("self_attn.to_qkv", 2, 3),
    "attn2.to_k": ("cross_attn.to_kv", 0, 2),
    "attn2.to_v": ("cross_attn.to_kv", 1, 2),
}


def audio_unet(name: str, num_res_blocks: int, num_layers: int, attention: tuple[bool, ...]) -> str:
    """AudioUNet's `network` -> the UNetModel of the latent-diffusion family.

    num_layers: attention layers at each place. attention: which levels attend. Their blocks are numbered through, a
    down- or upsampler counted in.
    """
    stem, leaf = name.rsplit(".", 1)
    if stem in _UNET:
        return f"{_UNET[stem]}.{leaf}"
    block, *rest = stem.split(".")
    if block == "mid_block":
        kind, index, tail = rest[0], int(rest[1]), ".".join(rest[2:])
        if kind == "resnets":
            return f"middle_block.{index * (num_layers + 1)}.{_RESNET[tail]}.{leaf}"
        return f"middle_block.{1 + index}.{tail}.{leaf}"
    level, kind, index, tail = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    stride = num_res_blocks + 1
    first, side = (1 + level * stride, "input") if block == "down_blocks" else (level * stride, "output")
    if kind == "resnets":
        return f"{side}_blocks.{first + index}.0.{_RESNET[tail]}.{leaf}"
    if kind == "attentions":
        place, layer = divmod(index, num_layers)
        return f"{side}_blocks.{first + place}.{1 + layer}.{tail}.{leaf}"
    if kind == "downsamplers":
        return f"input_blocks.{first + num_res_blocks}.0.op.{leaf}"
    attends = attention[len(attention) - 1 - level]
    return f"output_blocks.{first + num_res_blocks}.{1 + num_layers * attends}.conv.{leaf}"


def mel_vae(name: str, levels: int) -> str:
    """AutoencoderKL -> the autoencoder of the latent-diffusion family, whose decoder counts levels from the end."""
    stem, leaf = name.rsplit(".", 1)
    side, *rest = stem.split(".")
    if not rest or rest[0] in ("conv_in", "conv_out"):
        return name
    if rest[0] == "conv_norm_out":
        return f"{side}.norm_out.{leaf}"
    if rest[0] == "mid_block":
        if rest[1] == "attentions":
            return f"{side}.mid.attn_1.{_VAE_ATTENTION['.'.join(rest[3:])]}.{leaf}"
        return f"{side}.mid.block_{int(rest[2]) + 1}.{_vae_resnet(rest[3])}.{leaf}"
    level = int(rest[1]) if rest[0] == "down_blocks" else levels - 1 - int(rest[1])
    where = f"{side}.{'down' if rest[0] == 'down_blocks' else 'up'}.{level}"
    if rest[2] == "resnets":
        return f"{where}.block.{rest[3]}.{_vae_resnet(rest[4])}.{leaf}"
    return f"{where}.{'downsample' if rest[2] == 'downsamplers' else 'upsample'}.conv.{leaf}"


def _vae_resnet(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


def vocoder(name: str) -> str:
    """SpeechT5HifiGan -> HiFi-GAN's generator."""
    return re.sub(r"^upsampler\.", "ups.", name)


def oobleck(name: str, levels: int) -> str:
    """AutoencoderOobleck -> the autoencoder of stable-audio-tools, whose layers are numbered."""
    side, *rest = name.split(".")
    encoder = side == "encoder"
    if rest[0] != "block":  # the first layer, and the last two
        index = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}[rest[0]]
        return f"{side}.layers.{index}.{rest[1]}"
    where, layer, tail = f"{side}.layers.{int(rest[1]) + 1}.layers", rest[2], rest[3:]
    if layer.startswith("res_unit"):
        unit = int(layer.removeprefix("res_unit")) - (1 if encoder else -1)
        inner = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}[tail[0]]
        return f"{where}.{unit}.layers.{inner}.{tail[1]}"
    index = {"snake1": 3 if encoder else 0, "conv1": 4, "conv_t1": 1}[layer]
    return f"{where}.{index}.{tail[0]}"


def dit(name: str) -> Source:
    """StableAudioDiTModel -> the diffusion transformer of stable-audio-tools."""
    stem, leaf = name.rsplit(".", 1)
    parts = stem.split(".")
    if parts[0] != "transformer_blocks":
        return ".".join([_DIT[parts[0]], *parts[1:], leaf])
    where, layer = f"transformer.layers.{parts[1]}", ".".join(parts[2:])
    if layer in _JOINED:
        public, part, of = _JOINED[layer]
        return f"{where}.{public}.{leaf}", part, of
    if layer.startswith("norm"):
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    return f"{where}.{_DIT_BLOCK[layer]}.{leaf}"


def seconds(name: str) -> str:
    """StableAudioProjectionModel -> the conditioners of stable-audio-tools."""
    owner, *rest = name.split(".")
    if owner == "text_projection":
        return ".".join(["prompt.proj_out", *rest])
    which = {"start_number_conditioner": "seconds_start", "end_number_conditioner": "seconds_total"}[owner]
    return ".".join([which, "embedder.embedding", *rest[1:]])


def loa(name: str) -> Source:
    """LoaGenerator -> SequenceGenAudioMAECond of AudioLDM 2; rows 0 and 1 of its 32 start and end tokens are used."""
    tokens = re.fullmatch(r"projection\.(sos|eos)_embed(_1)?", name)
    if tokens:
        table = "start" if tokens[1] == "sos" else "end"
        return f"{table}_of_sequence_tokens.weight", 1 if tokens[2] else 0, 32
    linear = re.fullmatch(r"projection\.projection(_1)?\.(\w+)", name)
    if linear:
        return f"input_sequence_embed_linear.{1 if linear[1] else 0}.{linear[2]}"
    return re.sub(r"^gpt2\.", "model.", name)
