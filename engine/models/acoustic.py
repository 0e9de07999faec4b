"""text_ids + speaker_embedding -> mel: the Deep Voice 3 generator (arXiv:1710.07654, section 3).

Against the paper, because the training speech comes with alignments and is only hours long:
* Attention looks at a window of symbols from the last attended one on, in training as at
  inference, and is trained on the true next position. Whether to stay or go on is a local
  question; a softmax over the whole text learned it by heart (and failed on new sentences).
* The decoder is told which symbol it attended last and for how many steps. That replaces the
  position encodings, whose job is to tell a decoder where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.config import AcousticConfig
from engine.kernels import Decoder, DecoderInputs, DecoderWeights
from engine.models.harmonics import Harmonics
from engine.models.layers import Conv1dGLU, SpeakerBias, denormalise_mel, normalise_mel

REHEARSALS = 2
PITCH_HZ = 150.0


class Encoded(NamedTuple):
    """What the decoder reads: per attention layer keys, and values, all [batch, symbols, C]."""

    keys: tuple[Tensor, ...]
    values: Tensor
    lengths: Tensor  # [batch] int64


class Converted(NamedTuple):
    """Normalised mels, [batch, n_mels, frames], and the pitch that the converter expects."""

    decoder_mel: Tensor
    mel: Tensor
    pitch: Tensor | None  # [batch, 2, frames]: octaves from PITCH_HZ, voice above 0


class Predicted(NamedTuple):
    """Teacher-forced outputs."""

    decoder_mel: Tensor  # [batch, n_mels, frames]
    mel: Tensor  # [batch, n_mels, frames], after the converter
    done: Tensor  # [batch, decoder_steps] logits
    scores: Tensor  # [attention layers, batch, decoder_steps, window]
    pitch: Tensor | None  # as in Converted


class Generated(NamedTuple):
    """Free-running output of one batch."""

    mel: Tensor  # [batch, n_mels, frames], natural log
    path: Tensor  # [batch, decoder_steps] attended symbol of each step
    steps: Tensor  # [batch] decoder steps of each utterance


class Attention(nn.Module):
    """Dot-product attention over a window of symbols; residual, times sqrt(0.5)."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        c = config
        self.query = nn.Linear(c.decoder_channels, c.attention_channels)
        self.key = nn.Linear(c.encoder_channels, c.attention_channels)
        self.value = nn.Linear(c.encoder_channels, c.decoder_channels)
        self.scale = c.attention_channels**-0.5

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [batch, steps, C]; keys, values, mask [batch, steps, window, ...] -> x, scores."""
        scores = torch.einsum("btc,btwc->btw", self.query(x), keys) * self.scale
        scores = scores.float().masked_fill(~mask, -1e9)
        context = torch.einsum("btw,btwc->btc", scores.softmax(-1).to(values.dtype), values)
        return (x + self.value(context)) * 0.5**0.5, scores


class TextEncoder(nn.Module):
    """Symbol embedding and non-causal GLU convolutions; keys h_k, values sqrt(.5)(h_k + h_e)."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        c = config
        self.embedding = nn.Embedding(c.symbols, c.text_channels, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.speaker = SpeakerBias(c.speaker_dim, c.text_channels)
        self.enter = nn.Conv1d(c.text_channels, c.encoder_channels, 1)
        self.blocks = nn.ModuleList(
            Conv1dGLU(c.encoder_channels, c.kernel_size, causal=False, dropout=c.dropout,
                      speaker_dim=c.speaker_dim)
            for _ in range(c.encoder_layers)
        )  # fmt: skip
        self.leave = nn.Conv1d(c.encoder_channels, c.encoder_channels, 1)

    def forward(self, text_ids: Tensor, mask: Tensor, speaker_embedding: Tensor) -> Tensor:
        """text_ids [batch, symbols], mask [batch, 1, symbols] -> [batch, symbols, C]."""
        embedded = self.embedding(text_ids).transpose(1, 2) + self.speaker(speaker_embedding)
        entered = self.enter(embedded) * mask
        x = entered
        for block in self.blocks:
            x = block(x, speaker_embedding) * mask
        return ((self.leave(x) + entered) * 0.5**0.5 * mask).transpose(1, 2)


class Acoustic(nn.Module):
    """Encoder, attention decoder, converter. `forward` trains, `generate` speaks."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        c = self.config = config
        self.encoder = TextEncoder(c)
        sizes = [c.audio.n_mels * c.reduction_factor, *c.prenet_channels]
        self.prenet = nn.ModuleList(
            nn.Linear(i, o) for i, o in pairwise(sizes)
        )
        self.prenet_speaker = nn.ModuleList(
            SpeakerBias(c.speaker_dim, o) for o in c.prenet_channels
        )
        self.enter = nn.Linear(sizes[-1], c.decoder_channels)
        self.attended = nn.Linear(c.encoder_channels, c.decoder_channels)
        self.elapsed = nn.Embedding(c.max_elapsed + 1, c.decoder_channels)
        nn.init.normal_(self.elapsed.weight, std=0.1)
        self.blocks = nn.ModuleList(
            Conv1dGLU(c.decoder_channels, c.kernel_size, causal=True, dropout=c.dropout,
                      speaker_dim=c.speaker_dim)
            for _ in range(c.decoder_layers)
        )  # fmt: skip
        self.attention = nn.ModuleDict({str(i): Attention(c) for i in c.attention_layers})
        self.mel_out = nn.Linear(c.decoder_channels, c.audio.n_mels * c.reduction_factor)
        self.done = nn.Linear(c.decoder_channels, 1)
        self.spread = nn.Linear(c.decoder_channels, c.converter_channels * c.reduction_factor)
        self.converter = nn.ModuleList(
            Conv1dGLU(c.converter_channels, c.kernel_size, causal=False, dropout=c.dropout,
                      speaker_dim=c.speaker_dim)
            for _ in range(c.converter_layers)
        )  # fmt: skip
        if c.pitch:
            self.pitch_block = Conv1dGLU(
                c.converter_channels, c.kernel_size, causal=False, dropout=c.dropout,
                speaker_dim=c.speaker_dim,
            )  # fmt: skip
            self.pitch_out = nn.Conv1d(c.converter_channels, 2, 1)
            self.harmonics = Harmonics(c.audio)
            self.pitch_in = nn.Conv1d(c.audio.n_mels + 2, c.converter_channels, 1)
            nn.init.normal_(self.pitch_in.weight, std=0.01)
        self.refine = nn.Conv1d(c.converter_channels, c.audio.n_mels, 1)
        nn.init.normal_(self.refine.weight, std=0.01)

    def encode(self, text_ids: Tensor, lengths: Tensor, speaker_embedding: Tensor) -> Encoded:
        """Keys and values of a batch of texts.

        Args:
            text_ids: [batch, symbols] int64, 0-padded.
            lengths: [batch] int64.
            speaker_embedding: [batch, speaker_dim].
        """
        mask = torch.arange(text_ids.shape[1], device=text_ids.device) < lengths[:, None]
        values = self.encoder(text_ids, mask.unsqueeze(1), speaker_embedding)
        keys = tuple(layer.key(values) for layer in self.attention.values())
        return Encoded(keys, values, lengths)

    def _window(self, tensor: Tensor, position: Tensor) -> Tensor:
        """tensor [batch, symbols, C], position [batch, steps] -> [batch, steps, window, C]."""
        offsets = torch.arange(self.config.attention_window, device=position.device)
        at = (position.unsqueeze(-1) + offsets).clamp_max(tensor.shape[1] - 1)
        rows = torch.arange(tensor.shape[0], device=position.device)[:, None, None]
        return tensor[rows, at]

    def _prenet(self, mel: Tensor, speaker_embedding: Tensor) -> Tensor:
        """Normalised mel of the step before [batch, steps, r * n_mels] -> [batch, steps, C]."""
        x = mel
        for layer, speaker in zip(self.prenet, self.prenet_speaker, strict=True):
            x = F.relu(layer(x) + speaker(speaker_embedding).transpose(1, 2))
            x = F.dropout(x, self.config.prenet_dropout, self.training)
        return self.enter(x)

    def decode(
        self, mel: Tensor, position: Tensor, elapsed: Tensor, encoded: Encoded, speaker: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decoder over given inputs, all steps at once.

        Args:
            mel: [batch, steps, r * n_mels], normalised mel of the step before each step.
            position: [batch, steps], symbol attended in the step before.
            elapsed: [batch, steps], steps spent on it.
            speaker: speaker_embedding [batch, speaker_dim].
        Returns:
            hidden [batch, steps, C] and scores [attention layers, batch, steps, window].
        """
        rows = torch.arange(len(position), device=position.device)[:, None]
        x = self._prenet(mel, speaker) + self.attended(encoded.values[rows, position])
        x = x + self.elapsed(elapsed.clamp_max(self.config.max_elapsed))
        offsets = torch.arange(self.config.attention_window, device=position.device)
        mask = (position.unsqueeze(-1) + offsets) < encoded.lengths[:, None, None]
        values = self._window(encoded.values, position)
        scores: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x.transpose(1, 2), speaker).transpose(1, 2)
            if str(i) in self.attention:
                keys = self._window(encoded.keys[len(scores)], position)
                x, score = self.attention[str(i)](x, keys, values, mask)
                scores.append(score)
        return x, torch.stack(scores)

    def convert(
        self, hidden: Tensor, frames: Tensor, speaker: Tensor, pitch: Tensor | None = None
    ) -> Converted:
        """Decoder hidden states [batch, steps, C] -> mels.

        Args:
            frames: [batch] true frames of each utterance; what lies beyond never reaches them.
            pitch: [batch, frames] Hz, 0 = unvoiced; None: what the converter itself expects.
        """
        batch, steps, _ = hidden.shape
        r = self.config.reduction_factor
        per_frame = lambda y: y.view(batch, steps * r, -1).transpose(1, 2)  # noqa: E731
        decoder_mel = per_frame(self.mel_out(hidden))
        inside = torch.arange(steps * r, device=hidden.device) < frames[:, None]
        mask = inside.unsqueeze(1)
        x = per_frame(self.spread(hidden)) * mask
        expected = None
        if self.config.pitch:
            expected = self.pitch_out(self.pitch_block(x, speaker) * mask).float()
            if pitch is None:
                pitch = PITCH_HZ * 2 ** expected[:, 0] * (expected[:, 1] > 0)
            x = (x + self._shown(pitch)) * mask
        for block in self.converter:
            x = block(x, speaker) * mask
        return Converted(decoder_mel, decoder_mel + self.refine(x), expected)

    def _shown(self, pitch: Tensor) -> Tensor:
        """What the converter gets to know of pitch [batch, frames] Hz."""
        voiced = (pitch > 0).float()
        octaves = torch.log2(torch.where(pitch > 0, pitch, PITCH_HZ) / PITCH_HZ)
        known = torch.stack([octaves, voiced], dim=1)
        return self.pitch_in(torch.cat([self.harmonics(pitch), known], dim=1))

    def forward(
        self, text_ids: Tensor, lengths: Tensor, mel: Tensor, frames: Tensor, path: Tensor,
        speaker_embedding: Tensor, self_fed: Tensor | None = None, pitch: Tensor | None = None,
    ) -> Predicted:  # fmt: skip
        """Pass over a known path, all steps at once.

        Args:
            text_ids: [batch, symbols]; lengths: [batch].
            mel: [batch, n_mels, frames], frames a multiple of reduction_factor; natural log.
            frames: [batch] true frames.
            path: [batch, decoder_steps] true attended symbol; rises by at most window - 1 a step.
            speaker_embedding: [batch, speaker_dim].
            self_fed: [batch] bool, utterances whose decoder hears its own mel in place of the
                true one, as it will when it speaks: `REHEARSALS` passes without gradient come
                close to that without a loop over steps.
            pitch: [batch, frames] Hz, 0 = unvoiced; None: what the converter expects.
        """
        r = self.config.reduction_factor
        encoded = self.encode(text_ids, lengths, speaker_embedding)
        grouped = normalise_mel(mel, self.config.audio).transpose(1, 2)
        grouped = grouped.reshape(mel.shape[0], -1, r * self.config.audio.n_mels)
        before = F.pad(grouped, (0, 0, 1, 0))[:, :-1]
        position = F.pad(path, (1, 0))[:, :-1]
        elapsed = elapsed_steps(position)
        if self_fed is not None:
            inputs = (position, elapsed, encoded, speaker_embedding)
            before = self._rehearse(before, self_fed, lambda mel: self.decode(mel, *inputs)[0])
        hidden, scores = self.decode(before, position, elapsed, encoded, speaker_embedding)
        made = self.convert(hidden, frames, speaker_embedding, pitch)
        as_log = lambda m: denormalise_mel(m.float(), self.config.audio)  # noqa: E731
        done = self.done(hidden).squeeze(-1).float()
        return Predicted(as_log(made.decoder_mel), as_log(made.mel), done, scores, made.pitch)

    def _rehearse(
        self, before: Tensor, self_fed: Tensor, hear: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`before` [batch, steps, r * n_mels] with the decoder's own mel where `self_fed`."""
        device = before.device.type
        # autocast would keep weights it cast without gradient and use them in the pass that has one
        cast = torch.autocast(
            device, enabled=torch.is_autocast_enabled(device), cache_enabled=False
        )
        with torch.no_grad(), cast:
            for _ in range(REHEARSALS):
                own = F.pad(self.mel_out(hear(before)), (0, 0, 1, 0))[:, :-1].to(before.dtype)
                before = torch.where(self_fed[:, None, None], own, before)
        return before

    def decoder_weights(self) -> DecoderWeights:
        """Weights in the layout of `kernels.decoder_generate`."""
        stack = lambda parts: torch.stack([p.detach() for p in parts])  # noqa: E731
        return DecoderWeights(
            tuple(layer.weight.detach() for layer in self.prenet),
            self.enter.weight.detach(),
            self.elapsed.weight.detach(),
            stack([block.conv.weight for block in self.blocks]),
            stack([block.conv.bias for block in self.blocks]),
            self.mel_out.weight.detach(),
            self.mel_out.bias.detach(),
            self.done.weight.detach()[0],
            self.done.bias.detach()[0],
        )

    def network(self, precision: str = "float32") -> Decoder:
        """The decoder, ready for `kernels.decoder_generate`; a copy: build it once, after loading.

        Args:
            precision: of the compiled backends; see `kernels.Decoder`.
        """
        c = self.config
        return Decoder(
            self.decoder_weights(), c.attention_layers, c.attention_window, c.max_hold, precision
        )

    def fold(self, encoded: Encoded, speaker: Tensor) -> DecoderInputs:
        """Everything of text and speaker that stays the same over an utterance, multiplied out."""
        layers = list(self.attention.values())
        keys, biases, values = [], [], []
        for key, layer in zip(encoded.keys, layers, strict=True):
            keys.append(key @ layer.query.weight * layer.scale)
            biases.append(key @ layer.query.bias * layer.scale)
            values.append(layer.value(encoded.values))
        prenet = tuple(
            layer.bias + mine(speaker).squeeze(-1)
            for layer, mine in zip(self.prenet, self.prenet_speaker, strict=True)
        )
        attended = self.attended(encoded.values) + self.enter.bias
        blocks = torch.stack([block.speaker(speaker).squeeze(-1) for block in self.blocks], dim=1)
        return DecoderInputs(
            prenet, attended, blocks, torch.stack(keys), torch.stack(biases), torch.stack(values),
            encoded.lengths,
        )  # fmt: skip

    @torch.no_grad()
    def generate(
        self, text_ids: Tensor, lengths: Tensor, speaker_embedding: Tensor,
        network: Decoder | None = None, backend: str = "auto",
    ) -> Generated:  # fmt: skip
        """Speak: text to mel without a teacher.

        Args:
            text_ids: [batch, symbols] int64, 0-padded; lengths: [batch].
            speaker_embedding: [batch, speaker_dim].
            network: what `network()` returned, to prepare it once for many calls.
        """
        inputs = self.fold(self.encode(text_ids, lengths, speaker_embedding), speaker_embedding)
        network = network or self.network()
        limit = self.config.max_hold * text_ids.shape[1]
        hidden, path, steps = kernels.decoder_generate(
            inputs, network, limit, network.state(len(text_ids)), backend=backend
        )
        most = int(steps.max())  # of a device: the one value that is waited for
        mel = self.mel(hidden[:, :most], steps, speaker_embedding)
        return Generated(mel, path[:, :most], steps)

    def mel(self, hidden: Tensor, steps: Tensor, speaker_embedding: Tensor) -> Tensor:
        """Log-mel [batch, n_mels, frames] of decoder states [batch, steps, C].

        What lies beyond an utterance's `steps` [batch] never reaches its own frames.
        """
        c = self.config
        frames = steps * c.reduction_factor
        mel = self.convert(hidden, frames, speaker_embedding).mel
        if c.sharpening != 1:
            inside = (torch.arange(mel.shape[-1], device=mel.device) < frames[:, None]).unsqueeze(1)
            mean = (mel * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
            mel = mean + c.sharpening * (mel - mean)
        return denormalise_mel(mel, c.audio)


def elapsed_steps(position: Tensor) -> Tensor:
    """Steps that `position` [batch, steps] has held its value up to each step, from 0."""
    steps = torch.arange(position.shape[1], device=position.device).expand_as(position)
    changed = torch.ones_like(position, dtype=torch.bool)
    changed[:, 1:] = position[:, 1:] != position[:, :-1]
    return steps - torch.where(changed, steps, 0).cummax(dim=1).values
