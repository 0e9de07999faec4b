"""The compiled CPU backend, "cpp"; `csrc/ops.h` holds the contracts. The only importer of the
compiled modules `_cpu` and `_cuda`.

A module that was not built is a state with a reason; one that is there and does not load raises.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from engine.kernels import checks
from engine.kernels.dispatch import BackendUnavailable
from engine.kernels.reference import WaveNet, WaveNetState
from torch import Tensor


def _load(name: str) -> ModuleType | None:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


_cpu = _load("engine.kernels._cpu")
_cuda = _load("engine.kernels._cuda")
# Packed weights by network: they live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[WaveNet, Any] = WeakKeyDictionary()


def why_not() -> str | None:
    """None if the compiled module is there, else the reason."""
    return None if _cpu is not None else "engine.kernels._cpu is not built: pip install -e ."


def cuda_why_not() -> str | None:
    """None if the compiled CUDA module is there, else the reason."""
    if _cuda is not None:
        return None
    return "engine.kernels._cuda is not built: install nvcc, then pip install -e ."


def cuda_module() -> ModuleType:
    """The compiled CUDA module.

    Raises:
        BackendUnavailable: it is not built.
    """
    if _cuda is None:
        raise BackendUnavailable(f"cuda: {cuda_why_not()}")
    return _cuda


def isas() -> dict[str, str | None]:
    """Instruction sets this build has code for, fastest first: None if usable, else the reason."""
    return {} if _cpu is None else _cpu.isas()


def usable_isa(name: str) -> str:
    """The instruction set to use for a wanted one, "auto" being the fastest that runs here.

    Raises:
        BackendUnavailable: this build or this machine lacks it.
    """
    usable = [isa for isa, reason in isas().items() if reason is None]
    chosen = usable[0] if name == "auto" else name
    if chosen not in usable:
        raise BackendUnavailable(f"cpp: instruction set {chosen!r} is not usable, have {usable}")
    return chosen


def _refuses(*tensors: Tensor) -> str | None:
    if reason := why_not():
        return reason
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}, cpp needs cpu"
        if tensor.dtype != torch.float32:
            return f"a tensor is {tensor.dtype}, cpp needs float32"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "forward only, and a gradient is required"
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def packed(network: WaveNet) -> Any:
    """The compiled network: packed on first use, then kept with it.

    Raises:
        BackendUnavailable: the module is not built or this machine lacks `network.isa`.
    """
    if _cpu is None:
        raise BackendUnavailable(f"cpp: {why_not()}")
    found = _packed.get(network)
    if found is None:
        arrays = [_array(part.float()) for part in network.weights]
        found = _cpu.WaveNet(
            arrays, network.dilations, network.band_steps_per_frame, network.precision,
            usable_isa(network.isa),
        )  # fmt: skip
        _packed[network] = found
    return found


def wavenet_why_not(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> str | None:
    """None if `wavenet_generate` can run here, else the reason."""
    tensors = (conditioning, randomness, *network.weights)
    if reason := _refuses(*tensors, state.last, state.history):
        return reason
    if not all(part.is_contiguous() for part in state):
        return "state is updated in place and must be contiguous"
    residual, skip = network.weights.inputs.shape[0], network.weights.skip_bias.shape[0]
    if residual % 16 or skip % 16:
        return f"{residual} residual and {skip} skip channels must be multiples of 16"
    most = max(residual, skip, network.weights.outputs_bias.shape[0])
    if most > 512:
        return f"{most} channels, at most 512"
    if network.isa != "auto" and isas().get(network.isa, "no code for it"):
        return f"instruction set {network.isa!r} is not usable, have {isas()}"
    return None


def wavenet_generate(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> Tensor:
    """Compiled form of reference.wavenet_generate; see it for shapes and units.

    Cost: one transposition of the conditioning per call. Numerics: `network.precision`; equal bits
    whatever the batch, the size of the calls and the cores.
    Raises:
        ValueError: shapes that do not fit each other, or too few conditioning frames.
    """
    checks.check_wavenet_generate(conditioning, randomness, network, state)
    out = torch.empty(randomness.shape, dtype=torch.float32)
    time_major = conditioning.permute(0, 3, 1, 2)
    packed(network).generate(
        _array(time_major), _array(randomness), *(part.numpy() for part in state), out.numpy(),
        network.cores,
    )  # fmt: skip
    return out


def lpc_why_not(excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor) -> str | None:
    """None if `lpc_synthesis` can run here, else the reason."""
    if reason := _refuses(excitation, taps, gain, state):
        return reason
    return None if state.is_contiguous() else "state is updated in place and must be contiguous"


def lpc_synthesis(excitation: Tensor, taps: Tensor, gain: Tensor, state: Tensor) -> Tensor:
    """Compiled form of reference.lpc_synthesis; see it for shapes and units."""
    checks.check_lpc_synthesis(excitation, taps, gain, state)
    out = torch.empty(excitation.shape, dtype=torch.float32)
    assert _cpu is not None  # why_not
    _cpu.lpc_synthesis(
        _array(excitation), _array(taps), _array(gain), state.detach().numpy(), out.numpy()
    )
    return out


def pqmf_why_not(band_samples: Tensor, filters: Tensor) -> str | None:
    """None if `pqmf_synthesis` can run here, else the reason."""
    return _refuses(band_samples, filters)


def pqmf_synthesis(band_samples: Tensor, filters: Tensor) -> Tensor:
    """Compiled form of reference.pqmf_synthesis; see it for shapes and units."""
    checks.check_pqmf_synthesis(band_samples, filters)
    batch, bands, steps = band_samples.shape
    out = torch.empty(batch, bands * steps)
    assert _cpu is not None  # why_not
    _cpu.pqmf_synthesis(_array(band_samples), _array(filters), out.numpy())
    return out


def noise_why_not(*_args: int) -> str | None:
    """None if `gaussian_noise` can run here, else the reason."""
    return why_not()


def gaussian_noise(seed: int, stream: int, first_step: int, band_steps: int, bands: int) -> Tensor:
    """Compiled form of reference.gaussian_noise; see it for the definition."""
    checks.check_gaussian_noise(seed, stream, first_step, band_steps, bands)
    out = torch.empty(bands, band_steps)
    assert _cpu is not None  # why_not
    _cpu.gaussian_noise(seed, stream, first_step, out.numpy())
    return out


def stream_noise_why_not(
    seeds: Tensor, streams: Tensor, first_steps: Tensor, *_size: int
) -> str | None:
    """None if `stream_noise` can run here, else the reason."""
    on_device = next((t for t in (seeds, streams, first_steps) if t.device.type != "cpu"), None)
    if on_device is not None:
        return f"a tensor is on {on_device.device}, cpp needs cpu"
    return why_not()


def stream_noise(
    seeds: Tensor, streams: Tensor, first_steps: Tensor, band_steps: int, bands: int
) -> Tensor:
    """Compiled form of reference.stream_noise; see it for shapes."""
    named = zip(seeds.tolist(), streams.tolist(), first_steps.tolist(), strict=True)
    rows = [gaussian_noise(seed % 2**64, stream, first, band_steps, bands)
            for seed, stream, first in named]  # fmt: skip
    return torch.stack(rows) if rows else torch.empty(0, bands, band_steps)
