// The WaveNet generator over the vectors of one vec_*.h, compiled once per instruction set.
//
// Weights are one stream in execution order, read front to back every step. The part of the gates
// that depends on the past is computed one layer ahead, so that it fills the latency of the
// nonlinearity. The rules of products.h hold here too.
#pragma once

#include <stdlib.h>

#include "products.h"

namespace {

using clonewave::WaveNetDims;
using clonewave::WaveNetStream;
using clonewave::WaveNetWeights;

inline int first_above(const float* logits, int codes, float uniform) {
  float most = logits[0], total = 0, sum = 0;
  for (int k = 1; k < codes; ++k) most = logits[k] > most ? logits[k] : most;
  float weights[kMaxChannels];
  for (int k = 0; k < codes; ++k) total += weights[k] = expf(logits[k] - most);
  for (int k = 0; k < codes - 1; ++k) {
    if ((sum += weights[k]) > uniform * total) return k;
  }
  return codes - 1;
}

// Buffers of N streams, carved from one block so that they stay close in the first cache.
template <int N>
struct Work {
  float *x[N], *hidden[N], *ahead[N], *skip[N], *z[N], *head[N], *outputs[N];
  Activation now[N], past[N], gated[N], top[N];
  alignas(64) uint8_t block[N * 10 * kMaxChannels * sizeof(float)];

  explicit Work(const WaveNetDims& d) {
    const int r = d.residual_channels, s = d.skip_channels;
    uint8_t* next = block;
    const auto floats = [&next](int n) {
      float* at = reinterpret_cast<float*>(next);
      next += (n + 15) / 16 * 64;
      return at;
    };
    for (int n = 0; n < N; ++n) {
      x[n] = floats(r), hidden[n] = floats(2 * r), ahead[n] = floats(2 * r), z[n] = floats(r);
      skip[n] = floats(s), head[n] = floats(s), outputs[n] = floats(d.outputs);
      now[n].storage = reinterpret_cast<uint8_t*>(floats(r / 2));
      past[n].storage = reinterpret_cast<uint8_t*>(floats(r / 2));
      gated[n].storage = reinterpret_cast<uint8_t*>(floats(r / 2));
      top[n].storage = reinterpret_cast<uint8_t*>(floats(s / 2));
    }
  }
};

// What a call of several streams has quantised of their history, so that no input is quantised twice.
// Without memory for it, it keeps nothing. (A lone stream quantises the past while it waits.)
class Quantised {
 public:
  Quantised(int streams, const WaveNetDims& d) : vector_(2 * d.residual_channels) {
    for (int layer = 0; layer < d.layers; ++layer) slots_ += d.dilations[layer];
    const size_t vectors = streams * slots_;
    block_ = static_cast<uint8_t*>(malloc(vectors * (vector_ + sizeof(Activation)) + 64));
    if (!block_) return;
    data_ = block_ + (64 - reinterpret_cast<uintptr_t>(block_) % 64) % 64;
    vectors_ = reinterpret_cast<Activation*>(data_ + vectors * vector_);
  }
  ~Quantised() { free(block_); }
  Quantised(const Quantised&) = delete;
  Quantised& operator=(const Quantised&) = delete;

  bool keeps() const { return block_ != nullptr; }
  uint8_t* data(int n, int64_t slot) { return data_ + (n * slots_ + slot) * vector_; }
  Activation& vector(int n, int64_t slot) { return vectors_[n * slots_ + slot]; }

 private:
  const size_t vector_;  // bytes, whatever an instruction set makes of a number
  size_t slots_ = 0;
  uint8_t *block_, *data_ = nullptr;
  Activation* vectors_ = nullptr;
};

template <Precision P, int N>
class Generator {
 public:
  Generator(const WaveNetDims& d, const uint8_t* packed, const WaveNetStream* s, int64_t steps)
      : d_(d), packed_(packed), s_(s), steps_(steps), r_(d.residual_channels), work_(d) {
    for (int n = 0; n < N; ++n) {
      local_[n] = s[n].conditioning;
      in_frame_[n] = static_cast<int>(*s[n].step % d.band_steps_per_frame);
    }
  }

  void run() {
    constexpr bool kKeep = P == kS8 && N > 1;
    Quantised quantised(kKeep ? N : 0, d_);
    if (kKeep && quantised.keeps()) quantised_ = &quantised;
    for (int64_t t = 0; t < steps_; ++t) {
      step(t);
      advance();
    }
  }

 protected:
  void advance() {
    ++made_;
    for (int n = 0; n < N; ++n) {
      ++*s_[n].step;
      if (++in_frame_[n] == d_.band_steps_per_frame) {
        in_frame_[n] = 0;
        local_[n] += static_cast<size_t>(d_.layers) * 2 * r_;
      }
    }
  }

  int64_t slot(int n, int layer, int64_t ring) const {
    const int64_t dilation = d_.dilations[layer], step = *s_[n].step;
    const bool power = (dilation & (dilation - 1)) == 0;
    return ring + (power ? step & (dilation - 1) : step % dilation);
  }

  float* history(int n, int layer, int64_t ring) const {
    return s_[n].history + slot(n, layer, ring) * r_;
  }

  void encode_past(int n, int layer, int64_t ring) {
    Activation& past = work_.past[n];
    if (quantised_ && made_ >= d_.dilations[layer]) {
      const Activation& kept = quantised_->vector(n, slot(n, layer, ring));
      past.data = kept.data, past.scale = kept.scale, past.offset = kept.offset;
    } else {
      encode<P>(history(n, layer, ring), r_, past);
    }
  }

