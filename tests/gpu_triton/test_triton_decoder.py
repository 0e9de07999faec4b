"""decoder_generate in Triton: accuracy, paths, chunks, batches."""

from dataclasses import replace

import decoder_cases as cases
import pytest
import torch
from engine.kernels import DecoderInputs, DecoderWeights

from engine import kernels

LENGTHS = [1, 2, 5]
GATES = {"float32": (1e-5, 1e-6), "bfloat16": (3e-2, 4e-3), "int8": (8e-2, 1e-2)}
VARIANTS = [("float32", 1), ("bfloat16", 1), ("bfloat16", 16), ("int8", 16)]
CHECK = {name: cases.CHECK[name] for name in ("small", "no_past", "last_attention_moves")}


def make(shape, precision, group, device):
    network = cases.make_decoder(shape, precision)
    prenet, *rest = network.weights
    weights = DecoderWeights(tuple(p.to(device) for p in prenet), *(p.to(device) for p in rest))
    return replace(network, weights=weights, utterances_per_program=group)


def generate(inputs, network, steps=40, state=None):
    device = network.weights.mel.device
    state = state or network.state(len(inputs.lengths))
    bias, *rest = inputs
    there = DecoderInputs(tuple(p.to(device) for p in bias), *(p.to(device) for p in rest))
    made = kernels.decoder_generate(there, network, steps, state, backend="triton")
    return [part.cpu() for part in made]


def exactly(shape, inputs, steps, state=None):
    network = cases.make_decoder(shape)
    double = cases.in_double(inputs, network, state or network.state(len(inputs.lengths)))
    return kernels.decoder_generate(*double[:2], steps, double[2], backend="reference")


@pytest.mark.parametrize("name", CHECK)
@pytest.mark.parametrize(("precision", "group"), VARIANTS)
def test_a_step_is_as_accurate_as_its_precision_allows(device, precision, group, name):
    shape, inputs = CHECK[name], cases.make_texts(CHECK[name], LENGTHS)
    network = make(shape, precision, group, device)
    state = cases.random_state(shape, network, LENGTHS)
    host = type(state)(*(part.cpu().clone() for part in state))
    exact, _, _ = exactly(shape, inputs, 1, host)
    hidden, _, _ = generate(inputs, network, 1, state)
    error = (hidden - exact).abs()
    most, mean = GATES[precision]
    assert error.max() < most and error.mean() < mean, (error.max(), error.mean())
    assert exact.std() > 0.3


def test_whole_utterances_take_the_path_of_the_reference(device):
    shape, inputs = cases.SMALL, cases.make_texts(cases.SMALL, LENGTHS)
    exact, path, count = exactly(shape, inputs, 40)
    network = make(shape, "float32", 1, device)
    state = network.state(3)
    hidden, our_path, our_count = generate(inputs, network, state=state)
    assert torch.equal(our_count, count) and hidden.shape[1] == our_path.shape[1] == 40
    assert state.finished.all() and len(set(count.tolist())) > 1
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(our_path[row, :steps], path[row, :steps])
        assert (hidden[row, :steps] - exact[row, :steps]).abs().max() < 1e-4
        assert not hidden[row, steps:].any()
        assert (our_path[row, steps:] == LENGTHS[row] - 1).all()


@pytest.mark.parametrize(("precision", "group"), [("float32", 1), ("bfloat16", 16)])
def test_bits_depend_neither_on_chunks_nor_on_the_batch_nor_on_what_lies_beyond(
    device, precision, group
):
    network = make(cases.SMALL, precision, group, device)
    inputs = cases.make_texts(cases.SMALL, LENGTHS)
    state, chunked = network.state(3), network.state(3)
    hidden, path, count = generate(inputs, network, state=state)
    for row, length in enumerate(LENGTHS):
        inputs.attended[row, length:] = float("nan")
        for part in (inputs.folded_keys, inputs.key_bias, inputs.folded_values):
            part[:, row, length:] = float("nan")
    made, at = torch.zeros_like(hidden), torch.zeros_like(count)
    for size in (1, 0, 4, 40):
        part, _, part_count = generate(inputs, network, size, chunked)
        for row, steps in enumerate(part_count.tolist()):
            made[row, at[row] : at[row] + steps] = part[row, :steps]
        at += part_count
    assert torch.equal(at, count) and torch.equal(made, hidden)
    assert all(torch.equal(a, b) for a, b in zip(state, chunked, strict=True))
    alone, alone_path, _ = generate(cases.rows_of(inputs, 2), network)
    assert torch.equal(alone[0], hidden[2]) and torch.equal(alone_path[0], path[2])


def test_of_equal_scores_the_first_is_taken_and_a_hold_runs_out(device):
    network = make(cases.SMALL, "bfloat16", 16, device)
    weights = network.weights._replace(done_bias=torch.tensor(-1e6, device=device))
    inputs = cases.make_texts(cases.SMALL, [4, 2])
    inputs.folded_keys.zero_()
    inputs.key_bias.copy_(torch.tensor([[0.0, 1, 1, 1], [0, 1, 9, 9]]))
    _, path, count = generate(inputs, replace(network, weights=weights))
    assert path[0].tolist() == [1] * 6 + [2] * 6 + [3] * 28  # beyond the count, the last position
    assert path[1].tolist() == [1] * 40
    assert count.tolist() == [13, 7]
