"""Weights and training state on disk: safetensors and JSON, no pickle, every write atomic.

A file is read into memory once and checked there, so a file that changes or shrinks while it is
read cannot crash the process as a memory map would. Each file carries a sha256 over its tensors
and its other metadata; one damaged bit anywhere in them is an error, never a strange voice.

Not for several writers: two processes must not save training state into one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine import files
from engine.errors import WeightsError
from engine.files import PathLike

FORMAT = "1"
KINDS = ("vocoder", "acoustic", "encoder", "verifier", "classifier", "recogniser")
MODEL_LIMIT_BYTES = 1 << 30
STATE_LIMIT_BYTES = 1 << 34
HEADER_LIMIT_BYTES = 1 << 20


def sha256(path: PathLike) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        WeightsError: there is no such file.
    """
    try:
        return files.sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}; check the path") from error


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of `tensors`, and over `metadata`."""
    total = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and string metadata to one safetensors file, atomically.

    Args:
        path: file to write; its folder must exist.
        tensors: any shapes and dtypes; moved to the CPU, copied if they share memory.
        metadata: strings; `sha256` is added.

    Raises:
        WeightsError: the folder does not exist or metadata is not text.
    """
    bad = [key for key, value in metadata.items() if not isinstance(value, str)]
    if bad or "sha256" in metadata:
        raise WeightsError(f"metadata {bad or ['sha256']}: give strings, and leave sha256 out")
    if not Path(path).parent.is_dir():
        raise WeightsError(f"{path}: the folder does not exist; create it first")
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    data = safetensors.torch.save(plain, {**metadata, "sha256": digest(plain, metadata)})
    with files.atomic_file(path) as file:
        file.write(data)


