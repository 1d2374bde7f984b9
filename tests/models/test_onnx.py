"""ONNX graphs: what onnxruntime gives is what torch gives, at other sizes than they were made with, step after step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen import audio
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.spectral import SpectralConfig
from audiogen.convert.__main__ import main
from audiogen.errors import InputError
from audiogen.generators.load import AudioGen
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models import onnx
from audiogen.models.own import save_codec

ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def graphs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "graphs"
    assert main([str(tiny_model), "--to", "onnx", "-o", str(folder)]) == 0
    return folder


def run(graphs: Path, name: str, **feeds: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(graphs / f"{name}.onnx").run(None, feeds)


def test_they_are_as_near_to_torch_as_they_say(graphs: Path) -> None:
    about = json.loads((graphs / "onnx.json").read_text())
    assert about["opset"] == onnx.OPSET
    assert about["difference"].keys() == {"encoder", "decoder", "text", "step"}
    assert max(about["difference"].values()) <= onnx.TOLERANCE


def test_the_codec_codes_and_decodes_any_length(graphs: Path, tiny_model: Path) -> None:
    codec = AudioGen.from_pretrained(tiny_model, "cpu", "float32", packed=False).codec
    for frames in (1, 3, 29):
        sound = 0.1 * torch.randn(2, codec.channels, frames * codec.hop_length)
        codes = codec.encode(sound)
        (found,) = run(graphs, "encoder", audio=sound.numpy())
        assert found.shape == codes.shape and (found == codes.numpy()).mean() > 0.99
        (made,) = run(graphs, "decoder", codes=codes.numpy())
        torch.testing.assert_close(torch.from_numpy(made), codec.decode(codes), atol=1e-4, rtol=1e-3)


def test_steps_with_the_growing_cache_are_greedy_decoding(graphs: Path, tiny_model: Path) -> None:
    """The whole loop in numpy, by the graphs, gives the codes of `generate_tokens`."""
    model = AudioGen.from_pretrained(tiny_model, "cpu", "float32", packed=False)
    about = json.loads((graphs / "onnx.json").read_text())
    frames, books, delays = 6, about["lm_codebooks"], about["delays"]
    request = TokenRequest(model.conditioner(["rain falls"]), frames, range(1), 1.0)
    expected = generate_tokens(model.lm, request, TokenSampling(0.0), max_frames=40)  # [1, K, T]
    ids = np.array([model.conditioner.token_ids("rain falls")])
    mask = np.ones_like(ids, bool)
    text_keys, text_values = run(graphs, "text", ids=ids, mask=mask)
    text = {"text_keys": text_keys, "text_values": text_values, "mask": mask}
    keys = values = np.zeros((about["layers"], 1, about["heads"], 0, about["head_dim"]), np.float32)
    steps = np.full((books, frames + max(delays) + 1), about["special"])
    session = ort.InferenceSession(graphs / "step.onnx")
    for s in range(steps.shape[1] - 1):
        feeds = {
            "steps": steps[None, :, s : s + 1],
            "position": np.array([s]),
            "keys": keys,
            "values": values,
        }
        logits, keys, values = session.run(None, feeds | text)
        for k in range(books):
            if 0 <= s - delays[k] < frames:
                steps[k, s + 1] = logits[0, k].argmax()
    codes = np.stack([steps[k, delays[k] + 1 :][:frames] for k in range(books)])
    assert np.array_equal(codes, expected[0].numpy())


def test_the_example_makes_a_sound_without_torch(graphs: Path, tmp_path: Path) -> None:
    program = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['audiogen'] = None; sys.argv = sys.argv[1:]; "
    )
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [str(ROOT / "examples/onnx_generate.py"), str(graphs), "a dog barks", str(tmp_path / "dog.wav")]
    result = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert result.returncode == 0, result.stderr[-2000:]
    about = json.loads((graphs / "onnx.json").read_text())
    sound, rate = audio.load(tmp_path / "dog.wav")
    assert rate == about["sample_rate"] and sound.shape[1] == about["max_frames"] * about["hop_length"]
    assert sound.abs().max() > 0


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_seanet_codec_has_graphs(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_filters": 4, "ratios": (4, 2), "lstm": 1, "norm": norm}
    seanet = type(CodecConfig().seanet)(**sizes)
    config = CodecConfig(arch="seanet", seanet=seanet, latent_dim=8, num_codebooks=2, codebook_size=16)
    codec = Codec(config).eval()
    save_codec(tmp_path / "codec", codec)
    assert main([str(tmp_path / "codec"), "--to", "onnx", "-o", str(tmp_path / "graphs")]) == 0
    codes = torch.randint(0, 16, (1, 2, 21))
    (made,) = run(tmp_path / "graphs", "decoder", codes=codes.numpy())
    torch.testing.assert_close(torch.from_numpy(made), codec.decode(codes), atol=1e-4, rtol=1e-3)


def test_a_stereo_spectral_codec_has_graphs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spectral = SpectralConfig(n_fft=80, hop_length=40, width=16, num_encoder_blocks=1, num_decoder_blocks=1,
                              kernel_size=3, frames_per_latent=2)  # fmt: skip
    config = CodecConfig(sample_rate=8000, channels=2, arch="spectral", spectral=spectral, latent_dim=6,
                         num_codebooks=3, codebook_size=8)  # fmt: skip
    codec = Codec(config).eval()
    onnx.save_codec(tmp_path, codec)
    sound = 0.1 * torch.randn(3, 2, 7 * codec.hop_length)
    (codes,) = run(tmp_path, "encoder", audio=sound.numpy())
    assert (codes == codec.encode(sound).numpy()).mean() > 0.99
    (made,) = run(tmp_path, "decoder", codes=codes)
    torch.testing.assert_close(
        torch.from_numpy(made), codec.decode(torch.from_numpy(codes)), atol=1e-4, rtol=1e-2
    )


def test_what_has_no_graph_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (["lafma_tiny"], "is a latent-diffusion system, for which there are no graphs"),
        (["lm_tiny", "--dtype", "float16"], "graphs are float32; drop --dtype float16"),
    ):
        with pytest.raises(InputError, match=said):
            main([*words, "--to", "onnx", "-o", str(tmp_path / "out")])
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(
        InputError, match=r"encoder.onnx differs from torch by .* in onnxruntime; -1.0 is allowed"
    ):
        main(["codec_tiny", "--to", "onnx", "-o", str(tmp_path / "out")])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        InputError, match="ONNX needs the package onnxruntime, which is not installed: pip install"
    ):
        main(["codec_tiny", "--to", "onnx", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
