// Paged attention for decodes and prompt chunks in one kernel, with the online softmax of
// FlashAttention (https://arxiv.org/abs/2205.14135) over keys found through block tables
// (PagedAttention, https://arxiv.org/abs/2309.06180).
//
// A key position at or past a column's end is never used: rows past the longest end are not read,
// the others are masked by selection, so that NaN in a stale slot cannot spread.
#include <atomic>
#include <vector>

#include "attention_amx.h"
#include "parallel.h"

using namespace tiergate;

namespace {

struct Call {
  void* out;                    // [rows, q heads, dim]
  const void* q;                // [rows, q heads, dim] with strides in elements
  int64_t q_row, q_head;
  int q_heads, kv_heads, dim;
  const void *keys, *values;    // [slot, kv heads, dim]
  const int32_t* tables;        // [sequences, table_stride]
  int64_t table_stride;
  int block_size;
  const int32_t *first_row;     // [sequences + 1]
  const int32_t *contexts;      // [sequences]
  int sequences;
  float scale, softcap;         // softcap 0: none
  int window;                   // 0: none
  int threads;
};

// Up to kMaxColumns columns of one sequence and KV head, counted from `first`; column c is token
// c / group and head c % group.
struct Item {
  int sequence, kv_head, first, count;
};

template <int W, int C>
void mask_and_cap(Scratch& s, int t0, int n, const Call& call) {
  using V = Vec<W>;
  for (int c = 0; c < C; c++) {
    typename V::I ends;
    memcpy(&ends, s.ends + c * W, sizeof ends);
    for (int t = 0; t < n; t++) {
      float* at = s.scores + (t * C + c) * W;
      typename V::I position = typename V::I{} + (t0 + t);
      typename V::I seen = position < ends;
      if (call.window > 0) seen &= position >= ends - call.window;
      store<W>(at, seen ? load<W>(at) : splat<W>(-INFINITY));
    }
  }
}

// Turns raw scores into weights 2^(score - max), keeps maxima and totals, rescales older sums.
template <class Math, int W, int C>
void softmax_chunk(Scratch& s, int n, bool is_first, const ChunkView& view, const Call& call) {
  using F = typename Vec<W>::F;
  const float log2e = 1.44269504f;
  for (int c = 0; c < C; c++) {
    const F old = load<W>(s.maxima + c * W);
    F top = old;
    for (int t = 0; t < n; t++) {
      float* at = s.scores + (t * C + c) * W;
      F x = load<W>(at);
      if (call.softcap > 0) {  // tanh(y) = 2 sigmoid(2 y) - 1; the mask's -inf is put on afterwards
        F capped = (2.0f * sigmoid<W>(x * (2.0f * call.scale / call.softcap)) - 1.0f);
        x = x == splat<W>(-INFINITY) ? x : capped * (call.softcap * log2e);
      } else {
        x = x * (call.scale * log2e);
      }
      store<W>(at, x);
      top = larger(x, top);
    }
    F total = load<W>(s.totals + c * W);
    if (any<W>(top != old)) {
      F shrink = exp2<W>(old - top);
      total *= shrink;
      if (!is_first)
        for (int i = 0; i < W && c * W + i < view.columns; i++) {
          float* sums = s.sums + (c * W + i) * view.dim;
          for (int d = 0; d < view.dim; d += 16)
            store<16>(sums + d, load<16>(sums + d) * shrink[i]);
        }
      store<W>(s.maxima + c * W, top);
    }
    for (int t = 0; t < n; t++) {
      float* at = s.scores + (t * C + c) * W;
      F x = load<W>(at);
      F w = exp2<W>(x - top);
      w = x == splat<W>(-INFINITY) ? F{} : w;
      total += w;
      store<W>(at, w);
    }
    store<W>(s.totals + c * W, total);
  }
}

// Two keys' weights of a column into one word, as bfloat16; an odd last key is paired with zero.
template <int W, int C>
void pair_weights(Scratch& s, int n) {
  using U = typename Vec<W>::U;
  for (int t = 0; t < n; t += 2)
    for (int c = 0; c < C; c++) {
      const float* at = s.scores + (t * C + c) * W;
      U low = (U)load<W>(at), high = t + 1 < n ? (U)load<W>(at + C * W) : U{};
      low = (low + 0x7fff + ((low >> 16) & 1)) >> 16;
      high = (high + 0x7fff + ((high >> 16) & 1)) & 0xffff0000u;
      U both = low | high;
      memcpy(s.weights + (t / 2 * C + c) * W, &both, sizeof both);
    }
}

// Where the rows of up to kChunk keys lie. They are scattered over blocks, so no hardware
// prefetcher finds them in time: finding a row also asks for it, one chunk ahead of its use.
template <class T>
struct Rows {
  const T *keys[kChunk], *values[kChunk];

