"""Which phone is spoken when: a small network over log-mels, for adaptation.

Knows no words and no language model: what it hears in any language it writes in English phones,
which is what the generator needs to say it again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config import RecogniserConfig
from engine.models.layers import Conv1dGLU, normalise_mel
from engine.symbols import PHONES

CLASSES = {phone: index for index, phone in enumerate(PHONES)}
SILENCE = len(PHONES)  # index of the class beside the phones


class PhoneRecogniser(nn.Module):
    """Log-mel -> log-probabilities of PHONES and silence at every second frame."""

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        c = self.config = config
        self.enter = nn.Conv1d(
            c.audio.n_mels, c.channels, c.kernel_size, stride=c.frame_stride,
            padding=c.kernel_size // 2,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            Conv1dGLU(c.channels, c.kernel_size, causal=False, dropout=c.dropout)
            for _ in range(c.layers)
        )
        self.leave = nn.Conv1d(c.channels, len(PHONES) + 1, 1)

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [batch, n_mels, frames], frames [batch] -> [batch, classes, steps].

        Step s lies at frame s * frame_stride. Each recording's mean spectrum is taken out first:
        a microphone's colour tells nothing of the phones.
        """
        c = self.config
        inside = (torch.arange(mel.shape[2], device=mel.device) < frames[:, None]).unsqueeze(1)
        x = normalise_mel(mel, c.audio) * inside
        x = (x - x.sum(-1, keepdim=True) / frames.view(-1, 1, 1)) * inside
        inside = inside[..., :: c.frame_stride]
        x = self.enter(x) * inside
        for block in self.blocks:
            x = block(x) * inside
        return self.leave(x).float().log_softmax(1)
