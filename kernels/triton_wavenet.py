"""The autoregressive WaveNet in Triton: a program generates all steps of its streams in one launch.

Activations stay in tensors; of the streams' state only the history ring is read and written in
global memory, and the weights come from L2 once a step. `network.streams_per_program` says how many
streams share a pass over the weights: see `triton_products`.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from engine.kernels import triton_backend
from engine.kernels.checks import aligned, check_wavenet_generate
from engine.kernels.reference import WaveNet, WaveNetState
from engine.kernels.triton_products import matrix, pack, quantise, tanh, times, times_both
from torch import Tensor

RESIDUAL, SKIP = (32, 64, 128), (64, 128, 256)  # channels there are variants for


class Packed(NamedTuple):
    """Weights of one network as the kernel reads them, flat."""

    inputs: Tensor  # float32 [2][R x BP], BP = padded bands: on the last output but one, the last
    layers: Tensor  # [layers][filter past, filter now, gate past, gate now, residual, skip]
    scales: Tensor  # float32 [layers][R filter, R gate, R residual, S skip]: of int8 rows
    hidden: Tensor  # [S / HIDDEN][HIDDEN x S]
    outputs: Tensor  # [S / HIDDEN][means, log-scales: BP x HIDDEN each; or logits: O x HIDDEN]
    biases: Tensor  # float32 [S skip, S hidden, outputs]
    dilations: Tensor  # int32 [layers]


def _variant(network: WaveNet) -> dict[str, int]:
    """The kernel's compile-time parameters."""
    residual, bands, _ = network.weights.inputs.shape
    skip, outputs = len(network.weights.skip_bias), len(network.weights.outputs_bias)
    group = 1 if network.precision == "float32" else network.streams_per_program
    warps = 4 if residual == 32 else 8
    return dict(
        G=group, R=residual, S=skip, BANDS=bands, HIDDEN=8 * warps, WARPS=warps,
        BP=16 if group > 1 else triton.next_power_of_2(bands),
        CODES=0 if outputs == 2 * bands else outputs, SCALED=network.precision == "int8",
        INTERPRET=triton_backend.interpreting(),
    )  # fmt: skip


# By network: packed weights live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[WaveNet, Packed] = WeakKeyDictionary()


def packed(network: WaveNet) -> Packed:
    """The network's weights for the kernel: packed on first use, then kept with it."""
    found = _packed.get(network)
    if found is None:
        found = _packed[network] = _pack(network)
    return found


def _pack(network: WaveNet) -> Packed:
    v, w = _variant(network), network.weights
    lay = lambda part: pack(part, v["G"], v["WARPS"])  # noqa: E731
    layers, scales = [], []
    parts = (w.gates.float(), w.residuals.float(), w.skips.float())
    for gates, residual, skip in zip(*parts, strict=True):
        both, scale = quantise(gates.flatten(1), network.precision)
        both = both.unflatten(1, gates.shape[1:])
        past, now = both[..., 0].chunk(2), both[..., 1].chunk(2)
        matrices = [past[0], now[0], past[1], now[1]]
        scales.append(scale)
        for part in (residual, skip):
            rows, scale = quantise(part, network.precision)
            matrices.append(rows)
            scales.append(scale)
        layers += [lay(part) for part in matrices]
    inputs = torch.nn.functional.pad(w.inputs.float(), (0, 0, 0, v["BP"] - v["BANDS"]))
    heads, bias = [w.outputs.float()], [w.outputs_bias.float()]
    if not v["CODES"]:
        more = v["BP"] - v["BANDS"]
        heads = [torch.nn.functional.pad(p, (0, 0, 0, more)) for p in heads[0].chunk(2)]
        bias = [torch.nn.functional.pad(p, (0, more)) for p in bias[0].chunk(2)]
    head = "float32" if network.precision == "float32" else "bfloat16"
    tiles = range(0, v["S"], v["HIDDEN"])
    cut = lambda part: quantise(part, head)[0]  # noqa: E731
    return Packed(
        torch.cat([lay(inputs[..., 0]), lay(inputs[..., 1])]),
        torch.cat(layers),
        torch.cat(scales),
        torch.cat([lay(cut(w.hidden.float()[i : i + v["HIDDEN"]])) for i in tiles]),
        torch.cat([lay(cut(p[:, i : i + v["HIDDEN"]])) for i in tiles for p in heads]),
        torch.cat([w.skip_bias.float(), w.hidden_bias.float(), *bias]),
        torch.tensor(network.dilations, dtype=torch.int32, device=w.inputs.device),
    )


