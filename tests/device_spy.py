"""What may not happen on a device: waiting for a value, or copies and mixtures nobody asked for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

WAITS = (
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique",
    "repeat_interleave.Tensor", "bincount",
)  # fmt: skip


def tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors(value)


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that would read a value of the device or mix devices.

    Tensors on "meta" stand for a device: they have no values, so whatever reads one fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.name().removeprefix("aten::")
        assert not name.startswith(WAITS), f"{name} waits for the device"
        given = list(tensors((*args, *(kwargs or {}).values())))
        devices = {t.device.type for t in given if t.dim()}
        assert len(devices) < 2, f"{name} mixes {devices}"
        to = (kwargs or {}).get("device")
        if name.startswith("_to_copy") and to is not None and devices:
            assert {torch.device(to).type} == devices, f"a copy from {devices} to {to}"
        return func(*args, **(kwargs or {}))


def apart(call):
    """`call`, unseen by the spy: what goes on inside kernels, or was asked for."""

    def unseen(*args, **kwargs):
        with _disable_current_modes():
            return call(*args, **kwargs)

    return unseen