  void encode_now(int n, int layer, int64_t ring) {
    Activation& now = work_.now[n];
    if (quantised_) now.storage = quantised_->data(n, slot(n, layer, ring));
    encode<P>(work_.x[n], r_, now);
    if (quantised_) quantised_->vector(n, slot(n, layer, ring)) = now;
  }

  // The gates of `layer` so far: conditioning and the past.
  const uint8_t* look_ahead(const uint8_t* w, int layer, int64_t ring) {
    for (int n = 0; n < N; ++n) {
      encode_past(n, layer, ring);
      copy(work_.ahead[n], local_[n] + static_cast<size_t>(layer) * 2 * r_, 2 * r_);
    }
    return matvec<P, N>(w, 2 * r_, r_, work_.past, work_.ahead);
  }

  const uint8_t* layers(const uint8_t* w) {
    int64_t ring = 0;
    w = look_ahead(w, 0, 0);
    for (int layer = 0; layer < d_.layers; ++layer) {
      const bool last = layer + 1 == d_.layers;
      for (int n = 0; n < N; ++n) {
        float* swapped = work_.hidden[n];
        work_.hidden[n] = work_.ahead[n], work_.ahead[n] = swapped;
        encode_now(n, layer, ring);
      }
      w = matvec<P, N>(w, 2 * r_, r_, work_.now, work_.hidden);
      for (int n = 0; n < N; ++n) {
        float* here = history(n, layer, ring);
        for (int i = 0; i < r_; i += kWidth) store_any(here + i, load(work_.x[n] + i));
      }
      ring += d_.dilations[layer];
      if (!last) w = look_ahead(w, layer + 1, ring);
      for (int n = 0; n < N; ++n) gate_all<P>(work_.hidden[n], r_, work_.z[n], work_.gated[n]);
      if (!last) w = matvec<P, N>(w, r_, r_, work_.gated, work_.x);
      w = matvec<P, N>(w, d_.skip_channels, r_, work_.gated, work_.skip);
    }
    return w;
  }

  void head(const uint8_t* w) {
    constexpr Precision H = head_of(P);
    const int s = d_.skip_channels;
    const float* bias = take(w, s);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < s; i += kWidth) {
        store(work_.skip[n] + i, relu(load(work_.skip[n] + i)));
        store(work_.head[n] + i, load(bias + i));
      }
      encode<H>(work_.skip[n], s, work_.top[n]);
    }
    w = matvec<H, N>(w, s, s, work_.top, work_.head);
    bias = take(w, d_.outputs);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < s; i += kWidth) {
        store(work_.head[n] + i, relu(load(work_.head[n] + i)));
      }
      encode<H>(work_.head[n], s, work_.top[n]);
      copy(work_.outputs[n], bias, d_.outputs);
    }
    matvec<H, N>(w, d_.outputs, s, work_.top, work_.outputs);
  }

  void sample(int n, int64_t t) {
    const WaveNetStream& s = s_[n];
    const float* o = work_.outputs[n];
    for (int b = 0; b < d_.bands; ++b) {
      float fed_back;
      if (d_.softmax) {
        const int code = first_above(o, d_.outputs, s.randomness[t]);
        s.out[t] = static_cast<float>(code);
        fed_back = 2 * static_cast<float>(code) / static_cast<float>(d_.outputs - 1) - 1;
      } else {
        fed_back = o[b] + expf(o[d_.bands + b]) * s.randomness[b * steps_ + t];
        s.out[b * steps_ + t] = fed_back;
      }
      s.last[2 * b] = s.last[2 * b + 1];
      s.last[2 * b + 1] = fed_back;
    }
  }

  // The input convolution; returns the weights of the layers.
  const uint8_t* begin() {
    const uint8_t* w = packed_;
    const float* skip_bias = take(w, d_.skip_channels);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < r_; i += kWidth) store(work_.x[n] + i, splat(0));
      copy(work_.skip[n], skip_bias, d_.skip_channels);
      work_.now[n].data = s_[n].last;
    }
    return matvec<kF32, N>(w, r_, 2 * d_.bands, work_.now, work_.x);
  }

  void step(int64_t t) {
    head(layers(begin()));
    for (int n = 0; n < N; ++n) sample(n, t);
  }

  const WaveNetDims& d_;
  const uint8_t* packed_;
  const WaveNetStream* s_;
  const int64_t steps_;
  const int r_;
  const float* local_[N];
  int in_frame_[N];
  int64_t made_ = 0;  // steps of this call
  Quantised* quantised_ = nullptr;  // int8, several streams
  Work<N> work_;
};

template <Precision P>
void generate_all(const WaveNetDims& d, const uint8_t* packed, const WaveNetStream* s, int batch,
                  int64_t steps) {
  int n = 0;
  for (; n + 4 <= batch; n += 4) Generator<P, 4>(d, packed, s + n, steps).run();
  for (; n + 2 <= batch; n += 2) Generator<P, 2>(d, packed, s + n, steps).run();
  for (; n < batch; ++n) Generator<P, 1>(d, packed, s + n, steps).run();
}

void generate(const WaveNetDims& d, const uint8_t* packed, Precision precision,
              const WaveNetStream* s, int batch, int64_t steps) {
  if (precision == kF32) generate_all<kF32>(d, packed, s, batch, steps);
  if constexpr (kHalves) {
    if (precision == kF16) generate_all<kF16>(d, packed, s, batch, steps);
  }
  if (precision == kBf16) generate_all<kBf16>(d, packed, s, batch, steps);
  if (precision == kS8) generate_all<kS8>(d, packed, s, batch, steps);
}

}  // namespace

#include "pack.h"
