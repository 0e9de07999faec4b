"""What an adapted voice says of its own: whether it is clear, and what equaliser it needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.adapt_sample import sentence_ids
from engine.hear import asked, log_probabilities
from engine.models.acoustic import Acoustic
from engine.models.recogniser import SILENCE, PhoneRecogniser
from engine.spectrum import equaliser_for, loud_average

SENTENCES = (
    "The morning train was late because of heavy snow on the line.",
    "Could you tell me where the nearest post office is?",
    "She gave both of us a cup of hot tea and some of the cake that was left over.",
    "For years the old bridge was the only way across, and everyone used it.",
    "My father always wished to visit the high mountains beyond the valley.",
    "Just choose whichever picture you like, and we will hang it in the hall.",
)


class Verdict(NamedTuple):
    """clarity: mean log-probability of the phones it was to say; equaliser: float32 [n_mels] that
    the voice needs now, or [0]."""

    clarity: float
    equaliser: np.ndarray


class Judge:
    """Lets a voice say six sentences and tells how they sound.

    Args:
        average: [n_mels], `loud_average` of the person's recordings; [0]: voices have no equaliser.
    """

    def __init__(self, recogniser: PhoneRecogniser, average: np.ndarray, backend: str) -> None:
        self.recogniser, self.average, self.backend = recogniser, average, backend
        self.texts = sentence_ids(SENTENCES)

    def _clarity(self, mel: Tensor, ids: Tensor, path: Tensor) -> np.ndarray:
        """Log-probability of the phone that was to be heard, at each step that has one."""
        table = log_probabilities(self.recogniser, mel[None])
        classes = asked(ids[0], path, len(table)).numpy()
        return table[np.arange(len(table)), classes][classes != SILENCE]

    @torch.no_grad()
    def __call__(self, acoustic: Acoustic, embedding: Tensor) -> Verdict:
        """What is to be said of a generator with an embedding [speaker_dim]."""
        network = acoustic.network()
        mels, clear = [], []
        for ids in self.texts:
            count = torch.tensor([ids.shape[1]])
            made = acoustic.generate(ids, count, embedding[None], network, self.backend)
            mels.append(made.mel[0])
            clear.append(self._clarity(made.mel[0], ids, made.path[0]))
        clarity = float(np.concatenate(clear).mean())
        if not self.average.size:
            return Verdict(clarity, np.zeros(0, np.float32))
        own = torch.cat([loud_average(mel[None]) for mel in mels]).mean(0)
        return Verdict(clarity, equaliser_for(self.average, own.numpy()))
