"""T5 and T5Gemma encoders: named by directory or hub id, or carried by a model; a frozen one and its states' cache."""

from __future__ import annotations

import dataclasses
import hashlib
import string
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audiogen.config import build, short
from audiogen.errors import InputError, opening, plain_text
from audiogen.files import checkpoint, hub, writing
from audiogen.files.tensors import empty, fill, under
from audiogen.text.gemma import GemmaShape, GemmaStack, read_gemma
from audiogen.text.t5_stack import T5Shape, T5Stack
from audiogen.text.vocabulary import PAD_ID, Vocabulary

# The names that AudioGen and MusicGen releases write for T5, and their hub ids.
HUB_IDS = {f"t5-{size}": f"google-t5/t5-{size}" for size in ("small", "base", "large", "3b", "11b")}
HUB_IDS |= {name: name for name in map("google/flan-t5-{}".format, ("small", "base", "large", "xl", "xxl"))}
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_SMALL = ("config.json", "tokenizer*", "spiece.model", "special_tokens_map.json")
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
Shape = T5Shape | GemmaShape
ADVICE = "give a directory with a T5 model and its tokenizer, or a T5 hub id while the hub can be reached"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings and the bars that it draws for a second of reading; that of a download stays."""
    from transformers.utils import logging  # late, as the tokenizer's

    verbosity = logging.get_verbosity()
    has_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # beside a MusicGen's config.json it warns of the special token's id
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


class PretrainedTokenizer:
    """The tokenizer of a pretrained encoder, with the interface of `Vocabulary`."""

    def __init__(self, directory: Path):
        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            # transformers would go on with a tokenizer without words
            raise InputError(f"it holds no tokenizer, which is {' or '.join(TOKENIZER_FILES)}")
        import transformers  # here: seconds, which a vocabulary of our own does not need

        with quiet():
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.eos_id: int = self._tokenizer.eos_token_id
        self.unk_id: int = self._tokenizer.unk_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids; T5's end with the end-of-sequence id."""
        return self._tokenizer(text, verbose=False).input_ids

    def save(self, directory: Path) -> None:
        """Write the files that `PretrainedTokenizer(directory)` reads."""
        with writing.storing(directory):
            self._tokenizer.save_pretrained(directory)


class TextEncoder(NamedTuple):
    """An encoder stack, float32, and the tokenizer that goes with it."""

    stack: T5Stack | GemmaStack
    tokenizer: Vocabulary | PretrainedTokenizer

    def token_ids(self, text: str, max_tokens: int, name: str) -> list[int]:
        """At most max_tokens ids, T5's with </s> last; warns of a text that is cut and of characters without a token.

        name: of the encoder, for messages.
        """
        text = plain_text(text)
        tokenizer, ids = self.tokenizer, self.tokenizer.encode(text)
        shown = text if len(text) <= 40 else text[:40] + "..."
        if tokenizer.unk_id in ids:
            unknown = "".join(
                character for character in text if tokenizer.unk_id in tokenizer.encode(character)
            )
            if not set(unknown) <= set(string.punctuation):  # a missing full stop is not worth a word
                message = f"the text encoder has no token for {unknown[:20]!r} in {shown!r}"
                warnings.warn(message, stacklevel=2)
            if isinstance(tokenizer, Vocabulary):
                # no caption had these, so their embedding was never trained
                ids = [token for token in ids if token != tokenizer.unk_id]
        if len(ids) > max_tokens:
            message = f"{shown!r} has {len(ids)} tokens; the text encoder reads the first {max_tokens}"
            warnings.warn(message, stacklevel=2)
            ends = ids[-1] == tokenizer.eos_id
            ids = [*ids[: max_tokens - 1], tokenizer.eos_id] if ends else ids[:max_tokens]
        size = self.stack.embed_tokens.num_embeddings
        if max(ids, default=0) >= size:
            raise InputError(
                f"text encoder {name!r} has {size} tokens, but its tokenizer gives id {max(ids)}; they do not belong "
                "together: copy both again"
            )
        return ids


