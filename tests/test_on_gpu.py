"""What only a device can show: its kernels, captured graphs, and a host that waits for nothing.

Skipped without a GPU; with --require-backends=triton,cuda a backend that cannot run is a failure.
"""

from contextlib import contextmanager

import cases
import decoder_cases
import numpy as np
import pytest
import torch
from compare import sampled, teacher_forced
from engine.kernels import cuda_wavenet
from tiny import make_weights

from engine import Engine, kernels
from engine.device.replay import Replay

GATES = {"float32": (2e-5, 2e-6), "bfloat16": (3e-2, 4e-3)}  # as for compiled CPU kernels
LENGTHS = [1, 2, 9, 5, 12, 3, 7]
TEXTS = ["Hello there, said Mr. Fox. It was 7 o'clock!", "Hi.", "One two three. Four five."]


@pytest.fixture(params=["cuda", "triton"])
def backend(request, pytestconfig):
    """A backend that runs on a device here."""
    reason = kernels.backends()[request.param]
    if reason is None and not torch.cuda.is_available():
        reason = "no CUDA device here"
    if reason:
        required = request.param in pytestconfig.getoption("--require-backends").split(",")
        (pytest.fail if required else pytest.skip)(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def device(pytestconfig):
    if not torch.cuda.is_available():
        required = {"cuda", "triton"} & set(pytestconfig.getoption("--require-backends").split(","))
        (pytest.fail if required else pytest.skip)("no CUDA device here")
    return torch.device("cuda")


def moved(values, device="cuda"):
    """A named tuple of tensors, and of tuples of them, on a device."""
    parts = (v.to(device) if isinstance(v, torch.Tensor) else tuple(p.to(device) for p in v)
             for v in values)  # fmt: skip
    return type(values)(*parts)


def wavenet(shape, precision):
    """A network on the device, and the same on the CPU."""
    host = cases.make_network(shape, precision)
    return kernels.WaveNet(
        moved(host.weights), host.dilations, host.band_steps_per_frame, precision
    ), host


def generate(conditioning, noise, network, state, backend):
    op = kernels.wavenet_generate
    if reason := op.impls[backend].why_not(conditioning, noise, network, state):
        pytest.skip(f"{backend} does not take this network: {reason}")
    return op(conditioning, noise, network, state, backend=backend)


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("name", cases.CHECK)
def test_wavenet_is_as_accurate_as_its_precision_allows(backend, name, precision):
    shape = cases.CHECK[name]
    network, host = wavenet(shape, precision)
    conditioning, noise = cases.make_inputs(shape, batch=5, steps=200)
    made = generate(conditioning.cuda(), noise.cuda(), network, network.state(5), backend).cpu()
    expected = sampled(teacher_forced(host, conditioning, made), noise, shape.codes)
    error = np.abs(expected - made.numpy())
    if shape.codes:
        share = (error > 0).mean()
        assert share <= (0.001 if precision == "float32" else 0.2), share
    else:
        most, mean = GATES[precision]
        assert error.max() < most and error.mean() < mean, (error.max(), error.mean())


@pytest.mark.parametrize("precision", GATES)
def test_wavenet_bits_depend_neither_on_chunks_nor_neighbours_nor_the_run(backend, precision):
    shape = cases.DEFAULT
    network, _ = wavenet(shape, precision)
    conditioning, noise = (part.cuda() for part in cases.make_inputs(shape, 19, 400))
    whole = generate(conditioning, noise, network, network.state(19), backend)
    for _ in range(100):
        again = generate(conditioning, noise, network, network.state(19), backend)
        assert torch.equal(again, whole)
    sizes = [1, 6, 64, 0, 121, 7, 201]
    chunked = cases.in_chunks(sizes, conditioning, noise, network, network.state(19), backend)
    assert torch.equal(chunked, whole)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0)).cuda()[:11]
    some = generate(conditioning[order], noise[order], network, network.state(11), backend)
    assert torch.equal(some, whole[order])


