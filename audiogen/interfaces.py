"""READ FIRST: the shape legend, the boundaries between the parts, and the small results that cross them.

Shape legend (one letter, one meaning, everywhere):
    B batch, C audio channels, N audio samples, T codec or latent frames, K codebooks, S pattern steps,
    V codebook size, L text positions, D width, E size of a global vector, M mel bins or latent height.

Data flow:
    files -> audio [B, C, N] -> codec.encode -> codes [B, K, T] -> interleave -> steps [B, K, S] -> lm -> logits
    [B, K, S, V] -> sample -> steps -> deinterleave -> codes -> codec.decode -> audio; text enters the language
    model as a `Condition`, through cross-attention or, with a backbone, before the steps in its sequence.

Audio is float32 in [-1, 1]; its sample rate is an attribute of the model, never a global. Nobody inherits from
the Protocols: they are contracts of shape, checked by the type checker and by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from audiogen.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from audiogen.provenance import Provenance

MAX_RESAMPLE = 100
LARGEST_SAMPLE = 2.0**40  # full scale is 1; files may hold 2^32, which resampling may exceed
Progress = Callable[[float], None]  # gets the share of the work that is done, in [0, 1]


def check_samples(audio: Tensor, what: str) -> None:
    """InputError for samples, of any shape, that are not finite, or so large that sums of their products are not.

    By the smallest and the largest value, where not-a-number wins. what: the sound in the message.
    """
    if audio.numel():
        low, high = map(float, audio.detach().aminmax())
        if not -LARGEST_SAMPLE <= low <= high <= LARGEST_SAMPLE:
            kind = (
                "beyond any sound"
                if -math.inf < low <= high < math.inf
                else "that are not finite (NaN or infinity)"
            )
            raise InputError(f"{what} holds samples {kind}; they lie in [-1, 1]")


def finite(made: Tensor, what: str) -> Tensor:
    """What a model made, of any shape, as it is; InputError where it holds no numbers, which later look like others."""
    if made.numel() and not all(end.isfinite() for end in made.aminmax()):  # both are NaN where there is one
        raise InputError(
            f"the model gives {what} that are not finite (NaN or infinity): its weights are damaged, or too large for "
            "their number type; copy it again, or use --dtype float32"
        )
    return made


@dataclass(frozen=True)
class CodecOutput:
    """What a codec's training forward returns.

    audio: reconstruction [B, C, N], as long as the input; None where it was not asked for.
    codes: int64 [B, K, T]; entries of codebooks an item did not use are still the codes it would have had.
    commitment_loss: scalar, mean over the codebooks each item used.
    spectral_loss: scalar, the decoder's error where it works on spectra instead of samples; 0 for one that does not.
    spectra, target_spectra: those spectra as decoded and of the input [B, C, T, F]; None for one that does not.
    """

    audio: Tensor | None
    codes: Tensor
    commitment_loss: Tensor
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
    lookahead_frames: how many must follow a frame before all of its audio is determined, when it decodes block by block
    (`codec/stream.py`). context_frames: what a window must see on both sides of its body to give what the whole gives.
    A codec that codes a sound in overlapping segments is none of these: see `codec/segmented.py`.
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
    def context_frames(self) -> int: ...

    @property
    def lookahead_frames(self) -> int: ...

    def is_compatible(self, identity: str, num_codebooks: int) -> bool:
        """Whether its first codes of a frame are those of the codec `identity`, which may have fewer codebooks."""
        ...

    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        """[B, C, N] -> int64 codes [B, K, T] with T = ceil(N / hop_length)."""
        ...

    def decode(self, codes: Tensor, first_frame: int = 0) -> Tensor:
        """int64 [B, K, T] -> audio [B, C, T * hop_length]; fewer codebooks than the codec has are allowed.

        first_frame: where in a longer sound the codes begin, for windows of it.
        """
        ...

    def freeze(self, dtype: torch.dtype) -> None:
        """Let it compute in this number type from now on, for inference only; InputError where it has not that."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
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
    """

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """What the loader yields; the subclasses say in which form the clips are.

    lengths: int64 [B], valid samples (or frames, for codes) of each row.
    captions: one per row; None is a clip without one.
    keys: one per row, the name of the clip (path or "synth:index") in messages.
    """

    lengths: Tensor
    captions: list[str | None]
    keys: list[str]


@dataclass(frozen=True)
class AudioBatch(Batch):
    """audio: float32 [B, C, N]; clips shorter than N are zero-padded at the end."""

    audio: Tensor


@dataclass(frozen=True)
class CodeBatch(Batch):
    """codes: int64 [B, K, T], zero-padded at the end."""

    codes: Tensor


@dataclass(frozen=True)
class Sampling:
    """How a generator draws its sounds. None is the model's own default; a family refuses what it lacks by name.

    negative: a text that guidance moves away from. in_order: whether "A, then B" is made of its parts (`text.order`),
    each with as much of the time.
    schedule: seconds and texts in ascending order, ((8.0, "thunder"), (15.0, "rain, birds")): from then on each is the
    text of the sound; crossfade_s: seconds in which one passes into the next, 0.5 by default. to, morph: the condition
    lies between the text and the text `to`, from 0 (the first) to 1 (the second), 0.5 by default. loop: the end of the
    sound continues into its beginning.
    Token language models: temperature divides the logits, 0 takes the most probable code. top_k: keep the k most
    probable codes, 0 keeps all. top_p: above 0 replaces top_k, keep the most probable codes that together reach p.
    peer_padding: attend to the padding of each text to the longest of the batch, as audiocraft does: a sound then
    depends on the texts beside it. Only for comparisons with its batches.
    Latent diffusion: steps and sampler, see `diffusion.samplers`. guidance_rescale: share, 0 to 1, of the change of
    level by guidance that is undone. candidates: make so many sounds for each row and
    keep the one whose CLAP embedding is nearest to its text's; the first has the row's seed.
    """

    negative: str | None = None
    in_order: bool | None = None
    schedule: tuple[tuple[float, str], ...] | None = None
    crossfade_s: float | None = None
    to: str | None = None
    morph: float | None = None
    loop: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    peer_padding: bool = False
    steps: int | None = None
    sampler: str | None = None
    guidance_rescale: float | None = None
    candidates: int | None = None


@dataclass(frozen=True)
class Edit:
    """A sound to change, and what of it is generated anew. Language models can extend it at its end, and some inpaint.

    audio: [C, N], of any sample rate and channels. strength: how much noise is added before denoising, from 0 (the
    sound stays) to 1 (nothing is left of it but what is kept); None is 1. inpaint: begin and end, in seconds, of the
    part that is generated anew, or several such pairs in ascending order. upsample: the highest frequencies are
    generated anew. extend_s, extend_before_s: seconds that are generated after and before the sound, which is kept.
    inpaint_resample: how often each step is repeated on what is new, so that it fits better to what is kept (RePaint).
    """

    audio: Tensor
    sample_rate: int
    strength: float | None = None
    inpaint: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    upsample: bool = False
    extend_s: float = 0.0
    extend_before_s: float = 0.0
    inpaint_resample: int = 1

    def __post_init__(self) -> None:
        if self.audio.dim() != 2 or 0 in self.audio.shape:
            raise InputError(
                f"the sound to begin from has shape {list(self.audio.shape)}; give [C, N], neither 0"
            )
        check_samples(self.audio, "the sound to begin from")
        if self.sample_rate < 1:
            raise InputError(f"the sound to begin from has {self.sample_rate} Hz; at least 1 is needed")
        if self.strength is not None and not 0.0 <= self.strength <= 1.0:
            raise InputError(
                f"strength is {self.strength:g}; it must be from 0 (the sound stays) to 1 (all new)"
            )
        for name, seconds in (("extend", self.extend_s), ("extend_before", self.extend_before_s)):
            if not 0.0 <= seconds < math.inf:
                raise InputError(f"{name} is {seconds:g} s; it must be 0 or more")
        extends = self.extend_s > 0 or self.extend_before_s > 0
        if (self.inpaint is not None or extends) and self.upsample:
            raise InputError("inpaint, extend and upsample keep different parts of a sound; choose one")
        if extends and self.strength is not None:
            raise InputError("extend keeps the sound, and strength changes it; choose one")
        if self.strength is None and self.inpaint is None and not self.upsample and not extends:
            raise InputError(
                "nothing is to become of the sound to begin from; give a strength (0.6, say), inpaint, extend or "
                "upsample"
            )
        if not 1 <= self.inpaint_resample <= MAX_RESAMPLE:
            raise InputError(
                f"inpaint_resample is {self.inpaint_resample}; it must be from 1 (none) to {MAX_RESAMPLE}"
            )
        if self.inpaint_resample > 1 and self.inpaint is None and not extends:
            raise InputError("inpaint_resample is for inpaint and extend, and neither is given; drop it")
        self._check_inpaint(self._own_s)

    @property
    def duration_s(self) -> float:
        """Of the result: of the sound and of what extends it."""
        return self.extend_before_s + self._own_s + self.extend_s

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Begin and end, in seconds of the result, of each part that is generated anew while the rest is kept."""
        first, last = self.extend_before_s, self.extend_before_s + self._own_s
        parts = [(first + begin, first + end) for begin, end in self.parts]
        parts = [(0.0, first), *parts] if first else parts
        return (*parts, (last, self.duration_s)) if self.extend_s else tuple(parts)

    def check_duration(self, duration_s: float) -> None:
        """Raise InputError where a result that long needs more than there is, or ends before what is made anew."""
        if (self.extend_s or self.extend_before_s) and abs(duration_s - self.duration_s) > 1e-3:
            raise InputError(
                f"the sound is extended to {self.duration_s:g} s and {duration_s:g} s are to be made; drop the duration"
            )
        if duration_s > self.duration_s + 1e-3:
            raise InputError(
                f"the sound to begin from has {self.duration_s:g} s and {duration_s:g} s are to be made; "
                "give a duration that is no longer, or none"
            )
        self._check_inpaint(min(duration_s, self._own_s))

    @property
    def _own_s(self) -> float:
        return self.audio.shape[-1] / self.sample_rate

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        """The parts of the given sound."""
        if not self.inpaint:
            return ()
        one = not isinstance(self.inpaint[0], tuple)
        return (self.inpaint,) if one else self.inpaint  # type: ignore[return-value]

    def _check_inpaint(self, duration_s: float) -> None:
        """Raise InputError for parts that are not in order, or not within so much of the given sound."""
        end_before = 0.0
        for begin, end in self.parts:
            if not end_before <= begin < end <= duration_s:
                after = f"; the part before it ends at {end_before:g} s" if end_before else ""
                raise InputError(
                    f"the part to inpaint is {begin:g} s to {end:g} s; it must ascend and lie "
                    f"within the sound, 0 to {duration_s:g} s{after}"
                )
            end_before = end


