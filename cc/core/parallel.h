// How core functions that are too large for one block ask their caller for threads.
#ifndef DQAT_CORE_PARALLEL_H_
#define DQAT_CORE_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace dqat::core {

struct Parallel {
  int threads = 1;
  // Calls body(begin, end) on ranges that cover [0, count), and returns when all are done. `cost` of one is
  // in rough cycles.
  std::function<void(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body)> run;

  void ForEach(int64_t count, int64_t cost, const std::function<void(int64_t)>& body) const {
    run(count, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }
};

// The caller's own thread alone.
inline Parallel OneThread() {
  return {1, [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
            if (count > 0) body(0, count);
          }};
}

}  // namespace dqat::core

#endif  // DQAT_CORE_PARALLEL_H_
