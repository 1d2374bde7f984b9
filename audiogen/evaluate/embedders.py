"""Embedders: what turns sound into the vectors and label probabilities that metrics compare.

`load_embedder` opens one by a spec, `embed_clips` runs one over clips. The bundled `tagger_tiny` and the codec's
encoder need nothing; CLAP and AST come from the Hugging Face hub or a directory, PANNs and VGGish from a local file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiogen.audio import resample
from audiogen.codec.model import Codec
from audiogen.errors import InputError
from audiogen.evaluate.panns import load_cnn14
from audiogen.evaluate.vggish import load_vggish
from audiogen.files import checkpoint
from audiogen.models.codec_pretrained import load_codec
from audiogen.tagger.pretrained import load_tagger

SPECS = (
    "tagger_tiny, tagger:NAME_OR_DIR, codec:NAME_OR_DIR, clap:HUB_ID_OR_DIR, ast:HUB_ID_OR_DIR, panns:FILE, "
    "vggish:FILE or vggish:FILE,pca=FILE"
)
GROUP = "esc10"  # the tagger's labels that probabilities are over: one of them fits each clip
PCA = ",pca="


class Embedded(NamedTuple):
    """embeddings: float32 [n, D]. probabilities: float32 [n, labels], each row sums to 1, or None without labels."""

    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


class Embedder(Protocol):
    """What every embedder is. A clip's result does not depend on the clips beside it (but for rounding).

    name: the spec it was opened by, without folders. identity: 16 hex digits over its weights. sample_rate: Hz.
    labels: of the probabilities' columns; empty where the file names none (PANNs) or there are no probabilities.
    reads_text: whether `embed_text` gives vectors of the same space; it is an InputError elsewhere.
    """

    name: str
    identity: str
    sample_rate: int
    labels: list[str]
    reads_text: ClassVar[bool]

    def embed(self, audio: Tensor) -> Embedded:
        """Audio [B, C, N] at `sample_rate` of any channels, which are averaged, and any length."""
        ...

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 [n, D]."""
        ...


@dataclass
class AudioEmbedder:
    """An embedder without text. listen: mono audio [B, N] -> embedding [B, D] and probabilities [B, labels] or None.

    model: what is inside; of `tagger_tiny` the `Tagger`, whose frames judge the order of events.
    """

    name: str
    identity: str
    sample_rate: int
    model: Any
    listen: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    labels: list[str] = field(default_factory=list)
    device: str | torch.device = "cpu"
    reads_text: ClassVar[bool] = False

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Embedded:
        embedding, probabilities = self.listen(mono(audio).to(self.device))
        return Embedded(to_numpy(embedding), None if probabilities is None else to_numpy(probabilities))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise InputError(f"embedder {self.name} does not read text; use clap:HUB_ID_OR_DIR for a text score")


def load_embedder(spec: str, device: str | torch.device = "cpu") -> Embedder:
    """Open an embedder by its spec (`SPECS`). Raises InputError for an unknown, missing or damaged one."""
    kind, _, where = spec.partition(":")
    if spec == "tagger_tiny":
        kind, where = "tagger", spec
    loaders: dict[str, Callable[[str, str | torch.device], Embedder]] = {
        "tagger": _tagger,
        "codec": _codec,
        "panns": _panns,
        "vggish": _vggish,
        "clap": _clap,
        "ast": _ast,
    }
    if kind not in loaders or not where:
        raise InputError(f"no embedder is called {spec!r}; there are {SPECS}")
    return loaders[kind](where, device)


def _tagger(where: str, device: str | torch.device) -> Embedder:
    """The embedding is the tagger's; the probabilities are a softmax over the labels of one group."""
    tagger = load_tagger(where, device)
    columns = tagger.group(GROUP)

    def listen(audio: Tensor) -> tuple[Tensor, Tensor]:
        output = tagger(audio)
        return output.embedding, output.logits[:, columns].softmax(-1)

    labels = [label.partition("/")[2] for label in tagger.labels[columns]]
    return AudioEmbedder(tagger.name, tagger.identity, tagger.sample_rate, tagger, listen, labels, device)


def _codec(where: str, device: str | torch.device) -> Embedder:
    """Mean and standard deviation over time of the latents before quantisation: D is twice the codec's latent_dim."""
    codec = load_codec(where, device)
    if not isinstance(codec, Codec) or codec.segmented or codec.config.dual_mono:
        raise InputError(
            f"codec {codec.name} has no one sequence of latents of a whole sound: it cannot be an embedder"
        )

    def listen(audio: Tensor) -> tuple[Tensor, None]:
        latents = codec.encoder(audio[:, None].expand(-1, codec.channels, -1))  # [B, latent_dim, T]
        return torch.cat([latents.mean(-1), latents.std(-1, correction=0)], -1), None

    return AudioEmbedder(
        f"codec:{codec.name}", codec.identity, codec.sample_rate, codec, listen, device=device
    )


