"""Embedders: what turns sound into the vectors and label probabilities that metrics compare.

`load_embedder` opens one by a spec, `embed_clips` runs one over clips. The bundled `tagger_tiny`, `logmel` and the
codec's encoder need nothing; CLAP and AST come from the Hugging Face hub or a directory, PANNs and VGGish from a
local file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.audio import resample
from audiogen.codec.model import Codec
from audiogen.errors import InputError, opening
from audiogen.evaluate import EMBEDDERS, judge
from audiogen.evaluate.published import load_cnn14, load_vggish
from audiogen.files import checkpoint, hub
from audiogen.models.build import load_codec
from audiogen.models.own import load_tagger
from audiogen.text.clap import LAYOUTS, Clap, cut_windows, open_model

LOGMEL = "logmel"
GROUP = "esc10"  # the tagger's labels that probabilities are over: one of them fits each clip
PCA = ",pca="
AST_FRAME, AST_HOP = 400, 160  # samples of a frame and between frames, whatever the rate

Device = str | torch.device


class Embedded(NamedTuple):
    """embeddings: float32 [n, D]. probabilities: float32 [n, labels], each row sums to 1, or None without labels."""

    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


@dataclass
class Embedder:
    """A network that embeds sounds. A clip's result does not depend on the clips beside it (but for rounding).

    name: the spec it was opened by, without folders. identity: of its weights, 16 hex digits. sample_rate: Hz. forward:
    mono audio [B, N] -> embeddings [B, D] and probabilities [B, labels] or None. labels: of the probabilities' columns;
    empty where the file names none (PANNs) or there are no probabilities. text: texts -> vectors [n, D] of the same
    space, if the network has such.
    """

    name: str
    identity: str
    sample_rate: int
    model: Any
    forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    device: Device = "cpu"
    labels: list[str] = field(default_factory=list)
    text: Callable[[Sequence[str]], Tensor] | None = None

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Embedded:
        """Audio [B, C, N] at `sample_rate` of any channels, which are averaged, and any length."""
        embedding, probabilities = self.forward(audio.float().mean(1).to(self.device))
        return Embedded(to_numpy(embedding), None if probabilities is None else to_numpy(probabilities))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 [n, D]."""
        if self.text is None:
            raise InputError(f"embedder {self.name} does not read text; use clap:HUB_ID_OR_DIR")
        if not texts:
            raise InputError(f"there are no texts for embedder {self.name}; give at least one")
        return to_numpy(self.text(texts))


def load_embedder(spec: str, device: Device = "cpu") -> Embedder:
    """Open an embedder by its spec (`EMBEDDERS`). Raises InputError for an unknown, missing or damaged one."""
    kind, _, where = spec.partition(":")
    if spec == "tagger_tiny":
        kind, where = "tagger", spec
    elif spec == LOGMEL:
        kind, where = spec, spec
    if kind not in LOADERS or not where:
        raise InputError(f"no embedder is called {spec!r}; there are {EMBEDDERS}")
    return LOADERS[kind](where, device)


def _tagger(where: str, device: Device) -> Embedder:
    """The embedding is the tagger's; the probabilities are a softmax over the labels of one group."""
    tagger = load_tagger(where, device)
    columns = tagger.group(GROUP)

    def forward(audio: Tensor) -> tuple[Tensor, Tensor]:
        output = tagger(audio)
        return output.embedding, output.logits[:, columns].softmax(-1)

    labels = [label.partition("/")[2] for label in tagger.labels[columns]]
    return Embedder(tagger.name, tagger.identity, tagger.sample_rate, tagger, forward, device, labels)


def _logmel(where: str, device: Device) -> Embedder:
    """Statistics of log-mel spectra: no network. Its labels are fitted to an evaluation's reference (`judge`)."""
    identity = checkpoint.identity({"spreads": torch.tensor(list(judge.SPREADS.values()))})
    return Embedder(where, identity, judge.RATE, None, lambda audio: (judge.statistics(audio), None), device)


def _codec(where: str, device: Device) -> Embedder:
    """Mean and standard deviation over time of the latents before quantisation: D is twice the codec's latent_dim."""
    codec = load_codec(where, device)
    if not isinstance(codec, Codec) or codec.config.dual_mono:
        raise InputError(f"codec {codec.name} cannot be an embedder: a sound is not one sequence of latents")

    def forward(audio: Tensor) -> tuple[Tensor, None]:
        latents = codec.encoder(audio[:, None].expand(-1, codec.channels, -1))  # [B, latent_dim, T]
        return torch.cat([latents.mean(-1), latents.std(-1, correction=0)], -1), None

    return Embedder(f"codec:{codec.name}", codec.identity, codec.sample_rate, codec, forward, device)


