"""Ground truth of the attention decoder op, in plain torch. Rules as in `reference.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from engine.kernels.reference import PRECISIONS
from torch import Tensor
from torch.nn import functional as F

DECODER_PRECISIONS = (*PRECISIONS, "int16")


class DecoderWeights(NamedTuple):
    """What is the same for every utterance. C channels, P prenet widths, M = r * n_mels."""

    prenet: tuple[Tensor, ...]  # [P0, M], [P1, P0], ...
    enter: Tensor  # [C, P last]
    elapsed: Tensor  # [max_elapsed + 1, C]
    convs: Tensor  # [layers, 2C, C, kernel_size]: value rows, then gate rows; last tap = now
    conv_bias: Tensor  # [layers, 2C]
    mel: Tensor  # [M, C]
    mel_bias: Tensor  # [M]
    done: Tensor  # [C]
    done_bias: Tensor  # []


class DecoderInputs(NamedTuple):
    """What is constant within an utterance: everything of text and speaker, folded.

    Attention scores are x . folded_keys[j] + key_bias[j]: query projection, bias and 1 / sqrt(d)
    are multiplied into the keys, the output projection into the values.
    """

    prenet_bias: tuple[Tensor, ...]  # [batch, P0], ...: layer bias + speaker
    attended: Tensor  # [batch, symbols, C]: input for the symbol attended last, + enter's bias
    speaker: Tensor  # [batch, layers, C]: added to the values of each convolution block
    folded_keys: Tensor  # [attention layers, batch, symbols, C]
    key_bias: Tensor  # [attention layers, batch, symbols]
    folded_values: Tensor  # [attention layers, batch, symbols, C]
    lengths: Tensor  # [batch] int64, symbols


class DecoderState(NamedTuple):
    """What a decoder remembers between calls; updated in place."""

    mel: Tensor  # [batch, M], normalised mel of the last step
    history: Tensor  # [batch, layers, C, kernel_size - 1], inputs of each block, newest last
    position: Tensor  # [batch] int64, symbol attended last
    elapsed: Tensor  # [batch] int64, steps spent on it
    finished: Tensor  # [batch] bool


def decoder_state(weights: DecoderWeights, batch: int) -> DecoderState:
    """The state before the first step."""
    layers, _, channels, kernel = weights.convs.shape
    new = weights.mel.new_zeros
    zeros = torch.zeros(batch, dtype=torch.int64, device=weights.mel.device)
    return DecoderState(
        new(batch, weights.mel.shape[0]), new(batch, layers, channels, kernel - 1), zeros,
        zeros.clone(), zeros.bool(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder ready to generate; backends keep their packed weights with it, so build it once.

    Args:
        weights: copied; later changes of the originals are not seen.
        attention_layers: the layers followed by attention; the first listed moves the position.
        window: symbols the attention may look at, from the last attended one on.
        max_hold: decoder steps after which a symbol is left.
        precision: of weights and matrix inputs in compiled backends: "float32", "bfloat16",
            "int8" or, in cpp alone, "int16": 16-bit weights, 15-bit inputs. The reference always
            computes in the dtype of the weights.
        isa: instruction set of the cpp backend, a key of `kernels.isas()`; "auto" = the fastest.
        utterances_per_program: of the triton backend; as WaveNet's `streams_per_program`.
    Raises:
        ValueError: unknown precision, no such layer, or a window or hold below 1.
    """

    weights: DecoderWeights
    attention_layers: tuple[int, ...]
    window: int
    max_hold: int
    precision: str = "float32"
    isa: str = "auto"
    utterances_per_program: int = 16

    def __post_init__(self) -> None:
        if self.precision not in DECODER_PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: one of {DECODER_PRECISIONS}")
        if self.utterances_per_program not in (1, 16):
            raise ValueError(f"utterances_per_program {self.utterances_per_program}: 1 or 16")
        layers = range(len(self.weights.convs))
        listed = self.attention_layers
        if len(set(listed)) != len(listed) or not set(listed) <= set(layers):
            raise ValueError(f"attention_layers {listed}: need distinct ones of {len(layers)}")
        if self.window < 1 or self.max_hold < 1:
            raise ValueError(f"window {self.window}, max_hold {self.max_hold}: at least 1")
        prenet, *others = self.weights
        copies = [part.detach().clone() for part in others]
        prenet = tuple(part.detach().clone() for part in prenet)
        object.__setattr__(self, "weights", DecoderWeights(prenet, *copies))

    def state(self, batch: int = 1) -> DecoderState:
        """The state of `batch` utterances before the first step."""
        return decoder_state(self.weights, batch)


