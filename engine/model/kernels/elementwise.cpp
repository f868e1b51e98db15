// RMSNorm, SwiGLU, rotary embedding with the write to the KV pools: all that is no matrix product.
//
// Rows are independent and computed in float32 whatever their type is. It knows pools and slots as
// addresses, not who owns them. `dtype` is 0 for float, 1 for bfloat16, everywhere.
#include "parallel.h"
#include "simd.h"

using namespace tiergate;

namespace {

constexpr int64_t kParallel = 16384;  // elements below which waking a second thread costs more

template <class T>
void rms_norm(T* out, const T* x, int64_t x_stride, T* residual, const T* weight, float eps,
              int64_t rows, int width, int threads) {
  const bool is_small = rows * width <= kParallel;
  parallel_pieces(rows, threads, is_small, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* in = x + r * x_stride;
      T* o = out + r * width;
      F16 squares{};
      float tail = 0;
      int c = 0;
      if (residual) {
        T* res = residual + r * width;
        for (; c + 16 <= width; c += 16) {
          store<16>(res + c, load<16>(in + c) + load<16>(res + c));
          F16 v = load<16>(res + c);  // as rounded: what the next layer will read
          squares += v * v;
        }
        for (; c < width; c++) {
          res[c] = from_float<T>(to_float(in[c]) + to_float(res[c]));
          tail += to_float(res[c]) * to_float(res[c]);
        }
        in = res;
      } else {
        for (; c + 16 <= width; c += 16) {
          F16 v = load<16>(in + c);
          squares += v * v;
        }
        for (; c < width; c++) tail += to_float(in[c]) * to_float(in[c]);
      }
      float scale = 1.0f / sqrtf((sum(squares) + tail) / (float)width + eps);
      for (c = 0; c + 16 <= width; c += 16)
        store<16>(o + c, load<16>(in + c) * scale * load<16>(weight + c));
      for (; c < width; c++) o[c] = from_float<T>(to_float(in[c]) * scale * to_float(weight[c]));
    }
  });
}

template <class T>
void silu_mul(T* out, const T* gate, const T* up, int64_t in_stride, int64_t rows, int width,
              int threads) {
  const bool is_small = rows * width <= kParallel;
  parallel_pieces(rows, threads, is_small, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T *g = gate + r * in_stride, *u = up + r * in_stride;
      T* o = out + r * width;
      int c = 0;
      for (; c + 16 <= width; c += 16) {
        F16 x = load<16>(g + c);
        store<16>(o + c, x * sigmoid<16>(x) * load<16>(u + c));
      }
      for (; c < width; c++) {
        float x = to_float(g[c]);
        o[c] = from_float<T>(x / (1.0f + expf(-x)) * to_float(u[c]));
      }
    }
  });
}

struct Heads {
  int q, kv, dim;
};

// One head: optional RMSNorm, then the rotation of (x[i], x[i + dim/2]) by the position's angles.
template <class T>
inline void rotate(T* dst, const T* x, const float* cosine, const float* sine, int half,
                   const T* norm, float eps) {
  float scale = 1.0f;
  if (norm) {
    float squares = 0;
    F16 part{};
    int i = 0;
    for (; i + 16 <= 2 * half; i += 16) {
      F16 v = load<16>(x + i);
      part += v * v;
    }
    for (; i < 2 * half; i++) squares += to_float(x[i]) * to_float(x[i]);
    scale = 1.0f / sqrtf((squares + sum(part)) / (float)(2 * half) + eps);
  }
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    F16 a = load<16>(x + i), b = load<16>(x + half + i);
    if (norm) {
      a = a * scale * load<16>(norm + i);
      b = b * scale * load<16>(norm + half + i);
    }
    F16 c = load<16>(cosine + i), s = load<16>(sine + i);
    store<16>(dst + i, a * c - b * s);
    store<16>(dst + half + i, b * c + a * s);
  }
  for (; i < half; i++) {
    float a = to_float(x[i]), b = to_float(x[half + i]);
    if (norm) {
      a *= scale * to_float(norm[i]);
      b *= scale * to_float(norm[half + i]);
    }
    dst[i] = from_float<T>(a * cosine[i] - b * sine[i]);
    dst[half + i] = from_float<T>(b * cosine[i] + a * sine[i]);
  }
}

