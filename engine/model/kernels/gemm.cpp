// Linear layers whose weights never change: packed once, multiplied by any number of rows.
//
// Layout and loop order follow Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication" (ACM TOMS 34(3), 2008): weights lie in panels of 32 outputs, so a panel streams
// from memory once and is used for all rows; up to 14 rows times 32 outputs stay in registers.
// float32 sums throughout; bfloat16 weights are multiplied in pairs (AVX512_BF16).
#include "parallel.h"
#include "simd.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TIERGATE_GEMM 1
#include <cstdlib>
#include <memory>
#endif

using namespace tiergate;

#ifdef TIERGATE_GEMM
namespace {

constexpr int kPanel = 32;  // outputs of one panel: two registers of 16 sums
constexpr int kRows = 14;   // 28 sums, two registers of weights, one of inputs: 31 of 32
constexpr int kAhead = 24;  // panel lines to fetch ahead while a panel streams from memory
constexpr int64_t kParallel = 8192;  // inner steps below which waking a second thread costs more

enum Epilogue { kPlain = 0, kSwiglu = 1 };

// One step of the inner loop takes 4 bytes of every row: one float or a pair of bfloat16.
inline int steps_of(int dtype, int inputs) { return dtype == 0 ? inputs : (inputs + 1) / 2; }

// Of gates and ups a panel holds 16 each, which makes just as many.
inline int panels_of(int outputs) { return (outputs + kPanel - 1) / kPanel; }

struct Job {
  int dtype, rows, inputs, outputs, epilogue;
  const void* x;
  int64_t x_stride;
  const uint32_t* weights;  // [panel][step][32]
  const void* bias;         // [outputs], in the order of the weights' rows, or null
  void* out;
  int64_t out_stride;
  int threads;
};

template <int D>
inline __m512 multiply_add(__m512 sum, __m512i weights, uint32_t x) {
  if constexpr (D == 0)
    return _mm512_fmadd_ps((__m512)weights, (__m512)_mm512_set1_epi32((int)x), sum);
#ifdef __AVX512BF16__
  else
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32((int)x));
#else
  return sum;
#endif
}

template <int D>
inline __m512 bias_of(const void* bias, int first, int count) {
  alignas(64) float b[16] = {};
  for (int i = 0; i < count; i++)
    b[i] = D == 0 ? ((const float*)bias)[first + i] : to_float(((const bf16*)bias)[first + i]);
  return _mm512_load_ps(b);
}

template <int D>
inline void store_masked(void* out, int64_t at, __m512 v, int count) {
  if (count <= 0) return;
  const __mmask16 mask = count >= 16 ? 0xffff : (__mmask16)((1 << count) - 1);
  if constexpr (D == 0) {
    _mm512_mask_storeu_ps((float*)out + at, mask, v);
  } else {
    bf16 half[16];
    store<16>(half, (F16)v);
    _mm256_mask_storeu_epi16((bf16*)out + at, mask, _mm256_loadu_si256((const __m256i*)half));
  }
}

