"""The sweep: what is cloned, what is compared, and what the figures hold."""

import json
import math

import numpy as np
import pytest

from engine import audio, sweep
from engine.errors import InputError

RATE = 24_000


def talk(seconds, pitch):
    """Something the level meter takes for speech."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * np.sign(np.sin(2 * np.pi * pitch * time))).astype(np.float32)


@pytest.fixture
def people(tmp_path):
    for n, name in enumerate(("ann", "bob", "cid")):
        (tmp_path / name).mkdir()
        for k in range(4 if name != "cid" else 2):
            audio.write(tmp_path / name / f"{k}.wav", talk(6.0, 100 + 50 * n), RATE)
    return tmp_path


class Judges:
    """Every recording is like every other, speech is half like them; nothing is misheard."""

    def speaker_embedding(self, samples, sample_rate):
        return np.array([1.0, 0.0] if len(samples) > 1 else [0.5, 0.75**0.5], np.float32)

    def similarity(self, a, b):
        return float(a @ b)

    def transcribe(self, samples, sample_rate):
        return "a b"

    def word_errors(self, text, heard):
        return 1, len(text.split())


class Spoken:
    samples, sample_rate = np.zeros(1, np.float32), RATE


def run(folder, clone, **options):
    return sweep.sweep(
        folder, synthesize=lambda text, voice, seed: Spoken(), clone=clone, judges=Judges(),
        progress=False, **options,
    )  # fmt: skip


def test_grid_and_lengths(people):
    seen = []

    def clone(cuts, sample_rate):
        seen.append((len(cuts), round(len(cuts[0]) / sample_rate, 3)))
        assert len({len(cut) for cut in cuts}) == 1

    found = run(people, clone, people=2, sentences=1)
    grid = [(p.samples, p.seconds) for p in found.points]
    assert grid == [(1, 1), (1, 2), (1, 3), (1, 5), (1, 10), (2, 2), (3, 2), (5, 2)]
    assert seen == [point for point in grid for _ in range(2)]  # two people each
    assert found.settings["speakers"] == ["ann", "bob"]  # cid has too little
    assert [p.seconds for p in found.along("seconds")] == [1, 2, 3, 5, 10]
    assert [p.samples for p in found.along("samples")] == [1, 2, 3, 5]
    assert all(p.sim == pytest.approx(0.5) and p.sim_real == 1 for p in found.points)
    assert found.strangers == 1


def test_a_refused_second_grows_and_other_refusals_name_the_person(people):
    lengths = []

    def picky(cuts, sample_rate):
        lengths.append(len(cuts[0]) / sample_rate)
        if lengths[-1] < 1.15:
            raise InputError("too little speech")

    run(people, picky, people=1, sentences=1)
    assert lengths[:4] == pytest.approx([1.0, 1.1, 1.2, 2.0])

    def never(cuts, sample_rate):
        raise InputError("no")

    with pytest.raises(InputError, match="ann: no"):
        run(people, never, people=1)


def test_folders_and_numbers_that_cannot_be_used(people):
    with pytest.raises(InputError, match="10 s of speech"):
        run(people, print, speakers=["cid"])
    with pytest.raises(InputError, match="needs a person"):
        run(people, print, people=0)


def test_files_written(people, tmp_path):
    pytest.importorskip("matplotlib")
    found = run(people, lambda cuts, sample_rate: None, people=1, sentences=1)
    assert math.isnan(found.points[0].sim_error) and math.isnan(found.strangers)
    found.write(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(document["points"]) == 8
    assert (tmp_path / "out" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert found.table() in (tmp_path / "out" / "sweep.md").read_text()
