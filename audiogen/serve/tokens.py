"""Sounds to token files and back over HTTP, by the codec of a language model."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form, Response, UploadFile

from audiogen.codec import tokens, transcode
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.errors import InputError
from audiogen.generators.token import AudioGen
from audiogen.serve import sounds
from audiogen.serve.engine import Worker
from audiogen.serve.refusals import Refused

NAME = "upload"


def encode(codec: SegmentedCodec, data: bytes, num_codebooks: int, longest_s: float) -> bytes:
    """A sound's file -> a token file with the first codebooks."""
    sounds.decode(data, longest_s, "file")  # which refuses what is none, or too long
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, NAME), Path(folder, f"{NAME}.agtok")
        source.write_bytes(data)
        sound = transcode.Sound(NAME, Path(NAME), source)
        (clip,) = transcode.encode_clips(codec, [sound], num_codebooks)
        if isinstance(clip, InputError):
            raise clip
        tokens.write_tokens(target, clip.header, clip.parts)
        return target.read_bytes()


def decode(codec: SegmentedCodec, data: bytes, longest_s: float, form: str) -> bytes:
    """A token file -> its sound in a format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{NAME}.agtok")
        path.write_bytes(data)
        try:
            header = tokens.read_header(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "file")) from None
        if header.duration_s > longest_s:
            raise InputError(f"file has {header.duration_s:g} s; up to {longest_s:g} s are decoded here")
        clip = transcode.Tokens("file", Path(NAME), lambda: tokens.read_tokens(path))
        (sound,) = transcode.decode_clips(codec, [clip])
        if isinstance(sound, InputError):
            raise sound
        samples = torch.cat(list(sound.parts), -1)
    return sounds.encode(samples, codec.header.sample_rate, form)


def add_routes(
    app: FastAPI, worker_of: Callable[[str | None], Worker], longest_s: float, guarded: dict[str, Any]
) -> None:
    """POST /v1/audio/encode and /v1/audio/decode; one at a time, beside the sounds that are made."""
    one = asyncio.Semaphore()

    def codec_of(model: str | None) -> SegmentedCodec:
        generator = worker_of(model).generator
        if not isinstance(generator, AudioGen):
            raise Refused(400, "this model has no codec of tokens; choose a language model", "model")
        return in_segments(generator.codec)

    @app.post("/v1/audio/encode", response_class=Response, **guarded)
    async def encode_(
        file: Annotated[UploadFile, File(description="the sound: wav, flac, ogg or mp3")],
        model: Annotated[str | None, Form(description="whose codec; missing: the default model's")] = None,
        num_codebooks: Annotated[int | None, Form(ge=1, description="missing: all")] = None,
    ) -> Response:
        """A sound to a token file, as of `audiogen.codec encode`."""
        codec = codec_of(model)
        most = codec.header.num_codebooks
        if num_codebooks is not None and num_codebooks > most:
            raise Refused(400, f"num_codebooks is {num_codebooks}; this codec has {most}", "num_codebooks")
        async with one:
            data = await asyncio.to_thread(encode, codec, await file.read(), num_codebooks or most, longest_s)
        return Response(data, media_type="application/octet-stream")

    @app.post("/v1/audio/decode", response_class=Response, **guarded)
    async def decode_(
        file: Annotated[UploadFile, File(description="a token file")],
        model: Annotated[str | None, Form(description="whose codec; missing: the default model's")] = None,
        response_format: Annotated[str, Form(description="wav, flac, mp3, ogg, opus or pcm")] = "wav",
    ) -> Response:
        """A token file to its sound, as of `audiogen.codec decode`."""
        if response_format not in sounds.FORMATS:
            allowed = ", ".join(sounds.FORMATS)
            raise Refused(422, f"response_format: allowed are {allowed}", "response_format")
        codec = codec_of(model)
        async with one:
            data = await asyncio.to_thread(decode, codec, await file.read(), longest_s, response_format)
        return Response(data, media_type=sounds.FORMATS[response_format][1])
