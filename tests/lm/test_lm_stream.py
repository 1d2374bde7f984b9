"""Streaming of tokens: what whole generation gives, windows against a model run afresh each step, constant memory."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm import stream
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.patterns import make_pattern, schedule
from audiogen.lm.sample import TokenRequest, TokenSampling, draw, generate_tokens, guide
from audiogen.lm.stream import stream_tokens

B, K, V, D = 2, 3, 11, 16
PATTERNS = ["delay", "parallel", "flatten"]


def make_lm(pattern: str = "delay", delays: tuple[int, ...] = ()) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(K, V, D, 2, 2, pattern=pattern, delays=delays)).eval()  # type: ignore[arg-type]
    lm.heads.weight.data.mul_(4.0)
    return lm


def random_text() -> Condition:
    torch.manual_seed(1)
    return Condition(torch.randn(B, 4, D), torch.ones(B, 4, dtype=torch.bool))


def joined(frames: object) -> Tensor:
    return torch.cat(list(frames), -1)  # type: ignore[call-overload]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0},
        {"guidance": 3.0},
        {"prompt": torch.arange(B * K * 4).reshape(B, K, 4) % V},
        {"negative": Condition(torch.ones(B, 2, D), torch.ones(B, 2, dtype=torch.bool))},
        {"sampling": TokenSampling(0.0)},
    ],
)
def test_within_one_window_it_is_the_whole_sound_frame_by_frame(pattern: str, settings: dict) -> None:
    settings = dict(settings)
    lm, text = make_lm(pattern), random_text()
    sampling = settings.pop("sampling", TokenSampling())
    request = TokenRequest(text, 17, [3, 4], **settings)
    whole = generate_tokens(lm, request, sampling)
    for max_frames in (17, 40):
        frames = list(stream_tokens(lm, request, sampling, max_frames=max_frames))
        assert [frame.shape for frame in frames] == [(B, K, 1)] * 17
        assert torch.equal(joined(frames), whole)


def test_a_frame_comes_as_soon_as_its_last_code_is_drawn() -> None:
    lm, seen = make_lm("delay", (0, 2, 1)), []
    step = lm.step

    def watched(steps: Tensor, cache: object) -> Tensor:
        seen.append(steps.shape[2])
        return step(steps, cache)  # type: ignore[arg-type]

    lm.step = watched  # type: ignore[method-assign]
    frames = stream_tokens(lm, TokenRequest(None, None, [0]), max_frames=40)
    for count in range(5):
        next(frames)
        assert sum(seen) == 3 + count  # the largest delay, and itself


def test_a_stream_without_an_end_begins_like_every_sound_of_its_seed() -> None:
    lm, text = make_lm("parallel"), random_text()
    endless = joined(islice(stream_tokens(lm, TokenRequest(text, None, [3, 4]), max_frames=20), 20))
    assert torch.equal(endless, generate_tokens(lm, TokenRequest(text, 20, [3, 4])))


@torch.no_grad()
def windows_run_afresh(lm: TokenLM, text: Condition, num_frames: int, max_frames: int, stride: int) -> Tensor:
    """The definition: each step by a forward pass over the window that has it, begun at every stride-th frame."""
    places = make_pattern(lm.config.pattern, K, num_frames, lm.config.delays or None)
    longest = lm.config.pattern_of(max_frames).num_steps
    per_frame = lm.config.schedule().steps_per_frame
    uniform = torch.stack(
        [torch.rand(num_frames, K, generator=torch.Generator().manual_seed(s)).T for s in (3, 4)]
    )
    steps = torch.full((B, K, places.num_steps), lm.special)
    begin = 0
    for step in range(1, places.num_steps):
        if step - begin * per_frame >= longest:
            begin += stride
        seen = steps[..., begin * per_frame : step].clone()
        seen[:, places.frame[:, begin * per_frame : step] < begin] = lm.special
        both = Condition(torch.cat([text.tokens, torch.zeros_like(text.tokens)]), text.mask.repeat(2, 1))
        logits = guide(lm(seen.repeat(2, 1, 1), both)[:, :, -1], 3.0)
        frame = places.frame[:, step]
        drawn = draw(logits, TokenSampling(), uniform[:, torch.arange(K), frame.clamp(min=0)])
        steps[..., step] = torch.where(frame >= 0, drawn, steps[..., step])
    return torch.stack([steps[:, k, places.step[k]] for k in range(K)], 1)


@pytest.mark.parametrize("stride", [1, 4, 9])
@pytest.mark.parametrize(("pattern", "delays"), [("delay", (0, 2, 1)), ("parallel", ()), ("flatten", ())])
def test_past_a_window_the_next_one_has_heard_its_frames_and_no_others(
    pattern: str, delays: tuple[int, ...], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, text = make_lm(pattern, delays), random_text()
    expected = windows_run_afresh(lm, text, 40, 9, stride)
    for block in (1, 3, 16):
        monkeypatch.setattr(stream, "BLOCK", block)
        frames = stream_tokens(lm, TokenRequest(text, 40, [3, 4]), max_frames=9, stride=stride)
        assert torch.equal(joined(frames), expected)


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_no_step_hears_more_than_a_block_and_nothing_old_is_kept(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the long run: the work of a step and what is in memory are bounded, whatever came before."""
    monkeypatch.setattr(stream, "BLOCK", 5)
    lm, calls, buffers = make_lm(pattern), [], []
    per_frame = lm.config.schedule().steps_per_frame
    step = lm.step

    def watched(steps: Tensor, cache: object) -> Tensor:
        calls.append(steps.shape[2])
        return step(steps, cache)  # type: ignore[arg-type]

    lm.step = watched  # type: ignore[method-assign]
    make = stream.StepBuffer

    def kept(*arguments: object) -> object:
        buffers.append(make(*arguments))  # type: ignore[arg-type]
        return buffers[-1]

    monkeypatch.setattr(stream, "StepBuffer", kept)
    frames = stream_tokens(lm, TokenRequest(None, None, [0]), max_frames=20)
    for _ in range(150):
        before = len(calls)
        next(frames)
        assert sum(calls[before:]) <= (2 * 5 + 1 + K) * per_frame
    (buffer,) = buffers
    assert len(buffer.steps) < (2 * 20 + 5) * per_frame and buffer.uniform.shape[2] <= 2 * stream.NOISE_STEPS


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten", "coarse_first"])
def test_whole_sounds_past_a_window_are_those_of_the_stream_where_there_is_one(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 2)
    lm, text, reports, runs = make_lm(pattern), random_text(), [], []
    request = TokenRequest(text, 20, [3, 4])
    step = lm.step

    def watched(steps: Tensor, cache: object) -> Tensor:
        runs.append(steps.shape[2])
        return step(steps, cache)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "step", watched)
    whole = stream.generate_any_length(lm, request, max_frames=9, callback=lambda *at: reports.append(at))
    assert len(runs) == stream.num_decoded(lm.config, 20, 9)
    if pattern != "coarse_first":
        assert torch.equal(whole, joined(stream_tokens(lm, request, max_frames=9)))
        assert reports == [(frame, 20) for frame in range(1, 21)]
        with pytest.raises(ValueError, match="rows of 4 to 20 frames; past 9 all have one length"):
            stream.generate_any_length(lm, TokenRequest(text, [4, 20], [3, 4]), max_frames=9)
    else:
        assert torch.equal(whole, generate_tokens(lm, request, max_frames=9))
    assert reports[-1][0] == reports[-1][1]
    within = TokenRequest(text, [4, 9], [3, 4])
    assert torch.equal(
        stream.generate_any_length(lm, within, max_frames=9), generate_tokens(lm, within, max_frames=9)
    )