def load_tensors(
    path: PathLike, *, limit_bytes: int = MODEL_LIMIT_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `save_tensors` wrote; nothing in it is ever executed.

    Returns:
        The tensors on the CPU, and the metadata without `sha256`.

    Raises:
        WeightsError: the file is missing, larger than `limit_bytes`, truncated, not safetensors,
            damaged (its sha256 does not match) or written by something else (it has none).
    """
    data = _read(Path(path), limit_bytes)
    metadata = _header_metadata(path, data)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{path}: damaged safetensors file ({error}); copy it again") from error
    stored = metadata.pop("sha256", None)
    if stored is None:
        raise WeightsError(f"{path}: has no sha256 in its metadata; this engine did not write it")
    if stored != digest(tensors, metadata):
        raise WeightsError(f"{path}: damaged (its contents do not match its sha256); copy it again")
    return tensors, metadata


def save_model(
    path: PathLike,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
    *,
    kind: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one model: weights, its JSON config and free text metadata, in one file.

    Args:
        path: `.safetensors` file to write, atomically.
        state: a module's `state_dict()`.
        config: plain JSON values, `config.to_dict(...)`.
        extra: further metadata, for example steps and scores.
        kind: one of KINDS.
        dtype: store floating tensors so (torch.float16 halves the file); None keeps theirs.

    Raises:
        WeightsError: unknown kind, a weight that is not finite (in `dtype`), no such folder.
    """
    if kind not in KINDS:
        raise WeightsError(f"kind {kind!r}: give one of {', '.join(KINDS)}")
    tensors = {
        name: t.to(dtype) if dtype is not None and t.is_floating_point() else t
        for name, t in state.items()
    }
    _require_finite(path, tensors)
    metadata = {f"extra.{key}": value for key, value in (extra or {}).items()}
    metadata |= {"format": FORMAT, "kind": kind, "config": json.dumps(config)}
    save_tensors(path, tensors, metadata)


def load_model(
    path: PathLike, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Read a file that `save_model` wrote.

    Returns:
        (state, config, extra): floating tensors as float32, the JSON config, the free metadata.

    Raises:
        WeightsError: as load_tensors, and for another kind of model, another format version, a
            config that is not JSON, or weights that are not finite.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise WeightsError(f"{path}: format {found!r}, this version reads {FORMAT!r}; upgrade")
    if metadata.get("kind") != kind:
        found = metadata.get("kind")
        raise WeightsError(f"{path}: holds a model of kind {found!r}, expected {kind!r}")
    try:
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError(f"{type(config).__name__} instead of an object")
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its config is not JSON ({error}); save it again") from error
    _require_finite(path, tensors)
    state = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    extra = {k.removeprefix("extra."): v for k, v in metadata.items() if k.startswith("extra.")}
    return state, config, extra


@dataclass(frozen=True, eq=False)
class TrainState:
    """What `load_state` found besides the weights it put back."""

    step: int
    config: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None


def save_state(
    folder: PathLike,
    *,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write everything a training run needs to go on bit for bit, as `folder/step-XXXXXXXX/`.

    The step's folder is written under a temporary name and renamed when it is complete, so a
    kill at any moment leaves the older ones as they were. Then only the newest `keep` stay.
    The state of torch's, Python's and numpy's global random generators is included.

    Args:
        extra: plain JSON values, for example the position in the data.

    Returns:
        The new folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step-*.tmp"):  # a killed run's
        shutil.rmtree(stale)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    moments, groups = _flatten_optimiser(optimiser)
    python_state, numpy_state, generators = _random_state()
    parts = {"model": dict(model.state_dict()), "optimiser": moments, "random": generators}
    if ema is not None:
        parts["ema"] = dict(ema)
    for name, tensors in parts.items():
        save_tensors(temporary / f"{name}.safetensors", tensors, {"format": FORMAT, "kind": name})
    document = {
        "format": FORMAT,
        "sequence": max((n for n, *_ in _complete(folder)), default=0) + 1,
        "step": step,
        "config": config,
        "extra": extra or {},
        "groups": groups,
        "python": python_state,
        "numpy": numpy_state,
        "files": {f"{n}.safetensors": sha256(temporary / f"{n}.safetensors") for n in parts},
    }
    with files.atomic_file(temporary / "state.json") as file:
        file.write(json.dumps(document).encode())
    if final.exists():  # the same step again, after going back to an older one
        retired = temporary.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        os.replace(final, retired)
    os.replace(temporary, final)
    files.sync_folder(folder)
    for *_, old in sorted(_complete(folder), reverse=True)[max(keep, 1) :]:
        shutil.rmtree(old)
    for stale in folder.glob(".step-*.tmp"):
        shutil.rmtree(stale)
    return final


def load_state(
    folder: PathLike, *, model: nn.Module, optimiser: torch.optim.Optimizer
) -> TrainState:
    """Put a run back where `save_state` left it: model, optimiser and global random generators.

    Args:
        folder: a `step-XXXXXXXX` folder, or one that holds such folders (the newest is taken).

    Raises:
        WeightsError: nothing to resume, a damaged file, or a model or optimiser of another shape.
    """
    folder = Path(folder)
    chosen = folder if (folder / "state.json").is_file() else latest(folder)
    if chosen is None:
        raise WeightsError(f"{folder}: no complete step-XXXXXXXX folder; start a new run")
    document = _read_document(chosen)
    if document is None:
        raise WeightsError(f"{chosen}: incomplete or damaged; delete it to resume the one before")
    parts = {}
    for name, expected in document["files"].items():
        if sha256(chosen / name) != expected:
            raise WeightsError(f"{chosen / name}: damaged; delete {chosen} to resume an older step")
        tensors, _ = load_tensors(chosen / name, limit_bytes=STATE_LIMIT_BYTES)
        parts[name.removesuffix(".safetensors")] = tensors
    try:
        model.load_state_dict(parts["model"])
        optimiser.load_state_dict(_unflatten_optimiser(parts["optimiser"], document["groups"]))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{chosen}: made by another model or optimiser ({error}); use the config it was made "
            "with, or start a new run in another folder"
        ) from error
    _restore_random_state(document["python"], document["numpy"], parts["random"])
    return TrainState(document["step"], document["config"], document["extra"], parts.get("ema"))


def latest(folder: PathLike) -> Path | None:
    """The complete `step-XXXXXXXX` folder saved last in `folder`, or None.

    Last by saving, not by step: a run that went back to an older step goes on from there.
    """
    return max(_complete(Path(folder)), default=(0, 0, None))[-1]


def _complete(folder: Path) -> list[tuple[int, int, Path]]:
    """(sequence, step, folder) of every step folder with a whole state.json and all its files."""
    steps = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    documents = [(_read_document(path), path) for path in steps]
    # without a sequence, as the first version wrote them, the step decides
    return [(d.get("sequence", 0), d["step"], path) for d, path in documents if d]


def _read_document(folder: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((folder / "state.json").read_bytes())
        whole = document["format"] == FORMAT and isinstance(document["step"], int)
        return (
            document if whole and all((folder / f).is_file() for f in document["files"]) else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flatten_optimiser(
    optimiser: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Its state as tensors "<parameter index>.<name>", and its parameter groups as JSON values."""
    state = optimiser.state_dict()
    tensors = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                raise WeightsError(f"optimiser state {name} is no tensor; AdamW and SGD work")
            tensors[f"{index}.{name}"] = value
    return tensors, state["param_groups"]


def _unflatten_optimiser(
    tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    tuples = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups
    ]
    return {"state": state, "param_groups": tuples}


def _random_state() -> tuple[list[Any], list[Any], dict[str, Tensor]]:
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    generators = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    numpy_state = [kind, np.asarray(keys).tolist(), *rest]
    return [version, list(words), gauss], numpy_state, generators


def _restore_random_state(
    python_state: list[Any], numpy_state: list[Any], generators: Mapping[str, Tensor]
) -> None:
    version, words, gauss = python_state
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = numpy_state
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(generators["torch"])
    for i in range(torch.cuda.device_count()):
        if (state := generators.get(f"cuda.{i}")) is not None:
            torch.cuda.set_rng_state(state, i)


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        data = files.read_bytes(path, limit_bytes)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or 'no such file'}; check the path") from error
    if len(data) > limit_bytes:
        raise WeightsError(f"{path}: larger than {limit_bytes:,} bytes, too large for what it is")
    return data


def _header_metadata(path: PathLike, data: bytes) -> dict[str, str]:
    """The `__metadata__` strings of a safetensors file; its header's length is checked first."""
    # a header of 640 bytes begins as a pickle does, but with its text after the length
    strange = data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
    if strange and data[8:9] != b"{":
        raise WeightsError(f"{path}: a pickle or zip, which is never opened; give safetensors")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or length > HEADER_LIMIT_BYTES:
        raise WeightsError(f"{path}: truncated, or not a safetensors file; copy it again")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if all(isinstance(v, str) for v in metadata.values()):
            return metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise WeightsError(f"{path}: not a safetensors file of this engine (no text metadata)")


def _require_finite(path: PathLike, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name} is not finite in {tensor.dtype}; train it again")
