"""The device's path on a CPU: the ordinary path's samples, whatever the sizes and neighbours."""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from device_spy import NoWaiting, apart
from sounds import talk
from tiny import adapted_voice, make_weights

from engine import Engine, InputError, kernels
from engine.device import DevicePath, acoustic, path, replay, slots
from engine.errors import EngineError, Overloaded
from engine.models.vocoder import BandPrediction, VocoderStream
from engine.serve.scheduler import Scheduler
from engine.text import front_end
from engine.voice import Voice

TEXTS = [
    "Hello there, said Mr. Fox. It was 7 o'clock!",
    "Hi.",
    "One two three four five six seven. Eight. Nine ten eleven, twelve?",
]
SPEEDS, SEEDS = [1.0, 0.8, 1.5], [3, 4, 5]


@pytest.fixture(scope="module", autouse=True)
def layers_in_double():
    """Sums of other sizes round differently, and the recurrence amplifies that.

    What is compared here is who gets which values, so both sides round once, to float32.
    """
    convolve, linear = torch.nn.Conv1d._conv_forward, torch.nn.functional.linear

    def conv1d(self, x, weight, bias):
        return convolve(self, x.double(), weight.double(), bias.double()).to(x.dtype)

    predict = BandPrediction.forward

    def prediction(self, mel):
        if mel.dtype == torch.float64:
            return predict(self, mel)
        return tuple(part.to(mel.dtype) for part in copy.deepcopy(self).double()(mel.double()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv1d, "_conv_forward", conv1d)
        patch.setattr(BandPrediction, "forward", prediction)
        patch.setattr(
            torch.nn.Linear, "forward",
            lambda self, x: linear(x.double(), self.weight.double(), self.bias.double()).to(x.dtype)
        )  # fmt: skip
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(make_weights(tmp_path_factory.mktemp("w")), device="cpu", precision="float32")
    torch.manual_seed(1)  # an untrained converter has one voice and hardly a sound
    for parameter in (*made.acoustic.parameters(), *made.vocoder.conditioning.parameters()):
        parameter.add_(torch.randn_like(parameter) * 0.1)
    made.decoder = made.acoustic.network()
    return made


@pytest.fixture(scope="module")
def voices(engine):
    """The last one without an equaliser."""
    found = []
    for i in range(3):
        rng = np.random.default_rng(i)
        colour = rng.uniform(-1, 1, 100 if i < 2 else 0)
        found.append(Voice(
            rng.normal(size=16), (1.0,), engine.encoder_hash, {}, engine.acoustic_hash,
            equaliser=colour,
        ))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def ordinary(engine, voices):
    return [
        engine.synthesize(text, emb, speed=speed, seed=seed)
        for text, emb, speed, seed in zip(TEXTS, voices, SPEEDS, SEEDS, strict=True)
    ]


def assert_same(made, expected):
    """Up to what rounding is left, which the recurrence amplifies."""
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, atol=1e-4 * np.abs(expected).max())


def speak(device_path, voices):
    speakers = [device_path.speaker(emb) for emb in voices]
    return device_path.synthesize(TEXTS, speakers, SPEEDS, SEEDS)


def test_voices_differ_and_can_be_heard(ordinary):
    """Or the other tests here could not fail."""
    for speech in ordinary:
        assert np.abs(speech.samples).max() > 1e-3
    assert len({len(speech.samples) for speech in ordinary}) == 3


@pytest.mark.parametrize("options", [
    {"slots": 6, "batch": 6}, {"slots": 3, "batch": 2}, {"slots": 1}, {"slots": 4, "buckets": False}
], ids=str)  # fmt: skip
def test_texts_together_are_each_text_alone(engine, voices, ordinary, options):
    device_path = DevicePath(engine, capacity=512, **options)
    for made, expected in zip(speak(device_path, voices), ordinary, strict=True):
        assert_same(made.samples, expected.samples)
        assert made.words == expected.words and made.report == expected.report
    assert device_path.slots.free == options["slots"]  # all have left


def test_a_sentence_cut_short_is_made_again(engine, voices, ordinary, monkeypatch):
    monkeypatch.setattr(acoustic, "STEPS_PER_SYMBOL", 0)
    monkeypatch.setattr(acoustic, "SPARE_STEPS", 1)
    monkeypatch.setattr(acoustic, "STEPS", 4)
    attempts = []
    real = acoustic.AcousticStage.limit
    monkeypatch.setattr(
        acoustic.AcousticStage, "limit",
        lambda self, symbols, attempt: attempts.append(attempt) or real(self, symbols, attempt),
    )
    made = speak(DevicePath(engine, slots=4, capacity=512), voices)
    assert max(attempts) > 2
    for one, expected in zip(made, ordinary, strict=True):
        assert_same(one.samples, expected.samples)