def test_a_prompt_longer_than_a_window_is_heard_from_its_end_on() -> None:
    lm, prompt = make_lm("parallel"), torch.randint(0, V, (B, K, 25))
    frames = joined(stream_tokens(lm, TokenRequest(None, 26, [0, 1], prompt=prompt), max_frames=9, stride=4))
    assert torch.equal(frames[..., :25], prompt)
    again = joined(
        stream_tokens(lm, TokenRequest(None, 26, [0, 1], prompt=prompt.flip(2)), max_frames=9, stride=4)
    )
    assert not torch.equal(again[..., 25:], frames[..., 25:])
    other = torch.cat([prompt[..., :20].flip(2), prompt[..., 20:]], -1)  # 5 frames are seen
    same = joined(stream_tokens(lm, TokenRequest(None, 26, [0, 1], prompt=other), max_frames=9, stride=4))
    assert torch.equal(same[..., 25:], frames[..., 25:])


def test_the_schedule_is_that_of_the_pattern() -> None:
    for pattern in PATTERNS:
        found, whole = schedule(pattern, K), make_pattern(pattern, K, 12)
        for step in range(whole.num_steps):
            there = [frame if frame < 12 else -1 for frame in found.frames(step)]
            assert [max(frame, -1) for frame in there] == whole.frame[:, step].tolist()
            later = whole.frame[:, step:]
            assert found.first_from(step) == int(later[later >= 0].min())
            assert (
                found.complete(step) == int((whole.step.amax(0) <= step).sum())
                or step > whole.step[:, -1].min()
            )


def test_what_cannot_be_streamed_is_said() -> None:
    with pytest.raises(InputError, match="coarse_first plans all frames at once and cannot be streamed"):
        stream_tokens(make_lm("coarse_first"), TokenRequest(None, None, [0]), max_frames=9)
    with pytest.raises(InputError, match="stride is 10 frames; it must be from 1 to max_frames, 9"):
        stream_tokens(make_lm(), TokenRequest(None, None, [0]), max_frames=9, stride=10)
    with pytest.raises(ValueError, match="condition has 2 rows and there are 1 seeds"):
        stream_tokens(make_lm(), TokenRequest(random_text(), None, [0]), max_frames=9)
