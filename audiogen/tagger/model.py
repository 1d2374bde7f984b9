"""Sound event tagger: audio to an embedding and to the scores of labels, of the clip and of each moment of it.

A convolutional network on log-mel spectrograms. Sounds are brought to one peak first, so that level says nothing.
Labels come in groups. Of an exclusive group a clip has one label (softmax), of a multi-label group any number
(sigmoid); within a group nothing is said about the labels of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiogen.config import Positive, PositiveFloat, Range, check_ranges
from audiogen.errors import InputError
from audiogen.spectrogram import log_mel


@dataclass(frozen=True)
class TaggerConfig:
    """Size and labels of a tagger.

    groups: labels by group. multi_label: the groups of which a clip may have several labels. floor: mel magnitude
    of full-scale sound below which a bin counts as silent. widths: channels of the convolutional blocks, each of which
    halves the mel bins. time_pools: by how much each block shortens time. frame_width: features of one frame.
    dim: size of the embedding.
    """

    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    multi_label: tuple[str, ...] = ("synth",)
    sample_rate: Positive = 16000
    n_fft: Positive = 1024
    hop_length: Positive = 320
    n_mels: Positive = 64
    floor: PositiveFloat = 1e-4
    widths: tuple[Positive, ...] = (32, 64, 128, 192)
    time_pools: tuple[Positive, ...] = (2, 2, 2, 1)
    frame_width: Positive = 160
    dim: Positive = 64
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.3

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "groups", {name: tuple(labels) for name, labels in self.groups.items()})
        for name, labels in self.groups.items():
            if not labels or len(set(labels)) != len(labels):
                raise InputError(f"groups.{name} has {len(labels)} labels; name at least one, none twice")
        if len(self.time_pools) != len(self.widths) or not self.widths:
            sizes = f"widths {list(self.widths)}, time_pools {list(self.time_pools)}"
            raise InputError(f"{sizes}: give one of each a block")
        if self.n_mels % (halvings := 2 ** len(self.widths)):
            raise InputError(f"n_mels is {self.n_mels}; its blocks need a multiple of {halvings}")


class TaggerOutput(NamedTuple):
    """What a tagger finds in clips.

    embedding: [B, D]. logits: of the whole clip [B, labels]. frame_logits: [B, frames, labels]. The labels are
    those of all groups, one group after another (`Tagger.labels`).
    """

    embedding: Tensor
    logits: Tensor
    frame_logits: Tensor


class Tagger(nn.Module):
    """Log-mel, blocks of convolution, batch norm and pooling; then frames of `hop_s` seconds, then the clip.

    A frame draws on about 1.1 s of sound around it. In evaluation the embedding has a mean near 0 and a variance
    near 1 in each dimension over the sounds it was trained on, so a Frechet distance has these for units.
    """

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length * math.prod(config.time_pools)  # samples a frame
        self.labels = [f"{name}/{label}" for name, labels in config.groups.items() for label in labels]
        self.name, self.identity = "", ""  # of the files it was loaded from
        self.blocks = nn.ModuleList()
        before = 1
        for width, time_pool in zip(config.widths, config.time_pools, strict=True):
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.MaxPool2d((2, time_pool)),
                )
            )
            before = width
        bands = config.n_mels // 2 ** len(config.widths)
        self.frames = nn.Sequential(
            nn.Conv1d(before * bands, config.frame_width, 3, padding=1, bias=False),
            nn.BatchNorm1d(config.frame_width),
            nn.ReLU(),
        )
        self.embed = nn.Sequential(
            nn.Linear(2 * config.frame_width, config.dim, bias=False),
            nn.BatchNorm1d(config.dim, affine=False),
        )
        self.clip_head = nn.Linear(config.dim, len(self.labels))
        self.frame_head = nn.Linear(config.frame_width, len(self.labels))
        # Heads of multi-label groups begin near the rarity of a label: else the first steps learn only that.
        for name in config.groups.keys() & set(config.multi_label):
            for head in (self.clip_head, self.frame_head):
                nn.init.constant_(head.bias[self.group(name)], -4.0)

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next; frame f is centred on (f + 0.5) * hop_s."""
        return self.hop_length / self.sample_rate

    def group(self, name: str) -> slice:
        """The columns of a group's labels in logits. Raises InputError for a group this tagger has not."""
        groups = self.config.groups
        if name not in groups:
            raise InputError(f"the tagger has no labels {name!r}; its groups: {', '.join(groups) or 'none'}")
        first = self.labels.index(f"{name}/{groups[name][0]}")
        return slice(first, first + len(groups[name]))

    def features(self, audio: Tensor) -> Tensor:
        """Audio [B, N] -> natural log of mel magnitudes [B, M, T], T a multiple of the frames'; each peak at 1.

        Silence stays silent. The last frame is completed with zeros.
        """
        if audio.dim() != 2 or audio.shape[1] == 0:
            raise InputError(f"got audio of shape {list(audio.shape)}; the tagger takes [B, N], N at least 1")
        audio = audio / audio.abs().amax(-1, keepdim=True).clamp(min=1e-4)
        audio = F.pad(audio, (0, -audio.shape[1] % self.hop_length))
        config = self.config
        mel = log_mel(
            audio[:, None], config.sample_rate, config.n_fft, config.hop_length, config.n_mels, config.floor
        )
        return mel[:, 0, :, :-1]  # the last column is centred on the end

    def tag(self, mel: Tensor) -> TaggerOutput:
        """What `features` gives [B, M, T] -> embedding, logits, frame_logits."""
        x = (mel[:, None] + 5.0) / 3.0
        for layer in (layer for block in self.blocks for layer in block.children()):
            x = layer(x).contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        x = rearrange(x, "b c m t -> b (c m) t")  # [B, width * bands, frames]
        x = F.dropout(x, self.config.dropout / 2, self.training)
        x = self.frames(x)  # [B, frame_width, frames]
        embedding = self.embed(torch.cat([x.mean(-1), x.amax(-1)], -1))  # [B, D]
        kept = F.dropout(F.relu(embedding), self.config.dropout, self.training)
        frames = F.dropout(x.transpose(1, 2), self.config.dropout, self.training)
        return TaggerOutput(embedding.float(), self.clip_head(kept).float(), self.frame_head(frames).float())

    def forward(self, audio: Tensor) -> TaggerOutput:
        """Audio [B, N] at `sample_rate` -> its sounds, frame by frame and as a whole; ceil(N / hop_length) frames."""
        return self.tag(self.features(audio))
