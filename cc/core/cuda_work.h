// What the CUDA kernels do, written so that it runs on the CPU too (tests/cc/cuda_on_host.cc): the threads of
// a block, and how their results are brought together, are a parameter `Block` with
//   PerThread<V>                   a V for each thread, found[thread]
//   ForEachThread(body)            body(thread) for each thread
//   Synchronize()                  a barrier: what one thread has written, all see
//   Reduce(found, merge)           all threads' values as one, valid in thread 0
#ifndef DQAT_CORE_CUDA_WORK_H_
#define DQAT_CORE_CUDA_WORK_H_

#include <cstdint>
#include <limits>

#include "core/cuda_plan.h"
#include "core/element.h"
#include "core/host_device.h"
#include "core/quantization.h"

namespace dqat::core::cuda {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A record (min, max), or the gradient sums to (min, max).
struct Pair {
  float first, second;
};

struct MergeRecord {
  DQAT_HOST_DEVICE static Pair Identity() { return {kInfinity, -kInfinity}; }
  DQAT_HOST_DEVICE Pair operator()(const Pair& a, const Pair& b) const {
    return {b.first < a.first ? b.first : a.first, b.second > a.second ? b.second : a.second};
  }
  // -0 becomes +0, so that equal records are equal bits.
  DQAT_HOST_DEVICE static Pair Finish(const Pair& pair) { return {pair.first + 0.0f, pair.second + 0.0f}; }
};

struct MergeSum {
  DQAT_HOST_DEVICE static Pair Identity() { return {0.0f, 0.0f}; }
  DQAT_HOST_DEVICE Pair operator()(const Pair& a, const Pair& b) const {
    return {a.first + b.first, a.second + b.second};
  }
  DQAT_HOST_DEVICE static Pair Finish(const Pair& pair) { return pair; }
};

// An array of pairs, as two arrays.
struct Pairs {
  float *first, *second;
  DQAT_HOST_DEVICE Pair Get(int64_t i) const { return {first[i], second[i]}; }
  DQAT_HOST_DEVICE void Set(int64_t i, const Pair& pair) const {
    first[i] = pair.first;
    second[i] = pair.second;
  }
};

DQAT_HOST_DEVICE inline Grid GridOfNan() {
  Grid grid;
  grid.nudged_min = grid.nudged_max = grid.scale = grid.inv_scale = grid.zero_level = kNan;
  grid.grad_min = grid.grad_max = kNan;
  return grid;
}

// The ranges of all channels, in device memory: only a thread can look at them, and it can't raise. So an
// invalid range has a grid of NaN, which makes outputs of NaN.
struct Ranges {
  const float *min, *max;
  QuantizerSpec spec;

  DQAT_HOST_DEVICE Grid MakeGridOrNan(int64_t channel) const {
    const Range range{min[channel], max[channel]};
    return IsValid(range) ? MakeGrid(range, spec) : GridOfNan();
  }
};

// Each kernel's work, as a thread sees it: Start in a channel, Load and Use every element, then Finish.
// Elements are loaded some at a time before they are used, so that an output may stand where the input stood.

// `Source` says what the grids are: Ranges, or Steps (cuda_learned_work.h).
template <typename T, bool kTrack, typename Source = Ranges>
struct FakeQuantWork {
  using Value = T;
  using Merge = MergeRecord;
  static constexpr bool kReduces = kTrack;

  const T* x;
  Source ranges;
  bool per_tensor;  // divides by the scale, as TensorFlow does
  T* y;
  Grid grid;
  Activation activation = Activation::kLinear;

