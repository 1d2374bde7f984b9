"""Tagger training: targets, losses and figures in closed form; a run learns, resumes and leaves a model."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import audio
from audiogen.data.dataset import BuiltInClip
from audiogen.data.manifest import Clip
from audiogen.data.synth import SynthEvent
from audiogen.data.synth.scene import compose
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.models.own import load_tagger
from audiogen.tagger.model import TaggerConfig, TaggerOutput
from audiogen.train import augment
from audiogen.train.__main__ import main
from audiogen.train.tagger import (
    TaggerRecipe,
    TaggerTask,
    Targets,
    best_f1,
    frame_targets,
    mean_average_precision,
    nats,
)
from tests.train.conftest import scalars

SAMPLE_RATE = 8000
RECIPE = """
task: tagger
out: {out}
model:
  groups: {{toys: [hiss, hoot], synth: [rain, bell, dog bark, tone]}}
  sample_rate: 8000
  n_fft: 256
  hop_length: 80
  n_mels: 16
  widths: [4, 6]
  time_pools: [4, 2]
  frame_width: 8
  dim: 5
alike: {{hoot: tone}}
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: [{manifest}, "synth:8"], valid: [{manifest}, "synth:4@100"], segment_s: 5.0}}
fit: {{steps: 6, batch_size: 8, ema_decay: 0.9, log_every: 1, valid_every: 4, save_every: 2, device: cpu}}
"""

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noises and tones of five seconds, with labels."""
    folder = tmp_path_factory.mktemp("labelled")
    random = torch.Generator().manual_seed(0)
    time_s = torch.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    lines = []
    for number in range(8):
        sound = (
            0.1 * torch.randn(5 * SAMPLE_RATE, generator=random)
            if number % 2
            else 0.3 * torch.sin(2 * torch.pi * (300 + 50 * number) * time_s)
        )
        audio.save(folder / f"{number}.wav", sound[None], SAMPLE_RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "label": ["hoot", "hiss"][number % 2]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl"


@pytest.fixture
def tagger_run(labelled: Path, tmp_path: Path) -> Train:
    """tagger_run("name", "key=value", ...) trains a tiny tagger in tmp_path/name and returns that directory."""
    recipe = tmp_path / "tagger.yaml"
    recipe.write_text(RECIPE.format(out=tmp_path / "out", manifest=labelled))

    def train(name: str, *settings: str) -> Path:
        assert main([f"recipe={recipe}", f"out={tmp_path / name}", *settings]) == 0
        return tmp_path / name

    return train


def task(clips: list[Any], **model: Any) -> TaggerTask:
    config = TaggerConfig(
        groups={"toys": ("hiss", "hoot"), "synth": ("rain", "bell", "dog bark", "tone")},
        sample_rate=8000,
        hop_length=80,
        n_mels=16,
        widths=(4, 6),
        time_pools=(4, 2),
        **model,
    )
    recipe = TaggerRecipe(model=config, data={"train": "synth:1"}, alike={"hoot": "tone"})  # type: ignore[arg-type]
    return TaggerTask(recipe, clips, torch.device("cpu"))


# --- targets ---------------------------------------------------------------------------------------------------


def event(kind: str, start_s: float, end_s: float, **more: Any) -> SynthEvent:
    values = {
        "onsets_s": (start_s,),
        "count": None,
        "sound_s": end_s - start_s,
        "pitch_hz": None,
        "gain_db": -6.0,
    }
    return SynthEvent(kind=kind, start_s=start_s, end_s=end_s, **values | more)


def test_frames_hold_the_sounds_that_lie_in_them() -> None:
    texture = event("rain", 0.25, 0.55)
    barks = event("dog bark", 0.1, 0.92, onsets_s=(0.1, 0.78), count=2, sound_s=0.14)
    other = event("siren", 0.0, 1.0)
    targets = frame_targets([texture, barks, other], ["bell", "dog bark", "rain"], 5, 0.2)
    assert targets.T.tolist() == [[0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [0, 1, 1, 0, 0]]


def test_a_click_on_the_border_of_two_frames_is_in_one_at_least() -> None:
    for shift in range(40):
        start = 0.16 + 0.001 * shift
        click = event("click", start, start + 0.03, onsets_s=(start,), count=1, sound_s=0.03)
        assert 1 <= frame_targets([click], ["click"], 4, 0.16).sum() <= 2


def test_targets_are_found_by_key_and_unknown_where_nobody_says() -> None:
    clips = [Clip("a.wav", fields={"label": "hiss"}), Clip("b.wav", fields={"label": "hoot"}), BuiltInClip(3)]
    judge = task(clips)
    clip, frames = judge.targets(["b.wav", "a.wav", "synth:1@3"], 5 * SAMPLE_RATE)
    assert frames.shape == (3, math.ceil(5 * SAMPLE_RATE / 640), 6)
    assert clip[0].tolist() == [0, 1, 0, 0, 0, 1]  # hoot is a tone as well
    assert clip[1, :2].tolist() == [1, 0] and clip[1, 2:].isnan().all()
    assert frames[:2].isnan().all() and clip[2, :2].isnan().all()
    kinds = {event.kind for event in compose(0, 3, 5.0).events}
    assert clip[2, 2:].tolist() == [float(kind in kinds) for kind in ("rain", "bell", "dog bark", "tone")]
    assert torch.equal(frames[2, :, 2:].amax(0), clip[2, 2:])


# --- augmentation ----------------------------------------------------------------------------------------------


def test_rolling_moves_sound_and_targets_together() -> None:
    torch.manual_seed(0)
    frames = torch.zeros(5, 7, 2)
    frames[:, 3, 1] = 1.0
    mel = frames[..., 1].repeat_interleave(4, 1)[:, None].expand(5, 6, 28)  # [B, M, T]
    rolled, moved = augment.roll(mel, frames, 4)
    assert torch.equal(rolled[:, 0], moved[..., 1].repeat_interleave(4, 1))
    assert len({int(row[:, 1].argmax()) for row in moved}) > 1


def test_recolouring_varies_each_sound_and_stays_above_the_floor() -> None:
    torch.manual_seed(0)
    mel = torch.randn(1, 16, 40).expand(6, 16, 40) - 5
    changed = augment.recolour(mel, 1e-4)
    assert changed.min() >= math.log(1e-4) - 1e-6 and changed.isfinite().all()
    assert all(not torch.equal(changed[0], other) for other in changed[1:])
    assert mel.equal(mel[:1].expand(6, 16, 40))


def test_a_mask_is_a_band_and_a_stretch() -> None:
    torch.manual_seed(1)
    mel = torch.randn(100, 16, 40)
    masked = augment.mask(mel, 5, 8)
    rows = (masked != mel).all(2).sum(1)
    columns = (masked != mel).all(1).sum(1)
    assert rows.max() == 5 and columns.max() == 8
    changed = (masked != mel).sum((1, 2))
    assert torch.equal(changed, rows * 40 + columns * 16 - rows * columns)


def test_overlaid_clips_have_the_events_of_both_and_recordings_are_mixed_with_recordings() -> None:
    torch.manual_seed(0)
    clips = [Clip(f"{n}.wav", fields={"label": "hiss"}) for n in range(3)] + [
        BuiltInClip(n) for n in range(40)
    ]
    judge = task(clips)
    targets = judge.targets([clip.key for clip in clips], 5 * SAMPLE_RATE)
    mel, varied = judge.vary(torch.randn(43, 16, 504), targets)
    assert mel.shape == (43, 16, 504)
    assert torch.equal(varied.clip[:3].isnan(), targets.clip[:3].isnan())
    assert torch.allclose(varied.clip[:3, :2], torch.tensor([1.0, 0.0]))  # of one label, whatever the shares
    assert torch.equal(varied.clip[3:, 2:], varied.frames[3:, :, 2:].amax(1))
    assert (varied.clip[3:, 2:] >= targets.clip[3:, 2:]).all()
    assert varied.clip[3:, 2:].sum() > targets.clip[3:, 2:].sum()


# --- losses and figures ----------------------------------------------------------------------------------------


def test_nats_in_closed_form() -> None:
    even = torch.zeros(2, 4)
    one = torch.eye(4)[:2]
    assert nats(even, one, False).tolist() == pytest.approx([math.log(4)] * 2)
    assert nats(even, one, True).tolist() == pytest.approx([4 * math.log(2)] * 2)
    sure = torch.tensor([[math.log(9.0), 0.0]])
    assert nats(sure, torch.tensor([[0.5, 0.5]]), False).item() == pytest.approx(
        -0.5 * (math.log(0.9) + math.log(0.1))
    )


def test_what_nobody_knows_costs_nothing() -> None:
    """A recording's loss does not depend on the scores of labels it says nothing about; its frames count pooled."""
    judge = task([Clip("a.wav", fields={"label": "hiss"}), BuiltInClip(3)])
    targets = judge.targets(["a.wav", "synth:1@3"], 5 * SAMPLE_RATE)
    logits = torch.zeros(2, 6, requires_grad=True)
    frame_logits = torch.zeros(2, 63, 6, requires_grad=True)
    losses = judge.losses(TaggerOutput(torch.zeros(2, 5), logits, frame_logits), targets)
    assert losses.keys() == {"clip_toys", "frame_toys", "clip_synth", "frame_synth"}
    assert losses["clip_toys"].item() == pytest.approx(math.log(2))
    assert losses["frame_synth"].item() == pytest.approx(4 * math.log(2))
    torch.stack(list(losses.values())).sum().backward()
    labelled = torch.tensor([[True] * 2 + [False] * 4, [False] * 2 + [True] * 4])
    assert torch.equal(logits.grad != 0, labelled)
    assert torch.equal((frame_logits.grad != 0).any(1), labelled)
    only = judge.losses(
        TaggerOutput(torch.zeros(1, 5), torch.zeros(1, 6), torch.zeros(1, 63, 6)),
        Targets(targets.clip[:1], targets.frames[:1]),
    )
    assert only.keys() == {"clip_toys", "frame_toys"}


def test_average_precision_in_closed_form() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.2, 0.2], [0.7, 0.3, 0.1], [0.6, 0.4, 0.0]])
    wanted = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    first = (1 / 1 + 2 / 3) / 2  # right at ranks 1 and 3
    assert mean_average_precision(scores, wanted) == pytest.approx((first + 1 / 4) / 2)
    assert mean_average_precision(wanted, wanted) == pytest.approx(1.0)
    assert mean_average_precision(scores, torch.zeros(4, 3)) == 0.0


