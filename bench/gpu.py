"""Everything a GPU has to show, in one unattended run of under ten minutes.

    python bench/gpu.py [--out DIR] [--install] [--wheels DIR] [--commit NAME] [--resume]
                        [--only STEP ...] [--small]

Builds, runs the tests of the device, `clonewave bench --device cuda`, the microbenchmarks and
compute-sanitizer on small cases, the most wanted first; writes bench/results/
<device>-<date>-<commit>/: summary.json and .txt, bench.json, .txt and .png, bench-triton.json,
micro.json and log.txt, all of them anew after every step. Every step is a process with a limit in
seconds; one that fails, hangs or runs out of time is recorded and the others still run. `--resume`
leaves out what an earlier run in this tree passed, so that a second command does the rest. Exit: 0
if all passed, else 1. Works in a bare copy of the tree: `--install` installs it, without its
dependencies, into the Python that runs this; `--wheels` adds packages from a folder, without an
index; `--commit` says what the copy is of.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
BUDGET_S = 570  # of the whole run
STATE = WORK / "passed.json"  # by commit: names of steps
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "gpu_small.py"


@dataclass
class Step:
    """A command and what came of it: "passed", "failed", "out of time" or "absent"."""

    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    state: str = "not run"
    seconds: float = 0.0
    tail: str = ""

    def run(self, log: Path, left_s: float) -> str:
        """Run within the smaller limit; returns what was printed."""
        begin, limit = time.monotonic(), min(self.limit_s, left_s)
        if limit <= 1:
            self.state, text = "out of time", "no time was left"
        elif shutil.which(self.command[0]) is None:
            self.state, text = "absent", f"{self.command[0]} is not installed"
        else:
            text = self._run(limit)
        self.seconds = round(time.monotonic() - begin, 1)
        self.tail = text[-1500:]
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n==== {self.name}: {self.state}, {self.seconds} s\n")
            file.write(f"$ {' '.join(self.command)}\n{text[-200_000:]}\n")
        print(f"{self.state:12} {self.seconds:6.1f} s  {self.name}", flush=True)
        return text

    def _run(self, limit: float) -> str:
        running = subprocess.Popen(
            self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={**os.environ, **self.environment}, start_new_session=True,
        )  # fmt: skip
        try:
            text, _ = running.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # what it started too
            self.state = "out of time"
            return running.communicate()[0]
        self.state = "passed" if running.returncode == 0 else "failed"
        return text


def output_of(*command: str) -> str:
    """What a command prints, or nothing if it cannot run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def about() -> dict[str, str]:
    """What the results belong to."""
    query = "name,driver_version,memory.total,clocks.max.sm"
    card = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").split("\n")[0]
    code = "import torch as t, triton; print(t.__version__, t.version.cuda, triton.__version__)"
    return {
        "device": card or "none", "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "commit": output_of("git", "describe", "--always", "--dirty") or "unknown",
        "torch, cuda, triton": output_of(sys.executable, "-c", code),
        "nvcc": output_of("nvcc", "--version").split("\n")[-1],
    }  # fmt: skip


def folder_name(found: dict[str, str]) -> str:
    """<device>-<date>-<commit>, in letters, digits, dots and hyphens."""
    parts = (found["device"].split(",")[0], found["date"][:10], found["commit"])
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-").lower() for part in parts)


def architecture() -> str:
    """What nvcc compiles for: the device's own code, with the features of its family."""
    capability = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    number = capability.split("\n")[0].replace(".", "") or "90"
    suffix = "a" if int(number) >= 90 else ""
    return f"-gencode=arch=compute_{number}{suffix},code=sm_{number}{suffix}"


