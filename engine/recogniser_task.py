"""Training of the phone recogniser that adaptation listens with.

Every batch is a function of (seed, step) alone, as in `tasks.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.align import Aligned, align_all
from engine.augment import degrade, draw_revoicing, revoice
from engine.config import RecogniserConfig, TrainConfig
from engine.data import Store, apart
from engine.models.layers import log_mel
from engine.models.recogniser import CLASSES, SILENCE, PhoneRecogniser
from engine.symbols import GAP

DEGRADED = 0.7  # share of crops that go through a random channel
FRAMES = 240  # of a crop
HELD_OUT = 64  # crops that are validated on
UNKNOWN = -100  # no target: between words that run together


class Labelled(NamedTuple):
    """mel [batch, n_mels, FRAMES], true frames [batch], class of each step [batch, steps]."""

    mel: Tensor
    frames: Tensor
    classes: Tensor


def step_classes(aligned: Aligned, factor: float, steps: int, config: RecogniserConfig) -> Tensor:
    """Class under each step of an utterance that was revoiced by `factor`: [steps]."""
    names = aligned.sentence.symbols()
    known = [UNKNOWN if n == GAP else CLASSES.get(n, SILENCE) for n in names]
    ends = np.asarray(aligned.times[1:]) / factor
    middles = np.arange(steps) * config.frame_stride / config.audio.frame_rate
    at = np.searchsorted(ends, middles, side="right").clip(max=len(known) - 1)
    return torch.tensor(known)[torch.from_numpy(at)]


class RecogniserTask:
    """Cross-entropy of the phone under every step; a fiftieth of the utterances is held out."""

    kind = "recogniser"

    def __init__(self, store: Store, config: RecogniserConfig, train: TrainConfig) -> None:
        self.store, self.config, self.train = store, config, train
        self.extra: dict[str, Any] = {}
        torch.manual_seed(train.seed)
        self.model = PhoneRecogniser(config)
        self.aligned = align_all(store, config.audio.sample_rate)
        self.training, self.held_out = apart(store, self.aligned, train.batch_size)

    def _crop(
        self, index: int, rng: np.random.Generator, factor: float, degraded: float
    ) -> tuple[Tensor, Tensor]:
        """mel [n_mels, frames <= FRAMES] and classes [steps] of a random part of an utterance."""
        audio, stride = self.config.audio, self.config.frame_stride
        samples = revoice(self.store.samples(index), factor)
        samples = samples[: len(samples) // audio.hop_length * audio.hop_length]
        mel = log_mel(torch.from_numpy(samples)[None], audio)[0].numpy()
        mel = degrade(mel, audio, rng) if rng.random() < degraded else mel
        steps = -(-mel.shape[1] // stride)
        classes = step_classes(self.aligned[index], factor, steps, self.config)
        begin = int(rng.integers(0, max(steps - FRAMES // stride, 0) + 1))
        part = mel[:, begin * stride :][:, :FRAMES]
        return torch.from_numpy(part), classes[begin:][: FRAMES // stride]

    def _collate(self, crops: list[tuple[Tensor, Tensor]]) -> Labelled:
        mel = torch.zeros(len(crops), self.config.audio.n_mels, FRAMES)
        classes = torch.full((len(crops), FRAMES // self.config.frame_stride), UNKNOWN)
        for row, (part, known) in enumerate(crops):
            mel[row, :, : part.shape[1]] = part
            classes[row, : len(known)] = known
        return Labelled(mel, torch.tensor([part.shape[1] for part, _ in crops]), classes)

    def batch(self, step: int) -> Labelled:
        rng = np.random.default_rng((self.train.seed, step))
        chosen = rng.choice(self.training, self.train.batch_size, replace=False)
        crops = [self._crop(int(i), rng, draw_revoicing(rng), DEGRADED) for i in chosen]
        return self._collate(crops)

    def loss(self, batch: Labelled) -> tuple[Tensor, dict[str, float]]:
        heard = self.model(batch.mel, batch.frames)
        loss = F.nll_loss(heard, batch.classes, ignore_index=UNKNOWN)
        known = batch.classes != UNKNOWN
        right = (heard.argmax(1) == batch.classes)[known].float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(right)}

    def validate(self) -> dict[str, float]:
        """Loss and share of right steps on held-out utterances, clean and degraded."""
        figures: dict[str, float] = {}
        for name, degraded in (("", 0.0), ("_degraded", 1.0)):
            rng = np.random.default_rng(2)
            crops = [self._crop(int(i), rng, 1.0, degraded) for i in self.held_out[:HELD_OUT]]
            if crops:
                found = self.loss(self._collate(crops))[1]
                figures |= {f"{key}{name}": value for key, value in found.items()}
        return figures

    def show(self, writer: Any, step: int) -> None:
        """Nothing to see beside the figures."""
