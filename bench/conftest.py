"""Benches share the tests' cases and checks; every result says what machine and commit it is of."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


@pytest.fixture(autouse=True)
def described(benchmark):
    """One thread, and what the numbers belong to in `extra_info`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    benchmark.extra_info.update(
        processor=_processor(), threads=1, commit=commit.stdout.strip(), torch=torch.__version__
    )
    yield
    torch.set_num_threads(threads)
