"""What a language model is given: texts as conditions, and a sound to continue as codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen import audio as audio_io
from audiogen.errors import InputError
from audiogen.generators import level
from audiogen.interfaces import Codec, Condition, check_samples
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
    codec: Codec, prompt: tuple[Tensor, int] | None, num_texts: int, encode: Callable[[Tensor], Tensor]
) -> tuple[list[level.Kept] | None, Tensor | None]:
    """Audio [C, N] for all texts, or [B, C, N] -> what of it each text's sound keeps, codes [num_texts, K, P].

    encode: audio [C, N] at the codec's rate and channels -> codes [1, K, T].
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
    codes = torch.cat([encode(sound) for sound in whole])  # [B or 1, K, P]
    sounds, span = sounds.float().cpu().expand(num_texts, -1, -1), (sounds.shape[-1], sys.maxsize)
    return [level.Kept(sound, *span, rate, hop) for sound in sounds], codes.expand(num_texts, -1, -1)
