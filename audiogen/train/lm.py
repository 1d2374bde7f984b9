"""Language model training: predict a codec's tokens from text (AudioGen, arXiv:2209.15352)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiogen import distributed
from audiogen.data.codes import CodeDataset, collate_codes, is_shard_directory, open_codes
from audiogen.data.dataset import AudioDataset, DataConfig, open_data
from audiogen.data.loader import collate_audio
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch, Codec
from audiogen.lm import lora
from audiogen.lm.lora import LoraConfig
from audiogen.lm.model import LMConfig, teacher_forcing, token_loss
from audiogen.lm.sample import generate_tokens
from audiogen.lm.training import Recompute
from audiogen.models.lm_pretrained import CodecReference, PretrainedLM, save_lm
from audiogen.text.condition import drop
from audiogen.text.t5 import TextConfig
from audiogen.train.ema import Average
from audiogen.train.loop import FitConfig, Prepared, Resume, autocast, row_slices
from audiogen.train.optim import OptimConfig, Optimizer
from audiogen.train.origin import INHERITED as INHERITED
from audiogen.train.origin import inherit as inherit
from audiogen.train.origin import keep_codec, new_model, open_codec, open_model
from audiogen.train.tokens import pretokenize


@dataclass(frozen=True)
class LMRecipe:
    """A language model training run; `recipes/lm*.yaml` are complete examples.

    codec: whose tokens are learned: a bundled codec, a model directory, a released one (file, directory or hub id).
    dual_mono: a mono codec codes each channel of stereo sound by itself. out: run directory. resume: auto goes on from
    a checkpoint in `out` if there is one. init_from: model to start from, anything that `audiogen.generate` opens:
    bundled, a model directory, a released one (directory or hub id); `model`, `text`, `codec` and `dual_mono` are then
    taken from it. text_encoder: T5 directory or hub id in place of the one that init_from names. lora: train small
    matrices beside those of init_from, and save them alone; null trains all. condition_dropout: share of the clips
    trained without their text, for guidance; drawn per clip. pretokenize_epochs: passes over the data stored as tokens
    before training, in the run directory; 0 encodes each batch as it comes. gradient_checkpointing: recompute layers in
    the backward pass, for memory; selective: only what is cheap, see `lm.training.run_layer`. data: sounds, or folders
    of token shards made by `audiogen.codec encode --shards`.
    """

    codec: str
    model: LMConfig
    data: DataConfig
    task: Literal["lm"] = "lm"
    seed: int = 0
    out: str = "runs/lm"
    resume: Resume = "auto"
    init_from: str | None = None
    text_encoder: str | None = None
    lora: LoraConfig | None = None
    dual_mono: bool = False
    text: TextConfig = field(default_factory=TextConfig)
    condition_dropout: float = 0.1
    pretokenize_epochs: int = 0
    gradient_checkpointing: Recompute = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise InputError(f"condition_dropout is {self.condition_dropout}; it must be in [0, 1]")
        if self.pretokenize_epochs < 0:
            raise InputError(f"pretokenize_epochs is {self.pretokenize_epochs}; it must be at least 0")
        if self.text.width != self.model.dim:
            raise InputError(
                f"text.width is {self.text.width}, but model.dim is {self.model.dim}: make them equal"
            )
        if self.text_encoder and not self.init_from:
            raise InputError(
                "text_encoder replaces that of init_from=, which is not given; a new model has text.encoder"
            )


def prepare(recipe: LMRecipe, run: Path, device: torch.device) -> Prepared:
    """The task and the data of a run: sound, or tokens made before or now."""
    if recipe.lora and not recipe.init_from:
        raise InputError("lora adapts a model that there is: give init_from=, or lora=null for a new one")
    codec = open_codec(recipe.codec, recipe.dual_mono, recipe.model, device)
    shards = [is_shard_directory(source.source) for source in recipe.data.train + recipe.data.valid]
    if any(shards) and not all(shards):
        raise InputError("data names token shards and sounds; give only one of the two kinds")
    data: Any = (
        open_codes(recipe.data) if any(shards) else open_data(recipe.data, codec.sample_rate, codec.channels)
    )
    frozen = product_dtype(device, recipe.fit.precision)
    origin = open_model(recipe, codec, device, frozen) if recipe.init_from else None
    reference = CodecReference(recipe.codec, codec.identity, recipe.dual_mono)
    if recipe.lora is None:  # adapters go with a model that has its codec
        reference = keep_codec(recipe.codec, codec, recipe.dual_mono, run)
    if recipe.pretokenize_epochs and not any(shards):
        with distributed.first_process_first():
            data = pretokenize(
                data,
                recipe.data,
                codec,
                run / "tokens",
                recipe.pretokenize_epochs,
                recipe.seed,
                recipe.fit.batch_size,
                recipe.fit.workers,
            )
    tokens = isinstance(data.train, CodeDataset)
    if tokens and data.train.spec.identity != codec.identity:
        raise InputError(
            f"the token shards are of codec {data.train.spec.codec} ({data.train.spec.identity}), but "
            f"codec={recipe.codec} is {codec.identity}; encode the sounds again with it"
        )
    start = origin._replace(codec=reference) if origin else new_model(recipe, reference, data.train, run)
    task = LMTask(recipe, codec, start, wordings(data.valid), device)
    return Prepared(task, data.train, data.valid, collate_codes if tokens else collate_audio)


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What the matrix products of a forward pass at `precision` are computed in."""
    with autocast(device, precision):
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    return torch.float32


