"""The attention decoder in Triton: whole utterances in one launch, ended inside the kernel.

A program speaks for `G` utterances (see `triton_products`) until all have ended. Activations that
enter a matrix product are passed between threads through a scratch in global memory (it stays in
the cache), with a barrier after every write.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from engine.kernels import triton_backend
from engine.kernels.checks import aligned, check_decoder_generate
from engine.kernels.reference_decoder import Decoder, DecoderInputs, DecoderState
from engine.kernels.triton_products import matrix, pack, quantise, times
from torch import Tensor
from torch.nn.functional import pad

WARPS = 8


class Packed(NamedTuple):
    """Weights of one network as the kernel reads them, widths padded to powers of two."""

    weights: Tensor  # prenet layers, enter, convs [layers][tap][tile][value, gate], mel
    scales: Tensor  # float32, of int8 rows: prenet layers, enter, convs [layers, 2C], mel
    conv_bias: Tensor  # float32 [layers, 2C]
    mel_bias: Tensor  # float32 [M]
    done: Tensor  # float32 [C] and the bias
    elapsed: Tensor  # float32 [max_elapsed + 1, C]
    attention_of: Tensor  # int32 [layers], -1 = none follows


def _padded(width: int) -> int:
    return max(64, triton.next_power_of_2(width))


def _fit(tensor: Tensor, *sizes: int) -> Tensor:
    """Zeros up to the sizes of the last dimensions."""
    more = [size - have for size, have in zip(sizes, tensor.shape[-len(sizes) :], strict=True)]
    return pad(tensor, [n for by in reversed(more) for n in (0, by)])


def _variant(network: Decoder) -> dict[str, Any]:
    """The kernel's compile-time parameters."""
    w = network.weights
    group = 1 if network.precision == "float32" else network.utterances_per_program
    return dict(
        G=group, M=_padded(w.mel.shape[0]), C=_padded(w.mel.shape[1]), TAPS=w.convs.shape[3],
        WIDTHS=(_padded(w.mel.shape[0]), *(_padded(len(p)) for p in w.prenet)),
        TILE=64 if network.precision == "int8" else 32, SCALED=network.precision == "int8",
        WARPS=WARPS, INTERPRET=triton_backend.interpreting(),
    )  # fmt: skip


# By network: packed weights live as long as it does, and a network never changes.
_packed: WeakKeyDictionary[Decoder, Packed] = WeakKeyDictionary()


def packed(network: Decoder) -> Packed:
    """The network's weights for the kernel: packed on first use, then kept with it."""
    found = _packed.get(network)
    if found is None:
        found = _packed[network] = _pack(network)
    return found


def _pack(network: Decoder) -> Packed:
    v, w = _variant(network), network.weights
    m, c, tile = v["M"], v["C"], v["TILE"]
    parts: list[Tensor] = []
    scales: list[Tensor] = []

    def linear(weight: Tensor, n: int, k: int) -> None:
        rows, scale = quantise(_fit(weight.float(), n, k), network.precision)
        parts.extend(pack(part, v["G"], WARPS) for part in rows.split(tile, 1))
        scales.append(scale)

    widths = v["WIDTHS"]
    for i, weight in enumerate(w.prenet):
        linear(weight, widths[i + 1], widths[i])
    linear(w.enter, c, widths[-1])
    halves = [_fit(part, c, c, v["TAPS"]) for part in w.convs.float().chunk(2, 1)]
    for values, gates in zip(*halves, strict=True):
        rows, scale = quantise(torch.cat([values, gates]).flatten(1), network.precision)
        scales.append(scale)
        for tap in rows.unflatten(1, (c, v["TAPS"])).unbind(2):
            for both in tap.split(tile, 1):
                parts.extend(pack(part, v["G"], WARPS) for part in both.chunk(2))
    linear(w.mel, m, c)
    listed = network.attention_layers
    attention_of = [listed.index(i) if i in listed else -1 for i in range(len(w.convs))]
    return Packed(
        torch.cat(parts), torch.cat(scales),
        torch.cat([_fit(part, c) for part in w.conv_bias.float().chunk(2, 1)], 1),
        _fit(w.mel_bias.float(), m),
        torch.cat([_fit(w.done.float(), c), w.done_bias.float()[None]]),
        _fit(w.elapsed.float(), c),
        torch.tensor(attention_of, dtype=torch.int32, device=w.mel.device),
    )  # fmt: skip


