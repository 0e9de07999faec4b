"""Audio in and out: read anything, resample, prepare cloning samples, write, mu-law.

Validation lives here: what leaves `read` and `prepare` is finite mono float32, and the rest of
the engine trusts it. Decoding is bounded while it runs; a header's promises are never believed.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from engine import levels
from engine.audio_length import ends_early, promised_frames
from engine.config import AudioConfig
from engine.errors import InputError
from engine.files import PathLike, atomic_file

AudioSource = PathLike | IO[bytes] | np.ndarray | Tensor

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
CONTAINERS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")
SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_", "ULAW", "ALAW")
KNOWN_FORMATS = {  # our name (and suffix): libsndfile's container, default subtype
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
CONVERT = "give wav, flac, ogg, opus or mp3 (`ffmpeg -i YOUR_FILE out.wav` converts)"
BLOCK = 8192  # frames decoded at a time; a damaged block is lost whole
MIN_SPEECH_S = 1.0
MAX_CLIPPED = 0.01  # share of the speech
NOISY_DB = 8.0


@dataclass(frozen=True)
class DecodeLimits:
    """How much one file may decode to, counted while decoding."""

    seconds: float = 600.0
    bytes: int = 64 << 20  # float32, all channels; also the size of a file that cannot seek


@dataclass(frozen=True, eq=False)
class CloningSample:
    """One recording of the target speaker, ready for the speaker encoder."""

    samples: np.ndarray  # float32 [samples] at sample_rate, -23 dBFS active RMS, |x| <= 0.95
    sample_rate: int  # Hz
    seconds: float  # of speech
    snr_db: float  # speech over the noise in its pauses
    clipped_share: float  # of the speech's samples, before anything was changed
    level_db: float  # active RMS as recorded, dBFS


def read(
    source: AudioSource, sample_rate: int | None = None, *, limits: DecodeLimits | None = None
) -> tuple[np.ndarray, int]:
    """Read audio from a file, a binary file object, an array or a tensor, as mono float32.

    Args:
        source: a path, or a binary file object (read from its start), with wav, flac, ogg
            (vorbis, opus), mp3, aiff or au; or a 1-D or 2-D array or tensor, float in [-1, 1],
            int16, int32 or uint8. Of two axes the shorter one, at most 8 long, is the channels;
            they are averaged.
        sample_rate: Hz of an array or tensor, required there; must be None for files.
        limits: bounds on decoding files; DecodeLimits() if None.

    Returns:
        (samples, sample_rate): float32 [samples] and Hz, 4,000 to 192,000.

    Raises:
        InputError: it says which source, what is wrong and what to do.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return _read_array(source, sample_rate)
    if sample_rate is not None:
        raise InputError("sample_rate is for arrays; an audio file knows its own, leave it out")
    limits = limits or DecodeLimits()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the path of an audio file")
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
        try:
            with open(path, "rb") as file:
                return _decode(file, str(path), limits)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}; check the file") from error
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise InputError(
            f"{type(source).__name__} is not audio: give a path, a file object opened in binary "
            "mode (io.BytesIO for bytes), a numpy array or a torch tensor"
        )
    return _decode(_seekable(source, limits), str(getattr(source, "name", "audio file")), limits)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample float32 [samples] from `from_rate` to `to_rate` Hz with soxr's high quality."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_rate == to_rate:
        return samples
    return soxr.resample(samples, from_rate, to_rate, quality="HQ")


