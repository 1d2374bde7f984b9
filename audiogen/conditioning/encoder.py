"""Opening T5 encoders: one of our own to be trained, one named by directory or hub id, one that a model carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.utils import logging as transformers_log

from audiogen import checkpoint, hub, pickles
from audiogen.conditioning.vocabulary import Vocabulary
from audiogen.errors import InputError

# The names that AudioGen and MusicGen releases write for T5, all from the hub; those with a "/" are hub ids.
RELEASED_NAMES = (
    *("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
)
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
TOKENIZER_PATTERNS = ("tokenizer*", "spiece.model", "special_tokens_map.json")  # all that one may consist of
_SMALL = ("config.json", *TOKENIZER_PATTERNS)
# What a T5 of the hub may hold; the first that it has is fetched.
LAYOUTS = (
    hub.Layout("safetensors", ("config.json", "model.safetensors"), (*_SMALL, "model.safetensors")),
    hub.Layout(
        "safetensors in several files",
        ("config.json", "model.safetensors.index.json"),
        (*_SMALL, "model-*.safetensors", "model.safetensors.index.json"),
    ),
    hub.Layout("pickled", ("config.json", "pytorch_model*.bin"), (*_SMALL, "pytorch_model*")),
)
TOKENIZERS = tuple(hub.Layout("tokenizer", (name,), _SMALL) for name in TOKENIZER_FILES)
CONFIG = (hub.Layout("its configuration", ("config.json",), ("config.json",)),)


class Opened(NamedTuple):
    """A T5 encoder stack, float32, and what turns text into its token ids."""

    stack: Any
    tokenizer: Vocabulary | PretrainedTokenizer


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is opened when the first text comes. width: of its output, known beforehand."""

    width: int
    open: Callable[[], Opened]


