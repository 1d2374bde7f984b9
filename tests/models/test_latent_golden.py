"""Released formats against what the authors' own code computed, at tiny sizes with random weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiogen.diffusion.autoencoders import WaveformAutoencoder, WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerInputs
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.process import PROCESSES, Process
from audiogen.diffusion.sample import Noise, Sampling, sample
from audiogen.interfaces import Condition
from audiogen.models.released import load_released
from audiogen.models.systems import Released

TOLERANCE = 1e-4


def close(found: Tensor, expected: Tensor) -> None:
    """Within the fixtures' tolerance, which is for the length of the difference: samples reach into the hundreds."""
    assert found.shape == expected.shape
    assert (found - expected).norm() < TOLERANCE * expected.norm()


def tokens(states: Tensor, mask: Tensor | None = None) -> Condition:
    mask = torch.ones(states.shape[:2]) if mask is None else mask
    return Condition(states, mask > 0)


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def opened(shared: Path, name: str) -> tuple[Released, dict[str, Tensor]]:
    folder = shared / "fixtures" / f"{name}_tiny"
    released = load_released(folder)
    assert released.name == name
    assert (
        dataclasses.replace(PROCESSES[name], **released.process) == PROCESSES[name]
    )  # the file says so, too
    golden = load_file(folder / "expected.safetensors")
    if "alphas_cumprod" in golden:
        alphas, _ = Process(PROCESSES[name]).coefficients(torch.arange(1000))
        close(alphas**2, golden["alphas_cumprod"])
    return released, golden


def draw(
    released: Released, conditioning: Conditioning, null: Conditioning, sampling: Sampling, noise: Tensor
) -> Tensor:
    """Latents by our own loop, from the authors' noise."""
    process = Process(dataclasses.replace(PROCESSES[released.name], **released.process))
    denoiser = released.system.denoiser
    start = Noise(noise.shape[1:], [0], start=noise)
    return sample(denoiser, process, sampling, conditioning, start, negative=null)


@pytest.fixture(scope="module")
def lafma(shared: Path):
    return opened(shared, "lafma")


@pytest.fixture(scope="module")
def stable_audio(shared: Path):
    return opened(shared, "stable_audio")


def check_mel_autoencoder(released: Released, golden: dict[str, Tensor]) -> None:
    autoencoder = released.system.autoencoder
    posterior = autoencoder.posterior(golden["mel"])
    close(posterior.mean, golden["vae_mean"])
    close(posterior.logvar, golden["vae_logvar"])
    close(autoencoder.decode_features(golden["latent"] * autoencoder.scale_factor), golden["decoded_mel"])
    close(autoencoder.vocoder(golden["vocoder_mel"])[:, None], golden["waveform"])


def test_lafma_parts(lafma) -> None:
    released, golden = lafma
    check_mel_autoencoder(released, golden)
    conditioning = released.system.conditioner(ConditionerInputs(text=tokens(golden["text_features"])))
    close(released.system.denoiser(golden["unet_x"], golden["unet_t"] * 999, conditioning), golden["unet_v"])


def test_lafma_generation_from_text_to_waveform(lafma) -> None:
    released, golden = lafma
    system = released.system
    given, none = (
        system.conditioner(ConditionerInputs(text=tokens(golden[key])))
        for key in ("text_features", "uncond_text_features")
    )
    first = Condition(given.streams[0].tokens[:1], given.streams[0].mask[:1])
    x = draw(released, Conditioning((first,)), none, Sampling("euler", 10, 3.0), golden["euler_noise"])
    close(x, golden["euler_latent"])
    mel = system.autoencoder.decode_features(x)
    close(mel, golden["euler_mel"])
    audio = system.autoencoder.decode(x)
    assert audio.shape == (1, 1, 640)  # the vocoder's 4 samples too many are cut
    close(audio, golden["euler_waveform"][..., :640])


def test_stable_audio_parts(stable_audio) -> None:
    released, golden = stable_audio
    system = released.system
    posterior = system.autoencoder.posterior(system.autoencoder.features(golden["audio"]))
    close(posterior.mean, golden["vae_mean"])
    close(posterior.std, golden["vae_std"])
    close(system.autoencoder.encode(golden["audio"]), golden["vae_mean"])
    close(system.autoencoder.decode(golden["latent"]), golden["decoded"])
    inputs = stable_audio_inputs(golden)
    text = system.conditioner._text(inputs.text)
    close(text.tokens, golden["prompt_cond"])
    conditioning = system.conditioner(inputs)
    close(conditioning.streams[0].tokens, golden["cross_attn_cond"])
    close(conditioning.vector, golden["global_cond"])
    asked = system.denoiser(golden["x"], golden["t"], conditioning)
    close(asked, golden["v"])
    unasked = system.denoiser(golden["x"], golden["t"], system.conditioner.null(inputs))
    close(unasked + 6 * (asked - unasked), golden["v_cfg6"])


