"""The attention decoder of the compiled CPU backend; `csrc/ops.h` holds the contract."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from engine.kernels import native
from engine.kernels.checks import check_decoder_generate
from engine.kernels.dispatch import BackendUnavailable
from engine.kernels.reference_decoder import Decoder, DecoderInputs, DecoderState
from torch import Tensor

# Packed weights by network: they live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[Decoder, Any] = WeakKeyDictionary()


def packed(network: Decoder) -> Any:
    """The compiled network: packed on first use, then kept with it.

    Raises:
        BackendUnavailable: the module is not built or this machine lacks `network.isa`.
    """
    if native._cpu is None:
        raise BackendUnavailable(f"cpp: {native.why_not()}")
    found = _packed.get(network)
    if found is None:
        prenet, *rest = network.weights
        found = native._cpu.Decoder(
            [native._array(part.float()) for part in prenet],
            [native._array(part.float()) for part in rest],
            network.attention_layers, network.window, network.max_hold, network.precision,
            native.usable_isa(network.isa),
        )  # fmt: skip
        _packed[network] = found
    return found


def why_not(inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState) -> str | None:
    """None if `decoder_generate` can run here, else the reason."""
    weights = network.weights
    floats = (*inputs.prenet_bias, *inputs[1:-1], *weights.prenet, *weights[1:], *state[:2])
    if reason := native._refuses(*floats):
        return reason
    if not all(part.is_contiguous() and part.device.type == "cpu" for part in state):
        return "state is updated in place and must be contiguous, on the cpu"
    widths = [weights.mel.shape[0], weights.mel.shape[1], *(p.shape[0] for p in weights.prenet)]
    if any(width % 16 for width in widths):
        return f"mel, channels and prenet channels {widths} must be multiples of 16"
    if len(weights.prenet) not in range(1, 5) or len(weights.convs) > 16 or network.window > 16:
        return "at most 4 prenet layers, 16 decoder layers and a window of 16"
    if network.isa != "auto" and native.isas().get(network.isa, "no code for it"):
        return f"instruction set {network.isa!r} is not usable, have {native.isas()}"
    return None


def decoder_generate(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled form of reference_decoder.decoder_generate; see it for shapes and units.

    What lies beyond an utterance's count is 0 in hidden and its last position in path.
    Numerics: `network.precision`; equal bits whatever the batch and the size of the calls.
    Raises:
        ValueError: shapes that do not fit each other, a text without symbols.
    """
    check_decoder_generate(inputs, network, steps, state)
    batch, channels = len(inputs.lengths), network.weights.mel.shape[1]
    hidden = torch.empty(batch, steps, channels)
    path = torch.empty(batch, steps, dtype=torch.int64)
    count = torch.empty(batch, dtype=torch.int64)
    prenet, *others, lengths = inputs
    packed(network).generate(
        [native._array(part) for part in prenet], [native._array(part) for part in others],
        native._array(lengths), *(part.numpy() for part in state), hidden.numpy(), path.numpy(),
        count.numpy(),
    )  # fmt: skip
    made = int(count.max()) if batch else 0
    return hidden[:, :made].clone(), path[:, :made].clone(), count
