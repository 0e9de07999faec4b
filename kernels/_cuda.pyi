# Addresses are of device memory; `stream` is a cudaStream_t.
from collections.abc import Sequence

def wavenet(
    shape: Sequence[int],
    dilations: Sequence[int],
    weights: int,
    floats: int,
    slots: int,
    count: int,
    stream: int,
) -> None: ...
def fill_slots(
    first: Sequence[int], step: Sequence[int], rows: int, out: int, stream: int
) -> None: ...
def resident_rings(
    shape: Sequence[int], dilations: Sequence[int], weights: int, floats: int
) -> int: ...
def decoder(
    sizes: Sequence[int],
    attention_of: Sequence[int],
    matrices: Sequence[Sequence[int]],
    done_bias: float,
    weights: int,
    floats: int,
    scratch: int,
    slots: int,
    count: int,
    steps: int,
    stream: int,
) -> None: ...