class EmbeddingCache:
    """Token ids -> float32 embeddings [L, D] on the CPU.

    Memory is bounded: the entries used longest ago leave first. The directory holds a file a text; name it after the
    identity of the encoder, so that encoders never mix and several runs can share it.
    """

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.memory_bytes = 256 * 2**20
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._used_bytes = 0

    def get(self, ids: Sequence[int]) -> Tensor | None:
        """The embeddings [L, D] stored for these ids, or None."""
        key = _key(ids)
        if key in self._entries:
            self._entries.move_to_end(key)
        elif self.directory is not None:
            # absent, damaged or on a faulty disk: it is computed again and written over
            with suppress(OSError, RuntimeError, KeyError, SafetensorError):
                self._remember(key, load_file(self.directory / f"{key}.safetensors")["embedding"])
        return self._entries.get(key)

    def put(self, ids: Sequence[int], embedding: Tensor) -> None:
        """Store the embeddings [L, D] of these ids."""
        key, embedding = _key(ids), embedding.cpu().contiguous()
        self._remember(key, embedding)
        if self.directory is not None:
            checkpoint.write_tensors(self.directory / f"{key}.safetensors", {"embedding": embedding})

    def _remember(self, key: str, embedding: Tensor) -> None:  # [L, D]
        self._entries[key] = embedding
        self._used_bytes += embedding.nbytes
        while self._used_bytes > self.memory_bytes and len(self._entries) > 1:
            self._used_bytes -= self._entries.popitem(last=False)[1].nbytes


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:32]


