"""A corpus encoded once, before training, into shards of tokens or latents: its steps then touch no audio and no codec.

A codec pass costs more than a small language model's step. Each pass over the training clips has its own crops, mixing
and wordings, as an epoch on sound has. The shards are in the run directory; an interrupted pass continues, a complete
one is used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from audiogen.config import to_plain
from audiogen.data.dataset import AudioDataset, DataConfig, SourceConfig, Split
from audiogen.data.encoded import CodeDataset, LatentDataset, open_codes
from audiogen.data.loader import VALID_SEED, Item, prefetch
from audiogen.data.shards import CodeClip, ShardWriter, TokenSpec, write_shard
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Codec
from audiogen.models.latent_codecs import Autoencoder
from audiogen.train.log import bar_interval_s
from audiogen.train.task import Run

CLIPS_PER_SHARD = 512  # of tokens, at least
ITEMS_PER_SHARD = 256  # of latents: shard s holds the readable ones of the items 256 s to 256 s + 255


class Feature(NamedTuple):
    """What is stored of a sound beside its latents. made_by: what it depends on, as JSON values."""

    made_by: Any
    of: Callable[[Tensor, Tensor], Tensor]  # audio [B, C, N] and its latents -> [B, ...]


class Pass(NamedTuple):
    """One pass over a data set, stored in a directory; its items are those of (epoch, seed)."""

    dataset: AudioDataset
    directory: Path
    epoch: int
    seed: int
    title: str


class Encoded(NamedTuple):
    """Item `number` of a data set, and what was made of it by name; captions: those that training chooses among."""

    number: int
    item: Item
    captions: tuple[str, ...]
    arrays: dict[str, Tensor]

    def row(self) -> dict[str, Any]:
        """What a shard says of it."""
        return {"key": self.item.key, "num_samples": self.item.length, "captions": self.captions}


def pretokenize(
    sets: Split[AudioDataset], recipe: Run, num_passes: int, folder: Path, codec: Codec
) -> Split[CodeDataset]:
    """Tokenise the sets that `recipe.data` describes into `folder` -> the sets to train and validate on.

    Raises InputError where `folder` holds tokens of other data or of another codec.
    """
    device = next(codec.parameters()).device

    def encode(audio: Tensor) -> dict[str, Tensor]:
        return {"codes": codec.encode(audio.to(device)).cpu()}  # [B, K, T]

    passes = plan_passes(sets, recipe, num_passes, folder, "tokens", {"codec": codec.identity})
    for each in passes:
        writer = ShardWriter(each.directory, TokenSpec.of(codec))
        if len(writer.done) + len(writer.unreadable) == len(each.dataset):
            continue
        keys = [f"{clip.key}#{index}" for index, clip in enumerate(each.dataset.clips)]
        missing = [index for index, key in enumerate(keys) if key not in writer.done]
        clips: list[CodeClip] = []
        unreadable: dict[str, str] = {}
        with closing(encode_items(each, batched(missing, recipe.fit.batch_size), recipe, encode)) as encoded:
            for batch, failed in encoded:
                unreadable |= {keys[index]: reason for index, reason in failed.items()}
                for one in batch:
                    length = one.item.length
                    codes = one.arrays["codes"][:, : -(-length // codec.hop_length)]  # [K, T] of the sound
                    clips.append(CodeClip(keys[one.number], codes, length, one.captions))
                if len(clips) >= CLIPS_PER_SHARD:
                    writer.write(clips, unreadable)
                    clips, unreadable = [], {}
        writer.write(clips, unreadable)
    sources = tuple(SourceConfig(str(each.directory)) for each in passes)
    train, valid = sources[:num_passes], sources[num_passes:]
    return open_codes(DataConfig(train, valid, segment_s=recipe.data.segment_s, holdout=0.0))


def cache_latents(
    sets: Split[AudioDataset],
    recipe: Run,
    num_passes: int,
    folder: Path,
    autoencoder: Autoencoder,
    features: Mapping[str, Feature],
) -> Split[LatentDataset]:
    """Encode the sets that `recipe.data` describes into `folder` -> the sets to train and validate on.

    features: stored beside the latents, by name, clap or loa. Raises InputError where `folder` holds latents of other
    data, of another encoder, or with other features.
    """
    device = next(autoencoder.parameters()).device

    def encode(audio: Tensor) -> dict[str, Tensor]:
        audio = audio.to(device)  # [B, C, N]
        latents = autoencoder.encode(audio)  # [B, D, T] or [B, D, T, M]
        found = {name: feature.of(audio, latents).float().cpu() for name, feature in features.items()}
        # float16: latents have unit variance, and carry far less information than its 11 bits of precision
        return {"latents": latents.half().cpu(), **found}

    # Without the decoder, which may be trained further: latents depend on the encoder alone.
    encoder = {name: tensor for name, tensor in autoencoder.state_dict().items() if "decoder." not in name}
    made_by = {name: feature.made_by for name, feature in features.items()}
    made_by = {"encoder": checkpoint.identity(encoder), "clap": False, **made_by}
    passes = plan_passes(sets, recipe, num_passes, folder, "latents", made_by)
    checkpoint.clean(folder)
    for each in passes:
        missing = {}
        for number, indices in enumerate(batched(range(len(each.dataset)), ITEMS_PER_SHARD)):
            path = each.directory / f"shard-{number:05d}.safetensors"
            if not path.exists():
                missing[path] = batched(indices, recipe.fit.batch_size)
        with closing(encode_items(each, list(chain(*missing.values())), recipe, encode)) as encoded:
            for path, batches in missing.items():
                clips = [clip for batch, _ in islice(encoded, len(batches)) for clip in batch]
                if clips:
                    names = clips[0].arrays
                    arrays = {name: torch.stack([clip.arrays[name] for clip in clips]) for name in names}
                    write_shard(path, arrays, [clip.row() for clip in clips])
    folders = [each.directory for each in passes]
    valid = LatentDataset(folders[num_passes:]) if folders[num_passes:] else None
    return Split(LatentDataset(folders[:num_passes]), valid)


def plan_passes(
    sets: Split[AudioDataset],
    recipe: Run,
    num_passes: int,
    folder: Path,
    what: str,
    made_by: Mapping[str, Any],
) -> list[Pass]:
    """The passes over the training set, then one over the validation set if there is one.

    made_by: what the shards depend on beside the data and the seed; InputError where `folder` was made by other values.
    """
    data = to_plain(replace(recipe.data, cache_mb=0))  # the cache changes no result
    settings = {"data": data, "seed": recipe.seed, **made_by}
    written = folder / "settings.json"
    before = checkpoint.read_json(written) if written.exists() else settings
    if before != settings:
        keys = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
        raise InputError(
            f"{folder} holds {what} made with other settings ({', '.join(keys)}); delete it or choose another out="
        )
    checkpoint.write_json(written, settings)
    passes = [
        Pass(sets.train, folder / f"pass_{n:03d}", n, recipe.seed, f"{what}, pass {n + 1} of {num_passes}")
        for n in range(num_passes)
    ]
    if sets.valid is not None:
        passes.append(Pass(sets.valid, folder / "valid", 0, VALID_SEED, f"{what}, validation"))
    return passes


def batched(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """The indices in their order, `size` at a time."""
    return [indices[first : first + size] for first in range(0, len(indices), size)]


@torch.no_grad()
def encode_items(
    each: Pass, batches: Sequence[Sequence[int]], recipe: Run, encode: Callable[[Tensor], dict[str, Tensor]]
) -> Generator[tuple[list[Encoded], dict[int, str]], None, None]:
    """For each batch of indices: the items encoded, and reason by index of those that cannot be read, also printed.

    encode: audio [B, C, N] -> arrays [B, ...] by name, on the CPU.
    """
    total = len(each.dataset)
    done = total - sum(map(len, batches))
    with (
        closing(prefetch(_Batches(each, batches), range(len(batches)), recipe.fit.workers)) as made,
        tqdm(total=total, initial=done, unit="clip", desc=each.title, mininterval=bar_interval_s()) as bar,
    ):
        for batch in made:
            failed = {index: result for index, result in batch if isinstance(result, str)}
            for index, reason in failed.items():
                print(f"left out: {each.dataset.clips[index].key}: {reason}", file=sys.stderr)
            items = [(index, result) for index, result in batch if isinstance(result, Item)]
            arrays = encode(torch.stack([item.data for _, item in items])) if items else {}
            encoded = []
            for row, (index, item) in enumerate(items):
                captions = tuple(each.dataset.captions(index))
                if item.caption not in captions:  # it is mixed with another clip, or has no caption
                    captions = (item.caption,) if item.caption else ()
                own = {name: array[row] for name, array in arrays.items()}
                encoded.append(Encoded(index, item, captions, own))
            bar.update(len(batch))
            yield encoded, failed


class _Batches:
    """Number -> (index, item of the pass, or why it cannot be read) of each index: what worker processes map."""

    def __init__(self, each: Pass, batches: Sequence[Sequence[int]]):
        self.each, self.batches = each, batches

    def __getitem__(self, number: int) -> list[tuple[int, Item | str]]:
        return [(index, self._item(index)) for index in self.batches[number]]

    def _item(self, index: int) -> Item | str:
        try:
            return self.each.dataset.item(index, self.each.epoch, self.each.seed)
        except InputError as error:
            return str(error)
