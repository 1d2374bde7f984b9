"""CLAP embeddings of texts and sounds: transformers' ClapModel, frozen, opened when first used.

CLAP (arXiv:2211.06687) reads windows of fixed length, 10 s in the released models. A longer sound is cut here, into its
middle or into windows whose embeddings are averaged: transformers' feature extractor takes a piece at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers  # its models come when they are first named: CLAP's import vision models along
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio import resample
from audiogen.config import short
from audiogen.errors import InputError, opening, plain_text
from audiogen.files import hub, writing
from audiogen.text.encoder import quiet

_NEEDED = ("config.json", "model.safetensors")
LAYOUTS = (hub.Layout("safetensors", _NEEDED, ("*.json", "*.txt", "model.safetensors")),)
ADVICE = (
    "give a directory with a ClapModel, its tokenizer and feature extractor, or a hub id such as "
    "laion/clap-htsat-unfused"
)
MAX_TOKENS = 77  # of a text, in the authors' training; what follows is cut off
TEXT_ONLY = "clap_text_model"  # model_type of what AudioLDM's directories hold
FLOOR = 1e-10  # smallest power in a mel bin, -100 dB


class ClapParts(NamedTuple):
    """transformers' model, tokenizer and feature extractor; the last is None where there is no audio branch."""

    model: Any
    tokenizer: Any
    extractor: Any


class Clap:
    """A CLAP model of a directory or the hub; its embeddings [B, E] have length 1 and are on the CPU.

    Texts and the middles of sounds go through one by one, so that an embedding does not depend on its batch.
    """

    def __init__(
        self,
        name_or_directory: str | None,
        tokenizer: str | None = None,
        extractor: str | None = None,
        device: str | torch.device = "cpu",
    ):
        """tokenizer, extractor: their directories, where they do not lie beside the model."""
        self.name = name_or_directory
        self._tokenizer, self._extractor, self._device = tokenizer, extractor, torch.device(device)

    @cached_property
    def parts(self) -> ClapParts:
        """The model, which is opened for it; InputError where that fails."""
        assert self.name is not None
        with opening(f"CLAP model {self.name!r}", ADVICE):
            path = hub.fetch(self.name, LAYOUTS)
            kinds = {"clap": transformers.ClapModel, TEXT_ONLY: transformers.ClapTextModelWithProjection}
            with quiet():
                model, extractor = open_model(kinds, path), None
                if model.config.model_type != TEXT_ONLY:
                    extractor = transformers.ClapFeatureExtractor.from_pretrained(self._extractor or path)
                tokenizer = transformers.AutoTokenizer.from_pretrained(self._tokenizer or path)
        return ClapParts(model.to(self._device), tokenizer, extractor)

    @property
    def reads_audio(self) -> bool:
        """Whether it has an audio branch; the model is opened for it."""
        return self.parts.extractor is not None

    @property
    def sample_rate(self) -> int:
        """Hz of the sounds in its training; InputError where it has no audio branch."""
        if not self.reads_audio:
            raise InputError(
                f"CLAP model {self.name!r} has no audio branch; give a whole one, such as laion/clap-htsat-unfused"
            )
        return int(self.parts.extractor.sampling_rate)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> Tensor:
        """B texts -> [B, E]; of a longer text the first max_tokens, and no more than the model has positions for."""
        model, tokenizer, extractor = self.parts
        config = model.config if extractor is None else model.config.text_config
        # RoBERTa's positions are counted from after the padding's id
        longest = min(max_tokens, config.max_position_embeddings - config.pad_token_id - 1)
        rows = []
        for text in texts:
            words = tokenizer(plain_text(text), truncation=True, max_length=longest, return_tensors="pt").to(
                self._device
            )
            inputs = {key: words[key] for key in ("input_ids", "attention_mask")}
            found = model(**inputs).text_embeds if extractor is None else model.get_text_features(**inputs)
            rows.append(F.normalize(embedding(found), dim=-1).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def embed_audio(
        self, audio: Tensor, sample_rate: int, windows: Literal["middle", "all"] = "middle"
    ) -> Tensor:
        """Audio [B, C, N] -> [B, E].

        windows: of a sound longer than the model's window, embed its middle, or as few windows as cover it, spread
        evenly from its start to its end, whose mean direction is the embedding. A shorter sound is repeated.
        """
        rate = self.sample_rate  # says whether there is an audio branch
        model, _, extractor = self.parts
        fused = model.config.audio_config.enable_fusion
        embeddings = []
        for batch in [audio] if windows == "all" else audio.split(1):
            mono = resample(batch.float().cpu().mean(dim=1), sample_rate, rate)  # [b, N]
            length = mono.shape[1] if windows == "middle" else extractor.nb_max_samples
            pieces = [piece for row in mono for piece in cut_windows(row, length)]
            # float64, in which the extractor works: float32 features move the figures of an evaluation
            features = clap_features(pieces, extractor, torch.float64, fused).to(self._device)
            is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self._device)  # no fusion
            found = embedding(model.get_audio_features(input_features=features, is_longer=is_longer))
            mean = rearrange(found, "(b w) e -> b w e", b=len(batch)).mean(1)  # over w windows of length 1
            embeddings.append(F.normalize(mean, dim=-1).cpu())
        return torch.cat(embeddings)

    def save(self, directory: Path) -> dict[str, list[str]]:
        """Write it in diffusers' folders below `directory`; returns the class of each folder."""
        model, tokenizer, extractor = self.parts
        folders = {"text_encoder": model, "tokenizer": tokenizer}
        if extractor is not None:
            folders["feature_extractor"] = extractor
        for folder, part in folders.items():
            with quiet(), writing.storing(directory / folder):
                part.save_pretrained(directory / folder)
        return {folder: ["transformers", type(part).__name__] for folder, part in folders.items()}


