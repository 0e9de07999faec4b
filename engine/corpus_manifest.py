"""manifest.tsv of a corpus: lines are only ever appended, and a torn last one is cut off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from engine.errors import InputError

MANIFEST = "manifest.tsv"


class Row(NamedTuple):
    """One line of the manifest."""

    utterance: str
    speaker: str
    seconds: float
    text: str
    phonemes: str
    durations: tuple[int, ...]
    offset_s: float
    frame_s: float

    def line(self) -> str:
        frames = ",".join(map(str, self.durations))
        return (
            f"{self.utterance}\t{self.speaker}\t{self.seconds:.3f}\t{self.text}\t{self.phonemes}"
            f"\t{frames}\t{self.offset_s:.4f}\t{self.frame_s:.6f}\n"
        )


class Manifest:
    """What is made: read at the start, a torn last line cut off, then appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[int, float] = {}  # by utterance number
        self.hours = 0.0
        for line in whole_lines(path):
            row = line.split("\t")
            if len(row) != len(Row._fields):
                raise InputError(f"{path}: no manifest of a corpus: {line[:60]!r}")
            self._count(row[0], float(row[2]))

    def append(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(row.line())
        self._count(row.utterance, row.seconds)

    def _count(self, utterance: str, seconds: float) -> None:
        self.seconds[int(utterance.rpartition("/")[2])] = seconds
        self.hours += seconds / 3600


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that is only appended to, after cutting off what a kill left of the last."""
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].decode("utf-8").split("\n")[:-1]
