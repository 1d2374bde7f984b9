"""Public codecs: those of AudioGen, MusicGen and EnCodec in every layout they are published in, and Descript's DAC.

compression_state_dict.bin    audiocraft: {"best_state": tensors, "xp.cfg": YAML}, or {"pretrained": name}, a pointer
encodec_24khz-d7cc33bc.th     the encodec package's own files: tensors alone
config.json with weights      transformers: EncodecModel, DacModel, or MusicgenForConditionalGeneration with one inside

`transformers_parts` and `save_transformers` write what transformers opens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.codec import dac
from audiogen.codec.conv import plain_weights
from audiogen.codec.dac import DacCodec
from audiogen.codec.model import Codec
from audiogen.codec.segmented import SegmentedCodec
from audiogen.config import to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub, pickles
from audiogen.interfaces import Codec as AnyCodec
from audiogen.models.codec_configs import audiocraft_config, bandwidths, encodec_config, transformers_config
from audiogen.models.codec_weights import build, length, public_name

COMPRESSION_FILE = "compression_state_dict.bin"
CONFIG = "config.json"
SINGLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
# The smallest first: where both are there, the codec of a MusicGen lies in a file of its own.
LAYOUTS = (
    hub.Layout("audiocraft", (COMPRESSION_FILE,), (COMPRESSION_FILE,)),
    hub.Layout("transformers", (CONFIG, SINGLE), (CONFIG, SINGLE)),
    hub.Layout("transformers in several files", (CONFIG, INDEX), (CONFIG, INDEX, "model-*.safetensors")),
    hub.Layout("transformers, pickled", (CONFIG, PICKLED), (CONFIG, PICKLED)),
)
DAC_NAMES = {
    f"dac_{rate}khz": f"descript/dac_{rate}khz" for rate in (16, 24, 44)
}  # audiocraft's pointers to them
SUFFIXES = (".bin", ".th", ".pt", ".pth")
PREFIX = "audio_encoder."  # of the codec's part in a MusicGen


def is_public(path: Path) -> bool:
    """Whether a path is for `load_public`: a file of weights, or a directory with one of the layouts in it."""
    if path.is_file():
        return path.suffix in SUFFIXES
    if (path / COMPRESSION_FILE).is_file() or encodec_files(path):
        return True
    if not (path / CONFIG).is_file():
        return False
    contents = checkpoint.read_json(path / CONFIG)
    return isinstance(contents, dict) and "model_type" in contents


def encodec_files(directory: Path) -> list[Path]:
    """The codecs of the encodec package in a directory; its language models are none."""
    return sorted(directory.glob("encodec_[0-9]*khz*.th"))


def name_of(path: Path) -> str:
    """What to call the codec in a file or directory: all compression files have one name, so theirs is the folder's."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == COMPRESSION_FILE else path.stem


def load_public(path: Path, device: str | torch.device = "cpu") -> AnyCodec:
    """A file or directory of one of the layouts -> a frozen codec, float32, on `device`.

    Its `name` and `identity` are left to the caller. Raises InputError, one line with the file and the key, where
    something is missing, damaged, does not fit, or is not implemented.
    """
    if path.is_file():
        return _load_file(path, device, follow=True)
    if (path / COMPRESSION_FILE).is_file():
        return _load_file(path / COMPRESSION_FILE, device, follow=True)
    files = encodec_files(path)
    if len(files) > 1 and not (path / CONFIG).is_file():
        raise InputError(f"{path} holds {' and '.join(file.name for file in files)}; give one of them")
    return _load_file(files[0], device, follow=False) if len(files) == 1 else _load_transformers(path, device)


def _load_file(path: Path, device: str | torch.device, follow: bool) -> AnyCodec:
    """A compression file of audiocraft, a pointer in its place (if `follow`), or a file of encodec."""
    contents = pickles.read_pickle(path)
    if not isinstance(contents, dict):
        raise InputError(
            f"{path} holds a {type(contents).__name__}; the weights of a codec by name are needed"
        )
    if "pretrained" in contents:
        if not follow:
            raise InputError(f"{path} is a pointer that another one led to; give the codec itself")
        return _load_pointer(path, contents["pretrained"], device)
    if "best_state" in contents:
        if "xp.cfg" not in contents:
            raise InputError(
                f"{path} holds no xp.cfg: without it the codec's sizes are unknown; export it again"
            )
        config = audiocraft_config(contents["xp.cfg"], path)
        return build(
            config, _tensors(contents["best_state"], f"best_state of {path}"), "audiocraft", path, device
        )
    if any(str(name).startswith("encoder.model.") for name in contents):
        tensors = _tensors(contents, str(path))
        return build(encodec_config(tensors), tensors, "audiocraft", path, device)
    keys = ", ".join(map(str, list(contents)[:4])) or "nothing"
    raise InputError(
        f"{path} holds {keys}; a codec's file has best_state and xp.cfg (audiocraft), pretrained (a pointer), or the "
        "tensors of encodec"
    )


