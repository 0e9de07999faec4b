"""What `clonewave bench --device cuda` measured, for people: targets, table, plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from engine import bench_report, plots

if TYPE_CHECKING:
    from engine.bench_device import DeviceBench
    from engine.engine import Engine

# figure, what it is, first release, goal, higher is better; on one H100, default weights
TARGETS: tuple[bench_report.Target, ...] = (
    ("stream_realtime", "one stream, x real time", 15, 40, True),
    ("streams_in_real_time", "streams in real time", 1000, 8000, True),
    ("decoder_us_per_step", "decoder alone, us a step", 8, 5, False),
    ("decoder_steps_per_s", "decoder steps/s in sum", 1e6, None, True),
    ("utterances_per_s", "one-second utterances a second", 2300, 4600, True),
    ("clones_per_s", "clones from 3 s, a second", 2000, None, True),
    ("first_audio_ms", "first audio of a stream, ms", 15, None, False),
)


def about(engine: Engine) -> dict[str, Any]:
    """What the figures belong to; `device` is the one measured."""
    found = bench_report.about() | {"host": bench_report.about()["device"]}
    if engine.device.type == "cuda":
        properties = torch.cuda.get_device_properties(engine.device)
        found |= {
            "device": properties.name, "multiprocessors": properties.multi_processor_count,
            "device_memory_mb": properties.total_memory / 1e6, "cuda": torch.version.cuda,
        }  # fmt: skip
    return found | {"precision": engine.network.precision, "backend": engine.backend}


def result(bench: DeviceBench, small: bool) -> dict[str, Any]:
    """{"about"; "figures"; "timings"; "errors"; "wrong"; "targets"} so far; JSON-ready."""
    return {
        "about": about(bench.engine) | {"small": small}, "figures": bench.figures,
        "timings": bench.timings,
        "errors": {name: min(error, 1e9) for name, error in bench.errors.items()},
        "wrong": bench.wrong, "targets": bench_report.judged(bench.figures, TARGETS),
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """What was wrong, targets with verdicts, then every other figure."""
    about = result["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        f"{about['device']}, cuda {about.get('cuda', 'none')}, vocoder {about['precision']}",
        f"{about['date']}, commit {about['commit'] or 'none'}; {versions}",
        "medians of calls; every kernel was checked against its definition first",
    ]
    if about["small"]:
        lines.append("small sizes: it works, the figures mean nothing")
    lines += [f"WRONG {problem}" for problem in result["wrong"]]
    lines += [f"checked {name}: {error:.3g} of what is allowed"
              for name, error in result["errors"].items()]  # fmt: skip
    return "\n".join([*lines, *bench_report.rows(result)])


def plot(result: Mapping[str, Any]) -> Any:
    """Streams against speed: kernels alone and whole chunks; chunk time; decoder by batch.

    Returns:
        A matplotlib Figure.
    Raises:
        EngineError: matplotlib is missing.
    """
    about, figures = result["about"], result["figures"]
    figure = plots._figure(13, 4)
    speed, chunk, decoder = figure.subplots(1, 3)
    curves = (
        (speed, "vocoder_{}_", "_realtime", "{} kernel"),
        (decoder, "decoder_{}_", "_steps_per_s", "{}"),
    )
    for axes, begin, end, label in curves:
        for backend in ("cuda", "triton", "cpp"):
            if points := bench_report._numbered(figures, begin.format(backend), end):
                axes.plot(*zip(*points, strict=True), "o-", label=label.format(backend))
    for axes, end in ((speed, "_realtime"), (chunk, "_chunk_ms")):
        if points := bench_report._numbered(figures, "slots_", end):
            axes.plot(*zip(*points, strict=True), "ks-", label="mel to samples")
    reach = [row["first"] for row in result["targets"] if row["figure"] == "streams_in_real_time"]
    for streams in reach:
        speed.axhline(streams, linestyle=":", color="gray")
    speed.set(title="vocoder", xlabel="streams", ylabel="x real time in sum")
    chunk.set(title="a chunk of 43 ms", xlabel="streams", ylabel="ms")
    decoder.set(title="decoder", xlabel="utterances", ylabel="steps/s in sum")
    for axes in (speed, chunk, decoder):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.suptitle(f"{about['device']}, {about['date']}, {about['commit']}")
    return figure
