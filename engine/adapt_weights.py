"""A person's compact weight difference: low-rank factors and biases of some generator layers.

The difference of a weight W [out, ...] is up @ down, up [out, rank], down [rank, everything else]
(LoRA, arXiv:2106.09685); biases are kept whole. Names: "<module>.up", ".down", ".bias".
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from engine.errors import VoiceError
from engine.models.acoustic import Acoustic

Difference = Mapping[str, np.ndarray]  # float16

PARTS = ("up", "down", "bias")
MAX_RANK = 16
MAX_TENSORS = 256
MAX_BYTES = 1_000_000
_NAME = re.compile(r"[a-z_]+(\.[a-z0-9_]+){0,6}\.(up|down|bias)")


class LowRank(nn.Module):
    """Parametrisation W -> W + up @ down; `up` starts at zero, so nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        inner = weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, inner) / inner**0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


class Shift(nn.Module):
    """Parametrisation b -> b + shift, from zero."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        return bias + self.bias


def adaptable(acoustic: Acoustic) -> dict[str, Any]:
    """Layers whose weights a voice may change: those that make the mel.

    Not the text encoder, the decoder and its attention: what is said, and when, rests on them,
    and ten seconds of speech teach them only to mumble (docs/experiments.md).
    """
    converter = {f"converter.{i}.conv": block.conv for i, block in enumerate(acoustic.converter)}
    return {**converter, "spread": acoustic.spread, "refine": acoustic.refine}


def trainable(acoustic: Acoustic, rank: int) -> tuple[Acoustic, list[nn.Parameter]]:
    """A frozen copy of the generator with a zero difference on it, and that difference.

    rank 0: no difference, only the copy.
    """
    own = copy.deepcopy(acoustic).requires_grad_(False)
    found: list[nn.Parameter] = []
    if not rank:
        return own, found
    for layer in adaptable(own).values():
        low, shift = LowRank(layer.weight, rank), Shift(layer.bias)
        parametrize.register_parametrization(layer, "weight", low)
        parametrize.register_parametrization(layer, "bias", shift)
        found += [low.up, low.down, shift.bias]
    return own, found


def difference(acoustic: Acoustic) -> dict[str, np.ndarray]:
    """The difference on a generator that `trainable` made, as float16 arrays."""
    found: dict[str, np.ndarray] = {}
    for name, layer in adaptable(acoustic).items():
        low, shift = layer.parametrizations.weight[0], layer.parametrizations.bias[0]
        parts = {"up": low.up, "down": low.down, "bias": shift.bias}
        found |= {f"{name}.{part}": p.detach().cpu().half().numpy() for part, p in parts.items()}
    return found


def applied(acoustic: Acoustic, changes: Difference) -> Acoustic:
    """A copy of the generator with the difference added to its weights.

    Raises:
        VoiceError: the difference belongs to a generator of another shape.
    """
    own = copy.deepcopy(acoustic)
    layers = adaptable(own)
    for name in {name.rpartition(".")[0] for name in changes}:
        up, down, bias = (
            torch.tensor(changes[f"{name}.{part}"]).float() for part in PARTS
        )
        layer = layers.get(name)
        if layer is None or (up.shape[0], down.shape[1], bias.shape) != (
            layer.weight.shape[0], layer.weight[0].numel(), layer.bias.shape,
        ):  # fmt: skip
            raise VoiceError(f"weight difference of {name} does not fit this generator")
        device = layer.weight.device
        with torch.no_grad():
            layer.weight += (up @ down).view_as(layer.weight).to(device)
            layer.bias += bias.to(device)
    return own


def problem(changes: Difference) -> str | None:
    """What makes this no weight difference, or None."""
    if len(changes) > MAX_TENSORS or sum(a.nbytes for a in changes.values()) > MAX_BYTES:
        return f"weight difference over {MAX_TENSORS} arrays or {MAX_BYTES:,} bytes"
    for name, array in changes.items():
        if not _NAME.fullmatch(name):
            return f"weight difference with an array named {name[:80]!r}"
        if array.dtype != np.float16 or not np.isfinite(array).all():
            return f"weight difference {name}: not finite float16"
    for name in {name.rpartition(".")[0] for name in changes}:
        shapes = [changes.get(f"{name}.{part}", np.empty(())).shape for part in PARTS]
        if [len(s) for s in shapes] != [2, 2, 1]:
            return f"weight difference {name}: give up [out, rank], down [rank, in] and bias [out]"
        (out, rank), (other_rank, _), (biases,) = shapes
        if not (out == biases and 1 <= rank == other_rank <= MAX_RANK):
            return f"weight difference {name}: shapes {shapes} do not fit, or rank over {MAX_RANK}"
    return None

