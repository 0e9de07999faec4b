"""Recordings of a person -> Voice, by the four methods of arXiv:1802.06006 (section 3)."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from engine import audio
from engine.audio import AudioSource, CloningSample
from engine.errors import InputError
from engine.models.layers import log_mel
from engine.sample_weights import agreement, clearness
from engine.spectrum import equaliser_for, loud_average
from engine.voice import Voice

if TYPE_CHECKING:
    from engine.engine import Engine

METHODS = ("encode", "encode-finetuned", "adapt-embedding", "adapt-model")
MAX_SAMPLES = 64
DOUBTFUL = 0.3  # of an equal share: adaptation does not fit a sample of less weight

Transcript = str | Sequence[str] | None


def clone(
    engine: Engine,
    wav: AudioSource | Sequence[AudioSource],
    sample_rate: int | None = None,
    *,
    method: str = "encode",
    transcript: Transcript = None,
    name: str | None = None,
    consent: str | None = None,
    budget_s: float | None = None,
    on_look: Callable[..., bool | None] | None = None,
    progress: bool = False,
) -> Voice:
    """A Voice from one recording or several of the same person.

    Args:
        wav: path, binary file object, float or int16 array or tensor, or a list of these.
        sample_rate: Hz; required for arrays and tensors.
        method: "encode": the speaker encoder, milliseconds, no transcript. "encode-finetuned": the
            same, and an error unless the encoder was tuned together with the generator.
            "adapt-embedding", "adapt-model": gradient steps on the embedding, or on it and a small
            weight difference, within `budget_s`; 3 s of speech or more, in any language.
        transcript: for adaptation, what is said, in English; a list of texts for a list of
            recordings. None: the phones are heard by the model's own recogniser.
        name: label kept in the voice's metadata.
        consent: statement of the speaker's consent, kept in the voice's metadata.
        budget_s: seconds that adaptation may take; None: 60 for the embedding, 300 for the model.
        on_look: called with an `adapt.Look` at every look at held-back speech; returning False
            ends adaptation with the best voice so far, as Ctrl-C does.
        progress: show a progress bar while adapting.
    Raises:
        InputError: audio or a transcript that cannot be used (which, why, what to do), an unknown
            method, or one that these weights do not offer.
        EngineError: adaptation without the package that finds the pitch (extra `adapt`).
        WeightsError: adaptation with weights that came without a recogniser.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; use one of {list(METHODS)}")
    if method == "encode-finetuned" and not engine.encoder_tuned:
        raise InputError(
            "the encoder of these weights was not tuned with their generator; use method 'encode'"
        )
    sources = list(wav) if isinstance(wav, (list, tuple)) else [cast(AudioSource, wav)]
    if not 1 <= len(sources) <= MAX_SAMPLES:
        raise InputError(f"{len(sources)} cloning samples; give 1 to {MAX_SAMPLES}")
    adapting = method.startswith("adapt-")
    texts = _texts(transcript, len(sources))
    config = engine.config.encoder
    samples = [audio.prepare(s, sample_rate, config=config.audio) for s in sources]
    mels = [_mel(sample.samples, engine) for sample in samples]
    embedding, weights = encode(engine, mels, trust(engine, samples))
    metadata = provenance(method, samples)
    metadata |= {"name": name} if name else {}
    metadata |= {"consent": consent} if consent else {}
    average = weights @ torch.cat([loud_average(mel[None]) for mel in mels]).cpu().numpy()
    equaliser = equalised(engine, embedding, average)
    difference: dict[str, np.ndarray] = {}
    if adapting:
        from engine.adapt import adapt  # here: it needs the training code, encoding does not

        used = [i for i, w in enumerate(weights) if w * len(weights) >= DOUBTFUL]
        found = adapt(
            engine, [samples[i].samples for i in used],
            [texts[i] for i in used], embedding, equaliser, average,
            method=method, budget_s=budget_s, on_look=on_look, progress=progress,
        )  # fmt: skip
        embedding, equaliser, difference = found.embedding, found.equaliser, found.difference
        metadata |= found.metadata()
    return Voice(
        embedding, tuple(weights.tolist()), engine.encoder_hash, metadata, engine.acoustic_hash,
        difference, equaliser,
    )  # fmt: skip


def provenance(method: str, samples: Sequence[CloningSample]) -> dict[str, str]:
    """What a voice's metadata say of how it was made."""
    return {
        "method": method,
        "seconds": f"{sum(s.seconds for s in samples):.2f}",
        "snr_db": ",".join(f"{s.snr_db:.0f}" for s in samples),
        "created": datetime.date.today().isoformat(),
    }


def equalised(engine: Engine, embedding: np.ndarray, average: np.ndarray) -> np.ndarray:
    """The equaliser of a voice [n_mels]; [0] numbers if the engine's own average is not known.

    Args:
        average: `loud_average` of the cloning samples, by their weights: [n_mels].
    """
    if engine.spectrum is None:
        return np.zeros(0, np.float32)
    return equaliser_for(average, engine.spectrum(embedding))


def _texts(transcript: Transcript, count: int) -> list[str | None]:
    """One text a recording; None where none is given."""
    if transcript is None:
        return [None] * count
    texts = [transcript] if isinstance(transcript, str) else list(transcript)
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{count} recordings, {len(texts)} transcripts; give one text for each")
    return [*texts]


def _mel(samples: np.ndarray, engine: Engine) -> torch.Tensor:
    audio_config = engine.config.encoder.audio
    whole = len(samples) // audio_config.hop_length * audio_config.hop_length
    tensor = torch.from_numpy(samples[:whole]).to(engine.device)
    return log_mel(tensor[None], audio_config, engine.backend)[0]


def trust(engine: Engine, samples: Sequence[CloningSample]) -> np.ndarray:
    """[samples] factors on the attention weights; see sample_weights.py."""
    found = clearness([sample.snr_db for sample in samples])
    if len(samples) > 2 and engine.verifier is not None:
        mels = [_mel(sample.samples, engine) for sample in samples]
        found = found * agreement(engine.verifier, mels)
    return found


@torch.no_grad()
def encode(
    engine: Engine, mels: Sequence[torch.Tensor], trust: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Speaker embedding [speaker_dim] and attention weights of cloning samples [n_mels, frames].

    Args:
        trust: [samples] factors > 0 on the attention weights; None: ones.
    """
    frames = torch.tensor([[m.shape[1] for m in mels]], device=engine.device)
    padded = torch.zeros(1, len(mels), mels[0].shape[0], int(frames.max()), device=engine.device)
    for i, mel in enumerate(mels):
        padded[0, i, :, : mel.shape[1]] = mel
    present = torch.ones(1, len(mels), dtype=torch.bool, device=engine.device)
    factors = None if trust is None else torch.tensor(trust[None], device=engine.device).float()
    embedding, weights = engine.encoder(padded, frames, present, factors)
    return embedding[0].cpu().numpy(), weights[0].cpu().numpy()