@dataclass
class FrozenEncoder:
    """A T5 that is not trained. It is no module: it has no weights to train, and none in a checkpoint.

    width: of its output, read beforehand. open: reads it. cache_dir: keeps states between runs, in a folder for each
    encoder.
    """

    width: int
    open: Callable[[], TextEncoder]
    cache_dir: str | None = None
    cache: EmbeddingCache = field(default_factory=EmbeddingCache)

    @cached_property
    def encoder(self) -> TextEncoder:
        """Stack and tokenizer; they are opened for it."""
        found = self.open()
        found.stack.eval().requires_grad_(False)
        if self.cache_dir is not None:
            self.cache.directory = Path(self.cache_dir) / checkpoint.identity(found.stack.state_dict())
        return found

    @torch.no_grad()
    def states(self, ids: Sequence[int], padding: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Token ids of one text -> its states [L + padding, D]; those of so many masked padding tokens come last.

        Each text goes through by itself, so that its states do not depend on the texts beside it.
        """
        row = [*ids, *[PAD_ID] * padding]
        states = self.cache.get(row)
        if states is None:
            inputs = torch.tensor([row], device=device)  # [1, L + padding]
            mask = torch.arange(len(row), device=device)[None] < len(ids) if padding else None
            states = self.encoder.stack.to(device)(inputs, mask)[0]
            self.cache.put(row, states)
        return states.to(device)


def named(
    name_or_directory: str, width: int | None = None, where: str | Path = "", now: bool = False
) -> FrozenEncoder:
    """A T5 of a directory or of the hub.

    width: what `where` needs, compared once the encoder is opened; None takes the encoder's own. now: read its
    configuration and compare now, as without a width.
    """
    if now or width is None:
        with opening(f"text encoder {name_or_directory!r}", ADVICE):
            found = shape_of(here(name_or_directory, LAYOUTS)).d_model
        width = found if width is None else width
        check_width(found, width, name_or_directory, where)

    def open_() -> TextEncoder:
        with opening(f"text encoder {name_or_directory!r}", ADVICE):
            directory = here(name_or_directory, LAYOUTS)
            tokenizer = PretrainedTokenizer(directory)
            found = stack_tensors(_weights(directory))
            stack = empty_stack(shape_of(directory), len(found))
            needed = {name: found[name] for name in stack.state_dict() if name in found}
            fill(stack, needed, str, directory)
        check_width(stack.config.d_model, width, name_or_directory, where)
        return TextEncoder(stack, tokenizer)

    return FrozenEncoder(width, open_)


def carried(
    shape: Shape, tensors: Mapping[str, Tensor], tokenizer: str | None, where: str | Path
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
        stack = empty_stack(shape, len(tensors))
        fill(stack, tensors, str, where)
        return TextEncoder(stack, open_tokenizer(tokenizer))

    return FrozenEncoder(shape.d_model, open_)


def shape_of(directory: Path) -> Shape:
    """The shape in a directory's config.json, see `read_shape`."""
    return read_shape(writing.read_json(directory / "config.json"), directory)


NAMES = {"t5": "T5", "t5gemma": "T5Gemma"}  # of the architectures that are read


def read_shape(found: Any, where: str | Path) -> Shape:
    """The shape of a T5 or T5Gemma from what a config.json holds; what does not fit is an InputError."""
    kind = found.get("model_type") if isinstance(found, Mapping) else None
    if kind not in NAMES:
        raise InputError(f"{where}: text encoder has model_type {short(kind)}; 't5' and 't5gemma' are read")
    try:
        if kind == "t5gemma":
            return read_gemma(found)
        values = {
            field.name: found[field.name] for field in dataclasses.fields(T5Shape) if field.name in found
        }
        return build(T5Shape, values)
    except InputError as error:
        raise InputError(
            f"{where}: the text encoder's configuration is not that of a {NAMES[kind]}: {error}"
        ) from None


def new_stack(shape: Shape) -> T5Stack | GemmaStack:
    """An encoder stack with new weights."""
    return GemmaStack(shape) if isinstance(shape, GemmaShape) else T5Stack(shape)


def empty_stack(shape: Shape, num_tensors: int | None = None) -> T5Stack | GemmaStack:
    """An encoder stack without memory for its weights; num_tensors as in `tensors.empty`."""
    return empty(lambda: new_stack(shape), "the text encoder's configuration", num_tensors)


def stack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an encoder, alone or with a decoder, by the names of its encoder stack.

    The embedding of T5, which is also that of the decoder, has either name or both.
    """
    stack = under(tensors, STACK) or under(tensors, f"model.{STACK}")  # the second: of a whole T5Gemma
    if SHARED in tensors:
        stack.setdefault("embed_tokens.weight", tensors[SHARED])
    return stack


def open_tokenizer(name_or_directory: str) -> PretrainedTokenizer:
    """A tokenizer of a directory or the hub; a missing or damaged one is an InputError."""
    with opening(f"tokenizer {name_or_directory!r}", ADVICE):
        return PretrainedTokenizer(here(name_or_directory, TOKENIZERS))


def here(name_or_directory: str, layouts: Sequence[hub.Layout]) -> Path:
    """A directory as it is, a hub id or a released name as the directory that it is fetched to."""
    if Path(name_or_directory).is_dir():
        return Path(name_or_directory)
    name = HUB_IDS.get(name_or_directory, name_or_directory)
    if not hub.is_hub_id(name):
        raise InputError("it is no directory and no hub id")
    return hub.fetch(name, layouts)


def _weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a T5 by their names in its files, whichever of the `LAYOUTS` it has."""
    pickled = [path.name for path in sorted(directory.glob("pytorch_model*.bin"))]
    first = checkpoint.weights_file(directory, "model.safetensors", "model.safetensors.index.json", *pickled)
    files = [directory / name for name in pickled] if first.name in pickled else [first]
    return {name: tensor for file in files for name, tensor in checkpoint.read_weights(file).items()}


def check_width(found: int, needed: int, name: str, where: str | Path) -> None:
    """Refuse an encoder whose output does not fit the projection that a model was trained with."""
    if found != needed:
        raise InputError(
            f"text encoder {name!r} gives features {found} wide, but {where or 'the model'} projects from {needed}; "
            "give the T5 that it was trained with"
        )
