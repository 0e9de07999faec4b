"""`clonewave evaluate --paper`: the evaluation of arXiv:1802.06006, section 4.

Each person's recordings are halved: from the first half come the cloning samples, the second half
is the truth. Clones by every method and from 1, 2, 3, 5 and 10 samples speak; a speaker classifier,
trained on the truth of these people alone, names the speaker, and the verification model compares
each utterance with 1 and 5 true clips of everybody. What a folder is too small for is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from engine import audio, train
from engine.clone import METHODS
from engine.config import ClassifierConfig, TrainConfig
from engine.data import Store, Utterance
from engine.errors import InputError, WeightsError
from engine.evaluate import Speaker, find_speakers, sentences_for
from engine.judge_tasks import ClassifierTask
from engine.model_card import hashes
from engine.models.layers import log_mel
from engine.models.verifier import SpeakerClassifier, SpeakerVerifier
from engine.paper_report import Clone, PaperReport

if TYPE_CHECKING:
    from engine.engine import Engine

COUNTS = (1, 2, 3, 5, 10)
ENROLMENTS = (1, 5)
CLIP_S = (1.0, 1.8)  # shortest and longest cloning sample; the paper's are 3.7 s on average


@dataclass(frozen=True)
class Plan:
    """How large an evaluation is."""

    methods: tuple[str, ...] = METHODS
    counts: tuple[int, ...] = COUNTS
    people: int = 6
    sentences: int = 2
    budget_s: float = 12.0  # of one adaptation
    classifier_steps: int = 300  # 0: no classification
    seed: int = 0
    progress: bool = True


SMOKE = Plan(counts=(1, 2), people=2, sentences=1, budget_s=2.0, classifier_steps=20)


class Person(NamedTuple):
    """Prepared clips, float32 [samples] at the model's rate."""

    speaker: Speaker
    cloning: list[np.ndarray]
    truth: list[np.ndarray]


def evaluate_paper(engine: Engine, folder: Path, plan: Plan) -> PaperReport:
    """Clone, speak, judge.

    Raises:
        InputError: no two people with recordings for both sides.
        WeightsError: the model folder has no verifier.
    """
    verifier = engine.verifier
    if verifier is None:
        raise WeightsError(f"{engine.folder}: no verifier; see `clonewave train verifier`")
    people = [_person(engine, one) for one in find_speakers(folder)]
    people = [one for one in people if one.cloning and one.truth][: plan.people]
    if len(people) < 2:
        raise InputError(f"{folder}: two people with recordings of some seconds are needed")
    judges = _Judges(engine, verifier, people, plan)
    clones: list[Clone] = []
    jobs = [
        (person, method, count)
        for person in people
        for method in plan.methods
        for count in plan.counts
        if count <= len(person.cloning) and (method != "encode-finetuned" or engine.encoder_tuned)
    ]
    for person, method, count in tqdm(jobs, unit="clone", disable=not plan.progress):
        clones.append(_clone(engine, person, method, count, judges, plan))
    names = [person.speaker.name for person in people]
    settings = {
        "weights": hashes(engine.folder), "encoder tuned with the generator": engine.encoder_tuned,
        "people": ", ".join(names), "sentences": plan.sentences, "budget_s": plan.budget_s,
        "seed": plan.seed, "cloning samples of each": [len(p.cloning) for p in people],
        "true clips of each": [len(p.truth) for p in people],
    }  # fmt: skip
    return PaperReport(tuple(clones), judges.real(), settings)


def _person(engine: Engine, speaker: Speaker) -> Person:
    half = (len(speaker.files) + 1) // 2
    return Person(
        speaker, _clips(engine, speaker.files[:half]), _clips(engine, speaker.files[half:])
    )


def _clips(engine: Engine, files: Sequence[Path]) -> list[np.ndarray]:
    """Pieces of equal length of each recording; unusable recordings are left out."""
    config = engine.config.encoder.audio
    shortest, longest = (round(s * config.sample_rate) for s in CLIP_S)
    found = []
    for file in files:
        try:
            samples = audio.prepare(file, config=config).samples
        except InputError:
            continue
        pieces = np.array_split(samples, max(1, round(len(samples) / longest)))
        found += [piece for piece in pieces if len(piece) >= shortest]
    return found


def _clone(
    engine: Engine, person: Person, method: str, count: int, judges: _Judges, plan: Plan
) -> Clone:
    """One voice, what it cost, and what the judges say of it."""
    rate = engine.config.encoder.audio.sample_rate
    chosen = person.cloning[:count]
    options: dict = {"method": method}
    if method.startswith("adapt-"):
        options["budget_s"] = plan.budget_s
    begin = time.perf_counter()
    voice = engine.clone(chosen, rate, **options)
    clone_s = time.perf_counter() - begin
    if voice.metadata.get("adapt_stopped") == "cancelled":
        raise KeyboardInterrupt  # meant for the evaluation, not for one voice of it
    said, begin = [], time.perf_counter()
    for text in sentences_for(person.speaker.number, plan.sentences):
        said.append(engine.synthesize(text, voice, seed=plan.seed))
    speak_s = (time.perf_counter() - begin) / len(said)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.safetensors"
        voice.save(path)
        size = path.stat().st_size
    numbers = voice.embedding.size + sum(a.size for a in voice.adaptation.values())
    same, other, right = judges(person, [speech.samples for speech in said])
    return Clone(
        person.speaker.name, method, count, clone_s, speak_s, numbers, size, same, other, right,
        [round(float(x), 4) for x in voice.embedding],
    )  # fmt: skip


