"""`python -m audiogen.evaluate`: codecs beside Opus, systems side by side, and two folders of sounds.

The heavy imports stand inside the commands: `--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from audiogen.errors import InputError, run_command

T = TypeVar("T")

SPECS = (
    "what hears: tagger_tiny (default), tagger:NAME_OR_DIR, codec:NAME_OR_DIR, clap:HUB_ID_OR_DIR, ast:HUB_ID_OR_DIR, "
    "panns:FILE, vggish:FILE or vggish:FILE,pca=FILE; repeat the option for several"
)
FILTER = "only clips whose field has one of the values, as in fold=1,2; repeat the option for other fields"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.evaluate",
        description="How good sounds are, how well they follow the text, what they cost: report.md, .json, .html.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="codec | compare | files")
    codec = commands.add_parser("codec", help="codecs at every bitrate, beside Opus and the originals")
    compare = commands.add_parser("compare", help="systems on the same prompts, between ceilings and a floor")
    files = commands.add_parser("files", help="figures of sets on two folders of sounds from any tool")
    add_codec_options(codec)
    add_compare_options(compare)
    add_files_options(files)
    for command, sounds in ((codec, 3), (compare, 10)):
        command.add_argument("--where", action="append", metavar="KEY=VALUE,..", help=FILTER)
        command.add_argument(
            "--num-clips",
            type=int,
            metavar="N",
            help="a choice of N clips, balanced over labels, always the same (default: all)",
        )
        command.add_argument(
            "--num-sounds",
            type=int,
            default=sounds,
            metavar="N",
            help=f"clips to listen to in report.html (default: {sounds})",
        )
    for name, command in (("codec", codec), ("compare", compare), ("files", files)):
        command.add_argument("--embedder", action="append", metavar="SPEC", help=SPECS)
        command.add_argument(
            "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps"
        )
        command.add_argument(
            "--out",
            type=Path,
            default=Path("evaluation") / name,
            metavar="DIR",
            help=f"folder of the report (default: evaluation/{name})",
        )
    return parser.parse_args(argv)


def add_codec_options(parser: argparse.ArgumentParser) -> None:
    """Of `codec` alone."""
    parser.add_argument(
        "--codec", action="append", metavar="CODEC", help="name or directory; repeat for several"
    )
    parser.add_argument("--data", required=True, help="manifest (.jsonl, .csv), folder, or synth:COUNT")
    parser.add_argument(
        "--opus", default="6,8,12,16", metavar="KBPS,..", help="bitrates of Opus (default: 6,8,12,16)"
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME,..",
        help='more metrics: visqol, pesq, stoi (pip install "audiogen[metrics]")',
    )
    parser.add_argument(
        "--sample-rate", type=int, metavar="HZ", help="of the comparison (default: the codecs' lowest)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of torch, for the speeds (default: 1)"
    )


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Of `compare` alone."""
    what = parser.add_argument_group("what")
    what.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="MODEL",
        help="bundled name, model directory, or a public release: its directory or hub id; repeat for several",
    )
    what.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="manifest with captions (.jsonl, .csv)"
    )
    what.add_argument(
        "--reference-where",
        action="append",
        metavar="KEY=VALUE,..",
        help="the clips that sets are compared with (default: those of --where)",
    )
    what.add_argument(
        "--order-prompts",
        type=int,
        default=0,
        metavar="N",
        help="also N built-in prompts for two events in order (default: 0)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--seeds", default="0", metavar="N,..", help="a sound of every prompt each (default: 0)")
    how.add_argument(
        "--duration",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds that are generated, and used of real clips (default: 5)",
    )
    how.add_argument("--guidance", type=float, default=3.0, help="weight of the text; 1 is none (default: 3)")
    how.add_argument(
        "--budget-s",
        type=float,
        metavar="S",
        help="equal time: systems with steps take as many as fit in S seconds a clip",
    )
    how.add_argument(
        "--steps", type=int, metavar="N", help="equal steps, for systems with steps (default: their own)"
    )
    how.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="sounds generated at a time (default: 4)"
    )
    how.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
        default="auto",
        help="of the models, as in audiogen.generate (default: auto)",
    )


