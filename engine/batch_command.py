"""`clonewave batch`: many texts, one file each, resumable."""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from engine import audio, batch, batch_cluster, cluster, commands, files
from engine.batch_manifest import Manifest, read_lines
from engine.engine import Engine
from engine.errors import ConfigError, InputError
from engine.serve.device import EngineDevice
from engine.serve.scheduler import Limits, Scheduler

WRITERS = 8  # threads that write what a cluster made
SHOWN = 5  # failed lines that the summary names
WEIGHTS = ("acoustic", "encoder", "vocoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("input", help='a text a line: JSON {"text": ..} with "id", "voice" (a file), "speed" and '
        '"seed" if wanted, or a JSON string; `-` reads stdin')  # fmt: skip
    add("output", help="folder for ID.wav of each line and manifest.sqlite")
    add("-v", "--voice", metavar="FILE", help="of lines that name none: voice file, or a recording "
        "to clone (default: the voice that comes with the model)")  # fmt: skip
    add("--format", choices=tuple(audio.KNOWN_FORMATS), default="wav", help="default: wav")
    add("--workers", type=int, metavar="N", help="threads (default: one a core)")
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--resume", action="store_true", help="go on with what an earlier run left")
    begun.add_argument("--overwrite", action="store_true", help="make everything again")
    cluster.add_arguments(parser)
    commands._engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Speak every line; exit status 1 if some could not be spoken, 130 if interrupted."""
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least 1")
    source = Path("/dev/stdin" if args.input == "-" else args.input)
    with Manifest(Path(args.output)) as manifest:
        if args.overwrite:
            manifest.clear()
        elif not (args.resume or manifest.empty):
            raise ConfigError(
                f"{args.output}: holds an earlier run; --resume goes on, --overwrite starts again"
            )
        engine = commands._engine(args)
        if different := manifest.same_settings(_settings(engine, args)):
            raise ConfigError(
                f"{args.output}: was begun with another {' and '.join(different)}; give the same, "
                "or --overwrite"
            )
        lines = manifest.plan(read_lines(source))
        if not lines:
            raise InputError(f"{source}: no lines")
        return _speak(args, engine, manifest, source.parent)


def _settings(engine: Engine, args: argparse.Namespace) -> dict[str, str]:
    """What makes a difference to every line."""
    weights = "".join(files.sha256(engine.folder / f"{name}.safetensors") for name in WEIGHTS)
    voice = commands._voice(engine, args.voice)
    return {
        "format": args.format, "precision": engine.network.precision,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "voice": hashlib.sha256(voice.embedding.tobytes()).hexdigest(),
    }  # fmt: skip


def _speak(args: argparse.Namespace, engine: Engine, manifest: Manifest, folder: Path) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def voice_of(name: str | None) -> Any:
        return commands._voice(engine, args.voice if name is None else str(folder / name))

    how: dict[str, Any] = {"progress": not args.quiet and sys.stderr.isatty(), "stop": stop}
    if (of := cluster.of_arguments(args)) is not None:
        work = lambda item: (item[0], batch.keep(manifest.folder, item[1]))  # noqa: E731
        made = batch_cluster.made(list(manifest.waiting()), voice_of, args.format, of)
        totals = batch.run(manifest, work, made, WRITERS, **how)
    else:
        device = EngineDevice(engine, lanes=args.workers)
        with Scheduler(device, Limits(jobs=1 << 20)) as scheduler:
            totals = batch.speak_here(manifest, scheduler, voice_of, args.format, **how)
    counts = manifest.counts()
    result = {
        "folder": str(manifest.folder.resolve()), "lines": counts, "now": vars(totals),
        "realtime_speedup": totals.audio_s / totals.wall_s,
    }  # fmt: skip
    text = [
        f"{totals.done} lines, {totals.audio_s:.1f} s of speech in {totals.wall_s:.1f} s = "
        f"{result['realtime_speedup']:.1f}x real time: {result['folder']}"
    ]
    failed = manifest.rows("failed")
    text += [f"failed: line {row['line']} ({row['id']}): {row['error']}" for row in failed[:SHOWN]]
    if len(failed) > SHOWN:
        text.append(f"and {len(failed) - SHOWN} more; all are in {manifest.folder}/manifest.sqlite")
    if stop.is_set():
        text.append(f"stopped, {counts.get('waiting', 0)} lines wait; --resume goes on")
    commands._tell(args, "\n".join(text), result)
    return 130 if stop.is_set() else int(bool(failed))
