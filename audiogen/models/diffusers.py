"""Directories in the layout of diffusers' pipelines: reading released ones, and writing and reading our own.

model_index.json                      which class each component is of, and the pipeline's
vae/ vocoder/                         AutoencoderKL with SpeechT5HifiGan, AutoencoderOobleck, or AutoencoderSAME
unet/ or transformer/                 the denoiser
projection_model/ language_model/     AudioLDM 2's and Stable Audio's conditioning
duration_embedder/                    Stable Audio 3's
text_encoder/ tokenizer/ ...          T5, T5Gemma and CLAP, where they are stored; diffusers' pipelines need them
scheduler/
system.json text/ conditioner/        ours: the whole configuration, the embedded text encoder, what else is trained
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiogen.config import build, to_plain
from audiogen.diffusion.autoencoders import MelAutoencoder
from audiogen.diffusion.process import process_of
from audiogen.diffusion.same import SameAutoencoder
from audiogen.diffusion.sample import SAMPLINGS, Sampling
from audiogen.diffusion.systems import AUTOENCODERS, LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub, writing
from audiogen.files.checkpoint import read_weights, weights_file
from audiogen.files.tensors import under
from audiogen.models.pipelines import (
    SystemFile,
    component_settings,
    has_fixed_seconds,
    has_own_pipeline,
    pipeline_of,
    read_pipeline,
    required,
    runs_in_code,
    scheduler_config,
)
from audiogen.models.settings import RATE, read_settings
from audiogen.models.systems import Component, SystemParts
from audiogen.text import encoder
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder, quiet
from audiogen.text.vocabulary import VOCABULARY_FILE

INDEX, SYSTEM = "model_index.json", "system.json"
TEXT, EXTRA = "text", "conditioner"
WEIGHTS = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", ".safetensors.index.json", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# Settings of a released component that are read, but in another form than our networks keep them.
_FREE = ("attention_head_dim", "max_new_tokens")


def save_diffusers(
    directory: str | Path,
    system: LatentSystem,
    name: str,
    process: Mapping[str, Any],
    encoders: bool = True,
    sampling: Sampling | None = None,
    window_s: float | None = None,
) -> None:
    """Write a system; model_index.json comes last, so that a new directory is whole or no model.

    name, process, sampling, window_s: as in `Released`, for the scheduler and for whoever loads it. encoders: store
    what diffusers needs to read texts as well: frozen text encoders, which are opened for it, and the code of a
    pipeline where diffusers has none (`whole`); without them the directory names encoders, and no pipeline opens it.
    """
    directory, conditioner = Path(directory), system.conditioner
    if isinstance(system.autoencoder, SameAutoencoder):
        system.autoencoder.fold_scale()
    scale = float(system.autoencoder.scale_factor)
    if isinstance(system.autoencoder, MelAutoencoder):
        system.autoencoder.vae.register_to_config(scaling_factor=scale)
    if conditioner.loa is not None:
        conditioner.loa.gpt2.config.max_new_tokens = conditioner.loa.config.length
    parts: dict[str, Any] = {
        folder: system.get_submodule(part) for folder, part in _folders(system.config).items()
    }
    embedded = parts.pop(TEXT, None)
    for folder, part in parts.items():
        with quiet(), writing.storing(directory / folder):
            part.save_pretrained(directory / folder)
    classes = {folder: _class_of(part) for folder, part in parts.items()}
    if embedded is not None:
        embedded.save(directory / TEXT, next(embedded.parameters()).dtype)
    own = process_of(name, process)
    pipeline: dict[str, Any] = {"_class_name": pipeline_of(system.config)}
    in_code = encoders and not has_own_pipeline(system.config) and runs_in_code(system.config, own)
    if in_code:
        from audiogen.models import whole  # late: all of diffusers' pipelines, which reading does without

        pipeline = whole.save_pipeline(directory, system, own, sampling or SAMPLINGS[name], window_s)
        classes.pop("projection_model", None)  # `projection` has its weights
    elif encoders and embedded is None:
        classes |= _save_encoders(directory, system)
    prefixes = tuple(f"{owner}." for owner in _owners(system.config))
    if prefixes:
        state = conditioner.state_dict()
        checkpoint.write_tensors(
            directory / EXTRA / "model.safetensors",
            {key: tensor for key, tensor in state.items() if key.startswith(prefixes)},
        )
    scheduler = scheduler_config(own, sampling or SAMPLINGS[name], in_code)
    writing.write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    classes["scheduler"] = ["diffusers", scheduler["_class_name"]]
    config = to_plain(system.config)
    for key in AUTOENCODERS:
        if config[key] is not None:
            config[key]["scale_factor"] = scale
    contents = {
        "config": config,
        "name": name,
        "process": process,
        "sampling": sampling,
        "window_s": window_s,
    }
    given = {key: to_plain(value) for key, value in contents.items() if value is not None}
    writing.write_json(directory / SYSTEM, hub.pinned(given))
    writing.write_json(directory / INDEX, classes | pipeline)


def read_diffusers(directory: Path) -> SystemParts:
    """Read a directory that `save_diffusers` wrote, or that of a released pipeline, one of `pipelines.PIPELINES`."""
    index = read_settings(directory / INDEX)
    ours = directory / SYSTEM
    own = build(SystemFile, writing.read_json(ours), str(ours)) if ours.is_file() else None
    found = own or read_pipeline(directory, index)
    config = found.config
    folders = _folders(config)
    for folder in folders:
        required(directory, folder)
    for key, value in index.contents.items():
        # of the components that it lists, optional ones may be [null, null]
        if not key.startswith("_") and isinstance(value, list) and value[-1:] != [None]:
            required(directory, key)
    _check_rates(directory, config)
    components = [_component(directory, folder, part, own is None) for folder, part in folders.items()]
    return SystemParts(
        **vars(found),
        components=components + _trained(directory, config),
        where=directory,
        heads_from="" if config.audio_unet is None else f"those of {directory.name}",
        vocabulary=_vocabulary(directory, config),
        frozen=None if TEXT in folders else _frozen_text(directory, index.contents),
        clap=_clap(directory, index.contents),
    )


def _vocabulary(directory: Path, config: SystemConfig) -> bytes | None:
    """That of an embedded text encoder."""
    if config.conditioner.text is None or not config.conditioner.text.embedded:
        return None
    path = required(directory, TEXT, VOCABULARY_FILE)
    if not path.is_file():
        raise InputError(f"{path} is a folder; it must be the file of the text's vocabulary: copy it again")
    return path.read_bytes()


def _folders(config: SystemConfig) -> dict[str, str]:
    """Folders with weights that such a system has, and the parts that they are of."""
    denoiser = "unet" if config.mel_autoencoder is not None else "transformer"
    found = {"vae": "autoencoder.vae", denoiser: "denoiser.network"}
    if config.mel_autoencoder is not None and config.mel_autoencoder.vocoder is not None:
        found["vocoder"] = "autoencoder.vocoder"
    if config.conditioner.loa is not None:
        found |= {
            "projection_model": "conditioner.loa.projection",
            "language_model": "conditioner.loa.gpt2",
        }
    elif "seconds_start" in config.conditioner.uses:
        found["projection_model"] = "conditioner.seconds"
    elif has_fixed_seconds(config):
        found["duration_embedder"] = "conditioner.seconds"
    if config.conditioner.text is not None and config.conditioner.text.embedded:
        found[TEXT] = "conditioner.text.embedded"
    return found


def _check_rates(directory: Path, config: SystemConfig) -> None:
    """Raise InputError where a component says another sample rate than the system: it is of another model."""
    rate, where = config.sample_rate, SYSTEM if (directory / SYSTEM).is_file() else "the others"
    for folder in ("vae", "vocoder"):
        path = directory / folder / "config.json"
        found = read_settings(path).whole("sampling_rate", rate, RATE) if path.is_file() else rate
        if found != rate:
            raise InputError(
                f"{path}: sampling_rate is {found} Hz, but {rate} Hz in {where}; the {folder} is of another model: "
                "copy the directory again, as a whole"
            )


def _component(directory: Path, folder: str, part: str, released: bool) -> Component:
    where = required(directory, folder)
    tensors = read_weights(weights_file(where, *WEIGHTS))
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

    settings = component_settings(directory, folder) if released else None
    free: tuple[str, ...] = _FREE
    if settings is not None and settings.contents.get("_class_name") == "UNet2DConditionModel":
        free += ("cross_attention_dim",)  # AudioLDM's: as wide as each level, which attends to itself
    return Component(part, tensors, where, source, settings=settings, free=free)


def _owners(config: SystemConfig) -> list[str]:
    """Modules of the conditioner that are trained and are no components of diffusers."""
    conditioner, found = config.conditioner, []
    if "pooled" in conditioner.uses or (conditioner.loa is not None and conditioner.clap is None):
        found.append("pooled")
    if {"seconds_start", "seconds_total"} & conditioner.uses == {"seconds_total"} and not has_fixed_seconds(
        config
    ):
        found.append("seconds")
    return found


def _trained(directory: Path, config: SystemConfig) -> list[Component]:
    owners, folder = _owners(config), directory / EXTRA
    tensors = read_weights(weights_file(required(directory, EXTRA), *WEIGHTS)) if owners else {}
    return [Component(f"conditioner.{owner}", under(tensors, f"{owner}."), folder) for owner in owners]


def _class_of(part: Any) -> list[str]:
    """[library, class] as an index has it; a class inside of a pipeline's folder belongs to that pipeline."""
    library, _, rest = type(part).__module__.partition(".")
    inside = rest.split(".")
    return [inside[1] if inside[0] == "pipelines" else library, type(part).__name__]


