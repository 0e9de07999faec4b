"""Where speech is in a recording, how loud and how clean: plain frame energy, numpy only."""

from __future__ import annotations

import numpy as np

FRAME_S = 0.02
SILENT_DB = -65.0  # dBFS; nothing below counts as speech
BRIDGE_FRAMES = 10  # gaps up to 0.2 s lie inside speech
BURST_FRAMES = 3  # a shorter sound is a click, not speech
MARGIN_FRAMES = 2  # kept around speech, for soft consonants
PAUSE_FRAMES = 15  # silences longer than 0.3 s are cut to it
SPEECH_DB = -23.0  # active RMS after normalise, dBFS
PEAK, KNEE = 0.95, 0.7  # limit after normalise; samples bend from the knee on


def clipped(samples: np.ndarray) -> int:
    """How many samples lie at full scale (1, or the peak if higher) in runs of 3 and more."""
    full = np.abs(samples) >= 0.99 * max(1.0, float(np.abs(samples).max()))
    return sum(stop - start for start, stop in _runs(full) if stop - start >= 3)


def frame_power(samples: np.ndarray, frame: int) -> np.ndarray:
    """Mean square of each whole frame of `frame` samples, [frames], never zero."""
    whole = samples[: samples.size // frame * frame].reshape(-1, frame)
    return np.square(whole, dtype=np.float64).mean(axis=1) + 1e-10


def loudest_db(power: np.ndarray) -> float:
    """Level of the fifth loudest frame, dBFS: 0.1 s, so that a click does not set it."""
    return float(10 * np.log10(np.sort(power)[-5:][0])) if power.size else -100.0


def find_speech(power: np.ndarray) -> np.ndarray:
    """Mask of the frames that hold speech, [frames], by an energy threshold that adapts.

    With peak = loudest_db and floor = the tenth percentile (the noise in pauses, or soft speech
    where there are none), a frame is active above floor + 6 dB, but the threshold never rises
    above peak - 10 dB (tightly cut speech has no pauses to measure) nor falls below peak - 35 dB
    or -65 dBFS. Bursts under 60 ms are then dropped and gaps up to 0.2 s filled.

    Knows nothing of what the sound is: loud noise or music counts as speech.
    """
    level = 10 * np.log10(power)
    peak, floor = loudest_db(power), float(np.percentile(level, 10))
    active = level > max(SILENT_DB, peak - 35.0, min(floor + 6.0, peak - 10.0))
    for start, stop in _runs(active):
        active[start:stop] = stop - start >= BURST_FRAMES
    for start, stop in _runs(~active):
        if 0 < start and stop < active.size:  # silent ends stay silent
            active[start:stop] = stop - start <= BRIDGE_FRAMES
    return active


def snr(power: np.ndarray, speech: np.ndarray) -> float:
    """Speech over noise in dB, -10 to 80; without pauses the softest tenth stands for noise."""
    away = ~_widen(speech)
    noise = power[away].mean() if away.sum() >= 5 else np.percentile(power, 10)
    signal = max(power[speech].mean() - noise, 0.1 * noise)
    return float(min(10 * np.log10(signal / noise), 80.0))


def cut_pauses(samples: np.ndarray, speech: np.ndarray, frame: int) -> np.ndarray:
    """Speech with its margins; silences inside are cut to 0.3 s, joined by 10 ms cross-fades."""
    near = _widen(speech)
    keep = near.copy()
    kept = PAUSE_FRAMES - 2 * MARGIN_FRAMES
    for start, stop in _runs(~near):
        if 0 < start and stop < near.size:
            keep[start : min(stop, start + (kept + 1) // 2)] = True
            keep[max(start, stop - kept // 2) : stop] = True
    fade = np.linspace(0, 1, frame // 2, dtype=np.float32)
    first, *others = (samples[a * frame : b * frame] for a, b in _runs(keep))
    joined = [first]
    for piece in others:
        joined[-1], end = np.split(joined[-1], [-fade.size])
        joined += [end * (1 - fade) + piece[: fade.size] * fade, piece[fade.size :]]
    return np.concatenate(joined)


def normalise(samples: np.ndarray, level_db: float) -> np.ndarray:
    """float32 `samples`, of active RMS `level_db`, brought to -23 dBFS and limited to 0.95.

    The limiter bends what exceeds 0.7 by tanh and leaves the rest as it is.
    """
    samples = samples * 10 ** ((SPEECH_DB - level_db) / 20)
    size, room = np.abs(samples), PEAK - KNEE
    bent = np.sign(samples) * (KNEE + room * np.tanh((size - KNEE) / room))
    return np.where(size > KNEE, bent, samples).astype(np.float32)


def _widen(speech: np.ndarray) -> np.ndarray:
    return np.convolve(speech, np.ones(2 * MARGIN_FRAMES + 1), "same") > 0


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
