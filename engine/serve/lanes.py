"""The threads that own the device: each takes sentences up, steps its streams, and lets them go."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    SynthesisError,
    Unavailable,
)
from engine.serve.device import Device
from engine.serve.job import Job, Part
from engine.serve.queue import SPEAK_SHARE, Queue

log = logging.getLogger(__name__)
SILENCE = 1e-4  # peak of a sentence that says nothing
RUNAWAY_S = (1.0, 0.4)  # longest credible sentence at speed 1: seconds, and seconds per symbol


class Lane:
    """One thread and the sentences it has under way."""

    def __init__(self, device: Device, queue: Queue, lock: threading.Condition) -> None:
        self.device, self.queue, self.lock = device, queue, lock
        self.capacity = device.capacity
        self.active: list[Part] = []
        self.batches: Counter[int] = Counter()  # by size: steps
        self.audio_s = self.device_s = 0.0
        self.warm = self.closing = False
        self.broken: BaseException | None = None

    def run(self) -> None:
        """Work until `closing` and nothing is left, or the device breaks."""
        try:
            rate = self.device.warm()
            with self.lock:
                self.warm = True
                self.queue.seconds_per_symbol = rate
                self.lock.notify_all()
            while (turn := self._next_turn()) is not None:
                turn()
        except Exception as error:  # a fault of ours or of the device outside any request
            log.exception("lane stopped")
            self._break(error)

    # ---- what to do next ------------------------------------------------------------------------

    def _next_turn(self) -> Callable[[], None] | None:
        with self.lock:
            while self.broken is None:
                until = self._sweep()
                now = time.monotonic()
                ready = [(self.queue.due(p), p) for p in self.active if p.job.has_room()]
                ready.sort(key=lambda entry: entry[0])
                head = self.queue.head(now)
                if head is not None and self._first(*head, ready, now):
                    part = head[1]
                    self.queue.pop(part)
                    timing = part.job.timing
                    timing.queue_s = timing.queue_s or now - part.job.created
                    return lambda: self._speak(part)
                if ready:
                    batch = [part for _, part in ready[: self.capacity]]
                    return lambda: self._step(batch)
                if self.closing and not self.queue.jobs:
                    return None
                self.lock.wait(None if until is None else max(0.0, until - now))
            return None

    def _first(
        self, needed: float, head: Part, ready: list[tuple[float, Part]], now: float
    ) -> bool:
        """Should the sentence that waits be taken up before the streams take their next step?

        Yes, unless a stream is needed sooner (its listener would hear a gap) or there is no room.
        Few streams together are many times faster than they play, so another may always join them:
        where all are late, only full batches catch up. What is not streamed never holds up what
        waits, and leaves room for what is streamed.
        """
        if len(self.active) >= self.device.places:
            return False
        streamed = [due for due, part in ready if part.job.settings.stream]
        taken = len(streamed) if head.job.settings.stream else len(ready)
        if taken < self.capacity // 2 and needed <= now:
            return True
        return taken < self.capacity and (not streamed or needed <= min(streamed))

    def _sweep(self) -> float | None:
        """Drop what is cancelled, late or stalled; the next moment to look again."""
        now = time.monotonic()
        limits, until = self.queue.limits, None
        for job in list(self.queue.jobs):
            deadline, full = job.settings.deadline, job.full_since
            stalled = None if full is None else full + limits.stall_s
            if job.error is not None:
                self.queue.drop(job, job.error)
            elif deadline is not None and deadline <= now:
                self.queue.drop(job, DeadlineExceeded("not done before its deadline"))
            elif stalled is not None and stalled <= now:
                self.queue.drop(job, Cancelled(f"nobody took its audio for {limits.stall_s:g} s"))
            else:
                times = [t for t in (until, deadline, stalled) if t is not None]
                until = min(times) if times else None
        for part in [p for p in self.active if p.job.error is not None]:
            self._leave(part)
        return until

    # ---- doing it -------------------------------------------------------------------------------

    def _speak(self, part: Part) -> None:
        settings = part.job.settings
        begin = time.monotonic()
        try:
            spoken = self.device.speak(part.sentence, settings.speaker, settings.speed)
            part.stream = self.device.join(spoken, settings.seed, part.number)
        except Exception as error:
            self._failed(part, error)
            return
        seconds = spoken.mel.shape[-1] * self.device.frame_s
        with self.lock:
            self.active.append(part)
            self._charge([part], time.monotonic() - begin)
            self.queue.progress(part, SPEAK_SHARE)
            part.job.tell(part.number, spoken.words, spoken.report)
            if seconds * settings.speed > RUNAWAY_S[0] + RUNAWAY_S[1] * part.symbols:
                self._fail(part.job, f"{seconds:.0f} s for {part.sentence.text[:40]!r}")

    def _step(self, parts: list[Part]) -> None:
        limits = self.queue.limits
        frames = limits.whole_frames
        if any(part.job.settings.stream for part in parts):
            busy = len(parts) > self.capacity // 2
            frames = limits.busy_frames if busy else limits.chunk_frames
        begin = time.monotonic()
        try:
            made = self.device.step([part.stream for part in parts], frames)
        except Exception as error:
            self._split(parts, error)
            return
        with self.lock:
            self.batches[len(parts)] += 1
            self._charge(parts, time.monotonic() - begin)
            for part, samples in zip(parts, made, strict=True):
                self._deliver(part, samples)

    def _split(self, parts: list[Part], error: Exception) -> None:
        """No stream moved: find who is to blame, and let the others go on."""
        if "out of memory" in str(error) or isinstance(error, MemoryError):
            self.capacity = max(1, min(self.capacity, len(parts)) // 2)
            log.warning("out of memory with %d streams: from now on %d", len(parts), self.capacity)
        if len(parts) == 1 or self.device.broken(error):
            self._failed(parts[0], error)
            return
        middle = len(parts) // 2
        self._step(parts[:middle])
        if self.broken is None:
            self._step(parts[middle:])

    def _deliver(self, part: Part, samples: np.ndarray) -> None:
        job, stream = part.job, part.stream
        if job.error is not None:  # given up meanwhile; the next sweep lets its stream go
            return
        part.peak = max(part.peak, float(np.abs(samples).max(initial=0.0)))
        if not np.isfinite(part.peak) or not np.isfinite(samples).all():
            self._fail(job, "samples that are not finite")
            return
        self.queue.progress(part, SPEAK_SHARE + (1 - SPEAK_SHARE) * stream.at / stream.frames)
        self.audio_s += len(samples) / self.device.sample_rate
        if len(samples):
            job.put(part.number, samples)
        if stream.at < stream.frames:
            return
        self._leave(part)
        if part.peak < SILENCE:
            self._fail(job, f"silence for {part.sentence.text[:40]!r}")
            return
        self.queue.measured(part)
        job.end(part.number)
        self.queue.ended(part)
        self.lock.notify_all()

    def _charge(self, parts: list[Part], seconds: float) -> None:
        self.device_s += seconds
        for part in parts:
            part.device_s += seconds / len(parts)
            part.job.timing.device_s += seconds / len(parts)

    # ---- faults ---------------------------------------------------------------------------------

    def _leave(self, part: Part) -> None:
        self.active.remove(part)
        self.device.leave(part.stream)

    def _failed(self, part: Part, error: Exception) -> None:
        """One sentence alone makes the device raise."""
        if self.device.broken(error):
            log.error("the device is broken", exc_info=error)
            self._break(error)
            return
        log.error("synthesis failed", exc_info=error)
        with self.lock:
            if isinstance(error, EngineError):
                self.queue.drop(part.job, error)
            else:
                self._fail(part.job, type(error).__name__)

    def _fail(self, job: Job, what: str) -> None:
        error = SynthesisError(f"the engine failed on this text ({what}); other text may work")
        self.queue.drop(job, error)

    def _break(self, error: BaseException) -> None:
        """Nothing runs on this device any more: fail everything, for another process to take up."""
        with self.lock:
            self.broken = error
            for job in list(self.queue.jobs):
                self.queue.drop(job, Unavailable("the device broke; ask again"))
            self.lock.notify_all()
