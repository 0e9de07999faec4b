"""wavenet_generate in Triton: accuracy, chunks, batches, states."""

from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from compare import sampled, teacher_forced
from engine.kernels import BackendUnavailable, WaveNetState, WaveNetWeights, checks

from engine import kernels

GAUSSIAN = {
    "bands4": cases.WaveNetShape(4, 3, 2, 64, 128, steps_per_frame=3),
    "bands3": cases.WaveNetShape(3, 3, 4, 32, 64, steps_per_frame=5),
    "large": cases.WaveNetShape(1, 2, 2, 128, 256, steps_per_frame=4),
}
SOFTMAX = cases.WaveNetShape(1, 3, 2, 64, 256, codes=256, steps_per_frame=4)
SMALL = cases.WaveNetShape(2, 3, 4, 32, 64, steps_per_frame=5)
# Largest and mean error of means and log-scales, teacher-forced, against float64.
GATES = {"float32": (2e-5, 2e-6), "bfloat16": (3e-2, 4e-3), "int8": (8e-2, 1e-2)}
VARIANTS = [("float32", 1), ("bfloat16", 1), ("bfloat16", 16), ("int8", 1), ("int8", 16)]


def make(shape, precision, group, device):
    network = cases.make_network(shape, precision)
    weights = WaveNetWeights(*(part.to(device) for part in network.weights))
    return replace(network, weights=weights, streams_per_program=group)


def generate(conditioning, randomness, network, state=None):
    device = network.weights.inputs.device
    state = state or network.state(randomness.shape[0])
    made = kernels.wavenet_generate(
        conditioning.to(device), randomness.to(device), network, state, backend="triton"
    )
    assert made.device == device
    return made.cpu()


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize(("precision", "group"), VARIANTS)
def test_as_accurate_as_its_precision_allows(device, precision, group, name, pytestconfig):
    shape = GAUSSIAN[name]
    network = make(shape, precision, group, device)
    steps = pytestconfig.getoption("--accuracy-steps") or 9
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=steps)
    made = generate(conditioning, noise, network)
    host = cases.make_network(shape)
    error = np.abs(sampled(teacher_forced(host, conditioning, made), noise, 0) - made.numpy())
    most, mean = GATES[precision]
    assert error.max() < most and error.mean() < mean, (error.max(), error.mean())
    assert made.std() > 0.1


@pytest.mark.parametrize(("precision", "group"), [("float32", 1), ("bfloat16", 16)])
def test_softmax_head_draws_the_codes_that_its_logits_and_uniforms_give(device, precision, group):
    conditioning, uniforms = cases.make_inputs(SOFTMAX, batch=3, steps=8)
    uniforms[0, 0, :2] = torch.tensor([0.0, 1 - 2**-24])
    network = make(SOFTMAX, precision, group, device)
    codes = generate(conditioning, uniforms, network)
    host = cases.make_network(SOFTMAX)
    expected = sampled(teacher_forced(host, conditioning, codes), uniforms, 256)
    if precision == "float32":
        np.testing.assert_array_equal(codes.numpy(), expected)
    assert np.abs(codes.numpy() - expected)[uniforms.numpy() < 0.99].max() <= 2
    assert torch.unique(codes).numel() > 10


@pytest.mark.parametrize(("precision", "group"), [("float32", 1), ("bfloat16", 16), ("int8", 16)])
def test_bits_depend_neither_on_chunks_nor_on_the_batch(device, precision, group):
    network = make(SMALL, precision, group, device)
    conditioning, noise = cases.make_inputs(SMALL, batch=19 if group > 1 else 3, steps=13)
    rows = len(noise)
    state, chunked = network.state(rows), network.state(rows)
    whole = generate(conditioning, noise, network, state)
    parts, at = [], 0
    for size in (1, 6, 0, 4, 2):
        local = conditioning[..., at // network.band_steps_per_frame :]
        parts.append(generate(local, noise[..., at : at + size], network, chunked))
        at += size
    assert torch.equal(torch.cat(parts, -1), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, chunked, strict=True))
    for row in {0, rows - 1}:
        one = generate(conditioning[row : row + 1], noise[row : row + 1], network)
        assert torch.equal(one[0], whole[row])


def test_streams_of_one_call_may_stand_anywhere_in_their_frames_and_state_is_as_defined(device):
    network = make(SMALL, "bfloat16", 16, device)
    conditioning, noise = cases.make_inputs(SMALL, batch=3, steps=12)
    states = []
    for row, first in enumerate((0, 3, 7)):
        state = network.state()
        generate(conditioning[row : row + 1], noise[row : row + 1, :, :first], network, state)
        states.append(state)
    together = WaveNetState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    theirs = WaveNetState(*(part.cpu().clone() for part in together))
    ours = generate(conditioning, noise[..., :5], network, together)
    defined = kernels.wavenet_generate(
        conditioning, noise[..., :5], cases.make_network(SMALL), theirs, backend="reference"
    )
    torch.testing.assert_close(ours, defined, atol=6e-2, rtol=0)
    for a, b in zip(together, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=6e-2, rtol=0)


def test_free_running_float32_stays_with_the_reference(device):
    shape = cases.WaveNetShape(1, 2, 2, 32, 64, steps_per_frame=16)
    network = make(shape, "float32", 1, device)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=50)
    theirs = kernels.wavenet_generate(
        conditioning, noise, cases.make_network(shape), network.state().__class__(
            *(part.cpu() for part in network.state())
        ), backend="reference",
    )  # fmt: skip
    ours = generate(conditioning, noise, network)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_poisoned_state_shows_and_leaves_nothing_behind_once_reset(device):
    network = make(SMALL, "bfloat16", 16, device)
    conditioning, noise = cases.make_inputs(SMALL, batch=2, steps=5)
    clean = generate(conditioning, noise, network)
    state = network.state(2)
    state.history[0].fill_(float("nan"))
    poisoned = generate(conditioning, noise, network, state)
    assert poisoned[0].isnan().any() and torch.equal(poisoned[1], clean[1])
    for part in state:
        part.zero_()
    assert torch.equal(generate(conditioning, noise, network, state), clean)


def test_steps_beyond_the_conditioning_give_nan(device, monkeypatch):
    monkeypatch.setattr(checks, "_values", lambda _tensor: [])  # on a device nobody reads them
    network = make(SMALL, "bfloat16", 16, device)
    conditioning, noise = cases.make_inputs(SMALL, batch=2, steps=8)
    state = network.state(2)
    state.step[1] = 3
    made = generate(conditioning[..., :1], noise, network, state)
    for row, known in enumerate((5, 2)):
        assert made[row, :, :known].isfinite().all() and made[row, :, known:].isnan().all()


@pytest.mark.refused
def test_reasons_name_what_the_backend_cannot_run(device):
    odd = cases.WaveNetShape(1, 1, 1, 48, 64)
    with pytest.raises(BackendUnavailable, match="48 residual"):
        generate(*cases.make_inputs(odd, 1, 2), make(odd, "float32", 1, device))
    network = make(SMALL, "float32", 1, device)
    conditioning, noise = cases.make_inputs(SMALL, 1, 2)
    with pytest.raises(BackendUnavailable, match="powers of two"):
        generate(conditioning, noise, replace(network, dilations=(1, 3, 4)))
    with pytest.raises(BackendUnavailable, match="float64, triton needs float32"):
        generate(conditioning.double(), noise.double(), network)
    with pytest.raises(BackendUnavailable, match="gradient"):
        generate(conditioning.requires_grad_(), noise, network)
    with pytest.raises(ValueError, match="streams_per_program 3"):
        replace(network, streams_per_program=3)
