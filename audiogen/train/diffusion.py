"""Denoiser training: undo noise on an autoencoder's latents, conditioned on text (latent diffusion, flows)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiogen import distributed
from audiogen.config import Positive, Probability, to_plain
from audiogen.data.captions import file_names, first_captions, meanings, shuffle_captions, wordings
from audiogen.data.dataset import Split, open_data
from audiogen.data.encoded import LatentBatch, collate_latents
from audiogen.data.loader import valid_batches
from audiogen.data.seeds import seed_for
from audiogen.diffusion.conditioners import ConditionerInputs
from audiogen.diffusion.conditioning import Conditioning, drop
from audiogen.diffusion.process import PROCESSES, Process, ProcessConfig, process_of
from audiogen.diffusion.sample import Noise, Sampling, sample
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch
from audiogen.models.diffusers import save_diffusers
from audiogen.models.latent_codecs import (
    Autoencoder,
    check_reconstruction,
    differences,
    identity,
    kind_of,
    load_autoencoder,
)
from audiogen.models.released import load_released
from audiogen.text.clap import Clap
from audiogen.train.cache import Feature, cache_latents
from audiogen.train.loa import LoaTraining, true_vectors
from audiogen.train.origin import freeze_text, new_system
from audiogen.train.task import Prepared, Run, Totals, TrainingTask, means

CHECKED_CLIPS = 8  # that go through the autoencoder before training
VALID_DRAWS = 2  # times and noises for each validation clip
SAMPLES = 4  # sounds generated at `fit.sample_every`
CLAP_FROM_AUDIO = {"text": 0.0, "mixed": 0.5, "audio": 1.0}  # share of the clips by `clap_of`


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(Run):
    """A denoiser training run; `recipes/{audioldm,lafma,...}*.yaml` are complete examples.

    kind: the published system it is like, a key of `process.PROCESSES`; decides how it is sampled by default.
    autoencoder: whose latents are learned: a bundled one, a directory of `task: autoencoder`, or of a whole system; it
    is not trained. text_from: language model whose embedded text encoder is taken and not trained; null trains the
    embedded one, from nothing or further. init_from: system to start from, own or released (directory or hub id);
    system, kind, process and autoencoder are then taken from it. clap_of: source of the CLAP embedding that conditions,
    in training; mixed flips a coin for each clip. loa: how GPT-2 is trained on vectors of the sounds; with null it
    learns from the denoiser's loss alone. condition_dropout: share of the clips trained without their condition, for
    guidance; drawn per clip. latent_passes: passes over the data stored as latents before training, in the run
    directory. max_reconstruction: log-mel distance of real clips from their reconstructions by the autoencoder, above
    which nothing is trained. sampling: of samples, and the default of whoever opens the model.
    """

    system: SystemConfig
    kind: str
    autoencoder: str | None = None
    task: Literal["diffusion"] = "diffusion"
    out: str = "runs/diffusion"
    text_from: str | None = None
    process: ProcessConfig = field(default_factory=ProcessConfig)
    sampling: Sampling = field(default_factory=Sampling)
    clap_of: Literal["text", "audio", "mixed"] = "text"
    loa: LoaTraining | None = None
    condition_dropout: Probability = 0.1
    latent_passes: Positive = 1
    max_reconstruction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in PROCESSES:
            raise InputError(f"kind is {self.kind!r}; it must be one of {', '.join(PROCESSES)}")
        if (self.autoencoder is None) == (self.init_from is None):
            raise InputError("give autoencoder= for a new denoiser, or init_from= with autoencoder=null")
        if self.clap_of != "text" and self.system.conditioner.clap is None:
            raise InputError(f"clap_of is {self.clap_of!r}, but system.conditioner.clap names no model")
        text = self.system.conditioner.text
        if self.text_from and not (text and text.embedded):
            raise InputError("text_from needs system.conditioner.text.encoder=embedded")
        if self.loa is not None and "loa" not in self.system.conditioner.uses:
            raise InputError(
                "loa is for a system with a stream of loa in system.conditioner.cross; set it null"
            )
        self.sampling.check(self.process, "sampling")


INHERITED = ("system", "kind", "process")  # keys that init_from decides


def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The inherited keys of a recipe that trains a system further, own or released."""
    found = load_released(recipe["init_from"])
    process = process_of(found.name, found.process)
    return {"system": to_plain(found.system.config), "kind": found.name, "process": to_plain(process)}


