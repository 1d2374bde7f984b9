"""The loop against the authors' own loops (golden files) and the pipelines of diffusers, guidance on."""

import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio.modeling_stable_audio import (
    StableAudioNumberConditioner,
    StableAudioProjectionModel,
)
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import load_file
from torch import Tensor, nn

from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.process import PROCESSES, Process
from audiogen.diffusion.sample import Denoise, Noise, Sampling, sample
from audiogen.interfaces import Condition

State = dict[str, Tensor]


def tokens(features: Tensor, mask: Tensor | None = None) -> Condition:
    return Condition(features, torch.ones(features.shape[:2]).bool() if mask is None else mask.bool())


def golden(shared: Path, system: str) -> tuple[Path, State]:
    folder = shared / "fixtures" / f"{system}_tiny"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, made by the authors' code")
    return folder, load_file(folder / "expected.safetensors")


def checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def loaded(network: nn.Module, state: State) -> nn.Module:
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network.eval()


def assert_equal_to_golden(drawn: Tensor, expected: Tensor) -> None:
    assert (drawn - expected).norm() / expected.norm() < 1e-4


# The mel UNets: keys of the authors' UNetModel, with one residual block a level, to those of diffusers.

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "film_emb": "class_embedding",
}


def renamed(key: str, num_attentions: int) -> str:
    module, _, parameter = key.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{parameter}"
    side, *numbers, rest = re.fullmatch(
        r"(input|middle|output)_blocks?\.(\d+)(?:\.(\d+))?\.(.+)", key
    ).groups()
    block, part = int(numbers[0]), int(numbers[1] or 0)
    if side == "middle":
        part, where, layer = block, "mid_block", 0
        resnet = {0: 0, num_attentions + 1: 1}.get(part)
    else:
        level, layer = divmod(block - (side == "input"), 2)
        where = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
        resnet = layer if part == 0 else None
        if rest.startswith("op."):
            return f"{where}.downsamplers.0.conv.{parameter}"
        if rest.startswith("conv."):
            return f"{where}.upsamplers.0.{rest}"
    if resnet is None:
        return f"{where}.attentions.{layer * num_attentions + part - 1}.{rest}"
    return f"{where}.resnets.{resnet}.{RESNET[rest.rpartition('.')[0]]}.{parameter}"


def mel_unet(
    state: State, prefix: str, contexts: list[int | None], heads: tuple[int, int], level: int
) -> nn.Module:
    """level: the one of the two with attention. heads: of each."""
    plain, attending = ["DownBlock2D", "UpBlock2D"], ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"]
    film = f"{prefix}film_emb.weight" in state
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=[(attending if i == level else plain)[0] for i in (0, 1)],
        up_block_types=[(attending if i == level else plain)[1] for i in (1, 0)],
        cross_attention_dim=[contexts] * 2,
        attention_head_dim=heads,
        class_embed_type="simple_projection" if film else None,
        projection_class_embeddings_input_dim=24 if film else None,
        class_embeddings_concat=film,
    )
    ours = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return loaded(unet, {renamed(key, len(contexts)): value for key, value in ours.items()})