@pytest.mark.parametrize("name", decoder_cases.CHECK)
def test_decoder_takes_the_path_of_the_definition(backend, name):
    shape = decoder_cases.CHECK[name]
    host, inputs = decoder_cases.make_decoder(shape), decoder_cases.make_texts(shape, LENGTHS)
    network = kernels.Decoder(
        moved(host.weights), host.attention_layers, host.window, host.max_hold
    )
    state, op = network.state(len(LENGTHS)), kernels.decoder_generate
    if reason := op.impls[backend].why_not(moved(inputs), network, 400, state):
        pytest.skip(f"{backend} does not take this network: {reason}")
    double = decoder_cases.in_double(inputs, host, host.state(len(LENGTHS)))
    exact, path, count = op(*double[:2], 400, double[2], backend="reference")
    hidden, our_path, our_count = op(moved(inputs), network, 400, state, backend=backend)
    assert torch.equal(our_count.cpu(), count)
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(our_path[row, :steps].cpu(), path[row, :steps])
        assert (hidden[row, :steps].cpu() - exact[row, :steps]).abs().max() < 1e-3
    again = op(moved(inputs), network, 400, network.state(len(LENGTHS)), backend=backend)
    for row, steps in enumerate(count.tolist()):
        assert torch.equal(again[0][row, :steps], hidden[row, :steps])


@contextmanager
def waiting_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", GATES)
def test_a_graph_holds_the_vocoder_chunk_after_chunk(backend, precision):
    network, _ = wavenet(cases.DEFAULT, precision)
    conditioning, noise = (part.cuda() for part in cases.make_inputs(cases.DEFAULT, 11, 256))
    whole = generate(conditioning, noise, network, network.state(11), backend)
    state = network.state(11)
    chunk = lambda i: (  # noqa: E731
        conditioning[..., i : i + 1].contiguous(), noise[..., 64 * i : 64 * i + 64].contiguous()
    )
    replay = Replay(lambda c, n: (generate(c, n, network, state, backend),), chunk(0), state)
    with waiting_is_an_error():
        made = [replay(*chunk(i))[0].clone() for i in range(4)]
    assert torch.equal(torch.cat(made, -1), whole)


def test_a_graph_holds_the_decoder(backend):
    shape = decoder_cases.DEFAULT
    host, inputs = decoder_cases.make_decoder(shape), decoder_cases.make_texts(shape, LENGTHS)
    network = kernels.Decoder(
        moved(host.weights), host.attention_layers, host.window, host.max_hold
    )
    inputs, state, op = moved(inputs), network.state(len(LENGTHS)), kernels.decoder_generate
    if reason := op.impls[backend].why_not(inputs, network, 64, state):
        pytest.skip(f"{backend} does not take this network: {reason}")
    whole = op(inputs, network, 64, network.state(len(LENGTHS)), backend=backend)
    replay = Replay(lambda: op(inputs, network, 64, state, backend=backend), (), state)
    with waiting_is_an_error():
        made = replay()
    for ours, expected in zip(made, whole, strict=True):
        assert torch.equal(ours, expected)


def test_steps_beyond_the_conditioning_give_nan(backend):
    network, _ = wavenet(cases.DEFAULT, "bfloat16")
    conditioning, noise = (part.cuda() for part in cases.make_inputs(cases.DEFAULT, 3, 100))
    state = network.state(3)
    state.step[1] = 30
    made = generate(conditioning[..., :1], noise, network, state, backend)
    for row, known in enumerate((64, 34, 64)):
        assert made[row, :, :known].isfinite().all() and made[row, :, known:].isnan().all()


def test_slots_of_a_launch_differ_in_their_steps_and_are_filled_on_the_device(device):
    if reason := kernels.backends()["cuda"]:
        pytest.skip(reason)
    network, _ = wavenet(cases.DEFAULT, "bfloat16")
    conditioning, noise = (part.cuda() for part in cases.make_inputs(cases.DEFAULT, 12, 100))
    schedule = cuda_wavenet.schedule_of(network, torch.cuda.get_device_capability())
    weights = cuda_wavenet.packed(network, schedule, conditioning.device)
    frames = cuda_wavenet.time_major(conditioning)
    whole = generate(conditioning, noise, network, network.state(12), "cuda")
    out, state = torch.full_like(whole, float("nan")), network.state(12)
    table = cuda_wavenet.slot_table(frames, noise, out, state)
    slots = table.on_device(out.device)
    np.testing.assert_array_equal(slots.cpu().numpy().view(np.uint64), table.on_host())
    steps = torch.tensor([100, 0, 3, 64, 65, 1, 99, 2, 100, 17, 0, 50]).cuda()
    slots[:, cuda_wavenet.SLOT.index("stream_and_steps")] = steps << 32
    cuda_wavenet.launch_slots(weights, slots)
    assert torch.equal(state.step, steps)
    for row, count in enumerate(steps.tolist()):
        assert torch.equal(out[row, :, :count], whole[row, :, :count])
        assert out[row, :, count:].isnan().all()


