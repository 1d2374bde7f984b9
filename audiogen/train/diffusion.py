"""Denoiser training: undo noise on an autoencoder's latents, told what the text says (latent diffusion, flows)."""

from __future__ import annotations

import dataclasses
import re
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
from audiogen.config import to_plain
from audiogen.data.dataset import DataConfig, open_data
from audiogen.data.loader import valid_batches
from audiogen.data.seeds import seed_for
from audiogen.diffusion.conditioners import Known
from audiogen.diffusion.process import PROCESSES, Process, ProcessConfig, process_of
from audiogen.diffusion.routes import Routes, drop
from audiogen.diffusion.sample import Sampling, sample
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch, Condition
from audiogen.models.diffusers import save_diffusers
from audiogen.models.latent_codecs import (
    check_reconstruction,
    differences,
    identity,
    kind_of,
    load_autoencoder,
)
from audiogen.models.released import load_released
from audiogen.text.clap import Clap
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary
from audiogen.train.ema import Average
from audiogen.train.latents import Feature, LatentBatch, LatentDataset, cache_latents, collate_latents
from audiogen.train.lm import meanings, shuffle_captions, wordings
from audiogen.train.loa import LoaTraining, mixed_vectors, true_vectors
from audiogen.train.loop import FitConfig, Prepared, Resume, autocast, row_slices
from audiogen.train.optim import OptimConfig, Optimizer
from audiogen.train.origin import new_text

CHECKED_CLIPS = 8  # that go through the autoencoder before training
VALID_DRAWS = 2  # times and noises for each validation clip


@dataclass(frozen=True)
class DiffusionRecipe:
    """A denoiser training run; `recipes/{audioldm,lafma,...}*.yaml` are complete examples.

    kind: which system it is like, as `process.PROCESSES` names them; decides how it is sampled by default.
    autoencoder: whose latents are learned: a bundled one, a directory of `task: autoencoder`, or of a whole system; it
    is not trained. text_from: language model whose embedded text encoder is taken and not trained; null trains the
    embedded one, from nothing or on. out: run directory. resume: auto goes on from a checkpoint in `out` if there is
    one. init_from: system to start from, own or released (directory or hub id); system, kind, process and autoencoder
    are then taken from it. clap_of: what the CLAP embedding that conditions is of, in training; mixed flips a coin a
    clip. loa: how GPT-2 is trained on vectors of the sounds; null, and it learns from the denoiser's loss alone.
    condition_dropout: share of the clips trained without their condition, for guidance; drawn per clip. latent_passes:
    passes over the data stored as latents before training, in the run directory. max_reconstruction: log-mel distance
    of real clips from what the autoencoder makes of them, above which nothing is trained. sampling: of samples, and of
    whoever opens the model and does not say otherwise.
    """

    data: DataConfig
    system: SystemConfig
    kind: str
    autoencoder: str | None = None
    task: Literal["diffusion"] = "diffusion"
    seed: int = 0
    out: str = "runs/diffusion"
    resume: Resume = "auto"
    init_from: str | None = None
    text_from: str | None = None
    process: ProcessConfig = field(default_factory=ProcessConfig)
    sampling: Sampling = field(default_factory=Sampling)
    clap_of: Literal["text", "audio", "mixed"] = "text"
    loa: LoaTraining | None = None
    condition_dropout: float = 0.1
    latent_passes: int = 1
    max_reconstruction: float = 1.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if self.kind not in PROCESSES:
            raise InputError(f"kind is {self.kind!r}; it must be one of {', '.join(PROCESSES)}")
        if not 0 <= self.condition_dropout <= 1:
            raise InputError(f"condition_dropout is {self.condition_dropout}; it must be in [0, 1]")
        if self.latent_passes < 1:
            raise InputError(f"latent_passes is {self.latent_passes}; it must be at least 1")
        if (self.autoencoder is None) == (self.init_from is None):
            raise InputError("give autoencoder= for a new denoiser, or init_from= with autoencoder=null")
        if self.clap_of != "text" and self.system.conditioner.clap is None:
            raise InputError(f"clap_of is {self.clap_of!r}, but system.conditioner.clap names no model")
        if self.text_from and not self._embedded:
            raise InputError("text_from needs system.conditioner.text.encoder=embedded")
        if self.loa is not None and "loa" not in self.system.conditioner.uses:
            raise InputError(
                "loa is for a system with a stream of loa in system.conditioner.cross; set it null"
            )
        self.sampling.check(self.process, "sampling")

    @property
    def _embedded(self) -> bool:
        text = self.system.conditioner.text
        return text is not None and text.embedded


