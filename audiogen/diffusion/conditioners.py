"""From features of a sound (text, CLAP embedding, seconds) to the conditioning of a denoiser, and to its null.

A recipe says where each piece enters: `cross` lists the streams for cross-attention, each a list of pieces joined along
L; `vector` lists pieces joined along E. Pieces of tokens: text, loa, seconds_start, seconds_total. Pieces of a vector:
clap, pooled (the text's mean, projected), seconds_start, seconds_total.

    AudioLDM        vector: [clap]
    AudioLDM 2      cross: [[loa], [text]]
    LAFMA, Tango    cross: [[text]]
    Stable Audio    cross: [[text, seconds_start, seconds_total]]   vector: [seconds_start, seconds_total]
    Stable Audio 3  cross: [[text, seconds_total]]                  vector: [seconds_total]
    TangoFlux       cross: [[text, seconds_total]]                  vector: [pooled]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.pipelines.stable_audio.modeling_stable_audio import (
    StableAudioNumberConditioner,
    StableAudioProjectionModel,
)
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, check_ranges
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.loa import LoaConfig, LoaGenerator
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig, TextStates

TOKEN_PIECES = ("text", "loa", "seconds_start", "seconds_total")
VECTOR_PIECES = ("clap", "pooled", "seconds_start", "seconds_total")


@dataclass(frozen=True)
class SecondsConfig:
    """Numbers of seconds as tokens `width` wide; what lies outside of min_s to max_s counts as the nearest.

    The defaults are Stable Audio Open's. frequencies: of the Fourier features; learned, or fixed and exponential, as in
    Stable Audio 3, for systems without seconds_start.
    """

    width: Positive = 768
    min_s: float = 0.0
    max_s: float = 512.0
    frequencies: Literal["learned", "exponential"] = "learned"

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.min_s < self.max_s:
            raise InputError(f"seconds are {self.min_s:g} to {self.max_s:g}; they must ascend")


@dataclass(frozen=True)
class ConditionerConfig:
    """Which streams and vector there are, and what gives their pieces; see the module.

    text_length: L that every text is padded to (Stable Audio: 128, its max_tokens). padding: with zeros that count as
    tokens, or masked, for a denoiser that has a token of its own in their place (Stable Audio 3).
    clap: directory or hub id of a CLAP model; without one, loa begins from pooled. clap_dim, pooled_dim: E of these.
    unconditional: what the half of guidance without a condition gets. "zeros": all tokens of all streams and the vector
    are zero. "empty": the text "" in place of the text, loa zero, and all else as it was. "padded": as "empty", but
    padded in the streams to the length of the text, with tokens that count (LAFMA, TangoFlux). Seconds in the vector
    always stay.
    """

    cross: tuple[tuple[str, ...], ...] = ()
    vector: tuple[str, ...] = ()
    unconditional: Literal["zeros", "empty", "padded"] = "zeros"
    text: TextConfig | None = None
    text_length: Positive | None = None
    padding: Literal["zeros", "masked"] = "zeros"
    clap: str | None = None
    clap_dim: Positive = 512
    pooled_dim: Positive = 1024
    seconds: SecondsConfig | None = None
    loa: LoaConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        cross = [piece for stream in self.cross for piece in stream]
        for key, pieces, allowed in (("cross", cross, TOKEN_PIECES), ("vector", self.vector, VECTOR_PIECES)):
            if wrong := set(pieces) - set(allowed):
                raise InputError(f"conditioner.{key} names {min(wrong)!r}; allowed: {', '.join(allowed)}")
        if not self.uses or not all(self.cross):
            raise InputError("conditioner.cross and .vector name nothing, or an empty stream; see recipes")
        for key, needed in (
            ("text", {"text", "pooled", "loa"}),
            ("seconds", {"seconds_start", "seconds_total"}),
            ("loa", {"loa"}),
            ("clap", {"clap"}),
        ):
            if (by := needed & self.uses) and getattr(self, key) is None:
                raise InputError(f"conditioner.{key} is null; needed by {', '.join(sorted(by))}")
        fixed = self.seconds is not None and self.seconds.frequencies != "learned"
        if fixed and "seconds_start" in self.uses:
            raise InputError("seconds.frequencies must be learned where there is seconds_start")

    @property
    def uses(self) -> set[str]:
        """All pieces."""
        return {piece for stream in self.cross for piece in stream} | set(self.vector)

    @property
    def vector_dim(self) -> int | None:
        """E of the vector; None for none."""
        seconds = 0 if self.seconds is None else self.seconds.width
        widths = {"clap": self.clap_dim, "pooled": self.pooled_dim}
        return sum(widths.get(piece, seconds) for piece in self.vector) or None

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """D of each stream; InputError where its pieces differ."""
        text, seconds, loa = (0 if c is None else c.width for c in (self.text, self.seconds, self.loa))
        if "seconds_start" in self.uses:
            text = seconds  # projected with them
        widths = {"text": text, "loa": loa, "seconds_start": seconds, "seconds_total": seconds}
        for stream in self.cross:
            if len({widths[piece] for piece in stream}) != 1:
                found = ", ".join(f"{piece} {widths[piece]}" for piece in stream)
                raise InputError(f"one stream joins pieces of different widths ({found}); they must be equal")
        return tuple(widths[stream[0]] for stream in self.cross)


@dataclass(frozen=True)
class ConditionerInputs:
    """Features of B sounds, which can be cached. text: of B texts. clap: [B, E], of text or audio.

    seconds_start, seconds_total: [B]. loa: [B, length, D], the true vectors; None to generate them.
    """

    text: Condition | None = None
    clap: Tensor | None = None
    seconds_start: Tensor | None = None
    seconds_total: Tensor | None = None
    loa: Tensor | None = None

    def to(self, device: torch.device | str) -> ConditionerInputs:
        """The same on another device."""
        text = self.text
        others = (self.clap, self.seconds_start, self.seconds_total, self.loa)
        return ConditionerInputs(
            None if text is None else Condition(text.tokens.to(device), text.mask.to(device)),
            *(None if tensor is None else tensor.to(device) for tensor in others),
        )


class Conditioner(nn.Module):
    """`ConditionerInputs -> Conditioning`, with the projections that are trained.

    Its frozen encoders are opened when first used.
    """

    def __init__(
        self,
        config: ConditionerConfig,
        vocabulary: bytes | None = None,
        frozen: FrozenEncoder | None = None,
        clap: Clap | None = None,
    ):
        """vocabulary: of the embedded text encoder. frozen, clap: encoders in place of those that the config names."""
        super().__init__()
        self.config = config
        self.text = None if config.text is None else TextStates(config.text, vocabulary, frozen)
        self.clap = clap or (None if config.clap is None else Clap(config.clap))
        width = 0 if config.text is None else config.text.width
        self.seconds: Any = None
        if (seconds := config.seconds) is not None:
            limits = (seconds.width, seconds.min_s, seconds.max_s)
            if "seconds_start" in config.uses:
                self.seconds = StableAudioProjectionModel(
                    width or seconds.width, *limits
                )  # text and both seconds
            elif seconds.frequencies == "learned":
                self.seconds = StableAudioNumberConditioner(*limits)
            else:
                self.seconds = StableAudio3DurationEmbedder(
                    seconds.width, min_val=seconds.min_s, max_val=seconds.max_s
                )
        pools = "pooled" in config.uses or ("loa" in config.uses and self.clap is None)
        self.pooled = nn.Linear(width, config.pooled_dim) if pools else None
        self.loa = None if config.loa is None else LoaGenerator(config.loa)

    def inputs(
        self, texts: Sequence[str | None], seconds: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> ConditionerInputs:
        """Features of B texts, on `device`; seconds [B] from the start of a sound, for the systems that have them."""
        uses, clap = self.config.uses, None
        if self.clap is not None and ("clap" in uses or ("loa" in uses and self.pooled is None)):
            clap = self.clap.embed_text([text or "" for text in texts])
        text = None if self.text is None else self.text(texts)
        start = None if seconds is None else torch.zeros_like(seconds)
        return ConditionerInputs(text, clap, start, seconds).to(device)

    @property
    def num_frozen(self) -> int:
        """Parameters of the encoders of text that are no part of the system's weights; they are opened for it."""
        frozen = None if self.text is None else self.text.frozen
        count = 0 if frozen is None else sum(weight.numel() for weight in frozen.encoder.stack.parameters())
        if self.clap is not None:
            weights = self.clap.parts.model.named_parameters()
            count += sum(weight.numel() for name, weight in weights if name.startswith("text_"))
        return count

    def guided(
        self,
        texts: Sequence[str | None],
        seconds: Tensor | None = None,
        negative: str | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Conditioning, Conditioning]:
        """The conditioning of B texts and seconds [B], and what guidance moves away from.

        That is the null conditioning, or that of the text `negative`. device: that of the conditioner.
        """
        given = self.inputs(texts, seconds, device=device)
        if negative is None:
            return self(given), self.null(given)
        return self(given), self(self.inputs([negative] * len(texts), seconds, device=device))

    def forward(self, inputs: ConditionerInputs, zeros: bool = False) -> Conditioning:
        """-> the conditioning of B sounds; zeros: in place of all tokens and of the vector's parts but seconds."""
        streams = [_join([self._tokens(piece, inputs) for piece in names]) for names in self.config.cross]
        vector = [self._vector(piece, inputs) for piece in self.config.vector]  # each [B, E of the piece]
        if zeros:
            streams = [_all_valid(torch.zeros_like(stream.tokens)) for stream in streams]
            vector = [
                part if piece.startswith("seconds") else torch.zeros_like(part)
                for piece, part in zip(self.config.vector, vector, strict=True)
            ]
        return Conditioning(tuple(streams), torch.cat(vector, dim=-1) if vector else None)

    def null(self, inputs: ConditionerInputs) -> Conditioning:
        """-> the conditioning without a condition, for B sounds; see `ConditionerConfig.unconditional`."""
        if self.config.unconditional == "zeros":
            return self(inputs, zeros=True)
        nothing = self.without_text(inputs, self._empty(inputs, padded=False))
        if self.config.unconditional == "empty":
            return nothing
        padded = self.without_text(inputs, self._empty(inputs, padded=True))
        return Conditioning(padded.streams, nothing.vector)  # which pools the text as it is without padding

    def without_text(self, inputs: ConditionerInputs, empty: ConditionerInputs) -> Conditioning:
        """`inputs` with text and CLAP features of `empty`, and a "language of audio" of zeros."""
        loa = None
        if self.loa is not None:
            tokens, sizes = _given(empty, "text").tokens, self.loa.config
            loa = tokens.new_zeros(len(tokens), sizes.length, sizes.width)
        return self(dataclasses.replace(inputs, text=empty.text, clap=empty.clap, loa=loa))

    def loa_vectors(self, inputs: ConditionerInputs, true: Tensor | None = None) -> Tensor:
        """The "language of audio" of B sounds [B, length, width], generated; see `LoaGenerator`.

        true: the vectors of these sounds; each of what is returned is then what GPT-2 expects after the true ones
        before it. Each text goes through without padding: positions would count it.
        """
        text = _given(inputs, "text")
        clap = inputs.clap if self.pooled is None else self._pooled(text)
        assert self.loa is not None and clap is not None
        lengths = text.mask.sum(dim=1)
        # In training those of one length go through at once, which is faster; otherwise a row's rounding is its own.
        alike = [lengths == length for length in lengths.unique()]
        groups = alike if self.training else torch.eye(len(lengths)).bool()
        vectors = clap.new_empty(len(lengths), self.loa.config.length, self.loa.config.width)
        for rows in groups:
            length = int(lengths[rows][0])
            given = (clap[rows], Condition(text.tokens[rows, :length], text.mask[rows, :length]))
            found = self.loa.generate(*given) if true is None else self.loa.predict(*given, true[rows])
            vectors[rows] = found.to(vectors.dtype)
        return vectors

    def _empty(self, inputs: ConditionerInputs, padded: bool) -> ConditionerInputs:
        """Features of the empty text, for as many rows as `inputs` has; padded: to the length of each row's text."""
        found = ConditionerInputs()
        if inputs.clap is not None and self.clap is not None:
            clap = self.clap.embed_text([""]).expand(len(inputs.clap), -1)
            found = ConditionerInputs(clap=clap).to(inputs.clap.device)
        if inputs.text is not None and self.text is not None:
            lengths = inputs.text.mask.sum(dim=1).tolist()  # [B]
            text = self.text([""] * len(lengths), lengths if padded else None)
            found = dataclasses.replace(found, text=text).to(inputs.text.tokens.device)
        return found

    def _tokens(self, piece: str, inputs: ConditionerInputs) -> Condition:
        """Tokens [B, L, D] of one piece of a stream."""
        if piece == "text":
            return self._text(_given(inputs, "text"))
        if piece == "loa":
            return _all_valid(self.loa_vectors(inputs) if inputs.loa is None else inputs.loa)
        return _all_valid(self._seconds(piece, inputs))

    def _vector(self, piece: str, inputs: ConditionerInputs) -> Tensor:
        """[B, E] of one piece of the vector."""
        if piece == "clap":
            return _given(inputs, "clap")
        if piece == "pooled":
            return self._pooled(_given(inputs, "text"))
        return self._seconds(piece, inputs)[:, 0]

    def _pooled(self, text: Condition) -> Tensor:
        """Tokens [B, L, D] -> relu of a projection of their mean over the valid positions [B, E]."""
        assert self.pooled is not None
        mask = text.mask[..., None].to(text.tokens.dtype)  # [B, L, 1]
        return F.relu(self.pooled((text.tokens * mask).sum(dim=1) / mask.sum(dim=1)))

    def _text(self, text: Condition) -> Condition:
        """Tokens [B, L, D] projected, where a projection goes with the seconds, and padded to text_length."""
        length = self.config.text_length
        if isinstance(self.seconds, StableAudioProjectionModel):
            projected = self.seconds.text_projection(text.tokens) * text.mask[..., None]  # it has a bias
            text = Condition(projected, text.mask)
        if length is None:
            return text
        if (more := length - text.tokens.shape[1]) < 0:
            raise InputError(f"a text is {-more} tokens above text_length {length}: lower text.max_tokens")
        tokens = F.pad(text.tokens, (0, 0, 0, more))
        masked = self.config.padding == "masked"
        return Condition(tokens, F.pad(text.mask, (0, more))) if masked else _all_valid(tokens)

    def _seconds(self, piece: str, inputs: ConditionerInputs) -> Tensor:
        """Seconds [B] -> Fourier features through a linear layer [B, 1, D]."""
        part = "start_number_conditioner" if piece == "seconds_start" else "end_number_conditioner"
        found = getattr(self.seconds, part, self.seconds)(_given(inputs, piece))
        return found.reshape(len(found), 1, -1)


def _given(inputs: ConditionerInputs, name: str) -> Any:
    if (value := getattr(inputs, name)) is None:
        raise ValueError(f"the conditioner needs {name!r}, and its inputs lack it")
    return value


def _all_valid(tokens: Tensor) -> Condition:
    """Tokens [B, L, D] that may all be attended to."""
    return Condition(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _join(parts: Sequence[Condition]) -> Condition:
    """Along L."""
    tokens, mask = ([getattr(part, name) for part in parts] for name in ("tokens", "mask"))
    return Condition(torch.cat(tokens, dim=1), torch.cat(mask, dim=1))
