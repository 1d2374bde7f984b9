"""What the routes of the API share: checked orders, their sounds whole, in pieces and in batches."""

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from audiogen.errors import InputError
from audiogen.generators.request import num_samples
from audiogen.interfaces import Edit
from audiogen.provenance import Provenance
from audiogen.serve import sounds
from audiogen.serve.engine import Full, Job, Order, Worker
from audiogen.serve.jobs import Jobs
from audiogen.serve.refusals import Refused, failure, refusal
from audiogen.serve.schema import Batch, Generate, Settings
from audiogen.serve.watched import Stream, Watched

UPLOADED = "uploaded.wav"  # in the command of a sound that is made of another
DURATION_S = 5.0  # where a request names none


@dataclass(frozen=True)
class Limits:
    """max_duration_s: of a sound, made or sent. max_body: bytes of a request. api_key: None lets everybody in."""

    max_duration_s: float = 60.0
    max_body: int = 50_000_000
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()


class Api:
    """What a server has, and what its routes do."""

    def __init__(self, workers: Mapping[str, Worker], limits: Limits):
        self.workers, self.limits = dict(workers), limits
        self.default = next(iter(self.workers))
        most = max(worker.max_queue + worker.at_once for worker in self.workers.values())
        self.jobs, self.most_streams = Jobs(most), most
        self.streams: set[str] = set()  # that are not read to their end, of which memory holds what was made

    def worker(self, name: str | None) -> Worker:
        """The model that is asked for."""
        name = name or self.default
        if name not in self.workers:
            allowed = ", ".join(self.workers)
            raise Refused(
                404, f"there is no model {name[:100]!r} here; there are {allowed}", "model", "model_not_found"
            )
        return self.workers[name]

    def order(
        self,
        wanted: Settings,
        text: str | None,
        request: Request,
        is_streamed: bool = False,
        prompt: tuple[Any, int] | None = None,
        edit: Edit | None = None,
        uploaded: bytes = b"",
    ) -> tuple[Worker, Order]:
        """A checked order and the model for it. uploaded: the file that the sound is made of."""
        worker = self.worker(wanted.model)
        longest_s = min(self.limits.max_duration_s, worker.generator.max_duration_s)
        default_s = DURATION_S if edit is None else edit.duration_s
        duration_s = wanted.audio_length or min(default_s, longest_s)
        if duration_s > longest_s:
            raise Refused(
                400,
                f"audio_length is {duration_s:g} s; {worker.name} makes up to {longest_s:g} s here",
                "audio_length",
            )
        seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
        client = request.client.host if request.client else ""
        order = Order(
            text,
            duration_s,
            seed,
            wanted.guidance_scale,
            wanted.sampling(),
            prompt,
            edit,
            is_streamed,
            client,
            wanted.finish(),
            wanted.prompt_metadata,
            hashlib.sha256(uploaded).hexdigest() if uploaded else "",
        )
        worker.check(order)
        if is_streamed and (whole := next(iter(order.finish.given()), None)):
            raise Refused(400, f"{whole} is for whole sounds; drop it, or stream_format", whole)
        form = {"opus": "ogg", "pcm": "wav"}.get(wanted.response_format, wanted.response_format)
        order.finish.check(duration_s, worker.generator.channels, form)
        return worker, order

    def submit(self, worker: Worker, order: Order) -> Watched:
        """Into the queue; 503 where it is full, 429 where it is full of the client's own."""
        watched = Watched(order)
        try:
            worker.submit(watched.job)
        except Full as full:
            if full.own:
                message = f"{full.own} sounds of yours wait already; try again when one is made"
                raise Refused(429, message, code="rate_limit_exceeded") from None
            raise Refused(
                503, f"{worker.queued} sounds wait already; try again later", code="server_busy"
            ) from None
        return watched

    async def sound(self, worker: Worker, order: Order, form: str, request: Request) -> Response:
        """A whole sound, or what went wrong."""
        job = await self.submit(worker, order).finish(request)
        data = await asyncio.to_thread(self.encoded, worker, job, form)
        return Response(data, media_type=sounds.FORMATS[form][1], headers=headers(worker, order))

    def encoded(self, worker: Worker, job: Job, form: str) -> bytes:
        """The sound of a finished job in a format; Refused where it has none."""
        if job.sound is None:
            raise failure(job)
        rate, order = worker.generator.sample_rate, job.order
        sound = job.sound[:, : num_samples(order.duration_s, rate)]
        made = order.finish.apply(sound, rate, order.duration_s)
        return sounds.encode(made.sound, made.sample_rate, form, origin(worker, order).tags())

    async def stream(
        self, worker: Worker, order: Order, form: str, as_events: bool, request: Request
    ) -> Response:
        """A sound while it is made, from its first block on: bytes, or server-sent events.

        What fails before that has the status of a whole sound that fails.
        """
        if form not in sounds.STREAMED:
            raise Refused(
                400, f"{form} cannot be streamed; allowed: {', '.join(sounds.STREAMED)}", "response_format"
            )
        if len(self.streams) >= self.most_streams:
            raise Refused(503, f"{len(self.streams)} streams are read already", code="server_busy")
        watched = self.submit(worker, order)
        self.streams.add(watched.job.id)
        begun = False
        try:
            job = await watched.begin(request)
            begun = bool(job.blocks) or job.state == "done"
        finally:
            if not begun:
                self.streams.discard(watched.job.id)
        if not begun:
            raise failure(job)
        rate, channels = worker.generator.sample_rate, worker.generator.channels
        length = num_samples(order.duration_s, rate)
        tags = origin(worker, order).tags()
        start = sounds.audio.wav_header(rate, channels, length, tags) if form == "wav" else b""

        async def pieces() -> AsyncIterator[bytes]:
            if start:
                yield start
            async for block in watched.blocks():
                yield sounds.audio.pcm16(block)

        async def body() -> AsyncIterator[bytes]:
            async for piece in pieces():
                yield (
                    event("speech.audio.delta", audio=base64.b64encode(piece).decode())
                    if as_events
                    else piece
                )
            if watched.job.state == "done":
                if as_events:
                    yield event("speech.audio.done", usage={"seconds": order.duration_s})
            elif as_events:
                yield event("speech.audio.error", error=failure(watched.job).body)
            else:
                raise RuntimeError("the sound ended early")  # breaks the connection before Content-Length

        facts = headers(worker, order)
        if as_events:
            return Stream(watched, body(), "text/event-stream", facts, self.streams.discard)
        facts["Content-Length"] = str(len(start) + 2 * channels * length)
        return Stream(watched, body(), sounds.FORMATS[form][1], facts, self.streams.discard)

    async def generate(self, wanted: Generate, request: Request) -> Response:
        """A sound of a text, whole or while it is made."""
        is_streamed = wanted.stream_format is not None
        worker, order = self.order(wanted, wanted.input, request, is_streamed)
        if is_streamed:
            as_events = wanted.stream_format == "sse"
            return await self.stream(worker, order, wanted.response_format, as_events, request)
        return await self.sound(worker, order, wanted.response_format, request)

    async def batch(self, wanted: Batch, request: Request) -> dict[str, Any]:
        """Each item's sound in base64, or its error."""
        running: list[tuple[Generate, Worker, Watched] | Refused] = []
        for item in wanted.each():
            try:
                worker, order = self.order(item, item.input, request)
                running.append((item, worker, self.submit(worker, order)))
            except (Refused, InputError) as error:
                running.append(refusal(error))
        results = []
        try:
            for each in running:
                results.append(each.body if isinstance(each, Refused) else await self._item(*each, request))
        finally:
            for each in running:
                if not isinstance(each, Refused):
                    each[2].job.cancel()
        return {
            "results": [
                {"index": index} | ({"error": result} if "message" in result else result)
                for index, result in enumerate(results)
            ]
        }

    async def _item(
        self, item: Generate, worker: Worker, watched: Watched, request: Request
    ) -> dict[str, Any]:
        job = await watched.finish(request)
        try:
            data = await asyncio.to_thread(self.encoded, worker, job, item.response_format)
        except Refused as error:
            return error.body
        facts = {name.removeprefix("X-").lower(): value for name, value in headers(worker, job.order).items()}
        return {"audio": base64.b64encode(data).decode(), "format": item.response_format, **facts}


