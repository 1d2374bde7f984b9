"""Latent diffusion from recipes: autoencoders and denoisers learn, resume exactly, and a bad autoencoder is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Callable
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from audiogen import audio
from audiogen.config import build, load_recipe, recipe_names, to_plain
from audiogen.data.encoded import LatentDataset
from audiogen.diffusion.autoencoders import make_autoencoder
from audiogen.diffusion.denoisers import denoiser
from audiogen.diffusion.process import PROCESSES, ProcessConfig
from audiogen.diffusion.sample import SAMPLINGS, Noise, Sampling, sample
from audiogen.errors import InputError, run_command
from audiogen.files import checkpoint, writing
from audiogen.generators import load as generators
from audiogen.generators.latent import LatentGenerator
from audiogen.models.find import weights_folder
from audiogen.models.latent_codecs import KINDS, load_autoencoder, reconstruct, save_autoencoder
from audiogen.models.released import load_released
from audiogen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from audiogen.train import cache
from audiogen.train.__main__ import main
from audiogen.train.diffusion import DiffusionTask, freeze_text, new_system
from audiogen.train.run import open_recipe
from tests.diffusion.tiny_encoders import write_clap
from tests.diffusion.tiny_systems import RECIPES
from tests.train.conftest import scalars
from tests.train.processes import in_processes

MEL = """
mel_autoencoder:
  channels: [8, 16]
  num_res_blocks: 1
  latent_dim: 4
  norm_groups: 4
  mid_attention: false
  mel: {sample_rate: 2000, n_fft: 64, hop_length: 20, num_mels: 16, f_max: 1000.0}
  vocoder: null
"""
WAVE = """
waveform_autoencoder: {sample_rate: 2000, channels: 1, latent_dim: 4, width: 4, multiples: [1, 2], strides: [4, 4]}
"""
SAME = """
same_autoencoder:
  {sample_rate: 2000, channels: 1, patch: 8, latent_dim: 4, width: 8, multiples: [2], strides: [2], depths: [1],
   head_dim: 8}
"""
VOCODER = "{channels: 8, rates: [5, 4], kernels: [8, 8], resblock_kernels: [3], resblock_dilations: [[1, 3]]}"
AUTOENCODER = """
task: autoencoder
loss: {mel_windows: [64, 128]}
adversarial: {start: 2, every: 2}
discriminator: {n_ffts: [64], num_filters: 2, dilations: [1]}
optim: {lr: 5e-3, warmup_steps: 2}
discriminator_optim: {lr: 1e-3, warmup_steps: 2}
"""
DIFFUSION = """
task: diffusion
condition_dropout: 0.3
max_reconstruction: 9.0
sampling: {steps: 3}
optim: {lr: 5e-3, warmup_steps: 2}
"""
FIT = "fit: {steps: 6, batch_size: 4, ema_decay: 0.9, log_every: 1, valid_every: 4, save_every: 2, device: cpu}\n"

Train = Callable[..., Path]


def write_recipe(path: Path, text: str, manifest: Path) -> Path:
    path.write_text(f"{text}{FIT}data: {{train: {manifest}, valid: {manifest}, segment_s: 0.5}}\n")
    return path


def train(recipe: Path, out: Path, *settings: str) -> Path:
    assert main([f"recipe={recipe}", f"out={out}", *settings]) == 0
    return out


@pytest.fixture(scope="module")
def autoencoders(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory of each kind; the mel autoencoder has learned a little."""
    folder = tmp_path_factory.mktemp("autoencoders")
    found = {}
    for name, text, steps, lr in (("mel", MEL, 80, 5e-3), ("wave", WAVE, 3, 5e-3), ("same", SAME, 100, 1e-3)):
        recipe = write_recipe(folder / f"{name}.yaml", AUTOENCODER + text, manifest)
        found[name] = train(
            recipe, folder / name, f"fit.steps={steps}", "fit.save_every=0", "fit.valid_every=0", "loss.adversarial=0",
            "loss.feature_matching=0", f"optim.lr={lr}",
        )  # fmt: skip
    return found