  void find(const Call& call, const Item& item, int t0, int n) {
    const int32_t* table = call.tables + item.sequence * call.table_stride;
    const int64_t stride = (int64_t)call.kv_heads * call.dim;
    const int64_t head = (int64_t)item.kv_head * call.dim;
    int block = t0 / call.block_size, offset = t0 % call.block_size;
    for (int t = 0; t < n;) {
      int64_t at = ((int64_t)table[block] * call.block_size + offset) * stride + head;
      for (; t < n && offset < call.block_size; t++, offset++, at += stride) {
        keys[t] = (const T*)call.keys + at;
        values[t] = (const T*)call.values + at;
        for (int d = 0; d < call.dim; d += 64 / (int)sizeof(T)) {
          __builtin_prefetch(keys[t] + d, 0, 2);
          __builtin_prefetch(values[t] + d, 0, 2);
        }
      }
      offset = 0;
      block++;
    }
    for (int t = n; t & 7; t++) keys[t] = keys[n - 1];  // scored with the rest, never used
  }
};

// Which keys an item's columns see: column i those in [end(i) - window, end(i)).
struct Span {
  int row0, before, group, first, least_end, lo, hi;

  Span(const Call& call, const Item& item, int align)
      : row0(call.first_row[item.sequence]),
        before(call.contexts[item.sequence] - call.first_row[item.sequence + 1] + row0),
        group(call.q_heads / call.kv_heads),
        first(item.first),
        least_end(end(0)),
        lo(call.window > 0 && least_end > call.window ? least_end - call.window : 0),
        hi(end(item.count - 1)) {
    lo -= lo % align;
  }

  int token(int column) const { return (first + column) / group; }
  int head(int column) const { return (first + column) % group; }
  int end(int column) const { return before + token(column) + 1; }
  int length(int t0) const { return hi - t0 < kChunk ? hi - t0 : kChunk; }
};

// `following` is the item that this thread will take next, if that is known already.
template <class Math, int W, int C>
void attend(Scratch& s, const Call& call, const Item& item, const Item* following) {
  using T = typename Math::Element;
  const int dim = call.dim;
  const Span span(call, item, Math::kAlign);
  Rows<T> both[2];
  both[0].find(call, item, span.lo, span.length(span.lo));
  memset(s.queries, 0, (size_t)dim * W * C * sizeof(uint32_t));
  memset(s.sums, 0, (size_t)(Math::kAlign == 16 ? 16 : item.count) * dim * sizeof(float));
  for (int i = 0; i < W * C; i++) {
    s.maxima[i] = -1e30f;  // finite, so that a column that has seen nothing yet does no inf - inf
    s.totals[i] = 0;
    s.ends[i] = 0;
    if (i >= item.count) continue;
    const T* q = (const T*)call.q + (span.row0 + span.token(i)) * call.q_row +
                 (item.kv_head * span.group + span.head(i)) * call.q_head;
    Math::template pack<W, C>(s, i, q, dim);
    s.ends[i] = span.end(i);
  }
  const int most_begin = call.window > 0 && span.hi > call.window ? span.hi - call.window : 0;
  for (int t0 = span.lo, turn = 0; t0 < span.hi; t0 += kChunk, turn ^= 1) {
    const int n = span.length(t0), t1 = t0 + kChunk;
    const Rows<T>& chunk = both[turn];
    if (t1 < span.hi) {
      both[turn ^ 1].find(call, item, t1, span.length(t1));
    } else if (following) {
      const Span next(call, *following, Math::kAlign);
      both[turn ^ 1].find(call, *following, next.lo, next.length(next.lo));
    }
    const ChunkView view{n, item.count, dim};
    if constexpr (Math::kAlign == 16)
      Math::template score<W, C>(s, chunk.keys, view, (int64_t)call.kv_heads * dim);
    else
      Math::template score<W, C>(s, chunk.keys, view);
    if (t0 + n > span.least_end || t0 < most_begin) mask_and_cap<W, C>(s, t0, n, call);
    softmax_chunk<Math, W, C>(s, n, t0 == span.lo, view, call);
    if constexpr (Math::kPaired) pair_weights<W, C>(s, n);
    Math::template add_values<W, C>(s, chunk.values, view);
  }
  for (int i = 0; i < item.count; i++) {
    T* out = (T*)call.out + ((int64_t)(span.row0 + span.token(i)) * call.q_heads +
                             item.kv_head * span.group + span.head(i)) * dim;
    const float inverse = 1.0f / s.totals[i];
    for (int d = 0; d < dim; d += 16) store<16>(out + d, load<16>(s.sums + i * dim + d) * inverse);
  }
}

// Prompt chunks come last in a step and are the longest items: the loop runs from the back.
std::vector<Item> make_items(const Call& call, int most_columns) {
  std::vector<Item> items;
  const int group = call.q_heads / call.kv_heads;
  for (int s = 0; s < call.sequences; s++) {
    const int columns = (call.first_row[s + 1] - call.first_row[s]) * group;
    for (int first = 0; first < columns; first += most_columns)
      for (int h = 0; h < call.kv_heads; h++) {
        const int left = columns - first;
        items.push_back({s, h, first, left < most_columns ? left : most_columns});
      }
  }
  return items;
}

// Hands out items from the back. While many are left a thread takes its next one early, so that it
// can ask for its first keys in time; the last ones go to whoever is free.
class Queue {
 public:
  Queue(const std::vector<Item>& items, int threads)
      : items_(items), left_((int)items.size()), early_(4 * threads) {}

