"""Audio in and out: exact values, every width and container, and errors that help."""

import io
import os
import stat
import struct
import tempfile
import warnings

import numpy as np
import pytest
import soundfile
import torch
from sounds import talk, tone

from engine import audio
from engine.errors import InputError


def encode(samples, rate, container, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def wav(data, bits, tag=1, channels=1, rate=24_000):
    """A WAV file by hand, so that what is read is compared with bytes and not with a library."""
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data


# --- read: values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "tag", "data", "expected"),
    [
        (8, 1, bytes([0, 64, 128, 192, 255]), [-1, -0.5, 0, 0.5, 127 / 128]),
        (16, 1, struct.pack("<4h", -32768, 16384, 1, 32767), [-1, 0.5, 2**-15, 1 - 2**-15]),
        (24, 1, b"\0\0\x80" b"\0\0\x40" b"\1\0\0" b"\xff\xff\x7f",
         [-1, 0.5, 2**-23, 1 - 2**-23]),
        (32, 1, struct.pack("<3i", -(2**31), 2**30, 2**16), [-1, 0.5, 2**-15]),
        (32, 3, struct.pack("<4f", -1, 0.5, 1.25, 2**-20), [-1, 0.5, 1.25, 2**-20]),
        (64, 3, struct.pack("<3d", -1, 0.5, 2**-20), [-1, 0.5, 2**-20]),
    ],
    ids=["u8", "s16", "s24", "s32", "f32", "f64"],
)  # fmt: skip
def test_every_wav_width_reads_exactly(tmp_path, bits, tag, data, expected):
    path = tmp_path / "x.wav"
    path.write_bytes(wav(data, bits, tag))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        samples, rate = audio.read(source)
        assert samples.dtype == np.float32 and rate == 24_000
        np.testing.assert_array_equal(samples, np.float32(expected))


def test_channels_are_averaged():
    data = struct.pack("<6h", 100, 300, -200, 200, 32767, 32767)
    samples, rate = audio.read(io.BytesIO(wav(data, 16, channels=2, rate=96_000)))
    np.testing.assert_array_equal(samples, np.float32([200, 0, 32767]) / 32768)
    assert rate == 96_000


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 44_100, 96_000, 192_000])
def test_any_rate(rate):
    sound = tone(0.25, rate)
    samples, found = audio.read(io.BytesIO(encode(sound, rate, "WAV", "FLOAT")))
    assert found == rate
    np.testing.assert_array_equal(samples, sound)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.astype(np.float64),
        lambda x: x[None],
        lambda x: x[:, None],
        lambda x: np.stack([x, x]),
        lambda x: np.stack([x, x], axis=1),
        lambda x: np.round(x * 32768).astype(np.int16),
        lambda x: np.round(x * 2.0**31).astype(np.int32),
        lambda x: torch.tensor(x),
        lambda x: torch.tensor(x, requires_grad=True)[None],
        lambda x: torch.tensor(np.round(x * 32768).astype(np.int16)),
        lambda x: np.repeat(x, 2)[::2],
        lambda x: x.astype(">f4"),
    ],
)
def test_arrays_and_tensors_of_any_layout(make):
    expected = np.round(tone(0.05) * 32768).astype(np.float32) / 32768
    samples, rate = audio.read(make(expected), 24_000)
    assert samples.dtype == np.float32 and samples.flags.c_contiguous and rate == 24_000
    np.testing.assert_allclose(samples, expected, atol=1e-7)


def test_unsigned_bytes_and_half_precision():
    samples, _ = audio.read(np.array([0, 128, 255], np.uint8), 8_000)
    np.testing.assert_array_equal(samples, np.float32([-1, 0, 127 / 128]))
    for half in (np.float16([0.5, -1]), torch.tensor([0.5, -1], dtype=torch.bfloat16)):
        np.testing.assert_array_equal(audio.read(half, 8_000)[0], np.float32([0.5, -1]))


