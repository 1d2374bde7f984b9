"""A corpus encoded once, before training, into shards of tokens or latents: its steps then touch no audio and no codec.

A codec pass costs more than a small language model's step. Each pass over the training clips has its own crops, mixing
and wordings, as an epoch on sound has. The shards are in the run directory; an interrupted pass continues, a complete
one is used again.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import distributed
from audiogen.config import to_plain
from audiogen.data.dataset import AudioDataset, DataConfig, SourceConfig, Split
from audiogen.data.encoded import CodeDataset, LatentDataset, open_codes
from audiogen.data.loader import VALID_SEED, Item, prefetch
from audiogen.data.manifest import Clip
from audiogen.data.shards import CodeClip, ShardWriter, TokenSpec, write_shard
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import Codec
from audiogen.train.log import bar_interval_s
from audiogen.train.task import Run

if TYPE_CHECKING:  # it imports diffusers and transformers, 6 s that a training on tokens does not need
    from audiogen.models.latent_codecs import Autoencoder

CLIPS_PER_SHARD = 512  # of tokens, at least, but for the last
NO_SOUND = torch.empty(0)  # of items that are encoded: their samples need no memory any more
ITEMS_PER_SHARD = 256  # of latents: shard s holds the readable ones of the items 256 s to 256 s + 255


class Feature(NamedTuple):
    """What is stored of a sound beside its latents. made_by: what it depends on, as JSON values."""

    made_by: Any
    of: Callable[[Tensor, Tensor], Tensor]  # audio [B, C, N] and its latents -> [B, ...]


@dataclass(frozen=True)
class Pass:
    """One pass over a data set, stored in a directory; its items are those of (epoch, seed)."""

    dataset: AudioDataset
    directory: Path
    epoch: int
    seed: int
    title: str

    def __getitem__(self, indices: Sequence[int]) -> list[tuple[int, Item | str]]:
        """Each index with its item, or why that cannot be read: what worker processes make of a batch."""
        made: list[tuple[int, Item | str]] = []
        for index in indices:
            try:
                made.append((index, self.dataset.item(index, self.epoch, self.seed)))
            except InputError as error:
                made.append((index, str(error)))
        return made

    def captions(self, index: int, item: Item) -> Sequence[str]:
        """Those that training chooses among; of a clip that was mixed with another one, what its item says."""
        captions = self.dataset.captions(index)
        return captions if item.caption in captions else (item.caption,) if item.caption else ()


def pretokenize(sets: Split[AudioDataset], recipe: Run, num_passes: int, codec: Codec) -> Split[CodeDataset]:
    """Tokenise the sets that `recipe.data` describes into the run's `tokens/` -> the sets to train and validate on.

    Raises InputError where it holds tokens of other data or of another codec.
    """
    device, size = next(codec.parameters()).device, recipe.fit.batch_size

    def encode(audio: Tensor) -> dict[str, Tensor]:
        return {"codes": codec.encode(audio.to(device)).cpu()}  # [B, K, T]

    passes = plan_passes(sets, recipe, num_passes, "tokens", {"codec": codec.identity})
    for each in passes:
        writer = ShardWriter(each.directory, TokenSpec.of(codec))
        if len(writer.done) + len(writer.unreadable) == len(each.dataset):
            continue
        keys = [f"{clip.key}#{index}" for index, clip in enumerate(each.dataset.clips)]
        missing = [index for index, key in enumerate(keys) if key not in writer.done]
        shards = batched(missing, -(-CLIPS_PER_SHARD // size) * size)  # of whole batches
        with closing(encode_pass(each, shards, recipe, encode)) as encoded:
            for items, unreadable in encoded:
                clips = []
                for index, item in items.items():
                    length = item.length
                    codes = item.features["codes"][:, : -(-length // codec.hop_length)]  # [K, T] of the sound
                    clips.append(CodeClip(keys[index], codes, length, tuple(each.captions(index, item))))
                writer.write(clips, {keys[index]: reason for index, reason in unreadable.items()})
    sources = tuple(SourceConfig(str(each.directory)) for each in passes)
    train, valid = sources[:num_passes], sources[num_passes:]
    return open_codes(DataConfig(train, valid, segment_s=recipe.data.segment_s, holdout=0.0))


def cache_latents(
    sets: Split[AudioDataset],
    recipe: Run,
    num_passes: int,
    autoencoder: Autoencoder,
    features: Mapping[str, Feature],
    group_samples: int | None = None,
) -> Split[LatentDataset]:
    """Encode the sets that `recipe.data` describes into the run's `latents/` -> the sets to train and validate on.

    The processes of a training share the work: each makes every Nth shard that is missing. features: stored beside the
    latents, by name, clap or loa. group_samples: see `LatentDataset`, for training. Raises InputError where the folder
    holds latents of other data, of another encoder, or with other features.
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
    with distributed.first_process_first():
        passes = plan_passes(sets, recipe, num_passes, "latents", made_by)
    # By one process: it would take from others what they are writing.
    distributed.first_only(lambda: writing.clean(Path(recipe.out, "latents")), None)
    number, processes = distributed.rank(), distributed.world()
    distributed.everybody(lambda: make_shards(passes, recipe, encode, slice(number, None, processes)))
    if processes > 1:  # what this machine's disk lacks, where that is not the others'
        with distributed.first_process_first():
            make_shards(passes, recipe, encode)
    folders = [each.directory for each in passes]
    valid = LatentDataset(folders[num_passes:]) if folders[num_passes:] else None
    return Split(LatentDataset(folders[:num_passes], group_samples), valid)


