"""Generation against a slow oracle: one row, no cache, everything recomputed at every step."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.patterns import PATTERNS
from audiogen.lm.sample import TokenRequest, TokenSampling, draw, generate_tokens, guide
from audiogen.lm.stream import stream_tokens
from audiogen.lm.windows import Window, plan_windows
from audiogen.text.condition import null

K, V, D = 3, 11, 24
GREEDY = TokenSampling(temperature=0)


def make_lm(pattern: str = "delay") -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(K, V, D, num_layers=2, num_heads=4, pattern=pattern)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for block in lm.layers:  # the text matters more than at initialisation
            block.cross_attention.text_proj.weight *= 3  # type: ignore[union-attr, operator]
    return lm


def random_text(lengths: Sequence[int]) -> Condition:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(*mask.shape, D, generator=torch.Generator().manual_seed(2))
    return Condition(tokens * mask[..., None], mask)


def row(condition: Condition, index: int) -> Condition:
    """One row without its padding."""
    length = int(condition.mask[index].sum())
    return Condition(condition.tokens[index : index + 1, :length], condition.mask[index : index + 1, :length])


@torch.no_grad()
def oracle(
    lm: TokenLM, text: Condition | None, num_frames: int, sampling: TokenSampling, seed: int, guidance: float,
    prompt: Tensor, max_frames: int, stride: int, negative: Condition | None = None,
) -> Tensor:  # fmt: skip
    """What `generate_tokens` means, for one row [K, T]: forward passes over the whole sequence, twice for guidance."""
    noise = torch.rand(num_frames, K, generator=torch.Generator().manual_seed(seed))
    codes = [list(frame) for frame in prompt.T.tolist()]  # frames of K codes
    while len(codes) < num_frames:
        begin = 0 if len(codes) < max_frames else len(codes) - (max_frames - stride)
        end = min(begin + max_frames, num_frames)
        pattern = lm.config.pattern_of(end - begin)
        given = len(codes) - begin
        sequence = torch.full((K, pattern.num_steps), lm.special)
        for s in range(1, pattern.num_steps):
            for k in range(K):
                frame = int(pattern.frame[k, s])
                if frame < 0:
                    continue
                if frame < given:
                    sequence[k, s] = codes[begin + frame][k]
                    continue
                conditional = lm(sequence[None, :, :s], text)[0, k, -1]
                without = lm(sequence[None, :, :s], negative)[0, k, -1]
                logits = without + guidance * (conditional - without)
                sequence[k, s] = draw(logits, sampling, noise[begin + frame, k])
        window = sequence.gather(1, pattern.step).T.tolist()
        codes += window[given:]
    return torch.tensor(codes).T


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_plain_recomputation(pattern: str, guidance: float) -> None:
    lm, text = make_lm(pattern), random_text([5, 2])
    prompt = torch.randint(0, V, (2, K, 2), generator=torch.Generator().manual_seed(3))
    codes = generate_tokens(
        lm, TokenRequest(text, 7, [4, 5], guidance=guidance, prompt=prompt), TokenSampling(top_k=5)
    )
    assert torch.equal(codes[..., :2], prompt)
    for b in range(2):
        expected = oracle(lm, row(text, b), 7, TokenSampling(top_k=5), 4 + b, guidance, prompt[b], 7, 1)
        assert torch.equal(codes[b], expected)


@pytest.mark.parametrize("prompt_frames", [0, 3, 8])  # none, inside the first window, longer than a window
@pytest.mark.parametrize("pattern", PATTERNS)
def test_windows_past_the_trained_length_equal_plain_recomputation(pattern: str, prompt_frames: int) -> None:
    lm, text = make_lm(pattern), random_text([4])
    prompt = torch.randint(0, V, (1, K, prompt_frames), generator=torch.Generator().manual_seed(3))
    codes = generate_tokens(lm, TokenRequest(text, 13, [9], prompt=prompt), max_frames=6, stride=2)
    assert torch.equal(codes[0], oracle(lm, text, 13, TokenSampling(), 9, 3.0, prompt[0], 6, 2))


def test_windows_cover_the_clip_with_the_context_asked_for() -> None:
    assert plan_windows(0, 10, 10, 2) == [Window(0, 0, 10)]
    assert plan_windows(0, 13, 10, 2) == [Window(0, 0, 10), Window(2, 10, 12), Window(4, 12, 13)]
    assert plan_windows(4, 12, 10, 5) == [Window(0, 4, 10), Window(5, 10, 12)]
    assert plan_windows(25, 28, 10, 2) == [Window(17, 25, 27), Window(19, 27, 28)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_same_seed_same_codes_alone_in_a_batch_in_any_order(pattern: str) -> None:
    """Also with a length for each, and windows that some rows never reach."""
    lm, text = make_lm(pattern), random_text([5, 2, 3, 1])
    lengths, seeds = [7, 13, 4, 6], [10, 3, 10, -8]
    batch = generate_tokens(lm, TokenRequest(text, lengths, seeds), max_frames=6, stride=2)
    assert batch.shape == (4, K, 13)
    for b in range(4):
        alone = generate_tokens(
            lm, TokenRequest(row(text, b), lengths[b], [seeds[b]]), max_frames=6, stride=2
        )
        assert torch.equal(batch[b, :, : lengths[b]], alone[0])
        assert (batch[b, :, lengths[b] :] == 0).all()
    order = [2, 0, 3, 1]
    text = Condition(text.tokens[order], text.mask[order])
    request = TokenRequest(text, [lengths[b] for b in order], [seeds[b] for b in order])
    shuffled = generate_tokens(lm, request, max_frames=6, stride=2)
    assert torch.equal(shuffled, batch[order])


def test_other_seeds_give_other_codes_and_the_global_generator_is_left_alone() -> None:
    lm, text = make_lm(), random_text([5])
    before = torch.random.get_rng_state()
    one, two = (generate_tokens(lm, TokenRequest(text, 7, [seed])) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_a_longer_clip_begins_like_a_shorter_one(pattern: str) -> None:
    lm, text = make_lm(pattern), random_text([5])
    short, long = (generate_tokens(lm, TokenRequest(text, n, [1])) for n in (20, 33))
    same = 20 - (K - 1 if pattern == "delay" else 0)  # the last codes see whether codebook 0 goes on
    assert torch.equal(long[..., :same], short[..., :same])


def test_temperature_zero_is_argmax_whatever_the_seed() -> None:
    logits = torch.randn(2, K, V, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits, GREEDY, torch.full((2, K), 0.99)), logits.argmax(-1))
    tiny = TokenSampling(temperature=1e-42)  # and its neighbourhood is no trap
    assert torch.equal(draw(logits, tiny, torch.full((2, K), 0.99)), logits.argmax(-1))
    lm, text = make_lm(), random_text([5])
    assert torch.equal(*(generate_tokens(lm, TokenRequest(text, 7, [seed]), GREEDY) for seed in (1, 2)))


def shares(probability: Sequence[float], sampling: TokenSampling) -> list[float]:
    """How often each code is drawn, over an even grid of 10,000 uniform numbers."""
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    logits = torch.tensor(probability).log().expand(10_000, -1)
    return (draw(logits, sampling, uniform).bincount(minlength=len(probability)) / 10_000).tolist()


def test_codes_are_drawn_with_their_probability() -> None:
    p = [0.1, 0.4, 0.3, 0.2]
    assert shares(p, TokenSampling(top_k=0)) == pytest.approx(p, abs=1e-3)
    squared = [x * x / sum(y * y for y in p) for x in p]
    assert shares(p, TokenSampling(top_k=0, temperature=0.5)) == pytest.approx(squared, abs=1e-3)


def test_top_k_keeps_the_k_best_and_those_tied_with_the_last() -> None:
    assert shares([0.1, 0.4, 0.3, 0.2], TokenSampling(top_k=2)) == pytest.approx(
        [0, 4 / 7, 3 / 7, 0], abs=1e-3
    )
    ties = [0.1, 0.4, 0.2, 0.2, 0.1]
    assert shares(ties, TokenSampling(top_k=2)) == pytest.approx([0, 0.5, 0.25, 0.25, 0], abs=1e-3)
    assert shares(ties, TokenSampling(top_k=250)) == pytest.approx(ties, abs=1e-3)


def test_top_p_keeps_the_fewest_that_reach_p_and_overrides_top_k() -> None:
    p = [0.1, 0.4, 0.3, 0.2]
    assert shares(p, TokenSampling(top_p=0.6)) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-3)
    assert shares(p, TokenSampling(top_p=0.75, top_k=1)) == pytest.approx([0, 4 / 9, 3 / 9, 2 / 9], abs=1e-3)
    assert shares(p, TokenSampling(top_p=1e-6)) == [0, 1, 0, 0]
    assert shares(p, TokenSampling(top_p=1.0, top_k=1)) == pytest.approx(p, abs=1e-3)


def test_the_largest_and_smallest_noise_draw_possible_codes() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert draw(logits, TokenSampling(), torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]


def test_guidance_formula() -> None:
    conditional, unconditional = torch.randn(2, 2, K, V).unbind(0)
    both = torch.cat([conditional, unconditional])
    torch.testing.assert_close(guide(both, 1.0), conditional)
    assert torch.equal(guide(both, 0.0), unconditional)
    torch.testing.assert_close(guide(both, 3.0), 3 * conditional - 2 * unconditional)


def test_generation_without_text() -> None:
    lm, text = make_lm(), random_text([5, 2])
    none = generate_tokens(lm, TokenRequest(None, 7, [1, 2]))
    assert torch.equal(none, generate_tokens(lm, TokenRequest(null(2, D), 7, [1, 2])))
    mixed = Condition(text.tokens * torch.tensor([1.0, 0.0])[:, None, None], text.mask)  # row 1 has no text
    assert torch.equal(generate_tokens(lm, TokenRequest(mixed, 7, [1, 2]))[1], none[1])
    assert not torch.equal(generate_tokens(lm, TokenRequest(text, 7, [1, 2])), none)


def test_negative_prompt_takes_the_place_of_no_text() -> None:
    lm, text, negative = make_lm(), random_text([5]), random_text([3])
    negative = Condition(-negative.tokens, negative.mask)
    codes = generate_tokens(lm, TokenRequest(text, 7, [1], negative=negative))
    nothing = torch.zeros(K, 0, dtype=torch.long)
    assert torch.equal(codes[0], oracle(lm, text, 7, TokenSampling(), 1, 3.0, nothing, 7, 1, negative))
    assert not torch.equal(codes, generate_tokens(lm, TokenRequest(text, 7, [1])))
    unguided = generate_tokens(lm, TokenRequest(text, 7, [1], guidance=1.0))
    assert torch.equal(generate_tokens(lm, TokenRequest(text, 7, [1], negative=text)), unguided)


def test_callback_counts_up_to_the_total() -> None:
    lm, calls = make_lm(), []
    prompt = torch.zeros(2, K, 2, dtype=torch.long)
    request = TokenRequest(None, [5, 13], [0, 1], prompt=prompt)
    generate_tokens(
        lm, request, max_frames=6, stride=3, callback=lambda done, total: calls.append((done, total))
    )
    # windows [0, 6) from frame 2, [3, 9) from 6, [6, 12) from 9, [9, 13) from 12; two more steps each for the delays
    total = (4 + 2) + (3 + 2) + (3 + 2) + (1 + 2)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_bad_arguments_are_named() -> None:
    lm, text = make_lm(), random_text([5, 2])
    prompt = torch.zeros(2, K, 4, dtype=torch.long)
    with pytest.raises(InputError, match="4 frames asked for, with a prompt of 4"):
        generate_tokens(lm, TokenRequest(text, [7, 4], [1, 2], prompt=prompt))
    with pytest.raises(InputError, match="0 frames asked for"):
        generate_tokens(lm, TokenRequest(text, 0, [1, 2]))
    with pytest.raises(InputError, match="from 0 to 11; this model's from 0 to 10"):
        generate_tokens(
            lm, TokenRequest(text, 7, [1, 2], prompt=torch.where(torch.arange(4) == 2, V, prompt))
        )
    with pytest.raises(InputError, match="the prompt has 2 codebooks; this model has 3"):
        generate_tokens(lm, TokenRequest(text, 7, [1, 2], prompt=prompt[:, :2]))
    with pytest.raises(InputError, match=r"stride is 6 frames; it must be from 1 to 5"):
        generate_tokens(lm, TokenRequest(text, 7, [1, 2]), max_frames=6, stride=6)
    with pytest.raises(ValueError, match="condition has 2 rows and there are 3 seeds"):
        generate_tokens(lm, TokenRequest(text, 7, [1, 2, 3]))
    with pytest.raises(ValueError, match=r"call lm.eval\(\) first"):
        generate_tokens(make_lm().train(), TokenRequest(text, 7, [1, 2]))
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TokenSampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_logits_that_are_no_numbers_are_an_error_and_not_codes(value: float) -> None:
    lm = make_lm()
    lm.heads.weight.data.fill_(value)
    with pytest.raises(InputError, match="the model gives logits that are not finite"):
        generate_tokens(lm, TokenRequest(random_text([2]), 7, [0]), max_frames=40)
    with pytest.raises(InputError, match="the model gives logits that are not finite"):
        next(stream_tokens(lm, TokenRequest(random_text([2]), None, [0]), max_frames=40))
