"""`clonewave bench` on a tiny random model: real figures, and none from a wrong kernel."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import make_weights

from engine import kernels
from engine.__main__ import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def arguments(weights, tmp_path):
    return ["bench", "--quick", "--json", "--weights", str(weights), "--out", str(tmp_path / "out")]


def test_quick_bench_writes_figures_of_everything(arguments, tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(arguments) == 0
    assert torch.get_num_threads() == threads
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "bench.json").read_text())
    figures = result["figures"]
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    expected = {
        "vocoder_int8_64_realtime", "vocoder_float32_4_realtime", "vocoder_int8_times_torch_loop",
        "decoder_bfloat16_us_per_step", "sentence_rtf", "paragraph_rtf", "first_audio_ms",
        "clone_ms", "load_s", "import_engine_s", "peak_mb", "words_80_ms",
        "machine_cache_gb_per_s", "g24_int8_1_steps_per_s",
        "m20_int8_4_steps_per_s", "vocoder_int8_two_cores_times_one", "machine_bfloat16_gmac_per_s",
    }  # fmt: skip
    assert expected <= set(figures)
    layers, r, s, outputs = 3, 32, 32, 8  # of the tiny vocoder, counted by hand
    assert figures["vocoder_multiply_adds_per_step"] == (
        layers * (4 * r * r + r * r + s * r) + s * s + outputs * s
    )
    assert all(error <= 1 for error in result["errors"].values())
    rounded = {n: e for n, e in result["errors"].items() if not n.endswith("float32")}
    assert len(rounded) == 5 and all(error > 0 for error in rounded.values())
    by_name = {row["figure"]: row["verdict"] for row in result["targets"]}
    assert by_name["peak_mb"] == ("met" if figures["peak_mb"] <= 600 else "missed")
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_table_names_the_targets_and_the_machine(arguments, tmp_path, capsys):
    from engine import bench_report

    figures = {"sentence_rtf": 0.05, "clone_ms": 8.0, "first_audio_ms": 61.0, "sentence_s": 3.0}
    rows = bench_report.judged(figures)
    assert [row["verdict"] for row in rows] == ["met", "missed", "goal"]
    about = {**bench_report.about(), "threads": 1, "quick": False}
    timings = {"sentence": {"best_s": 1.0, "median_s": 2.0}}
    result = {"about": about, "figures": figures, "targets": rows, "timings": timings}
    text = bench_report.table(result)
    assert "other programs" in text
    assert about["device"] in text and "missed" in text and "sentence_s" in text


@pytest.mark.parametrize("op", ["wavenet_generate", "decoder_generate"])
def test_a_wrong_kernel_is_not_measured(arguments, tmp_path, capsys, monkeypatch, op):
    impls = getattr(kernels, op).impls
    right = impls["cpp"]

    def wrong(*args):
        made = right.run(*args)
        return made * 1.5 if op == "wavenet_generate" else (made[0] * 1.5, *made[1:])

    monkeypatch.setitem(impls, "cpp", replace(right, run=wrong))
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "nothing was measured" in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
