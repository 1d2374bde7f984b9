"""What a reader makes of files: our configuration, and tensors by our names that still lie in the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from audiogen.codec.dac import DacSizes
from audiogen.codec.model import CodecConfig
from audiogen.files import checkpoint
from audiogen.files.tensors import Match, assign, empty, match
from audiogen.lm.model import ROWS, LMConfig, TokenLM
from audiogen.models.settings import table
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import T5Conditioner, TextConfig

CodecLayout = Literal["audiogen", "audiocraft", "transformers"]


@dataclass(frozen=True)
class CodecReference:
    """The codec whose codes a language model predicts.

    location: a bundled codec's name or a codec's model directory; "codec" in a saved model is the copy inside. That
        of a release is the release's own directory.
    identity: the codec's own `identity`, a hash of the weights that decide what its codes mean; "" for the codec in
        the same release, with nothing to compare.
    dual_mono: a mono codec encodes the two channels each by itself, and the codebooks are left 0, right 0, left 1 ...
    """

    location: str
    identity: str
    dual_mono: bool = False


@dataclass(frozen=True)
class LMParts:
    """A language model whose weights still lie in its files, with its text encoder and the name of its codec.

    open_tensors: where the files have each tensor of TokenLM, checked. directory: where they come from.
    open_text: the text encoder on a device, in evaluation mode; its own weights are float32.
    codec: its location is a directory or bundled name that can be opened from anywhere.
    max_frames: the longest sequence to generate in one piece: that of training.
    info: of a model of ours what was recorded; "generation" of a release holds what it generates with by default.
    """

    config: LMConfig
    text: TextConfig
    codec: CodecReference
    max_frames: int
    info: dict[str, Any]
    directory: Path
    open_tensors: Callable[[], Mapping[str, Match]]
    open_text: Callable[[torch.device | str], T5Conditioner]

    @cached_property
    def tensors(self) -> Mapping[str, Match]:
        """Views of the mapped files; they are opened for it."""
        return self.open_tensors()

    def skeleton(self) -> TokenLM:
        """The model without memory for its weights, on the meta device; InputError where the files do not fit it."""
        _ = self.tensors  # which checks them
        return empty(lambda: TokenLM(self.config).eval(), self.directory)

    def read(self, name: str) -> Iterator[Tensor]:
        """One weight from its file, as `model.Read` gives it."""
        return self.tensors[name].rows(ROWS, self.directory)

    def identity(self) -> str:
        """16 hex digits that change with any weight; one weight at a time is in memory."""
        digests = {
            name: torch.tensor(list(checkpoint.identity({name: torch.cat(list(self.read(name)))}).encode()))
            for name in self.tensors
        }
        return checkpoint.identity(digests)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TokenLM:
        """The model with its weights; beside them there is never more than one of the file's in memory."""
        lm = self.skeleton()
        assign(lm, self.tensors, self.directory, device, dtype)
        return lm


class PretrainedLM(NamedTuple):
    """A language model with its weights; lm and conditioner are in evaluation mode, the rest is as in `LMParts`."""

    lm: TokenLM
    conditioner: T5Conditioner
    codec: CodecReference
    max_frames: int
    info: dict[str, Any]


class CodecParts(NamedTuple):
    """A codec whose weights still lie in its file. layout: whose names an EnCodec's have (`their_name`)."""

    config: CodecConfig | DacSizes
    tensors: Mapping[str, Tensor]
    layout: CodecLayout
    where: Path


def their_name(name: str, layout: CodecLayout, own: Collection[str]) -> str:
    """Our name of an EnCodec's tensor -> that of the layout, with a weight as one tensor. own: all of our names.

    All layouts number the layers of encoder and decoder as we do, activations included.

        ours                          audiocraft, encodec                   transformers
        encoder.layers.3.conv.weight  encoder.model.3.conv.conv.weight_v    encoder.layers.3.conv.weight_v
        encoder.layers.1.wide.conv.*  encoder.model.1.block.1.conv.conv.*   encoder.layers.1.block.1.conv.*
        encoder.layers.13.lstm.*      encoder.model.13.lstm.*               encoder.layers.13.lstm.*
        decoder.layers.3.convtr.bias  decoder.model.3.convtr.convtr.bias    decoder.layers.3.conv.bias
        decoder.layers.3.norm.*       decoder.model.3.convtr.norm.*         decoder.layers.3.norm.*

    Newer files say parametrizations.weight.original0 and original1 for weight_g and weight_v.
    """
    if layout == "audiogen":
        return name
    layer, _, leaf = name.rpartition(".norm.")
    if layer and layout == "audiocraft":
        name = f"{layer}.{'convtr' if f'{layer}.convtr.weight' in own else 'conv'}.norm.{leaf}"
    for ours, theirs in table(f"{layout}.names_codec").items():
        name = re.sub(ours, theirs, name)
    return name


def release_parts(
    lm: LMConfig,
    text: TextConfig,
    frozen: FrozenEncoder,
    tensors: Mapping[str, Match],
    projection: Mapping[str, Match],
    codec: CodecReference,
    max_frames: int,
    guidance: float | None,
) -> LMParts:
    """A released language model, whose directory is that of its codec.

    projection: weight [D, E] and bias [D] from the text encoder's width to the model's; empty where both are equal.
    guidance: what it generates with by default; None where the release does not say.
    """
    directory = Path(codec.location)
    same = {"weight": torch.eye(lm.dim), "bias": torch.zeros(lm.dim)}
    projection = projection or match(same, same, str, directory)

    def open_text(device: torch.device | str) -> T5Conditioner:
        conditioner = empty(lambda: T5Conditioner(text, frozen=frozen).eval(), directory)
        assign(conditioner.output_proj, projection, directory, device)
        return conditioner

    info = {"generation": {} if guidance is None else {"guidance": guidance}}
    return LMParts(lm, text, codec, max_frames, info, directory, lambda: tensors, open_text)
