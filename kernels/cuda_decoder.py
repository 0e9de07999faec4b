"""The attention decoder of the CUDA backend. Contract: csrc/cuda/launch.h."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from engine.kernels import checks, cuda, native
from engine.kernels.cuda_pack import DEPTH, interleaved, pack_tiles, padded
from engine.kernels.cuda_slots import SlotTable
from engine.kernels.reference_decoder import Decoder, DecoderInputs, DecoderState
from torch import Tensor

# As struct DecoderSlot of csrc/cuda/decoder_params.h.
_SLOT = (
    *(f"prenet_bias_{i}" for i in range(4)), "attended", "speaker", "keys", "key_bias", "values",
    "mel", "history", "position", "elapsed", "finished", "hidden", "path", "count", "stride",
    "lengths",
)  # fmt: skip
_COLUMNS = 8  # utterances of a group


@dataclass(frozen=True)
class Packed:
    """Weights of one decoder on one device, and what the compiled launcher is told of them."""

    sizes: tuple[int, ...]
    attention_of: tuple[int, ...]
    matrices: tuple[tuple[int, int, int], ...]
    done_bias: float
    weights: Tensor
    floats: Tensor

    @property
    def blocks(self) -> int:
        """Blocks of a cluster; 1 = no cluster."""
        return self.sizes[1]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the compiled launcher is told of the network."""
        return (
            self.sizes, self.attention_of, self.matrices, self.done_bias, self.weights.data_ptr(),
            self.floats.data_ptr(),
        )  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One launch: its slots, and memory it needs that nobody else holds."""

    slots: SlotTable
    scratch: Tensor
    steps: int


# Packed weights by network: they live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[Decoder, dict[tuple[torch.device, int], Packed]] = WeakKeyDictionary()


def blocks_of(network: Decoder, capability: tuple[int, int]) -> int:
    """Blocks of a cluster: every one needs a tile of 16 rows of every matrix. Clusters are compiled
    for 9.0 alone, as rings are."""
    if capability[0] != 9:
        return 1
    w = network.weights
    fewest = min(len(matrix) for matrix in (*w.prenet, w.enter, w.mel)) // 16
    return next((blocks for blocks in (8, 4, 2) if blocks <= fewest), 1)


def _pack(network: Decoder, blocks: int, device: torch.device) -> Packed:
    w = network.weights
    layers, _, channels, kernel = w.convs.shape
    convs = [
        [interleaved(*conv[:, :, tap].float().chunk(2)) for tap in range(kernel)]
        for conv in w.convs
    ]
    now = [*w.prenet, w.enter, *(taps[-1] for taps in convs), w.mel]
    parts, matrices, at = [], [], 0

    def add(*group: Tensor) -> None:
        nonlocal at
        first = at
        for matrix in group:
            parts.append(pack_tiles(matrix.detach().float(), network.precision))
            at += parts[-1].numel()
        rows, depth = (group[0] if group else convs[0][-1]).shape
        matrices.append((first, rows, padded(depth, DEPTH)))

    for matrix in now:
        add(matrix)
    for taps in convs:
        add(*taps[:-1])
    bias = [interleaved(*b.float()[:, None].chunk(2)).flatten() for b in w.conv_bias]
    others = (w.mel_bias, w.done, w.elapsed)
    floats = torch.cat([*bias, *(part.float().flatten() for part in others)])
    sizes = (
        network.precision == "float32", blocks, w.mel.shape[0], channels, layers, kernel,
        len(w.prenet), w.elapsed.shape[0], network.window, network.max_hold,
    )  # fmt: skip
    listed = network.attention_layers
    return Packed(
        tuple(int(size) for size in sizes),
        tuple(listed.index(i) if i in listed else -1 for i in range(layers)),
        tuple(matrices), float(w.done_bias), torch.cat(parts).to(device), floats.to(device),
    )  # fmt: skip


def packed(network: Decoder, blocks: int, device: torch.device) -> Packed:
    """The network's weights for clusters of `blocks`: packed on first use, then kept with it."""
    kept = _packed.setdefault(network, {})
    if (device, blocks) not in kept:
        kept[device, blocks] = _pack(network, blocks, device)
    return kept[device, blocks]


