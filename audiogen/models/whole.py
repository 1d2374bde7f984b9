"""What makes a latent system a whole pipeline of diffusers, which has none for it: its text parts, and the code.

pipeline.py                  latent_pipeline.py of this package, of which nothing else is needed
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
from audiogen.models import latent_pipeline
from audiogen.models.export import from_vocabulary
from audiogen.text.encoder import SHARED, STACK, quiet
from audiogen.text.vocabulary import Vocabulary

CODE, PROJECTION = "pipeline", "projection"
FLOW = ("one_is", "t_min", "time_scale")


def save_pipeline(
    directory: Path,
    system: LatentSystem,
    process: ProcessConfig,
    sampling: Sampling,
    window_s: float | None = None,
) -> dict[str, Any]:
    """Write these parts -> their entries of model_index.json, those of the pipeline's settings included."""
    conditioner, text = system.conditioner, system.conditioner.text
    assert text is not None
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
    projection = latent_pipeline.TextProjection(
        width,
        None if embedded is None else text.config.width,
        None if conditioner.pooled is None else found.pooled_dim,
        found.text_length,
        None
        if found.seconds is None
        else {key: getattr(found.seconds, key) for key in ("width", "min_s", "max_s")},
        "seconds_start" in found.uses,
    )
    parts = {"pooled": conditioner.pooled, "times": conditioner.seconds}
    parts["output_proj"] = None if embedded is None else embedded.output_proj
    with torch.no_grad():
        for name, part in parts.items():
            if part is not None:
                projection.get_submodule(name).load_state_dict(part.state_dict())
    with quiet(), writing.storing(directory / PROJECTION):
        projection.save_pretrained(directory / PROJECTION)
    code = Path(latent_pipeline.__file__).read_bytes()
    for folder in (directory, directory / PROJECTION):
        writing.write_bytes_atomic(folder / f"{CODE}.py", code)
    mel, wave = system.config.mel_autoencoder, system.config.waveform_autoencoder
    vocoder = mel is not None and mel.vocoder is not None
    return {
        "_class_name": [CODE, "LatentPipeline"],
        "_diffusers_version": diffusers.__version__,
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer.get("tokenizer_class", "T5Tokenizer")],
        PROJECTION: [CODE, "TextProjection"],
        "vocoder": ["transformers", "SpeechT5HifiGan"] if vocoder else [None, None],
        "unet" if mel is None else "transformer": [None, None],
        "mel": None
        if mel is None
        else {key: value for key, value in to_plain(mel.mel).items() if key != "floor"},
        "wave": None
        if wave is None
        else {"bands": wave.bands, "scale": float(system.autoencoder.scale_factor)},
        "window_s": window_s,
        "flow": {key: getattr(process, key) for key in FLOW} if process.kind == "flow" else None,
        "eta": sampling.eta,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "max_tokens": text.config.max_tokens,
        "unconditional": found.unconditional,
    }
