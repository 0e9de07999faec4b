"""Sounds that tests share."""

import numpy as np


def tone(seconds=1.0, rate=24_000, hz=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * hz / rate * np.arange(round(seconds * rate)))).astype("f4")


def talk(seconds=3.0, rate=24_000, noise=1e-4, seed=0):
    """A buzz of 120 Hz with harmonics in syllables of 0.2 s: enough like speech for energy."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 15))
    syllables = 0.02 + np.abs(np.sin(2 * np.pi * 2.5 * time))
    sound = 0.1 * buzz * syllables + noise * np.random.default_rng(seed).standard_normal(time.size)
    return sound.astype("f4")
