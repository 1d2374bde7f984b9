"""Generation: prefill the cache with the steps that are given, then decode step by step, with classifier-free guidance.

All randomness is one uniform number per code, drawn before decoding from a generator of the item's own seed and
laid out by frame. So an item's codes do not depend on its neighbours in the batch, on the device, or on the number
of frames: a longer clip begins like a shorter one with the same seed (under delay but for the last max(delays)
frames, whose steps hold special tokens; not under coarse_first, which plans all frames at once). What remains is
rounding: another batch size may take other matrix kernels, whose last bit can tip a draw that falls on the border
of two codes, about one in a million in float32 and more in bfloat16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from audiogen.config import NotNegative, Probability, Range, check_ranges
from audiogen.errors import InputError
from audiogen.interfaces import Condition, finite
from audiogen.lm import patterns
from audiogen.lm.model import LMConfig
from audiogen.lm.windows import Window, default_stride, plan_windows
from audiogen.text.condition import null, stack

Callback = Callable[[int, int], None]  # (steps done, steps in all), after every step


class Decoder(Protocol):
    """What runs the steps of a TokenLM: itself, or something faster with its weights.

    special: the id of "no code here". independent_rows: a row's logits are the same bits in a batch of any size.
    """

    special: int
    independent_rows: bool

    @property
    def config(self) -> LMConfig: ...

    @property
    def device(self) -> torch.device:
        """Where it takes conditions and steps, and leaves logits."""
        ...

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> Any:
        """Its `place` gives the steps other positions: see `transformer.KVCache.place`."""
        ...

    def step(self, steps: Tensor, cache: Any) -> Tensor: ...  # [B, K, S] -> [B, K, V]


@dataclass(frozen=True)
class TokenSampling:
    """How a code is drawn from its distribution; the defaults are audiocraft's.

    temperature: divides the logits; 0 takes the most probable code. top_k: keep the k most probable codes, and
    those tied with the last of them; 0 keeps all. top_p: if above 0, instead of top_k keep the most probable
    codes that together reach p.
    """

    temperature: Annotated[float, Range(0, below=True)] = 1.0
    top_k: NotNegative = 250
    top_p: Probability = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)


def draw(logits: Tensor, sampling: TokenSampling, uniform: Tensor) -> Tensor:
    """Codes int64 [...] from logits [..., V] and one number in [0, 1) [...] each, by inverting the distribution.

    The cumulative sum runs in the order of the code ids, not of probability: a rounding error that swaps two
    ranks then changes nothing.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(-1)
    below_best = logits - logits.amax(-1, keepdim=True)  # first, so that no temperature overflows
    probability = torch.softmax(below_best / sampling.temperature, dim=-1)
    if sampling.top_p > 0:
        ranked, order = probability.sort(dim=-1, descending=True)
        reached = ranked.cumsum(-1) - ranked > sampling.top_p  # by the codes before this one
        probability = torch.zeros_like(probability).scatter(-1, order, ranked.masked_fill(reached, 0.0))
    elif 0 < sampling.top_k < logits.shape[-1]:
        # a product, because to fill by a mask takes three times as long on a CPU
        probability = probability * (probability >= _largest(probability, sampling.top_k))
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    cumulative = probability.to(exact).cumsum(-1)
    height = uniform[..., None].to(exact) * cumulative[..., -1:]
    codes = torch.searchsorted(cumulative, height, right=True).squeeze(-1)
    return codes.clamp(max=logits.shape[-1] - 1)


def _largest(x: Tensor, k: int) -> Tensor:
    """The k-th largest of x [..., V] -> [..., 1]. NumPy, which has no sort to do, is 15 times as fast as topk."""
    if x.device.type != "cpu":
        return x.topk(k, dim=-1).values[..., -1:]
    return torch.from_numpy(np.partition(x.numpy(), -k, axis=-1)[..., -k, None])


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: logits [2 B, ...], with text first, then without -> float32 [B, ...].

    u + (c - u) guidance (Ho and Salimans, 2022, with guidance = 1 + w): 1 is the conditional model, 0 the
    unconditional.
    """
    conditional, unconditional = logits.float().chunk(2)
    return unconditional + (conditional - unconditional) * guidance


class Draws(NamedTuple):
    """How a step's codes are drawn: from the logits of R rows, R = 2 B with guidance, by numbers in [0, 1) [B, K]."""

    guidance: float | None  # None is without
    sampling: TokenSampling
    uniform: Tensor


class Step(NamedTuple):
    """A step that a generation waits for, [R, K, S] on a cache.

    Its result are codes [B, K] of the step after it or, without draws, the logits [R, K, V].
    """

    steps: Tensor
    cache: Any
    draws: Draws | None = None


# Yields each step that the model is to run, is sent its result, and yields codes [B, K, n] when there are some.
Generation = Generator[Step | Tensor, Tensor | None, None]


