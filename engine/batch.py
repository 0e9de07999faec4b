"""Bulk synthesis: a JSONL file in, a folder of speech and its manifest out.

Lines run side by side through the scheduler, as bulk. Killed at any moment, the next run goes on:
nothing that was recorded is made again, nothing is left half written.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from engine import audio, files
from engine.batch_manifest import Line, Manifest, Outcome
from engine.errors import EngineError, InputError, Overloaded, Unavailable, VoiceError
from engine.serve.scheduler import Scheduler

VoiceOf = Callable[[str | None], Any]


@dataclass(frozen=True)
class Totals:
    """Of one run; what earlier ones did does not count."""

    done: int
    failed: int
    audio_s: float
    wall_s: float


@dataclass(frozen=True)
class Made:
    """What became of a line, and its file, not yet written."""

    outcome: Outcome
    data: bytes = b""


def run(
    manifest: Manifest, work: Callable[[Any], tuple[Line, Outcome]], items: Iterator[Any],
    window: int, *, progress: bool = True, stop: threading.Event | None = None,
) -> Totals:  # fmt: skip
    """Do every item's work, `window` of them side by side, and record what became of its line.

    Args:
        items: lines, or what a cluster made of them; `work` is called in many threads.
        stop: when set, nothing more is begun, and what is under way is recorded.
    """
    counts = manifest.counts()
    total, at = sum(counts.values()), counts.get("done", 0)
    done = failed = 0
    audio_s, begin = 0.0, time.perf_counter()
    with (
        ThreadPoolExecutor(window, "clonewave-batch") as pool,
        tqdm(total=total, initial=at, desc="speaking", unit="line", disable=not progress) as bar,
    ):
        for line, outcome in _side_by_side(pool, work, items, window, stop):
            manifest.record(line, outcome)
            failed += bool(outcome.error)
            done += not outcome.error
            audio_s += outcome.seconds
            bar.update()
            speed = audio_s / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{speed:.1f}x real time" + f", {failed} failed" * bool(failed))
    return Totals(done, failed, audio_s, time.perf_counter() - begin)


def speak_here(
    manifest: Manifest, scheduler: Scheduler, voice_of: VoiceOf, format: str, **options: Any
) -> Totals:
    """Speak every line that waits, in this process.

    Args:
        voice_of: the voice for a line's "voice"; raises VoiceError or InputError.
        format: of `audio.KNOWN_FORMATS`.
        options: of `run`.
    """
    speaker = Speaker(scheduler, voice_of, format)
    # A full device, and as many lines again that are encoded, written or in the front end.
    window = 2 * scheduler.device.lanes * scheduler.device.capacity
    work = lambda line: (line, keep(manifest.folder, speaker(line)))  # noqa: E731
    return run(manifest, work, manifest.waiting(), window, **options)


def keep(folder: Path, made: Made) -> Outcome:
    """Write a line's file; it is on disk when this returns."""
    if made.outcome.file is not None:
        with files.atomic_file(folder / made.outcome.file) as file:
            file.write(made.data)
    return made.outcome


def _side_by_side(
    pool: ThreadPoolExecutor, work: Callable[[Any], tuple[Line, Outcome]], items: Iterator[Any],
    window: int, stop: threading.Event | None,
) -> Iterator[tuple[Line, Outcome]]:  # fmt: skip
    """Results as they come, `window` lines at a time."""
    under_way: set[Future[tuple[Line, Outcome]]] = set()
    try:
        while True:
            while len(under_way) < window and not (stop is not None and stop.is_set()):
                item = next(items, None)
                if item is None:
                    break
                under_way.add(pool.submit(work, item))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in under_way:
            future.cancel()


class Speaker:
    """A line -> its speech as a file, and its outcome. Called from many threads."""

    def __init__(self, scheduler: Scheduler, voice_of: VoiceOf, format: str) -> None:
        self.scheduler, self.format = scheduler, format
        self._voice_of, self._voices = voice_of, {}  # type: ignore[var-annotated]
        self._lock = threading.Lock()

    def __call__(self, line: Line) -> Made:
        """A line that cannot be spoken is an outcome; a broken device is an error."""
        try:
            speech = self._submit(line).speech()
        except Unavailable:
            raise
        except EngineError as error:
            return Made(Outcome(error=str(error)))
        file = io.BytesIO()
        audio.write(file, speech.samples, speech.sample_rate, self.format)
        data = file.getvalue()
        words = tuple((w.word, round(w.start_s, 4), round(w.end_s, 4)) for w in speech.words)
        report = speech.report
        warnings = report.warnings + tuple(f"may have skipped: {word}" for word in report.skips)
        name, sha256 = f"{line.id}.{self.format}", hashlib.sha256(data).hexdigest()
        return Made(Outcome(name, sha256, speech.seconds, words, warnings), data)

    def _submit(self, line: Line) -> Any:
        voice = self._voice(line.voice)
        while True:
            try:
                return self.scheduler.submit(
                    line.text, voice, speed=line.speed, seed=line.seed, priority="bulk",
                    stream=False,
                )  # fmt: skip
            except Overloaded as error:  # others use the scheduler too
                time.sleep(error.retry_after_s)

    def _voice(self, name: str | None) -> Any:
        with self._lock:
            if name not in self._voices:
                try:
                    self._voices[name] = self._voice_of(name)
                except (VoiceError, InputError) as error:
                    self._voices[name] = error
            voice = self._voices[name]
        if isinstance(voice, EngineError):
            raise voice
        return voice
