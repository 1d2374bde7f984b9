"""Sound event tagger training: labels of recordings, and the exact times of events of the built-in corpus."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen import distributed
from audiogen.config import NotNegativeFloat, Probability, to_plain
from audiogen.data.dataset import (
    SYNTH_DURATION_S,
    SYNTH_LONGEST_S,
    SYNTH_SEED,
    AudioDataset,
    BuiltInClip,
    Split,
    open_data,
)
from audiogen.data.manifest import Clip
from audiogen.data.seeds import seed_for
from audiogen.data.synth.scene import KINDS, SynthEvent, compose
from audiogen.errors import InputError
from audiogen.interfaces import AudioBatch
from audiogen.models.own import load_tagger, save_tagger
from audiogen.tagger.model import Tagger, TaggerConfig, TaggerOutput
from audiogen.train.augment import mask, recolour, roll
from audiogen.train.task import Run, Task

BUILT_IN = "synth"  # the group whose labels are kinds of the built-in corpus
IN_FRAME_S = 0.015  # a frame holds a sound if this much of the sound lies in it: half of the shortest click


@dataclass(frozen=True, kw_only=True)
class TaggerRecipe(Run):
    """A tagger training run; `recipes/tagger_tiny.yaml` is a complete example.

    Manifest clips are labelled by their field `label`, which must be in a group of `model.groups`; built-in clips
    by their events, in the group `synth`. A group without training clips is left out of the model. alike: labels
    that are kinds of the group synth as well, so that recordings teach these, too. mixup: Beta(mixup, mixup) draws
    the shares of two recordings (arXiv:1710.09412); 0 is off. overlay: share of the built-in clips that sound
    together with another one. init_from: model directory to start from; `model` is then taken from it.
    """

    model: TaggerConfig
    task: Literal["tagger"] = "tagger"
    out: str = "runs/tagger"
    alike: dict[str, str] = field(default_factory=dict)
    mixup: NotNegativeFloat = 0.3
    overlay: Probability = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.model.groups.get(BUILT_IN, ())) - set(KINDS))
        if unknown:
            raise InputError(f"model.groups.{BUILT_IN}: {unknown[0]!r} is no kind of the built-in corpus")
        wrong = sorted(set(self.alike.values()) - set(self.model.groups.get(BUILT_IN, ())))
        if wrong:
            raise InputError(f"alike: {wrong[0]!r} is not in model.groups.{BUILT_IN}")

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": to_plain(load_tagger(recipe["init_from"]).config)}

    def prepare(self, device: torch.device) -> tuple[TaggerTask, Split[AudioDataset]]:
        recipe = self
        data = open_data(self.data, self.model.sample_rate)
        clips = [clip for dataset in data if dataset for clip in dataset.clips]
        groups = {clip.key: group_of(clip, self) for clip in clips}
        if not self.init_from:
            learned = {groups[clip.key] for clip in data.train.clips}
            kept = {name: labels for name, labels in self.model.groups.items() if name in learned}
            left_out = ", ".join(sorted(set(self.model.groups) - set(kept)))
            if left_out and distributed.rank() == 0:
                print(f"no training clip has a label of {left_out}: left out of the model", file=sys.stderr)
            alike = self.alike if BUILT_IN in kept else {}
            recipe = replace(self, model=replace(self.model, groups=kept), alike=alike)
        return TaggerTask(recipe.limited(len(data.train)), clips, device), data


def group_of(clip: Clip, recipe: TaggerRecipe) -> str:
    """The group a clip's label is in. Raises InputError for a clip that cannot be learned from."""
    groups = recipe.model.groups
    if isinstance(clip, BuiltInClip):
        if clip.duration_s is not None:
            raise InputError(
                f"duration_s is {clip.duration_s:g}; a tagger takes clips as long as the segment: drop it"
            )
        if not SYNTH_DURATION_S <= recipe.data.segment_s <= SYNTH_LONGEST_S:
            raise InputError(
                f"data.segment_s is {recipe.data.segment_s:g}; the events of built-in clips are defined for whole "
                f"clips of {SYNTH_DURATION_S:g} to {SYNTH_LONGEST_S:g} s"
            )
        if BUILT_IN in groups:
            return BUILT_IN
        raise InputError(f"{clip.key}: model.groups has no group {BUILT_IN}, so built-in clips teach nothing")
    label = clip.fields.get("label")
    for name, labels in groups.items():
        if name != BUILT_IN and label in labels:
            return name
    raise InputError(
        f"{clip.key}: its label {label!r} is in no group of model.groups; add it, or leave the clip out"
    )


