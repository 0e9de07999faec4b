"""Speech on disk -> training examples. Layouts: Clonewave's own corpus, LJSpeech, VCTK, LibriTTS.

Audio is decoded once into one int16 memory map per data set (`Store`), so training starts in
seconds and reads nothing but the samples of its own batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from engine import audio
from engine.config import AudioConfig
from engine.errors import InputError


@dataclass(frozen=True)
class Durations:
    """A teacher's phonemes with frames per phoneme character (see `align.align`)."""

    phonemes: str
    frames: tuple[int, ...]
    offset_s: float
    frame_s: float


@dataclass(frozen=True)
class Utterance:
    """One recording. `speaker` is unique over all data sets loaded together."""

    path: Path
    speaker: str
    text: str
    durations: Durations | None = None


def _rows(path: Path, separator: str) -> list[list[str]]:
    # a builder that is killed may tear the last line, even within a character
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.split(separator) for line in text.split("\n") if line]


def _corpus(folder: Path) -> Iterable[Utterance]:
    """`manifest*.tsv`; columns: see `corpus.py`."""
    audio_root = folder / "audio" if (folder / "audio").is_dir() else folder
    for manifest in sorted(folder.glob("manifest*.tsv")):
        for row in _rows(manifest, "\t"):
            if len(row) != 8 or not row[7]:  # torn
                continue
            name, speaker, _, text, phonemes, frames, offset, frame = row
            # mixed speakers are numbered anew in every build; stock voices are the same everywhere
            who = f"{folder.name}/{speaker}" if speaker.startswith("mix") else speaker
            counts = tuple(int(n) for n in frames.split(","))
            durations = Durations(phonemes, counts, float(offset), float(frame))
            yield Utterance(audio_root / f"{name}.opus", who, text, durations)


def _ljspeech(folder: Path) -> Iterable[Utterance]:
    """`metadata.csv` (id|text|normalised text) beside `wavs/`."""
    for row in _rows(folder / "metadata.csv", "|"):
        yield Utterance(folder / "wavs" / f"{row[0]}.wav", folder.name, row[-1])


def _vctk(folder: Path) -> Iterable[Utterance]:
    """`txt/p225/p225_001.txt` beside `wav48*/p225/p225_001[_mic1].{flac,wav}`."""
    root = next(p for p in sorted(folder.glob("wav48*")))
    for text in sorted(folder.glob("txt/*/*.txt")):
        for name in (f"{text.stem}_mic1.flac", f"{text.stem}.flac", f"{text.stem}.wav"):
            path = root / text.parent.name / name
            if path.exists():
                yield Utterance(path, f"vctk/{text.parent.name}", text.read_text("utf-8").strip())
                break


def _libritts(folder: Path) -> Iterable[Utterance]:
    """`*/<speaker>/<chapter>/*.normalized.txt` beside the .wav of the same name."""
    for text in sorted(folder.rglob("*.normalized.txt")):
        path = text.with_name(text.name.replace(".normalized.txt", ".wav"))
        speaker = f"libritts/{text.parent.parent.name}"
        yield Utterance(path, speaker, text.read_text("utf-8").strip())


_LAYOUTS: tuple[tuple[str, Callable[[Path], Iterable[Utterance]]], ...] = (
    ("manifest*.tsv", _corpus),
    ("metadata.csv", _ljspeech),
    ("txt/*/*.txt", _vctk),
    ("**/*.normalized.txt", _libritts),
)


def load(folder: str | Path) -> list[Utterance]:
    """All utterances of a data set whose layout is recognised by its files.

    Raises:
        InputError: the folder is missing, of no known layout, or holds no usable utterance.
    """
    root = Path(folder).resolve()
    for pattern, reader in _LAYOUTS:
        if next(root.glob(pattern), None) is not None:
            found = [u for u in reader(root) if u.path.exists() and u.text]
            if found:
                return found
            raise InputError(f"{root}: {pattern} found, but none of the audio files it names")
    known = "a Clonewave corpus (manifest.tsv), LJSpeech, VCTK or LibriTTS"
    raise InputError(f"{root}: not a data set; expected {known}")


