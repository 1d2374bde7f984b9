"""What `audiogen.convert` does: open a model, and give the function that writes it in another layout."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from audiogen.codec.segmented import in_segments
from audiogen.errors import InputError
from audiogen.generators.load import AudioGen, load
from audiogen.models import onnx
from audiogen.models.build import load_codec
from audiogen.models.find import CODEC, LM, SYSTEM, Found, find
from audiogen.models.own import save_codec
from audiogen.models.pipelines import is_whole

CONVERTS = (LM, CODEC, SYSTEM)


def open_model(args: argparse.Namespace) -> Callable[[Path], None]:
    """Read the model, a generator or a codec -> what writes it to a directory."""
    found = find(args.model, kinds=CONVERTS).check(*CONVERTS)
    if found.kind == CODEC:
        return _open_codec(found, args)
    latent = found.kind == SYSTEM
    if latent and args.to in ("transformers", "onnx"):
        lacks = "transformers has no class" if args.to == "transformers" else "there are no graphs"
        raise InputError(
            f"{found.name} is a latent-diffusion system, for which {lacks}; give --to audiogen, which writes it in the "
            "layout of diffusers"
        )
    if args.to == "onnx":
        if args.dtype != "float32":
            raise InputError(f"graphs are float32; drop --dtype {args.dtype}")
        onnx.check_installed()
    if not latent and args.to == "diffusers":
        raise InputError(
            f"{found.name} is a token language model, for which diffusers has no pipeline; give --to transformers"
        )
    if latent and args.dtype != "float32":
        raise InputError(
            f"{found.name} is a latent-diffusion system, whose weights are stored in float32; drop --dtype {args.dtype}"
        )
    # An adapter is added in float32 and rounded once.
    read_as = "float32" if args.adapter is not None or latent else args.dtype
    model = load(found, "cpu", read_as, args.text_encoder, args.adapter, packed=False)
    if not isinstance(model, AudioGen):
        if args.to == "diffusers" and not is_whole(model.system.config, model.process.config):
            raise InputError(
                f"diffusers has no pipeline for {found.name}: there are those of AudioLDM, AudioLDM 2 and Stable Audio "
                "with pretrained text encoders, and one is written for other systems with one stream of text; give "
                "--to audiogen"
            )
        return model.save_pretrained
    text = model.conditioner.config
    if args.text_encoder is not None and Path(args.text_encoder).is_dir() and not text.trains_encoder:
        # A directory of this machine means nothing to who gets the model.
        model.conditioner.config = dataclasses.replace(text, stored=True)
    if args.to == "onnx":
        return partial(
            onnx.save_lm,
            lm=model.lm,
            conditioner=model.conditioner,
            codec=model.codec,
            max_frames=model.max_frames,
            guidance=model.guidance,
        )
    save = model.save_pretrained if args.to == "audiogen" else model.save_transformers
    dtype = torch.float16 if args.dtype == "float16" else torch.float32
    return lambda folder: save(folder, dtype)


def _open_codec(found: Found, args: argparse.Namespace) -> Callable[[Path], None]:
    if unused := [name for name in ("text_encoder", "adapter") if getattr(args, name) is not None]:
        raise InputError(f"{found.name} is a codec; --{unused[0].replace('_', '-')} is for generators")
    if args.dtype != "float32":
        raise InputError(
            f"{found.name} is a codec, whose tokens would change with --dtype {args.dtype}; drop it"
        )
    if args.to == "onnx":
        onnx.check_installed()
    codec = load_codec(found)
    if args.to == "onnx":
        return lambda folder: onnx.save_codec(folder, in_segments(codec).codec)
    if args.to == "diffusers":
        raise InputError(f"{found.name} is a codec, for which diffusers has no class; give --to transformers")
    if args.to == "audiogen":
        return lambda folder: save_codec(folder, codec)
    from audiogen.models import export  # sentencepiece, tokenizers and transformers

    return lambda folder: export.save_codec_transformers(folder, codec)
