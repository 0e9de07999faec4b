"""Fundamental frequency of recordings, for training and adaptation; speaking needs none of this."""

from __future__ import annotations

import numpy as np

from engine.config import AudioConfig
from engine.errors import EngineError
from engine.models.harmonics import FLOOR_HZ

CEILING_HZ = 600.0


def track(samples: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Pitch under the middle of every mel frame.

    Args:
        samples: float32 [samples].
    Returns:
        float32 [samples // hop_length], Hz; 0 where there is no voice.
    Raises:
        EngineError: the extra `adapt` is not installed.
    Source: DIO and StoneMask of WORLD (Morise et al., 2016).
    """
    try:
        import pyworld
    except ImportError as error:
        raise EngineError("no pyworld; run: pip install 'clonewave[adapt]'") from error
    frames = len(samples) // audio.hop_length
    wave = samples.astype(np.float64)
    half_hop_ms = 500 * audio.hop_length / audio.sample_rate  # a frame's middle is half a hop in
    pitch, times = pyworld.dio(
        wave, audio.sample_rate, FLOOR_HZ, CEILING_HZ, frame_period=half_hop_ms
    )
    pitch = pyworld.stonemask(wave, pitch, times, audio.sample_rate)
    found = np.zeros(frames, np.float32)
    middles = pitch[1::2][:frames]
    found[: len(middles)] = middles
    return found


def revoiced(pitch: np.ndarray, factor: float, frames: int) -> np.ndarray:
    """The track [frames] of `augment.revoice`d samples from that of the recording."""
    at = np.round((np.arange(frames) + 0.5) * factor - 0.5).astype(int)
    known = at < len(pitch)
    return np.where(known, pitch[at.clip(0, len(pitch) - 1)] * factor, 0).astype(np.float32)
