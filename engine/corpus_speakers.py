"""Speakers of the corpus and the making of one utterance; see `corpus.py`."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from engine import audio, corpus_text
from engine.corpus_manifest import Row
from engine.corpus_teacher import FRAME_S, LEAD_S, SAMPLE_RATE, Teacher
from engine.corpus_text import Texts
from engine.errors import InputError

PHONEMES = (4, 170)  # about a quarter of a second to twelve seconds
TIMBRE = 128  # the first half of a style vector; the second is prosody
SILENCE = 0.01  # below: the teacher's lead-in and its tail
EDGE_S = 0.05  # kept of them
PEAK = 0.7


class Voice(NamedTuple):
    """How a speaker is made; see the head of this file. tract: 1.1 = a tenth shorter."""

    timbre: dict[str, float]
    prosody: str
    spread: float = 1.0
    tract: float = 1.0


class Speaks(Protocol):
    """What the builder needs of a teacher."""

    def phonemes(self, text: str, british: bool) -> str: ...

    def speak(
        self, phonemes: str, style: np.ndarray, speed: float
    ) -> tuple[np.ndarray, tuple[int, ...]]: ...


def mix_speakers(names: list[str], count: int, seed: int) -> dict[str, Voice]:
    """The stock voices and `count` new ones; asking for more later changes none of the first.

    Raises:
        InputError: too few voices of a sex, or none of them English, to mix new ones.
    """
    table = {name: Voice({name: 1.0}, name) for name in names}
    english = [name for name in names if name[0] in "ab"]
    for sex in "fm" if count else "":
        if sum(name[1] == sex for name in names) < 3 or all(name[1] != sex for name in english):
            raise InputError(
                "to mix speakers, three female and three male voices are needed, some of either "
                "English (af_*.bin, am_*.bin); get all voices, or give --new-speakers 0"
            )
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        sex = "fm"[i % 2]
        same = [name for name in names if name[1] == sex]
        chosen = [str(n) for n in rng.choice(same, int(rng.integers(2, 4)), replace=False)]
        if rng.random() < 0.2:
            chosen[-1] = str(rng.choice([name for name in names if name[1] != sex]))
        weights = rng.dirichlet(np.ones(len(chosen)))
        table[f"mix{i:03d}{sex}"] = Voice(
            timbre={name: float(w) for name, w in zip(chosen, weights, strict=True)},
            prosody=str(rng.choice([name for name in english if name[1] == sex])),
            spread=float(rng.uniform(1.0, 1.5)),
            tract=float(rng.uniform(0.88, 1.14)),
        )
    return table


class Maker:
    """Makes utterance `number` of a corpus; what it makes depends on seed and number alone."""

    def __init__(
        self, folder: Path, teacher: Speaks, voices: dict[str, np.ndarray],
        speakers: dict[str, Voice], texts: Texts, seed: int,
    ) -> None:  # fmt: skip
        self.folder, self.teacher, self.voices, self.speakers = folder, teacher, voices, speakers
        self.names, self.texts, self.seed = sorted(speakers), texts, seed
        self.mean = np.mean(list(voices.values()), axis=0)

    def style(self, voice: Voice, length: int) -> np.ndarray:
        """float32 [256] of a voice for an utterance of `length` phonemes."""
        parts = [self.voices[name][length] * weight for name, weight in voice.timbre.items()]
        timbre = self.mean[length] + voice.spread * (np.sum(parts, axis=0) - self.mean[length])
        prosody = self.voices[voice.prosody][length]
        return np.concatenate([timbre[:TIMBRE], prosody[TIMBRE:]]).astype(np.float32)

    def __call__(self, number: int) -> Row | None:
        """Write the audio and return its row; None if no draw gave a usable utterance."""
        rng = random.Random(self.seed * 1_000_003 + number)
        name = self.names[number % len(self.names)]
        voice = self.speakers[name]
        for _ in range(8):
            text = corpus_text.compose(self.texts, rng)
            phonemes = self.teacher.phonemes(text, british=voice.prosody[0] == "b")
            if not PHONEMES[0] <= len(phonemes) <= PHONEMES[1]:
                continue
            row = self._spoken(f"{name}/{number:06d}", name, text, phonemes, rng.uniform(0.9, 1.15))
            if row is not None:
                return row
        return None

    def _spoken(
        self, utterance: str, name: str, text: str, phonemes: str, speed: float
    ) -> Row | None:
        voice = self.speakers[name]
        from_rate = round(SAMPLE_RATE * voice.tract)
        tract = from_rate / SAMPLE_RATE
        style = self.style(voice, len(phonemes))
        samples, durations = self.teacher.speak(phonemes, style, speed / tract)
        if not np.isfinite(samples).all() or len(durations) != len(phonemes) + 2:
            return None
        loud = np.flatnonzero(np.abs(samples) > SILENCE)
        if not len(loud) or len(loud) < 0.2 * SAMPLE_RATE:
            return None
        edge = round(EDGE_S * SAMPLE_RATE)
        begin = max(0, int(loud[0]) - edge)
        samples = audio.resample(samples[begin : loud[-1] + edge], from_rate, SAMPLE_RATE)
        path = self.folder / f"{utterance}.opus"
        path.parent.mkdir(exist_ok=True)
        samples = samples * min(1.0, PEAK / float(np.abs(samples).max()))
        audio.write(path, samples, SAMPLE_RATE)
        offset_s = (begin / SAMPLE_RATE + LEAD_S) / tract
        seconds = len(samples) / SAMPLE_RATE
        return Row(utterance, name, seconds, text, phonemes, durations, offset_s, FRAME_S / tract)


@dataclass(frozen=True)
class Recipe:
    """All that a worker process needs to make any utterance."""

    folder: Path
    voices: dict[str, np.ndarray]
    speakers: dict[str, Voice]
    texts: Texts
    seed: int
    model_parts: tuple[Path, ...] = ()
    vocabulary: Path | None = None

    def maker(self) -> Maker:
        """Load the teacher; raises what Teacher raises."""
        teacher = Teacher(self.model_parts, self.vocabulary)
        return Maker(self.folder, teacher, self.voices, self.speakers, self.texts, self.seed)


_maker: Maker | None = None  # of a worker process; loaded once in it


def start_workers(recipe: Recipe, count: int) -> ProcessPoolExecutor:
    """Processes that run `make`; they end with this one, even if it is killed."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _load, (recipe,))


def make(number: int) -> Row | None:
    """Utterance `number`, in a worker process."""
    assert _maker is not None
    return _maker(number)


def _load(recipe: Recipe) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _maker = recipe.maker()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
