"""`clonewave evaluate`: clone people from seconds of speech, let the clones speak, ask the judges.

A folder of speakers holds one folder a person with two or more recordings. The first seconds of the
first recording or recordings (by name) are the cloning samples; the others are the truth for SIM
and are never shown to the engine. Scores are defined in engine/scores.py, judges in
engine/judges.py.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from engine import audio, kernels
from engine.errors import EngineError, InputError
from engine.judges import Judges, need, versions
from engine.model_card import hashes
from engine.scores import Reference, Report, Utterance, mean
from engine.sentences import PLAIN

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
MIN_SPEECH_SECONDS = 0.05  # a clone that says less has said nothing: no judge can hear it


class SpeechLike(Protocol):
    """What `synthesize` returns; engine.Speech is one."""

    @property
    def samples(self) -> np.ndarray:
        """Float [samples] in [-1, 1]."""

    @property
    def sample_rate(self) -> int:
        """Hz."""


@dataclass(frozen=True)
class Recording:
    """Samples, float [samples], and their rate in Hz."""

    samples: np.ndarray
    sample_rate: int


@dataclass(frozen=True)
class Speaker:
    """One person: the files in order of name, the first being cloning samples."""

    name: str
    number: int  # among all speakers of the folder; decides the sentences
    files: tuple[Path, ...]


def find_speakers(
    folder: Path, names: Sequence[str] | None = None, samples: int = 1
) -> list[Speaker]:
    """The people in `folder` by name, all or those in `names`.

    Raises InputError when there is nobody, a name is unknown, or a person has not one recording
    more than the `samples` to be cloned from.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds a folder for each speaker")
    paths = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    speakers = [
        Speaker(path.name, number, tuple(_recordings(path))) for number, path in enumerate(paths)
    ]
    known = {speaker.name for speaker in speakers}
    if unknown := sorted(set(names or ()) - known):
        raise InputError(
            f"no speaker {', '.join(unknown)} in {folder}; it has {', '.join(sorted(known))}"
        )
    chosen = [speaker for speaker in speakers if names is None or speaker.name in names]
    if not chosen:
        raise InputError(f"{folder} holds no speakers; each needs a folder of recordings")
    for speaker in chosen:
        if len(speaker.files) <= samples:
            raise InputError(
                f"{folder / speaker.name} needs {samples + 1} recordings or more "
                f"({', '.join(SUFFIXES)}): {samples} to clone, the others to compare with"
            )
    return chosen


def sentences_for(number: int, count: int) -> list[str]:
    """`count` sentences for that speaker; each gets others, until the list begins anew."""
    return [PLAIN[(number * count + i) % len(PLAIN)] for i in range(count)]


