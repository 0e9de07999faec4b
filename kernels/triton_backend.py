"""The "triton" backend: why it cannot run a call, and kernels that are imported when first used.

Triton takes a second to import and is not there on every system, so nothing here imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from engine.kernels.dispatch import Impl
from torch import Tensor


def interpreting() -> bool:
    """True if kernels run in Triton's interpreter, on the CPU: for tests, thousands times slower.

    Triton reads the variable when a kernel is defined, so it must be set before the first use.
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@cache
def _installed() -> bool:
    """Asked at every call of an op, and a search of the disk."""
    return importlib.util.find_spec("triton") is not None


def why_not() -> str | None:
    """None if Triton kernels can run here, else the reason."""
    if not _installed():
        return "triton is not installed: pip install triton (Linux)"
    if not interpreting() and not torch.cuda.is_available():
        return "no CUDA device here"
    return None


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)
        elif hasattr(value, "weights"):
            yield from _tensors(value.weights)


def _refuses(args: tuple[Any, ...]) -> str | None:
    tensors = list(_tensors(args))
    for tensor in tensors:
        if not (tensor.is_cuda or interpreting()):
            return f"a tensor is on {tensor.device}, triton needs cuda"
        if tensor.device != tensors[0].device:
            return f"tensors on {tensors[0].device} and {tensor.device}, need one device"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "forward only, and a gradient is required"
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return f"a tensor is {tensor.dtype}, triton needs float32"
    return why_not()


def implementation(module: str, name: str) -> Impl:
    """The op `name` of `engine.kernels.<module>`, which also has `<name>_why_not`."""

    def load(attribute: str) -> Any:
        return getattr(importlib.import_module(f"engine.kernels.{module}"), attribute)

    def reason(*args: Any) -> str | None:
        return _refuses(args) or load(f"{name}_why_not")(*args)

    return Impl(lambda *args: load(name)(*args), reason)
