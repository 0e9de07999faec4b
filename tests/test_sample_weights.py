"""Bad cloning samples get little weight: on the shipped weights, with the bundled recording."""

import warnings

import numpy as np
import pytest

from engine import Engine, audio, sample_weights
from engine.bench import SAMPLE


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def reader():
    """Three cuts of the bundled reader, 2.5 s each."""
    samples, rate = audio.read(SAMPLE)
    assert len(samples) > 5 * rate
    begins = np.linspace(0, len(samples) - 2.5 * rate, 3).astype(int)
    return [samples[b : b + round(2.5 * rate)] for b in begins], rate


def weights(engine, samples, rate):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noisy samples are announced, as they should be
        return engine.clone(list(samples), rate).weights


def test_clearness_follows_the_noise():
    found = sample_weights.clearness([-10, 0, 4, 10, 40])
    assert (np.diff(found) >= 0).all() and found[2] == pytest.approx(0.5)
    assert found[0] <= 0.01 and found[-1] > 0.98


def test_one_sample_has_all_the_weight_and_good_ones_share_it(engine, reader):
    samples, rate = reader
    assert weights(engine, samples[:1], rate) == (1.0,)
    shared = weights(engine, samples, rate)
    assert sum(shared) == pytest.approx(1.0) and min(shared) > 0.5 / 3


def test_noise_gets_little_weight_even_beside_one_good_sample(engine, reader):
    samples, rate = reader
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(samples[0])).astype("f4")
    assert weights(engine, [samples[0], noise], rate)[1] < 0.1
    assert weights(engine, [*samples, noise], rate)[3] < 0.05


def test_another_person_among_three_samples_gets_little_weight(engine, reader):
    samples, rate = reader
    other = -engine.clone(samples[0], rate).embedding  # as far from the reader as voices get
    speech = engine.synthesize("This is somebody else, whom nobody asked for.", other, seed=0)
    stranger = 0.5 * audio.resample(speech.samples, speech.sample_rate, rate)
    found = weights(engine, [samples[0], stranger, samples[2]], rate)
    assert found[1] == min(found) and found[1] < 0.5 / 3


def test_the_embedding_hardly_moves_when_noise_is_added(engine, reader):
    samples, rate = reader
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(samples[0])).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clean, noisy, alone = (
            engine.clone(x, rate) for x in (samples, [*samples, noise], [noise])
        )
    assert clean.distance(noisy) < 0.2 * clean.distance(alone)
