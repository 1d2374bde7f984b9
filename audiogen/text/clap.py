"""CLAP embeddings of texts and sounds: transformers' ClapModel, frozen, opened when first used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging as transformers_log

from audiogen.audio import resample
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub

LAYOUTS = (
    hub.Layout("safetensors", ("config.json", "model.safetensors"), ("*.json", "*.txt", "model.safetensors")),
)
MAX_TOKENS = 77  # of a text; what follows is cut off
TEXT_ONLY = "ClapTextModelWithProjection"  # what AudioLDM's directories hold


class OpenClap(NamedTuple):
    """transformers' model, tokenizer and feature extractor; the last is None where there is no audio branch."""

    model: Any
    tokenizer: Any
    extractor: Any


class Clap:
    """A CLAP model of a directory or the hub; its embeddings [B, E] have length 1."""

    def __init__(
        self, name_or_directory: str | None, tokenizer: str | None = None, extractor: str | None = None
    ):
        """tokenizer, extractor: their directories, where they do not lie beside the model."""
        self.name = name_or_directory
        self._tokenizer, self._extractor = tokenizer, extractor
        self._opened: OpenClap | None = None

    def opened(self) -> OpenClap:
        """The model, opened if it is not yet; InputError where that fails."""
        if self._opened is not None:
            return self._opened
        # here, because these three import vision models along
        from transformers.models.auto.tokenization_auto import AutoTokenizer
        from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor
        from transformers.models.clap.modeling_clap import ClapModel, ClapTextModelWithProjection

        assert self.name is not None
        try:
            path = self.name if Path(self.name).is_dir() else str(hub.fetch(self.name, LAYOUTS))
            text_only = TEXT_ONLY in checkpoint.read_json(Path(path) / "config.json").get("architectures", ())
            kind = ClapTextModelWithProjection if text_only else ClapModel
            with quiet():
                self._opened = OpenClap(
                    kind.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False),
                    AutoTokenizer.from_pretrained(self._tokenizer or path),
                    None if text_only else ClapFeatureExtractor.from_pretrained(self._extractor or path),
                )
        except Exception as error:  # transformers and tokenizers raise a dozen kinds for what a file lacks
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"CLAP model {self.name!r} cannot be opened ({reason}); give a directory with a ClapModel, its "
                "tokenizer and feature extractor, or a hub id such as laion/clap-htsat-unfused"
            ) from error
        return self._opened

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, E]; each goes through by itself."""
        model, tokenizer, extractor = self.opened()
        rows = []
        for text in texts:
            words = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            inputs = {key: words[key] for key in ("input_ids", "attention_mask")}
            found = model(**inputs).text_embeds if extractor is None else model.get_text_features(**inputs)
            rows.append(F.normalize(embedding(found), dim=-1))
        return torch.cat(rows)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Audio [B, C, N] -> [B, E], of its middle where it is longer than CLAP looks at (10 s).

        Cut here: transformers' feature extractor takes a random piece.
        """
        model, _, extractor = self.opened()
        if extractor is None:
            raise InputError(
                f"CLAP model {self.name!r} has no audio branch; give a whole one, such as laion/clap-htsat-unfused"
            )
        rows = []
        for sound in audio.float().cpu().mean(dim=1, keepdim=True):  # [1, N]
            mono = resample(sound, sample_rate, extractor.sampling_rate)[0]
            start = max(0, len(mono) - extractor.nb_max_samples) // 2
            piece = mono[start : start + extractor.nb_max_samples].numpy()
            features = extractor(
                piece, sampling_rate=extractor.sampling_rate, truncation="rand_trunc", return_tensors="pt"
            )
            found = embedding(model.get_audio_features(input_features=features["input_features"]))
            rows.append(F.normalize(found, dim=-1))
        return torch.cat(rows)

    def save(self, directory: Path) -> dict[str, list[str]]:
        """Write it in diffusers' folders below `directory`; returns the class of each folder."""
        model, tokenizer, extractor = self.opened()
        parts = {"text_encoder": model, "tokenizer": tokenizer}
        if extractor is not None:
            parts["feature_extractor"] = extractor
        with quiet():
            for folder, part in parts.items():
                part.save_pretrained(directory / folder)
        return {folder: ["transformers", type(part).__name__] for folder, part in parts.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws for a second of reading or writing; that of a download stays."""
    shown = transformers_log.is_progress_bar_enabled()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_log.enable_progress_bar()


def embedding(features: Any) -> Tensor:
    """The embedding: transformers 5 gives an output object, 4 the tensor itself."""
    return features if isinstance(features, Tensor) else features.pooler_output
