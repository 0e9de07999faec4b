"""What an engine does on a device: speak many texts at once, stream one, or serve a scheduler.

Text becomes symbols on the host, everything after that stays on the device; what comes back is
samples, a chunk of all running streams at a time, and once a sentence its path and length. The next
chunk is under way while the last one is read, so the device does not wait for the host.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.device.acoustic import AcousticStage, GuestStage, Mels
from engine.device.cloning import EncoderStage
from engine.device.replay import bucket
from engine.device.slots import Chunk, SlotStream, VocoderSlots
from engine.errors import InputError
from engine.speech import Report, Speech, Word
from engine.symbols import text_ids
from engine.synthesize import CHUNK_FRAMES, SENTENCE_GAP_S, Speaker, Spoken, read_path
from engine.text import Sentence, front_end

if TYPE_CHECKING:
    from engine.engine import Engine

SLOTS = 256
CAPACITY = 4096  # frames of a sentence: 43 s; its mel and prediction take 2.2 MB
BATCH = 64  # sentences that one acoustic batch speaks
WARM_UP = "A few words, to load and to measure."
BULK_FRAMES = 16  # of a chunk when nobody waits for the first sample


@dataclass(eq=False)
class Job:
    """One sentence on its way: what it is, then what became of it."""

    speaker: Speaker
    sentence: Sentence
    speed: float
    seed: int
    number: int
    ids: list[int] = field(init=False)
    attempt: int = 0
    frames: int = 0  # once known
    words: tuple[Word, ...] = ()
    report: Report = field(default_factory=Report)
    pieces: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = text_ids(self.sentence.symbols())


@dataclass(eq=False)
class Run:
    """A job with its stream, and where its batch tells of it."""

    job: Job
    stream: SlotStream
    mels: Mels
    row: int


class DevicePath:
    """The engine's path on its device. Thread-safe: one call works at a time.

    Also the device of a scheduler: `speak`, `join`, `step` and `leave` for single sentences.

    Args:
        slots: streams that run side by side; capacity: mel frames of the longest.
        buckets: pad sizes to few, each captured once; False runs exactly what is there.
    """

    lanes = 1

    def __init__(
        self, engine: Engine, *, slots: int = SLOTS, capacity: int = CAPACITY, batch: int = BATCH,
        buckets: bool = True,
    ) -> None:  # fmt: skip
        self.engine, self.batch, self.buckets = engine, min(batch, slots), buckets
        self.encoder = EncoderStage(engine)
        self._stage, self._guest = AcousticStage(engine), GuestStage(engine)
        self.slots = self._slots(slots, capacity)
        self.capacity = self.places = slots  # streams, in a scheduler's words
        self.sample_rate = engine.config.vocoder.audio.sample_rate
        self.frame_s = 1 / engine.config.vocoder.audio.frame_rate
        self.gap = np.zeros(round(SENTENCE_GAP_S * self.sample_rate), np.float32)
        self._lock = threading.RLock()

    def _slots(self, slots: int, capacity: int) -> VocoderSlots:
        e = self.engine
        return VocoderSlots(
            e.vocoder, e.network, slots=slots, capacity=capacity, backend=e.backend,
            buckets=self.buckets,
        )  # fmt: skip

    def _acoustic(self, engine: Engine) -> AcousticStage:
        """Where an engine's model speaks; until the next call with another one."""
        return self._stage if engine is self.engine else self._guest.of(engine)

    # ---- many texts -----------------------------------------------------------------------------

    def synthesize(
        self, texts: Sequence[str], speakers: Sequence[Speaker],
        speeds: Sequence[float], seeds: Sequence[int],
    ) -> list[Speech]:  # fmt: skip
        """Speak each text in its own voice; all sentences of all texts run side by side.

        Args:
            speakers: of each text; their engines differ in nothing but the acoustic model.
        """
        told = [
            [Job(speaker, s, speed, seed, i) for i, s in enumerate(front_end(text))]
            for text, speaker, speed, seed in zip(texts, speakers, speeds, seeds, strict=True)
        ]
        self.run([job for jobs in told for job in jobs])
        speeches = []
        for jobs in told:
            parts: list[Speech] = []
            for job in jobs:
                if job.number:
                    parts.append(Speech(self.gap, self.sample_rate))
                samples = np.concatenate(job.pieces)
                parts.append(Speech(samples, self.sample_rate, job.words, job.report))
            speeches.append(Speech.join(parts))
        return speeches

    def run(self, jobs: Sequence[Job]) -> None:
        """Fill in the pieces, words and reports of jobs, whatever their number."""
        with self._lock, torch.no_grad():
            if long := self._run(jobs, self.slots):  # slots of their own, for this call
                most = max(job.frames for job in long)
                self._run(long, self._slots(min(len(long), self.batch), bucket(most, 1024)))

    def _run(self, jobs: Sequence[Job], slots: VocoderSlots) -> list[Job]:
        """Run jobs in slots; returns those that are too long for them, with their `frames`."""
        waiting = deque(self._batches(jobs))
        running: list[Run] = []
        long: list[Job] = []
        before: tuple[list[Run], Chunk] | None = None
        try:
            while waiting or running or before:
                while waiting and len(waiting[0]) <= slots.free:
                    running += self._begin(waiting.popleft(), slots)
                now = None
                if going := [run for run in running if not run.stream.ended]:
                    now = going, slots.launch([run.stream for run in going], BULK_FRAMES)
                if before:
                    again = self._deliver(*before, running, slots)
                    waiting.extend(self._batches([j for j in again if j.frames <= slots.capacity]))
                    long += [job for job in again if job.frames > slots.capacity]
                before = now
        finally:
            for run in running:
                slots.leave(run.stream)
        return long

    def _batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Jobs of one speaker's model and of similar length together, so little is padding."""
        by_model: dict[Engine, list[Job]] = {}
        for job in sorted(jobs, key=lambda job: len(job.ids)):
            by_model.setdefault(job.speaker.engine, []).append(job)
        for mine in by_model.values():
            for begin in range(0, len(mine), self.batch):
                yield mine[begin : begin + self.batch]

    def _begin(self, jobs: Sequence[Job], slots: VocoderSlots) -> list[Run]:
        mels = self._acoustic(jobs[0].speaker.engine)(
            [job.ids for job in jobs], [job.speaker for job in jobs],
            [job.speed for job in jobs], max(job.attempt for job in jobs),
        )  # fmt: skip
        streams = slots.join(
            mels.mel, mels.frames, [job.seed for job in jobs], [job.number for job in jobs]
        )
        pairs = zip(jobs, streams, strict=True)
        return [Run(job, stream, mels, row) for row, (job, stream) in enumerate(pairs)]

    def _deliver(
        self, runs: list[Run], chunk: Chunk, running: list[Run], slots: VocoderSlots
    ) -> list[Job]:
        """Hand out the samples of a chunk; what has ended leaves. Returns the jobs to do again."""
        again: list[Job] = []
        for run in runs:
            if not run.stream.known:
                if self._learn(run) and run.job.frames <= slots.capacity:
                    run.stream.frames = run.job.frames
                else:
                    run.stream.frames = 0
                    again.append(run.job)
        for run, samples in zip(runs, chunk.read(), strict=True):
            run.job.pieces.append(samples)
            if run.stream.ended and run in running:  # its last chunk is launched, maybe not read
                running.remove(run)
                slots.leave(run.stream)
        for job in again:
            job.pieces.clear()
        return again

    def _learn(self, run: Run) -> bool:
        """Length, words and report of a sentence; False if it was cut short: one attempt more."""
        path, steps, finished, frames = (part[run.row] for part in run.mels.told.get())
        job = run.job
        if not finished:
            job.attempt += 1
            return False
        job.frames = int(frames)
        rate = self.engine.config.acoustic.decoder_rate
        job.words, job.report = read_path(job.sentence, path[:steps], rate * job.speed, rate)
        return True

    # ---- one text, and the device of a scheduler ------------------------------------------------

    def stream(
        self, text: str, speaker: Speaker, speed: float, seed: int
    ) -> Iterator[np.ndarray]:
        """Chunks of samples, sentence by sentence; they join to what `synthesize` returns."""
        for number, sentence in enumerate(front_end(text)):
            if number:
                yield self.gap
            stream = self.join(self.speak(sentence, speaker, speed), seed, number)
            try:
                while not stream.ended:
                    yield self.step([stream], CHUNK_FRAMES)[0]
            finally:
                self.leave(stream)

    def speaker(self, voice: Any) -> Speaker:
        """What `speak` needs of a voice; raises VoiceError if it cannot be used."""
        return self.engine.speaker(voice)

    def warm(self) -> float:
        """Compile and capture what first calls need; seconds a symbol takes afterwards."""
        sentence = front_end(WARM_UP)[0]
        speaker = self.speaker(torch.ones(self.engine.config.encoder.speaker_dim))
        seconds = 0.0
        for _ in range(2):
            begin = time.perf_counter()
            stream = self.join(self.speak(sentence, speaker, 1.0), 0, 0)
            while not stream.ended:
                self.step([stream], CHUNK_FRAMES)
            self.leave(stream)
            seconds = time.perf_counter() - begin
        with self._lock:
            sizes = [1 << i for i in range(self.capacity.bit_length())]
            self.slots.warm(sizes, CHUNK_FRAMES)
        return seconds / len(sentence.symbols())

    def speak(self, sentence: Sentence, speaker: Speaker, speed: float) -> Spoken:
        """Mel, word times and report of one sentence; waits for it."""
        job = Job(speaker, sentence, speed, 0, 0)
        with self._lock, torch.no_grad():
            while True:
                stage = self._acoustic(speaker.engine)
                mels = stage([job.ids], [speaker], [speed], job.attempt)
                run = Run(job, SlotStream(0, 0), mels, 0)
                if self._learn(run):
                    break
            return Spoken(mels.mel[:1, :, : job.frames].clone(), job.words, job.report)

    def join(self, spoken: Spoken, seed: int, number: int) -> SlotStream:
        """Start a stream; (seed, number of the sentence) names its noise.

        Raises:
            InputError: a sentence longer than the slots hold.
            Overloaded: no slot is free.
        """
        frames = spoken.mel.shape[-1]
        if frames > self.slots.capacity:
            seconds = self.slots.capacity / self.engine.config.vocoder.audio.frame_rate
            raise InputError(f"a sentence of over {seconds:.0f} s; write it as several")
        with self._lock:
            return self.slots.join(spoken.mel, [frames], [seed], [number])[0]

    def step(self, streams: Sequence[SlotStream], frames: int) -> list[np.ndarray]:
        """The next `frames` frames of each as samples; fewer at the end."""
        with self._lock:
            return self.slots.step(streams, frames)

    def leave(self, stream: SlotStream) -> None:
        """Give up a stream, at its end or before."""
        with self._lock:
            self.slots.leave(stream)

    def broken(self, error: BaseException) -> bool:
        """True if nothing can run on the device after this error until the process restarts."""
        out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        return self.engine.device.type == "cuda" and not out_of_memory and (
            isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
        )
