"""`clonewave corpus`: build a training corpus of a thousand speakers with phoneme durations.

Everything comes from packages: a teacher (`corpus_teacher.py`) reads texts (`corpus_text.py`) in
its own voices and in new ones. A new speaker mixes the timbre halves of two or three style
vectors, moves away from the mean voice, takes the prosody half of an English voice, and gets
another vocal tract by resampling: such speakers differ from each other as much as people do.

The folder holds speakers.json, <speaker>/<utterance>.opus and manifest.tsv without a header:
    utterance  speaker  seconds  text  phonemes  durations  offset_s  frame_s
Phoneme i spans [sum(durations[:i + 1]), + durations[i + 1]) * frame_s - offset_s seconds.

Utterance n of a seed and a number of speakers is always the same, and is in the manifest once it is
whole on disk. So a build may be killed at any time and goes on where it was; one process writes,
workers only speak.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from engine import corpus_check, corpus_speakers, corpus_text
from engine.corpus_manifest import MANIFEST, Manifest, Row
from engine.corpus_speakers import Recipe, Voice, mix_speakers
from engine.corpus_teacher import VOICE_FOLDERS, load_voices, require
from engine.errors import EngineError, InputError
from engine.files import atomic_file

SPEAKERS = "speakers.json"
GIVE_UP = 100  # utterances in a row of which none could be used


@dataclass(frozen=True)
class Goal:
    """When a corpus is large enough: hours of audio, or utterances numbered below a limit."""

    hours: float | None = None
    utterances: int | None = None

    def missing(self, manifest: Manifest) -> Iterator[int]:
        """Numbers still to be made, in order."""
        numbers = itertools.count() if self.utterances is None else range(self.utterances)
        return (n for n in numbers if n not in manifest.seconds)

    def enough(self, manifest: Manifest) -> bool:
        """Whether the hours are made; a number of utterances ends with `missing`."""
        return self.hours is not None and manifest.hours >= self.hours

    def reached(self, manifest: Manifest) -> bool:
        return self.enough(manifest) or next(self.missing(manifest), None) is None


def build(
    manifest: Manifest,
    goal: Goal,
    submit: Callable[[int], Future[Row | None]],
    ahead: int,
    progress: bool = True,
) -> bool:
    """Make what is missing, `ahead` utterances at a time; True unless a signal stopped it.

    SIGINT and SIGTERM wait for the utterances in hand.
    """
    stopping: list[int] = []
    numbers = goal.missing(manifest)
    pending: set[Future[Row | None]] = set()
    useless = 0
    with _bar(goal, manifest, progress) as bar, _signals(stopping):
        while True:
            while len(pending) < ahead and not stopping and not goal.enough(manifest):
                number = next(numbers, None)
                if number is None:
                    break
                pending.add(submit(number))
            if not pending:
                return not stopping
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for row in (future.result() for future in done):
                useless = 0 if row is not None else useless + 1
                if row is not None:
                    manifest.append(row)
                if goal.hours is None:
                    bar.update()
                elif row is not None:
                    bar.update(row.seconds / 3600)
            if useless >= GIVE_UP:
                raise EngineError(f"{useless} utterances in a row came out silent or too long")
            bar.set_postfix_str(f"{len(manifest.seconds)} utterances, {manifest.hours:.2f} h")


def _bar(goal: Goal, manifest: Manifest, progress: bool) -> tqdm:
    if goal.hours is not None:
        done, total = manifest.hours, goal.hours
        shown = "{percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}, {postfix}]"
    else:
        total = goal.utterances or 0
        done, shown = total - sum(1 for _ in goal.missing(manifest)), None
    return tqdm(
        total=total, initial=min(done, total), bar_format=shown, disable=not progress, unit="utt"
    )


@contextlib.contextmanager
def _signals(stopping: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM are noted in `stopping` instead of ending the process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda n, _: stopping.append(n)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save_speakers(path: Path, speakers: dict[str, Voice], seed: int) -> None:
    """Write or extend speakers.json.

    Raises:
        InputError: it describes other speakers under the same names.
    """
    table = {name: {**voice._asdict(), "seed": seed} for name, voice in speakers.items()}
    if path.exists():
        known = json.loads(path.read_text("utf-8"))
        if any(table.get(name, voice) != voice for name, voice in known.items()):
            raise InputError(f"{path}: made with another seed or other voices; use another folder")
        table = {**known, **table}
    with atomic_file(path) as out:
        out.write(json.dumps(table, indent=1).encode())


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process.

    Raises:
        InputError: another process builds there, or the folder is read-only.
    """
    import fcntl

    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot write here: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder}: another process is building this corpus") from error
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clonewave corpus`."""
    parser.description = (
        "Build a corpus of many synthetic speakers with phoneme durations, which `clonewave train` "
        "reads. It needs espeak-ng, texts, and the teacher voice's packages and voices; what is "
        "missing is named together with how to get it. Stop it at any time: the same command goes "
        "on where it was."
    )
    parser.add_argument("out", type=Path, help="folder of the corpus; an existing one goes on")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--hours", type=float, metavar="H", help="until it holds this much speech")
    size.add_argument(
        "--utterances", type=int, metavar="N", help="until it holds this many (default 10000)"
    )
    parser.add_argument(
        "--new-speakers", type=int, default=950, metavar="N",
        help="mixed from the teacher's stock voices, besides those (default 950)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="processes, of half a gigabyte each (default: one a core)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of texts and new speakers (default 1)"
    )
    parser.add_argument(
        "--texts", type=Path, metavar="FOLDER",
        help="holds WordNet and fortunes, at any depth (default: the system's)",
    )  # fmt: skip
    parser.add_argument(
        "--voices", type=Path, metavar="FOLDER",
        help=f"holds the *.bin of kokoro-js (default: {' or '.join(VOICE_FOLDERS)})",
    )  # fmt: skip
    parser.add_argument(
        "--model-parts", type=Path, nargs="+", default=(), metavar="FILE",
        help="joined, they are the teacher's ONNX model (default: the installed packages)",
    )  # fmt: skip
    parser.add_argument(
        "--vocab", type=Path, metavar="FILE",
        help="the teacher's vocab.json (default: the installed package's)",
    )  # fmt: skip
    parser.add_argument(
        "--check", type=float, metavar="DROP",
        help="then drop utterances of which a recogniser gets more than this share of words wrong "
        "(0.3 is sensible; needs the extra `eval`); without a size: only check what is there",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run `clonewave corpus`; returns the exit status, 130 if a signal stopped it.

    Raises:
        EngineError: a package, program or text is missing; says how to get it.
        InputError: an option is out of range, or the folder cannot be written.
    """
    hours, utterances = args.hours, args.utterances
    sizes = (hours or 0, utterances or 0, args.new_speakers, args.seed)
    if args.workers < 1 or not all(0 <= size < math.inf for size in sizes):
        raise InputError("--workers must be 1 or more; the other numbers must not be negative")
    if hours is None and utterances is None and args.check is None:
        utterances = 10_000
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out}: cannot make this folder: {error.strerror}") from error
    with only_writer(args.out):
        manifest = Manifest(args.out / MANIFEST)
        goal = Goal(hours, utterances)
        finished = True
        if (hours is not None or utterances is not None) and not goal.reached(manifest):
            finished = _build(args, manifest, goal)
        if finished and args.check is not None:
            corpus_check.check(args.out, args.check, args.workers, progress=not args.quiet)
    print(f"{args.out}: {len(manifest.seconds)} utterances, {manifest.hours:.2f} h made")
    return 0 if finished else 130


def _build(args: Any, manifest: Manifest, goal: Goal) -> bool:
    voices = load_voices(args.voices)
    texts = corpus_text.load_texts([args.texts] if args.texts else corpus_text.INSTALLED)
    speakers = mix_speakers(list(voices), args.new_speakers, args.seed)
    recipe = Recipe(
        args.out, voices, speakers, texts, args.seed, tuple(args.model_parts), args.vocab
    )
    require(recipe.model_parts, recipe.vocabulary)
    save_speakers(args.out / SPEAKERS, speakers, args.seed)
    try:
        with corpus_speakers.start_workers(recipe, args.workers) as pool:
            submit = lambda number: pool.submit(corpus_speakers.make, number)  # noqa: E731
            return build(manifest, goal, submit, 2 * args.workers, not args.quiet)
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker died, perhaps for lack of memory (each needs half a gigabyte); "
            "the same command goes on where this one stopped"
        ) from error
