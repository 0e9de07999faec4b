"""A cloned voice: a small safetensors file that holds numbers and text, and runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from engine import adapt_weights, checkpoint
from engine.errors import VoiceError, WeightsError
from engine.files import PathLike

FORMATS = ("1", "2", "3")  # plain, with a weight difference, with an equaliser
KIND = "clonewave-voice"
LIMIT_BYTES = 1 << 20
METADATA_LIMIT = 4096  # bytes as JSON, so that a voice file stays under 10 KB
OWN_KEYS = ("format", "kind", "encoder", "acoustic")  # of the file; the rest is the voice's
MAX_BANDS, MAX_CHANGE = 512, 5.0  # of an equaliser; natural-log magnitude, 43 dB
ADAPT = "adapt."  # before the names of a weight difference's tensors


@dataclass(frozen=True, eq=False, repr=False)
class Voice:
    """Who speaks: a speaker embedding and where it comes from. Immutable; hashed by identity.

    Attributes:
        embedding: float32 [speaker_dim], 16 to 4,096 numbers, read-only.
        weights: attention over the cloning samples, 1 to 64 numbers >= 0.
        encoder: hex sha256 of the encoder weights the embedding belongs to.
        metadata: text: method, seconds (of speech), created (ISO date), consent, name, ...
        acoustic: hex sha256 of the generator it was made with; "" in files of older versions.
        adaptation: the generator's weight difference of method "adapt-model": name -> float16
            array (see adapt_weights.py), at most 1 MB; {} for every other method.
        equaliser: float32 [n_mels], added to the log-mel that the generator makes for this voice
            (see spectrum.py), read-only; [0] numbers: nothing is added.

    Raises:
        VoiceError: on creation, for values outside these bounds.
    """

    embedding: np.ndarray
    weights: tuple[float, ...]
    encoder: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    acoustic: str = ""
    adaptation: Mapping[str, np.ndarray] = field(default_factory=dict)
    equaliser: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        for name in ("embedding", "equaliser"):
            numbers = np.array(getattr(self, name), dtype=np.float32)
            numbers.flags.writeable = False
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        object.__setattr__(self, "metadata", dict(self.metadata))
        object.__setattr__(self, "adaptation", dict(self.adaptation))
        if problem := self._problem():
            raise VoiceError(f"not a voice: {problem}; make it again with clone")

    def _problem(self) -> str | None:
        if self.embedding.ndim != 1 or not 16 <= self.embedding.size <= 4096:
            return f"embedding of shape {self.embedding.shape}, expected [16 to 4096]"
        norm = float(np.linalg.norm(self.embedding.astype(np.float64)))
        if not 1e-4 <= norm <= 1e4:  # false for NaN too
            return f"embedding of norm {norm:g}, expected 0.0001 to 10,000"
        if not 1 <= len(self.weights) <= 64:
            return f"{len(self.weights)} weights, expected 1 to 64"
        if not all(0 <= w < np.inf for w in self.weights):
            return "weights that are negative or not finite"
        if not re.fullmatch("[0-9a-f]{64}", self.encoder):
            return "encoder is not the hex sha256 of encoder weights"
        if not re.fullmatch("([0-9a-f]{64})?", self.acoustic):
            return "acoustic is not the hex sha256 of generator weights"
        if self.equaliser.ndim != 1 or self.equaliser.size > MAX_BANDS:
            return f"equaliser of shape {self.equaliser.shape}, expected [0 to {MAX_BANDS}]"
        if not (np.abs(self.equaliser) <= MAX_CHANGE).all():  # false for NaN too
            return f"an equaliser beyond +-{MAX_CHANGE:g}"
        if (self.adaptation or self.equaliser.size) and not self.acoustic:
            return "a weight difference or an equaliser without the hash of its generator"
        if found := adapt_weights.problem(self.adaptation):
            return found
        if taken := sorted({*OWN_KEYS, "sha256"} & self.metadata.keys()):
            return f"metadata may not hold {taken}"
        if not all(isinstance(x, str) for pair in self.metadata.items() for x in pair):
            return "metadata that is not text"
        try:
            size = len(json.dumps(dict(self.metadata), ensure_ascii=False).encode())
        except UnicodeEncodeError:
            return "metadata with half a surrogate pair in it"
        if size > METADATA_LIMIT:
            return f"metadata over {METADATA_LIMIT:,} bytes"
        return None

    def save(self, path: PathLike) -> None:
        """Write one safetensors file, complete or not at all.

        Raises:
            VoiceError: its folder does not exist.
        """
        tensors = {
            "embedding": torch.tensor(self.embedding),
            "weights": torch.tensor(self.weights, dtype=torch.float32),
            **{f"{ADAPT}{k}": torch.tensor(a) for k, a in self.adaptation.items()},
        }
        if self.equaliser.size:
            tensors["equaliser"] = torch.tensor(self.equaliser)
        version = FORMATS[2 if self.equaliser.size else 1 if self.adaptation else 0]
        own = {"format": version, "kind": KIND, "encoder": self.encoder}
        own |= {"acoustic": self.acoustic} if self.acoustic else {}
        try:
            checkpoint.save_tensors(path, tensors, {**self.metadata, **own})
        except WeightsError as error:
            raise VoiceError(str(error)) from error

    @classmethod
    def load(
        cls, path: PathLike, encoder: str | None = None, acoustic: str | None = None
    ) -> Voice:
        """Read a file that `save` wrote. Safe for files from strangers: nothing is executed.

        Args:
            path: the voice file, at most 1 MB.
            encoder: hex sha256 of the encoder in use; None accepts a voice of any encoder.
            acoustic: the same of the generator in use, which adapted voices depend on.

        Raises:
            VoiceError: missing, too large, damaged, not a voice, of another format version, or
                made for another encoder or generator.
        """
        try:
            tensors, metadata = checkpoint.load_tensors(path, limit_bytes=LIMIT_BYTES)
        except WeightsError as error:
            raise VoiceError(str(error)) from error
        version, kind, made_for, spoken_by = (metadata.pop(key, "") for key in OWN_KEYS)
        if kind != KIND:
            raise VoiceError(f"{path}: holds {kind or 'something'}, not a voice; check the path")
        if version not in FORMATS:
            raise VoiceError(f"{path}: voice format {version!r}, known: {FORMATS}; upgrade")
        changes = {k: t for k, t in tensors.items() if k.startswith(ADAPT)}
        shapes = {k: (t.dtype, t.ndim) for k, t in tensors.items() if k not in changes}
        wanted = ["embedding", "weights", *(["equaliser"] if version == FORMATS[2] else [])]
        fits = shapes == dict.fromkeys(wanted, (torch.float32, 1))
        if not fits or (version != FORMATS[2] and bool(changes) != (version == FORMATS[1])):
            raise VoiceError(f"{path}: not the tensors of a voice: {sorted(tensors)}; clone again")
        embedding, weights = tensors["embedding"].numpy(), tensors["weights"].tolist()
        equaliser = tensors["equaliser"].numpy() if "equaliser" in tensors else np.zeros(0)
        try:
            arrays = {k.removeprefix(ADAPT): t.numpy() for k, t in changes.items()}
            voice = cls(
                embedding, tuple(weights), made_for, metadata, spoken_by, arrays, equaliser
            )
            voice.require(encoder, acoustic)
        except (VoiceError, TypeError) as error:  # TypeError: a dtype that numpy does not know
            raise VoiceError(f"{path}: {error}") from error
        return voice

    @property
    def adapted(self) -> bool:
        """Whether the voice was fitted to one generator, and speaks with no other."""
        made = self.metadata.get("method", "").startswith("adapt-")
        own = bool(self.adaptation) or self.equaliser.size > 0
        return own or made or "adapted" in self.metadata

    def require(self, encoder: str | None, acoustic: str | None) -> None:
        """Raise VoiceError unless the voice fits these models (hex sha256; None fits any)."""
        if encoder is not None and self.encoder != encoder:
            raise VoiceError(
                f"made for encoder {self.encoder[:8]}, this engine has {encoder[:8]}; clone "
                "the recordings again, or load the weights it was made with"
            )
        if acoustic is not None and self.adapted and self.acoustic != acoustic:
            raise VoiceError(
                f"adapted to generator {self.acoustic[:8]}, this engine has {acoustic[:8]}; clone "
                "the recordings again, or load the weights it was made with"
            )

    def distance(self, other: Voice) -> float:
        """Cosine distance of the embeddings, 0 (same direction) to 2.

        Raises:
            VoiceError: the voices belong to different encoders.
        """
        _require_one_encoder([self, other])
        a, b = self.embedding.astype(np.float64), other.embedding.astype(np.float64)
        cosine = float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1.0 - min(1.0, max(-1.0, cosine))

    def __repr__(self) -> str:
        name = self.metadata.get("name", "unnamed")
        return f"Voice({name!r}, {self.embedding.size} numbers, encoder {self.encoder[:8]})"


def blend(shares: Mapping[Voice, float]) -> Voice:
    """The voice between voices: the sum of share * embedding, shares scaled to sum to 1.

    Args:
        shares: {voice: share}, 1 to 64 voices of one encoder, shares >= 0 and not all zero.

    Returns:
        A Voice whose weights are the scaled shares; its metadata names them and their consents.

    Raises:
        VoiceError: voices of different encoders, no voices, shares that cannot be scaled, or a
            voice with its own weights (method "adapt-model").
    """
    total = sum(shares.values())
    if not shares or not all(s >= 0 for s in shares.values()) or not 0 < total < np.inf:
        raise VoiceError(f"shares {list(shares.values())}: give finite ones >= 0, not all zero")
    _require_one_encoder(list(shares))
    if any(voice.adaptation for voice in shares):
        raise VoiceError(
            "a voice with its own weights cannot be mixed; clone with encode or adapt-embedding"
        )
    if len({voice.equaliser.size for voice in shares} - {0}) > 1:
        raise VoiceError("voices with equalisers of different sizes; clone them with one engine")
    generators = {voice.acoustic for voice in shares}
    if len(generators) > 1 and any(voice.adapted for voice in shares):
        raise VoiceError("a voice adapted to one generator cannot be mixed with another's")
    scaled = {voice: share / total for voice, share in shares.items()}
    parts = [w * voice.embedding.astype(np.float64) for voice, w in scaled.items()]
    names = [f"{w:.3f} {v.metadata.get('name', 'unnamed')}" for v, w in scaled.items()]
    metadata = {"method": "blend", "blend": " + ".join(names)[:1000]}
    consents = list(dict.fromkeys(v.metadata.get("consent", "") for v in scaled))
    if all(consents):  # one without consent leaves the blend without
        metadata["consent"] = "; ".join(consents)[:1000]
    if any(voice.adapted for voice in shares):
        metadata["adapted"] = "yes"
    encoder = next(iter(shares)).encoder
    acoustic = generators.pop() if len(generators) == 1 else ""
    bands = max(voice.equaliser.size for voice in shares)
    equaliser = np.zeros(bands)
    for voice, w in scaled.items():
        equaliser += w * voice.equaliser if voice.equaliser.size else 0.0
    return Voice(
        np.sum(parts, axis=0), tuple(scaled.values()), encoder, metadata, acoustic,
        equaliser=equaliser,
    )  # fmt: skip


def _require_one_encoder(voices: list[Voice]) -> None:
    encoders = sorted({voice.encoder[:8] for voice in voices})
    sizes = {voice.embedding.size for voice in voices}
    if len({voice.encoder for voice in voices}) != 1 or len(sizes) != 1:
        raise VoiceError(f"voices of different encoders {encoders}; clone them with one engine")
