"""POST /v1/audio/speech, whole, in chunks or as server-sent events; and many texts in one call."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from engine.serve.encode import FORMATS, Encoder, whole
from engine.serve.job import Job
from engine.serve.keys import Key
from engine.serve.problems import RESPONSES, Problem, from_error
from engine.serve.schemas import (
    MODELS,
    BatchAnswer,
    BatchRequest,
    BatchResult,
    SpeechRequest,
    Spoken,
    deadline_s,
    usage,
)
from engine.serve.service import BrokenOff, Service, key_of, require, service_of, until_disconnect
from engine.speech import Speech
from engine.voice import Voice

BATCH_AT_ONCE = 8  # items of one batch, so that it does not use up its key's jobs
router = APIRouter(responses=RESPONSES, dependencies=[Depends(require("speech"))])
AUDIO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Audio, or server-sent events",
        "content": {
            **{f.media_type: {"schema": {"type": "string", "format": "binary"}}
               for f in FORMATS.values()},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}  # fmt: skip


@router.post("/v1/audio/speech", response_class=Response, responses=AUDIO)
async def speech(body: SpeechRequest, request: Request) -> Response:
    """Speak a text. Fields are those of OpenAI's API, and a few more."""
    service, key = service_of(request), key_of(request)
    voice = await checked(service, key, body)
    seed = secrets.randbits(31) if body.seed is None else body.seed
    job = await service.submit(
        body.input, voice, key, speed=body.speed, seed=seed,
        deadline_s=deadline_s(body.deadline_ms), stream=body.stream,
    )  # fmt: skip
    headers = {"X-Synthetic": "1", "X-Clonewave-Seed": str(seed)}
    if body.ignored:
        headers["X-Clonewave-Ignored"] = ", ".join(body.ignored)
    if not body.stream:
        return await _whole(request, service, body, job, headers)
    first = _Begun(job)
    try:
        await until_disconnect(request, first.wait())
    except BaseException as error:
        end_job(service, job, "queue")
        raise error if not isinstance(error, EngineError) else from_error(error) from None
    if body.stream_format == "sse":
        content, media_type = _events(body, first), "text/event-stream"
    else:
        content, media_type = _audio(body, first), FORMATS[body.response_format].media_type
    return _JobResponse(service, job, content, headers, media_type)


async def checked(service: Service, key: Key, body: Spoken) -> Voice:
    """The voice; raises what is wrong with a request before anything is queued."""
    if len(body.input) > service.limits.text_chars:
        text = f"{len(body.input):,} characters, at most {service.limits.text_chars:,} are taken"
        raise Problem(400, "text_too_long", f"{text}; send it in parts", param="input")
    if body.model not in MODELS:
        text = f"no model {body.model!r}; use one of {', '.join(MODELS)}"
        raise Problem(404, "model_not_found", text, param="model")
    if body.language and body.language.lower().partition("-")[0] not in ("en", "english", "auto"):
        text = f"language {body.language!r}: only English is spoken"
        raise Problem(400, "invalid_language", text, param="language")
    return (await service.voice(body.voice_name, key))[1]