def prepare(recipe: DiffusionRecipe, run: Path, device: torch.device) -> Prepared:
    """The task and the data of a run: the autoencoder checked on real clips, then latents, made before or now."""
    start = load_released(recipe.init_from).system if recipe.init_from else None
    autoencoder = start.autoencoder if start else load_autoencoder(str(recipe.autoencoder))
    autoencoder = autoencoder.to(device).eval().requires_grad_(False)
    own, wanted = autoencoder.config, recipe.system.autoencoder
    if dataclasses.replace(own, scale_factor=1.0) != dataclasses.replace(wanted, scale_factor=1.0):
        raise InputError(
            f"autoencoder={recipe.autoencoder} is not the one that system.{kind_of(wanted)} describes: "
            f"{differences(own, wanted)}; change the recipe, or give another"
        )
    sets = open_data(recipe.data, autoencoder.sample_rate, autoencoder.channels)
    with distributed.first_process_first():
        check_autoencoder(autoencoder, sets, recipe.max_reconstruction, run / "latents" / "check")
        features = make_features(recipe, autoencoder, start)
        data = cache_latents(sets, recipe, recipe.latent_passes, run / "latents", autoencoder, features)
    if start is None:
        start = new_system(recipe.system, recipe.text_from, data.train, run, recipe.seed)
        start.autoencoder = autoencoder
    elif recipe.text_from:
        freeze_text(start, recipe.text_from, recipe.init_from)
    task = DiffusionTask(recipe, start, wordings(data.valid), device)
    return Prepared(task, data.train, data.valid, collate_latents)


def check_autoencoder(autoencoder: Autoencoder, sets: Split, bound: float, folder: Path) -> None:
    """Reconstruct real clips into `folder`, unless that was done; InputError where the distance is above `bound`."""
    path = folder / "reconstruction.json"
    if path.exists():
        before = checkpoint.read_json(path)
        if before["autoencoder"] == identity(autoencoder) and before["mel"] <= bound:
            return
    clips = next(valid_batches(sets.valid or sets.train, CHECKED_CLIPS, 1))
    mel = check_reconstruction(autoencoder, clips, bound, folder)
    print(
        f"the autoencoder reconstructs {len(clips.keys)} real clips with a log-mel distance of {mel:.3f} "
        f"(at most {bound:g}): {folder}",
        file=sys.stderr,
    )


def make_features(
    recipe: DiffusionRecipe, autoencoder: Autoencoder, start: LatentSystem | None
) -> dict[str, Feature]:
    """What is stored beside the latents: the sounds' CLAP embeddings, the vectors that GPT-2 learns."""
    conditioner, rate, features = recipe.system.conditioner, autoencoder.sample_rate, {}
    if recipe.clap_of != "text":
        clap = start.conditioner.clap if start else Clap(conditioner.clap)
        assert clap is not None  # the recipe's system names one
        features["clap"] = Feature(True, lambda audio, _: clap.embed_audio(audio, rate))
    if recipe.loa is not None:
        assert conditioner.loa is not None
        shape = autoencoder.latent_shape(recipe.data.segment_s)
        features["loa"] = true_vectors(recipe.loa, conditioner.loa, shape, rate)
    return features


