"""Released files that are not as they should be, and names of tensors that could meet."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiogen.diffusion.autoencoders import WaveformAutoencoder, WaveformAutoencoderConfig
from audiogen.diffusion.denoisers import AudioUNet
from audiogen.diffusion.systems import released
from audiogen.errors import InputError
from audiogen.files.pickles import read_pickle
from audiogen.models import latent_diffusion
from audiogen.models.audioldm import standard_config
from audiogen.models.released import load_released, read_released
from audiogen.models.settings import read_settings
from audiogen.models.systems import without_weights


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


@pytest.mark.parametrize("context", [[32, 24, None], [None, 32, 24], [32, None, None, 24]])
def test_audioldm2_opens_with_attention_layers_without_text_at_any_place(
    shared: Path, tmp_path: Path, context: list[int | None]
) -> None:
    """`context_dim: [768, 1024, null]` is how its authors write the large model."""
    folder = copied(shared, "audioldm2", tmp_path)
    contents = read_settings(folder / "config.yaml").contents
    contents["model"]["params"]["unet_config"]["params"]["context_dim"] = context
    (folder / "config.yaml").write_text(json.dumps(contents))
    parts = read_released(folder)
    unet = parts.components[0]
    tensors = {
        f"model.diffusion_model.{unet.source(name)}": 0.05 * torch.randn(tensor.shape)
        for name, tensor in without_weights(parts).denoiser.network.state_dict().items()
    }
    state = read_pickle(folder / "audioldm2-tiny.pth")["state_dict"]
    others = {name: tensor for name, tensor in state.items() if not name.startswith("model.diffusion_model.")}
    whole = {name: tensor.clone() for name, tensor in (others | tensors).items()}  # no views of the file
    torch.save({"state_dict": whole}, folder / "audioldm2-tiny.pth")
    system = load_released(folder).system
    assert system.config.audio_unet.layers == (None, *context)
    assert system.config.audio_unet.cross_dims == (32, 24)
    del whole[next(name for name in tensors if ".3.transformer_blocks.0.attn2.to_k" in name)]
    torch.save({"state_dict": whole}, folder / "audioldm2-tiny.pth")
    with pytest.raises(InputError, match=r"missing \w+\.\d+\.3\.transformer_blocks.0.attn2.to_k.weight"):
        load_released(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "value", "said"),
    [
        ("stable_audio", "model.model.transformer.layers.0.self_attn.to_qkv.weight", 1.0, "to_qkv.weight is"),
        ("stable_audio", "model.model.to_cond_embed.2.weight", 1.0, "without a matrix"),
        ("stable_audio", "model.model.to_cond_embed.2.weight", [], "without a matrix"),
        ("stable_audio", "pretransform.model.encoder.layers.0.weight_g", 1.0, "layers.0.weight_g is"),
        ("audioldm2", "cond_stage_models.0.start_of_sequence_tokens.weight", 1.0, "sequence_tokens.weight is"),
        ("audioldm2", "scale_factor", [1.0, 2.0], r"has \[2\] values for scale_factor"),
        ("audioldm2", "scale_factor", float("nan"), "scale_factor is nan"),
        ("audioldm2", "first_stage_model.encoder.conv_in.weight", [], "encoder.conv_in.weight is"),
        ("audioldm2", "model.diffusion_model.input_blocks.0.0.weight", 1.0, "input_blocks.0.0.weight is"),
    ],
)  # fmt: skip
def test_a_tensor_of_another_shape_is_named_in_one_line(
    shared: Path, tmp_path: Path, name: str, tensor: str, value: object, said: str
) -> None:
    folder = copied(shared, name, tmp_path)
    if name == "stable_audio":
        state = load_file(folder / "model.safetensors")
        assert tensor in state
        save_file(state | {tensor: torch.tensor(value)}, folder / "model.safetensors")
    else:
        state = read_pickle(folder / "audioldm2-tiny.pth")["state_dict"]
        assert tensor in state
        torch.save({"state_dict": state | {tensor: torch.tensor(value)}}, folder / "other.pth")
        (folder / "other.pth").replace(folder / "audioldm2-tiny.pth")  # the first is mapped into memory
    with pytest.raises(InputError, match=said) as caught:
        load_released(folder)
    assert "\n" not in str(caught.value)


def test_tango_without_its_main_file_says_which(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, "tango", tmp_path)
    (folder / "pytorch_model_main.bin").unlink()
    with pytest.raises(InputError, match="lacks pytorch_model_main.bin, which this system needs"):
        load_released(folder)


def test_sizes_that_overflow_are_refused_at_once(shared: Path, tmp_path: Path) -> None:
    """Numbers of layers and widths that would run for minutes, or take all memory, in a few places each."""
    folder = copied(shared, "tangoflux", tmp_path)
    small = WaveformAutoencoder(WaveformAutoencoderConfig(width=4, multiples=(1, 2), strides=(4, 2)))
    save_file(small.vae.state_dict(), folder / "vae.safetensors")
    for key, value in (("num_layers", 200_000), ("num_layers", 10**9), ("num_attention_heads", 200_000)):
        contents = (folder / "config.json").read_text()
        edited(folder / "config.json", **{key: value})
        with pytest.raises(InputError, match="cannot fill its layers|must be a whole number|should make"):
            load_released(folder)
        (folder / "config.json").write_text(contents)
