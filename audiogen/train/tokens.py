"""A data set turned into token shards once, before training: a codec pass costs more than a small LM's step.

Each pass over the training clips has its own crops, mixing and wordings, as an epoch on sound has. The shards lie in
the run directory; an interrupted pass continues, a finished one is used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from audiogen.config import to_plain
from audiogen.data.codes import CodeClip, CodeSplit, ShardWriter, TokenSpec, open_codes
from audiogen.data.dataset import AudioDataset, DataConfig, Item, SourceConfig, Split
from audiogen.data.loader import VALID_SEED
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Codec
from audiogen.train.log import bar_interval_s

CLIPS_A_SHARD = 512


def token_spec(codec: Codec) -> TokenSpec:
    """Whose tokens a codec's are."""
    return TokenSpec(
        codec.name,
        codec.identity,
        codec.sample_rate,
        codec.channels,
        codec.hop_length,
        codec.num_codebooks,
        codec.codebook_size,
    )


def pretokenize(
    sets: Split,
    data: DataConfig,
    codec: Codec,
    folder: Path,
    num_passes: int,
    seed: int,
    batch_size: int,
    workers: int,
) -> CodeSplit:
    """Tokenise the sets that `data` describes into `folder` -> the sets to train and validate on.

    Raises InputError where `folder` holds tokens of other data or of another codec.
    """
    train, valid = sets
    settings = {"data": to_plain(replace(data, cache_mb=0)), "codec": codec.identity, "seed": seed}
    written = folder / "settings.json"
    if written.exists() and checkpoint.read_json(written) != settings:
        raise InputError(
            f"{folder} holds tokens made with other data settings, codec or seed; delete it or choose another out="
        )
    checkpoint.write_json(written, settings)

    passes = [folder / f"pass_{number:03d}" for number in range(num_passes)]
    for number, directory in enumerate(passes):
        name = f"tokens, pass {number + 1} of {num_passes}"
        tokenize(train, codec, directory, number, seed, batch_size, workers, name)
    if valid is not None:
        tokenize(valid, codec, folder / "valid", 0, VALID_SEED, batch_size, workers, "tokens, validation")
    return open_codes(
        DataConfig(
            train=tuple(SourceConfig(str(directory)) for directory in passes),
            valid=(SourceConfig(str(folder / "valid")),) if valid is not None else (),
            segment_s=data.segment_s,
            holdout=0.0,
        )
    )


def tokenize(
    dataset: AudioDataset,
    codec: Codec,
    directory: Path,
    epoch: int,
    seed: int,
    batch_size: int,
    workers: int,
    name: str,
) -> None:
    """Store every item of one epoch, those of unreadable clips left out and named in the shards' index."""
    writer = ShardWriter(directory, token_spec(codec))
    if len(writer.done) + len(writer.unreadable) == len(dataset):
        return
    keys = [f"{dataset.clips[index].key}#{index}" for index in range(len(dataset))]
    missing = [index for index, key in enumerate(keys) if key not in writer.done]
    device = next(codec.parameters()).device
    clips: list[CodeClip] = []
    unreadable: dict[str, str] = {}
    done = len(dataset) - len(missing)
    with tqdm(total=len(dataset), initial=done, unit="clip", desc=name, mininterval=bar_interval_s()) as bar:
        for batch in read_items(dataset, missing, epoch, seed, batch_size, workers):
            unreadable |= {keys[index]: result for index, result in batch if isinstance(result, str)}
            items = [(index, result) for index, result in batch if isinstance(result, Item)]
            if items:
                codes = codec.encode(
                    torch.stack([item.audio for _, item in items]).to(device)
                ).cpu()  # [B, K, T]
                for (index, item), row in zip(items, codes, strict=True):
                    frames = -(-item.length // codec.hop_length)
                    # A clip mixed with another has its own caption; else training may choose among its wordings.
                    wordings = tuple(dataset.captions(index))
                    captions = (
                        wordings if item.caption in wordings else (item.caption,) if item.caption else ()
                    )
                    clips.append(CodeClip(keys[index], row[:, :frames], item.length, captions))
            if len(clips) >= CLIPS_A_SHARD:
                writer.write(clips, unreadable)
                clips, unreadable = [], {}
            bar.update(len(batch))
    writer.write(clips, unreadable)
    for key, reason in writer.unreadable.items():
        print(f"left out: {key.rpartition('#')[0]}: {reason}", file=sys.stderr)


class _Items:
    """Index -> (index, item of the epoch, or why it cannot be read): what worker processes map."""

    def __init__(self, dataset: AudioDataset, epoch: int, seed: int):
        self.dataset, self.epoch, self.seed = dataset, epoch, seed

    def __getitem__(self, index: int) -> tuple[int, Item | str]:
        try:
            return index, self.dataset.item(index, self.epoch, self.seed)
        except InputError as error:
            return index, str(error)


def read_items(
    dataset: AudioDataset, indices: list[int], epoch: int, seed: int, batch_size: int, workers: int
) -> Iterator[list[tuple[int, Item | str]]]:
    """The items of these indices, in order, in lists of `batch_size`."""
    as_it_is: Callable[[Any], Any] = list
    return iter(
        DataLoader(
            _Items(dataset, epoch, seed),  # type: ignore[arg-type]  # a map from index to item is all it needs
            batch_size=batch_size,
            sampler=indices,
            num_workers=workers,
            collate_fn=as_it_is,
            generator=torch.Generator(),
        )
    )
