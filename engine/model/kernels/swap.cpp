// KV blocks to rows of bytes in host memory and back, raw or as int8; it knows no request.
//
// The bytes are those of engine/model/quantize.py, found with the same comparisons, products and
// roundings. One thread: it stands beside threads that compute, and memory is what limits it.
#include "simd.h"

using namespace tiergate;

namespace {

constexpr int kUnsound = 255;
// An octave has eight codes and edges[254] = 2^16, so an exponent e tells where to begin looking: at
// 8 e - kBefore, at most nine codes below the answer. (An edge may have been rounded.)
constexpr int kBefore = 8 * (127 + 16) - 254 + 1;

inline int first_code(int exponent) {
  const int code = 8 * exponent - kBefore;
  return code < 0 ? 0 : code < kUnsound ? code : kUnsound;
}
using I16 = Vec<16>::I;

struct Tables {
  const float *steps, *inverses, *edges;  // by code: [256], [256], [255 and 16 times NaN]
};

struct Shape {
  int planes, size, width, group, together;  // planes: K and V of every layer, in turn
  int channels() const { return width; }
  int64_t numbers() const { return (int64_t)size * width; }
};

// Magnitudes as integers have the order of the numbers, with NaN above infinity.
inline I16 magnitude(F16 v) { return (I16)v & 0x7fffffff; }
inline I16 most(I16 a, I16 b) { return a > b ? a : b; }

inline int32_t highest(I16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t m = v[0];
  for (int k = 1; k < 16; k++) m = v[k] > m ? v[k] : m;
  return m;
#endif
}

// The first code whose edge reaches the magnitude; 255 where none does. No branch depends on it.
inline int code_of(int32_t bits, const Tables& t) {
  const int first = first_code(bits >> 23);
  I16 edges;
  memcpy(&edges, t.edges + first, sizeof edges);
  const int code = first + __builtin_popcount(lanes(edges < (I16{} + bits)));
  return code < kUnsound ? code : kUnsound;
}

// The same for 16 numbers; false where one of them has none.
inline bool codes_of(I16 magnitudes, uint8_t* codes, const Tables& t) {
  bool sound = true;
  for (int k = 0; k < 16; k++) {
    const int code = code_of(magnitudes[k], t);
    sound &= code != kUnsound;
    codes[k] = (uint8_t)code;
  }
  return sound;
}

// To the nearest integer, ties to even. Not by adding 1.5 * 2^23: the compiler would fuse that with
// the product before it, and one rounding less is another byte than torch finds. Written to `out`.
inline void store_integers(int8_t* out, F16 v) {
#ifdef __AVX512F__
  _mm_storeu_si128((__m128i*)out, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)v)));
#else
  for (int k = 0; k < 16; k++) out[k] = (int8_t)(int32_t)__builtin_rintf(v[k]);
#endif
}

