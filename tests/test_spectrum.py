"""The equaliser of a clone: what it measures, that it is heard, and where it is kept."""

import shutil

import numpy as np
import pytest
import torch
from sounds import talk
from tiny import make_weights
from tiny_corpus import store as make_store

import engine as package
from engine import Engine, Voice, VoiceError, WeightsError, spectrum
from engine.config import AudioConfig
from engine.models.layers import log_mel
from engine.spectrum import DB, HIGHEST, LOWEST, Spectrum, equaliser_for, loud_average
from engine.synthesize import speak
from engine.text import front_end

RATE = 24_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def speaking(folder):
    """An engine that knows its average spectrum, measured as `train directions` does."""
    found = spectrum.measure(Engine(folder), make_store(speakers=6))
    found.save(folder / spectrum.FILE)
    return Engine(folder)


def test_the_average_is_that_of_the_loud_frames_and_padding_is_none():
    mel = torch.full((2, 100, 30), -3.0)
    mel[:, :, 10:] = -9.0  # 52 dB below
    mel[1, :, 20:] = 5.0  # beyond its length
    found = loud_average(mel, torch.tensor([30, 20]))
    torch.testing.assert_close(found, torch.full((2, 100), -3.0))
    torch.testing.assert_close(loud_average(mel[:1]), found[:1])


def test_the_equaliser_turns_one_average_into_another_within_its_limits():
    own = np.linspace(-2, -5, 100)
    shape = 6 * DB * np.sin(np.linspace(0, 2 * np.pi, 100))  # +-6 dB, smooth
    found = equaliser_for(own + shape + 1.5, own)  # and louder, which is no colour
    np.testing.assert_allclose(found - found.mean(), shape - shape.mean(), atol=0.25 * DB)
    loudness = lambda spectrum: np.log(np.exp(2 * spectrum).sum()) / 2  # noqa: E731
    assert loudness(own + found) == pytest.approx(loudness(own), abs=0.01)
    far = equaliser_for(own + 10 * np.sign(shape), own)
    assert far.min() >= LOWEST - 1e-6 and far.max() <= HIGHEST + 1e-6
    np.testing.assert_allclose(equaliser_for(own, own), 0, atol=1e-6)


def test_ridge_finds_how_the_generator_sounds(speaking):
    """For an embedding it was not measured with, better than the mean of all voices does."""
    rng, errors, spread = np.random.default_rng(7), [], []
    for seed in range(3):
        voice = speaking.clone(talk(3.0, noise=0.01, seed=seed) * rng.uniform(0.2, 1), RATE)
        real = spectrum._spoken(speaking, torch.tensor(voice.embedding)[None]).numpy()
        errors.append(np.abs(speaking.spectrum(voice.embedding) - real).mean())
        spread.append(np.abs(speaking.spectrum.bias - real).mean())
    assert np.mean(errors) < 0.8 * np.mean(spread)


def test_a_clone_is_equalised_to_its_recording_and_sounds_like_it(speaking):
    voice = speaking.clone(talk(3.0), RATE)
    audio = AudioConfig()
    recording = loud_average(log_mel(torch.from_numpy(talk(3.0))[None], audio))[0].numpy()
    expected = equaliser_for(recording, speaking.spectrum(voice.embedding))
    np.testing.assert_allclose(voice.equaliser, expected, atol=0.05)
    assert np.abs(voice.equaliser).max() > 1 * DB
    flat = speaking.speaker(voice.embedding)
    sentence = front_end("Hello there.")[0]
    with_it, without = (speak(s, sentence, 1.0).mel for s in (speaking.speaker(voice), flat))
    torch.testing.assert_close(
        with_it - without, torch.tensor(voice.equaliser)[None, :, None].expand_as(without),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    joined = np.concatenate(list(speaking.stream("Hello there.", voice, seed=1)))
    whole = speaking.synthesize("Hello there.", voice, seed=1)
    np.testing.assert_array_equal(joined, whole.samples)


def test_several_samples_count_by_their_weights(speaking):
    loud, dull = talk(3.0, seed=1), np.convolve(talk(3.0, seed=2), np.ones(24) / 24)[: 3 * RATE]
    both = speaking.clone([loud, dull.astype("f4")], RATE)
    heard = [
        loud_average(log_mel(torch.from_numpy(s.astype("f4"))[None], AudioConfig()))[0].numpy()
        for s in (loud, dull)
    ]
    mixed = both.weights[0] * heard[0] + both.weights[1] * heard[1]
    expected = equaliser_for(mixed, speaking.spectrum(both.embedding))
    np.testing.assert_allclose(both.equaliser, expected, atol=0.1)


def test_bulk_cloning_equalises_as_cloning_does(speaking):
    people = [talk(3.0, seed=i)[: RATE * 3 - 999 * i] for i in range(3)]
    for voice, wav in zip(speaking.clone_many(people, RATE), people, strict=True):
        np.testing.assert_allclose(voice.equaliser, speaking.clone(wav, RATE).equaliser, atol=2e-3)


def test_the_voice_file_keeps_it_and_the_voice_belongs_to_its_generator(speaking, tmp_path):
    voice = speaking.clone(talk(3.0), RATE)
    voice.save(tmp_path / "v.safetensors")
    assert (tmp_path / "v.safetensors").stat().st_size < 10_000
    again = Voice.load(tmp_path / "v.safetensors", speaking.encoder_hash, speaking.acoustic_hash)
    assert again.equaliser.tobytes() == voice.equaliser.tobytes()
    with pytest.raises(VoiceError, match="generator"):
        Voice.load(tmp_path / "v.safetensors", speaking.encoder_hash, "ab" * 32)
    for wrong in (np.full(100, np.nan), np.full(100, 9.0), np.zeros((2, 50)), np.zeros(600)):
        with pytest.raises(VoiceError, match="equaliser"):
            Voice(voice.embedding, (1.0,), voice.encoder, {}, voice.acoustic, equaliser=wrong)
    odd = Voice(voice.embedding, (1.0,), voice.encoder, {}, voice.acoustic, equaliser=np.zeros(9))
    with pytest.raises(VoiceError, match="9 bands"):
        speaking.synthesize("Hi.", odd)
    plain = Voice(-voice.embedding, (1.0,), voice.encoder, {}, voice.acoustic)
    mixed = package.blend({voice: 3, plain: 1})
    np.testing.assert_allclose(mixed.equaliser, 0.75 * voice.equaliser, rtol=1e-6)
    with pytest.raises(VoiceError, match="sizes"):
        package.blend({voice: 1, odd: 1})


def test_weights_that_do_not_know_their_spectrum_clone_without(folder, speaking, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert Engine(tmp_path).spectrum is not None
    (tmp_path / spectrum.FILE).unlink()
    bare = Engine(tmp_path)
    assert bare.spectrum is None and bare.clone(talk(3.0), RATE).equaliser.size == 0
    Spectrum(np.zeros((100, 16), "f4"), np.zeros(100, "f4"), "ab" * 32).save(
        tmp_path / spectrum.FILE
    )
    with pytest.raises(WeightsError, match="another generator"):
        _ = Engine(tmp_path).spectrum
    Spectrum(np.zeros((90, 16), "f4"), np.zeros(90, "f4"), bare.acoustic_hash).save(
        tmp_path / spectrum.FILE
    )
    with pytest.raises(WeightsError, match="no average spectrum"):
        _ = Engine(tmp_path).spectrum