def prepare(
    source: AudioSource, sample_rate: int | None = None, *, config: AudioConfig
) -> CloningSample:
    """Make a recording fit for cloning: speech only, at the model's rate and a fixed level.

    Speech is found by frame energy, see `levels.find_speech`. Silence at the ends is cut off,
    silences inside longer than 0.3 s are shortened to it. The active RMS is brought to -23 dBFS;
    peaks over 0.7 are bent so that none passes 0.95.

    Raises:
        InputError: as `read`; and silent, less than 1 s of speech, or more than 1 % clipped.
    Warns:
        UserWarning: the recording is noisy (below 8 dB SNR).
    """
    samples, recorded_rate = read(source, sample_rate)
    is_path = isinstance(source, (str, os.PathLike))
    name = source if is_path else getattr(source, "name", "cloning sample")
    clipped_s = levels.clipped(samples) / recorded_rate
    samples = resample(samples - samples.mean(dtype=np.float64), recorded_rate, config.sample_rate)
    frame = round(levels.FRAME_S * config.sample_rate)
    power = levels.frame_power(samples, frame)
    if (loudest := levels.loudest_db(power)) < levels.SILENT_DB:
        raise InputError(f"{name}: silent ({loudest:.0f} dBFS at most); check the microphone")
    speech = levels.find_speech(power)
    seconds = float(speech.sum()) * levels.FRAME_S
    if seconds < MIN_SPEECH_S:
        raise InputError(
            f"{name}: {seconds:.2f} s of speech found, at least 1 s is needed; 3 s or more is best"
        )
    if (clipped_share := clipped_s / seconds) > MAX_CLIPPED:
        raise InputError(
            f"{name}: {clipped_share:.1%} of the speech is clipped; record again with less gain"
        )
    if (snr_db := levels.snr(power, speech)) < NOISY_DB:
        warnings.warn(f"{name}: noisy ({snr_db:.0f} dB SNR), the voice will suffer", stacklevel=2)
    level_db = float(10 * np.log10(power[speech].mean()))
    kept = levels.normalise(levels.cut_pauses(samples, speech, frame), level_db)
    return CloningSample(kept, config.sample_rate, seconds, snr_db, clipped_share, level_db)


def write(
    target: PathLike | IO[bytes],
    samples: np.ndarray | Tensor,
    sample_rate: int,
    format: str | None = None,
    subtype: str | None = None,
) -> None:
    """Write mono audio; a file appears complete or not at all.

    Args:
        target: a path, or a binary file object (then wav unless `format` is given).
        samples: float [samples]; values beyond [-1, 1] are clipped, never wrapped.
        sample_rate: Hz; mp3 and opus know only some rates, and the error lists them.
        format: "wav", "flac", "ogg" (Vorbis), "opus" or "mp3"; None takes the path's suffix.
        subtype: libsndfile's name, for example "PCM_24"; None: PCM_16 for wav and flac.

    Raises:
        InputError: unknown suffix or subtype, no samples, samples not finite, no such folder.
    """
    data = _encode(samples, sample_rate, *KNOWN_FORMATS[output_format(target, format)], subtype)
    if not isinstance(target, (str, os.PathLike)):
        target.write(data)
        return
    with atomic_file(target) as file:
        file.write(data)


