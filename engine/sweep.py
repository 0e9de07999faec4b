"""`clonewave evaluate FOLDER --sweep`: what more cloning audio brings, in words and in likeness.

The figures of arXiv:1802.06006, section 4, over the number of cloning samples, with the judges
of engine/judges.py: one recording of 1 to 10 seconds, and 1 to 5 cloning samples of 2 seconds.
Every person says the same sentences at every point, and is compared with the same recordings, none
of which the engine heard at any point, so differences between points are due to the audio alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine import audio
from engine.config import AudioConfig
from engine.errors import EngineError, InputError
from engine.evaluate import Speaker, find_speakers, sentences_for
from engine.judges import Judges, need, versions
from engine.scores import GOALS, markdown, mean, write_report

SECONDS = (1.0, 2.0, 3.0, 5.0, 10.0)  # of one cloning sample
SAMPLES = (1, 2, 3, 5)  # cloning samples of SAMPLE_S each
SAMPLE_S = 2.0
POOL_S = max(*SECONDS, SAMPLE_S * max(SAMPLES))  # of speech that may be cloned; the rest is truth
STEP_S = 0.1  # a sample with too little speech in it grows by this


@dataclass(frozen=True)
class Point:
    """Scores with `samples` cloning samples of `seconds` each."""

    samples: int
    seconds: float
    wer: float
    sim: float
    sim_error: float  # standard error of `sim` over people
    sim_real: float  # of the cloning audio itself: what a perfect clone would score
    sentences: int


@dataclass(frozen=True)
class Sweep:
    """All points; `strangers` is the SIM of two different people of the folder."""

    points: tuple[Point, ...]
    strangers: float
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def along(self, axis: str) -> list[Point]:
        """The points of one figure: "seconds" (of one sample) or "samples" (of SAMPLE_S)."""
        if axis == "seconds":
            return [p for p in self.points if p.samples == 1]
        return [p for p in self.points if p.seconds == SAMPLE_S]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "points": [asdict(point) for point in self.points],
            "strangers": self.strangers,
            "settings": self.settings,
            "versions": self.versions,
        }

    def table(self) -> str:
        """One Markdown row a point."""
        rows = [
            (str(p.samples), f"{p.seconds:g}", f"{p.samples * p.seconds:g}", f"{p.wer:.3f}",
             f"{p.sim:.3f} ± {p.sim_error:.3f}", f"{p.sim_real:.3f}", str(p.sentences))
            for p in self.points
        ]  # fmt: skip
        columns = (
            "samples", "seconds each", "in all", "WER", "SIM", "SIM of the cloning audio",
            "sentences",
        )  # fmt: skip
        return f"{markdown(columns, rows)}\n\ntwo different people: SIM {self.strangers:.3f}"

    def write(self, folder: Path) -> None:
        """Writes sweep.json, sweep.md and sweep.png, each whole or not."""
        page = f"# More cloning audio\n\n{self.table()}\n\n![sweep](sweep.png)"
        write_report(folder, "sweep", self.to_dict(), page, {"sweep": figure(self)})


@dataclass(frozen=True)
class Person:
    """What may be cloned of a person, float32 [samples], and the embeddings of the rest."""

    speaker: Speaker
    speech: np.ndarray
    sample_rate: int
    truth: tuple[np.ndarray, ...]

    def cuts(self, samples: int, seconds: float, longer_s: float = 0.0) -> list[np.ndarray]:
        """`samples` pieces of `seconds` (and `longer_s`) one after the other, from the start."""
        size = round((seconds + longer_s) * self.sample_rate)
        return [self.speech[i * size : (i + 1) * size] for i in range(samples)]


def sweep(
    folder: Path | str,
    *,
    synthesize: Callable[..., Any],
    clone: Callable[..., Any],
    people: int = 6,
    sentences: int = 2,
    seed: int = 0,
    speakers: Sequence[str] | None = None,
    judges: Judges | None = None,
    progress: bool = True,
    settings: dict[str, Any] | None = None,
) -> Sweep:
    """Scores clones of some people in `folder` from different amounts of cloning audio.

    Args:
        synthesize, clone: as for `evaluate.evaluate`; clone gets a list of float32 [samples].
        people: how many of the folder's, spread over it by name.
        sentences: how many each clone says at each point.
    Raises:
        InputError: nobody in the folder has recordings enough.
    """
    if people < 1 or sentences < 1:
        raise InputError(f"needs a person and a sentence, not {people} and {sentences}")
    judges = judges or Judges()
    fitting = [p for s in find_speakers(Path(folder), speakers) if (p := _person(s, judges))]
    if not fitting:
        raise InputError(
            f"{folder}: nobody has {POOL_S:g} s of speech to clone and another recording to "
            "compare with"
        )
    count = min(people, len(fitting))
    chosen = [fitting[i * len(fitting) // count] for i in range(count)]
    grid = sorted({*((1, s) for s in SECONDS), *((n, SAMPLE_S) for n in SAMPLES)})
    points = []
    with tqdm(total=len(grid) * count * sentences, disable=not progress, unit="sentence") as bar:
        for samples, seconds in grid:
            rows = []
            for person in chosen:
                texts = sentences_for(person.speaker.number, sentences)
                voice, cuts = _clone(person, samples, seconds, clone)
                spoken = [synthesize(text, voice, seed=seed) for text in texts]
                rows.append(_row(person, texts, spoken, cuts, judges))
                bar.update(sentences)
            points.append(_point(samples, seconds, rows, count * sentences))
    how = {"speakers": [p.speaker.name for p in chosen], "sentences": sentences, "seed": seed}
    return Sweep(tuple(points), _strangers(chosen, judges), how | (settings or {}), versions())


def _person(speaker: Speaker, judges: Judges) -> Person | None:
    """The fewest first recordings that hold POOL_S of speech, and the others; None if too few."""
    config = AudioConfig()
    pool: list[np.ndarray] = []
    for i, path in enumerate(speaker.files[:-1]):
        pool.append(audio.prepare(path, config=config).samples)
        if sum(map(len, pool)) >= (POOL_S + 0.5) * config.sample_rate:
            truth = [judges.speaker_embedding(*audio.read(f)) for f in speaker.files[i + 1 :]]
            return Person(speaker, np.concatenate(pool), config.sample_rate, tuple(truth))
    return None


def _clone(
    person: Person, samples: int, seconds: float, clone: Callable[..., Any]
) -> tuple[Any, list[np.ndarray]]:
    """The voice and what it was cloned from: a little more where so short a cut has little speech.

    Raises what clone raises, the person's name in front, when half as much again does not help.
    """
    longest = round(0.5 * seconds / STEP_S)
    for step in range(longest + 1):
        cuts = person.cuts(samples, seconds, step * STEP_S)
        try:
            return clone(cuts, sample_rate=person.sample_rate), cuts
        except InputError as error:
            if step == longest:
                raise InputError(f"{person.speaker.name}: {error}") from error
        except EngineError as error:
            raise type(error)(f"{person.speaker.name}: {error}") from error
    raise AssertionError("the loop returns or raises")


def _row(
    person: Person,
    texts: Sequence[str],
    spoken: Sequence[Any],
    cuts: Sequence[np.ndarray],
    judges: Judges,
) -> tuple[int, int, float, float]:
    """(word errors, words, SIM, SIM of the cloning audio) of one person at one point."""
    errors, words, sims = 0, 0, []
    for text, speech in zip(texts, spoken, strict=True):
        wrong, asked = judges.word_errors(
            text, judges.transcribe(speech.samples, speech.sample_rate)
        )
        errors, words = errors + wrong, words + asked
        embedding = judges.speaker_embedding(speech.samples, speech.sample_rate)
        sims.append(mean([judges.similarity(embedding, other) for other in person.truth]))
    own = judges.speaker_embedding(np.concatenate(cuts), person.sample_rate)
    real = mean([judges.similarity(own, other) for other in person.truth])
    return errors, words, mean(sims), real


def _point(
    samples: int, seconds: float, rows: Sequence[tuple[int, int, float, float]], sentences: int
) -> Point:
    errors, words, sims, real = zip(*rows, strict=True)
    error = float(np.std(sims, ddof=1)) / math.sqrt(len(sims)) if len(sims) > 1 else math.nan
    return Point(
        samples, seconds, sum(errors) / sum(words), mean(sims), error, mean(real), sentences
    )


def _strangers(people: Sequence[Person], judges: Judges) -> float:
    """Mean SIM between recordings of different people; NaN for one person alone."""
    return mean([
        judges.similarity(x, y)
        for i, one in enumerate(people) for other in people[i + 1 :]
        for x in one.truth for y in other.truth
    ])  # fmt: skip


def figure(found: Sweep) -> Any:
    """SIM above, WER below; against seconds of one sample at the left, samples at the right."""
    drawing = need("matplotlib.figure").Figure(figsize=(9, 6.4), layout="constrained")
    panels = drawing.subplots(2, 2, sharex="col", sharey="row")
    titles = {
        "seconds": "seconds of one cloning sample",
        "samples": f"cloning samples of {SAMPLE_S:g} s",
    }
    for column, (axis, title) in enumerate(titles.items()):
        points = found.along(axis)
        x = [getattr(p, axis) for p in points]
        sim, wer = panels[0, column], panels[1, column]
        sim.errorbar(
            x, [p.sim for p in points], [p.sim_error for p in points], fmt="o-", capsize=3,
            color="#4477aa", label="clone",
        )  # fmt: skip
        sim.plot(x, [p.sim_real for p in points], "k--", label="the cloning audio itself")
        sim.axhline(GOALS["sim"], color="#228833", linewidth=1, label="goal")
        sim.axhline(found.strangers, color="#cc6677", linestyle=":", label="two different people")
        wer.plot(x, [p.wer for p in points], "o-", color="#4477aa", label="clone")
        wer.axhline(GOALS["wer"], color="#228833", linewidth=1, label="goal")
        wer.set(xlabel=title, ylim=(0, None), xscale="log" if axis == "seconds" else "linear")
        wer.set_xticks(x, [f"{value:g}" for value in x])
        wer.minorticks_off()
    panels[0, 0].set_ylabel("SIM (± standard error)")
    panels[1, 0].set_ylabel("WER")
    panels[0, 1].legend(fontsize=8)
    for axes in panels.ravel():
        axes.grid(alpha=0.3)
    return drawing


def run(args: argparse.Namespace, engine: Any, settings: dict[str, Any]) -> int:
    """Runs `clonewave evaluate FOLDER --sweep`."""
    if args.out is not None:
        need("matplotlib.figure")  # before the work, not after it
    found = sweep(
        args.folder, synthesize=engine.synthesize, clone=engine.clone, people=args.people,
        sentences=2 if args.sentences is None else args.sentences, seed=args.seed,
        progress=not args.quiet, settings=settings,
        speakers=args.speakers.split(",") if args.speakers else None,
    )  # fmt: skip
    if args.out is not None:
        found.write(args.out)
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found.table())
    return 0
