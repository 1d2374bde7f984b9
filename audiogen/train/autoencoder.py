"""Autoencoder and vocoder training: reconstruct through latents near a unit normal, judged by a discriminator.

Mel VAE (AudioLDM, arXiv:2301.12503, section 3), waveform VAE (Stable Audio Open, arXiv:2407.14358) and vocoder
(HiFi-GAN, arXiv:2010.05646, with our multi-scale STFT discriminator in place of its two, and without weight norm): one
task, which differs in what is made and from what.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from audiogen.codec.discriminators import (
    DiscriminatorConfig,
    MultiScaleSTFTDiscriminator,
    SpectrumDiscriminator,
)
from audiogen.codec.losses import mel_distance, multi_scale_mel, si_sdr, with_middle_and_side
from audiogen.config import to_plain
from audiogen.data.dataset import AudioDataset, Split, open_data
from audiogen.data.loader import valid_batches
from audiogen.data.seeds import seed_for
from audiogen.diffusion.autoencoders import (
    AutoencoderConfig,
    MelAutoencoder,
    MelAutoencoderConfig,
    WaveformAutoencoderConfig,
    make_autoencoder,
)
from audiogen.diffusion.same import SameAutoencoderConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import AudioBatch
from audiogen.models.latent_codecs import (
    KINDS,
    Autoencoder,
    check_reconstruction,
    identity,
    kind_of,
    load_autoencoder,
    reconstruct,
    save_autoencoder,
)
from audiogen.train.adversarial import AdversarialConfig, Adversary
from audiogen.train.optim import OptimConfig
from audiogen.train.task import SAMPLES, Run, Task, means

CHECKED_CLIPS = 8  # that go through an autoencoder before a denoiser is trained on its latents
MEL_STRIDES = ((2, 2), (2, 2), (1, 1))  # (time, mel) of the layers that judge log-mels


@dataclass(frozen=True)
class AutoencoderLossWeights:
    """Factors of the losses' sum, as the released systems have them; 0 turns a loss off.

    spectrum: mean absolute error of the log-mel where that is what is made, `multi_scale_mel` of audio, and of the sum
    and difference of stereo. waveform_l1: of audio alone. kl: of the latents' distribution from a unit normal, mean
    over its numbers, in nats. mel_windows, mel_floor: of `multi_scale_mel`; below the floor all magnitudes are alike.
    """

    spectrum: float = 1.0
    waveform_l1: float = 0.0
    kl: float = 0.01
    adversarial: float = 0.1
    feature_matching: float = 1.0
    mel_windows: tuple[int, ...] = (64, 128, 256, 512, 1024)
    mel_floor: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Run):
    """A training run of a latent codec or its vocoder; `recipes/*_autoencoder_tiny.yaml` are complete examples.

    trains: `vae`, the autoencoder itself; `decoder`, that of init_from's vae alone, so that denoisers trained on its
    latents stay right while the sound gets better; `vocoder`, that of its mel autoencoder, on real spectrograms.
    init_from: autoencoder to start from, a directory of this task or of a whole system; its architecture is then taken,
    but for the vocoder's where a vocoder is trained.
    """

    task: Literal["autoencoder"] = "autoencoder"
    out: str = "runs/autoencoder"
    trains: Literal["vae", "decoder", "vocoder"] = "vae"
    mel_autoencoder: MelAutoencoderConfig | None = None
    waveform_autoencoder: WaveformAutoencoderConfig | None = None
    same_autoencoder: SameAutoencoderConfig | None = None
    loss: AutoencoderLossWeights = field(default_factory=AutoencoderLossWeights)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len([kind for kind in KINDS if getattr(self, kind) is not None]) != 1:
            raise InputError(f"give one of {', '.join(KINDS)}; the others are null")
        mel = self.mel_autoencoder
        if self.trains == "vocoder" and (mel is None or mel.vocoder is None):
            raise InputError("trains: vocoder needs mel_autoencoder.vocoder")
        if self.trains == "decoder" and not self.init_from:
            raise InputError("trains: decoder trains that of init_from, which is not given")
        if self.fit.precision == "float16":
            raise InputError("fit.precision=float16 overflows in adversarial training; use bfloat16")

    @property
    def autoencoder(self) -> AutoencoderConfig:
        """The one that is given."""
        return next(found for kind in KINDS if (found := getattr(self, kind)) is not None)

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        """See `Run`; a vocoder that is trained stays that of the recipe."""
        config = load_autoencoder(recipe["init_from"]).config
        found = to_plain(config)
        if recipe.get("trains") == "vocoder" and isinstance(config, MelAutoencoderConfig):
            own = recipe.get("mel_autoencoder")
            found["vocoder"] = own.get("vocoder") if isinstance(own, dict) else None
        return {**dict.fromkeys(KINDS), kind_of(config): found}

    def prepare(self, device: torch.device) -> tuple[AutoencoderTask, Split[AudioDataset]]:
        task = AutoencoderTask(self, device)
        return task, task.data


class LogMelDiscriminator(nn.Module):
    """Log-mels [B, 1, T, M] -> (logits, features), of patches: one entry."""

    def __init__(self, num_filters: int):
        super().__init__()
        self.patches = SpectrumDiscriminator(1, num_filters, MEL_STRIDES)

    def forward(self, mel: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Log-mels are brought to about zero mean and unit variance, as measured over real recordings (-4 and 3)."""
        logits, features = self.patches((mel + 4.0) / 3.0)
        return [logits], [features]


