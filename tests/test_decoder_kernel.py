"""The compiled attention decoder against its definition, on every instruction set usable here."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import decoder_cases as cases
import pytest
import tiny
import torch
from engine.kernels import BackendUnavailable, native_decoder

from engine import kernels
from engine.models.acoustic import Acoustic

ISAS = [name for name, reason in kernels.isas().items() if reason is None]
pytestmark = pytest.mark.usefixtures("cpp", "poisoned_memory")
LENGTHS = [1, 2, 9, 5, 12, 3, 7]
# Largest and mean error of hidden states of order one after one step, against float64.
GATES = {
    "float32": (1e-5, 1e-6), "int16": (1e-3, 1e-4), "bfloat16": (3e-2, 4e-3), "int8": (8e-2, 1e-2),
}  # fmt: skip


def generate(inputs, network, steps=400, state=None, backend="cpp"):
    state = state or network.state(len(inputs.lengths))
    return kernels.decoder_generate(inputs, network, steps, state, backend=backend)


def changed(network, **weights):
    return replace(network, weights=network.weights._replace(**weights))


@pytest.mark.parametrize("name", cases.CHECK)
@pytest.mark.parametrize("precision", kernels.DECODER_PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_step_is_as_accurate_as_its_precision_allows(isa, precision, name):
    shape = cases.CHECK[name]
    network = cases.make_decoder(shape, precision, isa)
    inputs = cases.make_texts(shape, LENGTHS)
    state = cases.random_state(shape, network, LENGTHS)
    double = cases.in_double(inputs, network, state)
    exact, _, _ = generate(*double[:2], 1, double[2], backend="reference")
    made, _, _ = generate(inputs, network, 1, state)
    error = (made - exact).abs()
    most, mean = GATES[precision]
    assert error.max() < most and error.mean() < mean, (error.max(), error.mean())
    assert exact.std() > 0.3


@pytest.mark.parametrize("name", cases.CHECK)
@pytest.mark.parametrize("isa", ISAS)
def test_whole_utterances_take_the_path_of_the_reference(isa, name):
    shape = cases.CHECK[name]
    network, inputs = cases.make_decoder(shape, isa=isa), cases.make_texts(shape, LENGTHS)
    state = network.state(len(LENGTHS))
    double = cases.in_double(inputs, network, state)
    exact, path, count = generate(*double[:2], state=double[2], backend="reference")
    hidden, our_path, our_count = generate(inputs, network, state=state)
    assert torch.equal(our_count, count) and hidden.shape == exact.shape
    assert len(set(count.tolist())) > 3 and count.max() > 10
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(our_path[row, :steps], path[row, :steps])
        assert our_path[row, steps - 1] == LENGTHS[row] - 1
        error = (hidden[row, :steps] - exact[row, :steps]).abs().max()
        assert error < 1e-4, (row, error)
    assert state.finished.all()


@pytest.mark.parametrize("precision", kernels.DECODER_PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_neither_on_chunks_nor_on_the_batch(isa, precision):
    network = cases.make_decoder(cases.SMALL, precision, isa)
    inputs = cases.make_texts(cases.SMALL, LENGTHS)
    state, chunked = network.state(len(LENGTHS)), network.state(len(LENGTHS))
    hidden, path, count = generate(inputs, network, state=state)
    made = torch.zeros_like(hidden)
    made_path, at = torch.zeros_like(path), torch.zeros_like(count)
    for size in (1, 2, 0, 7, 3, 400):
        part, part_path, part_count = generate(inputs, network, size, chunked)
        assert part.shape[1] == part_count.max()
        for row, steps in enumerate(part_count.tolist()):
            made[row, at[row] : at[row] + steps] = part[row, :steps]
            made_path[row, at[row] : at[row] + steps] = part_path[row, :steps]
        at += part_count
    assert torch.equal(at, count) and torch.equal(made, hidden)
    assert all(torch.equal(a, b) for a, b in zip(state, chunked, strict=True))
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(made_path[row, :steps], path[row, :steps])
        alone, alone_path, _ = generate(cases.rows_of(inputs, row), network)
        assert torch.equal(alone[0], hidden[row, :steps])
        assert torch.equal(alone_path[0], path[row, :steps])


def test_beyond_its_end_an_utterance_is_zero_and_stays_where_it_is():
    network, inputs = cases.make_decoder(cases.SMALL), cases.make_texts(cases.SMALL, LENGTHS)
    state = network.state(len(LENGTHS))
    hidden, path, count = generate(inputs, network, state=state)
    assert hidden.shape[1] == path.shape[1] == count.max()
    for row, steps in enumerate(count.tolist()):
        assert not hidden[row, steps:].any() and (path[row, steps:] == LENGTHS[row] - 1).all()
    before = [part.clone() for part in state]
    hidden, path, count = generate(inputs, network, state=state)
    assert hidden.shape == (len(LENGTHS), 0, 32) and path.shape == (len(LENGTHS), 0)
    assert not count.any()
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


def test_nothing_beyond_a_text_is_read():
    network, inputs = cases.make_decoder(cases.SMALL), cases.make_texts(cases.SMALL, LENGTHS)
    hidden, path, count = generate(inputs, network)
    for row, length in enumerate(LENGTHS):
        inputs.attended[row, length:] = float("nan")
        for part in (inputs.folded_keys, inputs.key_bias, inputs.folded_values):
            part[:, row, length:] = float("nan")
    again = generate(inputs, network)
    assert all(torch.equal(a, b) for a, b in zip(again, (hidden, path, count), strict=True))


def test_both_backends_leave_the_same_state():
    network, inputs = cases.make_decoder(cases.SMALL), cases.make_texts(cases.SMALL, [9, 12, 7])
    ours, theirs = network.state(3), network.state(3)
    generate(inputs, network, 5, ours)
    generate(inputs, network, 5, theirs, backend="reference")
    assert not ours.finished.any() and ours.history.abs().sum() > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_of_equal_scores_the_first_is_taken_and_a_hold_runs_out(backend):
    network = changed(cases.make_decoder(cases.SMALL), done_bias=torch.tensor(-1e6))
    inputs = cases.make_texts(cases.SMALL, [4, 2])
    inputs.folded_keys.zero_()
    inputs.key_bias.copy_(torch.tensor([[0.0, 1, 1, 1], [0, 1, 9, 9]]))
    _, path, count = generate(inputs, network, backend=backend)
    # 0 leads to 1, not to its equal 2; then every symbol is held as long as it may be
    assert path[0].tolist() == [1] * 6 + [2] * 6 + [3]
    assert path[1, :7].tolist() == [1] * 7
    assert count.tolist() == [13, 7]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_done_flag_ends_an_utterance_on_its_last_symbol_only(backend):
    network = changed(cases.make_decoder(cases.SMALL), done_bias=torch.tensor(1e6))
    inputs = cases.make_texts(cases.SMALL, [6])
    inputs.folded_keys.zero_()
    inputs.key_bias.copy_(torch.arange(6.0))  # always as far as the window reaches
    _, path, count = generate(inputs, network, backend=backend)
    assert path.tolist() == [[2, 4, 5]] and count.tolist() == [3]


@pytest.mark.parametrize("isa", ISAS)
def test_int8_sums_do_not_saturate(isa):
    shape = cases.DecoderShape(400, (128,), 64, 1, 5, (), 1, 4, 1)
    signs = torch.ones(64)
    signs[::2] = -1
    network = changed(
        cases.make_decoder(shape, "int8", isa),
        prenet=(torch.ones(128, 400),),
        enter=signs[:, None].expand(64, 128),
        elapsed=torch.zeros(1, 64),
        convs=signs[:, None].expand(1, 128, 64, 5),  # 5 * 64 products of one sign
        conv_bias=torch.zeros(1, 128),
    )
    inputs = cases.make_texts(shape, [1])
    for part in (*inputs.prenet_bias, inputs.attended, inputs.speaker):
        part.zero_()
    state = network.state()
    state.mel.fill_(1.0)
    entered = 400 * 128 * signs
    state.history.copy_(entered[:, None].expand(1, 1, 64, 4))
    hidden, _, _ = generate(inputs, network, 1, state)
    expected = (entered + 5 * 64 * 400 * 128) * 0.5**0.5
    torch.testing.assert_close(hidden[0, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_int16_sums_do_not_overflow(isa):
    # 256 products of one sign and full size in a row: four blocks, and a row of one weight alone
    shape = cases.DecoderShape(256, (32,), 32, 1, 1, (), 1, 4, 1)
    first = torch.full((32, 256), 0.5)
    first[1::2] = torch.eye(256)[:16]
    network = changed(
        cases.make_decoder(shape, "int16", isa),
        prenet=(first,),
        enter=torch.eye(32),
        elapsed=torch.zeros(1, 32),
        convs=torch.zeros(1, 64, 32, 1),
        conv_bias=torch.zeros(1, 64),
    )
    inputs = cases.make_texts(shape, [1])
    for part in (*inputs.prenet_bias, inputs.attended, inputs.speaker):
        part.zero_()
    state = network.state()
    state.mel.fill_(2.0)
    hidden, _, _ = generate(inputs, network, 1, state)
    expected = torch.tensor([256.0, 2.0]).repeat(16) * 0.5**0.5
    torch.testing.assert_close(hidden[0, 0], expected, rtol=1e-3, atol=1e-2)


def test_strided_inputs_give_the_same_bits():
    network, inputs = cases.make_decoder(cases.SMALL), cases.make_texts(cases.SMALL, LENGTHS)
    bias, *others, lengths = inputs
    wide = lambda part: torch.stack([part, part * float("nan")], -1)[..., 0]  # noqa: E731
    strided = kernels.DecoderInputs(
        tuple(wide(part) for part in bias), *(wide(part) for part in others),
        torch.stack([lengths, -lengths], -1)[:, 0],
    )  # fmt: skip
    assert not strided.folded_keys.is_contiguous()
    for a, b in zip(generate(strided, network), generate(inputs, network), strict=True):
        assert torch.equal(a, b)


def test_concurrent_calls_on_one_network_do_not_disturb_each_other():
    network = cases.make_decoder(cases.SMALL, "int8")
    texts = [cases.make_texts(cases.SMALL, [40, 3], seed) for seed in range(4)]
    alone = [generate(text, network) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: generate(text, network), texts * 3))
    for i, made in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(made, alone[i % 4], strict=True))


def test_packed_weights_belong_to_the_network_and_go_with_it():
    gc.collect()
    network = cases.make_decoder(cases.SMALL)
    assert native_decoder.packed(network) is native_decoder.packed(network)
    assert native_decoder.packed(network).isa == ISAS[0]
    held = len(native_decoder._packed)
    del network
    gc.collect()
    assert len(native_decoder._packed) == held - 1


def test_a_generator_speaks_the_same_in_both_backends():
    torch.manual_seed(0)
    model = Acoustic(tiny.ACOUSTIC).eval()
    ids, lengths = torch.randint(1, 30, (3, 20)), torch.tensor([20, 4, 11])
    speaker = torch.randn(3, 16)
    theirs = model.generate(ids, lengths, speaker, backend="reference")
    ours = model.generate(ids, lengths, speaker, model.network(), backend="cpp")
    assert torch.equal(ours.steps, theirs.steps)
    for row, steps in enumerate(ours.steps.tolist()):
        assert torch.equal(ours.path[row, :steps], theirs.path[row, :steps])
        frames = steps * tiny.ACOUSTIC.reduction_factor
        torch.testing.assert_close(
            ours.mel[row, :, :frames], theirs.mel[row, :, :frames], atol=1e-4, rtol=1e-4
        )


def test_calls_that_do_not_fit_are_refused():
    network, inputs = cases.make_decoder(cases.SMALL), cases.make_texts(cases.SMALL, [4, 6])
    with pytest.raises(ValueError, match=r"state.mel is"):
        generate(inputs, network, state=network.state(1))
    with pytest.raises(ValueError, match=r"folded_keys is"):
        generate(inputs._replace(folded_keys=inputs.folded_keys[:1]), network)
    with pytest.raises(ValueError, match=r"text 1 has 0 of 6 symbols"):
        generate(inputs._replace(lengths=torch.tensor([4, 0])), network)
    state = network.state(2)
    state.position[0] = 4
    with pytest.raises(ValueError, match=r"position 4 lies outside"):
        generate(inputs, network, state=state)
    with pytest.raises(ValueError, match="precision 'int4'"):
        cases.make_decoder(cases.SMALL, "int4")
    with pytest.raises(ValueError, match="attention_layers"):
        kernels.Decoder(network.weights, (0, 3), 3, 6)


def test_reasons_name_what_the_backend_cannot_run():
    inputs, network = cases.make_texts(cases.SMALL, [4]), cases.make_decoder(cases.SMALL)
    assert kernels.decoder_generate.select("auto", inputs, network, 1, network.state()) == "cpp"
    odd = cases.DecoderShape(48, (24,), 32, 3, 3)
    with pytest.raises(BackendUnavailable, match="multiples of 16"):
        generate(cases.make_texts(odd, [4]), cases.make_decoder(odd))
    double = cases.in_double(inputs, network, network.state())
    with pytest.raises(BackendUnavailable, match=r"float64, cpp needs float32"):
        generate(*double[:2], state=double[2])
    with pytest.raises(BackendUnavailable, match="'sse9' is not usable"):
        generate(inputs, cases.make_decoder(cases.SMALL, isa="sse9"))
    inputs.attended.requires_grad_()
    with pytest.raises(BackendUnavailable, match="gradient"):
        generate(inputs, network)
