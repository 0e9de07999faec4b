"""Sentences -> mels, a batch at a time, without a value read back on the way.

Sizes are padded to buckets: texts, sentences, decoder steps and frames. What an utterance holds
never depends on its padding. The decoder's number of steps is not known in advance: a first
attempt allows what nearly every sentence needs, and a sentence that was cut short is made again
with twice as much; its `told` says so, with everything else the host needs, in one copy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import adapt_weights, kernels
from engine.device.replay import Readback, Replay, bucket, exact, upload
from engine.kernels import DecoderInputs, DecoderState

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.synthesize import Speaker

STEPS_PER_SYMBOL = 3  # decoder steps of a first attempt; speech takes 1.3, commas and names more
SPARE_STEPS = 16
SYMBOLS = 16  # smallest bucket
STEPS = 32


@dataclass(frozen=True)
class Mels:
    """A batch on the device; rows beyond the sentences are padding.

    `told`: path [batch, steps], steps [batch], finished [batch], frames [batch].
    """

    mel: Tensor  # [batch, n_mels, frames]; the next batch of these sizes overwrites it
    frames: Tensor  # [batch] int64
    told: Readback


class AcousticStage:
    """Text encoder, attention decoder and converter of an engine, for batches of sentences."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.device = engine.device
        self._encoders: dict[tuple[int, int], Replay] = {}
        self._finishers: dict[tuple[int, int, int], Replay] = {}
        self._states: dict[int, DecoderState] = {}

    def limit(self, symbols: int, attempt: int) -> int:
        """Decoder steps of an attempt; the last one allows all that the decoder may take."""
        most = self.engine.config.acoustic.max_hold * symbols
        wanted = (STEPS_PER_SYMBOL * symbols + SPARE_STEPS) << attempt
        return bucket(min(wanted, most), STEPS)

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[Sequence[int]], speakers: Sequence[Speaker], speeds: Sequence[float],
        attempt: int = 0,
    ) -> Mels:  # fmt: skip
        """Mels of sentences.

        Args:
            texts: symbol ids of each sentence.
            speakers: of each sentence; their engines are this one's.
            speeds: of each sentence.
            attempt: 0, or one more than the attempt that told `finished` false.
        """
        count, most = len(texts), max(len(text) for text in texts)
        batch, symbols = bucket(count), bucket(most, SYMBOLS)
        ids = torch.zeros(batch, symbols, dtype=torch.int64)
        lengths = torch.ones(batch, dtype=torch.int64)
        speaker = torch.zeros(batch, self.engine.config.acoustic.speaker_dim)
        equaliser = torch.zeros(batch, self.engine.config.acoustic.audio.n_mels)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            lengths[row] = len(text)
        speaker[:count] = torch.stack([one.embedding for one in speakers])
        equaliser[:count] = torch.stack([one.equaliser for one in speakers])
        padded = [*speeds, *[1.0] * (batch - count)]
        on_device = [upload(part, part.dtype, self.device) for part in (ids, lengths, speaker)]
        equaliser = upload(equaliser, equaliser.dtype, self.device)
        with exact():
            inputs = self._encode(*on_device)
            hidden, path, steps, state = self._decode(
                inputs, count, self.limit(most, attempt)
            )
            return self._finish(hidden, path, steps, state, on_device[2], equaliser, padded)

    def _encode(self, ids: Tensor, lengths: Tensor, speaker: Tensor) -> DecoderInputs:
        model, sizes = self.engine.acoustic, (ids.shape[0], ids.shape[1])

        def call(ids: Tensor, lengths: Tensor, speaker: Tensor) -> tuple[Tensor, ...]:
            inputs = model.fold(model.encode(ids, lengths, speaker), speaker)
            return (*inputs.prenet_bias, *inputs[1:])

        if sizes not in self._encoders:
            held = [part.clone() for part in (ids, lengths, speaker)]
            self._encoders[sizes] = Replay(call, held)
        flat = self._encoders[sizes](ids, lengths, speaker)
        prenets = len(model.prenet)
        return DecoderInputs(flat[:prenets], *flat[prenets:])

    def _decode(
        self, inputs: DecoderInputs, count: int, limit: int
    ) -> tuple[Tensor, Tensor, Tensor, DecoderState]:
        """Hidden states and path padded to `limit` steps, steps taken, state at the end."""
        batch = len(inputs.lengths)
        if batch not in self._states:
            self._states[batch] = self.engine.decoder.state(batch)
        state = self._states[batch]
        for part in state:
            part.zero_()
        state.finished[count:] = True  # padding costs no steps
        hidden, path, steps = kernels.decoder_generate(
            inputs, self.engine.decoder, limit, state, backend=self.engine.backend
        )
        missing = limit - hidden.shape[1]  # backends that run on the host stop at the longest
        return F.pad(hidden, (0, 0, 0, missing)), F.pad(path, (0, missing)), steps, state

    def _finish(
        self, hidden: Tensor, path: Tensor, steps: Tensor, state: DecoderState, speaker: Tensor,
        equaliser: Tensor, speeds: list[float],
    ) -> Mels:  # fmt: skip
        config, model = self.engine.config.acoustic, self.engine.acoustic
        made = hidden.shape[1] * config.reduction_factor
        out = made if min(speeds) >= 1 else bucket(int(made / min(speeds)) + 1, STEPS)

        def call(
            hidden: Tensor, steps: Tensor, speaker: Tensor, equaliser: Tensor, speed: Tensor
        ) -> tuple[Tensor, ...]:
            mel = model.mel(hidden, steps, speaker) + equaliser.unsqueeze(-1)
            return stretched(mel, steps * config.reduction_factor, speed, out)

        sizes = (hidden.shape[0], hidden.shape[1], out)
        speed = upload(speeds, torch.float64, self.device)
        values = (hidden, steps, speaker, equaliser, speed)
        if sizes not in self._finishers:
            self._finishers[sizes] = Replay(call, [part.clone() for part in values])
        mel, frames = self._finishers[sizes](*values)
        return Mels(mel, frames, Readback(path, steps, state.finished, frames))


