// Work shared among threads, with no barrier at its start: it ends when the work is done.
//
// OpenMP waits at the end of every loop for all its threads to have been there, also for one that
// found nothing left to do. Where a gateway, clients or another engine share the cores, that thread
// often has no core just then, and every product of a step waits milliseconds for it. Here a thread
// that comes late finds the work done and nobody waits for it.
#pragma once

#include <cstdint>
#include <type_traits>

namespace tiergate {

using Task = void (*)(const void* data, int64_t item);

// Calls `call(data, i)` for every i in [0, items) on up to `threads` threads, this one included.
// Called while another thread is inside, or from a forked child, it does the work alone.
void run_items(int64_t items, int threads, Task call, const void* data);

template <class F>
void parallel_for(int64_t items, int threads, const F& f) {
  if (threads <= 1 || items <= 1) {
    for (int64_t i = 0; i < items; i++) f(i);
    return;
  }
  run_items(items, threads, [](const void* data, int64_t i) { (*(const F*)data)(i); }, &f);
}

// f(first, last) for pieces of [0, count): about four for each thread, so that a late one is missed
// little. One piece where `is_small`.
template <class F>
void parallel_pieces(int64_t count, int threads, bool is_small, const F& f) {
  const int64_t wanted = threads <= 1 || is_small ? 1 : 4 * threads;
  const int64_t pieces = count < wanted ? count : wanted;
  parallel_for(pieces, threads,
               [&](int64_t i) { f(count * i / pieces, count * (i + 1) / pieces); });
}

// f(first, last) for pieces of [0, count), large ones first: neighbours stay together, and at the
// end no thread waits long for another (guided self-scheduling, Polychronopoulos and Kuck 1987).
template <class F>
void parallel_guided(int64_t count, int threads, const F& f) {
  if (threads <= 1 || count <= 1) {
    if (count > 0) f(0, count);
    return;
  }
  constexpr int kMost = 256;
  int64_t ends[kMost + 1] = {0};
  int pieces = 0;
  while (ends[pieces] < count) {
    const int64_t left = count - ends[pieces], share = (left + 2 * threads - 1) / (2 * threads);
    ends[pieces + 1] = pieces + 1 == kMost ? count : ends[pieces] + share;
    pieces++;
  }
  parallel_for(pieces, threads, [&](int64_t i) { f(ends[i], ends[i + 1]); });
}

}  // namespace tiergate
