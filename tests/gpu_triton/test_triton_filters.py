"""The vocoder's other ops and log-mel in Triton."""

import cases
import pytest
import torch
from compare import assert_as_accurate
from engine.kernels import reference

from engine import kernels


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_noise(device, seed):
    call = (2**32 - 1, 2**40 + 5, 70, 6)
    expected = reference.gaussian_noise(seed, *call)
    with torch.device(device):
        made = kernels.gaussian_noise(seed, *call, backend="triton")
        later = kernels.gaussian_noise(seed, call[0], call[1] + 31, 39, 6, backend="triton")
    torch.testing.assert_close(made.cpu(), expected, atol=2e-6, rtol=0)
    assert torch.equal(later, made[:, 31:])


def test_noise_of_many_streams(device):
    counters = torch.tensor([[1, -1, 5], [7, 2**32 - 1, 0], [0, 2**33, 64]])
    expected = reference.stream_noise(*counters, 20, 3)
    made = kernels.stream_noise(*counters.to(device), 20, 3, backend="triton")
    torch.testing.assert_close(made.cpu(), expected, atol=2e-6, rtol=0)
    assert torch.equal(expected[1], reference.gaussian_noise(2**64 - 1, 2**32 - 1, 2**33, 20, 3))


@pytest.mark.parametrize("size", [(1, 4, 8, 3, 5), (3, 1, 2, 4, 1), (2, 3, 16, 1, 9)], ids=str)
def test_lpc_synthesis(device, size):
    excitation, taps, gain, past = cases.make_lpc(*size)
    there = [part.to(device) for part in (excitation, taps, gain)]
    state = past.clone().to(device)
    made = kernels.lpc_synthesis(*there, state, backend="triton")
    assert_as_accurate(
        made.cpu(), reference.lpc_synthesis, excitation, taps, gain, past, factor=4
    )
    chunked, parts, repeat = past.clone().to(device), [], size[4]
    for a, b in ((0, 1), (1, size[3])):
        cut = there[0][..., a * repeat : b * repeat], there[1][..., a:b], there[2][..., a:b]
        parts.append(kernels.lpc_synthesis(*cut, chunked, backend="triton"))
    assert torch.equal(torch.cat(parts, -1), made) and torch.equal(chunked, state)


@pytest.mark.parametrize("size", [(1, 4, 150), (3, 4, 1), (1, 2, 40), (2, 1, 70)], ids=str)
def test_pqmf_synthesis(device, size):
    batch, bands, steps = size
    _, filters = kernels.pqmf_filters(bands, 62, 0.142, 9.0)
    band_samples = torch.randn(batch, steps, bands).transpose(1, 2)
    made = kernels.pqmf_synthesis(band_samples.to(device), filters.to(device), backend="triton")
    assert_as_accurate(made.cpu(), reference.pqmf_synthesis, band_samples, filters, factor=4)


@pytest.mark.parametrize(("count", "hop"), [(777, 64), (97, 64), (300, 50)])
def test_log_mel(device, count, hop):
    bank = kernels.mel_filterbank(24_000, 256, 20, 0.0, 12_000.0)
    window, samples = torch.hann_window(256), torch.randn(2, count) * 0.1
    made = kernels.log_mel(
        samples.to(device), bank.to(device), window.to(device), hop, 1e-5, backend="triton"
    )
    exact = reference.log_mel(samples.double(), bank.double(), window.double(), hop, 1e-5)
    torch.testing.assert_close(made.cpu().double(), exact, atol=2e-5, rtol=0)