class Pipe(io.RawIOBase):
    """Reads on, never back."""

    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.inner.readinto(buffer)


def test_file_objects_at_any_position_and_without_seek():
    data = encode(tone(0.5), 24_000, "FLAC", "PCM_16")
    expected, _ = audio.read(io.BytesIO(data))
    at_end = io.BytesIO()
    at_end.write(data)
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(data)
        for file in (at_end, spooled, io.BufferedReader(Pipe(data))):
            np.testing.assert_array_equal(audio.read(file)[0], expected)


# --- read: errors -------------------------------------------------------------------------------


def message(source, *args, **kwargs):
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error")
        audio.read(source, *args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("array", "rate", "word"),
    [
        (np.zeros(9, np.float32), None, "sample_rate"),
        (np.zeros(9, np.float32), 100, "100 Hz"),
        (np.zeros(9, np.float32), float("nan"), "Hz"),
        (np.zeros(9, np.float32), "24000", "Hz"),
        (np.zeros(0, np.float32), 8000, "empty"),
        (np.zeros((0, 2), np.float32), 8000, "empty"),
        (np.zeros((), np.float32), 8000, "axes"),
        (np.zeros((1, 2, 3), np.float32), 8000, "axes"),
        (np.zeros((9, 100), np.float32), 8000, "9 channels"),
        (np.zeros(9, np.int64), 8000, "int64"),
        (np.zeros(9, bool), 8000, "bool"),
        (np.zeros(9, complex), 8000, "complex128"),
        (np.array(["a"]), 8000, "float in"),
        (np.array([0, np.nan]), 8000, "finite"),
        (np.array([[np.inf, -np.inf], [-np.inf, np.inf]]), 8000, "finite"),
        (np.array([1e300, 0]), 8000, "finite"),
        (np.array([12_000.0, -300.0]), 8000, "12000"),
    ],
)
def test_arrays_that_are_no_audio(array, rate, word):
    assert word in message(array, rate)


def test_files_that_are_no_audio(tmp_path):
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("this is not audio\n" * 100)
    empty.write_bytes(b"")
    assert "text.wav" in message(text) and "ffmpeg" in message(text)
    assert "empty.wav: empty file" in message(empty)
    assert "no such file" in message(tmp_path / "none.wav")
    assert "folder" in message(tmp_path)
    (tmp_path / "x.raw").write_bytes(b"\1\2" * 100)
    assert "not readable as audio" in message(tmp_path / "x.raw")
    assert "no samples" in message(io.BytesIO(wav(b"", 16)))
    assert "sample_rate" in message(text, 24_000)
    assert "finite" in message(io.BytesIO(wav(struct.pack("<2f", 0, np.nan), 32, tag=3)))
    assert "9 channels" in message(io.BytesIO(wav(b"\0" * 180, 16, channels=9)))
    assert "1000 Hz" in message(io.BytesIO(wav(b"\0" * 180, 16, rate=1000)))
    assert "IMA_ADPCM" in message(io.BytesIO(encode(tone(), 24_000, "WAV", "IMA_ADPCM")))


