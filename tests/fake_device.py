"""A device that says numbers instead of speech: exact, quick, and able to fail on purpose."""

import threading
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from engine.speech import Report, Speech, Word
from engine.synthesize import Spoken
from engine.text import front_end

HOP, RATE = 16, 8000  # samples a frame, samples a second
GAP = np.zeros(200, np.float32)


@dataclass(frozen=True)
class Said(Spoken):
    text: str
    voice: float
    speed: float


class FakeStream:
    def __init__(self, said: Said, seed: int, number: int) -> None:
        self.text, self.voice, self.at = said.text, said.voice, 0
        self.samples = samples_of(said.text, said.voice, said.speed, seed, number)
        self.frames = len(self.samples) // HOP


def samples_of(text: str, voice: float, speed: float, seed: int, number: int) -> np.ndarray:
    """What this device says of one sentence: numbers that name everything they depend on."""
    rng = np.random.default_rng([zlib.crc32(text.encode()), int(voice * 100), seed, number])
    return rng.uniform(0.1, 1.0, frames_of(text, speed) * HOP).astype(np.float32)


def frames_of(text: str, speed: float) -> int:
    return max(1, round(len(text) / speed))


def words_of(sentence) -> tuple[Word, ...]:
    return tuple(Word(w.text, 0.001 * i, 0.001 * i) for i, w in enumerate(sentence.words))


def alone(text: str, voice: float, speed: float = 1.0, seed: int = 0) -> Speech:
    """What a request must give, whatever runs beside it."""
    parts = []
    for number, sentence in enumerate(front_end(text)):
        if number:
            parts.append(Speech(GAP, RATE))
        samples = samples_of(sentence.text, voice, speed, seed, number)
        parts.append(Speech(samples, RATE, words_of(sentence), Report(warnings=sentence.warnings)))
    return Speech.join(parts)


class FakeDevice:
    """Words of a text make it fail: "mad" raises in speak, "poison" in step, "fatal" breaks it;
    "mute" is silent, "wrong" gives NaN, "endless" never stops."""

    sample_rate, frame_s, gap = RATE, HOP / RATE, GAP

    def __init__(
        self, lanes: int = 1, capacity: int = 8, rate: float = 1e-5, places: int = 1000
    ) -> None:
        self.lanes, self.capacity, self.rate, self.places = lanes, capacity, rate, places
        self.memory = 1000  # rows that fit
        self.streams: set[FakeStream] = set()
        self.batches: list[list[float]] = []  # voices, step by step
        self.spoken: list[str] = []  # texts, in order
        self.gate = threading.Event()  # closed: speak and step wait
        self.gate.set()
        self.entered = threading.Event()  # something is being spoken

    def warm(self) -> float:
        return self.rate  # seconds a symbol, for predictions

    def speaker(self, voice: float) -> float:
        return voice

    def speak(self, sentence, speaker, speed) -> Said:
        self.entered.set()
        self.gate.wait()
        self.spoken.append(sentence.text)
        if "mad" in sentence.text:
            raise ValueError("mad")
        frames = 100_000 if "endless" in sentence.text else frames_of(sentence.text, speed)
        report = Report(warnings=sentence.warnings)
        mel = torch.zeros(1, 1, frames)
        return Said(mel, words_of(sentence), report, sentence.text, speaker, speed)

    def join(self, spoken, seed, number) -> FakeStream:
        assert len(self.streams) < self.places * self.lanes
        stream = FakeStream(spoken, seed, number)
        self.streams.add(stream)
        return stream

    def step(self, streams, frames) -> list[np.ndarray]:
        self.gate.wait()
        self.batches.append([stream.voice for stream in streams])
        if len(streams) > self.memory:
            raise RuntimeError("out of memory")
        for stream in streams:
            if "fatal" in stream.text:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if "poison" in stream.text and stream.at:
                raise ValueError("poison")
        return [self._advance(stream, frames) for stream in streams]

    def _advance(self, stream, frames) -> np.ndarray:
        assert stream.at < stream.frames and stream in self.streams
        end = min(stream.at + frames, stream.frames)
        samples = stream.samples[stream.at * HOP : end * HOP]
        stream.at = end
        if "mute" in stream.text:
            return samples * 0
        return samples * np.nan if "wrong" in stream.text else samples

    def leave(self, stream) -> None:
        self.streams.remove(stream)

    def broken(self, error) -> bool:
        return "CUDA error" in str(error)
