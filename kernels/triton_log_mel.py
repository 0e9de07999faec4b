"""Log-mel in one Triton kernel: frames, window, spectrum, filterbank and logarithm.

The spectrum is a product with cosines and sines. Samples n and n_fft - n share a cosine and have
opposite sines, so even and odd halves of a windowed frame are transformed, at half the products.
Nothing but samples and mels touches memory.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from engine.kernels.checks import aligned, check_log_mel
from torch import Tensor

FRAMES, BINS, HALF = 16, 64, 32  # frames, spectrum bins and sample pairs of a tile


@lru_cache
def _waves(n_fft: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi n k / n_fft, [n_fft / 2, bins padded to whole tiles]."""
    n = torch.arange(n_fft // 2, dtype=torch.float64)
    k = torch.arange(triton.cdiv(n_fft // 2 + 1, BINS) * BINS, dtype=torch.float64)
    angle = torch.outer(n, k).remainder(n_fft) * (2 * math.pi / n_fft)
    return angle.cos().float().to(device), angle.sin().float().to(device)


@triton.jit
def _reflected(at, count):
    """Index into `count` samples, mirrored at both ends without repeating them."""
    at = tl.where(at < 0, -at, at)
    return tl.where(at >= count, 2 * (count - 1) - at, at)


@triton.jit(do_not_specialize=("count", "frames", "hop", "n_fft", "n_mels", "floor"))
def _log_mel(
    samples, filterbank, window, cosines, sines, out, count, frames, hop, n_fft, n_mels, floor,
    FRAMES: tl.constexpr, BINS: tl.constexpr, HALF: tl.constexpr, MELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    inside = frame < frames
    start = (frame * hop - (n_fft - hop) // 2)[:, None]
    clip = samples + row * count
    half = n_fft // 2
    bins = half + 1
    wide = tl.cdiv(bins, BINS) * BINS
    i = tl.arange(0, HALF)
    mels = tl.arange(0, MELS)
    at = _reflected(start + half, count)
    middle = tl.load(clip + at, inside[:, None], 0.0) * tl.load(window + half)  # [FRAMES, 1]
    mel = tl.zeros([FRAMES, MELS], tl.float32)
    for tile in range(tl.cdiv(bins, BINS)):
        k = tile * BINS + tl.arange(0, BINS)
        real = middle * (1 - 2 * (k % 2)).to(tl.float32)[None, :]
        imaginary = tl.zeros([FRAMES, BINS], tl.float32)
        for block in range(half // HALF):
            n = block * HALF + i
            mask = tl.broadcast_to(inside[:, None], [FRAMES, HALF])
            left = tl.load(clip + _reflected(start + n[None, :], count), mask, 0.0)
            left *= tl.load(window + n)[None, :]
            mirrored = tl.where(n > 0, n_fft - n, 0)
            mask = mask & (n > 0)[None, :]
            right = tl.load(clip + _reflected(start + mirrored[None, :], count), mask, 0.0)
            right *= tl.load(window + mirrored)[None, :]
            wave = n[:, None] * wide + k[None, :]
            real = tl.dot(left + right, tl.load(cosines + wave), real, input_precision="ieee")
            imaginary = tl.dot(
                left - right, tl.load(sines + wave), imaginary, input_precision="ieee"
            )
        magnitude = tl.sqrt(real * real + imaginary * imaginary)
        weight = tl.load(
            filterbank + mels[None, :] * bins + k[:, None],
            (mels < n_mels)[None, :] & (k < bins)[:, None], 0.0,
        )  # fmt: skip
        mel = tl.dot(magnitude, weight, mel, input_precision="ieee")
    at = out + (row * n_mels + mels[None, :]) * frames + frame[:, None]
    value = tl.log(tl.maximum(mel, floor))
    tl.store(at, value, inside[:, None] & (mels < n_mels)[None, :])


def log_mel_why_not(
    samples: Tensor, filterbank: Tensor, window: Tensor, hop_length: int, floor: float
) -> str | None:
    """None if `log_mel` can run here, else the reason."""
    n_fft, n_mels = len(window), len(filterbank)
    if n_fft % (2 * HALF) or n_mels > 128:
        return f"n_fft {n_fft} and {n_mels} mels: n_fft a multiple of {2 * HALF}, at most 128 mels"
    return None


def log_mel(
    samples: Tensor, filterbank: Tensor, window: Tensor, hop_length: int, floor: float
) -> Tensor:
    """Triton form of reference.log_mel; see it for shapes and units.

    Numerics: float32 sums over n_fft / 2 products.
    Raises:
        ValueError: shapes that do not fit each other, or too few samples.
    """
    check_log_mel(samples, filterbank, window, hop_length)
    batch, count = samples.shape
    n_fft, n_mels, frames = len(window), len(filterbank), count // hop_length
    out = torch.empty(batch, n_mels, frames, device=samples.device)
    if out.numel():
        with torch.cuda.device_of(out):
            _log_mel[(triton.cdiv(frames, FRAMES), batch)](
                aligned(samples), aligned(filterbank), aligned(window),
                *_waves(n_fft, samples.device), out, count, frames, hop_length, n_fft, n_mels,
                float(floor), FRAMES=FRAMES, BINS=BINS, HALF=HALF,
                MELS=max(16, triton.next_power_of_2(n_mels)), num_warps=4, num_stages=1,
            )  # fmt: skip
    return out
