"""What `clonewave evaluate` found: sums, means, tables and plots. Judges nothing itself."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.files import atomic_file
from engine.judges import need

GOALS = {"wer": 0.10, "sim": 0.75, "ovrl": 3.2}  # wer: at most; the others: at least
FIRST_RELEASE = {"wer": 0.15, "sim": 0.64, "ovrl": 2.9}
_COLUMNS = (
    "speaker",
    "sentences",
    "WER",
    "SIM",
    "SIM mean",
    "OVRL",
    "SIG",
    "BAK",
    "seconds",
    "x real time",
)
_REFERENCE_COLUMNS = (
    "real speaker",
    "SIM self",
    "SIM others",
    "SIM nearest",
    "nearest",
    "OVRL",
    "SIG",
    "BAK",
)


@dataclass(frozen=True)
class Utterance:
    """One sentence spoken by one clone, and what the judges made of it."""

    speaker: str
    text: str
    heard: str
    errors: int  # wrong, missing and added words
    words: int  # in the text
    sim: float  # mean cosine with each other recording of the person
    sim_mean: float  # cosine with the mean of their embeddings: higher, as averaging removes noise
    ovrl: float
    sig: float
    bak: float
    seconds: float  # of speech
    compute_seconds: float  # that synthesis took


@dataclass(frozen=True)
class Reference:
    """The same judges on a real person: what a perfect clone and a stranger would score."""

    speaker: str
    sim_self: float  # cloning sample against each other recording of the person, mean cosine
    sim_others: float  # cloning sample against the recordings of everybody else, mean cosine
    sim_nearest: float  # the same for the most similar other person
    nearest: str
    ovrl: float  # of the other recordings
    sig: float
    bak: float


@dataclass(frozen=True)
class Row:
    """Scores over some utterances: words are summed, the rest averaged over utterances."""

    speaker: str
    sentences: int
    wer: float
    sim: float
    sim_mean: float
    ovrl: float
    sig: float
    bak: float
    seconds: float
    realtime_speedup: float  # audio seconds / compute seconds


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found. `settings` and `versions` say how to repeat it."""

    utterances: tuple[Utterance, ...]
    references: tuple[Reference, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One row per speaker, in the order they were judged."""
        names = dict.fromkeys(u.speaker for u in self.utterances)
        return [_row(name, [u for u in self.utterances if u.speaker == name]) for name in names]

    def total(self) -> Row:
        """One row over all utterances."""
        return _row("all", self.utterances)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "total": dataclasses.asdict(self.total()),
            "goals": GOALS,
            "first_release": FIRST_RELEASE,
            "speakers": [dataclasses.asdict(row) for row in self.rows()],
            "references": [dataclasses.asdict(reference) for reference in self.references],
            "utterances": [dataclasses.asdict(utterance) for utterance in self.utterances],
            "settings": self.settings,
            "versions": self.versions,
        }

    def table(self) -> str:
        """The scores as Markdown tables, which read well as plain text too."""
        total = self.total()
        cells = [_cells(row) for row in [*self.rows(), total]]
        lines = [markdown(_COLUMNS, cells), "", _verdict(total)]
        if self.references:
            lines += [
                "",
                markdown(_REFERENCE_COLUMNS, [_reference_cells(r) for r in self.references]),
                "",
                _reference_means(self.references),
            ]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes evaluate.json, evaluate.md, speakers.png and scatter.png, each whole or not."""
        heard = [(u.speaker, u.text, u.heard, f"{u.errors}/{u.words}") for u in self.utterances]
        parts = [
            "# Evaluation",
            self.table(),
            "![speakers](speakers.png)",
            "![scatter](scatter.png)",
            "## What was heard",
            markdown(("speaker", "text", "heard", "errors"), heard),
            "## Settings",
            markdown(
                ("", ""), [(k, str(v)) for k, v in {**self.settings, **self.versions}.items()]
            ),
        ]
        figures = {"speakers": _bars(self), "scatter": _scatter(self)}
        write_report(folder, "evaluate", self.to_dict(), "\n\n".join(parts), figures)


def write_report(
    folder: Path, name: str, document: Mapping[str, Any], page: str, figures: Mapping[str, Any]
) -> None:
    """Write NAME.json, NAME.md and a PNG of each matplotlib figure, each whole or not."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    for file_name, content in ((f"{name}.json", text), (f"{name}.md", page)):
        with atomic_file(folder / file_name) as file:
            file.write((content + "\n").encode())
    for title, figure in figures.items():
        with atomic_file(folder / f"{title}.png") as file:
            figure.savefig(file, format="png", dpi=110)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing, so that a missing score never looks like a good one."""
    return math.fsum(values) / len(values) if values else math.nan


def _row(name: str, utterances: Sequence[Utterance]) -> Row:
    seconds = math.fsum(u.seconds for u in utterances)
    compute = math.fsum(u.compute_seconds for u in utterances)
    words = sum(u.words for u in utterances)
    return Row(
        speaker=name,
        sentences=len(utterances),
        wer=sum(u.errors for u in utterances) / words if words else math.nan,
        sim=mean([u.sim for u in utterances]),
        sim_mean=mean([u.sim_mean for u in utterances]),
        ovrl=mean([u.ovrl for u in utterances]),
        sig=mean([u.sig for u in utterances]),
        bak=mean([u.bak for u in utterances]),
        seconds=seconds,
        realtime_speedup=seconds / compute if compute else math.nan,
    )


def meets(row: Row, limits: dict[str, float]) -> dict[str, bool]:
    """For each score in `limits`, whether the row is as good as that or better."""
    return {
        name: getattr(row, name) <= limit if name == "wer" else getattr(row, name) >= limit
        for name, limit in limits.items()
    }


def _verdict(total: Row) -> str:
    lines = []
    for title, limits in (("first release", FIRST_RELEASE), ("goal", GOALS)):
        met = meets(total, limits)
        parts = [
            f"{name.upper()} {'<=' if name == 'wer' else '>='} {limit}"
            f" {'met' if met[name] else 'NOT met'}"
            for name, limit in limits.items()
        ]
        lines.append(f"{title}: {', '.join(parts)}")
    return "  \n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.speaker,
        str(row.sentences),
        f"{row.wer:.3f}",
        f"{row.sim:.3f}",
        f"{row.sim_mean:.3f}",
        f"{row.ovrl:.2f}",
        f"{row.sig:.2f}",
        f"{row.bak:.2f}",
        f"{row.seconds:.1f}",
        f"{row.realtime_speedup:.1f}",
    )


