"""Bulk synthesis: a JSONL file in, a folder of speech and its manifest out.

Lines run side by side through the scheduler, as bulk. Killed at any moment, the next run goes on:
nothing that was recorded is made again, nothing is left half written.
"""

from __future__ import annotations

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


def run(
    manifest: Manifest, scheduler: Scheduler, voice_of: VoiceOf, format: str, *,
    progress: bool = True, stop: threading.Event | None = None,
) -> Totals:  # fmt: skip
    """Speak every line that waits.

    Args:
        voice_of: the voice for a line's "voice"; raises VoiceError or InputError.
        format: of `audio.KNOWN_FORMATS`.
        stop: when set, nothing more is begun, and what is under way is recorded.
    """
    counts = manifest.counts()
    lines = manifest.waiting()
    total, at = sum(counts.values()), counts.get("done", 0)
    done = failed = 0
    audio_s, begin = 0.0, time.perf_counter()
    # A full device, and as many lines again that are encoded, written or in the front end.
    window = 2 * scheduler.device.lanes * scheduler.device.capacity
    speaker = _Speaker(scheduler, voice_of, manifest.folder, format)
    with (
        ThreadPoolExecutor(window, "clonewave-batch") as pool,
        tqdm(total=total, initial=at, desc="speaking", unit="line", disable=not progress) as bar,
    ):
        for line, outcome in _side_by_side(pool, speaker.speak, lines, window, stop):
            manifest.record(line, outcome)
            failed += bool(outcome.error)
            done += not outcome.error
            audio_s += outcome.seconds
            bar.update()
            speed = audio_s / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{speed:.1f}x real time" + f", {failed} failed" * bool(failed))
    return Totals(done, failed, audio_s, time.perf_counter() - begin)


def _side_by_side(
    pool: ThreadPoolExecutor, work: Callable[[Line], Outcome], lines: Iterator[Line], window: int,
    stop: threading.Event | None,
) -> Iterator[tuple[Line, Outcome]]:  # fmt: skip
    """Results as they come, `window` lines at a time."""
    under_way: dict[Future[Outcome], Line] = {}
    try:
        while True:
            while len(under_way) < window and not (stop is not None and stop.is_set()):
                line = next(lines, None)
                if line is None:
                    break
                under_way[pool.submit(work, line)] = line
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()
    finally:
        for future in under_way:
            future.cancel()


class _Speaker:
    """One line: speech, file, outcome. Called from many threads."""

    def __init__(
        self, scheduler: Scheduler, voice_of: VoiceOf, folder: Path, format: str
    ) -> None:
        self.scheduler, self.folder, self.format = scheduler, folder, format
        self._voice_of, self._voices = voice_of, {}  # type: ignore[var-annotated]
        self._lock = threading.Lock()

    def speak(self, line: Line) -> Outcome:
        """A line that cannot be spoken is an outcome; a broken device is an error."""
        try:
            speech = self._submit(line).speech()
        except (Unavailable, OSError):
            raise
        except EngineError as error:
            return Outcome(error=str(error))
        path = self.folder / f"{line.id}.{self.format}"
        audio.write(path, speech.samples, speech.sample_rate)
        words = tuple((w.word, round(w.start_s, 4), round(w.end_s, 4)) for w in speech.words)
        report = speech.report
        warnings = report.warnings + tuple(f"may have skipped: {word}" for word in report.skips)
        return Outcome(path.name, files.sha256(path), speech.seconds, words, warnings)

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
