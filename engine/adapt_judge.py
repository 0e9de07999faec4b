"""How good an adapted voice is: what it says of its own, heard by the models that know people and
phones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import WeightsError
from engine.hear import asked, log_probabilities
from engine.models.acoustic import Acoustic
from engine.models.recogniser import SILENCE, PhoneRecogniser
from engine.models.verifier import SpeakerVerifier
from engine.spectrum import equaliser_for, loud_average
from engine.symbols import text_ids
from engine.text import front_end

if TYPE_CHECKING:
    from engine.engine import Engine

SENTENCES = (
    "The morning train was late because of heavy snow on the line.",
    "Could you tell me where the nearest post office is?",
)


class Verdict(NamedTuple):
    """score: log-odds that voice and held-back audio are one person; clarity: mean log-probability
    of the phones it was to say; equaliser: float32 [n_mels] that the voice needs now, or [0]."""

    score: float
    clarity: float
    equaliser: np.ndarray


def needed(engine: Engine, kind: str) -> Any:
    """The verifier, which decides when adaptation ends, or the recogniser, which hears phones.

    Raises:
        WeightsError: these weights came without it.
    """
    if (model := getattr(engine, kind)) is None:
        raise WeightsError(
            f"{engine.folder}: no {kind}.safetensors, which adaptation needs; train one with "
            f"`clonewave train {kind}` and export it there"
        )
    return model


class Judge:
    """Lets a voice say two sentences and tells how they sound.

    Args:
        held_back: mels [n_mels, frames] of the person that no fit has seen.
        average: [n_mels], `loud_average` of the person's recordings; [0]: voices have no equaliser.
    """

    def __init__(self, engine: Engine, held_back: list[Tensor], average: np.ndarray) -> None:
        self.verifier: SpeakerVerifier = needed(engine, "verifier")
        self.recogniser: PhoneRecogniser = needed(engine, "recogniser")
        self.backend, self.average = engine.backend, average
        self.texts = [
            torch.tensor([text_ids(s.symbols())]) for text in SENTENCES for s in front_end(text)
        ]
        self.target = F.normalize(self._embed(held_back).mean(0, keepdim=True), dim=-1)

    @torch.no_grad()
    def _embed(self, mels: list[Tensor]) -> Tensor:
        frames = torch.tensor([m.shape[1] for m in mels])
        padded = nn.utils.rnn.pad_sequence([m.T for m in mels], batch_first=True)
        return self.verifier(padded.transpose(1, 2), frames)

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
        equaliser = np.zeros(0, np.float32)
        if self.average.size:
            own = torch.cat([loud_average(mel[None]) for mel in mels]).mean(0)
            equaliser = equaliser_for(self.average, own.numpy())
            mels = [mel + torch.from_numpy(equaliser)[:, None] for mel in mels]
        score = self.verifier.score(self._embed(mels), self.target).mean()
        return Verdict(float(score), float(np.concatenate(clear).mean()), equaliser)
