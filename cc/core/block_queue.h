// How the threads that work on one tensor share its blocks.
#ifndef DQAT_CORE_BLOCK_QUEUE_H_
#define DQAT_CORE_BLOCK_QUEUE_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dqat::core {

// The blocks of one call that no thread has taken yet, and the threads that are at work on it. Each thread
// has neighbouring blocks of its own, takes those in rising order, and then what is left of the others': the
// next op, whose threads begin at the same places, finds in each processor's own cache what was written
// there. Blocks that are dealt out one by one would lie in the other's, which is slower than memory shared by
// both.
class BlockQueue {
 public:
  // A thread that takes blocks.
  class Worker {
   public:
    // The next block, or -1.
    int64_t Next() { return queue_->Next(index_); }

   private:
    friend class BlockQueue;
    Worker(BlockQueue* queue, int64_t index) : queue_(queue), index_(index) {}
    BlockQueue* const queue_;
    const int64_t index_;
  };
  using Body = std::function<void(int64_t, Worker*)>;

  // For worker 0 to `threads` - 1, of which any may come too late or never.
  BlockQueue(int64_t count, int64_t threads) : ranges_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      ranges_[i].next = count * i / threads;
      ranges_[i].end = count * (i + 1) / threads;
    }
  }

  // Calls body(first block, worker) on this thread. Leaves `body` alone where no block is left: it may be
  // gone.
  void Work(int64_t index, const Body& body) {
    int64_t first;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      first = Next(index);
      if (first < 0) return;
      ++working_;
    }
    Worker worker(this, index);
    body(first, &worker);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--working_ == 0) idle_.notify_all();
  }

  // Until nobody works, once all blocks are taken. The others are about to be done, sooner than a thread that
  // sleeps would wake up: so it sleeps only where they are not.
  void Wait() {
    for (int i = 0; i < kYields && working_.load() > 0; ++i) std::this_thread::yield();
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  static constexpr int kYields = 2000;  // some hundreds of microseconds

  // A cache line each: their threads are at work at the same time.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  int64_t Next(int64_t index) {
    const int64_t threads = static_cast<int64_t>(ranges_.size());
    for (int64_t i = index; i < index + threads; ++i) {
      Range& range = ranges_[i % threads];
      const int64_t block = range.next.fetch_add(1);
      if (block < range.end) return block;
    }
    return -1;
  }

  std::vector<Range> ranges_;
  std::mutex mutex_;
  std::condition_variable idle_;
  std::atomic<int> working_{0};
};

}  // namespace dqat::core

#endif  // DQAT_CORE_BLOCK_QUEUE_H_
