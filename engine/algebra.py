"""Directions among voices: class averages of the training speakers, morphs and maps
(arXiv:1802.06006, section 4.4 and figure 5).

`directions.safetensors` lies beside the weights and belongs to their encoder. `clonewave train
directions` makes it from speakers whose sex and accent are known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine import checkpoint
from engine.crops import SpeakerSampler
from engine.data import Store
from engine.errors import InputError, VoiceError, WeightsError
from engine.models.speaker_encoder import SpeakerEncoder
from engine.voice import Voice

if TYPE_CHECKING:
    from engine.engine import Engine

FILE = "directions.safetensors"
KIND = "directions"
OPPOSITE = {"female": "male", "male": "female", "american": "british", "british": "american"}
LIMIT_BYTES = 1 << 20
MAX_AMOUNT = 3.0
CROP_S = 4.0  # of a recording, for the averages
PER_SPEAKER = 3  # recordings of a speaker, at most


@dataclass(frozen=True, eq=False)
class Directions:
    """Where the training speakers lie.

    Attributes:
        averages: class -> mean embedding, float32 [speaker_dim]; classes as in OPPOSITE.
        mean: float32 [speaker_dim] of all speakers.
        axes: float32 [2, speaker_dim], their first two principal components.
        points: float32 [speakers, 2], the speakers on these axes.
        classes: [speakers] such as "american female".
        encoder: hex sha256 of the encoder weights.
    """

    averages: dict[str, np.ndarray]
    mean: np.ndarray
    axes: np.ndarray
    points: np.ndarray
    classes: tuple[str, ...]
    encoder: str

    def save(self, path: Path) -> None:
        """Write one safetensors file, complete or not at all."""
        arrays = {"mean": self.mean, "axes": self.axes, "points": self.points}
        arrays |= {f"average.{name}": a for name, a in self.averages.items()}
        tensors = {k: torch.tensor(np.asarray(a, np.float32)) for k, a in arrays.items()}
        own = {"format": "1", "kind": KIND, "encoder": self.encoder}
        checkpoint.save_tensors(path, tensors, {**own, "classes": json.dumps(self.classes)})

    @classmethod
    def load(cls, path: Path, encoder: str) -> Directions:
        """Read what `save` wrote.

        Raises:
            WeightsError: missing, damaged, or of another encoder.
        """
        tensors, metadata = checkpoint.load_tensors(path, limit_bytes=LIMIT_BYTES)
        if (metadata.get("kind"), metadata.get("format")) != (KIND, "1"):
            raise WeightsError(f"{path}: holds no directions; make them with `clonewave train`")
        if metadata.get("encoder") != encoder:
            raise WeightsError(
                f"{path}: belongs to another encoder; run `clonewave train directions` again"
            )
        try:
            arrays = {k: t.numpy() for k, t in tensors.items()}
            averages = {name: arrays[f"average.{name}"] for name in OPPOSITE}
            classes = tuple(json.loads(metadata["classes"]))
            return cls(averages, arrays["mean"], arrays["axes"], arrays["points"], classes, encoder)
        except (KeyError, ValueError, TypeError) as error:
            raise WeightsError(f"{path}: incomplete ({error}); make it again") from error

    def position(self, embedding: np.ndarray, towards: str) -> float:
        """Where a voice lies between two averages: 0 at the opposite class's, 1 at its own."""
        start, end = self.averages[OPPOSITE[towards]], self.averages[towards]
        way = (end - start).astype(np.float64)
        return float((embedding - start) @ way / (way @ way))

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """[voices, speaker_dim] -> [voices, 2] on the map."""
        return (embeddings - self.mean) @ self.axes.T


