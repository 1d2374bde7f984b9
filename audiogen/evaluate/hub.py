"""CLAP and AST through transformers, from the Hugging Face hub or a directory; weights from safetensors only.

Both hear a window of fixed length. A longer sound is heard through as few windows as cover it, spread evenly, whose
results are averaged: what the feature extractors of transformers do instead, a random or the first part of it, would
make figures depend on chance or leave sound unheard.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers.configuration_utils import PretrainedConfig
from transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer import (
    ASTFeatureExtractor,
)
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import (
    ASTForAudioClassification,
)
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor
from transformers.models.clap.modeling_clap import ClapModel

from audiogen.errors import InputError
from audiogen.evaluate.embedders import Embedded, mono, to_numpy, windows
from audiogen.files import checkpoint

CLAP_TYPE, AST_TYPE = "clap", "audio-spectrogram-transformer"  # as config.json names them
TEXTS_AT_ONCE = 32


class ClapEmbedder:
    """CLAP (Wu et al., arXiv:2211.06687): unit vectors of sounds and texts in one space; no labels.

    A sound shorter than the window (10 s) is repeated to fill it, as in the model's training; one that is longer is
    the unit vector along the mean of its windows' unit vectors. The fusion of long sounds, which needs random crops,
    is not used.
    """

    reads_text: ClassVar[bool] = True

    def __init__(self, name_or_dir: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError where the model is missing, cannot be reached, or is no CLAP."""
        self.model = _open(CLAP_TYPE, ClapModel, name_or_dir)
        self.extractor = _fetch(CLAP_TYPE, ClapFeatureExtractor.from_pretrained, name_or_dir)
        self.tokenizer = _fetch(CLAP_TYPE, AutoTokenizer.from_pretrained, name_or_dir)
        self.name = f"clap:{_short(name_or_dir)}"
        self.identity = checkpoint.identity(self.model.state_dict())
        self.sample_rate: int = self.extractor.sampling_rate
        self.labels: list[str] = []
        self.device = torch.device(device)
        self.model.to(self.device)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Embedded:
        cut = windows(mono(audio), self.extractor.nb_max_samples)  # [B, windows, n]
        inputs = self.extractor(
            list(rearrange(cut, "b w n -> (b w) n").cpu().numpy()),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        )
        features = inputs["input_features"].to(self.device)
        # The extractor marks one sound of a batch as longer at random, if none is, for the sake of training.
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.device)
        pooled = self.model.audio_model(input_features=features, is_longer=is_longer).pooler_output
        vectors = normalize(self.model.audio_projection(pooled), dim=-1)
        return Embedded(to_numpy(_unit_mean(vectors, len(audio))), None)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> unit vectors [n, D]; what is beyond the tokens the model reads is cut off."""
        if not texts:
            raise InputError(f"there are no texts for embedder {self.name}; give at least one")
        parts = []
        positions = self.model.config.text_config
        longest = (
            positions.max_position_embeddings - positions.pad_token_id - 1
        )  # RoBERTa counts on from padding
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self.tokenizer(
                list(texts[start : start + TEXTS_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(self.device)
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            parts.append(to_numpy(normalize(self.model.text_projection(pooled), dim=-1)))
        return np.concatenate(parts)


class AstEmbedder:
    """AST (Gong et al., arXiv:2104.01778), fine-tuned to classify: the pooled output, and a softmax over the labels.

    AudioSet's own training puts a sigmoid on each label; KL and the inception score want a distribution, which the
    softmax is, and both order the labels alike. A sound beyond the window (10.24 s) is the mean of its windows, in
    embedding and probabilities.
    """

    reads_text: ClassVar[bool] = False

    def __init__(self, name_or_dir: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError where the model is missing, cannot be reached, or is no AST with a classifier."""
        self.model = _open(AST_TYPE, ASTForAudioClassification, name_or_dir)
        self.extractor = _fetch(AST_TYPE, ASTFeatureExtractor.from_pretrained, name_or_dir)
        self.name = f"ast:{_short(name_or_dir)}"
        self.identity = checkpoint.identity(self.model.state_dict())
        self.sample_rate: int = self.extractor.sampling_rate
        config = self.model.config
        self.labels = [config.id2label[number] for number in range(config.num_labels)]
        self.device = torch.device(device)
        self.model.to(self.device)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Embedded:
        samples = 400 + 160 * (self.extractor.max_length - 1)  # frames of 400, every 160, whatever the rate
        cut = windows(mono(audio), samples)  # [B, windows, n]
        if cut.shape[-1] < 400:  # one frame at least
            cut = torch.nn.functional.pad(cut, (0, 400 - cut.shape[-1]))
        values = self.extractor(
            list(rearrange(cut, "b w n -> (b w) n").cpu().numpy()),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        )["input_values"].to(self.device)
        pooled = self.model.audio_spectrogram_transformer(values).pooler_output
        probabilities = self.model.classifier(pooled).softmax(-1)
        by_clip = [rearrange(x, "(b w) d -> b w d", b=len(audio)).mean(1) for x in (pooled, probabilities)]
        return Embedded(to_numpy(by_clip[0]), to_numpy(by_clip[1]))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise InputError(f"embedder {self.name} does not read text; use clap:HUB_ID_OR_DIR for a text score")


def _unit_mean(vectors: Tensor, num_clips: int) -> Tensor:
    """Unit vectors [clips * windows, D] -> one for each clip [clips, D]."""
    return normalize(rearrange(vectors, "(b w) d -> b w d", b=num_clips).mean(1), dim=-1)


def _open(kind: str, model_class: Any, name_or_dir: str) -> Any:
    """The model in float32 and evaluation mode, all of whose weights were in the file."""
    found = _fetch(kind, PretrainedConfig.get_config_dict, name_or_dir)[0].get("model_type")
    if found is None:
        raise InputError(
            f"{name_or_dir} holds no model that transformers wrote (a config.json with a model_type)"
        )
    if found != kind:
        raise InputError(f"{name_or_dir} holds a model of type {found!r}; {kind!r} is needed here")
    model, loading = _fetch(
        kind,
        model_class.from_pretrained,
        name_or_dir,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    state = model.state_dict()
    lacking = sorted(  # a file may leave out integers: they are indices, which the constructor fills in
        [name for name in loading["missing_keys"] if state[name].is_floating_point()]
        + [str(name) for name in loading["mismatched_keys"]]
    )
    if lacking:  # transformers would go on with random weights
        raise InputError(
            f"{name_or_dir} lacks {len(lacking)} weights of {model_class.__name__} ({lacking[0]}); give a whole model"
        )
    return model.eval().requires_grad_(False)


def _fetch(kind: str, load: Any, name_or_dir: str, **options: Any) -> Any:
    """What `load` gives; its failure is an InputError with the first line of the reason."""
    hub = logging.getLogger("huggingface_hub")  # it tells of every retry, in lines of its own
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return load(name_or_dir, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name_or_dir} cannot be opened as a model of type {kind!r} ({reason}); give a directory as "
            "transformers writes it, with safetensors weights, or a hub id while the hub can be reached"
        ) from error
    finally:
        hub.setLevel(level)


def _short(name_or_dir: str) -> str:
    """A hub id as it is; of a directory only its name."""
    return Path(name_or_dir).resolve().name if Path(name_or_dir).is_dir() else name_or_dir