def test_objects_that_are_no_files(tmp_path):
    closed = io.BytesIO(b"x")
    closed.close()
    (tmp_path / "x.wav").write_bytes(wav(b"\0\0", 16))
    with open(tmp_path / "x.wav", encoding="latin-1") as as_text:
        assert "binary" in message(as_text)
    with open(tmp_path / "y.wav", "wb") as write_only:
        assert "binary" in message(write_only)
    assert "cannot be read" in message(closed)
    for thing in (b"RIFF", None, 3, [0.0, 1.0]):
        assert type(thing).__name__ in message(thing)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
     ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_truncated_files_are_read_as_far_as_they_go(container, subtype):
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal(12 * 24_000)).astype("f4")
    buffer = io.BytesIO()
    audio.write(buffer, sound, 24_000, {"VORBIS": "ogg"}.get(subtype, container), subtype)
    data = buffer.getvalue()
    whole, _ = audio.read(io.BytesIO(data))
    with pytest.warns(UserWarning, match="cut off"):
        part, _ = audio.read(io.BytesIO(data[: len(data) // 2]))
    assert 0.3 * len(whole) < len(part) < 0.6 * len(whole)
    np.testing.assert_allclose(part[:24_000], whole[:24_000], atol=1e-4)
    if container != "MP3":  # an mp3 has no beginning: any frame will do
        assert message(io.BytesIO(data[:40]))


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
def test_streamed_wav_of_unknown_size_is_whole(size):
    data = bytearray(wav(struct.pack("<100h", *range(100)), 16))
    data[4:8] = data[40:44] = size  # as ffmpeg writes into a pipe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples, _ = audio.read(io.BytesIO(data))
    np.testing.assert_array_equal(samples * 32768, np.arange(100))


def test_decoding_is_bounded_whatever_the_header_says():
    sound = np.zeros(30 * 24_000, "f4")
    flac = encode(sound, 24_000, "FLAC", "PCM_16")
    assert len(flac) < 20_000  # a small file that unpacks to 2.9 MB
    assert "longer" in message(io.BytesIO(flac), limits=audio.DecodeLimits(seconds=10))
    assert "longer" in message(io.BytesIO(flac), limits=audio.DecodeLimits(bytes=1 << 20))
    assert len(audio.read(io.BytesIO(flac), limits=audio.DecodeLimits(seconds=30))[0]) == 720_000
    forged = wav(b"\0\0" * 720_000, 16, rate=192_000)  # 30 s that pretend to be 3.75 s
    assert "longer" in message(io.BytesIO(forged), limits=audio.DecodeLimits(bytes=1 << 20))
    endless = io.BufferedReader(Pipe(wav(b"\0\0" * 720_000, 16)))
    assert "over" in message(endless, limits=audio.DecodeLimits(bytes=1 << 20))


def test_damaged_files_never_escape_as_other_errors():
    rng = np.random.default_rng(5)
    kinds = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
    for container, subtype in kinds:
        whole = encode(talk(0.6), 24_000, container, subtype)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, min(len(data), rng.choice([64, len(data)])), size=4):
                data[at] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    samples, _ = audio.read(io.BytesIO(data))
                except InputError:
                    continue
            assert samples.ndim == 1 and np.isfinite(samples).all()


# --- resample, mu-law ---------------------------------------------------------------------------


@pytest.mark.parametrize(("from_rate", "to_rate"), [(8_000, 24_000), (96_000, 24_000)])
def test_resample_keeps_a_tone(from_rate, to_rate):
    moved = audio.resample(tone(1.0, from_rate), from_rate, to_rate)
    assert moved.dtype == np.float32 and moved.shape == (to_rate,)
    inside = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(moved[inside], tone(1.0, to_rate)[inside], atol=1e-3)


def test_resample_removes_what_would_alias():
    moved = audio.resample(tone(1.0, 96_000, hz=20_000), 96_000, 24_000)
    assert np.abs(moved[2400:-2400]).max() < 1e-3


@pytest.mark.parametrize("channels", [256, 512, 65_536])
def test_mu_law_decode_is_inverted_by_encode(channels):
    codes = np.arange(channels)
    samples = audio.mu_law_decode(codes, channels)
    assert samples.dtype == np.float32 and samples[0] == -1 and samples[-1] == 1
    assert (np.diff(samples) > 0).all()
    np.testing.assert_array_equal(audio.mu_law_encode(samples, channels), codes)


def test_mu_law_values():
    x = np.array([-2.0, -1.0, 0.0, 0.01, 1.0])
    codes = audio.mu_law_encode(x)
    # f(0.01) = ln(1 + 2.55) / ln(256) = 0.22849, (f + 1) / 2 * 255 = 156.63
    np.testing.assert_array_equal(codes, [0, 0, 128, 157, 255])
    as_tensor = audio.mu_law_encode(torch.tensor(x))
    assert isinstance(as_tensor, torch.Tensor) and as_tensor.tolist() == codes.tolist()
    dense = np.linspace(-1, 1, 10_001)
    error = np.abs(audio.mu_law_decode(audio.mu_law_encode(dense)) - dense)
    # half a step of f, through the slope of the decoder at |x|
    assert (error <= (1 + 255 * np.abs(dense)) / 255 * np.log(256) / 255 * 1.05).all()


# --- write --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_pcm_16_reads_back_bit_for_bit(tmp_path, suffix):
    expected = np.arange(-32768, 32768, dtype=np.float32) / 32768
    audio.write(tmp_path / f"x.{suffix}", expected, 24_000)
    samples, rate = audio.read(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(samples, expected)
    assert rate == 24_000


@pytest.mark.parametrize(
    ("suffix", "container", "subtype"),
    [("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III"),
     ("FLAC", "FLAC", "PCM_16"), ("wav", "WAV", "PCM_16")],
)  # fmt: skip
def test_round_trip_through_every_format(tmp_path, suffix, container, subtype):
    sound, path = tone(2.0), tmp_path / f"x.{suffix}"
    audio.write(path, torch.tensor(sound), 24_000)
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate) == (container, subtype, 24_000)
    samples, _ = audio.read(path)
    assert len(samples) == pytest.approx(len(sound), abs=2500)  # coders pad
    middle = samples[12_000:36_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size)))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    assert np.sqrt(np.mean(middle**2.0)) == pytest.approx(0.5 / 2**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "opus", "mp3"])
