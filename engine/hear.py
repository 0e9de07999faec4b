"""What a person said and when, by the phone recogniser: all that adaptation needs to know of it.

With a transcript, its phones are laid over the recording; without one, they are heard. Both are the
cheapest path through the same table of log-probabilities (Viterbi). Words do not matter: a speaker
of any language is heard as the English phones that the generator would need to say the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.align import pause
from engine.errors import InputError
from engine.models.recogniser import CLASSES, SILENCE, PhoneRecogniser
from engine.symbols import GAP, PHONES, START, SYMBOLS, TERMINALS
from engine.text import front_end

SWITCH = 2.0  # nats that another phone costs, so that one strange step does not make one
FITS = -2.5  # mean log-probability of a transcript's phones: right texts have -1 to -2
_OF_SYMBOL = torch.tensor([CLASSES.get(symbol, SILENCE) for symbol in SYMBOLS])


class Heard(NamedTuple):
    """Symbols of a recording, and their boundaries in seconds (one more)."""

    symbols: list[str]
    times: list[float]


@torch.no_grad()
def log_probabilities(recogniser: PhoneRecogniser, mel: Tensor) -> np.ndarray:
    """[steps, classes] of log-mel [1, n_mels, frames]."""
    return recogniser(mel, torch.tensor([mel.shape[2]]))[0].T.cpu().numpy()


def asked(text_ids: Tensor, path: Tensor, steps: int) -> Tensor:
    """Class that each of the recogniser's steps should hear of a generated utterance: [steps].

    Args:
        text_ids: [symbols] that were said; path: [decoder_steps] which of them, `steps` a multiple.
    """
    return _OF_SYMBOL[text_ids][path].repeat_interleave(steps // len(path))


def hear(recogniser: PhoneRecogniser, mel: Tensor, transcript: str | None = None) -> Heard:
    """What is said in a recording.

    Args:
        mel: log-mel [1, n_mels, frames].
        transcript: its words; None: the phones are recognised.
    Raises:
        InputError: a transcript that does not fit, or no phone heard.
    """
    table = log_probabilities(recogniser, mel)
    step_s = recogniser.config.frame_stride / recogniser.config.audio.frame_rate
    if transcript is None:
        states, classes, words = free_path(table), np.arange(table.shape[1]), set[int]()
    else:
        classes, words = transcript_classes(transcript)
        states = path_of(table[:, classes], classes == SILENCE, transcript)
    found = _symbols(states, classes, words, step_s)
    if len(found.symbols) < 4:
        raise InputError("no speech heard in the recording; give another one, or its transcript")
    return found


def transcript_classes(transcript: str) -> tuple[np.ndarray, set[int]]:
    """Classes of a text, a silence before, after and between words; where the words begin."""
    classes, words = [SILENCE], set()
    for sentence in front_end(transcript):
        for word in sentence.words:
            words.add(len(classes))
            classes += [*(CLASSES[phone] for phone in word.phones), SILENCE]
    return np.asarray(classes), words


def free_path(table: np.ndarray) -> np.ndarray:
    """Most likely class of each step of table [steps, classes], changes costing SWITCH: [steps]."""
    steps, classes = table.shape
    best, back = table[0].copy(), np.empty((steps, classes), np.int64)
    for step in range(1, steps):
        change = best.max() - SWITCH
        stays = best >= change
        back[step] = np.where(stays, np.arange(classes), best.argmax())
        best = np.where(stays, best, change) + table[step]
    return _traced(back, int(best.argmax()))


def path_of(table: np.ndarray, silent: np.ndarray, transcript: str) -> np.ndarray:
    """State of each step [steps] when all are said in order; silent ones may be left out.

    Args:
        table: log-probabilities [steps, states]; silent: [states] bool, the first and last are.
    Raises:
        InputError: so many phones do not fit in, or they are not what is said.
    """
    steps, count = table.shape
    best = np.full(count, -np.inf)
    best[:2] = table[0, :2]
    back = np.zeros((steps, count), np.int64)
    options = np.full((3, count), -np.inf)
    for step in range(1, steps):
        options[0], options[1, 1:] = best, best[:-1]
        options[2, 2:] = np.where(silent[1:-1], best[:-2], -np.inf)
        moves = options.argmax(0)
        back[step] = np.arange(count) - moves
        best = options[moves, np.arange(count)] + table[step]
    end = count - 1 - int(best[-2] > best[-1])
    fit = best[end] / steps
    if not fit >= FITS:
        raise InputError(
            f"transcript {transcript[:40]!r}…: not what is said in this recording (a fit of "
            f"{fit:.1f}, {FITS} at least); give its words, or no transcript"
        )
    return _traced(back, end)


def _traced(back: np.ndarray, end: int) -> np.ndarray:
    """Follow a table of predecessors [steps, states] back from its last row."""
    path = np.empty(len(back), np.int64)
    path[-1] = end
    for step in range(len(back) - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def _symbols(states: np.ndarray, classes: np.ndarray, words: set[int], step_s: float) -> Heard:
    """Runs of equal states as symbols with times: silence becomes START, pauses and the end."""
    edges = np.flatnonzero(np.diff(states, prepend=-1))
    ends = [*edges[1:], len(states)]
    symbols, times = [START], [0.0]
    for first, end in zip(edges.tolist(), ends, strict=True):
        state, at, seconds = int(states[first]), first * step_s, (end - first) * step_s
        if classes[state] != SILENCE:
            if state in words and symbols[-1] in PHONES:  # no pause between two words
                symbols.append(GAP)
                times.append(at)
            symbols.append(PHONES[classes[state]])
            times.append(max(at, step_s / 2))  # START takes some time
        elif first and end < len(states) and pause(seconds) != GAP:
            symbols.append(pause(seconds))
            times.append(at)
    symbols.append(TERMINALS[0])
    last = edges[-1] if classes[states[-1]] == SILENCE else len(states) - 0.5
    return Heard(symbols, [*times, float(last) * step_s, len(states) * step_s])
