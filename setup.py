"""Builds engine.kernels._cpu always and engine.kernels._cuda where nvcc is found; nothing else.

_cpu: one translation unit per instruction set, each with its own flags; the module picks one when
it runs, so a build works on every machine of its architecture. CLONEWAVE_SANITIZE=1 builds with
AddressSanitizer and UBSan: run such a build with libasan and libubsan in LD_PRELOAD.
_cuda: CLONEWAVE_CUDA=0 leaves it out, 1 makes a missing nvcc an error, auto (the default) builds it
if nvcc is on the PATH. No GPU is needed to build.
"""

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
CUDA = os.environ.get("CLONEWAVE_CUDA", "auto")
NVCC = shutil.which("nvcc")
SANITIZE = os.environ.get("CLONEWAVE_SANITIZE") == "1"
# The warnings come from the intrinsics headers of GCC 12, once per use.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
          "-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # fmt: skip
FLAGS = {
    "csrc/cpu/isa_portable.cpp": [],
    "csrc/cpu/isa_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "csrc/cpu/isa_avx512.cpp": AVX512,
    "csrc/cpu/isa_avx512_vnni.cpp": [*AVX512, "-mavx512vnni"],
    "csrc/cpu/isa_avx512_bf16.cpp": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
}
ISA_SOURCES = list(FLAGS) if X86 else ["csrc/cpu/isa_portable.cpp"]
# No contraction: streams alone and in a batch run different code and must round alike.
OPTIONS = ["-O3", "-ffp-contract=off", "-fno-math-errno"] if os.name == "posix" else ["/O2"]
if SANITIZE:
    OPTIONS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
LINK = ["-pthread"] if os.name == "posix" else []
if SANITIZE:
    LINK += ["-fsanitize=address,undefined"]


# Clusters and st.async need 9.0; the plain kernels run from 8.0 on, newer devices by their PTX. A
# Hopper has code of its own: compiling PTX takes it seconds at the first launch.
HOPPER = ["-gencode=arch=compute_90a,code=sm_90a"]
PLAIN = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
CUDA_FLAGS = {
    "csrc/cuda/wavenet_ring.cu": HOPPER,
    "csrc/cuda/decoder_cluster.cu": HOPPER,
    "csrc/cuda/slots.cu": PLAIN,
    "csrc/cuda/wavenet_plain.cu": PLAIN,
    "csrc/cuda/decoder_plain.cu": PLAIN,
}


def with_cuda():
    """Whether to build _cuda."""
    if CUDA not in ("auto", "0", "1"):
        raise SystemExit(f"CLONEWAVE_CUDA={CUDA}: need auto, 0 or 1")
    if CUDA == "1" and not NVCC:
        raise SystemExit("CLONEWAVE_CUDA=1, but nvcc is not on the PATH")
    return CUDA != "0" and NVCC is not None and not SANITIZE


class BuildExt(build_ext):
    """Two steps more than pybind11's: sources with flags of their own, and .cu through nvcc."""

    def build_extension(self, ext):
        (self.compile_cuda if ext.name.endswith("_cuda") else self.compile_isas)(ext)
        super().build_extension(ext)

    def compile_cuda(self, ext):
        def compile_one(source):
            target = Path(self.build_temp, source).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [NVCC, "-c", "-O3", "-std=c++17", *CUDA_FLAGS[source], "-Xcompiler", "-fPIC",
                       source, "-o", str(target)]  # fmt: skip
            subprocess.run(command, check=True)
            return str(target)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            ext.extra_objects += pool.map(compile_one, CUDA_FLAGS)
        # nvcc on the PATH may be a wrapper script; it says itself where its libraries are.
        plan = [NVCC, "--dryrun", "-o", os.devnull, *ext.extra_objects]
        said = subprocess.run(plan, capture_output=True, text=True, check=True).stderr
        ext.library_dirs += re.findall(r'"-L([^"]+)"', said)

    def compile_isas(self, ext):
        for source in ISA_SOURCES:
            flags = [*ext.extra_compile_args, *FLAGS[source]]
            ext.extra_objects += self.compiler.compile(
                [source], self.build_temp, ext.define_macros, ext.include_dirs,
                extra_postargs=flags, depends=ext.depends,
            )  # fmt: skip


SOURCES = ("bind_cpu", "bind_decoder", "cpu/wavenet", "cpu/decoder", "cpu/filters", "cpu/noise",
           "cpu/half", "cpu/split")
cpu = Pybind11Extension(
    "engine.kernels._cpu",
    [f"csrc/{name}.cpp" for name in SOURCES],
    depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*.h")],
    define_macros=[("CLONEWAVE_X86", "1")] if X86 else [],
    extra_compile_args=OPTIONS,
    extra_link_args=LINK,
    cxx_std=17,
)

cuda = Pybind11Extension(
    "engine.kernels._cuda",
    ["csrc/bind_cuda.cpp", "csrc/cuda/layout.cpp"],
    depends=[*glob("csrc/*.h"), *glob("csrc/cuda/*")],
    libraries=["cudart_static", "dl", "rt", "pthread"],
    cxx_std=17,
)

setup(
    packages=["engine", "engine.device", "engine.models", "engine.serve", "engine.kernels"],
    package_dir={"engine": "engine", "engine.kernels": "kernels"},
    ext_modules=[cpu, cuda] if with_cuda() else [cpu],
    cmdclass={"build_ext": BuildExt},
)
