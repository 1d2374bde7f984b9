"""Directories that diffusers opens as whole pipelines, also without audiogen, with the sounds that ours makes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from audiogen.convert.__main__ import main
from audiogen.diffusion.mel import MelConfig, griffin_lim, log_mel
from audiogen.diffusion.process import Process, process_of
from audiogen.diffusion.sample import Noise, Sampling, sample
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.generators import load as generators
from audiogen.models import latent_pipeline
from audiogen.models.diffusers import save_diffusers
from audiogen.models.find import SYSTEM, find, weights_folder
from audiogen.models.released import load_released
from audiogen.text.t5 import TextConfig
from audiogen.text.vocabulary import train_vocabulary
from tests import random_t5
from tests.diffusion.tiny_systems import CAPTIONS, tiny

TEXTS = ["a dog barks", "rain"]


def open_there(folder: Path) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def both(system: LatentSystem, process: Process, folder: Path, **asked: float) -> tuple[Tensor, ...]:
    """Latents and sounds by ours and by diffusers, from the same noise."""
    seconds = 10.0  # more than what is generated: nothing is cut off
    shape = system.autoencoder.latent_shape(0.1 if system.config.audio_unet else 0.5)
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    sampler = {"flow": "euler", "cosine_v": "dpm++sde"}.get(process.config.kind, "ddim")
    sampling = Sampling(sampler, 3, **asked)
    given, away = system.conditioner.guided(TEXTS, torch.full((2,), seconds))
    latents = sample(
        system.denoiser, process, sampling, given, Noise(shape, range(2), start=noise), negative=away
    )
    pipe, found = open_there(folder), []
    for kind in ("latent", "pt"):
        drawn = [torch.Generator().manual_seed(seed) for seed in range(2)]
        for row, generator in zip(noise, drawn, strict=True):  # ours draws what it begins with, too
            torch.randn(row.shape, generator=generator)
        call = {"latents": noise, "num_inference_steps": 3, "guidance_scale": sampling.guidance}
        found.append(pipe(TEXTS, seconds, generator=drawn, output_type=kind, **call).audios)
    made = system.autoencoder.decode(latents)
    return latents, found[0], made if pipe.config["mel"] is None else made[:, 0], found[1]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_bundled_system_makes_the_same_latents_and_sound_there(guidance: float, tmp_path: Path) -> None:
    assert main(["lafma_tiny", "--to", "diffusers", "-o", str(tmp_path / "out")]) == 0
    model = generators.load("lafma_tiny", "cpu")
    ours, theirs, sound, other = both(model.system, model.process, tmp_path / "out", guidance=guidance)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert ours.std() > 0.5
    # Griffin-Lim's phases are chaotic: the spectra are compared, and below the algorithm itself
    mels = [log_mel(each[:, None, : sound.shape[1]], MelConfig(n_fft=512)) for each in (sound, other)]
    assert (mels[0] - mels[1]).abs().mean() < 0.02 < mels[0].std()
    again = generators.load(tmp_path / "out", "cpu")  # and it is still ours
    assert again.identity() == model.identity()


@pytest.mark.parametrize("unconditional", ["zeros", "empty", "padded"])
@pytest.mark.parametrize("encoder", ["embedded", "frozen"])
def test_a_unet_with_either_text_encoder_and_any_null_is_the_same_there(
    encoder: str, unconditional: str, tmp_path: Path
) -> None:
    config = tiny("lafma")
    text = config.conditioner.text
    if encoder == "frozen":
        text = TextConfig(str(random_t5.write(tmp_path / "t5", 24)), width=24)
    conditioner = dataclasses.replace(config.conditioner, text=text, unconditional=unconditional)
    torch.manual_seed(0)
    config = SystemConfig(conditioner, config.mel_autoencoder, audio_unet=config.audio_unet)
    system = LatentSystem(config, train_vocabulary(CAPTIONS, 40)).eval()
    system.autoencoder.scale_factor.fill_(0.7)
    save_diffusers(tmp_path / "out", system, "lafma", {})
    ours, theirs, sound, other = both(
        system, Process(process_of("lafma", {})), tmp_path / "out", guidance=2.0
    )
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other[:, : sound.shape[1]], sound, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["tango", "audioldm"])
def test_noise_schedules_are_the_same_there(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny(name)  # audioldm has no stream, only the vector
    system = LatentSystem(config, train_vocabulary(CAPTIONS, 40)).eval()
    save_diffusers(tmp_path / "out", system, name, {}, sampling=Sampling("ddim", 3, 2.0))
    ours, theirs, sound, other = both(system, Process(process_of(name, {})), tmp_path / "out", guidance=2.0)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other[:, : sound.shape[1]], sound, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_noise_of_every_step_is_that_of_the_seed_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = LatentSystem(tiny("tango"), train_vocabulary(CAPTIONS, 40)).eval()
    sampling, process = Sampling("ddpm", 5, 2.0), Process(process_of("tango", {}))
    save_diffusers(tmp_path / "out", system, "tango", {}, sampling=sampling)
    given, away = system.conditioner.guided(TEXTS[:1])
    pipe, generator = open_there(tmp_path / "out"), torch.Generator().manual_seed(7)
    theirs = pipe(TEXTS[0], 0.5, generator=generator, output_type="latent").audios
    ours = sample(system.denoiser, process, sampling, given, Noise(theirs.shape[1:], [7]), negative=away)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("encoder", ["embedded", "frozen"])
@pytest.mark.parametrize("bands", [1, 8])
@pytest.mark.parametrize("name", ["tangoflux", "stable_audio"])
def test_waveform_latents_and_seconds_are_the_same_there(
    name: str, bands: int, encoder: str, tmp_path: Path
) -> None:
    config = tiny(name)
    text = config.conditioner.text
    if encoder == "frozen":
        if (name, bands) == ("stable_audio", 1):
            pytest.skip("that is StableAudioPipeline's")
        text = TextConfig(str(random_t5.write(tmp_path / "t5", 24)), width=24)
    assert config.waveform_autoencoder is not None
    config = dataclasses.replace(
        config,
        conditioner=dataclasses.replace(config.conditioner, text=text),
        waveform_autoencoder=dataclasses.replace(config.waveform_autoencoder, bands=bands),
    )
    torch.manual_seed(0)
    system = LatentSystem(config, train_vocabulary(CAPTIONS, 40)).eval()
    system.autoencoder.scale_factor.fill_(0.7)
    save_diffusers(tmp_path / "out", system, name, {}, window_s=0.4)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"pipeline.py", "transformer", "vae"}
    process = Process(process_of(name, {}))
    ours, theirs, sound, other = both(system, process, tmp_path / "out", guidance=2.0)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other, sound, atol=1e-4, rtol=1e-3)
    assert sound.shape[1] == 2 and sound.std() > 1e-3
    # without latents it makes a whole window, and cuts it
    pipe = open_there(tmp_path / "out")
    assert pipe("rain", 0.25, num_inference_steps=2).audios.shape == (1, 2, 2000)
    assert pipe.latent_shape(0.4) == system.autoencoder.latent_shape(0.4)
    again = load_released(find(tmp_path / "out", SYSTEM)).system  # and it is still ours
    assert all(map(torch.equal, again.state_dict().values(), system.state_dict().values()))


def test_griffin_lim_there_is_ours() -> None:
    config = MelConfig(n_fft=512, num_mels=32)
    mel = log_mel(0.1 * torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(2)), config)[:, 0]
    ours, theirs = griffin_lim(mel, config), latent_pipeline.griffin_lim(mel, dataclasses.asdict(config))
    assert (ours - theirs).norm() < 1e-3 * ours.norm()


def test_the_code_beside_the_weights_needs_no_audiogen(tmp_path: Path) -> None:
    assert main(["lafma_tiny", "--to", "diffusers", "-o", str(tmp_path / "out")]) == 0
    program = """
import sys
sys.modules["audiogen"] = None  # an import of it fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.manual_seed(0)
sound = pipe("rain falls", audio_length_in_s=2.0).audios
assert sound.shape == (1, 32000) and abs(sound).max() > 0.01, sound
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_what_diffusers_cannot_open_is_refused_by_name(tiny_latent: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("stable_audio_3", "audioldm2"):
        system = LatentSystem(tiny(name), train_vocabulary(CAPTIONS, 40)).eval()
        save_diffusers(tmp_path / name, system, name, {})
        with pytest.raises(InputError, match=f"diffusers has no pipeline for .*{name}: there are those of"):
            main([str(tmp_path / name), "--to", "diffusers", "-o", str(tmp_path / "out")])
    for model, said in (
        ("lm_tiny", "give --to transformers"),
        ("codec_tiny", "a codec, for which diffusers"),
    ):
        with pytest.raises(InputError, match=said):
            main([model, "--to", "diffusers", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert json.loads((weights_folder() / "lafma_tiny/model_index.json").read_text())
