// One draw per row of logits, as engine/model/categorical.py defines it, without sorting the row.
//
// Tokens fall into buckets of nearly equal logits. Where top_k ends, where top_p ends and where the
// random number points lies in one bucket each, and only those are sorted.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "simd.h"

using namespace tiergate;

namespace {

constexpr int kBuckets = 1024;
constexpr float kDepth = 26.0f;  // octaves of weight below the best that buckets resolve
constexpr float kScale = kBuckets / kDepth;
constexpr int kBlock = 64;  // tokens per partial sum where nothing is ranked

struct Order {
  double temperature, top_p, min_p, uniform;
  int64_t top_k;
};

struct Ranked {
  float logit;
  int id;
  bool operator<(const Ranked& other) const {
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

template <class T>
class Row {
 public:
  Row(const T* x, int width, const Order& order) : x_(x), width_(width), order_(order) {
    F16 top = splat<16>(-INFINITY);
    Vec<16>::I odd{};
    int c = 0;
    for (; c + 16 <= width; c += 16) {
      F16 v = load<16>(x + c);
      odd |= v != v;
      top = larger(v, top);
    }
    best_ = largest(top);
    bool has_nan = any<16>(odd);
    for (; c < width; c++) {
      float v = to_float(x[c]);
      has_nan |= v != v;
      best_ = v > best_ ? v : best_;
    }
    usable_ = !has_nan && std::isfinite(best_);
    octaves_ = (float)(1.44269504088896 / order.temperature);
  }

  // The token, or -1 for a row that cannot be drawn from.
  int64_t draw() {
    if (!usable_) return -1;
    const bool ranks = order_.top_p < 1.0 || order_.min_p > 0.0 || order_.top_k < width_;
    return ranks ? draw_ranked() : draw_anywhere();
  }

  // Natural log of the token's probability at temperature 1.
  float logprob(int64_t token) const {
    double total = 0;
    for_all(1.44269504f, [&](int, int, F16 z) { total += sum(exp2<16>(z)); });
    return (float)(to_float(x_[token]) - best_ - std::log(total));
  }

 private:
  // f(first, count, z) for 16 tokens at a time; z = octaves below the best, -inf past the row.
  template <class F>
  void for_all(float octaves, F f) const {
    int c = 0;
    for (; c + 16 <= width_; c += 16) f(c, 16, (load<16>(x_ + c) - best_) * octaves);
    if (c == width_) return;
    float tail[16];
    for (int i = 0; i < 16; i++)
      tail[i] = c + i < width_ ? (to_float(x_[c + i]) - best_) * octaves : -INFINITY;
    f(c, width_ - c, load<16>(tail));
  }

  static F16 weights(F16 z) {
    F16 w = exp2<16>(z);
    return z < -126.0f ? F16{} : w;
  }

  double weight(float logit) const {
    return std::exp(((double)logit - best_) / order_.temperature);
  }

  int64_t draw_anywhere() {
    static thread_local std::vector<float> sums;
    sums.assign((width_ + kBlock - 1) / kBlock, 0.0f);
    for_all(octaves_, [&](int c, int, F16 z) { sums[c / kBlock] += sum(weights(z)); });
    double total = 0;
    for (float s : sums) total += s;
    const double target = order_.uniform * total;
    double before = 0;
    int block = 0, last = (int)sums.size() - 1;
    while (last > 0 && sums[last] == 0.0f) last--;
    while (block < last && before + sums[block] <= target) before += sums[block++];
    int found = block * kBlock;
    for (int c = block * kBlock; c < width_ && c < (block + 1) * kBlock; c++) {
      const float z = (to_float(x_[c]) - best_) * octaves_;
      if (z < -126.0f) continue;
      found = c;
      before += std::exp2((double)z);
      if (before > target) break;
    }
    return found;
  }

  static int bucket_of(float z) {
    const float at = -z * kScale;
    return at < kBuckets ? (int)at : kBuckets;  // the last one holds all the rest
  }

  void fill_buckets() {
    std::fill(counts_, counts_ + kBuckets + 1, 0);
    std::fill(masses_, masses_ + kBuckets + 1, 0.0);
    least_ = order_.min_p > 0.0 ? (float)std::log2(order_.min_p) : -INFINITY;
    Vec<16>::I rest_count{};
    F16 rest_mass{};
    double rest = 0;
    int since = 0;
    for_all(octaves_, [&](int, int count, F16 z) {
      const F16 w = weights(z);
      const Vec<16>::I counts = z >= least_;
      for (uint32_t near = lanes((z > -kDepth) & counts); near; near &= near - 1) {
        const int i = __builtin_ctz(near), b = bucket_of(z[i]);
        counts_[b]++;
        masses_[b] += w[i];
      }
      Vec<16>::I far = (z <= -kDepth) & counts;
      for (int i = count; i < 16; i++) far[i] = 0;
      rest_count -= far;
      rest_mass += far ? w : F16{};
      if (++since == 64) {  // small weights must not drown in their sum
        rest += sum(rest_mass);
        rest_mass = F16{};
        since = 0;
      }
    });
    for (int i = 0; i < 16; i++) counts_[kBuckets] += rest_count[i];
    masses_[kBuckets] += rest + sum(rest_mass);
  }

  // The tokens of a bucket in rank order.
  const std::vector<Ranked>& sorted(int bucket) {
    static thread_local std::vector<Ranked> found;
    found.clear();
    for_all(octaves_, [&](int c, int count, F16 z) {
      const F16 at = z * -kScale;
      const Vec<16>::I inside = bucket == kBuckets
                                    ? (Vec<16>::I)(at >= (float)kBuckets)
                                    : (Vec<16>::I)((at >= (float)bucket) & (at < bucket + 1.0f));
      for (uint32_t bits = lanes(inside & (z >= least_)); bits; bits &= bits - 1) {
        const int i = __builtin_ctz(bits);
        if (i < count) found.push_back({to_float(x_[c + i]), c + i});
      }
    });
    std::sort(found.begin(), found.end());
    return found;
  }

  int64_t draw_ranked() {
    fill_buckets();
    // What top_k keeps: all before bucket `end`, and the best `kept` of that one.
    int end = 0;
    int64_t kept = 0, seen = 0;
    double mass = 0;
    for (int b = 0; b <= kBuckets && seen < order_.top_k; b++) {
      if (counts_[b] == 0) continue;
      end = b;
      kept = std::min(counts_[b], order_.top_k - seen);
      seen += kept;
      if (kept == counts_[b]) {
        mass += masses_[b];
        continue;
      }
      const std::vector<Ranked>& tokens = sorted(b);
      for (int64_t i = 0; i < kept; i++) mass += weight(tokens[i].logit);
    }
    // What top_p keeps of that.
    double kept_mass = mass;
    if (order_.top_p < 1.0) {
      const double limit = order_.top_p * mass;
      double before = 0;
      const int last = end;
      const int64_t kept_of_last = kept;
      for (int b = 0; b <= last && before < limit; b++) {
        if (counts_[b] == 0) continue;
        end = b;
        kept = b == last ? kept_of_last : counts_[b];
        if (b < last && before + masses_[b] < limit) {
          before += masses_[b];
          continue;
        }
        const std::vector<Ranked>& tokens = sorted(b);
        int64_t i = 0;
        while (i < kept && before < limit) before += weight(tokens[i++].logit);
        kept = i;
        break;
      }
      kept_mass = before;
    }
    return pick(order_.uniform * kept_mass, end, kept);
  }

  // The first token in rank order whose running mass exceeds `target`, or the last one kept.
  int64_t pick(double target, int end, int64_t kept) {
    double before = 0;
    int bucket = 0, last = 0;
    for (int b = 0; b <= end; b++) {
      if (masses_[b] <= 0.0) continue;
      last = b;
      if (b == end || before + masses_[b] > target) break;
      before += masses_[b];
    }
    bucket = last;
    const std::vector<Ranked>& tokens = sorted(bucket);
    const int64_t most =
        bucket == end ? std::min(kept, (int64_t)tokens.size()) : (int64_t)tokens.size();
    int found = tokens[0].id;
    for (int64_t i = 0; i < most; i++) {
      const double w = weight(tokens[i].logit);
      if (w == 0.0) break;
      found = tokens[i].id;
      before += w;
      if (before > target) break;
    }
    return found;
  }

  const T* x_;
  int width_;
  Order order_;
  float best_, octaves_, least_ = -INFINITY;
  bool usable_;
  int64_t counts_[kBuckets + 1];
  double masses_[kBuckets + 1];
};

template <class T>
void draw(const T* x, int width, const Order& order, int64_t* token, float* logprob) {
  Row<T> row(x, width, order);
  *token = row.draw();
  if (logprob) *logprob = *token < 0 ? NAN : row.logprob(*token);
}

}  // namespace

// Parameters are [rows]; top_k of `width` or more means off. `logprobs` may be null.
extern "C" void tg_draw_rows(int dtype, const void* x, int64_t stride, int64_t rows, int width,
                             const double* temperature, const int64_t* top_k, const double* top_p,
                             const double* min_p, const double* uniform, int64_t* tokens,
                             float* logprobs, int threads) {
  parallel_for(rows, threads, [&](int64_t r) {
    const Order order{temperature[r], top_p[r], min_p[r], uniform[r], top_k[r]};
    float* logprob = logprobs ? logprobs + r : nullptr;
    if (dtype == 0)
      draw((const float*)x + r * stride, width, order, tokens + r, logprob);
    else
      draw((const bf16*)x + r * stride, width, order, tokens + r, logprob);
  });
}
