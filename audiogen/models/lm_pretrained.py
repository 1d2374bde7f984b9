"""Token language models on disk: a model directory with its text encoder, and its codec or the codec's name.

config.json         kind token_lm; config: {"lm": LMConfig, "codec": CodecReference, "max_frames": int}
model.safetensors   the LM's weights
text/               the text encoder (`T5Conditioner.save`)
codec/              a copy of the codec's model directory, unless the codec is a bundled one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.lm.model import ROWS, LMConfig, TokenLM
from audiogen.models import audiocraft
from audiogen.models import lm_layouts as public
from audiogen.models.release import Release
from audiogen.text.t5 import T5Conditioner, TextConfig, local_or_hub, read_config

KIND = "token_lm"
CODEC_FOLDER = "codec"


@dataclass(frozen=True)
class CodecReference:
    """The codec whose tokens a language model speaks.

    location: a bundled codec's name or a codec's model directory; "codec" in a saved model is the copy inside. That
        of a release is the release's own directory.
    identity: the codec's own `identity`, a hash of the weights that decide what its tokens mean; "" for the codec in
        the same release, with nothing to compare.
    dual_mono: a mono codec codes the two channels each by itself, and the codebooks are left 0, right 0, left 1 ...
    """

    location: str
    identity: str
    dual_mono: bool = False


class PretrainedLM(NamedTuple):
    """What `load_lm` returns; lm and conditioner are in evaluation mode."""

    lm: TokenLM
    conditioner: T5Conditioner
    codec: CodecReference  # its location is a directory or bundled name that can be opened from anywhere
    max_frames: int  # longest sequence to generate in one piece: that of training
    info: dict[str, Any]


def save_lm(
    directory: str | Path,
    lm: TokenLM,
    conditioner: T5Conditioner,
    codec: CodecReference,
    max_frames: int,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory that `load_lm` reads, complete in itself. A new one is whole or no model.

    dtype: how the weights of LM and text encoder are stored; float16 halves the files.
    """
    directory = Path(directory)
    conditioner.save(directory / "text", dtype)
    if Path(codec.location).is_dir():
        checkpoint.read_config(codec.location, "codec")
        checkpoint.copy_model(codec.location, directory / CODEC_FOLDER)
        codec = dataclasses.replace(codec, location=CODEC_FOLDER)
    else:
        checkpoint.resolve(codec.location, "codec")
    config = {"lm": to_plain(lm.config), "codec": to_plain(codec), "max_frames": max_frames}
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in lm.state_dict().items()}
    checkpoint.save_model(directory, KIND, config, tensors, info)


@dataclass(frozen=True)
class OpenLM:
    """A language model whose weights still lie in its files; the rest is as in `PretrainedLM`.

    parts: the tensors by TokenLM's names, as `checkpoint.assign` takes them. directory: where they come from.
    """

    config: LMConfig
    parts: Mapping[str, Tensor | Sequence[Tensor]]
    directory: Path
    conditioner: T5Conditioner
    codec: CodecReference
    max_frames: int
    info: dict[str, Any]

    def skeleton(self) -> TokenLM:
        """The model without memory for its weights, on the meta device; InputError where the files do not fit it."""
        lm = self._empty()
        checkpoint.check_parts(lm, self.parts, self.directory)
        return lm

    def read(self, name: str) -> Iterator[Tensor]:
        """One weight from its file, as `model.Read` gives it."""
        return checkpoint.read_rows(self.parts, name, self.directory, ROWS)

    def identity(self) -> str:
        """16 hex digits that change with any weight; one weight at a time is in memory."""
        digests = {
            name: torch.tensor(list(checkpoint.identity({name: torch.cat(list(self.read(name)))}).encode()))
            for name in self.parts
        }
        return checkpoint.identity(digests)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TokenLM:
        """The model with its weights; beside them there is never more than one of the file's in memory."""
        lm = self._empty()
        checkpoint.assign(lm, self.parts, self.directory, device, dtype)
        return lm

    def _empty(self) -> TokenLM:
        with checkpoint.unfilled():  # no time for initial weights that are overwritten at once
            return TokenLM(self.config).eval()


class Description(NamedTuple):
    """What a language model is, without its weights; the fields are those of `PretrainedLM`."""

    lm: LMConfig
    text: TextConfig
    codec: CodecReference
    max_frames: int


