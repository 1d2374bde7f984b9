"""The `encodec` package as a reference, in a process of its own: it imports torchaudio, for which a stand-in is there.

Tests call `run`; it skips them where the package is not installed (`pip install --no-deps encodec`, or a folder
of it in PYTHONPATH). Below it are the commands that run in the other process: they read and write files in a folder.
Weights are random, of the sizes of the released models; each is made from a seed, so that two processes have the same.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
CODEC_FILES = {"encodec_24khz": "encodec_24khz-d7cc33bc.th", "encodec_48khz": "encodec_48khz-7e698e3e.th"}


def run(command: str, folder: Path, **options: Any) -> None:
    """Run a command of this file on a folder in another process; skip the test if there is no encodec package."""
    if importlib.util.find_spec("encodec") is None:
        pytest.skip("needs the encodec package: pip install --no-deps encodec")
    result = subprocess.run(
        [sys.executable, __file__, command, str(folder), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]


# ------------------------------------------------------------------------------------------- in the other process


def untrained(name: str) -> Any:
    """The codec as the package makes it; all its codewords are zeros."""
    from encodec import EncodecModel

    torch.manual_seed(3)
    model = getattr(EncodecModel, name.replace("encodec_", "encodec_model_"))(pretrained=False)
    model.name = name
    return model


def build_codec(name: str) -> Any:
    """The codec with random weights in every tensor, and codewords about as large as what they stand for."""
    model = untrained(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = 1.0 if "lstm" in key else 1.8  # the sound is not to drown in the biases on its way
            parameter.mul_(torch.empty_like(parameter).uniform_(0.8 * gain, 1.2 * gain))
            parameter.add_(torch.empty_like(parameter).uniform_(-0.02, 0.02))
        latents = model.encoder(noise(1, model.channels, 9600))
        for level, layer in enumerate(model.quantizer.vq.layers):
            layer._codebook.inited.fill_(True)
            layer._codebook.embed.normal_().mul_(latents.std() * 0.9**level)
    return model


def build_lm(model: Any) -> Any:
    """A small random language model of a codec's codes."""
    from encodec.model import LMModel

    torch.manual_seed(4)
    quantizer, context = model.quantizer, int(3.5 * model.frame_rate)
    return LMModel(quantizer.n_q, quantizer.bins, num_layers=1, dim=16, past_context=context).eval()


def noise(batch: int, channels: int, num_samples: int) -> torch.Tensor:
    """Smooth noise that swells, so that segments differ in loudness."""
    generator = torch.Generator().manual_seed(num_samples)
    white = torch.randn(batch, channels, num_samples + 8, generator=generator)
    return 0.3 * white.unfold(-1, 9, 1).mean(-1) * torch.linspace(0.2, 1.5, num_samples)


def code_sounds(folder: Path, name: str, num_samples: list[int], bandwidths: list[float]) -> None:
    """Weights; then for sound i and bandwidth j the audio, codes and decoded audio, and the .ecdc file."""
    from encodec.compress import compress

    model = build_codec(name)
    torch.save(model.state_dict(), folder / CODEC_FILES[name])
    tensors = {}
    for i, length in enumerate(num_samples):
        tensors[f"audio{i}"] = audio = noise(1, model.channels, length)
        for j, bandwidth in enumerate(bandwidths):
            model.set_target_bandwidth(bandwidth)
            frames = model.encode(audio)
            for index, (codes, scale) in enumerate(frames):
                tensors[f"codes{i}.{j}.{index}"] = codes.contiguous()
                if scale is not None:
                    tensors[f"scale{i}.{j}.{index}"] = scale.contiguous()
            tensors[f"decoded{i}.{j}"] = model.decode(frames)[..., :length].contiguous()
            (folder / f"theirs{i}.{j}.ecdc").write_bytes(compress(model, audio[0], use_lm=False))
    save_file(tensors, folder / "theirs.safetensors")


def compress_codes(folder: Path, name: str, num_samples: int) -> None:
    """Given codes (and scales) of segments in codes.safetensors -> plain.ecdc, and coded.ecdc by a language model."""
    from encodec.compress import compress

    model = untrained(name)
    given = load_file(folder / "codes.safetensors")
    count = sum(key.startswith("codes") for key in given)
    model.encode = lambda audio: [(given[f"codes{i}"], given.get(f"scale{i}")) for i in range(count)]
    model.get_lm_model = lambda: build_lm(model)
    for file, use_lm in (("plain.ecdc", False), ("coded.ecdc", True)):
        audio = torch.zeros(model.channels, num_samples)
        (folder / file).write_bytes(compress(model, audio, use_lm=use_lm))


def decompress_files(folder: Path, name: str) -> None:
    """Every ours*.ecdc of the folder -> its audio [C, N] in decompressed.safetensors."""
    from encodec.compress import MODELS, decompress_from_file

    model = build_codec(name)
    MODELS[name] = lambda: model
    decoded = {}
    for path in sorted(folder.glob("ours*.ecdc")):
        audio, sample_rate = decompress_from_file(io.BytesIO(path.read_bytes()))
        assert sample_rate == model.sample_rate
        decoded[path.stem] = audio.contiguous()
    save_file(decoded, folder / "decompressed.safetensors")


COMMANDS = {"code": code_sounds, "compress": compress_codes, "decompress": decompress_files}


def main() -> None:
    command, folder, options = sys.argv[1:]
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    with torch.no_grad():
        COMMANDS[command](Path(folder), **json.loads(options))


if __name__ == "__main__":
    main()