def _panns(where: str, device: Device) -> Embedder:
    """The embedding is that of PANNs' own inference. The probabilities are a softmax over the logits.

    The model was trained with a sigmoid a label; KL and the inception score want a distribution, and what papers
    call KL with PANNs is mostly this softmax.
    """
    model = load_cnn14(where).to(device)

    def forward(audio: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logits = model(audio)
        return embedding, logits.softmax(-1)

    return Embedder(f"panns:{Path(where).name}", _identity(model), model.sample_rate, model, forward, device)


def _vggish(where: str, device: Device) -> Embedder:
    """The mean over a clip's examples of 0.96 s; for figures over single examples, as in the first FAD, use `model`."""
    path, _, pca_path = where.partition(PCA)
    model = load_vggish(path, pca_path or None).to(device)

    def forward(audio: Tensor) -> tuple[Tensor, None]:
        return model(audio).mean(1), None

    name = f"vggish:{Path(path).name}" + (f"{PCA}{Path(pca_path).name}" if pca_path else "")
    return Embedder(name, _identity(model), model.sample_rate, model, forward, device)


def _clap(where: str, device: Device) -> Embedder:
    """CLAP (arXiv:2211.06687): unit vectors of sounds and texts in one space; no labels.

    A sound longer than the window (10 s) is the direction of the mean of its windows' vectors: transformers' own
    feature extractor takes a random part, which would make figures depend on chance.
    """
    clap = Clap(where, device=device)
    rate, model = clap.sample_rate, clap.parts.model

    def forward(audio: Tensor) -> tuple[Tensor, None]:
        return clap.embed_audio(audio[:, None], rate, windows="all"), None

    text = partial(clap.embed_text, max_tokens=model.config.text_config.max_position_embeddings)
    return Embedder(f"clap:{_short(where)}", _identity(model), rate, model, forward, device, text=text)


def _ast(where: str, device: Device) -> Embedder:
    """AST (arXiv:2104.01778), fine-tuned to classify: the pooled output, and a softmax over the labels.

    AudioSet's own training puts a sigmoid on each label; KL and the inception score want a distribution, which the
    softmax is, and both order the labels alike. A sound beyond the window (10.24 s) is the mean of its windows, in
    embedding and probabilities.
    """
    from transformers import ASTFeatureExtractor, ASTForAudioClassification  # here: it takes seconds

    advice = "give a directory as transformers writes it, with safetensors weights, or a hub id"
    with opening(f"AST model {where!r}", advice):
        path = hub.fetch(where, LAYOUTS)
        model = open_model({"audio-spectrogram-transformer": ASTForAudioClassification}, path)
        extractor = ASTFeatureExtractor.from_pretrained(path)
    model.to(device)
    rate, config = extractor.sampling_rate, model.config
    window = AST_FRAME + AST_HOP * (extractor.max_length - 1)  # samples

    def forward(audio: Tensor) -> tuple[Tensor, Tensor]:
        audio = F.pad(audio, (0, max(0, AST_FRAME - audio.shape[-1])))  # one frame at least
        pieces = [piece.cpu().numpy() for sound in audio for piece in cut_windows(sound, window)]
        values = extractor(pieces, sampling_rate=rate, return_tensors="pt")["input_values"].to(device)
        pooled = model.audio_spectrogram_transformer(values).pooler_output  # [B * windows, D]
        probabilities = model.classifier(pooled).softmax(-1)
        mean = partial(reduce, pattern="(b w) d -> b d", reduction="mean", b=len(audio))
        return mean(pooled), mean(probabilities)

    labels = [config.id2label[number] for number in range(config.num_labels)]
    return Embedder(f"ast:{_short(where)}", _identity(model), rate, model, forward, device, labels)


LOADERS = {
    "tagger": _tagger,
    LOGMEL: _logmel,
    "codec": _codec,
    "panns": _panns,
    "vggish": _vggish,
    "clap": _clap,
    "ast": _ast,
}


def _identity(model: nn.Module) -> str:
    return checkpoint.identity(model.state_dict())


def _short(name_or_dir: str) -> str:
    """A hub id as it is; of a directory only its name."""
    return Path(name_or_dir).resolve().name if Path(name_or_dir).is_dir() else name_or_dir


def embed_clips(embedder: Embedder, clips: Iterable[Tensor], sample_rate: int, batch: int = 8) -> Embedded:
    """Clips [C, N] at one sample rate -> their embeddings and probabilities, in order.

    Clips of equal length that follow one another share a batch: none is padded for the sake of another, so a clip's
    result is its own. Raises InputError naming the index of a clip that is empty or not finite.
    """

    def prepared() -> Iterator[Tensor]:
        for index, clip in enumerate(clips):
            if clip.dim() != 2 or clip.numel() == 0:
                raise InputError(f"clip {index} has shape {list(clip.shape)}; [C, N], neither 0, is allowed")
            if not clip.isfinite().all():
                raise InputError(f"clip {index} has samples that are not finite; leave it out")
            yield resample(clip.float().mean(0, keepdim=True), sample_rate, embedder.sample_rate)

    parts = []
    for _, alike in itertools.groupby(prepared(), lambda clip: clip.shape[-1]):
        while rows := list(itertools.islice(alike, batch)):
            parts.append(embedder.embed(torch.stack(rows)))
    if not parts:
        raise InputError(f"there are no clips for embedder {embedder.name}; give at least one")
    return join(parts)


def join(parts: Sequence[Embedded]) -> Embedded:
    """Sets of clips of one embedder, one after another."""
    embeddings, probabilities = zip(*parts, strict=True)
    return Embedded(
        np.concatenate(embeddings), None if probabilities[0] is None else np.concatenate(probabilities)
    )


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """A float32 array on the CPU."""
    return tensor.float().cpu().numpy()