class _Judges:
    """Verification and classification of utterances against the truth of all people."""

    def __init__(
        self, engine: Engine, verifier: SpeakerVerifier, people: list[Person], plan: Plan
    ) -> None:
        self.engine, self.verifier, self.people = engine, verifier, people
        self.enrolled = {k: self._enrol(k) for k in ENROLMENTS}
        self.classifier = self._train(plan) if plan.classifier_steps else None

    @torch.no_grad()
    def _heard(self, model: SpeakerVerifier | SpeakerClassifier, clips: list[np.ndarray]) -> Tensor:
        config = self.engine.config.encoder.audio
        mels = [log_mel(torch.from_numpy(c)[None], config)[0] for c in clips]
        return torch.cat([model(m[None], torch.tensor([m.shape[1]])) for m in mels])

    def _enrol(self, clips: int) -> Tensor | None:
        """[people, channels] mean of the first true clips; None where somebody has too few."""
        if any(len(person.truth) < clips for person in self.people):
            return None
        rows = [self._heard(self.verifier, p.truth[:clips]).mean(0) for p in self.people]
        return F.normalize(torch.stack(rows), dim=-1)

    def _train(self, plan: Plan) -> SpeakerClassifier:
        utterances, parts = [], []
        for person in self.people:
            for i, clip in enumerate(person.truth):
                utterances.append(Utterance(Path(f"{i}"), person.speaker.name, ""))
                parts.append((clip.clip(-1, 1) * 32767).astype("<i2"))
        store = Store(utterances, np.concatenate(parts), np.cumsum([len(p) for p in parts]))
        how = TrainConfig(
            steps=plan.classifier_steps, batch_size=32, warmup_steps=20, bfloat16=False,
            validate_every=10**9, seed=plan.seed, progress=plan.progress,
        )  # fmt: skip
        config = ClassifierConfig(self.engine.config.encoder.audio, speakers=len(self.people))
        task = ClassifierTask(store, config, how, held_out=0.0)
        done: list[int] = []
        with tempfile.TemporaryDirectory() as folder:
            train.run(task, how, folder, done.append)
        if done[-1] < how.steps:  # training ends in peace when it is interrupted; this must not
            raise KeyboardInterrupt
        return task.model.eval()

    def __call__(
        self, person: Person, clips: list[np.ndarray]
    ) -> tuple[dict[int, list[float]], dict[int, list[float]], list[bool]]:
        """Scores against the person and against others, by clips enrolled; named right or not."""
        me = self.people.index(person)
        same: dict[int, list[float]] = {}
        other: dict[int, list[float]] = {}
        embedded = self._heard(self.verifier, clips)
        for k, enrolled in self.enrolled.items():
            if enrolled is not None:
                scores = self.verifier.score(embedded, enrolled).detach()
                others = [i for i in range(len(self.people)) if i != me]
                same[k] = scores[:, me].tolist()
                other[k] = scores[:, others].flatten().tolist()
        if self.classifier is None:
            return same, other, []
        named = self._heard(self.classifier, clips).argmax(1)
        return same, other, (named == me).tolist()

    def real(self) -> Clone:
        """The people's own cloning samples through the same judges."""
        rows = [self(person, person.cloning) for person in self.people]
        ks = [k for k, enrolled in self.enrolled.items() if enrolled is not None]
        same = {k: [x for own, _, _ in rows for x in own[k]] for k in ks}
        other = {k: [x for _, others, _ in rows for x in others[k]] for k in ks}
        right = [x for _, _, named in rows for x in named]
        return Clone("all", "real recordings", 0, 0.0, 0.0, 0, 0, same, other, right, [])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `clonewave evaluate --paper`."""
    group = parser.add_argument_group("the paper's evaluation")
    group.add_argument(
        "--paper", action="store_true",
        help="classification accuracy and equal error rate of every method by cloning samples, "
        "and Table 1; needs verifier.safetensors and recogniser.safetensors in the weights",
    )  # fmt: skip
    group.add_argument("--methods", help=f"of {','.join(METHODS)} (default: all)")
    group.add_argument("--counts", help="cloning samples (default: 1,2,3,5,10)")
    group.add_argument(
        "--budget", type=float, help=f"seconds of an adaptation (default {Plan.budget_s:g})"
    )
    group.add_argument(
        "--no-classifier", action="store_true",
        help="verification only: for people whose recordings nothing may be trained on",
    )  # fmt: skip
    group.add_argument("--smoke", action="store_true", help="a minute: two people, 1 and 2 samples")


def run(args: argparse.Namespace) -> int:
    """Runs `clonewave evaluate --paper`: tables to stdout, progress to stderr."""
    import engine  # here, not above: the package itself imports this module's neighbours

    if args.folder is None:
        raise InputError("give a folder that holds a folder of recordings for each speaker")
    cloner = engine.Engine(weights=args.weights, backend=args.backend)
    report = evaluate_paper(cloner, args.folder, _plan(args))
    if args.out is not None:
        report.write(args.out)
    print(json.dumps(report.to_dict()) if args.json else report.table())
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    changes: dict[str, Any] = {"seed": args.seed, "progress": not args.quiet}
    if args.methods:
        changes["methods"] = tuple(args.methods.split(","))
    if args.counts:
        changes["counts"] = tuple(int(n) for n in args.counts.split(",") if n.isdecimal())
    changes["people"] = min(args.people, SMOKE.people) if args.smoke else args.people
    changes |= {"budget_s": args.budget} if args.budget else {}
    changes |= {"classifier_steps": 0} if args.no_classifier else {}
    plan = replace(SMOKE if args.smoke else Plan(), **changes)
    if unknown := sorted(set(plan.methods) - set(METHODS)):
        raise InputError(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    if not plan.counts or min(plan.counts) < 1:
        raise InputError(f"--counts {args.counts}: give numbers of cloning samples, such as 1,2,3")
    return plan
