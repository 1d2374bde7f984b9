"""Train a codec, language model or latent diffusion: `python -m audiogen.train recipe=lm_tiny data.train=sounds/`."""

import argparse
import os
import sys
from collections.abc import Sequence

from audiogen.config import recipe_names
from audiogen.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.train",
        description="Train from a recipe; the run directory (out=) is a model directory that generate and codec take.",
        epilog=f"built-in recipes: {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME or recipe=PATH.yaml, and changes to it: fit.steps=1000 data.train=sounds/ out=runs/mine",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved recipe and train nothing"
    )
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that all parameters were used, once
    from audiogen.train import run

    return run.run(arguments.settings, arguments.print_config)


if __name__ == "__main__":
    sys.exit(run_command(main))