def write_system(path: Path, name: str, autoencoder: Path, manifest: Path) -> Path:
    """The recipe of a tiny system of that kind, on latents of the autoencoder; its process is the released one."""
    node: Any = OmegaConf.create(RECIPES[name])
    own = next(kind for kind in KINDS if kind in node)
    texts = {"mel_autoencoder": MEL, "waveform_autoencoder": WAVE, "same_autoencoder": SAME}
    node[own] = OmegaConf.create(texts[own])[own]
    for unet in {"audio_unet", "text_unet"} & set(node):
        node[unet].update({"channels": [16, 32], "heads": [2, 2], "norm_groups": 4})
    system = OmegaConf.to_yaml(OmegaConf.create({"system": node}))
    process = OmegaConf.to_yaml(OmegaConf.create({"process": vars(PROCESSES[name])}))
    text = f"{DIFFUSION}kind: {name}\nautoencoder: {autoencoder}\n{system}{process}"
    return write_recipe(
        path, text.replace("steps: 3}", f"steps: 3, sampler: {SAMPLINGS[name].sampler}}}"), manifest
    )


@pytest.fixture
def lafma(autoencoders: dict[str, Path], manifest: Path, tmp_path: Path) -> Train:
    """lafma("name", "key=value", ...) trains a tiny LAFMA in tmp_path/name."""
    recipe = write_system(tmp_path / "lafma.yaml", "lafma", autoencoders["mel"], manifest)
    return lambda name, *settings: train(recipe, tmp_path / name, *settings)


def trained(run: Path, name: str) -> list[float]:
    """A training scalar, step by step."""
    return [record[name] for record in scalars(run) if name in record]


def same_state(a: Path, b: Path) -> bool:
    found = checkpoint.latest(a), checkpoint.latest(b)
    assert found[0] and found[1] and found[0][0] == found[1][0]
    files = ("state.json", "state.safetensors")
    return all((found[0][1] / name).read_bytes() == (found[1][1] / name).read_bytes() for name in files)


def killed_and_resumed(run: Train, tmp_path: Path) -> Path:
    """Trained, killed while the checkpoint of step 4 is being written, and trained on."""

    def die() -> None:
        rename = os.replace

        def killer(source: Any, target: Any) -> None:
            if Path(target).name == "step_00000004":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = killer  # type: ignore[assignment]
        run("killed")

    process = get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = checkpoint.latest(tmp_path / "killed")
    assert found and found[0] == 2
    return run("killed", "resume=must")


@pytest.mark.parametrize("kind", ["mel", "wave", "same"])
def test_an_autoencoder_killed_in_a_save_resumes_bit_for_bit(
    kind: str, manifest: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "a.yaml", AUTOENCODER + {"mel": MEL, "wave": WAVE, "same": SAME}[kind], manifest
    )

    def run(name: str, *settings: str) -> Path:
        return train(recipe, tmp_path / name, *settings)

    whole = run("whole")
    killed = killed_and_resumed(run, tmp_path)
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole)
    assert any("train/discriminator" in record for record in scalars(whole))


@pytest.mark.parametrize(("kind", "share"), [("mel", 0.6), ("same", 0.8)])
def test_an_autoencoder_learns_and_its_latents_have_unit_variance(
    kind: str, share: float, autoencoders: dict[str, Path], manifest: Path
) -> None:
    losses = trained(autoencoders[kind], "train/spectrum")
    assert sum(losses[-5:]) < share * sum(losses[:5])
    autoencoder = load_autoencoder(str(autoencoders[kind]))
    sounds = torch.stack([audio.load(manifest.parent / f"{n}.wav")[0][:, :1000] for n in range(8)])
    latents = autoencoder.encode(sounds)
    assert 0.8 < latents.std() < 1.2
    assert reconstruct(autoencoder, sounds[..., :999]).shape == (8, 1, 999)


