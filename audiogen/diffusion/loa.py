"""The "language of audio" of AudioLDM 2: a GPT-2 that turns CLAP and T5 features of a text into eight vectors.

They stand for features that AudioMAE would find in the sound, and are the first stream of tokens of the UNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from audiogen.config import Positive, check_ranges
from audiogen.errors import InputError
from audiogen.interfaces import Condition


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
        return self._run(states, mask)[
            :, -vectors.shape[1] :
        ]  # the last of the prefix predicts the first vector

    def _run(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.gpt2(inputs_embeds=states, attention_mask=mask.long(), use_cache=False).last_hidden_state


def pool_features(features: Tensor, factor: int = 8) -> Tensor:
    """AudioMAE features [B, T, M, D] (64 x 8 places) -> the vectors to learn [B, T M / factor^2, D], in order of time.

    The mean of average and maximum over factor x factor places (AudioLDM 2, section III-C).
    """
    pooled = _pool(features.movedim(-1, 1), features.shape[1] // factor, features.shape[2] // factor)
    return pooled.flatten(2).transpose(1, 2)


def pool_latents(latents: Tensor, length: int, width: int) -> Tensor:
    """Latents [B, D, T, M] or [B, D, T] -> vectors to learn without AudioMAE [B, length, width], in order of time.

    Each is of one of `length` segments of time, and holds D numbers for each of width / D bands: the mean of average
    and maximum, as with AudioMAE's features.
    """
    grid = latents if latents.dim() == 4 else latents[..., None]
    pooled = _pool(grid, length, width // grid.shape[1])
    return pooled.permute(0, 2, 1, 3).flatten(2)


def _pool(grid: Tensor, num_times: int, num_bands: int) -> Tensor:
    """[B, D, T, M] -> [B, D, num_times, num_bands]"""
    size = (num_times, num_bands)
    return (F.adaptive_avg_pool2d(grid, size) + F.adaptive_max_pool2d(grid, size)) / 2