def stable_audio_inputs(golden: dict[str, Tensor]) -> ConditionerInputs:
    return ConditionerInputs(
        text=tokens(golden["text_features"], golden["text_mask"]),
        seconds_start=golden["seconds_start"],
        seconds_total=golden["seconds_total"],
    )


def test_stable_audio_generation(stable_audio) -> None:
    released, golden = stable_audio
    system = released.system
    inputs = stable_audio_inputs(golden)
    one = ConditionerInputs(
        text=Condition(inputs.text.tokens[:1], inputs.text.mask[:1]),
        seconds_start=inputs.seconds_start[:1],
        seconds_total=inputs.seconds_total[:1],
    )
    conditioning, null = system.conditioner(one), system.conditioner.null(one)
    x = draw(released, conditioning, null, Sampling("ddim", 10, 6.0), golden["noise"])
    close(x, golden["ddim_latent"])
    close(system.autoencoder.decode(x), golden["ddim_audio"])


def first_row(conditioning: Conditioning) -> Conditioning:
    return conditioning.rows([0])


@pytest.fixture(scope="module")
def audioldm(shared: Path):
    return opened(shared, "audioldm")


def test_audioldm_parts_and_its_two_sets_of_weights(audioldm, shared: Path) -> None:
    released, golden = audioldm
    check_mel_autoencoder(released, golden)
    conditioning = released.system.conditioner(ConditionerInputs(clap=golden["unet_y"]))
    found = released.system.denoiser(golden["unet_x"], golden["unet_t"], conditioning)
    close(found, golden["unet_eps_ema"])  # what the authors generate with
    last = load_released(shared / "fixtures" / "audioldm_tiny", ema=False)
    close(last.system.denoiser(golden["unet_x"], golden["unet_t"], conditioning), golden["unet_eps"])
    assert released.notes == (
        "attention heads (2, 4): channels / num_head_channels of config.yaml",
        "UNet weights: their average (model_ema)",
    )
    assert last.notes[1] == "UNet weights: the last (model)"


def test_audioldm_with_the_heads_of_the_converted_models_is_another_model(audioldm, shared: Path) -> None:
    released, golden = audioldm
    other = load_released(shared / "fixtures" / "audioldm_tiny", heads=(8, 8))
    assert other.notes[0] == "attention heads (8, 8): as given"
    conditioning = Conditioning(vector=golden["unet_y"])
    found = other.system.denoiser(golden["unet_x"], golden["unet_t"], conditioning)
    assert (found - golden["unet_eps_ema"]).norm() > 0.1 * golden["unet_eps_ema"].norm()


def test_audioldm_generation(audioldm) -> None:
    released, golden = audioldm
    system = released.system
    conditioning, null = (
        system.conditioner(ConditionerInputs(clap=golden[key])) for key in ("unet_y", "uncond_y")
    )
    x = draw(released, first_row(conditioning), null, Sampling("ddim", 10, 2.5), golden["ddim_noise"])
    close(x, golden["ddim_sample"])
    close(system.autoencoder.decode_features(x), golden["ddim_mel"])
    close(system.autoencoder.decode(x), golden["ddim_waveform"][..., :640])


@pytest.fixture(scope="module")
def audioldm2(shared: Path):
    return opened(shared, "audioldm2")


def test_audioldm2_parts(audioldm2, shared: Path) -> None:
    released, golden = audioldm2
    system = released.system
    check_mel_autoencoder(released, golden)
    text = tokens(golden["text_features"], golden["text_mask"])
    for key, expected in (("loa_mask", "unet_eps"), ("loa_mask_partial", "unet_eps_two_masks")):
        conditioning = Conditioning((tokens(golden["loa"], golden[key]), text))
        close(system.denoiser(golden["unet_x"], golden["unet_t"], conditioning), golden[expected])
    average = load_released(shared / "fixtures" / "audioldm2_tiny", ema=True)
    conditioning = Conditioning((tokens(golden["loa"]), text))
    close(average.system.denoiser(golden["unet_x"], golden["unet_t"], conditioning), golden["unet_eps_ema"])
    states, mask = system.conditioner.loa.prefix(golden["clap_text"][:, 0], text)
    close(states, golden["gpt2_inputs_embeds"])
    assert torch.equal(mask.float(), golden["gpt2_attention_mask"])
    close(system.conditioner.loa.generate(golden["clap_text"][:, 0], text), golden["gpt2_sequence"])


