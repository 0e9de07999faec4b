"""`clonewave evaluate --robustness`: which of 100 difficult sentences lose or repeat words.

Deep Voice 3 (arXiv:1710.07654, section 4.4 and its appendix) counts sentences with a mispronounced,
skipped or repeated word by ear. Here two witnesses must agree on a word, or one must be very clear:

* the attention path (`Speech.report`) names words that it skipped, repeated or stalled on; such a
  word counts if the recogniser did not hear it either;
* the recogniser missed, or added, two words or more in a row.

What was asked for and what was heard are compared as phones: the recogniser's text goes through the
front end that also read the sentence, so "1/2/1999" and "January second, nineteen ninety nine",
"F B I" and "FBI", "for" and "four" are the same, and a misheard word is not a lost one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine import audio
from engine.errors import InputError
from engine.evaluate import Speaker, find_speakers
from engine.judges import Judges, need, versions
from engine.scores import markdown, write_report
from engine.sentences import DIFFICULT
from engine.speech import Speech
from engine.text import Word, front_end

GOAL = 0.05  # of the sentences may be faulty
RUN = 2  # words in a row that must be missing, or added, when the attention path noticed nothing
GONE = 0.6  # share of a word's phones without a counterpart from which on it is missing
HEARD = 0.5  # share of a word's phones heard right below which a reported word is believed lost


@dataclass(frozen=True)
class Comparison:
    """Words asked for against words heard; see `compare`."""

    correct: tuple[float, ...]  # of each word asked for: share of its phones heard right
    missing: tuple[str, ...]  # words asked for, in runs of RUN or more, that left no trace
    added: tuple[str, ...]  # words heard, in such runs, that nobody asked for
    errors: int  # wrong, missing and added phones
    phones: int  # asked for


@dataclass(frozen=True)
class Outcome:
    """One sentence, what became of it, and what is wrong with it."""

    kind: str
    text: str
    voice: str
    heard: str
    seconds: float
    skips: tuple[str, ...]  # as Speech.report has them
    repeats: tuple[str, ...]
    stalls: tuple[str, ...]
    comparison: Comparison
    faults: tuple[str, ...]  # "skipped: word", "stalled: word", "missing: words", ...


@dataclass(frozen=True)
class Robustness:
    """Every outcome; `settings` and `versions` say how to repeat them."""

    outcomes: tuple[Outcome, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def faulty(self) -> int:
        """Sentences with at least one fault."""
        return sum(bool(o.faults) for o in self.outcomes)

    def counts(self, kind: str | None = None) -> dict[str, float]:
        """Of one kind, or of all: sentences, faulty, reported (by the path), phone error rate."""
        chosen = [o for o in self.outcomes if kind in (None, o.kind)]
        phones = sum(o.comparison.phones for o in chosen)
        return {
            "sentences": len(chosen),
            "faulty": sum(bool(o.faults) for o in chosen),
            "reported": sum(bool(o.skips or o.repeats or o.stalls) for o in chosen),
            "missing": sum(bool(o.comparison.missing) for o in chosen),
            "added": sum(bool(o.comparison.added) for o in chosen),
            "phone_error_rate": sum(o.comparison.errors for o in chosen) / max(phones, 1),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        kinds = dict.fromkeys(o.kind for o in self.outcomes)
        return {
            "total": self.counts(),
            "goal": GOAL,
            "kinds": {kind: self.counts(kind) for kind in kinds},
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "settings": self.settings,
            "versions": self.versions,
        }

    def table(self) -> str:
        """Counts by kind and the faulty sentences, as Markdown."""
        found = self.to_dict()
        rows = [(kind, *_cells(counts)) for kind, counts in found["kinds"].items()]
        rows.append(("all", *_cells(found["total"])))
        columns = (
            "kind", "sentences", "faulty", "reported by the attention path", "words missing",
            "words added", "phone errors",
        )  # fmt: skip
        allowed = GOAL * len(self.outcomes)
        verdict = (
            f"{self.faulty} of {len(self.outcomes)} sentences faulty; "
            f"goal: at most {allowed:g}: {'met' if self.faulty <= allowed else 'NOT met'}"
        )
        lines = [markdown(columns, rows), "", verdict]
        if self.faulty:
            faulty = [(o.text, o.heard, "; ".join(o.faults)) for o in self.outcomes if o.faults]
            lines += ["", markdown(("sentence", "heard", "faults"), faulty)]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes robustness.json and robustness.md, each whole or not."""
        heard = [(o.kind, o.text, o.heard) for o in self.outcomes]
        parts = (
            "# Robustness", self.table(), "## What was heard",
            markdown(("kind", "sentence", "heard"), heard),
        )  # fmt: skip
        write_report(folder, "robustness", self.to_dict(), "\n\n".join(parts), {})


def compare(asked: Sequence[Word], heard: Sequence[Word]) -> Comparison:
    """Aligns the phones of the words asked for with those of the words heard.

    The alignment has the fewest wrong, missing and added phones (Levenshtein). A word is gone when
    GONE of its phones have no counterpart, right or wrong; runs of such words are listed.
    """
    wanted, got = _phones(asked), _phones(heard)
    distance = need("rapidfuzz.distance").Levenshtein
    right, deleted, inserted = [False] * len(wanted), [False] * len(wanted), [False] * len(got)
    errors = 0
    for code in distance.opcodes(wanted, got):
        source, target = slice(code.src_start, code.src_end), slice(code.dest_start, code.dest_end)
        size = max(source.stop - source.start, target.stop - target.start)
        errors += 0 if code.tag == "equal" else size
        if code.tag == "equal":
            right[source] = [True] * size
        elif code.tag == "delete":
            deleted[source] = [True] * size
        elif code.tag == "insert":
            inserted[target] = [True] * size
    return Comparison(
        correct=tuple(_shares(asked, right)),
        missing=_runs(asked, _shares(asked, deleted)),
        added=_runs(heard, _shares(heard, inserted)),
        errors=errors,
        phones=len(wanted),
    )


