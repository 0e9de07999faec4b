"""The source of the CUDA kernels, run on this CPU by `emulation/`, against the definitions.

What this cannot show is in docs/kernels-gpu.md.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import cases
import decoder_cases
import numpy as np
import pytest
import torch
from compare import sampled, teacher_forced
from device_spy import NoWaiting
from engine.kernels import WaveNetState, cuda_decoder, cuda_wavenet
from engine.kernels.cuda_wavenet import Schedule

from engine import kernels

sys.path.insert(0, str(Path(__file__).parent / "emulation"))
pytestmark = pytest.mark.usefixtures("poisoned_memory")
SMALL = cases.WaveNetShape(4, 4, 4, 32, 64, steps_per_frame=7)
CODES = cases.WaveNetShape(1, 4, 4, 32, 64, codes=64, steps_per_frame=7)
PLAIN, RING = Schedule(0, 1), Schedule(1, 4)
# Precision and schedule: one block, float32 ring, rings of 4 and 2 blocks, folded ring.
SCHEDULES = [
    ("float32", PLAIN), ("float32", Schedule(0, 2)), ("bfloat16", PLAIN), ("bfloat16", RING),
    ("bfloat16", Schedule(2, 2)), ("bfloat16", Schedule(2, 2, fold=True)),
]  # fmt: skip
GATES = {"float32": (2e-5, 2e-6), "bfloat16": (3e-2, 4e-3)}
# Every prenet width has a tile of 16 rows for each of two blocks.
DECODER = decoder_cases.DecoderShape(48, (32, 48), 32, 3, 3, (0, 2), 3, 6, 4)
LENGTHS = [1, 2, 9, 5, 12, 3, 7]
ROOM = 232_448  # bytes of shared memory of a Hopper block


@pytest.fixture(scope="module")
def emulation():
    if not (shutil.which("c++") and sys.platform == "linux"):
        pytest.skip("the emulation needs Linux and a C++ compiler")
    import build

    return build.load()


def wavenet(emulation, schedule, inputs, network, state=None, seed=0):
    """wavenet_generate in the emulation."""
    conditioning, randomness = inputs
    state = state or network.state(len(conditioning))

    def launch(weights, table):
        slots = table.on_host()
        emulation.wavenet(*weights.arguments, slots.ctypes.data, len(slots), seed)

    return cuda_wavenet.generate_with(launch, conditioning, randomness, network, state, schedule)


def wavenet_slots(emulation, schedule, inputs, network, state, size, **words):
    """The launch of slots that differ in the given words."""
    conditioning, randomness = inputs
    out, frames = torch.full(size, float("nan")), cuda_wavenet.time_major(conditioning)
    slots = cuda_wavenet.slot_table(frames, randomness, out, state).on_host()
    for name, values in words.items():
        slots[:, cuda_wavenet.SLOT.index(name)] = values
    weights = cuda_wavenet.packed(network, schedule, out.device)
    emulation.wavenet(*weights.arguments, slots.ctypes.data, len(slots), 0)
    return out


def decoder(emulation, inputs, network, steps, state, blocks, seed=0, room=ROOM):
    def launch(weights, call):
        slots = call.slots.on_host()
        emulation.decoder(
            *weights.arguments, call.scratch.data_ptr(), slots.ctypes.data, len(slots), call.steps,
            room, seed,
        )  # fmt: skip

    return cuda_decoder.generate_with(launch, inputs, network, steps, state, blocks)


@pytest.mark.parametrize(("precision", "schedule"), SCHEDULES, ids=str)
def test_wavenet_is_as_accurate_as_its_precision_allows(
    emulation, precision, schedule, pytestconfig
):
    network = cases.make_network(SMALL, precision)
    steps = pytestconfig.getoption("--accuracy-steps") or 64
    inputs = cases.make_inputs(SMALL, batch=3, steps=steps)
    made = wavenet(emulation, schedule, inputs, network)
    exact = sampled(teacher_forced(network, inputs[0], made), inputs[1], 0)
    error = np.abs(exact - made.numpy())
    most, mean = GATES[precision]
    assert error.max() < most and error.mean() < mean, (error.max(), error.mean())


def test_the_default_network_runs_in_the_schedule_chosen_for_it(emulation):
    network = cases.make_network(cases.DEFAULT, "bfloat16")
    schedule = cuda_wavenet.schedule_of(network, (9, 0))
    assert schedule == Schedule(4, 4) and cuda_wavenet.schedule_of(network, (8, 0)) == PLAIN
    inputs = cases.make_inputs(cases.DEFAULT, batch=1, steps=8)
    state = network.state()
    torch.manual_seed(0)
    state.history.normal_()
    state.last.normal_()
    expected_state = WaveNetState(*(part.clone() for part in state))
    made = wavenet(emulation, schedule, inputs, network, state)
    expected = kernels.wavenet_generate(*inputs, network, expected_state, backend="reference")
    assert (made - expected).abs().max() < 3e-2
    assert torch.equal(state.step, expected_state.step)
    torch.testing.assert_close(state.history, expected_state.history, atol=3e-2, rtol=0)


def test_what_cannot_be_a_ring_says_why():
    reason = lambda shape, capability=(9, 0), precision="bfloat16": cuda_wavenet.why_no_ring(  # noqa: E731
        cases.make_network(shape, precision), capability
    )
    assert reason(cases.DEFAULT) is None
    assert "224 KB a layer" in reason(cases.WaveNetShape(residual=128, skip=256))
    assert "need 10 blocks" in reason(cases.WaveNetShape(1, 30))
    assert "rings need 9.0" in reason(cases.DEFAULT, (10, 0))
    assert "float32" in reason(cases.DEFAULT, precision="float32")
    large = cases.make_network(cases.WaveNetShape(residual=128, skip=256), "bfloat16")
    assert cuda_wavenet.schedule_of(large, (9, 0)) == PLAIN
    assert cuda_decoder.blocks_of(decoder_cases.make_decoder(decoder_cases.DEFAULT), (10, 0)) == 1


@pytest.mark.parametrize("schedule", [RING, Schedule(2, 2, fold=True)], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads_and_arrivals(emulation, schedule):
    network = cases.make_network(SMALL, "bfloat16")
    inputs = cases.make_inputs(SMALL, batch=2, steps=6)
    first = wavenet(emulation, schedule, inputs, network, seed=0)
    for seed in range(1, 20):
        assert torch.equal(wavenet(emulation, schedule, inputs, network, seed=seed), first)


@pytest.mark.parametrize("schedule", [PLAIN, RING], ids=str)
def test_chunks_join_to_the_whole(emulation, schedule):
    network = cases.make_network(SMALL, "bfloat16")
    conditioning, noise = cases.make_inputs(SMALL, batch=2, steps=40)
    state, chunked = network.state(2), network.state(2)
    whole = wavenet(emulation, schedule, (conditioning, noise), network, state)
    at, parts = 0, []
    for size in (1, 6, 7, 0, 13, 2, 11):  # frame edges inside and between, every ring wraps
        part = conditioning[..., at // 7 :], noise[..., at : at + size]
        parts.append(wavenet(emulation, schedule, part, network, chunked, seed=at))
        at += size
    assert torch.equal(torch.cat(parts, -1), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, chunked, strict=True))


def test_bits_do_not_depend_on_slot_or_neighbours(emulation):
    network = cases.make_network(SMALL, "bfloat16")
    conditioning, noise = cases.make_inputs(SMALL, batch=10, steps=9)
    conditioning[4] = float("nan")
    whole = wavenet(emulation, RING, (conditioning, noise), network)
    assert whole[4].isnan().any()
    for row in (0, 5, 9):
        one = conditioning[row : row + 1], noise[row : row + 1]
        assert torch.equal(wavenet(emulation, RING, one, network)[0], whole[row])


def test_slots_end_at_their_own_steps_and_empty_ones_stay_untouched(emulation):
    network = cases.make_network(SMALL, "bfloat16")
    conditioning, noise = cases.make_inputs(SMALL, batch=4, steps=12)
    state = network.state(4)
    made = wavenet_slots(
        emulation, RING, (conditioning, noise), network, state, noise.shape,
        stream_and_steps=[steps << 32 for steps in (12, 5, 0, 1)],
    )  # fmt: skip
    assert state.step.tolist() == [12, 5, 0, 1]
    assert not state.history[2].any() and made[2].isnan().all() and made[1, :, 5:].isnan().all()
    rest = wavenet(
        emulation, RING, (conditioning[1:2], noise[1:2, :, 5:]), network,
        WaveNetState(*(part[1:2] for part in state)),
    )  # fmt: skip
    whole = wavenet(emulation, RING, (conditioning[1:2], noise[1:2]), network)
    assert torch.equal(torch.cat([made[1:2, :, :5], rest], -1), whole)


@pytest.mark.parametrize("schedule", [PLAIN, RING], ids=str)
@pytest.mark.parametrize("shape", [SMALL, CODES], ids=["gaussian", "softmax"])
def test_steps_beyond_the_conditioning_give_nan(emulation, shape, schedule):
    if shape.codes and schedule is RING:
        pytest.skip("the softmax head is emulated without a ring")
    network = cases.make_network(shape, "bfloat16" if schedule is RING else "float32")
    conditioning, noise = cases.make_inputs(shape, batch=1, steps=20)
    state = network.state()
    state.step[0] = 3  # of a frame of 7 steps: 4 + 7 are left in two frames
    whole = wavenet(emulation, schedule, (conditioning, noise[..., :11]), network, state)
    late = network.state()
    late.step[0] = 3
    made = wavenet_slots(
        emulation, schedule, (conditioning, noise[..., :14].contiguous()), network, late,
        (1, noise.shape[1], 14), frames=2,
    )  # fmt: skip
    assert torch.equal(made[..., :11], whole) and made[..., 11:].isnan().all()
    assert late.last.isnan().all() and late.step.tolist() == [17]


def test_slots_filled_on_the_device_are_those_of_the_host(emulation):
    network = cases.make_network(SMALL)
    inputs = cases.make_inputs(SMALL, batch=37, steps=4)
    table = cuda_wavenet.slot_table(
        cuda_wavenet.time_major(inputs[0]), inputs[1], torch.empty(37, 4, 4), network.state(37)
    )
    filled = np.zeros((37, len(cuda_wavenet.SLOT)), np.uint64)
    emulation.fill_slots(table.first, table.step, 37, filled.ctypes.data)
    np.testing.assert_array_equal(filled, table.on_host())
    assert filled[36, 0] == filled[0, 0] + 36 * inputs[0][0].numel() * 4


def test_a_call_waits_for_nothing_and_copies_nothing_but_its_inputs():
    """So that a CUDA graph can hold it; the launchers read addresses and numbers only."""
    network, decoder_network = cases.make_network(SMALL), decoder_cases.make_decoder(DECODER)
    conditioning, noise = cases.make_inputs(SMALL, batch=3, steps=9)
    state, decoder_state = network.state(3), decoder_network.state(len(LENGTHS))
    texts = decoder_cases.make_texts(DECODER, LENGTHS)
    cuda_wavenet.packed(network, RING, noise.device)
    cuda_decoder.packed(decoder_network, 2, noise.device)
    launched = []
    launch = lambda _weights, what: launched.append(what)  # noqa: E731
    with NoWaiting() as spy:
        cuda_wavenet.generate_with(launch, conditioning, noise, network, state, RING)
        hidden, path, _ = cuda_decoder.generate_with(
            launch, texts, decoder_network, 400, decoder_state, 2
        )
    assert len(launched) == 2 and spy.operations > 5
    assert hidden.shape[1] == path.shape[1] == 400


def test_noise_drawn_in_the_kernel_is_that_of_gaussian_noise(emulation):
    network = cases.make_network(SMALL, "float32")
    conditioning, _ = cases.make_inputs(SMALL, batch=2, steps=12)
    seeds = [(2**64 - 1, 7), (3, 2**32 - 1)]
    noise = torch.stack([kernels.gaussian_noise(*seed, 0, 12, 4) for seed in seeds])
    expected = wavenet(emulation, PLAIN, (conditioning, noise), network)
    drawn = wavenet_slots(
        emulation, PLAIN, (conditioning, None), network, network.state(2), noise.shape,
        seed=[seed for seed, _ in seeds],
        stream_and_steps=[12 << 32 | stream for _, stream in seeds],
    )  # fmt: skip
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", [PLAIN, Schedule(0, 2)], ids=str)
def test_softmax_head_draws_the_codes_that_its_logits_and_uniforms_give(emulation, schedule):
    network = cases.make_network(CODES, "float32")
    conditioning, uniforms = cases.make_inputs(CODES, batch=3, steps=40)
    uniforms[0, 0, :2] = torch.tensor([0.0, 1 - 2**-24])
    codes = wavenet(emulation, schedule, (conditioning, uniforms), network)
    expected = sampled(teacher_forced(network, conditioning, codes), uniforms, CODES.codes)
    np.testing.assert_array_equal(codes.numpy(), expected)
    assert torch.unique(codes).numel() > 20


@pytest.mark.parametrize("blocks", [1, 2])
def test_decoder_takes_the_path_of_the_reference(emulation, blocks):
    network = decoder_cases.make_decoder(DECODER)
    inputs = decoder_cases.make_texts(DECODER, LENGTHS)
    double = decoder_cases.in_double(inputs, network, network.state(len(LENGTHS)))
    exact, path, count = kernels.decoder_generate(*double[:2], 60, double[2], backend="reference")
    state = network.state(len(LENGTHS))
    hidden, our_path, our_count = decoder(emulation, inputs, network, 60, state, blocks)
    assert torch.equal(our_count, count) and state.finished.all()
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(our_path[row, :steps], path[row, :steps])
        assert (our_path[row, steps:] == path[row, steps - 1]).all()
        assert (hidden[row, :steps] - exact[row, :steps]).abs().max() < 1e-5
        assert not hidden[row, steps:].any()


@pytest.mark.parametrize("room", [ROOM, 24_000], ids=["all_on_chip", "some_from_l2"])
def test_a_decoder_step_in_bfloat16(emulation, room):
    network = decoder_cases.make_decoder(DECODER, "bfloat16")
    inputs = decoder_cases.make_texts(DECODER, LENGTHS)
    state = decoder_cases.random_state(DECODER, network, LENGTHS)
    double = decoder_cases.in_double(inputs, network, state)
    exact, _, _ = kernels.decoder_generate(*double[:2], 1, double[2], backend="reference")
    made, _, _ = decoder(emulation, inputs, network, 1, state, 2, room=room)
    error = (made - exact).abs()
    assert error.max() < 3e-2 and error.mean() < 4e-3


def test_decoder_bits_depend_neither_on_chunks_nor_on_order_nor_on_the_batch(emulation):
    network = decoder_cases.make_decoder(DECODER, "bfloat16")
    inputs = decoder_cases.make_texts(DECODER, LENGTHS)
    run = partial(decoder, emulation, blocks=2)
    whole = run(inputs, network, 20, network.state(len(LENGTHS)))
    state, parts, at = network.state(len(LENGTHS)), [], 0
    for size in (1, 4, 0, 15):
        parts.append(run(inputs, network, size, state, seed=at + 1))
        at += size
    counts = sum(part[2] for part in parts)
    assert torch.equal(counts, whole[2])
    for row, steps in enumerate(counts.tolist()):
        joined = torch.cat([part[0][row, : part[2][row]] for part in parts])
        assert torch.equal(joined, whole[0][row, :steps])
    one = run(decoder_cases.rows_of(inputs, 4), network, 20, network.state())
    assert torch.equal(one[0][0], whole[0][4, : one[2][0]])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nobody sends", "deadlock: .*256 of block 1 at mbarrier phase 0"),
        ("announced twice", "announced twice"),
        ("not announced", "more bytes than the barrier was told"),
        ("misaligned", "misaligned shared address"),
        ("copy not awaited", "before its asynchronous copies were waited for"),
        ("barrier passed by", "deadlock: 255 of block 0 at sync_threads"),
        ("written past the end", "write past shared memory"),
    ],
)
def test_the_emulator_sees_what_a_kernel_may_do_wrong(emulation, what, message):
    with pytest.raises(emulation.Fault, match=message):
        emulation.faulty(what)
    emulation.faulty("nothing")


def test_launches_that_cannot_be_are_refused(emulation):
    network = cases.make_network(SMALL, "bfloat16")
    inputs = cases.make_inputs(SMALL, batch=1, steps=2)
    with pytest.raises(ValueError, match="too few blocks"):
        wavenet(emulation, Schedule(1, 2), inputs, network)
    small = decoder_cases.make_decoder(DECODER)
    texts = decoder_cases.make_texts(DECODER, [3])
    with pytest.raises(ValueError, match="do not fit into shared memory"):
        decoder(emulation, texts, small, 1, small.state(), 1, room=4096)
