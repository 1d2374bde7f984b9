"""Infilling: the gap comes last in the sequence, at its own positions; training and decoding see the same."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm import infill
from audiogen.lm.backbone import BackboneConfig
from audiogen.lm.kernels.graph import GraphLM
from audiogen.lm.kernels.native import NativeLM
from audiogen.lm.kernels.packed import PackedLM
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing, token_loss
from audiogen.lm.patterns import PATTERNS, deinterleave, interleave
from audiogen.lm.sample import Decoder, TokenRequest, TokenSampling, generate_tokens
from audiogen.native.library import library
from audiogen.text.condition import from_rows, null

V = 11
QWEN3 = BackboneConfig(num_kv_heads=1, head_dim=6, ff_dim=20)


def config_of(pattern: str = "delay", num_codebooks: int = 3, **others: object) -> LMConfig:
    sizes = {"codebook_size": V, "dim": 8, "num_layers": 2, "num_heads": 2, "ff_mult": 2, "infills": True}
    return LMConfig(num_codebooks=num_codebooks, pattern=pattern, **sizes | others)  # type: ignore[arg-type]


def model_of(config: LMConfig) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(config).eval()
    for block in lm.layers:  # attention that is not flat, so that positions count
        block.self_attention.in_proj.weight.data.mul_(3)
    return lm


def clip(num_codebooks: int = 3, num_frames: int = 7, rows: int = 1) -> Tensor:
    return torch.randint(V, (rows, num_codebooks, num_frames), generator=torch.Generator().manual_seed(1))


GAPS = [(0, 1), (0, 6), (2, 5), (3, 4), (5, 7), (0, 7)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("gap", GAPS)
def test_the_arrangement_is_inverted_exactly_and_its_steps_keep_their_positions(
    pattern: str, num_codebooks: int, gap: infill.Gap
) -> None:
    config, codes = config_of(pattern, num_codebooks), clip(num_codebooks)
    arranged, places = infill.arrange(config, 7, gap)
    steps = interleave(codes, arranged, V)
    assert torch.equal(deinterleave(steps, arranged), codes)
    assert int((steps < V).sum()) == codes.numel()
    whole = config.pattern_of(7)
    for book in range(num_codebooks):
        for frame in range(7):  # a code is at the position that it has in the clip
            assert places[arranged.step[book, frame]] == whole.step[book, frame]
    first_new = int(arranged.step[:, gap[0] : gap[1]].min())
    assert first_new > int(arranged.step[:, : gap[0]].max()) if gap[0] and pattern == "parallel" else True
    assert first_new > int(arranged.step[:, gap[1] :].max()) if gap[1] < 7 else True


def test_an_arrangement_written_out() -> None:
    """Delay, two codebooks, frames 0 to 4 with the gap 1 to 3: after (3, 4), before (0), gap (1, 2)."""
    arranged, places = infill.arrange(config_of(num_codebooks=2), 5, (1, 3))
    assert arranged.frame.tolist() == [
        [-1, 3, 4, -1, -1, 0, -1, -1, 1, 2, -1],
        [-1, -1, 3, 4, -1, -1, 0, -1, -1, 1, 2],
    ]
    assert places.tolist() == [3, 4, 5, 6, 0, 1, 2, 1, 2, 3, 4]


def test_a_step_without_codes_has_a_position_too() -> None:
    config = config_of(num_codebooks=2, delays=(0, 4))
    _, places = infill.arrange(config, 5, (1, 3))  # one frame before: steps 2 to 4 hold nothing
    assert places.tolist() == [*range(3, 10), *range(6), *range(1, 8)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("qwen3", [None, QWEN3])
def test_training_and_decoding_compute_the_same_logits(pattern: str, qwen3: BackboneConfig | None) -> None:
    """In a batch with a whole clip and a shorter one, texts of different lengths: row 1 by steps on a cache."""
    lm = model_of(config_of(pattern, backbone=qwen3))
    codes = clip(rows=3)
    text = from_rows([torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 2, 4)])
    patterns, positions = infill.arrange_rows(lm.config, 7, [7, 7, 6], [None, (2, 5), (0, 3)])
    inputs, _, mask = teacher_forcing(lm, codes, torch.tensor([7, 7, 6]), patterns)
    assert mask.sum((1, 2)).tolist() == [21, 21, 18]
    with torch.no_grad():
        logits = lm(inputs, text, positions=positions[:, :-1])  # [B, K, S - 1, V]
        plain = lm(teacher_forcing(lm, codes[:1]).inputs, replace_rows(text, slice(0, 1)))
        assert torch.allclose(logits[:1, :, : plain.shape[2]], plain, atol=1e-5)
        arranged, places = infill.arrange(lm.config, 7, (2, 5))
        cache = lm.new_cache(replace_rows(text, slice(1, 2)), 1, arranged.num_steps)
        cache.place(places)
        first = int(arranged.step[:, 2:5].min())
        found = [lm.step(inputs[1:2, :, :first], cache)]
        found += [lm.step(inputs[1:2, :, step, None], cache) for step in range(first, arranged.num_steps - 1)]
    wanted = logits[1:2, :, first - 1 : arranged.num_steps - 1]
    assert torch.allclose(torch.stack(found, 2), wanted, atol=1e-5)


def replace_rows(text: Condition, rows: slice) -> Condition:
    return replace(text, tokens=text.tokens[rows], mask=text.mask[rows])


def decoders(lm: TokenLM) -> list[Decoder]:
    """Everything that runs the steps of this model on a CPU."""
    found: list[Decoder] = [lm, PackedLM(lm), GraphLM(lm, mode="eager")]
    return found + [NativeLM(lm)] * (library() is not None)


@torch.no_grad()
def oracle(lm: TokenLM, text: Condition, codes: Tensor, gap: infill.Gap, guidance: float) -> Tensor:
    """Greedy codes [K, T] by forward passes over the whole sequence [after][before][gap], nothing cached."""
    arranged, places = infill.arrange(lm.config, codes.shape[1], gap)
    steps = interleave(codes[None], arranged, lm.special)
    nothing = null(1, lm.config.dim)
    for step in range(1, arranged.num_steps):
        new = (arranged.frame[:, step] >= gap[0]) & (arranged.frame[:, step] < gap[1])
        with_text, without = (
            lm(steps[..., :step], given, positions=places[:step])[0, :, -1] for given in (text, nothing)
        )
        best = (without + guidance * (with_text - without)).argmax(-1)  # [K]
        steps[0, new, step] = best[new]
    return deinterleave(steps, arranged)[0]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_decoder_fills_gaps_as_whole_sequences_do(pattern: str) -> None:
    """Two gaps in turn, of which the second sees the first one's codes; what is outside stays."""
    lm, codes = model_of(config_of(pattern)), clip(num_frames=9)
    text = from_rows([torch.randn(3, 8, generator=torch.Generator().manual_seed(3))])
    wanted = oracle(lm, text, oracle(lm, text, codes[0], (1, 3), 2.0), (5, 8), 2.0)
    assert torch.equal(wanted[:, 3:5], codes[0, :, 3:5]) and not torch.equal(wanted, codes[0])
    request, steps = TokenRequest(text, None, [0], 2.0, prompt=codes), list[tuple[int, int]]()
    for decoder in decoders(lm):
        steps.clear()
        found = infill.fill(
            decoder, request, [(1, 3), (5, 8)], TokenSampling(temperature=0), max_frames=9,
            callback=lambda done, total: steps.append((done, total)),
        )  # fmt: skip
        assert torch.equal(found[0], wanted), type(decoder).__name__
        assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
        again = generate_tokens(decoder, TokenRequest(text, 6, [0]), TokenSampling(temperature=0))
        assert torch.equal(
            again, generate_tokens(lm, TokenRequest(text, 6, [0]), TokenSampling(temperature=0))
        )


