"""What `clonewave bench` measured, for people: targets and whether they are met, table, plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import kernels, plots
from engine.errors import EngineError
from engine.files import atomic_file

DISTURBED = 1.2  # median over best, of a quiet machine at most
# figure, what it is, first release, goal, higher is better; on one Zen 4 core, default weights
TARGETS: tuple[tuple[str, str, float, float | None, bool], ...] = (
    ("sentence_rtf", "one sentence, seconds a second of speech", 0.08, 0.04, False),
    ("paragraph_rtf", "a paragraph, sentences side by side", 0.06, 0.025, False),
    ("vocoder_int8_1_realtime", "vocoder int8, one stream, x real time", 15, 30, True),
    ("vocoder_int8_4_realtime", "vocoder int8, four streams in sum, x", 25, 50, True),
    ("vocoder_int8_times_torch_loop", "vocoder int8 / plain torch loop", 50, None, True),
    ("decoder_int16_us_per_step", "decoder int16 as used, us a step", 80, None, False),
    ("decoder_int8_us_per_step", "decoder int8, us a step", 80, None, False),
    ("decoder_float32_us_per_step", "decoder float32, us a step", 80, None, False),
    ("decoder_int16_times_torch_loop", "decoder int16 / plain torch loop", 20, None, True),
    ("decoder_int8_times_torch_loop", "decoder int8 / plain torch loop", 20, None, True),
    ("decoder_float32_times_torch_loop", "decoder float32 / plain torch loop", 20, None, True),
    ("g24_int8_1_steps_per_s", "G24 int8, one stream, steps/s", 80_000, 105_000, True),
    ("vocoder_float32_two_cores_times_one", "two cores / one, a float32 stream", 1.5, None, True),
    ("vocoder_int8_two_cores_times_one", "two cores / one, an int8 stream", 1.5, None, True),
    ("first_audio_ms", "first audio of a stream, ms", 60, 20, False),
    ("clone_ms", "clone from 3 s, ms", 30, 10, False),
    ("load_s", "loading the weights, s", 0.5, None, False),
    ("import_engine_s", "import engine on top of torch, s", 1.5, None, False),
    ("peak_mb", "peak memory of a process that speaks, MB", 600, None, False),
)


Target = tuple[str, str, float, float | None, bool]


def judged(
    figures: Mapping[str, float], targets: Sequence[Target] = TARGETS
) -> list[dict[str, Any]]:
    """The targets with what was measured: "goal", "met" (first release) or "missed"."""
    rows = []
    for name, label, first, goal, higher in targets:
        if name not in figures:
            continue
        value = figures[name]
        reached = lambda t, v=value, up=higher: v >= t if up else v <= t  # noqa: E731
        verdict = "met" if reached(first) else "missed"
        if goal is not None and reached(goal):
            verdict = "goal"
        rows.append({
            "figure": name, "label": label, "value": value, "first": first, "goal": goal,
            "higher_is_better": higher, "verdict": verdict,
        })  # fmt: skip
    return rows


def table(result: Mapping[str, Any]) -> str:
    """Targets with verdicts, then every other figure."""
    about = result["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        f"{about['device']}, {about['isa']}, {about['threads']} thread(s), {about['date']}",
        f"commit {about['commit'] or 'none'}; {versions}; load {about['load_average']}",
        "the fastest of several rounds; every kernel was checked against its definition first",
    ]
    if about["quick"]:
        lines.append("quick: few rounds, the figures are rough")
    sentence = result["timings"]["sentence"]
    if sentence["median_s"] > DISTURBED * sentence["best_s"] or (about["load_average"] or 0) > 1.5:
        lines.append("other programs were running: long measurements are too slow; run it again")
    return "\n".join([*lines, *rows(result)])


def rows(result: Mapping[str, Any]) -> list[str]:
    """The lines of a table: targets with verdicts, then every other figure."""
    figures = result["figures"]
    lines = ["", f"{'':44}{'measured':>10}{'first':>8}{'goal':>8}"]
    for row in result["targets"]:
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(
            f"{row['label']:44}{_short(row['value']):>10}{row['first']:>8g}{goal:>8}"
            f"  {row['verdict']}"
        )
    judged_names = {row["figure"] for row in result["targets"]}
    lines.append("")
    for name, value in figures.items():
        if name not in judged_names:
            lines.append(f"{name:44}{_short(value):>10}")
    return lines


def keep(out: str | Path, result: Mapping[str, Any], text: str) -> dict[str, str]:
    """Write bench.json and bench.txt into a folder; returns their contents by name."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"bench.json": json.dumps(result, indent=1), "bench.txt": text + "\n"}
    for name, one in content.items():
        with atomic_file(folder / name) as file:
            file.write(one.encode())
    return content


def write(
    out: str | Path, result: Mapping[str, Any], text: str, draw: Callable[[Mapping[str, Any]], Any],
    as_json: bool,
) -> None:  # fmt: skip
    """Print the table (or JSON) and write bench.json, bench.txt and bench.png into a folder."""
    folder, content = Path(out), keep(out, result, text)
    print(content["bench.json"] if as_json else text)
    written = ", ".join(str(folder / name) for name in content)
    try:
        draw(result).savefig(folder / "bench.png", dpi=120)
        written += f", {folder / 'bench.png'}"
    except EngineError as error:  # no matplotlib
        written += f"; no plot: {error}"
    print(written, file=sys.stderr)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plot(result: Mapping[str, Any]) -> Any:
    """Vocoder speed by streams, where a sentence's time goes, cost by length of the text.

    Returns:
        A matplotlib Figure.
    Raises:
        EngineError: matplotlib is missing.
    """
    about, figures = result["about"], result["figures"]
    figure = plots._figure(13, 4)
    speed, parts, growth = figure.subplots(1, 3)
    for i, precision in enumerate(kernels.PRECISIONS):
        points = _numbered(figures, f"vocoder_{precision}_", "_realtime")
        speed.plot(*zip(*points, strict=True), "o-", color=f"C{i}", label=precision)
    speed.set(title="vocoder", xlabel="streams", ylabel="x real time in sum", xscale="log")
    speed.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    speed.set_ylim(bottom=0)
    speed.legend()
    names = ("text", "acoustic", "vocoder")
    milliseconds = [figures[f"part_{name}_ms"] for name in names]
    parts.bar_label(parts.bar(names, milliseconds), fmt="%.1f")
    parts.set(title=f"{figures['sentence_s']:.1f} s of speech", ylabel="ms")
    growth.plot(*zip(*_numbered(figures, "words_", "_ms"), strict=True), "o-")
    growth.set(title="by length of the text", xlabel="words", ylabel="ms", xlim=0, ylim=0)
    for axes in (speed, parts, growth):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{about['device']}, {about['isa']}, {about['date']}, {about['commit']}")
    return figure


def _numbered(figures: Mapping[str, float], begin: str, end: str) -> list[tuple[int, float]]:
    """(number between begin and end, value), ascending."""
    return sorted(
        (int(name[len(begin) : -len(end)]), value)
        for name, value in figures.items()
        if name.startswith(begin) and name.endswith(end)
    )


def about() -> dict[str, Any]:
    """What the figures belong to: processor, date, commit, versions, load of the machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        named = (line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
        processor = next(named, processor)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    usable = [isa for isa, reason in kernels.isas().items() if reason is None]
    return {
        "device": processor, "cpus": os.cpu_count(), "isa": usable[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit, "load_average": getattr(os, "getloadavg", lambda: [None])()[0],
        "versions": {n: metadata.version(n) for n in ("clonewave", "torch", "numpy")}
        | {"python": platform.python_version()},
    }  # fmt: skip
