"""CLAP embeddings of texts and sounds: transformers' ClapModel, frozen, opened when first used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen import hub
from audiogen.audio import resample
from audiogen.errors import InputError

LAYOUTS = (
    hub.Layout("safetensors", ("config.json", "model.safetensors"), ("*.json", "*.txt", "model.safetensors")),
    hub.Layout("pickled", ("config.json", "pytorch_model.bin"), ("*.json", "*.txt", "pytorch_model.bin")),
)


class Clap:
    """A CLAP model of a directory or the hub; its embeddings [B, E] have length 1."""

    def __init__(self, name_or_directory: str | None, opened: tuple[Any, Any, Any] | None = None):
        """opened: model, tokenizer and feature extractor, for what is open already."""
        self.name = name_or_directory
        self._opened = opened

    def _open(self) -> tuple[Any, Any, Any]:
        if self._opened is None:
            # here, because these three import vision models along
            from transformers.models.auto.tokenization_auto import AutoTokenizer
            from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor
            from transformers.models.clap.modeling_clap import ClapModel

            assert self.name is not None
            try:
                path = self.name if Path(self.name).is_dir() else str(hub.fetch(self.name, LAYOUTS))
                model = ClapModel.from_pretrained(path).eval().requires_grad_(False)
                tokenizer = AutoTokenizer.from_pretrained(path)
                extractor = ClapFeatureExtractor.from_pretrained(path)
            except (
                Exception
            ) as error:  # transformers and tokenizers raise a dozen kinds for what a file lacks
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"CLAP model {self.name!r} cannot be opened ({reason}); give a directory with a ClapModel, its "
                    "tokenizer and feature extractor, or a hub id such as laion/clap-htsat-unfused"
                ) from error
            self._opened = (model, tokenizer, extractor)
        return self._opened

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, E]; each goes through by itself."""
        model, tokenizer, _ = self._open()
        rows = []
        for text in texts:
            words = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
            found = model.get_text_features(
                input_ids=words["input_ids"], attention_mask=words["attention_mask"]
            )
            rows.append(_tensor(found))
        return torch.cat(rows)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Audio [B, C, N] -> [B, E], of its middle where it is longer than CLAP looks at (10 s).

        Cut here: transformers' feature extractor takes a random piece.
        """
        model, _, extractor = self._open()
        rows = []
        for sound in audio.float().cpu().mean(dim=1, keepdim=True):
            mono = resample(sound, sample_rate, extractor.sampling_rate)[0]
            start = max(0, len(mono) - extractor.nb_max_samples) // 2
            piece = mono[start : start + extractor.nb_max_samples].numpy()
            features = extractor(
                piece, sampling_rate=extractor.sampling_rate, truncation="rand_trunc", return_tensors="pt"
            )
            rows.append(_tensor(model.get_audio_features(input_features=features["input_features"])))
        return torch.cat(rows)


def _tensor(features: Any) -> Tensor:
    """The embedding: transformers 5 gives an output object, 4 the tensor itself."""
    return features if isinstance(features, Tensor) else features.pooler_output