def _tensors(state: Any, where: str) -> dict[str, Tensor]:
    """A flat state dict, checked to be one."""
    if not isinstance(state, dict):
        raise InputError(f"{where} is a {type(state).__name__}; tensors by name are needed")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{where}: {str(name)[:60]} is a {type(value).__name__}, not a tensor; a training checkpoint of "
                "audiocraft must be exported first"
            )
    return state


def _load_pointer(path: Path, name: Any, device: str | torch.device) -> AnyCodec:
    """The codec that a compression file names: beside it, else on the hub."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: pretrained is {str(name)[:60]!r}; the name of a codec is needed")
    inside = Path(name)
    beside = path.parent / inside
    if not inside.is_absolute() and ".." not in inside.parts and beside.exists() and beside != path:
        if beside.is_file():
            return _load_file(beside, device, follow=False)
        target = beside
    elif _holds_codec(path.parent):
        return _load_transformers(path.parent, device)  # the same codec in the release's other layout
    else:
        name = DAC_NAMES.get(name, name)
        if not hub.is_hub_id(name):
            raise InputError(f"{path} points to the codec {name!r}, which is neither beside it nor a hub id")
        target = hub.fetch(name, LAYOUTS)
    if (target / COMPRESSION_FILE).is_file():
        return _load_file(target / COMPRESSION_FILE, device, follow=False)
    return _load_transformers(target, device)


def _holds_codec(directory: Path) -> bool:
    weights = any((directory / name).is_file() for name in (SINGLE, INDEX, PICKLED))
    return weights and (directory / CONFIG).is_file()


def _load_transformers(directory: Path, device: str | torch.device) -> AnyCodec:
    """A directory of transformers: EncodecModel, DacModel, or the codec within a MusicGen."""
    where = directory / CONFIG
    if not where.is_file():
        raise InputError(
            f"{directory} holds no codec: there is no {COMPRESSION_FILE} (audiocraft) and no {CONFIG} (transformers)"
        )
    contents = checkpoint.read_json(where)
    kind = contents.get("model_type") if isinstance(contents, dict) else None
    if kind == dac.MODEL_TYPE:
        return dac.read_dac(directory, device)
    if kind not in ("encodec", "musicgen"):
        raise InputError(
            f"{where}: model_type is {kind!r}; only 'encodec', 'dac' and 'musicgen' hold a codec"
        )
    weights, tensors = _open(directory)
    if kind == "musicgen":
        contents, where = contents.get("audio_encoder"), Path(f"{where}: audio_encoder")
        inner = contents.get("model_type", "encodec") if isinstance(contents, dict) else contents
        if not isinstance(contents, dict) or inner != "encodec":
            raise InputError(f"{where} has model_type {inner!r}; only 'encodec' is implemented")
        tensors = {
            name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)
        }
    return build(transformers_config(contents, where), tensors, "transformers", weights, device)


def _open(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file of a directory of transformers and its tensors, mapped into memory."""
    for name in (SINGLE, INDEX):
        if (directory / name).is_file():
            return directory / name, checkpoint.open_tensors(directory / name)
    path = directory / PICKLED
    if not path.is_file():
        raise InputError(f"{directory} holds no weights: none of {SINGLE}, {INDEX}, {PICKLED} is there")
    return path, _tensors(pickles.read_pickle(path), str(path))


# ------------------------------------------------------------------------------------------------------ export