  DQAT_HOST_DEVICE void Start(int64_t channel, Pair*) {
    grid = ranges.MakeGridOrNan(channel);
    per_tensor = per_tensor && grid.scale != 0.0f;
  }
  DQAT_HOST_DEVICE T Load(int64_t offset) const { return x[offset]; }
  DQAT_HOST_DEVICE void Use(int64_t offset, T input, Pair* found) const {
    const float value = Activate(static_cast<float>(input), activation);
    if (kTrack) *found = Merge()(*found, {RecordMin(value), RecordMax(value)});
    if (grid.passthrough) {
      y[offset] = activation == Activation::kLinear ? input : static_cast<T>(value + 0.0f);  // -0 is +0
      return;
    }
    const float quantized = per_tensor ? Quantize<true>(value, grid.nudged_min, grid.nudged_max, grid.scale,
                                                        grid.inv_scale, grid.zero_level)
                                       : Quantize<false>(value, grid.nudged_min, grid.nudged_max, grid.scale,
                                                         grid.inv_scale, grid.zero_level);
    y[offset] = static_cast<T>(quantized);
  }
  DQAT_HOST_DEVICE void Finish() {}
};

template <typename T>
struct MinMaxWork {
  using Value = T;
  using Merge = MergeRecord;
  static constexpr bool kReduces = true;

  const T* x;

  DQAT_HOST_DEVICE void Start(int64_t, Pair*) {}
  DQAT_HOST_DEVICE T Load(int64_t offset) const { return x[offset]; }
  DQAT_HOST_DEVICE void Use(int64_t, T input, Pair* found) const {
    const float value = static_cast<float>(input);
    *found = Merge()(*found, {RecordMin(value), RecordMax(value)});
  }
  DQAT_HOST_DEVICE void Finish() {}
};

template <typename T>
struct FakeQuantGradWork {
  struct Value {
    T x, dy;
  };
  using Merge = MergeSum;
  static constexpr bool kReduces = true;

  const T *dy, *x;
  Ranges ranges;
  T* dx;
  float lo = 0.0f, hi = 0.0f;
  bool has_no_grid = false;

  DQAT_HOST_DEVICE void Start(int64_t channel, Pair* found) {
    const Grid grid = ranges.MakeGridOrNan(channel);
    lo = grid.grad_min;
    hi = grid.grad_max;
    has_no_grid = lo != lo;
    if (has_no_grid) *found = {kNan, kNan};
  }
  DQAT_HOST_DEVICE Value Load(int64_t offset) const { return {x[offset], dy[offset]}; }
  DQAT_HOST_DEVICE void Use(int64_t offset, const Value& input, Pair* found) const {
    const float value = static_cast<float>(input.x), slope = static_cast<float>(input.dy);
    *found = Merge()(*found, {SlopeToMin(value, slope, lo), SlopeToMax(value, slope, hi)});
    dx[offset] = static_cast<T>(has_no_grid ? kNan : SlopeToX(value, slope, lo, hi));
  }
  DQAT_HOST_DEVICE void Finish() {}
};

// Words first, first + stride, ... of what the slopes of a tensor's values reach. A thread has a word to
// itself, and what it reads is in the first-level cache after its first value. An invalid range lets no slope
// through: the NaN that outputs are then comes back as one.
template <typename T>
DQAT_HOST_DEVICE void FindReach(int64_t first, int64_t stride, int64_t size, const T* x, const Ranges& ranges,
                                Activation activation, uint64_t* reach) {
  const Grid grid = ranges.MakeGridOrNan(0);
  const bool has_grid = grid.grad_min == grid.grad_min;
  const SlopeBounds bounds = BoundSlopes(grid.grad_min, grid.grad_max, activation);
  for (int64_t index = first; index < ReachWords(size); index += stride) {
    const int64_t begin = index * kReachValues;
    uint64_t word = 0;
    for (int i = 0; has_grid && i < kReachValues && begin + i < size; ++i) {
      const float value = static_cast<float>(x[begin + i]);
      word |= bounds.positive ? SlopeReach<true>(value, bounds, i) : SlopeReach<false>(value, bounds, i);
    }
    reach[index] = word;
  }
}

template <typename T>
struct ReachGradWork {
  struct Value {
    uint64_t word;
    T dy;
  };
  using Merge = MergeSum;
  static constexpr bool kReduces = true;

  const T* dy;
  const uint64_t* reach;
  T* dx;

