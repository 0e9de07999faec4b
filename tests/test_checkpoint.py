"""Weights and training state: exact, whole or absent, and resumable to the bit."""

import json
import os
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from engine import checkpoint, files
from engine.errors import WeightsError

CONFIG = {"layers": 3, "audio": {"sample_rate": 24_000}, "rates": [1.5, 2]}


# --- tensors ------------------------------------------------------------------------------------


def test_tensors_of_every_kind_round_trip(tmp_path):
    shared = torch.arange(6.0)
    tensors = {
        "float": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "bfloat": torch.randn(4).bfloat16(),
        "double": torch.randn(2, 1, 2).double(),
        "int": torch.tensor([-(2**62), 7]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12).reshape(3, 4).t(),
        "view": shared[2:],
        "whole": shared,
    }
    checkpoint.save_tensors(tmp_path / "t.safetensors", tensors, {"a": "ü", "b": ""})
    loaded, metadata = checkpoint.load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"a": "ü", "b": ""}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    plain = safetensors.torch.load_file(tmp_path / "t.safetensors")  # any reader can
    assert torch.equal(plain["float"], tensors["float"])


def test_digest_sees_every_part():
    base = {"a": torch.zeros(2, 3)}
    others = [
        ({"b": torch.zeros(2, 3)}, {}),
        ({"a": torch.zeros(3, 2)}, {}),
        ({"a": torch.zeros(2, 3, dtype=torch.int32)}, {}),
        ({"a": torch.full((2, 3), -0.0)}, {}),
        (base, {"k": "v"}),
    ]
    digests = {checkpoint.digest(base, {}), *(checkpoint.digest(*other) for other in others)}
    assert len(digests) == 6
    assert checkpoint.digest({"a": torch.zeros(3, 2).t()}, {}) == checkpoint.digest(base, {})