def morph(voice: Voice, towards: str, directions: Directions, amount: float = 1.0) -> Voice:
    """The voice, moved along a class direction: e + share * (avg(towards) - avg(opposite)).

    The share is `amount` for a voice on the opposite side, as in the paper, and falls to nothing
    for one that is already where `towards` is on average. The embedding keeps its length.

    Args:
        towards: "female", "male", "american" or "british".
        amount: 0 to 3; 1 is the paper's step from one average to the other.
    Raises:
        VoiceError: a voice of another encoder, or one with a weight difference.
        InputError: an unknown class or amount.
    Source: arXiv:1802.06006, section 4.4.
    """
    if towards not in OPPOSITE:
        raise InputError(f"cannot morph towards {towards!r}; give one of {', '.join(OPPOSITE)}")
    if not 0 <= amount <= MAX_AMOUNT:
        raise InputError(f"amount {amount}: give 0 to {MAX_AMOUNT:g}")
    voice.require(directions.encoder, None)
    if voice.adaptation:
        raise VoiceError(
            "a voice with its own weights cannot be morphed; clone with encode or adapt-embedding"
        )
    before = voice.embedding.astype(np.float64)
    share = amount * min(1.0, max(0.0, 1.0 - directions.position(before, towards)))
    way = directions.averages[towards].astype(np.float64) - directions.averages[OPPOSITE[towards]]
    moved = before + share * way
    moved *= np.linalg.norm(before) / np.linalg.norm(moved)
    told = {"method": "morph", "morph": f"{towards} {amount:g} of {voice.metadata.get('name', '')}"}
    told |= {"adapted": "yes"} if voice.adapted else {}
    kept = {k: v for k, v in voice.metadata.items() if k in ("name", "consent", "created")}
    return Voice(
        moved, voice.weights, voice.encoder, {**kept, **told}, voice.acoustic,
        equaliser=voice.equaliser,
    )  # fmt: skip


def of_engine(engine: Engine) -> Directions:
    """The directions beside an engine's weights.

    Raises:
        WeightsError: these weights came without.
    """
    path = engine.folder / FILE
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; make it with `clonewave train directions`")
    return Directions.load(path, engine.encoder_hash)


def labels(folder: Path) -> dict[str, str]:
    """Speaker -> class such as "british female", for a Clonewave corpus or VCTK; {} for others.

    Only English voices and mixes have an accent; a mixed speaker's is that of its prosody.
    """
    found: dict[str, str] = {}
    accents, sexes = {"a": "american", "b": "british"}, {"f": "female", "m": "male"}
    if (table := folder / "speakers.json").is_file():
        for name, recipe in json.loads(table.read_text("utf-8")).items():
            mixed = name.startswith("mix")
            accent = recipe["prosody"][:1] if mixed else name[:1]
            sex = name[-1:] if mixed else name[1:2]
            if accent in accents and sex in sexes:
                key = f"{folder.resolve().name}/{name}" if mixed else name
                found[key] = f"{accents[accent]} {sexes[sex]}"
    elif (table := folder / "speaker-info.txt").is_file():
        lines = table.read_text("utf-8").splitlines()[1:]
        for row in (line.split() for line in lines if line.strip()):  # ID AGE GENDER ACCENTS ...
            nation = {"English": "british", "American": "american"}.get(row[3])
            if nation and row[2].lower() in ("f", "m"):
                found[f"vctk/{row[0]}"] = f"{nation} {sexes[row[2].lower()]}"
    return found


@torch.no_grad()
def measure(
    encoder: SpeakerEncoder, encoder_hash: str, store: Store, classes: dict[str, str]
) -> Directions:
    """Directions of an encoder over the labelled speakers of a data set.

    Raises:
        InputError: a class has no speakers.
    """
    sampler = SpeakerSampler(store, np.arange(len(store)), encoder.config)
    names = [name for name in sampler.speakers if name in classes]
    rng = np.random.default_rng(0)
    rows = []
    for name in names:
        mine = sampler.by_speaker[name][:PER_SPEAKER]
        batch = sampler.collate([[sampler.crop(i, CROP_S, rng, 0.0)] for i in mine])
        rows.append(encoder(*batch)[0].mean(0).numpy())
    found = np.array(rows, np.float32)
    averages = {}
    for one in OPPOSITE:
        mine = [i for i, name in enumerate(names) if one in classes[name].split()]
        if not mine:
            raise InputError(f"no speaker of the data is known to be {one}; add data with labels")
        averages[one] = found[mine].mean(0)
    mean = found.mean(0)
    axes = np.linalg.svd(found - mean, full_matrices=False)[2][:2]
    of = tuple(classes[name] for name in names)
    return Directions(averages, mean, axes, (found - mean) @ axes.T, of, encoder_hash)
