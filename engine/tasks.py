"""What to train: batches, losses and held-out figures of each model.

Every batch is a function of (seed, step) alone: a resumed run is the run that never stopped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from engine import show
from engine.align import Aligned, align
from engine.config import AcousticConfig, EncoderConfig, TrainConfig, VocoderConfig, to_dict
from engine.crops import References, SpeakerSampler
from engine.data import Store, is_held_out
from engine.errors import InputError
from engine.models.acoustic import Acoustic
from engine.models.layers import log_mel
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.vocoder import Vocoder
from engine.symbols import text_ids


class Segments(NamedTuple):
    """samples [batch, samples] and the mel [batch, n_mels, frames] to speak them from."""

    samples: Tensor
    mel: Tensor


class VocoderTask:
    """Negative log-likelihood of random segments of speech given their mel.

    Args:
        mels: by utterance, what a generator made of it (`generated_mels`); training then sees these
            and only these utterances. None: the recordings' own mels.
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
        self, sampler: SpeakerSampler, names: list[str], rng: np.random.Generator, degraded: float
    ) -> References:
        crops = []
        for name in names:
            mine = sampler.by_speaker[name]
            pair = rng.choice(mine, 2, replace=len(mine) < 2)
            crops += [[sampler.crop(i, rng.uniform(1.2, 2.4), rng, degraded)] for i in pair]
        return sampler.collate(crops)

    def batch(self, step: int) -> References:
        rng = np.random.default_rng((self.train.seed, step))
        names = rng.choice(self.training.speakers, self.train.batch_size, replace=False)
        return self._views(self.training, list(names), rng, degraded=0.8)

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


class AcousticBatch(NamedTuple):
    """One batch of aligned utterances; fields as `Acoustic.forward` takes them."""

    text_ids: Tensor
    lengths: Tensor
    mel: Tensor
    frames: Tensor
    path: Tensor
    references: References