class Store:
    """Decoded audio of many utterances: one int16 memory map and where each utterance lies."""

    def __init__(self, utterances: Sequence[Utterance], samples: np.ndarray, ends: np.ndarray):
        self.utterances = list(utterances)
        self._samples, self._ends = samples, ends

    def __len__(self) -> int:
        return len(self.utterances)

    def lengths(self) -> np.ndarray:
        """[utterances] samples of each."""
        return np.diff(self._ends, prepend=0)

    def samples(self, index: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """float32 [samples] of one utterance, or of a part of it."""
        first = self._ends[index - 1] if index else 0
        last = self._ends[index] if end is None else min(first + end, self._ends[index])
        return self._samples[first + begin : last].astype(np.float32) / 32768


def is_held_out(utterance: Utterance, share: float = 0.02) -> bool:
    """Whether an utterance is kept for validation; depends on nothing but its name."""
    digest = hashlib.sha256(f"{utterance.speaker}/{utterance.path.stem}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def apart(store: Store, indices: Iterable[int], least: int) -> tuple[np.ndarray, np.ndarray]:
    """Aligned utterances to train on, and those held out.

    Raises:
        InputError: fewer than `least` to train on.
    """
    usable = np.array(sorted(indices), dtype=np.int64)
    held = np.array([is_held_out(store.utterances[i]) for i in usable], dtype=bool)
    training = usable[~held]
    if len(training) < least:
        raise InputError(
            f"{len(training)} utterances with phoneme durations that fit their text: fewer than a "
            f"batch of {least}; see `clonewave corpus`"
        )
    return training, usable[held]


def open_store(
    folders: Sequence[str | Path], config: AudioConfig, cache: str | Path, progress: bool = True
) -> Store:
    """Utterances of all `folders`, decoded to mono int16 at `config.sample_rate` under `cache`.

    A data set that has grown is decoded anew only for what is new to it.
    """
    utterances: list[Utterance] = []
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    for folder in folders:
        found = load(folder)
        samples, known = _decoded(found, Path(folder), config, Path(cache), progress)
        kept = [u for u in found if str(u.path) in known]
        utterances += kept
        for u in kept:
            begin, end = known[str(u.path)]
            lengths.append(end - begin)
            parts.append(samples[begin:end])
    return Store(utterances, np.concatenate(parts), np.cumsum(lengths))


def _decoded(
    found: list[Utterance], folder: Path, config: AudioConfig, cache: Path, progress: bool
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """The cache of one data set: its samples and [begin, end) by path."""
    key = hashlib.sha256(f"{folder.resolve()} {config.sample_rate}".encode()).hexdigest()[:16]
    data, index = cache / f"{key}.pcm", cache / f"{key}.json"
    cache.mkdir(parents=True, exist_ok=True)
    known: dict[str, tuple[int, int]] = {}
    if index.exists():
        known = {k: (v[0], v[1]) for k, v in json.loads(index.read_text()).items()}
    missing = [u for u in found if str(u.path) not in known]
    end = max((e for _, e in known.values()), default=0)
    with data.open("r+b" if data.exists() else "w+b") as out:
        out.seek(2 * end)
        out.truncate()  # what an interrupted run wrote beyond the index
        bar = tqdm(missing, desc=f"decoding {folder.name}", disable=not progress or not missing)
        for utterance in bar:
            samples, rate = audio.read(utterance.path)
            samples = audio.resample(samples, rate, config.sample_rate)
            out.write((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
            known[str(utterance.path)] = (end, end + len(samples))
            end += len(samples)
    temporary = index.with_suffix(".tmp")
    temporary.write_text(json.dumps(known))
    os.replace(temporary, index)
    return np.memmap(data, "<i2", "r", shape=(end,)), known
