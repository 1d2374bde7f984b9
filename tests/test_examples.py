"""Each file of examples/ does what it says, in a reduced form, with the bundled models."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import audiogen
from audiogen import audio
from audiogen.codec.__main__ import main as codec
from audiogen.diffusion.conditioning import Conditioning

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the file named by the test's parameter defines."""
    return runpy.run_path(str(EXAMPLES / f"{request.param}.py"))


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples open models as they are; here in float32, which all processors have."""
    load: Callable[..., Any] = audiogen.load
    monkeypatch.setattr("audiogen.load", lambda name, device="cpu": load(name, device, "float32"))


@pytest.mark.parametrize("example", ["asset_pack"], indirect=True)
def test_an_asset_pack(example: dict[str, Any], tmp_path: Path) -> None:
    table = (EXAMPLES / "assets.csv").read_text().splitlines()
    assert table[0] == "name,text,seconds,takes" and len(table) > 3
    (tmp_path / "table.csv").write_text(f"{table[0]}\nbark,a dog barks,0.4,2\nrain,rain falls,0.2,1\n")
    example["main"]([str(tmp_path / "table.csv"), str(tmp_path / "pack")])
    pack = json.loads((tmp_path / "pack" / "pack.json").read_text())
    assert [len(takes) for takes in pack["sounds"].values()] == [2, 1]
    for takes in pack["sounds"].values():
        for take in takes:
            sound, rate = audio.load(tmp_path / "pack" / take["file"])
            assert rate == pack["sample_rate"] and abs(sound.shape[1] / rate - take["seconds"]) < 1e-3
            assert -1.5 < 20 * torch.log10(sound.abs().max()) < -0.9  # dB; a fade may touch the peak
    bark = [audio.load(tmp_path / "pack" / take["file"])[0] for take in pack["sounds"]["bark"]]
    assert bark[0].shape != bark[1].shape or not torch.equal(*bark), "two takes are one"
    silence, click = torch.zeros(1, 300), torch.ones(1, 40)
    assert example["finish"](torch.cat([silence, click, silence], 1), 1000).shape == (1, 40)


@pytest.mark.parametrize("example", ["slideshow"], indirect=True)
def test_the_sound_of_a_slide_show(example: dict[str, Any], tmp_path: Path) -> None:
    assert (EXAMPLES / "slides.csv").read_text().startswith("seconds,text\n")
    (tmp_path / "slides.csv").write_text("seconds,text\n0.3,rain falls\n0.5,birds chirp\n")
    example["main"].__globals__["FADE_S"] = 0.1
    example["main"]([str(tmp_path / "slides.csv"), str(tmp_path / "out.wav")])
    sound, rate = audio.load(tmp_path / "out.wav")
    assert sound.shape == (1, round(0.8 * rate)) and sound.square().mean() > 1e-5
    noise = torch.randn(2, 1, 2000, generator=torch.Generator().manual_seed(0)) * 0.1
    joined = example["join"](list(noise), [0, 1500], 500, 3000)
    level = joined[0].unfold(0, 400, 100).std(1)  # of windows from the first fade to the last
    assert joined.shape == (1, 3000) and (level[5:-5] / 0.1 - 1).abs().max() < 0.15


@pytest.mark.parametrize("example", ["own_transformer"], indirect=True)
def test_tokens_into_an_own_transformer(example: dict[str, Any], tmp_path: Path) -> None:
    codec(["encode", "synth:2", "-o", str(tmp_path / "tokens")])
    out = tmp_path / "out.wav"
    example["main"]([str(tmp_path / "tokens"), str(out), "--steps", "2", "--frames", "3"])
    sound, rate = audio.load(out)
    assert sound.shape == (1, 3 * rate // 25) and sound.isfinite().all()
    model = example["Transformer"](3, 5, dim=64, layers=1, longest=13)
    codes = torch.tensor([[5, 0, 1, 2, 3, 4, 0]])
    assert model(codes).shape == (1, 7, 5)
    changed = codes.clone()
    changed[0, 4] = 0
    same = torch.isclose(model(codes), model(changed), atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 4 + [False] * 3, "a code is predicted from later ones, or from none"
    assert model.eval().sample(4).shape == (3, 4)


@pytest.mark.parametrize("example", ["new_latent_system"], indirect=True)
def test_a_new_latent_system(
    example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.wav"
    example["main"]([str(out), "--steps", "2", "--clips", "2", "--seconds", "0.64"])
    sound, rate = audio.load(out)
    assert sound.shape == (1, round(0.64 * rate)) and sound.abs().max() > 0
    assert "step 1: " in capsys.readouterr().out
    denoiser, x_t = example["Denoiser"](2, 3, 5, width=16, num_blocks=2), torch.randn(2, 2, 7, 3)
    vector = torch.randn(2, 5, requires_grad=True)
    assert denoiser(x_t, torch.rand(2), Conditioning(vector=vector)).abs().max() == 0
    torch.nn.init.normal_(denoiser.last.weight)
    denoiser(x_t, torch.rand(2), Conditioning(vector=vector))[0].sum().backward()
    assert vector.grad is not None and vector.grad[0].abs().max() > 0 and vector.grad[1].abs().max() == 0


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in text or path.stem == "onnx_generate", (
            path
        )  # tests/models/test_onnx.py runs that
