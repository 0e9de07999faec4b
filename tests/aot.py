"""Triton kernels compiled for GPUs that are not here, by the very calls that would launch them."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes a program may have
REGISTER_FILE = 65_536


class _NoDevice:
    """What Triton asks of a driver to compile for `arch`, which need not be here."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@dataclass
class Built:
    """A compiled kernel and what its machine code tells."""

    name: str
    arch: int
    warps: int
    registers: int
    stack: int
    local: int
    shared: int
    opcodes: Counter = field(repr=False)
    sass: str = field(repr=False)

    def count(self, pattern: str) -> int:
        """Instructions whose opcode, with its modifiers, begins with the pattern."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))


def _tool(name: str, *options: str, cubin: bytes) -> str:
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def examine(kernel: triton.compiler.CompiledKernel, arch: int) -> Built:
    """Registers, memory and instructions of a compiled kernel, by the assembler's own tools."""
    cubin = kernel.asm["cubin"]
    usage = _tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    sass = _tool("nvdisasm", "-c", cubin=cubin)
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass)
    return Built(
        kernel.metadata.name, arch, kernel.metadata.num_warps, numbers["REG"], numbers["STACK"],
        numbers["LOCAL"], kernel.metadata.shared, Counter(code), sass,
    )  # fmt: skip


@contextmanager
def compiling(arch: int) -> Iterator[list[Built]]:
    """Inside, launches compile for `arch` and run nothing; the list gets every kernel."""
    built: list[Built] = []
    run = JITFunction.run

    def compiled(self: JITFunction, *args, grid, warmup, **kwargs):
        built.append(examine(run(self, *args, grid=grid, warmup=True, **kwargs), arch))

    active = triton.runtime.driver
    before = active._active
    active.set_active(_NoDevice(arch))
    try:
        with mock.patch.object(JITFunction, "run", compiled):
            yield built
    finally:
        active._active = before


def compile_call(call: Callable[[], object], arch: int = 90) -> Built:
    """The one kernel that a call launches."""
    with compiling(arch) as built:
        call()
    (only,) = built
    return only
