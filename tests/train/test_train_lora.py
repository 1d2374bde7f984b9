"""LoRA training: adapters alone are trained, stored and exported; exact resume; a base in half the memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen.adapters import Adapter
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.generate.__main__ import main
from audiogen.lm import lora
from audiogen.models.build import load_lm
from tests import random_t5
from tests.train.conftest import scalars

Train = Callable[..., Path]
RANK = 3


@pytest.fixture
def base(lm_run: Train) -> Path:
    """A language model trained for two steps."""
    return lm_run("base", "fit.steps=2", "fit.ema_decay=0", "fit.valid_every=0")


@pytest.fixture
def lora_run(lm_run: Train, base: Path) -> Train:
    """lora_run("name", "key=value", ...) trains adapters of `base` in a directory of that name."""

    def train(name: str, *settings: str) -> Path:
        return lm_run(name, f"init_from={base}", f"lora={{rank: {RANK}, alpha: 6, dropout: 0.2}}", *settings)

    return train


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in scalars(run) if "train/loss" in record]


def state_files(run: Path) -> list[bytes]:
    found = checkpoint.latest(run)
    assert found
    return [(found[1] / name).read_bytes() for name in ("state.json", "state.safetensors")]


def test_a_run_is_adapters_and_nothing_else(lora_run: Train, base: Path) -> None:
    before = {path: path.read_bytes() for path in base.rglob("*.safetensors")}
    run = lora_run("run")
    for directory in (run, run / "best"):
        contents = checkpoint.read_config(directory, "lora")
        assert contents["config"]["base"] == str(base)
        tensors = checkpoint.load_tensors(directory)
        assert len(tensors) == 2 * 2 * 7 + 1  # two of seven matrices in two layers, and the fingerprint
        assert all(
            tensor.shape[name.endswith("up")] == RANK for name, tensor in tensors.items() if "." in name
        )
    assert not (run / "text").exists() and not (run / "codec").exists()
    found = checkpoint.latest(run)
    assert found
    stored = checkpoint.read_tensors(found[1] / "state.safetensors")
    groups = {name.split("/")[2] for name in stored}  # "/task/adapters/..."
    assert groups == {"adapters", "fingerprint", "optimizer", "average"}
    assert not any("heads" in name or "embedding" in name for name in stored)
    assert {path: path.read_bytes() for path in base.rglob("*.safetensors")} == before


def test_training_begins_at_the_base_and_moves_away(lora_run: Train, lm_run: Train, base: Path) -> None:
    once = ("fit.steps=1", "optim.lr=1e-12", "fit.valid_every=1", "fit.ema_decay=0")
    adapted = lora_run("adapted", *once)
    whole = lm_run("whole", f"init_from={base}", *once)
    begin, same = (
        next(record["valid/loss"] for record in scalars(run) if "valid/loss" in record)
        for run in (adapted, whole)
    )
    assert begin == pytest.approx(same, rel=1e-6)
    longer = lora_run("longer", "fit.steps=60", "fit.valid_every=60", "optim.lr=3e-2", "fit.save_every=0")
    last = [record["valid/loss"] for record in scalars(longer) if "valid/loss" in record][-1]
    assert last < begin - 0.1


def test_adapters_go_onto_the_base_and_change_what_it_says(lora_run: Train, base: Path) -> None:
    run = lora_run("run", "optim.lr=3e-2")
    plain, adapted = load_lm(base), load_lm(base)
    lora.load_adapters(adapted.lm, [Adapter(run)])
    info = checkpoint.read_config(run)["info"]
    assert info["step"] == 6 and info["recipe"]["lora"]["rank"] == RANK
    steps, condition = torch.zeros(1, 3, 4, dtype=torch.long), plain.conditioner(["a tone"])
    with torch.no_grad():
        first, second = plain.lm(steps, condition), adapted.lm(steps, condition)
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(InputError, match="and the weights of this model are others"):
        lora.load_adapters(load_lm("lm_tiny").lm, [Adapter(run)])


def test_a_run_makes_sound_on_its_base(lora_run: Train, base: Path, tmp_path: Path) -> None:
    run = lora_run("run", "optim.lr=3e-2")
    out = tmp_path / "sounds"
    arguments = ["--model", str(base), "--adapter", str(run), "--text", "a tone", "--duration", "0.3"]
    assert main([*arguments, "--device", "cpu", "--out", str(out)]) == 0
    assert len(list(out.glob("*.wav"))) == 1


def test_a_release_gets_adapters(lm_run: Train, shared: Path, tmp_path: Path) -> None:
    release, text = shared / "fixtures" / "audiogen_tiny", random_t5.write(tmp_path / "t5", 512)
    given = (f"init_from={release}", f"text_encoder={text}")
    run = lm_run("run", *given, "lora={rank: 2}", "fit.sample_every=6", "data.segment_s=0.2")
    assert not (run / "codec").exists() and not (run / "text").exists()
    names = ["--model", str(release), "--text-encoder", str(text), "--adapter", str(run)]
    assert (
        main(
            [
                *names,
                "--text",
                "a dog",
                "--duration",
                "0.2",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "a.wav"),
            ]
        )
        == 0
    )
    assert (tmp_path / "a.wav").is_file()


def kill_at_step(train: Train, settings: tuple[str, ...]) -> None:
    """Train, and be killed while the checkpoint of step 4 is being written."""
    rename = os.replace

    def killer(source: Any, target: Any) -> None:
        if Path(target).name == "step_00000004":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = killer  # type: ignore[assignment]
    train("killed", *settings)


@pytest.mark.parametrize(
    "settings", [(), ("fit.precision=bfloat16", "pretokenize_epochs=1", "gradient_checkpointing=true")]
)
def test_killed_in_the_middle_of_a_save_resumes_bit_for_bit(
    lora_run: Train, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = lora_run("whole", *settings)
    process = get_context("fork").Process(target=kill_at_step, args=(lora_run, settings))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = checkpoint.latest(tmp_path / "killed")
    assert found and found[0] == 2
    killed = lora_run("killed", "resume=must", *settings)
    assert scalars(killed) == scalars(whole)
    assert state_files(killed) == state_files(whole)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_recomputed_layers_change_nothing(lora_run: Train) -> None:
    same = ("fit.steps=3", "fit.valid_every=0")
    plain = lora_run("plain", *same)
    recomputed = lora_run("recomputed", *same, "gradient_checkpointing=true")
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-5)


def test_averages_are_of_the_adapters_and_are_what_is_exported(lora_run: Train) -> None:
    run = lora_run("run", "fit.ema_decay=0.9", "optim.lr=3e-2")
    found = checkpoint.latest(run)
    assert found
    state, exported = checkpoint.load_state(found[1])["task"], checkpoint.load_tensors(run)
    averages = {name.removeprefix("lm."): value for name, value in state["average"]["averages"].items()}
    assert averages.keys() == state["adapters"].keys()
    for name, value in averages.items():
        assert torch.equal(exported[name], value)
    assert any(not torch.equal(exported[name], value) for name, value in state["adapters"].items())


def test_a_base_in_bfloat16_trains_as_one_in_float32(
    lora_run: Train, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its matrices are rounded once, instead of at each use: the same products. Embeddings are rounded, too."""
    from audiogen.train import lm as task

    kept: list[torch.dtype] = []
    add = lora.add

    def watched(model: Any, config: Any) -> None:
        kept.extend([model.heads.weight.dtype, model.layers[0].ff_in.weight.dtype])
        kept.extend([model.embedding.weight.dtype, model.layers[0].norm_ff.weight.dtype])
        add(model, config)

    monkeypatch.setattr(lora, "add", watched)
    small = lora_run("small", "fit.precision=bfloat16", "fit.sample_every=6", "data.segment_s=0.2")
    assert kept == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    monkeypatch.setattr(task, "product_dtype", lambda *_: torch.float32)
    large = lora_run("large", "fit.precision=bfloat16", "data.segment_s=0.2")
    assert losses(small) == pytest.approx(losses(large), rel=3e-3)
    stored = checkpoint.load_tensors(small)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert list((small / "samples" / "step_00000006").iterdir())


