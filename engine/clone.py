"""Recordings of a person -> Voice, by speaker encoding (arXiv:1802.06006, section 3.3)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from engine import audio
from engine.audio import AudioSource
from engine.errors import EngineError, InputError
from engine.models.layers import log_mel
from engine.voice import Voice

if TYPE_CHECKING:
    from engine.engine import Engine

METHODS = ("encode",)
PLANNED = ("encode-finetuned", "adapt-embedding", "adapt-model")
MAX_SAMPLES = 64


def clone(
    engine: Engine,
    wav: AudioSource | Sequence[AudioSource],
    sample_rate: int | None = None,
    *,
    method: str = "encode",
    name: str | None = None,
    consent: str | None = None,
) -> Voice:
    """A Voice from one recording or several of the same person.

    Args:
        wav: path, binary file object, float or int16 array or tensor, or a list of these.
        sample_rate: Hz; required for arrays and tensors.
        method: "encode": the speaker encoder, milliseconds, no transcript.
        name: label kept in the voice's metadata.
        consent: statement of the speaker's consent, kept in the voice's metadata.
    Raises:
        InputError: audio that cannot be used (which, why, what to do), or an unknown method.
        EngineError: a method that is not built yet.
    """
    if method in PLANNED:
        raise EngineError(f"method {method!r} is not built yet; use one of {list(METHODS)}")
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; use one of {list(METHODS)}")
    sources = list(wav) if isinstance(wav, (list, tuple)) else [cast(AudioSource, wav)]
    if not 1 <= len(sources) <= MAX_SAMPLES:
        raise InputError(f"{len(sources)} cloning samples; give 1 to {MAX_SAMPLES}")
    config = engine.config.encoder
    samples = [audio.prepare(s, sample_rate, config=config.audio) for s in sources]
    mels = [_mel(sample.samples, engine) for sample in samples]
    embedding, weights = encode(engine, mels)
    metadata = {
        "method": method,
        "seconds": f"{sum(s.seconds for s in samples):.2f}",
        "snr_db": ",".join(f"{s.snr_db:.0f}" for s in samples),
        "created": datetime.date.today().isoformat(),
    }
    metadata |= {"name": name} if name else {}
    metadata |= {"consent": consent} if consent else {}
    return Voice(embedding, tuple(weights.tolist()), engine.encoder_hash, metadata)


def _mel(samples: np.ndarray, engine: Engine) -> torch.Tensor:
    audio_config = engine.config.encoder.audio
    whole = len(samples) // audio_config.hop_length * audio_config.hop_length
    tensor = torch.from_numpy(samples[:whole]).to(engine.device)
    return log_mel(tensor[None], audio_config, engine.backend)[0]


@torch.no_grad()
def encode(engine: Engine, mels: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Speaker embedding [speaker_dim] and attention weights of cloning samples [n_mels, frames]."""
    frames = torch.tensor([[m.shape[1] for m in mels]], device=engine.device)
    padded = torch.zeros(1, len(mels), mels[0].shape[0], int(frames.max()), device=engine.device)
    for i, mel in enumerate(mels):
        padded[0, i, :, : mel.shape[1]] = mel
    present = torch.ones(1, len(mels), dtype=torch.bool, device=engine.device)
    embedding, weights = engine.encoder(padded, frames, present)
    return embedding[0].cpu().numpy(), weights[0].cpu().numpy()
