"""The page of samples: all it names is there, and the engine never hears the original."""

import re

import numpy as np
import pytest

from engine import audio, samples_page
from engine.speech import Speech

pytest.importorskip("matplotlib")
RATE = 24_000


def talk(seconds, pitch):
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * np.sign(np.sin(2 * np.pi * pitch * time))).astype(np.float32)


@pytest.fixture
def people(tmp_path):
    folder = tmp_path / "people" / "ann_b"
    folder.mkdir(parents=True)
    for k in range(3):
        audio.write(folder / f"{k}.wav", talk(2.0, 100 + 100 * k), RATE)
    (folder / "2.txt").write_text("Said <loud> & clear.\n")
    (folder / "about.txt").write_text("Nobody.\n")
    return tmp_path / "people"


def test_page(people, tmp_path):
    heard, said = [], []

    def clone(samples, sample_rate, method):
        heard.append(len(samples) / sample_rate)
        return None

    def synthesize(text, voice, seed):
        said.append(text)
        return Speech(talk(0.5, 150), RATE)

    out = tmp_path / "out"
    (out / "clips").mkdir(parents=True)
    (out / "clips" / "gone-0.mp3").touch()
    page = samples_page.build(
        people, out, synthesize=synthesize, clone=clone, progress=False
    ).read_text()
    assert heard == pytest.approx([1.0, 3.0, 4.0], abs=0.1)  # 4 s, for the third is the original
    assert said.count("Said <loud> & clear.") == 3
    assert "Said &lt;loud&gt; &amp; clear." in page and "<loud>" not in page
    names = set(re.findall(r'src="(clips/[^"]+)"', page))
    assert len(names) == 2 * (1 + 6)
    assert names == {f"clips/{p.name}" for p in (out / "clips").iterdir()}
    samples, rate = audio.read(out / "clips" / "ann_b-original.mp3")
    assert len(samples) / rate == pytest.approx(2.0, abs=0.1)
    assert not re.search(r'(src|href)="https?:', page)  # works offline
