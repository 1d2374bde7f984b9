"""A tiny system of each kind, as a recipe holds it; all text goes through the embedded encoder."""

from omegaconf import OmegaConf

from audiogen.config import build
from audiogen.diffusion.systems import SystemConfig

TEXT = "{encoder: embedded, width: %d, dim: 16, num_layers: 1, num_heads: 2, dropout: 0.0, vocab_size: 40}"
MEL = """
mel_autoencoder:
  channels: [32, 32]
  num_res_blocks: 1
  latent_dim: 4
  mel: {n_fft: 64, hop_length: 20, num_mels: 16}
  vocoder:
    {channels: 16, rates: [5, 4], kernels: [8, 8], resblock_kernels: [3], resblock_dilations: [[1, 3]]}
"""
WAVE = """
waveform_autoencoder: {latent_dim: 4, width: 8, multiples: [1, 2], strides: [4, 2], sample_rate: 8000, channels: 2}
"""
SAME = """
same_autoencoder:
  {sample_rate: 8000, patch: 4, latent_dim: 4, width: 8, multiples: [2], strides: [2], depths: [2], head_dim: 8}
"""
# A level of 32 channels normalises each channel by itself, which takes away what time and vector add to it.
UNET = "audio_unet: {latent_dim: 4, channels: [32, 64], heads: [2, 4], attention: [false, true], num_res_blocks: 1, "
RECIPES = {
    "audioldm": f"""{MEL}
conditioner: {{vector: [pooled], text: {TEXT % 24}, pooled_dim: 20}}
{UNET.replace("[32, 64]", "[64, 64]")} layers: [null], vector_dim: 20}}
""",
    "audioldm2": f"""{MEL}
conditioner:
  cross: [[loa], [text]]
  text: {TEXT % 24}
  pooled_dim: 12
  loa: {{width: 16, length: 3, num_layers: 1, num_heads: 2, max_positions: 96, vocab_size: 2,
    clap_dim: 12, text_dim: 24}}
{UNET} layers: [null, 16, 24], vector_dim: null}}
""",
    "lafma": f"""{MEL}
conditioner: {{cross: [[text]], text: {TEXT % 24}}}
{UNET} layers: [24, 24], vector_dim: null}}
""",
    "tango": f"""{MEL}
conditioner: {{cross: [[text]], text: {TEXT % 24}}}
text_unet:
  {{latent_dim: 4, channels: [32, 64], heads: [2, 4], attention: [true, false], cross_dim: 24, num_res_blocks: 1}}
""",
    "stable_audio": f"""{WAVE}
conditioner:
  cross: [[text, seconds_start, seconds_total]]
  vector: [seconds_start, seconds_total]
  text: {TEXT % 24}
  text_length: 64
  seconds: {{width: 24, max_s: 30.0}}
dit:
  {{latent_dim: 4, num_layers: 1, num_heads: 2, head_dim: 32, kv_heads: 1, cross_dim: 24, cross_width: 32,
    vector_dim: 48}}
""",
    "stable_audio_3": f"""{SAME}
conditioner:
  cross: [[text, seconds_total]]
  vector: [seconds_total]
  unconditional: empty
  padding: masked
  text: {TEXT % 24}
  text_length: 64
  seconds: {{width: 24, max_s: 30.0, frequencies: exponential}}
dit3: {{latent_dim: 4, num_layers: 1, num_heads: 2, head_dim: 16, ff_mult: 2.0, cross_dim: 24, vector_dim: 24,
  memory_tokens: 3, time_dim: 32}}
""",
    "tangoflux": f"""{WAVE}
conditioner:
  cross: [[text, seconds_total]]
  vector: [pooled]
  unconditional: padded
  text: {TEXT % 24}
  pooled_dim: 20
  seconds: {{width: 24, max_s: 30.0}}
flux:
  {{latent_dim: 4, num_layers: 1, num_single_layers: 1, num_heads: 2, head_dim: 16, cross_dim: 24, vector_dim: 20,
   rotary: [4, 6, 6]}}
""",
}
CAPTIONS = ["a dog barks twice", "rain falls on a tin roof", "a clock ticks, then a bell"]


def tiny(name: str) -> SystemConfig:
    return build(SystemConfig, OmegaConf.create(RECIPES[name]))
