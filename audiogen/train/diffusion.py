"""Denoiser training: undo noise on an autoencoder's latents, conditioned on text (latent diffusion, flows)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiogen import distributed
from audiogen.config import Positive, Probability, short, to_plain
from audiogen.data.captions import Captioned, wordings
from audiogen.data.dataset import Split, open_data
from audiogen.data.encoded import LatentBatch, LatentDataset
from audiogen.data.seeds import generator_for, seed_for
from audiogen.diffusion.conditioners import ConditionerInputs
from audiogen.diffusion.conditioning import Conditioning, drop
from audiogen.diffusion.process import PROCESSES, Process, ProcessConfig, process_of
from audiogen.diffusion.sample import Noise, Sampling, sample
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import Batch
from audiogen.models.diffusers import save_diffusers
from audiogen.models.find import LM, find
from audiogen.models.latent_codecs import (
    Autoencoder,
    differences,
    kind_of,
    load_autoencoder,
)
from audiogen.models.released import load_released, read_released
from audiogen.text.clap import Clap
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary
from audiogen.train.autoencoder import check_on_clips
from audiogen.train.cache import Feature, cache_latents
from audiogen.train.loa import LoaTraining, true_vectors
from audiogen.train.parallel import blocks
from audiogen.train.task import CaptionedTask, Run, learn_words, means, new_text

GROUPS = 8  # of clips by their length, at most
VALID_DRAWS = 2  # times and noises for each validation clip
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
    directory. group_by_length: batches are of clips of about one length, and as long as the longest, so that short
    sounds are learned as such, not as the beginning of a segment of silence. max_reconstruction: log-mel distance of
    real clips from their reconstructions by the autoencoder, above which nothing is trained. sampling: of samples, and
    the default of whoever opens the model.
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
    condition_dropout: Probability = 0.1  # AudioLDM's share (arXiv:2301.12503)
    latent_passes: Positive = 1
    group_by_length: bool = False
    max_reconstruction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in PROCESSES:
            raise InputError(f"kind is {short(self.kind)}; it must be one of {', '.join(PROCESSES)}")
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
        if self.loa is not None and self.group_by_length:
            raise InputError("loa describes whole segments; set group_by_length=false")
        self.sampling.check(self.process, "sampling")

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        found = read_released(recipe["init_from"])
        process = process_of(found.name, found.process)
        return {"system": to_plain(found.config), "kind": found.name, "process": to_plain(process)}

    def prepare(self, device: torch.device) -> tuple[DiffusionTask, Split[LatentDataset]]:
        """See `Run`; the autoencoder is checked on real clips, the data are latents, made before or now."""
        system = load_released(self.init_from).system if self.init_from else None
        autoencoder = system.autoencoder if system else load_autoencoder(str(self.autoencoder))
        autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        own, wanted = autoencoder.config, self.system.autoencoder
        if replace(own, scale_factor=1.0) != replace(wanted, scale_factor=1.0):
            raise InputError(
                f"autoencoder={self.autoencoder} is not the one that system.{kind_of(wanted)} describes: "
                f"{differences(own, wanted)}; change the recipe, or give another"
            )
        sets = open_data(self.data, autoencoder.sample_rate, autoencoder.channels)
        with distributed.first_process_first():
            check_on_clips(autoencoder, sets, self.max_reconstruction, Path(self.out, "latents", "check"))
            features = make_features(self, autoencoder, system)
        parts = max(1, round(self.data.segment_s * autoencoder.sample_rate / GROUPS))
        group = parts if self.group_by_length else None
        data = cache_latents(sets, self, self.latent_passes, autoencoder, features, group)
        if system is None:
            system = new_system(self, data.train)
            system.autoencoder = autoencoder
        if self.text_from:
            freeze_text(self, system)
        if system.conditioner.text is not None and system.conditioner.text.embedded is not None:
            learn_words(system.conditioner.text.embedded, data.train)
        return self.new_task(self.limited(len(sets.train)), system, wordings(data.valid), device), data

    @staticmethod
    def new_task(*given: Any) -> DiffusionTask:
        """The task of this kind of run."""
        return DiffusionTask(*given)


def new_system(recipe: DiffusionRecipe, train: Captioned) -> LatentSystem:
    """A latent system with new weights; its embedded text encoder is text_from's, or new with a new vocabulary."""
    config, given = recipe.system.conditioner.text, None
    if recipe.text_from:
        given = given_text(recipe)
    elif config is not None and config.embedded:
        given = new_text(recipe, config, train)
    torch.manual_seed(seed_for(recipe.seed, "weights"))
    if given is None:
        return LatentSystem(recipe.system)
    assert isinstance(given.tokenizer, Vocabulary)
    system = LatentSystem(recipe.system, given.tokenizer.model)
    text: Any = system.conditioner.text
    text.embedded.load_state_dict(given.state_dict())
    return system


