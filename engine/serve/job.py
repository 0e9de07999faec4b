"""One request on its way through the scheduler, as its reader sees it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import Cancelled, EngineError
from engine.speech import Report, Speech, Word
from engine.text import Sentence

PRIORITIES = ("interactive", "bulk")


@dataclass
class Timing:
    """Seconds, all from the moment the job was accepted but `device_s`, its share of the device."""

    queue_s: float | None = None  # until its first sentence was taken up
    first_audio_s: float | None = None
    total_s: float | None = None
    device_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What a job was asked for; see `Scheduler.submit`."""

    speaker: Any
    speed: float
    seed: int
    priority: str
    key: str | None
    stream: bool
    deadline: float | None  # of time.monotonic


class Part:
    """One sentence of a job, with its stream while it has one. Belongs to the scheduler."""

    def __init__(self, job: Job, number: int, sentence: Sentence) -> None:
        self.job, self.number, self.sentence = job, number, sentence
        self.symbols = len(sentence.symbols())
        self.rank = 0.0
        self.stream: Any = None
        self.device_s = self.share = 0.0  # of the work done
        self.peak = 0.0


class Job:
    """Float32 chunks of samples as they are made: iterate with `for` or `async for`, once.

    `speech()` (or `await job`) gives everything as one Speech. Leaving early without `cancel()`
    (or a `with` block, which cancels what is not done) keeps the device busy for nobody.

    Attributes:
        words: of the sentences begun so far, with times from the start of the speech.
        error: why the job failed, or None.
        timing: see `Timing`.
    """

    def __init__(
        self, settings: Settings, sample_rate: int, gap: np.ndarray, room: int,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        """gap: [samples] between sentences; room: chunks that may wait for a reader; wake: tells
        the scheduler to look again."""
        self.settings, self.sample_rate, self.timing = settings, sample_rate, Timing()
        self.error: EngineError | None = None
        self.words: list[Word] = []
        self._reports: list[Speech] = []
        pieces = -(-len(gap) * 20 // sample_rate)  # of up to 50 ms
        self._gap = np.array_split(gap, pieces) if pieces else []
        self._limit, self._wake = room, wake
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._chunks: deque[np.ndarray] = deque()
        self._early: dict[int, deque[np.ndarray]] = {}  # of sentences whose turn has not come
        self._told: dict[int, Speech] = {}  # words and report of sentences spoken, no samples
        self._ended: set[int] = set()
        self._number = 0  # sentence whose samples may go out
        self._samples = 0  # put out so far
        self._closed = False  # all has been put, or the job failed
        self.waiting: deque[Part] = deque()  # not yet given to a lane; the scheduler's
        self.sentences = 0
        self.parts_left = 0  # not yet ended; the scheduler's, as are these:
        self.under_way = 0
        self.symbols = self.symbols_left = 0.0  # in all, and not yet spoken; at speed 1
        self.complete = False  # no more text will come
        self.created = self.arrived = time.monotonic()
        self.first_at: float | None = None
        self.full_since: float | None = None  # no chunk can be made until the reader takes one

    # ---- the reader's side ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._closed)
                chunk, was_full = self._take()
            if chunk is None:
                return
            if was_full:
                self._wake()
            yield chunk

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def listen() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        self._listeners.append(listen)
        try:
            while True:
                event.clear()
                with self._changed:
                    ready = bool(self._chunks or self._closed)
                    chunk, was_full = self._take() if ready else (None, False)
                if not ready:
                    await event.wait()
                    continue
                if chunk is None:
                    return
                if was_full:
                    self._wake()
                yield chunk
        finally:
            self._listeners.remove(listen)

    def _take(self) -> tuple[np.ndarray | None, bool]:
        """The next chunk (None at the end), and whether making chunks had to wait for this.

        Under the lock. Raises the job's error.
        """
        if self.error is not None:
            raise self.error
        if not self._chunks:
            return None, False
        chunk = self._chunks.popleft()
        if self.full_since is None:
            return chunk, False
        full = len(self._chunks) >= self._limit
        self.full_since = time.monotonic() if full else None
        return chunk, not full

    def speech(self) -> Speech:
        """Everything, when it is made; instead of iterating.

        Raises:
            EngineError: what the job failed with.
        """
        return self._join(list(self))

    def __await__(self) -> Generator[Any, None, Speech]:
        async def collect() -> Speech:
            return self._join([chunk async for chunk in self])

        return collect().__await__()

    def _join(self, chunks: list[np.ndarray]) -> Speech:
        samples = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
        return Speech(samples, self.sample_rate, tuple(self.words), self.report)

    @property
    def report(self) -> Report:
        """Of the sentences begun so far."""
        return Speech.join(self._reports).report if self._reports else Report()

    @property
    def done(self) -> bool:
        """Everything was made, or the job failed; chunks may still wait to be read."""
        return self._closed

    @property
    def seconds(self) -> float:
        """Audio put out so far."""
        return self._samples / self.sample_rate

    def cancel(self, error: EngineError | None = None) -> None:
        """Give up; the device stops with it at the next chunk. Harmless when done.

        Args:
            error: what readers get instead of Cancelled.
        """
        self.fail(error or Cancelled("cancelled"))
        self._wake()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.done:
            self.cancel()

    # ---- the scheduler's side -------------------------------------------------------------------

    def has_room(self) -> bool:
        """May another chunk be made?"""
        return self.full_since is None

    def tell(self, number: int, words: tuple[Word, ...], report: Report) -> None:
        """Words and report of a sentence, before its first samples."""
        about = Speech(np.zeros(0, np.float32), self.sample_rate, words, report)
        with self._changed:
            self._told[number] = about
            if number == self._number and not self._closed:
                self._begin()

    def put(self, number: int, samples: np.ndarray) -> None:
        """Samples of a sentence; they wait for those of the sentences before it."""
        with self._changed:
            if self._closed:
                return
            if number == self._number:
                self._emit(samples)
            else:
                self._early.setdefault(number, deque()).append(samples)

    def end(self, number: int) -> None:
        """A sentence is out."""
        with self._changed:
            self._ended.add(number)
            while self._number in self._ended and not self._closed:
                self._ended.remove(self._number)
                self._number += 1
                if self._number in self._told:
                    self._begin()
                for samples in self._early.pop(self._number, ()):
                    self._emit(samples)

    def close(self) -> None:
        """The job is done."""
        with self._changed:
            self._finish()

    def fail(self, error: EngineError) -> None:
        """End with an error, unless the job is done; what waits to be read is dropped."""
        with self._changed:
            if not self._closed:
                self.error = error
                self._chunks.clear()
                self._early.clear()
                self._finish()

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            self.timing.total_s = time.monotonic() - self.created
        self._announce()

    def _begin(self) -> None:
        """The samples of sentence `_number` come next."""
        if self._number:
            for silence in self._gap:
                self._emit(silence)
        about = self._told.pop(self._number)
        shift = self._samples / self.sample_rate
        self.words += [Word(w.word, w.start_s + shift, w.end_s + shift) for w in about.words]
        self._reports.append(about)

    def _emit(self, samples: np.ndarray) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
            self.timing.first_audio_s = self.first_at - self.created
        self._samples += len(samples)
        self._chunks.append(samples)
        if self.settings.stream and self.full_since is None and len(self._chunks) >= self._limit:
            self.full_since = time.monotonic()
        self._announce()

    def _announce(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()