def pcm16(samples: np.ndarray) -> np.ndarray:
    """int16 samples of float ones in [-1, 1]; what lies beyond is clipped, never wrapped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def output_format(target: PathLike | IO[bytes], format: str | None = None) -> str:
    """The key of KNOWN_FORMATS that `write` will use; for checks before long work.

    Raises:
        InputError: unknown suffix, no such folder, or the path is no regular file.
    """
    is_path = isinstance(target, (str, os.PathLike))
    if format is None:
        format = Path(target).suffix[1:] if is_path else "wav"  # type: ignore[arg-type]
    if format.lower() not in KNOWN_FORMATS:
        known = ", ".join(KNOWN_FORMATS)
        raise InputError(f"{target}: cannot write {format or 'no suffix'!r}; known: {known}")
    path = Path(target) if is_path else None  # type: ignore[arg-type]
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: the folder does not exist; create it first")
    if path is not None and path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file; give a new path or a file object")
    return format.lower()


def mu_law_encode(samples: np.ndarray | Tensor, channels: int = 256) -> np.ndarray | Tensor:
    """code = round((f + 1) / 2 * mu), f = sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = channels - 1.

    Args:
        samples: any shape, within [-1, 1]; what lies beyond is clipped.
    Returns:
        int64 codes in [0, channels), same shape and kind (array or tensor).
    Source: ITU-T G.711's companding curve as in WaveNet, arXiv:1609.03499, section 2.2.
    """
    mu = channels - 1
    x = torch.as_tensor(samples).double().clamp(-1.0, 1.0)
    f = torch.sign(x) * torch.log1p(mu * x.abs()) / np.log1p(mu)
    codes = torch.floor((f + 1) / 2 * mu + 0.5).long()
    return codes if isinstance(samples, Tensor) else codes.numpy()


def mu_law_decode(codes: np.ndarray | Tensor, channels: int = 256) -> np.ndarray | Tensor:
    """Inverse of `mu_law_encode`: float32 in [-1, 1]; encoding it again gives `codes`."""
    mu = channels - 1
    f = 2 * torch.as_tensor(codes).double() / mu - 1
    samples = (torch.sign(f) * torch.expm1(f.abs() * np.log1p(mu)) / mu).float()
    return samples if isinstance(codes, Tensor) else samples.numpy()


@np.errstate(invalid="ignore", over="ignore")  # reported by _checked
def _read_array(source: np.ndarray | Tensor, sample_rate: int | None) -> tuple[np.ndarray, int]:
    if sample_rate is None:
        raise InputError("an array does not know its sample_rate; pass sample_rate=… in Hz")
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if source.size == 0:
        raise InputError("array is empty; record again")
    if source.ndim not in (1, 2):
        raise InputError(f"array has {source.ndim} axes; give [samples] or [channels, samples]")
    if source.ndim == 2 and source.shape[0] > source.shape[1]:
        source = source.T
    if source.ndim == 2:
        _check_channels("array", source.shape[0])
    scale = {"int16": 1 / 32768, "int32": 1 / 2**31, "uint8": 1 / 128}.get(source.dtype.name)
    if scale is None and source.dtype.kind != "f":
        raise InputError(f"array of {source.dtype}; give float in [-1, 1], int16, int32 or uint8")
    values = source if scale is None else source * np.float64(scale)
    if source.dtype == np.uint8:
        values = values - 1.0  # its zero is 128
    samples = values if values.ndim == 1 else values.mean(axis=0)
    return _checked("array", np.ascontiguousarray(samples, dtype=np.float32), sample_rate)


def _seekable(file: IO[bytes], limits: DecodeLimits) -> IO[bytes]:
    """`file`, or its contents in memory where it cannot seek; never more than limits.bytes."""
    name = getattr(file, "name", "audio file")
    try:
        # Python 3.10's spooled temporary files (web uploads) can seek but have no seekable()
        can_seek = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
        if can_seek:
            file.seek(0)
        data = file.read(1 if can_seek else limits.bytes + 1)
    except (AttributeError, ValueError, OSError) as error:  # closed, write-only, half an interface
        raise InputError(f"{name}: cannot be read ({error}); open it in binary mode") from error
    if not isinstance(data, bytes):
        raise InputError(f"{name}: gives {type(data).__name__}; open it in binary mode")
    if len(data) > limits.bytes:
        raise InputError(f"{name}: over {limits.bytes:,} bytes; give a shorter recording")
    return file if can_seek else io.BytesIO(data)


def _decode(file: IO[bytes], name: str, limits: DecodeLimits) -> tuple[np.ndarray, int]:
    cut_short = ends_early(file)
    file.seek(0)  # libsndfile starts at the current position
    try:
        with _Forward(file) as audio:
            _check_header(name, audio)
            blocks, failed = _decode_blocks(audio, name, limits)
            sample_rate = audio.samplerate
            promised = promised_frames(file, audio.format, audio.frames)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if file.seek(0, io.SEEK_END) == 0:
            raise InputError(f"{name}: empty file; record it again") from error
        raise InputError(f"{name}: not readable as audio, or cut off; {CONVERT}") from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if samples.size and (failed or cut_short or samples.size < promised):
        seconds = samples.size / sample_rate
        warnings.warn(f"{name}: damaged or cut off, read {seconds:.2f} s of it", stacklevel=3)
    return _checked(name, samples, sample_rate)


class _Forward(soundfile.SoundFile):
    """soundfile seeks after each read of a seekable file, which corrupts the next MP3 frame."""

    def seekable(self) -> bool:
        return False


def _check_header(name: str, audio: Any) -> None:
    if audio.format not in CONTAINERS or not audio.subtype.startswith(SUBTYPES):
        raise InputError(f"{name}: {audio.format} with {audio.subtype}; {CONVERT}")
    _check_channels(name, audio.channels)
    _check_rate(name, audio.samplerate)


@np.errstate(invalid="ignore", over="ignore")  # reported by _checked
def _decode_blocks(audio: Any, name: str, limits: DecodeLimits) -> tuple[list[np.ndarray], bool]:
    """Mono blocks as far as decoding goes, and whether it ended in an error."""
    blocks: list[np.ndarray] = []
    frames = 0
    while True:
        try:
            block = audio.read(BLOCK, dtype="float32", always_2d=True)  # [frames, channels]
        except soundfile.LibsndfileError:
            return blocks, True
        if not len(block):
            return blocks, False
        frames += len(block)
        if frames > limits.seconds * audio.samplerate or frames * audio.channels * 4 > limits.bytes:
            raise InputError(
                f"{name}: longer than {limits.seconds:g} s or {limits.bytes >> 20} MiB decoded; "
                "give a shorter recording, a minute is plenty"
            )
        blocks.append(block.mean(axis=1) if audio.channels > 1 else block[:, 0])


def _check_channels(name: str, channels: int) -> None:
    if channels > MAX_CHANNELS:
        raise InputError(f"{name}: {channels} channels, at most {MAX_CHANNELS}; give a mono mix")


def _check_rate(name: str, sample_rate: int) -> None:
    numeric = isinstance(sample_rate, (int, float, np.integer, np.floating))
    if not numeric or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise InputError(f"{name}: {sample_rate} Hz; give {MIN_RATE:,} to {MAX_RATE:,} Hz")


def _checked(name: str, samples: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
    _check_rate(name, sample_rate)
    if not samples.size:
        raise InputError(f"{name}: no samples in it; record it again")
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: has samples that are not finite (NaN or infinity); export again")
    if (peak := float(np.abs(samples).max())) > 16:  # far from what a decoder may overshoot
        raise InputError(f"{name}: samples reach {peak:.0f}; scale floats to [-1, 1]")
    return samples, int(sample_rate)


def _encode(
    samples: np.ndarray | Tensor,
    sample_rate: int,
    container: str,
    default: str,
    subtype: str | None,
) -> bytes:
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu().float().numpy()
    if samples.ndim != 1 or not samples.size or samples.dtype.kind != "f":
        raise InputError(f"{samples.dtype} {samples.shape}: give float samples of shape [samples]")
    if not np.isfinite(samples).all():
        raise InputError("samples are not finite (NaN or infinity); nothing was written")
    samples = np.clip(samples, -1.0, 1.0)
    subtype = (subtype or default).upper()
    if subtype == "PCM_16":  # libsndfile scales by 32767 and truncates; this reads back exactly
        samples = pcm16(np.asarray(samples))
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, 1, subtype, format=container) as audio:
            for start in range(0, len(samples), BLOCK):  # libvorbis overflows on huge writes
                audio.write(samples[start : start + BLOCK])
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:
        reason = str(error).rpartition(": ")[2]
        raise InputError(f"{container} {subtype} at {sample_rate} Hz: {reason}") from error
    return buffer.getvalue()
