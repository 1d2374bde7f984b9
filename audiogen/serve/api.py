"""The HTTP API over the workers of `engine`: OpenAI's vocabulary made to fit sound, as vLLM-Omni's audio API has it.

Every answer with a sound names in its headers the model, the seed, the sample rate and the duration, so that the same
sound can be asked for again. Errors have OpenAI's shape: {"error": {message, type, param, code}}.
"""

import asyncio
import base64
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from starlette.middleware.cors import CORSMiddleware

from audiogen.errors import InputError, one_line
from audiogen.generators.request import num_samples
from audiogen.interfaces import Edit
from audiogen.serve import sounds, tokens
from audiogen.serve.engine import Full, Job, Order, Worker
from audiogen.serve.jobs import Jobs, Kept
from audiogen.serve.metrics import Metrics
from audiogen.serve.refusals import BodyLimit, Refused, answers, failure, refusal
from audiogen.serve.schema import Batch, Format, Generate, Settings, SoundGeneration, Speech
from audiogen.serve.watched import Stream, Watched

DURATION_S = 5.0  # where a request names none


@dataclass(frozen=True)
class Limits:
    """max_duration_s: of a sound, made or sent. max_body: bytes of a request. api_key: None lets everybody in."""

    max_duration_s: float = 60.0
    max_body: int = 50_000_000
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()


class Api:
    """The app's routes, and what they share."""

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
    ) -> tuple[Worker, Order]:
        """A checked order and the model for it."""
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
        )
        worker.check(order)
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
        rate = worker.generator.sample_rate
        return sounds.encode(job.sound[:, : num_samples(job.order.duration_s, rate)], rate, form)

    def stream(self, worker: Worker, order: Order, form: str, as_events: bool) -> Response:
        """A sound while it is made: bytes, or server-sent events."""
        if form not in sounds.STREAMED:
            raise Refused(
                400, f"{form} cannot be streamed; allowed: {', '.join(sounds.STREAMED)}", "response_format"
            )
        if len(self.streams) >= self.most_streams:
            raise Refused(503, f"{len(self.streams)} streams are read already", code="server_busy")
        watched = self.submit(worker, order)
        self.streams.add(watched.job.id)
        rate, channels = worker.generator.sample_rate, worker.generator.channels
        length = num_samples(order.duration_s, rate)
        start = sounds.audio.wav_header(rate, channels, length) if form == "wav" else b""

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
            return self.stream(worker, order, wanted.response_format, wanted.stream_format == "sse")
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
    generator = worker.generator
    facts = {"Model": worker.name, "Seed": order.seed, "Sample-Rate": generator.sample_rate}
    facts |= {"Channels": generator.channels, "Duration": f"{order.duration_s:g}"}
    return {f"X-{name}": str(value) for name, value in facts.items()}


def event(kind: str, **contents: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps({'type': kind, **contents})}\n\n".encode()