  DQAT_HOST_DEVICE void Start(int64_t, Pair*) {}
  DQAT_HOST_DEVICE Value Load(int64_t offset) const { return {reach[offset / kReachValues], dy[offset]}; }
  DQAT_HOST_DEVICE void Use(int64_t offset, const Value& input, Pair* found) const {
    const ReachBits bits = ReadReach(input.word);
    const uint32_t bit = 1u << (offset % kReachValues);
    const float slope = static_cast<float>(input.dy);
    *found =
        Merge()(*found, {(bits.to_min & bit) != 0 ? slope : 0.0f, (bits.to_max & bit) != 0 ? slope : 0.0f});
    dx[offset] = static_cast<T>(slope * ((bits.to_x & bit) != 0 ? 1.0f : 0.0f));
  }
  DQAT_HOST_DEVICE void Finish() {}
};

// One thread's elements, in order; returns what it has found.
template <typename Work>
DQAT_HOST_DEVICE Pair RunThread(const Plan& plan, int64_t block, int thread, Work work) {
  constexpr int kBatch = 4;  // loads on their way at a time
  Walk walk = plan.ThreadWalk(block, thread);
  Pair found = Work::Merge::Identity();
  if (walk.count == 0) return found;
  work.Start(walk.channel, &found);
  while (walk.count >= kBatch) {
    int64_t offsets[kBatch];
    typename Work::Value values[kBatch];
    for (int i = 0; i < kBatch; ++i) {
      offsets[i] = walk.Next();
      values[i] = work.Load(offsets[i]);
    }
    for (int i = 0; i < kBatch; ++i) work.Use(offsets[i], values[i], &found);
  }
  while (walk.count > 0) {
    const int64_t offset = walk.Next();
    work.Use(offset, work.Load(offset), &found);
  }
  work.Finish();
  return found;
}

// Blocks first_block, first_block + grid_size, ... of a plan, so that a grid may be smaller than the plan.
template <typename Block, typename Work>
DQAT_HOST_DEVICE void RunBlocks(Block& block, int64_t first_block, int64_t grid_size, const Plan& plan,
                                const Work& work, Pairs partials) {
  typename Block::template PerThread<Pair> found;
  for (int64_t index = first_block; index < plan.num_blocks; index += grid_size) {
    block.ForEachThread([&](int thread) { found[thread] = RunThread(plan, index, thread, work); });
    if constexpr (Work::kReduces) {
      if (plan.by_column) {
        block.ForEachThread([&](int thread) {
          const int64_t place = plan.ThreadPartial(index, thread);
          if (place >= 0) partials.Set(place, found[thread]);
        });
      } else {
        const Pair all = block.Reduce(found, typename Work::Merge());
        block.ForEachThread([&](int thread) {
          if (thread == 0) partials.Set(index, all);
        });
      }
    }
  }
}

// The partials of channels first_channel, first_channel + grid_size, ... as one result each. `Results` is
// Pairs or has its Set.
template <typename Merge, typename Block, typename Results>
DQAT_HOST_DEVICE void MergePartials(Block& block, int64_t first_channel, int64_t grid_size, const Plan& plan,
                                    Pairs partials, Results results) {
  typename Block::template PerThread<Pair> found;
  for (int64_t channel = first_channel; channel < plan.channels; channel += grid_size) {
    block.ForEachThread([&](int thread) {
      Pair mine = Merge::Identity();
      for (int64_t i = thread; i < plan.partials_per_channel; i += Plan::kThreads) {
        mine = Merge()(mine, partials.Get(plan.ChannelPartial(channel, i)));
      }
      found[thread] = mine;
    });
    const Pair all = block.Reduce(found, Merge());
    block.ForEachThread([&](int thread) {
      if (thread == 0) results.Set(channel, Merge::Finish(all));
    });
  }
}

// Fits ranges first, first + stride, ...
DQAT_HOST_DEVICE inline void FitRanges(int64_t first, int64_t stride, int64_t count, Ranges ranges,
                                       Pairs fitted) {
  for (int64_t i = first; i < count; i += stride) {
    const Range range = core::FitRange({ranges.min[i], ranges.max[i]}, ranges.spec);
    fitted.Set(i, {range.min, range.max});
  }
}

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_WORK_H_
