"""Training: resuming changes nothing, kills lose nothing, models learn, bad states are refused."""

import argparse
import json
import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny_corpus as tiny
import torch

from engine import checkpoint, plots, train, train_command
from engine.config import TrainConfig, from_dict, to_dict
from engine.data import Store
from engine.errors import ConfigError, InputError, WeightsError
from engine.models.acoustic import Acoustic
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.vocoder import Vocoder

KINDS = ("vocoder", "acoustic", "encoder")
SHORT = TrainConfig(
    steps=10, batch_size=2, warmup_steps=2, log_every=1, validate_every=1000, save_every_s=1e9,
    bfloat16=False, progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Store:
    return tiny.store()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No TensorBoard files; `test_show` looks at what would be written."""
    monkeypatch.setattr(train, "_writer", lambda folder: None)


def saved(folder):
    """Every tensor of the newest checkpoint, by file and name."""
    newest = checkpoint.latest(folder)
    assert newest is not None
    files = sorted(newest.glob("*.safetensors"))
    assert files
    return {(f.name, k): t for f in files for k, t in checkpoint.load_tensors(f)[0].items()}


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def killed_at(step):
    def kill(now):
        if now == step:
            raise Killed

    return kill


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_bit_for_bit(kind, data, tmp_path):
    config = replace(SHORT, validate_every=5)
    train.run(tiny.task(kind, data, config), config, tmp_path / "straight")
    with pytest.raises(Killed):
        eager = replace(config, save_every_s=0.0)
        train.run(tiny.task(kind, data, config), eager, tmp_path / "killed", killed_at(5))
    assert checkpoint.latest(tmp_path / "killed") is not None
    steps = []
    train.run(tiny.task(kind, data, config), config, tmp_path / "killed", steps.append)
    assert steps == [6, 7, 8, 9, 10]
    straight, resumed = saved(tmp_path / "straight"), saved(tmp_path / "killed")
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def test_sigterm_stops_with_a_checkpoint(data, tmp_path):
    def terminate(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    train.run(tiny.task("vocoder", data, SHORT), SHORT, tmp_path, terminate)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert json.loads((newest / "state.json").read_text())["step"] == 3
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("kind", "figure", "share"), [("vocoder", "nll", None), ("acoustic", "mel", 0.6)]
)
def test_overfits_one_batch(kind, figure, share, data, tmp_path):
    config = replace(SHORT, steps=60, learning_rate=1e-2, weight_decay=0.0)
    task = tiny.task(kind, data, config)
    batch = task.batch(0)
    task.batch = lambda step: batch
    train.run(task, config, tmp_path)
    values = plots.read_log(tmp_path)[figure, "train"]
    first, last = values[1], min(values[s] for s in range(50, 61))
    if share is None:  # nats per sample of a density: the difference means something, no ratio does
        assert last < first - 0.5
    else:
        assert last < share * first


def test_exported_averages_load_into_fresh_models(data, tmp_path):
    for kind in ("vocoder", "acoustic"):
        config = replace(SHORT, steps=4)
        train.run(tiny.task(kind, data, config), config, tmp_path / kind)
    runs = [str(tmp_path / "vocoder"), str(tmp_path / "acoustic")]
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    options = ["-o", str(tmp_path / "weights"), "--set", "vocoder.temperature=0.5"]
    train_command.run(parser.parse_args(["export", *runs, *options]))
    vocoder = replace(tiny.VOCODER, temperature=0.5)
    configs = {"vocoder": vocoder, "acoustic": tiny.ACOUSTIC, "encoder": tiny.ENCODER}
    for kind, model in (("vocoder", Vocoder), ("acoustic", Acoustic), ("encoder", SpeakerEncoder)):
        path = tmp_path / "weights" / f"{kind}.safetensors"
        state, values, _ = checkpoint.load_model(path, kind)
        assert from_dict(type(configs[kind]), values) == configs[kind]
        model(configs[kind]).load_state_dict(state)
    average = saved(tmp_path / "vocoder")["ema.safetensors", "skip_bias"]
    state, _, _ = checkpoint.load_model(tmp_path / "weights/vocoder.safetensors", "vocoder")
    torch.testing.assert_close(state["skip_bias"], average, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reason", [None, "this processor lacks it"])
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, reason):
    monkeypatch.setattr("engine.kernels.isas", lambda: {"avx512_bf16": reason})
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    settings = lambda *more: train_command._settings(  # noqa: E731
        parser.parse_args(["vocoder", "data", "-o", "run", *more])
    )
    assert settings()[1]["bfloat16"] == (reason is None)
    assert settings("--set", "bfloat16=true")[1]["bfloat16"] is True


def test_averaged_weights_lag_behind(data):
    model = tiny.task("vocoder", data, SHORT).model
    ema = train.Ema.of(model, decay=0.5)
    with torch.no_grad():
        model.skip_bias += 1
    ema.update(model, step=10**6)
    torch.testing.assert_close(ema.average["skip_bias"], torch.full((8,), 0.5))


def test_a_damaged_newest_checkpoint_is_refused(data, tmp_path):
    config = replace(SHORT, steps=2)
    train.run(tiny.task("vocoder", data, config), config, tmp_path)
    file = next(iter(sorted(checkpoint.latest(tmp_path).glob("*.safetensors"))))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 0x40
    file.write_bytes(damaged)
    with pytest.raises(WeightsError):
        train.run(tiny.task("vocoder", data, config), replace(config, steps=3), tmp_path)


def test_a_run_of_another_config_is_refused(data, tmp_path):
    config = replace(SHORT, steps=1)
    task = tiny.task("vocoder", data, config)
    train.run(task, config, tmp_path)
    other = tiny.task("vocoder", data, config)
    other.config = replace(tiny.VOCODER, temperature=0.5)  # same weights, another model
    with pytest.raises(ConfigError, match="another config"):
        train.run(other, config, tmp_path)
    assert to_dict(other.config) != to_dict(task.config)


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_data_is_an_error(kind):
    few = tiny.store(speakers=1, each=1)
    short = Store(few.utterances, np.zeros(30, "<i2"), np.array([10, 20, 30]))
    with pytest.raises(InputError):
        tiny.task(kind, short if kind == "vocoder" else few, SHORT)


class Writer:
    """Keeps what TensorBoard would be given."""

    def __init__(self):
        self.audio, self.figures = {}, {}

    def add_audio(self, tag, samples, step, sample_rate):
        self.audio[tag] = samples

    def add_figure(self, tag, figure, step):
        figure.canvas.draw()
        self.figures[tag] = figure


@pytest.mark.parametrize("kind", KINDS)
def test_show(kind, data):
    task, writer = tiny.task(kind, data, SHORT), Writer()
    task.model.eval()
    with torch.no_grad():
        task.show(writer, 0)
    if kind == "vocoder":
        assert set(writer.audio) == {f"{n}/{w}" for n in (0, 1) for w in
                                     ("recorded", "copy synthesis")}  # fmt: skip
        for tag, samples in writer.audio.items():
            assert samples.shape == writer.audio[f"{tag[0]}/recorded"].shape
            assert 0 < samples.abs().max() <= 1
    if kind == "acoustic":
        assert set(writer.figures) == {f"{n}/{w}" for n in (0, 1) for w in ("alignment", "mel")}
        true, forced, free = writer.figures["0/alignment"].axes[0].get_lines()
        assert len(true.get_ydata()) == len(forced.get_ydata())
        assert len(free.get_ydata()) > 0
        assert set(writer.audio) == {"0/recorded", "1/recorded"}
    if kind == "encoder":
        points = [p.get_offsets() for p in writer.figures["voices"].axes[0].collections]
        assert len(points) == 2  # one of twenty speakers is held out
        assert all(np.isfinite(p).all() and len(p) == 6 for p in points)


def test_curves_draw_what_was_logged_last(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    logged = ((1, 3), (2, 9), (2, 2))
    lines = [{"step": s, "time": 0, "group": "train", "loss": v} for s, v in logged]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "ti')
    assert plots.read_log(run) == {("loss", "train"): {1: 3, 2: 2}}
    plots.curves([run], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="training run"):
        plots.curves([tmp_path], tmp_path / "out.png")
    with pytest.raises(InputError, match="xyz"):
        plots.curves([run], tmp_path / "out.xyz")


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0, decay_share=0.5)
    rates = [train.learning_rate(config, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[99] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(rates[50:]))


