// Vectors of 16 floats: AVX-512 F, BW, DQ, VL; VNNI and BF16 where the unit is compiled with them.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

using Float = __m512;
using Int = __m512i;
constexpr int kWidth = 16;
constexpr int kTile1 = 8, kTile2 = 8, kTile4 = 4;  // row vectors held in registers by streams

inline Float load(const float* p) { return _mm512_load_ps(p); }
inline Float load_any(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float v) { _mm512_store_ps(p, v); }
inline void store_any(float* p, Float v) { _mm512_storeu_ps(p, v); }
inline Float splat(float v) { return _mm512_set1_ps(v); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
inline Float reciprocal(Float v) { return _mm512_rcp14_ps(v); }  // relative error 2**-14
inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
// The second operand is returned if one is NaN: NaN in `v` passes through.
inline Float clamp(Float v, Float lo, Float hi) {
  return _mm512_min_ps(hi, _mm512_max_ps(lo, v));
}
inline Float relu(Float v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }
inline Float round_even(Float v) { return _mm512_roundscale_ps(v, 8); }
inline Float scale_by_power(Float v, Float n) { return _mm512_scalef_ps(v, n); }
inline Float max_abs(Float a, Float v) { return _mm512_max_ps(a, _mm512_abs_ps(v)); }
inline float reduce_max(Float v) { return _mm512_reduce_max_ps(v); }
inline Int int_zero() { return _mm512_setzero_si512(); }
inline Int int_splat(int32_t v) { return _mm512_set1_epi32(v); }
inline Int int_add(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int int_sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
inline int32_t int_reduce(Int v) { return _mm512_reduce_add_epi32(v); }
inline Int to_int(Float v) { return _mm512_cvtps_epi32(v); }
inline Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
inline void relax() { _mm_pause(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// A group of activations is 4 bytes: one float, two bfloat16, two int16 or four int8.
inline Int group(const void* activations, int g) {
  int32_t bits;
  memcpy(&bits, static_cast<const uint8_t*>(activations) + 4 * g, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline Float dot_float(Float acc, const uint8_t* w, Int a) {
  return fma(_mm512_load_ps(w), _mm512_castsi512_ps(a), acc);
}

constexpr bool kHalves = true;
inline Float dot_half(Float acc, const uint8_t* w, Int a) {
  const __m256i halves = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
  return fma(_mm512_cvtph_ps(halves), _mm512_castsi512_ps(a), acc);
}

#ifdef __AVX512BF16__
inline Float dot_bfloat16(Float acc, const uint8_t* w, Int a) {
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_load_si512(w), (__m512bh)a);
}
inline void store_bfloat16(uint16_t* p, Float v) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
#else
inline Float dot_bfloat16(Float acc, const uint8_t* w, Int a) {
  const Int high = int_splat(static_cast<int32_t>(0xffff0000u));
  const Int weights = _mm512_load_si512(w);
  acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(weights, 16)),
            _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), acc);
  return fma(_mm512_castsi512_ps(_mm512_and_si512(weights, high)),
             _mm512_castsi512_ps(_mm512_and_si512(a, high)), acc);
}
inline void store_bfloat16(uint16_t* p, Float v) {  // round to nearest even
  const Int bits = _mm512_castps_si512(v);
  const Int odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), int_splat(1));
  const Int rounded = int_add(int_add(bits, int_splat(0x7fff)), odd);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p),
                     _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#endif

inline void store_int16(int16_t* p, Int v) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(v));
}

#ifdef __AVX512VNNI__
// Weights are stored + 128 as unsigned bytes, activations are signed; the caller subtracts
// 128 * sum(activations).
constexpr int kInt8Group = 4;
constexpr int kInt8Offset = 128;
// Written out because GCC 12 copies every accumulator around the intrinsic, a tenth of the speed.
inline Int dot_int8(Int acc, const uint8_t* w, Int a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(_mm512_load_si512(w)), "v"(a));
  return acc;
}
inline Int dot_int16(Int acc, const uint8_t* w, Int a) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(_mm512_load_si512(w)), "v"(a));
  return acc;
}
inline void store_quantised(void* p, int i, Int v) {
  _mm_store_si128(reinterpret_cast<__m128i*>(static_cast<int8_t*>(p) + i),
                  _mm512_cvtsepi32_epi8(v));
}
#else
constexpr int kInt8Group = 2;
constexpr int kInt8Offset = 0;
inline Int dot_int8(Int acc, const uint8_t* w, Int a) {
  const Int weights = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i*)w));
  return int_add(acc, _mm512_madd_epi16(weights, a));
}
inline Int dot_int16(Int acc, const uint8_t* w, Int a) {
  return int_add(acc, _mm512_madd_epi16(_mm512_load_si512(w), a));
}
inline void store_quantised(void* p, int i, Int v) {
  store_int16(static_cast<int16_t*>(p) + i, v);
}
#endif

}  // namespace
