"""Stereo end to end: a joint codec keeps sides, dual mono orders the channels' tokens, files are stereo at any rate."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.spectral import SpectralConfig
from audiogen.data.shards import ShardReader
from audiogen.generate.__main__ import main as generate
from audiogen.generators.load import load
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models.build import load_codec

Train = Callable[..., Path]
RATE = 2000
SPECTRAL = SpectralConfig(80, 40, 32, 1, 1, 3)
JOINT = CodecConfig(RATE, 2, "spectral", spectral=SPECTRAL, latent_dim=16, num_codebooks=4, codebook_size=32,
                    kmeans_iterations=5, dead_below=0.1)  # fmt: skip


def panned(random: torch.Generator, sides: Tensor) -> Tensor:
    """Noises [B, 2, N] at places [B] from left (-1) to right (1), by level."""
    angle = torch.pi / 4 * (1 + 0.8 * sides)
    gains = torch.stack([angle.cos(), angle.sin()], 1)  # [B, 2]
    return 0.2 * gains[..., None] * torch.randn(len(sides), 1, RATE, generator=random)


def differences_db(sounds: Tensor) -> Tensor:
    """Level of the left channel above the right one, [B, 2, N] -> [B]."""
    left, right = sounds.square().mean(-1).unbind(1)
    return 10 * torch.log10(left / right)


def test_what_is_on_the_left_comes_out_on_the_left() -> None:
    """A joint codec that was trained for seconds on noises at random places keeps the place of others in its tokens."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    codec = Codec(JOINT).train()
    optimizer = torch.optim.Adam(codec.parameters(), 3e-3)
    for _ in range(150):
        places = torch.rand(8, generator=random) * 2 - 1
        output = codec(panned(random, places), reconstruct=False)
        (output.spectral_loss + 0.25 * output.commitment_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    codec.freeze(torch.float32)
    sides = torch.cat([torch.linspace(-1, -0.3, 8), torch.linspace(0.3, 1, 8)])
    sounds = panned(torch.Generator().manual_seed(2), sides)
    decoded = codec.decode(codec.encode(sounds))
    found = differences_db(decoded)
    assert ((found > 0) == (sides < 0)).all()
    assert torch.corrcoef(torch.stack([found, differences_db(sounds)]))[0, 1] > 0.9
    exchanged = codec.decode(codec.encode(sounds.flip(1)))
    assert ((differences_db(exchanged) > 0) == (sides > 0)).all()


@pytest.fixture
def sides(tmp_path: Path) -> Path:
    """Tones that are on the left alone, and noises on the right alone."""
    random = torch.Generator().manual_seed(0)
    lines, time_s = [], torch.arange(RATE) / RATE
    for number in range(8):
        tone = 0.3 * torch.sin(2 * torch.pi * (100 + 50 * number) * time_s)
        noise = 0.1 * torch.randn(RATE, generator=random)
        left, right, words = (tone, 0 * tone, "a tone") if number % 2 else (0 * noise, noise, "rain falls")
        audio.save(tmp_path / f"{number}.wav", torch.stack([left, right]), RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "captions": [words]}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "manifest.jsonl"


def test_dual_mono_from_training_to_a_file_at_48_khz(
    lm_run: Train, codec_dir: Path, sides: Path, tmp_path: Path
) -> None:
    run = lm_run(
        "run", f"data.train={sides}", f"data.valid={sides}", "dual_mono=true", "model.num_codebooks=6",
        "model.delays=[0, 0, 1, 1, 2, 2]", "pretokenize_epochs=1", "data.mix_probability=0", "model.dropout=0",
        "text.dropout=0", "fit.steps=140", "fit.valid_every=0", "fit.save_every=0", "fit.log_every=70",
    )  # fmt: skip
    mono, silent = load_codec(codec_dir), torch.zeros(1, 1, RATE // 2)
    silence = mono.encode(silent)[0]  # [3, T]
    reader = ShardReader(run / "tokens" / "pass_000")
    assert len(reader.clips) == 8
    for index, clip in enumerate(reader.clips):
        left, right = reader.codes(index)[0::2], reader.codes(index)[1::2]
        quiet, loud = (right, left) if "tone" in clip.captions[0] else (left, right)
        assert torch.equal(quiet.long(), silence) and not torch.equal(loud.long(), silence)
    model = load(run)
    assert model.channels == 2 and model.config.num_codebooks == 6
    assert model.generate(["a tone", "rain falls"], 0.43, seed=1).shape == (2, 2, 860)
    request = TokenRequest(model.conditioner(["a tone", "rain falls"]), 22, [0, 1], guidance=1.0)
    made = generate_tokens(model.lm, request, TokenSampling(temperature=0.0))  # [B, 6, 22]
    for codes, quiet in zip(made, (1, 0), strict=True):
        assert torch.equal(codes[quiet::2], silence[:, :22])
        assert not torch.equal(codes[1 - quiet :: 2], silence[:, :22])
    out = tmp_path / "sounds"
    given = ["--model", str(run), "--text", "a tone", "--duration", "0.43", "--sample-rate", "48000"]
    assert generate([*given, "--out", str(out)]) == 0
    (file,) = out.glob("*.wav")
    info = soundfile.info(file)
    assert (info.channels, info.samplerate, info.frames) == (2, 48000, round(0.43 * 48000))
