"""One small call of every kernel of the GPU backends: what compute-sanitizer watches.

    compute-sanitizer --tool racecheck python bench/gpu_small.py

Exits with 2 if there was nothing to run.
"""

import sys
from pathlib import Path

import torch

from engine import kernels

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import cases
import decoder_cases

STEPS = 70  # more than a frame
LENGTHS = [1, 5, 3]


def on_device(values):
    """A named tuple of tensors, and of tuples of them."""
    return type(values)(*(
        v.cuda() if isinstance(v, torch.Tensor) else tuple(p.cuda() for p in v) for v in values
    ))  # fmt: skip


def wavenet(backend: str) -> list[str]:
    done = []
    for name, shape in cases.CHECK.items():
        host = cases.make_network(shape)
        for precision in ("float32", "bfloat16"):
            network = kernels.WaveNet(
                on_device(host.weights), host.dilations, host.band_steps_per_frame, precision
            )
            inputs = [part.cuda() for part in cases.make_inputs(shape, 3, STEPS)]
            call = (*inputs, network, network.state(3))
            if kernels.wavenet_generate.impls[backend].why_not(*call) is None:
                kernels.wavenet_generate(*call, backend=backend)
                done.append(f"wavenet {name} {precision}")
    return done


def decoder(backend: str) -> list[str]:
    done = []
    for name, shape in decoder_cases.CHECK.items():
        host = decoder_cases.make_decoder(shape)
        network = kernels.Decoder(
            on_device(host.weights), host.attention_layers, host.window, host.max_hold
        )
        inputs = on_device(decoder_cases.make_texts(shape, LENGTHS))
        call = (inputs, network, 12, network.state(len(LENGTHS)))
        if kernels.decoder_generate.impls[backend].why_not(*call) is None:
            kernels.decoder_generate(*call, backend=backend)
            done.append(f"decoder {name}")
    return done


def others(backend: str) -> list[str]:
    """Every other op that has the backend."""
    named = [torch.arange(3).cuda() for _ in range(3)]
    excitation, *lpc = (part.cuda() for part in cases.make_lpc(2, 4, 8, frames=2, repeat=64))
    _, filters = kernels.pqmf_filters(4, 62, 0.142, 9.0)
    bank, window = kernels.mel_filterbank(24_000, 1024, 100, 0.0, 12_000.0), torch.hann_window(1024)
    calls = {
        "stream_noise": (*named, STEPS, 4),
        "lpc_synthesis": (excitation, *lpc),
        "pqmf_synthesis": (excitation, filters.cuda()),
        "log_mel": (torch.randn(2, 4096).cuda(), bank.cuda(), window.cuda(), 256, 1e-5),
    }
    done = []
    for name, call in calls.items():
        op = getattr(kernels, name)
        if backend in op.impls and op.impls[backend].why_not(*call) is None:
            op(*call, backend=backend)
            done.append(name)
    return done


def main() -> int:
    ran = 0
    for backend in ("cuda", "triton"):
        if reason := kernels.backends()[backend]:
            print(f"{backend}: {reason}")
            continue
        for part in (wavenet, decoder, others):
            if part in (wavenet, decoder):
                op = kernels.wavenet_generate if part is wavenet else kernels.decoder_generate
                if backend not in op.impls:
                    continue
            for name in part(backend):
                ran += 1
                print(f"{backend} {name}")
    torch.cuda.synchronize()
    return 0 if ran else 2


if __name__ == "__main__":
    sys.exit(main())