@torch.inference_mode()
def run(decoder: Decoder, generation: Generation) -> Iterator[Tensor]:
    """Codes [B, K, n] of a generation, whose steps run on a decoder; one that joins those of others does it itself."""
    if hasattr(decoder, "run"):
        yield from decoder.run(generation)
        return
    answer: Tensor | None = None
    try:
        while True:
            event = generation.send(answer)
            answer = None
            if isinstance(event, Step):
                answer = decoder.step(event.steps, event.cache)
                if event.draws is not None:
                    (answer,) = draw_all([answer], [event.draws])
            else:
                yield event
    except StopIteration:
        return
    finally:
        generation.close()


def draw_all(logits: Sequence[Tensor], draws: Sequence[Draws]) -> list[Tensor]:
    """Codes int64 [B, K] from the logits [R, K, V] of several requests, at once where they are drawn alike."""
    codes: list[Tensor] = [torch.empty(0)] * len(draws)
    alike: dict[Any, list[int]] = {}
    for index, each in enumerate(draws):
        alike.setdefault((each.guidance, each.sampling), []).append(index)
    for (guidance, sampling), indices in alike.items():
        copies = 1 if guidance is None else 2
        parts = [logits[index].chunk(copies) for index in indices]
        together = torch.cat([part[copy] for copy in range(copies) for part in parts])
        together = finite(together if guidance is None else guide(together, guidance), "logits")
        uniform = [draws[index].uniform for index in indices]
        drawn = draw(together, sampling, torch.cat(uniform))
        for index, own in zip(indices, drawn.split(list(map(len, uniform))), strict=True):
            codes[index] = own
    return codes


@dataclass(frozen=True)
class TokenRequest:
    """Rows of codes to generate, B of each.

    condition: the text, B rows on the decoder's device; None generates without. num_frames: length of every row, or
    one per row, the prompt included; None is a stream without an end. seeds: one per row. guidance: 1 turns it off
    and halves the work. negative: what guidance moves away from, B rows; None is no text. prompt: codes [B, K, P]
    to continue; the result begins with them.
    """

    condition: Condition | None
    num_frames: int | Sequence[int] | None
    seeds: Sequence[int]
    guidance: float = 3.0
    negative: Condition | None = None
    prompt: Tensor | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the model runs on 2 B rows: with the text, then without."""
        return self.guidance != 1.0 and (self.condition is not None or self.negative is not None)

    def lengths(self, num_given: int) -> list[int]:
        """Frames of each row [B]; without an end one more than the prompt's."""
        if self.num_frames is None:
            return [num_given + 1] * len(self.seeds)
        frames = self.num_frames
        return [frames] * len(self.seeds) if isinstance(frames, int) else list(frames)

    def codes(self, num_codebooks: int) -> Tensor:
        """The prompt, or no frames, int64 [B, K, P]."""
        nothing = torch.zeros(len(self.seeds), num_codebooks, 0, dtype=torch.long)
        return nothing if self.prompt is None else self.prompt

    def model_condition(self, decoder: Decoder) -> Condition | None:
        """The condition of the rows that the model runs on, B or 2 B."""
        if not self.is_guided:
            return self.condition
        nothing = null(len(self.seeds), decoder.config.dim, decoder.device)
        return stack([self.condition or nothing, self.negative or nothing])

    def check(self, decoder: Decoder) -> None:
        """Refuse rows that do not fit one another or the model."""
        if getattr(decoder, "training", False):
            raise ValueError("the model is in training mode, where dropout is active; call lm.eval() first")
        num_codebooks, codebook_size = decoder.config.num_codebooks, decoder.config.codebook_size
        prompt = self.codes(num_codebooks)
        lengths = self.lengths(prompt.shape[2])
        counts = {"num_frames": len(lengths), "prompt": len(prompt)}
        counts |= {"condition": len(self.condition.mask)} if self.condition is not None else {}
        counts |= {"negative": len(self.negative.mask)} if self.negative is not None else {}
        for name, count in counts.items():
            if count != len(self.seeds) or not count:
                raise ValueError(
                    f"{name} has {count} rows and there are {len(self.seeds)} seeds; one a row is needed"
                )
        if prompt.shape[1] != num_codebooks:
            raise InputError(f"the prompt has {prompt.shape[1]} codebooks; this model has {num_codebooks}")
        if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < codebook_size:
            raise InputError(
                f"the prompt's codes go from {prompt.min()} to {prompt.max()}; "
                f"this model's from 0 to {codebook_size - 1}"
            )
        if min(lengths) <= prompt.shape[2]:
            raise InputError(
                f"{min(lengths)} frames asked for, with a prompt of {prompt.shape[2]}: the length includes the "
                "prompt and must be longer"
            )