def _reference_cells(r: Reference) -> tuple[str, ...]:
    return (
        r.speaker,
        f"{r.sim_self:.3f}",
        f"{r.sim_others:.3f}",
        f"{r.sim_nearest:.3f}",
        r.nearest,
        f"{r.ovrl:.2f}",
        f"{r.sig:.2f}",
        f"{r.bak:.2f}",
    )


def _reference_means(references: Sequence[Reference]) -> str:
    names = ("sim_self", "sim_others", "sim_nearest", "ovrl", "sig", "bak")
    return "real people, mean: " + ", ".join(
        f"{name} {mean([getattr(r, name) for r in references]):.3f}" for name in names
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads well as plain text too; bars and line ends in cells are safe."""
    cells = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [columns, *rows]
    ]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def _bars(report: Report) -> Any:
    """One panel a score: a bar per speaker, both goal lines, and the real person where known."""
    rows = [*report.rows(), report.total()]
    names = [row.speaker for row in rows]
    real = {r.speaker: {"sim": r.sim_self, "ovrl": r.ovrl} for r in report.references}
    figure = need("matplotlib.figure").Figure(
        figsize=(max(6.0, 0.45 * len(rows) + 2), 9), layout="constrained"
    )
    for axis, score in zip(figure.subplots(3, 1, sharex=True), ("sim", "wer", "ovrl"), strict=True):
        axis.bar(names, [getattr(row, score) for row in rows], color="#4477aa")
        marks = [(i, real[n][score]) for i, n in enumerate(names) if score in real.get(n, {})]
        if marks:
            axis.plot(*zip(*marks, strict=True), "k_", markersize=12, label="real person")
        axis.axhline(GOALS[score], color="#228833", label="goal")
        axis.axhline(FIRST_RELEASE[score], color="#ccbb44", linestyle="--", label="first release")
        axis.set_ylabel(score.upper())
        axis.legend(loc="lower left", fontsize=7)
    axis.tick_params(axis="x", rotation=70)
    return figure


def _scatter(report: Report) -> Any:
    """Every utterance: similarity against quality, coloured by its word error rate."""
    figure = need("matplotlib.figure").Figure(figsize=(6.5, 5), layout="constrained")
    axis = figure.subplots()
    points = axis.scatter(
        [u.sim for u in report.utterances],
        [u.ovrl for u in report.utterances],
        c=[min(1.0, u.errors / u.words) for u in report.utterances],
        cmap="viridis_r",
        vmin=0,
        vmax=1,
    )
    figure.colorbar(points, label="WER of the sentence (1 and above: 1)")
    axis.axvline(GOALS["sim"], color="#228833", linewidth=0.8)
    axis.axhline(GOALS["ovrl"], color="#228833", linewidth=0.8)
    axis.set_xlabel("SIM")
    axis.set_ylabel("OVRL")
    return figure
