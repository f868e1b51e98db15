// AMX tile instructions in plain C++, for machines without them: as Intel's SDM defines them.
#pragma once

#include <immintrin.h>  // before the names below are taken

#include <cstdint>
#include <cstring>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define __AMX_BF16__ 1
#define TIERGATE_EMULATE_AMX 1

struct EmulatedTile {
  uint8_t bytes[16][64];
};
static thread_local EmulatedTile emulated_tiles[8];
static thread_local bool emulated_configured = false;

#define _tile_loadconfig(config) (emulated_configured = ((const uint8_t*)(config))[0] == 1)
#define _tile_release() (emulated_configured = false)
#define _tile_zero(t) memset(&emulated_tiles[t], 0, sizeof(EmulatedTile))

static inline void emulated_load(int t, const void* from, int64_t stride) {
  if (!emulated_configured) __builtin_trap();
  for (int r = 0; r < 16; r++)
    memcpy(emulated_tiles[t].bytes[r], (const char*)from + r * stride, 64);
}
#define _tile_loadd(t, from, stride) emulated_load(t, from, stride)

static inline void emulated_store(int t, void* to, int64_t stride) {
  if (!emulated_configured) __builtin_trap();
  for (int r = 0; r < 16; r++) memcpy((char*)to + r * stride, emulated_tiles[t].bytes[r], 64);
}
#define _tile_stored(t, to, stride) emulated_store(t, to, stride)

static inline float emulated_float(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// C[m][n] += A[m][2k] * B[k][2n] + A[m][2k + 1] * B[k][2n + 1]
static inline void emulated_dot(int c, int a, int b) {
  float sums[16][16];
  uint16_t left[16][32], right[16][32];
  memcpy(sums, &emulated_tiles[c], sizeof sums);
  memcpy(left, &emulated_tiles[a], sizeof left);
  memcpy(right, &emulated_tiles[b], sizeof right);
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        for (int i = 0; i < 2; i++)
          sums[m][n] += emulated_float(left[m][2 * k + i]) * emulated_float(right[k][2 * n + i]);
  memcpy(&emulated_tiles[c], sums, sizeof sums);
}
#define _tile_dpbf16ps(c, a, b) emulated_dot(c, a, b)
