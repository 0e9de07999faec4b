"""Speaker adaptation: the compact difference, and when it ends; on a tiny model."""

import sys

import numpy as np
import pytest
import torch
from sounds import talk
from tiny import adapted_voice, make_weights, perturbed

from engine import Engine, adapt, adapt_fit, adapt_judge, adapt_sample, adapt_weights
from engine.config import AcousticConfig
from engine.errors import EngineError, InputError, VoiceError, WeightsError
from engine.voice import Voice


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(make_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def spoken():
    config = AcousticConfig()
    path = torch.arange(48)[None] // 4
    mel = torch.arange(48 * 4).float().expand(1, config.audio.n_mels, -1)
    pitch, noise = torch.arange(48 * 4).float()[None], torch.zeros(1, config.audio.n_mels, 1)
    return adapt_sample.Spoken(torch.arange(13)[None], mel, path, pitch, noise)


def test_held_back_audio_is_never_fitted(spoken):
    training, held_back = adapt_sample.split([spoken], AcousticConfig())
    assert len(training) == len(held_back) == 1
    parts = [training[0], held_back[0]]
    assert torch.equal(torch.cat([one.mel for one in parts], 2), spoken.mel)
    assert torch.equal(torch.cat([one.pitch for one in parts], 1), spoken.pitch)
    assert 0.2 < parts[1].mel.shape[2] / spoken.mel.shape[2] < 0.4
    said = [one.text_ids[0][one.path[0]] for one in parts]
    assert torch.equal(torch.cat(said), spoken.text_ids[0][spoken.path[0]])
    for one in parts:
        assert one.path.shape[1] * 4 == one.mel.shape[2] == one.pitch.shape[1]
        assert one.text_ids.shape[1] == int(one.path.max()) + 1


def test_of_many_short_samples_one_is_held_back_whole(spoken):
    short = spoken._replace(mel=spoken.mel[..., :64], path=spoken.path[:, :16])
    training, held_back = adapt_sample.split([short, short, short], AcousticConfig())
    assert len(training) == 2 and [one.mel.shape[2] for one in held_back] == [64]


def fitting(engine, rank, sample):
    kept = adapt_sample.say(engine, torch.ones(16))
    return adapt_fit.Fit(engine.acoustic, rank, engine.recogniser, torch.ones(16), [sample], kept)


def test_no_difference_is_exactly_the_generator(engine):
    own, parameters = adapt_weights.trainable(engine.acoustic, 2)
    batch = (torch.tensor([[5, 9, 12]]), torch.tensor([3]), torch.ones(1, 16))
    assert torch.equal(own.generate(*batch).mel, engine.acoustic.generate(*batch).mel)
    assert parameters and all(p.requires_grad for p in parameters)
    assert not any(p.requires_grad for p in engine.acoustic.parameters())


def test_the_saved_difference_speaks_like_the_fitted_generator(engine):
    own = perturbed(engine.acoustic)
    again = adapt_weights.applied(engine.acoustic, adapt_weights.difference(own))
    batch = (torch.tensor([[5, 9, 12, 20]]), torch.tensor([4]), torch.ones(1, 16))
    fitted, loaded, before = (m.generate(*batch).mel for m in (own, again, engine.acoustic))
    assert torch.allclose(fitted, loaded, atol=0.02)  # float16 in between
    assert (fitted - before).abs().max() > 0.1


def test_only_what_makes_the_mel_is_changed(engine):
    changed = adapt_weights.applied(
        engine.acoustic, adapt_weights.difference(perturbed(engine.acoustic))
    )
    same = dict(engine.acoustic.state_dict())
    other = {k for k, v in changed.state_dict().items() if not torch.equal(v, same[k])}
    assert other and all(k.startswith(("converter.", "spread.", "refine.")) for k in other)


def test_an_adapted_voice_file_is_exact_and_speaks_alike(engine, tmp_path):
    voice = adapted_voice(engine)
    voice.save(tmp_path / "v.safetensors")
    again = Voice.load(tmp_path / "v.safetensors", engine.encoder_hash, engine.acoustic_hash)
    assert again.adaptation.keys() == voice.adaptation.keys()
    for name, array in voice.adaptation.items():
        assert again.adaptation[name].tobytes() == array.tobytes()
    assert (again.acoustic, again.metadata) == (voice.acoustic, voice.metadata)
    told = engine.synthesize("One two.", again).samples
    assert np.array_equal(told, engine.synthesize("One two.", voice).samples)
    plain = engine.synthesize("One two.", voice.embedding).samples
    assert told.shape != plain.shape or not np.array_equal(told, plain)
    streamed = np.concatenate(list(engine.stream("One two.", str(tmp_path / "v.safetensors"))))
    assert np.array_equal(streamed, told)


def test_adapted_voices_speak_with_their_own_generator_only(engine, tmp_path):
    foreign = adapted_voice(engine, acoustic="12" * 32)
    with pytest.raises(VoiceError, match="generator"):
        engine.synthesize("One.", foreign)
    foreign.save(tmp_path / "v.safetensors")
    with pytest.raises(VoiceError, match="generator"):
        Voice.load(tmp_path / "v.safetensors", engine.encoder_hash, engine.acoustic_hash)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("refine.up"),
        lambda a: a.update({"refine.up": a["refine.up"].astype(np.float32)}),
        lambda a: a.update({"refine.up": a["refine.up"] * np.float16(np.inf)}),
        lambda a: a.update({"refine.up": a["refine.up"][:, :1]}),
        lambda a: a.update({"../../etc.up": a["refine.up"]}),
        lambda a: a.update({"refine.bias": a["refine.bias"][:-1]}),
        lambda a: a.update({"x.up": np.zeros((1000, 16), np.float16),
                            "x.down": np.zeros((16, 40_000), np.float16),
                            "x.bias": np.zeros(1000, np.float16)}),
    ],
    ids=["missing", "float32", "infinite", "rank", "name", "short", "too large"],
)  # fmt: skip
def test_impossible_differences_make_no_voice(engine, change):
    changes = dict(adapted_voice(engine).adaptation)
    change(changes)
    with pytest.raises(VoiceError, match="difference"):
        adapted_voice(engine, adaptation=changes)