def test_audioldm2_generation(audioldm2) -> None:
    released, golden = audioldm2
    system = released.system
    inputs = ConditionerInputs(
        text=tokens(golden["text_features"][:1], golden["text_mask"][:1]),
        clap=golden["clap_text"][:1, 0],
        loa=golden["gpt2_sequence"][:1],
    )
    nothing = ConditionerInputs(text=tokens(golden["uncond_text_features"]), clap=golden["clap_text"][:1, 0])
    conditioning, null = system.conditioner(inputs), system.conditioner.without_text(inputs, nothing)
    assert null.streams[0].tokens.shape == (1, 8, 32) and not null.streams[0].tokens.any()
    x = draw(released, conditioning, null, Sampling("ddim", 10, 3.5), golden["ddim_noise"])
    close(x, golden["ddim_sample"])
    close(system.autoencoder.decode_features(x), golden["ddim_mel"])
    close(system.autoencoder.decode(x), golden["ddim_waveform"][..., :320])


def test_tango(shared: Path) -> None:
    released, golden = opened(shared, "tango")
    system = released.system
    check_mel_autoencoder(released, golden)
    conditioning, null = (
        system.conditioner(
            ConditionerInputs(text=tokens(golden[f"{key}text_features"], golden[f"{key}text_mask"]))
        )
        for key in ("", "uncond_")
    )
    close(system.denoiser(golden["unet_x"], golden["unet_t"], conditioning), golden["unet_v"])
    assert released.process["prediction"] == "v"
    start, end = (released.process[key] ** 0.5 for key in ("beta_start", "beta_end"))
    alphas = torch.cumprod(1 - torch.linspace(start, end, 1000) ** 2, 0)
    x, given = golden["ddpm_noise"], first_row(conditioning)
    for i, t in enumerate(range(901, -1, -100)):  # ancestral steps of v prediction
        asked, unasked = (system.denoiser(x, torch.tensor([t]), r) for r in (given, null))
        v = unasked + 3 * (asked - unasked)
        now, before = alphas[t], alphas[t - 100] if t > 100 else torch.tensor(1.0)
        clean, step = now.sqrt() * x - (1 - now).sqrt() * v, now / before
        mean = before.sqrt() * (1 - step) / (1 - now) * clean + step.sqrt() * (1 - before) / (1 - now) * x
        variance = ((1 - before) / (1 - now) * (1 - step)).clamp(min=1e-20)
        x = mean + variance.sqrt() * golden["ddpm_step_noise"][i] if t > 1 else mean
    close(x, golden["ddpm_latent"])
    close(system.autoencoder.decode_features(x), golden["ddpm_mel"])
    close(system.autoencoder.decode(x), golden["ddpm_waveform"][..., :640])


def test_tangoflux(shared: Path, tmp_path: Path) -> None:
    """Its VAE is not in the fixture: one of our own takes its place, which must come back as it was."""
    folder = shared / "fixtures" / "tangoflux_tiny"
    own = WaveformAutoencoder(WaveformAutoencoderConfig(width=4, multiples=(1, 2), strides=(4, 2))).eval()
    save_file(own.vae.state_dict(), tmp_path / "vae.safetensors")
    for name in ("config.json", "tangoflux.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    released, golden = load_released(tmp_path), load_file(folder / "expected.safetensors")
    system, conditioner = released.system, released.system.conditioner
    audio = torch.randn(1, 2, 40)
    assert torch.equal(system.autoencoder.encode(audio), own.encode(audio))

    def conditioning(key: str, seconds: Tensor) -> tuple[Conditioning, Tensor]:
        text = tokens(golden[f"{key}text_features"], golden[f"{key}text_mask"])
        found = conditioner(ConditionerInputs(text=text, seconds_total=seconds))
        states, seconds_token = found.streams[0].tokens, found.streams[0].tokens[:, -1:]
        return Conditioning((tokens(states),), found.vector), seconds_token  # the authors let padding count

    given, seconds_token = conditioning("", golden["duration"])
    close(seconds_token, golden["duration_embed"])
    close(given.vector, golden["pooled"])
    found = system.denoiser(golden["x"].transpose(1, 2), golden["t"], given)
    close(found.transpose(1, 2), golden["v"])
    given, null = (
        first_row(conditioning("", torch.full((2,), 7.25))[0]),
        conditioning("uncond_", torch.tensor([7.25]))[0],
    )
    x = draw(released, given, null, Sampling("euler", 10, 4.5), golden["euler_noise"].transpose(1, 2))
    close(x.transpose(1, 2), golden["euler_latent"])
