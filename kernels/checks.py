"""What the wrappers of every backend do to their inputs: shape checks, each raising ValueError with
the reason, and memory as kernels read it."""

from __future__ import annotations

import torch
from engine.kernels.reference import WaveNet, WaveNetState
from engine.kernels.reference_decoder import Decoder, DecoderInputs, DecoderState
from torch import Tensor


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _require(tuple(tensor.shape) == shape, f"{name} is {list(tensor.shape)}, need {list(shape)}")


def _values(tensor: Tensor) -> list[int]:
    """Its values for a check; none of a device's, where reading would stop the device's queue."""
    return tensor.tolist() if tensor.device.type == "cpu" else []


def check_wavenet_generate(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> None:
    """The call fits the network, and (on a CPU) the conditioning lasts for all band steps."""
    _require(conditioning.dim() == 4, "conditioning: need [batch, layers, 2R, frames]")
    _require(randomness.dim() == 3, "randomness: need [batch, bands, band_steps]")
    residual, bands, _ = network.weights.inputs.shape
    batch, _, steps = randomness.shape
    layers, frames = len(network.dilations), conditioning.shape[3]
    _require_shape("randomness", randomness, (batch, bands, steps))
    _require_shape("conditioning", conditioning, (batch, layers, 2 * residual, frames))
    _require_shape("state.last", state.last, (batch, bands, 2))
    _require_shape("state.history", state.history, (batch, sum(network.dilations), residual))
    _require_shape("state.step", state.step, (batch,))
    for step in _values(state.step):
        _require(step >= 0, f"state.step is {step}")
        begin = step % network.band_steps_per_frame
        have = frames * network.band_steps_per_frame
        _require(begin + steps <= have, f"conditioning ends after {have - begin} of {steps} steps")


def check_lpc_synthesis(excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor) -> None:
    """Shapes agree and frames divide the band steps."""
    _require(excitation.dim() == 3, "excitation: need [batch, bands, band_steps]")
    _require(taps.dim() == 4, "taps: need [batch, bands, order, frames]")
    batch, bands, steps = excitation.shape
    order, frames = taps.shape[2:]
    _require_shape("taps", taps, (batch, bands, order, frames))
    _require_shape("gain", gain, (batch, bands, frames))
    _require_shape("state", state, (batch, bands, order))
    divides = steps % frames == 0 if frames else steps == 0
    _require(divides, f"{frames} frames do not divide {steps} band steps")


def check_pqmf_synthesis(band_samples: Tensor, filters: Tensor) -> None:
    """One filter of odd length for every band."""
    _require(band_samples.dim() == 3, "band_samples: need [batch, bands, band_steps]")
    _require(filters.dim() == 2, "filters: need [bands, taps + 1]")
    _require(band_samples.shape[1] == filters.shape[0], "filters: need one for every band")
    _require(filters.shape[1] % 2 == 1, "filters: taps must be even")


def check_gaussian_noise(
    seed: int, stream: int, first_step: int, band_steps: int, bands: int
) -> None:
    """Counters fit their words."""
    _require(0 <= seed < 2**64, f"seed {seed}: need 64 bits, unsigned")
    _require(0 <= stream < 2**32, f"stream {stream}: need 32 bits, unsigned")
    _require(0 <= first_step < 2**62, f"first_step {first_step}: need 0 or more")
    _require(band_steps >= 0 and bands > 0, f"{band_steps} steps of {bands} bands")


def check_stream_noise(
    seeds: Tensor, streams: Tensor, first_steps: Tensor, band_steps: int, bands: int
) -> None:
    """One int64 counter of each kind for every stream."""
    for name, part in (("seeds", seeds), ("streams", streams), ("first_steps", first_steps)):
        _require(part.dtype == torch.int64, f"{name} is {part.dtype}, need int64")
        _require_shape(name, part, (seeds.shape[0] if seeds.dim() else 1,))
    _require(band_steps >= 0 and bands > 0, f"{band_steps} steps of {bands} bands")


def check_log_mel(samples: Tensor, filterbank: Tensor, window: Tensor, hop_length: int) -> None:
    """Filterbank and window agree; there is enough to mirror at both ends."""
    _require(samples.dim() == 2, "samples: need [batch, samples]")
    _require(window.dim() == 1, "window: need [n_fft]")
    n_fft = window.shape[0]
    _require_shape("filterbank", filterbank, (filterbank.shape[0], n_fft // 2 + 1))
    _require(1 <= hop_length <= n_fft, f"hop_length {hop_length}: 1 to {n_fft}")
    need = (n_fft - hop_length) // 2
    _require(samples.shape[1] > need, f"{samples.shape[1]} samples: need more than {need}")


def check_decoder_generate(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> None:
    """Inputs and state fit the network and each other; (on a CPU) every text has a symbol."""
    layers, _, channels, kernel = network.weights.convs.shape
    _require(steps >= 0, f"steps is {steps}")
    _require(inputs.attended.dim() == 3, "attended: need [batch, symbols, C]")
    batch, symbols, _ = inputs.attended.shape
    attentions = len(network.attention_layers)
    for bias, weight in zip(inputs.prenet_bias, network.weights.prenet, strict=True):
        _require_shape("prenet_bias", bias, (batch, weight.shape[0]))
    _require_shape("attended", inputs.attended, (batch, symbols, channels))
    _require_shape("speaker", inputs.speaker, (batch, layers, channels))
    _require_shape("folded_keys", inputs.folded_keys, (attentions, batch, symbols, channels))
    _require_shape("key_bias", inputs.key_bias, (attentions, batch, symbols))
    _require_shape("folded_values", inputs.folded_values, (attentions, batch, symbols, channels))
    _require_shape("lengths", inputs.lengths, (batch,))
    for row, length in enumerate(_values(inputs.lengths)):
        _require(1 <= length <= symbols, f"text {row} has {length} of {symbols} symbols")
    for position, length in zip(_values(state.position), _values(inputs.lengths), strict=False):
        _require(0 <= position < length, f"state.position {position} lies outside the text")
    _require_shape("state.mel", state.mel, (batch, network.weights.mel.shape[0]))
    _require_shape("state.history", state.history, (batch, layers, channels, kernel - 1))
    for name in ("position", "elapsed", "finished"):
        _require_shape(f"state.{name}", getattr(state, name), (batch,))


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous and at an address that kernels may read 16 bytes at a time; copied if need be.

    Every call of a Triton kernel then compiles to the same code, and equal inputs give equal bits.
    """
    tensor = tensor.detach().contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
