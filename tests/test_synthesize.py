"""Cloning and speaking with a tiny random model: contracts that do not depend on quality."""

import io

import numpy as np
import pytest
import torch
from sounds import talk
from tiny import make_weights

from engine import Engine, InputError, Voice, VoiceError, WeightsError, kernels
from engine.errors import BackendUnavailable
from engine.models.vocoder import OPENING
from engine.symbols import START
from engine.synthesize import CHUNK_FRAMES, read_path
from engine.text import front_end

TEXT = "Hello there, said Mr. Fox. It was 7 o'clock!"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(make_weights(tmp_path_factory.mktemp("weights")), device="cpu")


@pytest.fixture(scope="module")
def voice(engine):
    return engine.clone(talk(3.0), 24_000)


def test_chunks_of_the_stream_join_to_exactly_what_synthesize_returns(engine, voice):
    whole = engine.synthesize(TEXT, voice, seed=3).samples
    chunks = list(engine.stream(TEXT, voice, seed=3))
    assert len(chunks) > 5
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


@pytest.mark.parametrize("speed", [1.0, 1.3])
@pytest.mark.parametrize("text", ["A.", "No.", "Hello there, said the fox."])
def test_they_join_whatever_is_left_after_a_sentence_s_opening(engine, voice, text, speed):
    whole = engine.synthesize(text, voice, speed=speed).samples
    chunks = list(engine.stream(text, voice, speed=speed))
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_the_first_chunks_wait_for_their_own_decoder_steps_only(engine, voice, monkeypatch):
    steps = []
    generate = kernels.decoder_generate

    def counted(*args, **options):
        made = generate(*args, **options)
        steps.append(made[0].shape[1])
        return made

    monkeypatch.setattr(kernels, "decoder_generate", counted)
    stream = engine.stream("Hello there, said the fox.", voice)
    for _ in range(OPENING // CHUNK_FRAMES):
        next(stream)
    c = engine.config.acoustic
    needed = OPENING + engine.vocoder.conditioning.reach + c.look_ahead
    assert steps == [-(-needed // c.reduction_factor)]
    next(stream)
    assert len(steps) == 2 and steps[1] > steps[0]


def test_the_seed_decides_the_samples_and_nothing_else_does(engine, voice):
    first = engine.synthesize(TEXT, voice, seed=1).samples
    np.testing.assert_array_equal(first, engine.synthesize(TEXT, voice, seed=1).samples)
    other = engine.synthesize(TEXT, voice, seed=2).samples
    assert len(other) == len(first) and not np.array_equal(other, first)


def test_a_list_of_texts_is_each_text_alone(engine, voice):
    both = engine.synthesize(["One two three.", "Four."], [voice, voice.embedding], seed=0)
    for text, speech in zip(["One two three.", "Four."], both, strict=True):
        alone = engine.synthesize(text, voice, seed=0)
        np.testing.assert_array_equal(speech.samples, alone.samples)
    with pytest.raises(InputError, match="one per text"):
        engine.synthesize(["One.", "Two."], [voice])


def test_words_are_in_order_and_within_the_speech(engine, voice):
    speech = engine.synthesize(TEXT, voice)
    expected = [w.text for s in front_end(TEXT) for w in s.words]
    assert [w.word for w in speech.words] == expected
    starts = [w.start_s for w in speech.words]
    assert starts == sorted(starts)
    assert all(0 <= w.start_s <= w.end_s <= speech.seconds + 0.05 for w in speech.words)


def test_speed_changes_the_length(engine, voice):
    normal = engine.synthesize("A few words to say.", voice)
    fast = engine.synthesize("A few words to say.", voice, speed=2.0)
    assert abs(fast.seconds / normal.seconds - 0.5) < 0.02
    assert abs(fast.words[-1].end_s / normal.words[-1].end_s - 0.5) < 0.02


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "😀😀", "—…"])
def test_nothing_to_speak_is_an_input_error(engine, voice, text):
    with pytest.raises(InputError):
        engine.synthesize(text, voice)


@pytest.mark.parametrize("options", [{"speed": 0.1}, {"speed": float("nan")}, {"seed": -1}])
def test_options_out_of_range_are_input_errors(engine, voice, options):
    with pytest.raises(InputError):
        engine.synthesize("Hello.", voice, **options)


def test_a_very_long_text_streams_without_preparing_all_of_it(engine, voice):
    text = "This is one sentence of many. " * 4_000  # 24,000 words
    stream = engine.stream(text, voice)
    assert len(next(stream)) > 0
    stream.close()


def test_bad_voices_are_voice_errors(engine, voice, tmp_path):
    with pytest.raises(VoiceError, match="encoder"):
        engine.synthesize("Hi.", Voice(voice.embedding, (1.0,), "0" * 64))
    for bad in (np.zeros(3), np.full(16, np.nan), "no such file.safetensors", object()):
        with pytest.raises(VoiceError):
            engine.synthesize("Hi.", bad)


def test_cloning_samples_of_every_kind_give_the_same_voice(engine, voice, tmp_path):
    from engine import audio

    samples = talk(3.0)
    path = tmp_path / "me.wav"
    audio.write(path, samples, 24_000, subtype="FLOAT")
    for source, rate in (
        (path, None), (str(path), None), (io.BytesIO(path.read_bytes()), None),
        (torch.from_numpy(samples), 24_000), (np.stack([samples, samples]), 24_000),
    ):  # fmt: skip
        again = engine.clone(source, rate)
        np.testing.assert_allclose(again.embedding, voice.embedding, atol=1e-3)


def test_several_cloning_samples_share_the_attention(engine):
    voice = engine.clone([talk(3.0), talk(2.0, seed=1), talk(4.0, seed=2)], 24_000)
    assert len(voice.weights) == 3 and abs(sum(voice.weights) - 1) < 1e-5
    dimension = engine.config.encoder.speaker_dim
    assert abs(np.linalg.norm(voice.embedding) - dimension**0.5) < 1e-3


def test_unusable_cloning_samples_are_input_errors(engine, tmp_path):
    text_file = tmp_path / "text.wav"
    text_file.write_text("I am not audio, whatever my name says.")
    silence, nan = np.zeros(48_000, np.float32), np.full(48_000, np.nan, np.float32)
    for source, rate in (
        (silence, 24_000), (nan, 24_000), (talk(0.2), 24_000), (np.zeros(0, np.float32), 24_000),
        (talk(3.0), None), (text_file, None), (tmp_path / "missing.wav", None), ([], None),
    ):  # fmt: skip
        with pytest.raises(InputError):
            engine.clone(source, rate)


def test_unknown_methods_and_empty_transcripts_are_refused(engine):
    with pytest.raises(InputError, match="text is empty"):
        engine.clone(talk(3.0), 24_000, method="adapt-model", transcript=" ")
    with pytest.raises(InputError, match="unknown method"):
        engine.clone(talk(3.0), 24_000, method="guess")


def test_engines_refuse_weights_devices_and_backends_they_cannot_use(tmp_path):
    with pytest.raises(WeightsError):
        Engine(tmp_path / "nothing")
    with pytest.raises(WeightsError):
        Engine(tmp_path)
    with pytest.raises(BackendUnavailable):
        Engine(tmp_path, device="abacus")
    with pytest.raises(BackendUnavailable):
        Engine(tmp_path, backend="abacus")
    with pytest.raises(BackendUnavailable):
        Engine(make_weights(tmp_path), precision="int3")


def test_backends_agree(engine, voice, tmp_path):
    plain = Engine(engine.folder, device="cpu", backend="reference")
    reference = plain.synthesize("Hi.", voice, seed=0).samples
    compiled = Engine(engine.folder, device="cpu", precision="float32")
    default = compiled.synthesize("Hi.", voice, seed=0).samples
    np.testing.assert_allclose(default, reference, atol=2e-3)


def test_the_attention_report_names_what_was_skipped_and_where_it_stalled():
    sentence = front_end("Hello big world.")[0]
    symbols = sentence.symbols()
    assert symbols[0] == START
    spans = sentence.spans()
    healthy = np.repeat(np.arange(len(symbols)), 2)
    words, report = read_path(sentence, healthy, 23.4, 23.4)
    assert report.ok and words[1].start_s == pytest.approx(2 * spans[1][0] / 23.4)
    without_big = healthy[(healthy < spans[1][0]) | (healthy >= spans[1][1])]
    assert read_path(sentence, without_big, 23.4, 23.4)[1].skips == ("big",)
    stuck = np.sort(np.append(healthy, np.full(20, spans[2][0])))
    assert read_path(sentence, stuck, 23.4, 23.4)[1].stalls == ("world",)
