"""The ops of Clonewave, installed as `engine.kernels`. Definitions: `reference.py`.

Every op takes `backend=`: "auto" picks the fastest that can run the call, a named backend runs or
raises `BackendUnavailable`.
"""

from engine.kernels import reference, reference_decoder
from engine.kernels.dispatch import ORDER, BackendUnavailable, Impl, Op, accepts_everything
from engine.kernels.filters import mel_filterbank, pqmf_filters
from engine.kernels.reference import (
    WaveNetState,
    WaveNetWeights,
    linear_prediction,
    wavenet_state,
)
from engine.kernels.reference_decoder import (
    DecoderInputs,
    DecoderState,
    DecoderWeights,
    decoder_state,
)


def _op(name: str, **impls: Impl) -> Op:
    definition = Impl(getattr(reference, name), accepts_everything)
    return Op(name, {**impls, "reference": definition})


log_mel = _op("log_mel")
pqmf_analysis = _op("pqmf_analysis")
pqmf_synthesis = _op("pqmf_synthesis")
lpc_analysis = _op("lpc_analysis")
lpc_synthesis = _op("lpc_synthesis")
gated_activation = _op("gated_activation")
wavenet_generate = _op("wavenet_generate")
decoder_generate = Op(
    "decoder_generate",
    {"reference": Impl(reference_decoder.decoder_generate, accepts_everything)},
)

__all__ = [
    "ORDER",
    "BackendUnavailable",
    "DecoderInputs",
    "DecoderState",
    "DecoderWeights",
    "WaveNetState",
    "WaveNetWeights",
    "decoder_generate",
    "decoder_state",
    "gated_activation",
    "linear_prediction",
    "log_mel",
    "lpc_analysis",
    "lpc_synthesis",
    "mel_filterbank",
    "pqmf_analysis",
    "pqmf_filters",
    "pqmf_synthesis",
    "wavenet_generate",
    "wavenet_state",
]
