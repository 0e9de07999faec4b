"""Our kernels on nv-wavenet's medium model: mu-law, 20 layers, 64 / 128 / 256 channels.

    python bench/peers/m20.py [--batch 1 2 4 16 64] [--samples 16384] [--device cuda] [--json FILE]

kHz of one stream and of all, for every backend that runs here, as nv_wavenet_perf counts them; each
is checked against float64 first. README.md tells how to put nv-wavenet beside it.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from engine import bench_report, kernels

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))
import cases
from compare import sampled, teacher_forced

SHAPE = cases.BENCH["mu_law_20_layers"]
CHECKED = 200  # samples
ROUNDS = 5


def network(device: str, precision: str) -> tuple[kernels.WaveNet, kernels.WaveNet]:
    """The network on the device, and on the host for the check."""
    host = cases.make_network(SHAPE, precision)
    weights = kernels.WaveNetWeights(*(part.to(device) for part in host.weights))
    moved = kernels.WaveNet(weights, host.dilations, host.band_steps_per_frame, precision)
    return moved, host


def wrong_share(made: torch.Tensor, conditioning, uniforms, host: kernels.WaveNet) -> float:
    """Codes that are not those of float64, teacher-forced."""
    expected = sampled(teacher_forced(host, conditioning, made), uniforms, SHAPE.codes)
    return float((expected != made.numpy()).mean())


def measure(backend: str, batch: int, samples: int, device: str, precision: str) -> dict:
    net, host = network(device, precision)
    inputs = cases.make_inputs(SHAPE, batch, CHECKED)
    call = [part.to(device) for part in inputs]
    run = kernels.wavenet_generate
    if reason := run.impls[backend].why_not(*call, net, net.state(batch)):
        return {"backend": backend, "batch": batch, "absent": reason}
    made = run(*call, net, net.state(batch), backend=backend).cpu()
    share = wrong_share(made, *inputs, host)
    if share > (0.001 if precision == "float32" else 0.2):
        return {"backend": backend, "batch": batch, "wrong": share}
    call = [part.to(device) for part in cases.make_inputs(SHAPE, batch, samples)]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    rounds = []
    for _ in range(ROUNDS):
        state = net.state(batch)
        wait()
        begin = time.perf_counter()
        run(*call, net, state, backend=backend)
        wait()
        rounds.append(time.perf_counter() - begin)
    seconds = statistics.median(rounds)
    khz = samples / seconds / 1000
    return {"backend": backend, "batch": batch, "precision": precision, "kHz": khz,
            "kHz_in_sum": khz * batch, "wrong_codes": share}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--samples", type=int, default=16384, help="of each stream")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=kernels.PRECISIONS, default="bfloat16")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu")
    np.seterr(all="raise", under="ignore")
    names = ("cuda", "triton") if args.device == "cuda" else ("cpp",)
    results = []
    for backend in (name for name in names if name in kernels.wavenet_generate.impls):
        for batch in args.batch:
            results.append(measure(backend, batch, args.samples, args.device, args.precision))
            print(json.dumps(results[-1]), flush=True)
    if args.json:
        content = {"about": bench_report.about(), "results": results}
        Path(args.json).write_text(json.dumps(content, indent=1), "utf-8")
    return 0 if results and all("kHz" in result for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
