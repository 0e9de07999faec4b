"""Decodes recordings of strangers, one per forked process. Run as a script, never imported.

The loop below holds nothing but numpy and libsndfile. For every file it forks; the child has
no file it could open, no socket it could make, little memory and little time, and is killed if it
takes longer. What it decodes goes to a file that the server made; what it says is one JSON object.
It runs by its path, so that `engine` and torch with their gigabytes of addresses stay outside.

On standard input, a Unix socket: a JSON line of limits with two descriptors, the upload and the
file for float32 mono samples. The answer: a JSON line, {"rate", "frames"} or {"status", "code",
"message"}.
"""

import io
import json
import os
import resource
import select
import signal
import socket
import time
from typing import IO, Any

import numpy as np
import soundfile

BLOCK = 8192  # frames
# An allow-list, of container and subtype: most decoder bugs were in the rare ones.
ALLOWED = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"),
    "WAVEX": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
}


class Refused(Exception):
    """status, code, message of the answer to the client."""


class Forward(soundfile.SoundFile):
    """soundfile seeks after each read of a seekable file, which corrupts the next MP3 frame."""

    def seekable(self) -> bool:
        return False


def decode(upload: IO[bytes], out: IO[bytes], limits: dict[str, Any]) -> tuple[int, int]:
    """Samples of `upload` into `out`; returns (rate, frames)."""
    try:
        with Forward(upload) as audio:
            check_header(audio, limits)
            return audio.samplerate, copy(audio, out, limits)
    except (soundfile.LibsndfileError, ValueError, TypeError, OverflowError):
        raise Refused(415, "audio_unreadable", "not readable as audio, or cut off") from None


def check_header(audio: Any, limits: dict[str, Any]) -> None:
    if audio.subtype not in ALLOWED.get(audio.format, ()):
        known = "WAV (PCM, float), FLAC, Ogg (Vorbis, Opus) or MP3"
        raise Refused(415, "audio_unsupported", f"{audio.format} {audio.subtype}: give {known}")
    if audio.channels > limits["channels"]:
        message = f"{audio.channels} channels, at most {limits['channels']}"
        raise Refused(422, "audio_channels", message)
    if not limits["min_rate"] <= audio.samplerate <= limits["max_rate"]:
        message = f"{audio.samplerate} Hz: {limits['min_rate']} to {limits['max_rate']} are taken"
        raise Refused(422, "audio_sample_rate", message)


def copy(audio: Any, out: IO[bytes], limits: dict[str, Any]) -> int:
    """Mono blocks to `out`, counted as they come; the header's length is never believed."""
    frames, most = 0, limits["max_s"] * audio.samplerate
    while True:
        try:
            block = audio.read(BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:  # damaged from here on; what came before may do
            break
        if not len(block):
            break
        frames += len(block)
        if frames > most or frames * audio.channels * 4 > limits["decoded_bytes"]:
            message = f"longer than {limits['max_s']:g} s; a minute is plenty"
            raise Refused(413, "audio_too_long", message)
        with np.errstate(all="ignore"):
            mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all() or np.abs(mono).max() > 16:
            raise Refused(422, "audio_not_finite", "samples are NaN, infinite or far beyond 1")
        out.write(mono.tobytes())
    if frames < limits["min_s"] * audio.samplerate:
        message = f"{frames / audio.samplerate:.2f} s of audio; at least {limits['min_s']:g} s"
        raise Refused(422, "audio_too_short", message)
    out.flush()
    return frames


def lock_in(limits: dict[str, Any]) -> None:
    """From here on: no new descriptor (so no file and no socket), bounded memory and time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def child(upload_fd: int, out_fd: int, answer_fd: int, limits: dict[str, Any]) -> None:
    """Decode, answer, and end; never returns."""
    try:
        upload, out = os.fdopen(upload_fd, "rb"), os.fdopen(out_fd, "wb")
        lock_in(limits)
        answer: dict[str, Any]
        try:
            rate, frames = decode(upload, out, limits)
            answer = {"rate": rate, "frames": frames}
        except Refused as refused:
            answer = dict(zip(("status", "code", "message"), refused.args, strict=True))
        except MemoryError:
            answer = {"status": 413, "code": "audio_too_large", "message": "needs too much memory"}
        os.write(answer_fd, json.dumps(answer).encode())
        os._exit(0)
    except BaseException:
        os._exit(1)


def serve_one(upload_fd: int, out_fd: int, limits: dict[str, Any]) -> dict[str, Any]:
    """Fork for one file; its answer, or what became of it."""
    answer_fd, child_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(upload_fd, out_fd, child_fd, limits)
    os.close(child_fd)
    try:
        deadline = time.monotonic() + limits["wall_s"]
        ready, _, _ = select.select([answer_fd], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
        data = os.read(answer_fd, 65536) if ready else b""
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(answer_fd)
    if data:
        return json.loads(data)
    died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    slow = not ready or died in (signal.SIGXCPU, signal.SIGKILL)
    message = "takes too long to decode" if slow else "cannot be decoded"
    return {"status": 422, "code": "audio_undecodable", "message": message, "killed": True}


def warm_up() -> None:
    """Whatever a first use loads has to be loaded before files cannot be opened any more."""
    for format, subtypes in ALLOWED.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(2400, np.float32), 24000, subtypes[-1], format=format)
        buffer.seek(0)
        limits = {"channels": 2, "min_rate": 1, "max_rate": 1 << 30, "max_s": 9, "min_s": 0}
        decode(buffer, io.BytesIO(), {**limits, "decoded_bytes": 1 << 30})


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ctrl-c is for the server
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warm_up()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libmpg123 complains there about every file
    control = socket.socket(fileno=0)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
        if not data:  # the server is gone
            return
        try:
            answer = serve_one(descriptors[0], descriptors[1], json.loads(data))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        control.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
