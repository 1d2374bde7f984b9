"""A diffusers pipeline for mel latents: `audiogen.convert --to diffusers` copies this file beside the weights.

    sounds = pipe("a dog barks", audio_length_in_s=5.0).audios  # [B, N]

docs/released-models.md opens one; this package itself runs no code that lies beside weights.
It needs torch, diffusers and transformers, and nothing of audiogen. Shapes: B batch, L text positions, D width or
depth of latents, T frames, M mel bins or latent height, N samples.
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
from torch import Tensor, nn
from torch.nn import functional as F

MAGNITUDE_STEPS, PHASE_STEPS, MOMENTUM = 10, 16, 0.99  # of Griffin-Lim
LOUDEST = 8.0  # log-mel magnitude, above that of sound at full scale


class TextProjection(ModelMixin, ConfigMixin):
    """T5's states to the denoiser's tokens, and their pooled mean to its vector.

    width: D of the tokens; null where they are the states themselves. pooled_dim: of the vector; null for none.
    length: L that tokens are padded to, with zeros that count; null for none.
    """

    @register_to_config
    def __init__(
        self,
        encoder_width: int,
        width: int | None = None,
        pooled_dim: int | None = None,
        length: int | None = None,
    ):
        super().__init__()
        self.output_proj = None if width is None else nn.Linear(encoder_width, width)
        self.register_buffer("no_text", torch.zeros(1))  # diffusers opens no component without weights
        self.pooled = None if pooled_dim is None else nn.Linear(width or encoder_width, pooled_dim)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States [B, L, encoder_width], bool mask [B, L] -> tokens [B, L, D], mask [B, L], vector [B, E]."""
        tokens = states if self.output_proj is None else self.output_proj(states)
        tokens = tokens * mask[..., None]
        if self.output_proj is not None:  # no text is one token of zeros
            mask = torch.cat([mask[:, :1] | ~mask.any(1, keepdim=True), mask[:, 1:]], 1)
        vector = None
        if self.pooled is not None:
            vector = F.relu(self.pooled(tokens.sum(1) / mask.sum(1, keepdim=True)))
        if (length := self.config["length"]) is not None:
            tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
            mask = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        return tokens, mask, vector


