// A whole stack of Llama-like decoder layers in one call, for models so small that the way from
// Python to each kernel costs more than the kernel. It adds no arithmetic of its own.
#include <cstdint>
#include <cstring>

extern "C" {
void tg_rms_norm(int dtype, void* out, const void* x, int64_t x_stride, void* residual,
                 const void* weight, float eps, int64_t rows, int width, int threads);
void tg_rope_write(int dtype, void* qkv, int64_t stride, int64_t rows, int q_heads, int kv_heads,
                   int dim, const float* angles, const int64_t* positions, const void* q_norm,
                   const void* k_norm, float eps, void* keys, void* values, const int64_t* slots,
                   int threads);
int tg_paged_attention(int dtype, int arithmetic, void* out, const void* q, int64_t q_row,
                       int64_t q_head, int q_heads, int kv_heads, int dim, const void* keys,
                       const void* values, const int32_t* tables, int64_t table_stride,
                       int block_size, const int32_t* first_row, const int32_t* contexts,
                       int sequences, float scale, float softcap, int window, int threads);
int tg_gemm(int dtype, const void* x, int64_t x_stride, int rows, int inputs,
            const uint32_t* packed, int outputs, const void* bias, void* out, int64_t out_stride,
            int epilogue, int threads);
int tg_has_gemm(int dtype);
}

namespace {

// These five mirror the ctypes structures of native_decoder.py, field by field.
struct Product {
  const uint32_t* packed;
  const void* bias;  // or null
};

struct Layer {
  const void *input_norm, *post_norm;
  const void *q_norm, *k_norm;  // or null
  Product qkv, output, gate_up, down;
  void *keys, *values;
  int64_t window;  // 0: none
};

struct Model {
  const Layer* layers;
  const float* angles;
  const void* final_norm;
  int32_t count, dtype, hidden, intermediate, q_heads, kv_heads, dim;
  float eps, qk_eps, scale;
};

// Chunks as attention sees them; for the last layer those of the sampled rows alone.
struct View {
  const int32_t *tables, *first_row, *contexts;
  int64_t table_stride, sequences;
};

struct Step {
  const int64_t *positions, *slots;
  const int64_t* sampled;  // ascending rows to go on with in the last layer
  View every, alone;
  int64_t rows, num_sampled, block_size;
  // Buffers of `rows` rows. `residual` holds the embeddings, `h` the result's rows at the end.
  char *residual, *h, *qkv, *mixed, *gated, *x;
};

// Moves rows to the front; they are ascending, so none is overwritten before it was moved.
void keep(char* buffer, int64_t row_bytes, const Step& step) {
  for (int64_t i = 0; i < step.num_sampled; i++)
    memmove(buffer + i * row_bytes, buffer + step.sampled[i] * row_bytes, row_bytes);
}

}  // namespace

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

// Returns 0; anything else is the code of the kernel that failed.
extern "C" int tg_decode(const Model* model, const Step* given, int threads) {
  const Model& m = *model;
  const Step& s = *given;
  const int dt = m.dtype, q_width = m.q_heads * m.dim, kv_width = m.kv_heads * m.dim;
  const int qkv_width = q_width + 2 * kv_width;
  const int64_t item = dt == 0 ? 4 : 2;
  int64_t rows = s.rows;
  const View* view = &s.every;
  for (int i = 0; i < m.count; i++) {
    const Layer& layer = m.layers[i];
    const void* in = i == 0 ? s.residual : s.x;
    tg_rms_norm(dt, s.h, in, m.hidden, i == 0 ? nullptr : s.residual, layer.input_norm, m.eps, rows,
                m.hidden, threads);
    int error = tg_gemm(dt, s.h, m.hidden, (int)rows, m.hidden, layer.qkv.packed, qkv_width,
                        layer.qkv.bias, s.qkv, qkv_width, 0, threads);
    tg_rope_write(dt, s.qkv, qkv_width, rows, m.q_heads, m.kv_heads, m.dim, m.angles, s.positions,
                  layer.q_norm, layer.k_norm, m.qk_eps, layer.keys, layer.values, s.slots, threads);
    if (i == m.count - 1 && s.num_sampled < s.rows) {
      // Nobody reads the last layer's other rows: only their keys and values count.
      keep(s.qkv, qkv_width * item, s);
      keep(s.residual, m.hidden * item, s);
      rows = s.num_sampled;
      view = &s.alone;
    }
    error |= tg_paged_attention(dt, 0, s.mixed, s.qkv, qkv_width, m.dim, m.q_heads, m.kv_heads,
                                m.dim, layer.keys, layer.values, view->tables, view->table_stride,
                                (int)s.block_size, view->first_row, view->contexts,
                                (int)view->sequences, m.scale, 0.0f, (int)layer.window, threads);
    error |= tg_gemm(dt, s.mixed, q_width, (int)rows, q_width, layer.output.packed, m.hidden,
                     layer.output.bias, s.x, m.hidden, 0, threads);
    tg_rms_norm(dt, s.h, s.x, m.hidden, s.residual, layer.post_norm, m.eps, rows, m.hidden,
                threads);
    error |= tg_gemm(dt, s.h, m.hidden, (int)rows, m.hidden, layer.gate_up.packed,
                     2 * m.intermediate, layer.gate_up.bias, s.gated, m.intermediate, 1, threads);
    error |= tg_gemm(dt, s.gated, m.intermediate, (int)rows, m.intermediate, layer.down.packed,
                     m.hidden, layer.down.bias, s.x, m.hidden, 0, threads);
    if (error) return error;
  }
  tg_rms_norm(dt, s.h, s.x, m.hidden, s.residual, m.final_norm, m.eps, rows, m.hidden, threads);
  return 0;
}

#endif