def decoder_generate(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> tuple[Tensor, Tensor, Tensor]:
    """Deep Voice 3 decoder, free-running, step by step: hidden states and attention path.

    x = enter(relu-prenet(mel)) + attended[position] + elapsed;  each block:
    [v; g] = causal conv(x);  x = sqrt(.5) (x + (v + speaker) sigmoid(g));  after the layers in
    `attention_layers`: x = sqrt(.5) (x + softmax(x . keys[position : position + window]) . values).
    The first attention layer moves the position to its largest score (the first of equals). A
    symbol held for `max_hold` steps is left for the next. An utterance ends with the step whose
    done flag is above 0.5, or whose hold runs out, on its last symbol.

    Args:
        steps: decoder steps of this call at most; calls of any size join to the same result.
        state: updated in place; rows of finished utterances no longer matter.
    Returns:
        hidden [batch, n, C]; path [batch, n] int64, attended symbol of each step; count [batch]
        int64, valid steps of this call. n is the largest count here; a backend that would have to
        wait for a device to know it gives `steps`, with 0 in hidden beyond a count.
    Source: arXiv:1710.07654, section 3.5 and appendix B.
    """
    hidden, path = [], []
    count = torch.zeros_like(state.position)
    for _ in range(steps):
        if bool(state.finished.all()):
            break
        x, position, running = decoder_step(inputs, network, state)
        hidden.append(x)
        path.append(position)
        count += running
    if not hidden:
        channels = network.weights.mel.shape[1]
        return (
            state.mel.new_zeros(len(count), 0, channels), count.new_zeros(len(count), 0), count
        )
    return torch.stack(hidden, 1), torch.stack(path, 1), count


def decoder_step(
    inputs: DecoderInputs, network: Decoder, state: DecoderState
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of `decoder_generate`: hidden [batch, C], position [batch], running [batch].

    Reads no value on the host, so a CUDA graph can hold it.
    """
    weights, attention_layers = network.weights, network.attention_layers
    rows = torch.arange(len(state.position), device=state.position.device)
    offsets = torch.arange(network.window, device=rows.device)
    x = state.mel
    for weight, bias in zip(weights.prenet, inputs.prenet_bias, strict=True):
        x = F.relu(x @ weight.T + bias)
    x = x @ weights.enter.T + inputs.attended[rows, state.position]
    x = x + weights.elapsed[state.elapsed.clamp_max(len(weights.elapsed) - 1)]
    reach = state.position[:, None] + offsets
    outside = reach >= inputs.lengths[:, None]
    reach = reach.clamp_max(inputs.folded_keys.shape[2] - 1)
    move = torch.zeros_like(state.position)
    for layer in range(weights.convs.shape[0]):
        seen = torch.cat([state.history[:, layer], x.unsqueeze(-1)], dim=-1)
        state.history[:, layer] = seen[..., 1:]
        mixed = torch.einsum("ock,nck->no", weights.convs[layer], seen)
        values, gates = (mixed + weights.conv_bias[layer]).chunk(2, dim=-1)
        values = values + inputs.speaker[:, layer]
        x = (x + values * torch.sigmoid(gates)) * 0.5**0.5
        if layer in attention_layers:
            a = attention_layers.index(layer)
            keys = inputs.folded_keys[a][rows[:, None], reach]
            score = torch.einsum("nc,nwc->nw", x, keys)
            score = score + inputs.key_bias[a][rows[:, None], reach]
            score = score.masked_fill(outside, float("-inf"))
            if a == 0:
                move = score.argmax(-1)
            context = torch.einsum(
                "nw,nwc->nc", score.softmax(-1), inputs.folded_values[a][rows[:, None], reach]
            )
            x = (x + context) * 0.5**0.5
    running = ~state.finished
    last = inputs.lengths - 1
    held = state.elapsed + 1 >= network.max_hold
    move = torch.where(held & (move == 0) & (state.position < last), 1, move)
    position = state.position + move
    done = (x @ weights.done + weights.done_bias > 0) | held
    state.finished.logical_or_(done & (position == last) & running)
    state.elapsed.copy_(torch.where(move > 0, 0, state.elapsed + 1))
    state.position.copy_(position)
    state.mel.copy_(x @ weights.mel.T + weights.mel_bias)
    return x, position, running
