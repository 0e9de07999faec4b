"""Samples -> wav, flac, mp3, opus or pcm, chunk by chunk as they are made. By PyAV (FFmpeg)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import av
import numpy as np

from engine.audio import pcm16

COMMENT = "synthetic speech, made by Clonewave"  # ICMT in a WAV, a comment elsewhere


@dataclass(frozen=True)
class Format:
    media_type: str
    container: str = ""  # FFmpeg's names; none: raw 16-bit little-endian samples
    codec: str = ""
    bit_rate: int = 0
    streamed: tuple[tuple[str, str], ...] = ()  # FFmpeg's options where the end is not known


FORMATS = {
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 96_000, (("write_xing", "0"),)),
    # Pages of 40 ms: FFmpeg's default holds a second of audio back.
    "opus": Format("audio/ogg", "ogg", "libopus", 48_000, (("page_duration", "40000"),)),
    "pcm": Format("audio/pcm"),
}


class Encoder:
    """One sound on its way out: `feed` chunks, then `finish`; each returns what can be sent.

    Joined, the bytes are a file of that format. A WAV says that its length is unknown, as players
    of streams expect.
    """

    def __init__(self, format: str, sample_rate: int, sink: IO[bytes] | None = None) -> None:
        """sink: a file that can seek, for headers that know the length; then nothing returns."""
        self.format, self.sample_rate = FORMATS[format], sample_rate
        self._sink = _Outbox() if sink is None else sink
        self._container: Any = None
        if self.format.container:
            self._open()

    def _open(self) -> None:
        kind = self.format
        options = dict(kind.streamed) if isinstance(self._sink, _Outbox) else {}
        self._container = av.open(
            cast(Any, self._sink), "w", format=kind.container, container_options=options
        )
        self._container.metadata["comment"] = COMMENT
        self._stream = self._container.add_stream(kind.codec, rate=self.sample_rate)
        self._stream.layout = "mono"
        if kind.bit_rate:
            self._stream.bit_rate = kind.bit_rate

    def feed(self, samples: np.ndarray) -> bytes:
        """float32 [samples], mono."""
        values = pcm16(samples)
        if self._container is None:
            self._sink.write(values.astype("<i2").tobytes())
        elif values.size:
            frame = av.AudioFrame.from_ndarray(values[None], format="s16", layout="mono")
            frame.sample_rate = self.sample_rate
            self._container.mux(self._stream.encode(frame))
        return self._out()

    def finish(self) -> bytes:
        """What the codec still holds, and the end of the file."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
        return self._out()

    def _out(self) -> bytes:
        return self._sink.take() if isinstance(self._sink, _Outbox) else b""


class _Outbox:
    """What FFmpeg wrote and nobody took yet. Has no seek, so that FFmpeg writes a stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def whole(format: str, samples: np.ndarray, sample_rate: int) -> bytes:
    """A complete file, whose header knows its length."""
    file = io.BytesIO()
    encoder = Encoder(format, sample_rate, file)
    for chunk in _blocks(samples):
        encoder.feed(chunk)
    encoder.finish()
    return file.getvalue()


def _blocks(samples: np.ndarray, size: int = 1 << 15) -> Iterator[np.ndarray]:
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]