def test_a_gap_at_the_end_is_a_continuation_and_a_long_sound_is_seen_around_the_gap() -> None:
    lm, codes = model_of(config_of()), clip(num_frames=9)
    request = TokenRequest(None, 9, [3], 1.0, prompt=codes[..., :5])
    whole = replace(request, prompt=codes)
    assert torch.equal(infill.fill(lm, whole, [(5, 9)], max_frames=9), generate_tokens(lm, request))
    assert infill.around((4, 6), 100, 10) == (0, 10) and infill.around((50, 54), 100, 10) == (47, 57)
    assert infill.around((97, 99), 100, 10) == (90, 100) and infill.around((0, 9), 100, 10) == (0, 10)
    long = clip(num_frames=30)
    found = infill.fill(lm, replace(request, prompt=long), [(12, 15)], max_frames=8)
    seen = infill.fill(lm, replace(request, prompt=long[..., 10:18]), [(2, 5)], max_frames=8)
    outside = [*range(12), *range(15, 30)]
    assert torch.equal(found[..., outside], long[..., outside])
    noise = torch.rand(30, 3, generator=torch.Generator().manual_seed(3))  # which lies by frames of the whole
    assert seen.shape == (1, 3, 8) and noise.shape == (30, 3)
    with pytest.raises(InputError, match="a part of 8 frames is to be made anew; this model sees 8 frames"):
        infill.fill(lm, replace(request, prompt=long), [(12, 20)], max_frames=8)


