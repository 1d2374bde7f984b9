"""Directories of diffusers: ours open there and give the same, released ones open here, what is lacking is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from audiogen.diffusion.process import ProcessConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.models.diffusers import save_diffusers
from audiogen.models.pipelines import scheduler_config
from audiogen.models.released import load_released
from audiogen.models.settings import table
from audiogen.text.t5 import TextConfig
from audiogen.text.vocabulary import train_vocabulary
from tests import random_t5
from tests.diffusion.tiny_encoders import write_clap
from tests.diffusion.tiny_systems import CAPTIONS, RECIPES, tiny
from tests.models.test_every_setting import check_every_setting

TEXTS = ["a dog, a dog", None]


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_t5.write(tmp_path_factory.mktemp("t5"), 18)


@pytest.fixture(scope="module")
def audioldm2(tmp_path_factory: pytest.TempPathFactory, t5: Path) -> tuple[LatentSystem, Path]:
    """An AudioLDM 2 of ours with frozen text encoders, and the directory it is saved to."""
    torch.manual_seed(0)
    folder, config = tmp_path_factory.mktemp("audioldm2"), tiny("audioldm2")
    conditioner = dataclasses.replace(
        config.conditioner,
        unconditional="empty",
        text=TextConfig(str(t5), width=18),
        clap=str(write_clap(tmp_path_factory.mktemp("clap"), 12)),
        clap_dim=12,
        loa=dataclasses.replace(config.conditioner.loa, text_dim=18, length=8),
    )
    unet = dataclasses.replace(config.audio_unet, layers=(None, 16, 18))
    system = LatentSystem(SystemConfig(conditioner, config.mel_autoencoder, audio_unet=unet)).eval()
    system.autoencoder.scale_factor.fill_(0.7)
    save_diffusers(folder / "model", system, "audioldm2", {})
    return system, folder / "model"


def prediction(system: LatentSystem, texts=TEXTS) -> torch.Tensor:
    x = torch.randn(2, *system.autoencoder.latent_shape(0.02), generator=torch.Generator().manual_seed(3))
    inputs = system.conditioner.inputs(texts, torch.tensor([3.0, 5.0]))
    conditioning = [system.conditioner(inputs), system.conditioner.null(inputs)]
    out = [system.denoiser(x, torch.tensor([0.3, 0.6]), r).flatten() for r in conditioning]
    return torch.cat([*out, system.autoencoder.decode(x).flatten()])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_system_of_ours_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = LatentSystem(tiny(name), train_vocabulary(CAPTIONS, 40)).eval()
    system.autoencoder.scale_factor.fill_(0.7)
    save_diffusers(tmp_path, system, name, {"num_train_steps": 500})
    found = load_released(tmp_path)
    assert (found.name, found.process) == (name, {"num_train_steps": 500})
    scale = 1.0 if name == "stable_audio_3" else 0.7  # there it is moved into the weights
    assert found.system.config.autoencoder.scale_factor == pytest.approx(scale)
    captions = [CAPTIONS[0], None]
    torch.testing.assert_close(prediction(found.system, captions), prediction(system, captions))


def test_diffusers_opens_the_components_of_ours(audioldm2) -> None:
    """Its AudioLDM2Pipeline, with our weights: the same text conditioning, prediction and sound as ours."""
    system, folder = audioldm2
    pipe = diffusers.AudioLDM2Pipeline.from_pretrained(folder)
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    assert pipe.vae.config.scaling_factor == pytest.approx(0.7)
    ours, theirs = dict(system.denoiser.network.state_dict()), pipe.unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    inputs = system.conditioner.inputs(["a dog"])
    tokens = pipe.tokenizer_2("a dog", return_tensors="pt")
    torch.testing.assert_close(pipe.text_encoder_2(**tokens).last_hidden_state, inputs.text.tokens)
    joined = pipe.projection_model(inputs.clap[:, None], inputs.text.tokens)
    torch.testing.assert_close(
        joined.hidden_states, system.conditioner.loa.prefix(inputs.clap, inputs.text)[0]
    )
    latents = torch.randn(1, 4, 9, 8)
    mel = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    sound = pipe.vocoder(mel[:, 0])[:, : 9 * 40]
    torch.testing.assert_close(sound, system.autoencoder.decode(latents)[:, 0])


def test_diffusers_generates_with_a_stable_audio_of_ours(t5: Path, tmp_path: Path) -> None:
    """StableAudioPipeline, one step from given latents, equals one step with ours: text, seconds and guidance agree."""
    torch.manual_seed(0)
    config = tiny("stable_audio")
    conditioner = dataclasses.replace(
        config.conditioner, text=TextConfig(str(t5), width=18, max_tokens=20), text_length=20
    )
    # Of narrower heads the pipeline rotates half, and stable-audio-tools at least 32: there we are with the latter.
    dit = dataclasses.replace(config.dit, head_dim=64, cross_width=64)
    system = LatentSystem(dataclasses.replace(config, conditioner=conditioner, dit=dit)).eval()
    save_diffusers(tmp_path, system, "stable_audio", {})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"][1] == "CosineDPMSolverMultistepScheduler"
    narrow = ProcessConfig("cosine_v", "v", lowest_sigma=0.2, highest_sigma=80.0)
    written = scheduler_config(narrow)
    assert (written["sigma_min"], written["sigma_max"]) == (0.2, 80.0)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(  # diffusers has the other only beside torchsde
        sigma_min=0.3, sigma_max=50, sigma_data=1.0, prediction_type="v_prediction", final_sigmas_type="zero"
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    index["scheduler"] = ["diffusers", "EDMDPMSolverMultistepScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipe = diffusers.StableAudioPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    length = pipe.transformer.config.sample_size
    noise = torch.randn(1, 4, length)
    seconds = length * 8 / 8000
    out = pipe(
        "a dog, a dog",
        audio_end_in_s=seconds,
        num_inference_steps=1,
        guidance_scale=4.0,
        latents=noise,
        output_type="latent",
    ).audios
    pipe.scheduler.set_timesteps(1)
    t, x = pipe.scheduler.timesteps[0], noise * pipe.scheduler.init_noise_sigma
    inputs = system.conditioner.inputs(["a dog, a dog"], torch.tensor([seconds]))
    conditioning, null = system.conditioner(inputs), system.conditioner.null(inputs)
    given = pipe.scheduler.scale_model_input(x, t)
    asked, unasked = (system.denoiser(given, t[None], r) for r in (conditioning, null))
    expected = pipe.scheduler.step(unasked + 4 * (asked - unasked), t, x).prev_sample
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_a_released_audioldm_directory_with_the_unet_that_it_has(audioldm2, tmp_path: Path) -> None:
    """AudioLDM's directories hold a UNet2DConditionModel, 8 heads at every level, and CLAP for its texts."""
    torch.manual_seed(0)
    source = audioldm2[1]
    for folder in ("vae", "vocoder", "scheduler", "text_encoder", "tokenizer", "feature_extractor"):
        shutil.copytree(source / folder, tmp_path / folder)
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(32, 64),  # as wide as each level: it attends to itself twice
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
    ).eval()
    theirs.save_pretrained(tmp_path / "unet")
    index = json.loads((source / "model_index.json").read_text())
    index = {key: index[key] for key in ("vae", "vocoder", "scheduler", "text_encoder", "tokenizer")}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioLDMPipeline", **index}))
    found = load_released(tmp_path)
    assert found.name == "audioldm" and found.notes[0].startswith("attention heads (8, 8): those of")
    inputs = found.system.conditioner.inputs(["a dog", "rain"])
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([30, 600])
    expected = theirs(x, t, encoder_hidden_states=None, class_labels=inputs.clap).sample
    torch.testing.assert_close(found.system.denoiser(x, t, found.system.conditioner(inputs)), expected)
    empty = found.system.conditioner.clap.embed_text([""])
    torch.testing.assert_close(found.system.conditioner.null(inputs).vector, empty.expand(2, -1))


