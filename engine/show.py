"""What a training run shows of held-out data in TensorBoard; the figures are in `plots.py`.

Models are in eval mode and no gradients are wanted. Nothing here draws from torch's random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import plots
from engine.crops import References
from engine.models.acoustic import Acoustic
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.vocoder import Vocoder, VocoderStream
from engine.symbols import SYMBOLS

if TYPE_CHECKING:
    from engine.generator_task import AcousticBatch

CUT_S = 1.5  # of copy synthesis


def copy_synthesis(
    model: Vocoder, recordings: Sequence[np.ndarray], writer: Any, step: int
) -> None:
    """Audio and mel of recordings [samples] made again from their own mel."""
    audio = model.config.audio
    network = model.network()
    wanted = int(CUT_S * audio.frame_rate) * audio.hop_length
    for number, recording in enumerate(recordings):
        samples = torch.from_numpy(recording[: min(wanted, len(recording))])
        samples = samples[: len(samples) // audio.hop_length * audio.hop_length]
        mel = model.mel(samples[None])
        copied = VocoderStream(model, network, mel, seed=number).next(mel.shape[-1])
        assert copied is not None
        for name, one in (("recorded", samples), ("copy synthesis", copied)):
            writer.add_audio(f"{number}/{name}", one[None], step, sample_rate=audio.sample_rate)
        pair = {"recorded": mel, "copy synthesis": model.mel(copied[None])}
        figure = plots.mels({name: m[0].numpy() for name, m in pair.items()})
        writer.add_figure(f"{number}/mel", figure, step)


def generation(
    model: Acoustic, encoder: SpeakerEncoder, batch: AcousticBatch, writer: Any, step: int
) -> None:
    """Mels and attention paths of a batch: true, teacher-forced and free-running."""
    speaker, _ = encoder(*batch.references)
    forced = model(batch.text_ids, batch.lengths, batch.mel, batch.frames, batch.path, speaker)
    free = model.generate(batch.text_ids, batch.lengths, speaker)
    chosen = F.pad(batch.path, (1, 0))[:, :-1] + forced.scores[0].argmax(-1)
    r = model.config.reduction_factor
    lengths = zip(batch.frames.tolist(), free.steps.tolist(), strict=True)
    for i, (frames, steps) in enumerate(lengths):
        symbols = [SYMBOLS[n] for n in batch.text_ids[i, : batch.lengths[i]]]
        paths = {
            "true": batch.path[i, : frames // r], "teacher-forced": chosen[i, : frames // r],
            "free-running": free.path[i, :steps],
        }  # fmt: skip
        figure = plots.alignment(symbols, {name: path.numpy() for name, path in paths.items()})
        writer.add_figure(f"{i}/alignment", figure, step)
        mels = {
            "recorded": batch.mel[i, :, :frames], "teacher-forced": forced.mel[i, :, :frames],
            "free-running": free.mel[i, :, : steps * r],
        }  # fmt: skip
        figure = plots.mels({name: mel.numpy() for name, mel in mels.items()})
        writer.add_figure(f"{i}/mel", figure, step)


def recordings(samples: Sequence[np.ndarray], sample_rate: int, writer: Any, step: int) -> None:
    """What the mels of `generation` should sound like."""
    for number, one in enumerate(samples):
        tensor = torch.from_numpy(one)[None]
        writer.add_audio(f"{number}/recorded", tensor, step, sample_rate=sample_rate)


def voice_map(
    encoder: SpeakerEncoder, references: References, names: Sequence[str], writer: Any, step: int
) -> None:
    """Two-dimensional map of embeddings; a speaker's points should lie together."""
    embedding: Tensor = encoder(*references)[0]
    writer.add_figure("voices", plots.voices(plots.principal(embedding.numpy()), names), step)