def test_reading_in_blocks_equals_reading_at_once(name):
    buffer = io.BytesIO()
    audio.write(buffer, talk(4.0), 24_000, name)
    in_blocks, _ = audio.read(buffer)
    buffer.seek(0)
    np.testing.assert_allclose(in_blocks, soundfile.read(buffer, dtype="float32")[0], atol=1e-6)


def test_values_beyond_full_scale_are_clipped_not_wrapped():
    for subtype in (None, "PCM_24", "FLOAT"):
        buffer = io.BytesIO()
        audio.write(buffer, np.float32([3, -3, 0.5, 1, -1]), 24_000, subtype=subtype)
        samples, _ = audio.read(buffer)
        np.testing.assert_allclose(samples, [1, -1, 0.5, 1, -1], atol=1e-4)


def test_write_errors_help_and_leave_nothing(tmp_path):
    sound = tone(0.1)
    with pytest.raises(InputError, match="wav, flac, ogg, opus, mp3"):
        audio.write(tmp_path / "x.aac", sound, 24_000)
    with pytest.raises(InputError, match="no suffix"):
        audio.write(tmp_path / "x", sound, 24_000)
    with pytest.raises(InputError, match="folder"):
        audio.write(tmp_path / "none" / "x.wav", sound, 24_000)
    with pytest.raises(InputError, match="48000"):
        audio.write(tmp_path / "x.opus", sound, 22_050)
    with pytest.raises(InputError, match="PCM_99"):
        audio.write(tmp_path / "x.wav", sound, 24_000, subtype="PCM_99")
    for bad in (np.float32([0, np.nan]), np.zeros(0, "f4"), np.zeros((2, 9), "f4"), np.arange(3)):
        with pytest.raises(InputError):
            audio.write(tmp_path / "x.wav", bad, 24_000)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InputError, match="regular"):
        audio.write(tmp_path / "pipe.wav", sound, 24_000)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe.wav"]


def test_write_is_atomic_and_follows_the_umask(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    audio.write(path, tone(0.1), 24_000)
    before = path.read_bytes()
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    plain.unlink()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        audio.write(path, tone(0.2), 24_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
