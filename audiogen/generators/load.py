"""Generators: text to audio, whatever the family. `load` opens one: a bundled name, a directory or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from audiogen import adapters
from audiogen.adapters import Adapters
from audiogen.errors import InputError
from audiogen.files import cards
from audiogen.generators.request import FAMILIES, LONGEST_LM_S, refuse
from audiogen.generators.token import AudioGen as AudioGen
from audiogen.lm.decoders import choose_dtype
from audiogen.models.build import read_lm
from audiogen.models.find import LM, SYSTEM, Found, find

GENERATES = (LM, SYSTEM)

if TYPE_CHECKING:
    from audiogen.generators.latent import LatentGenerator


def load(
    name: str | Path | Found,
    device: str = "auto",
    dtype: str = "auto",
    text_encoder: str | None = None,
    adapter: Adapters = None,
    packed: bool | None = None,
    heads: tuple[int, ...] | None = None,
    clap: str | None = None,
) -> AudioGen | LatentGenerator:
    """Open a generator of any family: a token language model, or a latent-diffusion system.

    name: a bundled model, a directory of ours or of any release that is read, a hub id[@revision], or what `find` gave.
    adapter: what LoRA fine-tuning of the model wrote, or several with weights, see `adapters.parse`. packed is for the
    first, heads, clap for the second; other arguments as in `AudioGen.from_pretrained` and
    `LatentGenerator.from_pretrained`.
    """
    found = find(name, kinds=GENERATES)
    check_generates(found)
    model: AudioGen | LatentGenerator
    latent = found.kind == SYSTEM
    refuse({"packed": packed} if latent else {"heads": heads, "clap": clap}, FAMILIES[latent])
    for path, _ in (laid_on := adapters.parse(adapter)):
        kind, base = adapters.stated(path)
        if kind == adapters.KINDS[not latent]:
            raise InputError(
                f"the adapter {path} is of {FAMILIES[not latent]}, {base}, and {found.name} is {FAMILIES[latent]}; "
                "open it with that one"
            )
    if latent:
        from audiogen.diffusion import lora  # late, as the next: diffusers
        from audiogen.generators.latent import LatentGenerator

        model = LatentGenerator.from_pretrained(found, device, dtype, text_encoder, heads, clap=clap)
        lora.load_adapters(model.system.denoiser, laid_on)
    else:
        model = AudioGen.from_pretrained(found, device, dtype, text_encoder, adapter, packed)
    model.origin = found.name, cards.licence(found.path)
    model.source = found
    if isinstance(model, AudioGen):
        chosen = choose_dtype(dtype, model.device, packs=model.config.backbone is None)
    else:
        chosen = str(model.matrices or model.dtype)
    model.opened = {
        "model": found.name,
        "device": str(model.device),
        "dtype": chosen.removeprefix("torch."),
        "text_encoder": text_encoder,
        "adapter": [str(path) if weight == 1 else f"{path}:{weight!r}" for path, weight in laid_on] or None,
        "cuda_graph": packed if packed and model.device.type == "cuda" else None,
        "heads": None if heads is None else ",".join(map(str, heads)),
        "clap": clap,
    }
    return model


def check_generates(found: Found) -> None:
    """Raise InputError unless files hold a generator."""
    if found.kind in adapters.KINDS:
        _, base = adapters.stated(found.path)
        raise InputError(
            f"{found.name} holds LoRA adapters and no model; give --model {base} --adapter {found.name}"
        )
    found.check(*GENERATES)


def more_options(found: Found) -> tuple[str, ...]:
    """Options of the other family that a model has, from its settings alone."""
    return ("inpaint",) if found.kind == LM and read_lm(found).config.infills else ()


def max_duration_s(found: Found, heads: tuple[int, ...] | None = None) -> float:
    """Of the sounds that a generator makes, from its settings alone: no weights are read."""
    if found.kind == LM:
        return LONGEST_LM_S
    from audiogen.generators.facts import longest_s
    from audiogen.models.released import read_released

    parts = read_released(found, heads)
    return longest_s(parts.window_s, parts.config)
