"""`python -m audiogen.codec`: sounds to token files or to shards for training, back to sounds, and what a file holds.

The heavy imports stand inside the commands: `--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiogen.codec.report import Report
from audiogen.errors import InputError, run_command

if TYPE_CHECKING:
    import torch

    from audiogen.codec.container import TokenHeader
    from audiogen.codec.model import Codec
    from audiogen.codec.transcode import Source, Tokens
    from audiogen.data.codes import ShardReader

DEFAULT_CODEC = "codec_tiny"
FORMATS = ("wav", "flac", "ogg", "mp3")
WORKERS = 4  # threads that read files ahead


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m audiogen.codec", description="Audio to tokens and back.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="encode | decode | info")

    encode = commands.add_parser("encode", help="sounds to token files, or to token shards for training")
    encode.add_argument(
        "inputs", nargs="+", help="sound files, folders, manifests (.jsonl, .csv), synth:COUNT"
    )
    encode.add_argument("-o", "--out", required=True, help="a folder; for one sound also a file name.agtok")
    encode.add_argument("--codec", default=DEFAULT_CODEC, help="bundled name or model directory")
    encode.add_argument(
        "--bandwidth", type=float, metavar="KBPS", help="one the codec has; default: its highest"
    )
    encode.add_argument(
        "--shards", type=int, metavar="CLIPS", help="write shards of that many clips, for training"
    )

    decode = commands.add_parser("decode", help="token files or token shards to sounds")
    decode.add_argument("inputs", nargs="+", help="token files, folders of them, or folders of token shards")
    decode.add_argument("-o", "--out", required=True, help="a folder; for one clip also a file name.wav")
    decode.add_argument("--codec", help="bundled name or model directory; default: the name in the tokens")
    decode.add_argument(
        "--format", choices=FORMATS, help="default: wav, or as the name given with --out ends"
    )
    decode.add_argument(
        "--original-rate",
        action="store_true",
        help="restore the recording's sample rate and its length at that rate; default: the codec's rate",
    )

    for command in (encode, decode):
        command.add_argument(
            "--batch-size", type=int, help="clips of equal length at a time; default: 8 on a GPU, 1 on a CPU"
        )
        command.add_argument(
            "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps"
        )
        command.add_argument("--overwrite", action="store_true", help="replace files that exist")

    info = commands.add_parser("info", help="describe a codec, a token file or a folder of token shards")
    info.add_argument("input", nargs="?", default=DEFAULT_CODEC, help="default: the bundled codec")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = parse(argv)
    for option in ("batch_size", "shards"):
        value = getattr(arguments, option, None)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} is {value}; allowed: 1 and more")
    try:
        {"encode": run_encode, "decode": run_decode, "info": run_info}[arguments.command](arguments)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, say: what cannot be read is an InputError by now
        raise InputError(f"{error.filename or 'the output'}: {error.strerror}") from error
    return 0


# ------------------------------------------------------------------------------------------------------ encode


@dataclass(frozen=True)
class Item:
    """A sound to encode; `name` is its path below the input, which the output keeps."""

    name: Path
    source: Source
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def run_encode(arguments: argparse.Namespace) -> None:
    """Encode to token files, or to shards with --shards."""
    from audiogen import distributed
    from audiogen.codec.container import SUFFIX
    from audiogen.codec.pretrained import load_codec

    out = Path(arguments.out)
    items = find_sounds(arguments.inputs, captions=arguments.shards is not None)
    targets = [out / item.name.with_suffix(SUFFIX) for item in items]
    if out.suffix == SUFFIX and not out.is_dir():
        if len(items) > 1 or arguments.shards:
            raise InputError(f"--out {out} names one token file, for {len(items)} sounds: give a folder")
        targets = [out]
    if not arguments.shards:
        check_distinct(targets, [str(item.source.path) for item in items])
    codec = load_codec(arguments.codec, distributed.choose_device(arguments.device))
    num_codebooks = choose_codebooks(codec, arguments.bandwidth)
    if arguments.shards:
        encode_shards(arguments, codec, num_codebooks, items)
    else:
        encode_files(arguments, codec, num_codebooks, dict(zip(targets, items, strict=True)))


def encode_files(
    arguments: argparse.Namespace, codec: Codec, num_codebooks: int, items: Mapping[Path, Item]
) -> None:
    """One token file a sound; those that an earlier run finished are kept."""
    from audiogen.codec.container import TokenWriter
    from audiogen.codec.transcode import Failed, UnreadableError, encode_clips

    pending = {
        target: item
        for target, item in items.items()
        if arguments.overwrite or not is_encoded(target, item, codec, num_codebooks)
    }
    sources = [replace(item.source, key=str(target)) for target, item in pending.items()]
    with Report("encoded", len(sources), kept=len(items) - len(sources)) as report:
        for result in encode_clips(codec, sources, num_codebooks, arguments.batch_size, WORKERS):
            if isinstance(result, Failed):
                report.failed(result.reason)
                continue
            try:
                with TokenWriter(result.key, result.header) as writer:
                    for codes in report.watch(result.codes, result.header.duration_s, codec.frame_rate):
                        writer.add(codes)
                    writer.finish(result.header.num_samples)
            except UnreadableError as error:
                report.failed(str(error))
            else:
                report.done(result.header.duration_s)


def is_encoded(target: Path, item: Item, codec: Codec, num_codebooks: int) -> bool:
    """Whether the token file is there, of this codec and bandwidth, and not older than the sound."""
    from audiogen.codec.container import read_header

    if not target.exists():
        return False
    try:
        header = read_header(target)
    except InputError as error:
        raise InputError(f"{error}; to replace the file, add --overwrite") from None
    if (header.identity, header.num_codebooks) != (codec.identity, num_codebooks):
        raise InputError(
            f"{target} exists, of codec {header.codec} ({header.identity}) at {header.bandwidth_kbps:g} kbps; "
            "choose another --out, or replace it with --overwrite"
        )
    source = item.source.path
    return not source.exists() or source.stat().st_mtime <= target.stat().st_mtime


def encode_shards(
    arguments: argparse.Namespace, codec: Codec, num_codebooks: int, items: Sequence[Item]
) -> None:
    """Token shards in the order of the input; what an earlier run stored is kept.

    A shard is the next clips that are not stored, whatever becomes of them, so that a run that was interrupted and
    continued makes the same shards as one that was not. What could not be read is tried again, at the end.
    """
    import torch

    from audiogen.codec.transcode import Failed, UnreadableError, encode_clips
    from audiogen.data.codes import CodeClip, ShardWriter, TokenSpec

    if arguments.overwrite:
        raise InputError("--overwrite does not go with --shards: delete the folder, or choose another one")
    by_key = {item.source.key: item for item in items}
    check_distinct([item.source.key for item in items], [str(item.source.path) for item in items])
    sizes = (codec.sample_rate, codec.channels, codec.hop_length, num_codebooks, codec.codebook_size)
    writer = ShardWriter(arguments.out, TokenSpec(codec.name, codec.identity, *sizes))
    pending = [key for key in by_key if key not in writer.done]
    fresh = [key for key in pending if key not in writer.unreadable]
    again = [key for key in pending if key in writer.unreadable]
    size = arguments.shards
    shards = [keys[at : at + size] for keys in (fresh, again) for at in range(0, len(keys), size)]
    with Report("encoded", len(pending), kept=len(items) - len(pending)) as report:
        for keys in shards:
            clips: dict[str, CodeClip] = {}
            unreadable: dict[str, str] = {}
            sources = [by_key[key].source for key in keys]
            for result in encode_clips(codec, sources, num_codebooks, arguments.batch_size, WORKERS):
                try:
                    if isinstance(result, Failed):
                        raise UnreadableError(result.reason)
                    header = result.header
                    codes = torch.cat(
                        list(report.watch(result.codes, header.duration_s, codec.frame_rate)), dim=1
                    )
                except UnreadableError as error:
                    unreadable[result.key] = str(error)
                    report.failed(str(error))
                else:
                    item = by_key[result.key]
                    clip = CodeClip(result.key, codes, header.num_samples, item.captions, item.fields)
                    clips[result.key] = clip
                    report.done(header.duration_s)
            writer.write([clips[key] for key in keys if key in clips], unreadable)


def find_sounds(inputs: Iterable[str], captions: bool) -> list[Item]:
    """The sounds that the inputs name, with captions from beside them if asked; InputError for an empty input."""
    from audiogen.codec.transcode import Source
    from audiogen.data import synth
    from audiogen.data.dataset import SYNTH_SEED, BuiltInClip, SourceConfig, read_source
    from audiogen.data.manifest import Clip, find_captions, read_manifest, sound_files

    def from_file(clip: Clip, root: Path) -> Item:
        name = Path(os.path.relpath(clip.path, root))
        folder = Path(os.path.abspath(root)).name
        if ".." in name.parts:  # a manifest may name sounds anywhere
            name, folder = Path(name.name), name.parent.name
        if clip.start_s:
            name = name.with_name(f"{name.stem}@{clip.start_s:g}s{name.suffix}")
        source = Source((folder / name).as_posix(), Path(clip.path), clip.start_s, clip.duration_s)
        return Item(name, source, clip.captions, clip.fields)

    def from_folder(sound: Path, root: Path) -> Item:
        texts, fields = find_captions(sound, root) if captions else ((), {})
        return from_file(Clip(str(sound), texts, fields=fields), root)

    def from_corpus(clip: BuiltInClip) -> Item:
        def render(sample_rate: int) -> torch.Tensor:
            return synth.render(SYNTH_SEED, clip.number, sample_rate).audio

        name = Path("synth", f"{clip.number:06d}")
        texts = synth.captions(SYNTH_SEED, clip.number) if captions else ()
        return Item(name, Source(clip.key, name, render=render), texts)

    items: list[Item] = []
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


def choose_codebooks(codec: Codec, bandwidth_kbps: float | None) -> int:
    """How many codebooks make that bandwidth; all of them for None. InputError lists what the codec has."""
    bandwidths = [codec.bandwidth_kbps(count) for count in range(1, codec.num_codebooks + 1)]
    if bandwidth_kbps is None:
        return codec.num_codebooks
    for count, value in enumerate(bandwidths, 1):
        if math.isclose(value, bandwidth_kbps, rel_tol=1e-4):
            return count
    listed = ", ".join(f"{value:g}" for value in bandwidths)
    raise InputError(f"--bandwidth {bandwidth_kbps:g}: codec {codec.name} has {listed} kbps")


# ------------------------------------------------------------------------------------------------------ decode


def run_decode(arguments: argparse.Namespace) -> None:
    """Decode token files and shards to sounds of their exact length."""
    from audiogen import audio, distributed
    from audiogen.codec.transcode import Failed, decode_clips

    out = Path(arguments.out)
    clips = find_tokens(arguments.inputs)
    suffix = out.suffix.lower().lstrip(".")
    one_file = suffix in FORMATS and not out.is_dir()
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
    codec = load_codec_of(
        [clip for _, clip in clips], arguments.codec, distributed.choose_device(arguments.device)
    )
    target_of = {clip.key: target for (_, clip), target in zip(clips, targets, strict=True)}
    tokens = [clip for _, clip in clips]
    with Report("decoded", len(clips)) as report:
        for result in decode_clips(codec, tokens, arguments.original_rate, arguments.batch_size, WORKERS):
            if isinstance(result, Failed):
                report.failed(result.reason)
                continue
            blocks = report.watch(result.audio, result.duration_s, result.sample_rate)
            audio.save(target_of[result.key], blocks, result.sample_rate, format)
            report.done(result.duration_s)


def find_tokens(inputs: Iterable[str]) -> list[tuple[Path, Tokens]]:
    """(path below the input, clip) of every clip that the inputs name; InputError for an input without any."""
    from audiogen.codec.container import SUFFIX, TokenHeader, read_blocks
    from audiogen.codec.transcode import Tokens
    from audiogen.data.codes import ShardReader, is_shard_directory

    def from_file(path: Path) -> Tokens:
        return Tokens(str(path), lambda: read_blocks(path))

    def from_shard(reader: ShardReader, index: int) -> Tokens:
        header = TokenHeader(**asdict(reader.spec), num_samples=reader.num_samples[index])
        return Tokens(
            f"{reader.directory}: {reader.clips[index].path}", lambda: (header, [reader.codes(index)])
        )

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
            found = sorted(path.rglob(f"*{SUFFIX}"))
            if not found:
                raise InputError(f"{path}: no token files (*{SUFFIX}) in it, and no shards")
            clips += [(file.relative_to(path), from_file(file)) for file in found]
        elif path.exists():
            clips.append((Path(path.name), from_file(path)))
        else:
            raise InputError(f"{given}: no such file or folder")
    return clips


def load_codec_of(clips: Sequence[Tokens], given: str | None, device: torch.device) -> Codec:
    """The codec given, or the one that the first readable clip names."""
    from audiogen.checkpoint import resolve
    from audiogen.codec.pretrained import load_codec

    if given is not None:
        return load_codec(given, device)
    reasons = []
    for clip in clips:
        try:
            header, _ = clip.read()
        except InputError as error:
            reasons.append(str(error))
            continue
        try:
            resolve(header.codec, "codec")
        except InputError:
            raise InputError(
                f"{clip.key}: made by codec {header.codec} ({header.identity}), which is not bundled: "
                "give its directory with --codec"
            ) from None
        return load_codec(header.codec, device)
    raise InputError(f"none of the {len(clips)} token files can be read; the first: {reasons[0]}")


# -------------------------------------------------------------------------------------------------------- info


def run_info(arguments: argparse.Namespace) -> None:
    """Print what a codec, a token file or a folder of token shards is, one `name: value` a line."""
    from audiogen.codec.container import read_header
    from audiogen.data.codes import is_shard_directory

    path = Path(arguments.input)
    if path.is_file():
        lines = describe_tokens(read_header(path))
    elif is_shard_directory(path):
        lines = describe_shards(path)
    else:
        lines = describe_codec(arguments.input)
    for name, value in lines.items():
        print(f"{name}: {value}")


def describe_tokens(header: TokenHeader) -> dict[str, str]:
    """A token file."""
    lines = {
        "codec": f"{header.codec} ({header.identity})",
        "sample rate": f"{header.sample_rate} Hz",
        "channels": str(header.channels),
        "length": f"{header.num_samples} samples, {header.duration_s:.3f} s, {header.num_frames} frames",
        "codebooks": f"{header.num_codebooks} of {header.codebook_size} codes, {header.bandwidth_kbps:g} kbps",
    }
    if header.source_num_samples is not None:
        lines["recording"] = f"{header.source_num_samples} samples at {header.source_sample_rate} Hz"
    return lines


def describe_shards(path: Path) -> dict[str, str]:
    """A folder of token shards."""
    from audiogen.codec.container import bandwidth_kbps
    from audiogen.data.codes import ShardReader

    reader = ShardReader(path)
    spec = reader.spec
    kbps = bandwidth_kbps(spec.frame_rate, spec.num_codebooks, spec.codebook_size)
    hours = sum(reader.num_samples) / spec.sample_rate / 3600
    return {
        "codec": f"{spec.codec} ({spec.identity})",
        "sample rate": f"{spec.sample_rate} Hz",
        "clips": f"{len(reader)}, {hours:.3f} hours, {sum(reader.num_frames)} frames",
        "codebooks": f"{spec.num_codebooks} of {spec.codebook_size} codes, {kbps:g} kbps",
        "unreadable": str(len(reader.unreadable)),
    }


def describe_codec(name: str) -> dict[str, str]:
    """A codec, with what its directory records of its training; the recipe stays in config.json."""
    from audiogen.checkpoint import read_config, resolve
    from audiogen.codec.pretrained import load_codec

    codec = load_codec(name)
    bandwidths = [codec.bandwidth_kbps(count) for count in range(1, codec.num_codebooks + 1)]
    directory = resolve(name)
    record = read_config(directory)["info"]
    return {
        "codec": f"{codec.name} ({codec.identity})",
        "directory": str(directory),
        "architecture": f"{codec.config.arch}, {sum(p.numel() for p in codec.parameters())} parameters",
        "sample rate": f"{codec.sample_rate} Hz",
        "channels": str(codec.channels),
        "frames": f"{codec.frame_rate:g} a second, of {codec.hop_length} samples",
        "codebooks": f"{codec.num_codebooks} of {codec.codebook_size} codes",
        "bandwidths": f"{', '.join(f'{value:g}' for value in bandwidths)} kbps",
        **{key: str(value) for key, value in record.items() if not isinstance(value, (dict, list))},
    }


# ------------------------------------------------------------------------------------------------- both directions


def check_distinct(targets: Sequence[Path | str], sources: Sequence[str]) -> None:
    """Before any work: no two inputs may end in one output."""
    owner: dict[Path | str, str] = {}
    for target, source in zip(targets, sources, strict=True):
        if target in owner:
            raise InputError(f"{owner[target]} and {source} would both become {target}: encode them apart")
        owner[target] = source


if __name__ == "__main__":
    sys.exit(run_command(main))
