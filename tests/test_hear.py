"""What is said and when: the search through tables of log-probabilities, and who makes them."""

from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import tiny_corpus
import torch

from engine import Engine, audio, hear
from engine.align import align_all
from engine.config import RecogniserConfig, TrainConfig
from engine.errors import InputError
from engine.hear import free_path, path_of
from engine.models.layers import log_mel
from engine.models.recogniser import SILENCE, PhoneRecogniser
from engine.recogniser_task import RecogniserTask, step_classes
from engine.symbols import GAP, PHONES, SHORT_PAUSE, START

RATE = 24_000
STEP_S = 2 * 256 / RATE
SAMPLE = Path(hear.__file__).parent / "samples" / "austen.flac"
SAID = "Unless to be rather cold-hearted and rather selfish is to be ill-disposed."


def table(said, sure=0.9):
    """Log-probabilities in which each step's class has `sure`, the others the rest."""
    count = len(PHONES) + 1
    found = np.full((len(said), count), np.log((1 - sure) / (count - 1)))
    found[np.arange(len(said)), said] = np.log(sure)
    return found


def spoken(*runs):
    """Classes of each step from (phone, steps)."""
    index = {p: i for i, p in enumerate(PHONES)} | {"": SILENCE}
    return [index[phone] for phone, steps in runs for _ in range(steps)]


WORDS = spoken(("", 5), ("K", 4), ("AE1", 6), ("T", 3), ("", 8), ("T", 3), ("UW1", 7), ("", 4))


def test_one_strange_step_makes_no_phone():
    noisy = list(WORDS)
    noisy[7] = 3
    assert free_path(table(noisy, 0.2)).tolist() == WORDS
    assert free_path(table(noisy, 0.99999)).tolist() == noisy  # unless it is sure


def test_the_free_path_is_the_best_one():
    rng = np.random.default_rng(0)
    scores = np.log(rng.dirichlet(np.ones(3), 6))

    def worth(path):
        return scores[np.arange(6), path].sum() - hear.SWITCH * np.count_nonzero(np.diff(path))

    paths = np.stack(np.meshgrid(*[range(3)] * 6), -1).reshape(-1, 6)
    assert worth(free_path(scores)) == pytest.approx(max(map(worth, paths)))


def fake(monkeypatch, said):
    monkeypatch.setattr(hear, "log_probabilities", lambda *_: table(said))
    engine_side = Engine().recogniser
    return lambda text=None: hear.hear(engine_side, torch.zeros(1, 100, 2 * len(said)), text)


def test_phones_pauses_and_times_without_a_transcript(monkeypatch):
    found = fake(monkeypatch, WORDS)()
    assert found.symbols == [START, "K", "AE1", "T", SHORT_PAUSE, "T", "UW1", "."]
    assert found.times == pytest.approx(np.array([0, 5, 9, 15, 18, 26, 29, 36, 40]) * STEP_S)


def test_a_transcript_lies_over_what_was_said(monkeypatch):
    found = fake(monkeypatch, WORDS)("Cat, too.")
    assert found.symbols == [START, "K", "AE1", "T", SHORT_PAUSE, "T", "UW1", "."]
    assert found.times == pytest.approx(np.array([0, 5, 9, 15, 18, 26, 29, 36, 40]) * STEP_S)


def test_words_that_run_together_and_equal_phones_in_a_row(monkeypatch):
    said = spoken(("B", 3), ("AE1", 6), ("D", 6), ("AO1", 5), ("G", 3))
    found = fake(monkeypatch, said)("Bad dog.")
    assert found.symbols == [START, "B", "AE1", "D", GAP, "D", "AO1", "G", "."]
    assert (np.diff(found.times) >= 0).all()
    assert found.times[3] == pytest.approx(9 * STEP_S)
    assert 9 * STEP_S < found.times[5] < 15 * STEP_S == pytest.approx(found.times[6])