def steps(args: argparse.Namespace, out: Path) -> list[Step]:
    """Everything, in the order of use."""
    python, site = sys.executable, WORK / "site"
    paths = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    required = ["--require-backends=triton,cuda", "-p", "no:cacheprovider"]
    test = [python, "-m", "pytest", "-x" if args.small else "-ra", "-q", *required]
    bench = [python, "-m", "engine", "bench", "--device", "cuda", *["--quick"] * args.small]
    listed: list[Step] = []
    if args.wheels:
        wheels = sorted(str(wheel) for wheel in Path(args.wheels).glob("*.whl"))
        listed.append(Step("wheels", [*install, "--upgrade", "--target", str(site), *wheels], 60))
    if args.install:
        listed.append(Step("build", [*install, "--no-build-isolation", "-e", "."], 180,
                           environment | {"CLONEWAVE_CUDA": "1"}))  # fmt: skip
    listed.append(Step("doctor", [python, "-m", "engine", "doctor"], 60, environment))
    # Kernels of one backend at a time: one that hangs is killed, and hides nothing of the other.
    tests_of = lambda which, limit_s: Step(  # noqa: E731
        f"tests-{which}", [*test, "-k", which.replace("cuda", "not triton"),
                           "tests/test_on_gpu.py"], limit_s, environment,
    )  # fmt: skip
    alone = environment | {"CLONEWAVE_BACKEND": "triton"}
    listed += [
        tests_of("cuda", 100), Step("bench", [*bench, "--out", str(out)], 150, environment),
        tests_of("triton", 120),
        Step("bench-triton", [*bench, "--out", str(WORK / "triton")], 90, alone),
    ]  # fmt: skip
    for source in sorted((ROOT / "bench" / "micro").glob("*.cu")):
        program = WORK / source.stem
        compiled = ["nvcc", "-std=c++17", "-O3", architecture(), "-o", str(program), str(source)]
        listed.append(Step(f"compile {source.stem}", compiled, 30))
        listed.append(Step(f"micro {source.stem}", [str(program)], 20))
    for tool in SANITIZERS:
        listed.append(Step(
            tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", python,
                   str(ROOT / "bench" / SANITIZED)], 60, environment,
        ))  # fmt: skip
    listed.append(Step(
        "tests-ops", [*test, "--accuracy-steps=4096", "tests/gpu_triton"], 90, environment
    ))
    listed.append(Step("tests-code", [*test, "tests/test_cuda_code.py"], 60, environment))
    return [step for step in listed if not args.only or step.name.split()[0] in args.only]


def figures(text: str) -> list[dict]:
    """The JSON lines that a microbenchmark printed."""
    return [json.loads(line) for line in text.split("\n") if line.startswith('{"name"')]


def summary(found: dict[str, str], done: list[Step], out: Path) -> str:
    """What ran, what it said where it failed, and the table of the benchmark."""
    lines = [f"{name}: {value}" for name, value in found.items()]
    lines += ["", *(f"{step.state:12} {step.seconds:6.1f} s  {step.name}" for step in done)]
    for step in done:
        if step.state != "passed":
            lines += ["", f"---- {step.name}", *step.tail.split("\n")[-12:]]
    table = out / "bench.txt"
    lines += ["", "left for --resume: " + (", ".join(
        step.name for step in done if step.state != "passed"
    ) or "nothing")]  # fmt: skip
    lines += ["", table.read_text("utf-8") if table.exists() else "no benchmark"]
    return "\n".join(lines)


def write(found: dict[str, str], done: list[Step], micro: list[dict], out: Path) -> str:
    """Everything known so far; returns the summary."""
    failed = [step.name for step in done if step.state != "passed"]
    result = {"about": found, "failed": failed, "steps": [asdict(step) for step in done]}
    (out / "micro.json").write_text(json.dumps(micro, indent=1), "utf-8")
    (out / "summary.json").write_text(json.dumps(result, indent=1), "utf-8")
    text = summary(found, done, out)
    (out / "summary.txt").write_text(text + "\n", "utf-8")
    if (WORK / "triton" / "bench.json").exists():
        shutil.copy(WORK / "triton" / "bench.json", out / "bench-triton.json")
    return text


def passed_before(commit: str) -> list[str]:
    """Names of the steps that passed in this tree at this commit."""
    return json.loads(STATE.read_text("utf-8")).get(commit, []) if STATE.exists() else []


def main(arguments: list[str] | None = None, plan: Callable[..., list[Step]] = steps) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", help="folder (default: bench/results/<device>-<date>-<commit>)")
    parser.add_argument("--install", action="store_true", help="install this tree first")
    parser.add_argument("--wheels", metavar="DIR", help="further packages, as wheels")
    parser.add_argument("--commit", help="what this tree is, where git cannot say")
    parser.add_argument("--resume", action="store_true", help="not what passed here before")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=(), help="by first word")
    parser.add_argument("--small", action="store_true", help="small sizes; stop at a first failure")
    args = parser.parse_args(arguments)
    end, found = time.monotonic() + BUDGET_S, about()
    found["commit"] = args.commit or found["commit"]
    out = Path(args.out) if args.out else ROOT / "bench" / "results" / folder_name(found)
    out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    log, micro, before = out / "log.txt", [], passed_before(found["commit"])
    log.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    done = [step for step in plan(args, out) if not (args.resume and step.name in before)]
    text = write(found, done, micro, out)
    for step in done:
        printed = step.run(log, end - time.monotonic())
        if step.name.startswith("micro"):
            micro += figures(printed)
        if step.state == "passed":
            before.append(step.name)
            STATE.write_text(json.dumps({found["commit"]: before}), "utf-8")
        text = write(found, done, micro, out)
    print(f"\n{text}\n{out}")
    return 1 if any(step.state != "passed" for step in done) else 0


if __name__ == "__main__":
    sys.exit(main())
