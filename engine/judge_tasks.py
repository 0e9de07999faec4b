"""Training of the paper's judges: speaker verification and classification (appendix C).

Every batch is a function of (seed, step) alone, as in `tasks.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import (
    ClassifierConfig,
    EncoderConfig,
    TrainConfig,
    VerifierConfig,
    from_dict,
)
from engine.crops import SpeakerSampler
from engine.data import Store, is_held_out
from engine.errors import InputError
from engine.models.verifier import SpeakerClassifier, SpeakerVerifier
from engine.tasks import equal_error_rate

SECONDS = (1.2, 3.2)  # of a crop
DEGRADED = 0.5  # share of crops that go through a random channel


class Crops(NamedTuple):
    """mel [batch, n_mels, frames], true frames [batch], speaker index [batch]."""

    mel: Tensor
    frames: Tensor
    speaker: Tensor


def _crops(
    sampler: SpeakerSampler, utterances: list[int], names: dict[str, int],
    rng: np.random.Generator, degraded: float,
) -> Crops:  # fmt: skip
    cut = [[sampler.crop(i, rng.uniform(*SECONDS), rng, degraded)] for i in utterances]
    mel, frames, _ = sampler.collate(cut)
    who = [names[sampler.store.utterances[i].speaker] for i in utterances]
    return Crops(mel[:, 0], frames[:, 0], torch.tensor(who))


class VerifierTask:
    """Two crops of each speaker of a batch must find each other; a twentieth is held out.

    Cross-entropy of the score's sigmoid over all pairs of the batch, as in the paper, same and
    different pairs weighing alike, and of its softmax over the batch, which learns faster.
    """

    kind = "verifier"

    def __init__(self, store: Store, config: VerifierConfig, train: TrainConfig) -> None:
        self.config, self.train = config, train
        self.extra: dict[str, Any] = {}
        torch.manual_seed(train.seed)
        self.model = SpeakerVerifier(config)
        speakers = sorted({u.speaker for u in store.utterances})
        self.names = {name: i for i, name in enumerate(speakers)}
        unseen = set(speakers[::20])
        is_unseen = np.array([u.speaker in unseen for u in store.utterances])
        everyone = np.arange(len(store))
        crops = EncoderConfig(audio=config.audio)
        self.training = SpeakerSampler(store, everyone[~is_unseen], crops)
        self.held_out = SpeakerSampler(store, everyone[is_unseen], crops)
        if len(self.training.speakers) < train.batch_size or len(self.held_out.speakers) < 2:
            raise InputError(
                f"{len(speakers)} speakers, of which a twentieth is held out: too few for a batch "
                f"of {train.batch_size}; add data or lower batch_size"
            )

    def _pairs(
        self, sampler: SpeakerSampler, names: list[str], rng: np.random.Generator, degraded: float
    ) -> Crops:
        chosen: list[int] = []
        for name in names:
            mine = sampler.by_speaker[name]
            chosen += [int(i) for i in rng.choice(mine, 2, replace=len(mine) < 2)]
        return _crops(sampler, chosen, self.names, rng, degraded)

    def batch(self, step: int) -> Crops:
        rng = np.random.default_rng((self.train.seed, step))
        names = rng.choice(self.training.speakers, self.train.batch_size, replace=False)
        return self._pairs(self.training, list(names), rng, DEGRADED)

    def _scores(self, batch: Crops) -> Tensor:
        embedded = self.model(batch.mel, batch.frames)
        return self.model.score(embedded[::2], embedded[1::2])

    def loss(self, batch: Crops) -> tuple[Tensor, dict[str, float]]:
        scores = self._scores(batch)
        same = torch.eye(len(scores))
        pairs = F.binary_cross_entropy_with_logits(
            scores, same, pos_weight=torch.tensor(len(scores) - 1.0)
        ) / 2  # fmt: skip
        target = torch.arange(len(scores))
        found = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        right = (scores.argmax(1) == target).float().mean()
        return pairs + found, {"loss": float((pairs + found).detach()), "accuracy": float(right)}

    def validate(self) -> dict[str, float]:
        """Retrieval and equal error rate among held-out speakers, half through a channel."""
        rng = np.random.default_rng(2)
        scores = self._scores(
            self._pairs(self.held_out, self.held_out.speakers[:100], rng, DEGRADED)
        )
        other = scores[~torch.eye(len(scores), dtype=torch.bool)]
        right = (scores.argmax(1) == torch.arange(len(scores))).float().mean()
        rate = equal_error_rate(scores.diagonal(), other)
        return {"accuracy": float(right), "equal_error_rate": rate}

    def show(self, writer: Any, step: int) -> None:
        """Nothing to see beside the figures."""


class ClassifierTask:
    """Name the speaker of a crop.

    Args:
        held_out: share of the recordings kept for validation.
    """

    kind = "classifier"

    def __init__(
        self, store: Store, config: ClassifierConfig, train: TrainConfig, held_out: float = 0.1
    ) -> None:
        self.train = train
        speakers = sorted({u.speaker for u in store.utterances})
        if config.speakers != len(speakers):
            raise InputError(f"{len(speakers)} speakers in the data, config: {config.speakers}")
        self.config, self.names = config, {name: i for i, name in enumerate(speakers)}
        self.extra: dict[str, Any] = {"speakers": speakers}
        torch.manual_seed(train.seed)
        self.model = SpeakerClassifier(config)
        held = np.array([is_held_out(u, held_out) for u in store.utterances])
        everyone = np.arange(len(store))
        crops = EncoderConfig(audio=config.audio)
        self.training = SpeakerSampler(store, everyone[~held], crops)
        self.held_out = SpeakerSampler(store, everyone[held], crops)
        if len(self.training.speakers) < max(2, len(speakers)):
            raise InputError("every speaker needs a recording to train on; add data")

    def batch(self, step: int) -> Crops:
        rng = np.random.default_rng((self.train.seed, step))
        names = rng.choice(self.training.speakers, self.train.batch_size)
        chosen = [int(rng.choice(self.training.by_speaker[name])) for name in names]
        return _crops(self.training, chosen, self.names, rng, DEGRADED)

    def loss(self, batch: Crops) -> tuple[Tensor, dict[str, float]]:
        logits = self.model(batch.mel, batch.frames)
        loss = F.cross_entropy(logits, batch.speaker)
        right = (logits.argmax(1) == batch.speaker).float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(right)}

    def validate(self) -> dict[str, float]:
        """Accuracy on held-out recordings; nothing where none is held out."""
        chosen = [i for mine in self.held_out.by_speaker.values() for i in mine][:512]
        if not chosen:
            return {}
        batch = _crops(self.held_out, chosen, self.names, np.random.default_rng(2), 0.0)
        return {"accuracy": self.loss(batch)[1]["accuracy"]}

    def show(self, writer: Any, step: int) -> None:
        """Nothing to see beside the figures."""


def judge_task(
    what: str, store: Store, values: dict[str, Any], train: TrainConfig
) -> VerifierTask | ClassifierTask:
    """The task of `clonewave train verifier|classifier`."""
    if what == "verifier":
        return VerifierTask(store, from_dict(VerifierConfig, values), train)
    values = values | {"speakers": len({u.speaker for u in store.utterances})}
    return ClassifierTask(store, from_dict(ClassifierConfig, values), train)
