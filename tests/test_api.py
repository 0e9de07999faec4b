"""What users import: names, signatures, an import that stays light, and the README's examples."""

import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from serving import close, make_app, running

import engine
from engine import audio
from engine.serve.device import EngineDevice

ROOT = Path(__file__).parent.parent


def test_functions_stay_functions_after_every_submodule_is_imported():
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)
    for name in ("clone", "synthesize", "stream", "blend"):
        assert inspect.isfunction(getattr(engine, name)), name


def test_signatures_are_the_documented_ones():
    positional = lambda f: list(inspect.signature(f).parameters)[:2]  # noqa: E731
    assert positional(engine.clone) == ["wav", "sample_rate"]
    for function in (engine.synthesize, engine.stream):
        assert positional(function) == ["text", "emb"]
        keyword_only = inspect.signature(function).parameters
        assert keyword_only["seed"].kind is inspect.Parameter.KEYWORD_ONLY
        assert keyword_only["speed"].default == 1.0
    assert list(inspect.signature(engine.Engine).parameters)[:3] == ["weights", "device", "backend"]


def test_every_public_name_exists_and_errors_share_a_base():
    for name in engine.__all__:
        assert hasattr(engine, name), name
    for name in ("InputError", "VoiceError", "WeightsError", "BackendUnavailable", "Overloaded"):
        assert issubclass(getattr(engine, name), engine.EngineError)


def test_importing_the_engine_loads_nothing_heavy_but_torch():
    heavy = ("gruut", "matplotlib", "triton", "tensorboard", "librosa", "onnxruntime")
    code = f"import sys, engine; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    shutil.copy(ROOT / "engine/samples/austen.flac", tmp_path / "me.wav")
    monkeypatch.chdir(tmp_path)
    speaker = engine.Engine()
    app, _ = make_app(speaker, tmp_path / "voices", EngineDevice(speaker))
    try:
        with running(app) as port:
            for block in blocks:
                here = block.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")
                exec(compile(here, "README.md", "exec"), {})
    finally:
        close(app)
    assert (tmp_path / "hello.wav").exists() and (tmp_path / "me.safetensors").exists()
    samples, rate = audio.read(tmp_path / "hello.mp3")
    assert 0.2 < len(samples) / rate < 5 and np.abs(samples).max() > 0.05
