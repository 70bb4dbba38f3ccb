// The threads of a GPU on the CPU: what the programs that run the CUDA kernels' code on the host share.
#ifndef DQAT_TESTS_CC_HOST_BLOCK_H_
#define DQAT_TESTS_CC_HOST_BLOCK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda_work.h"

namespace dqat::core {

using cuda::Pair;
using cuda::Pairs;
using cuda::Plan;

inline int failures = 0;

inline void Expect(bool true_statement, const std::string& what) {
  if (true_statement) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// For main to return.
inline int Report() {
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

// A 16-bit element: the upper half of a float, rounded to even.
class Bfloat16 {
 public:
  Bfloat16() = default;
  explicit Bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    upper_ = static_cast<uint16_t>(std::isnan(value) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t bits = uint32_t{upper_} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

 private:
  uint16_t upper_ = 0;
};

// The threads of a block in turn. It stands in for cuda_launch.cuh's DeviceBlock and histogram_cuda.cu's
// SummingBlock: Reduce and SumForAll go through the threads in order, where CUB's cub::BlockReduce goes
// through warps and then over them. What CUB does itself is thus not run here.
struct HostBlock {
  template <typename V>
  struct PerThread {
    V values[Plan::kThreads];
    V& operator[](int thread) { return values[thread]; }
  };

  template <typename Body>
  void ForEachThread(Body body) {
    for (int thread = 0; thread < Plan::kThreads; ++thread) body(thread);
  }

  void Synchronize() {}

  double SumForAll(PerThread<double>& shares) {
    double sum = 0.0;
    for (const double share : shares.values) sum += share;
    return sum;
  }

  template <typename Merge>
  Pair Reduce(PerThread<Pair>& found, Merge merge) {
    Pair all = found[0];
    for (int thread = 1; thread < Plan::kThreads; ++thread) all = merge(all, found[thread]);
    return all;
  }
};

// Both kernels of one launch, on a grid that may be smaller than the plan.
template <typename Work, typename Results>
void RunOnHost(const Plan& plan, int64_t grid_size, const Work& work, Results results) {
  HostBlock block;
  std::vector<float> scratch(2 * plan.num_partials, cuda::kNan);
  const Pairs partials{scratch.data(), scratch.data() + plan.num_partials};
  for (int64_t first = 0; first < grid_size; ++first) {
    cuda::RunBlocks(block, first, grid_size, plan, work, partials);
  }
  if constexpr (Work::kReduces) {
    for (int64_t first = 0; first < grid_size; ++first) {
      cuda::MergePartials<typename Work::Merge>(block, first, grid_size, plan, partials, results);
    }
  }
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool AllNan(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isnan(value); });
}

}  // namespace dqat::core

#endif  // DQAT_TESTS_CC_HOST_BLOCK_H_
