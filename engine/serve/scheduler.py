"""Many requests on one device: continuous batching of sentences at chunk edges.

The unit of work is a sentence. Its mel is made in one go; its samples are made chunk by chunk, with
whatever other sentences are under way at that moment. A batch never changes a request's samples.
`queue.py` holds the order and what is refused, `lanes.py` the threads that work.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import Any

from engine.engine import Engine
from engine.errors import InputError, Unavailable
from engine.serve.device import Device, device_of
from engine.serve.job import PRIORITIES, Job, Part, Settings
from engine.serve.lanes import Lane
from engine.serve.queue import Limits, Queue
from engine.synthesize import check
from engine.text import front_end

__all__ = ["Job", "Limits", "Scheduler"]


class Scheduler:
    """Takes requests from any thread and speaks them on the threads that own the device.

    Args:
        engine: an Engine, or any Device.
        limits: see `Limits`.
        start: begin at once; False queues until `start()`.
    """

    def __init__(
        self, engine: Engine | Device, limits: Limits | None = None, *, start: bool = True
    ) -> None:
        self.device: Device = device_of(engine) if isinstance(engine, Engine) else engine
        self.limits = limits or Limits()
        self._lock = threading.Condition()
        self._queue = Queue(self.limits, self.device.lanes)
        self._lanes = [
            Lane(self.device, self._queue, self._lock) for _ in range(self.device.lanes)
        ]
        self._threads = [
            threading.Thread(target=lane.run, name=f"clonewave-lane-{i}", daemon=True)
            for i, lane in enumerate(self._lanes)
        ]
        if start:
            self.start()

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    # ---- taking requests ------------------------------------------------------------------------

    def submit(
        self, text: str, voice: Any, *, speed: float = 1.0, seed: int | None = None,
        priority: str = "interactive", deadline_s: float | None = None, key: str | None = None,
        stream: bool = True,
    ) -> Job:  # fmt: skip
        """Accept a text, or refuse it at once. The text's front end runs in the calling thread.

        Args:
            voice: Voice, path of a voice file or array, as `Engine.synthesize` takes.
            priority: "interactive", or "bulk" for what may wait.
            deadline_s: for all of it, from now; DeadlineExceeded after that.
            key: who asks; one key cannot take more than its share of the queue.
            stream: chunks of 43 ms, few of them ahead of the reader; False: larger chunks without
                bound and several sentences at a time, for who needs all of it anyway.
        Raises:
            Overloaded: it could not be done in time. InputError, VoiceError: it cannot be done.
            Unavailable: shutting down, or the device is broken.
        """
        job = self._job(voice, speed, seed, priority, deadline_s, key, stream)
        with self._lock:
            self._admit(job, 0)  # before the front end's work
        job.complete = True
        self.feed(job, text)
        return job

    def open(
        self, voice: Any, *, speed: float = 1.0, seed: int | None = None,
        priority: str = "interactive", deadline_s: float | None = None, key: str | None = None,
        stream: bool = True,
    ) -> Job:  # fmt: skip
        """A job whose text comes later: `feed(job, text)` in whole sentences, then `finish(job)`.

        See `submit` for the arguments and errors.
        """
        job = self._job(voice, speed, seed, priority, deadline_s, key, stream)
        with self._lock:
            self._admit(job, 0)
            self._queue.add(job, [])
        return job

    def feed(self, job: Job, text: str) -> None:
        """One or more whole sentences more; if they are refused the job stays as it was.

        Raises:
            Overloaded, InputError: as `submit` does. EngineError: what the job failed with.
        """
        sentences = front_end(text)
        with self._lock:
            if job.error is not None:
                raise job.error
            parts = [Part(job, job.sentences + i, s) for i, s in enumerate(sentences)]
            self._admit(job, sum(part.symbols for part in parts) / job.settings.speed)
            job.sentences += len(parts)
            self._queue.add(job, parts)
            self._lock.notify_all()

    def finish(self, job: Job) -> None:
        """No more text will come."""
        with self._lock:
            job.complete = True
            self._queue.settle(job)
            self._lock.notify_all()

    def _job(
        self, voice: Any, speed: float, seed: int | None, priority: str, deadline_s: float | None,
        key: str | None, stream: bool,
    ) -> Job:  # fmt: skip
        if priority not in PRIORITIES:
            raise InputError(f"priority {priority!r}: one of {PRIORITIES}")
        if deadline_s is None:
            deadline_s = self.limits.deadline_s if priority == "interactive" else math.inf
        if not deadline_s > 0:
            raise InputError(f"deadline_s {deadline_s}: give more than 0")
        deadline = time.monotonic() + deadline_s if deadline_s < math.inf else None
        settings = Settings(
            self.device.speaker(voice), speed, check(speed, seed), priority, key, stream, deadline
        )
        device = self.device
        return Job(settings, device.sample_rate, device.gap, self.limits.buffer_chunks, self._wake)

    def _admit(self, job: Job, symbols: float) -> None:
        if self.broken is not None:
            raise Unavailable("the device is broken; the server must be restarted")
        if self._lanes[0].closing:
            raise Unavailable("shutting down; ask again in a moment")
        self._queue.admit(job, symbols)

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    # ---- state ----------------------------------------------------------------------------------

    @property
    def broken(self) -> BaseException | None:
        """What broke the device for good, or None. The process should end and be restarted."""
        return next((lane.broken for lane in self._lanes if lane.broken is not None), None)

    @property
    def ready(self) -> bool:
        """Warm, not closing, not broken, and the queue is not full."""
        with self._lock:
            free = self._queue.wait_s() < self.limits.max_wait_s
            up = all(lane.warm and not lane.closing for lane in self._lanes)
            return up and free and self.broken is None

    def wait_ready(self, timeout_s: float = 60.0) -> bool:
        """Wait for the warm-up; False if it takes longer or fails."""
        with self._lock:
            warm = lambda: all(lane.warm for lane in self._lanes) or self.broken is not None  # noqa: E731
            return self._lock.wait_for(warm, timeout_s) and self.broken is None

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; counters only grow.

        counts of jobs: accepted, completed, rejected_<reason>, <error>_queued, <error>_running.
        batches: steps of the device by the number of streams.
        """
        with self._lock:
            batches: Counter[int] = sum((lane.batches for lane in self._lanes), Counter())
            return {
                "jobs": len(self._queue.jobs),
                "streams": sum(len(lane.active) for lane in self._lanes),
                "queue_s": self._queue.wait_s(),
                "work_s": self._queue.work_s(self._queue.jobs),
                "seconds_per_symbol": self._queue.seconds_per_symbol,
                "audio_s": sum(lane.audio_s for lane in self._lanes),
                "device_s": sum(lane.device_s for lane in self._lanes),
                "counts": dict(self._queue.counts),
                "batches": dict(batches),
            }

    def close(self, drain: bool = True, timeout_s: float = 30.0) -> bool:
        """Take nothing more, finish what was accepted, and end; True if nothing was given up.

        Args:
            drain: False gives up everything at once.
            timeout_s: of the drain; the rest is then given up with Unavailable.
        """
        with self._lock:
            for lane in self._lanes:
                lane.closing = True
            self._lock.notify_all()
            if not drain:
                timeout_s = 0
            done = self._lock.wait_for(lambda: not self._queue.jobs, timeout_s)
            for job in list(self._queue.jobs):
                self._queue.drop(job, Unavailable("the server shut down; ask again"))
            self._lock.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s + 10)
        return done

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(drain=error is None)
