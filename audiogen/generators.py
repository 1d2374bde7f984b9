"""Generators: text to audio, whatever the family. `load` opens one by a bundled name or a model directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen import audio as audio_io
from audiogen import checkpoint, distributed
from audiogen.codec.model import Codec
from audiogen.codec.pretrained import load_codec, save_codec
from audiogen.codec.stream import decode_stream, encode_stream
from audiogen.conditioning.condition import stack
from audiogen.conditioning.t5 import T5Conditioner
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import TokenLM
from audiogen.lm.pretrained import CODEC_FOLDER, KIND, CodecReference, load_lm, save_lm
from audiogen.lm.sample import Sampling, generate_tokens, num_decoded

MAX_DURATION_S = 3600.0
TEXT_MULTIPLE = 32  # text is padded to multiples of this many tokens
ROWS_ON_CPU, ROWS_ELSEWHERE = 4, 8  # that the language model runs on at a time

Progress = Callable[[float], None]  # gets the share of the work that is done, in [0, 1]


def load(name_or_dir: str | Path, device: str = "auto", dtype: str = "auto") -> AudioGen:
    """Open a generator: a bundled model's name or a model directory of any family (so far: token language models)."""
    path = checkpoint.resolve(name_or_dir)
    kind = checkpoint.read_config(path)["kind"]
    if kind != KIND:
        raise InputError(f"{path} holds a model of kind {kind!r}, which does not generate; allowed: {KIND!r}")
    return AudioGen.from_pretrained(path, device, dtype)


