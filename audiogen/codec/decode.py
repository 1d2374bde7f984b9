"""`audiogen.codec decode`: token files and token shards to sounds of their exact length."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec.formats import SUFFIXES, format_of
from audiogen.codec.report import check_distinct, choose_targets, report
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.codec.tokens import TokenHeader
from audiogen.codec.transcode import Clip, Tokens, decode_clips
from audiogen.data.shards import ShardReader, is_shard_directory
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec

SOUNDS = {name: f".{name}" for name in audio.SAVE_FORMATS}  # the suffix of each format


def run(arguments: argparse.Namespace) -> None:
    """Decode token files and shards to sounds of their exact length."""
    clips = find_tokens(arguments.inputs)
    names = [clip.name for clip in clips]
    targets = choose_targets(Path(arguments.out), names, SOUNDS, arguments.format, "sound")
    check_distinct(targets, [clip.key for clip in clips])
    if existing := [target for target in targets if target.exists() and not arguments.overwrite]:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --out, or replace with --overwrite")
    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    codec = load_codec_of(clips, arguments.codec, device)
    codec.codec.freeze(dtype)
    target_of = {clip.key: target for clip, target in zip(clips, targets, strict=True)}
    with report("decoded", len(clips), arguments.give, arguments.out) as counts:
        original = arguments.original_rate

        def save(clip: Clip[Tensor]) -> None:  # of blocks [C, n]
            rate = clip.header.source_sample_rate if original else None
            audio.save(target_of[clip.key], clip.parts, rate or clip.header.sample_rate)

        counts.each(decode_clips(codec, clips, original, arguments.batch_size), save)


def find_tokens(inputs: Iterable[str]) -> list[Tokens]:
    """The clips that the inputs name; InputError for an input without any."""

    def from_file(path: Path, name: Path) -> Tokens:
        return Tokens(str(path), name, lambda: format_of(path).read(path))

    def from_shard(reader: ShardReader, index: int) -> Tokens:
        header = TokenHeader(**asdict(reader.spec), num_samples=reader.num_samples[index])
        path = reader.clips[index].path
        return Tokens(
            f"{reader.directory}: {path}",
            Path(path.replace(":", "/")),
            lambda: (header, [Segment(reader.codes(index)[None])]),
        )

    clips: list[Tokens] = []
    for given in inputs:
        path = Path(given)
        if is_shard_directory(path):
            reader = ShardReader(path)
            clips += [from_shard(reader, index) for index in range(len(reader))]
        elif path.is_dir():
            suffixes = SUFFIXES.values()
            files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
            # A name that begins with a dot may be of a file that is being written.
            found = [f for f in files if not any(part[0] == "." for part in f.relative_to(path).parts)]
            if not found:
                raise InputError(
                    f"{path}: no token files ({', '.join(f'*{suffix}' for suffix in suffixes)}) in it, and no shards"
                )
            clips += [from_file(file, file.relative_to(path)) for file in found]
        elif path.exists():
            clips.append(from_file(path, Path(path.name)))
        else:
            raise InputError(f"{given}: no such file or folder")
    return clips


def load_codec_of(clips: Sequence[Tokens], given: str | None, device: torch.device) -> SegmentedCodec:
    """The codec given, or the one that the first readable clip names."""
    if given is not None:
        return in_segments(load_codec(given, device))
    reasons = []
    for clip in clips:
        try:
            header, _ = clip.read()
            break
        except InputError as error:
            reasons.append(str(error))
    else:
        raise InputError(f"none of the {len(clips)} token files can be read; the first: {reasons[0]}")
    name = header.codec if header.identity else f"facebook/{header.codec}"  # of an .ecdc file
    try:
        return in_segments(load_codec(name, device))
    except InputError as error:
        raise InputError(
            f"{clip.key}: made by codec {header.named_codec}; give its directory with --codec ({error})"
        ) from None
