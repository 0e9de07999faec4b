"""Cloning in bulk: recordings are prepared by host threads, and encoded a batch at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine import audio
from engine.audio import AudioSource, CloningSample
from engine.clone import MAX_SAMPLES, equalised, provenance, trust
from engine.device.replay import Readback, Replay, bucket, exact, upload
from engine.errors import InputError
from engine.models.layers import log_mel
from engine.spectrum import loud_average
from engine.voice import Voice

if TYPE_CHECKING:
    from engine.engine import Engine

BATCH = 64  # recordings that are encoded together
FRAMES = 64  # smallest bucket of a recording's length

Person = AudioSource | Sequence[AudioSource]


def clone_many(
    engine: Engine, people: Sequence[Person], sample_rate: int | None = None, *,
    errors: str = "raise", workers: int | None = None, progress: bool = False,
) -> list[Voice | InputError]:  # fmt: skip
    """A Voice for each person, the same as `engine.clone` makes of each alone.

    Args:
        people: for each one recording, or a list of recordings; see `engine.clone`.
        sample_rate: Hz; required for arrays and tensors.
        errors: "raise" at the first recording that cannot be used, or "return" its InputError in
            the place of the voice.
        workers: threads that read and prepare recordings; None = one a processor.
        progress: show a progress bar.
    Raises:
        InputError: a recording that cannot be used, if `errors` is "raise".
    """
    if errors not in ("raise", "return"):
        raise InputError(f'errors {errors!r}: give "raise" or "return"')

    def prepared(number: int) -> list[CloningSample] | InputError:
        try:
            person = people[number]
            several = list(person) if isinstance(person, (list, tuple)) else [person]
            if not 1 <= len(several) <= MAX_SAMPLES:
                raise InputError(f"{len(several)} cloning samples; give 1 to {MAX_SAMPLES}")
            config = engine.config.encoder.audio
            sources = cast("list[AudioSource]", several)
            return [audio.prepare(source, sample_rate, config=config) for source in sources]
        except InputError as error:
            named = InputError(f"person {number}: {error}")
            if errors == "raise":
                raise named from error
            return named

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        found = list(tqdm(
            pool.map(prepared, range(len(people))), "preparing", len(people), disable=not progress
        ))  # fmt: skip
    usable = [samples for samples in found if not isinstance(samples, InputError)]
    encoded = iter(EncoderStage.of(engine)(
        [[s.samples for s in samples] for samples in usable],
        [trust(engine, samples) for samples in usable],
    ))  # fmt: skip
    return [
        samples if isinstance(samples, InputError) else _voice(engine, samples, *next(encoded))
        for samples in found
    ]


def _voice(
    engine: Engine, samples: list[CloningSample], embedding: np.ndarray, weights: np.ndarray,
    averages: np.ndarray,
) -> Voice:  # fmt: skip
    return Voice(
        embedding, tuple(weights.tolist()), engine.encoder_hash,
        provenance("encode", samples), engine.acoustic_hash,
        equaliser=equalised(engine, embedding, weights @ averages),
    )  # fmt: skip


class EncoderStage:
    """Log-mel and speaker encoder of an engine, for batches of recordings. Thread-safe: what a
    replay gave is read before the next one."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.device = engine, engine.device
        self._replays: dict[tuple[int, int], Replay] = {}
        self._lock = threading.Lock()

    @staticmethod
    def of(engine: Engine) -> EncoderStage:
        """The stage that an engine on a GPU keeps, or a new one."""
        return EncoderStage(engine) if engine.path is None else engine.path.encoder

    @torch.no_grad()
    def __call__(
        self, people: Sequence[Sequence[np.ndarray]], trusts: Sequence[np.ndarray] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Speaker embedding [speaker_dim], attention weights over the samples and the spectrum of
        each sample's loud frames [cloning_samples, n_mels], per person.

        Args:
            people: prepared samples [samples] float32 of each person.
            trusts: factors on the attention weights, [cloning_samples] of each; None: ones.
        """
        hop = self.engine.config.encoder.audio.hop_length
        recordings = [samples for person in people for samples in person]
        if not recordings:
            return []
        frames = [len(samples) // hop for samples in recordings]
        order = sorted(range(len(recordings)), key=frames.__getitem__)
        channels = self.engine.config.encoder.channels
        pooled = torch.empty(len(recordings), channels, device=self.device)
        averages = torch.empty(
            len(recordings), self.engine.config.encoder.audio.n_mels, device=self.device
        )
        with exact(), self._lock:
            for begin in range(0, len(order), BATCH):
                group = order[begin : begin + BATCH]
                made = self._pool([recordings[i][: frames[i] * hop] for i in group])
                at = upload(group, torch.int64, self.device)
                for whole, part in zip((pooled, averages), made, strict=True):
                    whole.index_copy_(0, at, part[: len(group)])
            trusts = trusts or [np.ones(len(person)) for person in people]
            return self._embed(pooled, averages, trusts)

    def _pool(self, recordings: list[np.ndarray]) -> tuple[Tensor, ...]:
        """Of at least the recordings, features [channels] and spectrum [n_mels]; lengths are
        multiples of the hop."""
        config = self.engine.config.encoder
        hop, mirror = config.audio.hop_length, (config.audio.n_fft - config.audio.hop_length) // 2
        longest = max(len(samples) for samples in recordings) // hop
        batch, frames = bucket(len(recordings)), bucket(longest, FRAMES)
        packed = np.zeros((batch, (frames + -(-mirror // hop)) * hop), np.float32)
        lengths = np.full(batch, config.frame_stride, np.int64)
        for row, samples in enumerate(recordings):
            end = len(samples)
            packed[row, :end] = samples
            packed[row, end : end + mirror] = samples[-2 : -2 - mirror : -1]  # as log_mel's padding
            lengths[row] = end // hop

        def call(packed: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            mel = log_mel(packed, config.audio, self.engine.backend)
            return self.engine.encoder.pool(mel, lengths), loud_average(mel, lengths)

        on_device = upload(packed, torch.float32, self.device), upload(
            lengths, torch.int64, self.device
        )
        if (batch, frames) not in self._replays:
            self._replays[batch, frames] = Replay(call, [part.clone() for part in on_device])
        return self._replays[batch, frames](*on_device)

    def _embed(
        self, pooled: Tensor, averages: Tensor, trusts: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """People by the number of their samples: no padding, so each is as it is alone."""
        counts = [len(trust) for trust in trusts]
        begins = np.cumsum([0, *counts])
        found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for count in sorted(set(counts)):
            who = [i for i, mine in enumerate(counts) if mine == count]
            at = upload([list(range(begins[i], begins[i + 1])) for i in who], torch.int64,
                        self.device)  # fmt: skip
            present = torch.ones_like(at, dtype=torch.bool)
            factors = upload(np.stack([trusts[i] for i in who]), torch.float32, self.device)
            embedded = self.engine.encoder.embed(pooled[at], present, factors)
            read = Readback(*embedded, averages[at]).get()
            found |= dict(zip(who, zip(*read, strict=True), strict=True))
        return [found[i] for i in range(len(counts))]
