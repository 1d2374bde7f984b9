"""What the training tasks share: the configuration of a run, and a module that learns with optimiser and average."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from audiogen import audio, distributed
from audiogen.config import NotNegative, Positive, Range, check_ranges
from audiogen.data.captions import Captioned, meanings, shuffle_captions, wordings
from audiogen.data.dataset import DataConfig, Split
from audiogen.data.seeds import seed_for
from audiogen.device import DTYPES, multiplies_faster_in_bfloat16
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import Batch
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.tokens import TokenConditioner
from audiogen.text.vocabulary import Vocabulary, train_vocabulary
from audiogen.train.optim import Average, OptimConfig, Optimizer
from audiogen.train.parallel import SHARDED, Parallel, Shard

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Resume = Literal["auto", "must", "never"]
SAMPLES = 4  # sounds made at `fit.sample_every`


R = TypeVar("R", bound="Run")


@dataclass(frozen=True)
class FitConfig:
    """Order and cadence of a run. Counts are optimiser steps; a cadence of 0 is never, any other includes the end.

    steps: at most. epochs: passes over the training clips, at most; 0 is any number. batch_size: clips per step and
    process. accumulate: into how many parts, run one after another, a batch is split to save memory. precision: of the
    forward passes; auto is bfloat16 where the device computes it natively, else float32. valid_batches: how many
    batches a validation reads at most. patience: after so many validations without a `valid/loss` below the best one
    the run ends; 0 is never. keep_last: checkpoints kept. shard: how several processes share the model: ddp,
    each has all of it (auto); fsdp, each a part of every weight; hsdp, a part of it within a machine, and machines are
    replicas; see docs/scaling.md. timeout_s: how long a process waits for another.
    """

    steps: Positive = 1000
    epochs: NotNegative = 0
    batch_size: Positive = 16
    accumulate: Positive = 1
    precision: Precision = "float32"
    ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.0
    log_every: NotNegative = 10
    valid_every: NotNegative = 500
    valid_batches: Positive = 8
    patience: NotNegative = 0
    sample_every: NotNegative = 0
    save_every: NotNegative = 500
    keep_last: Positive = 2
    workers: NotNegative = 0
    device: str = "auto"
    compile: bool = False
    shard: Shard = "auto"
    tensorboard: bool = False
    timeout_s: Positive = 600

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size {self.batch_size} cannot be split into accumulate={self.accumulate} parts"
            )
        if self.shard in SHARDED:
            for key, wrong in (
                ("sample_every=0: generate from out= instead", self.sample_every > 0),
                ("compile=false", self.compile),
                ("precision=bfloat16 or float32", self.precision == "float16"),
            ):
                if wrong:
                    raise InputError(
                        f"fit.shard={self.shard}, where no process has the whole model, wants fit.{key}"
                    )
        if self.patience and not self.valid_every:
            raise InputError(f"patience is {self.patience}, but valid_every is 0: nothing would be validated")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every recipe has: data, where the run is kept, and how it is optimised.

    task: the kind of training, a key of `run.TASKS`. out: run directory. resume: auto continues from a checkpoint in
    `out` if there is one; must and never refuse the other case. init_from: model to start from, which decides the
    architecture; null starts from random weights.
    """

    task: str
    seed: int = 0
    out: str
    resume: Resume = "auto"
    init_from: str | None = None
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that init_from decides, with their values, of a recipe in plain values."""
        raise NotImplementedError

    @staticmethod
    def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Keys whose values lie in other files that a recipe names, with these values."""
        return {}

    def prepare(self, device: torch.device) -> tuple[Task[Any], Split[Any]]:
        """The task, whose recipe is `limited`, and the data to train and validate it on."""
        raise NotImplementedError

    def limited(self: R, num_clips: int) -> R:
        """The recipe with no more `fit.steps` than `fit.epochs` passes over so many training clips need."""
        fit = self.fit
        steps = -(-fit.epochs * num_clips // (fit.batch_size * distributed.world())) or fit.steps
        return replace(self, fit=replace(fit, steps=min(fit.steps, steps)))


class Task(Generic[R]):
    """What `loop.fit` trains: a module with its losses, its optimiser and its moving average.

    A task sets `sample_rate`, in Hz, and adds `step`, `evaluate` and `export`; `samples` if it makes sound.

    saved: what a checkpoint holds beside the module's weights: objects with `state_dict` and `load_state_dict` by name,
    or None for what this recipe does not use.
    """

    sample_rate: int

    def __init__(
        self,
        recipe: R,
        module: nn.Module,
        device: torch.device,
        name: str = "model",
        layers: Iterable[nn.Module] = (),
    ):
        """name: of the module's weights in checkpoints. layers: see `Parallel`; without them nothing is sharded."""
        self.recipe, self.module, self.device, self.name = recipe, module, device, name
        fit = recipe.fit
        layers = list(layers)
        if fit.shard in SHARDED and not layers:
            raise InputError(
                f"fit.shard={fit.shard} is for large models; task={recipe.task} takes fit.shard=ddp"
            )
        dtype = product_dtype(device, fit.precision)
        self.parallel = Parallel(module, device, fit.shard, dtype, layers)
        self.parallels = [self.parallel]  # and those of a discriminator
        self.optimizer = Optimizer(module, recipe.optim, fit.steps, fit.precision == "float16")
        self.average = Average(module, fit.ema_decay)
        self.saved: dict[str, Any] = {"optimizer": self.optimizer, "average": self.average}
        self.scalars: dict[str, Tensor] = {}  # of the step, gathered by `add`
        self.train()

    def train(self) -> None:
        """Put the module in training mode."""
        self.module.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the module evaluates: no gradients, no dropout, averaged weights where averaging is on."""
        self.module.eval()
        try:
            with torch.no_grad(), self.average.applied():
                yield
        finally:
            self.train()

    def step(self, batch: Any, step: int) -> dict[str, float]:
        """One optimiser step on a `Batch` of the task's kind, accumulation inside -> scalars, `loss` among them."""
        raise NotImplementedError

    def amounts(self, batch: Any) -> dict[str, float]:
        """What a step works on, by unit, padding included: seconds of sound, and what else the task counts."""
        return {"audio_s": len(batch.keys) * self.recipe.data.segment_s}

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Within `averaged`: validation scalars; `loss` decides which checkpoint is best (lower)."""
        raise NotImplementedError

    def samples(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Within `averaged`: sounds [C, N] by name, to listen to; none, unless the task makes sound."""
        return {}

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Within `averaged`: write the model as it stands as a model directory."""
        raise NotImplementedError

    def parts(self, batch: Batch) -> list[slice]:
        """The rows of each part of a batch, as many parts as `fit.accumulate`."""
        return row_slices(len(batch.keys), self.recipe.fit.accumulate)

    def in_turn(self, parts: Sequence[slice]) -> Iterator[slice]:
        """Each part of a batch; the processes reduce the gradients of all with those of the last."""
        for number, rows in enumerate(parts, start=1):
            for parallel in self.parallels:
                parallel.reduce_next(number == len(parts))
            yield rows

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: `fit.precision`."""
        return autocast(self.device, self.recipe.fit.precision)

    def add(self, scalars: Mapping[str, Tensor], num_parts: int = 1) -> None:
        """Gather scalars of one of a batch's parts, each divided by `num_parts`, for `update`."""
        for name, value in scalars.items():
            self.scalars[name] = self.scalars.get(name, 0.0) + value.detach() / num_parts

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> dict[str, float]:
        """Change the weights by the gradients gathered -> the scalars gathered, metrics, those of the optimiser."""
        own = self.optimizer.step(step)
        self.average.update()
        found = self.scalars
        self.scalars = {}
        # Read together, and after the update: reading waits for the device.
        values = torch.stack(list(found.values())).tolist() if found else []
        return {**dict(zip(found, values, strict=True)), **(metrics or {}), **own}

    def weights(self) -> dict[str, Any]:
        """The entry of a checkpoint, or entries, that hold the module's weights."""
        return {self.name: self.module.state_dict()}

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Restore what `weights` gave."""
        own = self.module.state_dict()
        if not self.parallel.sharded:
            checkpoint.load_into(self.module, state[self.name], "the checkpoint")
        elif own.keys() != state[self.name].keys():  # what is there was read into the shards
            name = min(own.keys() ^ state[self.name].keys())
            raise InputError(
                f"weights of the checkpoint do not fit their config: {name} is only in one of them"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs."""
        return self.weights() | {
            name: part.state_dict() if part else None for name, part in self.saved.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.load_weights(state)
        for name, part in self.saved.items():
            if part and state[name] is not None:
                part.load_state_dict(state[name])


class CaptionedTask(Task[R]):
    """A task that generates sound from captions, which it also validates with wrong captions and with none."""

    def __init__(
        self,
        recipe: R,
        module: nn.Module,
        device: torch.device,
        captions: Iterable[Sequence[str]],
        layers: Iterable[nn.Module],
    ):
        """captions: the wordings of each validation clip, to find out which captions mean the same."""
        super().__init__(recipe, module, device, layers=layers)
        self.meanings = meanings(captions)

    def captions(self, right: Sequence[Sequence[str | None]]) -> dict[str, list[list[str | None]]]:
        """Captions of each batch: "" the right ones, "_none", and "_shuffled" those of clips that sound different.

        No caption means both, see `meanings`; where no two differ in meaning, there are none that are shuffled.
        """
        texts = list(chain(*right))
        kinds: dict[str, list[str | None]] = {"": texts, "_none": [None] * len(texts)}
        if (shuffled := shuffle_captions(texts, self.meanings)) is not None:
            kinds["_shuffled"] = shuffled
        ends = accumulate(map(len, right))
        rows = [slice(end - len(batch), end) for end, batch in zip(ends, right, strict=True)]
        return {name: [captions[part] for part in rows] for name, captions in kinds.items()}

    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Sounds [C, N] generated for the first captions of the validation clips that differ, as "0_a_dog_barks"."""
        found: dict[str, None] = {}
        for batch in batches:
            found |= dict.fromkeys(text for text in batch.captions if text)
            if len(found) >= SAMPLES:
                break
        if not (captions := list(found)[:SAMPLES]):
            return {}
        names = [re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:40] for caption in captions]
        pairs = zip(names, self.generate(captions), strict=True)
        return {f"{row}_{name}": audio.below_full_scale(sound) for row, (name, sound) in enumerate(pairs)}

    def generate(self, captions: list[str]) -> Tensor:
        """Captions -> sounds [B, C, N]."""
        raise NotImplementedError


def new_text(recipe: Run, config: TextConfig, train: Captioned) -> T5Conditioner:
    """A text encoder to be trained along with a new model; its vocabulary is built from the training captions."""
    if not (config.embedded or config.tokens):
        return T5Conditioner(config)
    path = Path(recipe.out) / "vocabulary.model"
    with distributed.first_process_first():
        if not path.exists():
            captions = (caption for clip in wordings(train) for caption in clip)
            writing.write_bytes_atomic(path, train_vocabulary(captions, config.vocab_size))
    torch.manual_seed(seed_for(recipe.seed, "text weights"))
    if config.tokens:
        return TokenConditioner(config, Vocabulary(path.read_bytes()))
    return T5Conditioner(config, path.read_bytes())


def learn_words(text: T5Conditioner, train: Captioned) -> None:
    """What a model is trained on further it names as trained on, beside the words of before."""
    if text.config.trains_encoder and isinstance(text.tokenizer, Vocabulary):
        text.tokenizer.learn(caption for clip in wordings(train) for caption in clip)


def row_slices(num_rows: int, parts: int) -> list[slice]:
    """The rows of a batch in at most `parts` parts, in order."""
    size = -(-num_rows // parts)
    return [slice(first, first + size) for first in range(0, num_rows, size)]


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of the matrix products of a forward pass at `precision`."""
    if precision == "auto":
        precision = "bfloat16" if multiplies_faster_in_bfloat16(device) else "float32"
    return DTYPES[precision]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model's forward runs at `precision`; its weights stay float32."""
    dtype = product_dtype(device, precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def means(values: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Validation scalars: the mean over the clips of all values [B] of a name."""
    found: dict[str, list[Tensor]] = {}
    for each in values:
        for name, value in each.items():
            found.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(parts).mean().item() for name, parts in found.items()}
