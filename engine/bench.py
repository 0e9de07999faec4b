"""`clonewave bench`: checks the kernels, then measures them and the whole path on this machine.

Nothing is timed before its result was compared with its definition. Every figure is of the fastest
of several rounds (another program slows rounds, none speeds them up); medians stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import audio, bench_report, bench_shapes, kernels
from engine.engine import Engine
from engine.errors import BackendUnavailable, EngineError
from engine.models.vocoder import VocoderStream
from engine.symbols import text_ids
from engine.synthesize import speak
from engine.text import front_end

SAMPLE = Path(__file__).parent / "samples" / "austen.flac"
CLONE_S = 3.0
SENTENCE = "Three seconds of a voice are enough to speak any text in it."
TEN_WORDS = (
    "The road to the harbour was quiet in the morning.",
    "She carried two letters and a map of the coast.",
    "Nobody had seen the boat since the storm last week.",
    "At noon the wind turned and the clouds went away.",
    "He asked the old man what the signal might mean.",
    "It took them the whole evening to find an answer.",
    "Their small lamp was still burning when the others returned.",
    "By then it was too late to go back home.",
)
WORDS = (10, 20, 40, 80)
PARAGRAPH = " ".join(TEN_WORDS)
STREAMS = (1, 4, 16, 64)
CALL_STEPS = 128  # of a timed vocoder call, streams in sum: so short that nothing disturbs many
LOOP_STEPS = 4  # of a timed torch loop: as short as the kernels' calls, or ratios would flatter
DECODER_STEPS = 16
CHECK_STEPS = 12
# Largest error of one step from the same state, in units of the reference's spread over the steps.
ALLOWED = {"float32": 1e-3, "int16": 0.01, "bfloat16": 0.1, "int8": 0.3}
PROBE = """
import json, sys, time
marks = [time.perf_counter()]
mark = lambda: marks.append(time.perf_counter())
import torch; mark()
import engine; mark()
torch.set_num_threads(int(sys.argv[4]))
loaded = engine.Engine(sys.argv[1], "cpu"); mark()
loaded.synthesize(sys.argv[3], loaded.clone(sys.argv[2])); mark()
try:  # not ru_maxrss, which begins with what the parent process had
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
except OSError:
    peak = None