def test_texts_that_were_not_said_are_refused(monkeypatch):
    listen = fake(monkeypatch, WORDS)
    with pytest.raises(InputError, match="not what is said"):
        listen("Somebody else says something long that needs very much more time than this does.")
    with pytest.raises(InputError, match="not what is said"):
        listen("Oh why?")
    with pytest.raises(InputError, match="no speech"):
        fake(monkeypatch, spoken(("", 30)))()


def test_states_are_said_in_order_and_only_silence_is_left_out():
    scores = np.log(np.random.default_rng(1).dirichlet(np.ones(5), 12)) / 4
    silent = np.array([True, False, True, False, True])
    path = path_of(scores, silent, "")
    assert (np.diff(path) >= 0).all() and {1, 3} <= set(path.tolist())
    assert path[0] <= 1 and path[-1] >= 3


def test_padding_does_not_change_what_is_heard():
    torch.manual_seed(0)
    model = PhoneRecogniser(Engine().recogniser.config).eval()
    mel = torch.randn(1, 100, 81)
    alone = model(mel, torch.tensor([81]))
    padded = torch.cat([mel, 5 * torch.randn(1, 100, 30)], 2)
    beside = model(padded, torch.tensor([81]))
    torch.testing.assert_close(alone, beside[..., : alone.shape[2]])


def test_the_colour_of_a_microphone_does_not_matter():
    model = Engine().recogniser
    mel = torch.randn(1, 100, 80)
    bright = mel + torch.linspace(-2, 2, 100)[:, None]
    frames = torch.tensor([80])
    torch.testing.assert_close(model(mel, frames), model(bright, frames), atol=1e-3, rtol=1e-3)


def test_training_labels_follow_the_durations():
    config = RecogniserConfig()
    store = tiny_corpus.store(2)
    aligned = align_all(store, RATE)[0]
    classes = step_classes(aligned, 1.0, 400, config)
    names = [PHONES[c] if c < SILENCE else "" for c in classes.tolist() if c >= 0]
    said = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
    said = [name for name in said if name]
    symbols = aligned.sentence.symbols()
    asked = iter(symbols)
    assert all(name in asked for name in said)  # in this order; the shortest fall between two steps
    assert len(said) > 0.7 * sum(s in PHONES for s in symbols)
    begin = next(aligned.times[i] for i, s in enumerate(symbols) if s in PHONES)
    assert int((classes != SILENCE).nonzero()[0]) == pytest.approx(begin / STEP_S, abs=2)
    faster = step_classes(aligned, 2.0, 200, config)
    assert (faster == classes[::2]).float().mean() > 0.95


def test_the_recogniser_learns_and_every_batch_depends_on_its_step_alone():
    config = RecogniserConfig(channels=16, layers=2)
    task = RecogniserTask(tiny_corpus.store(24), config, TrainConfig(batch_size=4))
    assert torch.equal(task.batch(3).mel, task.batch(3).mel)
    assert not set(task.training) & set(task.held_out)
    first, last = tiny_corpus.learn(task)
    assert last < 0.8 * first
    task.model.eval()
    with torch.no_grad():
        assert 0 <= task.validate()["accuracy_degraded"] <= 1
    with pytest.raises(InputError, match="durations"):
        RecogniserTask(tiny_corpus.store(1), config, TrainConfig(batch_size=16))


def test_the_shipped_recogniser_follows_a_reader():
    """Phones alike to those of her words, and a transcript that is not hers is refused."""
    engine = Engine()
    samples = audio.prepare(SAMPLE, config=engine.config.encoder.audio).samples
    mel = log_mel(torch.from_numpy(samples)[None], engine.config.encoder.audio)
    alone, told = (hear.hear(engine.recogniser, mel, text) for text in (None, SAID))
    heard = [s.rstrip("012") for s in alone.symbols if s in PHONES]
    said = [s.rstrip("012") for s in told.symbols if s in PHONES]
    assert SequenceMatcher(None, heard, said, autojunk=False).ratio() > 0.6
    with pytest.raises(InputError, match="not what is said"):
        hear.hear(engine.recogniser, mel, "He was not an ill-disposed young man, but had a garden.")
