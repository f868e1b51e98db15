// The two products of attention over a chunk of keys, for each kind of arithmetic a CPU offers.
//
// A "column" is one query row (one head of one token); a work item has up to 32 columns of one
// sequence and one KV head. A policy below says how queries are laid out, how keys are scored and
// how values are summed; the softmax between them is attention.cpp's.
#pragma once

#include "simd.h"

namespace tiergate {

constexpr int kChunk = 64;        // keys between two updates of the running maxima
constexpr int kMaxColumns = 32;   // query rows of one work item
constexpr int kMaxHeadDim = 256;
#ifdef __AVX512F__
constexpr int kColumnTile = 7, kVectorTile = 4;  // 28 accumulators of 32 registers
#else
constexpr int kColumnTile = 3, kVectorTile = 2;
#endif

// Buffers of one thread.
struct alignas(64) Scratch {
  uint32_t queries[kMaxHeadDim * kMaxColumns];
  float scores[kChunk * kMaxColumns];             // [key][column]
  uint32_t weights[kChunk / 2 * kMaxColumns];     // bfloat16 weights of two keys per word
  float sums[kMaxColumns * kMaxHeadDim];          // [column][dim], not yet divided
  float keys[kChunk * kMaxHeadDim];               // rows turned into float32
  float values[kChunk * kMaxHeadDim];             // the same, or pairs of bfloat16 rows
  float maxima[kMaxColumns], totals[kMaxColumns];
  int32_t ends[kMaxColumns];                      // first key position a column must not see
};

// What a policy is given for one chunk: n keys, their rows, how many columns count.
struct ChunkView {
  int n, columns, dim;
};

// scores[8][W * C] = the dot products of eight key rows with W * C float32 columns.
template <int W, int C>
inline void score_8_f32(const float* const* rows, const float* queries, int dim, float* scores) {
  using F = typename Vec<W>::F;
  F a[8][C] = {};
  const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
  const float *r4 = rows[4], *r5 = rows[5], *r6 = rows[6], *r7 = rows[7];
  for (int d = 0; d < dim; d++) {
    for (int c = 0; c < C; c++) {
      F q = load<W>(queries + (d * C + c) * W);
      a[0][c] += q * r0[d];
      a[1][c] += q * r1[d];
      a[2][c] += q * r2[d];
      a[3][c] += q * r3[d];
      a[4][c] += q * r4[d];
      a[5][c] += q * r5[d];
      a[6][c] += q * r6[d];
      a[7][c] += q * r7[d];
    }
  }
  for (int t = 0; t < 8; t++)
    for (int c = 0; c < C; c++) store<W>(scores + (t * C + c) * W, a[t][c]);
}

// sums[NC][16 * NV] += weights^T values over n keys; weights [key][stride].
template <int NC, int NV>
inline void add_values_f32(float* sums, int dim, const float* weights, int stride,
                           const float* const* rows, int first, int n) {
  F16 a[NC][NV];
  for (int c = 0; c < NC; c++)
    for (int v = 0; v < NV; v++) a[c][v] = load<16>(sums + c * dim + 16 * v);
  for (int t = 0; t < n; t++) {
    const float* row = rows[t] + first;
    for (int v = 0; v < NV; v++) {
      F16 x = load<16>(row + 16 * v);
      for (int c = 0; c < NC; c++) a[c][v] += x * weights[t * stride + c];
    }
  }
  for (int c = 0; c < NC; c++)
    for (int v = 0; v < NV; v++) store<16>(sums + c * dim + 16 * v, a[c][v]);
}

// Calls f<NC, NV>(first column, first dim) over tiles that cover all columns and dims.
template <int NC, class F>
inline void over_dims(int column, int dim, F f) {
  int d = 0;
  if constexpr (kVectorTile == 4)
    for (; d + 64 <= dim; d += 64) f.template run<NC, 4>(column, d);
  for (; d + 32 <= dim; d += 32) f.template run<NC, 2>(column, d);
  for (; d + 16 <= dim; d += 16) f.template run<NC, 1>(column, d);
}

template <class F>
inline void over_tiles(int columns, int dim, F f) {
  int tiles = (columns + kColumnTile - 1) / kColumnTile;
  for (int i = 0; i < tiles; i++) {
    int first = columns * i / tiles, count = columns * (i + 1) / tiles - first;
    switch (count) {
      case 1: over_dims<1>(first, dim, f); break;
      case 2: over_dims<2>(first, dim, f); break;
      case 3: over_dims<3>(first, dim, f); break;
#ifdef __AVX512F__
      case 4: over_dims<4>(first, dim, f); break;
      case 5: over_dims<5>(first, dim, f); break;
      case 6: over_dims<6>(first, dim, f); break;
      case 7: over_dims<7>(first, dim, f); break;
#endif
    }
  }
}

// float32 keys and values.
struct Float32 {
  using Element = float;
  static constexpr int kAlign = 1;        // keys of a chunk may begin anywhere
  static constexpr bool kPaired = false;  // weights stay float32, one per key

