"""The benchmark of training compares like with like: same loss, same products, and its own count of them is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiogen.files import checkpoint
from audiogen.lm.model import LMConfig
from tools import bench_scale, bench_train

CPU = torch.device("cpu")


def test_both_language_models_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LMConfig(num_codebooks=3, codebook_size=11, dim=16, num_layers=2, num_heads=4)
    monkeypatch.setitem(bench_train.LMS, "lm_tiny", (config, 2, 7))
    race = bench_train.lm_race("lm_tiny", "float32", CPU, compiled=False)
    assert race.units == 2 * (7 + 3 - 1)
    for number in range(2):  # the second after an update each; AdamW's are alike while nothing is clipped off
        losses = [each.step(number) for each in race.candidates]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5 if number == 0 else 1e-3)
    counted = []
    for each in race.candidates:
        with FlopCounterMode(display=False) as counter:
            each.step(2)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1]
    # What torch does not count of ours is attention; the gradient of the text, a constant here, is not made.
    attention = 12 * 2 * 16 * 2 * (9 * 9 / 2 + 9 * bench_train.TEXT_TOKENS)
    of_text = 2 * 2 * (16 * 32) * 2 * bench_train.TEXT_TOKENS
    assert race.flops == counted[0] + attention + of_text


def test_peak_memory_is_that_of_a_step() -> None:
    def step(number: int) -> float:
        x = torch.zeros(1000)
        y = x + 1
        del x
        return float((y * 2)[0])

    assert 8000 <= bench_train.peak_bytes(step, CPU) < 8100


def test_the_bench_of_several_processes_trains_and_saves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = LMConfig(num_codebooks=3, codebook_size=11, dim=16, num_layers=2, num_heads=4)
    monkeypatch.setitem(bench_scale.SHAPES, "lm_tiny", (config, 2, 7))
    monkeypatch.setenv("BENCH_RUN", str(tmp_path))
    found = bench_scale.measure("lm_tiny", "none", 2)
    assert found["tokens"] * found["elapsed"] == pytest.approx(2 * (7 + 3 - 1))
    assert 0 < found["held"] <= found["written"]
    assert [step for step, _ in checkpoint.step_dirs(tmp_path)] == [1, 2]
