"""cloning_samples -> speaker_embedding in one pass (arXiv:1802.06006, section 3.3, figure 6)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import EncoderConfig
from engine.models.layers import normalise_mel


class SpeakerEncoder(nn.Module):
    """Prenet, temporal GLU convolutions, mean over time, self-attention over cloning samples.

    Against the paper: `frame_stride` mel frames make one input step (21 ms; the paper's hop is
    25 ms), and the embedding has a fixed length of sqrt(speaker_dim), so that voices can be
    compared and mixed by angle. `contrast` moves an embedding away from `centre`, the mean of the
    training voices (above 1), or towards it: strangers are encoded where nobody has ever spoken.
    """

    centre: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        width = c.audio.n_mels * c.frame_stride
        sizes = [width] + [c.prenet_channels] * c.prenet_layers
        self.prenet = nn.ModuleList(
            nn.Conv1d(i, o, 1) for i, o in pairwise(sizes)
        )
        self.expand = nn.Conv1d(c.prenet_channels, c.channels, 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(c.channels, 2 * c.channels, c.kernel_size) for _ in range(c.layers)
        )
        self.query = nn.Linear(c.channels, c.attention_channels)
        self.key = nn.Linear(c.channels, c.attention_channels)
        self.value = nn.Linear(c.channels, c.attention_channels)
        self.score = nn.Linear(c.attention_channels, 1)
        self.out = nn.Linear(c.channels, c.speaker_dim)
        self.register_buffer("centre", torch.zeros(c.speaker_dim))

    def forward(
        self, mel: Tensor, frames: Tensor, present: Tensor, trust: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Speaker embedding of each speaker from its cloning samples.

        Args:
            mel: [batch, cloning_samples, n_mels, frames], zero-padded.
            frames: [batch, cloning_samples] int64, true lengths; at least `frame_stride`.
            present: [batch, cloning_samples] bool, False for padding samples.
            trust: [batch, cloning_samples] > 0, factors on the attention weights; None: ones.
        Returns:
            speaker_embedding [batch, speaker_dim] of length sqrt(speaker_dim), and the attention
            weights over the cloning samples [batch, cloning_samples], rows sum to 1.
        """
        batch, count = present.shape
        pooled = self.pool(mel.flatten(0, 1), frames.flatten()).view(batch, count, -1)
        return self.embed(pooled, present, trust)

    def embed(
        self, pooled: Tensor, present: Tensor, trust: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, from what `pool` gave: [batch, cloning_samples, channels]."""
        weights = self.attend(pooled, present)
        if trust is not None:
            weights = weights * trust
            weights = weights / weights.sum(1, keepdim=True)
        mixed = (weights.unsqueeze(-1) * self.out(pooled).float()).sum(1)
        scale = self.config.speaker_dim**0.5
        embedding = F.normalize(mixed, dim=-1) * scale
        if self.config.contrast != 1:
            spread = self.centre + self.config.contrast * (embedding - self.centre)
            embedding = F.normalize(spread, dim=-1) * scale
        return embedding, weights

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}centre", torch.zeros_like(self.centre))  # of earlier runs
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def pool(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [samples, n_mels, frames] -> mean over time of the features [samples, channels]."""
        stride = self.config.frame_stride
        x = normalise_mel(mel, self.config.audio)
        x = x[..., : x.shape[-1] // stride * stride]
        steps = x.shape[-1] // stride
        x = x.unflatten(-1, (steps, stride)).permute(0, 1, 3, 2).flatten(1, 2)
        inside = torch.arange(steps, device=mel.device) < (frames // stride).unsqueeze(-1)
        mask = inside.unsqueeze(1).to(x.dtype)
        for layer in self.prenet:
            x = F.elu(layer(x))
        x = self.expand(x) * mask
        left = (self.config.kernel_size - 1) // 2
        pad = (left, self.config.kernel_size - 1 - left)
        for conv in self.convs:
            x = (x + F.glu(conv(F.pad(x, pad)), dim=1)) * 0.5**0.5 * mask
        return x.float().sum(-1) / mask.sum(-1).clamp_min(1)

    def attend(self, pooled: Tensor, present: Tensor) -> Tensor:
        """Weights of the samples: multi-head self-attention, one score each, softmax."""
        batch, count, _ = pooled.shape
        heads = self.config.attention_heads
        q, k, v = (
            layer(pooled).view(batch, count, heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None, :])
        score = self.score(F.elu(mixed.transpose(1, 2).flatten(2))).squeeze(-1).float()
        return score.masked_fill(~present, float("-inf")).softmax(-1)
