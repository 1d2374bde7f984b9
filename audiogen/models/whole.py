"""What makes diffusion on mel latents a whole pipeline of diffusers: its text parts, and the pipeline's code.

pipeline.py                  mel_pipeline.py of this package, of which nothing else is needed
text_encoder/ tokenizer/     the T5 as transformers has it, also the small one that was trained along
projection/                  from its states to the denoiser's tokens and vector, with a copy of pipeline.py

The other systems have pipelines of diffusers' own: see `pipelines.pipeline_of`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from audiogen.config import to_plain
from audiogen.diffusion.process import ProcessConfig
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.systems import LatentSystem
from audiogen.files import checkpoint, writing
from audiogen.models import mel_pipeline
from audiogen.models.export import from_vocabulary
from audiogen.text.encoder import SHARED, STACK, quiet
from audiogen.text.vocabulary import Vocabulary

CODE, PROJECTION = "pipeline", "projection"
FLOW = ("one_is", "t_min", "time_scale")


def save_mel_pipeline(
    directory: Path, system: LatentSystem, process: ProcessConfig, sampling: Sampling
) -> dict[str, Any]:
    """Write these parts -> their entries of model_index.json, those of the pipeline's settings included."""
    conditioner, text = system.conditioner, system.conditioner.text
    assert text is not None and system.config.mel_autoencoder is not None
    embedded, found = text.embedded, conditioner.config
    if embedded is None:
        text.save_frozen(directory / "text_encoder", directory / "tokenizer")
        tokenizer = writing.read_json(directory / "tokenizer" / "tokenizer_config.json")
        width = text.config.width
    else:
        stack, words = embedded.text_encoder()
        assert isinstance(words, Vocabulary)
        tensors = {f"{STACK}{name}": tensor for name, tensor in stack.state_dict().items()}
        tensors[SHARED] = tensors.pop(f"{STACK}embed_tokens.weight")
        checkpoint.write_tensors(directory / "text_encoder" / "model.safetensors", tensors, {"format": "pt"})
        shape = stack.config.to_dict() | {"architectures": ["T5EncoderModel"]}
        writing.write_json(directory / "text_encoder" / "config.json", shape)
        with writing.storing(directory / "tokenizer"):
            from_vocabulary(words).save_pretrained(directory / "tokenizer")
        tokenizer, width = {"tokenizer_class": "PreTrainedTokenizerFast"}, stack.config.d_model
    projection = mel_pipeline.TextProjection(
        width,
        None if embedded is None else text.config.width,
        None if conditioner.pooled is None else found.pooled_dim,
        found.text_length,
    )
    parts = {"output_proj": None if embedded is None else embedded.output_proj, "pooled": conditioner.pooled}
    with torch.no_grad():
        for name, part in parts.items():
            if part is not None:
                projection.get_submodule(name).load_state_dict(part.state_dict())
    with quiet(), writing.storing(directory / PROJECTION):
        projection.save_pretrained(directory / PROJECTION)
    code = Path(mel_pipeline.__file__).read_bytes()
    for folder in (directory, directory / PROJECTION):
        writing.write_bytes_atomic(folder / f"{CODE}.py", code)
    mel = to_plain(system.config.mel_autoencoder.mel)
    vocoder = ["transformers", "SpeechT5HifiGan"] if system.config.mel_autoencoder.vocoder else [None, None]
    return {
        "_class_name": [CODE, "MelPipeline"],
        "_diffusers_version": diffusers.__version__,
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer.get("tokenizer_class", "T5Tokenizer")],
        PROJECTION: [CODE, "TextProjection"],
        "vocoder": vocoder,
        "mel": {key: value for key, value in mel.items() if key != "floor"},
        "flow": {key: getattr(process, key) for key in FLOW} if process.kind == "flow" else None,
        "eta": sampling.eta,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "max_tokens": text.config.max_tokens,
        "unconditional": found.unconditional,
    }
