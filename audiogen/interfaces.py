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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


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


class Segment(NamedTuple):
    """What a codec makes of one piece of a sound; a codec that works on the whole makes one.

    codes: int64 [B, K, t]. scale: float32 [B], the loudness that the piece was divided by; None where it was not.
    """

    codes: Tensor
    scale: Tensor | None = None


class Codec(Protocol):
    """Audio to tokens and back. Bandwidth is an argument (`num_codebooks`), not a mode.

    name: of its directory or bundled model. identity: hash of what gives its tokens their meaning. frame_rate: Hz.
    causal: it never looks ahead. lookahead_frames: how many must follow a frame before all of its audio is determined,
    when it decodes block by block (`codec/stream.py`). context_frames: what a window must see on both sides of its body
    to give what the whole gives. segmented: it works on pieces of `segment_samples` that begin every `stride_samples`,
    by `encode_segments` and `decode_segments` alone; its tokens are no one sequence, so no language model learns them.
    normalised: each segment is divided by its loudness, which travels with its codes as `Segment.scale`.
    """

    sample_rate: int
    channels: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    name: str
    identity: str

    @property
    def frame_rate(self) -> float: ...

    @property
    def causal(self) -> bool: ...

    @property
    def segmented(self) -> bool: ...

    @property
    def segment_samples(self) -> int | None: ...

    @property
    def stride_samples(self) -> int | None: ...

    @property
    def normalised(self) -> bool: ...

    @property
    def context_frames(self) -> int: ...

    @property
    def lookahead_frames(self) -> int: ...

    def bandwidth_kbps(self, num_codebooks: int) -> float:
        """Bits a second of that many codebooks, stored without entropy coding, in kbit/s."""
        ...

    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        """[B, C, N] -> int64 codes [B, K, T] with T = ceil(N / hop_length)."""
        ...

    def decode(self, codes: Tensor, first_frame: int = 0) -> Tensor:
        """int64 [B, K, T] -> audio [B, C, T * hop_length]; fewer codebooks than the codec has are allowed.

        first_frame: where in a longer sound the codes begin, for windows of it.
        """
        ...

    def segment_frames(self, num_samples: int) -> list[int]:
        """Frames of each segment of a sound of that many samples; [T] for a codec that is not segmented."""
        ...

    def encode_segments(self, audio: Tensor, num_codebooks: int | None = None) -> list[Segment]:
        """[B, C, N] -> the segments in their order."""
        ...

    def decode_segments(self, segments: Sequence[Segment], num_samples: int) -> Tensor:
        """-> audio [B, C, num_samples]; overlaps are cross-faded."""
        ...

    def parameters(self, recurse: bool = True) -> abc.Iterator[nn.Parameter]:
        """Its weights, frozen; their device is where audio and codes must be."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its weights by name."""
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
    """Text to audio, whatever the family. Same seed, same audio: alone, in a batch, whatever the order.

    family: such as "token LM". latent_rate: what is generated, such as "50 Hz x 4". num_parameters: of all that runs
    from text to audio. notes: what was chosen where the files leave a choice, a line each.
    """

    sample_rate: int
    channels: int
    max_duration_s: float

    @property
    def family(self) -> str: ...

    @property
    def latent_rate(self) -> str: ...

    @property
    def num_parameters(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def identity(self) -> str:
        """16 hex digits that change with any weight and with the number type."""
        ...

    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float,
        *,
        guidance: float,
        seed: int,
        steps: int | None = None,
    ) -> Tensor:
        """-> audio [B, C, N]; row b uses seed + b. steps: of a diffusion sampler, None for the generator's own."""
        ...

    def steps_at_most(self, steps: int | None) -> int | None:
        """The largest number of steps up to `steps` that it can run, its own for None; None if it has no steps."""
        ...

    def num_evaluations(self, duration_s: float, guidance: float, steps: int | None = None) -> int:
        """Model evaluations for one clip; a guided step counts as two."""
        ...

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] through the codec or autoencoder alone -> [B, C, N]: the best the generator could do."""
        ...
