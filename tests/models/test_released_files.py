"""Released files that are not as they should be, and names of tensors that could meet."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from audiogen.diffusion.denoisers import AudioUNet
from audiogen.diffusion.systems import released
from audiogen.errors import InputError
from audiogen.models import latent_diffusion
from audiogen.models.audioldm import standard_config
from audiogen.models.released import load_released


def copied(shared: Path, name: str, tmp_path: Path) -> Path:
    target = tmp_path / name
    shutil.copytree(shared / "fixtures" / f"{name}_tiny", target)
    for path in [target, *target.iterdir()]:
        path.chmod(0o755)
    return target


def edited(path: Path, **changes) -> None:
    contents = json.loads(path.read_text())
    contents.update(changes)
    path.write_text(json.dumps(contents))


def test_a_setting_that_is_missing_or_of_another_type_is_named(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, "tango", tmp_path)
    edited(folder / "diffusion_model_config.json", layers_per_block="one")
    with pytest.raises(
        InputError, match="diffusion_model_config.json: layers_per_block is 'one'; it must be a whole number"
    ):
        load_released(folder)
    edited(folder / "vae_config.json", ddconfig={})
    with pytest.raises(InputError, match="layers_per_block|lacks ddconfig.ch"):
        load_released(folder)


def test_weights_that_do_not_fit_the_settings_are_named(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, "stable_audio", tmp_path)
    contents = json.loads((folder / "model_config.json").read_text())
    contents["model"]["diffusion"]["config"]["depth"] = 3
    (folder / "model_config.json").write_text(json.dumps(contents))
    with pytest.raises(
        InputError, match=r"do not fit their config: missing transformer.layers.2.pre_norm.gamma"
    ):
        load_released(folder)
    contents["model"]["diffusion"]["config"]["depth"] = 1
    (folder / "model_config.json").write_text(json.dumps(contents))
    with pytest.raises(InputError, match="unexpected transformer.layers.1"):
        load_released(folder)


def test_a_checkpoint_that_asks_for_code_is_refused(shared: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = copied(shared, "audioldm", tmp_path)
    torch.save({"state_dict": {"a": Evil()}}, folder / "audioldm-tiny.ckpt")
    with pytest.raises(InputError, match="more than data"):
        load_released(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "audioldm-tiny.ckpt").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(InputError, match="truncated or damaged"):
        load_released(folder)


@pytest.mark.parametrize(
    ("name", "file"),
    [("lafma", "vae.ckpt"), ("lafma", "hifigan_16k_64bins.ckpt"), ("tango", "pytorch_model_vae.bin"),
     ("stable_audio", "model.safetensors"), ("tangoflux", "vae.safetensors")],
)  # fmt: skip
def test_a_file_that_is_lacking_is_named(shared: Path, tmp_path: Path, name: str, file: str) -> None:
    folder = copied(shared, name, tmp_path)
    (folder / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match=file.replace("_16k_64bins", ".*")):
        load_released(folder)


def test_without_settings_the_width_says_which_release_it_is() -> None:
    for name, width in (("audioldm_m", 192), ("audioldm2_large", 256)):
        tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(width, 8, 3, 3)}
        if name.startswith("audioldm2"):
            tensors["cond_stage_models.0.model.wte.weight"] = torch.empty(1)
        config = standard_config(tensors, 0.9, Path("x.ckpt"))
        assert config.audio_unet == released()[name].audio_unet
        assert config.mel_autoencoder.scale_factor == 0.9
    with pytest.raises(InputError, match="UNet 32 wide, which no release has"):
        standard_config(
            {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(32, 1)}, 1.0, Path("x.ckpt")
        )


@pytest.mark.parametrize("name", ["audioldm_s", "audioldm2_large"])
def test_no_two_tensors_of_a_full_size_unet_have_one_public_name(name: str) -> None:
    config = released()[name].audio_unet
    with torch.device("meta"):
        names = list(AudioUNet(config).network.state_dict())
    public = {
        latent_diffusion.unet_name(n, config.num_res_blocks, len(config.layers), config.attention)
        for n in names
    }
    assert len(public) == len(names)
    assert (
        "output_blocks.11.0.in_layers.0.weight" in public
        and "output_blocks.12.0.in_layers.0.weight" not in public
    )
