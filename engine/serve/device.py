"""What the scheduler asks of an engine: speak a sentence, then advance streams side by side.

A stream joins, is stepped together with whatever others run at that moment, and leaves. An
implementation keeps this promise: the samples of a stream depend on its own inputs alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from engine.engine import Engine
from engine.models.vocoder import VocoderStream, next_together
from engine.synthesize import SENTENCE_GAP_S, Speaker, Spoken, speak
from engine.text import Sentence, front_end

WARM_UP = "A few words, to load and to measure."


class Stream(Protocol):
    """One sentence on its way out. `at` of `frames` mel frames are done."""

    at: int
    frames: int


class Device(Protocol):
    """A machine to speak with. All calls of one lane come from one thread; lanes run at once.

    Attributes:
        lanes: threads that may work at the same time (processor cores; 1 on a GPU).
        capacity: streams of one lane that may be stepped together.
        places: streams of one lane that may have joined and not left, running or not.
        sample_rate: Hz. frame_s: seconds of a mel frame.
        gap: [samples], silence between two sentences.
    """

    lanes: int
    capacity: int
    places: int
    sample_rate: int
    frame_s: float
    gap: np.ndarray

    def speaker(self, voice: Any) -> Any:
        """What `speak` needs of a voice; raises VoiceError if it cannot be used."""

    def warm(self) -> float:
        """Called once by each lane's thread before its first work; load and compile everything.

        Returns seconds a symbol takes on this device, for a first prediction.
        """

    def speak(self, sentence: Sentence, speaker: Any, speed: float) -> Spoken:
        """Mel, word times and report of one sentence."""

    def join(self, spoken: Spoken, seed: int, number: int) -> Stream:
        """Start a stream; (seed, number of the sentence) names its noise."""

    def step(self, streams: Sequence[Any], frames: int) -> list[np.ndarray]:
        """The next `frames` frames of each as samples (fewer at the end). If it raises, no stream
        has moved: the same streams may be stepped again, together or apart."""

    def leave(self, stream: Any) -> None:
        """Give up a stream, at its end or before."""

    def broken(self, error: BaseException) -> bool:
        """True if nothing can run on the device after this error until the process restarts."""


class EngineDevice:
    """An `Engine` on the processor: a lane for each core, one torch thread in each."""

    def __init__(self, engine: Engine, lanes: int | None = None, capacity: int = 8) -> None:
        self.engine = engine
        on_cpu = engine.device.type == "cpu"
        self.lanes = lanes or (_cores() if on_cpu else 1)
        self.capacity = capacity
        self.places = sys.maxsize  # a stream takes nothing but memory
        self.sample_rate = engine.config.vocoder.audio.sample_rate
        self.frame_s = 1 / engine.config.vocoder.audio.frame_rate
        self.gap = np.zeros(round(SENTENCE_GAP_S * self.sample_rate), np.float32)

    def speaker(self, voice: Any) -> Speaker:
        return self.engine.speaker(voice)

    def warm(self) -> float:
        if self.lanes > 1:
            torch.set_num_threads(1)
        sentence = front_end(WARM_UP)[0]
        speaker = self.speaker(np.ones(self.engine.config.encoder.speaker_dim))
        for _ in range(2):  # the first time loads and packs
            begin = time.monotonic()
            stream = self.join(self.speak(sentence, speaker, 1.0), 0, 0)
            while stream.at < stream.frames:
                self.step([stream], 16)
            seconds = time.monotonic() - begin
        return seconds / len(sentence.symbols())

    def speak(self, sentence: Sentence, speaker: Speaker, speed: float) -> Spoken:
        return speak(speaker, sentence, speed)

    def join(self, spoken: Spoken, seed: int, number: int) -> VocoderStream:
        e = self.engine
        return VocoderStream(e.vocoder, e.network, spoken.mel, seed, number, e.backend)

    def step(self, streams: Sequence[VocoderStream], frames: int) -> list[np.ndarray]:
        return [samples.cpu().numpy() for samples in next_together(streams, frames)]

    def leave(self, stream: VocoderStream) -> None:
        """A VocoderStream owns nothing but memory."""

    def broken(self, error: BaseException) -> bool:
        """A CUDA context that reported an error like these never works again."""
        text = str(error)
        return isinstance(error, RuntimeError) and "out of memory" not in text and any(
            sign in text for sign in ("CUDA error", "illegal memory access", "launch failure")
        )


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_of(engine: Engine) -> Device:
    """An engine's own path where it has one, on a GPU; else the processor."""
    if engine.path is not None:
        return engine.path
    return EngineDevice(engine)