@triton.jit
def _head(
    skip, hidden, outputs, biases, S: tl.constexpr, OUTPUTS: tl.constexpr, TWO: tl.constexpr,
    HIDDEN: tl.constexpr, G: tl.constexpr, WARPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Outputs [G, OUTPUTS] of relu(skip) [G, S], and as many more (log-scales) if TWO."""
    top = tl.maximum(skip, 0)
    columns = tl.arange(0, HIDDEN)[None, :]
    o = tl.arange(0, OUTPUTS)[None, :]
    first = tl.zeros([G, OUTPUTS], tl.float32) + tl.load(biases + 2 * S + o)
    second = first
    if TWO:
        second = tl.zeros([G, OUTPUTS], tl.float32) + tl.load(biases + 2 * S + OUTPUTS + o)
    for tile in range(S // HIDDEN):
        bias = tl.zeros([G, HIDDEN], tl.float32)
        bias += tl.load(biases + S + tile * HIDDEN + columns)
        w = matrix(hidden + tile * HIDDEN * S, S, HIDDEN, G, WARPS)
        h = tl.maximum(times(top, w, bias, G, INTERPRET), 0)
        at = outputs + tile * HIDDEN * OUTPUTS * (2 if TWO else 1)
        first = times(h, matrix(at, HIDDEN, OUTPUTS, G, WARPS), first, G, INTERPRET)
        if TWO:
            w = matrix(at + HIDDEN * OUTPUTS, HIDDEN, OUTPUTS, G, WARPS)
            second = times(h, w, second, G, INTERPRET)
    return first, second


@triton.jit
def _layer(
    x, skip, past, local, at, scale, R: tl.constexpr, S: tl.constexpr, G: tl.constexpr,
    WARPS: tl.constexpr, SCALED: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One layer: new x [G, R] and skip [G, S] from the layer's weights at `at`."""
    c = tl.arange(0, R)[None, :]
    s = tl.arange(0, S)[None, :]
    filter_past = matrix(at, R, R, G, WARPS)
    filter_now = matrix(at + R * R, R, R, G, WARPS)
    gate_past = matrix(at + 2 * R * R, R, R, G, WARPS)
    gate_now = matrix(at + 3 * R * R, R, R, G, WARPS)
    if R < 128:  # early, if there are registers for it
        residual = matrix(at + 4 * R * R, R, R, G, WARPS)
        skipping = matrix(at + 5 * R * R, R, S, G, WARPS)
    f = times_both(past, filter_past, x, filter_now, G, INTERPRET)
    g = times_both(past, gate_past, x, gate_now, G, INTERPRET)
    if SCALED:
        f *= tl.load(scale + c)
        g *= tl.load(scale + R + c)
    z = tanh(f + tl.load(local + c)) * tl.sigmoid(g + tl.load(local + R + c))
    if R >= 128:
        residual = matrix(at + 4 * R * R, R, R, G, WARPS)
        skipping = matrix(at + 5 * R * R, R, S, G, WARPS)
    if SCALED:
        zero = tl.zeros([G, R], tl.float32)
        x += times(z, residual, zero, G, INTERPRET) * tl.load(scale + 2 * R + c)
        zero = tl.zeros([G, S], tl.float32)
        skip += times(z, skipping, zero, G, INTERPRET) * tl.load(scale + 3 * R + s)
    else:
        x = times(z, residual, x, G, INTERPRET)
        skip = times(z, skipping, skip, G, INTERPRET)
    return x, skip


@triton.jit
def _sampled(first, second, random, CODES: tl.constexpr):
    """Output and what is fed back, [G, BP] each, from head outputs and randomness [G, BP]."""
    if CODES == 0:
        y = first + tl.exp(second) * random
        return y, y
    else:
        e = tl.exp(first - tl.max(first, 1)[:, None])
        uniform = tl.sum(random, 1)[:, None]  # the only band; the others are 0
        above = tl.cumsum(e, 1) > uniform * tl.sum(e, 1)[:, None]
        codes = tl.arange(0, CODES)[None, :]
        y = tl.min(tl.where(above, codes, CODES - 1), 1).to(tl.float32)[:, None]
        y = tl.where(tl.arange(0, random.shape[1])[None, :] == 0, y, 0.0)
        return y, 2 * y / (CODES - 1) - 1


_RUNTIME = ("batch", "steps", "frames", "layers", "per_frame", "reach")


@triton.jit(
    do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=("last", "step")
)
def _generate(
    inputs, weights, scales, hidden, outputs, biases, dilations, conditioning, randomness, last,
    history, step, out, batch, steps, frames, layers, per_frame, reach, G: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, BANDS: tl.constexpr, BP: tl.constexpr, CODES: tl.constexpr,
    HIDDEN: tl.constexpr, SCALED: tl.constexpr, WARPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * G + tl.arange(0, G)
    inside = (rows < batch)[:, None]
    row = tl.minimum(rows, batch - 1).to(tl.int64)  # spare rows repeat the last and store nothing
    c = tl.arange(0, R)[None, :]
    b = tl.arange(0, BP)[None, :]
    band = b < BANDS
    begin = tl.load(step + row)
    low = (begin & 0x3FFFFFFF).to(tl.int32)  # enough for a slot: dilations are powers of two
    within = (begin % per_frame).to(tl.int32)
    frame = tl.zeros([G], tl.int32)
    w_older = matrix(inputs, BP, R, G, WARPS)
    w_newer = matrix(inputs + BP * R, BP, R, G, WARPS)
    at_last = last + (row[:, None] * BANDS + b) * 2
    older = tl.load(at_last, band, 0.0)
    newer = tl.load(at_last + 1, band, 0.0)
    at_band = (row[:, None] * BANDS + b) * steps
    at_history = history + row[:, None] * reach * R + c
    for t in range(steps):
        x = times_both(older, w_older, newer, w_newer, G, INTERPRET)
        skip = tl.zeros([G, S], tl.float32) + tl.load(biases + tl.arange(0, S)[None, :])
        column = row * frames + tl.minimum(frame, frames - 1)
        local = conditioning + column[:, None] * layers * 2 * R
        ring = 0
        for layer in range(layers):
            dilation = tl.load(dilations + layer)
            at = at_history + (ring + (low & (dilation - 1)))[:, None] * R
            past = tl.load(at)
            tl.debug_barrier()  # all threads have read the slot before any writes to it
            tl.store(at, x, inside)
            x, skip = _layer(
                x, skip, past, local + layer * 2 * R,
                weights + layer * (5 * R * R + S * R), scales + layer * (3 * R + S),
                R, S, G, WARPS, SCALED, INTERPRET,
            )  # fmt: skip
            ring += dilation
        first, second = _head(
            skip, hidden, outputs, biases, S, BP if CODES == 0 else CODES, CODES == 0, HIDDEN, G,
            WARPS, INTERPRET,
        )  # fmt: skip
        random = tl.load(randomness + at_band + t, band, 0.0)
        y, fed_back = _sampled(first, second, random, CODES)
        tl.store(out + at_band + t, y, band & inside)
        older = newer
        newer = tl.where(band, fed_back, 0.0)
        low += 1
        within += 1
        frame += (within == per_frame).to(tl.int32)
        within = tl.where(within == per_frame, 0, within)
        tl.debug_barrier()  # this step's history before the next one's reads
    # Steps beyond the conditioning were made of its last column: NaN, outside the loop for speed.
    lasts = (steps + (frames - frame) * per_frame - within)[:, None]
    for t in range(tl.maximum(tl.min(lasts), 0), steps):
        tl.store(out + at_band + t, float("nan"), band & inside & (t >= lasts))
    older = tl.where(steps - 1 > lasts, float("nan"), older)
    newer = tl.where(steps > lasts, float("nan"), newer)
    tl.store(at_last, older, band & inside)
    tl.store(at_last + 1, newer, band & inside)
    tl.store(step + row, tl.load(step + row) + steps, rows < batch)


def wavenet_generate_why_not(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> str | None:
    """None if `wavenet_generate` can run here, else the reason."""
    residual, bands, _ = network.weights.inputs.shape
    skip, outputs = len(network.weights.skip_bias), len(network.weights.outputs_bias)
    if residual not in RESIDUAL or skip not in SKIP:
        return f"{residual} residual, {skip} skip channels: has {RESIDUAL} and {SKIP}"
    if any(d & (d - 1) for d in network.dilations):
        return f"dilations {network.dilations} must be powers of two"
    if bands > 16 or outputs not in (2 * bands, 256):
        return f"{bands} bands and {outputs} outputs: at most 16 bands, or 256 codes"
    if not all(part.is_contiguous() for part in state) or state.history.data_ptr() % 16:
        return "state is updated in place and must be contiguous, the history 16-byte aligned"
    return None


def wavenet_generate(
    conditioning: Tensor, randomness: Tensor, network: WaveNet, state: WaveNetState
) -> Tensor:
    """Triton form of reference.wavenet_generate; see it for shapes and units.

    Cost: one launch; a transposition of the conditioning unless it is time-major in memory, that
    is contiguous as [batch, frames, layers, 2R]. Nothing waits for the device. Steps beyond the
    conditioning give NaN.
    Numerics: weights and matrix inputs in `network.precision` (int8: weights only, with a scale a
    row, on bfloat16 inputs; one stream per program: inputs in float32), all else float32. Equal
    bits whatever the batch, the slot and the size of the calls.
    Raises:
        ValueError: shapes that do not fit each other.
    """
    check_wavenet_generate(conditioning, randomness, network, state)
    batch, bands, steps = randomness.shape
    out = torch.empty(batch, bands, steps, device=randomness.device)
    if not batch or not steps:
        return out
    time_major = aligned(conditioning.permute(0, 3, 1, 2))
    variant = _variant(network)
    with torch.cuda.device_of(out):  # Triton launches on the current device, not the tensors'
        _generate[(triton.cdiv(batch, variant["G"]),)](
            *packed(network), time_major, aligned(randomness), *state, out, batch, steps,
            time_major.shape[1], len(network.dilations), network.band_steps_per_frame,
            sum(network.dilations), **variant, num_warps=variant["WARPS"], num_stages=1,
            maxnreg=255, enable_fp_fusion=True,  # a program has the processor to itself
        )  # fmt: skip
    return out