def test_a_vocoder_is_trained_for_an_autoencoder_that_stays_as_it_is(
    autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    text = AUTOENCODER + MEL.replace("vocoder: null", f"vocoder: {VOCODER}")
    recipe = write_recipe(tmp_path / "v.yaml", text, manifest)
    run = train(
        recipe, tmp_path / "v", f"init_from={autoencoders['mel']}", "trains=vocoder", "fit.sample_every=6"
    )
    before, after = load_autoencoder(str(autoencoders["mel"])), load_autoencoder(str(run))
    assert after.config.vocoder is not None and float(after.scale_factor) == pytest.approx(
        float(before.scale_factor)
    )
    for name, weight in before.vae.state_dict().items():
        assert torch.equal(after.vae.state_dict()[name], weight), name
    losses = trained(run, "train/spectrum")
    assert losses[-1] < losses[0]
    assert list((run / "samples" / "step_00000006").glob("*_reconstructed.png"))
    with pytest.raises(InputError, match=r"mel_autoencoder=5: init_from=.* decides the architecture"):
        train(recipe, run, f"init_from={autoencoders['mel']}", "trains=vocoder", "mel_autoencoder=5")


def test_a_decoder_is_trained_on_and_latents_keep_their_meaning(
    autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "d.yaml", AUTOENCODER + MEL, manifest)
    start = f"init_from={autoencoders['mel']}"
    run = train(recipe, tmp_path / "d", start, "trains=decoder", "fit.steps=3", "fit.valid_every=0")
    before, after = load_autoencoder(str(autoencoders["mel"])), load_autoencoder(str(run))
    sound = torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after.encode(sound), before.encode(sound))
    assert not torch.equal(after.decode(before.encode(sound)), before.decode(before.encode(sound)))
    recipe_of_system = write_system(tmp_path / "s.yaml", "lafma", autoencoders["mel"], manifest)
    system = train(recipe_of_system, tmp_path / "s", "fit.steps=1")
    train(recipe_of_system, system, "fit.steps=2", f"autoencoder={run}")  # the latents stored serve on
    vae = load_released(system).system.autoencoder.vae.state_dict()
    assert all(torch.equal(weight, vae[name]) for name, weight in after.vae.state_dict().items())
    checked = writing.read_json(system / "latents" / "check" / "reconstruction.json")
    assert checked["autoencoder"] == checkpoint.identity(after.state_dict())
    with pytest.raises(InputError, match="that of init_from, which is not given"):
        train(recipe, tmp_path / "none", "trains=decoder")


def test_a_denoiser_killed_in_a_save_resumes_bit_for_bit(lafma: Train, tmp_path: Path) -> None:
    whole = lafma("whole")
    killed = killed_and_resumed(lafma, tmp_path)
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole)