def two_streams(unet: nn.Module) -> Denoise:
    def denoise(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        first, second = conditioning.streams
        return unet(
            x_t,
            t,
            encoder_hidden_states=first.tokens,
            encoder_attention_mask=first.mask,
            encoder_hidden_states_1=second.tokens,
            encoder_attention_mask_1=second.mask,
        ).sample

    return denoise


def run(
    system: str,
    denoise: Denoise,
    sampling: Sampling,
    conditioning: Conditioning,
    negative: Conditioning,
    noise: Tensor,
) -> Tensor:
    process = Process(PROCESSES[system])
    start = Noise(noise.shape[1:], [0], start=noise)
    return sample(denoise, process, sampling, conditioning, start, negative=negative)


def without_tokens(given: Conditioning) -> Conditioning:
    """Zero tokens that may all be attended to; the vector stays."""
    return Conditioning(
        tuple(tokens(torch.zeros_like(stream.tokens)) for stream in given.streams), given.vector
    )


def test_lafmas_loop(shared: Path) -> None:
    folder, expected = golden(shared, "lafma")
    unet = mel_unet(checkpoint(folder / "lafma.ckpt")["model"], "unet.", [24, 24], (4, 4), level=0)
    text, nothing = (tokens(expected[name]) for name in ("text_features", "uncond_text_features"))
    conditioning = Conditioning(streams=(text, text)).rows([0])
    drawn = run(
        "lafma",
        two_streams(unet),
        Sampling("euler", 10, 3.0),
        conditioning,
        Conditioning(streams=(nothing, nothing)),
        expected["euler_noise"],
    )
    assert_equal_to_golden(drawn, expected["euler_latent"])


def test_audioldms_loop(shared: Path) -> None:
    folder, expected = golden(shared, "audioldm")
    state = checkpoint(folder / "audioldm-tiny.ckpt")["state_dict"]
    prefix = "model.diffusion_model."
    averaged = {  # which the authors sample with; its names have no dots
        key: state["model_ema." + key.removeprefix("model.").replace(".", "")]
        for key in state
        if key.startswith(prefix)
    }
    unet = mel_unet(averaged, prefix, [None], (2, 4), level=1)

    def denoise(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return unet(x_t, t, encoder_hidden_states=None, class_labels=conditioning.vector).sample

    conditioning, nothing = (
        Conditioning(vector=expected["unet_y"][:1]),
        Conditioning(vector=expected["uncond_y"]),
    )
    drawn = run("audioldm", denoise, Sampling("ddim", 10, 2.5), conditioning, nothing, expected["ddim_noise"])
    assert_equal_to_golden(drawn, expected["ddim_sample"])
    alpha, _ = Process(PROCESSES["audioldm"]).coefficients(torch.arange(1000))
    torch.testing.assert_close(alpha**2, expected["alphas_cumprod"], atol=1e-6, rtol=1e-4)


def test_audioldm2s_loop(shared: Path) -> None:
    folder, expected = golden(shared, "audioldm2")
    state = checkpoint(folder / "audioldm2-tiny.pth")["state_dict"]
    unet = mel_unet(state, "model.diffusion_model.", [None, 32, 24], (2, 4), level=0)
    loa, text = tokens(expected["gpt2_sequence"]), tokens(expected["text_features"], expected["text_mask"])
    conditioning = Conditioning(streams=(loa, text)).rows([0])
    nothing = Conditioning(streams=(tokens(torch.zeros(1, 8, 32)), tokens(expected["uncond_text_features"])))
    drawn = run(
        "audioldm2",
        two_streams(unet),
        Sampling("ddim", 10, 3.5),
        conditioning,
        nothing,
        expected["ddim_noise"],
    )
    assert_equal_to_golden(drawn, expected["ddim_sample"])


def test_tangos_loop(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = golden(shared, "tango")
    state = checkpoint(folder / "pytorch_model_main.bin")
    unet = diffusers.UNet2DConditionModel.from_config(
        diffusers.UNet2DConditionModel.load_config(folder / "diffusion_model_config.json")
    )
    unet = loaded(unet, {key.removeprefix("unet."): state[key] for key in state if key.startswith("unet.")})

    def denoise(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        (text,) = conditioning.streams
        return unet(x_t, t, text.tokens, encoder_attention_mask=text.mask).sample

    text = Conditioning(streams=(tokens(expected["text_features"], expected["text_mask"]),))
    nothing = Conditioning(streams=(tokens(expected["uncond_text_features"], expected["uncond_text_mask"]),))
    steps: Iterator[Tensor] = iter(expected["ddpm_step_noise"])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(steps))
    sampling = Sampling("ddpm", 10, 3.0)
    drawn = run("tango", denoise, sampling, text.rows([0]), nothing, expected["ddpm_noise"])
    assert_equal_to_golden(drawn, expected["ddpm_latent"])
    assert next(steps, None) is None


def test_tangofluxs_loop(shared: Path) -> None:
    folder, expected = golden(shared, "tangoflux")
    state = {key: value.float() for key, value in load_file(folder / "tangoflux.safetensors").items()}

    def part(name: str) -> State:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    flux = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=48,
        pooled_projection_dim=48,
        guidance_embeds=False,
    )
    # the authors' transformer projects pooled text of its inner width
    flux = loaded(flux, part("transformer."))
    duration = StableAudioNumberConditioner(number_embedding_dim=48, min_value=0, max_value=30)
    duration = loaded(duration, part("duration_emebdder."))
    pool = part("fc.")

    def condition(name: str) -> Conditioning:
        features, mask = expected[f"{name}text_features"][:1], expected[f"{name}text_mask"][:1]
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        pooled = torch.relu(mean @ pool["0.weight"].T + pool["0.bias"])
        both = torch.cat([features, duration(torch.tensor([7.25]))], 1)
        return Conditioning(streams=(tokens(both),), vector=pooled)

    torch.testing.assert_close(condition("").vector, expected["pooled"][:1], atol=1e-5, rtol=1e-4)

    def denoise(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        (text,) = conditioning.streams
        return flux(
            hidden_states=x_t.mT,
            encoder_hidden_states=text.tokens,
            pooled_projections=conditioning.vector,
            timestep=t,
            txt_ids=torch.zeros(text.tokens.shape[1], 3),
            img_ids=torch.arange(x_t.shape[2])[:, None].repeat(1, 3),
        ).sample.mT

    noise, sampling = expected["euler_noise"].mT, Sampling("euler", 10, 4.5)
    drawn = run("tangoflux", denoise, sampling, condition(""), condition("uncond_"), noise)
    assert_equal_to_golden(drawn.mT, expected["euler_latent"])


DIT = {
    "timestep_features.weight": "time_proj.weight",
    "to_timestep_embed": "timestep_proj",
    "to_cond_embed": "cross_attention_proj",
    "to_global_embed": "global_proj",
    "transformer.project_": "proj_",
    "transformer.layers": "transformer_blocks",
    "pre_norm": "norm1",
    "cross_attend_norm": "norm2",
    "ff_norm": "norm3",
    "ff.ff": "ff.net",
    "gamma": "weight",
    "beta": "bias",
    "cross_attn": "attn2",
    "self_attn": "attn1",
    "to_out": "to_out.0",
}


def stable_audio_dit(state: State) -> nn.Module:
    renamed = {}
    for key, value in state.items():
        if not key.startswith("model.model.") or "inv_freq" in key:
            continue
        key = key.removeprefix("model.model.")
        value = value.flatten() if key == "timestep_features.weight" else value
        for theirs, ours in DIT.items():
            key = key.replace(theirs, ours)
        for joined in ("qkv", "kv"):
            if f"to_{joined}." in key:
                names = [key.replace(f"to_{joined}", f"to_{letter}") for letter in joined]
                renamed |= dict(zip(names, value.chunk(len(joined)), strict=True))
                break
        else:
            renamed[key] = value
    return loaded(tiny_dit(), renamed)


def tiny_dit() -> nn.Module:
    return diffusers.StableAudioDiTModel(
        sample_size=24,
        in_channels=4,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=64,
        time_proj_dim=256,
        global_states_input_dim=128,
        cross_attention_input_dim=64,
    )


def one_stream_and_a_token(dit: nn.Module) -> Denoise:
    def denoise(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        rotary = get_1d_rotary_pos_embed(32, x_t.shape[2] + 1, use_real=True, repeat_interleave_real=False)
        return dit(
            x_t,
            t,
            encoder_hidden_states=conditioning.streams[0].tokens,
            global_hidden_states=conditioning.vector[:, None],
            rotary_embedding=rotary,
        ).sample

    return denoise


def test_stable_audios_loop(shared: Path) -> None:
    folder, expected = golden(shared, "stable_audio")
    dit = stable_audio_dit(load_file(folder / "model.safetensors"))
    conditioning = Conditioning(
        streams=(tokens(expected["cross_attn_cond"]),), vector=expected["global_cond"]
    )
    conditioning = conditioning.rows([0])
    drawn = run(
        "stable_audio",
        one_stream_and_a_token(dit),
        Sampling("ddim", 10, 6.0),
        conditioning,
        without_tokens(conditioning),  # the global vector stays
        expected["noise"],
    )
    assert_equal_to_golden(drawn, expected["ddim_latent"])


def test_stable_audios_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Audio's own scheduler needs torchsde for its noise alone, which over a fixed grid is white noise."""
    if importlib.util.find_spec("torchsde") is None:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler

    torch.manual_seed(0)
    dit = tiny_dit().eval()
    projection = StableAudioProjectionModel(
        text_encoder_dim=32, conditioning_dim=64, min_value=0, max_value=32
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[1, 2], decoder_channels=4, decoder_input_channels=4
    )
    scheduler = CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500.0)
    pipeline = diffusers.StableAudioPipeline(vae, None, projection.eval(), None, dit, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    text = torch.randn(2, 5, 32)
    theirs = [torch.Generator().manual_seed(seed) for seed in (8, 9)]
    # made in the first step, once the generators have drawn where to begin
    noise = lambda *sigmas: torch.cat([torch.randn(1, 4, 24, generator=one) for one in theirs])  # noqa: E731
    scheduling = sys.modules[CosineDPMSolverMultistepScheduler.__module__]
    monkeypatch.setattr(scheduling, "BrownianTreeNoiseSampler", lambda *args, **kwargs: noise)
    expected = pipeline(
        prompt_embeds=text,
        audio_end_in_s=0.001,
        num_inference_steps=12,
        guidance_scale=6.0,
        generator=theirs,
        output_type="latent",
    ).audios

    with torch.no_grad():
        ends = projection(text, torch.zeros(2), torch.full((2,), 0.001))
    start, end = ends.seconds_start_hidden_states, ends.seconds_end_hidden_states
    prompt = torch.cat([ends.text_hidden_states, start, end], 1)
    conditioning = Conditioning(streams=(tokens(prompt),), vector=torch.cat([start, end], 2)[:, 0])
    drawn = sample(
        one_stream_and_a_token(dit),
        Process(PROCESSES["stable_audio"]),
        Sampling("dpm++sde", 12, 6.0),
        conditioning,
        Noise((4, 24), [8, 9]),
        negative=without_tokens(conditioning),
    )
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_audioldm2s_pipeline(eta: float) -> None:
    """Its text half does not run with today's transformers; its loop does, from embeddings."""
    torch.manual_seed(0)
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=[[None, 16, 24]] * 2,
        attention_head_dim=(2, 4),
    ).eval()
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16)
    )
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=9, d_model=24, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    config = PROCESSES["audioldm2"]
    scheduler = diffusers.DDIMScheduler(
        beta_start=config.beta_start, beta_end=config.beta_end, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    gpt = transformers.GPT2Model(transformers.GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2))
    pipeline = diffusers.AudioLDM2Pipeline(
        vae, None, t5, None, gpt, None, None, None, unet, scheduler, vocoder
    )
    pipeline.set_progress_bar_config(disable=True)
    loa, text, no_loa, no_text = (torch.randn(2, length, width) for length, width in [(8, 16), (5, 24)] * 2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=no_text,
        generated_prompt_embeds=loa,
        negative_generated_prompt_embeds=no_loa,
        attention_mask=mask,
        negative_attention_mask=torch.ones(2, 5).long(),
        audio_length_in_s=24 / 62.5,
        num_inference_steps=10,
        guidance_scale=3.5,
        eta=eta,
        generator=[torch.Generator().manual_seed(seed) for seed in (8, 9)],
        output_type="latent",
    ).audios
    drawn = sample(
        two_streams(unet),
        Process(config),
        Sampling("ddim", 10, 3.5, eta),
        Conditioning(streams=(tokens(loa), tokens(text, mask))),
        Noise(expected.shape[1:], [8, 9]),
        negative=Conditioning(streams=(tokens(no_loa), tokens(no_text))),
    )
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)
