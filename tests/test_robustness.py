"""Robustness: what counts as a lost or added word, and what does not."""

import argparse
import json

import numpy as np
import pytest

from engine import evaluate, robustness, sentences
from engine.errors import InputError
from engine.speech import Report, Speech
from engine.text import front_end

pytest.importorskip("rapidfuzz")


def words(text):
    return [word for sentence in front_end(text) for word in sentence.words]


def speech(**report):
    return Speech(np.zeros(24_000, np.float32), 24_000, (), Report(**report))


def faults(text, heard, **report):
    return robustness.judge("kind", text, "voice", speech(**report), heard).faults


def test_there_are_a_hundred_different_sentences():
    texts = [text for group in sentences.DIFFICULT.values() for text in group]
    assert len(texts) == len(set(texts)) == 100
    assert all(43 <= len(text.split()) <= 48 for text in sentences.DIFFICULT["about 45 words"])
    for text in texts:
        assert not any(s.warnings for s in front_end(text)), text


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("On 1/2/1999 the FBI paid $5.", "On January second, 1999, the F.B.I. paid five dollars."),
        ("Visit www.example.com at 6:05 p.m.", "Visit example dot com at six oh five PM."),
        ("Wait % and then / go.", "Wait and then go."),
        ("Their four hens", "There for hens."),  # spelled otherwise, the same sound
        ("The cat sat down.", "The bat sad down."),  # misheard is not lost
    ],
)
def test_fair_to_what_was_said(text, heard):
    assert faults(text, heard) == ()


def test_runs_of_words_count_without_a_report_and_single_words_do_not():
    text = "The old doctor bought seventeen yellow lemons yesterday."
    missing = faults(text, "The old doctor bought yesterday.")
    assert missing == ("missing: seventeen yellow lemons",)
    added = faults(text, text[:-1] + " bought seventeen lemons.")
    assert len(added) == 1 and added[0].startswith("added: bought seventeen")
    assert faults(text, text.replace("yellow ", "")) == ()


def test_a_reported_word_counts_only_if_it_was_not_heard():
    text = "The old doctor bought yellow lemons."
    assert faults(text, text, skips=("yellow",)) == ()
    lost = text.replace("yellow ", "")
    assert faults(text, lost, skips=("yellow",)) == ("skipped: yellow",)
    assert faults(text, lost, stalls=("yellow",)) == ("stalled: yellow",)
    assert faults("Go on and on.", "Go on and.", skips=("on",)) == ("skipped: on",)


@pytest.mark.parametrize("heard", ["", " ", "..."])
def test_silence_is_a_fault(heard):
    assert faults("Stop.", heard)


def test_comparison_counts_phones():
    found = robustness.compare(words("seven lemons"), words("seven"))
    assert found.phones == len(words("seven lemons")[0].phones + words("seven lemons")[1].phones)
    assert found.errors == len(words("lemons")[0].phones)
    assert found.correct == (1.0, 0.0)
    assert found.missing == ()  # one word is no run


class Hears:
    """Hears what is said, except for every sentence with the word lemons."""

    def __init__(self, said):
        self.said = said

    def transcribe(self, samples, sample_rate):
        return "" if "lemons" in self.said[-1] else self.said[-1]


def test_measure_takes_turns_and_writes(tmp_path):
    said = []

    def synthesize(text, voice, seed):
        said.append(text)
        return speech()

    texts = {"a": ("One lemons.", "Two pears."), "b": ("Three plums.",)}
    found = robustness.measure(
        synthesize, {"ann": 1, "bob": 2}, judges=Hears(said), sentences=texts, progress=False,
    )  # fmt: skip
    assert [o.voice for o in found.outcomes] == ["ann", "bob", "ann"]
    assert found.faulty == 1 and found.counts("a")["faulty"] == 1
    assert "NOT met" in found.table()
    found.write(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert document["kinds"]["b"] == {
        "sentences": 1, "faulty": 0, "reported": 0, "missing": 0, "added": 0,
        "phone_error_rate": 0.0,
    }  # fmt: skip
    assert found.table() in (tmp_path / "out" / "robustness.md").read_text()
    with pytest.raises(InputError, match="voice"):
        robustness.measure(synthesize, {}, judges=Hears(said))


def test_only_robustness_may_go_without_a_folder():
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    with pytest.raises(InputError, match="folder"):
        evaluate.run(parser.parse_args(["--sweep"]))