def given_text(recipe: DiffusionRecipe) -> T5Conditioner:
    """The text encoder of text_from; InputError where it is not the one that the recipe's system describes."""
    given = T5Conditioner.load(find(str(recipe.text_from), LM).path / "text")
    if given.config != recipe.system.conditioner.text:
        raise InputError(
            f"system.conditioner.text is not that of text_from={recipe.text_from}; make it {to_plain(given.config)}"
        )
    return given


def freeze_text(recipe: DiffusionRecipe, system: LatentSystem) -> None:
    """Freeze the system's text encoder; InputError where it is not that of text_from."""
    text: Any = system.conditioner.text
    own, given = (checkpoint.identity(each.state_dict()) for each in (text.embedded, given_text(recipe)))
    if own != given:
        raise InputError(
            f"the text encoder of init_from={recipe.init_from} is not that of text_from={recipe.text_from}; with "
            "text_from=null it is trained further"
        )
    text.requires_grad_(False)


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


class Drawn(NamedTuple):
    """What is drawn for a step; [B] each, but for the noise."""

    t: Tensor
    noise: Tensor  # in the shape of the latents
    keep: Tensor  # the condition
    from_audio: Tensor  # see `inputs`
    is_true: Tensor  # the row gets true vectors


class DiffusionTask(CaptionedTask[DiffusionRecipe]):
    """The denoiser with its conditioner's projections; autoencoder and pretrained encoders are frozen."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        system: LatentSystem,
        valid_captions: Sequence[Sequence[str]],
        device: torch.device,
    ):
        self.system = system.to(device)
        self.sample_rate = system.autoencoder.sample_rate
        self.process = Process(recipe.process)
        self.conditioner = system.conditioner
        self.loa = recipe.loa
        self.gpt2_only = self.loa is not None and self.loa.only
        system.autoencoder.requires_grad_(False)
        layers = self.choose_trained(recipe)
        model = nn.ModuleDict({"denoiser": system.denoiser, "conditioner": system.conditioner})
        self.forward = torch.compile(system.denoiser) if recipe.fit.compile else system.denoiser
        super().__init__(recipe, model, device, valid_captions, layers)

    def choose_trained(self, recipe: DiffusionRecipe) -> list[nn.Module]:
        """Freeze what is not trained -> the layers that processes may share."""
        self.system.denoiser.requires_grad_(not self.gpt2_only)
        # A FLUX network is called as often as texts of a batch differ in length, and dit3 calls what is in its layers:
        # their layers are gathered together.
        config = self.system.config
        return [self.system.denoiser] if config.flux or config.dit3 else list(blocks(self.system.denoiser))

    def train(self) -> None:
        """Training mode, but for a text encoder that is not trained."""
        super().train()
        if self.recipe.text_from and self.conditioner.text is not None:
            self.conditioner.text.eval()

    def step(self, batch: LatentBatch, step: int) -> dict[str, float]:
        """One update: `loss` is the weighted squared error of the denoiser's prediction for noised latents.

        `loa` is GPT-2's own loss, and `loss`, too, where it trains alone.
        """
        batch = self.cut(batch)
        drawn = self.draw_rows(batch.latents, step)
        for rows in self.in_turn(self.parts(batch)):
            losses = self.parallel(partial(self.losses, batch, rows, drawn))
            mean = {name: each.sum() / len(batch.keys) for name, each in losses.items()}
            loss = mean["loss"]
            if self.loa is not None and not self.gpt2_only:
                loss = loss + self.loa.weight * mean["loa"]
            self.optimizer.backward(loss)
            self.add(mean)
        return self.update(step)

    def cut(self, batch: LatentBatch) -> LatentBatch:
        """As long as its longest clip where clips are grouped by length, else as long as a segment."""
        return batch.cut(self.system.autoencoder.hop_length) if self.recipe.group_by_length else batch

    def losses(self, batch: LatentBatch, rows: slice, drawn: Drawn) -> dict[str, Tensor]:
        """`loss`, and `loa` where GPT-2 learns, of each of the rows [B]."""
        inputs = self.inputs(batch, batch.captions[rows], rows, drawn.from_audio[rows])
        losses: dict[str, Tensor] = {}
        with self.autocast():
            if self.loa is not None:
                true = batch.features["loa"][rows].to(self.device)
                losses["loa"], inputs = self.loa.step(self.conditioner, inputs, true, drawn.is_true[rows])
            if self.gpt2_only:
                return losses | {"loss": losses["loa"]}
            conditioning, kept = self.conditioner(inputs), drawn.keep[rows]
            if not kept.all():  # on the CPU: no wait for the device
                null = self.conditioner.null(inputs)
                conditioning = drop(conditioning, kept.to(self.device), null)
            errors = self.errors(batch.latents[rows], drawn.noise[rows], drawn.t[rows], conditioning)
            return losses | {"loss": self.process.weight(drawn.t[rows]).to(self.device) * errors}

    def draw_rows(self, latents: Tensor, step: int) -> Drawn:
        """The draws of a step: each row's are a function of (seed, its place in the order of the data).

        latents: [B, D, T] or [B, D, T, M]. How a batch is divided over parts and processes changes nothing.
        """
        size = len(latents)
        first = (step * distributed.world() + distributed.rank()) * size
        drawn = []
        for row in range(size):
            random = generator_for("noise", self.recipe.seed, first + row)
            drawn.append((*self.draw(latents[row : row + 1], random), torch.rand(1, 3, generator=random)))
        t, noise, chances = (torch.cat(each) for each in zip(*drawn, strict=True))
        keep = chances[:, 0] >= self.recipe.condition_dropout
        from_audio = chances[:, 1] < CLAP_FROM_AUDIO[self.recipe.clap_of]
        return Drawn(t, noise, keep, from_audio, chances[:, 2] < (self.loa.true_share if self.loa else 0.0))

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
        return replace(inputs, clap=clap).to(self.device)

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

        `loss` is with the right caption, `loss_shuffled` with the caption of a clip that sounds different, `loss_none`
        without a condition; `loss_zero` is that of predicting 0. The difference of the first two is the worth of the
        text to the model. GPT-2's loss is `loa`, or `loa_shuffled`; `loa_generated` is the distance of the vectors that
        it generates from the true ones, to be compared with `loa_mean`, that of their mean. Where it trains alone,
        `loss` is `loa`.
        """
        batches = [self.cut(batch) for batch in batches]  # read once for each kind of captions
        kinds = self.captions([batch.captions for batch in batches])
        kinds["_none"] = kinds[""]  # what is left out is the condition
        values: list[dict[str, Tensor]] = []  # of clips [B]
        with self.autocast():
            for name, captions in kinds.items():
                for number, (batch, texts) in enumerate(zip(batches, captions, strict=True)):
                    inputs = self.inputs(batch, texts)
                    if self.loa is not None and name != "_none":
                        true = batch.features["loa"].to(self.device)
                        found, inputs = self.loa.validate(self.conditioner, inputs, true, f"loa{name}")
                        values.append(found)
                    if self.gpt2_only:
                        continue
                    null = name == "_none"
                    conditioning = self.conditioner.null(inputs) if null else self.conditioner(inputs)
                    random = generator_for("valid", number)
                    for _ in range(VALID_DRAWS):
                        t, noise = self.draw(batch.latents, random)
                        errors = self.errors(batch.latents, noise, t, conditioning)
                        values.append({f"loss{name}": errors})
                        if not name:
                            target = self.process.target(batch.latents, noise, t)
                            values.append({"loss_zero": target.square().flatten(1).mean(1)})
        if self.loa is None:
            return means(values)
        true = torch.cat([batch.features["loa"] for batch in batches])
        values.append({"loa_mean": self.loa.distance(true.mean(dim=0, keepdim=True), true)})
        metrics = means(values)
        return {"loss": metrics["loa"], **metrics}

    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """See `CaptionedTask`; none in GPT-2's stage."""
        return {} if self.gpt2_only else super().samples(batches)

    def generate(self, captions: list[str]) -> Tensor:
        """Captions -> sounds [B, C, N]."""
        duration_s, autoencoder = self.recipe.data.segment_s, self.system.autoencoder
        seconds = None
        if self.conditioner.config.seconds:
            seconds = torch.full((len(captions),), duration_s, device=self.device)
        given, away = self.conditioner.guided(captions, seconds, device=self.device)
        noise = Noise(autoencoder.latent_shape(duration_s), range(len(captions)), self.device)
        denoiser, sampling = self.system.denoiser, self.recipe.sampling
        latents = sample(denoiser, self.process, sampling, given, noise, negative=away)
        audio = autoencoder.decode(latents.clone())  # [B, C, N]
        return audio[..., : round(duration_s * self.sample_rate)]

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the whole system; frozen encoders by name."""
        recipe, process = self.recipe, to_plain(self.recipe.process)
        save_diffusers(directory, self.system, recipe.kind, process, encoders=False, sampling=recipe.sampling)
        writing.write_json(directory / "info.json", dict(info))
