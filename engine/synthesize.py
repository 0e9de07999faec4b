"""Text and speaker embedding -> speech. `synthesize` is `stream`, concatenated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from engine import kernels
from engine.errors import InputError
from engine.models.vocoder import VocoderStream, finish_together, opening
from engine.speech import Report, Speech, Word
from engine.symbols import text_ids
from engine.text import Sentence, front_end

if TYPE_CHECKING:
    from engine.engine import Engine

CHUNK_FRAMES = 4  # mel frames a chunk: 43 ms
SENTENCE_GAP_S = 0.2  # silence between two sentences, beside what each ends with
BLOCK = 16  # sentences that wait for each other's mel
STREAMS = 4  # sentences the vocoder runs side by side
SPEEDS = (0.25, 4.0)
STALL_S = 0.6  # within a word, on one phone


class Speaker(NamedTuple):
    """Who speaks: whose generator, and what the voice tells it. Tensors on the host."""

    engine: Engine
    embedding: torch.Tensor  # [speaker_dim]
    equaliser: torch.Tensor  # [n_mels], added to the log-mel


@dataclass(frozen=True)
class Spoken:
    """One sentence before the vocoder: mel [1, n_mels, frames], word times and report."""

    mel: torch.Tensor
    words: tuple[Word, ...]
    report: Report


class Speaking:
    """One sentence on its way to a mel, whose opening is there before the rest is decoded.

    The mels of opening and rest are made apart whoever asks, so that their bits are the same.
    """

    @torch.no_grad()
    def __init__(self, speaker: Speaker, sentence: Sentence) -> None:
        engine, c = speaker.engine, speaker.engine.config.acoustic
        self.speaker, self.sentence = speaker, sentence
        ids = torch.tensor([text_ids(sentence.symbols())], device=engine.device)
        lengths = torch.tensor([ids.shape[1]], device=engine.device)
        self.embedding = speaker.embedding[None].to(engine.device)
        encoded = engine.acoustic.encode(ids, lengths, self.embedding)
        self.inputs = engine.acoustic.fold(encoded, self.embedding)
        self.state = engine.decoder.state()
        limit = c.max_hold * ids.shape[1]
        first = -(-(opening(engine.vocoder) + c.look_ahead) // c.reduction_factor)
        self.hidden, self.path = self._decode(min(first, limit))
        self.left = limit - self.hidden.shape[1]
        self.opening = self._opening()

    def _decode(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        engine = self.speaker.engine
        return kernels.decoder_generate(
            self.inputs, engine.decoder, steps, self.state, backend=engine.backend
        )[:2]

    def _mel(self, hidden: torch.Tensor) -> torch.Tensor:
        steps = torch.tensor([hidden.shape[1]], device=hidden.device)
        mel = self.speaker.engine.acoustic.mel(hidden, steps, self.embedding)
        return mel + self.speaker.equaliser[:, None].to(hidden.device)

    def _opening(self) -> torch.Tensor | None:
        """Its mel; None if the sentence ends in it, or a mel depends on all frames."""
        c = self.speaker.engine.config.acoustic
        if bool(self.state.finished) or c.sharpening != 1:
            return None
        return self._mel(self.hidden)[..., : -c.look_ahead or None]

    @torch.no_grad()
    def mel(self) -> torch.Tensor:
        """[1, n_mels, frames] of the whole sentence; ends the decoding."""
        if self.left > 0 and not bool(self.state.finished):
            hidden, path = self._decode(self.left)
            self.left = 0
            self.hidden = torch.cat([self.hidden, hidden], dim=1)
            self.path = torch.cat([self.path, path], dim=1)
        if self.opening is None:
            return self._mel(self.hidden)
        c, made = self.speaker.engine.config.acoustic, self.opening.shape[-1]
        begin = max(made - c.look_ahead, 0) // c.reduction_factor
        rest = self._mel(self.hidden[:, begin:])
        return torch.cat([self.opening, rest[..., made - begin * c.reduction_factor :]], dim=-1)


def speak(speaker: Speaker, sentence: Sentence, speed: float) -> Spoken:
    """Mel of one sentence, with the times of its words in seconds."""
    return _finish(Speaking(speaker, sentence), speed)


def _finish(speaking: Speaking, speed: float) -> Spoken:
    mel, path = speaking.mel(), speaking.path[0].cpu().numpy()
    rate, sentence = speaking.speaker.engine.config.acoustic.decoder_rate, speaking.sentence
    words, report = read_path(sentence, path, rate * speed, rate)
    if speed != 1:
        frames = max(1, round(mel.shape[-1] / speed))
        mel = F.interpolate(mel, frames, mode="linear", align_corners=False)
    return Spoken(mel, words, report)


def read_path(
    sentence: Sentence, path: np.ndarray, spoken_rate: float, decoder_rate: float
) -> tuple[tuple[Word, ...], Report]:
    """Word times and what the attention path shows.

    Args:
        path: [decoder_steps] attended symbol of each step; never falls.
        spoken_rate: decoder steps per second of the speech as heard.
        decoder_rate: decoder steps per second before any change of speed.
    """
    words, skips, stalls = [], [], []
    for word, (first, end) in zip(sentence.words, sentence.spans(), strict=True):
        begin_step, end_step = np.searchsorted(path, [first, end])
        words.append(Word(word.text, begin_step / spoken_rate, end_step / spoken_rate))
        visited = np.unique(path[begin_step:end_step])
        if len(visited) * 3 < end - first:
            skips.append(word.text)
        held = np.bincount(path[begin_step:end_step] - first) if len(visited) else [0]
        if max(held) > STALL_S * decoder_rate:
            stalls.append(word.text)
    report = Report(tuple(skips), (), tuple(stalls), tuple(sentence.warnings))
    return tuple(words), report


def check(speed: float, seed: int | None) -> int:
    """The seed to use; raises InputError for a speed or seed that cannot be used."""
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise InputError(f"speed {speed}: give {SPEEDS[0]} to {SPEEDS[1]}")
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: give 0 to 2**63 - 1")
    return seed if seed is not None else 0


def _start(engine: Engine, spoken: Spoken, seed: int, number: int) -> VocoderStream:
    return VocoderStream(engine.vocoder, engine.network, spoken.mel, seed, number, engine.backend)


def _begin(
    speaker: Speaker, sentence: Sentence, speed: float, seed: int, number: int
) -> VocoderStream:
    """The stream of a sentence that is not decoded further than its first samples need."""
    engine = speaker.engine
    speaking = Speaking(speaker, sentence)
    if speed != 1 or speaking.opening is None:
        return _start(engine, _finish(speaking, speed), seed, number)
    return VocoderStream(
        engine.vocoder, engine.network, speaking.opening, seed, number, engine.backend, speaking.mel
    )


def stream(
    speaker: Speaker, text: str, *, speed: float, seed: int | None
) -> Iterator[np.ndarray]:
    """Chunks of samples, sentence by sentence, each sentence begun when the one before is out."""
    seed = check(speed, seed)
    for number, sentence in enumerate(front_end(text)):
        if number:
            yield _gap(speaker.engine)
        source = _begin(speaker, sentence, speed, seed, number)
        while (samples := source.next(CHUNK_FRAMES)) is not None:
            yield samples.cpu().numpy()


def synthesize(speaker: Speaker, text: str, *, speed: float, seed: int | None) -> Speech:
    """One text in one voice; the samples of `stream`, its sentences vocoded side by side."""
    seed, engine = check(speed, seed), speaker.engine
    rate = engine.config.vocoder.audio.sample_rate
    sentences = front_end(text)
    said: list[Speech] = []
    for begin in range(0, len(sentences), BLOCK):
        block = [speak(speaker, s, speed) for s in sentences[begin : begin + BLOCK]]
        for i, samples in enumerate(_vocode(engine, block, seed, begin)):
            if begin + i:
                said.append(Speech(_gap(engine), rate))
            said.append(Speech(samples, rate, block[i].words, block[i].report))
    return Speech.join(said)


def _gap(engine: Engine) -> np.ndarray:
    rate = engine.config.vocoder.audio.sample_rate
    return np.zeros(round(SENTENCE_GAP_S * rate), np.float32)


def _vocode(engine: Engine, block: list[Spoken], seed: int, first: int) -> list[np.ndarray]:
    """Samples of each sentence; those of similar length run together, so little is padding."""
    order = sorted(range(len(block)), key=lambda i: block[i].mel.shape[-1])
    samples: dict[int, np.ndarray] = {}
    for begin in range(0, len(order), STREAMS):
        group = order[begin : begin + STREAMS]
        sources = [_start(engine, block[i], seed, first + i) for i in group]
        for i, made in zip(group, finish_together(sources), strict=True):
            samples[i] = made.cpu().numpy()
    return [samples[i] for i in range(len(block))]
