"""`audiogen.codec encode`: sounds to token files, or to shards for training."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from audiogen.codec import ecdc
from audiogen.codec.formats import ECDC, SUFFIXES, format_of
from audiogen.codec.parts import Part, choose_part, digest, part_spec, run_workers
from audiogen.codec.report import check_distinct, choose_targets, report
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.codec.transcode import Clip as EncodedClip
from audiogen.codec.transcode import Sound, encode_clips
from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED, BuiltInClip, SourceConfig, read_source
from audiogen.data.manifest import SOUND_SUFFIXES, Clip, check_name, find_captions, read_manifest, sound_files
from audiogen.data.shards import CodeClip, ShardWriter, TokenSpec
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.files import remote
from audiogen.files.locks import only_writer
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec


def run(arguments: argparse.Namespace) -> None:
    """Encode to token files, or to shards with --shards."""
    if arguments.workers > 1:
        if arguments.part is not None:
            raise InputError("--workers makes parts of its own: drop it, or --part")
        return run_workers(arguments)
    part = choose_part(arguments.part)
    sounds = find_sounds(arguments.inputs, captions=arguments.shards is not None)
    names = [sound.name for sound in sounds]
    targets = choose_targets(Path(arguments.out), names, SUFFIXES, arguments.format, "token file")
    if not arguments.shards:
        check_distinct(targets, [str(sound.path) for sound in sounds])
    elif targets[0] == Path(arguments.out) or format_of(targets[0]) is ECDC:
        raise InputError("--shards writes a folder of shards: give --out a folder, and no --format")
    device = choose_device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    codec = in_segments(load_codec(arguments.codec, device, dtype=dtype, beam=arguments.beam))
    num_codebooks = choose_codebooks(codec, arguments.bandwidth)
    if arguments.shards:
        if codec.header.segment_samples is not None:
            raise InputError(
                f"--shards: codec {codec.name} works on overlapping segments, each with codes and a scale of its own, "
                "which are no sequence to train on; leave it out for token files, or choose another codec"
            )
        with only_writer(part.folder(arguments.out) if part else arguments.out):
            encode_shards(arguments, codec, num_codebooks, sounds, part)
    else:
        pairs = list(zip(targets, sounds, strict=True))
        encode_files(arguments, codec, num_codebooks, dict(part(pairs) if part else pairs))


def encode_files(
    arguments: argparse.Namespace, codec: SegmentedCodec, num_codebooks: int, sounds: Mapping[Path, Sound]
) -> None:
    """One token file a sound; those that an earlier run finished are kept."""
    name = codec.name
    identity = codec.header.identity
    format = format_of(next(iter(sounds)))
    if format is ECDC:  # such a file names a model and has no hash
        name = ecdc.model_name(codec.header)
        identity = ""
    wanted = (name, identity, num_codebooks)
    pending = [
        replace(sound, key=str(target))
        for target, sound in sounds.items()
        if arguments.overwrite or not is_encoded(target, sound, wanted)
    ]

    def save(clip: EncodedClip[Segment]) -> None:
        target = Path(clip.key)
        header = replace(clip.header, codec=name, identity=identity, source_key=sounds[target].key)
        format.write(target, header, clip.parts)

    with report("encoded", len(pending), arguments.give, arguments.out, len(sounds) - len(pending)) as counts:
        counts.each(encode_clips(codec, pending, num_codebooks, arguments.batch_size), save)


def is_encoded(target: Path, sound: Sound, wanted: tuple[object, ...]) -> bool:
    """Whether the token file is there, of this codec and bandwidth, and of the sound as it is now.

    wanted: the codec's name and hash, and the number of codebooks. InputError where the file is of other ones, or of
    another sound.
    """
    if not target.exists():
        return False
    try:
        header = format_of(target).read_header(target)
    except InputError as error:
        raise InputError(f"{error}; to replace the file, add --overwrite") from None
    if (header.codec, header.identity, header.num_codebooks) != wanted:
        raise InputError(
            f"{target} exists, of codec {header.named_codec} at {header.bandwidth_kbps:g} kbps; choose another --out, "
            "or replace it with --overwrite"
        )
    if isinstance(sound.path, Path) and not sound.path.exists():
        return True  # rendered, or deleted since
    if header.source_key is None:  # .ecdc, and older token files
        return sound.file().stat().st_mtime <= target.stat().st_mtime
    try:
        if header.source_crc == sound.checksum():
            return True
    except InputError:
        return False  # it is named, and skipped, where it is to be encoded
    if header.source_key != sound.key:
        raise InputError(
            f"{target} exists, of the sound {header.source_key[:200]}, not of {sound.key}; choose another --out, or "
            "replace it with --overwrite"
        )
    return False


def encode_shards(
    arguments: argparse.Namespace,
    codec: SegmentedCodec,
    num_codebooks: int,
    sounds: Sequence[Sound],
    part: Part | None = None,
) -> None:
    """Token shards in the order of the input, or a part of them; what an earlier run stored is kept.

    A shard is the next clips that are not stored, whatever becomes of them, so that a run that was interrupted and
    continued makes the same shards as one that was not. What could not be read is tried again, at the end.
    """
    if arguments.overwrite:
        raise InputError("--overwrite does not go with --shards: delete the folder, or choose another one")
    for sound in sounds:
        check_name(sound.name)
    by_key = {sound.key: sound for sound in sounds}
    check_distinct([sound.key for sound in sounds], [str(sound.path) for sound in sounds])
    spec = replace(TokenSpec.of(codec.codec), num_codebooks=num_codebooks)
    writer = ShardWriter(arguments.out, spec)
    pending = [key for key in by_key if key not in writer.done]
    fresh = [key for key in pending if key not in writer.unreadable]
    again = [key for key in pending if key in writer.unreadable]
    size = arguments.shards
    chunks = [keys[at : at + size] for keys in (fresh, again) for at in range(0, len(keys), size)]
    shards = list(enumerate(chunks, len(writer.paths)))
    if part is not None:
        shards, whole = part(shards), digest(pending, size)
        writer = ShardWriter(part.folder(arguments.out), spec, part_spec(part, shards, whole))
        sounds = [by_key[key] for _, keys in shards for key in keys]
        shards = [(number, [key for key in keys if key not in writer.done]) for number, keys in shards]
        pending = [key for _, keys in shards for key in keys]
        writer.write([])  # a part without clips is one, too
    clips: dict[str, CodeClip] = {}  # of the next shard

    def keep(clip: EncodedClip[Segment]) -> None:
        codes = torch.cat([segment.codes[0] for segment in clip.parts], dim=1)  # [K, T]
        sound, num_samples = by_key[clip.key], clip.header.num_samples
        clips[clip.key] = CodeClip(clip.key, codes, num_samples, sound.captions, sound.fields)

    with report("encoded", len(pending), arguments.give, arguments.out, len(sounds) - len(pending)) as counts:
        for number, keys in shards:
            chosen = [by_key[key] for key in keys]
            unreadable = counts.each(encode_clips(codec, chosen, num_codebooks, arguments.batch_size), keep)
            stored = [clips.pop(key) for key in keys if key in clips]
            writer.write(stored, unreadable, number if part else None)


def find_sounds(inputs: Iterable[str], captions: bool) -> list[Sound]:
    """The sounds that the inputs name, with captions from beside them if asked; InputError for an empty input."""
    sounds: list[Sound] = []
    for given in inputs:
        path = Path(given)
        if remote.is_remote(given):
            sounds += at_url(given)
        elif path.suffix.lower() in (".jsonl", ".csv"):
            sounds += [from_file(clip, path.parent) for clip in read_manifest(path)]
        elif path.exists():
            root = path if path.is_dir() else path.parent
            for file in sound_files(path) if path.is_dir() else [path]:
                texts, fields = find_captions(file, root) if captions else ((), {})
                sounds.append(from_file(Clip(str(file), texts, fields=fields), root))
        elif given.startswith("synth:"):
            clips = read_source(SourceConfig(given))
            sounds += [from_corpus(clip, captions) for clip in clips if isinstance(clip, BuiltInClip)]
        else:
            raise InputError(f"{given}: no such file or folder")
    return sounds


def at_url(url: str) -> list[Sound]:
    """The sound at a URL, or those of the manifest there, or in the folder there."""
    suffix, folder = os.path.splitext(url)[1].lower(), url.rpartition("/")[0]
    if suffix in SOUND_SUFFIXES:
        return [from_file(Clip(url, ()), folder)]
    folder = folder if suffix in (".jsonl", ".csv") else url.rstrip("/")
    return [from_file(clip, folder) for clip in read_source(SourceConfig(url)) if isinstance(clip, Clip)]


def from_file(clip: Clip, root: Path | str) -> Sound:
    """A sound file, or a part of one, by its path below the input `root`: a folder, or the URL of one."""
    place, base = clip.path, str(root)
    if remote.is_remote(place):
        place, base = (text.partition("://")[2] for text in (place, base))
    name, folder = Path(os.path.relpath(place, base)), Path(os.path.abspath(base)).name
    if ".." in name.parts:  # a manifest may name sounds anywhere
        name, folder = Path(name.name), name.parent.name
    if clip.start_s:
        name = name.with_name(f"{name.stem}@{clip.start_s:g}s{name.suffix}")
    path = clip.path if remote.is_remote(clip.path) else Path(clip.path)
    part = (path, clip.start_s, clip.duration_s)
    return Sound((folder / name).as_posix(), name, *part, clip.captions, clip.fields)


def from_corpus(clip: BuiltInClip, captions: bool) -> Sound:
    """A sound of the built-in corpus, whatever the rate."""

    def render(sample_rate: int, channels: int) -> torch.Tensor:  # [1 or 2, N]
        return synth.render(SYNTH_SEED, clip.number, sample_rate, channels=min(2, channels)).audio

    name = Path("synth", f"{clip.number:06d}")
    texts = synth.captions(SYNTH_SEED, clip.number) if captions else ()
    return Sound(clip.key, name, name, captions=texts, render=render)


def choose_codebooks(codec: SegmentedCodec, wanted_kbps: float | None) -> int:
    """How many codebooks make that bandwidth; all of them for None. InputError lists what the codec has."""
    if wanted_kbps is None:
        return codec.header.num_codebooks
    for count, value in enumerate(codec.bandwidths_kbps, 1):
        if math.isclose(value, wanted_kbps, rel_tol=1e-4):  # as it is written: 2.2 for 2.20004
            return count
    listed = ", ".join(f"{value:g}" for value in codec.bandwidths_kbps)
    raise InputError(f"--bandwidth {wanted_kbps:g}: codec {codec.name} has {listed} kbps")
