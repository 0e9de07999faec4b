// The WaveNet generator over the vectors of one vec_*.h, compiled once per instruction set.
//
// Weights are one stream in execution order, read front to back every step. A matrix is stored as
// tiles of up to kTile1 row vectors, a tile as [k / group][row][group]: activations are broadcast,
// so a product needs no horizontal sums. The part of the gates that depends on the past is computed
// one layer ahead, so that it fills the latency of the nonlinearity.
//
// Everything here has internal linkage and no std:: template is used: a function compiled with
// AVX-512 must never be the one the linker keeps for all.
#pragma once

#include <math.h>
#include <string.h>

#include "../ops.h"

namespace {

using clonewave::Precision;
using clonewave::WaveNetDims;
using clonewave::WaveNetStream;
using clonewave::WaveNetWeights;
constexpr int kMaxChannels = clonewave::kMaxChannels;
constexpr Precision kF32 = Precision::kFloat32, kBf16 = Precision::kBfloat16,
                    kS8 = Precision::kInt8;

constexpr int group_of(Precision p) { return p == kF32 ? 1 : p == kBf16 ? 2 : kInt8Group; }
constexpr int bytes_of(Precision p) { return p == kF32 ? 4 : p == kBf16 ? 2 : 1; }
constexpr Precision head_of(Precision p) { return p == kF32 ? kF32 : kBf16; }
inline int row_vectors(int rows) { return (rows + kWidth - 1) / kWidth; }
inline int smaller(int a, int b) { return a < b ? a : b; }

// A vector multiplied by a matrix, in the form of the matrix's precision.
struct Activation {
  const void* data;
  uint8_t* storage;
  float scale;     // int8: value = scale * stored
  int32_t offset;  // int8: what the weights' offset adds to every row
};

inline void finish_int8(Activation& a, Int sum) {
  a.data = a.storage;
  a.offset = kInt8Offset ? kInt8Offset * int_reduce(sum) : 0;
}

inline Int quantise(Activation& a, int i, Float v, Float inverse) {
  const Int q = to_int(mul(v, inverse));
  store_quantised(a.storage, i, q);
  return q;
}

template <Precision P>
inline void encode(const float* v, int n, Activation& a) {
  if (P == kF32) {
    a.data = v;
  } else if (P == kBf16) {
    for (int i = 0; i < n; i += kWidth) {
      store_bfloat16(reinterpret_cast<uint16_t*>(a.storage) + i, load_any(v + i));
    }
    a.data = a.storage;
  } else {
    Float most = splat(0);
    for (int i = 0; i < n; i += kWidth) most = max_abs(most, load_any(v + i));
    const float largest = reduce_max(most);
    const Float inverse = splat(largest > 0 ? 127 / largest : 0);
    a.scale = largest * (1.0f / 127);
    Int sum = int_zero();
    for (int i = 0; i < n; i += kWidth) sum = int_add(sum, quantise(a, i, load_any(v + i), inverse));
    finish_int8(a, sum);
  }
}

// 2 ** v for |v| < 100, relative error 1e-7.
inline Float exp2_bounded(Float v) {
  const Float n = round_even(v);
  const Float r = sub(v, n);
  Float p = splat(1.534581242594868e-4f);
  p = fma(p, r, splat(1.3399932067841291e-3f));
  p = fma(p, r, splat(9.618489071726799e-3f));
  p = fma(p, r, splat(5.550328642129898e-2f));
  p = fma(p, r, splat(0.24022646248340607f));
  p = fma(p, r, splat(0.6931471824645996f));
  p = fma(p, r, splat(1.0f));
  return scale_by_power(p, n);
}

// tanh(f) * sigmoid(g) = (1 - a) / ((1 + a) (1 + b)), a = exp(-2 f), b = exp(-g).
inline Float gate(Float f, Float g) {
  const Float a = exp2_bounded(clamp(mul(f, splat(-2.8853900817779268f)), splat(-28), splat(28)));
  const Float b = exp2_bounded(clamp(mul(g, splat(-1.4426950408889634f)), splat(-60), splat(60)));
  const Float one = splat(1);
  return div(sub(one, a), mul(add(one, a), add(one, b)));
}

template <Precision P>
inline void gate_all(const float* hidden, int channels, float* z, Activation& a) {
  Int sum = int_zero();
  for (int i = 0; i < channels; i += kWidth) {
    const Float v = gate(load(hidden + i), load(hidden + channels + i));
    if (P == kF32) store(z + i, v);
    if (P == kBf16) store_bfloat16(reinterpret_cast<uint16_t*>(a.storage) + i, v);
    if (P == kS8) sum = int_add(sum, quantise(a, i, v, splat(127)));
  }
  a.data = P == kF32 ? static_cast<const void*>(z) : a.storage;
  if (P == kS8) {
    a.scale = 1.0f / 127;
    finish_int8(a, sum);
  }
}

inline Float dot(Float acc, const uint8_t* w, Int a, Precision p) {
  return p == kF32 ? dot_float(acc, w, a) : dot_bfloat16(acc, w, a);
}

// out[n] += W a[n] for T row vectors and N vectors. `Split` sums interleave over the groups, to hide
// the latency of few rows; it depends on the matrix alone, so that N does not change the result.
template <Precision P, int T, int N, int Split>
inline void tile_float(const uint8_t* w, int stride, int groups, const Activation* a,
                       float* const* out, int row) {
  constexpr int kBytes = kWidth * group_of(P) * bytes_of(P);
  Float acc[Split][N][T];
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) {
      acc[0][n][t] = load(out[n] + row + t * kWidth);
      for (int u = 1; u < Split; ++u) acc[u][n][t] = splat(0);
    }
  }
  const void* data[N];
  for (int n = 0; n < N; ++n) data[n] = a[n].data;
  int g = 0;
  for (; g + Split <= groups; g += Split) {
    for (int u = 0; u < Split; ++u, w += stride) {
      Int x[N];
      for (int n = 0; n < N; ++n) x[n] = group(data[n], g + u);
      for (int t = 0; t < T; ++t) {
        for (int n = 0; n < N; ++n) acc[u][n][t] = dot(acc[u][n][t], w + t * kBytes, x[n], P);
      }
    }
  }
  for (; g < groups; ++g, w += stride) {
    for (int n = 0; n < N; ++n) {
      const Int x = group(data[n], g);
      for (int t = 0; t < T; ++t) acc[0][n][t] = dot(acc[0][n][t], w + t * kBytes, x, P);
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < T; ++t) {
      Float sum = acc[0][n][t];
      for (int u = 1; u < Split; ++u) sum = add(sum, acc[u][n][t]);
      store(out[n] + row + t * kWidth, sum);
    }
  }
}

