"""A data set turned into latents once, before training: the denoiser's steps touch no audio and no autoencoder.

Each pass over the training clips has its own crops, mixing and wordings, as an epoch on sound has. A shard holds the
items of 256 numbers, in order; it is whole or not there, so an interrupted pass continues with the next.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from audiogen.config import to_plain
from audiogen.data.dataset import AudioDataset, DataConfig, Item, Split
from audiogen.data.loader import VALID_SEED
from audiogen.data.mix import draw
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch
from audiogen.models.latent_codecs import Autoencoder
from audiogen.train.log import bar_interval_s
from audiogen.train.tokens import read_items

ITEMS_A_SHARD = 256


class Feature(NamedTuple):
    """What is stored of a sound beside its latents. made_by: what it depends on, as JSON has it."""

    made_by: Any
    of: Callable[[Tensor, Tensor], Tensor]  # audio [B, C, N] and its latents -> [B, ...]


@dataclass(frozen=True)
class LatentBatch(Batch):
    """A batch without audio. latents: float32 [B, D, T] or [B, D, T, M]. lengths: in samples.

    Features of the audio, or None: clap [B, E]; loa, the vectors that GPT-2 learns [B, length, width].
    """

    latents: Tensor
    clap: Tensor | None
    loa: Tensor | None


class LatentItem(NamedTuple):
    """latents [D, T] or [D, T, M]; caption None for a clip without text; key names the clip; length in samples."""

    latents: Tensor
    clap: Tensor | None
    loa: Tensor | None
    caption: str | None
    key: str
    length: int


class LatentDataset:
    """The clips of folders of shards; which of a clip's wordings is drawn depends on the arguments of `item` alone."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.rows: list[tuple[Path, int, dict[str, Any]]] = []
        self._open: dict[Path, Any] = {}
        for path in (path for folder in folders for path in sorted(folder.glob("shard-*.safetensors"))):
            with safe_open(path, framework="pt") as shard:
                rows = json.loads(shard.metadata()["clips"])
            self.rows += [(path, place, row) for place, row in enumerate(rows)]
        if not self.rows:
            raise InputError("none of the clips can be read; the messages above say why")

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay with their process

    def captions(self, index: int) -> tuple[str, ...]:
        """All wordings of a clip."""
        return tuple(self.rows[index][2]["captions"])

    def item(self, index: int, epoch: int, seed: int) -> LatentItem:
        """Clip `index` with the wording of (epoch, seed)."""
        path, place, row = self.rows[index]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        shard, wordings = self._open[path], row["captions"]
        random = torch.Generator().manual_seed(seed_for("item", seed, epoch, index))
        caption = wordings[int(draw(random, 0, 1) * len(wordings))] if wordings else None
        names = shard.keys()
        clap, loa = (shard.get_slice(name)[place] if name in names else None for name in ("clap", "loa"))
        latents = shard.get_slice("latents")[place].float()
        return LatentItem(latents, clap, loa, caption, row["key"], row["num_samples"])


def collate_latents(items: Sequence[LatentItem]) -> LatentBatch:
    """Items of one length -> LatentBatch: the `collate` of `AudioLoader` for latents."""
    claps = [item.clap for item in items if item.clap is not None]
    vectors = [item.loa for item in items if item.loa is not None]
    return LatentBatch(
        audio=None,
        codes=None,
        lengths=torch.tensor([item.length for item in items]),
        captions=[item.caption for item in items],
        keys=[item.key for item in items],
        latents=torch.stack([item.latents for item in items]),
        clap=torch.stack(claps) if claps else None,
        loa=torch.stack(vectors) if vectors else None,
    )


class LatentSplit(NamedTuple):
    """Training and validation sets."""

    train: LatentDataset
    valid: LatentDataset | None


