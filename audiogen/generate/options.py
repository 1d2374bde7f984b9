"""The options of `audiogen.generate`: what may be typed, and which options are for which family of models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from audiogen.errors import InputError
from audiogen.generators.request import FAMILIES, LATENT_DRAWS, LM_DRAWS, refuse

FORMATS = ("wav", "flac", "ogg", "mp3")
# By the names in the parsed arguments; their defaults say that nothing was given.
LM_ONLY = ("continue_from", "adapter", *LM_DRAWS, "cuda_graph", "stream")
LATENT_ONLY = (*LATENT_DRAWS, "init", "strength", "inpaint", "upsample", "clap", "heads")
MAX_THREADS = 1024


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked as far as that needs no model; --inpaint and --heads as numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.generate",
        description="Generate sounds from text: for each a sound file and a picture of its spectrogram (PNG).",
    )
    what = parser.add_argument_group("what")
    what.add_argument("--text", action="append", default=[], help="a prompt; repeat the option for several")
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="file of prompts: .txt (one a line), .csv or .jsonl (fields text and, if wanted, duration and seed)",
    )
    what.add_argument("--negative", metavar="TEXT", help="what the sounds should not be like")
    what.add_argument(
        "--continue-from",
        type=Path,
        metavar="FILE",
        help="sound to continue, by each prompt or without any; --duration counts it in",
    )
    what.add_argument(
        "--duration",
        type=float,
        metavar="S",
        help="seconds a sound (default: 5, or that of --init); with --stream also inf, until Ctrl-C",
    )
    what.add_argument("--num-samples", type=int, default=1, metavar="N", help="sounds a prompt (default: 1)")

    add_edit_options(parser)
    add_model_options(parser)
    add_lm_options(parser)
    add_latent_options(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--format", choices=FORMATS, help="of the sound files (default: that of --out, or wav)"
    )
    result.add_argument(
        "--out",
        type=Path,
        default=Path("generated"),
        metavar="PATH",
        help="a file for one sound, or a folder (default: generated); with --stream also -, a WAV file to a player: "
        "... --stream --duration inf --out - | aplay",
    )
    result.add_argument(
        "--stream",
        action="store_true",
        help="one sound, written piece by piece while it is generated, without a picture",
    )
    args = parser.parse_args(argv)
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise InputError(f"--threads is {args.threads}; it must be from 1 to {MAX_THREADS}")
    changes = {"--strength": args.strength, "--inpaint": args.inpaint, "--upsample": args.upsample or None}
    given = [name for name, value in changes.items() if value is not None]
    if given and args.init is None:
        raise InputError(f"{given[0]} says what becomes of a sound; give it with --init FILE")
    if args.init is not None and not given:
        raise InputError("--init needs --strength, --inpaint or --upsample: what is to become of the sound")
    args.inpaint, args.heads = _read_span(args.inpaint), _read_heads(args.heads)
    return args


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it computes."""
    how = parser.add_argument_group("how")
    how.add_argument(
        "--model",
        default="lm_tiny",
        help="a bundled model's name; a model directory; a public release of AudioGen, MusicGen, AudioLDM, AudioLDM 2, "
        "LAFMA, Stable Audio, Tango or TangoFlux: its directory, or its hub id (facebook/audiogen-medium, with "
        "@revision if wanted) (default: lm_tiny)",
    )
    how.add_argument(
        "--text-encoder",
        metavar="T5",
        help="directory or hub id of the T5 (for AudioLDM: CLAP) to use in place of the one that the model names",
    )
    how.add_argument("--seed", type=int, default=0, help="sample j of a prompt has seed + j (default: 0)")
    how.add_argument(
        "--guidance",
        type=float,
        help="weight of the text; 1 is none (default: the model's own)",
    )
    how.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default: auto)",
    )
    how.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
        default="auto",
        help="that the model computes in; auto is bfloat16 on CUDA and float32 elsewhere. On a CPU, bfloat16 and int8 "
        "(language models only) run several times faster by kernels that a C++ compiler builds at first use",
    )
    how.add_argument(
        "--threads", type=int, metavar="N", help="that compute on the CPU (default: PyTorch's choice)"
    )


def add_edit_options(parser: argparse.ArgumentParser) -> None:
    """What is to become of a sound."""
    edit = parser.add_argument_group("a sound made of another (latent diffusion)")
    edit.add_argument("--init", type=Path, metavar="FILE", help="sound to begin from, as long as it is")
    edit.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="of the change: 0 returns the sound, 1 leaves nothing of it; 0.6 gives its course another sound",
    )
    edit.add_argument(
        "--inpaint", metavar="A:B", help="make --init anew from second A to second B, and keep the rest"
    )
    edit.add_argument(
        "--upsample",
        action="store_true",
        help="make the highest frequencies of --init anew and keep the rest, with systems over mel spectrograms",
    )


def add_lm_options(parser: argparse.ArgumentParser) -> None:
    """Of token language models."""
    lm = parser.add_argument_group("language models only")
    lm.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="what LoRA fine-tuning of the model wrote, laid on top of it",
    )
    lm.add_argument(
        "--peer-padding",
        action="store_true",
        help="attend to each text's padding to the longest one, as audiocraft does in batches: a sound then depends "
        "on the other prompts (default: it does not)",
    )
    lm.add_argument("--temperature", type=float, help="0 is greedy (default: 1)")
    lm.add_argument("--top-k", type=int, help="draw from the k likeliest; 0 is all (default: 250)")
    lm.add_argument(
        "--top-p",
        type=float,
        help="above 0: draw from the likeliest of this sum, not from the top k",
    )
    lm.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on CUDA, compile the decoding step as a whole and replay it as a CUDA graph (always so for int8)",
    )


def add_latent_options(parser: argparse.ArgumentParser) -> None:
    """Of latent-diffusion systems."""
    latent = parser.add_argument_group("latent diffusion only")
    latent.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of the sampler (default: the model's own, or the authors', 50 to 200)",
    )
    latent.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ddpm, dpm++, dpm++sde, or for flows euler, heun (default: the model's own, or the authors')",
    )
    latent.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="make N sounds for each and keep the one that CLAP finds nearest to its text (default: 1)",
    )
    latent.add_argument(
        "--clap",
        metavar="CLAP",
        help="directory or hub id of the CLAP model that ranks candidates (default: the system's own)",
    )
    latent.add_argument(
        "--heads",
        metavar="N,..",
        help="attention heads of each level of the UNet in place of those that the files say: converted AudioLDMs say "
        "8, and their authors' have 4,8,12,20 (what was used is printed)",
    )


def refuse_others(args: argparse.Namespace, latent: bool) -> None:
    """Raise InputError where an option is given that the model's family does not have."""
    options = {
        f"--{name.replace('_', '-')}": getattr(args, name) for name in (LM_ONLY if latent else LATENT_ONLY)
    }
    refuse(options, f"{args.model}, {FAMILIES[latent]}")


def _read_span(text: str | None) -> tuple[float, float] | None:
    """A:B, in seconds."""
    if text is None:
        return None
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise InputError(f"--inpaint is {text!r}; give A:B in seconds, such as 1.0:2.5") from None


def _read_heads(text: str | None) -> tuple[int, ...] | None:
    """N,N,.. as numbers."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--heads is {text!r}; give whole numbers, one a level, such as 4,8,12,20") from None