def _save_encoders(directory: Path, system: LatentSystem) -> dict[str, list[str]]:
    """T5 or T5Gemma, and CLAP before it, with what turns text and sound into their input."""
    classes, conditioner = {}, system.conditioner
    if conditioner.clap is not None:
        classes = conditioner.clap.save(directory)
    if conditioner.text is not None:
        last = "_2" if classes else ""
        conditioner.text.save_frozen(directory / f"text_encoder{last}", directory / f"tokenizer{last}")
        path = directory / f"tokenizer{last}" / "tokenizer_config.json"
        contents = writing.read_json(path)
        if conditioner.config.text_length is not None:  # diffusers pads to it
            contents["model_max_length"] = conditioner.config.text_length
            writing.write_json(path, contents)
        frozen = conditioner.text.frozen
        assert frozen is not None
        kind = frozen.encoder.stack.config.architecture
        classes[f"text_encoder{last}"] = ["transformers", kind]
        classes[f"tokenizer{last}"] = ["transformers", contents.get("tokenizer_class", "T5Tokenizer")]
    return classes


def _frozen_text(directory: Path, index: Mapping[str, Any]) -> FrozenEncoder | None:
    """The T5 or T5Gemma among the components; None where there is none."""
    found = _encoder(directory, index, "T5EncoderModel", "T5GemmaEncoderModel")
    if found is None:
        return None
    where, tokenizer = found
    tensors = encoder.stack_tensors(read_weights(weights_file(where, *WEIGHTS)))
    return encoder.carried(encoder.shape_of(where), tensors, str(tokenizer), where)


def _clap(directory: Path, index: Mapping[str, Any]) -> Clap | None:
    """The CLAP model among the components; None where there is none."""
    found = _encoder(directory, index, "ClapModel", "ClapTextModelWithProjection")
    if found is None:
        return None
    model, tokenizer = map(str, found)
    return Clap(model, tokenizer=tokenizer, extractor=str(directory / "feature_extractor"))


def _encoder(directory: Path, index: Mapping[str, Any], *classes: str) -> tuple[Path, Path] | None:
    """The folders of the component of one of these classes, and of its tokenizer."""
    for key, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1] in classes:
            return required(directory, key), required(directory, key.replace("text_encoder", "tokenizer"))
    return None
