"""Cloning samples: speech found, trimmed and levelled; unfit recordings refused with a reason."""

import numpy as np
import pytest
from sounds import talk, tone

from engine import audio
from engine.config import AudioConfig
from engine.errors import InputError

CONFIG = AudioConfig()


def test_prepare_trims_and_normalises():
    silence = np.zeros(24_000, "f4")
    speech = talk(2.0)
    sample = audio.prepare(np.concatenate([silence, speech, silence]), 24_000, config=CONFIG)
    assert sample.sample_rate == 24_000 and sample.samples.dtype == np.float32
    assert sample.seconds == pytest.approx(2.0, abs=0.1)
    assert len(sample.samples) / 24_000 == pytest.approx(2.0, abs=0.2)
    assert 20 * np.log10(np.sqrt(np.mean(sample.samples**2.0))) == pytest.approx(-23, abs=0.3)
    assert sample.level_db == pytest.approx(20 * np.log10(np.sqrt(np.mean(speech**2.0))), abs=0.3)
    assert sample.clipped_share == 0


def test_prepare_gives_the_same_for_any_gain_and_offset():
    speech = talk()
    one = audio.prepare(speech, 24_000, config=CONFIG).samples
    for gain, offset in ((0.02, 0.0), (2.0, 0.0), (1.0, 0.2)):
        other = audio.prepare(speech * np.float32(gain) + np.float32(offset), 24_000, config=CONFIG)
        np.testing.assert_allclose(other.samples, one, atol=1e-3)


def test_prepare_shortens_inner_silence_to_300_ms():
    part = talk(1.0)
    for pause in (0.28, 1.0, 5.0):
        recording = np.concatenate([part, np.zeros(round(pause * 24_000), "f4"), part])
        sample = audio.prepare(recording, 24_000, config=CONFIG)
        quiet = np.abs(sample.samples) < 1e-5
        edges = np.flatnonzero(np.diff(quiet.astype(int), prepend=0, append=0))
        longest = (edges[1::2] - edges[::2]).max() / 24_000
        assert longest == pytest.approx(min(pause, 0.3), abs=0.03)
        assert sample.seconds == pytest.approx(2.0, abs=0.1)


def test_prepare_resamples_to_the_config():
    sample = audio.prepare(talk(2.0, 8_000), 8_000, config=CONFIG)
    assert sample.sample_rate == 24_000
    assert len(sample.samples) / 24_000 == pytest.approx(2.0, abs=0.1)


def test_prepare_limits_peaks_without_wrapping():
    speech = talk()
    speech[10_000:10_003] = [0.9, -0.9, 0.9]
    quiet = audio.prepare(speech * np.float32(0.1), 24_000, config=CONFIG).samples
    assert 0.7 < np.abs(quiet).max() <= 0.95


@pytest.mark.parametrize("snr_db", [10, 20, 30])
def test_snr_estimate_is_near_the_truth(snr_db):
    speech = talk(4.0, noise=0)
    speech[48_000:72_000] = 0  # a pause
    power = np.mean(np.delete(speech, np.s_[48_000:72_000]) ** 2.0)
    noise = np.random.default_rng(1).standard_normal(speech.size) * power**0.5 / 10 ** (snr_db / 20)
    sample = audio.prepare((speech + noise).astype("f4"), 24_000, config=CONFIG)
    assert sample.snr_db == pytest.approx(snr_db, abs=2)


def test_noise_warns_and_is_not_refused():
    noise = 0.1 * np.random.default_rng(0).standard_normal(72_000)
    with pytest.warns(UserWarning, match="noisy"):
        audio.prepare(noise, 24_000, config=CONFIG)


@pytest.mark.parametrize("padding", [0.0, 1e-3])
def test_too_little_speech_says_how_much(padding):
    rng = np.random.default_rng(0)
    recording = (padding * rng.standard_normal(72_000)).astype("f4")
    recording[24_000:28_800] += tone(0.2, level=0.3)
    with pytest.raises(InputError, match=r"0\.2\d s of speech found, at least 1 s is needed"):
        audio.prepare(recording, 24_000, config=CONFIG)


def test_silence_and_clicks_are_refused(tmp_path):
    path = tmp_path / "quiet.wav"
    audio.write(path, np.zeros(48_000, "f4"), 24_000)
    with pytest.raises(InputError, match=r"quiet\.wav: silent"):
        audio.prepare(path, config=CONFIG)
    clicks = np.zeros(48_000, "f4")
    clicks[::12_000] = 1.0
    with pytest.raises(InputError, match="silent"):
        audio.prepare(clicks, 24_000, config=CONFIG)
    with pytest.raises(InputError, match="silent"):
        audio.prepare(np.ones(100, "f4"), 24_000, config=CONFIG)  # shorter than a frame


@pytest.mark.filterwarnings("ignore:.*noisy")  # regular clicks are
def test_clipping_is_measured_and_refused():
    loud = np.clip(talk() * 8, -1, 1)
    with pytest.raises(InputError, match="clipped; record again with less gain"):
        audio.prepare(loud, 24_000, config=CONFIG)
    a_little = talk()
    a_little[30_000:30_100] = 1.0
    sample = audio.prepare(a_little, 24_000, config=CONFIG)
    assert sample.clipped_share == pytest.approx(100 / 72_000, rel=0.1)
    single_peaks = talk()
    single_peaks[::50] = 1.0  # 2 % at full scale, but never three in a row: not clipping
    assert audio.prepare(single_peaks, 24_000, config=CONFIG).clipped_share == 0


def test_a_train_of_clicks_is_not_speech():
    clicks = np.zeros(72_000, "f4")
    for start in range(0, 72_000, 3_600):
        clicks[start : start + 480] = tone(0.02)  # 20 ms every 0.15 s, near enough to be bridged
    with pytest.raises(InputError, match=r"0\.00 s of speech"):
        audio.prepare(clicks, 24_000, config=CONFIG)
