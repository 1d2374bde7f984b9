"""Codec training: reconstruct through the quantiser, judged by spectra and a discriminator (EnCodec, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from audiogen.codec.losses import mel_distance, multi_scale_mel, si_sdr
from audiogen.codec.model import Codec, CodecConfig
from audiogen.config import to_plain
from audiogen.data.dataset import DataConfig, open_data
from audiogen.data.loader import collate_audio
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch
from audiogen.models.codec_pretrained import load_codec, save_codec
from audiogen.train.adversarial import AdversarialConfig, Adversary
from audiogen.train.ema import Average
from audiogen.train.loop import FitConfig, Prepared, Resume, autocast, row_slices
from audiogen.train.optim import OptimConfig, Optimizer


@dataclass(frozen=True)
class CodecLossWeights:
    """Shares of the gradient at the output audio (see `codec.balancer`); 0 turns a loss off.

    commitment and spectral stand outside the balancer: the weights of the commitment loss and, for arch: spectral,
    of the error of its log magnitudes. With the other four at 0 no audio is made in training, which is faster; nor
    where the discriminator sees spectra: the output is then the log magnitudes, and spectral is a share as well.
    mel_windows: STFT sizes of `mel`.
    """

    waveform_l1: float = 0.1
    mel: float = 2.0
    adversarial: float = 4.0
    feature_matching: float = 4.0
    commitment: float = 1.0
    spectral: float = 0.0
    mel_windows: tuple[int, ...] = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class CodecRecipe:
    """A codec training run; `recipes/codec*.yaml` are complete examples.

    out: run directory. resume: auto goes on from a checkpoint in `out` if there is one. init_from: codec to start from:
    bundled, a model directory, or a released one (file, directory or hub id; not DAC, not one that codes sounds in
    segments); `model` is then taken from it. codebook_dropout: the share of training clips
    quantised with a random number of codebooks, so that every prefix of them is a bandwidth; the rest uses all.
    discriminator_optim: as optim, for the discriminator. trains: `decoder` leaves encoder and codebooks as they
    are, so that tokens made before keep their meaning while the sound gets better (give init_from).
    """

    data: DataConfig
    task: Literal["codec"] = "codec"
    seed: int = 0
    out: str = "runs/codec"
    resume: Resume = "auto"
    init_from: str | None = None
    model: CodecConfig = field(default_factory=CodecConfig)
    trains: Literal["all", "decoder"] = "all"
    codebook_dropout: float = 0.5
    loss: CodecLossWeights = field(default_factory=CodecLossWeights)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    discriminator_optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.codebook_dropout <= 1:
            raise InputError(f"codebook_dropout is {self.codebook_dropout}; it must be in [0, 1]")
        if self.fit.precision == "float16":
            raise InputError(
                "fit.precision=float16 is not for codecs: the balancer's gradients overflow; use bfloat16"
            )


INHERITED = ("model",)  # keys that init_from decides


def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The inherited keys of a recipe that trains a codec on, own or released."""
    return {"model": to_plain(open_origin(recipe["init_from"]).config)}


def open_origin(init_from: str) -> Codec:
    """The codec to start from, on the CPU; one that `CodecTask` cannot train is refused."""
    codec = load_codec(init_from)
    if not isinstance(codec, Codec):
        raise InputError(
            f"init_from={init_from} is a DAC codec, which is only used here, not trained; start from another codec"
        )
    if codec.segmented or codec.config.dual_mono:
        raise InputError(
            f"init_from={init_from} codes sounds in overlapping segments or channel by channel, which is not trained "
            "here; start from another codec"
        )
    return codec


def prepare(recipe: CodecRecipe, run: Path, device: torch.device) -> Prepared:
    """The task and the data of a run."""
    train, valid = open_data(recipe.data, recipe.model.sample_rate, recipe.model.channels)
    return Prepared(CodecTask(recipe, device), train, valid, collate_audio)


