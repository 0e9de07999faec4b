"""One factory per compiled op, and the shapes that tests and benches use."""

from dataclasses import dataclass

import torch
from engine.kernels import WaveNet, WaveNetState, WaveNetWeights
from torch import Tensor

from engine import kernels


@dataclass(frozen=True)
class WaveNetShape:
    """Sizes of a WaveNet; `codes` > 0 gives it a softmax head."""

    bands: int = 4
    layers: int = 16
    max_dilation: int = 128
    residual: int = 64
    skip: int = 128
    codes: int = 0
    steps_per_frame: int = 64

    @property
    def dilations(self) -> tuple[int, ...]:
        cycle = self.max_dilation.bit_length()
        return tuple(1 << layer % cycle for layer in range(self.layers))

    @property
    def outputs(self) -> int:
        return self.codes or 2 * self.bands

    @property
    def multiply_adds(self) -> int:
        """Per step, without the input convolution."""
        r, s = self.residual, self.skip
        return self.layers * (5 * r * r + s * r) + s * s + s * self.outputs


DEFAULT = WaveNetShape()
CHECK = {
    "default": DEFAULT,
    "one_band": WaveNetShape(1, 5, 8, 32, 64, steps_per_frame=256),
    "large": WaveNetShape(4, 3, 2, 128, 256),
    "odd": WaveNetShape(3, 4, 4, 48, 80, steps_per_frame=7),
    "softmax": WaveNetShape(1, 4, 4, 64, 256, codes=256, steps_per_frame=30),
}
BENCH = {
    "default": DEFAULT,
    "one_band_24_layers": WaveNetShape(1, 24, 512, steps_per_frame=256),
    "mu_law_20_layers": WaveNetShape(1, 20, 512, codes=256, steps_per_frame=256),
}


def make_weights(shape: WaveNetShape, seed: int = 0) -> WaveNetWeights:
    """Random weights under which the residual stream stays of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    r, s, o, n = shape.residual, shape.skip, shape.outputs, shape.layers
    bias = normal(o, std=0.3)
    if not shape.codes:
        bias[shape.bands :] -= 1.5  # scales well below one keep the feedback loop calm
    return WaveNetWeights(
        normal(r, shape.bands, 2, std=(2 * shape.bands) ** -0.5),
        normal(n, 2 * r, r, 2, std=(2 * r) ** -0.5),
        normal(n, r, r, std=0.5 * r**-0.5),
        normal(n, s, r, std=2 * (r * n) ** -0.5),
        normal(s, std=0.2),
        normal(s, s, std=s**-0.5),
        normal(s, std=0.2),
        normal(o, s, std=(1.0 if shape.codes else 0.4) * s**-0.5),
        bias,
    )


def make_network(
    shape: WaveNetShape, precision: str = "float32", isa: str = "auto", seed: int = 0
) -> WaveNet:
    """A network of random weights."""
    return WaveNet(
        make_weights(shape, seed), shape.dilations, shape.steps_per_frame, precision, isa
    )


def make_inputs(
    shape: WaveNetShape, batch: int, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Conditioning and randomness that last for `steps` from anywhere in a frame."""
    generator = torch.Generator().manual_seed(seed)
    frames = -(-steps // shape.steps_per_frame) + 1
    size = (batch, shape.layers, 2 * shape.residual, frames)
    conditioning = torch.randn(*size, generator=generator) * 0.5
    if shape.codes:
        return conditioning, torch.rand(batch, 1, steps, generator=generator)
    return conditioning, torch.randn(batch, shape.bands, steps, generator=generator)


def in_chunks(
    sizes: list[int], conditioning: Tensor, randomness: Tensor, network: WaveNet,
    state: WaveNetState, backend: str,
) -> Tensor:  # fmt: skip
    """The same generation in calls of the given sizes, joined."""
    assert sum(sizes) == randomness.shape[-1]
    parts, at = [], 0
    for size in sizes:
        frame = at // network.band_steps_per_frame
        part = randomness[..., at : at + size]
        parts.append(
            kernels.wavenet_generate(
                conditioning[..., frame:], part, network, state, backend=backend
            )
        )
        at += size
    return torch.cat(parts, dim=-1)


def make_lpc(batch: int, bands: int, order: int, frames: int, repeat: int, seed: int = 0):
    """Excitation, stable taps, gain and a past for `lpc_synthesis`."""
    generator = torch.Generator().manual_seed(seed)
    lags = torch.randn(batch, bands, frames, order + 9, generator=generator)
    correlation = torch.stack(
        [(lags[..., k:] * lags[..., : lags.shape[-1] - k]).sum(-1) for k in range(order + 1)], -1
    )
    taps, _ = kernels.linear_prediction(correlation)
    return (
        torch.randn(batch, bands, frames * repeat, generator=generator),
        taps.transpose(2, 3).contiguous(),
        torch.rand(batch, bands, frames, generator=generator) + 0.1,
        torch.randn(batch, bands, order, generator=generator),
    )