// R rows times one panel. `next` is touched line by line, so that the following panel is in the
// second-level cache when its turn comes.
template <int D, int R>
void multiply(const Job& job, int panel, int row, const uint32_t* x, const char* next,
              int next_stride) {
  const int steps = steps_of(job.dtype, job.inputs);
  const uint32_t* w = job.weights + (int64_t)panel * steps * kPanel;
  __m512 a[R][2];
  for (int r = 0; r < R; r++) a[r][0] = a[r][1] = _mm512_setzero_ps();
  for (int s = 0; s < steps; s++) {
    const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 16);
    _mm_prefetch((const char*)(w + kAhead * 16), _MM_HINT_T0);
    _mm_prefetch((const char*)(w + kAhead * 16 + 16), _MM_HINT_T0);
    _mm_prefetch(next, _MM_HINT_T1);
    next += next_stride;
    for (int r = 0; r < R; r++) {
      a[r][0] = multiply_add<D>(a[r][0], w0, x[r]);
      a[r][1] = multiply_add<D>(a[r][1], w1, x[r]);
    }
    w += kPanel;
    x += R;
  }
  if (job.epilogue == kSwiglu) {
    const int first = panel * 16, width = job.outputs / 2, count = width - first;
    __m512 b0 = _mm512_setzero_ps(), b1 = b0;
    if (job.bias) {
      b0 = bias_of<D>(job.bias, first, count < 16 ? count : 16);
      b1 = bias_of<D>(job.bias, width + first, count < 16 ? count : 16);
    }
    for (int r = 0; r < R; r++) {
      const F16 gate = (F16)_mm512_add_ps(a[r][0], b0), up = (F16)_mm512_add_ps(a[r][1], b1);
      const F16 v = gate * sigmoid<16>(gate) * up;
      store_masked<D>(job.out, (row + r) * job.out_stride + first, (__m512)v, count);
    }
    return;
  }
  const int first = panel * kPanel, count = job.outputs - first;
  __m512 b0 = _mm512_setzero_ps(), b1 = b0;
  if (job.bias) {
    b0 = bias_of<D>(job.bias, first, count < 16 ? count : 16);
    b1 = bias_of<D>(job.bias, first + 16, count < 32 ? count - 16 : 16);
  }
  for (int r = 0; r < R; r++) {
    const int64_t at = (row + r) * job.out_stride + first;
    store_masked<D>(job.out, at, _mm512_add_ps(a[r][0], b0), count);
    store_masked<D>(job.out, at + 16, _mm512_add_ps(a[r][1], b1), count - 16);
  }
}

template <int D>
void multiply_rows(int rows, const Job& job, int panel, int row, const uint32_t* x,
                   const char* next, int next_stride) {
  switch (rows) {
#define TG_ROWS(n) \
  case n: multiply<D, n>(job, panel, row, x, next, next_stride); break;
    TG_ROWS(1) TG_ROWS(2) TG_ROWS(3) TG_ROWS(4) TG_ROWS(5) TG_ROWS(6) TG_ROWS(7)
    TG_ROWS(8) TG_ROWS(9) TG_ROWS(10) TG_ROWS(11) TG_ROWS(12) TG_ROWS(13) TG_ROWS(14)
#undef TG_ROWS
  }
}

// Rows [first, first + count) side by side: to[step][row]; an odd last input is paired with zero.
void pack_rows(const Job& job, int first, int count, uint32_t* to) {
  const int steps = steps_of(job.dtype, job.inputs), size = job.dtype == 0 ? 4 : 2;
  const int whole = job.inputs * size / 4;
  for (int r = 0; r < count; r++) {
    const char* x = (const char*)job.x + (first + r) * job.x_stride * size;
    for (int s = 0; s < whole; s++) memcpy(to + s * count + r, x + 4 * s, 4);
    if (whole < steps) {
      uint32_t last = 0;
      memcpy(&last, x + 4 * whole, 2);
      to[whole * count + r] = last;
    }
  }
}

// The rows' buffer belongs to the calling thread and grows to its largest call.
uint32_t* row_buffer(size_t words) {
  struct Free {
    void operator()(uint32_t* p) const { free(p); }
  };
  static thread_local std::unique_ptr<uint32_t, Free> buffer;
  static thread_local size_t size = 0;
  if (words > size) {
    buffer.reset((uint32_t*)aligned_alloc(64, (words * 4 + 63) / 64 * 64));
    size = buffer ? words : 0;
  }
  return buffer.get();
}

