"""Resources of every Triton kernel, compiled for a GPU that need not be here, and predicted speed.

    python -m bench.aot_report [--arch 90] [--all]

Nothing runs on a GPU. The predictions are arithmetic on the machine code, not measurements: a loop
turn costs its instructions on four schedulers, one L2 latency, its weights at the rate an SM reads
L2, and its barriers, one after another.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import aot
import cases
import decoder_cases
from engine.kernels import triton_decoder, triton_wavenet
from tqdm import tqdm

CLOCK, L2_LATENCY, L2_BYTES, BARRIER, SCHEDULERS = 1.98e9, 260, 64, 25, 4  # H100 SXM, assumed
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
SHAPES = {
    "D16": cases.DEFAULT,
    "G24": cases.BENCH["one_band_24_layers"],
    "M20": cases.BENCH["mu_law_20_layers"],
}
LARGE = {
    "W24": cases.WaveNetShape(1, 24, 512, skip=256, codes=256, steps_per_frame=256),
    "R32 S64": cases.WaveNetShape(residual=32, skip=64),
    "R128 S256": cases.WaveNetShape(residual=128, skip=256),
}
VARIANTS = [("bfloat16", 16), ("int8", 16), ("bfloat16", 1), ("int8", 1), ("float32", 1)]


def loops(sass: str) -> list[Counter]:
    """Instruction mix of every innermost loop, in the order of the code."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?);", line):
            code.append(found[1])
    spans = []
    for end, text in enumerate(code):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", text)
        if target and labels.get(target[1], end) < end:
            spans.append((labels[target[1]], end))
    inner = [s for s in spans if not any(s[0] <= o[0] and o[1] <= s[1] and o != s for o in spans)]
    return [Counter(t.split()[0].split(".")[0] for t in code[a : b + 1]) for a, b in inner]


def turn_cycles(mix: Counter, warps: int, weight_bytes: float) -> float:
    """Predicted cycles of a loop turn."""
    issue = sum(mix.values()) * warps / SCHEDULERS
    return issue + L2_LATENCY + weight_bytes / L2_BYTES + BARRIER * mix["BAR"]


def predicted_steps(built: aot.Built, shape: cases.WaveNetShape, precision: str) -> float | None:
    """Predicted steps per second of one program, or None where the loops are not as expected."""
    found = [mix for mix in loops(built.sass) if mix["LDG"]]
    if len(found) < 2:
        return None
    r, s = shape.residual, shape.skip
    layer = turn_cycles(found[0], built.warps, (5 * r * r + s * r) * BYTES[precision])
    head = min(BYTES[precision], 4) if precision != "int8" else 2
    tile = 8 * built.warps
    turn = turn_cycles(found[1], built.warps, tile * (s + shape.outputs) * head)
    return CLOCK / (shape.layers * layer + s // tile * turn)


def vocoder_rows(shapes: dict[str, cases.WaveNetShape], arch: int) -> Iterator[list[str]]:
    """One table row for every kernel of the vocoder."""
    todo = [(name, *variant) for name in shapes for variant in VARIANTS]
    for name, precision, group in tqdm(todo, desc="vocoder", leave=False):
        shape = shapes[name]
        network = replace(cases.make_network(shape, precision), streams_per_program=group)
        call = (*cases.make_inputs(shape, 2, 4), network, network.state(2))
        built = aot.compile_call(lambda c=call: triton_wavenet.wavenet_generate(*c), arch)
        steps = predicted_steps(built, shape, precision)
        yield [name, precision, str(group), *_resources(built),
               "?" if steps is None else f"{steps / 1e3:.0f}"]  # fmt: skip


def decoder_rows(arch: int) -> Iterator[list[str]]:
    """One table row for every kernel of the decoder; its time is left to measurement."""
    for precision, group in tqdm(VARIANTS, desc="decoder", leave=False):
        network = decoder_cases.make_decoder(decoder_cases.DEFAULT, precision)
        network = replace(network, utterances_per_program=group)
        inputs = decoder_cases.make_texts(decoder_cases.DEFAULT, [5, 4])
        call = (inputs, network, 8, network.state(2))
        built = aot.compile_call(lambda c=call: triton_decoder.decoder_generate(*c), arch)
        yield ["decoder", precision, str(group), *_resources(built), "-"]


def _resources(built: aot.Built) -> list[str]:
    opcodes = ("HMMA", "FFMA", "LDG", "LDS", "STS", "SHFL", "MUFU", "BAR")
    mix = " ".join(f"{name} {built.count(name)}" for name in opcodes if built.count(name))
    spills = f"{built.count('LDL')}/{built.count('STL')}"
    numbers = (built.warps, built.registers, built.stack, spills, built.shared)
    return [*map(str, numbers), mix]


def main() -> None:
    """Print the table."""
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--arch", type=int, default=90, choices=sorted(aot.SHARED_MEMORY))
    parser.add_argument("--all", action="store_true", help="also W24, R32 S64 and R128 S256")
    args = parser.parse_args()
    print(
        "| model | precision | streams | warps | registers | stack B | spill loads/stores "
        "| shared B | instructions | predicted k steps/s of a program |\n|---" + "|---" * 9 + "|"
    )
    shapes = SHAPES | (LARGE if args.all else {})
    for row in (*vocoder_rows(shapes, args.arch), *decoder_rows(args.arch)):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
