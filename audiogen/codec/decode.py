"""`audiogen.codec decode`: token files and token shards to sounds of their exact length."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec.header import TokenHeader
from audiogen.codec.report import Report, check_distinct
from audiogen.codec.token_files import FORMATS as TOKEN_FORMATS
from audiogen.codec.token_files import read, read_header
from audiogen.codec.transcode import Decoded, Failed, Tokens, decode_clips
from audiogen.data.shards import ShardReader, is_shard_directory
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.interfaces import Codec, Segment
from audiogen.models.codec_pretrained import freeze, load_codec

WORKERS = 4  # threads that read files ahead


def run_decode(arguments: argparse.Namespace) -> None:
    """Decode token files and shards to sounds of their exact length."""
    out = Path(arguments.out)
    clips = find_tokens(arguments.inputs)
    suffix = out.suffix.lower().lstrip(".")
    one_file = suffix in audio.SAVE_FORMATS and not out.is_dir()
    format = arguments.format or (suffix if one_file else "wav")
    targets = [out / name.with_suffix(f".{format}") for name, _ in clips]
    if one_file:
        if len(clips) > 1:
            raise InputError(f"--out {out} names one sound, for {len(clips)} clips: give a folder")
        if suffix != format:
            raise InputError(f"--out {out} ends in .{suffix}, --format is {format}: make them agree")
        targets = [out]
    check_distinct(targets, [clip.key for _, clip in clips])
    if existing := [target for target in targets if target.exists() and not arguments.overwrite]:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --out, or replace with --overwrite")
    codec = load_codec_of([clip for _, clip in clips], arguments.codec, choose_device(arguments.device))
    freeze(codec, getattr(torch, arguments.dtype))
    target_of = {clip.key: target for (_, clip), target in zip(clips, targets, strict=True)}
    tokens = [clip for _, clip in clips]
    with Report("decoded", len(clips)) as report:
        for result in decode_clips(codec, tokens, arguments.original_rate, arguments.batch_size, WORKERS):
            if isinstance(result, Failed):
                report.failed(result.reason)
                continue
            blocks = watch(report, result)
            audio.save(target_of[result.key], blocks, result.sample_rate, format)
            report.done(result.duration_s)


def watch(report: Report, clip: Decoded) -> Iterator[Tensor]:
    """The audio of a clip, with progress."""
    return report.watch(clip.audio, clip.duration_s, lambda block: block.shape[-1] / clip.sample_rate)


def find_tokens(inputs: Iterable[str]) -> list[tuple[Path, Tokens]]:
    """(path below the input, clip) of every clip that the inputs name; InputError for an input without any."""

    def from_file(path: Path) -> Tokens:
        return Tokens(str(path), lambda: read_header(path), lambda: read(path))

    def from_shard(reader: ShardReader, index: int) -> Tokens:
        header = TokenHeader(**asdict(reader.spec), num_samples=reader.num_samples[index])
        name = f"{reader.directory}: {reader.clips[index].path}"
        return Tokens(name, lambda: header, lambda: (header, [Segment(reader.codes(index)[None])]))

    clips: list[tuple[Path, Tokens]] = []
    for given in inputs:
        path = Path(given)
        if is_shard_directory(path):
            reader = ShardReader(path)
            clips += [
                (Path(clip.path.replace(":", "/")), from_shard(reader, i))
                for i, clip in enumerate(reader.clips)
            ]
        elif path.is_dir():
            suffixes = TOKEN_FORMATS.values()
            found = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
            if not found:
                raise InputError(
                    f"{path}: no token files ({', '.join(f'*{suffix}' for suffix in suffixes)}) in it, and no shards"
                )
            clips += [(file.relative_to(path), from_file(file)) for file in found]
        elif path.exists():
            clips.append((Path(path.name), from_file(path)))
        else:
            raise InputError(f"{given}: no such file or folder")
    return clips


def load_codec_of(clips: Sequence[Tokens], given: str | None, device: torch.device) -> Codec:
    """The codec given, or the one that the first readable clip names."""
    if given is not None:
        return load_codec(given, device)
    reasons = []
    for clip in clips:
        try:
            header = clip.peek()
        except InputError as error:
            reasons.append(str(error))
            continue
        name = header.codec if header.identity else f"facebook/{header.codec}"  # of an .ecdc file
        made = f"{clip.key}: made by codec {header.codec}" + (
            f" ({header.identity})" if header.identity else ""
        )
        try:
            return load_codec(name, device)
        except InputError as error:
            raise InputError(f"{made}; give its directory with --codec ({error})") from None
    raise InputError(f"none of the {len(clips)} token files can be read; the first: {reasons[0]}")
