"""Engine: config, the three models and a backend. Immutable after it is loaded."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from engine import adapt_weights, algebra, checkpoint, kernels, spectrum
from engine.audio import AudioSource
from engine.clone import clone
from engine.config import (
    AcousticConfig,
    EncoderConfig,
    ModelConfig,
    RecogniserConfig,
    VerifierConfig,
    VocoderConfig,
    from_dict,
)
from engine.device import DevicePath, Person, clone_many
from engine.errors import BackendUnavailable, InputError, VoiceError, WeightsError
from engine.files import PathLike
from engine.models.acoustic import Acoustic
from engine.models.recogniser import PhoneRecogniser
from engine.models.speaker_encoder import SpeakerEncoder
from engine.models.verifier import SpeakerVerifier
from engine.models.vocoder import Vocoder
from engine.spectrum import Spectrum
from engine.speech import Speech
from engine.synthesize import Speaker, check, stream, synthesize
from engine.voice import Voice

DEFAULT_WEIGHTS = Path(__file__).parent / "weights"
BACKEND_VARIABLE = "CLONEWAVE_BACKEND"  # read once, when an Engine is built without a backend

ADAPTED = 4  # generators with a voice's own weights that are kept ready, 50 MB each

AnyVoice = Voice | PathLike | np.ndarray | Tensor
Model = TypeVar("Model", bound=nn.Module)


class Engine:
    """Clones voices and speaks. Thread-safe: nothing changes after loading.

    Args:
        weights: folder with acoustic, encoder and vocoder .safetensors; None = the default voice
            model that comes with the package.
        device: "cpu", "cuda" or "auto" (cuda where there is one).
        backend: of `kernels.ORDER`, or "auto": the fastest that can run. None = the environment
            variable CLONEWAVE_BACKEND, else "auto".
        precision: of the vocoder's weights in compiled backends: "float32", "bfloat16", "int8", or
            "auto" = int8 on a CPU, which costs no measurable likelihood, and bfloat16 on a GPU. The
            attention decoder is float32, but int16 beside an int8 vocoder of the cpp backend.
    Raises:
        WeightsError: weights missing, damaged, or of models that do not fit each other.
        BackendUnavailable: unknown backend or precision, or no such device here.
    """

    def __init__(
        self,
        weights: PathLike | None = None,
        device: str = "auto",
        backend: str | None = None,
        precision: str = "auto",
    ) -> None:
        self.device = _device(device)
        self.backend = _backend(backend)
        folder = Path(weights) if weights is not None else DEFAULT_WEIGHTS
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder; train one with `clonewave train`")
        acoustic, acoustic_config, _ = _load(folder, "acoustic", AcousticConfig, Acoustic)
        encoder, encoder_config, extra = _load(folder, "encoder", EncoderConfig, SpeakerEncoder)
        vocoder, vocoder_config, _ = _load(folder, "vocoder", VocoderConfig, Vocoder)
        self.encoder_tuned = extra.get("tuned", "true") == "true"  # together with the generator
        self.config = ModelConfig(vocoder_config, acoustic_config, encoder_config)
        self.acoustic = acoustic.to(self.device)
        self.encoder = encoder.to(self.device)
        self.vocoder = vocoder.to(self.device)
        if precision not in ("auto", *kernels.PRECISIONS):
            known = ("auto", *kernels.PRECISIONS)
            raise BackendUnavailable(f"precision {precision!r}: give one of {known}")
        on_gpu = self.device.type == "cuda"
        chosen = precision if precision != "auto" else "bfloat16" if on_gpu else "int8"
        self.network = self.vocoder.network(chosen)
        compiled = not on_gpu and self.backend in ("auto", "cpp")
        self.decoder = self.acoustic.network(
            "int16" if compiled and chosen == "int8" else "float32"
        )
        self.encoder_hash = checkpoint.sha256(folder / "encoder.safetensors")
        self.acoustic_hash = checkpoint.sha256(folder / "acoustic.safetensors")
        self.folder = folder
        self.path = DevicePath(self) if on_gpu else None
        self._adapted: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def clone(
        self,
        wav: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        **options: Any,
    ) -> Voice:
        """A Voice from recordings of a person; see `engine.clone`."""
        return clone(self, wav, sample_rate, **options)

    def clone_many(
        self, people: Sequence[Person], sample_rate: int | None = None, **options: Any
    ) -> list[Voice | InputError]:
        """A Voice for each of many people, encoded in batches; see `device.cloning.clone_many`."""
        return clone_many(self, people, sample_rate, **options)

    @overload
    def synthesize(
        self, text: str, emb: AnyVoice, *, speed: float = ..., seed: int | None = ...
    ) -> Speech: ...
    @overload
    def synthesize(
        self, text: Sequence[str], emb: Any, *, speed: float = ..., seed: int | None = ...
    ) -> list[Speech]: ...
    def synthesize(
        self, text: str | Sequence[str], emb: Any, *, speed: float = 1.0, seed: int | None = None
    ) -> Speech | list[Speech]:
        """Speak `text` in the voice `emb`; see `engine.synthesize`."""
        if isinstance(text, str):
            return self._speak([text], [emb], speed, seed)[0]
        voices = list(emb) if isinstance(emb, (list, tuple)) else [emb] * len(text)
        if len(voices) != len(text):
            raise InputError(f"{len(text)} texts, {len(voices)} voices; give one, or one per text")
        return self._speak(list(text), voices, speed, seed)

    def _speak(
        self, texts: list[str], voices: list[Any], speed: float, seed: int | None
    ) -> list[Speech]:
        speakers = [self.speaker(voice) for voice in voices]
        if self.path is None:
            return [
                synthesize(speaker, text, speed=speed, seed=seed)
                for text, speaker in zip(texts, speakers, strict=True)
            ]
        count, seed = len(texts), check(speed, seed)
        return self.path.synthesize(texts, speakers, [speed] * count, [seed] * count)

    def stream(
        self, text: str, emb: AnyVoice, *, speed: float = 1.0, seed: int | None = None
    ) -> Iterator[np.ndarray]:
        """Chunks of float32 samples that join to what `synthesize` returns."""
        speaker = self.speaker(emb)
        if self.path is not None:
            return self.path.stream(text, speaker, speed, check(speed, seed))
        return stream(speaker, text, speed=speed, seed=seed)

    @cached_property
    def verifier(self) -> SpeakerVerifier | None:
        """The speaker verification model of these weights; None where they came without one."""
        return self._optional("verifier", VerifierConfig, SpeakerVerifier)

    @cached_property
    def recogniser(self) -> PhoneRecogniser | None:
        """The phone recogniser of these weights; None where they came without one."""
        return self._optional("recogniser", RecogniserConfig, PhoneRecogniser)

    def _optional(self, kind: str, config_type: Any, model_type: type[Model]) -> Model | None:
        if not (self.folder / f"{kind}.safetensors").is_file():
            return None
        return _load(self.folder, kind, config_type, model_type)[0].to(self.device)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """How these weights sound on average; None where they came without knowing it."""
        path = self.folder / spectrum.FILE
        if not path.is_file():
            return None
        shape = self.config.acoustic.audio.n_mels, self.config.acoustic.speaker_dim
        return Spectrum.load(path, self.acoustic_hash, shape)

    def morph(self, voice: Voice, towards: str, amount: float = 1.0) -> Voice:
        """The voice, moved towards "female", "male", "american" or "british"; see `algebra.morph`.

        Raises:
            WeightsError: these weights came without class averages.
        """
        return algebra.morph(voice, towards, algebra.of_engine(self), amount)

    def default_voice(self) -> Voice:
        """The voice that speaks when none is given.

        Raises:
            VoiceError: these weights came without one.
        """
        return Voice.load(self.folder / "voice.safetensors", self.encoder_hash)

    def adapted(self, voice: Voice) -> Engine:
        """This engine with the voice's own generator weights; itself where it has none.

        Raises:
            VoiceError: the voice belongs to another encoder or generator.
        """
        voice.require(self.encoder_hash, self.acoustic_hash)
        if not voice.adaptation:
            return self
        changes = {k: torch.tensor(a) for k, a in voice.adaptation.items()}
        key = checkpoint.digest(changes, {})
        with self._lock:
            if key not in self._adapted:
                own = copy.copy(self)
                own.acoustic = adapt_weights.applied(self.acoustic, voice.adaptation)
                own.decoder = own.acoustic.network(self.decoder.precision)
                while len(self._adapted) >= ADAPTED:
                    del self._adapted[next(iter(self._adapted))]
                self._adapted[key] = own
            return self._adapted[key]

    def speaker(self, emb: Any) -> Speaker:
        """Who speaks: this engine, adapted where the voice asks for it, and what the voice tells
        it; checks that the voice belongs to this engine.

        Raises:
            VoiceError: not a voice, or made for another encoder or generator.
        """
        own, bands = self, self.config.acoustic.audio.n_mels
        equaliser = torch.zeros(bands)
        if isinstance(emb, (str, os.PathLike)):
            emb = Voice.load(emb, self.encoder_hash, self.acoustic_hash)
        if isinstance(emb, Voice):
            if emb.equaliser.size not in (0, bands):
                raise VoiceError(f"equaliser of {emb.equaliser.size} bands, mels have {bands}")
            if emb.equaliser.size:
                equaliser = torch.tensor(emb.equaliser)
            own, emb = self.adapted(emb), emb.embedding
        try:
            embedding = torch.tensor(np.asarray(emb), dtype=torch.float32)
        except (TypeError, ValueError) as error:
            name = type(emb).__name__
            raise VoiceError(f"{name} is no voice: give a Voice or its file") from error
        wanted = (self.config.encoder.speaker_dim,)
        if tuple(embedding.shape) != wanted or not np.isfinite(embedding.numpy()).all():
            raise VoiceError(f"embedding {list(embedding.shape)}: need finite {list(wanted)}")
        return Speaker(own, embedding, equaliser)


def _load(
    folder: Path, kind: str, config_type: Any, model_type: type[Model]
) -> tuple[Model, Any, dict[str, str]]:
    """A model, its config and the free metadata of its file."""
    state, values, extra = checkpoint.load_model(folder / f"{kind}.safetensors", kind)
    config = from_dict(config_type, values)
    model = model_type(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{folder / kind}.safetensors: not the weights of its config") from error
    return model.eval().requires_grad_(False), config, extra


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise BackendUnavailable(f"device {name!r}: give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("device cuda: torch finds no CUDA device; use cpu")
    return torch.device(name)


def _backend(name: str | None) -> str:
    """"auto", or a backend that exists and works here."""
    chosen = name or os.environ.get(BACKEND_VARIABLE, "auto")
    if chosen == "auto":
        return chosen
    available = kernels.backends()
    if chosen not in available:
        raise BackendUnavailable(f"backend {chosen!r}: give auto or one of {list(available)}")
    if reason := available[chosen]:
        raise BackendUnavailable(f"backend {chosen!r} cannot run: {reason}")
    return chosen
