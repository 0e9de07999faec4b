"""The ops of Clonewave, installed as `engine.kernels`. Definitions: `reference.py`.

Every op takes `backend=`: "auto" picks the fastest that can run the call, a named backend runs or
raises `BackendUnavailable`.
"""

from engine.kernels import (
    cuda,
    cuda_decoder,
    cuda_wavenet,
    native,
    native_decoder,
    reference,
    reference_decoder,
    triton_backend,
)
from engine.kernels.dispatch import ORDER, BackendUnavailable, Impl, Op, accepts_everything
from engine.kernels.filters import mel_filterbank, pqmf_filters
from engine.kernels.native import isas
from engine.kernels.reference import (
    PRECISIONS,
    WaveNet,
    WaveNetState,
    WaveNetWeights,
    linear_prediction,
    wavenet_state,
)
from engine.kernels.reference_decoder import (
    DECODER_PRECISIONS,
    Decoder,
    DecoderInputs,
    DecoderState,
    DecoderWeights,
    decoder_state,
    decoder_step,
)


def _op(name: str, **impls: Impl) -> Op:
    definition = Impl(getattr(reference, name), accepts_everything)
    return Op(name, {**impls, "reference": definition})


log_mel = _op("log_mel", triton=triton_backend.implementation("triton_log_mel", "log_mel"))
pqmf_analysis = _op("pqmf_analysis")
pqmf_synthesis = _op(
    "pqmf_synthesis",
    triton=triton_backend.implementation("triton_filters", "pqmf_synthesis"),
    cpp=Impl(native.pqmf_synthesis, native.pqmf_why_not),
)
lpc_analysis = _op("lpc_analysis")
lpc_synthesis = _op(
    "lpc_synthesis",
    triton=triton_backend.implementation("triton_filters", "lpc_synthesis"),
    cpp=Impl(native.lpc_synthesis, native.lpc_why_not),
)
gated_activation = _op("gated_activation")
gaussian_noise = _op(
    "gaussian_noise",
    triton=triton_backend.implementation("triton_filters", "gaussian_noise"),
    cpp=Impl(native.gaussian_noise, native.noise_why_not),
)
stream_noise = _op(
    "stream_noise",
    triton=triton_backend.implementation("triton_filters", "stream_noise"),
    cpp=Impl(native.stream_noise, native.stream_noise_why_not),
)
wavenet_generate = _op(
    "wavenet_generate",
    cuda=Impl(cuda_wavenet.wavenet_generate, cuda_wavenet.why_not),
    triton=triton_backend.implementation("triton_wavenet", "wavenet_generate"),
    cpp=Impl(native.wavenet_generate, native.wavenet_why_not),
)
decoder_generate = Op(
    "decoder_generate",
    {
        "cuda": Impl(cuda_decoder.decoder_generate, cuda_decoder.why_not),
        "triton": triton_backend.implementation("triton_decoder", "decoder_generate"),
        "cpp": Impl(native_decoder.decoder_generate, native_decoder.why_not),
        "reference": Impl(reference_decoder.decoder_generate, accepts_everything),
    },
)


def backends() -> dict[str, str | None]:
    """Every backend, fastest first: None if it can run something here, else the reason."""
    absent = "no op has this backend"
    reasons: dict[str, str | None] = dict.fromkeys(ORDER, absent)
    reasons["cuda"] = cuda.why_not()
    reasons["triton"] = triton_backend.why_not()
    reasons["cpp"] = native.why_not()
    reasons["reference"] = None
    return reasons


__all__ = [
    "DECODER_PRECISIONS",
    "ORDER",
    "PRECISIONS",
    "BackendUnavailable",
    "Decoder",
    "DecoderInputs",
    "DecoderState",
    "DecoderWeights",
    "WaveNet",
    "WaveNetState",
    "WaveNetWeights",
    "backends",
    "decoder_generate",
    "decoder_state",
    "decoder_step",
    "gated_activation",
    "gaussian_noise",
    "isas",
    "linear_prediction",
    "log_mel",
    "lpc_analysis",
    "lpc_synthesis",
    "mel_filterbank",
    "pqmf_analysis",
    "pqmf_filters",
    "pqmf_synthesis",
    "stream_noise",
    "wavenet_generate",
    "wavenet_state",
]
