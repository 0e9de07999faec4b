"""Speed of the vocoder's compiled ops: `pytest bench/bench_kernels.py`.

Nothing is timed before its result was compared with its definition. A round is a call of 20 ms of
audio, short enough that the fastest round of many is one that nothing else disturbed: quote `min`.
"""

from functools import cache
from time import perf_counter

import cases
import numpy as np
import pytest
import torch
from compare import assert_as_accurate, sampled, teacher_forced
from engine.kernels import reference

from engine import kernels

SAMPLE_RATE = 24_000
STEPS = 120  # 20 ms of four-band audio
ISAS = [name for name, reason in kernels.isas().items() if reason is None]
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 6e-2, "int8": 0.15}
ROUNDS = {"warmup_rounds": 10, "rounds": 400, "iterations": 1}


@cache
def reference_seconds_per_step(name: str, batch: int) -> float:
    """What a step costs in the torch loop that defines the op."""
    shape = cases.BENCH[name]
    network = cases.make_network(shape)
    conditioning, noise = cases.make_inputs(shape, batch, steps=20)
    best = float("inf")
    for _ in range(3):
        state = network.state(batch)
        start = perf_counter()
        reference.wavenet_generate(conditioning, noise, network, state)
        best = min(best, (perf_counter() - start) / 20)
    return best


def check(shape, network, conditioning, randomness):
    made = kernels.wavenet_generate(
        conditioning, randomness, network, network.state(randomness.shape[0]), backend="cpp"
    )
    expected = sampled(teacher_forced(network, conditioning, made), randomness, shape.codes)
    if not shape.codes:
        assert np.abs(made.numpy() - expected).max() < LARGEST_ERROR[network.precision]
    elif network.precision == "float32":
        np.testing.assert_array_equal(made.numpy(), expected)
    else:
        assert np.abs(made.numpy() - expected).mean() < 0.2


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.BENCH)
def bench_wavenet_generate(benchmark, name, isa, precision, batch):
    shape = cases.BENCH[name]
    network = cases.make_network(shape, precision, isa)
    inputs = cases.make_inputs(shape, batch, STEPS)
    check(shape, network, *inputs)
    state = network.state(batch)

    def call():
        kernels.wavenet_generate(*inputs, network, state, backend="cpp")

    def restart():
        state.step.zero_()

    benchmark.pedantic(call, setup=restart, **{**ROUNDS, "rounds": 20 if isa == "scalar" else 400})
    if benchmark.stats is None:  # --benchmark-disable
        return
    rate = STEPS / benchmark.stats["min"]
    benchmark.extra_info.update(
        shape=vars(shape),
        steps_per_second_of_a_stream=round(rate),
        steps_per_second=round(batch * rate),
        realtime_speedup=round(batch * rate * shape.bands / SAMPLE_RATE, 2),
        gflops=round(batch * rate * 2e-9 * shape.multiply_adds, 1),
        times_the_torch_loop=round(rate * reference_seconds_per_step(name, batch), 1),
    )


def bench_pqmf_synthesis(benchmark):
    band_samples = torch.randn(1, 4, 6000)
    _, filters = kernels.pqmf_filters(4, 62, 0.142, 9.0)
    made = kernels.pqmf_synthesis(band_samples, filters, backend="cpp")
    assert_as_accurate(made, reference.pqmf_synthesis, band_samples, filters, factor=4)
    benchmark.pedantic(
        kernels.pqmf_synthesis, (band_samples, filters), {"backend": "cpp"}, **ROUNDS
    )


def bench_lpc_synthesis(benchmark):
    excitation, taps, gain, past = cases.make_lpc(1, 4, 8, frames=90, repeat=64)
    made = kernels.lpc_synthesis(excitation, taps, gain, past.clone(), backend="cpp")
    assert_as_accurate(made, reference.lpc_synthesis, excitation, taps, gain, past, factor=4)
    benchmark.pedantic(
        kernels.lpc_synthesis, (excitation, taps, gain, past), {"backend": "cpp"}, **ROUNDS
    )


def bench_gaussian_noise(benchmark):
    call = (1, 2, 3, 6000, 4)
    made = kernels.gaussian_noise(*call, backend="cpp")
    torch.testing.assert_close(made, reference.gaussian_noise(*call), atol=1e-6, rtol=0)
    benchmark.pedantic(kernels.gaussian_noise, call, {"backend": "cpp"}, **ROUNDS)
