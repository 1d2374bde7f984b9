"""The parts of the loop by themselves: rates, clipping, averages, the log, the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audiogen import device as devices
from audiogen.config import load_recipe
from audiogen.data.dataset import Split
from audiogen.data.loader import valid_batches
from audiogen.device import choose_device
from audiogen.errors import InputError, run_command
from audiogen.files import checkpoint
from audiogen.interfaces import Batch
from audiogen.signals import stop_signals
from audiogen.train.__main__ import main
from audiogen.train.log import Log, Speed, read_log
from audiogen.train.loop import due, validate
from audiogen.train.optim import Average, OptimConfig, Optimizer, learning_rate
from audiogen.train.run import open_recipe
from audiogen.train.task import FitConfig, Run, Task, autocast, row_slices

ROOT = Path(__file__).resolve().parents[2]
Train = Callable[..., Path]


def rates(num_steps: int = 11, **settings: object) -> list[float]:
    config = OptimConfig(**{"lr": 1.0, "warmup_steps": 0, "min_lr_ratio": 0.0, **settings})  # type: ignore[arg-type]
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_schedules_have_their_closed_forms() -> None:
    assert rates(schedule="constant") == [1.0] * 11
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(11)])
    assert rates(schedule="cosine") == pytest.approx(
        [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    )
    assert rates(schedule="cosine", min_lr_ratio=0.1)[-1] == pytest.approx(0.1)
    warm = rates(schedule="linear", warmup_steps=4)
    assert warm[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert warm[-1] == 0.0
    inverse = rates(schedule="inverse_sqrt", warmup_steps=4)
    assert inverse[3:] == pytest.approx([1.0] + [math.sqrt(4 / step) for step in range(5, 12)])


def test_the_gradient_is_clipped_by_its_norm_over_all_parameters() -> None:
    layer = nn.Linear(2, 2)
    optimizer = Optimizer(layer, OptimConfig(clip_norm=0.5, lr=1e-3, warmup_steps=0), 10)
    optimizer.backward((layer.weight * 3).sum() + (layer.bias * 4).sum())
    metrics = optimizer.step(0)
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(4 * 9 + 2 * 16))
    moments = optimizer.adamw.state[layer.weight]["exp_avg"] / (1 - 0.9)
    assert torch.allclose(moments, torch.full((2, 2), 3 * 0.5 / metrics["grad_norm"]))


def test_only_matrices_are_decayed() -> None:
    layer = nn.Linear(2, 3)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    config = OptimConfig(lr=0.1, weight_decay=0.5, warmup_steps=0, schedule="constant")
    optimizer = Optimizer(layer, config, 10)
    optimizer.backward((layer.weight * 0).sum() + (layer.bias * 0).sum())
    optimizer.step(0)
    assert torch.allclose(layer.weight, before["weight"] * 0.95)
    assert torch.equal(layer.bias, before["bias"])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    optimizer = Optimizer(layer, OptimConfig(), 10)
    optimizer.backward((layer.weight * float("nan")).sum())
    assert math.isnan(optimizer.step(0)["grad_norm"])
    assert torch.equal(layer.weight, before)


def test_float16_losses_are_scaled_and_an_overflow_is_left_out() -> None:
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    optimizer = Optimizer(layer, OptimConfig(warmup_steps=0, weight_decay=0.0), 10, scale_losses=True)
    optimizer.backward((layer.weight * float("inf")).sum())
    metrics = optimizer.step(0)
    assert "grad_norm" not in metrics and metrics["loss_scale"] == 2.0**15
    assert torch.equal(layer.weight, before)
    optimizer.backward((layer.weight * 3).sum())
    assert optimizer.step(1)["grad_norm"] == pytest.approx(6.0)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "node", [{"lr": 0}, {"betas": (0.9, 1.0)}, {"warmup_steps": -1}, {"min_lr_ratio": 2}]
)
def test_impossible_optimisers_are_refused(node: dict[str, object]) -> None:
    with pytest.raises(InputError):
        OptimConfig(**node)  # type: ignore[arg-type]


def test_the_average_follows_its_recurrence_and_leaves_the_weights_alone() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = Average(layer, decay=0.5)
    expected, values = layer.weight.item(), [1.0, 3.0, -2.0]
    for number, value in enumerate(values):
        layer.weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == -2.0


def test_all_averages_move_at_once_as_each_would_alone() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 5).bfloat16()])
    layers[0].bias.requires_grad_(False)
    average = Average(layers, 0.9)
    alone = {name: value.clone() for name, value in average.averages.items()}
    assert len(alone) == 3 and all(value.dtype == torch.float32 for value in alone.values())
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(torch.randn_like(p))
    average.update()
    for name, value in alone.items():
        value.lerp_(layers.get_parameter(name).detach().float(), 1 - 0.1)
        assert torch.equal(average.averages[name], value), name
    Average(nn.Linear(2, 2), 0.0).update()  # off


def test_the_average_comes_back_and_can_be_turned_on_late() -> None:
    layer = nn.Linear(2, 2)
    average = Average(layer, 0.9)
    layer.weight.data += 1
    average.update()
    again = Average(layer, 0.9)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.averages["weight"], average.averages["weight"]) and again.num_updates == 1
    late = Average(layer, 0.9)
    late.load_state_dict(Average(layer, 0.0).state_dict())
    assert torch.equal(late.averages["weight"], layer.weight) and late.num_updates == 0


def test_rows_are_divided_in_order() -> None:
    assert row_slices(6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    rows = list(range(5))
    assert [rows[part] for part in row_slices(5, 2)] == [[0, 1, 2], [3, 4]]
    assert row_slices(4, 1) == [slice(0, 4)]


def test_cadence() -> None:
    assert [due(done, 3, done == 5) for done in range(1, 6)] == [False, False, True, False, True]
    assert not due(5, 0, final=True)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch_size": 3, "accumulate": 2}, {"ema_decay": 1.0}, {"save_every": -1}]
)
def test_impossible_runs_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=str(next(iter(settings)))):
        FitConfig(**settings)  # type: ignore[arg-type]


def test_devices_are_checked() -> None:
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:", "cuda:-1", "cpu:1", "", f"cuda:{10**30}", "cuda:\n1"):
        with pytest.raises(
            InputError, match="cannot be used.*; allowed: auto .*, cpu, cuda, cuda:N, mps$"
        ) as caught:
            choose_device(name)
        assert len(str(caught.value).splitlines()) == 1
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="cannot be used") as caught:
            choose_device("mps")
        assert len(str(caught.value)) < 300  # torch lists every backend
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cannot be used"):
            choose_device("cuda")


def test_a_resumed_log_drops_what_was_undone(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 0, 9)) as log:
        for step in range(1, 6):
            log.record(step, {"train/loss": step / 3})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # a kill in the middle of a line
    with closing(Log(tmp_path, 3, 9)) as log:
        log.record(4, {"train/loss": 0.5})
    found = [(record["step"], record["train/loss"]) for record in read_log(tmp_path)]
    assert found == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 0.5)]


def test_speed_is_of_the_steps_since_the_last_record() -> None:
    speed = Speed(torch.device("cpu"))
    speed.add(0.5, 2.0, {"audio_s": 10.0})
    speed.add(0.5, 2.0, {"audio_s": 6.0})
    found = speed.take()
    assert (found["speed/audio_s_per_s"], found["speed/data_wait"]) == (4.0, 0.25)
    assert sys.platform == "win32" or 0.05 < found["speed/memory_gb"] < 100
    speed.add(0.0, 4.0, {"audio_s": 2.0})
    assert speed.take()["speed/audio_s_per_s"] == 0.5


def test_a_log_says_how_fast_the_training_is(codec_run: Train, lm_run: Train) -> None:
    for record in read_log(codec_run("codec", "fit.steps=2", "fit.valid_every=0")):
        assert record["speed/audio_s_per_s"] > 0 and 0 <= record["speed/data_wait"] <= 1
        assert not any("token" in name for name in record)
    for record in read_log(lm_run("lm", "fit.steps=2", "fit.valid_every=0")):
        seconds, tokens, tflop = (record[f"speed/{unit}_per_s"] for unit in ("audio_s", "tokens", "tflop"))
        # Half a second is 25 frames and, delayed, 27 steps. Two layers of 14 D^2 weights and three heads of 8 codes.
        weights, attention = 2 * 14 * 16**2 + 3 * 8 * 16, 12 * 2 * 16 * 27 / 2
        assert tokens / seconds == pytest.approx(27 / 0.5, rel=1e-4)
        assert 1e12 * tflop / tokens == pytest.approx(6 * weights + attention, rel=1e-4)


def test_tensorboard_holds_the_scalars(codec_run: Train) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = codec_run("run", "fit.tensorboard=true", "fit.steps=2", "fit.valid_every=0")
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert events.Scalars("train/loss")[1].value == pytest.approx(read_log(run)[1]["train/loss"])


def test_a_second_signal_is_not_held_back() -> None:
    import signal

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job starts with it ignored
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["recipe=codec_tiny", "fit.stepz=3"], "unknown key fit.stepz; did you mean 'steps'?"),
        (["recipe=codec_tiny", "steps=3"], "unknown key steps; did you mean fit.steps?"),
        (["recipe=lm_tiny", "model.patern=delay"], "unknown key model.patern; did you mean 'pattern'?"),
        (["recipe=lm_tiny", "model.pattern=dealy"], "model.pattern: got 'dealy'; did you mean 'delay'?"),
        (["recipe=lm_tny"], "recipe 'lm_tny' does not exist; did you mean 'lm_tiny'?"),
        (["fit.steps=3"], "give one recipe=NAME"),
        (["recipe=codec_tiny", "task=codek"], "task: got 'codek'; did you mean 'codec'?"),
        (["recipe=codec_tiny", "fit.precision=float16"], "fit.precision=float16 is not for codecs"),
        (["recipe=codec_tiny", "data.train=nowhere/"], "nowhere/"),
        (["recipe=codec_tiny", "init_from=nowhere"], "'nowhere' is neither a directory nor a bundled model"),
        (["recipe=lm_tiny", "codec=nowhere"], "'nowhere' is neither a directory nor a bundled model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [*settings, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_complete_and_prints_as_itself(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # what is distilled has a teacher, of a run before
    start = [
        "init_from=lafma_tiny" if load_recipe(name).task in ("distil", "latent_lora") else "init_from=null"
    ]
    assert main([f"recipe={name}", *start, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main([f"recipe={tmp_path / 'again.yaml'}", "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_the_command_runs(codec_run: Train, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiogen.train", f"recipe={tmp_path / 'codec.yaml'}", "fit.steps=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kind"] == "codec"


def test_checkpoints_keep_their_names(codec_run: Train, lm_run: Train) -> None:
    """Those that runs have written since the first version: else they could not be resumed."""
    once = ("fit.steps=1", "fit.valid_every=0")
    shared = {"optimizer", "average"}
    for run, own in (
        (codec_run("codec", *once), {"codec", "balancer", "adversary"}),
        (lm_run("lm", *once), {"model"}),
    ):
        state = checkpoint.load_state(checkpoint.step_dir(run, 1))
        assert state.keys() == {"best", "validated", "task", "clips", "world"}
        assert state["task"].keys() == shared | own
        assert state["task"]["optimizer"].keys() == {"adamw", "scaler"}
        assert state["task"]["average"].keys() == {"averages", "num_updates"}


def prepared(recipe: Path) -> tuple[Task[Any], Split[Any], Run]:
    """The task and data of a recipe, on the CPU, and the recipe."""
    built = open_recipe(str(recipe))
    return (*built.prepare(torch.device("cpu")), built)


@pytest.mark.parametrize("name", ["codec", "lm"])
def test_validation_holds_one_batch_of_sound_at_a_time(
    name: str, codec_run: Train, lm_run: Train, tmp_path: Path
) -> None:
    task, data, recipe = prepared(tmp_path / f"{name}.yaml")
    made: list[weakref.ref[Batch]] = []

    def batches() -> Iterator[Batch]:
        for batch in valid_batches(data.valid, 2):
            assert not any(earlier() for earlier in made[:-1]), "an earlier batch is still in memory"
            made.append(weakref.ref(batch))
            yield batch

    with closing(Log(tmp_path, 0, 1)) as log:
        best = validate(task, batches(), 1, None, recipe, log)
        assert len(made) == 4 and best and math.isfinite(best["valid/loss"])
        with pytest.raises(InputError, match="there is nothing to validate on"):
            validate(task, iter([]), 1, None, recipe, log)


def test_a_validation_that_is_no_number_is_not_the_best(
    codec_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would remain so: nothing is below NaN."""
    task, data, recipe = prepared(tmp_path / "codec.yaml")
    with closing(Log(tmp_path, 0, 3)) as log:
        best = None
        for step, (loss, expected) in enumerate([(math.nan, None), (2.0, 1), (math.nan, 1), (1.0, 3)]):
            monkeypatch.setattr(task, "evaluate", lambda batches, loss=loss: {"loss": loss})
            best = validate(task, valid_batches(data.valid, 2), step, best, recipe, log)
            assert (best and best["step"]) == expected