def test_adapters_and_whole_models_are_not_mixed_up(lora_run: Train, lm_run: Train, base: Path) -> None:
    lora_run("run", "fit.steps=2", "fit.valid_every=0")
    with pytest.raises(InputError, match=r"is of adapters \(lora\); choose another out="):
        lm_run("run", f"init_from={base}", "fit.steps=3")
    with pytest.raises(InputError, match=r"is of a whole model \(lora=null\); choose another out="):
        lora_run("base", "fit.steps=3")
    with pytest.raises(
        InputError, match=r"weights of the checkpoint do not fit .* is \[3, 16\], should make \[4, 16\]"
    ):
        lora_run("run", "fit.steps=3", "lora.rank=4")
    other = lm_run("other", "seed=1", "fit.steps=1", "fit.valid_every=0")
    with pytest.raises(InputError, match=r"init_from=.*other is not the model that .*run began with"):
        lora_run("run", f"init_from={other}", "fit.steps=3")


def test_a_mistake_is_named(lm_run: Train, lora_run: Train, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora adapts a model that there is: give init_from="):
        lm_run("run", "lora={rank: 3}")
    with pytest.raises(InputError, match=r"unknown key lora.rnak; did you mean 'rank'"):
        lm_run("run", f"init_from={base}", "lora={rnak: 3}")
    with pytest.raises(InputError, match=r"lora.targets is \['heads'\]"):
        lm_run("run", f"init_from={base}", "lora={targets: [heads]}")
    with pytest.raises(InputError, match="text_encoder replaces that of init_from=, which is not given"):
        lm_run("run", "text_encoder=somewhere")
    assert not (tmp_path / "run").exists()
