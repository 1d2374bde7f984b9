"""An inaudible watermark in generated sounds, by AudioSeal (San Roman et al. 2024, arXiv:2401.17264).

Its networks come with the package audioseal (extra `watermark`), its weights from the hub. They work on mono at 16 kHz:
the watermark of any other sound is made of its middle at that rate, and added to all channels at the sound's own.
"""

from __future__ import annotations

import collections
import typing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiogen import audio
from audiogen.errors import InputError, one_line
from audiogen.files import hub
from audiogen.files.pickles import named_tensors, read_pickle

WEIGHTS = "facebook/audioseal"
RATE, BITS = 16_000, 16
# Of each network: the file of its weights in the repository, and its settings in the package.
FILES = {
    "generator": ("generator_base.pth", "audioseal_wm_16bits"),
    "detector": ("detector_base.pth", "audioseal_detector_16bits"),
}
FOUND = 0.5  # share of the samples with the watermark from which on a sound counts as marked


class Detected(NamedTuple):
    """share: of the samples that carry a watermark, 0 to 1. message: its 16 bits, which mean nothing without one."""

    share: float
    message: int


def message_of(sha256: str) -> int:
    """The 16 bits that say which model made a sound: the first ones of its files' hash; 0 without files."""
    return int(sha256[: BITS // 4] or "0", 16)


@torch.inference_mode()
def embed(sound: Tensor, sample_rate: int, message: int) -> Tensor:
    """A sound [C, N] with the watermark of a 16-bit message, within full scale."""
    network = _network("generator")
    middle = audio.resample(sound.mean(0, keepdim=True), sample_rate, RATE)  # [1, N at 16 kHz]
    bits = torch.tensor([[message >> place & 1 for place in range(BITS - 1, -1, -1)]])  # [1, 16]
    with _plainly():
        mark = network.get_watermark(middle[None], message=bits)[0]
    mark = audio.resample(mark, RATE, sample_rate)[:, : sound.shape[-1]]
    mark = torch.nn.functional.pad(mark, (0, sound.shape[-1] - mark.shape[-1]))
    return audio.below_full_scale(sound + mark)


@torch.inference_mode()
def detect(sound: Tensor, sample_rate: int) -> Detected:
    """What a sound [C, N] carries."""
    middle = audio.resample(sound.mean(0, keepdim=True), sample_rate, RATE)
    network = _network("detector")
    with _plainly():
        share, bits = network.detect_watermark(middle[None])
    return Detected(float(share), int("".join(str(int(bit)) for bit in bits[0]), 2))


def _plainly() -> Any:
    """Within, audioseal's convolutions run as they are: to compile them takes minutes, for a second of work."""
    from audioseal.libs.moshi.utils.compile import no_compile

    return no_compile()


def check() -> None:
    """InputError where sounds cannot be marked: the package or its weights are missing."""
    _network("generator")


@cache
def _network(kind: str) -> Any:
    """The generator or the detector, in evaluation mode."""
    try:
        from audioseal import builder, loader
    except ImportError as error:
        raise InputError(
            f"watermarks need the package audioseal ({error}): pip install '.[watermark]' in the checkout"
        ) from None
    name, card = FILES[kind]
    try:
        path = hub.Repository(WEIGHTS).fetch([name]) / name
    except InputError as error:
        raise InputError(f"the weights of the watermark: {error}; or do without the watermark") from None
    if not path.is_file():
        raise InputError(f"the weights of the watermark: {WEIGHTS} has no {name}; update it, or do without")
    kinds = {
        "generator": (builder.AudioSealWMConfig, builder.create_generator),
        "detector": (builder.AudioSealDetectorConfig, builder.create_detector),
    }
    settings, create = kinds[kind]
    config = loader.load_local_model_config(card)
    config.pop("checkpoint")  # the address that audioseal would read as a pickle, whatever it holds
    network = create(loader.AudioSeal.parse_config(config, config_type=settings))
    tensors = loader.convert_state_dict_for_scriptable_model(_tensors(path))
    try:
        loader.load_state_dict(network, tensors)
    except (RuntimeError, AssertionError, AttributeError) as error:
        reason = one_line(error)[:200]
        raise InputError(
            f"{path} holds other weights than AudioSeal's {kind}: {reason}; fetch it again"
        ) from None
    return network.eval()


def _tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a release's file: read as data, beside the settings of its training."""
    from omegaconf import DictConfig, ListConfig, base, nodes

    also: list[Any] = [
        DictConfig,
        ListConfig,
        base.Metadata,
        base.ContainerMetadata,
        nodes.AnyNode,
        typing.Any,
    ]
    also += [dict, list, int, float, str, bool, collections.defaultdict]
    contents = read_pickle(path, also=also)
    contents = contents.get("best_state", contents) if isinstance(contents, dict) else contents
    contents = contents.get("model", contents) if isinstance(contents, dict) else contents
    return named_tensors(contents, path)