def frame_targets(
    events: Sequence[SynthEvent], kinds: Sequence[str], num_frames: int, hop_s: float
) -> Tensor:
    """1 where at least IN_FRAME_S of a kind's sound lies in a frame -> [T, kinds]."""
    targets = torch.zeros(num_frames, len(kinds))
    begin = torch.arange(num_frames) * hop_s
    for event in events:
        if event.kind not in kinds:
            continue
        sounding = [(event.start_s, event.end_s)]
        if event.count is not None:  # strikes
            sounding = [(onset, min(onset + event.sound_s, event.end_s)) for onset in event.onsets_s]
        for start, end in sounding:
            overlap = (begin + hop_s).clamp(max=end) - begin.clamp(min=start)  # seconds in each frame
            targets[overlap >= IN_FRAME_S, kinds.index(event.kind)] = 1.0
    return targets


class Targets(NamedTuple):
    """Of clips [B, labels] and of frames [B, frames, labels]: 1 where the label sounds, NaN where unlabelled."""

    clip: Tensor
    frames: Tensor


class TaggerTask(Task[TaggerRecipe]):
    """The tagger, its targets by clip key, augmentation."""

    def __init__(self, recipe: TaggerRecipe, clips: Iterable[Clip], device: torch.device):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        self.sample_rate = recipe.model.sample_rate
        self.clips = {clip.key: clip for clip in clips}
        self.tagger = load_tagger(recipe.init_from) if recipe.init_from else Tagger(recipe.model)
        self.tagger.to(device).requires_grad_(True)
        super().__init__(recipe, self.tagger, device, "tagger")
        self.forward = torch.compile(self.tagger.tag) if recipe.fit.compile else self.tagger.tag

    def targets(self, keys: Sequence[str], num_samples: int) -> Targets:
        """The targets of clips of `num_samples` samples, by their keys."""
        config = self.recipe.model
        num_frames = -(-num_samples // self.tagger.hop_length)
        clip = torch.full((len(keys), len(self.tagger.labels)), torch.nan)
        frames = torch.full((len(keys), num_frames, len(self.tagger.labels)), torch.nan)
        for row, key in enumerate(keys):
            one = self.clips[key]
            if isinstance(one, BuiltInClip):
                if BUILT_IN in config.groups:
                    events = compose(SYNTH_SEED, one.number, num_samples / self.sample_rate).events
                    kinds, columns = config.groups[BUILT_IN], self.tagger.group(BUILT_IN)
                    frames[row, :, columns] = frame_targets(events, kinds, num_frames, self.tagger.hop_s)
                    clip[row, columns] = frames[row, :, columns].amax(0)
                continue
            label = one.fields["label"]
            for name, labels in config.groups.items():
                wanted = self.recipe.alike.get(label) if name == BUILT_IN else label
                if wanted in labels:
                    one_hot = F.one_hot(torch.tensor(labels.index(wanted)), len(labels))
                    clip[row, self.tagger.group(name)] = one_hot.float()
        return Targets(clip, frames)

    def step(self, batch: AudioBatch, step: int) -> dict[str, float]:
        """One update: cross-entropy of exclusive groups, binary cross-entropy of multi-label ones."""
        parts = self.parts(batch)
        for rows in self.in_turn(parts):
            audio = batch.audio[rows, 0]  # [B, N]
            targets = self.targets(batch.keys[rows], audio.shape[1])
            mel, targets = self.vary(self.tagger.features(audio), targets)
            targets = Targets(*(part.to(self.device) for part in targets))
            losses = self.parallel(partial(self.learn, mel.to(self.device), targets))
            loss = torch.stack(list(losses.values())).sum()
            self.optimizer.backward(loss / len(parts))
            self.add({"loss": loss, **losses}, len(parts))
        return self.update(step)

    def learn(self, mel: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of log-mels [B, M, T], through the compiled model where it is."""
        with self.autocast():
            output = self.forward(mel)
        return self.losses(output, targets)

    def vary(self, mel: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """A batch [B, M, T] changed as other recordings of such sounds would be; on the CPU, as data is.

        Recordings are mixed up and masked; built-in clips, whose moments are labelled, are overlaid instead.
        """
        config = self.recipe.model
        mel, frames = roll(mel, targets.frames, self.tagger.hop_length // config.hop_length)
        clip = targets.clip.clone()
        built_in = torch.tensor([bool((row == row).any()) for row in frames])
        ours, recorded = built_in.nonzero()[:, 0], (~built_in).nonzero()[:, 0]

        over = ours[torch.rand(len(ours)) < self.recipe.overlay]
        if len(over):
            under = ours[torch.randint(len(ours), (len(over),))]
            gain = 3.0 * torch.rand(len(over), 1, 1) - 1.5  # nats: -13 to 13 dB
            mixed = torch.logaddexp(mel[over], mel[under] + gain)
            labels = torch.maximum(clip[over], clip[under]), torch.maximum(frames[over], frames[under])
            mel[over], clip[over], frames[over] = mixed, *labels
        mel = recolour(mel, config.floor)
        if len(recorded):
            mel[recorded] = mask(mel[recorded], config.n_mels // 5, mel.shape[-1] // 5)
            if self.recipe.mixup:
                share = float(torch.distributions.Beta(self.recipe.mixup, self.recipe.mixup).sample())
                others = recorded[torch.randperm(len(recorded))]
                mel[recorded] = share * mel[recorded] + (1 - share) * mel[others]
                clip[recorded] = share * clip[recorded] + (1 - share) * clip[others]
        return mel, Targets(clip, frames)

    def losses(self, output: TaggerOutput, targets: Targets) -> dict[str, Tensor]:
        """For each group the losses of the clips and of their frames, in nats; only over rows that are labelled.

        A clip with labels but without their times is learned from all its frames: from the highest logit of each label
        (multi-label), or from the mean of the frames' likelihoods (exclusive).
        """
        losses = {}
        for name in self.recipe.model.groups:
            columns, multi = self.tagger.group(name), name in self.recipe.model.multi_label
            wanted, moments = targets.clip[:, columns], targets.frames[..., columns]
            clip, frames = output.logits[:, columns], output.frame_logits[..., columns]
            labelled, timed = ~wanted.isnan().any(-1), ~moments.isnan().any(-1).any(-1)  # [B] each
            if not labelled.any():
                continue
            losses[f"clip_{name}"] = nats(clip[labelled], wanted[labelled], multi).mean()
            weak = labelled & ~timed
            pooled = frames.amax(1) if multi else frames.logsumexp(1)
            strong = nats(frames[timed], moments[timed], multi).mean(1)
            losses[f"frame_{name}"] = torch.cat([strong, nats(pooled[weak], wanted[weak], multi)]).mean()
        return losses

    def evaluate(self, batches: Iterable[AudioBatch]) -> dict[str, float]:
        """On unseen clips: the losses; accuracy of exclusive groups; of multi-label ones the mean average precision.

        `map_G` is over the labels of clips, `frame_map_G` over those of frames; `frame_f1_G` is of all frames and
        labels together, at the probability `threshold_G` where it is highest.
        """
        outputs, wanted = [], []
        for batch in batches:
            outputs.append(self.tagger(batch.audio[:, 0].to(self.device)))
            wanted.append(self.targets(batch.keys, batch.audio.shape[-1]))
        output = TaggerOutput(*(torch.cat(parts).cpu() for parts in zip(*outputs, strict=True)))
        targets = Targets(*(torch.cat(parts) for parts in zip(*wanted, strict=True)))
        metrics = {name: value.item() for name, value in self.losses(output, targets).items()}
        metrics["loss"] = sum(metrics.values())
        for name in self.recipe.model.groups:
            columns = self.tagger.group(name)
            clip, frames = targets.clip[:, columns], targets.frames[..., columns]
            labelled, timed = ~clip.isnan().any(-1), ~frames.isnan().any(-1).any(-1)  # [B] each
            if name not in self.recipe.model.multi_label:
                if labelled.any():
                    right = output.logits[labelled, columns].argmax(-1) == clip[labelled].argmax(-1)
                    metrics[f"accuracy_{name}"] = right.float().mean().item()
            elif timed.any():
                found = output.frame_logits[timed][..., columns].sigmoid().flatten(0, 1)  # [frames, labels]
                moments = frames[timed].flatten(0, 1)
                metrics[f"map_{name}"] = mean_average_precision(output.logits[timed, columns], clip[timed])
                metrics[f"frame_map_{name}"] = mean_average_precision(found, moments)
                metrics[f"frame_f1_{name}"], metrics[f"threshold_{name}"] = best_f1(found, moments)
        return metrics

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        save_tagger(directory, self.tagger, info)


def nats(logits: Tensor, wanted: Tensor, multi: bool) -> Tensor:
    """Cross-entropy of logits [..., labels] with (soft) targets -> [...]; of multi-label ones the sum over labels."""
    if multi:
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
    return -(wanted * logits.log_softmax(-1)).sum(-1)


def mean_average_precision(scores: Tensor, wanted: Tensor) -> float:
    """Mean over labels of the average precision of scores [n, labels]; labels that nothing has are left out."""
    precisions = []
    for score, true in zip(scores.T, wanted.T, strict=True):
        hits = true[score.argsort(descending=True)]
        if hits.sum():
            precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
            precisions.append(float((precision * hits).sum() / hits.sum()))
    return sum(precisions) / max(1, len(precisions))


def best_f1(probabilities: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The highest F1 of all decisions together [n, labels], and its threshold, in steps of 0.05."""
    found = []
    for threshold in torch.arange(1, 20) / 20:
        decided = (probabilities >= threshold).float()
        f1 = 2 * (decided * wanted).sum() / (decided.sum() + wanted.sum()).clamp(min=1)
        found.append((float(f1), float(threshold)))
    return max(found)