  static void begin_thread() {}
  static void end_thread() {}

  template <int W, int C>
  static void pack(Scratch& s, int column, const float* q, int dim) {
    float* to = (float*)s.queries;
    for (int d = 0; d < dim; d++) to[d * W * C + column] = q[d];
  }

  template <int W, int C>
  static void score(Scratch& s, const float* const* rows, ChunkView v) {
    for (int t = 0; t < v.n; t += 8)
      score_8_f32<W, C>(rows + t, (const float*)s.queries, v.dim, s.scores + t * W * C);
  }

  struct AddValues {
    Scratch& s;
    const float* const* rows;
    ChunkView v;
    int stride;
    template <int NC, int NV>
    void run(int column, int d) const {
      add_values_f32<NC, NV>(s.sums + column * v.dim + d, v.dim, s.scores + column, stride, rows,
                             d, v.n);
    }
  };

  template <int W, int C>
  static void add_values(Scratch& s, const float* const* rows, ChunkView v) {
    over_tiles(v.columns, v.dim, AddValues{s, rows, v, W * C});
  }
};

// bfloat16 keys and values on a CPU without bfloat16 products: widened chunk by chunk.
struct WideBf16 {
  using Element = bf16;
  static constexpr int kAlign = 1;
  static constexpr bool kPaired = false;

  static void begin_thread() {}
  static void end_thread() {}

  template <int W, int C>
  static void pack(Scratch& s, int column, const bf16* q, int dim) {
    float* to = (float*)s.queries;
    for (int d = 0; d < dim; d++) to[d * W * C + column] = to_float(q[d]);
  }

  static void widen(float* to, const float** wide, const bf16* const* rows, int n, int dim) {
    for (int t = 0; t < n; t++) {
      wide[t] = to + t * dim;
      for (int d = 0; d < dim; d += 16) store<16>(to + t * dim + d, load<16>(rows[t] + d));
    }
  }

  template <int W, int C>
  static void score(Scratch& s, const bf16* const* rows, ChunkView v) {
    const float* wide[kChunk];
    widen(s.keys, wide, rows, (v.n + 7) & ~7, v.dim);
    Float32::score<W, C>(s, wide, v);
  }