def create_app(workers: Mapping[str, Worker], limits: Limits) -> FastAPI:
    """The ASGI app. It holds no state but the jobs: replicas may stand behind any balancer."""
    api, figures = Api(workers, limits), Metrics(workers)
    app = FastAPI(title="audiogen", description=__doc__, version="1")
    app.state.api = api
    app.add_middleware(BodyLimit, most=limits.max_body)
    if limits.cors_origins:
        exposed = list(headers(next(iter(api.workers.values())), Order("", 1.0, 0)))
        app.add_middleware(
            CORSMiddleware, allow_origins=limits.cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=exposed,
        )  # fmt: skip

    def admit(request: Request) -> None:
        if limits.api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        given = key if kind.lower() == "bearer" else request.headers.get("xi-api-key", "")
        if not hmac.compare_digest(given.encode(), limits.api_key.encode()):
            raise Refused(401, "wrong or no API key; send Authorization: Bearer KEY", code="invalid_api_key")

    answers(app)
    guarded: dict[str, Any] = {"dependencies": [Depends(admit)]}

    @app.post("/v1/audio/generate", response_class=Response, **guarded)
    async def generate(wanted: Generate, request: Request) -> Response:
        """A sound of a text: the bytes, or with stream_format while it is made."""
        return await api.generate(wanted, request)

    @app.post("/v1/audio/generate/batch", **guarded)
    async def batch(wanted: Batch, request: Request) -> dict[str, Any]:
        """Up to 32 sounds at once; an item that fails has an error, and the others their sounds."""
        return await api.batch(wanted, request)

    @app.post("/v1/audio/jobs", status_code=202, **guarded)
    async def order(wanted: Generate, request: Request) -> dict[str, Any]:
        """Order a sound to fetch it later; without stream_format."""
        if wanted.stream_format is not None:
            raise Refused(400, "a job is fetched at its end; drop stream_format", "stream_format")
        worker, order = api.order(wanted, wanted.input, request)
        kept = Kept(worker, api.submit(worker, order).job, wanted.response_format)
        api.jobs.add(kept)
        return kept.status()

    @app.get("/v1/audio/jobs/{id}", **guarded)
    async def status(id: str) -> dict[str, Any]:
        """How far it is: queued, in_progress, completed or failed."""
        return api.jobs[id].status()

    @app.get("/v1/audio/jobs/{id}/content", response_class=Response, **guarded)
    async def content(id: str) -> Response:
        """Its sound; 409 before the end."""
        kept = api.jobs[id]
        if not kept.job.is_over:
            raise Refused(409, "the sound is not finished; ask for the job's status", "id")
        data = await asyncio.to_thread(api.encoded, kept.worker, kept.job, kept.form)
        return Response(
            data, media_type=sounds.FORMATS[kept.form][1], headers=headers(kept.worker, kept.job.order)
        )

    @app.delete("/v1/audio/jobs/{id}", status_code=204, **guarded)
    async def delete(id: str) -> None:
        """Cancel it, or drop its sound."""
        api.jobs.remove(id)

    @app.post("/v1/audio/edit", response_class=Response, **guarded)
    async def edit(
        request: Request,
        file: Annotated[UploadFile, File(description="the sound: wav, flac, ogg or mp3")],
        settings: Annotated[
            str, Form(description="JSON, as of /v1/audio/generate; input may be missing")
        ] = "{}",
        strength: Annotated[float | None, Form(ge=0, le=1, description="of the change")] = None,
        inpaint: Annotated[str | None, Form(description="A:B, seconds to make anew")] = None,
        prolong: Annotated[bool, Form(description="continue the sound (language models)")] = False,
    ) -> Response:
        """A sound made of another: changed, with a part made anew, or continued."""
        try:
            given = json.loads(settings)
            text = given.pop("input", None) if isinstance(given, dict) else None
            wanted = Settings.model_validate(given)
        except ValueError as error:
            raise Refused(422, f"settings: {one_line(error)}", "settings") from None
        if prolong and (strength, inpaint) != (None, None):
            raise Refused(400, "prolong continues the sound as it is; drop strength and inpaint", "prolong")
        data = await file.read()
        audio, rate = await asyncio.to_thread(sounds.decode, data, limits.max_duration_s, "file")
        span = None if inpaint is None else interval(inpaint)
        change = None if prolong else Edit(audio, rate, strength, span)
        worker, order = api.order(
            wanted, text, request, prompt=(audio, rate) if prolong else None, edit=change
        )
        return await api.sound(worker, order, wanted.response_format, request)

    tokens.add_routes(app, api.worker, limits.max_duration_s, guarded)

    @app.post("/v1/audio/speech", response_class=Response, **guarded)
    async def speech(wanted: Speech, request: Request) -> Response:
        """/v1/audio/generate for OpenAI's clients; a model that is not here is the default one."""
        name = wanted.model if wanted.model in api.workers else None
        given = wanted.model_dump(include={"input", "response_format", "stream_format"})
        return await api.generate(Generate(model=name, **given), request)

    @app.post("/v1/sound-generation", response_class=Response, **guarded)
    async def sound_generation(
        wanted: SoundGeneration, request: Request, output_format: str = "mp3_44100_128"
    ) -> Response:
        """/v1/audio/generate for ElevenLabs' clients: mp3, pcm, opus or wav, at the model's own rate."""
        form = output_format.partition("_")[0]
        if form not in sounds.FORMATS:
            raise Refused(
                400, f"output_format is {output_format[:40]!r}; allowed: mp3, pcm, opus, wav", "output_format"
            )
        if wanted.loop:
            raise Refused(400, "loops are not made; drop loop", "loop")
        name = wanted.model_id if wanted.model_id in api.workers else None
        weight = 1 + (api.worker(name).generator.guidance - 1) * wanted.prompt_influence / 0.3
        asked = Generate(
            model=name, input=wanted.text, audio_length=wanted.duration_seconds, guidance_scale=weight,
            response_format=cast("Format", form),
        )  # fmt: skip
        return await api.generate(asked, request)

    @app.get("/v1/models", **guarded)
    async def models() -> dict[str, Any]:
        """The models, and what each is."""
        return {"object": "list", "data": [described(worker) for worker in api.workers.values()]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """It takes orders; 503 while a queue is full or the server stops."""
        if any(worker.is_full for worker in api.workers.values()):
            raise Refused(503, "the queue is full, or the server stops", code="server_busy")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(figures.text(), media_type="text/plain; version=0.0.4")

    return app


def interval(given: str) -> tuple[float, float]:
    """`A:B` in seconds."""
    begin, colon, end = given.partition(":")
    try:
        if colon:
            return float(begin), float(end)
    except ValueError:
        pass
    raise Refused(400, f"inpaint is {given[:40]!r}; give A:B in seconds", "inpaint")


def described(worker: Worker) -> dict[str, Any]:
    """A model as /v1/models lists it."""
    generator = worker.generator
    return {
        "id": worker.name, "object": "model", "owned_by": "audiogen", "family": generator.family,
        "sample_rate": generator.sample_rate, "channels": generator.channels,
        "max_duration_s": generator.max_duration_s, "streams": worker.streams,
    }  # fmt: skip
