"""Time of a decoder step: compiled precisions against the plain torch loop, checked before timed.

    pytest bench/bench_decoder.py --benchmark-columns=min,median,rounds

`us_per_step` in extra_info is that of the fastest round; set OMP_NUM_THREADS=1 for one core.
"""

import decoder_cases as cases
import pytest
import torch

from engine import kernels

STEPS = 8
# Of one step, hidden of order one.
ALLOWED = {"float32": 1e-5, "int16": 2e-3, "bfloat16": 3e-2, "int8": 8e-2}


def call(inputs, network, backend):
    state = network.state(len(inputs.lengths))
    return kernels.decoder_generate(inputs, network, STEPS, state, backend=backend)


def check(inputs, network, backend):
    """The first step is right, and the benchmark's texts last for all steps."""
    made, _, count = call(inputs, network, backend)
    exact, _, _ = call(inputs, network, "reference")
    error = (made[:, 0] - exact[:, 0]).abs().max()
    assert error <= ALLOWED[network.precision], error
    assert (count == STEPS).all()


def measure(benchmark, inputs, network, backend, rounds):
    check(inputs, network, backend)
    benchmark.pedantic(
        call, (inputs, network, backend), warmup_rounds=2, rounds=rounds, iterations=1
    )
    benchmark.extra_info.update(
        backend=backend, precision=network.precision, batch=len(inputs.lengths),
        threads=torch.get_num_threads(), multiply_adds=cases.DEFAULT.multiply_adds,
    )  # fmt: skip
    if benchmark.stats:
        benchmark.extra_info["us_per_step"] = benchmark.stats["min"] / STEPS * 1e6


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("precision", kernels.DECODER_PRECISIONS)
def bench_cpp(benchmark, precision, batch):
    if reason := kernels.backends()["cpp"]:
        pytest.skip(reason)
    network = cases.make_decoder(cases.DEFAULT, precision)
    measure(benchmark, cases.make_texts(cases.DEFAULT, [40] * batch), network, "cpp", 200)


@pytest.mark.parametrize("batch", [1, 4])
def bench_plain_torch_loop(benchmark, batch):
    network = cases.make_decoder(cases.DEFAULT)
    measure(benchmark, cases.make_texts(cases.DEFAULT, [40] * batch), network, "reference", 20)
