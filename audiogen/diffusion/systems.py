"""A latent-diffusion system as a recipe describes it: a latent codec, a conditioner and a denoiser."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from torch import nn

from audiogen.diffusion.autoencoders import (
    MelAutoencoder,
    MelAutoencoderConfig,
    WaveformAutoencoder,
    WaveformAutoencoderConfig,
)
from audiogen.diffusion.conditioners import Conditioner, ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import (
    AudioUNetConfig,
    DenoiserConfig,
    DiTConfig,
    FluxConfig,
    TextUNetConfig,
    denoiser,
)
from audiogen.diffusion.loa import LoaConfig
from audiogen.errors import InputError
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig

AUTOENCODERS = ("mel_autoencoder", "waveform_autoencoder")
DENOISERS = ("audio_unet", "text_unet", "dit", "flux")


@dataclass(frozen=True)
class SystemConfig:
    """One latent codec and one denoiser, the others null; and how the denoiser is conditioned."""

    conditioner: ConditionerConfig
    mel_autoencoder: MelAutoencoderConfig | None = None
    waveform_autoencoder: WaveformAutoencoderConfig | None = None
    audio_unet: AudioUNetConfig | None = None
    text_unet: TextUNetConfig | None = None
    dit: DiTConfig | None = None
    flux: FluxConfig | None = None

    def __post_init__(self) -> None:
        for kind in (AUTOENCODERS, DENOISERS):
            if len([key for key in kind if getattr(self, key) is not None]) != 1:
                raise InputError(f"a system has exactly one of {', '.join(kind)}; set the others null")
        two = self.audio_unet is not None or self.text_unet is not None
        if two != (self.mel_autoencoder is not None):
            raise InputError(
                "audio_unet and text_unet work on the latents of mel_autoencoder [B, D, T, M], dit and flux on those "
                "of waveform_autoencoder [B, D, T]"
            )
        if self.autoencoder.latent_dim != self.denoiser.latent_dim:
            raise InputError(
                f"latent_dim is {self.autoencoder.latent_dim} for the autoencoder and {self.denoiser.latent_dim} for "
                "the denoiser; it must be one number"
            )
        for what, given, taken in (
            ("streams of tokens", self.conditioner.cross_dims, self.denoiser.cross_dims),
            ("a vector", self.conditioner.vector_dim, self.denoiser.vector_dim),
        ):
            if given != taken:
                raise InputError(
                    f"the conditioner gives {what} of width {given}, the denoiser takes {taken}; they must be equal"
                )

    @property
    def autoencoder(self) -> MelAutoencoderConfig | WaveformAutoencoderConfig:
        """The one that is given."""
        found = self.mel_autoencoder or self.waveform_autoencoder
        assert found is not None
        return found

    @property
    def sample_rate(self) -> int:
        """Hz, of the autoencoder."""
        found = self.autoencoder
        return found.mel.sample_rate if isinstance(found, MelAutoencoderConfig) else found.sample_rate

    @property
    def denoiser(self) -> DenoiserConfig:
        """The one that is given."""
        found = self.audio_unet or self.text_unet or self.dit or self.flux
        assert found is not None
        return found


@functools.cache
def released() -> dict[str, SystemConfig]:
    """Systems at their published sizes; the text encoders are named, and opened with the first text."""
    t5 = TextConfig("google/flan-t5-large", width=1024)
    clap = ConditionerConfig(vector=("clap",), unconditional="empty", clap="laion/clap-htsat-unfused")
    loa = ConditionerConfig(
        (("loa",), ("text",)),
        unconditional="empty",
        text=t5,
        clap="laion/clap-htsat-unfused",
        loa=LoaConfig(),
    )
    seconds = ("seconds_start", "seconds_total")
    stable = ConditionerConfig(
        (("text", *seconds),),
        seconds,
        text=TextConfig("t5-base", width=768, max_tokens=128),
        text_length=128,
        seconds=SecondsConfig(),
    )
    tango = ConditionerConfig((("text",),), unconditional="empty", text=t5)
    flux = ConditionerConfig(
        (("text", "seconds_total"),), ("pooled",), "padded", t5, seconds=SecondsConfig(1024, 0.0, 30.0)
    )
    mel, wave = MelAutoencoderConfig(), WaveformAutoencoderConfig()
    medium, large = (192, 384, 576, 960), (256, 512, 768, 1280)
    unets = {
        "audioldm_s": AudioUNetConfig(),
        "audioldm_m": AudioUNetConfig(channels=medium, heads=(6, 12, 18, 30)),
        "audioldm_l": AudioUNetConfig(channels=large),
        "audioldm2": AudioUNetConfig(layers=(None, 768, 1024), vector_dim=None),
        "audioldm2_large": AudioUNetConfig(layers=(None, 768, 1024, None), depth=2, vector_dim=None),
        "lafma": AudioUNetConfig(layers=(1024, 1024), heads=(32, 32, 32, 32), vector_dim=None),
    }
    conditioners = {
        "audioldm": clap,
        "audioldm2": loa,
        "lafma": dataclasses.replace(tango, unconditional="padded"),
    }
    systems = {
        name: SystemConfig(conditioners[name.split("_")[0]], mel, audio_unet=unet)
        for name, unet in unets.items()
    }
    lafma = dataclasses.replace(mel, mid_attention=False)
    systems["lafma"] = dataclasses.replace(systems["lafma"], mel_autoencoder=lafma)
    systems["tango"] = SystemConfig(tango, mel, text_unet=TextUNetConfig())
    systems["stable_audio"] = SystemConfig(stable, waveform_autoencoder=wave, dit=DiTConfig())
    systems["tangoflux"] = SystemConfig(flux, waveform_autoencoder=wave, flux=FluxConfig())
    return systems


class LatentSystem(nn.Module):
    """The parts of one system.

    Only the denoiser and the conditioner's own projections are trained together; autoencoder and vocoder before.
    """

    def __init__(
        self,
        config: SystemConfig,
        vocabulary: bytes | None = None,
        frozen: FrozenEncoder | None = None,
        clap: Clap | None = None,
    ):
        """vocabulary: of the embedded text encoder. frozen, clap: encoders in place of those that are named."""
        super().__init__()
        self.config = config
        autoencoder = config.autoencoder
        self.autoencoder: MelAutoencoder | WaveformAutoencoder = (
            MelAutoencoder(autoencoder)
            if isinstance(autoencoder, MelAutoencoderConfig)
            else WaveformAutoencoder(autoencoder)
        )
        self.conditioner = Conditioner(config.conditioner, vocabulary, frozen, clap)
        self.denoiser = denoiser(config.denoiser)

    @property
    def num_parameters(self) -> int:
        """Of all but the frozen encoders of text."""
        return sum(parameter.numel() for parameter in self.parameters())
