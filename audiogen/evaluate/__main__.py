"""`python -m audiogen.evaluate`: codecs beside Opus, systems side by side, and two folders of sounds.

`--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from audiogen.errors import InputError, run_command
from audiogen.evaluate import EMBEDDERS

T = TypeVar("T")

SPECS = f"what embeds and labels: {EMBEDDERS}; repeat the option for several (default: tagger_tiny)"
FILTER = "only clips whose field has one of the values, as in fold=1,2; repeat the option for other fields"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; names are those of the settings of each command."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.evaluate",
        description="How good sounds are, how well they follow the text, what they cost: report.md, .json, .html.",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="codec | compare | files")
    codec = commands.add_parser("codec", help="codecs at every bitrate, beside Opus and the originals")
    compare = commands.add_parser("compare", help="systems on the same prompts, between ceilings and a floor")
    files = commands.add_parser("files", help="figures of sets on two folders of sounds from any tool")
    add_codec_options(codec)
    add_compare_options(compare)
    files.add_argument("--reference", required=True, type=Path, metavar="DIR", help="real sounds")
    words = "sounds to judge; those with the name of a real one are paired with it, for KL"
    files.add_argument("--generated", required=True, type=Path, metavar="DIR", help=words)
    words = "use the first S seconds of every file"
    files.add_argument("--duration", type=float, dest="duration_s", metavar="S", help=words)
    for command, sounds in ((codec, 3), (compare, 10)):
        add = command.add_argument
        add("--where", action="append", metavar="KEY=VALUE,..", help=FILTER)
        words = "a choice of N clips, balanced over labels, always the same (default: all)"
        add("--num-clips", type=int, metavar="N", help=words)
        words = f"clips to listen to in report.html (default: {sounds})"
        add("--num-sounds", type=int, default=sounds, metavar="N", help=words)
    for name, command in (("codec", codec), ("compare", compare), ("files", files)):
        add = command.add_argument
        add("--embedder", action="append", dest="embedders", metavar="SPEC", help=SPECS)
        add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
        out = Path("evaluation") / name
        add("--out", type=Path, default=out, metavar="DIR", help=f"folder of the report (default: {out})")
    return parser.parse_args(argv)


def add_codec_options(parser: argparse.ArgumentParser) -> None:
    """Of `codec` alone."""
    add = parser.add_argument
    words = "name or directory; repeat for several"
    add("--codec", action="append", dest="codecs", metavar="CODEC", help=words)
    add("--data", required=True, help="manifest (.jsonl, .csv), folder, or synth:COUNT")
    words = "bitrates of Opus (default: 6,8,12,16)"
    add("--opus", default="6,8,12,16", dest="opus_kbps", metavar="KBPS,..", help=words)
    words = 'more metrics: visqol, pesq, stoi (pip install "audiogen[metrics]")'
    add("--metrics", default="", metavar="NAME,..", help=words)
    words = "of the comparison (default: the codecs' lowest)"
    add("--sample-rate", type=int, metavar="HZ", help=words)
    add("--threads", type=int, default=1, metavar="N", help="of torch, for the speeds (default: 1)")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Of `compare` alone."""
    add = parser.add_argument_group("what").add_argument
    words = "bundled name, model directory, or a public release: its directory or hub id; repeat for several"
    add("--model", action="append", required=True, dest="models", metavar="MODEL", help=words)
    add("--data", required=True, type=Path, metavar="FILE", help="manifest with captions (.jsonl, .csv)")
    words = "the clips that sets are compared with (default: those of --where)"
    add("--reference-where", action="append", metavar="KEY=VALUE,..", help=words)
    words = "also N built-in prompts for two events in order (default: 0)"
    add("--order-prompts", type=int, default=0, metavar="N", help=words)
    add = parser.add_argument_group("how").add_argument
    add("--seeds", default="0", metavar="N,..", help="a sound of every prompt each (default: 0)")
    words = "seconds that are generated, and used of real clips (default: 5)"
    add("--duration", type=float, default=5.0, dest="duration_s", metavar="S", help=words)
    add("--guidance", type=float, default=3.0, help="weight of the text; 1 is none (default: 3)")
    words = "equal time: systems with steps take as many as fit in S seconds a clip"
    add("--budget-s", type=float, metavar="S", help=words)
    words = "equal steps, for systems with steps (default: their own)"
    add("--steps", type=int, metavar="N", help=words)
    add("--batch-size", type=int, default=4, metavar="N", help="sounds generated at a time (default: 4)")
    dtypes = ("auto", "float32", "bfloat16", "float16", "int8")
    words = "of the models, as in audiogen.generate (default: auto)"
    add("--dtype", choices=dtypes, default="auto", help=words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit status: 1 where a system failed and the others finished."""
    settings = {name: value for name, value in vars(parse(argv)).items() if value is not None}
    if settings["name"] == "codec":
        settings.setdefault("codecs", ["codec_tiny"])
    words = sys.argv[1:] if argv is None else argv
    settings["command"] = shlex.join(["python", "-m", "audiogen.evaluate", *words])
    for name in ("where", "reference_where"):
        if name in settings:
            settings[name] = read_filters(f"--{name.replace('_', '-')}", settings[name])
    for name, kind in (("seeds", int), ("opus_kbps", float), ("metrics", str)):
        if name in settings:
            settings[name] = read_list(f"--{name.removesuffix('_kbps')}", settings[name], kind)
    for name in {"codecs", "models", "embedders"} & settings.keys():
        settings[name] = tuple(settings[name])
    check_out(settings["out"])
    return run(settings.pop("name"), settings)


def run(name: str, settings: Mapping[str, Any]) -> int:
    """Run a command, print its table and where the rest is -> 1 where a system failed and the others finished."""
    from audiogen.evaluate import codecs, compare, files, systems  # here: they import torch

    commands: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "codec": (codecs.CodecEvaluation, codecs.run),
        "compare": (systems.Comparison, compare.run),
        "files": (files.FilesEvaluation, files.run),
    }
    make_settings, evaluate = commands[name]
    try:
        with warnings.catch_warnings():
            setattr(warnings, "showwarning", show_warning)  # noqa: B010 (a plain assignment does not pass mypy)
            report = evaluate(make_settings(**settings), warn)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, say: what cannot be read is an InputError by now
        raise InputError(f"{error.filename or 'the output'}: {error.strerror or error}") from error
    path = settings["out"] / "report.md"
    print(*(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")), sep="\n")
    print(f"{path}, with report.html to listen to and report.json to compute with")
    for system, reason in report.failures.items():
        print(f"error: {system} failed: {reason}", file=sys.stderr)
    return 1 if report.failures else 0


def warn(message: str) -> None:
    """A warning in one line, below the progress bar if there is one."""
    tqdm.write(f"warning: {' '.join(message.split())}", file=sys.stderr)


def show_warning(message: Warning | str, *_: Any) -> None:
    """Python's own warnings, as of a text that is too long, without the place in our code."""
    warn(str(message))


def read_filters(option: str, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["fold=1,2", "license=CC0"]` as values by field."""
    filters: dict[str, tuple[str, ...]] = {}
    for entry in given:
        name, equals, values = entry.partition("=")
        name = name.strip()
        allowed = tuple(value.strip() for value in values.split(",") if value.strip())
        if not (name and equals and allowed):
            raise InputError(f"{option} {entry}: give a field and its values, as in fold=1,2")
        if name in filters:
            raise InputError(f"{option} names {name} twice; give its values in one, as in {name}=1,2")
        filters[name] = allowed
    return filters


def read_list(option: str, given: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """`"0,1,2"` as values of a kind; spaces and empty entries count for nothing."""
    try:
        return tuple(kind(word) for word in given.replace(",", " ").split())
    except ValueError:
        raise InputError(f"{option} {given}: give {kind.__name__} values with commas between") from None


def check_out(out: Path) -> None:
    """Before any work: the report's folder can be made, or is one."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {out}: {there} is not a folder that can be written to; choose another")


if __name__ == "__main__":
    sys.exit(run_command(main))