def cache_latents(
    sets: Split,
    data: DataConfig,
    autoencoder: Autoencoder,
    features: Mapping[str, Feature],
    folder: Path,
    num_passes: int,
    seed: int,
    batch_size: int,
    workers: int,
) -> LatentSplit:
    """Encode the sets that `data` describes into `folder` -> the sets to train and validate on.

    features: stored beside the latents, by name, clap or loa. Raises InputError where `folder` holds latents of other
    data, of another encoder, or with other features.
    """
    # The decoder may be a better one, trained on: latents are the encoder's.
    encoder = {name: tensor for name, tensor in autoencoder.state_dict().items() if "decoder." not in name}
    settings = {
        "data": to_plain(replace(data, cache_mb=0)),
        "encoder": checkpoint.identity(encoder),
        "seed": seed,
        "clap": False,
        **{name: feature.made_by for name, feature in features.items()},
    }
    written = folder / "settings.json"
    if written.exists() and checkpoint.read_json(written) != settings:
        raise InputError(
            f"{folder} holds latents made with other data settings, encoder, seed or features (clap_of, loa); delete "
            "it or choose another out="
        )
    checkpoint.write_json(written, settings)
    checkpoint.clean(folder)
    passes = [folder / f"pass_{number:03d}" for number in range(num_passes)]
    for number, directory in enumerate(passes):
        name = f"latents, pass {number + 1} of {num_passes}"
        _encode(sets.train, autoencoder, features, directory, number, seed, batch_size, workers, name)
    if sets.valid is not None:
        directory, name = folder / "valid", "latents, validation"
        _encode(sets.valid, autoencoder, features, directory, 0, VALID_SEED, batch_size, workers, name)
    return LatentSplit(LatentDataset(passes), LatentDataset([folder / "valid"]) if sets.valid else None)


def _encode(
    dataset: AudioDataset,
    autoencoder: Autoencoder,
    features: Mapping[str, Feature],
    directory: Path,
    epoch: int,
    seed: int,
    batch_size: int,
    workers: int,
    name: str,
) -> None:
    """Store every item of one epoch, those of unreadable clips left out and named."""
    device = next(autoencoder.parameters()).device
    with tqdm(total=len(dataset), unit="clip", desc=name, mininterval=bar_interval_s()) as bar:
        for first in range(0, len(dataset), ITEMS_A_SHARD):
            path = directory / f"shard-{first // ITEMS_A_SHARD:05d}.safetensors"
            indices = list(range(first, min(first + ITEMS_A_SHARD, len(dataset))))
            if path.exists():
                bar.update(len(indices))
                continue
            rows: list[dict[str, Any]] = []
            parts: dict[str, list[Tensor]] = {}
            for batch in read_items(dataset, indices, epoch, seed, batch_size, workers):
                items = [(index, found) for index, found in batch if isinstance(found, Item)]
                for index, reason in batch:
                    if isinstance(reason, str):
                        print(f"left out: {dataset.clips[index].key}: {reason}", file=sys.stderr)
                if items:
                    audio = torch.stack([item.audio for _, item in items]).to(device)  # [B, C, N]
                    with torch.no_grad():
                        latents = autoencoder.encode(audio)
                        found = {name: feature.of(audio, latents) for name, feature in features.items()}
                    # float16: latents have unit variance, and carry far less than its 11 bits
                    parts.setdefault("latents", []).append(latents.half().cpu())
                    for key, each in found.items():
                        parts.setdefault(key, []).append(each.float().cpu())
                    rows += [_row(dataset, index, item) for index, item in items]
                bar.update(len(batch))
            if rows:
                tensors = {key: torch.cat(each) for key, each in parts.items()}
                checkpoint.write_tensors(path, tensors, {"clips": json.dumps(rows, ensure_ascii=False)})


def _row(dataset: AudioDataset, index: int, item: Item) -> dict[str, Any]:
    """What is known of an item. A clip mixed with another has its own caption; else training chooses a wording."""
    wordings = list(dataset.captions(index))
    captions = wordings if item.caption in wordings else [item.caption] if item.caption else []
    return {"key": item.key, "num_samples": item.length, "captions": captions}
