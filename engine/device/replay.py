"""Work of fixed sizes captured once and replayed; copies to and from the host that wait for no one.

A CUDA graph costs one launch for any number of kernels, and its memory is taken once. On a CPU
`Replay` calls the function again and copies into the outputs of the first call: what a user of a
graph may not do (read an output after the next replay, pass another size) goes wrong there too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import EngineError

WARM_UP = 3  # calls before a capture: lazy loading, compilation and workspaces happen there


def bucket(count: int, unit: int = 1) -> int:
    """The size that `count` is padded to: multiples of `unit`, above 8 units in quarter octaves.

    So 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ... units: few sizes, at most a quarter empty.
    """
    units = max(1, -(-count // unit))
    step = 1 if units <= 8 else 1 << ((units - 1).bit_length() - 3)
    return -(-units // step) * step * unit


class Replay:
    """A function of tensors, captured as a CUDA graph; on other devices it is called each time.

    Args:
        call: reads tensors that stay where they are, returns a tuple of tensors, and neither reads
            a value on the host nor depends on anything but its tensors.
        inputs: the tensors it takes; `__call__` copies its arguments into them.
        kept: tensors it changes in place; the calls before the capture leave them as they were.
    Raises:
        EngineError: a part of the call waits for the device or copies from pageable memory.
    """

    def __init__(
        self, call: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor],
        kept: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.call, self.inputs = call, tuple(inputs)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outputs: tuple[Tensor, ...] | None = None
        device = next(iter((*self.inputs, *kept))).device
        if device.type == "cuda":
            self._capture(kept, device)

    def _capture(self, kept: Sequence[Tensor], device: torch.device) -> None:
        saved = [part.clone() for part in kept]
        with torch.cuda.device(device), exact():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.call(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may prepare recordings meanwhile; what they do is not captured.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self.outputs = self.call(*self.inputs)
            except RuntimeError as error:
                raise EngineError(f"this work cannot be held by a CUDA graph: {error}") from error
            self.graph = graph
        for part, before in zip(kept, saved, strict=True):
            part.copy_(before)

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs; the next call overwrites them.

        Raises:
            EngineError: a value of another shape than the captured one.
        """
        for held, value in zip(self.inputs, values, strict=True):
            if held.shape != value.shape:
                raise EngineError(f"captured for {list(held.shape)}, got {list(value.shape)}")
            if held is not value:
                held.copy_(value, non_blocking=True)
        if self.graph is not None:
            self.graph.replay()
            assert self.outputs is not None
            return self.outputs
        made = self.call(*self.inputs)
        if self.outputs is None:
            self.outputs = tuple(part.clone() for part in made)
        else:
            for held, part in zip(self.outputs, made, strict=True):
                held.copy_(part)
        return self.outputs


class _Exact:
    """The flags belong to the process: set by the first thread that comes in, restored by the last
    that leaves, or one that leaves would let the others work, and capture, with TF32."""

    def __init__(self) -> None:
        self._lock, self._inside, self._flags = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._flags.enter_context(torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                ))  # fmt: skip
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._flags.close()


_exact = _Exact()


def exact() -> AbstractContextManager[None]:
    """Convolutions in float32, not TF32, always by the same algorithm: a context."""
    return _exact()


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host values on the device; the host does not wait."""
    host = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class Readback:
    """Host copies of device tensors under way. `get` waits for these, not for later work."""

    def __init__(self, *tensors: Tensor) -> None:
        on_gpu = tensors[0].device.type == "cuda"
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=on_gpu) for t in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def get(self) -> list[np.ndarray]:
        """The copies, as arrays."""
        if self._event is not None:
            self._event.synchronize()
        return [host.numpy() for host in self._host]
