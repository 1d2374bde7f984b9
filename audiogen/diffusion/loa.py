"""The "language of audio" of AudioLDM 2 (arXiv:2308.05734): a GPT-2 that turns a text's features into eight vectors.

They stand for features that AudioMAE would find in the sound, and are the first stream of tokens of the UNet.
`AudioMae` (arXiv:2207.06405), a frozen encoder, gives the true ones that GPT-2 learns. It is timm's
`vit_base_patch16_1024_128.audiomae_as2m`: patches of 16 frames x 16 bins of a log-mel spectrogram of 10.24 s and 128
bins, through twelve blocks. Width, blocks and frames are those of the tensors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from audiogen.audio import resample
from audiogen.config import Positive, check_ranges
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.interfaces import Condition

# Of AudioMAE.
SAMPLE_RATE = 16000
HOP_LENGTH, WINDOW, N_FFT = 160, 400, 512  # kaldi's 10 ms and 25 ms, and the next power of two
NUM_MELS = 128  # of AudioMAE's paper (arXiv:2207.06405)
F_MIN = 20.0  # Hz, kaldi's default, as the next
PREEMPHASIS = 0.97
FLOOR = 1.1920928955078125e-07  # smallest power in a mel bin, float32's epsilon
MEAN, SCALE = -4.2677393, 2 * 4.5689974  # AudioSet's, as AudioMAE was trained
PATCH, POOLED = 16, 8  # frames and bins of a patch; patches in time and in mel that one vector is pooled over
HEAD_DIM = 64  # numbers of an attention head, in ViT-S, B and L
AVERAGED_BLOCKS = 3  # the last ones, whose normalised outputs AudioLDM 2's authors average
LAYOUTS = (hub.Layout("timm", ("model.safetensors",), ("model.safetensors",)),)

# Parts of timm's names -> ours, those of torch's own layer; the rest are the same.
NAMES = {
    "patch_embed.proj.": "patches.",
    "pos_embed": "positions",
    "cls_token": "class_token",
    "fc_norm.": "norm.",
    ".attn.qkv.": ".self_attn.in_proj_",
    ".attn.proj.": ".self_attn.out_proj.",
    ".mlp.fc1.": ".linear1.",
    ".mlp.fc2.": ".linear2.",
}


@dataclass(frozen=True)
class LoaConfig:
    """The defaults are AudioLDM 2's. width: D of the vectors, that of GPT-2. length: how many vectors.

    clap_dim, text_dim: of the features. vocab_size: of GPT-2's own word table, which is stored and never used.
    """

    width: Positive = 768
    length: Positive = 8
    num_layers: Positive = 12
    num_heads: Positive = 12
    max_positions: Positive = 1024
    vocab_size: Positive = 50257
    clap_dim: Positive = 512
    text_dim: Positive = 1024

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.num_heads:
            raise InputError(f"loa.width {self.width} is not a multiple of loa.num_heads {self.num_heads}")


class LoaGenerator(nn.Module):
    """AudioLDM2ProjectionModel, which joins the features between learned start and end tokens, and GPT2Model."""

    def __init__(self, config: LoaConfig):
        super().__init__()
        self.config = config
        self.projection: Any = AudioLDM2ProjectionModel(config.clap_dim, config.text_dim, config.width)
        self.gpt2: Any = GPT2Model(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.max_positions,
                n_embd=config.width,
                n_layer=config.num_layers,
                n_head=config.num_heads,
            )
        )

    def prefix(self, clap: Tensor, text: Condition) -> tuple[Tensor, Tensor]:
        """CLAP [B, E] and text tokens [B, L, D] -> GPT-2's input [B, L + 5, width], and its mask [B, L + 5], bool.

        L + 5: one vector of CLAP, and a start and an end token around CLAP and around the text.
        """
        ones = torch.ones(len(clap), 1, dtype=text.mask.dtype, device=clap.device)
        joined = self.projection(
            hidden_states=clap[:, None],
            hidden_states_1=text.tokens,
            attention_mask=ones,
            attention_mask_1=text.mask,
        )
        return joined.hidden_states, joined.attention_mask

    def generate(self, clap: Tensor, text: Condition) -> Tensor:
        """CLAP [B, E] and text tokens [B, L, D] -> vectors [B, length, width], one after the other.

        Positions count the padding of a text, so a row depends on the longest text beside it, as in the release.
        """
        states, mask = self.prefix(clap, text)
        for _ in range(self.config.length):
            # The whole sequence again each time: eight short passes, and no cache whose positions could differ.
            states = torch.cat([states, self._run(states, mask)[:, -1:]], dim=1)  # [B, one more, width]
            mask = F.pad(mask, (0, 1), value=True)
        return states[:, -self.config.length :]

    def predict(self, clap: Tensor, text: Condition, vectors: Tensor) -> Tensor:
        """What follows each true vector but the last, and the prefix: [B, length, width], for training."""
        states, mask = self.prefix(clap, text)
        states = torch.cat([states, vectors[:, :-1]], dim=1)
        mask = F.pad(mask, (0, vectors.shape[1] - 1), value=True)
        # the last of the prefix predicts the first vector
        return self._run(states, mask)[:, -vectors.shape[1] :]

    def _run(self, states: Tensor, mask: Tensor) -> Tensor:  # [B, L, D], [B, L] -> [B, L, D]
        return self.gpt2(inputs_embeds=states, attention_mask=mask.long(), use_cache=False).last_hidden_state


def pool(grid: Tensor, length: int, width: int) -> Tensor:
    """AudioMAE's features or an autoencoder's latents [B, D, T, M] or [B, D, T] -> vectors [B, length, width].

    Each is of one of `length` segments of time, in order, and holds D numbers for each of width / D bands: the mean of
    average and maximum (AudioLDM 2, section III-C, over 8 x 8 places of AudioMAE, all of its bands).
    """
    grid = grid if grid.dim() == 4 else grid[..., None]
    size = (length, width // grid.shape[1])
    pooled = (F.adaptive_avg_pool2d(grid, size) + F.adaptive_max_pool2d(grid, size)) / 2
    return rearrange(pooled, "b d t m -> b t (d m)")


class AudioMae(nn.Module):
    """AudioMAE's encoder over a spectrogram of a fixed number of frames; no head, no decoder, nothing masked."""

    def __init__(self, width: int, num_blocks: int, hidden: int, num_patches: int) -> None:
        super().__init__()
        self.width = width
        self.num_frames = num_patches * PATCH**2 // NUM_MELS
        self.num_vectors = num_patches // POOLED**2
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // HEAD_DIM, hidden, dropout=0.0, activation="gelu", layer_norm_eps=1e-6,
                batch_first=True, norm_first=True,
            )
            for _ in range(num_blocks)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Spectrogram of `normalised` [B, num_frames, 128] -> features [B, T, M, D], 64 x 8 patches; no class token.

        The mean of three blocks' outputs, as in AudioLDM 2's code; the paper does not mention it.
        """
        x = self.patches(spectrogram[:, None]).flatten(2).transpose(1, 2)  # [B, T * M, D]
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        mean = torch.stack([self.norm(state) for state in states[-AVERAGED_BLOCKS:]]).mean(0)
        return rearrange(mean[:, 1:], "b (t m) d -> b t m d", m=NUM_MELS // PATCH)

    @torch.no_grad()
    def vectors(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Audio [B, C, N] -> pooled features [B, num_vectors, width], eight of 1.28 s each in the release.

        They cover 10.24 s whatever the sound's length: a shorter one is padded with silence, as in the authors' data,
        which has vectors, too; of a longer one they are of its beginning.
        """
        mono = resample(audio.float().mean(dim=1), sample_rate, SAMPLE_RATE)
        wanted = self.num_frames * HOP_LENGTH
        mono = F.pad(mono[:, :wanted], (0, max(0, wanted - mono.shape[1])))
        features = self(normalised(fbank(mono), self.num_frames))
        return pool(features.movedim(-1, 1), self.num_vectors, self.width)


