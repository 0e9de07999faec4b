"""Filter tables shared by all backends. Cached by all of their parameters."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney mel scale: linear below 1 kHz, logarithmic above."""
    linear = hz / (200.0 / 3)
    above = 15 + np.log(np.maximum(hz, 1e-9) / 1000) * (27 / np.log(6.4))
    return np.where(hz < 1000, linear, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * (200.0 / 3), 1000 * np.exp((mel - 15) * (np.log(6.4) / 27)))


@lru_cache
def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangular mel filters of unit area (slaney scale and norm): [n_mels, n_fft // 2 + 1]."""
    ends = _hz_to_mel(np.array([f_min, f_max], dtype=np.float64))
    centres = _mel_to_hz(np.linspace(ends[0], ends[1], n_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    widths = np.diff(centres)
    ramps = centres[:, None] - bins[None, :]
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    unit_area = triangles * (2 / (centres[2:] - centres[:-2]))[:, None]
    return torch.from_numpy(unit_area.astype(np.float32))


@lru_cache
def pqmf_filters(bands: int, taps: int, cutoff: float, beta: float) -> tuple[Tensor, Tensor]:
    """Analysis and synthesis filters of a cosine-modulated bank, each [bands, taps + 1].

    The prototype is a Kaiser-windowed sinc of normalised `cutoff` (1 = Nyquist).
    """
    n = np.arange(taps + 1) - taps / 2
    prototype = cutoff * np.sinc(cutoff * n) * np.kaiser(taps + 1, beta)
    k = np.arange(bands)[:, None]
    phase = (2 * k + 1) * np.pi / (2 * bands) * n[None, :]
    offset = (-1.0) ** k * np.pi / 4
    analysis = 2 * prototype * np.cos(phase + offset)
    synthesis = 2 * prototype * np.cos(phase - offset) * bands
    as_tensor = lambda a: torch.from_numpy(a.astype(np.float32))  # noqa: E731
    return as_tensor(analysis), as_tensor(synthesis)