class Cloner(nn.Module):
    """Generator and speaker encoder, trained together."""

    def __init__(self, acoustic: AcousticConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.acoustic = Acoustic(acoustic)
        self.encoder = SpeakerEncoder(encoder)


class AcousticTask:
    """Mel, attention path and end of aligned utterances, given other recordings of the speaker.

    The speaker encoder is tuned along ("encoder with fine-tuning" of arXiv:1802.06006).
    """

    kind = "acoustic"

    def __init__(
        self, store: Store, config: AcousticConfig, encoder: EncoderConfig, train: TrainConfig,
        character_probability: float = 0.1,
    ) -> None:  # fmt: skip
        self.store, self.config, self.train = store, config, train
        self.character_probability = character_probability
        self.extra = {"encoder": to_dict(encoder)}
        torch.manual_seed(train.seed)
        self.model = Cloner(config, encoder)
        self.aligned = self._align()
        usable = np.array(sorted(self.aligned), dtype=np.int64)
        held = np.array([is_held_out(store.utterances[i]) for i in usable], dtype=bool)
        self.training, self.held_out = usable[~held], usable[held]
        if len(self.training) < train.batch_size:
            raise InputError(
                f"{len(self.training)} utterances with phoneme durations that fit their text: "
                f"fewer than a batch of {train.batch_size}; see `clonewave corpus`"
            )
        self.sampler = SpeakerSampler(store, np.arange(len(store)), encoder)

    def _align(self) -> dict[int, Aligned]:
        found = {}
        lengths = self.store.lengths() / self.config.audio.sample_rate
        for i, u in enumerate(self.store.utterances):
            if u.durations is None:
                continue
            d = u.durations
            one = align(u.text, d.phonemes, d.frames, d.offset_s, d.frame_s, float(lengths[i]))
            if one is not None and 1.0 < lengths[i] < 12:
                found[i] = one
        return found

    def _chosen(self, step: int) -> np.ndarray:
        """Utterances of similar length: a window in the length order of a random subset."""
        rng = np.random.default_rng((self.train.seed, step))
        size = self.train.batch_size
        pool = rng.choice(self.training, min(12 * size, len(self.training)), replace=False)
        pool = pool[np.argsort(self.store.lengths()[pool], kind="stable")]
        begin = int(rng.integers(0, len(pool) - size + 1))
        return pool[begin : begin + size]

    def batch(self, step: int) -> AcousticBatch:
        rng = np.random.default_rng((self.train.seed, step, 1))
        probability = self.character_probability
        return self.collate(self._chosen(step), rng, probability, degraded=0.6)

    def collate(
        self, indices: np.ndarray, rng: np.random.Generator, characters: float, degraded: float
    ) -> AcousticBatch:
        """Pad utterances and draw cloning samples for their speakers."""
        audio, r = self.config.audio, self.config.reduction_factor
        texts, mels, paths, crops = [], [], [], []
        count = int(rng.integers(1, 4))
        for i in indices:
            symbols, times = self.aligned[i].with_characters(characters, rng)
            samples = torch.from_numpy(self.store.samples(int(i)))
            group = audio.hop_length * r
            samples = F.pad(samples, (0, -len(samples) % group))
            mel = log_mel(samples[None], audio)[0]
            steps = mel.shape[1] // r
            texts.append(torch.tensor(text_ids(symbols)))
            mels.append(mel)
            paths.append(attention_path(times, steps, self.config))
            others = self.sampler.by_speaker[self.store.utterances[i].speaker]
            others = [o for o in others if o != i] or [int(i)]
            crops.append(
                [
                    self.sampler.crop(int(rng.choice(others)), rng.uniform(1.5, 4), rng, degraded)
                    for _ in range(count)
                ]
            )
        pad = lambda parts, value: nn.utils.rnn.pad_sequence(  # noqa: E731
            parts, batch_first=True, padding_value=value
        )
        mel = pad([m.T for m in mels], float(np.log(audio.log_floor))).transpose(1, 2)
        return AcousticBatch(
            pad(texts, 0), torch.tensor([len(t) for t in texts]), mel.contiguous(),
            torch.tensor([m.shape[1] for m in mels]), pad(paths, 0),
            self.sampler.collate(crops),
        )  # fmt: skip

    def loss(self, batch: AcousticBatch) -> tuple[Tensor, dict[str, float]]:
        c = self.config
        speaker, _ = self.model.encoder(*batch.references)
        out = self.model.acoustic(
            batch.text_ids, batch.lengths, batch.mel, batch.frames, batch.path, speaker
        )
        step_counts = batch.frames // c.reduction_factor
        steps = torch.arange(batch.path.shape[1]) < step_counts[:, None]
        frames = (torch.arange(batch.mel.shape[2]) < batch.frames[:, None]).unsqueeze(1)
        count = frames.sum() * c.audio.n_mels * c.audio.mel_std
        l1 = lambda mel: ((mel - batch.mel).abs() * frames).sum() / count  # noqa: E731
        before = F.pad(batch.path, (1, 0))[:, :-1]
        target = (batch.path - before)[steps]
        attention = torch.stack([F.cross_entropy(s[steps], target) for s in out.scores]).mean()
        last = F.one_hot(step_counts - 1, batch.path.shape[1]).float()
        done = F.binary_cross_entropy_with_logits(out.done[steps], last[steps])
        mel, decoder_mel = l1(out.mel), l1(out.decoder_mel)
        loss = mel + decoder_mel + 0.3 * attention + 0.3 * done
        right = (out.scores[0][steps].argmax(-1) == target).float().mean()
        figures = {"mel": mel, "decoder_mel": decoder_mel, "attention": attention, "path": right}
        return loss, {k: float(v.detach()) for k, v in {**figures, "done": done}.items()}

    def validate(self) -> dict[str, float]:
        rows = []
        for begin in range(0, min(len(self.held_out), 48), 8):
            rng = np.random.default_rng(begin)
            rows.append(self.loss(self.collate(self.held_out[begin : begin + 8], rng, 0.0, 0.0))[1])
        return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} if rows else {}

    def show(self, writer: Any, step: int) -> None:
        """Alignments and mels of two held-out utterances, and what they should sound like."""
        chosen = self.held_out[:2]
        if not len(chosen):
            return
        batch = self.collate(chosen, np.random.default_rng(0), 0.0, 0.0)
        show.generation(self.model.acoustic, self.model.encoder, batch, writer, step)
        samples = [self.store.samples(int(i)) for i in chosen]
        show.recordings(samples, self.config.audio.sample_rate, writer, step)


@torch.no_grad()
def generated_mels(task: AcousticTask, count: int, progress: bool) -> dict[int, np.ndarray]:
    """Teacher-forced mels [n_mels, frames] float16 of `count` training utterances, by index.

    What a vocoder meets in use: the generator's mel, smoother than speech, in step with the audio.
    """
    rng = np.random.default_rng(task.train.seed)
    chosen = rng.permutation(task.training)[:count]
    chosen = chosen[np.argsort(task.store.lengths()[chosen], kind="stable")]
    task.model.eval()
    found = {}
    for begin in tqdm(range(0, len(chosen), 8), desc="generated mels", disable=not progress):
        indices = chosen[begin : begin + 8]
        batch = task.collate(indices, np.random.default_rng(begin), 0.0, degraded=0.0)
        speaker, _ = task.model.encoder(*batch.references)
        out = task.model.acoustic(
            batch.text_ids, batch.lengths, batch.mel, batch.frames, batch.path, speaker
        )
        for row, index in enumerate(indices):
            found[int(index)] = out.mel[row, :, : int(batch.frames[row])].numpy().astype(np.float16)
    return found


def attention_path(times: list[float], steps: int, config: AcousticConfig) -> Tensor:
    """Symbol under the middle of each decoder step, rising by at most window - 1 a step.

    Args:
        times: boundaries of the symbols in seconds, len(symbols) + 1.
    Returns:
        [steps] int64.
    """
    middle = (np.arange(steps) + 0.5) / config.decoder_rate
    true = np.searchsorted(np.asarray(times[:-1]), middle, side="right") - 1
    path, at = [], 0
    for symbol in true:
        at = min(max(int(symbol), at), at + config.attention_window - 1)
        path.append(at)
    return torch.tensor(path)
