"""What to train: batches, losses and held-out figures of vocoder and speaker encoder.

The generator's are in `generator_task.py`. Every batch is a function of (seed, step) alone: a
resumed run is the run that never stopped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import show
from engine.augment import draw_revoicing
from engine.config import EncoderConfig, TrainConfig, VocoderConfig
from engine.crops import References, SpeakerSampler
from engine.data import Store, is_held_out
from engine.errors import InputError
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.vocoder import Vocoder

GENERATED_SHARE = 0.7


class Segments(NamedTuple):
    """samples [batch, samples] and the mel [batch, n_mels, frames] to speak them from."""

    samples: Tensor
    mel: Tensor


class VocoderTask:
    """Negative log-likelihood of random segments of speech given their mel.

    Args:
        mels: by utterance, what a generator made of it (`generated_mels`); training then sees only
            these utterances, most often with these mels. None: the recordings' own mels.
    """

    kind = "vocoder"

    def __init__(
        self,
        store: Store,
        config: VocoderConfig,
        train: TrainConfig,
        segment_frames: int = 60,
        mels: dict[int, np.ndarray] | None = None,
    ) -> None:
        self.store, self.config, self.train, self.mels = store, config, train, mels
        self.frames = segment_frames
        # the mel's first and last frames would see reflected audio: computed wider and dropped
        self.margin = 4
        self.extra: dict[str, Any] = {}
        torch.manual_seed(train.seed)
        self.model = Vocoder(config)
        lengths = store.lengths()
        wide = (self.frames + 2 * self.margin) * config.audio.hop_length
        usable = lengths > wide
        held = np.array([is_held_out(u) for u in store.utterances])
        self.held_out = np.flatnonzero(usable & held)
        if mels is not None:
            usable &= np.isin(np.arange(len(store)), list(mels))
        self.training = np.flatnonzero(usable & ~held)
        if not len(self.training):
            shortest = wide / config.audio.sample_rate
            raise InputError(f"no utterance of {shortest:.1f} s or more; add data")

    def _cut(self, index: int, rng: np.random.Generator, gain: float) -> tuple[Tensor, Tensor]:
        """Samples and mel of a random segment, the samples scaled by `gain`."""
        hop, frames = self.config.audio.hop_length, self.frames
        made = None if self.mels is None else self.mels.get(index)
        if made is not None and rng.random() > GENERATED_SHARE:
            made = None
        wide = frames + 2 * self.margin
        begin = int(rng.integers(0, int(self.store.lengths()[index]) // hop - wide + 1))
        samples = self.store.samples(index, begin * hop, (begin + wide) * hop)
        tensor = torch.from_numpy(samples) * gain
        inner = slice(self.margin, self.margin + frames)
        if made is None:
            mel = self.model.mel(tensor[None])[0, :, inner]
        else:
            cut = made[:, begin + inner.start : begin + inner.stop].astype(np.float32)
            mel = torch.from_numpy(cut) + float(np.log(gain))
        return tensor[inner.start * hop : inner.stop * hop], mel

    def _stack(self, cuts: list[tuple[Tensor, Tensor]]) -> Segments:
        return Segments(torch.stack([c[0] for c in cuts]), torch.stack([c[1] for c in cuts]))

    def batch(self, step: int) -> Segments:
        rng = np.random.default_rng((self.train.seed, step))
        lengths = self.store.lengths()[self.training].astype(np.float64)
        chosen = rng.choice(self.training, self.train.batch_size, p=lengths / lengths.sum())
        gains = 10 ** (rng.uniform(-9, 3, self.train.batch_size) / 20)
        return self._stack([self._cut(int(i), rng, g) for i, g in zip(chosen, gains, strict=True)])

    def loss(self, batch: Segments) -> tuple[Tensor, dict[str, float]]:
        loss = self.model.loss(*batch)
        return loss, {"nll": float(loss.detach())}

    def validate(self) -> dict[str, float]:
        rng = np.random.default_rng(1)
        total = []
        for index in self.held_out[:48:4]:
            cuts = [self._cut(int(index), rng, 1.0) for _ in range(2)]
            total.append(float(self.loss(self._stack(cuts))[0]))
        return {"nll": float(np.mean(total))} if total else {}

    def show(self, writer: Any, step: int) -> None:
        """Copy synthesis of two held-out recordings."""
        recordings = [self.store.samples(int(i)) for i in self.held_out[:2]]
        show.copy_synthesis(self.model, recordings, writer, step)


class _Contrast(nn.Module):
    """Speaker encoder and the temperature of its contrastive loss."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = SpeakerEncoder(config)
        self.log_scale = nn.Parameter(torch.tensor(2.3))