def test_a_difference_of_another_shape_is_refused_when_spoken(engine):
    changes = dict(adapted_voice(engine).adaptation)
    changes["refine.down"] = np.ones((2, 3), np.float16)
    with pytest.raises(VoiceError, match=r"refine.*fit"):
        engine.synthesize("One.", adapted_voice(engine, adaptation=changes))


def make(engine, method, **options):
    return engine.clone(talk(4.0), 24_000, method=method, **options)


def test_the_best_look_is_what_is_kept(engine):
    looks = []
    voice = make(engine, "adapt-model", budget_s=6, on_look=lambda look: looks.append(look))
    taken = [look for look in looks if look.best]
    assert looks[0].step == 0 and looks[0].best
    distances = [look.distance for look in taken]
    assert distances == sorted(distances, reverse=True)
    limit = looks[0].clarity - adapt.MUMBLED
    clear = [look.distance for look in looks if look.clarity >= limit]
    assert distances[-1] * (1 - adapt.GAIN) <= min(clear) + 1e-6
    assert voice.metadata["adapt_steps"] == str(taken[-1].step)
    assert voice.metadata["adapt_stopped"] in ("distance", "budget")
    assert bool(voice.adaptation) == (taken[-1].step > 0 or len(taken) == 1)
    numbers = voice.embedding.size + sum(a.size for a in voice.adaptation.values())
    assert voice.metadata["parameters"] == str(numbers)


def test_embedding_only_leaves_the_weights_alone_and_fits_10_kb(engine, tmp_path):
    voice = make(engine, "adapt-embedding", budget_s=3)
    assert not voice.adaptation and voice.adapted
    voice.save(tmp_path / "v.safetensors")
    assert (tmp_path / "v.safetensors").stat().st_size < 10_000
    assert len(engine.synthesize("One.", tmp_path / "v.safetensors").samples)


def test_the_colour_of_a_recording_is_not_learnt_but_kept_by_the_voice(engine, monkeypatch):
    fitted = []

    class Fit(adapt_fit.Fit):
        def __init__(self, *args):
            super().__init__(*args)
            fitted.append(self.training[0])

        def distance(self, samples):
            kept.append(samples[0])
            return super().distance(samples)

    kept = []
    monkeypatch.setattr(adapt, "Fit", Fit)
    average = np.linspace(-8, -3, 100).astype("f4")
    found = []
    for colour in (np.zeros(0, "f4"), np.linspace(-1, 1, 100).astype("f4")):
        fitted.clear(), kept.clear()
        one = adapt.adapt(
            engine, [talk(4.0)], [None], np.ones(16, "f4"), colour, average,
            method="adapt-embedding", budget_s=0.5, progress=False,
        )  # fmt: skip
        found.append((one, fitted[0], kept[0]))
    (flat, *plain), (bright, *coloured) = found
    change = torch.linspace(-1, 1, 100)[:, None]
    for before, after in zip(plain, coloured, strict=True):
        torch.testing.assert_close((before.mel - after.mel)[0], change.expand_as(before.mel[0]))
        torch.testing.assert_close((before.noise - after.noise)[0], change)
    assert not flat.equaliser.size and bright.equaliser.size == 100


def test_an_adapted_voice_is_equalised_anew(engine):
    """What it says sounds, on average, as the recordings do, whatever was fitted."""
    judge = adapt_judge.Judge(engine.recogniser, np.linspace(-4, -3, 100), engine.backend)
    far = judge(perturbed(engine.acoustic), torch.ones(16)).equaliser
    near = judge(engine.acoustic, torch.ones(16)).equaliser
    assert np.abs(far - near).max() > 0.1
    assert far.shape == (100,) and np.isfinite(far).all()


