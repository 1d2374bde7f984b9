"""Recipes become dataclasses, or one line that says which key is wrong and what was meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from audiogen.config import (
    Positive,
    PositiveFloat,
    Range,
    build,
    check_ranges,
    did_you_mean,
    load_recipe,
    recipe_names,
    to_plain,
    to_yaml,
)
from audiogen.errors import InputError


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"lr is {self.lr}; it must be above 0")


@dataclass(frozen=True)
class Run:
    steps: int
    name: str = "run"
    fast: bool = False
    ratios: tuple[int, ...] = (8, 5)
    device: str | None = None
    size: int | str = 1
    where: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    parts: tuple[Optim, ...] = ()
    out: Path = Path("runs")


def test_nested_values_get_their_types() -> None:
    node = {
        "steps": 1e4,
        "ratios": [4, 2],
        "device": None,
        "size": "big",
        "where": {"fold": [1, 2]},
        "optim": {"lr": 1, "betas": [0.5, 0.9], "kind": "sgd"},
        "parts": [{"lr": 0.5}, Optim(lr=2.0)],
        "out": "a/b",
    }
    run = build(Run, node)
    assert run == Run(
        steps=10000,
        ratios=(4, 2),
        size="big",
        where={"fold": (1, 2)},
        optim=Optim(1.0, (0.5, 0.9), "sgd"),
        parts=(Optim(0.5), Optim(2.0)),
        out=Path("a/b"),
    )
    assert type(run.steps) is int and type(run.optim.lr) is float


def test_plain_and_back() -> None:
    run = Run(3, where={"fold": (1, 2)}, parts=(Optim(0.5),))
    assert build(Run, to_plain(run)) == run


def test_yaml_and_back(tmp_path: Path) -> None:
    run = Run(3, optim=Optim(lr=5e-4), parts=(Optim(1e-8),))
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert build(Run, load_recipe(str(tmp_path / "run.yaml"))) == run


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"stepz": 3}, r"unknown key stepz; did you mean 'steps'\?"),
        ({"steps": 3, "optim": {"learning": 1}}, r"unknown key optim.learning; allowed: betas, kind, lr"),
        ({"steps": 3, "optim": {"leer": 1, "lr": 1}}, "unknown key optim.leer"),
        ({"steps": 3, "lr": 1}, r"unknown key lr; did you mean optim.lr\?"),
        ({}, "steps is missing and has no default"),
        ({"steps": "many"}, "steps: got 'many', expected a whole number"),
        ({"steps": 2.5}, "steps: got 2.5, expected a whole number"),
        ({"steps": True}, "steps: got True, expected a whole number"),
        ({"steps": 3, "fast": 1}, "fast: got 1, expected a true or false"),
        ({"steps": 3, "name": 7}, "name: got 7, expected a string"),
        ({"steps": 3, "ratios": 8}, "ratios: got 8, expected a list"),
        ({"steps": 3, "ratios": [8, "x"]}, r"ratios\[1\]: got 'x'"),
        ({"steps": 3, "size": 1.5}, "size: got 1.5, expected a whole number or string"),
        ({"steps": 3, "optim": {"betas": [1, 2, 3]}}, "optim.betas: got 3 values, expected 2"),
        ({"steps": 3, "optim": {"kind": "adm"}}, r"optim.kind: got 'adm'; did you mean 'adam'\?"),
        ({"steps": 3, "optim": {"lr": -1}}, "optim: lr is -1.0; it must be above 0"),
        ({"steps": 3, "optim": 5}, "optim: got 5, expected a mapping with keys lr, betas, kind"),
        ({"steps": 3, "parts": [{"lr": 1}, {"lrr": 1}]}, r"unknown key parts\[1\].lrr; did you mean 'lr'\?"),
    ],
)
def test_a_mistake_is_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Run, node)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Any]:
    def load(text: str, *overrides: str) -> Any:
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(str(tmp_path / "r.yaml"), overrides)

    return load


def test_overrides_replace_values_in_order(recipe: Callable[..., Any]) -> None:
    text = "steps: 1\noptim: {lr: 0.5}\nwhere: {fold: [1]}\n"
    node = recipe(
        text, "steps=2", "steps=1e3", "optim.lr=5e-4", "optim.kind=sgd", "where={label: [a]}", "name=a=b c"
    )
    run = build(Run, node)
    assert (run.steps, run.optim, run.where) == (1000, Optim(5e-4, kind="sgd"), {"label": ("a",)})
    assert run.name == "a=b c"


@pytest.mark.parametrize("override", ["steps", "=3", " steps=3", "ratios=[1"])
def test_an_override_that_cannot_be_applied_is_named(override: str, recipe: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="override .*" + override.strip().split("=")[0].replace(".", r"\.")):
        recipe("steps: 1\n", override)


@pytest.mark.parametrize("text", ["steps: [1", "- 1\n- 2\n"])
def test_a_file_that_is_no_recipe_is_named(text: str, recipe: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"recipe file .*r\.yaml"):
        recipe(text)


def test_missing_recipes_are_named_with_the_nearest_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'codec_tinny' does not exist; did you mean 'codec_tiny'"):
        load_recipe("codec_tinny")
    with pytest.raises(InputError, match=r"nowhere\.yaml does not exist"):
        load_recipe(str(tmp_path / "nowhere.yaml"))


def test_did_you_mean() -> None:
    assert did_you_mean("hop_lenght", ["hop_length", "n_fft"]) == "did you mean 'hop_length'?"
    assert did_you_mean("zzz", ["b", "a"]) == "allowed: a, b."


def test_built_in_recipes_are_found() -> None:
    assert {"codec_tiny", "lm_tiny", "lm"} <= set(recipe_names())


@dataclass(frozen=True)
class Limits:
    heads: Positive = 1
    rate: PositiveFloat | None = None
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    level: Annotated[float, Range(high=0)] = 0.0
    ratios: tuple[Positive, ...] = (2,)
    pair: tuple[float, Positive] = (0.0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"heads": 0}, r"^limits: heads is 0; it must be at least 1$"),
        (
            {"heads": 1 << 63},
            r"^limits: heads is 9223372036854775808; it must be 9223372036854775807 at most$",
        ),
        ({"rate": 0.0}, r"rate is 0.0; it must be above 0"),
        ({"rate": float("nan")}, r"rate is nan; it must be above 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"decay": 0.0}, r"decay is 0.0; it must be in \(0, 1\]"),
        ({"level": 1.0}, r"level is 1.0; it must be at most 0"),
        ({"ratios": [4, 0]}, r"ratios\[1\] is 0; it must be at least 1"),
        ({"pair": [-1.0, 0]}, r"pair\[1\] is 0; it must be at least 1"),
    ],
)
def test_a_number_outside_of_its_range_is_named(node: dict[str, Any], message: str) -> None:
    assert build(Limits, {"heads": 2, "rate": 0.1, "ratios": [], "pair": [-1, 1]}).pair == (-1.0, 1)
    with pytest.raises(InputError, match=message):
        build(Limits, node, where="limits")
