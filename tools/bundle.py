"""Put a trained model into the package, in half precision: the last step of remaking the bundled weights.

    python tools/bundle.py runs/codec_tiny/best codec_tiny
    python tools/bundle.py runs/codec_tiny_more codec_tiny --towards runs/codec_tiny_last/best 0.15
    python tools/bundle.py runs/lm_tiny/best lm_tiny
    python tools/bundle.py runs/tagger_tiny/best tagger_tiny
    python tools/bundle.py runs/lafma_tiny_fast lafma_tiny --towards runs/lafma_tiny_student 0.5

--towards: weights between those before and after further training may have the better of both (arXiv:2109.01903).
--into: to train on from such weights, put them elsewhere.
Only the step and the validation figures are kept of what training recorded. `make weights ESC10=folder` runs all.
The model card, README.md, stays as it is: measure again, and put the new figures there by hand.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from audiogen.codec.model import Codec
from audiogen.errors import InputError, run_command
from audiogen.files import checkpoint, writing
from audiogen.generators.latent import LatentGenerator
from audiogen.models.build import load_codec, load_lm
from audiogen.models.diffusers import INDEX, save_diffusers
from audiogen.models.find import CODEC as CODEC_KIND
from audiogen.models.find import TAGGER as TAGGER_KIND
from audiogen.models.own import load_tagger, save_codec, save_lm, save_tagger
from audiogen.models.parts import CodecReference
from audiogen.models.released import load_released

WEIGHTS = Path(__file__).parent.parent / "audiogen" / "weights"
CODEC = "codec_tiny"


def main(argv: Sequence[str] | None = None) -> int:
    """Copy one model directory to audiogen/weights/NAME as float16."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a model directory, such as runs/lm_tiny/best")
    parser.add_argument("name", help="what the package calls it")
    parser.add_argument(
        "--towards",
        nargs=2,
        metavar=("RUN", "SHARE"),
        help="move the decoder of a codec, or the networks of a latent system, by a share to those of another run",
    )
    parser.add_argument("--into", type=Path, default=WEIGHTS, help="a folder in place of the package's")
    arguments = parser.parse_args(argv)
    target = arguments.into / arguments.name
    is_system = (arguments.run / INDEX).is_file()
    if arguments.towards and not is_system and checkpoint.read_config(arguments.run)["kind"] != CODEC_KIND:
        raise InputError(f"--towards is for codecs and latent systems, and {arguments.run} is none; drop it")
    if is_system:
        bundle_system(arguments.run, target, arguments.towards)
    else:
        bundle_model(arguments.run, target, arguments.towards)
    size = sum(path.stat().st_size for path in arguments.into.rglob("*") if path.is_file())
    print(f"{arguments.into.name}/ now holds {size / 1e6:.1f} MB")
    return 0


@torch.no_grad()
def bundle_system(run: Path, target: Path, towards: tuple[str, str] | None = None) -> None:
    """Copy a latent-diffusion system, or what lies between two of one architecture and autoencoder."""
    released = load_released(run)
    if towards is not None:
        other = load_released(towards[0])
        if other.system.config != released.system.config:
            raise InputError(f"--towards {towards[0]} is not a system of the architecture of {run}")
        own, goals = released.system.state_dict(), other.system.state_dict()
        released = replace(other, system=released.system)
        for name, weight in own.items():
            if weight.is_floating_point():
                weight.lerp_(goals[name], float(towards[1]))
        run = Path(towards[0])
    if (text := released.system.conditioner.text) is None or not text.config.embedded:
        raise InputError(f"{run} names a text encoder that is not in it; only embedded ones are bundled")
    for parameter in released.system.parameters():  # and not the scale of the latents, which is a buffer
        parameter.data = parameter.data.half()
    sampling = None if released.sampling is None else replace(released.sampling, in_order=True)
    save_diffusers(
        target, released.system, released.name, released.process, encoders=False, sampling=sampling
    )
    writing.write_json(target / "info.json", figures_of(writing.read_json(run / "info.json")))
    print(f"{target.name}: identity {LatentGenerator.from_pretrained(target).identity()}")


def bundle_model(run: Path, target: Path, towards: tuple[str, str] | None = None) -> None:
    """Copy a codec, a language model or a tagger.

    towards: a run that trained the codec's decoder on, and a share of the way to it.
    """
    contents = checkpoint.read_config(run)
    figures = figures_of(contents["info"])
    if contents["kind"] == CODEC_KIND:
        codec = load_codec(run)
        if towards is not None:
            other = load_codec(towards[0])
            if not (isinstance(codec, Codec) and isinstance(other, Codec) and codec.config == other.config):
                raise InputError(f"--towards {towards[0]} is not a codec of the architecture of {run}")
            for weight, goal in zip(codec.decoder.parameters(), other.decoder.parameters(), strict=True):
                weight.lerp_(goal, float(towards[1]))
        save_codec(target, codec, figures, torch.float16)
        print(f"{target.name}: identity {load_codec(target).identity}")
    elif contents["kind"] == TAGGER_KIND:
        save_tagger(target, load_tagger(run), figures, torch.float16)
        print(f"{target.name}: identity {load_tagger(target).identity}")
    else:
        loaded = load_lm(run)
        bundled, its_own = load_codec(CODEC), loaded.codec.identity
        if not isinstance(bundled, Codec) or not bundled.is_compatible(
            its_own, loaded.lm.config.num_codebooks
        ):
            raise InputError(f"{run} has codec {its_own}, the bundled one is {bundled.identity}")
        reference = CodecReference(CODEC, bundled.identity)
        figures["generation"] = {"in_order": True}
        save_lm(target, loaded.lm, loaded.conditioner, reference, loaded.max_frames, figures, torch.float16)


def figures_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The step and the validation figures of what training recorded."""
    return {key: value for key, value in info.items() if key == "step" or key.startswith("valid/")}


if __name__ == "__main__":
    sys.exit(run_command(main))
