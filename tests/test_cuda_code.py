"""What nvcc made of the CUDA kernels: registers, spills, tensor-core and cluster instructions.

Reads the built module, so it needs no GPU; skips where nvcc was not there to build it.
"""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from engine.kernels import native

TOOL = "backends/nvidia/bin/cuobjdump"  # inside the triton package
KERNEL = re.compile(r"Function (\w+):\s*\n\s*(REG:.*)")


@cache
def cuobjdump(option: str) -> str:
    triton = pytest.importorskip("triton")
    if native._cuda is None:
        pytest.skip(str(native.cuda_why_not()))
    tool = Path(triton.__file__).parent / TOOL
    if not tool.exists():
        pytest.skip(f"triton has no {TOOL}")
    command = [tool, option, native._cuda.__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels_of(option: str) -> dict[str, str]:
    """Machine code of every kernel by its mangled name."""
    parts = re.split(r"\n\s+Function : (\w+)\n", cuobjdump(option))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def resources() -> dict[str, dict[str, int]]:
    found = {}
    for name, line in KERNEL.findall(cuobjdump("--dump-resource-usage")):
        found[name] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
    return found


def test_every_kernel_stays_in_its_registers():
    found = resources()
    assert len(found) == 7 + 10 + 2 + 2 + 1
    for name, used in found.items():
        assert used["REG"] <= 255 and not used["STACK"] and not used["LOCAL"], (name, used)


def test_matrix_products_use_the_tensor_cores_and_nothing_spills():
    for name, code in kernels_of("-sass").items():
        assert not re.search(r"\b(STL|LDL)\b", code), name
        assert ("HMMA.16816.F32.BF16" in code) == ("Bfloat16" in name), name


def test_rings_and_clusters_send_into_shared_memory_of_other_blocks():
    clustered = 0
    for name, code in kernels_of("-sass").items():
        cluster = "ring_kernel" in name or "cluster_kernel" in name
        clustered += cluster
        for instruction in ("STAS", "SYNCS.PHASECHK", "UCGABAR_ARV", "UCGABAR_WAIT"):
            assert (instruction in code) == cluster, (name, instruction)
    assert clustered == 9
