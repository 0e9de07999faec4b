"""pitch -> what its harmonics look like in a log-mel; no weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine import kernels
from engine.config import AudioConfig

FLOOR_HZ, OCTAVES, PER_OCTAVE = 60.0, 3.4, 64
DEPTH = 3.0  # natural log: deeper valleys between harmonics are lost in noise anyway


class Harmonics(nn.Module):
    """A pulse train's log-mel relative to a flat spectrum, by pitch.

    A regression of mel frames cannot know the phase of a pitch contour and averages harmonics
    away. Shown where they lie, it only has to shape them.
    """

    table: Tensor

    def __init__(self, audio: AudioConfig) -> None:
        super().__init__()
        bank = kernels.mel_filterbank(
            audio.sample_rate, audio.n_fft, audio.n_mels, audio.f_min, audio.f_max
        ).double()
        steps = torch.arange(round(OCTAVES * PER_OCTAVE) + 1, dtype=torch.float64)
        pitch = FLOOR_HZ * 2 ** (steps / PER_OCTAVE)  # [pitches] Hz
        bins = torch.arange(bank.shape[1]) * audio.sample_rate / audio.n_fft
        nearest = (bins / pitch[:, None]).round().clamp_min(1)
        spectrum = torch.zeros(len(pitch), len(bins), dtype=torch.float64)
        for harmonic in (nearest - 1, nearest, nearest + 1):
            offset = (bins - harmonic * pitch[:, None]) * audio.n_fft / audio.sample_rate  # in bins
            lobe = _hann_lobe(offset) * (harmonic >= 1)
            spectrum += lobe.square()
        mel = spectrum.sqrt() @ bank.T
        relative = (mel / bank.sum(1)).clamp_min(1e-4).log()
        relative = relative - relative.amax(1, keepdim=True)
        self.register_buffer("table", relative.clamp_min(-DEPTH).float() / DEPTH + 0.5, False)

    def forward(self, pitch: Tensor) -> Tensor:
        """pitch [batch, frames] Hz, 0 = unvoiced -> [batch, n_mels, frames], 0 where unvoiced."""
        octaves = torch.log2(pitch.clamp_min(FLOOR_HZ) / FLOOR_HZ)
        at = (octaves * PER_OCTAVE).clamp(0, len(self.table) - 1.001)
        low = at.floor().long()
        share = (at - low).unsqueeze(-1)
        comb = self.table[low] * (1 - share) + self.table[low + 1] * share
        return (comb * (pitch > 0).unsqueeze(-1)).transpose(1, 2)


def _hann_lobe(offset: Tensor) -> Tensor:
    """Magnitude of a Hann window's transform `offset` bins from its centre; 1 there."""
    edge = (offset.abs() - 1).abs() < 1e-6  # removable pole, where it is 1/2
    safe = torch.where(edge, torch.zeros_like(offset), offset)
    lobe = torch.sinc(safe) / (1 - safe.square())
    return torch.where(edge, torch.full_like(offset, 0.5), lobe).abs()
