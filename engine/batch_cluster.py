"""Bulk synthesis on a Ray cluster: the lines of a manifest through Ray Data, files back to here.

Only this process touches the folder and its manifest, so that the machines share no storage and a
run goes on where any earlier one ended. A process that dies is started again and its lines with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from engine import cluster
from engine.batch import Made, Speaker, VoiceOf
from engine.batch_manifest import Line, Outcome
from engine.cluster import Cluster
from engine.errors import EngineError, InputError, Unavailable, VoiceError
from engine.serve.scheduler import Limits

LINES = 16  # of one task: a killed process loses that work at most twice over
AT_ONCE = 2  # tasks of one process, so that its device is busy while one of them ends
RETRIES = 3  # of a task whose process died; then a line of it must be what kills it


def made(
    lines: list[Line], voice_of: VoiceOf, format: str, of: Cluster
) -> Iterator[tuple[Line, Made]]:
    """Lines and what became of them, as they come.

    Raises:
        ConfigError: see `cluster.join`. Unavailable: processes die again and again.
    """
    if not lines:
        return
    ray = cluster.join(of)
    from ray import data

    data.DataContext.get_current().enable_progress_bars = False
    tasks = math.ceil(len(lines) / LINES)
    rows = data.from_items([_row(line) for line in lines], override_num_blocks=tasks)
    spoken = rows.map_batches(
        _Worker, batch_size=LINES, batch_format="numpy",
        fn_constructor_args=(of, _voices(lines, voice_of), format),
        compute=data.ActorPoolStrategy(
            size=of.replicas, max_tasks_in_flight_per_actor=2 * AT_ONCE,
            max_concurrent_calls_per_actor=AT_ONCE, enable_true_multi_threading=True,
        ),
        max_restarts=-1, max_task_retries=RETRIES, **of.resources(of.engine[1] == "cuda"),
    )  # fmt: skip
    try:
        for row in spoken.iter_rows():
            outcome = Outcome(**json.loads(row["outcome"]))
            yield _line(row["line"]), Made(outcome, row["audio"])
    except ray.exceptions.RayError as error:
        raise Unavailable(f"the cluster gave up ({error}); --resume goes on") from error
    finally:
        ray.shutdown()


class _Worker:
    """One process of the cluster: an engine and the scheduler that its lines go through."""

    def __init__(self, of: Cluster, voices: dict[str | None, Any], format: str) -> None:
        def voice_of(name: str | None) -> Any:
            if isinstance(voice := voices[name], EngineError):
                raise voice
            return voice

        _, scheduler = of.scheduler(Limits(jobs=1 << 20))
        self.speaker = Speaker(scheduler, voice_of, format)
        self.pool = ThreadPoolExecutor(AT_ONCE * LINES)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        lines = batch["line"].tolist()
        made = list(self.pool.map(self.speaker, map(_line, lines)))
        return {
            "line": lines,
            "outcome": [json.dumps(vars(one.outcome)) for one in made],
            "audio": [one.data for one in made],
        }


def _voices(lines: list[Line], voice_of: VoiceOf) -> dict[str | None, Any]:
    """By the name that lines give: the voice, or the error for every line that asks for it."""
    voices: dict[str | None, Any] = {}
    for name in {line.voice for line in lines}:
        try:
            voices[name] = voice_of(name)
        except (VoiceError, InputError) as error:
            voices[name] = error
    return voices


def _row(line: Line) -> dict[str, str]:
    return {"line": json.dumps([line.id, line.number, line.request])}


def _line(row: str) -> Line:
    id, number, request = json.loads(row)
    return Line(id, number, **json.loads(request))
