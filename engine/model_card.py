"""The measured part of a model card: README.md beside the weights, written from files.

Between two marks stand sizes, steps and hashes of the weights, and the scores that `clonewave
evaluate` left in a folder. What no file knows (data, licences, limits) is written by hand outside
the marks and stays. Scores of other weights than those in the folder are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine import checkpoint
from engine.errors import InputError, WeightsError
from engine.files import atomic_file
from engine.scores import FIRST_RELEASE, GOALS, markdown

BEGIN = "<!-- measured: written by `clonewave info --card`, not by hand -->"
END = "<!-- /measured -->"
KINDS = ("acoustic", "encoder", "vocoder")


def hashes(weights: Path) -> dict[str, str]:
    """Kind of model -> first 12 hex digits of its file's sha256, which name a voice model."""
    files = {kind: weights / f"{kind}.safetensors" for kind in (*KINDS, "spectrum")}
    return {
        kind: checkpoint.sha256(path)[:12]
        for kind, path in files.items()
        if kind in KINDS or path.is_file()  # a model may come without its spectrum
    }


def measured(weights: Path, results: Path) -> str:
    """The text between the marks.

    Raises:
        WeightsError: a model file that is missing or damaged.
        InputError: no evaluate.json in `results`, or scores of other weights.
    """
    found = hashes(weights)
    rows = []
    for kind in KINDS:
        path = weights / f"{kind}.safetensors"
        state, _, extra = checkpoint.load_model(path, kind)
        size = sum(tensor.numel() for tensor in state.values())
        megabytes = path.stat().st_size / 1e6
        rows.append(
            (path.name, f"{size:,}", f"{megabytes:.2f}", extra.get("steps", "?"), found[kind])
        )
    if "spectrum" in found:
        path = weights / "spectrum.safetensors"
        state, _ = checkpoint.load_tensors(path)
        size = sum(tensor.numel() for tensor in state.values())
        megabytes = path.stat().st_size / 1e6
        rows.append((path.name, f"{size:,}", f"{megabytes:.2f}", "", found["spectrum"]))
    parts = [markdown(("file", "parameters and buffers", "MB", "steps", "sha256"), rows)]
    if (scores := _read(results / "evaluate.json", found)) is None:
        raise InputError(f"{results}: no evaluate.json; run `clonewave evaluate FOLDER --out`")
    parts.append(_scores(scores))
    if sweep := _read(results / "sweep.json", found):
        parts.append(_sweep(sweep))
    if robust := _read(results / "robustness.json", found):
        total = robust["total"]
        parts.append(
            f"Robustness: {total['faulty']} of {total['sentences']} difficult sentences lose, "
            "repeat or stall on a word (attention path and recogniser agree)."
        )
    return "\n\n".join(parts)


def write(weights: Path, results: Path) -> Path:
    """Puts `measured` between the marks of README.md beside the weights, made if absent."""
    path = weights / "README.md"
    text = path.read_text("utf-8") if path.is_file() else "# Voice model\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise InputError(f"{path}: the mark {END} is missing after the first; put it back")
    after = rest.partition(END)[2]
    with atomic_file(path) as file:
        file.write(f"{before}{BEGIN}\n{measured(weights, results)}\n{END}{after}".encode())
    return path


def _read(path: Path, of: dict[str, str]) -> dict[str, Any] | None:
    """A results file, None if absent; refused when it is about other weights."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        models = found["settings"].get("models")
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not written by `clonewave evaluate` ({error!r})") from error
    if models != of:
        raise WeightsError(f"{path} is about other weights ({models}, not {of}); evaluate again")
    return found


def _scores(found: dict[str, Any]) -> str:
    how = found["settings"]
    title = (
        f"Scores by `clonewave evaluate`: {len(found['speakers'])} real people never heard in "
        f"training, {how['sentences']} sentences each, cloned from {how['seconds']:g} s. WER: "
        "Whisper base, lower is better; SIM: GE2E cosine with other recordings of the person; "
        "OVRL, SIG, BAK: DNSMOS, 1 to 5."
    )
    rows = [
        (row["speaker"], *(f"{row[k]:.3f}" for k in ("wer", "sim")),
         *(f"{row[k]:.2f}" for k in ("ovrl", "sig", "bak")))
        for row in (*found["speakers"], found["total"] | {"speaker": "**all**"})
    ]  # fmt: skip
    for name, limits in (("goal", GOALS), ("first release", FIRST_RELEASE)):
        rows.append((name, *(f"{limits[k]:g}" for k in ("wer", "sim", "ovrl")), "", ""))
    return f"{title}\n\n{markdown(('speaker', 'WER', 'SIM', 'OVRL', 'SIG', 'BAK'), rows)}"


def _sweep(found: dict[str, Any]) -> str:
    rows = [
        (f"{p['samples']} x {p['seconds']:g} s", f"{p['wer']:.3f}", f"{p['sim']:.3f}",
         f"{p['sim_real']:.3f}")
        for p in found["points"]
    ]  # fmt: skip
    columns = ("cloning samples", "WER", "SIM", "SIM of the cloning audio")
    return (
        f"More cloning audio, {len(found['settings']['speakers'])} people; two different people "
        f"have SIM {found['strangers']:.3f}.\n\n{markdown(columns, rows)}"
    )