class Made(NamedTuple):
    """The generator's output and its target: audio [B, C, N] or log-mel [B, 1, T, M]; KL, a scalar in nats."""

    fake: Tensor
    real: Tensor
    kl: Tensor


def start(recipe: AutoencoderRecipe) -> Autoencoder:
    """The autoencoder to train, with new weights where init_from gives none."""
    autoencoder = make_autoencoder(recipe.autoencoder)
    if recipe.init_from:
        given: Any = load_autoencoder(recipe.init_from)
        checkpoint.load_into(autoencoder.vae, given.vae.state_dict(), recipe.init_from)
        autoencoder.scale_factor = given.scale_factor
        if isinstance(autoencoder, MelAutoencoder):
            own = autoencoder.config.vocoder
            if own is not None and given.config.vocoder == own:
                checkpoint.load_into(autoencoder.vocoder, given.vocoder.state_dict(), recipe.init_from)
    return autoencoder


class AutoencoderTask(Task[AutoencoderRecipe]):
    """Generator (VAE or vocoder) and discriminator, each with its optimiser."""

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        self.autoencoder = start(recipe).to(device).eval().requires_grad_(False)
        self.sample_rate = self.autoencoder.sample_rate
        self.data = open_data(recipe.data, self.sample_rate, self.autoencoder.channels)
        recipe = recipe.limited(len(self.data.train))
        vae: Any = self.autoencoder.vae
        generator: Any = self.autoencoder.vocoder if recipe.trains == "vocoder" else vae
        (vae.decoder if recipe.trains == "decoder" else generator).requires_grad_(True)
        super().__init__(recipe, generator, device, "generator")
        self.makes_mel = recipe.trains != "vocoder" and isinstance(self.autoencoder, MelAutoencoder)
        loss = recipe.loss
        self.adversary: Adversary | None = None
        if loss.adversarial or loss.feature_matching:
            judge: nn.Module = (
                LogMelDiscriminator(recipe.discriminator.num_filters)
                if self.makes_mel
                else MultiScaleSTFTDiscriminator(recipe.discriminator, self.autoencoder.channels)
            )
            self.adversary = Adversary(
                judge.to(device), recipe.adversarial, recipe.discriminator_optim, recipe.fit
            )
            self.parallels.append(self.adversary.parallel)
        self.saved["adversary"] = self.adversary

    def make(self, audio: Tensor) -> Made:
        """Audio [B, C, N] through the part that is trained; latents are drawn from their distribution."""
        autoencoder = self.autoencoder
        kl = audio.new_zeros(())
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = real = autoencoder.features(audio)  # in float32 also where the model runs in less
        if self.recipe.trains != "vocoder":
            posterior = autoencoder.posterior(real)
            features = autoencoder.decode_features(posterior.sample() * autoencoder.scale_factor)
            kl = mean_kl(posterior)
        if self.makes_mel:
            return Made(features, real, kl)
        return Made(autoencoder.synthesise(features)[..., : audio.shape[-1]], audio, kl)

    def step(self, batch: AudioBatch, step: int) -> dict[str, float]:
        """Discriminator and generator, one update each, on audio [B, C, N]."""
        adversary, parts = self.adversary, self.parts(batch)
        for rows in self.in_turn(parts):
            with self.autocast():
                made = self.parallel(partial(self.make, batch.audio[rows].to(self.device)))
            fake, real = made.fake.float(), made.real
            losses = self.distances(fake, real) | {"kl": made.kl}
            found: dict[str, Tensor] = {}
            if adversary:
                judged, found = adversary.losses(real, fake, step, 1 / len(parts))
                losses |= judged
            weighted = [getattr(self.recipe.loss, name) * value for name, value in losses.items()]
            loss = torch.stack(weighted).sum()
            self.optimizer.backward(loss / len(parts), shared="adversarial" in losses)
            self.add(found | losses | {"loss": loss}, len(parts))
        return self.update(step, adversary.step(step) if adversary else None)

    def distances(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """How far the output is from its target: scalars by name."""
        if self.makes_mel:
            return {"spectrum": (fake - real).abs().mean()}
        loss = self.recipe.loss
        both = with_middle_and_side(fake), with_middle_and_side(real)
        mel = multi_scale_mel(*both, self.sample_rate, loss.mel_windows, floor=loss.mel_floor)
        losses = {"spectrum": mel}
        if loss.waveform_l1:
            losses["waveform_l1"] = (fake - real).abs().mean()
        return losses

    def evaluate(self, batches: Iterable[AudioBatch]) -> dict[str, float]:
        """On unseen audio, through latents and back: log-mel distance, which is `loss`, SI-SDR (dB), KL (nats).

        Where a vocoder is trained, the distance is that of the vocoder alone, from real spectrograms. With a vocoder
        that is not trained yet, the distance says nothing of the vae: there `loss` is `log_mel`, the error of the
        spectrogram that it makes.
        """
        values: list[dict[str, Tensor]] = []  # of clips [B]
        for batch in batches:
            real = batch.audio.to(self.device)  # [B, C, N]
            fake = self.reconstruct(real)
            if self.recipe.trains != "vocoder":
                seen = self.autoencoder.features(real)
                if self.makes_mel:  # [B, 1, T, M]
                    again = self.autoencoder.decode_features(self.autoencoder.encode(real))
                    values.append({"log_mel": (again - seen).abs().mean((1, 2, 3))})
                values.append({"kl": mean_kl(self.autoencoder.posterior(seen)).expand(len(real))})
            values.append({"mel": mel_distance(fake, real, self.sample_rate), "si_sdr": si_sdr(fake, real)})
        metrics = means(values)
        return metrics | {"loss": metrics.get("log_mel", metrics["mel"])}

    def reconstruct(self, real: Tensor) -> Tensor:
        """Audio [B, C, N] through latents and back; where a vocoder is trained, through that alone."""
        vocodes = self.recipe.trains == "vocoder"
        return self.make(real).fake if vocodes else reconstruct(self.autoencoder, real)

    def samples(self, batches: Iterable[AudioBatch]) -> dict[str, Tensor]:
        """The first validation clips [C, N], and their reconstructions."""
        real = next(iter(batches)).audio[:SAMPLES].to(self.device)
        sounds: dict[str, Tensor] = {}
        for row, (original, fake) in enumerate(zip(real, self.reconstruct(real), strict=True)):
            sounds |= {f"{row}_original": original, f"{row}_reconstructed": fake}
        return sounds

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the autoencoder, its latents at unit variance over training clips."""
        unscaled = self.autoencoder.scale_factor.clone()
        if self.recipe.trains == "vae":  # else the latents are what they were
            data = self.data.train
            clips = [data.item(index, 0, 0).data for index in range(min(8, len(data)))]
            self.autoencoder.fit_scale(self.autoencoder.encode(torch.stack(clips).to(self.device)))
        save_autoencoder(directory, self.autoencoder, info)
        self.autoencoder.scale_factor.copy_(unscaled)  # it is no state of the training


def mean_kl(posterior: Any) -> Tensor:
    """KL of a diagonal normal posterior from a unit normal, mean over rows and latents -> scalar, in nats.

    0.5 (mean^2 + var - 1 - log var): "Auto-Encoding Variational Bayes", arXiv:1312.6114, appendix B.
    """
    divergence = posterior.mean.square() + posterior.var - 1.0 - posterior.logvar
    return 0.5 * divergence.float().mean()


def check_on_clips(autoencoder: Autoencoder, sets: Split[AudioDataset], bound: float, folder: Path) -> None:
    """Reconstruct real clips into `folder`, unless that was done; InputError where they are further off than `bound`.

    bound: log-mel distance.
    """
    path = folder / "reconstruction.json"
    if path.exists():
        before = writing.read_json(path)
        if before["autoencoder"] == identity(autoencoder) and before["mel"] <= bound:
            return
    clips = next(valid_batches(sets.valid or sets.train, CHECKED_CLIPS, 1))
    mel = check_reconstruction(autoencoder, clips, bound, folder)
    print(
        f"the autoencoder reconstructs {len(clips.keys)} real clips with a log-mel distance of {mel:.3f} "
        f"(at most {bound:g}): {folder}",
        file=sys.stderr,
    )
