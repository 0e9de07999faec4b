// Vectors of 4 floats in plain C++, for any machine; the compiler may use what it has. The functions
// of vec_avx512.h, same meaning.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kWidth = 4;
constexpr int kTile1 = 4, kTile2 = 2, kTile4 = 1;

struct Float { float v[kWidth]; };
struct Int { int32_t v[kWidth]; };

template <class Out, class F>
inline Out each(F f) {
  Out out;
  for (int i = 0; i < kWidth; ++i) out.v[i] = f(i);
  return out;
}

inline Float load(const float* p) { return each<Float>([&](int i) { return p[i]; }); }
inline Float load_any(const float* p) { return load(p); }
inline void store(float* p, Float v) { memcpy(p, v.v, sizeof v.v); }
inline void store_any(float* p, Float v) { store(p, v); }
inline Float splat(float v) { return each<Float>([&](int) { return v; }); }
inline Float add(Float a, Float b) { return each<Float>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Float sub(Float a, Float b) { return each<Float>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Float mul(Float a, Float b) { return each<Float>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Float div(Float a, Float b) { return each<Float>([&](int i) { return a.v[i] / b.v[i]; }); }
inline Float reciprocal(Float v) { return div(splat(1), v); }
inline Float fma(Float a, Float b, Float c) {  // two roundings: a library fma would be slow
  return each<Float>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Float clamp(Float v, Float lo, Float hi) {
  return each<Float>([&](int i) {
    const float at_least = v.v[i] < lo.v[i] ? lo.v[i] : v.v[i];
    return at_least > hi.v[i] ? hi.v[i] : at_least;
  });
}
inline Float relu(Float v) {
  return each<Float>([&](int i) { return v.v[i] < 0 ? 0 : v.v[i]; });
}
inline Float round_even(Float v) {  // |v| < 2**22
  return each<Float>([&](int i) { return (v.v[i] + 12582912.0f) - 12582912.0f; });
}
inline int32_t to_bits(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float from_bits(int32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
inline Int to_int(Float v) {  // NaN and values out of range give the most negative, as on x86
  return each<Int>([&](int i) {
    const float r = nearbyintf(v.v[i]);
    return r > -2147483648.0f && r < 2147483648.0f ? static_cast<int32_t>(r) : INT32_MIN;
  });
}
inline Float to_float(Int v) {
  return each<Float>([&](int i) { return static_cast<float>(v.v[i]); });
}
inline Float scale_by_power(Float v, Float n) {
  const Int e = to_int(n);
  return each<Float>([&](int i) {
    return from_bits(static_cast<int32_t>(static_cast<uint32_t>(to_bits(v.v[i])) +
                                          (static_cast<uint32_t>(e.v[i]) << 23)));
  });
}
inline Float max_abs(Float a, Float v) {
  return each<Float>([&](int i) {
    const float m = fabsf(v.v[i]);
    return a.v[i] > m ? a.v[i] : m;
  });
}
inline float reduce_max(Float v) {
  float m = v.v[0];
  for (int i = 1; i < kWidth; ++i) m = m > v.v[i] ? m : v.v[i];
  return m;
}
inline Int int_zero() { return each<Int>([](int) { return 0; }); }
inline Int int_splat(int32_t v) { return each<Int>([&](int) { return v; }); }
inline Int int_add(Int a, Int b) { return each<Int>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Int int_sub(Int a, Int b) { return each<Int>([&](int i) { return a.v[i] - b.v[i]; }); }
inline int32_t int_reduce(Int v) {
  int32_t s = 0;
  for (int i = 0; i < kWidth; ++i) s += v.v[i];
  return s;
}
inline void relax() {}
inline void prefetch(const void*) {}

inline Int group(const void* activations, int g) {
  int32_t bits;
  memcpy(&bits, static_cast<const uint8_t*>(activations) + 4 * g, sizeof bits);
  return int_splat(bits);
}
inline Float dot_float(Float acc, const uint8_t* w, Int a) {
  return fma(load(reinterpret_cast<const float*>(w)), splat(from_bits(a.v[0])), acc);
}
constexpr bool kHalves = false;  // converting them costs more than it saves
inline Float dot_half(Float acc, const uint8_t*, Int) { return acc; }
inline Float dot_bfloat16(Float acc, const uint8_t* w, Int a) {
  uint32_t weights[kWidth];
  memcpy(weights, w, sizeof weights);
  const uint32_t pair = static_cast<uint32_t>(a.v[0]);
  const float low = from_bits(static_cast<int32_t>(pair << 16));
  const float high = from_bits(static_cast<int32_t>(pair & 0xffff0000u));
  return each<Float>([&](int i) {
    const float first = from_bits(static_cast<int32_t>(weights[i] << 16));
    const float second = from_bits(static_cast<int32_t>(weights[i] & 0xffff0000u));
    return second * high + (first * low + acc.v[i]);
  });
}
inline uint16_t round_bfloat16(float v) {
  const uint32_t bits = static_cast<uint32_t>(to_bits(v));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store_bfloat16(uint16_t* p, Float v) {
  for (int i = 0; i < kWidth; ++i) p[i] = round_bfloat16(v.v[i]);
}

constexpr int kInt8Group = 2;
constexpr int kInt8Offset = 0;
inline Int dot_int8(Int acc, const uint8_t* w, Int a) {
  const int8_t* weights = reinterpret_cast<const int8_t*>(w);
  int16_t pair[2];
  memcpy(pair, a.v, sizeof pair);
  return each<Int>([&](int i) {
    return acc.v[i] + weights[2 * i] * pair[0] + weights[2 * i + 1] * pair[1];
  });
}
inline Int dot_int16(Int acc, const uint8_t* w, Int a) {
  int16_t weights[2 * kWidth], pair[2];
  memcpy(weights, w, sizeof weights);
  memcpy(pair, a.v, sizeof pair);
  return each<Int>([&](int i) {
    return acc.v[i] + (weights[2 * i] * pair[0] + weights[2 * i + 1] * pair[1]);
  });
}
inline void store_int16(int16_t* out, Int v) {
  for (int j = 0; j < kWidth; ++j) {
    const int32_t q = v.v[j];
    out[j] = static_cast<int16_t>(q < -32768 ? -32768 : q > 32767 ? 32767 : q);
  }
}
inline void store_quantised(void* p, int i, Int v) {
  store_int16(static_cast<int16_t*>(p) + i, v);
}

}  // namespace