def test_the_best_threshold_parts_right_from_wrong() -> None:
    probabilities = torch.tensor([[0.1, 0.62], [0.32, 0.7], [0.2, 0.31]])
    wanted = torch.tensor([[0.0, 1], [0, 1], [0, 0]])
    f1, threshold = best_f1(probabilities, wanted)
    assert f1 == 1.0 and 0.32 < threshold <= 0.62
    f1, _ = best_f1(torch.full((4, 2), 0.9), torch.tensor([[1.0, 0]] * 4))
    assert f1 == pytest.approx(2 / 3)  # all are said, half are right


# --- runs ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_a_tagger_with_log_and_figures(tagger_run: Train) -> None:
    run = tagger_run("run")
    tagger = load_tagger(run)
    assert tagger.labels[:3] == ["toys/hiss", "toys/hoot", "synth/rain"]
    assert tagger(torch.randn(2, 3333)).logits.shape == (2, 6)
    records = scalars(run)
    assert [record["step"] for record in records if "train/loss" in record] == [1, 2, 3, 4, 5, 6]
    valid = [record for record in records if "valid/loss" in record]
    assert [record["step"] for record in valid] == [4, 6]
    assert {"valid/accuracy_toys", "valid/map_synth", "valid/frame_map_synth", "valid/frame_f1_synth"} <= set(
        valid[0]
    )
    assert valid[0]["valid/loss"] == pytest.approx(
        sum(valid[0][f"valid/{part}_{group}"] for part in ("clip", "frame") for group in ("toys", "synth"))
    )
    info = checkpoint.read_config(run / "best", "tagger")["info"]
    assert info["valid/loss"] == min(record["valid/loss"] for record in valid)