def _panns(where: str, device: str | torch.device) -> Embedder:
    """The embedding is that of PANNs' own inference. The probabilities are a softmax over the logits.

    The model was trained with a sigmoid a label; KL and the inception score want a distribution, and what papers
    call KL with PANNs is mostly this softmax.
    """
    model = load_cnn14(where)
    digest = checkpoint.identity(model.state_dict())
    model.to(device)

    def listen(audio: Tensor) -> tuple[Tensor, Tensor]:
        output = model(audio)
        return output.embedding, output.logits.softmax(-1)

    return AudioEmbedder(f"panns:{Path(where).name}", digest, model.sample_rate, model, listen, device=device)


def _vggish(where: str, device: str | torch.device) -> Embedder:
    """The mean over a clip's examples of 0.96 s; for figures over single examples, as in the first FAD, use `model`."""
    path, _, pca_path = where.partition(PCA)
    model = load_vggish(path, pca_path or None)
    digest = checkpoint.identity(model.state_dict())
    model.to(device)

    def listen(audio: Tensor) -> tuple[Tensor, None]:
        return model(audio).mean(1), None

    name = f"vggish:{Path(path).name}" + (f"{PCA}{Path(pca_path).name}" if pca_path else "")
    return AudioEmbedder(name, digest, model.sample_rate, model, listen, device=device)


def _clap(where: str, device: str | torch.device) -> Embedder:
    from audiogen.evaluate.hub import ClapEmbedder  # here: importing transformers' models takes seconds

    return ClapEmbedder(where, device)


def _ast(where: str, device: str | torch.device) -> Embedder:
    from audiogen.evaluate.hub import AstEmbedder  # here: importing transformers' models takes seconds

    return AstEmbedder(where, device)


def embed_clips(embedder: Embedder, clips: Iterable[Tensor], sample_rate: int, batch: int = 8) -> Embedded:
    """Clips [C, N] at one sample rate -> their embeddings and probabilities, in order.

    Clips of equal length that follow one another share a batch: none is padded for the sake of another, so a clip's
    result is its own. Raises InputError naming the index of a clip that is empty or not finite.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    parts = [embedder.embed(audio) for audio in _batches(clips, sample_rate, embedder.sample_rate, batch)]
    if not parts:
        raise InputError(f"there are no clips for embedder {embedder.name}; give at least one")
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return Embedded(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate(probabilities) if probabilities else None,
    )


def _batches(clips: Iterable[Tensor], from_rate: int, to_rate: int, batch: int) -> Iterator[Tensor]:
    """Checked clips, resampled, averaged to mono -> [B, 1, N] of at most `batch` neighbours of one length."""

    def prepared() -> Iterator[Tensor]:
        for index, clip in enumerate(clips):
            if clip.dim() != 2 or clip.numel() == 0:
                raise InputError(
                    f"clip {index} has shape {list(clip.shape)}; [channels, samples], at least one of each, is allowed"
                )
            if not clip.isfinite().all():
                raise InputError(
                    f"clip {index} has samples that are not finite (NaN or infinity); leave it out"
                )
            yield resample(clip.float().mean(0, keepdim=True), from_rate, to_rate)

    for _, alike in itertools.groupby(prepared(), lambda clip: clip.shape[-1]):
        while rows := list(itertools.islice(alike, batch)):
            yield torch.stack(rows)


def mono(audio: Tensor) -> Tensor:
    """Audio [B, C, N] -> mean over the channels [B, N], float32."""
    if audio.dim() != 3 or 0 in audio.shape:
        raise InputError(f"audio has shape {list(audio.shape)}; [B, C, N], at least one of each, is allowed")
    return audio.float().mean(1)


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """A float32 array on the CPU."""
    return tensor.float().cpu().numpy()


def windows(audio: Tensor, length: int) -> Tensor:
    """Audio [B, N] -> [B, windows, min(N, length)]: as few as cover all, spread evenly from the start to the end."""
    num_samples = audio.shape[-1]
    if num_samples <= length:
        return audio[:, None]
    count = math.ceil(num_samples / length)
    starts = [round(number * (num_samples - length) / (count - 1)) for number in range(count)]
    return torch.stack([audio[:, start : start + length] for start in starts], 1)
