"""The WaveNet of the CUDA backend: schedules, packed weights, slots.

Contract: csrc/cuda/launch.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from engine.kernels import checks, cuda, native
from engine.kernels.cuda_pack import TILE, pack_wavenet, padded
from engine.kernels.cuda_slots import SlotTable
from engine.kernels.reference import WaveNet, WaveNetState
from torch import Tensor

# As struct WaveNetSlot of csrc/cuda/wavenet_params.h.
SLOT = (
    "conditioning", "randomness", "out", "last", "history", "step", "stride", "seed",
    "stream_and_steps", "frames",
)  # fmt: skip
# Sizes (R, S) the kernels are compiled for.
SIZES = ((32, 64), (64, 128), (64, 256), (128, 128), (128, 256))
MOST_LAYERS, MOST_BANDS = 64, 8


class Schedule(NamedTuple):
    """How a network is laid over blocks.

    held: layers a block keeps on chip, 0 = weights are read from L2 at every use.
    blocks: of a ring, in one cluster; 1 = no cluster.
    fold: one barrier a layer instead of two, for half as many weights again.
    """

    held: int
    blocks: int
    fold: bool = False


@dataclass(frozen=True)
class Packed:
    """Weights of one network on one device in the order of one schedule."""

    shape: tuple[int, ...]
    dilations: tuple[int, ...]
    weights: Tensor
    floats: Tensor

    @property
    def arguments(self) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
        """What the compiled launcher is told of the network."""
        return self.shape, self.dilations, self.weights.data_ptr(), self.floats.data_ptr()


# Packed weights by network: they live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[WaveNet, dict[tuple[torch.device, Schedule], Packed]] = (
    WeakKeyDictionary()
)


def sizes(network: WaveNet) -> tuple[int, int, int, int]:
    """Residual and skip channels, bands, codes of the softmax head (0 = Gaussian)."""
    residual, bands, _ = network.weights.inputs.shape
    outputs = network.weights.outputs.shape[0]
    return residual, network.weights.skip_bias.shape[0], bands, (outputs != 2 * bands) * outputs


def schedule_of(network: WaveNet, capability: tuple[int, int]) -> Schedule:
    """The fastest schedule compiled for this network that a device can run."""
    if why_no_ring(network, capability):
        return Schedule(0, 1)
    return Schedule(_held(network), _blocks(network))


def _held(network: WaveNet) -> int:
    """Layers that a block of a ring holds on chip; 0 = none was compiled for these channels."""
    residual, skip, _, codes = sizes(network)
    layers = len(network.dilations)
    if (residual, skip) == (32, 64):
        return 4
    if (residual, skip) != (64, 128):
        return 0
    if layers > 16 or codes:
        return 3
    return 4 if layers > 8 else 2


def _blocks(network: WaveNet) -> int:
    """Blocks of a ring; the softmax head needs one of its own."""
    layers, codes = len(network.dilations), sizes(network)[3]
    return max(2, -(-layers // _held(network)) + (codes > 0))


def why_no_ring(network: WaveNet, capability: tuple[int, int]) -> str | None:
    """None if the network runs as a ring of blocks with its weights on chip, else the reason; it
    then runs in one block for eight streams, with weights from L2."""
    residual, skip, _, codes = sizes(network)
    layers = len(network.dilations)
    if capability[0] != 9:  # machine code of rings is for 9.0 and no other, newer ones included
        return f"compute capability {capability[0]}.{capability[1]}, rings need 9.0"
    if network.precision != "bfloat16":
        return f"{network.precision} weights do not fit on chip, rings are bfloat16"
    if not _held(network):
        layer = 2 * (5 * residual**2 + skip * residual) // 1024
        head = 2 * (skip**2 + 16 * skip) // 1024
        return (
            f"{residual} residual and {skip} skip channels: {layer} KB a layer and {head} KB of "
            "head; a block holds about 330 KB of weights, a portable cluster has 8 blocks"
        )
    if residual == 32 and (codes or layers <= 4):
        return "rings of 32 residual channels have five layers or more and a Gaussian head"
    if _blocks(network) > 8:
        return f"{layers} layers need {_blocks(network)} blocks, a portable cluster has 8"
    return None


def packed(network: WaveNet, schedule: Schedule, device: torch.device) -> Packed:
    """The network's weights for a schedule: packed on first use, then kept with it."""
    kept = _packed.setdefault(network, {})
    if (device, schedule) not in kept:
        residual, skip, bands, codes = sizes(network)
        layers = len(network.dilations)
        weights, floats = pack_wavenet(network.weights, network.precision, schedule.fold)
        rows = codes or 2 * padded(bands, 8)
        per_block = schedule.held or -(-layers // schedule.blocks)
        shape = (
            residual, skip, schedule.held, schedule.blocks > 1, schedule.fold,
            network.precision == "float32", schedule.blocks, per_block, bands, codes,
            padded(rows, TILE) // TILE, network.band_steps_per_frame,
        )  # fmt: skip
        kept[device, schedule] = Packed(
            tuple(int(value) for value in shape), network.dilations, weights.to(device),
            floats.to(device),
        )  # fmt: skip
    return kept[device, schedule]


def time_major(conditioning: Tensor) -> Tensor:
    """[batch, layers, 2R, frames] as the kernels read it, [batch, frames, layers, 2R]."""
    return conditioning.detach().permute(0, 3, 1, 2).contiguous()


def slot_table(
    conditioning: Tensor, randomness: Tensor | None, out: Tensor, state: WaveNetState
) -> SlotTable:
    """One slot for every row, each to fill its `out`.

    Args:
        conditioning: [batch, frames, layers, 2R], contiguous.
        randomness: [batch, bands, band_steps], contiguous; None = drawn in the kernel, from the
            slots' `seed` and `stream` as `gaussian_noise` draws.
        out: [batch, bands, band_steps], contiguous.
        state: updated in place by the launch.
    """
    batch, _, steps = out.shape
    tensors = {"conditioning": conditioning, "out": out, **state._asdict()}
    if randomness is not None:
        tensors["randomness"] = randomness
    numbers = {
        "stride": steps, "stream_and_steps": steps << 32, "frames": conditioning.shape[1]
    }
    return SlotTable.of(SLOT, batch, tensors, numbers)


def unsupported(network: WaveNet) -> str | None:
    """Why the kernels cannot run this network on any device, or None."""
    residual, skip, bands, codes = sizes(network)
    if network.precision not in ("float32", "bfloat16"):
        return f"precision {network.precision!r}, cuda has float32 and bfloat16"
    if (residual, skip) not in SIZES:
        return f"{residual} residual and {skip} skip channels, cuda has {list(SIZES)}"
    if len(network.dilations) > MOST_LAYERS or bands > MOST_BANDS or codes % 32 or codes > 1024:
        return "at most 64 layers, 8 bands, and codes a multiple of 32 up to 1024"
    if any(dilation & (dilation - 1) for dilation in network.dilations):
        return f"dilations {network.dilations} must be powers of two"
    return None


def why_not(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> str | None:
    """None if `wavenet_generate` can run here, else the reason."""
    tensors = (conditioning, randomness, state.last, state.history)
    if reason := cuda.refuses(*tensors) or unsupported(network):
        return reason
    if not all(part.is_contiguous() and part.is_cuda for part in state):
        return "state is updated in place and must be contiguous, on the device"
    if state.history.data_ptr() % 16:
        return "the history must be 16-byte aligned"
    return None


def generate_with(
    launch: Callable[[Packed, SlotTable], None], conditioning: Tensor, randomness: Tensor,
    network: WaveNet, state: WaveNetState, schedule: Schedule,
) -> Tensor:  # fmt: skip
    """The op around a launcher of packed weights and slots: device or emulation."""
    checks.check_wavenet_generate(conditioning, randomness, network, state)
    weights = packed(network, schedule, conditioning.device)
    frames, noise = time_major(conditioning), randomness.detach().contiguous()
    out = torch.empty_like(noise)
    if out.numel():
        launch(weights, slot_table(frames, noise, out, state))
    return out


def wavenet_generate(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> Tensor:
    """CUDA form of reference.wavenet_generate; see it for shapes and units.

    Cost: one transposition of the conditioning and two launches a call; nothing waits for the
    device or copies from the host, so a CUDA graph can hold it. Steps beyond the conditioning give
    NaN. Numerics: `network.precision` with float32 accumulation, residual stream, skip sum and
    head; equal bits whatever the batch, the slot and the size of the calls.
    Raises:
        ValueError: shapes that do not fit each other.
        RuntimeError: the driver refused the launch; the text names its error.
    """
    schedule = schedule_of(network, torch.cuda.get_device_capability(conditioning.device))
    return generate_with(launch_table, conditioning, randomness, network, state, schedule)


def launch_table(weights: Packed, table: SlotTable) -> None:
    """Run a batch on the current stream of the weights' device; returns before it has finished."""
    launch_slots(weights, table.on_device(weights.weights.device))


def launch_slots(weights: Packed, slots: Tensor) -> None:
    """The same with slots [count, words] int64 on the device, each of its own steps."""
    stream = torch.cuda.current_stream(weights.weights.device)
    with torch.cuda.device(weights.weights.device):
        native.cuda_module().wavenet(
            *weights.arguments, slots.data_ptr(), len(slots), stream.cuda_stream
        )