INHERITED = ("system", "kind", "process")  # keys that init_from decides


def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The inherited keys of a recipe that trains a system on, own or released."""
    found = load_released(recipe["init_from"])
    process = process_of(found.name, found.process)
    return {"system": to_plain(found.system.config), "kind": found.name, "process": to_plain(process)}


def prepare(recipe: DiffusionRecipe, run: Path, device: torch.device) -> Prepared:
    """The task and the data of a run: the autoencoder checked on real clips, then latents, made before or now."""
    start = load_released(recipe.init_from).system if recipe.init_from else None
    autoencoder = start.autoencoder if start else load_autoencoder(str(recipe.autoencoder))
    autoencoder = autoencoder.to(device).eval().requires_grad_(False)
    wanted = recipe.system.autoencoder
    if dataclasses.replace(autoencoder.config, scale_factor=1.0) != dataclasses.replace(
        wanted, scale_factor=1.0
    ):
        raise InputError(
            f"autoencoder={recipe.autoencoder} is not the one that system.{kind_of(wanted)} describes: "
            f"{differences(autoencoder.config, wanted)}; change the recipe, or give another"
        )
    sets = open_data(recipe.data, autoencoder.sample_rate, autoencoder.channels)
    folder, size = run / "latents", recipe.fit.batch_size
    with distributed.first_process_first():
        checked = folder / "check" / "reconstruction.json"
        if not was_checked(checked, identity(autoencoder), recipe.max_reconstruction):
            clips = next(valid_batches(sets.valid or sets.train, CHECKED_CLIPS, 1))
            mel = check_reconstruction(autoencoder, clips, recipe.max_reconstruction, checked.parent)
            print(
                f"the autoencoder reconstructs {len(clips.keys)} real clips with a log-mel distance of {mel:.3f} "
                f"(at most {recipe.max_reconstruction:g}): {checked.parent}",
                file=sys.stderr,
            )
        features = {}
        if recipe.clap_of != "text":
            clap = start.conditioner.clap if start else Clap(recipe.system.conditioner.clap)
            rate = autoencoder.sample_rate
            features["clap"] = Feature(True, lambda audio, _: clap.embed_audio(audio, rate))
        if recipe.loa is not None:
            assert recipe.system.conditioner.loa is not None
            shape = autoencoder.latent_shape(recipe.data.segment_s)
            features["loa"] = true_vectors(
                recipe.loa, recipe.system.conditioner.loa, shape, autoencoder.sample_rate
            )
        data = cache_latents(
            sets, recipe.data, autoencoder, features, folder, recipe.latent_passes, recipe.seed, size,
            recipe.fit.workers,
        )  # fmt: skip
    if start is None:
        start = new_system(recipe, data.train, run)
        start.autoencoder = autoencoder
    elif recipe.text_from:
        keep_text(start, recipe)
    task = DiffusionTask(recipe, start, wordings(data.valid), device)  # type: ignore[arg-type]
    return Prepared(task, data.train, data.valid, collate_latents)


def was_checked(path: Path, autoencoder: str, bound: float) -> bool:
    """Whether this autoencoder was found to be good enough before."""
    if not path.exists():
        return False
    found = checkpoint.read_json(path)
    return bool(found["autoencoder"] == autoencoder and found["mel"] <= bound)


def new_system(recipe: DiffusionRecipe, train: LatentDataset, run: Path) -> LatentSystem:
    """A system with new weights; its embedded text encoder is that of text_from, or new with a new vocabulary."""
    text, given = recipe.system.conditioner.text, None
    if recipe.text_from:
        given = given_text(recipe)
    elif text is not None and text.embedded:
        given = new_text(text, train, run, recipe.seed)  # type: ignore[arg-type]
    vocabulary = None
    if given is not None:
        assert isinstance(given.tokenizer, Vocabulary)
        vocabulary = given.tokenizer.model
    torch.manual_seed(seed_for(recipe.seed, "weights"))
    system = LatentSystem(recipe.system, vocabulary)
    if given is not None:
        assert system.conditioner.text is not None and system.conditioner.text.embedded is not None
        system.conditioner.text.embedded.load_state_dict(given.state_dict())
        system.conditioner.text.requires_grad_(not recipe.text_from)
    return system


def given_text(recipe: DiffusionRecipe) -> T5Conditioner:
    """The text encoder of text_from; InputError where it is not the one that the system's config describes."""
    given = T5Conditioner.load(checkpoint.resolve(str(recipe.text_from)) / "text")
    if given.config != recipe.system.conditioner.text:
        raise InputError(
            f"system.conditioner.text is not that of text_from={recipe.text_from}; make it {to_plain(given.config)}"
        )
    return given


