"""What a language model's training starts from: its codec, a released or own model, or new weights and a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from audiogen import distributed
from audiogen.config import to_plain
from audiogen.data.codes import CodeDataset
from audiogen.data.dataset import AudioDataset
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Codec
from audiogen.lm import lora
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.codec_pretrained import load_codec, save_codec
from audiogen.models.lm_pretrained import CODEC_FOLDER, CodecReference, PretrainedLM, describe_lm, load_lm
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import train_vocabulary

if TYPE_CHECKING:
    from audiogen.train.lm import LMRecipe

INHERITED = ("model", "text", "codec", "dual_mono")  # keys that init_from decides


def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The inherited keys of a recipe that trains a model on, own or released; no weights are read."""
    found = describe_lm(recipe["init_from"], recipe.get("text_encoder"))
    return {
        "model": to_plain(found.lm),
        "text": to_plain(found.text),
        "codec": found.codec.location,
        "dual_mono": found.codec.dual_mono,
    }


def open_codec(name_or_directory: str, dual_mono: bool, model: LMConfig, device: torch.device) -> Codec:
    """The codec whose tokens `model` learns: bundled, own, released, or DAC."""
    codec: Codec = load_codec(name_or_directory, device, dual_mono)
    if codec.segmented:
        raise InputError(
            f"codec={name_or_directory} codes a sound in overlapping segments, each with a loudness of its own, which "
            "no language model here predicts; choose a codec without segments"
        )
    if model.num_codebooks > codec.num_codebooks or model.codebook_size != codec.codebook_size:
        raise InputError(
            f"model has {model.num_codebooks} codebooks of {model.codebook_size}, but codec {name_or_directory} has "
            f"{codec.num_codebooks} of {codec.codebook_size}: change model.num_codebooks, model.codebook_size"
        )
    return codec


def open_model(recipe: LMRecipe, codec: Codec, device: torch.device, frozen: torch.dtype) -> PretrainedLM:
    """The model of `init_from`, ready to be trained whole, or by new adapters alone where the recipe has `lora`.

    frozen: what the forward pass computes its products in. Matrices that are not trained are kept in it: the products
    are the same. Norms and embeddings are rounded to it, too, but kept in float32, so that the sum which all layers
    add to is float32, as where everything is trained.
    """
    assert recipe.init_from is not None
    dtype = frozen if recipe.lora else torch.float32
    found = load_lm(recipe.init_from, device, dtype, recipe.text_encoder)
    if found.codec.identity not in ("", codec.identity):
        raise InputError(
            f"{recipe.init_from} was trained on the tokens of codec {found.codec.identity}, but "
            f"{found.codec.location} is {codec.identity}; put the codec it was trained with there"
        )
    try:
        found.conditioner.encoder_stack()  # opened now: that it is missing is said before anything is written
    except InputError as error:
        raise InputError(f"{error} (text_encoder= takes the place of the one of init_from)") from error
    found.lm.requires_grad_(recipe.lora is None)
    found.conditioner.requires_grad_(recipe.lora is None)
    if recipe.lora:
        for layer in found.lm.modules():
            if isinstance(layer, (nn.Embedding, nn.LayerNorm)):
                layer.float()
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        lora.add(found.lm, recipe.lora)
    return found


def keep_codec(name_or_directory: str, codec: Codec, dual_mono: bool, run: Path) -> CodecReference:
    """A bundled codec by its name; of any other a copy in the run directory, which so stays complete."""
    target = run / CODEC_FOLDER
    if target.exists() and checkpoint.latest(run) and load_codec(target).identity != codec.identity:
        raise InputError(
            f"{run} was trained on tokens of another codec than {name_or_directory}; choose another out="
        )
    source = Path(name_or_directory)
    if not source.exists() and name_or_directory in checkpoint.bundled_names():
        return CodecReference(name_or_directory, codec.identity, dual_mono)
    if distributed.rank() == 0 and source.resolve() != target.resolve():
        if is_own(source) and not dual_mono:
            checkpoint.copy_model(source, target)
        else:
            save_codec(target, codec)
    distributed.barrier()
    return CodecReference(str(target), codec.identity, dual_mono)


def is_own(directory: Path) -> bool:
    """Whether this is a model directory of ours, which can be copied as it is."""
    try:
        checkpoint.read_config(directory)
    except InputError:
        return False
    return True


def new_model(
    recipe: LMRecipe, reference: CodecReference, train: AudioDataset | CodeDataset, run: Path
) -> PretrainedLM:
    """A language model and text encoder with random weights, or a pretrained text encoder."""
    text = new_text(recipe.text, train, run, recipe.seed)
    torch.manual_seed(seed_for(recipe.seed, "weights"))
    return PretrainedLM(TokenLM(recipe.model), text, reference, 0, {})


def new_text(config: TextConfig, train: AudioDataset | CodeDataset, run: Path, seed: int) -> T5Conditioner:
    """A text encoder to be trained along with a new model; its vocabulary is built from the training captions."""
    if not config.embedded:
        return T5Conditioner(config)
    path = run / "vocabulary.model"
    with distributed.first_process_first():
        if not path.exists():
            captions = (caption for index in range(len(train)) for caption in train.captions(index))
            train_vocabulary(captions, config.vocab_size, path)
    torch.manual_seed(seed_for(seed, "text weights"))
    return T5Conditioner(config, path.read_bytes())
