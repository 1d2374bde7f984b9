"""What a generator is, from the settings in its files: no weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.model import Codec
from audiogen.files.tensors import unfilled
from audiogen.generators.request import GUIDANCE, LATENT_ONLY, LM_ONLY, LONGEST_LM_S, TOKENS
from audiogen.lm.model import TokenLM
from audiogen.models.build import read_codec, read_lm
from audiogen.models.find import CODEC, LM, Found, find
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from audiogen.diffusion.latents import LatentAutoencoder
    from audiogen.diffusion.process import ProcessConfig
    from audiogen.diffusion.systems import SystemConfig

LONGEST_LATENT_S = 60.0  # of a system without a window: attention's memory grows with the square
LONGEST_SAME_S = 120.0  # of one on latents of SAME, 11 a second: what Stable Audio 3 Small was made for


class Facts(NamedTuple):
    """A generator. sizes: parameters of its parts. options: of `audiogen.generate` that not all generators have.

    defaults: guidance, and for latent diffusion the sampler and its steps. vocabulary: of an embedded text encoder.
    """

    family: str
    sizes: str
    sample_rate: int
    channels: int
    latent_rate: str
    max_duration_s: float
    defaults: str
    options: tuple[str, ...]
    vocabulary: Vocabulary | None


def facts(found: Found) -> Facts:
    """Of a language model or a system, whatever its layout; InputError for settings that are not read."""
    return _language_model(found) if found.kind == LM else _system(found)


def _language_model(found: Found) -> Facts:
    parts = read_lm(found)
    config = read_codec(find(parts.codec.location, CODEC)).config
    with unfilled():
        lm = TokenLM(parts.config)
        codec = DacCodec(config) if isinstance(config, DacSizes) else Codec(config)
    backbone = parts.config.backbone
    pretrained = backbone.pretrained if backbone else None
    text = parts.open_text("cpu") if parts.text.embedded or (parts.text.tokens and not pretrained) else None
    sizes: dict[str, nn.Module | str] = {"language model": lm, "codec": codec}
    sizes |= {"backbone": pretrained or "a Qwen3 of its own"} if backbone else {}
    guidance = parts.info.get("generation", {}).get("guidance", GUIDANCE)
    return Facts(
        TOKENS,
        _sizes(sizes | {"text encoder": text or parts.text.encoder}),
        codec.sample_rate,
        2 if parts.codec.dual_mono else codec.channels,
        f"{codec.frame_rate:g} Hz x {parts.config.num_codebooks}",
        LONGEST_LM_S,
        f"guidance {guidance:g}",
        tuple(name for name in LM_ONLY if not (backbone and name == "cuda_graph"))
        + (("inpaint",) if parts.config.infills else ()),
        _vocabulary(text),
    )


def _system(found: Found) -> Facts:
    # Late: they import diffusers, which takes longer than all that is said of a language model.
    from audiogen.diffusion.autoencoders import MelAutoencoder
    from audiogen.diffusion.process import process_of
    from audiogen.diffusion.sample import SAMPLINGS
    from audiogen.models.released import read_released
    from audiogen.models.systems import without_weights

    parts = read_released(found)
    system = without_weights(parts)
    autoencoder, conditioner = system.autoencoder, system.conditioner
    sampling = parts.sampling or SAMPLINGS[parts.name]
    text = conditioner.text
    encoders = [text.config.encoder] if text is not None and text.embedded is None else []
    encoders += [str(parts.config.conditioner.clap)] if parts.config.conditioner.clap else []
    modules: dict[str, Any] = {
        "denoiser": system.denoiser,
        "autoencoder": autoencoder,
        "conditioner": conditioner,
    }
    lacking = set() if isinstance(autoencoder, MelAutoencoder) else {"upsample"}
    lacking |= set() if parts.config.audio_unet else {"heads"}
    return Facts(
        family_of(process_of(parts.name, parts.process)),
        _sizes(modules | ({"text encoder": ", ".join(encoders)} if encoders else {})),
        autoencoder.sample_rate,
        autoencoder.channels,
        latent_rate(autoencoder),
        longest_s(parts.window_s, parts.config),
        f"guidance {sampling.guidance:g}, {sampling.steps} steps of {sampling.sampler}",
        tuple(name for name in LATENT_ONLY if name not in lacking),
        _vocabulary(None if text is None else text.embedded),
    )


def _sizes(parts: dict[str, nn.Module | str]) -> str:
    """Parameters of each part in millions; a pretrained one by its name."""
    return ", ".join(
        f"{name} {part}" if isinstance(part, str) else f"{name} {_count(part) / 1e6:.1f} M parameters"
        for name, part in parts.items()
    )


def _count(module: nn.Module) -> int:
    """Parameters, with the codebooks, which are buffers."""
    books = [tensor for name, tensor in module.state_dict().items() if name.endswith("codewords")]
    return sum(tensor.numel() for tensor in (*module.parameters(), *books))


def _vocabulary(text: T5Conditioner | None) -> Vocabulary | None:
    tokenizer = None if text is None else text.tokenizer
    return tokenizer if isinstance(tokenizer, Vocabulary) else None


def family_of(process: ProcessConfig) -> str:
    """What a system is called."""
    return "latent flow" if process.kind == "flow" else "latent diffusion"


def latent_rate(autoencoder: LatentAutoencoder) -> str:
    """Frames a second and numbers a frame, as `interfaces.Generator` has them."""
    size = " x ".join(map(str, (autoencoder.config.latent_dim, *autoencoder.bins)))
    return f"{autoencoder.sample_rate / autoencoder.hop_length:.4g} Hz x {size}"


def longest_s(window_s: float | None, config: SystemConfig) -> float:
    """Of the sounds that a system makes: as long as its window, its conditioning on seconds or its memory allows."""
    seconds = config.conditioner.seconds
    longest = LONGEST_LATENT_S if config.same_autoencoder is None else LONGEST_SAME_S
    without_window = longest if seconds is None else min(seconds.max_s, longest)
    return without_window if window_s is None else window_s
