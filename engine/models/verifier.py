"""Judges of voices, trained apart from the voice model (arXiv:1802.06006, section 3.4, appendix C).

Both read the log-mel of `AudioConfig` where the paper takes 80 bands at 16 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import ClassifierConfig, VerifierConfig
from engine.models.layers import normalise_mel


class SpeakerVerifier(nn.Module):
    """Mel -> 128 numbers; a PLDA-style score says whether two of them are one person.

    One 2-D convolution with batch normalisation, a GRU, the mean over time and a linear layer;
    score(x, y) = w x.y - x'Sx - y'Sy + b with a symmetric S.
    """

    def __init__(self, config: VerifierConfig) -> None:
        super().__init__()
        c = self.config = config
        self.conv = nn.Conv2d(1, c.filters, c.kernel, c.stride)
        self.norm = nn.BatchNorm2d(c.filters)
        bands = (c.audio.n_mels - c.kernel[0]) // c.stride[0] + 1
        self.gru = nn.GRU(c.filters * bands, c.channels, batch_first=True)
        self.out = nn.Linear(c.channels, c.channels)
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.within = nn.Parameter(torch.zeros(c.channels, c.channels))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [batch, n_mels, frames], frames [batch] >= 8 -> unit vectors [batch, channels].

        Each recording's own mean level is taken out first, so that gain does not count.
        """
        c = self.config
        inside = (torch.arange(mel.shape[2], device=mel.device) < frames[:, None]).unsqueeze(1)
        x = normalise_mel(mel, c.audio) * inside
        level = x.sum((1, 2), keepdim=True) / (frames.view(-1, 1, 1) * c.audio.n_mels)
        x = F.relu(self.norm(self.conv(((x - level) * inside).unsqueeze(1))))
        x, _ = self.gru(x.flatten(1, 2).transpose(1, 2))  # [batch, steps, channels]
        steps = ((frames - c.kernel[1]) // c.stride[1] + 1).clamp_min(1)
        inside = torch.arange(x.shape[1], device=mel.device) < steps[:, None]
        mean = (x * inside.unsqueeze(-1)).sum(1) / steps.unsqueeze(-1)
        return F.normalize(self.out(mean).float(), dim=-1)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-odds that x [n, channels] and y [m, channels] are one person: [n, m]."""
        within = (self.within + self.within.T) / 2
        own = lambda v: ((v @ within) * v).sum(-1)  # noqa: E731
        return self.weight * (x @ y.T) - own(x)[:, None] - own(y) + self.bias


class SpeakerClassifier(nn.Module):
    """Which of a closed set of people speaks: a linear layer, six convolutions, mean, softmax."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        c = self.config = config
        self.enter = nn.Conv1d(c.audio.n_mels, c.channels, 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(c.channels, c.channels, c.kernel_size) for _ in range(c.layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(c.channels) for _ in range(c.layers))
        self.embed = nn.Linear(c.channels, c.embedding)
        self.out = nn.Linear(c.embedding, c.speakers)

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [batch, n_mels, frames], frames [batch] -> logits [batch, speakers]."""
        c = self.config
        inside = (torch.arange(mel.shape[2], device=mel.device) < frames[:, None]).unsqueeze(1)
        x = normalise_mel(mel, c.audio) * inside
        level = x.sum((1, 2), keepdim=True) / (frames.view(-1, 1, 1) * c.audio.n_mels)
        x = F.relu(self.enter((x - level) * inside))
        left = (c.kernel_size - 1) // 2
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(F.pad(x, (left, c.kernel_size - 1 - left))))) * inside
        mean = x.sum(-1) / frames.unsqueeze(-1)
        return self.out(F.relu(self.embed(mean)))