class EncoderTask:
    """Tell speakers apart: two views of each speaker of a batch must find each other.

    A symmetric in-batch contrastive loss over crops of (where there are) different recordings, each
    through its own random channel. The paper regresses embeddings that its generator learned; with
    two utterances a speaker those embeddings memorise, so here the encoder comes first and the
    generator is trained on what it gives (`AcousticTask`, which tunes both).
    """

    kind = "encoder"

    def __init__(self, store: Store, config: EncoderConfig, train: TrainConfig) -> None:
        self.config, self.train = config, train
        self.extra: dict[str, Any] = {}
        torch.manual_seed(train.seed)
        self.model = _Contrast(config)
        speakers = sorted({u.speaker for u in store.utterances})
        unseen = set(speakers[::20])  # held-out speakers: the figure that matters
        everyone = np.arange(len(store))
        is_unseen = np.array([u.speaker in unseen for u in store.utterances])
        self.training = SpeakerSampler(store, everyone[~is_unseen], config)
        self.held_out = SpeakerSampler(store, everyone[is_unseen], config)
        if len(self.training.speakers) < train.batch_size or len(self.held_out.speakers) < 2:
            raise InputError(
                f"{len(speakers)} speakers, of which a twentieth is held out: too few for two of "
                f"those and a batch of {train.batch_size}; add data or lower batch_size"
            )

    def _views(
        self, sampler: SpeakerSampler, names: list[str], rng: np.random.Generator,
        degraded: float, revoiced: bool = False,
    ) -> References:  # fmt: skip
        crops = []
        for name in names:
            mine = sampler.by_speaker[name]
            pair = rng.choice(mine, 2, replace=len(mine) < 2)
            factor = draw_revoicing(rng) if revoiced else 1.0
            crops += [[sampler.crop(i, rng.uniform(1.2, 2.4), rng, degraded, factor)] for i in pair]
        return sampler.collate(crops)

    def batch(self, step: int) -> References:
        rng = np.random.default_rng((self.train.seed, step))
        names = rng.choice(self.training.speakers, self.train.batch_size, replace=False)
        return self._views(self.training, list(names), rng, degraded=0.8, revoiced=True)

    def _similarity(self, batch: References) -> Tensor:
        embedding = F.normalize(self.model.encoder(*batch)[0], dim=-1)
        return embedding[::2] @ embedding[1::2].T

    def loss(self, batch: References) -> tuple[Tensor, dict[str, float]]:
        logits = self._similarity(batch) * self.model.log_scale.exp().clamp_max(50)
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = (logits.argmax(1) == target).float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(right)}

    def validate(self) -> dict[str, float]:
        """Retrieval among held-out speakers and equal error rate over all pairs of them."""
        rng = np.random.default_rng(2)
        similarity = self._similarity(
            self._views(self.held_out, self.held_out.speakers[:100], rng, degraded=0.5)
        )
        same = similarity.diagonal()
        other = similarity[~torch.eye(len(similarity), dtype=torch.bool)]
        right = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean()
        return {"accuracy": float(right), "equal_error_rate": equal_error_rate(same, other)}

    def show(self, writer: Any, step: int) -> None:
        """Map of held-out speakers' embeddings, a few crops of each."""
        names = self.held_out.speakers[:12]
        rng = np.random.default_rng(3)
        crops = [
            [self.held_out.crop(int(rng.choice(self.held_out.by_speaker[name])), 2.0, rng, 0.5)]
            for name in names
            for _ in range(6)
        ]
        references = self.held_out.collate(crops)
        show.voice_map(self.model.encoder, references, np.repeat(names, 6).tolist(), writer, step)


def equal_error_rate(same: Tensor, other: Tensor) -> float:
    """Where as many pairs of one speaker are refused as pairs of two are accepted."""
    thresholds = torch.cat([same, other]).sort().values
    refused = torch.searchsorted(same.sort().values, thresholds) / len(same)
    accepted = 1 - torch.searchsorted(other.sort().values, thresholds) / len(other)
    at = (refused - accepted).abs().argmin()
    return float((refused[at] + accepted[at]) / 2)
