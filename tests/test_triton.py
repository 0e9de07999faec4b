"""Triton without a GPU: kernels in the interpreter, and compiled for Hopper and Ampere.

The interpreter shows arithmetic, indexing and state; not races, nor anything a compiler does. The
compiled code shows registers, spills, barriers and tensor core instructions; it is not run.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cases
import decoder_cases
import pytest
import torch
from engine.kernels import BackendUnavailable, triton_backend

from engine import kernels

pytest.importorskip("triton")
aot = pytest.importorskip("aot")
ROOT = Path(__file__).parent.parent


def test_every_kernel_agrees_with_its_definition_in_the_interpreter(tmp_path):
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu_triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


def wavenet(shape, precision, group=16, arch=90):
    from engine.kernels import triton_wavenet

    network = replace(cases.make_network(shape, precision), streams_per_program=group)
    call = (*cases.make_inputs(shape, 2, 4), network, network.state(2))
    return aot.compile_call(lambda: triton_wavenet.wavenet_generate(*call), arch)


@pytest.mark.parametrize(("name", "precision", "arch"), [
    ("default", "bfloat16", 90), ("default", "int8", 90), ("default", "float32", 90),
    ("mu_law_20_layers", "bfloat16", 90), ("default", "bfloat16", 80),
])  # fmt: skip
def test_vocoder_kernels_fit_the_machine(name, precision, arch):
    built = wavenet(cases.BENCH[name], precision, arch=arch)
    assert built.registers * built.warps * 32 <= aot.REGISTER_FILE
    assert built.shared <= aot.SHARED_MEMORY[arch]
    assert built.stack <= 8 and not built.local and built.count("LDL") <= 1  # no real spills
    assert built.count("BAR.SYNC") >= 2
    if precision != "float32":
        assert built.count("HMMA.16816.F32.BF16") >= 28  # six matrices of a layer
        assert built.count("LDG.E.128") >= 10  # weights, 16 bytes at a time
    assert "LDG.E.CONSTANT" not in built.sass  # the history may not come from a read-only cache


def test_a_launch_compiles_to_the_same_code_whatever_the_call_is_like():
    """Bits are independent of chunks and alignment only if there is one code for all calls."""
    from engine.kernels import triton_wavenet

    shape = cases.WaveNetShape(4, 2, 2, 32, 64, steps_per_frame=4)
    network = cases.make_network(shape, "bfloat16")
    codes = set()
    for batch, steps, first in ((1, 1, 0), (16, 16, 0), (3, 5, 1)):
        conditioning, noise = cases.make_inputs(shape, batch, steps + first)
        call = (conditioning[..., first:], noise[..., first:], network, network.state(batch))
        codes.add(aot.compile_call(lambda c=call: triton_wavenet.wavenet_generate(*c)).sass)
    assert len(codes) == 1


def test_decoder_kernel_fits_the_machine():
    from engine.kernels import triton_decoder

    network = decoder_cases.make_decoder(decoder_cases.DEFAULT, "bfloat16")
    inputs = decoder_cases.make_texts(decoder_cases.DEFAULT, [5, 4])
    built = aot.compile_call(
        lambda: triton_decoder.decoder_generate(inputs, network, 8, network.state(2))
    )
    assert built.registers * built.warps * 32 <= aot.REGISTER_FILE
    assert built.shared <= aot.SHARED_MEMORY[90] and not built.local
    assert built.count("HMMA.16816.F32.BF16") >= 20 and built.count("BAR.SYNC") >= 6


def test_the_other_kernels_compile_without_spills():
    from engine.kernels import triton_filters, triton_log_mel

    one = torch.ones(1, dtype=torch.int64)
    _, filters = kernels.pqmf_filters(4, 62, 0.142, 9.0)
    bank = kernels.mel_filterbank(24_000, 1024, 100, 0.0, 12_000.0)
    with aot.compiling(90) as built:
        triton_filters.stream_noise(one, one, one, 9, 4)
        triton_filters.lpc_synthesis(*cases.make_lpc(1, 4, 8, 3, 64))
        triton_filters.pqmf_synthesis(torch.zeros(1, 4, 64), filters)
        triton_log_mel.log_mel(torch.zeros(1, 2048), bank, torch.hann_window(1024), 256, 1e-5)
    assert len(built) == 4
    for kernel in built:
        # The noise's sine keeps a table on the stack for angles that it never gets.
        assert kernel.name == "_noise" or kernel.stack == kernel.count("LDL") == 0, kernel
        assert not kernel.local
        assert kernel.shared <= aot.SHARED_MEMORY[90]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_backend_says_so_and_auto_does_not_take_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    network = cases.make_network(cases.DEFAULT)
    call = (*cases.make_inputs(cases.DEFAULT, 1, 2), network, network.state())
    assert kernels.backends()["triton"] == triton_backend.why_not() == "no CUDA device here"
    assert kernels.wavenet_generate.select("auto", *call) != "triton"
    with pytest.raises(BackendUnavailable, match="on cpu, triton needs cuda"):
        kernels.wavenet_generate(*call, backend="triton")
    with pytest.raises(BackendUnavailable, match="triton"):
        kernels.gaussian_noise(1, 2, 3, 4, 5, backend="triton")
