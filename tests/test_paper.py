"""The paper's evaluation: judges that learn, right figures, a whole run on a tiny model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_corpus
import torch
from sounds import talk
from tiny import make_weights

from engine import Engine, audio, paper
from engine.__main__ import main
from engine.config import ClassifierConfig, EncoderConfig, TrainConfig, VerifierConfig
from engine.errors import InputError, WeightsError
from engine.evaluate import find_speakers
from engine.judge_tasks import ClassifierTask, VerifierTask
from engine.models.verifier import SpeakerClassifier, SpeakerVerifier
from engine.paper import Plan, evaluate_paper
from engine.paper_report import Clone, PaperReport

SMALL = VerifierConfig(filters=4, stride=(16, 4), channels=8)


def test_padding_changes_neither_judge():
    torch.manual_seed(0)
    mel = torch.randn(1, 100, 61)
    padded = torch.cat([mel, torch.full((1, 100, 40), 7.0)], 2)
    frames = torch.tensor([61])
    for judge in (SpeakerVerifier(SMALL), SpeakerClassifier(ClassifierConfig(channels=8))):
        judge.eval()
        assert torch.allclose(judge(mel, frames), judge(padded, frames), atol=1e-5)
        assert torch.allclose(judge(mel + 1.0, frames), judge(mel, frames), atol=1e-4)  # gain


def test_the_score_is_symmetric_and_the_plda_form():
    torch.manual_seed(0)
    verifier = SpeakerVerifier(SMALL)
    torch.nn.init.normal_(verifier.within)
    x, y = torch.randn(3, 8), torch.randn(2, 8)
    assert torch.allclose(verifier.score(x, y), verifier.score(y, x).T, atol=1e-5)
    s = (verifier.within + verifier.within.T) / 2
    by_hand = verifier.weight * x[1] @ y[0] - x[1] @ s @ x[1] - y[0] @ s @ y[0] + verifier.bias
    assert torch.allclose(verifier.score(x, y)[1, 0], by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", ["verifier", "classifier"])
def test_the_judges_learn_and_every_batch_depends_on_its_step_alone(kind):
    store = tiny_corpus.store(24)
    train = TrainConfig(batch_size=8, bfloat16=False)
    if kind == "verifier":
        task = VerifierTask(store, SMALL, train)
    else:
        task = ClassifierTask(store, ClassifierConfig(channels=16, speakers=24), train, 0.0)
    assert torch.equal(task.batch(3).mel, task.batch(3).mel)
    first, last = tiny_corpus.learn(task)
    assert last < 0.85 * first
    task.model.eval()
    with torch.no_grad():
        assert all(0 <= v <= 1 for v in task.validate().values())


def test_the_verifier_is_never_shown_its_held_out_speakers():
    task = VerifierTask(tiny_corpus.store(24), SMALL, TrainConfig(batch_size=8))
    assert not set(task.training.speakers) & set(task.held_out.speakers)
    with pytest.raises(InputError, match="speakers"):
        VerifierTask(tiny_corpus.store(6), SMALL, TrainConfig(batch_size=8))


def made(method, samples, same, other, right):
    return Clone("p", method, samples, 2.0, 0.5, 100, 900, {1: same}, {1: other}, right, [0.0, 1.0])


def test_figures_are_those_of_their_scores():
    clones = (
        made("encode", 1, [1.0, 2.0], [-1.0, 0.0], [True, False]),
        made("encode", 1, [0.5], [-2.0], [True]),
        made("adapt-model", 1, [-1.0, 1.0], [0.0, -3.0], [False, False]),
    )
    report = PaperReport(clones, made("real recordings", 0, [1.0], [0.0], [True]))
    figures = report.figures()
    assert figures["accuracy"]["encode"] == {1: pytest.approx(2 / 3)}
    assert figures["accuracy"]["adapt-model"] == {1: 0.0}
    assert figures["EER, 1 clip enrolled"]["encode"] == {1: 0.0}
    assert figures["EER, 1 clip enrolled"]["adapt-model"] == {1: 0.5}
    assert "EER, 5 clips enrolled" not in figures  # not judged: not printed as a number
    row = report.table_1()[0]
    assert (row["cloning_s"], row["synthesis_s"], row["parameters"]) == (2.0, 0.5, 100)
    table = report.table()
    assert "0.667" in table and "Table 1" in table and "text and audio" in table


@pytest.fixture
def people(tmp_path):
    for i, name in enumerate(("ann", "ben")):
        (tmp_path / "people" / name).mkdir(parents=True)
        for n in range(4):
            clip = talk(3.0, seed=10 * i + n) * (1 + 0.1 * n)
            audio.write(tmp_path / "people" / name / f"{n}.wav", clip, 24_000)
    return tmp_path / "people"


def test_cloning_samples_and_truth_come_from_different_recordings(people, tmp_path):
    engine = Engine(make_weights(tmp_path))
    speaker = find_speakers(people)[0]
    person = paper._person(engine, speaker)
    assert len(person.cloning) == len(person.truth) == 4  # two pieces of each
    true = [audio.prepare(f, config=EncoderConfig().audio).samples for f in speaker.files[2:]]
    assert np.array_equal(np.concatenate(person.truth), np.concatenate(true))


def test_a_whole_run_prints_tables_and_draws(people, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(paper, "SMOKE", replace(paper.SMOKE, classifier_steps=2))
    weights, out = make_weights(tmp_path), tmp_path / "out"
    options = ["--weights", str(weights), "--out", str(out), "--quiet", "--smoke"]
    wanted = ["--methods", "encode,encode-finetuned", "--counts", "1,2,9"]
    assert main(["evaluate", str(people), "--paper", *options, *wanted]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "encode-finetuned" in printed and "real recordings" in printed
    found = json.loads((out / "paper.json").read_text())
    assert set(found["figures"]["EER, 1 clip enrolled"]["encode"]) == {"1", "2"}  # nobody has 9
    assert found["trials"] == 2 * 2 * 2 * 2  # people, methods, counts; own and other, a sentence
    assert {p.name for p in out.iterdir()} == {
        "paper.json", "paper.md", "figures.png", "voices.png",
    }  # fmt: skip
    assert main(["evaluate", str(people), "--paper", *options, "--methods", "magic"]) == 3


def test_adaptation_is_evaluated_without_transcripts(people, tmp_path):
    engine = Engine(make_weights(tmp_path))
    plan = Plan(("adapt-model",), (1,), 2, 1, 1.0, 0, progress=False)
    report = evaluate_paper(engine, people, plan)
    assert "accuracy" not in report.figures()  # no classifier asked for
    assert {c.person for c in report.clones} == {"ann", "ben"}
    assert report.clones[0].clone_s < 30


@pytest.mark.parametrize("during", ["classifier", "adaptation"])
def test_ctrl_c_ends_the_evaluation_whatever_it_is_doing(people, tmp_path, monkeypatch, during):
    """Training and adaptation both end in peace when they are interrupted."""
    if during == "classifier":
        monkeypatch.setattr(paper.train, "run", lambda task, how, folder, on_step: on_step(1))
        plan = Plan(("encode",), (1,), 2, 1, 1.0, 5, progress=False)
    else:
        def press(self, step):
            raise KeyboardInterrupt

        monkeypatch.setattr("engine.adapt_fit.Fit.step", press)
        plan = Plan(("adapt-model",), (1,), 2, 1, 1.0, 0, progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate_paper(Engine(make_weights(tmp_path)), people, plan)


def test_people_and_verifier_are_needed(people, tmp_path):
    folder = make_weights(tmp_path)
    alone = tmp_path / "alone"
    (people / "ann").rename(tmp_path / "ann")
    alone.mkdir()
    (tmp_path / "ann").rename(alone / "ann")
    with pytest.raises(InputError, match="two people"):
        evaluate_paper(Engine(folder), alone, Plan(progress=False))
    (folder / "verifier.safetensors").unlink()
    with pytest.raises(WeightsError, match="verifier"):
        evaluate_paper(Engine(folder), alone, Plan(progress=False))