  template <int W, int C>
  static void add_values(Scratch& s, const bf16* const* rows, ChunkView v) {
    const float* wide[kChunk];
    widen(s.values, wide, rows, v.n, v.dim);
    Float32::add_values<W, C>(s, wide, v);
  }
};

#ifdef __AVX512BF16__

template <int W>
inline typename Vec<W>::F dot_pairs(typename Vec<W>::F sum, const uint32_t* q, uint32_t k) {
  if constexpr (W == 16)
    return (F16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(q),
                                 (__m512bh)_mm512_set1_epi32((int)k));
  else
    return (typename Vec<W>::F)_mm256_dpbf16_ps(
        (__m256)sum, (__m256bh)_mm256_loadu_si256((const __m256i*)q),
        (__m256bh)_mm256_set1_epi32((int)k));
}

// As score_8_f32; `pairs` is half the head size. Odd and even pairs are summed apart where there
// are too few columns to keep the multipliers busy.
template <int W, int C>
inline void score_8_bf16(const bf16* const* rows, const uint32_t* queries, int pairs,
                         float* scores) {
  using F = typename Vec<W>::F;
  constexpr int U = C == 1 ? 2 : 1;
  F a[U][8][C] = {};
  const char *r0 = (const char*)rows[0], *r1 = (const char*)rows[1], *r2 = (const char*)rows[2],
             *r3 = (const char*)rows[3], *r4 = (const char*)rows[4], *r5 = (const char*)rows[5],
             *r6 = (const char*)rows[6], *r7 = (const char*)rows[7];
#define TG_DOT(t)                                                    \
  {                                                                  \
    uint32_t k;                                                      \
    memcpy(&k, r##t + 4 * (p + u), 4);                               \
    for (int c = 0; c < C; c++)                                      \
      a[u][t][c] = dot_pairs<W>(a[u][t][c], q + c * W, k);           \
  }
  for (int64_t p = 0; p < pairs; p += U)
    for (int u = 0; u < U; u++) {
      const uint32_t* q = queries + (p + u) * C * W;
      TG_DOT(0) TG_DOT(1) TG_DOT(2) TG_DOT(3) TG_DOT(4) TG_DOT(5) TG_DOT(6) TG_DOT(7)
    }
#undef TG_DOT
  for (int t = 0; t < 8; t++)
    for (int c = 0; c < C; c++) {
      F total = a[0][t][c];
      if constexpr (U == 2) total += a[1][t][c];
      store<W>(scores + (t * C + c) * W, total);
    }
}

template <int NC, int NV>
inline void add_values_bf16(float* sums, int dim, const uint32_t* weights, int stride,
                            const uint32_t* values, int pairs) {
  __m512 a[NC][NV];
  for (int c = 0; c < NC; c++)
    for (int v = 0; v < NV; v++) a[c][v] = _mm512_loadu_ps(sums + c * dim + 16 * v);
  for (int t = 0; t < pairs; t++) {
    __m512bh x[NV];
    for (int v = 0; v < NV; v++) x[v] = (__m512bh)_mm512_load_si512(values + t * dim + 16 * v);
    for (int c = 0; c < NC; c++) {
      __m512bh w = (__m512bh)_mm512_set1_epi32((int)weights[t * stride + c]);
      for (int v = 0; v < NV; v++) a[c][v] = _mm512_dpbf16_ps(a[c][v], x[v], w);
    }
  }
  for (int c = 0; c < NC; c++)
    for (int v = 0; v < NV; v++) _mm512_storeu_ps(sums + c * dim + 16 * v, a[c][v]);
}

// values[pair][dim] = the rows of keys 2 * pair and 2 * pair + 1, element by element; a missing
// last row counts as zero.
inline void pair_rows(uint32_t* values, const bf16* const* rows, int n, int dim) {
  for (int t = 0; t < n; t += 2) {
    uint32_t* to = values + t / 2 * dim;
    const bool lone = t + 1 == n;
    for (int d = 0; d < dim; d += 16) {
      __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows[t] + d)));
      __m512i high = lone ? _mm512_setzero_si512()
                          : _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
                                                  (const __m256i*)(rows[t + 1] + d))),
                                              16);
      _mm512_store_si512(to + d, _mm512_or_si512(low, high));
    }
  }
}

// bfloat16 products of AVX512_BF16: two keys or two dims at a time, summed in float32.
struct DotBf16 {
  using Element = bf16;
  static constexpr int kAlign = 1;
  static constexpr bool kPaired = true;

  static void begin_thread() {}
  static void end_thread() {}

  template <int W, int C>
  static void pack(Scratch& s, int column, const bf16* q, int dim) {
    for (int d = 0; d < dim; d += 2) memcpy(s.queries + d / 2 * W * C + column, q + d, 4);
  }

  template <int W, int C>
  static void score(Scratch& s, const bf16* const* rows, ChunkView v) {
    for (int t = 0; t < v.n; t += 8)
      score_8_bf16<W, C>(rows + t, s.queries, v.dim / 2, s.scores + t * W * C);
  }

  struct AddValues {
    Scratch& s;
    ChunkView v;
    int stride;
    template <int NC, int NV>
    void run(int column, int d) const {
      add_values_bf16<NC, NV>(s.sums + column * v.dim + d, v.dim, s.weights + column, stride,
                              (const uint32_t*)s.values + d, (v.n + 1) / 2);
    }
  };

  template <int W, int C>
  static void add_values(Scratch& s, const bf16* const* rows, ChunkView v) {
    pair_rows((uint32_t*)s.values, rows, v.n, v.dim);
    over_tiles(v.columns, v.dim, AddValues{s, v, W * C});
  }
};

#endif  // __AVX512BF16__

}  // namespace tiergate
