"""Figures of training: alignments, mels, maps of voices, curves. Needs the extra `train`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError, InputError

LOG = "log.jsonl"  # of a run's folder, written by train.py


def alignment(symbols: Sequence[str], paths: Mapping[str, np.ndarray]) -> Any:
    """Attended symbol over decoder steps; one line per path, the true one first.

    Args:
        symbols: of the utterance.
        paths: name -> [decoder_steps] index of the attended symbol.
    Returns:
        A matplotlib Figure.
    """
    figure = _figure(8, max(3.0, 0.11 * len(symbols)))
    axes = figure.subplots()
    for (name, path), width in zip(paths.items(), [4.0, *[1.4] * len(paths)], strict=False):
        alpha = 0.4 if width > 2 else 1.0
        axes.step(range(len(path)), path, where="mid", linewidth=width, alpha=alpha, label=name)
    axes.set_yticks(range(len(symbols)), list(symbols), fontsize=6)
    axes.set(xlabel="decoder step", ylim=(-1, len(symbols)))
    axes.legend(loc="upper left")
    return figure


def mels(named: Mapping[str, np.ndarray]) -> Any:
    """Log-mels [n_mels, frames] one below the other, on the colours and time axis of the first."""
    figure = _figure(8, 1.9 * len(named))
    low, high = np.percentile(next(iter(named.values())), (1, 99.5))
    longest = max(mel.shape[1] for mel in named.values())
    panels = figure.subplots(len(named), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, mel) in zip(panels, named.items(), strict=True):
        axes.imshow(
            mel, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest"
        )
        axes.set(title=name, ylabel="band", xlim=(-0.5, longest - 0.5))
    panels[-1].set_xlabel("frame")
    return figure


def voices(points: np.ndarray, names: Sequence[str]) -> Any:
    """Map of embeddings [points, 2]; a colour for each different name."""
    figure = _figure(6, 5)
    axes = figure.subplots()
    colours = _import("matplotlib").colormaps["tab20"]
    for i, name in enumerate(sorted(set(names))):
        mine = points[[n == name for n in names]]
        axes.scatter(*mine.T, color=colours(i % 20), marker="os^"[i // 20 % 3], label=name)
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def voice_classes(
    points: np.ndarray, classes: Sequence[str], averages: Mapping[str, np.ndarray],
    names: Sequence[str], marked: Sequence[np.ndarray],
) -> Any:  # fmt: skip
    """Training speakers by class, the averages of the classes, and voices marked among them.

    Args:
        points: [speakers, 2] with their classes; averages: class -> [2]; marked: [2] each.
    Returns:
        A matplotlib Figure (arXiv:1802.06006, figure 5).
    """
    figure = _figure(8, 6)
    axes = figure.subplots()
    for i, one in enumerate(sorted(set(classes))):
        mine = points[[c == one for c in classes]]
        axes.scatter(*mine.T, s=10, alpha=0.4, color=f"C{i}", label=f"{one} ({len(mine)})")
    for one, at in averages.items():
        axes.annotate(
            one, at, ha="center", va="center", fontsize=8,
            bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.8},
        )  # fmt: skip
    for name, at in zip(names, marked, strict=True):
        axes.scatter(*at, marker="*", s=160, color="black", zorder=3)
        axes.annotate(name, at, xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend(fontsize=8)
    return figure


def by_samples(figures: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Any:
    """Figure -> method -> cloning samples -> value: a panel a figure, a line a method."""
    figure = _figure(4.5 * max(1, len(figures)), 3.6)
    panels = figure.subplots(1, max(1, len(figures)), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, figures.items(), strict=False):
        for i, (method, row) in enumerate(rows.items()):
            style = "k--" if method == "real recordings" else f"C{i}o-"
            axes.plot(list(row), list(row.values()), style, markersize=4, label=method)
        counts = sorted({n for row in rows.values() for n in row})
        axes.set(title=name, xlabel="cloning samples", xscale="log", ylim=(-0.02, 1.02))
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def principal(vectors: np.ndarray) -> np.ndarray:
    """[points, dim] -> [points, 2], their first two principal components."""
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = (left * scale)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def curves(paths: Sequence[str | Path], out: str | Path) -> None:
    """Draw what runs logged into one image file, a panel for each figure.

    Args:
        paths: folders of training runs.
        out: .png, .svg or .pdf to write.
    Raises:
        InputError: a folder without a log, or a suffix that cannot be drawn.
        EngineError: matplotlib is missing.
    """
    runs = {_name(path, paths): read_log(Path(path)) for path in paths}
    names = sorted({name for run in runs.values() for name, _ in run})
    if not names:
        raise InputError("nothing logged yet; wait for the first steps")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(4.5 * columns, 3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        for i, (run, logged) in enumerate(runs.items()):
            for group, style in (("train", "-"), ("held-out", "o--")):
                if (name, group) in logged:
                    steps, values = zip(*sorted(logged[name, group].items()), strict=True)
                    axes.plot(
                        steps, values, style, color=f"C{i % 10}", label=f"{run} {group}",
                        linewidth=1, markersize=3, alpha=0.5 if style == "-" else 1,
                    )  # fmt: skip
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    try:
        figure.savefig(out, dpi=120)
    except (ValueError, OSError) as error:
        raise InputError(f"{out}: {error}") from error


def read_log(run: Path) -> dict[tuple[str, str], dict[int, float]]:
    """(figure, group) -> value by step. Where a resumed run did a step again, the last counts.

    Raises:
        InputError: there is no log in the folder.
    """
    path = run / LOG
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a training run")
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # a kill tears the last line
            continue
        step, group = entry.pop("step"), entry.pop("group")
        del entry["time"]
        for name, value in entry.items():
            found[name, group][step] = value
    return dict(found)


def _name(path: str | Path, paths: Sequence[str | Path]) -> str:
    """The folder's own name, or the whole path where two share it."""
    own = [Path(other).resolve().name for other in paths]
    name = Path(path).resolve().name
    return name if own.count(name) == 1 else str(path)


def _figure(width: float, height: float) -> Any:
    """A figure without pyplot: no window, no global state."""
    figure = _import("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    _import("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def _import(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EngineError("plots need matplotlib; pip install 'clonewave[train]'") from error
