"""The vocoder's other ops in Triton: noise, linear prediction synthesis, PQMF synthesis."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from engine.kernels import triton_backend
from engine.kernels.checks import (
    aligned,
    check_gaussian_noise,
    check_lpc_synthesis,
    check_pqmf_synthesis,
    check_stream_noise,
)
from torch import Tensor

BLOCK = 512


@triton.jit
def _normal(a, b):
    """Box-Muller on two words, as reference.gaussian_noise does it."""
    k = (a >> 9).to(tl.int32)
    v = ((8388608 - k).to(tl.float32) - 0.5) * 1.1920928955078125e-07
    # -log(1 - v): a GPU's logarithm has an absolute error, which small radii would show.
    series = v * (1 + v * (0.5 + v * (1 / 3 + v * (0.25 + v * 0.2))))
    far = -tl.log((k.to(tl.float32) + 0.5) * 1.1920928955078125e-07)
    radius = tl.sqrt(2.0 * tl.where(v < 0.03125, series, far))
    angle = (b >> 8).to(tl.float32) * 5.9604644775390625e-08 * 6.283185307179586
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=("band_steps", "bands"))
def _noise(seed, stream, first_step, out, band_steps, bands, BLOCK: tl.constexpr):
    row = tl.program_id(2).to(tl.int64)
    quad = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(seed + row)
    step = tl.load(first_step + row) + column
    c0 = step.to(tl.uint32)
    c1 = (step >> 32).to(tl.uint32)
    c2 = tl.zeros([BLOCK], tl.uint32) + tl.load(stream + row).to(tl.uint32)
    c3 = tl.zeros([BLOCK], tl.uint32) + quad.to(tl.uint32)
    k0 = tl.zeros([BLOCK], tl.uint32) + key.to(tl.uint32)
    k1 = tl.zeros([BLOCK], tl.uint32) + (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high2 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = (c0.to(tl.uint64) * 0xD2511F53).to(tl.uint32)
        low2 = (c2.to(tl.uint64) * 0xCD9E8D57).to(tl.uint32)
        c0 = high2 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low2
        c3 = low0
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    z0, z1 = _normal(c0, c1)
    z2, z3 = _normal(c2, c3)
    band = 4 * quad
    at = out + (row * bands + band) * band_steps + column
    inside = column < band_steps
    tl.store(at, z0, inside)
    tl.store(at + band_steps, z1, inside & (band + 1 < bands))
    tl.store(at + 2 * band_steps, z2, inside & (band + 2 < bands))
    tl.store(at + 3 * band_steps, z3, inside & (band + 3 < bands))


def stream_noise_why_not(*_args: object) -> None:
    """None: `stream_noise` runs wherever Triton does."""


def stream_noise(
    seeds: Tensor, streams: Tensor, first_steps: Tensor, band_steps: int, bands: int
) -> Tensor:
    """Triton form of reference.stream_noise; within 2e-6 of it, and never reads on the host."""
    check_stream_noise(seeds, streams, first_steps, band_steps, bands)
    batch = len(seeds)
    out = torch.empty(batch, bands, band_steps, device=seeds.device)
    if batch and band_steps:
        grid = (triton.cdiv(band_steps, BLOCK), triton.cdiv(bands, 4), batch)
        with torch.cuda.device_of(out):
            _noise[grid](
                aligned(seeds), aligned(streams), aligned(first_steps), out, band_steps, bands,
                BLOCK=BLOCK,
            )  # fmt: skip
    return out


def gaussian_noise_why_not(*_args: object) -> str | None:
    """None if `gaussian_noise` can run here, else the reason: its result has to be on a GPU."""
    device = torch.get_default_device()
    if device.type != "cuda" and not triton_backend.interpreting():
        return f"the default device is {device}; triton makes noise inside torch.device('cuda')"
    return None


def gaussian_noise(seed: int, stream: int, first_step: int, band_steps: int, bands: int) -> Tensor:
    """Triton form of reference.gaussian_noise, on the default device; `stream_noise` of one."""
    check_gaussian_noise(seed, stream, first_step, band_steps, bands)
    signed = seed - 2**64 if seed >= 2**63 else seed
    seeds, streams, first_steps = (torch.tensor([n]) for n in (signed, stream, first_step))
    return stream_noise(seeds, streams, first_steps, band_steps, bands)[0]


@triton.jit(do_not_specialize=("rows", "order", "frames", "repeat"))
def _lpc(
    excitation, taps, gain, state, out, rows, order, frames, repeat, ROWS: tl.constexpr,
    ORDER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    k = tl.arange(0, ORDER)[None, :]
    read = inside[:, None] & (k < order)
    at = row.to(tl.int64)
    at_state = state + at[:, None] * order + k
    past = tl.load(at_state, read, 0.0)  # newest first
    older = tl.broadcast_to(tl.maximum(k - 1, 0), [ROWS, ORDER])
    for frame in range(frames):
        tap = tl.load(taps + (at[:, None] * order + k) * frames + frame, read, 0.0)
        scale = tl.load(gain + at * frames + frame, inside, 0.0)
        for i in range(repeat):
            here = at * frames * repeat + frame * repeat + i
            driven = scale * tl.load(excitation + here, inside, 0.0)
            y = driven + tl.sum(tap * past, 1)
            tl.store(out + here, y, inside)
            past = tl.where(k == 0, y[:, None], tl.gather(past, older, 1))
    tl.store(at_state, past, read)


def lpc_synthesis_why_not(
    excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor
) -> str | None:
    """None if `lpc_synthesis` can run here, else the reason."""
    if taps.shape[2] > 32:
        return f"order {taps.shape[2]}, at most 32"
    return None if state.is_contiguous() else "state is updated in place and must be contiguous"


def lpc_synthesis(excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor) -> Tensor:
    """Triton form of reference.lpc_synthesis; see it for shapes and units.

    Equal bits whatever the batch and the chunks of frames.
    """
    check_lpc_synthesis(excitation, taps, gain, state)
    batch, bands, steps = excitation.shape
    order, frames = taps.shape[2:]
    out = torch.empty(batch, bands, steps, device=excitation.device)
    if out.numel():
        with torch.cuda.device_of(out):
            _lpc[(triton.cdiv(batch * bands, 4),)](
                aligned(excitation), aligned(taps), aligned(gain), state, out, batch * bands, order,
                frames, steps // frames, ROWS=4, ORDER=triton.next_power_of_2(max(order, 2)),
                num_warps=1, num_stages=1,
            )  # fmt: skip
    return out


@triton.jit(do_not_specialize=("bands", "steps", "taps"))
def _pqmf(band_samples, filters, out, bands, steps, taps, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < bands * steps
    lead = n - taps // 2 + bands * taps  # positive; its first tap on a band step comes next
    first = (bands - lead % bands) % bands
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(taps // bands + 1):
        k = first + j * bands
        step = (n + k - taps // 2) // bands  # exact where it counts
        valid = inside & (k <= taps) & (n + k >= taps // 2) & (step < steps)
        for band in range(bands):
            x = tl.load(band_samples + (row * bands + band) * steps + step, valid, 0.0)
            total += x * tl.load(filters + band * (taps + 1) + k, valid, 0.0)
    tl.store(out + row * bands * steps + n, total, inside)


def pqmf_synthesis_why_not(band_samples: Tensor, filters: Tensor) -> None:
    """None: `pqmf_synthesis` runs wherever Triton does."""


def pqmf_synthesis(band_samples: Tensor, filters: Tensor) -> Tensor:
    """Triton form of reference.pqmf_synthesis; see it for shapes and units."""
    check_pqmf_synthesis(band_samples, filters)
    batch, bands, steps = band_samples.shape
    out = torch.empty(batch, bands * steps, device=band_samples.device)
    if out.numel():
        with torch.cuda.device_of(out):
            _pqmf[(triton.cdiv(bands * steps, BLOCK), batch)](
                aligned(band_samples), aligned(filters), out, bands, steps, filters.shape[1] - 1,
                BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    return out
