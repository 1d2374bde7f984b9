"""Directories in the layout of diffusers' pipelines: reading released ones, and writing and reading our own.

model_index.json                      which class each component is of, and the pipeline's
vae/ vocoder/                         AutoencoderKL with SpeechT5HifiGan, or AutoencoderOobleck
unet/ or transformer/                 the denoiser
projection_model/ language_model/     AudioLDM 2's and Stable Audio's conditioning
text_encoder/ tokenizer/ ...          T5 and CLAP, where they are stored; diffusers' pipelines need them
scheduler/
system.json text/ conditioner/        ours: the whole configuration, the embedded text encoder, what else is trained
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen.config import build, to_plain
from audiogen.diffusion.autoencoders import MelAutoencoder
from audiogen.diffusion.process import process_of
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.models.latent_configs import denoiser_folder, pipeline_of, read_pipeline, scheduler_config
from audiogen.models.latent_files import Released, empty, fill, read_settings, read_weights
from audiogen.text import encoder
from audiogen.text.clap import Clap, quiet
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.vocabulary import VOCABULARY_FILE

INDEX, SYSTEM = "model_index.json", "system.json"
TEXT, EXTRA = "text", "conditioner"
WEIGHTS = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", ".safetensors.index.json", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def save_diffusers(
    directory: str | Path,
    system: LatentSystem,
    name: str,
    process: Mapping[str, Any],
    encoders: bool = True,
    sampling: Sampling | None = None,
) -> None:
    """Write a system; model_index.json comes last, so that a new directory is whole or no model.

    name, process, sampling: as in `Released`, for the scheduler and for whoever loads it. encoders: store frozen text
    encoders as well, which are opened for it; without them the directory names them, and diffusers' pipelines do not
    open it.
    """
    directory = Path(directory)
    conditioner, autoencoder = system.conditioner, system.autoencoder
    parts: dict[str, Any] = {"vae": autoencoder.vae, denoiser_folder(system.config): system.denoiser.network}
    scale = float(autoencoder.scale_factor)
    if isinstance(autoencoder, MelAutoencoder):
        if autoencoder.vocoder is not None:
            parts["vocoder"] = autoencoder.vocoder
        autoencoder.vae.register_to_config(scaling_factor=scale)
    if conditioner.loa is not None:
        parts |= {"projection_model": conditioner.loa.projection, "language_model": conditioner.loa.gpt2}
        conditioner.loa.gpt2.config.max_new_tokens = conditioner.loa.config.length
    elif _is_component(conditioner.seconds):
        parts["projection_model"] = conditioner.seconds
    with quiet():
        for folder, part in parts.items():
            part.save_pretrained(directory / folder)
    classes = {folder: _class_of(part) for folder, part in parts.items()}
    if conditioner.text is not None and conditioner.text.embedded is not None:
        embedded = conditioner.text.embedded
        embedded.save(directory / TEXT, next(embedded.parameters()).dtype)
    elif encoders:
        classes |= _save_encoders(directory, system)
    if extra := _extra(system):
        checkpoint.write_tensors(directory / EXTRA / "model.safetensors", extra)
    scheduler = scheduler_config(name, process)
    checkpoint.write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    classes["scheduler"] = ["diffusers", scheduler["_class_name"]]
    config = to_plain(system.config)
    config[_autoencoder_key(system.config)]["scale_factor"] = scale
    contents = {"config": config, "name": name, "process": dict(process)}
    if sampling is not None:
        contents["sampling"] = to_plain(sampling)
    checkpoint.write_json(directory / SYSTEM, contents)
    checkpoint.write_json(directory / INDEX, {"_class_name": pipeline_of(system.config), **classes})


def load_diffusers(directory: str | Path, heads: tuple[int, ...] | None = None) -> Released:
    """Read a directory that `save_diffusers` wrote, or that of an AudioLDM, AudioLDM 2 or Stable Audio pipeline.

    heads: attention heads of each level of the UNet in place of those that its settings say: the authors' are channels
    / 32, and / 64 for AudioLDM-L, but converted models say 8 at every level.
    """
    directory = Path(directory)
    index, sampling = read_settings(directory / INDEX), None
    if (directory / SYSTEM).is_file():
        own = read_settings(directory / SYSTEM)
        config = build(SystemConfig, own.get("config", dict), where=str(directory / SYSTEM))
        name, process = own.get("name", str), own.get("process", dict)
        if "sampling" in own.contents:
            where = f"{directory / SYSTEM}: sampling"
            sampling = build(Sampling, own.get("sampling", dict), where)
            sampling.check(process_of(name, process, str(directory / SYSTEM)), where)
    else:
        config, name, process = read_pipeline(directory, index)
    notes: tuple[str, ...] = ()
    if config.audio_unet is not None:
        stated = config.audio_unet.heads
        unet = dataclasses.replace(config.audio_unet, heads=heads or stated)
        config = dataclasses.replace(config, audio_unet=unet)
        notes = (f"attention heads {unet.heads}: {'as given' if heads else f'those of {directory.name}'}",)
    elif heads is not None:
        raise InputError(f"{directory} holds no UNet of AudioLDM, AudioLDM 2 or LAFMA; leave heads out")
    listed = [key for key, value in index.contents.items() if _is_listed(key, value)]
    for folder in [*_components(config), *listed]:
        _required(directory / folder, directory)
    _check_rates(directory, config)
    vocabulary = None
    if config.conditioner.text is not None and config.conditioner.text.embedded:
        path = _required(directory / TEXT / VOCABULARY_FILE, directory)
        if not path.is_file():
            raise InputError(
                f"{path} is a folder; it must be the file of the text's vocabulary: copy it again"
            )
        vocabulary = path.read_bytes()
    clap = _clap(directory, index.contents)
    frozen = _frozen_text(directory, index.contents)
    system = empty(lambda: LatentSystem(config, vocabulary, frozen, clap))
    _fill(directory, system)
    return Released(system.eval(), name, dict(process), notes, sampling)


def _components(config: SystemConfig) -> list[str]:
    """Folders with weights that such a system has."""
    found = ["vae", denoiser_folder(config)]
    if config.mel_autoencoder is not None and config.mel_autoencoder.vocoder is not None:
        found.append("vocoder")
    if config.conditioner.loa is not None:
        found += ["projection_model", "language_model"]
    elif "seconds_start" in config.conditioner.uses:
        found.append("projection_model")
    return found


def _check_rates(directory: Path, config: SystemConfig) -> None:
    """Raise InputError where a component says another sample rate than the system: it is of another model."""
    rate, where = config.sample_rate, SYSTEM if (directory / SYSTEM).is_file() else "the others"
    for folder in ("vae", "vocoder"):
        path = directory / folder / "config.json"
        found = read_settings(path).get("sampling_rate", int, rate) if path.is_file() else rate
        if found != rate:
            raise InputError(
                f"{path}: sampling_rate is {found} Hz, but {rate} Hz in {where}; the {folder} is of another model: "
                "copy the directory again, as a whole"
            )


def _fill(directory: Path, system: LatentSystem) -> None:
    """Give all parts their weights, component by component."""
    autoencoder, conditioner = system.autoencoder, system.conditioner
    _fill_part(directory, "vae", autoencoder.vae)
    if isinstance(autoencoder, MelAutoencoder) and autoencoder.vocoder is not None:
        _fill_part(directory, "vocoder", autoencoder.vocoder)
    autoencoder.scale_factor = torch.tensor(system.config.autoencoder.scale_factor)
    _fill_part(directory, denoiser_folder(system.config), system.denoiser.network)
    if conditioner.loa is not None:
        _fill_part(directory, "projection_model", conditioner.loa.projection)
        _fill_part(directory, "language_model", conditioner.loa.gpt2)
    elif _is_component(conditioner.seconds):
        _fill_part(directory, "projection_model", conditioner.seconds)
    if conditioner.text is not None and conditioner.text.embedded is not None:
        _fill_part(directory, TEXT, conditioner.text.embedded)
    if names := [name for name in conditioner.state_dict() if name.startswith(_extra_names(system))]:
        folder = _required(directory / EXTRA, directory)
        tensors = _weights(folder)
        for owner in sorted({name.partition(".")[0] for name in names}):
            part = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{owner}.")}
            fill(getattr(conditioner, owner), part, str, folder)


def _fill_part(directory: Path, folder: str, part: nn.Module) -> None:
    where = _required(directory / folder, directory)
    tensors = _weights(where)
    if folder == "language_model":  # GPT2Model, or GPT2LMHeadModel with an output layer that is not used
        tensors = {
            name.removeprefix("transformer."): tensor
            for name, tensor in tensors.items()
            if not name.startswith("lm_head.") and not name.endswith((".attn.bias", ".attn.masked_bias"))
        }

    def source(name: str) -> str:
        """Attention layers of a VAE have had other names."""
        if name in tensors or ".attentions." not in name:
            return name
        for new, old in _OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    fill(part, tensors, source, where)


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return checkpoint.open_tensors(path) if "safetensors" in name else read_weights(path)
    raise InputError(f"{folder} holds no weights ({WEIGHTS[0]}, {WEIGHTS[1]}); copy it again")


def _required(path: Path, directory: Path) -> Path:
    """A component that is there; InputError naming it otherwise."""
    if not path.exists():
        raise InputError(
            f"{directory} lacks {path.relative_to(directory)}, which this system needs; copy it again, as a whole"
        )
    return path


def _is_component(seconds: Any) -> bool:
    """Whether seconds are embedded by a model that diffusers saves by itself."""
    return hasattr(seconds, "save_pretrained")


def _extra_names(system: LatentSystem) -> tuple[str, ...]:
    """Prefixes of what is trained in the conditioner and is no component."""
    seconds = () if _is_component(system.conditioner.seconds) else ("seconds.",)
    return ("pooled.", *seconds)


def _extra(system: LatentSystem) -> dict[str, Tensor]:
    names = _extra_names(system)
    return {name: t for name, t in system.conditioner.state_dict().items() if name.startswith(names)}


def _class_of(part: Any) -> list[str]:
    """[library, class] as an index has it; a class inside of a pipeline's folder belongs to that pipeline."""
    library, _, rest = type(part).__module__.partition(".")
    inside = rest.split(".")
    return [inside[1] if inside[0] == "pipelines" else library, type(part).__name__]


