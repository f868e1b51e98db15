// Attention's two products on AMX tiles (Sapphire Rapids and later); only bfloat16.
//
// Tiles hold 16 rows of 64 bytes. It shares the layouts of DotBf16: queries and values lie in pairs
// as the second operand of TDPBF16PS wants them.
#pragma once

#include "attention_math.h"

#ifdef __AMX_BF16__
#ifndef TIERGATE_EMULATE_AMX  // a test may bring its own _tile_ functions
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tiergate {

// The kernel hands out tile registers on demand (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
inline bool may_use_tiles() {
#ifdef TIERGATE_EMULATE_AMX
  return true;
#else
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64};
  uint8_t rows[16] = {16, 16, 16};
};

struct TileBf16 : DotBf16 {
  static constexpr int kAlign = 16;  // a tile's 16 keys lie in one block, at a constant distance

  static void begin_thread() {
    TileConfig config;
    _tile_loadconfig(&config);
  }
  static void end_thread() { _tile_release(); }

  // Rows past n, up to the next 16th, belong to the same block; their scores are masked later.
  template <int W, int C>
  static void score(Scratch& s, const bf16* const* rows, ChunkView v, int64_t key_stride) {
    static_assert(W * C == 16);
    for (int t = 0; t < v.n; t += 16) {
      _tile_zero(0);
      for (int d = 0; d < v.dim; d += 32) {
        _tile_loadd(1, rows[t] + d, key_stride * 2);
        _tile_loadd(2, s.queries + d / 2 * 16, 64);
        _tile_dpbf16ps(0, 1, 2);
      }
      _tile_stored(0, s.scores + t * 16, 64);
    }
  }

  template <int W, int C>
  static void add_values(Scratch& s, const bf16* const* rows, ChunkView v) {
    static_assert(W * C == 16);
    uint32_t* values = (uint32_t*)s.values;
    pair_rows(values, rows, v.n, v.dim);
    const int pairs = (v.n + 1) / 2, tiles = (pairs + 15) / 16;
    // Whole tiles are multiplied: what is left of the last one must be zero in both operands.
    memset(values + pairs * v.dim, 0, (size_t)(tiles * 16 - pairs) * v.dim * 4);
    memset(s.weights + pairs * 16, 0, (size_t)(tiles * 16 - pairs) * 64);
    alignas(64) uint32_t turned[2][16][16];  // [column][pair]
    for (int i = 0; i < tiles; i++)
      for (int p = 0; p < 16; p++)
        for (int c = 0; c < 16; c++) turned[i][c][p] = s.weights[(i * 16 + p) * 16 + c];
    for (int d = 0; d < v.dim; d += 16) {
      _tile_loadd(0, s.sums + d, v.dim * 4);
      for (int i = 0; i < tiles; i++) {
        _tile_loadd(1, turned[i], 64);
        _tile_loadd(2, values + i * 16 * v.dim + d, v.dim * 4);
        _tile_dpbf16ps(0, 1, 2);
      }
      _tile_stored(0, s.sums + d, v.dim * 4);
    }
  }
};

}  // namespace tiergate
#endif  // __AMX_BF16__