inline F16 to_floats(const int8_t* p) {
#ifdef __AVX512F__
  return (F16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
  F16 v;
  for (int k = 0; k < 16; k++) v[k] = p[k];
  return v;
#endif
}

// The table's entries of 16 codes.
inline F16 look_up(const float* table, const uint8_t* codes) {
#ifdef __AVX512F__
  __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
  return (F16)_mm512_i32gather_ps(at, table, 4);
#else
  F16 v;
  for (int k = 0; k < 16; k++) v[k] = table[codes[k]];
  return v;
#endif
}

// `used` tokens of the plane [size, channels] hold something. Channels are a multiple of 16.
template <class T>
bool pack_keys(const T* in, int8_t* out, uint8_t* codes, const Shape& s, int used,
               const Tables& t) {
  const int channels = s.channels();
  bool sound = true;
  for (int first = 0; first < s.size; first += s.group) {
    const int last = first + s.group, end = last < used ? last : used;
    for (int c = 0; c < channels; c += 16) {
      I16 top{};
      for (int i = first; i < end; i++)
        top = most(top, magnitude(load<16>(in + (int64_t)i * channels + c)));
      sound &= codes_of(top, codes, t);
      const F16 inverse = look_up(t.inverses, codes);
      codes += 16;
      int i = first;
      for (; i < end; i++) {
        int64_t at = (int64_t)i * channels + c;
        store_integers(out + at, load<16>(in + at) * inverse);
      }
      for (; i < last; i++) memset(out + (int64_t)i * channels + c, 0, 16);
    }
  }
  return sound;
}

// Every `together` channels (a multiple of 16) of a token share a scale.
template <class T>
bool pack_values(const T* in, int8_t* out, uint8_t* codes, const Shape& s, int used,
                 const Tables& t) {
  const int each = s.channels() / s.together;
  bool sound = true;
  for (int i = 0; i < s.size * each; i++, in += s.together, out += s.together) {
    const bool is_used = i < used * each;
    I16 top{};
    for (int c = 0; is_used && c < s.together; c += 16)
      top = most(top, magnitude(load<16>(in + c)));
    const int code = code_of(highest(top), t);
    sound &= code != kUnsound;
    codes[i] = (uint8_t)code;
    if (!is_used) memset(out, 0, s.together);
    for (int c = 0; is_used && c < s.together; c += 16)
      store_integers(out + c, load<16>(in + c) * t.inverses[code]);
  }
  return sound;
}

template <class T>
void unpack_keys(T* out, const int8_t* in, const uint8_t* codes, const Shape& s, const Tables& t) {
  const int channels = s.channels();
  for (int first = 0; first < s.size; first += s.group)
    for (int c = 0; c < channels; c += 16) {
      const F16 step = look_up(t.steps, codes);
      codes += 16;
      for (int i = first; i < first + s.group; i++) {
        int64_t at = (int64_t)i * channels + c;
        store<16>(out + at, to_floats(in + at) * step);
      }
    }
}

template <class T>
void unpack_values(T* out, const int8_t* in, const uint8_t* codes, const Shape& s,
                   const Tables& t) {
  const int count = s.size * s.channels() / s.together;
  for (int i = 0; i < count; i++, in += s.together, out += s.together)
    for (int c = 0; c < s.together; c += 16)
      store<16>(out + c, to_floats(in + c) * t.steps[codes[i]]);
}

// Where the parts of a row lie: integers of all planes, then the codes of keys, then of values.
struct Row {
  int8_t* integers;
  uint8_t *key_codes, *value_codes;
  int64_t keys_each, values_each;
  Row(uint8_t* row, const Shape& s)
      : integers((int8_t*)row),
        key_codes(row + s.planes * s.numbers()),
        keys_each(s.size / s.group * s.channels()),
        values_each(s.numbers() / s.together) {
    value_codes = key_codes + s.planes / 2 * keys_each;
  }
};

template <class T>
bool pack(const T* block, int64_t plane_stride, uint8_t* out, const Shape& s, int used,
          const Tables& t) {
  Row row(out, s);
  bool sound = true;
  for (int p = 0; p < s.planes; p++, block += plane_stride, row.integers += s.numbers())
    if (p % 2 == 0)
      sound &= pack_keys(block, row.integers, row.key_codes + p / 2 * row.keys_each, s, used, t);
    else
      sound &=
          pack_values(block, row.integers, row.value_codes + p / 2 * row.values_each, s, used, t);
  return sound;
}

template <class T>
void unpack(T* block, int64_t plane_stride, uint8_t* in, const Shape& s, const Tables& t) {
  Row row(in, s);
  for (int p = 0; p < s.planes; p++, block += plane_stride, row.integers += s.numbers())
    if (p % 2 == 0)
      unpack_keys(block, row.integers, row.key_codes + p / 2 * row.keys_each, s, t);
    else
      unpack_values(block, row.integers, row.value_codes + p / 2 * row.values_each, s, t);
}

}  // namespace

// `data`: [planes, plane_stride numbers], a block of it `size` tokens * `channels`; `host`: rows of
// `row_bytes`. `used` of the blocks' tokens hold something. dtype 0: float, 1: bfloat16 (raw: any
// type of four and of two bytes). Scales reach over `group` tokens of a key's channel (0: raw) and
// `together` channels of a value. Returns 1 where a row cannot be kept.
extern "C" int tg_pack_blocks(int dtype, const void* data, int64_t plane_stride, int planes,
                              int size, int channels, int group, int together,
                              const int64_t* blocks, uint8_t* host, int64_t row_bytes,
                              const int64_t* rows, int count, int used, const float* inverses,
                              const float* edges) {
  const Shape s{planes, size, channels, group, together};
  const Tables t{nullptr, inverses, edges};
  const int64_t width = dtype ? 2 : 4;
  bool sound = true;
  for (int i = 0; i < count; i++, used -= size) {
    const int64_t at = blocks[i] * s.numbers();
    uint8_t* row = host + rows[i] * row_bytes;
    const int here = used < 0 ? 0 : used < size ? used : size;
    if (!group)
      for (int p = 0; p < planes; p++)
        memcpy(row + p * s.numbers() * width, (const char*)data + (at + p * plane_stride) * width,
               s.numbers() * width);
    else if (dtype)
      sound &= pack((const bf16*)data + at, plane_stride, row, s, here, t);
    else
      sound &= pack((const float*)data + at, plane_stride, row, s, here, t);
  }
  return !sound;
}

// The way back; see tg_pack_blocks.
extern "C" void tg_unpack_blocks(int dtype, void* data, int64_t plane_stride, int planes, int size,
                                 int channels, int group, int together,
                                 const int64_t* blocks, uint8_t* host, int64_t row_bytes, const int64_t* rows, int count,
                                 const float* steps) {
  const Shape s{planes, size, channels, group, together};
  const Tables t{steps, nullptr, nullptr};
  const int64_t width = dtype ? 2 : 4;
  for (int i = 0; i < count; i++) {
    const int64_t at = blocks[i] * s.numbers();
    uint8_t* row = host + rows[i] * row_bytes;
    if (!group)
      for (int p = 0; p < planes; p++)
        memcpy((char*)data + (at + p * plane_stride) * width, row + p * s.numbers() * width,
               s.numbers() * width);
    else if (dtype)
      unpack((bf16*)data + at, plane_stride, row, s, t);
    else
      unpack((float*)data + at, plane_stride, row, s, t);
  }
}
