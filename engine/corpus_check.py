"""`clonewave corpus --check`: drop utterances that an independent recogniser cannot follow.

Every verdict is appended to checked.tsv (utterance, word error rate, what was heard), so a check
that was killed goes on, and another limit needs no new listening. Dropped audio moves to
rejected/, where `data.load` does not look; a higher limit brings it back. The manifest stays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm.auto import tqdm

from engine import audio
from engine.corpus_manifest import MANIFEST, whole_lines
from engine.errors import InputError
from engine.judges import Judges

CHECKED, REJECTED = "checked.tsv", "rejected"


class Recogniser(Protocol):
    """What the check needs of `Judges`."""

    def transcribe(self, samples: np.ndarray, sample_rate: int) -> str: ...

    def word_error_rate(self, reference: str, hypothesis: str) -> float: ...


def check(
    folder: Path,
    limit: float,
    threads: int = 1,
    recogniser: Recogniser | None = None,
    progress: bool = True,
) -> tuple[int, int]:
    """Listen to what is new, then drop every utterance with a word error rate above `limit`.

    Returns:
        Utterances kept and dropped.
    Raises:
        EngineError: the recogniser's packages are missing (extra `eval`).
        InputError: no corpus of this builder in the folder, or nothing in it.
    """
    texts = {row[0]: row[3] for row in map(_row, whole_lines(folder / MANIFEST)) if len(row) > 3}
    if not texts:
        raise InputError(f"{folder}: no {MANIFEST} with utterances; build a corpus there first")
    rates = {row[0]: float(row[1]) for row in map(_row, whole_lines(folder / CHECKED))}
    new = [name for name in texts if name not in rates]
    judges = recogniser or Judges(threads=threads)
    with (folder / CHECKED).open("a", encoding="utf-8") as out:
        for name in tqdm(new, desc="checking", unit="utt", disable=not progress or not new):
            places = (folder / f"{name}.opus", folder / REJECTED / f"{name}.opus")
            heard = judges.transcribe(*audio.read(next(filter(Path.exists, places), places[0])))
            rates[name] = judges.word_error_rate(texts[name], heard)
            out.write(f"{name}\t{rates[name]:.4f}\t{' '.join(heard.split())}\n")
            out.flush()
    dropped = 0
    for name, rate in rates.items():
        kept, rejected = folder / f"{name}.opus", folder / REJECTED / f"{name}.opus"
        dropped += rate > limit
        _move(kept, rejected) if rate > limit else _move(rejected, kept)
    return len(rates) - dropped, dropped


def _row(line: str) -> list[str]:
    return line.split("\t")


def _move(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