def transformers_parts(
    codec: AnyCodec, num_codebooks: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A codec as (config.json, tensors) of `transformers.EncodecModel`.

    num_codebooks: those that it offers as bandwidths, the last one all; by default all alone, which is what MusicGen
    encodes with. Of a `dual_mono` codec it is the mono model, as in a stereo MusicGen. InputError where transformers
    has nothing for the codec.
    """
    if not isinstance(codec, Codec):
        raise InputError(
            f"codec {codec.name or 'given'} is no EnCodec; only an EnCodec can be written as one"
        )
    config = codec.config
    seanet = config.seanet
    streams = 2 if config.dual_mono else 1
    for key, value, allowed in (
        ("arch", config.arch, config.arch == "seanet"),
        ("seanet.lstm", seanet.lstm, seanet.lstm > 0),
        ("codebook_size", config.codebook_size, config.codebook_size & (config.codebook_size - 1) == 0),
        ("channels", config.channels, config.channels <= 2),
    ):
        if not allowed:
            raise InputError(
                f"codec {codec.name or 'given'} has {key} {value!r}; EncodecModel of transformers has SEANet layers "
                "with an LSTM, codebooks of a power of 2, and one or two channels"
            )
    contents: dict[str, Any] = {
        "model_type": "encodec",
        "target_bandwidths": bandwidths(config, num_codebooks or (config.num_codebooks // streams,)),
        "sampling_rate": config.sample_rate,
        "audio_channels": config.channels // streams,
        "normalize": config.normalise,
        "chunk_length_s": config.segment_s,
        "overlap": None if config.segment_s is None else config.segment_overlap,
        "hidden_size": config.latent_dim,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.latent_dim,
        "num_filters": seanet.num_filters,
        "num_residual_layers": seanet.num_residual_layers,
        "upsampling_ratios": list(seanet.ratios),
        "norm_type": "time_group_norm" if seanet.norm == "group" else "weight_norm",
        "kernel_size": seanet.kernel_size,
        "last_kernel_size": seanet.last_kernel_size,
        "residual_kernel_size": seanet.residual_kernel_size,
        "dilation_growth_rate": seanet.dilation_base,
        "use_causal_conv": seanet.causal,
        "pad_mode": seanet.pad_mode,
        "compress": seanet.compress,
        "num_lstm_layers": seanet.lstm,
        "trim_right_ratio": seanet.trim_right_ratio,
        "use_conv_shortcut": not seanet.true_skip,
    }
    return contents, _public_tensors(codec)


def _public_tensors(codec: Codec) -> dict[str, Tensor]:
    """Its tensors under the names of transformers, with weight norm where EncodecModel has it."""
    own = plain_weights(codec)
    tensors = {}
    for name, tensor in own.items():
        public, tensor = public_name(name, "transformers", own), tensor.detach().cpu()
        if codec.config.seanet.norm == "none" and name.endswith((".conv.weight", ".convtr.weight")):
            stem = public.removesuffix(".weight") + ".parametrizations.weight.original"
            tensors[f"{stem}0"] = length(tensor)
            tensors[f"{stem}1"] = tensor
        else:
            tensors[public] = tensor.reshape(1).float() if name.endswith(".initialised") else tensor
    return tensors


def save_transformers(directory: str | Path, codec: AnyCodec | SegmentedCodec) -> None:
    """Write the directory that `EncodecModel.from_pretrained` opens, or for a DAC `DacModel`'s.

    An EnCodec offers 2, 4, 8 ... codebooks and all of them. config.json comes last, so that a new directory is whole
    or no model.
    """
    directory = Path(directory)
    if isinstance(codec, SegmentedCodec):
        codec = codec.codec
    if isinstance(codec, DacCodec):
        sizes = codec.config
        ratios = list(sizes.downsampling_ratios)
        contents = {"model_type": dac.MODEL_TYPE, "architectures": ["DacModel"], **to_plain(sizes)}
        contents |= {"upsampling_ratios": ratios[::-1], "hop_length": sizes.hop_length}
        contents["hidden_size"] = sizes.encoder_hidden_size * 2 ** len(ratios)
        tensors, extractor, more = (
            dict(codec.state_dict()),
            "DacFeatureExtractor",
            {"hop_length": codec.hop_length},
        )
    else:
        total = codec.num_codebooks // (1 + (isinstance(codec, Codec) and codec.config.dual_mono))
        counts = (*(2**power for power in range(1, 16) if 2**power < total), total)
        contents, tensors = transformers_parts(codec, counts)
        contents["architectures"] = ["EncodecModel"]
        extractor = "EncodecFeatureExtractor"
        more = {key: contents[key] for key in ("chunk_length_s", "overlap")}
    checkpoint.write_tensors(directory / SINGLE, tensors, {"format": "pt"})
    checkpoint.write_json(
        directory / "preprocessor_config.json",
        {
            "feature_extractor_type": extractor,
            "feature_size": contents.get("audio_channels", 1),
            "sampling_rate": codec.sample_rate,
            "padding_value": 0.0,
            "return_attention_mask": True,
            **more,
        },
    )
    checkpoint.write_json(directory / CONFIG, contents)
