"""Data sets of clips that were encoded before training: tokens for language models, latents for denoisers.

Which crop and which wording an item has depends on the arguments of `item` alone, as in `AudioDataset`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from audiogen.data.captions import choose
from audiogen.data.dataset import DataConfig, SourceConfig, Split, split_sources
from audiogen.data.loader import Item
from audiogen.data.manifest import group_of, select
from audiogen.data.seeds import draw, generator_for
from audiogen.data.shards import OpenFiles, ShardReader, read_rows
from audiogen.errors import InputError
from audiogen.interfaces import Batch, CodeBatch

FRAMES = 8  # a UNet halves the number of latent frames up to three times


class CodeDataset:
    """Clips of shard directories, as segments of `segment_frames`; None gives whole clips. Made by `open_codes`."""

    batch_type: type[Batch] = CodeBatch
    groups = None

    def __init__(self, clips: Sequence[tuple[ShardReader, int]], segment_frames: int | None = None) -> None:
        if not clips:
            raise InputError("the token shards hold no clips")
        self.clips, self.segment_frames = clips, segment_frames
        self.spec = clips[0][0].spec

    def __len__(self) -> int:
        return len(self.clips)

    def captions(self, index: int) -> tuple[str, ...]:
        reader, number = self.clips[index]
        return reader.clips[number].captions

    def item(self, index: int, epoch: int, seed: int) -> Item:
        """Segment of clip `index` with the crop and wording of (epoch, seed); InputError if its shard is damaged."""
        random = generator_for("item", seed, epoch, index)
        place, wording = draw(random, 0, 1), draw(random, 0, 1)
        reader, number = self.clips[index]
        total, clip = reader.num_frames[number], reader.clips[number]
        segment = total if self.segment_frames is None else self.segment_frames
        length = min(total, segment)
        codes = reader.codes(number, int(place * (total - length + 1)), length)
        codes = torch.nn.functional.pad(codes, (0, segment - length))
        return Item(codes, choose(clip.captions, wording), clip.path, length)


def open_codes(config: DataConfig) -> Split[CodeDataset]:
    """What `dataset.open_data` is for sound: the sets of a recipe whose sources are all shard directories.

    The same clips are held out as from the sounds that they were made of. Mixing, gain and speed vary sound, so they
    are left out, with a warning. InputError where the sources are of different codecs.
    """
    if config.mix_probability or config.gain_db != (0.0, 0.0) or config.speed != (1.0, 1.0):
        warnings.warn(
            "token shards are used as they are: data.mix_probability, gain_db and speed vary sound only",
            stacklevel=2,
        )
    train, valid = split_sources(config, _read_source, lambda clip: group_of(clip[0].clips[clip[1]]))
    specs = {reader.spec for reader, _ in (*train, *valid)}
    if len(specs) > 1:
        raise InputError(f"token shards of different codecs: {'; '.join(sorted(map(str, specs)))}")
    frames = max(1, round(config.segment_s * specs.pop().frame_rate)) if specs else None
    return Split(CodeDataset(train, frames), CodeDataset(valid, frames) if valid else None)


def _read_source(source: SourceConfig) -> list[tuple[ShardReader, int]]:
    reader = ShardReader(source.source)
    try:
        chosen = {id(clip) for clip in select(reader.clips, source.where)}
    except InputError as error:
        raise InputError(f"{source.source}: {error}") from None
    return [(reader, number) for number, clip in enumerate(reader.clips) if id(clip) in chosen]


@dataclass(frozen=True)
class LatentBatch(Batch):
    """latents: float32 [B, D, T] or [B, D, T, M]. `lengths` are in samples.

    features: of the audio, those that were stored: clap [B, E]; loa, the vectors that GPT-2 learns [B, length, width].
    """

    latents: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def cut(self, hop_length: int) -> LatentBatch:
        """Without the latents that are after the end of the longest sound; up to FRAMES - 1 of them are left."""
        frames = -(-int(self.lengths.max()) // hop_length)
        return replace(self, latents=self.latents[:, :, : -(-frames // FRAMES) * FRAMES])


class LatentDataset:
    """The clips of folders of latent shards.

    group_samples: with it, clips whose lengths are between the same two multiples of so many samples are in batches of
    their own.
    """

    batch_type: type[Batch] = LatentBatch

    def __init__(self, folders: Sequence[Path], group_samples: int | None = None) -> None:
        paths = [path for folder in folders for path in sorted(folder.glob("shard-*.safetensors"))]
        self.rows = [(path, number, row) for path in paths for number, row in enumerate(read_rows(path))]
        self._files = OpenFiles({})
        if not self.rows:
            raise InputError("none of the clips can be read; the messages above say why")
        self.groups = None
        if group_samples is not None:
            lengths = torch.tensor([row["num_samples"] for _, _, row in self.rows])
            self.groups = (lengths + group_samples - 1) // group_samples

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.rows[index][2]["captions"])

    def item(self, index: int, epoch: int, seed: int) -> Item:
        """Clip `index` with the wording of (epoch, seed)."""
        path, number, row = self.rows[index]
        random = generator_for("item", seed, epoch, index)
        caption = choose(row["captions"], draw(random, 0, 1))
        shard = self._files[path]
        arrays = {name: shard.get_slice(name)[number] for name in shard.keys()}  # noqa: SIM118  # it is no dict
        latents = arrays.pop("latents").float()  # stored as float16
        return Item(latents, caption, row["key"], row["num_samples"], arrays)
