"""Uploads -> samples, through a process that may crash, hang or run out of memory in our place.

Pebble's pools would serve, but their workers import the server's main module, and with it torch:
more addresses than the limit on a decoder's memory. See `decode_child.py` for what runs there.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from engine.errors import InputError
from engine.serve.settings import DecodeLimits

SCRIPT = Path(__file__).with_name("decode_child.py")
GRACE_S = 20.0  # beyond the child's own limit; a start on a busy machine takes seconds


class AudioRefused(InputError):
    """An upload that cannot be used, with the HTTP status that says so."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Decoder:
    """Decodes uploads, `workers` at a time; every file in a process of its own.

    Args:
        limits: enforced in that process.
        on_kill: called when one had to be killed, or crashed.
    """

    def __init__(
        self,
        limits: DecodeLimits | None = None,
        workers: int = 2,
        on_kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or DecodeLimits()
        self._on_kill = on_kill
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker() for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def decode(self, data: bytes) -> tuple[np.ndarray, int]:
        """(float32 mono [samples], Hz) of an upload. Blocks; thread-safe.

        Raises:
            AudioRefused: 413 too long, 415 not a kind of audio that is taken, 422 not usable.
        """
        if not _looks_like_audio(data):
            message = "not WAV, FLAC, Ogg or MP3; convert it (`ffmpeg -i YOUR_FILE out.wav`)"
            raise AudioRefused(415, "audio_unsupported", message)
        with _memory_file() as upload, _memory_file() as out:
            upload.write(data)
            upload.seek(0)
            worker = self._idle.get()
            try:
                answer = worker.ask(upload.fileno(), out.fileno(), self.limits)
            finally:
                self._idle.put(worker)
            if answer.get("killed"):
                self._on_kill()
            if "status" in answer:
                raise AudioRefused(answer["status"], answer["code"], answer["message"])
            size = min(4 * answer["frames"], self.limits.decoded_bytes)
            samples = np.frombuffer(os.pread(out.fileno(), size, 0), np.float32)
        return samples, answer["rate"]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One forking process; started when first needed and again if it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def ask(self, upload: int, out: int, limits: DecodeLimits) -> dict:
        """The answer about one file."""
        message = json.dumps(asdict(limits)).encode()
        try:
            control = self._started()
            control.settimeout(limits.wall_s + GRACE_S)
            socket.send_fds(control, [message], [upload, out])
            answer = b""
            while not answer.endswith(b"\n"):
                part = control.recv(65536)
                if not part:
                    raise EOFError
                answer += part
            return json.loads(answer)
        except (OSError, EOFError, ValueError):  # it died or hangs: the next file gets a new one
            self.stop()
            told = {"status": 422, "code": "audio_undecodable", "killed": True}
            return {**told, "message": "cannot be decoded"}

    def _started(self) -> socket.socket:
        if self._socket is None or self._process is None or self._process.poll() is not None:
            self.stop()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(SCRIPT)],
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                    env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, cwd="/",
                )  # fmt: skip
            self._socket = ours
        return self._socket

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _looks_like_audio(data: bytes) -> bool:
    """By the first bytes, before a process is bothered."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"WAVE"
    mp3 = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2  # frame sync, layer III
    return data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or mp3


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("clonewave"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


