"""The sounds that the page shows: made or being made, in memory alone, each under an address that nobody can guess."""

import asyncio
import io
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from soundfile import SoundFile
from torch import Tensor

from audiogen.files.tags import Tagged, Tags
from audiogen.generators.request import num_samples
from audiogen.serve import sounds
from audiogen.serve.engine import Worker
from audiogen.serve.orders import origin
from audiogen.serve.refusals import Refused, failure
from audiogen.serve.watched import Watched
from audiogen.spectrogram import picture

MOST_BYTES = 256_000_000  # of all sounds that are kept
FOLDER = "page/takes"


class Take:
    """A sound of the page and its course.

    blocks: audio [C, n] as it came; together, when it is over, the sound. name: of its files. asked: the values of the
    page's controls that it was made with.
    """

    def __init__(
        self, title: str, facts: str, name: str, sample_rate: int, asked: dict[str, Any] | None = None
    ):
        self.key = secrets.token_urlsafe(16)
        self.title, self.facts, self.name, self.sample_rate, self.asked = (
            title,
            facts,
            name,
            sample_rate,
            asked or {},
        )
        self.blocks: list[Tensor] = []
        self.is_over = False
        self.error: str | None = None
        self.is_live = False  # it can be played while it is made
        self.duration_s = 0.0  # that it will have
        self._watched: Watched | None = None
        self._worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def hold(self, sound: Tensor) -> "Take":
        """A sound [C, N] that is there already."""
        self.blocks, self.is_over = [sound], True
        return self

    def follow(self, worker: Worker, watched: Watched) -> "Take":
        """The sound of a submitted job."""
        self._worker, self._watched = worker, watched
        self.is_live, self.duration_s = watched.job.order.is_streamed, watched.job.order.duration_s
        self._task = asyncio.create_task(self._gather(watched))
        return self

    async def _gather(self, watched: Watched) -> None:
        job = watched.job
        async for block in watched.blocks():
            self.blocks.append(block)
            self._wake()
        if job.state == "done" and job.sound is not None:
            self.blocks = [job.sound[:, : num_samples(job.order.duration_s, self.sample_rate)]]
        if job.state != "done":
            self.error = "stopped" if job.state == "cancelled" else failure(job).body["message"]
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def stop(self) -> None:
        """End it where it is; what was made so far stays."""
        if self._watched is not None:
            self._watched.job.cancel()

    @property
    def sound(self) -> Tensor | None:
        """[C, N], when it is over and there is any."""
        return torch.cat(self.blocks, -1) if self.is_over and self.blocks else None

    @property
    def tags(self) -> Tags | None:
        """The metadata of its files; None of what was not generated."""
        if self._worker is None or self._watched is None:
            return None
        return origin(self._worker, self._watched.job.order).tags()

    @property
    def num_bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    async def mp3(self) -> AsyncIterator[bytes]:
        """An MP3 file as its sound comes: what browsers can append to a player that plays already."""
        sent, passed, data, file = 0, 0, io.BytesIO(), None
        while True:
            news, is_over = self._news, self.is_over
            while sent < len(self.blocks):
                block = self.blocks[sent].T.numpy()
                if file is None:
                    kind, subtype = sounds.FORMATS["mp3"][0]
                    file = SoundFile(
                        Tagged(data, "mp3", self.tags),
                        "w",
                        self.sample_rate,
                        block.shape[1],
                        subtype,
                        format=kind,
                    )
                file.write(block)
                sent += 1
            if is_over and file is not None:
                file.close()  # which also writes the length into the first frame; players of a stream do without
            written = data.getvalue()
            yield written[passed:]
            passed = len(written)
            if is_over:
                return
            await news.wait()

    def card(self) -> dict[str, Any]:
        """What takes.js shows of it."""
        job = None if self._watched is None else self._watched.job
        state, progress = "done", 1.0
        if job is not None and not self.is_over:
            assert self._worker is not None
            place = self._worker.place(job)
            state, progress = ("waits" if job.state == "queued" else "runs"), job.progress
            if place:
                state = f"waits, {place} before it"
        plays = bool(self.blocks) and (self.is_over or self.is_live)
        return {
            "key": self.key, "title": self.title, "facts": self.facts, "name": self.name, "state": state,
            "progress": progress, "error": self.error, "plays": plays, "over": self.is_over,
            "url": f"{FOLDER}/{self.key}", "seconds": self.duration_s,
        }  # fmt: skip


class Takes:
    """All takes by their keys; the oldest that are over make place when together they are too large."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._takes: dict[str, Take] = {}

    def add(self, take: Take) -> Take:
        """Keep one more."""
        size = sum(each.num_bytes for each in self._takes.values())
        for key, each in list(self._takes.items()):
            if size <= self.most_bytes:
                break
            if each.is_over:
                size -= each.num_bytes
                del self._takes[key]
                each.blocks = []  # a visitor's list may still have it
        self._takes[take.key] = take
        return take

    def __contains__(self, take: Take) -> bool:
        return take.key in self._takes

    def __getitem__(self, key: str) -> Take:
        if key not in self._takes:
            raise Refused(404, "this sound is no longer here; make it again", "key")
        return self._takes[key]

    def remove(self, take: Take) -> None:
        """Stop it and drop it."""
        take.stop()
        take.blocks = []
        self._takes.pop(take.key, None)


def add_routes(app: FastAPI, takes: Takes) -> None:
    """GET page/takes/KEY.wav and so on, and KEY.png, a picture of it."""

    @app.get(f"/{FOLDER}/{{file}}", include_in_schema=False)
    async def take(file: str, request: Request) -> Response:
        key, _, suffix = file.rpartition(".")
        take = takes[key]
        if suffix == "mp3" and not take.is_over and take.is_live:
            return StreamingResponse(take.mp3(), media_type="audio/mpeg")
        sound = take.sound
        if sound is None or suffix not in (*sounds.FORMATS, "png"):
            raise Refused(404, "this sound is not finished, or there is no such format", "file")
        if suffix == "png":
            data, media = await asyncio.to_thread(picture, sound, take.sample_rate, 720, 96, 40), "image/png"
        else:
            data = await asyncio.to_thread(sounds.encode, sound, take.sample_rate, suffix, take.tags)
            media = sounds.FORMATS[suffix][1]
        return part(data, media, request.headers.get("range"))


def part(data: bytes, media: str, span: str | None) -> Response:
    """Data, or the one span of it that a player asks for when somebody seeks (RFC 9110, 14)."""
    begin, _, end = (span or "").removeprefix("bytes=").partition("-")
    common = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
    if not begin.isdigit() or end and not end.isdigit() or int(begin) >= len(data):
        return Response(data, media_type=media, headers=common)
    last = min(int(end) if end else len(data) - 1, len(data) - 1)
    common["Content-Range"] = f"bytes {begin}-{last}/{len(data)}"
    return Response(data[int(begin) : last + 1], 206, media_type=media, headers=common)


def page_file(name: str) -> str:
    """A file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
