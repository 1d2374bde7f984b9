"""A latent-diffusion system as a recipe describes it: a latent codec, a conditioner and a denoiser."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from torch import nn

from audiogen.config import build, load_recipe, plain
from audiogen.diffusion.autoencoders import (
    AutoencoderConfig,
    MelAutoencoderConfig,
    SameAutoencoderConfig,
    WaveformAutoencoderConfig,
    make_autoencoder,
)
from audiogen.diffusion.conditioners import Conditioner, ConditionerConfig
from audiogen.diffusion.denoisers import (
    AudioUNetConfig,
    DenoiserConfig,
    DiT3Config,
    DiTConfig,
    FluxConfig,
    TextUNetConfig,
    denoiser,
)
from audiogen.diffusion.products import use_products
from audiogen.errors import InputError
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder

AUTOENCODERS = ("mel_autoencoder", "waveform_autoencoder", "same_autoencoder")
DENOISERS = ("audio_unet", "text_unet", "dit", "flux", "dit3")


@dataclass(frozen=True)
class SystemConfig:
    """One latent codec and one denoiser, the others null; and how the denoiser is conditioned."""

    conditioner: ConditionerConfig
    mel_autoencoder: MelAutoencoderConfig | None = None
    waveform_autoencoder: WaveformAutoencoderConfig | None = None
    same_autoencoder: SameAutoencoderConfig | None = None
    audio_unet: AudioUNetConfig | None = None
    text_unet: TextUNetConfig | None = None
    dit: DiTConfig | None = None
    flux: FluxConfig | None = None
    dit3: DiT3Config | None = None

    def __post_init__(self) -> None:
        for kind in (AUTOENCODERS, DENOISERS):
            if len([key for key in kind if getattr(self, key) is not None]) != 1:
                raise InputError(f"a system has exactly one of {', '.join(kind)}; set the others null")
        unet = self.audio_unet is not None or self.text_unet is not None
        if unet and self.mel_autoencoder is None:
            raise InputError(
                "audio_unet and text_unet work on the latents of mel_autoencoder [B, D, T, M]; those of "
                "waveform_autoencoder and same_autoencoder [B, D, T] are for dit, flux and dit3"
            )
        depth = self.autoencoder.latent_dim  # a transformer takes the M bins of a frame as D * M numbers
        if self.mel_autoencoder is not None and not unet:
            depth *= self.mel_autoencoder.bins
        for what, given, taken in (
            ("autoencoder gives latents", depth, self.denoiser.latent_dim),
            ("conditioner gives streams of tokens", self.conditioner.cross_dims, self.denoiser.cross_dims),
            ("conditioner gives a vector", self.conditioner.vector_dim, self.denoiser.vector_dim),
        ):
            if given != taken:
                raise InputError(f"the {what} of width {given}, the denoiser takes {taken}; make them equal")

    @property
    def autoencoder(self) -> AutoencoderConfig:
        """The one that is given."""
        return next(found for key in AUTOENCODERS if (found := getattr(self, key)) is not None)

    @property
    def sample_rate(self) -> int:
        """Hz, of the autoencoder."""
        found = self.autoencoder
        return found.mel.sample_rate if isinstance(found, MelAutoencoderConfig) else found.sample_rate

    @property
    def denoiser(self) -> DenoiserConfig:
        """The one that is given."""
        return next(found for key in DENOISERS if (found := getattr(self, key)) is not None)


# Published systems whose size no recipe has: the recipe, and how its UNet differs. Heads are channels / 32 but for
# AudioLDM-L, whose authors have channels / 64.
OTHER_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "audioldm_m": ("audioldm", {"channels": (192, 384, 576, 960), "heads": (6, 12, 18, 30)}),
    "audioldm_l": ("audioldm", {"channels": (256, 512, 768, 1280)}),
    "audioldm2_large": ("audioldm2", {"layers": (None, 768, 1024, None), "depth": 2}),
}


@functools.cache
def released() -> dict[str, SystemConfig]:
    """Systems at their published sizes, from the recipes; text encoders are named, and opened with the first text."""
    names = ("audioldm", "audioldm2", "lafma", "stable_audio", "stable_audio_3", "tango", "tangoflux")
    found = {name: build(SystemConfig, plain(load_recipe(name))["system"], name) for name in names}
    for name, (base, changes) in OTHER_SIZES.items():
        unet = found[base].audio_unet
        assert unet is not None
        found[name] = dataclasses.replace(found[base], audio_unet=dataclasses.replace(unet, **changes))
    found["audioldm_s"] = found.pop("audioldm")
    return found


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
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.conditioner = Conditioner(config.conditioner, vocabulary, frozen, clap)
        self.denoiser = denoiser(config.denoiser)
        use_products(self)
