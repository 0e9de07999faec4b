"""Speaker adaptation: fit the embedding, or the generator too, to a person's speech and its text
(arXiv:1802.06006, section 3.2).

How many steps is decided by a speaker metric on audio held back from the fit, never fixed. Every
few seconds the voice says two sentences of its own; the verifier compares them with the held-back
audio, and a voice that begins to mumble or skip is not taken, however much it sounds alike. The
first candidate is the speaker encoder's voice, so adaptation never ends below it on this metric.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from engine import adapt_weights
from engine.adapt_align import Spoken, align_recording, cepstra, dynamic_time_warp
from engine.config import AcousticConfig
from engine.errors import InputError, WeightsError
from engine.models.acoustic import Acoustic
from engine.models.verifier import SpeakerVerifier
from engine.symbols import text_ids
from engine.text import front_end
from engine.train import keep_memory

if TYPE_CHECKING:
    from engine.engine import Engine

BUDGET_S = {"adapt-embedding": 60.0, "adapt-model": 300.0}
EVERY = 12  # steps between two looks at the metric
PATIENCE = 5  # looks without a better voice, then it ends
MAX_STEPS = 2_000
SECONDS = (2.0, 90.0)  # of speech in all; more is not needed and would cost memory
HELD_BACK = 0.3  # share of the speech that only the metric hears
HELD_BACK_S = 1.0  # at least so much of it
RANK = 8
# Alone, the embedding must go far to change much; beside weights it need not, and going far is what
# makes a voice mumble.
EMBEDDING_RATE, WEIGHT_RATE = 0.05, 2e-3
SELF_FED = 3  # of 4 steps the decoder hears its own mel, as it will when it speaks
ATTENTION_SHARE = 0.1  # of the attention's cross-entropy in the loss: the path is an estimate
# Distance from the sentences as the encoder's voice says them, beyond which they are unclear.
# Another embedding changes the rhythm, too, which alone makes 0.6; the weights leave it alone.
MUMBLED = {"adapt-embedding": 0.65, "adapt-model": 0.3}
GAIN = 0.1  # log-odds by which a later voice must be better than an earlier, clearer one
SENTENCES = (
    "The morning train was late because of heavy snow on the line.",
    "Could you tell me where the nearest post office is?",
)


class Look(NamedTuple):
    """One look at the metric: what a callback is told."""

    step: int
    seconds: float  # since the start
    score: float  # the verifier's log-odds that voice and held-back audio are one person
    clarity: float  # distance of its sentences from what the encoder's voice says; less is clearer
    best: bool


OnLook = Callable[[Look], bool | None]  # False ends the adaptation; the best voice so far is kept


@dataclass
class Adapted:
    """What adaptation found: the best voice and how it came about."""

    embedding: np.ndarray
    difference: dict[str, np.ndarray]
    looks: list[Look] = field(default_factory=list)
    stopped: str = "steps"  # metric, budget, cancelled, steps
    seconds: float = 0.0

    def metadata(self) -> dict[str, str]:
        """For the voice file."""
        best = max((look for look in self.looks if look.best), key=lambda look: look.step)
        values = sum(a.size for a in self.difference.values())
        return {
            "adapt_steps": str(best.step),
            "adapt_seconds": f"{self.seconds:.1f}",
            "adapt_stopped": self.stopped,
            "adapt_score": f"{self.looks[0].score:.2f} -> {best.score:.2f}",
            "parameters": str(self.embedding.size + values),
            "peak_memory_mb": f"{_peak_mb():.0f}",
        }


def adapt(
    engine: Engine, samples: Sequence[np.ndarray], transcripts: Sequence[str],
    embedding: np.ndarray, equaliser: np.ndarray, *, method: str,
    budget_s: float | None = None, rank: int = RANK,
    on_look: OnLook | None = None, progress: bool = True,
) -> Adapted:  # fmt: skip
    """Fit a voice to recordings, starting from the speaker encoder's embedding.

    Args:
        samples: float32 [samples] each, prepared; transcripts: what is said in each.
        equaliser: [n_mels] that the voice will have, so there is no need to learn the recording's
            colour; [0] numbers: none.
        method: "adapt-embedding" or "adapt-model".
        budget_s: seconds it may take; None: 60 for the embedding, 300 for the model.
        rank: of the weight difference; 8 makes a voice file of about a quarter megabyte.
        on_look: called at every look at the metric; returning False ends it. Ctrl-C does, too.
    Raises:
        InputError: too little speech, or transcripts that do not fit it.
        WeightsError: the model folder has no verifier.
    """
    begin = time.monotonic()
    budget_s = BUDGET_S[method] if budget_s is None else budget_s
    _check(engine, samples, budget_s, rank)
    keep_memory()
    start = torch.tensor(embedding)
    aligned = [
        align_recording(engine.acoustic, engine.decoder, one, text, start, engine.backend)
        for one, text in zip(samples, transcripts, strict=True)
    ]
    change = torch.zeros(engine.config.acoustic.audio.n_mels, 1)
    if len(equaliser):
        change = torch.tensor(equaliser)[:, None]
    training, held_back = split(aligned, engine.config.acoustic)
    training = [one._replace(mel=one.mel - change) for one in training]
    judge = _Judge(engine, held_back, method, change)
    rank = rank if method == "adapt-model" else 0
    fit = _Fit(*adapt_weights.trainable(engine.acoustic, rank), start, training)
    found = Adapted(embedding, {})
    bar = tqdm(total=round(budget_s), unit="s", desc=method, disable=not progress)
    try:
        found.stopped = _run(fit, judge, found, begin, budget_s, on_look, bar)
    except KeyboardInterrupt:
        found.stopped = "cancelled"
    finally:
        bar.close()
    found.seconds = time.monotonic() - begin
    return found


def _run(
    fit: _Fit, judge: _Judge, found: Adapted, begin: float, budget_s: float,
    on_look: OnLook | None, bar: tqdm,
) -> str:  # fmt: skip
    """Steps and looks until something ends them; `found` always holds the best voice so far."""
    best, since = -float("inf"), 0
    last_look = time.monotonic()
    for step in range(MAX_STEPS + 1):
        if step:
            fit.step(step)
        spent = time.monotonic() - begin
        late = spent > budget_s - 1.5 * (time.monotonic() - last_look)  # time for one look more
        if step % EVERY and not late:
            continue
        last_look = time.monotonic()
        score, clarity = judge(fit.acoustic, fit.embedding.detach())
        better = score > best + GAIN and clarity <= judge.limit
        found.looks.append(Look(step, time.monotonic() - begin, score, clarity, better))
        since = 0 if better else since + 1
        if better:
            best = score
            found.embedding = fit.embedding.detach().numpy().copy()
            found.difference = adapt_weights.difference(fit.acoustic) if fit.weights else {}
        bar.n = min(round(time.monotonic() - begin), bar.total)
        bar.set_postfix_str(f"step {step}, same speaker {found.looks[0].score:.1f} -> {best:.1f}")
        if on_look is not None and on_look(found.looks[-1]) is False:
            return "cancelled"
        if late:
            return "budget"
        if since >= PATIENCE:
            return "metric"
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


def split(aligned: Sequence[Spoken], config: AcousticConfig) -> tuple[list[Spoken], list[Tensor]]:
    """Cut the end of every sample off at a symbol: (what is fitted, mels [n_mels, frames] kept).

    A person varies from recording to recording, so each gives its share to both sides.
    """
    training, held_back = [], []
    r = config.reduction_factor
    least = HELD_BACK_S * config.decoder_rate
    for one in aligned:
        steps = one.path.shape[1]
        cut = round((1 - HELD_BACK) * steps)
        if steps - cut < least and len(aligned) > 1:  # another sample is held back instead
            training.append(one)
            continue
        path = one.path[:, :cut]
        ids = one.text_ids[:, : int(path[0, -1]) + 1]
        training.append(Spoken(ids, one.mel[..., : cut * r], path, one.cost))
        held_back.append(one.mel[0, :, cut * r :])
    if not held_back:  # many short samples: the shortest of them speaks for itself
        shortest = min(range(len(training)), key=lambda i: training[i].mel.shape[2])
        held_back.append(training.pop(shortest).mel[0])
    return training, held_back


class _Fit:
    """The gradient steps: L1 of the mel, teacher-forced, and a little of the attention's loss."""

    def __init__(
        self, acoustic: Acoustic, weights: list[nn.Parameter], embedding: Tensor,
        training: list[Spoken],
    ) -> None:  # fmt: skip
        self.acoustic, self.weights, self.training = acoustic, weights, training
        self.embedding = embedding.clone().requires_grad_(True)
        self.everything = [self.embedding, *weights]
        rate = WEIGHT_RATE if weights else EMBEDDING_RATE
        self.optimiser = torch.optim.Adam(self.everything, rate, betas=(0.9, 0.98))

    def step(self, step: int) -> None:
        """Fit one of the samples, in turn."""
        one = self.training[step % len(self.training)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            self.acoustic.training = True  # dropout of the prenet, not of the blocks
            loss = self._loss(one, step % 4 < SELF_FED)
            self.acoustic.training = False
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.everything, 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()

    def _loss(self, one: Spoken, self_fed: bool) -> Tensor:
        frames = torch.tensor([one.mel.shape[2]])
        lengths = torch.tensor([one.text_ids.shape[1]])
        out = self.acoustic(
            one.text_ids, lengths, one.mel, frames, one.path, self.embedding[None],
            torch.tensor([self_fed]),
        )  # fmt: skip
        far = (out.mel - one.mel).abs().mean() + (out.decoder_mel - one.mel).abs().mean()
        moves = (one.path - F.pad(one.path, (1, 0))[:, :-1])[0]
        attention = torch.stack([F.cross_entropy(s[0], moves) for s in out.scores]).mean()
        return far / self.acoustic.config.audio.mel_std + ATTENTION_SHARE * attention


def _verifier(engine: Engine) -> SpeakerVerifier:
    if engine.verifier is None:
        raise WeightsError(
            f"{engine.folder}: no verifier.safetensors, which decides when adaptation ends; train "
            "one with `clonewave train verifier` and export it there"
        )
    return engine.verifier


class _Judge:
    """The speaker metric, and how far a voice's sentences are from what they should be."""

    def __init__(
        self, engine: Engine, held_back: list[Tensor], method: str, equaliser: Tensor
    ) -> None:
        self.verifier = _verifier(engine)
        self.backend, self.equaliser = engine.backend, equaliser
        self.texts = [text_ids(s.symbols()) for text in SENTENCES for s in front_end(text)]
        self.target = F.normalize(self._embed(held_back).mean(0, keepdim=True), dim=-1)
        self.limit = MUMBLED[method]
        self.before: list[np.ndarray] = []  # what the encoder's voice says

    @torch.no_grad()
    def _embed(self, mels: list[Tensor]) -> Tensor:
        frames = torch.tensor([m.shape[1] for m in mels])
        padded = nn.utils.rnn.pad_sequence([m.T for m in mels], batch_first=True)
        return self.verifier(padded.transpose(1, 2), frames)

    @torch.no_grad()
    def __call__(self, acoustic: Acoustic, embedding: Tensor) -> tuple[float, float]:
        """(same-speaker score, distance of the sentences from those of the first call)."""
        network = acoustic.network()
        lengths = [torch.tensor([len(ids)]) for ids in self.texts]
        mels = [
            acoustic.generate(torch.tensor([ids]), n, embedding[None], network, self.backend).mel[0]
            for ids, n in zip(self.texts, lengths, strict=True)
        ]
        said = [cepstra(mel) for mel in mels]
        self.before = self.before or said
        costs = [
            dynamic_time_warp(a, b)[1] for a, b in zip(said, self.before, strict=True)
        ]
        heard = self._embed([mel + self.equaliser for mel in mels])
        score = self.verifier.score(heard, self.target).mean()
        return float(score), float(np.mean(costs))
