"""Opening T5 encoders: one of our own to be trained, one named by directory or hub id, one that a model carries."""

from __future__ import annotations

import dataclasses
import string
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from audiogen.config import build
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub, pickles
from audiogen.text.t5_stack import T5Shape, T5Stack
from audiogen.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from audiogen.text.tokenizer import PretrainedTokenizer

# The names that AudioGen and MusicGen releases write for T5, all from the hub; those with a "/" are hub ids.
RELEASED_NAMES = (
    *("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
)
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
TOKENIZER_PATTERNS = ("tokenizer*", "spiece.model", "special_tokens_map.json")  # all files of a tokenizer
_SMALL = ("config.json", *TOKENIZER_PATTERNS)
# The files of a T5 of the hub, in one of these layouts; the first that fits is fetched.
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
# Names of T5's weights: the stack that is read here, and the embedding that a decoder shares.
STACK, SHARED = "encoder.", "shared.weight"


class TextEncoder(NamedTuple):
    """A T5 encoder stack, float32, and the tokenizer that goes with it."""

    stack: T5Stack
    tokenizer: Vocabulary | PretrainedTokenizer

    def token_ids(self, text: str, max_tokens: int, name: str) -> list[int]:
        """At most max_tokens ids, the last of them </s>; warns of a text that is cut and of characters without a token.

        name: of the encoder, for messages.
        """
        tokenizer, ids = self.tokenizer, self.tokenizer.encode(text)
        shown = text if len(text) <= 40 else text[:40] + "..."
        if tokenizer.unk_id in ids:
            unknown = tokenizer.unknown(text)
            if not set(unknown) <= set(string.punctuation):  # a missing full stop is not worth a word
                message = f"the text encoder has no token for {unknown[:20]!r} in {shown!r}"
                warnings.warn(message, stacklevel=2)
            if isinstance(tokenizer, Vocabulary):
                # no caption had these, so their embedding was never trained
                ids = [token for token in ids if token != tokenizer.unk_id]
        if len(ids) > max_tokens:
            message = f"{shown!r} has {len(ids)} tokens; the text encoder reads the first {max_tokens}"
            warnings.warn(message, stacklevel=2)
            ids = [*ids[: max_tokens - 1], tokenizer.eos_id]
        size = self.stack.embed_tokens.num_embeddings
        if max(ids, default=0) >= size:
            raise InputError(
                f"text encoder {name!r} has {size} tokens, but its tokenizer gives id {max(ids)}; they do not belong "
                "together: copy both again"
            )
        return ids


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is opened when the first text comes. width: of its output, read beforehand."""

    width: int
    open: Callable[[], TextEncoder]


def hub_name(released: str) -> str:
    """The hub id of the T5 that a release names: "t5-large" is "google-t5/t5-large"."""
    return released if "/" in released else f"google-t5/{released}"


def named(
    name_or_directory: str, width: int | None = None, where: str | Path = "", now: bool = False
) -> FrozenEncoder:
    """A T5 of a directory or of the hub.

    width: what `where` needs, compared once the encoder is opened; None takes the encoder's own. now: read its
    configuration and compare now, as without a width; the hub is asked for all files at once.
    """
    directory: Path | None = None
    if now or width is None:
        with _opening(name_or_directory):
            directory = _here(name_or_directory, LAYOUTS)
            found = read_shape(checkpoint.read_json(directory / "config.json"), directory).d_model
        width = found if width is None else width
        check_width(found, width, name_or_directory, where)
    needed = width

    def open_() -> TextEncoder:
        with _opening(name_or_directory):
            encoder = _read(directory or _here(name_or_directory, LAYOUTS))
        check_width(encoder.stack.config.d_model, needed, name_or_directory, where)
        return encoder

    return FrozenEncoder(needed, open_)


def carried(
    shape: T5Shape, tensors: Mapping[str, Tensor], tokenizer: str | None, where: str | Path
) -> FrozenEncoder:
    """An encoder whose weights a model directory holds.

    tensors: those of the stack. tokenizer: directory or hub id; None makes the first text an error.
    """

    def open_() -> TextEncoder:
        if tokenizer is None:
            raise InputError(
                f"{where} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}) and names no text encoder that has one; "
                "name a T5 with its tokenizer as text encoder (--text-encoder), or leave the text out"
            )
        stack = empty_stack(shape)
        checkpoint.assign(stack, tensors, where, dtype=torch.float32)
        return TextEncoder(stack, open_tokenizer(tokenizer))

    return FrozenEncoder(shape.d_model, open_)


def read_shape(found: Any, where: str | Path) -> T5Shape:
    """The shape of a T5 from what a config.json holds; what does not fit is an InputError."""
    kind = found.get("model_type") if isinstance(found, Mapping) else None
    if kind != "t5":
        raise InputError(f"{where}: text encoder has model_type {kind!r}; only 't5' is read")
    values = {field.name: found[field.name] for field in dataclasses.fields(T5Shape) if field.name in found}
    try:
        return build(T5Shape, values)
    except InputError as error:
        raise InputError(f"{where}: the text encoder's configuration is not that of a T5: {error}") from None


def empty_stack(shape: T5Shape) -> T5Stack:
    """An encoder stack without memory for its weights."""
    try:
        with checkpoint.unfilled():
            return T5Stack(shape)
    except (RuntimeError, TypeError) as error:  # of torch, for sizes that no memory has
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the text encoder's configuration is not that of a T5: {reason}") from error


def stack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a T5EncoderModel, or of one with a decoder, by the names of its encoder stack.

    The embedding, which is also that of the decoder, has either name or both.
    """
    stack = {name.removeprefix(STACK): tensor for name, tensor in tensors.items() if name.startswith(STACK)}
    if SHARED in tensors:
        stack.setdefault("embed_tokens.weight", tensors[SHARED])
    return stack


def open_tokenizer(name_or_directory: str) -> PretrainedTokenizer:
    """A tokenizer of a directory or the hub; a missing or damaged one is an InputError."""
    with _opening(name_or_directory, "tokenizer"):
        return _read_tokenizer(_here(name_or_directory, TOKENIZERS))


def _read_tokenizer(directory: Path) -> PretrainedTokenizer:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        # transformers would go on with a tokenizer without words
        raise InputError(f"it holds no tokenizer, which is {' or '.join(TOKENIZER_FILES)}")
    from audiogen.text.tokenizer import PretrainedTokenizer

    return PretrainedTokenizer(str(directory))


def _here(name_or_directory: str, layouts: Sequence[hub.Layout]) -> Path:
    """A directory as it is, a hub id or a released name as the directory that it is fetched to."""
    if Path(name_or_directory).is_dir():
        return Path(name_or_directory)
    name = hub_name(name_or_directory) if name_or_directory in RELEASED_NAMES else name_or_directory
    if not hub.is_hub_id(name):
        raise InputError("it is no directory and no hub id")
    return hub.fetch(name, layouts)


def _read(directory: Path) -> TextEncoder:
    tokenizer = _read_tokenizer(directory)
    stack = empty_stack(read_shape(checkpoint.read_json(directory / "config.json"), directory))
    found, needed = stack_tensors(_weights(directory)), stack.state_dict()
    for name, own in needed.items():
        if name not in found or found[name].shape != own.shape:
            raise InputError(f"its weights lack or misfit {STACK}{name}")
    checkpoint.assign(stack, {name: found[name] for name in needed}, directory, dtype=torch.float32)
    return TextEncoder(stack, tokenizer)


def _weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a T5 by their names in its files, whichever of the `LAYOUTS` it has."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return checkpoint.open_tensors(directory / name)
    pickled = sorted(directory.glob("pytorch_model*.bin"))
    if not pickled:
        raise InputError("it holds no weights, which are model.safetensors or pytorch_model.bin")
    return {name: tensor for file in pickled for name, tensor in pickles.read_state(file).items()}


def check_width(found: int, needed: int, name: str, where: str | Path) -> None:
    """Refuse an encoder whose output does not fit the projection that a model was trained with."""
    if found != needed:
        raise InputError(
            f"text encoder {name!r} gives features {found} wide, but {where or 'the model'} projects from {needed}; "
            "give the T5 that it was trained with"
        )


@contextmanager
def _opening(name: str, what: str = "text encoder") -> Iterator[None]:
    """Whatever fails inside is an InputError: the hub client and tokenizers raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{what} {name!r} cannot be opened ({reason}); "
            "give a directory with a T5 model and its tokenizer, or a T5 hub id while the hub can be reached"
        ) from error