def headers(worker: Worker, order: Order) -> dict[str, str]:
    """What it takes to make the sound again."""
    generator, finish = worker.generator, order.finish
    rate = finish.sample_rate or generator.sample_rate
    channels = generator.channels if finish.stereo_width is None else 2
    facts = {"Model": worker.name, "Seed": order.seed, "Sample-Rate": rate}
    facts |= {"Channels": channels}
    if not finish.trim_silence:  # else the sound is shorter
        facts |= {"Duration": f"{order.duration_s:g}"}
    return {f"X-{name}": str(value) for name, value in facts.items()}


def origin(worker: Worker, order: Order) -> Provenance:
    """Where an order's sound comes from, as its file says: with the options of `audiogen.generate`."""
    settings = {name: value for name, value in vars(order.sampling).items() if value not in (None, False)}
    if order.sampling.in_order is not None:
        settings["in_order"] = "yes" if order.sampling.in_order else "no"
    if order.sampling.schedule is not None:
        settings["schedule"] = "; ".join(f"{start_s!r}:{text}" for start_s, text in order.sampling.schedule)
    settings["crossfade"] = settings.pop("crossfade_s", None)
    settings |= order.finish.given()
    settings |= {
        "text": order.text,
        "duration": order.duration_s,
        "seed": order.seed,
        "guidance": order.guidance,
    }
    settings |= {"model": worker.name, "stream": order.is_streamed}  # not the folder in which the model lies
    inputs = {}
    if order.edit is not None:
        edit = order.edit
        settings |= {"init": UPLOADED, "strength": edit.strength, "upsample": edit.upsample}
        settings |= {"inpaint": [f"{begin}:{end}" for begin, end in edit.parts] or None}
        settings |= {"extend": edit.extend_s or None, "extend_before": edit.extend_before_s or None}
        settings["inpaint_resample"] = None if edit.inpaint_resample == 1 else edit.inpaint_resample
        inputs["init"] = order.uploaded
    if order.prompt is not None:
        settings["continue_from"], inputs["continue_from"] = UPLOADED, order.uploaded
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    found = worker.generator.provenance(given, {name: digest for name, digest in inputs.items() if digest})
    return found if order.prompt_metadata else found.without_prompt()


def event(kind: str, **contents: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps({'type': kind, **contents})}\n\n".encode()
