"""What the routes share: engine, scheduler, voices, keys; used off the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from engine.engine import Engine
from engine.errors import Overloaded, VoiceError
from engine.serve.decode import Decoder
from engine.serve.keys import LOCAL, Key, Keys
from engine.serve.metrics import Metrics
from engine.serve.problems import Problem
from engine.serve.scheduler import Job, Scheduler
from engine.serve.settings import Settings, default_voices
from engine.serve.store import Entry, VoiceMissing, VoiceStore
from engine.voice import Voice

log = logging.getLogger("clonewave.serve")
T = TypeVar("T")
DEFAULT = "default"
# Names that programs written for OpenAI send: all of them are our default voice.
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage",
    "shimmer", "verse",
)  # fmt: skip
CACHED_VOICES = 1_000  # about 2 KB each


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


class BrokenOff(Exception):
    """A sound failed after it began: its connection breaks off, so that no file looks whole."""


class Service:
    """One server's parts. `close()` when done; the scheduler is closed with it."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        settings: Settings,
        store: VoiceStore | None = None,
    ) -> None:
        self.engine, self.scheduler, self.settings = engine, scheduler, settings
        self.limits = settings.limits
        self.keys = Keys(settings.api_key_file) if settings.api_key_file else None
        self.store = store or VoiceStore(settings.voices or default_voices(), self.limits)
        self.metrics = Metrics(scheduler.stats, self.store.count)
        self.decoder = Decoder(settings.decode, on_kill=self.metrics.decode_killed.inc)
        self.draining = False
        self.sounding = 0  # sounds on their way to WebSockets
        self.cloning = asyncio.Semaphore(2)  # clones at a time; each takes a thread
        self.started_at = int(time.time())
        self._rates = MovingWindowRateLimiter(MemoryStorage())
        self._cache: OrderedDict[str, Voice] = OrderedDict()

    @property
    def ready(self) -> bool:
        return self.scheduler.ready and not self.draining

    def identify(self, connection: HTTPConnection) -> Key | None:
        """Whose key a request carries; the local user where the server has no keys."""
        if self.keys is None:
            return LOCAL
        header = connection.headers.get("authorization", "")
        scheme, _, presented = header.partition(" ")
        if scheme.lower() != "bearer":
            presented = connection.headers.get("xi-api-key", "")
        return self.keys.find(presented.strip()) if presented else None

    def count_request(self, key: Key) -> None:
        """Raise 429 if a key asks more often than allowed."""
        per_minute = self.limits.requests_per_minute
        if self.keys is None or not per_minute:
            return
        item = RateLimitItemPerMinute(per_minute)
        if not self._rates.hit(item, key.name):
            reset, _ = self._rates.get_window_stats(item, key.name)
            self.metrics.rejected.labels("rate").inc()
            message = f"more than {per_minute} requests a minute; wait, or ask for a higher limit"
            wait = max(1.0, reset - time.time())
            raise Problem(429, "rate_limited", message, retry=True, retry_after_s=wait)

    async def voice(self, name: str, key: Key) -> tuple[str, Voice]:
        """(id, Voice) by id or name; raises 404 for none, with one text for "not yours"."""
        try:
            if name != DEFAULT:
                return await asyncio.to_thread(self.load, name, key)
        except VoiceMissing:
            if name not in OPENAI_VOICES:
                raise missing(name) from None
        except VoiceError as error:
            log.warning("%s", error)  # it names a path
            text = "this voice was made with other weights, or is damaged; clone it again"
            raise Problem(422, "voice_unusable", text, param="voice") from error
        try:
            return DEFAULT, await asyncio.to_thread(self._default_voice)
        except VoiceError:
            raise missing(name) from None

    def _default_voice(self) -> Voice:
        if DEFAULT not in self._cache:
            self._cache[DEFAULT] = self.engine.default_voice()
        return self._cache[DEFAULT]

    def load(self, name: str, key: Key) -> tuple[str, Voice]:
        """The same without HTTP: raises VoiceMissing or VoiceError; reads the disk."""
        if name == DEFAULT:
            return DEFAULT, self._default_voice()
        entry = self.store.find(name, key.name)  # every time: it may have been deleted
        voice = self._cache.get(entry.id)
        if voice is None:
            voice = self.store.load(entry, self.engine.encoder_hash)
            self._cache[entry.id] = voice
            while len(self._cache) > CACHED_VOICES:
                self._cache.popitem(last=False)
        return entry.id, voice

    async def entry(self, name: str, key: Key) -> Entry:
        """What the store knows of a voice; raises 404."""
        try:
            return await asyncio.to_thread(self.store.find, name, key.name)
        except VoiceMissing:
            raise missing(name) from None

    def account(self, key: Key) -> str | None:
        """Who pays in the scheduler; nobody where the server has no keys."""
        return key.name if self.keys is not None else None

    async def submit(self, text: str, voice: Voice, key: Key, **options: Any) -> Job:
        """`Scheduler.submit` in a thread: the text's front end takes milliseconds."""
        options["key"] = self.account(key)
        try:
            return await asyncio.to_thread(self.scheduler.submit, text, voice, **options)
        except Overloaded as error:
            self.metrics.rejected.labels(error.reason).inc()
            raise

    def close(self) -> None:
        """End decoder and store."""
        self.decoder.close()
        self.store.close()


def missing(name: str) -> Problem:
    return Problem(404, "voice_not_found", str(VoiceMissing(name)), param="voice")


def service_of(connection: HTTPConnection) -> Service:
    return connection.app.state.service


def key_of(connection: HTTPConnection) -> Key:
    """The key that the guard found."""
    return connection.scope["clonewave.key"]


def require(scope: str) -> Callable[[Request], None]:
    """A dependency: 403 unless the key has this scope; counts against the key's rate."""

    def check(request: Request) -> None:
        key = key_of(request)
        if not key.allows(scope):
            raise Problem(403, "missing_scope", f"this key lacks the scope {scope!r}")
        service_of(request).count_request(key)

    return check


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, given up as soon as the client goes away.

    Raises:
        ClientGone: it went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


