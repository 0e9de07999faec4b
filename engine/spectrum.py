"""The spectrum a person speaks with on average: what a clone's mel is equalised to.

An embedding tells a generator who speaks, but hardly the colour of a voice it never heard. That is
simple to measure: the mean log-mel of a recording's loud frames, against the one with which the
generator speaks for that embedding. `spectrum.safetensors` beside the weights holds the latter, a
linear function of the embedding; `clonewave train directions` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from engine import checkpoint
from engine.augment import draw_revoicing
from engine.crops import SpeakerSampler
from engine.data import Store
from engine.errors import WeightsError
from engine.symbols import text_ids
from engine.text import front_end

if TYPE_CHECKING:
    from engine.engine import Engine

FILE = "spectrum.safetensors"
KIND = "spectrum"
LIMIT_BYTES = 1 << 20
DB = float(np.log(10)) / 20  # natural-log magnitude
LOUD = 20 * DB  # frames this far below the loudest count
LOWEST, HIGHEST = -10 * DB, 15 * DB  # a telephone's missing bands are not imitated to the end
SMOOTH = (0.25, 0.75, 1.0, 0.75, 0.25)  # over mel bands
RECORDINGS = 400  # behind the linear function
CROP_S = 3.0
RIDGE = 30.0
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then the boys went home to see their mother.",
    "She had your dark suit in greasy wash water all year; please do not ask me to carry an oily "
    "rag like that.",
)


def loud_average(mel: Tensor, frames: Tensor | None = None) -> Tensor:
    """Mean of the loud frames.

    Args:
        mel: [batch, n_mels, frames], natural log.
        frames: [batch] true lengths; None: all of it.
    Returns:
        [batch, n_mels].
    """
    level = mel.exp().square().sum(1).clamp_min(1e-20).log() / 2
    if frames is not None:
        inside = torch.arange(mel.shape[-1], device=mel.device) < frames[:, None]
        level = level.masked_fill(~inside, float("-inf"))
    loud = (level > level.amax(1, keepdim=True) - LOUD).unsqueeze(1)
    return torch.where(loud, mel, 0.0).sum(-1) / loud.sum(-1)


def equaliser_for(heard: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What to add to a generator's log-mel so that its average becomes that of a recording.

    Smooth over bands, and neither louder nor softer on the whole.

    Args:
        heard: [n_mels], `loud_average` of a person's recordings.
        own: [n_mels], of the generator speaking for that person's embedding.
    Returns:
        float32 [n_mels], natural log, from `LOWEST` to `HIGHEST`.
    """
    weights = np.array(SMOOTH) / sum(SMOOTH)
    half = len(SMOOTH) // 2
    wide = np.pad(np.asarray(heard, np.float64) - own, half, mode="edge")
    change = np.convolve(wide, weights, mode="valid")
    loudness = lambda spectrum: np.log(np.exp(2 * spectrum).sum()) / 2  # noqa: E731
    for _ in range(4):  # the limits change the loudness a little
        change = change + loudness(own) - loudness(own + change)
        change = change.clip(LOWEST, HIGHEST)
    return change.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """`loud_average` of a generator's speech: weight @ embedding + bias.

    Attributes:
        weight: float32 [n_mels, speaker_dim]; bias: float32 [n_mels].
        acoustic: hex sha256 of the generator weights.
    """

    weight: np.ndarray
    bias: np.ndarray
    acoustic: str

    def __call__(self, embedding: np.ndarray) -> np.ndarray:
        """[n_mels] of a speaker embedding [speaker_dim]."""
        return self.weight @ np.asarray(embedding, np.float32) + self.bias

    def save(self, path: Path) -> None:
        """Write one safetensors file, complete or not at all."""
        tensors = {"weight": torch.tensor(self.weight), "bias": torch.tensor(self.bias)}
        own = {"format": "1", "kind": KIND, "acoustic": self.acoustic}
        checkpoint.save_tensors(path, tensors, own)

    @classmethod
    def load(cls, path: Path, acoustic: str, shape: tuple[int, int]) -> Spectrum:
        """Read what `save` wrote.

        Args:
            shape: (n_mels, speaker_dim).
        Raises:
            WeightsError: missing, damaged, or of another generator.
        """
        tensors, metadata = checkpoint.load_tensors(path, limit_bytes=LIMIT_BYTES)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        kind = (metadata.get("kind"), metadata.get("format"))
        if kind != (KIND, "1") or found != {"weight": shape, "bias": shape[:1]}:
            raise WeightsError(
                f"{path}: holds no average spectrum; run `clonewave train directions`"
            )
        if metadata.get("acoustic") != acoustic:
            raise WeightsError(
                f"{path}: belongs to another generator; run `clonewave train directions` again"
            )
        return cls(tensors["weight"].float().numpy(), tensors["bias"].float().numpy(), acoustic)


@torch.no_grad()
def measure(engine: Engine, store: Store, *, progress: bool = False) -> Spectrum:
    """Let many voices of a data set, some of them revoiced and degraded, speak `TEXTS`.

    Ridge regression: as many numbers as voices would follow each of them.
    """
    sampler = SpeakerSampler(store, np.arange(len(store)), engine.config.encoder)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(store))[:RECORDINGS]
    embeddings, averages = [], []
    for index in tqdm(chosen, "average spectra", disable=not progress):
        crop = sampler.crop(int(index), CROP_S, rng, 0.5, draw_revoicing(rng))
        references = [part.to(engine.device) for part in sampler.collate([[crop]])]
        embedding, _ = engine.encoder(*references)
        embeddings.append(embedding[0].cpu().double())
        averages.append(_spoken(engine, embedding).cpu().double())
    x, y = torch.stack(embeddings), torch.stack(averages)
    centred = x - x.mean(0)
    ridge = RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (y - y.mean(0))).T
    bias = y.mean(0) - weight @ x.mean(0)
    return Spectrum(weight.float().numpy(), bias.float().numpy(), engine.acoustic_hash)


def _spoken(engine: Engine, embedding: Tensor) -> Tensor:
    """[n_mels]: the loud average of all `TEXTS` in one voice [1, speaker_dim]."""
    sentences = [s for text in TEXTS for s in front_end(text)]
    ids = [torch.tensor(text_ids(s.symbols()), device=engine.device) for s in sentences]
    lengths = torch.tensor([len(i) for i in ids], device=engine.device)
    made = engine.acoustic.generate(
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), lengths,
        embedding.expand(len(ids), -1), engine.decoder, engine.backend,
    )  # fmt: skip
    frames = made.steps * engine.config.acoustic.reduction_factor
    parts = [mel[:, : int(end)] for mel, end in zip(made.mel, frames, strict=True)]
    return loud_average(torch.cat(parts, dim=1)[None])[0]

