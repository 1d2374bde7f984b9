"""`python -m audiogen.train`: a codec, language model or latent-diffusion system, trained from a recipe."""

import argparse
import os
import sys
from collections.abc import Sequence

from audiogen import command
from audiogen.errors import installed, run_command

with installed():
    from audiogen.config import recipe_names

EXAMPLES = (
    "recipe=lm_tiny_finetune data.train=my_sounds/ out=runs/mine",
    "recipe=codec_tiny init_from=codec_tiny data.train=my_sounds/ out=runs/my_codec",
    "recipe=lm_lora init_from=facebook/musicgen-small --print-config",
)


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "train",
        "Train from a recipe; the run directory (out=) is a model directory that generate and codec take.",
    )
    parser.epilog = f"built-in recipes: {', '.join(recipe_names())}"
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME or recipe=PATH.yaml, and changes to it: fit.steps=1000 data.train=sounds/ out=runs/mine",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved recipe and train nothing"
    )
    command.add_help(parser, examples=EXAMPLES)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    arguments = make_parser().parse_args(argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that all parameters were used, once
    from audiogen.train import run

    return run.run(arguments.settings, arguments.print_config)


if __name__ == "__main__":
    sys.exit(run_command(main))
