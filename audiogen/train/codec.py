"""Codec training: reconstruct through the quantiser, judged by spectra and a discriminator (EnCodec, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiogen.codec.balancer import Balancer
from audiogen.codec.conv import add_weight_norm
from audiogen.codec.discriminators import (
    DiscriminatorConfig,
    MultiScaleSTFTDiscriminator,
    MultiViewSpectrumDiscriminator,
)
from audiogen.codec.losses import mel_distance, multi_scale_mel, si_sdr, with_middle_and_side
from audiogen.codec.model import Codec, CodecConfig
from audiogen.config import NotNegative, Probability, to_plain
from audiogen.data.dataset import AudioDataset, Split, open_data
from audiogen.data.seeds import generator_for, seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import AudioBatch
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec
from audiogen.train.adversarial import AdversarialConfig, Adversary
from audiogen.train.optim import OptimConfig
from audiogen.train.task import SAMPLES, Run, Task, means


@dataclass(frozen=True)
class CodecLossWeights:
    """Shares of the gradient at the output audio (see `codec.balancer`); 0 turns a loss off.

    commitment and spectral stand outside the balancer: the weights of the commitment loss and, for arch: spectral,
    of the error of its log magnitudes. With the other four at 0 no audio is made in training, which is faster; nor
    where the discriminator sees spectra: the output is then the log magnitudes, and spectral is a share as well.
    mel_windows: STFT sizes of `mel`. The weights of the first four are those of audiocraft's EnCodec.
    """

    waveform_l1: float = 0.1
    mel: float = 2.0
    adversarial: float = 4.0
    feature_matching: float = 4.0
    commitment: float = 1.0
    spectral: float = 0.0
    mel_windows: tuple[int, ...] = (64, 128, 256, 512, 1024)


BALANCED = ("waveform_l1", "mel", "adversarial", "feature_matching")  # losses of the output audio


@dataclass(frozen=True, kw_only=True)
class CodecRecipe(Run):
    """A codec training run; `recipes/codec*.yaml` are complete examples.

    init_from: codec to start from: bundled, a model directory, or a released one (file, directory or hub id; not DAC,
    not one that codes sounds in segments); `model` is then taken from it. codebook_dropout: the share of training clips
    quantised with a random number of codebooks, so that every prefix of them is a bandwidth; the rest uses all.
    discriminator_optim: as optim, for the discriminator. trains: `decoder` leaves encoder and codebooks as they
    are, so that tokens made before keep their meaning while the sound gets better (give init_from). more_codebooks: how
    many to add to those of init_from. They quantise what is left, and learn even where `trains` leaves the others.
    """

    task: Literal["codec"] = "codec"
    out: str = "runs/codec"
    model: CodecConfig = field(default_factory=CodecConfig)
    trains: Literal["all", "decoder"] = "all"
    more_codebooks: NotNegative = 0
    codebook_dropout: Probability = 0.5
    loss: CodecLossWeights = field(default_factory=CodecLossWeights)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit.precision == "float16":
            raise InputError(
                "fit.precision=float16 is not for codecs: the balancer's gradients overflow; use bfloat16"
            )
        if self.more_codebooks and not self.init_from:
            raise InputError("more_codebooks adds to those of init_from, which is not given")

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        model = to_plain(open_origin(recipe["init_from"]).config)
        more = recipe.get("more_codebooks", 0)
        if isinstance(more, int):  # else it is refused when the recipe is built
            model["num_codebooks"] += more
        return {"model": model}

    def prepare(self, device: torch.device) -> tuple[CodecTask, Split[AudioDataset]]:
        data = open_data(self.data, self.model.sample_rate, self.model.channels)
        return CodecTask(self.limited(len(data.train)), device), data


def open_origin(init_from: str) -> Codec:
    """The codec to start from, on the CPU; one that `CodecTask` cannot train is refused."""
    codec = load_codec(init_from)
    if not isinstance(codec, Codec) or codec.config.dual_mono:
        raise InputError(
            f"init_from={init_from} is a codec that is only used here, not trained: DAC, or one that codes overlapping "
            "segments or each channel by itself; start from another codec"
        )
    return codec


def make_discriminator(recipe: CodecRecipe) -> nn.Module:
    """The network that judges what the codec makes: its audio, or its log magnitudes."""
    model, config = recipe.model, recipe.discriminator
    if config.sees == "spectra":
        if model.arch != "spectral" or recipe.loss.waveform_l1 or recipe.loss.mel:
            raise InputError(
                "discriminator.sees=spectra is for model.arch=spectral with loss.waveform_l1=0 and loss.mel=0"
            )
        num_bins = model.spectral.num_bins
        return MultiViewSpectrumDiscriminator(config, model.sample_rate, num_bins, model.channels)
    return MultiScaleSTFTDiscriminator(config, model.channels)


class CodecTask(Task[CodecRecipe]):
    """Generator (the codec) and discriminator, each with its optimiser."""

    def __init__(self, recipe: CodecRecipe, device: torch.device):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        self.sample_rate = recipe.model.sample_rate
        self.codec = Codec(recipe.model)
        if recipe.init_from:
            new = (
                self.codec.state_dict() if recipe.more_codebooks else {}
            )  # of which those before are replaced
            state = new | open_origin(recipe.init_from).state_dict()
            checkpoint.load_into(self.codec, state, recipe.init_from)
        if recipe.model.arch == "seanet":
            add_weight_norm(self.codec)
        if recipe.trains == "decoder":
            self.codec.encoder.requires_grad_(False)
            self.codec.quantizer.num_frozen = recipe.model.num_codebooks - recipe.more_codebooks
        super().__init__(recipe, self.codec, device, "codec")
        self.forward = torch.compile(self.codec) if recipe.fit.compile else self.codec
        weights = recipe.loss
        self.adversary: Adversary | None = None
        if weights.adversarial or weights.feature_matching:
            discriminator = make_discriminator(recipe).to(device)
            self.adversary = Adversary(
                discriminator, recipe.adversarial, recipe.discriminator_optim, recipe.fit
            )
            self.parallels.append(self.adversary.parallel)
        self.loss_weights = {name: getattr(weights, name) for name in BALANCED}
        self.judges_spectra = self.adversary is not None and recipe.discriminator.sees == "spectra"
        if self.judges_spectra:
            self.loss_weights["spectral"] = weights.spectral
        balances = recipe.model.arch != "spectral" or any(self.loss_weights.values())
        self.makes_audio = balances and not self.judges_spectra  # in training
        self.balancer = Balancer(self.loss_weights) if balances else None
        self.saved |= {"balancer": self.balancer, "adversary": self.adversary}

    def step(self, batch: AudioBatch, step: int) -> dict[str, float]:
        """Discriminator and generator, one update each, on audio [B, C, N]."""
        adversary, weights, parts = self.adversary, self.recipe.loss, self.parts(batch)
        shares: dict[str, float] = {}
        for rows in self.in_turn(parts):
            real = batch.audio[rows].to(self.device)  # [B, C, N]
            num_codebooks = self.draw_codebooks(batch.keys[rows], step).to(self.device)  # [B]
            code = partial(self.forward, real, num_codebooks, reconstruct=self.makes_audio)
            with self.autocast():
                output = self.parallel(code)
            commitment = weights.commitment if self.recipe.trains == "all" else 0.0
            apart = commitment * output.commitment_loss  # what stays outside the balancer
            losses: dict[str, Tensor] = {}
            found: dict[str, Tensor] = {}
            if self.judges_spectra:
                assert output.spectra is not None and output.target_spectra is not None
                fake, real = output.spectra, output.target_spectra  # [B, C, T, F]
                losses["spectral"] = output.spectral_loss
            else:
                apart = apart + weights.spectral * output.spectral_loss
            if self.makes_audio:
                assert output.audio is not None
                fake = output.audio.float()
                losses["waveform_l1"] = (fake - real).abs().mean()
                both = with_middle_and_side(fake), with_middle_and_side(real)
                losses["mel"] = multi_scale_mel(*both, self.sample_rate, weights.mel_windows)
            if self.balancer is None:
                self.optimizer.backward(apart / len(parts))
            else:
                if adversary:
                    judged, found = adversary.losses(real, fake, step, 1 / len(parts))
                    losses |= judged
                besides = apart / len(parts) if apart.requires_grad else None
                shares = self.balancer.backward(losses, fake, apart=besides)

            found |= {"commitment": output.commitment_loss, "spectral": output.spectral_loss, **losses}
            found["loss"] = sum((self.loss_weights[name] * loss for name, loss in losses.items()), apart)
            self.add(found, len(parts))
        metrics = {f"share_{name}": share for name, share in shares.items()}
        if adversary:
            metrics |= adversary.step(step)
        return self.update(step, metrics)

    def draw_codebooks(self, keys: Sequence[str], step: int) -> Tensor:
        """How many codebooks each clip uses, int64 [B]: a function of (seed, step, clip), not of its neighbours."""
        total = self.recipe.model.num_codebooks
        drawn = []
        for key in keys:
            generator = generator_for("codebooks", self.recipe.seed, step, key)
            random = torch.rand((), generator=generator).item() < self.recipe.codebook_dropout
            drawn.append(int(torch.randint(1, total + 1, (), generator=generator)) if random else total)
        return torch.tensor(drawn)

    def evaluate(self, batches: Iterable[AudioBatch]) -> dict[str, float]:
        """On unseen audio: log-mel distance with each number of codebooks, SI-SDR (dB) with all, use of codebooks.

        `mel` and `loss` are the distance with all codebooks. `use_qK` is the perplexity of codebook K's codes over its
        size: 1 if all are used evenly.
        """
        total, size = self.codec.num_codebooks, self.codec.codebook_size
        # All prefixes of up to 8 codebooks; of more those of 1, 2, 4, ... and all.
        prefixes = [k for k in range(1, total + 1) if total <= 8 or k == total or k & (k - 1) == 0]
        values: list[dict[str, Tensor]] = []  # of clips [B]
        ratios: list[dict[str, Tensor]] = []
        counts = torch.zeros(total, size)  # [K, V]
        for batch in batches:
            real = batch.audio.to(self.device)  # [B, C, N]
            codes = self.codec.encode(real)  # [B, K, T]
            for k in prefixes:
                fake = self.codec.decode(codes[:, :k])[..., : real.shape[-1]]
                values.append({f"mel_{k}": mel_distance(fake, real, self.sample_rate)})
            ratios.append({"si_sdr": si_sdr(fake, real)})
            for book in range(total):
                counts[book] += torch.bincount(codes[:, book].flatten().cpu(), minlength=size)
        shares = counts / counts.sum(1, keepdim=True)
        entropies = -(shares * shares.clamp(min=1e-12).log()).sum(1)  # [K]; 0 log 0 is 0
        used = {f"use_q{k}": value for k, value in enumerate((entropies.exp() / size).tolist())}
        metrics = means(values) | used | means(ratios)
        metrics["mel"] = metrics["loss"] = metrics[f"mel_{total}"]
        return metrics

    def samples(self, batches: Iterable[AudioBatch]) -> dict[str, Tensor]:
        """The first validation clips [C, N], and their reconstructions."""
        sounds: dict[str, Tensor] = {}
        for row, real in enumerate(next(iter(batches)).audio[:SAMPLES]):
            fake = self.codec.decode(self.codec.encode(real[None].to(self.device)))
            sounds |= {f"{row}_original": real, f"{row}_coded": fake[0, :, : real.shape[-1]]}
        return sounds

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        save_codec(directory, self.codec, info)
