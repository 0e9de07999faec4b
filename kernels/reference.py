"""Ground truth for every op, in plain torch. No speed, no backends, no device tricks.

Rules: compute in float32 (float64 if given float64), cast back once at the end, and keep exactly
the positional signature of the public op.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def log_mel(
    samples: Tensor, filterbank: Tensor, window: Tensor, hop_length: int, floor: float
) -> Tensor:
    """Log-mel of magnitude spectra: mel = ln(max(filterbank |STFT|, floor)).

    Frame t is centred on sample `t * hop_length + hop_length / 2`: reflect padding of
    (n_fft - hop) / 2 on both sides and no centring, the convention of public 24 kHz vocoders.

    Args:
        samples: [batch, samples] in [-1, 1]; more than (n_fft - hop_length) / 2 samples.
        filterbank: [n_mels, n_fft // 2 + 1], per magnitude bin.
        window: [n_fft].
        hop_length: samples.
        floor: smallest mel magnitude before the logarithm.
    Returns:
        [batch, n_mels, samples // hop_length], natural logarithm, dtype of `samples`.
    """
    compute = torch.promote_types(samples.dtype, torch.float32)
    n_fft = window.shape[0]
    pad = (n_fft - hop_length) // 2
    padded = F.pad(samples.to(compute).unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
    spectrum = torch.stft(
        padded, n_fft, hop_length, n_fft, window.to(compute), center=False, return_complex=True
    )
    mel = filterbank.to(compute) @ spectrum.abs()
    return mel.clamp_min(floor).log().to(samples.dtype)


def pqmf_analysis(samples: Tensor, filters: Tensor) -> Tensor:
    """Split audio into bands: band_b[n] = sum_k filters[b, k] x[bands n + k - taps / 2].

    Args:
        samples: [batch, samples], samples a multiple of bands.
        filters: [bands, taps + 1], analysis filters, taps even.
    Returns:
        [batch, bands, samples / bands], zero phase: band step n sits on sample `bands * n`.
    Source: near-perfect cosine-modulated filter bank, Nguyen 1994.
    """
    compute = torch.promote_types(samples.dtype, torch.float32)
    bands, length = filters.shape
    padded = F.pad(samples.to(compute).unsqueeze(1), (length // 2, length // 2))
    return F.conv1d(padded, filters.to(compute).unsqueeze(1), stride=bands).to(samples.dtype)


def pqmf_synthesis(band_samples: Tensor, filters: Tensor) -> Tensor:
    """Inverse of `pqmf_analysis` up to the bank's reconstruction error.

    Args:
        band_samples: [batch, bands, band_steps].
        filters: [bands, taps + 1], synthesis filters, already scaled by `bands`.
    Returns:
        [batch, bands * band_steps].
    """
    compute = torch.promote_types(band_samples.dtype, torch.float32)
    batch, bands, steps = band_samples.shape
    length = filters.shape[1]
    upsampled = band_samples.new_zeros(batch, bands, steps * bands, dtype=compute)
    upsampled[:, :, ::bands] = band_samples.to(compute)
    padded = F.pad(upsampled, (length // 2, length // 2))
    return F.conv1d(padded, filters.to(compute).unsqueeze(0)).squeeze(1).to(band_samples.dtype)


def linear_prediction(autocorrelation: Tensor) -> tuple[Tensor, Tensor]:
    """Levinson-Durbin recursion: taps that predict a signal from its own past.

    prediction[t] = sum_k taps[k] x[t - 1 - k], with error power `error`.

    Args:
        autocorrelation: [..., order + 1], lags 0 to order, positive definite.
    Returns:
        taps [..., order] and error [...], the power of x - prediction.
    """
    r = autocorrelation
    order = r.shape[-1] - 1
    error = r[..., 0]
    taps = r.new_zeros(*r.shape[:-1], order)
    for i in range(order):
        predicted = (taps[..., :i] * r[..., 1 : i + 1].flip(-1)).sum(-1)
        reflection = (r[..., i + 1] - predicted) / error
        head = taps[..., :i] - reflection.unsqueeze(-1) * taps[..., :i].flip(-1)
        taps = torch.cat([head, reflection.unsqueeze(-1), taps[..., i + 1 :]], dim=-1)
        error = error * (1 - reflection.square())
    return taps, error


def lpc_analysis(band_samples: Tensor, taps: Tensor, gain: Tensor) -> Tensor:
    """Whiten: excitation[t] = (y[t] - sum_k taps[frame(t), k] y[t - 1 - k]) / gain[frame(t)].

    Args:
        band_samples: [batch, bands, band_steps].
        taps: [batch, bands, order, frames]; frame(t) = t * frames // band_steps.
        gain: [batch, bands, frames], positive.
    Returns:
        [batch, bands, band_steps], near unit variance.
    Source: the excitation signal of LPCNet (arXiv:1810.11846) and ExcitNet (arXiv:1811.04769).
    """
    compute = torch.promote_types(band_samples.dtype, torch.float32)
    y = band_samples.to(compute)
    order, frames = taps.shape[2:]
    repeat = y.shape[-1] // frames
    padded = F.pad(y, (order, 0))
    out = y.clone()
    for k in range(order):
        past = padded[..., order - 1 - k : order - 1 - k + y.shape[-1]]
        out = out - taps[:, :, k].to(compute).repeat_interleave(repeat, -1) * past
    return (out / gain.to(compute).repeat_interleave(repeat, -1)).to(band_samples.dtype)


def lpc_synthesis(excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor) -> Tensor:
    """Inverse of `lpc_analysis`: y[t] = gain e[t] + sum_k taps[k] y[t - 1 - k].

    Args:
        excitation: [batch, bands, band_steps].
        taps: [batch, bands, order, frames], constant within a frame.
        gain: [batch, bands, frames].
        state: [batch, bands, order], last outputs, newest first; updated in place; zeros = start.
    Returns:
        [batch, bands, band_steps].
    """
    compute = torch.promote_types(excitation.dtype, torch.float32)
    repeat = excitation.shape[-1] // max(taps.shape[-1], 1)
    past = state.to(compute)
    out = torch.empty_like(excitation, dtype=compute)
    for t in range(excitation.shape[-1]):
        frame = t // repeat
        driven = gain[..., frame].to(compute) * excitation[..., t].to(compute)
        y = driven + (taps[..., frame].to(compute) * past).sum(-1)
        out[..., t] = y
        past = torch.cat([y.unsqueeze(-1), past[..., :-1]], dim=-1)
    state.copy_(past)
    return out.to(excitation.dtype)


PRECISIONS = ("float32", "bfloat16", "int8")


class WaveNetWeights(NamedTuple):
    """Weights of one WaveNet. R residual, S skip, O head channels; tap 0 = past, 1 = now."""

    inputs: Tensor  # [R, bands, 2]: on the last two outputs; tap 1 = the newest
    gates: Tensor  # [layers, 2R, R, 2]: filter rows, then gate rows
    residuals: Tensor  # [layers, R, R]; the last layer's is unused
    skips: Tensor  # [layers, S, R]
    skip_bias: Tensor  # [S]
    hidden: Tensor  # [S, S]
    hidden_bias: Tensor  # [S]
    outputs: Tensor  # [O, S]: means, then log-scales (Gaussian); logits (softmax)
    outputs_bias: Tensor  # [O]


class WaveNetState(NamedTuple):
    """What a WaveNet remembers between calls; zeros = start. Updated in place."""

    last: Tensor  # [batch, bands, 2]: last two outputs, newest last
    history: Tensor  # [batch, sum of dilations, R]: layer inputs, a ring of `dilation` per layer
    step: Tensor  # [batch] int64: band steps generated so far


def wavenet_state(weights: WaveNetWeights, dilations: tuple[int, ...], batch: int) -> WaveNetState:
    """A fresh state for `wavenet_generate`, on the device and in the dtype of the weights."""
    channels, bands, _ = weights.inputs.shape
    new = weights.inputs.new_zeros
    return WaveNetState(
        new(batch, bands, 2),
        new(batch, sum(dilations), channels),
        torch.zeros(batch, dtype=torch.int64, device=weights.inputs.device),
    )


@dataclass(frozen=True, eq=False)
class WaveNet:
    """A network ready to generate; backends keep their packed weights with it, so build it once.

    Args:
        weights: copied; later changes of the originals are not seen.
        dilations: of each layer, in band steps.
        band_steps_per_frame: band steps that share one conditioning column.
        precision: of weights and matrix inputs in compiled backends: "float32", "bfloat16" or
            "int8". The reference always computes in the dtype of the conditioning.
        isa: instruction set of the cpp backend, a key of `kernels.isas()`; "auto" = the fastest.
        cores: 2 lets the cpp backend use a second core, where one is idle, for a call of one
            stream: faster by half, the same bits.
        streams_per_program: of the triton backend: 16 share each pass over the weights on tensor
            cores; 1 is by plain sums, as float32 always is. The two round differently, so a network
            keeps to one whatever the batch.
    Raises:
        ValueError: unknown precision, not one dilation per layer, or another number of cores.
    """

    weights: WaveNetWeights
    dilations: tuple[int, ...]
    band_steps_per_frame: int
    precision: str = "float32"
    isa: str = "auto"
    cores: int = 1
    streams_per_program: int = 16

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: one of {PRECISIONS}")
        if self.cores not in (1, 2):
            raise ValueError(f"cores {self.cores}: 1 or 2")
        if self.streams_per_program not in (1, 16):
            raise ValueError(f"streams_per_program {self.streams_per_program}: 1 or 16")
        if len(self.dilations) != self.weights.gates.shape[0] or min(self.dilations) < 1:
            raise ValueError(f"dilations {self.dilations}: need one, at least 1, for every layer")
        if self.band_steps_per_frame < 1:
            raise ValueError(f"band_steps_per_frame {self.band_steps_per_frame}: at least 1")
        copies = WaveNetWeights(*(part.detach().clone() for part in self.weights))
        object.__setattr__(self, "weights", copies)

    def state(self, batch: int = 1) -> WaveNetState:
        """A fresh generation state of `batch` streams."""
        return wavenet_state(self.weights, self.dilations, batch)


def gated_activation(hidden: Tensor, conditioning: Tensor) -> Tensor:
    """WaveNet gate: z = tanh(filter) * sigmoid(gate), [filter; gate] = hidden + conditioning.

    Args:
        hidden: [batch, 2 * residual_channels, time], output of the dilated convolution.
        conditioning: same shape, dtype and device; projected mel and biases.
    Returns:
        [batch, residual_channels, time], dtype of `hidden`, unitless, within (-1, 1).
    Source: WaveNet, arXiv:1609.03499, sections 2.3 and 2.5.
    """
    compute = torch.promote_types(hidden.dtype, torch.float32)
    filter_, gate = (hidden.to(compute) + conditioning.to(compute)).chunk(2, dim=1)
    return (torch.tanh(filter_) * torch.sigmoid(gate)).to(hidden.dtype)


def wavenet_generate(
    conditioning: Tensor,
    randomness: Tensor,
    network: WaveNet,
    state: WaveNetState,
) -> Tensor:
    """Autoregressive WaveNet: one step for all bands at a time, the last steps fed back in.

    x = W_in [y[t-2]; y[t-1]];  per layer  [f; g] = W_gate [x[t - dilation]; x[t]] + conditioning,
    z = tanh(f) sigmoid(g), x += W_res z, skip += W_skip z;
    head: o = W_out relu(W_hidden relu(skip + b) + b) + b.
    Gaussian: y[b] = o[b] + exp(o[bands + b]) randomness[b].
    Softmax: y = first k with cumsum(softmax(o))[k] > randomness, fed back as 2 k / (codes - 1) - 1.

    Args:
        conditioning: [batch, layers, 2R, frames], mel projection and biases. The first band step
            of this call reads column 0 at step `state.step % band_steps_per_frame` of its frame.
            Columns that do not last are a ValueError on a CPU, and NaN from the first step without
            one on a device, where nothing waits for a check.
        randomness: [batch, bands, band_steps]: standard normal noise, or for the softmax head
            (odd number of outputs per band, or bands = 1 and more than 2 outputs) uniforms [0, 1).
        network: the model.
        state: per stream, updated in place; calls of any size join to the same result.
    Returns:
        [batch, bands, band_steps]: band samples, or codes as whole numbers.
    Source: arXiv:1609.03499 section 2; layer variant 1702.07825; Gaussian head 1807.07281.
    """
    w = WaveNetWeights(*(part.to(conditioning.dtype) for part in network.weights))
    bands = w.inputs.shape[1]
    softmax = w.outputs.shape[0] != 2 * bands
    batch, _, steps = randomness.shape
    rows = torch.arange(batch, device=randomness.device)
    out = torch.empty_like(randomness, dtype=conditioning.dtype)
    begin = state.step % network.band_steps_per_frame
    for t in range(steps):
        frame = (begin + t) // network.band_steps_per_frame
        x = torch.einsum("rbk,nbk->nr", w.inputs, state.last)
        skip = w.skip_bias.expand(batch, -1)
        ring = 0
        for layer, dilation in enumerate(network.dilations):
            slot = ring + state.step % dilation
            ring += dilation
            past = state.history[rows, slot]
            state.history[rows, slot] = x
            hidden = past @ w.gates[layer, :, :, 0].T + x @ w.gates[layer, :, :, 1].T
            local = conditioning[rows, layer, :, frame]
            z = gated_activation(hidden.unsqueeze(-1), local.unsqueeze(-1)).squeeze(-1)
            x = x + z @ w.residuals[layer].T
            skip = skip + z @ w.skips[layer].T
        head = torch.relu(torch.relu(skip) @ w.hidden.T + w.hidden_bias) @ w.outputs.T
        head = head + w.outputs_bias
        if softmax:
            above = head.softmax(-1).cumsum(-1) > randomness[:, 0, t : t + 1]
            above[:, -1] = True  # rounding must not leave a draw without a code
            y = above.int().argmax(-1, keepdim=True).to(out.dtype)
            fed_back = 2 * y / (head.shape[-1] - 1) - 1
        else:
            y = head[:, :bands] + torch.exp(head[:, bands:]) * randomness[:, :, t].to(out.dtype)
            fed_back = y
        out[:, :, t] = y
        state.last.copy_(torch.stack([state.last[..., 1], fed_back], dim=-1))
        state.step.add_(1)
    return out


_WORD = 0xFFFFFFFF


def _philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10 on 32-bit words in int64 tensors; products wrap, their bits are right."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (b >> 32 & _WORD) ^ c1 ^ k0, (a >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = b & _WORD, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def gaussian_noise(seed: int, stream: int, first_step: int, band_steps: int, bands: int) -> Tensor:
    """Standard normal noise that depends on (seed, stream, step, band) alone, not on the call.

    Four bands share the Philox4x32-10 block of key `seed` and counter (step low, step high, stream,
    band // 4). Box-Muller on its words a, b, c, d: bands 0 and 1 are r cos v and r sin v with
    r = sqrt(-2 ln(((a >> 9) + 1/2) 2**-23)), v = 2 pi (b >> 8) 2**-24; bands 2 and 3 from c and d.

    Args:
        seed: 64 bits, unsigned. stream: 32 bits, unsigned.
        first_step: band step of the first column.
        band_steps, bands: size.
    Returns:
        [bands, band_steps] float32 on the CPU.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    signed = seed - 2**64 if seed >= 2**63 else seed
    seeds, streams, first_steps = (torch.tensor([v]) for v in (signed, stream, first_step))
    return stream_noise(seeds, streams, first_steps, band_steps, bands)[0]


def stream_noise(
    seeds: Tensor, streams: Tensor, first_steps: Tensor, band_steps: int, bands: int
) -> Tensor:
    """`gaussian_noise` of many streams at once, on the device of its arguments.

    Args:
        seeds: [batch] int64, the bits of an unsigned seed. streams: [batch] int64, 32 bits.
        first_steps: [batch] int64, band step of each stream's first column.
        band_steps, bands: size.
    Returns:
        [batch, bands, band_steps] float32; no value of an argument is read by the host.
    """
    step = torch.arange(band_steps, device=seeds.device) + first_steps[:, None]
    stream, seed = streams[:, None].expand_as(step), seeds[:, None]
    rows = []
    for quad in range((bands + 3) // 4):
        counter = [step & _WORD, step >> 32 & _WORD, stream, torch.full_like(step, quad)]
        words = _philox(counter, [seed & _WORD, seed >> 32 & _WORD])
        for a, b in (words[:2], words[2:]):
            radius = torch.sqrt(-2 * torch.log(((a >> 9).float() + 0.5) * 2.0**-23))
            angle = (b >> 8).float() * 2.0**-24 * (2 * math.pi)
            rows += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(rows[:bands], 1)
