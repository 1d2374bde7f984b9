"""What a language model is given: texts as conditions, a sound to continue as codes, and how codes are drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen import audio as audio_io
from audiogen.errors import InputError
from audiogen.generators import level
from audiogen.generators import request as requests
from audiogen.interfaces import Codec, Condition, Sampling, check_samples
from audiogen.lm.sample import TokenSampling
from audiogen.text.condition import pad_like_peers
from audiogen.text.t5 import T5Conditioner

TEXT_MULTIPLE = 32  # text is padded to multiples of this many tokens


def given_texts(
    conditioner: T5Conditioner, texts: Sequence[str | None], peer_padding: bool = False
) -> list[Condition]:
    """Each text as a condition of one row, encoded by itself, L padded to a multiple of TEXT_MULTIPLE."""
    alone = [conditioner([text]) for text in texts]
    if peer_padding:
        together = pad_like_peers(alone)
        pairs = zip(together.tokens.split(1), together.mask.split(1), strict=True)
        alone = [Condition(tokens, mask) for tokens, mask in pairs]
    pads = [(0, -condition.mask.shape[1] % TEXT_MULTIPLE) for condition in alone]
    return [
        Condition(F.pad(condition.tokens, (0, 0, *pad)), F.pad(condition.mask, pad))
        for condition, pad in zip(alone, pads, strict=True)
    ]


def given_sound(
    codec: Codec,
    prompt: tuple[Tensor, int] | None,
    num_texts: int,
    encode: Callable[[Tensor], Tensor],
    spans: Sequence[tuple[float, float]] = (),
) -> tuple[list[tuple[level.Kept, ...]] | None, Tensor | None]:
    """Audio [C, N] for all texts, or [B, C, N] -> what of it each text's sound keeps, codes [num_texts, K, P].

    encode: audio [C, N] at the codec's rate and channels -> codes [1, K, T]. spans: the parts, in seconds, that are
    made anew, of a whole sound; without, what follows is, and codes are of whole frames to continue.
    """
    if prompt is None:
        return None, None
    audio, sample_rate = prompt
    sounds = audio[None] if audio.dim() == 2 else audio
    if sounds.dim() != 3 or 0 in sounds.shape:
        raise InputError(
            f"the sound to continue has shape {list(audio.shape)}; give [C, N] or [B, C, N], N at least 1"
        )
    check_samples(sounds, "the sound to continue")
    if len(sounds) not in (1, num_texts):
        raise InputError(f"{len(sounds)} sounds to continue for {num_texts} texts; give one, or one a text")
    rate, hop = codec.sample_rate, codec.hop_length
    sounds = audio_io.convert_channels(audio_io.resample(sounds, sample_rate, rate), codec.channels)
    whole = sounds[..., : max(1, sounds.shape[-1] // hop) * hop]
    if spans:
        whole = F.pad(sounds, (0, -sounds.shape[-1] % hop))
    codes = torch.cat([encode(sound) for sound in whole])  # [B or 1, K, P]
    edges = [(round(begin * rate), round(end * rate)) for begin, end in spans]
    edges = edges or [(sounds.shape[-1], sys.maxsize)]
    sounds = sounds.float().cpu().expand(num_texts, -1, -1)
    kept = [tuple(level.Kept(sound, *edge, rate, hop) for edge in edges) for sound in sounds]
    return kept, codes.expand(num_texts, -1, -1)


def gaps(kept: Sequence[level.Kept], num_frames: int) -> list[tuple[int, int]]:
    """The frames, at least one, that cover each part that is new: from the first to the one after the last."""
    found = []
    for part in kept:
        hop = part.margin  # what a frame of the codec covers
        begin = min(part.begin // hop, num_frames - 1)
        found.append((begin, max(begin + 1, min(-(-part.end // hop), num_frames))))
    return found


def token_draws(sampling: Sampling) -> TokenSampling:
    """How codes are drawn: audiocraft's defaults, with what is given. Refuses what only latent diffusion has."""
    requests.refuse(requests.given(sampling, requests.LATENT_DRAWS), requests.FAMILIES[0])
    names = [field.name for field in fields(TokenSampling)]
    return TokenSampling(**requests.given(sampling, names))  # type: ignore[arg-type]
