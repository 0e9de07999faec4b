"""The whole path with the default weights, as a user calls it: `pytest bench/bench_engine.py`.

The samples that are timed were compared before: what `synthesize` makes side by side is what
`stream` makes one after the other, and the kernels agree with their definitions.
"""

import pytest
import torch

from engine import Engine, bench

ROUNDS = {"warmup_rounds": 1, "rounds": 20, "iterations": 1}


@pytest.fixture(scope="module")
def measured():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    checked = bench.Bench(Engine(device="cpu"), seconds=0.1, threads=1)
    checked.check_vocoder(checked.engine.network)
    checked.check_decoder(checked.engine.decoder)
    checked.check_paragraph()
    yield checked
    torch.set_num_threads(threads)


def record(benchmark, seconds: float) -> None:
    """RTF of the fastest round."""
    if benchmark.stats:
        benchmark.extra_info["rtf"] = round(benchmark.stats["min"] / seconds, 4)


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def bench_sentence(benchmark, measured, precision):
    engine = Engine(device="cpu", precision=precision)
    speech = benchmark.pedantic(engine.synthesize, (bench.SENTENCE, measured.voice), **ROUNDS)
    record(benchmark, speech.seconds)


@pytest.mark.parametrize("way", ["side_by_side", "one_after_the_other"])
def bench_paragraph(benchmark, measured, way):
    engine, voice = measured.engine, measured.voice
    if way == "side_by_side":
        call = lambda: len(engine.synthesize(bench.PARAGRAPH, voice).samples)  # noqa: E731
    else:
        call = lambda: sum(map(len, engine.stream(bench.PARAGRAPH, voice)))  # noqa: E731
    samples = benchmark.pedantic(call, **{**ROUNDS, "rounds": 5})
    record(benchmark, samples / measured.rate)


@pytest.mark.parametrize("words", bench.WORDS)
def bench_text_length(benchmark, measured, words):
    text = " ".join(bench.TEN_WORDS[: words // 10])
    speech = benchmark.pedantic(
        measured.engine.synthesize, (text, measured.voice), **{**ROUNDS, "rounds": 5}
    )
    record(benchmark, speech.seconds)


def bench_first_audio(benchmark, measured):
    chunk = benchmark.pedantic(
        lambda: next(measured.engine.stream(bench.SENTENCE, measured.voice)), **ROUNDS
    )
    assert len(chunk)


def bench_clone(benchmark, measured):
    voice = benchmark.pedantic(
        measured.engine.clone, (measured.recording, measured.recording_rate), **ROUNDS
    )
    assert voice.embedding.tolist() == measured.voice.embedding.tolist()


def bench_load(benchmark):
    benchmark.pedantic(Engine, kwargs={"device": "cpu"}, **{**ROUNDS, "rounds": 5})
