"""Frozen, strict configuration of every part. Derived values are properties, never stored.

A config is part of a checkpoint (`checkpoint.py` writes it beside the weights), so code never
guesses a shape. `from_dict` refuses unknown keys: a typo is an error, not a default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from engine.errors import ConfigError

T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a config from plain JSON values.

    Raises:
        ConfigError: a key is unknown or a value breaks the config's own rules.
    """
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - names):
        raise ConfigError(f"{kind.__name__} has no {unknown}; it has {sorted(names)}")
    built = {}
    for name, value in values.items():
        if is_dataclass(hints[name]) and isinstance(value, dict):
            value = from_dict(hints[name], value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config; `from_dict` is its inverse."""
    return asdict(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class AudioConfig:
    """Audio convention shared by all models (that of today's public 24 kHz, 100-band vocoders)."""

    sample_rate: int = 24_000  # Hz
    n_fft: int = 1024  # samples
    win_length: int = 1024  # samples
    hop_length: int = 256  # samples
    n_mels: int = 100
    f_min: float = 0.0  # Hz
    f_max: float = 12_000.0  # Hz
    log_floor: float = 1e-5
    mel_mean: float = -5.7  # of the training corpus: networks see (mel - mean) / std
    mel_std: float = 2.35

    @property
    def frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class VocoderConfig:
    """Autoregressive WaveNet over PQMF bands with linear prediction (WaveNet, arXiv:1609.03499;
    Gaussian head, arXiv:1807.07281)."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    bands: int = 4
    layers: int = 16
    max_dilation: int = 128
    kernel_size: int = 2
    residual_channels: int = 64
    skip_channels: int = 128
    head: str = "gaussian"  # or "softmax" (mu-law codes, bands = 1)
    audio_channels: int = 256  # codes of the softmax head
    log_scale_floor: float = -7.0  # in training only
    # of the noise when sampling, of all bands or of each; training does not know it
    temperature: float | tuple[float, ...] = 1.0
    lpc_order: int = 8  # taps per band; 0 = the network models band samples directly
    pqmf_taps: int = 62
    pqmf_cutoff: float = 0.142
    pqmf_beta: float = 9.0
    conditioning_channels: int = 128
    conditioning_layers: int = 3
    conditioning_kernel_size: int = 3

    def __post_init__(self) -> None:
        _require(self.head in ("gaussian", "softmax"), f"head {self.head!r}: gaussian or softmax")
        _require(self.head == "gaussian" or self.bands == 1, "the softmax head needs bands = 1")
        _require(self.kernel_size == 2, "the kernels are built for kernel_size 2")
        _require(self.audio.hop_length % self.bands == 0, "bands must divide hop_length")
        each = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        _require(len(each) in (1, self.bands), f"temperature {each}: one, or one of every band")
        _require(all(t >= 0 for t in each), f"temperature {each}: negative")
        d = self.max_dilation
        _require(d > 0 and d & (d - 1) == 0, "max_dilation must be a power of two")

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of each layer in band steps: doubles, back to 1 past `max_dilation`."""
        cycle = self.max_dilation.bit_length()
        return tuple(1 << (layer % cycle) for layer in range(self.layers))

    @property
    def band_steps_per_frame(self) -> int:
        return self.audio.hop_length // self.bands

    @property
    def receptive_field(self) -> int:
        """Band steps seen by one output: input convolution, layers and the output itself."""
        return 1 + sum(self.dilations) + 1

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return 2 * self.bands if self.head == "gaussian" else self.audio_channels


@dataclass(frozen=True)
class EncoderConfig:
    """Speaker encoder (arXiv:1802.06006, section 3.3 and appendix A)."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    prenet_channels: int = 128
    prenet_layers: int = 2
    frame_stride: int = 2  # mel frames per encoder step
    channels: int = 128
    layers: int = 3
    kernel_size: int = 12
    contrast: float = 1.0  # distance from the mean training voice is multiplied by this
    attention_heads: int = 2
    attention_channels: int = 128
    speaker_dim: int = 256

    def __post_init__(self) -> None:
        _require(self.attention_channels % self.attention_heads == 0, "heads must divide channels")


@dataclass(frozen=True)
class AcousticConfig:
    """Deep Voice 3 multi-speaker generator (arXiv:1710.07654, section 3 and Table 4)."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    symbols: int = 128  # room in of the symbol table; text.py checks it
    speaker_dim: int = 256
    text_channels: int = 256
    encoder_channels: int = 256
    encoder_layers: int = 5
    kernel_size: int = 5
    prenet_channels: tuple[int, ...] = (128, 256)
    decoder_channels: int = 256
    decoder_layers: int = 4
    attention_layers: tuple[int, ...] = (0, 2)  # decoder layers followed by an attention block
    attention_channels: int = 256
    attention_window: int = 3  # symbols the attention may look at, from the last attended on
    reduction_factor: int = 4
    converter_channels: int = 160
    converter_layers: int = 5
    pitch: bool = True  # the converter predicts pitch and is shown its harmonics
    max_elapsed: int = 15  # decoder steps on one symbol that are told apart
    max_hold: int = 24  # decoder steps (1 s) after which generation leaves a symbol
    dropout: float = 0.05
    prenet_dropout: float = 0.5
    sharpening: float = 1.0  # when speaking: deviations of the mel from its mean times this

    def __post_init__(self) -> None:
        _require(self.kernel_size % 2 == 1, "kernel_size must be odd")
        _require(self.look_ahead <= 16, f"converter look_ahead {self.look_ahead} frames exceeds 16")
        _require(max(self.attention_layers) < self.decoder_layers, "no such decoder layer")

    @property
    def look_ahead(self) -> int:
        """Frames after a mel frame that the converter needs before that frame is final."""
        return (self.converter_layers + self.pitch) * (self.kernel_size - 1) // 2

    @property
    def decoder_rate(self) -> float:
        """Decoder steps per second."""
        return self.audio.frame_rate / self.reduction_factor


@dataclass(frozen=True)
class ModelConfig:
    """The three models of a voice engine; they share one AudioConfig."""

    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    acoustic: AcousticConfig = field(default_factory=AcousticConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        same = self.vocoder.audio == self.acoustic.audio == self.encoder.audio
        _require(same, "the three models must share one AudioConfig")
        _require(self.acoustic.speaker_dim == self.encoder.speaker_dim, "speaker_dim differs")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's losses beside the distance of mels; 0 = not used."""

    attention: float = 0.3
    voice: float = 0.5  # what the encoder that training started from hears in the mel
    contrast: float = 0.1  # embeddings of a batch stay apart
    pitch: float = 1.0  # octaves where there is a voice, and whether there is one
    self_fed: float = 0.75  # share of utterances whose decoder hears its own mel


@dataclass(frozen=True)
class VerifierConfig:
    """Speaker verification model (arXiv:1802.06006, appendix C): are two recordings one person?"""

    audio: AudioConfig = field(default_factory=AudioConfig)
    filters: int = 64
    kernel: tuple[int, int] = (20, 5)  # mel bands, frames
    stride: tuple[int, int] = (8, 2)
    channels: int = 128


@dataclass(frozen=True)
class RecogniserConfig:
    """Phone recogniser: GLU convolutions over the log-mel."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    channels: int = 160
    layers: int = 8
    kernel_size: int = 5
    frame_stride: int = 2  # mel frames per step
    dropout: float = 0.1


@dataclass(frozen=True)
class ClassifierConfig:
    """Speaker classifier (arXiv:1802.06006, appendix C): which of `speakers` people speaks?"""

    audio: AudioConfig = field(default_factory=AudioConfig)
    channels: int = 256
    layers: int = 6
    kernel_size: int = 4
    embedding: int = 32
    speakers: int = 2


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `steps` may be raised later: the run then goes on."""

    steps: int = 10_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_share: float = 0.3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    bfloat16: bool = True
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    save_every_s: float = 180.0
    progress: bool = True
