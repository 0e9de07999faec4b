"""Builds the host emulation of the CUDA kernels, once per state of its sources."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
SOURCES = [HERE / "bind_emulation.cpp", HERE / "emulator.cpp", CSRC / "cuda/layout.cpp"]
# Fibers jump between stacks, which a fortified longjmp takes for an attack.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]


def load() -> ModuleType:
    """The module, compiled into the temporary folder if its sources changed.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    inputs = sorted([*CSRC.glob("*.h"), *CSRC.glob("cuda/*.h"), *HERE.glob("*.h"), *SOURCES])
    digest = hashlib.sha256(sys.version.encode())
    for path in inputs:
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"clonewave-emulation-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"_emulation_{digest.hexdigest()[:16]}.so"
    if not target.exists():
        includes = [CSRC, HERE, pybind11.get_include(), sysconfig.get_path("include")]
        partial = target.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [compiler, *FLAGS, *(f"-I{path}" for path in includes), *map(str, SOURCES), "-o",
             str(partial)], check=True,
        )  # fmt: skip
        partial.replace(target)
    spec = importlib.util.spec_from_file_location("_emulation", target)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
