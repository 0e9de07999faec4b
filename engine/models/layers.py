"""What several models share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.config import AudioConfig


def normalise_mel(mel: Tensor, audio: AudioConfig) -> Tensor:
    """Log-mel to about zero mean and unit variance over the training corpus."""
    return (mel - audio.mel_mean) / audio.mel_std


def denormalise_mel(mel: Tensor, audio: AudioConfig) -> Tensor:
    """Inverse of `normalise_mel`."""
    return mel * audio.mel_std + audio.mel_mean


@lru_cache
def _mel_tables(audio: AudioConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Filterbank and window on a device."""
    filterbank = kernels.mel_filterbank(
        audio.sample_rate, audio.n_fft, audio.n_mels, audio.f_min, audio.f_max
    )
    return filterbank.to(device), torch.hann_window(audio.win_length, device=device)


def log_mel(samples: Tensor, audio: AudioConfig, backend: str = "auto") -> Tensor:
    """Log-mel [batch, n_mels, frames] of samples [batch, samples] by the shared convention."""
    filterbank, window = _mel_tables(audio, samples.device)
    return kernels.log_mel(
        samples, filterbank, window, audio.hop_length, audio.log_floor, backend=backend
    )


class SpeakerBias(nn.Module):
    """softsign(FC(e)): how the speaker enters every block (arXiv:1710.07654, section 3.1)."""

    def __init__(self, speaker_dim: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(speaker_dim, channels)

    def forward(self, speaker_embedding: Tensor) -> Tensor:
        """[batch, speaker_dim] -> [batch, channels, 1]."""
        return F.softsign(self.fc(speaker_embedding)).unsqueeze(-1)


class Conv1dGLU(nn.Module):
    """Deep Voice 3 convolution block: dropout, Conv1d to 2C, speaker bias, GLU, residual.

    out = sqrt(0.5) * (x + (a + speaker) * sigmoid(b)),  [a; b] = conv(x).
    Causal blocks pad k - 1 steps on the left, others (k - 1) / 2 on both sides.
    Source: arXiv:1710.07654, section 3.1, figure 2.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, causal: bool, dropout: float, speaker_dim: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, kernel_size)
        self.speaker = SpeakerBias(speaker_dim, channels) if speaker_dim else None
        self.dropout = dropout
        left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.pad = (left, kernel_size - 1 - left)
        nn.init.normal_(self.conv.weight, std=(4 * (1 - dropout) / (kernel_size * channels)) ** 0.5)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, speaker_embedding: Tensor | None = None) -> Tensor:
        """x: [batch, channels, time]; speaker_embedding: [batch, speaker_dim]. Same shape out."""
        dropped = F.dropout(x, self.dropout, self.training)
        return self.mix(x, self.conv(F.pad(dropped, self.pad)), speaker_embedding)

    def mix(self, x: Tensor, convolved: Tensor, speaker_embedding: Tensor | None) -> Tensor:
        """Everything after the convolution; the incremental decoder calls it one step at a time."""
        values, gates = convolved.chunk(2, dim=1)
        if self.speaker is not None and speaker_embedding is not None:
            values = values + self.speaker(speaker_embedding)
        return (x + values * torch.sigmoid(gates)) * 0.5**0.5