def _autoencoder_key(config: SystemConfig) -> str:
    return "mel_autoencoder" if config.mel_autoencoder is not None else "waveform_autoencoder"


def _save_encoders(directory: Path, system: LatentSystem) -> dict[str, list[str]]:
    """T5, and CLAP before it, with what turns text and sound into their input."""
    classes, conditioner = {}, system.conditioner
    if conditioner.has_clap:
        classes = conditioner.clap.save(directory)
    if conditioner.text is not None:
        last = "_2" if classes else ""
        conditioner.text.save_frozen(directory / f"text_encoder{last}", directory / f"tokenizer{last}")
        path = directory / f"tokenizer{last}" / "tokenizer_config.json"
        contents = checkpoint.read_json(path)
        if conditioner.config.text_length is not None:  # diffusers pads to it
            contents["model_max_length"] = conditioner.config.text_length
            checkpoint.write_json(path, contents)
        classes[f"text_encoder{last}"] = ["transformers", "T5EncoderModel"]
        classes[f"tokenizer{last}"] = ["transformers", contents.get("tokenizer_class", "T5Tokenizer")]
    return classes


def _frozen_text(directory: Path, index: Mapping[str, Any]) -> FrozenEncoder | None:
    """The T5 among the components; None where there is none."""
    folder = next((key for key, value in index.items() if _is(value, "T5EncoderModel")), None)
    if folder is None:
        return None
    where = _required(directory / folder, directory)
    tokenizer = _required(directory / folder.replace("text_encoder", "tokenizer"), directory)
    shape = encoder.read_shape(checkpoint.read_json(where / "config.json"), where)
    found = {name.removeprefix("encoder."): tensor for name, tensor in _weights(where).items()}
    shared = found.pop("shared.weight", None)
    if shared is not None:
        found.setdefault("embed_tokens.weight", shared)
    return encoder.carried(shape, found, str(tokenizer), where)


def _clap(directory: Path, index: Mapping[str, Any]) -> Clap | None:
    """The CLAP model among the components; None where there is none."""
    names = ("ClapModel", "ClapTextModelWithProjection")
    folder = next((key for key, value in index.items() if any(_is(value, name) for name in names)), None)
    if folder is None:
        return None
    model = _required(directory / folder, directory)
    tokenizer = _required(directory / folder.replace("text_encoder", "tokenizer"), directory)
    return Clap(str(model), tokenizer=str(tokenizer), extractor=str(directory / "feature_extractor"))


def _is_listed(key: str, value: Any) -> bool:
    """Whether an entry of the index is a component that is there; optional ones may be [null, null]."""
    return not key.startswith("_") and isinstance(value, list) and value[-1:] != [None]


def _is(value: Any, name: str) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[1] == name