def test_a_module_trains_on_after_an_error_in_its_evaluation(codec_run: Train, tmp_path: Path) -> None:
    task, _, _ = prepared(tmp_path / "codec.yaml")
    with pytest.raises(ValueError, match="broken"), task.averaged():
        assert not task.module.training
        raise ValueError("broken")
    assert task.module.training


def test_scalars_of_a_step_are_read_after_the_update(codec_run: Train, tmp_path: Path) -> None:
    """Reading waits for the device, which has the update to do meanwhile."""
    task, _, _ = prepared(tmp_path / "codec.yaml")
    weight = next(task.module.parameters())

    class Late(dict[str, Tensor]):
        def values(self) -> Any:
            return [weight.sum()]

    before = weight.sum().item()
    task.optimizer.backward(weight.square().sum())
    task.scalars = Late(weight=weight)
    metrics = task.update(0, {"share": 1.0})
    assert list(metrics) == ["weight", "share", "lr", "grad_norm"]
    assert metrics["weight"] == weight.sum().item() != before


@pytest.mark.parametrize(
    ("native", "amx", "slower", "faster"),
    [
        (False, False, torch.float32, False),  # emulated
        (True, True, torch.bfloat16, True),  # AMX is trusted, not timed
        (True, False, torch.bfloat16, False),
        (True, False, torch.float32, True),
    ],
)
def test_bfloat16_is_faster_by_amx_or_where_a_product_says_so(
    native: bool, amx: bool, slower: torch.dtype, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def multiply(x: Tensor, weight: Tensor) -> None:
        nonlocal clock
        clock += 2.0 if x.dtype == slower else 1.0

    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch, "mm", multiply)
    assert devices.multiplies_faster_in_bfloat16.__wrapped__(torch.device("cpu")) == faster  # past its cache


def test_auto_precision_is_bfloat16_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for faster in (True, False):
        monkeypatch.setattr(
            "audiogen.train.task.multiplies_faster_in_bfloat16", lambda device, faster=faster: faster
        )
        with autocast(cpu, "auto"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if faster else torch.float32)
