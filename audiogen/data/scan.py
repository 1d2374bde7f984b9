"""The command `scan`: a manifest of a folder of sounds, every file decoded and checked."""

import sys
from pathlib import Path

from tqdm import tqdm

from audiogen.data.manifest import scan_folder, sound_files, write_manifest
from audiogen.errors import InputError


def scan(folder: str, out: Path, overwrite: bool) -> None:
    """Write the manifest `out` of the readable sounds of a folder; name the others."""
    if out.suffix != ".jsonl":
        raise InputError(f"--out is {out}; a manifest that scan writes ends in .jsonl")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it, or another name with -o")
    with tqdm(total=len(sound_files(folder)), unit="file", disable=None) as bar:
        clips, bad = scan_folder(folder, progress=bar.update)
    for path, reason in bad:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if not clips:
        raise InputError(f"{folder}: none of its {len(bad)} sound files can be read; nothing was written")
    try:
        write_manifest(out, clips)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    hours = sum(clip.duration_s or 0.0 for clip in clips) / 3600
    silent = sum(not clip.captions for clip in clips)
    print(f"{out}: {len(clips)} clips, {hours:.2f} h; {len(bad)} bad files, {silent} clips without a caption")
