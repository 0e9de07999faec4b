"""Matrix-vector products for Triton kernels: weights packed on the host, read in kernels.

Activations are [G, channels]. G = 1: one stream, sums over rows of the matrix. G = 16: sixteen
streams are the rows of a tensor core instruction (m16n8k16), the matrix its other operand.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def pack(matrix: Tensor, group: int, warps: int) -> Tensor:
    """[N, K] in its final dtype -> flat, in the order in which `matrix` of a kernel reads it.

    For tensor cores each thread's share lies together (its fragments), so that weights go from
    memory to registers in 16-byte loads and never through shared memory.
    """
    n, k = matrix.shape
    if group == 1:
        return matrix.reshape(-1)
    if matrix.dtype == torch.float32 or n % (8 * warps):
        return matrix.T.reshape(-1)
    wide = 4 if matrix.dtype == torch.int8 else 2  # of K in one register; 8 * wide in a block
    low = min(2, k // (8 * wide))  # blocks in one load
    parts = matrix.T.reshape(k // (8 * wide * low), low, 2, 4, wide, n // (8 * warps), warps, 8)
    return parts.permute(5, 0, 6, 7, 3, 1, 2, 4).reshape(-1)


def quantise(matrix: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Rows [N, K] in the dtype of a precision, and the scale of each row [N]."""
    ones = matrix.new_ones(len(matrix))
    if precision != "int8":
        return matrix.to(DTYPES[precision]), ones
    scale = matrix.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, ones)
    return (matrix / scale[:, None]).round().to(torch.int8), scale


@triton.jit
def matrix(at, K: tl.constexpr, N: tl.constexpr, G: tl.constexpr, WARPS: tl.constexpr):
    """What `pack` laid down at `at`: [N, K] for G = 1, else [K, N] as tensor cores take it."""
    if G == 1:
        return tl.load(at + tl.arange(0, N)[:, None] * K + tl.arange(0, K)[None, :])
    elif at.dtype.element_ty == tl.float32 or N % (8 * WARPS) != 0:
        return tl.load(at + tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :])
    else:
        WIDE: tl.constexpr = 4 if at.dtype.element_ty == tl.int8 else 2
        LOW: tl.constexpr = 1 if K < 16 * WIDE else 2
        parts = tl.load(at + tl.arange(0, K * N))
        parts = tl.reshape(
            parts, [N // (8 * WARPS), K // (8 * WIDE * LOW), WARPS, 8, 4, LOW, 2, WIDE]
        )
        return tl.reshape(tl.permute(parts, [1, 5, 6, 4, 7, 0, 2, 3]), [K, N])


@triton.jit
def rounded(x):
    """float32 rounded to bfloat16 values, to nearest even; Triton's interpreter would truncate."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & -65536).to(tl.float32, bitcast=True)


@triton.jit
def times(x, w, acc, G: tl.constexpr, INTERPRET: tl.constexpr):
    """acc + x [G, K] times a `matrix` of N rows: [G, N] in float32."""
    if G == 1:
        return acc + tl.sum(w.to(tl.float32) * x, 1)[None, :]
    elif w.dtype == tl.float32:  # as accurate as float32 products, on tensor cores
        return tl.dot(x, w, acc, input_precision="tf32x3")
    elif INTERPRET:  # its bfloat16 products are wrong
        return tl.dot(rounded(x), w.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(x.to(tl.bfloat16), w.to(tl.bfloat16), acc)


@triton.jit
def times_both(x, w, x2, w2, G: tl.constexpr, INTERPRET: tl.constexpr):
    """x times w plus x2 times w2, of equal shapes."""
    if G == 1:
        return tl.sum(w.to(tl.float32) * x + w2.to(tl.float32) * x2, 1)[None, :]
    else:
        zero = tl.zeros([G, w.shape[1]], tl.float32)
        return times(x2, w2, times(x, w, zero, G, INTERPRET), G, INTERPRET)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, absolute error below 2e-7."""
    return 2 * tl.sigmoid(2 * x) - 1