def test_stable_audio_3_learns_on_latents_of_same_and_resumes(
    autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    recipe = write_system(tmp_path / "r.yaml", "stable_audio_3", autoencoders["same"], manifest)

    def run(name: str, *settings: str) -> Path:
        return train(recipe, tmp_path / name, "optim.lr=5e-3", *settings)

    whole = run("whole")
    killed = killed_and_resumed(run, tmp_path)
    assert scalars(killed) == scalars(whole) and same_state(killed, whole)
    longer = trained(run("longer", "fit.steps=40", "fit.valid_every=0"), "train/loss")
    assert sum(longer[-10:]) < 0.9 * sum(longer[:10])
    model = generators.load(whole, "cpu")
    assert model.sampling().sampler == "ping_pong" and model.generate(["rain"], 0.3).isfinite().all()


def test_a_run_is_a_model_with_averaged_weights(lafma: Train, autoencoders: dict[str, Path]) -> None:
    run = lafma("run", "fit.steps=4", "fit.sample_every=4")
    read = load_released(run)
    assert read.name == "lafma" and ProcessConfig(**read.process) == PROCESSES["lafma"]
    found = checkpoint.latest(run)
    assert found
    averages = checkpoint.load_state(found[1])["task"]["average"]["averages"]
    for name, weight in read.system.denoiser.named_parameters():
        assert torch.equal(weight, averages[f"denoiser.{name}"]), name
    vae = load_autoencoder(str(autoencoders["mel"])).vae.state_dict()
    assert all(
        torch.equal(weight, vae[name]) for name, weight in read.system.autoencoder.vae.state_dict().items()
    )
    names = sorted(path.name for path in (run / "samples" / "step_00000004").iterdir())
    assert any("rain" in name or "tone" in name for name in names)
    assert {Path(name).suffix for name in names} == {".wav", ".png"}
    assert generators.load(run, "cpu").sampling() == Sampling("euler", 3)  # the recipe's, also without asking
    valid = [record for record in scalars(run) if "valid/loss" in record][-1]
    assert valid["valid/loss_zero"] > 1  # of a flow: data and noise at unit variance make 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampling.steps=0", "sampling: 0 sampling steps"),
        ("sampling.sampler=ddim", "sampling: sampler 'ddim' does not fit a flow process"),
        ("sampling.eta=0.5", "sampling: eta is 0.5 and the sampler 'euler'"),
        ("sampling.guidance=.inf", "sampling: guidance is inf"),
    ],
)
def test_a_sampling_that_the_process_cannot_take_is_refused_at_once(
    setting: str, said: str, lafma: Train, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        lafma("run", setting)
    assert not (tmp_path / "run").exists()


def test_training_touches_no_audio_once_the_latents_are_stored(
    autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for path in manifest.parent.iterdir():
        (sounds / path.name).write_bytes(path.read_bytes())
    recipe = write_system(tmp_path / "r.yaml", "lafma", autoencoders["mel"], sounds / "manifest.jsonl")
    run = train(recipe, tmp_path / "run", "fit.steps=2", "latent_passes=2")
    for path in sounds.glob("*.wav"):
        path.write_bytes(b"")
    train(recipe, run, "fit.steps=4", "latent_passes=2")
    assert checkpoint.latest(run)[0] == 4  # type: ignore[index]
    data = LatentDataset([run / "latents" / "pass_000", run / "latents" / "pass_001"])
    assert len(data) == 16 and data.item(0, 0, 0).data.shape == (4, 25, 8)
    assert {data.item(0, epoch, 0).caption for epoch in range(9)} == set(data.captions(0))
    with pytest.raises(InputError, match=r"latents made with other settings \(seed\); delete it"):
        train(recipe, run, "fit.steps=6", "latent_passes=2", "seed=1")


def test_processes_share_the_encoding_of_latents(
    lafma: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ITEMS_PER_SHARD", 2)
    settings = ("fit.steps=2", "fit.batch_size=2")
    whole = lafma("whole", *settings) / "latents"
    write, written = cache.write_shard, []

    def work(rank: int) -> list[str]:
        def noted(path: Path, *rest: Any) -> None:
            written.append(f"{path.parent.name}/{path.name}")
            write(path, *rest)

        monkeypatch.setattr(cache, "write_shard", noted)
        lafma("shared", *settings)
        return written

    first, second = in_processes(work)
    folders = ("pass_000", "valid")
    assert first == [f"{folder}/shard-0000{number}.safetensors" for folder in folders for number in (0, 2)]
    assert second == [f"{folder}/shard-0000{number}.safetensors" for folder in folders for number in (1, 3)]
    for name in first + second:
        one, other = (load_file(folder / name) for folder in (whole, tmp_path / "shared" / "latents"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_short_sounds_are_learned_as_such(
    lafma: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 0.5 s that are stored, 25 frames of latents, those of a sound of 0.2 s are 10, or 16 of whole batches."""
    sounds = [
        {"audio": str(audio.save(tmp_path / f"{n}.wav", torch.rand(1, 400 if n % 2 else 1000) - 0.5, 2000))}
        for n in range(16)
    ]
    lines = [json.dumps({**sound, "captions": [f"sound {n}"]}) + "\n" for n, sound in enumerate(sounds)]
    (tmp_path / "both.jsonl").write_text("".join(lines))
    seen: set[tuple[int, ...]] = set()
    errors = DiffusionTask.errors

    def spied(task: DiffusionTask, clean: torch.Tensor, *given: Any) -> torch.Tensor:
        seen.add(tuple(clean.shape))
        return errors(task, clean, *given)

    monkeypatch.setattr(DiffusionTask, "errors", spied)
    data = f"data={{train: {tmp_path / 'both.jsonl'}, segment_s: 0.5, holdout: 0}}"
    lafma("whole", data, "fit.steps=8")
    assert seen == {(4, 4, 25, 8)}
    seen.clear()
    lafma("grouped", data, "fit.steps=8", "group_by_length=true")
    assert seen == {(4, 4, 16, 8), (4, 4, 25, 8)}
    made = generators.load(tmp_path / "grouped", "cpu").generate(["sound 1"], 0.2)
    assert made.shape == (1, 1, 400) and made.isfinite().all()


def test_workers_end_when_a_shard_cannot_be_written(lafma: Train, tmp_path: Path) -> None:
    (tmp_path / "run" / "latents").mkdir(parents=True)
    (tmp_path / "run" / "latents" / "pass_000").write_text("a file where the folder of shards belongs")
    with pytest.raises(writing.StorageError, match="pass_000.*cannot be written: File exists") as caught:
        lafma("run", "fit.workers=1")
    assert caught.tb and not active_children()  # although the traceback keeps what was running


def test_a_check_that_was_cut_short_is_made_again(
    lafma: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise writing.StorageError("no space")

    check = tmp_path / "run" / "latents" / "check"
    with monkeypatch.context() as patch:
        patch.setattr("audiogen.models.latent_codecs.save_spectrogram", full)
        with pytest.raises(writing.StorageError):
            lafma("run", "fit.steps=1")
    assert not (check / "reconstruction.json").exists()
    lafma("run", "fit.steps=1")
    assert {path.name for path in check.iterdir()} >= {"reconstruction.json", "0.png", "0_original.wav"}


def test_a_bad_autoencoder_stops_the_run_with_the_figure(
    lafma: Train, autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"8 real clips with a log-mel distance of \d\.\d+, above max_rec.*=0.01"
    ):
        lafma("run", "max_reconstruction=0.01")
    check = tmp_path / "run" / "latents" / "check"
    assert writing.read_json(check / "reconstruction.json")["mel"] > 0.01
    assert len(list(check.glob("*_reconstructed.wav"))) == 4
    assert not (tmp_path / "run" / "latents" / "settings.json").exists()
    with pytest.raises(
        InputError, match="is not the one that system.mel_autoencoder describes: it is a waveform_autoencoder"
    ):
        lafma("run", f"autoencoder={autoencoders['wave']}")
    with pytest.raises(InputError, match="autoencoder=nowhere: .* train one first"):
        lafma("run", "autoencoder=nowhere")


def test_an_autoencoder_of_another_rate_costs_the_user_one_line(
    lafma: Train, autoencoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"recipe={tmp_path / 'lafma.yaml'}", f"out={tmp_path / 'run'}")
    rate = "system.mel_autoencoder.mel.sample_rate=4000"
    capsys.readouterr()
    assert run_command(main, [*settings, rate]) == 2
    assert capsys.readouterr().err == (
        f"error: autoencoder={autoencoders['mel']} is not the one that system.mel_autoencoder describes: "
        "mel.sample_rate is 2000 there and 4000 here; change the recipe, or give another\n"
    )
    assert not (tmp_path / "run").exists()


# What makes the tiny recipes smaller still; the kinds of their networks, conditions and processes stay.
SMALL_TEXT = (
    "{encoder: embedded, width: %d, dim: 16, num_layers: 1, num_heads: 2, dropout: 0.0, vocab_size: 40}"
)
SMALL_UNET = ("latent_dim=4", "channels=[32]", "heads=[2]", "attention=[false]", "norm_groups=4")
SMALL = {
    "audio_unet": SMALL_UNET,
    "text_unet": SMALL_UNET,
    "dit": ("num_layers=2",),
    "flux": ("num_layers=1", "num_single_layers=1"),
    "dit3": ("num_layers=1", "num_heads=2", "memory_tokens=2"),
}
# Noise is slower to learn than v or a flow; the transformers want smaller steps than the UNets.
OVERFIT = {
    "audioldm_tiny": ("fit.steps=200",),
    "audioldm2_tiny": (
        "fit.steps=200",
        "loa=null",  # GPT-2 learns from the denoiser's loss
        "system.conditioner.loa.num_layers=1",
        "system.conditioner.loa.length=2",
    ),
    "lafma_tiny": (
        "fit.steps=120",
        "optim.lr=3e-3",
        "system.dit.latent_dim=16",  # 4 channels of 4 bins
        "system.conditioner.text_length=24",
        "system.conditioner.text.max_tokens=24",
    ),
    "stable_audio_tiny": (
        "fit.steps=200",
        "optim.lr=3e-3",
        "system.dit.latent_dim=4",
        "system.conditioner.text_length=24",
        "system.conditioner.text.max_tokens=24",
    ),
    "stable_audio_3_tiny": (
        "fit.steps=200",
        "optim.lr=3e-3",
        "system.dit3.latent_dim=16",
        "system.conditioner.text_length=24",
        "system.conditioner.text.max_tokens=24",
    ),
    "tango_tiny": ("fit.steps=160",),
    "tangoflux_tiny": ("fit.steps=80", "optim.lr=3e-3", "system.flux.latent_dim=4"),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three clips of 0.08 s that differ, with a caption each; and random autoencoders with latents of unit variance."""
    folder = tmp_path_factory.mktemp("three")
    time_s = torch.arange(160) / 2000
    sounds = {
        "bell": 0.3 * torch.sin(2 * torch.pi * 150 * time_s),
        "rain": 0.1 * torch.randn(160, generator=torch.Generator().manual_seed(0)),
        "horn": 0.3 * torch.sin(2 * torch.pi * 700 * time_s) * (time_s * 25 % 1 < 0.3),
    }
    lines = []
    for number, (caption, sound) in enumerate(sounds.items()):
        audio.save(folder / f"{number}.wav", sound[None], 2000)
        lines.append(json.dumps({"audio": f"{number}.wav", "captions": [caption]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    found = {"manifest": folder / "manifest.jsonl"}
    for text in (MEL.replace("num_mels: 16", "num_mels: 8"), WAVE):
        ((kind, config),) = OmegaConf.to_container(OmegaConf.create(text)).items()  # type: ignore[union-attr]
        torch.manual_seed(0)
        autoencoder = make_autoencoder(build(KINDS[kind], config))  # type: ignore[arg-type]
        for name, weight in autoencoder.vae.named_parameters():
            if kind == "waveform_autoencoder" and name.endswith("bias"):
                weight.data.zero_()  # or they would outweigh the sound
        with torch.no_grad():
            autoencoder.fit_scale(autoencoder.encode(torch.stack(list(sounds.values()))[:, None]))
        save_autoencoder(folder / kind, autoencoder, {})
        found[kind] = folder / kind
    return found


TINY_SYSTEMS = [
    name for name in recipe_names() if name.endswith("_tiny") and load_recipe(name).task == "diffusion"
]


EPSILON = ("process.prediction=epsilon", "process.snr_gamma=5.0", "sampling.eta=1.0")


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, ()) for name in TINY_SYSTEMS), ("audioldm_tiny", EPSILON)]
)
def test_every_tiny_recipe_overfits_a_batch_and_samples_each_clip_back(
    name: str, changes: tuple[str, ...], three: dict[str, Path], tmp_path: Path
) -> None:
    """Each caption gives its clip's latents, from noise alone, by the recipe's process and sampler, unguided.

    Text, conditioning, process, weights, network, saving and sampler agree, or the draws would differ. Guidance is 1,
    because more than that draws what is beyond the clip. AudioLDM is trained on noise as well, as it was published.
    That needs the fresh noise of ddim's eta 1: it begins at 60 times the data, and an error of the size of x_t, which
    group norm may hide from the network, is then multiplied by that. Without min-SNR weights, AudioLDM 2's network of
    250 steps ended 0.06 to 0.15 from the clip with eta 1, and 0.2 to 4.9 with eta 0.
    """
    recipe = load_recipe(name)
    kind = next(kind for kind in KINDS if recipe.system[kind] is not None)
    network = next(key for key in SMALL if recipe.system[key] is not None)
    own = json.dumps(to_plain(load_autoencoder(str(three[kind])).config))
    settings = (
        f"autoencoder={three[kind]}", f"system.{kind}={own}", "text_from=null", "max_reconstruction=1e9",
        f"system.conditioner.text={SMALL_TEXT % recipe.system.conditioner.text.width}",
        *(f"system.{network}.{setting}" for setting in SMALL[network]),
        f"data={{train: {three['manifest']}, segment_s: 0.08, holdout: 0}}", "condition_dropout=0",
        "optim.lr=4e-3", "optim.warmup_steps=10",
        "fit={batch_size: 18, ema_decay: 0, log_every: 1, valid_every: 0, save_every: 0, device: cpu}",
        *OVERFIT[name], *changes,
    )  # fmt: skip
    assert main([f"recipe={name}", f"out={tmp_path / 'run'}", *settings]) == 0
    losses = trained(tmp_path / "run", "train/loss")
    assert sum(losses[-20:]) / 20 < 0.3 * losses[0]  # which is about that of predicting nothing
    generator, data = (
        generators.load(tmp_path / "run", "cpu"),
        LatentDataset([tmp_path / "run/latents/pass_000"]),
    )
    assert isinstance(generator, LatentGenerator) and len(data) == 3
    clips = torch.stack([data.item(row, 0, 0).data for row in range(3)])
    captions = [data.captions(row)[0] for row in range(3)] * 2  # each drawn twice
    if not changes:
        assert to_plain(generator.sampling()) == recipe.sampling  # the recipe's
    sampling = dataclasses.replace(generator.sampling(), guidance=1.0)
    inputs = generator.system.conditioner.inputs(captions, torch.full((6,), 0.08))
    with torch.no_grad():
        drawn = sample(
            generator.system.denoiser,
            generator.process,
            sampling,
            generator.system.conditioner(inputs),
            Noise(clips[0].shape, range(6)),
        )
    distance = (
        torch.cdist(drawn.flatten(1), clips.flatten(1)) / clips[0].numel() ** 0.5
    )  # [6, 3], root mean square
    assert distance.argmin(dim=1).tolist() == [0, 1, 2] * 2
    assert distance[range(6), [0, 1, 2] * 2].max() < 0.4  # clips are 0.68 apart or more


def test_clap_of_the_audio_is_stored_with_the_latents_and_conditions(
    autoencoders: dict[str, Path], manifest: Path, tmp_path: Path
) -> None:
    clap = write_clap(tmp_path / "clap", 20)
    recipe = write_system(tmp_path / "r.yaml", "audioldm", autoencoders["mel"], manifest)
    settings = (
        "system.conditioner.vector=[clap]",
        "system.conditioner.clap_dim=20",
        f"system.conditioner.clap={clap}",
    )
    run = train(recipe, tmp_path / "run", *settings, "clap_of=audio", "fit.steps=2")
    stored = LatentDataset([run / "latents" / "pass_000"]).item(3, 0, 0).features["clap"]
    assert stored.shape == (20,) and stored.norm() == pytest.approx(1.0, abs=1e-4)
    other = train(recipe, tmp_path / "text", *settings, "fit.steps=2")
    assert scalars(run)[0]["train/loss"] != scalars(other)[0]["train/loss"]
    with pytest.raises(InputError, match="clap_of is 'audio', but system.conditioner.clap names no model"):
        train(recipe, tmp_path / "none", "clap_of=audio")


def test_a_system_is_trained_on(lafma: Train, manifest: Path, tmp_path: Path) -> None:
    base = lafma("base", "fit.steps=2", "fit.ema_decay=0")
    once = ("fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0", "fit.valid_every=0")
    run = lafma("run", f"init_from={base}", "autoencoder=null", *once)
    before, after = load_released(base).system.state_dict(), load_released(run).system.state_dict()
    others = manifest.with_name("others.jsonl")
    others.write_text(re.sub(r'"captions": \[[^]]*\]', '"captions": ["a zither"]', manifest.read_text()))
    other = lafma("more", f"init_from={base}", "autoencoder=null", *once, f"data.train={others}")
    words, more = (Vocabulary((each / "text" / VOCABULARY_FILE).read_bytes()).words for each in (base, other))
    assert more == words | {"zither"}
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)


def test_the_text_encoder_of_a_language_model_is_taken_and_stays() -> None:
    recipe = open_recipe("tango_tiny")
    system = new_system(recipe, None)  # type: ignore[arg-type]
    freeze_text(recipe, system)
    text = system.conditioner.text.embedded
    given = checkpoint.load_tensors(weights_folder() / "lm_tiny" / "text")
    assert torch.equal(text.output_proj.weight, given["output_proj.weight"].float())
    assert not any(parameter.requires_grad for parameter in text.parameters())
    assert all(parameter.requires_grad for parameter in system.denoiser.parameters())


LATENT_RECIPES = [name for name in recipe_names() if load_recipe(name).task in ("diffusion", "autoencoder")]


@pytest.mark.parametrize("name", LATENT_RECIPES)
def test_every_recipe_builds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"recipe={name}", "--print-config"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    written = load_recipe(name)
    assert set(printed) == set(written), "a recipe is complete"
    recipe = open_recipe(name)
    with torch.device("meta"):
        model: Any = (
            make_autoencoder(recipe.autoencoder)
            if written.task == "autoencoder"
            else denoiser(recipe.system.denoiser)
        )
    if name.endswith("_tiny"):
        assert sum(parameter.numel() for parameter in model.parameters()) < 10e6
