"""`clonewave evaluate FOLDER --method A,B`: the same people cloned in several ways, side by side.

Everybody says the same sentences by every method, and is compared with the same recordings, so
differences are due to the method. The others are compared with the first named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.evaluate import evaluate
from engine.judges import Judges, need
from engine.scores import Report, markdown, mean, write_report

EQUAL = 0.0005  # SIM below which two voices are as near


@dataclass(frozen=True)
class Method:
    """One method: its scores, and the seconds that each person took to clone."""

    name: str
    report: Report
    seconds: tuple[float, ...]

    def sims(self) -> dict[str, float]:
        """SIM of each person."""
        return {row.speaker: row.sim for row in self.report.rows()}


@dataclass(frozen=True)
class Methods:
    """All methods; the first is what the others are compared with."""

    methods: tuple[Method, ...]

    def nearer(self, method: Method) -> tuple[int, int]:
        """For how many people it comes nearer than the first, and for how many as near."""
        first, own = self.methods[0].sims(), method.sims()
        gains = [own[person] - first[person] for person in first]
        return sum(g > EQUAL for g in gains), sum(abs(g) <= EQUAL for g in gains)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            m.name: {
                "clone_seconds": m.seconds, "nearer": self.nearer(m)[0], "equal": self.nearer(m)[1],
                **m.report.to_dict(),
            }
            for m in self.methods
        }  # fmt: skip

    def table(self) -> str:
        """SIM by person, and what each method scores over all, as Markdown."""
        sims = [m.sims() for m in self.methods]
        names = [m.name for m in self.methods]
        people = [(p, *(f"{sim[p]:.3f}" for sim in sims)) for p in sims[0]]
        rows = []
        for i, m in enumerate(self.methods):
            total, (nearer, equal) = m.report.total(), self.nearer(m)
            rows.append((
                m.name, f"{total.wer:.3f}", f"{total.sim:.3f}", f"{total.ovrl:.2f}",
                f"{nearer} of {len(people)}" if i else "", str(equal) if i else "",
                f"{mean(m.seconds):.2f}", f"{max(m.seconds):.2f}",
            ))  # fmt: skip
        columns = (
            "method", "WER", "SIM", "OVRL", f"SIM above {names[0]}", "equal", "s to clone", "most",
        )  # fmt: skip
        return f"{markdown(('SIM', *names), people)}\n\n{markdown(columns, rows)}"

    def write(self, folder: Path) -> None:
        """Writes methods.json, methods.md and methods.png, each whole or not."""
        page = f"# Methods of cloning\n\n{self.table()}\n\n![methods](methods.png)"
        write_report(folder, "methods", self.to_dict(), page, {"methods": _figure(self)})


def compare(
    folder: Path | str, methods: Sequence[str], *, synthesize: Callable[..., Any],
    clone: Callable[..., Any], out: Path | None = None, settings: Mapping[str, Any] | None = None,
    judges: Judges | None = None, keep_audio: bool = False, **options: Any,
) -> Methods:  # fmt: skip
    """Scores clones of the people in `folder` by each method.

    Args:
        clone: called as evaluate's, with method=NAME.
        out: folder for methods.json, methods.md and methods.png; with `keep_audio` also one folder
            a method for the clips and what else `evaluate` writes.
        options: as for `evaluate`.
    Raises:
        InputError: a method named twice; what `evaluate` raises.
    """
    if len(set(methods)) != len(methods):
        raise InputError(f"methods {', '.join(methods)}: name each once")
    if keep_audio and out is None:
        raise InputError("keeping the audio needs a folder to keep it in: give out (--out DIR)")
    if judges is None:
        judges = Judges()
        judges.load()
    found = []
    for name in methods:
        seconds: list[float] = []
        report = evaluate(
            folder, synthesize=synthesize, clone=_timed(partial(clone, method=name), seconds),
            out=out / name if out and keep_audio else None, keep_audio=keep_audio,
            settings=dict(settings or {}) | {"method": name}, judges=judges, **options,
        )  # fmt: skip
        found.append(Method(name, report, tuple(seconds)))
    result = Methods(tuple(found))
    if out:
        result.write(out)
    return result


def _timed(clone: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        voice = clone(*args, **options)
        seconds.append(time.perf_counter() - begin)
        return voice

    return timed


def _figure(methods: Methods) -> Any:
    """SIM of every person by each method."""
    sims = [m.sims() for m in methods.methods]
    people = list(sims[0])
    figure = need("matplotlib.figure").Figure(
        figsize=(max(6.0, 0.45 * len(people) + 2), 4), layout="constrained"
    )
    axis = figure.subplots()
    for method, sim, marker in zip(methods.methods, sims, "_o^sd", strict=False):
        axis.plot(people, [sim[p] for p in people], marker, label=method.name)
    axis.set_ylabel("SIM")
    axis.legend(fontsize=8)
    axis.tick_params(axis="x", rotation=70)
    return figure
