"""Wyoming, the protocol of Home Assistant's voices: text in, audio out, over TCP.

describe -> info. synthesize -> audio-start, audio-chunk..., audio-stop. synthesize-start,
synthesize-chunk..., synthesize-stop: the same with text that is still being written, and
synthesize-stopped at the end. A connection's requests are answered in order; a client that hangs up
cancels its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
)

from engine import __version__
from engine.audio import pcm16
from engine.errors import EngineError, InputError, Overloaded
from engine.serve.scheduler import Job, Scheduler
from engine.serve.sentences import Sentences
from engine.voice import Voice

log = logging.getLogger(__name__)
Voices = Callable[[], Mapping[str, Voice]]  # by name, the first is the default

MESSAGE_BYTES = 1 << 16  # of a client's event; audio never comes in
TEXT_CHARACTERS = 4096  # of one request
PORT = 10200
US = Attribution("Clonewave", "https://pypi.org/project/clonewave/")


class _Bounded:
    """A reader that refuses to read as much as a stranger announces."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.readline, self.feed_eof = reader.readline, reader.feed_eof

    async def readexactly(self, count: int) -> bytes:
        if not 0 <= count <= MESSAGE_BYTES:
            raise ValueError(f"event of {count} bytes, at most {MESSAGE_BYTES}")
        return await self._reader.readexactly(count)