class Generator(Protocol):
    """Text to audio, whatever the family. Same seed, same audio: alone, in a batch, whatever the order.

    family: such as "token LM". latent_rate: what is generated, such as "50 Hz x 4". num_parameters: of all that runs
    from text to audio. batch_size: rows that the model runs on at a time. guidance: the model's own default. notes:
    what was chosen where the files leave a choice, a line each.
    """

    sample_rate: int
    channels: int
    max_duration_s: float
    batch_size: int
    device: torch.device
    guidance: float
    family: str
    latent_rate: str
    notes: tuple[str, ...]

    @property
    def num_parameters(self) -> int: ...

    def identity(self) -> str:
        """16 hex digits that change with any weight and with the number type."""
        ...

    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        edit: Edit | None = None,
        progress: Progress | None = None,
        turned_down_db: list[float] | None = None,
    ) -> Tensor:
        """Texts to audio [B, C, N], within full scale. An option that this family lacks is an InputError that names it.

        texts: one a row; None is no text. Repeat a text for several sounds of it.
        duration_s: of every row, or one a row; N is that of the longest, shorter rows end in silence.
        guidance: weight of the text (classifier-free guidance); 1 is none, None is the model's own default.
        seed: row b has seed + b, or one seed a row; noise is drawn from a row's seed and text.
        prompt: audio [C, N] or [B, C, N] and its sample rate, which the result continues; duration_s counts it in.
        edit: a sound to change. What stays of it, and of a prompt, are its own samples up to a short fade at the seam.
        turned_down_db: becomes how much each row (beside samples that stay, its new part) was turned down.
        """
        ...

    def stream(
        self,
        text: str | None,
        duration_s: float | None = None,
        *,
        guidance: float | None = None,
        seed: int = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        turned_down_db: list[float] | None = None,
    ) -> Iterator[Tensor]:
        """Audio [C, n] piece by piece while it is generated; duration_s None goes on until the caller stops.

        turned_down_db: is kept at [how much the sound is turned down by now].
        """
        ...

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] through the codec or autoencoder alone -> [B, C, N]: the best the generator could do."""
        ...

    def provenance(self, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> Provenance:
        """Where a sound of this model comes from, for its file.

        settings: options of `audiogen.generate` by name that make it again, beside those that open the model. inputs:
        SHA-256 of the files among them.
        """
        ...

    def steps_at_most(self, steps: int | None) -> int | None:
        """The largest number of steps up to `steps` that it can run, its own for None; None if it has no steps."""
        ...

    def num_evaluations(self, duration_s: float, guidance: float, steps: int | None = None) -> int:
        """Model evaluations for one clip; a guided step counts as two."""
        ...

    def num_frames(self, duration_s: float) -> int:
        """Frames that are generated for a duration, which is checked: InputError where the model cannot make it."""
        ...
