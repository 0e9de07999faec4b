"""Directions among voices: the paper's arithmetic, files, labels, and the command line."""

import json

import numpy as np
import pytest
import tiny_corpus
import torch
from tiny import make_weights

from engine import Engine, algebra, plots
from engine.__main__ import main
from engine.algebra import Directions, morph
from engine.errors import InputError, VoiceError, WeightsError
from engine.models.speaker_encoder import SpeakerEncoder
from engine.voice import Voice

ENCODER = "ab" * 32


def directions(encoder=ENCODER, size=16):
    rng = np.random.default_rng(0)
    averages = {name: rng.standard_normal(size).astype(np.float32) for name in algebra.OPPOSITE}
    axes = np.linalg.qr(rng.standard_normal((size, 2)))[0].T
    points, classes = np.zeros((4, 2)), ("american female", "british male") * 2
    return Directions(averages, np.zeros(size, np.float32), axes, points, classes, encoder)


def voice_at(embedding, encoder=ENCODER, **metadata):
    return Voice(embedding, (1.0,), encoder, metadata)


def test_morph_is_the_paper_s_arithmetic():
    found = directions()
    start, end = found.averages["male"], found.averages["female"]
    voice = voice_at(start, name="Bob", consent="yes")
    moved = morph(voice, "female", found)
    along = (end - start) + start  # e + avg(female) - avg(male)
    along = along * np.linalg.norm(start) / np.linalg.norm(along)
    np.testing.assert_allclose(moved.embedding, along, rtol=1e-5)
    assert (moved.metadata["name"], moved.metadata["consent"]) == ("Bob", "yes")
    assert moved.metadata["method"] == "morph" and "female" in moved.metadata["morph"]
    assert found.position(end, "female") == pytest.approx(1.0)
    assert found.position(start, "female") == pytest.approx(0.0)


def test_morph_moves_nearer_and_leaves_those_who_are_there():
    found = directions()
    at = found.averages["female"]
    np.testing.assert_allclose(morph(voice_at(at), "female", found).embedding, at, rtol=1e-5)
    goal, start = voice_at(at), voice_at(found.averages["male"])
    half, full = (morph(start, "female", found, amount) for amount in (0.5, 1.0))
    assert full.distance(goal) < half.distance(goal) < start.distance(goal)


def test_what_cannot_be_morphed():
    found = directions()
    with pytest.raises(InputError, match="french"):
        morph(voice_at(np.ones(16)), "french", found)
    with pytest.raises(InputError, match="amount"):
        morph(voice_at(np.ones(16)), "female", found, 9)
    with pytest.raises(VoiceError, match="encoder"):
        morph(voice_at(np.ones(16), "cd" * 32), "female", found)
    changes = {"a.up": np.ones((2, 1)), "a.down": np.ones((1, 3)), "a.bias": np.ones(2)}
    own = {k: v.astype(np.float16) for k, v in changes.items()}
    with pytest.raises(VoiceError, match="own weights"):
        morph(Voice(np.ones(16), (1.0,), ENCODER, {}, "cd" * 32, own), "female", found)


def test_directions_round_trip_and_belong_to_their_encoder(tmp_path):
    path, found = tmp_path / algebra.FILE, directions()
    found.save(path)
    again = Directions.load(path, ENCODER)
    for name, average in found.averages.items():
        assert np.array_equal(again.averages[name], average)
    assert again.classes == found.classes
    with pytest.raises(WeightsError, match="another encoder"):
        Directions.load(path, "cd" * 32)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError):
        Directions.load(path, ENCODER)