class Handler(AsyncEventHandler):
    """One connection."""

    def __init__(self, scheduler: Scheduler, voices: Voices, reader: Any, writer: Any) -> None:
        super().__init__(_Bounded(reader), writer)  # type: ignore[arg-type]
        self.scheduler, self.voices = scheduler, voices
        self._text: asyncio.Queue[str | None] | None = None  # of a streamed request
        self._written = 0
        self.answer: asyncio.Task[None] | None = None  # the last one begun

    async def run(self) -> None:
        """Until the client leaves, or sends what cannot be read."""
        try:
            await super().run()
        except Exception:  # `wyoming` trusts what it reads: anything may come out of it
            log.info("connection ended", exc_info=True)

    async def write_event(self, event: Event) -> None:
        """Send; a client that takes nothing for `stall_s` is given up."""
        try:
            limit = self.scheduler.limits.stall_s
            await asyncio.wait_for(super().write_event(event), limit)
        except asyncio.TimeoutError as error:
            self.writer.transport.abort()
            raise ConnectionError(f"nothing taken for {limit:g} s") from error

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; False ends the connection."""
        try:
            await self._handle(event)
        except (KeyError, TypeError, AttributeError):  # `wyoming` trusts what it reads
            await self.write_event(Error(f"damaged event {event.type!r}", "InputError").event())
            return False
        return True

    async def _handle(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self.write_event(info(self.voices()).event())
        elif SynthesizeStart.is_type(event.type):
            self._text, self._written = asyncio.Queue(), 0
            await self._begin(SynthesizeStart.from_event(event), self._text, streamed=True)
        elif SynthesizeChunk.is_type(event.type) and self._text is not None:
            text = str(SynthesizeChunk.from_event(event).text)
            self._written += len(text)
            if self._written <= TEXT_CHARACTERS:  # the answer tells of the rest, once
                self._text.put_nowait(text)
        elif SynthesizeStop.is_type(event.type) and self._text is not None:
            self._text.put_nowait(None)
            self._text = None
        elif Synthesize.is_type(event.type) and self._text is None:
            # Inside a streamed request this repeats its text, for servers that cannot stream.
            whole: asyncio.Queue[str | None] = asyncio.Queue()
            asked = Synthesize.from_event(event)
            self._written = len(asked.text)
            whole.put_nowait(asked.text[:TEXT_CHARACTERS])
            whole.put_nowait(None)
            await self._begin(asked, whole, streamed=False)

    async def _begin(self, asked: Any, text: asyncio.Queue[str | None], streamed: bool) -> None:
        """Start an answer when the one before is out; until then nothing more is read."""
        if self.answer is not None:
            await self.answer
        self.answer = asyncio.create_task(self._speak(asked, text, streamed))

    async def _speak(self, asked: Any, text: asyncio.Queue[str | None], streamed: bool) -> None:
        """One answer; ends in silence when the client is gone."""
        job: Job | None = None
        try:
            job = await asyncio.to_thread(self.scheduler.open, self._voice(asked.voice))
            feeding = asyncio.create_task(self._feed(job, text))
            try:
                await self._send(job)
                await feeding
            finally:
                feeding.cancel()
        except EngineError as error:
            code = type(error).__name__
            with contextlib.suppress(ConnectionError):
                await self.write_event(Error(str(error), code).event())
        except ConnectionError:
            log.info("client left")
        finally:
            if job is not None:
                job.cancel()
        if streamed:
            with contextlib.suppress(ConnectionError):
                await self.write_event(SynthesizeStopped().event())

    async def _feed(self, job: Job, text: asyncio.Queue[str | None]) -> None:
        """Whole sentences go to the scheduler as soon as they stand."""
        sentences = Sentences()
        try:
            while (piece := await text.get()) is not None:
                if whole := await asyncio.to_thread(sentences.add, piece):
                    await self._hand_over(job, whole)
            if self._written > TEXT_CHARACTERS:
                raise InputError(f"more than {TEXT_CHARACTERS} characters; send less at a time")
            if rest := sentences.rest().strip():
                await self._hand_over(job, rest)
            if not job.sentences:
                raise InputError("no text to speak")
            self.scheduler.finish(job)
        except EngineError as error:
            job.cancel(error)

    async def _hand_over(self, job: Job, text: str) -> None:
        """Feed; what was begun waits for room rather than break off."""
        while True:
            try:
                await asyncio.to_thread(self.scheduler.feed, job, text)
                return
            except Overloaded as error:
                if not job.sentences:
                    raise
                await asyncio.sleep(error.retry_after_s)

    async def _send(self, job: Job) -> None:
        form = {"rate": job.sample_rate, "width": 2, "channels": 1}
        sent = 0
        async for samples in job:
            if not sent:
                await self.write_event(AudioStart(**form, timestamp=0).event())
            at = 1000 * sent // job.sample_rate
            sound = pcm16(samples).astype("<i2").tobytes()
            await self.write_event(AudioChunk(**form, audio=sound, timestamp=at).event())
            sent += len(samples)
        await self.write_event(AudioStop(timestamp=1000 * sent // job.sample_rate).event())

    def _voice(self, asked: Any) -> Voice:
        """The voice of that name; the default where none is named."""
        voices = self.voices()
        if voices and (asked is None or asked.name is None):
            return next(iter(voices.values()))
        name = str(asked.name if asked is not None else "")
        if name not in voices:
            raise InputError(f"no voice {name[:80]!r}; `describe` lists those there are")
        return voices[name]

    async def disconnect(self) -> None:
        """The client sends no more. Answers end by themselves: those it can no longer take fail."""
        if self._text is not None:  # in the middle of a text: nobody waits for its sound
            self._text.put_nowait(None)
        if self.answer is not None:
            await self.answer


def info(voices: Mapping[str, Voice]) -> Info:
    """What `describe` answers."""
    about: dict[str, Any] = {"attribution": US, "installed": True, "version": __version__}
    listed = [
        TtsVoice(name=name, description=name, languages=["en"], **about)
        for name in voices
    ]
    program = TtsProgram(
        name="clonewave", description="Few-shot voice cloning", voices=listed,
        supports_synthesize_streaming=True, **about,
    )  # fmt: skip
    return Info(tts=[program])


class WyomingServer(AsyncTcpServer):
    """Serves connections on the running loop, between `begin` and `end`."""

    def __init__(self, scheduler: Scheduler, voices: Voices, host: str, port: int) -> None:
        super().__init__(host, port)
        self.scheduler, self.voices = scheduler, voices

    async def begin(self) -> int:
        """Listen; returns the port, which the system chooses for 0."""
        await self.start(lambda *streams: Handler(self.scheduler, self.voices, *streams))
        assert isinstance(self._server, asyncio.Server)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def end(self) -> None:
        """Stop listening, let answers end that were begun, close every connection."""
        assert self._server is not None
        self._server.close()
        handlers = [h for h in self._handlers.values() if isinstance(h, Handler)]
        answers = [h.answer for h in handlers if h.answer is not None]
        await asyncio.gather(*answers, return_exceptions=True)
        await self.stop()
