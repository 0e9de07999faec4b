"""Compiled ops against their definitions: every instruction set this machine runs."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from compare import assert_as_accurate, sampled, teacher_forced
from engine.kernels import BackendUnavailable, native, reference

from engine import kernels

ISAS = [name for name, reason in kernels.isas().items() if reason is None]
pytestmark = pytest.mark.usefixtures("cpp", "poisoned_memory")
# Largest and mean error of means and log-scales, teacher-forced, against float64.
GATES = {"float32": (2e-5, 2e-6), "bfloat16": (3e-2, 4e-3), "int8": (8e-2, 1e-2)}


def generate(conditioning, randomness, network, state=None, backend="cpp"):
    state = state or network.state(randomness.shape[0])
    return kernels.wavenet_generate(conditioning, randomness, network, state, backend=backend)


@pytest.mark.parametrize("name", [name for name in cases.CHECK if not cases.CHECK[name].codes])
@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_wavenet_is_as_accurate_as_its_precision_allows(isa, precision, name):
    shape = cases.CHECK[name]
    network = cases.make_network(shape, precision, isa)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=200)
    noise[1] = noise[0]
    conditioning[1] = conditioning[0]
    made = generate(conditioning, noise, network)
    assert torch.equal(made[0], made[1])
    error = np.abs(sampled(teacher_forced(network, conditioning, made), noise, 0) - made.numpy())
    most, mean = GATES[precision]
    assert error.max() < most and error.mean() < mean, (error.max(), error.mean())


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_head_draws_the_codes_that_its_logits_and_uniforms_give(isa):
    shape = cases.CHECK["softmax"]
    conditioning, uniforms = cases.make_inputs(shape, batch=3, steps=200)
    uniforms[0, 0, :2] = torch.tensor([0.0, 1 - 2**-24])
    network = cases.make_network(shape, "float32", isa)
    codes = generate(conditioning, uniforms, network)
    expected = sampled(teacher_forced(network, conditioning, codes), uniforms, shape.codes)
    np.testing.assert_array_equal(codes.numpy(), expected)
    assert torch.unique(codes).numel() > 50


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_neither_on_chunks_nor_on_the_batch(isa, precision):
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape, precision, isa)
    conditioning, noise = cases.make_inputs(shape, batch=7, steps=60)
    state = network.state(7)
    whole = generate(conditioning, noise, network, state)
    chunked_state = network.state(7)
    sizes = [1, 6, 7, 0, 13, 2, 31]
    chunked = cases.in_chunks(sizes, conditioning, noise, network, chunked_state, "cpp")
    assert torch.equal(chunked, whole)
    assert all(torch.equal(a, b) for a, b in zip(state, chunked_state, strict=True))
    for row in (0, 3, 6):
        one = generate(conditioning[row : row + 1], noise[row : row + 1], network)
        assert torch.equal(one[0], whole[row])


def test_streams_of_one_call_may_stand_anywhere_in_their_frames():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=5, steps=40)
    done = [0, 3, 6, 2, 5]
    expected, states = [], []
    for row, first in enumerate(done):
        state = network.state()
        one = conditioning[row : row + 1], noise[row : row + 1]
        cases.in_chunks([first], one[0], one[1][..., :first], network, state, "cpp")
        states.append([part.clone() for part in state])
        expected.append(generate(one[0], one[1][..., first : first + 30], network, state))
    together = kernels.WaveNetState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    rest = torch.stack([noise[row, :, first : first + 30] for row, first in enumerate(done)])
    assert torch.equal(generate(conditioning, rest, network, together), torch.cat(expected))


def test_free_running_float32_stays_with_the_reference():
    shape = cases.WaveNetShape(2, 2, 2, 16, 32, steps_per_frame=16)
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=2000)
    ours = generate(conditioning, noise, network)
    theirs = generate(conditioning, noise, network, backend="reference")
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert theirs.std() > 0.1


def test_both_backends_leave_the_same_state():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=23)
    ours, theirs = network.state(2), network.state(2)
    generate(conditioning, noise, network, ours)
    generate(conditioning, noise, network, theirs, backend="reference")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_sums_do_not_saturate(isa):
    shape = cases.WaveNetShape(1, 1, 1, 64, 64, steps_per_frame=8)
    weights = cases.make_weights(shape)
    signs = torch.ones(64)
    signs[::3] = -1
    weights = weights._replace(
        inputs=torch.full((64, 1, 2), 0.5),  # all channels alike: stored as +-127, without error
        gates=torch.cat([signs, torch.ones(64)]).mul(8).expand(1, 2, 64, 128).permute(0, 3, 2, 1),
        skips=signs[None, None, :].expand(1, 64, 64) / 64,  # every product positive: 64 * 127 * 127
        hidden=torch.eye(64), outputs=torch.full((2, 64), 2.0**-8),
        skip_bias=torch.zeros(64), hidden_bias=torch.zeros(64), outputs_bias=torch.zeros(2),
    )  # fmt: skip
    network = kernels.WaveNet(weights, shape.dilations, 8, "int8", isa)
    state = network.state()
    state.last.fill_(1.0)
    state.history.fill_(1.0)
    made = generate(torch.zeros(1, 1, 128, 1), torch.zeros(1, 1, 1), network, state)
    torch.testing.assert_close(made, torch.full((1, 1, 1), 0.25), atol=1e-5, rtol=0)


def test_strided_inputs_give_the_same_bits():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=33)
    wide = torch.full((2, 2 * noise.shape[1], 99), float("nan"))
    strided_noise = wide[:, ::2, ::3]
    strided_noise.copy_(noise)
    strided = conditioning.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    assert not strided_noise.is_contiguous() and not strided.is_contiguous()
    made = generate(strided, strided_noise, network)
    assert torch.equal(made, generate(conditioning, noise, network))


def test_a_poisoned_state_shows_and_leaves_nothing_behind_once_reset():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=20)
    clean = generate(conditioning, noise, network)
    state = network.state(2)
    state.history[0].fill_(float("nan"))
    poisoned = generate(conditioning, noise, network, state)
    assert poisoned[0].isnan().any() and torch.equal(poisoned[1], clean[1])
    for part in state:
        part.zero_()
    assert torch.equal(generate(conditioning, noise, network, state), clean)


def test_concurrent_calls_on_one_network_do_not_disturb_each_other():
    shape = cases.CHECK["default"]
    network = cases.make_network(shape, "int8")
    inputs = [cases.make_inputs(shape, 1, 200, seed) for seed in range(4)]
    alone = [generate(*pair, network) for pair in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: generate(*pair, network), inputs * 3))
    assert all(torch.equal(made, alone[i % 4]) for i, made in enumerate(together))


def test_packed_weights_belong_to_the_network_and_go_with_it():
    shape = cases.CHECK["one_band"]
    weights = cases.make_weights(shape)
    network = kernels.WaveNet(weights, shape.dilations, shape.steps_per_frame)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=9)
    before = generate(conditioning, noise, network)
    for part in weights:
        part.zero_()
    assert torch.equal(generate(conditioning, noise, network), before)
    assert native.packed(network) is native.packed(network)
    held = len(native._packed)
    del network
    gc.collect()
    assert len(native._packed) == held - 1


def test_calls_that_do_not_fit_are_refused():
    shape = cases.CHECK["odd"]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch=2, steps=20)
    with pytest.raises(ValueError, match="conditioning ends after 14 of 20 steps"):
        generate(conditioning[..., :2], noise, network)
    with pytest.raises(ValueError, match="conditioning is"):
        generate(conditioning[:, :2], noise, network)
    with pytest.raises(ValueError, match=r"state.last is"):
        generate(conditioning, noise, network, network.state(1))
    state = network.state(2)
    state.step.fill_(-1)
    with pytest.raises(ValueError, match=r"state.step is -1"):
        generate(conditioning, noise, network, state)
    with pytest.raises(ValueError, match="precision 'int4'"):
        cases.make_network(shape, "int4")


def test_reasons_name_what_the_backend_cannot_run():
    shape = cases.WaveNetShape(1, 1, 1, 24, 32)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=2)
    with pytest.raises(BackendUnavailable, match="24 residual and 32 skip channels"):
        generate(conditioning, noise, cases.make_network(shape))
    shape = cases.CHECK["odd"]
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=2)
    network = cases.make_network(shape)
    with pytest.raises(BackendUnavailable, match=r"float64, cpp needs float32"):
        generate(conditioning.double(), noise.double(), network)
    with pytest.raises(BackendUnavailable, match="gradient"):
        generate(conditioning.requires_grad_(), noise, network)
    with pytest.raises(BackendUnavailable, match="'sse9' is not usable"):
        generate(conditioning.detach(), noise, cases.make_network(shape, isa="sse9"))
    state = network.state()
    apart = state.history.repeat(1, 2, 1)[:, ::2]
    with pytest.raises(BackendUnavailable, match="contiguous"):
        generate(conditioning.detach(), noise, network, state._replace(history=apart))


@pytest.mark.parametrize(
    "size", [(1, 4, 8, 5, 64), (3, 1, 2, 7, 1), (2, 3, 16, 1, 9), (0, 4, 8, 1, 4)], ids=str
)
def test_lpc_synthesis(size):
    excitation, taps, gain, past = cases.make_lpc(*size)
    state = past.clone()
    made = kernels.lpc_synthesis(excitation, taps, gain, state, backend="cpp")
    assert_as_accurate(made, reference.lpc_synthesis, excitation, taps, gain, past, factor=4)
    expected = past.clone()
    reference.lpc_synthesis(excitation, taps, gain, expected)
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_lpc_synthesis_in_chunks_of_frames():
    excitation, taps, gain, past = cases.make_lpc(2, 4, 8, frames=6, repeat=3)
    whole = kernels.lpc_synthesis(excitation, taps, gain, past.clone(), backend="cpp")
    parts = [
        kernels.lpc_synthesis(
            excitation[..., 3 * a : 3 * b], taps[..., a:b], gain[..., a:b], past, backend="cpp"
        )
        for a, b in ((0, 1), (1, 5), (5, 6))
    ]
    assert torch.equal(torch.cat(parts, dim=-1), whole)


@pytest.mark.parametrize(
    "size", [(1, 4, 500), (3, 4, 1), (2, 4, 3), (1, 2, 40), (2, 1, 70), (0, 4, 9)], ids=str
)
def test_pqmf_synthesis(size):
    batch, bands, steps = size
    _, filters = kernels.pqmf_filters(bands, 62, 0.142, 9.0)
    band_samples = torch.randn(batch, steps, bands).transpose(1, 2)
    made = kernels.pqmf_synthesis(band_samples, filters, backend="cpp")
    assert_as_accurate(made, reference.pqmf_synthesis, band_samples, filters, factor=4)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_gaussian_noise(seed):
    call = (seed, 2**32 - 1, 2**40 + 5, 700, 6)
    made = kernels.gaussian_noise(*call, backend="cpp")
    expected = kernels.gaussian_noise(*call, backend="reference")
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)
    later = kernels.gaussian_noise(*call[:2], call[2] + 301, 399, 6, backend="cpp")
    assert torch.equal(later, made[:, 301:])
    with pytest.raises(ValueError, match="seed"):
        kernels.gaussian_noise(-1, 0, 0, 1, 1, backend="cpp")


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_second_core_changes_no_bit_and_may_come_and_go(isa, precision):
    shape = cases.CHECK["odd"]
    one = cases.make_network(shape, precision, isa)
    two = replace(one, cores=2)
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=300)
    expected_state = one.state()
    expected = generate(conditioning, noise, one, expected_state)
    for _ in range(3):
        state = two.state()
        made = cases.in_chunks([1, 150, 0, 149], conditioning, noise, two, state, "cpp")
        assert torch.equal(made, expected)
        assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))


def test_second_cores_are_shared_by_concurrent_calls():
    shape = cases.CHECK["default"]
    one = cases.make_network(shape, "int8")
    two = replace(one, cores=2)
    inputs = [cases.make_inputs(shape, 1, 150, seed) for seed in range(4)]
    alone = [generate(*pair, one) for pair in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: generate(*pair, two), inputs * 2))
    assert all(torch.equal(made, alone[i % 4]) for i, made in enumerate(together))


@pytest.mark.parametrize("isa", ISAS)
def test_weights_that_are_float16_numbers_are_stored_so_and_give_the_same_bits(isa):
    shape = cases.CHECK["odd"]
    halves = kernels.WaveNetWeights(*(w.half().float() for w in cases.make_weights(shape)))
    halves.skips[0, 0, 0] = 3 * 2.0**-24  # a subnormal
    other = halves._replace(skips=halves.skips.clone())
    other.skips[-1, -1, -1] += 2.0**-20  # one that is none: everything is stored as float32
    networks = [kernels.WaveNet(w, shape.dilations, 7, "float32", isa) for w in (halves, other)]
    sizes = [native.packed(network).packed_bytes for network in networks]
    assert sizes[0] < 0.6 * sizes[1] or isa == "scalar"
    conditioning, noise = cases.make_inputs(shape, batch=3, steps=1)
    made = [generate(conditioning, noise, network) for network in networks]
    expected = sampled(teacher_forced(networks[0], conditioning, made[0]), noise, 0)
    assert np.abs(made[0].numpy() - expected).max() < GATES["float32"][0]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4)
