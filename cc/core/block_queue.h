// How the threads that work on one tensor share its blocks.
#ifndef DQAT_CORE_BLOCK_QUEUE_H_
#define DQAT_CORE_BLOCK_QUEUE_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace dqat::core {

// The blocks of one call that no thread has taken yet, and the threads that are at work on it.
class BlockQueue {
 public:
  using Body = std::function<void(int64_t, BlockQueue*)>;

  explicit BlockQueue(int64_t count) : count_(count) {}

  // The next block, or -1. For all threads.
  int64_t Next() {
    const int64_t block = next_.fetch_add(1);
    return block < count_ ? block : -1;
  }

  // Calls body(first block) on this thread. Leaves `body` alone where no block is left: it may be gone.
  void Work(const Body& body) {
    int64_t first;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      first = Next();
      if (first < 0) return;
      ++working_;
    }
    body(first, this);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--working_ == 0) idle_.notify_all();
  }

  // Until nobody works, once all blocks are taken.
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable idle_;
  int working_ = 0;
};

}  // namespace dqat::core

#endif  // DQAT_CORE_BLOCK_QUEUE_H_
