"""What synthesis returns: samples, when each word is said, and what the attention path showed."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine import audio
from engine.errors import InputError
from engine.files import PathLike


@dataclass(frozen=True)
class Word:
    """A word and when it is said, in seconds from the start of the Speech."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Report:
    """What went wrong on the attention path (words), and what was dropped from the text."""

    skips: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()
    stalls: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if no word was skipped, repeated or stalled on; warnings do not count."""
        return not (self.skips or self.repeats or self.stalls)


@dataclass(frozen=True, eq=False)
class Speech:
    """Synthesised speech. `samples` is float32 [samples] in [-1, 1] at `sample_rate` Hz."""

    samples: np.ndarray
    sample_rate: int
    words: tuple[Word, ...] = ()
    report: Report = field(default_factory=Report)

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: PathLike) -> None:
        """Write wav, flac, ogg, opus or mp3, by suffix; the file appears complete or not at all.

        Raises:
            InputError: unknown suffix, or its folder does not exist.
        """
        audio.write(path, self.samples, self.sample_rate)

    @staticmethod
    def join(parts: Sequence[Speech]) -> Speech:
        """One Speech after the other; word times are shifted, reports are joined in order.

        Raises:
            InputError: no parts, or parts of different sample rates.
        """
        rates = sorted({part.sample_rate for part in parts})
        if len(rates) != 1:
            raise InputError(f"cannot join speech at {rates or 'no'} Hz; give one sample_rate")
        words, before = [], 0
        for part in parts:
            shift = before / rates[0]  # from whole samples, so that long joins do not drift
            words += [Word(w.word, w.start_s + shift, w.end_s + shift) for w in part.words]
            before += len(part.samples)
        reports = [part.report for part in parts]
        report = Report(
            tuple(x for r in reports for x in r.skips),
            tuple(x for r in reports for x in r.repeats),
            tuple(x for r in reports for x in r.stalls),
            tuple(x for r in reports for x in r.warnings),
        )
        samples = np.concatenate([part.samples for part in parts])
        return Speech(samples, rates[0], tuple(words), report)

    def _repr_html_(self) -> str:
        """A player with the sound inside, and the words with their times, for notebooks."""
        buffer = io.BytesIO()
        audio.write(buffer, self.samples, self.sample_rate)
        sound = base64.b64encode(buffer.getvalue()).decode()
        words = " ".join(
            f'<span title="{w.start_s:.2f}-{w.end_s:.2f} s">{html.escape(w.word)}</span>'
            for w in self.words
        )
        player = f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'
        return f"<div>{player}<p>{words}</p></div>"

    def __repr__(self) -> str:
        state = "ok" if self.report.ok else "see report"
        return (
            f"Speech({self.seconds:.2f} s, {self.sample_rate} Hz, {len(self.words)} words, {state})"
        )
