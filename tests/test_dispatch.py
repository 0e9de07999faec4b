"""Which backend runs: a dead kernel must fail here, not fall back in silence."""

import cases
import pytest
import torch
from engine.kernels import BackendUnavailable, native
from engine.kernels.dispatch import Impl, Op

from engine import kernels

SHAPE = cases.WaveNetShape(1, 2, 2, 16, 16)


def wavenet_call():
    network = cases.make_network(SHAPE)
    return (*cases.make_inputs(SHAPE, batch=1, steps=3), network, network.state())


CALLS = {
    "wavenet_generate": wavenet_call,
    "lpc_synthesis": lambda: cases.make_lpc(1, 2, 3, 4, 5),
    "pqmf_synthesis": lambda: (torch.randn(1, 4, 9), kernels.pqmf_filters(4, 62, 0.142, 9.0)[1]),
    "gaussian_noise": lambda: (1, 2, 3, 4, 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_auto_takes_the_compiled_backend(cpp, name):
    assert getattr(kernels, name).select("auto", *CALLS[name]()) == cpp


@pytest.mark.parametrize("name", CALLS)
def test_a_named_backend_runs_whatever_is_fastest(name):
    assert getattr(kernels, name).select("reference", *CALLS[name]()) == "reference"


def test_auto_falls_back_for_what_the_compiled_backend_cannot_run():
    excitation, *rest = CALLS["lpc_synthesis"]()
    double = (excitation.double(), *(part.double() for part in rest))
    assert kernels.lpc_synthesis.select("auto", *double) == "reference"
    assert kernels.lpc_synthesis(*double).dtype == torch.float64
    band_samples, filters = CALLS["pqmf_synthesis"]()
    band_samples.requires_grad_()
    kernels.pqmf_synthesis(band_samples, filters).sum().backward()
    assert band_samples.grad is not None


@pytest.mark.parametrize(
    ("backend", "reason"), [("cuda", "no 'cuda' backend"), ("gpu", "no 'gpu'")]
)
def test_a_backend_that_is_not_there_raises_with_what_is(backend, reason):
    with pytest.raises(BackendUnavailable, match=reason):
        kernels.gaussian_noise(1, 2, 3, 4, 5, backend=backend)


def test_a_named_backend_that_cannot_run_raises_its_reason():
    never = Impl(lambda *_: pytest.fail("ran"), lambda *_: "the moon is full")
    op = Op("toy", {"cpp": never, "reference": Impl(lambda x: x, lambda _: None)})
    assert op(3) == 3
    with pytest.raises(BackendUnavailable, match="toy: cpp cannot run: the moon is full"):
        op(3, backend="cpp")


def test_backends_lists_every_name_and_gives_reasons():
    found = kernels.backends()
    assert tuple(found) == kernels.ORDER
    assert found["reference"] is None
    assert all(reason is None or reason for reason in found.values())


def test_the_fastest_usable_instruction_set_is_chosen_and_any_can_be_forced(cpp):
    isas = kernels.isas()
    usable = [name for name, reason in isas.items() if reason is None]
    assert list(isas)[-1] == "scalar" and "scalar" in usable
    assert native.packed(cases.make_network(SHAPE)).isa == usable[0]
    for name in usable:
        assert native.packed(cases.make_network(SHAPE, isa=name)).isa == name


def test_an_absent_module_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.setattr(native, "_cpu", None)
    assert "not built" in kernels.backends()["cpp"]
    assert kernels.isas() == {}
    for name, make in CALLS.items():
        call = make()
        assert getattr(kernels, name).select("auto", *call) == "reference"
        with pytest.raises(BackendUnavailable, match="not built"):
            getattr(kernels, name)(*call, backend="cpp")