def test_labels_of_a_corpus_and_of_vctk(tmp_path):
    corpus = tmp_path / "mine"
    corpus.mkdir()
    prosody = {"af_x": "af_x", "bm_y": "bm_y", "zf_z": "zf_z", "mix000f": "bf_q", "mix001m": "am_q"}
    recipes = {name: {"prosody": voice} for name, voice in prosody.items()}
    (corpus / "speakers.json").write_text(json.dumps(recipes))
    assert algebra.labels(corpus) == {
        "af_x": "american female", "bm_y": "british male",
        "mine/mix000f": "british female", "mine/mix001m": "american male",
    }  # fmt: skip
    vctk = tmp_path / "vctk"
    vctk.mkdir()
    (vctk / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION\np225  23  F    English    Southern  England\n"
        "p294  33  F    American   San Francisco\np245  25  M    Irish  Dublin\n"
    )
    assert algebra.labels(vctk) == {
        "vctk/p225": "british female", "vctk/p294": "american female",
    }  # fmt: skip
    assert algebra.labels(tmp_path) == {}


def test_averages_are_those_of_the_encoder():
    store = tiny_corpus.store(8)
    torch.manual_seed(0)
    encoder = SpeakerEncoder(tiny_corpus.ENCODER).eval()
    names = sorted({u.speaker for u in store.utterances})
    kinds = ("american female", "american male", "british female", "british male")
    classes = {name: kinds[i % 4] for i, name in enumerate(names[:-1])}
    found = algebra.measure(encoder, ENCODER, store, classes)
    assert len(found.classes) == len(classes) and found.points.shape == (len(classes), 2)
    both = found.averages["female"] * classes_of(classes, "female")
    both = both + found.averages["male"] * classes_of(classes, "male")
    np.testing.assert_allclose(both / len(classes), found.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.points.mean(0), 0, atol=1e-4)
    with pytest.raises(InputError, match="male"):
        algebra.measure(encoder, ENCODER, store, dict.fromkeys(names, kinds[0]))


def classes_of(classes, name):
    return sum(name in kind.split() for kind in classes.values())


@pytest.fixture
def weights(tmp_path):
    folder = make_weights(tmp_path)
    directions(Engine(folder).encoder_hash).save(folder / algebra.FILE)
    return folder


def test_voices_on_the_command_line(weights, tmp_path, capsys):
    encoder = Engine(weights).encoder_hash
    for i, name in enumerate(("ada", "bob")):
        voice_at(np.random.default_rng(i).standard_normal(16), encoder, name=name).save(
            tmp_path / f"{name}.safetensors"
        )
    ada, bob = (str(tmp_path / f"{name}.safetensors") for name in ("ada", "bob"))
    mixed, out = str(tmp_path / "mixed.safetensors"), str(tmp_path / "map.png")
    model = ["--weights", str(weights)]
    assert main(["voices", "blend", f"{ada}=3", f"{bob}=1", "-o", mixed, *model]) == 0
    assert Voice.load(mixed).weights == (0.75, 0.25)
    capsys.readouterr()
    assert main(["voices", "show", ada, mixed, "--json", *model]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["voices"][0]["name"] == "ada" and "towards_female" in shown["voices"][0]
    assert shown["distances"][0][1] == pytest.approx(
        Voice.load(ada).distance(Voice.load(mixed)), abs=1e-4
    )
    assert main(["voices", "morph", ada, "british", "-o", mixed, *model]) == 0
    assert Voice.load(mixed).metadata["method"] == "morph"
    pytest.importorskip("matplotlib")
    assert main(["voices", "map", ada, bob, "-o", out, *model]) == 0
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["voices", "map", "-o", str(tmp_path / "map.doc"), *model]) == 3
    assert main(["voices", "blend", f"{ada}=x", "-o", mixed, *model]) == 3
    (weights / algebra.FILE).unlink()
    assert main(["voices", "morph", ada, "male", "-o", mixed, *model]) == 4


def test_a_voice_stands_where_it_belongs_on_the_map():
    pytest.importorskip("matplotlib")
    found = directions()
    figure = plots.voice_classes(
        found.points, found.classes, {"male": np.array([1.0, 2.0])}, ["Ada"], [np.array([3.0, 4.0])]
    )
    texts = {t.get_text(): t.xy for t in figure.axes[0].texts}
    assert tuple(texts["Ada"]) == (3.0, 4.0) and tuple(texts["male"]) == (1.0, 2.0)