def make_shards(
    passes: Sequence[Pass],
    recipe: Run,
    encode: Callable[[Tensor], dict[str, Tensor]],
    share: slice = slice(None),
) -> None:
    """Write a share of the shards of latents that are missing. encode: audio [B, C, N] -> arrays [B, ...]."""
    for each in passes:
        shards = [
            (each.directory / f"shard-{number:05d}.safetensors", indices)
            for number, indices in enumerate(batched(range(len(each.dataset)), ITEMS_PER_SHARD))
        ]
        missing = [(path, indices) for path, indices in shards[share] if not path.exists()]
        with closing(encode_pass(each, [indices for _, indices in missing], recipe, encode)) as encoded:
            for (path, _), (items, _) in zip(missing, encoded, strict=True):
                rows = []
                arrays = defaultdict(list)
                for index, item in items.items():
                    captions = each.captions(index, item)
                    rows.append({"key": item.key, "num_samples": item.length, "captions": captions})
                    for name, array in item.features.items():
                        arrays[name].append(array)
                if rows:
                    write_shard(path, {name: torch.stack(found) for name, found in arrays.items()}, rows)


def plan_passes(
    sets: Split[AudioDataset], recipe: Run, num_passes: int, what: str, made_by: Mapping[str, Any]
) -> list[Pass]:
    """The passes over the training set, then one over the validation set if there is one, into the run's `what/`.

    made_by: what the shards depend on beside the data and the seed; InputError where some were made by other values.
    """
    folder = Path(recipe.out, what)
    data = to_plain(replace(recipe.data, cache_mb=0))  # the cache changes no result
    for source in (*data["train"], *data["valid"]):  # runs of before it could be set go on
        if source["duration_s"] is None:
            del source["duration_s"]
    # A folder of sounds may have grown, and with another number of clips others are held out.
    digest = _digest([dataset.clips for dataset in sets if dataset])
    settings = {"data": data, "seed": recipe.seed, "clips": digest, **made_by}
    written = folder / "settings.json"
    stored = writing.read_json(written) if written.exists() else None
    before = settings if stored is None else {"clips": digest, **stored} if isinstance(stored, dict) else {}
    if before != settings:
        keys = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
        raise InputError(
            f"{folder} holds {what} made with other settings ({', '.join(keys)}); delete it or choose another out="
        )
    if (
        stored != settings
    ):  # by the first process alone: the others come at once, and would clean up one another's
        writing.write_json(written, settings)
    passes = [
        Pass(sets.train, folder / f"pass_{n:03d}", n, recipe.seed, f"{what}, pass {n + 1} of {num_passes}")
        for n in range(num_passes)
    ]
    if sets.valid is not None:
        passes.append(Pass(sets.valid, folder / "valid", 0, VALID_SEED, f"{what}, validation"))
    return passes


def _digest(sets: Sequence[Sequence[Clip]]) -> str:
    """Of the clips of several sets, in their order: of the text of a list of lists of their places."""
    found = hashlib.sha256()
    for number, clips in enumerate(sets):
        found.update(b"[[" if number == 0 else b", [")
        for place, clip in enumerate(clips):
            found.update(f"{', ' if place else ''}{clip.place!r}".encode())
        found.update(b"]")
    found.update(b"]")
    return found.hexdigest()[:16]


def batched(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """The indices in their order, `size` at a time."""
    return [indices[first : first + size] for first in range(0, len(indices), size)]


@torch.no_grad()
def encode_pass(
    each: Pass, shards: Sequence[Sequence[int]], recipe: Run, encode: Callable[[Tensor], dict[str, Tensor]]
) -> Generator[tuple[dict[int, Item], dict[int, str]], None, None]:
    """For each shard its items by index, and why the others cannot be read, which is also printed.

    An item's `features` hold what was made of it, and replace its sound. encode: audio [B, C, N] -> arrays [B, ...] by
    name, on the CPU.
    """
    batches = [batched(indices, recipe.fit.batch_size) for indices in shards]
    if not batches:
        return
    shown = {"total": sum(map(len, shards)), "desc": each.title, "mininterval": bar_interval_s()}
    with (
        closing(prefetch(each, list(chain(*batches)), recipe.fit.workers)) as made,
        tqdm(unit="clip", disable=distributed.rank() > 0, **shown) as bar,
    ):
        for own in batches:
            encoded: dict[int, Item] = {}
            unreadable: dict[int, str] = {}
            for batch in islice(made, len(own)):
                items = {index: item for index, item in batch if isinstance(item, Item)}
                failed = {index: reason for index, reason in batch if isinstance(reason, str)}
                for index, reason in failed.items():
                    print(f"left out: {each.dataset.clips[index].key}: {reason}", file=sys.stderr)
                arrays = encode(torch.stack([item.data for item in items.values()])) if items else {}
                for row, (index, item) in enumerate(items.items()):
                    features = {name: array[row] for name, array in arrays.items()}
                    encoded[index] = item._replace(data=NO_SOUND, features=features)
                unreadable |= failed
                bar.update(len(batch))
            yield encoded, unreadable
