"""Streams of one vocoder that run side by side on a device, and join and leave between chunks.

A stream has a slot: its mel, its linear prediction and the name of its noise are written there
once, when it joins. What the recurrence changes (history, last outputs, filter states) lies in
rows; a chunk runs the first rows, whatever streams they belong to, so the network reads its
state in place. Rows move when other streams are to run, a copy of 130 KB each. All memory is taken
when the slots are made. No stream's samples depend on its slot, its row or its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.device.replay import Readback, Replay, bucket, exact, upload
from engine.errors import EngineError, Overloaded
from engine.kernels import WaveNet, WaveNetState
from engine.models.vocoder import Vocoder


class SlotStream:
    """One utterance in a slot. `at` of its `frames` mel frames are done.

    `frames` may come with the first samples: until then it is -1, and `known` is False.
    """

    def __init__(self, slot: int, row: int, frames: int = -1) -> None:
        self.slot, self.row, self.frames, self.at = slot, row, frames, 0

    @property
    def known(self) -> bool:
        return self.frames >= 0

    @property
    def ended(self) -> bool:
        return self.known and self.at >= self.frames


class Chunk:
    """Samples of one chunk, on their way to the host."""

    def __init__(
        self, rows: Sequence[tuple[SlotStream, int]], samples: Tensor, slots: VocoderSlots,
        frames: int,
    ) -> None:  # fmt: skip
        self._rows, self._slots, self._frames = rows, slots, frames
        self._back = Readback(samples)

    def read(self) -> list[np.ndarray]:
        """Samples of each stream, in the order of `launch`; waits for this chunk only.

        Every stream must know its `frames` by now.
        """
        (samples,) = self._back.get()
        return [
            samples[row, self._slots.part(stream, at, self._frames)]
            for row, (stream, at) in enumerate(self._rows)
        ]


class VocoderSlots:
    """Room for `slots` streams of at most `capacity` mel frames each.

    Args:
        buckets: True pads the rows of a chunk to few sizes, each captured once on a GPU; False runs
            exactly the streams given, best on a CPU.
    """

    def __init__(
        self, vocoder: Vocoder, network: WaveNet, *, slots: int, capacity: int,
        backend: str = "auto", buckets: bool = True,
    ) -> None:  # fmt: skip
        c = self.config = vocoder.config
        self.vocoder, self.network, self.backend, self.buckets = vocoder, network, backend, buckets
        self.slots, self.capacity = slots, capacity
        self.state = network.state(slots)
        self.device = self.state.step.device
        new = self.state.last.new_zeros
        self.reach = -(-c.pqmf_taps // (2 * c.bands))  # band steps a sample depends on, each side
        self.past = new(slots, c.bands, c.lpc_order)
        self.tail = new(slots, c.bands, 2 * self.reach)
        # One slot more: that of the rows without a stream, of 0 frames.
        self.mel = new(slots + 1, capacity, c.audio.n_mels)
        self.taps = new(slots + 1, capacity, c.bands, c.lpc_order)
        self.gain = new(slots + 1, capacity, c.bands)
        self.frames, self.seed, self.number = (
            torch.zeros(slots + 1, dtype=torch.int64, device=self.device) for _ in range(3)
        )
        self.slot_of_row = torch.full_like(self.frames[:-1], slots)
        _, filters = kernels.pqmf_filters(c.bands, c.pqmf_taps, c.pqmf_cutoff, c.pqmf_beta)
        self.filters = filters.to(self.device)
        self.rows: list[SlotStream | None] = [None] * slots
        self._free = list(range(slots))[::-1]
        self._replays: dict[tuple[int, int], Replay] = {}

    @property
    def free(self) -> int:
        """Streams that may still join."""
        return len(self._free)

    def bytes(self) -> int:
        """Device memory of all slots and rows."""
        parts = (self.mel, self.taps, self.gain, self.past, self.tail, *self.state)
        return sum(part.numel() * part.element_size() for part in parts)

    @torch.no_grad()
    def join(
        self, mel: Tensor, frames: Tensor | Sequence[int], seeds: Sequence[int],
        numbers: Sequence[int],
    ) -> list[SlotStream]:  # fmt: skip
        """Start streams; between chunks.

        Args:
            mel: [at least streams, n_mels, frames] on the device; further rows, and frames beyond
                `capacity`, are ignored.
            frames: of each stream, a tensor on the device or numbers.
            seeds, numbers: of each stream; they name its noise, as in `VocoderStream`.
        Raises:
            Overloaded: fewer slots are free.
            EngineError: an utterance known to be longer than `capacity`.
        """
        count, longest = len(seeds), min(mel.shape[-1], self.capacity)
        if count > len(self._free):
            raise Overloaded(f"{count} streams to join, {len(self._free)} of {self.slots} are free")
        if not isinstance(frames, Tensor) and max(frames) > self.capacity:
            raise EngineError(f"a mel of {max(frames)} frames; the slots hold {self.capacity}")
        empty = [row for row, stream in enumerate(self.rows) if stream is None][:count]
        known = [-1] * count if isinstance(frames, Tensor) else [int(n) for n in frames]
        streams = [SlotStream(self._free.pop(), r, n) for r, n in zip(empty, known, strict=True)]
        slot = upload([s.slot for s in streams], torch.int64, self.device)
        row = upload(empty, torch.int64, self.device)
        mel = mel[:count, :, :longest]
        self.mel[:, :longest].index_copy_(0, slot, mel.transpose(1, 2).contiguous())
        if self.vocoder.prediction is not None:
            with exact():
                taps, gain = self.vocoder.prediction(mel)
            self.taps[:, :longest].index_copy_(0, slot, taps.permute(0, 3, 1, 2).contiguous())
            self.gain[:, :longest].index_copy_(0, slot, gain.transpose(1, 2).contiguous())
        if not isinstance(frames, Tensor):
            frames = upload(known, torch.int64, self.device)
        for held, values in ((self.seed, seeds), (self.number, numbers)):
            held.index_copy_(0, slot, upload(values, torch.int64, self.device))
        self.frames.index_copy_(0, slot, frames[:count])
        self.slot_of_row.index_copy_(0, row, slot)
        for part in (*self.state, self.past, self.tail):
            part.index_fill_(0, row, 0)
        for stream in streams:
            self.rows[stream.row] = stream
        return streams

    def leave(self, stream: SlotStream) -> None:
        """Give up a stream, at its end or before; between chunks."""
        if self.rows[stream.row] is not stream:
            return
        self.rows[stream.row] = None
        self._free.append(stream.slot)
        self.slot_of_row[stream.row] = self.slots

    def step(self, streams: Sequence[SlotStream], frames: int) -> list[np.ndarray]:
        """Samples of the next `frames` mel frames of each stream; fewer at its end."""
        return self.launch(streams, frames).read()

    @torch.no_grad()
    def launch(self, streams: Sequence[SlotStream], frames: int) -> Chunk:
        """Begin the next chunk of some streams; the host goes on at once."""
        rows = self._arrange(streams)
        with exact():
            samples = self._replay(rows, frames)
        chunk = Chunk([(s, s.at) for s in streams], samples[: len(streams)], self, frames)
        for stream in streams:
            stream.at += frames
        return chunk

    def warm(self, rows: Iterable[int], frames: int) -> None:
        """Capture chunks of these numbers of streams, so that no user waits for it."""
        for count in rows:
            self._captured(min(bucket(count), self.slots), frames)

    def part(self, stream: SlotStream, at: int, frames: int) -> slice:
        """Where the samples of a stream lie among those of a chunk that began at frame `at`.

        A chunk's samples begin `reach` band steps before its first frame: the filter bank needs as
        many after a sample. Those of the first chunk lie before the stream.
        """
        if not stream.known:
            raise EngineError("the length of the stream is not known yet")
        hop, late = self.config.audio.hop_length, self.reach * self.config.bands
        left = stream.frames - at
        end = frames * hop if left > frames else max(left, 0) * hop + (late if left > 0 else 0)
        return slice(late if at == 0 else 0, end)

    def _arrange(self, streams: Sequence[SlotStream]) -> int:
        """Bring streams into the first rows, in order; how many rows to run.

        Rows that are run beyond the streams must be without one: where others are in the way that
        cannot move, exactly the streams run.
        """
        count, running = len(streams), set(streams)
        for stream in streams:
            if self.rows[stream.row] is not stream:
                raise EngineError("a stream that has left cannot run")
        others = [s for s in self.rows if s is not None and s not in running]
        padded = min(bucket(count), self.slots) if self.buckets else count
        if padded > self.slots - len(others):
            padded = count
        taken = {s.row for s in others if s.row >= padded}
        room = iter(r for r in range(self.slots - 1, padded - 1, -1) if r not in taken)
        target = {s: row for row, s in enumerate(streams)}
        target |= {s: s.row if s.row >= padded else next(room) for s in others}
        self._move({s: row for s, row in target.items() if s.row != row})
        return padded

    def _move(self, target: dict[SlotStream, int]) -> None:
        if not target:
            return
        for stream in target:
            self.rows[stream.row] = None
        source = upload([s.row for s in target], torch.int64, self.device)
        for stream, row in target.items():
            self.rows[row], stream.row = stream, row
        into = upload(list(target.values()), torch.int64, self.device)
        for part in (*self.state, self.past, self.tail):
            part.index_copy_(0, into, part.index_select(0, source))
        slots = [self.slots if s is None else s.slot for s in self.rows]
        self.slot_of_row.copy_(upload(slots, torch.int64, self.device), non_blocking=True)

    def _captured(self, rows: int, frames: int) -> Replay:
        if (rows, frames) not in self._replays:
            kept = (*self.state, self.past, self.tail)
            self._replays[rows, frames] = Replay(lambda: self._chunk(rows, frames), (), kept)
        return self._replays[rows, frames]

    def _replay(self, rows: int, frames: int) -> Tensor:
        if self.buckets and rows in (bucket(rows), self.slots):
            return self._captured(rows, frames)()[0]
        return self._chunk(rows, frames)[0]

    def _chunk(self, rows: int, frames: int) -> tuple[Tensor]:
        """Samples [rows, (frames * steps + reach) * bands] of the first rows; moves their state."""
        c, repeat = self.config, self.config.band_steps_per_frame
        margin = self.vocoder.conditioning.reach
        state = WaveNetState(*(part[:rows] for part in self.state))
        slot = self.slot_of_row[:rows]
        columns = state.step[:, None] // repeat + torch.arange(
            -margin, frames + margin, device=self.device
        )
        length = self.frames[slot][:, None]
        inside = (columns >= 0) & (columns < length)
        at = columns.clamp(0, self.capacity - 1)
        mel = self.mel[slot[:, None], at].transpose(1, 2)
        conditioning = self.vocoder.conditioning(mel, inside.unsqueeze(1), margin)
        noise = kernels.stream_noise(
            self.seed[slot], self.number[slot], state.step, frames * repeat, c.bands,
            backend=self.backend,
        )  # fmt: skip
        noise = noise * self.vocoder.temperature
        bands = kernels.wavenet_generate(
            conditioning, noise, self.network, state, backend=self.backend
        )
        middle = slice(margin, margin + frames)
        if self.vocoder.prediction is not None:
            taps = self.taps[slot[:, None], at[:, middle]].permute(0, 2, 3, 1).contiguous()
            gain = self.gain[slot[:, None], at[:, middle]].transpose(1, 2).contiguous()
            bands = kernels.lpc_synthesis(
                bands, taps, gain, self.past[:rows], backend=self.backend
            )
        live = inside[:, middle].repeat_interleave(repeat, dim=1).unsqueeze(1)
        known = torch.cat([self.tail[:rows], torch.where(live, bands, 0)], dim=-1)
        self.tail[:rows] = known[..., -2 * self.reach :]
        samples = kernels.pqmf_synthesis(
            F.pad(known, (0, self.reach)), self.filters, backend=self.backend
        )
        late = self.reach * c.bands
        return (samples[:, late : samples.shape[1] - late].clamp(-1, 1),)
