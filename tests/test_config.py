"""Configs refuse what they do not know, survive JSON, and derive what they must."""

import dataclasses
import json

import pytest

from engine.config import (
    AcousticConfig,
    AudioConfig,
    EncoderConfig,
    ModelConfig,
    VocoderConfig,
    from_dict,
    to_dict,
)
from engine.errors import ConfigError, EngineError


@pytest.mark.parametrize(
    "kind", [AudioConfig, VocoderConfig, AcousticConfig, EncoderConfig, ModelConfig]
)
def test_json_round_trip_gives_an_equal_config(kind):
    config = kind()
    assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config


def test_changed_values_survive_the_round_trip_at_every_level():
    audio = AudioConfig(n_mels=80, f_max=8000.0)
    config = ModelConfig(
        vocoder=VocoderConfig(audio=audio, layers=4, max_dilation=2),
        acoustic=AcousticConfig(audio=audio, prenet_channels=(8, 16, 32), attention_layers=(1,)),
        encoder=EncoderConfig(audio=audio),
    )
    again = from_dict(ModelConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert again.acoustic.prenet_channels == (8, 16, 32)  # a tuple again: configs are hashable
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("kind", "values", "word"),
    [
        (AudioConfig, {"hop_size": 256}, "hop_size"),
        (ModelConfig, {"vocoder": {"layer": 3}}, "layer"),
        (VocoderConfig, {"audio": {"sampling_rate": 16000}}, "sampling_rate"),
    ],
)
def test_unknown_keys_are_errors_that_name_the_key(kind, values, word):
    with pytest.raises(ConfigError, match=word) as caught:
        from_dict(kind, values)
    assert isinstance(caught.value, EngineError)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (VocoderConfig, {"head": "mixture"}),
        (VocoderConfig, {"head": "softmax", "bands": 4}),
        (VocoderConfig, {"bands": 3}),
        (VocoderConfig, {"max_dilation": 100}),
        (VocoderConfig, {"kernel_size": 3}),
        (AcousticConfig, {"kernel_size": 4}),
        (AcousticConfig, {"converter_layers": 9}),
        (AcousticConfig, {"attention_layers": [0, 4]}),
        (EncoderConfig, {"attention_heads": 3}),
        (ModelConfig, {"encoder": {"speaker_dim": 128}}),
        (ModelConfig, {"encoder": {"audio": {"n_mels": 80}}}),
    ],
)
def test_values_that_contradict_each_other_are_errors(kind, values):
    with pytest.raises(ConfigError):
        from_dict(kind, values)


def test_derived_values():
    vocoder = VocoderConfig(layers=5, max_dilation=4)
    assert vocoder.dilations == (1, 2, 4, 1, 2)
    assert vocoder.receptive_field == 12
    assert vocoder.band_steps_per_frame * vocoder.bands == vocoder.audio.hop_length
    assert vocoder.outputs == 8
    assert VocoderConfig(head="softmax", bands=1).outputs == 256
    assert AudioConfig().frame_rate == 93.75
    assert AcousticConfig().decoder_rate == 93.75 / 4
    assert AcousticConfig(converter_layers=3, kernel_size=5).look_ahead == 8  # and the pitch


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AudioConfig().sample_rate = 16_000
