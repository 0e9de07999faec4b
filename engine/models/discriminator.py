"""Tells mels of speech from mels of a generator; used in training only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (1, 24, 48, 64, 64)
STRIDES = ((2, 1), (2, 2), (2, 2), (2, 1))  # mel bands, frames


class Judged(NamedTuple):
    """What the discriminator makes of a batch."""

    score: Tensor  # [batch, bands, frames], near 1 = speech, near 0 = generated
    features: tuple[Tensor, ...]  # of every layer


class Discriminator(nn.Module):
    """2-D convolutions over mel windows; least squares (arXiv:1611.04076).

    Every place is also asked whether it sounds like the speaker, by an inner product with a
    projection of the embedding (arXiv:1802.05637).
    """

    def __init__(self, speaker_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=stride, padding=1)
            for i, o, stride in zip(CHANNELS, CHANNELS[1:], STRIDES, strict=False)
        )
        self.speaker = nn.Linear(speaker_dim, CHANNELS[-1])
        nn.init.normal_(self.speaker.weight, std=0.02)
        self.out = nn.Conv2d(CHANNELS[-1], 1, 3, padding=1)

    def forward(self, mel: Tensor, speaker_embedding: Tensor) -> Judged:
        """mel [batch, n_mels, frames] normalised; speaker_embedding [batch, speaker_dim]."""
        x = mel.unsqueeze(1)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        likeness = torch.einsum("bctf,bc->btf", x, self.speaker(speaker_embedding))
        return Judged(self.out(x).squeeze(1) + likeness, tuple(features))
