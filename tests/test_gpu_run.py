"""`make gpu` without a GPU: steps are limited, recorded and independent; its sources compile."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("gpu_run", ROOT / "bench" / "gpu.py")
gpu = importlib.util.module_from_spec(SPEC)
sys.modules["gpu_run"] = gpu  # dataclasses look their module up
SPEC.loader.exec_module(gpu)


def test_a_failing_step_is_recorded_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "STATE", tmp_path / "work" / "passed.json")
    line = json.dumps({"name": "hop", "value": 260.0, "unit": "cycles"})

    def plan(_args, _out):
        python = lambda code: [sys.executable, "-c", code]  # noqa: E731
        (gpu.WORK / "triton").mkdir(exist_ok=True)
        (gpu.WORK / "triton" / "bench.json").write_text("{}")
        return [
            gpu.Step("wrong", python("print('what went wrong'); raise SystemExit(3)"), 20),
            gpu.Step("slow", python("import time; print('begun', flush=True); time.sleep(60)"), 3),
            gpu.Step("tool", ["no-such-tool-here"], 20),
            gpu.Step("micro one", python(f"print('noise'); print({line!r})"), 20),
        ]

    assert gpu.main(["--out", str(tmp_path / "out")], plan) == 1
    result = json.loads((tmp_path / "out" / "summary.json").read_text())
    states = {step["name"]: step["state"] for step in result["steps"]}
    assert states == {
        "wrong": "failed", "slow": "out of time", "tool": "absent", "micro one": "passed"
    }
    assert result["failed"] == ["wrong", "slow", "tool"]
    assert json.loads((tmp_path / "out" / "micro.json").read_text())[0]["value"] == 260.0
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "what went wrong" in summary and "begun" in summary
    assert "what went wrong" in (tmp_path / "out" / "log.txt").read_text()
    assert (tmp_path / "out" / "bench-triton.json").exists()
    assert len(list((tmp_path / "out").iterdir())) + 3 <= 8  # those of the benchmark
    passing = lambda *_: [gpu.Step("good", [sys.executable, "-c", "pass"], 20)]  # noqa: E731
    assert gpu.main(["--out", str(tmp_path / "two")], passing) == 0


def test_results_are_there_after_every_step_and_a_second_run_does_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "STATE", tmp_path / "work" / "passed.json")
    out, seen = tmp_path / "out", tmp_path / "seen"
    look = f"import shutil; shutil.copy({str(out / 'summary.json')!r}, {str(seen)!r})"

    def plan(_args, _out):
        python = lambda code: [sys.executable, "-c", code]  # noqa: E731
        return [
            gpu.Step("first", python("pass"), 20), gpu.Step("second", python("raise SystemExit(1)"),
            20), gpu.Step("third", python(look), 20),
        ]  # fmt: skip

    assert gpu.main(["--out", str(out), "--commit", "abc"], plan) == 1
    states = {step["name"]: step["state"] for step in json.loads(seen.read_text())["steps"]}
    assert states == {"first": "passed", "second": "failed", "third": "not run"}
    assert "left for --resume: second" in (out / "summary.txt").read_text()
    gpu.main(["--out", str(out), "--commit", "abc", "--resume"], plan)
    again = json.loads((out / "summary.json").read_text())
    assert [step["name"] for step in again["steps"]] == ["second"]
    gpu.main(["--out", str(out), "--commit", "other", "--resume"], plan)
    assert len(json.loads((out / "summary.json").read_text())["steps"]) == 3


def test_the_plan_holds_every_kind_of_proof_and_fits_its_time(tmp_path):
    args = type("Args", (), {"wheels": None, "install": True, "small": False, "only": ()})
    steps = gpu.steps(args, tmp_path)
    names = {step.name.split()[0] for step in steps}
    assert names >= {"build", "memcheck", "racecheck", "synccheck", "micro", "bench"}
    assert names >= {"tests-cuda", "tests-triton", "tests-ops", "tests-code", "bench-triton"}
    for step in steps:
        if step.name.startswith("tests"):
            assert "--require-backends=triton,cuda" in step.command
            assert (ROOT / step.command[-1]).exists()
    assert gpu.BUDGET_S < 600
    args.only = ("micro", "compile")
    assert {step.name.split()[0] for step in gpu.steps(args, tmp_path)} == {"micro", "compile"}
    found = {"device": "NVIDIA H100 80GB HBM3, 580.1", "date": "2026-01-02T03:04:05",
             "commit": "abc123-dirty"}  # fmt: skip
    assert gpu.folder_name(found) == "nvidia-h100-80gb-hbm3-2026-01-02-abc123-dirty"


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
@pytest.mark.parametrize("source", sorted((ROOT / "bench" / "micro").glob("*.cu")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_microbenchmarks_compile_for_hopper(source, tmp_path):
    command = ["nvcc", "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-cubin",
               "-Xptxas", "-v", "-o", str(tmp_path / "out.cubin"), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert all(", 0 bytes spill stores" in line for line in done.stderr.split("\n")
               if "spill stores" in line)  # fmt: skip