def test_a_sentence_longer_than_the_slots_gets_slots_of_its_own(engine, voices, ordinary):
    device_path = DevicePath(engine, slots=4, capacity=32)
    for made, expected in zip(speak(device_path, voices), ordinary, strict=True):
        assert_same(made.samples, expected.samples)
    with pytest.raises(InputError, match="write it as several"):
        list(device_path.stream(TEXTS[0], device_path.speaker(voices[0]), 1.0, 0))


def test_chunks_of_the_stream_join_to_what_synthesize_returns(engine, voices, ordinary):
    device_path = DevicePath(engine, slots=2, capacity=512)
    speaker = device_path.speaker(voices[0])
    made = list(device_path.stream(TEXTS[0], speaker, SPEEDS[0], SEEDS[0]))
    assert len(made) > 20
    assert_same(np.concatenate(made), ordinary[0].samples)
    unfinished = device_path.stream(TEXTS[0], device_path.speaker(voices[0]), 1.0, 0)
    next(unfinished)
    unfinished.close()
    assert device_path.slots.free == 2


def test_padding_reaches_no_mel(engine, voices):
    stage = acoustic.AcousticStage(engine)
    texts = [[5, 9, 3, 7], [2, 8, 4, 4, 6, 1, 3] * 5, [11, 3]]
    speakers = [engine.speaker(voice) for voice in voices]
    together = stage(texts, speakers, SPEEDS)
    mel, told = together.mel.clone(), together.told.get()
    for row, text in enumerate(texts):
        alone = stage([text], speakers[row : row + 1], SPEEDS[row : row + 1])
        path_alone, *numbers = alone.told.get()
        steps, finished, frames = (int(part[0]) for part in numbers)
        assert [int(part[row]) for part in told[1:]] == [steps, finished, frames]
        np.testing.assert_array_equal(told[0][row, :steps], path_alone[0, :steps])
        torch.testing.assert_close(
            mel[row, :, :frames], alone.mel[0, :, :frames], atol=2e-5, rtol=1e-5
        )


def make_slots(engine, count=4, **options):
    return slots.VocoderSlots(engine.vocoder, engine.network, slots=count, capacity=64, **options)


@functools.cache
def mels(count):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, 100, 9 + 7 * i, generator=generator) * 2 - 5 for i in range(count)]


def alone(engine, number):
    stream = VocoderStream(engine.vocoder, engine.network, mels(6)[number], 100 + number, number)
    return stream.next(10**6).numpy()


@pytest.mark.parametrize("buckets", [True, False])
def test_streams_join_and_leave_between_chunks_and_never_notice(engine, buckets):
    """A random schedule: pauses, chunks of several sizes, early leavers, reused slots and rows."""
    room, rng = make_slots(engine, buckets=buckets), np.random.default_rng(5)
    waiting, running = list(range(6)) * 3, {}
    pieces = {}
    while waiting or running:
        while waiting and room.free and rng.random() < 0.7:
            name = len(pieces), waiting.pop()
            mel = mels(6)[name[1]]
            joined = room.join(mel, [mel.shape[-1]], [100 + name[1]], [name[1]])
            running[name], pieces[name] = joined[0], []
        stepped = [name for name in running if rng.random() < 0.7]
        if stepped:
            made = room.step([running[name] for name in stepped], int(rng.integers(1, 6)))
            for name, samples in zip(stepped, made, strict=True):
                pieces[name].append(samples)
        for name, stream in list(running.items()):
            if stream.ended or (stream.at and rng.random() < 0.02):
                room.leave(running.pop(name))
    whole = 0
    for (_, number), parts in pieces.items():
        made, expected = np.concatenate([*parts, np.zeros(0)]), alone(engine, number)
        whole += len(made) == len(expected)
        assert_same(made, expected[: len(made)])
    assert whole > 8 and room.free == 4 and set(room.rows) == {None}


def test_a_streams_bits_do_not_depend_on_slot_row_or_neighbours(engine):
    room = make_slots(engine, 4)
    pick = lambda *numbers: torch.cat([mels(6)[n][..., :9] for n in numbers])  # noqa: E731
    first = room.join(pick(1, 2, 3, 0), [9] * 4, [1, 2, 3, 9], [0] * 4)
    before = room.step(first, 9)
    for stream in reversed(first):
        room.leave(stream)
    second = room.join(pick(4, 0, 5, 1), [9] * 4, [7, 9, 8, 1], [0] * 4)
    after = room.step([second[3], second[1], second[0], second[2]], 9)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[3])