@triton.jit
def _linear(
    source, at, scale, bias, K: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr,
    SCALED: tl.constexpr, WARPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """[G, K] at `source` times [N, K] at `at`, plus bias [G, N]."""
    acc = tl.zeros([G, N], tl.float32)
    for tile in range(K // TILE):
        x = tl.load(source + tile * TILE + tl.arange(0, TILE)[None, :])
        acc = times(x, matrix(at + tile * TILE * N, TILE, N, G, WARPS), acc, G, INTERPRET)
    if SCALED:
        acc *= tl.load(scale + tl.arange(0, N)[None, :])
    return acc + bias


@triton.jit
def _convolved(
    ring, at, scale, bias, first, C: tl.constexpr, TAPS: tl.constexpr, TILE: tl.constexpr,
    G: tl.constexpr, SCALED: tl.constexpr, WARPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Values and gates [G, C] of the causal convolution over a ring whose oldest tap is `first`."""
    c = tl.arange(0, C)[None, :]
    values = tl.zeros([G, C], tl.float32)
    gates = tl.zeros([G, C], tl.float32)
    for i in range(TAPS * (C // TILE)):
        tap = i // (C // TILE)
        column = (i % (C // TILE)) * TILE
        slot = (first + tap) % TAPS
        x = tl.load(ring + slot * C + column + tl.arange(0, TILE)[None, :])
        w = at + i * 2 * TILE * C
        values = times(x, matrix(w, TILE, C, G, WARPS), values, G, INTERPRET)
        gates = times(x, matrix(w + TILE * C, TILE, C, G, WARPS), gates, G, INTERPRET)
    if SCALED:
        values *= tl.load(scale + c)
        gates *= tl.load(scale + C + c)
    return values + tl.load(bias + c), gates + tl.load(bias + C + c)


@triton.jit
def _attended(
    x, keys, key_bias, values, row, position, length, symbols, channels, window, C: tl.constexpr,
    G: tl.constexpr,
):  # fmt: skip
    """Context [G, C] of attention over the window, and the offset of the first largest score."""
    c = tl.arange(0, C)[None, :]
    best = tl.full([G], float("-inf"), tl.float32)
    move = tl.zeros([G], tl.int32)
    total = tl.zeros([G], tl.float32)
    context = tl.zeros([G, C], tl.float32)
    for offset in range(window):
        symbol = position + offset
        valid = symbol < length
        at = row * symbols + tl.minimum(symbol, symbols - 1)
        read = valid[:, None] & (c < channels)
        key = tl.load(keys + at[:, None] * channels + c, read, 0.0)
        score = tl.sum(x * key, 1) + tl.load(key_bias + at, valid, 0.0)
        score = tl.where(valid, score, float("-inf"))
        move = tl.where(score > best, offset, move)
        most = tl.maximum(best, score)
        keep = tl.exp(best - most)
        weight = tl.exp(score - most)
        value = tl.load(values + at[:, None] * channels + c, read, 0.0)
        context = context * keep[:, None] + weight[:, None] * value
        total = total * keep + weight
        best = most
    return context / total[:, None], move


_RUNTIME = ("batch", "steps", "symbols", "layers", "mels", "channels", "window", "max_hold",
            "elapsed_rows", "scratch_row")  # fmt: skip
_STATE = ("state_mel", "history", "state_position", "state_elapsed", "finished")


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_STATE)
def _generate(
    weights, scales, conv_bias, mel_bias, done, elapsed_table, attention_of, prenet_bias, attended,
    speaker, keys, key_bias, values, lengths, state_mel, history, state_position, state_elapsed,
    finished, scratch, hidden, path, count, batch, steps, symbols, layers, mels, channels, window,
    max_hold, elapsed_rows, scratch_row, G: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    WIDTHS: tl.constexpr, PRENETS: tl.constexpr, AREA: tl.constexpr, TAPS: tl.constexpr,
    TILE: tl.constexpr, SCALED: tl.constexpr, WARPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * G + tl.arange(0, G)
    row = tl.minimum(rows, batch - 1).to(tl.int64)  # spare rows never run
    c = tl.arange(0, C)[None, :]
    m = tl.arange(0, M)[None, :]
    real = c < channels
    running = (rows < batch) & (tl.load(finished + row) == 0)
    position = tl.load(state_position + row).to(tl.int32)
    elapsed = tl.load(state_elapsed + row).to(tl.int32)
    length = tl.load(lengths + row).to(tl.int32)
    made = tl.zeros([G], tl.int32)
    own = scratch + rows.to(tl.int64)[:, None] * scratch_row
    area = own + M  # two areas of AREA floats, then the rings
    rings = area + 2 * AREA
    at_mel = state_mel + row[:, None] * mels + m
    tl.store(own + m, tl.load(at_mel, m < mels, 0.0))
    at_history = history + row[:, None] * layers * channels * (TAPS - 1)
    for i in range(layers * (TAPS - 1)):
        layer = i // (TAPS - 1)
        tap = i % (TAPS - 1)
        past = tl.load(at_history + (layer * channels + c) * (TAPS - 1) + tap, real, 0.0)
        tl.store(rings + (layer * TAPS + tap) * C + c, past)
    tl.debug_barrier()
    t = 0
    going = tl.max(running.to(tl.int32), 0)
    while (t < steps) & (going > 0):
        # Prenet: each layer reads what the one before left; areas alternate.
        source = own
        at = weights
        scale = scales
        bias_at = prenet_bias
        for j in tl.static_range(PRENETS):
            n = tl.arange(0, WIDTHS[j + 1])[None, :]
            bias = tl.load(bias_at + row[:, None] * WIDTHS[j + 1] + n)
            y = _linear(
                source, at, scale, bias, WIDTHS[j], WIDTHS[j + 1], TILE, G, SCALED, WARPS, INTERPRET
            )
            source = area + (j % 2) * AREA
            tl.store(source + n, tl.maximum(y, 0))
            tl.debug_barrier()
            at += WIDTHS[j] * WIDTHS[j + 1]
            scale += WIDTHS[j + 1]
            bias_at += batch * WIDTHS[j + 1]
        symbol = row * symbols + tl.minimum(position, symbols - 1)
        bias = tl.load(attended + symbol[:, None] * channels + c, real, 0.0)
        x = _linear(
            source, at, scale, bias, WIDTHS[PRENETS], C, TILE, G, SCALED, WARPS, INTERPRET
        )
        x += tl.load(elapsed_table + tl.minimum(elapsed, elapsed_rows - 1)[:, None] * C + c)
        at += WIDTHS[PRENETS] * C
        scale += C
        move = tl.zeros([G], tl.int32)
        for layer in range(layers):
            ring = rings + layer * TAPS * C
            tl.store(ring + ((t + TAPS - 1) % TAPS) * C + c, x, running[:, None])
            tl.debug_barrier()
            value, gate = _convolved(
                ring, at, scale, conv_bias + layer * 2 * C, t, C, TAPS, TILE, G, SCALED, WARPS,
                INTERPRET,
            )  # fmt: skip
            at_speaker = (row[:, None] * layers + layer) * channels + c
            value += tl.load(speaker + at_speaker, real, 0.0)
            x = (x + value * tl.sigmoid(gate)) * 0.7071067811865476
            at += TAPS * 2 * C * C
            scale += 2 * C
            attention = tl.load(attention_of + layer)
            if attention >= 0:
                skipped = attention.to(tl.int64) * batch * symbols
                context, leap = _attended(
                    x, keys + skipped * channels, key_bias + skipped, values + skipped * channels,
                    row, position, length, symbols, channels, window, C, G,
                )  # fmt: skip
                x = (x + context) * 0.7071067811865476
                move = tl.where(attention == 0, leap, move)
        held = elapsed + 1 >= max_hold
        move = tl.where(held & (move == 0) & (position < length - 1), 1, move)
        position = tl.where(running, position + move, position)
        elapsed = tl.where(running, tl.where(move > 0, 0, elapsed + 1), elapsed)
        flag = tl.sum(x * tl.load(done + c), 1) + tl.load(done + C) > 0
        at_step = row * steps + t
        tl.store(hidden + at_step[:, None] * channels + c, x, running[:, None] & real)
        tl.store(path + at_step, position.to(tl.int64), running)
        made += running.to(tl.int32)
        # The next mel; its area's last readers are two barriers back.
        source = area + (PRENETS % 2) * AREA
        tl.store(source + c, x)
        tl.debug_barrier()
        bias = tl.zeros([G, M], tl.float32) + tl.load(mel_bias + m)
        mel = _linear(source, at, scale, bias, C, M, TILE, G, SCALED, WARPS, INTERPRET)
        tl.store(own + m, mel, running[:, None])
        running = running & ~((flag | held) & (position == length - 1))
        going = tl.max(running.to(tl.int32), 0)
        tl.debug_barrier()
        t += 1
    mine = (rows < batch)[:, None]
    tl.store(at_mel, tl.load(own + m), mine & (m < mels))
    for i in range(layers * (TAPS - 1)):
        layer = i // (TAPS - 1)
        tap = i % (TAPS - 1)
        slot = (made + tap) % TAPS
        past = tl.load(rings + layer * TAPS * C + slot[:, None] * C + c)
        tl.store(at_history + (layer * channels + c) * (TAPS - 1) + tap, past, mine & real)
    inside = rows < batch
    tl.store(state_position + row, position.to(tl.int64), inside)
    tl.store(state_elapsed + row, elapsed.to(tl.int64), inside)
    ended = tl.where(running, 0, 1).to(tl.uint8)
    tl.store(finished + row, ended, inside)
    tl.store(count + row, made.to(tl.int64), inside)


def decoder_generate_why_not(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> str | None:
    """None if `decoder_generate` can run here, else the reason."""
    weights = network.weights
    if network.precision == "int16":
        return "precision 'int16' is of the cpp backend"
    widths = [*weights.mel.shape, *(len(p) for p in weights.prenet)]
    if max(widths) > 512 or not weights.prenet:
        return f"mel, channels and prenet channels {widths}: at most 512, at least one prenet layer"
    if not all(part.is_contiguous() for part in state):
        return "state is updated in place and must be contiguous"
    return None


def decoder_generate(
    inputs: DecoderInputs, network: Decoder, steps: int, state: DecoderState
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton form of reference_decoder.decoder_generate; see it for shapes and units.

    n = `steps`, whatever was needed, because nothing waits for the device: a CUDA graph can hold
    the call. What lies beyond an utterance's count is 0 in hidden and its last position in path.
    Numerics: `network.precision` as in `triton_wavenet`; equal bits whatever the batch, the slot
    and the size of the calls.
    Raises:
        ValueError: shapes that do not fit each other, a text without symbols.
    """
    check_decoder_generate(inputs, network, steps, state)
    device, channels = inputs.attended.device, network.weights.mel.shape[1]
    batch, symbols = inputs.attended.shape[:2]
    hidden = torch.zeros(batch, steps, channels, device=device)
    path = torch.zeros(batch, steps, dtype=torch.int64, device=device)
    count = torch.zeros(batch, dtype=torch.int64, device=device)
    if not batch or not steps:
        return hidden[:, :0], path[:, :0], count
    v, w = _variant(network), packed(network)
    programs, layers = triton.cdiv(batch, v["G"]), len(network.weights.convs)
    area = max(v["C"], *v["WIDTHS"][1:])
    scratch_row = v["M"] + 2 * area + layers * v["TAPS"] * v["C"]
    scratch = torch.empty(programs * v["G"], scratch_row, device=device)
    prenet_bias = [
        _fit(b, n).reshape(-1) for b, n in zip(inputs.prenet_bias, v["WIDTHS"][1:], strict=True)
    ]
    with torch.cuda.device_of(hidden):  # Triton launches on the current device, not the tensors'
        _generate[(programs,)](
            *w, torch.cat(prenet_bias), *(aligned(part) for part in inputs[1:]), *state[:4],
            state.finished.view(torch.uint8), scratch, hidden, path, count, batch, steps, symbols,
            layers, *network.weights.mel.shape, network.window, network.max_hold,
            len(network.weights.elapsed), scratch_row, **v, PRENETS=len(prenet_bias), AREA=area,
            num_warps=WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    beyond = torch.arange(path.shape[1], device=device) >= count[:, None]
    return hidden, torch.where(beyond, state.position[:, None], path), count