def test_stream_noise_is_the_same_everywhere(device):
    named = [torch.tensor(column) for column in ([7, -1, 3], [1, 2**32 - 1, 0], [0, 2**33, 5])]
    expected = kernels.stream_noise(*named, 300, 5, backend="reference")
    made = kernels.stream_noise(*(part.to(device) for part in named), 300, 5)
    torch.testing.assert_close(made.cpu(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("op", ["lpc_synthesis", "pqmf_synthesis"])
def test_filters_are_the_same_everywhere(device, op):
    if op == "lpc_synthesis":
        *inputs, state = cases.make_lpc(3, 4, 8, frames=11, repeat=64)
    else:
        inputs, state = (torch.randn(3, 4, 700), kernels.pqmf_filters(4, 62, 0.142, 9.0)[1]), None
    states = () if state is None else (state.clone(), state.to(device))
    run = getattr(kernels, op)
    expected = run(*inputs, *states[:1], backend="reference")
    made = run(*(part.to(device) for part in inputs), *states[1:])
    scale = expected.abs().max()
    torch.testing.assert_close(made.cpu() / scale, expected / scale, atol=1e-4, rtol=0)
    if states:
        torch.testing.assert_close(states[1].cpu() / scale, states[0] / scale, atol=1e-4, rtol=0)


def test_a_replay_is_its_call_and_leaves_what_it_keeps(device):
    kept = torch.arange(4.0, device=device)

    def call(x):
        kept.add_(1)
        return (x * 2 + kept,)

    replay = Replay(call, (torch.zeros(4, device=device),), (kept,))
    assert replay.graph is not None and kept.tolist() == [0, 1, 2, 3]  # warm-up left no trace
    for i in range(3):
        x = torch.full((4,), float(i), device=device)
        (made,) = replay(x)
        assert made.tolist() == [2 * i + j + i + 1 for j in range(4)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    if not torch.cuda.is_available():
        return None
    folder = make_weights(tmp_path_factory.mktemp("weights"))
    return [Engine(folder, device=where, precision="float32") for where in ("cuda", "cpu")]


def test_the_path_speaks_as_the_ordinary_one_on_a_cpu(device, engines):
    on_gpu, on_cpu = engines
    voices = [np.random.default_rng(i).normal(size=16) for i in range(3)]
    made = on_gpu.synthesize(TEXTS, voices, seed=5)
    expected = on_cpu.synthesize(TEXTS, voices, seed=5)
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.words == theirs.words
        scale = np.abs(theirs.samples).max()
        np.testing.assert_allclose(ours.samples, theirs.samples, atol=1e-2 * scale)
    again = on_gpu.synthesize(TEXTS, voices, seed=5)
    for ours, same in zip(made, again, strict=True):
        np.testing.assert_array_equal(ours.samples, same.samples)
    streamed = np.concatenate(list(on_gpu.stream(TEXTS[0], voices[0], seed=5)))
    np.testing.assert_allclose(streamed, made[0].samples, atol=1e-2 * np.abs(streamed).max())


def test_the_host_waits_for_nothing_and_memory_stays(device, engines):
    path = engines[0].path
    voices = [(engines[0], torch.randn(16))] * 3
    speak = lambda: path.synthesize(TEXTS, voices, [1.0] * 3, [0] * 3)  # noqa: E731
    speak()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    with waiting_is_an_error():
        for _ in range(5):
            speak()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before[0] + 2**20
    assert torch.cuda.memory_reserved() == before[1]


def test_people_are_cloned_alike_everywhere(device, engines):
    from sounds import talk

    people = [talk(3.0), talk(2.0, seed=1), [talk(1.7, seed=2), talk(2.5, seed=3)]]
    for ours, theirs in zip(*(e.clone_many(people, 24_000) for e in engines), strict=True):
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-3)
    together = engines[0].clone_many(people, 24_000)
    for voice, person in zip(together, people, strict=True):
        (alone,) = engines[0].clone_many([person], 24_000)
        np.testing.assert_allclose(voice.embedding, alone.embedding, atol=1e-5)
        np.testing.assert_allclose(voice.weights, alone.weights, atol=1e-6)
