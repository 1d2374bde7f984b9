"""`audiogen.codec info`: what a codec, a token file or a folder of token shards is."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from audiogen.codec.formats import SUFFIXES, format_of
from audiogen.codec.segmented import in_segments
from audiogen.codec.tokens import TokenHeader
from audiogen.data.shards import ShardReader, is_shard_directory
from audiogen.errors import InputError, one_line
from audiogen.files.checkpoint import read_config
from audiogen.files.hub import PICKLES
from audiogen.models.build import load_codec
from audiogen.models.find import CODEC, OWN, find

CODEC_FILES = (*PICKLES, ".safetensors")


def run(arguments: argparse.Namespace) -> None:
    """Print what a codec, a token file or a folder of token shards is, one `name: value` a line."""
    path = Path(arguments.input)
    if path.is_file() and path.suffix.lower() not in CODEC_FILES:
        lines = describe_tokens(format_of(path).read_header(path))
    elif is_shard_directory(path):
        lines = describe_shards(path)
    elif path.is_dir() and (files := [file for file in path.iterdir() if file.suffix in SUFFIXES.values()]):
        raise InputError(f"{path} holds {len(files)} token files; give one of them, such as {min(files)}")
    else:
        lines = describe_codec(arguments.input)
    for name, value in lines.items():
        print(f"{name}: {value}")


def describe_tokens(header: TokenHeader) -> dict[str, str]:
    """A token file."""
    lines = {
        "codec": header.named_codec,
        "sample rate": f"{header.sample_rate} Hz",
        "channels": str(header.channels),
        "length": f"{header.num_samples} samples, {header.duration_s:.3f} s, {header.num_frames} frames",
        "codebooks": codebooks(header),
    }
    if header.segment_samples is not None:
        lines["segments"] = f"{header.num_segments}, {segments(header)}"
    if header.source_num_samples is not None:
        lines["recording"] = f"{header.source_num_samples} samples at {header.source_sample_rate} Hz"
    if header.source_key is not None:
        lines["encoded from"] = one_line(header.source_key)
    return lines


def describe_shards(path: Path) -> dict[str, str]:
    """A folder of token shards."""
    reader = ShardReader(path)
    header = TokenHeader(**asdict(reader.spec), num_samples=1)
    hours = sum(reader.num_samples) / header.sample_rate / 3600
    return {
        "codec": header.named_codec,
        "sample rate": f"{header.sample_rate} Hz",
        "clips": f"{len(reader)}, {hours:.3f} hours, {sum(reader.num_frames)} frames",
        "codebooks": codebooks(header),
        "unreadable": str(len(reader.unreadable)),
    }


def codebooks(header: TokenHeader) -> str:
    """How many, and what they take."""
    return f"{header.num_codebooks} of {header.codebook_size} codes, {header.bandwidth_kbps:g} kbps"


def describe_codec(name: str) -> dict[str, str]:
    """A codec, with what its directory records of its training; the recipe stays in config.json."""
    found = find(name, CODEC)
    codec = in_segments(load_codec(found))
    header = codec.header
    lines = {"codec": header.named_codec}
    record: dict[str, object] = {}
    if found.layout == OWN:
        lines["directory"], record = str(found.path), read_config(found.path)["info"]
    architecture = getattr(getattr(codec.codec, "config", None), "arch", "dac")
    lines |= {
        "architecture": f"{architecture}, {sum(p.numel() for p in codec.codec.parameters())} parameters",
        "sample rate": f"{header.sample_rate} Hz",
        "channels": str(header.channels),
        "frames": f"{header.frame_rate:g} a second, of {header.hop_length} samples",
        "codebooks": f"{header.num_codebooks} of {header.codebook_size} codes",
        "bandwidths": f"{', '.join(f'{value:g}' for value in codec.bandwidths_kbps)} kbps",
    }
    if header.segment_samples is not None:
        lines["segments"] = segments(header)
    return lines | {key: str(value) for key, value in record.items() if not isinstance(value, (dict, list))}


def segments(header: TokenHeader) -> str:
    """How a codec cuts a sound."""
    scaled = ", each divided by its loudness" if header.normalised else ""
    return f"of {header.segment_samples} samples, one every {header.stride_samples}{scaled}"