def generate_tokens(
    decoder: Decoder,
    request: TokenRequest,
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    max_frames: int | None = None,
    stride: int | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Generate codes int64 [B, K, T], T the longest row's frames; past a shorter row's end they are 0.

    decoder: a TokenLM, or something faster with its weights.
    max_frames: longest sequence to run the model on, in general the one it was trained on; None is no limit.
        Longer clips are made in windows that each add `stride` frames (by default a fifth of max_frames, as
        audiocraft's AudioGen does) to those before.
    """
    request.check(decoder)
    config, device, seeds = decoder.config, decoder.device, request.seeds
    prompt = request.codes(config.num_codebooks)
    num_given = prompt.shape[2]
    lengths = request.lengths(num_given)
    longest = max(lengths)
    max_frames = longest if max_frames is None else max_frames
    stride = default_stride(max_frames) if stride is None else stride
    if longest > max_frames and not 1 <= stride < max_frames:
        raise InputError(
            f"stride is {stride} frames; it must be from 1 to {max_frames - 1}, below max_frames"
        )
    codes = torch.zeros(len(seeds), config.num_codebooks, longest, dtype=torch.long, device=device)
    codes[..., :num_given] = prompt
    uniform = draw_noise(seeds, lengths, config.num_codebooks).to(device)
    condition = request.model_condition(decoder)
    guidance = request.guidance if request.is_guided else None

    sequences = []
    for window in plan_windows(num_given, longest, max_frames, stride):
        rows = [row for row, length in enumerate(lengths) if length > window.given]
        sequences.append((window, rows, _lay_out(config, window, [lengths[row] for row in rows])))
    total = sum(layout.num_decoded for _, _, layout in sequences)
    count = itertools.count(1)

    def advance() -> None:
        if callback is not None:
            callback(next(count), total)

    def windows() -> Generation:
        for window, rows, layout in sequences:
            part = torch.tensor(rows, device=device), slice(None), slice(window.begin, window.end)
            model_rows = rows if guidance is None else [*rows, *(len(seeds) + row for row in rows)]
            text = _rows(condition, model_rows)
            codes[part] = yield from decode(
                decoder, text, codes[part], uniform[part], layout, sampling, guidance, advance
            )

    for _ in run(decoder, windows()):
        pass  # it fills `codes`
    return codes


def num_decoded(config: LMConfig, num_frames: int, max_frames: int) -> int:
    """Decoding steps that `generate_tokens` takes for one clip without a prompt, at its default stride."""
    windows = plan_windows(0, num_frames, max_frames, default_stride(max_frames))
    return sum(_lay_out(config, window, [num_frames]).num_decoded for window in windows)


def draw_noise(seeds: Sequence[int], lengths: Sequence[int], num_codebooks: int) -> Tensor:
    """A number in [0, 1) for every code, [B, K, T], frame by frame from a generator of each row's seed."""
    noise = torch.zeros(len(seeds), num_codebooks, max(lengths))
    for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        noise[row, :, :length] = torch.rand(length, num_codebooks, generator=generator).T
    return noise


class Layout(NamedTuple):
    """A window as a sequence of steps: new codes, bool [B or 1, K, S], and the first step with one.

    places: the positions of the steps, int64 [S]; None is 0, 1, 2 ...
    """

    pattern: patterns.Pattern  # one for each row, or for all
    is_new: Tensor
    first: int
    places: Tensor | None = None

    @property
    def num_decoded(self) -> int:
        return self.pattern.num_steps - self.first


def _lay_out(config: LMConfig, window: Window, lengths: Sequence[int]) -> Layout:
    """Rows that end inside the window have a pattern of their own length, as they would have alone."""
    given = window.given - window.begin
    each = [config.pattern_of(min(length, window.end) - window.begin) for length in lengths]
    first = min(int(pattern.step[:, given:].min()) for pattern in each)
    pattern = patterns.stack(each)
    return Layout(pattern, pattern.frame >= given, first)


def _rows(condition: Condition | None, rows: list[int]) -> Condition | None:
    """These rows of a condition, in this order."""
    return None if condition is None else Condition(condition.tokens[rows], condition.mask[rows])


def decode(
    decoder: Decoder,
    condition: Condition | None,
    codes: Tensor,
    uniform: Tensor,
    layout: Layout,
    sampling: TokenSampling,
    guidance: float | None,
    advance: Callable[[], None],
) -> Generator[Step | Tensor, Tensor | None, Tensor]:
    """The generation that completes codes [B, K, T] of a window; with guidance, condition and model have 2 B rows."""
    pattern = layout.pattern
    steps = patterns.interleave(codes, pattern, decoder.special)
    uniform = patterns.interleave(uniform, pattern, 0)
    is_new = layout.is_new.to(codes.device)
    copies = 1 if guidance is None else 2
    cache = decoder.new_cache(condition, copies * len(codes), pattern.num_steps)
    if layout.places is not None:
        cache.place(layout.places)
    new = steps[..., : layout.first]
    for step in range(layout.first, pattern.num_steps):
        drawn = yield Step(new.repeat(copies, 1, 1), cache, Draws(guidance, sampling, uniform[..., step]))
        assert drawn is not None
        steps[..., step] = torch.where(is_new[..., step], drawn, steps[..., step])
        new = steps[..., step : step + 1]
        advance()
    completed = patterns.deinterleave(steps, pattern)  # [B, K, T]
    return completed.masked_fill(completed == decoder.special, 0)  # past the end of a shorter row
