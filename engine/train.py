"""One training loop for every model: resumable to the exact step, no model code.

A task (see `tasks.py`) gives a model, a batch for every step number and a loss. All randomness of
a step comes from (seed, step), so a run that was killed and resumed is the run that was not.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from engine import checkpoint
from engine.config import TrainConfig, to_dict
from engine.errors import ConfigError


class Task(Protocol):
    """What the loop needs to know of a model."""

    kind: str  # of checkpoint.KINDS
    config: Any  # of the model
    extra: dict[str, Any]  # plain JSON to keep in checkpoints, beside the config

    @property
    def model(self) -> nn.Module:
        """What is trained; the same object every time."""

    def batch(self, step: int) -> Any:
        """The examples of one step; a function of the step alone."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """A differentiable scalar and figures to log."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; the model is in eval mode and holds the averaged weights."""

    def show(self, writer: Any, step: int) -> None:
        """Plots and audio of held-out data for TensorBoard."""


@dataclass
class Ema:
    """Exponential moving average of the weights: what is validated and exported."""

    decay: float
    average: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, decay: float) -> Ema:
        return cls(decay, {k: v.detach().clone() for k, v in model.state_dict().items()})

    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1 - decay)
            else:
                self.average[name].copy_(value)


class _Averaged:
    """Context: the model holds the averaged weights and is in eval mode."""

    def __init__(self, model: nn.Module, ema: Ema):
        self.model, self.ema = model, ema

    def __enter__(self) -> None:
        self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.average)
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.own)
        self.model.train()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then linear decay to 5 % over the last `decay_share` of steps."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    left = (config.steps - step) / max(config.steps * config.decay_share, 1)
    return config.learning_rate * warm * min(1.0, max(left, 0.05))


def keep_memory() -> None:
    """Let glibc keep freed memory: mapping and zeroing every large activation anew is 7x slower."""
    if sys.platform == "linux":
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:  # not glibc
            return
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def run(
    task: Task,
    config: TrainConfig,
    folder: str | Path,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train until `config.steps`, from the newest checkpoint in `folder` if there is one.

    SIGINT and SIGTERM stop after the step in hand, with a checkpoint.

    Returns:
        The last validation figures.
    Raises:
        ConfigError: the folder holds a run of another config.
        WeightsError: its newest checkpoint is damaged.
    """
    folder = Path(folder)
    keep_memory()
    optimiser = torch.optim.AdamW(
        task.model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    ema = Ema.of(task.model, config.ema_decay)
    first = 0
    if checkpoint.latest(folder) is not None:
        state = checkpoint.load_state(folder, model=task.model, optimiser=optimiser)
        if state.config != json.loads(json.dumps(to_dict(task.config))):
            raise ConfigError(f"{folder}: holds a run of another config; use another folder")
        first = state.step
        ema.average |= state.ema or {}
    writer = _writer(folder)
    stopping: list[int] = []
    handlers = {s: signal.signal(s, lambda n, _: stopping.append(n)) for s in _signals()}
    figures: dict[str, float] = {}

    def save(step: int) -> None:
        checkpoint.save_state(
            folder, step=step, model=task.model, optimiser=optimiser, ema=ema.average,
            config=to_dict(task.config), extra={"train": to_dict(config), **task.extra},
        )  # fmt: skip

    bar = tqdm(
        total=config.steps, initial=first, unit="step", disable=not config.progress,
        mininterval=1 if sys.stderr.isatty() else 30, desc=task.kind,
    )  # fmt: skip
    saved = time.monotonic()
    task.model.train()
    step = first
    try:
        while step < config.steps and not stopping:
            values = _step(task, config, optimiser, step)
            step += 1
            ema.update(task.model, step)
            bar.update()
            if step % config.log_every == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()})
                _log(writer, folder, "train", values, step)
            if step % config.validate_every == 0 or step == config.steps:
                with _Averaged(task.model, ema), torch.no_grad():
                    figures = task.validate()
                    _log(writer, folder, "held-out", figures, step)
                    if writer is not None:
                        task.show(writer, step)
            if time.monotonic() - saved > config.save_every_s:
                save(step)
                saved = time.monotonic()
            if on_step is not None:
                on_step(step)
        if step > first:
            save(step)
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if writer is not None:
            writer.close()
    return figures


def _signals() -> tuple[signal.Signals, ...]:
    import threading

    inside = threading.current_thread() is threading.main_thread()
    return (signal.SIGINT, signal.SIGTERM) if inside else ()


def _step(
    task: Task, config: TrainConfig, optimiser: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    torch.manual_seed(config.seed * 1_000_003 + step)  # dropout of this step
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(config, step)
    optimiser.zero_grad(set_to_none=True)
    batch = task.batch(step)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        loss, values = task.loss(batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(task.model.parameters(), config.clip_norm)
    if torch.isfinite(norm):  # one bad batch must not end a run of hours
        optimiser.step()
    return {**values, "gradient_norm": float(norm)}


def _writer(folder: Path) -> Any:
    """TensorBoard writer, or None without the `train` extra (it draws with matplotlib)."""
    try:
        import matplotlib  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _log(writer: Any, folder: Path, group: str, values: dict[str, float], step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a") as out:
        stamp = round(time.time(), 1)
        out.write(json.dumps({"step": step, "time": stamp, "group": group, **values}) + "\n")
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(f"{group}/{name}", value, step)
