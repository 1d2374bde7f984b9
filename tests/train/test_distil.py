"""Distillation: a student's step is taught to lead where several of its teacher's lead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from audiogen.diffusion.process import PROCESSES, Process
from audiogen.errors import run_command
from audiogen.generators.load import load
from audiogen.models.released import load_released
from audiogen.train.__main__ import main
from audiogen.train.distil import DistilRecipe, DistilTask
from audiogen.train.log import read_log
from audiogen.train.run import open_recipe

DATA = "data: {{train: 'synth:6', valid: 'synth:3@10', segment_s: 0.5}}\n"
RECIPE = """
task: distil
kind: lafma
init_from: {system}
max_reconstruction: 99.0
sampling: {{sampler: euler, steps: 2, guidance: 1.0}}
teacher: {{sampler: euler, steps: 6, guidance: 3.0}}
optim: {{lr: 3e-3, warmup_steps: 2}}
fit: {{steps: 6, batch_size: 3, ema_decay: 0.5, valid_every: 3, save_every: 6, log_every: 1, device: cpu}}
"""
Write = Callable[..., Path]


@pytest.fixture
def recipe(tiny_latent: Path, tmp_path: Path) -> Path:
    path = tmp_path / "fast.yaml"
    path.write_text(RECIPE.format(system=tiny_latent) + DATA.format())
    return path


def task(recipe: Path, out: Path, *settings: str) -> DistilTask:
    opened = open_recipe(str(recipe), [f"out={out}", *settings])
    assert isinstance(opened, DistilRecipe)
    made, _ = opened.prepare(torch.device("cpu"))
    assert isinstance(made, DistilTask)
    return made


def test_a_student_comes_near_its_teacher_and_is_sampled_in_few_steps(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([f"recipe={recipe}", f"out={out}"]) == 0
    found = [record for record in read_log(out) if "valid/endpoint" in record]
    assert len(found) == 2
    assert all(found[1][name] < found[0][name] for name in ("valid/endpoint", "valid/loss"))
    model = load(out)
    assert json.loads((out / "system.json").read_text())["sampling"]["steps"] == 2
    assert model.guidance == 1.0
    sound = model.generate(["a dog barks"], duration_s=0.5, seed=0)
    assert torch.isfinite(sound).all()
    assert main([f"recipe={recipe}", f"out={out}", "fit.steps=9"]) == 0  # goes on


@pytest.mark.parametrize("name", ["lafma", "tango"])
def test_a_perfect_student_has_no_loss(recipe: Path, tmp_path: Path, name: str) -> None:
    """One that gives what the teacher's steps come to; of a flow, and of a process with other coefficients."""
    # Of a constant prediction one step is as good as three in a flow; elsewhere the teacher takes the same step.
    steps = {"lafma": 6, "tango": 2}[name]
    made = task(recipe, tmp_path / "run", "teacher.guidance=1.0", f"teacher.steps={steps}")
    if name == "tango":
        made.process = Process(PROCESSES["tango"])
        for sampling in (made.recipe.sampling, made.recipe.teacher):
            object.__setattr__(sampling, "sampler", "ddim")

    class Constant(nn.Module):
        """The same prediction at any time."""

        def __init__(self, value: float):
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor, t: torch.Tensor, conditioning: object) -> torch.Tensor:
            return torch.full_like(x, self.value)

    made.teacher = Constant(0.3)
    clean, noise = torch.randn(
        2, 2, *made.system.autoencoder.latent_shape(0.5), generator=torch.Generator().manual_seed(0)
    )
    given, away = made.conditioner.guided(["a dog", "rain"], None, device="cpu")
    for segment in range(2):
        for value in (0.3, 0.5):
            made.forward = Constant(value)
            error = made.distance(clean, noise, segment, given, away)
            assert torch.allclose(error, torch.full((2,), (value - 0.3) ** 2), atol=1e-5)


def test_only_the_denoiser_is_trained_and_the_teacher_stays(recipe: Path, tmp_path: Path) -> None:
    made = task(recipe, tmp_path / "run")
    trained = {name.partition(".")[0] for name, each in made.module.named_parameters() if each.requires_grad}
    assert trained == {"denoiser"}
    assert not any(each.requires_grad for each in made.teacher.parameters())
    before = [each.clone() for each in made.teacher.parameters()]
    made.train()
    assert not made.conditioner.training and made.system.denoiser.training
    for each in made.system.denoiser.parameters():
        each.data.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, made.teacher.parameters(), strict=True))


def test_a_student_may_begin_as_an_earlier_one(recipe: Path, tmp_path: Path) -> None:
    assert main([f"recipe={recipe}", f"out={tmp_path / 'earlier'}", "fit.ema_decay=0"]) == 0
    earlier = load_released(tmp_path / "earlier").system.denoiser.state_dict()
    made = task(recipe, tmp_path / "later", f"student_from={tmp_path / 'earlier'}")
    student, teacher = made.system.denoiser.state_dict(), made.teacher.state_dict()
    assert all(torch.equal(student[name], each) for name, each in earlier.items())
    assert any(not torch.equal(teacher[name], each) for name, each in earlier.items())


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "teacher.steps=5",
            "the teacher's 5 steps of euler are no multiple of 2 steps of euler; set teacher.steps",
        ),
        (
            "teacher.sampler=heun",
            "teacher.sampler is heun with eta 0; steps are distilled of euler and ddim with eta 0",
        ),
        ("sampling.guidance=2.0", "sampling.guidance is 2; the student has 1, without guidance"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(
    recipe: Path, tmp_path: Path, setting: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [f"recipe={recipe}", f"out={tmp_path / 'run'}", setting]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and line in said[0]
