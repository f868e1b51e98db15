// The greedy choice: each row's largest logit; NaN counts as larger than any number.
#include "parallel.h"
#include "simd.h"

using namespace tiergate;

namespace {

template <class T>
int64_t argmax(const T* x, int width) {
  F16 top = splat<16>(-INFINITY);
  Vec<16>::I odd{};
  int c = 0;
  for (; c + 16 <= width; c += 16) {
    F16 v = load<16>(x + c);
    odd |= v != v;
    top = larger(v, top);
  }
  bool has_nan = any<16>(odd);
  float best = largest(top);
  for (; c < width; c++) {
    float v = to_float(x[c]);
    has_nan |= v != v;
    best = v > best ? v : best;
  }
  for (c = 0; c + 16 <= width; c += 16) {
    F16 v = load<16>(x + c);
    if (any<16>(has_nan ? v != v : v == best)) break;
  }
  for (; c < width; c++) {
    float v = to_float(x[c]);
    if (has_nan ? v != v : v == best) return c;
  }
  return 0;
}

}  // namespace

extern "C" void tg_argmax_rows(int dtype, const void* x, int64_t stride, int64_t rows, int width,
                               int64_t* out, int threads) {
  parallel_for(rows, threads, [&](int64_t r) {
    out[r] = dtype == 0 ? argmax((const float*)x + r * stride, width)
                        : argmax((const bf16*)x + r * stride, width);
  });
}
