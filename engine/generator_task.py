"""What to train of the generator: batches, losses and held-out figures.

Every batch is a function of (seed, step) alone: a resumed run is the run that never stopped.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from engine import pitch, show
from engine.align import align_all
from engine.augment import draw_revoicing, revoice
from engine.config import AcousticConfig, EncoderConfig, LossConfig, TrainConfig, to_dict
from engine.crops import References, SpeakerSampler
from engine.data import Store, apart
from engine.models.acoustic import PITCH_HZ, Acoustic, Predicted
from engine.models.layers import log_mel
from engine.models.speaker_encoder import SpeakerEncoder
from engine.symbols import text_ids

ODD_SAMPLE = 0.2  # probability that one of three cloning samples is another person's


class AcousticBatch(NamedTuple):
    """One batch of aligned utterances; fields as `Acoustic.forward` takes them."""

    text_ids: Tensor
    lengths: Tensor
    mel: Tensor
    frames: Tensor
    path: Tensor
    pitch: Tensor  # [batch, frames] Hz, 0 = unvoiced
    references: References  # cloning samples of each speaker
    own: References  # a degraded cut of each utterance itself


class Cloner(nn.Module):
    """Generator and speaker encoder, trained together."""

    def __init__(self, acoustic: AcousticConfig, encoder: EncoderConfig):
        super().__init__()
        self.acoustic = Acoustic(acoustic)
        self.encoder = SpeakerEncoder(encoder)


class AcousticTask:
    """Mel, attention path and end of aligned utterances, given other recordings of the speaker.

    The speaker encoder is tuned along ("encoder with fine-tuning" of arXiv:1802.06006).

    Args:
        losses: weights of everything beyond the distance of mels.
    """

    kind = "acoustic"

    def __init__(
        self, store: Store, config: AcousticConfig, encoder: EncoderConfig, train: TrainConfig,
        character_probability: float = 0.1, losses: LossConfig | None = None,
    ) -> None:  # fmt: skip
        self.store, self.config, self.train = store, config, train
        self.losses = losses or LossConfig()
        self.character_probability = character_probability
        self.extra: dict[str, Any] = {
            "encoder": to_dict(encoder), "losses": to_dict(self.losses)
        }
        torch.manual_seed(train.seed)
        self.model = Cloner(config, encoder)
        self.listener: SpeakerEncoder | None = None
        self.tracks: dict[int, np.ndarray] = {}
        self.aligned = align_all(store, config.audio.sample_rate)
        self.training, self.held_out = apart(store, self.aligned, train.batch_size)
        self.sampler = SpeakerSampler(store, np.arange(len(store)), encoder)

    def start_encoder(self, weights: dict[str, Tensor]) -> None:
        """Begin from these weights; a frozen copy of them is what the voice loss listens with."""
        self.model.encoder.load_state_dict(weights)
        self.listener = copy.deepcopy(self.model.encoder).eval().requires_grad_(False)

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
        return self.collate(self._chosen(step), rng, probability, degraded=0.6, revoiced=True)

    def collate(
        self, indices: np.ndarray, rng: np.random.Generator, characters: float, degraded: float,
        revoiced: bool = False,
    ) -> AcousticBatch:  # fmt: skip
        """Pad utterances and draw cloning samples for their speakers.

        Args:
            revoiced: turn some speakers into others (`augment.revoice`).
        """
        audio, r = self.config.audio, self.config.reduction_factor
        texts, mels, paths, pitches, crops, own = [], [], [], [], [], []
        count = int(rng.integers(1, 4))
        for i in indices:
            factor = draw_revoicing(rng) if revoiced else 1.0
            symbols, times = self.aligned[i].with_characters(characters, rng)
            samples = torch.from_numpy(revoice(self.store.samples(int(i)), factor))
            group = audio.hop_length * r
            samples = F.pad(samples, (0, -len(samples) % group))
            mel = log_mel(samples[None], audio)[0]
            steps = mel.shape[1] // r
            texts.append(torch.tensor(text_ids(symbols)))
            mels.append(mel)
            paths.append(attention_path([t / factor for t in times], steps, self.config))
            track = pitch.revoiced(self._track(int(i)), factor, mel.shape[1])
            pitches.append(torch.from_numpy(track))
            others = self.sampler.by_speaker[self.store.utterances[i].speaker]
            others = [o for o in others if o != i] or [int(i)]
            draw = lambda choice: self.sampler.crop(  # noqa: E731
                choice, rng.uniform(1.5, 4), rng, degraded, factor  # noqa: B023
            )
            crops.append([draw(int(rng.choice(others))) for _ in range(count)])
            if revoiced and count == 3 and rng.random() < ODD_SAMPLE:
                crops[-1][int(rng.integers(3))] = draw(int(rng.integers(len(self.store))))
            own.append([draw(int(i))])
        pad = lambda parts, value: nn.utils.rnn.pad_sequence(  # noqa: E731
            parts, batch_first=True, padding_value=value
        )
        mel = pad([m.T for m in mels], float(np.log(audio.log_floor))).transpose(1, 2)
        return AcousticBatch(
            pad(texts, 0), torch.tensor([len(t) for t in texts]), mel.contiguous(),
            torch.tensor([m.shape[1] for m in mels]), pad(paths, 0), pad(pitches, 0),
            self.sampler.collate(crops), self.sampler.collate(own),
        )  # fmt: skip

    def _track(self, index: int) -> np.ndarray:
        """Pitch of an utterance, found at its first use; silence if the model needs none."""
        if not self.config.pitch:
            return np.zeros(1, np.float32)
        if index not in self.tracks:
            self.tracks[index] = pitch.track(self.store.samples(index), self.config.audio)
        return self.tracks[index]

    def loss(self, batch: AcousticBatch) -> tuple[Tensor, dict[str, float]]:
        weights = self.losses
        speaker, _ = self.model.encoder(*batch.references)
        self_fed = None
        if self.model.training and weights.self_fed:
            self_fed = torch.rand(len(batch.frames)) < weights.self_fed
        out = self.model.acoustic(
            batch.text_ids, batch.lengths, batch.mel, batch.frames, batch.path, speaker, self_fed,
            batch.pitch,
        )  # fmt: skip
        loss, figures = self._distances(out, batch)
        if weights.voice and self.listener is not None:
            figures["voice"] = self._voice(self.listener, out.mel, batch)
            loss = loss + weights.voice * figures["voice"]
        if weights.contrast:
            figures["contrast"] = self._contrast(speaker, batch)
            loss = loss + weights.contrast * figures["contrast"]
        if out.pitch is not None:
            figures["pitch"] = pitch_loss(out.pitch, batch.pitch, batch.frames)
            loss = loss + weights.pitch * figures["pitch"]
        return loss, {k: float(v.detach()) for k, v in figures.items()}

    def _distances(
        self, out: Predicted, batch: AcousticBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 of both mels, cross-entropy of the path and of the end."""
        c = self.config
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
        loss = mel + decoder_mel + self.losses.attention * attention + 0.3 * done
        right = (out.scores[0][steps].argmax(-1) == target).float().mean()
        figures = {"mel": mel, "decoder_mel": decoder_mel, "attention": attention, "path": right}
        return loss, {**figures, "done": done}

    def _voice(self, listener: SpeakerEncoder, mel: Tensor, batch: AcousticBatch) -> Tensor:
        """1 - cosine of what the frozen encoder hears in the generated and in the true mel."""
        hear = lambda m: listener.out(listener.pool(m, batch.frames)).float()  # noqa: E731
        return 1 - F.cosine_similarity(hear(mel), hear(batch.mel), dim=-1).mean()

    def _contrast(self, speaker: Tensor, batch: AcousticBatch) -> Tensor:
        """Embeddings stay apart: those of one speaker must find each other in the batch."""
        own, _ = self.model.encoder(*batch.own)
        logits = 10 * F.normalize(speaker, dim=-1) @ F.normalize(own, dim=-1).T
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

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
    """Self-fed mels [n_mels, frames] float16 of `count` training utterances, by index.

    What a vocoder meets in use: the generator's mel, smoother than speech, in step with the audio
    and at its pitch.
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
            batch.text_ids, batch.lengths, batch.mel, batch.frames, batch.path, speaker,
            torch.ones(len(indices), dtype=torch.bool), batch.pitch,
        )  # fmt: skip
        for row, index in enumerate(indices):
            found[int(index)] = out.mel[row, :, : int(batch.frames[row])].numpy().astype(np.float16)
    return found


def pitch_loss(expected: Tensor, true: Tensor, frames: Tensor) -> Tensor:
    """Distance in octaves where there is a voice, and cross-entropy of there being one.

    Args:
        expected: [batch, 2, frames], octaves over PITCH_HZ and log-odds of a voice.
        true: [batch, frames] Hz, 0 = unvoiced; frames: [batch].
    """
    inside = torch.arange(true.shape[1]) < frames[:, None]
    voiced = true > 0
    octaves = torch.log2(torch.where(voiced, true, PITCH_HZ) / PITCH_HZ)
    far = ((expected[:, 0] - octaves).abs() * voiced).sum() / voiced.sum().clamp_min(1)
    unsure = F.binary_cross_entropy_with_logits(expected[:, 1][inside], voiced[inside].float())
    return far + 0.2 * unsure


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
