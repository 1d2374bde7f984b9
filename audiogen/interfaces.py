"""READ FIRST: the shape legend, the boundaries between the parts, and the small results that cross them.

Shape legend (one letter, one meaning, everywhere):
    B batch, C audio channels, N audio samples, T codec or latent frames, K codebooks, S pattern steps,
    V codebook size, L text positions, D width, E size of a global vector, M mel bins or latent height.

Data flow:
    files -> audio [B, C, N] -> codec.encode -> codes [B, K, T] -> interleave -> steps [B, K, S] -> lm -> logits
    [B, K, S, V] -> sample -> steps -> deinterleave -> codes -> codec.decode -> audio; text enters the language
    model as a `Condition` through cross-attention.

Audio is float32 in [-1, 1]; its sample rate is an attribute of the model, never a global. Nobody inherits from
the Protocols: they are contracts of shape, checked by the type checker and by the tests.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CodecOutput:
    """What a codec's training forward returns.

    audio: reconstruction [B, C, N], as long as the input; None where it was not asked for.
    codes: int64 [B, K, T]; entries of codebooks an item did not use are still the codes it would have had.
    commitment_loss: scalar, mean over the codebooks each item used.
    latents: the encoder's output before quantisation [B, D, T].
    spectral_loss: scalar, the decoder's error where it works on spectra instead of samples; 0 for one that does not.
    spectra, target_spectra: those spectra as decoded and of the input [B, C, T, F]; None for one that does not.
    """

    audio: Tensor | None
    codes: Tensor
    commitment_loss: Tensor
    latents: Tensor
    spectral_loss: Tensor
    spectra: Tensor | None = None
    target_spectra: Tensor | None = None


class Codec(Protocol):
    """Audio to tokens and back. Bandwidth is an argument (`num_codebooks`), not a mode."""

    sample_rate: int
    channels: int
    hop_length: int
    num_codebooks: int
    codebook_size: int

    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        """[B, C, N] -> int64 codes [B, K, T] with T = ceil(N / hop_length)."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, K, T] -> audio [B, C, T * hop_length]; fewer codebooks than the codec has are allowed."""
        ...


@dataclass(frozen=True)
class Condition:
    """Text (or another condition) as the language model and the denoisers see it.

    tokens: [B, L, D], zero where the mask is False.
    mask: bool [B, L], True = may be attended to; every row has at least one True.
    vector: optional global embedding [B, E].
    """

    tokens: Tensor
    mask: Tensor
    vector: Tensor | None = None


class TextConditioner(Protocol):
    """`list[str or None] -> Condition`. None is no text: zero tokens, one valid position."""

    width: int

    def __call__(self, texts: Sequence[str | None]) -> Condition: ...


@dataclass(frozen=True)
class Batch:
    """What the loader yields.

    audio: float32 [B, C, N], or None where `codes` is given. Clips shorter than N are zero-padded at the end.
    codes: int64 [B, K, T] from token shards, or None.
    lengths: int64 [B], valid samples (or frames, for codes) of each row.
    captions: one a row; None is a clip without one.
    keys: one a row, naming the clip (path or "synth:index") for messages.
    """

    audio: Tensor | None
    codes: Tensor | None
    lengths: Tensor
    captions: list[str | None]
    keys: list[str]


class Loader(Protocol):
    """Batches in an order that is a function of (seed, epoch, step, rank): resume needs one integer."""

    def batches(self, start_step: int = 0) -> abc.Generator[Batch, None, None]:
        """Batches from a step on, for ever; closing the generator ends what prefetches them."""
        ...


class Task(Protocol):
    """What `audiogen.train.loop.fit` trains: it owns the model, the losses and the optimisers."""

    def step(self, batch: Batch, step: int) -> Mapping[str, float]:
        """One optimiser step (with accumulation inside); returns scalars named as paths, e.g. `train/loss`."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Validation scalars, e.g. `valid/mel`; `valid/loss` decides which checkpoint is best (lower)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, as nested dicts and lists of tensors and plain scalars."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Generator(Protocol):
    """Text to audio, whatever the family. Same seed, same audio: alone, in a batch, whatever the order."""

    sample_rate: int
    channels: int
    max_duration_s: float

    @property
    def family(self) -> str:
        """Such as "token LM"."""
        ...

    @property
    def latent_rate(self) -> str:
        """What is generated, such as "50 Hz x 4"."""
        ...

    @property
    def num_parameters(self) -> int:
        """Of all that runs from text to audio."""
        ...

    def generate(
        self, texts: Sequence[str | None], duration_s: float, *, guidance: float, seed: int
    ) -> Tensor:
        """-> audio [B, C, N]; row b uses seed + b."""
        ...

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] through the codec or autoencoder alone -> [B, C, N]: the best the generator could do."""
        ...

    def num_evaluations(self, duration_s: float, guidance: float) -> int:
        """Model evaluations for one clip; a guided step counts as two."""
        ...
