"""A whole voice model of tiny random networks, as files, for tests of everything around it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import Engine, adapt_weights, checkpoint
from engine.config import (
    AcousticConfig,
    EncoderConfig,
    RecogniserConfig,
    VerifierConfig,
    VocoderConfig,
    to_dict,
)
from engine.models.acoustic import Acoustic
from engine.models.recogniser import PhoneRecogniser
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.verifier import SpeakerVerifier
from engine.models.vocoder import Vocoder
from engine.voice import Voice

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
RECOGNISER = RecogniserConfig(channels=16, layers=2)


def make_weights(folder: Path) -> Path:
    """Write a .safetensors of every model; returns the folder."""
    torch.manual_seed(0)
    for kind, model in (
        ("acoustic", Acoustic(ACOUSTIC)),
        ("encoder", SpeakerEncoder(ENCODER)),
        ("vocoder", Vocoder(VOCODER)),
        ("verifier", SpeakerVerifier(VERIFIER)),
        ("recogniser", recogniser()),
    ):
        path = folder / f"{kind}.safetensors"
        checkpoint.save_model(path, model.state_dict(), to_dict(model.config), kind=kind)
    return folder


def recogniser() -> PhoneRecogniser:
    """A phone recogniser that is sure of what it hears."""
    model = PhoneRecogniser(RECOGNISER)
    with torch.no_grad():
        model.leave.weight *= 30
    return model


def perturbed(acoustic: Acoustic, rank: int = 2, seed: int = 3) -> Acoustic:
    """A generator with a difference that does something."""
    own, parameters = adapt_weights.trainable(acoustic, rank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return own


def adapted_voice(engine: Engine, seed: int = 3, **changes: Any) -> Voice:
    """A voice with weights of its own."""
    values = {
        "embedding": np.ones(16), "weights": (1.0,), "encoder": engine.encoder_hash,
        "metadata": {"method": "adapt-model"}, "acoustic": engine.acoustic_hash,
        "adaptation": adapt_weights.difference(perturbed(engine.acoustic, seed=seed)),
    }  # fmt: skip
    return Voice(**{**values, **changes})