template <class T>
void rope_write(T* qkv, int64_t stride, int64_t rows, Heads heads, const float* angles,
                const int64_t* positions, const T* q_norm, const T* k_norm, float eps, T* keys,
                T* values, const int64_t* slots, int threads) {
  const int dim = heads.dim, half = dim / 2;
  const bool is_small = rows * stride <= kParallel;
  parallel_pieces(rows, threads, is_small, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      T* row = qkv + r * stride;
      const float *cosine = angles + positions[r] * dim, *sine = cosine + half;
      T* key = keys + slots[r] * heads.kv * dim;
      for (int h = 0; h < heads.q; h++)
        rotate(row + h * dim, row + h * dim, cosine, sine, half, q_norm, eps);
      row += heads.q * dim;
      for (int h = 0; h < heads.kv; h++)
        rotate(key + h * dim, row + h * dim, cosine, sine, half, k_norm, eps);
      row += heads.kv * dim;
      memcpy(values + slots[r] * heads.kv * dim, row, (size_t)heads.kv * dim * sizeof(T));
    }
  });
}

}  // namespace

extern "C" {

void tg_rms_norm(int dtype, void* out, const void* x, int64_t x_stride, void* residual,
                 const void* weight, float eps, int64_t rows, int width, int threads) {
  if (dtype == 0)
    rms_norm((float*)out, (const float*)x, x_stride, (float*)residual, (const float*)weight, eps,
             rows, width, threads);
  else
    rms_norm((bf16*)out, (const bf16*)x, x_stride, (bf16*)residual, (const bf16*)weight, eps, rows,
             width, threads);
}

void tg_silu_mul(int dtype, void* out, const void* gate, const void* up, int64_t in_stride,
                 int64_t rows, int width, int threads) {
  if (dtype == 0)
    silu_mul((float*)out, (const float*)gate, (const float*)up, in_stride, rows, width, threads);
  else
    silu_mul((bf16*)out, (const bf16*)gate, (const bf16*)up, in_stride, rows, width, threads);
}

// qkv [rows, stride]: q heads are rotated in place, k heads into `keys`, v heads go to `values`,
// both [slot, kv heads, dim]; angles [position, dim] hold cosines, then sines. Norms may be null.
void tg_rope_write(int dtype, void* qkv, int64_t stride, int64_t rows, int q_heads, int kv_heads,
                   int dim, const float* angles, const int64_t* positions, const void* q_norm,
                   const void* k_norm, float eps, void* keys, void* values, const int64_t* slots,
                   int threads) {
  Heads heads{q_heads, kv_heads, dim};
  if (dtype == 0)
    rope_write((float*)qkv, stride, rows, heads, angles, positions, (const float*)q_norm,
               (const float*)k_norm, eps, (float*)keys, (float*)values, slots, threads);
  else
    rope_write((bf16*)qkv, stride, rows, heads, angles, positions, (const bf16*)q_norm,
               (const bf16*)k_norm, eps, (bf16*)keys, (bf16*)values, slots, threads);
}

// k, v [rows, heads, dim] with strides in elements, dim's being 1, to their slots in the pools.
void tg_write_kv(int item_size, int64_t rows, int heads, int dim, const char* k, int64_t k_row,
                 int64_t k_head, const char* v, int64_t v_row, int64_t v_head, char* keys,
                 char* values, const int64_t* slots) {
  const int64_t head_bytes = (int64_t)dim * item_size, row_bytes = heads * head_bytes;
  for (int64_t r = 0; r < rows; r++)
    for (int h = 0; h < heads; h++) {
      int64_t to = slots[r] * row_bytes + h * head_bytes;
      memcpy(keys + to, k + (r * k_row + h * k_head) * item_size, head_bytes);
      memcpy(values + to, v + (r * v_row + h * v_head) * item_size, head_bytes);
    }
}

}  // extern "C"