class PretrainedTokenizer:
    """The tokenizer of a pretrained T5, with the interface of `Vocabulary`."""

    def __init__(self, directory: str):
        # here, because the embedded encoder needs none of it
        from transformers.models.auto.tokenization_auto import AutoTokenizer

        if not any((Path(directory) / name).is_file() for name in TOKENIZER_FILES):
            # transformers would go on with one that knows no word
            raise InputError(f"it holds no tokenizer, which is {' or '.join(TOKENIZER_FILES)}")
        verbosity = transformers_log.get_verbosity()
        transformers_log.set_verbosity_error()  # beside a MusicGen's config.json it warns of the special token's id
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory)
        finally:
            transformers_log.set_verbosity(verbosity)
        self.eos_id: int = self._tokenizer.eos_token_id
        self.unk_id: int = self._tokenizer.unk_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids with the end-of-sequence id last."""
        return self._tokenizer(text, verbose=False).input_ids

    def unknown(self, text: str) -> str:
        """The characters of the text that the tokenizer lacks."""
        return "".join(character for character in text if self.unk_id in self.encode(character))

    def save(self, directory: Path) -> None:
        """Write the files that `PretrainedTokenizer(directory)` reads."""
        self._tokenizer.save_pretrained(directory)


def hub_name(released: str) -> str:
    """The hub id of the T5 that a release names: "t5-large" is "google-t5/t5-large"."""
    return released if "/" in released else f"google-t5/{released}"


def named(name_or_directory: str, width: int | None = None, where: str | Path = "") -> FrozenEncoder:
    """A T5 of a directory or of the hub.

    width: what `where` needs, compared once the encoder is opened; None reads its configuration now.
    """
    if width is None:
        width = read_width(name_or_directory)
    return FrozenEncoder(
        width, lambda: _sized(_open_named(name_or_directory), width, name_or_directory, where)
    )


def read_width(name_or_directory: str) -> int:
    """Width of the output of a T5, from its configuration alone."""
    try:
        found, _ = PretrainedConfig.get_config_dict(_here(name_or_directory, CONFIG))
        if found.get("model_type") != "t5":
            raise ValueError(f"its config.json has model_type {found.get('model_type')!r}; 't5' is needed")
        width: int = T5Config.from_dict(found).d_model
    except Exception as error:  # transformers and the hub client raise a dozen kinds for what a file lacks
        raise _cannot_open(name_or_directory, error) from error
    return width


def carried(
    shape: T5Config, tensors: Mapping[str, Tensor], tokenizer: str | None, where: str | Path
) -> FrozenEncoder:
    """An encoder whose weights a model directory holds.

    tensors: those of the stack. tokenizer: directory or hub id; None where there is none, an error with the first text.
    """

    def open_() -> Opened:
        if tokenizer is None:
            raise InputError(
                f"{where} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}) and names no text encoder that has one; "
                "name a T5 with its tokenizer as text encoder (--text-encoder), or leave the text out"
            )
        stack = empty_stack(shape)
        checkpoint.assign(stack, tensors, where, dtype=torch.float32)
        return Opened(stack, open_tokenizer(tokenizer))

    return FrozenEncoder(shape.d_model, open_)


def read_shape(found: Mapping[str, Any], where: str | Path) -> T5Config:
    """The configuration of a T5 from the dict that a config.json holds; what does not fit is an InputError."""
    if found.get("model_type") != "t5":
        raise InputError(
            f"{where}: text encoder has model_type {found.get('model_type')!r}; only 't5' is read"
        )
    try:
        return T5Config.from_dict(dict(found))
    except Exception as error:  # the validation of transformers has error classes of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{where}: the text encoder's configuration is not that of a T5: {reason}"
        ) from error


def empty_stack(shape: T5Config) -> Any:
    """An encoder stack without memory for its weights."""
    try:
        with torch.device("meta"):
            return T5EncoderModel(shape).encoder
    except Exception as error:  # of the layers, for a value that they do not have
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the text encoder's configuration is not that of a T5: {reason}") from error


def open_tokenizer(name_or_directory: str) -> PretrainedTokenizer:
    """A tokenizer of a directory or the hub; a missing or damaged one is an InputError."""
    try:
        return PretrainedTokenizer(_here(name_or_directory, TOKENIZERS))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise _cannot_open(name_or_directory, error, "tokenizer") from error


def random_stack(size: int, dim: int, num_layers: int, num_heads: int, dropout: float) -> Any:
    """A new encoder stack for a vocabulary of `size`."""
    shape = T5Config(
        vocab_size=size,
        d_model=dim,
        d_kv=dim // num_heads,
        d_ff=4 * dim,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout_rate=dropout,
    )
    # The stack without the second name its embedding has in `T5EncoderModel` (tied, so saved twice).
    return T5EncoderModel(shape).encoder


def _here(name_or_directory: str, layouts: Sequence[hub.Layout]) -> str:
    """A hub id as the directory that it is fetched to: `transformers` would ask a dead network again for a minute."""
    if Path(name_or_directory).is_dir():
        return name_or_directory
    name = hub_name(name_or_directory) if name_or_directory in RELEASED_NAMES else name_or_directory
    if not hub.is_hub_id(name):
        raise InputError("it is no directory and no hub id")
    return str(hub.fetch(name, layouts))


def _open_named(name_or_directory: str) -> Opened:
    # A directory loads in no time; the bar of a download stays.
    quiet = Path(name_or_directory).is_dir() and transformers_log.is_progress_bar_enabled()
    if quiet:
        transformers_log.disable_progress_bar()
    try:
        directory = _here(name_or_directory, LAYOUTS)
        tokenizer = PretrainedTokenizer(directory)
        if not any(Path(directory).glob("model*.safetensors")):
            for file in Path(directory).glob("pytorch_model*.bin"):
                pickles.read_state(file)  # says what is wrong with it; torch would advise to run its code
        model, found = T5EncoderModel.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # as above
        raise _cannot_open(name_or_directory, error) from error
    finally:
        if quiet:
            transformers_log.enable_progress_bar()
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:  # transformers goes on with random weights
        raise _cannot_open(name_or_directory, ValueError(f"its weights lack or misfit {lacking[0]}"))
    return Opened(model.encoder, tokenizer)


def _sized(opened: Opened, width: int, name: str, where: str | Path) -> Opened:
    check_width(opened.stack.config.d_model, width, name, where)
    return opened


def check_width(found: int, needed: int, name: str, where: str | Path) -> None:
    """Refuse an encoder whose output does not fit the projection that a model was trained with."""
    if found != needed:
        raise InputError(
            f"text encoder {name!r} gives features {found} wide, but {where or 'the model'} projects from {needed}; "
            "give the T5 that it was trained with"
        )


def _cannot_open(name: str, error: Exception, what: str = "text encoder") -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{what} {name!r} cannot be opened ({reason}); "
        "give a directory with a T5 model and its tokenizer, or a T5 hub id while the hub can be reached"
    )