def make_discriminator(recipe: CodecRecipe) -> nn.Module:
    """The network that judges what the codec makes: its audio, or its log magnitudes."""
    model, config = recipe.model, recipe.discriminator
    if config.sees == "spectra":
        if model.arch != "spectral" or recipe.loss.waveform_l1 or recipe.loss.mel:
            raise InputError(
                "discriminator.sees=spectra is for model.arch=spectral with loss.waveform_l1=0 and loss.mel=0"
            )
        return MultiViewSpectrumDiscriminator(
            config, model.sample_rate, model.spectral.num_bins, model.channels
        )
    return MultiScaleSTFTDiscriminator(config, model.channels)


class CodecTask:
    """Generator (the codec) and discriminator, each with its optimiser. `interfaces.Task`."""

    def __init__(self, recipe: CodecRecipe, device: torch.device):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        self.recipe, self.device = recipe, device
        self.sample_rate = recipe.model.sample_rate
        self.codec = Codec(recipe.model)
        if recipe.init_from:
            checkpoint.load_into(self.codec, open_origin(recipe.init_from).state_dict(), recipe.init_from)
        if recipe.model.arch == "seanet":
            add_weight_norm(self.codec)
        if recipe.trains == "decoder":
            self.codec.encoder.requires_grad_(False)
            self.codec.quantizer.learning = False
        self.codec.to(device)
        fit, weights = recipe.fit, recipe.loss
        self.forward = torch.compile(self.codec) if fit.compile else self.codec
        self.optimizer = Optimizer([self.codec], recipe.optim, fit.steps)
        self.average = Average(self.codec, fit.ema_decay)
        self.adversary: Adversary | None = None
        if weights.adversarial or weights.feature_matching:
            self.adversary = Adversary(
                make_discriminator(recipe).to(device),
                recipe.adversarial,
                recipe.discriminator_optim,
                fit.steps,
                fit.precision,
            )
        self.weights = {
            "waveform_l1": weights.waveform_l1,
            "mel": weights.mel,
            "adversarial": weights.adversarial,
            "feature_matching": weights.feature_matching,
        }
        self.sees_spectra = self.adversary is not None and recipe.discriminator.sees == "spectra"
        if self.sees_spectra:
            self.weights["spectral"] = weights.spectral
        balances = recipe.model.arch != "spectral" or any(self.weights.values())
        self.hears = balances and not self.sees_spectra  # whether audio is made in training
        self.balancer = Balancer(self.weights) if balances else None

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """Discriminator and generator, one update each, on audio [B, C, N]."""
        adversary = self.adversary if self.adversary and self.adversary.plays(step) else None
        parts, weights = self.recipe.fit.accumulate, self.recipe.loss
        totals: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        self.codec.train()
        assert batch.audio is not None
        for rows in row_slices(len(batch.keys), parts):
            real = batch.audio[rows].to(self.device)  # [B, C, N]
            num_codebooks = self.draw_codebooks(batch.keys[rows], step).to(self.device)
            with autocast(self.device, self.recipe.fit.precision):
                output = self.forward(real, num_codebooks, reconstruct=self.hears)
            commitment = weights.commitment if self.recipe.trains == "all" else 0.0
            apart = commitment * output.commitment_loss
            losses: dict[str, Tensor] = {}
            found = {}
            if self.sees_spectra:
                assert output.spectra is not None and output.target_spectra is not None
                fake, real = output.spectra, output.target_spectra
                losses["spectral"] = output.spectral_loss
            else:
                apart = apart + weights.spectral * output.spectral_loss
            if self.hears:
                assert output.audio is not None
                fake = output.audio.float()
                losses["waveform_l1"] = (fake - real).abs().mean()
                losses["mel"] = multi_scale_mel(fake, real, self.sample_rate, weights.mel_windows)
            if self.balancer is None:
                self.optimizer.backward(apart / parts)
            else:
                if adversary:
                    verdict = adversary.judge(real, fake, adversary.learns(step))
                    if adversary.learns(step):
                        found["discriminator"] = adversary.backward(verdict, 1 / parts)
                    losses |= adversary.losses(verdict)
                besides = apart / parts if apart.requires_grad else None
                shares = self.balancer.backward(losses, fake, apart=besides)

            found |= {"commitment": output.commitment_loss, "spectral": output.spectral_loss, **losses}
            found["loss"] = sum((self.weights[name] * loss for name, loss in losses.items()), apart)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / parts
        values = torch.stack(list(totals.values())).tolist()  # one wait for the device
        metrics = {f"train/{name}": value for name, value in zip(totals, values, strict=True)}
        metrics |= {f"train/share_{name}": share for name, share in shares.items()}
        if adversary and adversary.learns(step):
            metrics |= {f"train/discriminator_{k}": v for k, v in adversary.step(step).items()}
        metrics |= {f"train/{name}": value for name, value in self.optimizer.step(step).items()}
        self.average.update()
        return metrics

    def draw_codebooks(self, keys: Sequence[str], step: int) -> Tensor:
        """How many codebooks each clip uses, int64 [B]: a function of (seed, step, clip), not of its neighbours."""
        total = self.recipe.model.num_codebooks
        drawn = []
        for key in keys:
            generator = torch.Generator().manual_seed(seed_for("codebooks", self.recipe.seed, step, key))
            random = torch.rand((), generator=generator).item() < self.recipe.codebook_dropout
            drawn.append(int(torch.randint(1, total + 1, (), generator=generator)) if random else total)
        return torch.tensor(drawn)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """On unseen audio: log-mel distance with each number of codebooks, SI-SDR (dB) with all, use of codebooks.

        `valid/mel` and `valid/loss` are the distance with all codebooks. `valid/use_qK` is the perplexity of
        codebook K's codes over its size: 1 if all are used evenly.
        """
        total, size = self.codec.num_codebooks, self.codec.codebook_size
        prefixes = [k for k in range(1, total + 1) if total <= 8 or k == total or k & (k - 1) == 0]
        distances: dict[int, list[Tensor]] = {k: [] for k in prefixes}
        ratios: list[Tensor] = []
        counts = torch.zeros(total, size)
        self.codec.eval()
        with self.average.applied():
            for batch in batches:
                assert batch.audio is not None
                real = batch.audio.to(self.device)  # [B, C, N]
                codes = self.codec.encode(real)  # [B, K, T]
                for k in prefixes:
                    fake = self.codec.decode(codes[:, :k])[..., : real.shape[-1]]
                    distances[k].append(mel_distance(fake, real, self.sample_rate).cpu())
                ratios.append(si_sdr(fake, real).cpu())
                for book in range(total):
                    counts[book] += torch.bincount(codes[:, book].flatten().cpu(), minlength=size)
        if not ratios:
            raise InputError("there is nothing to validate on; give data.valid, or fit.valid_every=0")
        metrics = {f"valid/mel_{k}": torch.cat(values).mean().item() for k, values in distances.items()}
        shares = counts / counts.sum(1, keepdim=True)
        entropies = -(shares * shares.clamp(min=1e-12).log()).sum(1)
        metrics |= {f"valid/use_q{k}": value for k, value in enumerate((entropies.exp() / size).tolist())}
        metrics["valid/si_sdr"] = torch.cat(ratios).mean().item()
        metrics["valid/mel"] = metrics["valid/loss"] = metrics[f"valid/mel_{total}"]
        return metrics

    @torch.no_grad()
    def samples(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The first four validation clips [C, N], and what the codec makes of them."""
        sounds: dict[str, Tensor] = {}
        self.codec.eval()
        with self.average.applied():
            for batch in batches:
                assert batch.audio is not None
                for row, real in enumerate(batch.audio[:4]):
                    fake = self.codec.decode(self.codec.encode(real[None].to(self.device)))[
                        0, :, : real.shape[-1]
                    ]
                    sounds |= {f"{row}_original": real, f"{row}_coded": fake}
                break
        return sounds

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the codec, averaged where averaging is on, for `audiogen.codec` and LM training."""
        with self.average.applied():
            save_codec(directory, self.codec, info)

    def state_dict(self) -> dict[str, Any]:
        """Codec with codebooks, optimisers, average, balancer, discriminator."""
        return {
            "codec": self.codec.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "balancer": self.balancer.state_dict() if self.balancer else None,
            "adversary": self.adversary.state_dict() if self.adversary else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        checkpoint.load_into(self.codec, state["codec"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        if self.balancer:
            self.balancer.load_state_dict(state["balancer"])
        if self.adversary and state["adversary"]:
            self.adversary.load_state_dict(state["adversary"])
