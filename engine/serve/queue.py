"""What a scheduler has accepted, in what order it is needed, and what it refuses. No threads.

Sentences are ordered by the moment they are needed: a new stream's first when it arrives, a playing
stream's next when its audio runs out, bulk half a minute after it arrives. Such a rank never has to
be raised: whatever waits is passed by fewer and fewer, so bulk ages and nothing starves. But a
stream that plays goes before one that has not begun as soon as it is needed: when all are late,
those begun are finished first, or every listener would wait again at every sentence. A key that
asks for much is ranked as if its jobs had arrived at the pace of its share (a virtual clock).
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import EngineError, Overloaded
from engine.serve.job import Job, Part

WHOLE_DELAY_S = 1.0  # a reader that waits for all of it can wait a moment longer
BULK_DELAY_S = 30.0
MARGIN_S = 0.3  # a stream that plays is served before less than this is left to play
END_S = 1.0  # a stream is paced to end so long before its deadline
SLACK = 1.5  # predictions may be so much too short before a deadline is missed
SPEAK_SHARE = 0.4  # of a sentence's work, for estimates only: its mel; the rest is the vocoder
FIRST_GUESS_S = 0.005  # of device time per symbol; measured from the warm-up on


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler; what exceeds one is refused with `Overloaded`, never queued."""

    jobs: int = 256  # accepted at a time
    jobs_per_key: int = 16
    key_share: float = 0.5  # of max_work_s, that one key may have queued
    max_wait_s: float = 10.0  # predicted, until a new sentence is taken up
    max_work_s: float = 30.0  # predicted, until everything accepted is done
    bulk_work_s: float = 600.0  # the same for bulk, which may wait
    deadline_s: float = 120.0  # of an interactive job that names none
    stall_s: float = 10.0  # a reader that takes nothing for so long is given up
    buffer_chunks: int = 4  # made ahead of the reader of a stream
    chunk_frames: int = 4  # of a stream: 43 ms
    busy_frames: int = 7  # of a stream beside many others: 75 ms, for a third less overhead
    whole_frames: int = 16  # of what is not streamed
    parallel: int = 4  # sentences at a time of one job that is not streamed


