"""A whole voice model of tiny random networks, as files, for tests of everything around it."""

from pathlib import Path

import torch

from engine import checkpoint
from engine.config import AcousticConfig, EncoderConfig, VerifierConfig, VocoderConfig, to_dict
from engine.models.acoustic import Acoustic
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.verifier import SpeakerVerifier
from engine.models.vocoder import Vocoder

ACOUSTIC = AcousticConfig(
    speaker_dim=16, text_channels=16, encoder_channels=16, encoder_layers=1,
    prenet_channels=(16, 16), decoder_channels=16, decoder_layers=2, attention_layers=(0, 1),
    attention_channels=16, converter_channels=16, converter_layers=1, max_hold=4,
)  # fmt: skip
ENCODER = EncoderConfig(
    prenet_channels=16, channels=16, layers=1, kernel_size=4, attention_channels=16, speaker_dim=16
)
VOCODER = VocoderConfig(
    layers=3, max_dilation=4, residual_channels=32, skip_channels=32, conditioning_channels=16,
    conditioning_layers=1,
)  # fmt: skip
VERIFIER = VerifierConfig(filters=4, stride=(16, 4), channels=8)


def make_weights(folder: Path) -> Path:
    """Write acoustic, encoder, vocoder and verifier .safetensors; returns the folder."""
    torch.manual_seed(0)
    for kind, model in (
        ("acoustic", Acoustic(ACOUSTIC)),
        ("encoder", SpeakerEncoder(ENCODER)),
        ("vocoder", Vocoder(VOCODER)),
        ("verifier", SpeakerVerifier(VERIFIER)),
    ):
        path = folder / f"{kind}.safetensors"
        checkpoint.save_model(path, model.state_dict(), to_dict(model.config), kind=kind)
    return folder
