"""Embeddings of a frozen text encoder, kept in memory and, if asked, in a directory."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from audiogen.files import checkpoint


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