class Queue:
    """Jobs and the sentences that no lane has taken up yet. The caller holds the lock."""

    def __init__(self, limits: Limits, lanes: int) -> None:
        self.limits, self.lanes = limits, lanes
        self.jobs: dict[Job, None] = {}
        self.counts: Counter[str] = Counter()
        self.seconds_per_symbol = FIRST_GUESS_S  # of one lane
        self._new: list[tuple[float, int, Part]] = []  # waiting, of jobs that play nothing yet
        self._playing: list[tuple[float, int, Part]] = []  # waiting, of streams that do
        self._clocks: dict[str, float] = {}  # by key: when its next job counts as arrived
        self._order = itertools.count()

    # ---- admission ------------------------------------------------------------------------------

    def admit(self, job: Job, symbols: float) -> None:
        """Raise Overloaded unless so many symbols more can be done in time."""
        limits, asked = self.limits, job.settings
        bulk = asked.priority == "bulk"
        most = limits.bulk_work_s if bulk else limits.max_work_s
        ahead = self.work_s(j for j in self.jobs if bulk or j.settings.priority != "bulk")
        if ahead > most:
            self._refuse("work", f"{ahead:.0f} s of work are queued", ahead - most)
        wait = self.wait_s()
        if not bulk and wait > limits.max_wait_s:
            self._refuse("wait", f"the queue is {wait:.0f} s long", wait - limits.max_wait_s)
        if asked.deadline is not None:
            left = asked.deadline - time.monotonic()
            over = SLACK * (ahead + symbols * self.seconds_per_symbol) - left
            if over > 0:
                self._refuse("deadline", "it would not be done before its deadline", over)
        if job in self.jobs:
            return
        if len(self.jobs) >= limits.jobs:
            self._refuse("jobs", f"{limits.jobs} requests are under way", 1)
        if asked.key is not None:
            same = [other for other in self.jobs if other.settings.key == asked.key]
            if len(same) >= limits.jobs_per_key:
                self._refuse("key", f"this key has {len(same)} requests under way", 1)
            over = self.work_s(same) - limits.key_share * most
            if over > 0:
                self._refuse("key", "this key has its share of the queue", over)

    def _refuse(self, reason: str, message: str, seconds: float) -> None:
        self.counts[f"rejected_{reason}"] += 1
        after = max(1, math.ceil(seconds))
        raise Overloaded(f"{message}; try again in {after} s", after, reason)

    def work_s(self, jobs: Iterable[Job]) -> float:
        """Predicted seconds until these jobs are done, if nothing else were."""
        return sum(job.symbols_left for job in jobs) * self.seconds_per_symbol / self.lanes

    def wait_s(self) -> float:
        """Predicted seconds until the interactive sentences that wait now are taken up."""
        symbols = sum(
            part.symbols for _, _, part in self._new + self._playing
            if part.job.settings.priority != "bulk"
        )
        return symbols * self.seconds_per_symbol / self.lanes

    def measured(self, part: Part) -> None:
        """A sentence is out: learn from what it took."""
        seconds = part.device_s / part.symbols * part.job.settings.speed
        self.seconds_per_symbol += 0.1 * (seconds - self.seconds_per_symbol)

    # ---- order ----------------------------------------------------------------------------------

    def add(self, job: Job, parts: list[Part]) -> None:
        """Accept sentences of a new or known job."""
        if job not in self.jobs:
            self.jobs[job] = None
            self.counts["accepted"] += 1
            job.arrived = self._arrival(job, parts)
        job.waiting.extend(parts)
        job.parts_left += len(parts)
        symbols = sum(part.symbols for part in parts) / job.settings.speed
        job.symbols += symbols
        job.symbols_left += symbols
        self.advance(job)

    def _arrival(self, job: Job, parts: list[Part]) -> float:
        now, key = time.monotonic(), job.settings.key
        if key is None:
            return now
        self._clocks = {k: at for k, at in self._clocks.items() if at > now}
        arrived = max(now, self._clocks.get(key, now))
        symbols = sum(part.symbols for part in parts)
        share = self.limits.key_share * self.lanes
        self._clocks[key] = arrived + symbols * self.seconds_per_symbol / share
        return arrived

    def advance(self, job: Job) -> None:
        """Let as many of the job's sentences wait for a lane as may be under way at a time."""
        most = 1 if job.settings.stream else self.limits.parallel
        while job.waiting and job.under_way < most:
            part = job.waiting.popleft()
            job.under_way += 1
            part.rank = self.due(part)
            plays = job.settings.stream and job.first_at is not None
            heap = self._playing if plays else self._new
            heapq.heappush(heap, (part.rank, next(self._order), part))

    def due(self, part: Part) -> float:
        """When (time.monotonic) the next samples of a sentence are needed."""
        job = part.job
        if job.settings.priority == "bulk":
            return job.arrived + BULK_DELAY_S
        if not job.settings.stream:
            return job.arrived + WHOLE_DELAY_S
        if job.first_at is None:
            return job.arrived
        plays = job.first_at + job.seconds - MARGIN_S
        if job.settings.deadline is None:
            return plays
        # started late, it has to run faster than it plays
        done = 1 - job.symbols_left / job.symbols
        return min(plays, job.first_at + done * (job.settings.deadline - END_S - job.first_at))

    def head(self, now: float) -> tuple[float, Part] | None:
        """The sentence to take up next, and when it is needed: if it is to begin a stream, not
        before now, however long it has waited."""
        begins = max(now, self._new[0][0]) if self._new else math.inf
        if self._playing and self._playing[0][0] <= begins:
            return self._playing[0][0], self._playing[0][2]
        return (begins, self._new[0][2]) if self._new else None

    def pop(self, part: Part) -> None:
        """The head is taken up."""
        heapq.heappop(self._playing if self._playing and self._playing[0][2] is part else self._new)

    # ---- progress -------------------------------------------------------------------------------

    def progress(self, part: Part, share: float) -> None:
        """So much of a sentence's work is done, 0 to 1; for what is predicted."""
        symbols = part.symbols / part.job.settings.speed
        part.job.symbols_left -= symbols * max(0.0, share - part.share)
        part.share = max(share, part.share)

    def ended(self, part: Part) -> None:
        """A sentence is out; the job's next may come."""
        self.progress(part, 1.0)
        job = part.job
        job.under_way -= 1
        job.parts_left -= 1
        self.advance(job)
        self.settle(job)

    def settle(self, job: Job) -> None:
        """Close a job whose text is complete and spoken."""
        if job in self.jobs and job.complete and not job.parts_left:
            del self.jobs[job]
            self.counts["completed"] += 1
            job.close()

    def drop(self, job: Job, error: EngineError) -> None:
        """End a job with an error (or the one it has); lanes leave its streams when they see it."""
        if job in self.jobs:
            del self.jobs[job]
            job.fail(error)
            stage = "queued" if job.timing.queue_s is None else "running"
            self.counts[f"{type(job.error).__name__}_{stage}"] += 1
            for heap in (self._new, self._playing):
                if any(entry[2].job is job for entry in heap):
                    heap[:] = [entry for entry in heap if entry[2].job is not job]
                    heapq.heapify(heap)
