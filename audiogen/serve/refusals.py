"""Errors as OpenAI's clients expect them: {"error": {message, type, param, code}}, with a status that means it."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiogen.errors import InputError, one_line
from audiogen.serve.engine import Job

RETRY_AFTER_S = 5


class Refused(HTTPException):
    """An error in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
        super().__init__(status, message)
        if status in (429, 503):
            self.headers = {"Retry-After": str(RETRY_AFTER_S)}
        if status == 401:
            self.headers = {"WWW-Authenticate": "Bearer"}


def refusal(error: Exception) -> Refused:
    """An error as the client sees it: its own mistakes in words, others without the inside of the server."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InputError):
        message = one_line(error)
        return Refused(400, message, PARAMS.get(message.split()[0].rstrip(":,")))
    return Refused(500, f"the sound could not be made: {type(error).__name__}")


# The first word of a message about a setting, and the field that it came in.
PARAMS = {
    "duration": "audio_length",
    "seed": "seed",
    "guidance": "guidance_scale",
    "steps": "num_inference_steps",
    "text": "input",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "sampler": "sampler",
    "stream": "stream_format",
    "candidates": "candidates",
    "guidance_rescale": "guidance_rescale",
    "in_order": "in_order",
}


def failure(job: Job) -> Refused:
    """Why a job has no sound."""
    if job.error is not None:
        return refusal(job.error)
    return Refused(503, "the server stops, or the sound was no longer wanted", code="cancelled")


class BodyLimit:
    """Refuses requests whose body is larger than allowed, whatever their headers say."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        got = 0
        stated = dict(scope["headers"]).get(b"content-length", b"0")

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise Refused(413, f"the request is longer than {self.most} bytes", code="too_large")
            return message

        if stated.isdigit() and int(stated) > self.most:
            detail = Refused(413, f"the request is longer than {self.most} bytes", code="too_large").body
            return await JSONResponse({"error": detail}, 413)(scope, receive, send)
        return await self.app(scope, counted, send)


def answers(app: FastAPI) -> None:
    """Errors of all kinds in OpenAI's shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if part != "body")
            one = Refused(422, f"{place or 'the body'}: {one_line(first['msg'])}", place or None)
        elif isinstance(error, StarletteHTTPException) and not isinstance(error, Refused):
            one = Refused(error.status_code, str(error.detail))
        else:
            one = refusal(error)
        return JSONResponse({"error": one.body}, one.status_code, one.headers)

    for kind in (HTTPException, StarletteHTTPException, RequestValidationError, InputError, Exception):
        app.add_exception_handler(kind, answer)
