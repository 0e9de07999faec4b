"""Part of `clonewave bench`: WaveNets of the sizes that others publish figures for, and two cores.

The weights are random: time does not depend on them. G24 is a Gaussian WaveNet over full-band
samples, M20 the mu-law network of nv-wavenet and Deep Voice 1.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import kernels
from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.bench import Bench

STEPS = 64  # of a timed call
CHECKED_STEPS = 12
SPLIT_STEPS = 256  # of a timed call on two cores
MOST_CODES_APART = 1.0  # of int8 from the definition, mean over single steps


@dataclass(frozen=True)
class Shape:
    """A one-band WaveNet; `codes` > 0 gives it a softmax head."""

    layers: int
    codes: int = 0
    residual: int = 64
    skip: int = 128
    cycle: int = 10  # layers after which dilations start again from 1
    steps_per_frame: int = 256

    def network(self, precision: str) -> kernels.WaveNet:
        """Weights under which the residual stream stays of order one."""
        generator = torch.Generator().manual_seed(0)
        normal = lambda *size, std: torch.randn(*size, generator=generator) * std  # noqa: E731
        n, r, s, o = self.layers, self.residual, self.skip, self.codes or 2
        bias = normal(o, std=0.3)
        if not self.codes:
            bias[1] -= 1.5  # a scale below one keeps the feedback calm
        weights = kernels.WaveNetWeights(
            normal(r, 1, 2, std=0.7), normal(n, 2 * r, r, 2, std=(2 * r) ** -0.5),
            normal(n, r, r, std=0.5 * r**-0.5), normal(n, s, r, std=2 * (r * n) ** -0.5),
            normal(s, std=0.2), normal(s, s, std=s**-0.5), normal(s, std=0.2),
            normal(o, s, std=(1.0 if self.codes else 0.4) * s**-0.5), bias,
        )  # fmt: skip
        dilations = tuple(1 << layer % self.cycle for layer in range(n))
        return kernels.WaveNet(weights, dilations, self.steps_per_frame, precision)

    def call(self, streams: int, steps: int) -> tuple[Tensor, Tensor]:
        """Conditioning and randomness for so many steps from anywhere in a frame."""
        generator = torch.Generator().manual_seed(1)
        frames = 1 + -(-steps // self.steps_per_frame)
        size = (streams, self.layers, 2 * self.residual, frames)
        draw = torch.rand if self.codes else torch.randn
        return (
            torch.randn(size, generator=generator) * 0.5,
            draw(streams, 1, steps, generator=generator),
        )


SHAPES = {"g24": Shape(24), "m20": Shape(20, codes=256)}


def measure(bench: Bench) -> None:
    """Adds steps a second of the SHAPES, and what a second core brings one stream.

    Raises:
        EngineError: a kernel's result is not what its definition gives.
    """
    for name, shape in SHAPES.items():
        for precision in ("float32", "int8"):
            network = shape.network(precision)
            check(name, shape, network)
            for streams in (1, 4):
                call = shape.call(streams, STEPS)
                state = network.state(streams)
                run = partial(kernels.wavenet_generate, *call, network, state, backend="cpp")
                figure = f"{name}_{precision}_{streams}_steps_per_s"
                best = bench.timed(figure, partial(_again, run, state))
                bench.figures[figure] = streams * STEPS / best
    if (os.cpu_count() or 1) > 1:
        for precision in ("float32", "int8"):
            two_cores(bench, precision)


def _again(run: partial[Tensor], state: kernels.WaveNetState) -> None:
    """A call whose conditioning begins at the state's frame, as it did the first time."""
    state.step.zero_()
    run()


def check(name: str, shape: Shape, network: kernels.WaveNet) -> None:
    """Single steps against the definition, from the same states."""
    conditioning, randomness = shape.call(1, CHECKED_STEPS)
    state = network.state()
    made, exact = [], []
    for t in range(CHECKED_STEPS):
        before = kernels.WaveNetState(*(part.clone() for part in state))
        one = (conditioning, randomness[..., t : t + 1], network)
        made.append(kernels.wavenet_generate(*one, state, backend="cpp"))
        exact.append(kernels.wavenet_generate(*one, before, backend="reference"))
    apart = (torch.cat(made) - torch.cat(exact)).abs()
    error = apart.mean() if shape.codes else apart.max()
    allowed = {"float32": 1e-4, "int8": MOST_CODES_APART if shape.codes else 0.15}
    if not float(error) <= allowed[network.precision]:
        raise EngineError(f"{name} {network.precision}: error {error:.3g}; nothing was measured")


def two_cores(bench: Bench, precision: str) -> None:
    """One stream of the default vocoder on two cores and on one, in turn; fastest rounds."""
    one = bench.engine.vocoder.network(precision)
    networks = (one, replace(one, cores=2))
    call = bench.call(1, SPLIT_STEPS)
    best = [float("inf")] * 2
    made: list[Tensor] = [torch.empty(0)] * 2
    end = time.perf_counter() + 2 * bench.seconds
    while time.perf_counter() < end or best[1] == float("inf"):
        for i, network in enumerate(networks):
            state = network.state()
            begin = time.perf_counter()
            made[i] = kernels.wavenet_generate(*call, network, state, backend="cpp")
            best[i] = min(best[i], time.perf_counter() - begin)
        if not torch.equal(*made):
            raise EngineError("vocoder: two cores change the samples; nothing was measured")
    bench.figures[f"vocoder_{precision}_two_cores_times_one"] = best[0] / best[1]