def test_the_noise_of_a_room_is_not_learnt(engine):
    """Where the recording is no louder than its noise, a voice that is silent has no loss."""
    one = adapt_sample.prepare(engine, engine.recogniser, talk(3.0), None)
    fit = fitting(engine, 0, one)
    loud = one._replace(noise=torch.full_like(one.noise, 30.0), mel=torch.full_like(one.mel, 30.0))
    with torch.no_grad():
        assert fit.loss(loud, False) < fit.loss(one._replace(mel=loud.mel), False) - 1


@pytest.mark.parametrize("how", ["callback", "ctrl-c"])
def test_cancelling_keeps_the_best_so_far(engine, how):
    steps = []

    def on_look(look):
        steps.append(look)
        if len(steps) == 3:
            if how == "ctrl-c":
                raise KeyboardInterrupt
            return False
        return True

    voice = make(engine, "adapt-embedding", on_look=on_look)
    assert len(steps) == 3 and voice.metadata["adapt_stopped"] == "cancelled"
    best = [look for look in steps if look.best][-1]
    assert voice.metadata["adapt_steps"] == str(best.step)
    plain = engine.clone(talk(4.0), 24_000)
    assert (best.step == 0) == np.array_equal(voice.embedding, plain.embedding)


def test_the_same_recording_makes_the_same_voice(engine):
    voices = []
    for _ in range(2):
        torch.rand(7)  # whatever was drawn before
        looks = []
        voices.append(make(
            engine, "adapt-model", on_look=lambda look, n=looks: n.append(look) or len(n) < 3
        ))  # fmt: skip
    one, other = voices
    assert np.array_equal(one.embedding, other.embedding)
    assert one.adaptation.keys() == other.adaptation.keys()
    assert all(np.array_equal(a, other.adaptation[k]) for k, a in one.adaptation.items())


def test_before_the_first_look_there_is_nothing_to_keep(engine, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.adapt_fit.Fit.distance", press)
    with pytest.raises(KeyboardInterrupt):
        make(engine, "adapt-embedding")


def test_fitting_brings_the_mel_nearer(engine, monkeypatch):
    monkeypatch.setattr(adapt_fit, "WEIGHT_RATE", 1e-2)  # a random generator has far to go
    aligned = adapt_sample.prepare(engine, engine.recogniser, talk(3.0), None)
    fit = fitting(engine, 4, aligned)
    before = fit.distance([aligned])
    for step in range(60):
        fit.step(step)
    assert fit.distance([aligned]) < 0.9 * before


def test_what_the_voice_could_say_before_is_kept(engine, monkeypatch):
    monkeypatch.setattr(adapt_fit, "WEIGHT_RATE", 1e-2)
    aligned = adapt_sample.prepare(engine, engine.recogniser, talk(3.0), None)
    forgotten = []
    for share in (0.0, adapt_fit.KEPT_SHARE):
        monkeypatch.setattr(adapt_fit, "KEPT_SHARE", share)
        fit = fitting(engine, 4, aligned)
        for step in range(40):
            fit.step(step)
        with torch.no_grad():
            forgotten.append(sum(float(fit.forgotten(one)) for one in fit.kept) / len(fit.kept))
    assert forgotten[1] < forgotten[0] - 0.1, forgotten


def test_what_adaptation_needs_is_said(engine, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="2 transcripts"):
        engine.clone(talk(3.0), 24_000, method="adapt-model", transcript=["a", "b"])
    with pytest.raises(InputError, match="speech"):
        engine.clone(talk(0.9), 24_000, method="adapt-model", transcript="One.")
    with pytest.raises(InputError, match="budget"):
        make(engine, "adapt-model", budget_s=-1)
    without = make_weights(tmp_path)
    (without / "recogniser.safetensors").unlink()
    with pytest.raises(WeightsError, match="recogniser"):
        make(Engine(without), "adapt-model")
    monkeypatch.setitem(sys.modules, "pyworld", None)
    with pytest.raises(EngineError, match="adapt"):
        make(engine, "adapt-model")


def test_finetuned_is_refused_where_the_encoder_was_not(engine, monkeypatch):
    same = engine.clone(talk(3.0), 24_000)
    tuned = engine.clone(talk(3.0), 24_000, method="encode-finetuned")
    assert np.array_equal(same.embedding, tuned.embedding)
    assert tuned.metadata["method"] == "encode-finetuned"
    monkeypatch.setattr(engine, "encoder_tuned", False)
    with pytest.raises(InputError, match="not tuned"):
        engine.clone(talk(3.0), 24_000, method="encode-finetuned")
