"""`python -m audiogen.convert`: a generator or a codec, in the layout of this package or of `transformers`.

    python -m audiogen.convert facebook/audiogen-medium --to audiogen -o models/audiogen_medium
    python -m audiogen.convert runs/lm --to transformers -o runs/lm_transformers
    python -m audiogen.convert facebook/encodec_24khz --to audiogen -o models/encodec_24khz

Whether it is a generator or a codec is found out. The directory appears whole or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from audiogen.errors import InputError, run_command

LAYOUTS = ("audiogen", "transformers")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.convert",
        description="Write a generator or a codec in the layout of audiogen or of transformers.",
    )
    parser.add_argument(
        "model",
        help="bundled name, model directory, public release (its directory, or a hub id such as "
        "facebook/audiogen-medium) or a codec's file",
    )
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        required=True,
        help="audiogen: every command here opens it; transformers: MusicgenForConditionalGeneration or EncodecModel "
        "do, and the commands here, too",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory to write; it must not exist yet",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="T5",
        help="of a generator: directory or hub id of the T5 to use in place of the one that the model names",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="of a generator: what LoRA fine-tuning of it wrote, added to its weights",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="how the weights of a generator are stored; float16 halves the files, and the codec in it stays float32 "
        "(default: float32)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Open, write beside the destination, and move there. What the user got wrong is an InputError."""
    args = parse_arguments(argv)
    if args.out.exists():
        raise InputError(f"--out {args.out} exists already; choose another, or remove it")
    # Here and not at the top: they import torch, and --help should answer at once.
    from audiogen.files import checkpoint

    write = open_model(args)
    temporary = args.out.with_name(f"{checkpoint.TEMPORARY}{args.out.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed conversion left, gigabytes perhaps
    try:
        write(temporary)
        os.replace(temporary, args.out)
    except OSError as error:
        raise InputError(f"--out {args.out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}  {size / 1e6:.1f} MB, layout of {args.to}")
    return 0


def open_model(args: argparse.Namespace) -> Callable[[Path], None]:
    """Read the model, as a generator or a codec -> what writes it to a directory."""
    import torch

    from audiogen.generators import load as generators
    from audiogen.models import codec_public as public
    from audiogen.models.codec_pretrained import load_codec, save_codec

    dtype = torch.float16 if args.dtype == "float16" else torch.float32
    if is_codec(args.model):
        if unused := [name for name in ("text_encoder", "adapter") if getattr(args, name) is not None]:
            raise InputError(f"{args.model} is a codec; --{unused[0].replace('_', '-')} is for generators")
        if args.dtype != "float32":
            raise InputError(
                f"{args.model} is a codec, whose tokens would change with --dtype {args.dtype}; drop it"
            )
        codec = load_codec(args.model)
        if args.to == "audiogen":
            return lambda folder: save_codec(folder, codec)
        return lambda folder: public.save_transformers(folder, codec)
    # An adapter is added in float32 and rounded once.
    latent = generators.is_latent(args.model)
    read_as = "float32" if args.adapter is not None or latent else args.dtype
    packed = None if latent else False
    model = generators.load(args.model, "cpu", read_as, args.text_encoder, args.adapter, packed)
    if not isinstance(model, generators.AudioGen):
        if (args.to, args.dtype) != ("audiogen", "float32"):
            raise InputError(
                f"{args.model} is a latent-diffusion system, which is written in float32, in the layout of diffusers; "
                "give --to audiogen without --dtype"
            )
        return model.save_pretrained
    text = model.conditioner.config
    if args.text_encoder is not None and Path(args.text_encoder).is_dir() and not text.trains_encoder:
        # A directory of this machine means nothing to who gets the model.
        model.conditioner.config = dataclasses.replace(text, stored=True)
    save = model.save_pretrained if args.to == "audiogen" else model.save_transformers
    return lambda folder: save(folder, dtype)


def is_codec(model: str) -> bool:
    """Whether a model is a codec rather than a generator, by the names of its files and what its config.json says."""
    from audiogen.files import checkpoint, hub
    from audiogen.generators import load as generators
    from audiogen.models import codec_pretrained as codecs
    from audiogen.models import codec_public as public_codec
    from audiogen.models import lm_layouts as public_lm
    from audiogen.models import lm_pretrained as lms

    path: str | Path = model
    if hub.is_hub_id(model):
        path = hub.fetch(model, (*generators.LATENT_LAYOUTS, *public_lm.LAYOUTS, *public_codec.LAYOUTS))
    if generators.is_latent(path):
        return False
    kind = generators.own_kind(path)
    if kind is not None:
        if kind not in (lms.KIND, codecs.KIND):
            raise InputError(
                f"{model} holds a model of kind {kind!r}; allowed: {lms.KIND!r}, {codecs.KIND!r}"
            )
        return kind == codecs.KIND
    path = Path(path)
    if path.is_file():
        return True
    if (path / "state_dict.bin").exists():
        return False
    if (path / "config.json").is_file():
        contents = checkpoint.read_json(path / "config.json")
        return isinstance(contents, dict) and contents.get("model_type") in ("encodec", "dac")
    return (
        path.is_dir()
    )  # a compression file or encodec's own; where there is none, the codec's loader says so


if __name__ == "__main__":
    sys.exit(run_command(main))
