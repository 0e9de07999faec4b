"""Random crops of speakers' recordings: the cloning samples that models are trained on."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.augment import degrade, revoice
from engine.config import EncoderConfig
from engine.data import Store
from engine.models.layers import log_mel


class References(NamedTuple):
    """Cloning samples of several speakers, as `SpeakerEncoder` takes them."""

    mel: Tensor
    frames: Tensor
    present: Tensor


class SpeakerSampler:
    """Random crops of a speaker's recordings, as mels, some of them degraded."""

    def __init__(self, store: Store, indices: np.ndarray, config: EncoderConfig) -> None:
        self.store, self.config = store, config
        by_speaker: dict[str, list[int]] = defaultdict(list)
        for i in indices:
            by_speaker[store.utterances[i].speaker].append(int(i))
        self.by_speaker = dict(by_speaker)
        self.speakers = sorted(by_speaker)

    def crop(
        self, index: int, seconds: float, rng: np.random.Generator, degraded: float,
        revoiced: float = 1.0,
    ) -> np.ndarray:  # fmt: skip
        """[n_mels, frames] of a random part of one utterance.

        Args:
            degraded: probability of a random recording channel.
            revoiced: makes it another person (`augment.revoice`).
        """
        audio = self.config.audio
        wanted = int(seconds * audio.sample_rate) // audio.hop_length * audio.hop_length
        length = int(self.store.lengths()[index])
        taken = math.ceil(wanted * revoiced)
        begin = int(rng.integers(0, max(length - taken, 0) + 1))
        samples = revoice(self.store.samples(index, begin, begin + taken), revoiced)
        samples = samples[: len(samples) // audio.hop_length * audio.hop_length]
        with torch.autocast("cpu", enabled=False):
            mel = log_mel(torch.from_numpy(samples)[None], audio)[0].numpy()
        return degrade(mel, audio, rng) if rng.random() < degraded else mel

    def collate(self, crops: list[list[np.ndarray]]) -> References:
        """Pad the cloning samples of each speaker to one tensor."""
        count = max(len(c) for c in crops)
        longest = max(m.shape[1] for c in crops for m in c)
        mel = torch.zeros(len(crops), count, self.config.audio.n_mels, longest)
        frames = torch.full((len(crops), count), self.config.frame_stride)
        for i, samples in enumerate(crops):
            for j, sample in enumerate(samples):
                mel[i, j, :, : sample.shape[1]] = torch.from_numpy(sample)
                frames[i, j] = sample.shape[1]
        present = torch.arange(count) < torch.tensor([len(c) for c in crops])[:, None]
        return References(mel, frames, present)