def test_it_learns(tagger_run: Train, labelled: Path) -> None:
    run = tagger_run(
        "run", f"data.train={labelled}", f"data.valid={labelled}", "data.segment_s=0.5", "fit.steps=60",
        "fit.valid_every=60", "fit.log_every=60",
    )  # fmt: skip
    last = scalars(run)[-1]
    assert last["valid/accuracy_toys"] == 1.0
    assert last["valid/clip_toys"] < 0.4


def test_resumed_is_unbroken(tagger_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tagger_run("whole")
    step = TaggerTask.step

    def terminated(self: TaggerTask, batch: Any, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(TaggerTask, "step", terminated)
    parts = tagger_run("parts")
    monkeypatch.undo()
    assert checkpoint.latest(parts)[0] == 3  # type: ignore[index]
    tagger_run("parts", "resume=must")
    assert scalars(parts) == scalars(whole)
    for folder in ("", "best", "checkpoints/step_00000006"):
        name = "state.safetensors" if "step" in folder else "model.safetensors"
        assert (parts / folder / name).read_bytes() == (whole / folder / name).read_bytes()


def test_parts_of_a_batch_train(tagger_run: Train) -> None:
    run = tagger_run("run", "fit.accumulate=2", "fit.steps=2", "fit.valid_every=0")
    assert all(math.isfinite(record["train/loss"]) for record in scalars(run))


def test_a_group_without_clips_is_left_out(tagger_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = tagger_run("run", "data.train=synth:8", "fit.steps=2", "fit.valid_every=0", "data.valid=[]")
    assert "no training clip has a label of toys: left out of the model" in capsys.readouterr().err
    assert load_tagger(run).labels[0] == "synth/rain"
    assert "train/clip_toys" not in scalars(run)[0]


def test_init_from_goes_on_from_the_weights_with_all_groups(tagger_run: Train) -> None:
    first = tagger_run("first")
    second = tagger_run(
        "second",
        f"init_from={first}",
        "data.train=synth:8",
        "fit.steps=1",
        "optim.lr=1e-12",
        "fit.ema_decay=0",
    )
    before, after = checkpoint.load_tensors(first), checkpoint.load_tensors(second)
    assert load_tagger(second).labels == load_tagger(first).labels
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.allclose(before[name], after[name]) for name in weights)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.segment_s=1.0",
            "data.segment_s is 1; the events of built-in clips are defined for whole clips",
        ),
        ("model.groups={toys: [hiss], synth: [rain, tone]}", "0.wav: its label 'hoot' is in no group"),
        (
            "model.groups={toys: [hiss, hoot], synth: [rain, tone, kazoo]}",
            "'kazoo' is no kind of the built-in",
        ),
        ("alike={hiss: static}", "alike: 'static' is not in model.groups.synth"),
        ("overlay=2", "overlay is 2.0; it must be in \\[0, 1\\]"),
    ],
)
def test_what_cannot_be_learned_is_refused(tagger_run: Train, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tagger_run("run", setting)


def test_built_in_clips_need_the_group_synth(tagger_run: Train) -> None:
    with pytest.raises(InputError, match=r"synth:1@0: model.groups has no group synth"):
        tagger_run("run", "model.groups={toys: [hiss, hoot]}", "alike={}")
