"""Speaker adaptation: fit the embedding, or the generator too, to a person's speech and its phones
(arXiv:1802.06006, section 3.2).

How many steps is decided on audio held back from the fit, never fixed: every few seconds the voice
says what was said there, at the same times, and the nearer it comes the better. (The paper asks a
speaker verification model; ours learned synthetic people and follows the room more than the person,
see docs/experiments.md.) It also says six sentences of its own, and once it mumbles them it is not
taken, however near it is. The first candidate is the speaker encoder's voice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from engine import adapt_weights
from engine.adapt_fit import Fit
from engine.adapt_judge import Judge
from engine.adapt_sample import Spoken, prepare, say, split
from engine.errors import InputError, WeightsError
from engine.train import keep_memory

if TYPE_CHECKING:
    from engine.engine import Engine

BUDGET_S = {"adapt-embedding": 60.0, "adapt-model": 300.0}
EVERY = 12  # steps between two looks at the metric
PATIENCE = 3  # looks without a better voice, then it ends
MAX_STEPS = 2_000
SECONDS = (1.0, 90.0)  # of speech in all; more is not needed and would cost memory
RANK = 8
MUMBLED = 0.1  # log-probability of its phones that a voice may lose against the encoder's voice
GAIN = 0.003  # part of the distance by which a later voice must be nearer than an earlier one


class Look(NamedTuple):
    """One look at the metric: what a callback is told."""

    step: int
    seconds: float  # since the start
    distance: float  # from the held-back speech, in standard deviations of the mel
    clarity: float  # mean log-probability of the phones of its sentences; more is clearer
    best: bool


OnLook = Callable[[Look], bool | None]  # False ends the adaptation; the best voice so far is kept


@dataclass
class Adapted:
    """What adaptation found: the best voice and how it came about."""

    embedding: np.ndarray
    equaliser: np.ndarray
    difference: dict[str, np.ndarray] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    stopped: str = "steps"  # distance, budget, cancelled, steps
    seconds: float = 0.0

    def metadata(self) -> dict[str, str]:
        """For the voice file."""
        best = max((look for look in self.looks if look.best), key=lambda look: look.step)
        values = sum(a.size for a in self.difference.values())
        return {
            "adapt_steps": str(best.step),
            "adapt_seconds": f"{self.seconds:.1f}",
            "adapt_stopped": self.stopped,
            "adapt_distance": f"{self.looks[0].distance:.3f} -> {best.distance:.3f}",
            "parameters": str(self.embedding.size + values),
            "peak_memory_mb": f"{_peak_mb():.0f}",
        }


def adapt(
    engine: Engine, samples: Sequence[np.ndarray], transcripts: Sequence[str | None],
    embedding: np.ndarray, equaliser: np.ndarray, average: np.ndarray, *, method: str,
    budget_s: float | None = None, rank: int = RANK,
    on_look: OnLook | None = None, progress: bool = True,
) -> Adapted:  # fmt: skip
    """Fit a voice to recordings, starting from the speaker encoder's embedding.

    Args:
        samples: float32 [samples] each, prepared; transcripts: what is said in each, or None.
        equaliser: [n_mels] of the encoder's voice, so that there is no need to learn the
            recording's colour; [0] numbers: none, and the adapted voice gets none.
        average: [n_mels] mean spectrum of the recordings, to which the adapted voice is equalised.
        method: "adapt-embedding" or "adapt-model".
        budget_s: seconds it may take; None: 60 for the embedding, 300 for the model.
        rank: of the weight difference; 8 makes a voice file of about 120 KB.
        on_look: called at every look at the metric; returning False ends it. Ctrl-C does, too.
    Raises:
        InputError: too little speech, or transcripts that do not fit it.
        WeightsError: the model folder has no recogniser.
        EngineError: the package that finds the pitch is not installed.
    """
    begin = time.monotonic()
    budget_s = BUDGET_S[method] if budget_s is None else budget_s
    _check(engine, samples, budget_s, rank)
    keep_memory()
    start = torch.tensor(embedding)
    if (recogniser := engine.recogniser) is None:
        raise WeightsError(
            f"{engine.folder}: no recogniser.safetensors, which hears what is said; train one with "
            "`clonewave train recogniser` and export it there"
        )
    aligned = [
        prepare(engine, recogniser, one, text)
        for one, text in zip(samples, transcripts, strict=True)
    ]
    training, held_back = split(aligned, engine.config.acoustic)
    if len(equaliser):
        colour = torch.tensor(equaliser)
        training = [one.without(colour) for one in training]
        held_back = [one.without(colour) for one in held_back]
    judge = Judge(recogniser, average if len(equaliser) else equaliser, engine.backend)
    rank = rank if method == "adapt-model" else 0
    fit = Fit(engine.acoustic, rank, recogniser, start, training, say(engine, start))
    found = Adapted(embedding, equaliser)
    bar = tqdm(total=round(budget_s), unit="s", desc=method, disable=not progress)
    try:
        found.stopped = _run(fit, judge, held_back, found, begin, budget_s, on_look, bar)
    except KeyboardInterrupt:
        if not found.looks:  # there is no voice to keep yet
            raise
        found.stopped = "cancelled"
    finally:
        bar.close()
    found.seconds = time.monotonic() - begin
    return found


def _run(
    fit: Fit, judge: Judge, held_back: list[Spoken], found: Adapted, begin: float, budget_s: float,
    on_look: OnLook | None, bar: tqdm,
) -> str:  # fmt: skip
    """Steps and looks until something ends them; `found` always holds the best voice so far."""
    best, since, clear = float("inf"), 0, 0.0
    last_look = time.monotonic()
    for step in range(MAX_STEPS + 1):
        if step:
            fit.step(step)
        spent = time.monotonic() - begin
        late = spent > budget_s - 1.5 * (time.monotonic() - last_look)  # time for one look more
        if step % EVERY and not late:
            continue
        last_look = time.monotonic()
        distance = fit.distance(held_back)
        clarity, equaliser = judge(fit.acoustic, fit.embedding.detach())
        clear = clear if step else clarity
        better = distance < best * (1 - GAIN) and clarity >= clear - MUMBLED
        found.looks.append(Look(step, time.monotonic() - begin, distance, clarity, better))
        since = 0 if better else since + 1
        if better:
            best = distance
            found.embedding = fit.embedding.detach().numpy().copy()
            found.equaliser = equaliser if step else found.equaliser
            found.difference = adapt_weights.difference(fit.acoustic) if fit.weights else {}
        bar.n = min(round(time.monotonic() - begin), bar.total)
        bar.set_postfix_str(f"step {step}, distance {found.looks[0].distance:.3f} -> {best:.3f}")
        if on_look is not None and on_look(found.looks[-1]) is False:
            return "cancelled"
        if late:
            return "budget"
        if since >= PATIENCE:
            return "distance"
    return "steps"


def _peak_mb() -> float:
    """Most memory this process has held, megabytes; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1000
    except (OSError, LookupError):
        return 0.0


def _check(engine: Engine, samples: Sequence[np.ndarray], budget_s: float, rank: int) -> None:
    seconds = sum(map(len, samples)) / engine.config.acoustic.audio.sample_rate
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise InputError(
            f"{seconds:.1f} s of speech; adaptation takes {SECONDS[0]:.0f} to {SECONDS[1]:.0f} s"
        )
    if not (budget_s > 0 and 1 <= rank <= adapt_weights.MAX_RANK):
        raise InputError(f"budget {budget_s} s, rank {rank}: give some seconds and 1 to 16")
    if engine.device.type != "cpu":
        raise InputError("adaptation runs on the CPU; use Engine(device='cpu')")
