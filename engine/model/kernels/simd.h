// Vectors of 8 or 16 floats, bfloat16 conversion and exp; it knows no tensor and no thread.
//
// Written with GCC's vector extensions, so the same source runs on AVX2 or NEON; intrinsics stand
// only where the compiler cannot find the instruction by itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace tiergate {

using bf16 = uint16_t;  // the upper half of a float

template <int W>
struct Vec {
  typedef float F __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
  typedef uint32_t U __attribute__((vector_size(W * 4)));
  typedef uint16_t H __attribute__((vector_size(W * 2)));
};
using F16 = Vec<16>::F;

template <int W>
inline typename Vec<W>::F splat(float x) {
  return typename Vec<W>::F{} + x;
}

template <int W>
inline typename Vec<W>::F load(const float* p) {
  typename Vec<W>::F v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <int W>
inline typename Vec<W>::F load(const bf16* p) {
  typename Vec<W>::H h;
  memcpy(&h, p, sizeof h);
  typename Vec<W>::U u = __builtin_convertvector(h, typename Vec<W>::U) << 16;
  return (typename Vec<W>::F)u;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return 0x7fc0;
  return (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

template <int W>
inline void store(float* p, typename Vec<W>::F v) {
  memcpy(p, &v, sizeof v);
}

template <int W>
inline void store(bf16* p, typename Vec<W>::F v) {
#ifdef __AVX512BF16__
  if constexpr (W == 16) {
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, sizeof h);
    return;
  }
#endif
  typename Vec<W>::U u = (typename Vec<W>::U)v;
  typename Vec<W>::U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  u = v == v ? rounded : (typename Vec<W>::U){} + 0x7fc0u;
  typename Vec<W>::H h = __builtin_convertvector(u, typename Vec<W>::H);
  memcpy(p, &h, sizeof h);
}

// Where x is NaN the result is `other`, where other is NaN it is NaN.
template <class V>
inline V larger(V x, V other) {
  return x > other ? x : other;
}

inline float sum(F16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
#endif
}

inline float largest(F16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)v);
#else
  float m = v[0];
  for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// One bit per lane, set where the mask's lane is.
inline uint32_t lanes(Vec<16>::I mask) {
#ifdef __AVX512DQ__
  return _mm512_movepi32_mask((__m512i)mask);
#else
  uint32_t bits = 0;
  for (int i = 0; i < 16; i++) bits |= (uint32_t)(mask[i] != 0) << i;
  return bits;
#endif
}

template <int W>
inline bool any(typename Vec<W>::I mask) {
  if constexpr (W == 16) return lanes(mask) != 0;
  int32_t seen = 0;
  for (int i = 0; i < W; i++) seen |= mask[i];
  return seen != 0;
}

// 2^x to 2e-7 relative, for x <= 127; below -126 it is 2^-126; NaN stays NaN.
// 2^f on [-1/2, 1/2] is the Taylor series of exp(f ln 2) up to f^6.
template <int W>
inline typename Vec<W>::F exp2(typename Vec<W>::F x) {
  using F = typename Vec<W>::F;
  using I = typename Vec<W>::I;
  x = x < -126.0f ? splat<W>(-126.0f) : x;
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  F shifted = x + to_integer;
  F n = shifted - to_integer;
  F f = x - n;
  F p = splat<W>(1.5403530393e-4f);
  p = p * f + 1.3333558146e-3f;
  p = p * f + 9.6181291076e-3f;
  p = p * f + 5.5504108665e-2f;
  p = p * f + 2.4022650696e-1f;
  p = p * f + 6.9314718056e-1f;
  p = p * f + 1.0f;
  // The integer sits in the low mantissa bits of `shifted`; moved to the exponent it scales p.
  I scaled = (I)p + ((I)shifted << 23);
  return x == x ? (F)scaled : x;
}

template <int W>
inline typename Vec<W>::F sigmoid(typename Vec<W>::F x) {
  typename Vec<W>::F e = x * -1.44269504f;
  e = exp2<W>(e > 126.0f ? splat<W>(126.0f) : e);
  return 1.0f / (1.0f + e);
}

}  // namespace tiergate
