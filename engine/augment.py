"""Make clean speech sound like a telephone, a laptop or a kitchen, directly on log-mels.

The people who clone a voice record anywhere; the training voices are studio-clean. Working on mels
costs microseconds and needs no impulse responses or noise recordings.
"""

from __future__ import annotations

import numpy as np

from engine.audio import resample
from engine.config import AudioConfig

_DB = np.log(10) / 20  # natural-log magnitude per decibel
RATE_STEPS = 10_000  # a resampling factor is rounded to this part of 1


def degrade(mel: np.ndarray, audio: AudioConfig, rng: np.random.Generator) -> np.ndarray:
    """A random recording channel: equalisation, reverberation, noise, band limits, level.

    Args:
        mel: [n_mels, frames] natural-log magnitudes.
    Returns:
        Same shape, float32, not below ln(audio.log_floor).
    """
    bands = np.linspace(0, 1, audio.n_mels)[:, None]
    out = mel.astype(np.float32)
    if rng.random() < 0.6:
        knots = rng.normal(0, 4, 6) * _DB
        out = out + np.interp(bands[:, 0], np.linspace(0, 1, 6), knots)[:, None]
    if rng.random() < 0.4:
        out = _reverberate(out, rng)
    if rng.random() < 0.6:
        tilt = rng.uniform(-25, 5) * _DB * bands
        level = np.percentile(out, 90) - rng.uniform(8, 45) * _DB
        hiss = np.log(rng.rayleigh(0.8, out.shape) + 1e-3)
        out = np.logaddexp(2 * out, 2 * (level + tilt + hiss)) / 2
    if rng.random() < 0.4:
        top = rng.choice([0.62, 0.67, 0.86, 0.93])  # of the mel bands: about 3.4, 4, 7 and 8 kHz
        bottom = rng.choice([0.0, 0.0, 0.09])  # 300 Hz
        lost = (bands > top) | (bands < bottom)
        out = np.where(lost, out.min() - rng.uniform(0, 2), out)
    out = out + rng.uniform(-12, 6) * _DB
    return np.maximum(out, np.log(audio.log_floor)).astype(np.float32)


def draw_revoicing(rng: np.random.Generator) -> float:
    """A factor for `revoice`, 1 for two voices in five."""
    return float(np.exp(rng.uniform(-0.16, 0.16))) if rng.random() < 0.6 else 1.0


def revoice(samples: np.ndarray, factor: float) -> np.ndarray:
    """Another person out of the same recording: pitch, formants and tempo times `factor`.

    Args:
        samples: float32 [samples].
    Returns:
        float32, samples / factor long.
    """
    return resample(samples, round(RATE_STEPS * factor), RATE_STEPS)


def _reverberate(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add an exponentially decaying tail of power."""
    power = np.exp(2 * mel)
    decay = 10 ** (-6 / (rng.uniform(0.15, 0.6) * 93.75))  # 60 dB in 0.15 to 0.6 s
    wet = 10 ** (rng.uniform(-20, -6) / 10)
    tail = np.zeros_like(power)
    for delay in range(1, 25):
        tail[:, delay:] += decay**delay * power[:, :-delay] if delay < mel.shape[1] else 0
    return np.log(power + wet * tail + 1e-12) / 2
