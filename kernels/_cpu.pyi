from numpy import float32, int64
from numpy.typing import NDArray

class WaveNet:
    def __init__(
        self,
        weights: list[NDArray[float32]],
        dilations: tuple[int, ...],
        band_steps_per_frame: int,
        precision: str,
        isa: str,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def packed_bytes(self) -> int: ...
    def generate(
        self,
        conditioning: NDArray[float32],
        randomness: NDArray[float32],
        last: NDArray[float32],
        history: NDArray[float32],
        step: NDArray[int64],
        out: NDArray[float32],
        cores: int = 1,
    ) -> None: ...

def isas() -> dict[str, str | None]: ...
def lpc_synthesis(
    excitation: NDArray[float32],
    taps: NDArray[float32],
    gain: NDArray[float32],
    state: NDArray[float32],
    out: NDArray[float32],
) -> None: ...
def pqmf_synthesis(
    band_samples: NDArray[float32], filters: NDArray[float32], out: NDArray[float32]
) -> None: ...
def gaussian_noise(seed: int, stream: int, first_step: int, out: NDArray[float32]) -> None: ...