def judge(kind: str, text: str, voice: str, speech: Speech, heard: str) -> Outcome:
    """What is wrong with one sentence, from the report of its attention path and what was heard."""
    asked = [word for sentence in front_end(text) for word in sentence.words]
    understood = _words(heard)
    comparison = compare(asked, understood)
    report = speech.report
    faults = []
    for title, words in (
        ("skipped", report.skips), ("repeated", report.repeats), ("stalled", report.stalls),
    ):  # fmt: skip
        faults += [f"{title}: {w}" for w in dict.fromkeys(words) if _lost(w, asked, comparison)]
    if not understood:
        faults.append("nothing heard")
    elif comparison.missing:
        faults.append(f"missing: {' '.join(comparison.missing)}")
    if comparison.added:
        faults.append(f"added: {' '.join(comparison.added)}")
    return Outcome(
        kind, text, voice, heard, speech.seconds, report.skips, report.repeats, report.stalls,
        comparison, tuple(faults),
    )  # fmt: skip


def measure(
    synthesize: Callable[..., Speech],
    voices: dict[str, Any],
    *,
    judges: Judges | None = None,
    seed: int = 0,
    progress: bool = True,
    sentences: dict[str, tuple[str, ...]] = DIFFICULT,
    settings: dict[str, Any] | None = None,
) -> Robustness:
    """Speaks every difficult sentence once, in one of the voices after the other.

    Args:
        synthesize: called as synthesize(text, voice, seed=seed).
        voices: name -> what `synthesize` takes for a voice.
        judges: None loads the recogniser.
    Raises:
        InputError: no voice.
        EngineError: a missing package of the extra `eval`.
    """
    if not voices:
        raise InputError("needs at least one voice")
    judges = judges or Judges()
    names = list(voices)
    outcomes = []
    cases = [(kind, text) for kind, texts in sentences.items() for text in texts]
    for i, (kind, text) in enumerate(tqdm(cases, disable=not progress, unit="sentence")):
        name = names[i % len(names)]
        speech = synthesize(text, voices[name], seed=seed)
        heard = judges.transcribe(speech.samples, speech.sample_rate)
        outcomes.append(judge(kind, text, name, speech, heard))
    how = {"voices": names, "seed": seed}
    return Robustness(tuple(outcomes), how | dict(settings or {}), versions())


def run(args: argparse.Namespace, engine: Any, settings: dict[str, Any]) -> int:
    """Runs `clonewave evaluate [FOLDER] --robustness`; without a folder in the default voice."""
    if args.folder is None:
        voices = {"default": engine.default_voice()}
    else:
        chosen = args.speakers.split(",") if args.speakers else None
        voices = {p.name: clone_start(p, args.seconds, engine.clone)
                  for p in find_speakers(args.folder, chosen)}  # fmt: skip
    found = measure(
        engine.synthesize, voices, seed=args.seed, progress=not args.quiet, settings=settings
    )
    if args.out is not None:
        found.write(args.out)
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found.table())
    return 0


def clone_start(person: Speaker, seconds: float, clone: Callable[..., Any]) -> Any:
    """The voice of the first seconds of a person's first recording."""
    samples, rate = audio.read(person.files[0])
    return clone(samples[: round(seconds * rate)], sample_rate=rate)


def _words(heard: str) -> list[Word]:
    """What was heard, as our own front end reads it; nothing for nothing."""
    try:
        return [word for sentence in front_end(heard) for word in sentence.words]
    except InputError:  # empty, or nothing that can be spoken
        return []


def _phones(words: Sequence[Word]) -> list[str]:
    return [phone.rstrip("012") for word in words for phone in word.phones]


def _shares(words: Sequence[Word], marked: Sequence[bool]) -> list[float]:
    """Of each word, the share of its phones that are marked."""
    shares, at = [], 0
    for word in words:
        end = at + len(word.phones)
        shares.append(sum(marked[at:end]) / max(len(word.phones), 1))
        at = end
    return shares


def _runs(words: Sequence[Word], gone: Sequence[float]) -> tuple[str, ...]:
    """The words of every run of at least RUN that are gone."""
    found: list[str] = []
    run: list[str] = []
    for word, share in [*zip(words, gone, strict=True), (None, 0.0)]:
        if word is not None and share >= GONE:
            run.append(word.text)
            continue
        found += run if len(run) >= RUN else []
        run = []
    return tuple(found)


def _lost(word: str, asked: Sequence[Word], comparison: Comparison) -> bool:
    """Whether the worst heard place of that word in the sentence was not heard."""
    shares = [s for w, s in zip(asked, comparison.correct, strict=True) if w.text == word]
    return min(shares, default=0.0) < HEARD


def _cells(counts: dict[str, float]) -> tuple[str, ...]:
    whole = ("sentences", "faulty", "reported", "missing", "added")
    return (*(str(counts[name]) for name in whole), f"{counts['phone_error_rate']:.3f}")
