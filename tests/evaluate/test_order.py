"""Order prompts are balanced and never trained on; the judge separates order from its reverse and from both at once."""

from collections import Counter

import numpy as np
import pytest
import torch

from audiogen.data import synth
from audiogen.data.manifest import Clip
from audiogen.data.synth.scene import compose
from audiogen.errors import InputError
from audiogen.evaluate.clips import Prompt
from audiogen.evaluate.order import (
    FIRST_CLIP,
    OrderVerdict,
    frame_probabilities,
    judge,
    judge_clips,
    order_accuracy,
    order_prompts,
    real_clip,
)
from audiogen.models.find import weights_folder
from audiogen.tagger.model import Tagger, TaggerConfig


def test_prompts_are_true_of_their_clips() -> None:
    prompts = order_prompts(20, duration_s=4.0)
    for prompt in prompts:
        scene = compose(0, prompt.scene, 4.0)
        assert scene.form == "order"
        assert tuple(event.kind for event in scene.events) == prompt.kinds
        assert prompt.text in synth.captions(0, prompt.scene, 4.0)
    assert real_clip(prompts[0], 8000, 4.0).shape == (1, 32000)


def test_prompts_are_fixed_apart_and_beyond_training() -> None:
    prompts = order_prompts(30)
    assert prompts == order_prompts(30) and order_prompts(7) == prompts[:7]
    numbers = {prompt.scene for prompt in prompts}
    assert len(numbers) == 30 and min(numbers) >= FIRST_CLIP


def test_kinds_are_asked_for_equally_often() -> None:
    prompts = order_prompts(104)  # 2 for each of 52 kinds
    for kinds in zip(*(prompt.kinds for prompt in prompts), strict=True):
        counts = Counter(kinds)
        assert max(counts.values()) <= 4 and len(counts) >= 50


def test_prompts_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="the least is 1"):
        order_prompts(0)
    with pytest.raises(InputError, match="no room for two sounds"):
        order_prompts(3, duration_s=1.0)


def frames(*sounds: str) -> np.ndarray:
    """Probabilities from drawings: a row each, '.' for 0, a digit for tenths."""
    return np.array([[0.0 if c == "." else int(c) / 10 for c in sound] for sound in sounds]).T


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (".99......", ".....88..", (True, True, True)),
        (".....99..", ".88......", (True, True, False)),  # the other way round
        (".9.......", "..9......", (True, True, True)),  # short, and at once one after the other
        (".99..1.1.", "2.1..88..", (True, True, True)),  # faint doubts of the judge do not count
        ("999999999", "888888888", (True, True, False)),  # both all the time
        ("999999999", "....8....", (True, True, False)),  # one over the other
        (".99...99.", "...88....", (True, True, False)),  # A B A
        (".999.....", "...888...", (True, True, True)),  # the end of one in the beginning of the other
        (".99......", ".....22..", (True, False, False)),
        (".........", ".....88..", (False, True, False)),
        (".........", ".........", (False, False, False)),
        ("9", "9", (True, True, False)),  # a clip of one frame has no order
    ],
)
def test_verdicts(first: str, second: str, verdict: tuple[bool, bool, bool]) -> None:
    assert judge(frames(first, "999999999"[: len(first)], second), 0, 2, threshold=0.5) == verdict


def test_swapped_never_passes_with_the_right_order() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        drawn = random.random((7, 3)) * (random.random((7, 3)) < 0.4)
        there, back = judge(drawn, 0, 1), judge(drawn, 1, 0)
        assert not (there.in_order and back.in_order)
        assert (there.has_first, there.has_second) == (back.has_second, back.has_first)
        assert judge(drawn[::-1], 1, 0) == (back.has_first, back.has_second, there.in_order)


def test_shares() -> None:
    verdicts = [
        OrderVerdict(True, True, True),
        OrderVerdict(True, True, True),
        OrderVerdict(True, True, False),
        OrderVerdict(True, False, False),
        OrderVerdict(False, False, False),
    ]
    found = order_accuracy(verdicts)
    assert found["order"].value == pytest.approx(2 / 5)
    assert found["both_heard"].value == pytest.approx(3 / 5)
    assert found["in_order"].value == pytest.approx(2 / 3)
    assert all(share.low <= share.value <= share.high for share in found.values())
    assert found["order"].low < found["order"].high


def test_takes_of_a_prompt_count_as_one() -> None:
    right, lost, half = (
        OrderVerdict(True, True, True),
        OrderVerdict(False, True, False),
        OrderVerdict(True, True, False),
    )
    prompts = [[right, right], [right, lost], [half, lost], [lost, lost]]
    found = order_accuracy([verdict for takes in prompts for verdict in takes], takes=2)
    assert found["order"].value == pytest.approx(3 / 8) and found["both_heard"].value == pytest.approx(4 / 8)
    assert found["in_order"].value == pytest.approx(3 / 4)
    alone = order_accuracy([verdict for takes in prompts for verdict in takes])
    assert (
        found["order"].high - found["order"].low >= alone["order"].high - alone["order"].low
    )  # takes are no more prompts


def test_shares_where_both_are_never_or_once_present() -> None:
    never = order_accuracy([OrderVerdict(True, False, False)] * 3)
    assert never["order"] == never["both_heard"] == (0, 0, 0) and np.isnan(never["in_order"]).all()
    once = order_accuracy([OrderVerdict(True, False, False), OrderVerdict(True, True, True)])
    assert once["in_order"].value == 1 and np.isnan(once["in_order"].low)


def test_clips_that_cannot_be_judged() -> None:
    tagger = Tagger(TaggerConfig({"synth": ("bell", "siren")}, widths=(4, 4), time_pools=(2, 2))).eval()
    tagger.name = "small"
    prompts = [Prompt(0, "a bell, then a siren", Clip(""), ("bell", "siren"))] * 2
    fine = torch.zeros(2, 8000)  # silent, stereo
    assert len(judge_clips(tagger, [fine, fine], 16000, prompts)) == 2
    assert frame_probabilities(tagger, fine, 8000).shape == (13, 2)  # 1 s in frames of 0.08 s
    with pytest.raises(InputError, match="has no label 'rain'"):
        judge_clips(tagger, [fine], 16000, [Prompt(0, "a bell, then rain", Clip(""), ("bell", "rain"))])
    with pytest.raises(ValueError, match="argument 2"):
        judge_clips(tagger, [fine], 16000, prompts)


def test_the_bundled_judge_hears_order_in_real_clips() -> None:
    if not (weights_folder() / "tagger_tiny").is_dir():
        pytest.skip("needs the bundled tagger_tiny")
    from audiogen.models.own import load_tagger

    tagger, prompts = load_tagger(), order_prompts(15)
    clips = [real_clip(prompt, 16000) for prompt in prompts]
    swapped = [prompt._replace(kinds=prompt.kinds[::-1]) for prompt in prompts]
    real = order_accuracy(judge_clips(tagger, clips, 16000, prompts))
    assert real["order"].value >= 0.7 and real["in_order"].value >= 0.9
    assert order_accuracy(judge_clips(tagger, clips, 16000, swapped))["order"].value <= 0.1
    assert order_accuracy(judge_clips(tagger, clips[1:] + clips[:1], 16000, prompts))["order"].value <= 0.1
