"""The definitions against independent formulas: numpy loops, published vectors, closed forms."""

import math

import cases
import numpy as np
import pytest
import torch
from compare import sampled, teacher_forced
from engine.kernels import reference

from engine import kernels


@pytest.mark.parametrize("name", ["odd", "one_band"])
def test_wavenet_generates_what_its_means_and_scales_say(name):
    shape = cases.CHECK[name]
    network = cases.make_network(shape)
    conditioning, noise = (part.double() for part in cases.make_inputs(shape, 2, steps=40))
    state = kernels.wavenet_state(
        type(network.weights)(*(part.double() for part in network.weights)), shape.dilations, 2
    )
    made = reference.wavenet_generate(conditioning, noise, network, state)
    expected = sampled(teacher_forced(network, conditioning, made), noise, 0)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-12)
    assert state.step.tolist() == [40, 40]


def test_wavenet_softmax_head_inverts_the_cumulative_distribution():
    shape = cases.WaveNetShape(1, 2, 2, 16, 16, codes=16, steps_per_frame=50)
    network = cases.make_network(shape)
    conditioning, uniforms = cases.make_inputs(shape, batch=2, steps=50)
    uniforms[0, 0, :2] = torch.tensor([0.0, 1 - 2**-24])
    codes = reference.wavenet_generate(conditioning, uniforms, network, network.state(2))
    expected = sampled(teacher_forced(network, conditioning, codes), uniforms, shape.codes)
    np.testing.assert_array_equal(codes.numpy(), expected)


def test_wavenet_in_chunks_equals_one_call_with_frame_edges_inside():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=21)
    whole = reference.wavenet_generate(conditioning, noise, network, network.state(2))
    call = (conditioning, noise, network, network.state(2), "reference")
    assert torch.equal(cases.in_chunks([1, 5, 9, 6], *call), whole)


def test_receptive_field_ends_where_the_dilations_say():
    shape = cases.WaveNetShape(1, 3, 4, 16, 16, steps_per_frame=64)
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=40)
    made = reference.wavenet_generate(conditioning, noise, network, network.state())
    changed = made.clone()
    changed[0, 0, 10] += 1
    moved = teacher_forced(network, conditioning, made) - teacher_forced(
        network, conditioning, changed
    )
    touched = np.nonzero(np.abs(moved).max(axis=(0, 1)))[0]
    assert touched.min() == 11 and touched.max() == 10 + 2 + sum(shape.dilations)


def test_mel_filterbank_is_slaneys():
    bank = kernels.mel_filterbank(24_000, 1024, 100, 0.0, 12_000.0)

    def to_mel(hz):
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    def to_hz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = to_mel(12_000.0)
    for row in (0, 17, 60, 99):
        left, centre, right = (to_hz(top * (row + i) / 101) for i in range(3))
        for column in range(513):
            hz = column * 24_000 / 1024
            rise, fall = (hz - left) / (centre - left), (right - hz) / (right - centre)
            expected = max(0.0, min(rise, fall)) * 2 / (right - left)
            assert bank[row, column].item() == pytest.approx(expected, abs=2e-8)


def test_mel_filterbank_keeps_its_values():
    bank = kernels.mel_filterbank(24_000, 1024, 100, 0.0, 12_000.0)
    assert bank.shape == (100, 513)
    stored = {
        (0, 1): 0.02056655,
        (10, 16): 0.02640798,
        (35, 53): 0.0195526,
        (60, 125): 0.004758981,
        (99, 480): 0.000356858,
        (99, 511): 0.0001414549,
    }
    for (row, column), value in stored.items():
        assert bank[row, column].item() == pytest.approx(value, rel=1e-5)