class _Begun:
    """The chunks of a job, of which the first is waited for before an answer begins.

    Until then an error is still an HTTP status; afterwards it can only break the sound off.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._chunks = job.__aiter__()
        self._first: np.ndarray | None = None

    async def wait(self) -> None:
        self._first = await anext(self._chunks, None)

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        if self._first is not None:
            yield self._first
        async for chunk in self._chunks:
            yield chunk


class _JobResponse(StreamingResponse):
    """Sends what a job makes; however it ends, the job ends too."""

    def __init__(
        self, service: Service, job: Job, content: AsyncIterator[bytes], headers: dict[str, str],
        media_type: str,
    ) -> None:  # fmt: skip
        super().__init__(content, 200, headers, media_type)
        self._service, self._job = service, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            end_job(self._service, self._job, "stream")


def end_job(service: Service, job: Job, stage: str) -> None:
    """Cancel a job that is not done, and count it."""
    if not job.done:
        job.cancel()
        service.metrics.cancelled.labels(stage).inc()
    service.metrics.job(job)


async def _audio(body: SpeechRequest, chunks: _Begun) -> AsyncIterator[bytes]:
    """The sound itself. An error on the way breaks it off without an end: never a short file."""
    encoder = Encoder(body.response_format, chunks.job.sample_rate)
    try:
        async with aclosing(chunks.__aiter__()) as source:  # type: ignore[type-var]
            async for chunk in source:
                if data := encoder.feed(chunk):
                    yield data
    except EngineError as error:
        raise BrokenOff(str(error)) from error
    yield encoder.finish()


async def _events(body: SpeechRequest, chunks: _Begun) -> AsyncIterator[bytes]:
    """OpenAI's events, and with `words` one that tells when words are spoken."""
    job, told = chunks.job, 0
    encoder = Encoder(body.response_format, job.sample_rate)
    try:
        async with aclosing(chunks.__aiter__()) as source:  # type: ignore[type-var]
            async for chunk in source:
                if body.words and len(job.words) > told:
                    words = [vars(word) for word in job.words[told:]]
                    told += len(words)
                    yield _event({"type": "speech.audio.words", "words": words})
                if data := encoder.feed(chunk):
                    yield _delta(data)
        if data := encoder.finish():
            yield _delta(data)
        yield _event({"type": "speech.audio.done", "usage": usage(body.input, job.seconds)})
    except EngineError as error:
        yield _event({"type": "speech.audio.error", **from_error(error).body()})


def _delta(data: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


async def _whole(
    request: Request, service: Service, body: SpeechRequest, job: Job, headers: dict[str, str]
) -> Response:
    """A complete file, with what it cost in the headers."""
    try:
        spoken = await until_disconnect(request, _collect(job))
    finally:
        end_job(service, job, "whole")
    data = await asyncio.to_thread(
        whole, body.response_format, spoken.samples, spoken.sample_rate
    )
    used, timing = usage(body.input, spoken.seconds), job.timing
    headers |= {
        "X-Clonewave-Characters": str(used["input_tokens"]),
        "X-Clonewave-Audio-Seconds": f"{spoken.seconds:.3f}",
        "X-Clonewave-Queue-Seconds": f"{timing.queue_s or 0:.3f}",
        "X-Clonewave-Total-Seconds": f"{timing.total_s or 0:.3f}",
    }
    return Response(data, 200, headers, FORMATS[body.response_format].media_type)


async def _collect(job: Job) -> Speech:
    return await job


@router.post("/v1/audio/speech/batch")
async def batch(body: BatchRequest, request: Request) -> BatchAnswer:
    """1 to 64 texts at once, behind whatever plays live. Each has a status of its own."""
    service, key = service_of(request), key_of(request)
    limit = deadline_s(body.deadline_ms)
    turns = asyncio.Semaphore(BATCH_AT_ONCE)

    async def one(index: int, item: Spoken) -> BatchResult:
        async with turns:
            return await _item(service, key, index, item, limit)

    jobs = (one(index, item) for index, item in enumerate(body.items))
    results = await until_disconnect(request, asyncio.gather(*jobs))
    return BatchAnswer(results=results)


async def _item(
    service: Service, key: Key, index: int, item: Spoken, limit: float | None
) -> BatchResult:
    """One item of a batch; its errors are its own."""
    job = None
    try:
        voice = await checked(service, key, item)
        job = await service.submit(
            item.input, voice, key, speed=item.speed, seed=item.seed, priority="bulk",
            deadline_s=limit, stream=False,
        )  # fmt: skip
        spoken = await job
        data = await asyncio.to_thread(
            whole, item.response_format, spoken.samples, spoken.sample_rate
        )
        return BatchResult(
            index=index, status=200, audio=base64.b64encode(data).decode(),
            format=item.response_format, seconds=round(spoken.seconds, 3),
        )  # fmt: skip
    except (EngineError, Problem) as error:
        problem = from_error(error)
        return BatchResult(index=index, status=problem.status_code, **problem.body())
    finally:
        if job is not None:
            end_job(service, job, "batch")
