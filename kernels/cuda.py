"""What the ops of the CUDA backend share: whether it is there, and what it refuses."""

from __future__ import annotations

import torch
from engine.kernels import native
from torch import Tensor


def why_not() -> str | None:
    """None if the backend can run here, else the reason."""
    if reason := native.cuda_why_not():
        return reason
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"compute capability {major}.{minor}, need 8.0 or higher"


def refuses(*tensors: Tensor) -> str | None:
    """Why a call with these floating-point inputs cannot run, or None."""
    if reason := why_not():
        return reason
    for tensor in tensors:
        if not tensor.is_cuda:
            return f"a tensor is on {tensor.device}, cuda needs a CUDA device"
        if tensor.dtype != torch.float32:
            return f"a tensor is {tensor.dtype}, cuda needs float32"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "forward only, and a gradient is required"
    return None
