"""mel -> samples: autoregressive WaveNet over the excitation of PQMF bands.

samples -> pqmf_analysis -> band samples -> lpc_analysis -> excitation, which the WaveNet models.
Linear prediction comes from the mel alone (no weights), so the network starts out as a
source-filter vocoder with a noise source and learns what is left: the voice's own periodicity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.config import VocoderConfig
from engine.kernels import WaveNet, WaveNetState, WaveNetWeights
from engine.models.layers import log_mel, normalise_mel

OPENING = 12  # frames whose samples need no more than the beginning of an utterance's mel


class Conditioning(nn.Module):
    """mel [batch, n_mels, frames] -> [batch, layers, 2R, frames], with the gates' biases."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, kernel = config.conditioning_channels, config.conditioning_kernel_size
        sizes = [config.audio.n_mels] + [width] * config.conditioning_layers
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, kernel, padding=kernel // 2)
            for i, o in pairwise(sizes)
        )
        self.out = nn.Conv1d(width, config.layers * 2 * config.residual_channels, 1)
        self.config = config

    @property
    def reach(self) -> int:
        """Mel frames on each side that a column depends on."""
        return len(self.convs) * (self.config.conditioning_kernel_size // 2)

    def forward(self, mel: Tensor, inside: Tensor | None = None, margin: int = 0) -> Tensor:
        """Columns of a whole mel, or of windows of mels.

        Args:
            inside: [batch, 1, frames] bool, the frames that belong to the utterance; None = all.
            margin: frames on each side that are there for their neighbours alone; `reach` of them
                make the columns of a window those of the whole.
        """
        x = normalise_mel(mel, self.config.audio)
        x = x if inside is None else x.masked_fill(~inside, 0)
        for i, conv in enumerate(self.convs):
            y = F.elu(conv(x))
            y = y if inside is None else y.masked_fill(~inside, 0)
            x = y if i == 0 else x + y
        x = x[..., margin : x.shape[-1] - margin]
        return self.out(x).unflatten(1, (self.config.layers, -1))


class BandPrediction(nn.Module):
    """Linear prediction taps and gains of every band, computed from the mel (no weights).

    mel magnitudes are interpolated to a power spectrum, whose product with a band filter's response
    gives the band's autocorrelation; Levinson-Durbin turns it into taps and the gain.
    """

    spread: Tensor
    lags: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        audio = config.audio
        bank = kernels.mel_filterbank(
            audio.sample_rate, audio.n_fft, audio.n_mels, audio.f_min, audio.f_max
        )
        shape = bank / bank.amax(1, keepdim=True)
        spread = shape.T / shape.sum(0).clamp_min(1e-9)[:, None]  # [bins, n_mels], rows sum to 1
        spread[shape.sum(0) < 1e-3] = 0
        self.register_buffer("spread", spread / bank.sum(1)[None, :], persistent=False)
        analysis, _ = kernels.pqmf_filters(
            config.bands, config.pqmf_taps, config.pqmf_cutoff, config.pqmf_beta
        )
        response = torch.fft.rfft(analysis.double(), audio.n_fft).abs().square()
        bins = torch.arange(audio.n_fft // 2 + 1, dtype=torch.float64)
        both_sides = torch.full_like(bins, 2.0)
        both_sides[[0, -1]] = 1
        lags = torch.arange(config.lpc_order + 1, dtype=torch.float64) * config.bands
        waves = torch.cos(2 * math.pi / audio.n_fft * lags[:, None] * bins)
        window_power = torch.hann_window(audio.win_length).double().square().sum()
        table = response[:, None, :] * waves * both_sides / (audio.n_fft * window_power)
        self.register_buffer("lags", table.float(), persistent=False)  # [bands, order + 1, bins]

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """mel [batch, n_mels, frames] -> taps [batch, bands, order, frames], gain [.., frames]."""
        magnitudes = mel.to(self.spread.dtype).exp()
        power = (self.spread @ magnitudes).square() + 1e-9  # [batch, bins, frames]
        r = torch.einsum("bkf,nft->nbtk", self.lags, power)
        r = torch.cat([r[..., :1] * (1 + 1e-4) + 1e-12, r[..., 1:]], dim=-1)
        taps, error = kernels.linear_prediction(r)
        return taps.transpose(2, 3).contiguous(), error.clamp_min(1e-12).sqrt()


class Vocoder(nn.Module):
    """Multi-band Gaussian WaveNet (arXiv:1609.03499, 1807.07281) on the bands' excitation."""

    temperature: Tensor  # [bands or 1, 1]

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        r, s, o = config.residual_channels, config.skip_channels, config.outputs
        self.config = config
        temperature = torch.tensor(config.temperature).view(-1, 1)
        self.register_buffer("temperature", temperature, persistent=False)
        self.conditioning = Conditioning(config)
        self.prediction = BandPrediction(config) if config.lpc_order else None
        self.inputs = nn.Parameter(torch.randn(r, config.bands, 2) * (2 * config.bands) ** -0.5)
        self.gates = nn.ParameterList(
            torch.randn(2 * r, r, 2) * (2 * r) ** -0.5 for _ in range(config.layers)
        )
        self.residuals = nn.ParameterList(
            torch.randn(r, r) * 0.5 * r**-0.5 for _ in range(config.layers)
        )
        self.skips = nn.ParameterList(
            torch.randn(s, r) * (r * config.layers) ** -0.5 for _ in range(config.layers)
        )
        self.skip_bias = nn.Parameter(torch.zeros(s))
        self.hidden = nn.Linear(s, s)
        self.outputs = nn.Linear(s, o)
        nn.init.normal_(self.outputs.weight, std=0.01)
        nn.init.zeros_(self.outputs.bias)

    def weights(self) -> WaveNetWeights:
        """The WaveNet's weights in the layout of `kernels.wavenet_generate`."""
        stack = lambda parts: torch.stack(list(parts)).detach()  # noqa: E731
        return WaveNetWeights(
            self.inputs.detach(), stack(self.gates), stack(self.residuals), stack(self.skips),
            self.skip_bias.detach(), self.hidden.weight.detach(), self.hidden.bias.detach(),
            self.outputs.weight.detach(), self.outputs.bias.detach(),
        )  # fmt: skip

    def network(self, precision: str = "float32") -> WaveNet:
        """The trained WaveNet, ready to generate; build it once, backends pack its weights."""
        c = self.config
        return WaveNet(self.weights(), c.dilations, c.band_steps_per_frame, precision)

    def excitation(self, samples: Tensor, mel: Tensor) -> Tensor:
        """What the WaveNet models: samples [batch, frames * hop], mel of the same frames.

        Returns [batch, bands, band_steps].
        """
        c = self.config
        with torch.autocast(samples.device.type, enabled=False):  # bfloat16 would undo Levinson
            analysis, _ = kernels.pqmf_filters(c.bands, c.pqmf_taps, c.pqmf_cutoff, c.pqmf_beta)
            band_samples = kernels.pqmf_analysis(samples, analysis.to(samples.device))
            if self.prediction is None:
                return band_samples
            return kernels.lpc_analysis(band_samples, *self.prediction(mel))

    def forward(self, mel: Tensor, excitation: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced means and log-scales of every band step, each [batch, bands, band_steps].

        Time-major inside: a matrix product per layer over [batch * time, channels].
        """
        r = self.config.residual_channels
        condition = self.conditioning(mel).permute(1, 0, 3, 2).unsqueeze(3)  # [L, B, F, 1, 2R]
        batch, frames = mel.shape[0], mel.shape[2]
        past = F.pad(excitation, (2, 0))
        taps = torch.cat([past[..., :-2], past[..., 1:-1]], dim=1).transpose(1, 2)
        kernel = torch.cat([self.inputs[..., 0], self.inputs[..., 1]], dim=1)
        x = F.linear(taps, kernel)  # [B, T, R]
        skip: Tensor | None = None
        for i, dilation in enumerate(self.config.dilations):
            both = torch.cat([F.pad(x, (0, 0, dilation, 0))[:, :-dilation], x], dim=2)
            gate = self.gates[i]
            hidden = F.linear(both, torch.cat([gate[..., 0], gate[..., 1]], dim=1))
            hidden = hidden.view(batch, frames, -1, 2 * r) + condition[i].to(hidden.dtype)
            z = torch.tanh(hidden[..., :r]) * torch.sigmoid(hidden[..., r:])
            z = z.view(batch, -1, r)
            skip_part = F.linear(z, self.skips[i])
            skip = skip_part if skip is None else skip + skip_part
            if i + 1 < self.config.layers:
                x = x + F.linear(z, self.residuals[i])
        assert skip is not None
        head = self.outputs(F.relu(self.hidden(F.relu(skip + self.skip_bias.to(skip.dtype)))))
        mean, log_scale = head.float().transpose(1, 2).chunk(2, dim=1)
        return mean, log_scale

    def loss(self, samples: Tensor, mel: Tensor) -> Tensor:
        """Negative log-likelihood per band sample, in nat, of the excitation."""
        excitation = self.excitation(samples, mel)
        mean, log_scale = self(mel, excitation)
        log_scale = log_scale.clamp_min(self.config.log_scale_floor)
        z = (excitation - mean) * torch.exp(-log_scale)
        return (0.5 * z.square() + log_scale).mean() + 0.5 * math.log(2 * math.pi)

    def mel(self, samples: Tensor) -> Tensor:
        """Log-mel of samples [batch, samples] by this model's convention."""
        return log_mel(samples, self.config.audio)


def opening(vocoder: Vocoder) -> int:
    """Mel frames that the samples of the first OPENING frames depend on."""
    return OPENING + vocoder.conditioning.reach


class VocoderStream:
    """One utterance's samples in chunks of any size; they join to the same samples."""

    def __init__(
        self, vocoder: Vocoder, network: WaveNet, mel: Tensor, seed: int, number: int = 0,
        backend: str = "auto", whole: Callable[[], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """One utterance from its start.

        Args:
            mel: [1, n_mels, frames] of the whole utterance. With `whole`, which gives that when
                samples of more than OPENING frames are wanted, its first `opening(vocoder)`
                frames or more.
            seed, number: name its noise.
        """
        self.vocoder, self.network, self.backend = vocoder, network, backend
        self.seed, self.number = seed, number
        self.at = 0
        c = vocoder.config
        self.conditioning, self.prediction = self._hear(mel[..., : opening(vocoder)])
        self.frames = min(OPENING, mel.shape[-1]) if whole else mel.shape[-1]
        self._whole = whole
        if not whole:
            self._hear_on(mel)
        self.state = network.state()
        self.past = mel.new_zeros(1, c.bands, c.lpc_order)
        self.reach = -(-c.pqmf_taps // (2 * c.bands))  # band steps a sample depends on, each side
        self.tail = mel.new_zeros(1, c.bands, 2 * self.reach)
        _, filters = kernels.pqmf_filters(c.bands, c.pqmf_taps, c.pqmf_cutoff, c.pqmf_beta)
        self.filters = filters.to(mel.device)

    @torch.no_grad()
    def _hear(self, mel: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        prediction = self.vocoder.prediction
        return self.vocoder.conditioning(mel), prediction(mel) if prediction else None

    def _hear_on(self, mel: Tensor) -> None:
        """The columns after the opening: always apart, so that their bits are the same."""
        self.frames = mel.shape[-1]
        if mel.shape[-1] <= opening(self.vocoder):
            return
        begin = max(OPENING - self.vocoder.conditioning.reach, 0)
        join = lambda a, b: torch.cat([a[..., :OPENING], b[..., OPENING - begin :]], -1)  # noqa: E731
        conditioning, prediction = self._hear(mel[..., begin:])
        self.conditioning = join(self.conditioning, conditioning)
        if self.prediction is not None and prediction is not None:
            (taps, gain), (more_taps, more_gain) = self.prediction, prediction
            self.prediction = join(taps, more_taps), join(gain, more_gain)

    @torch.no_grad()
    def next(self, frames: int) -> Tensor | None:
        """Samples [samples] of the next `frames` mel frames; None when all are out."""
        if self._whole is not None and self.at + frames > OPENING:
            self._hear_on(self._whole())
            self._whole = None
        if self.at >= self.frames:
            return None
        end = min(self.at + frames, self.frames)
        bands = kernels.wavenet_generate(
            self.conditioning[..., self.at : end], self._noise(end), self.network, self.state,
            backend=self.backend,
        )  # fmt: skip
        return _samples([(self, end)], bands)[0]

    def _noise(self, end: int) -> Tensor:
        """[1, bands, band_steps] for the frames up to `end`."""
        c = self.vocoder.config
        first, last = self.at * c.band_steps_per_frame, end * c.band_steps_per_frame
        noise = kernels.gaussian_noise(
            self.seed, self.number, first, last - first, c.bands, backend=self.backend
        )
        return noise.to(self.tail.device)[None] * self.vocoder.temperature


@torch.no_grad()
def next_together(streams: Sequence[VocoderStream], frames: int) -> list[Tensor]:
    """Samples of the next `frames` mel frames of each stream, generated side by side.

    The streams are of one network, stand anywhere, and none is at its end; one that ends sooner
    gives what it has. The network reads its weights once a step for all of them: nearly twice as
    fast on a CPU. No stream's samples depend on its neighbours. If this raises, no stream moved.
    """
    first = streams[0]
    repeat = first.vocoder.config.band_steps_per_frame
    rows = [(stream, min(stream.at + frames, stream.frames)) for stream in streams]
    conditioning = _side_by_side([s.conditioning[..., s.at : end] for s, end in rows])
    noise = _side_by_side([s._noise(end) for s, end in rows])
    parts = zip(*(stream.state for stream in streams), strict=True)
    state = WaveNetState(*(torch.cat(part) for part in parts))
    bands = kernels.wavenet_generate(
        conditioning, noise, first.network, state, backend=first.backend
    )
    for i, (stream, end) in enumerate(rows):
        bands[i, :, (end - stream.at) * repeat :] = 0
    samples = _samples(rows, bands)
    for i, stream in enumerate(streams):
        for mine, part in zip(stream.state, state, strict=True):
            mine.copy_(part[i : i + 1])
    return samples


def _samples(rows: Sequence[tuple[VocoderStream, int]], bands: Tensor) -> list[Tensor]:
    """From the excitation of each stream's frames up to an end to the samples they make known.

    bands: [streams, bands, band_steps], zero from the end of a stream on. Moves the streams.
    """
    first = rows[0][0]
    c, reach, backend = first.vocoder.config, first.reach, first.backend
    past = torch.cat([s.past for s, _ in rows])
    if first.prediction is not None:
        taps, gain = (
            _side_by_side([s.prediction[i][..., s.at : end] for s, end in rows if s.prediction])
            for i in (0, 1)
        )
        bands = kernels.lpc_synthesis(bands, taps, gain, past, backend=backend)
    tails = torch.cat([s.tail for s, _ in rows])
    known = F.pad(torch.cat([tails, bands], dim=-1), (0, reach))
    samples = kernels.pqmf_synthesis(known, first.filters, backend=backend).clamp(-1, 1)
    made = []
    for i, (stream, end) in enumerate(rows):
        steps = (end - stream.at) * c.band_steps_per_frame
        begin = reach if stream.at else 2 * reach  # a tail of nothing
        stop = steps + reach
        if end == stream.frames and stream._whole is None:
            stop += reach
        made.append(samples[i, begin * c.bands : stop * c.bands])
        stream.at, stream.past = end, past[i : i + 1]
        stream.tail = known[i : i + 1, :, steps : steps + 2 * reach]
    return made


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """[1, .., length] of each stream -> [streams, .., the longest], zeros after the shorter."""
    most = max(part.shape[-1] for part in parts)
    return torch.cat([
        part if part.shape[-1] == most else F.pad(part, (0, most - part.shape[-1]))
        for part in parts
    ])


def finish_together(streams: Sequence[VocoderStream]) -> list[Tensor]:
    """All samples that several streams still have to give, generated side by side."""
    return next_together(streams, max(stream.frames - stream.at for stream in streams))
