"""Tables of slots for the CUDA kernels: addresses of every row, made where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from engine.kernels import native
from torch import Tensor

Words = tuple[int, ...]


@dataclass(frozen=True)
class SlotTable:
    """Slots of a batch: 8-byte word w of row i is first[w] + i * step[w]. See csrc/cuda/slots.h."""

    first: Words
    step: Words
    rows: int

    @classmethod
    def of(
        cls, names: tuple[str, ...], rows: int, tensors: Mapping[str, Tensor],
        numbers: Mapping[str, int],
    ) -> SlotTable:  # fmt: skip
        """Words in the order of `names`: addresses of the rows of tensors, and numbers that all
        rows share; the others are 0."""
        first = {name: tensor.data_ptr() for name, tensor in tensors.items()} | dict(numbers)
        step = {n: t.stride(0) * t.element_size() for n, t in tensors.items()}
        words = lambda found: tuple(found.get(name, 0) for name in names)  # noqa: E731
        return cls(words(first), words(step), rows)

    def on_host(self) -> np.ndarray:
        """[rows, words] uint64."""
        rows = np.arange(self.rows, dtype=np.uint64)[:, None]
        return np.array(self.first, np.uint64) + rows * np.array(self.step, np.uint64)

    def on_device(self, device: torch.device) -> Tensor:
        """[rows, words] int64, filled on the device's current stream; the host waits for nothing
        and copies nothing, so that a CUDA graph can hold it."""
        table = torch.empty(self.rows, len(self.first), dtype=torch.int64, device=device)
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            native.cuda_module().fill_slots(
                self.first, self.step, self.rows, table.data_ptr(), stream
            )
        return table
