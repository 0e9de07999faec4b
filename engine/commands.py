"""The verbs say, clone, info and doctor. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import audio, kernels, model_card
from engine.clone import METHODS
from engine.engine import Engine
from engine.errors import InputError
from engine.text import front_end
from engine.voice import Voice

DEFAULT_TEXT = "Three seconds of a voice are enough to speak any text in it."
PCM = "pcm"
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "multipart", "prometheus_client", "limits", "websockets", "av"),
    "wyoming": ("wyoming",),
    "cluster": ("ray",),
    "adapt": ("pyworld",),
    "train": ("tensorboard", "matplotlib"),
    "corpus": ("onnx", "onnxruntime"),
    "eval": ("faster_whisper", "resemblyzer", "speechmos"),
}


def _engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="DIR", help="voice model (default: the one inside)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    choices = ("auto", *kernels.ORDER)
    parser.add_argument("--backend", choices=choices, help="of the kernels (default: auto)")
    precisions = ("auto", *kernels.PRECISIONS)
    parser.add_argument("--precision", choices=precisions, default="auto", help="of the vocoder")
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")


def _engine(args: argparse.Namespace) -> Engine:
    return Engine(args.weights, args.device, args.backend, args.precision)


def _tell(args: argparse.Namespace, text: str, result: dict[str, Any]) -> None:
    """A line for people on stderr, or JSON for programs on stdout."""
    if args.json:
        print(json.dumps(result))
    elif not args.quiet:
        print(text, file=sys.stderr)


def add_say(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", nargs="?", default=DEFAULT_TEXT, help="what to say; `-` reads stdin"
    )
    parser.add_argument(
        "-v", "--voice", metavar="FILE",
        help="voice file, or a recording to clone (default: the voice that comes with the model)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", default="speech.wav", metavar="FILE",
        help="wav, flac, ogg, opus or mp3 by suffix; `-` = stdout (default: speech.wav)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=(*audio.KNOWN_FORMATS, PCM), help="on stdout (default: wav)"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="0.25 to 4 (default: 1)")
    parser.add_argument("--seed", type=int, help="same seed, same samples (default: 0)")
    parser.add_argument("--words", action="store_true", help="print when each word is said")
    _engine_arguments(parser)


def _voice(engine: Engine, name: str | None) -> Voice:
    if name is None:
        return engine.default_voice()
    if Path(name).suffix.lower() == ".safetensors":
        return Voice.load(name, engine.encoder_hash)
    return engine.clone(name)


def say(args: argparse.Namespace) -> int:
    """Synthesise, write, and say how fast it went."""
    text = sys.stdin.read() if args.text == "-" else args.text
    if args.output != "-":
        audio.output_format(args.output, args.format)  # before the work, not after it
    engine = _engine(args)
    voice = _voice(engine, args.voice)
    front_end("Ready.")  # loads the lexicon, once a process, like the weights above
    begin = time.perf_counter()
    speech = engine.synthesize(text, voice, speed=args.speed, seed=args.seed)
    seconds = time.perf_counter() - begin
    if args.output == "-":
        _to_stdout(speech.samples, speech.sample_rate, args.format or "wav")
    else:
        audio.write(args.output, speech.samples, speech.sample_rate, args.format)
    if args.words and not args.json:
        for word in speech.words:
            print(f"{word.start_s:8.2f} {word.end_s:8.2f}  {word.word}", file=sys.stderr)
    report = speech.report
    for problem in (*report.warnings, *(f"may have skipped: {w}" for w in report.skips)):
        if not args.quiet:
            print(f"warning: {problem}", file=sys.stderr)
    speed = speech.seconds / seconds
    where = "stdout" if args.output == "-" else str(Path(args.output).resolve())
    fast = f"{speech.seconds:.2f} s of speech in {seconds:.2f} s = {speed:.1f}x real time"
    summary = f"{fast}: {where}"
    result = {
        "file": where, "seconds": speech.seconds, "compute_seconds": seconds,
        "realtime_speedup": speed, "words": [vars(w) for w in speech.words],
        "report": vars(report),
    }  # fmt: skip
    if args.output == "-":  # stdout holds the audio
        args.json = False
    _tell(args, summary, result)
    return 0


def _to_stdout(samples: np.ndarray, sample_rate: int, format: str) -> None:
    out = sys.stdout.buffer
    if format == PCM:
        out.write((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    else:
        audio.write(out, samples, sample_rate, format)
    out.flush()


def add_clone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", nargs="+", help="3 s or more each, of one person")
    parser.add_argument("-o", "--output", default="voice.safetensors", metavar="FILE")
    parser.add_argument(
        "--method", default="encode", choices=METHODS,
        help="encode: milliseconds, no text; encode-finetuned: the same, if the encoder was tuned "
        "with the generator; adapt-embedding: up to a minute; adapt-model: up to five minutes, the "
        "file then holds a weight difference of about 100 KB (default: encode)",
    )  # fmt: skip
    parser.add_argument(
        "--transcript", metavar="TEXT",
        help="adapt-*: what is said, in English, or a text file with a line for each recording "
        "(default: its phones are recognised, in any language)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=_duration, metavar="TIME", help="adapt-*: at most so long, e.g. 90 or 5m"
    )
    parser.add_argument("--name", help="label kept in the voice file")
    parser.add_argument("--consent", help='the speaker\'s statement, e.g. "I am the speaker"')
    _engine_arguments(parser)


def _duration(text: str) -> float:
    """Seconds of "90", "90s" or "5m"."""
    unit = {"s": 1, "m": 60}.get(text[-1:], 0)
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds, or minutes as 5m") from error


def _transcript(given: str | None) -> str | list[str] | None:
    """The lines of a text file, or the text itself."""
    if given is None or not (given.endswith(".txt") or Path(given).is_file()):
        return given
    try:
        return [line for line in Path(given).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{given}: {error}; give a UTF-8 text file") from error


def clone(args: argparse.Namespace) -> int:
    """Clone and tell what the recordings were worth."""
    engine = _engine(args)
    options = {
        "method": args.method, "name": args.name, "consent": args.consent,
        "transcript": _transcript(args.transcript), "budget_s": args.budget,
        "progress": not args.quiet,
    }  # fmt: skip
    begin = time.perf_counter()
    voice = engine.clone(args.recordings, **options)
    milliseconds = 1000 * (time.perf_counter() - begin)
    voice.save(args.output)
    snr = voice.metadata["snr_db"].split(",")
    rows = zip(args.recordings, snr, voice.weights, strict=True)
    lines = [f"{name}: SNR {db} dB, weight {weight:.2f}" for name, db, weight in rows]
    if "adapt_steps" in voice.metadata:
        found = {k: voice.metadata[f"adapt_{k}"] for k in ("steps", "distance", "stopped")}
        lines.append("{steps} steps, distance {distance}, ended by {stopped}".format(**found))
    lines.append(
        f"{voice.metadata['seconds']} s of speech, cloned in {milliseconds:.0f} ms: "
        f"{Path(args.output).resolve()}"
    )
    if not args.consent:
        lines.append("no --consent given: clone only people who agreed to it")
    result = {
        "file": str(Path(args.output).resolve()), "milliseconds": milliseconds,
        "weights": voice.weights, **voice.metadata,
    }  # fmt: skip
    _tell(args, "\n".join(lines), result)
    return 0


def add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--card", type=Path, metavar="RESULTS",
        help="write the measured part of the model card, README.md beside the weights, from the "
        "folder that `evaluate --out` wrote",
    )  # fmt: skip
    _engine_arguments(parser)


def info(args: argparse.Namespace) -> int:
    """Parameter counts, file sizes and the configuration of a voice model."""
    engine = _engine(args)
    if args.card is not None:
        print(model_card.write(engine.folder, args.card))
        return 0
    models = {"acoustic": engine.acoustic, "encoder": engine.encoder, "vocoder": engine.vocoder}
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        path = engine.folder / f"{name}.safetensors"
        parameters = sum(p.numel() for p in model.parameters())
        rows[name] = {"parameters": parameters, "bytes": path.stat().st_size, "file": str(path)}
    if args.json:
        print(json.dumps({"models": rows, "config": vars(engine.config)}, default=vars))
        return 0
    print(f"{'model':10} {'parameters':>12} {'MB':>7}")
    for name, row in rows.items():
        print(f"{name:10} {row['parameters']:12,} {row['bytes'] / 1e6:7.2f}")
    total = sum(row["parameters"] for row in rows.values())
    size = sum(row["bytes"] for row in rows.values()) / 1e6
    print(f"{'all':10} {total:12,} {size:7.2f}")
    c = engine.config
    print(f"\n{c.vocoder.audio}\n{c.acoustic}\n{c.encoder}\n{c.vocoder}")
    derived = (
        f"look-ahead {c.acoustic.look_ahead} frames, receptive field of the vocoder "
        f"{c.vocoder.receptive_field} band steps, {c.acoustic.decoder_rate:.1f} decoder steps/s"
    )
    print(f"\n{derived}\nencoder {engine.encoder_hash}")
    return 0


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")


def doctor(args: argparse.Namespace) -> int:
    """Versions, devices, kernels by backend with reasons, instruction sets, extras."""
    absent = lambda names: [n for n in names if importlib.util.find_spec(n) is None]  # noqa: E731
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {n: metadata.version(n) for n in ("clonewave", "torch", "numpy")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": kernels.backends(),
        "instruction_sets": kernels.isas(),
        "extras": {name: absent(modules) for name, modules in EXTRAS.items()},
    }
    if args.json:
        print(json.dumps(found))
        return 0
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    print(f"python {found['python']} on {found['machine']}; {versions}")
    print(f"cuda: {found['cuda'] or 'no device'}")
    for title, table in (("backend", found["backends"]), ("cpu", found["instruction_sets"])):
        for name, reason in table.items():
            print(f"{title} {name}: {reason or 'ok'}")
    for name, missing in found["extras"].items():
        advice = f"missing {', '.join(missing)}: pip install 'clonewave[{name}]'"
        print(f"extra {name}: {advice if missing else 'ok'}")
    return 0