def add_files_options(parser: argparse.ArgumentParser) -> None:
    """Of `files` alone."""
    parser.add_argument("--reference", required=True, type=Path, metavar="DIR", help="real sounds")
    parser.add_argument(
        "--generated",
        required=True,
        type=Path,
        metavar="DIR",
        help="sounds to judge; those with the name of a real one are paired with it, for KL",
    )
    parser.add_argument("--duration", type=float, metavar="S", help="use the first S seconds of every file")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit status: 1 where a system failed and the others finished."""
    arguments = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "audiogen.evaluate", *words])
    run: Callable[[argparse.Namespace, str], int] = {
        "codec": run_codec,
        "compare": run_compare,
        "files": run_files,
    }[arguments.command]
    check_out(arguments.out)
    try:
        with plain_warnings():
            return run(arguments, command)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, say: what cannot be read is an InputError by now
        raise InputError(f"{error.filename or 'the output'}: {error.strerror or error}") from error


def run_codec(arguments: argparse.Namespace, command: str) -> int:
    """`codec`."""
    from audiogen.evaluate import codecs

    evaluation = codecs.CodecEvaluation(
        codecs=tuple(arguments.codec or ["codec_tiny"]),
        data=arguments.data,
        where=read_filters("--where", arguments.where),
        num_clips=arguments.num_clips,
        embedders=tuple(arguments.embedder or ["tagger_tiny"]),
        opus_kbps=read_list("--opus", arguments.opus, float),
        metrics=read_list("--metrics", arguments.metrics, str),
        sample_rate=arguments.sample_rate,
        threads=arguments.threads,
        num_sounds=arguments.num_sounds,
        device=arguments.device,
        out=arguments.out,
        command=command,
    )
    show_report(codecs.run(evaluation, warn))
    return 0


def run_compare(arguments: argparse.Namespace, command: str) -> int:
    """`compare`. Models that are not there are named before any work."""
    from audiogen.evaluate import compare
    from audiogen.evaluate.systems import Comparison
    from audiogen.generators import load as generators

    reference_where = None
    if arguments.reference_where is not None:
        reference_where = read_filters("--reference-where", arguments.reference_where)
    comparison = Comparison(
        models=tuple(arguments.model),
        data=arguments.data,
        where=read_filters("--where", arguments.where),
        reference_where=reference_where,
        num_clips=arguments.num_clips,
        seeds=read_list("--seeds", arguments.seeds, int),
        order_prompts=arguments.order_prompts,
        duration_s=arguments.duration,
        guidance=arguments.guidance,
        budget_s=arguments.budget_s,
        steps=arguments.steps,
        embedders=tuple(arguments.embedder or ["tagger_tiny"]),
        batch_size=arguments.batch_size,
        num_sounds=arguments.num_sounds,
        device=arguments.device,
        dtype=arguments.dtype,
        out=arguments.out,
        command=command,
    )
    for model in arguments.model:
        generators.find(model)
    outcome = compare.run(comparison, warn)
    show_report(arguments.out / "report.md")
    for name, reason in outcome.failures.items():
        print(f"error: {name} failed: {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def run_files(arguments: argparse.Namespace, command: str) -> int:
    """`files`."""
    from audiogen.evaluate import files

    evaluation = files.FilesEvaluation(
        reference=arguments.reference,
        generated=arguments.generated,
        embedders=tuple(arguments.embedder or ["tagger_tiny"]),
        duration_s=arguments.duration,
        device=arguments.device,
        out=arguments.out,
        command=command,
    )
    files.run(evaluation, warn)
    show_report(arguments.out / "report.md")
    return 0


# --------------------------------------------------------------------------------------------- words of the user


def read_filters(option: str, given: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """`["fold=1,2", "license=CC0"]` as values by field."""
    filters: dict[str, tuple[str, ...]] = {}
    for entry in given or ():
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


# ------------------------------------------------------------------------------------------------------- telling


def warn(message: str) -> None:
    """A warning in one line, below the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"warning: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Python's warnings, as of a text that is too long, in one line without the place in our code."""

    def show(message: Warning | str, *_: Any) -> None:
        warn(str(message))

    with warnings.catch_warnings():
        setattr(warnings, "showwarning", show)  # noqa: B010 (a plain assignment does not pass mypy)
        yield


def show_report(path: Path) -> None:
    """Print the table of a report and where the rest is."""
    table = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    print("\n".join(table))
    print(f"{path}, with report.html to listen to and report.json to compute with")


if __name__ == "__main__":
    sys.exit(run_command(main))
