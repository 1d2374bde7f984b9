"""Generators: text to audio, whatever the family. `load` opens one: a bundled name, a directory or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.generators.token import AudioGen as AudioGen
from audiogen.lm import lora
from audiogen.models import lm_layouts as lm_public
from audiogen.models import lm_pretrained as pretrained
from audiogen.models.lm_pretrained import KIND

if TYPE_CHECKING:
    from audiogen.generators.latent import LatentGenerator

FAMILIES = ("a token language model", "a latent-diffusion system")
# Of which a directory of each format of `diffusion.public` has one, or a .ckpt or .pth.
LATENT_FILES = (
    "model_index.json",
    "system.json",
    "model_config.json",
    "pytorch_model_main.bin",
    "tangoflux.safetensors",
)
# On the hub: the files that say of which family a model is.
LATENT_LAYOUTS = tuple(hub.Layout("latent diffusion", (name,), (name,)) for name in LATENT_FILES)
LM_LAYOUTS = tuple(layout._replace(patterns=("config.json",)) for layout in lm_public.LAYOUTS)


def load(
    name_or_dir: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    text_encoder: str | None = None,
    adapter: str | Path | None = None,
    packed: bool | None = None,
    heads: tuple[int, ...] | None = None,
    clap: str | None = None,
) -> AudioGen | LatentGenerator:
    """Open a generator of any family: a token language model, or a latent-diffusion system.

    adapter, packed are for the first, heads, clap for the second; arguments as in `AudioGen.from_pretrained` and
    `LatentGenerator.from_pretrained`.
    """
    latent = is_latent(name_or_dir)
    for option, value, fits in (
        ("adapter", adapter, not latent),
        ("packed", packed, not latent),
        ("heads", heads, latent),
        ("clap", clap, latent),
    ):
        if value is not None and not fits:
            raise InputError(f"{option} is for another family; {name_or_dir} is {FAMILIES[latent]}")
    if latent:
        from audiogen.generators.latent import LatentGenerator

        return LatentGenerator.from_pretrained(name_or_dir, device, dtype, text_encoder, heads, clap=clap)
    kind = own_kind(name_or_dir)
    if kind == lora.KIND:
        base = checkpoint.read_config(name_or_dir, lora.KIND)["config"].get("base")
        raise InputError(
            f"{name_or_dir} holds LoRA adapters and no model; give --model {base} --adapter {name_or_dir}"
        )
    if kind not in (None, KIND):
        raise InputError(
            f"{name_or_dir} holds a model of kind {kind!r}, which does not generate; allowed: {KIND!r}"
        )
    return AudioGen.from_pretrained(name_or_dir, device, dtype, text_encoder, adapter, packed)


def find(name_or_dir: str | Path) -> Path:
    """The directory of what `load` opens, fetched where it is on the hub; InputError where there is none."""
    if not is_latent(name_or_dir):
        return pretrained.find(name_or_dir)
    if not hub.is_hub_id(str(name_or_dir)):
        return checkpoint.system_folder(name_or_dir)
    from audiogen.models.released import LAYOUTS

    return hub.fetch(str(name_or_dir), LAYOUTS)


def is_latent(name_or_dir: str | Path) -> bool:
    """Whether a latent-diffusion system is there, by the names of its files; from the hub comes no more than those."""
    directory = checkpoint.system_folder(name_or_dir)
    if hub.is_hub_id(str(name_or_dir)):
        directory = hub.fetch(str(name_or_dir), (*LATENT_LAYOUTS, *LM_LAYOUTS))
    if not directory.is_dir() or own_kind(directory) or lm_public.layout_of(directory) is not None:
        return False
    names = [path.name for path in directory.iterdir()]
    return any(name in LATENT_FILES or name.endswith((".ckpt", ".pth")) for name in names)


def own_kind(name_or_dir: str | Path) -> str | None:
    """The kind of a bundled model or of a model directory of ours; None for everything else."""
    given = Path(name_or_dir)
    path = (given if given.exists() else checkpoint.weights_folder() / given) / "config.json"
    contents = checkpoint.read_json(path) if path.is_file() else None
    return contents.get("kind") if isinstance(contents, dict) else None
