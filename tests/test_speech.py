"""Speech: joining, saving, showing."""

import base64
import io

import numpy as np
import pytest
from sounds import tone

from engine import audio
from engine.errors import InputError
from engine.speech import Report, Speech, Word


def make_speech(word="hi", seconds=0.5, **report):
    return Speech(tone(seconds), 24_000, (Word(word, 0.1, 0.4),), Report(**report))


def test_speech_joins_samples_words_and_reports():
    a = make_speech("one", skips=("x",), warnings=("w1",))
    b = make_speech("two", 0.25, stalls=("y",), warnings=("w2",))
    joined = Speech.join([a, b, a])
    np.testing.assert_array_equal(joined.samples, np.concatenate([a.samples, b.samples, a.samples]))
    assert joined.seconds == 1.25
    assert [w.word for w in joined.words] == ["one", "two", "one"]
    assert [w.start_s for w in joined.words] == pytest.approx([0.1, 0.6, 0.85])
    assert [w.end_s for w in joined.words] == pytest.approx([0.4, 0.9, 1.15])
    assert joined.report == Report(("x", "x"), (), ("y",), ("w1", "w2", "w1"))
    assert not joined.report.ok and Report(warnings=("dropped",)).ok
    with pytest.raises(InputError):
        Speech.join([])
    with pytest.raises(InputError, match="16000"):
        Speech.join([a, Speech(tone(0.1, 16_000), 16_000)])


def test_speech_saves_and_shows_itself(tmp_path):
    speech = make_speech('<script>"&')
    speech.save(tmp_path / "x.flac")
    np.testing.assert_allclose(audio.read(tmp_path / "x.flac")[0], speech.samples, atol=2**-15)
    page = speech._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;&quot;&amp;" in page
    sound = page.split("base64,")[1].split('"')[0]
    samples, _ = audio.read(io.BytesIO(base64.b64decode(sound)))
    np.testing.assert_allclose(samples, speech.samples, atol=2**-15)
    assert repr(speech) == "Speech(0.50 s, 24000 Hz, 1 words, ok)"
