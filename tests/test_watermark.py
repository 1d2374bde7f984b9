"""AudioSeal's watermark: with its own networks and random weights, it is added as the package does and read back so.

Random weights mark nothing that a detector could find: what is tested is the way to the networks and back.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import audio, watermark
from audiogen.errors import InputError, run_command
from audiogen.files import hub
from audiogen.generate.__main__ import main
from audiogen.info.__main__ import main as info
from audiogen.models.digest import digest
from audiogen.models.find import find

WORDS = ["--device", "cpu", "--duration", "0.2", "--text", "rain"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; the snapshot that would hold the weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    watermark._network.cache_clear()
    folder, commit = tmp_path / "hub" / "models--facebook--audioseal", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    yield folder / "snapshots" / commit  # type: ignore[misc]
    watermark._network.cache_clear()


@pytest.fixture
def networks(cache: Path) -> dict[str, Any]:
    """Both networks with random weights, which lie in the cache under their released names."""
    pytest.importorskip("audioseal", reason="needs the extra watermark")
    from audioseal import builder, loader
    from omegaconf import OmegaConf

    cache.mkdir(parents=True)
    found = {}
    settings = {"generator": builder.AudioSealWMConfig, "detector": builder.AudioSealDetectorConfig}
    create = {"generator": builder.create_generator, "detector": builder.create_detector}
    for kind, (name, card) in watermark.FILES.items():
        config = loader.load_local_model_config(card)
        config.pop("checkpoint")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = create[kind](loader.AudioSeal.parse_config(config, config_type=settings[kind])).eval()
        weights = {key.replace(".inner_conv.", "."): value for key, value in network.state_dict().items()}
        torch.save(
            {"xp.cfg": OmegaConf.create({"a": [1, None], "b": {"c": 1.5}}), "model": weights}, cache / name
        )
        found[kind] = network
    return found


def test_the_watermark_is_the_one_of_the_package(networks: dict[str, Any]) -> None:
    sound = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) / 10
    marked = watermark.embed(sound, 16_000, 0x1A2B)
    bits = torch.tensor([[int(bit) for bit in f"{0x1A2B:016b}"]])
    with torch.inference_mode(), watermark._plainly():
        expected = networks["generator"](sound[None], message=bits)[0]
        share, message = networks["detector"].detect_watermark(marked[None])
    torch.testing.assert_close(marked, audio.below_full_scale(expected))
    assert not torch.equal(marked, watermark.embed(sound, 16_000, 0x1A2C))
    detected = watermark.detect(marked, 16_000)
    assert detected.share == float(share) and f"{detected.message:016b}" == "".join(
        map(str, message[0].tolist())
    )


@pytest.mark.parametrize(("channels", "rate", "length"), [(2, 44_100, 9_999), (1, 8_000, 101)])
def test_other_rates_and_channels_get_the_mark_of_their_middle(
    networks: dict[str, Any], channels: int, rate: int, length: int
) -> None:
    sound = torch.randn(channels, length, generator=torch.Generator().manual_seed(1)) / 100
    added = watermark.embed(sound, rate, 5) - sound
    assert added.shape == sound.shape and added.abs().max() > 0
    torch.testing.assert_close(added[0], added[-1], atol=1e-6, rtol=0)
    low = audio.resample(sound.mean(0, keepdim=True), rate, 16_000)
    mark = audio.resample(watermark.embed(low, 16_000, 5) - low, 16_000, rate)[:, :length]
    torch.testing.assert_close(added[:1, : mark.shape[1]], mark, atol=1e-5, rtol=0)


def test_the_command_marks_and_info_detects(
    networks: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), *WORDS]
    assert run_command(main, [*common, "--out", "plain.wav"]) == 0
    assert run_command(main, [*common, "--out", "marked.wav", "--watermark"]) == 0
    plain, rate = audio.load("plain.wav")
    expected = watermark.embed(plain, rate, int(digest(find(tiny_model))[:4], 16))
    torch.testing.assert_close(audio.load("marked.wav")[0], expected, atol=2e-4, rtol=0)
    capsys.readouterr()
    assert run_command(info, ["marked.wav", "--detect"]) == 0
    lines = capsys.readouterr().out
    found = watermark.detect(*audio.load("marked.wav"))
    assert (
        f"watermark: in {found.share:.0%} of the sound, message {found.message:04x}" in lines
        or "none found" in lines
    )
    assert "--watermark --out marked_again.wav" in lines


def test_without_weights_nothing_is_generated_and_a_line_says_why(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("audioseal", reason="needs the extra watermark")
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--model", str(tiny_model), *WORDS, "--watermark", "--out", "a.wav"]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "the weights of the watermark: facebook/audioseal cannot be fetched" in error
    )
    assert not Path("a.wav").exists()


def test_weights_of_something_else_are_refused(networks: dict[str, Any], cache: Path) -> None:
    torch.save({"model": {"a": torch.zeros(3)}}, cache / "generator_base.pth")
    with pytest.raises(InputError, match="holds other weights than AudioSeal's generator"):
        watermark.check()
    (cache / "generator_base.pth").write_bytes(b"PK\3\4 damaged")
    with pytest.raises(InputError, match="generator_base.pth"):
        watermark.check()


def test_without_the_package_a_line_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "audioseal", None)
    with pytest.raises(InputError, match=r"need the package audioseal .*: pip install '.\[watermark\]'"):
        watermark.check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watermark", "--stream"], "--watermark is for whole sounds"),
        (["--detect"], "--detect looks for a watermark"),
    ],
)
def test_what_cannot_be_marked_is_refused(words: list[str], message: str, capsys) -> None:
    command = info if "--detect" in words else main
    assert run_command(command, words if command is info else ["--text", "rain", *words]) == 2
    assert message in capsys.readouterr().err
