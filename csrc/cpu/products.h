// Matrix products and nonlinearities over the vectors of one vec_*.h, compiled once per instruction
// set and shared by the generators.
//
// A matrix is stored as tiles of up to kTile1 row vectors, a tile as [k / group][row][group]:
// activations are broadcast, so a product needs no horizontal sums.
//
// Everything here has internal linkage and no std:: template is used: a function compiled with
// AVX-512 must never be the one the linker keeps for all.
#pragma once

#include <math.h>
#include <string.h>

#include "../ops.h"

namespace {

using clonewave::Precision;
constexpr int kMaxChannels = clonewave::kMaxChannels;
constexpr Precision kF32 = Precision::kFloat32, kF16 = Precision::kHalf,
                    kBf16 = Precision::kBfloat16, kS16 = Precision::kInt16, kS8 = Precision::kInt8;

constexpr bool exact(Precision p) { return p == kF32 || p == kF16; }
constexpr bool whole(Precision p) { return p == kS16 || p == kS8; }
constexpr int group_of(Precision p) { return exact(p) ? 1 : p == kS8 ? kInt8Group : 2; }
constexpr int bytes_of(Precision p) { return p == kF32 ? 4 : p == kS8 ? 1 : 2; }
constexpr Precision head_of(Precision p) { return exact(p) ? p : kBf16; }
inline int row_vectors(int rows) { return (rows + kWidth - 1) / kWidth; }
inline int smaller(int a, int b) { return a < b ? a : b; }

// int16: inputs reach from -kInt16Most to kInt16Most, and a row's weights are scaled so that no sum
// over kInt16Block of them leaves 32 bits; it goes on in float32.
constexpr int kInt16Block = 64;
constexpr float kInt16Most = 16383;
constexpr float kInt16Sum = 2147483647.0f / kInt16Most - kInt16Block;  // of |weights| of a block

// A vector multiplied by a matrix, in the form of the matrix's precision.
struct Activation {
  const void* data;
  uint8_t* storage;
  float scale;     // int8, int16: value = scale * stored
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
  if (exact(P)) {
    a.data = v;
  } else if (P == kBf16) {
    for (int i = 0; i < n; i += kWidth) {
      store_bfloat16(reinterpret_cast<uint16_t*>(a.storage) + i, load_any(v + i));
    }
    a.data = a.storage;
  } else {
    constexpr float kMost = P == kS8 ? 127 : kInt16Most;
    Float most = splat(0);
    for (int i = 0; i < n; i += kWidth) most = max_abs(most, load_any(v + i));
    const float largest = reduce_max(most);
    const Float inverse = splat(largest > 0 ? kMost / largest : 0);
    a.scale = largest * (1.0f / kMost);
    if (P == kS16) {
      for (int i = 0; i < n; i += kWidth) {
        store_int16(reinterpret_cast<int16_t*>(a.storage) + i, to_int(mul(load_any(v + i), inverse)));
      }
      a.data = a.storage;
      a.offset = 0;
      return;
    }
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

// The same, relative error 4e-6.
inline Float exp2_rough(Float v) {
  const Float n = round_even(v);
  const Float r = sub(v, n);
  Float p = splat(0.009570102207362652f);
  p = fma(p, r, splat(0.05591786280274391f));
  p = fma(p, r, splat(0.240247443318367f));
  p = fma(p, r, splat(0.6931217908859253f));
  p = fma(p, r, splat(0.9999992847442627f));
  return scale_by_power(p, n);
}

// tanh(f) * sigmoid(g) = (1 - a) / ((1 + a) (1 + b)), a = exp(-2 f), b = exp(-g); within 1e-4 where
// the result is rounded to 8 bits.
template <Precision P>
inline Float gate(Float f, Float g) {
  const Float c = clamp(mul(f, splat(-2.8853900817779268f)), splat(-28), splat(28));
  const Float d = clamp(mul(g, splat(-1.4426950408889634f)), splat(-60), splat(60));
  const Float a = exact(P) ? exp2_bounded(c) : exp2_rough(c);
  const Float b = exact(P) ? exp2_bounded(d) : exp2_rough(d);
  const Float one = splat(1), below = mul(add(one, a), add(one, b));
  return exact(P) ? div(sub(one, a), below) : mul(sub(one, a), reciprocal(below));
}

template <Precision P>
inline void gate_all(const float* hidden, int channels, float* z, Activation& a) {
  Int sum = int_zero();
  for (int i = 0; i < channels; i += kWidth) {
    const Float v = gate<P>(load(hidden + i), load(hidden + channels + i));
    if (exact(P)) store(z + i, v);
    if (P == kBf16) store_bfloat16(reinterpret_cast<uint16_t*>(a.storage) + i, v);
    if (P == kS8) sum = int_add(sum, quantise(a, i, v, splat(127)));
  }
  a.data = exact(P) ? static_cast<const void*>(z) : a.storage;
  if (P == kS8) {
    a.scale = 1.0f / 127;
    finish_int8(a, sum);
  }
}

inline Float dot(Float acc, const uint8_t* w, Int a, Precision p) {
  return p == kF32 ? dot_float(acc, w, a) : p == kF16 ? dot_half(acc, w, a)
                                                      : dot_bfloat16(acc, w, a);
}

// Unrolled before anything else looks at them, the accumulators below become registers.
#if defined(__clang__)
#define CLONEWAVE_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define CLONEWAVE_UNROLL _Pragma("GCC unroll 8")
#else
#define CLONEWAVE_UNROLL
#endif

// out[n] += W a[n] for T row vectors and N vectors. `Split` sums interleave over the groups, to hide
// the latency of few rows; it depends on the matrix alone, so that N does not change the result.
template <Precision P, int T, int N, int Split>
inline void tile_float(const uint8_t* w, int stride, int groups, const Activation* a,
                       float* const* out, int row) {
  constexpr int kBytes = kWidth * group_of(P) * bytes_of(P);
  Float acc[Split][N][T];
  CLONEWAVE_UNROLL
  for (int n = 0; n < N; ++n) {
    CLONEWAVE_UNROLL
    for (int t = 0; t < T; ++t) {
      acc[0][n][t] = load(out[n] + row + t * kWidth);
      CLONEWAVE_UNROLL
      for (int u = 1; u < Split; ++u) acc[u][n][t] = splat(0);
    }
  }
  const void* data[N];
  CLONEWAVE_UNROLL
  for (int n = 0; n < N; ++n) data[n] = a[n].data;
  int g = 0;
  for (; g + Split <= groups; g += Split) {
    CLONEWAVE_UNROLL
    for (int u = 0; u < Split; ++u, w += stride) {
      Int x[N];
      CLONEWAVE_UNROLL
      for (int n = 0; n < N; ++n) x[n] = group(data[n], g + u);
      CLONEWAVE_UNROLL
      for (int t = 0; t < T; ++t) {
        CLONEWAVE_UNROLL
        for (int n = 0; n < N; ++n) acc[u][n][t] = dot(acc[u][n][t], w + t * kBytes, x[n], P);
      }
    }
  }
  for (; g < groups; ++g, w += stride) {
    CLONEWAVE_UNROLL
    for (int n = 0; n < N; ++n) {
      const Int x = group(data[n], g);
      CLONEWAVE_UNROLL
      for (int t = 0; t < T; ++t) acc[0][n][t] = dot(acc[0][n][t], w + t * kBytes, x, P);
    }
  }
  CLONEWAVE_UNROLL
  for (int n = 0; n < N; ++n) {
    CLONEWAVE_UNROLL
    for (int t = 0; t < T; ++t) {
      Float sum = acc[0][n][t];
      CLONEWAVE_UNROLL
      for (int u = 1; u < Split; ++u) sum = add(sum, acc[u][n][t]);
      store(out[n] + row + t * kWidth, sum);
    }
  }
}

template <Precision P, int T, int N>
inline void tile_whole(const uint8_t* w, int stride, int begin, int end, const Activation* a,
                       float* const* out, int row, const float* scales) {
  constexpr int kBytes = kWidth * group_of(P) * bytes_of(P);
  Int acc[N][T];
  const void* data[N];
  CLONEWAVE_UNROLL
  for (int n = 0; n < N; ++n) {
    data[n] = a[n].data;
    CLONEWAVE_UNROLL
    for (int t = 0; t < T; ++t) acc[n][t] = int_zero();
  }
  for (int g = begin; g < end; ++g, w += stride) {
    Int x[N];
    CLONEWAVE_UNROLL
    for (int n = 0; n < N; ++n) x[n] = group(data[n], g);
    CLONEWAVE_UNROLL
    for (int t = 0; t < T; ++t) {
      CLONEWAVE_UNROLL
      for (int n = 0; n < N; ++n) {
        acc[n][t] = P == kS8 ? dot_int8(acc[n][t], w + t * kBytes, x[n])
                             : dot_int16(acc[n][t], w + t * kBytes, x[n]);
      }
    }
  }
  CLONEWAVE_UNROLL
  for (int n = 0; n < N; ++n) {
    const Int offset = int_splat(a[n].offset);
    const Float scale = splat(a[n].scale);
    CLONEWAVE_UNROLL
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
    tile_whole<P, T, N>(w, stride, 0, groups, a, out, row, scales);
  } else if (P == kS16) {
    constexpr int kBlock = kInt16Block / group_of(P);
    for (int g = 0; g < groups; g += kBlock, w += kBlock * stride) {
      tile_whole<P, T, N>(w, stride, g, smaller(g + kBlock, groups), a, out, row, scales);
    }
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
    if (whole(P)) w += wide * kWidth * sizeof(float);
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

// Bytes of a matrix in the stream.
template <Precision P>
inline size_t bytes_of_matrix(int rows, int k) {
  const size_t stored = static_cast<size_t>(row_vectors(rows)) * kWidth;
  return stored * k * bytes_of(P) + (whole(P) ? stored * sizeof(float) : 0);
}

inline size_t bytes_of_vector(int floats) {
  return static_cast<size_t>(row_vectors(floats)) * kWidth * sizeof(float);
}

inline const float* take(const uint8_t*& w, int floats) {
  const float* at = reinterpret_cast<const float*>(w);
  w += bytes_of_vector(floats);
  return at;
}

inline void copy(float* to, const float* from, int n) {
  for (int i = 0; i < n; i += kWidth) store(to + i, load_any(from + i));
}

}  // namespace
