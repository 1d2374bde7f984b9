"""What training starts from: a codec, a released or own model, or new weights with a text encoder and a vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from audiogen import distributed
from audiogen.codec.segmented import SegmentedCodec
from audiogen.config import to_plain
from audiogen.data.captions import Captioned, wordings
from audiogen.data.seeds import seed_for
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, checkpoints
from audiogen.interfaces import Codec
from audiogen.lm import lora
from audiogen.lm.lora import LoraConfig
from audiogen.lm.model import LMConfig
from audiogen.models.build import load_codec, load_lm
from audiogen.models.find import LM, bundled, find
from audiogen.models.own import CODEC_FOLDER, save_codec
from audiogen.models.parts import CodecReference, PretrainedLM
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import Vocabulary, train_vocabulary


def open_codec(name_or_directory: str, dual_mono: bool, model: LMConfig, device: torch.device) -> Codec:
    """The codec whose tokens `model` learns: bundled, own, released, or DAC."""
    codec = load_codec(name_or_directory, device, dual_mono)
    if isinstance(codec, SegmentedCodec):
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


def open_model(
    init_from: str,
    text_encoder: str | None,
    adapters: LoraConfig | None,
    seed: int,
    codec: Codec,
    device: torch.device,
    frozen: torch.dtype,
) -> PretrainedLM:
    """The model of `init_from`, ready to be trained whole, or with new adapters alone where there are `adapters`.

    frozen: dtype of the products in the forward pass. Matrices that are not trained are kept in it: the products are
    the same. Norms and embeddings are rounded to it, too, but kept in float32, so that the sum that all layers add to
    is float32, as in a model that is trained whole.
    """
    found = load_lm(init_from, device, frozen if adapters else torch.float32, text_encoder)
    if found.codec.identity not in ("", codec.identity):
        raise InputError(
            f"{init_from} was trained on the tokens of codec {found.codec.identity}, but "
            f"{found.codec.location} is {codec.identity}; put the codec it was trained with there"
        )
    try:
        found.conditioner.text_encoder()  # opened now, so that nothing is written if it is missing
    except InputError as error:
        raise InputError(f"{error} (text_encoder= takes the place of the one of init_from)") from error
    found.lm.requires_grad_(adapters is None)
    found.conditioner.requires_grad_(adapters is None)
    if adapters:
        for layer in found.lm.modules():
            if isinstance(layer, (nn.Embedding, nn.LayerNorm)):
                layer.float()
        torch.manual_seed(seed_for(seed, "weights"))
        lora.add(found.lm, adapters)
    return found


def keep_codec(name_or_directory: str, codec: Codec, dual_mono: bool, run: Path) -> CodecReference:
    """A bundled codec by its name; of any other a copy in the run directory, which is then complete in itself."""
    target = run / CODEC_FOLDER
    if target.exists() and checkpoints.latest(run) and load_codec(target).identity != codec.identity:
        raise InputError(
            f"{run} was trained on tokens of another codec than {name_or_directory}; choose another out="
        )
    source = Path(name_or_directory)
    if not source.exists() and name_or_directory in bundled():
        return CodecReference(name_or_directory, codec.identity, dual_mono)
    if distributed.rank() == 0 and source.resolve() != target.resolve():
        if is_own(source) and not dual_mono:
            checkpoint.copy_model(source, target)
        else:
            save_codec(target, codec)
    distributed.barrier()
    return CodecReference(str(target), codec.identity, dual_mono)


def is_own(directory: Path) -> bool:
    """Whether this is a model directory in our own format, which can be copied as it is."""
    try:
        checkpoint.read_config(directory)
    except InputError:
        return False
    return True


def new_text(config: TextConfig, train: Captioned, run: Path, seed: int) -> T5Conditioner:
    """A text encoder to be trained along with a new model; its vocabulary is built from the training captions."""
    if not config.embedded:
        return T5Conditioner(config)
    path = run / "vocabulary.model"
    with distributed.first_process_first():
        if not path.exists():
            captions = (caption for clip in wordings(train) for caption in clip)
            train_vocabulary(captions, config.vocab_size, path)
    torch.manual_seed(seed_for(seed, "text weights"))
    return T5Conditioner(config, path.read_bytes())


def new_system(
    config: SystemConfig, text_from: str | None, train: Captioned, run: Path, seed: int
) -> LatentSystem:
    """A latent system with new weights; its embedded text encoder is text_from's, or new with a new vocabulary."""
    text, given = config.conditioner.text, None
    if text_from:
        given = given_text(config, text_from)
    elif text is not None and text.embedded:
        given = new_text(text, train, run, seed)
    vocabulary = None
    if given is not None:
        assert isinstance(given.tokenizer, Vocabulary)
        vocabulary = given.tokenizer.model
    torch.manual_seed(seed_for(seed, "weights"))
    system = LatentSystem(config, vocabulary)
    if given is not None:
        assert system.conditioner.text is not None and system.conditioner.text.embedded is not None
        system.conditioner.text.embedded.load_state_dict(given.state_dict())
        system.conditioner.text.requires_grad_(not text_from)
    return system


def given_text(config: SystemConfig, text_from: str) -> T5Conditioner:
    """The text encoder of text_from; InputError where it is not the one that the system's config describes."""
    given = T5Conditioner.load(find(text_from, LM).path / "text")
    if given.config != config.conditioner.text:
        raise InputError(
            f"system.conditioner.text is not that of text_from={text_from}; make it {to_plain(given.config)}"
        )
    return given


def freeze_text(system: LatentSystem, text_from: str, init_from: str | None) -> None:
    """Freeze the text encoder of a system that is trained further; InputError where it is not that of text_from."""
    given = given_text(system.config, text_from)
    text = system.conditioner.text
    assert text is not None and text.embedded is not None
    if checkpoint.identity(text.embedded.state_dict()) != checkpoint.identity(given.state_dict()):
        raise InputError(
            f"the text encoder of init_from={init_from} is not that of text_from={text_from}; with "
            "text_from=null it is trained further"
        )
    text.requires_grad_(False)