class GuestStage:
    """A stage for voices with their own weights, one voice at a time.

    Its model is a copy into which a voice's weights are written when it speaks: 10 MB on the
    device, against graphs and a text encoder for every voice. The decoder is the engine's own,
    because adaptation leaves it alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stage: AcousticStage | None = None
        self._guest: Engine | None = None  # whose weights the stage has

    @torch.no_grad()
    def of(self, guest: Engine) -> AcousticStage:
        """The stage, speaking as an engine that `Engine.adapted` made; work under way before it
        on the device's stream is not disturbed."""
        if self._stage is None:
            own = copy.copy(self.engine)
            own.acoustic = copy.deepcopy(self.engine.acoustic)
            self._stage = AcousticStage(own)
        if guest is not self._guest:
            theirs = adapt_weights.adaptable(guest.acoustic)
            for name, layer in adapt_weights.adaptable(self._stage.engine.acoustic).items():
                for mine, other in zip(layer.parameters(), theirs[name].parameters(), strict=True):
                    mine.copy_(other)
            self._guest = guest
        return self._stage


def stretched(mel: Tensor, frames: Tensor, speed: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Each mel at its own speed, by linear interpolation as F.interpolate does it.

    Args:
        mel: [batch, n_mels, frames]; frames: [batch] of each; speed: [batch] float64.
        out: frames of the result, enough for all.
    Returns:
        mel [batch, n_mels, out] and frames [batch]; at speed 1 the values are the same.
    """
    wanted = (frames / speed).round().clamp_min(1)
    scale = (frames.float() / wanted.float())[:, None]
    at = ((torch.arange(out, device=mel.device) + 0.5) * scale - 0.5).clamp_min(0)
    last = (frames - 1).clamp(0, mel.shape[-1] - 1)[:, None]
    low = torch.minimum(at.long(), last)
    share = (at - low).clamp_max(1).unsqueeze(1)
    take = lambda i: mel.gather(2, i.unsqueeze(1).expand(-1, mel.shape[1], -1))  # noqa: E731
    upper = take(torch.minimum(low + 1, last))
    return take(low) * (1 - share) + upper * share, wanted.long()
