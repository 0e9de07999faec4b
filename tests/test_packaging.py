"""The wheel holds what a user needs, and nothing at the top level but `engine`."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = (
    "engine/__main__.py", "engine/py.typed", "engine/models/acoustic.py",
    "engine/kernels/reference.py", "engine/kernels/_cpu.pyi", "engine/samples/austen.flac",
    "engine/weights/acoustic.safetensors", "engine/weights/encoder.safetensors",
    "engine/weights/vocoder.safetensors", "engine/weights/voice.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    for name in ("engine", "kernels", "csrc"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "CLONEWAVE_CUDA": "0"}  # nvcc would take minutes
    subprocess.run([*command, "-w", tree / "dist", tree], check=True, cwd=tree, env=environment)
    return next((tree / "dist").glob("clonewave-*.whl"))


def test_the_wheel_holds_code_kernels_weights_and_the_sample(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not set(NEEDED) - names
    assert any(name.startswith("engine/kernels/_cpu.") and ".pyi" not in name for name in names)
    assert wheel.stat().st_size < 60e6


def test_nothing_but_engine_lands_at_the_top(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"engine"}


def test_the_metadata_names_the_command_the_licence_and_the_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    read = lambda end: next(  # noqa: E731
        archive.read(n).decode() for n in archive.namelist() if n.endswith(end)
    )
    assert "clonewave = engine.__main__:main" in read("entry_points.txt")
    metadata = email.message_from_string(read("METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"train", "corpus", "eval", "dev"} <= set(metadata.get_all("Provides-Extra"))
