"""How far each cloning sample is to be believed, beside the encoder's own attention over them.

The encoder learned its attention (arXiv:1802.06006, section 3.3) from samples of one person: it
prefers clear ones, but was never shown a stranger. Two factors make up for that: a recording in
which speech does not stand out of the noise counts less, and among three and more samples one that
the speaker verification model takes for another person than the rest counts less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.verifier import SpeakerVerifier

CLEAR_DB, SPREAD_DB = 4.0, 1.5  # SNR at which a sample counts half, and how steep that is
FLOOR = 0.01  # of either factor: no sample is thrown away


def clearness(snr_db: Sequence[float]) -> np.ndarray:
    """[samples] 0.01 to 1: near 1 from 10 dB on, one half at 4 dB, near 0 for noise alone."""
    x = (np.asarray(snr_db, np.float64) - CLEAR_DB) / SPREAD_DB
    return np.maximum(1 / (1 + np.exp(-x)), FLOOR)


@torch.no_grad()
def agreement(verifier: SpeakerVerifier, mels: Sequence[Tensor]) -> np.ndarray:
    """[samples] 0.01 to 1: mean probability that a sample and each other one are one person.

    Ones for fewer than three: of two that disagree, nothing says which is wrong.

    Args:
        mels: [n_mels, frames] each.
    """
    if len(mels) < 3:
        return np.ones(len(mels))
    frames = torch.tensor([mel.shape[1] for mel in mels], device=mels[0].device)
    padded = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True)
    embedded = verifier(padded.transpose(1, 2), frames)
    same = verifier.score(embedded, embedded).sigmoid().double().cpu().numpy()
    np.fill_diagonal(same, 0.0)
    return np.maximum(same.sum(1) / (len(mels) - 1), FLOOR)