class MelPipeline(DiffusionPipeline):
    """Text -> T5 -> diffusion of the latents of log-mel spectrograms -> AutoencoderKL -> HiFi-GAN or Griffin-Lim.

    mel: sample_rate, n_fft, hop_length, num_mels, f_min, f_max. flow: one_is ("data" or "noise": what t = 1 is), t_min,
    time_scale; null for a system whose DDIM or DDPM scheduler says its steps. eta: of DDIM. steps, guidance: those that
    the model was made for. max_tokens: texts are cut to it. unconditional: what guidance moves away from: "zeros" (of
    all tokens), "empty" (the text ""), "padded" (that, as long as the text).
    """

    _optional_components = ["vocoder"]

    def __init__(
        self,
        vae: Any,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        projection: Any,
        scheduler: Any,
        vocoder: Any = None,
        mel: dict[str, Any] | None = None,
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
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            projection=projection,
            scheduler=scheduler,
            vocoder=vocoder,
        )
        self.register_to_config(
            mel=mel,
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
        """Sounds [B, N] of B prompts, as numpy ("np") or torch ("pt"); "latent" gives the latents [B, D, T, M].

        latents: the noise to begin from. steps and guidance are the model's own unless given; guidance 1 is none.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings, device = self.config, self._execution_device
        steps = num_inference_steps or settings["steps"]
        guidance = settings["guidance"] if guidance_scale is None else guidance_scale
        mel, flow = settings["mel"], settings["flow"]
        num_samples = round(audio_length_in_s * mel["sample_rate"])
        if latents is None:
            ratio = 2 ** (len(self.vae.config.block_out_channels) - 1)  # mel frames and bins of a latent one
            frames = -(-num_samples // (mel["hop_length"] * ratio))
            if self.is_unet:
                levels = 2 ** (len(self.unet.config.block_out_channels) - 1)
                frames = -(-frames // levels) * levels
            shape = (len(prompts), self.vae.config.latent_channels, frames, mel["num_mels"] // ratio)
            latents = torch.randn(shape, generator=generator).to(device)
        given = self.encode([*prompts])
        away = self.null(given[1], negative_prompt) if guidance != 1 else None
        more: dict[str, Any] = {}
        if flow is None:
            self.scheduler.set_timesteps(steps, device=device)
            more = {"generator": generator}
            if "eta" in inspect.signature(self.scheduler.step).parameters:
                more["eta"] = settings["eta"]
        else:
            self.scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)], device=device)
        sign = -1.0 if flow is not None and flow["one_is"] == "data" else 1.0
        for step, time in enumerate(self.progress_bar(self.scheduler.timesteps)):
            t = float(time) if flow is None else flow_time(flow, step / steps)
            predicted = self.predict(latents, t, *given)
            if away is not None:
                without = self.predict(latents, t, *away)
                predicted = without + guidance * (predicted - without)
            latents = self.scheduler.step(sign * predicted, time, latents, **more).prev_sample
        if output_type == "latent":
            return AudioPipelineOutput(audios=latents)
        features = self.vae.decode(latents / self.vae.config.scaling_factor).sample[:, 0]  # [B, T, M]
        audio = griffin_lim(features, mel) if self.vocoder is None else self.vocoder(features)
        audio = audio[:, :num_samples].float().cpu()
        return AudioPipelineOutput(audios=audio.numpy() if output_type == "np" else audio)

    @property
    def is_unet(self) -> bool:
        """Whether the denoiser takes latents [B, D, T, M]; StableAudioDiTModel takes sequences."""
        return "UNet" in type(self.unet).__name__

    def encode(
        self, texts: Sequence[str], padded: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """B texts -> tokens, mask, vector, see `TextProjection`. padded: mask [B, L] of texts to pad these to."""
        rows = []
        for text in texts:
            ids = self.tokenizer(text).input_ids if text.strip() or not self.projects else []
            if self.projects:  # it was trained without characters that have no token
                ids = [token for token in ids if token != self.tokenizer.unk_token_id]
            limit = self.config["max_tokens"]
            rows.append(ids if len(ids) <= limit else [*ids[: limit - 1], self.tokenizer.eos_token_id])
        lengths = [len(ids) for ids in rows]
        if padded is not None and not self.projects:
            lengths = [max(pair) for pair in zip(lengths, padded.sum(1).tolist(), strict=True)]
        longest = max(1, *lengths)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=self.device)
        places = torch.arange(longest, device=self.device)
        own = places < torch.tensor([[len(row)] for row in rows], device=self.device)  # what T5 attends to
        states = self.text_encoder(ids, attention_mask=own.long()).last_hidden_state
        mask = places < torch.tensor(lengths, device=self.device)[:, None]
        return self.projection(states, mask)

    def null(self, mask: Tensor, negative: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What guidance moves away from, for the texts of a mask [B, L]."""
        if negative is not None:
            return self.encode([negative] * len(mask))
        found = self.encode([""] * len(mask))
        if self.config["unconditional"] == "padded":
            padded = self.encode([""] * len(mask), mask)
            return padded[0], padded[1], found[2]
        if self.config["unconditional"] == "zeros":
            vector = None if found[2] is None else torch.zeros_like(found[2])
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
        """The denoiser's prediction, as the latents [B, D, T, M]."""
        times = torch.full((len(latents),), t, device=latents.device)
        if self.is_unet:
            given = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask, "class_labels": vector}
            return self.unet(latents, times, **given).sample
        frames = latents.permute(0, 1, 3, 2).flatten(1, 2)  # [B, D * M, T]
        rotated = max(self.unet.config.attention_head_dim // 2, 32)
        places = torch.arange(frames.shape[-1] + 1, device=latents.device)  # the first one is the vector's
        waves = get_1d_rotary_pos_embed(rotated, places, use_real=True, repeat_interleave_real=False)
        assert vector is not None
        found = self.unet(
            frames,
            times,
            encoder_hidden_states=tokens,
            global_hidden_states=vector[:, None],
            rotary_embedding=waves,
        ).sample
        return found.unflatten(1, (latents.shape[1], latents.shape[3])).permute(0, 1, 3, 2)


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
