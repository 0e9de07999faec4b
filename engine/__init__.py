"""Clonewave: clone a voice from three seconds of audio and speak any text in it.

    import engine
    voice = engine.clone("me.wav")
    engine.synthesize("Hello there.", voice).save("hello.wav")

The functions here share one `Engine` with the default weights, loaded when first needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.audio import AudioSource
from engine.engine import AnyVoice, Engine
from engine.errors import (
    BackendUnavailable,
    ConfigError,
    DeadlineExceeded,
    EngineError,
    InputError,
    Overloaded,
    VoiceError,
    WeightsError,
)
from engine.speech import Report, Speech, Word
from engine.voice import Voice, blend

__version__ = "0.1.0"

_default: Engine | None = None
_lock = threading.Lock()


def default_engine() -> Engine:
    """The Engine behind the functions of this module; loaded on first use.

    Raises:
        WeightsError: the package came without weights.
    """
    global _default
    with _lock:
        if _default is None:
            _default = Engine()
        return _default


def clone(
    wav: AudioSource | Sequence[AudioSource], sample_rate: int | None = None, **options: Any
) -> Voice:
    """A Voice from three seconds or more of a person's speech.

    Args:
        wav: path, binary file object, 1-D or 2-D float or int16 array or tensor (then give
            `sample_rate`), or a list of these: several cloning samples of the same person.
        sample_rate: Hz, of arrays and tensors.
        options: method="encode", transcript=..., name=..., consent=..., budget_s=...; see
            `engine.clone.clone`. Methods "adapt-embedding" and "adapt-model" fit the voice to the
            recordings and their transcript in a minute or five; "encode" takes milliseconds.
    Raises:
        InputError: too short, silent, clipped, not audio, not finite; the message says which.
    Source: arXiv:1802.06006, section 3.3.
    """
    return default_engine().clone(wav, sample_rate, **options)


def synthesize(
    text: str | Sequence[str], emb: Any, *, speed: float = 1.0, seed: int | None = None
) -> Any:
    """Speak `text` in the voice `emb`.

    Args:
        text: of any length; or a list of texts, then `emb` is one voice or a list of as many.
        emb: Voice, path of a voice file, or array [speaker_dim].
        speed: 0.25 to 4.
        seed: of the vocoder's noise; the same seed and backend give the same samples.
    Returns:
        Speech (a list of Speech for a list of texts).
    Raises:
        InputError: nothing to speak, or a speed or seed out of range.
        VoiceError: not a voice, or made for another encoder.
    """
    return default_engine().synthesize(text, emb, speed=speed, seed=seed)


def stream(
    text: str, emb: AnyVoice, *, speed: float = 1.0, seed: int | None = None
) -> Iterator[np.ndarray]:
    """As `synthesize`, in chunks of about 40 ms as they are made; they join to the same samples."""
    return default_engine().stream(text, emb, speed=speed, seed=seed)


def morph(voice: Voice, towards: str, amount: float = 1.0) -> Voice:
    """The voice, moved towards "female", "male", "american" or "british" by class averages.

    Args:
        amount: 0 to 3; 1 takes a voice of the opposite class as far as the averages are apart.
    Raises:
        InputError: an unknown class or amount.
        VoiceError: a voice of another encoder, or one with its own weights.
    Source: arXiv:1802.06006, section 4.4.
    """
    return default_engine().morph(voice, towards, amount)


__all__ = [
    "BackendUnavailable",
    "ConfigError",
    "DeadlineExceeded",
    "Engine",
    "EngineError",
    "InputError",
    "Overloaded",
    "Report",
    "Speech",
    "Voice",
    "VoiceError",
    "WeightsError",
    "Word",
    "blend",
    "clone",
    "default_engine",
    "morph",
    "stream",
    "synthesize",
]
