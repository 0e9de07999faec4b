"""What correct means: errors against float64, and a WaveNet written a second time."""

from collections.abc import Callable

import numpy as np
import torch
from engine.kernels import WaveNet
from torch import Tensor

from engine import kernels


def assert_as_accurate(actual: Tensor, op: Callable, *inputs: Tensor, factor: float = 2.0) -> None:
    """Fail if `actual` errs more than `factor` times the reference run in the same dtype.

    Both are measured against float64. One eps is the floor, where the reference is exact.
    """
    exact = op(*(x.double() for x in inputs))
    assert actual.shape == exact.shape and torch.isfinite(actual).all()
    if not exact.numel():
        return
    allowed = factor * (op(*(x.clone() for x in inputs)).double() - exact).abs().max()
    allowed += torch.finfo(actual.dtype).eps * exact.abs().max()
    error = (actual.double() - exact).abs().max()
    assert error <= allowed, f"max error {error:.3e}, allowed {allowed:.3e}"


def teacher_forced(network: WaveNet, conditioning: Tensor, outputs: Tensor) -> np.ndarray:
    """Head outputs [batch, O, band_steps] in float64, every step given all true outputs before it.

    Whole sequences layer by layer, in numpy: shares neither code nor order with the step by step
    ops, so a generator's own `outputs` can be checked against it.
    """
    w = [part.double().numpy() for part in network.weights]
    inputs, gates, residuals, skips, skip_bias, hidden, hidden_bias, last, last_bias = w
    y = outputs.double().numpy()
    if last.shape[0] != 2 * inputs.shape[1]:
        y = 2 * y / (last.shape[0] - 1) - 1
    steps = y.shape[2]

    def delayed(values: np.ndarray, by: int) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, 0), (by, 0)))[:, :, :steps]

    x = inputs[:, :, 0] @ delayed(y, 2) + inputs[:, :, 1] @ delayed(y, 1)
    local = np.repeat(conditioning.double().numpy(), network.band_steps_per_frame, axis=3)
    skip = skip_bias[:, None]
    for i, dilation in enumerate(network.dilations):
        both = gates[i, :, :, 0] @ delayed(x, dilation) + gates[i, :, :, 1] @ x
        both = both + local[:, i, :, :steps]
        channels = both.shape[1] // 2
        z = np.tanh(both[:, :channels]) / (1 + np.exp(-both[:, channels:]))
        skip = skip + skips[i] @ z
        x = x + residuals[i] @ z
    top = np.maximum(hidden @ np.maximum(skip, 0) + hidden_bias[:, None], 0)
    return last @ top + last_bias[:, None]


def driven(
    network: WaveNet, conditioning: Tensor, targets: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Means and log-scales of a Gaussian network's backend, given all true `targets` before them.

    Two streams with noise 0 and 1 are run step by step and their last outputs replaced: the first
    gives the mean, the difference the scale. One item [1, ...]; returns [bands, band_steps] each.
    """
    state = network.state(2)
    both = conditioning.expand(2, -1, -1, -1)
    noise = torch.tensor([0.0, 1.0])[:, None, None].expand(2, targets.shape[1], 1)
    made = []
    for t in range(targets.shape[2]):
        frame = t // network.band_steps_per_frame
        local = both[..., frame : frame + 1]
        made.append(kernels.wavenet_generate(local, noise, network, state, backend=backend))
        state.last[:, :, 1] = targets[0, :, t]
    mean, raised = torch.cat(made, dim=-1).double()
    return mean, torch.log(raised - mean)


def nll(mean: Tensor, log_scale: Tensor, targets: Tensor, floor: float = -7.0) -> Tensor:
    """Negative log-likelihood per band [bands], in nat, log-scales floored as in training."""
    log_scale = log_scale.clamp_min(floor)
    z = (targets - mean) * torch.exp(-log_scale)
    return (0.5 * z.square() + log_scale).mean(dim=-1) + 0.5 * np.log(2 * np.pi)


def sampled(head: np.ndarray, randomness: Tensor, codes: int) -> np.ndarray:
    """The outputs that head outputs and randomness give, [batch, bands, band_steps] float64."""
    z = randomness.double().numpy()
    if not codes:
        bands = z.shape[1]
        return head[:, :bands] + np.exp(head[:, bands:]) * z
    weights = np.exp(head - head.max(axis=1, keepdims=True))
    below = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True) <= z
    return np.minimum(below.sum(axis=1, keepdims=True), codes - 1)
