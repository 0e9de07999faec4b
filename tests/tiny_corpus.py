"""A speech data set of noises with real texts and durations, and models small enough for tests."""

# ruff: noqa: RUF001 (IPA)
from pathlib import Path

import numpy as np
import torch
from sounds import talk

from engine.config import AcousticConfig, EncoderConfig, TrainConfig, VocoderConfig
from engine.data import Durations, Store, Utterance, is_held_out
from engine.generator_task import AcousticTask
from engine.tasks import EncoderTask, VocoderTask

# text, the teacher's phonemes, offset_s and durations, as `clonewave corpus` wrote them
SPOKEN = (
    ("Felt his mother's directing arm around him.",
     "fˈɛlt hɪz mˈʌðəɹz dᵻɹˈɛktɪŋ ˈɑɹm əɹɹˈWnd hˌɪm.", 0.2329,
     "9,1,2,1,2,1,1,1,2,2,2,1,2,2,2,2,3,2,2,2,3,2,2,2,2,2,2,2,3,3,2,2,1,1,2,2,2,3,2,1,1,1,1,2,3,"
     "19,7,1"),
    ("My opponent was wilting. Sheathe a sword.",
     "mI əpˈOnənt wʌz wˈɪltɪŋ. ʃˈið ɐ sˈoɹd.", 0.3026,
     "12,3,2,2,2,2,2,2,2,1,1,1,1,1,1,2,2,1,1,2,3,4,3,8,3,3,2,2,2,1,1,2,3,2,3,4,3,10,6,1"),
    ("I would have the studies elective.",
     "I wʊdhɐv ðə stˈʌdiz ᵻlˈɛktɪv.", 0.2504,
     "11,2,2,2,2,3,4,3,2,2,1,2,3,3,2,2,2,3,4,3,3,3,2,2,2,3,4,4,20,7,1"),
)  # fmt: skip

VOCODER = VocoderConfig(
    layers=3, max_dilation=4, residual_channels=8, skip_channels=8, conditioning_channels=8
)
ENCODER = EncoderConfig(
    prenet_channels=8, channels=8, layers=1, kernel_size=3, attention_channels=8, speaker_dim=8
)
ACOUSTIC = AcousticConfig(
    speaker_dim=8, text_channels=8, encoder_channels=12, encoder_layers=1, prenet_channels=(8, 12),
    decoder_channels=12, decoder_layers=2, attention_layers=(0,), attention_channels=8,
    converter_channels=8, converter_layers=1, max_hold=4,
)  # fmt: skip


def utterance(speaker: str, number: int) -> Utterance:
    text, phonemes, offset_s, frames = SPOKEN[number % len(SPOKEN)]
    counts = tuple(int(n) for n in frames.split(","))
    durations = Durations(phonemes, counts, offset_s, 0.025)
    return Utterance(Path(f"{number:06d}.opus"), speaker, text, durations)


def store(speakers: int = 24, each: int = 2) -> Store:
    """`each` training utterances of every speaker and two held-out ones of the first."""
    chosen = []
    for i in range(speakers):
        mine = [utterance(f"speaker{i:02d}", n) for n in range(300)]
        chosen += [u for u in mine if not is_held_out(u)][:each]
        chosen += [u for u in mine if is_held_out(u)][: 2 if i == 0 else 0]
    parts = []
    for i, one in enumerate(chosen):
        assert one.durations is not None
        seconds = 0.025 * sum(one.durations.frames) - one.durations.offset_s
        parts.append((talk(seconds, seed=i) * 32767).astype("<i2"))
    return Store(chosen, np.concatenate(parts), np.cumsum([len(p) for p in parts]))


def task(kind: str, data: Store, train: TrainConfig):
    if kind == "vocoder":
        return VocoderTask(data, VOCODER, train, segment_frames=16)
    if kind == "encoder":
        return EncoderTask(data, ENCODER, train)
    return AcousticTask(data, ACOUSTIC, ENCODER, train)


def learn(task, steps: int = 20) -> tuple[float, float]:
    """Loss of the first batch before and after so many steps on it."""
    batch = task.batch(0)
    optimiser = torch.optim.Adam(task.model.parameters(), 1e-2)
    first = float(task.loss(batch)[0].detach())
    for _ in range(steps):
        optimiser.zero_grad()
        task.loss(batch)[0].backward()
        optimiser.step()
    return first, float(task.loss(batch)[0].detach())