def keep_text(system: LatentSystem, recipe: DiffusionRecipe) -> None:
    """Freeze the text encoder of a system that is trained on; InputError where it is not that of text_from."""
    given = given_text(recipe)
    text = system.conditioner.text
    assert text is not None and text.embedded is not None
    if checkpoint.identity(text.embedded.state_dict()) != checkpoint.identity(given.state_dict()):
        raise InputError(
            f"the text encoder of init_from={recipe.init_from} is not that of text_from={recipe.text_from}; with "
            "text_from=null it is trained on"
        )
    text.requires_grad_(False)


class DiffusionTask:
    """The denoiser with its conditioner's projections; autoencoder and pretrained encoders are frozen. `loop.Task`."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        system: LatentSystem,
        valid_captions: Sequence[Sequence[str]],
        device: torch.device,
    ):
        """valid_captions: the wordings of each validation clip, to tell which captions mean the same."""
        self.recipe, self.device, self.system = recipe, device, system.to(device)
        self.sample_rate = system.autoencoder.sample_rate
        self.process = Process(recipe.process)
        self.conditioner = system.conditioner
        system.autoencoder.requires_grad_(False)
        self.loa = recipe.loa
        system.denoiser.requires_grad_(not self._loa_only)
        self.model = nn.ModuleDict({"denoiser": system.denoiser, "conditioner": system.conditioner})
        fit = recipe.fit
        self.forward = torch.compile(system.denoiser) if fit.compile else system.denoiser
        self.optimizer = Optimizer([self.model], recipe.optim, fit.steps, fit.precision == "float16")
        self.average = Average(self.model, fit.ema_decay)
        self.meanings = meanings(valid_captions)

    @property
    def _loa_only(self) -> bool:
        """Whether this is GPT-2's stage."""
        return self.loa is not None and self.loa.only

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One update: `train/loss` is the weighted squared error of what the denoiser gives for noised latents.

        `train/loa` is GPT-2's own loss, and `train/loss`, too, where it trains alone. Times, noise, what is dropped and
        who is given true vectors are drawn for the whole batch: how it is divided changes nothing.
        """
        assert isinstance(batch, LatentBatch)
        self.model.train()
        if self.recipe.text_from and self.conditioner.text is not None:
            self.conditioner.text.eval()
        random = torch.Generator().manual_seed(seed_for("noise", self.recipe.seed, step, distributed.rank()))
        t, noise = self.draw(batch.latents, random)
        keep = torch.rand(len(t), generator=random) >= self.recipe.condition_dropout  # [B]
        from_audio = (
            torch.rand(len(t), generator=random)
            < {"text": 0.0, "mixed": 0.5, "audio": 1.0}[self.recipe.clap_of]
        )
        is_true = torch.rand(len(t), generator=random) < self.loa.true_share if self.loa else None
        totals: dict[str, Tensor] = {}
        for rows in row_slices(len(t), self.recipe.fit.accumulate):
            known = self.know(batch, batch.captions[rows], rows, from_audio[rows])
            losses: dict[str, Tensor] = {}  # of each row [B]
            with autocast(self.device, self.recipe.fit.precision):
                if self.loa is not None:
                    assert batch.loa is not None and is_true is not None
                    true = batch.loa[rows].to(self.device)
                    losses["loa"] = self.loa.distance(self.conditioner.loa_vectors(known, true), true)
                    if not self.loa.only:
                        generated = self.conditioner.loa_vectors(known)
                        known = dataclasses.replace(known, loa=mixed_vectors(true, generated, is_true[rows]))
                if self._loa_only:
                    losses["loss"] = losses["loa"]
                else:
                    routes = self.conditioner(known)
                    if not keep[rows].all():
                        routes = drop(routes, keep[rows].to(self.device), self.conditioner.null(known))
                    errors = self.errors(batch.latents[rows], noise[rows], t[rows], routes)
                    losses["loss"] = self.process.weight(t[rows]).to(self.device) * errors
            means = {name: each.sum() / len(t) for name, each in losses.items()}
            if self.loa is not None and not self.loa.only:
                self.optimizer.backward(means["loss"] + self.loa.weight * means["loa"])
            else:
                self.optimizer.backward(means["loss"])
            for name, mean in means.items():
                totals[name] = totals.get(name, 0) + mean.detach()
        metrics = {name: total.item() for name, total in totals.items()} | self.optimizer.step(step)
        self.average.update()
        return {f"train/{name}": value for name, value in metrics.items()}

    def draw(self, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times [B] and noise in the shape of the latents, on the CPU: the same on every device."""
        return self.process.sample_t(len(latents), random), torch.randn(latents.shape, generator=random)

    def know(
        self,
        batch: LatentBatch,
        captions: Sequence[str | None],
        rows: slice = slice(None),
        from_audio: Tensor | None = None,
    ) -> Known:
        """What the conditioner is told of these rows with these captions; a segment counts as a whole sound."""
        seconds = (batch.lengths[rows] / self.sample_rate).to(self.device)
        known = self.conditioner.know(captions, seconds if self.conditioner.config.seconds else None)
        clap = known.clap
        if clap is not None and batch.clap is not None and from_audio is not None:
            clap = torch.where(from_audio[:, None], batch.clap[rows], clap.cpu())
        text = known.text
        if text is not None:
            text = Condition(text.tokens.to(self.device), text.mask.to(self.device))
        return dataclasses.replace(known, text=text, clap=None if clap is None else clap.to(self.device))

    def errors(self, clean: Tensor, noise: Tensor, t: Tensor, routes: Routes) -> Tensor:
        """Mean squared error of the prediction for each row [B], float32."""
        clean, noise, t = clean.to(self.device), noise.to(self.device), t.to(self.device)
        x_t = self.process.noise(clean, noise, t)
        with self.attention():
            found = self.forward(x_t, self.process.model_time(t), routes)
        return (found.float() - self.process.target(clean, noise, t)).square().flatten(1).mean(1)

    def attention(self) -> AbstractContextManager[Any]:
        """How attention is computed: plainly in a UNet on a CPU, whose few places PyTorch's flash kernel is slow for.

        Backwards most of all: 0.44 s of CPU a step of audioldm2_tiny's UNet for 0.65.
        """
        unet = self.system.config.audio_unet or self.system.config.text_unet
        plain = self.device.type == "cpu" and unet is not None
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Squared error on unseen clips, not weighted, at the same times and with the same noise at every call.

        `valid/loss` is with the right caption, `valid/loss_shuffled` with the caption of a clip that sounds different,
        `valid/loss_none` without a condition; `valid/loss_zero` is that of predicting 0. What the text is worth to the
        model is the difference of the first two. GPT-2's loss is `valid/loa`, or `_shuffled`; `valid/loa_generated` is
        the distance of what it generates from the true vectors, to be compared with `valid/loa_mean`, that of their
        mean. Where it trains alone, `valid/loss` is `valid/loa`.
        """
        self.model.eval()
        seen = [batch for batch in batches if isinstance(batch, LatentBatch)]
        if not seen:
            raise InputError("there is nothing to validate on; give data.valid, or fit.valid_every=0")
        right = [caption for batch in seen for caption in batch.captions]
        kinds: dict[str, list[str | None]] = {"loss": right, "loss_none": right}
        if (shuffled := shuffle_captions(right, self.meanings)) is not None:
            kinds["loss_shuffled"] = shuffled
        values: dict[str, list[Tensor]] = {}
        with self.average.applied(), autocast(self.device, self.recipe.fit.precision):
            for name, captions in kinds.items():
                remaining = list(captions)
                for number, batch in enumerate(seen):
                    texts, remaining = remaining[: len(batch.keys)], remaining[len(batch.keys) :]
                    known = self.know(batch, texts)
                    if self.loa is not None and name != "loss_none":
                        known = self.validate_loa(known, batch, name, values)
                    if self._loa_only:
                        continue
                    routes = self.conditioner.null(known) if name == "loss_none" else self.conditioner(known)
                    random = torch.Generator().manual_seed(seed_for("valid", number))
                    for _ in range(VALID_DRAWS):
                        t, noise = self.draw(batch.latents, random)
                        errors = self.errors(batch.latents, noise, t, routes)
                        values.setdefault(name, []).append(errors.cpu())
                        if name == "loss":
                            target = self.process.target(batch.latents, noise, t)
                            values.setdefault("loss_zero", []).append(target.square().flatten(1).mean(1))
        if self.loa is not None:
            true = torch.cat([batch.loa for batch in seen if batch.loa is not None])
            values["loa_mean"] = [self.loa.distance(true.mean(dim=0, keepdim=True), true)]
        metrics = {f"valid/{name}": torch.cat(each).mean().item() for name, each in values.items()}
        return metrics if self.loa is None else {"valid/loss": metrics["valid/loa"], **metrics}

    def validate_loa(
        self, known: Known, batch: LatentBatch, name: str, values: dict[str, list[Tensor]]
    ) -> Known:
        """Validate GPT-2 on what is known of a batch -> the same with the vectors that it generates."""
        assert self.loa is not None and batch.loa is not None
        true = batch.loa.to(self.device)
        found = {name.replace("loss", "loa"): self.conditioner.loa_vectors(known, true)}
        generated = self.conditioner.loa_vectors(known)
        if name == "loss":
            found["loa_generated"] = generated
        for kind, vectors in found.items():
            values.setdefault(kind, []).append(self.loa.distance(vectors, true).cpu())
        return dataclasses.replace(known, loa=generated)

    @torch.no_grad()
    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Sounds [C, N] generated for the first four validation captions that differ; none in GPT-2's stage."""
        captions: list[str | None] = []
        for batch in batches:
            captions += [text for text in dict.fromkeys(batch.captions) if text and text not in captions]
        captions = captions[:4]
        if not captions or self._loa_only:
            return {}
        self.model.eval()
        duration_s = self.recipe.data.segment_s
        with self.average.applied():
            seconds = torch.full((len(captions),), duration_s, device=self.device)
            known = self.conditioner.know(captions, seconds if self.conditioner.config.seconds else None)
            latents = sample(
                self.system.denoiser,
                self.process,
                self.recipe.sampling,
                self.conditioner(known),
                self.system.autoencoder.latent_shape(duration_s),
                range(len(captions)),
                negative=self.conditioner.null(known),
                device=self.device,
            )
            audio = self.system.autoencoder.decode(latents.clone())  # [B, C, N]
        audio = audio[..., : round(duration_s * self.sample_rate)]
        names = [re.sub(r"[^a-z0-9]+", "_", str(caption).lower()).strip("_")[:40] for caption in captions]
        return {f"{row}_{name}": audio[row] for row, name in enumerate(names)}

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the whole system, averaged where averaging is on; frozen encoders by name."""
        with self.average.applied():
            process = to_plain(self.recipe.process)
            save_diffusers(
                directory,
                self.system,
                self.recipe.kind,
                process,
                encoders=False,
                sampling=self.recipe.sampling,
            )
        checkpoint.write_json(directory / "info.json", dict(info))

    def state_dict(self) -> dict[str, Any]:
        """Denoiser and conditioner, optimiser, average."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        checkpoint.load_into(self.model, state["model"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