print(json.dumps([*(b - a for a, b in zip(marks, marks[1:])), peak]))
"""


class Bench:
    """Checks and measures one engine on the CPU.

    Args:
        engine: what to measure.
        seconds: that a measurement repeats its call for; at least three rounds.
        threads: of torch, here and in the processes it starts. The kernels use one.
    Attributes:
        figures: name -> number, its unit at the end of the name.
        timings: name -> best and median seconds of a call, and rounds.
        errors: name -> error of a checked kernel, as a part of what is allowed.
    """

    def __init__(self, engine: Engine, seconds: float, threads: int) -> None:
        self.engine, self.seconds, self.threads = engine, seconds, threads
        self.figures: dict[str, float] = {}
        self.timings: dict[str, dict[str, float]] = {}
        self.errors: dict[str, float] = {}
        self.rate = engine.config.vocoder.audio.sample_rate
        samples, rate = audio.read(SAMPLE)
        self.recording, self.recording_rate = samples[: round(CLONE_S * rate)], rate
        self.voice = engine.clone(self.recording, rate)
        self.speaker = engine.speaker(self.voice)
        embedding = self.speaker.embedding
        self.sentence = front_end(SENTENCE)[0]
        ids = torch.tensor([text_ids(self.sentence.symbols())])
        with torch.no_grad():
            mel = speak(self.speaker, self.sentence, 1.0).mel
            self.conditioning = engine.vocoder.conditioning(mel)
            encoded = engine.acoustic.encode(ids, torch.tensor([ids.shape[1]]), embedding[None])
            self.inputs = engine.acoustic.fold(encoded, embedding[None])

    def run(self) -> None:
        """Everything, checks first.

        Raises:
            EngineError: a kernel's result is not what its definition gives.
        """
        networks = {p: self.engine.vocoder.network(p) for p in kernels.PRECISIONS}
        decoders = {p: self.engine.acoustic.network(p) for p in kernels.DECODER_PRECISIONS}
        for network in networks.values():
            self.check_vocoder(network)
        for decoder in decoders.values():
            self.check_decoder(decoder)
        self.check_paragraph()
        self.machine()
        self.vocoder(networks)
        self.decoder(decoders)
        bench_shapes.measure(self)
        self.whole_path()
        self.parts()
        self.growth()
        self.processes()

    def timed(self, name: str, call: Callable[[], Any]) -> float:
        """Seconds of the fastest round."""
        call()
        rounds: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(rounds) < 3 or (time.perf_counter() < end and len(rounds) < 1000):
            begin = time.perf_counter()
            call()
            rounds.append(time.perf_counter() - begin)
        best = min(rounds)
        self.timings[name] = {
            "best_s": best, "median_s": statistics.median(rounds), "rounds": len(rounds),
        }  # fmt: skip
        return best

    def _agree(self, name: str, precision: str, made: list[Tensor], exact: list[Tensor]) -> None:
        """Every step within what its precision may cost."""
        difference = (torch.stack(made) - torch.stack(exact)).abs().max()
        spread = torch.stack(exact).std() + 1e-6
        error = float(difference / spread) / ALLOWED[precision]
        self.errors[f"{name}_{precision}"] = error
        if not error <= 1:
            raise EngineError(
                f"{name} {precision}: {error:.1f} times the allowed error against the reference;"
                " nothing was measured"
            )

    def call(self, streams: int, steps: int) -> tuple[Tensor, Tensor]:
        """Conditioning of the sentence's start, and noise, for so many streams and band steps."""
        c = self.engine.config.vocoder
        columns = min(1 + -(-steps // c.band_steps_per_frame), self.conditioning.shape[-1])
        shape = (streams, c.bands, steps)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        conditioning = self.conditioning[..., :columns].expand(streams, -1, -1, -1)
        return conditioning.contiguous(), noise

    def check_vocoder(self, network: kernels.WaveNet) -> None:
        """Single steps against the reference; longer calls and more streams against those."""
        conditioning, noise = self.call(4, CHECK_STEPS)
        state = network.state()
        made: list[Tensor] = []
        exact: list[Tensor] = []
        for t in range(CHECK_STEPS):
            before = kernels.WaveNetState(*(part.clone() for part in state))
            one = (conditioning[:1], noise[:1, :, t : t + 1], network)
            made.append(kernels.wavenet_generate(*one, state, backend="cpp"))
            exact.append(kernels.wavenet_generate(*one, before, backend="reference"))
        self._agree("vocoder", network.precision, made, exact)
        together = kernels.wavenet_generate(
            conditioning, noise, network, network.state(4), backend="cpp"
        )
        if not torch.equal(together[:1], torch.cat(made, dim=-1)):
            raise EngineError("vocoder: samples change with streams or calls; nothing was measured")

    def check_decoder(self, network: kernels.Decoder) -> None:
        """Single steps against the reference."""
        state = network.state()
        made: list[Tensor] = []
        exact: list[Tensor] = []
        for _ in range(CHECK_STEPS):
            before = kernels.DecoderState(*(part.clone() for part in state))
            for backend, at, into in (("cpp", state, made), ("reference", before, exact)):
                hidden, _, _ = kernels.decoder_generate(
                    self.inputs, network, 1, at, backend=backend
                )
                into.append(hidden)
            if bool(state.finished) or bool(before.finished):
                break
        if network.precision == "float32" and not torch.equal(state.position, before.position):
            raise EngineError("decoder: another path than the reference's; nothing was measured")
        self._agree("decoder", network.precision, made, exact)

    def check_paragraph(self) -> None:
        """Sentences side by side are the sentences one after the other, sample for sample."""
        text = " ".join(TEN_WORDS[:2])
        side_by_side = self.engine.synthesize(text, self.voice).samples
        streamed = np.concatenate(list(self.engine.stream(text, self.voice)))
        if not np.array_equal(side_by_side, streamed):
            raise EngineError("stream and synthesize differ; nothing was measured")

    def machine(self) -> None:
        """The machine's own limits: bytes a second from cache and memory, multiply-adds a second.

        Matrix products and dot products of torch's own library are what reaches them.
        """
        for name, size in (("cache", 2**16), ("memory", 2**24)):
            a, b = torch.ones(size), torch.ones(size)
            best = self.timed(f"machine_{name}", partial(torch.dot, a, b))
            self.figures[f"machine_{name}_gb_per_s"] = 8e-9 * size / best
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            a = torch.ones(512, 512).to(dtype)
            best = self.timed(f"machine_{name}", partial(torch.matmul, a, a))
            self.figures[f"machine_{name}_gmac_per_s"] = 1e-9 * 512**3 / best

    def vocoder(self, networks: dict[str, kernels.WaveNet]) -> None:
        """Steps a second by precision and streams, against the torch loop and the machine."""
        c = self.engine.config.vocoder
        used = self.engine.network.precision
        rates = {}
        for streams in STREAMS:
            steps = max(CALL_STEPS // streams, 8)
            call = self.call(streams, steps)
            for precision, network in networks.items():
                if streams > 4 and precision != used:
                    continue
                state = network.state(streams)
                name = f"vocoder_{precision}_{streams}"
                best = self.timed(
                    name,
                    partial(kernels.wavenet_generate, *call, network, state, backend="cpp"),
                )
                rate = streams * steps / best
                rates[precision, streams] = rate
                self.figures[f"{name}_steps_per_s"] = rate
                self.figures[f"{name}_realtime"] = rate * c.bands / self.rate
        call = self.call(1, LOOP_STEPS)
        state = networks[used].state()
        best = self.timed(
            "vocoder_torch_loop",
            lambda: kernels.wavenet_generate(*call, networks[used], state, backend="reference"),
        )
        self.figures["vocoder_torch_loop_steps_per_s"] = LOOP_STEPS / best
        for precision in networks:
            ratio = rates[precision, 1] * best / LOOP_STEPS
            self.figures[f"vocoder_{precision}_times_torch_loop"] = ratio
        r, s = c.residual_channels, c.skip_channels
        operations = c.layers * (5 * r * r + s * r) + s * s + c.outputs * s
        size = {"float32": 4, "bfloat16": 2, "int8": 1}[used] * operations
        self.figures |= {
            "vocoder_multiply_adds_per_step": operations,
            "vocoder_weight_bytes_per_step": size,
            "vocoder_weights_gb_per_s": 1e-9 * size * rates[used, 1],
            "vocoder_1_gmac_per_s": 1e-9 * operations * rates[used, 1],
            "vocoder_4_gmac_per_s": 1e-9 * operations * rates[used, 4],
        }

    def decoder(self, networks: dict[str, kernels.Decoder]) -> None:
        """Microseconds a decoder step by precision, against the torch loop."""

        def call(network: kernels.Decoder, backend: str, steps: int = DECODER_STEPS) -> int:
            state = network.state()
            return int(kernels.decoder_generate(
                self.inputs, network, steps, state, backend=backend
            )[2])  # fmt: skip

        exact = networks["float32"]
        best = self.timed("decoder_torch_loop", lambda: call(exact, "reference", LOOP_STEPS))
        loop = 1e6 * best / call(exact, "reference", LOOP_STEPS)
        self.figures["decoder_torch_loop_us_per_step"] = loop
        for precision, network in networks.items():
            best = self.timed(f"decoder_{precision}", partial(call, network, "cpp"))
            cost = 1e6 * best / call(network, "cpp")
            self.figures[f"decoder_{precision}_us_per_step"] = cost
            self.figures[f"decoder_{precision}_times_torch_loop"] = loop / cost
        w = exact.weights
        parts = (*w.prenet, w.enter, w.convs, w.mel)
        self.figures["decoder_multiply_adds_per_step"] = sum(p.numel() for p in parts)

    def whole_path(self) -> None:
        """Text to samples, first audio and cloning, as a user calls them."""
        engine, voice = self.engine, self.voice
        spoken = engine.synthesize(SENTENCE, voice)
        best = self.timed("sentence", lambda: engine.synthesize(SENTENCE, voice))
        self.figures |= {"sentence_s": spoken.seconds, "sentence_rtf": best / spoken.seconds}
        paragraph = engine.synthesize(PARAGRAPH, voice).seconds
        for name, call in (
            ("paragraph_serial", lambda: list(engine.stream(PARAGRAPH, voice))),
            ("paragraph", lambda: engine.synthesize(PARAGRAPH, voice)),
        ):
            self.figures[f"{name}_rtf"] = self.timed(name, call) / paragraph
        self.figures["paragraph_s"] = paragraph
        first = self.timed("first_audio", lambda: next(engine.stream(SENTENCE, voice)))
        whole = self.timed("clone", lambda: engine.clone(self.recording, self.recording_rate))
        self.figures |= {"first_audio_ms": 1e3 * first, "clone_ms": 1e3 * whole}

    def parts(self) -> None:
        """Where the time of the sentence goes; the vocoder's includes its conditioning."""
        engine = self.engine
        mel = speak(self.speaker, self.sentence, 1.0).mel
        stream = lambda: VocoderStream(engine.vocoder, engine.network, mel, 0)  # noqa: E731
        for name, call in (
            ("text", lambda: front_end(SENTENCE)),
            ("acoustic", lambda: speak(self.speaker, self.sentence, 1.0)),
            ("conditioning", stream),
            ("vocoder", lambda: stream().next(mel.shape[-1])),
        ):
            self.figures[f"part_{name}_ms"] = 1e3 * self.timed(f"part_{name}", call)

    def growth(self) -> None:
        """Milliseconds by length of the text, in words."""
        for words in WORDS:
            text = " ".join(TEN_WORDS[: words // 10])
            best = self.timed(f"words_{words}", partial(self.engine.synthesize, text, self.voice))
            self.figures[f"words_{words}_ms"] = 1e3 * best

    def processes(self) -> None:
        """What a fresh process needs: imports, loading, its first sentence, memory."""
        command = [sys.executable, "-c", PROBE, str(self.engine.folder), str(SAMPLE), SENTENCE]
        threads = str(self.threads)
        names = ("import_torch_s", "import_engine_s", "load_s", "first_sentence_s", "peak_mb")
        runs = []
        for _ in range(3 if self.seconds > 0.1 else 1):
            done = subprocess.run(
                [*command, threads], capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )  # fmt: skip
            if done.returncode:
                raise EngineError(f"a process that speaks failed: {done.stderr[-500:]}")
            runs.append(json.loads(done.stdout))
        for name, values in zip(names, zip(*runs, strict=True), strict=True):
            if None not in values:
                self.figures[name] = min(values)


def measure(engine: Engine, quick: bool = False, threads: int = 1) -> dict[str, Any]:
    """Check and measure an engine on the CPU.

    Args:
        quick: a fraction of the rounds: shows that it works, the figures are rough.
        threads: of torch.
    Returns:
        {"about": machine, date, versions; "figures"; "timings"; "errors"; "targets"}; JSON-ready.
    Raises:
        BackendUnavailable: the compiled kernels are missing.
        EngineError: a kernel's result is wrong; nothing is measured then.
    """
    if reason := kernels.backends()["cpp"]:
        raise BackendUnavailable(f"nothing to measure: {reason}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bench = Bench(engine, 0.01 if quick else 1.0, threads)
        bench.run()
    finally:
        torch.set_num_threads(before)
    bad = [name for name, value in bench.figures.items() if not 0 < value < math.inf]
    if bad:
        raise EngineError(f"not measured: {', '.join(bad)}")
    return {
        "about": {**bench_report.about(), "threads": threads, "quick": quick,
                  "precision": engine.network.precision},
        "figures": bench.figures, "timings": bench.timings, "errors": bench.errors,
        "targets": bench_report.judged(bench.figures),
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clonewave bench`."""
    parser.add_argument("--weights", metavar="DIR", help="voice model (default: the one inside)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")
    parser.add_argument(
        "--out", default="runs/bench", metavar="DIR", help="for bench.json and bench.png"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, rough figures")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write JSON and a plot."""
    if args.device == "cuda":
        from engine import bench_device  # here: it imports this module

        return bench_device.run(args)
    result = measure(Engine(args.weights, args.device), args.quick, max(1, args.threads))
    bench_report.write(
        args.out, result, bench_report.table(result), bench_report.plot, as_json=args.json
    )
    return 0
