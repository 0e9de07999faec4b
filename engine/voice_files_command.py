"""`clonewave voices show|blend|morph|map`: voice files, and where voices lie."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine import algebra, checkpoint
from engine.engine import DEFAULT_WEIGHTS
from engine.errors import InputError, WeightsError
from engine.files import atomic_file
from engine.voice import Voice, blend

PLOTS = (".png", ".svg", ".pdf")


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="DIR", help="voice model (default: the one inside)")
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="voice files")
    _output_arguments(parser)


def blend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shares", nargs="+", metavar="FILE=SHARE", help="a.safetensors=0.7 ...")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    _output_arguments(parser)


def morph_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="voice file")
    parser.add_argument("towards", choices=sorted(algebra.OPPOSITE))
    parser.add_argument("--amount", type=float, default=1.0, help="0 to 3 (default 1)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    _output_arguments(parser)


def map_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="voice files to mark on the map")
    parser.add_argument("-o", "--output", default="voices.png", help="png, svg or pdf to write")
    _output_arguments(parser)


def _directions(args: argparse.Namespace, encoder: str | None = None) -> algebra.Directions:
    """Of the weights in use; `encoder`: hash of the voices' own, which must fit."""
    folder = Path(args.weights or DEFAULT_WEIGHTS)
    own = checkpoint.sha256(folder / "encoder.safetensors")
    if encoder is not None and encoder != own:
        raise WeightsError(f"voices of encoder {encoder[:8]}, {folder} has {own[:8]}")
    if not (folder / algebra.FILE).is_file():
        raise WeightsError(f"{folder / algebra.FILE}: no such file; see `clonewave train --help`")
    return algebra.Directions.load(folder / algebra.FILE, own)


def show(args: argparse.Namespace) -> int:
    voices = [Voice.load(file) for file in args.files]
    rows = [_told(file, voice) for file, voice in zip(args.files, voices, strict=True)]
    for row, voice in zip(rows, voices, strict=True):
        try:
            directions = _directions(args, voice.encoder)
        except WeightsError:  # the file is worth showing without its model
            continue
        for name in ("female", "american"):
            row[f"towards_{name}"] = round(directions.position(voice.embedding, name), 2)
    one_encoder = len({v.encoder for v in voices}) == 1
    table = [[round(a.distance(b), 4) for b in voices] for a in voices] if one_encoder else []
    if args.json:
        print(json.dumps({"voices": rows, "distances": table}))
        return 0
    for row in rows:
        print("\n".join(f"{key:16} {value}" for key, value in row.items()), end="\n\n")
    if len(table) > 1:
        print("cosine distances, in the order above")
        print("\n".join(" ".join(f"{d:7.4f}" for d in line) for line in table))
    return 0


def _told(file: str, voice: Voice) -> dict[str, Any]:
    weights = ", ".join(f"{w:.2f}" for w in voice.weights)
    row: dict[str, Any] = {"file": file, "bytes": Path(file).stat().st_size, "weights": weights}
    row |= {"encoder": voice.encoder[:16], "acoustic": voice.acoustic[:16] or "not told"}
    values = sum(a.size for a in voice.adaptation.values())
    return row | {"numbers": voice.embedding.size + values} | dict(voice.metadata)


def blend_files(args: argparse.Namespace) -> int:
    shares: dict[Voice, float] = {}
    for item in args.shares:
        file, mark, share = item.rpartition("=")
        try:
            shares[Voice.load(file if mark else item)] = float(share) if mark else 1.0
        except ValueError as error:
            raise InputError(f"{item!r}: give FILE=SHARE, e.g. a.safetensors=0.5") from error
    _written(args, blend(shares))
    return 0


def morph_file(args: argparse.Namespace) -> int:
    voice = Voice.load(args.file)
    moved = algebra.morph(voice, args.towards, _directions(args, voice.encoder), args.amount)
    _written(args, moved, distance=round(voice.distance(moved), 4))
    return 0


def _written(args: argparse.Namespace, voice: Voice, **more: Any) -> None:
    voice.save(args.output)
    told = {"file": str(Path(args.output).resolve()), **more, **voice.metadata}
    print(json.dumps(told) if args.json else "\n".join(f"{k:16} {v}" for k, v in told.items()))


def draw_map(args: argparse.Namespace) -> int:
    from engine import plots

    if Path(args.output).suffix not in PLOTS:
        raise InputError(f"{args.output}: give a file that ends in {', '.join(PLOTS)}")
    voices = [Voice.load(file) for file in args.files]
    directions = _directions(args)
    for voice in voices:
        voice.require(directions.encoder, None)
    names = [v.metadata.get("name", Path(f).stem) for f, v in zip(args.files, voices, strict=True)]
    marked = [directions.project(voice.embedding[None])[0] for voice in voices]
    averages = {k: directions.project(a[None])[0] for k, a in directions.averages.items()}
    figure = plots.voice_classes(directions.points, directions.classes, averages, names, marked)
    with atomic_file(args.output) as file:
        figure.savefig(file, format=Path(args.output).suffix[1:], dpi=120)
    placed = {n: np.round(p, 3).tolist() for n, p in zip(names, marked, strict=True)}
    print(json.dumps({"file": args.output, "voices": placed}) if args.json else args.output)
    return 0
