// Vectors of 8 floats: AVX2 and FMA. The functions of vec_avx512.h, same meaning.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

using Float = __m256;
using Int = __m256i;
constexpr int kWidth = 8;
constexpr int kTile1 = 8, kTile2 = 4, kTile4 = 2;

inline Float load(const float* p) { return _mm256_load_ps(p); }
inline Float load_any(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Float v) { _mm256_store_ps(p, v); }
inline void store_any(float* p, Float v) { _mm256_storeu_ps(p, v); }
inline Float splat(float v) { return _mm256_set1_ps(v); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
inline Float reciprocal(Float v) { return div(splat(1), v); }
inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float clamp(Float v, Float lo, Float hi) {
  return _mm256_min_ps(hi, _mm256_max_ps(lo, v));
}
inline Float relu(Float v) { return _mm256_max_ps(_mm256_setzero_ps(), v); }
inline Float round_even(Float v) { return _mm256_round_ps(v, 8); }
inline Int int_splat(int32_t v) { return _mm256_set1_epi32(v); }
inline Int int_add(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline Int int_sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
inline Int int_zero() { return _mm256_setzero_si256(); }
inline Int to_int(Float v) { return _mm256_cvtps_epi32(v); }
inline Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
// v in [0.5, 2), n whole and within (-126, 127): adds n to the exponent.
inline Float scale_by_power(Float v, Float n) {
  return _mm256_castsi256_ps(int_add(_mm256_castps_si256(v), _mm256_slli_epi32(to_int(n), 23)));
}
inline Float max_abs(Float a, Float v) {
  return _mm256_max_ps(a, _mm256_andnot_ps(splat(-0.0f), v));
}
inline float reduce_max(Float v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
inline int32_t int_reduce(Int v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline void relax() { _mm_pause(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

inline Int group(const void* activations, int g) {
  int32_t bits;
  memcpy(&bits, static_cast<const uint8_t*>(activations) + 4 * g, sizeof bits);
  return _mm256_set1_epi32(bits);
}
inline Float dot_float(Float acc, const uint8_t* w, Int a) {
  return fma(load(reinterpret_cast<const float*>(w)), _mm256_castsi256_ps(a), acc);
}
constexpr bool kHalves = true;
inline Float dot_half(Float acc, const uint8_t* w, Int a) {
  const __m128i halves = _mm_load_si128(reinterpret_cast<const __m128i*>(w));
  return fma(_mm256_cvtph_ps(halves), _mm256_castsi256_ps(a), acc);
}
inline Float dot_bfloat16(Float acc, const uint8_t* w, Int a) {
  const Int high = int_splat(static_cast<int32_t>(0xffff0000u));
  const Int weights = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
  acc = fma(_mm256_castsi256_ps(_mm256_slli_epi32(weights, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), acc);
  return fma(_mm256_castsi256_ps(_mm256_and_si256(weights, high)),
             _mm256_castsi256_ps(_mm256_and_si256(a, high)), acc);
}
inline void store_bfloat16(uint16_t* p, Float v) {
  const Int bits = _mm256_castps_si256(v);
  const Int odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), int_splat(1));
  const Int high = _mm256_srli_epi32(int_add(int_add(bits, int_splat(0x7fff)), odd), 16);
  _mm_store_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(
      _mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

constexpr int kInt8Group = 2;
constexpr int kInt8Offset = 0;
inline Int dot_int8(Int acc, const uint8_t* w, Int a) {
  const Int weights = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w)));
  return int_add(acc, _mm256_madd_epi16(weights, a));
}
inline Int dot_int16(Int acc, const uint8_t* w, Int a) {
  const Int weights = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
  return int_add(acc, _mm256_madd_epi16(weights, a));
}
inline void store_int16(int16_t* p, Int v) {
  _mm_store_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(
      _mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
inline void store_quantised(void* p, int i, Int v) {
  store_int16(static_cast<int16_t*>(p) + i, v);
}

}  // namespace
