"""`python -m audiogen.convert`: a generator or a codec, in the layout of audiogen, transformers, diffusers, or as ONNX.

Its files say whether it is a generator or a codec. The directory appears whole or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from audiogen import command
from audiogen.errors import InputError, installed, run_command

with installed():
    from audiogen.files.locks import only_writer
    from audiogen.files.writing import TEMPORARY, publish

LAYOUTS = ("audiogen", "transformers", "diffusers", "onnx")
EXAMPLES = (
    "facebook/audiogen-medium --to audiogen -o models/audiogen_medium",
    "runs/lm --to transformers -o runs/lm_transformers",
    "lafma_tiny --to diffusers -o lafma_diffusers",
    "facebook/encodec_24khz --to audiogen -o models/encodec_24khz",
)


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "convert",
        "Write a generator or a codec in the layout of audiogen, transformers or diffusers, or as ONNX graphs.",
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
        "do, and the commands here, too; diffusers: of a latent system, a whole pipeline that DiffusionPipeline opens; "
        "onnx: of a codec or a language model, graphs that run without torch (extra onnx)",
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
        action="append",
        metavar="DIR[:W]",
        help="of a generator: what LoRA fine-tuning of it wrote, added to its weights with the weight W (default: 1); "
        "repeat the option to add several",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="how the weights of a generator are stored; float16 halves the files, and the codec in it stays float32 "
        "(default: float32)",
    )
    command.add_help(parser, examples=EXAMPLES)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    return make_parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Open, write beside the destination, and move there. What the user got wrong is an InputError."""
    args = parse_arguments(argv)
    beside = args.out.with_name(f"{TEMPORARY}{args.out.name}")
    whole = beside / "whole"
    with only_writer(beside):
        if args.out.exists():
            raise InputError(f"--out {args.out} exists already; choose another, or remove it")
        # Here and not at the top: it imports torch, and --help should answer at once.
        from audiogen.convert import run

        write = run.open_model(args)
        shutil.rmtree(whole, ignore_errors=True)  # what a killed conversion left, gigabytes perhaps
        try:
            write(whole)
            publish(whole, args.out)
        finally:
            shutil.rmtree(whole, ignore_errors=True)
    shutil.rmtree(beside, ignore_errors=True)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}  {size / 1e6:.1f} MB, layout of {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
