// Runs whole tensors through the block functions of core/fake_quant.h: the only place in these tests that
// calls them.
#ifndef DQAT_TESTS_CC_BLOCKS_H_
#define DQAT_TESTS_CC_BLOCKS_H_

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <atomic>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "core/fake_quant.h"
#include "core/slope_reach.h"

namespace dqat::core::testing {

// How blocks are spread: over how many threads, and in which order they are taken.
struct Spread {
  int threads = 1;
  bool reversed = false;
};

// Subnormals count as 0 while this lives, on this thread: so TensorFlow runs its kernels.
class FlushSubnormals {
 public:
#ifdef __SSE__
  explicit FlushSubnormals(bool flush) : kept_(_mm_getcsr()) { _mm_setcsr(flush ? kept_ | 0x8040 : kept_); }
  ~FlushSubnormals() { _mm_setcsr(kept_); }

 private:
  const unsigned kept_;
#else
  explicit FlushSubnormals(bool) {}
#endif
};

// Where subnormals are flushed, threads that blocks run on flush them as well.
inline bool Flushing() {
#ifdef __SSE__
  return (_mm_getcsr() & 0x8040) == 0x8040;
#else
  return false;
#endif
}

inline void RunBlocks(const BlockPlan& plan, Spread spread, const std::function<void(int64_t)>& body) {
  const bool flush = Flushing();
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    const FlushSubnormals scope(flush);
    for (int64_t i = next++; i < plan.num_blocks; i = next++) {
      body(spread.reversed ? plan.num_blocks - 1 - i : i);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < spread.threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

inline GridTable Table(const ChannelLayout& layout, const BlockPlan& plan, const std::vector<Grid>& grids) {
  GridTable table(layout, plan);
  for (size_t channel = 0; channel < grids.size(); ++channel) table.Set(channel, grids[channel]);
  return table;
}

// A partial that no block has written shows as a NaN.
inline std::vector<float> Unwritten(int64_t size) {
  return std::vector<float>(size, std::numeric_limits<float>::quiet_NaN());
}

struct Quantized {
  std::vector<float> y, min, max;
};

enum class Track { kNo, kYes };
enum class InPlace { kNo, kYes };

inline Quantized FakeQuant(const ChannelLayout& layout, const std::vector<Grid>& grids, std::vector<float> x,
                           Track track, InPlace in_place = InPlace::kNo, Spread spread = {}) {
  const BlockPlan plan(layout);
  const GridTable table = Table(layout, plan, grids);
  Quantized result = {Unwritten(x.size()), Unwritten(layout.channels), Unwritten(layout.channels)};
  std::vector<float> min = Unwritten(plan.partials), max = Unwritten(plan.partials);
  RecordPartials record;
  if (track == Track::kYes) record = {min.data(), max.data()};
  float* y = in_place == InPlace::kYes ? x.data() : result.y.data();
  RunBlocks(plan, spread,
            [&](int64_t block) { FakeQuantBlock(layout, plan, block, table, x.data(), y, record); });
  if (track == Track::kYes) MergeRecords(layout, plan, record, result.min.data(), result.max.data());
  if (in_place == InPlace::kYes) result.y = x;
  return result;
}

// What is quantized for a gradient that won't see x.
struct QuantizedWithReach : Quantized {
  std::vector<uint64_t> reach;
};

inline QuantizedWithReach FakeQuantReach(const ChannelLayout& layout, const std::vector<Grid>& grids,
                                         Activation activation, std::vector<float> x,
                                         InPlace in_place = InPlace::kNo, Spread spread = {}) {
  const BlockPlan plan(layout);
  const GridTable table = Table(layout, plan, grids);
  QuantizedWithReach result = {{Unwritten(x.size()), Unwritten(1), Unwritten(1)},
                               std::vector<uint64_t>(ReachWords(layout.size()), ~uint64_t{0})};
  std::vector<float> min = Unwritten(plan.partials), max = Unwritten(plan.partials);
  const RecordPartials record = {min.data(), max.data()};
  float* y = in_place == InPlace::kYes ? x.data() : result.y.data();
  RunBlocks(plan, spread, [&](int64_t block) {
    FakeQuantReachBlock(layout, plan, block, table, activation, x.data(), y, result.reach.data(), record);
  });
  MergeRecords(layout, plan, record, result.min.data(), result.max.data());
  if (in_place == InPlace::kYes) result.y = x;
  return result;
}

inline std::vector<Range> MinMax(const ChannelLayout& layout, const std::vector<float>& x,
                                 Spread spread = {}) {
  const BlockPlan plan(layout);
  std::vector<float> min = Unwritten(plan.partials), max = Unwritten(plan.partials);
  const RecordPartials record = {min.data(), max.data()};
  RunBlocks(plan, spread, [&](int64_t block) { MinMaxBlock(layout, plan, block, x.data(), record); });
  std::vector<float> merged_min = Unwritten(layout.channels), merged_max = Unwritten(layout.channels);
  MergeRecords(layout, plan, record, merged_min.data(), merged_max.data());
  std::vector<Range> records;
  for (int64_t c = 0; c < layout.channels; ++c) records.push_back({merged_min[c], merged_max[c]});
  return records;
}

struct Gradients {
  std::vector<float> dx, dmin, dmax;
};

enum class Dx { kSeparate, kIsDy, kIsX };

inline Gradients FakeQuantGrad(const ChannelLayout& layout, const std::vector<Grid>& grids,
                               std::vector<float> dy, std::vector<float> x, Dx where = Dx::kSeparate,
                               Spread spread = {}) {
  const BlockPlan plan(layout);
  const GridTable table = Table(layout, plan, grids);
  Gradients result = {Unwritten(x.size()), Unwritten(layout.channels), Unwritten(layout.channels)};
  std::vector<float> dmin = Unwritten(plan.partials), dmax = Unwritten(plan.partials);
  std::vector<float>& dx = where == Dx::kIsDy ? dy : where == Dx::kIsX ? x : result.dx;
  RunBlocks(plan, spread, [&](int64_t block) {
    FakeQuantGradBlock(layout, plan, block, table, dy.data(), x.data(), dx.data(), dmin.data(), dmax.data());
  });
  MergeSums(layout, plan, dmin.data(), result.dmin.data());
  MergeSums(layout, plan, dmax.data(), result.dmax.data());
  if (where != Dx::kSeparate) result.dx = dx;
  return result;
}

inline Gradients ReachGrad(const ChannelLayout& layout, const std::vector<uint64_t>& reach,
                           std::vector<float> dy, Dx where = Dx::kSeparate, Spread spread = {}) {
  const BlockPlan plan(layout);
  Gradients result = {Unwritten(dy.size()), Unwritten(1), Unwritten(1)};
  std::vector<float> dmin = Unwritten(plan.partials), dmax = Unwritten(plan.partials);
  std::vector<float>& dx = where == Dx::kIsDy ? dy : result.dx;
  RunBlocks(plan, spread, [&](int64_t block) {
    ReachGradBlock(layout, plan, block, dy.data(), reach.data(), dx.data(), dmin.data(), dmax.data());
  });
  MergeSums(layout, plan, dmin.data(), result.dmin.data());
  MergeSums(layout, plan, dmax.data(), result.dmax.data());
  if (where != Dx::kSeparate) result.dx = dx;
  return result;
}

}  // namespace dqat::core::testing

#endif  // DQAT_TESTS_CC_BLOCKS_H_