def test_drawn_gaps_leave_something_after_them() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [infill.draw_gap(10, generator) for _ in range(400)]
    assert all(gap is not None and 0 <= gap[0] < gap[1] < 10 and gap[1] - gap[0] <= 6 for gap in drawn)
    assert {gap[0] for gap in drawn if gap} >= {0, 8} and {gap[1] - gap[0] for gap in drawn if gap} == set(
        range(1, 7)
    )
    assert infill.draw_gap(1, generator) is None and infill.draw_gap(2, generator) == (0, 1)


def test_a_model_learns_to_meet_what_comes_after() -> None:
    """Each clip holds one code, then from a random frame on another: only what follows the gap has the second one.

    A clip's last frame in the gap is one of 10 codes for a model that sees what is before alone.
    """
    torch.manual_seed(0)
    lm = TokenLM(config_of("delay", 2, dim=32, num_heads=2))
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(lm.parameters(), 3e-3)

    def clips(count: int) -> Tensor:  # [B, 2, 8]
        first, second = torch.randint(V, (2, count, 1), generator=generator)
        change = torch.randint(2, 5, (count, 1), generator=generator)
        codes = torch.where(torch.arange(8) < change, first, second)
        return torch.stack([codes, (codes + 3) % V], 1)

    for _ in range(450):
        codes = clips(32)
        gaps = [infill.draw_gap(8, generator) for _ in range(32)]
        patterns, positions = infill.arrange_rows(lm.config, 8, [8] * 32, gaps)
        inputs, targets, mask = teacher_forcing(lm, codes, pattern=patterns)
        loss, _ = token_loss(lm(inputs, positions=positions[:, :-1]), targets, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes, lm = clips(100), lm.eval()
    request = TokenRequest(None, 8, list(range(100)), 1.0, prompt=codes)
    greedy = TokenSampling(temperature=0)
    filled = infill.fill(lm, request, [(2, 6)], greedy, max_frames=8)
    causal = generate_tokens(lm, replace(request, num_frames=6, prompt=codes[..., :2]), greedy)
    met, missed = ((made[:, :, 5] == codes[:, :, 5]).float().mean() for made in (filled, causal))
    assert met > 0.9 and missed < 0.3, (met, missed)
    assert torch.equal(filled[..., [0, 1, 6, 7]], codes[..., [0, 1, 6, 7]])