  const Item* take() {
    const int i = left_.fetch_sub(1) - 1;
    return i >= 0 ? &items_[i] : nullptr;
  }
  const Item* take_early() {
    return left_.load(std::memory_order_relaxed) > early_ ? take() : nullptr;
  }

 private:
  const std::vector<Item>& items_;
  std::atomic<int> left_;
  const int early_;
};

template <class Math>
void attend_any(Scratch& s, const Call& call, const Item& item, const Item* following) {
  if constexpr (Math::kAlign == 16)
    attend<Math, 16, 1>(s, call, item, following);
  else if (item.count <= 8)
    attend<Math, 8, 1>(s, call, item, following);
  else if (item.count <= 16)
    attend<Math, 16, 1>(s, call, item, following);
  else
    attend<Math, 16, 2>(s, call, item, following);
}

template <class Math>
void run(const Call& call) {
  const std::vector<Item> items = make_items(call, Math::kAlign == 16 ? 16 : kMaxColumns);
  Queue queue(items, call.threads);
  parallel_for(call.threads, call.threads, [&](int64_t) {
    Scratch scratch;
    Math::begin_thread();
    for (const Item* item = queue.take(); item;) {
      const Item* following = queue.take_early();
      attend_any<Math>(scratch, call, *item, following);
      item = following ? following : queue.take();
    }
    Math::end_thread();
  });
}

enum Arithmetic { kBest = 0, kPlain = 1, kDot = 2, kTiles = 3 };

}  // namespace

extern "C" {

// The best arithmetic this build and machine have for bfloat16: 1 plain, 2 AVX512_BF16, 3 AMX.
int tg_bf16_arithmetic(void) {
#ifdef __AMX_BF16__
  static const bool tiles = may_use_tiles();
  if (tiles) return kTiles;
#endif
#ifdef __AVX512BF16__
  return kDot;
#else
  return kPlain;
#endif
}

// Returns 0, or 1 for a head size that is no multiple of 16 up to 256, 2 for an arithmetic that
// this build lacks. `arithmetic` 0 takes the best; the others are for tests. Shapes: see Call.
int tg_paged_attention(int dtype, int arithmetic, void* out, const void* q, int64_t q_row,
                       int64_t q_head, int q_heads, int kv_heads, int dim, const void* keys,
                       const void* values, const int32_t* tables, int64_t table_stride,
                       int block_size, const int32_t* first_row, const int32_t* contexts,
                       int sequences, float scale, float softcap, int window, int threads) {
  if (dim % 16 || dim < 16 || dim > kMaxHeadDim) return 1;
  const Call call{out,       q,          q_row,    q_head, q_heads,      kv_heads,   dim,
                  keys,      values,     tables,   table_stride, block_size, first_row,
                  contexts,  sequences,  scale,    softcap, window,      threads};
  if (dtype == 0) {
    run<Float32>(call);
    return 0;
  }
  if (arithmetic == kBest) {
    arithmetic = tg_bf16_arithmetic();
    if (arithmetic == kTiles && (dim % 32 || block_size % 16)) arithmetic = kDot;
  }
  switch (arithmetic) {
    case kPlain: run<WideBf16>(call); return 0;
#ifdef __AVX512BF16__
    case kDot: run<DotBf16>(call); return 0;
#endif
#ifdef __AMX_BF16__
    case kTiles:
      if (dim % 32 || block_size % 16 || tg_bf16_arithmetic() != kTiles) return 2;
      run<TileBf16>(call);
      return 0;
#endif
  }
  return 2;
}

}  // extern "C"
