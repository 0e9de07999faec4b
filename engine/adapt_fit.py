"""The gradient steps of adaptation: a voice is fitted to what a person said.

A few seconds hold few of the sounds of a language. So that the voice does not forget the others,
each step also asks it to say, clearly and at the same times, a sentence that it could say before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import adapt_weights
from engine.adapt_sample import Spoken
from engine.generator_task import pitch_loss
from engine.hear import asked
from engine.models.acoustic import Acoustic, Predicted
from engine.models.recogniser import PhoneRecogniser

# Alone, the embedding must go far to change much; beside weights it need not, and going far is what
# makes a voice mumble.
EMBEDDING_RATE, BESIDE_WEIGHTS = 0.02, 0.001
WEIGHT_RATE = 5e-4
HALVING = 80  # steps in which the rates halve: going on for long makes a voice hoarse
SELF_FED = 3  # of 4 steps the decoder hears its own mel, as it will when it speaks
ATTENTION_SHARE = 0.1  # of the attention's cross-entropy in the loss: the path is an estimate
CLEAR_SHARE = 1.0  # of what the recogniser does not understand of the fitted speech
KEPT_SHARE = 1.0  # of the clarity and attention of what the voice could say before
HOLLOW_SHARE = 0.5  # of the mel of what it could say before, where that is soft


class Fit:
    """L1 of the mel over the recording's noise, pitch, clarity, and a little of the attention.

    Args:
        rank: of the weight difference; 0: the embedding alone.
        embedding: [speaker_dim] to start from.
        kept: what the voice can say before the first step, and still must after the last.
    """

    def __init__(
        self, acoustic: Acoustic, rank: int, recogniser: PhoneRecogniser, embedding: Tensor,
        training: list[Spoken], kept: list[Spoken],
    ) -> None:  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # the same recordings make the same voice
            torch.manual_seed(0)
            self.acoustic, self.weights = adapt_weights.trainable(acoustic, rank)
        self.recogniser, self.training, self.kept = recogniser, training, kept
        self.embedding = embedding.clone().requires_grad_(True)
        self.everything = [self.embedding, *self.weights]
        rate = BESIDE_WEIGHTS if self.weights else EMBEDDING_RATE
        groups: list[dict[str, Any]] = [
            {"params": [self.embedding], "lr": rate}, {"params": self.weights}
        ]  # fmt: skip
        self.optimiser = torch.optim.Adam(groups, WEIGHT_RATE, betas=(0.9, 0.98))
        self.slowing = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: 0.5 ** (step / HALVING)
        )

    def step(self, step: int) -> None:
        """Fit one of the samples and keep one of the sentences, in turn."""
        one, kept = (them[step % len(them)] for them in (self.training, self.kept))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            self.acoustic.training = True  # dropout of the prenet, not of the blocks
            loss = self.loss(one, step % 4 < SELF_FED) + KEPT_SHARE * self.forgotten(kept)
            self.acoustic.training = False
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.everything, 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
            self.slowing.step()

    def loss(self, one: Spoken, self_fed: bool) -> Tensor:
        """How far the voice is from one sample, said at the same times and pitch."""
        out = self._said(one, self_fed)
        frames = torch.tensor([one.mel.shape[2]])
        far = self._distance(out.mel, one) + self._distance(out.decoder_mel, one)
        attention, unclear = self._lost(out, one)
        loss = far + ATTENTION_SHARE * attention + CLEAR_SHARE * unclear
        if out.pitch is not None and one.pitch is not None:
            loss = loss + pitch_loss(out.pitch, one.pitch, frames)
        return loss

    def forgotten(self, one: Spoken) -> Tensor:
        """How badly the voice says what it could say before: not clearly, not in time, or hoarsely.

        Hoarse is what fills the soft bands of a frame, as the noise of a recording does.
        """
        out = self._said(one, True)
        attention, unclear = self._lost(out, one)
        soft = torch.sigmoid(one.mel.mean(1, keepdim=True) - one.mel)
        changed = (soft * (out.mel - one.mel).abs()).mean() / self.acoustic.config.audio.mel_std
        return attention + unclear + HOLLOW_SHARE * changed

    def _lost(self, out: Predicted, one: Spoken) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the attention's moves; of the phones that are heard."""
        moves = (one.path - F.pad(one.path, (1, 0))[:, :-1])[0]
        attention = torch.stack([F.cross_entropy(s[0], moves) for s in out.scores]).mean()
        heard = self.recogniser(out.mel, torch.tensor([one.mel.shape[2]]))
        classes = asked(one.text_ids[0], one.path[0], heard.shape[2])
        return attention, F.nll_loss(heard, classes[None])

    @torch.no_grad()
    def distance(self, samples: list[Spoken]) -> float:
        """Of what the voice makes of samples from what was said, in deviations of the mel."""
        far = [self._distance(self._said(one, True).mel, one) for one in samples]
        return float(torch.stack(far).mean())

    def _said(self, one: Spoken, self_fed: bool) -> Predicted:
        frames, lengths = torch.tensor([one.mel.shape[2]]), torch.tensor([one.text_ids.shape[1]])
        return self.acoustic(
            one.text_ids, lengths, one.mel, frames, one.path, self.embedding[None],
            torch.tensor([self_fed]), one.pitch,
        )  # fmt: skip

    def _distance(self, mel: Tensor, one: Spoken) -> Tensor:
        """A voice need not learn the noise of a room: it is added to what the voice says."""
        noisy = torch.logaddexp(mel, one.noise)
        return (noisy - one.mel).abs().mean() / self.acoustic.config.audio.mel_std