template <int T, int N>
inline void tile_int8(const uint8_t* w, int stride, int groups, const Activation* a,
                      float* const* out, int row, const float* scales) {
  constexpr int kBytes = kWidth * kInt8Group;
  Int acc[N][T];
  const void* data[N];
  for (int n = 0; n < N; ++n) {
    data[n] = a[n].data;
    for (int t = 0; t < T; ++t) acc[n][t] = int_zero();
  }
  for (int g = 0; g < groups; ++g, w += stride) {
    Int x[N];
    for (int n = 0; n < N; ++n) x[n] = group(data[n], g);
    for (int t = 0; t < T; ++t) {
      for (int n = 0; n < N; ++n) acc[n][t] = dot_int8(acc[n][t], w + t * kBytes, x[n]);
    }
  }
  for (int n = 0; n < N; ++n) {
    const Int offset = int_splat(a[n].offset);
    const Float scale = splat(a[n].scale);
    for (int t = 0; t < T; ++t) {
      float* to = out[n] + row + t * kWidth;
      const Float both = mul(scale, load(scales + t * kWidth));
      store(to, fma(to_float(int_sub(acc[n][t], offset)), both, load(to)));
    }
  }
}

template <Precision P, int T, int N>
inline void tile(const uint8_t* w, int stride, int groups, const Activation* a, float* const* out,
                 int row, const float* scales, bool split) {
  if (P == kS8) {
    tile_int8<T, N>(w, stride, groups, a, out, row, scales);
  } else if (T <= 2 && split) {
    tile_float<P, T, N, 4>(w, stride, groups, a, out, row);
  } else {
    tile_float<P, T, N, 1>(w, stride, groups, a, out, row);
  }
}