class DiffusionTask(TrainingTask[DiffusionRecipe]):
    """The denoiser with its conditioner's projections; autoencoder and pretrained encoders are frozen. `task.Task`."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        system: LatentSystem,
        valid_captions: Sequence[Sequence[str]],
        device: torch.device,
    ):
        """valid_captions: the wordings of each validation clip, to find out which captions mean the same."""
        self.system = system.to(device)
        self.sample_rate = system.autoencoder.sample_rate
        self.process = Process(recipe.process)
        self.conditioner = system.conditioner
        self.loa = recipe.loa
        self.gpt2_only = self.loa is not None and self.loa.only
        system.autoencoder.requires_grad_(False)
        system.denoiser.requires_grad_(not self.gpt2_only)
        model = nn.ModuleDict({"denoiser": system.denoiser, "conditioner": system.conditioner})
        self.forward = torch.compile(system.denoiser) if recipe.fit.compile else system.denoiser
        self.meanings = meanings(valid_captions)
        super().__init__(recipe, model, device)

    def step(self, batch: LatentBatch, step: int) -> dict[str, float]:
        """One update: `train/loss` is the weighted squared error of the denoiser's prediction for noised latents.

        `train/loa` is GPT-2's own loss, and `train/loss`, too, where it trains alone. Times, noise, which clips lose
        their condition and which get true vectors are drawn for the whole batch: how it is divided changes nothing.
        """
        self.module.train()
        if self.recipe.text_from and self.conditioner.text is not None:
            self.conditioner.text.eval()
        size = len(batch.keys)
        random = torch.Generator().manual_seed(seed_for("noise", self.recipe.seed, step, distributed.rank()))
        t, noise = self.draw(batch.latents, random)
        keep = torch.rand(size, generator=random) >= self.recipe.condition_dropout  # [B]
        from_audio = torch.rand(size, generator=random) < CLAP_FROM_AUDIO[self.recipe.clap_of]  # [B]
        is_true = torch.rand(size, generator=random) < (self.loa.true_share if self.loa else 0.0)  # [B]
        totals = Totals()
        for rows in self.parts(batch):
            inputs = self.inputs(batch, batch.captions[rows], rows, from_audio[rows])
            losses: dict[str, Tensor] = {}  # of each row [B]
            with self.autocast():
                if self.loa is not None:
                    true = batch.features["loa"][rows].to(self.device)
                    losses["loa"], inputs = self.loa.step(self.conditioner, inputs, true, is_true[rows])
                if self.gpt2_only:
                    losses["loss"] = losses["loa"]
                else:
                    conditioning = self.conditioner(inputs)
                    if not keep[rows].all():
                        conditioning = drop(
                            conditioning, keep[rows].to(self.device), self.conditioner.null(inputs)
                        )
                    errors = self.errors(batch.latents[rows], noise[rows], t[rows], conditioning)
                    losses["loss"] = self.process.weight(t[rows]).to(self.device) * errors
            mean = {name: each.sum() / size for name, each in losses.items()}
            loss = mean["loss"]
            if self.loa is not None and not self.gpt2_only:
                loss = loss + self.loa.weight * mean["loa"]
            self.optimizer.backward(loss)
            totals.add(mean)
        norm = self.optimizer.clip()
        metrics = totals.metrics(self.optimizer.step(step, norm))
        self.average.update()
        return metrics

    def draw(self, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times [B] and noise in the shape of the latents, on the CPU: the same on every device."""
        return self.process.sample_t(len(latents), random), torch.randn(latents.shape, generator=random)

    def inputs(
        self,
        batch: LatentBatch,
        captions: Sequence[str | None],
        rows: slice = slice(None),
        from_audio: Tensor | None = None,
    ) -> ConditionerInputs:
        """The conditioner's inputs for these rows with these captions; a segment counts as a whole sound.

        from_audio: bool [B], which rows get the CLAP embedding of their sound in place of the text's.
        """
        seconds = (batch.lengths[rows] / self.sample_rate).to(self.device)
        inputs = self.conditioner.inputs(captions, seconds if self.conditioner.config.seconds else None)
        clap = inputs.clap
        if clap is not None and "clap" in batch.features and from_audio is not None:
            clap = torch.where(from_audio[:, None], batch.features["clap"][rows], clap.cpu())
        return dataclasses.replace(inputs, clap=clap).to(self.device)

    def errors(self, clean: Tensor, noise: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Mean squared error of the prediction for each row [B], float32. clean, noise: [B, D, T] or [B, D, T, M]."""
        clean, noise, t = clean.to(self.device), noise.to(self.device), t.to(self.device)
        x_t = self.process.noise(clean, noise, t)
        with self.attention():
            prediction = self.forward(x_t, self.process.model_time(t), conditioning)
        return (prediction.float() - self.process.target(clean, noise, t)).square().flatten(1).mean(1)

    def attention(self) -> AbstractContextManager[Any]:
        """How attention is computed: by plain products in a UNet on a CPU.

        PyTorch's flash kernel is slow there for the UNet's few positions, most of all in the backward pass: 0.65 s of
        CPU per step of audioldm2_tiny's UNet, in place of 0.44.
        """
        unet = self.system.config.audio_unet or self.system.config.text_unet
        plain = self.device.type == "cpu" and unet is not None
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def evaluate(self, batches: Iterable[LatentBatch]) -> dict[str, float]:
        """Squared error on unseen clips, not weighted, at the same times and with the same noise at every call.

        `valid/loss` is with the right caption, `valid/loss_shuffled` with the caption of a clip that sounds different,
        `valid/loss_none` without a condition; `valid/loss_zero` is that of predicting 0. The difference of the first
        two is the worth of the text to the model. GPT-2's loss is `valid/loa`, or `_shuffled`; `valid/loa_generated` is
        the distance of the vectors that it generates from the true ones, to be compared with `valid/loa_mean`, that of
        their mean. Where it trains alone, `valid/loss` is `valid/loa`.
        """
        seen = list(batches)
        right = [caption for batch in seen for caption in batch.captions]
        kinds: dict[str, list[str | None]] = {"loss": right, "loss_none": right}
        if (shuffled := shuffle_captions(right, self.meanings)) is not None:
            kinds["loss_shuffled"] = shuffled
        values: dict[str, list[Tensor]] = {}  # of each clip [B]
        with self.averaged(), self.autocast():
            for name, captions in kinds.items():
                remaining = list(captions)
                for number, batch in enumerate(seen):
                    texts, remaining = remaining[: len(batch.keys)], remaining[len(batch.keys) :]
                    inputs = self.inputs(batch, texts)
                    if self.loa is not None and name != "loss_none":
                        true = batch.features["loa"].to(self.device)
                        kind = name.replace("loss", "loa")
                        found, inputs = self.loa.validate(self.conditioner, inputs, true, kind)
                        for key, each in found.items():
                            values.setdefault(key, []).append(each.cpu())
                    if self.gpt2_only:
                        continue
                    null = name == "loss_none"
                    conditioning = self.conditioner.null(inputs) if null else self.conditioner(inputs)
                    random = torch.Generator().manual_seed(seed_for("valid", number))
                    for _ in range(VALID_DRAWS):
                        t, noise = self.draw(batch.latents, random)
                        errors = self.errors(batch.latents, noise, t, conditioning)
                        values.setdefault(name, []).append(errors.cpu())
                        if name == "loss":
                            target = self.process.target(batch.latents, noise, t)
                            values.setdefault("loss_zero", []).append(target.square().flatten(1).mean(1))
        if self.loa is None:
            return means(values)
        true = torch.cat([batch.features["loa"] for batch in seen])
        values["loa_mean"] = [self.loa.distance(true.mean(dim=0, keepdim=True), true)]
        metrics = means(values)
        return {"valid/loss": metrics["valid/loa"], **metrics}

    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Sounds [C, N] generated for the first validation captions that differ; none in GPT-2's stage."""
        captions = [] if self.gpt2_only else first_captions(batches, SAMPLES)
        if not captions:
            return {}
        duration_s = self.recipe.data.segment_s
        with self.averaged():
            seconds = torch.full((len(captions),), duration_s, device=self.device)
            given, away = self.conditioner.guided(
                captions, seconds if self.conditioner.config.seconds else None, device=self.device
            )
            latents = sample(
                self.system.denoiser,
                self.process,
                self.recipe.sampling,
                given,
                Noise(self.system.autoencoder.latent_shape(duration_s), range(len(captions)), self.device),
                negative=away,
            )
            audio = self.system.autoencoder.decode(latents.clone())  # [B, C, N]
        audio = audio[..., : round(duration_s * self.sample_rate)]
        return dict(zip(file_names(captions), audio, strict=True))

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the whole system, averaged where averaging is on; frozen encoders by name."""
        recipe = self.recipe
        process = to_plain(recipe.process)
        with self.average.applied():
            save_diffusers(
                directory, self.system, recipe.kind, process, encoders=False, sampling=recipe.sampling
            )
        checkpoint.write_json(directory / "info.json", dict(info))