def test_log_mel_of_a_tone_is_its_window_spectrum_through_the_filters():
    rate, hop, n_fft = 24_000, 256, 1024
    bank = kernels.mel_filterbank(rate, n_fft, 20, 0.0, 12_000.0)
    window = torch.hann_window(n_fft)
    t = np.arange(8 * hop)
    samples = 0.3 * np.sin(2 * np.pi * 1500 * t / rate)
    mel = reference.log_mel(torch.tensor(samples)[None], bank, window, hop, 1e-5)
    assert mel.shape == (1, 20, 8)
    padded = np.pad(samples, (n_fft - hop) // 2, mode="reflect")
    for frame in (0, 4, 7):
        part = padded[frame * hop : frame * hop + n_fft] * window.double().numpy()
        magnitude = [abs(np.sum(part * np.exp(-2j * np.pi * k * np.arange(n_fft) / n_fft)))
                     for k in range(n_fft // 2 + 1)]  # fmt: skip
        expected = np.log(np.maximum(bank.double().numpy() @ magnitude, 1e-5))
        np.testing.assert_allclose(mel[0, :, frame].numpy(), expected, atol=1e-9)


def test_pqmf_is_its_formula_and_reconstructs():
    analysis, synthesis = kernels.pqmf_filters(4, 62, 0.142, 9.0)
    samples = torch.randn(1, 400, dtype=torch.float64)
    bands = reference.pqmf_analysis(samples, analysis)
    x = np.pad(samples[0].numpy(), 31)
    for band, step in ((0, 0), (1, 50), (3, 99)):
        expected = sum(analysis[band, k].item() * x[4 * step + k] for k in range(63))
        assert bands[0, band, step].item() == pytest.approx(expected, abs=1e-12)
    made = reference.pqmf_synthesis(bands, synthesis)
    for m in (0, 1, 202, 399):
        expected = sum(
            synthesis[b, k].item() * bands[0, b, (m + k - 31) // 4].item()
            for b in range(4) for k in range(63)
            if (m + k - 31) % 4 == 0 and 0 <= (m + k - 31) // 4 < 100
        )  # fmt: skip
        assert made[0, m].item() == pytest.approx(expected, abs=1e-12)
    inner = slice(70, 330)
    error = (made - samples)[0, inner].square().mean() / samples[0, inner].square().mean()
    assert 10 * math.log10(error) < -40


def test_linear_prediction_solves_the_normal_equations():
    signal = np.random.default_rng(0).standard_normal(500).cumsum()
    lags = np.array([signal[k:] @ signal[: 500 - k] for k in range(9)])
    lags[0] *= 1.001
    taps, error = reference.linear_prediction(torch.tensor(lags))
    matrix = lags[np.abs(np.subtract.outer(np.arange(8), np.arange(8)))]
    expected = np.linalg.solve(matrix, lags[1:])
    np.testing.assert_allclose(taps.numpy(), expected, atol=1e-8)
    assert error.item() == pytest.approx(lags[0] - expected @ lags[1:], rel=1e-8)


def test_lpc_synthesis_is_the_recursion_and_undoes_analysis():
    excitation, taps, gain, past = (
        part.double() for part in cases.make_lpc(1, 2, 3, frames=4, repeat=5)
    )
    state = past.clone()
    made = reference.lpc_synthesis(excitation, taps, gain, state)
    for band in range(2):
        y = past[0, band].flip(0).tolist()
        for t in range(20):
            predicted = sum(taps[0, band, k, t // 5].item() * y[-1 - k] for k in range(3))
            y.append(gain[0, band, t // 5].item() * excitation[0, band, t].item() + predicted)
        np.testing.assert_allclose(made[0, band].numpy(), y[3:], atol=1e-12)
        np.testing.assert_allclose(state[0, band].numpy(), y[:-4:-1], atol=1e-12)
    fresh = reference.lpc_synthesis(excitation, taps, gain, torch.zeros_like(past))
    torch.testing.assert_close(reference.lpc_analysis(fresh, taps, gain), excitation)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
         [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)  # fmt: skip
def test_philox_gives_the_published_words(counter, key, words):
    made = reference._philox([torch.tensor([c]) for c in counter], key)
    assert [word.item() for word in made] == words


def test_gaussian_noise_is_box_muller_on_the_counters_words():
    a, b, c, d = 0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8
    expected = []
    for first, second in ((a, b), (c, d)):
        radius = math.sqrt(-2 * math.log(((first >> 9) + 0.5) / 2**23))
        angle = 2 * math.pi * (second >> 8) / 2**24
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    made = reference.gaussian_noise(0, 0, 0, 1, 4)
    np.testing.assert_allclose(made[:, 0].numpy(), expected, atol=1e-6)


def test_gaussian_noise_depends_on_the_step_not_on_the_call():
    whole = reference.gaussian_noise(7, 3, 10, 100, 6)
    assert torch.equal(reference.gaussian_noise(7, 3, 47, 20, 6), whole[:, 37:57])
    assert torch.equal(reference.gaussian_noise(7, 3, 10, 100, 3), whole[:3])
    for other in ((8, 3, 10), (7, 4, 10), (7, 3, 2**32 + 10)):
        assert not torch.isclose(reference.gaussian_noise(*other, 100, 6), whole).any(dim=0).all()


def test_gaussian_noise_is_standard_normal_and_white():
    noise = reference.gaussian_noise(1, 2, 0, 50_000, 4).double()
    assert noise.mean(1).abs().max() < 0.02 and (noise.std(1) - 1).abs().max() < 0.02
    assert (noise.pow(4).mean(1) - 3).abs().max() < 0.2
    together = torch.cat([noise, noise.roll(1, dims=1)])
    off = torch.corrcoef(together) - torch.eye(8)
    assert off.abs().max() < 0.02


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_noise_of_many_streams_is_the_noise_of_each(backend):
    named = [(2**64 - 1, 2**32 - 1, 2**33 + 5), (0, 3, 0), (7, 3, 2**31)]
    seeds, streams, firsts = (torch.tensor(column) for column in zip(
        *((seed - 2**64 if seed >= 2**63 else seed, *rest) for seed, *rest in named), strict=True
    ))  # fmt: skip
    made = kernels.stream_noise(seeds, streams, firsts, 9, 5, backend=backend)
    for row, name in zip(made, named, strict=True):
        alone = kernels.gaussian_noise(*name, 9, 5, backend=backend)
        assert torch.equal(row, alone)
