"""Text to audio by latent diffusion: any system that `models.released` opens, behind the interface of the verbs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.config import to_plain
from audiogen.device import choose_device
from audiogen.diffusion.circle import OVERLAP_S, around, frames_of, seen_frames, stretched
from audiogen.diffusion.conditioning import Conditioning, mix, stack
from audiogen.diffusion.process import PROCESSES, Process, process_of
from audiogen.diffusion.products import choose_dtypes
from audiogen.diffusion.sample import SAMPLINGS, Denoise, Noise, sample, together
from audiogen.diffusion.sample import Sampling as LatentSampling
from audiogen.diffusion.samplers import make_sampler
from audiogen.diffusion.timeline import Guided, in_turn
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.generators import edits, in_order, level
from audiogen.generators import request as requests
from audiogen.generators.candidates import STRIDE, check_ranker, nearest
from audiogen.generators.facts import family_of, latent_rate, longest_s
from audiogen.generators.live import CROSSFADE_S
from audiogen.generators.publish import Published
from audiogen.interfaces import Edit, Progress, Sampling, check_samples, finite
from audiogen.models.diffusers import save_diffusers
from audiogen.models.find import SYSTEM, Found, find
from audiogen.models.released import load_released
from audiogen.models.systems import Released
from audiogen.packed import can_pack, pack
from audiogen.text.clap import Clap
from audiogen.text.order import events
from audiogen.text.t5 import TextStates

PART_S = 5.0  # parts of sounds in order are made so long, to choose from: about what recipes train with
INFO = "info.json"  # of a trained system: its step, validation and recipe
ROWS_ON_CPU, ROWS_ELSEWHERE = 1, 8  # sounds that the denoiser runs on at a time; guidance doubles them


class LatentGenerator(Published):
    """Text to audio: a denoiser of latents. Implements `interfaces.Generator`.

    A sound is a function of its text, duration, seed and the settings. On a CPU the denoiser runs sound by sound, and
    so gives the same to the last bit alone, in a batch and in any order; elsewhere `batch_size` sounds of one length
    run together, and kernels may round differently with their number. Text encoder and autoencoder run row by row
    everywhere; the text's side, once a sound, stays on the CPU.
    """

    def __init__(
        self,
        released: Released,
        device: str = "auto",
        dtype: str = "auto",
        clap: Clap | None = None,
        info: Mapping[str, Any] | None = None,
    ):
        """released: in evaluation mode; it becomes this generator's own. dtype: see `from_pretrained`.

        clap: ranks candidates; None is the system's own. info: how it was made, from its info.json.
        """
        self.info = dict(info or {})
        self.device = where = choose_device(device)
        self.dtype, self.matrices = choose_dtypes(dtype, where)
        self.system, self.name, self.notes = released.system, released.name, released.notes
        self.process = Process(process_of(self.name, released.process))
        self.family = family_of(self.process.config)
        self._sampling = released.sampling or SAMPLINGS[self.name]
        self.guidance = self._sampling.guidance
        self._clap = clap
        self.window_s = window_s = released.window_s
        autoencoder = self.system.autoencoder.to(where)
        self.system.denoiser.to(where)
        self.sample_rate, self.channels = autoencoder.sample_rate, autoencoder.channels
        self._depth, _, *self._bins = autoencoder.latent_shape(1.0)
        self.latent_rate = latent_rate(autoencoder)
        self.max_duration_s = longest_s(window_s, self.system.config)
        self.batch_size = ROWS_ON_CPU if where.type == "cpu" else ROWS_ELSEWHERE

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path | Found,
        device: str = "auto",
        dtype: str = "auto",
        text_encoder: str | None = None,
        heads: tuple[int, ...] | None = None,
        ema: bool | None = None,
        clap: str | None = None,
    ) -> LatentGenerator:
        """Open a bundled system, a run's directory, or a release in any format of `models.released`, or its hub id.

        name_or_dir: one of those, or what `find` found. device: as in `AudioGen`. dtype: "float32", "bfloat16",
        "float16" (CUDA), "int8" (CPU), or "auto" for bfloat16 on CUDA and float32 elsewhere: that the denoiser computes
        in, and on a CPU the decoders, while the weights stay float32. int8 is for the denoiser's linear layers; the
        rest is then bfloat16 where that is native, else float32. text_encoder: a T5 (for AudioLDM, which has none, a
        CLAP), directory or hub id, in place of the one that the system names. heads, ema: see `load_released`; `notes`
        says what was used. clap: a CLAP model with an audio branch, directory or hub id, that ranks candidates.
        """
        found = find(name_or_dir, SYSTEM)
        with _quiet():
            released = load_released(found, heads, ema)
        if text_encoder is not None:
            _replace_text(released, text_encoder, found.name)
        scorer = None if clap is None else Clap(clap)
        record = found.path / INFO
        return cls(released, device, dtype, scorer, writing.read_json(record) if record.is_file() else None)

    @property
    def num_parameters(self) -> int:
        """Of all that runs from text to audio: encoders of text, denoiser, autoencoder and vocoder."""
        trained = sum(parameter.numel() for parameter in self.system.parameters())
        return trained + self.system.conditioner.num_frozen

    def sampling(
        self,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        guidance_rescale: float | None = None,
        in_order: bool | None = None,
    ) -> LatentSampling:
        """Its recipe's way to sample, or else the authors', with what is given; InputError where that cannot be."""
        own = self._sampling
        asked: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance}
        asked |= {"guidance_rescale": guidance_rescale, "in_order": in_order}
        if sampler not in (None, own.sampler):
            asked["eta"] = 0.0
        chosen = dataclasses.replace(
            own, **{name: value for name, value in asked.items() if value is not None}
        )
        make_sampler(self.process, chosen.sampler, chosen.steps, chosen.eta)
        return chosen

    def steps_at_most(self, steps: int | None) -> int:
        """The largest number up to `steps` that its own sampler can take; its own number for None."""
        if steps is None:
            return self._sampling.steps
        for number in range(steps, 1, -1):
            try:
                return self.sampling(number).steps
            except InputError:
                continue
        return 1

    def num_evaluations(self, duration_s: float, guidance: float, steps: int | None = None) -> int:
        """Of the denoiser for one clip; a guided step counts as two."""
        chosen = self.sampling(steps, guidance=guidance)
        evaluations = len(make_sampler(self.process, chosen.sampler, chosen.steps, chosen.eta).times)
        return evaluations * (1 if guidance == 1 else 2)

    def num_frames(self, duration_s: float) -> int:
        """Latent frames that are generated for a duration, checked."""
        requests.check_duration(duration_s, self.max_duration_s)
        generated_s = duration_s if self.window_s is None else self.window_s
        _, frames, *_ = self.system.autoencoder.latent_shape(generated_s)
        return -(-frames // self._frame_multiple) * self._frame_multiple

    @property
    def _frame_multiple(self) -> int:
        """A UNet halves time from level to level; what it cannot halve it would stretch when doubling."""
        unet = self.system.config.audio_unet or self.system.config.text_unet
        return 1 if unet is None or self.window_s is not None else 2 ** (len(unet.channels) - 1)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory in the layout of diffusers that `from_pretrained` opens, frozen text encoders included.

        And with a model card, where it has none.
        """
        config = {
            key: value
            for key, value in to_plain(self.process.config).items()
            if value != getattr(PROCESSES[self.name], key)
        }
        own = None if self._sampling == SAMPLINGS[self.name] else self._sampling
        save_diffusers(directory, self.system, self.name, config, sampling=own, window_s=self.window_s)
        if self.info:
            writing.write_json(Path(directory, INFO), self.info)
        self.write_card(Path(directory), {"system": self.name})

    def identity(self) -> str:
        """16 hex digits that change with any weight, the process, the sampling and the number type."""
        weights = checkpoint.identity(self.system.state_dict())
        parts = [weights, self.name, self.process.config, self.system.config, self._sampling, self.window_s]
        parts.append(str(self.matrices or self.dtype))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @torch.no_grad()
    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] at the model's rate and channels through the autoencoder -> [B, C, N]: the upper bound."""
        check_samples(audio, "the audio")
        self._pack()
        sounds = [self._decode(self.system.autoencoder.encode(row[None].to(self.device))) for row in audio]
        return torch.stack([sound[:, : audio.shape[-1]] for sound in sounds])

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        edit: Edit | None = None,
        progress: Progress | None = None,
        turned_down_db: list[float] | None = None,
    ) -> Tensor:
        """Texts to audio [B, C, N], or with `edit` another sound made of a given one: see `interfaces.Generator`.

        Where guidance, steps or sampler are None, the recipe that trained the system decides, or else its authors.
        """
        lacking = requests.given(sampling, requests.LM_DRAWS)
        requests.refuse({"prompt": prompt, **lacking}, requests.FAMILIES[1])
        request = requests.check(self, texts, duration_s, seed, guidance, sampling)
        self._pack()
        chosen = self.sampling(
            sampling.steps, sampling.sampler, guidance, sampling.guidance_rescale, sampling.in_order
        )
        if edit is None and (parts := in_order.split(request.texts, sampling, chosen.in_order)):
            return in_order.generate(
                self, parts, request, sampling, guidance, progress, turned_down_db, PART_S
            )
        candidates = 1 if sampling.candidates is None else sampling.candidates
        clap = None
        if candidates != 1:
            clap = check_ranker(self._clap or self.system.conditioner.clap, candidates, request.texts)
        autoencoder = self.system.autoencoder
        if edit is not None:
            edits.check(edit, autoencoder, self.name, request.durations_s)
        requests.check_loop(sampling, edit=edit)
        frame_rate = self.sample_rate / autoencoder.hop_length
        num_frames = frames_of(request.durations_s, frame_rate) if sampling.loop else request.num_frames
        # D, T or D, T, M
        shapes = [(self._depth, frames, *self._bins) for frames in num_frames]
        conditions = [
            self._conditioning(text, self._seen_s(duration, sampling), sampling, chosen.in_order)
            for text, duration in zip(request.texts, request.durations_s, strict=True)
        ]
        sizes = () if edit is None else zip(request.num_samples, shapes, strict=True)
        changed = [edits.reference(edit, autoencoder, *size, self.device) for size in sizes if edit]
        references, kept = [reference for reference, _ in changed], [kept for _, kept in changed]
        when = self._borders(sampling)
        runs = [(row, candidate) for row in range(len(texts)) for candidate in range(candidates)]
        # [C, n] of each candidate of each row, and by how much it was turned down
        sounds: list[list[tuple[Tensor, float]]] = [[] for _ in texts]
        for group, callback in requests.alike(runs, lambda run: shapes[run[0]], self.batch_size, progress):
            members = [row for row, _ in group]
            seeds = [
                requests.noise_seed((request.seeds[row] + number * STRIDE) % 2**63, request.texts[row])
                for row, number in group
            ]
            latents = sample(
                in_turn(
                    self._around(shapes[members[0]][1]) if sampling.loop else self._denoise,
                    [conditions[row] for row in members],
                    *when,
                ),
                self.process,
                chosen,
                stack([conditions[row][0][0] for row in members]),
                Noise(shapes[members[0]], seeds, self.device),
                negative=stack([conditions[row][0][1] for row in members]),
                reference=together([references[row] for row in members]) if references else None,
                callback=callback,
            )
            for row, latent in zip(members, latents, strict=True):
                sound = self._decode(latent[None], sampling.loop)
                length = request.num_samples[row]
                sound = stretched(sound, length) if sampling.loop else sound[:, :length]
                sounds[row].append(level.finish(sound, *(kept[row] if kept else ())))
        result = torch.zeros(len(texts), self.channels, max(request.num_samples))
        down_db = [] if turned_down_db is None else turned_down_db
        down_db[:] = [0.0] * len(texts)
        for row, made in enumerate(sounds):
            tried = [sound for sound, _ in made]
            number = 0 if clap is None else nearest(tried, self.sample_rate, texts[row], clap)
            best, down_db[row] = made[number]
            result[row, :, : best.shape[-1]] = best
        return result

    def stream(
        self,
        text: str | None,
        duration_s: float | None = None,
        *,
        guidance: float | None = None,
        seed: int = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        turned_down_db: list[float] | None = None,
    ) -> Iterator[Tensor]:
        """InputError: all of a sound is denoised together, so no piece of it is ready before the others."""
        raise InputError(f"stream is not for {requests.FAMILIES[1]}; use generate")

    def _pack(self) -> None:
        """On a CPU, copies of the weights in the order and number type that its kernels want; made at first use."""
        self.system.autoencoder.freeze(self.dtype)
        packs = self.dtype != torch.float32 and can_pack(self.device, self.dtype)
        pack(self.system.denoiser, self.dtype if packs else None, self.matrices)

    def _denoise(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction for x_t; weights and times stay float32 whatever the products are computed in."""
        lower = self.dtype != torch.float32
        with _quiet(), torch.autocast(self.device.type, self.dtype, enabled=lower):
            return self.system.denoiser(x_t, t, conditioning)

    def _conditioning(
        self, text: str | None, duration_s: float, sampling: Sampling, by_parts: bool
    ) -> list[Guided]:
        """One sound's conditions on the denoiser's device: one or, where its text changes, one for each text."""
        parts = events(text) if by_parts and text else [text]
        if sampling.schedule is not None or sampling.to is not None:
            parts = [
                text,
                *([sampling.to] if sampling.to else []),
                *(part for _, part in sampling.schedule or ()),
            ]
        seconds = torch.tensor([duration_s])
        found = [self.system.conditioner.guided([part], seconds, sampling.negative) for part in parts]
        if sampling.to is not None:
            share = requests.morph(sampling)
            (first, first_away), (second, second_away) = found
            found = [(mix(first, second, share), mix(first_away, second_away, share))]
        return [(given.to(self.device), away.to(self.device)) for given, away in found]

    def _borders(self, sampling: Sampling) -> tuple[list[float], float] | tuple[()]:
        """In which latent frames the texts of a schedule take turns, and in how many one passes into the next."""
        if sampling.schedule is None:
            return ()
        rate = self.sample_rate / self.system.autoencoder.hop_length
        fade = rate * (CROSSFADE_S if sampling.crossfade_s is None else sampling.crossfade_s)
        return [second * rate + fade / 2 for second, _ in sampling.schedule], fade

    def _around(self, num_frames: int) -> Denoise:
        """The denoiser for a loop of so many latent frames."""
        return around(self._denoise, self._seen_frames(num_frames))

    def _seen_frames(self, num_frames: int) -> int:
        """How many latent frames the denoiser sees of a loop."""
        autoencoder = self.system.autoencoder
        overlap = round(OVERLAP_S * self.sample_rate / autoencoder.hop_length)
        window = None if self.window_s is None else autoencoder.latent_shape(self.window_s)[1]
        return seen_frames(num_frames, overlap, self._frame_multiple, window)

    def _seen_s(self, duration_s: float, sampling: Sampling) -> float:
        """Seconds of sound that the denoiser sees; of a loop it is to make no end."""
        rate = self.sample_rate / self.system.autoencoder.hop_length
        return self._seen_frames(*frames_of([duration_s], rate)) / rate if sampling.loop else duration_s

    def _decode(self, latents: Tensor, is_loop: bool = False) -> Tensor:
        """Latents [1, ...] -> audio [C, N] on the CPU."""
        autoencoder = self.system.autoencoder
        made = autoencoder.decode_loop(latents) if is_loop else autoencoder.decode(latents)
        return finite(made[0].float().cpu(), "samples")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what diffusers, transformers and torch say of their own future, unused ids and kernels."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # a slower kernel
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            yield
    finally:
        logger.setLevel(level)


def _replace_text(released: Released, text_encoder: str, where: str | Path) -> None:
    """Read texts by another T5, or CLAP where there is no T5, than the one that the system names."""
    conditioner = released.system.conditioner
    config = released.system.config.conditioner.text
    if config is None and conditioner.clap is not None:
        conditioner.clap.name = text_encoder
    elif config is None or config.embedded:
        raise InputError(f"{where} has no T5 that could be replaced; drop the text encoder")
    else:
        conditioner.text = TextStates(dataclasses.replace(config, encoder=text_encoder))
