"""`clonewave bench --device cuda`: checks the kernels of a GPU, then measures them and the path.

Every backend that can run is compared with the definition before it is timed: one that is wrong is
reported and not measured. The plain torch step, captured as a CUDA graph, runs beside them. The
same code runs on a CPU with small `Sizes`: that proves it, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine import audio, bench_device_report, bench_report, kernels
from engine.bench import ALLOWED, CHECK_STEPS, CLONE_S, SAMPLE, SENTENCE, TEN_WORDS
from engine.device import DevicePath
from engine.device.replay import Replay, exact
from engine.device.slots import VocoderSlots
from engine.engine import Engine
from engine.errors import EngineError
from engine.symbols import text_ids
from engine.text import front_end

ONE_SECOND = "Hello there, how are you?"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. The defaults fill an H100 and take about two minutes."""

    seconds: float = 0.5  # that a measurement repeats its call for
    streams: tuple[int, ...] = (1, 8, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    chunk_frames: int = 4  # mel frames of a timed vocoder call: 43 ms of audio
    decoder_batches: tuple[int, ...] = (1, 16, 128, 1024)
    decoder_steps: int = 32
    graph_steps: int = 4  # of the torch loop that one graph holds
    repeats: int = 100  # of a call that must give the same bits each time
    utterances: int = 1024
    recordings: int = 1024
    copy_bytes: int = 2**32
    product: int = 8192  # rows and columns of the matrix product that gives the ceiling


SMALL = Sizes(0.001, (1, 2), 1, (1, 2), 4, 1, 2, 2, 2, 2**16, 32)


class DeviceBench:
    """Checks and measures an engine on its device.

    Attributes: figures, timings, errors as in `bench.Bench`; wrong: what was found wrong, in words.
    """

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self.engine, self.sizes, self.device = engine, sizes, engine.device
        self.figures: dict[str, float] = {}
        self.timings: dict[str, dict[str, float]] = {}
        self.errors: dict[str, float] = {}
        self.wrong: list[str] = []
        self.on_gpu = self.device.type == "cuda"
        self.path = engine.path or DevicePath(engine, slots=4, capacity=512)
        samples, rate = audio.read(SAMPLE)
        self.recording = samples[: round(CLONE_S * rate)], rate
        self.speaker = engine.speaker(engine.clone(*self.recording))
        config = engine.config.vocoder
        self.rate = config.audio.sample_rate
        self.chunk_steps = sizes.chunk_frames * config.band_steps_per_frame
        self.chunk_s = self.chunk_steps * config.bands / self.rate
        with torch.no_grad(), exact():
            sentence = front_end(SENTENCE)[0]
            spoken = self.path.speak(sentence, self.speaker, 1.0)
            self.conditioning = engine.vocoder.conditioning(spoken.mel)
            ids = torch.tensor([text_ids(sentence.symbols())], device=self.device)
            lengths = torch.tensor([ids.shape[1]], device=self.device)
            speaker = self.speaker.embedding[None].to(self.device)
            encoded = engine.acoustic.encode(ids, lengths, speaker)
            self.inputs = engine.acoustic.fold(encoded, speaker)

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Every part, `after` each of them; one that fails is noted and the others still run."""
        for part in (self.machine, self.vocoder, self.decoder, self.slots, self.whole_path,
                     self.clones, self.memory):  # fmt: skip
            try:
                with torch.no_grad():
                    part()
            except (RuntimeError, EngineError, AssertionError) as error:
                self.wrong.append(f"{part.__name__}: {type(error).__name__}: {error}")
            after()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def timed(self, name: str, call: Callable[[], Any]) -> float:
        """Median seconds of a call, the device's time included; a first call is not counted."""
        call()
        self.wait()
        rounds: list[float] = []
        end = time.perf_counter() + self.sizes.seconds
        while len(rounds) < 3 or (time.perf_counter() < end and len(rounds) < 1000):
            begin = time.perf_counter()
            call()
            self.wait()
            rounds.append(time.perf_counter() - begin)
        median = statistics.median(rounds)
        self.timings[name] = {"best_s": min(rounds), "median_s": median, "rounds": len(rounds)}
        return median

    def backends(self, op: kernels.Op, *args: Any) -> list[str]:
        """Those that can run a call, fastest first, without the definition."""
        names = kernels.ORDER if self.engine.backend == "auto" else (self.engine.backend,)
        able = [b for b in names if b in op.impls and op.impls[b].why_not(*args) is None]
        return [backend for backend in able if backend != "reference"]

    def agrees(self, name: str, precision: str, made: list[Tensor], exact: list[Tensor]) -> bool:
        """True if every step is within what its precision may cost; the error is kept."""
        difference = (torch.stack(made) - torch.stack(exact)).abs().max()
        error = float(difference / (torch.stack(exact).std() + 1e-6)) / ALLOWED[precision]
        return self.holds(name, error)

    def holds(self, name: str, error: float) -> bool:
        """Keep the error of a check, as a part of what is allowed; True if it is allowed."""
        self.errors[name] = error
        if not error <= 1:
            self.wrong.append(f"{name}: {error:.3g} times the allowed error; not measured")
        return error <= 1

    def machine(self) -> None:
        """The ceilings: bytes a second of a copy, operations a second of matrix products."""
        source = torch.randn(self.sizes.copy_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        best = self.timed("machine_copy", lambda: target.copy_(source))
        self.figures["machine_gb_per_s"] = 2e-9 * self.sizes.copy_bytes / best
        n = self.sizes.product
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            a = torch.randn(n, n, device=self.device).to(dtype)
            best = self.timed(f"machine_{name}", partial(torch.matmul, a, a))
            self.figures[f"machine_{name}_tflop_per_s"] = 2e-12 * n**3 / best

    def roofline(self, name: str, seconds: float, operations: float, moved: float) -> None:
        """Share of the measured ceilings that a call reaches: its floor over its time."""
        precision = "float32" if self.engine.network.precision == "float32" else "bfloat16"
        if f"machine_{precision}_tflop_per_s" not in self.figures:
            return  # it could not be measured
        floor = max(
            operations / (1e12 * self.figures[f"machine_{precision}_tflop_per_s"]),
            moved / (1e9 * self.figures["machine_gb_per_s"]),
        )
        self.figures[f"{name}_roofline_share"] = floor / seconds

    # ---- kernels --------------------------------------------------------------------------------

    def call(self, streams: int, steps: int) -> tuple[Tensor, Tensor]:
        """Conditioning of the sentence's start, other for each stream, and noise."""
        c = self.engine.config.vocoder
        columns = 1 + -(-steps // c.band_steps_per_frame)
        at = torch.arange(streams, device=self.device)[:, None] * 3 + torch.arange(
            columns, device=self.device
        )
        conditioning = self.conditioning[0][..., at % self.conditioning.shape[-1]]
        noise = torch.randn(streams, c.bands, steps, device=self.device)
        return conditioning.permute(2, 0, 1, 3).contiguous(), noise

    def check_vocoder(self, backend: str) -> bool:
        """Steps against the definition; chunks, neighbours, places and repeats bit for bit."""
        network, precision = self.engine.network, self.engine.network.precision
        generate = partial(kernels.wavenet_generate, backend=backend)
        conditioning, noise = self.call(4, CHECK_STEPS)
        state = network.state(4)
        made, exact = [], []
        for t in range(CHECK_STEPS):
            before = kernels.WaveNetState(*(part.clone() for part in state))
            one = (conditioning, noise[:, :, t : t + 1].contiguous(), network)
            made.append(generate(*one, state))
            exact.append(kernels.wavenet_generate(*one, before, backend="reference"))
        if not self.agrees(f"vocoder_{backend}", precision, made, exact):
            return False
        whole = torch.cat(made, -1)
        order = torch.tensor([2, 0, 3, 1], device=self.device)
        alike = all(
            torch.equal(generate(conditioning, noise, network, network.state(4)), whole)
            for _ in range(self.sizes.repeats)
        )
        moved = generate(conditioning[order], noise[order], network, network.state(4))
        alone = generate(conditioning[:1], noise[:1], network, network.state())
        alike &= torch.equal(moved, whole[order]) and torch.equal(alone, whole[:1])
        return self.holds(f"vocoder_{backend}_bits", 0.0 if alike else float("inf"))

    def vocoder(self) -> None:
        """Steps a second by backend and streams, beside the torch step in a graph."""
        c, network = self.engine.config.vocoder, self.engine.network
        call = self.call(1, self.chunk_steps)
        usable = self.backends(kernels.wavenet_generate, *call, network, network.state())
        graph = self.torch_vocoder()
        r, s = c.residual_channels, c.skip_channels
        operations = 2 * (c.layers * (5 * r * r + s * r) + s * s + c.outputs * s)
        for backend in filter(self.check_vocoder, usable):
            for streams in self.sizes.streams:
                call, state = self.call(streams, self.chunk_steps), network.state(streams)
                name = f"vocoder_{backend}_{streams}"
                best = self.timed(
                    name,
                    partial(kernels.wavenet_generate, *call, network, state, backend=backend),
                )
                steps = streams * self.chunk_steps
                self.figures[f"{name}_steps_per_s"] = steps / best
                self.figures[f"{name}_realtime"] = steps / best * c.bands / self.rate
                moved = 4 * (call[0].numel() + 2 * call[1].numel()) + operations
                self.roofline(name, best, operations * steps, moved)
            ratio = self.figures[f"vocoder_{backend}_1_steps_per_s"] / graph
            self.figures[f"vocoder_{backend}_times_torch_graph"] = ratio

    def torch_vocoder(self) -> float:
        """Steps a second of the definition for one stream, its steps held by a CUDA graph."""
        network, steps = self.engine.network, self.sizes.graph_steps
        state = network.state()
        conditioning, noise = self.call(1, steps)

        def step(conditioning: Tensor, noise: Tensor) -> tuple[Tensor]:
            return (kernels.wavenet_generate(
                conditioning, noise, network, state, backend="reference"
            ),)  # fmt: skip

        replay = Replay(step, (conditioning, noise), state)
        rate = steps / self.timed("vocoder_torch_graph", lambda: replay(conditioning, noise))
        self.figures["vocoder_torch_graph_steps_per_s"] = rate
        return rate

    def rows(self, batch: int) -> kernels.DecoderInputs:
        """The sentence, in a batch."""
        i = self.inputs
        wide = lambda x, dim: x.repeat_interleave(batch, dim)  # noqa: E731
        return kernels.DecoderInputs(
            tuple(wide(p, 0) for p in i.prenet_bias), wide(i.attended, 0), wide(i.speaker, 0),
            wide(i.folded_keys, 1), wide(i.key_bias, 1), wide(i.folded_values, 1),
            wide(i.lengths, 0),
        )  # fmt: skip

    def check_decoder(self, backend: str) -> bool:
        """Single steps against the definition: hidden states, and the path."""
        network = self.engine.decoder
        inputs, state = self.rows(2), network.state(2)
        made, exact, same = [], [], True
        for _ in range(CHECK_STEPS):
            before = kernels.DecoderState(*(part.clone() for part in state))
            made.append(kernels.decoder_generate(inputs, network, 1, state, backend=backend)[0])
            exact.append(
                kernels.decoder_generate(inputs, network, 1, before, backend="reference")[0]
            )
            same &= torch.equal(state.position, before.position)
            if bool(state.finished.all()):
                break
        if network.precision in ("float32", "int16"):  # which do not change the path
            self.holds(f"decoder_{backend}_path", 0.0 if same else float("inf"))
        return self.agrees(f"decoder_{backend}", network.precision, made, exact) and same

    def decoder(self) -> None:
        """Microseconds a step alone and steps a second in sum, beside the step in a graph."""
        network, steps = self.engine.decoder, self.sizes.decoder_steps
        usable = self.backends(
            kernels.decoder_generate, self.inputs, network, steps, network.state()
        )
        state = network.state()
        replay = Replay(lambda: kernels.decoder_step(self.inputs, network, state), (), state)
        graph = 1e6 * self.timed("decoder_torch_graph", replay)
        self.figures["decoder_torch_graph_us_per_step"] = graph
        for backend in filter(self.check_decoder, usable):
            for batch in self.sizes.decoder_batches:
                inputs, state = self.rows(batch), network.state(batch)

                def call(
                    inputs: Any = inputs, state: Any = state, backend: str = backend
                ) -> Any:
                    for part in state:
                        part.zero_()
                    return kernels.decoder_generate(inputs, network, steps, state, backend=backend)

                taken = int(call()[2].max())
                best = self.timed(f"decoder_{backend}_{batch}", call)
                self.figures[f"decoder_{backend}_{batch}_us_per_step"] = 1e6 * best / taken
                self.figures[f"decoder_{backend}_{batch}_steps_per_s"] = batch * taken / best
            alone = self.figures[f"decoder_{backend}_1_us_per_step"]
            self.figures[f"decoder_{backend}_times_torch_graph"] = graph / alone
        for name, better in (("us_per_step", min), ("steps_per_s", max)):
            found = [
                self.figures[f"decoder_{backend}_{batch}_{name}"]
                for backend, batch in itertools.product(usable, self.sizes.decoder_batches)
                if f"decoder_{backend}_{batch}_{name}" in self.figures
            ]
            if found:
                self.figures[f"decoder_{name}"] = better(found)

    # ---- the path -------------------------------------------------------------------------------

    def slots(self) -> None:
        """Whole chunks, from mel to samples on the host, by the number of streams."""
        engine, frames = self.engine, self.sizes.chunk_frames
        mel = torch.randn(1, engine.config.vocoder.audio.n_mels, 64, device=self.device) * 2 - 5
        most = 0
        for streams in self.sizes.streams:
            room = VocoderSlots(
                engine.vocoder, engine.network, slots=streams, capacity=64, backend=engine.backend,
                buckets=self.on_gpu,
            )  # fmt: skip
            running = room.join(
                mel.expand(streams, -1, -1), [64] * streams, list(range(streams)), [0] * streams
            )

            def call(room: Any = room, running: Any = running) -> None:
                room.step(running, frames)

            best = self.timed(f"slots_{streams}", call)
            self.figures[f"slots_{streams}_realtime"] = streams * self.chunk_s / best
            self.figures[f"slots_{streams}_chunk_ms"] = 1e3 * best
            most = streams if best <= self.chunk_s else most
        if most:
            self.figures["streams_in_real_time"] = most
        self.figures["stream_realtime"] = self.figures[f"slots_{self.sizes.streams[0]}_realtime"]

    def whole_path(self) -> None:
        """First audio of a stream, and many utterances of about a second in many voices."""
        first = partial(self.path.stream, SENTENCE, self.speaker, 1.0, 0)
        self.figures["first_audio_ms"] = 1e3 * self.timed("first_audio", lambda: next(first()))
        count = self.sizes.utterances
        base = self.speaker
        voices = [base._replace(embedding=base.embedding.roll(i)) for i in range(count)]
        for name, texts in (
            ("one_second", [ONE_SECOND]), ("sentences", list(TEN_WORDS[:2])),
        ):  # fmt: skip
            said = list(itertools.islice(itertools.cycle(texts), count))

            def call(said: list[str] = said) -> float:
                made = self.path.synthesize(said, voices, [1.0] * count, list(range(count)))
                return sum(speech.seconds for speech in made)

            seconds = call()
            best = self.timed(f"utterances_{name}", call)
            self.figures[f"{name}_per_s"] = count / best
            self.figures[f"{name}_audio_s"] = seconds / count
            self.figures[f"{name}_realtime"] = seconds / best
        self.figures["utterances_per_s"] = self.figures["one_second_realtime"]  # a second each

    def clones(self) -> None:
        """Recordings encoded a second: ready ones, and with their preparation on the host."""
        count = self.sizes.recordings
        config = self.engine.config.encoder.audio
        samples = audio.prepare(*self.recording, config=config).samples
        people = [[samples[i % 64 :]] for i in range(count)]
        best = self.timed("clones", lambda: self.path.encoder(people))
        self.figures["clones_per_s"] = count / best
        recordings = [self.recording[0][i % 64 :] for i in range(count)]
        best = self.timed(
            "clones_prepared", lambda: self.engine.clone_many(recordings, self.recording[1])
        )
        self.figures["clones_with_preparation_per_s"] = count / best

    def memory(self) -> None:
        """Device memory, in MB: the most that was in use, and what the slots take."""
        self.figures["slots_mb"] = 1e-6 * self.path.slots.bytes()
        if self.on_gpu:
            self.figures["peak_device_mb"] = 1e-6 * torch.cuda.max_memory_allocated()
            self.figures["reserved_device_mb"] = 1e-6 * torch.cuda.max_memory_reserved()


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write JSON and a plot; 1 if something was wrong.

    Figures and table are written after every part too: one that hangs hides no other.
    """
    engine = Engine(args.weights, args.device)
    small = args.quick or engine.device.type == "cpu"
    bench = DeviceBench(engine, SMALL if small else Sizes())
    report = bench_device_report

    def keep() -> None:
        result = report.result(bench, small)
        bench_report.keep(args.out, result, report.table(result))

    bench.run(keep)
    result = report.result(bench, small)
    bench_report.write(args.out, result, report.table(result), report.plot, as_json=args.json)
    return 1 if bench.wrong else 0
