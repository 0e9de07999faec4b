"""A cloning sample as the generator's training pass takes it: what is said, when, and how high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import pitch
from engine.config import AcousticConfig
from engine.generator_task import attention_path
from engine.hear import hear
from engine.models.layers import log_mel
from engine.models.recogniser import PhoneRecogniser
from engine.symbols import text_ids
from engine.text import front_end

if TYPE_CHECKING:
    from engine.engine import Engine

HELD_BACK = 0.3  # share of the speech that only the metric hears
HELD_BACK_S = 1.0  # at least so much of it
KEPT = (
    "A cool breeze from the sea kept the young fishermen awake until morning.",
    "Which of the two yellow boxes holds the measuring cups and the thin wire?",
    "They judged the garden show on Thursday, then chose a large blue vase.",
    "The boy thought he would rather walk home than wait for another bus.",
    "Please put the fresh bread on the shelf above the oven before you go out.",
    "Our neighbour has usually cleared the path by the time the children leave for school.",
    "Nothing could have been further from what the captain was hoping to hear.",
    "He was quick to point out that the view changed with every mile of road.",
)
QUIET = 0.25  # of the frames of a band, the softest, are noise


class Spoken(NamedTuple):
    """One cloning sample, ready for a teacher-forced pass of the generator."""

    text_ids: Tensor  # [1, symbols]
    mel: Tensor  # [1, n_mels, frames], frames a multiple of reduction_factor
    path: Tensor  # [1, decoder_steps] attended symbol
    pitch: Tensor | None  # [1, frames] Hz, 0 = unvoiced; None: what the voice expects
    noise: Tensor  # [1, n_mels, 1] log-mel of what is heard beside the speech

    def without(self, equaliser: Tensor) -> Spoken:
        """Less the colour [n_mels] that the voice's equaliser will add again."""
        change = equaliser[:, None]
        return self._replace(mel=self.mel - change, noise=self.noise - change)


def prepare(
    engine: Engine, recogniser: PhoneRecogniser, samples: np.ndarray, transcript: str | None
) -> Spoken:
    """Find out what is said in a cloning sample, when, and at what pitch.

    Args:
        samples: float32 [samples] at the model's rate, pauses cut.
        transcript: its words; None: its phones are heard by the recogniser.
    Raises:
        InputError: a transcript that does not fit, or nothing heard.
        EngineError: the package that finds the pitch is not installed.
    """
    config = engine.config.acoustic
    group = config.audio.hop_length * config.reduction_factor
    samples = np.pad(samples, (0, -len(samples) % group))
    mel = log_mel(torch.from_numpy(samples)[None], config.audio, engine.backend)
    heard = hear(recogniser, mel, transcript)
    path = attention_path(heard.times, mel.shape[2] // config.reduction_factor, config)
    track = torch.from_numpy(pitch.track(samples, config.audio))
    track = F.pad(track, (0, mel.shape[2] - len(track)))
    noise = mel.quantile(QUIET, dim=2, keepdim=True)
    return Spoken(torch.tensor([text_ids(heard.symbols)]), mel, path[None], track[None], noise)


def sentence_ids(texts: Sequence[str]) -> list[Tensor]:
    """The symbols of each sentence of texts: int64 [1, symbols]."""
    return [torch.tensor([text_ids(s.symbols())]) for text in texts for s in front_end(text)]


@torch.no_grad()
def say(engine: Engine, embedding: Tensor) -> list[Spoken]:
    """The sentences KEPT in the voice of an embedding [speaker_dim], at the pitch it expects."""
    acoustic, spoken = engine.acoustic, []
    for ids in sentence_ids(KEPT):
        made = acoustic.generate(
            ids, torch.tensor([ids.shape[1]]), embedding[None], engine.decoder, engine.backend
        )
        spoken.append(Spoken(ids, made.mel, made.path, None, made.mel.amin(2, keepdim=True)))
    return spoken


def split(aligned: Sequence[Spoken], config: AcousticConfig) -> tuple[list[Spoken], list[Spoken]]:
    """Cut the end of every sample off: (what is fitted, what is held back to judge the fit).

    A person varies from recording to recording, so each gives its share to both sides.
    """
    training, held_back = [], []
    for one in aligned:
        steps = one.path.shape[1]
        cut = round((1 - HELD_BACK) * steps)
        if steps - cut < HELD_BACK_S * config.decoder_rate and len(aligned) > 1:
            training.append(one)  # another sample is held back instead
            continue
        training.append(_part(one, 0, cut, config))
        held_back.append(_part(one, cut, steps, config))
    if not held_back:  # many short samples: the shortest of them speaks for itself
        shortest = min(range(len(training)), key=lambda i: training[i].mel.shape[2])
        held_back.append(training.pop(shortest))
    return training, held_back


def _part(one: Spoken, begin: int, end: int, config: AcousticConfig) -> Spoken:
    """The decoder steps from `begin` to `end` and the symbols they attend to."""
    path = one.path[:, begin:end]
    first, last = int(path[0, 0]) if begin else 0, int(path[0, -1])
    frames = slice(begin * config.reduction_factor, end * config.reduction_factor)
    pitch = None if one.pitch is None else one.pitch[:, frames]
    return Spoken(
        one.text_ids[:, first : last + 1], one.mel[..., frames], path - first, pitch, one.noise
    )