template <int D>
bool run(const Job& job) {
  const int steps = steps_of(job.dtype, job.inputs);
  const int panels = panels_of(job.outputs);
  const int blocks = (job.rows + kRows - 1) / kRows;
  uint32_t* packed = row_buffer((size_t)job.rows * steps);
  if (!packed) return false;
  const auto first_row = [&](int block) { return (int)((int64_t)job.rows * block / blocks); };
  // Few panels and many rows: split the rows too, so that every thread finds work.
  int groups = panels >= 8 * job.threads ? 1 : (8 * job.threads + panels - 1) / panels;
  if (groups > blocks) groups = blocks;
  if (blocks <= 4) groups = 1;
  const int64_t panel_bytes = (int64_t)steps * kPanel * 4;
  const int64_t work = (int64_t)job.rows * steps * panels;
  const int threads = work > kParallel ? job.threads : 1;
  parallel_for(blocks, blocks > 2 ? threads : 1, [&](int64_t b) {
    pack_rows(job, first_row(b), first_row(b + 1) - first_row(b),
              packed + (int64_t)first_row(b) * steps);
  });
  parallel_guided((int64_t)panels * groups, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int panel = (int)(i / groups), group = (int)(i % groups);
      const int from = blocks * group / groups, to = blocks * (group + 1) / groups;
      // The next panel is fetched in equal shares by the blocks of this one.
      const bool fetch = blocks > 1 && panel + 1 < panels;
      const char* w = (const char*)job.weights + panel * panel_bytes;
      for (int b = from; b < to; b++) {
        const char* next = fetch ? w + panel_bytes + panel_bytes * b / blocks : w;
        multiply_rows<D>(first_row(b + 1) - first_row(b), job, panel, first_row(b),
                         packed + (int64_t)first_row(b) * steps, next,
                         fetch ? 128 / (blocks > 128 ? 128 : blocks) : 0);
      }
    }
  });
  return true;
}

template <class T>
void pack_weights(const T* w, int outputs, int inputs, int epilogue, uint32_t* to, int threads) {
  constexpr int per_word = 4 / sizeof(T);
  const int steps = (inputs + per_word - 1) / per_word;
  const int panels = panels_of(outputs);
  parallel_for(panels, threads, [&](int64_t p) {
    uint32_t* panel = to + (int64_t)p * steps * kPanel;
    memset(panel, 0, (size_t)steps * kPanel * 4);
    for (int i = 0; i < kPanel; i++) {
      int row = (int)p * kPanel + i;
      bool exists = row < outputs;
      if (epilogue == kSwiglu) {  // 16 gates beside their 16 ups
        const int width = outputs / 2, column = (int)p * 16 + i % 16;
        row = i < 16 ? column : width + column;
        exists = column < width;
      }
      if (!exists) continue;
      const T* from = w + (int64_t)row * inputs;
      for (int k = 0; k < inputs; k++)
        memcpy((T*)(panel + (k / per_word) * kPanel + i) + k % per_word, from + k, sizeof(T));
    }
  });
}

}  // namespace
#endif  // TIERGATE_GEMM

extern "C" {

// True where this build's products of that type are worth using: float32 with AVX512, bfloat16 with
// AVX512_BF16 but not where AMX multiplies five times faster (oneDNN has kernels for that).
int tg_has_gemm(int dtype) {
#ifdef TIERGATE_GEMM
  if (dtype == 0) return 1;
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  return 1;
#endif
#endif
  (void)dtype;
  return 0;
}

#ifdef TIERGATE_GEMM

// 4-byte words that the packed weights take.
int64_t tg_gemm_packed_words(int dtype, int outputs, int inputs) {
  return (int64_t)panels_of(outputs) * steps_of(dtype, inputs) * kPanel;
}

// weights [outputs, inputs], contiguous; `packed` 64-byte aligned. With epilogue 1 the first half
// of the outputs are gates and the second half ups.
void tg_gemm_pack(int dtype, const void* weights, int outputs, int inputs, int epilogue,
                  uint32_t* packed, int threads) {
  if (dtype == 0)
    pack_weights((const float*)weights, outputs, inputs, epilogue, packed, threads);
  else
    pack_weights((const bf16*)weights, outputs, inputs, epilogue, packed, threads);
}

// out[r] = x[r] W^T + bias, or silu(gate) * up of it; strides in elements. Returns 0, or 1 if there
// was no memory for the packed rows.
int tg_gemm(int dtype, const void* x, int64_t x_stride, int rows, int inputs,
            const uint32_t* packed, int outputs, const void* bias, void* out, int64_t out_stride,
            int epilogue, int threads) {
  if (rows == 0) return 0;
  const Job job{dtype, rows, inputs, outputs, epilogue,   x,      x_stride,
                packed, bias, out,    out_stride, threads};
  return (dtype == 0 ? run<0>(job) : run<1>(job)) ? 0 : 1;
}

#endif
}  // extern "C"
