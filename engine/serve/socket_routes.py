"""WS /v1/audio/speech/stream: text in as it is written, audio out as it is spoken.

Messages from the client, JSON: `session.config` (voice, response_format, speed, seed; optional, at
any time between two sounds), `input.text` (text, any piece of it), `input.done` (the text ends),
`session.close`. From the server: `audio.start`, binary frames, `audio.words`, `audio.done`,
`session.done` after `session.close`, and `error`, which ends the sound but not the session.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import EngineError, Unavailable
from engine.serve.encode import Encoder
from engine.serve.job import Job
from engine.serve.problems import Problem, from_error
from engine.serve.schemas import FormatName, Name, usage
from engine.serve.sentences import Sentences
from engine.serve.service import key_of, service_of
from engine.serve.speech_routes import end_job
from engine.synthesize import SPEEDS

router = APIRouter()
IDLE_S = 300.0  # without a message the session ends


class Config(BaseModel):
    """`session.config`; what is left out keeps its default."""

    model_config = ConfigDict(extra="ignore")
    voice: Name = "default"
    response_format: FormatName = "pcm"
    speed: float = Field(default=1.0, ge=SPEEDS[0], le=SPEEDS[1])
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class Message(BaseModel):
    """Any message of a client."""

    model_config = ConfigDict(extra="allow")
    type: Literal["session.config", "input.text", "input.done", "session.close"]
    text: str = ""


@router.websocket("/v1/audio/speech/stream")
async def speech_socket(socket: WebSocket) -> None:
    """See the module."""
    if not key_of(socket).allows("speech"):
        await socket.close(1008, "this key lacks the scope 'speech'")
        return
    await socket.accept()
    session = _Session(socket)
    try:
        await session.run()
    except (WebSocketDisconnect, asyncio.TimeoutError, TimeoutError):
        pass
    finally:
        await session.stop()


class _Session:
    """One connection. A sound is one job; its text is fed sentence by sentence."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket, self.service, self.key = socket, service_of(socket), key_of(socket)
        self.config = Config()
        self.job: Job | None = None
        self._sender: asyncio.Task[None] | None = None
        self._sentences = Sentences()
        self._text = ""  # of this sound, so far

    async def run(self) -> None:
        """Handle messages until the session is closed."""
        while True:
            raw = await asyncio.wait_for(self.socket.receive(), IDLE_S)
            if raw["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(raw.get("code", 1000))
            try:
                message = Message.model_validate_json(raw.get("text") or "")
                if message.type == "session.close":
                    break
                await self._handle(message)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "message"
                await self._failed(Problem(400, "invalid_message", f"{field}: {first['msg']}"))
            except (EngineError, Problem) as error:
                await self._failed(from_error(error))
        if self._sender is not None and self.job is not None:
            await self._done()
        await self.socket.send_json({"type": "session.done"})
        await self.socket.close()

    async def _handle(self, message: Message) -> None:
        if message.type == "session.config":
            if self.job is not None:
                raise Problem(409, "busy", "session.config comes before the text")
            self.config = Config.model_validate(message.model_extra or {})
        elif message.type == "input.text":
            self._text += message.text
            if len(self._text) > self.service.limits.text_chars:
                limit = self.service.limits.text_chars
                raise Problem(400, "text_too_long", f"over {limit:,} characters before input.done")
            if whole := await asyncio.to_thread(self._sentences.add, message.text):
                await self._feed(whole)
        else:
            await self._done()

    async def _feed(self, text: str) -> None:
        """Queue whole sentences; the first ones open the job."""
        scheduler = self.service.scheduler
        if self.job is None:
            if self.service.draining:
                raise Unavailable("draining")
            self.service.count_request(self.key)
            _, voice = await self.service.voice(self.config.voice, self.key)
            options: dict[str, Any] = {"speed": self.config.speed, "seed": self.config.seed}
            self.job = await asyncio.to_thread(
                scheduler.open, voice, key=self.service.account(self.key), **options
            )
            self.service.sounding += 1
            self._sender = asyncio.create_task(self._send(self.job))
        await asyncio.to_thread(scheduler.feed, self.job, text)

    async def _done(self) -> None:
        """The text ends: queue the rest, wait for the sound, be ready for the next."""
        rest = self._sentences.rest()
        if rest.strip():
            await self._feed(rest)
        if self.job is None or self._sender is None:
            raise Problem(400, "invalid_input", "no text before input.done", param="text")
        self.service.scheduler.finish(self.job)
        await self._sender
        await self._reset()

    async def _send(self, job: Job) -> None:
        """Audio of a job, as it is made."""
        encoder, told, begun = Encoder(self.config.response_format, job.sample_rate), 0, False
        socket = self.socket
        try:
            async for chunk in job:
                if not begun:
                    begun = True
                    about = {"format": self.config.response_format, "sample_rate": job.sample_rate}
                    await socket.send_json({"type": "audio.start", **about})
                if len(job.words) > told:
                    words = [vars(word) for word in job.words[told:]]
                    told += len(words)
                    await socket.send_json({"type": "audio.words", "words": words})
                if data := encoder.feed(chunk):
                    await socket.send_bytes(data)
            if data := encoder.finish():
                await socket.send_bytes(data)
            used = usage(self._text, job.seconds)
            await socket.send_json({"type": "audio.done", "usage": used})
        except EngineError as error:
            await socket.send_json({"type": "error", **from_error(error).body()})

    async def _failed(self, problem: Problem) -> None:
        await self._reset()
        await self.socket.send_json({"type": "error", **problem.body()})

    async def _reset(self) -> None:
        """Be ready for another sound; one that is under way is given up."""
        await self.stop()
        self._sentences, self._text = Sentences(), ""

    async def stop(self) -> None:
        job, sender = self.job, self._sender
        self.job = self._sender = None
        if job is not None:
            self.service.sounding -= 1
            end_job(self.service, job, "socket")
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
