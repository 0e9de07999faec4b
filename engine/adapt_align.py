"""When a person said each symbol of a transcript: dynamic time warping to the generator's speech.

The generator says the transcript in the voice that the speaker encoder hears, and knows which
symbol each of its frames belongs to. Its mel is warped onto the recording's, and takes the symbols
along. Needs no other aligner, no durations and no training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import AcousticConfig
from engine.errors import InputError
from engine.kernels import Decoder
from engine.models.acoustic import Acoustic
from engine.models.layers import log_mel
from engine.symbols import text_ids
from engine.text import front_end

CEPSTRA = 20
MAX_MOVE = 3  # frames of the generator's speech that one frame of the recording may pass
MOVE_COST = 0.1  # of a warp that is not 1:1, in units of the mean distance of frames
PACE = (0.4, 2.5)  # recording over generated speech, seconds; beyond, it is another text


class Spoken(NamedTuple):
    """One cloning sample with its text, ready for a teacher-forced pass of the generator."""

    text_ids: Tensor  # [1, symbols]
    mel: Tensor  # [1, n_mels, frames], frames a multiple of reduction_factor
    path: Tensor  # [1, decoder_steps] attended symbol
    cost: float  # mean distance of the warped frames; below 1 is better than chance


def whole_mel(samples: np.ndarray, config: AcousticConfig, backend: str = "auto") -> Tensor:
    """Log-mel [1, n_mels, frames] of samples [samples], padded to whole decoder steps."""
    tensor = torch.from_numpy(samples)
    group = config.audio.hop_length * config.reduction_factor
    return log_mel(F.pad(tensor, (0, -len(tensor) % group))[None], config.audio, backend)


def align_recording(
    acoustic: Acoustic, network: Decoder, samples: np.ndarray, transcript: str, embedding: Tensor,
    backend: str = "auto",
) -> Spoken:  # fmt: skip
    """Align a recording with what was said in it.

    Args:
        network: of `acoustic`, as `Acoustic.network` returns it.
        samples: float32 [samples] at the model's rate, pauses cut.
        transcript: its words.
        embedding: [speaker_dim] of a voice near the speaker's.
    Raises:
        InputError: a transcript with nothing to say, or far too long or short for the recording.
    """
    config = acoustic.config
    sentence = front_end(transcript, split=False)[0]
    ids = torch.tensor([text_ids(sentence.symbols())])
    lengths = torch.tensor([ids.shape[1]])
    made = acoustic.generate(ids, lengths, embedding[None], network, backend=backend)
    mel = whole_mel(samples, config, backend)
    pace = mel.shape[2] / made.mel.shape[2]
    if not PACE[0] <= pace <= PACE[1]:
        seconds = len(samples) / config.audio.sample_rate
        raise InputError(
            f"transcript {transcript[:40]!r}…: takes about {seconds / pace:.1f} s to say, the "
            f"recording has {seconds:.1f} s of speech; give the words of this recording"
        )
    warp, cost = dynamic_time_warp(cepstra(mel[0]), cepstra(made.mel[0]))
    symbols = made.path[0].numpy()[warp // config.reduction_factor]  # of each frame
    return Spoken(ids, mel, attended(symbols, config)[None], cost)


def cepstra(mel: Tensor) -> np.ndarray:
    """[frames, CEPSTRA]: cosine transform over the bands, without mean and scale of the channel."""
    bands = mel.shape[0]
    angles = np.pi / bands * np.outer(np.arange(CEPSTRA), np.arange(bands) + 0.5)
    found = (np.cos(angles) @ mel.double().cpu().numpy()).T
    return (found - found.mean(0)) / (found.std(0) + 1e-6)


def dynamic_time_warp(recording: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, float]:
    """Cheapest path from corner to corner that moves 0 to MAX_MOVE generated frames a frame.

    Args:
        recording: [frames, features]; generated: [other frames, features].
    Returns:
        [frames] generated frame of each recorded one, never falling; and the mean distance along
        it over the mean distance of all pairs.
    Source: Sakoe and Chiba 1978, with a one-sided slope constraint.
    """
    distance = torch.cdist(torch.from_numpy(recording), torch.from_numpy(generated)).numpy()
    distance /= distance.mean()
    rows, columns = distance.shape
    if (rows - 1) * MAX_MOVE < columns - 1:
        raise InputError("the recording is far too short for its transcript")
    best = np.full(columns, np.inf)
    best[0] = distance[0, 0]
    moves = np.zeros((rows, columns), np.int8)
    options = np.full((MAX_MOVE + 1, columns), np.inf)
    for i in range(1, rows):
        for move in range(MAX_MOVE + 1):
            options[move, move:] = best[: columns - move] + MOVE_COST * abs(move - 1)
        moves[i] = options.argmin(0)
        best = np.take_along_axis(options, moves[i][None].astype(np.int64), 0)[0] + distance[i]
    warp = np.empty(rows, np.int64)
    warp[-1] = columns - 1
    for i in range(rows - 1, 0, -1):
        warp[i - 1] = warp[i] - moves[i, warp[i]]
    return warp, float(distance[np.arange(rows), warp].mean())


def attended(symbols: np.ndarray, config: AcousticConfig) -> Tensor:
    """Symbol of each frame [frames] -> attention path [decoder_steps] that a decoder could take."""
    middle = symbols[config.reduction_factor // 2 :: config.reduction_factor]
    path, at = [], 0
    for symbol in middle:
        at = min(max(int(symbol), at), at + config.attention_window - 1)
        path.append(at)
    return torch.tensor(path)
