// The threads behind parallel.h: they wait for work briefly awake, then asleep.
#include "parallel.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <mutex>
#include <system_error>
#include <thread>

namespace tiergate {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kAwake = std::chrono::microseconds(200);  // longer than the gaps within one step
constexpr int kLooks = 64;                               // between two looks at the clock
constexpr int kMaxThreads = 256;
constexpr uint32_t kShut = UINT32_MAX;  // no job has so many items

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  void run(int64_t items, int threads, Task call, const void* data) {
    std::unique_lock<std::mutex> only(busy_, std::try_to_lock);
    if (!only || getpid() != process_) {
      for (int64_t i = 0; i < items; i++) call(data, i);
      return;
    }
    hire(threads - 1);
    const uint32_t turn = (uint32_t)(ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    // Shut the counter before the description changes: nobody works on the previous job any more,
    // but a late thread may be about to look.
    ticket_.store((uint64_t)turn << 32 | kShut, std::memory_order_seq_cst);
    call_.store(call, std::memory_order_release);
    data_.store(data, std::memory_order_release);
    items_.store(items, std::memory_order_release);
    done_.store(0, std::memory_order_release);
    ticket_.store((uint64_t)turn << 32, std::memory_order_seq_cst);
    turn_.store(turn, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0)
      syscall(SYS_futex, &turn_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    work(turn);
    while (done_.load(std::memory_order_acquire) < items) relax();
  }

 private:
  // Takes items of the job `turn` until none is left. The ticket carries the job's number: taking
  // one succeeds only while the description just read is that job's.
  void work(uint32_t turn) {
    for (;;) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      const int64_t items = items_.load(std::memory_order_acquire);
      const Task call = call_.load(std::memory_order_acquire);
      const void* data = data_.load(std::memory_order_acquire);
      const int64_t item = (uint32_t)ticket;
      if ((uint32_t)(ticket >> 32) != turn || item >= items) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      call(data, item);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void wait(uint32_t seen) {
    const auto until = Clock::now() + kAwake;
    do {
      for (int i = 0; i < kLooks; i++) {
        if (turn_.load(std::memory_order_acquire) != seen) return;
        relax();
      }
    } while (Clock::now() < until);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (turn_.load(std::memory_order_seq_cst) == seen)
      syscall(SYS_futex, &turn_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
  }

  void hire(int count) {
    if (count > kMaxThreads) count = kMaxThreads;
    for (; hired_ < count; hired_++) {
      uint32_t seen = turn_.load(std::memory_order_relaxed);
      try {
        std::thread([this, seen]() mutable {
          for (;;) {
            wait(seen);
            seen = turn_.load(std::memory_order_acquire);
            work(seen);
          }
        }).detach();
      } catch (const std::system_error&) {  // the machine has no more threads: fewer will do
        hired_ = kMaxThreads;
        return;
      }
    }
  }

  std::mutex busy_;
  const pid_t process_ = getpid();
  int hired_ = 0;
  // What changes with every job, and what with every item, on cache lines of their own.
  alignas(64) std::atomic<uint32_t> turn_{0};
  std::atomic<int> asleep_{0};
  std::atomic<Task> call_{nullptr};
  std::atomic<const void*> data_{nullptr};
  std::atomic<int64_t> items_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace

void run_items(int64_t items, int threads, Task call, const void* data) {
  static Pool& pool = *new Pool;  // never destroyed: its threads outlive everything
  pool.run(items, threads, call, data);
}

}  // namespace tiergate
