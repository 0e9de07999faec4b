"""Builds engine.kernels._cpu; nothing else.

One translation unit per instruction set, each with its own flags; the module picks one when it
runs, so a build works on every machine of its architecture. CLONEWAVE_SANITIZE=1 builds with
AddressSanitizer and UBSan: run such a build with libasan and libubsan in LD_PRELOAD.
"""

import os
import platform
from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
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


class BuildExt(build_ext):
    """One step more than pybind11's: a source may have flags of its own."""

    def build_extension(self, ext):
        for source in ISA_SOURCES:
            flags = [*ext.extra_compile_args, *FLAGS[source]]
            ext.extra_objects += self.compiler.compile(
                [source], self.build_temp, ext.define_macros, ext.include_dirs,
                extra_postargs=flags, depends=ext.depends,
            )  # fmt: skip
        super().build_extension(ext)


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

setup(
    packages=["engine", "engine.device", "engine.models", "engine.serve", "engine.kernels"],
    package_dir={"engine": "engine", "engine.kernels": "kernels"},
    ext_modules=[cpu],
    cmdclass={"build_ext": BuildExt},
)