@pytest.mark.parametrize("own_settings", [True, False])
def test_the_directory_opens_here_with_and_without_our_settings(
    audioldm2, own_settings: bool, tmp_path: Path
) -> None:
    system, folder = audioldm2
    shutil.copytree(folder, tmp_path / "copy")
    if not own_settings:
        (tmp_path / "copy" / "system.json").unlink()  # as a released pipeline lies on the hub
    found = load_released(tmp_path / "copy")
    assert found.name == "audioldm2"
    assert found.notes == ("attention heads (2, 4): those of copy",)
    torch.testing.assert_close(prediction(found.system), prediction(system))
    if not own_settings:
        assert found.process == {
            "kind": "ddpm",
            "prediction": "epsilon",
            "num_train_steps": 1000,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.0015,
            "beta_end": 0.0195,
        }
    other = load_released(tmp_path / "copy", heads=(8, 8))
    assert other.notes == ("attention heads (8, 8): as given",)
    assert not torch.allclose(prediction(other.system), prediction(system), atol=1e-3)


@pytest.mark.parametrize(
    "component",
    ["vae", "unet", "vocoder", "projection_model", "language_model", "text_encoder_2", "tokenizer"],
)
def test_a_component_that_is_lacking_is_named_in_one_line(audioldm2, component: str, tmp_path: Path) -> None:
    shutil.copytree(audioldm2[1], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / component)
    for _ in range(2):  # the second time without our own settings
        with pytest.raises(InputError, match=f"lacks {component}") as caught:
            load_released(tmp_path / "copy")
        assert "\n" not in str(caught.value)
        (tmp_path / "copy" / "system.json").unlink(missing_ok=True)


def test_weights_that_do_not_fit_are_named(audioldm2, tmp_path: Path) -> None:
    shutil.copytree(audioldm2[1], tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "copy" / "unet")
    with pytest.raises(InputError, match=r"unet do not fit their config: missing conv_in.weight"):
        load_released(tmp_path / "copy")
    (tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="unet holds no weights"):
        load_released(tmp_path / "copy")


def test_a_vocoder_of_standardised_spectrograms_is_refused(audioldm2, tmp_path: Path) -> None:
    shutil.copytree(audioldm2[1], tmp_path / "copy")
    (tmp_path / "copy" / "system.json").unlink()
    path = tmp_path / "copy" / "vocoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalize_before": True}))
    with pytest.raises(
        InputError, match="vocoder/config.json: normalize_before is True, which is not implemented"
    ):
        load_released(tmp_path / "copy")


def test_what_is_no_released_system_is_refused_with_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"model_index.json.*model_config.json.*pytorch_model_\[mv\]a\*.bin.*\*.ckpt"
    ):
        load_released(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="ema is for checkpoints of AudioLDM"):
        load_released(tmp_path, ema=True)
    with pytest.raises(InputError, match="_class_name is 'FluxPipeline'; read are AudioLDMPipeline"):
        load_released(tmp_path)


def test_a_setting_of_a_released_pipeline_is_never_ignored(audioldm2, tmp_path: Path) -> None:
    shutil.copytree(audioldm2[1], tmp_path / "copy")
    (tmp_path / "copy" / "system.json").unlink()
    folders = ("vae", "vocoder", "unet", "projection_model", "language_model")
    files = {f"{folder}/config.json": table("diffusers.harmless") for folder in folders}
    files["scheduler/scheduler_config.json"] = table("diffusers.harmless_scheduler")
    check_every_setting(tmp_path / "copy", files)
