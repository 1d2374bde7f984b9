"""From what is known of a sound (text, CLAP embedding, seconds) to the routes into a denoiser, and their null.

A recipe names the routes: `cross` lists the streams for cross-attention, each a list of pieces joined along L; `vector`
lists pieces joined along E. Pieces of tokens: text, loa, seconds_start, seconds_total. Pieces of a vector: clap,
pooled (the text's mean, projected), seconds_start, seconds_total.

    AudioLDM        vector: [clap]
    AudioLDM 2      cross: [[loa], [text]]
    LAFMA, Tango    cross: [[text]]
    Stable Audio    cross: [[text, seconds_start, seconds_total]]   vector: [seconds_start, seconds_total]
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
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.diffusion.loa import LoaConfig, LoaGenerator
from audiogen.diffusion.routes import Routes
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.latent_text import TextStates
from audiogen.text.t5 import TextConfig

TOKEN_PIECES = ("text", "loa", "seconds_start", "seconds_total")
VECTOR_PIECES = ("clap", "pooled", "seconds_start", "seconds_total")


@dataclass(frozen=True)
class SecondsConfig:
    """Numbers of seconds as tokens `width` wide; what lies outside of min_s to max_s counts as the nearest."""

    width: int = 768
    min_s: float = 0.0
    max_s: float = 512.0

    def __post_init__(self) -> None:
        if not self.min_s < self.max_s or self.width < 1:
            raise InputError(
                f"seconds are {self.min_s:g} to {self.max_s:g}, {self.width} wide; they must ascend, at least 1 wide"
            )


@dataclass(frozen=True)
class ConditionerConfig:
    """Which routes there are, and what gives their pieces; see the module.

    text_length: L that every text is padded to, with zeros that count as tokens (Stable Audio: 128, its max_tokens).
    clap: directory or hub id of a CLAP model; without one, loa begins from pooled. clap_dim, pooled_dim: E of these.
    unconditional, that half of guidance: "zeros", all tokens of all streams, and a vector of zeros (AudioLDM 2's
    loa is always zeros there); "empty", the text "" in place of the text, and all else as it was; "padded", the same
    padded to the length of the text, with tokens that count in the streams (LAFMA, TangoFlux). Seconds in the vector
    always stay.
    """

    cross: tuple[tuple[str, ...], ...] = ()
    vector: tuple[str, ...] = ()
    unconditional: Literal["zeros", "empty", "padded"] = "zeros"
    text: TextConfig | None = None
    text_length: int | None = None
    clap: str | None = None
    clap_dim: int = 512
    pooled_dim: int = 1024
    seconds: SecondsConfig | None = None
    loa: LoaConfig | None = None

    def __post_init__(self) -> None:
        for key, pieces, allowed in (
            ("cross", [piece for stream in self.cross for piece in stream], TOKEN_PIECES),
            ("vector", list(self.vector), VECTOR_PIECES),
        ):
            if wrong := [piece for piece in pieces if piece not in allowed]:
                raise InputError(f"conditioner.{key} names {wrong[0]!r}; allowed: {', '.join(allowed)}")
        if not self.uses or not all(self.cross):
            raise InputError(
                "conditioner.cross and conditioner.vector name nothing, or an empty stream; see recipes"
            )
        for key, needed in (
            ("text", {"text", "pooled", "loa"}),
            ("seconds", {"seconds_start", "seconds_total"}),
            ("loa", {"loa"}),
        ):
            if needed & self.uses and getattr(self, key) is None:
                raise InputError(
                    f"conditioner.{key} is null, but a route needs it: {', '.join(sorted(needed & self.uses))}"
                )

    @property
    def uses(self) -> set[str]:
        """All pieces."""
        return {piece for stream in self.cross for piece in stream} | set(self.vector)

    @property
    def vector_dim(self) -> int | None:
        """E of the vector; None for none."""
        widths = {"clap": self.clap_dim, "pooled": self.pooled_dim}
        seconds = 0 if self.seconds is None else self.seconds.width
        return sum(widths.get(piece, seconds) for piece in self.vector) or None

    @property
    def cross_dims(self) -> tuple[int, ...]:
        """D of each stream; InputError where its pieces differ."""
        seconds = 0 if self.seconds is None else self.seconds.width
        text = 0 if self.text is None else self.text.width
        if "seconds_start" in self.uses:
            text = seconds  # projected with them
        loa = 0 if self.loa is None else self.loa.width
        widths = {"text": text, "loa": loa, "seconds_start": seconds, "seconds_total": seconds}
        for stream in self.cross:
            if len({widths[piece] for piece in stream}) != 1:
                found = ", ".join(f"{piece} {widths[piece]}" for piece in stream)
                raise InputError(f"one stream joins pieces of different widths ({found}); they must be equal")
        return tuple(widths[stream[0]] for stream in self.cross)


@dataclass(frozen=True)
class Known:
    """What is known of B sounds, as features that can be cached. text: of B texts. clap: [B, E], of text or audio.

    seconds_start, seconds_total: [B]. loa: [B, length, D], the true vectors; None to generate them.
    """

    text: Condition | None = None
    clap: Tensor | None = None
    seconds_start: Tensor | None = None
    seconds_total: Tensor | None = None
    loa: Tensor | None = None

    def to(self, device: torch.device | str) -> Known:
        """The same on another device."""
        text = self.text
        return Known(
            None if text is None else Condition(text.tokens.to(device), text.mask.to(device)),
            *(
                None if tensor is None else tensor.to(device)
                for tensor in (self.clap, self.seconds_start, self.seconds_total, self.loa)
            ),
        )


class Conditioner(nn.Module):
    """`Known -> Routes`, with the projections that are trained; frozen encoders are opened when first used."""

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
        self._clap = [clap or Clap(config.clap)] if clap is not None or config.clap is not None else []
        width = 0 if config.text is None else config.text.width
        self.seconds: Any = None
        if config.seconds is not None:
            seconds = config.seconds
            if "seconds_start" in config.uses:
                self.seconds = StableAudioProjectionModel(
                    width or seconds.width, seconds.width, seconds.min_s, seconds.max_s
                )
            else:
                self.seconds = StableAudioNumberConditioner(seconds.width, seconds.min_s, seconds.max_s)
        pools = "pooled" in config.uses or ("loa" in config.uses and config.clap is None and clap is None)
        self.pooled = nn.Linear(width, config.pooled_dim) if pools else None
        self.loa = None if config.loa is None else LoaGenerator(config.loa)

    @property
    def has_clap(self) -> bool:
        """Whether there is a CLAP model."""
        return bool(self._clap)

    @property
    def clap(self) -> Clap:
        """The CLAP model; InputError where the config names none."""
        if not self._clap:
            raise InputError("conditioner.clap is null; give the directory or hub id of a CLAP model")
        return self._clap[0]

    def know(
        self,
        texts: Sequence[str | None],
        seconds_total: Tensor | None = None,
        seconds_start: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Known:
        """Features of B texts, on `device`; seconds [B], for the systems that have them."""
        if seconds_total is not None and seconds_start is None:
            seconds_start = torch.zeros_like(seconds_total)
        needs_clap = "clap" in self.config.uses or ("loa" in self.config.uses and self.pooled is None)
        known = Known(
            text=None if self.text is None else self.text(texts),
            clap=self.clap.embed_text([text or "" for text in texts]) if needs_clap else None,
            seconds_start=seconds_start,
            seconds_total=seconds_total,
        )
        return known.to(device)

    def forward(self, known: Known) -> Routes:
        """-> the routes of B sounds."""
        cross = tuple(_join([self._tokens(piece, known) for piece in stream]) for stream in self.config.cross)
        vector = [self._vector(piece, known) for piece in self.config.vector]
        return Routes(cross, torch.cat(vector, dim=-1) if vector else None)

    def null(self, known: Known) -> Routes:
        """-> the routes of B sounds of which nothing is asked; see `ConditionerConfig`."""
        if self.config.unconditional == "zeros":
            routes = self(known)
            cross = tuple(_zeros(stream) for stream in routes.cross)
            vector = [self._vector(piece, known) for piece in self.config.vector]
            vector = [
                part if piece.startswith("seconds") else torch.zeros_like(part)
                for piece, part in zip(self.config.vector, vector, strict=True)
            ]
            return Routes(cross, torch.cat(vector, dim=-1) if vector else None)
        routes = self.without_text(known, self._empty(known, padded=False))
        if self.config.unconditional == "empty":
            return routes
        return Routes(self.without_text(known, self._empty(known, padded=True)).cross, routes.vector)

    def without_text(self, known: Known, empty: Known) -> Routes:
        """The routes of `known` with text and CLAP features of `empty`, and a "language of audio" of zeros."""
        if self.loa is not None:
            assert empty.text is not None
            shape = (len(empty.text.tokens), self.loa.config.length, self.loa.config.width)
            empty = dataclasses.replace(empty, loa=empty.text.tokens.new_zeros(shape))
        return self(dataclasses.replace(known, text=empty.text, clap=empty.clap, loa=empty.loa))

    def loa_vectors(self, known: Known, true: Tensor | None = None) -> Tensor:
        """The "language of audio" of B sounds [B, length, width], generated; see `LoaGenerator`.

        true: the vectors of these sounds; each of what is returned is then what GPT-2 expects after the true ones
        before it. Each text goes through without padding: positions would count it.
        """
        text = _given(known.text, "loa")
        clap = known.clap if self.pooled is None else self._pooled(text)
        assert self.loa is not None and clap is not None
        lengths = text.mask.sum(dim=1)
        # In training those of one length go through at once, which is faster; otherwise a row's rounding is its own.
        groups = (
            [lengths == length for length in lengths.unique()]
            if self.training
            else torch.eye(len(lengths)).bool()
        )
        vectors = clap.new_empty(len(lengths), self.loa.config.length, self.loa.config.width)
        for rows in groups:
            length = int(lengths[rows][0])
            same = Condition(text.tokens[rows, :length], text.mask[rows, :length])
            if true is None:
                vectors[rows] = self.loa.generate(clap[rows], same).to(vectors.dtype)
            else:
                vectors[rows] = self.loa.predict(clap[rows], same, true[rows]).to(vectors.dtype)
        return vectors

    def _empty(self, known: Known, padded: bool) -> Known:
        """Features of the empty text, for as many rows as `known` has; padded: to the length of each row's text."""
        text = clap = None
        if known.text is not None:
            assert self.text is not None
            padding = None
            if padded:
                own = len(self.text([""]).tokens[0])
                padding = [max(0, length - own) for length in known.text.mask.sum(dim=1).tolist()]
            text = self.text([""] * len(known.text.tokens), padding)
        if known.clap is not None:
            clap = self.clap.embed_text([""]).expand(len(known.clap), -1)
        found = Known(text=text, clap=clap)
        if known.clap is not None:
            return found.to(known.clap.device)
        return found if known.text is None else found.to(known.text.tokens.device)

    def _tokens(self, piece: str, known: Known) -> Condition:
        if piece == "text":
            return self._text(_given(known.text, piece))
        if piece == "loa":
            return _counted(self.loa_vectors(known) if known.loa is None else known.loa)
        return _counted(self._seconds(piece, known))

    def _vector(self, piece: str, known: Known) -> Tensor:
        if piece == "clap":
            return _given(known.clap, piece)
        if piece == "pooled":
            return self._pooled(_given(known.text, piece))
        return self._seconds(piece, known)[:, 0]

    def _pooled(self, text: Condition) -> Tensor:
        """[B, E]"""
        assert self.pooled is not None
        mask = text.mask[..., None].to(text.tokens.dtype)
        return F.relu(self.pooled((text.tokens * mask).sum(dim=1) / mask.sum(dim=1)))

    def _text(self, text: Condition) -> Condition:
        length = self.config.text_length
        if isinstance(self.seconds, StableAudioProjectionModel):
            projected = self.seconds(text_hidden_states=text.tokens).text_hidden_states
            text = Condition(projected * text.mask[..., None], text.mask)  # the projection has a bias
        if length is None:
            return text
        if text.tokens.shape[1] > length:
            raise InputError(
                f"a text has {text.tokens.shape[1]} tokens, but conditioner.text_length is {length}; "
                "set text.max_tokens to no more"
            )
        return _counted(F.pad(text.tokens, (0, 0, 0, length - text.tokens.shape[1])))

    def _seconds(self, piece: str, known: Known) -> Tensor:
        """[B, 1, D]"""
        seconds = _given(known.seconds_start if piece == "seconds_start" else known.seconds_total, piece)
        if isinstance(self.seconds, StableAudioProjectionModel):
            if piece == "seconds_start":
                return self.seconds(start_seconds=seconds).seconds_start_hidden_states
            return self.seconds(end_seconds=seconds).seconds_end_hidden_states
        return self.seconds(seconds)


def _given(value: Any, piece: str) -> Any:
    if value is None:
        raise ValueError(f"a route needs {piece!r}, of which nothing is known")
    return value


def _counted(tokens: Tensor) -> Condition:
    """Tokens [B, L, D] that all count."""
    return Condition(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _zeros(condition: Condition) -> Condition:
    return _counted(torch.zeros_like(condition.tokens))


def _join(parts: Sequence[Condition]) -> Condition:
    """Along L."""
    if len(parts) == 1:
        return parts[0]
    return Condition(
        torch.cat([part.tokens for part in parts], dim=1), torch.cat([part.mask for part in parts], dim=1)
    )