def make_call(
    weights: Packed, inputs: DecoderInputs, state: DecoderState, hidden: Tensor, path: Tensor,
    count: Tensor,
) -> Call:  # fmt: skip
    """Slots of every utterance. All tensors are contiguous and stay where they are.

    Args:
        hidden: out [batch, steps, C]. path: out [batch, steps] int64. count: out [batch] int64.
    """
    batch, steps, channels = hidden.shape
    tensors = {f"prenet_bias_{i}": bias for i, bias in enumerate(inputs.prenet_bias)}
    tensors |= {"attended": inputs.attended, "speaker": inputs.speaker, "lengths": inputs.lengths}
    tensors |= {"hidden": hidden, "path": path, "count": count, **state._asdict()}
    folded = (inputs.folded_keys, inputs.key_bias, inputs.folded_values)
    for name, tensor in zip(("keys", "key_bias", "values"), folded, strict=True):
        if len(tensor):
            tensors[name] = tensor[0]
    numbers = {"stride": batch * inputs.attended.shape[1]}
    slots = SlotTable.of(_SLOT, batch, tensors, numbers)
    groups, layers, past = -(-batch // _COLUMNS), weights.sizes[4], weights.sizes[5] - 1
    room = groups * weights.blocks * layers * past * _COLUMNS * channels
    # Zeros: the padding of an operand's depth is read, and multiplied by zero.
    scratch = torch.zeros(room + DEPTH, device=hidden.device)
    return Call(slots, scratch, steps)


def unsupported(network: Decoder) -> str | None:
    """Why the kernels cannot run this network on any device, or None."""
    w = network.weights
    if network.precision not in ("float32", "bfloat16"):
        return f"precision {network.precision!r}, cuda has float32 and bfloat16"
    widths = [w.mel.shape[0], w.mel.shape[1], *(len(p) for p in w.prenet)]
    if any(width % 16 for width in widths):
        return f"mel, channels and prenet channels {widths} must be multiples of 16"
    if len(w.prenet) not in range(1, 5) or len(w.convs) > 16 or network.window > 16:
        return "at most 4 prenet layers, 16 decoder layers and a window of 16"
    return None


def why_not(inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState) -> str | None:
    """None if `decoder_generate` can run here, else the reason."""
    floats = (*inputs.prenet_bias, *inputs[1:-1], *state[:2])
    if reason := cuda.refuses(*floats) or unsupported(network):
        return reason
    if not all(part.is_contiguous() and part.is_cuda for part in state):
        return "state is updated in place and must be contiguous, on the device"
    return None


def generate_with(
    launch: Callable[[Packed, Call], None], inputs: DecoderInputs, network: Decoder, steps: int,
    state: DecoderState, blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op around a launcher: device or emulation."""
    checks.check_decoder_generate(inputs, network, steps, state)
    prenet, *others, lengths = inputs
    folded = (checks.aligned(part) for part in others)
    biases = tuple(checks.aligned(part) for part in prenet)
    dense = DecoderInputs._make([biases, *folded, lengths.contiguous()])
    device, batch = inputs.attended.device, len(lengths)
    hidden = torch.empty(batch, steps, inputs.attended.shape[2], device=device)
    path = torch.empty(batch, steps, dtype=torch.int64, device=device)
    count = torch.zeros(batch, dtype=torch.int64, device=device)
    if batch and steps:
        weights = packed(network, blocks, device)
        launch(weights, make_call(weights, dense, state, hidden, path, count))
    return hidden, path, count


def decoder_generate(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA form of reference_decoder.decoder_generate; see it for shapes and units.

    n = `steps`, whatever was needed, because nothing waits for the device: a CUDA graph can hold
    the call. What lies beyond an utterance's count is 0 in hidden and its last position in path.
    Numerics: `network.precision` with float32 accumulation and residual stream; equal bits
    whatever the batch and the size of the calls.
    Raises:
        ValueError: shapes that do not fit each other, a text without symbols.
        RuntimeError: the driver refused the launch; the text names its error.
    """
    blocks = blocks_of(network, torch.cuda.get_device_capability(inputs.attended.device))
    return generate_with(launch_call, inputs, network, steps, state, blocks)


def launch_call(weights: Packed, call: Call) -> None:
    """Run a call on the current stream of the weights' device; returns before it has finished."""
    device = weights.weights.device
    slots = call.slots.on_device(device)
    stream = torch.cuda.current_stream(device)
    with torch.cuda.device(device):
        native.cuda_module().decoder(
            *weights.arguments, call.scratch.data_ptr(), slots.data_ptr(), len(slots), call.steps,
            stream.cuda_stream,
        )  # fmt: skip
