"""What goes wrong, as HTTP: one envelope, one table from the engine's errors to a status."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InputError,
    Overloaded,
    Unavailable,
    VoiceError,
)

log = logging.getLogger("clonewave.serve")
TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip
CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody


# Any route may give any of these; 422 here also keeps FastAPI from documenting its own.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": text}
    for status, text in {
        400: "Invalid request", 401: "No valid API key", 403: "Not allowed", 404: "Not found",
        408: "Upload too slow", 409: "Exists already", 413: "Too large",
        415: "Not a supported kind of content", 422: "Audio that cannot be used",
        429: "Too many requests", 500: "Internal error", 503: "Not ready", 504: "Deadline passed",
    }.items()
}  # fmt: skip


class Problem(HTTPException):
    """An answer that is no success. `retry`: tells clients whether the same again can help.

    A child of HTTPException, because FastAPI turns any other error met while it reads a body
    into a 400.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry: bool | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
    ) -> None:
        headers: dict[str, str] = {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        # OpenAI's clients repeat 408, 409, 429 and every 5xx unless told not to.
        if retry is not None:
            headers["x-should-retry"] = "true" if retry else "false"
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if close:
            headers["Connection"] = "close"
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """The envelope's content."""
        default = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status_code, default)
        error = ErrorBody(message=self.detail, type=kind, param=self.param, code=self.code)
        return {"error": error.model_dump()}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def internal() -> Problem:
    """A bug of ours: the same request would only meet it again."""
    message = "internal error; the server's log has it under this request's X-Request-Id"
    return Problem(500, "internal_error", message, retry=False)


def from_error(error: Exception) -> Problem:
    """The answer to an engine error; anything else is internal."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Overloaded):
        wait = getattr(error, "retry_after_s", None) or 1.0
        return Problem(429, "overloaded", str(error), retry=True, retry_after_s=wait)
    if isinstance(error, DeadlineExceeded):
        return Problem(504, "deadline_exceeded", str(error), retry=False)
    if isinstance(error, (Cancelled, Unavailable)):
        log.warning("unavailable: %s", error)  # its text may name a path
        message = "not available at the moment; send the request again"
        return Problem(503, "unavailable", message, retry=True, retry_after_s=5)
    if isinstance(error, VoiceError):
        return Problem(422, "voice_unusable", str(error), param="voice")
    if isinstance(error, InputError):
        return Problem(400, "invalid_input", str(error), param="input")
    if isinstance(error, EngineError):
        log.error("engine: %s", error)
        return Problem(500, "engine_error", "this request cannot be spoken", retry=False)
    return internal()


async def on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """Problems, and what Starlette raises itself (unknown route, wrong method, bad form)."""
    if isinstance(error, Problem):
        return error.response()
    assert isinstance(error, HTTPException)
    status = error.status_code
    problem = Problem(status, CODES.get(status, "invalid_request"), str(error.detail))
    problem.headers = {**(problem.headers or {}), **(error.headers or {})}
    return problem.response()


async def on_invalid(_: Request, error: Exception) -> JSONResponse:
    """A body or parameter of the wrong shape: 400 that names the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    field = ".".join(path)[:100]
    message = f"{field or 'body'}: {first['msg']}"
    name = path[0][:40] if path and path[0].isidentifier() else "body"
    return Problem(400, f"invalid_{name}", message, param=field or None).response()


async def on_engine_error(_: Request, error: Exception) -> JSONResponse:
    return from_error(error).response()


async def on_bug(_: Request, error: Exception) -> JSONResponse:
    return internal().response()
