"""Triton kernels against their definitions: on a GPU, or in Triton's interpreter on the CPU.

The interpreter is chosen when a kernel is defined, so these tests have a process of their own:
`tests/test_triton.py` starts it. By hand: TRITON_INTERPRET=1 pytest tests/gpu_triton
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine.kernels import triton_backend

sys.path.insert(0, str(Path(__file__).parent.parent))
INTERPRETED = triton_backend.interpreting()
if triton_backend.why_not() is not None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test must launch a kernel; a test that refuses calls says so with its marker."""
    import triton.runtime.interpreter as interpreter
    import triton.runtime.jit as jit

    launched = []
    for kind, launch in ((interpreter.GridExecutor, "__call__"), (jit.JITFunction, "run")):
        original = getattr(kind, launch)

        def spy(self, *args, _original=original, **kwargs):
            launched.append(self)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, launch, spy)
    yield
    assert launched or request.node.get_closest_marker("refused"), "no kernel ran"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN, so that an output nobody wrote is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "refused: the test checks refusals and launches nothing")