def test_limits_and_foreign_files(tmp_path):
    path = tmp_path / "t.safetensors"
    checkpoint.save_tensors(path, {"a": torch.zeros(1000)}, {})
    size = path.stat().st_size
    checkpoint.load_tensors(path, limit_bytes=size)
    with pytest.raises(WeightsError, match="larger"):
        checkpoint.load_tensors(path, limit_bytes=size - 1)
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, {"made": "elsewhere"})
    with pytest.raises(WeightsError, match="sha256"):
        checkpoint.load_tensors(path)
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="metadata"):
        checkpoint.load_tensors(path)
    os.mkfifo(tmp_path / "pipe")
    for missing in ("none", "pipe", "."):
        with pytest.raises(WeightsError, match="no such file"):
            checkpoint.load_tensors(tmp_path / missing)
    with pytest.raises(WeightsError, match="folder"):
        checkpoint.save_tensors(tmp_path / "none" / "t.safetensors", {}, {})
    with pytest.raises(WeightsError, match="strings"):
        checkpoint.save_tensors(path, {}, {"steps": 3})


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    checkpoint.save_tensors(path, {"a": torch.zeros(3)}, {})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), files.atomic_file(path) as file:
        file.write(b"half of it")
        raise RuntimeError

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        checkpoint.save_tensors(path, {"a": torch.ones(3)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- models -------------------------------------------------------------------------------------


def test_model_round_trip(tmp_path):
    path, model = tmp_path / "m.safetensors", nn.BatchNorm1d(4)
    model(torch.randn(8, 4))
    extra = {"steps": "100", "card": "line\nline"}
    checkpoint.save_model(path, model.state_dict(), CONFIG, extra, kind="vocoder")
    state, config, found = checkpoint.load_model(path, "vocoder")
    assert (config, found) == (CONFIG, extra)
    again = nn.BatchNorm1d(4)
    again.load_state_dict(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert state["num_batches_tracked"].dtype == torch.int64
    assert checkpoint.sha256(path) == files.sha256(path) and len(files.sha256(path)) == 64


def test_float16_halves_the_file_and_loads_as_float32(tmp_path):
    state = {"w": torch.randn(100, 100), "n": torch.tensor([3])}
    for name, dtype in (("full", None), ("half", torch.float16)):
        checkpoint.save_model(tmp_path / name, state, CONFIG, kind="encoder", dtype=dtype)
    assert (tmp_path / "half").stat().st_size < 0.52 * (tmp_path / "full").stat().st_size
    loaded, _, _ = checkpoint.load_model(tmp_path / "half", "encoder")
    assert loaded["w"].dtype == torch.float32 and loaded["n"].dtype == torch.int64
    assert torch.equal(loaded["w"], state["w"].half().float())


def test_models_that_must_not_load(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(WeightsError, match="kind"):
        checkpoint.save_model(path, {}, CONFIG, kind="decoder")
    with pytest.raises(WeightsError, match=r"w is not finite in torch\.float16"):
        big = {"w": torch.tensor([1e6])}
        checkpoint.save_model(path, big, CONFIG, kind="encoder", dtype=torch.float16)
    assert not path.exists()
    checkpoint.save_model(path, {"w": torch.ones(3)}, CONFIG, kind="encoder")
    with pytest.raises(WeightsError, match="'encoder', expected 'vocoder'"):
        checkpoint.load_model(path, "vocoder")
    good = {"format": "1", "kind": "encoder", "config": "{}"}
    for change, word in (
        ({"format": "2"}, "format '2'"),
        ({"config": "{"}, "not JSON"),
        ({"config": "3"}, "not JSON"),
    ):
        checkpoint.save_tensors(path, {"w": torch.ones(3)}, {**good, **change})
        with pytest.raises(WeightsError, match=word):
            checkpoint.load_model(path, "encoder")
    checkpoint.save_tensors(path, {"w": torch.tensor([float("nan")])}, good)
    with pytest.raises(WeightsError, match="finite"):
        checkpoint.load_model(path, "encoder")


def test_damaged_weights_are_refused(tmp_path):
    path, rng = tmp_path / "m.safetensors", random.Random(0)
    checkpoint.save_model(path, {"w": torch.randn(64, 64)}, CONFIG, kind="encoder")
    whole = path.read_bytes()
    for i in range(100):
        broken = bytearray(whole)
        broken[rng.randrange(8, len(whole))] ^= 1 << rng.randrange(8)
        data = broken if i % 2 else whole[: rng.randrange(len(whole))]
        path.unlink()
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            checkpoint.load_model(path, "encoder")


# --- training state -----------------------------------------------------------------------------


class Run:
    """A training run small enough to repeat: dropout, AdamW with two groups, an EMA, data RNGs."""

    def __init__(self, seed, rate=1e-2, width=8):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1))
        groups = [
            {"params": self.model[0].parameters(), "lr": rate},
            {"params": self.model[2].parameters(), "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95))
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step, self.losses = 0, []

    def train(self, steps):
        for _ in range(steps):
            x = torch.from_numpy(np.random.standard_normal((16, 4)).astype("f4")) * random.random()
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            for name, value in self.model.state_dict().items():
                self.ema[name].lerp_(value, 0.1)
            self.optimiser.param_groups[0]["lr"] *= 0.9  # a schedule lives in the groups
            self.step += 1
            self.losses.append(loss.item())

    def save(self, folder, **kwargs):
        return checkpoint.save_state(
            folder,
            step=self.step,
            model=self.model,
            optimiser=self.optimiser,
            config=CONFIG,
            ema=self.ema,
            extra={"epoch": 2, "position": [1, 2]},
            **kwargs,
        )


def test_resume_is_bit_exact(tmp_path):
    straight = Run(seed=1)
    straight.train(10)

    first = Run(seed=1)
    first.train(5)
    first.save(tmp_path)
    torch.rand(7), np.random.rand(), random.random()  # what happens meanwhile must not matter

    second = Run(seed=99, rate=0.5)
    found = checkpoint.load_state(tmp_path, model=second.model, optimiser=second.optimiser)
    assert (found.step, found.config) == (5, CONFIG)
    assert found.extra == {"epoch": 2, "position": [1, 2]}
    second.ema = found.ema
    second.train(5)

    assert first.losses + second.losses == straight.losses
    for name, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
        assert torch.equal(second.ema[name], straight.ema[name])
    a, b = straight.optimiser.state_dict(), second.optimiser.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for index, entries in a["state"].items():
        assert entries.keys() == b["state"][index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in entries.items():
            assert torch.equal(b["state"][index][name], value)


def test_a_run_without_steps_or_ema_can_be_saved(tmp_path):
    run, other = Run(seed=1), Run(seed=2)
    checkpoint.save_state(tmp_path, step=0, model=run.model, optimiser=run.optimiser, config={})
    found = checkpoint.load_state(tmp_path, model=other.model, optimiser=other.optimiser)
    assert (found.step, found.ema, found.extra) == (0, None, {})
    assert torch.equal(other.model[0].weight, run.model[0].weight)


def test_only_the_newest_are_kept(tmp_path):
    run = Run(seed=1)
    for _ in range(4):
        run.train(1)
        path = run.save(tmp_path)
        assert checkpoint.latest(tmp_path) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    run.save(tmp_path)  # the same step again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    run.train(1)
    run.save(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_a_run_that_went_back_goes_on_from_there(tmp_path):
    run = Run(seed=1)
    for step in (7, 8, 3):  # for example after a bad learning rate
        run.step = step
        path = run.save(tmp_path)
        assert checkpoint.latest(tmp_path) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000008"]


def test_latest_ignores_what_is_incomplete(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "none") is None
    run = Run(seed=1)
    whole = run.save(tmp_path)
    run.train(1)
    broken = run.save(tmp_path)
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-99").mkdir()
    (tmp_path / "step-00000008").touch()
    (tmp_path / ".step-00000007.abc.tmp").mkdir()
    assert checkpoint.latest(tmp_path) == broken
    (broken / "optimiser.safetensors").unlink()
    assert checkpoint.latest(tmp_path) == whole
    (whole / "state.json").write_text('{"format": "1"')
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(WeightsError, match="new run"):
        checkpoint.load_state(tmp_path, model=run.model, optimiser=run.optimiser)


def test_a_crash_while_saving_leaves_the_older_state(tmp_path, monkeypatch):
    run = Run(seed=1)
    run.train(1)
    older = run.save(tmp_path)
    run.train(1)
    calls, save_tensors = [], checkpoint.save_tensors

    def dies(path, *args):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save_tensors(path, *args)

    monkeypatch.setattr(checkpoint, "save_tensors", dies)
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path, keep=1)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == older
    newer = run.save(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == [newer]  # what the crash left is gone too


def test_damage_and_other_shapes_are_refused(tmp_path):
    run = Run(seed=1)
    run.train(1)
    path = run.save(tmp_path)
    wider = Run(seed=1, width=9)
    with pytest.raises(WeightsError, match="another model"):
        checkpoint.load_state(path, model=wider.model, optimiser=wider.optimiser)
    single = torch.optim.AdamW(run.model.parameters())
    with pytest.raises(WeightsError, match="optimiser"):
        checkpoint.load_state(path, model=run.model, optimiser=single)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged; delete"):
        checkpoint.load_state(tmp_path, model=run.model, optimiser=run.optimiser)


def test_states_without_a_sequence_are_ordered_by_step(tmp_path):
    run = Run(seed=1)
    for step in (3, 12):
        run.step = step
        path = run.save(tmp_path)
        document = json.loads((path / "state.json").read_text())
        del document["sequence"]
        (path / "state.json").write_text(json.dumps(document))
    assert checkpoint.latest(tmp_path) == path
    run.step = 5
    path = run.save(tmp_path)
    assert checkpoint.latest(tmp_path) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000012"]