def test_slots_refuse_what_does_not_fit(engine):
    room = make_slots(engine, 1)
    (stream,) = room.join(mels(1)[0], [9], [0], [0])
    with pytest.raises(Overloaded, match="0 of 1"):
        room.join(mels(1)[0], [9], [0], [0])
    room.leave(stream)
    room.leave(stream)  # twice is once
    assert room.free == 1
    with pytest.raises(EngineError, match="left"):
        room.step([stream], 4)
    with pytest.raises(EngineError, match="65 frames"):
        room.join(torch.zeros(1, 100, 65), [65], [0], [0])


def test_an_error_frees_the_slots(engine, voices, monkeypatch):
    device_path = DevicePath(engine, slots=4, capacity=512)

    def fail(*_args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(slots.VocoderSlots, "launch", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            speak(device_path, voices)
    assert device_path.slots.free == 4


def test_an_engine_with_a_path_speaks_and_streams_by_it(engine, voices, ordinary, monkeypatch):
    monkeypatch.setattr(engine, "path", DevicePath(engine, slots=3, capacity=512))
    both = engine.synthesize([TEXTS[0], "Two."], voices[:2], seed=SEEDS[0])
    assert_same(both[0].samples, ordinary[0].samples)
    streamed = np.concatenate(list(engine.stream(TEXTS[0], voices[0], seed=SEEDS[0])))
    assert_same(streamed, ordinary[0].samples)
    assert engine.path.slots._replays and engine.path._stage._finishers  # it was asked
    with pytest.raises(InputError, match="speed"):
        engine.synthesize("Hi.", voices[0], speed=9.0)


def test_a_scheduler_drives_it(engine, voices, ordinary, monkeypatch):
    monkeypatch.setattr(engine, "path", DevicePath(engine, slots=4, capacity=512))
    with Scheduler(engine) as scheduler:
        jobs = [
            scheduler.submit(text, emb, speed=speed, seed=seed, stream=i != 1)
            for i, (text, emb, speed, seed) in enumerate(
                zip(TEXTS, voices, SPEEDS, SEEDS, strict=True)
            )
        ]
        for job, expected in zip(jobs, ordinary, strict=True):
            assert_same(np.concatenate(list(job)), expected.samples)
        assert scheduler.device is engine.path
    assert engine.path.slots.free == 4


def test_voices_with_their_own_weights_speak_beside_others(engine, voices, monkeypatch):
    """Whole, streamed and scheduled, each as the ordinary path speaks it; memory stays bounded."""
    colour = np.random.default_rng(9).uniform(-1, 1, 100)
    mixed = [
        adapted_voice(engine, 1), voices[0], adapted_voice(engine, 2, equaliser=colour),
        replace(adapted_voice(engine, 1), embedding=np.linspace(-1, 1, 16)), voices[1],
    ]  # fmt: skip
    said = [*TEXTS, *TEXTS[:2]]
    pairs = list(zip(said, mixed, strict=True))
    expected = [engine.synthesize(text, voice, seed=7) for text, voice in pairs]
    plain = replace(mixed[0], adaptation={}, metadata={})
    other = engine.synthesize(said[0], plain, seed=7)
    difference = np.abs(other.samples - expected[0].samples).max()
    assert difference > 0.1 * np.abs(expected[0].samples).max()
    monkeypatch.setattr(engine, "path", DevicePath(engine, slots=3, capacity=512))
    for made, right in zip(engine.synthesize(said, mixed, seed=7), expected, strict=True):
        assert_same(made.samples, right.samples)
        assert made.words == right.words
    streamed = np.concatenate(list(engine.stream(said[2], mixed[2], seed=7)))
    assert_same(streamed, expected[2].samples)
    captured = len(engine.path._guest._stage._finishers)
    for seed in range(3, 9):  # more than the engine keeps ready
        voice = adapted_voice(engine, seed)
        engine.synthesize(said[0], voice)
    assert len(engine.path._guest._stage._finishers) <= captured + 1
    with Scheduler(engine) as scheduler:
        jobs = [scheduler.submit(text, voice, seed=7, stream=False) for text, voice in pairs]
        for job, right in zip(jobs, expected, strict=True):
            assert_same(np.concatenate(list(job)), right.samples)


def test_convolutions_stay_exact_until_the_last_thread_is_out():
    """One that leaves earlier does not take the flags of another away."""
    before = torch.backends.cudnn.allow_tf32
    with replay.exact():
        with ThreadPoolExecutor(1) as pool:
            other = replay.exact()
            pool.submit(other.__enter__).result()
            pool.submit(other.__exit__, None, None, None).result()
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 == before


def test_many_people_are_cloned_as_each_alone(engine, tmp_path):
    people = [talk(3.0), [talk(2.0, seed=1), talk(4.1, seed=2)], talk(1.7, seed=3)]
    many = engine.clone_many(people, 24_000)
    for voice, person in zip(many, people, strict=True):
        expected = engine.clone(person, 24_000)
        np.testing.assert_allclose(voice.embedding, expected.embedding, atol=1e-5)
        np.testing.assert_allclose(voice.weights, expected.weights, atol=1e-6)
        assert voice.metadata == expected.metadata
    bad = [talk(3.0), np.zeros(48_000, np.float32), tmp_path / "missing.wav"]
    with pytest.raises(InputError, match=r"person 1: .*silent"):
        engine.clone_many(bad, 24_000)
    voice, *errors = engine.clone_many(bad, 24_000, errors="return")
    np.testing.assert_allclose(voice.embedding, many[0].embedding, atol=1e-5)
    assert [type(e) for e in errors] == [InputError] * 2
    assert engine.clone_many([]) == []


# ---- no waiting ---------------------------------------------------------------------------------


@pytest.fixture
def unseen_kernels(monkeypatch):
    """Kernels may wait inside on a CPU; what a GPU's do is the matter of their own tests."""
    for op in (kernels.decoder_generate, kernels.wavenet_generate, kernels.stream_noise,
               kernels.lpc_synthesis, kernels.pqmf_synthesis, kernels.log_mel):  # fmt: skip
        for name, impl in list(op.impls.items()):
            monkeypatch.setitem(op.impls, name, replace(impl, run=apart(impl.run)))


def unseen_transfers(monkeypatch):
    for module in (acoustic, slots):
        monkeypatch.setattr(module, "upload", apart(module.upload))


def test_the_host_waits_for_nothing_but_samples(engine, voices, monkeypatch, unseen_kernels):
    unseen_transfers(monkeypatch)
    device_path = DevicePath(engine, slots=4, capacity=512)
    with NoWaiting() as spy:
        speak(device_path, voices)
    assert spy.operations > 500


def test_the_spy_sees_who_waits(engine, voices, unseen_kernels):
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        engine.synthesize("Hi.", voices[0])


class Elsewhere:
    """Stands for a read-back: tensors of "meta" have no values."""

    def __init__(self, *tensors):
        assert {t.device.type for t in tensors} == {"meta"}


def on_meta(engine, monkeypatch):
    """A copy of an engine whose tensors have no values, and kernels that give only sizes."""
    made = Engine(engine.folder, device="cpu", precision="float32", backend="reference")
    made.device = torch.device("meta")
    for model in (made.acoustic, made.vocoder, made.encoder):
        model.to("meta")
    made.network, made.decoder = made.vocoder.network(), made.acoustic.network()

    def decoder(inputs, network, steps, state):
        batch, channels = len(inputs.lengths), network.weights.mel.shape[1]
        hidden = inputs.attended.new_empty(batch, steps, channels)
        return hidden, state.position.new_empty(batch, steps), state.position.clone()

    for op, run in (
        (kernels.decoder_generate, decoder),
        (kernels.wavenet_generate, lambda _c, noise, _n, _s: torch.empty_like(noise)),
        (kernels.lpc_synthesis, lambda excitation, *_: torch.empty_like(excitation)),
    ):
        monkeypatch.setitem(op.impls, "reference", replace(op.impls["reference"], run=run))
    for module in (acoustic, slots):
        monkeypatch.setattr(module, "Readback", Elsewhere)
    return made


def test_everything_between_text_and_samples_lies_on_the_device(engine, voices, monkeypatch):
    meta = on_meta(engine, monkeypatch)
    unseen_transfers(monkeypatch)
    device_path = DevicePath(meta, slots=4, capacity=512)
    jobs = [
        path.Job(engine.speaker(emb)._replace(engine=meta), sentence, 0.9, 1, i)
        for i, (text, emb) in enumerate(zip(TEXTS, voices, strict=True))
        for sentence in front_end(text)[:1]
    ]
    with NoWaiting() as spy:
        runs = device_path._begin(jobs, device_path.slots)
        for _ in range(3):
            chunk = device_path.slots.launch([run.stream for run in runs[1:]], 4)
        assert isinstance(chunk._back, Elsewhere)
    assert spy.operations > 200 and runs[1].mels.mel.device.type == "meta"
