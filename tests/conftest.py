"""Fixtures shared by all tests."""

import pytest
import torch

from engine import kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backends",
        default="",
        help="comma-separated backends that must run here: a skip for them is a failure",
    )
    parser.addoption(
        "--damaged-files", type=int, default=1_500,
        help="how many damaged voice files of each kind are tried; `make fuzz` tries 30,000",
    )  # fmt: skip
    parser.addoption(
        "--accuracy-steps", type=int, default=0,
        help="band steps of the GPU kernels' accuracy tests; 0 = few; `make accuracy`: 4,096",
    )  # fmt: skip


@pytest.fixture(scope="session")
def cpp(pytestconfig: pytest.Config) -> str:
    """The compiled backend's name; skips with the reason where it was not built."""
    if reason := kernels.backends()["cpp"]:
        required = "cpp" in pytestconfig.getoption("--require-backends").split(",")
        (pytest.fail if required else pytest.skip)(reason)
    return "cpp"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN, so that an output nobody wrote is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
