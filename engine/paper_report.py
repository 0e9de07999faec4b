"""What `clonewave evaluate --paper` found: the paper's tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import plots
from engine.scores import markdown, mean, write_report
from engine.tasks import equal_error_rate

# Table 1 of arXiv:1802.06006: what cloning needs, its time, and parameters of a speaker
PAPER = {
    "adapt-embedding": ("text and audio", "8 h", "128"),
    "adapt-model": ("text and audio", "0.5-5 min", "25,000,000"),
    "encode": ("audio", "1.5-3.5 s", "512"),
    "encode-finetuned": ("audio", "1.5-3.5 s", "512"),
}


@dataclass(frozen=True)
class Clone:
    """One voice: what it cost and how its utterances were judged.

    Attributes:
        same, other: clips enrolled -> scores of the utterances against their own person, and
            against everybody else.
        right: for each utterance, whether the classifier named the person; empty without one.
    """

    person: str
    method: str
    samples: int
    clone_s: float
    speak_s: float  # of an average sentence
    numbers: int  # parameters of the speaker
    bytes: int  # of the voice file
    same: dict[int, list[float]]
    other: dict[int, list[float]]
    right: list[bool]
    embedding: list[float]


@dataclass(frozen=True)
class PaperReport:
    """All clones, the real recordings through the same judges, and how it was done."""

    clones: tuple[Clone, ...]
    real: Clone
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(c.method for c in self.clones))

    @property
    def counts(self) -> list[int]:
        return sorted({c.samples for c in self.clones})

    def of(self, method: str, samples: int | None = None) -> list[Clone]:
        """The clones by a method, from so many samples."""
        mine = [c for c in self.clones if c.method == method]
        return [c for c in mine if samples in (None, c.samples)]

    def accuracy(self, clones: Sequence[Clone]) -> float:
        """Share of utterances whose speaker the classifier names right; NaN without one."""
        return mean([float(x) for c in clones for x in c.right])

    def error_rate(self, clones: Sequence[Clone], enrolled: int) -> float:
        """Equal error rate of the utterances against `enrolled` true clips; NaN if not judged."""
        same = [x for c in clones for x in c.same.get(enrolled, [])]
        other = [x for c in clones for x in c.other.get(enrolled, [])]
        if not same or not other:
            return float("nan")
        return equal_error_rate(torch.tensor(same), torch.tensor(other))

    def figures(self) -> dict[str, dict[str, dict[int, float]]]:
        """Figure -> method -> cloning samples -> value; only what was measured."""
        wanted = {
            "accuracy": self.accuracy,
            "EER, 1 clip enrolled": lambda clones: self.error_rate(clones, 1),
            "EER, 5 clips enrolled": lambda clones: self.error_rate(clones, 5),
        }
        found: dict[str, dict[str, dict[int, float]]] = {}
        for name, value in wanted.items():
            rows = {m: {n: value(self.of(m, n)) for n in self.counts} for m in self.methods}
            rows["real recordings"] = {n: value([self.real]) for n in self.counts}
            kept = {m: {n: v for n, v in row.items() if v == v} for m, row in rows.items()}
            if any(kept.values()):
                found[name] = kept
        return found

    def table_1(self) -> list[dict[str, Any]]:
        """A row a method: cloning and synthesis seconds, parameters and bytes a speaker."""
        rows = []
        for method in self.methods:
            mine = self.of(method)
            rows.append({
                "method": method,
                "cloning_s": mean([c.clone_s for c in mine]),
                "synthesis_s": mean([c.speak_s for c in mine]),
                "parameters": max(c.numbers for c in mine),
                "file_bytes": max(c.bytes for c in mine),
            })  # fmt: skip
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        trials = sum(len(c.same.get(1, [])) + len(c.other.get(1, [])) for c in self.clones)
        return {
            "figures": self.figures(),
            "table_1": self.table_1(),
            "trials": trials,
            "real": dataclasses.asdict(self.real),
            "clones": [dataclasses.asdict(c) for c in self.clones],
            "settings": self.settings,
        }

    def table(self) -> str:
        """Every figure over the cloning samples, then Table 1, as Markdown."""
        parts = []
        for name, rows in self.figures().items():
            cells = [
                (method, *(f"{row[n]:.3f}" if n in row else "-" for n in self.counts))
                for method, row in rows.items()
            ]
            parts += [f"{name}, by cloning samples", markdown(("", *map(str, self.counts)), cells)]
        cells = [
            (
                row["method"], "audio", PAPER[row["method"]][0], f"{row['cloning_s']:.2f}",
                PAPER[row["method"]][1], f"{row['synthesis_s']:.2f}", f"{row['parameters']:,}",
                PAPER[row["method"]][2],
                f"{row['file_bytes'] / 1000:.1f}",
            )
            for row in self.table_1()
        ]  # fmt: skip
        columns = (
            "method", "needs", "(paper)", "cloning, s", "(paper)", "a sentence, s",
            "parameters a speaker", "(paper)", "voice file, KB",
        )  # fmt: skip
        return "\n\n".join([*parts, "Table 1", markdown(columns, cells)])

    def write(self, folder: Path) -> None:
        """Write paper.json, paper.md, figures.png and voices.png, each whole or not."""
        settings = markdown(("", ""), [(k, str(v)) for k, v in self.settings.items()])
        pictures = "![figures](figures.png)\n\n![voices](voices.png)"
        text = f"# The paper's evaluation\n\n{self.table()}\n\n{pictures}\n\n{settings}"
        most = max(self.counts)
        shown = [c for c in self.clones if c.samples == most] or list(self.clones)
        points = plots.principal(np.array([c.embedding for c in shown]))
        drawn = {
            "figures": plots.by_samples(self.figures()),
            "voices": plots.voices(points, [c.person for c in shown]),
        }
        write_report(folder, "paper", self.to_dict(), text, drawn)