def load_lm(
    name_or_directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    text_encoder: str | None = None,
) -> PretrainedLM:
    """Read a language model: bundled, a model directory, or a release (its directory, or a hub id[@revision]).

    dtype: of the LM; the text encoder stays float32. Each weight goes to its device and dtype by itself.
    text_encoder: directory or hub id of the T5 to use in place of a frozen one, which is opened with the first text.
    info["generation"] holds what a release generates with by default: {"guidance": float}.
    """
    found = open_lm(name_or_directory, device, text_encoder)
    return PretrainedLM(
        found.load(device, dtype), found.conditioner, found.codec, found.max_frames, found.info
    )


def open_lm(
    name_or_directory: str | Path, device: torch.device | str = "cpu", text_encoder: str | None = None
) -> OpenLM:
    """What `load_lm` reads, with the LM's weights still in their files; its arguments are those of `load_lm`."""
    directory = find(name_or_directory)
    if public.layout_of(directory) is not None:
        return _open_release(directory, device, text_encoder)
    contents = _read_own(directory)
    return OpenLM(
        build(LMConfig, contents["config"]["lm"], where="lm"),
        checkpoint.open_tensors(directory / "model.safetensors"),
        directory,
        T5Conditioner.load(directory / "text", _local(text_encoder), device),
        _codec_of(directory, contents["config"]),
        contents["config"]["max_frames"],
        contents["info"],
    )


def describe_lm(name_or_directory: str | Path, text_encoder: str | None = None) -> Description:
    """What `load_lm` would load, from the configuration alone; its arguments are those of `load_lm`."""
    directory = find(name_or_directory)
    if public.layout_of(directory) is not None:
        release = public.read_release(directory, _local(text_encoder))
        return Description(
            release.lm, release.text, _codec_of_release(directory, release), release.max_frames
        )
    config = _read_own(directory)["config"]
    return Description(
        build(LMConfig, config["lm"], where="lm"),
        read_config(directory / "text", _local(text_encoder)),
        _codec_of(directory, config),
        config["max_frames"],
    )


def find(name_or_directory: str | Path) -> Path:
    """The directory of a language model of any kind; one of the hub is fetched, or found in the cache."""
    path = Path(name_or_directory)
    if path.is_dir() and public.layout_of(path) is not None:
        return path
    if hub.is_hub_id(str(name_or_directory)):
        return public.fetch(str(name_or_directory))
    if (path / audiocraft.CODEC_FILE).is_file():
        raise InputError(
            f"{path} holds a codec, which does not generate; beside the codec of a released language model lies its "
            f"{audiocraft.WEIGHTS_FILE}: copy that, too, or choose a language model"
        )
    return checkpoint.resolve(name_or_directory, KIND)


def _read_own(directory: Path) -> dict[str, Any]:
    """config.json of a model directory of ours, with all of its keys."""
    contents = checkpoint.read_config(directory, KIND)
    for key in ("lm", "codec", "max_frames"):
        if key not in contents["config"]:
            raise InputError(f"{directory / 'config.json'} lacks config.{key}; copy or train the model again")
    return contents


def _codec_of(directory: Path, config: Mapping[str, Any]) -> CodecReference:
    codec = build(CodecReference, config["codec"], where="codec")
    if codec.location == CODEC_FOLDER:
        return dataclasses.replace(codec, location=str(directory / CODEC_FOLDER))
    return codec


def _codec_of_release(directory: Path, release: Release) -> CodecReference:
    return CodecReference(str(directory), "", release.dual_mono)


def _local(text_encoder: str | None) -> str | None:
    return None if text_encoder is None else local_or_hub(text_encoder)


def _open_release(directory: Path, device: torch.device | str, text_encoder: str | None) -> OpenLM:
    release = public.read_release(directory, _local(text_encoder))
    with checkpoint.unfilled():
        conditioner = T5Conditioner(release.text, frozen=release.encoder).eval()
    checkpoint.assign(conditioner.output_proj, release.projection, directory, device, torch.float32)
    info = {"generation": {} if release.guidance is None else {"guidance": release.guidance}}
    codec = _codec_of_release(directory, release)
    return OpenLM(release.lm, release.tensors, directory, conditioner, codec, release.max_frames, info)
