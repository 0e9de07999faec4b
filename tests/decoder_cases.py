"""Decoders of random weights, and texts for them, for tests and benches."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from engine.kernels import Decoder, DecoderInputs, DecoderState, DecoderWeights
from torch import Tensor


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder; `mel` is reduction_factor * n_mels."""

    mel: int = 400
    prenet: tuple[int, ...] = (128, 256)
    channels: int = 256
    layers: int = 4
    kernel_size: int = 5
    attention_layers: tuple[int, ...] = (0, 2)
    window: int = 3
    max_hold: int = 24
    elapsed: int = 16

    @property
    def multiply_adds(self) -> int:
        """Per step, without attention."""
        c, widths = self.channels, (self.mel, *self.prenet, self.channels)
        linear = sum(a * b for a, b in pairwise(widths)) + c * self.mel
        return linear + self.layers * 2 * c * c * self.kernel_size


DEFAULT = DecoderShape()
SMALL = DecoderShape(48, (16, 48), 32, 3, 3, (0, 2), 3, 6, 4)
CHECK = {
    "default": DEFAULT,
    "small": SMALL,
    "no_past": DecoderShape(16, (32,), 48, 2, 1, (1,), 5, 9, 1),
    "last_attention_moves": DecoderShape(80, (16, 16, 16), 64, 3, 2, (2, 0), 1, 4, 3),
}


def make_decoder(
    shape: DecoderShape, precision: str = "float32", isa: str = "auto", seed: int = 0
) -> Decoder:
    """Random weights under which the residual stream stays of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    c, widths = shape.channels, (shape.mel, *shape.prenet)
    prenet = tuple(normal(b, a, std=(2 / a) ** 0.5) for a, b in pairwise(widths))
    weights = DecoderWeights(
        prenet,
        normal(c, widths[-1], std=widths[-1] ** -0.5),
        normal(shape.elapsed, c, std=0.3),
        normal(shape.layers, 2 * c, c, shape.kernel_size, std=(c * shape.kernel_size) ** -0.5),
        normal(shape.layers, 2 * c, std=0.3),
        normal(shape.mel, c, std=c**-0.5),
        normal(shape.mel, std=0.3),
        normal(c, std=2 * c**-0.5),
        torch.tensor(-1.0),
    )
    return Decoder(weights, shape.attention_layers, shape.window, shape.max_hold, precision, isa)


def make_texts(shape: DecoderShape, lengths: list[int], seed: int = 0) -> DecoderInputs:
    """Folded texts; what lies beyond a text is 1e3, where a wrong attention would go."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    batch, symbols, c = len(lengths), max(lengths), shape.channels
    folded = (len(shape.attention_layers), batch, symbols)
    inputs = DecoderInputs(
        tuple(normal(batch, width, std=0.3) for width in shape.prenet),
        normal(batch, symbols, c, std=0.7),
        normal(batch, shape.layers, c, std=0.3),
        normal(*folded, c, std=2 * c**-0.5),
        normal(*folded, std=0.5),
        normal(*folded, c, std=0.7),
        torch.tensor(lengths),
    )
    for row, length in enumerate(lengths):
        inputs.attended[row, length:] = 1e3
        for part in (inputs.folded_keys, inputs.key_bias, inputs.folded_values):
            part[:, row, length:] = 1e3
    return inputs


def rows_of(inputs: DecoderInputs, row: int) -> DecoderInputs:
    """One utterance alone, without its padding."""
    one, length = slice(row, row + 1), int(inputs.lengths[row])
    folded = (part[:, one, :length] for part in inputs[3:6])
    return DecoderInputs(
        tuple(bias[one] for bias in inputs.prenet_bias),
        inputs.attended[one, :length], inputs.speaker[one], *folded, inputs.lengths[one],
    )  # fmt: skip


def in_double(
    inputs: DecoderInputs, network: Decoder, state: DecoderState
) -> tuple[DecoderInputs, Decoder, DecoderState]:
    """The same call for the reference in float64."""
    prenet, *rest = network.weights
    weights = DecoderWeights(tuple(p.double() for p in prenet), *(p.double() for p in rest))
    bias, *others, lengths = inputs
    return (
        DecoderInputs(tuple(p.double() for p in bias), *(p.double() for p in others), lengths),
        Decoder(weights, network.attention_layers, network.window, network.max_hold),
        DecoderState(state.mel.double(), state.history.double(), *(p.clone() for p in state[2:])),
    )


def random_state(shape: DecoderShape, network: Decoder, lengths: list[int]) -> DecoderState:
    """Utterances in the middle of their texts."""
    torch.manual_seed(3)
    state = network.state(len(lengths))
    state.mel.normal_()
    state.history.normal_()
    state.position.copy_(torch.tensor([length // 2 for length in lengths]))
    state.elapsed.copy_(torch.arange(len(lengths)) % shape.max_hold)
    return state
