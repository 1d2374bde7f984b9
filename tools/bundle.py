"""Put a trained model into the package, in half precision: the last step of remaking the bundled weights.

    python tools/bundle.py runs/codec_tiny/best codec_tiny
    python tools/bundle.py runs/lm_tiny/best lm_tiny
    python tools/bundle.py runs/tagger_tiny/best tagger_tiny

Only the step and the validation figures are kept of what training recorded. `make weights ESC10=folder` runs all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from audiogen import checkpoint
from audiogen.codec.pretrained import KIND as CODEC_KIND
from audiogen.codec.pretrained import load_codec, save_codec
from audiogen.errors import run_command
from audiogen.lm.pretrained import CodecReference, load_lm, save_lm
from audiogen.tagger.pretrained import KIND as TAGGER_KIND
from audiogen.tagger.pretrained import load_tagger, save_tagger

WEIGHTS = Path(__file__).parent.parent / "audiogen" / "weights"
CODEC = "codec_tiny"


def main(argv: Sequence[str] | None = None) -> int:
    """Copy one model directory to audiogen/weights/NAME as float16."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a model directory, such as runs/lm_tiny/best")
    parser.add_argument("name", help="what the package calls it")
    arguments = parser.parse_args(argv)
    contents = checkpoint.read_config(arguments.run)
    figures = {k: v for k, v in contents["info"].items() if k == "step" or k.startswith("valid/")}
    target = WEIGHTS / arguments.name
    if contents["kind"] == CODEC_KIND:
        save_codec(target, load_codec(arguments.run), figures, torch.float16)
        print(f"{target.name}: identity {load_codec(target).identity}")
    elif contents["kind"] == TAGGER_KIND:
        save_tagger(target, load_tagger(arguments.run), figures, torch.float16)
        print(f"{target.name}: identity {load_tagger(target).identity}")
    else:
        loaded = load_lm(arguments.run)
        bundled = load_codec(CODEC).identity
        if bundled != loaded.codec.identity:
            parser.error(
                f"{arguments.run} speaks codec {loaded.codec.identity}, the bundled one is {bundled}"
            )
        reference = CodecReference(CODEC, bundled)
        save_lm(target, loaded.lm, loaded.conditioner, reference, loaded.max_frames, figures, torch.float16)
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    print(f"{WEIGHTS.name}/ now holds {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
