"""CLAP training: sounds and their captions close together, all others apart (arXiv:2211.06687, equation 1).

The loss is symmetric, and clips whose captions mean the same are right for each other, where the paper has one right
caption a clip: small collections have many clips of one kind in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from audiogen import distributed
from audiogen.config import Range, to_plain
from audiogen.data.captions import meanings, wordings
from audiogen.data.dataset import AudioDataset, Split, open_data
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError, plain_text
from audiogen.files import writing
from audiogen.interfaces import AudioBatch
from audiogen.models.clap import ClapModelConfig, describe, learn_vocabulary, new_clap, save_clap
from audiogen.text.clap import MAX_TOKENS, Clap, ClapParts, clap_features, embedding
from audiogen.train.augment import mask
from audiogen.train.task import Run, Task

MAX_SCALE = 100.0  # of similarities, as in CLIP (arXiv:2103.00020, section 2.5)


@dataclass(frozen=True, kw_only=True)
class ClapRecipe(Run):
    """A CLAP training run; `recipes/clap_tiny.yaml` is a complete example. Every clip needs a caption.

    init_from: CLAP model to start from, a directory or hub id; `model` is then taken from it. mask: largest share of
    the mel bins, and of the frames, that are masked in training (SpecAugment); 0 is off. fit.accumulate stays 1, and
    with several processes each compares the clips of its own batch.
    """

    model: ClapModelConfig
    task: Literal["clap"] = "clap"
    out: str = "runs/clap"
    mask: Annotated[float, Range(0, 1, below=True)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit.batch_size < 2:
            raise InputError(
                f"fit.batch_size is {self.fit.batch_size}; each clip is compared with the others of a batch: at least 2"
            )
        if self.fit.accumulate != 1:
            raise InputError(
                f"fit.accumulate is {self.fit.accumulate}; all clips of a batch are compared with one another, so it "
                "cannot be run in parts: make it 1, and fit.batch_size smaller if memory is short"
            )

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        name = recipe["init_from"]
        return {"model": to_plain(describe(Clap(name).parts, name))}

    def prepare(self, device: torch.device) -> tuple[ClapTask, Split[AudioDataset]]:
        data = open_data(self.data, self.model.features.sample_rate)
        captions = [captioned(dataset) for dataset in data if dataset]
        if self.init_from:
            clap = Clap(self.init_from).parts
            clap.model.requires_grad_(True)
        else:
            path = Path(self.out) / "vocabulary.json"
            with distributed.first_process_first():
                if not path.exists():
                    vocabulary = learn_vocabulary(chain(*captions[0]), self.model.text.vocab_size)
                    writing.write_bytes_atomic(path, vocabulary.encode())
            torch.manual_seed(seed_for(self.seed, "weights"))
            clap = new_clap(self.model, path.read_text(encoding="utf-8"))
        return ClapTask(self.limited(len(data.train)), clap, meanings(chain(*captions)), device), data


def captioned(dataset: AudioDataset) -> list[Sequence[str]]:
    """All captions of each clip; InputError where one has none."""
    found = wordings(dataset)
    without = [clip.key for clip, captions in zip(dataset.clips, found, strict=True) if not captions]
    if without:
        raise InputError(
            f"{len(without)} of {len(found)} clips have no caption, {without[0]} first; CLAP learns which caption is "
            "whose: add them to the manifest, or leave these clips out by `where`"
        )
    return found


class ClapTask(Task[ClapRecipe]):
    """The model with its tokenizer and features, and which captions mean the same."""

    def __init__(self, recipe: ClapRecipe, clap: ClapParts, meaning: Mapping[str, str], device: torch.device):
        """meaning: each caption -> one representative of all that mean the same, see `captions.meanings`."""
        self.clap, self.meaning = clap, meaning
        self.sample_rate = clap.extractor.sampling_rate
        self.model = clap.model.to(device)
        if recipe.fit.compile:
            self.model.audio_model.compile()
        super().__init__(recipe, self.model, device)

    def features(self, batch: AudioBatch) -> Tensor:
        """Log-mels [B, 1, T, M] of a batch's sounds, without their zero padding."""
        mono, lengths = batch.audio.mean(1).to(self.device), batch.lengths.tolist()
        sounds = [row[:length] for row, length in zip(mono, lengths, strict=True)]
        return clap_features(sounds, self.clap.extractor)

    def embed_sounds(self, features: Tensor) -> Tensor:
        """Log-mels [B, 1, T, M] -> embeddings [B, E] of length 1, float32."""
        return torch.nn.functional.normalize(
            embedding(self.model.get_audio_features(input_features=features)).float(), dim=-1
        )

    def embed_captions(self, captions: Sequence[str | None]) -> Tensor:
        """B captions -> embeddings [B, E] of length 1, float32."""
        words = self.clap.tokenizer(
            [plain_text(caption or "", "the caption") for caption in captions],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        found = self.model.get_text_features(words["input_ids"], words["attention_mask"])
        return torch.nn.functional.normalize(embedding(found).float(), dim=-1)

    def same(self, captions: Sequence[str | None]) -> Tensor:
        """Which captions mean the same, bool [B, B]."""
        numbers: dict[str, int] = {}
        meant = [self.meaning.get(caption or "", caption or "") for caption in captions]
        ids = torch.tensor([numbers.setdefault(text, len(numbers)) for text in meant], device=self.device)
        return ids[:, None] == ids

    def step(self, batch: AudioBatch, step: int) -> dict[str, float]:
        """One update. `floor`: the lowest possible `loss` with the captions of this batch."""
        features = self.features(batch)  # [B, 1, T, M]
        if self.recipe.mask:
            bins, frames = (int(self.recipe.mask * size) for size in features.shape[:1:-1])
            features = mask(features[:, 0].mT, bins, frames).mT[:, None]
        same = self.same(batch.captions)

        def compute() -> Tensor:  # scalar
            with self.autocast():
                sounds, texts = self.embed_sounds(features), self.embed_captions(batch.captions)  # [B, E]
            return self.loss(texts, sounds, same)

        loss = self.parallel(compute)
        self.optimizer.backward(loss)
        metrics = self.optimizer.step(step)
        with torch.no_grad():
            for scale in (self.model.logit_scale_t, self.model.logit_scale_a):
                scale.clamp_(0.0, math.log(MAX_SCALE))
        self.average.update()
        scalars = {"loss": loss, "scale": self.model.logit_scale_t.exp()}
        return metrics | {"floor": floor(same)} | {name: value.item() for name, value in scalars.items()}

    def loss(self, texts: Tensor, sounds: Tensor, same: Tensor) -> Tensor:
        """The contrastive loss of embeddings [B, E] with the model's scales, in nats."""
        return contrastive_loss(
            texts, sounds, same, self.model.logit_scale_t.exp(), self.model.logit_scale_a.exp()
        )

    def evaluate(self, batches: Iterable[AudioBatch]) -> dict[str, float]:
        """All validation clips and their captions against one another; clips of equal meaning count as right.

        `loss` lies between `floor` and, for a model at chance, `loss_chance`. `recall_K_text_to_audio`: share of the
        captions with a right clip among the K nearest; `_audio_to_text`: of the clips, with a right caption;
        `recall_K_chance`: of a random order.
        """
        sounds, texts, captions = [], [], []
        for batch in batches:
            sounds.append(self.embed_sounds(self.features(batch)))
            texts.append(self.embed_captions(batch.captions))
            captions += batch.captions
        same = self.same(captions)
        text, sound = torch.cat(texts), torch.cat(sounds)  # [n, E]
        loss = self.loss(text, sound, same).item()
        metrics = {"loss": loss, "floor": floor(same), "loss_chance": math.log(len(captions))}
        similarity = text @ sound.T
        for k in (1, 10):
            metrics[f"recall_{k}_text_to_audio"] = recall(similarity, same, k)
            metrics[f"recall_{k}_audio_to_text"] = recall(similarity.T, same, k)
            metrics[f"recall_{k}_chance"] = chance(same, k)
        return metrics

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        save_clap(directory, self.clap, info)


def contrastive_loss(
    texts: Tensor, sounds: Tensor, same: Tensor, text_scale: Tensor, audio_scale: Tensor
) -> Tensor:
    """Cross-entropy of the scaled similarities, mean of text -> audio and audio -> text, in nats.

    texts, sounds: [B, E] of length 1; row b of both is clip b. same: bool [B, B], symmetric; the target of a row is
    spread evenly over all columns that mean the same. text_scale, audio_scale: factors of the similarities of a text
    with all sounds, of a sound with all texts (inverse temperatures).
    """
    similarity = texts @ sounds.T  # [B texts, B sounds]
    wanted = same / same.sum(1, keepdim=True)  # [B, B], each row sums to 1
    to_audio = -(wanted * (text_scale * similarity).log_softmax(1)).sum(1)
    to_text = -(wanted * (audio_scale * similarity.T).log_softmax(1)).sum(1)
    return 0.5 * (to_audio.mean() + to_text.mean())


def floor(same: Tensor) -> float:
    """The lowest possible `contrastive_loss`: the entropy of the targets [B, B], mean over rows."""
    return same.sum(1).float().log().mean().item()


def recall(similarity: Tensor, same: Tensor, k: int) -> float:
    """Share of the rows of [n, n] with a right column among the k most similar."""
    nearest = similarity.topk(min(k, len(same)), dim=1).indices
    return same.gather(1, nearest).any(1).float().mean().item()


def chance(same: Tensor, k: int) -> float:
    """`recall` of a random order, expected; same: bool [B, B]."""
    num, k = len(same), min(k, len(same))
    missed = [math.comb(num - right, k) / math.comb(num, k) for right in same.sum(1).tolist()]
    return 1.0 - sum(missed) / num
