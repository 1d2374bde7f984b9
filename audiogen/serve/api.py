"""The HTTP API over the workers of `engine`: OpenAI's vocabulary made to fit sound, as vLLM-Omni's audio API has it.

Every answer with a sound names in its headers the model, the seed, the sample rate and the duration, so that the same
sound can be asked for again. Errors have OpenAI's shape: {"error": {message, type, param, code}}.
"""

import asyncio
import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from starlette.middleware.cors import CORSMiddleware

from audiogen.errors import one_line
from audiogen.interfaces import Edit
from audiogen.serve import sounds, tokens
from audiogen.serve.engine import Order, Worker
from audiogen.serve.jobs import Kept
from audiogen.serve.metrics import Metrics
from audiogen.serve.orders import Api, Limits, headers
from audiogen.serve.refusals import BodyLimit, Refused, answers
from audiogen.serve.schema import Batch, Format, Generate, Settings, SoundGeneration, Speech


def create_app(workers: Mapping[str, Worker], limits: Limits) -> FastAPI:
    """The ASGI app. It holds no state but the jobs: replicas may stand behind any balancer."""
    api = Api(workers, limits)
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
    add_sounds(app, api, guarded)
    add_jobs(app, api, guarded)
    tokens.add_routes(app, api.worker, limits.max_duration_s, guarded)
    add_aliases(app, api, guarded)
    add_state(app, api, guarded)
    return app


def add_sounds(app: FastAPI, api: Api, guarded: dict[str, Any]) -> None:
    """Sounds of texts, and of other sounds."""

    @app.post("/v1/audio/generate", response_class=Response, **guarded)
    async def generate(wanted: Generate, request: Request) -> Response:
        """A sound of a text: the bytes, or with stream_format while it is made."""
        return await api.generate(wanted, request)

    @app.post("/v1/audio/generate/batch", **guarded)
    async def batch(wanted: Batch, request: Request) -> dict[str, Any]:
        """Up to 32 sounds at once; an item that fails has an error, and the others their sounds."""
        return await api.batch(wanted, request)

    @app.post("/v1/audio/edit", response_class=Response, **guarded)
    async def edit(
        request: Request,
        file: Annotated[UploadFile, File(description="the sound: wav, flac, ogg or mp3")],
        settings: Annotated[
            str, Form(description="JSON, as of /v1/audio/generate; input may be missing")
        ] = "{}",
        strength: Annotated[float | None, Form(ge=0, le=1, description="of the change")] = None,
        inpaint: Annotated[str | None, Form(description="A:B,.. seconds to make anew")] = None,
        inpaint_resample: Annotated[int, Form(ge=1, description="times that each step is made")] = 1,
        extend: Annotated[float, Form(ge=0, description="seconds to make after the sound")] = 0.0,
        extend_before: Annotated[float, Form(ge=0, description="seconds to make before it")] = 0.0,
        prolong: Annotated[bool, Form(description="continue the sound (language models)")] = False,
    ) -> Response:
        """A sound made of another: changed, with parts made anew, extended or continued."""
        try:
            given = json.loads(settings)
            text = given.pop("input", None) if isinstance(given, dict) else None
            wanted = Settings.model_validate(given)
        except ValueError as error:
            raise Refused(422, f"settings: {one_line(error)}", "settings") from None
        if prolong and (strength, inpaint, extend, extend_before) != (None, None, 0, 0):
            raise Refused(
                400, "prolong continues the sound as it is; drop strength, inpaint and extend", "prolong"
            )
        data = await file.read()
        audio, rate = await asyncio.to_thread(sounds.decode, data, api.limits.max_duration_s, "file")
        change = None
        if not prolong:
            spans = None if inpaint is None else tuple(map(interval, inpaint.split(",")))
            change = Edit(
                audio,
                rate,
                strength,
                spans,
                extend_s=extend,
                extend_before_s=extend_before,
                inpaint_resample=inpaint_resample,
            )
        worker, order = api.order(
            wanted, text, request, prompt=(audio, rate) if prolong else None, edit=change, uploaded=data
        )
        return await api.sound(worker, order, wanted.response_format, request)


def add_jobs(app: FastAPI, api: Api, guarded: dict[str, Any]) -> None:
    """Sounds that are ordered now and fetched later."""

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


def add_aliases(app: FastAPI, api: Api, guarded: dict[str, Any]) -> None:
    """The same for clients of others."""

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
        name = wanted.model_id if wanted.model_id in api.workers else None
        weight = 1 + (api.worker(name).generator.guidance - 1) * wanted.prompt_influence / 0.3
        asked = Generate(
            model=name, input=wanted.text, audio_length=wanted.duration_seconds, guidance_scale=weight,
            response_format=cast("Format", form), loop=wanted.loop,
        )  # fmt: skip
        return await api.generate(asked, request)


def add_state(app: FastAPI, api: Api, guarded: dict[str, Any]) -> None:
    """What is here, and how it does."""
    figures = Metrics(api.workers)

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
