"""Table of what nvcc made of the CUDA kernels: registers, stack, instructions. Needs no GPU.

    python bench/cuda_resources.py

Reads engine.kernels._cuda with cuobjdump of the triton package. Dynamic shared memory is not in the
module; docs/kernels-gpu.md has it.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

COLUMNS = ("HMMA", "FFMA", "LDS", "LDG", "BAR.SYNC", "STAS", "LDL", "STL")


def _file_of(module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"{module} is not there: install nvcc and triton, then pip install -e .")
    return Path(found.origin)


def cuobjdump(option: str) -> str:
    """Output of cuobjdump for the built module."""
    tool = _file_of("triton").parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, option, _file_of("engine.kernels._cuda")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def title(mangled: str) -> str:
    """wavenet_ring_kernel<Bfloat16, 64, 128, 4, 1, 0> of a mangled name."""
    kernel = re.search(r"\d((?:wavenet_|decoder_|slots)\w*?_kernel)", mangled)
    element = re.search(r"Bfloat16|Float32", mangled)
    numbers = re.findall(r"L[ib](\d+)E", mangled)
    name = kernel.group(1) if kernel else mangled
    return f"{name}<{', '.join([element.group(0), *numbers])}>" if element else name


def main() -> None:
    """Print one row for every kernel."""
    used = dict(re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", cuobjdump("--dump-resource-usage")))
    parts = re.split(r"\n\s+Function : (\w+)\n", cuobjdump("-sass"))
    print("| kernel | registers | stack |", " | ".join(COLUMNS), "|")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for name, code in sorted(zip(parts[1::2], parts[2::2], strict=True), key=lambda p: title(p[0])):
        numbers = dict(re.findall(r"(\w+):(\d+)", used[name]))
        counts = [len(re.findall(rf"\b{re.escape(column)}\b", code)) for column in COLUMNS]
        row = [title(name), numbers["REG"], numbers["STACK"], *map(str, counts)]
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
