"""`audiogen.codec encode`: sounds to token files, or to shards for training."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from audiogen.codec import ecdc
from audiogen.codec.report import Report, check_distinct, choose_targets
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.codec.tokens import bandwidth_kbps, write_tokens
from audiogen.codec.transcode import (
    FORMATS,
    Encoded,
    Failed,
    Source,
    UnreadableError,
    encode_clips,
    header_for,
    is_ecdc,
    read_header,
)
from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED, BuiltInClip, SourceConfig, read_source
from audiogen.data.manifest import Clip, find_captions, read_manifest, sound_files
from audiogen.data.shards import CodeClip, ShardWriter, TokenSpec
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec


def run(arguments: argparse.Namespace) -> None:
    """Encode to token files, or to shards with --shards."""
    items = find_sounds(arguments.inputs, captions=arguments.shards is not None)
    names = [item.name for item in items]
    targets = choose_targets(Path(arguments.out), names, FORMATS, arguments.format, "token file")
    if not arguments.shards:
        check_distinct(targets, [str(item.path) for item in items])
    elif targets[0] == Path(arguments.out) or is_ecdc(targets[0]):
        raise InputError("--shards writes a folder of shards: give --out a folder, and no --format")
    device = choose_device(arguments.device)
    codec = load_codec(arguments.codec, device, dtype=getattr(torch, arguments.dtype))
    num_codebooks = choose_codebooks(in_segments(codec), arguments.bandwidth)
    if arguments.shards:
        if isinstance(codec, SegmentedCodec):
            raise InputError(
                f"--shards: codec {codec.name} works on overlapping segments, each with codes and a scale of its own, "
                "which are no sequence to train on; leave it out for token files, or choose another codec"
            )
        encode_shards(arguments, in_segments(codec), num_codebooks, items)
    else:
        encode_files(arguments, in_segments(codec), num_codebooks, dict(zip(targets, items, strict=True)))


def encode_files(
    arguments: argparse.Namespace, codec: SegmentedCodec, num_codebooks: int, items: Mapping[Path, Source]
) -> None:
    """One token file a sound; those that an earlier run finished are kept."""
    name, identity = codec.name, codec.identity
    if is_ecdc(next(iter(items))):  # such a file names a model and has no hash
        name, identity = ecdc.model_name(header_for(codec, codec.num_codebooks, 1)), ""
    wanted = (name, identity, num_codebooks)
    pending = {
        target: item
        for target, item in items.items()
        if arguments.overwrite or not is_encoded(target, item.path, wanted)
    }
    sources = [replace(item, key=str(target)) for target, item in pending.items()]
    with Report("encoded", len(sources), kept=len(items) - len(sources)) as report:
        for result in encode_clips(codec, sources, num_codebooks, arguments.batch_size):
            if isinstance(result, Failed):
                report.failed(result.reason)
                continue
            try:
                header = replace(result.header, codec=name, identity=identity)
                write = ecdc.write_ecdc if is_ecdc(Path(result.key)) else write_tokens
                write(result.key, header, watch(report, result))
            except UnreadableError as error:
                report.failed(str(error))
            else:
                report.done(header.duration_s)


def watch(report: Report, clip: Encoded) -> Iterator[Segment]:
    """The segments of a clip, with progress."""
    header = clip.header
    stride_s = (header.stride_samples or 0) / header.sample_rate
    return report.watch(
        clip.segments,
        header.duration_s,
        lambda segment: stride_s or segment.codes.shape[-1] / header.frame_rate,
    )


def is_encoded(target: Path, source: Path, wanted: tuple[object, ...]) -> bool:
    """Whether the token file is there, of this codec and bandwidth, and not older than the sound.

    wanted: the codec's name and hash, and the number of codebooks.
    """
    if not target.exists():
        return False
    try:
        header = read_header(target)
    except InputError as error:
        raise InputError(f"{error}; to replace the file, add --overwrite") from None
    if (header.codec, header.identity, header.num_codebooks) != wanted:
        raise InputError(
            f"{target} exists, of codec {header.codec} ({header.identity}) at "
            f"{bandwidth_kbps(header, header.num_codebooks):g} kbps; choose another --out, or replace it with "
            "--overwrite"
        )
    return not source.exists() or source.stat().st_mtime <= target.stat().st_mtime


def encode_shards(
    arguments: argparse.Namespace, codec: SegmentedCodec, num_codebooks: int, items: Sequence[Source]
) -> None:
    """Token shards in the order of the input; what an earlier run stored is kept.

    A shard is the next clips that are not stored, whatever becomes of them, so that a run that was interrupted and
    continued makes the same shards as one that was not. What could not be read is tried again, at the end.
    """
    if arguments.overwrite:
        raise InputError("--overwrite does not go with --shards: delete the folder, or choose another one")
    by_key = {item.key: item for item in items}
    check_distinct([item.key for item in items], [str(item.path) for item in items])
    spec = replace(TokenSpec.of(codec.codec), num_codebooks=num_codebooks)
    writer = ShardWriter(arguments.out, spec)
    pending = [key for key in by_key if key not in writer.done]
    fresh = [key for key in pending if key not in writer.unreadable]
    again = [key for key in pending if key in writer.unreadable]
    size = arguments.shards
    shards = [keys[at : at + size] for keys in (fresh, again) for at in range(0, len(keys), size)]
    with Report("encoded", len(pending), kept=len(items) - len(pending)) as report:
        for keys in shards:
            clips: dict[str, CodeClip] = {}
            unreadable: dict[str, str] = {}
            sources = [by_key[key] for key in keys]
            for result in encode_clips(codec, sources, num_codebooks, arguments.batch_size):
                try:
                    if isinstance(result, Failed):
                        raise UnreadableError(result.reason)
                    codes = torch.cat([segment.codes[0] for segment in watch(report, result)], dim=1)
                except UnreadableError as error:
                    unreadable[result.key] = str(error)
                    report.failed(str(error))
                else:
                    header, item = result.header, by_key[result.key]
                    clip = CodeClip(result.key, codes, header.num_samples, item.captions, item.fields)
                    clips[result.key] = clip
                    report.done(header.duration_s)
            writer.write([clips[key] for key in keys if key in clips], unreadable)


def find_sounds(inputs: Iterable[str], captions: bool) -> list[Source]:
    """The sounds that the inputs name, with captions from beside them if asked; InputError for an empty input."""

    def from_file(clip: Clip, root: Path) -> Source:
        name = Path(os.path.relpath(clip.path, root))
        folder = Path(os.path.abspath(root)).name
        if ".." in name.parts:  # a manifest may name sounds anywhere
            name, folder = Path(name.name), name.parent.name
        if clip.start_s:
            name = name.with_name(f"{name.stem}@{clip.start_s:g}s{name.suffix}")
        key, part = (folder / name).as_posix(), (clip.start_s, clip.duration_s)
        return Source(key, Path(clip.path), *part, name=name, captions=clip.captions, fields=clip.fields)

    def from_folder(sound: Path, root: Path) -> Source:
        texts, fields = find_captions(sound, root) if captions else ((), {})
        return from_file(Clip(str(sound), texts, fields=fields), root)

    def from_corpus(clip: BuiltInClip) -> Source:
        def render(sample_rate: int) -> torch.Tensor:  # [1, N]
            return synth.render(SYNTH_SEED, clip.number, sample_rate).audio

        name = Path("synth", f"{clip.number:06d}")
        texts = synth.captions(SYNTH_SEED, clip.number) if captions else ()
        return Source(clip.key, name, render=render, name=name, captions=texts)

    items: list[Source] = []
    for given in inputs:
        path = Path(given)
        if path.suffix.lower() in (".jsonl", ".csv"):
            items += [from_file(clip, path.parent) for clip in read_manifest(path)]
        elif path.is_dir():
            items += [from_folder(sound, path) for sound in sound_files(path)]
        elif path.exists():
            items.append(from_folder(path, path.parent))
        elif given.startswith("synth:"):
            clips = read_source(SourceConfig(given))
            items += [from_corpus(clip) for clip in clips if isinstance(clip, BuiltInClip)]
        else:
            raise InputError(f"{given}: no such file or folder")
    return items


def choose_codebooks(codec: SegmentedCodec, wanted_kbps: float | None) -> int:
    """How many codebooks make that bandwidth; all of them for None. InputError lists what the codec has."""
    if wanted_kbps is None:
        return codec.num_codebooks
    bandwidths = [bandwidth_kbps(codec, count) for count in range(1, codec.num_codebooks + 1)]
    for count, value in enumerate(bandwidths, 1):
        if math.isclose(value, wanted_kbps, rel_tol=1e-4):
            return count
    listed = ", ".join(f"{value:g}" for value in bandwidths)
    raise InputError(f"--bandwidth {wanted_kbps:g}: codec {codec.name} has {listed} kbps")
