"""`python -m audiogen.data scan FOLDER`: a manifest of a folder of sounds, every file decoded and checked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from audiogen.errors import InputError, run_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.data", description="Prepare sounds for training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="scan")
    scan = commands.add_parser(
        "scan", help="write a manifest of a folder of sounds; decodes and checks every file"
    )
    scan.add_argument(
        "folder",
        help="sounds, in folders or not; captions come from NAME.txt or NAME.json beside NAME.wav, else from the names",
    )
    scan.add_argument("-o", "--out", help="manifest to write (default: FOLDER/manifest.jsonl)")
    scan.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = parse(argv)
    from tqdm import tqdm

    from audiogen.data.manifest import scan_folder, sound_files, write_manifest

    out = Path(arguments.out or Path(arguments.folder, "manifest.jsonl"))
    if out.suffix != ".jsonl":
        raise InputError(f"--out is {out}; a manifest that scan writes ends in .jsonl")
    if out.exists() and not arguments.overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it, or another name with -o")
    with tqdm(total=len(sound_files(arguments.folder)), unit="file", disable=None) as bar:
        clips, bad = scan_folder(arguments.folder, progress=bar.update)
    for path, reason in bad:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if not clips:
        raise InputError(
            f"{arguments.folder}: none of its {len(bad)} sound files can be read; nothing was written"
        )
    try:
        write_manifest(out, clips)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    seconds = sum(clip.duration_s or 0.0 for clip in clips)
    silent = sum(not clip.captions for clip in clips)
    print(
        f"{out}: {len(clips)} clips, {seconds / 3600:.2f} h; {len(bad)} bad files, {silent} clips without a caption"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