def open_model(kinds: dict[str, Any], path: Path) -> Any:
    """A directory's model, by its model_type one of transformers' classes: frozen, in float32, all weights read.

    Raises InputError for a model of another type and for missing weights.
    """
    config = writing.read_json(path / "config.json") if (path / "config.json").is_file() else {}
    found = config.get("model_type")
    if found is None:
        raise InputError("it holds no model that transformers wrote (a config.json with a model_type)")
    if found not in kinds:
        raise InputError(f"it holds a model of type {short(found)}; {next(iter(kinds))!r} is needed here")
    kind = kinds[found]
    with quiet():
        model, loading = kind.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    own = model.state_dict()
    # a file may leave out integers: they are indices, which the constructor fills in
    lacking = sorted(key for key in loading["missing_keys"] if own[key].is_floating_point())
    if lacking:  # transformers would go on with random weights
        raise InputError(f"it lacks {len(lacking)} weights of {kind.__name__}, such as {lacking[0]}")
    return model.eval().requires_grad_(False)


def cut_windows(sound: Tensor, length: int) -> list[Tensor]:
    """A sound [N] -> pieces [min(N, length)], as few as cover all of it, spread evenly from the start to the end."""
    spare, count = max(0, len(sound) - length), math.ceil(len(sound) / length)
    return [sound[(start := round(n * spare / max(1, count - 1))) : start + length] for n in range(count)]


def clap_features(
    sounds: Sequence[Tensor], extractor: Any, dtype: torch.dtype = torch.float32, fused: bool = False
) -> Tensor:
    """Mono sounds [N] at the extractor's rate -> log-mels in decibels [B, 1, T, M], float32; what the model reads.

    They equal those of transformers' ClapFeatureExtractor, which loops over the frames of one sound in Python. Of a
    longer sound the middle is taken, a shorter one is repeated. dtype: of the spectrum; float64 gives the extractor's
    features, and float32, for training, comes within 0.001 dB of them on recordings, 0.3 dB in silent bins beside a
    loud pure tone.
    fused: for a model that fuses pieces of long sounds: [B, 4, T, M], four times the same, and other mel filters.
    """
    batch = torch.stack([fit_length(sound, extractor) for sound in sounds]).to(dtype)  # [B, N]
    n_fft = extractor.fft_window_size
    window = torch.hann_window(n_fft, dtype=dtype, device=batch.device)
    spectrum = torch.stft(batch, n_fft, extractor.hop_length, window=window, return_complex=True)  # [B, F, T]
    spectrum = spectrum.to(torch.complex64)  # the extractor rounds here, too
    real, imaginary = spectrum.real.to(dtype), spectrum.imag.to(dtype)
    power = real.square().addcmul_(imaginary, imaginary)
    filters = torch.from_numpy(extractor.mel_filters if fused else extractor.mel_filters_slaney)  # [F, M]
    mel = power.transpose(1, 2) @ filters.to(batch.device, dtype)  # [B, T, M]
    decibels = (10.0 * mel.clamp(min=FLOOR).log10()).float()[:, None]
    return decibels.expand(-1, 4, -1, -1) if fused else decibels


def fit_length(sound: Tensor, extractor: Any) -> Tensor:
    """A sound [N] cut or repeated and padded to the samples of the model's window."""
    wanted, num_samples = extractor.nb_max_samples, len(sound)
    whole = wanted // num_samples  # times that it fits
    repeats = {"repeatpad": whole, "repeat": whole + 1}.get(extractor.padding, 1)
    start = max(0, num_samples - wanted) // 2
    sound = sound.repeat(repeats if num_samples < wanted else 1)[start : start + wanted]
    return F.pad(sound, (0, wanted - len(sound)))


def embedding(features: Any) -> Tensor:
    """The embedding [B, E]: transformers 5 gives an output object, 4 the tensor itself."""
    return features if isinstance(features, Tensor) else features.pooler_output
