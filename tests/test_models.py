"""The models' reference implementations: incremental equals parallel, batch equals one by one."""

from functools import partial

import pytest
import torch

from engine import kernels
from engine.config import AcousticConfig, EncoderConfig, VocoderConfig
from engine.models.acoustic import Acoustic, elapsed_steps
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.vocoder import Vocoder

TINY = AcousticConfig(
    symbols=32, speaker_dim=16, text_channels=24, encoder_channels=24, encoder_layers=2,
    prenet_channels=(16, 24), decoder_channels=32, decoder_layers=3, attention_layers=(0, 2),
    attention_channels=24, converter_channels=16, converter_layers=2,
)  # fmt: skip
TINY_VOCODER = VocoderConfig(
    layers=6, max_dilation=8, residual_channels=16, skip_channels=24, conditioning_channels=16
)


def random_acoustic() -> Acoustic:
    torch.manual_seed(0)
    return Acoustic(TINY).eval()


def random_texts(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, TINY.symbols, (length,))
    return ids, torch.tensor(lengths), torch.randn(len(lengths), TINY.speaker_dim)


def test_free_running_decoder_equals_the_parallel_forward():
    model = random_acoustic()
    ids, lengths, speaker = random_texts([9])
    spoken = model.generate(ids, lengths, speaker, backend="reference")
    steps = int(spoken.steps[0])
    assert steps > 5
    inputs = model.fold(model.encode(ids, lengths, speaker), speaker)
    network = model.network()
    hidden, path, _ = kernels.decoder_generate(
        inputs, network, steps, network.state(), backend="reference"
    )
    # teacher forcing on its own decoder mel and path must reproduce every step
    grouped = model.mel_out(hidden)
    before = torch.nn.functional.pad(grouped, (0, 0, 1, 0))[:, :-1]
    position = torch.nn.functional.pad(path, (1, 0))[:, :-1]
    parallel, _ = model.decode(
        before, position, elapsed_steps(position), model.encode(ids, lengths, speaker), speaker
    )
    torch.testing.assert_close(parallel, hidden, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_decoder_in_chunks_equals_the_whole(chunk):
    model = random_acoustic()
    network = model.network()
    ids, lengths, speaker = random_texts([5, 11])
    with torch.no_grad():
        inputs = model.fold(model.encode(ids, lengths, speaker), speaker)
    run = partial(kernels.decoder_generate, inputs, network, backend="reference")
    whole = run(21, network.state(2))
    state = network.state(2)
    parts = [run(chunk, state) for _ in range(21 // chunk)]
    hidden = torch.cat([p[0] for p in parts], dim=1)
    torch.testing.assert_close(hidden, whole[0][:, : hidden.shape[1]], atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.cat([p[1] for p in parts], dim=1), whole[1][:, : hidden.shape[1]])


def test_a_batch_of_texts_equals_one_by_one():
    model = random_acoustic()
    ids, lengths, speaker = random_texts([12, 4, 7])
    together = model.generate(ids, lengths, speaker, backend="reference")
    for row, length in enumerate(lengths.tolist()):
        alone = model.generate(
            ids[row : row + 1, :length], lengths[row : row + 1], speaker[row : row + 1],
            backend="reference",
        )  # fmt: skip
        steps = int(alone.steps[0])
        assert int(together.steps[row]) == steps
        frames = steps * TINY.reduction_factor
        torch.testing.assert_close(
            together.mel[row, :, :frames], alone.mel[0], atol=1e-4, rtol=1e-4
        )


def test_generation_ends_and_its_path_only_moves_within_the_window():
    model = random_acoustic()
    ids, lengths, speaker = random_texts([15, 3])
    spoken = model.generate(ids, lengths, speaker, backend="reference")
    for row in range(2):
        path = spoken.path[row, : int(spoken.steps[row])]
        moves = path.diff(prepend=torch.tensor([0]))
        assert moves.min() >= 0 and moves.max() <= TINY.attention_window - 1
        assert path[-1] == lengths[row] - 1
        assert int(spoken.steps[row]) <= TINY.max_hold * int(lengths[row])


def test_vocoder_free_running_equals_teacher_forcing_on_its_own_output():
    torch.manual_seed(0)
    model = Vocoder(TINY_VOCODER).eval()
    torch.nn.init.normal_(model.outputs.weight, std=0.1)
    mel = torch.randn(1, TINY_VOCODER.audio.n_mels, 3) - 5
    steps = 3 * TINY_VOCODER.band_steps_per_frame
    noise = torch.randn(1, TINY_VOCODER.bands, steps)
    with torch.no_grad():
        made = kernels.wavenet_generate(
            model.conditioning(mel), noise, model.network(), model.network().state(),
            backend="reference",
        )  # fmt: skip
        mean, log_scale = model(mel, made)
    torch.testing.assert_close(mean + log_scale.exp() * noise, made, atol=1e-4, rtol=1e-4)


def test_excitation_of_noise_is_white_with_unit_variance_whatever_its_level():
    torch.manual_seed(0)
    model = Vocoder(VocoderConfig())
    samples = torch.randn(1, 24_000 // 256 * 256)
    for level in (0.2, 0.002):
        excitation = model.excitation(samples * level, model.mel(samples * level))
        deviation = excitation[..., 200:-200].std(dim=-1)
        assert torch.all((deviation > 0.7) & (deviation < 1.4)), deviation


def test_linear_prediction_analysis_and_synthesis_are_inverse():
    torch.manual_seed(0)
    model = Vocoder(VocoderConfig())
    samples = torch.randn(2, 256 * 12) * 0.1
    mel = model.mel(samples)
    taps, gain = model.prediction(mel)
    bands = torch.randn(2, 4, 64 * 12)
    white = kernels.lpc_analysis(bands, taps, gain)
    again = kernels.lpc_synthesis(white, taps, gain, torch.zeros(2, 4, 8))
    torch.testing.assert_close(again, bands, atol=1e-3, rtol=1e-3)


def test_padding_cloning_samples_changes_no_embedding():
    torch.manual_seed(0)
    config = EncoderConfig(channels=16, prenet_channels=16, attention_channels=16, speaker_dim=16)
    model = SpeakerEncoder(config).eval()
    mel = torch.randn(1, 2, 100, 60) - 5
    frames, present = torch.tensor([[60, 40]]), torch.tensor([[True, True]])
    plain, weights = model(mel, frames, present)
    assert torch.isclose(weights.sum(), torch.tensor(1.0))
    padded = torch.full((1, 3, 100, 90), 3.0)
    padded[:, :2, :, :60] = mel
    again, _ = model(padded, torch.tensor([[60, 40, 50]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-5)


def test_receptive_field_is_what_the_config_says():
    torch.manual_seed(0)
    config = VocoderConfig(layers=5, max_dilation=4, residual_channels=8, skip_channels=8)
    model = Vocoder(config).eval()
    torch.nn.init.normal_(model.outputs.weight)
    frames = 2
    excitation = torch.randn(1, 4, frames * 64, requires_grad=True)
    mean, _ = model(torch.zeros(1, 100, frames), excitation)
    mean[0, 0, 100].backward()
    touched = excitation.grad[0].abs().sum(0).nonzero().squeeze(1)
    # the output at step t sees the `receptive_field` steps before it
    assert touched.max() == 99 and touched.min() == 100 - config.receptive_field