class AudioGen:
    """Text to audio: a language model over the tokens of a codec. Implements `interfaces.Generator`.

    A row's audio is a function of its text, duration, seed and the settings: the same alone, in a batch and in any
    order, to the last bit on one machine. Different batch sizes would call different matrix kernels, which round
    differently, so the language model always runs on `batch_size` rows of one length (the last one repeated to fill
    up), and a row passes the text encoder and the codec by itself.
    """

    def __init__(
        self,
        lm: TokenLM,
        conditioner: T5Conditioner,
        codec: Codec,
        max_frames: int,
        info: Mapping[str, Any] | None = None,
    ):
        """max_frames: the longest sequence the language model runs on at once; longer sounds use a sliding window.

        All models must be in evaluation mode and on one device.
        """
        if (lm.config.codebook_size, lm.config.dim) != (codec.codebook_size, conditioner.width):
            raise InputError(
                f"the language model has {lm.config.codebook_size} codes and width {lm.config.dim}, but the codec "
                f"{codec.codebook_size} codes and the text encoder width {conditioner.width}; they must be equal"
            )
        if lm.config.num_codebooks > codec.num_codebooks:
            raise InputError(
                f"the language model has {lm.config.num_codebooks} codebooks, its codec only {codec.num_codebooks}"
            )
        self.lm, self.conditioner, self.codec = lm, conditioner, codec
        self.max_frames = max_frames
        self.info = dict(info or {})
        self.sample_rate, self.channels = codec.sample_rate, codec.channels
        self.max_duration_s = MAX_DURATION_S
        self.batch_size = ROWS_ON_CPU if self.device.type == "cpu" else ROWS_ELSEWHERE

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path = "lm_tiny", device: str = "auto", dtype: str = "auto"
    ) -> AudioGen:
        """Open a bundled model or a model directory.

        device: "cpu", "cuda", "cuda:1", "mps", or "auto": a CUDA GPU where there is one, else the CPU. dtype: of the
        language model, "float32", "bfloat16", "float16", or "auto" for bfloat16 on CUDA and float32 elsewhere; the
        text encoder and the codec stay in float32.
        """
        where = distributed.choose_device(device)
        pretrained = load_lm(name_or_dir, where, choose_dtype(dtype, where))
        reference = pretrained.codec
        codec = load_codec(reference.location, where)
        if codec.identity != reference.identity:
            raise InputError(
                f"{name_or_dir} was trained on the tokens of codec {reference.identity}, but {reference.location} is "
                f"{codec.identity}; put the codec it was trained with there"
            )
        return cls(pretrained.lm, pretrained.conditioner, codec, pretrained.max_frames, pretrained.info)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a model directory that `from_pretrained` opens; a codec that is not bundled is copied into it."""
        directory = Path(directory)
        location = self.codec.name
        if location not in checkpoint.bundled_names() or not _equal(load_codec(location), self.codec):
            location = str(directory / CODEC_FOLDER)
            save_codec(location, self.codec)
        reference = CodecReference(location, load_codec(location).identity)
        save_lm(directory, self.lm, self.conditioner, reference, self.max_frames, self.info)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.lm.heads.weight.device

    @property
    def frame_rate(self) -> float:
        """Frames of tokens a second, Hz."""
        return self.codec.sample_rate / self.codec.hop_length

    @property
    def family(self) -> str:
        """What kind of system this is, for tables."""
        return "token LM"

    @property
    def latent_rate(self) -> str:
        """What is generated: frames a second and codebooks."""
        return f"{self.frame_rate:g} Hz x {self.lm.config.num_codebooks}"

    @property
    def num_parameters(self) -> int:
        """Of language model, text encoder and codec."""
        modules = (self.lm, self.conditioner, self.codec)
        return sum(weight.numel() for module in modules for weight in module.parameters()) + sum(
            book.codewords.numel() for book in self.codec.quantizer.books
        )

    def num_evaluations(self, duration_s: float, guidance: float) -> int:
        """Decoding steps for one clip, each counted twice where guidance needs a second row."""
        return num_decoded(self.lm, self.num_frames(duration_s), self.max_frames) * (
            1 if guidance == 1 else 2
        )

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] at the model's rate and channels through its tokens -> [B, C, N]: its upper bound."""
        sounds = []
        for sound in audio:
            blocks = [sound[None].to(self.device, torch.float32)]
            codes = torch.cat(list(encode_stream(self.codec, blocks, self.lm.config.num_codebooks)), -1)
            sounds.append(self._decode(codes[0])[:, : audio.shape[-1]].cpu())
        return torch.stack(sounds)

    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Texts to audio [B, C, N]. The parameters mean what they mean in audiocraft, whose defaults these are.

        texts: one a row; None is no text. Repeat a text for several sounds of it.
        duration_s: of every row, or one a row; N is that of the longest, shorter rows end in silence.
        guidance: weight of the text (classifier-free guidance); 1 is none. negative: a text to move away from.
        temperature: 0 takes the most probable code. top_k: 0 keeps all codes. top_p: above 0 replaces top_k.
        seed: row b has seed + b, or one seed a row.
        """
        sampling = Sampling(temperature, top_k, top_p)
        return self._run(texts, duration_s, guidance, sampling, seed, negative, None, progress)

    def generate_continuation(
        self,
        prompt: Tensor,
        prompt_sample_rate: int,
        texts: Sequence[str | None] | None = None,
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Continue `prompt`, audio [B, C, N] or [C, N] for all rows, to audio [B, C, N] of duration_s in all.

        The result begins with the prompt as the codec renders it; what the prompt has beyond whole frames is left
        out. Any sample rate and channel count is converted. The other parameters are as in `generate`; texts None
        continues without text.
        """
        prompts = prompt[None] if prompt.dim() == 2 else prompt
        if prompts.dim() != 3 or prompts.shape[-1] == 0 or not prompts.isfinite().all():
            raise InputError(
                f"the sound to continue has shape {list(prompt.shape)} or samples that are not finite; "
                "give [C, N] or [B, C, N] with N of at least 1"
            )
        texts = [None] * len(prompts) if texts is None else texts
        if len(prompts) not in (1, len(texts)):
            raise InputError(
                f"{len(prompts)} sounds to continue for {len(texts)} texts; give one, or one a text"
            )
        codes = torch.cat([self._encode(one, prompt_sample_rate) for one in prompts])  # [B or 1, K, P]
        codes = codes.expand(len(texts), -1, -1)
        sampling = Sampling(temperature, top_k, top_p)
        return self._run(texts, duration_s, guidance, sampling, seed, negative, codes, progress)

    def generate_unconditional(
        self,
        num_samples: int,
        duration_s: float | Sequence[float] = 5.0,
        *,
        temperature: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        seed: int | Sequence[int] = 0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Audio [num_samples, C, N] without text; the parameters are as in `generate`."""
        sampling = Sampling(temperature, top_k, top_p)
        return self._run([None] * num_samples, duration_s, 1.0, sampling, seed, None, None, progress)

    def num_frames(self, duration_s: float) -> int:
        """Frames of tokens for a duration, checked: the last one may reach beyond it."""
        if not 0 < duration_s <= self.max_duration_s:  # also refuses NaN
            raise InputError(
                f"duration is {duration_s:g} s; it must be above 0 and at most {self.max_duration_s:g} s "
                "(continue a sound for more)"
            )
        return max(1, math.ceil(round(duration_s * self.frame_rate, 6)))  # 0.14 s at 50 Hz is 7 frames, not 8

    def num_samples(self, duration_s: float) -> int:
        """Audio samples for a duration."""
        return max(1, round(duration_s * self.sample_rate))

    @torch.inference_mode()
    def _run(
        self,
        texts: Sequence[str | None],
        duration_s: float | Sequence[float],
        guidance: float,
        sampling: Sampling,
        seed: int | Sequence[int],
        negative: str | None,
        prompt: Tensor | None,
        progress: Progress | None,
    ) -> Tensor:
        """Check everything, then generate group by group of alike rows -> audio [B, C, N] on the CPU."""
        _check_texts(texts, negative)
        if not math.isfinite(guidance):
            raise InputError(f"guidance is {guidance}; it must be a number, 1 for none")
        durations = _durations(duration_s, len(texts))
        seeds = _seeds(seed, len(texts))
        frames = [self.num_frames(duration) for duration in durations]
        if prompt is not None and min(frames) <= prompt.shape[-1]:
            known_s = prompt.shape[-1] / self.frame_rate
            raise InputError(
                f"duration is {min(durations):g} s, but the sound to continue has {known_s:g} s and the duration "
                "counts it in; give a longer one"
            )
        conditions = [_pad(self.conditioner([text])) for text in texts]
        without = None if negative is None else stack([self.conditioner([negative])] * self.batch_size)
        result = torch.zeros(len(texts), self.channels, max(map(self.num_samples, durations)))
        share_done = 0.0
        lengths = [condition.mask.shape[1] for condition in conditions]
        for rows in _alike(list(zip(lengths, frames, strict=True)), self.batch_size):
            filled = rows + rows[-1:] * (self.batch_size - len(rows))
            share = len(rows) / len(texts)
            codes = generate_tokens(
                self.lm,
                stack([conditions[row] for row in filled]),
                frames[rows[0]],
                sampling,
                seeds=[seeds[row] for row in filled],
                guidance=guidance,
                negative=without,
                prompt=None if prompt is None else prompt[filled],
                max_frames=self.max_frames,
                callback=_part_of(progress, share_done, share),
            )
            for row, row_codes in zip(rows, codes, strict=False):
                length = self.num_samples(durations[row])
                result[row, :, :length] = self._decode(row_codes)[:, :length].cpu()
            share_done += share
        return result

    def _encode(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Audio [C, N] of any rate and channels -> codes [1, K, P] of its whole frames (at least one)."""
        audio = audio_io.convert_channels(
            audio_io.resample(audio, sample_rate, self.sample_rate), self.channels
        )
        hop = self.codec.hop_length
        whole = max(1, audio.shape[-1] // hop) * hop
        blocks = [audio[None, :, :whole].to(self.device, torch.float32)]
        return torch.cat(list(encode_stream(self.codec, blocks, self.lm.config.num_codebooks)), -1)

    def _decode(self, codes: Tensor) -> Tensor:
        """Codes [K, T] -> audio [C, T * hop_length]."""
        return torch.cat(list(decode_stream(self.codec, [codes[None]])), -1)[0]


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The language model's number type on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in types:
        raise InputError(f"dtype is {name!r}; allowed: auto, {', '.join(types)}")
    return types[name]


def _equal(a: Codec, b: Codec) -> bool:
    """Whether all weights are the same; equal identities would still allow different decoders."""
    return checkpoint.identity(a.state_dict()) == checkpoint.identity(b.state_dict())


def _check_texts(texts: Sequence[str | None], negative: str | None) -> None:
    if isinstance(texts, str):
        raise InputError(f"texts is the one string {texts[:40]!r}; give a list of strings")
    if not texts:
        raise InputError("no texts; give at least one, or None in its place for no text")
    for row, text in enumerate(texts):
        if text is not None and not text.strip():
            raise InputError(f"text {row} is empty; give words, or None for no text")
    if negative is not None and not negative.strip():
        raise InputError("the negative text is empty; give words, or None for no text")


def _durations(value: float | Sequence[float], count: int) -> list[float]:
    """One duration a row."""
    durations = list(value) if isinstance(value, Sequence) else [value] * count
    if len(durations) != count:
        raise InputError(f"{len(durations)} durations for {count} texts; give one, or one a text")
    return durations


def _seeds(value: int | Sequence[int], count: int) -> list[int]:
    """One seed a row: those given, or counted up from the one given."""
    seeds = list(value) if isinstance(value, Sequence) else [value + row for row in range(count)]
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds for {count} texts; give one, or one a text")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed}; it must be from 0 to {2**63 - 1}")
    return seeds


def _alike(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Indices with equal keys, in order, at most `size` at a time."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _pad(condition: Condition) -> Condition:
    """Pad L to a multiple of TEXT_MULTIPLE, masked."""
    more = -condition.mask.shape[1] % TEXT_MULTIPLE
    return Condition(F.pad(condition.tokens, (0, 0, 0, more)), F.pad(condition.mask, (0, more)))


def _part_of(progress: Progress | None, before: float, share: float) -> Callable[[int, int], None] | None:
    """A callback (steps done, steps in all) for a part of the work that `progress` is told of."""
    if progress is None:
        return None
    return lambda done, total: progress(before + share * done / total)
