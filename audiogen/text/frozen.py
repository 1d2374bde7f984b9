"""A frozen T5 that is opened with the first text, and the cache of its states, in memory and, if asked, on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from audiogen.files import checkpoint
from audiogen.text.encoder import FrozenEncoder, TextEncoder
from audiogen.text.vocabulary import PAD_ID


class FrozenText:
    """The states of a frozen T5. It is no module: it has no weights to train, and none in a checkpoint.

    Each text goes through by itself, so that its states do not depend on the texts beside it.
    """

    def __init__(self, source: FrozenEncoder, cache_dir: str | None = None):
        """cache_dir: keeps states between runs, in a folder for each encoder."""
        self.width = source.width
        self.cache = EmbeddingCache()
        self._source, self._cache_dir = source, cache_dir
        self._encoder: TextEncoder | None = None

    def encoder(self) -> TextEncoder:
        """Stack and tokenizer, opened if they are not yet."""
        if self._encoder is None:
            found = self._source.open()
            found.stack.eval().requires_grad_(False)
            if self._cache_dir is not None:
                name = checkpoint.identity(found.stack.state_dict())
                self.cache.directory = Path(self._cache_dir) / name
            self._encoder = found
        return self._encoder

    @torch.no_grad()
    def states(self, ids: Sequence[int], padding: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Token ids of one text -> its states [L + padding, D]; those of so many masked padding tokens come last."""
        row = [*ids, *[PAD_ID] * padding]
        states = self.cache.get(row)
        if states is None:
            mask = torch.arange(len(row), device=device) < len(ids)
            inputs = torch.tensor([row], device=device)
            states = self.encoder().stack.to(device)(inputs, mask[None] if padding else None)[0]
            self.cache.put(row, states)
        return states.to(device)


class EmbeddingCache:
    """Token ids -> float32 embeddings [L, D] on the CPU.

    Memory is bounded: the entries used longest ago leave first. The directory holds a file a text;
    name it after the identity of the encoder, so that encoders never mix and several runs can share it.
    """

    def __init__(self, directory: Path | None = None, memory_bytes: int = 256 * 2**20):
        self.directory = directory
        self.memory_bytes = memory_bytes
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._used_bytes = 0

    def get(self, ids: Sequence[int]) -> Tensor | None:
        """The embeddings stored for these ids, or None."""
        key = _key(ids)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        if self.directory is None:
            return None
        try:
            embedding = safetensors.torch.load_file(self.directory / f"{key}.safetensors")["embedding"]
        except (FileNotFoundError, KeyError, safetensors.SafetensorError):
            return None  # absent or damaged: it is computed again and written over
        self._remember(key, embedding)
        return embedding

    def put(self, ids: Sequence[int], embedding: Tensor) -> None:
        """Store the embeddings [L, D] of these ids."""
        key = _key(ids)
        embedding = embedding.detach().cpu().contiguous()
        self._remember(key, embedding)
        if self.directory is not None:
            checkpoint.write_tensors(self.directory / f"{key}.safetensors", {"embedding": embedding})

    def _remember(self, key: str, embedding: Tensor) -> None:
        if key not in self._entries:
            self._entries[key] = embedding
            self._used_bytes += embedding.nbytes
        while self._used_bytes > self.memory_bytes and len(self._entries) > 1:
            self._used_bytes -= self._entries.popitem(last=False)[1].nbytes


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:32]
