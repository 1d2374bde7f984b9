"""`python -m audiogen.codec`: sounds to token files or to shards for training, back to sounds, and what a file holds.

`--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from audiogen import command
from audiogen.errors import InputError, run_command

DEFAULT_CODEC = "codec_tiny"
CODEC = (
    "a bundled name, a model directory, a released codec's file or directory, or a hub id (org/name@revision)"
)
TOKEN_FORMATS = ("agtok", "ecdc-v0")
SOUND_FORMATS = ("wav", "flac", "ogg", "mp3")
COMMON = "--out --codec --bandwidth --shards --workers --format --device --dtype --overwrite".split()
EXAMPLES = {
    "encode": (
        "my_sounds/ -o tokens/",
        "my_sounds/ --codec facebook/encodec_24khz --bandwidth 6 -o encodec/",
        "my_sounds/manifest.jsonl --shards 1000 --workers 4 -o shards/",
    ),
    "decode": ("tokens/ -o back/", "tokens/bell.agtok -o bell.wav --original-rate"),
    "merge": ("shards/",),
    "info": ("codec_tiny", "tokens/bell.agtok"),
}


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser("codec", "Audio to tokens and back.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="encode | decode | merge | info")

    encode = commands.add_parser(
        "encode", help="sounds to token files, or to token shards for training", add_help=False
    )
    encode.add_argument(
        "inputs",
        nargs="+",
        help="sound files, folders, manifests (.jsonl, .csv), URLs of sounds or manifests, synth:COUNT",
    )
    encode.add_argument("-o", "--out", required=True, help="a folder; for one sound also a file name.agtok")
    encode.add_argument("--codec", default=DEFAULT_CODEC, help=f"{CODEC}; default: {DEFAULT_CODEC}")
    encode.add_argument(
        "--bandwidth", type=float, metavar="KBPS", help="one the codec has; default: its highest"
    )
    encode.add_argument(
        "--beam",
        type=int,
        default=1,
        metavar="N",
        help="search for codes with N candidates: sounds nearer to the original, in more time. 8 is a good choice for "
        "listening; language models learn more easily with 1 (default: 1)",
    )
    encode.add_argument(
        "--format",
        choices=TOKEN_FORMATS,
        help="ecdc-v0: for the encodec command line, of its 24 and 48 kHz models; default: agtok",
    )
    encode.add_argument(
        "--shards", type=int, metavar="CLIPS", help="write shards of that many clips, for training"
    )
    encode.add_argument(
        "--part",
        metavar="I/N",
        help="the Ith of N parts, by as many processes anywhere; default: as torchrun or a SLURM array says",
    )
    encode.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes of this machine (default: 1)"
    )

    decode = commands.add_parser("decode", help="token files or token shards to sounds", add_help=False)
    decode.add_argument(
        "inputs", nargs="+", help="token files (.agtok, .ecdc), folders of them, or folders of token shards"
    )
    decode.add_argument("-o", "--out", required=True, help="a folder; for one clip also a file name.wav")
    decode.add_argument("--codec", help=f"{CODEC}; default: the name in the tokens")
    decode.add_argument(
        "--format", choices=SOUND_FORMATS, help="default: wav, or as the name given with --out ends"
    )
    decode.add_argument(
        "--original-rate",
        action="store_true",
        help="restore the recording's sample rate and its length at that rate; default: the codec's rate",
    )

    for each in (encode, decode):
        each.add_argument(
            "--batch-size", type=int, help="clips of equal length at a time; default: 8 on a GPU, 1 on a CPU"
        )
        each.add_argument(
            "--device", default="auto", help="auto (a CUDA GPU if there is one), cpu, cuda, cuda:N, mps"
        )
        each.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            default="float32",
            help="of the computation; bfloat16 is faster, for SEANet codecs on a CPU, and changes some codes",
        )
        each.add_argument("--overwrite", action="store_true", help="replace files that exist")
        command.add_output(each)

    merge = commands.add_parser(
        "merge", help="the parts that encode --shards --part wrote into one folder of shards", add_help=False
    )
    merge.add_argument("out", help="the folder that was given to encode with --out")

    info = commands.add_parser(
        "info", help="describe a codec, a token file or a folder of token shards", add_help=False
    )
    info.add_argument("input", nargs="?", default=DEFAULT_CODEC, help="default: the bundled codec")
    for name, added in (("encode", encode), ("decode", decode), ("merge", merge), ("info", info)):
        command.add_help(added, COMMON if name == "encode" else (), EXAMPLES[name])
    command.add_help(parser, examples=[f"{name} {lines[0]}" for name, lines in EXAMPLES.items()])
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    arguments = make_parser().parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else list(argv)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = parse(argv)
    for option in ("batch_size", "shards", "workers", "beam"):
        value = getattr(arguments, option, None)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} is {value}; allowed: 1 and more")
    from audiogen.codec import decode, encode, info, parts  # late: they import torch

    verbs = {"encode": encode.run, "decode": decode.run, "info": info.run, "merge": parts.run}
    with command.output(
        getattr(arguments, "json", False), getattr(arguments, "quiet", False)
    ) as arguments.give:
        verbs[arguments.command](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
