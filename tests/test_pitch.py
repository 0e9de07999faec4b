"""Pitch: found in recordings, drawn as harmonics, predicted; and a decoder that hears itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sounds import talk, tone
from tiny import ACOUSTIC, VOCODER

from engine import pitch
from engine.augment import revoice
from engine.config import AudioConfig
from engine.errors import ConfigError, WeightsError
from engine.models.acoustic import PITCH_HZ, Acoustic
from engine.models.harmonics import Harmonics
from engine.models.layers import log_mel
from engine.models.vocoder import Vocoder, VocoderStream
from engine.train_command import _begin

AUDIO = AudioConfig()


def pulses(hz: float, seconds: float = 1.0) -> np.ndarray:
    harmonics = range(1, int(11_000 / hz))
    return sum(tone(seconds, hz=hz * k, level=0.3 / len(harmonics)) for k in harmonics)


@pytest.mark.parametrize("hz", [80.0, 120.0, 210.0, 400.0])
def test_harmonics_lie_where_a_pulse_train_has_them(hz):
    mel = log_mel(torch.from_numpy(pulses(hz))[None], AUDIO)[0, :, 40]
    drawn = Harmonics(AUDIO)(torch.full((1, 1), hz))[0, :, 0]
    resolved = slice(0, 30)  # higher up a band holds several harmonics

    def detail(x):
        x = x[resolved]
        return x - torch.nn.functional.avg_pool1d(x[None], 9, 1, 4, count_include_pad=False)[0]

    both = torch.stack([detail(mel.clamp_min(mel[resolved].max() - 3)), detail(drawn)])
    assert torch.corrcoef(both)[0, 1] > 0.8


def test_silence_has_no_harmonics():
    drawn = Harmonics(AUDIO)(torch.tensor([[0.0, 120.0]]))
    assert not drawn[..., 0].any() and drawn[..., 1].any()


def test_pitch_is_found_and_moves_with_the_voice():
    samples = talk(2.0)
    found = pitch.track(samples, AUDIO)
    assert len(found) == len(samples) // AUDIO.hop_length
    voiced = found[found > 0]
    assert len(voiced) > len(found) / 2 and abs(np.median(voiced) - 120) < 2
    higher = revoice(samples, 1.1)
    again = pitch.track(higher, AUDIO)
    moved = pitch.revoiced(found, 1.1, len(again))
    both = (again > 0) & (moved > 0)
    assert both.sum() > len(again) / 2
    assert np.median(np.abs(again[both] / moved[both] - 1)) < 0.01


def spoken(acoustic, **more):
    torch.manual_seed(1)
    ids, lengths = torch.randint(1, 40, (2, 6)), torch.tensor([6, 4])
    mel, frames = torch.randn(2, 100, 32) - 5, torch.tensor([32, 24])
    path = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5], [0, 1, 1, 2, 3, 3, 0, 0]])
    return acoustic(ids, lengths, mel, frames, path, torch.randn(2, 16), **more)


def test_a_decoder_that_hears_itself_differs_only_where_it_is_asked_to():
    torch.manual_seed(0)
    acoustic = Acoustic(ACOUSTIC).eval()
    told = spoken(acoustic).mel
    some = spoken(acoustic, self_fed=torch.tensor([False, True])).mel
    torch.testing.assert_close(some[0], told[0], rtol=0, atol=1e-5)  # another layout in memory
    assert (some[1, :, 8:] - told[1, :, 8:]).abs().max() > 1e-2


def test_rehearsals_do_not_take_the_gradient_away():
    """Autocast caches weights that it casts: those of a pass without gradient must not be kept."""
    torch.manual_seed(0)
    acoustic = Acoustic(ACOUSTIC).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = spoken(acoustic, self_fed=torch.tensor([True, True]))
        (out.mel.sum() + out.pitch.sum()).backward()
    for part in (acoustic.blocks, acoustic.prenet, acoustic.mel_out, acoustic.pitch_out):
        for name, weights in part.named_parameters():
            assert weights.grad is not None and weights.grad.any(), name


def test_without_a_given_pitch_the_expected_one_is_used():
    torch.manual_seed(0)
    acoustic = Acoustic(ACOUSTIC).eval()
    alone = spoken(acoustic)
    octaves, voice = alone.pitch.unbind(1)
    expected = PITCH_HZ * 2**octaves * (voice > 0)
    assert torch.equal(spoken(acoustic, pitch=expected).mel, alone.mel)
    assert not torch.equal(spoken(acoustic, pitch=expected * 0).mel, alone.mel)


def test_training_may_start_from_weights_without_pitch_and_from_no_others(tmp_path):
    from engine import checkpoint
    from engine.config import to_dict

    def save(config):
        model = Acoustic(config)
        path = tmp_path / "acoustic.safetensors"
        checkpoint.save_model(path, model.state_dict(), to_dict(config), kind="acoustic")
        return model

    old = save(replace(ACOUSTIC, pitch=False))
    model = Acoustic(ACOUSTIC)
    _begin(model, str(tmp_path))
    assert torch.equal(model.refine.weight, old.refine.weight)
    save(replace(ACOUSTIC, encoder_layers=2))
    with pytest.raises(WeightsError, match="another model"):
        _begin(model, str(tmp_path))
    save(replace(ACOUSTIC, converter_channels=32))
    with pytest.raises(WeightsError, match="another configuration"):
        _begin(model, str(tmp_path))


def test_every_band_has_its_temperature():
    config = replace(VOCODER, temperature=(0.0, 0.5, 1.0, 2.0))
    vocoder = Vocoder(config).eval()
    mel = torch.zeros(1, 100, 4)
    noise = VocoderStream(vocoder, vocoder.network(), mel, 7)._noise(4)
    vocoder.temperature.fill_(1)
    plain = VocoderStream(vocoder, vocoder.network(), mel, 7)._noise(4)
    assert torch.equal(noise, plain * torch.tensor([0.0, 0.5, 1.0, 2.0]).view(4, 1))
    with pytest.raises(ConfigError, match="every band"):
        replace(VOCODER, temperature=(1.0, 1.0))
    with pytest.raises(ConfigError, match="negative"):
        replace(VOCODER, temperature=-0.1)
