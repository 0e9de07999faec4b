// Writes decoder weights as the stream that decoder_isa.h reads; included by it alone.
#pragma once

namespace {

using clonewave::DecoderDims;
using clonewave::DecoderWeights;

// In the order of use: what a step depends on, then the past taps, oldest first.
size_t pack_decoder(const DecoderDims& d, const DecoderWeights& w, Precision p, uint8_t* packed) {
  const int c = d.channels, taps = d.kernel_size;
  Packer to{packed, 0};
  int width = d.mel;
  for (int i = 0; i < d.prenet_layers; width = d.prenet[i++]) {
    to.matrix(p, {w.prenet[i], d.prenet[i], width, width, 1});
  }
  to.matrix(p, {w.enter, c, width, width, 1});
  const auto tap = [&](int layer, int t) {
    const float* first = w.convs + static_cast<size_t>(layer) * 2 * c * c * taps + t;
    to.matrix(p, {first, 2 * c, c, c * taps, taps});
  };
  for (int l = 0; l < d.layers; ++l) tap(l, taps - 1);
  to.matrix(p, {w.mel, d.mel, c, c, 1});
  for (int t = 0; t + 1 < taps; ++t) {
    for (int l = 0; l < d.layers; ++l) tap(l, t);
  }
  to.floats(w.mel_bias, d.mel);
  to.floats(w.done, c);
  to.floats(&w.done_bias, 1);
  for (int i = 0; i < d.elapsed_rows; ++i) to.floats(w.elapsed + i * c, c);
  for (int l = 0; l < d.layers; ++l) to.floats(w.conv_bias + l * 2 * c, 2 * c);
  return to.bytes;
}

// Where the vectors that follow the matrices lie.
struct DecoderTail {
  const float *mel_bias, *done, *done_bias, *elapsed, *conv_bias;
};

inline DecoderTail decoder_tail(const DecoderDims& d, const uint8_t* packed, size_t bytes) {
  const size_t c = d.channels, one = kWidth;
  const size_t floats = d.mel + c + one + d.elapsed_rows * c + d.layers * 2 * c;
  const float* at = reinterpret_cast<const float*>(packed + bytes) - floats;
  return {at, at + d.mel, at + d.mel + c, at + d.mel + c + one,
          at + d.mel + c + one + d.elapsed_rows * c};
}

}  // namespace
