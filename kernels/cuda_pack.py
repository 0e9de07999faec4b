"""Weights in the order in which the CUDA kernels read them; `csrc/cuda/tiles.h` has the reasons.

A matrix [rows, depth] becomes tiles of 16 rows, a tile blocks along the depth, a block what its 32
lanes hold of it. Rows and depth are padded with zeros.
"""

from __future__ import annotations

import torch
from engine.kernels.reference import WaveNetWeights
from torch import Tensor
from torch.nn import functional as F

TILE = 16
DEPTH = 32  # of an operand: a multiple of this


def padded(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to


def pack_tiles(matrix: Tensor, precision: str) -> Tensor:
    """[rows, depth] -> flat, dtype of the precision, rows and depth padded to whole tiles.

    bfloat16: block = 16 of the depth, [tile][block][row in 8][pair][upper, lower by low, high][2];
    the depth is permuted so that a lane's operand words of two blocks lie together.
    float32: block = 4 of the depth, [tile][block][row in 8][upper, lower][4].
    """
    rows, depth = matrix.shape
    matrix = F.pad(matrix, (0, padded(depth, DEPTH) - depth, 0, padded(rows, TILE) - rows))
    if precision == "float32":
        tiles = matrix.float().reshape(-1, 2, 8, matrix.shape[1] // 4, 4)
        return tiles.permute(0, 3, 2, 1, 4).flatten()
    # tile, half, row, two blocks, pair, which block, low or high, 2
    tiles = matrix.reshape(-1, 2, 8, matrix.shape[1] // 32, 4, 2, 2, 2)
    return tiles.permute(0, 3, 5, 2, 4, 6, 1, 7).flatten().to(torch.bfloat16)


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two matrices in turns of eight, so that a lane holds both of one channel."""
    rows = padded(first.shape[0], 8)
    pair = [F.pad(part, (0, 0, 0, rows - part.shape[0])) for part in (first, second)]
    return torch.stack([part.reshape(-1, 8, part.shape[1]) for part in pair], 1).flatten(0, 2)


def _interleaved_vector(first: Tensor, second: Tensor) -> Tensor:
    return interleaved(first[:, None], second[:, None])[:, 0]


def pack_wavenet(weights: WaveNetWeights, precision: str, fold: bool) -> tuple[Tensor, Tensor]:
    """Tiles of all layers and the head, and what stays float32: inputs and biases.

    A layer: past tap, skip, current tap, residual and, if `fold`, current tap times the residual
    of the layer before (zeros for the first).
    """
    w = WaveNetWeights(*(part.detach().float() for part in weights))
    bands, codes = w.inputs.shape[1], w.outputs.shape[0]
    pack = lambda matrix: pack_tiles(matrix, precision)  # noqa: E731
    parts = []
    for layer, gates in enumerate(w.gates):
        past, current = (interleaved(*gates[:, :, tap].chunk(2)) for tap in (0, 1))
        parts += [pack(past), pack(w.skips[layer]), pack(current), pack(w.residuals[layer])]
        if fold:
            before = w.residuals[layer - 1].double() if layer else torch.zeros_like(w.residuals[0])
            parts.append(pack((current.double() @ before.double()).float()))
    gaussian = codes == 2 * bands
    outputs = interleaved(*w.outputs.chunk(2)) if gaussian else w.outputs
    bias = _interleaved_vector(*w.outputs_bias.chunk(2)) if gaussian else w.outputs_bias
    parts += [pack(w.hidden), pack(outputs)]
    bias = F.pad(bias, (0, padded(len(bias), TILE) - len(bias)))
    floats = torch.cat([w.inputs.flatten(), w.skip_bias, w.hidden_bias, bias])
    return torch.cat(parts), floats
