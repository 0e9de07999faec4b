"""Text and speaker embedding -> speech. `synthesize` is `stream`, concatenated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from engine.errors import InputError
from engine.models.vocoder import VocoderStream
from engine.speech import Report, Speech, Word
from engine.symbols import text_ids
from engine.text import Sentence, front_end

if TYPE_CHECKING:
    from engine.engine import Engine

CHUNK_FRAMES = 4  # mel frames a chunk: 43 ms
SENTENCE_GAP_S = 0.2  # silence between two sentences, beside what each ends with
SPEEDS = (0.25, 4.0)
STALL_S = 0.6  # within a word, on one phone


@dataclass(frozen=True)
class Spoken:
    """One sentence before the vocoder: mel [1, n_mels, frames], word times and report."""

    mel: torch.Tensor
    words: tuple[Word, ...]
    report: Report


def speak(engine: Engine, sentence: Sentence, embedding: torch.Tensor, speed: float) -> Spoken:
    """Mel of one sentence, with the times of its words in seconds."""
    config = engine.config.acoustic
    ids = torch.tensor([text_ids(sentence.symbols())], device=engine.device)
    lengths = torch.tensor([ids.shape[1]], device=engine.device)
    made = engine.acoustic.generate(
        ids, lengths, embedding[None], engine.decoder, backend=engine.backend
    )
    path = made.path[0, : int(made.steps[0])].cpu().numpy()
    words, report = read_path(sentence, path, config.decoder_rate * speed, config.decoder_rate)
    mel = made.mel
    if speed != 1:
        frames = max(1, round(mel.shape[-1] / speed))
        mel = F.interpolate(mel, frames, mode="linear", align_corners=False)
    return Spoken(mel, words, report)


def read_path(
    sentence: Sentence, path: np.ndarray, spoken_rate: float, decoder_rate: float
) -> tuple[tuple[Word, ...], Report]:
    """Word times and what the attention path shows.

    Args:
        path: [decoder_steps] attended symbol of each step; never falls.
        spoken_rate: decoder steps per second of the speech as heard.
        decoder_rate: decoder steps per second before any change of speed.
    """
    words, skips, stalls = [], [], []
    for word, (first, end) in zip(sentence.words, sentence.spans(), strict=True):
        begin_step, end_step = np.searchsorted(path, [first, end])
        words.append(Word(word.text, begin_step / spoken_rate, end_step / spoken_rate))
        visited = np.unique(path[begin_step:end_step])
        if len(visited) * 3 < end - first:
            skips.append(word.text)
        held = np.bincount(path[begin_step:end_step] - first) if len(visited) else [0]
        if max(held) > STALL_S * decoder_rate:
            stalls.append(word.text)
    report = Report(tuple(skips), (), tuple(stalls), tuple(sentence.warnings))
    return tuple(words), report


def check(speed: float, seed: int | None) -> int:
    """The seed to use; raises InputError for a speed or seed that cannot be used."""
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise InputError(f"speed {speed}: give {SPEEDS[0]} to {SPEEDS[1]}")
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: give 0 to 2**63 - 1")
    return seed if seed is not None else 0


def parts(
    engine: Engine, text: str, embedding: torch.Tensor, *, speed: float, seed: int | None
) -> Iterator[tuple[Spoken | None, np.ndarray]]:
    """(sentence as it begins, else None; chunk of samples), sentence by sentence, lazily."""
    seed = check(speed, seed)
    rate = engine.config.vocoder.audio.sample_rate
    for number, sentence in enumerate(front_end(text)):
        if number:
            yield None, np.zeros(round(SENTENCE_GAP_S * rate), np.float32)
        spoken = speak(engine, sentence, embedding, speed)
        source = VocoderStream(
            engine.vocoder, engine.network, spoken.mel, seed, number, engine.backend
        )
        begins: Spoken | None = spoken
        while (samples := source.next(CHUNK_FRAMES)) is not None:
            yield begins, samples.cpu().numpy()
            begins = None


def synthesize(
    engine: Engine, text: str, embedding: torch.Tensor, *, speed: float, seed: int | None
) -> Speech:
    """One text in one voice."""
    rate = engine.config.vocoder.audio.sample_rate
    chunks: list[np.ndarray] = []
    words: list[Word] = []
    reports: list[Report] = []
    total = 0
    for begins, samples in parts(engine, text, embedding, speed=speed, seed=seed):
        if begins is not None:
            shift = total / rate
            words += [Word(w.word, w.start_s + shift, w.end_s + shift) for w in begins.words]
            reports.append(begins.report)
        chunks.append(samples)
        total += len(samples)
    report = Report(
        tuple(x for r in reports for x in r.skips),
        (),
        tuple(x for r in reports for x in r.stalls),
        tuple(x for r in reports for x in r.warnings),
    )
    return Speech(np.concatenate(chunks), rate, tuple(words), report)
