// What the CUDA kernels of learned steps do; see cuda_work.h.
#ifndef DQAT_CORE_CUDA_LEARNED_WORK_H_
#define DQAT_CORE_CUDA_LEARNED_WORK_H_

#include <cstdint>

#include "core/cuda_work.h"
#include "core/learned_step.h"

namespace dqat::core::cuda {

// The steps of all channels, in device memory. An impossible one has a grid of NaN; see Ranges.
struct Steps {
  const float* step;
  const bool* is_signed;
  QuantizerSpec spec;

  DQAT_HOST_DEVICE LearnedStep Get(int64_t channel) const {
    return {step[channel], is_signed[channel], spec};
  }
  DQAT_HOST_DEVICE Grid MakeGridOrNan(int64_t channel) const {
    const LearnedStep learned = Get(channel);
    return learned.valid() ? learned.grid() : GridOfNan();
  }
};

template <typename T>
struct LearnedGradWork {
  struct Value {
    T x, dy;
  };
  using Merge = MergeSum;  // of the first sum; the second stays 0
  static constexpr bool kReduces = true;

  const T *dy, *x;
  Steps steps;
  bool per_tensor;
  T* dx;
  Grid grid;
  float levels;

  DQAT_HOST_DEVICE void Start(int64_t channel, Pair* found) {
    grid = steps.MakeGridOrNan(channel);
    levels = steps.Get(channel).levels();
    if (grid.scale != grid.scale) found->first = kNan;
  }
  DQAT_HOST_DEVICE Value Load(int64_t offset) const { return {x[offset], dy[offset]}; }
  DQAT_HOST_DEVICE void Use(int64_t offset, const Value& input, Pair* found) const {
    const float value = static_cast<float>(input.x), slope = static_cast<float>(input.dy);
    const float share = per_tensor ? StepSlope<true>(value, grid.nudged_min, grid.nudged_max, grid.scale,
                                                     grid.inv_scale, grid.zero_level, levels)
                                   : StepSlope<false>(value, grid.nudged_min, grid.nudged_max, grid.scale,
                                                      grid.inv_scale, grid.zero_level, levels);
    found->first += slope * share;
    const bool impossible = grid.scale != grid.scale;
    dx[offset] = static_cast<T>(
        impossible ? kNan : StepSlopeToX(value, slope, grid.nudged_min, grid.nudged_max, grid.scale));
  }
  DQAT_HOST_DEVICE void Finish() {}
};

// Where the sums go, with the gradient's scale.
struct StepGradients {
  Steps steps;
  const int64_t* elements;
  float* dstep;

  DQAT_HOST_DEVICE void Set(int64_t channel, const Pair& sums) const {
    dstep[channel] = steps.Get(channel).ScaledGradient(sums.first, *elements);
  }
};

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_LEARNED_WORK_H_