// out[n] += W a[n] for the next matrix of the stream; returns the stream after it.
template <Precision P, int N>
inline const uint8_t* matvec(const uint8_t* w, int rows, int k, const Activation* a,
                             float* const* out) {
  constexpr int kMost = N == 1 ? kTile1 : N == 2 ? kTile2 : kTile4;
  constexpr int kBytes = kWidth * group_of(P) * bytes_of(P);
  const int vectors = row_vectors(rows), groups = k / group_of(P);
  const bool split = vectors <= 2;
  for (int first = 0; first < vectors; first += kTile1) {
    const int wide = smaller(kTile1, vectors - first), stride = wide * kBytes;
    const float* scales = reinterpret_cast<const float*>(w);
    if (P == kS8) w += wide * kWidth * sizeof(float);
    for (int t = 0; t < wide;) {
      const int row = (first + t) * kWidth, left = smaller(kMost, wide - t);
      const uint8_t* at = w + t * kBytes;
      const float* scale = scales + t * kWidth;
      if (left >= 8 && kMost >= 8) {
        tile<P, (kMost >= 8 ? 8 : 1), N>(at, stride, groups, a, out, row, scale, split), t += 8;
      } else if (left >= 4 && kMost >= 4) {
        tile<P, (kMost >= 4 ? 4 : 1), N>(at, stride, groups, a, out, row, scale, split), t += 4;
      } else if (left >= 2 && kMost >= 2) {
        tile<P, (kMost >= 2 ? 2 : 1), N>(at, stride, groups, a, out, row, scale, split), t += 2;
      } else {
        tile<P, 1, N>(at, stride, groups, a, out, row, scale, split), t += 1;
      }
    }
    w += static_cast<size_t>(stride) * groups;
  }
  return w;
}

inline const float* take(const uint8_t*& w, int floats) {
  const float* at = reinterpret_cast<const float*>(w);
  w += static_cast<size_t>(row_vectors(floats)) * kWidth * sizeof(float);
  return at;
}

inline void copy(float* to, const float* from, int n) {
  for (int i = 0; i < n; i += kWidth) store(to + i, load_any(from + i));
}

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
    for (int64_t t = 0; t < steps_; ++t) {
      step(t);
      for (int n = 0; n < N; ++n) {
        ++*s_[n].step;
        if (++in_frame_[n] == d_.band_steps_per_frame) {
          in_frame_[n] = 0;
          local_[n] += static_cast<size_t>(d_.layers) * 2 * r_;
        }
      }
    }
  }

 private:
  float* slot(int n, int layer, int64_t ring) const {
    const int64_t dilation = d_.dilations[layer], step = *s_[n].step;
    const bool power = (dilation & (dilation - 1)) == 0;
    return s_[n].history + (ring + (power ? step & (dilation - 1) : step % dilation)) * r_;
  }

  // The gates of `layer` so far: conditioning and the past.
  const uint8_t* look_ahead(const uint8_t* w, int layer, int64_t ring) {
    for (int n = 0; n < N; ++n) {
      const float* past = slot(n, layer, ring);
      encode<P>(past, r_, work_.past[n]);
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
        encode<P>(work_.x[n], r_, work_.now[n]);
      }
      w = matvec<P, N>(w, 2 * r_, r_, work_.now, work_.hidden);
      for (int n = 0; n < N; ++n) {
        float* here = slot(n, layer, ring);
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

  void step(int64_t t) {
    const uint8_t* w = packed_;
    const float* skip_bias = take(w, d_.skip_channels);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < r_; i += kWidth) store(work_.x[n] + i, splat(0));
      copy(work_.skip[n], skip_bias, d_.skip_channels);
      work_.now[n].data = s_[n].last;
    }
    w = matvec<kF32, N>(w, r_, 2 * d_.bands, work_.now, work_.x);
    head(layers(w));
    for (int n = 0; n < N; ++n) sample(n, t);
  }

  const WaveNetDims& d_;
  const uint8_t* packed_;
  const WaveNetStream* s_;
  const int64_t steps_;
  const int r_;
  const float* local_[N];
  int in_frame_[N];
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
  if (precision == kBf16) generate_all<kBf16>(d, packed, s, batch, steps);
  if (precision == kS8) generate_all<kS8>(d, packed, s, batch, steps);
}

}  // namespace

#include "pack.h"
