"""The GPU benchmark's whole code, on a CPU with tiny sizes; its figures mean nothing here."""

import json
import math
from argparse import Namespace
from dataclasses import replace

import pytest
from tiny import make_weights

from engine import Engine, bench_device, kernels


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(make_weights(tmp_path_factory.mktemp("weights")), "cpu", precision="float32")


def arguments(engine, tmp_path):
    return Namespace(
        weights=engine.folder, device="cpu", quick=True, json=True, out=tmp_path / "out"
    )


def test_every_part_is_measured_and_reported(engine, tmp_path, capsys):
    assert bench_device.run(arguments(engine, tmp_path)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "bench.json").read_text())
    figures = result["figures"]
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    expected = {
        "stream_realtime", "decoder_us_per_step", "decoder_steps_per_s", "utterances_per_s",
        "clones_per_s", "clones_with_preparation_per_s", "first_audio_ms", "slots_mb",
        "vocoder_cpp_2_roofline_share", "vocoder_cpp_times_torch_graph",
        "decoder_cpp_times_torch_graph", "slots_2_realtime", "machine_gb_per_s",
    }  # fmt: skip
    assert expected <= set(figures)
    assert set(result["errors"]) == {
        "vocoder_cpp", "vocoder_cpp_bits", "decoder_cpp", "decoder_cpp_path"
    }
    verdicts = {row["figure"]: row["verdict"] for row in result["targets"]}
    assert verdicts["clones_per_s"] == ("met" if figures["clones_per_s"] >= 2000 else "missed")
    table = (tmp_path / "out" / "bench.txt").read_text()
    assert "one stream, x real time" in table and "small sizes" in table and "WRONG" not in table
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_kernel_is_reported_not_measured_and_the_rest_goes_on(engine, monkeypatch):
    right = kernels.wavenet_generate.impls["cpp"]
    calls = iter(range(10**6))

    def restless(*args):
        return right.run(*args) * (1 + 1e-6 * (next(calls) % 2))

    monkeypatch.setitem(kernels.wavenet_generate.impls, "cpp", replace(right, run=restless))
    bench = bench_device.DeviceBench(engine, bench_device.SMALL)
    monkeypatch.setattr(bench, "slots", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of the benchmark itself is not hidden
        bench.run()
    assert any("vocoder_cpp_bits" in problem for problem in bench.wrong)
    assert "vocoder_cpp_1_steps_per_s" not in bench.figures
    assert "decoder_cpp_1_us_per_step" in bench.figures