def wordings(dataset: AudioDataset | CodeDataset | None) -> list[Sequence[str]]:
    """All captions of each clip."""
    return [dataset.captions(index) for index in range(len(dataset))] if dataset else []


class LMTask:
    """The token LM with its text encoder; the codec is frozen. `loop.Task`."""

    def __init__(
        self,
        recipe: LMRecipe,
        codec: Codec,
        start: PretrainedLM,
        valid_captions: Sequence[Sequence[str]],
        device: torch.device,
    ):
        """start: with adapters where the recipe has `lora`; nothing else is then trained.

        valid_captions: the wordings of each validation clip, to tell which captions mean the same.
        """
        self.recipe, self.device, self.codec, self.codec_reference = recipe, device, codec, start.codec
        # What a release generates with by default goes along; how it was trained is told anew.
        self.info = {key: value for key, value in start.info.items() if key == "generation"}
        self.sample_rate = codec.sample_rate
        self.max_frames = max(1, round(recipe.data.segment_s * codec.frame_rate))
        self.lm, self.conditioner = start.lm.to(device), start.conditioner.to(device)
        self.model = nn.ModuleDict({"lm": self.lm})  # what trains; the rest stays in evaluation mode
        if recipe.lora is None:
            self.model["text"] = self.conditioner
        self.conditioner.eval()
        fit = recipe.fit
        self.forward = torch.compile(self.lm) if fit.compile else self.lm
        self.optimizer = Optimizer([self.model], recipe.optim, fit.steps, fit.precision == "float16")
        self.average = Average(self.model, fit.ema_decay)
        self.meanings = meanings(valid_captions)

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """Teacher forcing on the codes of a batch: `train/loss` is the mean over codebooks of `train/ce_qK`, in nats.

        Each codebook is averaged over its codes in the whole batch, that of all parts and processes: how a batch is
        divided changes nothing.
        """
        self.model.train()
        codes, lengths = self.tokens(batch)
        inputs, targets, mask = teacher_forcing(self.lm, codes, lengths)  # each [B, K, S - 1]
        keep = self.draw_keep(batch.keys, step)  # [B]
        counts = distributed.all_reduce_sum(mask.sum((0, 2)).float()).clamp(min=1)  # [K]
        total = torch.zeros_like(counts)
        for rows in row_slices(len(batch.keys), self.recipe.fit.accumulate):
            condition = drop(self.conditioner(batch.captions[rows]), keep[rows])
            with autocast(self.device, self.recipe.fit.precision):
                logits = self.forward(
                    inputs[rows], condition, checkpoint_layers=self.recipe.gradient_checkpointing
                )  # [B, K, S - 1, V]
            _, mean = token_loss(logits, targets[rows], mask[rows])  # [K]
            ce = mean * mask[rows].sum((0, 2)) / counts
            self.optimizer.backward(ce.mean() * distributed.world())  # gradients are averaged over processes
            total += ce.detach()
        metrics = self.optimizer.step(step)
        self.average.update()
        total = distributed.all_reduce_sum(total)
        loss, *each = torch.cat([total.mean()[None], total]).tolist()  # one wait for the device
        metrics |= {"loss": loss} | {f"ce_q{k}": value for k, value in enumerate(each)}
        return {f"train/{name}": value for name, value in metrics.items()}

    def tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] of the model's codebooks, and how many frames of each row are sound [B]."""
        num_codebooks = self.recipe.model.num_codebooks
        if batch.codes is not None:
            return batch.codes[:, :num_codebooks].to(self.device), batch.lengths
        assert batch.audio is not None
        parts = row_slices(len(batch.keys), self.recipe.fit.accumulate)
        codes = [self.codec.encode(batch.audio[rows].to(self.device), num_codebooks) for rows in parts]
        return torch.cat(codes), -(-batch.lengths // self.codec.hop_length)

    def draw_keep(self, keys: Sequence[str], step: int) -> Tensor:
        """Which clips keep their text, bool [B]: a function of (seed, step, clip), not of its neighbours."""
        chances = [
            torch.rand(
                (), generator=torch.Generator().manual_seed(seed_for("text", self.recipe.seed, step, key))
            )
            for key in keys
        ]
        return torch.stack(chances) >= self.recipe.condition_dropout

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Cross-entropy on unseen clips, per codebook: with the right caption, with that of another clip, with none.

        `valid/ce` is with the right caption, and is `valid/loss`; `valid/ce_shuffled` with the caption of a clip that
        sounds different (no caption means both, see `meanings`); `valid/ce_none` without text. What the text is worth
        to the model is the difference.
        """
        self.model.eval()
        with self.average.applied():
            seen = [(*self.tokens(batch), batch.captions) for batch in batches]
            if not seen:
                raise InputError("there is nothing to validate on; give data.valid, or fit.valid_every=0")
            right = [caption for _, _, captions in seen for caption in captions]
            kinds: dict[str, list[str | None]] = {"ce": right, "ce_none": [None] * len(right)}
            if (shuffled := shuffle_captions(right, self.meanings)) is not None:
                kinds["ce_shuffled"] = shuffled
            metrics: dict[str, float] = {}
            for name, captions in kinds.items():
                ce = self.cross_entropy([(codes, lengths) for codes, lengths, _ in seen], captions)
                metrics |= {f"valid/{name}": ce.mean().item()}
                metrics |= {f"valid/{name}_q{k}": value for k, value in enumerate(ce.tolist())}
        metrics["valid/loss"] = metrics["valid/ce"]
        return metrics

    def cross_entropy(
        self, batches: Sequence[tuple[Tensor, Tensor]], captions: Sequence[str | None]
    ) -> Tensor:
        """Mean over all codes of the batches' (codes [B, K, T], lengths [B]), one caption a row -> [K]."""
        sums = torch.zeros(self.recipe.model.num_codebooks, device=self.device)
        counts = torch.zeros_like(sums)
        remaining = list(captions)
        for codes, lengths in batches:
            texts, remaining = remaining[: len(codes)], remaining[len(codes) :]
            inputs, targets, mask = teacher_forcing(self.lm, codes, lengths)
            with autocast(self.device, self.recipe.fit.precision):
                logits = self.lm(inputs, self.conditioner(texts))
            _, mean = token_loss(logits, targets, mask)
            sums += mean * mask.sum((0, 2))
            counts += mask.sum((0, 2))
        return sums / counts.clamp(min=1)

    @torch.no_grad()
    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Sounds [C, N] generated for the first four captions of the validation clips that differ."""
        captions: list[str] = []
        for batch in batches:
            captions += [text for text in dict.fromkeys(batch.captions) if text and text not in captions]
            if len(captions) >= 4:
                break
        captions = captions[:4]
        if not captions:
            return {}
        self.model.eval()
        # Adapters stand beside weights of the type that the products are computed in; a model of its own is float32.
        precision = self.recipe.fit.precision if self.recipe.lora else "float32"
        with self.average.applied():
            condition = self.conditioner(captions)
            with autocast(self.device, precision):
                codes = generate_tokens(
                    self.lm, condition, self.max_frames, seeds=range(len(captions)), guidance=3.0
                )
            audio = self.codec.decode(codes)
        names = [re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:40] for caption in captions]
        return {f"{row}_{name}": audio[row] for row, name in enumerate(names)}

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write LM, text encoder and codec, or the adapters alone, averaged where averaging is on."""
        recipe = self.recipe
        with self.average.applied():
            if recipe.lora and recipe.init_from:
                lora.save_adapter(directory, self.lm, recipe.lora, recipe.init_from, info)
            else:
                info = {**self.info, **info}
                save_lm(directory, self.lm, self.conditioner, self.codec_reference, self.max_frames, info)

    def state_dict(self) -> dict[str, Any]:
        """LM and text encoder, or adapters and whose they are; optimiser, average."""
        if self.recipe.lora:
            model = {"adapters": lora.adapter_state(self.lm), "fingerprint": lora.fingerprint(self.lm)}
        else:
            model = {"model": self.model.state_dict()}
        return {
            **model,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if ("adapters" in state) != (self.recipe.lora is not None):
            kind = "adapters (lora)" if "adapters" in state else "a whole model (lora=null)"
            raise InputError(f"the checkpoint in {self.recipe.out} is of {kind}; choose another out=")
        if self.recipe.lora:
            if not lora.same_model(state["fingerprint"], lora.fingerprint(self.lm)):
                raise InputError(
                    f"init_from={self.recipe.init_from} is not the model that {self.recipe.out} began with; "
                    "choose another out="
                )
            lora.load_adapter_state(self.lm, state["adapters"], "the checkpoint")
        else:
            checkpoint.load_into(self.model, state["model"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])


def meanings(clips: Iterable[Sequence[str]]) -> dict[str, str]:
    """Each caption -> one that stands for all it may mean the same as: captions of one clip do, and so in chains.

    "A dog barks" and "Dog barking" word one clip, so neither is a wrong caption for a clip of the other.
    """
    parent: dict[str, str] = {}

    def root(caption: str) -> str:
        while parent.setdefault(caption, caption) != caption:
            caption = parent[caption]
        return caption

    for captions in clips:
        for caption in captions:
            parent[root(caption)] = root(captions[0])
    return {caption: root(caption) for caption in parent}


def shuffle_captions(captions: Sequence[str | None], meaning: Mapping[str, str]) -> list[str | None] | None:
    """For each row the caption of another row that means something else: the first from half the list away on.

    Deterministic. A row without a caption stays without; None if no two captions differ in meaning.
    """
    shuffled: list[str | None] = []
    for row, caption in enumerate(captions):
        others = (
            captions[(row + len(captions) // 2 + shift) % len(captions)] for shift in range(len(captions))
        )
        if caption is None:
            shuffled.append(None)
            continue
        own = meaning.get(caption, caption)
        other = next((text for text in others if text is not None and meaning.get(text, text) != own), None)
        if other is None:
            return None
        shuffled.append(other)
    return shuffled