def fbank(audio: Tensor) -> Tensor:
    """Audio [B, N] at 16 kHz -> log-mel [B, 1 + (N - 400) // 160, 128]: kaldi's, hanning, without dither and energy.

    A frame's own mean is taken off it, so that a mean of the whole sound, which AudioMAE takes off first, is gone.
    """
    frames = audio.unfold(1, WINDOW, HOP_LENGTH)  # [B, T, window]; what does not fill a window is left out
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = F.pad(frames, (1, 0), mode="replicate")[..., :-1]  # the sample before each; the first is its own
    window = torch.hann_window(WINDOW, periodic=False, device=audio.device)
    power = torch.fft.rfft((frames - PREEMPHASIS * before) * window, N_FFT).abs().square()  # [B, T, F]
    return (power @ mel_triangles().to(audio.device)).clamp(min=FLOOR).log()


def mel_triangles() -> Tensor:
    """Kaldi's filters [F, M]: triangles over mel, not over Hz as most have them, from 20 Hz to 8 kHz."""
    triangles = partial(mel_filter_bank, mel_scale="kaldi", triangularize_in_mel_space=True)
    with warnings.catch_warnings():  # the lowest are narrower than a bin of the spectrum
        warnings.simplefilter("ignore", UserWarning)
        filters = triangles(N_FFT // 2 + 1, NUM_MELS, F_MIN, SAMPLE_RATE / 2, SAMPLE_RATE)
    return torch.from_numpy(filters).float()


def normalised(features: Tensor, num_frames: int) -> Tensor:
    """Log-mel [B, T, M] -> AudioMAE's input [B, num_frames, M]; missing frames are zeros before the scaling.

    Two of these 1024 frames follow 10.24 s, whose last windows are not full.
    """
    features = F.pad(features[:, :num_frames], (0, 0, 0, max(0, num_frames - features.shape[1])))
    return (features - MEAN) / SCALE


def load_audiomae(name_or_directory: str) -> AudioMae:
    """The encoder of a directory or hub id in timm's layout (model.safetensors), frozen.

    Raises InputError where it is missing, or holds other tensors than such an encoder's.
    """
    found = checkpoint.load_tensors(hub.fetch(name_or_directory, LAYOUTS))
    tensors = {}
    for name, tensor in found.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    try:
        _, positions, width = tensors["positions"].shape
        hidden = len(tensors["blocks.0.linear1.weight"])
    except (KeyError, ValueError):
        raise InputError(
            f"{name_or_directory} holds no AudioMAE encoder in timm's layout: pos_embed or blocks.0.mlp.fc1.weight is "
            "missing or of other dimensions; give one, such as gaunernst/vit_base_patch16_1024_128.audiomae_as2m"
        ) from None
    if width % HEAD_DIM or positions < 2 or (positions - 1) % POOLED**2:
        raise InputError(
            f"{name_or_directory} has {positions} positions of width {width}; an AudioMAE encoder has one, and "
            f"{POOLED**2} or a multiple for its patches, and a width that {HEAD_DIM} divides"
        )
    num_blocks = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    model = AudioMae(width, num_blocks, hidden, positions - 1)
    checkpoint.load_into(model, tensors, name_or_directory)
    return model.eval().requires_grad_(False)