def evaluate(
    folder: Path | str,
    *,
    synthesize: Callable[..., SpeechLike],
    clone: Callable[..., Any],
    sentences: int = 4,
    samples: int = 1,
    seconds: float = 3.0,
    seed: int = 0,
    out: Path | str | None = None,
    progress: bool = True,
    speakers: Sequence[str] | None = None,
    reference: bool = False,
    keep_audio: bool = False,
    judges: Judges | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Scores clones of the people in `folder`.

    Args:
        synthesize: called as synthesize(text, voice, seed=seed).
        clone: called as clone(audio, sample_rate=rate) with float32 [samples], or with a list of
            these where there are several; returns the voice.
        sentences: how many each clone says.
        samples: recordings to clone from, the first ones by name; the others are the truth.
        seconds: length of each cloning sample, from the start of its recording.
        out: folder for evaluate.json, evaluate.md and the plots; with `keep_audio` also the clips,
            as SPEAKER/NN.wav.
        speakers: names to evaluate; None for all.
        reference: also judge the real people, the scale for SIM and OVRL.
        judges: None loads the real ones, and fails at once if their packages are missing.
        settings: what else the report should record, such as the weights and backend in use.

    Raises:
        InputError: a folder, recording or argument that cannot be used.
        EngineError: a missing package of the extra `eval`; whatever clone and synthesize raise,
            with the speaker's name in front.
    """
    if sentences < 1 or samples < 1 or seconds <= 0:
        raise InputError(
            f"needs a sentence, a sample and some seconds, not {sentences}, {samples}, {seconds}"
        )
    if keep_audio and out is None:
        raise InputError("keeping the audio needs a folder to keep it in: give out (--out DIR)")
    out = None if out is None else Path(out)
    people = find_speakers(Path(folder), speakers, samples)
    if out is not None:
        need("matplotlib.figure")
    if judges is None:
        judges = Judges()
        judges.load()
    clips = {person.name: [Recording(*audio.read(f)) for f in person.files] for person in people}
    truth = {
        name: [judges.speaker_embedding(clip.samples, clip.sample_rate) for clip in rest[samples:]]
        for name, rest in clips.items()
    }
    done: list[Utterance] = []
    with tqdm(total=len(people) * sentences, disable=not progress, unit="sentence") as bar:
        for person in people:
            cut = [_start(clip, seconds) for clip in clips[person.name][:samples]]
            spoken = _speak(person, cut, clone, synthesize, sentences, seed)
            for i, (text, speech, compute_seconds) in enumerate(spoken):
                if out is not None and keep_audio:
                    _keep(speech, out / person.name / f"{i:02d}.wav")
                own = truth[person.name]
                done.append(judge(judges, person.name, text, speech, own, compute_seconds))
                bar.set_postfix_str(f"{person.name} SIM {done[-1].sim:.2f}")
                bar.update()
    found = judge_real(judges, clips, truth, seconds, samples) if reference else []
    how = {
        "speakers": list(clips), "sentences": sentences, "samples": samples, "seconds": seconds,
        "seed": seed,
    }  # fmt: skip
    report = Report(tuple(done), tuple(found), how | dict(settings or {}), versions())
    if out is not None:
        report.write(out)
    return report


def _speak(
    person: Speaker,
    cut: Sequence[Recording],
    clone: Callable[..., Any],
    synthesize: Callable[..., SpeechLike],
    sentences: int,
    seed: int,
) -> Iterator[tuple[str, SpeechLike, float]]:
    """Yields (text, speech, seconds of computing) for each sentence the clone says."""
    try:
        recorded, rate = _as_given(cut)
        voice = clone(recorded, sample_rate=rate)
        for text in sentences_for(person.number, sentences):
            begin = time.perf_counter()
            speech = synthesize(text, voice, seed=seed)
            yield text, speech, time.perf_counter() - begin
    except EngineError as error:
        raise type(error)(f"{person.name}: {error}") from error


def judge(
    judges: Judges,
    speaker: str,
    text: str,
    speech: SpeechLike,
    truth: Sequence[np.ndarray],
    compute_seconds: float,
) -> Utterance:
    """Asks all judges about one sentence of a clone.

    `truth` holds the embedding of each other recording of the person. Speech too short to be heard
    counts as silence: every word missing, no similarity, the lowest opinion scores.
    """
    samples, rate = np.asarray(speech.samples), speech.sample_rate
    seconds = len(samples) / rate
    heard, mos, embedding = "", dict.fromkeys(("OVRL", "SIG", "BAK"), 1.0), np.zeros_like(truth[0])
    if seconds >= MIN_SPEECH_SECONDS:
        heard = judges.transcribe(samples, rate)
        mos = judges.dnsmos(samples, rate)
        embedding = judges.speaker_embedding(samples, rate)
    errors, words = judges.word_errors(text, heard)
    return Utterance(
        speaker=speaker,
        text=text,
        heard=heard,
        errors=errors,
        words=words,
        sim=mean([judges.similarity(embedding, other) for other in truth]),
        sim_mean=judges.similarity(embedding, _centre(truth)),
        ovrl=mos["OVRL"],
        sig=mos["SIG"],
        bak=mos["BAK"],
        seconds=seconds,
        compute_seconds=compute_seconds,
    )


def judge_real(
    judges: Judges,
    clips: dict[str, list[Recording]],
    truth: dict[str, list[np.ndarray]],
    seconds: float,
    samples: int,
) -> list[Reference]:
    """The scale: real people against themselves and each other, from cloning samples as long."""
    references = []
    for name, recordings in clips.items():
        sample = _start(recordings[0], seconds)
        embedding = judges.speaker_embedding(sample.samples, sample.sample_rate)
        sims = {
            other: mean([judges.similarity(embedding, e) for e in embeddings])
            for other, embeddings in truth.items()
        }
        own = sims.pop(name)
        nearest = max(sims, key=lambda other: sims[other], default="")
        mos = [judges.dnsmos(r.samples, r.sample_rate) for r in recordings[samples:]]
        references.append(
            Reference(
                speaker=name,
                sim_self=own,
                sim_others=mean(list(sims.values())),
                sim_nearest=sims.get(nearest, float("nan")),
                nearest=nearest,
                ovrl=mean([m["OVRL"] for m in mos]),
                sig=mean([m["SIG"] for m in mos]),
                bak=mean([m["BAK"] for m in mos]),
            )
        )
    return references


def _as_given(cut: Sequence[Recording]) -> tuple[Any, int]:
    """Audio and rate as `Engine.clone` takes them; recordings of other rates are brought to one."""
    rate = cut[0].sample_rate
    alike = [audio.resample(one.samples, one.sample_rate, rate) for one in cut]
    return (alike if len(alike) > 1 else alike[0]), rate


def _centre(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(np.stack(embeddings), axis=0)  # GE2E embeddings have unit length already


def _start(recording: Recording, seconds: float) -> Recording:
    return Recording(
        recording.samples[: round(seconds * recording.sample_rate)], recording.sample_rate
    )


def _recordings(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")


def _keep(speech: SpeechLike, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, speech.samples, speech.sample_rate)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `clonewave evaluate`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", help="holds a folder of recordings for each speaker"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--sweep", action="store_true",
        help="WER and SIM against seconds of cloning audio and number of cloning samples",
    )  # fmt: skip
    instead.add_argument(
        "--robustness", action="store_true",
        help="count faulty sentences among 100 difficult ones, said by the people of the folder "
        "in turn or, without a folder, in the default voice",
    )  # fmt: skip
    parser.add_argument(
        "--sentences", type=int, help="sentences a speaker (default 4; with --sweep 2)"
    )
    parser.add_argument(
        "--people", type=int, default=6,
        help="with --sweep and --paper: how many of the folder's (default 6)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=1,
        help="clone from so many recordings, the first by name (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of each cloning sample (default 3)"
    )
    parser.add_argument("--speakers", help="only these, divided by commas")
    parser.add_argument("--out", type=Path, help="folder for evaluate.json, evaluate.md and plots")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--reference", action="store_true", help="also judge the real people")
    parser.add_argument("--keep-audio", action="store_true", help="keep the clips, in --out")
    parser.add_argument(
        "--weights", type=Path, help="folder of model weights (default: those shipped)"
    )
    parser.add_argument("--backend", help="kernel backend (default auto)")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", *kernels.PRECISIONS),
        help="of the vocoder's compiled kernels (default auto = int8)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthesis (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--method", default="encode",
        help="of `clonewave clone` (default encode); several, divided by commas, are compared "
        "with the first",
    )  # fmt: skip
    from engine import paper

    paper.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs `clonewave evaluate`: scores to stdout, progress to stderr. Returns the exit status."""
    import engine  # here, not above: the package itself imports this module's neighbours

    if args.folder is None and not args.robustness:
        raise InputError("give a folder that holds a folder of recordings for each speaker")
    if args.paper:
        from engine import paper

        return paper.run(args)
    cloner = engine.Engine(
        weights=args.weights, backend=args.backend, precision=args.precision
    )
    settings = {
        "weights": str(args.weights or "default"), "backend": cloner.backend,
        "precision": cloner.network.precision, "models": hashes(cloner.folder),
        "method": args.method,
    }  # fmt: skip
    if args.robustness or args.sweep:
        from engine import robustness, sweep  # here: they build on this module

        return (robustness if args.robustness else sweep).run(args, cloner, settings)
    options: dict[str, Any] = {
        "synthesize": cloner.synthesize,
        "sentences": 4 if args.sentences is None else args.sentences,
        "samples": args.samples,
        "seconds": args.seconds,
        "seed": args.seed,
        "out": args.out,
        "progress": not args.quiet,
        "speakers": args.speakers.split(",") if args.speakers else None,
        "reference": args.reference,
        "keep_audio": args.keep_audio,
        "settings": settings,
    }
    methods = args.method.split(",")
    if len(methods) > 1:
        from engine.evaluate_methods import compare

        found: Any = compare(args.folder, methods, clone=cloner.clone, **options)
    else:
        found = evaluate(args.folder, clone=partial(cloner.clone, method=args.method), **options)
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found.table())
    return 0
