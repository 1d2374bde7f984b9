"""A diffusers pipeline for latents of mel spectrograms, samples or MDCT bands, where diffusers has none of its own.

    sounds = pipe("a dog barks", audio_length_in_s=5.0).audios  # [B, N], of samples or MDCT bands [B, C, N]

`audiogen.convert --to diffusers` copies this file beside the weights.

docs/released-models.md opens one; this package itself runs no code that lies beside weights.
It needs torch, diffusers and transformers, and nothing of audiogen. Shapes: B batch, L text positions, D width or
depth of latents, T frames, M mel bins or latent height, C channels, N samples.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AudioPipelineOutput, ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio import modeling_stable_audio
from torch import Tensor, nn
from torch.nn import functional as F

MAGNITUDE_STEPS, PHASE_STEPS, MOMENTUM = 10, 16, 0.99  # of Griffin-Lim
LOUDEST = 8.0  # log-mel magnitude, above that of sound at full scale


class TextProjection(ModelMixin, ConfigMixin):
    """T5's states and seconds to the denoiser's tokens, and the states' pooled mean or the seconds to its vector.

    width: D of the tokens; null where they are the states themselves. pooled_dim: of the vector; null for none.
    length: L that tokens are padded to, with zeros that count; null for none. seconds: width, min_s and max_s of the
    token for the sound's length, after the text's; null for none. has_start: another token for its start, which is 0
    s, before that; the text is projected along, and the vector is both.
    """

    @register_to_config
    def __init__(
        self,
        encoder_width: int,
        width: int | None = None,
        pooled_dim: int | None = None,
        length: int | None = None,
        seconds: dict[str, Any] | None = None,
        has_start: bool = False,
    ):
        super().__init__()
        self.output_proj = None if width is None else nn.Linear(encoder_width, width)
        self.register_buffer("no_text", torch.zeros(1))  # diffusers opens no component without weights
        self.pooled = None if pooled_dim is None else nn.Linear(width or encoder_width, pooled_dim)
        self.times: Any = None
        if seconds is not None:
            limits = (seconds["width"], seconds["min_s"], seconds["max_s"])
            if has_start:
                text_width = width or encoder_width
                self.times = modeling_stable_audio.StableAudioProjectionModel(text_width, *limits)
            else:
                self.times = modeling_stable_audio.StableAudioNumberConditioner(*limits)

    @property
    def num_seconds(self) -> int:
        """Tokens after the text's."""
        return 0 if self.times is None else 1 + self.config["has_start"]

    def forward(self, states: Tensor, mask: Tensor, seconds: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """States [B, L, encoder_width], bool mask [B, L] -> tokens [B, L', D], mask [B, L'], vector [B, E].

        L' is L or `length`, and the tokens for seconds more.
        """
        tokens = states if self.output_proj is None else self.output_proj(states)
        tokens = tokens * mask[..., None]
        if self.output_proj is not None:  # no text is one token of zeros
            mask = torch.cat([mask[:, :1] | ~mask.any(1, keepdim=True), mask[:, 1:]], 1)
        vector = None
        if self.pooled is not None:
            vector = F.relu(self.pooled(tokens.sum(1) / mask.sum(1, keepdim=True)))
        if self.config["has_start"]:
            tokens = self.times.text_projection(tokens) * mask[..., None]
        if (length := self.config["length"]) is not None:
            tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
            mask = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        if self.times is not None:
            lasts = torch.full((len(tokens),), seconds, device=tokens.device)
            if self.config["has_start"]:  # [B, 1, D] each
                start = self.times.start_number_conditioner(0 * lasts)
                more = [start, self.times.end_number_conditioner(lasts)]
                vector = torch.cat([each[:, 0] for each in more], 1)
            else:
                more = [self.times(lasts)]
            tokens, mask = torch.cat([tokens, *more], 1), F.pad(mask, (0, len(more)), value=True)
        return tokens, mask, vector


class LatentPipeline(DiffusionPipeline):
    """Text -> T5 -> diffusion of latents -> AutoencoderKL and HiFi-GAN or Griffin-Lim, or AutoencoderOobleck.

    unet, transformer: one of them, the denoiser of mel latents and of others. mel: sample_rate, n_fft, hop_length,
    num_mels, f_min, f_max of mel latents, else null. wave: bands (of an MDCT, 1 for samples) and scale (of the latents)
    of others, else null. window_s: what is always generated, and cut from; null for the length asked for. flow: one_is
    ("data" or "noise": what t = 1 is), t_min, time_scale; null for a system whose scheduler says its steps. eta: of
    DDIM. steps, guidance: those that the model was made for. max_tokens: texts are cut to it. unconditional: what
    guidance moves away from: "zeros" (of all tokens), "empty" (the text ""), "padded" (that, as long as the text).
    """

    _optional_components = ["vocoder", "unet", "transformer"]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        projection: Any,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        vocoder: Any = None,
        mel: dict[str, Any] | None = None,
        wave: dict[str, Any] | None = None,
        window_s: float | None = None,
        flow: dict[str, Any] | None = None,
        eta: float = 0.0,
        steps: int = 200,
        guidance: float = 3.0,
        max_tokens: int = 64,
        unconditional: str = "padded",
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            transformer=transformer,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            projection=projection,
            scheduler=scheduler,
            vocoder=vocoder,
        )
        self.register_to_config(
            mel=mel,
            wave=wave,
            window_s=window_s,
            flow=flow,
            eta=eta,
            steps=steps,
            guidance=guidance,
            max_tokens=max_tokens,
            unconditional=unconditional,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        audio_length_in_s: float = 5.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
    ) -> AudioPipelineOutput:
        """Sounds [B, N] or [B, C, N] of B prompts, as numpy ("np") or torch ("pt"); "latent" gives the latents.

        latents: the noise to begin from, [B, D, T, M] or [B, D, T]. steps and guidance are the model's own unless
        given; guidance 1 is none.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings, device = self.config, self._execution_device
        steps = num_inference_steps or settings["steps"]
        guidance = settings["guidance"] if guidance_scale is None else guidance_scale
        flow = settings["flow"]
        num_samples = round(audio_length_in_s * self.sample_rate)
        if latents is None:
            shape = self.latent_shape(settings["window_s"] or audio_length_in_s)
            latents = torch.randn((len(prompts), *shape), generator=generator).to(device)
        given = self.encode([*prompts], audio_length_in_s)
        away = self.null(given[1], audio_length_in_s, negative_prompt) if guidance != 1 else None
        more: dict[str, Any] = {}
        if flow is None:
            self.scheduler.set_timesteps(steps, device=device)
            latents = latents * self.scheduler.init_noise_sigma
            more = {"generator": generator}
            if "eta" in inspect.signature(self.scheduler.step).parameters:
                more["eta"] = settings["eta"]
        else:
            self.scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)], device=device)
        sign = -1.0 if flow is not None and flow["one_is"] == "data" else 1.0
        for step, time in enumerate(self.progress_bar(self.scheduler.timesteps)):
            t, x_t = float(time), latents
            if flow is not None:
                t = flow_time(flow, step / steps)
            else:
                x_t = self.scheduler.scale_model_input(latents, time)
                if "sigma_data" in self.scheduler.config:  # an angle: the state is data + sigma * noise
                    t = 2 / math.pi * math.atan(float(self.scheduler.sigmas[step]))
            predicted = self.predict(x_t, t, *given)
            if away is not None:
                without = self.predict(x_t, t, *away)
                predicted = without + guidance * (predicted - without)
            latents = self.scheduler.step(sign * predicted, time, latents, **more).prev_sample
        if output_type == "latent":
            return AudioPipelineOutput(audios=latents)
        audio = self.decode(latents)[..., :num_samples].float().cpu()
        return AudioPipelineOutput(audios=audio.numpy() if output_type == "np" else audio)

    @property
    def is_unet(self) -> bool:
        """Whether the denoiser takes latents [B, D, T, M]; transformers take sequences."""
        return "UNet" in type(self.denoiser).__name__

    @property
    def denoiser(self) -> Any:
        """The network."""
        return self.transformer if self.unet is None else self.unet

    @property
    def sample_rate(self) -> int:
        """Of the sounds, Hz."""
        mel = self.config["mel"]
        return self.vae.config.sampling_rate if mel is None else mel["sample_rate"]

    def latent_shape(self, seconds: float) -> tuple[int, ...]:
        """(D, T, M) or (D, T) of a sound of that length."""
        num_samples, mel, sizes = round(seconds * self.sample_rate), self.config["mel"], self.vae.config
        if mel is None:
            hop_length = self.config["wave"]["bands"] * math.prod(sizes.downsampling_ratios)
            return sizes.decoder_input_channels, -(-num_samples // hop_length)
        ratio = 2 ** (len(sizes.block_out_channels) - 1)  # mel frames and bins of a latent one
        frames = -(-num_samples // (mel["hop_length"] * ratio))
        if self.is_unet:
            levels = 2 ** (len(self.unet.config.block_out_channels) - 1)
            frames = -(-frames // levels) * levels
        return sizes.latent_channels, frames, mel["num_mels"] // ratio

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, D, T, M] -> audio [B, N], or [B, D, T] -> [B, C, N]."""
        mel, wave = self.config["mel"], self.config["wave"]
        if mel is None:
            found = self.vae.decode(latents / wave["scale"]).sample  # [B, C * bands, N / bands]
            return found if wave["bands"] == 1 else inverse_mdct(found, wave["bands"])
        features = self.vae.decode(latents / self.vae.config.scaling_factor).sample[:, 0]  # [B, T, M]
        return griffin_lim(features, mel) if self.vocoder is None else self.vocoder(features)

    def encode(
        self, texts: Sequence[str], seconds: float, padded: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """B texts -> tokens, mask, vector, see `TextProjection`. padded: mask [B, L'] of texts to pad these to."""
        rows = []
        for text in texts:
            ids = self.tokenizer(text).input_ids if text.strip() or not self.projects else []
            if self.projects:  # it was trained without characters that have no token
                ids = [token for token in ids if token != self.tokenizer.unk_token_id]
            limit = self.config["max_tokens"]
            rows.append(ids if len(ids) <= limit else [*ids[: limit - 1], self.tokenizer.eos_token_id])
        lengths = [len(ids) for ids in rows]
        if padded is not None and not self.projects:
            others = (padded.sum(1) - self.projection.num_seconds).tolist()
            lengths = [max(pair) for pair in zip(lengths, others, strict=True)]
        longest = max(1, *lengths)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=self.device)
        places = torch.arange(longest, device=self.device)
        own = places < torch.tensor([[len(row)] for row in rows], device=self.device)  # what T5 attends to
        states = self.text_encoder(ids, attention_mask=own.long()).last_hidden_state
        mask = places < torch.tensor(lengths, device=self.device)[:, None]
        return self.projection(states, mask, seconds)

    def null(
        self, mask: Tensor, seconds: float, negative: str | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What guidance moves away from, for the texts of a mask [B, L']."""
        if negative is not None:
            return self.encode([negative] * len(mask), seconds)
        found = self.encode([""] * len(mask), seconds)
        if self.config["unconditional"] == "padded":
            padded = self.encode([""] * len(mask), seconds, mask)
            return padded[0], padded[1], found[2]
        if self.config["unconditional"] == "zeros":
            vector = found[2]
            if vector is not None and not self.projection.config["has_start"]:  # seconds stay
                vector = torch.zeros_like(vector)
            width = found[0].shape[-1]
            return mask.new_zeros(*mask.shape, width, dtype=found[0].dtype), torch.ones_like(mask), vector
        return found

    @property
    def projects(self) -> bool:
        """Whether T5 is a small one that was trained along, whose states are projected."""
        return self.projection.output_proj is not None

    def predict(
        self, latents: Tensor, t: float, tokens: Tensor, mask: Tensor, vector: Tensor | None
    ) -> Tensor:
        """The denoiser's prediction, as the latents [B, D, T, M] or [B, D, T]."""
        times = torch.full((len(latents),), t, device=latents.device)
        if self.is_unet:
            given = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask, "class_labels": vector}
            return self.unet(latents, times, **given).sample
        assert vector is not None
        frames = latents  # [B, D, T], of mel latents [B, D * M, T]
        if latents.ndim == 4:
            frames = latents.permute(0, 1, 3, 2).flatten(1, 2)
        run = self.by_flux if "Flux" in type(self.denoiser).__name__ else self.by_dit
        found = run(frames, times, tokens, mask, vector)
        if latents.ndim == 3:
            return found
        return found.unflatten(1, (latents.shape[1], latents.shape[3])).permute(0, 1, 3, 2)

    def by_dit(self, frames: Tensor, times: Tensor, tokens: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        """StableAudioDiTModel's prediction [B, D, T], which takes no mask."""
        rotated = max(self.denoiser.config.attention_head_dim // 2, 32)
        places = torch.arange(frames.shape[-1] + 1, device=frames.device)  # the first one is the vector's
        waves = get_1d_rotary_pos_embed(rotated, places, use_real=True, repeat_interleave_real=False)
        return self.denoiser(
            frames,
            times,
            encoder_hidden_states=tokens,
            global_hidden_states=vector[:, None],
            rotary_embedding=waves,
        ).sample

    def by_flux(self, frames: Tensor, times: Tensor, tokens: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        """FluxTransformer2DModel's prediction [B, D, T]: it takes no mask, so row by row, the valid tokens alone."""
        places = torch.arange(frames.shape[-1], device=frames.device)[:, None].expand(-1, 3)
        found = [
            self.denoiser(
                row[None].mT,  # [1, T, D]
                encoder_hidden_states=text[valid][None],
                pooled_projections=pooled[None],
                timestep=t[None],
                img_ids=places,
                txt_ids=torch.zeros(int(valid.sum()), 3, device=frames.device),
            ).sample.mT
            for row, t, text, valid, pooled in zip(frames, times, tokens, mask, vector, strict=True)
        ]
        return torch.cat(found)


def inverse_mdct(features: Tensor, bands: int) -> Tensor:
    """Coefficients, as 4 times the root of their size, [B, C * bands, T] -> audio [B, C, T * bands]."""
    n = torch.arange(2 * bands, dtype=torch.float64) + 0.5
    k = torch.arange(bands, dtype=torch.float64)[:, None] + 0.5
    window = torch.sin(math.pi * n / (2 * bands))
    cosines = torch.cos(math.pi / bands * (n + bands / 2) * k)
    basis = (math.sqrt(2 / bands) * window * cosines).float().to(features.device)  # [bands, 2 * bands]
    frames = (features * features.abs() / 16.0).float().unflatten(1, (-1, bands)).flatten(0, 1)
    audio = F.conv_transpose1d(frames, basis[:, None], stride=bands, padding=bands // 2)
    return audio.unflatten(0, (len(features), -1))[:, :, 0]


def mel_filters(mel: dict[str, Any]) -> Tensor:
    """Slaney's triangular filters [F, M]."""

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    ends = to_mel(mel["f_min"]), to_mel(mel["f_max"])
    points = torch.linspace(*ends, mel["num_mels"] + 2, dtype=torch.float64)
    edges = torch.where(points < 15, points * 200 / 3, 1000 * torch.exp((points - 15) * math.log(6.4) / 27))
    bins = torch.linspace(0, mel["sample_rate"] / 2, mel["n_fft"] // 2 + 1, dtype=torch.float64)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return (filters * (2 / (right - left))).float()


def flow_time(flow: dict[str, Any], done: float) -> float:
    """The denoiser's time when that share of the way from noise to data is done."""
    progress = done if flow["one_is"] == "data" else 1.0 - done
    return flow["time_scale"] * (flow["t_min"] + (1.0 - flow["t_min"]) * progress)


def griffin_lim(features: Tensor, mel: dict[str, Any]) -> Tensor:
    """Log-mel [B, T, M] -> audio [B, T * hop_length]: fast Griffin-Lim (Perraudin et al. 2013) from fixed phases."""
    n_fft, hop, filters = mel["n_fft"], mel["hop_length"], mel_filters(mel).to(features.device)
    wanted = features.float().clamp(max=LOUDEST).exp()
    found = (wanted / filters.sum(0).clamp(min=1e-8)) @ (filters / filters.sum(1, True).clamp(min=1e-8)).T
    for _ in range(MAGNITUDE_STEPS):  # multiplicative updates: no magnitude falls below 0
        ratio = wanted / (found @ filters).clamp(min=1e-9)
        found = found * (ratio @ filters.T) / filters.sum(1).clamp(min=1e-9)
    # Frame t of the mel is centred half a hop after t * hop, where torch has it: one frame more at each end.
    magnitude = F.pad(found.transpose(1, 2), (1, 1), mode="replicate")  # [B, F, T + 2]
    window = torch.hann_window(n_fft, device=features.device)
    transform = {"n_fft": n_fft, "hop_length": hop, "window": window}
    phase = (
        2
        * math.pi
        * torch.rand(magnitude.shape[2], magnitude.shape[1], generator=torch.Generator().manual_seed(0))
    )
    rotation = torch.polar(torch.ones_like(phase), phase).T.to(features.device)  # [F, T + 2]
    previous = torch.zeros_like(magnitude, dtype=rotation.dtype)
    for _ in range(PHASE_STEPS):
        audio = torch.istft(magnitude * rotation, **transform, center=True)
        consistent = torch.stft(audio, **transform, center=True, pad_mode="constant", return_complex=True)
        ahead = previous + (1 + MOMENTUM) * (consistent - previous)
        rotation, previous = ahead / ahead.abs().clamp(min=1e-8), consistent
    audio = torch.istft(magnitude * rotation, **transform, center=True)
    return audio[:, hop // 2 : hop // 2 + features.shape[1] * hop]
